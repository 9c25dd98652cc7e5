/* memory:NAME and its receiving side, beyond what the conformance suite asks. */
#include <check.h>
#include <ie/memory.h>
#include <ie/publisher_env.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "memory_publisher.h"
#include "support.h"

#define EVENTS_MAX 64

/* The verdicts by ticket, and how many came. */
static ie_verdict        verdicts[EVENTS_MAX];
static char              reasons[EVENTS_MAX][200];
static atomic_uint       report_count;
static ie_publisher_env *env;
static void             *publisher;
static ie_event          events[EVENTS_MAX];
static ie_outgoing       batch[EVENTS_MAX];

static void
note(void *user, uint64_t ticket, ie_verdict verdict, const char *reason, uint32_t delay_ms)
{
    (void)user;
    ck_assert_uint_eq(delay_ms, 0);
    ck_assert_uint_lt(ticket, EVENTS_MAX);
    verdicts[ticket] = verdict;
    (void)snprintf(reasons[ticket], sizeof reasons[0], "%s", reason != NULL ? reason : "");
    (void)atomic_fetch_add(&report_count, 1);
}

static void
begin(void)
{
    ck_assert_int_eq(ie_publisher_env_new(&env, note, NULL, NULL, NULL), IE_OK);
    for (size_t i = 0; i < EVENTS_MAX; i++) {
        events[i] = (ie_event){.size = sizeof(ie_event), .topic = "orders.placed", .id = "id-1"};
        events[i].position = (int64_t)i;
        batch[i] = (ie_outgoing){.event = &events[i], .ticket = i, .attempt = 1};
    }
}

static void
finish(void)
{
    if (publisher != NULL)
        ie__publisher_memory.close(publisher);
    ie_publisher_env_free(env);
}

static void
publisher_open(const char *url)
{
    ie_error err = IE_ERROR_INIT;

    ck_assert_msg(ie__publisher_memory.open(&publisher, url, env, &err) == IE_OK, "%s",
                  err.message);
}

static void
publish(size_t count)
{
    atomic_store(&report_count, 0);
    ie__publisher_memory.publish(publisher, batch, count);
    ck_assert_uint_eq(atomic_load(&report_count), count);
}

static ie_memory_counters
counters_now(void)
{
    ie_memory_counters counters = {.size = sizeof counters};

    ck_assert_int_eq(ie_memory_counters_get(&counters, "memory:t", NULL), IE_OK);
    return counters;
}

typedef struct tally {
    unsigned                calls;
    ie_status               answer;
    ie_memory_subscription *subscription;
} tally;

static ie_status
count_call(void *user, const ie_event *event, ie_error *err)
{
    tally *tally_ = user;

    (void)event;
    tally_->calls++;
    return tally_->answer == IE_EREFUSED ? ie_error_set(err, IE_EREFUSED, "not for me")
                                         : tally_->answer;
}

START_TEST(event_that_nobody_takes_stays_in_the_outbox)
{
    publisher_open("memory:t");
    publish(3);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(verdicts[i], IE_UNREACHABLE);
        ck_assert_str_eq(reasons[i], "no subscribers on memory:t for topic orders.placed");
    }
    ck_assert_uint_eq(counters_now().unreachable, 3);
}
END_TEST

START_TEST(sink_accepts_and_counts_what_nobody_takes)
{
    ie_memory_subscription *subscription = NULL;
    tally                   other = {0};

    publisher_open("memory:t?sink=true");
    publish(10);
    ck_assert_int_eq(verdicts[9], IE_DELIVERED);
    ck_assert_uint_eq(counters_now().sunk, 10);
    ck_assert_uint_eq(counters_now().delivered, 10);
    /* As a filter: somebody is there, but wants something else. */
    ck_assert_int_eq(
        ie_memory_subscribe(&subscription, "memory:t", "bills.>", count_call, &other, NULL), IE_OK);
    events[1].topic = "bills.sent";
    publish(2);
    ck_assert_int_eq(verdicts[0], IE_DELIVERED);
    ck_assert_uint_eq(other.calls, 1);
    ck_assert_uint_eq(counters_now().sunk, 11);
    ck_assert_uint_eq(counters_now().delivered, 12);
    ie_memory_unsubscribe(subscription);
}
END_TEST

