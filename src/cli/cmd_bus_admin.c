/* ie bus status, topics, groups ...: a running bus, seen and told over its admin channel. */
#include "cli.h"

#include <ie/bus.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "units.h"

#define ASK_MS 10000
#define PAGE   500

#define FLAG_TO                                                                                    \
    {                                                                                              \
        .name = "to", .value = "URL", .help = "the bus (socket://127.0.0.1:9100)"                  \
    }
#define FLAG_PATTERN                                                                               \
    {                                                                                              \
        .name = "pattern", .value = "PATTERN",                                                     \
        .help = "the group's pattern, where several groups have the name"                          \
    }
#define FLAG_JSON                                                                                  \
    {                                                                                              \
        .name = "json", .help = "one JSON object"                                                  \
    }

const cli_flag cli_bus_status_flags[] = {FLAG_TO, FLAG_JSON, {.name = NULL}};
const cli_flag cli_bus_list_flags[] = {
    FLAG_TO, {.name = "json", .help = "one JSON object per line"}, {.name = NULL}};
const cli_flag cli_bus_group_flags[] = {FLAG_TO, FLAG_PATTERN, FLAG_JSON, {.name = NULL}};
const cli_flag cli_bus_replay_flags[] = {
    FLAG_TO,
    FLAG_PATTERN,
    {.name = "from-start", .help = "go back to the oldest event that the bus keeps"},
    {.name = "from-end", .help = "skip everything that is there"},
    {.name = "position", .value = "N", .help = "go on with this position of the bus's log"},
    {.name = "since", .value = "WHEN", .help = "RFC 3339, or 2h for two hours ago"},
    FLAG_JSON,
    {.name = NULL}};
const cli_flag cli_bus_dead_flags[] = {
    FLAG_TO,
    FLAG_PATTERN,
    {.name = "retry", .help = "deliver them again: all of the group, or one with --position"},
    {.name = "discard", .help = "forget them: all of the group, or one with --position"},
    {.name = "all", .help = "with --retry or --discard: yes, every one of the group"},
    {.name = "position", .value = "N", .help = "with --retry or --discard: only this one"},
    {.name = "json", .help = "one JSON object per line"},
    {.name = NULL}};

/* ---- asking ---- */

/* The answer, to be released; NULL: said why. The arguments are taken over. */
static json_t *
ask(ie_bus_client *client, const char *topic, json_t *arguments, cli_exit *code)
{
    char        *text = json_dumps(arguments, JSON_COMPACT);
    ie_buffer    answer = {NULL, 0, 0};
    ie_error     error = IE_ERROR_INIT;
    json_error_t fault;
    json_t      *read = NULL;

    json_decref(arguments);
    *code = CLI_FAILED;
    if (text == NULL) {
        cli_say("out of memory");
        return NULL;
    }
    if (ie_bus_client_query_wait(client, topic, text, strlen(text), ASK_MS, &answer, &error) !=
        IE_OK) {
        *code = cli_fail(&error);
    } else if ((read = json_loadb(answer.data, answer.size, 0, &fault)) == NULL) {
        cli_say("%s: an answer that is not JSON: %s", topic, fault.text);
    } else {
        *code = CLI_OK;
    }
    ie_buffer_fini(&answer);
    free(text);
    return read;
}

static void
print_json(const json_t *value)
{
    (void)json_dumpf(value, stdout, JSON_COMPACT);
    (void)fputc('\n', stdout);
}

/* A member as a cell. */
#define CELL_SIZE 300
static void
cell(char out[CELL_SIZE], const json_t *row, const char *name)
{
    const json_t *value = json_object_get(row, name);

    if (json_is_string(value) && json_string_length(value) != 0)
        (void)snprintf(out, CELL_SIZE, "%s", json_string_value(value));
    else if (json_is_integer(value) && strstr(name, "_ms") != NULL)
        cli_span(out, (int64_t)json_integer_value(value));
    else if (json_is_integer(value))
        (void)snprintf(out, CELL_SIZE, "%lld", (long long)json_integer_value(value));
    else if (json_is_boolean(value))
        (void)snprintf(out, CELL_SIZE, "%s", json_is_true(value) ? "yes" : "no");
    else
        (void)snprintf(out, CELL_SIZE, "-");
}

