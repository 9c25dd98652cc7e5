/* eb/1, byte for byte: every exchange of the reference, over TCP, unix sockets and WebSocket. */
#include <check.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "eb1_peer.h"

#define SESS "f3657373"
#define API1 "e1706931"

static ie_bus_server *server;
static eb1_transport  transport;

static void
set_up(void)
{
    (void)test_dir_make();
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
    server = NULL;
    test_dir_remove();
}

static void
start(int index, ie_bus_server_options *options)
{
    transport = (eb1_transport)index;
    server = eb1_bus_start(options, transport);
}

#define wait_stat(field, wanted) wait_stat_of(server, field, wanted)

/* ---- names ---- */

START_TEST(event_ids_are_the_first_four_bytes_and_the_top_bit)
{
    ck_assert_uint_eq(ie_eb1_event_id("sess"), 0xF3657373);
    ck_assert_uint_eq(ie_eb1_event_id("api1"), 0xE1706931);
    ck_assert_uint_eq(ie_eb1_event_id("abcd"), 0xE1626364);
    ck_assert_uint_eq(ie_eb1_event_id("ab"), 0xE1620000);
    ck_assert_uint_eq(ie_eb1_event_id("zzzz"), 0xFA7A7A7A);
    ck_assert_uint_eq(ie_eb1_event_id("sessions"), 0xF3657373);
    ck_assert_uint_eq(ie_eb1_event_id(""), 0x80000000);
    ck_assert_uint_eq(ie_eb1_event_id("ebus"), 0xE5627573);
}
END_TEST

/* ---- a.2, a.6: greeting, id, registration, heartbeat ---- */

START_TEST(ids_ascend_by_one_from_a_random_start)
{
    eb1_peer first;
    eb1_peer next;

    start(_i, NULL);
    first = eb1_open(server, transport);
    next = eb1_open(server, transport);
    ck_assert_uint_eq(next.id, first.id == 0x7fffffff ? 1 : first.id + 1);
    eb1_close(&first);
    eb1_close(&next);
    wait_stat(eb1_connections, 0);
    first = eb1_open(server, transport);
    ck_assert_uint_ne(first.id, next.id);
    eb1_close(&first);
}
END_TEST

START_TEST(heartbeats_of_every_kind_come_back_unchanged_but_for_the_addresses)
{
    eb1_peer peer;

    start(_i, NULL);
    peer = eb1_join(server, transport, "sess", NULL);
    eb1_say(&peer, "65621320 1c538f35 e5627573");
    eb1_expect(&peer, "65621320 e5627573 %08x", peer.id);
    eb1_say(&peer, "65621330 00000abc e5627573");
    eb1_expect(&peer, "65621330 e5627573 %08x", peer.id);
    eb1_say(&peer, "65621320 00000abc 00000000 'body'");
    eb1_expect(&peer, "65621320 e5627573 %08x 'body'", peer.id);
    eb1_say(&peer, "656213e0 00000abc e5627573");
    eb1_expect(&peer, "656213e0 e5627573 %08x", peer.id);
    eb1_say(&peer, "65621520 00000abc e5627573 0102030405060708 'more'");
    eb1_expect(&peer, "65621520 e5627573 %08x 0102030405060708 'more'", peer.id);
    eb1_say(&peer, "65627320 00000abc e5627573");
    eb1_expect(&peer, "65627320 e5627573 %08x", peer.id);
    eb1_close(&peer);
}
END_TEST

START_TEST(other_control_commands_are_ignored)
{
    eb1_peer peer;

    start(_i, NULL);
    peer = eb1_open(server, transport);
    eb1_say(&peer, "65621322 e5627573 10c5b306");
    eb1_say(&peer, "65621332 e5627573 10c5b306");
    eb1_say(&peer, "6562132f 00000abc e5627573");
    eb1_expect_nothing(&peer);
    wait_stat(frames_ignored, 3);
    wait_stat(eb1_in, 0);
    eb1_close(&peer);
}
END_TEST

