/* ie outbox: looking at a database's events and acting on them. */
#include "cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

const cli_flag cli_status_flags[] = {
    {.name = "json", .help = "one JSON object"},
    {.name = NULL},
};

#define FILTER_FLAGS                                                                               \
    {.name = "state",                                                                              \
     .value = "STATES",                                                                            \
     .help = "pending, in-progress, published, scheduled, retrying, blocked, dead, expired, "      \
             "discarded"},                                                                         \
        {.name = "topic",                                                                          \
         .value = "PATTERNS",                                                                      \
         .help = "topics, divided by commas: orders.>,stock.*"},                                   \
        {.name = "key", .value = "KEY", .help = "events of this key"},                             \
    {                                                                                              \
        .name = "cursor", .value = "NAME", .help = "only this destination"                         \
    }

const cli_flag cli_ls_flags[] = {
    FILTER_FLAGS,
    {.name = "limit", .value = "N", .help = "at most so many (100)"},
    {.name = "before", .value = "POSITION", .help = "only older ones: the next page"},
    {.name = "json", .help = "one JSON array"},
    {.name = NULL},
};

const cli_flag cli_show_flags[] = {
    {.name = "cursor", .value = "NAME", .help = "only this destination"},
    {.name = "data", .help = "only the data, byte for byte"},
    {.name = "json", .help = "one JSON object"},
    {.name = NULL},
};

const cli_flag cli_retry_flags[] = {
    FILTER_FLAGS,
    {.name = "limit", .value = "N", .help = "at most so many"},
    {.name = "all", .help = "all that match (without an ID)"},
    {.name = "dry-run", .help = "show what would be done, and change nothing"},
    {.name = "json", .help = "one JSON object"},
    {.name = NULL},
};

const cli_flag cli_discard_flags[] = {
    FILTER_FLAGS,
    {.name = "reason", .value = "TEXT", .help = "kept with the events (discarded by hand)"},
    {.name = "limit", .value = "N", .help = "at most so many"},
    {.name = "all", .help = "all that match (without an ID)"},
    {.name = "dry-run", .help = "show what would be done, and change nothing"},
    {.name = "json", .help = "one JSON object"},
    {.name = NULL},
};

/* ---- filters ---- */

static cli_exit
take_states(const cli *self, uint32_t *states)
{
    char  words[256];
    char *save = NULL;

    if (cli_text(self, "state") == NULL)
        return CLI_OK;
    (void)snprintf(words, sizeof words, "%s", cli_text(self, "state"));
    for (char *at = strtok_r(words, ", ", &save); at != NULL; at = strtok_r(NULL, ", ", &save)) {
        ie_state state = IE_STATE_PENDING;
        ie_error error = IE_ERROR_INIT;

        if (ie_state_parse(&state, at, &error) != IE_OK)
            return cli_usage(self, "--state: %s", error.message);
        *states |= 1u << state;
    }
    return *states != 0 ? CLI_OK : cli_usage(self, "--state: no state is given");
}

static cli_exit
take_filter(const cli *self, ie_filter *filter)
{
    int64_t number = 0;

    *filter = (ie_filter){.size = sizeof *filter};
    filter->topics = cli_text(self, "topic");
    filter->key = cli_text(self, "key");
    filter->cursor = cli_text(self, "cursor");
    if (!cli_number(self, "limit", 0, 1, UINT32_MAX, &number))
        return CLI_USAGE;
    filter->limit = (uint32_t)number;
    if (!cli_number(self, "before", 0, 1, INT64_MAX, &number))
        return CLI_USAGE;
    filter->before_position = number;
    return take_states(self, &filter->states);
}

/* ---- status ---- */

typedef struct telling {
    const cli *self;
    cli_json   json;
    cli_table  table;
    bool       is_json;
    uint64_t   kept;
    int        count;
    char       notes[8][700]; /* what a person should know, after the table */
    int        note_count;
} telling;

