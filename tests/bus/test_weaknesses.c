/*
 * What other socket buses do badly, one test for each: the seventeen weaknesses that were found in
 * a bus of the same kind, and how this one behaves there. The tests are named after the weakness.
 */
#include "bus_support.h"

#include <arpa/inet.h>
#include <check.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

static ie_bus_server *server;
static char           fixed_url[300]; /* of a bus that can be started again at the same place */

static ie_bus_server *
start_fixed(void)
{
    const char           *listen[] = {fixed_url};
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    return bus_start(&options);
}

static void
set_up(void)
{
    (void)test_dir_make();
    (void)snprintf(fixed_url, sizeof fixed_url, "unix:%s", test_path("bus.sock"));
    server = start_fixed();
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
    test_dir_remove();
}

static void
restart(void)
{
    (void)ie_bus_server_stop(server, 0);
    ie_bus_server_close(server);
    server = start_fixed();
}

static ie_bus_client *
client_dispatching(ie_bus_dispatch dispatch)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = fixed_url;
    options.dispatch = dispatch;
    options.reconnect_delay_ms = 10;
    options.reconnect_delay_ms_max = 50;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    return client;
}

/* ---- 1: success said nothing: it was local, and nothing was kept or acknowledged --------------
 */

typedef struct gate {
    atomic_ulong entered;
    atomic_bool  is_open;
} gate;

static ie_status
pass_gate(void *user, const ie_event *event)
{
    gate *self = user;

    (void)event;
    (void)atomic_fetch_add(&self->entered, 1);
    while (!atomic_load(&self->is_open))
        (void)poll(NULL, 0, 1);
    return IE_OK;
}

START_TEST(w01_success_means_that_it_was_handled)
{
    ie_bus_client *publisher = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *subscriber = client_dispatching(IE_BUS_DISPATCH_INLINE);
    gate           held = {0};
    counter        answers = {0};

    ck_assert_int_eq(ie_bus_client_subscribe(subscriber, "t", "g", 0, pass_gate, &held, NULL, NULL),
                     IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(publish_number(publisher, "t", 1, 0, &answers), IE_OK);
    ck_assert(wait_for(&held.entered, 1));
    ck_assert_uint_eq(atomic_load(&answers.answered), 0); /* it is not done yet */
    atomic_store(&held.is_open, true);
    ck_assert(wait_for(&answers.answered, 1));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&answers.receivers), 1);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(w01_what_nobody_was_there_for_is_kept_over_a_restart)
{
    const char           *listen[] = {fixed_url};
    ie_bus_server_options options;
    ie_bus_client        *client;
    ie_bus_subscription   late;
    ie_event              event = IE_EVENT_INIT;
    ie_error              err = IE_ERROR_INIT;
    counter               group = {0};

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    options.data_dir = test_path("data");
    server = bus_start(&options);
    client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    event.topic = "t";
    ck_assert_msg(ie_bus_client_publish_wait(
                      client, &event, IE_BUS_PUBLISH_PERSISTENT | IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                      WAIT_MS, &err) == IE_OK,
                  "%s", err.message);
    ie_bus_client_close(client);
    (void)ie_bus_server_stop(server, 0);
    ie_bus_server_close(server);
    server = bus_start(&options);
    client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    IE_BUS_SUBSCRIPTION_INIT(&late);
    late.pattern = "t";
    late.group = "g";
    late.start = IE_BUS_START_FIRST; /* replay, which weakness 13 misses */
    late.handler = counter_handle;
    late.user = &group;
    ck_assert_int_eq(ie_bus_client_subscribe_with(client, &late, NULL, NULL), IE_OK);
    ck_assert(wait_for(&group.handled, 1));
    ie_bus_client_close(client);
}
END_TEST

/* ---- 2, 3, 4: reconnecting, restoring, and subscribing before ----------------------------------
 */

