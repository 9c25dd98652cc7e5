/* TLS below a stream: what was gathered is encrypted when it can be written, no earlier. */
#include "stream_parts.h"

#include <stdio.h>
#include <string.h>

#include "core.h"
#include "secret.h"

#define ENCRYPTED_MAX (64 * 1024) /* waits for the socket; the rest waits unencrypted */
#define PLAIN_BYTES   (IE__NET_READ_BYTES + IE__TLS_RECORD_BYTES)
#define HANDSHAKE     0x16 /* the first byte of a TLS client */

/* Encrypted bytes that the socket did not take. */
typedef struct piece {
    struct piece *next;
    size_t        size;
    size_t        sent;
    unsigned char bytes[];
} piece;

struct ie__stream_tls {
    ie__tls *tls;
    piece   *head;
    piece   *tail;
    size_t   pending;
    bool     has_met_peer; /* something came */
    bool     met_plain;    /* it was the greeting of SP */
    bool     is_failed;    /* TLS is why the stream failed */
    bool     said_close;
    char     why[200];
};

ie_status
ie__stream_use_tls(ie__stream *stream, const ie__tls_context *context)
{
    ie__net        *net = stream->net;
    ie__stream_tls *self;

    if (net->tls_sink == NULL)
        net->tls_sink = ie__tls_sink_new();
    if (net->tls_buffer == NULL)
        net->tls_buffer = ie__alloc(PLAIN_BYTES + IE__TLS_RECORD_BYTES);
    self = ie__calloc(1, sizeof *self);
    if (self != NULL && net->tls_sink != NULL && net->tls_buffer != NULL)
        self->tls = ie__tls_new(context, net->tls_sink);
    if (self == NULL || self->tls == NULL) {
        ie__free(self);
        return IE_ENOMEM;
    }
    stream->tls = self;
    return IE_OK;
}

/* ---- encrypted bytes ------------------------------------------------------------------------ */

static void
piece_drop(ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;
    piece          *gone = self->head;

    self->head = gone->next;
    if (self->head == NULL)
        self->tail = NULL;
    stream->net->memory_bytes -= gone->size;
    ie__free(gone);
}

void
ie__stream_tls_free(ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;

    stream->net->pending_bytes -= self->pending;
    while (self->head != NULL)
        piece_drop(stream);
    ie__tls_free(self->tls);
    ie__free(self);
    stream->tls = NULL;
}

size_t
ie__stream_tls_pending(const ie__stream *stream)
{
    return stream->tls->pending;
}

static bool
piece_add(ie__stream *stream, const unsigned char *bytes, size_t size)
{
    ie__stream_tls *self = stream->tls;
    piece          *added = ie__alloc(sizeof *added + size);

    if (added == NULL)
        return false;
    added->next = NULL;
    added->size = size;
    added->sent = 0;
    memcpy(added->bytes, bytes, size);
    if (self->tail != NULL)
        self->tail->next = added;
    else
        self->head = added;
    self->tail = added;
    self->pending += size;
    stream->net->pending_bytes += size;
    stream->net->memory_bytes += size;
    return true;
}

static void
pieces_sent(ie__stream *stream, size_t bytes)
{
    ie__stream_tls *self = stream->tls;

    stream->net->bytes_out += bytes;
    stream->net->pending_bytes -= bytes;
    self->pending -= bytes;
    self->head->sent += bytes;
    if (self->head->sent == self->head->size)
        piece_drop(stream);
}

static void
on_written(uv_write_t *request, int status)
{
    ie__stream *stream = request->data;

    stream->is_writing = false;
    if (stream->is_closing)
        return;
    if (status != 0) {
        ie__stream_fail(stream, status);
        return;
    }
    pieces_sent(stream, stream->tls->head->size - stream->tls->head->sent);
    ie__stream_tls_send(stream);
}

/* Write what waits encrypted. False: it goes on later, or never. */
static bool
pieces_write(ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;

    while (self->head != NULL && !stream->is_writing && !stream->is_closing) {
        uv_buf_t buf = uv_buf_init((char *)self->head->bytes + self->head->sent,
                                   (unsigned)(self->head->size - self->head->sent));
        int      sent = uv_try_write(&stream->uv.stream, &buf, 1);
        int      error;

        if (sent < 0 && sent != UV_EAGAIN) {
            ie__stream_fail(stream, sent);
            return false;
        }
        if (sent > 0) {
            pieces_sent(stream, (size_t)sent);
            continue;
        }
        stream->write.data = stream;
        stream->writing_bytes = 0; /* of the plain queue */
        error = uv_write(&stream->write, &stream->uv.stream, &buf, 1, on_written);
        if (error != 0)
            ie__stream_fail(stream, error);
        else
            stream->is_writing = true;
    }
    return self->head == NULL && !stream->is_closing;
}