static void note(telling *to, const char *fmt, ...) IE_PRINTF(2, 3);
static void
note(telling *to, const char *fmt, ...)
{
    va_list args;

    if (to->note_count == 8)
        return;
    va_start(args, fmt);
    (void)vsnprintf(to->notes[to->note_count++], sizeof to->notes[0], fmt, args);
    va_end(args);
}

static void
tell_info(void *user, const ie_outbox_info *info)
{
    telling *to = user;

    to->kept = info->events_kept;
    if (to->is_json) {
        cli_json_open(&to->json, NULL, '{');
        cli_json_text(&to->json, "database", to->self->operands[0]);
        cli_json_number(&to->json, "schemaVersion", info->schema_version);
        cli_json_number(&to->json, "eventsKept", (int64_t)info->events_kept);
        cli_json_number(&to->json, "oldestPosition", info->oldest_position);
        cli_json_number(&to->json, "newestPosition", info->newest_position);
        cli_json_text(&to->json, "source", info->source);
        cli_json_text(&to->json, "journalMode", info->journal_mode);
        cli_json_text(&to->json, "durability",
                      info->durability[0] != '\0' ? info->durability : NULL);
        cli_json_number(&to->json, "walBytes", info->wal_bytes);
        cli_json_text(&to->json, "sqlite", info->sqlite_version);
        cli_json_bool(&to->json, "walResetBug", info->sqlite_has_wal_reset_bug);
        cli_json_open(&to->json, "destinations", '[');
        return;
    }
    if (!cli_is_terminal())
        return; /* the table alone, for other programs */
    (void)printf("%s: %" PRIu64 " events kept", to->self->operands[0], info->events_kept);
    if (info->events_kept > 0)
        (void)printf(" (positions %" PRId64 " to %" PRId64 ")", info->oldest_position,
                     info->newest_position);
    (void)printf(", schema %d, journal %s%s%s, wal %" PRId64 " KiB\n\n", info->schema_version,
                 info->journal_mode, info->durability[0] != '\0' ? ", last written with " : "",
                 info->durability, info->wal_bytes / 1024);
    if (info->sqlite_has_wal_reset_bug)
        note(to,
             "SQLite %s has the WAL-reset bug (fixed in 3.51.3): leave checkpoints to one "
             "connection",
             info->sqlite_version);
}

static const char *
worker_word(const ie_cursor_status *cursor)
{
    if (!cursor->is_alive)
        return cursor->owner[0] == '\0' ? "stopped" : "gone";
    return cursor->breaker_reason[0] != '\0' ? "unreachable" : "running";
}

static void
cursor_json(cli_json *json, const ie_cursor_status *cursor)
{
    cli_json_open(json, NULL, '{');
    cli_json_text(json, "cursor", cursor->name);
    cli_json_text(json, "destination", cursor->destination);
    cli_json_text(json, "topics", cursor->topics[0] != '\0' ? cursor->topics : NULL);
    cli_json_text(json, "order", cursor->order);
    cli_json_text(json, "worker", worker_word(cursor));
    cli_json_text(json, "owner", cursor->owner[0] != '\0' ? cursor->owner : NULL);
    cli_json_bool(json, "alive", cursor->is_alive);
    cli_json_time(json, "seenAt", cursor->seen_at_ms);
    cli_json_number(json, "position", cursor->position);
    cli_json_number(json, "epoch", cursor->epoch);
    if (cursor->breaker_reason[0] != '\0') {
        cli_json_open(json, "breaker", '{');
        cli_json_text(json, "reason", cursor->breaker_reason);
        cli_json_time(json, "since", cursor->breaker_since_ms);
        cli_json_time(json, "nextTry", cursor->breaker_until_ms);
        cli_json_close(json, '}');
    }
    cli_json_time(json, "oldestPending", cursor->oldest_pending_ms);
    cli_json_open(json, "counts", '{');
    for (int i = 0; i < IE_STATE_COUNT; i++)
        cli_json_number(json, ie_state_name((ie_state)i), (int64_t)cursor->counts[i]);
    cli_json_close(json, '}');
    cli_json_close(json, '}');
}

