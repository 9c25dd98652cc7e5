/* On whose thread handlers run, and what goes on meanwhile. */
#include "bus_support.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

static ie_bus_server *server;

static void
set_up(void)
{
    server = bus_start_default();
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
}

static ie_bus_client *
client_of(ie_bus_dispatch dispatch)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = ie_bus_server_address(server, 0);
    options.dispatch = dispatch;
    options.reconnect_delay_ms = 10;
    options.reconnect_delay_ms_max = 50;
    ck_assert_msg(ie_bus_client_open(&client, &options, &err) == IE_OK, "%s", err.message);
    ck_assert_msg(ie_bus_client_wait_connected(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
    return client;
}

static bool
is_readable(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};

    return poll(&poller, 1, 0) == 1;
}

/* ---- thread --------------------------------------------------------------------------------- */

typedef struct asker {
    ie_bus_client *client;
    const char    *topic; /* published inside the handler */
    atomic_ulong   handled;
    atomic_int     status;
    pthread_t      thread;
} asker;

static ie_status
publish_inside(void *user, const ie_event *event)
{
    asker   *self = user;
    ie_event answer = IE_EVENT_INIT;

    (void)event;
    self->thread = pthread_self();
    answer.topic = self->topic;
    atomic_store(&self->status,
                 ie_bus_client_publish_wait(self->client, &answer, 0, WAIT_MS, NULL));
    (void)atomic_fetch_add(&self->handled, 1);
    return IE_OK;
}

START_TEST(a_handler_may_wait_for_an_answer)
{
    ie_bus_client *client = client_of(IE_BUS_DISPATCH_THREAD);
    asker          asked = {.client = client, .topic = "answer", .status = IE_EIO};
    counter        heard = {0};
    counter        answers = {0};

    (void)subscribe_now(client, "answer", NULL, IE_BUS_SUBSCRIBE_OWN, &heard);
    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "ask", "g", 0, publish_inside, &asked, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(publish_number(client, "ask", 1, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, 1));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_int_eq(atomic_load(&asked.status), IE_OK);
    ck_assert(!pthread_equal(asked.thread, pthread_self()));
    ck_assert(wait_for(&heard.handled, 1));
    ie_bus_client_close(client);
}
END_TEST

static bool
has_heard_pings(void *arg)
{
    return bus_stats(server).bytes_in >= *(const uint64_t *)arg + UINT64_C(16) * 16;
}

START_TEST(heartbeats_go_on_while_a_handler_blocks)
{
    ie_bus_server_options options;
    ie_bus_client        *client;
    ie_bus_client        *publisher;
    uint64_t              before;
    counter               stuck = {.is_blocked = true};
    counter               answers = {0};

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.ping_interval_ms = 400; /* a busy machine is silent for a while, too */
    options.ping_missed_max = 2;
    server = bus_start(&options);
    client = client_of(IE_BUS_DISPATCH_THREAD);
    publisher = client_of(IE_BUS_DISPATCH_INLINE);
    (void)subscribe_now(client, "t", "g", 0, &stuck);
    ck_assert_int_eq(publish_number(publisher, "t", 1, 0, &answers), IE_OK);
    before = bus_stats(server).bytes_in;
    ck_assert(poll_until(has_heard_pings, &before, WAIT_MS)); /* longer than it bears silence */
    ck_assert_uint_eq(atomic_load(&answers.answered), 0);
    ck_assert_int_eq(ie_bus_client_state(client), IE_BUS_CONNECTED);
    ck_assert_uint_eq(bus_stats(server).timed_out, 0);
    atomic_store(&stuck.is_blocked, false);
    ck_assert(wait_for(&answers.answered, 1));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ie_bus_client_close(client);
    ie_bus_client_close(publisher);
}
END_TEST

static const ie_bus_dispatch MODES[] = {IE_BUS_DISPATCH_INLINE, IE_BUS_DISPATCH_THREAD,
                                        IE_BUS_DISPATCH_CALLER};

/* With CALLER: somebody has to call. */
typedef struct caller {
    ie_bus_client *client;
    pthread_t      thread;
    atomic_bool    is_over;
    atomic_ulong   ran;
} caller;

