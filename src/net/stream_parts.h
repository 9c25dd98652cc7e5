/* A stream's insides, for stream.c and stream_tls.c alone. */
#ifndef IE_NET_STREAM_PARTS_H
#define IE_NET_STREAM_PARTS_H

#include "stream.h"

typedef struct ie__stream_tls ie__stream_tls;

/* A piece of output: bytes of its own, or a part of a shared body. */
struct ie__chunk {
    ie__chunk     *next;
    ie__blob      *blob;  /* NULL: the bytes behind this struct */
    unsigned char *bytes; /* start */
    size_t         size;  /* filled */
    size_t         sent;
    bool           continues; /* the frame that the chunk before began */
    bool           is_secret; /* overwritten before it is used again */
};

struct ie__stream {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t    tcp;
        uv_pipe_t   pipe;
    } uv;
    uv_write_t            write;
    uv_connect_t          connect;
    uv_shutdown_t         shutdown;
    ie__net              *net;
    const ie__stream_ops *ops;
    void                 *owner; /* NULL once the owner closed */
    ie__connect_fn        connected;
    void                 *connected_user;
    ie__chunk            *head;
    ie__chunk            *tail;
    size_t                pending;
    size_t                writing_bytes; /* of the write request that is out */
    size_t                notify_below;
    ie__stream           *dirty_next;
    ie__stream           *linger_next;
    uint64_t              linger_until;
    int                   failed; /* libuv error that ended it; 0: fine */
    bool                  is_unix;
    bool                  is_dirty;
    bool                  is_open;    /* connected */
    bool                  is_writing; /* a write request is out */
    bool                  is_drained; /* drained is due */
    bool                  is_reading;
    bool                  is_told; /* gone was called */
    bool                  is_lingering;
    bool                  is_shut;
    bool                  is_closing;
    ie__stream_tls       *tls; /* NULL: plain */
};

/* ---- stream.c ---- */

/* It has failed; the owner hears of it at the end of the turn. */
void ie__stream_fail(ie__stream *stream, int uv_error);
/* So many bytes of the head are taken. */
void ie__stream_consume(ie__stream *stream, size_t bytes);
/* All is written and said: wait for the peer to hang up. */
void ie__stream_shut(ie__stream *stream);
/* Stay for a moment without an owner, so that last words arrive. False: no room for that. */
bool ie__stream_linger(ie__stream *stream);

/* ---- stream_tls.c ---- */

/* Its connection is there. */
void ie__stream_tls_begin(ie__stream *stream);
/* Bytes from the wire. */
void ie__stream_tls_received(ie__stream *stream, const unsigned char *bytes, size_t size);
/* Encrypt and write what waits. */
void ie__stream_tls_send(ie__stream *stream);
/* How much is encrypted and not written. */
size_t ie__stream_tls_pending(const ie__stream *stream);
/* Why it failed; NULL: TLS has nothing to say about that. */
const char *ie__stream_tls_reason(const ie__stream *stream);
/* The owner closes: say so to the peer. True: it lingers, and closes by itself. */
bool ie__stream_tls_leave(ie__stream *stream);
void ie__stream_tls_free(ie__stream *stream);

#endif
