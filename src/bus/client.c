/*
 * The client: one thread with a loop that owns the connection, and a small shared part under a
 * mutex through which all other threads hand in publishes and subscriptions.
 *
 * A publish is encoded by its caller into a batch. The first one of a batch wakes the loop, the
 * others ride along: the loop takes the whole batch and writes it in one go. So an idle client
 * writes an event at once, and a busy one writes as much as has come together meanwhile.
 */
#include "client.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "address.h"
#include "codes.h"
#include "core.h"
#include "stream.h"
#include "wire.h"

#define OPTIONS_SIZE_MIN sizeof(ie_bus_client_options)
#define ACK_RUNS         64         /* runs of handled deliveries gathered for one frame */
#define ACK_DELAY_NS     1000000    /* ... but none is kept longer than this while handlers run */
#define ADDRESSES_MAX    8          /* of a host name, tried one after the other */
#define UNSENT_MAX       (1u << 20) /* bytes in the stream's queue; the rest stays in the backlog */

/* One publish that is not answered. */
typedef struct entry {
    ie_bus_answer_fn answered;
    void            *user;
    uint32_t         bytes; /* of its frame */
    bool             is_done;
} entry;

/* Publishes handed in together: their frames, and who asks. */
typedef struct batch {
    ie_buffer frames;
    entry    *entries;
    size_t    count;
    size_t    max;
} batch;

typedef enum sub_state { SUB_NEW, SUB_ASKED, SUB_CONFIRMED, SUB_REFUSED } sub_state;

typedef struct subscription {
    struct subscription *next;
    ie_bus_event_fn      handler;
    void                *user;
    char                *group; /* NULL: none */
    uint32_t             id;
    uint32_t             flags;
    sub_state            state;      /* mutex */
    bool                 is_removed; /* mutex: to be taken out by the loop */
    bool                 is_known;   /* loop: the server was asked on this connection */
    bool                 is_muted;   /* loop: unsubscribed by a handler */
    uint32_t             code;       /* mutex: why it was refused */
    char                 reason[160];
    char                 pattern[];
} subscription;

typedef enum phase {
    PHASE_IDLE,       /* no connection, a timer runs */
    PHASE_CONNECTING, /* name, TCP */
    PHASE_GREETING,
    PHASE_HELLO, /* welcome awaited */
    PHASE_OPEN,
    PHASE_LEAVING /* goodbye said or heard: nothing new is sent */
} phase;

struct ie_bus_client {
    ie_bus_client_options options;
    char                 *url;
    char                 *name;
    char                 *source;
    ie__address           address;
    pthread_t             thread;
    unsigned              generation; /* of fork */

    /* -- shared, under the mutex -- */
    pthread_mutex_t mutex;
    pthread_cond_t  changed; /* state, subscriptions, closing */
    batch           submitted;
    uint32_t        next_request;
    uint32_t        next_sub;
    size_t          unanswered; /* publishes: submitted, waiting, in flight */
    uint64_t        unanswered_bytes;
    subscription   *subs; /* in the order of their ids */
    ie_bus_state    state;
    ie_status       reason_status; /* what the last attempt met */
    char            reason[200];
    uint64_t        commands_done; /* rounds of the loop over the shared part */
    bool            is_offline;    /* known to be disconnected */
    bool            is_signalled;  /* the loop has been woken and has not looked yet */
    bool            is_closing;
    bool            is_closed;
    uint32_t        data_bytes_max; /* the server's; IE_DATA_BYTES_MAX before */

    /* -- the loop's own -- */
    uv_loop_t               loop;
    uv_async_t              async;
    uv_timer_t              timer;       /* next attempt, or the attempt's end, or heartbeat */
    uv_timer_t              close_timer; /* the end of ie_bus_client_close()'s patience */
    uv_getaddrinfo_t        resolve;
    bool                    is_resolving;
    ie__net                 net;
    ie__stream             *stream;
    ie__framer              framer;
    phase                   phase;
    struct sockaddr_storage addresses[ADDRESSES_MAX];
    size_t                  address_count;
    size_t                  address_next;
    uint32_t                attempts; /* failed in a row */
    uint32_t                pings;
    int64_t                 heard_ms;
    batch                   spare;   /* memory for the next batch */
    ie_buffer               backlog; /* frames not sent; from backlog_sent on */
    size_t                  backlog_sent;
    entry                  *flight; /* a ring of all unanswered publishes that the loop knows */
    size_t                  flight_head;
    size_t                  flight_count;
    size_t                  flight_sent;   /* of these, written */
    size_t                  flight_max;    /* a power of two, or 0 */
    uint32_t                flight_first;  /* request number of the head */
    uint32_t                in_flight_max; /* the server's limit */
    struct {
        uint32_t first;
        uint32_t count;
    } acks[ACK_RUNS];
    size_t        ack_count;
    int64_t       ack_since_ns;
    subscription *last_sub; /* found last */
    ie__record    record;
    bool          is_ended; /* the loop is winding up */
    bool          said_goodbye;
    bool          was_refused; /* an error came instead of a welcome */
    char          why[200];    /* this connection ended because; the first reason */
    uint32_t      why_code;
    ie_status     why_status;
};

static void client_try(ie_bus_client *client);
static void client_subs(ie_bus_client *client);

/* ---- options -------------------------------------------------------------------------------- */

void
ie_bus_client_options_init(ie_bus_client_options *options, size_t size)
{
    if (size < sizeof(size_t))
        return;
    memset(options, 0, size);
    options->size = size;
}

static void
default32(uint32_t *value, uint32_t fallback)
{
    if (*value == 0)
        *value = fallback;
}

