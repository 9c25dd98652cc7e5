/*
 * Administration: what an operator asks a running bus, and tells it. A request is a query to a
 * topic of the table at the end; its data is a JSON object of arguments, or nothing. Lists come in
 * pages (skip, limit), so that no answer is larger than the bus's own limit on data.
 */
#include "admin.h"

#include <jansson.h>
#include <stdio.h>

#include "auth.h"
#include "eb1.h"
#include "settings.h"

#define ARGUMENTS_BYTES_MAX 65536
#define PAGE_DEFAULT        100
#define PAGE_MAX            500

/* ---- arguments ------------------------------------------------------------------------------ */

static ie_status
arguments_check(const json_t *arguments, const char *const *known, ie_error *err)
{
    const char *name;
    json_t     *value;

    json_object_foreach((json_t *)arguments, name, value)
    {
        size_t i = 0;

        while (known[i] != NULL && strcmp(known[i], name) != 0)
            i++;
        if (known[i] == NULL)
            return ie_error_set(err, IE_EINVAL, "unknown argument \"%.60s\"", name);
    }
    return IE_OK;
}

/* Absent: the fallback. */
static ie_status
argument_number(int64_t *out, const json_t *arguments, const char *name, int64_t fallback,
                int64_t min, int64_t max, ie_error *err)
{
    const json_t *value = json_object_get(arguments, name);

    *out = fallback;
    if (value == NULL)
        return IE_OK;
    if (!json_is_integer(value) || json_integer_value(value) < min ||
        json_integer_value(value) > max)
        return ie_error_set(err, IE_EINVAL, "%s: a whole number from %lld to %lld", name,
                            (long long)min, (long long)max);
    *out = json_integer_value(value);
    return IE_OK;
}

/* Absent: NULL. */
static ie_status
argument_text(const char **out, const json_t *arguments, const char *name, ie_error *err)
{
    const json_t *value = json_object_get(arguments, name);

    *out = json_string_value(value);
    if (value != NULL && *out == NULL)
        return ie_error_set(err, IE_EINVAL, "%s: a string", name);
    return IE_OK;
}

/* ---- pages ---------------------------------------------------------------------------------- */

typedef struct page {
    json_t *rows;
    int64_t skip;
    int64_t limit;
    int64_t total;
} page;

static ie_status
page_begin(page *out, const json_t *arguments, ie_error *err)
{
    ie_status status = argument_number(&out->skip, arguments, "skip", 0, 0, INT64_MAX, err);

    if (status == IE_OK)
        status = argument_number(&out->limit, arguments, "limit", PAGE_DEFAULT, 1, PAGE_MAX, err);
    out->total = 0;
    out->rows = status == IE_OK ? json_array() : NULL;
    return status;
}

/* Is the next row wanted? */
static bool
page_wants(page *p)
{
    const int64_t index = p->total++;

    return index >= p->skip && index - p->skip < p->limit;
}

static json_t *
page_end(page *p, const char *name)
{
    return json_pack("{s:I, s:I, s:o}", "total", (json_int_t)p->total, "skip", (json_int_t)p->skip,
                     name, p->rows);
}

/* ---- status --------------------------------------------------------------------------------- */

static const char *const STATS[] = {
    "connections",    "subscriptions",  "groups",
    "out_bytes",      "held_events",    "memory_bytes",
    "accepted",       "refused",        "published",
    "acknowledged",   "unheard",        "nacked",
    "no_subscribers", "delivered",      "redelivered",
    "slow_closed",    "timed_out",      "protocol_errors",
    "frames_ignored", "bytes_in",       "bytes_out",
    "stored",         "duplicates",     "store_failures",
    "log_bytes",      "log_first",      "log_last",
    "dead",           "lost",           "queries",
    "queries_now",    "queries_failed", "eb1_connections",
    "eb1_in",         "eb1_out",        "eb1_dropped",
    "denied",         "logins_failed",  "tls_failed",
    "reloads",        "turns",
};
_Static_assert(sizeof STATS / sizeof *STATS * sizeof(uint64_t) ==
                   sizeof(ie_bus_server_stats) - offsetof(ie_bus_server_stats, connections),
               "every counter has its name, in the order of the struct");

