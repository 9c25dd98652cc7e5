/*
 * The way of an event: from a publish to every subscription that matches, and back to its answer.
 *
 * Invariant: a held publish is counted once for each group that has not answered, and each of
 * those has one of its items.
 */
#include "auth.h"
#include "query.h"

#include "durable.h"
#include "eb1.h"

/* ---- held publishes ------------------------------------------------------------------------- */

static void held_done(ie__group *group, ie__item *item, const ie__outcome *outcome);

static const ie__feeder HELD_FEEDER = {held_done, NULL};

static ie__held *
held_new(ie_bus_server *server, ie__conn *publisher, uint32_t request, ie__blob *record,
         uint32_t groups)
{
    ie__held *held = ie__calloc(1, sizeof *held + groups * sizeof(ie__item));

    if (held == NULL)
        return NULL;
    for (uint32_t i = 0; i < groups; i++) {
        held->items[i].feeder = &HELD_FEEDER;
        held->items[i].owner = held;
        held->items[i].record = record;
    }
    held->publisher = publisher;
    held->request = request;
    held->record = record;
    ie__blob_ref(record);
    server->held_count++;
    server->held_bytes += record->size;
    if (publisher == NULL)
        return held;
    held->next = publisher->held;
    if (publisher->held != NULL)
        publisher->held->prev = held;
    publisher->held = held;
    publisher->held_count++;
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
    if (held->is_eb1 && held->code != IE_BUS_CODE_NONE)
        server->stats.eb1_dropped++; /* nobody to tell */
    held_unlink(held);
    server->held_count--;
    server->held_bytes -= held->record->size;
    ie__blob_unref(held->record);
    ie__free(held->reason);
    ie__free(held);
}

static void
held_done(ie__group *group, ie__item *item, const ie__outcome *outcome)
{
    held_resolve(group->server, item->owner, outcome->code, outcome->reason);
}

/* ---- live subscribers ----------------------------------------------------------------------- */

void
ie__conn_send_record(ie__conn *conn, ie__frame_type type, uint32_t number,
                     const unsigned char *head, size_t head_bytes, const unsigned char *record,
                     size_t size, ie__blob *blob)
{
    const bool     is_shared = size >= IE__NET_SHARE_BYTES && blob != NULL;
    unsigned char *at =
        ie__stream_reserve(conn->stream, IE__PREFIX_BYTES + head_bytes + (is_shared ? 0 : size));

    if (at == NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        return;
    }
    ie__frame_prefix(at, type, number, head_bytes + size);
    memcpy(at + IE__PREFIX_BYTES, head, head_bytes);
    if (!is_shared)
        memcpy(at + IE__PREFIX_BYTES + head_bytes, record, size);
    else if (ie__stream_write_blob(conn->stream, blob) != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
    conn->server->stats.delivered++;
}

/* All queues together are too long: the longest goes. */
void
ie__route_shed_longest(ie_bus_server *server)
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
    if (longest->eb1 != NULL)
        ie__eb1_drop_unsent(longest);
    else
        ie__stream_drop_unsent(longest->stream); /* at once, or the next publish sheds another */
}

static void
deliver_live(ie__sub *sub, ie__conn *publisher, const unsigned char *record, size_t size,
             ie__blob *blob)
{
    static const unsigned char NO_NUMBER[4];
    ie__conn                  *conn = sub->conn;
    ie_bus_server             *server = conn->server;
    const size_t               pending = ie__stream_pending(conn->stream) + size;

    if (conn->is_doomed)
        return;
    if (pending > server->options.out_bytes_max) {
        ie__conn_doom(conn, IE_BUS_CODE_SLOW, "it does not read: out_bytes_max is reached");
        ie__stream_drop_unsent(conn->stream);
        return;
    }
    if (server->net.pending_bytes + size > server->options.out_bytes_total_max) {
        ie__route_shed_longest(server);
        if (conn->is_doomed)
            return;
    }
    ie__conn_send_record(conn, IE__DELIVER, sub->id, NO_NUMBER, sizeof NO_NUMBER, record, size,
                         blob);
    ie__stall_check(publisher, conn);
}