static ie_status
options_import(ie_bus_client_options *out, const ie_bus_client_options *given, ie_error *err)
{
    ie_status status = IE_OK;

    ie_bus_client_options_init(out, sizeof *out);
    if (given != NULL)
        status = ie__struct_import(out, sizeof *out, given, OPTIONS_SIZE_MIN);
    if (status != IE_OK)
        return ie_error_set(err, status, "client options: %s",
                            status == IE_EINVAL ? "size is not set; use IE_BUS_CLIENT_OPTIONS_INIT"
                                                : "made for a newer library");
    if (out->reserved != 0)
        return ie_error_set(err, IE_EINVAL, "client options: reserved is not 0");
    if ((out->flags & ~IE_BUS_CLIENT_FAIL_OFFLINE) != 0)
        return ie_error_set(err, IE_ENOTSUP, "client options: unknown flags %x", out->flags);
    if (out->url == NULL)
        out->url = IE_BUS_URL_DEFAULT;
    if (out->source == NULL)
        out->source = "ie";
    if (out->publish_queue_bytes_max == 0)
        out->publish_queue_bytes_max = 16u << 20;
    default32(&out->publish_queue_max, 16384);
    default32(&out->connect_timeout_ms, 5000);
    default32(&out->reconnect_delay_ms, 100);
    default32(&out->reconnect_delay_ms_max, 10000);
    default32(&out->ping_interval_ms, 20000);
    default32(&out->ping_missed_max, 2);
    default32(&out->close_timeout_ms, 5000);
    default32(&out->credit, 1024);
    if (out->publish_queue_max > 1u << 22)
        return ie_error_set(err, IE_EINVAL, "publish_queue_max: at most %u", 1u << 22);
    if (out->name != NULL && strlen(out->name) > IE_BUS_NAME_BYTES_MAX)
        return ie_error_set(err, IE_EINVAL, "name: at most %d bytes", IE_BUS_NAME_BYTES_MAX);
    return IE_OK;
}

/* ---- the shared part ------------------------------------------------------------------------ */

static void
client_lock(ie_bus_client *client)
{
    (void)pthread_mutex_lock(&client->mutex);
}

static void
client_unlock(ie_bus_client *client)
{
    (void)pthread_mutex_unlock(&client->mutex);
}

static bool
on_own_thread(const ie_bus_client *client)
{
    return pthread_equal(pthread_self(), client->thread) != 0;
}

/* With the mutex held; true: the caller has to wake the loop after unlocking. */
static bool
client_signal(ie_bus_client *client)
{
    const bool was = client->is_signalled;

    client->is_signalled = true;
    return !was;
}

static struct timespec
deadline_in(uint32_t ms)
{
    struct timespec at;

    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += (long)(ms % 1000) * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

static void
cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &attr);
    (void)pthread_condattr_destroy(&attr);
}

/* Tell everyone where we stand: those who wait, and the callback. */
static void
client_state(ie_bus_client *client, ie_bus_state state, uint32_t retry_ms)
{
    ie_bus_client_status status = {.size = sizeof status, .reason = ""};

    client_lock(client);
    client->state = state;
    client->is_closed = state == IE_BUS_CLOSED;
    client->is_offline = state == IE_BUS_REFUSED || state == IE_BUS_RECONNECTING;
    if (client->is_offline) {
        (void)snprintf(client->reason, sizeof client->reason, "%s", client->why);
        client->reason_status = client->why_status;
    }
    (void)pthread_cond_broadcast(&client->changed);
    client_unlock(client);
    status.state = state;
    status.retry_ms = retry_ms;
    status.attempts = client->attempts;
    if (state == IE_BUS_REFUSED || state == IE_BUS_RECONNECTING) {
        status.reason = client->why;
        status.code = client->why_code;
    }
    ie__log(&client->options.logger, client->attempts == 1 ? IE_LOG_WARN : IE_LOG_INFO, "client",
            "%s: %s%s%s", client->url, ie_bus_state_name(state),
            status.reason[0] != '\0' ? ": " : "", status.reason);
    if (client->options.on_status != NULL)
        client->options.on_status(client->options.user, &status);
}

/* ---- publishes on the loop's side ----------------------------------------------------------- */

static entry *
flight_at(const ie_bus_client *client, size_t index)
{
    return &client->flight[(client->flight_head + index) & (client->flight_max - 1)];
}

static void
answer_one(const entry *asked, ie_status status, uint32_t code, uint64_t receivers,
           const char *reason)
{
    ie_bus_answer answer = {.size = sizeof answer,
                            .reason = reason,
                            .receivers = receivers,
                            .status = status,
                            .code = code};

    if (asked->answered != NULL)
        asked->answered(asked->user, &answer);
}

