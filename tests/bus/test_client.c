/* Client and server together, as programs use them. */
#include "bus_support.h"

#include <arpa/inet.h>
#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

static ie_bus_server *server;

static void
set_up(void)
{
    server = bus_start_default();
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
}

/* ---- publish and subscribe ------------------------------------------------------------------ */

static ie_event *kept;

static ie_status
keep(void *user, const ie_event *event)
{
    (void)ie_event_copy(&kept, event, NULL);
    (void)atomic_fetch_add((atomic_ulong *)user, 1);
    return IE_OK;
}

START_TEST(an_event_arrives_with_everything_it_has)
{
    const ie_header headers[] = {{"traceparent", "00-abc", IE_HEADER_STRING, 0},
                                 {"attempt", "-3", IE_HEADER_INTEGER, 0}};
    ie_bus_client  *client = client_open(server);
    atomic_ulong    count = 0;
    ie_event        event = IE_EVENT_INIT;
    ie_error        err = IE_ERROR_INIT;

    event.topic = "order.placed";
    event.key = "customer 7";
    event.id = "id-1";
    event.type = "placed.v1";
    event.source = "shop";
    event.subject = "4711";
    event.dataschema = "https://example.org/order.json";
    event.content_type = "application/json";
    event.data = "{\"total\": 1.50}";
    event.data_bytes = strlen(event.data);
    event.headers = headers;
    event.header_count = 2;
    event.time_ms = 1732226400123;
    event.not_before_ms = 1732226400124;
    event.expires_at_ms = 4102444800000;
    ck_assert_int_eq(ie_bus_client_subscribe(client, "order.*", NULL, IE_BUS_SUBSCRIBE_OWN, keep,
                                             &count, NULL, NULL),
                     IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    ck_assert_msg(ie_bus_client_publish_wait(client, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                             WAIT_MS, &err) == IE_OK,
                  "%s", err.message);
    ck_assert(wait_for(&count, 1));
    ck_assert_str_eq(kept->topic, event.topic);
    ck_assert_str_eq(kept->key, event.key);
    ck_assert_str_eq(kept->id, event.id);
    ck_assert_str_eq(kept->type, event.type);
    ck_assert_str_eq(kept->source, event.source);
    ck_assert_str_eq(kept->subject, event.subject);
    ck_assert_str_eq(kept->dataschema, event.dataschema);
    ck_assert_str_eq(kept->content_type, event.content_type);
    ck_assert_uint_eq(kept->data_bytes, event.data_bytes);
    ck_assert_mem_eq(kept->data, event.data, event.data_bytes);
    ck_assert_str_eq(ie_event_header(kept, "traceparent"), "00-abc");
    ck_assert_int_eq(kept->headers[1].type, IE_HEADER_INTEGER);
    ck_assert_int_eq(kept->time_ms, event.time_ms);
    ck_assert_int_eq(kept->not_before_ms, event.not_before_ms);
    ck_assert_int_eq(kept->expires_at_ms, event.expires_at_ms);
    ck_assert_int_eq(ie_event_check(kept, NULL), IE_OK);
    ie_event_free(kept);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(what_an_event_lacks_is_filled_in)
{
    ie_bus_client *client = client_open(server);
    atomic_ulong   count = 0;
    ie_event       event = IE_EVENT_INIT;

    event.topic = "bare";
    (void)ie_bus_client_subscribe(client, "bare", NULL, IE_BUS_SUBSCRIBE_OWN, keep, &count, NULL,
                                  NULL);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, 0, WAIT_MS, NULL), IE_OK);
    ck_assert(wait_for(&count, 1));
    ck_assert_uint_eq(strlen(kept->id), IE_ID_SIZE - 1);
    ck_assert_str_eq(kept->type, "bare");
    ck_assert_str_eq(kept->source, "ie");
    ck_assert_int_gt(kept->time_ms, 0);
    ck_assert_ptr_null(kept->data);
    ie_event_free(kept);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(patterns_choose_what_arrives)
{
    static const struct {
        const char   *pattern;
        unsigned long expected;
    } CASES[] = {{"a.b", 1}, {"a.*", 2}, {"a.>", 3}, {">", 5}, {"*", 1}, {"*.b", 2}, {"b.c", 0}};
    static const char *const TOPICS[] = {"a", "a.b", "a.c", "a.b.c", "x.b"};
    enum { N = sizeof CASES / sizeof *CASES };
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *subscriber = client_open(server);
    counter        counts[N] = {0};
    counter        last = {0};
    ie_event       event = IE_EVENT_INIT;

    for (size_t i = 0; i < N; i++)
        (void)subscribe_now(subscriber, CASES[i].pattern, NULL, 0, &counts[i]);
    (void)subscribe_now(subscriber, "last", NULL, 0, &last);
    for (size_t i = 0; i < sizeof TOPICS / sizeof *TOPICS; i++) {
        event.topic = TOPICS[i];
        ck_assert_int_eq(ie_bus_client_publish(publisher, &event, 0, NULL, NULL, NULL), IE_OK);
    }
    event.topic = "last"; /* one connection keeps its order: all others are there before it */
    ck_assert_int_eq(ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, NULL), IE_OK);
    ck_assert(wait_for(&last.handled, 1));
    for (size_t i = 0; i < N; i++)
        ck_assert_msg(atomic_load(&counts[i].handled) ==
                          CASES[i].expected + (strcmp(CASES[i].pattern, ">") == 0 ||
                                               strcmp(CASES[i].pattern, "*") == 0),
                      "%s: %lu", CASES[i].pattern, atomic_load(&counts[i].handled));
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(without_subscribers_a_publish_is_refused_or_told_so)
{
    ie_bus_client *client = client_open(server);
    counter        count = {0};
    ie_event       event = IE_EVENT_INIT;
    ie_error       err = IE_ERROR_INIT;

    event.topic = "nobody";
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                                WAIT_MS, &err),
                     IE_EREFUSED);
    ck_assert_str_eq(err.message, "no subscribers");
    ck_assert_int_eq(publish_number(client, "nobody", 1, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, &count),
                     IE_OK);
    ck_assert(wait_for(&count.answered, 1));
    ck_assert_uint_eq(atomic_load(&count.last_code), IE_BUS_CODE_NO_SUBSCRIBERS);
    ck_assert_int_eq(publish_number(client, "nobody", 1, 0, &count), IE_OK);
    ck_assert(wait_for(&count.answered, 2));
    ck_assert_uint_eq(atomic_load(&count.failed), 1);
    ck_assert_uint_eq(atomic_load(&count.receivers), 0);
    /* its own subscription does not count, unless it asked for it */
    (void)subscribe_now(client, "nobody", NULL, 0, &count);
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                                WAIT_MS, NULL),
                     IE_EREFUSED);
    (void)subscribe_now(client, "nobody", NULL, IE_BUS_SUBSCRIBE_OWN, &count);
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                                WAIT_MS, NULL),
                     IE_OK);
    ck_assert(wait_for(&count.handled, 1));
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_faulty_event_is_refused_at_once)
{
    ie_bus_client *client = client_open(server);
    ie_event       event = IE_EVENT_INIT;
    ie_error       err = IE_ERROR_INIT;

    event.topic = "a..b";
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, NULL, NULL, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "topic"));
    event.topic = "a";
    event.data = "{";
    event.data_bytes = 1;
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, NULL, NULL, NULL), IE_EINVAL);
    event.data_bytes = IE_DATA_BYTES_MAX + 1;
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, NULL, NULL, NULL), IE_ETOOBIG);
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0x40, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "a.>.b", NULL, 0, counter_handle, NULL, NULL, NULL),
        IE_EINVAL);
    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "a", "g g", 0, counter_handle, NULL, NULL, NULL),
        IE_EINVAL);
    ck_assert_int_eq(ie_bus_client_unsubscribe(client, 77, NULL), IE_ENOTFOUND);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_large_payload_passes_whole)
{
    ie_bus_client *client = client_open(server);
    atomic_ulong   count = 0;
    ie_event       event = IE_EVENT_INIT;
    unsigned char *data = malloc(IE_DATA_BYTES_MAX);

    ck_assert_ptr_nonnull(data);
    ie__random(data, IE_DATA_BYTES_MAX);
    event.topic = "big";
    event.content_type = "application/octet-stream";
    event.data = data;
    event.data_bytes = IE_DATA_BYTES_MAX;
    (void)ie_bus_client_subscribe(client, "big", "g", 0, keep, &count, NULL, NULL);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, 0, WAIT_MS, NULL), IE_OK);
    ck_assert_uint_eq(atomic_load(&count), 1); /* a group: the answer comes after the handler */
    ck_assert_uint_eq(kept->data_bytes, IE_DATA_BYTES_MAX);
    ck_assert_mem_eq(kept->data, data, IE_DATA_BYTES_MAX);
    ie_event_free(kept);
    free(data);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(order_is_kept_and_nothing_is_lost_under_load)
{
    const long     total = (long)test_scale(100000);
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *subscriber = client_open(server);
    counter        live = {0};
    counter        group = {0};
    counter        answers = {0};

    (void)subscribe_now(subscriber, "load", NULL, 0, &live);
    (void)subscribe_now(subscriber, "load", "g", 0, &group);
    for (long i = 1; i <= total; i++) {
        ie_status status;

        while ((status = publish_number(publisher, "load", i, 0, &answers)) == IE_ELIMIT)
            (void)poll(NULL, 0, 1);
        if (status != IE_OK)
            ck_abort_msg("%s", ie_status_name(status));
    }
    ck_assert(wait_for(&answers.answered, (unsigned long)total));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&answers.receivers), 2 * (unsigned long)total);
    ck_assert_uint_eq(atomic_load(&group.handled), (unsigned long)total);
    ck_assert(wait_for(&live.handled, (unsigned long)total));
    ck_assert_uint_eq(atomic_load(&live.out_of_order), 0);
    ck_assert_uint_eq(atomic_load(&group.out_of_order), 0);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