START_TEST(answer_of_the_handler_is_the_verdict)
{
    static const struct {
        ie_status   answer;
        ie_verdict  verdict;
        const char *reason;
    } ROWS[] = {
        {IE_OK, IE_DELIVERED, ""},
        {IE_EHANDLER, IE_RETRY, "the handler failed"},
        {IE_EREFUSED, IE_REJECTED, "not for me"},
        {IE_EUNREACHABLE, IE_UNREACHABLE, "cannot reach the other side"},
        {IE_ENOMEM, IE_RETRY, "out of memory"},
    };
    ie_memory_subscription *subscription = NULL;
    tally                   me = {0};

    ck_assert_int_eq(ie_memory_subscribe(&subscription, "memory:t", NULL, count_call, &me, NULL),
                     IE_OK);
    publisher_open("memory:t");
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        me.answer = ROWS[i].answer;
        publish(1);
        ck_assert_int_eq(verdicts[0], ROWS[i].verdict);
        ck_assert_str_eq(reasons[0], ROWS[i].reason);
    }
    ck_assert_uint_eq(counters_now().delivered, 1);
    ck_assert_uint_eq(counters_now().retried, 2);
    ck_assert_uint_eq(counters_now().rejected, 1);
    ck_assert_uint_eq(counters_now().unreachable, 1);
    ck_assert_uint_eq(counters_now().subscribers, 1);
    ie_memory_unsubscribe(subscription);
}
END_TEST

START_TEST(one_failing_event_does_not_fail_its_batch)
{
    ie_memory_subscription *good = NULL;
    ie_memory_subscription *bad = NULL;
    tally                   taken = {0};
    tally                   refused = {.answer = IE_EHANDLER};

    ck_assert_int_eq(ie_memory_subscribe(&good, "memory:t", ">", count_call, &taken, NULL), IE_OK);
    ck_assert_int_eq(ie_memory_subscribe(&bad, "memory:t", "*.bad", count_call, &refused, NULL),
                     IE_OK);
    publisher_open("memory:t");
    events[1].topic = "orders.bad";
    publish(4);
    ck_assert_int_eq(verdicts[0], IE_DELIVERED);
    ck_assert_int_eq(verdicts[1], IE_RETRY);
    ck_assert_int_eq(verdicts[2], IE_DELIVERED);
    ck_assert_int_eq(verdicts[3], IE_DELIVERED);
    ck_assert_uint_eq(taken.calls, 4);
    ck_assert_uint_eq(refused.calls, 1);
    ie_memory_unsubscribe(good);
    ie_memory_unsubscribe(bad);
}
END_TEST

START_TEST(full_queue_is_unreachable_and_keeps_its_order)
{
    ie_memory_queue *queue = NULL;
    ie_event        *event = NULL;

    ck_assert_int_eq(ie_memory_queue_open(&queue, "memory:t", ">", 3, NULL), IE_OK);
    publisher_open("memory:t");
    publish(5);
    ck_assert_int_eq(verdicts[2], IE_DELIVERED);
    ck_assert_int_eq(verdicts[3], IE_UNREACHABLE);
    ck_assert_int_eq(verdicts[4], IE_UNREACHABLE);
    ck_assert_str_eq(reasons[3], "a queue of memory:t is full");
    for (int64_t i = 0; i < 3; i++) {
        ck_assert_int_eq(ie_memory_queue_next(&event, queue, 0), IE_OK);
        ck_assert_int_eq(event->position, i);
        ie_event_free(event);
    }
    ck_assert_int_eq(ie_memory_queue_next(&event, queue, 0), IE_ETIMEDOUT);
    ck_assert_int_eq(ie_memory_queue_next(&event, queue, 20), IE_ETIMEDOUT);
    publish(1); /* it works again, and wraps around */
    ck_assert_int_eq(verdicts[0], IE_DELIVERED);
    ie_memory_queue_close(queue); /* with an event in it */
}
END_TEST

