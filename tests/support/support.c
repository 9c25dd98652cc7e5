#include "support.h"

#include <check.h>
#include <arpa/inet.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

static char dir[256];

const char *
test_dir_make(void)
{
    const char *base = getenv("TMPDIR");

    (void)snprintf(dir, sizeof dir, "%s/ie-test-XXXXXX", base != NULL ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    return dir;
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void
test_dir_remove(void)
{
    if (dir[0] != '\0')
        (void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    dir[0] = '\0';
}

const char *
test_path(const char *name)
{
    static char paths[16][512];
    static int  next;
    char       *path = paths[next++ % 16];

    (void)snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

sqlite3 *
test_db_open(const char *path)
{
    sqlite3 *db = NULL;

    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    (void)sqlite3_busy_timeout(db, 5000);
    test_exec(db, "PRAGMA journal_mode=WAL");
    test_exec(db, "PRAGMA synchronous=FULL");
    return db;
}

void
test_exec(sqlite3 *db, const char *sql)
{
    char     *message = NULL;
    const int rc = sqlite3_exec(db, sql, NULL, NULL, &message);

    ck_assert_msg(rc == SQLITE_OK, "%s: %s", sql, message != NULL ? message : "?");
}

int64_t
test_int(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    int64_t       value;

    ck_assert_msg(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK, "%s: %s", sql,
                  sqlite3_errmsg(db));
    ck_assert_msg(sqlite3_step(stmt) == SQLITE_ROW, "%s: %s", sql, sqlite3_errmsg(db));
    value = sqlite3_column_int64(stmt, 0);
    (void)sqlite3_finalize(stmt);
    return value;
}

const char *
test_text(sqlite3 *db, const char *sql)
{
    static char   text[4096];
    sqlite3_stmt *stmt = NULL;

    text[0] = '\0';
    ck_assert_msg(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK, "%s: %s", sql,
                  sqlite3_errmsg(db));
    if (sqlite3_step(stmt) == SQLITE_ROW && sqlite3_column_text(stmt, 0) != NULL)
        (void)snprintf(text, sizeof text, "%s", (const char *)sqlite3_column_text(stmt, 0));
    (void)sqlite3_finalize(stmt);
    return text;
}

bool
poll_until(bool (*ready)(void *arg), void *arg, int wait_ms_max)
{
    const int64_t deadline_ms = ie__mono_ns() / 1000000 + wait_ms_max;

    while (!ready(arg)) {
        if (ie__mono_ns() / 1000000 >= deadline_ms)
            return false;
        (void)poll(NULL, 0, 2);
    }
    return true;
}

static int64_t
clock_wall(void *user)
{
    return __atomic_load_n(&((test_clock *)user)->wall_ms, __ATOMIC_SEQ_CST);
}

static int64_t
clock_boot(void *user)
{
    return __atomic_load_n(&((test_clock *)user)->boot_ms, __ATOMIC_SEQ_CST);
}

void
test_clock_init(test_clock *clock, int64_t wall_ms)
{
    clock->wall_ms = wall_ms;
    clock->boot_ms = 1000000;
    clock->clock.wall_ms = clock_wall;
    clock->clock.boot_ms = clock_boot;
    clock->clock.user = clock;
}

void
test_clock_advance(test_clock *clock, int64_t ms)
{
    (void)__atomic_add_fetch(&clock->wall_ms, ms, __ATOMIC_SEQ_CST);
    (void)__atomic_add_fetch(&clock->boot_ms, ms, __ATOMIC_SEQ_CST);
}

uint64_t
test_seed(void)
{
    static uint64_t seed;

    if (seed == 0) {
        const char *given = getenv("IE_TEST_SEED");

        if (given != NULL)
            seed = strtoull(given, NULL, 0);
        else
            ie__random(&seed, sizeof seed);
        seed |= 1;
        (void)fprintf(stderr, "IE_TEST_SEED=%llu\n", (unsigned long long)seed);
    }
    return seed;
}

uint64_t
test_scale(uint64_t amount)
{
    const char    *given = getenv("IE_TEST_SCALE");
    const uint64_t percent = given != NULL ? strtoull(given, NULL, 10) : 100;
    const uint64_t scaled = amount * percent / 100;

    return scaled != 0 ? scaled : 1;
}

int
test_free_port(void)
{
    const int          fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t          size = sizeof address;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, size), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    (void)close(fd);
    return ntohs(address.sin_port);
}
