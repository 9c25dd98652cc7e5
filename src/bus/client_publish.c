/*
 * Publishes, from the call to the answer. A publish is encoded by its caller into a batch. The
 * first one of a batch wakes the loop, the others ride along: the loop takes the whole batch and
 * writes it in one go. So an idle client writes an event at once, and a busy one writes as much as
 * has come together meanwhile.
 */
#include "client_parts.h"

#include <errno.h>
#include <stdio.h>

#include "attributes.h"
#include "codes.h"
#include "id.h"

#define UNSENT_MAX (1u << 20) /* bytes in the stream's queue; the rest stays in the backlog */

/* ---- in flight ---- */

static entry *
flight_at(const ie_bus_client *client, size_t index)
{
    return &client->flight[(client->flight_head + index) & (client->flight_max - 1)];
}

/* What became of publishes; receivers is as PUBACK has it. */
static void
answer_one(const entry *asked, ie_status status, uint32_t code, uint32_t receivers,
           const char *reason)
{
    ie_bus_answer answer = {.size = sizeof answer,
                            .reason = reason,
                            .receivers = receivers & ~IE__PUBACK_STORED,
                            .status = status,
                            .code = code,
                            .stored = (receivers & IE__PUBACK_STORED) != 0};

    if (asked->answered != NULL)
        asked->answered(asked->user, &answer);
}

static bool
is_republishing(const ie_bus_client *client)
{
    return (client->options.flags & IE_BUS_CLIENT_REPUBLISH) != 0;
}

static void
flight_pop(ie_bus_client *client)
{
    while (client->flight_sent > 0 && flight_at(client, 0)->is_done) {
        if (is_republishing(client))
            client->backlog_kept += flight_at(client, 0)->bytes;
        client->flight_head = (client->flight_head + 1) & (client->flight_max - 1);
        client->flight_count--;
        client->flight_sent--;
        client->flight_first++;
    }
    if (client->flight_sent == 0 && client->stream != NULL)
        ie__stream_touch(client->stream); /* someone may be waiting for this to leave */
}

static void
count_answered(ie_bus_client *client, size_t count, uint64_t bytes)
{
    /* nobody else writes them */
    atomic_store_explicit(&client->answered,
                          atomic_load_explicit(&client->answered, memory_order_relaxed) + count,
                          memory_order_release);
    atomic_store_explicit(&client->answered_bytes,
                          atomic_load_explicit(&client->answered_bytes, memory_order_relaxed) +
                              bytes,
                          memory_order_release);
}

/* Answer the publishes [first, first + count) that were sent and are not answered. */
static void
flight_answer(ie_bus_client *client, uint32_t first, uint32_t count, ie_status status,
              uint32_t code, uint32_t receivers, const char *reason)
{
    const uint32_t begin = first - client->flight_first;
    uint64_t       bytes = 0;
    size_t         done = 0;

    if (begin >= client->flight_sent)
        return; /* answered before, or never asked */
    if (count > client->flight_sent - begin)
        count = (uint32_t)(client->flight_sent - begin);
    /* Room is made first: the callback may publish the next one. */
    for (size_t i = begin; i < (size_t)begin + count; i++) {
        const entry *asked = flight_at(client, i);

        bytes += asked->is_done ? 0 : asked->bytes;
        done += !asked->is_done;
    }
    count_answered(client, done, bytes);
    for (size_t i = begin; i < (size_t)begin + count; i++) {
        entry *asked = flight_at(client, i);

        if (asked->is_done)
            continue;
        asked->is_done = true;
        answer_one(asked, status, code, receivers, reason);
    }
    flight_pop(client);
}

/* All that has no answer is unsent again; it closes ranks, for requests have no gaps. */
static void
flight_rewind(ie_bus_client *client)
{
    unsigned char *frames = (unsigned char *)client->backlog.data;
    size_t         from = client->backlog_kept;
    size_t         to = client->backlog_kept;
    size_t         count = 0;
    uint32_t       number;

    for (size_t i = 0; i < client->flight_count; i++) {
        const entry asked = *flight_at(client, i);

        if (!asked.is_done) {
            memmove(frames + to, frames + from, asked.bytes);
            *flight_at(client, count++) = asked;
            to += asked.bytes;
        }
        from += asked.bytes;
    }
    /* New ones are numbered on from the last one of these. */
    client->flight_first += (uint32_t)(client->flight_count - count);
    client->flight_count = count;
    client->flight_sent = 0;
    client->backlog.size = to;
    client->backlog_sent = client->backlog_kept;
    number = client->flight_first;
    for (size_t i = 0, at = client->backlog_kept; i < count; i++) {
        ie__put32(frames + at + IE__PREFIX_BYTES - 4, number++);
        at += flight_at(client, i)->bytes;
    }
}

