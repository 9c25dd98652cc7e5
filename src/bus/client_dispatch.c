/*
 * Who runs the handlers: the loop itself (INLINE), a second thread (THREAD) or whoever calls
 * (CALLER). For the last two the loop copies messages into chunks, and hands a chunk over after
 * each piece of input: one lock and at most one wake-up for all that came together.
 *
 * What waits is bounded twice: deliveries that want an answer by their credit, and all of them by
 * bytes: beyond QUEUE_BYTES_MAX nothing more is read, so that the bus feels it. One thing must not
 * wait behind that, the answer to a publish or a query that a handler waits for: while a thread
 * waits for one, reading goes on up to QUEUE_BYTES_WAITING.
 */
#include "client_parts.h"

#include <errno.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CHUNK_BYTES         32768
#define CHUNKS_SPARE        4
#define QUEUE_BYTES_MAX     (UINT64_C(8) << 20)
#define QUEUE_BYTES_WAITING (UINT64_C(64) << 20)

/* One message; its body follows. */
typedef struct message {
    subscription *sub;
    uint32_t      connection;
    uint32_t      number;
    uint32_t      type;
    uint32_t      body_bytes;
} message;

struct chunk {
    chunk        *next;
    size_t        used;
    size_t        max;
    uint64_t      count;
    unsigned char bytes[];
};

_Static_assert(offsetof(struct chunk, bytes) % _Alignof(message) == 0, "messages are aligned");

/* ---- chunks ---- */

static size_t
message_bytes(size_t body_bytes)
{
    return (sizeof(message) + body_bytes + _Alignof(message) - 1) & ~(_Alignof(message) - 1);
}

/* With the queue's mutex held. */
static void
chunk_recycle(queue *q, chunk *used)
{
    if (used->max == CHUNK_BYTES && q->spare_count < CHUNKS_SPARE) {
        used->next = q->spare;
        q->spare = used;
        q->spare_count++;
    } else {
        ie__free(used);
    }
}

static chunk *
chunk_new(queue *q, size_t bytes)
{
    const size_t max = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
    chunk       *made = NULL;

    if (max == CHUNK_BYTES) {
        (void)pthread_mutex_lock(&q->mutex);
        made = q->spare;
        if (made != NULL) {
            q->spare = made->next;
            q->spare_count--;
        }
        (void)pthread_mutex_unlock(&q->mutex);
    }
    if (made == NULL)
        made = ie__alloc(sizeof *made + max);
    if (made == NULL)
        return NULL;
    made->next = NULL;
    made->used = 0;
    made->count = 0;
    made->max = max;
    return made;
}

static void
chunks_free(chunk *list)
{
    while (list != NULL) {
        chunk *next = list->next;

        ie__free(list);
        list = next;
    }
}

/* ---- waking ---- */

/* With the queue's mutex held: the descriptor says what is true. */
static void
update_fd(queue *q)
{
    const uint64_t one = 1;
    uint64_t       had;
    bool           is_readable = q->is_stopping;

    if (q->fd < 0)
        return;
    for (size_t i = 0; i < LANES; i++)
        is_readable = is_readable || q->lanes[i].fetched != q->lanes[i].handed;
    if (is_readable == q->is_readable)
        return;
    q->is_readable = is_readable;
    if (is_readable)
        (void)!write(q->fd, &one, sizeof one); /* cannot block: it was 0 */
    else
        (void)!read(q->fd, &had, sizeof had);
}

