/* Storage that fails under the worker, at every point, once and for good, and then heals. */
#include "rig.h"

#include <check.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "fault_vfs.h"

static sqlite3 *worker_db; /* the connection that the worker opened last */

static ie_status
open_faulty(void *user, sqlite3 **db, ie_error *err)
{
    (void)user;
    if (sqlite3_open_v2(the_rig.path, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX,
                        FAULT_VFS) != SQLITE_OK) {
        (void)sqlite3_close(*db);
        return ie_error_set(err, IE_EIO, "open");
    }
    worker_db = *db;
    return IE_OK;
}

static void
faults_setup(void)
{
    fault_vfs_register();
    rig_setup();
    the_rig.options.open_db = open_faulty;
    the_rig.options.published_retention_s = 0; /* cleaning has its share of the faults */
}

static void
faults_teardown(void)
{
    fault_vfs_arm(0, 0, 0, false);
    rig_teardown();
}

/* Some events of each fate: delivered, tried again, rejected, blocked. */
static void
load(void)
{
    static const fake_rule rules[] = {
        {.key = "k1", .to = 1, .verdict = IE_RETRY, .reason = "once more"},
        {.key = "k2", .verdict = IE_REJECTED, .reason = "no"}};

    fake_script(the_rig.fake, rules, 2);
    rig_publish_many(12, 4);
}

static bool
is_done(uint64_t batches)
{
    return fake_distinct(the_rig.fake) == batches * 9 &&
           rig_deliveries("dead") == (int64_t)batches * 3 &&
           test_int(the_rig.db, "SELECT count(*) FROM ie_delivery WHERE state <> 'dead'") == 0;
}

static const struct {
    const char *name;
    unsigned    operations;
    int         code;
} KINDS[] = {
    {"write", FAULT_WRITE, SQLITE_IOERR},
    {"full", FAULT_WRITE, SQLITE_FULL},
    {"sync, truncate, delete", FAULT_SYNC | FAULT_TRUNCATE | FAULT_DELETE, SQLITE_IOERR},
    {"read", FAULT_READ, SQLITE_IOERR},
};

/* _i: kind of fault, and whether it stays until somebody mends it. */
START_TEST(a_fault_at_any_operation_loses_nothing)
{
    const int  kind = _i % 4;
    const bool sticky = _i >= 4;
    uint64_t   n = 0;
    uint64_t   twice = 0;
    bool       fired = true;

    if (kind == 2)
        test_exec(the_rig.db, "PRAGMA journal_mode=DELETE"); /* WAL syncs nothing for marks */
    rig_virtual();
    /* Cleaning goes by the events' own time, which is the real one. */
    the_rig.clock.wall_ms = ie__wall_ms(&ie__system_clock) + 3600000;
    while (fired) {
        ie_worker *worker = rig_worker();
        uint64_t   had = fake_received(the_rig.fake);

        n++;
        load();
        fault_vfs_arm(n, KINDS[kind].operations, KINDS[kind].code, sticky);
        (void)ie_worker_run_once(worker, 2000, NULL, NULL);
        test_clock_advance(&the_rig.clock, 1000);
        (void)ie_worker_run_once(worker, 2000, NULL, NULL);
        fired = fault_vfs_fired() > 0;
        fault_vfs_arm(0, 0, 0, false);
        for (int i = 0; i < 40 && !is_done(n); i++) { /* healed: the same worker goes on */
            test_clock_advance(&the_rig.clock, 1000);
            (void)ie_worker_run_once(worker, 2000, NULL, NULL);
        }
        ck_assert_msg(is_done(n), "%s %llu%s: %llu delivered, %lld dead", KINDS[kind].name,
                      (unsigned long long)n, sticky ? " and on" : "",
                      (unsigned long long)fake_distinct(the_rig.fake),
                      (long long)rig_deliveries("dead"));
        had = fake_received(the_rig.fake) - had;
        ck_assert_uint_ge(had, 15); /* 9 + 3 tried again + 3 rejected */
        ck_assert_uint_le(had, 15 + 12);
        twice += had - 15;
        ie_worker_close(worker);
        ck_assert_str_eq(test_text(the_rig.db, "PRAGMA integrity_check"), "ok");
        ck_assert_uint_lt(n, 1000);
    }
    (void)fprintf(stderr, "%s%s: %llu points, %llu events sent twice\n", KINDS[kind].name,
                  sticky ? " from then on" : " once", (unsigned long long)n - 1,
                  (unsigned long long)twice);
    ck_assert_uint_gt(n, 3);
    fake_check_order(the_rig.fake, false);
}
END_TEST

/* The same, but the worker's process dies with the fault, and another comes when all is well. */
static ie_worker *left[40]; /* kept, so that nobody calls them a leak */

