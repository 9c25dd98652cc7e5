/* One connection of an eb/1 client after the other, on the client's own thread. */
#include <stdio.h>

#include "eb1_client_parts.h"

#define UNSENT_BYTES_MAX 65536 /* in the stream: these would be lost with the connection */

static void client_try(ie_eb1_client *client);
static void client_send(ie_eb1_client *client);

/* ---- telling -------------------------------------------------------------------------------- */

static void
client_state_set(ie_eb1_client *client, ie_bus_state state, uint32_t retry_ms)
{
    ie_bus_client_status status = {.size = sizeof status, .reason = ""};

    (void)pthread_mutex_lock(&client->mutex);
    client->state = state;
    client->id = state == IE_BUS_CONNECTED ? client->own_id : 0;
    client->is_offline = state == IE_BUS_REFUSED || state == IE_BUS_RECONNECTING;
    if (client->is_offline) {
        (void)snprintf(client->reason, sizeof client->reason, "%s", client->why);
        status.reason = client->why;
    }
    (void)pthread_cond_broadcast(&client->changed);
    (void)pthread_mutex_unlock(&client->mutex);
    status.state = state;
    status.retry_ms = retry_ms;
    status.attempts = client->attempts;
    ie__log(&client->options.logger, client->attempts == 1 ? IE_LOG_WARN : IE_LOG_INFO, "eb1",
            "%s: %s%s%s", client->url, ie_bus_state_name(state),
            status.reason[0] != '\0' ? ": " : "", status.reason);
    if (client->options.on_status != NULL)
        client->options.on_status(client->options.user, &status);
}

/* ---- the end of the client ------------------------------------------------------------------ */

