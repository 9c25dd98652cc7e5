/* The worker against a publisher that does everything a publisher may do, and some that it must
 * not. */
#include "rig.h"

#include <check.h>
#include <errno.h>
#include <ie/migrate.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"

#define SCRIPT(...)                                                                                \
    fake_script(the_rig.fake, (const fake_rule[]){__VA_ARGS__},                                    \
                sizeof((const fake_rule[]){__VA_ARGS__}) / sizeof(fake_rule))

static const char *
reason_at(int64_t position)
{
    char sql[128];

    (void)snprintf(sql, sizeof sql, "SELECT reason FROM ie_delivery WHERE position = %lld",
                   (long long)position);
    return test_text(the_rig.db, sql);
}

static int64_t
number_at(const char *column, int64_t position)
{
    char sql[160];

    (void)snprintf(sql, sizeof sql,
                   "SELECT coalesce((SELECT %s FROM ie_delivery WHERE position = %lld), -1)",
                   column, (long long)position);
    return test_int(the_rig.db, sql);
}

/* ---- what was committed
 * ---------------------------------------------------------------------------- */

START_TEST(run_once_publishes_what_is_committed)
{
    ie_worker_report report;

    rig_publish_many(2500, 7);
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_uint_eq(report.published, 2500);
    ck_assert_uint_eq(report.pending, 0);
    ck_assert_uint_eq(fake_received(the_rig.fake), 2500);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 2500);
    ck_assert_uint_eq(atomic_load(&the_rig.published), 2500);
    ck_assert_int_eq(rig_cursor(), rig_newest());
    fake_check_order(the_rig.fake, false);
}
END_TEST

START_TEST(a_thread_publishes_what_is_committed)
{
    ie_worker *worker = rig_start();

    rig_publish_many(2500, 7);
    ck_assert(rig_wait_distinct(2500, 10000));
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ie_worker_close(worker);
    ck_assert_int_eq(rig_cursor(), rig_newest());
    ck_assert_uint_eq(fake_received(the_rig.fake), 2500);
}
END_TEST

START_TEST(a_rollback_takes_its_events_along)
{
    for (int i = 0; i < 50; i++) {
        ie_event event = IE_EVENT_INIT;

        event.topic = i % 2 == 0 ? "kept" : "gone";
        test_exec(the_rig.db, "BEGIN");
        ck_assert_int_eq(ie_publish(the_rig.outbox, &event, NULL, NULL), IE_OK);
        test_exec(the_rig.db, i % 2 == 0 ? "COMMIT" : "ROLLBACK");
        if (i % 10 == 5)
            ck_assert_int_eq(rig_run(NULL), IE_OK);
    }
    SCRIPT({.topic = "gone", .verdict = IE_REJECTED});
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 25);
    ck_assert_int_eq(rig_deliveries("dead"), 0);
}
END_TEST

/* A process of its own commits; only the file system can tell the worker, for it polls once a
 * minute. */
typedef struct waker {
    _Atomic int64_t committed_ns[400];
    int             count;
    int             pause_ms;
} waker;

static void
commit_slowly(void *arg)
{
    waker *w = arg;

    rig_db_open();
    for (int i = 0; i < w->count; i++) {
        (void)poll(NULL, 0, w->pause_ms);
        const int64_t position = rig_publish("t", NULL);

        atomic_store(&w->committed_ns[position], ie__mono_ns());
    }
    rig_db_close();
}

static int
by_value(const void *a, const void *b)
{
    const int64_t left = *(const int64_t *)a;
    const int64_t right = *(const int64_t *)b;

    return left < right ? -1 : left > right;
}

static void *
burn(void *stop)
{
    volatile unsigned work = 0;

    while (!atomic_load((atomic_bool *)stop))
        work++;
    return NULL;
}

START_TEST(a_commit_elsewhere_wakes_the_worker_without_polling)
{
    enum { COMMITS = 200 };
    waker *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ie_worker      *worker;
    atomic_bool     stop = false;
    pthread_t       load[2];
    int64_t         late_ns[COMMITS];
    pid_t           pid;
    ie_worker_stats stats = {.size = sizeof stats};

    ck_assert(shared != MAP_FAILED);
    shared->count = COMMITS;
    shared->pause_ms = 5;
    the_rig.options.poll_ms = 60000;
    pid = rig_fork(commit_slowly, shared); /* before there are threads */
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(pthread_create(&load[i], NULL, burn, &stop), 0);
    worker = rig_start();
    ck_assert_int_eq(rig_reap(pid), 0);
    ck_assert(rig_wait_distinct(COMMITS, 5000));
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        (void)pthread_join(load[i], NULL);
    ck_assert_int_eq(ie_worker_get_stats(worker, &stats), IE_OK);
    ie_worker_close(worker);
    for (int i = 0; i < COMMITS; i++)
        late_ns[i] = fake_when_ns(the_rig.fake, i + 1) - atomic_load(&shared->committed_ns[i + 1]);
    qsort(late_ns, COMMITS, sizeof late_ns[0], by_value);
    (void)fprintf(stderr,
                  "wake under load: p50 %.3f ms, p99 %.3f ms, max %.3f ms; wakes %llu polls %llu\n",
                  (double)late_ns[COMMITS / 2] / 1e6, (double)late_ns[COMMITS * 99 / 100] / 1e6,
                  (double)late_ns[COMMITS - 1] / 1e6, (unsigned long long)stats.wakes,
                  (unsigned long long)stats.polls);
    ck_assert_int_lt(late_ns[COMMITS * 95 / 100], 100000000);
    (void)munmap(shared, sizeof *shared);
}
END_TEST

/* The -wal is written long before the commit shows when the disk is slow or the transaction big. */
START_TEST(a_commit_that_takes_long_is_noticed_when_it_is_done)
{
    ie_worker *worker;

    the_rig.options.poll_ms = 60000;
    worker = rig_start();
    for (int i = 0; i < 3; i++) {
        const uint64_t had = fake_distinct(the_rig.fake);

        test_exec(the_rig.db, "PRAGMA cache_size=10; PRAGMA cache_spill=ON; BEGIN IMMEDIATE;"
                              "CREATE TABLE IF NOT EXISTS big(x)");
        test_exec(the_rig.db,
                  "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 500)"
                  " INSERT INTO big SELECT randomblob(2000) FROM c");
        test_exec(the_rig.db, "INSERT INTO ie_event(topic) VALUES ('late')");
        (void)poll(NULL, 0, i * 60); /* written already, not committed yet */
        test_exec(the_rig.db, "COMMIT");
        ck_assert(rig_wait_distinct(had + 1, 3000));
    }
    ie_worker_close(worker);
}
END_TEST

/* ---- verdicts
 * ---------------------------------------------------------------------------------------- */

START_TEST(a_retry_spends_an_attempt_and_is_delivered_later)
{
    ie_worker_report report;
    int64_t          position;

    rig_virtual();
    the_rig.options.retry_delay_ms = 1000;
    the_rig.options.retry_delay_max_ms = 8000;
    SCRIPT({.to = 2, .verdict = IE_RETRY, .reason = "not now"});
    position = rig_publish("t", "k");
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_uint_eq(report.retried, 1);
    ck_assert_uint_eq(report.pending, 1);
    ck_assert_int_eq(number_at("attempts", position), 1);
    ck_assert_str_eq(reason_at(position), "not now");
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_uint_eq(fake_received(the_rig.fake), 1 + (report.retried != 0));
    test_clock_advance(&the_rig.clock, 1000);
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_int_eq(number_at("attempts", position), 2);
    test_clock_advance(&the_rig.clock, 2000);
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_uint_eq(report.published, 1);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ck_assert_uint_eq(fake_received(the_rig.fake), 3);
}
END_TEST