START_TEST(register_is_served_in_both_spellings_and_adds_names)
{
    eb1_peer member;
    eb1_peer sender;

    start(_i, NULL);
    member = eb1_open(server, transport);
    eb1_say(&member, "65621321 1c538f35 " SESS);
    eb1_say(&member, "65621331 07b96708 " API1);
    eb1_expect_nothing(&member);
    sender = eb1_open(server, transport);
    eb1_say(&sender, "65621510 %08x " SESS " 0000000000000000 'one'", sender.id);
    eb1_say(&sender, "65621510 %08x " API1 " 0000000000000000 'two'", sender.id);
    eb1_expect(&member, "65621300 %08x %08x 'one'", sender.id, member.id);
    eb1_expect(&member, "65621300 %08x %08x 'two'", sender.id, member.id);
    eb1_close(&member);
    eb1_close(&sender);
}
END_TEST

/* ---- a.7, a.8: data ---- */

START_TEST(the_captured_vectors_come_out_as_captured)
{
    eb1_peer member;
    eb1_peer sender;

    start(_i, NULL);
    member = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    eb1_say(&sender, "65621510 10c5b307 " SESS " 0000000000000000 'hello random'");
    eb1_expect(&member, "65621300 10c5b307 %08x 'hello random'", member.id);
    eb1_say(&sender, "65621300 10c5b308 %08x 'hello direct'", member.id);
    eb1_expect(&member, "65621300 10c5b308 %08x 'hello direct'", member.id);
    eb1_say(&sender, "65621510 10c5b309 " SESS " 0000000000003039 'hello hashkey'");
    eb1_expect(&member, "65621300 10c5b309 %08x 'hello hashkey'", member.id);
    eb1_say(&member, "65621300 %08x %08x 'an answer'", member.id, sender.id);
    eb1_expect(&sender, "65621300 %08x %08x 'an answer'", member.id, sender.id);
    eb1_say(&sender, "65621300 %08x %08x", sender.id, member.id);
    eb1_expect(&member, "65621300 %08x %08x", sender.id, member.id);
    wait_stat(eb1_in, 5);
    wait_stat(eb1_out, 5);
    wait_stat(eb1_dropped, 0);
    eb1_close(&member);
    eb1_close(&sender);
}
END_TEST

START_TEST(hash_chooses_key_mod_n_in_the_order_of_registration)
{
    static const struct {
        uint64_t key;
        int      member;
    } CASES[] = {{0, 0}, {1, 1}, {2, 2}, {3, 0}, {4, 1}, {5, 2}, {UINT64_MAX, 0}};
    eb1_peer members[3];
    eb1_peer sender;

    start(_i, NULL);
    for (int i = 0; i < 3; i++)
        members[i] = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const eb1_peer *to = &members[CASES[i].member];

        eb1_say(&sender, "65621511 %08x " SESS " %016llx 'h%zu'", sender.id,
                (unsigned long long)CASES[i].key, i);
        eb1_expect(to, "65621301 %08x %08x 'h%zu'", sender.id, to->id, i);
    }
    eb1_close(&members[1]); /* the later ones move up */
    wait_stat(eb1_connections, 3);
    eb1_say(&sender, "65621511 %08x " SESS " 0000000000000001 'x'", sender.id);
    eb1_expect(&members[2], "65621301 %08x %08x 'x'", sender.id, members[2].id);
    eb1_close(&members[0]);
    eb1_close(&members[2]);
    eb1_close(&sender);
}
END_TEST

START_TEST(round_robin_begins_with_the_first_and_is_right_for_three)
{
    eb1_peer members[3];
    eb1_peer sender;

    start(_i, NULL);
    for (int i = 0; i < 3; i++)
        members[i] = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    for (unsigned i = 0; i < 12; i++) {
        const eb1_peer *to = &members[i % 3];

        eb1_say(&sender, "65621512 %08x " SESS " 0000000000000000 '%u'", sender.id, i);
        eb1_expect(to, "65621302 %08x %08x '%u'", sender.id, to->id, i);
    }
    for (int i = 0; i < 3; i++)
        eb1_close(&members[i]);
    eb1_close(&sender);
}
END_TEST

