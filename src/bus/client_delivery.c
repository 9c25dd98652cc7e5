/* Deliveries, from the frame to the answer. */
#include "client_parts.h"

#include <stdio.h>

#define ACK_DELAY_NS  1000000 /* no answer to a delivery is kept longer while handlers run */
#define ACK_TOTAL_MAX 256     /* nor are so many */

/* ---- answers ---- */

static void
reply_nack_write(ie_bus_client *client, uint32_t number, uint32_t code, uint32_t delay_ms,
                 const char *reason)
{
    unsigned char plain[IE__REASON_FRAME_MAX];
    unsigned char later[IE__REASON_FRAME_MAX + 4];
    const size_t  size = ie__reason_frame(plain, IE__NACK, number, code, reason);

    if (delay_ms == 0 || (client->capabilities & IE__CAP_STORAGE) == 0) {
        ie__client_write(client, plain, size);
        return;
    }
    ie__frame_prefix(later, IE__NACK_LATER, number, size - IE__PREFIX_BYTES + 4);
    ie__put32(later + IE__PREFIX_BYTES, delay_ms);
    memcpy(later + IE__PREFIX_BYTES + 4, plain + IE__PREFIX_BYTES, size - IE__PREFIX_BYTES);
    ie__client_write(client, later, size + 4);
}

static void
acks_write(ie_bus_client *client, acks *done)
{
    unsigned char  frame[IE__PREFIX_BYTES + 8 * ACK_RUNS];
    unsigned char *at = frame + IE__PREFIX_BYTES;

    ie__frame_prefix(frame, IE__ACK, 0, 8 * done->run_count);
    for (size_t i = 0; i < done->run_count; i++, at += 8) {
        ie__put32(at, done->runs[i].first);
        ie__put32(at + 4, done->runs[i].count);
    }
    ie__client_write(client, frame, (size_t)(at - frame));
}

/* With the mutex held. Without memory the connection is ended: then all of it comes again. */
static ie_status
reply_add(ie_bus_client *client, const reply *given)
{
    reply *last = client->reply_count != 0 ? &client->replies[client->reply_count - 1] : NULL;

    if (last != NULL && given->count != 0 && last->count != 0 &&
        last->connection == given->connection && last->first + last->count == given->first) {
        last->count += given->count;
        return IE_OK;
    }
    if (client->reply_count == client->reply_max) {
        const size_t max = client->reply_max != 0 ? client->reply_max * 2 : 64;
        reply       *grown = ie__realloc_array(client->replies, max, sizeof *grown);

        if (grown == NULL) {
            client->is_short = true;
            return IE_ENOMEM;
        }
        client->replies = grown;
        client->reply_max = max;
    }
    client->replies[client->reply_count++] = *given;
    return IE_OK;
}

void
ie__client_acks_flush(ie_bus_client *client, runner *by)
{
    acks *done = &by->acks;
    bool  must_wake;

    if (done->run_count == 0)
        return;
    if (by->is_loop) {
        acks_write(client, done);
    } else {
        client_lock(client);
        for (size_t i = 0; i < done->run_count; i++) {
            const reply given = {.connection = done->connection,
                                 .first = done->runs[i].first,
                                 .count = done->runs[i].count};

            if (reply_add(client, &given) != IE_OK)
                break;
        }
        must_wake = client_signal(client);
        client_unlock(client);
        if (must_wake)
            (void)uv_async_send(&client->async);
    }
    done->run_count = 0;
    done->total = 0;
}

/* Handled: first and count - 1 that follow. Runs of a frame ascend. */
static void
acks_add(ie_bus_client *client, runner *by, uint32_t connection, uint32_t first, uint32_t count)
{
    acks    *done = &by->acks;
    uint32_t end;

    if (done->run_count != 0) {
        end = done->runs[done->run_count - 1].first + done->runs[done->run_count - 1].count;
        if (done->connection == connection && end == first) {
            done->runs[done->run_count - 1].count += count;
            done->total += count;
            return;
        }
        if (done->run_count == ACK_RUNS || done->connection != connection ||
            first - end > UINT32_MAX / 2)
            ie__client_acks_flush(client, by);
    }
    done->runs[done->run_count].first = first;
    done->runs[done->run_count++].count = count;
    done->total += count;
    done->connection = connection;
    if (by->is_loop && client->stream != NULL)
        ie__stream_touch(client->stream);
}

