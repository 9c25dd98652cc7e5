/*
 * What the worker costs the application beside it.
 *
 *   bench_host mixed [--rounds N] [--milliseconds N] [--dir FOLDER]
 *       the application's transactions with one event each, as fast as they go, with and without a
 *       worker that publishes them, and with a relay by hand in its place; they take turns
 *   bench_host clean [--seconds N] [--events N] [--dir FOLDER]
 *       publishing with retention 0: does the table stay small; and removing so many published
 *       events against a raw DELETE in chunks
 */
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DRAINED_MS_MAX 60000

typedef struct host {
    char          *path;
    sqlite3       *db;
    sqlite3       *watcher; /* counts, on a connection of its own */
    ie_outbox     *outbox;
    bench_business business;
    bench_event    event;
    uint64_t       number;
    int64_t        waits; /* times that the write lock was taken */
} host;

/* What sqlite3_busy_timeout() does, and it counts. */
static int
on_busy(void *user, int count)
{
    static const int DELAYS_MS[] = {1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50, 100};
    const int        steps = (int)(sizeof DELAYS_MS / sizeof *DELAYS_MS);
    host            *at = user;

    at->waits++;
    (void)sqlite3_sleep(DELAYS_MS[count < steps ? count : steps - 1]);
    return count < 200;
}

