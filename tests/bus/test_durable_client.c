/* Durable groups as a program meets them: through the client, over restarts of either side. */
#include "bus_support.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static ie_bus_server *server;
static char           url[300];
static char           data_dir[300];

static void
up(void)
{
    const char           *listen[] = {url};
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    options.data_dir = data_dir;
    options.retry_delay_ms = 10;
    options.retry_delay_ms_max = 20;
    server = bus_start(&options);
}

static void
down(void)
{
    (void)ie_bus_server_stop(server, 0);
    ie_bus_server_close(server);
    server = NULL;
}

static void
set_up(void)
{
    (void)test_dir_make();
    (void)snprintf(url, sizeof url, "unix:%s", test_path("bus.sock"));
    (void)snprintf(data_dir, sizeof data_dir, "%s", test_path("data"));
    up();
}

static void
tear_down(void)
{
    down();
    test_dir_remove();
}

static const ie_bus_dispatch MODES[] = {IE_BUS_DISPATCH_INLINE, IE_BUS_DISPATCH_THREAD};

static ie_bus_client *
client_of(ie_bus_dispatch dispatch)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.dispatch = dispatch;
    options.reconnect_delay_ms = 10;
    options.reconnect_delay_ms_max = 50;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    return client;
}

/* ---- publishing and receiving ---- */

typedef struct stored {
    atomic_ulong answered;
    atomic_ulong stored;
} stored;

static void
note_stored(void *user, const ie_bus_answer *answer)
{
    stored *self = user;

    if (answer->status == IE_OK && answer->stored)
        (void)atomic_fetch_add(&self->stored, 1);
    (void)atomic_fetch_add(&self->answered, 1);
}

/* Publish events with the numbers from..to, and wait until all are in the log. */
static void
put(long from, long to)
{
    ie_bus_client *client = client_of(IE_BUS_DISPATCH_INLINE);
    stored         answers = {0};

    for (long i = from; i <= to; i++) {
        ie_event event = IE_EVENT_INIT;
        char     text[32];

        event.topic = "orders.placed";
        event.data = text;
        event.data_bytes = (size_t)snprintf(text, sizeof text, "%ld", i);
        ck_assert_int_eq(ie_bus_client_publish(client, &event, IE_BUS_PUBLISH_PERSISTENT,
                                               note_stored, &answers, NULL),
                         IE_OK);
    }
    ck_assert(wait_for(&answers.answered, (unsigned long)(to - from + 1)));
    ck_assert_uint_eq(atomic_load(&answers.stored), (unsigned long)(to - from + 1));
    ie_bus_client_close(client);
}

#define LOG_MAX 1024

/* What a group got, in order. */
typedef struct got {
    pthread_mutex_t mutex;
    atomic_ulong    count;
    long            numbers[LOG_MAX];
    int64_t         positions[LOG_MAX];
    uint32_t        attempts[LOG_MAX];
    uint64_t        tokens[LOG_MAX];
    ie_status       result;
} got;

static ie_status
take(void *user, const ie_event *event, const ie_bus_delivery *delivery)
{
    got *self = user;
    char text[32] = "";

    (void)pthread_mutex_lock(&self->mutex);
    if (atomic_load(&self->count) < LOG_MAX) {
        const unsigned long at = atomic_load(&self->count);

        if (event->data_bytes < sizeof text)
            memcpy(text, event->data, event->data_bytes);
        self->numbers[at] = strtol(text, NULL, 10);
        self->positions[at] = delivery->position;
        self->attempts[at] = delivery->attempt;
        self->tokens[at] = delivery->token;
    }
    (void)atomic_fetch_add(&self->count, 1);
    (void)pthread_mutex_unlock(&self->mutex);
    return self->result;
}

static got *
got_new(void)
{
    got *self = calloc(1, sizeof *self);

    ck_assert_ptr_nonnull(self);
    (void)pthread_mutex_init(&self->mutex, NULL);
    return self;
}

