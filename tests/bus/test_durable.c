/* Durable topics through the server: raw frames, real files, restarts. */
#include <check.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bus_support.h"
#include "core.h"
#include "durable.h"
#include "fault_vfs.h"

#define P   IE_BUS_PUBLISH_PERSISTENT
#define RQ  IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER
#define EPH IE_BUS_SUBSCRIBE_EPHEMERAL

static ie_bus_server_options options;
static ie_bus_server        *server;

static void
up(void)
{
    server = bus_start(&options);
}

static void
down(void)
{
    (void)ie_bus_server_stop(server, 0);
    ie_bus_server_close(server);
    server = NULL;
}

static void
setup(void)
{
    (void)test_dir_make();
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_dir = test_path("data");
    options.retry_delay_ms = 20;
    options.retry_delay_ms_max = 40;
}

static void
teardown(void)
{
    test_dir_remove();
}

/* ---- publishing ---- */

typedef struct publish {
    const char *topic;
    const char *id; /* NULL: none */
    const char *key;
    const char *data;
    size_t      data_bytes; /* 0: strlen(data) */
} publish;

static void
put(int fd, uint32_t request, uint32_t flags, publish what)
{
    ie_event       event = IE_EVENT_INIT;
    unsigned char *body;

    event.topic = what.topic;
    event.id = what.id;
    event.key = what.key;
    event.source = what.id != NULL ? "/test" : NULL;
    event.data = what.data;
    event.data_bytes =
        what.data_bytes != 0 || what.data == NULL ? what.data_bytes : strlen(what.data);
    body = malloc(4 + ie__record_size(&event));
    ck_assert_ptr_nonnull(body);
    ie__put32(body, flags);
    raw_frame(fd, IE__PUBLISH, request, body, (size_t)(ie__record_put(body + 4, &event) - body));
    free(body);
}

/* Wait until publishes up to this one are answered; receivers of the last run. */
static uint32_t
acked(int fd, uint32_t last)
{
    for (;;) {
        const ie__frame frame = raw_expect(fd, IE__PUBACK);

        for (size_t at = 0; at < frame.body_bytes; at += 12) {
            const uint32_t first = ie__get32(frame.body + at);
            const uint32_t count = ie__get32(frame.body + at + 4);

            if (first + count - 1 >= last)
                return ie__get32(frame.body + at + 8);
        }
    }
}

static uint32_t next_request;

/* Publish events whose data are from..to, and wait until they are stored. */
static void
put_numbers(int fd, const char *topic, int from, int to)
{
    for (int i = from; i <= to; i++) {
        char text[32];

        (void)snprintf(text, sizeof text, "%d", i);
        put(fd, ++next_request, P, (publish){.topic = topic, .data = text});
        if (i == to || i % 1000 == 0)
            ck_assert_uint_ne(acked(fd, next_request) & IE__PUBACK_STORED, 0);
    }
}

/* ---- subscribing ---- */

typedef struct subscription {
    const char *group;
    uint32_t    flags;
    uint32_t    credit;
    uint32_t    selection;
    uint32_t    start;
    int64_t     start_at;
    uint32_t    ack_timeout_ms;
    uint32_t    attempts;
} subscription;

static void
ask(int fd, uint32_t id, const char *pattern, subscription what)
{
    ie_buffer   buffer = {NULL, 0, 0};
    ie__builder b;

    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, id);
    ie__build_text(&b, IE__F_PATTERN, pattern);
    if (what.group != NULL)
        ie__build_text(&b, IE__F_GROUP, what.group);
    ie__build_u32(&b, IE__F_FLAGS, what.flags);
    ie__build_u32(&b, IE__F_CREDIT, what.credit);
    if (what.selection != 0)
        ie__build_u32(&b, IE__F_SELECTION, what.selection);
    if (what.start != 0)
        ie__build_u32(&b, IE__F_START, what.start);
    if (what.start_at != 0)
        ie__build_i64(&b, IE__F_START_AT, what.start_at);
    if (what.ack_timeout_ms != 0)
        ie__build_u32(&b, IE__F_ACK_TIMEOUT, what.ack_timeout_ms);
    if (what.attempts != 0)
        ie__build_u32(&b, IE__F_ATTEMPTS, what.attempts);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
}

/* Where the group stands. */
static int64_t
join(int fd, uint32_t id, const char *pattern, subscription what)
{
    int64_t              position = -1;
    ie__frame            frame;
    const unsigned char *at;
    ie__field            field;

    ask(fd, id, pattern, what);
    frame = raw_expect(fd, IE__SUBSCRIBED);
    ck_assert_uint_eq(frame.number, id);
    at = frame.body;
    while (ie__field_next(&field, &at, frame.body + frame.body_bytes) == IE_OK)
        if (field.tag == IE__F_POSITION)
            ck_assert_int_eq(ie__field_i64(&position, &field), IE_OK);
    return position;
}

typedef struct delivery {
    uint32_t number;
    uint32_t attempt;
    int64_t  position;
    char     topic[64];
    char     key[64];
    char     id[64];
    char     data[64];
} delivery;

