/* Streams on a libuv loop, their gathered output, and an end that lets last words arrive. */
#include "stream.h"

#include "stream_parts.h"

#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "core.h"
#include "secret.h"

#define SPARE_MAX 16 /* chunks kept for the next output */
#define IOV_MAX_  64 /* pieces per write */

/* ---- shared bodies and chunks --------------------------------------------------------------- */

ie__blob *
ie__blob_new(size_t size)
{
    ie__blob *blob = ie__alloc(sizeof *blob + size);

    if (blob == NULL)
        return NULL;
    blob->refs = 1;
    blob->size = size;
    return blob;
}

void
ie__blob_ref(ie__blob *blob)
{
    blob->refs++;
}

void
ie__blob_unref(ie__blob *blob)
{
    if (blob != NULL && --blob->refs == 0)
        ie__free(blob);
}

static ie__chunk *
chunk_new(ie__net *net)
{
    ie__chunk *chunk = net->spare;

    if (chunk != NULL) {
        net->spare = chunk->next;
        net->spare_count--;
    } else {
        chunk = ie__alloc(sizeof *chunk + IE__NET_CHUNK_BYTES);
        if (chunk == NULL)
            return NULL;
    }
    memset(chunk, 0, sizeof *chunk);
    chunk->bytes = (unsigned char *)(chunk + 1);
    net->memory_bytes += IE__NET_CHUNK_BYTES;
    return chunk;
}

static void
chunk_free(ie__net *net, ie__chunk *chunk)
{
    if (chunk->blob != NULL) {
        net->memory_bytes -= chunk->size;
        ie__blob_unref(chunk->blob);
        ie__free(chunk);
        return;
    }
    net->memory_bytes -= IE__NET_CHUNK_BYTES;
    if (chunk->is_secret)
        ie__secret_wipe(chunk->bytes, IE__NET_CHUNK_BYTES);
    if (net->spare_count < SPARE_MAX) {
        chunk->next = net->spare;
        net->spare = chunk;
        net->spare_count++;
        return;
    }
    ie__free(chunk);
}

static void
stream_drop_output(ie__stream *stream)
{
    while (stream->head != NULL) {
        ie__chunk *chunk = stream->head;

        stream->head = chunk->next;
        chunk_free(stream->net, chunk);
    }
    stream->tail = NULL;
    stream->net->pending_bytes -= stream->pending;
    stream->pending = 0;
}

/* ---- ending --------------------------------------------------------------------------------- */

static void
stream_on_closed(uv_handle_t *handle)
{
    ie__stream *stream = handle->data;

    stream_drop_output(stream); /* not before: a write request may have pointed at it */
    if (stream->tls != NULL)
        ie__stream_tls_free(stream);
    ie__free(stream);
}

static void
stream_unlink_dirty(ie__stream *stream)
{
    ie__stream **link = &stream->net->dirty;

    if (!stream->is_dirty)
        return;
    while (*link != stream)
        link = &(*link)->dirty_next;
    *link = stream->dirty_next;
    stream->is_dirty = false;
}

static void
stream_unlink_linger(ie__stream *stream)
{
    ie__stream **link = &stream->net->lingering;

    if (!stream->is_lingering)
        return;
    while (*link != stream)
        link = &(*link)->linger_next;
    *link = stream->linger_next;
    stream->is_lingering = false;
    if (--stream->net->linger_count == 0)
        (void)uv_timer_stop(&stream->net->linger_timer);
}

static void
stream_cut(ie__stream *stream)
{
    if (stream->is_closing)
        return;
    stream->is_closing = true;
    stream->owner = NULL;
    stream_unlink_dirty(stream);
    stream_unlink_linger(stream);
    uv_close(&stream->uv.handle, stream_on_closed);
}

void
ie__stream_close(ie__stream *stream)
{
    if (stream != NULL && !(stream->tls != NULL && ie__stream_tls_leave(stream)))
        stream_cut(stream);
}

static void
stream_on_shutdown(uv_shutdown_t *request, int status)
{
    ie__stream *stream = request->data;

    if (status != 0 && status != UV_ECANCELED)
        stream_cut(stream); /* nobody to talk to */
}