/* What OpenSSL has just written goes to the socket, the rest waits. */
static void
sink_flush(ie__stream *stream)
{
    ie__stream_tls      *self = stream->tls;
    size_t               size = 0;
    const unsigned char *bytes = ie__tls_sink_bytes(stream->net->tls_sink, &size);
    int                  sent = 0;

    if (size == 0)
        return;
    if (self->head == NULL && !stream->is_writing && stream->is_open && !stream->is_closing) {
        uv_buf_t buf = uv_buf_init((char *)(uintptr_t)bytes, (unsigned)size);

        sent = uv_try_write(&stream->uv.stream, &buf, 1);
        if (sent == UV_EAGAIN)
            sent = 0;
    }
    if (sent < 0) {
        ie__stream_fail(stream, sent);
    } else {
        stream->net->bytes_out += (size_t)sent;
        if ((size_t)sent < size && !piece_add(stream, bytes + sent, size - (size_t)sent))
            ie__stream_fail(stream, UV_ENOMEM);
    }
    ie__tls_sink_clear(stream->net->tls_sink);
}

static void
tls_failed(ie__stream *stream)
{
    stream->tls->is_failed = true;
    sink_flush(stream); /* an alert tells the peer why */
    ie__stream_fail(stream, UV_EPROTO);
}

/* ---- output --------------------------------------------------------------------------------- */

/* Apart from what was decrypted: that is being read while answers to it are written. */
static unsigned char *
record_buffer(const ie__stream *stream)
{
    return stream->net->tls_buffer + PLAIN_BYTES;
}

/* Up to a record's worth from the head of the queue, in one piece. */
static const unsigned char *
gather(ie__stream *stream, size_t *size)
{
    const ie__chunk *chunk = stream->head;
    unsigned char   *buffer = record_buffer(stream);

    *size = chunk->size - chunk->sent;
    if (*size >= IE__TLS_RECORD_BYTES || chunk->next == NULL) {
        *size = *size < IE__TLS_RECORD_BYTES ? *size : IE__TLS_RECORD_BYTES;
        return chunk->bytes + chunk->sent;
    }
    *size = 0;
    for (; chunk != NULL && *size < IE__TLS_RECORD_BYTES; chunk = chunk->next) {
        const size_t room = IE__TLS_RECORD_BYTES - *size;
        const size_t left = chunk->size - chunk->sent;
        const size_t taken = left < room ? left : room;

        memcpy(buffer + *size, chunk->bytes + chunk->sent, taken);
        *size += taken;
    }
    return buffer;
}

/* Encrypt what waits, so much that one write is worth it. */
static bool
encrypt_some(ie__stream *stream)
{
    size_t encrypted = 0;

    while (stream->head != NULL && encrypted < ENCRYPTED_MAX) {
        size_t               size;
        const unsigned char *bytes = gather(stream, &size);
        const bool           is_copy = bytes == record_buffer(stream);
        const bool           has_secret = stream->head->is_secret;

        if (ie__tls_write(stream->tls->tls, bytes, size) != IE__TLS_OK) {
            tls_failed(stream);
            return false;
        }
        if (is_copy && has_secret)
            ie__secret_wipe(record_buffer(stream), size);
        encrypted += size;
        ie__stream_consume(stream, size);
    }
    return encrypted != 0;
}

void
ie__stream_tls_send(ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;

    while (stream->is_open && !stream->is_closing && stream->failed == 0 && pieces_write(stream) &&
           ie__tls_is_open(self->tls) && encrypt_some(stream))
        sink_flush(stream);
    if (!stream->is_lingering || stream->is_closing || stream->head != NULL)
        return;
    if (!self->said_close && !self->is_failed) {
        self->said_close = true;
        ie__tls_close(self->tls);
        sink_flush(stream);
    }
    if (self->head == NULL)
        ie__stream_shut(stream);
}

/* ---- input ---------------------------------------------------------------------------------- */

/* A client of TLS begins with a certain byte; who begins otherwise is told what to do, if it is one
 * of ours. */
static bool
met_a_client(ie__stream *stream, const unsigned char *bytes, size_t size)
{
    ie__stream_tls *self = stream->tls;

    if (self->has_met_peer || !ie__tls_is_server(self->tls))
        return true;
    self->has_met_peer = true;
    if (bytes[0] == HANDSHAKE)
        return true;
    self->met_plain = size >= 3 && memcmp(bytes, "\0SP", 3) == 0;
    (void)snprintf(self->why, sizeof self->why,
                   self->met_plain ? "plain text where TLS is spoken: its address has to begin "
                                     "with sockets://"
                                   : "no TLS where TLS is spoken");
    self->is_failed = true;
    ie__stream_fail(stream, UV_EPROTO);
    return false;
}

