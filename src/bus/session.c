/* One connection of the server: greeting, hello, frames, clocks, end. */
#include "auth.h"
#include "query.h"

#include "eb1.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define ENDS_LOGGED_PER_MINUTE 20

static int64_t
now_ms(const ie__conn *conn)
{
    return (int64_t)uv_now(&conn->server->loop);
}

/* ---- what it says --------------------------------------------------------------------------- */

static void
conn_write(ie__conn *conn, const void *bytes, size_t size)
{
    if (ie__stream_write(conn->stream, bytes, size) != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
}

void
ie__conn_reason(ie__conn *conn, ie__frame_type type, uint32_t number, uint32_t code,
                const char *reason)
{
    unsigned char frame[IE__REASON_FRAME_MAX];

    conn_write(conn, frame, ie__reason_frame(frame, type, number, code, reason));
}

static void
conn_flush_runs(ie__conn *conn)
{
    unsigned char  frame[IE__PREFIX_BYTES + 12 * IE__ACK_RUNS];
    unsigned char *at = frame + IE__PREFIX_BYTES;

    if (conn->run_count == 0)
        return;
    ie__frame_prefix(frame, IE__PUBACK, 0, 12 * (size_t)conn->run_count);
    for (uint32_t i = 0; i < conn->run_count; i++, at += 12) {
        ie__put32(at, conn->runs[i].first);
        ie__put32(at + 4, conn->runs[i].count);
        ie__put32(at + 8, conn->runs[i].receivers);
    }
    conn->run_count = 0;
    conn_write(conn, frame, (size_t)(at - frame));
}

void
ie__conn_puback(ie__conn *conn, uint32_t request, uint32_t receivers)
{
    ie__ack_run *run = conn->run_count != 0 ? &conn->runs[conn->run_count - 1] : NULL;

    conn->server->stats.acknowledged++;
    if (receivers == 0)
        conn->server->stats.unheard++;
    if (run != NULL && run->receivers == receivers && request == run->first + run->count) {
        run->count++;
        return;
    }
    if (conn->runs == NULL) {
        conn->runs = ie__realloc_array(NULL, IE__ACK_RUNS, sizeof *conn->runs);
        if (conn->runs == NULL) {
            ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
            return;
        }
    }
    if (conn->run_count == IE__ACK_RUNS)
        conn_flush_runs(conn);
    run = &conn->runs[conn->run_count++];
    run->first = request;
    run->count = 1;
    run->receivers = receivers;
    ie__stream_touch(conn->stream);
}

void
ie__conn_pubnack(ie__conn *conn, uint32_t request, uint32_t code, const char *reason)
{
    conn->server->stats.nacked++;
    if (code == IE_BUS_CODE_NO_SUBSCRIBERS)
        conn->server->stats.no_subscribers++;
    conn_flush_runs(conn); /* answers leave in the order in which they were given */
    ie__conn_reason(conn, IE__PUBNACK, request, code, reason);
}

static void
conn_send_fields(ie__conn *conn, ie_buffer *buffer, ie__builder *builder)
{
    if (ie__build_end(builder) == IE_OK)
        conn_write(conn, buffer->data, buffer->size);
    else
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
    ie_buffer_fini(buffer);
}

static void
conn_send_welcome(ie__conn *conn)
{
    const ie_bus_server_options *options = &conn->server->options;
    ie_buffer                    buffer = {NULL, 0, 0};
    ie__builder                  b;

    ie__build_begin(&b, &buffer, IE__WELCOME, 0);
    ie__build_u32(&b, IE__F_CAPABILITIES,
                  conn->capabilities | (conn->server->durable != NULL ? IE__CAP_STORAGE : 0));
    ie__build_text(&b, IE__F_NAME, conn->server->name);
    ie__build_u32(&b, IE__F_MESSAGE_BYTES, options->data_bytes_max + IE__RECORD_OVERHEAD_MAX);
    ie__build_u32(&b, IE__F_PING_MS, options->ping_interval_ms);
    ie__build_u32(&b, IE__F_DATA_BYTES, options->data_bytes_max);
    ie__build_u32(&b, IE__F_IN_FLIGHT, options->publishes_in_flight_max);
    ie__build_u32(&b, IE__F_SUBSCRIPTIONS, options->subscriptions_per_client_max);
    ie__build_u32(&b, IE__F_CREDIT, options->credit_max);
    if (conn->user != NULL)
        ie__build_text(&b, IE__F_USER, conn->user);
    conn_send_fields(conn, &buffer, &b);
}

/* ---- its end -------------------------------------------------------------------------------- */

void
ie__conn_doom(ie__conn *conn, uint32_t code, const char *fmt, ...)
{
    va_list args;

    if (conn->is_doomed)
        return;
    conn->is_doomed = true;
    conn->end_code = code;
    va_start(args, fmt);
    (void)vsnprintf(conn->end_reason, sizeof conn->end_reason, fmt, args);
    va_end(args);
    ie__accept_known(conn);
    conn->state = IE__CONN_ENDED;
    conn->doomed_next = conn->server->doomed;
    conn->server->doomed = conn;
    ie__stream_touch(conn->stream); /* so that this turn has an end */
}

static void
conn_count_end(const ie__conn *conn)
{
    ie_bus_server_stats *stats = &conn->server->stats;

    switch (conn->end_code) {
    case IE_BUS_CODE_BAD_FRAME:
    case IE_BUS_CODE_UNSUPPORTED:
    case IE_BUS_CODE_TOO_BIG: stats->protocol_errors++; break;
    case IE_BUS_CODE_TIMEOUT:
    case IE_BUS_CODE_ACK_TIMEOUT: stats->timed_out++; break;
    case IE_BUS_CODE_SLOW: stats->slow_closed++; break;
    default: break;
    }
}

/* An orderly end is nobody's business; of the others, a flood must not become one of lines. */
static void
conn_log_end(const ie__conn *conn)
{
    ie_bus_server *server = conn->server;
    const bool     is_calm = !conn->is_foreign &&
                         (conn->end_code == IE_BUS_CODE_NONE || conn->end_code == IE_BUS_CODE_DONE);
    const int kind = conn->is_foreign     ? IE__GATE_STRANGERS
                     : !conn->was_welcome ? IE__GATE_UNKNOWN
                                          : IE__GATE_CONNECTIONS;
    uint32_t  hushed = 0;

    if (!is_calm &&
        !ie__gate_open(&server->gates[kind], now_ms(conn),
                       kind == IE__GATE_STRANGERS ? 1 : ENDS_LOGGED_PER_MINUTE, &hushed))
        return;
    ie__log(&server->options.logger, is_calm ? IE_LOG_DEBUG : IE_LOG_WARN, "bus",
            hushed != 0 ? "%s (%s): closed: %s (and %u more like it)" : "%s (%s): closed: %s",
            conn->peer, conn->name != NULL ? conn->name : "unnamed", conn->end_reason, hushed);
}

void
ie__conn_end(ie__conn *conn)
{
    ie_bus_server *server = conn->server;
    ie__conn     **link = &server->doomed;

    if (!conn->is_doomed)
        ie__conn_doom(conn, IE_BUS_CODE_NONE, "gone");
    while (*link != conn)
        link = &(*link)->doomed_next;
    *link = conn->doomed_next;
    conn_count_end(conn);
    conn_log_end(conn);
    ie__stall_leave(conn);
    ie__route_leave(conn);
    ie__query_leave(conn);
    ie__auth_leave(conn);
    ie__eb1_alias_free(conn);
    if (conn->eb1 != NULL) {
        ie__eb1_end(conn);
    } else if (conn->end_code == IE_BUS_CODE_NONE || !conn->may_speak) {
        ie__stream_close(conn->stream);
    } else {
        unsigned char frame[IE__REASON_FRAME_MAX];

        conn_flush_runs(conn);
        (void)ie__stream_write(conn->stream, frame,
                               ie__reason_frame(frame, conn->is_orderly ? IE__GOODBYE : IE__ERROR,
                                                0, conn->end_code, conn->end_reason));
        ie__stream_close_gently(conn->stream);
    }
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    server->conn_count--;
    server->in_bytes -= conn->in_bytes;
    ie__framer_fini(&conn->framer);
    ie__free(conn->deliveries);
    ie__free(conn->name);
    ie__free(conn->runs);
    ie__free(conn);
}

void
ie__conn_say_goodbye(ie__conn *conn)
{
    if (conn->state != IE__CONN_OPEN || conn->eb1 != NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_SHUTTING_DOWN, "the bus is shutting down");
        return;
    }
    ie__conn_reason(conn, IE__GOODBYE, 0, IE_BUS_CODE_SHUTTING_DOWN, "the bus is shutting down");
}