static void
host_open(host *at, const char *name)
{
    ie_error err = IE_ERROR_INIT;

    memset(at, 0, sizeof *at);
    at->path = bench_path(name);
    at->db = bench_db_open(at->path, "NORMAL");
    bench_schema(at->db);
    at->watcher = bench_db_open(at->path, "NORMAL");
    (void)sqlite3_busy_handler(at->db, on_busy, at);
    bench_business_open(&at->business, at->db);
    bench_event_init(&at->event);
    if (ie_outbox_open(&at->outbox, at->db, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
}

static void
host_close(host *at)
{
    ie_outbox_close(at->outbox);
    bench_business_close(&at->business);
    bench_db_close(at->watcher);
    bench_db_close(at->db);
    free(at->path);
}

static void
host_publish(host *at)
{
    ie_error err = IE_ERROR_INIT;

    bench_business_begin(&at->business);
    bench_event_number(&at->event, at->number++);
    if (ie_publish(at->outbox, &at->event.event, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    bench_business_commit(&at->business);
}

static ie_worker *
worker_start(const host *at, bool keep)
{
    ie_worker_options options;
    ie_worker        *worker = NULL;
    ie_error          err = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(&options);
    options.db = at->path;
    options.to = "memory:bench?sink=true";
    if (!keep) {
        options.published_retention_s = 0;
        options.clean_interval_ms = 1000;
    }
    if (ie_worker_start(&worker, &options, &err) != IE_OK)
        bench_die("start worker: %s", err.message);
    return worker;
}

static void
pause_ms(int ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    (void)nanosleep(&pause, NULL);
}

/* Events that the worker has not passed yet. */
static int64_t
lag(const host *at, ie_worker *worker)
{
    ie_destination_stats stats = {.size = sizeof stats};

    if (ie_worker_get_destination_stats(worker, 0, &stats) != IE_OK)
        bench_die("no statistics");
    return bench_int(at->watcher, "SELECT ifnull(max(position), 0) FROM ie_event") - stats.position;
}

static void
await_drained(const host *at, ie_worker *worker)
{
    const int64_t deadline = bench_now_ns() + (int64_t)DRAINED_MS_MAX * 1000000;

    while (lag(at, worker) > 0) {
        if (bench_now_ns() > deadline)
            bench_die("the worker did not catch up");
        pause_ms(2);
    }
}

/* ---- a relay by hand ---- */

/* Reads up to 100 events, marks them by one UPDATE, and rests for a millisecond when there were
 * fewer. */
typedef struct relay {
    pthread_t   thread;
    const host *at;
    atomic_bool is_stopping;
    int64_t     position;
} relay;

static void *
relay_main(void *arg)
{
    relay        *self = arg;
    sqlite3      *db = bench_db_open(self->at->path, "NORMAL");
    sqlite3_stmt *select = bench_prepare(db, "SELECT * FROM main.ie_event WHERE position > ?1"
                                             " ORDER BY position LIMIT 100");
    sqlite3_stmt *mark =
        bench_prepare(db, "UPDATE main.floor_cursor SET position = ?1 WHERE name = 'relay'");
    const struct timespec rest = {.tv_nsec = 1000000};

    bench_exec(db, "PRAGMA wal_autocheckpoint=0");
    while (!atomic_load(&self->is_stopping)) {
        int     count = 0;
        int64_t bytes = 0;

        (void)sqlite3_bind_int64(select, 1, self->position);
        for (; sqlite3_step(select) == SQLITE_ROW; count++) {
            self->position = sqlite3_column_int64(select, 0);
            for (int i = 1; i < sqlite3_column_count(select); i++)
                if (sqlite3_column_text(select, i) != NULL)
                    bytes += sqlite3_column_bytes(select, i);
        }
        (void)sqlite3_reset(select);
        if (count > 0 && bytes > 0) {
            (void)sqlite3_bind_int64(mark, 1, self->position);
            bench_step(mark);
        }
        if (count < 100)
            (void)nanosleep(&rest, NULL);
    }
    (void)sqlite3_finalize(select);
    (void)sqlite3_finalize(mark);
    bench_db_close(db);
    return NULL;
}

static void
relay_start(relay *self, const host *at)
{
    atomic_store(&self->is_stopping, false);
    self->at = at;
    self->position = bench_int(at->watcher, "SELECT ifnull(max(position), 0) FROM ie_event");
    if (pthread_create(&self->thread, NULL, relay_main, self) != 0)
        bench_die("no thread");
}

static void
relay_stop(relay *self)
{
    atomic_store(&self->is_stopping, true);
    (void)pthread_join(self->thread, NULL);
}

/* ---- with and without a worker ---- */

typedef enum beside { B_ALONE, B_WORKER, B_RELAY, B_COUNT } beside;

typedef struct tally {
    bench_samples samples;
    int64_t       count;
    int64_t       wall_ns;
    int64_t       cpu_ns; /* of the application's thread */
    int64_t       waits;
    int64_t       written;
    int64_t       lag;
} tally;

static void
publish_for(host *at, tally *of, int64_t ms)
{
    const int64_t first = bench_now_ns();
    const int64_t cpu = bench_thread_cpu_ns();
    int64_t       last = first;

    at->waits = 0;
    while (last - first < ms * 1000000) {
        int64_t now;

        host_publish(at);
        now = bench_now_ns();
        bench_samples_add(&of->samples, now - last);
        last = now;
        of->count++;
    }
    of->wall_ns += last - first;
    of->cpu_ns += bench_thread_cpu_ns() - cpu;
    of->waits += at->waits;
}

static void
mixed_turn(host *at, tally *of, beside what, int64_t ms)
{
    ie_worker *worker = what == B_WORKER ? worker_start(at, true) : NULL;
    relay      by_hand;
    int64_t    behind;

    if (worker != NULL)
        await_drained(at, worker); /* what was published while there was none */
    if (what == B_RELAY)
        relay_start(&by_hand, at);
    of->written -= bench_written_bytes();
    publish_for(at, of, ms);
    if (worker != NULL) {
        behind = lag(at, worker);
        if (behind > of->lag)
            of->lag = behind;
        await_drained(at, worker);
    }
    if (what == B_RELAY)
        relay_stop(&by_hand);
    of->written += bench_written_bytes();
    ie_worker_close(worker);
}

static void
measure_mixed(int64_t rounds, int64_t ms)
{
    static const char *const NAMES[B_COUNT] = {"alone", "worker", "relay"};
    host                     at;
    tally                    of[B_COUNT];

    memset(of, 0, sizeof of);
    host_open(&at, "mixed.db");
    for (int64_t i = 0; i < B_COUNT * rounds; i++)
        mixed_turn(&at, &of[i % B_COUNT], (beside)(i % B_COUNT), ms);
    for (int i = 0; i < B_COUNT; i++) {
        const double count = (double)of[i].count;

        bench_print("host_per_s", NAMES[i], count * 1e9 / (double)of[i].wall_ns);
        bench_print("host_p50_us", NAMES[i], (double)bench_percentile(&of[i].samples, 0.5) / 1e3);
        bench_print("host_p99_us", NAMES[i], (double)bench_percentile(&of[i].samples, 0.99) / 1e3);
        bench_print("host_cpu_us", NAMES[i], (double)of[i].cpu_ns / 1e3 / count);
        bench_print("host_waits_per_1000", NAMES[i], 1000.0 * (double)of[i].waits / count);
        bench_print("host_bytes", NAMES[i], (double)of[i].written / count);
        bench_samples_fini(&of[i].samples);
    }
    bench_print("host_lag_events", "worker", (double)of[B_WORKER].lag);
    host_close(&at);
}

/* ---- cleaning ---- */

/* Two queries: SQLite takes the ends of the table only where there is one aggregate. */
#define ROWS_SQL                                                                                   \
    "SELECT ifnull((SELECT max(position) FROM ie_event) - (SELECT min(position) FROM ie_event) + " \
    "1, 0)"

/* Rows that exist while events are published, each passed on and removed at once. */
static void
measure_growth(int64_t seconds)
{
    host          at;
    ie_worker    *worker;
    const int64_t wall = bench_now_ns();
    int64_t       look_ns;
    int64_t       half_ns;
    int64_t       rows_first = 0;
    int64_t       rows_second = 0;

    host_open(&at, "growth.db");
    worker = worker_start(&at, false);
    half_ns = bench_now_ns() + seconds * 500000000;
    look_ns = bench_now_ns();
    for (int64_t now = look_ns; now < wall + seconds * 1000000000; now = bench_now_ns()) {
        host_publish(&at);
        if (now >= look_ns) {
            const int64_t rows = bench_int(at.watcher, ROWS_SQL);
            int64_t      *most = now < half_ns ? &rows_first : &rows_second;

            if (rows > *most)
                *most = rows;
            look_ns = now + 50000000;
        }
    }
    bench_print("growth_per_s", "ours", (double)at.number * 1e9 / (double)(bench_now_ns() - wall));
    bench_print("growth_rows", "first-half", (double)rows_first);
    bench_print("growth_rows", "second-half", (double)rows_second);
    bench_print("growth_lag_events", "ours", (double)lag(&at, worker));
    bench_print("growth_file_kib", "ours",
                (double)(bench_int(at.watcher, "PRAGMA page_count") * 4));
    ie_worker_close(worker);
    host_close(&at);
}

static void
await_cleaned(const host *at)
{
    const int64_t deadline = bench_now_ns() + (int64_t)DRAINED_MS_MAX * 1000000;

    while (bench_int(at->watcher, ROWS_SQL) > 1) {
        if (bench_now_ns() > deadline)
            bench_die("not everything was removed");
        pause_ms(5);
    }
}

static void
clean_ours(int64_t events)
{
    host       at;
    ie_worker *worker;
    int64_t    first;
    int64_t    cpu;
    int64_t    written;

    host_open(&at, "clean-ours.db");
    bench_fill(at.db, "ie_event", events);
    worker = worker_start(&at, true);
    await_drained(&at, worker);
    ie_worker_close(worker);
    bench_exec(at.db, "PRAGMA wal_checkpoint(TRUNCATE)");
    pause_ms(2); /* retention 0 keeps what is of this very millisecond */
    first = bench_now_ns();
    cpu = bench_cpu_ns();
    written = bench_written_bytes();
    worker = worker_start(&at, false);
    await_cleaned(&at);
    bench_print("clean_per_s", "ours", (double)events * 1e9 / (double)(bench_now_ns() - first));
    bench_print("clean_cpu_ns", "ours", (double)(bench_cpu_ns() - cpu) / (double)events);
    bench_print("clean_bytes", "ours", (double)(bench_written_bytes() - written) / (double)events);
    ie_worker_close(worker);
    host_close(&at);
}

static void
clean_raw(int64_t events)
{
    host          at;
    sqlite3_stmt *clean;
    int64_t       first;
    int64_t       cpu;
    int64_t       written;

    host_open(&at, "clean-raw.db");
    bench_fill(at.db, "ie_event", events);
    bench_exec(at.db, "DROP TRIGGER ie_event_keep_newest");
    clean = bench_prepare(at.db, "DELETE FROM ie_event WHERE position IN (SELECT position FROM"
                                 " ie_event ORDER BY position LIMIT 500)");
    first = bench_now_ns();
    cpu = bench_cpu_ns();
    written = bench_written_bytes();
    do {
        bench_step(at.business.begin);
        bench_step(clean);
        bench_step(at.business.commit);
    } while (sqlite3_changes(at.db) > 0);
    bench_print("clean_per_s", "raw", (double)events * 1e9 / (double)(bench_now_ns() - first));
    bench_print("clean_cpu_ns", "raw", (double)(bench_cpu_ns() - cpu) / (double)events);
    bench_print("clean_bytes", "raw", (double)(bench_written_bytes() - written) / (double)events);
    (void)sqlite3_finalize(clean);
    host_close(&at);
}

int
main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    bench_dir_make(bench_text_option(argc, argv, "--dir", NULL));
    if (strcmp(what, "mixed") == 0) {
        measure_mixed(bench_option(argc, argv, "--rounds", 3),
                      bench_option(argc, argv, "--milliseconds", 1000));
    } else if (strcmp(what, "clean") == 0) {
        const int64_t events = bench_option(argc, argv, "--events", 200000);

        clean_ours(events);
        clean_raw(events);
        measure_growth(bench_option(argc, argv, "--seconds", 6));
    } else {
        bench_die("usage: bench_host mixed|clean, see the top of bench_host.c");
    }
    return 0;
}
