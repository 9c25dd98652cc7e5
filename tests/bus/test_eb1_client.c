/* The client of eb/1: against our bus, and against one that is scripted, hostile or absent. */
#include <check.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "eb1_peer.h"

/* ---- a client that notes what it hears ---- */

typedef struct ear {
    atomic_ulong heard;
    atomic_ulong bytes;
    atomic_uint  source; /* of the last */
    atomic_ulong connected;
    atomic_ulong refused;
    atomic_ulong lost;
    char         text[64]; /* the last; read after waiting for heard */
} ear;

static void
on_data(void *user, uint32_t source, const void *data, size_t bytes)
{
    ear *e = user;

    (void)snprintf(e->text, sizeof e->text, "%.*s", (int)(bytes < 63 ? bytes : 63),
                   (const char *)data);
    atomic_store(&e->source, source);
    (void)atomic_fetch_add(&e->bytes, bytes);
    (void)atomic_fetch_add(&e->heard, 1);
}

static void
on_status(void *user, const ie_bus_client_status *status)
{
    ear *e = user;

    (void)atomic_fetch_add(&e->connected, status->state == IE_BUS_CONNECTED);
    (void)atomic_fetch_add(&e->refused, status->state == IE_BUS_REFUSED);
    (void)atomic_fetch_add(&e->lost, status->state == IE_BUS_RECONNECTING);
}

static ie_eb1_client *
client_make(const char *url, const char *event, ear *e, ie_eb1_client_options *given)
{
    ie_eb1_client_options options;
    ie_eb1_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;

    if (given == NULL) {
        given = &options;
        IE_EB1_CLIENT_OPTIONS_INIT(given);
    }
    given->url = url;
    given->event = event;
    given->user = e;
    given->on_data = on_data;
    given->on_status = on_status;
    given->reconnect_delay_ms = 5;
    given->reconnect_delay_ms_max = 20;
    ck_assert_msg(ie_eb1_client_open(&client, given, &err) == IE_OK, "%s", err.message);
    return client;
}

