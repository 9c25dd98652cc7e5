/*
 * Publishing what waits: the worker into memory:NAME?sink=true against a raw drain of the same
 * table by a cursor (read every column of a batch of 100, one UPDATE) and of a table with a state
 * column (read a batch, UPDATE the state of its range). They take turns of a tenth of a second.
 *
 *   bench_drain drain [--events N] [--state N] [--figure NAME] [--dir FOLDER]
 *   bench_drain fill --db FILE [--events N]
 *   bench_drain memory --db FILE [--variant NAME]     the worker's peak memory with what waits in
 * this file
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH           100
#define SLICE_MS        100 /* of each variant's turn */
#define MEMORY_DRAIN_MS 1500

/* One variant on a file of its own. Each turn gives a rate and a CPU time; medians are printed. */
typedef struct side {
    const char   *variant;
    char         *path;
    sqlite3      *db; /* the floor's */
    sqlite3_stmt *select;
    sqlite3_stmt *mark;
    sqlite3_stmt *begin;
    sqlite3_stmt *commit;
    ie_worker    *worker; /* ours */
    bool          has_cursor;
    bool          is_done;
    int64_t       position;
    int64_t       drained;
    int64_t       written;
    bench_samples rates;
    bench_samples cpu_ps; /* per event, in picoseconds: medians of whole numbers */
} side;

/* ---- ours ---- */

static ie_worker *
worker_open(const char *path)
{
    ie_worker_options options;
    ie_worker        *worker = NULL;
    ie_error          err = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(&options);
    options.db = path;
    options.to = "memory:bench?sink=true";
    if (ie_worker_open(&worker, &options, &err) != IE_OK)
        bench_die("open worker: %s", err.message);
    return worker;
}

static int64_t
published(ie_worker *worker)
{
    ie_destination_stats stats = {.size = sizeof stats};

    if (ie_worker_get_destination_stats(worker, 0, &stats) != IE_OK)
        bench_die("no statistics");
    return (int64_t)stats.published;
}

static int64_t
drain_ours(side *at)
{
    ie_error        err = IE_ERROR_INIT;
    const ie_status status = ie_worker_run_once(at->worker, SLICE_MS, NULL, &err);

    if (status != IE_OK && status != IE_ETIMEDOUT)
        bench_die("run once: %s", err.message);
    at->is_done = status == IE_OK;
    return published(at->worker) - at->drained;
}

/* ---- by hand ---- */

#define COLUMNS                                                                                    \
    "position, time, not_before, expires_at, id, topic, key, type, source, content_type, headers," \
    " data"
#define COLUMN_COUNT 12
#define TEXTS_FROM   4

/* As a relay has to: every column is read and copied. */
static int64_t
read_batch(sqlite3_stmt *select, int64_t *last)
{
    static char copy[65536];
    size_t      used = 0; /* so that nothing of it is optimised away */
    int64_t     count = 0;
    int         rc;

    while ((rc = sqlite3_step(select)) == SQLITE_ROW) {
        size_t at = 0;

        *last = sqlite3_column_int64(select, 0);
        for (int i = 1; i < TEXTS_FROM; i++)
            used += (size_t)sqlite3_column_int64(select, i);
        for (int i = TEXTS_FROM; i < COLUMN_COUNT; i++) {
            const void  *text = sqlite3_column_text(select, i);
            const size_t bytes = (size_t)sqlite3_column_bytes(select, i);

            if (bytes > sizeof copy - at)
                bench_die("a row larger than expected");
            if (text != NULL)
                memcpy(copy + at, text, bytes);
            at += bytes;
        }
        used += at > 0 ? (size_t)copy[at - 1] : 0;
        count++;
    }
    if (rc != SQLITE_DONE)
        bench_die("read: %s", sqlite3_errmsg(sqlite3_db_handle(select)));
    if (count > 0 && used == 0)
        bench_die("rows without content");
    (void)sqlite3_reset(select);
    return count;
}

static int64_t
drain_by_hand(side *at)
{
    const int64_t deadline = bench_now_ns() + (int64_t)SLICE_MS * 1000000;
    int64_t       drained = 0;

    while (!at->is_done && bench_now_ns() < deadline) {
        int64_t count;

        (void)sqlite3_bind_int(at->select, 1, BATCH);
        if (at->has_cursor)
            (void)sqlite3_bind_int64(at->select, 2, at->position);
        count = read_batch(at->select, &at->position);
        if (count == 0) {
            at->is_done = true;
            break;
        }
        bench_step(at->begin);
        (void)sqlite3_bind_int64(at->mark, 1, at->position);
        bench_step(at->mark);
        bench_step(at->commit);
        drained += count;
    }
    return drained;
}

static void
side_by_hand(side *at, const char *select, const char *mark)
{
    /* A relay owns its connection: no mutex. */
    if (sqlite3_open_v2(at->path, &at->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) !=
        SQLITE_OK)
        bench_die("open %s: %s", at->path, sqlite3_errmsg(at->db));
    bench_exec(at->db, "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=1000");
    at->select = bench_prepare(at->db, select);
    at->mark = bench_prepare(at->db, mark);
    at->begin = bench_prepare(at->db, "BEGIN IMMEDIATE");
    at->commit = bench_prepare(at->db, "COMMIT");
}

/* ---- taking turns ---- */