START_TEST(backoff_is_full_jitter_within_its_bounds)
{
    ie_worker *worker;
    bool       has_low = false;
    bool       has_high = false;

    rig_virtual();
    the_rig.options.retry_delay_ms = 1000;
    the_rig.options.retry_delay_max_ms = 60000;
    SCRIPT({.verdict = IE_RETRY, .reason = "never"});
    rig_publish_many(400, 0);
    worker = rig_worker();
    for (int attempt = 1; attempt <= 9; attempt++) {
        const int64_t ceiling = 1000LL << (attempt - 1) < 60000 ? 1000LL << (attempt - 1) : 60000;
        const int64_t now = the_rig.clock.wall_ms;
        char          sql[256];

        ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
        ck_assert_int_eq(rig_deliveries("retrying"), 400);
        (void)snprintf(
            sql, sizeof sql,
            "SELECT count(*) FROM ie_delivery WHERE attempts = %d AND due_at BETWEEN %lld AND %lld",
            attempt, (long long)(now + 50), (long long)(now + ceiling));
        ck_assert_int_eq(test_int(the_rig.db, sql), 400);
        (void)snprintf(sql, sizeof sql, "SELECT count(*) FROM ie_delivery WHERE due_at < %lld",
                       (long long)(now + ceiling / 4));
        has_low = has_low || test_int(the_rig.db, sql) > 40;
        (void)snprintf(sql, sizeof sql, "SELECT count(*) FROM ie_delivery WHERE due_at > %lld",
                       (long long)(now + ceiling * 3 / 4));
        has_high = has_high || test_int(the_rig.db, sql) > 40;
        test_clock_advance(&the_rig.clock, ceiling + 1);
    }
    ck_assert(has_low && has_high);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_retry_after_is_obeyed_even_beyond_the_longest_backoff)
{
    int64_t position;

    rig_virtual();
    the_rig.options.retry_delay_max_ms = 1000;
    SCRIPT({.to = 1, .verdict = IE_RETRY, .reason = "in ten minutes", .retry_after_ms = 600000});
    position = rig_publish("t", NULL);
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(rig_run(NULL), IE_OK);
        ck_assert_uint_eq(fake_received(the_rig.fake), 1);
        test_clock_advance(&the_rig.clock, 119000);
    }
    ck_assert_int_eq(number_at("attempts", position), 1);
    test_clock_advance(&the_rig.clock, 6000);
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    ck_assert_uint_eq(fake_delivered(the_rig.fake), 1);
}
END_TEST

START_TEST(attempts_used_up_mean_dead_with_the_last_reason)
{
    ie_worker       *worker;
    ie_worker_report report;

    rig_virtual();
    the_rig.options.attempts_max = 3;
    SCRIPT({.topic = "bad", .to = 2, .verdict = IE_RETRY, .reason = "no"},
           {.topic = "bad", .verdict = IE_RETRY, .reason = "last words"},
           {.topic = "mute", .verdict = IE_RETRY});
    const int64_t bad = rig_publish("bad", NULL);
    const int64_t mute = rig_publish("mute", NULL);

    (void)rig_publish("good", NULL);
    worker = rig_worker();
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
        test_clock_advance(&the_rig.clock, 1000);
    }
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ie_worker_close(worker);
    ck_assert_int_eq(rig_deliveries("dead"), 2);
    ck_assert_int_eq(number_at("attempts", bad), 3);
    ck_assert_str_eq(reason_at(bad), "last words");
    ck_assert_str_ne(reason_at(mute), "");
    ck_assert_uint_eq(atomic_load(&the_rig.dead), 2);
    ck_assert_uint_eq(fake_seen(the_rig.fake, bad), 3);
    ck_assert_uint_eq(fake_delivered(the_rig.fake), 1);
}
END_TEST

START_TEST(a_rejected_event_is_dead_at_once_with_its_reason)
{
    ie_worker_report report;

    SCRIPT({.topic = "bad", .verdict = IE_REJECTED, .reason = "schema says no"},
           {.topic = "mute", .verdict = IE_REJECTED});
    const int64_t bad = rig_publish("bad", "k");
    const int64_t mute = rig_publish("mute", NULL);

    (void)rig_publish("good", "k");
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_uint_eq(report.dead, 2);
    ck_assert_uint_eq(report.published, 1);
    ck_assert_str_eq(reason_at(bad), "schema says no");
    ck_assert_str_ne(reason_at(mute), "");
    ck_assert_uint_eq(fake_seen(the_rig.fake, bad), 1);
    ck_assert_uint_eq(atomic_load(&the_rig.dead), 2);
}
END_TEST

START_TEST(an_outage_spends_nothing_and_holds_up_nobody_else)
{
    fake                *other = fake_new("b");
    const ie_destination both[] = {
        {.size = sizeof both[0], .name = "a", .url = "fake:a"},
        {.size = sizeof both[0], .name = "b", .url = "fake:b"},
    };
    ie_worker       *worker;
    ie_worker_report report;
    uint64_t         before;

    rig_virtual();
    the_rig.options.to = NULL;
    the_rig.options.destinations = both;
    the_rig.options.destination_count = 2;
    the_rig.options.breaker_delay_ms = 500;
    the_rig.options.breaker_delay_max_ms = 30000;
    fake_down(the_rig.fake, true);
    rig_publish_many(5000, 10);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, &report), IE_EUNREACHABLE);
    ck_assert_ptr_nonnull(strstr(the_rig.last_error, "destination a"));
    ck_assert_uint_eq(fake_distinct(other), 5000); /* the other one is complete */
    ck_assert_int_eq(rig_stats(worker, 0).breaker, IE_BREAKER_OPEN);
    ck_assert_int_eq(rig_stats(worker, 1).breaker, IE_BREAKER_CLOSED);
    ck_assert_int_eq(
        test_int(the_rig.db,
                 "SELECT count(*) FROM ie_cursor WHERE name = 'a' AND breaker IS NOT NULL"),
        1);
    /* A month of it, looked at every ten minutes: one try each time, nobody dies. */
    before = fake_received(the_rig.fake);
    for (int i = 0; i < 6 * 24 * 30; i++) {
        test_clock_advance(&the_rig.clock, 600000);
        ck_assert_int_eq(rig_run_on(worker, NULL), IE_EUNREACHABLE);
    }
    ck_assert_uint_eq(fake_received(the_rig.fake) - before, 6 * 24 * 30);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ck_assert_uint_eq(rig_stats(worker, 0).retried, 0);
    /* Back: everything is sent, beginning with a single one. */
    fake_down(the_rig.fake, false);
    test_clock_advance(&the_rig.clock, 60000);
    ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 5000);
    ck_assert_uint_eq(fake_delivered(the_rig.fake), 5000);
    ck_assert_int_eq(rig_stats(worker, 0).breaker, IE_BREAKER_CLOSED);
    ck_assert_int_eq(
        test_int(the_rig.db, "SELECT count(*) FROM ie_cursor WHERE breaker IS NOT NULL"), 0);
    fake_check_order(the_rig.fake, false);
    ie_worker_close(worker);
    fake_free(other);
}
END_TEST

/* Answers come late, so that as many are in flight as the worker allows. */
static fake_rule
ramp_decide(void *user, const ie_event *event, uint32_t seen)
{
    (void)user;
    (void)event;
    (void)seen;
    return (fake_rule){.verdict = IE_DELIVERED, .when = FAKE_LATE, .late_ms = 2};
}

START_TEST(after_an_outage_the_rate_grows_slowly)
{
    ie_worker *worker;

    rig_publish_many(600, 0);
    fake_down(the_rig.fake, true);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_EUNREACHABLE);
    fake_reset(the_rig.fake);
    fake_down(the_rig.fake, false);
    fake_decider(the_rig.fake, ramp_decide, NULL);
    (void)poll(NULL, 0, 30); /* longer than the breaker's longest pause */
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 600);
    /* 1, 2, 4, ...: after 1 + 2 + 4 + ... events the limit has doubled; 600 events never see more
     * than 512. */
    ck_assert_uint_le(fake_in_flight_peak(the_rig.fake), 512);
    ck_assert_uint_ge(fake_in_flight_peak(the_rig.fake), 16);
    ie_worker_close(worker);
}
END_TEST