START_TEST(w02_reconnecting_works_every_time_and_only_when_needed)
{
    ie_bus_client *client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_event       event = IE_EVENT_INIT;

    event.topic = "t";
    for (int round = 0; round < 6; round++) { /* more often than three failures */
        restart();
        while (ie_bus_client_publish_wait(client, &event, 0, WAIT_MS, NULL) != IE_OK)
            (void)poll(NULL, 0, 1);
        ck_assert_int_eq(ie_bus_client_state(client), IE_BUS_CONNECTED);
        ck_assert_uint_eq(bus_stats(server).accepted, 1); /* one connection, no endless loop */
    }
    ie_bus_client_close(client);
}
END_TEST

START_TEST(w03_subscriptions_are_restored_by_themselves)
{
    ie_bus_client *publisher = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *subscriber = client_dispatching(IE_BUS_DISPATCH_THREAD);
    counter        live = {0};
    counter        group = {0};

    (void)subscribe_now(subscriber, "a.*", NULL, 0, &live);
    (void)subscribe_now(subscriber, "a.>", "g", 0, &group);
    for (unsigned long round = 1; round <= 3; round++) {
        ie_event event = IE_EVENT_INIT;

        restart();
        event.topic = "a.b";
        while (ie_bus_client_publish_wait(publisher, &event, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                          WAIT_MS, NULL) != IE_OK)
            (void)poll(NULL, 0, 1); /* they come back one after the other */
        ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
        event.topic = "a.c";
        ck_assert_int_eq(ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, NULL), IE_OK);
        ck_assert(wait_for(&live.handled, round));
        ck_assert(wait_for(&group.handled, round));
    }
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(w04_subscribing_before_being_connected_works)
{
    ie_bus_client *subscriber;
    ie_bus_client *publisher;
    counter        live = {0};
    uint32_t       id = 0;

    ie_bus_server_close(server);
    server = NULL;
    subscriber = client_open_url(fixed_url, 0);
    ck_assert_int_eq(
        ie_bus_client_subscribe(subscriber, "t", NULL, 0, counter_handle, &live, &id, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_unsubscribe(subscriber, id, NULL), IE_OK);
    ck_assert_int_eq(
        ie_bus_client_subscribe(subscriber, "t", NULL, 0, counter_handle, &live, NULL, NULL),
        IE_OK);
    server = start_fixed();
    ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
    publisher = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ck_assert_int_eq(publish_number(publisher, "t", 1, 0, NULL), IE_OK);
    ck_assert(wait_for(&live.handled, 1));
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

/* ---- 5, 6: the dead and the slow ---------------------------------------------------------------
 */

static bool
only_the_publisher_is_left(void *arg)
{
    const ie_bus_server_stats stats = bus_stats(server);

    (void)arg;
    return stats.accepted == 21 && stats.connections == 1 && stats.subscriptions == 0;
}

START_TEST(w05_dead_subscribers_leave_the_table)
{
    ie_bus_client *publisher = client_dispatching(IE_BUS_DISPATCH_INLINE);
    counter        answers = {0};
    struct linger  reset = {.l_onoff = 1, .l_linger = 0};

    ck_assert_int_eq(ie_bus_client_wait_connected(publisher, WAIT_MS, NULL), IE_OK);
    for (int i = 0; i < 20; i++) { /* some leave in order, some without a word */
        const int fd = raw_open(server);

        raw_subscribe(fd, 1, "t", i % 3 == 0 ? "g" : NULL, 0, 10);
        (void)raw_expect(fd, IE__SUBSCRIBED);
        if (i % 2 == 0)
            (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        (void)close(fd);
    }
    ck_assert(poll_until(only_the_publisher_is_left, NULL, WAIT_MS));
    ck_assert_int_eq(publish_number(publisher, "t", 1, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, 1));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&answers.receivers), 0); /* nobody is taken for alive */
    ie_bus_client_close(publisher);
}
END_TEST

START_TEST(w06_a_slow_subscriber_is_cut_and_queues_have_bounds)
{
    enum { N = 3000, SIZE = 4096 }; /* 12 MiB for one that never reads */
    static char           data[SIZE];
    const char           *listen[] = {fixed_url};
    ie_bus_server_options options;
    ie_bus_client        *publisher;
    ie_bus_client        *subscriber;
    counter               live = {0};
    ie_event              event = IE_EVENT_INIT;
    int                   slow;

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    options.out_bytes_max = 1u << 20;
    server = bus_start(&options);
    publisher = client_dispatching(IE_BUS_DISPATCH_INLINE);
    subscriber = client_dispatching(IE_BUS_DISPATCH_INLINE);
    (void)subscribe_now(subscriber, "big", NULL, 0, &live);
    slow = raw_open(server);
    raw_subscribe(slow, 1, "big", NULL, 0, 10);
    (void)raw_expect(slow, IE__SUBSCRIBED);
    event.topic = "big";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = SIZE;
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, NULL), IE_OK);
        ck_assert_uint_le(bus_stats(server).out_bytes, 3u << 20);
    }
    ck_assert(wait_for(&live.handled, N)); /* the other one got everything */
    ck_assert_uint_eq(bus_stats(server).slow_closed, 1);
    (void)close(slow);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

