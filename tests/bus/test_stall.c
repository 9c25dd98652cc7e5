/* Bursts: a live subscriber that reads is not lost because somebody publishes faster. */
#include "bus_support.h"

#include <check.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <stdlib.h>

#define OUT_BYTES_MAX (256 * 1024)
#define EVENTS        4000 /* of 1 KiB: sixteen times what may wait */
#define BURSTS        8

/* Slower than the publisher. */
static ie_status
handle_slowly(void *user, const ie_event *event)
{
    const unsigned char *bytes = event->data;
    volatile unsigned    sum = 0;

    for (int round = 0; round < 4; round++)
        for (size_t i = 0; i < event->data_bytes; i++)
            sum = sum + bytes[i];
    return counter_handle(user, event);
}

/* Everything to a subscriber whose queue would hold a small part of it; false when the
 * machine left the subscriber without a core for longer than a bus waits. */
static bool
burst(void)
{
    static char           data[1024];
    char                  listen[512];
    const char           *url = listen;
    ie_bus_server_options options;
    ie_bus_server        *server;
    ie_bus_client        *publisher;
    ie_bus_client        *subscriber;
    counter               count = {0};
    counter               answers = {0};
    ie_event              event = IE_EVENT_INIT;
    bool                  is_whole;

    (void)snprintf(listen, sizeof listen, "unix:%s", test_path("bus.sock"));
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = OUT_BYTES_MAX;
    options.listen = &url; /* a unix socket holds little by itself */
    options.listen_count = 1;
    server = bus_start(&options);
    publisher = client_open(server);
    subscriber = client_open(server);
    ck_assert_int_eq(
        ie_bus_client_subscribe(subscriber, "t", NULL, 0, handle_slowly, &count, NULL, NULL),
        IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
    event.topic = "t";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = sizeof data;
    memset(data, 'x', sizeof data);
    for (unsigned long sent = 0; sent < EVENTS;) {
        if (ie_bus_client_publish(publisher, &event, 0, counter_answer, &answers, NULL) == IE_OK)
            sent++;
        else /* its queue is full */
            ck_assert(wait_for(&answers.answered, sent - sent / 4));
    }
    ck_assert(wait_for(&answers.answered, EVENTS));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    is_whole = bus_stats(server).slow_closed == 0;
    if (is_whole)
        ck_assert(wait_for(&count.handled, EVENTS));
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
    ie_bus_server_close(server);
    return is_whole;
}

START_TEST(a_burst_costs_no_subscriber_that_reads)
{
    int bursts = 0;

    (void)test_dir_make();
    /* Time is the limit here, and a busy machine may pass it: then another burst decides. */
    while (!burst())
        ck_assert_int_lt(++bursts, BURSTS);
    test_dir_remove();
}
END_TEST

/* Its publisher is held back, and leaves; and the reader leaves while it holds somebody back. */
START_TEST(who_holds_back_or_is_held_back_may_leave)
{
    ie_bus_server_options options;
    ie_bus_server        *server;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = 64 << 20; /* an eighth of it is more than sockets hold */
    server = bus_start(&options);
    for (int round = 0; round < 4; round++) {
        const int reader = raw_open(server);
        const int publisher = raw_open(server);

        raw_subscribe(reader, 1, "t", NULL, 0, 0);
        (void)raw_expect(reader, IE__SUBSCRIBED);
        for (uint32_t i = 0; i < 20; i++)
            raw_publish(publisher, i + 1, 0, "t", 1 << 20);
        (void)close(round % 2 == 0 ? publisher : reader);
        (void)close(round % 2 == 0 ? reader : publisher);
    }
    {
        ie_bus_client *client = client_open(server); /* it is alive and well */

        ie_bus_client_close(client);
    }
    ie_bus_server_close(server);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("stall");
    TCase   *tcase = tcase_create("bursts");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 100);
    tcase_add_test(tcase, a_burst_costs_no_subscriber_that_reads);
    tcase_add_test(tcase, who_holds_back_or_is_held_back_may_leave);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
