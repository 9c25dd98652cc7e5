/* Limits of what peers can make the bus hold: at the limit served, one past it refused with a code.
 * Those of sessions and groups are in test_protocol.c, those of connections in test_crowd.c too. */
#include <check.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bus_support.h"
#include "core.h"
#include "store.h"

START_TEST(credit_is_what_was_asked_at_most_the_limit)
{
    static const uint32_t ASKED[] = {0, 2, 3, 4, UINT32_MAX};
    static const uint32_t GIVEN[] = {3, 2, 3, 3, 3};
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   member;
    int                   publisher;
    ie__frame             frame;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.credit_max = 3;
    server = bus_start(&options);
    member = raw_open(server);
    publisher = raw_open(server);
    raw_subscribe(member, 1, "t", "g", 0, ASKED[_i]);
    frame = raw_expect(member, IE__SUBSCRIBED);
    ck_assert_uint_eq(ie__get32(frame.body + 3), GIVEN[_i]);
    for (uint32_t i = 1; i <= 5; i++)
        raw_publish(publisher, i, 0, "t", 1);
    raw_frame(publisher, IE__PING, 1, NULL, 0);
    (void)raw_expect(publisher, IE__PONG); /* all five were handled */
    for (uint32_t i = 0; i < GIVEN[_i]; i++)
        (void)raw_expect(member, IE__DELIVER_ACK);
    raw_frame(member, IE__PING, 2, NULL, 0);
    (void)raw_expect(member, IE__PONG); /* and no more came before it */
    (void)close(member);
    (void)close(publisher);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_pattern_has_so_many_words)
{
    ie_bus_server *server = bus_start_default();
    const int      fd = raw_open(server);
    char           pattern[2 * IE_BUS_PATTERN_WORDS_MAX + 8] = "*";

    for (int words = 1; words < IE_BUS_PATTERN_WORDS_MAX; words++)
        strcat(pattern, ".a");
    raw_subscribe(fd, 1, pattern, NULL, IE_BUS_SUBSCRIBE_OWN, 0);
    (void)raw_expect(fd, IE__SUBSCRIBED);
    pattern[0] = 'b';
    raw_publish(fd, 1, 0, pattern, 1);
    (void)raw_expect(fd, IE__DELIVER);
    (void)raw_expect(fd, IE__PUBACK);
    strcat(pattern, ".>");
    raw_subscribe(fd, 2, pattern, NULL, 0, 0);
    raw_expect_reason(fd, IE__SUBREFUSED, 2, IE_BUS_CODE_LIMIT);
    (void)close(fd);
    ie_bus_server_close(server);
}
END_TEST

#define EVENT_BYTES 50000u /* below one read: in pieces it is not yet "large" */

START_TEST(held_events_fill_memory_up_to_the_limit)
{
    enum { FIT = 10 };
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   member;
    int                   publisher;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    /* records of 3 bytes more than their data, and less than one of them for what is on its way */
    options.memory_bytes_max = FIT * (EVENT_BYTES + 3) + EVENT_BYTES - 1;
    server = bus_start(&options);
    member = raw_open(server);
    publisher = raw_open(server);
    raw_subscribe(member, 1, "t", "g", 0, 1);
    (void)raw_expect(member, IE__SUBSCRIBED);
    /* Slowly: a message in pieces counts while it comes, and so does unread output. */
    raw_publish(publisher, 1, 0, "t", EVENT_BYTES);
    (void)raw_expect(member, IE__DELIVER_ACK);
    for (uint32_t i = 2; i <= FIT; i++)
        raw_publish(publisher, i, 0, "t", EVENT_BYTES);
    raw_frame(publisher, IE__PING, 1, NULL, 0);
    (void)raw_expect(publisher, IE__PONG);
    CK_BUS_STAT(server, held_events, FIT);
    raw_publish(publisher, FIT + 1, 0, "t", EVENT_BYTES);
    raw_expect_reason(publisher, IE__PUBNACK, FIT + 1, IE_BUS_CODE_MEMORY);
    raw_publish(publisher, FIT + 2, 0, "t", 10); /* a small one fits still */
    raw_frame(publisher, IE__PING, 1, NULL, 0);
    (void)raw_expect(publisher, IE__PONG);
    CK_BUS_STAT(server, held_events, FIT + 1);
    (void)close(member);
    for (int i = 0; i < FIT + 1; i++)
        (void)raw_expect(publisher, IE__PUBNACK); /* gone */
    raw_publish(publisher, 99, 0, "t", EVENT_BYTES);
    (void)raw_expect(publisher, IE__PUBACK); /* there is room again */
    (void)close(publisher);
    ie_bus_server_close(server);
}
END_TEST

typedef struct read_so_far {
    ie_bus_server *server;
    uint64_t       bytes;
} read_so_far;

static bool
all_is_read(void *arg)
{
    const read_so_far *wanted = arg;

    return bus_stats(wanted->server).bytes_in >= wanted->bytes;
}