typedef struct publishing {
    ie_bus_client *client;
    counter        answers;
    counter       *handled;
    long           count;
    char           topic[16];
} publishing;

static void *
publish_many(void *arg)
{
    publishing *p = arg;

    for (long i = 1; i <= p->count; i++)
        while (publish_number(p->client, p->topic, i, 0, &p->answers) == IE_ELIMIT)
            (void)poll(NULL, 0, 1);
    return NULL;
}

START_TEST(four_threads_share_a_client)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *subscriber = client_open(server);
    publishing     threads[4];
    counter        counts[4] = {0};
    pthread_t      ids[4];

    memset(threads, 0, sizeof threads);
    for (int i = 0; i < 4; i++) {
        threads[i].client = client;
        threads[i].count = (long)test_scale(10000);
        (void)snprintf(threads[i].topic, sizeof threads[i].topic, "t.%d", i);
        (void)subscribe_now(subscriber, threads[i].topic, "g", 0, &counts[i]);
    }
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&ids[i], NULL, publish_many, &threads[i]), 0);
    for (int i = 0; i < 4; i++)
        (void)pthread_join(ids[i], NULL);
    for (int i = 0; i < 4; i++) {
        ck_assert(wait_for(&threads[i].answers.answered, (unsigned long)threads[i].count));
        ck_assert_uint_eq(atomic_load(&threads[i].answers.failed), 0);
        ck_assert_uint_eq(atomic_load(&counts[i].handled), (unsigned long)threads[i].count);
        ck_assert_uint_eq(atomic_load(&counts[i].out_of_order), 0);
    }
    ie_bus_client_close(client);
    ie_bus_client_close(subscriber);
}
END_TEST

