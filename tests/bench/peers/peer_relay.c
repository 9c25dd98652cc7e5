/*
 * The floor: what one thread on a libuv loop can move here when it only finds the ends of frames,
 * looks their topics up and forwards them in large writes. No answers, no limits but back-pressure.
 *
 * A frame is u32 length (of what follows), 16 bytes of topic, data. The first byte of a connection
 * says what it is: P publishes, S subscribes, A asks, R answers.
 */
#include "peers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#define HEAD        20 /* length and topic */
#define TOPIC_BYTES 16
#define GATHER      65536
#define READ_BYTES  262144
#define HIGH        (1 << 20) /* unsent bytes that keep publishers back */
#define CONNS_MAX   64
#define TOPICS      512
#define BUCKETS     2048 /* a power of two */

/* ---- topics ---- */

static char table[BUCKETS][TOPIC_BYTES];

static size_t
bucket_of(const char *topic)
{
    uint64_t halves[2];

    memcpy(halves, topic, sizeof halves);
    halves[0] ^= halves[1] * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(halves[0] * UINT64_C(0xD6E8FEB86659FD93) >> 40) & (BUCKETS - 1);
}

static char *
topic_place(const char *topic)
{
    size_t at = bucket_of(topic);

    while (table[at][0] != '\0' && memcmp(table[at], topic, TOPIC_BYTES) != 0)
        at = (at + 1) & (BUCKETS - 1);
    return table[at];
}

static void
topics_fill(void)
{
    char name[TOPIC_BYTES + 1];

    memcpy(topic_place(PEERS_TOPIC), PEERS_TOPIC, TOPIC_BYTES);
    for (int i = 1; i < TOPICS; i++) {
        (void)snprintf(name, sizeof name, "bench.other.%04d", i);
        memcpy(topic_place(name), name, TOPIC_BYTES);
    }
}

/* How many bytes of whole frames are here; each of them has a topic that is known. */
static size_t
whole_frames(const char *bytes, size_t size)
{
    size_t done = 0;

    while (size - done >= HEAD) {
        uint32_t length;

        memcpy(&length, bytes + done, sizeof length);
        if (size - done < sizeof length + length)
            break;
        if (*topic_place(bytes + done + sizeof length) == '\0')
            bench_die("relay: a topic that is not known");
        done += sizeof length + length;
    }
    return done;
}

/* ---- connections ---- */

typedef struct conn {
    uv_tcp_t   tcp;
    uv_write_t write;
    char       kind; /* 0: has not said */
    bool       is_open;
    bool       is_writing;
    char      *in;
    size_t     in_bytes;
    char      *out; /* what the socket did not take; grows */
    char      *flying;
    size_t     out_bytes;
    size_t     out_max;
    size_t     flying_max;
} conn;

static conn  *conns[CONNS_MAX];
static size_t conn_count;
static bool   is_held; /* publishers are */

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf);

static void
on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    conn *self = handle->data;

    (void)suggested;
    *buf = uv_buf_init(self->in + self->in_bytes, READ_BYTES);
}

static bool
is_any_full(void)
{
    for (size_t i = 0; i < conn_count; i++)
        if (conns[i]->is_open && conns[i]->out_bytes > HIGH)
            return true;
    return false;
}

static void
hold(bool now)
{
    if (now == is_held)
        return;
    is_held = now;
    for (size_t i = 0; i < conn_count; i++) {
        if (!conns[i]->is_open || conns[i]->kind != 'P')
            continue;
        if (now)
            (void)uv_read_stop((uv_stream_t *)&conns[i]->tcp);
        else
            (void)uv_read_start((uv_stream_t *)&conns[i]->tcp, on_alloc, on_read);
    }
}

static void conn_write_out(conn *self);

static void
on_written(uv_write_t *request, int status)
{
    conn *self = request->data;

    self->is_writing = false;
    if (status != 0 || !self->is_open)
        self->out_bytes = 0;
    conn_write_out(self);
    hold(is_any_full());
}