START_TEST(queue_is_bounded_in_bytes)
{
    char            *data = calloc(1, IE_DATA_BYTES_MAX);
    ie_memory_queue *queue = NULL;

    ck_assert_int_eq(ie_memory_queue_open(&queue, "memory:t", ">", 1000, NULL), IE_OK);
    publisher_open("memory:t");
    for (size_t i = 0; i < EVENTS_MAX; i++) {
        events[i].data = data;
        events[i].data_bytes = IE_DATA_BYTES_MAX;
    }
    publish(EVENTS_MAX); /* 64 MiB, and the structs */
    ck_assert_int_eq(verdicts[62], IE_DELIVERED);
    ck_assert_int_eq(verdicts[63], IE_UNREACHABLE);
    ie_memory_queue_close(queue);
    free(data);
}
END_TEST

static void *
pull_one(void *queue)
{
    ie_event *event = NULL;

    return ie_memory_queue_next(&event, queue, 10000) == IE_OK ? event : NULL;
}

START_TEST(waiting_reader_is_woken)
{
    ie_memory_queue *queue = NULL;
    pthread_t        reader;
    void            *got = NULL;

    ck_assert_int_eq(ie_memory_queue_open(&queue, "memory:t", NULL, 0, NULL), IE_OK);
    publisher_open("memory:t");
    ck_assert_int_eq(pthread_create(&reader, NULL, pull_one, queue), 0);
    publish(1);
    ck_assert_int_eq(pthread_join(reader, &got), 0);
    ck_assert_ptr_nonnull(got);
    ie_event_free(got);
    ie_memory_queue_close(queue);
}
END_TEST

static ie_status
leave_at_once(void *user, const ie_event *event, ie_error *err)
{
    tally *me = user;

    (void)event;
    (void)err;
    me->calls++;
    ie_memory_unsubscribe(me->subscription);
    return IE_OK;
}

START_TEST(handler_may_unsubscribe_itself)
{
    ie_memory_subscription *other = NULL;
    tally                   once = {0};
    tally                   all = {0};

    ck_assert_int_eq(
        ie_memory_subscribe(&once.subscription, "memory:t", ">", leave_at_once, &once, NULL),
        IE_OK);
    ck_assert_int_eq(ie_memory_subscribe(&other, "memory:t", ">", count_call, &all, NULL), IE_OK);
    publisher_open("memory:t");
    publish(5);
    ck_assert_uint_eq(once.calls, 1);
    ck_assert_uint_eq(all.calls, 5);
    ck_assert_uint_eq(counters_now().subscribers, 1);
    ie_memory_unsubscribe(other);
}
END_TEST

static atomic_bool is_stopping;

static void *
come_and_go(void *arg)
{
    tally                   mine = {0};
    ie_memory_subscription *subscription = NULL;

    (void)arg;
    while (!atomic_load(&is_stopping)) {
        if (ie_memory_subscribe(&subscription, "memory:t", ">", count_call, &mine, NULL) != IE_OK)
            return &is_stopping;
        ie_memory_unsubscribe(subscription); /* mine may be gone from here on */
    }
    return NULL;
}

START_TEST(subscribers_come_and_go_while_events_flow)
{
    pthread_t threads[3];
    void     *failed = NULL;

    publisher_open("memory:t?sink=true");
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, come_and_go, NULL), 0);
    for (int i = 0; i < 2000; i++) {
        publish(8);
        ck_assert_int_eq(verdicts[7], IE_DELIVERED);
    }
    atomic_store(&is_stopping, true);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(pthread_join(threads[i], &failed), 0);
        ck_assert_ptr_null(failed);
    }
    ck_assert_uint_eq(counters_now().delivered, 16000);
}
END_TEST