static void
flight_pop(ie_bus_client *client)
{
    while (client->flight_sent > 0 && flight_at(client, 0)->is_done) {
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
    client_lock(client);
    client->unanswered -= count;
    client->unanswered_bytes -= bytes;
    client_unlock(client);
}

/* Answer the publishes [first, first + count) that were sent and are not answered. */
static void
flight_answer(ie_bus_client *client, uint32_t first, uint32_t count, ie_status status,
              uint32_t code, uint64_t receivers, const char *reason)
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

/* The connection is gone: who was sent will not hear from it. */
static void
flight_lost(ie_bus_client *client)
{
    if (client->flight_sent == 0)
        return;
    flight_answer(client, client->flight_first, (uint32_t)client->flight_sent, IE_EUNREACHABLE,
                  IE_BUS_CODE_NONE, 0, client->why);
}

/* Everything, sent or not, has its answer now. */
static void
flight_fail_all(ie_bus_client *client, ie_status status, const char *reason)
{
    client->flight_sent = client->flight_count; /* so that they count as asked */
    client->backlog.size = client->backlog_sent = 0;
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

/* Take over what was submitted. Out of memory: it stays submitted, the heartbeat tries again. */
static void
client_take(ie_bus_client *client)
{
    batch taken;

    client_lock(client);
    if (client->submitted.count == 0 || !flight_reserve(client, client->submitted.count) ||
        (client->backlog_sent < client->backlog.size &&
         ie__buffer_reserve(&client->backlog, client->submitted.frames.size) != IE_OK)) {
        client_unlock(client);
        return;
    }
    taken = client->submitted;
    client->submitted = client->spare;
    client_unlock(client);

    for (size_t i = 0; i < taken.count; i++)
        *flight_at(client, client->flight_count++) = taken.entries[i];
    if (client->backlog_sent == client->backlog.size) {
        const ie_buffer empty = client->backlog; /* swap: no copy while we keep up */

        client->backlog = taken.frames;
        client->backlog_sent = 0;
        taken.frames = empty;
    } else {
        (void)ie__buffer_add(&client->backlog, taken.frames.data, taken.frames.size);
    }
    taken.frames.size = 0;
    taken.count = 0;
    client->spare = taken;
}

/* Write what may be written: as many as the server lets us have unanswered. */
static void
client_send(ie_bus_client *client)
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
    if (client->backlog_sent == client->backlog.size) {
        client->backlog.size = client->backlog_sent = 0;
    } else if (client->backlog_sent > 1u << 20 && client->backlog_sent > client->backlog.size / 2) {
        client->backlog.size -= client->backlog_sent;
        memmove(client->backlog.data, client->backlog.data + client->backlog_sent,
                client->backlog.size);
        client->backlog_sent = 0;
    }
}

/* ---- frames out ----------------------------------------------------------------------------- */

/* Failure needs no answer: the stream ends then, and on_gone() tells. */
static void
client_write(ie_bus_client *client, const void *bytes, size_t size)
{
    if (client->stream != NULL)
        (void)ie__stream_write(client->stream, bytes, size);
}

static void
client_write_built(ie_bus_client *client, ie_buffer *buffer, ie__builder *b)
{
    if (ie__build_end(b) == IE_OK)
        client_write(client, buffer->data, buffer->size);
    ie_buffer_fini(buffer);
}

static void
send_empty(ie_bus_client *client, ie__frame_type type, uint32_t number)
{
    unsigned char frame[IE__PREFIX_BYTES];

    ie__frame_prefix(frame, type, number, 0);
    client_write(client, frame, sizeof frame);
}

static void
send_hello(ie_bus_client *client)
{
    unsigned char greeting[IE__GREETING_BYTES];
    ie_buffer     buffer = {NULL, 0, 0};
    ie__builder   b;

    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    client_write(client, greeting, sizeof greeting);
    ie__build_begin(&b, &buffer, IE__HELLO, 0);
    ie__build_u32(&b, IE__F_CAPABILITIES, 0);
    ie__build_text(&b, IE__F_NAME, client->name);
    ie__build_u32(&b, IE__F_MESSAGE_BYTES, IE__MESSAGE_MAX);
    ie__build_u32(&b, IE__F_PING_MS, client->options.ping_interval_ms);
    client_write_built(client, &buffer, &b);
}

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
    client_write_built(client, &buffer, &b);
}

static void
flush_acks(ie_bus_client *client)
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
    client_write(client, frame, (size_t)(at - frame));
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
        flush_acks(client);
    client->acks[client->ack_count].first = number;
    client->acks[client->ack_count++].count = 1;
    ie__stream_touch(client->stream);
}

static void
client_say_goodbye(ie_bus_client *client)
{
    unsigned char frame[IE__REASON_FRAME_MAX];

    if (client->said_goodbye)
        return;
    client->said_goodbye = true;
    flush_acks(client);
    client_write(client, frame,
                 ie__reason_frame(frame, IE__GOODBYE, 0, IE_BUS_CODE_DONE, "goodbye"));
    client->phase = PHASE_LEAVING;
}

/* ---- the end of the client ------------------------------------------------------------------ */

static void
client_end(ie_bus_client *client)
{
    if (client->is_ended)
        return;
    client->is_ended = true;
    ie__stream_close(client->stream);
    client->stream = NULL;
    client->phase = PHASE_IDLE;
    if (client->is_resolving)
        (void)uv_cancel((uv_req_t *)&client->resolve);
    client_take(client);
    flight_fail_all(client, IE_ECLOSED, "the client was closed");
    client_state(client, IE_BUS_CLOSED, 0);
    ie__net_fini(&client->net);
    uv_close((uv_handle_t *)&client->timer, NULL);
    uv_close((uv_handle_t *)&client->close_timer, NULL);
    uv_close((uv_handle_t *)&client->async, NULL);
}

static void
on_close_timeout(uv_timer_t *timer)
{
    client_end(timer->data);
}

/* Closing, and nothing left to wait for: say goodbye, or be done. */
static void
client_check_done(ie_bus_client *client)
{
    bool is_closing;
    bool is_done;

    if (client->is_ended)
        return;
    client_lock(client);
    is_closing = client->is_closing;
    is_done = client->unanswered == 0;
    client_unlock(client);
    if (client->phase == PHASE_OPEN && is_closing && is_done)
        client_say_goodbye(client);
    else if (is_closing && is_done && client->phase < PHASE_OPEN)
        client_end(client);
    else if (client->phase == PHASE_LEAVING && client->flight_sent == 0)
        client_say_goodbye(client); /* the server wants us to go, and all answers are in */
}

/* ---- connecting ----------------------------------------------------------------------------- */

static void
client_why(ie_bus_client *client, ie_status status, uint32_t code, const char *reason)
{
    if (client->why[0] != '\0')
        return;
    (void)snprintf(client->why, sizeof client->why, "%.190s", reason);
    client->why_code = code;
    client->why_status = status;
}

