/* ie publish: an event into a database, in a transaction of its own, or straight to a destination.
 */
#include "cli.h"

#include <ie/bus.h>
#include <ie/outbox.h>
#include <ie/publisher_env.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core.h"
#include "units.h"
#include "url.h"

const cli_flag cli_publish_flags[] = {
    {.name = "db", .value = "DB", .help = "store it in this database, in a transaction of its own"},
    {.name = "to",
     .value = "URL",
     .help = "send it there and wait for the answer, for example socket://127.0.0.1:9100"},
    {.name = "key", .value = "KEY", .help = "order is kept among events of one key"},
    {.name = "type", .value = "TYPE", .help = "CloudEvents type (the topic)"},
    {.name = "source", .value = "SOURCE", .help = "CloudEvents source (that of the database)"},
    {.name = "subject", .value = "SUBJECT", .help = "CloudEvents subject"},
    {.name = "id", .value = "ID", .help = "instead of a new UUIDv7"},
    {.name = "header",
     .value = "NAME=VALUE",
     .repeats = true,
     .help = "an extension attribute, name a-z 0-9"},
    {.name = "content-type", .value = "TYPE", .help = "of the data (application/json)"},
    {.name = "dedupe-key",
     .value = "KEY",
     .help = "with --db: refuse it while an event with this key is kept"},
    {.name = "not-before",
     .value = "WHEN",
     .help = "send it at the earliest then: RFC 3339, or +10s, +5m, +2h"},
    {.name = "expires", .value = "WHEN", .help = "never send it after this"},
    {.name = "persistent", .help = "with --to a bus: stored before it answers, where it stores"},
    {.name = "require-subscriber",
     .help = "with --to a bus: fail when nobody subscribes to the topic"},
    {.name = "timeout", .value = "TIME", .help = "with --to: wait at most so long (10s)"},
    {.name = "json", .help = "print one JSON object instead of the id"},
    {.name = NULL},
};

typedef struct outgoing {
    ie_event  event;
    ie_header headers[IE_HEADERS_MAX];
    char     *names[IE_HEADERS_MAX];
    char     *data; /* read from stdin */
    char      id[IE_ID_SIZE];
    int64_t   timeout_ms;
} outgoing;

/* ---- what was given ---- */

static void
outgoing_free(outgoing *out)
{
    for (size_t i = 0; i < IE_HEADERS_MAX; i++)
        ie__free(out->names[i]);
    ie__free(out->data);
}

static cli_exit
take_headers(const cli *self, outgoing *out)
{
    for (size_t i = 0; cli_text_at(self, "header", i) != NULL; i++) {
        const char *given = cli_text_at(self, "header", i);
        const char *equals = strchr(given, '=');

        if (equals == NULL || equals == given)
            return cli_usage(self, "--header: '%.60s' is not NAME=VALUE", given);
        if (i == IE_HEADERS_MAX)
            return cli_usage(self, "at most %d headers", IE_HEADERS_MAX);
        out->names[i] = ie__strdup(given);
        if (out->names[i] == NULL) {
            cli_say("out of memory");
            return CLI_FAILED;
        }
        out->names[i][equals - given] = '\0';
        out->headers[i] = (ie_header){.name = out->names[i], .value = equals + 1};
        out->event.header_count = i + 1;
    }
    out->event.headers = out->headers;
    return CLI_OK;
}

/* RFC 3339, or + and a duration from now. */
static bool
take_time(const cli *self, const char *flag, int64_t *ms)
{
    const char *text = cli_text(self, flag);

    if (text == NULL)
        return true;
    if (text[0] == '+' && ie__duration_parse(text + 1, ms)) {
        *ms += cli_now_ms();
        return true;
    }
    if (ie__time_parse(ms, text, strlen(text)) == IE_OK && *ms != 0)
        return true;
    (void)cli_usage(
        self, "--%s: '%.40s' is neither a time such as 2026-12-31T23:59:00Z nor +10s, +5m, +2h",
        flag, text);
    return false;
}