/* ---- groups and acknowledgement ------------------------------------------------------------- */

START_TEST(members_share_and_each_group_gets_everything)
{
    enum { N = 3000 };
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *members[3];
    counter        shares[3] = {0};
    counter        other = {0};
    counter        answers = {0};
    unsigned long  sum = 0;

    for (int i = 0; i < 3; i++) {
        members[i] = client_open(server);
        (void)subscribe_now(members[i], "work", "workers", 0, &shares[i]);
    }
    (void)subscribe_now(members[0], "work", "audit", 0, &other);
    for (long i = 1; i <= N; i++)
        ck_assert_int_eq(publish_number(publisher, "work", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&answers.receivers), 2 * N);
    for (int i = 0; i < 3; i++) {
        sum += atomic_load(&shares[i].handled);
        ck_assert_uint_gt(atomic_load(&shares[i].handled), N / 10);
    }
    ck_assert_uint_eq(sum, N);
    ck_assert_uint_eq(atomic_load(&other.handled), N);
    for (int i = 0; i < 3; i++)
        ie_bus_client_close(members[i]);
    ie_bus_client_close(publisher);
}
END_TEST

START_TEST(the_handlers_answer_reaches_the_publisher)
{
    static const struct {
        ie_status   result;
        uint32_t    flags;
        const char *group;
        ie_status   status;
        uint32_t    code;
    } CASES[] = {
        {IE_EHANDLER, 0, "g", IE_EHANDLER, IE_BUS_CODE_HANDLER},
        {IE_EREFUSED, 0, "g", IE_EHANDLER, IE_BUS_CODE_REJECTED},
        {IE_EUNREACHABLE, IE_BUS_SUBSCRIBE_ACK, NULL, IE_EHANDLER, IE_BUS_CODE_UNAVAILABLE},
        {IE_EIO, IE_BUS_SUBSCRIBE_ACK, NULL, IE_EHANDLER, IE_BUS_CODE_HANDLER},
        {IE_EIO, 0, NULL, IE_OK, 0}, /* a live subscriber has no say */
        {IE_OK, 0, "g", IE_OK, 0},
    };
    ie_bus_client *publisher = client_open(server);

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ie_bus_client *subscriber = client_open(server);
        counter        count = {.result = CASES[i].result};
        counter        answers = {0};

        (void)subscribe_now(subscriber, "t", CASES[i].group, CASES[i].flags, &count);
        ck_assert_int_eq(publish_number(publisher, "t", 1, 0, &answers), IE_OK);
        ck_assert(wait_for(&answers.answered, 1));
        ck_assert_int_eq(atomic_load(&answers.last_status), CASES[i].status);
        ck_assert_uint_eq(atomic_load(&answers.last_code), CASES[i].code);
        ie_bus_client_close(subscriber);
    }
    ie_bus_client_close(publisher);
}
END_TEST