/* The only event that is left to send is one that failed before the outage began. */
START_TEST(a_retry_finds_its_way_after_an_outage)
{
    ie_worker *worker;

    rig_virtual();
    SCRIPT({.from = 1, .to = 1, .verdict = IE_RETRY, .reason = "first"},
           {.from = 2, .to = 4, .verdict = IE_UNREACHABLE, .reason = "then away"});
    rig_publish_many(3, 0);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    for (int i = 0; i < 40 && fake_distinct(the_rig.fake) < 3; i++) {
        test_clock_advance(&the_rig.clock, 100);
        (void)rig_run_on(worker, NULL);
    }
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 3);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ie_worker_close(worker);
}
END_TEST

/* Many retries are due when the destination goes away: those not yet handed out come back too. */
START_TEST(retries_that_were_lined_up_survive_an_outage)
{
    ie_worker *worker;

    rig_virtual();
    the_rig.options.in_flight_max = 4;
    the_rig.options.batch_max = 100;
    SCRIPT({.from = 1, .to = 1, .verdict = IE_RETRY, .reason = "first"},
           {.from = 2, .to = 2, .verdict = IE_UNREACHABLE, .reason = "away"});
    rig_publish_many(60, 20);
    worker = rig_worker();
    for (int i = 0; i < 400 && fake_distinct(the_rig.fake) < 60; i++) {
        test_clock_advance(&the_rig.clock, 100);
        (void)rig_run_on(worker, NULL);
    }
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 60);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_int_eq(rig_deliveries("dead"), 0);
    fake_check_order(the_rig.fake, false);
    ie_worker_close(worker);
}
END_TEST

START_TEST(late_answers_from_another_thread_count_like_others)
{
    ie_worker_report report;

    SCRIPT(
        {.topic = "t.1", .when = FAKE_LATE, .late_ms = 30},
        {.topic = "t.2", .when = FAKE_LATE, .late_ms = 10, .verdict = IE_REJECTED, .reason = "no"},
        {.topic = "t.3", .when = FAKE_LATE, .late_ms = 1});
    rig_publish_many(500, 5);
    ck_assert_int_eq(rig_run(&report), IE_OK);
    ck_assert_uint_eq(report.published, 400);
    ck_assert_uint_eq(report.dead, 100);
    ck_assert_uint_eq(fake_received(the_rig.fake), 500);
    fake_check_order(the_rig.fake, false);
}
END_TEST

START_TEST(second_and_unknown_answers_are_counted_and_ignored)
{
    ie_worker *worker;

    SCRIPT({.topic = "t.0", .when = FAKE_TWICE},
           {.topic = "t.1", .when = FAKE_TWICE, .verdict = IE_REJECTED},
           {.topic = "t.2", .when = FAKE_STRAY});
    rig_publish_many(40, 4);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_uint_eq(rig_stats(worker, 0).published, 30);
    ck_assert_uint_eq(rig_stats(worker, 0).dead, 10);
    ck_assert_uint_eq(rig_stats(worker, 0).stray_reports, 10 + 10 + 3 * 10);
    ie_worker_close(worker);
}
END_TEST

START_TEST(no_answer_is_a_failed_attempt_after_the_timeout)
{
    const char *urls[] = {"fake:a", "fakeblock:a"};
    ie_worker  *worker;

    the_rig.options.to = urls[_i];
    the_rig.options.publish_timeout_ms = 60;
    the_rig.options.attempts_max = 3;
    SCRIPT({.topic = "slow", .to = 1, .when = FAKE_NEVER}, {.topic = "lost", .when = FAKE_NEVER});
    const int64_t slow = rig_publish("slow", "a");
    const int64_t lost = rig_publish("lost", "b");

    for (int i = 0; i < 5; i++)
        (void)rig_publish("fine", "a");
    worker = rig_start();
    ck_assert(rig_wait_distinct(6, 5000));
    for (int i = 0; i < 500 && rig_deliveries("dead") == 0; i++)
        (void)poll(NULL, 0, 10);
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ie_worker_close(worker);
    ck_assert_uint_eq(fake_seen(the_rig.fake, slow), 2);
    ck_assert_uint_eq(fake_seen(the_rig.fake, lost), 3);
    ck_assert_int_eq(rig_deliveries("dead"), 1);
    ck_assert_ptr_nonnull(strstr(reason_at(lost), "publish_timeout_ms"));
    fake_check_order(the_rig.fake, false);
}
END_TEST

START_TEST(an_answer_after_close_is_a_stray)
{
    ie_worker *worker;

    the_rig.options.publish_timeout_ms = 50;
    SCRIPT({.topic = "t.0", .to = 1, .when = FAKE_AFTER_CLOSE, .verdict = IE_REJECTED});
    rig_publish_many(10, 10);
    worker = rig_start();
    ck_assert(rig_wait_distinct(10, 5000));
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ck_assert_uint_eq(rig_stats(worker, 0).stray_reports, 1);
    ck_assert_uint_eq(rig_stats(worker, 0).dead, 0);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_publisher_that_could_not_be_opened_again_is_tried_until_it_can)
{
    const char *urls[] = {"fake:a", "fakeblock:a"};
    ie_worker  *worker;

    the_rig.options.to = urls[_i];
    the_rig.options.publish_timeout_ms = 50;
    SCRIPT({.topic = "t.0", .to = 1, .when = FAKE_NEVER});
    rig_publish_many(10, 10);
    worker = rig_start();
    ck_assert(rig_wait_distinct(9, 5000));
    fake_fail_open(the_rig.fake, 3);
    ck_assert(rig_wait_distinct(10, 5000));
    ck_assert_uint_ge(fake_opens(the_rig.fake), 5);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_blocking_publisher_slower_than_the_lease_keeps_it)
{
    ie_worker *worker;
    ie_worker *rival;

    the_rig.options.to = "fakeblock:a";
    the_rig.options.lease_ms = 150;
    the_rig.options.batch_max = 5;
    SCRIPT({.topic = "t.0", .to = 2, .block_ms = 600});
    rig_publish_many(20, 20);
    worker = rig_start();
    rival = rig_start();
    ck_assert(rig_wait_distinct(20, 8000));
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ck_assert_int_eq(ie_worker_stop(rival, 5000), IE_OK);
    ck_assert_uint_eq(rig_stats(worker, 0).lease_lost + rig_stats(rival, 0).lease_lost, 0);
    ck_assert_uint_eq(fake_received(the_rig.fake), 20);
    ie_worker_close(worker);
    ie_worker_close(rival);
}
END_TEST

/* ---- time: expiry, delay, clocks
 * --------------------------------------------------------------------- */

static void
insert(const char *columns, const char *values)
{
    char sql[512];

    (void)snprintf(sql, sizeof sql, "INSERT INTO ie_event(%s) VALUES (%s)", columns, values);
    test_exec(the_rig.db, sql);
}

static void
insert_times(const char *topic, int64_t not_before, int64_t expires_at)
{
    char values[256];

    (void)snprintf(values, sizeof values, "'%s', nullif(%lld, 0), nullif(%lld, 0), 'k'", topic,
                   (long long)not_before, (long long)expires_at);
    insert("topic, not_before, expires_at, key", values);
}

