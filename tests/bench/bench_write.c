/*
 * Writing events: ie_publish() against a raw prepared INSERT of the same columns into the same
 * table, and the application's transaction with one event in it, ours and by hand.
 *
 * The variants take turns in short blocks within one process, each on a file of its own, so that
 * whatever else the machine does hits all of them alike.
 *
 *   bench_write [--events N] [--transactions N] [--full N] [--dir FOLDER]
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

typedef enum variant { V_OURS, V_RAW, V_STATE, V_BUSINESS, V_COUNT } variant;

static const char *const NAMES[V_COUNT] = {"ours", "raw", "state", "business"};

typedef struct side {
    variant        kind;
    char          *path;
    sqlite3       *db;
    ie_outbox     *outbox;
    sqlite3_stmt  *insert;
    bench_business business;
    bench_event    event;
    uint64_t       number;
    bench_samples  samples; /* ns per transaction, or CPU ns per block */
    int64_t        wall_ns;
    int64_t        written;
    int64_t        count;
} side;

static void
side_open(side *at, variant kind, const char *name, const char *synchronous)
{
    ie_error err = IE_ERROR_INIT;

    memset(at, 0, sizeof *at);
    at->kind = kind;
    at->path = bench_path(name);
    at->db = bench_db_open(at->path, synchronous);
    if (kind == V_STATE)
        bench_state_schema(at->db);
    else
        bench_schema(at->db);
    bench_business_open(&at->business, at->db);
    bench_event_init(&at->event);
    if (kind == V_OURS && ie_outbox_open(&at->outbox, at->db, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    if (kind == V_RAW || kind == V_STATE)
        at->insert = bench_raw_insert(at->db, kind == V_RAW ? "ie_event" : "state_outbox");
}

static void
side_close(side *at)
{
    ie_outbox_close(at->outbox);
    (void)sqlite3_finalize(at->insert);
    bench_business_close(&at->business);
    bench_db_close(at->db);
    bench_samples_fini(&at->samples);
    free(at->path);
}

static void
side_put(side *at)
{
    ie_error err = IE_ERROR_INIT;

    bench_event_number(&at->event, at->number);
    if (at->insert != NULL)
        bench_raw_put(at->insert, &at->event, at->number);
    else if (at->outbox != NULL && ie_publish(at->outbox, &at->event.event, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    at->number++;
}

/* ---- inside an open transaction ---- */

static void
insert_block(side *at, int64_t events)
{
    int64_t wall;
    int64_t cpu;

    bench_exec(at->db, "BEGIN IMMEDIATE");
    wall = bench_now_ns();
    cpu = bench_thread_cpu_ns();
    for (int64_t i = 0; i < events; i++)
        side_put(at);
    bench_samples_add(&at->samples, bench_thread_cpu_ns() - cpu);
    at->wall_ns += bench_now_ns() - wall;
    at->count += events;
    bench_exec(at->db, "COMMIT");
}

static void
measure_inserts(int64_t events)
{
    enum { BLOCK = 500 };
    side sides[2];

    side_open(&sides[0], V_OURS, "insert-ours.db", "NORMAL");
    side_open(&sides[1], V_RAW, "insert-raw.db", "NORMAL");
    for (int64_t done = 0; done < events; done += BLOCK)
        for (int i = 0; i < 2; i++)
            insert_block(&sides[i], BLOCK);
    for (int i = 0; i < 2; i++) {
        bench_print("insert_cpu_ns", NAMES[sides[i].kind],
                    (double)bench_percentile(&sides[i].samples, 0.5) / BLOCK);
        bench_print("insert_wall_ns", NAMES[sides[i].kind],
                    (double)sides[i].wall_ns / (double)sides[i].count);
        side_close(&sides[i]);
    }
}

/* ---- one event in the application's transaction ---- */

static void
transaction_block(side *at, int64_t transactions)
{
    const int64_t written = bench_written_bytes();
    const int64_t first = bench_now_ns();
    int64_t       last = first;

    for (int64_t i = 0; i < transactions; i++) {
        int64_t now;

        bench_business_begin(&at->business);
        side_put(at);
        bench_business_commit(&at->business);
        now = bench_now_ns();
        bench_samples_add(&at->samples, now - last);
        last = now;
    }
    at->wall_ns += last - first;
    at->written += bench_written_bytes() - written;
    at->count += transactions;
}

static void
measure_transactions(const char *synchronous, const char *word, int64_t transactions, int variants)
{
    enum { BLOCK = 250 };
    side sides[V_COUNT];
    char name[64];

    for (int i = 0; i < variants; i++) {
        (void)snprintf(name, sizeof name, "%s-%s.db", word, NAMES[i]);
        side_open(&sides[i], (variant)i, name, synchronous);
    }
    for (int64_t done = 0; done < transactions; done += BLOCK)
        for (int i = 0; i < variants; i++)
            transaction_block(&sides[i], BLOCK);
    for (int i = 0; i < variants; i++) {
        side *at = &sides[i];

        (void)snprintf(name, sizeof name, "transaction_%s_per_s", word);
        bench_print(name, NAMES[i], (double)at->count * 1e9 / (double)at->wall_ns);
        (void)snprintf(name, sizeof name, "transaction_%s_p50_us", word);
        bench_print(name, NAMES[i], (double)bench_percentile(&at->samples, 0.5) / 1e3);
        (void)snprintf(name, sizeof name, "transaction_%s_p99_us", word);
        bench_print(name, NAMES[i], (double)bench_percentile(&at->samples, 0.99) / 1e3);
        (void)snprintf(name, sizeof name, "transaction_%s_bytes", word);
        bench_print(name, NAMES[i], (double)at->written / (double)at->count);
        side_close(at);
    }
}

int
main(int argc, char **argv)
{
    bench_dir_make(bench_text_option(argc, argv, "--dir", NULL));
    measure_inserts(bench_option(argc, argv, "--events", 100000));
    measure_transactions("NORMAL", "normal", bench_option(argc, argv, "--transactions", 20000),
                         V_COUNT);
    measure_transactions("FULL", "full", bench_option(argc, argv, "--full", 4000), V_STATE);
    return 0;
}