void
ie__conn_tick(ie__conn *conn, int64_t now)
{
    const ie_bus_server_options *options = &conn->server->options;

    if (conn->state == IE__CONN_ENDED)
        return;
    if (conn->state == IE__CONN_LOGIN)
        return; /* ours to be quick */
    if (conn->state != IE__CONN_OPEN) {
        if (now - conn->accepted_ms >= options->hello_timeout_ms)
            ie__conn_doom(conn, IE_BUS_CODE_TIMEOUT, "no hello within %u ms",
                          options->hello_timeout_ms);
        return;
    }
    if (conn->partial_ms != 0 && now - conn->partial_ms >= options->frame_timeout_ms) {
        ie__conn_doom(conn, IE_BUS_CODE_TIMEOUT, "a frame took longer than %u ms",
                      options->frame_timeout_ms);
        return;
    }
    if (conn->eb1 != NULL) {
        ie__eb1_tick(conn, now);
        return;
    }
    if (conn->delivery_count != 0 && ie__deliveries_tick(conn, now)) {
        ie__conn_doom(conn, IE_BUS_CODE_ACK_TIMEOUT, "no delivery was answered for %u ms",
                      options->ack_timeout_ms);
        return;
    }
    if (now - conn->heard_ms < (int64_t)options->ping_interval_ms * (conn->pings + 1))
        return;
    if (conn->pings >= options->ping_missed_max) {
        ie__conn_doom(conn, IE_BUS_CODE_TIMEOUT, "nothing was heard for %u ms",
                      options->ping_interval_ms * (conn->pings + 1));
        return;
    }
    conn->pings++;
    {
        unsigned char frame[IE__PREFIX_BYTES];

        ie__frame_prefix(frame, IE__PING, conn->pings, 0);
        conn_write(conn, frame, sizeof frame);
    }
}

