/*
 * One session of eb/1, the protocol of the reference event bus (PROTOCOL.md section 11): greeting,
 * id, control frames, output, clocks, end.
 */
#include "auth.h"
#include "eb1.h"

#define ID_BUCKETS    64 /* powers of two, to begin with */
#define EVENT_BUCKETS 64
#define KEEPALIVE_S   60
#define INVITE_SIGNAL (IE__EB1_CONTROL | IE__EB1_REGISTER) /* of revision v0.1.0 */

static int64_t
now_ms(const ie__conn *conn)
{
    return (int64_t)uv_now(&conn->server->loop);
}

/* ---- what all sessions share ---------------------------------------------------------------- */

static ie__eb1_bus *
bus_get(ie_bus_server *server)
{
    ie__eb1_bus *bus = server->eb1;

    if (bus != NULL)
        return bus;
    bus = ie__calloc(1, sizeof *bus);
    if (bus == NULL)
        return NULL;
    bus->id_buckets = ID_BUCKETS;
    bus->event_buckets = EVENT_BUCKETS;
    bus->ids = ie__calloc(ID_BUCKETS, sizeof(ie__eb1 *));
    bus->events = ie__calloc(EVENT_BUCKETS, sizeof(ie__eb1_event *));
    if (bus->ids == NULL || bus->events == NULL) {
        ie__free(bus->ids);
        ie__free(bus->events);
        ie__free(bus);
        return NULL;
    }
    bus->next_id = (uint32_t)ie__random_below(IE__EB1_TOP);
    server->eb1 = bus;
    return bus;
}

void
ie__eb1_free(ie_bus_server *server)
{
    if (server->eb1 == NULL)
        return;
    ie__free(server->eb1->ids);
    ie__free(server->eb1->events);
    ie__free(server->eb1);
    server->eb1 = NULL;
}

ie__eb1 *
ie__eb1_find(const ie__eb1_bus *bus, uint32_t id)
{
    ie__eb1 *eb1 = bus->ids[id & (bus->id_buckets - 1)];

    while (eb1 != NULL && eb1->id != id)
        eb1 = eb1->chain;
    return eb1;
}

/* Longer chains are the only harm when there is no memory for it. */
static void
ids_grow(ie__eb1_bus *bus)
{
    const size_t buckets = bus->id_buckets * 2;
    ie__eb1    **grown = ie__calloc(buckets, sizeof *grown);

    if (grown == NULL)
        return;
    for (size_t i = 0; i < bus->id_buckets; i++) {
        while (bus->ids[i] != NULL) {
            ie__eb1 *eb1 = bus->ids[i];

            bus->ids[i] = eb1->chain;
            eb1->chain = grown[eb1->id & (buckets - 1)];
            grown[eb1->id & (buckets - 1)] = eb1;
        }
    }
    ie__free(bus->ids);
    bus->ids = grown;
    bus->id_buckets = buckets;
}

static uint32_t
id_next(ie__eb1_bus *bus)
{
    uint32_t id;

    do {
        id = bus->next_id;
        bus->next_id = (bus->next_id + 1) & (IE__EB1_TOP - 1);
    } while (id == 0 || ie__eb1_find(bus, id) != NULL);
    return id;
}

void
ie__eb1_id_take(ie__eb1_bus *bus, ie__eb1 *eb1)
{
    if (bus->id_count >= bus->id_buckets)
        ids_grow(bus);
    eb1->id = id_next(bus);
    eb1->chain = bus->ids[eb1->id & (bus->id_buckets - 1)];
    bus->ids[eb1->id & (bus->id_buckets - 1)] = eb1;
    bus->id_count++;
}

void
ie__eb1_id_give_back(ie__eb1_bus *bus, ie__eb1 *eb1)
{
    ie__eb1 **link = &bus->ids[eb1->id & (bus->id_buckets - 1)];

    while (*link != eb1)
        link = &(*link)->chain;
    *link = eb1->chain;
    bus->id_count--;
}

static void
session_list(ie__eb1_bus *bus, ie__eb1 *eb1)
{
    eb1->next = bus->sessions;
    if (bus->sessions != NULL)
        bus->sessions->prev = eb1;
    bus->sessions = eb1;
}

static void
session_unlist(ie__eb1_bus *bus, ie__eb1 *eb1)
{
    if (eb1->prev != NULL)
        eb1->prev->next = eb1->next;
    else
        bus->sessions = eb1->next;
    if (eb1->next != NULL)
        eb1->next->prev = eb1->prev;
}

/* ---- output --------------------------------------------------------------------------------- */

/* The length of a frame that waits, in its framing; only data counts. The greeting may be there
 * too: as a length it would be beyond all limits. */