/* All is written: say so, and wait for the peer to hang up. Closing at once with input unread
 * would make the kernel send a reset that overtakes our last words. */
void
ie__stream_shut(ie__stream *stream)
{
    if (stream->is_shut || stream->is_closing)
        return;
    stream->is_shut = true;
    stream->shutdown.data = stream;
    if (uv_shutdown(&stream->shutdown, &stream->uv.stream, stream_on_shutdown) != 0)
        stream_cut(stream);
}

static void
net_on_linger(uv_timer_t *timer)
{
    ie__net       *net = timer->data;
    const uint64_t now = uv_now(net->loop);
    ie__stream    *next;

    for (ie__stream *stream = net->lingering; stream != NULL; stream = next) {
        next = stream->linger_next;
        if (now >= stream->linger_until)
            stream_cut(stream);
    }
}

bool
ie__stream_linger(ie__stream *stream)
{
    ie__net *net = stream->net;

    if (!stream->is_reading || net->linger_count >= IE__NET_LINGER_MAX)
        return false;
    stream->owner = NULL; /* what still comes in is thrown away */
    stream->is_lingering = true;
    stream->linger_until = uv_now(net->loop) + IE__NET_LINGER_MS;
    stream->linger_next = net->lingering;
    net->lingering = stream;
    if (net->linger_count++ == 0)
        (void)uv_timer_start(&net->linger_timer, net_on_linger, IE__NET_LINGER_MS / 4,
                             IE__NET_LINGER_MS / 4);
    return true;
}

void
ie__stream_close_gently(ie__stream *stream)
{
    if (stream == NULL || stream->is_closing)
        return;
    if (stream->failed != 0 || !ie__stream_linger(stream)) {
        ie__stream_flush(stream);
        stream_cut(stream);
        return;
    }
    ie__stream_flush(stream);
    if (stream->failed != 0)
        stream_cut(stream);
    else if (stream->head == NULL && stream->tls == NULL)
        ie__stream_shut(stream);
}

/* Remember the failure; the owner hears of it at the end of the turn, when it is not in the
 * middle of a walk over its own tables. */
void
ie__stream_fail(ie__stream *stream, int error)
{
    if (stream->failed != 0 || stream->is_closing)
        return;
    stream->failed = error;
    ie__stream_touch(stream);
}

static const char *
stream_reason(const ie__stream *stream)
{
    const char *reason = stream->tls != NULL ? ie__stream_tls_reason(stream) : NULL;

    if (reason != NULL)
        return reason;
    return stream->failed == UV_EOF ? "the peer closed the connection"
                                    : uv_strerror(stream->failed);
}

static void
stream_tell_gone(ie__stream *stream)
{
    if (stream->is_told || stream->is_closing)
        return;
    stream->is_told = true;
    if (stream->owner == NULL)
        stream_cut(stream);
    else
        stream->ops->gone(stream->owner, stream_reason(stream));
}

/* ---- output --------------------------------------------------------------------------------- */

void
ie__stream_touch(ie__stream *stream)
{
    if (stream->is_dirty || stream->is_closing)
        return;
    stream->is_dirty = true;
    stream->dirty_next = stream->net->dirty;
    stream->net->dirty = stream;
}

void
ie__stream_consume(ie__stream *stream, size_t bytes)
{
    stream->net->pending_bytes -= bytes;
    stream->pending -= bytes;
    while (bytes > 0) {
        ie__chunk   *chunk = stream->head;
        const size_t left = chunk->size - chunk->sent;

        if (bytes < left) {
            chunk->sent += bytes;
            break;
        }
        bytes -= left;
        stream->head = chunk->next;
        if (stream->head == NULL)
            stream->tail = NULL;
        chunk_free(stream->net, chunk);
    }
    if (stream->notify_below != 0 && stream->pending <= stream->notify_below) {
        stream->notify_below = 0;
        stream->is_drained = true; /* told at the end of the turn: the owner will write more */
        ie__stream_touch(stream);
    }
}