START_TEST(the_command_nibble_and_the_version_are_kept)
{
    eb1_peer member;
    eb1_peer sender;

    start(_i, NULL);
    member = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    eb1_say(&sender, "6562751f %08x " SESS " 0000000000000000 'v7'", sender.id);
    eb1_expect(&member, "6562730f %08x %08x 'v7'", sender.id, member.id);
    eb1_say(&sender, "65627300 %08x %08x 'v7'", sender.id, member.id);
    eb1_expect(&member, "65627300 %08x %08x 'v7'", sender.id, member.id);
    eb1_close(&member);
    eb1_close(&sender);
}
END_TEST

START_TEST(the_sender_may_be_chosen_itself)
{
    eb1_peer peer;

    start(_i, NULL);
    peer = eb1_join(server, transport, "sess", NULL);
    eb1_say(&peer, "65621510 %08x " SESS " 0000000000000000 'me'", peer.id);
    eb1_expect(&peer, "65621300 %08x %08x 'me'", peer.id, peer.id);
    eb1_close(&peer);
}
END_TEST

START_TEST(a_broadcast_reaches_all_but_its_source_field)
{
    eb1_peer sender;
    eb1_peer member;
    eb1_peer other;

    start(_i, NULL);
    sender = eb1_open(server, transport);
    member = eb1_join(server, transport, "sess", NULL);
    other = eb1_open(server, transport);
    eb1_say(&sender, "65621300 %08x 00000000 'bc'", sender.id);
    eb1_expect(&member, "65621300 %08x 00000000 'bc'", sender.id);
    eb1_expect(&other, "65621300 %08x 00000000 'bc'", sender.id);
    eb1_say(&sender, "65621510 %08x 00000000 0000000000000005 'bc'", sender.id);
    eb1_expect(&member, "65621510 %08x 00000000 0000000000000005 'bc'", sender.id);
    eb1_expect(&other, "65621510 %08x 00000000 0000000000000005 'bc'", sender.id);
    eb1_expect_nothing(&sender);
    eb1_say(&sender, "65621300 %08x 00000000 'as'", member.id); /* in somebody else's name */
    eb1_expect(&sender, "65621300 %08x 00000000 'as'", member.id);
    eb1_expect(&other, "65621300 %08x 00000000 'as'", member.id);
    eb1_expect_nothing(&member);
    wait_stat(eb1_out, 6);
    eb1_close(&sender);
    eb1_close(&member);
    eb1_close(&other);
}
END_TEST

START_TEST(order_from_one_sender_to_one_receiver_is_kept)
{
    eb1_peer member;
    eb1_peer sender;

    start(_i, NULL);
    member = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    for (unsigned i = 0; i < 500; i++)
        eb1_send_number(&sender, i % 2 == 0 ? 0x10 : 0x00,
                        i % 2 == 0 ? ie_eb1_event_id("sess") : member.id, 0, i);
    for (unsigned i = 0; i < 500; i++)
        eb1_expect(&member, "65621300 %08x %08x '%u'", sender.id, member.id, i);
    eb1_close(&member);
    eb1_close(&sender);
}
END_TEST

/* ---- a.3: limits ---- */

START_TEST(one_mebibyte_passes_and_one_byte_more_closes)
{
    const size_t   max = IE_EB1_MESSAGE_BYTES_MAX;
    unsigned char *message = malloc(max + 1);
    unsigned char *got = malloc(max + 64);
    eb1_peer       member;
    eb1_peer       sender;

    ck_assert(message != NULL && got != NULL);
    start(_i, NULL);
    member = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    for (size_t i = 0; i <= max; i++)
        message[i] = (unsigned char)(i * 7 + (i >> 8));
    memcpy(message, "\x65\x62\x13\x00", 4);
    ie__put32(message + 4, sender.id);
    ie__put32(message + 8, member.id);
    eb1_send(&sender, message, max);
    ck_assert_uint_eq(eb1_receive(&member, got), max);
    ck_assert_mem_eq(got, message, max);
    memcpy(message, "\x65\x62\x15\x12", 4); /* an event shrinks by 8 */
    ie__put32(message + 8, ie_eb1_event_id("sess"));
    eb1_send(&sender, message, max);
    ck_assert_uint_eq(eb1_receive(&member, got), max - 8);
    ck_assert_mem_eq(got + 12, message + 20, max - 20);
    eb1_send(&sender, message, max + 1);
    eb1_expect_end(&sender);
    wait_stat(protocol_errors, 1);
    eb1_expect_nothing(&member);
    eb1_close(&sender);
    eb1_close(&member);
    free(message);
    free(got);
}
END_TEST

