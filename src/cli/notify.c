/* The service manager: saying to systemd how the bus is, by its datagram protocol (sd_notify). */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

bool
cli_notify(const char *fmt, ...)
{
    const char        *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char               text[1024];
    size_t             bytes;
    ssize_t            sent;
    va_list            args;
    int                fd;

    if (path == NULL || (path[0] != '/' && path[0] != '@'))
        return false;
    bytes = strlen(path);
    if (bytes >= sizeof address.sun_path)
        return false;
    memcpy(address.sun_path, path, bytes);
    if (path[0] == '@') /* an abstract address begins with NUL and has no other end than its size */
        address.sun_path[0] = '\0';
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    do
        sent = sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
                      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes));
    while (sent < 0 && errno == EINTR);
    (void)close(fd);
    return sent >= 0;
}

int64_t
cli_watchdog_ms(void)
{
    const char *usec = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    long long   every;

    if (usec == NULL || (pid != NULL && strtoll(pid, NULL, 10) != (long long)getpid()))
        return -1;
    every = strtoll(usec, NULL, 10);
    return every < 1000 ? -1 : (int64_t)(every / 1000);
}
