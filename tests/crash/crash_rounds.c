/*
 * kill -9 at random moments: applications that write rows and events in one transaction, and two
 * workers that compete for them, on one database. What the destination (a file) has accepted is
 * compared with what was committed. Ends with one line of six numbers:
 *
 *   attempts      transactions that were meant to be committed
 *   acknowledged  COMMITs that returned to the application
 *   lost          committed events that never arrived
 *   duplicated    events that arrived more than once (allowed: at least once)
 *   recovered     committed, though the application died before it could know, and arrived
 *   unexpected    arrived without having been committed, damaged, dead, or out of order in their
 * key
 *
 * IE_TEST_SCALE percent of 300 rounds; IE_TEST_SEED repeats a run as far as the kernel's
 * scheduling allows.
 */
#include <errno.h>
#include <ie/cloudevents.h>
#include <ie/migrate.h>
#include <ie/outbox.h>
#include <ie/worker.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "support.h"

#define TRANSACTIONS_MAX 400000
#define EVENTS_MAX       4 /* in a transaction */
#define KEYS             20

/* What the applications know, in memory that survives them. */
typedef struct shared {
    atomic_uint   attempts;
    atomic_uint   acknowledged;
    atomic_uint   next; /* number of the next transaction, over all applications */
    unsigned char is_acknowledged[TRANSACTIONS_MAX];
    unsigned char is_rolled_back[TRANSACTIONS_MAX];
} shared;

static shared *books;
static char    folder[400];
static char    db_path[512];
static char    out_path[512];
static char    url[600];

static uint64_t random_state;

static unsigned
draw(unsigned below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % below;
}

static void
must(bool ok, const char *what)
{
    if (ok)
        return;
    (void)fprintf(stderr, "crash_rounds: %s failed (%s)\n", what, strerror(errno));
    _exit(3);
}

/* ---- the application ---- */

static void
run_sql(sqlite3 *db, const char *sql)
{
    char *message = NULL;

    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) {
        (void)fprintf(stderr, "crash_rounds: %s: %s\n", sql, message);
        _exit(3);
    }
}

/* One transaction: a row of the business per event, with the same id. */
static void
transact(sqlite3 *db, ie_outbox *outbox)
{
    const unsigned number = atomic_fetch_add(&books->next, 1);
    const unsigned count = 1 + draw(EVENTS_MAX);
    const bool     is_kept = draw(4) != 0;

    must(number < TRANSACTIONS_MAX, "room for transactions");
    run_sql(db, "BEGIN IMMEDIATE");
    for (unsigned i = 0; i < count; i++) {
        ie_event event = IE_EVENT_INIT;
        ie_error error = IE_ERROR_INIT;
        char     id[32];
        char     key[16];
        char     data[64];
        char     sql[160];

        (void)snprintf(id, sizeof id, "t%u-%u", number, i);
        (void)snprintf(key, sizeof key, "k%u", draw(KEYS));
        (void)snprintf(data, sizeof data, "{\"order\":\"%s\"}", id);
        (void)snprintf(sql, sizeof sql, "INSERT INTO orders(id, number) VALUES ('%s', %u)", id,
                       number);
        run_sql(db, sql);
        event.id = id;
        event.topic = "order.placed";
        event.key = draw(5) == 0 ? NULL : key;
        event.data = data;
        event.data_bytes = strlen(data);
        if (ie_publish(outbox, &event, NULL, &error) != IE_OK) {
            (void)fprintf(stderr, "crash_rounds: publish: %s\n", error.message);
            _exit(3);
        }
    }
    if (!is_kept) {
        books->is_rolled_back[number] = 1;
        run_sql(db, "ROLLBACK");
        return;
    }
    atomic_fetch_add(&books->attempts, 1);
    run_sql(db, "COMMIT");
    books->is_acknowledged[number] = 1; /* from here on the application relies on it */
    atomic_fetch_add(&books->acknowledged, 1);
}