/* ---- a subscription's end ------------------------------------------------------------------- */

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
        ie__group_leave(sub, IE_BUS_CODE_SUBSCRIBER_GONE, GONE);
        ie__deliveries_take_back(conn, sub, IE_BUS_CODE_SUBSCRIBER_GONE, GONE);
        ie__group_settle(sub->group, IE_BUS_CODE_SUBSCRIBER_GONE, GONE);
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
    ie__durable_leave(conn);
    for (ie__sub *sub = conn->subs; sub != NULL; sub = sub->next) {
        if (sub->group != NULL)
            ie__group_leave(sub, code,
                            reason); /* all first: nothing may come back to this connection */
        else
            ie__topics_remove(conn->server->topics, &sub->target.entry);
    }
    ie__deliveries_take_back(conn, NULL, code, reason);
    while (conn->subs != NULL) {
        ie__sub   *sub = conn->subs;
        ie__group *group = sub->group;
        bool       is_last = true;

        /* two members of this connection in one group: settle it once, at the last */
        for (const ie__sub *other = sub->next; other != NULL; other = other->next)
            is_last = is_last && other->group != group;
        if (group != NULL && is_last)
            ie__group_settle(group, code, reason);
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
    uint32_t selection;
    uint32_t start; /* of a durable group, as the rest */
    uint32_t ack_timeout_ms;
    uint32_t attempts_max;
    int64_t  start_at;
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
        case IE__F_SELECTION: status = ie__field_u32(&out->selection, &field); break;
        case IE__F_START: status = ie__field_u32(&out->start, &field); break;
        case IE__F_START_AT: status = ie__field_i64(&out->start_at, &field); break;
        case IE__F_ACK_TIMEOUT: status = ie__field_u32(&out->ack_timeout_ms, &field); break;
        case IE__F_ATTEMPTS: status = ie__field_u32(&out->attempts_max, &field); break;
        default: status = field.tag >= IE__FIELD_OPTIONAL ? IE_OK : IE_EPROTO; break;
        }
        if (status != IE_OK)
            return IE_EPROTO;
    }
    return status == IE_ENOTFOUND ? IE_OK : IE_EPROTO;
}