static void
join_with(ie_bus_client *client, got *to, ie_bus_start start, int64_t start_at, uint32_t flags,
          uint32_t attempts_max)
{
    ie_bus_subscription asked;
    ie_error            err = IE_ERROR_INIT;

    IE_BUS_SUBSCRIPTION_INIT(&asked);
    asked.pattern = "orders.>";
    asked.group = "billing";
    asked.start = start;
    asked.start_at = start_at;
    asked.flags = flags;
    asked.attempts_max = attempts_max;
    asked.on_delivery = take;
    asked.user = to;
    ck_assert_msg(ie_bus_client_subscribe_with(client, &asked, NULL, &err) == IE_OK, "%s",
                  err.message);
    ck_assert_msg(ie_bus_client_wait_subscribed(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
}

static bool
has_nothing_open(void *arg)
{
    (void)arg;
    return bus_stats(server).held_events == 0;
}

/* ---- what is promised ---- */

START_TEST(what_was_published_before_is_there_and_a_restart_replays_nothing)
{
    ie_bus_client *client = client_of(MODES[_i]);
    got           *first = got_new();
    got           *again = got_new();

    put(1, 100);
    join_with(client, first, IE_BUS_START_FIRST, 0, 0, 0);
    ck_assert(wait_for(&first->count, 100));
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(first->numbers[i], i + 1);
        ck_assert_int_gt(first->positions[i], i == 0 ? 0 : first->positions[i - 1]);
        ck_assert_uint_eq(first->attempts[i], 1);
    }
    ie_bus_client_close(client);
    ck_assert(poll_until(has_nothing_open, NULL, WAIT_MS));
    put(101, 150); /* while it is away */
    client = client_of(MODES[_i]);
    join_with(client, again, IE_BUS_START_FIRST, 0, 0, 0); /* the same words as the first time */
    put(151, 160);
    ck_assert(wait_for(&again->count, 60));
    for (int i = 0; i < 60; i++)
        ck_assert_int_eq(again->numbers[i], 101 + i);
    ck_assert_uint_eq(atomic_load(&again->count), 60);
    ie_bus_client_close(client);
    free(first);
    free(again);
}
END_TEST

typedef struct awaited {
    got *all;
    int  first;
    int  last;
} awaited;

/* Has each of these numbers come, in whatever order? */
static bool
have_come(void *arg)
{
    const awaited *wanted = arg;
    bool           is_there[50] = {false};
    bool           have_all = true;

    (void)pthread_mutex_lock(&wanted->all->mutex);
    for (unsigned long i = 0; i < atomic_load(&wanted->all->count); i++)
        if (wanted->all->numbers[i] >= wanted->first && wanted->all->numbers[i] <= wanted->last)
            is_there[wanted->all->numbers[i] - wanted->first] = true;
    (void)pthread_mutex_unlock(&wanted->all->mutex);
    for (int i = 0; i <= wanted->last - wanted->first; i++)
        have_all = have_all && is_there[i];
    return have_all;
}

/* Has the only group handled everything, as the bus sees it? */
static bool
is_settled(void *client)
{
    ie_buffer answer = {NULL, 0, 0};
    bool      is_so = false;

    if (ie_bus_client_query_wait(client, "$bus.groups", NULL, 0, WAIT_MS, &answer, NULL) == IE_OK &&
        ie__buffer_add(&answer, "", 1) == IE_OK)
        is_so = strstr((const char *)answer.data, "\"lag\":0") != NULL &&
                strstr((const char *)answer.data, "\"in_flight\":0") != NULL &&
                strstr((const char *)answer.data, "\"retrying\":0") != NULL;
    ie_buffer_fini(&answer);
    return is_so;
}

START_TEST(a_restarted_bus_goes_on_where_the_group_stood)
{
    ie_bus_client *client = client_of(MODES[_i]);
    got           *all = got_new();

    put(1, 50);
    join_with(client, all, IE_BUS_START_FIRST, 0, 0, 0);
    ck_assert(wait_for(&all->count, 50));
    for (int round = 1; round <= 3; round++) {
        const unsigned long before = atomic_load(&all->count);
        awaited             fresh = {all, 50 * round + 1, 50 * round + 50};
        unsigned long       now;

        ck_assert(poll_until(is_settled, client, WAIT_MS));
        down();
        up();
        put(fresh.first, fresh.last);
        ck_assert(poll_until(have_come, &fresh, WAIT_MS));
        now = atomic_load(&all->count);
        ck_assert_uint_lt(now, LOG_MAX);
        for (unsigned long i = before; i < now; i++) /* neither the start nor the last round */
            ck_assert_int_gt(all->numbers[i], 50 * round);
    }
    ie_bus_client_close(client);
    free(all);
}
END_TEST

START_TEST(a_group_begins_where_it_is_told)
{
    static const char *const NAMES[] = {"at-position", "at-end", "by-default", "at-time"};
    got                     *seen[4];
    ie_bus_client           *client = client_of(IE_BUS_DISPATCH_INLINE);
    got                     *all = got_new();

    put(1, 20);
    join_with(client, all, IE_BUS_START_FIRST, 0, 0, 0);
    ck_assert(wait_for(&all->count, 20));
    for (int i = 0; i < 4; i++) {
        ie_bus_subscription asked;

        seen[i] = got_new();
        IE_BUS_SUBSCRIPTION_INIT(&asked);
        asked.pattern = "orders.>";
        asked.group = NAMES[i];
        asked.start = i == 0   ? IE_BUS_START_POSITION
                      : i == 1 ? IE_BUS_START_END
                      : i == 2 ? IE_BUS_START_GROUP
                               : IE_BUS_START_TIME;
        asked.start_at = i == 0 ? all->positions[10] : i == 3 ? 1 : 0;
        asked.on_delivery = take;
        asked.user = seen[i];
        ck_assert_int_eq(ie_bus_client_subscribe_with(client, &asked, NULL, NULL), IE_OK);
    }
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    put(21, 30);
    ck_assert(wait_for(&seen[0]->count, 20)); /* 11 to 30 */
    ck_assert(wait_for(&seen[1]->count, 10));
    ck_assert(wait_for(&seen[2]->count, 10));
    ck_assert(wait_for(&seen[3]->count, 30));
    ck_assert_int_eq(seen[0]->numbers[0], 11);
    ck_assert_int_eq(seen[1]->numbers[0], 21);
    ck_assert_int_eq(seen[2]->numbers[0], 21);
    ck_assert_int_eq(seen[3]->numbers[0], 1);
    ie_bus_client_close(client);
    for (int i = 0; i < 4; i++)
        free(seen[i]);
    free(all);
}
END_TEST

static bool
has_dead(void *arg)
{
    return bus_stats(server).dead == *(const uint64_t *)arg;
}

START_TEST(refusals_count_attempts_and_end_as_dead_letters)
{
    ie_bus_client *client = client_of(MODES[_i]);
    got           *all = got_new();
    uint64_t       dead = 1;

    all->result = IE_EHANDLER;
    join_with(client, all, IE_BUS_START_FIRST, 0, 0, 3);
    put(1, 1);
    ck_assert(poll_until(has_dead, &dead, WAIT_MS));
    ck_assert_uint_eq(atomic_load(&all->count), 3);
    for (uint32_t i = 0; i < 3; i++)
        ck_assert_uint_eq(all->attempts[i], i + 1);
    ie_bus_client_close(client);
    free(all);
}
END_TEST

START_TEST(answers_by_token_ack_delay_and_reject)
{
    ie_bus_client *client = client_of(MODES[_i]);
    got           *all = got_new();
    uint64_t       dead = 1;
    int64_t        begin;

    join_with(client, all, IE_BUS_START_FIRST, 0, IE_BUS_SUBSCRIBE_MANUAL, 0);
    put(1, 3);
    ck_assert(wait_for(&all->count, 3));
    ck_assert_int_eq(ie_bus_client_ack(client, all->tokens[1]), IE_OK);
    ck_assert_int_eq(ie_bus_client_nack(client, all->tokens[2], IE_EREFUSED, 0, "no such order"),
                     IE_OK);
    ck_assert(poll_until(has_dead, &dead, WAIT_MS));
    begin = ie__mono_ns();
    ck_assert_int_eq(ie_bus_client_nack(client, all->tokens[0], IE_EHANDLER, 300, "later"), IE_OK);
    ck_assert(wait_for(&all->count, 4));
    ck_assert_int_ge(ie__mono_ns() - begin, INT64_C(290000000)); /* not before */
    ck_assert_int_eq(all->numbers[3], 1);
    ck_assert_uint_eq(all->attempts[3], 2);
    ck_assert_int_eq(ie_bus_client_ack(client, all->tokens[3]), IE_OK);
    ie_bus_client_close(client);
    free(all);
}
END_TEST

START_TEST(what_was_not_answered_comes_again_to_the_next_client)
{
    ie_bus_client *client = client_of(MODES[_i]);
    got           *first = got_new();
    got           *again = got_new();

    join_with(client, first, IE_BUS_START_FIRST, 0, IE_BUS_SUBSCRIBE_MANUAL, 0);
    put(1, 10);
    ck_assert(wait_for(&first->count, 10));
    for (int i = 0; i < 10; i += 2)
        ck_assert_int_eq(ie_bus_client_ack(client, first->tokens[i]), IE_OK);
    ie_bus_client_close(client); /* what was acknowledged goes out before */
    client = client_of(MODES[_i]);
    join_with(client, again, IE_BUS_START_FIRST, 0, 0, 0);
    ck_assert(wait_for(&again->count, 5));
    for (int i = 0; i < 5; i++) { /* in which order is not promised but to sticky groups */
        ck_assert_int_eq(again->numbers[i] % 2, 0);
        for (int j = 0; j < i; j++)
            ck_assert_int_ne(again->numbers[j], again->numbers[i]);
    }
    ie_bus_client_close(client);
    free(first);
    free(again);
}
END_TEST

START_TEST(an_ephemeral_group_has_no_place_in_the_log)
{
    ie_bus_client *client = client_of(MODES[_i]);
    got           *all = got_new();

    put(1, 10);
    join_with(client, all, IE_BUS_START_GROUP, 0, IE_BUS_SUBSCRIBE_EPHEMERAL, 0);
    put(11, 20);
    ck_assert(wait_for(&all->count, 10));
    ck_assert_int_eq(all->numbers[0], 11);
    ck_assert_int_eq(all->positions[0], 0);
    ck_assert_uint_eq(all->attempts[0], 0);
    ie_bus_client_close(client);
    free(all);
}
END_TEST

START_TEST(a_publish_that_is_sent_again_is_stored_once)
{
    ie_bus_client_options options;
    ie_bus_client        *publisher = NULL;
    ie_bus_client        *subscriber = client_of(IE_BUS_DISPATCH_INLINE);
    got                  *all = got_new();
    stored                answers = {0};
    bool                  is_there[LOG_MAX] = {false};

    join_with(subscriber, all, IE_BUS_START_FIRST, 0, 0, 0);
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.flags = IE_BUS_CLIENT_REPUBLISH;
    options.reconnect_delay_ms = 10;
    options.reconnect_delay_ms_max = 50;
    ck_assert_int_eq(ie_bus_client_open(&publisher, &options, NULL), IE_OK);
    for (long i = 1; i <= 600; i++) {
        ie_event event = IE_EVENT_INIT;
        char     text[32];

        event.topic = "orders.placed";
        event.data = text;
        event.data_bytes = (size_t)snprintf(text, sizeof text, "%ld", i);
        ck_assert_int_eq(ie_bus_client_publish(publisher, &event, IE_BUS_PUBLISH_PERSISTENT,
                                               note_stored, &answers, NULL),
                         IE_OK);
        if (i % 200 == 0) { /* with answers under way */
            down();
            up();
        }
    }
    ck_assert(wait_for(&answers.answered, 600));
    ck_assert_uint_eq(atomic_load(&answers.stored), 600);
    ck_assert_uint_eq(bus_stats(server).log_last, 600); /* none twice, none missing */
    ck_assert(wait_for(&all->count, 600));
    for (unsigned long i = 0; i < atomic_load(&all->count) && i < LOG_MAX; i++)
        is_there[all->numbers[i]] = true;
    for (int i = 1; i <= 600; i++)
        ck_assert_msg(is_there[i] || atomic_load(&all->count) > 600, "%d is missing", i);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
    free(all);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("durable client");
    TCase   *tcase = tcase_create("durable client");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_loop_test(tcase, what_was_published_before_is_there_and_a_restart_replays_nothing, 0,
                        2);
    tcase_add_loop_test(tcase, a_restarted_bus_goes_on_where_the_group_stood, 0, 2);
    tcase_add_test(tcase, a_group_begins_where_it_is_told);
    tcase_add_loop_test(tcase, refusals_count_attempts_and_end_as_dead_letters, 0, 2);
    tcase_add_loop_test(tcase, answers_by_token_ack_delay_and_reject, 0, 2);
    tcase_add_loop_test(tcase, what_was_not_answered_comes_again_to_the_next_client, 0, 2);
    tcase_add_loop_test(tcase, an_ephemeral_group_has_no_place_in_the_log, 0, 2);
    tcase_add_test(tcase, a_publish_that_is_sent_again_is_stored_once);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