static const char *const STATUS_HEADER[] = {"CURSOR",    "WORKER",    "PENDING", "RETRYING",
                                            "BLOCKED",   "SCHEDULED", "DEAD",    "EXPIRED",
                                            "DISCARDED", "PUBLISHED", "OLDEST",  "DESTINATION"};

static void
tell_cursor(void *user, const ie_cursor_status *cursor)
{
    static const ie_state SHOWN[] = {IE_STATE_RETRYING, IE_STATE_BLOCKED, IE_STATE_SCHEDULED,
                                     IE_STATE_DEAD,     IE_STATE_EXPIRED, IE_STATE_DISCARDED,
                                     IE_STATE_PUBLISHED};
    telling              *to = user;
    const int64_t         now_ms = cli_now_ms();
    char                  numbers[8][24];
    char                  oldest[CLI_SPAN_SIZE] = "-";
    char                  seen[CLI_SPAN_SIZE];
    const char           *cells[12];

    to->count++;
    if (to->is_json) {
        cursor_json(&to->json, cursor);
        return;
    }
    if (cursor->oldest_pending_ms != 0)
        cli_span(oldest, now_ms - cursor->oldest_pending_ms);
    (void)snprintf(numbers[0], sizeof numbers[0], "%" PRIu64,
                   cursor->counts[IE_STATE_PENDING] + cursor->counts[IE_STATE_IN_PROGRESS]);
    for (size_t i = 0; i < 7; i++)
        (void)snprintf(numbers[1 + i], sizeof numbers[0], "%" PRIu64, cursor->counts[SHOWN[i]]);
    cells[0] = cursor->name;
    cells[1] = worker_word(cursor);
    for (size_t i = 0; i < 8; i++)
        cells[2 + i] = numbers[i];
    cells[10] = oldest;
    cells[11] = cursor->destination;
    cli_table_row(&to->table, cells);
    cli_span(seen, now_ms - cursor->seen_at_ms);
    if (!cursor->is_alive)
        note(to,
             "%s: no worker is running (last sign of life %s%s); 'ie relay %s --to %s --cursor %s'"
             " starts one",
             cursor->name, cursor->seen_at_ms != 0 ? seen : "never",
             cursor->seen_at_ms != 0 ? " ago" : "", to->self->operands[0],
             cursor->destination[0] != '\0' ? cursor->destination : "URL", cursor->name);
    else if (cursor->breaker_reason[0] != '\0')
        note(to, "%s: %s", cursor->name, cursor->breaker_reason);
    if (cursor->counts[IE_STATE_DEAD] > 0)
        note(to, "%s: 'ie outbox ls %s --state dead' shows what ended dead, and why", cursor->name,
             to->self->operands[0]);
}

cli_exit
cli_outbox_status(cli *self)
{
    telling  to = {.self = self, .is_json = cli_has(self, "json")};
    sqlite3 *db = NULL;
    ie_error error = IE_ERROR_INIT;
    cli_exit code = cli_db_open(&db, self->operands[0]);

    if (code != CLI_OK)
        return code;
    cli_table_begin(&to.table, STATUS_HEADER, 12);
    if (ie_inspect_status(db, tell_info, tell_cursor, &to, &error) != IE_OK)
        code = cli_fail(&error);
    else if (to.is_json) {
        cli_json_close(&to.json, ']');
        cli_json_close(&to.json, '}');
        cli_json_print(&to.json);
    }
    cli_table_end(&to.table);
    if (code == CLI_OK && to.count == 0 && !to.is_json)
        note(&to,
             "no destination yet, %" PRIu64 " events wait; 'ie relay %s --to URL' publishes them",
             to.kept, self->operands[0]);
    cli_flush();
    for (int i = 0; code == CLI_OK && i < to.note_count; i++)
        cli_say("%s", to.notes[i]);
    (void)sqlite3_close(db);
    return code;
}