static void
client_end(ie_eb1_client *client)
{
    if (client->is_ended)
        return;
    client->is_ended = true;
    ie__stream_close(client->stream);
    client->stream = NULL;
    client->phase = EB1_IDLE;
    ie__dial_cancel(&client->dial);
    client_state_set(client, IE_BUS_CLOSED, 0);
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

/* Closing, and all is written: say so, and give the bus a moment to read it. */
static void
client_check_done(ie_eb1_client *client)
{
    bool is_done;

    (void)pthread_mutex_lock(&client->mutex);
    is_done = client->is_closing && client->queued_bytes == 0;
    (void)pthread_mutex_unlock(&client->mutex);
    if (!is_done || client->is_ended || client->is_leaving)
        return;
    if (client->phase != EB1_OPEN) {
        client_end(client);
        return;
    }
    client->is_leaving = true;
    client->phase = EB1_IDLE;
    (void)uv_timer_stop(&client->timer);
    if (client->kind == EB1_KIND_WS) {
        unsigned char       frame[IE__WS_HEAD_MAX + 2];
        const unsigned char mask[4] = {0};
        const size_t        head = ie__ws_frame_head(frame, IE__WS_CLOSE, 2, mask);

        ie__put16(frame + head, IE__WS_NORMAL);
        (void)ie__stream_write(client->stream, frame, head + 2);
    }
    ie__stream_close_gently(client->stream);
    client->stream = NULL;
}

void
ie__eb1_client_end_of_turn(void *user)
{
    ie_eb1_client *client = user;

    if (client->is_leaving && client->net.linger_count == 0)
        client_end(client);
}

/* ---- the end of a connection ---------------------------------------------------------------- */

static void
client_why(ie_eb1_client *client, ie_status status, const char *reason)
{
    if (client->why[0] != '\0')
        return;
    (void)snprintf(client->why, sizeof client->why, "%.190s", reason);
    client->why_status = status;
}

static void
on_retry(uv_timer_t *timer)
{
    client_try(timer->data);
}

/* This connection, or attempt, is over: tell, and come again after a random while. */
static void
client_lost(ie_eb1_client *client)
{
    uint64_t delay;

    ie__dial_cancel(&client->dial);
    ie__stream_close(client->stream);
    client->stream = NULL;
    client->phase = EB1_IDLE;
    ie__framer_fini(&client->framer);
    ie__ws_fini(&client->ws);
    ie__free(client->http);
    client->http = NULL;
    if (client->is_ended)
        return;
    delay = ie__dial_retry_ms(client->options.reconnect_delay_ms,
                              client->options.reconnect_delay_ms_max, client->attempts);
    if (client->attempts < UINT32_MAX)
        client->attempts++;
    client_state_set(client,
                     client->why_status == IE_EREFUSED ? IE_BUS_REFUSED : IE_BUS_RECONNECTING,
                     (uint32_t)delay);
    (void)uv_timer_start(&client->timer, on_retry, delay, 0);
    client_check_done(client);
}

static void
client_fail(ie_eb1_client *client, ie_status status, const char *reason)
{
    client_why(client, status, reason);
    client_lost(client);
}

static void
on_attempt_timeout(uv_timer_t *timer)
{
    static const char *const WAITED[] = {[EB1_CONNECTING] = "no connection in time",
                                         [EB1_GREETING] = "HTTP was not answered in time",
                                         [EB1_ASSIGNING] = "no id was assigned in time"};
    ie_eb1_client           *client = timer->data;

    client_fail(client, IE_EUNREACHABLE,
                client->phase != EB1_IDLE && client->phase != EB1_OPEN ? WAITED[client->phase]
                                                                       : "no answer in time");
}

/* ---- messages out --------------------------------------------------------------------------- */

/* One message in our framing; its bytes are changed (masked). False: no memory. */
static bool
write_message(ie_eb1_client *client, unsigned char *message, size_t size)
{
    unsigned char prefix[IE__EB1_PREFIX_MAX];
    unsigned char mask[4];
    size_t        length = IE__LENGTH_BYTES;

    switch (client->kind) {
    case EB1_KIND_WS:
        ie__random(mask, sizeof mask);
        length = ie__ws_frame_head(prefix, IE__WS_BINARY, size, mask);
        ie__ws_mask(message, size, mask, 0);
        break;
    case EB1_KIND_IPC:
        prefix[0] = 1;
        ie__put64(prefix + 1, size);
        length = 1 + IE__LENGTH_BYTES;
        break;
    default: ie__put64(prefix, size); break;
    }
    return ie__stream_write(client->stream, prefix, length) == IE_OK &&
           ie__stream_write(client->stream, message, size) == IE_OK;
}

static void
write_control(ie_eb1_client *client, unsigned signalling, uint32_t destination)
{
    unsigned char header[IE__EB1_HEADER];

    ie__eb1_header(header, signalling, client->local, destination);
    (void)write_message(client, header, sizeof header);
}

/* What other threads have handed in becomes ours. */
static bool
client_take(ie_eb1_client *client)
{
    const ie_buffer empty = client->backlog;

    client->backlog_sent = 0;
    (void)pthread_mutex_lock(&client->mutex);
    client->backlog = client->submitted;
    client->submitted = empty;
    client->submitted.size = 0;
    (void)pthread_mutex_unlock(&client->mutex);
    return client->backlog.size != 0;
}

static void
client_send(ie_eb1_client *client)
{
    size_t written = 0;

    while (client->phase == EB1_OPEN) {
        unsigned char *record;
        size_t         size;

        if (client->backlog_sent == client->backlog.size && !client_take(client))
            break;
        if (ie__stream_pending(client->stream) >= UNSENT_BYTES_MAX) {
            ie__stream_flush(client->stream);
            if (ie__stream_pending(client->stream) >= UNSENT_BYTES_MAX) {
                ie__stream_notify_below(client->stream, UNSENT_BYTES_MAX / 2);
                break;
            }
        }
        record = (unsigned char *)client->backlog.data + client->backlog_sent;
        size = ie__get32(record);
        ie__put32(record + EB1_RECORD_HEAD + 4, client->own_id);
        client->backlog_sent += EB1_RECORD_HEAD + size;
        written += size;
        if (!write_message(client, record + EB1_RECORD_HEAD, size))
            break; /* the stream ends, and tells */
    }
    if (written == 0)
        return;
    (void)pthread_mutex_lock(&client->mutex);
    client->queued_bytes -= written;
    (void)pthread_mutex_unlock(&client->mutex);
}

/* ---- messages in ---------------------------------------------------------------------------- */

static void
on_heartbeat(uv_timer_t *timer)
{
    ie_eb1_client *client = timer->data;
    const int64_t  silent = (int64_t)uv_now(&client->loop) - client->heard_ms;

    if (silent >= 2 * (int64_t)client->options.heartbeat_ms) {
        client_fail(client, IE_EUNREACHABLE, "the bus went silent");
        return;
    }
    write_control(client, IE__EB1_CONTROL | IE__EB1_HEARTBEAT, IE__EB1_BUS);
}

/* The bus gave us an id; a later one replaces it. */
static void
on_assigned(ie_eb1_client *client, uint32_t id)
{
    const bool is_first = client->phase == EB1_ASSIGNING;

    if (id == 0 || (id & IE__EB1_TOP) != 0)
        return;
    client->own_id = id;
    if (is_first) {
        client->phase = EB1_OPEN;
        client->attempts = 0;
        (void)uv_timer_start(&client->timer, on_heartbeat, client->options.heartbeat_ms,
                             client->options.heartbeat_ms);
        client_state_set(client, IE_BUS_CONNECTED, 0);
        client_send(client);
        return;
    }
    (void)pthread_mutex_lock(&client->mutex);
    client->id = id;
    (void)pthread_mutex_unlock(&client->mutex);
}

static ie_status
on_message(void *user, unsigned char *message, size_t size)
{
    ie_eb1_client *client = user;
    size_t         header;

    if (size < IE__EB1_HEADER || (message[2] & 15) < IE__EB1_HEADER / 4)
        return IE_OK; /* as the reference's clients: ignored */
    header = ie__eb1_header_bytes(message);
    if (message[0] != 'e' || message[1] != 'b' || header > size) {
        client_why(client, IE_EPROTO, "the bus sent something that is not eb/1");
        return IE_EPROTO;
    }
    if ((message[3] & IE__EB1_CONTROL) != 0) {
        if ((message[3] & IE__EB1_COMMAND) == IE__EB1_ASSIGN)
            on_assigned(client, ie__get32(message + 8));
        return IE_OK;
    }
    if (client->phase == EB1_OPEN && client->options.on_data != NULL)
        client->options.on_data(client->options.user, ie__get32(message + 4), message + header,
                                size - header);
    return IE_OK;
}

static ie_status
on_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    ie_eb1_client *client = user;
    const unsigned protocol = ie__greeting_get(bytes);

    if (protocol == IE__SP_EB1_BUS)
        return IE_OK;
    client_why(client, IE_EREFUSED,
               protocol == IE__SP_EB2_BUS ? "the bus refused the connection"
                                          : "it is not a bus of eb/1");
    return IE_EPROTO;
}

