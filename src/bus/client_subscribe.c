/* Subscriptions, from the call to the handler. */
#include "client_parts.h"

#include <errno.h>
#include <stdio.h>

#include "codes.h"

#define ACK_DELAY_NS 1000000 /* no answer to a delivery is kept longer while handlers run */

/* ---- memory ---- */

static subscription *
sub_new(const char *pattern, const char *group)
{
    const size_t  pattern_bytes = strlen(pattern) + 1;
    subscription *sub = ie__calloc(1, sizeof *sub + pattern_bytes);

    if (sub == NULL)
        return NULL;
    if (group != NULL && (sub->group = ie__strdup(group)) == NULL) {
        ie__free(sub);
        return NULL;
    }
    memcpy(sub->pattern, pattern, pattern_bytes);
    return sub;
}

static void
sub_free(subscription *sub)
{
    ie__free(sub->group);
    ie__free(sub);
}

void
ie__client_subs_free(ie_bus_client *client)
{
    while (client->subs != NULL) {
        subscription *sub = client->subs;

        client->subs = sub->next;
        sub_free(sub);
    }
}

/* ---- what the server is told ---- */

static void
send_subscribe(ie_bus_client *client, subscription *sub)
{
    ie_buffer   buffer = {NULL, 0, 0};
    ie__builder b;

    sub->is_known = true;
    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, sub->id);
    ie__build_text(&b, IE__F_PATTERN, sub->pattern);
    if (sub->group != NULL)
        ie__build_text(&b, IE__F_GROUP, sub->group);
    ie__build_u32(&b, IE__F_FLAGS, sub->flags);
    ie__build_u32(&b, IE__F_CREDIT, client->options.credit);
    ie__client_write_built(client, &buffer, &b);
}

void
ie__client_subs_ask(ie_bus_client *client)
{
    for (subscription *sub = client->subs; sub != NULL; sub = sub->next) {
        if (!sub->is_removed) {
            sub->state = SUB_ASKED;
            send_subscribe(client, sub);
        }
    }
}

void
ie__client_subs_forget(ie_bus_client *client)
{
    for (subscription *sub = client->subs; sub != NULL; sub = sub->next) {
        sub->is_known = false;
        sub->state = SUB_NEW; /* a refusal, too, is asked again */
    }
}

void
ie__client_subs_sync(ie_bus_client *client)
{
    subscription **link = &client->subs;
    subscription  *gone = NULL;

    client_lock(client);
    while (*link != NULL) {
        subscription *sub = *link;

        if (sub->is_removed) {
            *link = sub->next;
            sub->next = gone;
            gone = sub;
            continue;
        }
        if (client->phase == PHASE_OPEN && !sub->is_known) {
            sub->state = SUB_ASKED;
            send_subscribe(client, sub);
        }
        link = &sub->next;
    }
    client->commands_done++;
    (void)pthread_cond_broadcast(&client->changed);
    client_unlock(client);
    client->last_sub = NULL;
    while (gone != NULL) {
        subscription *sub = gone;

        gone = sub->next;
        if (sub->is_known && client->phase == PHASE_OPEN)
            ie__client_write_empty(client, IE__UNSUBSCRIBE, sub->id);
        sub_free(sub);
    }
}

/* ---- what became of it ---- */

static subscription *
find_sub(ie_bus_client *client, uint32_t id)
{
    subscription *sub = client->last_sub;

    if (sub != NULL && sub->id == id)
        return sub;
    client_lock(client);
    for (sub = client->subs; sub != NULL && sub->id != id; sub = sub->next) {
    }
    client_unlock(client);
    client->last_sub = sub; /* only the loop takes them out, and then forgets this one */
    return sub;
}

static void
sub_answered(ie_bus_client *client, uint32_t id, sub_state state, const ie__reason *reason)
{
    subscription *sub = find_sub(client, id);

    if (sub == NULL)
        return;
    client_lock(client);
    sub->state = state;
    if (reason != NULL) {
        sub->code = reason->code;
        (void)snprintf(sub->reason, sizeof sub->reason, "%.150s", reason->text);
    }
    (void)pthread_cond_broadcast(&client->changed);
    client_unlock(client);
    if (reason != NULL)
        ie__log(&client->options.logger, IE_LOG_ERROR, "client", "subscribe to %s: refused: %s",
                sub->pattern, reason->text);
}

