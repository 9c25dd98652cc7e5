/* Order: within a key, across retries, take-overs and kills; and what a failing key costs the
 * others. */
#include "rig.h"

#include <check.h>
#include <ie/inspect.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

static void
destination(ie_destination *to, ie_order order)
{
    *to = (ie_destination){.size = sizeof *to, .name = "outbox", .url = "fake:a", .order = order};
    the_rig.options.to = NULL;
    the_rig.options.destinations = to;
    the_rig.options.destination_count = 1;
}

static void
run_ok(ie_worker *worker)
{
    ck_assert_msg(rig_run_on(worker, NULL) == IE_OK, "%s", the_rig.last_error);
}

/* ---- a failing key ---- */

static const fake_rule FAIL_K7[] = {
    {.key = "k7", .to = 2, .verdict = IE_RETRY, .reason = "k7 fails"},
    {.when = FAKE_LATE, .late_ms = 5}};

static void
work_on(void *arg)
{
    (void)arg;
    (void)rig_start();
    for (;;)
        (void)pause();
}

/* Two processes compete, and die all the time. */
START_TEST(a_thousand_keys_stay_in_order_under_kills)
{
    const uint64_t events = 20000;
    pid_t          pids[2];
    int            kills = 0;

    fake_script(the_rig.fake, FAIL_K7, 2);
    fake_allow_overlap(the_rig.fake); /* of one process with its dead predecessor's books */
    the_rig.options.in_flight_max = 100;
    the_rig.options.batch_max = 50;
    rig_publish_many(events, 1000);
    for (int i = 0; i < 2; i++)
        pids[i] = rig_fork(work_on, NULL);
    for (int i = 0; i < 400 && fake_distinct(the_rig.fake) < events; i++) {
        const int which = (int)ie__random_below(2);

        (void)poll(NULL, 0, (int)(20 + ie__random_below(60)));
        (void)kill(pids[which], SIGKILL);
        (void)rig_reap(pids[which]);
        kills++;
        pids[which] = rig_fork(work_on, NULL);
    }
    ck_assert(rig_wait_distinct(events, 20000));
    for (int i = 0; i < 2; i++) {
        (void)kill(pids[i], SIGKILL);
        (void)rig_reap(pids[i]);
    }
    (void)fprintf(stderr, "1,000 keys: %llu events, %d kills, %llu sent twice\n",
                  (unsigned long long)events, kills,
                  (unsigned long long)(fake_delivered(the_rig.fake) - events));
    ck_assert_int_eq(rig_deliveries("dead"), 0);
    fake_check_order(the_rig.fake, false);
}
END_TEST

static int
by_value(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b;
}

/* Drain the whole log with a new cursor; gives ms, and how many write transactions it took. */
static double
drain_ms(int run, bool fails, uint64_t *marks)
{
    static const fake_rule NEVER_K7[] = {
        {.key = "k7", .verdict = IE_RETRY, .reason = "k7 fails", .retry_after_ms = 3600000}};
    char       name[32];
    ie_worker *worker;
    int64_t    start_ns;
    double     ms;

    (void)snprintf(name, sizeof name, "run%d", run);
    the_rig.options.name = name;
    fake_script(the_rig.fake, NEVER_K7, fails ? 1 : 0);
    test_exec(the_rig.db, "PRAGMA wal_checkpoint(TRUNCATE)"); /* all begin alike */
    worker = rig_worker();
    start_ns = ie__mono_ns();
    run_ok(worker);
    ms = (double)(ie__mono_ns() - start_ns) / 1e6;
    *marks = rig_stats(worker, 0).marks;
    ck_assert_uint_eq(rig_stats(worker, 0).published, fails ? 49950 : 50000);
    ie_worker_close(worker);
    return ms;
}