/* While handlers take their time, the answers of those that are done must not wait. */
static void
acks_flush_late(ie_bus_client *client, runner *by)
{
    int64_t now;

    if (by->acks.run_count == 0)
        return;
    now = ie__mono_ns();
    if (now - by->acks.since_ns <= ACK_DELAY_NS && (by->is_loop || by->acks.total < ACK_TOTAL_MAX))
        return;
    by->acks.since_ns = now;
    ie__client_acks_flush(client, by);
    if (by->is_loop && client->stream != NULL)
        ie__stream_flush(client->stream);
}

static uint32_t
code_of(ie_status status)
{
    return status == IE_EREFUSED       ? IE_BUS_CODE_REJECTED
           : status == IE_EUNREACHABLE ? IE_BUS_CODE_UNAVAILABLE
                                       : IE_BUS_CODE_HANDLER;
}

/* With the mutex held: refused on another thread than the loop's. */
static ie_status
nack_add(ie_bus_client *client, uint32_t connection, uint32_t number, ie_status status,
         uint32_t delay_ms, const char *reason)
{
    const reply given = {.reason = ie__strdup(reason), /* without memory: without words */
                         .connection = connection,
                         .first = number,
                         .code = code_of(status),
                         .delay_ms = delay_ms};

    if (reply_add(client, &given) == IE_OK)
        return IE_OK;
    ie__free(given.reason);
    return IE_ENOMEM;
}

