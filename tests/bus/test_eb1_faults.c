/* What stopped, lost or blocked the reference bus: each weakness, and what this bus does. */
#include <check.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "eb1_peer.h"

#define SESS "f3657373"

static ie_bus_server *server;

static struct {
    atomic_uint lines;   /* warnings */
    atomic_uint dropped; /* ... about messages that nobody gets */
    atomic_uint lost;    /* ... about what waited for somebody */
    atomic_uint slow;
} logged;

static void
on_log(void *user, ie_log_level level, const char *module, const char *message)
{
    (void)user;
    (void)module;
    if (level > IE_LOG_WARN)
        return;
    (void)atomic_fetch_add(&logged.lines, 1);
    (void)atomic_fetch_add(&logged.dropped, strstr(message, "is dropped") != NULL);
    (void)atomic_fetch_add(&logged.lost, strstr(message, "are lost") != NULL);
    (void)atomic_fetch_add(&logged.slow, strstr(message, "does not read") != NULL);
}

static ie_bus_server_options options;

static void
set_up(void)
{
    (void)test_dir_make();
    memset(&logged, 0, sizeof logged);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.logger.fn = on_log;
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
    server = NULL;
    test_dir_remove();
}

#define wait_stat(field, wanted) wait_stat_of(server, field, wanted)

/* ---- messages that killed a routing worker ---- */

static const char *const MALFORMED[] = {
    "",
    "65",
    "65621320 00000001 e56275",                  /* one byte short of a header */
    "65621000 00000001 00000001",                /* header of 0 bytes */
    "65621200 00000001 00000001",                /* of 8 */
    "65621f00 00000001 00000001",                /* of 60, in a message of 12 */
    "65621510 00000001 " SESS " 00000000000000", /* one byte short of its key */
    "65621520 00000001 e5627573",                /* a heartbeat that claims a key */
};
static const char *const UNROUTABLE[] = {
    "65621500 00000001 00000001 0000000000000000 'x'", /* direct, with a key */
    "65621310 00000001 " SESS " 'x'",                  /* to an event, without one */
    "65621400 00000001 00000001 00000000 'x'",         /* a header of 16 */
    "65621510 00000000 " SESS " 0000000000000000 'x'", /* source 0 */
    "65621300 00000001 e5627573 'x'",                  /* to the bus */
    "65621510 00000001 e5627573 0000000000000000 'x'", /* ... as an event */
    "65621510 00000001 fa7a7a7a 0000000000000000 'x'", /* an event without members */
    "65621510 00000001 00000005 0000000000000000 'x'", /* a service id as an event */
    "65621300 00000001 f3657373 'x'",                  /* an event as a service id */
};

START_TEST(malformed_messages_cost_nobody_anything)
{
    const size_t malformed = sizeof MALFORMED / sizeof *MALFORMED;
    const size_t unroutable = sizeof UNROUTABLE / sizeof *UNROUTABLE;
    eb1_peer     senders[8]; /* the reference has one worker for each id mod 4 */
    eb1_peer     member;

    server = eb1_bus_start(&options, (eb1_transport)_i);
    member = eb1_join(server, (eb1_transport)_i, "sess", NULL);
    for (size_t k = 0; k < 8; k++)
        senders[k] = eb1_open(server, (eb1_transport)_i);
    for (size_t k = 0; k < 8; k++) {
        for (size_t i = 0; i < malformed; i++)
            eb1_say(&senders[k], "%s", MALFORMED[i]);
        for (size_t i = 0; i < unroutable; i++)
            eb1_say(&senders[k], "%s", UNROUTABLE[i]);
        eb1_expect_nothing(&senders[k]);
    }
    wait_stat(eb1_dropped, 8 * (malformed + unroutable));
    wait_stat(eb1_in, 8 * unroutable);
    for (size_t k = 0; k < 8; k++) {
        eb1_send_number(&senders[k], 0x10, ie_eb1_event_id("sess"), 0, k);
        eb1_expect(&member, "65621300 %08x %08x '%zu'", senders[k].id, member.id, k);
        eb1_close(&senders[k]);
    }
    eb1_expect_nothing(&member);
    eb1_close(&member);
    /* The 1st, 2nd, 4th, 8th and 16th of each. */
    ck_assert_uint_eq(atomic_load(&logged.dropped), 8 * 5);
}
END_TEST

START_TEST(another_flag_ends_its_own_connection_only)
{
    eb1_peer bad;
    eb1_peer good;

    server = eb1_bus_start(&options, (eb1_transport)_i);
    good = eb1_open(server, (eb1_transport)_i);
    bad = eb1_open(server, (eb1_transport)_i);
    eb1_say(&bad, "66621320 00000001 e5627573");
    eb1_expect_end(&bad);
    wait_stat(protocol_errors, 1);
    eb1_expect_nothing(&good);
    eb1_close(&bad);
    eb1_close(&good);
}
END_TEST