START_TEST(the_other_999_keys_are_not_slowed)
{
    enum { RUNS = 9 };
    double   with[RUNS];
    double   without[RUNS];
    uint64_t marks_with = 0;
    uint64_t marks_without = 0;

    rig_publish_many(50000, 1000);
    (void)drain_ms(100, false, &marks_without); /* warm */
    for (int i = 0; i < RUNS; i++) {
        if (i % 2 == 0)
            without[i] = drain_ms(2 * i, false, &marks_without);
        with[i] = drain_ms(2 * i + 1, true, &marks_with);
        if (i % 2 != 0)
            without[i] = drain_ms(2 * i, false, &marks_without);
    }
    qsort(with, RUNS, sizeof with[0], by_value);
    qsort(without, RUNS, sizeof without[0], by_value);
    (void)fprintf(stderr,
                  "drain of 50,000: %.1f ms without, %.1f ms with a failing key (%+.1f %%); write "
                  "transactions %llu and %llu\n",
                  without[RUNS / 2], with[RUNS / 2], (with[RUNS / 2] / without[RUNS / 2] - 1) * 100,
                  (unsigned long long)marks_without, (unsigned long long)marks_with);
    /* Write transactions depend on the pace alone; the time has room for a busy machine. */
    ck_assert_uint_le(marks_with, marks_without + marks_without / 4 + 10);
    ck_assert(with[0] < without[0] * 1.25 || with[RUNS / 2] < without[RUNS / 2] * 1.25);
    ck_assert_int_eq(rig_deliveries("retrying"), RUNS);
    ck_assert_int_eq(rig_deliveries("blocked"), RUNS * 49);
}
END_TEST

START_TEST(a_held_key_is_visible_and_released_in_order)
{
    static const fake_rule rules[] = {
        {.key = "k", .to = 2, .verdict = IE_RETRY, .reason = "x", .retry_after_ms = 1000}};
    ie_worker *worker;

    rig_virtual();
    fake_script(the_rig.fake, rules, 1);
    for (int i = 0; i < 5; i++) {
        (void)rig_publish("t", "k");
        (void)rig_publish("t", "other");
    }
    worker = rig_worker();
    run_ok(worker);
    ck_assert_int_eq(rig_deliveries("retrying"), 1);
    ck_assert_int_eq(rig_deliveries("blocked"), 4);
    ck_assert_str_ne(
        test_text(the_rig.db, "SELECT reason FROM ie_delivery WHERE state = 'blocked'"), "");
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 5);
    ie_worker_close(worker);
    /* A new worker knows as well, from the table. */
    worker = rig_worker();
    (void)rig_publish("t", "k");
    (void)rig_publish("t", "other");
    run_ok(worker);
    ck_assert_int_eq(rig_deliveries("blocked"), 5);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 6);
    for (int i = 0; i < 14; i++) {
        test_clock_advance(&the_rig.clock, 1001);
        run_ok(worker);
    }
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 12);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    fake_check_order(the_rig.fake, false);
    ie_worker_close(worker);
}
END_TEST

/* While the head is being tried again, an event comes in: it must not pass those that are blocked.
 */
START_TEST(nobody_overtakes_the_blocked_while_the_head_is_in_flight)
{
    static const fake_rule rules[] = {{.key = "k", .to = 1, .verdict = IE_RETRY, .reason = "x"},
                                      {.key = "k", .when = FAKE_LATE, .late_ms = 30}};
    ie_worker             *worker;
    uint64_t               events = 4;

    fake_script(the_rig.fake, rules, 2);
    for (uint64_t i = 0; i < events; i++)
        (void)rig_publish("t", "k");
    worker = rig_start();
    for (int i = 0; i < 60; i++) {
        (void)poll(NULL, 0, 7);
        (void)rig_publish("t", "k");
        events++;
    }
    ck_assert(rig_wait_distinct(events, 30000));
    ck_assert_int_eq(ie_worker_stop(worker, 5000), IE_OK);
    ie_worker_close(worker);
    fake_check_order(the_rig.fake, false);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
}
END_TEST