static size_t
stream_iov(const ie__stream *stream, uv_buf_t iov[IOV_MAX_], unsigned *count)
{
    size_t bytes = 0;

    *count = 0;
    for (ie__chunk *chunk = stream->head; chunk != NULL && *count < IOV_MAX_; chunk = chunk->next) {
        iov[*count].base = (char *)chunk->bytes + chunk->sent;
        iov[*count].len = chunk->size - chunk->sent;
        bytes += iov[*count].len;
        ++*count;
    }
    return bytes;
}

static void stream_send(ie__stream *stream);

static void
stream_on_written(uv_write_t *request, int status)
{
    ie__stream *stream = request->data;

    stream->is_writing = false;
    if (stream->is_closing)
        return;
    if (status != 0) {
        ie__stream_fail(stream, status);
        return;
    }
    stream->net->bytes_out += stream->writing_bytes;
    ie__stream_consume(stream, stream->writing_bytes);
    stream_send(stream);
}

/* Everything that leaves passes here. */
static void
stream_send(ie__stream *stream)
{
    uv_buf_t iov[IOV_MAX_];
    unsigned count;

    if (stream->tls != NULL) {
        ie__stream_tls_send(stream);
        return;
    }
    while (stream->head != NULL && stream->is_open && !stream->is_writing && !stream->is_closing &&
           stream->failed == 0) {
        const size_t bytes = stream_iov(stream, iov, &count);
        int          sent = uv_try_write(&stream->uv.stream, iov, count);
        int          error;

        if (sent == UV_EAGAIN)
            sent = 0;
        if (sent < 0) {
            ie__stream_fail(stream, sent);
            return;
        }
        stream->net->bytes_out += (size_t)sent;
        ie__stream_consume(stream, (size_t)sent);
        if ((size_t)sent == bytes)
            continue;
        stream->writing_bytes = stream_iov(stream, iov, &count);
        stream->write.data = stream;
        error = uv_write(&stream->write, &stream->uv.stream, iov, count, stream_on_written);
        if (error != 0)
            ie__stream_fail(stream, error);
        else
            stream->is_writing = true;
    }
    if (stream->head == NULL && stream->is_lingering)
        ie__stream_shut(stream);
}

unsigned char *
ie__stream_reserve(ie__stream *stream, size_t size)
{
    ie__chunk     *chunk;
    unsigned char *bytes;

    /* Do not let a long turn pile up: what fills some chunks may go while it is in the cache. */
    if (stream->pending >= 4 * (size_t)IE__NET_CHUNK_BYTES && !stream->is_writing)
        stream_send(stream);
    chunk = stream->tail;
    if (chunk == NULL || chunk->blob != NULL || IE__NET_CHUNK_BYTES - chunk->size < size) {
        if (size > IE__NET_CHUNK_BYTES)
            return NULL;
        chunk = chunk_new(stream->net);
        if (chunk == NULL)
            return NULL;
        if (stream->tail != NULL)
            stream->tail->next = chunk;
        else
            stream->head = chunk;
        stream->tail = chunk;
    }
    bytes = chunk->bytes + chunk->size;
    chunk->size += size;
    stream->pending += size;
    stream->net->pending_bytes += size;
    ie__stream_touch(stream);
    return bytes;
}

/* Something could not be queued: the peer would see a stream with a hole, so there will be none. */
static ie_status
stream_no_memory(ie__stream *stream)
{
    ie__stream_fail(stream, UV_ENOMEM);
    return IE_ENOMEM;
}

static ie_status
stream_add_blob(ie__stream *stream, ie__blob *blob, bool continues)
{
    ie__chunk *chunk = ie__calloc(1, sizeof *chunk);

    if (chunk == NULL)
        return stream_no_memory(stream);
    ie__blob_ref(blob);
    chunk->blob = blob;
    chunk->bytes = blob->bytes;
    chunk->size = blob->size;
    chunk->continues = continues;
    stream->net->memory_bytes += blob->size;
    if (stream->tail != NULL)
        stream->tail->next = chunk;
    else
        stream->head = chunk;
    stream->tail = chunk;
    stream->pending += blob->size;
    stream->net->pending_bytes += blob->size;
    ie__stream_touch(stream);
    return IE_OK;
}