static ie_status
on_control(void *user, ie__ws_opcode opcode, unsigned char *bytes, size_t size)
{
    ie_eb1_client *client = user;
    unsigned char  frame[IE__WS_HEAD_MAX + IE__WS_CONTROL_MAX];
    unsigned char  mask[4];
    size_t         head;

    if (opcode == IE__WS_CLOSE) {
        client_why(client, IE_EUNREACHABLE, "the bus closed the connection");
        return IE_ECLOSED;
    }
    if (opcode != IE__WS_PING || ie__stream_pending(client->stream) > UNSENT_BYTES_MAX)
        return IE_OK;
    ie__random(mask, sizeof mask);
    head = ie__ws_frame_head(frame, IE__WS_PONG, size, mask);
    memcpy(frame + head, bytes, size);
    ie__ws_mask(frame + head, size, mask, 0);
    (void)ie__stream_write(client->stream, frame, head + size);
    return IE_OK;
}

static const ie__framer_ops FRAMER_OPS = {on_greeting, on_message};
static const ie__ws_ops     WS_OPS = {on_message, on_control};

/* The upgrade's answer; returns how many of the bytes belong to it. 0: it failed. */
static size_t
http_data(ie_eb1_client *client, const unsigned char *bytes, size_t size)
{
    const size_t before = client->http_bytes;
    const size_t take = size < IE__HTTP_BYTES_MAX - before ? size : IE__HTTP_BYTES_MAX - before;
    ie_error     err = IE_ERROR_INIT;
    size_t       head;

    memcpy(client->http + before, bytes, take);
    client->http_bytes += take;
    head = ie__http_head(client->http, client->http_bytes);
    if (head == 0) {
        if (client->http_bytes < IE__HTTP_BYTES_MAX)
            return size;
        client_fail(client, IE_EREFUSED, "the answer to the upgrade is too long");
        return 0;
    }
    if (ie__ws_answer_check(client->http, head, client->key, &err) != IE_OK) {
        client_fail(client, IE_EREFUSED, err.message);
        return 0;
    }
    ie__free(client->http);
    client->http = NULL;
    client->ws.is_client = true;
    client->ws.message_max = IE_EB1_MESSAGE_BYTES_MAX;
    client->phase = EB1_ASSIGNING;
    if (client->event != 0)
        write_control(client, IE__EB1_CONTROL | IE__EB1_EVENT | IE__EB1_REGISTER, client->event);
    return head - before;
}

