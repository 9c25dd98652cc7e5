/* Durable topics: what is stored, how it is answered, and the table of durable groups. */
#include <stdio.h>

#include "durable_parts.h"

#define WINDOW   512 /* events of a group that wait for members' credit at most */
#define SWEEP_MS 5000

struct ie__stored { /* a publish on its way to the log */
    ie__append_job append;
    ie__conn      *publisher; /* NULL: gone, or nobody to answer */
    ie__stored    *prev;      /* of the publisher's */
    ie__stored    *next;
    uint32_t       request;
    uint32_t       receivers;
};

/* ---- which topics are stored ---------------------------------------------------------------- */

static ie_status
rules_fill(ie__durable_rules *rules, ie__topics *topics, const char *const *patterns, size_t count,
           size_t *at, ie_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (ie_pattern_check(patterns[i], err) != IE_OK)
            return IE_EINVAL;
        if (ie__topics_add(topics, &rules->entries[(*at)++], patterns[i]) != IE_OK)
            return ie_error_set(err, IE_ENOMEM, "no memory for a pattern");
    }
    return IE_OK;
}

ie_status
ie__durable_rules_new(ie__durable_rules **out, const ie_bus_server_options *options, ie_error *err)
{
    ie__durable_rules *rules = ie__calloc(1, sizeof *rules);
    size_t             at = 0;
    ie_status          status;

    if (rules == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for patterns");
    rules->durable_count = options->durable_topic_count;
    rules->ephemeral_count = options->ephemeral_topic_count;
    rules->durable = ie__topics_new();
    rules->ephemeral = ie__topics_new();
    rules->entries =
        ie__calloc(rules->durable_count + rules->ephemeral_count + 1, sizeof *rules->entries);
    if (rules->durable == NULL || rules->ephemeral == NULL || rules->entries == NULL)
        status = ie_error_set(err, IE_ENOMEM, "no memory for patterns");
    else
        status = rules_fill(rules, rules->durable, options->durable_topics, rules->durable_count,
                            &at, err);
    if (status == IE_OK)
        status = rules_fill(rules, rules->ephemeral, options->ephemeral_topics,
                            rules->ephemeral_count, &at, err);
    if (status != IE_OK) {
        ie__durable_rules_free(rules);
        return status;
    }
    *out = rules;
    return IE_OK;
}

void
ie__durable_rules_free(ie__durable_rules *rules)
{
    if (rules == NULL)
        return;
    for (size_t i = 0; rules->entries != NULL && i < rules->durable_count; i++)
        ie__topics_remove(rules->durable, &rules->entries[i]);
    for (size_t i = 0; rules->entries != NULL && i < rules->ephemeral_count; i++)
        ie__topics_remove(rules->ephemeral, &rules->entries[rules->durable_count + i]);
    ie__topics_free(rules->durable);
    ie__topics_free(rules->ephemeral);
    ie__free(rules->entries);
    ie__free(rules);
}

static bool
rules_match(ie__topics *topics, const void *topic, size_t bytes)
{
    ie__topic_match match;

    return ie__topics_match(&match, topics, topic, bytes, NULL) == IE_OK && match.count != 0;
}

bool
ie__durable_takes(const ie_bus_server *server, const void *topic, size_t topic_bytes,
                  uint32_t flags)
{
    const ie__durable_rules *rules;

    if (server->durable == NULL)
        return false;
    rules = server->durable->rules;
    if (rules->ephemeral_count != 0 && rules_match(rules->ephemeral, topic, topic_bytes))
        return false;
    return (flags & IE_BUS_PUBLISH_PERSISTENT) != 0 ||
           (rules->durable_count != 0 && rules_match(rules->durable, topic, topic_bytes));
}

/* ---- storing -------------------------------------------------------------------------------- */

static void
stored_unlink(ie__stored *stored)
{
    ie__conn *conn = stored->publisher;

    if (conn == NULL)
        return;
    if (stored->prev != NULL)
        stored->prev->next = stored->next;
    else
        conn->storing = stored->next;
    if (stored->next != NULL)
        stored->next->prev = stored->prev;
    conn->storing_count--;
    stored->publisher = NULL;
}

void
ie__durable_leave(ie__conn *conn)
{
    while (conn->storing != NULL)
        stored_unlink(conn->storing);
}

uint32_t
ie__durable_check(const ie__conn *conn, size_t size, const char **reason)
{
    const ie_bus_server *server = conn->server;
    const ie__durable   *durable = server->durable;

    if (conn->storing_count + conn->held_count >= server->options.publishes_in_flight_max) {
        *reason = "publishes_in_flight_max is reached";
        return IE_BUS_CODE_LIMIT;
    }
    if (ie__store_is_crowded(durable->store, size + sizeof(ie__append_job))) {
        *reason = "store_queue_bytes_max is reached";
        return IE_BUS_CODE_LIMIT;
    }
    return IE_BUS_CODE_NONE;
}

/* What a record lacks is filled in before anybody sees it, so that it is the same for all. */
ie__blob *
ie__durable_record(ie_bus_server *server, const unsigned char *bytes, size_t size)
{
    ie__record *record = &server->record;
    ie__blob   *blob;
    ie__blob   *full;
    ie_event    event;
    char        id[IE_ID_SIZE];

    blob = ie__blob_new(size);
    if (blob == NULL)
        return NULL;
    memcpy(blob->bytes, bytes, size);
    if (record->texts[IE__E_ID].bytes != NULL && record->texts[IE__E_SOURCE].bytes != NULL &&
        record->texts[IE__E_TYPE].bytes != NULL && record->time_ms != 0 && record->position == 0)
        return blob;
    if (ie__record_parse(record, blob->bytes, size, server->options.data_bytes_max, NULL) !=
        IE_OK) {
        ie__blob_unref(blob);
        return NULL;
    }
    ie__record_event(&event, record);
    event.position = 0; /* in its publisher's log; in ours it gets another */
    if (event.id == NULL) {
        ie_id_new(id);
        event.id = id;
    }
    if (event.source == NULL)
        event.source = server->name;
    if (event.type == NULL)
        event.type = event.topic;
    if (event.time_ms == 0)
        event.time_ms = ie__wall_ms(&ie__system_clock);
    full = ie__blob_new(ie__record_size(&event));
    if (full != NULL)
        (void)ie__record_put(full->bytes, &event);
    ie__blob_unref(blob);
    if (full != NULL) /* the caller goes on with it */
        (void)ie__record_parse(record, full->bytes, full->size, IE_DATA_BYTES_MAX, NULL);
    return full;
}

static void
stored_offer(ie__durable *durable, const ie__stored *stored)
{
    ie__blob       *record = stored->append.record;
    ie__topic_match match;
    uint64_t        key = 0;

    if (ie__topics_match(&match, durable->server->topics, record->bytes + 1, record->bytes[0],
                         NULL) != IE_OK)
        return;
    for (size_t i = 0; i < match.count; i++) {
        ie__target *target = (ie__target *)(void *)match.entries[i];
        ie__group  *group = (ie__group *)(void *)target;

        if (!target->is_group || !group->is_durable)
            continue;
        if (key == 0)
            key = ie__record_key_hash(record->bytes, record->size);
        ie__durable_offer(ie__durable_of(group), record, stored->append.position, key);
    }
}

static void
stored_done(ie__store *store, ie__job *job)
{
    ie__stored     *stored = (ie__stored *)(void *)job;
    ie__durable    *durable = job->user;
    ie_bus_server  *server = durable->server;
    ie__conn       *conn = stored->publisher;
    const uint64_t  size = stored->append.record->size;
    const ie_status status = job->status;

    stored_unlink(stored);
    durable->storing--;
    server->durable_bytes -= size;
    if (status == IE_OK) {
        server->stats.stored += !stored->append.is_duplicate;
        server->stats.duplicates += stored->append.is_duplicate;
        if (!stored->append.is_duplicate) {
            stored_offer(durable, stored);
            durable->last = stored->append.position;
        }
    } else {
        server->stats.store_failures++;
    }
    if (conn != NULL && conn->state == IE__CONN_OPEN) {
        if (status == IE_OK)
            ie__conn_puback(conn, stored->request, stored->receivers | IE__PUBACK_STORED);
        else
            ie__conn_pubnack(conn, stored->request,
                             status == IE_EFULL || status == IE_ELIMIT ? IE_BUS_CODE_FULL
                                                                       : IE_BUS_CODE_STORAGE,
                             ie__store_trouble(store));
    }
    ie__blob_unref(stored->append.record);
    ie__free(stored);
}

bool
ie__durable_publish(ie_bus_server *server, ie__conn *publisher, uint32_t request, ie__blob *record,
                    uint32_t receivers)
{
    ie__durable *durable = server->durable;
    ie__stored  *stored = ie__alloc(sizeof *stored);

    if (stored == NULL)
        return false;
    ie__blob_ref(record);
    ie__append_job_init(&stored->append, record, stored_done, durable);
    stored->publisher = publisher;
    stored->request = request;
    stored->receivers = receivers;
    stored->prev = stored->next = NULL;
    if (publisher != NULL) {
        stored->next = publisher->storing;
        if (publisher->storing != NULL)
            publisher->storing->prev = stored;
        publisher->storing = stored;
        publisher->storing_count++;
    }
    durable->storing++;
    server->durable_bytes += record->size;
    ie__store_submit(durable->store, &stored->append.job);
    return true;
}

/* ---- groups --------------------------------------------------------------------------------- */

ie__durable_group *
ie__durable_of(const ie__group *group)
{
    return group->user;
}

static void
group_settings(ie__durable_group *g)
{
    ie__group *group = g->group;

    group->window = WINDOW < g->durable->server->options.group_events_max
                        ? WINDOW
                        : g->durable->server->options.group_events_max;
    group->ack_timeout_ms = g->row.ack_timeout_ms != 0 ? g->row.ack_timeout_ms
                                                       : g->durable->server->options.ack_timeout_ms;
}

ie__durable_group *
ie__durable_group_new(ie__durable *durable, const ie__group_row *row)
{
    ie__durable_group *g = ie__calloc(1, sizeof *g);

    if (g == NULL)
        return NULL;
    g->group = ie__group_new(durable->server, row->name, row->pattern, row->selection);
    if (g->group == NULL) {
        ie__free(g);
        return NULL;
    }
    g->durable = durable;
    g->row = *row;
    g->read_to = g->sent_to = g->marked = row->position;
    g->is_tail = row->position >= durable->last;
    g->due_at_ms = row->waiting != 0 ? 0 : INT64_MAX;
    g->group->user = g;
    g->group->is_durable = true;
    g->group->hungry = ie__durable_hungry;
    group_settings(g);
    if (row->is_paused)
        ie__group_pause(g->group, true);
    g->next = durable->groups;
    durable->groups = g;
    durable->group_count++;
    durable->is_dead_stale = true;
    return g;
}

void
ie__durable_group_free(ie__durable_group *g)
{
    ie__durable        *durable = g->durable;
    ie__durable_group **link = &durable->groups;

    if (g->is_marking || g->is_reading || g->is_reading_due || g->is_making || g->is_moving)
        return; /* asked again when that is over */
    while (*link != g)
        link = &(*link)->next;
    *link = g->next;
    durable->group_count--;
    for (link = &durable->dirty; *link != NULL; link = &(*link)->dirty_next) {
        if (*link == g) {
            *link = g->dirty_next;
            break;
        }
    }
    durable->is_dead_stale = true;
    ie__held_fini(&g->held);
    ie__group_free(g->group);
    ie__free(g);
}

static void
making_done(ie__store *store, ie__job *base)
{
    ie__group_job     *job = (ie__group_job *)(void *)base;
    ie__durable_group *g = job->job.user;
    const ie_status    status = job->job.status;
    ie__group         *group = g->group;

    g->is_making = false;
    if (status == IE_OK) {
        g->row.id = job->row.id;
        g->read_to = g->sent_to = g->marked = job->row.position;
        g->is_tail = job->row.position >= g->durable->last;
    }
    ie__free(job);
    for (size_t i = group->member_count; i-- > 0;) {
        ie__sub *sub = group->members[i];

        if (!sub->is_unconfirmed)
            continue;
        sub->is_unconfirmed = false;
        if (status == IE_OK)
            ie__route_confirm(sub);
        else
            ie__route_refuse(sub, status == IE_EFULL ? IE_BUS_CODE_FULL : IE_BUS_CODE_STORAGE,
                             status == IE_ECLOSED ? "the bus is shutting down"
                                                  : ie__store_trouble(store));
    }
    if (status != IE_OK) {
        g->is_ending = true;
        ie__durable_group_free(g);
        return;
    }
    if (!g->row.is_paused)
        ie__group_pause(group, false);
    ie__durable_hungry(group);
}

static uint32_t
group_make(ie__durable *durable, const ie__durable_request *request, ie__durable_group **out,
           ie_error *err)
{
    ie__group_job     *job;
    ie__durable_group *g;

    if (request->selection == IE_BUS_BROADCAST) {
        (void)ie_error_set(err, IE_ENOTSUP,
                           "a durable group cannot broadcast: give each consumer a group of its "
                           "own, or make it ephemeral");
        return IE_BUS_CODE_UNSUPPORTED;
    }
    if (durable->group_count >= durable->server->options.groups_max) {
        (void)ie_error_set(err, IE_ELIMIT, "groups_max is reached");
        return IE_BUS_CODE_LIMIT;
    }
    job = ie__alloc(sizeof *job);
    if (job == NULL) {
        (void)ie_error_set(err, IE_ENOMEM, "no memory for a group");
        return IE_BUS_CODE_MEMORY;
    }
    ie__group_job_init(job, making_done, NULL);
    (void)snprintf(job->row.name, sizeof job->row.name, "%s", request->name);
    (void)snprintf(job->row.pattern, sizeof job->row.pattern, "%s", request->pattern);
    job->row.selection = request->selection;
    job->row.ack_timeout_ms = request->ack_timeout_ms;
    job->row.attempts_max = request->attempts_max;
    job->is_new = true;
    job->start = request->start;
    job->start_at = request->start_at;
    g = ie__durable_group_new(durable, &job->row);
    if (g == NULL) {
        ie__free(job);
        (void)ie_error_set(err, IE_ENOMEM, "no memory for a group");
        return IE_BUS_CODE_MEMORY;
    }
    g->is_making = true;
    g->is_tail = false;
    ie__group_pause(g->group, true);
    job->job.user = g;
    ie__store_submit(durable->store, &job->job);
    *out = g;
    return IE_BUS_CODE_NONE;
}

/* Members agree; what one does not say it does not mind. */
static uint32_t
group_agree(const ie__group *group, const ie__durable_request *request, ie_error *err)
{
    const ie__durable_group *g = group->user;

    if (!group->is_durable) {
        (void)ie_error_set(err, IE_ECONFLICT, "the group %s exists and is ephemeral",
                           request->name);
        return IE_BUS_CODE_CONFLICT;
    }
    if ((request->ack_timeout_ms != 0 && request->ack_timeout_ms != g->row.ack_timeout_ms) ||
        (request->attempts_max != 0 && request->attempts_max != g->row.attempts_max)) {
        (void)ie_error_set(err, IE_ECONFLICT,
                           "the group %s exists with acknowledgement time %u ms and %u attempts "
                           "(0: the bus's)",
                           request->name, g->row.ack_timeout_ms, g->row.attempts_max);
        return IE_BUS_CODE_CONFLICT;
    }
    return IE_BUS_CODE_NONE;
}

uint32_t
ie__durable_join(ie__sub *sub, const ie__durable_request *request, ie_error *err)
{
    ie_bus_server     *server = sub->conn->server;
    ie__group         *group = ie__group_find(server, request->name, request->pattern);
    ie__durable_group *g = NULL;
    uint32_t           code;

    if (request->start > IE_BUS_START_END) {
        (void)ie_error_set(err, IE_ENOTSUP, "unknown start %u", (unsigned)request->start);
        return IE_BUS_CODE_UNSUPPORTED;
    }
    code = group != NULL ? group_agree(group, request, err)
                         : group_make(server->durable, request, &g, err);
    if (code != IE_BUS_CODE_NONE)
        return code;
    if (group != NULL)
        g = group->user;
    if (g->is_ending) {
        (void)ie_error_set(err, IE_ESTATE, "the group %s is being deleted", request->name);
        return IE_BUS_CODE_BUSY;
    }
    code = ie__group_join(server, request->name, request->pattern, request->selection, sub, err);
    sub->is_unconfirmed = code == IE_BUS_CODE_NONE && g->is_making;
    return code;
}

int64_t
ie__durable_position(const ie__sub *sub)
{
    return ie__durable_cursor(sub->group->user);
}

/* ---- its life ------------------------------------------------------------------------------- */

static void
on_lost(void *user, const ie__loss *loss)
{
    ie__durable *durable = user;

    for (ie__durable_group *g = durable->groups; g != NULL; g = g->next) {
        if (g->row.id != loss->group)
            continue;
        g->row.lost += loss->lost;
        durable->server->stats.lost += loss->lost;
        durable->is_dead_stale = true;
        g->row.dead -= loss->dead < g->row.dead ? loss->dead : g->row.dead;
        if (!g->is_tail && loss->position > g->read_to)
            g->read_to = loss->position;
        if (loss->lost != 0)
            ie__log(&durable->server->options.logger, IE_LOG_WARN, "bus",
                    "group %s (%s) was too far behind: %llu events up to position %lld are gone",
                    g->row.name, g->row.pattern, (unsigned long long)loss->lost,
                    (long long)loss->position);
        return;
    }
}

static void
store_options(ie__store_options *out, const ie_bus_server_options *options)
{
    memset(out, 0, sizeof *out);
    out->data_dir = options->data_dir;
    out->logger = options->logger;
    out->queue_bytes_max = options->store_queue_bytes_max;
    out->retention_bytes_max = options->retention_bytes_max;
    out->retention_s = options->retention_s;
    out->dedupe_window_ms = options->dedupe_window_ms;
    out->dedupe_ids_max = options->dedupe_ids_max;
    out->lagging = options->retention_lagging;
}

typedef struct loading {
    ie__durable       *durable;
    ie__durable_group *group;
    bool               has_failed;
} loading;

static void
load_group(void *user, const ie__group_row *row)
{
    loading *load = user;

    load->has_failed |= ie__durable_group_new(load->durable, row) == NULL;
}

/* Its order waits for noted events; the first of each key that is blocked may be due. */
static void
load_key(void *user, uint64_t key, uint64_t count)
{
    loading *load = user;

    if (ie__held_add(&load->group->held, key, count))
        ie__durable_release(load->group, key);
    else
        load->has_failed = true;
}

static ie_status
load_groups(ie__durable *durable, ie_error *err)
{
    loading   load = {durable, NULL, false};
    ie_status status = ie__store_groups(durable->store, load_group, &load, err);

    for (ie__durable_group *g = durable->groups; g != NULL && status == IE_OK; g = g->next) {
        load.group = g;
        if (g->row.selection == IE_BUS_STICKY)
            status = ie__store_held_keys(durable->store, g->row.id, load_key, &load, err);
    }
    if (status == IE_OK && load.has_failed)
        status = ie_error_set(err, IE_ENOMEM, "no memory for the groups of the log");
    return status;
}

ie_status
ie__durable_open(ie_bus_server *server, const ie_bus_server_options *options, ie_error *err)
{
    ie__durable      *durable = ie__calloc(1, sizeof *durable);
    ie__store_options opened;
    ie_status         status;

    if (durable == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a log");
    store_options(&opened, options);
    opened.lost = on_lost;
    opened.user = durable;
    durable->server = server;
    server->durable = durable;
    status = ie__durable_rules_new(&durable->rules, options, err);
    if (status == IE_OK)
        status = ie__store_open(&durable->store, &opened, err);
    if (status != IE_OK)
        return status;
    durable->last = ie__store_look(durable->store)->last;
    (void)uv_timer_init(&server->loop, &durable->timer);
    (void)uv_timer_init(&server->loop, &durable->marks);
    (void)uv_timer_init(&server->loop, &durable->sweep);
    durable->timer.data = durable->marks.data = durable->sweep.data = durable;
    durable->has_timers = true;
    status = load_groups(durable, err);
    if (status == IE_OK)
        status = ie__store_start(durable->store, &server->loop, err);
    if (status != IE_OK)
        return status;
    (void)uv_timer_start(&durable->sweep, ie__durable_on_sweep, SWEEP_MS, SWEEP_MS);
    ie__store_flush(durable->store);
    return IE_OK;
}

void
ie__durable_stop(ie_bus_server *server)
{
    ie__durable *durable = server->durable;

    if (durable == NULL || durable->is_stopped)
        return;
    durable->is_stopped = true;
    if (durable->has_timers) {
        uv_close((uv_handle_t *)&durable->timer, NULL);
        uv_close((uv_handle_t *)&durable->marks, NULL);
        uv_close((uv_handle_t *)&durable->sweep, NULL);
    }
    if (durable->store == NULL)
        return;
    for (ie__durable_group *g = durable->groups; g != NULL; g = g->next)
        ie__durable_mark_last(g);
    ie__store_stop(durable->store);
    ie__durable_show(server);
}

void
ie__durable_free(ie_bus_server *server)
{
    ie__durable *durable = server->durable;

    if (durable == NULL)
        return;
    while (durable->groups != NULL) {
        ie__durable_group *g = durable->groups;

        g->is_marking = g->is_reading = g->is_reading_due = g->is_making = g->is_moving = false;
        g->is_ending = true;
        ie__durable_forget(g);
        ie__durable_group_free(g);
    }
    ie__store_free(durable->store);
    ie__durable_rules_free(durable->rules);
    ie__free(durable);
    server->durable = NULL;
}

bool
ie__durable_is_storing(const ie_bus_server *server)
{
    return server->durable != NULL && server->durable->storing != 0;
}

void
ie__durable_show(ie_bus_server *server)
{
    ie__durable          *durable = server->durable;
    const ie__store_view *view;

    if (durable == NULL || durable->store == NULL)
        return;
    view = ie__store_look(durable->store);

    server->stats.log_bytes = view->bytes;
    server->stats.log_first = (uint64_t)view->first;
    server->stats.log_last = (uint64_t)view->last;
    if (!durable->is_dead_stale)
        return;
    durable->is_dead_stale = false;
    server->stats.dead = 0;
    for (const ie__durable_group *g = durable->groups; g != NULL; g = g->next)
        server->stats.dead += g->row.dead;
}

void
ie__durable_end_of_turn(ie_bus_server *server)
{
    if (server->durable == NULL || server->durable->is_stopped)
        return;
    ie__store_flush(server->durable->store);
}

void
ie__durable_reload(ie_bus_server *server, ie__durable_rules *rules)
{
    ie__durable      *durable = server->durable;
    ie__store_options changed;

    if (durable == NULL) {
        ie__durable_rules_free(rules);
        return;
    }
    ie__durable_rules_free(durable->rules);
    durable->rules = rules;
    store_options(&changed, &server->options);
    ie__store_reload(durable->store, &changed);
    for (ie__durable_group *g = durable->groups; g != NULL; g = g->next)
        group_settings(g);
}