static void
on_retry(uv_timer_t *timer)
{
    client_try(timer->data);
}

/* This connection, or attempt, is over: tell, answer, and come again after a random while. */
static void
client_lost(ie_bus_client *client)
{
    uint64_t ceiling = client->options.reconnect_delay_ms;
    uint64_t delay;
    bool     is_closing;

    ie__stream_close(client->stream);
    client->stream = NULL;
    client->phase = PHASE_IDLE;
    client->said_goodbye = false;
    client->ack_count = 0;
    ie__framer_fini(&client->framer);
    if (client->is_ended)
        return;
    client_lock(client);
    is_closing = client->is_closing;
    for (subscription *sub = client->subs; sub != NULL; sub = sub->next) {
        sub->is_known = false;
        sub->state = SUB_NEW; /* a refusal, too, is asked again */
    }
    is_closing =
        is_closing && client->flight_count == client->flight_sent && client->submitted.count == 0;
    client_unlock(client);
    if (is_closing) { /* nothing that another connection could help */
        client_end(client);
        return;
    }
    for (uint32_t i = 0; i < client->attempts && ceiling < client->options.reconnect_delay_ms_max;
         i++)
        ceiling *= 2;
    if (ceiling > client->options.reconnect_delay_ms_max)
        ceiling = client->options.reconnect_delay_ms_max;
    delay = ie__random_below(ceiling + 1);
    if (client->attempts < UINT32_MAX)
        client->attempts++;
    /* First the state, then the answers: who publishes again in an answer must meet it. */
    client_state(client, client->was_refused ? IE_BUS_REFUSED : IE_BUS_RECONNECTING,
                 (uint32_t)delay);
    flight_lost(client);
    if ((client->options.flags & IE_BUS_CLIENT_FAIL_OFFLINE) != 0) {
        client_take(client);
        flight_fail_all(client, IE_EUNREACHABLE, client->why);
    }
    (void)uv_timer_start(&client->timer, on_retry, delay, 0);
    client_check_done(client);
}

static void
client_fail(ie_bus_client *client, ie_status status, uint32_t code, const char *reason)
{
    client_why(client, status, code, reason);
    client_lost(client);
}

static void
on_attempt_timeout(uv_timer_t *timer)
{
    ie_bus_client *client = timer->data;

    client_fail(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, "no answer from the bus in time");
}

static void client_connect_next(ie_bus_client *client, int last_error);

static void
on_connected(void *owner, int error)
{
    ie_bus_client *client = owner;

    if (error != 0) {
        ie__stream_close(client->stream);
        client->stream = NULL;
        client_connect_next(client, error);
        return;
    }
    client->phase = PHASE_GREETING;
    client->heard_ms = (int64_t)uv_now(&client->loop);
    ie__stream_user_timeout(client->stream, client->options.ping_interval_ms);
    send_hello(client);
}

static const ie__stream_ops STREAM_OPS;

static void
client_connect_next(ie_bus_client *client, int last_error)
{
    while (client->address_next < client->address_count) {
        const struct sockaddr *address =
            (const struct sockaddr *)&client->addresses[client->address_next++];
        int error;

        client->stream = ie__stream_new(&client->net, client->address.is_unix, &STREAM_OPS, client);
        if (client->stream == NULL) {
            client_fail(client, IE_ENOMEM, IE_BUS_CODE_NONE, "out of memory");
            return;
        }
        error = ie__stream_connect(client->stream, address, client->address.path, on_connected);
        if (error == 0)
            return;
        last_error = error;
        ie__stream_close(client->stream);
        client->stream = NULL;
    }
    client_fail(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, uv_strerror(last_error));
}

static void
on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *list)
{
    ie_bus_client *client = request->data;

    client->is_resolving = false;
    if (client->is_ended || client->phase != PHASE_CONNECTING) {
        uv_freeaddrinfo(list);
        return;
    }
    for (struct addrinfo *at = list; at != NULL && client->address_count < ADDRESSES_MAX;
         at = at->ai_next)
        if (at->ai_addrlen <= sizeof client->addresses[0])
            memcpy(&client->addresses[client->address_count++], at->ai_addr, at->ai_addrlen);
    uv_freeaddrinfo(list);
    client_connect_next(client, status != 0 ? status : UV_EAI_NONAME);
}

static void
client_try(ie_bus_client *client)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC};
    const int port = client->address.port != 0 ? client->address.port : IE__ADDRESS_PORT_DEFAULT;
    char      service[16];
    int       error;

    if (client->is_resolving) { /* the last one is still out: names take their time */
        (void)uv_timer_start(&client->timer, on_retry, 100, 0);
        return;
    }
    client->phase = PHASE_CONNECTING;
    client->why[0] = '\0';
    client->why_code = IE_BUS_CODE_NONE;
    client->why_status = IE_OK;
    client->was_refused = false;
    client->pings = 0;
    client->address_count = client->address_next = 0;
    client->framer.message_max = IE__HELLO_MESSAGE_MAX;
    (void)uv_timer_start(&client->timer, on_attempt_timeout, client->options.connect_timeout_ms, 0);
    if (client->address.is_unix ||
        ie__address_numeric(&client->addresses[0], client->address.host, port)) {
        client->address_count = 1;
        client_connect_next(client, 0);
        return;
    }
    (void)snprintf(service, sizeof service, "%d", port);
    client->resolve.data = client;
    error = uv_getaddrinfo(&client->loop, &client->resolve, on_resolved, client->address.host,
                           service, &hints);
    if (error != 0)
        client_fail(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, uv_strerror(error));
    else
        client->is_resolving = true;
}