/* ---- 7: a query inside of a handler ------------------------------------------------------------
 */

typedef struct asking {
    ie_bus_client *client;
    atomic_ulong   answered;
    atomic_int     status;
} asking;

static void
answer_yes(void *user, const ie_event *question, uint64_t token)
{
    ie_event answer = IE_EVENT_INIT;

    (void)question;
    answer.data = "\"yes\"";
    answer.data_bytes = 5;
    (void)ie_bus_client_answer(user, token, &answer, NULL);
}

static ie_status
ask_inside(void *user, const ie_event *event)
{
    asking   *self = user;
    ie_buffer answer = {NULL, 0, 0};

    (void)event;
    atomic_store(&self->status, ie_bus_client_query_wait(self->client, "answers.here", NULL, 0,
                                                         WAIT_MS, &answer, NULL));
    if (answer.size == 5 && memcmp(answer.data, "\"yes\"", 5) == 0)
        (void)atomic_fetch_add(&self->answered, 1);
    ie_buffer_fini(&answer);
    return IE_OK;
}

START_TEST(w07_a_query_inside_a_handler_gets_its_answer)
{
    ie_bus_client *client = client_dispatching(IE_BUS_DISPATCH_THREAD);
    ie_bus_client *responder = client_dispatching(IE_BUS_DISPATCH_INLINE);
    asking         self = {.client = client, .status = IE_EIO};
    counter        answers = {0};

    ck_assert_int_eq(
        ie_bus_client_serve(responder, "answers.here", NULL, answer_yes, responder, NULL, NULL),
        IE_OK);
    ck_assert_int_eq(ie_bus_client_subscribe(client, "t", "g", 0, ask_inside, &self, NULL, NULL),
                     IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(responder, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    for (long i = 1; i <= 10; i++)
        ck_assert_int_eq(publish_number(client, "t", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, 10));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&self.answered), 10);
    ie_bus_client_close(client);
    ie_bus_client_close(responder);
}
END_TEST

/* ---- 8: the wrong server -----------------------------------------------------------------------
 */

typedef struct states {
    atomic_ulong refusals; /* that say what is wrong */
    atomic_ulong others;
    char         reason[256];
} states;

static void
note_state(void *user, const ie_bus_client_status *status)
{
    states *self = user;

    if (status->state != IE_BUS_RECONNECTING)
        return;
    (void)snprintf(self->reason, sizeof self->reason, "%s", status->reason);
    (void)atomic_fetch_add(
        strstr(status->reason, "not a bus") != NULL ? &self->refusals : &self->others, 1);
}