START_TEST(a_length_with_the_top_bit_closes)
{
    static const unsigned char LENGTH[9] = {1, 0x80, 0, 0, 0, 0, 0, 0, 12};
    eb1_peer                   peer;

    start(_i, NULL);
    peer = eb1_open(server, transport);
    if (transport == EB1_WS)
        raw_send(peer.fd, "\x82\xff\x80\0\0\0\0\0\0\x0c\0\0\0\0", 14);
    else
        raw_send(peer.fd, transport == EB1_IPC ? LENGTH : LENGTH + 1, transport == EB1_IPC ? 9 : 8);
    eb1_expect_end(&peer);
    wait_stat(protocol_errors, 1);
    eb1_close(&peer);
}
END_TEST

/* ---- a.2, a.3: greetings that are none, the byte in front ---- */

START_TEST(other_greetings_close_the_connection)
{
    static const char *const GREETINGS[] = {
        "\0SP\0\0\xaa\0\0", "\0SP\0\0\x10\0\0", "\0SP\1\0\xab\0\0",
        "\0SP\0\0\xab\0\1", "\0SP\0\xab\0\0\0", "POST / H",
    };

    start(EB1_TCP, NULL);
    for (size_t i = 0; i < sizeof GREETINGS / sizeof *GREETINGS; i++) {
        const int fd = raw_connect(server);

        ck_assert_int_ge(fd, 0);
        raw_send(fd, GREETINGS[i], 8);
        raw_expect_end(fd);
        (void)close(fd);
        wait_stat(protocol_errors, i + 1);
    }
    wait_stat(connections, 0);
    wait_stat(eb1_connections, 0);
}
END_TEST

START_TEST(the_byte_in_front_is_ignored_on_unix_sockets)
{
    eb1_peer peer;

    start(EB1_IPC, NULL);
    peer = eb1_open(server, transport);
    raw_send(peer.fd, "\7\0\0\0\0\0\0\0\x0c\x65\x62\x13\x20\0\0\0\1\xe5\x62\x75\x73", 21);
    eb1_expect(&peer, "65621320 e5627573 %08x", peer.id);
    eb1_close(&peer);
}
END_TEST

START_TEST(eb2_on_a_unix_socket_has_no_byte_in_front)
{
    start(EB1_IPC, NULL);
    (void)close(raw_open(server));
}
END_TEST

START_TEST(messages_may_come_byte_by_byte)
{
    static const unsigned char GREETING[8] = {0, 0x53, 0x50, 0, 0, 0xab, 0, 0};
    static const unsigned char BEAT[21] = {1,    0,    0, 0, 0, 0, 0,    0,    12,   0x65, 0x62,
                                           0x13, 0x20, 0, 0, 0, 1, 0xe5, 0x62, 0x75, 0x73};
    const size_t               skip = _i == EB1_IPC ? 0 : 1;
    unsigned char              byte[8];
    eb1_peer                   peer;

    start(_i, NULL);
    peer.transport = transport;
    peer.fd = raw_connect(server);
    for (size_t i = 0; i < 8; i++)
        raw_send(peer.fd, &GREETING[i], 1);
    ck_assert(raw_receive(peer.fd, byte, 8));
    {
        unsigned char message[64];

        ck_assert_uint_eq(eb1_receive(&peer, message), 12);
        peer.id = ie__get32(message + 8);
    }
    for (size_t round = 0; round < 3; round++)
        for (size_t i = skip; i < sizeof BEAT; i++)
            raw_send(peer.fd, &BEAT[i], 1);
    for (size_t round = 0; round < 3; round++)
        eb1_expect(&peer, "65621320 e5627573 %08x", peer.id);
    eb1_close(&peer);
}
END_TEST

/* ---- a.10: the older revision ---- */