static void
copy_span(char *out, size_t size, const ie__span *span)
{
    (void)snprintf(out, size, "%.*s", (int)span->size,
                   span->bytes != NULL ? (char *)span->bytes : "");
}

static delivery
take_frame(const ie__frame *frame)
{
    static ie__record record;
    delivery          d = {.number = ie__get32(frame->body)};

    ck_assert_uint_gt(frame->body_bytes, 16);
    d.attempt = ie__get32(frame->body + 4);
    d.position = (int64_t)ie__get64(frame->body + 8);
    ck_assert_int_eq(ie__record_parse(&record, frame->body + 16, frame->body_bytes - 16,
                                      IE_DATA_BYTES_MAX, NULL),
                     IE_OK);
    copy_span(d.topic, sizeof d.topic, &record.topic);
    copy_span(d.key, sizeof d.key, &record.texts[IE__E_KEY]);
    copy_span(d.id, sizeof d.id, &record.texts[IE__E_ID]);
    copy_span(d.data, sizeof d.data, &record.data);
    return d;
}

static delivery
take(int fd)
{
    const ie__frame frame = raw_expect(fd, IE__DELIVER_LOG);

    return take_frame(&frame);
}

static void
ack(int fd, uint32_t number)
{
    unsigned char body[8];

    ie__put32(body, number);
    ie__put32(body + 4, 1);
    raw_frame(fd, IE__ACK, 0, body, sizeof body);
}

static void
nack(int fd, uint32_t number, uint32_t code)
{
    unsigned char body[6] = {0, 0, 'b', 'a', 'd', '!'};

    ie__put16(body, code);
    raw_frame(fd, IE__NACK, number, body, sizeof body);
}

static void
nack_later(int fd, uint32_t number, uint32_t delay_ms)
{
    unsigned char body[10] = {0, 0, 0, 0, 0, 0, 'b', 'u', 's', 'y'};

    ie__put32(body, delay_ms);
    ie__put16(body + 4, IE_BUS_CODE_HANDLER);
    raw_frame(fd, IE__NACK_LATER, number, body, sizeof body);
}

/* Nothing is there to be read: a PING is answered next. */
static void
expect_quiet(int fd)
{
    static uint32_t ping;

    raw_frame(fd, IE__PING, ++ping, NULL, 0);
    ck_assert_uint_eq(raw_expect(fd, IE__PONG).number, ping);
}

/* Take and acknowledge events whose data are from..to, in this order. */
static void
take_numbers(int fd, int from, int to)
{
    for (int i = from; i <= to; i++) {
        const delivery d = take(fd);

        ck_assert_int_eq(atoi(d.data), i);
        ack(fd, d.number);
    }
}

/* ---- looking ---- */

/* The counters are shown at the end of a turn, which may be after the answer. */
static bool
has_duplicates(void *arg)
{
    return bus_stats(server).duplicates == *(uint64_t *)arg;
}

static bool
has_dead(void *arg)
{
    return bus_stats(server).dead == *(uint64_t *)arg;
}

/* ---- tests ---- */

START_TEST(a_stored_publish_is_answered_when_it_is_in_the_log)
{
    int                 fd;
    ie_bus_server_stats stats;
    uint64_t            one = 1;

    up();
    fd = raw_open(server);
    put(fd, 1, P, (publish){.topic = "t", .id = "a", .data = "1"});
    ck_assert_uint_eq(acked(fd, 1), IE__PUBACK_STORED);
    put(fd, 2, P | RQ, (publish){.topic = "t", .id = "b", .data = "2"}); /* storage is enough */
    ck_assert_uint_eq(acked(fd, 2), IE__PUBACK_STORED);
    put(fd, 3, 0, (publish){.topic = "t", .id = "c", .data = "3"}); /* ephemeral */
    ck_assert_uint_eq(acked(fd, 3), 0);
    put(fd, 4, RQ, (publish){.topic = "t", .id = "d", .data = "4"});
    raw_expect_reason(fd, IE__PUBNACK, 4, IE_BUS_CODE_NO_SUBSCRIBERS);
    put(fd, 5, P, (publish){.topic = "t", .id = "a", .data = "1"}); /* again */
    ck_assert_uint_eq(acked(fd, 5), IE__PUBACK_STORED);
    ck_assert(poll_until(has_duplicates, &one, WAIT_MS));
    stats = bus_stats(server);
    ck_assert_uint_eq(stats.stored, 2);
    ck_assert_uint_eq(stats.log_last, 2);
    ck_assert_uint_eq(stats.log_first, 1);
    (void)close(fd);
    down();
}
END_TEST

