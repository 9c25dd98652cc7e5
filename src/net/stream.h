/*
 * A byte stream on a libuv loop: TCP, unix or TLS. TLS sits below the queues of stream.c: what
 * was gathered is encrypted in records as large as they get, just before it is written.
 *
 * Writing gathers: bytes are copied into chunks (large ones are shared by reference count), and
 * go out once per turn of the loop, or as soon as a chunkful waits. There is at most one write
 * request, so a slow peer costs queue, never requests. How much may wait is the owner's
 * decision: it asks ie__stream_pending() before it writes.
 *
 * Everything here belongs to the loop's thread. That thread must run with SIGPIPE blocked
 * (ie__net_thread_enter()): libuv writes with plain write(2), and the process's handler is not
 * ours to change.
 */
#ifndef IE_NET_STREAM_H
#define IE_NET_STREAM_H

#include <ie/base.h>

#include <uv.h>

#include "address.h"
#include "tls.h"

#define IE__NET_READ_BYTES  65536 /* one buffer per loop: a turn's input is used up at once */
#define IE__NET_CHUNK_BYTES 16384 /* output is gathered in pieces of this */
#define IE__NET_SHARE_BYTES 8192  /* from here on a body is shared instead of copied */
#define IE__NET_LINGER_MS   2000  /* for the peer to read our last words */
#define IE__NET_LINGER_MAX  256   /* streams that may linger at a time; the rest are cut */

/* Bytes that several queues share. */
typedef struct ie__blob {
    size_t        refs; /* loop thread only */
    size_t        size;
    unsigned char bytes[];
} ie__blob;

ie__blob *ie__blob_new(size_t size); /* one reference; NULL when out of memory */
void      ie__blob_ref(ie__blob *blob);
void      ie__blob_unref(ie__blob *blob); /* NULL is accepted */

typedef struct ie__stream ie__stream;

/* What a stream tells its owner. None of them is called after ie__stream_close(). */
typedef struct ie__stream_ops {
    /* Bytes came; the owner may change them. It may close the stream in here. */
    void (*data)(void *owner, unsigned char *bytes, size_t size);
    /* The peer is gone, or writing failed; never called from inside a write. The owner closes. */
    void (*gone)(void *owner, const char *reason);
    /* The turn's output is about to be written: add what was gathered. */
    void (*before_flush)(void *owner);
    /* The output has fallen to what ie__stream_notify_below() was told; once per telling. */
    void (*drained)(void *owner);
} ie__stream_ops;

typedef struct ie__chunk ie__chunk;

typedef struct ie__net {
    uv_loop_t   *loop;
    uv_check_t   check;
    uv_prepare_t prepare;
    uv_timer_t   linger_timer;
    ie__stream  *dirty; /* have output, or news, for the end of the turn */
    ie__stream  *lingering;
    size_t       linger_count;
    ie__chunk   *spare; /* a few chunks kept */
    size_t       spare_count;
    size_t       memory_bytes;  /* in chunks and shared bodies, by capacity */
    size_t       pending_bytes; /* waiting in all streams */
    uint64_t     bytes_in;
    uint64_t     bytes_out;
    void (*before_output)(void *user); /* may be NULL; before the turn's output is written */
    void (*end_of_turn)(void *user);   /* may be NULL; after all output was written */
    void          *user;
    unsigned char *read_buffer;
    ie__tls_sink  *tls_sink;   /* of all connections; NULL before the first */
    unsigned char *tls_buffer; /* records before they are encrypted, and after being decrypted */
} ie__net;

/* Set up on a loop; fini closes the handles (run the loop until they are gone, then free). */
ie_status ie__net_init(ie__net *net, uv_loop_t *loop);
void      ie__net_fini(ie__net *net); /* also cuts what still lingers */
void      ie__net_free(ie__net *net); /* after the loop has closed all handles */
/* First thing in a loop's thread. */
void ie__net_thread_enter(const char *name);

