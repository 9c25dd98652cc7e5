/* New options for a running server: prepared, then taken at once. */
#include "reload.h"

#include "auth.h"
#include "durable.h"
#include "settings.h"

struct ie__reload { /* on the stack of the thread that waits for it */
    ie_bus_server_options options;
    ie__policy           *policy; /* the server's once it is taken */
    ie__durable_rules    *rules;  /* NULL: the bus stores nothing */
    bool                  is_taken;
};

/* ---- what cannot change --------------------------------------------------------------------- */

static uint64_t
text_digest(const char *text, uint64_t seed)
{
    return text != NULL ? ie__digest(text, strlen(text), seed + 1) : seed;
}

static ie__fixed
fixed_of(const ie_bus_server_options *options)
{
    ie__fixed fixed = {.name = text_digest(options->name != NULL ? options->name : "ie", 0),
                       .data_dir = text_digest(options->data_dir, 0)};

    if (options->listen == NULL || options->listen_count == 0)
        fixed.listen = text_digest(IE_BUS_URL_DEFAULT, 0);
    else
        for (size_t i = 0; i < options->listen_count; i++)
            fixed.listen = text_digest(options->listen[i], fixed.listen);
    return fixed;
}

void
ie__reload_begin(ie_bus_server *server, const ie_bus_server_options *options)
{
    server->fixed = fixed_of(options);
}

static ie_status
check_fixed(const ie_bus_server *server, const ie_bus_server_options *options, ie_error *err)
{
    const ie__fixed now = fixed_of(options);
    const char     *field = now.listen != server->fixed.listen       ? "listen"
                            : now.name != server->fixed.name         ? "name"
                            : now.data_dir != server->fixed.data_dir ? "data_dir"
                                                                     : NULL;

    if (field == NULL)
        return IE_OK;
    return ie_error_set(err, IE_EINVAL,
                        "%s cannot change while the bus runs; restart it to change that", field);
}

/* ---- preparing ------------------------------------------------------------------------------ */

/* What it listens on must stay as well guarded as it had to be at the start. */
static ie_status
check_listeners(const ie_bus_server *server, const ie__policy *policy, ie_error *err)
{
    ie_status status = IE_OK;

    for (size_t i = 0; i < server->listener_count && status == IE_OK; i++)
        status = ie__policy_allows(policy, &server->listeners[i].address,
                                   server->listeners[i].is_local, err);
    return status;
}

static ie_status
reload_prepare(struct ie__reload *self, const ie_bus_server *server,
               const ie_bus_server_options *given, ie_error *err)
{
    ie_status status = ie__settings_import(&self->options, given, err);

    if (status == IE_OK)
        status = check_fixed(server, &self->options, err);
    if (status == IE_OK)
        status = ie__policy_load(&self->policy, &self->options, err);
    if (status == IE_OK)
        status = check_listeners(server, self->policy, err);
    if (status == IE_OK && server->durable != NULL)
        status = ie__durable_rules_new(&self->rules, &self->options, err);
    return status;
}

/* ---- taking --------------------------------------------------------------------------------- */

/* Cannot fail. What the caller lent is forgotten: its strings, and the logger, which stays. */
static void
reload_apply(const struct ie__reload *self, ie_bus_server *server)
{
    const ie_logger logger = server->options.logger;

    server->options = self->options;
    server->options.logger = logger;
    ie__server_forget_strings(server);
    ie__guard_swap(server, self->policy);
    for (ie__conn *conn = server->conns; conn != NULL; conn = conn->next)
        if (conn->state == IE__CONN_OPEN)
            conn->framer.message_max = server->options.data_bytes_max + IE__RECORD_OVERHEAD_MAX;
    if (self->rules != NULL)
        ie__durable_reload(server, self->rules);
    server->stats.reloads++;
    ie__bus_server_tick_start(server);
}

void
ie__reload_take(ie_bus_server *server)
{
    struct ie__reload *reload;

    (void)pthread_mutex_lock(&server->mutex);
    reload = server->reload;
    (void)pthread_mutex_unlock(&server->mutex);
    if (reload == NULL)
        return;
    reload_apply(reload, server);
    ie__server_show(server); /* who waits sees what it did */
    (void)pthread_mutex_lock(&server->mutex);
    reload->is_taken = true;
    server->reload = NULL;
    (void)pthread_cond_broadcast(&server->reloaded);
    (void)pthread_mutex_unlock(&server->mutex);
}

void
ie__reload_end(ie_bus_server *server)
{
    (void)pthread_mutex_lock(&server->mutex);
    server->is_reload_over = true;
    server->reload = NULL;
    (void)pthread_cond_broadcast(&server->reloaded);
    (void)pthread_mutex_unlock(&server->mutex);
}

ie_status
ie_bus_server_reload(ie_bus_server *server, const ie_bus_server_options *options, ie_error *err)
{
    struct ie__reload reload = {.policy = NULL};
    const ie_status   status = reload_prepare(&reload, server, options, err);

    if (status != IE_OK) {
        ie__policy_free(reload.policy);
        ie__durable_rules_free(reload.rules);
        return status;
    }
    (void)pthread_mutex_lock(&server->mutex);
    while (server->reload != NULL && !server->is_reload_over) /* another thread's */
        (void)pthread_cond_wait(&server->reloaded, &server->mutex);
    if (!server->is_reload_over) {
        server->reload = &reload;
        (void)uv_async_send(
            &server->async); /* open as long as the mutex is held and it is not over */
        while (!reload.is_taken && !server->is_reload_over)
            (void)pthread_cond_wait(&server->reloaded, &server->mutex);
    }
    (void)pthread_mutex_unlock(&server->mutex);
    if (reload.is_taken)
        return IE_OK;
    ie__policy_free(reload.policy);
    ie__durable_rules_free(reload.rules);
    return ie_error_set(err, IE_EINVAL, "the bus has stopped");
}