START_TEST(topics_can_be_forced_either_way)
{
    static const char *const DURABLE[] = {"order.>", "both"};
    static const char *const EPHEMERAL[] = {"tick.*", "both"};
    int                      fd;

    options.durable_topics = DURABLE;
    options.durable_topic_count = 2;
    options.ephemeral_topics = EPHEMERAL;
    options.ephemeral_topic_count = 2;
    up();
    fd = raw_open(server);
    put(fd, 1, 0, (publish){.topic = "order.placed", .data = "1"});
    ck_assert_uint_eq(acked(fd, 1), IE__PUBACK_STORED);
    put(fd, 2, P, (publish){.topic = "tick.a", .data = "1"});
    ck_assert_uint_eq(acked(fd, 2), 0);
    put(fd, 3, P, (publish){.topic = "both", .data = "1"});
    ck_assert_uint_eq(acked(fd, 3), 0);
    put(fd, 4, 0, (publish){.topic = "other", .data = "1"});
    ck_assert_uint_eq(acked(fd, 4), 0);
    (void)close(fd);
    down();
}
END_TEST

START_TEST(welcome_tells_that_there_is_a_log)
{
    for (int with = 0; with < 2; with++) {
        unsigned char        greeting[IE__GREETING_BYTES];
        uint32_t             capabilities = 0;
        ie__frame            frame;
        const unsigned char *at;
        ie__field            field;
        int                  fd;

        if (with == 0)
            options.data_dir = NULL;
        else
            options.data_dir = test_path("data");
        up();
        fd = raw_connect(server);
        ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
        raw_send(fd, greeting, sizeof greeting);
        raw_frame(fd, IE__HELLO, 0, NULL, 0);
        ck_assert(raw_receive(fd, greeting, sizeof greeting));
        frame = raw_expect(fd, IE__WELCOME);
        at = frame.body;
        while (ie__field_next(&field, &at, frame.body + frame.body_bytes) == IE_OK)
            if (field.tag == IE__F_CAPABILITIES)
                ck_assert_int_eq(ie__field_u32(&capabilities, &field), IE_OK);
        ck_assert_uint_eq(capabilities & IE__CAP_STORAGE, with ? IE__CAP_STORAGE : 0);
        (void)close(fd);
        down();
    }
}
END_TEST

START_TEST(live_subscribers_get_what_is_stored_too)
{
    int       publisher, live, worker;
    ie__frame frame;

    up();
    publisher = raw_open(server);
    live = raw_open(server);
    worker = raw_open(server);
    ask(live, 1, "t", (subscription){.group = NULL});
    (void)raw_expect(live, IE__SUBSCRIBED);
    ask(worker, 1, "t", (subscription){.group = "now", .flags = EPH, .credit = 10});
    (void)raw_expect(worker, IE__SUBSCRIBED);
    put(publisher, 1, P, (publish){.topic = "t", .data = "1"});
    /* the group's answer is not waited for */
    ck_assert_uint_eq(acked(publisher, 1), IE__PUBACK_STORED | 2);
    frame = raw_expect(live, IE__DELIVER);
    ck_assert_uint_eq(frame.number, 1);
    (void)raw_expect(worker, IE__DELIVER_ACK);
    nack(worker, 1, IE_BUS_CODE_HANDLER);
    expect_quiet(worker);
    expect_quiet(publisher);
    (void)close(publisher);
    (void)close(live);
    (void)close(worker);
    down();
}
END_TEST

/* Everybody sees the same event: what a record lacks is filled in once. */
START_TEST(a_record_without_id_gets_one_for_all)
{
    static ie__record record;
    int               publisher, live, worker;
    ie__frame         frame;
    char              id[64];
    delivery          first, again;

    up();
    publisher = raw_open(server);
    live = raw_open(server);
    worker = raw_open(server);
    ask(live, 1, "t", (subscription){.group = NULL});
    (void)raw_expect(live, IE__SUBSCRIBED);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    put(publisher, 1, P, (publish){.topic = "t", .data = "1"});
    (void)acked(publisher, 1);
    frame = raw_expect(live, IE__DELIVER);
    ck_assert_int_eq(
        ie__record_parse(&record, frame.body + 4, frame.body_bytes - 4, IE_DATA_BYTES_MAX, NULL),
        IE_OK);
    copy_span(id, sizeof id, &record.texts[IE__E_ID]);
    ck_assert_uint_eq(strlen(id), 36);
    first = take(worker);
    ck_assert_str_eq(first.id, id);
    nack(worker, first.number, IE_BUS_CODE_HANDLER);
    again = take(worker); /* this time from the log */
    ck_assert_str_eq(again.id, id);
    ck_assert_uint_eq(again.attempt, 2);
    (void)close(publisher);
    (void)close(live);
    (void)close(worker);
    down();
}
END_TEST