ie_status
ie__stream_write(ie__stream *stream, const void *bytes, size_t size)
{
    const unsigned char *from = bytes;

    if (stream->failed != 0 || stream->is_closing)
        return IE_OK;
    if (size > IE__NET_CHUNK_BYTES) {
        ie__blob *blob = ie__blob_new(size);
        ie_status status;

        if (blob == NULL)
            return stream_no_memory(stream);
        memcpy(blob->bytes, bytes, size);
        status = stream_add_blob(stream, blob, false);
        ie__blob_unref(blob);
        return status;
    }
    if (size != 0) {
        unsigned char *to = ie__stream_reserve(stream, size);

        if (to == NULL)
            return stream_no_memory(stream);
        memcpy(to, from, size);
    }
    return IE_OK;
}

void
ie__stream_wipe(ie__stream *stream)
{
    if (stream->tail != NULL && stream->tail->blob == NULL)
        stream->tail->is_secret = true;
}

ie_status
ie__stream_write_blob(ie__stream *stream, ie__blob *blob)
{
    if (stream->failed != 0 || stream->is_closing || blob->size == 0)
        return IE_OK;
    return stream_add_blob(stream, blob, true);
}

void
ie__stream_drop_unsent(ie__stream *stream)
{
    size_t     busy = stream->is_writing ? stream->writing_bytes : 0;
    ie__chunk *last = stream->head;

    if (last == NULL || stream->is_closing)
        return;
    /* Frames do not straddle chunks, except by a body that continues one. So keep what is being
     * written, or begun, to its chunk's end, and the body that belongs to it. */
    while (last->next != NULL && (last->size - last->sent < busy || last->next->continues)) {
        const size_t left = last->size - last->sent;

        busy = busy > left ? busy - left : 0;
        last = last->next;
    }
    while (last->next != NULL) {
        ie__chunk *gone = last->next;

        last->next = gone->next;
        stream->pending -= gone->size;
        stream->net->pending_bytes -= gone->size;
        chunk_free(stream->net, gone);
    }
    stream->tail = last;
}

void
ie__stream_flush(ie__stream *stream)
{
    if (!stream->is_closing)
        stream_send(stream);
}

size_t
ie__stream_pending(const ie__stream *stream)
{
    return stream->tls == NULL ? stream->pending : stream->pending + ie__stream_tls_pending(stream);
}

/* Frames begin where their chunk begins, or behind another one in it; only a body goes on in the
 * next. So the walk starts at the head chunk's first byte, sent or not. */
size_t
ie__stream_unsent_frames(const ie__stream *stream, ie__measure_fn measure)
{
    size_t count = 0;

    for (const ie__chunk *chunk = stream->head; chunk != NULL; chunk = chunk->next) {
        size_t at = 0;

        if (chunk->continues) {
            if (chunk == stream->head)
                count++; /* its beginning is out; only data comes in such bodies */
            continue;
        }
        while (at < chunk->size) {
            bool         counts = false;
            const size_t length = measure(chunk->bytes + at, &counts);

            if (counts && length != 0 && at + length > chunk->sent)
                count++;
            if (length == 0 || length > chunk->size - at)
                break;
            at += length;
        }
    }
    return count;
}

void
ie__stream_notify_below(ie__stream *stream, size_t bytes)
{
    stream->notify_below = bytes;
}

/* ---- input ---------------------------------------------------------------------------------- */

static void
stream_on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    ie__stream *stream = handle->data;

    (void)suggested;
    *buf = uv_buf_init((char *)stream->net->read_buffer, IE__NET_READ_BYTES);
}

/* Everything that comes in passes here. */
static void
stream_received(ie__stream *stream, unsigned char *bytes, size_t size)
{
    stream->net->bytes_in += size;
    if (stream->tls != NULL)
        ie__stream_tls_received(stream, bytes, size);
    else if (stream->owner != NULL)
        stream->ops->data(stream->owner, bytes, size);
}

