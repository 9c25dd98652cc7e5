/* A client of eb/1: opened with its options, used from any thread, closed. */
#include <ie/eb1.h>

#include <errno.h>
#include <stdio.h>

#include "client_parts.h"
#include "eb1_client_parts.h"

#define OPTIONS_SIZE_MIN sizeof(ie_eb1_client_options)

uint32_t
ie_eb1_event_id(const char *name)
{
    unsigned char first[IE_EB1_EVENT_BYTES] = {0};

    for (size_t i = 0; i < sizeof first && name[i] != '\0'; i++)
        first[i] = (unsigned char)name[i];
    return ie__get32(first) | IE__EB1_TOP;
}

static void
eb1_lock(const ie_eb1_client *client)
{
    (void)pthread_mutex_lock((pthread_mutex_t *)&client->mutex);
}

static void
eb1_unlock(const ie_eb1_client *client)
{
    (void)pthread_mutex_unlock((pthread_mutex_t *)&client->mutex);
}

/* ---- options -------------------------------------------------------------------------------- */

void
ie_eb1_client_options_init(ie_eb1_client_options *options, size_t size)
{
    if (size < sizeof(size_t))
        return;
    memset(options, 0, size);
    options->size = size;
}

static void
default32(uint32_t *value, uint32_t fallback)
{
    if (*value == 0)
        *value = fallback;
}

static ie_status
options_import(ie_eb1_client_options *out, const ie_eb1_client_options *given, ie_error *err)
{
    ie_status status = IE_OK;

    ie_eb1_client_options_init(out, sizeof *out);
    if (given != NULL)
        status = ie__struct_import(out, sizeof *out, given, OPTIONS_SIZE_MIN);
    if (status != IE_OK)
        return ie_error_set(err, status, "eb/1 client options: %s",
                            status == IE_EINVAL ? "size is not set; use IE_EB1_CLIENT_OPTIONS_INIT"
                                                : "made for a newer library");
    if (out->reserved != 0)
        return ie_error_set(err, IE_ENOTSUP, "eb/1 client options: reserved must be 0");
    if (out->event != NULL && ie_eb1_event_id(out->event) == IE__EB1_BUS)
        return ie_error_set(err, IE_EINVAL, "event: \"ebus\" is the bus itself");
    if (out->url == NULL)
        out->url = IE_BUS_URL_DEFAULT;
    if (out->queue_bytes_max == 0)
        out->queue_bytes_max = 16u << 20;
    default32(&out->connect_timeout_ms, 5000);
    default32(&out->reconnect_delay_ms, 100);
    default32(&out->reconnect_delay_ms_max, 10000);
    default32(&out->heartbeat_ms, 30000);
    default32(&out->close_timeout_ms, 5000);
    return IE_OK;
}

/* The path goes into a line of HTTP as it is. */
static bool
path_is_plain(const char *path)
{
    for (; *path != '\0'; path++)
        if ((unsigned char)*path <= ' ' || (unsigned char)*path > '~')
            return false;
    return true;
}

static ie_status
web_address(ie_eb1_client *client, ie__url *url, ie_error *err)
{
    ie_status status = ie__url_parse(url, client->options.url, err);

    if (status != IE_OK)
        return status;
    if (url->user != NULL || url->password != NULL)
        return ie_error_set(err, IE_ENOTSUP, "eb/1 knows no user and password");
    if (url->host[0] == '\0' || strlen(url->host) >= sizeof client->address.host)
        return ie_error_set(err, IE_EINVAL, "the host is missing or too long: ws://HOST:PORT/PATH");
    if (!path_is_plain(url->path) || strlen(url->path) > 1024)
        return ie_error_set(err, IE_EINVAL, "the path of a ws URL is plain ASCII, 1024 bytes");
    (void)snprintf(client->address.host, sizeof client->address.host, "%s", url->host);
    client->address.port = url->port != 0 ? url->port : IE__WS_PORT_DEFAULT;
    client->kind = EB1_KIND_WS;
    client->path = ie__strdup(url->path);
    return client->path != NULL ? IE_OK : ie_error_set(err, IE_ENOMEM, "no memory for a client");
}

