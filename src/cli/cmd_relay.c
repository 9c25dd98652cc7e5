/* ie relay: a worker in a process of its own. */
#include "cli.h"

#include <ie/worker.h>

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "units.h"

#define STOP_MS 10000

const cli_flag cli_relay_flags[] = {
    {.name = "to",
     .value = "URL",
     .help = "where to publish: socket://HOST:PORT, unix:PATH, file:///PATH (required)"},
    {.name = "cursor", .value = "NAME", .help = "the destination's name in the database (outbox)"},
    {.name = "topics",
     .value = "PATTERNS",
     .help = "only these, divided by commas: orders.>,stock.* (all)"},
    {.name = "order", .value = "ORDER", .help = "key (default): per key; none; strict: everything"},
    {.name = "start",
     .value = "WHERE",
     .help = "a new cursor begins with the oldest event (default) or now"},
    {.name = "once", .help = "publish until nothing is due, then stop"},
    {.name = "timeout", .value = "TIME", .help = "with --once: give up after this time (no limit)"},
    {.name = "set",
     .value = "NAME=VALUE",
     .repeats = true,
     .help = "a number of the worker's: batch_max=200, lease_ms=5s ('--set help' lists them)"},
    {.name = "json", .help = "with --once: what was done, as one JSON object"},
    {.name = "quiet", .help = "warnings and errors only", .letter = 'q'},
    {.name = "verbose", .help = "say more", .letter = 'v'},
    {.name = NULL},
};

/* ---- the worker's numbers ---- */

typedef struct number {
    const char *name;
    const char *unit;
    uint32_t    fallback;
    uint32_t    min;
    uint32_t    max;
    size_t      offset;
} number;

