/* A real server for the fuzz targets, with raw peers. */
#include "fuzz_bus.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core.h"

static ie_bus_server *server;
static char           path[64];

static void
remove_path(void)
{
    (void)unlink(path);
}

ie_bus_server *
fuzz_bus_make(const char *target, ie_bus_server_options *options)
{
    char        url[80];
    const char *listen = url;

    ie__net_thread_enter("fuzz");
    (void)snprintf(path, sizeof path, "/tmp/ie-fuzz-%s-%ld.sock", target, (long)getpid());
    (void)snprintf(url, sizeof url, "unix:%s", path);
    options->listen = &listen;
    options->listen_count = 1;
    CLAIM(ie__bus_server_make(&server, options, NULL) == IE_OK);
    options->listen = NULL; /* it was ours */
    options->listen_count = 0;
    (void)atexit(remove_path);
    return server;
}

void
fuzz_bus_turn(void)
{
    for (int i = 0; i < 3; i++)
        (void)uv_run(&server->loop, UV_RUN_NOWAIT);
}

void
fuzz_bus_claim_empty(void)
{
    for (int i = 0; i < 100 && server->conns != NULL; i++)
        fuzz_bus_turn();
    CLAIM(server->conns == NULL && server->conn_count == 0 && server->unauthenticated == 0);
    CLAIM(server->sub_count == 0 && server->group_count == 0 && server->doomed == NULL);
    CLAIM(server->held_count == 0 && server->held_bytes == 0);
}

int
fuzz_peer_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int          fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    CLAIM(fd >= 0);
    memcpy(address.sun_path, path, sizeof path);
    CLAIM(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

void
fuzz_peer_send(int fd, const void *bytes, size_t size)
{
    (void)send(fd, bytes, size, MSG_NOSIGNAL);
}

void
fuzz_peer_drain(int fd)
{
    static char bytes[65536];

    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        continue;
}