/* The connection is gone: who was sent will not hear from it. */
void
ie__client_flight_lost(ie_bus_client *client)
{
    if (client->flight_sent == 0)
        return;
    if (is_republishing(client)) {
        flight_rewind(client);
        return;
    }
    flight_answer(client, client->flight_first, (uint32_t)client->flight_sent, IE_EUNREACHABLE,
                  IE_BUS_CODE_NONE, 0, client->why);
}

/* Everything, sent or not, has its answer now. */
void
ie__client_flight_fail_all(ie_bus_client *client, ie_status status, const char *reason)
{
    client->flight_sent = client->flight_count; /* so that they count as asked */
    client->backlog.size = client->backlog_sent = client->backlog_kept = 0;
    if (client->flight_count > 0)
        flight_answer(client, client->flight_first, (uint32_t)client->flight_count, status,
                      IE_BUS_CODE_NONE, 0, reason);
}

static bool
flight_reserve(ie_bus_client *client, size_t more)
{
    size_t max = client->flight_max != 0 ? client->flight_max : 256;
    entry *grown;

    if (client->flight_max - client->flight_count >= more && client->flight_max != 0)
        return true;
    while (max - client->flight_count < more)
        max *= 2;
    grown = ie__realloc_array(NULL, max, sizeof *grown);
    if (grown == NULL)
        return false;
    for (size_t i = 0; i < client->flight_count; i++)
        grown[i] = *flight_at(client, i);
    ie__free(client->flight);
    client->flight = grown;
    client->flight_head = 0;
    client->flight_max = max;
    return true;
}

/* ---- from the batch to the stream ---- */

/* Take over what was submitted. Out of memory: it stays submitted, the heartbeat tries again. */
void
ie__client_take(ie_bus_client *client)
{
    client_lock(client);
    ie__client_take_locked(client);
}

void
ie__client_take_locked(ie_bus_client *client)
{
    batch taken;

    if (client->submitted.count == 0 || !flight_reserve(client, client->submitted.count) ||
        (client->backlog_kept < client->backlog.size &&
         ie__buffer_reserve(&client->backlog, client->submitted.frames.size) != IE_OK)) {
        client_unlock(client);
        return;
    }
    taken = client->submitted;
    client->submitted = client->spare;
    client_unlock(client);

    for (size_t i = 0; i < taken.count; i++)
        *flight_at(client, client->flight_count++) = taken.entries[i];
    if (client->backlog_kept == client->backlog.size) {
        const ie_buffer empty = client->backlog; /* swap: no copy while we keep up */

        client->backlog = taken.frames;
        client->backlog_sent = client->backlog_kept = 0;
        taken.frames = empty;
    } else {
        (void)ie__buffer_add(&client->backlog, taken.frames.data, taken.frames.size);
    }
    taken.frames.size = 0;
    taken.count = 0;
    client->spare = taken;
}

/* Write what may be written: as many as the server lets us have unanswered. */
void
ie__client_send(ie_bus_client *client)
{
    while (client->phase == PHASE_OPEN && client->flight_sent < client->flight_count &&
           client->flight_sent < client->in_flight_max) {
        size_t bytes = 0;
        size_t count = 0;

        if (ie__stream_pending(client->stream) > UNSENT_MAX) {
            ie__stream_notify_below(client->stream, UNSENT_MAX / 2);
            return;
        }
        while (client->flight_sent + count < client->flight_count &&
               client->flight_sent + count < client->in_flight_max &&
               (bytes == 0 || bytes + flight_at(client, client->flight_sent + count)->bytes <=
                                  IE__NET_CHUNK_BYTES))
            bytes += flight_at(client, client->flight_sent + count++)->bytes;
        if (ie__stream_write(client->stream, client->backlog.data + client->backlog_sent, bytes) !=
            IE_OK)
            return; /* the stream has ended; what is unsent waits for the next */
        client->backlog_sent += bytes;
        client->flight_sent += count;
    }
    if (!is_republishing(client))
        client->backlog_kept = client->backlog_sent;
    if (client->backlog_kept == client->backlog.size) {
        client->backlog.size = client->backlog_sent = client->backlog_kept = 0;
    } else if (client->backlog_kept > 1u << 20 && client->backlog_kept > client->backlog.size / 2) {
        client->backlog.size -= client->backlog_kept;
        memmove(client->backlog.data, client->backlog.data + client->backlog_kept,
                client->backlog.size);
        client->backlog_sent -= client->backlog_kept;
        client->backlog_kept = 0;
    }
}

