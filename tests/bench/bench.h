/*
 * What the benchmark programs share: clocks, byte counts, samples, a folder for the databases, one
 * event in two forms (ours, and raw SQLite on the same table), and one line per figure on stdout:
 *
 *   <figure> <variant> <value>
 */
#ifndef IE_BENCH_H
#define IE_BENCH_H

#include <ie/ie.h>
#include <sqlite3.h>

#include <stdint.h>
#include <stdio.h>

#define BENCH_ACCOUNTS   10000
#define BENCH_DATA_BYTES 256

/* Says what went wrong on stderr and ends the program with status 1. */
void bench_die(const char *fmt, ...) IE_PRINTF(1, 2) __attribute__((noreturn));
void bench_print(const char *figure, const char *variant, double value);

/* "--name VALUE" on the command line, or the fallback. */
const char *bench_text_option(int argc, char **argv, const char *name, const char *fallback);
int64_t     bench_option(int argc, char **argv, const char *name, int64_t fallback);

int64_t bench_now_ns(void);        /* CLOCK_MONOTONIC, the same in every process */
int64_t bench_thread_cpu_ns(void); /* of the calling thread */
int64_t bench_cpu_ns(void);        /* of the process, all threads */
/* Bytes that this process handed to write() so far, cached or not. */
int64_t bench_written_bytes(void);
/* The highest resident memory of this process so far. */
int64_t bench_peak_kib(void);

typedef struct bench_samples {
    int64_t *values;
    size_t   count;
    size_t   capacity;
} bench_samples;
void    bench_samples_add(bench_samples *samples, int64_t value);
int64_t bench_percentile(bench_samples *samples, double q); /* sorts; 0 when there are none */
void    bench_samples_fini(bench_samples *samples);

/* A folder of this process's own, removed with all it holds when the program ends. */
void        bench_dir_make(const char *parent);
const char *bench_dir(void);
/* "<folder>/<name>", to be released with free(). */
char *bench_path(const char *name);

/* ---- databases as an application has them: WAL, automatic checkpoints, busy timeout 10 s ---- */

sqlite3      *bench_db_open(const char *path, const char *synchronous);
void          bench_db_close(sqlite3 *db);
void          bench_exec(sqlite3 *db, const char *sql);
int64_t       bench_int(sqlite3 *db, const char *sql);
sqlite3_stmt *bench_prepare(sqlite3 *db, const char *sql);
void          bench_step(sqlite3_stmt *stmt); /* a statement without rows */
/* The tables of ie, the account table with its rows, and the floor's own cursor. */
void bench_schema(sqlite3 *db);
/* What people write by hand: the same columns and a state, with a partial index on what is pending.
 */
void bench_state_schema(sqlite3 *db);
/* Pending events, a thousand in each transaction: ie_event by ie_publish(), others by raw SQL. */
void bench_fill(sqlite3 *db, const char *table, int64_t count);

/* The application's own transaction, by prepared statements: one UPDATE of one account. */
typedef struct bench_business {
    sqlite3_stmt *begin;
    sqlite3_stmt *update;
    sqlite3_stmt *commit;
    uint64_t      random;
} bench_business;
void bench_business_open(bench_business *business, sqlite3 *db);
void bench_business_close(bench_business *business);
void bench_business_begin(bench_business *business); /* BEGIN IMMEDIATE and the UPDATE */
void bench_business_commit(bench_business *business);

/* ---- the event ---- */

/* Topic 14 bytes, key 16, type 15, two headers that are 78 bytes as stored, data 256 bytes of JSON.
 */
typedef struct bench_event {
    ie_event  event;
    ie_header headers[2];
    char      key[32];
    char      data[BENCH_DATA_BYTES + 1];
} bench_event;
void bench_event_init(bench_event *event);
void bench_event_number(bench_event *event, uint64_t number); /* its key */
/* A time in the data, and reading it back: 20 digits at a fixed place. */
void    bench_event_stamp(bench_event *event, int64_t ns);
int64_t bench_event_stamp_of(const ie_event *event);

/* The floor: one prepared INSERT of the same columns with the same bytes. */
sqlite3_stmt *bench_raw_insert(sqlite3 *db, const char *table);
void          bench_raw_put(sqlite3_stmt *insert, const bench_event *event, uint64_t number);

#endif