static void
print_row(cli_table *table, const json_t *row, const char *const *members)
{
    char        cells[16][CELL_SIZE];
    const char *pointers[16];

    for (size_t i = 0; i < table->columns; i++) {
        cell(cells[i], row, members[i]);
        pointers[i] = cells[i];
    }
    cli_table_row(table, pointers);
}

/* ---- lists ---- */

typedef struct list {
    const char        *topic;
    const char        *rows; /* the member that holds them */
    const char *const *members;
    const char *const *header;
    size_t             columns;
} list;

static cli_exit
print_list(const cli *self, ie_bus_client *client, const list *of, cli_table *table)
{
    cli_exit code = CLI_OK;

    for (json_int_t skip = 0, total = 1; skip < total && code == CLI_OK; skip += PAGE) {
        json_t *page =
            ask(client, of->topic, json_pack("{s:I, s:i}", "skip", skip, "limit", PAGE), &code);
        json_t *row;
        size_t  index;

        total = json_integer_value(json_object_get(page, "total"));
        json_array_foreach(json_object_get(page, of->rows), index, row)
        {
            if (cli_has(self, "json"))
                print_json(row);
            else
                print_row(table, row, of->members);
        }
        json_decref(page);
    }
    return code;
}

static cli_exit
run_list(const cli *self, const list *of)
{
    ie_bus_client *client = NULL;
    cli_table      table;
    cli_exit       code = cli_reach_bus(self, "to", NULL, &client);

    if (code != CLI_OK)
        return code;
    cli_table_begin(&table, of->header, of->columns);
    code = print_list(self, client, of, &table);
    cli_table_end(&table);
    ie_bus_client_close(client);
    return code;
}

cli_exit
cli_bus_topics(cli *self)
{
    static const char *const MEMBERS[] = {"pattern", "subscribers", "groups", "responders"};
    static const char *const HEADER[] = {"PATTERN", "SUBSCRIBERS", "GROUPS", "RESPONDERS"};
    const list               of = {"$bus.topics", "topics", MEMBERS, HEADER, 4};

    return run_list(self, &of);
}

cli_exit
cli_bus_groups(cli *self)
{
    static const char *const MEMBERS[] = {"group",    "pattern",   "selection", "members",
                                          "queued",   "in_flight", "position",  "lag",
                                          "retrying", "dead",      "paused"};
    static const char *const HEADER[] = {"GROUP",    "PATTERN",   "SELECTION", "MEMBERS",
                                         "QUEUED",   "IN FLIGHT", "POSITION",  "LAG",
                                         "RETRYING", "DEAD",      "PAUSED"};
    const list               of = {"$bus.groups", "groups", MEMBERS, HEADER, 11};

    return run_list(self, &of);
}

cli_exit
cli_bus_connections(cli *self)
{
    static const char *const MEMBERS[] = {"id",    "name",    "user",          "peer",
                                          "since", "idle_ms", "subscriptions", "out_bytes"};
    static const char *const HEADER[] = {"ID",    "NAME", "USER",          "PEER",
                                         "SINCE", "IDLE", "SUBSCRIPTIONS", "UNREAD BYTES"};
    const list               of = {"$bus.connections", "connections", MEMBERS, HEADER, 8};

    return run_list(self, &of);
}

/* ---- status ---- */

static void
print_pair(cli_table *table, const char *name, const json_t *of, const char *member)
{
    char        value[CELL_SIZE];
    const char *cells[2] = {name, value};

    cell(value, of, member);
    cli_table_row(table, cells);
}