START_TEST(what_has_expired_is_never_sent)
{
    const int64_t    hour = 3600000;
    int64_t          now;
    ie_worker       *worker;
    ie_worker_report report;

    rig_virtual();
    now = the_rig.clock.wall_ms;
    the_rig.options.retry_delay_ms = 600000;
    the_rig.options.retry_delay_max_ms = 600000;
    SCRIPT({.topic = "waiting", .verdict = IE_RETRY, .reason = "later"});
    insert_times("before", 0, now - 1);
    insert_times("scheduled", now + 2 * hour, now + hour);
    insert_times("waiting", 0, now + hour);
    insert_times("blocked", 0, now + hour);
    insert_times("fine", 0, 0);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
    ck_assert_uint_eq(report.expired, 1);
    ck_assert_int_eq(rig_deliveries("blocked"), 2);
    ck_assert_int_eq(rig_deliveries("scheduled"), 1);
    test_clock_advance(&the_rig.clock, hour);
    for (int i = 0; i < 10; i++) {
        test_clock_advance(&the_rig.clock, 1000);
        ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
    }
    ck_assert_int_eq(rig_deliveries("expired"), 4);
    ck_assert_uint_eq(atomic_load(&the_rig.expired), 4);
    ck_assert_uint_eq(fake_delivered(the_rig.fake),
                      1); /* "fine", freed when those before it ended */
    ck_assert_uint_eq(fake_times(the_rig.fake, 5), 1);
    ck_assert_uint_eq(fake_seen(the_rig.fake, 2), 0);
    ck_assert_uint_eq(fake_seen(the_rig.fake, 4), 0);
    ck_assert_str_ne(reason_at(1), "");
    ck_assert_str_ne(reason_at(4), "");
    ie_worker_close(worker);
}
END_TEST

START_TEST(not_before_waits_and_the_cursor_moves_on)
{
    ie_worker       *worker;
    ie_worker_report report;

    rig_virtual();
    insert_times("tomorrow", the_rig.clock.wall_ms + 86400000, 0);
    insert_times("now", 0, 0);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
    ck_assert_uint_eq(report.published, 1);
    ck_assert_uint_eq(report.pending, 1);
    ck_assert_int_eq(rig_cursor(), 2);
    ck_assert_uint_eq(rig_stats(worker, 0).scheduled, 1);
    test_clock_advance(&the_rig.clock, 86399999);
    ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
    ck_assert_uint_eq(report.published, 0);
    test_clock_advance(&the_rig.clock, 1);
    ck_assert_int_eq(rig_run_on(worker, &report), IE_OK);
    ck_assert_uint_eq(report.published, 1);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ie_worker_close(worker);
}
END_TEST

/* Retries in flight when the wall clock jumps must not be sent a second time beside themselves. */
START_TEST(clock_jumps_neither_stall_nor_flood)
{
    static const int64_t JUMPS[] = {1000, -1000, 3600000, -3600000, 864000000, -864000000};
    ie_worker           *worker;
    uint64_t             sent;

    rig_virtual();
    the_rig.options.retry_delay_ms = 100000;
    the_rig.options.retry_delay_max_ms = 100000;
    the_rig.options.attempts_max = 100;
    SCRIPT({.topic = "again", .to = 2, .verdict = IE_RETRY, .reason = "later"});
    worker = rig_worker();
    for (size_t i = 0; i < sizeof JUMPS / sizeof JUMPS[0]; i++) {
        const int64_t position = rig_publish("again", NULL);

        ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
        the_rig.clock.wall_ms += JUMPS[i];
        sent = fake_received(the_rig.fake);
        for (int j = 0; j < 5; j++) {
            (void)rig_publish("new", NULL);
            ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK); /* keeps its lease, sends at once */
        }
        ck_assert_uint_le(fake_received(the_rig.fake) - sent,
                          5 + 2); /* a retry may come early, once */
        for (int j = 0; j < 3; j++) {
            test_clock_advance(&the_rig.clock, 100000);
            ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
        }
        ck_assert_uint_eq(fake_times(the_rig.fake, position), 1);
        ck_assert_uint_eq(fake_seen(the_rig.fake, position), 3);
    }
    ck_assert_uint_eq(rig_stats(worker, 0).lease_lost, 0);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_retry_in_flight_is_not_sent_beside_itself)
{
    ie_worker *worker;

    rig_virtual();
    the_rig.options.poll_ms = 10;
    the_rig.options.publish_timeout_ms = 3600000;
    the_rig.options.retry_delay_max_ms =
        20; /* shorter than the claim: must not look like a clock set back */
    SCRIPT({.topic = "again", .to = 1, .verdict = IE_RETRY, .reason = "later"},
           {.topic = "again", .when = FAKE_LATE, .late_ms = 200});
    const int64_t position = rig_publish("again", "k");

    worker = rig_start();
    for (int i = 0; i < 400 && fake_seen(the_rig.fake, position) < 2; i++) {
        test_clock_advance(&the_rig.clock, 10);
        (void)poll(NULL, 0, 5);
    }
    (void)__atomic_add_fetch(&the_rig.clock.wall_ms, 864000000, __ATOMIC_SEQ_CST);
    (void)rig_publish("other", NULL);
    ck_assert(rig_wait_distinct(2, 5000));
    ie_worker_close(worker);
    ck_assert_uint_eq(fake_seen(the_rig.fake, position), 2);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
}
END_TEST

/* ---- rows that anyone wrote
 * ---------------------------------------------------------------------------- */

START_TEST(bad_rows_become_dead_with_a_reason_and_nothing_gets_stuck)
{
    static const char *const BAD[][2] = {
        {"topic", "''"},
        {"topic", "'a..b'"},
        {"topic", "'a.*'"},
        {"topic", "'a b'"},
        {"topic", "char(10)"},
        {"topic", "'a' || char(0) || 'b'"},
        {"topic, id", "'t', ''"},
        {"topic, type", "'t', ''"},
        {"topic, source", "'t', ''"},
        {"topic, key", "'t', CAST(x'ff' AS TEXT)"},
        {"topic, id", "'t', 'a' || char(13)"},
        {"topic, headers", "'t', '{'"},
        {"topic, headers", "'t', '[]'"},
        {"topic, headers", "'t', '{\"UPPER\":\"x\"}'"},
        {"topic, headers", "'t', printf('{\"a\":\"%.40000c\"}', 'x')"},
        {"topic, data", "'t', '{\"a\":'"},
        {"topic, data", "'t', zeroblob(1048577)"},
        {"topic, content_type, data", "'t', 'application/json', x'ff'"},
        {"topic, topic_", NULL},
    };
    size_t           count = 0;
    ie_worker_report report;

    for (; BAD[count][1] != NULL; count++) {
        insert(BAD[count][0], BAD[count][1]);
        (void)rig_publish("good", "k");
    }
    ck_assert_int_eq(rig_run(&report), IE_OK);
    for (size_t i = 0; i < count; i++) {
        ck_assert_msg(number_at("position", (int64_t)(2 * i + 1)) > 0, "%s = %s was let through",
                      BAD[i][0], BAD[i][1]);
        ck_assert_msg(strlen(reason_at((int64_t)(2 * i + 1))) > 10, "%s = %s: no reason", BAD[i][0],
                      BAD[i][1]);
    }
    ck_assert_uint_eq(report.dead, count);
    ck_assert_uint_eq(report.published, count);
    ck_assert_int_eq(rig_cursor(), rig_newest());
}
END_TEST

START_TEST(positions_may_have_gaps_of_any_size)
{
    static const int64_t AT[] = {3, 2500, 2501, 90000, 5000000, INT64_C(9000000000)};
    ie_worker           *worker;

    for (size_t i = 0; i < sizeof AT / sizeof AT[0]; i++) {
        char values[96];

        (void)snprintf(values, sizeof values, "%lld, 't', 'k'", (long long)AT[i]);
        insert("position, topic, key", values);
    }
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    /* Everything above the cursor's start, 0. */
    ck_assert_uint_eq(rig_stats(worker, 0).published, 6);
    ck_assert_int_eq(rig_cursor(), INT64_C(9000000000));
    (void)rig_publish("t", NULL);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_uint_eq(rig_stats(worker, 0).published, 7);
    ie_worker_close(worker);
}
END_TEST

