/* The socket publisher: the suite that all publishers pass, and what only it has to decide. */
#include "socket_bus.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bus_support.h"
#include "conformance.h"
#include "certificates.h"
#include "core.h"
#include "publisher_env.h"

/* ---- the suite ------------------------------------------------------------------------------ */

typedef struct peer {
    ie_bus_server  *server;
    ie_bus_client  *client;
    pthread_mutex_t mutex;
    ie_event       *events[20000];
    size_t          head;
    size_t          tail;
    char            url[200];
    char            url_away[200];
    ie_bus_server  *late_server;
    ie_bus_client  *late_client;
} peer;

static ie_status
peer_take(void *user, const ie_event *event)
{
    peer     *p = user;
    ie_event *copy = NULL;
    ie_status status = ie_event_copy(&copy, event, NULL);

    (void)pthread_mutex_lock(&p->mutex);
    if (status == IE_OK && p->tail < sizeof p->events / sizeof *p->events)
        p->events[p->tail++] = copy;
    else
        status = IE_EHANDLER;
    (void)pthread_mutex_unlock(&p->mutex);
    return status;
}

static bool
peer_serve(peer *p, const char *listen, ie_bus_server **server, ie_bus_client **client)
{
    ie_bus_server_options options;
    ie_bus_client_options client_options;

    const bool is_tls = strncmp(listen, "sockets:", 8) == 0;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = &listen;
    options.listen_count = 1;
    if (is_tls) {
        options.tls_cert_file = test_path("server.pem");
        options.tls_key_file = test_path("server.key");
    }
    if (ie_bus_server_start(server, &options, NULL) != IE_OK)
        return false;
    IE_BUS_CLIENT_OPTIONS_INIT(&client_options);
    client_options.url = ie_bus_server_address(*server, 0);
    if (is_tls)
        client_options.tls_ca_file = test_path("ca.pem");
    return ie_bus_client_open(client, &client_options, NULL) == IE_OK &&
           ie_bus_client_subscribe(*client, ">", "receiver", 0, peer_take, p, NULL, NULL) ==
               IE_OK &&
           ie_bus_client_wait_subscribed(*client, WAIT_MS, NULL) == IE_OK;
}

static void
peer_teardown(void *opened)
{
    peer *p = opened;

    ie_bus_client_close(p->client);
    ie_bus_client_close(p->late_client);
    ie_bus_server_close(p->server);
    ie_bus_server_close(p->late_server);
    while (p->head < p->tail)
        ie_event_free(p->events[p->head++]);
    (void)pthread_mutex_destroy(&p->mutex);
    free(p);
    test_dir_remove();
}

static void *
peer_setup(const char *listen)
{
    peer *p = calloc(1, sizeof *p);

    if (p == NULL)
        return NULL;
    (void)pthread_mutex_init(&p->mutex, NULL);
    if (!peer_serve(p, listen, &p->server, &p->client)) {
        peer_teardown(p);
        return NULL;
    }
    (void)snprintf(p->url, sizeof p->url, "%s", ie_bus_server_address(p->server, 0));
    (void)snprintf(p->url_away, sizeof p->url_away, "socket://127.0.0.1:%d", test_free_port());
    return p;
}

static void *
setup_socket(void)
{
    (void)test_dir_make();
    return peer_setup("socket://127.0.0.1:0");
}

/* The URL says whom to trust: a worker has nothing else to say it with. */
static void *
setup_sockets(void)
{
    peer *p;

    (void)test_dir_make();
    certificate_make(&(certificate){.name = "ca", .is_ca = true});
    certificate_make(&(certificate){.name = "server", .signed_by = "ca", .alt = "IP:127.0.0.1"});
    p = peer_setup("sockets://127.0.0.1:0");
    if (p != NULL)
        (void)snprintf(p->url + strlen(p->url), sizeof p->url - strlen(p->url), "?ca=%s",
                       test_path("ca.pem"));
    return p;
}

static void *
setup_unix(void)
{
    char url[600];

    (void)test_dir_make();
    (void)snprintf(url, sizeof url, "unix:%s", test_path("bus.sock"));
    return peer_setup(url);
}

static const char *
peer_url(void *opened)
{
    return ((peer *)opened)->url;
}

static const char *
peer_url_away(void *opened)
{
    return ((peer *)opened)->url_away;
}

