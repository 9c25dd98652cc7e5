/* The life of a client: opened with its options, watched, closed. */
#include "client_parts.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#define OPTIONS_SIZE_MIN sizeof(ie_bus_client_options)

/* ---- options ---- */

void
ie_bus_client_options_init(ie_bus_client_options *options, size_t size)
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
options_import(ie_bus_client_options *out, const ie_bus_client_options *given, ie_error *err)
{
    ie_status status = IE_OK;

    ie_bus_client_options_init(out, sizeof *out);
    if (given != NULL)
        status = ie__struct_import(out, sizeof *out, given, OPTIONS_SIZE_MIN);
    if (status != IE_OK)
        return ie_error_set(err, status, "client options: %s",
                            status == IE_EINVAL ? "size is not set; use IE_BUS_CLIENT_OPTIONS_INIT"
                                                : "made for a newer library");
    if ((out->flags & ~(IE_BUS_CLIENT_FAIL_OFFLINE | IE_BUS_CLIENT_REPUBLISH)) != 0)
        return ie_error_set(err, IE_ENOTSUP, "client options: unknown flags %x", out->flags);
    if (out->flags == (IE_BUS_CLIENT_FAIL_OFFLINE | IE_BUS_CLIENT_REPUBLISH))
        return ie_error_set(err, IE_EINVAL,
                            "client options: FAIL_OFFLINE and REPUBLISH exclude each other");
    if (out->dispatch > IE_BUS_DISPATCH_CALLER)
        return ie_error_set(err, IE_ENOTSUP, "client options: unknown dispatch %d",
                            (int)out->dispatch);
    if (out->url == NULL)
        out->url = IE_BUS_URL_DEFAULT;
    if (out->source == NULL)
        out->source = "ie";
    if (out->publish_queue_bytes_max == 0)
        out->publish_queue_bytes_max = 16u << 20;
    default32(&out->publish_queue_max, 16384);
    default32(&out->connect_timeout_ms, 5000);
    default32(&out->reconnect_delay_ms, 100);
    default32(&out->reconnect_delay_ms_max, 10000);
    default32(&out->ping_interval_ms, 20000);
    default32(&out->ping_missed_max, 2);
    default32(&out->close_timeout_ms, 5000);
    default32(&out->credit, 1024);
    if (out->publish_queue_max > 1u << 22)
        return ie_error_set(err, IE_EINVAL, "publish_queue_max: at most %u", 1u << 22);
    if (out->name != NULL && strlen(out->name) > IE_BUS_NAME_BYTES_MAX)
        return ie_error_set(err, IE_EINVAL, "name: at most %d bytes", IE_BUS_NAME_BYTES_MAX);
    return IE_OK;
}

/* ---- waiting ---- */

struct timespec
ie__client_deadline(uint32_t ms)
{
    struct timespec at;

    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += (long)(ms % 1000) * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

void
ie__client_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &attr);
    (void)pthread_condattr_destroy(&attr);
}

/* ---- public ---- */

static void
client_free(ie_bus_client *client)
{
    ie__client_dispatch_fini(client);
    ie__client_subs_free(client);
    ie__client_replies_fini(client);
    ie__client_queries_free(client);
    ie__net_free(&client->net);
    ie__framer_fini(&client->framer);
    ie_buffer_fini(&client->submitted.frames);
    ie__free(client->submitted.entries);
    ie_buffer_fini(&client->spare.frames);
    ie__free(client->spare.entries);
    ie_buffer_fini(&client->backlog);
    ie__free(client->flight);
    ie__client_login_free(client);
    ie__free(client->url);
    ie__free(client->name);
    ie__free(client->source);
    (void)pthread_cond_destroy(&client->changed);
    (void)pthread_mutex_destroy(&client->mutex);
    ie__free(client);
}