START_TEST(a_client_that_waits_gets_the_older_assignment_and_means_hash_by_12)
{
    ie_bus_server_options options;
    eb1_peer              old;
    eb1_peer              members[3];

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.hello_timeout_ms = 200;
    start(EB1_TCP, &options);
    old = eb1_open(server, transport);
    eb1_expect(&old, "65621321 e5627573 %08x", old.id);
    eb1_say(&old, "65621321 00000001 %08x", ie_eb1_event_id("old1"));
    eb1_expect_nothing(&old);
    for (int i = 0; i < 3; i++)
        members[i] = eb1_join(server, transport, "sess", NULL);
    for (unsigned i = 0; i < 4; i++) {
        eb1_say(&old, "65621512 %08x " SESS " 0000000000000005 '%u'", old.id, i);
        eb1_expect(&members[2], "65621302 %08x %08x '%u'", old.id, members[2].id, i);
    }
    for (int i = 0; i < 3; i++)
        eb1_close(&members[i]);
    eb1_close(&old);
}
END_TEST

START_TEST(a_bus_may_refuse_eb1)
{
    ie_bus_server_options options;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.flags = IE_BUS_SERVER_NO_EB1;
    start(EB1_TCP, &options);
    fd = raw_connect(server);
    raw_send(fd, "\0SP\0\0\xab\0\0", 8);
    raw_expect_end(fd);
    (void)close(fd);
    (void)close(raw_open(server));
}
END_TEST

START_TEST(a_stopping_bus_lets_what_waits_out_and_closes)
{
    eb1_peer member;
    eb1_peer sender;

    start(_i, NULL);
    member = eb1_join(server, transport, "sess", NULL);
    sender = eb1_open(server, transport);
    for (unsigned i = 0; i < 200; i++)
        eb1_send_number(&sender, 0x10, ie_eb1_event_id("sess"), 0, i);
    wait_stat(eb1_in, 200);
    /* The member is still to read, and hangs up in its own time: the bus cuts nothing off. */
    ck_assert_int_eq(ie_bus_server_stop(server, 100), IE_OK);
    for (unsigned i = 0; i < 200; i++)
        eb1_expect(&member, "65621300 %08x %08x '%u'", sender.id, member.id, i);
    eb1_expect_end(&member);
    eb1_close(&member);
    eb1_close(&sender);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("eb1");
    TCase   *tc = tcase_create("wire");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, event_ids_are_the_first_four_bytes_and_the_top_bit);
    tcase_add_loop_test(tc, ids_ascend_by_one_from_a_random_start, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, heartbeats_of_every_kind_come_back_unchanged_but_for_the_addresses, 0,
                        EB1_TRANSPORTS);
    tcase_add_loop_test(tc, other_control_commands_are_ignored, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, register_is_served_in_both_spellings_and_adds_names, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, the_captured_vectors_come_out_as_captured, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, hash_chooses_key_mod_n_in_the_order_of_registration, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, round_robin_begins_with_the_first_and_is_right_for_three, 0,
                        EB1_TRANSPORTS);
    tcase_add_loop_test(tc, the_command_nibble_and_the_version_are_kept, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, the_sender_may_be_chosen_itself, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, a_broadcast_reaches_all_but_its_source_field, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, order_from_one_sender_to_one_receiver_is_kept, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, one_mebibyte_passes_and_one_byte_more_closes, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, a_length_with_the_top_bit_closes, 0, EB1_TRANSPORTS);
    tcase_add_test(tc, other_greetings_close_the_connection);
    tcase_add_test(tc, the_byte_in_front_is_ignored_on_unix_sockets);
    tcase_add_test(tc, eb2_on_a_unix_socket_has_no_byte_in_front);
    tcase_add_loop_test(tc, messages_may_come_byte_by_byte, 0, EB1_WS);
    tcase_add_test(tc, a_client_that_waits_gets_the_older_assignment_and_means_hash_by_12);
    tcase_add_test(tc, a_bus_may_refuse_eb1);
    tcase_add_loop_test(tc, a_stopping_bus_lets_what_waits_out_and_closes, 0, EB1_TRANSPORTS);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
