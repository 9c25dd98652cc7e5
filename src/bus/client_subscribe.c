/* Subscriptions, from the call to the handler. */
#include "client_parts.h"

#include <errno.h>
#include <stdio.h>

#include "codes.h"

#define SUBSCRIBE_FLAGS                                                                            \
    (IE_BUS_SUBSCRIBE_ACK | IE_BUS_SUBSCRIBE_OWN | IE_BUS_SUBSCRIBE_EPHEMERAL |                    \
     IE_BUS_SUBSCRIBE_MANUAL)

/* ---- memory ---- */

subscription *
ie__client_sub_new(const char *pattern, const char *group)
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

void
ie__client_sub_free(subscription *sub)
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
        ie__client_sub_free(sub);
    }
}

/* ---- what the server is told ---- */

static void
send_subscribe(ie_bus_client *client, subscription *sub)
{
    const bool  is_storing = (client->capabilities & IE__CAP_STORAGE) != 0;
    ie_buffer   buffer = {NULL, 0, 0};
    ie__builder b;

    sub->is_known = true;
    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, sub->id);
    ie__build_text(&b, IE__F_PATTERN, sub->pattern);
    if (sub->group != NULL)
        ie__build_text(&b, IE__F_GROUP, sub->group);
    ie__build_u32(&b, IE__F_FLAGS,
                  is_storing ? sub->flags : sub->flags & ~IE_BUS_SUBSCRIBE_EPHEMERAL);
    ie__build_u32(&b, IE__F_CREDIT, sub->credit);
    if (sub->selection != IE_BUS_ROUND_ROBIN)
        ie__build_u32(&b, IE__F_SELECTION, (uint32_t)sub->selection);
    /* A bus that does not store knows neither these nor what they are about. */
    if (!is_storing) {
        if (sub->start != IE_BUS_START_GROUP)
            ie__log(&client->options.logger, IE_LOG_WARN, "client",
                    "subscribe to %s: %s does not store, so group %s has no place in a log",
                    sub->pattern, client->url, sub->group);
        ie__client_write_built(client, &buffer, &b);
        return;
    }
    if (sub->start != IE_BUS_START_GROUP && !sub->was_confirmed) {
        ie__build_u32(&b, IE__F_START, (uint32_t)sub->start);
        if (sub->start == IE_BUS_START_POSITION || sub->start == IE_BUS_START_TIME)
            ie__build_i64(&b, IE__F_START_AT, sub->start_at);
    }
    if (sub->ack_timeout_ms != 0)
        ie__build_u32(&b, IE__F_ACK_TIMEOUT, sub->ack_timeout_ms);
    if (sub->attempts_max != 0)
        ie__build_u32(&b, IE__F_ATTEMPTS, sub->attempts_max);
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
            ie__tokens_drop(&client->tokens, sub->id);
            ie__client_questions_drop(client, sub->id);
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
        if (sub->is_known && client->phase == PHASE_OPEN) {
            ie__client_acks_flush(client, &client->by); /* what was handled counts as handled */
            ie__client_write_empty(client, IE__UNSUBSCRIBE, sub->id);
        }
        ie__client_dispatch_bury(client, sub);
    }
    ie__client_dispatch_bury(client, NULL); /* those of earlier times */
}

/* ---- what became of it ---- */

subscription *
ie__client_sub_find(ie_bus_client *client, uint32_t id)
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
    subscription *sub = ie__client_sub_find(client, id);

    if (sub == NULL)
        return;
    sub->was_confirmed = sub->was_confirmed || state == SUB_CONFIRMED;
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
    if (reason.code == IE_BUS_CODE_MEMORY &&
        (sub = ie__client_sub_find(client, frame->number)) != NULL)
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

/* ---- public ---- */