static sqlite3 *
open_db(void)
{
    sqlite3 *db = NULL;

    must(sqlite3_open(db_path, &db) == SQLITE_OK, "open");
    (void)sqlite3_busy_timeout(db, 20000);
    run_sql(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL");
    return db;
}

static void
application(void)
{
    sqlite3          *db = open_db();
    ie_outbox        *outbox = NULL;
    ie_outbox_options options;

    IE_OUTBOX_OPTIONS_INIT(&options);
    must(ie_outbox_open(&outbox, db, &options, NULL) == IE_OK, "open outbox");
    for (;;) {
        transact(db, outbox);
        (void)poll(NULL, 0, (int)draw(3));
    }
}

/* ---- the worker ---- */

static void
worker(bool must_finish)
{
    ie_worker        *it = NULL;
    ie_worker_options options;
    ie_worker_report  report = {.pending = 1};
    ie_error          error = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(&options);
    options.db = db_path;
    options.to = url;
    options.lease_ms = 2000;
    options.in_flight_max = 1 + draw(200);
    options.batch_max = 1 + draw(50);
    options.breaker_delay_ms = 10;
    options.breaker_delay_max_ms = 50;
    if (must_finish) {
        must(ie_worker_open(&it, &options, &error) == IE_OK, error.message);
        for (int i = 0; i < 500 && report.pending > 0; i++)
            if (ie_worker_run_once(it, 20000, &report, NULL) != IE_OK)
                (void)poll(NULL, 0, 20);
        ie_worker_close(it);
        _exit(report.pending == 0 ? 0 : 4);
    }
    if (ie_worker_start(&it, &options, &error) != IE_OK) {
        (void)fprintf(stderr, "crash_rounds: worker: %s\n", error.message);
        _exit(3);
    }
    for (;;)
        (void)pause();
}

/* ---- rounds ---- */

enum { APPLICATION, WORKER_A, WORKER_B, ROLES };

static pid_t pids[ROLES];

static void
begin(int role)
{
    const uint64_t seed = random_state + (uint64_t)role * 7919u + (uint64_t)draw(1000000);
    const pid_t    pid = fork();

    must(pid >= 0, "fork");
    if (pid == 0) {
        random_state = seed;
        if (role == APPLICATION)
            application();
        worker(false);
    }
    pids[role] = pid;
}

static void
end(int role)
{
    int status = 0;

    (void)kill(pids[role], SIGKILL);
    while (waitpid(pids[role], &status, 0) < 0)
        must(errno == EINTR, "waitpid");
    /* It must not have ended by itself. */
    must(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
         "a process that should have been killed");
}

/* ---- accounting ---- */

typedef struct account {
    sqlite3 *db;
    unsigned lost, duplicated, recovered, unexpected;
} account;

/* The lines that the destination has: into a table, in order. */
static void
accept_lines(account *a)
{
    FILE         *file = fopen(out_path, "r");
    char         *line = NULL;
    size_t        size = 0;
    ssize_t       got;
    sqlite3_stmt *insert = NULL;

    must(file != NULL, "open the destination");
    run_sql(a->db, "CREATE TEMP TABLE accepted(n INTEGER PRIMARY KEY, id TEXT, key TEXT); BEGIN");
    must(sqlite3_prepare_v2(a->db, "INSERT INTO accepted(id, key) VALUES (?1, ?2)", -1, &insert,
                            NULL) == SQLITE_OK,
         "prepare");
    while ((got = getline(&line, &size, file)) > 0) {
        ie_event *event = NULL;

        if (ie_cloudevents_decode(&event, line, (size_t)got, NULL) != IE_OK) {
            a->unexpected++; /* a damaged line */
            continue;
        }
        (void)sqlite3_bind_text(insert, 1, event->id, -1, SQLITE_TRANSIENT);
        (void)sqlite3_bind_text(insert, 2, event->key, -1, SQLITE_TRANSIENT);
        must(sqlite3_step(insert) == SQLITE_DONE, "insert");
        (void)sqlite3_reset(insert);
        ie_event_free(event);
    }
    (void)sqlite3_finalize(insert);
    free(line);
    (void)fclose(file);
    run_sql(a->db, "COMMIT; CREATE INDEX temp.accepted_id ON accepted(id)");
}

static unsigned
count(account *a, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    unsigned      value;

    if (sqlite3_prepare_v2(a->db, sql, -1, &stmt, NULL) != SQLITE_OK ||
        sqlite3_step(stmt) != SQLITE_ROW) {
        (void)fprintf(stderr, "crash_rounds: %s: %s\n", sql, sqlite3_errmsg(a->db));
        _exit(3);
    }
    value = (unsigned)sqlite3_column_int64(stmt, 0);
    (void)sqlite3_finalize(stmt);
    return value;
}

/* Acknowledged transactions must be there whole, rolled back ones not at all. */
static void
compare_books(account *a)
{
    sqlite3_stmt  *stmt = NULL;
    const unsigned numbers = atomic_load(&books->next);

    must(sqlite3_prepare_v2(a->db, "SELECT count(*) FROM orders WHERE number = ?1", -1, &stmt,
                            NULL) == SQLITE_OK,
         "prepare");
    for (unsigned i = 0; i < numbers; i++) {
        bool is_there;

        (void)sqlite3_bind_int64(stmt, 1, i);
        must(sqlite3_step(stmt) == SQLITE_ROW, "count orders");
        is_there = sqlite3_column_int64(stmt, 0) > 0;
        (void)sqlite3_reset(stmt);
        a->lost += books->is_acknowledged[i] && !is_there;
        a->unexpected += books->is_rolled_back[i] && is_there;
        a->recovered += is_there && !books->is_acknowledged[i];
    }
    (void)sqlite3_finalize(stmt);
}

static bool
is_intact(account *a)
{
    sqlite3_stmt *stmt = NULL;
    bool          ok;

    must(sqlite3_prepare_v2(a->db, "PRAGMA integrity_check", -1, &stmt, NULL) == SQLITE_OK,
         "check");
    ok = sqlite3_step(stmt) == SQLITE_ROW &&
         strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0;
    (void)sqlite3_finalize(stmt);
    return ok;
}

static int
settle(uint64_t rounds, unsigned kills)
{
    account a = {.db = open_db()};
    bool    ok;

    accept_lines(&a);
    compare_books(&a);
    a.lost += count(&a, "SELECT count(*) FROM orders WHERE id NOT IN (SELECT id FROM accepted)");
    a.unexpected +=
        count(&a, "SELECT count(DISTINCT id) FROM accepted WHERE id NOT IN (SELECT id FROM"
                  " orders)");
    a.unexpected += count(&a, "SELECT count(*) FROM ie_delivery");
    /* Event and row are one: neither without the other. */
    a.unexpected +=
        count(&a, "SELECT (SELECT count(*) FROM orders) <> (SELECT count(*) FROM ie_event)");
    a.duplicated = count(&a, "SELECT count(*) - count(DISTINCT id) FROM accepted");
    /* The first arrivals of a key stand in the order of their commits. */
    a.unexpected += count(
        &a, "WITH first AS (SELECT a.key AS key, min(a.n) AS n, e.position AS position FROM"
            " accepted a JOIN ie_event e ON e.id = a.id WHERE a.key IS NOT NULL GROUP BY a.id),"
            " steps AS (SELECT position, lag(position) OVER (PARTITION BY key ORDER BY n) AS"
            " before FROM first) SELECT count(*) FROM steps WHERE before > position");
    ok = is_intact(&a) && a.lost == 0 && a.unexpected == 0;
    (void)printf("attempts %u acknowledged %u lost %u duplicated %u recovered %u unexpected %u\n",
                 atomic_load(&books->attempts), atomic_load(&books->acknowledged), a.lost,
                 a.duplicated, a.recovered, a.unexpected);
    (void)printf("%llu rounds, %u kills, integrity %s\n", (unsigned long long)rounds, kills,
                 is_intact(&a) ? "ok" : "BROKEN");
    (void)sqlite3_close(a.db);
    return ok ? 0 : 1;
}

static void
folder_make(void)
{
    const char *base = getenv("TMPDIR");

    (void)snprintf(folder, sizeof folder, "%s/ie-crash-XXXXXX", base != NULL ? base : "/tmp");
    must(mkdtemp(folder) != NULL, "mkdtemp");
    (void)snprintf(db_path, sizeof db_path, "%s/app.db", folder);
    (void)snprintf(out_path, sizeof out_path, "%s/out.jsonl", folder);
}

static void
folder_remove(void)
{
    static const char *const ENDINGS[] = {"", "-wal", "-shm"};
    char                     path[sizeof db_path + 8];

    for (size_t i = 0; i < sizeof ENDINGS / sizeof ENDINGS[0]; i++) {
        (void)snprintf(path, sizeof path, "%s%s", db_path, ENDINGS[i]);
        (void)unlink(path); /* the last two may be gone already */
    }
    (void)unlink(out_path);
    (void)rmdir(folder);
}

static void
create(void)
{
    sqlite3 *db = open_db();

    must(ie_migrate_up(db, NULL, NULL) == IE_OK, "migrate");
    run_sql(db, "CREATE TABLE orders(id TEXT PRIMARY KEY, number INTEGER NOT NULL);"
                "CREATE INDEX orders_number ON orders(number);"
                "CREATE INDEX for_the_accounting ON ie_event(id)");
    (void)sqlite3_close(db);
}

static int
finish(void)
{
    const pid_t pid = fork();
    int         status = 0;

    must(pid >= 0, "fork");
    if (pid == 0)
        worker(true);
    must(waitpid(pid, &status, 0) == pid, "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 5;
}

int
main(void)
{
    const uint64_t rounds = test_scale(300);
    unsigned       kills = 0;
    int            rc;

    folder_make();
    (void)snprintf(url, sizeof url, "file://%s", out_path);
    random_state = test_seed();
    books = mmap(NULL, sizeof *books, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(books != MAP_FAILED, "mmap");
    create();
    for (int role = 0; role < ROLES; role++)
        begin(role);
    for (uint64_t i = 0; i < rounds; i++) {
        const int victim = (int)draw(ROLES);
        const int other = draw(4) == 0 ? (int)draw(ROLES) : victim;

        (void)poll(NULL, 0, (int)(5 + draw(120))); /* the moment is what is drawn */
        end(victim);
        kills++;
        if (other != victim) {
            end(other);
            kills++;
            begin(other);
        }
        begin(victim);
    }
    for (int role = 0; role < ROLES; role++)
        end(role);
    rc = finish();
    if (rc != 0)
        (void)fprintf(stderr, "crash_rounds: the last worker could not finish (%d)\n", rc);
    rc |= settle(rounds, kills);
    if (rc == 0)
        folder_remove();
    else
        (void)fprintf(stderr, "crash_rounds: left behind: %s\n", db_path);
    return rc;
}
