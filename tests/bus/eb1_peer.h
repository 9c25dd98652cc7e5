/* A peer that speaks raw eb/1 bytes: over TCP, over a unix socket (the ipc framing), in WebSocket.
 */
#ifndef IE_EB1_PEER_H
#define IE_EB1_PEER_H

#include <ie/eb1.h>

#include "bus_support.h"

typedef enum eb1_transport { EB1_TCP, EB1_IPC, EB1_WS, EB1_TRANSPORTS } eb1_transport;

typedef struct eb1_peer {
    int           fd;
    eb1_transport transport;
    uint32_t      id; /* that the bus assigned */
} eb1_peer;

/* Wait until a counter of the bus has this value; they are shown at the end of each turn. */
bool stat_reaches(ie_bus_server *server, size_t offset, uint64_t value);
#define wait_stat_of(server, field, wanted)                                                        \
    ck_assert_msg(stat_reaches((server), offsetof(ie_bus_server_stats, field), (wanted)),          \
                  #field " is %llu, not %llu", (unsigned long long)bus_stats(server).field,        \
                  (unsigned long long)(wanted))

/* A bus that listens on loopback, or for EB1_IPC on a unix socket in the test's folder. */
ie_bus_server *eb1_bus_start(ie_bus_server_options *options, eb1_transport transport);

/* Connect, greet or upgrade, and take the assignment; all of it checked byte by byte. */
eb1_peer eb1_open(const ie_bus_server *server, eb1_transport transport);
/* ... and register names, as many as there are before NULL. The bus has them when this returns. */
eb1_peer eb1_join(const ie_bus_server *server, eb1_transport transport, ...);
void     eb1_close(eb1_peer *peer);

/* One message in the peer's framing. */
void eb1_send(const eb1_peer *peer, const void *message, size_t size);
/* One message; 0: the connection ended. out has room for 1 MiB and a bit. */
size_t eb1_receive(const eb1_peer *peer, unsigned char *out);

/* The message is written in hex and texts in quotes: "65621300 %08x %08x 'hello'", formatted. */
void eb1_say(const eb1_peer *peer, const char *format, ...) IE_PRINTF(2, 3);
/* Exactly this must come next. */
void eb1_expect(const eb1_peer *peer, const char *format, ...) IE_PRINTF(2, 3);
/* Nothing but the answer to a heartbeat comes: whatever was sent to this peer before has come. */
void eb1_expect_nothing(const eb1_peer *peer);
/* The connection ends, and nothing else comes. */
void eb1_expect_end(const eb1_peer *peer);

/* A data message with a number as text; mode as in the signalling byte. */
void eb1_send_number(const eb1_peer *peer, unsigned signalling, uint32_t destination, uint64_t key,
                     unsigned long number);

/* One unmasked or masked WebSocket frame, as it is told. */
void ws_frame(int fd, unsigned first_byte, bool is_masked, const void *payload, size_t size);
/* The next frame of the server: its first byte, and the payload. */
unsigned ws_receive(int fd, unsigned char *payload, size_t *size);
/* Send a request, and receive the answer up to its end as text. */
void http_exchange(int fd, const char *request, char *answer, size_t answer_size);

#define WS_KEY    "dGhlIHNhbXBsZSBub25jZQ==" /* of RFC 6455, and what it must give */
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define WS_REQUEST                                                                                 \
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"           \
    "Sec-WebSocket-Key: " WS_KEY "\r\nSec-WebSocket-Version: 13\r\n"                               \
    "Sec-WebSocket-Protocol: ebus.sp.nanomsg.org\r\n\r\n"

#endif