START_TEST(what_is_sent_again_or_given_up_lets_its_key_go_on)
{
    static const fake_rule rules[] = {
        {.topic = "bad", .to = 1, .verdict = IE_REJECTED, .reason = "no"},
        {.topic = "slow", .verdict = IE_RETRY, .reason = "later", .retry_after_ms = 3600000}};
    const ie_filter dead = {.size = sizeof dead, .states = 1u << IE_STATE_DEAD};
    const ie_filter retrying = {.size = sizeof retrying, .states = 1u << IE_STATE_RETRYING};
    ie_worker      *worker;
    uint64_t        changed = 0;

    rig_virtual();
    the_rig.clock.wall_ms = ie__wall_ms(&ie__system_clock); /* the inspection has no other */
    fake_script(the_rig.fake, rules, 2);
    (void)rig_publish("bad", "k");  /* 1 */
    (void)rig_publish("fine", "k"); /* 2 */
    (void)rig_publish("slow", "k"); /* 3 */
    (void)rig_publish("fine", "k"); /* 4 */
    worker = rig_worker();
    run_ok(worker);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 1);
    ck_assert_int_eq(ie_inspect_retry(the_rig.db, &dead, &changed, NULL), IE_OK);
    ck_assert_uint_eq(changed, 1);
    test_clock_advance(&the_rig.clock, 10000); /* past the real time of the change */
    run_ok(worker);
    ck_assert_uint_eq(fake_times(the_rig.fake, 1), 1);
    ck_assert_uint_eq(fake_times(the_rig.fake, 4), 0);
    ck_assert_int_eq(ie_inspect_discard(the_rig.db, &retrying, "not needed", &changed, NULL),
                     IE_OK);
    ck_assert_uint_eq(changed, 1);
    test_clock_advance(&the_rig.clock, 10000); /* past the real time of the change */
    run_ok(worker);
    ck_assert_uint_eq(fake_times(the_rig.fake, 4), 1);
    ck_assert_uint_eq(fake_times(the_rig.fake, 3), 0);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 1);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_scheduled_event_that_comes_due_waits_for_its_held_key)
{
    static const fake_rule rules[] = {
        {.topic = "head", .to = 1, .verdict = IE_RETRY, .reason = "x", .retry_after_ms = 10000}};
    char       sql[200];
    ie_worker *worker;

    rig_virtual();
    fake_script(the_rig.fake, rules, 1);
    (void)snprintf(sql, sizeof sql,
                   "INSERT INTO ie_event(topic, key, not_before) VALUES ('early', 'k', %lld),"
                   " ('head', 'k', NULL), ('late', 'k', %lld)",
                   (long long)the_rig.clock.wall_ms + 5000,
                   (long long)the_rig.clock.wall_ms + 5000);
    test_exec(the_rig.db, sql);
    worker = rig_worker();
    run_ok(worker);
    ck_assert_int_eq(rig_deliveries("scheduled"), 2);
    test_clock_advance(&the_rig.clock, 5000);
    run_ok(worker);
    ck_assert_int_eq(rig_deliveries("blocked"), 1); /* the later one; the earlier went */
    ck_assert_int_eq(fake_nth(the_rig.fake, 0), 1);
    test_clock_advance(&the_rig.clock, 5001);
    run_ok(worker);
    ck_assert_int_eq(fake_nth(the_rig.fake, 1), 2);
    ck_assert_int_eq(fake_nth(the_rig.fake, 2), 3);
    ie_worker_close(worker);
}
END_TEST

START_TEST(a_row_whose_event_is_gone_frees_its_key)
{
    static const fake_rule rules[] = {
        {.topic = "head", .to = 1, .verdict = IE_RETRY, .reason = "x", .retry_after_ms = 1000}};
    ie_worker *worker;

    rig_virtual();
    fake_script(the_rig.fake, rules, 1);
    (void)rig_publish("head", "k");
    (void)rig_publish("next", "k");
    worker = rig_worker();
    run_ok(worker);
    ck_assert_int_eq(rig_deliveries("blocked"), 1);
    test_exec(the_rig.db, "DELETE FROM ie_event WHERE topic = 'head'");
    test_clock_advance(&the_rig.clock, 1001);
    run_ok(worker);
    run_ok(worker);
    ck_assert_uint_eq(fake_times(the_rig.fake, 2), 1);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery"), 0);
    ie_worker_close(worker);
}
END_TEST

/* ---- none and strict ---- */

START_TEST(order_none_holds_back_nobody)
{
    static const fake_rule rules[] = {
        {.topic = "bad", .to = 1, .verdict = IE_RETRY, .reason = "x", .retry_after_ms = 1000}};
    ie_destination to;
    ie_worker     *worker;

    rig_virtual();
    destination(&to, IE_ORDER_NONE);
    fake_allow_overlap(the_rig.fake);
    fake_script(the_rig.fake, rules, 1);
    (void)rig_publish("bad", "k");
    for (int i = 0; i < 10; i++)
        (void)rig_publish("good", "k");
    worker = rig_worker();
    run_ok(worker);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 10);
    ck_assert_uint_eq(fake_calls(the_rig.fake), 1); /* all at once */
    ck_assert_int_eq(rig_deliveries("blocked"), 0);
    test_clock_advance(&the_rig.clock, 1001);
    run_ok(worker);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 11);
    ie_worker_close(worker);
}
END_TEST