static void
print_status(const json_t *status)
{
    static const char *const PLAIN[] = {"name", "version", "started", "uptime_ms", "draining"};
    static const char *const HEADER[] = {"WHAT", "VALUE"};
    const json_t            *stats = json_object_get(status, "stats");
    cli_table                table;
    const char              *name;
    json_t                  *each;
    size_t                   index;

    cli_table_begin(&table, HEADER, 2);
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++)
        print_pair(&table, strcmp(PLAIN[i], "uptime_ms") == 0 ? "uptime" : PLAIN[i], status,
                   PLAIN[i]);
    json_array_foreach(json_object_get(status, "addresses"), index, each)
    {
        const char *cells[2] = {"address", json_string_value(each)};

        if (cells[1] != NULL)
            cli_table_row(&table, cells);
    }
    json_object_foreach((json_t *)stats, name, each) print_pair(&table, name, stats, name);
    cli_table_end(&table);
}

/* ---- one request, one answer ---- */

typedef void (*print_fn)(const json_t *answer);

static cli_exit
run_one(const cli *self, const char *topic, json_t *arguments, print_fn print)
{
    ie_bus_client *client = NULL;
    cli_exit       code = cli_reach_bus(self, "to", NULL, &client);
    json_t        *answer;

    if (code != CLI_OK) {
        json_decref(arguments);
        return code;
    }
    answer = ask(client, topic, arguments, &code);
    if (answer != NULL && cli_has(self, "json"))
        print_json(answer);
    else if (answer != NULL)
        print(answer);
    json_decref(answer);
    ie_bus_client_close(client);
    return code;
}

cli_exit
cli_bus_status(cli *self)
{
    return run_one(self, "$bus.status", json_object(), print_status);
}

static json_t *
group_arguments(const cli *self)
{
    json_t *arguments = json_pack("{s:s}", "group", self->operands[0]);

    if (cli_text(self, "pattern") != NULL)
        (void)json_object_set_new(arguments, "pattern", json_string(cli_text(self, "pattern")));
    return arguments;
}

static void
print_paused(const json_t *group)
{
    cli_say("group %s of %s is %s", json_string_value(json_object_get(group, "group")),
            json_string_value(json_object_get(group, "pattern")),
            json_is_true(json_object_get(group, "paused")) ? "paused" : "running");
}

cli_exit
cli_bus_pause(cli *self)
{
    return run_one(self, "$bus.pause", group_arguments(self), print_paused);
}

cli_exit
cli_bus_resume(cli *self)
{
    return run_one(self, "$bus.resume", group_arguments(self), print_paused);
}

static void
print_moved(const json_t *group)
{
    cli_say("group %s of %s goes on behind position %lld",
            json_string_value(json_object_get(group, "group")),
            json_string_value(json_object_get(group, "pattern")),
            (long long)json_integer_value(json_object_get(group, "position")));
}

cli_exit
cli_bus_replay(cli *self)
{
    const char *since = cli_text(self, "since");
    json_t     *arguments;
    int64_t     position = 0;
    int64_t     at_ms = 0;

    if (cli_has(self, "from-start") + cli_has(self, "from-end") + cli_has(self, "position") +
            (since != NULL) !=
        1)
        return cli_usage(self, "one of --from-start, --from-end, --position and --since is needed");
    if (!cli_number(self, "position", 0, 1, INT64_MAX, &position))
        return CLI_USAGE;
    if (since != NULL && ie__duration_parse(since, &at_ms))
        at_ms = cli_now_ms() - at_ms;
    else if (since != NULL && ie__time_parse(&at_ms, since, strlen(since)) != IE_OK)
        return cli_usage(
            self, "--since: '%.40s' is neither a time such as 2026-12-31T23:59:00Z nor 10m, 2h, 1d",
            since);
    arguments = group_arguments(self);
    if (position != 0)
        (void)json_object_set_new(arguments, "position", json_integer(position));
    else if (since != NULL)
        (void)json_object_set_new(arguments, "time", json_integer(at_ms));
    else
        (void)json_object_set_new(arguments, "from",
                                  json_string(cli_has(self, "from-end") ? "end" : "first"));
    return run_one(self, "$bus.replay", arguments, print_moved);
}