START_TEST(a_group_gets_what_came_while_it_was_away)
{
    int     publisher, worker;
    int64_t position;

    up();
    publisher = raw_open(server);
    put_numbers(publisher, "t.a", 1, 5);
    worker = raw_open(server);
    position = join(worker, 1, "t.*", (subscription){.group = "g", .credit = 100});
    ck_assert_int_eq(position, 5); /* a new group begins at the end */
    put_numbers(publisher, "t.a", 6, 8);
    put_numbers(publisher, "other", 100, 101);
    take_numbers(worker, 6, 8);
    (void)close(worker);
    put_numbers(publisher, "t.b", 9, 700); /* more than a window */
    put_numbers(publisher, "other", 102, 103);
    put_numbers(publisher, "t.b", 701, 705);
    worker = raw_open(server);
    (void)join(worker, 1, "t.*", (subscription){.group = "g", .credit = 100});
    take_numbers(worker, 9, 705);
    put_numbers(publisher, "t.c", 706, 710);
    take_numbers(worker, 706, 710);
    expect_quiet(worker);
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

START_TEST(a_restart_keeps_groups_and_their_place)
{
    int publisher, worker;

    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 2, .attempts = 5});
    put_numbers(publisher, "t", 1, 10);
    take_numbers(worker, 1, 4);
    (void)take(worker); /* 5 and 6 are out, unanswered */
    (void)take(worker);
    down();
    (void)close(worker);
    (void)close(publisher);
    up();
    worker = raw_open(server);
    ck_assert_uint_eq(bus_stats(server).groups, 1);
    ask(worker, 1, "t", (subscription){.group = "g", .attempts = 6});
    raw_expect_reason(worker, IE__SUBREFUSED, 1, IE_BUS_CODE_CONFLICT);
    (void)join(worker, 2, "t", (subscription){.group = "g", .credit = 100, .attempts = 5});
    {
        bool seen[11] = {false};
        int  count = 0;

        while (count < 6) {
            const delivery d = take(worker);
            const int      n = atoi(d.data);

            ck_assert_int_ge(n, 5);
            ck_assert_int_le(n, 10);
            ck_assert(!seen[n]);
            seen[n] = true;
            ck_assert_uint_eq(d.attempt, n <= 6 ? 2 : 1);
            ack(worker, d.number);
            count++;
        }
    }
    expect_quiet(worker);
    (void)close(worker);
    down();
}
END_TEST

START_TEST(failures_are_tried_again_then_dead)
{
    uint64_t two = 2;
    int      publisher, worker;
    delivery d;

    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10, .attempts = 3});
    put_numbers(publisher, "t", 1, 1);
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        d = take(worker);
        ck_assert_uint_eq(d.attempt, attempt);
        nack(worker, d.number, IE_BUS_CODE_HANDLER);
        if (attempt == 1) { /* the number of attempts survives */
            expect_quiet(worker);
            down();
            (void)close(worker);
            (void)close(publisher);
            up();
            publisher = raw_open(server);
            worker = raw_open(server);
            (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
        }
    }
    put_numbers(publisher, "t", 2, 3);
    d = take(worker);
    ck_assert_str_eq(d.data, "2");
    nack(worker, d.number, IE_BUS_CODE_REJECTED); /* at once */
    take_numbers(worker, 3, 3);
    expect_quiet(worker);
    ck_assert(poll_until(has_dead, &two, WAIT_MS));
    down();
    (void)close(worker);
    (void)close(publisher);
    up();
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    expect_quiet(worker);
    ck_assert(poll_until(has_dead, &two, WAIT_MS));
    (void)close(worker);
    down();
}
END_TEST

START_TEST(a_delay_is_kept)
{
    int      publisher, worker;
    delivery d;
    int64_t  started;

    options.retry_delay_ms = 3600000; /* the handler's own delay counts, not the bus's */
    options.retry_delay_ms_max = 3600000;
    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    put_numbers(publisher, "t", 1, 2);
    d = take(worker);
    started = ie__mono_ns();
    nack_later(worker, d.number, 300);
    take_numbers(worker, 2, 2); /* others go on */
    d = take(worker);
    ck_assert_str_eq(d.data, "1");
    ck_assert_uint_eq(d.attempt, 2);
    ck_assert_int_ge(ie__mono_ns() - started, 290 * INT64_C(1000000));
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

START_TEST(what_is_unavailable_spends_no_attempt)
{
    int publisher, worker;

    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 1, .attempts = 2});
    put_numbers(publisher, "t", 1, 2);
    for (int i = 0; i < 5; i++) {
        const delivery d = take(worker);

        ck_assert_str_eq(d.data, "1");
        ck_assert_uint_eq(d.attempt, 1);
        nack(worker, d.number, IE_BUS_CODE_UNAVAILABLE);
    }
    take_numbers(worker, 1, 2);
    ck_assert_uint_eq(bus_stats(server).dead, 0);
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

START_TEST(who_does_not_answer_loses_the_event_to_another)
{
    int      publisher, mute, worker;
    delivery d, again;

    options.ack_timeout_ms = 200;
    up();
    publisher = raw_open(server);
    mute = raw_open(server);
    worker = raw_open(server);
    (void)join(mute, 1, "t", (subscription){.group = "g", .credit = 1});
    put_numbers(publisher, "t", 1, 1);
    d = take(mute);
    ck_assert_uint_eq(d.attempt, 1);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 1});
    again = take(worker);
    ck_assert_int_eq(again.position, d.position);
    ck_assert_uint_eq(again.attempt, 2);
    ack(worker, again.number);
    expect_quiet(worker);
    (void)close(mute);
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