/* ---- destinations
 * ---------------------------------------------------------------------------------------- */

START_TEST(each_destination_gets_its_topics_and_has_its_own_cursor)
{
    fake                *orders = fake_new("orders");
    const ie_destination two[] = {
        {.size = sizeof two[0], .name = "all", .url = "fake:a"},
        {.size = sizeof two[0],
         .name = "orders",
         .url = "fake:orders",
         .topics = "order.*.placed, refund.>"},
    };
    ie_worker *worker;

    the_rig.options.to = NULL;
    the_rig.options.destinations = two;
    the_rig.options.destination_count = 2;
    (void)rig_publish("order.eu.placed", NULL);
    (void)rig_publish("order.placed", NULL);
    (void)rig_publish("refund.eu.x", NULL);
    (void)rig_publish("refund", NULL);
    (void)rig_publish("stock", NULL);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 5);
    ck_assert_uint_eq(fake_distinct(orders), 2);
    ck_assert_int_eq(fake_nth(orders, 0), 1);
    ck_assert_int_eq(fake_nth(orders, 1), 3);
    ck_assert_uint_eq(rig_stats(worker, 1).skipped, 3);
    ck_assert_str_eq(rig_stats(worker, 1).name, "orders");
    ck_assert_int_eq(test_int(the_rig.db, "SELECT min(position) FROM ie_cursor"), 5);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ie_worker_close(worker);
    fake_free(orders);
}
END_TEST

START_TEST(a_new_destination_starts_with_the_oldest_or_with_what_comes)
{
    fake                *late = fake_new("late");
    const ie_destination two[] = {
        {.size = sizeof two[0], .name = "old", .url = "fake:a"},
        {.size = sizeof two[0], .name = "new", .url = "fake:late", .start = IE_START_NOW},
    };
    ie_worker *worker;

    the_rig.options.to = NULL;
    the_rig.options.destinations = two;
    the_rig.options.destination_count = 2;
    rig_publish_many(10, 0);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    rig_publish_many(3, 0);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ie_worker_close(worker);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 13);
    ck_assert_uint_eq(fake_distinct(late), 3);
    fake_free(late);
}
END_TEST

START_TEST(retention_waits_for_the_slowest_destination)
{
    fake                *slow = fake_new("slow");
    const ie_destination two[] = {
        {.size = sizeof two[0], .name = "fast", .url = "fake:a"},
        {.size = sizeof two[0], .name = "slow", .url = "fake:slow"},
    };
    ie_worker *worker;

    rig_virtual();
    the_rig.options.to = NULL;
    the_rig.options.destinations = two;
    the_rig.options.destination_count = 2;
    the_rig.options.published_retention_s = 60;
    the_rig.options.dead_retention_s = 600;
    the_rig.options.clean_batch = 50;
    fake_down(slow, true);
    SCRIPT({.topic = "t.7", .verdict = IE_REJECTED, .reason = "no"});
    rig_publish_many(1000, 0);
    test_exec(the_rig.db, "DROP TRIGGER ie_event_is_final");
    {
        char sql[128];

        (void)snprintf(sql, sizeof sql, "UPDATE ie_event SET time = %lld",
                       (long long)the_rig.clock.wall_ms);
        test_exec(the_rig.db, sql);
    }
    worker = rig_worker();
    test_clock_advance(&the_rig.clock, 61000);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_EUNREACHABLE);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_event"), 1000);
    fake_down(slow, false);
    test_clock_advance(&the_rig.clock, 61000);
    for (int i = 0; i < 50; i++)
        ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    /* All but the newest (positions are never given twice) and the dead one. */
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_event"), 2);
    test_clock_advance(&the_rig.clock, 600000);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_event"), 1);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ie_worker_close(worker);
    fake_free(slow);
}
END_TEST

/* ---- stopping
 * ---------------------------------------------------------------------------------------------- */

static void *
stop_it(void *worker)
{
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    return NULL;
}

START_TEST(stop_waits_for_answers_writes_them_down_and_may_be_called_again)
{
    ie_worker *worker;
    pthread_t  other;
    uint64_t   received;

    SCRIPT({.when = FAKE_LATE, .late_ms = 100});
    rig_publish_many(3000, 0);
    worker = rig_start();
    for (int i = 0; i < 1000 && fake_received(the_rig.fake) == 0; i++)
        (void)poll(NULL, 0, 1);
    ck_assert_int_eq(pthread_create(&other, NULL, stop_it, worker), 0);
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    (void)pthread_join(other, NULL);
    ck_assert_int_eq(ie_worker_stop(worker, 0), IE_OK);
    received = fake_received(the_rig.fake);
    ck_assert_uint_eq(fake_delivered(the_rig.fake), received);
    ck_assert_int_eq(rig_cursor(), (int64_t)received); /* written down, nothing more was taken */
    ck_assert_uint_eq(rig_stats(worker, 0).published,
                      received); /* still to be asked after the end */
    ie_worker_close(worker);
    /* The next one goes on at once, without waiting for a lease to run out. */
    fake_script(the_rig.fake, NULL, 0);
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    ck_assert_uint_eq(fake_received(the_rig.fake), 3000);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT crashes + suspect_window FROM ie_cursor"), 0);
}
END_TEST

START_TEST(stop_hands_back_what_was_never_answered)
{
    const char *urls[] = {"fake:a", "fakeblock:a"};
    ie_worker  *worker;

    the_rig.options.to = urls[_i];
    SCRIPT({.topic = "t.3", .to = 1, .when = FAKE_NEVER},
           {.topic = "t.1", .to = 1, .verdict = IE_RETRY},
           {.topic = "t.1", .to = 2, .when = FAKE_NEVER});
    rig_publish_many(10, 10);
    worker = rig_start();
    ck_assert(rig_wait_distinct(8, 5000));
    for (int i = 0; i < 1000 && fake_seen(the_rig.fake, 2) < 2; i++)
        (void)poll(NULL, 0, 1);
    ck_assert_int_eq(ie_worker_stop(worker, 50), IE_ETIMEDOUT);
    ie_worker_close(worker);
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 10);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT crashes + suspect_window FROM ie_cursor"), 0);
}
END_TEST

static ie_worker *stopping;
static atomic_int stop_status;

static void
stop_from_inside(void *user, const char *destination, const ie_event *event)
{
    (void)user;
    (void)destination;
    (void)event;
    atomic_store(&stop_status, ie_worker_stop(stopping, 100));
}

START_TEST(stop_from_a_callback_is_refused)
{
    atomic_store(&stop_status, 1);
    the_rig.options.on_published = stop_from_inside;
    stopping = rig_start();
    (void)rig_publish("t", NULL);
    for (int i = 0; i < 2000 && atomic_load(&stop_status) == 1; i++)
        (void)poll(NULL, 0, 1);
    ck_assert_int_eq(atomic_load(&stop_status), IE_ESTATE);
    ie_worker_close(stopping);
    /* The same without a thread. */
    atomic_store(&stop_status, 1);
    stopping = rig_worker();
    (void)rig_publish("t", NULL);
    ck_assert_int_eq(rig_run_on(stopping, NULL), IE_OK);
    ck_assert_int_eq(atomic_load(&stop_status), IE_ESTATE);
    ie_worker_close(stopping);
}
END_TEST

