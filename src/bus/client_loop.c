/* One connection after the other, on the client's own thread. */
#include "client_parts.h"

#include <stdio.h>
#include <time.h>

#include "secret.h"

#define BATCH_FULL   24    /* publishes that came together */
#define FULL_BATCHES 4     /* in a row are a stream */
#define GATHER_NS    50000 /* and then so long is worth it, if so many come meanwhile: */
#define GATHERED_MIN 128

static void client_try(ie_bus_client *client);

/* ---- telling ---- */

/* Tell everyone where we stand: those who wait, and the callback. */
static void
client_state_set(ie_bus_client *client, ie_bus_state state, uint32_t retry_ms)
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

/* ---- frames out ---- */

void
ie__client_write(ie_bus_client *client, const void *bytes, size_t size)
{
    if (client->stream != NULL)
        (void)ie__stream_write(client->stream, bytes, size);
}

void
ie__client_write_built(ie_bus_client *client, ie_buffer *buffer, ie__builder *b)
{
    if (ie__build_end(b) == IE_OK)
        ie__client_write(client, buffer->data, buffer->size);
    ie_buffer_fini(buffer);
}

void
ie__client_write_empty(ie_bus_client *client, ie__frame_type type, uint32_t number)
{
    unsigned char frame[IE__PREFIX_BYTES];

    ie__frame_prefix(frame, type, number, 0);
    ie__client_write(client, frame, sizeof frame);
}

static void
client_say_goodbye(ie_bus_client *client)
{
    unsigned char frame[IE__REASON_FRAME_MAX];

    if (client->said_goodbye)
        return;
    ie__client_replies_write(client);
    ie__client_acks_flush(client, &client->by);
    ie__client_talk(client);
    client->said_goodbye = true;
    ie__client_write(client, frame,
                     ie__reason_frame(frame, IE__GOODBYE, 0, IE_BUS_CODE_DONE, "goodbye"));
    client->phase = PHASE_LEAVING;
}

/* ---- the end of the client ---- */

static void
client_end(ie_bus_client *client)
{
    if (client->is_ended)
        return;
    client->is_ended = true;
    ie__stream_close(client->stream);
    client->stream = NULL;
    client->phase = PHASE_IDLE;
    ie__dial_cancel(&client->dial);
    ie__client_take(client);
    ie__client_flight_fail_all(client, IE_ECLOSED, "the client was closed");
    ie__client_queries_lost(client, IE_ECLOSED, "the client was closed");
    client_state_set(client, IE_BUS_CLOSED, 0);
    ie__net_fini(&client->net);
    uv_close((uv_handle_t *)&client->timer, NULL);
    uv_close((uv_handle_t *)&client->close_timer, NULL);
    uv_close((uv_handle_t *)&client->queries.timer, NULL);
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
    bool may_leave; /* handlers are at rest */
    bool has_queries;

    if (client->is_ended)
        return;
    client_lock(client);
    is_closing = client->is_closing;
    may_leave = client->may_leave;
    is_done = client_unanswered(client) == 0 && may_leave;
    has_queries = !ie__client_queries_are_done(client);
    client_unlock(client);
    if (client->phase == PHASE_OPEN && is_closing && is_done)
        client_say_goodbye(client);
    else if (is_closing && is_done && client->phase < PHASE_OPEN)
        client_end(client);
    else if (client->phase == PHASE_LEAVING && !client->said_goodbye && client->flight_sent == 0 &&
             (is_closing ? may_leave : !has_queries && ie__client_dispatch_is_idle(client)))
        client_say_goodbye(client); /* the server wants us to go, and all answers are in */
}

/* ---- the end of a connection ---- */

void
ie__client_why(ie_bus_client *client, ie_status status, uint32_t code, const char *reason)
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

/* With the mutex held: is there something that another connection could help? */
static bool
client_is_owing(const ie_bus_client *client)
{
    return client->submitted.count != 0 || client->flight_count != client->flight_sent ||
           ((client->options.flags & IE_BUS_CLIENT_REPUBLISH) != 0 && client->flight_count != 0);
}