static json_t *
stats_json(const ie_bus_server_stats *stats)
{
    const uint64_t *values = &stats->connections;
    json_t         *object = json_object();

    for (size_t i = 0; i < sizeof STATS / sizeof *STATS; i++)
        (void)json_object_set_new(object, STATS[i], json_integer((json_int_t)values[i]));
    return object;
}

static json_t *
limits_json(const ie_bus_server_options *options)
{
    json_t *object = json_object();

    for (size_t i = 0; i < ie__setting_count; i++)
        if (ie__setting_is_number(&ie__settings[i]))
            (void)json_object_set_new(
                object, ie__settings[i].field,
                json_integer((json_int_t)ie__setting_get(&ie__settings[i], options)));
    return object;
}

static ie_status
on_status(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    static const char *const NO_ARGUMENTS[] = {NULL};
    json_t                  *addresses;
    char                     since[IE_TIME_TEXT_SIZE];

    if (arguments_check(arguments, NO_ARGUMENTS, err) != IE_OK)
        return IE_EINVAL;
    addresses = json_array();
    for (size_t i = 0; i < server->listener_count; i++)
        (void)json_array_append_new(addresses, json_string(server->listeners[i].url));
    ie__time_format(since, server->started_ms);
    *out = json_pack("{s:s, s:s, s:s, s:I, s:b, s:b, s:o, s:o, s:o}", "name", server->name,
                     "version", ie_version(), "started", since, "uptime_ms",
                     (json_int_t)(ie__wall_ms(&ie__system_clock) - server->started_ms), "stores",
                     server->stats.log_bytes != 0, "draining", server->is_draining, "addresses",
                     addresses, "stats", stats_json(&server->stats), "limits",
                     limits_json(&server->options));
    return IE_OK;
}

/* ---- topics --------------------------------------------------------------------------------- */

typedef struct topics_page {
    page          *page;
    ie_bus_server *server;
} topics_page;

static size_t
responders_of(const ie__topic_entry *entry)
{
    size_t count = 0;

    for (; entry != NULL; entry = entry->next)
        count += ie__query_panel_members(entry);
    return count;
}

static void
add_pattern(void *user, const char *pattern, const ie__topic_entry *entries)
{
    topics_page *to = user;
    size_t       live = 0;
    size_t       groups = 0;

    if (!page_wants(to->page))
        return;
    for (const ie__topic_entry *entry = entries; entry != NULL; entry = entry->next) {
        const ie__target *target = (const ie__target *)(const void *)entry;
        const bool        is_group = target->is_group || target->is_eb1;

        live += !is_group;
        groups += is_group;
    }
    (void)json_array_append_new(
        to->page->rows,
        json_pack("{s:s, s:I, s:I, s:I}", "pattern", pattern, "subscribers", (json_int_t)live,
                  "groups", (json_int_t)groups, "responders",
                  (json_int_t)responders_of(ie__topics_find(to->server->queries.topics, pattern))));
}

/* Patterns that are only served. */
static void
add_served(void *user, const char *pattern, const ie__topic_entry *entries)
{
    topics_page *to = user;

    if (ie__topics_find(to->server->topics, pattern) != NULL || !page_wants(to->page))
        return;
    (void)json_array_append_new(
        to->page->rows, json_pack("{s:s, s:i, s:i, s:I}", "pattern", pattern, "subscribers", 0,
                                  "groups", 0, "responders", (json_int_t)responders_of(entries)));
}

static ie_status
on_topics(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    static const char *const KNOWN[] = {"skip", "limit", NULL};
    page                     p;
    topics_page              to = {&p, server};

    if (arguments_check(arguments, KNOWN, err) != IE_OK || page_begin(&p, arguments, err) != IE_OK)
        return IE_EINVAL;
    ie__topics_each(server->topics, add_pattern, &to);
    ie__topics_each(server->queries.topics, add_served, &to);
    *out = page_end(&p, "topics");
    return IE_OK;
}

/* ---- groups --------------------------------------------------------------------------------- */

static const char *const SELECTIONS[] = {"round-robin", "random", "hash", "sticky", "broadcast"};

static json_t *
group_json(const ie__group *group)
{
    uint64_t in_flight = 0;

    for (size_t i = 0; i < group->member_count; i++)
        in_flight += group->members[i]->outstanding;
    return json_pack("{s:s, s:s, s:s, s:b, s:b, s:I, s:I, s:I, s:I}", "group", group->name,
                     "pattern", group->pattern, "selection", SELECTIONS[group->selection],
                     "durable", group->is_durable, "paused", group->is_paused, "members",
                     (json_int_t)group->member_count, "queued", (json_int_t)group->queue_count,
                     "queued_bytes", (json_int_t)group->queue_bytes, "in_flight",
                     (json_int_t)in_flight);
}