ie_status
ie__client_sub_add(ie_bus_client *client, subscription *sub, uint32_t *id, ie_error *err)
{
    subscription **link;
    bool           must_wake;

    client_lock(client);
    if (client->is_closing) {
        client_unlock(client);
        ie__client_sub_free(sub);
        return ie_error_set(err, IE_ECLOSED, "the client was closed");
    }
    sub->id = ++client->next_sub;
    if (sub->credit == 0)
        sub->credit = client->options.credit;
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

void
ie_bus_subscription_init(ie_bus_subscription *to, size_t size)
{
    if (size < sizeof(size_t))
        return;
    memset(to, 0, size);
    to->size = size;
}

static ie_status
subscription_check(const ie_bus_client *client, const ie_bus_subscription *given, ie_error *err)
{
    const bool is_pulled = given->handler == NULL && given->on_delivery == NULL;
    const bool is_named = given->group != NULL;

    if (given->pattern == NULL)
        return ie_error_set(err, IE_EINVAL, "pattern is NULL");
    if (ie_pattern_check(given->pattern, err) != IE_OK)
        return IE_EINVAL;
    if (is_named && ie_topic_check(given->group, NULL) != IE_OK)
        return ie_error_set(err, IE_EINVAL, "group: not a name like a topic's");
    if (given->handler != NULL && given->on_delivery != NULL)
        return ie_error_set(err, IE_EINVAL, "handler and on_delivery exclude each other");
    if (is_pulled && client->options.dispatch != IE_BUS_DISPATCH_CALLER)
        return ie_error_set(err, IE_EINVAL, "handler is NULL");
    if ((given->flags & ~SUBSCRIBE_FLAGS) != 0)
        return ie_error_set(err, IE_EINVAL, "unknown subscribe flags %x", given->flags);
    if ((given->flags & IE_BUS_SUBSCRIBE_MANUAL) != 0 && given->handler != NULL)
        return ie_error_set(err, IE_EINVAL,
                            "a manual subscription needs on_delivery: a handler"
                            " alone never sees the token");
    if (given->start > IE_BUS_START_END)
        return ie_error_set(err, IE_EINVAL, "unknown start %d", (int)given->start);
    if (given->selection > IE_BUS_BROADCAST)
        return ie_error_set(err, IE_EINVAL, "unknown selection %d", (int)given->selection);
    if (!is_named && (given->start != IE_BUS_START_GROUP || given->attempts_max != 0 ||
                      given->ack_timeout_ms != 0 || given->selection != IE_BUS_ROUND_ROBIN ||
                      (given->flags & IE_BUS_SUBSCRIBE_EPHEMERAL) != 0))
        return ie_error_set(err, IE_EINVAL,
                            "start, selection, ack_timeout_ms, attempts_max and"
                            " EPHEMERAL belong to a group; group is NULL");
    return IE_OK;
}

ie_status
ie_bus_client_subscribe_with(ie_bus_client *client, const ie_bus_subscription *subscription_given,
                             uint32_t *id, ie_error *err)
{
    ie_bus_subscription given;
    subscription       *sub;
    ie_status           status;

    ie_bus_subscription_init(&given, sizeof given);
    status = ie__struct_import(&given, sizeof given, subscription_given, sizeof given);
    if (status != IE_OK)
        return ie_error_set(err, status, "subscription: %s",
                            status == IE_EINVAL ? "size is not set; use IE_BUS_SUBSCRIPTION_INIT"
                                                : "made for a newer library");
    status = subscription_check(client, &given, err);
    if (status != IE_OK)
        return status;
    sub = ie__client_sub_new(given.pattern, given.group);
    if (sub == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a subscription");
    sub->handler = given.handler;
    sub->on_delivery = given.on_delivery;
    sub->user = given.user;
    sub->run = given.handler != NULL || given.on_delivery != NULL ? ie__client_delivery_run : NULL;
    sub->is_manual = sub->run == NULL || (given.flags & IE_BUS_SUBSCRIBE_MANUAL) != 0;
    sub->flags = given.flags & ~IE_BUS_SUBSCRIBE_MANUAL; /* how we come to answer is our affair */
    if ((given.flags & IE_BUS_SUBSCRIBE_MANUAL) != 0)
        sub->flags |= IE_BUS_SUBSCRIBE_ACK;
    sub->start = given.start;
    sub->start_at = given.start_at;
    sub->selection = given.selection;
    sub->credit = given.credit;
    sub->ack_timeout_ms = given.ack_timeout_ms;
    sub->attempts_max = given.attempts_max;
    return ie__client_sub_add(client, sub, id, err);
}

ie_status
ie_bus_client_subscribe(ie_bus_client *client, const char *pattern, const char *group,
                        uint32_t flags, ie_bus_event_fn handler, void *user, uint32_t *id,
                        ie_error *err)
{
    ie_bus_subscription to;

    if (handler == NULL)
        return ie_error_set(err, IE_EINVAL, "handler is NULL");
    IE_BUS_SUBSCRIPTION_INIT(&to);
    to.pattern = pattern;
    to.group = group;
    to.flags = flags;
    to.handler = handler;
    to.user = user;
    return ie_bus_client_subscribe_with(client, &to, id, err);
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
    const bool    is_inline = client->options.dispatch == IE_BUS_DISPATCH_INLINE;
    const bool    is_own = on_own_thread(client);
    subscription *sub;
    uint64_t      rounds;

    client_lock(client);
    for (sub = client->subs; sub != NULL && (sub->id != id || sub->is_removed || sub->is_ending);
         sub = sub->next) {
    }
    if (sub == NULL) {
        client_unlock(client);
        return ie_error_set(err, IE_ENOTFOUND, "no subscription %u", id);
    }
    sub->is_ending = true;
    ie__client_dispatch_mute(client, sub);
    client_unlock(client);
    if (!is_inline && !is_own)
        ie__client_dispatch_await(client, id); /* and then it counts as handled */
    client_lock(client);
    sub->is_removed = true; /* the loop may take it out from now on */
    rounds = client->commands_done;
    client_unlock(client);
    if (is_inline && is_own)
        sub->is_muted = true; /* what is left of this turn's input is not for it */
    ie__client_wake(client);
    client_lock(client);
    while (is_inline && !is_own && client->commands_done == rounds && !client->is_closed)
        (void)pthread_cond_wait(&client->changed, &client->mutex);
    client_unlock(client);
    return IE_OK;
}