/* ---- what it hears -------------------------------------------------------------------------- */

static ie_status
conn_broken(ie__conn *conn, const char *what)
{
    ie__conn_doom(conn, IE_BUS_CODE_BAD_FRAME, "%s", what);
    return IE_ECLOSED;
}

static ie_status
on_hello(ie__conn *conn, const ie__frame *frame)
{
    const unsigned char *at = frame->body;
    const unsigned char *end = at + frame->body_bytes;
    char                 name[IE_BUS_NAME_BYTES_MAX + 1] = "";
    ie__credentials      credentials = {.user = ""};
    ie__field            field;
    ie_status            status;
    uint32_t             number = 0;

    while ((status = ie__field_next(&field, &at, end)) == IE_OK) {
        switch (field.tag) {
        case IE__F_CAPABILITIES:
            status = ie__field_u32(&number, &field);
            conn->capabilities = number & IE__CAP_QUERIES;
            break;
        case IE__F_MESSAGE_BYTES:
        case IE__F_PING_MS: status = ie__field_u32(&number, &field); break;
        case IE__F_NAME: status = ie__field_text(name, IE_BUS_NAME_BYTES_MAX, &field); break;
        case IE__F_USER:
        case IE__F_PASSWORD:
        case IE__F_TOKEN: status = ie__credentials_field(&credentials, &field, frame); break;
        default:
            if (field.tag < IE__FIELD_OPTIONAL) {
                ie__conn_doom(conn, IE_BUS_CODE_UNSUPPORTED, "hello: unknown field %u", field.tag);
                return IE_ECLOSED;
            }
            break;
        }
        if (status != IE_OK)
            return conn_broken(conn, "a malformed field in hello");
    }
    if (status != IE_ENOTFOUND)
        return conn_broken(conn, "a malformed hello");
    if (name[0] != '\0')
        conn->name = ie__strdup(name); /* only for people: may be missing */
    conn->state = IE__CONN_LOGIN;
    ie__auth_hello(conn, &credentials);
    return conn->state == IE__CONN_ENDED ? IE_ECLOSED : IE_OK;
}