/* Everything that can be decrypted, gathered so that the owner sees it in few pieces. */
static void
decrypt_all(ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;
    unsigned char  *buffer = stream->net->tls_buffer;
    size_t          filled = 0;
    ie__tls_result  result;

    do {
        size_t size = 0;

        result = ie__tls_read(self->tls, buffer + filled, PLAIN_BYTES - filled, &size);
        filled += size;
        if (filled == 0 || (result == IE__TLS_OK && PLAIN_BYTES - filled >= IE__TLS_RECORD_BYTES))
            continue;
        sink_flush(stream);
        if (stream->owner != NULL)
            stream->ops->data(stream->owner, buffer, filled);
        filled = 0;
    } while (result == IE__TLS_OK && !stream->is_closing);
    if (stream->is_closing)
        return;
    if (result == IE__TLS_FAILED)
        tls_failed(stream);
    else if (result == IE__TLS_CLOSED)
        ie__stream_fail(stream, UV_EOF);
    sink_flush(stream);
}

void
ie__stream_tls_received(ie__stream *stream, const unsigned char *bytes, size_t size)
{
    ie__stream_tls *self = stream->tls;

    if (stream->failed != 0 || self->is_failed || !met_a_client(stream, bytes, size))
        return;
    if (!ie__tls_feed(self->tls, bytes, size)) {
        ie__stream_fail(stream, UV_ENOMEM);
        return;
    }
    if (!ie__tls_is_open(self->tls)) {
        const ie__tls_result result = ie__tls_handshake(self->tls);

        if (result == IE__TLS_FAILED) {
            tls_failed(stream);
            return;
        }
        sink_flush(stream);
        if (result != IE__TLS_OK)
            return;
        ie__stream_touch(stream); /* what was written meanwhile goes out */
    }
    decrypt_all(stream);
}

void
ie__stream_tls_begin(ie__stream *stream)
{
    if (ie__tls_is_server(stream->tls->tls))
        return;
    if (ie__tls_handshake(stream->tls->tls) == IE__TLS_FAILED)
        tls_failed(stream);
    else
        sink_flush(stream);
}

/* ---- ends ----------------------------------------------------------------------------------- */

const char *
ie__stream_tls_reason(const ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;

    if (self->why[0] != '\0')
        return self->why;
    if (self->is_failed)
        return ie__tls_why(self->tls);
    if (!ie__tls_is_open(self->tls)) {
        (void)snprintf(self->why, sizeof self->why,
                       ie__tls_is_server(self->tls)
                           ? "TLS: the client left during the handshake (%s)"
                           : "TLS: the connection ended during the handshake (%s); does the bus "
                             "speak TLS there, or is it a socket:// address?",
                       stream->failed == UV_EOF ? "closed" : uv_strerror(stream->failed));
        return self->why;
    }
    if (stream->failed == UV_EOF && !ie__tls_was_closed(self->tls))
        return "the peer cut the connection without ending TLS";
    return NULL;
}

bool
ie__stream_tls_failed(const ie__stream *stream)
{
    return stream->tls != NULL && (stream->tls->is_failed || !ie__tls_is_open(stream->tls->tls));
}

bool
ie__stream_tls_give_up(ie__stream *stream)
{
    if (stream->tls == NULL || !stream->tls->met_plain || stream->is_writing)
        return false;
    ie__stream_tls_free(stream);
    stream->failed = 0;
    stream->is_told = false;
    return true;
}

bool
ie__stream_tls_leave(ie__stream *stream)
{
    ie__stream_tls *self = stream->tls;

    if (stream->is_closing || stream->is_lingering)
        return false;
    if (self->is_failed) { /* closing at once could overtake the alert */
        if (stream->failed != UV_EPROTO || !ie__stream_linger(stream))
            return false;
        if (self->head == NULL)
            ie__stream_shut(stream);
        return true;
    }
    if (stream->failed == 0 && self->head == NULL && stream->head == NULL && !stream->is_writing) {
        ie__tls_close(self->tls);
        sink_flush(stream); /* as much as the socket takes */
    }
    return false;
}

ie_status
ie__stream_identity(const ie__stream *stream, char out[IE__TLS_IDENTITY_BYTES + 1], ie_error *err)
{
    if (stream->tls == NULL)
        return ie_error_set(err, IE_ENOTFOUND, "no certificate");
    return ie__tls_identity(stream->tls->tls, out, err);
}
