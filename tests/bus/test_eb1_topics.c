/* Where eb/1 meets eb/2: a four-letter event is a topic of the same name, and its members a group.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eb1_peer.h"

static ie_bus_server *server;
static ie_bus_client *client;

static void
set_up(void)
{
    server = bus_start_default();
    client = client_open(server);
}

static void
tear_down(void)
{
    ie_bus_client_close(client);
    ie_bus_server_close(server);
}

/* What a handler saw last. */
typedef struct sight {
    atomic_ulong handled;
    char         topic[64];
    char         source[64];
    char         key[64];
    char         data[64];
} sight;

static ie_status
see(void *user, const ie_event *event)
{
    sight *s = user;

    (void)snprintf(s->topic, sizeof s->topic, "%s", event->topic);
    (void)snprintf(s->source, sizeof s->source, "%s", event->source != NULL ? event->source : "");
    (void)snprintf(s->key, sizeof s->key, "%s", event->key != NULL ? event->key : "");
    (void)snprintf(s->data, sizeof s->data, "%.*s", (int)event->data_bytes,
                   event->data != NULL ? (const char *)event->data : "");
    (void)atomic_fetch_add(&s->handled, 1);
    return IE_OK;
}

static void
subscribe(const char *pattern, const char *group, sight *s)
{
    ie_error err = IE_ERROR_INIT;
    uint32_t id;

    ck_assert_int_eq(ie_bus_client_subscribe(client, pattern, group, 0, see, s, &id, &err), IE_OK);
    ck_assert_msg(ie_bus_client_wait_subscribed(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
}

static ie_status
publish(const char *topic, const char *key, const char *data, uint32_t flags, uint64_t *receivers)
{
    ie_event  event = IE_EVENT_INIT;
    counter   count = {0};
    ie_error  err = IE_ERROR_INIT;
    ie_status status;

    event.topic = topic;
    event.key = key;
    event.data = data;
    event.content_type = "text/plain";
    event.data_bytes = strlen(data);
    status = ie_bus_client_publish(client, &event, flags, counter_answer, &count, &err);
    ck_assert_msg(status == IE_OK, "%s", err.message);
    ck_assert(wait_for(&count.answered, 1));
    if (receivers != NULL)
        *receivers = atomic_load(&count.receivers);
    return (ie_status)atomic_load(&count.last_status);
}

/* ---- from eb/2 to eb/1 ---- */

START_TEST(a_publish_goes_to_one_member_in_turn)
{
    eb1_peer members[2];
    uint64_t receivers;
    uint32_t alias = 0;

    for (int i = 0; i < 2; i++)
        members[i] = eb1_join(server, EB1_TCP, "sess", NULL);
    for (int i = 0; i < 4; i++) {
        unsigned char message[64];

        ck_assert_int_eq(publish("sess", NULL, "hi", IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, &receivers),
                         IE_OK);
        ck_assert_uint_eq(receivers, 1);
        ck_assert_uint_eq(eb1_receive(&members[i % 2], message), 14);
        ck_assert_mem_eq(message, "\x65\x62\x13\x00", 4);
        ck_assert(alias == 0 || alias == ie__get32(message + 4));
        alias = ie__get32(message + 4);
        ck_assert_uint_eq(ie__get32(message + 8), members[i % 2].id);
        ck_assert_mem_eq(message + 12, "hi", 2);
    }
    ck_assert_uint_ne(alias, 0);
    ck_assert_uint_lt(alias, 0x80000000u);
    wait_stat_of(server, eb1_out, 4);
    for (int i = 0; i < 2; i++) {
        eb1_expect_nothing(&members[i]);
        eb1_close(&members[i]);
    }
    wait_stat_of(server, eb1_connections, 0);
    ck_assert_int_eq(publish("sess", NULL, "x", IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, NULL),
                     IE_EREFUSED);
}
END_TEST

START_TEST(a_key_keeps_to_one_member)
{
    eb1_peer members[3];
    unsigned counts[3] = {0};

    for (int i = 0; i < 3; i++)
        members[i] = eb1_join(server, EB1_TCP, "sess", NULL);
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(publish("sess", "ada", "job", 0, NULL), IE_OK);
    for (int i = 0; i < 3; i++) {
        unsigned char message[64];

        eb1_say(&members[i], "65621320 00000abc e5627573");
        while (eb1_receive(&members[i], message) > 0 && (message[3] & 0x20) == 0)
            counts[i]++;
        ck_assert(counts[i] == 0 || counts[i] == 30);
        eb1_close(&members[i]);
    }
    ck_assert_uint_eq(counts[0] + counts[1] + counts[2], 30);
}
END_TEST

START_TEST(an_answer_comes_to_the_publisher_alone)
{
    ie_bus_client *other = client_open(server);
    eb1_peer       member = eb1_join(server, EB1_TCP, "sess", NULL);
    unsigned char  message[64];
    sight          answers = {0};
    counter        others = {0};
    uint32_t       alias;

    ck_assert_int_eq(publish("sess", NULL, "who", 0, NULL), IE_OK);
    ck_assert_uint_eq(eb1_receive(&member, message), 15);
    alias = ie__get32(message + 4);
    eb1_say(&member, "65621300 %08x %08x 'nobody listens'", member.id, alias);
    wait_stat_of(server, eb1_dropped, 1);
    subscribe("eb1.direct", NULL, &answers);
    (void)subscribe_now(other, "eb1.direct", NULL, 0, &others);
    eb1_say(&member, "65621300 %08x %08x 'me'", member.id, alias);
    ck_assert(wait_for(&answers.handled, 1));
    ck_assert_str_eq(answers.topic, "eb1.direct");
    ck_assert_str_eq(answers.data, "me");
    {
        char source[32];

        (void)snprintf(source, sizeof source, "eb1:%u.%u.%u.%u", member.id >> 24,
                       member.id >> 16 & 255, member.id >> 8 & 255, member.id & 255);
        ck_assert_str_eq(answers.source, source);
    }
    ck_assert_uint_eq(atomic_load(&others.handled), 0);
    wait_stat_of(server, eb1_dropped, 1);
    ie_bus_client_close(other);
    eb1_close(&member);
}
END_TEST

START_TEST(what_does_not_fit_into_eb1_is_refused)
{
    const size_t         max = IE_EB1_MESSAGE_BYTES_MAX - 12;
    static char          data[IE_EB1_MESSAGE_BYTES_MAX];
    static unsigned char message[IE_EB1_MESSAGE_BYTES_MAX + 64];
    eb1_peer             member = eb1_join(server, EB1_TCP, "sess", NULL);

    memset(data, 'x', max);
    ck_assert_int_eq(publish("sess", NULL, data, 0, NULL), IE_OK);
    ck_assert_uint_eq(eb1_receive(&member, message), IE_EB1_MESSAGE_BYTES_MAX);
    data[max] = 'x';
    ck_assert_int_eq(publish("sess", NULL, data, 0, NULL), IE_ETOOBIG);
    eb1_expect_nothing(&member);
    eb1_close(&member);
}
END_TEST

START_TEST(a_query_is_answered_by_a_member)
{
    eb1_peer       member = eb1_join(server, EB1_TCP, "sess", NULL);
    eb1_peer       stranger = eb1_open(server, EB1_TCP);
    const int      fd = raw_open(server);
    unsigned char  query[64] = {0, 0, 0x4e, 0x20, 0, 0, 0, 1};
    unsigned char  message[64];
    ie_event       event = IE_EVENT_INIT;
    ie__frame      frame;
    unsigned char *end;
    uint32_t       source;

    event.topic = "sess";
    event.data = "how many";
    event.data_bytes = 8;
    end = ie__record_put(query + 8, &event);
    raw_frame(fd, IE__QUERY, 7, query, (size_t)(end - query));
    ck_assert_uint_eq(eb1_receive(&member, message), 20);
    ck_assert_mem_eq(message + 12, "how many", 8);
    source = ie__get32(message + 4);
    eb1_say(&stranger, "65621300 %08x %08x 'mine'", stranger.id, source);
    wait_stat_of(server, eb1_dropped, 1); /* it was not asked */
    eb1_say(&member, "65621300 %08x %08x 'three'", member.id, source);
    frame = raw_expect(fd, IE__ANSWER);
    ck_assert_uint_eq(frame.number, 7);
    ck_assert_mem_eq(frame.body + frame.body_bytes - 5, "three", 5);
    frame = raw_expect(fd, IE__QUERY_END);
    ck_assert_uint_eq(ie__get32(frame.body), 1);
    eb1_say(&member, "65621300 %08x %08x 'four'", member.id, source);
    wait_stat_of(server, eb1_dropped, 2); /* too late */
    raw_frame(fd, IE__QUERY, 8, query, (size_t)(end - query));
    ck_assert_uint_eq(eb1_receive(&member, message), 20);
    eb1_close(&member);
    frame = raw_expect(fd, IE__QUERY_END);
    ck_assert_uint_eq(frame.number, 8);
    ck_assert_uint_eq(ie__get16(frame.body + 4), IE_BUS_CODE_SUBSCRIBER_GONE);
    wait_stat_of(server, eb1_connections, 1);
    raw_frame(fd, IE__QUERY, 9, query, (size_t)(end - query));
    frame = raw_expect(fd, IE__QUERY_END);
    ck_assert_uint_eq(ie__get16(frame.body + 4), IE_BUS_CODE_NO_SUBSCRIBERS);
    (void)close(fd);
    eb1_close(&stranger);
    wait_stat_of(server, queries_now, 0);
}
END_TEST

START_TEST(a_query_may_be_cancelled_and_its_asker_may_go)
{
    eb1_peer       member = eb1_join(server, EB1_TCP, "sess", NULL);
    unsigned char  query[64] = {0, 0, 0x4e, 0x20, 0, 0, 0, 0};
    unsigned char  message[64];
    ie_event       event = IE_EVENT_INIT;
    unsigned char *end;

    event.topic = "sess";
    end = ie__record_put(query + 8, &event);
    for (uint32_t i = 0; i < 4; i++) {
        const int fd = raw_open(server);

        raw_frame(fd, IE__QUERY, i, query, (size_t)(end - query));
        ck_assert_uint_eq(eb1_receive(&member, message), 12);
        if (i % 2 == 0) {
            raw_frame(fd, IE__QUERY_CANCEL, i, NULL, 0);
            (void)raw_expect(fd, IE__QUERY_END);
        }
        (void)close(fd);
        wait_stat_of(server, connections, 2); /* shown as 3 since before the query */
        eb1_say(&member, "65621300 %08x %08x 'late'", member.id, ie__get32(message + 4));
        wait_stat_of(server, eb1_dropped, i + 1);
    }
    eb1_close(&member);
}
END_TEST

/* ---- from eb/1 to eb/2 ---- */

START_TEST(an_event_reaches_member_subscriber_and_group)
{
    eb1_peer member = eb1_join(server, EB1_TCP, "sess", NULL);
    eb1_peer sender = eb1_open(server, EB1_WS);
    sight    live = {0};
    sight    all = {0};
    sight    group = {0};
    char     source[32];

    subscribe("sess", NULL, &live);
    subscribe(">", NULL, &all);
    subscribe("sess", "workers", &group);
    eb1_say(&sender, "65621511 %08x %08x 0000000000000007 'news'", sender.id,
            ie_eb1_event_id("sess"));
    eb1_expect(&member, "65621301 %08x %08x 'news'", sender.id, member.id);
    ck_assert(wait_for(&live.handled, 1));
    ck_assert(wait_for(&all.handled, 1));
    ck_assert(wait_for(&group.handled, 1));
    ck_assert_str_eq(live.topic, "sess");
    ck_assert_str_eq(live.data, "news");
    ck_assert_str_eq(live.key, "7");
    (void)snprintf(source, sizeof source, "eb1:%u.%u.%u.%u", sender.id >> 24, sender.id >> 16 & 255,
                   sender.id >> 8 & 255, sender.id & 255);
    ck_assert_str_eq(live.source, source);
    wait_stat_of(server, held_events, 0);
    wait_stat_of(server, eb1_dropped, 0);
    eb1_close(&member); /* without a member it is still heard */
    wait_stat_of(server, eb1_connections, 1);
    eb1_send_number(&sender, 0x10, ie_eb1_event_id("sess"), 0, 2);
    ck_assert(wait_for(&live.handled, 2));
    ck_assert(wait_for(&group.handled, 2));
    ck_assert_str_eq(live.key, "");
    wait_stat_of(server, held_events, 0);
    wait_stat_of(server, eb1_dropped, 0);
    eb1_close(&sender);
}
END_TEST

START_TEST(an_event_of_a_durable_topic_is_stored)
{
    static const char *const DURABLE[] = {"sess"};
    ie_bus_server_options    options;
    ie_bus_server           *storing;
    ie_bus_client           *late;
    ie_bus_subscription      to;
    ie_error                 err = IE_ERROR_INIT;
    eb1_peer                 sender;
    sight                    group = {0};
    char                     data[300];

    (void)test_dir_make();
    (void)snprintf(data, sizeof data, "%s", test_path("data"));
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_dir = data;
    options.durable_topics = DURABLE;
    options.durable_topic_count = 1;
    storing = bus_start(&options);
    sender = eb1_open(storing, EB1_TCP);
    for (int i = 0; i < 2; i++) /* nobody is there for either */
        eb1_say(&sender, "65621511 %08x %08x 0000000000000007 'news'", sender.id,
                ie_eb1_event_id("sess"));
    wait_stat_of(storing, stored, 2);
    wait_stat_of(storing, eb1_dropped, 0);

    late = client_open(storing);
    IE_BUS_SUBSCRIPTION_INIT(&to);
    to.pattern = "sess";
    to.group = "late";
    to.handler = see;
    to.user = &group;
    to.start = IE_BUS_START_FIRST;
    ck_assert_int_eq(ie_bus_client_subscribe_with(late, &to, NULL, &err), IE_OK);
    ck_assert(wait_for(&group.handled, 2));
    ck_assert_str_eq(group.data, "news");
    ck_assert_str_eq(group.key, "7");
    eb1_say(&sender, "65621511 %08x %08x 0000000000000007 'more'", sender.id,
            ie_eb1_event_id("sess"));
    ck_assert(wait_for(&group.handled, 3)); /* from the log alone, not besides as it passes */
    wait_stat_of(storing, stored, 3);
    wait_stat_of(storing, delivered, 3);
    ck_assert_str_eq(group.data, "more");
    eb1_close(&sender);
    ie_bus_client_close(late);
    ie_bus_server_close(storing);
    test_dir_remove();
}
END_TEST

START_TEST(subscribers_may_come_and_go)
{
    eb1_peer member = eb1_join(server, EB1_TCP, "sess", NULL);
    eb1_peer sender = eb1_open(server, EB1_TCP);
    counter  count = {0};

    for (unsigned i = 0; i < 5; i++) {
        const uint32_t id = subscribe_now(client, "sess", NULL, 0, &count);

        eb1_send_number(&sender, 0x12, ie_eb1_event_id("sess"), 0, i + 1);
        eb1_expect(&member, "65621302 %08x %08x '%u'", sender.id, member.id, i + 1);
        ck_assert(wait_for(&count.handled, i + 1));
        ck_assert_int_eq(ie_bus_client_unsubscribe(client, id, NULL), IE_OK);
        wait_stat_of(server, subscriptions, 1);
        eb1_send_number(&sender, 0x12, ie_eb1_event_id("sess"), 0, 100);
        eb1_expect(&member, "65621302 %08x %08x '100'", sender.id, member.id);
    }
    ck_assert_uint_eq(atomic_load(&count.handled), 5);
    eb1_close(&member);
    eb1_close(&sender);
}
END_TEST

START_TEST(a_handler_that_fails_is_counted)
{
    eb1_peer sender = eb1_open(server, EB1_TCP);
    counter  count = {0};

    atomic_store(&count.result, IE_EHANDLER);
    (void)subscribe_now(client, "sess", "workers", 0, &count);
    eb1_send_number(&sender, 0x10, ie_eb1_event_id("sess"), 0, 1);
    wait_stat_of(server, eb1_dropped, 1);
    wait_stat_of(server, held_events, 0);
    eb1_close(&sender);
}
END_TEST

START_TEST(names_that_are_no_topics_stay_in_eb1)
{
    static const char *const NAMES[] = {"a b", ">", "a.>", "..", "\x01\x02", "$bus", "\xff\xfe"};
    eb1_peer                 sender = eb1_open(server, EB1_TCP);
    sight                    all = {0};

    subscribe(">", NULL, &all);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        eb1_peer member = eb1_join(server, EB1_TCP, NAMES[i], NULL);

        eb1_send_number(&sender, 0x10, ie_eb1_event_id(NAMES[i]), 0, i);
        eb1_expect(&member, "65621300 %08x %08x '%zu'", sender.id, member.id, i);
        eb1_close(&member);
        wait_stat_of(server, eb1_connections, 1);
    }
    ck_assert_uint_eq(atomic_load(&all.handled), 0);
    wait_stat_of(server, eb1_dropped, 0);
    eb1_close(&sender);
}
END_TEST

START_TEST(a_slow_member_is_passed_over_and_the_publisher_told)
{
    static char           data[60001];
    ie_bus_server_options options;
    eb1_peer              slow;
    ie_status             status = IE_OK;
    unsigned              good = 0;

    ie_bus_client_close(client);
    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = 512 * 1024;
    server = bus_start(&options);
    client = client_open(server);
    slow = eb1_join(server, EB1_TCP, "sess", NULL);
    memset(data, 'x', sizeof data - 1);
    while (status == IE_OK && good < 10000) {
        status = publish("sess", NULL, data, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, NULL);
        good += status == IE_OK;
    }
    ck_assert_int_ne(status, IE_OK);
    wait_stat_of(server, slow_closed, 1);
    ck_assert_uint_eq(bus_stats(server).eb1_out + bus_stats(server).eb1_dropped, good);
    eb1_close(&slow);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("eb1 topics");
    TCase   *tc = tcase_create("topics");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_publish_goes_to_one_member_in_turn);
    tcase_add_test(tc, a_key_keeps_to_one_member);
    tcase_add_test(tc, an_answer_comes_to_the_publisher_alone);
    tcase_add_test(tc, what_does_not_fit_into_eb1_is_refused);
    tcase_add_test(tc, a_query_is_answered_by_a_member);
    tcase_add_test(tc, a_query_may_be_cancelled_and_its_asker_may_go);
    tcase_add_test(tc, an_event_reaches_member_subscriber_and_group);
    tcase_add_test(tc, an_event_of_a_durable_topic_is_stored);
    tcase_add_test(tc, subscribers_may_come_and_go);
    tcase_add_test(tc, a_handler_that_fails_is_counted);
    tcase_add_test(tc, names_that_are_no_topics_stay_in_eb1);
    tcase_add_test(tc, a_slow_member_is_passed_over_and_the_publisher_told);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
