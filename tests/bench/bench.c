#include "bench.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <time.h>
#include <unistd.h>

#define STAMP_AT     6 /* {"at":12345678901234567890,... */
#define STAMP_DIGITS 20

static char *folder;

void
bench_die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    (void)fprintf(stderr, "bench: ");
    (void)vfprintf(stderr, fmt, args);
    (void)fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

void
bench_print(const char *figure, const char *variant, double value)
{
    (void)printf("%s %s %.10g\n", figure, variant, value);
    (void)fflush(stdout);
}

const char *
bench_text_option(int argc, char **argv, const char *name, const char *fallback)
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return fallback;
}

int64_t
bench_option(int argc, char **argv, const char *name, int64_t fallback)
{
    const char *text = bench_text_option(argc, argv, name, NULL);

    return text != NULL ? strtoll(text, NULL, 10) : fallback;
}

/* ---- measuring ---- */

static int64_t
clock_ns(clockid_t clock)
{
    struct timespec now;

    (void)clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t
bench_now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

int64_t
bench_thread_cpu_ns(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

int64_t
bench_cpu_ns(void)
{
    return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* The number behind a word in a file of /proc. */
static int64_t
proc_number(const char *path, const char *word)
{
    FILE   *file = fopen(path, "r");
    char    line[256];
    int64_t value = -1;

    if (file == NULL)
        bench_die("cannot read %s", path);
    while (value < 0 && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, word, strlen(word)) == 0)
            value = strtoll(line + strlen(word), NULL, 10);
    (void)fclose(file);
    if (value < 0)
        bench_die("no %s in %s", word, path);
    return value;
}

int64_t
bench_written_bytes(void)
{
    return proc_number("/proc/self/io", "wchar:");
}

int64_t
bench_peak_kib(void)
{
    return proc_number("/proc/self/status", "VmHWM:");
}

void
bench_samples_add(bench_samples *samples, int64_t value)
{
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity != 0 ? 2 * samples->capacity : 4096;
        samples->values = realloc(samples->values, samples->capacity * sizeof *samples->values);
        if (samples->values == NULL)
            bench_die("out of memory");
    }
    samples->values[samples->count++] = value;
}

static int
by_value(const void *a, const void *b)
{
    const int64_t left = *(const int64_t *)a;
    const int64_t right = *(const int64_t *)b;

    return left < right ? -1 : left > right;
}

int64_t
bench_percentile(bench_samples *samples, double q)
{
    if (samples->count == 0)
        return 0;
    qsort(samples->values, samples->count, sizeof *samples->values, by_value);
    return samples->values[(size_t)(q * (double)(samples->count - 1) + 0.5)];
}

void
bench_samples_fini(bench_samples *samples)
{
    free(samples->values);
    *samples = (bench_samples){0};
}

/* ---- the folder ---- */

static void
dir_remove(void)
{
    DIR           *dir = opendir(folder);
    struct dirent *entry;

    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        char *path = bench_path(entry->d_name);

        (void)unlink(path); /* "." and ".." refuse */
        free(path);
    }
    if (dir != NULL)
        (void)closedir(dir);
    (void)rmdir(folder);
}

void
bench_dir_make(const char *parent)
{
    if (parent == NULL)
        parent = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    if (asprintf(&folder, "%s/ie-bench-XXXXXX", parent) < 0 || mkdtemp(folder) == NULL)
        bench_die("cannot make a folder in %s", parent);
    (void)atexit(dir_remove);
}

const char *
bench_dir(void)
{
    return folder;
}

char *
bench_path(const char *name)
{
    char *path = NULL;

    if (asprintf(&path, "%s/%s", folder, name) < 0)
        bench_die("out of memory");
    return path;
}

/* ---- databases ---- */

void
bench_exec(sqlite3 *db, const char *sql)
{
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        bench_die("%s: %s", sql, sqlite3_errmsg(db));
}

sqlite3_stmt *
bench_prepare(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt = NULL;

    if (sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL) != SQLITE_OK)
        bench_die("%s: %s", sql, sqlite3_errmsg(db));
    return stmt;
}

void
bench_step(sqlite3_stmt *stmt)
{
    if (sqlite3_step(stmt) != SQLITE_DONE)
        bench_die("%s: %s", sqlite3_sql(stmt), sqlite3_errmsg(sqlite3_db_handle(stmt)));
    (void)sqlite3_reset(stmt);
}

int64_t
bench_int(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt = bench_prepare(db, sql);
    int64_t       value;

    if (sqlite3_step(stmt) != SQLITE_ROW)
        bench_die("%s: %s", sql, sqlite3_errmsg(db));
    value = sqlite3_column_int64(stmt, 0);
    (void)sqlite3_finalize(stmt);
    return value;
}