void
ie__conn_welcome(ie__conn *conn)
{
    conn->state = IE__CONN_OPEN;
    conn->was_welcome = true;
    ie__accept_known(conn);
    conn->framer.message_max = conn->server->options.data_bytes_max + IE__RECORD_OVERHEAD_MAX;
    conn_send_welcome(conn);
    if (conn->server->is_draining) {
        conn->is_told = true;
        ie__conn_say_goodbye(conn);
    }
    ie__log(&conn->server->options.logger, IE_LOG_DEBUG, "bus", "%s (%s): connected as %s",
            conn->peer, conn->name != NULL ? conn->name : "unnamed", ie__auth_name(conn));
}

static ie_status
on_publish(ie__conn *conn, const ie__frame *frame)
{
    if (frame->body_bytes < 4)
        return conn_broken(conn, "a publish without flags");
    ie__route_publish(conn, frame);
    return IE_OK;
}

static ie_status
on_subscribe(ie__conn *conn, const ie__frame *frame)
{
    return ie__route_subscribe(conn, frame) == IE_EPROTO
               ? conn_broken(conn, "a malformed subscribe")
               : IE_OK;
}

static ie_status
on_unsubscribe(ie__conn *conn, const ie__frame *frame)
{
    unsigned char answer[IE__PREFIX_BYTES];

    if (!ie__query_unserve(conn, frame->number))
        ie__route_unsubscribe(conn, frame->number);
    ie__frame_prefix(answer, IE__UNSUBSCRIBED, frame->number, 0);
    conn_write(conn, answer, sizeof answer);
    return IE_OK;
}

static ie_status
on_ack(ie__conn *conn, const ie__frame *frame)
{
    return ie__route_ack(conn, frame) == IE_OK ? IE_OK : conn_broken(conn, "a malformed ack");
}

static ie_status
on_nack(ie__conn *conn, const ie__frame *frame)
{
    ie__reason reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return conn_broken(conn, "a malformed nack");
    ie__route_nack(conn, frame->number, 0, &reason);
    return IE_OK;
}

static ie_status
on_nack_later(ie__conn *conn, const ie__frame *frame)
{
    ie__reason reason;
    ie__frame  rest = *frame;

    if (frame->body_bytes < 4)
        return conn_broken(conn, "a malformed nack");
    rest.body += 4;
    rest.body_bytes -= 4;
    if (ie__reason_parse(&reason, &rest) != IE_OK)
        return conn_broken(conn, "a malformed nack");
    ie__route_nack(conn, frame->number, ie__get32(frame->body), &reason);
    return IE_OK;
}

static ie_status
on_ping(ie__conn *conn, const ie__frame *frame)
{
    unsigned char answer[IE__PREFIX_BYTES];

    ie__frame_prefix(answer, IE__PONG, frame->number, 0);
    conn_write(conn, answer, sizeof answer);
    return IE_OK;
}

static ie_status
on_pong(ie__conn *conn, const ie__frame *frame)
{
    (void)conn; /* being heard is all there is to it */
    (void)frame;
    return IE_OK;
}

static ie_status
on_goodbye(ie__conn *conn, const ie__frame *frame)
{
    ie__reason reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return conn_broken(conn, "a malformed goodbye");
    conn->is_orderly = true;
    ie__conn_doom(conn, IE_BUS_CODE_DONE, "goodbye");
    return IE_ECLOSED;
}