/* What waits goes as one request; what comes meanwhile gathers in the other buffer. */
static void
conn_write_out(conn *self)
{
    uv_buf_t     buf;
    char *const  bytes = self->out;
    const size_t max = self->out_max;

    if (self->is_writing || self->out_bytes == 0)
        return;
    buf = uv_buf_init(bytes, (unsigned)self->out_bytes);
    self->out = self->flying;
    self->out_max = self->flying_max;
    self->flying = bytes;
    self->flying_max = max;
    self->out_bytes = 0;
    self->write.data = self;
    self->is_writing = uv_write(&self->write, (uv_stream_t *)&self->tcp, &buf, 1, on_written) == 0;
}

static void
conn_send(conn *self, const char *bytes, size_t size)
{
    if (!self->is_writing) {
        uv_buf_t  buf = uv_buf_init((char *)(uintptr_t)bytes, (unsigned)size);
        const int sent = uv_try_write((uv_stream_t *)&self->tcp, &buf, 1);

        if (sent > 0) {
            bytes += sent;
            size -= (size_t)sent;
        }
    }
    if (size == 0)
        return;
    if (self->out_max - self->out_bytes < size) {
        self->out_max = 2 * (self->out_bytes + size);
        self->out = realloc(self->out, self->out_max);
        if (self->out == NULL)
            bench_die("relay: out of memory");
    }
    memcpy(self->out + self->out_bytes, bytes, size);
    self->out_bytes += size;
    conn_write_out(self);
}

static char
goes_to(char kind)
{
    return kind == 'P' ? 'S' : kind == 'A' ? 'R' : kind == 'R' ? 'A' : '\0';
}

static void
on_closed(uv_handle_t *handle)
{
    conn  *self = handle->data;
    size_t i = 0;

    while (conns[i] != self)
        i++;
    conns[i] = conns[--conn_count];
    free(self->in);
    free(self->out);
    free(self->flying);
    free(self);
}

static void
on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf)
{
    conn  *self = stream->data;
    char  *at = self->in;
    size_t whole;

    (void)buf;
    if (got < 0) {
        self->is_open = false;
        uv_close((uv_handle_t *)stream, on_closed);
        hold(is_any_full());
        return;
    }
    self->in_bytes += (size_t)got;
    if (self->kind == '\0' && self->in_bytes > 0) {
        self->kind = *at++;
        self->in_bytes--;
    }
    whole = whole_frames(at, self->in_bytes);
    for (size_t i = 0; whole > 0 && i < conn_count; i++)
        if (conns[i]->is_open && conns[i]->kind == goes_to(self->kind))
            conn_send(conns[i], at, whole);
    self->in_bytes -= whole;
    memmove(self->in, at + whole, self->in_bytes);
    if (is_any_full())
        hold(true);
}

static void
on_connection(uv_stream_t *listener, int status)
{
    conn *self = calloc(1, sizeof *self);

    if (status != 0 || self == NULL || conn_count == CONNS_MAX)
        bench_die("relay: cannot take a connection");
    conns[conn_count++] = self;
    self->in = malloc(2 * READ_BYTES);
    if (self->in == NULL)
        bench_die("relay: out of memory");
    (void)uv_tcp_init(listener->loop, &self->tcp);
    self->tcp.data = self;
    self->is_open = true;
    (void)uv_accept(listener, (uv_stream_t *)&self->tcp);
    (void)uv_tcp_nodelay(&self->tcp, 1);
    (void)uv_read_start((uv_stream_t *)&self->tcp, on_alloc, on_read);
}

void
peers_relay_serve(void)
{
    struct sockaddr_in address;
    int                size = sizeof address;
    uv_loop_t         *loop = uv_default_loop();
    uv_tcp_t           listener;

    topics_fill();
    (void)uv_ip4_addr("127.0.0.1", 0, &address);
    (void)uv_tcp_init(loop, &listener);
    if (uv_tcp_bind(&listener, (struct sockaddr *)&address, 0) != 0 ||
        uv_listen((uv_stream_t *)&listener, 64, on_connection) != 0 ||
        uv_tcp_getsockname(&listener, (struct sockaddr *)&address, &size) != 0)
        bench_die("relay: cannot listen");
    (void)printf("ready %d\n", ntohs(address.sin_port));
    (void)fflush(stdout);
    (void)uv_run(loop, UV_RUN_DEFAULT);
}