static void
on_data(void *owner, unsigned char *bytes, size_t size)
{
    ie_eb1_client *client = owner;
    ie_error       err = IE_ERROR_INIT;
    ie_status      status;

    client->heard_ms = (int64_t)uv_now(&client->loop);
    if (client->phase == EB1_GREETING) {
        const size_t taken = http_data(client, bytes, size);

        if (taken == 0 || taken == size)
            return;
        bytes += taken;
        size -= taken;
    }
    if (client->kind == EB1_KIND_WS)
        status = ie__ws_push(&client->ws, bytes, size, &WS_OPS, client, &err);
    else
        status = ie__framer_push(&client->framer, bytes, size, &FRAMER_OPS, client, &err);
    if (status != IE_OK)
        client_fail(client, status, err.message[0] != '\0' ? err.message : ie_status_text(status));
}

static void
on_gone(void *owner, const char *reason)
{
    client_fail(owner, IE_EUNREACHABLE, reason);
}

static void
before_flush(void *owner)
{
    client_check_done(owner);
}

static void
on_drained(void *owner)
{
    client_send(owner);
}

static const ie__stream_ops STREAM_OPS = {on_data, on_gone, before_flush, on_drained};

/* ---- connecting ----------------------------------------------------------------------------- */

static void
say_hello(ie_eb1_client *client)
{
    unsigned char greeting[IE__GREETING_BYTES];
    char          request[IE__HTTP_BYTES_MAX];
    size_t        size;

    if (client->kind == EB1_KIND_WS) {
        client->phase = EB1_GREETING;
        client->http = ie__alloc(IE__HTTP_BYTES_MAX);
        client->http_bytes = 0;
        ie__ws_key(client->key);
        size = ie__ws_request(request, client->address.host, client->address.port, client->path,
                              client->key);
        if (client->http == NULL || size == 0) {
            client_fail(client, IE_ENOMEM, "out of memory");
            return;
        }
        (void)ie__stream_write(client->stream, request, size);
        return;
    }
    client->phase = EB1_ASSIGNING;
    ie__greeting_put(greeting, IE__SP_EB1_CLIENT);
    (void)ie__stream_write(client->stream, greeting, sizeof greeting);
    if (client->event != 0)
        write_control(client, IE__EB1_CONTROL | IE__EB1_EVENT | IE__EB1_REGISTER, client->event);
}

static void
on_dialled(void *owner, ie__stream *stream, ie_status status, const char *reason)
{
    ie_eb1_client *client = owner;

    if (stream == NULL) {
        client_fail(client, status, reason);
        return;
    }
    client->stream = stream;
    client->heard_ms = (int64_t)uv_now(&client->loop);
    ie__stream_user_timeout(client->stream, 2 * client->options.heartbeat_ms);
    say_hello(client);
}

static const ie__dial_ops DIAL_OPS = {&STREAM_OPS, NULL, on_dialled};

static void
client_try(ie_eb1_client *client)
{
    if (ie__dial_is_busy(&client->dial)) { /* the last one is still out: names take their time */
        (void)uv_timer_start(&client->timer, on_retry, IE__DIAL_BUSY_MS, 0);
        return;
    }
    client->phase = EB1_CONNECTING;
    client->why[0] = '\0';
    client->why_status = IE_OK;
    client->framer.is_eb1 = true;
    client->framer.lead = client->kind == EB1_KIND_IPC ? 1 : 0;
    client->framer.message_max = IE_EB1_MESSAGE_BYTES_MAX;
    memset(&client->ws, 0, sizeof client->ws);
    (void)uv_timer_start(&client->timer, on_attempt_timeout, client->options.connect_timeout_ms, 0);
    ie__dial_begin(&client->dial, &client->net, &client->address, &DIAL_OPS, client);
}

/* ---- the loop ------------------------------------------------------------------------------- */

void
ie__eb1_client_on_async(uv_async_t *async)
{
    ie_eb1_client *client = async->data;
    bool           is_closing;

    if (client->is_ended)
        return;
    (void)pthread_mutex_lock(&client->mutex);
    client->is_signalled = false;
    is_closing = client->is_closing;
    (void)pthread_mutex_unlock(&client->mutex);
    client_send(client);
    if (!is_closing)
        return;
    if (!uv_is_active((uv_handle_t *)&client->close_timer))
        (void)uv_timer_start(&client->close_timer, on_close_timeout,
                             client->options.close_timeout_ms, 0);
    client_check_done(client);
}

void *
ie__eb1_client_main(void *arg)
{
    ie_eb1_client *client = arg;

    ie__net_thread_enter("ie-eb1");
    client_state_set(client, IE_BUS_CONNECTING, 0);
    client_try(client);
    (void)uv_run(&client->loop, UV_RUN_DEFAULT);
    return NULL;
}