static ie_status
on_error(ie__conn *conn, const ie__frame *frame)
{
    ie__reason reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return conn_broken(conn, "a malformed error");
    ie__conn_doom(conn, IE_BUS_CODE_NONE, "the client reports: %.100s", reason.text);
    return IE_ECLOSED;
}

static ie_status
on_query(ie__conn *conn, const ie__frame *frame)
{
    return ie__query_on_query(conn, frame) == IE_OK ? IE_OK
                                                    : conn_broken(conn, "a malformed query");
}

static ie_status
on_query_cancel(ie__conn *conn, const ie__frame *frame)
{
    return ie__query_on_cancel(conn, frame) == IE_OK ? IE_OK
                                                     : conn_broken(conn, "a malformed cancel");
}

static ie_status
on_decline(ie__conn *conn, const ie__frame *frame)
{
    return ie__query_on_decline(conn, frame) == IE_OK ? IE_OK
                                                      : conn_broken(conn, "a malformed decline");
}

typedef ie_status (*frame_fn)(ie__conn *conn, const ie__frame *frame);

/* Which frames a client may send, and when. */
static const struct {
    uint8_t        type;
    ie__conn_state state;
    frame_fn       handle;
} FRAMES[] = {
    {IE__QUERY, IE__CONN_OPEN, on_query},
    {IE__REPLY, IE__CONN_OPEN, ie__query_on_reply},
    {IE__DECLINE, IE__CONN_OPEN, on_decline},
    {IE__QUERY_CANCEL, IE__CONN_OPEN, on_query_cancel},
    {IE__PUBLISH, IE__CONN_OPEN, on_publish},
    {IE__ACK, IE__CONN_OPEN, on_ack},
    {IE__NACK, IE__CONN_OPEN, on_nack},
    {IE__NACK_LATER, IE__CONN_OPEN, on_nack_later},
    {IE__PING, IE__CONN_OPEN, on_ping},
    {IE__PONG, IE__CONN_OPEN, on_pong},
    {IE__SUBSCRIBE, IE__CONN_OPEN, on_subscribe},
    {IE__UNSUBSCRIBE, IE__CONN_OPEN, on_unsubscribe},
    {IE__GOODBYE, IE__CONN_OPEN, on_goodbye},
    {IE__ERROR, IE__CONN_OPEN, on_error},
    {IE__HELLO, IE__CONN_HELLO, on_hello},
};

static ie_status
conn_on_message(void *user, unsigned char *message, size_t bytes)
{
    ie__conn *conn = user;
    ie__frame frame;
    ie_error  err;
    ie_status status;

    ie__error_begin(&err);
    if (conn->state == IE__CONN_ENDED)
        return IE_ECLOSED;
    conn->partial_ms = 0;
    if (conn->in_bytes != 0) { /* it is whole: whoever keeps it now counts it */
        conn->server->in_bytes -= conn->in_bytes;
        conn->in_bytes = 0;
    }
    if (conn->eb1 != NULL)
        return ie__eb1_message(conn, message, bytes);
    if (ie__frame_parse(&frame, message, bytes, &err) != IE_OK)
        return conn_broken(conn, err.message);
    for (size_t i = 0; i < sizeof FRAMES / sizeof *FRAMES; i++) {
        if (FRAMES[i].type != frame.type)
            continue;
        if (FRAMES[i].state != conn->state)
            break;
        status = FRAMES[i].handle(conn, &frame);
        return conn->state == IE__CONN_ENDED ? IE_ECLOSED : status;
    }
    if ((frame.type & IE__FRAME_OPTIONAL) != 0) {
        conn->server->stats.frames_ignored++;
        return IE_OK;
    }
    ie__conn_doom(conn, IE_BUS_CODE_BAD_FRAME, "frame %02x makes no sense here", frame.type);
    return IE_ECLOSED;
}