static size_t
measure_tcp(const unsigned char *frame, bool *counts)
{
    const uint64_t size = ie__get64(frame);

    if (ie__greeting_get(frame) != 0)
        return IE__GREETING_BYTES;
    *counts = size >= IE__EB1_HEADER && (frame[IE__LENGTH_BYTES + 3] & IE__EB1_CONTROL) == 0;
    return IE__LENGTH_BYTES + (size_t)size;
}

static size_t
measure_ipc(const unsigned char *frame, bool *counts)
{
    if (ie__greeting_get(frame) != 0)
        return IE__GREETING_BYTES;
    return 1 + measure_tcp(frame + 1, counts);
}

static size_t
measure_web(const unsigned char *frame, bool *counts)
{
    const unsigned short_length = frame[1] & 127u;
    size_t         head = 2;
    uint64_t       size = short_length;

    if (frame[0] == 'H') { /* HTTP's answer; no frame begins so */
        while (memcmp(frame + head, "\r\n\r\n", 4) != 0)
            head++;
        return head + 4;
    }
    if (short_length == 126) {
        head = 4;
        size = ie__get16(frame + 2);
    } else if (short_length == 127) {
        head = 10;
        size = ie__get64(frame + 2);
    }
    *counts = (frame[0] & 15) == IE__WS_BINARY && size >= IE__EB1_HEADER &&
              (frame[head + 3] & IE__EB1_CONTROL) == 0;
    return head + (size_t)size;
}

static size_t
count_unsent(const ie__conn *conn)
{
    static const ie__measure_fn MEASURES[] = {measure_tcp, measure_ipc, measure_web};

    return ie__stream_pending(conn->stream) != 0
               ? ie__stream_unsent_frames(conn->stream, MEASURES[conn->eb1->framing])
               : 0;
}

/* So many messages waited for it and will not be sent. */
static void
count_lost(ie__conn *conn, size_t lost)
{
    if (lost == 0)
        return;
    conn->server->stats.eb1_out -= lost;
    conn->server->stats.eb1_dropped += lost;
    ie__log(&conn->server->options.logger, IE_LOG_WARN, "bus",
            "%s: %zu messages of eb/1 waited for it and are lost", conn->peer, lost);
}

void
ie__eb1_drop_unsent(ie__conn *conn)
{
    const size_t before = count_unsent(conn);

    ie__stream_drop_unsent(conn->stream);
    /* It stays a member until something is sent to it, or this turn ends: whoever walks over the
     * index of topics now must not lose an event under its feet. */
    count_lost(conn, before - count_unsent(conn));
}

/* May so much more wait for it? Who does not read is ended. */
static bool
may_wait(ie__conn *conn, size_t size)
{
    ie_bus_server *server = conn->server;

    if (conn->is_doomed)
        return false;
    if (ie__stream_pending(conn->stream) + size > server->options.out_bytes_max) {
        ie__conn_doom(conn, IE_BUS_CODE_SLOW, "it does not read: out_bytes_max is reached");
        ie__eb1_drop_unsent(conn);
        return false;
    }
    if (server->net.pending_bytes + size > server->options.out_bytes_total_max) {
        ie__route_shed_longest(server);
        return !conn->is_doomed;
    }
    return true;
}

static size_t
put_prefix(unsigned char *out, const ie__eb1 *to, size_t size)
{
    switch (to->framing) {
    case IE__EB1_HTTP: return ie__ws_frame_head(out, IE__WS_BINARY, size, NULL);
    case IE__EB1_IPC:
        out[0] = 1;
        ie__put64(out + 1, size);
        return 1 + IE__LENGTH_BYTES;
    default: ie__put64(out, size); return IE__LENGTH_BYTES;
    }
}

bool
ie__eb1_send(ie__eb1 *to, ie__eb1_out *out)
{
    ie__conn      *conn = to->conn;
    const size_t   size = out->head_bytes + out->data_bytes;
    const bool     is_shared = out->data_bytes >= IE__NET_SHARE_BYTES;
    unsigned char  prefix[IE__EB1_PREFIX_MAX];
    unsigned char *at;
    size_t         prefix_bytes;

    if (!may_wait(conn, size))
        return false;
    if (is_shared && out->blob == NULL) {
        out->blob = ie__blob_new(out->data_bytes);
        if (out->blob == NULL)
            return false;
        memcpy(out->blob->bytes, out->data, out->data_bytes);
    }
    prefix_bytes = put_prefix(prefix, to, size);
    at = ie__stream_reserve(conn->stream,
                            prefix_bytes + out->head_bytes + (is_shared ? 0 : out->data_bytes));
    if (at == NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        return false;
    }
    memcpy(at, prefix, prefix_bytes);
    at += prefix_bytes;
    memcpy(at, out->head, out->head_bytes);
    to->is_silent = false;
    if (!is_shared && out->data_bytes != 0)
        memcpy(at + out->head_bytes, out->data, out->data_bytes);
    if (is_shared && ie__stream_write_blob(conn->stream, out->blob) != IE_OK) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        return false;
    }
    if (out->from != NULL && out->from != conn)
        ie__stall_check(out->from, conn);
    return true;
}