/* ---- members that stayed in a list after they had gone ---- */

START_TEST(who_leaves_leaves_every_event)
{
    eb1_peer gone;
    eb1_peer stays;
    eb1_peer sender;

    server = eb1_bus_start(&options, EB1_TCP);
    gone = eb1_join(server, EB1_TCP, "aaaa", "bbbb", "cccc", NULL);
    stays = eb1_join(server, EB1_TCP, "bbbb", NULL);
    sender = eb1_open(server, EB1_TCP);
    wait_stat(subscriptions, 4);
    eb1_close(&gone);
    wait_stat(subscriptions, 1);
    for (unsigned i = 0; i < 20; i++) {
        eb1_send_number(&sender, 0x10 + i % 3, ie_eb1_event_id("bbbb"), i, i);
        eb1_expect(&stays, "656213%02x %08x %08x '%u'", i % 3, sender.id, stays.id, i);
    }
    eb1_send_number(&sender, 0x10, ie_eb1_event_id("aaaa"), 0, 1);
    eb1_send_number(&sender, 0x12, ie_eb1_event_id("cccc"), 0, 1);
    wait_stat(eb1_dropped, 2);
    eb1_close(&stays);
    eb1_close(&sender);
}
END_TEST

START_TEST(a_name_registered_twice_is_one_place)
{
    eb1_peer twice;
    eb1_peer once;
    eb1_peer sender;

    server = eb1_bus_start(&options, EB1_TCP);
    twice = eb1_join(server, EB1_TCP, "sess", "sess", "sess", NULL);
    once = eb1_join(server, EB1_TCP, "sess", NULL);
    sender = eb1_open(server, EB1_TCP);
    for (unsigned i = 0; i < 6; i++) {
        const eb1_peer *to = i % 2 == 0 ? &twice : &once;

        eb1_send_number(&sender, 0x12, ie_eb1_event_id("sess"), 0, i);
        eb1_expect(to, "65621302 %08x %08x '%u'", sender.id, to->id, i);
    }
    eb1_close(&twice);
    eb1_close(&once);
    eb1_close(&sender);
}
END_TEST

START_TEST(round_robin_is_per_event)
{
    eb1_peer a[2];
    eb1_peer b[2];
    eb1_peer sender;

    server = eb1_bus_start(&options, EB1_TCP);
    for (int i = 0; i < 2; i++) {
        a[i] = eb1_join(server, EB1_TCP, "aaaa", NULL);
        b[i] = eb1_join(server, EB1_TCP, "bbbb", NULL);
    }
    sender = eb1_open(server, EB1_TCP);
    for (unsigned i = 0; i < 8; i++) { /* one counter for both would keep to one of each */
        eb1_send_number(&sender, 0x12, ie_eb1_event_id("aaaa"), 0, i);
        eb1_send_number(&sender, 0x12, ie_eb1_event_id("bbbb"), 0, i);
        eb1_expect(&a[i % 2], "65621302 %08x %08x '%u'", sender.id, a[i % 2].id, i);
        eb1_expect(&b[i % 2], "65621302 %08x %08x '%u'", sender.id, b[i % 2].id, i);
    }
    for (int i = 0; i < 2; i++) {
        eb1_close(&a[i]);
        eb1_close(&b[i]);
    }
    eb1_close(&sender);
}
END_TEST

START_TEST(a_registration_that_cannot_be_served_ends_the_connection)
{
    eb1_peer peer;

    options.subscriptions_per_client_max = 2;
    server = eb1_bus_start(&options, EB1_TCP);
    peer = eb1_join(server, EB1_TCP, "aaaa", "bbbb", NULL);
    eb1_say(&peer, "65621331 00000001 " SESS);
    eb1_expect_end(&peer);
    eb1_close(&peer);
    peer = eb1_open(server, EB1_TCP);
    eb1_say(&peer, "65621331 00000001 00000005");
    eb1_expect_end(&peer);
    eb1_close(&peer);
    wait_stat(subscriptions, 0);
    ck_assert_uint_ge(atomic_load(&logged.lines), 2);
}
END_TEST

/* ---- slow consumers: dropped silently, by the reference ---- */

#define BIG 65000

static void
send_big(const eb1_peer *sender, uint32_t destination, unsigned number)
{
    static unsigned char message[BIG];

    memset(message, 'x', sizeof message);
    memcpy(message, "eb\x13\0", 4);
    ie__put32(message + 4, sender->id);
    ie__put32(message + 8, destination);
    ie__put32(message + 12, number);
    eb1_send(sender, message, sizeof message);
}