static ie_status
client_set_names(ie_bus_client *client, ie_error *err)
{
    ie__url                 *url = ie__alloc(sizeof *url);
    char                     name[IE_BUS_NAME_BYTES_MAX + 1];
    char                     address[IE__ADDRESS_TEXT_SIZE];
    ie_status                status;

    if (url == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    status = ie__address_parse(&client->address, url, client->options.url, err);
    if (status == IE_OK)
        status = ie__url_known_options(url, ie__client_url_options, err);
    if (status == IE_OK)
        status = ie__client_login_init(client, url, err);
    ie__free(url);
    if (status != IE_OK)
        return status;
    ie__address_text(address, &client->address);
    (void)snprintf(name, sizeof name, "%s/%ld", program_invocation_short_name, (long)getpid());
    client->url = ie__strdup(address);
    client->name = ie__strdup(client->options.name != NULL ? client->options.name : name);
    client->source = ie__strdup(client->options.source);
    if (client->url == NULL || client->name == NULL || client->source == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    client->options.url = client->options.name = client->options.source = NULL; /* the caller's */
    return IE_OK;
}

static ie_status
client_start(ie_bus_client *client, ie_error *err)
{
    if (uv_loop_init(&client->loop) != 0)
        return ie_error_set(err, IE_EIO, "cannot make an event loop: out of file descriptors?");
    (void)uv_timer_init(&client->loop, &client->timer);
    (void)uv_timer_init(&client->loop, &client->close_timer);
    (void)ie__client_queries_init(client);
    client->timer.data = client->close_timer.data = client->async.data = client;
    if (uv_async_init(&client->loop, &client->async, ie__client_on_async) == 0) {
        client->async.data = client;
        if (ie__net_init(&client->net, &client->loop) == IE_OK) {
            if (pthread_create(&client->thread, NULL, ie__client_main, client) == 0)
                return IE_OK;
            ie__net_fini(&client->net);
        }
        uv_close((uv_handle_t *)&client->async, NULL);
    }
    uv_close((uv_handle_t *)&client->timer, NULL);
    uv_close((uv_handle_t *)&client->close_timer, NULL);
    uv_close((uv_handle_t *)&client->queries.timer, NULL);
    (void)uv_run(&client->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&client->loop);
    return ie_error_set(err, IE_EIO, "cannot start the client's thread");
}

/* It is held for a fraction of a microsecond: worth a short wait before sleeping. */
static void
client_mutex_init(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;

    (void)pthread_mutexattr_init(&attributes);
    (void)pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    (void)pthread_mutex_init(mutex, &attributes);
    (void)pthread_mutexattr_destroy(&attributes);
}

ie_status
ie_bus_client_open(ie_bus_client **out, const ie_bus_client_options *options, ie_error *err)
{
    ie_bus_client_options imported;
    ie_status             status = options_import(&imported, options, err);
    ie_bus_client        *client;

    if (status != IE_OK)
        return status;
    client = ie__calloc(1, sizeof *client);
    if (client == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    client->options = imported;
    client->data_bytes_max = IE_DATA_BYTES_MAX;
    client->next_request = client->flight_first = 1;
    atomic_store(&client->connection, 1);
    client->generation = ie__fork_generation();
    client_mutex_init(&client->mutex);
    ie__client_cond_init(&client->changed);
    status = ie__client_dispatch_init(client, err);
    if (status == IE_OK)
        status = client_set_names(client, err);
    if (status == IE_OK)
        status = client_start(client, err);
    if (status != IE_OK) {
        ie__client_dispatch_stop(client);
        client_free(client);
        return status;
    }
    *out = client;
    return IE_OK;
}

ie_bus_state
ie_bus_client_state(ie_bus_client *client)
{
    ie_bus_state state;

    client_lock(client);
    state = client->state;
    client_unlock(client);
    return state;
}

ie_status
ie_bus_client_wait_connected(ie_bus_client *client, uint32_t timeout_ms, ie_error *err)
{
    const struct timespec deadline = ie__client_deadline(timeout_ms);
    ie_status             status = IE_OK;

    if (on_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    client_lock(client);
    while (client->state != IE_BUS_CONNECTED && !client->is_closing && status == IE_OK)
        if (pthread_cond_timedwait(&client->changed, &client->mutex, &deadline) == ETIMEDOUT)
            status = IE_ETIMEDOUT;
    if (client->state == IE_BUS_CONNECTED)
        status = IE_OK;
    else if (client->is_closing)
        status = ie_error_set(err, IE_ECLOSED, "the client was closed");
    else if (client->state == IE_BUS_REFUSED)
        status = ie_error_set(err, IE_EREFUSED, "%s: %s", client->url, client->reason);
    else if (client->is_offline)
        status = ie_error_set(err, IE_EUNREACHABLE, "%s: %s", client->url, client->reason);
    else
        status = ie_error_set(err, IE_ETIMEDOUT, "%s: no answer yet", client->url);
    client_unlock(client);
    return status;
}

void
ie_bus_client_close(ie_bus_client *client)
{
    if (client == NULL)
        return;
    if (client->generation != ie__fork_generation())
        return; /* a child's copy: the thread and the connection are the parent's */
    if (on_own_thread(client) || ie__client_dispatch_is_handler(client)) {
        ie__log(&client->options.logger, IE_LOG_ERROR, "client",
                "ie_bus_client_close() in a handler does nothing");
        return;
    }
    client_lock(client);
    client->is_closing = true;
    (void)client_signal(client);
    (void)pthread_cond_broadcast(&client->changed);
    client_unlock(client);
    (void)uv_async_send(&client->async);
    ie__client_dispatch_stop(client);
    client_lock(client);
    client->may_leave = true; /* and what the last handlers answered goes out before */
    (void)client_signal(client);
    client_unlock(client);
    (void)uv_async_send(&client->async);
    (void)pthread_join(client->thread, NULL);
    (void)uv_loop_close(&client->loop);
    client_free(client);
}