static ie_status
client_set_url(ie_eb1_client *client, ie_error *err)
{
    static const char *const NO_OPTIONS[] = {NULL};
    ie__url                 *url = ie__alloc(sizeof *url);
    char                     text[IE__ADDRESS_TEXT_SIZE];
    ie_status                status;

    if (url == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    if (strncmp(client->options.url, "ws:", 3) == 0) {
        status = web_address(client, url, err);
        (void)snprintf(text, sizeof text, "ws://%s:%d", client->address.host, client->address.port);
    } else {
        status = ie__address_parse(&client->address, url, client->options.url, err);
        client->kind = client->address.is_unix ? EB1_KIND_IPC : EB1_KIND_TCP;
        ie__address_text(text, &client->address);
    }
    if (status == IE_OK)
        status = ie__url_known_options(url, NO_OPTIONS, err);
    ie__free(url);
    if (status != IE_OK)
        return status;
    client->event = client->options.event != NULL ? ie_eb1_event_id(client->options.event) : 0;
    client->options.url = client->options.event = NULL; /* the caller's */
    client->url = ie__strdup(text);
    return client->url != NULL ? IE_OK : ie_error_set(err, IE_ENOMEM, "no memory for a client");
}

/* ---- opening, waiting, closing -------------------------------------------------------------- */

static void
client_free(ie_eb1_client *client)
{
    ie__net_free(&client->net);
    ie__framer_fini(&client->framer);
    ie__ws_fini(&client->ws);
    ie_buffer_fini(&client->submitted);
    ie_buffer_fini(&client->backlog);
    ie__free(client->http);
    ie__free(client->path);
    ie__free(client->url);
    (void)pthread_cond_destroy(&client->changed);
    (void)pthread_mutex_destroy(&client->mutex);
    ie__free(client);
}

static ie_status
client_start(ie_eb1_client *client, ie_error *err)
{
    if (uv_loop_init(&client->loop) != 0)
        return ie_error_set(err, IE_EIO, "cannot make an event loop: out of file descriptors?");
    (void)uv_timer_init(&client->loop, &client->timer);
    (void)uv_timer_init(&client->loop, &client->close_timer);
    client->timer.data = client->close_timer.data = client;
    if (uv_async_init(&client->loop, &client->async, ie__eb1_client_on_async) == 0) {
        client->async.data = client;
        if (ie__net_init(&client->net, &client->loop) == IE_OK) {
            client->net.end_of_turn = ie__eb1_client_end_of_turn;
            client->net.user = client;
            if (pthread_create(&client->thread, NULL, ie__eb1_client_main, client) == 0)
                return IE_OK;
            ie__net_fini(&client->net);
        }
        uv_close((uv_handle_t *)&client->async, NULL);
    }
    uv_close((uv_handle_t *)&client->timer, NULL);
    uv_close((uv_handle_t *)&client->close_timer, NULL);
    client->is_ended = true;
    (void)uv_run(&client->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&client->loop);
    return ie_error_set(err, IE_EIO, "cannot start the client's thread");
}

ie_status
ie_eb1_client_open(ie_eb1_client **out, const ie_eb1_client_options *options, ie_error *err)
{
    ie_eb1_client_options imported;
    ie_status             status = options_import(&imported, options, err);
    ie_eb1_client        *client;

    if (status != IE_OK)
        return status;
    client = ie__calloc(1, sizeof *client);
    if (client == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    client->options = imported;
    client->generation = ie__fork_generation();
    client->local = 1 + (uint32_t)ie__random_below(IE__EB1_TOP - 1);
    (void)pthread_mutex_init(&client->mutex, NULL);
    ie__client_cond_init(&client->changed);
    status = client_set_url(client, err);
    if (status == IE_OK)
        status = client_start(client, err);
    if (status != IE_OK) {
        client_free(client);
        return status;
    }
    *out = client;
    return IE_OK;
}

static bool
is_own_thread(const ie_eb1_client *client)
{
    return pthread_equal(pthread_self(), client->thread) != 0;
}

ie_status
ie_eb1_client_wait_connected(ie_eb1_client *client, uint32_t timeout_ms, ie_error *err)
{
    const struct timespec deadline = ie__client_deadline(timeout_ms);
    ie_status             status = IE_OK;

    if (is_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    eb1_lock(client);
    while (client->state != IE_BUS_CONNECTED && !client->is_closing && status == IE_OK)
        if (pthread_cond_timedwait(&client->changed, &client->mutex, &deadline) == ETIMEDOUT)
            status = IE_ETIMEDOUT;
    if (client->state == IE_BUS_CONNECTED)
        status = IE_OK;
    else if (client->is_closing)
        status = ie_error_set(err, IE_ECLOSED, "the client was closed");
    else if (client->is_offline)
        status = ie_error_set(err, client->state == IE_BUS_REFUSED ? IE_EREFUSED : IE_EUNREACHABLE,
                              "%s: %s", client->url, client->reason);
    else
        status = ie_error_set(err, IE_ETIMEDOUT, "%s: no answer yet", client->url);
    eb1_unlock(client);
    return status;
}

uint32_t
ie_eb1_client_id(const ie_eb1_client *client)
{
    uint32_t id;

    eb1_lock(client);
    id = client->id;
    eb1_unlock(client);
    return id;
}

void
ie_eb1_client_close(ie_eb1_client *client)
{
    if (client == NULL)
        return;
    if (is_own_thread(client)) {
        ie__log(&client->options.logger, IE_LOG_ERROR, "eb1",
                "ie_eb1_client_close() on the client's own thread does nothing");
        return;
    }
    if (client->generation != ie__fork_generation())
        return; /* a child's copy: the thread and the connection are the parent's */
    eb1_lock(client);
    client->is_closing = true;
    (void)pthread_cond_broadcast(&client->changed);
    eb1_unlock(client);
    (void)uv_async_send(&client->async);
    (void)pthread_join(client->thread, NULL);
    (void)uv_loop_close(&client->loop);
    client_free(client);
}

/* ---- sending -------------------------------------------------------------------------------- */

/* Put a record into the queue. The source is filled in when it is written: ids change. */
static ie_status
client_submit(ie_eb1_client *client, const unsigned char *header, size_t header_bytes,
              const void *data, size_t bytes, ie_error *err)
{
    const size_t   size = header_bytes + bytes;
    unsigned char *at;
    ie_status      status = IE_OK;
    bool           has_to_wake = false;

    if (bytes > IE_EB1_MESSAGE_BYTES_MAX - header_bytes)
        return ie_error_set(err, IE_ETOOBIG, "a message of eb/1 has at most %d bytes of data",
                            IE_EB1_MESSAGE_BYTES_MAX - (int)header_bytes);
    if (client->generation != ie__fork_generation())
        return ie_error_set(err, IE_EFORKED, "the client is the parent process's");
    eb1_lock(client);
    if (client->is_closing) {
        status = ie_error_set(err, IE_ECLOSED, "the client was closed");
    } else if (client->queued_bytes + size > client->options.queue_bytes_max) {
        status = ie_error_set(err, IE_ELIMIT, "queue_bytes_max is reached; wait and send again");
    } else {
        status = ie__buffer_reserve(&client->submitted, EB1_RECORD_HEAD + size);
        if (status != IE_OK)
            (void)ie_error_set(err, status, "no memory for a message");
    }
    if (status == IE_OK) {
        at = (unsigned char *)client->submitted.data + client->submitted.size;
        ie__put32(at, (uint32_t)size);
        memcpy(at + EB1_RECORD_HEAD, header, header_bytes);
        if (bytes != 0)
            memcpy(at + EB1_RECORD_HEAD + header_bytes, data, bytes);
        client->submitted.size += EB1_RECORD_HEAD + size;
        client->queued_bytes += size;
        has_to_wake = !client->is_signalled;
        client->is_signalled = true;
    }
    eb1_unlock(client);
    if (has_to_wake)
        (void)uv_async_send(&client->async);
    return status;
}

static ie_status
client_send_plain(ie_eb1_client *client, uint32_t destination, const void *data, size_t bytes,
                  ie_error *err)
{
    unsigned char header[IE__EB1_HEADER];

    ie__eb1_header(header, 0, 0, destination);
    return client_submit(client, header, sizeof header, data, bytes, err);
}

ie_status
ie_eb1_client_send(ie_eb1_client *client, uint32_t destination, const void *data, size_t bytes,
                   ie_error *err)
{
    if (destination == 0 || (destination & IE__EB1_TOP) != 0)
        return ie_error_set(err, IE_EINVAL, "%u is no service id", destination);
    return client_send_plain(client, destination, data, bytes, err);
}

ie_status
ie_eb1_client_send_event(ie_eb1_client *client, const char *event, ie_eb1_mode mode, uint64_t key,
                         const void *data, size_t bytes, ie_error *err)
{
    unsigned char header[IE__EB1_HEADER_EVENT];

    if (event == NULL || ie_eb1_event_id(event) == IE__EB1_BUS)
        return ie_error_set(err, IE_EINVAL, "event: missing, or \"ebus\", which is the bus itself");
    if ((unsigned)mode > IE_EB1_ROUND_ROBIN)
        return ie_error_set(err, IE_EINVAL, "mode: %d is none", (int)mode);
    ie__eb1_header(header, IE__EB1_EVENT | (unsigned)mode, 0, ie_eb1_event_id(event));
    header[2] = 0x10 | IE__EB1_HEADER_EVENT / 4;
    ie__put64(header + IE__EB1_HEADER, key);
    return client_submit(client, header, sizeof header, data, bytes, err);
}

ie_status
ie_eb1_client_broadcast(ie_eb1_client *client, const void *data, size_t bytes, ie_error *err)
{
    return client_send_plain(client, 0, data, bytes, err);
}