/* This connection, or attempt, is over: tell, answer, and come again after a random while. */
static void
client_lost(ie_bus_client *client)
{
    uint64_t delay;
    bool     is_closing;

    ie__dial_cancel(&client->dial);
    ie__stream_close(client->stream);
    client->stream = NULL;
    client->phase = PHASE_IDLE;
    client->said_goodbye = false;
    client->by.acks.run_count = 0;
    client->by.acks.total = 0;
    ie__framer_fini(&client->framer);
    if (client->is_ended)
        return;
    client_lock(client);
    atomic_store(&client->connection, atomic_load(&client->connection) + 1);
    ie__client_replies_forget(client);
    ie__client_subs_forget(client);
    ie__client_queries_shut(client);
    is_closing = client->is_closing && !client_is_owing(client);
    client_unlock(client);
    if (is_closing) { /* nothing that another connection could help */
        client_end(client);
        return;
    }
    delay = ie__dial_retry_ms(client->options.reconnect_delay_ms,
                              client->options.reconnect_delay_ms_max, client->attempts);
    if (client->attempts < UINT32_MAX)
        client->attempts++;
    /* First the state, then the answers: who publishes again in an answer must meet it. */
    client_state_set(client, client->was_refused ? IE_BUS_REFUSED : IE_BUS_RECONNECTING,
                     (uint32_t)delay);
    ie__client_flight_lost(client);
    ie__client_queries_lost(client, IE_EUNREACHABLE, client->why);
    if ((client->options.flags & IE_BUS_CLIENT_FAIL_OFFLINE) != 0) {
        ie__client_take(client);
        ie__client_flight_fail_all(client, IE_EUNREACHABLE, client->why);
    }
    (void)uv_timer_start(&client->timer, on_retry, delay, 0);
    client_check_done(client);
}

static void
client_fail(ie_bus_client *client, ie_status status, uint32_t code, const char *reason)
{
    ie__client_why(client, status, code, reason);
    client_lost(client);
}

static void
on_attempt_timeout(uv_timer_t *timer)
{
    ie_bus_client *client = timer->data;

    client_fail(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE,
                client->phase == PHASE_GREETING
                    ? "what listens there said nothing in time: it may not be a bus"
                    : "no answer from the bus in time");
}

/* ---- the stream ---- */

static void
on_data(void *owner, unsigned char *bytes, size_t size)
{
    ie_bus_client *client = owner;
    ie_error       err = IE_ERROR_INIT;
    ie_status      status;

    client->heard_ms = (int64_t)uv_now(&client->loop);
    client->pings = 0;
    status = ie__framer_push(&client->framer, bytes, size, &ie__client_framer_ops, client, &err);
    ie__client_dispatch_hand_over(client);
    if (client->stream == NULL || status == IE_OK)
        return;
    ie__client_why(client, status, IE_BUS_CODE_NONE,
                   err.message[0] != '\0' ? err.message : "the protocol was broken");
    client_lost(client);
}

static void
on_gone(void *owner, const char *reason)
{
    ie_bus_client *client = owner;

    if (client->phase == PHASE_GREETING && !ie__stream_tls_failed(client->stream)) {
        /* the reason must not read like a network's fault */
        char text[160];

        (void)snprintf(text, sizeof text,
                       "what listens there is not a bus: it ended the connection"
                       " instead of a greeting (%.60s)",
                       reason);
        ie__client_why(client, IE_EPROTO, IE_BUS_CODE_NONE, text);
    }
    ie__client_why(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, reason);
    client_lost(client);
}

static void
before_flush(void *owner)
{
    ie_bus_client *client = owner;

    ie__client_acks_flush(client, &client->by);
    ie__client_talk(client);
    client_check_done(client);
}

static void
on_drained(void *owner)
{
    ie__client_talk(owner);
    ie__client_send(owner);
}

static const ie__stream_ops STREAM_OPS = {on_data, on_gone, before_flush, on_drained};

/* ---- connecting ---- */