static void
print_deleted(const json_t *group)
{
    cli_say("group %s of %s was deleted", json_string_value(json_object_get(group, "group")),
            json_string_value(json_object_get(group, "pattern")));
}

cli_exit
cli_bus_delete(cli *self)
{
    return run_one(self, "$bus.delete", group_arguments(self), print_deleted);
}

/* ---- dead letters ---- */

static cli_exit
list_dead(const cli *self)
{
    static const char *const MEMBERS[] = {"position", "topic", "id", "attempts", "since", "reason"};
    static const char *const HEADER[] = {"POSITION", "TOPIC", "ID", "ATTEMPTS", "SINCE", "REASON"};
    ie_bus_client           *client = NULL;
    json_int_t               after = 0;
    cli_table                table;
    size_t                   count = PAGE;
    cli_exit                 code = cli_reach_bus(self, "to", NULL, &client);

    if (code != CLI_OK)
        return code;
    cli_table_begin(&table, HEADER, 6);
    while (count == PAGE && code == CLI_OK) {
        json_t *arguments = group_arguments(self);
        json_t *page;
        json_t *row;
        size_t  index;

        (void)json_object_set_new(arguments, "after", json_integer(after));
        (void)json_object_set_new(arguments, "limit", json_integer(PAGE));
        page = ask(client, "$bus.dead", arguments, &code);
        count = json_array_size(json_object_get(page, "dead"));
        json_array_foreach(json_object_get(page, "dead"), index, row)
        {
            after = json_integer_value(json_object_get(row, "position"));
            if (cli_has(self, "json"))
                print_json(row);
            else
                print_row(&table, row, MEMBERS);
        }
        json_decref(page);
    }
    cli_table_end(&table);
    ie_bus_client_close(client);
    return code;
}

static void
print_count(const json_t *answer)
{
    cli_say("%lld events", (long long)json_integer_value(json_object_get(answer, "count")));
}

cli_exit
cli_bus_dead(cli *self)
{
    const bool is_retry = cli_has(self, "retry");
    const bool is_discard = cli_has(self, "discard");
    json_t    *arguments;
    int64_t    position = 0;

    if (!cli_number(self, "position", 0, 1, INT64_MAX, &position))
        return CLI_USAGE;
    if (is_retry && is_discard)
        return cli_usage(self, "--retry and --discard exclude each other");
    if (!is_retry && !is_discard && (position != 0 || cli_has(self, "all")))
        return cli_usage(self, "--position and --all go with --retry or --discard");
    if (!is_retry && !is_discard)
        return list_dead(self);
    if ((position != 0) == cli_has(self, "all"))
        return cli_usage(self, "--%s wants --position N or --all", is_retry ? "retry" : "discard");
    arguments = group_arguments(self);
    (void)json_object_set_new(arguments, "position", json_integer(position));
    return run_one(self, is_retry ? "$bus.dead.retry" : "$bus.dead.discard", arguments,
                   print_count);
}

static void
print_kicked(const json_t *connection)
{
    cli_say("connection %lld (%s, %s) was ended",
            (long long)json_integer_value(json_object_get(connection, "id")),
            json_string_value(json_object_get(connection, "name")),
            json_string_value(json_object_get(connection, "peer")));
}

cli_exit
cli_bus_kick(cli *self)
{
    char     *end = NULL;
    long long id = strtoll(self->operands[0], &end, 10);

    if (id < 1 || *end != '\0')
        return cli_usage(self, "'%.40s' is not the number of a connection", self->operands[0]);
    return run_one(self, "$bus.kick", json_pack("{s:I}", "id", (json_int_t)id), print_kicked);
}
