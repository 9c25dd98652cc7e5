/* The server against a peer that speaks raw bytes: the sessions of PROTOCOL.md, broken rules in
 * each state, limits at the value and one past it, silence. */
#include "bus_support.h"

#include <check.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core.h"

static unsigned char *
body_text(const char *text, unsigned code)
{
    static unsigned char body[600];

    ie__put16(body, code);
    memcpy(body + 2, text, strlen(text));
    return body;
}

static void
raw_goodbye(int fd)
{
    raw_frame(fd, IE__GOODBYE, 0, body_text("bye", IE_BUS_CODE_DONE), 5);
    raw_expect_reason(fd, IE__GOODBYE, 0, IE_BUS_CODE_DONE);
    raw_expect_end(fd);
    (void)close(fd);
}

/* The server must still serve. */
static void
check_alive(const ie_bus_server *server)
{
    const int fd = raw_open(server);

    raw_subscribe(fd, 1, "alive", NULL, IE_BUS_SUBSCRIBE_OWN, 0);
    (void)raw_expect(fd, IE__SUBSCRIBED);
    raw_publish(fd, 1, 0, "alive", 3);
    (void)raw_expect(fd, IE__DELIVER);
    (void)raw_expect(fd, IE__PUBACK);
    raw_goodbye(fd);
}

/* ---- PROTOCOL.md, section 10 ---------------------------------------------------------------- */

static size_t
hex_line(const char *text, unsigned char *out, size_t max)
{
    size_t   size = 0;
    unsigned byte;

    for (const char *at = text; *at != '\0' && *at != '#' && *at != '\n';) {
        if (*at == ' ') {
            at++;
            continue;
        }
        ck_assert_msg(sscanf(at, "%2x", &byte) == 1, "not hex: %s", at);
        ck_assert_uint_lt(size, max);
        out[size++] = (unsigned char)byte;
        at += 2;
    }
    return size;
}

static void
replay_receive(int fd, const char *what, int line)
{
    static unsigned char expected[8192];
    static unsigned char got[8192];
    unsigned             number;
    unsigned             code;
    size_t               size;

    if (strncmp(what, "close", 5) == 0) {
        raw_expect_end(fd);
    } else if (sscanf(what, "pubnack %u %u", &number, &code) == 2) {
        raw_expect_reason(fd, IE__PUBNACK, number, code);
    } else if (sscanf(what, "subrefused %u %u", &number, &code) == 2) {
        raw_expect_reason(fd, IE__SUBREFUSED, number, code);
    } else if (sscanf(what, "error %u", &code) == 1) {
        raw_expect_reason(fd, IE__ERROR, 0, code);
    } else {
        size = hex_line(what, expected, sizeof expected);
        ck_assert_msg(raw_receive(fd, got, size), "line %d: the connection ended", line);
        ck_assert_msg(memcmp(got, expected, size) == 0, "line %d: other bytes came", line);
    }
}

START_TEST(the_sessions_of_the_document_are_what_the_server_does)
{
    FILE          *file = fopen(IE_PROTOCOL_MD, "r");
    ie_bus_server *server = NULL;
    int            fds[10];
    char           text[4096];
    int            line = 0;
    int            sessions = 0;

    ck_assert_ptr_nonnull(file);
    while (fgets(text, sizeof text, file) != NULL) {
        unsigned char bytes[4096];
        unsigned      who;

        line++;
        if (strncmp(text, "```eb2 ", 7) == 0 || strncmp(text, "```eb2-stored ", 14) == 0) {
            ie_bus_server_options options;

            IE_BUS_SERVER_OPTIONS_INIT(&options);
            (void)test_dir_make();
            if (text[6] == '-')
                options.data_dir = test_path("data");
            server = bus_start(&options);
            for (size_t i = 0; i < 10; i++)
                fds[i] = -1;
        } else if (server != NULL && strncmp(text, "```", 3) == 0) {
            for (size_t i = 0; i < 10; i++)
                if (fds[i] >= 0)
                    (void)close(fds[i]);
            ie_bus_server_close(server);
            server = NULL;
            test_dir_remove();
            sessions++;
        } else if (server != NULL && sscanf(text, "c%1u>b", &who) == 1) {
            if (fds[who] < 0)
                fds[who] = raw_connect(server);
            raw_send(fds[who], bytes, hex_line(text + 5, bytes, sizeof bytes));
        } else if (server != NULL && sscanf(text, "b>c%1u", &who) == 1) {
            replay_receive(fds[who], text + 5, line);
        } else {
            ck_assert_msg(server == NULL, "line %d: what is this in a session?", line);
        }
    }
    (void)fclose(file);
    ck_assert_int_ge(sessions, 4);
}
END_TEST