static void
nack(ie_bus_client *client, runner *by, uint32_t connection, uint32_t number, ie_status status)
{
    char text[IE_BUS_NAME_BYTES_MAX + 80];
    bool must_wake;

    (void)snprintf(text, sizeof text, "handler of %s: %s", client->name, ie_status_text(status));
    ie__client_acks_flush(client, by); /* answers leave in the order of the deliveries */
    if (by->is_loop) {
        reply_nack_write(client, number, code_of(status), 0, text);
        return;
    }
    client_lock(client);
    (void)nack_add(client, connection, number, status, 0, text);
    must_wake = client_signal(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
}

/* ---- answers of other threads, on the loop ---- */

void
ie__client_replies_write(ie_bus_client *client)
{
    const uint32_t connection = atomic_load(&client->connection);
    const bool     is_open = client->phase >= PHASE_OPEN && !client->said_goodbye;
    reply         *given;
    size_t         count;
    size_t         max;

    client_lock(client);
    given = client->replies;
    count = client->reply_count;
    max = client->reply_max;
    if (count != 0) {
        client->replies = client->reply_spare;
        client->reply_max = client->reply_spare_max;
        client->reply_count = 0;
    }
    client_unlock(client);
    if (count == 0)
        return;
    for (size_t i = 0; i < count; i++) {
        if (is_open && given[i].connection == connection && given[i].count != 0) {
            acks_add(client, &client->by, connection, given[i].first, given[i].count);
        } else if (is_open && given[i].connection == connection) {
            ie__client_acks_flush(client, &client->by);
            reply_nack_write(client, given[i].first, given[i].code, given[i].delay_ms,
                             given[i].reason != NULL ? given[i].reason : "");
        }
        ie__free(given[i].reason);
    }
    client->reply_spare = given;
    client->reply_spare_max = max;
}

void
ie__client_replies_forget(ie_bus_client *client)
{
    for (size_t i = 0; i < client->reply_count; i++)
        ie__free(client->replies[i].reason);
    client->reply_count = 0;
    ie__tokens_clear(&client->tokens);
}

void
ie__client_replies_fini(ie_bus_client *client)
{
    ie__client_replies_forget(client);
    ie__free(client->replies);
    ie__free(client->reply_spare);
    ie__tokens_fini(&client->tokens);
}

/* ---- deliveries ---- */

typedef struct arrival {
    ie_event        event;
    ie_bus_delivery delivery;
    uint32_t        number; /* 0: nobody waits for an answer */
} arrival;

static ie_status
arrival_open(arrival *out, ie__record *record, const subscription *sub, const ie__frame *frame)
{
    const size_t head = frame->type == IE__DELIVER_LOG ? 16 : 4;

    if (frame->body_bytes < head ||
        ie__record_parse(record, frame->body + head, frame->body_bytes - head, IE_DATA_BYTES_MAX,
                         NULL) != IE_OK)
        return IE_EPROTO;
    ie__record_event(&out->event, record);
    out->delivery = (ie_bus_delivery){.size = sizeof out->delivery, .subscription = sub->id};
    out->number = frame->type == IE__DELIVER ? 0 : ie__get32(frame->body);
    if (frame->type == IE__DELIVER_LOG) {
        out->delivery.attempt = ie__get32(frame->body + 4);
        out->delivery.position = (int64_t)ie__get64(frame->body + 8);
        out->event.position = out->delivery.position;
    }
    return IE_OK;
}

/* What may be answered later gets a token. False: its connection is gone, it will come again. */
static bool
arrival_token(ie_bus_client *client, arrival *come, uint32_t connection)
{
    bool is_current;

    client_lock(client);
    is_current = atomic_load(&client->connection) == connection;
    if (is_current &&
        ie__tokens_add(&client->tokens, come->number, come->delivery.subscription) != IE_OK) {
        client->is_short = true;
        is_current = false;
    }
    client_unlock(client);
    come->delivery.token = (uint64_t)connection << 32 | come->number;
    return is_current;
}

ie_status
ie__client_delivery_run(ie_bus_client *client, runner *by, subscription *sub,
                        const ie__frame *frame, uint32_t connection)
{
    arrival   come;
    ie_status status;

    if (arrival_open(&come, &by->record, sub, frame) != IE_OK)
        return IE_EPROTO;
    if (come.number != 0 && !by->is_loop && atomic_load(&client->connection) != connection)
        return IE_OK;
    if (come.number != 0 && sub->is_manual && !arrival_token(client, &come, connection))
        return IE_OK;
    status = sub->on_delivery != NULL ? sub->on_delivery(sub->user, &come.event, &come.delivery)
                                      : sub->handler(sub->user, &come.event);
    if (come.number == 0 || sub->is_manual) {
        if (status != IE_OK)
            ie__log(&client->options.logger, IE_LOG_WARN, "client", "handler of %s: %s",
                    sub->pattern, ie_status_text(status));
        return IE_OK;
    }
    if (status == IE_OK)
        acks_add(client, by, connection, come.number, 1);
    else
        nack(client, by, connection, come.number, status);
    acks_flush_late(client, by);
    return IE_OK;
}

ie_status
ie__client_delivery_pull(ie_bus_client *client, runner *by, subscription *sub,
                         const ie__frame *frame, uint32_t connection, ie_event *event,
                         ie_bus_delivery *delivery)
{
    arrival come;

    if (arrival_open(&come, &by->record, sub, frame) != IE_OK)
        return IE_EPROTO;
    if (come.number != 0 && !arrival_token(client, &come, connection))
        return IE_ENOTFOUND;
    *event = come.event;
    *delivery = come.delivery;
    return IE_OK;
}

ie_status
ie__client_on_deliver(ie_bus_client *client, const ie__frame *frame)
{
    subscription *sub = ie__client_sub_find(client, frame->number);
    ie_status     status;

    if (sub == NULL || sub->on_question != NULL)
        return IE_OK; /* unsubscribed: the server takes it back by itself */
    status = ie__client_dispatch_message(client, sub, frame);
    if (status == IE_EPROTO)
        return ie__client_broken(client, "a malformed event");
    return client->stream != NULL ? status : IE_ECLOSED;
}

/* ---- public ---- */

static ie_status
answer_by_token(ie_bus_client *client, uint64_t token, bool is_ack, ie_status status,
                uint32_t delay_ms, const char *reason)
{
    const uint32_t connection = (uint32_t)(token >> 32);
    const uint32_t number = (uint32_t)token;
    const reply    ack = {.connection = connection, .first = number, .count = 1};
    ie_status      result = IE_OK;
    bool           must_wake;

    client_lock(client);
    if (client->is_closed)
        result = IE_ECLOSED;
    else if (atomic_load(&client->connection) != connection ||
             !ie__tokens_take(&client->tokens, number))
        result = IE_ENOTFOUND;
    else if ((is_ack ? reply_add(client, &ack)
                     : nack_add(client, connection, number, status, delay_ms, reason)) != IE_OK)
        result = IE_ENOTFOUND; /* without memory the connection ends, and it comes again */
    must_wake = (result == IE_OK || client->is_short) && client_signal(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    return result;
}

ie_status
ie_bus_client_ack(ie_bus_client *client, uint64_t token)
{
    return answer_by_token(client, token, true, IE_OK, 0, NULL);
}

ie_status
ie_bus_client_nack(ie_bus_client *client, uint64_t token, ie_status status, uint32_t delay_ms,
                   const char *reason)
{
    char text[IE_BUS_NAME_BYTES_MAX + 80];

    if (reason == NULL || reason[0] == '\0') {
        (void)snprintf(text, sizeof text, "handler of %s: %s", client->name,
                       ie_status_text(status != IE_OK ? status : IE_EHANDLER));
        reason = text;
    }
    return answer_by_token(client, token, false, status, delay_ms, reason);
}