START_TEST(w08_the_wrong_server_stays_visible)
{
    char                  url[64];
    const int             listener = fake_bus_listen(url);
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;
    states                seen = {0};

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.reconnect_delay_ms = 1;
    options.reconnect_delay_ms_max = 5;
    options.on_status = note_state;
    options.user = &seen;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    for (int round = 0; round < 6; round++) {
        struct pollfd poller = {.fd = listener, .events = POLLIN};
        int           fd;

        ck_assert_int_eq(poll(&poller, 1, WAIT_MS), 1);
        fd = accept(listener, NULL, NULL);
        ck_assert_int_ge(fd, 0);
        if (round % 2 == 0) /* one speaks something else, one hangs up after the greeting */
            raw_send(fd, "SSH-2.0-OpenSSH_9.2\r\n", 21);
        else
            (void)shutdown(fd, SHUT_WR);
        ck_assert(wait_for(&seen.refusals, (unsigned long)round + 1));
        (void)close(fd);
    }
    ck_assert_msg(atomic_load(&seen.others) == 0, "%s", seen.reason);
    ck_assert(ie_bus_client_wait_connected(client, 1, &err) != IE_OK);
    ck_assert_msg(strstr(err.message, "not a bus") != NULL, "%s", err.message);
    ie_bus_client_close(client);
    (void)close(listener);
}
END_TEST

/* ---- 9, 10, 12, 13: what an event carries ------------------------------------------------------
 */

static ie_event    *kept;
static atomic_ulong kept_count;

static ie_status
keep(void *user, const ie_event *event)
{
    (void)user;
    ie_event_free(kept);
    kept = NULL;
    ck_assert_int_eq(ie_event_copy(&kept, event, NULL), IE_OK);
    (void)atomic_fetch_add(&kept_count, 1);
    return IE_OK;
}

