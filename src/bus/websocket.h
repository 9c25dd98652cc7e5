/*
 * WebSocket (RFC 6455) over memory: the opening handshake of both sides, and a parser of frames
 * that gives whole messages. No sockets in here; for eb/1's server and client, and the fuzzer.
 */
#ifndef IE_WEBSOCKET_H
#define IE_WEBSOCKET_H

#include <ie/base.h>

#define IE__WS_PROTOCOL     "ebus.sp.nanomsg.org"
#define IE__WS_PORT_DEFAULT 80
#define IE__HTTP_BYTES_MAX  4096 /* request, or answer, up to the empty line */
#define IE__WS_HEAD_MAX     14
#define IE__WS_CONTROL_MAX  125
#define IE__WS_KEY_SIZE     25 /* 16 random bytes in base64, terminated */
#define IE__WS_ACCEPT_SIZE  29 /* SHA-1 in base64, terminated */

typedef enum ie__ws_opcode {
    IE__WS_CONTINUATION = 0,
    IE__WS_TEXT = 1,
    IE__WS_BINARY = 2,
    IE__WS_CLOSE = 8,
    IE__WS_PING = 9,
    IE__WS_PONG = 10
} ie__ws_opcode;

/* Why a connection is closed, in the close frame. */
enum {
    IE__WS_NORMAL = 1000,
    IE__WS_GOING_AWAY = 1001,
    IE__WS_BROKEN = 1002,
    IE__WS_POLICY = 1008,
    IE__WS_TOO_BIG = 1009
};

/* ---- the opening handshake ---- */

/* How many bytes the head of a request or answer has, the empty line too; 0: not all is there. */
size_t ie__http_head(const unsigned char *bytes, size_t size);

/*
 * Is this head a request that we upgrade? 101: yes, and accept is what to answer with. Otherwise
 * the HTTP status to refuse with, and *why in one line.
 */
int ie__ws_request_check(char accept[IE__WS_ACCEPT_SIZE], const char **why,
                         const unsigned char *head, size_t size);

/* The answer to it; returns its length. */
size_t ie__ws_answer(char out[IE__HTTP_BYTES_MAX], int status, const char *accept, const char *why);

/* The client's request. 0: the path or the host is too long. */
size_t ie__ws_request(char out[IE__HTTP_BYTES_MAX], const char *host, int port, const char *path,
                      const char *key);
void   ie__ws_key(char out[IE__WS_KEY_SIZE]);
/* IE_OK, or IE_EREFUSED with the server's own words. */
ie_status ie__ws_answer_check(const unsigned char *head, size_t size, const char *key,
                              ie_error *err);

/* ---- frames ---- */

/* The head of a final frame of that size; mask NULL: a server's. Returns its length. */
size_t ie__ws_frame_head(unsigned char out[IE__WS_HEAD_MAX], ie__ws_opcode opcode, size_t size,
                         const unsigned char mask[4]);
/* Mask, or unmask; at is how far into the frame's payload bytes[0] is. */
void ie__ws_mask(unsigned char *bytes, size_t size, const unsigned char mask[4], size_t at);

/*
 * Cuts the byte stream into messages. A message that lies whole in the input is handed over where
 * it lies; others are gathered in memory that grows with the bytes that came, never with the
 * length that was announced.
 */
typedef struct ie__ws {
    unsigned char *partial; /* the message so far */
    size_t         size;
    size_t         capacity;
    size_t         message_max;
    uint64_t       left; /* of the frame's payload */
    uint64_t       frame_bytes;
    unsigned char  head[IE__WS_HEAD_MAX];
    unsigned char  control[IE__WS_CONTROL_MAX];
    uint8_t        head_bytes;
    uint8_t        control_bytes;
    uint8_t        opcode;     /* of the frame at hand */
    bool           is_client;  /* we are: the peer must not mask */
    bool           is_final;   /* the frame at hand is its message's last */
    bool           in_frame;   /* its head is complete */
    bool           in_message; /* a fragment came, more will */
} ie__ws;

/* Both return IE_OK to go on; anything else ends the push and is its result. */
typedef struct ie__ws_ops {
    ie_status (*message)(void *user, unsigned char *bytes, size_t size);
    ie_status (*control)(void *user, ie__ws_opcode opcode, unsigned char *bytes, size_t size);
} ie__ws_ops;

/* IE_ETOOBIG: a message beyond message_max. IE_EPROTO: RFC 6455 was broken. */
ie_status ie__ws_push(ie__ws *ws, unsigned char *bytes, size_t size, const ie__ws_ops *ops,
                      void *user, ie_error *err);
bool      ie__ws_is_midway(const ie__ws *ws);
void      ie__ws_fini(ie__ws *ws);
/* The code in a close frame's payload: 1005 when there is none; 0: malformed. */
unsigned ie__ws_close_code(const unsigned char *bytes, size_t size);

#endif