/* ---- ls ---- */

static const char *const LS_HEADER[] = {"POSITION", "TIME",     "STATE", "CURSOR", "TOPIC",
                                        "KEY",      "ATTEMPTS", "ID",    "REASON"};

static void
event_json(cli_json *json, const ie_event_status *event)
{
    cli_json_open(json, NULL, '{');
    cli_json_number(json, "position", event->event->position);
    cli_json_text(json, "id", event->event->id);
    cli_json_text(json, "topic", event->event->topic);
    cli_json_text(json, "key", event->event->key);
    cli_json_time(json, "time", event->event->time_ms);
    cli_json_text(json, "cursor", event->cursor[0] != '\0' ? event->cursor : NULL);
    cli_json_text(json, "state", ie_state_name(event->state));
    cli_json_number(json, "attempts", event->attempts);
    cli_json_time(json, "dueAt", event->due_at_ms);
    cli_json_time(json, "since", event->since_ms);
    cli_json_text(json, "reason", event->reason[0] != '\0' ? event->reason : NULL);
    cli_json_close(json, '}');
}

static bool
tell_event(void *user, const ie_event_status *event)
{
    telling *to = user;
    char     position[24];
    char     time[CLI_TIME_SIZE];
    char     attempts[16];

    to->count++;
    if (to->is_json) {
        event_json(&to->json, event);
        return true;
    }
    (void)snprintf(position, sizeof position, "%" PRId64, event->event->position);
    (void)snprintf(attempts, sizeof attempts, "%" PRIu32, event->attempts);
    cli_time(time, event->event->time_ms);
    cli_table_row(&to->table,
                  (const char *const[]){position, time, ie_state_name(event->state),
                                        event->cursor[0] != '\0' ? event->cursor : "-",
                                        event->event->topic != NULL ? event->event->topic : "-",
                                        event->event->key != NULL ? event->event->key : "-",
                                        attempts, event->event->id != NULL ? event->event->id : "-",
                                        event->reason[0] != '\0' ? event->reason : "-"});
    return ferror(stdout) == 0; /* nobody reads any more */
}

static cli_exit
list(cli *self, sqlite3 *db, const ie_filter *filter, telling *to)
{
    ie_error error = IE_ERROR_INIT;
    cli_exit code = CLI_OK;

    cli_table_begin(&to->table, LS_HEADER, 9);
    if (to->is_json)
        cli_json_open(&to->json, NULL, '[');
    if (ie_inspect_list(db, filter, tell_event, to, &error) != IE_OK)
        code = cli_fail(&error);
    if (to->is_json) {
        cli_json_close(&to->json, ']');
        if (code == CLI_OK)
            cli_json_print(&to->json);
        else
            ie_buffer_fini(&to->json.buffer);
    }
    cli_table_end(&to->table);
    (void)self;
    return code;
}

cli_exit
cli_outbox_ls(cli *self)
{
    telling   to = {.self = self, .is_json = cli_has(self, "json")};
    sqlite3  *db = NULL;
    ie_filter filter;
    cli_exit  code = take_filter(self, &filter);

    if (code == CLI_OK)
        code = cli_db_open(&db, self->operands[0]);
    if (code != CLI_OK)
        return code;
    code = list(self, db, &filter, &to);
    cli_flush();
    if (code == CLI_OK && to.count == 0 && cli_is_terminal())
        cli_say("no event matches");
    else if (code == CLI_OK && cli_is_terminal() && !to.is_json &&
             to.count == (filter.limit != 0 ? (int)filter.limit : 100))
        cli_hint("there may be more: '--limit N' or '--before POSITION'");
    (void)sqlite3_close(db);
    return code;
}

/* ---- show ---- */