/* What arrives when this is published. */
static const ie_event *
pass(const ie_event *event)
{
    ie_bus_client *client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_error       err = IE_ERROR_INIT;

    atomic_store(&kept_count, 0);
    ck_assert_int_eq(ie_bus_client_subscribe(client, ">", "g", 0, keep, NULL, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    ck_assert_msg(ie_bus_client_publish_wait(client, event, 0, WAIT_MS, &err) == IE_OK, "%s",
                  err.message);
    ck_assert_uint_eq(atomic_load(&kept_count), 1);
    ie_bus_client_close(client);
    return kept;
}

START_TEST(w09_an_event_without_data_is_handled)
{
    ie_event        event = IE_EVENT_INIT;
    const ie_event *got;

    event.topic = "nothing";
    got = pass(&event);
    ck_assert_ptr_null(got->data);
    ck_assert_uint_eq(got->data_bytes, 0);
    event.data = "null"; /* and that is something else */
    event.data_bytes = 4;
    got = pass(&event);
    ck_assert_uint_eq(got->data_bytes, 4);
    ie_event_free(kept);
    kept = NULL;
}
END_TEST

START_TEST(w10_versions_are_negotiated_and_absent_is_not_empty)
{
    unsigned char   greeting[IE__GREETING_BYTES];
    unsigned char   message[64];
    ie_event        event = IE_EVENT_INIT;
    const ie_event *got;
    int             fd = raw_open(server);

    /* a frame of a later version that may be skipped, and one that may not */
    raw_frame(fd, (ie__frame_type)0x90, 0, "new", 3);
    raw_frame(fd, IE__PING, 7, NULL, 0);
    ck_assert_uint_eq(raw_expect(fd, IE__PONG).number, 7);
    raw_frame(fd, (ie__frame_type)0x7f, 0, NULL, 0);
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
    (void)close(fd);
    /* another version of the protocol is told so */
    fd = raw_connect(server);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    raw_send(fd, greeting, sizeof greeting);
    ck_assert(raw_receive(fd, greeting, sizeof greeting));
    ie__frame_prefix(message, IE__HELLO, 0, 0);
    message[10] = 3 << 4 | IE__HEADER_BYTES / 4;
    raw_send(fd, message, IE__PREFIX_BYTES);
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
    (void)close(fd);

    event.topic = "t";
    got = pass(&event);
    ck_assert_ptr_null(got->subject);
    ck_assert_ptr_null(got->key);
    event.subject = "";
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_EINVAL); /* empty is said to be wrong */
    ie_event_free(kept);
    kept = NULL;
}
END_TEST

START_TEST(w12_what_the_data_is_travels_with_it)
{
    ie_event        event = IE_EVENT_INIT;
    const ie_event *got;

    event.topic = "t";
    event.type = "org.example.email.v2";
    event.dataschema = "https://example.org/email.v2.json";
    event.content_type = "application/octet-stream";
    event.data = "\0\1\2";
    event.data_bytes = 3;
    got = pass(&event);
    ck_assert_str_eq(got->type, "org.example.email.v2");
    ck_assert_str_eq(got->dataschema, "https://example.org/email.v2.json");
    ck_assert_str_eq(got->content_type, "application/octet-stream");
    ck_assert_mem_eq(got->data, "\0\1\2", 3);
    ie_event_free(kept);
    kept = NULL;
}
END_TEST

START_TEST(w13_wildcards_groups_keys_headers_and_trace_context)
{
    const ie_header headers[] = {{"traceparent",
                                  "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                                  IE_HEADER_STRING, 0},
                                 {"priority", "3", IE_HEADER_INTEGER, 0}};
    ie_bus_client  *publisher = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_bus_client  *members[2];
    counter         shares[2] = {0};
    counter         wildcard = {0};
    counter         answers = {0};
    ie_event        event = IE_EVENT_INIT;
    const ie_event *got;

    event.topic = "order.placed";
    event.key = "customer 7";
    event.headers = headers;
    event.header_count = 2;
    event.expires_at_ms = 4102444800000;
    got = pass(&event);
    ck_assert_str_eq(got->key, "customer 7");
    ck_assert_uint_eq(got->header_count, 2);
    ck_assert_str_eq(got->headers[0].value, headers[0].value);
    ck_assert_int_eq(got->expires_at_ms, 4102444800000);
    for (int i = 0; i < 2; i++) {
        members[i] = client_dispatching(IE_BUS_DISPATCH_INLINE);
        (void)subscribe_now(members[i], "order.*", "workers", 0, &shares[i]);
    }
    (void)subscribe_now(members[0], "order.>", NULL, 0, &wildcard);
    for (long i = 1; i <= 1000; i++)
        ck_assert_int_eq(publish_number(publisher, "order.placed", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, 1000));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&shares[0].handled) + atomic_load(&shares[1].handled), 1000);
    ck_assert_uint_gt(atomic_load(&shares[0].handled), 0);
    ck_assert_uint_gt(atomic_load(&shares[1].handled), 0);
    ck_assert(wait_for(&wildcard.handled, 1000));
    for (int i = 0; i < 2; i++)
        ie_bus_client_close(members[i]);
    ie_bus_client_close(publisher);
    ie_event_free(kept);
    kept = NULL;
}
END_TEST

/* ---- 11: queries that nobody answers -----------------------------------------------------------
 */

typedef struct ends {
    atomic_ulong count;
    atomic_int   status;
    atomic_uint  code;
} ends;

static void
note_end(void *user, const ie_bus_reply *reply)
{
    ends *self = user;

    if (reply->event != NULL)
        return;
    atomic_store(&self->status, reply->status);
    atomic_store(&self->code, reply->code);
    (void)atomic_fetch_add(&self->count, 1);
}

static void
say_nothing(void *user, const ie_event *question, uint64_t token)
{
    (void)question;
    (void)token;
    (void)atomic_fetch_add((atomic_ulong *)user, 1);
}

static bool
has_no_queries(void *arg)
{
    (void)arg;
    return bus_stats(server).queries_now == 0;
}