void
ie__eb1_drop(ie__eb1 *from, const char *why)
{
    ie_bus_server *server = from->conn->server;

    server->stats.eb1_dropped++;
    from->dropped++;
    if ((from->dropped & (from->dropped - 1)) == 0) /* the 1st, 2nd, 4th ...: a flood stays quiet */
        ie__log(&server->options.logger, IE_LOG_WARN, "bus",
                "%s: a message of eb/1 is dropped: %s (%u so far)", from->conn->peer, why,
                from->dropped);
}

/* ---- control frames ------------------------------------------------------------------------- */

static void
send_control(ie__eb1 *eb1, unsigned signalling)
{
    unsigned char head[IE__EB1_HEADER];
    ie__eb1_out   out = {.head = head, .head_bytes = sizeof head};

    ie__eb1_header(head, signalling, IE__EB1_BUS, eb1->id);
    (void)ie__eb1_send(eb1, &out);
}

static void
on_heartbeat(ie__eb1 *eb1, unsigned char *message, size_t size)
{
    const size_t  header = ie__eb1_header_bytes(message);
    const int64_t now = now_ms(eb1->conn);
    ie__eb1_out   out = {.head = message,
                         .head_bytes = header,
                         .data = message + header,
                         .data_bytes = size - header};

    if (eb1->has_beaten) {
        eb1->is_beating = true;
        if (now - eb1->beat_ms > eb1->beat_gap_ms)
            eb1->beat_gap_ms = now - eb1->beat_ms;
    }
    eb1->has_beaten = true;
    eb1->beat_ms = now;
    ie__put32(message + 4, IE__EB1_BUS);
    ie__put32(message + 8, eb1->id);
    (void)ie__eb1_send(eb1, &out);
    ie__blob_unref(out.blob);
}

static void
on_control(ie__eb1 *eb1, unsigned char *message, size_t size)
{
    switch (message[3] & IE__EB1_COMMAND) {
    case IE__EB1_HEARTBEAT: on_heartbeat(eb1, message, size); break;
    case IE__EB1_REGISTER:
        if (eb1->is_invited && message[3] == INVITE_SIGNAL)
            eb1->is_old = true;
        ie__eb1_register(eb1, ie__get32(message + 8));
        break;
    default: eb1->conn->server->stats.frames_ignored++; break;
    }
}

ie_status
ie__eb1_message(ie__conn *conn, unsigned char *message, size_t size)
{
    ie__eb1 *eb1 = conn->eb1;
    size_t   header;

    eb1->is_silent = false;
    if (size < IE__EB1_HEADER) {
        ie__eb1_drop(eb1, "it is shorter than a header");
        return IE_OK;
    }
    if (message[0] != 'e' || message[1] != 'b') {
        ie__conn_doom(conn, IE_BUS_CODE_BAD_FRAME, "a message that does not start with \"eb\"");
        return IE_ECLOSED;
    }
    header = ie__eb1_header_bytes(message);
    if (header < IE__EB1_HEADER || header > size)
        ie__eb1_drop(eb1, "its header is longer than itself, or too short");
    else if ((message[3] & IE__EB1_CONTROL) != 0)
        on_control(eb1, message, size);
    else
        ie__eb1_route(eb1, message, size);
    return conn->state == IE__CONN_ENDED ? IE_ECLOSED : IE_OK;
}

/* ---- clocks --------------------------------------------------------------------------------- */

void
ie__eb1_tick(ie__conn *conn, int64_t now)
{
    const ie_bus_server_options *options = &conn->server->options;
    ie__eb1                     *eb1 = conn->eb1;
    int64_t                      patience_ms;

    /* A client of revision v0.1.0 waits for its own kind of assignment before it says anything;
     * newer ones speak at once, and ignore it. */
    if (eb1->is_silent && now - eb1->begun_ms >= options->hello_timeout_ms / 2) {
        eb1->is_invited = true;
        send_control(eb1, INVITE_SIGNAL);
        eb1->is_silent = false;
    }
    if (!eb1->is_beating)
        return; /* whoever sends no heartbeats may be silent as long as its machine is there */
    patience_ms =
        eb1->beat_gap_ms > options->ping_interval_ms ? eb1->beat_gap_ms : options->ping_interval_ms;
    patience_ms *= options->ping_missed_max + 1;
    if (now - conn->heard_ms >= patience_ms)
        ie__conn_doom(conn, IE_BUS_CODE_TIMEOUT, "its heartbeats stopped; silent for %lld ms",
                      (long long)(now - conn->heard_ms));
}