START_TEST(what_a_lost_member_did_not_answer_goes_to_another)
{
    enum { N = 50 };
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *survivor = client_open(server);
    counter        handled = {0};
    counter        answers = {0};
    const int      lost = raw_open(server);

    raw_subscribe(lost, 1, "t", "g", 0, 1000);
    (void)raw_expect(lost, IE__SUBSCRIBED);
    (void)subscribe_now(survivor, "t", "g", 0, &handled);
    for (long i = 1; i <= N; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    for (int i = 0; i < N / 2; i++)
        (void)raw_expect(lost, IE__DELIVER_ACK);
    ck_assert_uint_lt(atomic_load(&answers.answered), N);
    (void)close(lost);
    ck_assert(wait_for(&answers.answered, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&handled.handled), N);
    ck_assert_uint_eq(bus_stats(server).redelivered, N / 2);
    ie_bus_client_close(survivor);
    ie_bus_client_close(publisher);
}
END_TEST

static bool
two_are_held(void *arg)
{
    return bus_stats(arg).held_events == 2;
}

START_TEST(a_publish_whose_only_subscriber_goes_away_is_not_acknowledged)
{
    ie_bus_client *publisher = client_open(server);
    counter        answers = {0};
    const int      lost = raw_open(server);

    raw_subscribe(lost, 1, "t", _i == 0 ? "g" : NULL, IE_BUS_SUBSCRIBE_ACK, 1);
    (void)raw_expect(lost, IE__SUBSCRIBED);
    ck_assert_int_eq(publish_number(publisher, "t", 1, 0, &answers), IE_OK);
    ck_assert_int_eq(publish_number(publisher, "t", 2, 0, &answers), IE_OK); /* waits for credit */
    (void)raw_expect(lost, IE__DELIVER_ACK);
    ck_assert(poll_until(two_are_held, server, WAIT_MS)); /* the second may still be on its way */
    ck_assert_uint_eq(atomic_load(&answers.answered), 0);
    (void)close(lost);
    ck_assert(wait_for(&answers.answered, 2));
    ck_assert_uint_eq(atomic_load(&answers.failed), 2);
    ck_assert_uint_eq(atomic_load(&answers.last_code), IE_BUS_CODE_SUBSCRIBER_GONE);
    ie_bus_client_close(publisher);
}
END_TEST

START_TEST(after_unsubscribe_the_handler_is_quiet)
{
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *subscriber = client_open(server);
    counter        count = {0};
    counter        answers = {0};
    unsigned long  before;
    uint32_t       id;

    id = subscribe_now(subscriber, "t", _i == 0 ? NULL : "g", 0, &count);
    for (long i = 1; i <= 5000; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&count.handled, 1));
    ck_assert_int_eq(ie_bus_client_unsubscribe(subscriber, id, NULL), IE_OK);
    before = atomic_load(&count.handled);
    ck_assert(wait_for(&answers.answered, 5000)); /* with a yes or a no, but answered */
    for (long i = 1; i <= 100; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, 5100));
    ck_assert_uint_eq(atomic_load(&count.handled), before);
    ck_assert_int_eq(ie_bus_client_unsubscribe(subscriber, id, NULL), IE_ENOTFOUND);
    ck_assert_uint_eq(bus_stats(server).subscriptions, 0);
    ie_bus_client_close(subscriber);
    ie_bus_client_close(publisher);
}
END_TEST

typedef struct reentrant {
    ie_bus_client *client;
    counter        answers;
    uint32_t       id;
    atomic_ulong   calls;
    ie_status      wait_status;
} reentrant;

static ie_status
publish_from_handler(void *user, const ie_event *event)
{
    reentrant *r = user;

    r->wait_status = ie_bus_client_publish_wait(r->client, event, 0, 100, NULL);
    (void)publish_number(r->client, "reply", 1, 0, &r->answers);
    (void)ie_bus_client_unsubscribe(r->client, r->id, NULL);
    (void)atomic_fetch_add(&r->calls, 1);
    return IE_OK;
}

START_TEST(a_handler_may_publish_and_unsubscribe)
{
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *client = client_open(server);
    counter        replies = {0};
    counter        answers = {0};
    reentrant      r = {.client = client};

    (void)subscribe_now(publisher, "reply", NULL, 0, &replies);
    (void)ie_bus_client_subscribe(client, "ask", "g", 0, publish_from_handler, &r, &r.id, NULL);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    for (long i = 0; i < 10; i++)
        ck_assert_int_eq(publish_number(publisher, "ask", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, 10));
    ck_assert(wait_for(&replies.handled, 1));
    ck_assert_uint_eq(atomic_load(&r.calls), 1);
    ck_assert_int_eq(r.wait_status, IE_ESTATE);
    ie_bus_client_close(client);
    ie_bus_client_close(publisher);
}
END_TEST

/* ---- connections ---------------------------------------------------------------------------- */