START_TEST(a_slow_consumer_is_ended_and_every_message_accounted_for)
{
    static unsigned char message[IE_EB1_MESSAGE_BYTES_MAX + 64];
    const eb1_transport  transport = (eb1_transport)_i;
    eb1_peer             slow;
    eb1_peer             other;
    eb1_peer             sender;
    uint64_t             got = 0;
    ie_bus_server_stats  stats;

    options.out_bytes_max = 2 * 1024 * 1024;
    server = eb1_bus_start(&options, transport);
    slow = eb1_join(server, transport, "sess", NULL);
    other = eb1_open(server, transport);
    sender = eb1_open(server, transport);
    for (unsigned i = 0; i < 1000; i++) {
        send_big(&sender, slow.id, i);
        if (i % 100 == 0)
            eb1_expect_nothing(&other); /* nobody else is held up */
    }
    wait_stat(eb1_in, 1000);
    wait_stat(slow_closed, 1);
    stats = bus_stats(server);
    ck_assert_uint_eq(stats.eb1_out + stats.eb1_dropped, 1000);
    ck_assert_uint_gt(stats.eb1_out, 0);
    while (eb1_receive(&slow, message) == BIG) {
        ck_assert_uint_eq(ie__get32(message + 12), got);
        got++;
    }
    ck_assert_uint_eq(got, stats.eb1_out); /* sent = delivered + reported */
    ck_assert_uint_eq(atomic_load(&logged.slow), 1);
    ck_assert_uint_ge(atomic_load(&logged.lost), 1);
    eb1_close(&slow);
    eb1_close(&other);
    eb1_close(&sender);
}
END_TEST

START_TEST(what_comes_after_a_slow_member_goes_to_the_next)
{
    static unsigned char message[IE_EB1_MESSAGE_BYTES_MAX + 64];
    static unsigned char big[BIG];
    eb1_peer             slow;
    eb1_peer             quick;
    eb1_peer             sender;
    uint64_t             quick_got = 0;
    uint64_t             slow_got = 0;
    ie_bus_server_stats  stats;

    options.out_bytes_max = 1024 * 1024;
    server = eb1_bus_start(&options, EB1_TCP);
    slow = eb1_join(server, EB1_TCP, "sess", NULL);
    quick = eb1_join(server, EB1_TCP, "sess", NULL);
    sender = eb1_open(server, EB1_TCP);
    memcpy(big, "eb\x15\x12", 4);
    ie__put32(big + 4, sender.id);
    ie__put32(big + 8, ie_eb1_event_id("sess"));
    for (unsigned i = 0; i < 600; i++) {
        eb1_send(&sender, big, sizeof big);
        eb1_say(&quick, "65621320 00000abc e5627573");
        while (eb1_receive(&quick, message) == BIG - 8)
            quick_got++;
    }
    eb1_expect_nothing(&sender);
    eb1_say(&quick, "65621320 00000abc e5627573");
    while (eb1_receive(&quick, message) == BIG - 8)
        quick_got++;
    wait_stat(slow_closed, 1);
    while (eb1_receive(&slow, message) == BIG - 8)
        slow_got++;
    stats = bus_stats(server);
    ck_assert_uint_eq(stats.eb1_in, 600);
    ck_assert_uint_eq(stats.eb1_out, quick_got + slow_got);
    ck_assert_uint_eq(stats.eb1_dropped, 600 - quick_got - slow_got);
    eb1_close(&slow);
    eb1_close(&quick);
    eb1_close(&sender);
}
END_TEST

START_TEST(all_output_together_has_a_limit_too)
{
    eb1_peer slow[4];
    eb1_peer sender;

    options.out_bytes_total_max = 4 * 1024 * 1024;
    server = eb1_bus_start(&options, EB1_TCP);
    for (size_t i = 0; i < 4; i++)
        slow[i] = eb1_open(server, EB1_TCP);
    sender = eb1_open(server, EB1_TCP);
    for (unsigned i = 0; i < 600; i++)
        send_big(&sender, slow[i % 4].id, i);
    eb1_expect_nothing(&sender);
    wait_stat(eb1_in, 600);
    ck_assert_uint_ge(bus_stats(server).slow_closed, 1);
    ck_assert_uint_le(bus_stats(server).out_bytes, 4 * 1024 * 1024 + BIG + 64);
    ck_assert_uint_eq(bus_stats(server).eb1_out + bus_stats(server).eb1_dropped, 600);
    for (size_t i = 0; i < 4; i++)
        eb1_close(&slow[i]);
    eb1_close(&sender);
}
END_TEST

