#include "security_support.h"

#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

void
write_file(const char *name, const char *text, mode_t mode)
{
    const int fd = open(test_path(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    ck_assert_int_eq(fchmod(fd, mode), 0);
    (void)close(fd);
}

typedef struct expected {
    ie_bus_server *server;
    size_t         offset;
    uint64_t       value;
} expected;

static bool
counter_has_come(void *arg)
{
    const expected     *wanted = arg;
    ie_bus_server_stats stats = {.size = sizeof stats};
    uint64_t            value;

    ie_bus_server_stats_get(wanted->server, &stats);
    memcpy(&value, (const char *)&stats + wanted->offset, sizeof value);
    return value == wanted->value;
}

bool
counter_is(ie_bus_server *server, size_t offset, uint64_t value)
{
    expected wanted = {server, offset, value};

    return poll_until(counter_has_come, &wanted, 20000);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char            kept[1 << 20];
static size_t          kept_bytes;

static void
keep(void *user, ie_log_level level, const char *module, const char *message)
{
    (void)user;
    (void)level;
    (void)pthread_mutex_lock(&mutex);
    if (sizeof kept - kept_bytes > 1024)
        kept_bytes += (size_t)snprintf(kept + kept_bytes, 1024, "%s: %s\n", module, message);
    (void)pthread_mutex_unlock(&mutex);
}

const ie_logger log_kept = {keep, NULL};

bool
log_has(const char *part)
{
    bool has;

    (void)pthread_mutex_lock(&mutex);
    has = strstr(kept, part) != NULL;
    (void)pthread_mutex_unlock(&mutex);
    return has;
}