sqlite3 *
bench_db_open(const char *path, const char *synchronous)
{
    sqlite3 *db = NULL;
    char     sql[64];

    if (sqlite3_open(path, &db) != SQLITE_OK)
        bench_die("open %s: %s", path, sqlite3_errmsg(db));
    (void)sqlite3_busy_timeout(db, 10000);
    bench_exec(db, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=1000");
    (void)snprintf(sql, sizeof sql, "PRAGMA synchronous=%s", synchronous);
    bench_exec(db, sql);
    return db;
}

void
bench_db_close(sqlite3 *db)
{
    if (sqlite3_close(db) != SQLITE_OK)
        bench_die("close: %s", sqlite3_errmsg(db));
}

static void
account_schema(sqlite3 *db)
{
    bench_exec(db, "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL,"
                   " updated_at INTEGER NOT NULL);"
                   "WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 10000)"
                   " INSERT INTO account SELECT i, 0, 0 FROM k");
}

void
bench_schema(sqlite3 *db)
{
    ie_error err = IE_ERROR_INIT;

    if (ie_migrate_up(db, NULL, &err) != IE_OK)
        bench_die("migrate: %s", err.message);
    account_schema(db);
    bench_exec(db, "CREATE TABLE floor_cursor (name TEXT PRIMARY KEY, position INTEGER NOT NULL)"
                   " WITHOUT ROWID;"
                   "INSERT INTO floor_cursor VALUES ('relay', 0);"
                   "PRAGMA wal_checkpoint(TRUNCATE)");
}

void
bench_state_schema(sqlite3 *db)
{
    account_schema(db);
    bench_exec(db, "CREATE TABLE state_outbox (position INTEGER PRIMARY KEY, id TEXT NOT NULL,"
                   " topic TEXT NOT NULL, key TEXT, type TEXT, source TEXT, time INTEGER NOT NULL,"
                   " not_before INTEGER, expires_at INTEGER, content_type TEXT, headers TEXT,"
                   " dedupe_key TEXT, state INTEGER NOT NULL DEFAULT 0, data BLOB);"
                   "CREATE INDEX state_outbox_pending ON state_outbox (state) WHERE state = 0;"
                   "PRAGMA wal_checkpoint(TRUNCATE)");
}

void
bench_fill(sqlite3 *db, const char *table, int64_t count)
{
    const bool    is_ours = strcmp(table, "ie_event") == 0;
    sqlite3_stmt *insert = is_ours ? NULL : bench_raw_insert(db, table);
    ie_outbox    *outbox = NULL;
    bench_event   event;
    ie_error      err = IE_ERROR_INIT;

    if (is_ours && ie_outbox_open(&outbox, db, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    bench_event_init(&event);
    for (int64_t i = 0; i < count; i++) {
        if (i % 1000 == 0)
            bench_exec(db, "BEGIN IMMEDIATE");
        bench_event_number(&event, (uint64_t)i);
        if (!is_ours)
            bench_raw_put(insert, &event, (uint64_t)i);
        else if (ie_publish(outbox, &event.event, NULL, &err) != IE_OK)
            bench_die("%s", err.message);
        if (i % 1000 == 999 || i == count - 1)
            bench_exec(db, "COMMIT");
    }
    ie_outbox_close(outbox);
    (void)sqlite3_finalize(insert);
    bench_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)");
}

/* ---- the application's transaction ---- */

void
bench_business_open(bench_business *business, sqlite3 *db)
{
    business->begin = bench_prepare(db, "BEGIN IMMEDIATE");
    business->update = bench_prepare(
        db, "UPDATE account SET balance = balance + 1, updated_at = ?2 WHERE id = ?1");
    business->commit = bench_prepare(db, "COMMIT");
    business->random = 0x9E3779B97F4A7C15u;
}

void
bench_business_close(bench_business *business)
{
    (void)sqlite3_finalize(business->begin);
    (void)sqlite3_finalize(business->update);
    (void)sqlite3_finalize(business->commit);
}

/* xorshift64: the same accounts in the same order for each variant. */
static uint64_t
random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

void
bench_business_begin(bench_business *business)
{
    const uint64_t account = random_next(&business->random) % BENCH_ACCOUNTS + 1;

    bench_step(business->begin);
    (void)sqlite3_bind_int64(business->update, 1, (sqlite3_int64)account);
    (void)sqlite3_bind_int64(business->update, 2, bench_now_ns() / 1000000);
    bench_step(business->update);
}

void
bench_business_commit(bench_business *business)
{
    bench_step(business->commit);
}

/* ---- the event ---- */

void
bench_event_init(bench_event *event)
{
    static const char DATA[] =
        "{\"at\":10000000000000000000,\"order\":\"O-2025-0012345\",\"customer\":\"customer-"
        "0000001\","
        "\"currency\":\"EUR\",\"total\":1299.90,\"items\":[{\"sku\":\"AB-1001\",\"quantity\":2,"
        "\"price\":499.95},{\"sku\":\"CD-2002\",\"quantity\":1,\"price\":300.00}],\"note\":\"";
    size_t at = sizeof DATA - 1;

    memset(event, 0, sizeof *event);
    memcpy(event->data, DATA, at);
    while (at < BENCH_DATA_BYTES - 2)
        event->data[at++] = 'x';
    memcpy(event->data + at, "\"}", 2);
    event->headers[0] =
        (ie_header){.name = "correlation", .value = "0af7651916cd43dd8448eb211c80319c"};
    event->headers[1] = (ie_header){.name = "spanid", .value = "b7ad6b7169203331"};
    event->event = (ie_event)IE_EVENT_INIT;
    event->event.topic = "orders.created";
    event->event.type = "OrderCreated.v1";
    event->event.key = event->key;
    event->event.headers = event->headers;
    event->event.header_count = 2;
    event->event.data = event->data;
    event->event.data_bytes = BENCH_DATA_BYTES;
    bench_event_number(event, 0);
}

void
bench_event_number(bench_event *event, uint64_t number)
{
    static const char NAME[] = "customer-0000000";
    uint64_t          rest = number * 7919 % 10000000;

    memcpy(event->key, NAME, sizeof NAME);
    for (int i = (int)sizeof NAME - 2; rest != 0; i--, rest /= 10)
        event->key[i] = (char)('0' + rest % 10);
}

void
bench_event_stamp(bench_event *event, int64_t ns)
{
    char digits[STAMP_DIGITS + 1];

    /* The first digit stays 1: JSON has no leading zeros. */
    (void)snprintf(digits, sizeof digits, "1%019lld", (long long)ns);
    memcpy(event->data + STAMP_AT, digits, STAMP_DIGITS);
}

int64_t
bench_event_stamp_of(const ie_event *event)
{
    char digits[STAMP_DIGITS];

    if (event->data_bytes < STAMP_AT + STAMP_DIGITS)
        bench_die("an event without a stamp");
    memcpy(digits, (const char *)event->data + STAMP_AT + 1, STAMP_DIGITS - 1);
    digits[STAMP_DIGITS - 1] = '\0';
    return strtoll(digits, NULL, 10);
}

sqlite3_stmt *
bench_raw_insert(sqlite3 *db, const char *table)
{
    const bool is_ours = strcmp(table, "ie_event") == 0;
    char       sql[512];

    (void)snprintf(
        sql, sizeof sql,
        "INSERT INTO main.%s (id, topic, key, type, source, time, not_before, expires_at,"
        " content_type, headers, dedupe_key, data, %s)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, %d)",
        table, is_ours ? "checked" : "state", is_ours ? 1 : 0);
    return bench_prepare(db, sql);
}

/* An id as cheap as it gets: its text is there but for the number. */
static void
raw_id(char id[IE_ID_SIZE], uint64_t number)
{
    static const char HEX[] = "0123456789abcdef";

    memcpy(id, "01936f3e-7a10-7000-8000-000000000000", IE_ID_SIZE);
    for (int i = IE_ID_SIZE - 2; number != 0 && i > 23; i--, number /= 16)
        id[i] = HEX[number % 16];
}

void
bench_raw_put(sqlite3_stmt *insert, const bench_event *event, uint64_t number)
{
    static const char HEADERS[] =
        "{\"correlation\":\"0af7651916cd43dd8448eb211c80319c\",\"spanid\":\"b7ad6b7169203331\"}";
    char            id[IE_ID_SIZE];
    struct timespec now;

    raw_id(id, number);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)sqlite3_bind_text(insert, 1, id, IE_ID_SIZE - 1, SQLITE_STATIC);
    (void)sqlite3_bind_text(insert, 2, event->event.topic, -1, SQLITE_STATIC);
    (void)sqlite3_bind_text(insert, 3, event->key, -1, SQLITE_STATIC);
    (void)sqlite3_bind_text(insert, 4, event->event.type, -1, SQLITE_STATIC);
    (void)sqlite3_bind_null(insert, 5);
    (void)sqlite3_bind_int64(insert, 6, (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000);
    (void)sqlite3_bind_null(insert, 7);
    (void)sqlite3_bind_null(insert, 8);
    (void)sqlite3_bind_null(insert, 9);
    (void)sqlite3_bind_text(insert, 10, HEADERS, sizeof HEADERS - 1, SQLITE_STATIC);
    (void)sqlite3_bind_null(insert, 11);
    (void)sqlite3_bind_text(insert, 12, event->data, BENCH_DATA_BYTES, SQLITE_STATIC);
    bench_step(insert);
}