/* ---- its clients: plain sockets ---- */

static size_t
put_frame(char *out, const peers_run *run)
{
    const uint32_t length = (uint32_t)(TOPIC_BYTES + run->bytes);

    memcpy(out, &length, sizeof length);
    memcpy(out + sizeof length, PEERS_TOPIC, TOPIC_BYTES);
    memcpy(out + HEAD, run->data, run->bytes);
    return HEAD + run->bytes;
}

typedef struct input {
    int    fd;
    char  *bytes;
    size_t size;
    size_t done;
} input;

static void
input_open(input *self, const peers_run *run, const char *kind)
{
    memset(self, 0, sizeof *self);
    self->fd = peers_connect(run);
    self->bytes = malloc(2 * READ_BYTES);
    if (self->bytes == NULL)
        bench_die("out of memory");
    peers_write_all(self->fd, kind, 1);
}

/* The data of the next frame, if it is there. */
static const char *
input_next(input *self, size_t *bytes)
{
    const char *at = self->bytes + self->done;
    uint32_t    length;

    if (self->size - self->done < HEAD)
        return NULL;
    memcpy(&length, at, sizeof length);
    if (self->size - self->done < sizeof length + length)
        return NULL;
    self->done += sizeof length + length;
    *bytes = length - TOPIC_BYTES;
    return at + HEAD;
}

static void
input_read(input *self)
{
    ssize_t got;

    self->size -= self->done;
    memmove(self->bytes, self->bytes + self->done, self->size);
    self->done = 0;
    got = read(self->fd, self->bytes + self->size, READ_BYTES);
    if (got <= 0)
        bench_die("relay: read: %s", got < 0 ? strerror(errno) : "closed");
    self->size += (size_t)got;
}

static void
subscribe(peers_run *run)
{
    input in;

    input_open(&in, run, "S");
    peers_ready(run);
    for (;;) {
        const char *data;
        size_t      bytes;

        input_read(&in);
        while ((data = input_next(&in, &bytes)) != NULL)
            peers_received(run, data, bytes);
    }
}

static void
publish(peers_run *run)
{
    char  *out = malloc(GATHER + HEAD + run->bytes);
    size_t filled = 0;
    int    fd = peers_connect(run);

    if (out == NULL)
        bench_die("out of memory");
    peers_write_all(fd, "P", 1);
    peers_begin(run);
    while (peers_next(run)) {
        filled += put_frame(out + filled, run);
        if (filled >= GATHER || run->rate != 0) {
            peers_write_all(fd, out, filled);
            filled = 0;
        }
    }
    peers_write_all(fd, out, filled);
}

static void
serve(peers_run *run)
{
    input in;

    input_open(&in, run, "R");
    peers_ready(run);
    for (;;) {
        const char *data;
        size_t      bytes;

        input_read(&in);
        while ((data = input_next(&in, &bytes)) != NULL) {
        }
        peers_write_all(in.fd, in.bytes, in.done);
    }
}

static void
ask(peers_run *run)
{
    int64_t *began = calloc(65536, sizeof *began);
    char    *out = malloc((size_t)run->window * (HEAD + run->bytes));
    int64_t  answered = 0;
    input    in;
    bool     is_more = true;

    if (began == NULL || out == NULL)
        bench_die("out of memory");
    input_open(&in, run, "A");
    peers_begin(run);
    for (;;) {
        const char *data;
        size_t      filled = 0;
        size_t      bytes;

        while (run->next - answered < run->window && (is_more = is_more && peers_next(run))) {
            began[(run->next - 1) & 65535] = bench_now_ns();
            filled += put_frame(out + filled, run);
        }
        peers_write_all(in.fd, out, filled);
        if (run->next == answered)
            return;
        input_read(&in);
        while ((data = input_next(&in, &bytes)) != NULL) {
            int64_t number;

            memcpy(&number, data, sizeof number);
            peers_sample(run, bench_now_ns() - began[number & 65535]);
            peers_answered(run, 1);
            answered++;
        }
    }
}

const peers_peer PEERS_RELAY = {
    .name = "relay",
    .subscribe = subscribe,
    .publish = publish,
    .serve = serve,
    .ask = ask,
};