static const number NUMBERS[] = {
#define NUMBER_ROW(name, unit, fallback, min, max)                                                 \
    {#name, unit, fallback, min, max, offsetof(ie_worker_options, name)},
    IE_WORKER_OPTION_MAP(NUMBER_ROW)
#undef NUMBER_ROW
};
#define NUMBER_COUNT (sizeof NUMBERS / sizeof NUMBERS[0])

static const char *
number_name_at(const void *of, size_t index)
{
    (void)of;
    return NUMBERS[index].name;
}

static void
numbers_list(void)
{
    static const char *const HEADER[] = {"NAME", "DEFAULT", "SMALLEST", "LARGEST", "UNIT"};
    cli_table                table;

    cli_table_begin(&table, HEADER, 5);
    for (size_t i = 0; i < NUMBER_COUNT; i++) {
        char cells[3][16];

        (void)snprintf(cells[0], sizeof cells[0], "%" PRIu32, NUMBERS[i].fallback);
        (void)snprintf(cells[1], sizeof cells[1], "%" PRIu32, NUMBERS[i].min);
        (void)snprintf(cells[2], sizeof cells[2], "%" PRIu32, NUMBERS[i].max);
        cli_table_row(&table, (const char *const[]){NUMBERS[i].name, cells[0], cells[1], cells[2],
                                                    NUMBERS[i].unit});
    }
    cli_table_end(&table);
}

/* "5s" for an option in ms or s, "8MiB" for one in bytes; a bare number is in the option's unit. */
static bool
number_parse(const number *row, const char *text, int64_t *value)
{
    const bool is_bare = text[0] != '\0' && strspn(text, "0123456789") == strlen(text);

    if (is_bare || strcmp(row->unit, "bytes") == 0)
        return ie__bytes_parse(text, value);
    if (strcmp(row->unit, "ms") == 0)
        return ie__duration_parse(text, value);
    if (strcmp(row->unit, "s") == 0 && ie__duration_parse(text, value)) {
        *value /= 1000;
        return true;
    }
    return false;
}

static cli_exit
number_set(const cli *self, ie_worker_options *options, const char *given)
{
    const char   *equals = strchr(given, '=');
    char          name[64];
    const number *row = NULL;
    int64_t       value = 0;
    uint32_t      narrow;

    (void)snprintf(name, sizeof name, "%.*s", (int)(equals != NULL ? equals - given : 60), given);
    for (size_t i = 0; i < NUMBER_COUNT; i++)
        if (strcmp(NUMBERS[i].name, name) == 0)
            row = &NUMBERS[i];
    if (row == NULL) {
        const char *meant = ie__suggest(name, number_name_at, NULL, NUMBER_COUNT);

        return cli_usage(self, "--set: there is no '%s'%s%s%s; '--set help' lists them", name,
                         meant != NULL ? "; did you mean '" : "", meant != NULL ? meant : "",
                         meant != NULL ? "'?" : "");
    }
    if (equals == NULL || !number_parse(row, equals + 1, &value) || value < row->min ||
        value > row->max)
        return cli_usage(self, "--set: %s takes %" PRIu32 " to %" PRIu32 " %s", row->name, row->min,
                         row->max, row->unit);
    narrow = (uint32_t)value;
    memcpy((char *)options + row->offset, &narrow, sizeof narrow);
    return CLI_OK;
}

/* ---- options ---- */

static bool
one_of(const char *text, const char *const *names, size_t count, size_t *index)
{
    for (size_t i = 0; text != NULL && i < count; i++)
        if (strcmp(names[i], text) == 0) {
            *index = i;
            return true;
        }
    return text == NULL;
}

static cli_exit
relay_options(const cli *self, ie_worker_options *options, ie_destination *to)
{
    static const char *const ORDERS[] = {"key", "none", "strict"};
    static const char *const STARTS[] = {"oldest", "now"};
    const ie_publisher_ops  *ops;
    size_t                   order = IE_ORDER_KEY;
    size_t                   start = IE_START_OLDEST;
    ie_error                 error = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(options);
    *to = (ie_destination){.size = sizeof *to, .name = "outbox", .url = cli_text(self, "to")};
    if (to->url == NULL)
        return cli_usage(self,
                         "--to says where to publish, for example --to socket://127.0.0.1:9100");
    if (ie_publishers_find(&ops, options->publishers, to->url, &error) != IE_OK)
        return cli_usage(self, "--to: %s", error.message);
    if (!one_of(cli_text(self, "order"), ORDERS, 3, &order))
        return cli_usage(self, "--order: '%.40s' is not one of key, none, strict",
                         cli_text(self, "order"));
    if (!one_of(cli_text(self, "start"), STARTS, 2, &start))
        return cli_usage(self, "--start: '%.40s' is not one of oldest, now",
                         cli_text(self, "start"));
    if (!cli_has(self, "once") && (cli_has(self, "timeout") || cli_has(self, "json")))
        return cli_usage(self, "--timeout and --json go with --once");
    if (cli_has(self, "cursor"))
        to->name = cli_text(self, "cursor");
    to->topics = cli_text(self, "topics");
    to->order = (ie_order)order;
    to->start = (ie_start)start;
    options->db = self->operands[0];
    options->destinations = to;
    options->destination_count = 1;
    options->logger = cli_logger(self);
    for (size_t i = 0; cli_text_at(self, "set", i) != NULL; i++) {
        const cli_exit code = number_set(self, options, cli_text_at(self, "set", i));

        if (code != CLI_OK)
            return code;
    }
    return CLI_OK;
}

/* ---- running ---- */

static cli_exit
relay_fail(const cli *self, const ie_error *error)
{
    const cli_exit code = cli_fail(error);

    if (error->status == IE_EUNREACHABLE)
        cli_hint(
            "nothing is lost: what could not be sent waits in %s; 'ie outbox status %s' shows it",
            self->operands[0], self->operands[0]);
    else if (error->status == IE_ELEASE)
        cli_hint("'ie outbox status %s' shows who serves it; another cursor is served beside it",
                 self->operands[0]);
    return code;
}

static void
once_tell(const cli *self, const ie_worker_report *report)
{
    if (cli_has(self, "json")) {
        cli_json json = {{0}, false};

        cli_json_open(&json, NULL, '{');
        cli_json_number(&json, "published", (int64_t)report->published);
        cli_json_number(&json, "retried", (int64_t)report->retried);
        cli_json_number(&json, "dead", (int64_t)report->dead);
        cli_json_number(&json, "expired", (int64_t)report->expired);
        cli_json_number(&json, "pending", (int64_t)report->pending);
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else if (!cli_has(self, "quiet")) {
        cli_say("published %" PRIu64 ", retried %" PRIu64 ", dead %" PRIu64 ", expired %" PRIu64
                ", waiting %" PRIu64,
                report->published, report->retried, report->dead, report->expired, report->pending);
    }
}

static cli_exit
relay_once(const cli *self, const ie_worker_options *options, int64_t timeout_ms)
{
    ie_worker       *worker = NULL;
    ie_worker_report report = {0};
    ie_error         error = IE_ERROR_INIT;
    cli_exit         code = CLI_OK;

    if (ie_worker_open(&worker, options, &error) != IE_OK)
        return relay_fail(self, &error);
    if (ie_worker_run_once(worker, (uint32_t)timeout_ms, &report, &error) != IE_OK)
        code = relay_fail(self, &error);
    once_tell(self, &report);
    if (code == CLI_OK && report.dead > 0) {
        code = CLI_FAILED;
        cli_hint("'ie outbox ls %s --state dead' shows what ended dead, and why",
                 self->operands[0]);
    }
    ie_worker_close(worker);
    return code;
}

typedef struct totals { /* written by the worker's thread, read once it has ended */
    uint64_t published;
    uint64_t dead;
} totals;

static void
count_published(void *user, const char *destination, const ie_event *event)
{
    (void)destination;
    (void)event;
    ((totals *)user)->published++;
}

static void
count_dead(void *user, const char *destination, const ie_event *event, const char *reason)
{
    (void)destination;
    (void)event;
    (void)reason;
    ((totals *)user)->dead++;
}

static cli_exit
relay_run(const cli *self, ie_worker_options *options)
{
    totals     done = {0, 0};
    ie_worker *worker = NULL;
    ie_error   error = IE_ERROR_INIT;

    options->on_published = count_published;
    options->on_dead = count_dead;
    options->user = &done;
    cli_wait_begin();
    if (ie_worker_start(&worker, options, &error) != IE_OK)
        return relay_fail(self, &error);
    if (!cli_has(self, "quiet"))
        cli_say("relay of %s is running (cursor %s); stop it with Ctrl-C", self->operands[0],
                options->destinations[0].name);
    (void)cli_wait(-1);
    if (ie_worker_stop(worker, STOP_MS) != IE_OK)
        cli_say("some answers did not come in time; those events are sent again");
    ie_worker_close(worker);
    if (!cli_has(self, "quiet"))
        cli_say("stopped; published %" PRIu64 ", dead %" PRIu64 " since the start", done.published,
                done.dead);
    return CLI_OK;
}

cli_exit
cli_relay(cli *self)
{
    ie_worker_options options;
    ie_destination    to;
    sqlite3          *db = NULL;
    int64_t           timeout_ms = 0;
    cli_exit          code;

    for (size_t i = 0; cli_text_at(self, "set", i) != NULL; i++)
        if (strcmp(cli_text_at(self, "set", i), "help") == 0) {
            numbers_list();
            return CLI_OK;
        }
    code = relay_options(self, &options, &to);
    if (code == CLI_OK && !cli_duration(self, "timeout", 0, &timeout_ms))
        code = CLI_USAGE;
    if (code == CLI_OK)
        code = cli_db_open(&db, self->operands[0]); /* says it better when there is none */
    (void)sqlite3_close(db);
    if (code != CLI_OK)
        return code;
    return cli_has(self, "once") ? relay_once(self, &options, timeout_ms)
                                 : relay_run(self, &options);
}