START_TEST(a_member_that_dies_hands_over)
{
    int      publisher, first, second;
    delivery d;

    up();
    publisher = raw_open(server);
    first = raw_open(server);
    second = raw_open(server);
    (void)join(first, 1, "t", (subscription){.group = "g", .credit = 100});
    put_numbers(publisher, "t", 1, 50);
    d = take(first);
    ck_assert_str_eq(d.data, "1");
    (void)join(second, 1, "t", (subscription){.group = "g", .credit = 100});
    (void)close(first);
    for (int i = 1; i <= 50; i++) {
        d = take(second);
        ck_assert_int_eq(atoi(d.data), i);
        ck_assert_uint_eq(d.attempt, 2);
        ack(second, d.number);
    }
    expect_quiet(second);
    (void)close(second);
    (void)close(publisher);
    down();
}
END_TEST

/* One key's failing event holds its key back, through a restart too; others go on. */
START_TEST(sticky_groups_keep_the_order_of_a_key)
{
    static const struct {
        const char *key;
        const char *data;
    } EVENTS[] = {{"a", "a1"}, {"b", "b1"}, {"a", "a2"}, {"a", "a3"}, {"b", "b2"}};
    int         publisher, worker;
    const char *next_a = "a1";
    const char *next_b = "b1";
    int         failures = 0;

    options.retry_delay_ms = 200;
    options.retry_delay_ms_max = 200;
    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t",
               (subscription){.group = "g", .credit = 100, .selection = IE_BUS_STICKY});
    for (size_t i = 0; i < 5; i++)
        put(publisher, (uint32_t)i + 1, P,
            (publish){.topic = "t", .key = EVENTS[i].key, .data = EVENTS[i].data});
    (void)acked(publisher, 5);
    while (next_a != NULL || next_b != NULL) {
        const delivery d = take(worker);

        if (d.key[0] == 'b') {
            ck_assert_str_eq(d.data, next_b);
            next_b = strcmp(next_b, "b1") == 0 ? "b2" : NULL;
            ack(worker, d.number);
            continue;
        }
        ck_assert_str_eq(d.data, next_a);
        if (failures < 2) {
            ck_assert_uint_eq(d.attempt, (uint32_t)failures + 1);
            failures++;
            nack(worker, d.number, IE_BUS_CODE_HANDLER);
            put(publisher, 5 + (uint32_t)failures, P, /* later ones wait behind it */
                (publish){.topic = "t", .key = "a", .data = failures == 1 ? "a4" : "a5"});
            (void)acked(publisher, 5 + (uint32_t)failures);
            if (failures == 2) {
                expect_quiet(worker);
                down();
                (void)close(worker);
                (void)close(publisher);
                up();
                publisher = raw_open(server);
                worker = raw_open(server);
                (void)join(worker, 1, "t",
                           (subscription){.group = "g", .credit = 100, .selection = IE_BUS_STICKY});
            }
            continue;
        }
        ack(worker, d.number);
        next_a = strcmp(next_a, "a1") == 0   ? "a2"
                 : strcmp(next_a, "a2") == 0 ? "a3"
                 : strcmp(next_a, "a3") == 0 ? "a4"
                 : strcmp(next_a, "a4") == 0 ? "a5"
                                             : NULL;
    }
    expect_quiet(worker);
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

START_TEST(groups_have_a_limit)
{
    int fd;

    options.groups_max = 2;
    up();
    fd = raw_open(server);
    (void)join(fd, 1, "t", (subscription){.group = "a"});
    (void)join(fd, 2, "t", (subscription){.group = "b"});
    ask(fd, 3, "t", (subscription){.group = "c"});
    raw_expect_reason(fd, IE__SUBREFUSED, 3, IE_BUS_CODE_LIMIT);
    (void)join(fd, 4, "t", (subscription){.group = "a"}); /* it is there already */
    ask(fd, 5, "t", (subscription){.group = "a", .flags = EPH});
    raw_expect_reason(fd, IE__SUBREFUSED, 5, IE_BUS_CODE_CONFLICT);
    ask(fd, 6, "t", (subscription){.group = "a", .selection = IE_BUS_STICKY});
    raw_expect_reason(fd, IE__SUBREFUSED, 6, IE_BUS_CODE_CONFLICT);
    ask(fd, 7, "u", (subscription){.group = "d", .selection = IE_BUS_BROADCAST});
    raw_expect_reason(fd, IE__SUBREFUSED, 7, IE_BUS_CODE_UNSUPPORTED);
    ask(fd, 8, "u", (subscription){.group = "e", .flags = EPH});
    (void)raw_expect(fd, IE__SUBSCRIBED); /* an ephemeral one is not counted */
    (void)close(fd);
    down();
}
END_TEST