void
ie__client_wake(ie_bus_client *client)
{
    bool must_wake;

    client_lock(client);
    must_wake = client_signal(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
}

void
ie__client_wait_begin(ie_bus_client *client)
{
    (void)atomic_fetch_add(&client->waiters, 1);
    if (client->options.dispatch != IE_BUS_DISPATCH_INLINE)
        ie__client_wake(client);
}

void
ie__client_wait_end(ie_bus_client *client)
{
    (void)atomic_fetch_sub(&client->waiters, 1);
}

/* ---- the loop's side ---- */

static uint64_t
bytes_limit(ie_bus_client *client)
{
    return atomic_load(&client->waiters) != 0 ? QUEUE_BYTES_WAITING : QUEUE_BYTES_MAX;
}

/* With the queue's mutex held: what was filled is the readers' now. */
static void
lane_hand_over(queue *q, lane *to)
{
    chunk *full = to->filling;

    if (full == NULL || full->count == 0)
        return;
    q->bytes += full->used;
    to->handed += full->count;
    if (to->tail != NULL && to->tail->max - to->tail->used >= full->used) {
        /* Small pieces are put together: a chunk for each would be mostly air. */
        memcpy(to->tail->bytes + to->tail->used, full->bytes, full->used);
        to->tail->used += full->used;
        to->tail->count += full->count;
        full->used = 0;
        full->count = 0;
        return;
    }
    to->filling = NULL;
    if (to->tail != NULL)
        to->tail->next = full;
    else
        to->head = full;
    to->tail = full;
}

void
ie__client_dispatch_hand_over(ie_bus_client *client)
{
    queue *q = &client->queue;
    bool   has_some = false;
    bool   must_pause;

    for (size_t i = 0; i < LANES; i++)
        has_some = has_some || (q->lanes[i].filling != NULL && q->lanes[i].filling->count != 0);
    if (!has_some)
        return;
    (void)pthread_mutex_lock(&q->mutex);
    for (size_t i = 0; i < LANES; i++)
        lane_hand_over(q, &q->lanes[i]);
    update_fd(q);
    must_pause = q->bytes > bytes_limit(client) && client->stream != NULL;
    q->is_paused = q->is_paused || must_pause;
    if (q->readers != 0)
        (void)pthread_cond_broadcast(&q->ready);
    (void)pthread_mutex_unlock(&q->mutex);
    if (must_pause)
        ie__stream_pause(client->stream);
}

void
ie__client_dispatch_resume(ie_bus_client *client)
{
    queue *q = &client->queue;
    bool   can_resume;

    (void)pthread_mutex_lock(&q->mutex);
    can_resume = q->is_paused && (client->stream == NULL || q->bytes <= bytes_limit(client) / 2);
    if (can_resume)
        q->is_paused = false;
    (void)pthread_mutex_unlock(&q->mutex);
    if (can_resume && client->stream != NULL) {
        client->heard_ms = (int64_t)uv_now(&client->loop); /* we have not been listening */
        client->pings = 0;
        ie__stream_resume(client->stream);
    }
}

bool
ie__client_dispatch_is_paused(ie_bus_client *client)
{
    queue *q = &client->queue;
    bool   is_paused;

    (void)pthread_mutex_lock(&q->mutex);
    is_paused = q->is_paused && client->stream != NULL;
    (void)pthread_mutex_unlock(&q->mutex);
    return is_paused;
}

bool
ie__client_dispatch_is_idle(ie_bus_client *client)
{
    queue *q = &client->queue;
    lane  *push = &q->lanes[LANE_PUSH];
    bool   is_idle;

    (void)pthread_mutex_lock(&q->mutex);
    is_idle = push->done == push->handed && (push->filling == NULL || push->filling->count == 0);
    q->is_wanted_idle = !is_idle;
    (void)pthread_mutex_unlock(&q->mutex);
    return is_idle;
}

static lane *
lane_of(queue *q, const subscription *sub)
{
    return &q->lanes[sub->run != NULL ? LANE_PUSH : LANE_PULL];
}

ie_status
ie__client_dispatch_message(ie_bus_client *client, subscription *sub, const ie__frame *frame)
{
    const size_t bytes = message_bytes(frame->body_bytes);
    queue       *q = &client->queue;
    lane        *to;
    message     *at;

    if (client->options.dispatch == IE_BUS_DISPATCH_INLINE)
        return sub->is_muted
                   ? IE_OK
                   : sub->run(client, &client->by, sub, frame,
                              atomic_load_explicit(&client->connection, memory_order_relaxed));
    to = lane_of(q, sub);
    if (to->filling != NULL && to->filling->max - to->filling->used < bytes) {
        if (to->filling->count != 0)
            ie__client_dispatch_hand_over(client);
        ie__free(to->filling);
        to->filling = NULL;
    }
    if (to->filling == NULL && (to->filling = chunk_new(q, bytes)) == NULL) {
        ie__client_why(client, IE_ENOMEM, IE_BUS_CODE_NONE, "out of memory for what arrives");
        return IE_ENOMEM;
    }
    at = (message *)(void *)(to->filling->bytes + to->filling->used);
    at->sub = sub;
    at->connection = atomic_load_explicit(&client->connection, memory_order_relaxed);
    at->number = frame->number;
    at->type = frame->type;
    at->body_bytes = (uint32_t)frame->body_bytes;
    memcpy(at + 1, frame->body, frame->body_bytes);
    to->filling->used += bytes;
    to->filling->count++;
    to->queued++;
    return IE_OK;
}

/* ---- the readers' side ---- */

/* With the queue's mutex held: the handler has returned. True: the loop has to be woken. */
static bool
lane_finish(queue *q, lane *from, uint64_t limit)
{
    bool must_wake;

    if (from->unfinished != 0) {
        q->bytes -= from->unfinished;
        from->unfinished = 0;
        from->done++;
        if (from == &q->lanes[LANE_PUSH])
            q->running_id = 0;
        if (atomic_load(&q->watchers) != 0)
            (void)pthread_cond_broadcast(&q->idle);
    }
    must_wake = q->is_paused && q->bytes <= limit / 2;
    if (q->is_wanted_idle && from == &q->lanes[LANE_PUSH] && from->done == from->handed) {
        q->is_wanted_idle = false;
        must_wake = true;
    }
    return must_wake;
}

/* With the queue's mutex held: the next message that somebody wants, or NULL. */
static message *
lane_fetch(queue *q, lane *from)
{
    for (;;) {
        while (from->taken != NULL && from->taken_at == from->taken->used) {
            chunk *used = from->taken;

            from->taken = used->next;
            from->taken_at = 0;
            chunk_recycle(q, used);
        }
        if (from->taken == NULL) {
            if (from->head == NULL)
                return NULL;
            from->taken = from->head;
            from->taken_at = 0;
            from->head = from->tail = NULL;
        }
        while (from->taken_at < from->taken->used) {
            message *at = (message *)(void *)(from->taken->bytes + from->taken_at);

            from->taken_at += message_bytes(at->body_bytes);
            from->fetched++;
            if (!at->sub->is_muted) {
                from->unfinished = message_bytes(at->body_bytes);
                return at;
            }
            q->bytes -= message_bytes(at->body_bytes);
            from->done++;
        }
    }
}

/* What is done is put away, and the next message taken. NULL: nothing came in time (a deadline of
 * NULL: nothing is there), or it stops. */
static message *
lane_next(ie_bus_client *client, lane *from, const struct timespec *deadline)
{
    queue   *q = &client->queue;
    message *next = NULL;
    bool     is_late = deadline == NULL;
    bool     must_wake;

    (void)pthread_mutex_lock(&q->mutex);
    must_wake = lane_finish(q, from, bytes_limit(client));
    while (!q->is_stopping && (next = lane_fetch(q, from)) == NULL && !is_late) {
        update_fd(q);
        q->readers++;
        is_late = pthread_cond_timedwait(&q->ready, &q->mutex, deadline) == ETIMEDOUT;
        q->readers--;
    }
    if (next != NULL && next->sub->run != NULL) {
        q->running_id = next->sub->id;
        q->running_thread = pthread_self();
    }
    if (next == NULL) {
        update_fd(q);
        must_wake = lane_finish(q, from, bytes_limit(client)) || must_wake; /* muted ones */
    }
    (void)pthread_mutex_unlock(&q->mutex);
    if (must_wake)
        ie__client_wake(client);
    return next;
}

/* Nothing is in hand any more. */
static void
lane_leave(ie_bus_client *client, lane *from)
{
    queue *q = &client->queue;
    bool   must_wake;

    (void)pthread_mutex_lock(&q->mutex);
    must_wake = lane_finish(q, from, bytes_limit(client));
    update_fd(q);
    (void)pthread_mutex_unlock(&q->mutex);
    ie__client_acks_flush(client, &from->by);
    if (must_wake)
        ie__client_wake(client);
}

static void
message_frame(ie__frame *out, message *from)
{
    out->body = (unsigned char *)(from + 1);
    out->body_bytes = from->body_bytes;
    out->number = from->number;
    out->type = (uint8_t)from->type;
}

static void
message_malformed(ie_bus_client *client)
{
    client_lock(client);
    client->is_malformed = true;
    client_unlock(client);
    ie__client_wake(client);
}

static void
message_run(ie_bus_client *client, lane *from, message *at)
{
    ie__frame frame;

    message_frame(&frame, at);
    if (at->sub->run(client, &from->by, at->sub, &frame, at->connection) != IE_OK)
        message_malformed(client);
    if (atomic_load(&client->queue.watchers) != 0) /* an unsubscribe: before it, not after */
        ie__client_acks_flush(client, &from->by);
}

/* ---- the thread ---- */

static void *
dispatch_main(void *arg)
{
    ie_bus_client *client = arg;
    lane          *from = &client->queue.lanes[LANE_PUSH];
    bool           is_stopping = false;

    ie__net_thread_enter("ie-handlers");
    while (!is_stopping) {
        message *at = lane_next(client, from, NULL);

        if (at == NULL) { /* what was handled is told before the wait */
            const struct timespec deadline = ie__client_deadline(3600000);

            ie__client_acks_flush(client, &from->by);
            at = lane_next(client, from, &deadline);
        }
        if (at != NULL) {
            message_run(client, from, at);
            continue;
        }
        (void)pthread_mutex_lock(&client->queue.mutex);
        is_stopping = client->queue.is_stopping;
        (void)pthread_mutex_unlock(&client->queue.mutex);
    }
    lane_leave(client, from);
    return NULL;
}

/* ---- begin and end ---- */

ie_status
ie__client_dispatch_init(ie_bus_client *client, ie_error *err)
{
    queue *q = &client->queue;

    q->fd = -1;
    client->by.is_loop = true;
    (void)pthread_mutex_init(&q->mutex, NULL);
    ie__client_cond_init(&q->ready);
    ie__client_cond_init(&q->idle);
    if (client->options.dispatch == IE_BUS_DISPATCH_CALLER) {
        q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (q->fd < 0)
            return ie_error_set(err, IE_EIO, "cannot make an eventfd: out of file descriptors?");
    }
    if (client->options.dispatch == IE_BUS_DISPATCH_THREAD) {
        q->has_thread = pthread_create(&q->thread, NULL, dispatch_main, client) == 0;
        if (!q->has_thread)
            return ie_error_set(err, IE_EIO, "cannot start the client's thread for handlers");
    }
    return IE_OK;
}

void
ie__client_dispatch_stop(ie_bus_client *client)
{
    queue *q = &client->queue;

    (void)pthread_mutex_lock(&q->mutex);
    q->is_stopping = true;
    update_fd(q);
    (void)pthread_cond_broadcast(&q->ready);
    (void)atomic_fetch_add(&q->watchers, 1);
    while (q->callers != 0)
        (void)pthread_cond_wait(&q->idle, &q->mutex);
    (void)atomic_fetch_sub(&q->watchers, 1);
    (void)pthread_mutex_unlock(&q->mutex);
    if (q->has_thread)
        (void)pthread_join(q->thread, NULL);
    q->has_thread = false;
}

void
ie__client_dispatch_fini(ie_bus_client *client)
{
    queue *q = &client->queue;

    for (size_t i = 0; i < LANES; i++) {
        chunks_free(q->lanes[i].filling);
        chunks_free(q->lanes[i].head);
        chunks_free(q->lanes[i].taken);
    }
    chunks_free(q->spare);
    while (q->graves != NULL) {
        subscription *sub = q->graves;

        q->graves = sub->next;
        ie__client_sub_free(sub);
    }
    if (q->fd >= 0)
        (void)close(q->fd);
    (void)pthread_cond_destroy(&q->ready);
    (void)pthread_cond_destroy(&q->idle);
    (void)pthread_mutex_destroy(&q->mutex);
}

/* ---- the end of a subscription ---- */

void
ie__client_dispatch_bury(ie_bus_client *client, subscription *sub)
{
    queue         *q = &client->queue;
    subscription **link = &q->graves;

    if (sub != NULL) {
        sub->grave = lane_of(q, sub)->queued;
        sub->next = q->graves;
        q->graves = sub;
    }
    if (q->graves == NULL)
        return;
    (void)pthread_mutex_lock(&q->mutex);
    while (*link != NULL) {
        subscription *old = *link;

        if (lane_of(q, old)->done < old->grave) {
            link = &old->next;
            continue;
        }
        *link = old->next;
        ie__client_sub_free(old);
    }
    (void)pthread_mutex_unlock(&q->mutex);
}

void
ie__client_dispatch_mute(ie_bus_client *client, subscription *sub)
{
    queue *q = &client->queue;

    if (client->options.dispatch == IE_BUS_DISPATCH_INLINE)
        return; /* the loop itself takes it out */
    (void)pthread_mutex_lock(&q->mutex);
    sub->is_muted = true;
    (void)pthread_mutex_unlock(&q->mutex);
}

void
ie__client_dispatch_await(ie_bus_client *client, uint32_t id)
{
    queue *q = &client->queue;

    (void)pthread_mutex_lock(&q->mutex);
    (void)atomic_fetch_add(&q->watchers, 1);
    while (q->running_id == id && !pthread_equal(q->running_thread, pthread_self()))
        (void)pthread_cond_wait(&q->idle, &q->mutex);
    (void)atomic_fetch_sub(&q->watchers, 1);
    (void)pthread_mutex_unlock(&q->mutex);
}

bool
ie__client_dispatch_is_handler(ie_bus_client *client)
{
    queue *q = &client->queue;
    bool   is_handler;

    (void)pthread_mutex_lock(&q->mutex);
    is_handler = q->running_id != 0 && pthread_equal(q->running_thread, pthread_self());
    (void)pthread_mutex_unlock(&q->mutex);
    return is_handler;
}

/* ---- public ---- */

int
ie_bus_client_fd(const ie_bus_client *client)
{
    return client->queue.fd;
}

/* False: closed. */
static bool
caller_enter(queue *q)
{
    bool may_enter;

    (void)pthread_mutex_lock(&q->mutex);
    may_enter = !q->is_stopping;
    q->callers += may_enter;
    (void)pthread_mutex_unlock(&q->mutex);
    return may_enter;
}

static void
caller_leave(queue *q)
{
    (void)pthread_mutex_lock(&q->mutex);
    if (--q->callers == 0 && atomic_load(&q->watchers) != 0)
        (void)pthread_cond_broadcast(&q->idle);
    (void)pthread_mutex_unlock(&q->mutex);
}

size_t
ie_bus_client_dispatch(ie_bus_client *client, size_t max, uint32_t timeout_ms)
{
    const struct timespec deadline = ie__client_deadline(timeout_ms);
    queue                *q = &client->queue;
    lane                 *from = &q->lanes[LANE_PUSH];
    size_t                ran = 0;
    message              *at;

    if (client->options.dispatch != IE_BUS_DISPATCH_CALLER || !caller_enter(q))
        return 0;
    at = lane_next(client, from, timeout_ms != 0 ? &deadline : NULL);
    if (at != NULL && max == 0) {
        (void)pthread_mutex_lock(&q->mutex);
        max = 1 + (size_t)(from->handed - from->fetched); /* what came later is for later */
        (void)pthread_mutex_unlock(&q->mutex);
    }
    while (at != NULL) {
        message_run(client, from, at);
        at = ++ran < max ? lane_next(client, from, NULL) : NULL;
    }
    lane_leave(client, from);
    caller_leave(q);
    return ran;
}

ie_status
ie_bus_client_next(ie_bus_client *client, const ie_event **event, ie_bus_delivery *delivery,
                   uint32_t timeout_ms, ie_error *err)
{
    const struct timespec deadline = ie__client_deadline(timeout_ms);
    queue                *q = &client->queue;
    lane                 *from = &q->lanes[LANE_PULL];
    ie_bus_delivery       taken;
    ie_status             status = IE_ENOTFOUND;

    if (client->options.dispatch != IE_BUS_DISPATCH_CALLER)
        return ie_error_set(err, IE_ESTATE,
                            "next: the client was not opened with"
                            " IE_BUS_DISPATCH_CALLER");
    if (!caller_enter(q))
        return ie_error_set(err, IE_ECLOSED, "the client was closed");
    while (status == IE_ENOTFOUND) {
        message  *at = lane_next(client, from, timeout_ms != 0 ? &deadline : NULL);
        ie__frame frame;

        if (at == NULL) {
            status = IE_ETIMEDOUT;
            break;
        }
        message_frame(&frame, at);
        status = ie__client_delivery_pull(client, &from->by, at->sub, &frame, at->connection,
                                          &q->pulled, &taken);
        lane_leave(client, from);
        if (status == IE_EPROTO) {
            message_malformed(client);
            status = IE_ENOTFOUND;
        }
    }
    if (status == IE_OK) {
        *event = &q->pulled;
        if (delivery != NULL)
            *delivery = taken;
    } else {
        bool is_stopping;

        (void)pthread_mutex_lock(&q->mutex);
        is_stopping = q->is_stopping;
        (void)pthread_mutex_unlock(&q->mutex);
        status = is_stopping ? ie_error_set(err, IE_ECLOSED, "the client was closed")
                             : ie_error_set(err, IE_ETIMEDOUT, "no event within %u ms", timeout_ms);
    }
    caller_leave(q);
    return status;
}
