/*
 * Publishing what waits: the worker into memory:NAME?sink=true against a raw drain of the same
 * table by a cursor (read every column of a batch of 100, one UPDATE) and of a table with a state
 * column (read a batch, UPDATE the state of its range).
 *
 *   bench_drain drain [--events N] [--state N] [--rounds N] [--figure NAME]
 *                     [--dir FOLDER]
 *   bench_drain fill --db FILE [--events N]
 *   bench_drain memory --db FILE [--variant NAME]     the worker's peak memory with what waits in this file
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define BATCH       100
#define MEMORY_DRAIN_MS 1500

typedef struct tally {
    double  seconds;
    int64_t written;
    int64_t cpu_ns;
} tally;

static void
tally_start(tally *of)
{
    of->written = bench_written_bytes();
    of->cpu_ns = bench_cpu_ns();
    of->seconds = (double)bench_now_ns() / 1e9;
}

static void
tally_stop(tally *of)
{
    of->seconds = (double)bench_now_ns() / 1e9 - of->seconds;
    of->cpu_ns = bench_cpu_ns() - of->cpu_ns;
    of->written = bench_written_bytes() - of->written;
}

static void
tally_print(const tally *of, const char *figure, const char *variant, int64_t events)
{
    char name[64];

    (void)snprintf(name, sizeof name, "%s_per_s", figure);
    bench_print(name, variant, (double)events / of->seconds);
    (void)snprintf(name, sizeof name, "%s_cpu_ns", figure);
    bench_print(name, variant, (double)of->cpu_ns / (double)events);
    (void)snprintf(name, sizeof name, "%s_bytes", figure);
    bench_print(name, variant, (double)of->written / (double)events);
}

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

static void
drain_ours(const char *path, const char *figure, int64_t events)
{
    ie_worker *worker = worker_open(path);
    ie_error   err = IE_ERROR_INIT;
    tally      of;

    tally_start(&of);
    if (ie_worker_run_once(worker, 0, NULL, &err) != IE_OK)
        bench_die("run once: %s", err.message);
    tally_stop(&of);
    if (published(worker) != events)
        bench_die("%lld published, expected %lld", (long long)published(worker), (long long)events);
    ie_worker_close(worker);
    tally_print(&of, figure, "ours", events);
}

/* ---- by hand ---- */

/* As a relay has to: every column is read and copied. */
static int64_t
read_batch(sqlite3_stmt *select, int columns, int64_t *last)
{
    static char     copy[65536];
    volatile size_t used = 0;
    int64_t         count = 0;
    int             rc;

    while ((rc = sqlite3_step(select)) == SQLITE_ROW) {
        size_t at = 0;

        *last = sqlite3_column_int64(select, 0);
        for (int i = 1; i < columns; i++) {
            if (i >= 6 && i <= 8) { /* times */
                used += (size_t)sqlite3_column_int64(select, i);
                continue;
            }
            const void  *text = sqlite3_column_text(select, i);
            const size_t bytes = (size_t)sqlite3_column_bytes(select, i);

            if (bytes > sizeof copy - at)
                bench_die("a row larger than expected");
            if (text != NULL)
                memcpy(copy + at, text, bytes);
            at += bytes;
        }
        used += at;
        count++;
    }
    if (rc != SQLITE_DONE)
        bench_die("read: %s", sqlite3_errmsg(sqlite3_db_handle(select)));
    (void)sqlite3_reset(select);
    return count;
}

#define COLUMNS                                                                                    \
    "position, id, topic, key, type, source, time, not_before, expires_at, content_type, headers," \
    " data"

static void
drain_by_hand(sqlite3 *db, const char *select_sql, const char *mark_sql, bool has_cursor,
              const char *figure, const char *variant, int64_t events)
{
    sqlite3_stmt *select = bench_prepare(db, select_sql);
    sqlite3_stmt *mark = bench_prepare(db, mark_sql);
    sqlite3_stmt *begin = bench_prepare(db, "BEGIN IMMEDIATE");
    sqlite3_stmt *commit = bench_prepare(db, "COMMIT");
    int64_t       position = 0;
    int64_t       done = 0;
    tally         of;

    tally_start(&of);
    for (;;) {
        int64_t count;

        (void)sqlite3_bind_int(select, 1, BATCH);
        if (has_cursor)
            (void)sqlite3_bind_int64(select, 2, position);
        count = read_batch(select, 12, &position);
        if (count == 0)
            break;
        bench_step(begin);
        (void)sqlite3_bind_int64(mark, 1, position);
        bench_step(mark);
        bench_step(commit);
        done += count;
    }
    tally_stop(&of);
    if (done != events)
        bench_die("%lld drained, expected %lld", (long long)done, (long long)events);
    (void)sqlite3_finalize(select);
    (void)sqlite3_finalize(mark);
    (void)sqlite3_finalize(begin);
    (void)sqlite3_finalize(commit);
    tally_print(&of, figure, variant, events);
}

static void
drain_raw(const char *path, const char *figure, int64_t events)
{
    sqlite3 *db = bench_db_open(path, "NORMAL");

    drain_by_hand(db,
                  "SELECT " COLUMNS " FROM main.ie_event WHERE position > ?2 ORDER BY position"
                  " LIMIT ?1",
                  "UPDATE main.floor_cursor SET position = ?1 WHERE name = 'relay'", true, figure,
                  "raw", events);
    bench_db_close(db);
}

static void
drain_state(const char *path, const char *figure, int64_t events)
{
    sqlite3 *db = bench_db_open(path, "NORMAL");

    drain_by_hand(db,
                  "SELECT " COLUMNS " FROM main.state_outbox WHERE state = 0 ORDER BY position"
                  " LIMIT ?1",
                  "UPDATE main.state_outbox SET state = 1 WHERE state = 0 AND position <= ?1",
                  false, figure, "state", events);
    bench_db_close(db);
}

/* ---- what is measured ---- */

static void
measure_drain(const char *figure, int64_t events, int64_t state_events, int64_t rounds)
{
    char    *path = bench_path("drain.db");
    char    *state_path = bench_path("state.db");
    sqlite3 *db = bench_db_open(path, "NORMAL");
    sqlite3 *state_db = NULL;

    bench_schema(db);
    bench_fill(db, "ie_event", events);
    if (state_events > 0) {
        state_db = bench_db_open(state_path, "NORMAL");
        bench_state_schema(state_db);
    }
    for (int64_t i = 0; i < rounds; i++) {
        /* The worker's connection never checkpoints; each variant starts with an empty WAL. */
        bench_exec(db, "DELETE FROM ie_cursor; PRAGMA wal_checkpoint(TRUNCATE)");
        drain_ours(path, figure, events);
        bench_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)");
        drain_raw(path, figure, events);
        if (state_events > 0) {
            bench_fill(state_db, "state_outbox", state_events);
            drain_state(state_path, figure, state_events);
        }
    }
    bench_db_close(db);
    if (state_db != NULL)
        bench_db_close(state_db);
    free(path);
    free(state_path);
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
                      bench_option(argc, argv, "--state", 200000),
                      bench_option(argc, argv, "--rounds", 1));
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