/* While connected: is the server still there? Also picks up what memory forbade before. */
static void
on_heartbeat(uv_timer_t *timer)
{
    ie_bus_client *client = timer->data;
    const int64_t  silent = (int64_t)uv_now(&client->loop) - client->heard_ms;

    client_subs(client);
    client_take(client);
    client_send(client);
    if (silent < (int64_t)client->options.ping_interval_ms * (client->pings + 1))
        return;
    if (client->pings >= client->options.ping_missed_max) {
        client_fail(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, "the bus went silent");
        return;
    }
    client->pings++;
    send_empty(client, IE__PING, client->pings);
}

/* ---- frames in ------------------------------------------------------------------------------ */

/* Every handler returns IE_OK, or ends the connection with a reason. */
static ie_status
broken(ie_bus_client *client, const char *what)
{
    client_why(client, IE_EPROTO, IE_BUS_CODE_NONE, what);
    return IE_EPROTO;
}

static ie_status
on_welcome(ie_bus_client *client, const ie__frame *frame)
{
    const unsigned char *at = frame->body;
    const unsigned char *end = at + frame->body_bytes;
    char                 name[IE_BUS_NAME_BYTES_MAX + 1];
    uint32_t             data_bytes = IE_DATA_BYTES_MAX;
    uint32_t             number;
    uint64_t             every = client->options.ping_interval_ms / 4;
    ie__field            field;
    ie_status            status;

    client->in_flight_max = 1024; /* of a server that does not say */
    while ((status = ie__field_next(&field, &at, end)) == IE_OK) {
        switch (field.tag) {
        case IE__F_NAME: status = ie__field_text(name, IE_BUS_NAME_BYTES_MAX, &field); break;
        case IE__F_DATA_BYTES: status = ie__field_u32(&data_bytes, &field); break;
        case IE__F_IN_FLIGHT: status = ie__field_u32(&client->in_flight_max, &field); break;
        case IE__F_CAPABILITIES:
        case IE__F_MESSAGE_BYTES:
        case IE__F_PING_MS:
        case IE__F_SUBSCRIPTIONS:
        case IE__F_CREDIT: status = ie__field_u32(&number, &field); break;
        default: status = field.tag >= IE__FIELD_OPTIONAL ? IE_OK : IE_EPROTO; break;
        }
        if (status != IE_OK)
            return broken(client, "a malformed welcome");
    }
    if (status != IE_ENOTFOUND || client->in_flight_max == 0)
        return broken(client, "a malformed welcome");
    client->phase = PHASE_OPEN;
    client->attempts = 0;
    client->framer.message_max = IE__MESSAGE_MAX;
    (void)uv_timer_start(&client->timer, on_heartbeat, every > 10 ? every : 10,
                         every > 10 ? every : 10);
    client_lock(client);
    client->data_bytes_max = data_bytes;
    for (subscription *sub = client->subs; sub != NULL; sub = sub->next) {
        if (!sub->is_removed) {
            sub->state = SUB_ASKED;
            send_subscribe(client, sub);
        }
    }
    client_unlock(client);
    client_state(client, IE_BUS_CONNECTED, 0);
    client_take(client);
    client_send(client);
    return IE_OK;
}

static ie_status
on_puback(ie_bus_client *client, const ie__frame *frame)
{
    if (frame->body_bytes == 0 || frame->body_bytes % 12 != 0)
        return broken(client, "a malformed puback");
    for (size_t at = 0; at < frame->body_bytes; at += 12)
        flight_answer(client, ie__get32(frame->body + at), ie__get32(frame->body + at + 4), IE_OK,
                      IE_BUS_CODE_NONE, ie__get32(frame->body + at + 8), "");
    client_send(client);
    return IE_OK;
}

static ie_status
on_pubnack(ie_bus_client *client, const ie__frame *frame)
{
    ie__reason reason;
    ie_status  status;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return broken(client, "a malformed pubnack");
    status = ie__bus_code_status(reason.code);
    flight_answer(client, frame->number, 1, status != IE_OK ? status : IE_EREFUSED, reason.code, 0,
                  reason.text[0] != '\0' ? reason.text : ie_bus_code_text(reason.code));
    client_send(client);
    return IE_OK;
}

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

static ie_status
on_subscribed(ie_bus_client *client, const ie__frame *frame)
{
    sub_answered(client, frame->number, SUB_CONFIRMED, NULL);
    return IE_OK;
}

static ie_status
on_subrefused(ie_bus_client *client, const ie__frame *frame)
{
    subscription *sub;
    ie__reason    reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return broken(client, "a malformed refusal");
    if (reason.code == IE_BUS_CODE_MEMORY && (sub = find_sub(client, frame->number)) != NULL)
        sub->is_known = false; /* that passes: the heartbeat asks again */
    else
        sub_answered(client, frame->number, SUB_REFUSED, &reason);
    return IE_OK;
}

static ie_status
on_unsubscribed(ie_bus_client *client, const ie__frame *frame)
{
    (void)client; /* we forgot it when we asked */
    (void)frame;
    return IE_OK;
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
    flush_acks(client); /* answers leave in the order of the deliveries */
    client_write(client, frame, ie__reason_frame(frame, IE__NACK, number, code, text));
}

static ie_status
on_deliver(ie_bus_client *client, const ie__frame *frame)
{
    const bool    is_acked = frame->type == IE__DELIVER_ACK;
    subscription *sub = find_sub(client, frame->number);
    ie_error      err = IE_ERROR_INIT;
    ie_event      event;
    ie_status     status;
    uint32_t      number;

    if (frame->body_bytes < 4)
        return broken(client, "a malformed delivery");
    if (ie__record_parse(&client->record, frame->body + 4, frame->body_bytes - 4, IE_DATA_BYTES_MAX,
                         &err) != IE_OK)
        return broken(client, "a malformed event");
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
    /* While handlers take their time, the answers of those that are done must not wait. */
    if (client->ack_count != 0) {
        const int64_t now = ie__mono_ns();

        if (now - client->ack_since_ns > ACK_DELAY_NS) {
            client->ack_since_ns = now;
            flush_acks(client);
            if (client->stream != NULL)
                ie__stream_flush(client->stream);
        }
    }
    return client->stream != NULL ? IE_OK : IE_ECLOSED;
}