static void
side_open(side *at, const char *variant, int64_t events)
{
    char     name[64];
    sqlite3 *db;

    memset(at, 0, sizeof *at);
    at->variant = variant;
    (void)snprintf(name, sizeof name, "drain-%s.db", variant);
    at->path = bench_path(name);
    db = bench_db_open(at->path, "NORMAL");
    if (strcmp(variant, "state") == 0) {
        bench_state_schema(db);
        bench_fill(db, "state_outbox", events);
    } else {
        bench_schema(db);
        bench_fill(db, "ie_event", events);
    }
    bench_db_close(db);
    if (strcmp(variant, "ours") == 0) {
        at->worker = worker_open(at->path);
    } else if (strcmp(variant, "raw") == 0) {
        at->has_cursor = true;
        side_by_hand(at,
                     "SELECT " COLUMNS " FROM main.ie_event WHERE position > ?2 ORDER BY position"
                     " LIMIT ?1",
                     "UPDATE main.floor_cursor SET position = ?1 WHERE name = 'relay'");
    } else {
        side_by_hand(at,
                     "SELECT " COLUMNS " FROM main.state_outbox WHERE state = 0 ORDER BY position"
                     " LIMIT ?1",
                     "UPDATE main.state_outbox SET state = 1 WHERE state = 0 AND position <= ?1");
    }
}

static void
side_turn(side *at)
{
    const int64_t written = bench_written_bytes();
    const int64_t cpu = bench_cpu_ns();
    const int64_t first = bench_now_ns();
    const int64_t count = at->worker != NULL ? drain_ours(at) : drain_by_hand(at);
    const int64_t wall = bench_now_ns() - first;

    if (count > 0 &&
        wall > (int64_t)SLICE_MS * 500000) { /* the rest of the last turn says little */
        bench_samples_add(&at->rates, (int64_t)((double)count * 1e9 / (double)wall));
        bench_samples_add(&at->cpu_ps, (bench_cpu_ns() - cpu) * 1000 / count);
    }
    at->written += bench_written_bytes() - written;
    at->drained += count;
}

static void
side_close(side *at, const char *figure, int64_t events)
{
    char name[64];

    if (at->drained != events)
        bench_die("%s: %lld drained, expected %lld", at->variant, (long long)at->drained,
                  (long long)events);
    (void)snprintf(name, sizeof name, "%s_per_s", figure);
    bench_print(name, at->variant, (double)bench_percentile(&at->rates, 0.5));
    (void)snprintf(name, sizeof name, "%s_cpu_ns", figure);
    bench_print(name, at->variant, (double)bench_percentile(&at->cpu_ps, 0.5) / 1e3);
    (void)snprintf(name, sizeof name, "%s_bytes", figure);
    bench_print(name, at->variant, (double)at->written / (double)events);
    ie_worker_close(at->worker);
    (void)sqlite3_finalize(at->select);
    (void)sqlite3_finalize(at->mark);
    (void)sqlite3_finalize(at->begin);
    (void)sqlite3_finalize(at->commit);
    if (at->db != NULL)
        bench_db_close(at->db);
    bench_samples_fini(&at->rates);
    bench_samples_fini(&at->cpu_ps);
    (void)unlink(at->path);
    free(at->path);
}

static void
measure_drain(const char *figure, int64_t events, int64_t state_events)
{
    side      sides[3];
    const int count = state_events > 0 ? 3 : 2;
    bool      is_done = false;

    side_open(&sides[0], "ours", events);
    side_open(&sides[1], "raw", events);
    if (count == 3)
        side_open(&sides[2], "state", state_events);
    while (!is_done) {
        is_done = true;
        for (int i = 0; i < count; i++) {
            if (!sides[i].is_done)
                side_turn(&sides[i]);
            is_done = is_done && sides[i].is_done;
        }
    }
    for (int i = 0; i < count; i++)
        side_close(&sides[i], figure, i == 2 ? state_events : events);
}

/* A program of its own, so that memory used for filling the file does not count as the worker's. */
static void
measure_memory(const char *path, const char *variant)
{
    ie_worker *worker = worker_open(path);
    ie_error   err = IE_ERROR_INIT;
    ie_status  status;

    status = ie_worker_run_once(worker, MEMORY_DRAIN_MS, NULL, &err);
    if (status != IE_OK && status != IE_ETIMEDOUT)
        bench_die("run once: %s", err.message);
    if (published(worker) == 0)
        bench_die("nothing was published");
    bench_print("worker_memory_kib", variant, (double)bench_peak_kib());
    ie_worker_close(worker);
}

int
main(int argc, char **argv)
{
    const char   *what = argc > 1 ? argv[1] : "";
    const char   *path = bench_text_option(argc, argv, "--db", NULL);
    const int64_t events = bench_option(argc, argv, "--events", 1000000);

    if (strcmp(what, "drain") == 0) {
        bench_dir_make(bench_text_option(argc, argv, "--dir", NULL));
        measure_drain(bench_text_option(argc, argv, "--figure", "drain"), events,
                      bench_option(argc, argv, "--state", 200000));
    } else if (strcmp(what, "fill") == 0 && path != NULL) {
        sqlite3 *db = bench_db_open(path, "NORMAL");

        bench_schema(db);
        bench_fill(db, "ie_event", events);
        bench_db_close(db);
    } else if (strcmp(what, "memory") == 0 && path != NULL) {
        measure_memory(path, bench_text_option(argc, argv, "--variant", "ours"));
    } else {
        bench_die("usage: bench_drain drain|fill|memory, see the top of bench_drain.c");
    }
    return 0;
}