static size_t
words_of(const char *pattern)
{
    size_t words = 1;

    for (; *pattern != '\0'; pattern++)
        words += *pattern == '.';
    return words;
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
    if (ie__query_has_responder(conn, id)) {
        (void)ie_error_set(err, IE_EEXIST, "subscription %u exists", id);
        return IE_BUS_CODE_EXISTS;
    }
    if (request->pattern[0] == '$') {
        (void)ie_error_set(err, IE_EDENIED, "names that begin with '$' are the bus's own");
        return IE_BUS_CODE_DENIED;
    }
    if (ie_pattern_check(request->pattern, err) != IE_OK ||
        (request->group[0] != '\0' && ie_topic_check(request->group, err) != IE_OK))
        return IE_BUS_CODE_INVALID;
    if (words_of(request->pattern) > IE_BUS_PATTERN_WORDS_MAX) {
        (void)ie_error_set(err, IE_ELIMIT, "pattern: more than %d words", IE_BUS_PATTERN_WORDS_MAX);
        return IE_BUS_CODE_LIMIT;
    }
    if ((request->flags & ~IE__SUBSCRIBE_FLAGS) != 0 && request->flags != IE__SUBSCRIBE_ANSWERS) {
        (void)ie_error_set(err, IE_ENOTSUP, "unknown flags %x", request->flags);
        return IE_BUS_CODE_UNSUPPORTED;
    }
    if (request->selection > IE_BUS_BROADCAST) {
        (void)ie_error_set(err, IE_ENOTSUP, "unknown selection %u", request->selection);
        return IE_BUS_CODE_UNSUPPORTED;
    }
    if (request->selection != 0 && request->group[0] == '\0') {
        (void)ie_error_set(err, IE_EINVAL, "a selection without a group to select in");
        return IE_BUS_CODE_INVALID;
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
    if (sub->group != NULL && sub->group->is_durable)
        ie__build_i64(&b, IE__F_POSITION, ie__durable_position(sub));
    if (ie__build_end(&b) != IE_OK ||
        ie__stream_write(conn->stream, buffer.data, buffer.size) != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
    ie_buffer_fini(&buffer);
}

static uint32_t
subscribe_may(ie__sub *sub, const subscribe_request *request, ie_error *err)
{
    const bool is_live = request->group[0] == '\0' && (request->flags & IE_BUS_SUBSCRIBE_ACK) == 0;

    if (ie__may_pattern(sub->conn, IE__MAY_SUBSCRIBE, request->pattern, is_live, &sub->is_narrowed))
        return IE_BUS_CODE_NONE;
    (void)ie_error_set(err, IE_EDENIED,
                       is_live ? "no right to any topic of this pattern"
                               : "no right to every topic of this pattern, which a subscription "
                                 "that acknowledges needs");
    return IE_BUS_CODE_DENIED;
}

static bool
is_durable_name(const ie_bus_server *server, const subscribe_request *request)
{
    const ie__group *group = ie__group_find(server, request->group, request->pattern);

    return group != NULL && group->is_durable;
}

/* Make it take part: in the index, or in its group. */
static uint32_t
subscribe_enter(ie__sub *sub, const subscribe_request *request, ie_error *err)
{
    ie_bus_server *server = sub->conn->server;

    if (server->durable != NULL && request->group[0] != '\0' &&
        (request->flags & IE_BUS_SUBSCRIBE_EPHEMERAL) == 0) {
        const ie__durable_request durable = {
            .name = request->group,
            .pattern = request->pattern,
            .selection = (ie_bus_selection)request->selection,
            .start = (ie_bus_start)request->start,
            .start_at = request->start_at,
            .ack_timeout_ms = request->ack_timeout_ms,
            .attempts_max = request->attempts_max,
        };

        return ie__durable_join(sub, &durable, err);
    }
    if (request->group[0] != '\0' && is_durable_name(server, request)) {
        (void)ie_error_set(err, IE_ECONFLICT, "the group %s exists and is durable", request->group);
        return IE_BUS_CODE_CONFLICT;
    }
    if (request->group[0] != '\0' || (request->flags & IE_BUS_SUBSCRIBE_ACK) != 0)
        return ie__group_join(server, request->group, request->pattern,
                              (ie_bus_selection)request->selection, sub, err);
    if (ie__topics_add(server->topics, &sub->target.entry, request->pattern) == IE_OK)
        return IE_BUS_CODE_NONE;
    (void)ie_error_set(err, IE_ENOMEM, "no memory for a subscription");
    return IE_BUS_CODE_MEMORY;
}

ie_status
ie__route_subscribe(ie__conn *conn, const ie__frame *frame)
{
    ie_bus_server    *server = conn->server;
    ie_error          err = IE_ERROR_INIT;
    subscribe_request request;
    ie__sub          *sub = NULL;
    uint32_t          code;

    if (subscribe_parse(&request, frame) != IE_OK)
        return IE_EPROTO;
    code = subscribe_check(conn, frame->number, &request, &err);
    if (code == IE_BUS_CODE_NONE && request.flags == IE__SUBSCRIBE_ANSWERS) {
        bool is_narrowed;

        if (!ie__may_pattern(conn, IE__MAY_SERVE, request.pattern, false, &is_narrowed)) {
            ie__conn_reason(conn, IE__SUBREFUSED, frame->number, IE_BUS_CODE_DENIED,
                            "no right to serve every topic of this pattern");
            return IE_OK;
        }
        ie__query_serve(conn, frame->number, request.pattern, request.group, request.credit);
        return IE_OK;
    }
    if (code == IE_BUS_CODE_NONE && (sub = ie__calloc(1, sizeof *sub)) == NULL) {
        code = IE_BUS_CODE_MEMORY;
        (void)ie_error_set(&err, IE_ENOMEM, "no memory for a subscription");
    }
    if (code == IE_BUS_CODE_NONE) {
        sub->conn = conn;
        sub->id = frame->number;
        sub->flags = request.flags;
        sub->credit = request.credit == 0 || request.credit > server->options.credit_max
                          ? server->options.credit_max
                          : request.credit;
        code = subscribe_may(sub, &request, &err);
    }
    if (code == IE_BUS_CODE_NONE)
        code = subscribe_enter(sub, &request, &err);
    if (code != IE_BUS_CODE_NONE) {
        ie__free(sub);
        ie__conn_reason(conn, IE__SUBREFUSED, frame->number, code, err.message);
        return IE_OK;
    }
    sub->next = conn->subs;
    conn->subs = sub;
    conn->sub_count++;
    server->sub_count++;
    if (sub->is_unconfirmed)
        return IE_OK;
    subscribe_confirm(conn, sub);
    if (sub->group != NULL)
        ie__group_pump(sub->group); /* it may have been waiting for a member with credit */
    return IE_OK;
}

void
ie__route_confirm(ie__sub *sub)
{
    if (sub->conn->state == IE__CONN_OPEN)
        subscribe_confirm(sub->conn, sub);
}

void
ie__route_refuse(ie__sub *sub, uint32_t code, const char *reason)
{
    ie__conn      *conn = sub->conn;
    const uint32_t id = sub->id;

    ie__route_unsubscribe(conn, id);
    if (conn->state == IE__CONN_OPEN)
        ie__conn_reason(conn, IE__SUBREFUSED, id, code, reason);
}

/* ---- publishing ----------------------------------------------------------------------------- */

/* Does this target get an event of this publisher? */
static bool
target_takes(const ie__target *target, const ie__conn *publisher)
{
    const ie__sub *sub;

    if (target->is_eb1)
        return ie__eb1_event_takes(target);
    if (target->is_group) {
        const ie__group *group = (const ie__group *)(const void *)target;

        if (group->member_count == 0)
            return false; /* a durable one: its members are away */
        if (group->name[0] != '\0')
            return true;
        sub = group->members[0];
    } else {
        sub = (const ie__sub *)(const void *)target;
    }
    if (sub->is_narrowed && !ie__may_receive(sub->conn, publisher->server->record.topic.bytes,
                                             publisher->server->record.topic.size))
        return false;
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
        if (target->is_eb1 && !ie__eb1_event_fits(server->record.data.size))
            return IE_BUS_CODE_TOO_BIG;
        if (!target->is_group)
            continue;
        ++*groups;
        if (ie__group_is_full((const ie__group *)(const void *)target, size))
            return IE_BUS_CODE_BUSY;
    }
    if (*receivers == 0 && (flags & IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER) != 0)
        return IE_BUS_CODE_NO_SUBSCRIBERS;
    if (*groups != 0 && conn->held_count >= server->options.publishes_in_flight_max)
        return IE_BUS_CODE_LIMIT;
    if (ie__server_memory(server) + size > server->options.memory_bytes_max)
        return IE_BUS_CODE_MEMORY;
    return IE_BUS_CODE_NONE;
}

/* The next of its items goes to a group. */
static void
held_push(ie__held *held, ie__group *group)
{
    const ie__record *record = &group->server->record;
    ie__item         *item = &held->items[held->pushed++];

    if (group->selection == IE_BUS_HASH || group->selection == IE_BUS_STICKY) {
        const ie__span *span = &record->texts[IE__E_KEY];

        if (span->bytes == NULL)
            span = &record->texts[IE__E_ID];
        item->key = span->bytes != NULL ? ie__item_key(span->bytes, span->size) : 0;
    }
    if (!ie__group_push(group, item))
        held_resolve(group->server, held, IE_BUS_CODE_MEMORY, "no memory for a delivery");
}

static void
publish_deliver(ie__conn *conn, uint32_t request, const ie__topic_match *match,
                unsigned char *record, size_t size, uint32_t receivers, uint32_t groups)
{
    static const char NO_EB1[] = "no member of eb/1 could take it";
    ie_bus_server    *server = conn->server;
    ie__held         *held = NULL;
    ie__blob         *blob = NULL;
    ie__target       *eb1 = NULL;
    uint32_t          code = IE_BUS_CODE_NONE;

    if (groups != 0 || size >= IE__NET_SHARE_BYTES) {
        blob = ie__blob_new(size);
        if (blob != NULL)
            memcpy(blob->bytes, record, size);
        if (blob != NULL && groups != 0)
            held = held_new(server, conn, request, blob, groups);
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
        if (target->is_eb1)
            eb1 = target; /* last: it may end members, and with them entries of the index */
        else if (target->is_group)
            held_push(held, (ie__group *)(void *)target);
        else
            deliver_live((ie__sub *)(void *)target, conn, record, size, blob);
    }
    if (eb1 != NULL && !ie__eb1_from_topic(eb1, conn))
        code = IE_BUS_CODE_SUBSCRIBER_GONE;
    if (held != NULL)
        held_resolve(server, held, code, NO_EB1);
    else if (code != IE_BUS_CODE_NONE)
        ie__conn_pubnack(conn, request, code, NO_EB1);
    else
        ie__conn_puback(conn, request, receivers);
    ie__blob_unref(blob);
}

static bool
is_durable_group(const ie__target *target)
{
    return target->is_group && ((const ie__group *)(const void *)target)->is_durable;
}

/* May it be stored; who gets it, and how many ephemeral groups of those. */
static uint32_t
store_check(const ie__conn *conn, const ie__topic_match *match, size_t size, uint32_t *receivers,
            uint32_t *groups, const char **reason)
{
    const ie_bus_server *server = conn->server;

    *receivers = *groups = 0;
    for (size_t i = 0; i < match->count; i++) {
        const ie__target *target = (const ie__target *)(const void *)match->entries[i];

        if (is_durable_group(target)) {
            ++*receivers;
        } else if (target_takes(target, conn)) {
            ++*receivers;
            *groups += target->is_group;
            if (target->is_group &&
                ie__group_is_full((const ie__group *)(const void *)target, size)) {
                *reason = "the group's queue is full";
                return IE_BUS_CODE_BUSY;
            }
        }
    }
    if (ie__server_memory(server) + size > server->options.memory_bytes_max) {
        *reason = "memory_bytes_max is reached";
        return IE_BUS_CODE_MEMORY;
    }
    return ie__durable_check(conn, size, reason);
}

/* Who is there gets it now, so that a sync stalls nobody, and is not waited for. */
static void
store_fan_out(ie__conn *conn, const ie__topic_match *match, ie__blob *blob, ie__held *held)
{
    ie__target *eb1 = NULL;

    for (size_t i = 0; i < match->count; i++) {
        ie__target *target = (ie__target *)(void *)match->entries[i];

        if (is_durable_group(target) || !target_takes(target, conn))
            continue; /* durable groups get it from the log */
        if (target->is_eb1)
            eb1 = target; /* last, as in publish_deliver() */
        else if (target->is_group)
            held_push(held, (ie__group *)(void *)target);
        else
            deliver_live((ie__sub *)(void *)target, conn, blob->bytes, blob->size, blob);
    }
    if (eb1 != NULL)
        (void)ie__eb1_from_topic(eb1, conn);
}

/* A publish that is stored, and answered when it is. */
static void
publish_store(ie__conn *conn, uint32_t request, const ie__topic_match *match,
              const unsigned char *record, size_t size)
{
    ie_bus_server *server = conn->server;
    const char    *reason = NULL;
    uint32_t       receivers;
    uint32_t       groups;
    uint32_t       code = store_check(conn, match, size, &receivers, &groups, &reason);
    ie__held      *held = NULL;
    ie__blob      *blob = NULL;

    if (code == IE_BUS_CODE_NONE) {
        blob = ie__durable_record(server, record, size);
        if (blob != NULL && groups != 0)
            held = held_new(server, NULL, request, blob, groups);
        if (blob == NULL || (groups != 0 && held == NULL) ||
            !ie__durable_publish(server, conn, request, blob, receivers)) {
            code = IE_BUS_CODE_MEMORY;
            reason = "no memory for the event";
        }
    }
    if (held != NULL)
        held->waiting = code == IE_BUS_CODE_NONE ? groups + 1 : 1;
    if (code == IE_BUS_CODE_NONE)
        store_fan_out(conn, match, blob, held);
    else
        ie__conn_pubnack(conn, request, code, reason);
    if (held != NULL)
        held_resolve(server, held, IE_BUS_CODE_NONE, NULL);
    ie__blob_unref(blob);
}

void
ie__route_publish(ie__conn *conn, const ie__frame *frame)
{
    ie_bus_server  *server = conn->server;
    const uint32_t  flags = ie__get32(frame->body);
    unsigned char  *record = frame->body + 4;
    const size_t    size = frame->body_bytes - 4;
    ie_error        err;
    ie__topic_match match;
    ie_status       status;
    uint32_t        receivers;
    uint32_t        groups;
    uint32_t        code;

    ie__error_begin(&err);
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
        if (code == IE_BUS_CODE_INVALID && server->record.topic.bytes != NULL &&
            server->record.topic.bytes[0] == '$')
            code = IE_BUS_CODE_DENIED; /* a topic of the bus's own */
        ie__conn_pubnack(conn, frame->number, code, err.message);
        return;
    }
    if (!ie__may(conn, IE__MAY_PUBLISH, server->record.topic.bytes, server->record.topic.size)) {
        ie__conn_pubnack(conn, frame->number, IE_BUS_CODE_DENIED,
                         "no right to publish to this topic");
        return;
    }
    if (ie__durable_takes(server, server->record.topic.bytes, server->record.topic.size, flags)) {
        publish_store(conn, frame->number, &match, record, size);
        return;
    }
    code = publish_check(conn, &match, flags, size, &receivers, &groups);
    if (code != IE_BUS_CODE_NONE) {
        static const char *const LIMITS[] = {
            [IE_BUS_CODE_LIMIT] = "publishes_in_flight_max is reached",
            [IE_BUS_CODE_BUSY] = "the group's queue is full",
            [IE_BUS_CODE_TOO_BIG] = "too big for its members of eb/1",
            [IE_BUS_CODE_MEMORY] = "memory_bytes_max is reached"};

        ie__conn_pubnack(conn, frame->number, code,
                         code == IE_BUS_CODE_NO_SUBSCRIBERS ? ie_bus_code_text(code)
                                                            : LIMITS[code]);
        return;
    }
    publish_deliver(conn, frame->number, &match, record, size, receivers, groups);
}