/* ---- broken rules --------------------------------------------------------------------------- */

START_TEST(strangers_are_turned_away)
{
    static const char *const   STRANGERS[] = {"PUT / HTTP/1.1\r\n",
                                              "\x16\x03\x01\x02\x00\x01\x00\x01", "SSH-2.0-x\r\n",
                                              "*1\r\n$4\r\nPING\r\n"};
    static const unsigned char WRONG[][8] = {{0, 'S', 'P', 0, 0, 0xAA, 0, 0},
                                             {0, 'S', 'P', 1, 0, 0xAC, 0, 0},
                                             {0, 'S', 'P', 0, 0, 0xAC, 0, 1},
                                             {0, 'S', 'P', 0, 0, 0xAD, 0, 0}};
    ie_bus_server             *server = bus_start_default();
    const size_t               count = sizeof STRANGERS / sizeof *STRANGERS;

    for (size_t i = 0; i < count + sizeof WRONG / sizeof *WRONG; i++) {
        const int fd = raw_connect(server);

        if (i < count)
            raw_send(fd, STRANGERS[i], 8);
        else
            raw_send(fd, WRONG[i - count], 8);
        raw_expect_end(fd);
        (void)close(fd);
    }
    check_alive(server);
    ie_bus_server_close(server);
}
END_TEST

typedef struct breach {
    const char *name;
    uint8_t     type;
    const char *body;
    size_t      size;
} breach;

#define BODY(literal) literal, sizeof(literal) - 1

static const breach BREACHES[] = {
    {"welcome to the server", IE__WELCOME, BODY("")},
    {"puback to the server", IE__PUBACK, BODY("\0\0\0\1\0\0\0\1\0\0\0\1")},
    {"deliver to the server", IE__DELIVER, BODY("\0\0\0\0\1t\0")},
    {"second hello", IE__HELLO, BODY("")},
    {"unknown type", 0x7e, BODY("")},
    {"publish without flags", IE__PUBLISH, BODY("\0\0\0")},
    {"empty ack", IE__ACK, BODY("")},
    {"odd ack", IE__ACK, BODY("\0\0\0\1\0\0\0")},
    {"ack of nothing", IE__ACK, BODY("\0\0\0\1\0\0\0\0")},
    {"nack without code", IE__NACK, BODY("\0")},
    {"goodbye without code", IE__GOODBYE, BODY("")},
    {"error without code", IE__ERROR, BODY("\0")},
    {"subscribe: cut field", IE__SUBSCRIBE, BODY("\11\0\5ab")},
    {"subscribe: unknown field", IE__SUBSCRIBE, BODY("\11\0\1a\75\0\0")},
    {"subscribe: short credit", IE__SUBSCRIBE, BODY("\11\0\1a\10\0\2aa")},
    {"subscribe: control character", IE__SUBSCRIBE, BODY("\11\0\2a\n")},
};