static void
stream_on_read(uv_stream_t *handle, ssize_t nread, const uv_buf_t *buf)
{
    ie__stream *stream = handle->data;

    if (nread > 0) {
        stream_received(stream, (unsigned char *)buf->base, (size_t)nread);
    } else if (nread < 0) {
        (void)uv_read_stop(handle);
        stream->is_reading = false;
        if (stream->is_lingering)
            stream_cut(stream);
        else
            ie__stream_fail(stream, (int)nread);
    }
}

void
ie__stream_pause(ie__stream *stream)
{
    if (stream->is_reading && !stream->is_closing) {
        (void)uv_read_stop(&stream->uv.stream);
        stream->is_reading = false;
    }
}

void
ie__stream_resume(ie__stream *stream)
{
    int error;

    if (stream->is_reading || stream->is_closing || stream->failed != 0 || !stream->is_open)
        return;
    error = uv_read_start(&stream->uv.stream, stream_on_alloc, stream_on_read);
    if (error != 0)
        ie__stream_fail(stream, error);
    else
        stream->is_reading = true;
}

/* ---- beginning ------------------------------------------------------------------------------ */

ie__stream *
ie__stream_new(ie__net *net, bool is_unix, const ie__stream_ops *ops, void *owner)
{
    ie__stream *stream = ie__calloc(1, sizeof *stream);
    int         error;

    if (stream == NULL)
        return NULL;
    error = is_unix ? uv_pipe_init(net->loop, &stream->uv.pipe, 0)
                    : uv_tcp_init(net->loop, &stream->uv.tcp);
    if (error != 0) {
        ie__free(stream);
        return NULL;
    }
    stream->uv.handle.data = stream;
    stream->net = net;
    stream->ops = ops;
    stream->owner = owner;
    stream->is_unix = is_unix;
    return stream;
}

static void
stream_opened(ie__stream *stream)
{
    stream->is_open = true;
    if (!stream->is_unix)
        (void)uv_tcp_nodelay(&stream->uv.tcp, 1); /* we gather by ourselves */
    ie__stream_resume(stream);
    if (stream->tls != NULL)
        ie__stream_tls_begin(stream);
}

int
ie__stream_accept(ie__stream *stream, uv_stream_t *listener)
{
    const int error = uv_accept(listener, &stream->uv.stream);

    if (error == 0)
        stream_opened(stream);
    return error;
}

static void
stream_on_connected(uv_connect_t *request, int status)
{
    ie__stream *stream = request->data;

    if (stream->is_closing || stream->owner == NULL)
        return;
    if (status == 0)
        stream_opened(stream);
    stream->connected(stream->connected_user, status);
}

int
ie__stream_connect(ie__stream *stream, const struct sockaddr *address, const char *path,
                   ie__connect_fn done, void *user)
{
    stream->connect.data = stream;
    stream->connected = done;
    stream->connected_user = user;
    if (!stream->is_unix)
        return uv_tcp_connect(&stream->connect, &stream->uv.tcp, address, stream_on_connected);
    uv_pipe_connect(&stream->connect, &stream->uv.pipe, path, stream_on_connected);
    return 0;
}

void
ie__stream_user_timeout(ie__stream *stream, uint32_t ms)
{
    const unsigned value = ms;
    uv_os_fd_t     fd;

    if (!stream->is_unix && uv_fileno(&stream->uv.handle, &fd) == 0)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &value, sizeof value);
}

int
ie__stream_fd(const ie__stream *stream)
{
    uv_os_fd_t fd;

    return uv_fileno(&stream->uv.handle, &fd) == 0 ? fd : -1;
}

void
ie__stream_keepalive(ie__stream *stream, uint32_t seconds)
{
    if (!stream->is_unix)
        (void)uv_tcp_keepalive(&stream->uv.tcp, 1, seconds);
}

