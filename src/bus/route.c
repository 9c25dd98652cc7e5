/*
 * The way of an event: from a publish to every subscription that matches, and back to its answer.
 *
 * Invariant: a held publish is counted once for each group that has not answered, and each of
 * those holds it exactly once: in its queue, or as a delivery of one member.
 */
#include "server.h"

#include <stdio.h>

#define PAUSE_BYTES (1024 * 1024) /* a member with so much unread output gets no more for now */

/* ---- held publishes ------------------------------------------------------------------------- */

static ie__held *
held_new(ie__conn *publisher, uint32_t request, ie__blob *record)
{
    ie__held *held = ie__calloc(1, sizeof *held);

    if (held == NULL)
        return NULL;
    held->publisher = publisher;
    held->request = request;
    held->record = record;
    ie__blob_ref(record);
    held->next = publisher->held;
    if (publisher->held != NULL)
        publisher->held->prev = held;
    publisher->held = held;
    publisher->held_count++;
    publisher->server->held_count++;
    publisher->server->held_bytes += record->size;
    return held;
}

static void
held_unlink(ie__held *held)
{
    ie__conn *publisher = held->publisher;

    if (publisher == NULL)
        return;
    if (held->prev != NULL)
        held->prev->next = held->next;
    else
        publisher->held = held->next;
    if (held->next != NULL)
        held->next->prev = held->prev;
    publisher->held_count--;
    held->publisher = NULL;
}

/* One group is through with it; the last one gives the publisher its answer. */
static void
held_resolve(ie_bus_server *server, ie__held *held, uint32_t code, const char *reason)
{
    ie__conn *publisher = held->publisher;

    if (code != IE_BUS_CODE_NONE && held->code == IE_BUS_CODE_NONE) {
        held->code = code;
        held->reason = ie__strdup(reason);
    }
    if (--held->waiting > 0)
        return;
    if (publisher != NULL && publisher->state == IE__CONN_OPEN) {
        if (held->code == IE_BUS_CODE_NONE)
            ie__conn_puback(publisher, held->request, held->receivers);
        else
            ie__conn_pubnack(publisher, held->request, held->code,
                             held->reason != NULL ? held->reason : ie_bus_code_text(held->code));
    }
    held_unlink(held);
    server->held_count--;
    server->held_bytes -= held->record->size;
    ie__blob_unref(held->record);
    ie__free(held->reason);
    ie__free(held);
}

/* ---- deliveries ----------------------------------------------------------------------------- */