/* ---- answers of the server ---- */

ie_status
ie__client_on_puback(ie_bus_client *client, const ie__frame *frame)
{
    if (frame->body_bytes == 0 || frame->body_bytes % 12 != 0)
        return ie__client_broken(client, "a malformed puback");
    for (size_t at = 0; at < frame->body_bytes; at += 12)
        flight_answer(client, ie__get32(frame->body + at), ie__get32(frame->body + at + 4), IE_OK,
                      IE_BUS_CODE_NONE, ie__get32(frame->body + at + 8), "");
    ie__client_send(client);
    return IE_OK;
}

ie_status
ie__client_on_pubnack(ie_bus_client *client, const ie__frame *frame)
{
    ie__reason reason;
    ie_status  status;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return ie__client_broken(client, "a malformed pubnack");
    status = ie__bus_code_status(reason.code);
    flight_answer(client, frame->number, 1, status != IE_OK ? status : IE_EREFUSED, reason.code, 0,
                  reason.text[0] != '\0' ? reason.text : ie_bus_code_text(reason.code));
    ie__client_send(client);
    return IE_OK;
}

/* ---- public ---- */

/* With the mutex held: is there room, and is this the time? */
static ie_status
publish_admit(const ie_bus_client *client, const ie_event *event, size_t bytes, ie_error *err)
{
    if (client->is_closing)
        return ie_error_set(err, IE_ECLOSED, "the client was closed");
    if (client->is_offline && (client->options.flags & IE_BUS_CLIENT_FAIL_OFFLINE) != 0)
        return ie_error_set(err, IE_EUNREACHABLE, "%s", client->reason);
    if (event->data_bytes > client->data_bytes_max)
        return ie_error_set(err, IE_ETOOBIG, "data is larger than %u bytes, the bus's limit",
                            client->data_bytes_max);
    if (client_unanswered(client) >= client->options.publish_queue_max)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_max: %zu events are unanswered",
                            client_unanswered(client));
    if (client_unanswered_bytes(client) + bytes > client->options.publish_queue_bytes_max &&
        client_unanswered(client) != 0)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_bytes_max: %llu bytes are unanswered",
                            (unsigned long long)client_unanswered_bytes(client));
    return IE_OK;
}

/* With the mutex held. */
static ie_status
publish_add(ie_bus_client *client, const ie_event *event, uint32_t flags,
            const ie__record_plan *plan, const entry *asked)
{
    batch         *to = &client->submitted;
    unsigned char *at;

    if (to->count == to->max) {
        const size_t max = to->max != 0 ? to->max * 2 : 64;
        entry       *grown = ie__realloc_array(to->entries, max, sizeof *grown);

        if (grown == NULL)
            return IE_ENOMEM;
        to->entries = grown;
        to->max = max;
    }
    if (ie__buffer_reserve(&to->frames, asked->bytes) != IE_OK)
        return IE_ENOMEM;
    at = (unsigned char *)to->frames.data + to->frames.size;
    ie__frame_prefix(at, IE__PUBLISH, client->next_request++, 4 + plan->total);
    ie__put32(at + IE__PREFIX_BYTES, flags);
    (void)ie__record_write(at + IE__PREFIX_BYTES + 4, event, plan);
    to->frames.size += asked->bytes;
    to->entries[to->count++] = *asked;
    client->handed_in++;
    client->handed_in_bytes += asked->bytes;
    return IE_OK;
}

