/*
 * The two figures that are the same on every machine, asserted: bytes that the application writes
 * for one UPDATE and one event, and bytes that the worker writes for each event that it publishes
 * in batches of 100. Beside them the same by raw SQLite.
 */
#include "bench.h"

#include <stdlib.h>

#define EVENTS              20000
#define EVENT_BYTES_MAX     10100
#define PUBLISHED_BYTES_MAX 60

typedef struct counted {
    double event;     /* bytes per transaction with one event */
    double published; /* bytes per published event */
} counted;

static double
count_events(sqlite3 *db, bool is_raw)
{
    sqlite3_stmt  *insert = bench_raw_insert(db, "ie_event");
    ie_outbox     *outbox = NULL;
    bench_business business;
    bench_event    event;
    int64_t        written;
    ie_error       err = IE_ERROR_INIT;

    if (ie_outbox_open(&outbox, db, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    bench_business_open(&business, db);
    bench_event_init(&event);
    written = bench_written_bytes();
    for (uint64_t i = 0; i < EVENTS; i++) {
        bench_business_begin(&business);
        bench_event_number(&event, i);
        if (is_raw)
            bench_raw_put(insert, &event, i);
        else if (ie_publish(outbox, &event.event, NULL, &err) != IE_OK)
            bench_die("%s", err.message);
        bench_business_commit(&business);
    }
    bench_exec(db, "PRAGMA wal_checkpoint(PASSIVE)");
    written = bench_written_bytes() - written;
    bench_business_close(&business);
    ie_outbox_close(outbox);
    (void)sqlite3_finalize(insert);
    return (double)written / EVENTS;
}

static double
count_published(const char *path)
{
    ie_worker_options options;
    ie_worker        *worker = NULL;
    int64_t           written;
    ie_error          err = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(&options);
    options.db = path;
    options.to = "memory:exact?sink=true";
    options.batch_max = 100;
    if (ie_worker_open(&worker, &options, &err) != IE_OK)
        bench_die("%s", err.message);
    written = bench_written_bytes();
    if (ie_worker_run_once(worker, 60000, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    written = bench_written_bytes() - written;
    ie_worker_close(worker);
    return (double)written / EVENTS;
}

static double
count_marks(sqlite3 *db)
{
    sqlite3_stmt *mark = bench_prepare(db, "UPDATE floor_cursor SET position = ?1");
    const int64_t written = bench_written_bytes();

    for (int i = 0; i < EVENTS / 100; i++) {
        (void)sqlite3_bind_int(mark, 1, i);
        bench_step(mark);
    }
    (void)sqlite3_finalize(mark);
    bench_exec(db, "PRAGMA wal_checkpoint(PASSIVE)");
    return (double)(bench_written_bytes() - written) / EVENTS;
}

static counted
count(const char *name, bool is_raw)
{
    char    *path = bench_path(name);
    sqlite3 *db = bench_db_open(path, "NORMAL");
    counted  of;

    bench_schema(db);
    of.event = count_events(db, is_raw);
    of.published = is_raw ? count_marks(db) : count_published(path);
    bench_db_close(db);
    free(path);
    return of;
}

int
main(int argc, char **argv)
{
    counted ours;
    counted raw;

    bench_dir_make(bench_text_option(argc, argv, "--dir", NULL));
    ours = count("ours.db", false);
    raw = count("raw.db", true);
    bench_print("exact_event_bytes", "ours", ours.event);
    bench_print("exact_event_bytes", "raw", raw.event);
    bench_print("exact_published_bytes", "ours", ours.published);
    bench_print("exact_published_bytes", "raw", raw.published);
    if (ours.event > EVENT_BYTES_MAX)
        bench_die("%.0f bytes written per event, at most %d allowed", ours.event, EVENT_BYTES_MAX);
    if (ours.published > PUBLISHED_BYTES_MAX)
        bench_die("%.1f bytes written per published event, at most %d allowed", ours.published,
                  PUBLISHED_BYTES_MAX);
    return 0;
}