static cli_exit
outgoing_fill(const cli *self, outgoing *out)
{
    const char *data = self->operand_count > 1 ? self->operands[1] : NULL;
    ie_event   *event = &out->event;
    cli_exit    code;

    *event = (ie_event)IE_EVENT_INIT;
    event->topic = self->operands[0];
    event->key = cli_text(self, "key");
    event->type = cli_text(self, "type");
    event->source = cli_text(self, "source");
    event->subject = cli_text(self, "subject");
    event->id = cli_text(self, "id");
    event->content_type = cli_text(self, "content-type");
    event->dedupe_key = cli_text(self, "dedupe-key");
    if (!cli_duration(self, "timeout", 10000, &out->timeout_ms) ||
        !take_time(self, "not-before", &event->not_before_ms) ||
        !take_time(self, "expires", &event->expires_at_ms))
        return CLI_USAGE;
    code = take_headers(self, out);
    if (code != CLI_OK)
        return code;
    if (data == NULL ? cli_input_is_given() : strcmp(data, "-") == 0) {
        code = cli_input_read(&out->data, &event->data_bytes);
        event->data = event->data_bytes > 0 ? out->data : NULL;
        return code;
    }
    if (data != NULL && data[0] != '\0') {
        event->data = data;
        event->data_bytes = strlen(data);
    }
    return CLI_OK;
}

static cli_exit
refused(const outgoing *out, const ie_error *error)
{
    const cli_exit code = cli_fail(error);

    if (error->status == IE_EINVAL && out->event.content_type == NULL &&
        strstr(error->message, "JSON") != NULL)
        cli_hint("for other data say so: --content-type text/plain");
    return code;
}

/* ---- into a database ---- */

/* We are the application here, so the connection is an application's: SQLite's full durability. But
 * for the checkpoint: while others have the file open it is theirs to make. */