START_TEST(a_broken_rule_ends_the_connection_and_nothing_else)
{
    ie_bus_server *server = bus_start_default();
    const breach  *b = &BREACHES[_i];
    const int      fd = raw_open(server);

    raw_frame(fd, (ie__frame_type)b->type, 1, b->body, b->size);
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
    raw_expect_end(fd);
    (void)close(fd);
    check_alive(server);
    ck_assert_uint_eq(bus_stats(server).protocol_errors, 1);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(before_the_hello_only_a_hello_is_taken)
{
    static const uint8_t TYPES[] = {IE__PUBLISH, IE__SUBSCRIBE, IE__ACK,
                                    IE__NACK,    IE__PING,      IE__PONG,
                                    IE__GOODBYE, IE__WELCOME,   IE__UNSUBSCRIBE};
    ie_bus_server       *server = bus_start_default();

    for (size_t i = 0; i < sizeof TYPES; i++) {
        unsigned char greeting[IE__GREETING_BYTES];
        const int     fd = raw_connect(server);

        ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
        raw_send(fd, greeting, sizeof greeting);
        raw_frame(fd, (ie__frame_type)TYPES[i], 0, "\0\0\0\0\1t\0", 7);
        ck_assert(raw_receive(fd, greeting, sizeof greeting));
        raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
        raw_expect_end(fd);
        (void)close(fd);
    }
    check_alive(server);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(random_bytes_and_mutations_in_each_state_leave_the_server_alive)
{
    ie_bus_server *server = bus_start_default();

    ie__random_seed(test_seed());
    for (uint64_t round = 0; round < test_scale(300); round++) {
        const bool    is_open = ie__random_below(2) == 0;
        const int     fd = is_open ? raw_open(server) : raw_connect(server);
        unsigned char bytes[512];
        const size_t  size = 1 + (size_t)ie__random_below(sizeof bytes);

        ie__random(bytes, size);
        if (ie__random_below(3) != 0) { /* a frame that is right but for some bytes */
            const size_t body = (size_t)ie__random_below(40);

            memset(bytes, 0, sizeof bytes);
            ie__frame_prefix(bytes, (ie__frame_type)ie__random_below(0x40),
                             (uint32_t)ie__random_below(4), body);
            ie__random(bytes + IE__PREFIX_BYTES, ie__random_below(2) == 0 ? body : 0);
            bytes[ie__random_below(IE__PREFIX_BYTES + body)] ^= (unsigned char)ie__random_below(4);
        }
        raw_send(fd, bytes, size);
        if (ie__random_below(2) == 0) {
            struct linger hard = {1, 0}; /* a reset instead of an end */

            (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        }
        (void)close(fd);
    }
    check_alive(server);
    ie_bus_server_close(server);
}
END_TEST

typedef struct everyone {
    ie_bus_server *server;
    uint64_t       came; /* some may still wait in the listener's queue */
} everyone;

static bool
nobody_is_left(void *arg)
{
    const everyone           *all = arg;
    const ie_bus_server_stats stats = bus_stats(all->server);

    return stats.accepted + stats.refused == all->came && stats.connections == 0 &&
           stats.subscriptions == 0 && stats.groups == 0 && stats.held_events == 0 &&
           stats.memory_bytes == 0;
}

START_TEST(an_end_at_every_byte_leaves_nothing_behind)
{
    ie_bus_server *server = bus_start_default();
    everyone       all = {server, 0};
    unsigned char  session[1024];
    size_t         size = IE__GREETING_BYTES;
    ie_buffer      buffer = {NULL, 0, 0};
    ie__builder    b;

    ie__greeting_put(session, IE__SP_EB2_CLIENT);
    ie__build_begin(&b, &buffer, IE__HELLO, 0);
    ie__build_text(&b, IE__F_NAME, "x");
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, 1);
    ie__build_text(&b, IE__F_PATTERN, "a.>");
    ie__build_text(&b, IE__F_GROUP, "g");
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    ie__build_begin(&b, &buffer, IE__PUBLISH, 1);
    ie__build_bytes(&b, "\0\0\0\0\3a.b\0data", 13);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    ie__build_begin(&b, &buffer, IE__PUBLISH, 2);
    ie__build_bytes(&b, "\0\0\0\0\3a.c\0data", 13);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    memcpy(session + size, buffer.data, buffer.size);
    size += buffer.size;
    ie_buffer_fini(&buffer);
    for (int how = 0; how < 3; how++) {
        for (size_t cut = 0; cut <= size; cut++) {
            const int fd = raw_connect(server);

            ck_assert_int_ge(fd, 0);
            all.came++;
            raw_send(fd, session, cut);
            if (how == 1)
                (void)shutdown(fd, SHUT_WR);
            if (how == 2) {
                struct linger hard = {1, 0};

                (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            }
            (void)close(fd);
        }
        ck_assert_msg(poll_until(nobody_is_left, &all, WAIT_MS), "something is left");
    }
    check_alive(server);
    ie_bus_server_close(server);
}
END_TEST

/* ---- limits --------------------------------------------------------------------------------- */

START_TEST(a_payload_at_the_limit_passes_and_one_past_it_does_not)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_bytes_max = 1000;
    server = bus_start(&options);
    fd = raw_open(server);
    raw_publish(fd, 1, 0, "t", 1000);
    (void)raw_expect(fd, IE__PUBACK);
    raw_publish(fd, 2, 0, "t", 1001);
    raw_expect_reason(fd, IE__PUBNACK, 2, IE_BUS_CODE_TOO_BIG);
    raw_publish(fd, 3, 0, "t", 1000); /* and the connection goes on */
    (void)raw_expect(fd, IE__PUBACK);
    raw_goodbye(fd);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_message_at_the_limit_passes_and_one_past_it_ends_the_connection)
{
    const size_t   max = IE_DATA_BYTES_MAX + IE__RECORD_OVERHEAD_MAX;
    ie_bus_server *server = bus_start_default();
    unsigned char *message = calloc(1, IE__LENGTH_BYTES + max);
    const int      fd = raw_open(server);

    ck_assert_ptr_nonnull(message);
    ie__frame_prefix(message, (ie__frame_type)0x90, 0, max - IE__HEADER_BYTES); /* skipped */
    raw_send(fd, message, IE__LENGTH_BYTES + max);
    raw_publish(fd, 1, 0, "t", 1);
    (void)raw_expect(fd, IE__PUBACK);
    ie__put64(message, max + 1);
    raw_send(fd, message, IE__LENGTH_BYTES); /* the length alone is enough */
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_TOO_BIG);
    raw_expect_end(fd);
    (void)close(fd);
    free(message);
    check_alive(server);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_hello_at_the_limit_passes_and_one_past_it_does_not)
{
    ie_bus_server *server = bus_start_default();

    for (size_t extra = 0; extra < 2; extra++) {
        unsigned char greeting[IE__GREETING_BYTES];
        unsigned char body[IE__HELLO_MESSAGE_MAX] = {0x80}; /* one field that is skipped */
        const size_t  size = IE__HELLO_MESSAGE_MAX - IE__HEADER_BYTES + extra;
        const int     fd = raw_connect(server);

        ie__put16(body + 1, (unsigned)(size - 3));
        ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
        raw_send(fd, greeting, sizeof greeting);
        raw_frame(fd, IE__HELLO, 0, body, size);
        ck_assert(raw_receive(fd, greeting, sizeof greeting));
        if (extra == 0)
            (void)raw_expect(fd, IE__WELCOME);
        else
            raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_TOO_BIG);
        (void)close(fd);
    }
    ie_bus_server_close(server);
}
END_TEST