static ie_status
on_ping(ie_bus_client *client, const ie__frame *frame)
{
    send_empty(client, IE__PONG, frame->number);
    return IE_OK;
}

static ie_status
on_pong(ie_bus_client *client, const ie__frame *frame)
{
    (void)client; /* being heard is all there is to it */
    (void)frame;
    return IE_OK;
}

static ie_status
on_error(ie_bus_client *client, const ie__frame *frame)
{
    ie__reason reason;
    ie_status  status;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return broken(client, "a malformed error");
    client->was_refused = client->phase < PHASE_OPEN;
    status = ie__bus_code_status(reason.code);
    client_why(client, status != IE_OK ? status : IE_EREFUSED, reason.code,
               reason.text[0] != '\0' ? reason.text : ie_bus_code_text(reason.code));
    return IE_ECLOSED;
}

static ie_status
on_goodbye(ie_bus_client *client, const ie__frame *frame)
{
    ie__reason reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return broken(client, "a malformed goodbye");
    if (client->said_goodbye && reason.code == IE_BUS_CODE_DONE) {
        client_why(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, "the connection was ended in order");
        return IE_ECLOSED;
    }
    client_why(client, IE_EUNREACHABLE, reason.code, reason.text);
    client->phase = PHASE_LEAVING; /* answers to what was sent still come */
    ie__stream_touch(client->stream);
    return IE_OK;
}

typedef ie_status (*frame_fn)(ie_bus_client *client, const ie__frame *frame);

/* Which frames a server may send, and from when on. */
static const struct {
    uint8_t  type;
    phase    from;
    phase    to;
    frame_fn handle;
} FRAMES[] = {
    {IE__DELIVER, PHASE_OPEN, PHASE_LEAVING, on_deliver},
    {IE__DELIVER_ACK, PHASE_OPEN, PHASE_LEAVING, on_deliver},
    {IE__PUBACK, PHASE_OPEN, PHASE_LEAVING, on_puback},
    {IE__PUBNACK, PHASE_OPEN, PHASE_LEAVING, on_pubnack},
    {IE__PING, PHASE_OPEN, PHASE_LEAVING, on_ping},
    {IE__PONG, PHASE_OPEN, PHASE_LEAVING, on_pong},
    {IE__SUBSCRIBED, PHASE_OPEN, PHASE_LEAVING, on_subscribed},
    {IE__SUBREFUSED, PHASE_OPEN, PHASE_LEAVING, on_subrefused},
    {IE__UNSUBSCRIBED, PHASE_OPEN, PHASE_LEAVING, on_unsubscribed},
    {IE__WELCOME, PHASE_HELLO, PHASE_HELLO, on_welcome},
    {IE__ERROR, PHASE_GREETING, PHASE_LEAVING, on_error},
    {IE__GOODBYE, PHASE_OPEN, PHASE_LEAVING, on_goodbye},
};

static ie_status
on_message(void *user, unsigned char *message, size_t bytes)
{
    ie_bus_client *client = user;
    ie_error       err = IE_ERROR_INIT;
    ie__frame      frame;

    if (client->stream == NULL)
        return IE_ECLOSED;
    if (ie__frame_parse(&frame, message, bytes, &err) != IE_OK)
        return broken(client, err.message);
    for (size_t i = 0; i < sizeof FRAMES / sizeof *FRAMES; i++) {
        if (FRAMES[i].type != frame.type)
            continue;
        if (client->phase < FRAMES[i].from || client->phase > FRAMES[i].to)
            break;
        return FRAMES[i].handle(client, &frame);
    }
    return (frame.type & IE__FRAME_OPTIONAL) != 0 ? IE_OK : broken(client, "a frame out of place");
}

static ie_status
on_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    ie_bus_client *client = user;

    switch (ie__greeting_get(bytes)) {
    case IE__SP_EB2_BUS: client->phase = PHASE_HELLO; return IE_OK;
    case IE__SP_EB1_BUS: return broken(client, "that is an eb/1 bus; this client speaks eb/2");
    default: return broken(client, "what listens there is not a bus");
    }
}

static const ie__framer_ops FRAMER_OPS = {on_greeting, on_message};

static void
on_data(void *owner, unsigned char *bytes, size_t size)
{
    ie_bus_client *client = owner;
    ie_error       err = IE_ERROR_INIT;
    ie_status      status;

    client->heard_ms = (int64_t)uv_now(&client->loop);
    client->pings = 0;
    status = ie__framer_push(&client->framer, bytes, size, &FRAMER_OPS, client, &err);
    if (client->stream == NULL || status == IE_OK)
        return;
    client_why(client, status, IE_BUS_CODE_NONE,
               err.message[0] != '\0' ? err.message : "the protocol was broken");
    client_lost(client);
}

static void
on_gone(void *owner, const char *reason)
{
    ie_bus_client *client = owner;

    client_why(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, reason);
    client_lost(client);
}

static void
before_flush(void *owner)
{
    ie_bus_client *client = owner;

    flush_acks(client);
    client_check_done(client);
}

static void
on_drained(void *owner)
{
    client_send(owner);
}

static const ie__stream_ops STREAM_OPS = {on_data, on_gone, before_flush, on_drained};

