/* The server's life: options, addresses, thread, clocks, drain. */
#include <ie/bus.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "auth.h"
#include "durable.h"
#include "eb1.h"
#include "query.h"
#include "reload.h"
#include "settings.h"

#define BACKLOG       1024
#define GROUP_BUCKETS 4096 /* a power of two */

/* ---- options ------------------------------------------------------------------------------- */

static ie_status
options_import(ie_bus_server_options *out, const ie_bus_server_options *given, ie_error *err)
{
    return ie__settings_import(out, given, err);
}

/* ---- addresses ------------------------------------------------------------------------------ */

/* A socket file that nobody answers on is left from a crash. One that is answered is in use, and
 * anything but a socket is not ours to remove. */
static ie_status
unix_make_way(const char *path, ie_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat        st;
    int                fd;
    int                error;

    if (lstat(path, &st) != 0)
        return IE_OK;
    if (!S_ISSOCK(st.st_mode))
        return ie_error_set(err, IE_EEXIST, "%s exists and is not a socket", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return ie_error_set(err, IE_EIO, "%s: %s", path, strerror(errno));
    memcpy(address.sun_path, path, strlen(path) + 1);
    error = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
    (void)close(fd);
    if (error == ECONNREFUSED)
        return unlink(path) == 0 ? IE_OK
                                 : ie_error_set(err, IE_EIO, "%s: %s", path, strerror(errno));
    return ie_error_set(err, error == 0 || error == EAGAIN ? IE_EEXIST : IE_EIO, "%s: %s", path,
                        error == 0 || error == EAGAIN ? "another bus listens there"
                                                      : strerror(error));
}

static ie_status
listen_fail(ie_error *err, const char *url, int error)
{
    return ie_error_set(err, error == UV_EADDRINUSE ? IE_EEXIST : IE_EIO, "listen on %s: %s", url,
                        uv_strerror(error));
}

/* What an address says, and whether a bus with this policy may listen there. */
static ie_status
listen_parse(ie__listener *listener, struct sockaddr_storage *sockaddr, const char *text,
             const ie__policy *policy, ie_error *err)
{
    static const char *const NO_OPTIONS[] = {NULL};
    ie__address             *address = &listener->address;
    ie__url                 *url = ie__alloc(sizeof *url);
    const size_t             length = strlen(text);
    const bool               is_any = length > 2 && strcmp(text + length - 2, ":0") == 0;
    char                     plain[IE__URL_BYTES_MAX + 1];
    ie_status                status;

    if (url == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for an address");
    /* Only here may a port be 0, which means any free one; a URL to connect to has none such. */
    (void)snprintf(plain, sizeof plain, "%.*s", (int)(is_any ? length - 2 : length), text);
    status = ie__address_parse(address, url, plain, err);
    if (status == IE_OK && url->user != NULL)
        status = ie_error_set(err, IE_EINVAL, "a user in an address to listen on");
    if (status == IE_OK)
        status = ie__url_known_options(url, NO_OPTIONS, err);
    ie__free(url);
    if (status != IE_OK)
        return status;
    if (address->port == 0 && !is_any)
        address->port = IE__ADDRESS_PORT_DEFAULT;
    (void)snprintf(listener->url, sizeof listener->url, "%.500s", text);
    listener->is_unix = listener->is_local = address->is_unix;
    if (address->is_unix)
        return IE_OK;
    if (strcmp(address->host, "localhost") == 0)
        (void)snprintf(address->host, sizeof address->host, "127.0.0.1");
    if (!ie__address_numeric(sockaddr, address->host, address->port))
        return ie_error_set(err, IE_EINVAL, "listen on %s: give an IP address or localhost",
                            address->host);
    listener->is_local = ie__sockaddr_is_loopback((struct sockaddr *)sockaddr);
    return ie__policy_allows(policy, address, listener->is_local, err);
}

static ie_status
listen_unix(ie__listener *listener, ie_error *err)
{
    const ie__address *address = &listener->address;
    ie_status          status = unix_make_way(address->path, err);
    int                error;

    if (status != IE_OK)
        return status;
    (void)uv_pipe_init(&listener->server->loop, &listener->uv.pipe, 0);
    listener->is_open = true;
    error = uv_pipe_bind(&listener->uv.pipe, address->path);
    if (error == 0 && chmod(address->path, S_IRUSR | S_IWUSR) != 0) /* before anyone can connect */
        error = uv_translate_sys_error(errno);
    if (error == 0)
        error = uv_listen(&listener->uv.stream, BACKLOG, ie__accept_on_connection);
    return error == 0 ? IE_OK : listen_fail(err, listener->url, error);
}

static ie_status
listen_tcp(ie__listener *listener, struct sockaddr_storage *sockaddr, ie_error *err)
{
    int size = sizeof *sockaddr;
    int error = uv_tcp_init(&listener->server->loop, &listener->uv.tcp);

    if (error != 0)
        return listen_fail(err, listener->url, error);
    listener->is_open = true;
    error = uv_tcp_bind(&listener->uv.tcp, (struct sockaddr *)sockaddr, 0);
    if (error == 0)
        error = uv_listen(&listener->uv.stream, BACKLOG, ie__accept_on_connection);
    if (error == 0)
        error = uv_tcp_getsockname(&listener->uv.tcp, (struct sockaddr *)sockaddr, &size);
    if (error != 0)
        return listen_fail(err, listener->url, error);
    listener->address.port = ie__sockaddr_port((struct sockaddr *)sockaddr);
    return IE_OK;
}

static ie_status
server_listen(ie_bus_server *server, const char *text, ie_error *err)
{
    ie__listener           *listener = &server->listeners[server->listener_count];
    struct sockaddr_storage sockaddr;
    ie_status status = listen_parse(listener, &sockaddr, text, ie__guard_policy(server), err);

    listener->server = server;
    listener->reserve_fd = -1;
    if (status == IE_OK)
        status =
            listener->is_unix ? listen_unix(listener, err) : listen_tcp(listener, &sockaddr, err);
    if (status == IE_OK)
        ie__address_text(listener->url, &listener->address);
    if (listener->is_open) { /* counted even when it failed: somebody has to close it */
        listener->uv.handle.data = listener;
        server->listener_count++;
    }
    return status;
}

ie_status
ie_bus_server_check(const ie_bus_server_options *given, ie_error *err)
{
    static const char *const DEFAULT[] = {IE_BUS_URL_DEFAULT};
    ie_bus_server_options    options;
    ie__durable_rules       *rules = NULL;
    ie__policy              *policy = NULL;
    struct sockaddr_storage  sockaddr;
    ie__listener             listener;
    ie_status                status = ie__settings_import(&options, given, err);

    if (status == IE_OK && (options.listen == NULL || options.listen_count == 0)) {
        options.listen = DEFAULT;
        options.listen_count = 1;
    }
    if (status == IE_OK)
        status = ie__policy_load(&policy, &options, err);
    if (status == IE_OK)
        status = ie__durable_rules_new(&rules, &options, err);
    for (size_t i = 0; status == IE_OK && i < options.listen_count; i++)
        status = listen_parse(&listener, &sockaddr, options.listen[i], policy, err);
    ie__durable_rules_free(rules);
    ie__policy_free(policy);
    return status;
}

/* ---- the end -------------------------------------------------------------------------------- */

static void
server_finish(ie_bus_server *server)
{
    if (server->is_finished)
        return;
    server->is_finished = true;
    ie__reload_end(server);
    while (server->conns != NULL) {
        server->was_cut = true;
        ie__conn_doom(server->conns, IE_BUS_CODE_SHUTTING_DOWN, "the bus is shutting down");
        ie__conn_end(server->conns);
    }
    ie__durable_stop(server);
    ie__guard_close(server);
    ie__net_fini(&server->net);
    ie__queries_finish(server);
    (void)pthread_mutex_lock(&server->mutex);
    server->shown = server->stats;
    (void)pthread_mutex_unlock(&server->mutex);
    uv_close((uv_handle_t *)&server->tick, NULL);
    uv_close((uv_handle_t *)&server->drain, NULL);
    uv_close((uv_handle_t *)&server->accept_timer, NULL);
    uv_close((uv_handle_t *)&server->stall_timer, NULL);
    uv_close((uv_handle_t *)&server->async, NULL);
}

static void
server_on_drained(uv_timer_t *timer)
{
    server_finish(timer->data);
}

static bool
is_subscriber(const ie__conn *conn)
{
    return conn->sub_count != 0 || conn->eb1 != NULL;
}

/* Publishers leave first: as long as they wait for answers, subscribers are needed. */
static void
server_send_home(ie_bus_server *server, bool subscribers_too)
{
    server->subscribers_told = subscribers_too;
    for (ie__conn *conn = server->conns; conn != NULL; conn = conn->next) {
        if (conn->is_doomed || conn->is_told || (is_subscriber(conn) && !subscribers_too))
            continue;
        conn->is_told = true;
        ie__conn_say_goodbye(conn);
    }
}

static void
server_on_half_drained(uv_timer_t *timer)
{
    ie_bus_server *server = timer->data;

    server_send_home(server, true);
    (void)uv_timer_start(&server->drain, server_on_drained, server->drain_ms / 2, 0);
}

/* Only subscribers are left, and they owe nothing. */
static void
server_check_drained(ie_bus_server *server)
{
    bool only_subscribers =
        server->held_count == 0 && server->queries.count == 0 && !ie__durable_is_storing(server);

    for (ie__conn *conn = server->conns; conn != NULL && only_subscribers; conn = conn->next)
        only_subscribers = is_subscriber(conn);
    if (only_subscribers && !server->subscribers_told)
        server_send_home(server, true);
    if (server->conns == NULL && server->net.linger_count == 0)
        server_finish(server);
}

static void
server_close_listeners(ie_bus_server *server)
{
    for (size_t i = 0; i < server->listener_count; i++) {
        if (server->listeners[i].is_open)
            uv_close(&server->listeners[i].uv.handle, NULL);
        ie__accept_close(&server->listeners[i]);
        server->listeners[i].is_open = false;
    }
}

static void
server_on_async(uv_async_t *async)
{
    ie_bus_server *server = async->data;
    uint32_t       drain_ms;
    bool           is_asked;

    ie__reload_take(server);
    (void)pthread_mutex_lock(&server->mutex);
    is_asked = server->stop_requested;
    drain_ms = server->stop_drain_ms;
    (void)pthread_mutex_unlock(&server->mutex);
    ie__reload_take(server);
    if (!is_asked || server->is_draining)
        return;
    server->is_draining = true;
    server_close_listeners(server);
    server->drain_ms = drain_ms;
    server_send_home(server, false);
    ie__log(&server->options.logger, IE_LOG_INFO, "bus", "draining %u connections",
            server->conn_count);
    (void)uv_timer_start(&server->drain, server_on_half_drained, drain_ms / 2, 0);
}

void
ie__server_show(ie_bus_server *server)
{
    server->stats.connections = server->conn_count;
    server->stats.subscriptions = server->sub_count;
    server->stats.groups = server->group_count;
    server->stats.out_bytes = server->net.pending_bytes;
    server->stats.held_events = server->held_count;
    server->stats.memory_bytes = ie__server_memory(server);
    ie__durable_show(server);
    server->stats.queries_now = server->queries.count;
    server->stats.bytes_in = server->net.bytes_in;
    server->stats.bytes_out = server->net.bytes_out;
    (void)pthread_mutex_lock(&server->mutex);
    server->shown = server->stats;
    (void)pthread_mutex_unlock(&server->mutex);
}

/* Whoever has read an answer finds what it counted. */
static void
server_before_output(void *user)
{
    ie__server_show(user);
}

static void
server_end_of_turn(void *user)
{
    ie_bus_server *server = user;

    while (server->doomed != NULL)
        ie__conn_end(server->doomed);
    server->stats.turns++;
    ie__accept_go_on(server);
    ie__durable_end_of_turn(server);
    ie__server_show(server);
    if (server->is_draining)
        server_check_drained(server);
}

static void
server_on_tick(uv_timer_t *timer)
{
    ie_bus_server *server = timer->data;
    const int64_t  now_ms = (int64_t)uv_now(&server->loop);

    for (ie__conn *conn = server->conns; conn != NULL; conn = conn->next)
        ie__conn_tick(conn, now_ms);
}

/* Often enough that a timeout is at most a quarter late, and not more than that. */
static uint64_t
tick_ms(const ie_bus_server_options *options)
{
    const uint32_t timeouts[] = {options->hello_timeout_ms, options->frame_timeout_ms,
                                 options->ping_interval_ms, options->ack_timeout_ms};
    uint64_t       least = 4000;

    for (size_t i = 0; i < sizeof timeouts / sizeof *timeouts; i++)
        if (timeouts[i] < least)
            least = timeouts[i];
    return least / 4 > 10 ? least / 4 : 10;
}

void
ie__bus_server_tick_start(ie_bus_server *server)
{
    const uint64_t every = tick_ms(&server->options);

    (void)uv_timer_start(&server->tick, server_on_tick, every, every);
}

void
ie__server_forget_strings(ie_bus_server *server)
{
    ie_bus_server_options *options = &server->options;

    options->listen = options->durable_topics = options->ephemeral_topics = NULL;
    options->listen_count = options->durable_topic_count = options->ephemeral_topic_count = 0;
    options->name = options->data_dir = options->users_file = options->acl_file = NULL;
    options->tls_cert_file = options->tls_key_file = options->tls_ca_file = NULL;
}

static void *
server_main(void *arg)
{
    ie_bus_server *server = arg;

    ie__net_thread_enter("ie-bus");
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* ---- the beginning -------------------------------------------------------------------------- */

static void
server_free(ie_bus_server *server)
{
    ie__guard_free(server);
    ie__net_free(&server->net);
    ie__eb1_free(server);
    ie__durable_free(server);
    ie__topics_free(server->topics);
    ie__queries_free(server);
    ie__free(server->groups);
    ie__free(server->name);
    (void)pthread_cond_destroy(&server->reloaded);
    (void)pthread_mutex_destroy(&server->mutex);
    ie__free(server);
}

/* The loop and everything that can fail before the thread exists. */
static ie_status
server_prepare(ie_bus_server *server, ie_error *err)
{
    static const char *const DEFAULT_LISTEN[] = {IE_BUS_URL_DEFAULT};
    const char *const       *listen = server->options.listen;
    size_t                   count = server->options.listen_count;
    ie_status                status = IE_OK;

    if (count == 0 || listen == NULL) {
        listen = DEFAULT_LISTEN;
        count = 1;
    }
    if (count > IE__LISTEN_MAX)
        return ie_error_set(err, IE_EINVAL, "more than %d addresses to listen on", IE__LISTEN_MAX);
    for (size_t i = 0; i < count && status == IE_OK; i++)
        status = server_listen(server, listen[i], err);
    return status;
}

/* Undo what was made, on the caller's thread: the server's own does not run. */
void
ie__bus_server_unmake(ie_bus_server *server)
{
    server_close_listeners(server);
    server_finish(server);
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&server->loop);
    server_free(server);
}

static ie_status
server_make_loop(ie_bus_server *server, ie_error *err)
{
    if (uv_loop_init(&server->loop) != 0)
        return ie_error_set(err, IE_EIO, "cannot make an event loop: out of file descriptors?");
    if (uv_async_init(&server->loop, &server->async, server_on_async) == 0) {
        if (ie__net_init(&server->net, &server->loop) == IE_OK)
            return IE_OK;
        uv_close((uv_handle_t *)&server->async, NULL);
    }
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&server->loop);
    return ie_error_set(err, IE_ENOMEM, "cannot set up an event loop");
}

ie_status
ie__bus_server_make(ie_bus_server **out, const ie_bus_server_options *options, ie_error *err)
{
    ie_bus_server_options imported;
    ie_bus_server        *server;
    ie_status             status = options_import(&imported, options, err);
    const char           *name;

    if (status != IE_OK)
        return status;
    name = imported.name != NULL ? imported.name : "ie";
    if (ie_topic_check(name, NULL) != IE_OK)
        return ie_error_set(err, IE_EINVAL, "name: letters, digits and dots, like a topic");
    server = ie__calloc(1, sizeof *server);
    if (server == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a bus");
    (void)pthread_mutex_init(&server->mutex, NULL);
    (void)pthread_cond_init(&server->reloaded, NULL);
    ie__reload_begin(server, &imported);
    server->options = imported;
    server->name = ie__strdup(name);
    server->started_ms = ie__wall_ms(&ie__system_clock);
    server->topics = ie__topics_new();
    server->group_buckets = GROUP_BUCKETS;
    server->groups = ie__calloc(GROUP_BUCKETS, sizeof(ie__group *));
    if (server->name == NULL || server->topics == NULL || server->groups == NULL ||
        ie__queries_init(server) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "no memory for a bus");
    else
        status = server_make_loop(server, err);
    if (status != IE_OK) {
        server_free(server);
        return status;
    }
    /* From here on the loop has what server_finish() closes. */
    (void)uv_timer_init(&server->loop, &server->tick);
    (void)uv_timer_init(&server->loop, &server->drain);
    (void)uv_timer_init(&server->loop, &server->accept_timer);
    (void)uv_timer_init(&server->loop, &server->queries.timer);
    server->queries.timer.data = server;
    (void)uv_timer_init(&server->loop, &server->stall_timer);
    server->async.data = server->tick.data = server->drain.data = server;
    server->net.before_output = server_before_output;
    server->net.end_of_turn = server_end_of_turn;
    server->net.user = server;
    server->shown.size = server->stats.size = sizeof server->stats;
    status = ie__guard_new(server, &imported, err);
    if (status == IE_OK && imported.data_dir != NULL)
        status = ie__durable_open(server, &imported, err);
    if (status == IE_OK)
        status = server_prepare(server, err);
    if (status != IE_OK) {
        ie__bus_server_unmake(server);
        return status;
    }
    ie__server_forget_strings(server);
    ie__bus_server_tick_start(server);
    *out = server;
    return IE_OK;
}

ie_status
ie_bus_server_start(ie_bus_server **out, const ie_bus_server_options *options, ie_error *err)
{
    ie_bus_server  *server;
    const ie_status status = ie__bus_server_make(&server, options, err);

    if (status != IE_OK)
        return status;
    if (pthread_create(&server->thread, NULL, server_main, server) != 0) {
        ie__bus_server_unmake(server);
        return ie_error_set(err, IE_EIO, "cannot start a thread");
    }
    for (size_t i = 0; i < server->listener_count; i++)
        ie__log(&server->options.logger, IE_LOG_INFO, "bus", "listening on %s",
                server->listeners[i].url);
    *out = server;
    return IE_OK;
}

size_t
ie_bus_server_address_count(const ie_bus_server *server)
{
    return server->listener_count;
}

const char *
ie_bus_server_address(const ie_bus_server *server, size_t index)
{
    return index < server->listener_count ? server->listeners[index].url : NULL;
}

ie_status
ie_bus_server_stop(ie_bus_server *server, uint32_t drain_ms)
{
    bool is_joined;

    (void)pthread_mutex_lock(&server->mutex);
    is_joined = server->is_joined;
    server->is_joined = true;
    if (!is_joined) {
        server->stop_requested = true;
        server->stop_drain_ms = drain_ms;
    }
    (void)pthread_mutex_unlock(&server->mutex);
    if (is_joined)
        return IE_OK;
    (void)uv_async_send(&server->async);
    (void)pthread_join(server->thread, NULL);
    (void)uv_loop_close(&server->loop);
    return server->was_cut ? IE_ETIMEDOUT : IE_OK;
}

void
ie_bus_server_stats_get(ie_bus_server *server, ie_bus_server_stats *stats)
{
    const size_t size = stats->size < sizeof *stats ? stats->size : sizeof *stats;
    const size_t given = stats->size;

    if (given < sizeof(size_t))
        return;
    (void)pthread_mutex_lock(&server->mutex);
    memcpy(stats, &server->shown, size);
    (void)pthread_mutex_unlock(&server->mutex);
    stats->size = given;
}

void
ie_bus_server_close(ie_bus_server *server)
{
    if (server == NULL)
        return;
    (void)ie_bus_server_stop(server, server->options.drain_ms);
    server_free(server);
}