/* A stream that is not connected yet. NULL when out of memory. */
ie__stream *ie__stream_new(ie__net *net, bool is_unix, const ie__stream_ops *ops, void *owner);
/* It will speak TLS: before accept or connect. IE_ENOMEM: it is as before. */
ie_status ie__stream_use_tls(ie__stream *stream, const ie__tls_context *context);
/* Who the peer is by its certificate; see ie__tls_identity(). IE_ENOTFOUND without TLS, too. */
ie_status ie__stream_identity(const ie__stream *stream, char out[IE__TLS_IDENTITY_BYTES + 1],
                              ie_error *err);
/* Did it end before TLS was agreed upon? */
bool ie__stream_tls_failed(const ie__stream *stream);
/* In gone(): the peer spoke SP in plain text where TLS was expected. True: the stream is plain
 * now, and can tell it so in words that it understands. */
bool ie__stream_tls_give_up(ie__stream *stream);
/* Take a connection from a listener; the stream reads from now on. 0 or a libuv error. */
int ie__stream_accept(ie__stream *stream, uv_stream_t *listener);
/* Connect; done() is called once unless the stream is closed before. */
typedef void (*ie__connect_fn)(void *user, int uv_error);
int ie__stream_connect(ie__stream *stream, const struct sockaddr *address, const char *path,
                       ie__connect_fn done, void *user);

/* IE_ENOMEM: the stream has failed, gone() will follow. One that has failed takes and forgets
 * everything. */
ie_status ie__stream_write(ie__stream *stream, const void *bytes, size_t size);
/* Room for size contiguous bytes (at most IE__NET_CHUNK_BYTES) to be filled in at once. */
unsigned char *ie__stream_reserve(ie__stream *stream, size_t size);
/* What was written last is a secret: its memory is overwritten once it is sent. */
void ie__stream_wipe(ie__stream *stream);
/* A shared body; it continues the frame whose beginning was written before. */
ie_status ie__stream_write_blob(ie__stream *stream, ie__blob *blob);
/* Forget what waits, up to the next frame's start; what is being written stays. For last words to
 * a peer that does not read. A blob written right after ie__stream_reserve() ends that frame. */
void ie__stream_drop_unsent(ie__stream *stream);
/* Write now what the socket takes; the turn's end does it anyway. */
void ie__stream_flush(ie__stream *stream);
/* See to it that before_flush and a flush happen at the end of this turn. */
void ie__stream_touch(ie__stream *stream);

size_t ie__stream_pending(const ie__stream *stream);
/* How many of the frames that wait count, also one that is half out. measure() tells the length of
 * the frame that begins here, from its first bytes, which lie together. */
typedef size_t (*ie__measure_fn)(const unsigned char *frame, bool *counts);
size_t ie__stream_unsent_frames(const ie__stream *stream, ie__measure_fn measure);
void   ie__stream_notify_below(ie__stream *stream, size_t bytes);
/* Stop reading, so that the peer feels it; and go on. */
void ie__stream_pause(ie__stream *stream);
void ie__stream_resume(ie__stream *stream);

/* TCP: cut a peer that acknowledges nothing for so long. No-op for unix. */
void ie__stream_user_timeout(ie__stream *stream, uint32_t ms);
/* TCP: after so many silent seconds ask whether the peer's machine is still there. No-op for unix.
 */
void ie__stream_keepalive(ie__stream *stream, uint32_t seconds);
/* Its descriptor, for counting; -1 when it has none. */
int ie__stream_fd(const ie__stream *stream);
/* The peer's address, "127.0.0.1:4711" or "unix". */
void ie__stream_peer(const ie__stream *stream, char *out, size_t size);

/* The owner is done with it. Output that waits is dropped. NULL is accepted. */
void ie__stream_close(ie__stream *stream);
/* As close, but what waits is written first, and the peer gets a moment to read it. */
void ie__stream_close_gently(ie__stream *stream);

#endif