static void *
call(void *arg)
{
    caller *self = arg;

    while (!atomic_load(&self->is_over))
        (void)atomic_fetch_add(&self->ran, ie_bus_client_dispatch(self->client, 0, 20));
    return NULL;
}

static void
caller_start(caller *self, ie_bus_client *client, ie_bus_dispatch mode)
{
    self->client = mode == IE_BUS_DISPATCH_CALLER ? client : NULL;
    if (self->client != NULL)
        ck_assert_int_eq(pthread_create(&self->thread, NULL, call, self), 0);
}

static void
caller_stop(caller *self)
{
    atomic_store(&self->is_over, true);
    if (self->client != NULL)
        (void)pthread_join(self->thread, NULL);
}

START_TEST(every_mode_keeps_order_and_loses_nothing)
{
    const long     total = (long)test_scale(60000);
    ie_bus_client *publisher = client_of(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *subscriber = client_of(MODES[_i]);
    caller         calls = {0};
    counter        live = {0};
    counter        group = {0};
    counter        answers = {0};

    caller_start(&calls, subscriber, MODES[_i]);
    (void)subscribe_now(subscriber, "load", NULL, 0, &live);
    (void)subscribe_now(subscriber, "load", "g", 0, &group);
    for (long i = 1; i <= total; i++) {
        ie_status status;

        while ((status = publish_number(publisher, "load", i, 0, &answers)) == IE_ELIMIT)
            (void)poll(NULL, 0, 1);
        if (status != IE_OK)
            ck_abort_msg("%s", ie_status_name(status));
    }
    ck_assert(wait_for(&answers.answered, (unsigned long)total));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert(wait_for(&group.handled, (unsigned long)total));
    ck_assert(wait_for(&live.handled, (unsigned long)total));
    ck_assert_uint_eq(atomic_load(&live.out_of_order), 0);
    ck_assert_uint_eq(atomic_load(&group.out_of_order), 0);
    caller_stop(&calls);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

static bool
has_stopped_growing(void *arg)
{
    ie_bus_server_stats stats = bus_stats(server);

    (void)arg;
    return stats.out_bytes > 1u << 20;
}

/* Many deliveries that came together are answered together, one that came alone at once. */
START_TEST(every_mode_gathers_its_answers)
{
    enum { N = 1000 };
    char                  url[64];
    const int             listener = fake_bus_listen(url);
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    caller                calls = {0};
    counter               count = {0};
    ie_event              event = IE_EVENT_INIT;
    ie_buffer             burst = {NULL, 0, 0};
    unsigned char         record[256];
    uint32_t              id = 0;
    uint32_t              answered = 0;
    int                   frames = 0;
    int                   fd;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.dispatch = MODES[_i];
    options.close_timeout_ms = 100;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    caller_start(&calls, client, MODES[_i]);
    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "t", "g", 0, counter_handle, &count, &id, NULL), IE_OK);
    fd = fake_bus_accept(listener, 0);
    (void)raw_expect(fd, IE__SUBSCRIBE);
    event.topic = "t";
    event.id = event.type = event.source = "x";
    for (uint32_t i = 1; i <= N + 1; i++) {
        unsigned char frame[IE__PREFIX_BYTES + 4 + sizeof record];
        const size_t  size = (size_t)(ie__record_put(record, &event) - record);

        ie__frame_prefix(frame, IE__DELIVER_ACK, id, 4 + size);
        ie__put32(frame + IE__PREFIX_BYTES, i);
        memcpy(frame + IE__PREFIX_BYTES + 4, record, size);
        ck_assert_int_eq(ie__buffer_add(&burst, frame, IE__PREFIX_BYTES + 4 + size), IE_OK);
        if (i != 1 && i <= N)
            continue;
        raw_send(fd, burst.data, burst.size); /* the first alone, then all the others */
        burst.size = 0;
        while (answered < (i == 1 ? 1 : N + 1) && i != N) {
            const ie__frame ack = raw_expect(fd, IE__ACK);

            for (size_t at = 0; at < ack.body_bytes; at += 8)
                answered += ie__get32(ack.body + at + 4);
            frames++;
        }
    }
    ck_assert_uint_eq(answered, N + 1);
    ck_assert_int_le(frames, N / 5);
    ie_buffer_fini(&burst);
    caller_stop(&calls);
    (void)close(fd);
    (void)close(listener);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(who_does_not_read_still_says_that_it_is_there)
{
    enum { N = 400, SIZE = 65536 };
    static char           data[SIZE];
    ie_bus_server_options options;
    ie_bus_client        *publisher;
    ie_bus_client        *subscriber;
    uint64_t              before;
    counter               group = {.is_blocked = true};
    counter               answers = {0};
    ie_event              event = IE_EVENT_INIT;

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.ping_interval_ms = 400; /* a busy machine is silent for a while, too */
    server = bus_start(&options);
    publisher = client_of(IE_BUS_DISPATCH_INLINE);
    subscriber = client_of(IE_BUS_DISPATCH_THREAD);
    (void)subscribe_now(subscriber, "big", "g", 0, &group);
    event.topic = "big";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = SIZE;
    for (int i = 0; i < N; i++) {
        ie_status status;

        while ((status = ie_bus_client_publish(publisher, &event, 0, counter_answer, &answers,
                                               NULL)) == IE_ELIMIT)
            (void)poll(NULL, 0, 1);
        ck_assert_int_eq(status, IE_OK);
        if (i == N / 2) { /* its queue is full by now: it has stopped reading */
            before = bus_stats(server).bytes_in;
            ck_assert(poll_until(has_heard_pings, &before, WAIT_MS));
            ck_assert_uint_eq(bus_stats(server).timed_out, 0);
            atomic_store(&group.is_blocked, false);
        }
    }
    ck_assert(wait_for(&answers.answered, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&group.handled), N); /* nothing twice: it was never lost */
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(a_full_queue_stops_the_reading_and_nothing_is_lost)
{
    enum { N = 400, SIZE = 65536 }; /* 25 MiB: more than the queue and the sockets hold */
    static char           data[SIZE];
    ie_bus_server_options options;
    ie_bus_client        *publisher;
    ie_bus_client        *subscriber;
    counter               live = {.is_blocked = true};
    ie_event              event = IE_EVENT_INIT;

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = UINT64_C(64) << 20;
    server = bus_start(&options);
    publisher = client_of(IE_BUS_DISPATCH_INLINE);
    subscriber = client_of(IE_BUS_DISPATCH_THREAD);
    (void)subscribe_now(subscriber, "big", NULL, 0, &live);
    event.topic = "big";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = SIZE;
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, NULL), IE_OK);
    ck_assert(poll_until(has_stopped_growing, NULL, WAIT_MS)); /* the bus holds it, not we */
    atomic_store(&live.is_blocked, false);
    ck_assert(wait_for(&live.handled, N));
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

typedef struct flooded {
    ie_bus_client *client;
    atomic_ulong   handled;
    atomic_ulong   answered;
    atomic_bool    may_ask;
} flooded;

static ie_status
wait_then_ask(void *user, const ie_event *event)
{
    flooded *self = user;
    ie_event question = IE_EVENT_INIT;

    (void)event;
    if (atomic_fetch_add(&self->handled, 1) != 0)
        return IE_OK;
    while (!atomic_load(&self->may_ask))
        (void)poll(NULL, 0, 1);
    question.topic = "elsewhere";
    if (ie_bus_client_publish_wait(self->client, &question, 0, WAIT_MS, NULL) == IE_OK)
        (void)atomic_fetch_add(&self->answered, 1);
    return IE_OK;
}

START_TEST(an_answer_passes_a_full_queue)
{
    enum { N = 400, SIZE = 65536 };
    static char           data[SIZE];
    ie_bus_server_options options;
    ie_bus_client        *publisher;
    flooded               self = {0};
    ie_event              event = IE_EVENT_INIT;

    ie_bus_server_close(server);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.out_bytes_max = UINT64_C(64) << 20;
    server = bus_start(&options);
    publisher = client_of(IE_BUS_DISPATCH_INLINE);
    self.client = client_of(IE_BUS_DISPATCH_THREAD);
    ck_assert_int_eq(
        ie_bus_client_subscribe(self.client, "big", NULL, 0, wait_then_ask, &self, NULL, NULL),
        IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(self.client, WAIT_MS, NULL), IE_OK);
    event.topic = "big";
    event.content_type = "text/plain";
    event.data = data;
    event.data_bytes = SIZE;
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, NULL), IE_OK);
    ck_assert(poll_until(has_stopped_growing, NULL, WAIT_MS));
    atomic_store(&self.may_ask, true); /* its answer is behind 25 MiB of events */
    ck_assert(wait_for(&self.answered, 1));
    ck_assert(wait_for(&self.handled, N));
    ie_bus_client_close(publisher);
    ie_bus_client_close(self.client);
}
END_TEST