START_TEST(connections_beyond_the_limit_are_told_so)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    unsigned char         greeting[IE__GREETING_BYTES];
    int                   fds[4];

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    if (_i == 0)
        options.connections_max = 3;
    else
        options.connections_per_address_max = 3;
    server = bus_start(&options);
    for (int i = 0; i < 3; i++)
        fds[i] = raw_open(server);
    fds[3] = raw_connect(server);
    ck_assert(raw_receive(fds[3], greeting, sizeof greeting));
    raw_expect_reason(fds[3], IE__ERROR, 0, IE_BUS_CODE_LIMIT);
    raw_expect_end(fds[3]);
    (void)close(fds[3]);
    (void)close(fds[0]);
    /* the place is free again, as soon as the server has noticed */
    for (int64_t deadline = ie__mono_ns() + INT64_C(1000000) * WAIT_MS;;) {
        const int fd = raw_connect(server);
        bool      is_served;

        ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
        raw_send(fd, greeting, sizeof greeting);
        raw_frame(fd, IE__HELLO, 0, NULL, 0);
        is_served = raw_receive(fd, greeting, sizeof greeting);
        if (is_served) {
            static unsigned char message[IE__MESSAGE_MAX];

            is_served = raw_message(fd, message) != 0 && message[3] == IE__WELCOME;
        }
        (void)close(fd);
        if (is_served)
            break;
        ck_assert_msg(ie__mono_ns() < deadline, "the place stays taken");
    }
    ck_assert_uint_ge(bus_stats(server).refused, 1);
    for (int i = 1; i < 3; i++)
        (void)close(fds[i]);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(subscriptions_beyond_the_limit_are_refused)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   fd;
    int                   other;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.subscriptions_per_client_max = 2;
    options.subscriptions_max = 3;
    server = bus_start(&options);
    fd = raw_open(server);
    other = raw_open(server);
    for (uint32_t i = 1; i <= 2; i++) {
        raw_subscribe(fd, i, "a", NULL, 0, 0);
        (void)raw_expect(fd, IE__SUBSCRIBED);
    }
    raw_subscribe(fd, 3, "a", NULL, 0, 0);
    raw_expect_reason(fd, IE__SUBREFUSED, 3, IE_BUS_CODE_LIMIT);
    raw_subscribe(other, 1, "a", "g", 0, 0);
    (void)raw_expect(other, IE__SUBSCRIBED);
    raw_subscribe(other, 2, "a", NULL, 0, 0);
    raw_expect_reason(other, IE__SUBREFUSED, 2, IE_BUS_CODE_LIMIT);
    raw_frame(fd, IE__UNSUBSCRIBE, 1, NULL, 0); /* makes room */
    (void)raw_expect(fd, IE__UNSUBSCRIBED);
    raw_subscribe(other, 2, "a", NULL, 0, 0);
    (void)raw_expect(other, IE__SUBSCRIBED);
    raw_goodbye(fd);
    raw_goodbye(other);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_group_queues_up_to_its_limit_and_then_refuses)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   worker;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    if (_i == 0)
        options.group_events_max = 3;
    else
        options.group_bytes_max = 3 * 103; /* of records of 103 bytes */
    server = bus_start(&options);
    worker = raw_open(server);
    fd = raw_open(server);
    raw_subscribe(worker, 1, "t", "g", 0, 1);
    (void)raw_expect(worker, IE__SUBSCRIBED);
    for (uint32_t i = 1; i <= 5; i++) /* one delivered, three queued, one too many */
        raw_publish(fd, i, 0, "t", 100);
    (void)raw_expect(worker, IE__DELIVER_ACK);
    raw_expect_reason(fd, IE__PUBNACK, 5, IE_BUS_CODE_BUSY);
    for (uint32_t i = 1; i <= 4; i++) {
        unsigned char range[8];
        ie__frame     frame;

        ie__put32(range, i);
        ie__put32(range + 4, 1);
        raw_frame(worker, IE__ACK, 0, range, sizeof range);
        frame = raw_expect(fd, IE__PUBACK);
        ck_assert_uint_eq(ie__get32(frame.body), i);
        if (i < 4)
            (void)raw_expect(worker, IE__DELIVER_ACK);
    }
    raw_goodbye(fd);
    raw_goodbye(worker);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(publishes_in_flight_are_limited)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   worker;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.publishes_in_flight_max = 2;
    server = bus_start(&options);
    worker = raw_open(server);
    fd = raw_open(server);
    raw_subscribe(worker, 1, "t", NULL, IE_BUS_SUBSCRIBE_ACK, 100);
    (void)raw_expect(worker, IE__SUBSCRIBED);
    for (uint32_t i = 1; i <= 3; i++)
        raw_publish(fd, i, 0, "t", 1);
    raw_expect_reason(fd, IE__PUBNACK, 3, IE_BUS_CODE_LIMIT);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\1\0\0\0\2", 8);
    (void)raw_expect(fd, IE__PUBACK);
    raw_publish(fd, 4, 0, "t", 1);
    for (int i = 0; i < 3; i++)
        (void)raw_expect(worker, IE__DELIVER_ACK);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\3\0\0\0\1", 8);
    (void)raw_expect(fd, IE__PUBACK);
    raw_goodbye(fd);
    (void)close(worker);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(an_ack_counts_once_and_only_for_what_is_out)
{
    ie_bus_server *server = bus_start_default();
    const int      worker = raw_open(server);
    const int      fd = raw_open(server);

    raw_subscribe(worker, 1, "t", "g", 0, 10);
    (void)raw_expect(worker, IE__SUBSCRIBED);
    raw_publish(fd, 1, 0, "t", 1);
    raw_publish(fd, 2, 0, "t", 1);
    (void)raw_expect(worker, IE__DELIVER_ACK);
    (void)raw_expect(worker, IE__DELIVER_ACK);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\7\xff\xff\xff\xff", 8); /* never given out */
    raw_frame(worker, IE__NACK, 99, body_text("x", 7), 3);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\2\0\0\0\1", 8);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\2\0\0\0\1", 8);
    ck_assert_uint_eq(ie__get32(raw_expect(fd, IE__PUBACK).body), 2);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\1\0\0\0\2", 8);
    ck_assert_uint_eq(ie__get32(raw_expect(fd, IE__PUBACK).body), 1);
    raw_publish(fd, 3, 0, "t", 1);
    raw_publish(fd, 4, 0, "t", 1);
    (void)raw_expect(worker, IE__DELIVER_ACK);
    (void)raw_expect(worker, IE__DELIVER_ACK);
    raw_frame(worker, IE__ACK, 0, "\0\0\0\4\0\0\0\1\0\0\0\3\0\0\0\1", 16); /* descending */
    raw_expect_reason(worker, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
    ck_assert_uint_eq(ie__get32(raw_expect(fd, IE__PUBACK).body), 4);
    raw_expect_reason(fd, IE__PUBNACK, 3, IE_BUS_CODE_SUBSCRIBER_GONE);
    (void)close(worker);
    raw_goodbye(fd);
    ie_bus_server_close(server);
}
END_TEST