ie_status
ie__client_on_subscribed(ie_bus_client *client, const ie__frame *frame)
{
    sub_answered(client, frame->number, SUB_CONFIRMED, NULL);
    return IE_OK;
}

ie_status
ie__client_on_subrefused(ie_bus_client *client, const ie__frame *frame)
{
    subscription *sub;
    ie__reason    reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return ie__client_broken(client, "a malformed refusal");
    if (reason.code == IE_BUS_CODE_MEMORY && (sub = find_sub(client, frame->number)) != NULL)
        sub->is_known = false; /* that passes: the heartbeat asks again */
    else
        sub_answered(client, frame->number, SUB_REFUSED, &reason);
    return IE_OK;
}

ie_status
ie__client_on_unsubscribed(ie_bus_client *client, const ie__frame *frame)
{
    (void)client; /* we forgot it when we asked */
    (void)frame;
    return IE_OK;
}

/* ---- deliveries ---- */

void
ie__client_acks_flush(ie_bus_client *client)
{
    unsigned char  frame[IE__PREFIX_BYTES + 8 * ACK_RUNS];
    unsigned char *at = frame + IE__PREFIX_BYTES;

    if (client->ack_count == 0)
        return;
    ie__frame_prefix(frame, IE__ACK, 0, 8 * client->ack_count);
    for (size_t i = 0; i < client->ack_count; i++, at += 8) {
        ie__put32(at, client->acks[i].first);
        ie__put32(at + 4, client->acks[i].count);
    }
    client->ack_count = 0;
    ie__client_write(client, frame, (size_t)(at - frame));
}

static void
ack_delivery(ie_bus_client *client, uint32_t number)
{
    const size_t last = client->ack_count - 1;

    if (client->ack_count != 0 && client->acks[last].first + client->acks[last].count == number) {
        client->acks[last].count++;
        return;
    }
    if (client->ack_count == ACK_RUNS)
        ie__client_acks_flush(client);
    client->acks[client->ack_count].first = number;
    client->acks[client->ack_count++].count = 1;
    ie__stream_touch(client->stream);
}

static void
nack_delivery(ie_bus_client *client, uint32_t number, ie_status status)
{
    unsigned char  frame[IE__REASON_FRAME_MAX];
    const uint32_t code = status == IE_EREFUSED       ? IE_BUS_CODE_REJECTED
                          : status == IE_EUNREACHABLE ? IE_BUS_CODE_UNAVAILABLE
                                                      : IE_BUS_CODE_HANDLER;
    char           text[160];

    (void)snprintf(text, sizeof text, "handler of %s: %s", client->name, ie_status_text(status));
    ie__client_acks_flush(client); /* answers leave in the order of the deliveries */
    ie__client_write(client, frame, ie__reason_frame(frame, IE__NACK, number, code, text));
}

/* While handlers take their time, the answers of those that are done must not wait. */
static void
acks_flush_late(ie_bus_client *client)
{
    int64_t now;

    if (client->ack_count == 0)
        return;
    now = ie__mono_ns();
    if (now - client->ack_since_ns <= ACK_DELAY_NS)
        return;
    client->ack_since_ns = now;
    ie__client_acks_flush(client);
    if (client->stream != NULL)
        ie__stream_flush(client->stream);
}

ie_status
ie__client_on_deliver(ie_bus_client *client, const ie__frame *frame)
{
    const bool    is_acked = frame->type == IE__DELIVER_ACK;
    subscription *sub = find_sub(client, frame->number);
    ie_error      err = IE_ERROR_INIT;
    ie_event      event;
    ie_status     status;
    uint32_t      number;

    if (frame->body_bytes < 4)
        return ie__client_broken(client, "a malformed delivery");
    if (ie__record_parse(&client->record, frame->body + 4, frame->body_bytes - 4, IE_DATA_BYTES_MAX,
                         &err) != IE_OK)
        return ie__client_broken(client, "a malformed event");
    if (sub == NULL || sub->is_muted)
        return IE_OK; /* unsubscribed: the server takes it back by itself */
    number = ie__get32(frame->body);
    ie__record_event(&event, &client->record);
    status = sub->handler(sub->user, &event);
    if (!is_acked) {
        if (status != IE_OK)
            ie__log(&client->options.logger, IE_LOG_WARN, "client", "handler of %s: %s",
                    sub->pattern, ie_status_text(status));
        return IE_OK;
    }
    if (status == IE_OK)
        ack_delivery(client, number);
    else
        nack_delivery(client, number, status);
    acks_flush_late(client);
    return client->stream != NULL ? IE_OK : IE_ECLOSED;
}