static ie_status
conn_on_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    ie__conn      *conn = user;
    const unsigned protocol = ie__greeting_get(bytes);
    unsigned char  answer[IE__GREETING_BYTES];

    if (conn->state != IE__CONN_GREETING)
        return IE_ECLOSED;
    conn->state = IE__CONN_HELLO;
    if (protocol == IE__SP_EB2_CLIENT) {
        ie__greeting_put(answer, IE__SP_EB2_BUS);
        conn_write(conn, answer, sizeof answer);
        conn->may_speak = true;
        return IE_OK;
    }
    if (ie__eb1_is_greeting(bytes))
        return ie__eb1_begin(conn, bytes);
    /* No last words for strangers: they would not understand them. */
    ie__conn_doom(conn, IE_BUS_CODE_NONE, "%s", ie__greeting_guess(bytes, IE__GREETING_BYTES));
    conn->is_foreign = true;
    conn->server->stats.protocol_errors++;
    return IE_ECLOSED;
}

/* A message that comes in pieces is held until it is whole: many of them are a way to fill the
 * bus's memory. Small ones do not matter, and large ones end here when it is full. */
static void
conn_count_input(ie__conn *conn)
{
    ie_bus_server *server = conn->server;
    const size_t   held = conn->framer.capacity;

    if (held == conn->in_bytes)
        return;
    server->in_bytes += held - conn->in_bytes;
    conn->in_bytes = held;
    if (held > IE__NET_READ_BYTES && ie__server_memory(server) > server->options.memory_bytes_max)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY,
                      "memory_bytes_max is reached, and its message is large");
}

static const ie__framer_ops FRAMER_OPS = {conn_on_greeting, conn_on_message};

static void
conn_on_data(void *owner, unsigned char *bytes, size_t size)
{
    ie__conn    *conn = owner;
    const size_t before = conn->framer.size;
    ie_error     err = IE_ERROR_INIT;
    ie_status    status;

    if (conn->state == IE__CONN_ENDED)
        return;
    conn->heard_ms = now_ms(conn);
    conn->bytes_in += size;
    conn->pings = 0;
    if (conn->eb1 != NULL && ie__eb1_is_web(conn->eb1)) {
        ie__eb1_web_data(conn, bytes, size);
        return;
    }
    status = ie__framer_push(&conn->framer, bytes, size, &FRAMER_OPS, conn, &err);
    if (status == IE_ESTATE) { /* what looked like a greeting was the beginning of HTTP */
        ie__framer_fini(&conn->framer);
        conn_count_input(conn);
        ie__eb1_web_data(conn, bytes + (IE__GREETING_BYTES - before),
                         size - (IE__GREETING_BYTES - before));
        return;
    }
    if (status == IE_ETOOBIG)
        ie__conn_doom(conn, IE_BUS_CODE_TOO_BIG, "%s", err.message);
    else if (status == IE_EPROTO)
        ie__conn_doom(conn, IE_BUS_CODE_BAD_FRAME, "%s", err.message);
    else if (status == IE_ENOMEM)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "%s", err.message);
    if (conn->state == IE__CONN_GREETING && conn->framer.size != 0 &&
        !ie__greeting_may_begin(conn->framer.partial, conn->framer.size)) {
        /* Who speaks first with less than a greeting would wait for our answer. */
        ie__conn_doom(conn, IE_BUS_CODE_NONE, "%s",
                      ie__greeting_guess(conn->framer.partial, conn->framer.size));
        conn->is_foreign = true;
        conn->server->stats.protocol_errors++;
    }
    conn_count_input(conn);
    if (conn->state != IE__CONN_ENDED && ie__framer_is_midway(&conn->framer) &&
        conn->partial_ms == 0)
        conn->partial_ms = conn->heard_ms;
}

