/*
 * eb/1: a play for four peers of a real server whose loop runs right here: two of eb/1 over a unix
 * socket, both members of "sess", one of eb/1 in WebSocket, and one of eb/2 that is subscribed to
 * everything. Each step is a byte (bits 0 and 1: which peer; bit 2: bytes as they are, or data that
 * gets its frame; bit 3: read what came), a length, the signalling byte, and one that says how
 * long the header claims to be and whom it is for. In the end all are gone, and nothing of theirs
 * may be left.
 */
#include "fuzz_bus.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "eb1.h"

#define PEERS     4
#define PEER_WEB  2
#define PEER_EB2  3
#define PIECE_MAX 256

static const char REQUEST[] =
    "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: ebus.sp.nanomsg.org\r\n\r\n";

static ie_bus_server *server;
static int            fds[PEERS];
static uint32_t       ids[PEERS];

static void
server_set_up(void)
{
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.subscriptions_per_client_max = 8;
    options.group_events_max = 8;
    options.out_bytes_max = 65536;
    server = fuzz_bus_make("eb1", &options);
}

/* Hello to everyone; the ids are the last four bytes that came. */
static void
peers_open(void)
{
    static const unsigned char JOIN[] = "\1\0\0\0\0\0\0\0\x0c"
                                        "\x65\x62\x13\x31\0\0\0\1\xf3\x65\x73\x73";
    /* HELLO, then SUBSCRIBE 1 of ">" */
    static const unsigned char EB2[] = "\0\0\0\0\0\0\0\x08\x65\x62\x22\x01\0\0\0\0"
                                       "\0\0\0\0\0\0\0\x0c\x65\x62\x22\x20\0\0\0\1\x09\0\1>";
    unsigned char              greeting[IE__GREETING_BYTES];
    unsigned char              got[1024];

    for (size_t i = 0; i < PEERS; i++) {
        fds[i] = fuzz_peer_connect();
        if (i == PEER_WEB) {
            fuzz_peer_send(fds[i], REQUEST, sizeof REQUEST - 1);
        } else {
            ie__greeting_put(greeting, i == PEER_EB2 ? IE__SP_EB2_CLIENT : IE__SP_EB1_CLIENT);
            fuzz_peer_send(fds[i], greeting, sizeof greeting);
            fuzz_peer_send(fds[i], i == PEER_EB2 ? EB2 : JOIN,
                           i == PEER_EB2 ? sizeof EB2 - 1 : sizeof JOIN - 1);
        }
    }
    fuzz_bus_turn();
    for (size_t i = 0; i < PEERS; i++) {
        const ssize_t size = recv(fds[i], got, sizeof got, 0);

        CLAIM(size >= 12);
        ids[i] = ie__get32(got + size - 4);
        if (i != PEER_EB2)
            CLAIM(ie__eb1_find(server->eb1, ids[i]) != NULL);
    }
}

/* Data gets a header that may fit it. */
static void
say_message(size_t peer, unsigned signalling, unsigned how, const uint8_t *data, size_t size)
{
    const uint32_t destinations[8] = {
        0, ie_eb1_event_id("sess"), ids[0], ids[1], ids[2], IE__EB1_BUS, 1, ie_eb1_event_id("a")};
    unsigned char message[64 + PIECE_MAX];
    unsigned char prefix[IE__EB1_PREFIX_MAX];
    const size_t  header = 4 * (size_t)(how & 15);
    const size_t  head = header < IE__EB1_HEADER ? IE__EB1_HEADER : header;

    memset(message, 0, head);
    ie__eb1_header(message, signalling, ids[peer], destinations[how >> 5]);
    message[2] = (unsigned char)(0x10 | (how & 15));
    memcpy(message + head, data, size);
    if (peer == PEER_WEB) {
        static const unsigned char MASK[4];

        fuzz_peer_send(fds[peer], prefix,
                       ie__ws_frame_head(prefix, IE__WS_BINARY, head + size, MASK));
    } else if (peer == PEER_EB2) {
        unsigned char frame[IE__PREFIX_BYTES];

        ie__frame_prefix(frame, (ie__frame_type)signalling, how, size);
        fuzz_peer_send(fds[peer], frame, sizeof frame);
        fuzz_peer_send(fds[peer], data, size);
        return;
    } else {
        prefix[0] = 1;
        ie__put64(prefix + 1, head + size);
        fuzz_peer_send(fds[peer], prefix, 1 + IE__LENGTH_BYTES);
    }
    fuzz_peer_send(fds[peer], message, head + size);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (server == NULL)
        server_set_up();
    peers_open();
    while (size >= 4) {
        const size_t   peer = data[0] & 3;
        const bool     is_raw = (data[0] & 4) != 0;
        const bool     is_read = (data[0] & 8) != 0;
        size_t         piece = data[1];
        const unsigned signalling = data[2];
        const unsigned how = data[3];

        data += 4;
        size -= 4;
        piece = piece < size ? piece : size;
        if (is_raw)
            fuzz_peer_send(fds[peer], data, piece);
        else
            say_message(peer, signalling, how, data, piece);
        data += piece;
        size -= piece;
        fuzz_bus_turn();
        if (is_read)
            fuzz_peer_drain(fds[peer]);
    }
    for (size_t i = 0; i < PEERS; i++)
        (void)close(fds[i]);
    fuzz_bus_claim_empty();
    CLAIM(server->eb1->sessions == NULL && server->eb1->id_count == 0);
    CLAIM(server->eb1->event_count == 0 && server->stats.eb1_connections == 0);
    return 0;
}