/* ---- events of eb/1 ------------------------------------------------------------------------- */

/* A target that may get it, and is no member of eb/1: those have it already. */
static bool
inject_takes(ie__conn *from, const ie__target *target, const ie__conn *only, bool is_stored,
             size_t size)
{
    if (target->is_eb1 || !target_takes(target, from) || (is_stored && is_durable_group(target)))
        return false;
    if (!target->is_group)
        return only == NULL || ((const ie__sub *)(const void *)target)->conn == only;
    if (only != NULL)
        return false;
    if (!ie__group_is_full((const ie__group *)(const void *)target, size))
        return true;
    ie__eb1_drop(from->eb1, "the queue of a group of eb/2 is full");
    return false;
}

/* What was chosen, in match->entries, gets it. */
static bool
inject_deliver(ie__conn *from, const ie__topic_match *match, ie__blob *blob, uint32_t groups)
{
    ie_bus_server *server = from->server;
    ie__held      *held = groups != 0 ? held_new(server, NULL, 0, blob, groups) : NULL;
    bool           is_heard = held != NULL;

    if (held != NULL) {
        held->is_eb1 = true;
        held->waiting = groups + 1;
    } else if (groups != 0) {
        ie__eb1_drop(from->eb1, "no memory for the groups of eb/2");
    }
    for (size_t i = 0; i < match->count; i++) {
        ie__target *target = (ie__target *)(void *)match->entries[i];

        if (target->is_group) {
            if (held != NULL)
                held_push(held, (ie__group *)(void *)target);
            continue;
        }
        deliver_live((ie__sub *)(void *)target, from, blob->bytes, blob->size, blob);
        is_heard |= !((ie__sub *)(void *)target)->conn->is_doomed;
    }
    if (held != NULL)
        held_resolve(server, held, IE_BUS_CODE_NONE, NULL);
    return is_heard;
}