START_TEST(strict_holds_all_behind_a_failing_head_across_restarts)
{
    static const fake_rule rules[] = {
        {.topic = "bad", .verdict = IE_RETRY, .reason = "strictly no", .retry_after_ms = 1000}};
    ie_destination to;
    ie_worker     *worker = NULL;

    rig_virtual();
    destination(&to, IE_ORDER_STRICT);
    the_rig.options.attempts_max = 4;
    the_rig.options.retry_delay_max_ms = 2000;
    fake_script(the_rig.fake, rules, 1);
    for (int i = 0; i < 5; i++)
        (void)rig_publish("good", i % 2 == 0 ? "a" : NULL);
    (void)rig_publish("bad", NULL); /* 6 */
    for (int i = 0; i < 5; i++)
        (void)rig_publish("good", NULL);
    for (int attempt = 1; attempt <= 3; attempt++) {
        worker = rig_worker();
        run_ok(worker); /* returns: nothing is due */
        ck_assert_uint_eq(fake_seen(the_rig.fake, 6), (unsigned)attempt);
        ck_assert_uint_eq(fake_distinct(the_rig.fake), 5);
        ck_assert_int_eq(rig_cursor(), 5);
        ck_assert_int_eq(test_int(the_rig.db, "SELECT attempts FROM ie_delivery"), attempt);
        ie_worker_close(worker);
        worker = rig_worker(); /* not before its time, also after a restart */
        run_ok(worker);
        ck_assert_uint_eq(fake_seen(the_rig.fake, 6), (unsigned)attempt);
        ie_worker_close(worker);
        test_clock_advance(&the_rig.clock, 1001);
    }
    worker = rig_worker();
    run_ok(worker);
    ie_worker_close(worker);
    ck_assert_int_eq(rig_deliveries("dead"), 1);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT attempts FROM ie_delivery"), 4);
    ck_assert_str_eq(the_rig.last_reason, "strictly no");
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 10); /* a dead head lets the rest go on */
    ck_assert_uint_eq(fake_in_flight_peak(the_rig.fake), 1);
    fake_check_order(the_rig.fake, true);
}
END_TEST

/* ---- everything at once ---- */

typedef struct chaos {
    uint64_t seed;
    unsigned calm_from; /* tries from then on go well: everything ends */
} chaos;

static fake_rule
chaos_decide(void *user, const ie_event *event, uint32_t seen)
{
    const chaos   *c = user;
    const uint64_t in[3] = {(uint64_t)event->position, seen, c->seed};
    const unsigned draw = (unsigned)(ie__digest(in, sizeof in, 99) % 1000);

    /* Always or never: else a dead worker's late delivery would come after the death. */
    if (ie__digest(&event->position, sizeof event->position, c->seed) % 1000 < 40)
        return (fake_rule){.verdict = IE_REJECTED, .reason = "rejected"};
    if (seen >= c->calm_from || draw < 550)
        return (fake_rule){.verdict = IE_DELIVERED};
    if (draw < 700)
        return (fake_rule){.verdict = IE_RETRY, .reason = "retry"};
    if (draw < 710)
        return (fake_rule){.verdict = IE_RETRY, .reason = "after", .retry_after_ms = 500};
    if (draw < 760)
        return (fake_rule){.verdict = IE_UNREACHABLE, .reason = "unreachable"};
    if (draw < 800)
        return (fake_rule){.when = FAKE_TWICE, .verdict = draw % 2 == 0 ? IE_DELIVERED : IE_RETRY};
    if (draw < 820)
        return (fake_rule){.when = FAKE_STRAY, .verdict = IE_DELIVERED};
    return (fake_rule){
        .when = FAKE_LATE, .late_ms = draw % 7, .verdict = draw < 950 ? IE_DELIVERED : IE_RETRY};
}

/* Workers that are left lying about, as if their process had died; kept so that nobody calls it a
 * leak. */
static ie_worker *dropped[400];