START_TEST(stopping_in_any_phase_leaves_nothing_behind)
{
    ie_worker *worker;

    SCRIPT({.topic = "t.1", .to = 1, .verdict = IE_RETRY, .reason = "x"},
           {.topic = "t.2", .to = 1, .verdict = IE_UNREACHABLE, .reason = "y"},
           {.topic = "t.3", .when = FAKE_LATE, .late_ms = 1},
           {.topic = "t.4", .to = 1, .verdict = IE_RETRY, .retry_after_ms = 3});
    rig_publish_many(600, 10);
    for (uint64_t i = 0; i < test_scale(100); i++) {
        worker = rig_start();
        (void)poll(NULL, 0, (int)ie__random_below(6));
        ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
        ie_worker_close(worker);
    }
    for (int i = 0; i < 1000 && fake_distinct(the_rig.fake) < 600; i++) {
        (void)poll(NULL, 0, 5);
        (void)rig_run(NULL);
    }
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 600);
    ck_assert_uint_eq(fake_delivered(the_rig.fake), 600); /* an orderly stop makes no duplicates */
    fake_check_order(the_rig.fake, false);
}
END_TEST

/* ---- processors, statistics, fork
 * ----------------------------------------------------------------------------- */

static atomic_int processor_runs;

static ie_status
publish_one(void *user, sqlite3 *db, ie_error *err)
{
    (void)user;
    (void)err;
    if (atomic_fetch_add(&processor_runs, 1) < 3)
        ck_assert_int_eq(sqlite3_exec(db, "INSERT INTO ie_event(topic) VALUES ('from.processor')",
                                      NULL, NULL, NULL),
                         SQLITE_OK);
    return IE_OK;
}

static ie_status
leave_open(void *user, sqlite3 *db, ie_error *err)
{
    (void)user;
    (void)err;
    (void)sqlite3_exec(db, "BEGIN; INSERT INTO ie_event(topic) VALUES ('never')", NULL, NULL, NULL);
    return IE_OK;
}

static ie_status
fail_always(void *user, sqlite3 *db, ie_error *err)
{
    (void)user;
    (void)db;
    return ie_error_set(err, IE_EHANDLER, "my processor failed");
}

START_TEST(a_processor_of_ones_own_runs_in_its_interval)
{
    const ie_processor mine[] = {
        {.size = sizeof mine[0], .name = "mine", .interval_ms = 20, .run = publish_one}};
    ie_worker *worker;

    atomic_store(&processor_runs, 0);
    the_rig.options.processors = mine;
    the_rig.options.processor_count = 1;
    the_rig.options.poll_ms = 60000; /* its events are noticed without anyone else's commit */
    worker = rig_start();
    ck_assert(rig_wait_distinct(3, 5000));
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_processor_that_fails_or_leaves_a_transaction_open_harms_nobody)
{
    const ie_processor mine[] = {
        {.size = sizeof mine[0], .name = "open", .interval_ms = 10, .run = leave_open},
        {.size = sizeof mine[0], .name = "fails", .interval_ms = 10, .run = fail_always}};
    ie_worker *worker;

    the_rig.options.processors = mine;
    the_rig.options.processor_count = 2;
    worker = rig_worker();
    rig_publish_many(10, 0);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 10);
    ck_assert_int_eq(rig_newest(), 10);
    ck_assert_uint_ge(atomic_load(&the_rig.errors), 2);
    ck_assert_int_eq(the_rig.last_status, IE_EHANDLER);
    ck_assert_ptr_nonnull(strstr(the_rig.last_error, "my processor failed"));
    ie_worker_close(worker);
}
END_TEST

START_TEST(statistics_say_what_happened)
{
    ie_worker_stats stats = {.size = sizeof stats};
    ie_worker      *worker = rig_worker();

    rig_publish_many(10, 0);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_int_eq(ie_worker_get_stats(worker, &stats), IE_OK);
    ck_assert_uint_eq(stats.destinations, 1);
    ck_assert_uint_eq(rig_stats(worker, 0).published, 10);
    ck_assert_uint_ge(rig_stats(worker, 0).marks, 1);
    ck_assert_int_eq(rig_stats(worker, 0).position, 10);
    ck_assert(rig_stats(worker, 0).has_lease);
    ck_assert_uint_eq(rig_stats(worker, 0).in_flight, 0);
    ck_assert_int_eq(ie_worker_get_stats(NULL, &stats), IE_EINVAL);
    stats.size = 0;
    ck_assert_int_eq(ie_worker_get_stats(worker, &stats), IE_EINVAL);
    ck_assert_int_eq(ie_worker_get_destination_stats(
                         worker, 1, &(ie_destination_stats){.size = sizeof(ie_destination_stats)}),
                     IE_ENOTFOUND);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_child_cannot_use_its_parents_worker)
{
    ie_worker *worker = rig_worker();
    pid_t      pid;

    rig_publish_many(5, 0);
    pid = fork();
    if (pid == 0) {
        ie_worker_wake(worker);
        if (ie_worker_run_once(worker, 0, NULL, NULL) != IE_EFORKED)
            _exit(1);
        if (ie_worker_stop(worker, 0) != IE_EFORKED)
            _exit(2);
        ie_worker_close(worker);
        _exit(0);
    }
    ck_assert_int_eq(rig_reap(pid), 0);
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 5);
    ie_worker_close(worker);
}
END_TEST

/* ---- several workers
 * --------------------------------------------------------------------------------------------- */

START_TEST(two_workers_in_two_threads_publish_each_event_once)
{
    ie_worker *workers[2] = {rig_start(), rig_start()};

    rig_publish_many(20000, 50);
    ck_assert(rig_wait_distinct(20000, 30000));
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(ie_worker_stop(workers[i], 5000), IE_OK);
    for (int i = 0; i < 2; i++)
        ie_worker_close(workers[i]);
    ck_assert_uint_eq(fake_received(the_rig.fake), 20000);
    fake_check_order(the_rig.fake, false);
}
END_TEST

static void
work_until_killed(void *arg)
{
    ie_worker *worker = rig_start();

    (void)arg;
    for (;;) {
        (void)pause();
        ie_worker_wake(worker);
    }
}

START_TEST(two_workers_in_two_processes_publish_each_event_once)
{
    pid_t pids[2];

    for (int i = 0; i < 2; i++)
        pids[i] = rig_fork(work_until_killed, NULL);
    rig_publish_many(20000, 50);
    ck_assert(rig_wait_distinct(20000, 30000));
    for (int i = 0; i < 2; i++) {
        (void)kill(pids[i], SIGKILL);
        ck_assert_int_eq(rig_reap(pids[i]), 1000 + SIGKILL);
    }
    ck_assert_uint_eq(fake_received(the_rig.fake), 20000);
    fake_check_order(the_rig.fake, false);
}
END_TEST

START_TEST(a_killed_workers_lease_is_taken_over_within_a_second)
{
    pid_t      pid;
    ie_worker *worker;
    int64_t    start_ns;

    pid = rig_fork(work_until_killed, NULL);
    rig_publish_many(100, 5);
    ck_assert(rig_wait_distinct(100, 10000));
    worker = rig_start(); /* waits its turn */
    (void)kill(pid, SIGKILL);
    start_ns = ie__mono_ns();
    (void)rig_publish("next", NULL);
    /* Not reaped yet: a zombie is as gone as gone. */
    ck_assert(rig_wait_distinct(101, 5000));
    (void)fprintf(stderr, "take-over after a kill: %.1f ms\n",
                  (double)(fake_when_ns(the_rig.fake, 101) - start_ns) / 1e6);
    ck_assert_int_lt(fake_when_ns(the_rig.fake, 101) - start_ns, 1000000000);
    (void)rig_reap(pid);
    ie_worker_close(worker);
}
END_TEST