/* ---- silence -------------------------------------------------------------------------------- */

START_TEST(who_says_no_hello_is_closed_in_time)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    unsigned char         greeting[IE__GREETING_BYTES];
    int                   silent;
    int                   slow;
    int                   greeted;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.hello_timeout_ms = 200;
    server = bus_start(&options);
    silent = raw_connect(server);
    slow = raw_connect(server);
    greeted = raw_connect(server);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    raw_send(slow, greeting, 3);
    raw_send(greeted, greeting, sizeof greeting);
    ck_assert(raw_receive(greeted, greeting, sizeof greeting));
    raw_expect_reason(greeted, IE__ERROR, 0, IE_BUS_CODE_TIMEOUT);
    raw_expect_end(greeted);
    raw_expect_end(silent);
    raw_expect_end(slow);
    (void)close(silent);
    (void)close(slow);
    (void)close(greeted);
    ck_assert_uint_eq(bus_stats(server).timed_out, 3);
    check_alive(server);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_frame_that_does_not_end_is_closed_in_time)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.frame_timeout_ms = 200;
    server = bus_start(&options);
    fd = raw_open(server);
    for (int i = 0; i < 1000; i++) { /* byte after byte; the frame's clock runs all the same */
        struct pollfd poller = {.fd = fd, .events = POLLIN};

        raw_send(fd, "\0", 1);
        if (i == 6)
            raw_send(fd, "\x40", 1); /* a length of 64 */
        if (poll(&poller, 1, 20) == 1)
            break;
    }
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_TIMEOUT);
    raw_expect_end(fd);
    (void)close(fd);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_peer_that_answers_no_ping_is_closed_and_one_that_does_stays)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   dead;
    int                   alive;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.ping_interval_ms = 100;
    options.ping_missed_max = 2;
    server = bus_start(&options);
    dead = raw_open(server);
    alive = raw_open(server);
    for (int i = 0; i < 6; i++) {
        const ie__frame ping = raw_expect(alive, IE__PING);

        raw_frame(alive, IE__PONG, ping.number, NULL, 0);
    }
    (void)raw_expect(dead, IE__PING);
    (void)raw_expect(dead, IE__PING);
    raw_expect_reason(dead, IE__ERROR, 0, IE_BUS_CODE_TIMEOUT);
    raw_expect_end(dead);
    raw_goodbye(alive);
    (void)close(dead);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_member_that_answers_nothing_loses_its_deliveries)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   stuck;
    int                   fd;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.ack_timeout_ms = 200;
    server = bus_start(&options);
    stuck = raw_open(server);
    fd = raw_open(server);
    raw_subscribe(stuck, 1, "t", "g", 0, 10);
    (void)raw_expect(stuck, IE__SUBSCRIBED);
    raw_publish(fd, 1, 0, "t", 1);
    (void)raw_expect(stuck, IE__DELIVER_ACK);
    raw_expect_reason(fd, IE__PUBNACK, 1, IE_BUS_CODE_ACK_TIMEOUT);
    raw_expect_reason(stuck, IE__ERROR, 0, IE_BUS_CODE_ACK_TIMEOUT);
    (void)close(stuck);
    raw_goodbye(fd);
    ie_bus_server_close(server);
}
END_TEST

