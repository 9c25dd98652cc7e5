/* New options for a running bus: they act on who is connected, or nothing changes. */
#include <ie/bus.h>

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bus_support.h"

static ie_bus_server        *server;
static ie_bus_server_options options;
static const char           *LISTEN[] = {"socket://127.0.0.1:0"};

static void
setup(void)
{
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = LISTEN;
    options.listen_count = 1;
    options.name = "reload.test";
    server = bus_start(&options);
}

static void
teardown(void)
{
    (void)ie_bus_server_stop(server, 0); /* raw peers do not say goodbye */
    ie_bus_server_close(server);
}

START_TEST(a_lower_limit_acts_on_the_next_publish_of_who_is_connected)
{
    const int fd = raw_open(server);

    raw_publish(fd, 1, 0, "a.b", 1000);
    (void)raw_expect(fd, IE__PUBACK);
    options.data_bytes_max = 999;
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_OK);
    ck_assert_uint_eq(bus_stats(server).reloads, 1);
    raw_publish(fd, 2, 0, "a.b", 1000);
    raw_expect_reason(fd, IE__PUBNACK, 2, IE_BUS_CODE_TOO_BIG);
    raw_publish(fd, 3, 0, "a.b", 999);
    (void)raw_expect(fd, IE__PUBACK);
    options.data_bytes_max = 0; /* back to the default */
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_OK);
    raw_publish(fd, 4, 0, "a.b", 1000);
    (void)raw_expect(fd, IE__PUBACK);
}
END_TEST

START_TEST(a_shorter_timeout_acts_on_a_connection_that_waits)
{
    const int fd = raw_connect(server); /* says nothing; the default would be 5 s */

    ck_assert_int_ge(fd, 0);
    options.hello_timeout_ms = 50;
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_OK);
    raw_expect_end(fd);
}
END_TEST

static void
expect_refused(const char *field)
{
    const int fd = raw_open(server);
    ie_error  err = IE_ERROR_INIT;

    options.data_bytes_max = 10; /* right by itself, and not taken */
    ck_assert_int_eq(ie_bus_server_reload(server, &options, &err), IE_EINVAL);
    ck_assert_int_eq(strncmp(err.message, field, strlen(field)), 0);
    ck_assert_uint_eq(bus_stats(server).reloads, 0);
    raw_publish(fd, 1, 0, "a.b", 1000);
    (void)raw_expect(fd, IE__PUBACK);
}

START_TEST(what_cannot_change_is_refused_and_nothing_else_changes)
{
    static const char *const OTHER[] = {"socket://127.0.0.1:0", "socket://127.0.0.1:1"};

    switch (_i) {
    case 0:
        options.listen_count = 0;
        expect_refused("listen cannot change");
        break;
    case 1:
        options.listen = OTHER;
        options.listen_count = 2;
        expect_refused("listen cannot change");
        break;
    case 2:
        options.name = NULL;
        expect_refused("name cannot change");
        break;
    case 3:
        options.data_dir = "/nowhere";
        expect_refused("data_dir cannot change");
        break;
    case 4:
        options.credit_max = UINT32_MAX;
        expect_refused("credit_max: at most");
        break;
    case 5:
        options.flags = 0x80;
        expect_refused("bus options: unknown flags");
        break;
    default: options.size = 0; expect_refused("bus options: size is not set");
    }
}
END_TEST

START_TEST(a_bus_that_has_stopped_is_not_reloaded)
{
    ie_error err = IE_ERROR_INIT;

    ck_assert_int_eq(ie_bus_server_stop(server, 0), IE_OK);
    ck_assert_int_eq(ie_bus_server_reload(server, &options, &err), IE_EINVAL);
    ck_assert_str_eq(err.message, "the bus has stopped");
}
END_TEST

#define RELOADERS 4
#define RELOADS   50

static void *
reload_often(void *arg)
{
    ie_bus_server_options own = options;

    (void)arg;
    for (uint32_t i = 0; i < RELOADS; i++) {
        own.hello_timeout_ms = 1000 + i;
        ck_assert_int_eq(ie_bus_server_reload(server, &own, NULL), IE_OK);
    }
    return NULL;
}

START_TEST(many_threads_may_reload_while_events_flow)
{
    pthread_t      threads[RELOADERS];
    counter        got = {0};
    counter        answers = {0};
    ie_bus_client *client = client_open(server);
    ie_bus_client *subscriber = client_open(server);

    (void)subscribe_now(subscriber, "a.>", NULL, 0, &got);
    for (int i = 0; i < RELOADERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, reload_often, NULL), 0);
    for (long i = 0; i < 1000; i++)
        ck_assert_int_eq(publish_number(client, "a.b", i, 0, &answers), IE_OK);
    for (int i = 0; i < RELOADERS; i++)
        (void)pthread_join(threads[i], NULL);
    ck_assert(wait_for(&answers.answered, 1000));
    ck_assert(wait_for(&got.handled, 1000));
    ck_assert_uint_eq(answers.failed, 0);
    ck_assert_uint_eq(bus_stats(server).reloads, RELOADERS * RELOADS);
    ie_bus_client_close(client);
    ie_bus_client_close(subscriber);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("reload");
    TCase   *tcase = tcase_create("reload");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_lower_limit_acts_on_the_next_publish_of_who_is_connected);
    tcase_add_test(tcase, a_shorter_timeout_acts_on_a_connection_that_waits);
    tcase_add_loop_test(tcase, what_cannot_change_is_refused_and_nothing_else_changes, 0, 7);
    tcase_add_test(tcase, a_bus_that_has_stopped_is_not_reloaded);
    tcase_add_test(tcase, many_threads_may_reload_while_events_flow);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