/* ---- public ---- */

ie_status
ie_bus_client_subscribe(ie_bus_client *client, const char *pattern, const char *group,
                        uint32_t flags, ie_bus_event_fn handler, void *user, uint32_t *id,
                        ie_error *err)
{
    subscription **link;
    subscription  *sub;
    bool           must_wake;

    if (ie_pattern_check(pattern, err) != IE_OK)
        return IE_EINVAL;
    if (group != NULL && ie_topic_check(group, NULL) != IE_OK)
        return ie_error_set(err, IE_EINVAL, "group: not a name like a topic's");
    if (handler == NULL || (flags & ~IE__SUBSCRIBE_FLAGS) != 0)
        return ie_error_set(err, IE_EINVAL,
                            handler == NULL ? "handler is NULL" : "unknown subscribe flags");
    sub = sub_new(pattern, group);
    if (sub == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a subscription");
    sub->handler = handler;
    sub->user = user;
    sub->flags = flags;

    client_lock(client);
    if (client->is_closing) {
        client_unlock(client);
        sub_free(sub);
        return ie_error_set(err, IE_ECLOSED, "the client was closed");
    }
    sub->id = ++client->next_sub;
    if (id != NULL)
        *id = sub->id;
    for (link = &client->subs; *link != NULL; link = &(*link)->next) {
    }
    *link = sub;
    must_wake = client_signal(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    return IE_OK;
}

ie_status
ie_bus_client_wait_subscribed(ie_bus_client *client, uint32_t timeout_ms, ie_error *err)
{
    const struct timespec deadline = ie__client_deadline(timeout_ms);
    ie_status             status = IE_OK;
    bool                  is_timeout = false;

    if (on_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    client_lock(client);
    for (;;) {
        const subscription *open = NULL;

        for (const subscription *sub = client->subs; sub != NULL && status == IE_OK;
             sub = sub->next) {
            if (sub->state == SUB_REFUSED && !sub->is_removed)
                status = ie_error_set(err, ie__bus_code_status(sub->code), "subscribe to %s: %s",
                                      sub->pattern, sub->reason);
            else if (sub->state != SUB_CONFIRMED && !sub->is_removed)
                open = sub;
        }
        if (status != IE_OK || open == NULL)
            break;
        if (client->is_closing) {
            status = ie_error_set(err, IE_ECLOSED, "the client was closed");
            break;
        }
        if (is_timeout) {
            status = ie_error_set(err, IE_ETIMEDOUT, "subscribe to %s: %s", open->pattern,
                                  client->is_offline ? client->reason : "not confirmed yet");
            break;
        }
        is_timeout =
            pthread_cond_timedwait(&client->changed, &client->mutex, &deadline) == ETIMEDOUT;
    }
    client_unlock(client);
    return status;
}

ie_status
ie_bus_client_unsubscribe(ie_bus_client *client, uint32_t id, ie_error *err)
{
    subscription *sub;
    uint64_t      rounds;
    bool          must_wake;

    client_lock(client);
    for (sub = client->subs; sub != NULL && (sub->id != id || sub->is_removed); sub = sub->next) {
    }
    if (sub == NULL) {
        client_unlock(client);
        return ie_error_set(err, IE_ENOTFOUND, "no subscription %u", id);
    }
    sub->is_removed = true;
    rounds = client->commands_done;
    must_wake = client_signal(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    if (on_own_thread(client)) {
        sub->is_muted = true; /* what is left of this turn's input is not for it */
        return IE_OK;
    }
    client_lock(client);
    while (client->commands_done == rounds && !client->is_closed)
        (void)pthread_cond_wait(&client->changed, &client->mutex);
    client_unlock(client);
    return IE_OK;
}