/* ---- ending --------------------------------------------------------------------------------- */

typedef struct ending {
    ie_bus_client *client;
    atomic_uint    id;
    atomic_ulong   handled;
    atomic_bool    is_inside;
    atomic_bool    may_return;
    atomic_bool    has_returned; /* from unsubscribe */
    atomic_bool    was_called_after;
} ending;

static ie_status
stay(void *user, const ie_event *event)
{
    ending *self = user;

    (void)event;
    if (atomic_load(&self->has_returned))
        atomic_store(&self->was_called_after, true);
    (void)atomic_fetch_add(&self->handled, 1);
    atomic_store(&self->is_inside, true);
    while (!atomic_load(&self->may_return))
        (void)poll(NULL, 0, 1);
    if (atomic_load(&self->has_returned))
        atomic_store(&self->was_called_after, true);
    return IE_OK;
}

static void *
unsubscribe_then_tell(void *arg)
{
    ending *self = arg;

    ck_assert_int_eq(ie_bus_client_unsubscribe(self->client, atomic_load(&self->id), NULL), IE_OK);
    atomic_store(&self->has_returned, true);
    return NULL;
}

static bool
is_set(void *arg)
{
    return atomic_load((atomic_bool *)arg);
}

START_TEST(after_unsubscribe_no_handler_runs)
{
    ie_bus_client *publisher = client_of(IE_BUS_DISPATCH_INLINE);
    ending         self = {.client = client_of(MODES[_i])};
    caller         calls = {0};
    counter        last = {0};
    pthread_t      thread;
    uint32_t       id = 0;

    caller_start(&calls, self.client, MODES[_i]);
    ck_assert_int_eq(ie_bus_client_subscribe(self.client, "t", NULL, 0, stay, &self, &id, NULL),
                     IE_OK);
    atomic_store(&self.id, id);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(self.client, WAIT_MS, NULL), IE_OK);
    for (long i = 1; i <= 100; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, NULL), IE_OK);
    ck_assert(poll_until(is_set, &self.is_inside, WAIT_MS));
    ck_assert_int_eq(pthread_create(&thread, NULL, unsubscribe_then_tell, &self), 0);
    ck_assert(!atomic_load(&self.has_returned)); /* nor later: the handler would notice */
    atomic_store(&self.may_return, true);
    (void)pthread_join(thread, NULL);
    ck_assert(!atomic_load(&self.was_called_after));
    (void)subscribe_now(self.client, "t", NULL, 0, &last); /* the client goes on */
    ck_assert_int_eq(publish_number(publisher, "t", 101, 0, NULL), IE_OK);
    ck_assert(wait_for(&last.handled, 1));
    ck_assert(!atomic_load(&self.was_called_after));
    ck_assert_int_eq(ie_bus_client_unsubscribe(self.client, id, NULL), IE_ENOTFOUND);
    caller_stop(&calls);
    ie_bus_client_close(publisher);
    ie_bus_client_close(self.client);
}
END_TEST