START_TEST(w11_a_query_ends_at_once_by_cancel_or_by_its_deadline)
{
    ie_bus_client *client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *responder = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_event       question = IE_EVENT_INIT;
    ends           end = {0};
    atomic_ulong   asked = 0;
    uint32_t       id = 0;

    question.topic = "who.knows";
    ck_assert_int_eq(ie_bus_client_query(client, &question, 300000, 1, note_end, &end, NULL, NULL),
                     IE_OK);
    ck_assert(wait_for(&end.count, 1)); /* long before the five minutes */
    ck_assert_int_eq(atomic_load(&end.status), IE_ENOTFOUND);
    ck_assert_int_eq(
        ie_bus_client_serve(responder, "who.knows", NULL, say_nothing, &asked, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(responder, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_query(client, &question, 300000, 1, note_end, &end, &id, NULL),
                     IE_OK);
    ck_assert(wait_for(&asked, 1));
    ck_assert_int_eq(ie_bus_client_query_cancel(client, id), IE_OK);
    ck_assert(wait_for(&end.count, 2));
    ck_assert_uint_eq(atomic_load(&end.code), IE_BUS_CODE_CANCELLED);
    ck_assert_int_eq(ie_bus_client_query(client, &question, 30, 1, note_end, &end, NULL, NULL),
                     IE_OK);
    ck_assert(wait_for(&end.count, 3));
    ck_assert_int_eq(atomic_load(&end.status), IE_ETIMEDOUT);
    ck_assert(poll_until(has_no_queries, NULL, WAIT_MS)); /* nothing stays behind on the bus */
    ie_bus_client_close(client);
    ie_bus_client_close(responder);
}
END_TEST

/* ---- 14: memory for strangers ------------------------------------------------------------------
 */

START_TEST(w14_a_strangers_frame_takes_no_memory)
{
    unsigned char greeting[IE__GREETING_BYTES];
    unsigned char length[IE__LENGTH_BYTES];
    const int     fd = raw_connect(server);
    const int     open = raw_open(server);
    uint64_t      before;

    ck_assert_int_ge(fd, 0);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    raw_send(fd, greeting, sizeof greeting);
    ck_assert(raw_receive(fd, greeting, sizeof greeting));
    before = bus_stats(server).memory_bytes;
    ie__put64(length, UINT64_C(64) << 20); /* before the hello: 4 KiB at most */
    raw_send(fd, length, sizeof length);
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_TOO_BIG);
    raw_send(open, length, sizeof length); /* after it: an event's size at most */
    raw_expect_reason(open, IE__ERROR, 0, IE_BUS_CODE_TOO_BIG);
    ck_assert_uint_le(bus_stats(server).memory_bytes, before + (1u << 20));
    (void)close(fd);
    (void)close(open);
}
END_TEST

START_TEST(w14_an_open_address_needs_security)
{
    static const char *const LISTEN[] = {"socket://0.0.0.0:0"};
    ie_bus_server_options    options;
    ie_bus_server           *wide = NULL;
    ie_error                 err = IE_ERROR_INIT;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = LISTEN;
    options.listen_count = 1;
    ck_assert_int_eq(ie_bus_server_start(&wide, &options, &err), IE_EDENIED);
    ck_assert_msg(err.message[0] != '\0', "no words");
}
END_TEST

START_TEST(w14_nobody_hears_publishes_or_answers_without_the_right)
{
    static const char RIGHTS[] =
        "anonymous\n  allow publish public.>\n  allow subscribe public.>\n";
    const char           *listen[] = {fixed_url};
    ie_bus_server_options options;
    ie_bus_client        *client;
    ie_event              event = IE_EVENT_INIT;
    counter               count = {0};
    atomic_ulong          asked = 0;
    FILE                 *file = fopen(test_path("acl"), "w");
    ie_error              err = IE_ERROR_INIT;

    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(RIGHTS, file), 0);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(chmod(test_path("acl"), 0600), 0);
    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    options.acl_file = test_path("acl");
    server = bus_start(&options);
    client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    (void)subscribe_now(client, "public.>", "g", 0, &count);
    event.topic = "public.news";
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, 0, WAIT_MS, NULL), IE_OK);
    event.topic = "salaries.paid";
    ck_assert_int_eq(ie_bus_client_publish_wait(client, &event, 0, WAIT_MS, &err), IE_EDENIED);
    ck_assert_uint_eq(atomic_load(&count.handled), 1);
    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "salaries.>", NULL, 0, counter_handle, &count, NULL, NULL),
        IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_EDENIED);
    ie_bus_client_close(client);
    client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ck_assert_int_eq(
        ie_bus_client_serve(client, "public.answers", NULL, say_nothing, &asked, NULL, NULL),
        IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_EDENIED);
    CK_BUS_STAT(server, denied, 3);
    ie_bus_client_close(client);
}
END_TEST