/* ---- starting and stopping ------------------------------------------------------------------ */

START_TEST(addresses_that_cannot_be_served_are_refused_in_words)
{
    static const struct {
        const char *url;
        ie_status   status;
        const char *words;
    } CASES[] = {
        {"socket://0.0.0.0:0", IE_EDENIED, "TLS"},
        {"socket://192.0.2.1:0", IE_EDENIED, "loopback"},
        {"socket://[::]:0", IE_EDENIED, "loopback"},
        {"socket://example.org:0", IE_EINVAL, "IP address"},
        {"tcp://127.0.0.1:0", IE_EINVAL, "socket://"},
        {"socket://127.0.0.1:99999", IE_EINVAL, "port"},
        {"socket://127.0.0.1:0?x=1", IE_EINVAL, ""},
        {"unix:relative", IE_EINVAL, ""},
        {"", IE_EINVAL, ""},
    };

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ie_bus_server_options options;
        ie_bus_server        *server = NULL;
        ie_error              err = IE_ERROR_INIT;

        IE_BUS_SERVER_OPTIONS_INIT(&options);
        options.listen = &CASES[i].url;
        options.listen_count = 1;
        ck_assert_msg(ie_bus_server_start(&server, &options, &err) == CASES[i].status, "%s: %s",
                      CASES[i].url, err.message);
        ck_assert_msg(strstr(err.message, CASES[i].words) != NULL, "%s", err.message);
        ck_assert_ptr_null(server);
    }
}
END_TEST

