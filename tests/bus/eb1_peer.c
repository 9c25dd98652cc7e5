/* The raw peer of eb/1. It builds and reads bytes by itself: nothing of the server's code. */
#include "eb1_peer.h"

#include <check.h>
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MESSAGE_MAX (IE_EB1_MESSAGE_BYTES_MAX + 64)

ie_bus_server *
eb1_bus_start(ie_bus_server_options *options, eb1_transport transport)
{
    ie_bus_server_options defaults;
    char                  url[512];
    const char           *listen = url;

    if (options == NULL) {
        IE_BUS_SERVER_OPTIONS_INIT(&defaults);
        options = &defaults;
    }
    if (transport == EB1_IPC) {
        (void)snprintf(url, sizeof url, "unix:%s", test_path("eb1.sock"));
        options->listen = &listen;
        options->listen_count = 1;
    }
    return bus_start(options);
}

typedef struct watched {
    ie_bus_server *server;
    size_t         offset;
    uint64_t       value;
} watched;

static bool
is_at(void *arg)
{
    const watched            *w = arg;
    const ie_bus_server_stats stats = bus_stats(w->server);

    return *(const uint64_t *)(const void *)((const char *)&stats + w->offset) == w->value;
}

bool
stat_reaches(ie_bus_server *server, size_t offset, uint64_t value)
{
    watched w = {server, offset, value};

    return poll_until(is_at, &w, WAIT_MS);
}

/* ---- WebSocket ---- */

static size_t
ws_head(unsigned char *out, unsigned first_byte, bool is_masked, size_t size)
{
    const unsigned mask = is_masked ? 0x80 : 0;
    size_t         length = 2;

    out[0] = (unsigned char)first_byte;
    if (size < 126) {
        out[1] = (unsigned char)(mask | size);
    } else if (size < 65536) {
        out[1] = (unsigned char)(mask | 126);
        ie__put16(out + 2, (unsigned)size);
        length = 4;
    } else {
        out[1] = (unsigned char)(mask | 127);
        ie__put64(out + 2, size);
        length = 10;
    }
    return length;
}

void
ws_frame(int fd, unsigned first_byte, bool is_masked, const void *payload, size_t size)
{
    static const unsigned char MASK[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char             *frame = malloc(size + 16);
    size_t                     length;

    ck_assert_ptr_nonnull(frame);
    length = ws_head(frame, first_byte, is_masked, size);
    if (is_masked) {
        memcpy(frame + length, MASK, 4);
        length += 4;
    }
    for (size_t i = 0; i < size; i++)
        frame[length + i] =
            (unsigned char)(((const unsigned char *)payload)[i] ^ (is_masked ? MASK[i & 3] : 0));
    raw_send(fd, frame, length + size);
    free(frame);
}

unsigned
ws_receive(int fd, unsigned char *payload, size_t *size)
{
    unsigned char head[10];

    *size = 0;
    if (!raw_receive(fd, head, 2))
        return 0;
    ck_assert_msg((head[1] & 128) == 0, "a server's frame is masked");
    *size = head[1];
    if (*size == 126) {
        ck_assert(raw_receive(fd, head + 2, 2));
        *size = ie__get16(head + 2);
    } else if (*size == 127) {
        ck_assert(raw_receive(fd, head + 2, 8));
        *size = (size_t)ie__get64(head + 2);
    }
    ck_assert_uint_le(*size, MESSAGE_MAX);
    return raw_receive(fd, payload, *size) ? head[0] : 0;
}

void
http_exchange(int fd, const char *request, char *answer, size_t answer_size)
{
    size_t size = 0;

    raw_send(fd, request, strlen(request));
    answer[0] = '\0';
    while (strstr(answer, "\r\n\r\n") == NULL) {
        ck_assert_uint_lt(size, answer_size - 1);
        ck_assert_msg(raw_receive(fd, answer + size, 1), "the answer ends early: %s", answer);
        answer[++size] = '\0';
    }
}

/* ---- messages ---- */

void
eb1_send(const eb1_peer *peer, const void *message, size_t size)
{
    unsigned char prefix[9] = {1};

    if (peer->transport == EB1_WS) {
        ws_frame(peer->fd, 0x82, true, message, size);
        return;
    }
    ie__put64(prefix + 1, size);
    if (peer->transport == EB1_IPC)
        raw_send(peer->fd, prefix, 9);
    else
        raw_send(peer->fd, prefix + 1, 8);
    raw_send(peer->fd, message, size);
}

size_t
eb1_receive(const eb1_peer *peer, unsigned char *out)
{
    unsigned char prefix[9];
    uint64_t      size;

    if (peer->transport == EB1_WS) {
        size_t         bytes;
        const unsigned first = ws_receive(peer->fd, out, &bytes);

        ck_assert_msg(first == 0 || first == 0x82 || first == 0x88, "frame %02x", first);
        return first == 0x82 ? bytes : 0;
    }
    if (peer->transport == EB1_IPC) {
        if (!raw_receive(peer->fd, prefix, 1))
            return 0;
        ck_assert_uint_eq(prefix[0], 1);
    }
    if (!raw_receive(peer->fd, prefix + 1, 8))
        return 0;
    size = ie__get64(prefix + 1);
    ck_assert_uint_le(size, IE_EB1_MESSAGE_BYTES_MAX);
    return raw_receive(peer->fd, out, (size_t)size) ? (size_t)size : 0;
}

static size_t
assemble(unsigned char *out, size_t max, const char *text)
{
    size_t size = 0;

    for (const char *at = text; *at != '\0';) {
        unsigned byte;

        ck_assert_uint_lt(size, max);
        if (*at == '\'') {
            for (at++; *at != '\''; at++)
                out[size++] = (unsigned char)*at;
            at++;
        } else if (isspace((unsigned char)*at)) {
            at++;
        } else {
            ck_assert_int_eq(sscanf(at, "%2x", &byte), 1);
            out[size++] = (unsigned char)byte;
            at += 2;
        }
    }
    return size;
}

void
eb1_say(const eb1_peer *peer, const char *format, ...)
{
    unsigned char message[1024];
    char          text[1024];
    va_list       args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    eb1_send(peer, message, assemble(message, sizeof message, text));
}

static void
to_hex(char *out, const unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size && i < 200; i++)
        (void)sprintf(out + 2 * i, "%02x", bytes[i]);
}