static ie_eb1_client *
client_join(const char *url, const char *event, ear *e)
{
    ie_eb1_client *client = client_make(url, event, e, NULL);
    ie_error       err = IE_ERROR_INIT;

    ck_assert_msg(ie_eb1_client_wait_connected(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
    ck_assert_uint_ne(ie_eb1_client_id(client), 0);
    return client;
}

static const char *
url_of(const ie_bus_server *server, eb1_transport transport)
{
    static char url[256];
    const char *address = ie_bus_server_address(server, 0);

    (void)snprintf(url, sizeof url, "%s%s", transport == EB1_WS ? "ws" : "",
                   transport == EB1_WS ? strchr(address, ':') : address);
    return url;
}

static void
set_up(void)
{
    (void)test_dir_make();
}

static void
tear_down(void)
{
    test_dir_remove();
}

/* ---- against our bus ---- */

START_TEST(clients_reach_each_other_in_every_mode)
{
    const eb1_transport transport = (eb1_transport)_i;
    ie_bus_server      *server = eb1_bus_start(NULL, transport);
    const char         *url = url_of(server, transport);
    ear                 worker = {0};
    ear                 asker = {0};
    ie_eb1_client      *to;
    ie_eb1_client      *from;

    to = client_join(url, "sess", &worker);
    from = client_join(url, NULL, &asker);
    wait_stat_of(server, subscriptions, 1);
    for (unsigned mode = IE_EB1_RANDOM; mode <= IE_EB1_ROUND_ROBIN; mode++)
        ck_assert_int_eq(
            ie_eb1_client_send_event(from, "sess", (ie_eb1_mode)mode, 7, "job", 3, NULL), IE_OK);
    ck_assert(wait_for(&worker.heard, 3));
    ck_assert_str_eq(worker.text, "job");
    ck_assert_uint_eq(atomic_load(&worker.source), ie_eb1_client_id(from));
    ck_assert_int_eq(ie_eb1_client_send(to, atomic_load(&worker.source), "done", 4, NULL), IE_OK);
    ck_assert(wait_for(&asker.heard, 1));
    ck_assert_str_eq(asker.text, "done");
    ck_assert_int_eq(ie_eb1_client_broadcast(from, "all", 3, NULL), IE_OK);
    ck_assert(wait_for(&worker.heard, 4));
    ck_assert_str_eq(worker.text, "all");
    ck_assert_uint_eq(atomic_load(&asker.heard), 1);
    ie_eb1_client_close(from);
    ie_eb1_client_close(to);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(what_was_sent_before_a_close_arrives)
{
    enum { COUNT = 20000 };
    const eb1_transport transport = (eb1_transport)_i;
    ie_bus_server      *server = eb1_bus_start(NULL, transport);
    const char         *url = url_of(server, transport);
    ear                 worker = {0};
    ear                 asker = {0};
    ie_eb1_client      *to = client_join(url, "sess", &worker);
    ie_eb1_client      *from = client_make(url, NULL, &asker, NULL); /* not connected yet */
    char                data[100] = "x";

    wait_stat_of(server, subscriptions, 1);
    for (int i = 0; i < COUNT; i++)
        ck_assert_int_eq(
            ie_eb1_client_send_event(from, "sess", IE_EB1_ROUND_ROBIN, 0, data, sizeof data, NULL),
            IE_OK);
    ie_eb1_client_close(from);
    ck_assert(wait_for(&worker.heard, COUNT));
    ck_assert_uint_eq(atomic_load(&worker.bytes), COUNT * sizeof data);
    ie_eb1_client_close(to);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(the_largest_message_passes_and_a_larger_one_is_refused)
{
    const eb1_transport transport = (eb1_transport)_i;
    ie_bus_server      *server = eb1_bus_start(NULL, transport);
    const char         *url = url_of(server, transport);
    char               *data = calloc(1, IE_EB1_MESSAGE_BYTES_MAX);
    ear                 worker = {0};
    ear                 asker = {0};
    ie_eb1_client      *to = client_join(url, "sess", &worker);
    ie_eb1_client      *from = client_join(url, NULL, &asker);

    ck_assert_ptr_nonnull(data);
    wait_stat_of(server, subscriptions, 1);
    ck_assert_int_eq(
        ie_eb1_client_send(from, ie_eb1_client_id(to), data, IE_EB1_MESSAGE_BYTES_MAX - 12, NULL),
        IE_OK);
    ck_assert_int_eq(ie_eb1_client_send_event(from, "sess", IE_EB1_HASH, 1, data,
                                              IE_EB1_MESSAGE_BYTES_MAX - 20, NULL),
                     IE_OK);
    ck_assert_int_eq(
        ie_eb1_client_send(from, ie_eb1_client_id(to), data, IE_EB1_MESSAGE_BYTES_MAX - 11, NULL),
        IE_ETOOBIG);
    ck_assert_int_eq(ie_eb1_client_send_event(from, "sess", IE_EB1_HASH, 1, data,
                                              IE_EB1_MESSAGE_BYTES_MAX - 19, NULL),
                     IE_ETOOBIG);
    ck_assert(wait_for(&worker.heard, 2));
    ck_assert_uint_eq(atomic_load(&worker.bytes), 2 * IE_EB1_MESSAGE_BYTES_MAX - 32);
    ie_eb1_client_close(from);
    ie_eb1_client_close(to);
    ie_bus_server_close(server);
    free(data);
}
END_TEST

START_TEST(a_bus_that_comes_back_finds_its_members_again)
{
    ie_bus_server *server = eb1_bus_start(NULL, EB1_IPC);
    char           url[256];
    ear            worker = {0};
    ear            asker = {0};
    ie_eb1_client *to;
    ie_eb1_client *from;

    (void)snprintf(url, sizeof url, "%s", url_of(server, EB1_IPC));
    to = client_join(url, "sess", &worker);
    from = client_join(url, NULL, &asker);
    ie_bus_server_close(server);
    ck_assert(wait_for(&worker.lost, 1));
    ck_assert(wait_for(&asker.lost, 1));
    ck_assert_int_eq(ie_eb1_client_send_event(from, "sess", IE_EB1_RANDOM, 0, "kept", 4, NULL),
                     IE_OK);
    ck_assert_uint_eq(ie_eb1_client_id(from), 0);
    ie_eb1_client_close(to); /* so that the worker is there before the message is sent */
    server = eb1_bus_start(NULL, EB1_IPC);
    ck_assert(wait_for(&asker.connected, 2));
    wait_stat_of(server, eb1_dropped, 1); /* nobody there: the bus counts it */
    atomic_store(&worker.heard, 0);
    to = client_join(url, "sess", &worker);
    wait_stat_of(server, subscriptions, 1);
    ie_bus_server_close(server);
    server = eb1_bus_start(NULL, EB1_IPC);
    wait_stat_of(server, subscriptions, 1); /* registered again, by itself */
    ck_assert_int_eq(ie_eb1_client_wait_connected(from, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_eb1_client_send_event(from, "sess", IE_EB1_RANDOM, 0, "again", 5, NULL),
                     IE_OK);
    ck_assert(wait_for(&worker.heard, 1));
    ck_assert_str_eq(worker.text, "again");
    ie_eb1_client_close(from);
    ie_eb1_client_close(to);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(arguments_and_addresses_are_checked)
{
    static const char *const URLS[] = {"nats://127.0.0.1:1", "ws:///path",    "ws://u:p@h:1/",
                                       "ws://h:1/a%0d%0ab",  "unix:relative", "ws://h:1/?x=1"};
    ie_eb1_client_options    options;
    ie_eb1_client           *client = NULL;
    ie_error                 err = IE_ERROR_INIT;
    ear                      e = {0};
    char                     data[488] = "";

    for (size_t i = 0; i < sizeof URLS / sizeof *URLS; i++) {
        IE_EB1_CLIENT_OPTIONS_INIT(&options);
        options.url = URLS[i];
        ck_assert_msg(ie_eb1_client_open(&client, &options, &err) != IE_OK, "%s", URLS[i]);
        ck_assert_str_ne(err.message, "");
        ie_error_clear(&err);
    }
    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.event = "ebus";
    ck_assert_int_eq(ie_eb1_client_open(&client, &options, &err), IE_EINVAL);
    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.reserved = 1;
    ck_assert_int_eq(ie_eb1_client_open(&client, &options, NULL), IE_ENOTSUP);
    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.queue_bytes_max = 1000;
    options.close_timeout_ms = 1;
    client = client_make("unix:/nowhere/at/all", NULL, &e, &options);
    ck_assert_int_eq(ie_eb1_client_send(client, 0, "x", 1, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_eb1_client_send(client, 0x80000001, "x", 1, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_eb1_client_send_event(client, "ebus", IE_EB1_HASH, 0, "x", 1, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(ie_eb1_client_send_event(client, "sess", (ie_eb1_mode)3, 0, "x", 1, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(ie_eb1_client_send(client, 5, data, sizeof data, NULL), IE_OK);
    ck_assert_int_eq(ie_eb1_client_send(client, 5, data, sizeof data, NULL), IE_OK);
    ck_assert_int_eq(ie_eb1_client_send(client, 5, NULL, 0, &err), IE_ELIMIT);
    ie_error_clear(&err);
    ck_assert(wait_for(&e.lost, 2));
    ck_assert_int_eq(ie_eb1_client_wait_connected(client, 1, &err), IE_EUNREACHABLE);
    ck_assert_ptr_nonnull(strstr(err.message, "unix:/nowhere/at/all: "));
    ie_eb1_client_close(client);
    ie_eb1_client_close(NULL);
}
END_TEST

/* ---- against a bus that this test plays ---- */

static int  listener;
static char fake_url[64];

static void
fake_start(const char *scheme)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t          size = sizeof address;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(listener, 0);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(listener, 16), 0);
    ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    (void)snprintf(fake_url, sizeof fake_url, "%s://127.0.0.1:%d", scheme, ntohs(address.sin_port));
}

static int
fake_accept(void)
{
    struct pollfd poller = {.fd = listener, .events = POLLIN};
    int           fd;

    ck_assert_int_eq(poll(&poller, 1, WAIT_MS), 1);
    fd = accept(listener, NULL, NULL);
    ck_assert_int_ge(fd, 0);
    return fd;
}

/* Up to the moment when the client has its id: the exchange as the reference's bus has it. */
static int
fake_greet(const char *event)
{
    unsigned char got[8 + 20];
    const int     fd = fake_accept();

    ck_assert(raw_receive(fd, got, 8));
    ck_assert_mem_eq(got, "\0SP\0\0\xab\0\0", 8);
    raw_send(fd, "\0SP\0\0\xaa\0\0", 8);
    if (event != NULL) {
        ck_assert(raw_receive(fd, got, 20));
        ck_assert_mem_eq(got, "\0\0\0\0\0\0\0\x0c\x65\x62\x13\x31", 12);
        ck_assert_uint_eq(ie__get32(got + 16), ie_eb1_event_id(event));
    }
    return fd;
}

static void
fake_message(int fd, const void *message, size_t size)
{
    unsigned char length[8];

    ie__put64(length, size);
    raw_send(fd, length, 8);
    raw_send(fd, message, size);
}

#define ASSIGN(id) "\x65\x62\x13\x22\xe5\x62\x75\x73" id

START_TEST(a_bus_may_assign_late_again_and_in_other_words)
{
    ear            e = {0};
    ie_eb1_client *client;
    unsigned char  got[64];
    int            fd;

    fake_start("socket");
    client = client_make(fake_url, "sess", &e, NULL);
    fd = fake_greet("sess");
    ck_assert_int_eq(ie_eb1_client_send_event(client, "api1", IE_EB1_HASH, 9, "q", 1, NULL), IE_OK);
    ck_assert_uint_eq(ie_eb1_client_id(client), 0);
    fake_message(fd, "\x65\x62\x13\x21\xe5\x62\x75\x73\x10\xc5\xb3\x06", 12); /* means nothing */
    fake_message(fd, "\x65\x62\x13\x2f\xe5\x62\x75\x73\x10\xc5\xb3\x06", 12);
    fake_message(fd, "\x65\x62\x13\x20\xe5\x62\x75\x73\x10\xc5\xb3\x06", 12);
    fake_message(fd, ASSIGN("\x10\xc5\xb3\x06"), 12);
    ck_assert_int_eq(ie_eb1_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    ck_assert_uint_eq(ie_eb1_client_id(client), 0x10c5b306);
    ck_assert(raw_receive(fd, got, 8 + 21)); /* the message that waited has the id as source */
    ck_assert_mem_eq(got + 8, "\x65\x62\x15\x11\x10\xc5\xb3\x06\xe1\x70\x69\x31\0\0\0\0\0\0\0\x09q",
                     21);
    fake_message(fd, "\x65\x62\x13\x32\xe5\x62\x75\x73\x10\xc5\xb3\x07", 12); /* as 22 */
    fake_message(fd, "\x65\x62\x13\x00\0\0\0\5\x10\xc5\xb3\x07one", 15);
    ck_assert(wait_for(&e.heard, 1));
    ck_assert_uint_eq(ie_eb1_client_id(client), 0x10c5b307);
    ck_assert_uint_eq(atomic_load(&e.source), 5);
    ck_assert_str_eq(e.text, "one");
    ie_eb1_client_close(client);
    (void)close(fd);
    (void)close(listener);
}
END_TEST

START_TEST(headers_of_any_length_and_short_messages_do_no_harm)
{
    ear            e = {0};
    unsigned char  message[64] = "\x65\x62\x13\x00\0\0\0\5\x10\xc5\xb3\x07";
    ie_eb1_client *client;
    int            fd;

    fake_start("socket");
    client = client_make(fake_url, NULL, &e, NULL);
    fd = fake_greet(NULL);
    fake_message(fd, ASSIGN("\x10\xc5\xb3\x06"), 12);
    fake_message(fd, "", 0);
    fake_message(fd, "\x65\x62\x13\x00\0\0\0\5\x10\xc5\xb3", 11);
    message[2] = 0x12; /* a header of 8: ignored */
    fake_message(fd, message, 20);
    message[2] = 0x76; /* of 24, in another version */
    memcpy(message + 24, "first", 5);
    fake_message(fd, message, 29);
    ck_assert(wait_for(&e.heard, 1));
    ck_assert_str_eq(e.text, "first");
    message[2] = 0x1f; /* of 60, and nothing behind it */
    fake_message(fd, message, 60);
    ck_assert(wait_for(&e.heard, 2));
    ck_assert_str_eq(e.text, "");
    ck_assert_uint_eq(atomic_load(&e.bytes), 5);
    ie_eb1_client_close(client);
    (void)close(fd);
    (void)close(listener);
}
END_TEST

static const struct {
    const char *bytes; /* behind the greeting and the id */
    size_t      size;
} HOSTILE[] = {
    {"\0\0\0\0\0\0\0\x0c\x65\x62\x15\x00\0\0\0\5\x10\xc5\xb3\x06", 20}, /* header beyond the end */
    {"\0\0\0\0\0\0\0\x0c\x65\x62\x1f\x22\0\0\0\5\x10\xc5\xb3\x06", 20}, /* ... in control */
    {"\0\0\0\0\0\0\0\x0c\x66\x62\x13\x00\0\0\0\5\x10\xc5\xb3\x06", 20}, /* another flag */
    {"\0\0\0\0\0\x10\0\x01", 8},                                        /* too long by one */
    {"\xff\xff\xff\xff\xff\xff\xff\xff", 8},
};

START_TEST(a_hostile_bus_is_left_and_tried_again)
{
    ear            e = {0};
    ie_eb1_client *client;

    fake_start("socket");
    client = client_make(fake_url, "sess", &e, NULL);
    for (unsigned round = 1; round <= 2; round++) {
        const int fd = fake_greet("sess");

        fake_message(fd, ASSIGN("\x10\xc5\xb3\x06"), 12);
        raw_send(fd, HOSTILE[_i].bytes, HOSTILE[_i].size);
        raw_expect_end(fd);
        ck_assert(wait_for(&e.connected, round));
        (void)close(fd);
    }
    ck_assert_uint_eq(atomic_load(&e.heard), 0);
    ie_eb1_client_close(client);
    (void)close(listener);
}
END_TEST

START_TEST(who_is_no_bus_is_named_so)
{
    static const struct {
        const char *bytes;
        size_t      size;
        const char *complaint;
    } NO_BUS[] = {{"\0SP\0\0\xab\0\0", 8, "not a bus of eb/1"},
                  {"\0SP\0\0\xad\0\0", 8, "refused"},
                  {"SSH-2.0-", 8, "not a bus of eb/1"}};
    ear            e = {0};
    ie_eb1_client *client;

    fake_start("socket");
    client = client_make(fake_url, NULL, &e, NULL);
    for (unsigned i = 0; i < 3; i++) {
        const int fd = fake_accept();
        ie_error  err = IE_ERROR_INIT;

        raw_send(fd, NO_BUS[i].bytes, NO_BUS[i].size);
        ck_assert(wait_for(&e.refused, i + 1));
        ck_assert_int_eq(ie_eb1_client_wait_connected(client, 1, &err), IE_EREFUSED);
        ck_assert_msg(strstr(err.message, NO_BUS[i].complaint) != NULL, "%s", err.message);
        (void)close(fd);
    }
    ie_eb1_client_close(client);
    (void)close(listener);
}
END_TEST

START_TEST(a_bus_that_falls_silent_is_left)
{
    ie_eb1_client_options options;
    ear                   e = {0};
    unsigned char         got[20];
    ie_eb1_client        *client;
    int                   fd;

    fake_start("socket");
    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.heartbeat_ms = 50;
    client = client_make(fake_url, NULL, &e, &options);
    fd = fake_greet(NULL);
    fake_message(fd, ASSIGN("\x10\xc5\xb3\x06"), 12);
    for (int i = 0; i < 5; i++) { /* answered, it stays */
        ck_assert(raw_receive(fd, got, 20));
        ck_assert_mem_eq(got + 8, "\x65\x62\x13\x20", 4);
        ck_assert_mem_eq(got + 16, "\xe5\x62\x75\x73", 4);
        memcpy(got + 12, "\xe5\x62\x75\x73\x10\xc5\xb3\x06", 8);
        raw_send(fd, got, 20);
    }
    while (raw_receive(fd, got, 20)) { /* unanswered, it goes */
    }
    ck_assert(wait_for(&e.lost, 1));
    (void)close(fd);
    ie_eb1_client_close(client);
    (void)close(listener);
}
END_TEST

START_TEST(an_id_that_does_not_come_ends_the_attempt)
{
    ie_eb1_client_options options;
    ear                   e = {0};
    ie_error              err = IE_ERROR_INIT;
    ie_eb1_client        *client;
    int                   fd;

    fake_start("socket");
    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.connect_timeout_ms = 100;
    client = client_make(fake_url, NULL, &e, &options);
    fd = fake_greet(NULL);
    fake_message(fd, ASSIGN("\0\0\0\0"), 12); /* no id at all */
    raw_expect_end(fd);
    ck_assert(wait_for(&e.lost, 1));
    ck_assert_int_eq(ie_eb1_client_wait_connected(client, 1, &err), IE_EUNREACHABLE);
    ck_assert_msg(strstr(err.message, "no id was assigned") != NULL, "%s", err.message);
    (void)close(fd);
    ie_eb1_client_close(client);
    (void)close(listener);
}
END_TEST

START_TEST(a_web_server_that_is_no_bus_is_named_so)
{
    static const struct {
        const char *answer;
        const char *complaint;
    } ANSWERS[] = {{"HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found"},
                   {"HTTP/1.1 101 Switching Protocols\r\n\r\n", "not that of an event bus"},
                   {NULL, "too long"}};
    ear            e = {0};
    char           flood[5000];
    ie_eb1_client *client;

    memset(flood, 'x', sizeof flood);
    fake_start("ws");
    client = client_make(fake_url, NULL, &e, NULL);
    for (unsigned i = 0; i < 3; i++) {
        const int fd = fake_accept();
        ie_error  err = IE_ERROR_INIT;

        if (ANSWERS[i].answer != NULL)
            raw_send(fd, ANSWERS[i].answer, strlen(ANSWERS[i].answer));
        else
            raw_send(fd, flood, sizeof flood);
        ck_assert(wait_for(&e.refused, i + 1));
        ck_assert_int_eq(ie_eb1_client_wait_connected(client, 1, &err), IE_EREFUSED);
        ck_assert_msg(strstr(err.message, ANSWERS[i].complaint) != NULL, "%s", err.message);
        (void)close(fd);
    }
    ie_eb1_client_close(client);
    (void)close(listener);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("eb1 client");
    TCase   *tc = tcase_create("client");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, clients_reach_each_other_in_every_mode, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, what_was_sent_before_a_close_arrives, 0, EB1_TRANSPORTS);
    tcase_add_loop_test(tc, the_largest_message_passes_and_a_larger_one_is_refused, 0,
                        EB1_TRANSPORTS);
    tcase_add_test(tc, a_bus_that_comes_back_finds_its_members_again);
    tcase_add_test(tc, arguments_and_addresses_are_checked);
    tcase_add_test(tc, a_bus_may_assign_late_again_and_in_other_words);
    tcase_add_test(tc, headers_of_any_length_and_short_messages_do_no_harm);
    tcase_add_loop_test(tc, a_hostile_bus_is_left_and_tried_again, 0,
                        (int)(sizeof HOSTILE / sizeof *HOSTILE));
    tcase_add_test(tc, who_is_no_bus_is_named_so);
    tcase_add_test(tc, a_bus_that_falls_silent_is_left);
    tcase_add_test(tc, an_id_that_does_not_come_ends_the_attempt);
    tcase_add_test(tc, a_web_server_that_is_no_bus_is_named_so);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