START_TEST(publishes_in_flight_count_what_is_being_stored)
{
    int      fd;
    uint32_t refused = 0;
    uint32_t stored = 0;

    fault_vfs_register();
    options.publishes_in_flight_max = 4;
    up();
    fd = raw_open(server);
    {
        /* In one write, so that the bus reads them before the first can be in the log. */
        ie_buffer all = {NULL, 0, 0};

        for (uint32_t i = 1; i <= 5; i++) {
            ie_event      event = IE_EVENT_INIT;
            unsigned char frame[512];
            size_t        size;

            event.topic = "t";
            ie__put32(frame + IE__PREFIX_BYTES, P);
            size = (size_t)(ie__record_put(frame + IE__PREFIX_BYTES + 4, &event) - frame);
            ie__frame_prefix(frame, IE__PUBLISH, i, size - IE__PREFIX_BYTES);
            ck_assert_int_eq(ie__buffer_add(&all, frame, size), IE_OK);
        }
        raw_send(fd, all.data, all.size);
        ie_buffer_fini(&all);
    }
    while (refused + stored < 5) {
        static unsigned char message[IE__MESSAGE_MAX];
        const size_t         size = raw_message(fd, message);
        ie__frame            frame;

        ck_assert_uint_ne(size, 0);
        ck_assert_int_eq(ie__frame_parse(&frame, message, size, NULL), IE_OK);
        if (frame.type == IE__PUBNACK) {
            ie__reason reason;

            ck_assert_int_eq(ie__reason_parse(&reason, &frame), IE_OK);
            ck_assert_uint_eq(reason.code, IE_BUS_CODE_LIMIT);
            ck_assert_uint_eq(frame.number, 5);
            refused++;
        } else {
            ck_assert_uint_eq(frame.type, IE__PUBACK);
            for (size_t at = 0; at < frame.body_bytes; at += 12)
                stored += ie__get32(frame.body + at + 4);
        }
    }
    ck_assert_uint_eq(stored, 4);
    (void)close(fd);
    down();
}
END_TEST

/* The default VFS of SQLite is the faulty one while the server opens its file. */
static void
up_on_a_bad_disk(void)
{
    fault_vfs_register();
    (void)sqlite3_vfs_register(sqlite3_vfs_find(FAULT_VFS), 1);
    up();
}

START_TEST(a_full_disk_refuses_what_is_to_be_stored_and_nothing_else)
{
    int publisher, live, worker;

    up_on_a_bad_disk();
    publisher = raw_open(server);
    live = raw_open(server);
    worker = raw_open(server);
    ask(live, 1, ">", (subscription){.group = NULL});
    (void)raw_expect(live, IE__SUBSCRIBED);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    put(publisher, 1, P, (publish){.topic = "t", .data = "1"});
    (void)acked(publisher, 1);
    (void)raw_expect(live, IE__DELIVER);
    fault_vfs_arm(1, FAULT_WRITE, SQLITE_FULL, true);
    put(publisher, 2, P, (publish){.topic = "t", .id = "x", .data = "2"});
    raw_expect_reason(publisher, IE__PUBNACK, 2, IE_BUS_CODE_FULL);
    (void)raw_expect(live, IE__DELIVER);
    put(publisher, 3, 0, (publish){.topic = "u", .data = "3"}); /* live traffic goes on */
    ck_assert_uint_eq(acked(publisher, 3), 1);
    (void)raw_expect(live, IE__DELIVER);
    take_numbers(worker, 1, 1); /* so do deliveries */
    fault_vfs_arm(1, FAULT_SYNC, SQLITE_IOERR, true);
    put(publisher, 4, P, (publish){.topic = "t", .id = "y", .data = "2"});
    raw_expect_reason(publisher, IE__PUBNACK, 4, IE_BUS_CODE_STORAGE);
    fault_vfs_arm(0, 0, 0, false);
    put(publisher, 5, P, (publish){.topic = "t", .id = "x", .data = "2"}); /* by itself */
    ck_assert_uint_eq(acked(publisher, 5) & IE__PUBACK_STORED, IE__PUBACK_STORED);
    take_numbers(worker, 2, 2);
    expect_quiet(worker);
    ck_assert_uint_eq(bus_stats(server).store_failures, 2);
    (void)close(publisher);
    (void)close(live);
    (void)close(worker);
    down();
}
END_TEST

START_TEST(a_bus_that_cannot_have_its_folder_does_not_start)
{
    ie_bus_server *other = NULL;
    ie_error       err = IE_ERROR_INIT;

    up();
    ck_assert_int_eq(ie_bus_server_start(&other, &options, &err), IE_ELEASE);
    ck_assert_ptr_nonnull(strstr(err.message, "another bus"));
    down();
    options.data_dir = "/proc/nowhere";
    err = (ie_error)IE_ERROR_INIT;
    ck_assert_int_ne(ie_bus_server_start(&other, &options, &err), IE_OK);
    ck_assert_ptr_nonnull(strstr(err.message, "/proc/nowhere"));
}
END_TEST