static void
show_line(const char *label, const char *text)
{
    if (text == NULL || text[0] == '\0')
        return;
    (void)printf("%-14s", label);
    cli_print_clean(text, strlen(text));
    (void)fputc('\n', stdout);
}

static void
show_time(const char *label, int64_t ms)
{
    char text[CLI_TIME_SIZE];

    cli_time(text, ms);
    if (ms != 0)
        show_line(label, text);
}

static void
show_event(const ie_event *event)
{
    (void)printf("%-14s%" PRId64 "\n", "position", event->position);
    show_line("id", event->id);
    show_line("topic", event->topic);
    show_line("key", event->key);
    show_line("type", event->type);
    show_line("source", event->source);
    show_line("subject", event->subject);
    show_line("dataschema", event->dataschema);
    show_time("time", event->time_ms);
    show_time("not before", event->not_before_ms);
    show_time("expires at", event->expires_at_ms);
    for (size_t i = 0; i < event->header_count; i++)
        show_line(event->headers[i].name, event->headers[i].value);
    show_line("content type",
              event->content_type != NULL ? event->content_type : "application/json");
    if (event->data_bytes == 0)
        return;
    (void)printf("%-14s", "data");
    if (ie__utf8_is_valid(event->data, event->data_bytes))
        cli_print_clean(event->data, event->data_bytes);
    else
        (void)printf("(%zu bytes; --data prints them)", event->data_bytes);
    (void)fputc('\n', stdout);
}

static bool
tell_shown(void *user, const ie_event_status *event)
{
    telling *to = user;

    if (cli_has(to->self, "data")) {
        (void)fwrite(event->event->data, 1, event->event->data_bytes, stdout);
        to->count++;
        return false;
    }
    if (to->is_json) {
        if (to->count++ == 0) {
            cli_json_open(&to->json, NULL, '{');
            cli_json_event(&to->json, "event", event->event);
            cli_json_open(&to->json, "destinations", '[');
        }
        event_json(&to->json, event);
        return true;
    }
    if (to->count++ == 0)
        show_event(event->event);
    (void)printf("\n%-14s%s\n", "destination",
                 event->cursor[0] != '\0' ? event->cursor : "none yet");
    show_line("state", ie_state_name(event->state));
    show_time("since", event->since_ms);
    if (event->attempts > 0)
        (void)printf("%-14s%" PRIu32 "\n", "attempts", event->attempts);
    show_time("due at", event->due_at_ms);
    show_line("reason", event->reason);
    return true;
}

static void
count_why(void *user, const ie_why *why)
{
    telling *to = user;

    if (why->code != IE_WHY_NOT_ROUTED)
        return;
    to->count++;
    cli_say("%s", why->sentence);
}

cli_exit
cli_outbox_show(cli *self)
{
    telling   to = {.self = self, .is_json = cli_has(self, "json")};
    sqlite3  *db = NULL;
    ie_filter filter = {
        .size = sizeof filter, .id = self->operands[1], .cursor = cli_text(self, "cursor")};
    ie_error error = IE_ERROR_INIT;
    cli_exit code = cli_db_open(&db, self->operands[0]);

    if (code != CLI_OK)
        return code;
    if (ie_inspect_list(db, &filter, tell_shown, &to, &error) != IE_OK)
        code = cli_fail(&error);
    else if (to.count == 0) {
        /* Known and taken by no destination, or not known. */
        (void)ie_why_event(db, filter.id, filter.cursor, NULL, count_why, &to, &error);
        if (to.count == 0)
            cli_say("no event has the id %s; 'ie why %s --db %s' says more", filter.id, filter.id,
                    self->operands[0]);
        code = CLI_NOT_FOUND;
    } else if (to.is_json && !cli_has(self, "data")) {
        cli_json_close(&to.json, ']');
        cli_json_close(&to.json, '}');
        cli_json_print(&to.json);
    }
    (void)sqlite3_close(db);
    return code;
}