/* ---- the loop ------------------------------------------------------------------------------- */

static void
sub_free(subscription *sub)
{
    ie__free(sub->group);
    ie__free(sub);
}

/* New subscriptions are asked for, removed ones are ended. */
static void
client_subs(ie_bus_client *client)
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
            send_empty(client, IE__UNSUBSCRIBE, sub->id);
        sub_free(sub);
    }
}

static void
on_async(uv_async_t *async)
{
    ie_bus_client *client = async->data;
    bool           is_closing;

    if (client->is_ended)
        return;
    client_lock(client);
    client->is_signalled = false;
    is_closing = client->is_closing;
    client_unlock(client);
    client_subs(client);
    client_take(client);
    client_send(client);
    if ((client->options.flags & IE_BUS_CLIENT_FAIL_OFFLINE) != 0 && client->is_offline)
        flight_fail_all(client, IE_EUNREACHABLE, client->why);
    if (is_closing) {
        if (!uv_is_active((uv_handle_t *)&client->close_timer))
            (void)uv_timer_start(&client->close_timer, on_close_timeout,
                                 client->options.close_timeout_ms, 0);
        client_check_done(client);
    }
}

static void *
client_main(void *arg)
{
    ie_bus_client *client = arg;

    ie__net_thread_enter("ie-client");
    client_state(client, IE_BUS_CONNECTING, 0);
    client_try(client);
    (void)uv_run(&client->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* ---- public --------------------------------------------------------------------------------- */

static void
client_free(ie_bus_client *client)
{
    while (client->subs != NULL) {
        subscription *sub = client->subs;

        client->subs = sub->next;
        sub_free(sub);
    }
    ie__net_free(&client->net);
    ie__framer_fini(&client->framer);
    ie_buffer_fini(&client->submitted.frames);
    ie__free(client->submitted.entries);
    ie_buffer_fini(&client->spare.frames);
    ie__free(client->spare.entries);
    ie_buffer_fini(&client->backlog);
    ie__free(client->flight);
    ie__free(client->url);
    ie__free(client->name);
    ie__free(client->source);
    (void)pthread_cond_destroy(&client->changed);
    (void)pthread_mutex_destroy(&client->mutex);
    ie__free(client);
}

static ie_status
client_set_names(ie_bus_client *client, ie_error *err)
{
    static const char *const NO_OPTIONS[] = {NULL};
    ie__url                 *url = ie__alloc(sizeof *url);
    char                     name[IE_BUS_NAME_BYTES_MAX + 1];
    char                     address[IE__ADDRESS_TEXT_SIZE];
    ie_status                status;

    if (url == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    status = ie__address_parse(&client->address, url, client->options.url, err);
    if (status == IE_OK)
        status = ie__url_known_options(url, NO_OPTIONS, err);
    ie__free(url);
    if (status != IE_OK)
        return status;
    ie__address_text(address, &client->address);
    (void)snprintf(name, sizeof name, "%s/%ld", program_invocation_short_name, (long)getpid());
    client->url = ie__strdup(address);
    client->name = ie__strdup(client->options.name != NULL ? client->options.name : name);
    client->source = ie__strdup(client->options.source);
    if (client->url == NULL || client->name == NULL || client->source == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    client->options.url = client->options.name = client->options.source = NULL; /* the caller's */
    return IE_OK;
}

static ie_status
client_start(ie_bus_client *client, ie_error *err)
{
    if (uv_loop_init(&client->loop) != 0)
        return ie_error_set(err, IE_EIO, "cannot make an event loop: out of file descriptors?");
    (void)uv_timer_init(&client->loop, &client->timer);
    (void)uv_timer_init(&client->loop, &client->close_timer);
    client->timer.data = client->close_timer.data = client->async.data = client;
    if (uv_async_init(&client->loop, &client->async, on_async) == 0) {
        client->async.data = client;
        if (ie__net_init(&client->net, &client->loop) == IE_OK) {
            if (pthread_create(&client->thread, NULL, client_main, client) == 0)
                return IE_OK;
            ie__net_fini(&client->net);
        }
        uv_close((uv_handle_t *)&client->async, NULL);
    }
    uv_close((uv_handle_t *)&client->timer, NULL);
    uv_close((uv_handle_t *)&client->close_timer, NULL);
    (void)uv_run(&client->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&client->loop);
    return ie_error_set(err, IE_EIO, "cannot start the client's thread");
}

ie_status
ie_bus_client_open(ie_bus_client **out, const ie_bus_client_options *options, ie_error *err)
{
    ie_bus_client_options imported;
    ie_status             status = options_import(&imported, options, err);
    ie_bus_client        *client;

    if (status != IE_OK)
        return status;
    client = ie__calloc(1, sizeof *client);
    if (client == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    client->options = imported;
    client->data_bytes_max = IE_DATA_BYTES_MAX;
    client->next_request = client->flight_first = 1;
    client->generation = ie__fork_generation();
    (void)pthread_mutex_init(&client->mutex, NULL);
    cond_init(&client->changed);
    status = client_set_names(client, err);
    if (status == IE_OK)
        status = client_start(client, err);
    if (status != IE_OK) {
        client_free(client);
        return status;
    }
    *out = client;
    return IE_OK;
}

ie_bus_state
ie_bus_client_state(ie_bus_client *client)
{
    ie_bus_state state;

    client_lock(client);
    state = client->state;
    client_unlock(client);
    return state;
}

ie_status
ie_bus_client_wait_connected(ie_bus_client *client, uint32_t timeout_ms, ie_error *err)
{
    const struct timespec deadline = deadline_in(timeout_ms);
    ie_status             status = IE_OK;

    if (on_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    client_lock(client);
    while (client->state != IE_BUS_CONNECTED && !client->is_closing && status == IE_OK)
        if (pthread_cond_timedwait(&client->changed, &client->mutex, &deadline) == ETIMEDOUT)
            status = IE_ETIMEDOUT;
    if (client->state == IE_BUS_CONNECTED)
        status = IE_OK;
    else if (client->is_closing)
        status = ie_error_set(err, IE_ECLOSED, "the client was closed");
    else if (client->state == IE_BUS_REFUSED)
        status = ie_error_set(err, IE_EREFUSED, "%s: %s", client->url, client->reason);
    else if (client->is_offline)
        status = ie_error_set(err, IE_EUNREACHABLE, "%s: %s", client->url, client->reason);
    else
        status = ie_error_set(err, IE_ETIMEDOUT, "%s: no answer yet", client->url);
    client_unlock(client);
    return status;
}

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
    if (client->unanswered >= client->options.publish_queue_max)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_max: %zu events are unanswered",
                            client->unanswered);
    if (client->unanswered_bytes + bytes > client->options.publish_queue_bytes_max &&
        client->unanswered != 0)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_bytes_max: %llu bytes are unanswered",
                            (unsigned long long)client->unanswered_bytes);
    return IE_OK;
}

/* With the mutex held. */
static ie_status
publish_add(ie_bus_client *client, const ie_event *event, uint32_t flags, size_t record,
            const entry *asked)
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
    ie__frame_prefix(at, IE__PUBLISH, client->next_request++, 4 + record);
    ie__put32(at + IE__PREFIX_BYTES, flags);
    (void)ie__record_put(at + IE__PREFIX_BYTES + 4, event);
    to->frames.size += asked->bytes;
    to->entries[to->count++] = *asked;
    client->unanswered++;
    client->unanswered_bytes += asked->bytes;
    return IE_OK;
}

ie_status
ie_bus_client_publish(ie_bus_client *client, const ie_event *event, uint32_t flags,
                      ie_bus_answer_fn answered, void *user, ie_error *err)
{
    const bool is_checked = (flags & IE__BUS_PUBLISH_CHECKED) != 0;
    ie_event   full = IE_EVENT_INIT;
    char       id[IE_ID_SIZE];
    entry      asked = {.answered = answered, .user = user};
    ie_status  status;
    size_t     record;
    bool       must_wake;

    flags &= ~IE__BUS_PUBLISH_CHECKED;
    if ((flags & ~IE__PUBLISH_FLAGS) != 0)
        return ie_error_set(err, IE_EINVAL, "unknown publish flags %x", flags);
    if (client->generation != ie__fork_generation())
        return ie_error_set(err, IE_EFORKED, "the client belongs to the parent process");
    status = is_checked ? IE_OK : ie_event_check(event, err);
    if (status == IE_OK)
        status = ie__struct_import(&full, sizeof full, event, offsetof(ie_event, dedupe_key));
    if (status != IE_OK)
        return ie_error_set(err, status, "the event's size is not set; use IE_EVENT_INIT");
    if (full.id == NULL) {
        ie_id_new(id);
        full.id = id;
    }
    if (full.type == NULL)
        full.type = full.topic;
    if (full.source == NULL)
        full.source = client->source;
    if (full.time_ms == 0)
        full.time_ms = ie__wall_ms(&ie__system_clock);
    record = ie__record_size(&full);
    asked.bytes = (uint32_t)(IE__PREFIX_BYTES + 4 + record);

    client_lock(client);
    status = publish_admit(client, &full, asked.bytes, err);
    if (status == IE_OK && publish_add(client, &full, flags, record, &asked) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "no memory for a publish");
    must_wake = status == IE_OK && client_signal(client);
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
    const struct timespec deadline = deadline_in(timeout_ms);
    ie_status             status;
    waiter               *w;

    if (on_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    w = ie__calloc(1, sizeof *w);
    if (w == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a publish");
    (void)pthread_mutex_init(&w->mutex, NULL);
    cond_init(&w->cond);
    w->refs = 2;
    status = ie_bus_client_publish(client, event, flags, waiter_answered, w, err);
    (void)pthread_mutex_lock(&w->mutex);
    if (status != IE_OK) {
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
    waiter_release(w);
    return status;
}

ie_status
ie_bus_client_subscribe(ie_bus_client *client, const char *pattern, const char *group,
                        uint32_t flags, ie_bus_event_fn handler, void *user, uint32_t *id,
                        ie_error *err)
{
    const size_t   pattern_bytes = pattern != NULL ? strlen(pattern) + 1 : 0;
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
    sub = ie__calloc(1, sizeof *sub + pattern_bytes);
    if (sub != NULL && group != NULL)
        sub->group = ie__strdup(group);
    if (sub == NULL || (group != NULL && sub->group == NULL)) {
        ie__free(sub);
        return ie_error_set(err, IE_ENOMEM, "no memory for a subscription");
    }
    memcpy(sub->pattern, pattern, pattern_bytes);
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
    const struct timespec deadline = deadline_in(timeout_ms);
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

void
ie_bus_client_close(ie_bus_client *client)
{
    if (client == NULL)
        return;
    if (on_own_thread(client)) {
        ie__log(&client->options.logger, IE_LOG_ERROR, "client",
                "ie_bus_client_close() on the client's own thread does nothing");
        return;
    }
    if (client->generation != ie__fork_generation())
        return; /* a child's copy: the thread and the connection are the parent's */
    client_lock(client);
    client->is_closing = true;
    (void)client_signal(client);
    (void)pthread_cond_broadcast(&client->changed);
    client_unlock(client);
    (void)uv_async_send(&client->async);
    (void)pthread_join(client->thread, NULL);
    (void)uv_loop_close(&client->loop);
    client_free(client);
}