static void
conn_on_gone(void *owner, const char *reason)
{
    ie__conn     *conn = owner;
    unsigned char greeting[IE__GREETING_BYTES];

    if (!ie__stream_tls_failed(conn->stream)) {
        ie__conn_doom(conn, IE_BUS_CODE_NONE, "%s", reason);
        ie__conn_end(conn);
        return;
    }
    conn->server->stats.tls_failed++;
    if (ie__stream_tls_give_up(conn->stream)) { /* tell it in plain text what is wrong */
        ie__greeting_put(greeting, IE__SP_EB2_BUS);
        conn_write(conn, greeting, sizeof greeting);
        conn->may_speak = true;
        ie__conn_doom(conn, IE_BUS_CODE_UNSUPPORTED,
                      "TLS is spoken here: the address has to begin with sockets://");
    } else {
        ie__conn_doom(conn, IE_BUS_CODE_DENIED, "%s", reason);
    }
    ie__conn_end(conn);
}

static void
conn_before_flush(void *owner)
{
    conn_flush_runs(owner);
}

static void
conn_on_drained(void *owner)
{
    ie__conn *conn = owner;

    ie__stall_drained(conn);
    if (conn->state == IE__CONN_OPEN)
        ie__route_resume(conn);
}

static const ie__stream_ops STREAM_OPS = {conn_on_data, conn_on_gone, conn_before_flush,
                                          conn_on_drained};

/* ---- its beginning -------------------------------------------------------------------------- */

static const char *
accept_fault(const ie_bus_server *server, const ie__conn *conn)
{
    const ie_bus_server_options *options = &server->options;
    uint32_t                     same = 0;

    if (server->conn_count > options->connections_max)
        return "connections_max";
    if (options->connections_per_address_max == 0)
        return NULL;
    for (const ie__conn *other = server->conns; other != NULL; other = other->next) {
        const size_t host = strcspn(other->peer, "]"); /* up to the port */
        const char  *end =
            other->peer[host] != '\0' ? other->peer + host : strrchr(other->peer, ':');
        const size_t length = end != NULL ? (size_t)(end - other->peer) + 1 : strlen(other->peer);

        same += strncmp(other->peer, conn->peer, length) == 0;
    }
    return same > options->connections_per_address_max ? "connections_per_address_max" : NULL;
}

void
ie__conn_accept(ie_bus_server *server, ie__listener *listener)
{
    ie__conn   *conn = ie__calloc(1, sizeof *conn);
    const char *limit;

    /* Nothing comes from a listener whose connection was not taken: the turn's end tries again. */
    listener->is_waiting = conn == NULL;
    if (conn == NULL)
        return;
    conn->server = server;
    conn->is_unix = listener->is_unix;
    conn->stream = ie__stream_new(&server->net, listener->is_unix, &STREAM_OPS, conn);
    if (conn->stream != NULL && listener->address.is_tls &&
        ie__stream_use_tls(conn->stream, ie__policy_tls(ie__guard_policy(server))) != IE_OK) {
        ie__stream_close(conn->stream);
        conn->stream = NULL;
    }
    if (conn->stream == NULL) {
        listener->is_waiting = true;
        ie__free(conn);
        return;
    }
    if (ie__stream_accept(conn->stream, &listener->uv.stream) != 0) {
        ie__stream_close(conn->stream);
        ie__free(conn);
        return;
    }
    ie__stream_user_timeout(conn->stream, server->options.ping_interval_ms);
    ie__stream_peer(conn->stream, conn->peer, sizeof conn->peer);
    conn->accepted_ms = conn->heard_ms = now_ms(conn);
    conn->framer.message_max = IE__HELLO_MESSAGE_MAX;
    conn->delivery_first = 1;
    conn->is_local = listener->is_local;
    conn->next = server->conns;
    if (server->conns != NULL)
        server->conns->prev = conn;
    server->conns = conn;
    server->conn_count++;
    server->last_fd = ie__stream_fd(conn->stream);
    ie__accept_enlist(conn);
    limit = accept_fault(server, conn);
    if (limit == NULL) {
        conn->id = ++server->stats.accepted;
        return;
    }
    server->stats.refused++;
    {
        unsigned char greeting[IE__GREETING_BYTES];

        ie__greeting_put(greeting, IE__SP_EB2_BUS);
        conn_write(conn, greeting, sizeof greeting);
        conn->may_speak = true;
    }
    ie__conn_doom(conn, IE_BUS_CODE_LIMIT, "%s is reached", limit);
}