static ie_status
on_groups(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    static const char *const KNOWN[] = {"skip", "limit", NULL};
    page                     p;

    if (arguments_check(arguments, KNOWN, err) != IE_OK || page_begin(&p, arguments, err) != IE_OK)
        return IE_EINVAL;
    for (size_t i = 0; i < server->group_buckets; i++)
        for (const ie__group *group = server->groups[i]; group != NULL; group = group->chain)
            if (page_wants(&p))
                (void)json_array_append_new(p.rows, group_json(group));
    *out = page_end(&p, "groups");
    return IE_OK;
}

/* The group that the arguments name; its pattern may be left out when no other has the name. */
static ie_status
find_group(ie__group **out, ie_bus_server *server, const json_t *arguments, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", NULL};
    const char              *name;
    const char              *pattern;
    size_t                   found = 0;

    if (arguments_check(arguments, KNOWN, err) != IE_OK ||
        argument_text(&name, arguments, "group", err) != IE_OK ||
        argument_text(&pattern, arguments, "pattern", err) != IE_OK)
        return IE_EINVAL;
    if (name == NULL)
        return ie_error_set(err, IE_EINVAL, "group is missing");
    for (size_t i = 0; i < server->group_buckets; i++)
        for (ie__group *group = server->groups[i]; group != NULL; group = group->chain)
            if (strcmp(group->name, name) == 0 &&
                (pattern == NULL || strcmp(group->pattern, pattern) == 0)) {
                *out = group;
                found++;
            }
    if (found == 0)
        return ie_error_set(err, IE_ENOTFOUND, "no group '%.100s'%s%.100s", name,
                            pattern != NULL ? " of " : "", pattern != NULL ? pattern : "");
    if (found > 1)
        return ie_error_set(err, IE_EINVAL, "%zu groups are called '%.100s': name the pattern, too",
                            found, name);
    return IE_OK;
}

static ie_status
set_paused(ie_bus_server *server, const json_t *arguments, bool is_paused, json_t **out,
           ie_error *err)
{
    ie__group      *group;
    const ie_status status = find_group(&group, server, arguments, err);

    if (status != IE_OK)
        return status;
    ie__group_pause(group, is_paused);
    *out = group_json(group);
    return IE_OK;
}

static ie_status
on_pause(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    return set_paused(server, arguments, true, out, err);
}

static ie_status
on_resume(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    return set_paused(server, arguments, false, out, err);
}

/* ---- connections ---------------------------------------------------------------------------- */

static json_t *
conn_json(const ie__conn *conn)
{
    static const char *const STATES[] = {"greeting", "hello", "open", "ended"};
    const int64_t            now_ms = (int64_t)uv_now(&conn->server->loop);
    char                     since[IE_TIME_TEXT_SIZE];

    ie__time_format(since, ie__wall_ms(&ie__system_clock) - (now_ms - conn->accepted_ms));
    return json_pack("{s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "id",
                     (json_int_t)conn->id, "name", conn->name != NULL ? conn->name : "", "user",
                     ie__auth_name(conn), "peer", conn->peer, "protocol",
                     conn->eb1 != NULL ? "eb/1" : "eb/2", "state", STATES[conn->state], "since",
                     since, "idle_ms", (json_int_t)(now_ms - conn->heard_ms), "subscriptions",
                     (json_int_t)conn->sub_count, "unacknowledged",
                     (json_int_t)conn->delivery_count, "queries", (json_int_t)conn->queries.count,
                     "out_bytes", (json_int_t)ie__stream_pending(conn->stream), "bytes_in",
                     (json_int_t)conn->bytes_in);
}

static ie_status
on_connections(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    static const char *const KNOWN[] = {"skip", "limit", NULL};
    page                     p;

    if (arguments_check(arguments, KNOWN, err) != IE_OK || page_begin(&p, arguments, err) != IE_OK)
        return IE_EINVAL;
    for (const ie__conn *conn = server->conns; conn != NULL; conn = conn->next)
        if (page_wants(&p))
            (void)json_array_append_new(p.rows, conn_json(conn));
    *out = page_end(&p, "connections");
    return IE_OK;
}