START_TEST(a_restarted_server_finds_its_subscriptions_again)
{
    ie_bus_server_options options;
    ie_bus_server        *mine;
    ie_bus_client        *publisher;
    ie_bus_client        *subscriber;
    counter               count = {0};
    counter               group = {0};
    char                  url[128];
    const char           *listen = url;

    mine = bus_start_default();
    (void)snprintf(url, sizeof url, "%s", ie_bus_server_address(mine, 0));
    publisher = client_open(mine);
    subscriber = client_open(mine);
    (void)subscribe_now(subscriber, "t.*", NULL, 0, &count);
    (void)subscribe_now(subscriber, "t.*", "g", 0, &group);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = &listen;
    options.listen_count = 1;
    for (int round = 0; round < 3; round++) {
        ie_event event = IE_EVENT_INIT;
        ie_error err = IE_ERROR_INIT;

        if (round > 0) {
            /* goodbye and wait, or cut at once */
            (void)ie_bus_server_stop(mine, round == 1 ? 5000 : 0);
            ie_bus_server_close(mine);
            mine = bus_start(&options);
        }
        ck_assert_int_eq(ie_bus_client_wait_connected(publisher, WAIT_MS, &err), IE_OK);
        for (;;) { /* a client that has not noticed yet says that it is connected */
            ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
            event.topic = "t.x";
            ie_error_clear(&err);
            if (ie_bus_client_publish_wait(publisher, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                           WAIT_MS, &err) == IE_OK)
                break;
            ck_assert_msg(err.status == IE_EREFUSED || err.status == IE_EUNREACHABLE, "%s",
                          err.message);
        }
        ck_assert(wait_for(&count.handled, (unsigned long)round + 1));
        ck_assert(wait_for(&group.handled, (unsigned long)round + 1));
    }
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
    ie_bus_server_close(mine);
}
END_TEST

START_TEST(a_bus_that_is_away_is_found_when_it_comes)
{
    ie_bus_server_options options;
    ie_bus_server        *late;
    ie_bus_client        *client;
    counter               count = {0};
    counter               answers = {0};
    ie_error              err = IE_ERROR_INIT;
    char                  url[64];
    const char           *listen = url;

    (void)snprintf(url, sizeof url, "socket://127.0.0.1:%d", test_free_port());
    client = client_open_url(url, 0);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, 200, &err), IE_EUNREACHABLE);
    ck_assert_msg(strstr(err.message, "refused") != NULL, "%s", err.message);
    ck_assert_int_eq(ie_bus_client_state(client), IE_BUS_RECONNECTING);
    /* what is asked for meanwhile happens then, in this order */
    ck_assert_int_eq(ie_bus_client_subscribe(client, "t", NULL, IE_BUS_SUBSCRIBE_OWN,
                                             counter_handle, &count, NULL, NULL),
                     IE_OK);
    for (long i = 1; i <= 100; i++)
        ck_assert_int_eq(publish_number(client, "t", i, 0, &answers), IE_OK);
    ck_assert_uint_eq(atomic_load(&answers.answered), 0);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = &listen;
    options.listen_count = 1;
    late = bus_start(&options);
    ck_assert(wait_for(&count.handled, 100));
    ck_assert(wait_for(&answers.answered, 100));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&count.out_of_order), 0);
    ie_bus_client_close(client);
    ie_bus_server_close(late);
}
END_TEST

