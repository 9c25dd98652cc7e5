/* WebSocket: the upgrade and its refusals, fragments, control frames, what breaks the rules. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eb1_peer.h"
#include "websocket.h"

static ie_bus_server *server;

static void
set_up(void)
{
    server = eb1_bus_start(NULL, EB1_WS);
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
}

/* ---- the upgrade ---- */

#define HEAD      "Host: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
#define KEY       "Sec-WebSocket-Key: " WS_KEY "\r\n"
#define VERSION   "Sec-WebSocket-Version: 13\r\n"
#define PROTOCOL  "Sec-WebSocket-Protocol: chat, ebus.sp.nanomsg.org\r\n"
#define GET(path) "GET " path " HTTP/1.1\r\n"

static const struct {
    const char *request;
    int         status;
} REQUESTS[] = {
    {GET("/") HEAD KEY VERSION PROTOCOL "\r\n", 101},
    {GET("/?x=1") HEAD KEY VERSION PROTOCOL "\r\n", 101},
    {GET("/") HEAD KEY VERSION PROTOCOL "Origin: http://localhost\r\n\r\n", 101},
    {GET("/") "host:localhost\r\nUPGRADE:WebSocket\r\nconnection:upgrade\r\n"
              "sec-websocket-key:" WS_KEY "\r\nSEC-WEBSOCKET-VERSION: 13 \r\n"
              "sec-websocket-protocol:ebus.sp.nanomsg.org\r\n\r\n",
     101},
    {GET("/") HEAD KEY VERSION "\r\n", 400},
    {GET("/") HEAD KEY VERSION "Sec-WebSocket-Protocol: chat\r\n\r\n", 400},
    {GET("/") HEAD VERSION PROTOCOL "\r\n", 400},
    {GET("/") HEAD "Sec-WebSocket-Key: dGhl\r\n" VERSION PROTOCOL "\r\n", 400},
    {GET("/") HEAD "Sec-WebSocket-Key: dGhl!HNhbXBsZSBub25jZQ==\r\n" VERSION PROTOCOL "\r\n", 400},
    {GET("/") "Upgrade: websocket\r\n" KEY VERSION PROTOCOL "\r\n", 400},
    {GET("/bus") HEAD KEY VERSION PROTOCOL "\r\n", 404},
    {GET("/") "Host: localhost\r\n\r\n", 426},
    {GET("/") HEAD KEY "Sec-WebSocket-Version: 8\r\n" PROTOCOL "\r\n", 426},
    {GET("/") HEAD KEY VERSION PROTOCOL "Origin: http://evil.example\r\n\r\n", 403},
    {GET("/") HEAD KEY VERSION PROTOCOL "Origin: null\r\n\r\n", 403},
    {"GET / HTTP/1.0\r\n" HEAD KEY VERSION PROTOCOL "\r\n", 400},
    {GET("/") HEAD KEY VERSION PROTOCOL "no colon\r\n\r\n", 400},
    {GET("/") HEAD KEY VERSION PROTOCOL " folded: line\r\n\r\n", 400},
};

START_TEST(requests_are_upgraded_or_refused_with_one_line)
{
    const int fd = raw_connect(server);
    char      answer[1024];
    char      start[32];
    char      line[256];
    size_t    length;

    (void)snprintf(start, sizeof start, "HTTP/1.1 %d ", REQUESTS[_i].status);
    http_exchange(fd, REQUESTS[_i].request, answer, sizeof answer);
    ck_assert_msg(strncmp(answer, start, strlen(start)) == 0, "wanted %s got %s", start, answer);
    if (REQUESTS[_i].status == 101) {
        ck_assert_ptr_nonnull(strstr(answer, "Sec-WebSocket-Accept: " WS_ACCEPT "\r\n"));
        wait_stat_of(server, eb1_connections, 1);
    } else {
        ck_assert_ptr_nonnull(strstr(answer, "Connection: close\r\n"));
        ck_assert_int_eq(sscanf(strstr(answer, "Content-Length: "), "Content-Length: %zu", &length),
                         1);
        ck_assert_uint_lt(length, sizeof line);
        ck_assert(raw_receive(fd, line, length));
        ck_assert_int_eq(line[length - 1], '\n');
        raw_expect_end(fd);
        wait_stat_of(server, protocol_errors, 1);
    }
    (void)close(fd);
    wait_stat_of(server, connections, 0);
}
END_TEST

START_TEST(a_request_may_come_byte_by_byte_and_with_frames_behind_it)
{
    const int     fd = raw_connect(server);
    unsigned char payload[64];
    char          answer[1024];
    size_t        size;

    for (size_t i = 0; i < strlen(WS_REQUEST) - 1; i++)
        raw_send(fd, &WS_REQUEST[i], 1);
    { /* its last byte and a ping in one piece */
        static const unsigned char LAST[] = {'\n', 0x89, 0x82, 0, 0, 0, 0, 'h', 'i'};

        raw_send(fd, LAST, sizeof LAST);
    }
    http_exchange(fd, "", answer, sizeof answer);
    ck_assert_uint_eq(ws_receive(fd, payload, &size), 0x82);
    ck_assert_uint_eq(ws_receive(fd, payload, &size), 0x8a);
    ck_assert_uint_eq(size, 2);
    ck_assert_mem_eq(payload, "hi", 2);
    (void)close(fd);
}
END_TEST