static void
send_hello(ie_bus_client *client)
{
    unsigned char greeting[IE__GREETING_BYTES];
    ie_buffer     buffer = {NULL, 0, 0};
    ie_error      err = IE_ERROR_INIT;
    ie__builder   b;

    /* At once: a buffer that grows leaves copies of a password behind. */
    (void)ie__buffer_reserve(&buffer, IE__HELLO_MESSAGE_MAX);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    ie__client_write(client, greeting, sizeof greeting);
    ie__build_begin(&b, &buffer, IE__HELLO, 0);
    ie__build_u32(&b, IE__F_CAPABILITIES, IE__CAP_STORAGE | IE__CAP_QUERIES);
    ie__build_text(&b, IE__F_NAME, client->name);
    ie__build_u32(&b, IE__F_MESSAGE_BYTES, IE__MESSAGE_MAX);
    ie__build_u32(&b, IE__F_PING_MS, client->options.ping_interval_ms);
    if (ie__client_login_put(client, &b, &err) != IE_OK) {
        ie__secret_fini(&buffer);
        client_fail(client, err.status, IE_BUS_CODE_NONE, err.message);
        return;
    }
    if (ie__build_end(&b) == IE_OK)
        ie__client_write(client, buffer.data, buffer.size);
    ie__stream_wipe(client->stream);
    ie__secret_fini(&buffer);
}

static ie_status
before_connect(void *owner, ie__stream *stream)
{
    return ie__client_secure(owner, stream);
}

static void
on_dialled(void *owner, ie__stream *stream, ie_status status, const char *reason)
{
    ie_bus_client *client = owner;

    if (stream == NULL) {
        client_fail(client, status, IE_BUS_CODE_NONE, reason);
        return;
    }
    client->stream = stream;
    client->phase = PHASE_GREETING;
    client->heard_ms = (int64_t)uv_now(&client->loop);
    ie__stream_user_timeout(client->stream, client->options.ping_interval_ms);
    send_hello(client);
}

static const ie__dial_ops DIAL_OPS = {&STREAM_OPS, before_connect, on_dialled};

static void
client_try(ie_bus_client *client)
{
    if (ie__dial_is_busy(&client->dial)) { /* the last one is still out: names take their time */
        (void)uv_timer_start(&client->timer, on_retry, IE__DIAL_BUSY_MS, 0);
        return;
    }
    client->phase = PHASE_CONNECTING;
    client->why[0] = '\0';
    client->why_code = IE_BUS_CODE_NONE;
    client->why_status = IE_OK;
    client->was_refused = false;
    client->pings = 0;
    client->framer.message_max = IE__HELLO_MESSAGE_MAX;
    (void)uv_timer_start(&client->timer, on_attempt_timeout, client->options.connect_timeout_ms, 0);
    ie__dial_begin(&client->dial, &client->net, &client->address, &DIAL_OPS, client);
}

/* ---- connected ---- */

/* How often we look; more than once in the interval of either side. */
static uint64_t
heartbeat_ms(const ie_bus_client *client)
{
    uint32_t interval = client->options.ping_interval_ms;

    if (client->server_ping_ms != 0 && client->server_ping_ms < interval)
        interval = client->server_ping_ms;
    return interval / 4 > 10 ? interval / 4 : 10;
}

/* While connected: is the server still there? Also picks up what memory forbade before. */
static void
on_heartbeat(uv_timer_t *timer)
{
    ie_bus_client *client = timer->data;
    const int64_t  now = (int64_t)uv_now(&client->loop);
    const int64_t  silent = now - client->heard_ms;

    client_lock(client);
    client->is_commanded = true; /* to look at all of it */
    client_unlock(client);
    ie__client_on_async(&client->async);
    if (client->stream == NULL || client->phase < PHASE_OPEN)
        return;
    if (ie__client_dispatch_is_paused(client)) {
        /* We do not listen, so we hear nothing; but the bus must hear that we are there. */
        if (now - client->spoke_ms >= (int64_t)heartbeat_ms(client)) {
            client->spoke_ms = now;
            ie__client_write_empty(client, IE__PING, 0);
        }
        return;
    }
    if (silent < (int64_t)client->options.ping_interval_ms * (client->pings + 1))
        return;
    if (client->pings >= client->options.ping_missed_max) {
        client_fail(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE, "the bus went silent");
        return;
    }
    client->pings++;
    ie__client_write_empty(client, IE__PING, client->pings);
}