START_TEST(who_will_not_wait_fails_at_once_while_disconnected)
{
    ie_bus_client *client;
    counter        answers = {0};
    ie_error       err = IE_ERROR_INIT;
    ie_event       event = IE_EVENT_INIT;
    char           url[64];

    (void)snprintf(url, sizeof url, "socket://127.0.0.1:%d", test_free_port());
    client = client_open_url(url, IE_BUS_CLIENT_FAIL_OFFLINE);
    ck_assert(ie_bus_client_wait_connected(client, 100, NULL) != IE_OK);
    event.topic = "t";
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, counter_answer, &answers, &err),
                     IE_EUNREACHABLE);
    ck_assert_msg(strstr(err.message, "refused") != NULL, "%s", err.message);
    ck_assert_uint_eq(atomic_load(&answers.answered), 0);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_lost_connection_answers_what_was_sent)
{
    ie_bus_server *mine = bus_start_default();
    ie_bus_client *publisher = client_open(mine);
    counter        answers = {0};
    const int      member = raw_open(mine);

    raw_subscribe(member, 1, "t", "g", 0, 10);
    (void)raw_expect(member, IE__SUBSCRIBED);
    for (long i = 1; i <= 20; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    (void)raw_expect(member, IE__DELIVER_ACK);
    ie_bus_server_stop(mine, 0);
    ck_assert(wait_for(&answers.answered, 20));
    ck_assert_uint_eq(atomic_load(&answers.failed), 20);
    ie_bus_server_close(mine);
    ie_bus_client_close(publisher);
    (void)close(member);
}
END_TEST

START_TEST(close_sends_what_was_published_and_waits_for_the_answers)
{
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *subscriber = client_open(server);
    counter        count = {0};
    counter        answers = {0};

    (void)subscribe_now(subscriber, "t", "g", 0, &count);
    for (long i = 1; i <= 10000; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    ie_bus_client_close(publisher);
    ck_assert_uint_eq(atomic_load(&answers.answered), 10000);
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&count.handled), 10000);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(a_stopping_server_lets_everything_in_flight_end)
{
    ie_bus_server *mine = bus_start_default();
    ie_bus_client *publisher = client_open(mine);
    ie_bus_client *subscriber = client_open(mine);
    counter        count = {0};
    counter        answers = {0};

    (void)subscribe_now(subscriber, "t", "g", 0, &count);
    for (long i = 1; i <= 5000; i++)
        ck_assert_int_eq(
            publish_number(publisher, "t", i, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, &answers), IE_OK);
    ck_assert(wait_for(&count.handled, 1));
    ck_assert_int_eq(ie_bus_server_stop(mine, WAIT_MS), IE_OK);
    ie_bus_server_close(mine);
    /* nobody was cut off: what was not sent when the goodbye came waits for the next server, all
     * else was handled once and acknowledged */
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&count.handled), atomic_load(&answers.answered));
    ie_bus_client_close(publisher);
    ck_assert_uint_eq(atomic_load(&answers.answered), 5000);
    ck_assert_uint_eq(atomic_load(&answers.failed), 5000 - atomic_load(&count.handled));
    ck_assert(atomic_load(&answers.failed) == 0 || atomic_load(&answers.last_status) == IE_ECLOSED);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(the_queue_of_publishes_is_bounded)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    counter               count = {0};
    counter               answers = {0};
    ie_error              err = IE_ERROR_INIT;
    ie_event              event = IE_EVENT_INIT;
    ie_bus_client        *subscriber = client_open(server);

    atomic_store(&count.is_blocked, true);
    (void)subscribe_now(subscriber, "t", "g", 0, &count);
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = ie_bus_server_address(server, 0);
    if (_i == 0)
        options.publish_queue_max = 10;
    else
        options.publish_queue_bytes_max = 1000;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    if (_i == 0) {
        for (long i = 1; i <= 10; i++)
            ck_assert_int_eq(publish_number(client, "t", i, 0, &answers), IE_OK);
    } else {
        while (publish_number(client, "t", 1, 0, &answers) == IE_OK)
            ck_assert_uint_lt(++count.answered, 20);
    }
    event.topic = "t";
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, NULL, NULL, &err), IE_ELIMIT);
    ck_assert_ptr_nonnull(strstr(err.message, "publish_queue"));
    atomic_store(&count.is_blocked, false);
    ck_assert(wait_for(&answers.answered, 1));
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, 0, WAIT_MS, NULL), IE_OK);
    ie_bus_client_close(client);
    ie_bus_client_close(subscriber);
}
END_TEST

static void
note_status(void *user, const ie_bus_client_status *status)
{
    atomic_int *seen = user;

    (void)atomic_fetch_or(seen, 1 << status->state);
    if (status->state == IE_BUS_REFUSED)
        ck_assert_uint_eq(status->code, IE_BUS_CODE_LIMIT);
}

typedef struct state_wanted {
    ie_bus_client *client;
    ie_bus_state   state;
} state_wanted;

static bool
has_state(void *arg)
{
    const state_wanted *w = arg;

    return ie_bus_client_state(w->client) == w->state;
}

START_TEST(states_are_told_with_their_reason)
{
    ie_bus_server_options server_options;
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_bus_server        *full;
    atomic_int            seen = 0;
    state_wanted          wanted;
    ie_error              err = IE_ERROR_INIT;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&server_options);
    server_options.connections_max = 1;
    full = bus_start(&server_options);
    fd = raw_open(full);
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = ie_bus_server_address(full, 0);
    options.on_status = note_status;
    options.user = &seen;
    options.reconnect_delay_ms = options.reconnect_delay_ms_max = 20;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    wanted = (state_wanted){client, IE_BUS_REFUSED};
    ck_assert(poll_until(has_state, &wanted, WAIT_MS));
    ck_assert_int_eq(ie_bus_client_wait_connected(client, 0, &err), IE_EREFUSED);
    ck_assert_msg(strstr(err.message, "connections_max") != NULL, "%s", err.message);
    (void)close(fd);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    (void)ie_bus_server_stop(full, 0);
    wanted.state = IE_BUS_RECONNECTING;
    ck_assert(poll_until(has_state, &wanted, WAIT_MS));
    ie_bus_client_close(client);
    ck_assert_int_eq(atomic_load(&seen), 31);
    ie_bus_server_close(full);
}
END_TEST

START_TEST(a_refused_subscription_is_reported)
{
    ie_bus_server_options options;
    ie_bus_server        *small;
    ie_bus_client        *client;
    counter               count = {0};
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.subscriptions_per_client_max = 1;
    small = bus_start(&options);
    client = client_open(small);
    (void)subscribe_now(client, "a", NULL, 0, &count);
    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "b", NULL, 0, counter_handle, &count, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, &err), IE_ELIMIT);
    ck_assert_msg(strstr(err.message, "subscriptions_per_client_max") != NULL, "%s", err.message);
    ie_bus_client_close(client);
    ie_bus_server_close(small);
}
END_TEST