/* ---- beginning and end ---------------------------------------------------------------------- */

bool
ie__eb1_is_greeting(const unsigned char bytes[IE__GREETING_BYTES])
{
    return ie__greeting_get(bytes) == IE__SP_EB1_CLIENT || memcmp(bytes, "GET /", 5) == 0;
}

void
ie__eb1_enter(ie__eb1 *eb1)
{
    ie__conn *conn = eb1->conn;

    conn->state = IE__CONN_OPEN;
    conn->was_welcome = true;
    ie__accept_known(conn);
    conn->server->stats.eb1_connections++;
    ie__stream_keepalive(conn->stream, KEEPALIVE_S);
    ie__eb1_id_take(conn->server->eb1, eb1);
    session_list(conn->server->eb1, eb1);
    eb1->begun_ms = now_ms(conn);
    send_control(eb1, IE__EB1_CONTROL | IE__EB1_ASSIGN);
    eb1->is_silent = true;
    ie__log(&conn->server->options.logger, IE_LOG_DEBUG, "bus", "%s: speaks eb/1, id %u.%u.%u.%u",
            conn->peer, eb1->id >> 24, eb1->id >> 16 & 255, eb1->id >> 8 & 255, eb1->id & 255);
}

ie_status
ie__eb1_begin(ie__conn *conn, const unsigned char bytes[IE__GREETING_BYTES])
{
    const bool    is_web = bytes[0] == 'G';
    unsigned char greeting[IE__GREETING_BYTES];
    ie__eb1      *eb1;

    if ((conn->server->options.flags & IE_BUS_SERVER_NO_EB1) != 0) {
        ie__conn_doom(conn, IE_BUS_CODE_NONE, "eb/1 is switched off here");
        conn->server->stats.protocol_errors++;
        return IE_ECLOSED;
    }
    if (conn->server->is_draining) {
        ie__conn_doom(conn, IE_BUS_CODE_SHUTTING_DOWN, "the bus is shutting down");
        return IE_ECLOSED;
    }
    if (!ie__auth_without_hello(conn)) /* the protocol has no login */
        return IE_ECLOSED;
    eb1 = bus_get(conn->server) != NULL ? ie__calloc(1, sizeof *eb1) : NULL;
    if (eb1 == NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for a session");
        return IE_ECLOSED;
    }
    eb1->conn = conn;
    eb1->framing = is_web ? IE__EB1_HTTP : conn->is_unix ? IE__EB1_IPC : IE__EB1_TCP;
    conn->eb1 = eb1;
    if (is_web)
        return ie__eb1_web_begin(eb1, bytes);
    conn->framer.is_eb1 = true;
    conn->framer.lead = eb1->framing == IE__EB1_IPC ? 1 : 0;
    conn->framer.message_max = IE_EB1_MESSAGE_BYTES_MAX;
    ie__greeting_put(greeting, IE__SP_EB1_BUS);
    if (ie__stream_write(conn->stream, greeting, sizeof greeting) != IE_OK) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        return IE_ECLOSED;
    }
    ie__eb1_enter(eb1);
    return IE_OK;
}

void
ie__eb1_end(ie__conn *conn)
{
    ie__eb1   *eb1 = conn->eb1;
    const bool is_cut = conn->end_code == IE_BUS_CODE_NONE || conn->end_code == IE_BUS_CODE_SLOW;

    ie__eb1_leave(eb1);
    if (eb1->id != 0) {
        ie__eb1_asks_leave(eb1);
        ie__eb1_id_give_back(conn->server->eb1, eb1);
        session_unlist(conn->server->eb1, eb1);
        conn->server->stats.eb1_connections--;
    }
    if (!is_cut && eb1->web != NULL)
        ie__eb1_web_end(eb1);
    if (!is_cut)
        ie__stream_flush(conn->stream);
    if (is_cut || (conn->end_code != IE_BUS_CODE_SHUTTING_DOWN && count_unsent(conn) != 0)) {
        count_lost(conn, count_unsent(conn));
        ie__stream_close(conn->stream);
    } else {
        ie__stream_close_gently(conn->stream);
    }
    if (eb1->web != NULL)
        ie__eb1_web_free(eb1);
    ie__free(eb1->events);
    ie__free(eb1);
    conn->eb1 = NULL;
}