void
ie__client_opened(ie_bus_client *client, uint32_t data_bytes_max)
{
    const uint64_t every = heartbeat_ms(client);

    client->phase = PHASE_OPEN;
    client->attempts = 0;
    client->framer.message_max = IE__MESSAGE_MAX;
    (void)uv_timer_start(&client->timer, on_heartbeat, every, every);
    client_lock(client);
    client->data_bytes_max = data_bytes_max;
    ie__client_subs_ask(client);
    ie__client_queries_open(client);
    client_unlock(client);
    client_state_set(client, IE_BUS_CONNECTED, 0);
    ie__client_take(client);
    ie__client_send(client);
}

/* ---- the loop ---- */

/* After taking over what was submitted. */
static void
on_publishes(ie_bus_client *client)
{
    ie__client_send(client);
    if ((client->options.flags & IE_BUS_CLIENT_FAIL_OFFLINE) != 0 && client->is_offline)
        ie__client_flight_fail_all(client, IE_EUNREACHABLE, client->why);
    if (client->phase == PHASE_LEAVING)
        ie__stream_touch(client->stream); /* that may have been what we stayed for */
}

/*
 * With the mutex held. Each batch costs a wake-up here, a write, and as much again at the bus. When
 * publishes come in a stream, that is: batch after batch was not small, the next one is left to
 * gather for a moment. The callers do not wake us meanwhile, and a moment that gathered little ends
 * it: who waits for answers before publishing more is not slowed down.
 */
static void
gather(ie_bus_client *client)
{
    static const struct timespec MOMENT = {.tv_nsec = GATHER_NS};

    client->is_signalled = true;
    client_unlock(client);
    (void)nanosleep(&MOMENT, NULL);
    client_lock(client);
}

/* With the mutex held, which it releases. */
static void
take_publishes(ie_bus_client *client, bool has_gathered)
{
    const size_t count = client->submitted.count;

    ie__client_take_locked(client);
    if (count < (has_gathered ? GATHERED_MIN : BATCH_FULL))
        client->full_batches = 0;
    else if (client->full_batches < FULL_BATCHES)
        client->full_batches++;
    on_publishes(client);
}

void
ie__client_on_async(uv_async_t *async)
{
    ie_bus_client *client = async->data;
    bool           is_closing;
    bool           gathers;
    bool           is_broken;

    if (client->is_ended)
        return;
    client_lock(client);
    gathers = !client->is_commanded && client->full_batches >= FULL_BATCHES;
    if (gathers)
        gather(client); /* commands may have come meanwhile */
    client->is_signalled = false;
    if (!client->is_commanded) { /* the hot path: publishes, and nothing else */
        take_publishes(client, gathers);
        return;
    }
    client->is_commanded = false;
    is_closing = client->is_closing;
    is_broken = (client->is_malformed || client->is_short) && client->stream != NULL;
    if (is_broken && client->is_malformed)
        ie__client_why(client, IE_EPROTO, IE_BUS_CODE_NONE, "a malformed event");
    client->is_malformed = client->is_short = false;
    client_unlock(client);
    if (is_broken) {
        client_fail(client, IE_ENOMEM, IE_BUS_CODE_NONE, "out of memory for answers to events");
        return;
    }
    ie__client_replies_write(client);
    ie__client_dispatch_resume(client);
    ie__client_subs_sync(client);
    ie__client_talk(client);
    ie__client_take(client);
    on_publishes(client);
    if (is_closing) {
        ie__client_queries_end(client, IE_ECLOSED, "the client was closed");
        if (!uv_is_active((uv_handle_t *)&client->close_timer))
            (void)uv_timer_start(&client->close_timer, on_close_timeout,
                                 client->options.close_timeout_ms, 0);
        client_check_done(client);
    }
}

void *
ie__client_main(void *arg)
{
    ie_bus_client *client = arg;

    ie__net_thread_enter("ie-client");
    client_state_set(client, IE_BUS_CONNECTING, 0);
    client_try(client);
    (void)uv_run(&client->loop, UV_RUN_DEFAULT);
    return NULL;
}