START_TEST(any_schedule_of_verdicts_and_crashes_keeps_the_promise)
{
    static const ie_order ORDERS[] = {IE_ORDER_KEY, IE_ORDER_STRICT, IE_ORDER_NONE};
    const uint64_t        total = test_scale(_i == 1 ? 300 : 3000);
    chaos                 c = {.seed = test_seed() + (uint64_t)_i, .calm_from = 8};
    uint64_t              random = c.seed;
    uint64_t              published = 0;
    unsigned              drops = 0;
    ie_worker            *worker = NULL;
    ie_destination        to;

    rig_virtual();
    destination(&to, ORDERS[_i]);
    if (ORDERS[_i] == IE_ORDER_NONE)
        fake_allow_overlap(the_rig.fake);
    the_rig.options.in_flight_max = 64;
    the_rig.options.batch_max = 16;
    the_rig.options.claims_max = 1000; /* what is dropped did not kill anyone */
    the_rig.options.lease_ms = 10000;
    fake_decider(the_rig.fake, chaos_decide, &c);
    for (int step = 0; step < 20000; step++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const unsigned draw = (unsigned)(random >> 33) % 100;

        if (worker == NULL)
            worker = rig_worker();
        if (draw < 30 && published < total) {
            rig_publish_many(25, 20);
            published += 25;
        }
        (void)ie_worker_run_once(worker, 1 + draw % 8, NULL, NULL);
        if (draw < 4 && drops < sizeof dropped / sizeof dropped[0]) {
            dropped[drops++] = worker;
            worker = NULL;
            test_clock_advance(&the_rig.clock, 10001);
        } else if (draw > 96) {
            ie_worker_close(worker);
            worker = NULL;
        }
        test_clock_advance(&the_rig.clock, 1 + draw);
        if (published >= total && draw % 10 == 0 && rig_cursor() == rig_newest() &&
            test_int(the_rig.db, "SELECT count(*) FROM ie_delivery WHERE state <> 'dead'") == 0)
            break;
    }
    ie_worker_close(worker);
    (void)fprintf(
        stderr, "chaos %d: %llu events, %llu sent, %llu distinct, %lld dead, %u crashes\n", _i,
        (unsigned long long)published, (unsigned long long)fake_received(the_rig.fake),
        (unsigned long long)fake_distinct(the_rig.fake), (long long)rig_deliveries("dead"), drops);
    ck_assert_int_eq(rig_cursor(), rig_newest());
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery WHERE state <> 'dead'"),
                     0);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT count(*) FROM ie_delivery WHERE reason = ''"), 0);
    for (int64_t position = 1; position <= rig_newest(); position++)
        if (fake_times(the_rig.fake, position) == 0) {
            char sql[128];

            (void)snprintf(
                sql, sizeof sql,
                "SELECT count(*) FROM ie_delivery WHERE position = %lld AND state = 'dead'",
                (long long)position);
            ck_assert_msg(test_int(the_rig.db, sql) == 1, "position %lld was lost",
                          (long long)position);
        }
    if (ORDERS[_i] != IE_ORDER_NONE)
        fake_check_order(the_rig.fake, ORDERS[_i] == IE_ORDER_STRICT);
}
END_TEST

/* ---- an event that kills the process ---- */

static void
work_to_the_end(void *arg)
{
    ie_worker *worker = rig_worker();

    (void)arg;
    for (int i = 0; i < 2000; i++) {
        ie_worker_report report;

        if (ie_worker_run_once(worker, 5000, &report, NULL) == IE_OK && report.pending == 0)
            _exit(0);
        (void)poll(NULL, 0, 2);
    }
    _exit(1);
}

