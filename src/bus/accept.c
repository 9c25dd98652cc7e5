/*
 * Taking connections: how many strangers at a time, and what when descriptors run out.
 *
 * A connection that cannot be taken now stays with its listener: libuv holds one and stops looking
 * at the rest, so waiting costs nothing, and the kernel's queue is where a crowd belongs. At each
 * turn's end the waiting ones are looked at again.
 */
#include "server.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#define GRACE_MS      250 /* to say hello while others wait for the place */
#define FD_RETRY_MS   20
#define FD_MARGIN_MAX 32 /* descriptors left for everything else: a tenth, at most this */

/* ---- who has not said hello ----------------------------------------------------------------- */

void
ie__accept_enlist(ie__conn *conn)
{
    ie_bus_server *server = conn->server;

    conn->is_stranger = true;
    conn->stranger_next = NULL;
    conn->stranger_prev = server->strangers_newest;
    if (server->strangers_newest != NULL)
        server->strangers_newest->stranger_next = conn;
    else
        server->strangers_oldest = conn;
    server->strangers_newest = conn;
    server->unauthenticated++;
}

void
ie__accept_known(ie__conn *conn)
{
    ie_bus_server *server = conn->server;

    if (!conn->is_stranger)
        return;
    conn->is_stranger = false;
    if (conn->stranger_prev != NULL)
        conn->stranger_prev->stranger_next = conn->stranger_next;
    else
        server->strangers_oldest = conn->stranger_next;
    if (conn->stranger_next != NULL)
        conn->stranger_next->stranger_prev = conn->stranger_prev;
    else
        server->strangers_newest = conn->stranger_prev;
    server->unauthenticated--;
}

/* ---- descriptors ---------------------------------------------------------------------------- */

/*
 * Close to the limit? Numbers are given lowest first, so the last one tells whether it is worth a
 * closer look. Stopping early leaves some for the log, the host's files, and the ends of
 * connections.
 */
static bool
fds_are_scarce(const ie_bus_server *server, int any_fd)
{
    struct rlimit limit;
    rlim_t        margin;
    int           fd;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
        (rlim_t)server->last_fd < limit.rlim_cur / 2)
        return false;
    margin = limit.rlim_cur / 10 < FD_MARGIN_MAX ? limit.rlim_cur / 10 : FD_MARGIN_MAX;
    fd = fcntl(any_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return true;
    (void)close(fd);
    return (rlim_t)fd + margin >= limit.rlim_cur;
}

/* libuv has nothing better to do with EMFILE than to ask again at once, for ever. One descriptor
 * to give up turns that into a connection, which we then leave where it is. */
static bool
reserve_is_there(ie__listener *listener)
{
    if (listener->reserve_fd < 0)
        listener->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return listener->reserve_fd >= 0;
}

static void
reserve_give_up(ie__listener *listener)
{
    if (listener->reserve_fd >= 0)
        (void)close(listener->reserve_fd);
    listener->reserve_fd = -1;
}

/* ---- taking --------------------------------------------------------------------------------- */

typedef enum taking { TAKEN, TOO_MANY_STRANGERS, NOT_NOW } taking;

static taking
take(ie_bus_server *server, ie__listener *listener)
{
    uint32_t hushed;

    if (server->unauthenticated >= server->options.unauthenticated_max)
        return TOO_MANY_STRANGERS;
    if (!reserve_is_there(listener) || fds_are_scarce(server, listener->reserve_fd)) {
        if (ie__gate_open(&server->gates[IE__GATE_DESCRIPTORS], (int64_t)uv_now(&server->loop), 1,
                          &hushed))
            ie__log(&server->options.logger, IE_LOG_WARN, "bus",
                    "file descriptors run out with %u connections: new ones wait; raise the limit "
                    "(ulimit -n, LimitNOFILE=)",
                    server->conn_count);
        return NOT_NOW;
    }
    ie__conn_accept(server, listener);
    return listener->is_waiting ? NOT_NOW : TAKEN;
}

void
ie__accept_on_connection(uv_stream_t *handle, int status)
{
    ie__listener *listener = handle->data;

    if (status == UV_EMFILE || status == UV_ENFILE)
        reserve_give_up(listener);
    if (status != 0)
        return;
    listener->is_waiting = true;
    (void)take(listener->server, listener);
}

static void
accept_on_timer(uv_timer_t *timer)
{
    (void)timer; /* it was only to wake the loop: each turn ends with a look at who waits */
}

/* The one who has had the place for longest without a word goes. False: nobody had his grace. */
static bool
make_room(ie_bus_server *server, int64_t now_ms, int64_t *wait_ms)
{
    ie__conn *oldest = server->strangers_oldest;

    *wait_ms = GRACE_MS;
    if (oldest == NULL)
        return false;
    if (now_ms - oldest->accepted_ms < GRACE_MS) {
        *wait_ms = GRACE_MS - (now_ms - oldest->accepted_ms);
        return false;
    }
    ie__conn_doom(oldest, IE_BUS_CODE_TIMEOUT,
                  "no hello within %d ms while others wait: unauthenticated_max is reached",
                  GRACE_MS);
    ie__conn_end(oldest);
    return true;
}

void
ie__accept_go_on(ie_bus_server *server)
{
    const int64_t now_ms = (int64_t)uv_now(&server->loop);
    int64_t       wait_ms = 0;

    for (size_t i = 0; i < server->listener_count; i++) {
        ie__listener *listener = &server->listeners[i];
        int64_t       its_ms = FD_RETRY_MS;
        taking        result;

        if (!listener->is_open || !listener->is_waiting)
            continue;
        do
            result = take(server, listener);
        while (result == TOO_MANY_STRANGERS && make_room(server, now_ms, &its_ms));
        if (result != TAKEN && (wait_ms == 0 || its_ms < wait_ms))
            wait_ms = its_ms;
    }
    if (wait_ms != 0 && !uv_is_active((uv_handle_t *)&server->accept_timer))
        (void)uv_timer_start(&server->accept_timer, accept_on_timer, (uint64_t)wait_ms, 0);
}

void
ie__accept_close(ie__listener *listener)
{
    reserve_give_up(listener);
    listener->is_waiting = false;
}
