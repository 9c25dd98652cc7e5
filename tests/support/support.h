/* What every test program needs: a folder of its own, waiting with an end, a virtual clock. */
#ifndef IE_TEST_SUPPORT_H
#define IE_TEST_SUPPORT_H

#include <ie/base.h>
#include <sqlite3.h>

/* Makes a fresh folder (mkdtemp) for this test; removed with all it holds by test_dir_remove(). */
const char *test_dir_make(void);
void        test_dir_remove(void);
/* "<folder>/<name>"; the text lives until the next test_dir_make(). */
const char *test_path(const char *name);

/* A real file as in production: WAL, synchronous FULL, busy timeout 5 s. */
sqlite3 *test_db_open(const char *path);
void     test_exec(sqlite3 *db, const char *sql);
/* The one integer that the query gives. */
int64_t  test_int(sqlite3 *db, const char *sql);
/* The one text that the query gives, in a static buffer; "" for NULL or no row. */
const char *test_text(sqlite3 *db, const char *sql);

/* Waiting is for something and has an end: ck_assert(poll_until(drained, worker, 5000)). */
bool poll_until(bool (*ready)(void *arg), void *arg, int wait_ms_max);

/* A clock that moves only when told. */
typedef struct test_clock {
    int64_t  wall_ms;
    int64_t  boot_ms;
    ie_clock clock;
} test_clock;
void test_clock_init(test_clock *clock, int64_t wall_ms);
void test_clock_advance(test_clock *clock, int64_t ms);

/* The seed of this run: IE_TEST_SEED or random; printed once. */
uint64_t test_seed(void);
/* How much a long test does: the value, or IE_TEST_SCALE percent of it (at least 1). */
uint64_t test_scale(uint64_t amount);

/* A free loopback TCP port at this moment. */
int test_free_port(void);

#endif