static ie_status
leave_inside(void *user, const ie_event *event)
{
    ending *self = user;

    (void)event;
    (void)ie_bus_client_unsubscribe(self->client, atomic_load(&self->id), NULL);
    ie_bus_client_close(self->client); /* does nothing here, but must not hang */
    (void)atomic_fetch_add(&self->handled, 1);
    return IE_OK;
}

START_TEST(a_handler_may_end_its_own_subscription)
{
    ie_bus_client *publisher = client_of(IE_BUS_DISPATCH_INLINE);
    ending         self = {.client = client_of(MODES[_i])};
    caller         calls = {0};
    counter        last = {0};
    uint32_t       id = 0;

    caller_start(&calls, self.client, MODES[_i]);
    ck_assert_int_eq(
        ie_bus_client_subscribe(self.client, "t", NULL, 0, leave_inside, &self, &id, NULL), IE_OK);
    atomic_store(&self.id, id);
    (void)subscribe_now(self.client, "last", NULL, 0, &last);
    for (long i = 1; i <= 100; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, NULL), IE_OK);
    ck_assert_int_eq(publish_number(publisher, "last", 1, 0, NULL), IE_OK);
    ck_assert(wait_for(&last.handled, 1));
    ck_assert_uint_eq(atomic_load(&self.handled), 1);
    caller_stop(&calls);
    ie_bus_client_close(publisher);
    ie_bus_client_close(self.client);
}
END_TEST

