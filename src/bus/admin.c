/*
 * Administration: what an operator asks a running bus, and tells it. A request is a query to a
 * topic of the table at the end; its data is a JSON object of arguments, or nothing. Lists come in
 * pages (skip, limit), so that no answer is larger than the bus's own limit on data.
 */
#include "admin.h"

#include <stdio.h>

#include "auth.h"
#include "durable.h"
#include "eb1.h"
#include "settings.h"

#define ARGUMENTS_BYTES_MAX 65536
#define PAGE_DEFAULT        100
#define PAGE_MAX            500

/* ---- arguments ------------------------------------------------------------------------------ */

ie_status
ie__admin_known(const ie__request *r, const char *const *known, ie_error *err)
{
    const char *name;
    json_t     *value;

    json_object_foreach(r->arguments, name, value)
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
ie_status
ie__admin_number(int64_t *out, const json_t *arguments, const char *name, int64_t fallback,
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
ie_status
ie__admin_text(const char **out, const json_t *arguments, const char *name, ie_error *err)
{
    const json_t *value = json_object_get(arguments, name);

    *out = json_string_value(value);
    if (value != NULL && *out == NULL)
        return ie_error_set(err, IE_EINVAL, "%s: a string", name);
    return IE_OK;
}

ie_status
ie__admin_group(const ie__request *r, const char **name, const char **pattern, ie_error *err)
{
    ie_status status = ie__admin_text(name, r->arguments, "group", err);

    if (status == IE_OK)
        status = ie__admin_text(pattern, r->arguments, "pattern", err);
    if (status == IE_OK && *name == NULL)
        status = ie_error_set(err, IE_EINVAL, "group is missing");
    return status;
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
    ie_status status = ie__admin_number(&out->skip, arguments, "skip", 0, 0, INT64_MAX, err);

    if (status == IE_OK)
        status = ie__admin_number(&out->limit, arguments, "limit", PAGE_DEFAULT, 1, PAGE_MAX, err);
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
on_status(ie__request *r, ie_error *err)
{
    static const char *const NO_ARGUMENTS[] = {NULL};
    json_t                  *addresses;
    char                     since[IE_TIME_TEXT_SIZE];

    if (ie__admin_known(r, NO_ARGUMENTS, err) != IE_OK)
        return IE_EINVAL;
    addresses = json_array();
    for (size_t i = 0; i < r->server->listener_count; i++)
        (void)json_array_append_new(addresses, json_string(r->server->listeners[i].url));
    ie__time_format(since, r->server->started_ms);
    r->answer = json_pack("{s:s, s:s, s:s, s:I, s:b, s:b, s:o, s:o, s:o}", "name", r->server->name,
                          "version", ie_version(), "started", since, "uptime_ms",
                          (json_int_t)(ie__wall_ms(&ie__system_clock) - r->server->started_ms),
                          "stores", r->server->durable != NULL, "draining", r->server->is_draining,
                          "addresses", addresses, "stats", stats_json(&r->server->stats), "limits",
                          limits_json(&r->server->options));
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
on_topics(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"skip", "limit", NULL};
    page                     p;
    topics_page              to = {&p, r->server};

    if (ie__admin_known(r, KNOWN, err) != IE_OK || page_begin(&p, r->arguments, err) != IE_OK)
        return IE_EINVAL;
    ie__topics_each(r->server->topics, add_pattern, &to);
    ie__topics_each(r->server->queries.topics, add_served, &to);
    r->answer = page_end(&p, "topics");
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

typedef struct groups_page {
    page                *page;
    const ie_bus_server *server;
} groups_page;

static void
add_durable(void *user, const ie__durable_info *info)
{
    groups_page *to = user;
    ie__group   *group = ie__group_find(to->server, info->name, info->pattern);
    json_t      *row;

    if (group == NULL || !page_wants(to->page))
        return;
    row = group_json(group);
    (void)json_object_update_new(
        row, json_pack(
                 "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "position",
                 (json_int_t)info->position, "newest", (json_int_t)info->newest, "lag",
                 (json_int_t)(info->newest > info->position ? info->newest - info->position : 0),
                 "in_flight", (json_int_t)info->in_flight, "retrying", (json_int_t)info->waiting,
                 "dead", (json_int_t)info->dead, "lost", (json_int_t)info->lost, "ack_timeout_ms",
                 (json_int_t)info->ack_timeout_ms, "attempts_max", (json_int_t)info->attempts_max));
    (void)json_array_append_new(to->page->rows, row);
}

static ie_status
on_groups(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"skip", "limit", NULL};
    page                     p;
    groups_page              to = {&p, r->server};

    if (ie__admin_known(r, KNOWN, err) != IE_OK || page_begin(&p, r->arguments, err) != IE_OK)
        return IE_EINVAL;
    for (size_t i = 0; i < r->server->group_buckets; i++)
        for (const ie__group *group = r->server->groups[i]; group != NULL; group = group->chain)
            if (!group->is_durable && page_wants(&p))
                (void)json_array_append_new(p.rows, group_json(group));
    ie__durable_each(r->server, add_durable, &to);
    r->answer = page_end(&p, "groups");
    return IE_OK;
}

/* The group that the arguments name; its pattern may be left out when no other has the name. */
static ie_status
find_group(ie__group **out, const ie__request *r, ie_error *err)
{
    const char *name;
    const char *pattern;
    size_t      found = 0;

    if (ie__admin_group(r, &name, &pattern, err) != IE_OK)
        return IE_EINVAL;
    for (size_t i = 0; i < r->server->group_buckets; i++)
        for (ie__group *group = r->server->groups[i]; group != NULL; group = group->chain)
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
set_paused(ie__request *r, bool is_paused, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", NULL};
    ie__group               *group;
    ie_status                status = ie__admin_known(r, KNOWN, err);

    if (status == IE_OK)
        status = find_group(&group, r, err);
    if (status != IE_OK)
        return status;
    if (group->is_durable)
        return ie__admin_durable_pause(r, group, is_paused, err);
    ie__group_pause(group, is_paused);
    r->answer = group_json(group);
    return IE_OK;
}

static ie_status
on_pause(ie__request *r, ie_error *err)
{
    return set_paused(r, true, err);
}

static ie_status
on_resume(ie__request *r, ie_error *err)
{
    return set_paused(r, false, err);
}

/* What the log is to do about a durable group. */
static ie_status
with_durable(ie__request *r, const char *const *known, ie__admin_fn run, ie_error *err)
{
    ie__group *group;
    ie_status  status = ie__admin_known(r, known, err);

    if (status == IE_OK)
        status = find_group(&group, r, err);
    if (status == IE_OK && !group->is_durable)
        status = ie_error_set(
            err, IE_EINVAL, "group '%.100s' is not durable: it has no place in a log", group->name);
    return status == IE_OK ? run(r, group, err) : status;
}

static ie_status
on_replay(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", "from", "position", "time", NULL};

    return with_durable(r, KNOWN, ie__admin_durable_replay, err);
}

static ie_status
on_delete(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", NULL};

    return with_durable(r, KNOWN, ie__admin_durable_delete, err);
}

static ie_status
on_dead(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", "after", "limit", NULL};

    return with_durable(r, KNOWN, ie__admin_durable_dead, err);
}

static ie_status
on_dead_retry(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", "position", NULL};

    return with_durable(r, KNOWN, ie__admin_durable_dead_retry, err);
}

static ie_status
on_dead_discard(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"group", "pattern", "position", NULL};

    return with_durable(r, KNOWN, ie__admin_durable_dead_discard, err);
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
on_connections(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"skip", "limit", NULL};
    page                     p;

    if (ie__admin_known(r, KNOWN, err) != IE_OK || page_begin(&p, r->arguments, err) != IE_OK)
        return IE_EINVAL;
    for (const ie__conn *conn = r->server->conns; conn != NULL; conn = conn->next)
        if (page_wants(&p))
            (void)json_array_append_new(p.rows, conn_json(conn));
    r->answer = page_end(&p, "connections");
    return IE_OK;
}

static ie_status
on_kick(ie__request *r, ie_error *err)
{
    static const char *const KNOWN[] = {"id", NULL};
    ie__conn                *conn = r->server->conns;
    int64_t                  id;

    if (ie__admin_known(r, KNOWN, err) != IE_OK ||
        ie__admin_number(&id, r->arguments, "id", 0, 1, INT64_MAX, err) != IE_OK)
        return IE_EINVAL;
    if (id == 0)
        return ie_error_set(err, IE_EINVAL, "id is missing");
    while (conn != NULL && (conn->id != (uint64_t)id || conn->is_doomed))
        conn = conn->next;
    if (conn == NULL)
        return ie_error_set(err, IE_ENOTFOUND, "no connection %lld", (long long)id);
    r->answer = conn_json(conn);
    ie__conn_doom(conn, IE_BUS_CODE_DENIED, "an administrator ended the connection");
    return IE_OK;
}

/* ---- dispatch ------------------------------------------------------------------------------- */

/* *out: the answer, which may be NULL for want of memory. IE_EINVAL, IE_ENOTFOUND with a message.
 */
typedef ie_status (*request_fn)(ie__request *r, ie_error *err);

static const struct {
    const char *topic;
    request_fn  run;
} REQUESTS[] = {
    {"$bus.status", on_status},
    {"$bus.topics", on_topics},
    {"$bus.groups", on_groups},
    {"$bus.connections", on_connections},
    {"$bus.kick", on_kick},
    {"$bus.pause", on_pause},
    {"$bus.resume", on_resume},
    {"$bus.replay", on_replay},
    {"$bus.delete", on_delete},
    {"$bus.dead", on_dead},
    {"$bus.dead.retry", on_dead_retry},
    {"$bus.dead.discard", on_dead_discard},
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

void
ie__admin_answer(ie__query *query, json_t *answer)
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
    ie__request      r = {.server = server, .query = query};
    ie_error         err = IE_ERROR_INIT;
    ie_status        status;

    if (run == NULL) {
        ie__query_fail(query, IE_BUS_CODE_NO_SUBSCRIBERS, "the bus answers no such question");
        return;
    }
    r.arguments = arguments_read(&server->record.data, &err);
    if (r.arguments == NULL) {
        ie__query_fail(query, IE_BUS_CODE_INVALID, err.message);
        return;
    }
    status = run(&r, &err);
    json_decref(r.arguments);
    if (status == IE_OK && !r.is_later)
        ie__admin_answer(query, r.answer);
    else if (status != IE_OK)
        ie__query_fail(query,
                       status == IE_ENOTFOUND ? IE_BUS_CODE_NO_SUBSCRIBERS
                       : status == IE_ENOMEM  ? IE_BUS_CODE_MEMORY
                                              : IE_BUS_CODE_INVALID,
                       err.message);
}