static bool
peer_come(void *opened)
{
    peer *p = opened;

    return peer_serve(p, p->url_away, &p->late_server, &p->late_client);
}

static ie_event *
peer_receive(void *opened, int timeout_ms)
{
    const int64_t deadline = ie__mono_ns() + INT64_C(1000000) * timeout_ms;
    peer         *p = opened;
    ie_event     *event = NULL;

    for (;;) {
        (void)pthread_mutex_lock(&p->mutex);
        if (p->head < p->tail)
            event = p->events[p->head++];
        (void)pthread_mutex_unlock(&p->mutex);
        if (event != NULL || ie__mono_ns() >= deadline)
            return event;
        (void)poll(NULL, 0, 1);
    }
}

static const ie_conformance_row ROWS[] = {
    {.name = "socket",
     .ops = &ie__publisher_socket,
     .setup = setup_socket,
     .url = peer_url,
     .receive = peer_receive,
     .teardown = peer_teardown,
     .url_away = peer_url_away,
     .come = peer_come,
     .bad_url = "socket://127.0.0.1:1?no_such=1",
     .bad_option = "no_such"},
    {.name = "sockets",
     .ops = &ie__publisher_sockets,
     .setup = setup_sockets,
     .url = peer_url,
     .receive = peer_receive,
     .teardown = peer_teardown,
     .bad_url = "sockets://127.0.0.1:1?no_such=1",
     .bad_option = "no_such"},
    {.name = "unix",
     .ops = &ie__publisher_unix,
     .setup = setup_unix,
     .url = peer_url,
     .receive = peer_receive,
     .teardown = peer_teardown,
     .bad_url = "unix:/nowhere?no_such=1",
     .bad_option = "no_such"},
};

START_TEST(it_does_what_every_publisher_must)
{
    char why[600] = "";

    for (size_t i = 0; ie_conformance_case_name(i) != NULL; i++)
        ck_assert_msg(ie_conformance_run(&ROWS[_i], i, why, sizeof why), "%s: %s",
                      ie_conformance_case_name(i), why);
}
END_TEST

/* ---- its own decisions ---------------------------------------------------------------------- */

typedef struct verdicts {
    atomic_ulong counts[4];
    atomic_ulong all;
    char         reason[600];
} verdicts;

static void
note_verdict(void *user, uint64_t ticket, ie_verdict verdict, const char *reason, uint32_t delay_ms)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* answers come from two threads */
    verdicts              *v = user;

    (void)ticket;
    (void)delay_ms;
    (void)pthread_mutex_lock(&lock);
    if (reason != NULL)
        (void)snprintf(v->reason, sizeof v->reason, "%s", reason);
    (void)pthread_mutex_unlock(&lock);
    (void)atomic_fetch_add(&v->counts[verdict], 1);
    (void)atomic_fetch_add(&v->all, 1);
}

static void
send_events(void *self, size_t count)
{
    static ie_event    event = IE_EVENT_INIT;
    static ie_outgoing outgoing[1000];

    event.topic = "t";
    event.id = "id";
    event.type = "t";
    event.source = "s";
    ck_assert_uint_le(count, 1000);
    for (size_t i = 0; i < count; i++)
        outgoing[i] = (ie_outgoing){.event = &event, .ticket = i + 1, .attempt = 1};
    ie__publisher_socket.publish(self, outgoing, count);
}

static void *
publisher_open(const char *url, ie_publisher_env *env)
{
    void    *self = NULL;
    ie_error err = IE_ERROR_INIT;

    ck_assert_msg(ie__publisher_socket.open(&self, url, env, &err) == IE_OK, "%s", err.message);
    return self;
}

START_TEST(each_answer_has_its_verdict)
{
    static const struct {
        ie_status   result; /* of the handler; IE_ENOTFOUND: nobody subscribes */
        ie_verdict  verdict;
        const char *words;
    } CASES[] = {
        {IE_OK, IE_DELIVERED, ""},
        {IE_EHANDLER, IE_RETRY, "handler"},
        {IE_EREFUSED, IE_REJECTED, "handler"},
        {IE_EUNREACHABLE, IE_UNREACHABLE, "handler"},
        {IE_ENOTFOUND, IE_UNREACHABLE, "no subscribers"},
    };
    ie_bus_server *server = bus_start_default();

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ie_bus_client   *subscriber = client_open(server);
        verdicts         v = {0};
        counter          count = {.result = CASES[i].result};
        ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
        void            *self;

        if (CASES[i].result != IE_ENOTFOUND)
            (void)subscribe_now(subscriber, "t", "g", 0, &count);
        self = publisher_open(ie_bus_server_address(server, 0), &env);
        send_events(self, 10);
        ck_assert(wait_for(&v.all, 10));
        ck_assert_msg(atomic_load(&v.counts[CASES[i].verdict]) == 10, "case %zu: %s", i, v.reason);
        ck_assert_msg(strstr(v.reason, CASES[i].words) != NULL, "%s", v.reason);
        ie__publisher_socket.close(self);
        ie_bus_client_close(subscriber);
    }
    ie_bus_server_close(server);
}
END_TEST