START_TEST(what_a_handler_did_before_the_close_counts)
{
    ie_bus_client *publisher = client_of(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *subscriber = client_of(IE_BUS_DISPATCH_THREAD);
    counter        group = {0};
    counter        answers = {0};

    (void)subscribe_now(subscriber, "t", "g", 0, &group);
    for (long i = 1; i <= 100; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&group.handled, 100));
    ie_bus_client_close(subscriber);
    ck_assert(wait_for(&answers.answered, 100));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ie_bus_client_close(publisher);
}
END_TEST

/* ---- caller --------------------------------------------------------------------------------- */

static bool
is_fd_readable(void *arg)
{
    return is_readable(ie_bus_client_fd(arg));
}

START_TEST(the_descriptor_is_readable_while_something_waits)
{
    ie_bus_client *publisher = client_of(IE_BUS_DISPATCH_INLINE);
    ie_bus_client *client = client_of(IE_BUS_DISPATCH_CALLER);
    counter        live = {0};
    size_t         ran = 0;

    ck_assert_int_eq(ie_bus_client_fd(publisher), -1);
    ck_assert_int_ge(ie_bus_client_fd(client), 0);
    (void)subscribe_now(client, "t", NULL, 0, &live);
    ck_assert(!is_readable(ie_bus_client_fd(client)));
    ck_assert_uint_eq(ie_bus_client_dispatch(client, 0, 0), 0);
    ck_assert_uint_eq(ie_bus_client_dispatch(client, 0, 10), 0);
    for (long i = 1; i <= 5; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, NULL), IE_OK);
    ck_assert(poll_until(is_fd_readable, client, WAIT_MS));
    ck_assert_uint_eq(atomic_load(&live.handled), 0); /* nobody called */
    while (ran < 5) {
        const size_t now = ie_bus_client_dispatch(client, 2, WAIT_MS);

        ck_assert_uint_ge(now, 1);
        ck_assert_uint_le(now, 2);
        ran += now;
        ck_assert_uint_eq(atomic_load(&live.handled), ran);
        if (ran < 5)
            ck_assert(poll_until(is_fd_readable, client, WAIT_MS));
    }
    ck_assert(!is_readable(ie_bus_client_fd(client)));
    ck_assert_uint_eq(atomic_load(&live.out_of_order), 0);
    ie_bus_client_close(publisher);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(events_can_be_pulled_one_by_one)
{
    enum { N = 3000 };
    ie_bus_client      *publisher = client_of(IE_BUS_DISPATCH_INLINE);
    ie_bus_client      *client = client_of(IE_BUS_DISPATCH_CALLER);
    ie_bus_subscription to;
    ie_bus_delivery     delivery;
    const ie_event     *event = NULL;
    ie_error            err = IE_ERROR_INIT;
    counter             answers = {0};
    uint32_t            live = 0;
    uint32_t            group = 0;
    int                 of_group = 0;

    IE_BUS_SUBSCRIPTION_INIT(&to);
    to.pattern = "t";
    ck_assert_int_eq(ie_bus_client_subscribe_with(client, &to, &live, NULL), IE_OK);
    to.group = "g";
    ck_assert_int_eq(ie_bus_client_subscribe_with(client, &to, &group, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_next(client, &event, &delivery, 0, &err), IE_ETIMEDOUT);
    ck_assert_int_eq(ie_bus_client_next(publisher, &event, &delivery, 0, NULL), IE_ESTATE);
    for (long i = 1; i <= N; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    for (int i = 0; i < 2 * N; i++) {
        ck_assert_int_eq(ie_bus_client_next(client, &event, &delivery, WAIT_MS, NULL), IE_OK);
        ck_assert_str_eq(event->topic, "t");
        ck_assert_uint_gt(event->data_bytes, 0);
        if (delivery.subscription == live) {
            ck_assert_uint_eq(delivery.token, 0);
            continue;
        }
        ck_assert_uint_eq(delivery.subscription, group);
        of_group++;
        ck_assert_int_eq(ie_bus_client_ack(client, delivery.token), IE_OK);
        ck_assert_int_eq(ie_bus_client_ack(client, delivery.token), IE_ENOTFOUND);
    }
    ck_assert_int_eq(of_group, N);
    ck_assert(wait_for(&answers.answered, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_int_eq(ie_bus_client_next(client, &event, NULL, 10, NULL), IE_ETIMEDOUT);
    ie_bus_client_close(publisher);
    ie_bus_client_close(client);
}
END_TEST

typedef struct puller {
    ie_bus_client *client;
    atomic_int     status;
    atomic_bool    is_inside;
} puller;

static void *
pull(void *arg)
{
    puller         *self = arg;
    const ie_event *event = NULL;

    atomic_store(&self->is_inside, true);
    atomic_store(&self->status, ie_bus_client_next(self->client, &event, NULL, WAIT_MS * 10, NULL));
    return NULL;
}

static bool
has_reader(void *arg)
{
    puller *self = arg;

    return atomic_load(&self->is_inside);
}

START_TEST(a_close_ends_the_waiting)
{
    puller    self = {.client = client_of(IE_BUS_DISPATCH_CALLER), .status = IE_EIO};
    pthread_t thread;

    ck_assert_int_eq(pthread_create(&thread, NULL, pull, &self), 0);
    ck_assert(poll_until(has_reader, &self, WAIT_MS));
    ie_bus_client_close(self.client);
    (void)pthread_join(thread, NULL);
    ck_assert_int_eq(atomic_load(&self.status), IE_ECLOSED);
}
END_TEST

int
main(void)
{
    Suite   *s = suite_create("dispatch");
    TCase   *thread = tcase_create("thread");
    TCase   *end = tcase_create("end");
    TCase   *calls = tcase_create("caller");
    SRunner *runner;
    int      failed;

    tcase_set_timeout(thread, 120);
    tcase_set_timeout(end, 120);
    tcase_set_timeout(calls, 120);
    tcase_add_checked_fixture(thread, set_up, tear_down);
    tcase_add_checked_fixture(end, set_up, tear_down);
    tcase_add_checked_fixture(calls, set_up, tear_down);
    tcase_add_test(thread, a_handler_may_wait_for_an_answer);
    tcase_add_test(thread, heartbeats_go_on_while_a_handler_blocks);
    tcase_add_loop_test(thread, every_mode_keeps_order_and_loses_nothing, 0, 3);
    tcase_add_loop_test(thread, every_mode_gathers_its_answers, 0, 3);
    tcase_add_test(thread, who_does_not_read_still_says_that_it_is_there);
    tcase_add_test(thread, a_full_queue_stops_the_reading_and_nothing_is_lost);
    tcase_add_test(thread, an_answer_passes_a_full_queue);
    tcase_add_loop_test(end, after_unsubscribe_no_handler_runs, 0, 3);
    tcase_add_loop_test(end, a_handler_may_end_its_own_subscription, 0, 3);
    tcase_add_test(end, what_a_handler_did_before_the_close_counts);
    tcase_add_test(calls, the_descriptor_is_readable_while_something_waits);
    tcase_add_test(calls, events_can_be_pulled_one_by_one);
    tcase_add_test(calls, a_close_ends_the_waiting);
    suite_add_tcase(s, thread);
    suite_add_tcase(s, end);
    suite_add_tcase(s, calls);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