START_TEST(options_that_cannot_be_served_are_refused)
{
    ie_bus_server_options options;
    ie_bus_server        *server = NULL;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_bytes_max = IE_DATA_BYTES_MAX + 1;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "data_bytes_max"));
    options.data_bytes_max = 0;
    options.size = 8;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_EINVAL);
}
END_TEST

START_TEST(an_address_in_use_is_said_so_and_a_stale_socket_file_is_replaced)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    ie_bus_server        *second = NULL;
    ie_error              err = IE_ERROR_INIT;
    const char           *urls[2];
    char                  url[600];
    FILE                 *file;

    (void)test_dir_make();
    (void)snprintf(url, sizeof url, "unix:%s", test_path("bus.sock"));
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    urls[0] = url;
    urls[1] = "socket://localhost:0";
    options.listen = urls;
    options.listen_count = 2;
    server = bus_start(&options);
    ck_assert_uint_eq(ie_bus_server_address_count(server), 2);
    ck_assert_str_eq(ie_bus_server_address(server, 0), url);
    ck_assert_ptr_null(ie_bus_server_address(server, 2));
    check_alive(server);
    ck_assert_int_eq(ie_bus_server_start(&second, &options, &err), IE_EEXIST);
    check_alive(server);
    options.listen_count = 1;
    urls[0] = ie_bus_server_address(server, 1);
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&second, &options, &err), IE_EEXIST);
    urls[0] = url;
    ie_bus_server_close(server);

    /* what a crash leaves: a socket file without a listener */
    {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        const int          fd = socket(AF_UNIX, SOCK_STREAM, 0);

        (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", test_path("bus.sock"));
        ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
        (void)close(fd);
    }
    server = bus_start(&options);
    check_alive(server);
    ie_bus_server_close(server);

    file = fopen(test_path("bus.sock"), "w"); /* somebody's file is not ours to remove */
    ck_assert_ptr_nonnull(file);
    (void)fclose(file);
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&second, &options, &err), IE_EEXIST);
    ck_assert_int_eq(access(test_path("bus.sock"), F_OK), 0);
    test_dir_remove();
}
END_TEST