START_TEST(bad_names_are_refused)
{
    static const char *const BAD[] = {"memory:",      "memory:a b", "memory:a/b",
                                      "memory://h/x", "file:///x",  "memory:a%20",
                                      "memory",       "",           "memory:a?b=1"};
    ie_memory_subscription  *subscription = NULL;
    ie_memory_queue         *queue = NULL;
    char                     name[80] = "memory:";
    tally                    me = {0};

    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        ie_error err = IE_ERROR_INIT;

        ck_assert_msg(ie_memory_subscribe(&subscription, BAD[i], ">", count_call, &me, &err) ==
                          IE_EINVAL,
                      "'%s' was taken", BAD[i]);
        ck_assert_str_ne(err.message, "");
    }
    ck_assert_int_eq(ie_memory_subscribe(&subscription, "memory:t", "a.>.b", count_call, &me, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(ie_memory_subscribe(&subscription, "memory:t", ">", NULL, &me, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(ie_memory_queue_open(&queue, "memory:t", ">", 1000001, NULL), IE_EINVAL);
    memset(name + 7, 'a', 64);
    ck_assert_int_eq(ie_memory_subscribe(&subscription, name, ">", count_call, &me, NULL), IE_OK);
    ie_memory_unsubscribe(subscription);
    memset(name + 7, 'a', 65);
    ck_assert_int_eq(ie_memory_subscribe(&subscription, name, ">", count_call, &me, NULL),
                     IE_EINVAL);
}
END_TEST

START_TEST(channel_ends_with_its_last_user)
{
    ie_memory_counters counters = {.size = sizeof counters};
    ie_error           err = IE_ERROR_INIT;

    ck_assert_int_eq(ie_memory_counters_get(&counters, "memory:t", &err), IE_ENOTFOUND);
    ck_assert_str_eq(err.message, "nobody uses memory:t");
    publisher_open("memory:t?sink=true");
    publish(1);
    ck_assert_uint_eq(counters_now().sunk, 1);
    ie__publisher_memory.close(publisher);
    publisher = NULL;
    ck_assert_int_eq(ie_memory_counters_get(&counters, "memory:t", NULL), IE_ENOTFOUND);
}
END_TEST

START_TEST(every_allocation_may_fail)
{
    ie_memory_queue *queue = NULL;
    ie_status        status = IE_ENOMEM;

    for (uint64_t n = 1; status != IE_OK; n++) {
        ck_assert_uint_lt(n, 20);
        ie__alloc_fail_at(n, false);
        status = ie_memory_queue_open(&queue, "memory:t", ">", 4, NULL);
        ie__alloc_fail_at(0, false);
        ck_assert(status == IE_OK ? n > 2 : status == IE_ENOMEM && queue == NULL);
    }
    publisher_open("memory:t");
    ie__alloc_fail_at(1, false);
    publish(1);
    ie__alloc_fail_at(0, false);
    ck_assert_int_eq(verdicts[0],
                     IE_UNREACHABLE); /* spends nothing: it was not the event's fault */
    publish(1);
    ck_assert_int_eq(verdicts[0], IE_DELIVERED);
    ie_memory_queue_close(queue);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("memory");
    TCase   *cases = tcase_create("memory");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(cases, begin, finish);
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, event_that_nobody_takes_stays_in_the_outbox);
    tcase_add_test(cases, sink_accepts_and_counts_what_nobody_takes);
    tcase_add_test(cases, answer_of_the_handler_is_the_verdict);
    tcase_add_test(cases, one_failing_event_does_not_fail_its_batch);
    tcase_add_test(cases, full_queue_is_unreachable_and_keeps_its_order);
    tcase_add_test(cases, queue_is_bounded_in_bytes);
    tcase_add_test(cases, waiting_reader_is_woken);
    tcase_add_test(cases, handler_may_unsubscribe_itself);
    tcase_add_test(cases, subscribers_come_and_go_while_events_flow);
    tcase_add_test(cases, bad_names_are_refused);
    tcase_add_test(cases, channel_ends_with_its_last_user);
    tcase_add_test(cases, every_allocation_may_fail);
    suite_add_tcase(suite, cases);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