/* It sleeps through its lease with answers outstanding, and wakes up to find someone else there. */
START_TEST(a_worker_that_was_stopped_for_longer_than_its_lease_changes_nothing)
{
    pid_t      pid;
    ie_worker *worker;
    int64_t    position;

    fake_allow_overlap(the_rig.fake);
    the_rig.options.lease_ms = 200;
    the_rig.options.in_flight_max = 50;
    SCRIPT({.when = FAKE_LATE, .late_ms = 3});
    rig_publish_many(3000, 20);
    pid = rig_fork(work_until_killed, NULL);
    ck_assert(rig_wait_distinct(300, 10000));
    for (int i = 0; i < 5; i++) {
        const uint64_t had = fake_distinct(the_rig.fake);

        (void)kill(pid, SIGSTOP);
        worker = rig_start();
        ck_assert(rig_wait_distinct(had + 200 < 3000 ? had + 200 : 3000, 10000));
        position = rig_cursor();
        (void)kill(pid, SIGCONT);
        (void)rig_wait_distinct(had + 300, 100);
        ck_assert_int_ge(rig_cursor(), position); /* a late mark moved nothing back */
        ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
        ie_worker_close(worker);
    }
    ck_assert(rig_wait_distinct(3000, 20000));
    (void)kill(pid, SIGKILL);
    (void)rig_reap(pid);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    fake_check_order(the_rig.fake, false);
}
END_TEST

/* ---- trouble with the file
 * ------------------------------------------------------------------------------------------ */

START_TEST(a_cursor_beyond_the_log_stops_the_worker_with_a_sentence)
{
    ie_worker *worker;

    rig_publish_many(10, 0);
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    test_exec(the_rig.db, "UPDATE ie_cursor SET position = 50");
    ck_assert_int_eq(rig_run(NULL), IE_ECURSOR);
    ck_assert_ptr_nonnull(strstr(the_rig.last_error, "beyond the newest event 10"));
    worker = rig_start();
    (void)rig_publish("t", NULL);
    for (int i = 0; i < 2000 && atomic_load(&the_rig.errors) == 0; i++)
        (void)poll(NULL, 0, 1);
    ie_worker_close(worker);
    ck_assert_int_eq(the_rig.last_status, IE_ECURSOR);
    ck_assert_uint_eq(fake_received(the_rig.fake), 10); /* nothing skipped, nothing sent */
}
END_TEST

/* Somebody puts the events of an older copy back under a running worker: positions come a second
 * time. */
START_TEST(a_log_that_shrinks_under_a_running_worker_is_noticed)
{
    ie_worker *worker;

    rig_publish_many(20, 0);
    worker = rig_worker();
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_OK);
    test_exec(the_rig.db,
              "DROP TRIGGER ie_event_keep_newest; DELETE FROM ie_event WHERE position > 10");
    (void)rig_publish("new", NULL); /* takes position 11 again */
    ck_assert_int_eq(rig_run_on(worker, NULL), IE_ECURSOR);
    ck_assert_ptr_nonnull(strstr(the_rig.last_error, "beyond"));
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_database_that_was_moved_or_replaced_is_left_alone)
{
    ie_worker *worker;
    char       moved[520];

    (void)snprintf(moved, sizeof moved, "%s.old", the_rig.path);
    rig_publish_many(10, 0);
    worker = rig_start();
    ck_assert(rig_wait_distinct(10, 5000));
    ck_assert_int_eq(rename(the_rig.path, moved), 0);
    for (int i = 0; i < 5000 && atomic_load(&the_rig.last_status) != (int)IE_EMOVED; i++)
        (void)poll(NULL, 0, 1);
    ck_assert_int_eq(the_rig.last_status, IE_EMOVED);
    ck_assert_ptr_nonnull(strstr(the_rig.last_error, "moved"));
    ck_assert(!rig_stats(worker, 0).has_lease);
    ie_worker_close(worker);
    ck_assert_int_eq(rename(moved, the_rig.path), 0);
}
END_TEST