/* A request of exactly so many bytes. */
static void
long_request(char *out, size_t size)
{
    const int head = snprintf(out, size + 1, "%s", GET("/") HEAD KEY VERSION PROTOCOL "X-Long: ");

    memset(out + head, 'x', size - (size_t)head);
    memcpy(out + size - 4, "\r\n\r\n", 5);
}

START_TEST(a_request_has_a_limit)
{
    char request[IE__HTTP_BYTES_MAX + 2];
    char answer[1024];
    int  fd = raw_connect(server);

    long_request(request, IE__HTTP_BYTES_MAX);
    http_exchange(fd, request, answer, sizeof answer);
    ck_assert_msg(strncmp(answer, "HTTP/1.1 101 ", 13) == 0, "%s", answer);
    (void)close(fd);
    fd = raw_connect(server);
    long_request(request, IE__HTTP_BYTES_MAX + 1);
    http_exchange(fd, request, answer, sizeof answer);
    ck_assert_msg(strncmp(answer, "HTTP/1.1 431 ", 13) == 0, "%s", answer);
    (void)close(fd);
}
END_TEST

START_TEST(a_request_that_does_not_end_is_closed_in_time)
{
    ie_bus_server_options options;
    int                   fd;

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.hello_timeout_ms = 100;
    server = eb1_bus_start(&options, EB1_WS);
    fd = raw_connect(server);
    raw_send(fd, "GET / HTTP/1.1\r\nHost: x", 23);
    raw_expect_end(fd);
    (void)close(fd);
    wait_stat_of(server, timed_out, 1);
    wait_stat_of(server, connections, 0);
}
END_TEST

/* ---- frames ---- */

START_TEST(fragments_make_one_message_and_pings_may_come_between)
{
    eb1_peer      peer = eb1_open(server, EB1_WS);
    unsigned char payload[64];
    unsigned char beat[16] = "\x65\x62\x13\x20\0\0\0\1\xe5\x62\x75\x73mind";
    size_t        size;

    ws_frame(peer.fd, 0x02, true, beat, 5);
    ws_frame(peer.fd, 0x89, true, "are you there", 13);
    ws_frame(peer.fd, 0x00, true, "", 0);
    ws_frame(peer.fd, 0x8a, true, "unasked", 7); /* a pong that nobody waits for */
    ws_frame(peer.fd, 0x00, true, beat + 5, 6);
    ws_frame(peer.fd, 0x80, true, beat + 11, 5);
    ck_assert_uint_eq(ws_receive(peer.fd, payload, &size), 0x8a);
    ck_assert_uint_eq(size, 13);
    ck_assert_mem_eq(payload, "are you there", 13);
    eb1_expect(&peer, "65621320 e5627573 %08x 'mind'", peer.id);
    ws_frame(peer.fd, 0x81, true, beat, sizeof beat); /* text is taken as it is */
    eb1_expect(&peer, "65621320 e5627573 %08x 'mind'", peer.id);
    ws_frame(peer.fd, 0x82, true, "", 0); /* a message of nothing is ignored and counted */
    eb1_expect_nothing(&peer);
    wait_stat_of(server, eb1_dropped, 1);
    eb1_close(&peer);
}
END_TEST

static const struct {
    const char *what;
    const char *frame;
    size_t      size;
    unsigned    code;
} BREACHES[] = {
    {"not masked", "\x82\x02hi", 4, 1002},
    {"reserved bit", "\xc2\x80\0\0\0\0", 6, 1002},
    {"unknown data type", "\x83\x80\0\0\0\0", 6, 1002},
    {"unknown control type", "\x8b\x80\0\0\0\0", 6, 1002},
    {"a ping in fragments", "\x09\x80\0\0\0\0", 6, 1002},
    {"a ping of 126 bytes", "\x89\xfe\x00\x7e\0\0\0\0", 8, 1002},
    {"a fragment without beginning", "\x80\x80\0\0\0\0", 6, 1002},
    {"a message inside a message", "\x02\x81\0\0\0\0x\x82\x80\0\0\0\0", 13, 1002},
    {"a long form of a short length", "\x82\xfe\x00\x01\0\0\0\0x", 9, 1002},
    {"a longer form of a length", "\x82\xff\0\0\0\0\0\0\x01\x00\0\0\0\0", 14, 1002},
    {"a close frame of one byte", "\x88\x81\0\0\0\0x", 7, 1002},
    {"a close code that nobody may send", "\x88\x82\0\0\0\0\x03\xed", 8, 1002},
    {"a message beyond the limit", "\x82\xff\0\0\0\0\0\x10\0\x01\0\0\0\0", 14, 1009},
    {"fragments beyond the limit", "\x02\x81\0\0\0\0x\x80\xff\0\0\0\0\0\x10\0\0\0\0\0\0", 21, 1009},
};