START_TEST(an_event_that_kills_the_process_ends_dead)
{
    static const fake_rule RULES[][4] = {
        /* at its first try; in a retry; in a retry while other retries are about; in strict order
         */
        {{.topic = "t.7", .when = FAKE_EXIT}},
        {{.topic = "t.7", .to = 1, .verdict = IE_RETRY, .reason = "first"},
         {.topic = "t.7", .when = FAKE_EXIT}},
        {{.topic = "t.7", .to = 1, .verdict = IE_RETRY, .reason = "first"},
         {.topic = "t.7", .when = FAKE_EXIT},
         {.to = 1, .verdict = IE_RETRY, .reason = "all others too"}},
        {{.topic = "t.7", .when = FAKE_EXIT}},
    };
    ie_destination to;
    int            processes = 0;
    int            crashes = 0;
    int            code;

    if (_i == 3)
        destination(&to, IE_ORDER_STRICT);
    the_rig.options.in_flight_max = 100;
    fake_script(the_rig.fake, RULES[_i], 4 - (_i == 2 ? 1 : _i == 1 ? 2 : 3));
    for (int i = 0; i < 300; i++) {
        char topic[16];
        char key[16];

        (void)snprintf(topic, sizeof topic, "t.%d", i == 150 ? 7 : 8);
        (void)snprintf(key, sizeof key, "k%d", i % 11);
        (void)rig_publish(topic, key);
    }
    do {
        code = rig_reap(rig_fork(work_to_the_end, NULL));
        ck_assert_msg(code == 0 || code == 77, "worker ended with %d", code);
        crashes += code == 77;
        processes++;
    } while (code == 77 && processes < 30);
    (void)fprintf(stderr, "killer %d: %d processes died, the next one finished\n", _i, crashes);
    ck_assert_int_eq(code, 0);
    ck_assert_int_le(crashes, 5 + 2); /* claims_max alone, and two to narrow it down */
    ck_assert_int_ge(crashes, 5);
    ck_assert_int_eq(rig_deliveries("dead"), 1);
    ck_assert_int_eq(test_int(the_rig.db, "SELECT position FROM ie_delivery WHERE state = 'dead'"),
                     151);
    ck_assert_ptr_nonnull(
        strstr(test_text(the_rig.db, "SELECT reason FROM ie_delivery"), "claims_max"));
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 299);
    fake_check_order(the_rig.fake, _i == 3);
}
END_TEST

/* Somebody restarts the service again and again, each time in the middle: nobody is to blame. */
START_TEST(kills_from_outside_make_nobody_dead)
{
    static const fake_rule slow[] = {{.when = FAKE_LATE, .late_ms = 2}};
    pid_t                  pid;

    fake_allow_overlap(the_rig.fake);
    fake_script(the_rig.fake, slow, 1);
    rig_publish_many(2000, 10);
    for (int i = 0; i < 40; i++) {
        pid = rig_fork(work_on, NULL);
        (void)poll(NULL, 0, (int)(1 + ie__random_below(40)));
        (void)kill(pid, SIGKILL);
        (void)rig_reap(pid);
    }
    fake_script(the_rig.fake, NULL, 0);
    ck_assert_int_eq(rig_run(NULL), IE_OK);
    ck_assert_uint_eq(fake_distinct(the_rig.fake), 2000);
    ck_assert_int_eq(rig_deliveries("dead"), 0);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("order");
    SRunner *runner;
    TCase   *tcase;
    int      failed;

#define CASE(name, timeout)                                                                        \
    tcase = tcase_create(name);                                                                    \
    tcase_add_checked_fixture(tcase, rig_setup, rig_teardown);                                     \
    tcase_set_timeout(tcase, timeout);                                                             \
    suite_add_tcase(suite, tcase)

    CASE("key", 120);
    tcase_add_test(tcase, a_thousand_keys_stay_in_order_under_kills);
    tcase_add_test(tcase, the_other_999_keys_are_not_slowed);
    tcase_add_test(tcase, a_held_key_is_visible_and_released_in_order);
    tcase_add_test(tcase, nobody_overtakes_the_blocked_while_the_head_is_in_flight);
    tcase_add_test(tcase, what_is_sent_again_or_given_up_lets_its_key_go_on);
    tcase_add_test(tcase, a_scheduled_event_that_comes_due_waits_for_its_held_key);
    tcase_add_test(tcase, a_row_whose_event_is_gone_frees_its_key);
    CASE("none and strict", 60);
    tcase_add_test(tcase, order_none_holds_back_nobody);
    tcase_add_test(tcase, strict_holds_all_behind_a_failing_head_across_restarts);
    CASE("chaos", 120);
    tcase_add_loop_test(tcase, any_schedule_of_verdicts_and_crashes_keeps_the_promise, 0, 3);
    CASE("killer", 120);
    tcase_add_loop_test(tcase, an_event_that_kills_the_process_ends_dead, 0, 4);
    tcase_add_test(tcase, kills_from_outside_make_nobody_dead);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