void
eb1_expect(const eb1_peer *peer, const char *format, ...)
{
    static unsigned char got[MESSAGE_MAX];
    unsigned char        message[1024];
    char                 text[1024];
    char                 hex[512] = "";
    va_list              args;
    size_t               size;
    size_t               got_size;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size = assemble(message, sizeof message, text);
    got_size = eb1_receive(peer, got);
    to_hex(hex, got, got_size);
    ck_assert_msg(got_size == size && memcmp(got, message, size) == 0, "expected %s, got %s", text,
                  hex);
}

void
eb1_expect_nothing(const eb1_peer *peer)
{
    eb1_say(peer, "65621320 00000abc e5627573 'quiet'");
    eb1_expect(peer, "65621320 e5627573 %08x 'quiet'", peer->id);
}

void
eb1_expect_end(const eb1_peer *peer)
{
    static unsigned char got[MESSAGE_MAX];
    const size_t         size = eb1_receive(peer, got);

    ck_assert_msg(size == 0, "%zu bytes came instead of the end", size);
}

/* ---- life ---- */

eb1_peer
eb1_open(const ie_bus_server *server, eb1_transport transport)
{
    static const unsigned char HELLO[8] = {0, 0x53, 0x50, 0, 0, 0xab, 0, 0};
    static const unsigned char WELCOME[8] = {0, 0x53, 0x50, 0, 0, 0xaa, 0, 0};
    static unsigned char       message[MESSAGE_MAX];
    unsigned char              greeting[8];
    eb1_peer                   peer = {.fd = raw_connect(server), .transport = transport};

    ck_assert_int_ge(peer.fd, 0);
    if (transport == EB1_WS) {
        char answer[1024];

        http_exchange(peer.fd, WS_REQUEST, answer, sizeof answer);
        ck_assert_msg(strncmp(answer, "HTTP/1.1 101 ", 13) == 0, "%s", answer);
        ck_assert_ptr_nonnull(strstr(answer, "Sec-WebSocket-Accept: " WS_ACCEPT "\r\n"));
        ck_assert_ptr_nonnull(strstr(answer, "Sec-WebSocket-Protocol: ebus.sp.nanomsg.org\r\n"));
    } else {
        raw_send(peer.fd, HELLO, sizeof HELLO);
        ck_assert(raw_receive(peer.fd, greeting, sizeof greeting));
        ck_assert_mem_eq(greeting, WELCOME, sizeof WELCOME);
    }
    ck_assert_uint_eq(eb1_receive(&peer, message), 12);
    ck_assert_mem_eq(message, "\x65\x62\x13\x22\xe5\x62\x75\x73", 8);
    peer.id = ie__get32(message + 8);
    ck_assert_uint_ne(peer.id, 0);
    ck_assert_uint_lt(peer.id, 0x80000000u);
    return peer;
}

eb1_peer
eb1_join(const ie_bus_server *server, eb1_transport transport, ...)
{
    eb1_peer    peer = eb1_open(server, transport);
    va_list     names;
    const char *name;

    va_start(names, transport);
    while ((name = va_arg(names, const char *)) != NULL)
        eb1_say(&peer, "65621331 1c538f35 %08x", ie_eb1_event_id(name));
    va_end(names);
    eb1_expect_nothing(&peer);
    return peer;
}

void
eb1_close(eb1_peer *peer)
{
    (void)close(peer->fd);
    peer->fd = -1;
}

void
eb1_send_number(const eb1_peer *peer, unsigned signalling, uint32_t destination, uint64_t key,
                unsigned long number)
{
    const bool is_event = (signalling & 0x10) != 0;

    if (is_event)
        eb1_say(peer, "656215%02x %08x %08x %016llx '%lu'", signalling, peer->id, destination,
                (unsigned long long)key, number);
    else
        eb1_say(peer, "656213%02x %08x %08x '%lu'", signalling, peer->id, destination, number);
}