/* ---- retry and discard ---- */

typedef struct act {
    const char *done; /* "sent again" */
    uint32_t    states;
    bool        is_retry;
} act;

#define BIT(state) (1u << (state))
static const act RETRY = {
    "sent again", BIT(IE_STATE_DEAD) | BIT(IE_STATE_DISCARDED) | BIT(IE_STATE_RETRYING), true};
static const act DISCARD = {"discarded",
                            BIT(IE_STATE_RETRYING) | BIT(IE_STATE_BLOCKED) |
                                BIT(IE_STATE_SCHEDULED) | BIT(IE_STATE_DEAD),
                            false};

/* What would be done, as a list; nothing is changed. */
static cli_exit
preview(cli *self, sqlite3 *db, const ie_filter *filter, const act *what, bool is_asked)
{
    telling   to = {.self = self, .is_json = cli_has(self, "json")};
    ie_filter own = *filter;
    cli_exit  code;

    own.states = (own.states != 0 ? own.states : what->states) & what->states;
    if (own.limit == 0)
        own.limit = UINT32_MAX;
    if (own.states == 0) {
        cli_say("events in that state cannot be %s", what->done);
        return CLI_FAILED;
    }
    code = list(self, db, &own, &to);
    cli_flush();
    if (code != CLI_OK)
        return code;
    if (to.count == 0) {
        cli_say("no event matches that could be %s", what->done);
        return CLI_NOT_FOUND;
    }
    cli_say("%d would be %s%s", to.count, what->done,
            is_asked ? "" : "; nothing was changed, '--all' does it");
    return is_asked ? CLI_OK : CLI_USAGE;
}

static cli_exit
act_run(cli *self, sqlite3 *db, const ie_filter *filter, const act *what)
{
    uint64_t        changed = 0;
    ie_error        error = IE_ERROR_INIT;
    const ie_status status =
        what->is_retry ? ie_inspect_retry(db, filter, &changed, &error)
                       : ie_inspect_discard(db, filter, cli_text(self, "reason"), &changed, &error);

    if (status != IE_OK) {
        if (changed > 0)
            cli_say("%" PRIu64 " were %s before this went wrong:", changed, what->done);
        return cli_fail(&error);
    }
    if (cli_has(self, "json")) {
        cli_json json = {{0}, false};

        cli_json_open(&json, NULL, '{');
        cli_json_number(&json, "changed", (int64_t)changed);
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else {
        (void)printf("%" PRIu64 " %s\n", changed, what->is_retry ? "due now" : "discarded");
    }
    return CLI_OK;
}

static cli_exit
act_on(cli *self, const act *what)
{
    sqlite3   *db = NULL;
    ie_filter  filter;
    cli_exit   code = take_filter(self, &filter);
    const bool has_filter = filter.states != 0 || filter.topics != NULL || filter.key != NULL ||
                            filter.cursor != NULL || filter.limit != 0;

    if (code != CLI_OK)
        return code;
    if (self->operand_count > 1)
        filter.id = self->operands[1];
    if (filter.id != NULL && cli_has(self, "all"))
        return cli_usage(self, "an ID and --all exclude each other");
    if (filter.id == NULL && !has_filter && !cli_has(self, "all"))
        return cli_usage(self,
                         "name an ID, or which events: --state, --topic, --key, --cursor, --all");
    code = cli_db_open(&db, self->operands[0]);
    if (code != CLI_OK)
        return code;
    if (cli_has(self, "dry-run") || (filter.id == NULL && !cli_has(self, "all")))
        code = preview(self, db, &filter, what, cli_has(self, "dry-run"));
    else
        code = act_run(self, db, &filter, what);
    (void)sqlite3_close(db);
    return code;
}

cli_exit
cli_outbox_retry(cli *self)
{
    return act_on(self, &RETRY);
}

cli_exit
cli_outbox_discard(cli *self)
{
    return act_on(self, &DISCARD);
}