/* blob, when not NULL, is the same bytes, to be shared. */
static void
send_record(ie__conn *conn, ie__frame_type type, uint32_t sub, uint32_t number,
            const unsigned char *record, size_t size, ie__blob *blob)
{
    const bool     is_shared = size >= IE__NET_SHARE_BYTES && blob != NULL;
    unsigned char *at =
        ie__stream_reserve(conn->stream, IE__PREFIX_BYTES + 4 + (is_shared ? 0 : size));

    if (at == NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        return;
    }
    ie__frame_prefix(at, type, sub, 4 + size);
    ie__put32(at + IE__PREFIX_BYTES, number);
    if (!is_shared)
        memcpy(at + IE__PREFIX_BYTES + 4, record, size);
    else if (ie__stream_write_blob(conn->stream, blob) != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
    conn->server->stats.delivered++;
}

/* All queues together are too long: the longest goes. */
static void
shed_longest(ie_bus_server *server)
{
    ie__conn *longest = NULL;

    for (ie__conn *conn = server->conns; conn != NULL; conn = conn->next)
        if (!conn->is_doomed && (longest == NULL || ie__stream_pending(conn->stream) >
                                                        ie__stream_pending(longest->stream)))
            longest = conn;
    if (longest == NULL)
        return;
    ie__conn_doom(longest, IE_BUS_CODE_SLOW,
                  "out_bytes_total_max is reached and its queue is the longest");
    ie__stream_drop_unsent(longest->stream); /* at once, or the next publish sheds another */
}

static void
deliver_live(ie__sub *sub, const unsigned char *record, size_t size, ie__blob *blob)
{
    ie__conn      *conn = sub->conn;
    ie_bus_server *server = conn->server;
    const size_t   pending = ie__stream_pending(conn->stream) + size;

    if (conn->is_doomed)
        return;
    if (pending > server->options.out_bytes_max) {
        ie__conn_doom(conn, IE_BUS_CODE_SLOW, "it does not read: out_bytes_max is reached");
        ie__stream_drop_unsent(conn->stream);
        return;
    }
    if (server->net.pending_bytes + size > server->options.out_bytes_total_max) {
        shed_longest(server);
        if (conn->is_doomed)
            return;
    }
    send_record(conn, IE__DELIVER, sub->id, 0, record, size, blob);
}

static bool
member_is_ready(const ie__sub *sub)
{
    return sub->outstanding < sub->credit && !sub->conn->is_doomed &&
           ie__stream_pending(sub->conn->stream) < PAUSE_BYTES;
}

static ie__delivery *
delivery_at(const ie__conn *conn, size_t index)
{
    return &conn->deliveries[(conn->delivery_head + index) & (conn->delivery_max - 1)];
}

static bool
deliveries_grow(ie__conn *conn)
{
    const size_t  max = conn->delivery_max != 0 ? conn->delivery_max * 2 : 64;
    ie__delivery *grown = ie__realloc_array(NULL, max, sizeof *grown);

    if (grown == NULL)
        return false;
    for (size_t i = 0; i < conn->delivery_count; i++)
        grown[i] = *delivery_at(conn, i);
    ie__free(conn->deliveries);
    conn->deliveries = grown;
    conn->delivery_head = 0;
    conn->delivery_max = max;
    return true;
}

/* Give an event to a member that is ready. False: no memory; nothing happened. */
static bool
deliver_to_member(ie__sub *sub, ie__held *held)
{
    ie__conn     *conn = sub->conn;
    ie__delivery *delivery;

    if (conn->delivery_count == conn->delivery_max && !deliveries_grow(conn))
        return false;
    delivery = delivery_at(conn, conn->delivery_count);
    delivery->held = held;
    delivery->sub = sub;
    if (sub->outstanding++ == 0)
        sub->progress_ms = (int64_t)uv_now(&conn->server->loop);
    send_record(conn, IE__DELIVER_ACK, sub->id,
                conn->delivery_first + (uint32_t)conn->delivery_count, held->record->bytes,
                held->record->size, held->record);
    conn->delivery_count++;
    return true;
}

/* ---- groups --------------------------------------------------------------------------------- */

static ie__sub *
group_pick(ie__group *group)
{
    for (size_t i = 0; i < group->member_count; i++) {
        ie__sub *sub = group->members[(group->turn + i) % group->member_count];

        if (member_is_ready(sub)) {
            group->turn = (group->turn + i + 1) % group->member_count;
            return sub;
        }
    }
    return NULL;
}

static bool
queue_grow(ie__group *group)
{
    const size_t max = group->queue_max != 0 ? group->queue_max * 2 : 64;
    ie__held   **grown = ie__realloc_array(NULL, max, sizeof *grown);

    if (grown == NULL)
        return false;
    for (size_t i = 0; i < group->queue_count; i++)
        grown[i] = group->queue[(group->queue_head + i) & (group->queue_max - 1)];
    ie__free(group->queue);
    group->queue = grown;
    group->queue_head = 0;
    group->queue_max = max;
    return true;
}

static bool
queue_add(ie__group *group, ie__held *held)
{
    if (group->queue_count == group->queue_max && !queue_grow(group))
        return false;
    group->queue[(group->queue_head + group->queue_count) & (group->queue_max - 1)] = held;
    group->queue_count++;
    group->queue_bytes += held->record->size;
    return true;
}

static bool
queue_add_front(ie__group *group, ie__held *held)
{
    if (group->queue_count == group->queue_max && !queue_grow(group))
        return false;
    group->queue_head = (group->queue_head - 1) & (group->queue_max - 1);
    group->queue[group->queue_head] = held;
    group->queue_count++;
    group->queue_bytes += held->record->size;
    return true;
}

static ie__held *
queue_take(ie__group *group)
{
    ie__held *held = group->queue[group->queue_head];

    group->queue_head = (group->queue_head + 1) & (group->queue_max - 1);
    group->queue_bytes -= held->record->size;
    if (--group->queue_count == 0) {
        ie__free(group->queue); /* a group that keeps up holds nothing */
        group->queue = NULL;
        group->queue_head = group->queue_max = 0;
    }
    return held;
}

static void
group_pump(ie_bus_server *server, ie__group *group)
{
    while (group->queue_count > 0) {
        ie__sub  *sub = group_pick(group);
        ie__held *held;

        if (sub == NULL) {
            /* Some may only have to read; the others will ask by acknowledging. */
            for (size_t i = 0; i < group->member_count; i++) {
                ie__conn *conn = group->members[i]->conn;

                if (!conn->is_doomed && ie__stream_pending(conn->stream) >= PAUSE_BYTES)
                    ie__stream_notify_below(conn->stream, PAUSE_BYTES / 2);
            }
            return;
        }
        held = queue_take(group);
        if (!deliver_to_member(sub, held))
            held_resolve(server, held, IE_BUS_CODE_MEMORY, "no memory for a delivery");
    }
}

static bool
group_is_full(const ie_bus_server *server, const ie__group *group, size_t size)
{
    return group->queue_count > 0 && (group->queue_count >= server->options.group_events_max ||
                                      group->queue_bytes + size > server->options.group_bytes_max);
}

/* The caller saw to it that the group is not full. */
static void
group_push(ie_bus_server *server, ie__group *group, ie__held *held)
{
    ie__sub *sub = group->queue_count == 0 ? group_pick(group) : NULL;

    if (sub != NULL ? deliver_to_member(sub, held) : queue_add(group, held)) {
        if (sub == NULL && group->queue_count == 1)
            group_pump(server, group); /* asks to be told when output drains */
        return;
    }
    held_resolve(server, held, IE_BUS_CODE_MEMORY, "no memory for a delivery");
}

static ie__group *
group_find(const ie_bus_server *server, const char *name, const char *pattern, uint64_t hash)
{
    ie__group *group = server->groups[hash & (server->group_buckets - 1)];

    while (group != NULL && !(group->hash == hash && strcmp(group->name, name) == 0 &&
                              strcmp(group->pattern, pattern) == 0))
        group = group->chain;
    return group;
}

static void
group_free(ie_bus_server *server, ie__group *group)
{
    if (group->name[0] != '\0') {
        ie__group **link = &server->groups[group->hash & (server->group_buckets - 1)];

        while (*link != NULL && *link != group)
            link = &(*link)->chain;
        if (*link == group)
            *link = group->chain;
    }
    ie__topics_remove(server->topics, &group->target.entry);
    ie__free(group->members);
    ie__free(group->queue);
    ie__free(group->pattern);
    ie__free(group);
    server->group_count--;
}

static ie__group *
group_new(ie_bus_server *server, const char *name, const char *pattern, uint64_t hash)
{
    const size_t name_bytes = strlen(name) + 1;
    ie__group   *group = ie__calloc(1, sizeof *group + name_bytes);

    if (group == NULL)
        return NULL;
    memcpy(group->name, name, name_bytes);
    group->target.is_group = true;
    group->hash = hash;
    group->pattern = ie__strdup(pattern);
    if (group->pattern == NULL ||
        ie__topics_add(server->topics, &group->target.entry, pattern) != IE_OK) {
        ie__free(group->pattern);
        ie__free(group);
        return NULL;
    }
    if (name[0] != '\0') {
        group->chain = server->groups[hash & (server->group_buckets - 1)];
        server->groups[hash & (server->group_buckets - 1)] = group;
    }
    server->group_count++;
    return group;
}

static ie_status
group_join(ie_bus_server *server, const char *name, const char *pattern, ie__sub *sub)
{
    const uint64_t hash = ie__hash(name, strlen(name)) ^ ie__hash(pattern, strlen(pattern)) << 1;
    ie__group     *group = name[0] != '\0' ? group_find(server, name, pattern, hash) : NULL;

    if (group == NULL)
        group = group_new(server, name, pattern, hash);
    if (group == NULL)
        return IE_ENOMEM;
    if (group->member_count == group->member_max) {
        const size_t max = group->member_max != 0 ? group->member_max * 2 : 2;
        ie__sub    **grown = ie__realloc_array(group->members, max, sizeof *grown);

        if (grown == NULL) {
            if (group->member_count == 0)
                group_free(server, group);
            return IE_ENOMEM;
        }
        group->members = grown;
        group->member_max = max;
    }
    group->members[group->member_count++] = sub;
    sub->group = group;
    return IE_OK;
}

/* The member is out of the list; the group, and what waits in it, ends with the last one. */
static void
group_leave(ie__sub *sub)
{
    ie__group *group = sub->group;
    size_t     i = 0;

    while (group->members[i] != sub)
        i++;
    memmove(&group->members[i], &group->members[i + 1],
            (--group->member_count - i) * sizeof *group->members);
    if (group->turn > i)
        group->turn--;
    if (group->member_count != 0)
        group->turn %= group->member_count;
}

static void
group_settle(ie_bus_server *server, ie__group *group, uint32_t code, const char *reason)
{
    if (group->member_count != 0) {
        group_pump(server, group);
        return;
    }
    while (group->queue_count > 0)
        held_resolve(server, queue_take(group), code, reason);
    group_free(server, group);
}

/* ---- a subscription's end ------------------------------------------------------------------- */

static void
deliveries_pop(ie__conn *conn)
{
    while (conn->delivery_count > 0 && delivery_at(conn, 0)->held == NULL) {
        conn->delivery_head = (conn->delivery_head + 1) & (conn->delivery_max - 1);
        conn->delivery_count--;
        conn->delivery_first++;
    }
}

/*
 * What these subscriptions were given and did not answer goes back to the front of their groups'
 * queues, newest first so that the old order results. only: one subscription, or NULL for all.
 */
static void
take_back(ie__conn *conn, const ie__sub *only, uint32_t code, const char *reason)
{
    ie_bus_server *server = conn->server;

    for (size_t i = conn->delivery_count; i-- > 0;) {
        ie__delivery *delivery = delivery_at(conn, i);
        ie__held     *held = delivery->held;
        ie__sub      *sub = delivery->sub;

        if (held == NULL || (only != NULL && sub != only))
            continue;
        delivery->held = NULL;
        sub->outstanding--;
        if (sub->group->member_count != 0 && queue_add_front(sub->group, held))
            server->stats.redelivered++;
        else
            held_resolve(server, held, code, reason);
    }
    deliveries_pop(conn);
}

static void
sub_unlist(ie__sub *sub)
{
    ie__sub **link = &sub->conn->subs;

    while (*link != sub)
        link = &(*link)->next;
    *link = sub->next;
    sub->conn->sub_count--;
    sub->conn->server->sub_count--;
}

void
ie__route_unsubscribe(ie__conn *conn, uint32_t id)
{
    static const char GONE[] = "the only subscriber unsubscribed before it acknowledged";
    ie__sub          *sub = conn->subs;

    while (sub != NULL && sub->id != id)
        sub = sub->next;
    if (sub == NULL)
        return; /* asked twice: the answer is the same */
    if (sub->group != NULL) {
        group_leave(sub);
        take_back(conn, sub, IE_BUS_CODE_SUBSCRIBER_GONE, GONE);
        group_settle(conn->server, sub->group, IE_BUS_CODE_SUBSCRIBER_GONE, GONE);
    } else {
        ie__topics_remove(conn->server->topics, &sub->target.entry);
    }
    sub_unlist(sub);
    ie__free(sub);
}

void
ie__route_leave(ie__conn *conn)
{
    const bool     is_stuck = conn->end_code == IE_BUS_CODE_ACK_TIMEOUT;
    const uint32_t code = is_stuck ? IE_BUS_CODE_ACK_TIMEOUT : IE_BUS_CODE_SUBSCRIBER_GONE;
    const char    *reason = is_stuck ? "the subscriber did not answer in time"
                                     : "the subscriber's connection ended before it acknowledged";

    while (conn->held != NULL)
        held_unlink(conn->held); /* nobody to answer any more */
    for (ie__sub *sub = conn->subs; sub != NULL; sub = sub->next) {
        if (sub->group != NULL)
            group_leave(sub); /* all first: nothing may come back to this connection */
        else
            ie__topics_remove(conn->server->topics, &sub->target.entry);
    }
    take_back(conn, NULL, code, reason);
    while (conn->subs != NULL) {
        ie__sub   *sub = conn->subs;
        ie__group *group = sub->group;
        bool       is_last = true;

        /* two members of this connection in one group: settle it once, at the last */
        for (const ie__sub *other = sub->next; other != NULL; other = other->next)
            is_last = is_last && other->group != group;
        if (group != NULL && is_last)
            group_settle(conn->server, group, code, reason);
        sub_unlist(sub);
        ie__free(sub);
    }
}

/* ---- subscribing ---------------------------------------------------------------------------- */

typedef struct subscribe_request {
    char     pattern[IE_TOPIC_BYTES_MAX + 1];
    char     group[IE_BUS_GROUP_BYTES_MAX + 1];
    uint32_t flags;
    uint32_t credit;
} subscribe_request;

static ie_status
subscribe_parse(subscribe_request *out, const ie__frame *frame)
{
    const unsigned char *at = frame->body;
    const unsigned char *end = at + frame->body_bytes;
    ie__field            field;
    ie_status            status;

    memset(out, 0, sizeof *out);
    while ((status = ie__field_next(&field, &at, end)) == IE_OK) {
        switch (field.tag) {
        case IE__F_PATTERN:
            status = ie__field_text(out->pattern, IE_TOPIC_BYTES_MAX, &field);
            break;
        case IE__F_GROUP:
            status = ie__field_text(out->group, IE_BUS_GROUP_BYTES_MAX, &field);
            break;
        case IE__F_FLAGS: status = ie__field_u32(&out->flags, &field); break;
        case IE__F_CREDIT: status = ie__field_u32(&out->credit, &field); break;
        default: status = field.tag >= IE__FIELD_OPTIONAL ? IE_OK : IE_EPROTO; break;
        }
        if (status != IE_OK)
            return IE_EPROTO;
    }
    return status == IE_ENOTFOUND ? IE_OK : IE_EPROTO;
}

static uint32_t
subscribe_check(const ie__conn *conn, uint32_t id, const subscribe_request *request, ie_error *err)
{
    const ie_bus_server *server = conn->server;

    for (const ie__sub *sub = conn->subs; sub != NULL; sub = sub->next) {
        if (sub->id == id) {
            (void)ie_error_set(err, IE_EEXIST, "subscription %u exists", id);
            return IE_BUS_CODE_EXISTS;
        }
    }
    if (ie_pattern_check(request->pattern, err) != IE_OK ||
        (request->group[0] != '\0' && ie_topic_check(request->group, err) != IE_OK))
        return IE_BUS_CODE_INVALID;
    if ((request->flags & ~IE__SUBSCRIBE_FLAGS) != 0) {
        (void)ie_error_set(err, IE_ENOTSUP, "unknown flags %x", request->flags);
        return IE_BUS_CODE_UNSUPPORTED;
    }
    if (conn->sub_count >= server->options.subscriptions_per_client_max) {
        (void)ie_error_set(err, IE_ELIMIT, "subscriptions_per_client_max is reached");
        return IE_BUS_CODE_LIMIT;
    }
    if (server->sub_count >= server->options.subscriptions_max) {
        (void)ie_error_set(err, IE_ELIMIT, "subscriptions_max is reached");
        return IE_BUS_CODE_LIMIT;
    }
    if (server->is_draining) {
        (void)ie_error_set(err, IE_EUNREACHABLE, "the bus is shutting down");
        return IE_BUS_CODE_SHUTTING_DOWN;
    }
    return IE_BUS_CODE_NONE;
}

static void
subscribe_confirm(ie__conn *conn, const ie__sub *sub)
{
    ie_buffer   buffer = {NULL, 0, 0};
    ie__builder b;

    ie__build_begin(&b, &buffer, IE__SUBSCRIBED, sub->id);
    ie__build_u32(&b, IE__F_CREDIT, sub->credit);
    if (ie__build_end(&b) != IE_OK ||
        ie__stream_write(conn->stream, buffer.data, buffer.size) != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
    ie_buffer_fini(&buffer);
}

ie_status
ie__route_subscribe(ie__conn *conn, const ie__frame *frame)
{
    ie_bus_server    *server = conn->server;
    ie_error          err = IE_ERROR_INIT;
    subscribe_request request;
    ie__sub          *sub;
    ie_status         status;
    uint32_t          code;

    if (subscribe_parse(&request, frame) != IE_OK)
        return IE_EPROTO;
    code = subscribe_check(conn, frame->number, &request, &err);
    if (code != IE_BUS_CODE_NONE) {
        ie__conn_reason(conn, IE__SUBREFUSED, frame->number, code, err.message);
        return IE_OK;
    }
    sub = ie__calloc(1, sizeof *sub);
    if (sub == NULL) {
        ie__conn_reason(conn, IE__SUBREFUSED, frame->number, IE_BUS_CODE_MEMORY,
                        "no memory for a subscription");
        return IE_OK;
    }
    sub->conn = conn;
    sub->id = frame->number;
    sub->flags = request.flags;
    sub->credit = request.credit == 0 || request.credit > server->options.credit_max
                      ? server->options.credit_max
                      : request.credit;
    if (request.group[0] != '\0' || (request.flags & IE_BUS_SUBSCRIBE_ACK) != 0)
        status = group_join(server, request.group, request.pattern, sub);
    else
        status = ie__topics_add(server->topics, &sub->target.entry, request.pattern);
    if (status != IE_OK) {
        ie__free(sub);
        ie__conn_reason(conn, IE__SUBREFUSED, frame->number, IE_BUS_CODE_MEMORY,
                        "no memory for a subscription");
        return IE_OK;
    }
    sub->next = conn->subs;
    conn->subs = sub;
    conn->sub_count++;
    server->sub_count++;
    subscribe_confirm(conn, sub);
    if (sub->group != NULL)
        group_pump(server, sub->group); /* it may have been waiting for a member with credit */
    return IE_OK;
}

/* ---- publishing ----------------------------------------------------------------------------- */

/* Does this target get an event of this publisher? */
static bool
target_takes(const ie__target *target, const ie__conn *publisher)
{
    const ie__sub *sub;

    if (target->is_group) {
        const ie__group *group = (const ie__group *)(const void *)target;

        if (group->name[0] != '\0')
            return true;
        sub = group->members[0];
    } else {
        sub = (const ie__sub *)(const void *)target;
    }
    return !sub->conn->is_doomed &&
           (sub->conn != publisher || (sub->flags & IE_BUS_SUBSCRIBE_OWN) != 0);
}

/* May it be taken at all; how many groups and subscriptions will get it? */
static uint32_t
publish_check(const ie__conn *conn, const ie__topic_match *match, uint32_t flags, size_t size,
              uint32_t *receivers, uint32_t *groups)
{
    const ie_bus_server *server = conn->server;

    *receivers = *groups = 0;
    for (size_t i = 0; i < match->count; i++) {
        const ie__target *target = (const ie__target *)(const void *)match->entries[i];

        if (!target_takes(target, conn))
            continue;
        ++*receivers;
        if (!target->is_group)
            continue;
        ++*groups;
        if (group_is_full(server, (const ie__group *)(const void *)target, size))
            return IE_BUS_CODE_BUSY;
    }
    if (*receivers == 0 && (flags & IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER) != 0)
        return IE_BUS_CODE_NO_SUBSCRIBERS;
    if (*groups != 0 && conn->held_count >= server->options.publishes_in_flight_max)
        return IE_BUS_CODE_LIMIT;
    if (server->net.memory_bytes + server->held_bytes + size > server->options.memory_bytes_max)
        return IE_BUS_CODE_MEMORY;
    return IE_BUS_CODE_NONE;
}

static void
publish_deliver(ie__conn *conn, uint32_t request, const ie__topic_match *match,
                unsigned char *record, size_t size, uint32_t receivers, uint32_t groups)
{
    ie_bus_server *server = conn->server;
    ie__held      *held = NULL;
    ie__blob      *blob = NULL;

    if (groups != 0 || size >= IE__NET_SHARE_BYTES) {
        blob = ie__blob_new(size);
        if (blob != NULL)
            memcpy(blob->bytes, record, size);
        if (blob != NULL && groups != 0)
            held = held_new(conn, request, blob);
        if (blob == NULL || (groups != 0 && held == NULL)) {
            ie__blob_unref(blob);
            ie__conn_pubnack(conn, request, IE_BUS_CODE_MEMORY, "no memory for the event");
            return;
        }
    }
    if (held != NULL) {
        held->receivers = receivers;
        held->waiting = groups + 1; /* one for ourselves: no answer before the last was asked */
    }
    for (size_t i = 0; i < match->count; i++) {
        ie__target *target = (ie__target *)(void *)match->entries[i];

        if (!target_takes(target, conn))
            continue;
        if (target->is_group)
            group_push(server, (ie__group *)(void *)target, held);
        else
            deliver_live((ie__sub *)(void *)target, record, size, blob);
    }
    if (held != NULL)
        held_resolve(server, held, IE_BUS_CODE_NONE, NULL);
    else
        ie__conn_puback(conn, request, receivers);
    ie__blob_unref(blob);
}

void
ie__route_publish(ie__conn *conn, const ie__frame *frame)
{
    ie_bus_server  *server = conn->server;
    const uint32_t  flags = ie__get32(frame->body);
    unsigned char  *record = frame->body + 4;
    const size_t    size = frame->body_bytes - 4;
    ie_error        err = IE_ERROR_INIT;
    ie__topic_match match;
    ie_status       status;
    uint32_t        receivers;
    uint32_t        groups;
    uint32_t        code;

    server->stats.published++;
    if ((flags & ~IE__PUBLISH_FLAGS) != 0) {
        ie__conn_pubnack(conn, frame->number, IE_BUS_CODE_UNSUPPORTED, "unknown publish flags");
        return;
    }
    status = ie__record_parse(&server->record, record, size, server->options.data_bytes_max, &err);
    if (status == IE_OK)
        status = ie__topics_match(&match, server->topics, server->record.topic.bytes,
                                  server->record.topic.size, &err);
    if (status != IE_OK) {
        code = status == IE_ETOOBIG   ? IE_BUS_CODE_TOO_BIG
               : status == IE_ENOTSUP ? IE_BUS_CODE_UNSUPPORTED
               : status == IE_ENOMEM  ? IE_BUS_CODE_MEMORY
                                      : IE_BUS_CODE_INVALID;
        ie__conn_pubnack(conn, frame->number, code, err.message);
        return;
    }
    code = publish_check(conn, &match, flags, size, &receivers, &groups);
    if (code != IE_BUS_CODE_NONE) {
        static const char *const LIMITS[] = {[IE_BUS_CODE_LIMIT] =
                                                 "publishes_in_flight_max is reached",
                                             [IE_BUS_CODE_BUSY] = "the group's queue is full",
                                             [IE_BUS_CODE_MEMORY] = "memory_bytes_max is reached"};

        ie__conn_pubnack(conn, frame->number, code,
                         code == IE_BUS_CODE_NO_SUBSCRIBERS ? ie_bus_code_text(code)
                                                            : LIMITS[code]);
        return;
    }
    publish_deliver(conn, frame->number, &match, record, size, receivers, groups);
}

/* ---- answers of subscribers ----------------------------------------------------------------- */

static void
delivery_answer(ie__conn *conn, size_t index, uint32_t code, const char *reason)
{
    ie__delivery *delivery = delivery_at(conn, index);
    ie__held     *held = delivery->held;
    ie__sub      *sub = delivery->sub;

    if (held == NULL)
        return; /* taken back, or answered before */
    delivery->held = NULL;
    sub->outstanding--;
    sub->progress_ms = (int64_t)uv_now(&conn->server->loop);
    held_resolve(conn->server, held, code, reason);
    if (sub->group->queue_count > 0)
        group_pump(conn->server, sub->group);
}

ie_status
ie__route_ack(ie__conn *conn, const ie__frame *frame)
{
    const uint32_t base = conn->delivery_first;
    size_t         from = 0; /* ranges ascend: each delivery is looked at once per frame */
    const size_t   window = conn->delivery_count;

    if (frame->body_bytes == 0 || frame->body_bytes % 8 != 0)
        return IE_EPROTO;
    for (size_t at = 0; at < frame->body_bytes; at += 8) {
        const uint32_t first = ie__get32(frame->body + at) - base;
        uint32_t       count = ie__get32(frame->body + at + 4);

        if (count == 0)
            return IE_EPROTO;
        if (first >= window)
            continue; /* of a subscription that is gone */
        if (first < from)
            return IE_EPROTO;
        if (count > window - first)
            count = (uint32_t)(window - first);
        for (size_t i = first; i < (size_t)first + count; i++)
            delivery_answer(conn, i, IE_BUS_CODE_NONE, NULL);
        from = (size_t)first + count;
    }
    deliveries_pop(conn);
    return IE_OK;
}

void
ie__route_nack(ie__conn *conn, uint32_t number, const ie__reason *reason)
{
    const uint32_t index = number - conn->delivery_first;
    uint32_t       code = reason->code;

    /* Only what a handler can say; a subscriber does not speak for the bus. */
    if (code != IE_BUS_CODE_REJECTED && code != IE_BUS_CODE_UNAVAILABLE)
        code = IE_BUS_CODE_HANDLER;
    if (index < conn->delivery_count)
        delivery_answer(conn, index, code, reason->text);
    deliveries_pop(conn);
}

void
ie__route_resume(ie__conn *conn)
{
    for (ie__sub *sub = conn->subs; sub != NULL; sub = sub->next)
        if (sub->group != NULL)
            group_pump(conn->server, sub->group);
}

bool
ie__route_is_stuck(const ie__conn *conn, int64_t now_ms)
{
    for (const ie__sub *sub = conn->subs; sub != NULL; sub = sub->next)
        if (sub->outstanding > 0 &&
            now_ms - sub->progress_ms >= conn->server->options.ack_timeout_ms)
            return true;
    return false;
}