static ie_status
on_kick(ie_bus_server *server, const json_t *arguments, json_t **out, ie_error *err)
{
    static const char *const KNOWN[] = {"id", NULL};
    ie__conn                *conn = server->conns;
    int64_t                  id;

    if (arguments_check(arguments, KNOWN, err) != IE_OK ||
        argument_number(&id, arguments, "id", 0, 1, INT64_MAX, err) != IE_OK)
        return IE_EINVAL;
    if (id == 0)
        return ie_error_set(err, IE_EINVAL, "id is missing");
    while (conn != NULL && (conn->id != (uint64_t)id || conn->is_doomed))
        conn = conn->next;
    if (conn == NULL)
        return ie_error_set(err, IE_ENOTFOUND, "no connection %lld", (long long)id);
    *out = conn_json(conn);
    ie__conn_doom(conn, IE_BUS_CODE_DENIED, "an administrator ended the connection");
    return IE_OK;
}

/* ---- dispatch ------------------------------------------------------------------------------- */

/* *out: the answer, which may be NULL for want of memory. IE_EINVAL, IE_ENOTFOUND with a message.
 */
typedef ie_status (*request_fn)(ie_bus_server *server, const json_t *arguments, json_t **out,
                                ie_error *err);

static const struct {
    const char *topic;
    request_fn  run;
} REQUESTS[] = {
    {"$bus.status", on_status},           {"$bus.topics", on_topics}, {"$bus.groups", on_groups},
    {"$bus.connections", on_connections}, {"$bus.kick", on_kick},     {"$bus.pause", on_pause},
    {"$bus.resume", on_resume},
};

static request_fn
request_find(const ie__span *topic)
{
    for (size_t i = 0; i < sizeof REQUESTS / sizeof *REQUESTS; i++)
        if (strlen(REQUESTS[i].topic) == topic->size &&
            memcmp(REQUESTS[i].topic, topic->bytes, topic->size) == 0)
            return REQUESTS[i].run;
    return NULL;
}

/* The arguments; an empty object for no data. NULL: faulty. */
static json_t *
arguments_read(const ie__span *data, ie_error *err)
{
    json_error_t fault;
    json_t      *read;

    if (data->size == 0)
        return json_object();
    if (data->size > ARGUMENTS_BYTES_MAX) {
        (void)ie_error_set(err, IE_EINVAL, "more than %d bytes of arguments", ARGUMENTS_BYTES_MAX);
        return NULL;
    }
    read = json_loadb((const char *)data->bytes, data->size, JSON_REJECT_DUPLICATES, &fault);
    if (read == NULL)
        (void)ie_error_set(err, IE_EINVAL, "arguments: %s", fault.text);
    if (read == NULL || json_is_object(read))
        return read;
    json_decref(read);
    (void)ie_error_set(err, IE_EINVAL, "arguments: not a JSON object");
    return NULL;
}

static void
request_answer(ie__query *query, json_t *answer)
{
    char *text = answer != NULL ? json_dumps(answer, JSON_COMPACT) : NULL;

    json_decref(answer);
    if (text == NULL)
        ie__query_fail(query, IE_BUS_CODE_MEMORY, "no memory for the answer");
    else
        ie__query_answer(query, text, strlen(text));
    free(text);
}

void
ie__admin_ask(ie_bus_server *server, ie__query *query)
{
    const request_fn run = request_find(&server->record.topic);
    ie_error         err = IE_ERROR_INIT;
    json_t          *answer = NULL;
    json_t          *arguments;
    ie_status        status;

    if (run == NULL) {
        ie__query_fail(query, IE_BUS_CODE_NO_SUBSCRIBERS, "the bus answers no such question");
        return;
    }
    arguments = arguments_read(&server->record.data, &err);
    if (arguments == NULL) {
        ie__query_fail(query, IE_BUS_CODE_INVALID, err.message);
        return;
    }
    status = run(server, arguments, &answer, &err);
    json_decref(arguments);
    if (status == IE_OK)
        request_answer(query, answer);
    else
        ie__query_fail(query,
                       status == IE_ENOTFOUND ? IE_BUS_CODE_NO_SUBSCRIBERS : IE_BUS_CODE_INVALID,
                       err.message);
}