/* Pieces of messages that never come whole are memory too. */
START_TEST(unfinished_messages_fill_memory_up_to_the_limit)
{
    enum { PEERS = 32, PIECE = 200000 };
    ie_bus_server_options options;
    ie_bus_server        *server;
    unsigned char        *piece = calloc(1, PIECE);
    int                   fds[PEERS];
    read_so_far           wanted;
    int                   refused = 0;
    int                   fd;

    ck_assert_ptr_nonnull(piece);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.memory_bytes_max = 2 << 20;
    server = bus_start(&options);
    ie__frame_prefix(piece, IE__PUBLISH, 1, 900000);
    for (int i = 0; i < PEERS; i++) {
        fds[i] = raw_open(server);
        raw_send(fds[i], piece, PIECE);
    }
    wanted.server = server;
    wanted.bytes = PEERS * (uint64_t)(IE__GREETING_BYTES + IE__PREFIX_BYTES + PIECE);
    ck_assert(poll_until(all_is_read, &wanted, WAIT_MS));
    for (int i = 0; i < PEERS; i++) { /* each was told, or waits for the rest */
        struct pollfd poller = {.fd = fds[i], .events = POLLIN};

        if (poll(&poller, 1, 0) == 1) {
            raw_expect_reason(fds[i], IE__ERROR, 0, IE_BUS_CODE_MEMORY);
            refused++;
        }
    }
    ck_assert_int_ge(refused, PEERS - 12); /* 2 MiB are at most ten of them, in powers of two */
    ck_assert_int_le(refused, PEERS - 4);
    ck_assert_uint_le(bus_stats(server).memory_bytes, (2u << 20) + 262144);
    fd = raw_open(server); /* others with small messages notice nothing */
    raw_subscribe(fd, 1, "t", NULL, IE_BUS_SUBSCRIBE_OWN, 0);
    (void)raw_expect(fd, IE__SUBSCRIBED);
    for (int i = 0; i < PEERS; i++)
        (void)close(fds[i]);
    for (int64_t end_ns = ie__mono_ns() + WAIT_MS * INT64_C(1000000);
         bus_stats(server).connections != 1;) {
        ck_assert(ie__mono_ns() < end_ns);
        raw_frame(fd, IE__PING, 1, NULL, 0);
        (void)raw_expect(fd, IE__PONG);
    }
    raw_publish(fd, 1, 0, "t", EVENT_BYTES);
    (void)raw_expect(fd, IE__DELIVER);
    (void)close(fd);
    free(piece);
    ie_bus_server_close(server);
}
END_TEST

/* Both do not read, one of them gets twice as much: that is the one that has to go. */
START_TEST(all_queues_together_are_limited_and_the_longest_goes)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   more;
    int                   less;
    int                   publisher;
    unsigned char         bytes[4096];

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = 64 << 20;
    options.out_bytes_total_max = 16 << 20;
    server = bus_start(&options);
    more = raw_open(server);
    less = raw_open(server);
    publisher = raw_open(server);
    raw_subscribe(more, 1, ">", NULL, 0, 0);
    (void)raw_expect(more, IE__SUBSCRIBED);
    raw_subscribe(less, 1, "a", NULL, 0, 0);
    (void)raw_expect(less, IE__SUBSCRIBED);
    for (uint32_t n = 0; bus_stats(server).slow_closed == 0; n++) {
        ck_assert_uint_lt(n, 5000);
        raw_publish(publisher, n, 0, n % 2 == 0 ? "a" : "b", 20000);
        while (recv(publisher, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
            continue;
        ck_assert_uint_le(bus_stats(server).out_bytes, options.out_bytes_total_max);
    }
    for (;;) { /* its last words are the reason */
        static unsigned char message[IE__MESSAGE_MAX];
        const size_t         size = raw_message(more, message);
        ie__frame            frame;

        ck_assert_uint_ne(size, 0);
        ck_assert_int_eq(ie__frame_parse(&frame, message, size, NULL), IE_OK);
        if (frame.type == IE__DELIVER)
            continue;
        ck_assert_uint_eq(frame.type, IE__ERROR);
        ck_assert_uint_eq(ie__get16(frame.body), IE_BUS_CODE_SLOW);
        break;
    }
    (void)raw_expect(less, IE__DELIVER); /* it is served on */
    CK_BUS_STAT(server, connections, 2);
    (void)close(more);
    (void)close(less);
    (void)close(publisher);
    ie_bus_server_close(server);
}
END_TEST

/* What waits for the disk is counted with what it costs to keep it there. */
START_TEST(what_waits_to_be_stored_is_limited)
{
    enum { DATA = 1000, RECORD = DATA + 3 };
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    (void)test_dir_make();
    options.data_dir = test_path("data");
    options.store_queue_bytes_max = RECORD + sizeof(ie__append_job);
    server = bus_start(&options);
    fd = raw_open(server);
    raw_publish(fd, 1, IE_BUS_PUBLISH_PERSISTENT, "t", DATA);
    (void)raw_expect(fd, IE__PUBACK);
    raw_publish(fd, 2, IE_BUS_PUBLISH_PERSISTENT, "t", DATA + 1);
    raw_expect_reason(fd, IE__PUBNACK, 2, IE_BUS_CODE_LIMIT);
    raw_publish(fd, 3, 0, "t", DATA + 1); /* not stored: not its business */
    (void)raw_expect(fd, IE__PUBACK);
    (void)close(fd);
    ie_bus_server_close(server);
    test_dir_remove();
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus limits");
    TCase   *tcase = tcase_create("limits");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, credit_is_what_was_asked_at_most_the_limit, 0, 5);
    tcase_add_test(tcase, a_pattern_has_so_many_words);
    tcase_add_test(tcase, held_events_fill_memory_up_to_the_limit);
    tcase_add_test(tcase, unfinished_messages_fill_memory_up_to_the_limit);
    tcase_add_test(tcase, all_queues_together_are_limited_and_the_longest_goes);
    tcase_add_test(tcase, what_waits_to_be_stored_is_limited);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