START_TEST(a_fault_and_a_new_worker_lose_nothing)
{
    size_t count = 0;

    rig_virtual();
    for (uint64_t n = 1; n <= sizeof left / sizeof left[0]; n++) {
        ie_worker *worker = rig_worker();

        load();
        fault_vfs_arm(n, FAULT_ALL, n % 2 == 0 ? SQLITE_FULL : SQLITE_IOERR, true);
        (void)ie_worker_run_once(worker, 100, NULL, NULL);
        left[count++] = worker; /* never heard of again */
        fault_vfs_arm(0, 0, 0, false);
        test_clock_advance(&the_rig.clock, the_rig.options.lease_ms + 1);
        worker = rig_worker();
        for (int i = 0; i < 40 && !is_done(n); i++) {
            test_clock_advance(&the_rig.clock, 1000);
            (void)ie_worker_run_once(worker, 2000, NULL, NULL);
        }
        ck_assert_msg(is_done(n), "round %llu", (unsigned long long)n);
        ie_worker_close(worker);
    }
    ck_assert_ptr_ne(left[0], left[count - 1]);
    fake_check_order(the_rig.fake, false);
}
END_TEST

/* The worker has met the fault, said so, and tried twice more after its pauses (one write fails per
 * try). */
static bool
has_failed_to_write_thrice(void *unused)
{
    (void)unused;
    return atomic_load(&the_rig.errors) > 0 && fault_vfs_fired() >= 3;
}

START_TEST(publishing_stops_when_it_cannot_be_written_down)
{
    const int  codes[] = {SQLITE_FULL, SQLITE_IOERR};
    ie_worker *worker;
    uint64_t   received;
    uint64_t   before;

    the_rig.options.in_flight_max = 100;
    the_rig.options.batch_max = 50;
    worker = rig_start();
    rig_publish_many(1000, 50);
    ck_assert(rig_wait_distinct(1000, 10000));
    fault_vfs_arm(1, FAULT_WRITE, codes[_i], true);
    before = fake_received(the_rig.fake);
    rig_publish_many(10000, 50);
    ck_assert(poll_until(has_failed_to_write_thrice, NULL, 10000));
    received = fake_received(the_rig.fake) - before;
    ck_assert_int_eq(the_rig.last_status, _i == 0 ? IE_EFULL : IE_EIO);
    ck_assert_uint_le(received, 100 + 50);
    (void)fprintf(stderr, "sent without being able to write it down: %llu of a window of 100\n",
                  (unsigned long long)received);
    fault_vfs_arm(0, 0, 0, false);
    ck_assert(rig_wait_distinct(11000, 10000));
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ck_assert_uint_eq(fake_received(the_rig.fake), 11000); /* and nothing twice */
    ie_worker_close(worker);
    ck_assert_int_eq(rig_cursor(), rig_newest());
}
END_TEST

/* A disk that fills up and is emptied, again and again, by the size that the file may have. */
START_TEST(a_disk_that_fills_and_empties_only_costs_time)
{
    static const fake_rule rules[] = {
        {.to = 1, .verdict = IE_RETRY, .reason = "makes rows to be stored"}};
    ie_worker *worker;
    uint64_t   total = 0;
    int        full = 0;
    char       sql[64];

    fake_script(the_rig.fake, rules, 1);
    rig_virtual();
    worker = rig_worker();
    for (uint64_t cycle = 0; cycle < test_scale(50); cycle++) {
        rig_publish_many(100, 30);
        total += 100;
        (void)snprintf(sql, sizeof sql, "PRAGMA max_page_count=%lld",
                       (long long)test_int(the_rig.db, "PRAGMA page_count"));
        test_exec(worker_db, sql);
        for (int i = 0; i < 3; i++) {
            full += ie_worker_run_once(worker, 2000, NULL, NULL) == IE_EFULL;
            test_clock_advance(&the_rig.clock, 700);
        }
        test_exec(worker_db, "PRAGMA max_page_count=1000000");
        for (int i = 0; i < 100 && fake_distinct(the_rig.fake) < total; i++) {
            test_clock_advance(&the_rig.clock, 700);
            (void)ie_worker_run_once(worker, 2000, NULL, NULL);
        }
        ck_assert_uint_eq(fake_distinct(the_rig.fake), total);
    }
    (void)fprintf(stderr, "full %d times\n", full);
    ck_assert_int_gt(full, 0);
    ie_worker_close(worker);
    ck_assert_int_eq(rig_deliveries("dead"), 0);
    fake_check_order(the_rig.fake, false);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("faults");
    TCase   *tcase = tcase_create("faults");
    SRunner *runner;
    int      failed;

    tcase_add_checked_fixture(tcase, faults_setup, faults_teardown);
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, a_fault_at_any_operation_loses_nothing, 0, 8);
    tcase_add_test(tcase, a_fault_and_a_new_worker_lose_nothing);
    tcase_add_loop_test(tcase, publishing_stops_when_it_cannot_be_written_down, 0, 2);
    tcase_add_test(tcase, a_disk_that_fills_and_empties_only_costs_time);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