/* What the caller left open. */
static void
publish_complete(const ie_bus_client *client, ie_event *event, char id[IE_ID_SIZE])
{
    const int64_t now_ms =
        event->id == NULL || event->time_ms == 0 ? ie__wall_ms(&ie__system_clock) : 0;

    if (event->id == NULL) {
        ie__id_new_at(id, now_ms);
        event->id = id;
    }
    if (event->type == NULL)
        event->type = event->topic;
    if (event->source == NULL)
        event->source = client->source;
    if (event->time_ms == 0)
        event->time_ms = now_ms;
}

ie_status
ie_bus_client_publish(ie_bus_client *client, const ie_event *event, uint32_t flags,
                      ie_bus_answer_fn answered, void *user, ie_error *err)
{
    const bool      is_checked = (flags & IE__BUS_PUBLISH_CHECKED) != 0;
    entry           asked = {.answered = answered, .user = user};
    char            id[IE_ID_SIZE];
    ie_event        full;
    ie__record_plan plan;
    ie_status       status;
    bool            must_wake;

    flags &= ~IE__BUS_PUBLISH_CHECKED;
    if ((flags & ~IE__PUBLISH_FLAGS) != 0)
        return ie_error_set(err, IE_EINVAL, "unknown publish flags %x", flags);
    if (client->generation != ie__fork_generation())
        return ie_error_set(err, IE_EFORKED, "the client belongs to the parent process");
    status = ie__event_import(&full, event, err);
    if (status == IE_OK && !is_checked)
        status = ie__event_check(&full, 0, err);
    if (status != IE_OK)
        return status;
    publish_complete(client, &full, id);
    ie__record_measure(&plan, &full);
    asked.bytes = (uint32_t)(IE__PREFIX_BYTES + 4 + plan.total);

    client_lock(client);
    status = publish_admit(client, &full, asked.bytes, err);
    if (status == IE_OK && publish_add(client, &full, flags, &plan, &asked) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "no memory for a publish");
    must_wake = status == IE_OK && client_signal_publish(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    return status;
}

/* Shared by the caller, who may lose patience, and the answer, which comes in any case. */
typedef struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t  cond;
    int             refs;
    bool            is_answered;
    ie_status       status;
    char            reason[IE__REASON_BYTES_MAX + 1];
} waiter;

static void
waiter_release(waiter *w) /* mutex held */
{
    const bool is_last = --w->refs == 0;

    (void)pthread_mutex_unlock(&w->mutex);
    if (is_last) {
        (void)pthread_cond_destroy(&w->cond);
        (void)pthread_mutex_destroy(&w->mutex);
        ie__free(w);
    }
}

static void
waiter_answered(void *user, const ie_bus_answer *answer)
{
    waiter *w = user;

    (void)pthread_mutex_lock(&w->mutex);
    w->is_answered = true;
    w->status = answer->status;
    (void)snprintf(w->reason, sizeof w->reason, "%s", answer->reason);
    (void)pthread_cond_signal(&w->cond);
    waiter_release(w);
}

ie_status
ie_bus_client_publish_wait(ie_bus_client *client, const ie_event *event, uint32_t flags,
                           uint32_t timeout_ms, ie_error *err)
{
    const struct timespec deadline = ie__client_deadline(timeout_ms);
    ie_status             status;
    waiter               *w;

    if (on_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    w = ie__calloc(1, sizeof *w);
    if (w == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a publish");
    (void)pthread_mutex_init(&w->mutex, NULL);
    ie__client_cond_init(&w->cond);
    w->refs = 2;
    ie__client_wait_begin(client);
    status = ie_bus_client_publish(client, event, flags, waiter_answered, w, err);
    (void)pthread_mutex_lock(&w->mutex);
    if (status != IE_OK) {
        ie__client_wait_end(client);
        w->refs = 1;
        waiter_release(w);
        return status;
    }
    while (!w->is_answered && status == IE_OK)
        if (pthread_cond_timedwait(&w->cond, &w->mutex, &deadline) == ETIMEDOUT)
            status = IE_ETIMEDOUT;
    if (w->is_answered)
        status = w->status == IE_OK ? IE_OK : ie_error_set(err, w->status, "%s", w->reason);
    else
        (void)ie_error_set(err, IE_ETIMEDOUT, "no answer from the bus within %u ms", timeout_ms);
    ie__client_wait_end(client);
    waiter_release(w);
    return status;
}