static int64_t
cpu_ms(void)
{
    struct rusage use;

    (void)getrusage(RUSAGE_SELF, &use);
    return (use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000 +
           (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1000;
}

START_TEST(a_locked_database_makes_it_wait_and_neither_spin_nor_lose)
{
    const uint32_t waits[] = {0, 100};
    sqlite3       *locker = test_db_open(the_rig.path);
    ie_worker     *worker;
    int64_t        cpu;

    the_rig.options.busy_ms_max = waits[_i];
    SCRIPT({.topic = "t.3", .to = 1, .verdict = IE_RETRY, .reason = "x"});
    worker = rig_start();
    rig_publish_many(100, 10);
    ck_assert(rig_wait_distinct(100, 5000));
    rig_publish_many(100, 10);
    test_exec(locker, "BEGIN IMMEDIATE");
    cpu = cpu_ms();
    (void)poll(NULL, 0, 1000); /* what is measured is this second */
    cpu = cpu_ms() - cpu;
    test_exec(locker, "COMMIT");
    (void)fprintf(stderr, "cpu while locked for 1 s (busy_ms_max %u): %lld ms\n", waits[_i],
                  (long long)cpu);
    ck_assert_int_lt(cpu, 150);
    ck_assert(rig_wait_distinct(200, 5000));
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ie_worker_close(worker);
    ck_assert_int_eq(sqlite3_close(locker), SQLITE_OK);
    ck_assert_int_eq(rig_cursor(), rig_newest());
}
END_TEST

/* Nothing to do, or everything waits for something: then it must sleep. */
START_TEST(a_worker_that_can_do_nothing_uses_no_processor)
{
    static const struct {
        const char *what;
        fake_rule   rule;
        uint32_t    timeout_ms;
        ie_order    order;
    } CASES[] = {
        {"idle", {.verdict = IE_DELIVERED}, 30000, IE_ORDER_KEY},
        {"never answered", {.when = FAKE_NEVER}, 30000, IE_ORDER_KEY},
        {"unreachable", {.verdict = IE_UNREACHABLE, .reason = "x"}, 30000, IE_ORDER_KEY},
        {"half answered, then unreachable",
         {.topic = "t.1", .verdict = IE_UNREACHABLE, .reason = "x"},
         30000,
         IE_ORDER_KEY},
        {"retried after long",
         {.verdict = IE_RETRY, .retry_after_ms = 600000},
         30000,
         IE_ORDER_KEY},
        {"retry never answered", {.to = 1, .verdict = IE_RETRY}, 30000, IE_ORDER_KEY},
        {"strict, head waits",
         {.verdict = IE_RETRY, .retry_after_ms = 600000},
         30000,
         IE_ORDER_STRICT},
        {"strict, head never answered again",
         {.to = 1, .verdict = IE_RETRY},
         30000,
         IE_ORDER_STRICT},
    };
    const fake_rule      rules[] = {CASES[_i].rule, {.when = FAKE_NEVER}};
    const ie_destination to = {
        .size = sizeof to, .name = "outbox", .url = "fake:a", .order = CASES[_i].order};
    ie_worker *worker;
    int64_t    cpu;

    fake_script(the_rig.fake, rules, strcmp(CASES[_i].what, "idle") == 0 ? 1 : 2);
    the_rig.options.to = NULL;
    the_rig.options.destinations = &to;
    the_rig.options.destination_count = 1;
    the_rig.options.publish_timeout_ms = CASES[_i].timeout_ms;
    the_rig.options.breaker_delay_ms = 100;
    the_rig.options.breaker_delay_max_ms = 100;
    worker = rig_start();
    rig_publish_many(400, 400);
    (void)poll(NULL, 0, 150);
    cpu = cpu_ms();
    (void)poll(NULL, 0, 600); /* what is measured is this time */
    cpu = cpu_ms() - cpu;
    (void)fprintf(stderr, "cpu in 600 ms, %s: %lld ms\n", CASES[_i].what, (long long)cpu);
    ck_assert_int_lt(cpu, 100);
    (void)ie_worker_stop(worker, 10);
    ie_worker_close(worker);
}
END_TEST

/* ---- memory
 * --------------------------------------------------------------------------------------------------------
 */

START_TEST(memory_is_bounded_by_the_window_in_bytes)
{
    ie_worker *worker;
    uint64_t   peak = 0;

    the_rig.options.window_bytes_max = 8388608;
    SCRIPT({.topic = _i == 0 ? "none" : "big", .to = 1, .verdict = IE_RETRY, .reason = "x"},
           {.when = FAKE_LATE, .late_ms = 5});
    for (int i = 0; i < 60; i++)
        insert("topic, content_type, data", "'big', 'application/octet-stream', zeroblob(1048576)");
    worker = rig_start();
    for (int i = 0; i < 40000 && fake_distinct(the_rig.fake) < 60; i++) {
        const uint64_t now = rig_stats(worker, 0).window_bytes;

        peak = now > peak ? now : peak;
        (void)poll(NULL, 0, 1);
    }
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 60);
    (void)fprintf(stderr, "60 events of 1 MiB: at most %.1f MiB held of 8\n",
                  (double)peak / 1048576);
    ck_assert_uint_le(peak, 8388608 + 8388608 / 4 + 2 * 1100000);
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ck_assert_uint_le(rig_stats(worker, 0).window_bytes, 200000);
    ie_worker_close(worker);
}
END_TEST

START_TEST(every_failed_allocation_is_survived)
{
    uint64_t n = 1;
    uint64_t total = 0;
    bool     failed = true;

    SCRIPT({.topic = "t.1", .from = 1, .to = 1, .verdict = IE_RETRY, .reason = "once more"},
           {.topic = "t.2", .verdict = IE_REJECTED, .reason = "no"});
    for (; failed; n++) {
        ie_worker *worker = NULL;
        ie_status  status;

        rig_publish_many(12, 4);
        total += 12;
        ie__alloc_fail_at(n, false);
        status = ie_worker_open(&worker, &the_rig.options, NULL);
        if (status == IE_OK)
            (void)ie_worker_run_once(worker, 500, NULL, NULL);
        failed = ie__alloc_failed() > 0;
        ie__alloc_fail_at(0, false);
        if (status != IE_OK) {
            ck_assert_int_eq(status, IE_ENOMEM);
            ck_assert_ptr_null(worker);
        }
        ie_worker_close(worker);
        for (int i = 0; i < 100 && fake_distinct(the_rig.fake) < total * 3 / 4; i++) {
            ck_assert_int_eq(rig_run(NULL), IE_OK);
            (void)poll(NULL, 0, 2);
        }
        ck_assert_uint_eq(fake_distinct(the_rig.fake), total * 3 / 4);
        ck_assert_int_eq(rig_deliveries("dead"), (int64_t)total / 4);
        ck_assert_uint_lt(n, 2000);
    }
    (void)fprintf(stderr, "allocations failed one by one: %llu\n", (unsigned long long)n - 2);
    ck_assert_uint_gt(n, 30);
    fake_check_order(the_rig.fake, false);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("worker");
    SRunner *runner;
    int      failed;

#define CASE(name, timeout)                                                                        \
    do {                                                                                           \
        TCase *tcase_ = tcase_create(name);                                                        \
        tcase_add_checked_fixture(tcase_, rig_setup, rig_teardown);                                \
        tcase_set_timeout(tcase_, timeout);                                                        \
        suite_add_tcase(suite, tcase_);                                                            \
        tcase = tcase_;                                                                            \
    } while (0)
    TCase *tcase;

    CASE("committed", 60);
    tcase_add_test(tcase, run_once_publishes_what_is_committed);
    tcase_add_test(tcase, a_thread_publishes_what_is_committed);
    tcase_add_test(tcase, a_rollback_takes_its_events_along);
    tcase_add_test(tcase, a_commit_elsewhere_wakes_the_worker_without_polling);
    tcase_add_test(tcase, a_commit_that_takes_long_is_noticed_when_it_is_done);
    CASE("verdicts", 60);
    tcase_add_test(tcase, a_retry_spends_an_attempt_and_is_delivered_later);
    tcase_add_test(tcase, backoff_is_full_jitter_within_its_bounds);
    tcase_add_test(tcase, a_retry_after_is_obeyed_even_beyond_the_longest_backoff);
    tcase_add_test(tcase, attempts_used_up_mean_dead_with_the_last_reason);
    tcase_add_test(tcase, a_rejected_event_is_dead_at_once_with_its_reason);
    tcase_add_test(tcase, an_outage_spends_nothing_and_holds_up_nobody_else);
    tcase_add_test(tcase, after_an_outage_the_rate_grows_slowly);
    tcase_add_test(tcase, a_retry_finds_its_way_after_an_outage);
    tcase_add_test(tcase, retries_that_were_lined_up_survive_an_outage);
    tcase_add_test(tcase, late_answers_from_another_thread_count_like_others);
    tcase_add_test(tcase, second_and_unknown_answers_are_counted_and_ignored);
    tcase_add_loop_test(tcase, no_answer_is_a_failed_attempt_after_the_timeout, 0, 2);
    tcase_add_test(tcase, an_answer_after_close_is_a_stray);
    tcase_add_loop_test(tcase, a_publisher_that_could_not_be_opened_again_is_tried_until_it_can, 0,
                        2);
    tcase_add_test(tcase, a_blocking_publisher_slower_than_the_lease_keeps_it);
    CASE("time", 60);
    tcase_add_test(tcase, what_has_expired_is_never_sent);
    tcase_add_test(tcase, not_before_waits_and_the_cursor_moves_on);
    tcase_add_test(tcase, clock_jumps_neither_stall_nor_flood);
    tcase_add_test(tcase, a_retry_in_flight_is_not_sent_beside_itself);
    CASE("rows", 60);
    tcase_add_test(tcase, bad_rows_become_dead_with_a_reason_and_nothing_gets_stuck);
    tcase_add_test(tcase, positions_may_have_gaps_of_any_size);
    CASE("destinations", 60);
    tcase_add_test(tcase, each_destination_gets_its_topics_and_has_its_own_cursor);
    tcase_add_test(tcase, a_new_destination_starts_with_the_oldest_or_with_what_comes);
    tcase_add_test(tcase, retention_waits_for_the_slowest_destination);
    CASE("stop", 60);
    tcase_add_test(tcase, stop_waits_for_answers_writes_them_down_and_may_be_called_again);
    tcase_add_loop_test(tcase, stop_hands_back_what_was_never_answered, 0, 2);
    tcase_add_test(tcase, stop_from_a_callback_is_refused);
    tcase_add_test(tcase, stopping_in_any_phase_leaves_nothing_behind);
    CASE("beside", 60);
    tcase_add_test(tcase, a_processor_of_ones_own_runs_in_its_interval);
    tcase_add_test(tcase, a_processor_that_fails_or_leaves_a_transaction_open_harms_nobody);
    tcase_add_test(tcase, statistics_say_what_happened);
    tcase_add_test(tcase, a_child_cannot_use_its_parents_worker);
    CASE("several", 60);
    tcase_add_test(tcase, two_workers_in_two_threads_publish_each_event_once);
    tcase_add_test(tcase, two_workers_in_two_processes_publish_each_event_once);
    tcase_add_test(tcase, a_killed_workers_lease_is_taken_over_within_a_second);
    tcase_add_test(tcase, a_worker_that_was_stopped_for_longer_than_its_lease_changes_nothing);
    CASE("trouble", 60);
    tcase_add_test(tcase, a_cursor_beyond_the_log_stops_the_worker_with_a_sentence);
    tcase_add_test(tcase, a_log_that_shrinks_under_a_running_worker_is_noticed);
    tcase_add_test(tcase, a_database_that_was_moved_or_replaced_is_left_alone);
    tcase_add_loop_test(tcase, a_locked_database_makes_it_wait_and_neither_spin_nor_lose, 0, 2);
    tcase_add_loop_test(tcase, a_worker_that_can_do_nothing_uses_no_processor, 0, 8);
    CASE("memory", 120);
    tcase_add_loop_test(tcase, memory_is_bounded_by_the_window_in_bytes, 0, 2);
    tcase_add_test(tcase, every_failed_allocation_is_survived);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