static cli_exit
application_open(sqlite3 **out, const char *path)
{
    cli_exit code = cli_db_open(out, path);

    if (code != CLI_OK)
        return code;
    (void)sqlite3_close(*out);
    if (sqlite3_open_v2(path, out, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK ||
        sqlite3_busy_timeout(*out, 5000) != SQLITE_OK ||
        sqlite3_wal_autocheckpoint(*out, 0) != SQLITE_OK) {
        cli_say("cannot open database %s: %s", path, sqlite3_errmsg(*out));
        code = CLI_FAILED;
    }
    return code;
}

static cli_exit
store(sqlite3 *db, outgoing *out, int64_t *position)
{
    ie_outbox *outbox = NULL;
    ie_error   error = IE_ERROR_INIT;
    ie_status  status = IE_OK;

    /* First the lock: one wait for it, and an outbox that is opened inside a transaction leaves
     * alone what the application has noted of its own durability. */
    if (sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK)
        status =
            ie_error_set(&error, IE_EBUSY, "cannot begin a transaction: %s", sqlite3_errmsg(db));
    if (status == IE_OK)
        status = ie_outbox_open(&outbox, db, NULL, &error);
    if (status == IE_OK)
        status = ie_publish(outbox, &out->event, out->event.id == NULL ? out->id : NULL, &error);
    if (status == IE_OK) {
        *position = sqlite3_last_insert_rowid(db);
        if (sqlite3_exec(db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
            status = ie_error_set(&error, IE_EIO, "cannot commit: %s", sqlite3_errmsg(db));
    }
    if (status != IE_OK)
        (void)sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    ie_outbox_close(outbox);
    return status == IE_OK ? CLI_OK : refused(out, &error);
}

static cli_exit
publish_stored(cli *self, outgoing *out)
{
    sqlite3 *db = NULL;
    int64_t  position = 0;
    cli_exit code = application_open(&db, cli_text(self, "db"));

    if (code == CLI_OK)
        code = store(db, out, &position);
    (void)sqlite3_close(db);
    if (code != CLI_OK)
        return code;
    if (out->event.id == NULL)
        out->event.id = out->id;
    if (cli_has(self, "json")) {
        cli_json json = {{0}, false};

        cli_json_open(&json, NULL, '{');
        cli_json_text(&json, "id", out->event.id);
        cli_json_text(&json, "topic", out->event.topic);
        cli_json_number(&json, "position", position);
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else {
        (void)printf("%s\n", out->event.id);
    }
    return CLI_OK;
}

/* ---- to a destination ---- */

typedef struct answer {
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    bool            is_there;
    ie_status       status;
    uint32_t        code;
    uint64_t        receivers;
    bool            is_stored;
    char            reason[600];
} answer;

static void
answer_put(answer *to, ie_status status, const char *reason, uint32_t code, uint64_t receivers)
{
    (void)pthread_mutex_lock(&to->lock);
    if (!to->is_there) {
        to->is_there = true;
        to->status = status;
        to->code = code;
        to->receivers = receivers;
        (void)snprintf(to->reason, sizeof to->reason, "%s", reason != NULL ? reason : "");
    }
    (void)pthread_cond_broadcast(&to->changed);
    (void)pthread_mutex_unlock(&to->lock);
}

static void
answer_init(answer *to)
{
    pthread_condattr_t attr;

    memset(to, 0, sizeof *to);
    (void)pthread_mutex_init(&to->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&to->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
}

static void
answer_fini(answer *to)
{
    (void)pthread_cond_destroy(&to->changed);
    (void)pthread_mutex_destroy(&to->lock);
}

static void
answer_wait(answer *to, int64_t timeout_ms)
{
    struct timespec until;

    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    (void)pthread_mutex_lock(&to->lock);
    while (!to->is_there && pthread_cond_timedwait(&to->changed, &to->lock, &until) == 0)
        continue;
    if (!to->is_there) {
        to->is_there = true;
        to->status = IE_ETIMEDOUT;
        (void)snprintf(to->reason, sizeof to->reason,
                       "no answer in time; it may arrive all the same");
    }
    (void)pthread_mutex_unlock(&to->lock);
}

static void
bus_answered(void *user, const ie_bus_answer *said)
{
    answer *to = user;

    to->is_stored = said->stored != 0; /* read once the answer is there */
    answer_put(to, said->status, said->reason, said->code, said->receivers);
}

/* The bus's own client says more than a publisher can: how many received it. */
static ie_status
send_bus(cli *self, const outgoing *out, answer *to, ie_error *error)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    const uint32_t        flags =
        (cli_has(self, "persistent") ? IE_BUS_PUBLISH_PERSISTENT : 0) |
        (cli_has(self, "require-subscriber") ? IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER : 0);
    ie_status status;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = cli_text(self, "to");
    options.flags = IE_BUS_CLIENT_FAIL_OFFLINE;
    options.close_timeout_ms = 1000;
    status = ie_bus_client_open(&client, &options, error);
    if (status != IE_OK)
        return status;
    status = ie_bus_client_publish(client, &out->event, flags, bus_answered, to, error);
    if (status == IE_OK) {
        answer_wait(to, out->timeout_ms);
    } else if (status ==
               IE_EUNREACHABLE) { /* known before we asked; the same answer as a moment later */
        answer_put(to, status, error->message, 0, 0);
        status = IE_OK;
    }
    ie_bus_client_close(client);
    return status;
}

static void
verdict_given(void *user, uint64_t ticket, ie_verdict verdict, const char *reason,
              uint32_t delay_ms)
{
    static const ie_status STATUSES[] = {IE_OK, IE_EHANDLER, IE_EUNREACHABLE, IE_EREFUSED};

    (void)ticket;
    (void)delay_ms;
    answer_put(user, (unsigned)verdict <= IE_REJECTED ? STATUSES[verdict] : IE_EHANDLER, reason, 0,
               0);
}

static ie_status
send_other(cli *self, const outgoing *out, answer *to, ie_error *error)
{
    const ie_publisher_ops *ops = NULL;
    ie_publisher_env       *env = NULL;
    void                   *opened = NULL;
    const ie_outgoing       one = {.event = &out->event, .ticket = 1, .attempt = 1};
    ie_status               status =
        ie_publishers_find(&ops, ie_publishers_builtin(), cli_text(self, "to"), error);

    if (status == IE_OK)
        status = ie_publisher_env_new(&env, verdict_given, to, NULL, error);
    if (status == IE_OK)
        status = ops->open(&opened, cli_text(self, "to"), env, error);
    if (status == IE_OK) {
        ops->publish(opened, &one, 1);
        if (ops->flush != NULL)
            ops->flush(opened);
        answer_wait(to, out->timeout_ms);
        ops->close(opened);
    }
    ie_publisher_env_free(env);
    return status;
}

static bool
is_bus(const char *url)
{
    return strncmp(url, "socket:", 7) == 0 || strncmp(url, "sockets:", 8) == 0 ||
           strncmp(url, "unix:", 5) == 0;
}

static void
sent_tell(const cli *self, const outgoing *out, const answer *to)
{
    const char *url = cli_text(self, "to");

    if (cli_has(self, "json")) {
        cli_json json = {{0}, false};

        cli_json_open(&json, NULL, '{');
        cli_json_text(&json, "id", out->event.id);
        cli_json_text(&json, "topic", out->event.topic);
        if (is_bus(url))
            cli_json_number(&json, "receivers", (int64_t)to->receivers);
        if (is_bus(url))
            cli_json_bool(&json, "stored", to->is_stored);
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else {
        (void)printf("%s\n", out->event.id);
    }
    if (is_bus(url) && to->receivers == 0 && !to->is_stored)
        cli_say("nobody subscribes to %s: the bus took the event, and nobody has it%s",
                out->event.topic,
                cli_has(self, "persistent") ? "" : "; with --persistent a bus with data keeps it");
    else if (cli_has(self, "persistent") && !to->is_stored)
        cli_say("the bus stores nothing on %s: the event went to who is connected",
                out->event.topic);
}

static cli_exit
publish_sent(cli *self, outgoing *out)
{
    const char *url = cli_text(self, "to");
    char        shown[256];
    answer      to;
    ie_error    error = IE_ERROR_INIT;
    cli_exit    code = CLI_OK;

    if (!is_bus(url) && (cli_has(self, "persistent") || cli_has(self, "require-subscriber")))
        return cli_usage(self, "--persistent and --require-subscriber go with a bus");
    if (out->event.id == NULL) {
        ie_id_new(out->id);
        out->event.id = out->id;
    }
    out->event.time_ms = cli_now_ms();
    if (out->event.type == NULL)
        out->event.type = out->event.topic;
    if (out->event.source == NULL)
        out->event.source = "/ie";
    if (ie_event_check(&out->event, &error) != IE_OK)
        return refused(out, &error);
    ie__url_redact(shown, sizeof shown, url);
    answer_init(&to);
    if ((is_bus(url) ? send_bus : send_other)(self, out, &to, &error) != IE_OK) {
        cli_say("%s: %s", shown, error.message);
        code = error.status == IE_ENOTFOUND ? CLI_USAGE : cli_exit_of(error.status);
    } else if (to.status == IE_OK) {
        sent_tell(self, out, &to);
    } else if (to.status == IE_EUNREACHABLE) {
        cli_say("cannot reach %s at %s: %s", is_bus(url) ? "bus" : "destination", shown, to.reason);
        if (is_bus(url))
            cli_hint("'ie bus' starts one; '--db DB' stores the event until there is one");
        code = CLI_UNREACHABLE;
    } else {
        cli_say("%s: not delivered: %s", shown,
                to.reason[0] != '\0' ? to.reason : ie_status_text(to.status));
        code = CLI_FAILED;
    }
    answer_fini(&to);
    return code;
}

cli_exit
cli_publish(cli *self)
{
    const bool to_db = cli_has(self, "db");
    outgoing  *out;
    cli_exit   code;

    if (to_db == cli_has(self, "to"))
        return cli_usage(self, "one of --db DB (store it) and --to URL (send it) is needed");
    if (to_db && (cli_has(self, "persistent") || cli_has(self, "require-subscriber") ||
                  cli_has(self, "timeout")))
        return cli_usage(self, "--persistent, --require-subscriber and --timeout go with --to");
    if (!to_db && cli_has(self, "dedupe-key"))
        return cli_usage(self, "--dedupe-key goes with --db");
    out = ie__calloc(1, sizeof *out);
    if (out == NULL) {
        cli_say("out of memory");
        return CLI_FAILED;
    }
    code = outgoing_fill(self, out);
    if (code == CLI_OK)
        code = to_db ? publish_stored(self, out) : publish_sent(self, out);
    outgoing_free(out);
    ie__free(out);
    return code;
}