/* Publishers that wait for the log are waited for. */
START_TEST(a_drain_waits_for_the_log)
{
    counter        count = {.handled = 0};
    ie_bus_client *client;

    up();
    client = client_open(server);
    for (int i = 0; i < 500; i++)
        ck_assert_int_eq(publish_number(client, "t", i, P, &count), IE_OK);
    ck_assert_int_eq(ie_bus_server_stop(server, WAIT_MS), IE_OK);
    ck_assert(wait_for(&count.answered, 500));
    ck_assert_uint_eq(bus_stats(server).stored + atomic_load(&count.failed), 500);
    ck_assert_uint_eq(bus_stats(server).acknowledged, bus_stats(server).stored);
    ie_bus_client_close(client);
    ie_bus_server_close(server);
}
END_TEST

static bool
memory_is_small(void *arg)
{
    (void)arg;
    return bus_stats(server).memory_bytes < 8u << 20;
}

/* Memory of the bus does not know how far a group is behind. */
START_TEST(a_long_absence_costs_no_memory)
{
    const int total = (int)test_scale(20000);
    int       publisher, worker;
    uint64_t  peak = 0;
    char      data[1024];

    options.credit_max = 100;
    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 100});
    (void)close(worker);
    memset(data, 'x', sizeof data);
    for (int i = 1; i <= total; i++) {
        (void)snprintf(data, sizeof data, "%d ", i);
        put(publisher, ++next_request, P,
            (publish){.topic = "t", .data = data, .data_bytes = sizeof data});
        if (i % 1000 == 0 || i == total)
            (void)acked(publisher, next_request);
    }
    ck_assert(poll_until(memory_is_small, NULL, WAIT_MS));
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 100});
    for (int i = 1; i <= total; i++) {
        const delivery d = take(worker);

        ck_assert_int_eq(atoi(d.data), i);
        ack(worker, d.number);
        if (i % 100 == 0 && bus_stats(server).memory_bytes > peak)
            peak = bus_stats(server).memory_bytes;
    }
    ck_assert_uint_lt(peak, 8u << 20);
    expect_quiet(worker);
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

/* ---- administration: on a server whose loop this thread runs ---- */

typedef struct result {
    bool         is_here;
    uint32_t     code;
    uint64_t     count;
    ie__dead_row rows[4];
} result;

static result last;

static void
on_result(void *user, uint32_t code, const char *reason, uint64_t count, const ie__dead_row *rows)
{
    (void)user;
    ck_assert_ptr_nonnull(reason);
    last.is_here = true;
    last.code = code;
    last.count = count;
    for (uint64_t i = 0; rows != NULL && i < count && i < 4; i++)
        last.rows[i] = rows[i];
}

static void
make(void)
{
    static const char *const LISTEN[] = {"socket://127.0.0.1:0"};
    ie_error                 err = IE_ERROR_INIT;

    options.listen = LISTEN;
    options.listen_count = 1;
    ck_assert_msg(ie__bus_server_make(&server, &options, &err) == IE_OK, "%s", err.message);
    memset(&last, 0, sizeof last);
}

/* The result of what was just asked for. */
static const result *
outcome(void)
{
    const int64_t deadline_ns = ie__mono_ns() + WAIT_MS * INT64_C(1000000);

    while (!last.is_here) {
        ck_assert_msg(ie__mono_ns() < deadline_ns, "no result came");
        (void)uv_run(&server->loop, UV_RUN_NOWAIT);
        (void)poll(NULL, 0, 1);
    }
    last.is_here = false;
    return &last;
}

static ie__durable_info info;
static size_t           info_count;

static void
on_info(void *user, const ie__durable_info *of)
{
    (void)user;
    info = *of;
    info_count++;
}

static void
look(void)
{
    info_count = 0;
    ie__durable_each(server, on_info, NULL);
}