START_TEST(what_an_operator_mends_spends_nothing)
{
    static const struct {
        uint32_t   code;
        ie_verdict verdict;
    } CASES[] = {
        {IE_BUS_CODE_STORAGE, IE_UNREACHABLE},     {IE_BUS_CODE_FULL, IE_UNREACHABLE},
        {IE_BUS_CODE_DENIED, IE_UNREACHABLE},      {IE_BUS_CODE_CREDENTIALS, IE_UNREACHABLE},
        {IE_BUS_CODE_LIMIT, IE_UNREACHABLE},       {IE_BUS_CODE_MEMORY, IE_UNREACHABLE},
        {IE_BUS_CODE_ACK_TIMEOUT, IE_RETRY},       {IE_BUS_CODE_HANDLER, IE_RETRY},
        {IE_BUS_CODE_TOO_BIG, IE_REJECTED},        {IE_BUS_CODE_INVALID, IE_REJECTED},
        {60000 /* of a later version */, IE_RETRY}};
    char             url[64];
    const int        listener = fake_bus_listen(url);
    verdicts         v = {0};
    ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
    void            *self = publisher_open(url, &env);
    const int        fd = fake_bus_accept(listener, IE__CAP_STORAGE);

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const unsigned long before = atomic_load(&v.counts[CASES[i].verdict]);
        unsigned char       refusal[IE__REASON_FRAME_MAX];
        ie__frame           frame;

        send_events(self, 1);
        frame = raw_expect(fd, IE__PUBLISH);
        ck_assert_uint_eq(ie__get32(frame.body),
                          IE_BUS_PUBLISH_PERSISTENT | IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER);
        raw_send(fd, refusal,
                 ie__reason_frame(refusal, IE__PUBNACK, frame.number, CASES[i].code, "because"));
        ck_assert(wait_for(&v.all, i + 1));
        ck_assert_msg(atomic_load(&v.counts[CASES[i].verdict]) == before + 1, "code %u",
                      CASES[i].code);
        ck_assert_str_eq(v.reason, "because");
    }
    (void)close(fd);
    (void)close(listener);
    ie__publisher_socket.close(self);
}
END_TEST