/* ---- 15: addresses -----------------------------------------------------------------------------
 */

START_TEST(w15_names_ipv6_and_unix_sockets_without_delay)
{
    static const char *const LISTEN[] = {"socket://localhost:0", "socket://[::1]:0",
                                         "socket://127.0.0.1:0"};
    ie_bus_server_options    options;
    counter                  count = {0};
    unsigned long            total = 0;

    for (size_t i = 0; i < sizeof LISTEN / sizeof *LISTEN; i++) {
        ie_bus_server *bus = NULL;
        ie_bus_client *client;
        ie_error       err = IE_ERROR_INIT;
        char           url[128];
        ie_status      status;

        IE_BUS_SERVER_OPTIONS_INIT(&options);
        options.listen = &LISTEN[i];
        options.listen_count = 1;
        status = ie_bus_server_start(&bus, &options, &err);
        if (status == IE_EIO && strstr(LISTEN[i], "::1") != NULL)
            continue; /* a machine without IPv6 */
        ck_assert_msg(status == IE_OK, "%s: %s", LISTEN[i], err.message);
        (void)snprintf(url, sizeof url, "%s", ie_bus_server_address(bus, 0));
        if (i == 2) /* and a name on the client's side */
            (void)snprintf(url, sizeof url, "socket://localhost%s",
                           strrchr(ie_bus_server_address(bus, 0), ':'));
        client = client_open_url(url, 0);
        (void)subscribe_now(client, "t", "g", 0, &count);
        ck_assert_int_eq(publish_number(client, "t", 1, 0, NULL), IE_OK);
        ck_assert(wait_for(&count.handled, ++total));
        ie_bus_client_close(client);
        ie_bus_server_close(bus);
    }
}
END_TEST

/* ---- 16: an orderly end, and an answer taken for an event --------------------------------------
 */

static bool
has_no_connections(void *arg)
{
    (void)arg;
    return bus_stats(server).connections == 0;
}

START_TEST(w16_a_peers_orderly_close_ends_the_connection)
{
    char           url[64];
    const int      listener = fake_bus_listen(url);
    ie_bus_client *client = client_open_url(url, 0);
    int            fd = fake_bus_accept(listener, 0);
    int            raw = raw_open(server);

    (void)shutdown(raw, SHUT_WR); /* the bus: it goes, instead of reading for ever */
    ck_assert(poll_until(has_no_connections, NULL, WAIT_MS));
    (void)close(raw);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    (void)shutdown(fd, SHUT_WR); /* the client: it comes again */
    raw = fake_bus_accept(listener, 0);
    (void)close(fd);
    (void)close(raw);
    ie_bus_client_close(client);
    (void)close(listener);
}
END_TEST

START_TEST(w16_a_publish_is_not_taken_for_an_answer)
{
    ie_bus_client *client = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *other = client_dispatching(IE_BUS_DISPATCH_INLINE);
    ie_event       question = IE_EVENT_INIT;
    counter        events = {0};
    ends           end = {0};
    atomic_ulong   asked = 0;
    uint32_t       id = 0;

    question.topic = "t";
    ck_assert_int_eq(ie_bus_client_serve(other, "t", NULL, say_nothing, &asked, NULL, NULL), IE_OK);
    (void)subscribe_now(other, "t", "g", 0, &events);
    ck_assert_int_eq(ie_bus_client_query(client, &question, 300000, 1, note_end, &end, &id, NULL),
                     IE_OK);
    ck_assert(wait_for(&asked, 1));
    for (long i = 1; i <= 10; i++)
        ck_assert_int_eq(publish_number(client, "t", i, 0, NULL), IE_OK);
    ck_assert(wait_for(&events.handled, 10));      /* events are events, */
    ck_assert_uint_eq(atomic_load(&end.count), 0); /* the query is still open, */
    ck_assert_uint_eq(atomic_load(&asked), 1);     /* and nobody was asked again */
    ck_assert_int_eq(ie_bus_client_query_cancel(client, id), IE_OK);
    ck_assert(wait_for(&end.count, 1));
    ie_bus_client_close(client);
    ie_bus_client_close(other);
}
END_TEST