START_TEST(a_stop_says_goodbye_and_waits_for_answers)
{
    ie_bus_server *server = bus_start_default();
    const int      stays = raw_open(server);

    ck_assert_int_eq(ie_bus_server_stop(server, 100), IE_ETIMEDOUT);
    raw_expect_reason(stays, IE__GOODBYE, 0, IE_BUS_CODE_SHUTTING_DOWN);
    raw_expect_reason(stays, IE__ERROR, 0, IE_BUS_CODE_SHUTTING_DOWN);
    raw_expect_end(stays);
    (void)close(stays);
    ck_assert_int_eq(ie_bus_server_stop(server, 100), IE_OK);
    ie_bus_server_close(server);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus protocol");
    TCase   *tcase = tcase_create("protocol");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 100);
    tcase_add_test(tcase, the_sessions_of_the_document_are_what_the_server_does);
    tcase_add_test(tcase, strangers_are_turned_away);
    tcase_add_loop_test(tcase, a_broken_rule_ends_the_connection_and_nothing_else, 0,
                        (int)(sizeof BREACHES / sizeof *BREACHES));
    tcase_add_test(tcase, before_the_hello_only_a_hello_is_taken);
    tcase_add_test(tcase, random_bytes_and_mutations_in_each_state_leave_the_server_alive);
    tcase_add_test(tcase, an_end_at_every_byte_leaves_nothing_behind);
    tcase_add_test(tcase, a_payload_at_the_limit_passes_and_one_past_it_does_not);
    tcase_add_test(tcase, a_message_at_the_limit_passes_and_one_past_it_ends_the_connection);
    tcase_add_test(tcase, a_hello_at_the_limit_passes_and_one_past_it_does_not);
    tcase_add_loop_test(tcase, connections_beyond_the_limit_are_told_so, 0, 2);
    tcase_add_test(tcase, subscriptions_beyond_the_limit_are_refused);
    tcase_add_loop_test(tcase, a_group_queues_up_to_its_limit_and_then_refuses, 0, 2);
    tcase_add_test(tcase, publishes_in_flight_are_limited);
    tcase_add_test(tcase, an_ack_counts_once_and_only_for_what_is_out);
    tcase_add_test(tcase, who_says_no_hello_is_closed_in_time);
    tcase_add_test(tcase, a_frame_that_does_not_end_is_closed_in_time);
    tcase_add_test(tcase, a_peer_that_answers_no_ping_is_closed_and_one_that_does_stays);
    tcase_add_test(tcase, a_member_that_answers_nothing_loses_its_deliveries);
    tcase_add_test(tcase, addresses_that_cannot_be_served_are_refused_in_words);
    tcase_add_test(tcase, options_that_cannot_be_served_are_refused);
    tcase_add_test(tcase, an_address_in_use_is_said_so_and_a_stale_socket_file_is_replaced);
    tcase_add_test(tcase, a_stop_says_goodbye_and_waits_for_answers);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