START_TEST(what_is_no_bus_is_said_so)
{
    struct sockaddr_in       address = {.sin_family = AF_INET};
    socklen_t                size = sizeof address;
    const int                listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ie_bus_client           *client;
    ie_error                 err = IE_ERROR_INIT;
    char                     url[64];
    char                     byte;
    int                      fd;
    static const char *const ANSWERS[] = {"HTTP/1.1 400\r\n\r\n", "\0SP\0\0\xAA\0\0"};

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, size), 0);
    ck_assert_int_eq(listen(listener, 10), 0);
    ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    (void)snprintf(url, sizeof url, "socket://127.0.0.1:%d", ntohs(address.sin_port));
    client = client_open_url(url, 0);
    fd = accept(listener, NULL, NULL);
    ck_assert_int_ge(fd, 0);
    raw_send(fd, ANSWERS[_i], 8);
    while (raw_receive(fd, &byte, 1)) { /* its greeting and hello, until it hangs up */
    }
    (void)close(fd);
    ck_assert(ie_bus_client_wait_connected(client, 50, &err) != IE_OK);
    ck_assert_msg(strstr(err.message, _i == 0 ? "not a bus" : "eb/1") != NULL, "%s", err.message);
    ie_bus_client_close(client);
    (void)close(listener);
}
END_TEST

START_TEST(a_hundred_clients_come_and_go_without_a_trace)
{
    counter count = {0};

    for (int i = 0; i < 50; i++) {
        ie_bus_client *one = client_open(server);
        ie_bus_client *two = client_open_url(ie_bus_server_address(server, 0), 0);

        (void)subscribe_now(one, "t", "g", 0, &count);
        ck_assert_int_eq(publish_number(two, "t", 1, 0, NULL), IE_OK);
        ie_bus_client_close(i % 2 == 0 ? one : two);
        ie_bus_client_close(i % 2 == 0 ? two : one);
    }
    for (int64_t deadline = ie__mono_ns() + INT64_C(1000000) * WAIT_MS;;) {
        const ie_bus_server_stats stats = bus_stats(server);

        if (stats.connections == 0 && stats.subscriptions == 0 && stats.held_events == 0)
            break;
        ck_assert_int_lt(ie__mono_ns(), deadline);
        (void)poll(NULL, 0, 2);
    }
}
END_TEST

START_TEST(a_start_that_runs_out_of_memory_leaves_nothing)
{
    uint64_t n;

    for (n = 1;; n++) {
        static const char *const LISTEN[] = {"socket://127.0.0.1:0"};
        ie_bus_server_options    options;
        ie_bus_server           *mine = NULL;
        ie_error                 err = IE_ERROR_INIT;
        ie_status                status;

        IE_BUS_SERVER_OPTIONS_INIT(&options);
        options.listen = LISTEN;
        options.listen_count = 1;
        ie__alloc_fail_at(n, false);
        status = ie_bus_server_start(&mine, &options, &err);
        ie__alloc_fail_at(0, false);
        if (status == IE_OK) {
            ie_bus_server_close(mine);
            break;
        }
        ck_assert_msg(status == IE_ENOMEM, "%s", err.message);
        ck_assert_ptr_null(mine);
    }
    ck_assert_uint_gt(n, 5);
}
END_TEST

START_TEST(whatever_allocation_fails_the_bus_comes_back)
{
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *subscriber = client_open(server);
    counter        count = {0};
    ie_event       event = IE_EVENT_INIT;
    static char    data[20000];
    unsigned long  refused = 0;

    event.topic = "t";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = sizeof data;
    (void)subscribe_now(subscriber, "t", "g", 0, &count);
    (void)subscribe_now(subscriber, "t", NULL, 0, &count);
    for (uint64_t n = 1; n <= 60; n++) {
        ie_status status;

        ie__alloc_fail_at(n % 30 + 1, false); /* in whichever thread it happens to be */
        status = ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, NULL);
        ie__alloc_fail_at(0, false);
        refused += status != IE_OK;
        ck_assert_msg(status != IE_ETIMEDOUT, "a publish was forgotten");
        ck_assert_int_eq(ie_bus_client_wait_connected(publisher, WAIT_MS, NULL), IE_OK);
        ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
    }
    ck_assert_uint_gt(refused, 0);
    for (;;) {
        const ie_status status = ie_bus_client_publish_wait(
            publisher, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, WAIT_MS, NULL);

        if (status == IE_OK)
            break;
        ck_assert_msg(status == IE_EREFUSED || status == IE_EUNREACHABLE, "%s",
                      ie_status_name(status));
    }
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

/* ---- slow readers --------------------------------------------------------------------------- */