START_TEST(who_floods_heartbeats_without_reading_is_ended)
{
    static unsigned char flood[64 * 1024];
    eb1_peer             peer;

    options.out_bytes_max = 64 * 1024;
    server = eb1_bus_start(&options, EB1_TCP);
    peer = eb1_open(server, EB1_TCP);
    for (size_t i = 0; i + 20 <= sizeof flood; i += 20) {
        ie__put64(flood + i, 12);
        memcpy(flood + i + 8, "eb\x13\x20\0\0\0\1\xe5\x62\x75\x73", 12);
    }
    for (int i = 0; i < 2000 && bus_stats(server).slow_closed == 0; i++) {
        struct timeval patience = {.tv_usec = 50000};

        (void)setsockopt(peer.fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        raw_send(peer.fd, flood, sizeof flood / 20 * 20);
    }
    wait_stat(slow_closed, 1);
    eb1_close(&peer);
}
END_TEST

/* ---- connections that stayed for ever ---- */

START_TEST(who_does_not_greet_or_does_not_finish_is_closed_in_time)
{
    static const unsigned char PART[12] = {0, 0, 0, 0, 0, 0, 0, 100, 'e', 'b', 0x13, 0};
    int                        silent;
    eb1_peer                   halfway;
    eb1_peer                   web;

    options.hello_timeout_ms = 200;
    options.frame_timeout_ms = 200;
    server = eb1_bus_start(&options, EB1_TCP);
    silent = raw_connect(server);
    raw_expect_end(silent);
    (void)close(silent);
    halfway = eb1_join(server, EB1_TCP, "sess", NULL);
    web = eb1_join(server, EB1_WS, "sess", NULL);
    raw_send(halfway.fd, PART, sizeof PART);
    raw_send(web.fd, "\x82\xa0\0\0\0\0xx", 8);
    eb1_expect_end(&halfway);
    eb1_expect_end(&web);
    wait_stat(timed_out, 3);
    eb1_close(&halfway);
    eb1_close(&web);
}
END_TEST

START_TEST(heartbeats_that_stop_end_a_connection_but_silence_does_not)
{
    eb1_peer idle;
    eb1_peer beating;

    options.ping_interval_ms = 50;
    options.ping_missed_max = 1;
    server = eb1_bus_start(&options, EB1_TCP);
    idle = eb1_join(server, EB1_TCP, "sess", NULL);
    beating = eb1_open(server, EB1_TCP);
    for (int i = 0; i < 3; i++)
        eb1_expect_nothing(&beating);
    eb1_expect_end(&beating);
    wait_stat(timed_out, 1);
    eb1_close(&beating);
    eb1_expect_nothing(&idle); /* silent for longer than that, and there */
    eb1_close(&idle);
}
END_TEST

START_TEST(nothing_is_left_of_connections_that_came_and_went)
{
    server = eb1_bus_start(&options, EB1_TCP);
    for (unsigned i = 0; i < 200; i++) {
        eb1_peer peer =
            eb1_join(server, i % 2 == 0 ? EB1_TCP : EB1_WS, "aaaa", "bbbb", "cccc", NULL);

        switch (i % 4) {
        case 0: break;
        case 1: raw_send(peer.fd, "\x82\xfe\xff\xff\0\0\0\0half", 12); break;
        case 2: eb1_say(&peer, "00"); break;
        default: eb1_say(&peer, "00000000 00000000 00000000"); break;
        }
        eb1_close(&peer);
    }
    wait_stat(connections, 0);
    wait_stat(eb1_connections, 0);
    wait_stat(subscriptions, 0);
    wait_stat(out_bytes, 0);
    ck_assert_uint_le(bus_stats(server).memory_bytes, 64 * 1024);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("eb1 faults");
    TCase   *tc = tcase_create("faults");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 100);
    tcase_add_loop_test(tc, malformed_messages_cost_nobody_anything, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, another_flag_ends_its_own_connection_only, 0, EB1_TRANSPORTS);
    tcase_add_test(tc, who_leaves_leaves_every_event);
    tcase_add_test(tc, a_name_registered_twice_is_one_place);
    tcase_add_test(tc, round_robin_is_per_event);
    tcase_add_test(tc, a_registration_that_cannot_be_served_ends_the_connection);
    tcase_add_loop_test(tc, a_slow_consumer_is_ended_and_every_message_accounted_for, 0,
                        EB1_TRANSPORTS);
    tcase_add_test(tc, what_comes_after_a_slow_member_goes_to_the_next);
    tcase_add_test(tc, all_output_together_has_a_limit_too);
    tcase_add_test(tc, who_floods_heartbeats_without_reading_is_ended);
    tcase_add_test(tc, who_does_not_greet_or_does_not_finish_is_closed_in_time);
    tcase_add_test(tc, heartbeats_that_stop_end_a_connection_but_silence_does_not);
    tcase_add_test(tc, nothing_is_left_of_connections_that_came_and_went);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