/* ---- 17: what is logged, and where -------------------------------------------------------------
 */

typedef struct logged {
    pthread_mutex_t mutex;
    char            text[8192];
    atomic_ulong    lines;
} logged;

static void
log_line(void *user, ie_log_level level, const char *module, const char *message)
{
    logged *self = user;
    size_t  used;

    (void)level;
    (void)pthread_mutex_lock(&self->mutex);
    used = strlen(self->text);
    (void)snprintf(self->text + used, sizeof self->text - used, "%s: %s\n", module, message);
    (void)pthread_mutex_unlock(&self->mutex);
    (void)atomic_fetch_add(&self->lines, 1);
}

static bool
has_said(void *arg)
{
    logged *self = arg;
    bool    has;

    (void)pthread_mutex_lock(&self->mutex);
    has = strstr(self->text, "connected") != NULL && strstr(self->text, "reconnecting") != NULL;
    (void)pthread_mutex_unlock(&self->mutex);
    return has;
}

START_TEST(w17_logs_go_to_the_programs_logger_in_plain_english)
{
    static logged         of_client = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = fixed_url;
    options.reconnect_delay_ms = 10;
    options.logger.fn = log_line;
    options.logger.user = &of_client;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    restart();
    ck_assert(poll_until(has_said, &of_client, WAIT_MS));
    ie_bus_client_close(client);
    for (const char *at = of_client.text; *at != '\0'; at++)
        ck_assert_msg(*at == '\n' || (*at >= ' ' && *at < 0x7f), "byte %d in: %s", *at,
                      of_client.text);
    ck_assert_uint_gt(atomic_load(&of_client.lines), 2);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("weaknesses");
    TCase   *tcase = tcase_create("weaknesses");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, w01_success_means_that_it_was_handled);
    tcase_add_test(tcase, w01_what_nobody_was_there_for_is_kept_over_a_restart);
    tcase_add_test(tcase, w02_reconnecting_works_every_time_and_only_when_needed);
    tcase_add_test(tcase, w03_subscriptions_are_restored_by_themselves);
    tcase_add_test(tcase, w04_subscribing_before_being_connected_works);
    tcase_add_test(tcase, w05_dead_subscribers_leave_the_table);
    tcase_add_test(tcase, w06_a_slow_subscriber_is_cut_and_queues_have_bounds);
    tcase_add_test(tcase, w07_a_query_inside_a_handler_gets_its_answer);
    tcase_add_test(tcase, w08_the_wrong_server_stays_visible);
    tcase_add_test(tcase, w09_an_event_without_data_is_handled);
    tcase_add_test(tcase, w10_versions_are_negotiated_and_absent_is_not_empty);
    tcase_add_test(tcase, w11_a_query_ends_at_once_by_cancel_or_by_its_deadline);
    tcase_add_test(tcase, w12_what_the_data_is_travels_with_it);
    tcase_add_test(tcase, w13_wildcards_groups_keys_headers_and_trace_context);
    tcase_add_test(tcase, w14_a_strangers_frame_takes_no_memory);
    tcase_add_test(tcase, w14_an_open_address_needs_security);
    tcase_add_test(tcase, w14_nobody_hears_publishes_or_answers_without_the_right);
    tcase_add_test(tcase, w15_names_ipv6_and_unix_sockets_without_delay);
    tcase_add_test(tcase, w16_a_peers_orderly_close_ends_the_connection);
    tcase_add_test(tcase, w16_a_publish_is_not_taken_for_an_answer);
    tcase_add_test(tcase, w17_logs_go_to_the_programs_logger_in_plain_english);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