START_TEST(a_topic_of_the_bus_itself_never_will_be_published)
{
    ie_bus_server   *server = bus_start_default();
    verdicts         v = {0};
    ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
    void            *self = publisher_open(ie_bus_server_address(server, 0), &env);
    ie_event         event = IE_EVENT_INIT;
    ie_outgoing      one = {.event = &event, .ticket = 1, .attempt = 1};

    event.topic = "$bus.status";
    event.id = event.type = event.source = "x";
    ie__publisher_socket.publish(self, &one, 1);
    ck_assert(wait_for(&v.counts[IE_REJECTED], 1));
    ck_assert_ptr_nonnull(strstr(v.reason, "$"));
    ie__publisher_socket.close(self);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(nobody_may_be_accepted_on_request)
{
    ie_bus_server   *server = bus_start_default();
    verdicts         v = {0};
    ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
    char             url[200];
    void            *self;

    (void)snprintf(url, sizeof url, "%s?require_subscriber=false",
                   ie_bus_server_address(server, 0));
    self = publisher_open(url, &env);
    send_events(self, 10);
    ck_assert(wait_for(&v.counts[IE_DELIVERED], 10));
    ie__publisher_socket.close(self);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(a_bus_that_is_away_is_unreachable_with_its_reason_at_once)
{
    verdicts         v = {0};
    ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
    char             url[200];
    void            *self;
    int64_t          start;

    (void)snprintf(url, sizeof url, "socket://127.0.0.1:%d", test_free_port());
    self = publisher_open(url, &env);
    send_events(self, 10);
    ck_assert(wait_for(&v.counts[IE_UNREACHABLE], 10));
    ck_assert_msg(strstr(v.reason, "refused") != NULL, "%s", v.reason);
    start = ie__mono_ns();
    send_events(self, 1000); /* known to be away: answered before the call returns */
    ck_assert_uint_eq(atomic_load(&v.counts[IE_UNREACHABLE]), 1010);
    ck_assert_int_lt(ie__mono_ns() - start, INT64_C(1000000000));
    ie__publisher_socket.close(self);
}
END_TEST

START_TEST(a_lost_connection_answers_every_ticket)
{
    ie_bus_server   *server = bus_start_default();
    verdicts         v = {0};
    ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
    char             url[200];
    void            *self;
    const int        member = raw_open(server);

    raw_subscribe(member, 1, "t", "g", 0, 1);
    (void)raw_expect(member, IE__SUBSCRIBED);
    (void)snprintf(url, sizeof url, "%s?max_in_flight=10", ie_bus_server_address(server, 0));
    self = publisher_open(url, &env);
    send_events(self, 1000); /* ten in flight, the others wait for them */
    (void)raw_expect(member, IE__DELIVER_ACK);
    ck_assert_uint_eq(atomic_load(&v.all), 0);
    (void)ie_bus_server_stop(server, 0);
    ck_assert(wait_for(&v.all, 1000));
    ck_assert_uint_eq(atomic_load(&v.counts[IE_UNREACHABLE]), 1000);
    ie_bus_server_close(server);
    ie__publisher_socket.close(self);
    (void)close(member);
}
END_TEST

START_TEST(more_than_fit_in_flight_all_arrive_in_order)
{
    ie_bus_server   *server = bus_start_default();
    ie_bus_client   *subscriber = client_open(server);
    verdicts         v = {0};
    counter          count = {0};
    ie_publisher_env env = {.report = note_verdict, .user = &v, .name = "test"};
    char             url[200];
    void            *self;

    (void)subscribe_now(subscriber, "t", "g", 0, &count);
    (void)snprintf(url, sizeof url, "%s?max_in_flight=7", ie_bus_server_address(server, 0));
    self = publisher_open(url, &env);
    send_events(self, 1000);
    send_events(self, 1000);
    ck_assert(wait_for(&v.counts[IE_DELIVERED], 2000));
    ck_assert_uint_eq(atomic_load(&count.handled), 2000);
    ie__publisher_socket.close(self);
    ie_bus_client_close(subscriber);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(options_out_of_bounds_are_refused)
{
    static const char *const URLS[] = {"socket://127.0.0.1:1?max_in_flight=0",
                                       "socket://127.0.0.1:1?max_in_flight=65537",
                                       "socket://127.0.0.1:1?connect_timeout_ms=x",
                                       "socket://127.0.0.1:1?require_subscriber=maybe",
                                       "socket://user:pw@127.0.0.1:1",
                                       "socket://"};
    verdicts                 v = {0};
    ie_publisher_env         env = {.report = note_verdict, .user = &v, .name = "test"};

    for (size_t i = 0; i < sizeof URLS / sizeof *URLS; i++) {
        void    *self = NULL;
        ie_error err = IE_ERROR_INIT;

        ck_assert_msg(ie__publisher_socket.open(&self, URLS[i], &env, &err) != IE_OK, "%s",
                      URLS[i]);
        ck_assert_str_ne(err.message, "");
    }
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("socket publisher");
    TCase   *tcase = tcase_create("publisher");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 100);
    tcase_add_loop_test(tcase, it_does_what_every_publisher_must, 0,
                        (int)(sizeof ROWS / sizeof *ROWS));
    tcase_add_test(tcase, each_answer_has_its_verdict);
    tcase_add_test(tcase, what_an_operator_mends_spends_nothing);
    tcase_add_test(tcase, a_topic_of_the_bus_itself_never_will_be_published);
    tcase_add_test(tcase, nobody_may_be_accepted_on_request);
    tcase_add_test(tcase, a_bus_that_is_away_is_unreachable_with_its_reason_at_once);
    tcase_add_test(tcase, a_lost_connection_answers_every_ticket);
    tcase_add_test(tcase, more_than_fit_in_flight_all_arrive_in_order);
    tcase_add_test(tcase, options_out_of_bounds_are_refused);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