bool
ie__route_inject(ie__conn *from, const ie_event *event, const ie__conn *only, bool is_stored)
{
    ie_bus_server  *server = from->server;
    const size_t    size = ie__record_size(event);
    ie__blob       *blob = ie__blob_new(size);
    ie__topic_match match;
    uint32_t        groups = 0;
    size_t          chosen = 0;
    bool            is_heard = false;

    if (blob == NULL)
        return false;
    (void)ie__record_put(blob->bytes, event);
    if (ie__record_parse(&server->record, blob->bytes, size, server->options.data_bytes_max,
                         NULL) == IE_OK &&
        ie__topics_match(&match, server->topics, event->topic, strlen(event->topic), NULL) ==
            IE_OK) {
        ie__topic_match taken = {ie__realloc_array(NULL, match.count + 1, sizeof *match.entries),
                                 0};

        for (size_t i = 0; taken.entries != NULL && i < match.count; i++) {
            ie__target *target = (ie__target *)(void *)match.entries[i];

            if (!inject_takes(from, target, only, is_stored, size))
                continue;
            taken.entries[chosen++] = match.entries[i];
            groups += target->is_group;
        }
        taken.count = chosen;
        if (chosen != 0)
            is_heard = inject_deliver(from, &taken, blob, groups);
        ie__free(taken.entries);
    }
    ie__blob_unref(blob);
    return is_heard;
}

/* ---- draining ------------------------------------------------------------------------------- */

void
ie__route_resume(ie__conn *conn)
{
    for (ie__sub *sub = conn->subs; sub != NULL; sub = sub->next)
        if (sub->group != NULL)
            ie__group_pump_member(sub);
}