START_TEST(a_broken_rule_is_named_in_the_close_frame)
{
    eb1_peer      peer = eb1_open(server, EB1_WS);
    eb1_peer      other = eb1_open(server, EB1_WS);
    unsigned char payload[128];
    size_t        size;

    raw_send(peer.fd, BREACHES[_i].frame, BREACHES[_i].size);
    ck_assert_msg(ws_receive(peer.fd, payload, &size) == 0x88, "%s", BREACHES[_i].what);
    ck_assert_uint_eq(size, 2);
    ck_assert_uint_eq(ie__get16(payload), BREACHES[_i].code);
    raw_expect_end(peer.fd);
    eb1_close(&peer);
    wait_stat_of(server, protocol_errors, 1);
    eb1_expect_nothing(&other);
    eb1_close(&other);
}
END_TEST

START_TEST(a_close_is_answered_with_its_code)
{
    static const struct {
        const char *payload;
        size_t      size;
    } CLOSES[] = {{"", 0},
                  {"\x03\xe8", 2},
                  {"\x03\xe8"
                   "bye",
                   5},
                  {"\x0f\xa0", 2}};
    unsigned char payload[128];
    size_t        size;

    for (size_t i = 0; i < sizeof CLOSES / sizeof *CLOSES; i++) {
        eb1_peer peer = eb1_open(server, EB1_WS);

        ws_frame(peer.fd, 0x88, true, CLOSES[i].payload, CLOSES[i].size);
        ck_assert_uint_eq(ws_receive(peer.fd, payload, &size), 0x88);
        ck_assert_uint_eq(size, CLOSES[i].size < 2 ? 0 : 2);
        ck_assert_mem_eq(payload, CLOSES[i].payload, size);
        raw_expect_end(peer.fd);
        eb1_close(&peer);
    }
    wait_stat_of(server, connections, 0);
    wait_stat_of(server, protocol_errors, 0);
}
END_TEST

START_TEST(a_stopping_bus_says_going_away)
{
    eb1_peer      peer = eb1_open(server, EB1_WS);
    unsigned char payload[128];
    size_t        size;

    (void)ie_bus_server_stop(server, 50);
    ck_assert_uint_eq(ws_receive(peer.fd, payload, &size), 0x88);
    ck_assert_uint_eq(ie__get16(payload), 1001);
    raw_expect_end(peer.fd);
    eb1_close(&peer);
}
END_TEST

/* ---- the client's half of the handshake, without a socket ---- */

START_TEST(an_answer_is_checked)
{
    static const struct {
        const char *answer;
        const char *complaint; /* NULL: good */
    } ANSWERS[] = {
        {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         "Sec-WebSocket-Accept: " WS_ACCEPT "\r\n"
         "Sec-WebSocket-Protocol: ebus.sp.nanomsg.org\r\n\r\n",
         NULL},
        {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         "Sec-WebSocket-Accept: x" WS_ACCEPT "\r\n"
         "Sec-WebSocket-Protocol: ebus.sp.nanomsg.org\r\n\r\n",
         "not that of an event bus"},
        {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         "Sec-WebSocket-Accept: " WS_ACCEPT "\r\n\r\n",
         "not that of an event bus"},
        {"HTTP/1.1 403 For\x1b[2Jbidden\r\n\r\n", "HTTP/1.1 403 For?[2Jbidden"},
        {"SSH-2.0-hello\r\n\r\n", "not HTTP/1.1"},
        {"HTTP/1.1 101\r\n\r\n", "not that of an event bus"},
    };

    for (size_t i = 0; i < sizeof ANSWERS / sizeof *ANSWERS; i++) {
        const char *answer = ANSWERS[i].answer;
        ie_error    err = IE_ERROR_INIT;
        ie_status   status =
            ie__ws_answer_check((const unsigned char *)answer, strlen(answer), WS_KEY, &err);

        if (ANSWERS[i].complaint == NULL) {
            ck_assert_int_eq(status, IE_OK);
        } else {
            ck_assert_int_eq(status, IE_EREFUSED);
            ck_assert_msg(strstr(err.message, ANSWERS[i].complaint) != NULL, "%s", err.message);
        }
    }
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("eb1 web");
    TCase   *tc = tcase_create("web");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, requests_are_upgraded_or_refused_with_one_line, 0,
                        (int)(sizeof REQUESTS / sizeof *REQUESTS));
    tcase_add_test(tc, a_request_may_come_byte_by_byte_and_with_frames_behind_it);
    tcase_add_test(tc, a_request_has_a_limit);
    tcase_add_test(tc, a_request_that_does_not_end_is_closed_in_time);
    tcase_add_test(tc, fragments_make_one_message_and_pings_may_come_between);
    tcase_add_loop_test(tc, a_broken_rule_is_named_in_the_close_frame, 0,
                        (int)(sizeof BREACHES / sizeof *BREACHES));
    tcase_add_test(tc, a_close_is_answered_with_its_code);
    tcase_add_test(tc, a_stopping_bus_says_going_away);
    tcase_add_test(tc, an_answer_is_checked);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