START_TEST(groups_are_looked_at_paused_moved_and_deleted)
{
    int publisher, worker;

    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 1});
    put_numbers(publisher, "t", 1, 5);
    take_numbers(worker, 1, 1);
    nack(worker, take(worker).number, IE_BUS_CODE_REJECTED);
    take_numbers(worker, 3, 5);
    expect_quiet(worker);
    (void)close(worker);
    (void)close(publisher);
    down();

    make();
    look();
    ck_assert_uint_eq(info_count, 1);
    ck_assert_str_eq(info.name, "g");
    ck_assert_int_eq(info.position, 5);
    ck_assert_uint_eq(info.dead, 1);
    ck_assert_uint_eq(info.attempts_max, 16);
    ie__durable_dead(server, "g", NULL, IE__DEAD_LIST, 0, 4, on_result, NULL);
    ck_assert_uint_eq(outcome()->count, 1);
    ck_assert_int_eq(last.rows[0].position, 2);
    ck_assert_str_eq(last.rows[0].reason, "bad!");
    ck_assert_str_eq(last.rows[0].topic, "t");
    ie__durable_dead(server, "g", "t", IE__DEAD_RETRY, 2, 0, on_result, NULL);
    ck_assert_uint_eq(outcome()->count, 1);
    look();
    ck_assert_uint_eq(info.dead, 0);
    ck_assert_uint_eq(info.waiting, 1);
    ie__durable_pause(server, "nobody", NULL, true, on_result, NULL);
    ck_assert_uint_eq(outcome()->code, IE_BUS_CODE_INVALID);
    ie__durable_pause(server, "g", NULL, true, on_result, NULL);
    ck_assert_uint_eq(outcome()->code, IE_BUS_CODE_NONE);
    ie__bus_server_unmake(server);

    up(); /* paused, after a restart too */
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    expect_quiet(worker);
    (void)close(worker);
    down();

    make();
    look();
    ck_assert(info.is_paused);
    ie__durable_pause(server, "g", NULL, false, on_result, NULL);
    ck_assert_uint_eq(outcome()->code, IE_BUS_CODE_NONE);
    ie__bus_server_unmake(server);

    up();
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    take_numbers(worker, 2, 2); /* the one that was dead */
    expect_quiet(worker);
    (void)close(worker);
    down();

    make();
    ie__durable_move(server, "g", NULL, IE_BUS_START_POSITION, 3, on_result, NULL);
    ck_assert_uint_eq(outcome()->count, 2);
    ie__bus_server_unmake(server);

    up();
    worker = raw_open(server);
    (void)join(worker, 1, "t", (subscription){.group = "g", .credit = 10});
    take_numbers(worker, 3, 5);
    expect_quiet(worker);
    (void)close(worker);
    down();

    make();
    ie__durable_delete(server, "g", NULL, on_result, NULL);
    ck_assert_uint_eq(outcome()->code, IE_BUS_CODE_NONE);
    look();
    ck_assert_uint_eq(info_count, 0);
    ie__bus_server_unmake(server);
    make();
    look();
    ck_assert_uint_eq(info_count, 0);
    ie__bus_server_unmake(server);
    server = NULL;
}
END_TEST

/* What comes between: the group begins where it is told, by name of what is kept and by time. */
START_TEST(a_group_begins_where_it_is_told)
{
    int     publisher, worker;
    int64_t now_ms;

    up();
    publisher = raw_open(server);
    worker = raw_open(server);
    put_numbers(publisher, "t", 1, 3);
    (void)join(worker, 1, "t", (subscription){.group = "a", .start = IE_BUS_START_FIRST});
    take_numbers(worker, 1, 3);
    (void)join(worker, 2, "t",
               (subscription){.group = "b", .start = IE_BUS_START_POSITION, .start_at = 3});
    take_numbers(worker, 3, 3);
    now_ms = ie__wall_ms(&ie__system_clock);
    (void)join(
        worker, 3, "t",
        (subscription){.group = "c", .start = IE_BUS_START_TIME, .start_at = now_ms - 60000});
    take_numbers(worker, 1, 3);
    ck_assert_int_eq(
        join(worker, 4, "t",
             (subscription){.group = "d", .start = IE_BUS_START_TIME, .start_at = now_ms + 60000}),
        3);
    ck_assert_int_eq(join(worker, 5, "t", (subscription){.group = "e", .start = IE_BUS_START_END}),
                     3);
    ask(worker, 6, "t", (subscription){.group = "f", .start = 9});
    raw_expect_reason(worker, IE__SUBREFUSED, 6, IE_BUS_CODE_UNSUPPORTED);
    expect_quiet(worker);
    (void)close(worker);
    (void)close(publisher);
    down();
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus durable");
    TCase   *tcase = tcase_create("durable");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_stored_publish_is_answered_when_it_is_in_the_log);
    tcase_add_test(tcase, topics_can_be_forced_either_way);
    tcase_add_test(tcase, welcome_tells_that_there_is_a_log);
    tcase_add_test(tcase, live_subscribers_get_what_is_stored_too);
    tcase_add_test(tcase, a_record_without_id_gets_one_for_all);
    tcase_add_test(tcase, a_group_gets_what_came_while_it_was_away);
    tcase_add_test(tcase, a_restart_keeps_groups_and_their_place);
    tcase_add_test(tcase, failures_are_tried_again_then_dead);
    tcase_add_test(tcase, a_delay_is_kept);
    tcase_add_test(tcase, what_is_unavailable_spends_no_attempt);
    tcase_add_test(tcase, who_does_not_answer_loses_the_event_to_another);
    tcase_add_test(tcase, a_member_that_dies_hands_over);
    tcase_add_test(tcase, sticky_groups_keep_the_order_of_a_key);
    tcase_add_test(tcase, groups_have_a_limit);
    tcase_add_test(tcase, publishes_in_flight_count_what_is_being_stored);
    tcase_add_test(tcase, a_full_disk_refuses_what_is_to_be_stored_and_nothing_else);
    tcase_add_test(tcase, a_bus_that_cannot_have_its_folder_does_not_start);
    tcase_add_test(tcase, a_drain_waits_for_the_log);
    tcase_add_test(tcase, a_long_absence_costs_no_memory);
    tcase_add_test(tcase, groups_are_looked_at_paused_moved_and_deleted);
    tcase_add_test(tcase, a_group_begins_where_it_is_told);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