void
ie__stream_peer(const ie__stream *stream, char *out, size_t size)
{
    struct sockaddr_storage address;
    int                     length = sizeof address;
    char                    host[64] = "?";

    if (stream->is_unix) {
        (void)snprintf(out, size, "unix");
        return;
    }
    if (uv_tcp_getpeername(&stream->uv.tcp, (struct sockaddr *)&address, &length) != 0) {
        (void)snprintf(out, size, "?");
        return;
    }
    if (address.ss_family == AF_INET6)
        (void)uv_ip6_name((struct sockaddr_in6 *)(void *)&address, host, sizeof host);
    else
        (void)uv_ip4_name((struct sockaddr_in *)(void *)&address, host, sizeof host);
    (void)snprintf(out, size, address.ss_family == AF_INET6 ? "[%s]:%d" : "%s:%d", host,
                   ie__sockaddr_port((struct sockaddr *)&address));
}

/* ---- the loop's side ------------------------------------------------------------------------ */

static void
stream_turn(ie__stream *stream)
{
    stream->net->dirty = stream->dirty_next;
    stream->is_dirty = false;
    if (stream->owner != NULL && stream->failed == 0 && stream->ops->before_flush != NULL)
        stream->ops->before_flush(stream->owner);
    if (stream->is_closing)
        return;
    stream_send(stream);
    if (stream->is_drained) {
        stream->is_drained = false;
        if (stream->owner != NULL && stream->ops->drained != NULL)
            stream->ops->drained(stream->owner);
    }
    if (stream->failed != 0)
        stream_tell_gone(stream);
}

static void
net_end_of_turn(ie__net *net)
{
    ie__stream *stream;

    do {
        if (net->dirty != NULL && net->before_output != NULL)
            net->before_output(net->user);
        while ((stream = net->dirty) != NULL)
            stream_turn(stream);
        if (net->end_of_turn != NULL)
            net->end_of_turn(net->user);
    } while (net->dirty != NULL); /* it said something: out with it before the loop sleeps */
}

static void
net_on_check(uv_check_t *check)
{
    net_end_of_turn(check->data);
}

static void
net_on_prepare(uv_prepare_t *prepare)
{
    net_end_of_turn(prepare->data);
}

ie_status
ie__net_init(ie__net *net, uv_loop_t *loop)
{
    memset(net, 0, sizeof *net);
    net->read_buffer = ie__alloc(IE__NET_READ_BYTES);
    if (net->read_buffer == NULL)
        return IE_ENOMEM;
    net->loop = loop;
    /* These cannot fail: they only link the handle into the loop. */
    (void)uv_check_init(loop, &net->check);
    (void)uv_prepare_init(loop, &net->prepare);
    (void)uv_timer_init(loop, &net->linger_timer);
    net->check.data = net->prepare.data = net->linger_timer.data = net;
    (void)uv_check_start(&net->check, net_on_check);
    (void)uv_prepare_start(&net->prepare, net_on_prepare);
    return IE_OK;
}

void
ie__net_fini(ie__net *net)
{
    while (net->lingering != NULL)
        stream_cut(net->lingering);
    uv_close((uv_handle_t *)&net->check, NULL);
    uv_close((uv_handle_t *)&net->prepare, NULL);
    uv_close((uv_handle_t *)&net->linger_timer, NULL);
}

void
ie__net_free(ie__net *net)
{
    while (net->spare != NULL) {
        ie__chunk *chunk = net->spare;

        net->spare = chunk->next;
        ie__free(chunk);
    }
    ie__tls_sink_free(net->tls_sink);
    ie__free(net->tls_buffer);
    ie__free(net->read_buffer);
    net->read_buffer = NULL;
}

void
ie__net_thread_enter(const char *name)
{
    sigset_t set;

    /* The host's handlers run on the host's threads, and a peer that hangs up kills nobody. */
    (void)sigfillset(&set);
    (void)sigdelset(&set, SIGSEGV);
    (void)sigdelset(&set, SIGBUS);
    (void)sigdelset(&set, SIGFPE);
    (void)sigdelset(&set, SIGILL);
    (void)sigdelset(&set, SIGABRT);
    (void)sigdelset(&set, SIGTRAP);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    (void)prctl(PR_SET_NAME, name, 0, 0, 0);
}