START_TEST(a_slow_live_subscriber_is_cut_and_the_others_notice_nothing)
{
    ie_bus_server_options options;
    ie_bus_server        *mine;
    ie_bus_client        *publisher;
    ie_bus_client        *fast;
    counter               count = {0};
    counter               answers = {0};
    ie_event              event = IE_EVENT_INIT;
    static char           data[8000];
    int                   slow;
    unsigned long         sent = 0;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = 1 << 20;
    mine = bus_start(&options);
    publisher = client_open(mine);
    fast = client_open(mine);
    (void)subscribe_now(fast, "t", NULL, 0, &count);
    slow = raw_open(mine);
    raw_subscribe(slow, 1, "t", NULL, 0, 0);
    (void)raw_expect(slow, IE__SUBSCRIBED);
    event.topic = "t";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = sizeof data;
    while (bus_stats(mine).slow_closed == 0) {
        ck_assert_uint_lt(sent, 100000);
        /* a window, so that the fast one is never behind by more than that */
        if (sent - atomic_load(&count.handled) >= 50) {
            ck_assert(wait_for(&count.handled, sent - 25));
            continue;
        }
        if (ie_bus_client_publish(publisher, &event, 0, counter_answer, &answers, NULL) == IE_OK)
            sent++;
    }
    ck_assert(wait_for(&answers.answered, sent));
    ck_assert(wait_for(&count.handled, sent));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(bus_stats(mine).slow_closed, 1);
    for (;;) { /* and it was told why, behind what had been written before */
        static unsigned char message[IE__MESSAGE_MAX];
        const size_t         size = raw_message(slow, message);
        ie__frame            frame;

        ck_assert_msg(size != 0, "it was cut without a word");
        ck_assert_int_eq(ie__frame_parse(&frame, message, size, NULL), IE_OK);
        if (frame.type == IE__DELIVER)
            continue;
        ck_assert_int_eq(frame.type, IE__ERROR);
        ck_assert_uint_eq(ie__get16(frame.body), IE_BUS_CODE_SLOW);
        break;
    }
    (void)close(slow);
    ie_bus_client_close(publisher);
    ie_bus_client_close(fast);
    ie_bus_server_close(mine);
}
END_TEST

START_TEST(a_slow_member_holds_only_its_credit)
{
    enum { N = 2000 };
    ie_bus_client *publisher = client_open(server);
    ie_bus_client *fast = client_open(server);
    counter        count = {0};
    counter        answers = {0};
    const int      slow = raw_open(server);

    raw_subscribe(slow, 1, "t", "g", 0, 5);
    (void)raw_expect(slow, IE__SUBSCRIBED);
    (void)subscribe_now(fast, "t", "g", 0, &count);
    for (long i = 1; i <= N; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, N - 5));
    ck_assert_uint_eq(atomic_load(&count.handled), N - 5);
    (void)close(slow);
    ck_assert(wait_for(&answers.answered, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ie_bus_client_close(fast);
    ie_bus_client_close(publisher);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus client");
    TCase   *tcase = tcase_create("client");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 100);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, an_event_arrives_with_everything_it_has);
    tcase_add_test(tcase, what_an_event_lacks_is_filled_in);
    tcase_add_test(tcase, patterns_choose_what_arrives);
    tcase_add_test(tcase, without_subscribers_a_publish_is_refused_or_told_so);
    tcase_add_test(tcase, a_faulty_event_is_refused_at_once);
    tcase_add_test(tcase, a_large_payload_passes_whole);
    tcase_add_test(tcase, order_is_kept_and_nothing_is_lost_under_load);
    tcase_add_test(tcase, four_threads_share_a_client);
    tcase_add_test(tcase, members_share_and_each_group_gets_everything);
    tcase_add_test(tcase, the_handlers_answer_reaches_the_publisher);
    tcase_add_test(tcase, what_a_lost_member_did_not_answer_goes_to_another);
    tcase_add_loop_test(tcase, a_publish_whose_only_subscriber_goes_away_is_not_acknowledged, 0, 2);
    tcase_add_loop_test(tcase, after_unsubscribe_the_handler_is_quiet, 0, 2);
    tcase_add_test(tcase, a_handler_may_publish_and_unsubscribe);
    tcase_add_test(tcase, a_restarted_server_finds_its_subscriptions_again);
    tcase_add_test(tcase, a_bus_that_is_away_is_found_when_it_comes);
    tcase_add_test(tcase, who_will_not_wait_fails_at_once_while_disconnected);
    tcase_add_test(tcase, a_lost_connection_answers_what_was_sent);
    tcase_add_test(tcase, close_sends_what_was_published_and_waits_for_the_answers);
    tcase_add_test(tcase, a_stopping_server_lets_everything_in_flight_end);
    tcase_add_loop_test(tcase, the_queue_of_publishes_is_bounded, 0, 2);
    tcase_add_test(tcase, states_are_told_with_their_reason);
    tcase_add_test(tcase, a_refused_subscription_is_reported);
    tcase_add_loop_test(tcase, what_is_no_bus_is_said_so, 0, 2);
    tcase_add_test(tcase, a_hundred_clients_come_and_go_without_a_trace);
    tcase_add_test(tcase, a_start_that_runs_out_of_memory_leaves_nothing);
    tcase_add_test(tcase, whatever_allocation_fails_the_bus_comes_back);
    tcase_add_test(tcase, a_slow_live_subscriber_is_cut_and_the_others_notice_nothing);
    tcase_add_test(tcase, a_slow_member_holds_only_its_credit);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
