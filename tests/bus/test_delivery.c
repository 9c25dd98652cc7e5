/* What a client says and hears about deliveries and publishes, byte by byte against a raw bus, and
 * in the large against a real one. */
#include "bus_support.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "client_parts.h"
#include "core.h"

static char url[64];
static int  listener;

static void
set_up(void)
{
    listener = fake_bus_listen(url);
}

static void
tear_down(void)
{
    if (listener >= 0)
        (void)close(listener);
}

static const ie_bus_dispatch MODES[] = {IE_BUS_DISPATCH_INLINE, IE_BUS_DISPATCH_THREAD};

static ie_bus_client *
client_with(ie_bus_dispatch dispatch, uint32_t flags)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.dispatch = dispatch;
    options.flags = flags;
    options.reconnect_delay_ms = 10;
    options.reconnect_delay_ms_max = 50;
    options.close_timeout_ms = 200; /* the raw bus never says goodbye */
    ck_assert_msg(ie_bus_client_open(&client, &options, &err) == IE_OK, "%s", err.message);
    return client;
}

/* ---- what is asked for ---------------------------------------------------------------------- */

typedef struct asked {
    char     pattern[256];
    char     group[256];
    uint32_t flags;
    uint32_t credit;
    uint32_t selection;
    uint32_t start;
    uint32_t ack_timeout;
    uint32_t attempts;
    int64_t  start_at;
    int      fields;
} asked;

static uint32_t
expect_subscribe(int fd, asked *out)
{
    const ie__frame      frame = raw_expect(fd, IE__SUBSCRIBE);
    const unsigned char *at = frame.body;
    ie__field            field;

    memset(out, 0, sizeof *out);
    while (ie__field_next(&field, &at, frame.body + frame.body_bytes) == IE_OK) {
        uint32_t *const numbers[] = {
            [IE__F_CREDIT] = &out->credit,           [IE__F_FLAGS] = &out->flags,
            [IE__F_SELECTION] = &out->selection,     [IE__F_START] = &out->start,
            [IE__F_ACK_TIMEOUT] = &out->ack_timeout, [IE__F_ATTEMPTS] = &out->attempts};

        out->fields++;
        if (field.tag == IE__F_PATTERN)
            ck_assert_int_eq(ie__field_text(out->pattern, 255, &field), IE_OK);
        else if (field.tag == IE__F_GROUP)
            ck_assert_int_eq(ie__field_text(out->group, 255, &field), IE_OK);
        else if (field.tag == IE__F_START_AT)
            ck_assert_int_eq(ie__field_i64(&out->start_at, &field), IE_OK);
        else
            ck_assert_int_eq(ie__field_u32(numbers[field.tag], &field), IE_OK);
    }
    return frame.number;
}

START_TEST(every_choice_reaches_the_bus_and_a_replay_is_asked_for_once)
{
    ie_bus_client      *client = client_with(IE_BUS_DISPATCH_INLINE, 0);
    ie_bus_subscription to;
    counter             count = {0};
    uint32_t            id = 0;
    asked               got;
    int                 fd;

    IE_BUS_SUBSCRIPTION_INIT(&to);
    to.pattern = "order.>";
    to.group = "billing";
    to.handler = counter_handle;
    to.user = &count;
    to.start = IE_BUS_START_TIME;
    to.start_at = 1732226400123;
    to.selection = IE_BUS_STICKY;
    to.flags = IE_BUS_SUBSCRIBE_OWN;
    to.credit = 7;
    to.ack_timeout_ms = 1500;
    to.attempts_max = 3;
    ck_assert_int_eq(ie_bus_client_subscribe_with(client, &to, &id, NULL), IE_OK);
    fd = fake_bus_accept(listener, IE__CAP_STORAGE);
    ck_assert_uint_eq(expect_subscribe(fd, &got), id);
    ck_assert_str_eq(got.pattern, "order.>");
    ck_assert_str_eq(got.group, "billing");
    ck_assert_uint_eq(got.flags, IE_BUS_SUBSCRIBE_OWN);
    ck_assert_uint_eq(got.credit, 7);
    ck_assert_uint_eq(got.selection, IE_BUS_STICKY);
    ck_assert_uint_eq(got.start, IE_BUS_START_TIME);
    ck_assert_int_eq(got.start_at, 1732226400123);
    ck_assert_uint_eq(got.ack_timeout, 1500);
    ck_assert_uint_eq(got.attempts, 3);

    (void)close(fd); /* before it was confirmed: nobody knows that the group was made */
    fd = fake_bus_accept(listener, IE__CAP_STORAGE);
    (void)expect_subscribe(fd, &got);
    ck_assert_uint_eq(got.start, IE_BUS_START_TIME);
    raw_frame(fd, IE__SUBSCRIBED, id, NULL, 0);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);

    (void)close(fd); /* now it was: it goes on where the group stands */
    fd = fake_bus_accept(listener, IE__CAP_STORAGE);
    ck_assert_uint_eq(expect_subscribe(fd, &got), id);
    ck_assert_uint_eq(got.start, IE_BUS_START_GROUP);
    ck_assert_int_eq(got.start_at, 0);
    ck_assert_uint_eq(got.selection, IE_BUS_STICKY);
    ck_assert_uint_eq(got.ack_timeout, 1500);
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_plain_subscription_says_no_more_than_it_must)
{
    ie_bus_client      *client = client_with(IE_BUS_DISPATCH_INLINE, 0);
    ie_bus_subscription to;
    counter             count = {0};
    asked               got;
    int                 fd;

    ck_assert_int_eq(
        ie_bus_client_subscribe(client, "t", NULL, 0, counter_handle, &count, NULL, NULL), IE_OK);
    fd = fake_bus_accept(listener, 0);
    (void)expect_subscribe(fd, &got);
    ck_assert_int_eq(got.fields, 3); /* pattern, flags, credit: what the first eb/2 bus knows */
    ie_bus_client_close(client); /* first, so that it does not come back before the next one */
    (void)close(fd);

    /* nor does a bus without storage hear of what belongs to a log */
    client = client_with(IE_BUS_DISPATCH_INLINE, 0);
    IE_BUS_SUBSCRIPTION_INIT(&to);
    to.pattern = "t";
    to.group = "g";
    to.handler = counter_handle;
    to.user = &count;
    to.start = IE_BUS_START_FIRST;
    to.flags = IE_BUS_SUBSCRIBE_EPHEMERAL;
    to.ack_timeout_ms = to.attempts_max = 5;
    ck_assert_int_eq(ie_bus_client_subscribe_with(client, &to, NULL, NULL), IE_OK);
    fd = fake_bus_accept(listener, 0);
    (void)expect_subscribe(fd, &got);
    ck_assert_int_eq(got.fields, 4);
    ck_assert_str_eq(got.group, "g");
    ck_assert_uint_eq(got.flags, 0);
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

static ie_status
never(void *user, const ie_event *event, const ie_bus_delivery *delivery)
{
    (void)user;
    (void)event;
    (void)delivery;
    return IE_EIO;
}

START_TEST(choices_that_make_no_sense_are_refused_in_words)
{
    static const struct {
        const char         *word;
        ie_bus_subscription to;
    } CASES[] = {
        {"pattern", {.group = "g", .on_delivery = never}},
        {"pattern", {.pattern = "a..b", .on_delivery = never}},
        {"group", {.pattern = "a", .group = "g g", .on_delivery = never}},
        {"handler", {.pattern = "a"}},
        {"handler", {.pattern = "a", .handler = counter_handle, .on_delivery = never}},
        {"flags", {.pattern = "a", .on_delivery = never, .flags = 0x40}},
        {"token", {.pattern = "a", .handler = counter_handle, .flags = IE_BUS_SUBSCRIBE_MANUAL}},
        {"start", {.pattern = "a", .group = "g", .on_delivery = never, .start = (ie_bus_start)9}},
        {"selection",
         {.pattern = "a", .group = "g", .on_delivery = never, .selection = (ie_bus_selection)9}},
        {"group", {.pattern = "a", .on_delivery = never, .start = IE_BUS_START_FIRST}},
        {"group", {.pattern = "a", .on_delivery = never, .flags = IE_BUS_SUBSCRIBE_EPHEMERAL}},
        {"group", {.pattern = "a", .on_delivery = never, .selection = IE_BUS_HASH}},
    };
    ie_bus_client        *client = client_with(IE_BUS_DISPATCH_INLINE, 0);
    ie_bus_client_options options;

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ie_bus_subscription to = CASES[i].to;
        ie_error            err = IE_ERROR_INIT;

        ck_assert_int_eq(ie_bus_client_subscribe_with(client, &to, NULL, NULL), IE_EINVAL);
        to.size = sizeof to;
        ck_assert_int_eq(ie_bus_client_subscribe_with(client, &to, NULL, &err), IE_EINVAL);
        ck_assert_msg(strstr(err.message, CASES[i].word) != NULL, "%zu: %s", i, err.message);
    }
    ie_bus_client_close(client);
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.flags = IE_BUS_CLIENT_FAIL_OFFLINE | IE_BUS_CLIENT_REPUBLISH;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_EINVAL);
    options.flags = 0x80;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_ENOTSUP);
    options.flags = 0;
    options.dispatch = (ie_bus_dispatch)3;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_ENOTSUP);
}
END_TEST

/* ---- deliveries ----------------------------------------------------------------------------- */

typedef struct seen {
    atomic_ulong    count;
    ie_status       result;
    ie_bus_delivery last;
    int64_t         position; /* of the event */
    uint64_t        tokens[64];
} seen;

static ie_status
see(void *user, const ie_event *event, const ie_bus_delivery *delivery)
{
    seen *self = user;

    self->last = *delivery;
    self->position = event->position;
    self->tokens[atomic_load(&self->count) % 64] = delivery->token;
    (void)atomic_fetch_add(&self->count, 1);
    return self->result;
}

/* A subscription that the raw bus has confirmed; returns its connection. */
static int
subscribe_raw(ie_bus_client *client, const char *group, uint32_t flags, seen *to,
              uint32_t capabilities, uint32_t *id)
{
    ie_bus_subscription wanted_sub;
    asked               got;
    int                 fd;

    IE_BUS_SUBSCRIPTION_INIT(&wanted_sub);
    wanted_sub.pattern = "t";
    wanted_sub.group = group;
    wanted_sub.flags = flags;
    wanted_sub.on_delivery = see;
    wanted_sub.user = to;
    ck_assert_int_eq(ie_bus_client_subscribe_with(client, &wanted_sub, id, NULL), IE_OK);
    fd = fake_bus_accept(listener, capabilities);
    (void)expect_subscribe(fd, &got);
    raw_frame(fd, IE__SUBSCRIBED, *id, NULL, 0);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    return fd;
}

static void
expect_ack(int fd, uint32_t first, uint32_t count)
{
    const ie__frame frame = raw_expect(fd, IE__ACK);

    ck_assert_uint_eq(frame.body_bytes, 8);
    ck_assert_uint_eq(ie__get32(frame.body), first);
    ck_assert_uint_eq(ie__get32(frame.body + 4), count);
}

START_TEST(a_stored_delivery_tells_its_attempt_and_position)
{
    ie_bus_client *client = client_with(MODES[_i], 0);
    seen           got = {.result = IE_OK};
    uint32_t       id = 0;
    const int      fd = subscribe_raw(client, "g", 0, &got, IE__CAP_STORAGE, &id);

    fake_bus_deliver(fd, IE__DELIVER_LOG, id, 1, 3, INT64_C(5000000000), "t", "a");
    expect_ack(fd, 1, 1);
    ck_assert_uint_eq(atomic_load(&got.count), 1);
    ck_assert_uint_eq(got.last.attempt, 3);
    ck_assert_int_eq(got.last.position, INT64_C(5000000000));
    ck_assert_int_eq(got.position, INT64_C(5000000000));
    ck_assert_uint_eq(got.last.subscription, id);
    ck_assert_uint_eq(got.last.token, 0); /* its return has answered */
    fake_bus_deliver(fd, IE__DELIVER_ACK, id, 2, 0, 0, "t", "b");
    expect_ack(fd, 2, 1);
    ck_assert_uint_eq(got.last.attempt, 0);
    ck_assert_int_eq(got.last.position, 0);
    got.result = IE_EREFUSED;
    fake_bus_deliver(fd, IE__DELIVER_LOG, id, 3, 1, 7, "t", "c");
    raw_expect_reason(fd, IE__NACK, 3, IE_BUS_CODE_REJECTED);
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_malformed_event_ends_the_connection_only)
{
    ie_bus_client *client = client_with(MODES[_i], 0);
    seen           got = {.result = IE_OK};
    uint32_t       id = 0;
    int            fd = subscribe_raw(client, "g", 0, &got, 0, &id);
    asked          again;

    raw_frame(fd, IE__DELIVER_LOG, id, "\0\0\0\1\0\0\0\1", 8); /* no position, no record */
    fd = fake_bus_accept(listener, 0);
    ck_assert_uint_eq(expect_subscribe(fd, &again), id);
    ck_assert_uint_eq(atomic_load(&got.count), 0);
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_token_answers_once_and_from_any_thread)
{
    ie_bus_client *client = client_with(MODES[_i], 0);
    seen           got = {.result = IE_EIO}; /* which answers nothing */
    uint32_t       id = 0;
    const int      fd = subscribe_raw(client, "g", IE_BUS_SUBSCRIBE_MANUAL, &got, 0, &id);

    for (uint32_t i = 1; i <= 4; i++)
        fake_bus_deliver(fd, IE__DELIVER_LOG, id, i, 1, i, "t", "x");
    ck_assert(wait_for(&got.count, 4));
    ck_assert_int_eq(ie_bus_client_ack(client, 0), IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_ack(client, got.tokens[3] + 1), IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_ack(client, got.tokens[2]), IE_OK);
    expect_ack(fd, 3, 1);
    ck_assert_int_eq(ie_bus_client_ack(client, got.tokens[2]), IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_nack(client, got.tokens[2], IE_EHANDLER, 0, NULL), IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_ack(client, got.tokens[0]), IE_OK);
    expect_ack(fd, 1, 1);
    ck_assert_int_eq(ie_bus_client_nack(client, got.tokens[1], IE_EREFUSED, 0, "no such order"),
                     IE_OK);
    raw_expect_reason(fd, IE__NACK, 2, IE_BUS_CODE_REJECTED);
    ck_assert_int_eq(ie_bus_client_nack(client, got.tokens[3], IE_EUNREACHABLE, 5000, NULL), IE_OK);
    raw_expect_reason(fd, IE__NACK, 4, IE_BUS_CODE_UNAVAILABLE); /* it never showed storage */
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_delay_is_told_to_a_bus_that_stores)
{
    ie_bus_client       *client = client_with(MODES[_i], 0);
    seen                 got = {0};
    uint32_t             id = 0;
    const unsigned char *body;
    ie__frame            frame;
    const int fd = subscribe_raw(client, "g", IE_BUS_SUBSCRIBE_MANUAL, &got, IE__CAP_STORAGE, &id);

    fake_bus_deliver(fd, IE__DELIVER_LOG, id, 9, 1, 1, "t", "x");
    ck_assert(wait_for(&got.count, 1));
    ck_assert_int_eq(ie_bus_client_nack(client, got.tokens[0], IE_EHANDLER, 5000, "later, please"),
                     IE_OK);
    frame = raw_expect(fd, IE__NACK_LATER);
    body = frame.body;
    ck_assert_uint_eq(frame.number, 9);
    ck_assert_uint_eq(frame.body_bytes, 4 + 2 + strlen("later, please"));
    ck_assert_uint_eq(ie__get32(body), 5000);
    ck_assert_uint_eq(ie__get16(body + 4), IE_BUS_CODE_HANDLER);
    ck_assert_mem_eq(body + 6, "later, please", strlen("later, please"));
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_token_of_an_old_connection_answers_nothing_on_the_new)
{
    ie_bus_client *client = client_with(MODES[_i], 0);
    seen           got = {0};
    uint32_t       id = 0;
    int            fd = subscribe_raw(client, "g", IE_BUS_SUBSCRIBE_MANUAL, &got, 0, &id);
    asked          again;

    fake_bus_deliver(fd, IE__DELIVER_ACK, id, 1, 0, 0, "t", "old");
    ck_assert(wait_for(&got.count, 1));
    (void)close(fd);
    fd = fake_bus_accept(listener, 0);
    (void)expect_subscribe(fd, &again);
    raw_frame(fd, IE__SUBSCRIBED, id, NULL, 0);
    fake_bus_deliver(fd, IE__DELIVER_ACK, id, 1, 0, 0, "t", "new"); /* the same number */
    ck_assert(wait_for(&got.count, 2));
    ck_assert_uint_ne(got.tokens[0], got.tokens[1]);
    ck_assert_int_eq(ie_bus_client_ack(client, got.tokens[0]), IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_nack(client, got.tokens[0], IE_EIO, 0, NULL), IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_nack(client, got.tokens[1], IE_EREFUSED, 0, NULL), IE_OK);
    raw_expect_reason(fd, IE__NACK, 1, IE_BUS_CODE_REJECTED); /* and nothing came before it */
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(an_ended_subscription_takes_its_tokens_with_it)
{
    ie_bus_client *client = client_with(MODES[_i], 0);
    seen           got = {0};
    uint32_t       id = 0;
    const int      fd = subscribe_raw(client, "g", IE_BUS_SUBSCRIBE_MANUAL, &got, 0, &id);

    for (uint32_t i = 1; i <= 3; i++)
        fake_bus_deliver(fd, IE__DELIVER_ACK, id, i, 0, 0, "t", "x");
    ck_assert(wait_for(&got.count, 3));
    ck_assert_int_eq(ie_bus_client_unsubscribe(client, id, NULL), IE_OK);
    (void)raw_expect(fd, IE__UNSUBSCRIBE);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(ie_bus_client_ack(client, got.tokens[i]), IE_ENOTFOUND);
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(tokens_behave_like_a_set)
{
    enum { NUMBERS = 500, STEPS = 200000 };
    static bool model[NUMBERS + 1];
    tokens      set = {0};
    size_t      count = 0;

    ie__random_seed(test_seed());
    for (int i = 0; i < STEPS; i++) {
        const uint32_t number = 1 + (uint32_t)ie__random_below(NUMBERS);

        if (ie__random_below(1000) == 0) { /* all of one owner */
            const uint32_t owner = (uint32_t)ie__random_below(7);

            ie__tokens_drop(&set, owner);
            for (uint32_t n = 1; n <= NUMBERS; n++) {
                count -= model[n] && n % 7 == owner;
                model[n] = model[n] && n % 7 != owner;
            }
        } else if (!model[number] && ie__random_below(2) == 0) {
            ck_assert_int_eq(ie__tokens_add(&set, number * 65536, number % 7), IE_OK);
            model[number] = true;
            count++;
        } else {
            ck_assert_int_eq(ie__tokens_take(&set, number * 65536), model[number]);
            count -= model[number];
            model[number] = false;
        }
        ck_assert_uint_eq(set.count, count);
    }
    ie__tokens_clear(&set);
    ck_assert(!ie__tokens_take(&set, 65536));
    ie__tokens_fini(&set);
}
END_TEST

/* ---- publishes ------------------------------------------------------------------------------ */

typedef struct told {
    atomic_ulong  count;
    ie_bus_answer last;
} told;

static void
tell(void *user, const ie_bus_answer *answer)
{
    told *self = user;

    self->last = *answer;
    (void)atomic_fetch_add(&self->count, 1);
}

static uint32_t
expect_publish(int fd, char id[64], uint32_t *flags)
{
    static ie__record record;
    const ie__frame   frame = raw_expect(fd, IE__PUBLISH);

    ck_assert_uint_gt(frame.body_bytes, 4);
    *flags = ie__get32(frame.body);
    ck_assert_int_eq(
        ie__record_parse(&record, frame.body + 4, frame.body_bytes - 4, IE_DATA_BYTES_MAX, NULL),
        IE_OK);
    (void)snprintf(id, 64, "%.*s", (int)record.texts[IE__E_ID].size,
                   (const char *)record.texts[IE__E_ID].bytes);
    return frame.number;
}

static void
send_puback(int fd, uint32_t first, uint32_t count, uint32_t receivers)
{
    unsigned char body[12];

    ie__put32(body, first);
    ie__put32(body + 4, count);
    ie__put32(body + 8, receivers);
    raw_frame(fd, IE__PUBACK, 0, body, sizeof body);
}

START_TEST(an_answer_says_what_was_stored)
{
    ie_bus_client *client = client_with(IE_BUS_DISPATCH_INLINE, 0);
    const int      fd = fake_bus_accept(listener, IE__CAP_STORAGE);
    ie_event       event = IE_EVENT_INIT;
    told           got = {0};
    char           id[64];
    uint32_t       flags = 0;
    uint32_t       number;

    event.topic = "t";
    ck_assert_int_eq(
        ie_bus_client_publish(client, &event, IE_BUS_PUBLISH_PERSISTENT, tell, &got, NULL), IE_OK);
    number = expect_publish(fd, id, &flags);
    ck_assert_uint_eq(flags, IE_BUS_PUBLISH_PERSISTENT);
    send_puback(fd, number, 1, IE__PUBACK_STORED | 5);
    ck_assert(wait_for(&got.count, 1));
    ck_assert_uint_eq(got.last.stored, 1);
    ck_assert_uint_eq(got.last.receivers, 5);
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, tell, &got, NULL), IE_OK);
    ck_assert_uint_eq(expect_publish(fd, id, &flags), number + 1);
    send_puback(fd, number + 1, 1, 5);
    ck_assert(wait_for(&got.count, 2));
    ck_assert_uint_eq(got.last.stored, 0);
    ck_assert_uint_eq(got.last.receivers, 5);
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(unanswered_publishes_are_sent_again_with_their_ids)
{
    enum { N = 6 };
    ie_bus_client *client = client_with(IE_BUS_DISPATCH_INLINE, IE_BUS_CLIENT_REPUBLISH);
    ie_event       event = IE_EVENT_INIT;
    told           got[N] = {0};
    char           ids[N][64];
    char           again[64];
    uint32_t       numbers[N];
    uint32_t       flags = 0;
    uint32_t       first;
    int            fd = fake_bus_accept(listener, 0);

    event.topic = "t";
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(
            ie_bus_client_publish(client, &event, IE_BUS_PUBLISH_PERSISTENT, tell, &got[i], NULL),
            IE_OK);
        numbers[i] = expect_publish(fd, ids[i], &flags);
    }
    send_puback(fd, numbers[1], 1, 1); /* out of order: the first stays open */
    send_puback(fd, numbers[3], 1, 1);
    ck_assert(wait_for(&got[1].count, 1));
    ck_assert(wait_for(&got[3].count, 1));
    (void)close(fd);
    fd = fake_bus_accept(listener, 0);
    for (int i = 0, n = 0; i < 5; i += 2, n++) {
        const uint32_t number = expect_publish(fd, again, &flags);

        first = n == 0 ? number : first;
        ck_assert_uint_eq(number, first + (uint32_t)n); /* no gaps */
        ck_assert_str_eq(again, ids[i]);
        ck_assert_uint_eq(flags, IE_BUS_PUBLISH_PERSISTENT);
    }
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, tell, &got[5], NULL), IE_OK);
    ck_assert_uint_eq(expect_publish(fd, ids[5], &flags), first + 3);
    (void)close(fd); /* and once more, with nothing answered */
    fd = fake_bus_accept(listener, 0);
    first = expect_publish(fd, again, &flags);
    ck_assert_str_eq(again, ids[0]);
    for (int i = 1; i < 4; i++)
        ck_assert_uint_eq(expect_publish(fd, again, &flags), first + (uint32_t)i);
    ck_assert_str_eq(again, ids[5]);
    send_puback(fd, first, 4, 1);
    for (int i = 0; i < N; i++) {
        ck_assert(wait_for(&got[i].count, 1));
        ck_assert_uint_eq(atomic_load(&got[i].count), 1);
        ck_assert_int_eq(got[i].last.status, IE_OK);
    }
    (void)close(fd);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(what_is_never_answered_ends_with_the_client)
{
    ie_bus_client *client = client_with(IE_BUS_DISPATCH_INLINE, IE_BUS_CLIENT_REPUBLISH);
    ie_event       event = IE_EVENT_INIT;
    told           got = {0};
    char           id[64];
    uint32_t       flags = 0;
    int            fd = fake_bus_accept(listener, 0);

    event.topic = "t";
    ck_assert_int_eq(ie_bus_client_publish(client, &event, 0, tell, &got, NULL), IE_OK);
    (void)expect_publish(fd, id, &flags);
    (void)close(fd);
    ie_bus_client_close(client);
    ck_assert_uint_eq(atomic_load(&got.count), 1);
    ck_assert_int_eq(got.last.status, IE_ECLOSED);
}
END_TEST

/* ---- coming again --------------------------------------------------------------------------- */

typedef struct delays {
    atomic_ulong count;
    uint32_t     retry_ms[64];
    uint32_t     attempts[64];
} delays;

static void
note_delay(void *user, const ie_bus_client_status *status)
{
    delays             *self = user;
    const unsigned long at = atomic_load(&self->count);

    if (status->state != IE_BUS_RECONNECTING || at == 64)
        return;
    self->retry_ms[at] = status->retry_ms;
    self->attempts[at] = status->attempts;
    (void)atomic_fetch_add(&self->count, 1);
}

START_TEST(who_comes_again_waits_longer_and_never_the_same)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    delays                noted = {0};
    uint32_t              ceiling = 4;
    bool                  differs = false;

    ie__random_seed(test_seed());
    (void)close(listener); /* nobody is there */
    listener = -1;
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.reconnect_delay_ms = 4;
    options.reconnect_delay_ms_max = 20;
    options.on_status = note_delay;
    options.user = &noted;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    ck_assert(wait_for(&noted.count, 40));
    ie_bus_client_close(client);
    for (uint32_t i = 0; i < 40; i++) {
        ck_assert_uint_eq(noted.attempts[i], i + 1);
        ck_assert_uint_le(noted.retry_ms[i], ceiling);
        ceiling = ceiling * 2 < 20 ? ceiling * 2 : 20;
        differs = differs || noted.retry_ms[i] != noted.retry_ms[0];
    }
    ck_assert(differs);
}
END_TEST

/* ---- against a real bus --------------------------------------------------------------------- */

START_TEST(nothing_is_lost_when_the_bus_restarts_under_load)
{
    enum { ROUNDS = 5, PER_ROUND = 2000 };
    char                  path_url[300];
    const char           *listen[] = {path_url};
    ie_bus_server_options options;
    ie_bus_server        *server;
    ie_bus_client        *publisher;
    ie_bus_client        *subscriber;
    counter               handled = {0};
    counter               answers = {0};
    long                  number = 0;

    (void)test_dir_make();
    (void)snprintf(path_url, sizeof path_url, "unix:%s", test_path("bus.sock"));
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    server = bus_start(&options);
    publisher = client_open_url(path_url, IE_BUS_CLIENT_REPUBLISH);
    subscriber = client_open_url(path_url, 0);
    (void)subscribe_now(subscriber, "load", "g", 0, &handled);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PER_ROUND; i++)
            while (publish_number(publisher, "load", ++number, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER,
                                  &answers) == IE_ELIMIT) {
                number--;
                (void)poll(NULL, 0, 1);
            }
        ck_assert(wait_for(&answers.answered, (unsigned long)(number - PER_ROUND / 2)));
        (void)ie_bus_server_stop(server, 0); /* cut in the middle of it */
        ie_bus_server_close(server);
        server = bus_start(&options);
    }
    ck_assert(wait_for(&answers.answered, (unsigned long)number));
    ck_assert_uint_eq(atomic_load(&answers.answered), (unsigned long)number);
    /* "no subscribers" while the subscriber was away is an answer; each other one was handled */
    ck_assert_uint_ge(atomic_load(&handled.handled) + atomic_load(&answers.failed),
                      (unsigned long)number);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
    ie_bus_server_close(server);
    test_dir_remove();
}
END_TEST

typedef struct collected {
    pthread_mutex_t mutex;
    uint64_t        tokens[4096];
    atomic_ulong    count;
} collected;

static ie_status
collect(void *user, const ie_event *event, const ie_bus_delivery *delivery)
{
    collected *self = user;

    (void)event;
    (void)pthread_mutex_lock(&self->mutex);
    self->tokens[atomic_load(&self->count)] = delivery->token;
    (void)atomic_fetch_add(&self->count, 1);
    (void)pthread_mutex_unlock(&self->mutex);
    return IE_OK;
}

START_TEST(answers_in_any_order_reach_their_publishes)
{
    enum { N = 1000 };
    static collected    all = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    ie_bus_server      *server = bus_start_default();
    ie_bus_client      *publisher = client_open(server);
    ie_bus_client      *subscriber = client_open(server);
    ie_bus_subscription to;
    counter             answers = {0};

    IE_BUS_SUBSCRIPTION_INIT(&to);
    to.pattern = "t";
    to.flags = IE_BUS_SUBSCRIBE_MANUAL; /* without a group too */
    to.on_delivery = collect;
    to.user = &all;
    ck_assert_int_eq(ie_bus_client_subscribe_with(subscriber, &to, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
    for (long i = 1; i <= N; i++)
        ck_assert_int_eq(publish_number(publisher, "t", i, 0, &answers), IE_OK);
    ck_assert(wait_for(&all.count, N));
    ck_assert_uint_eq(atomic_load(&answers.answered), 0);
    ie__random_seed(test_seed());
    for (size_t i = N; i-- > 1;) { /* shuffled */
        const size_t   other = (size_t)ie__random_below(i + 1);
        const uint64_t swap = all.tokens[i];

        all.tokens[i] = all.tokens[other];
        all.tokens[other] = swap;
    }
    for (size_t i = 0; i < N; i++)
        ck_assert_int_eq(i % 10 == 0
                             ? ie_bus_client_nack(subscriber, all.tokens[i], IE_EREFUSED, 0, "no")
                             : ie_bus_client_ack(subscriber, all.tokens[i]),
                         IE_OK);
    ck_assert(wait_for(&answers.answered, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), N / 10);
    ck_assert_uint_eq(atomic_load(&answers.last_code), IE_BUS_CODE_REJECTED);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
    ie_bus_server_close(server);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("delivery");
    TCase   *tcase = tcase_create("delivery");
    SRunner *suite_runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, every_choice_reaches_the_bus_and_a_replay_is_asked_for_once);
    tcase_add_test(tcase, a_plain_subscription_says_no_more_than_it_must);
    tcase_add_test(tcase, choices_that_make_no_sense_are_refused_in_words);
    tcase_add_loop_test(tcase, a_stored_delivery_tells_its_attempt_and_position, 0, 2);
    tcase_add_loop_test(tcase, a_malformed_event_ends_the_connection_only, 0, 2);
    tcase_add_loop_test(tcase, a_token_answers_once_and_from_any_thread, 0, 2);
    tcase_add_loop_test(tcase, a_delay_is_told_to_a_bus_that_stores, 0, 2);
    tcase_add_loop_test(tcase, a_token_of_an_old_connection_answers_nothing_on_the_new, 0, 2);
    tcase_add_loop_test(tcase, an_ended_subscription_takes_its_tokens_with_it, 0, 2);
    tcase_add_test(tcase, tokens_behave_like_a_set);
    tcase_add_test(tcase, an_answer_says_what_was_stored);
    tcase_add_test(tcase, unanswered_publishes_are_sent_again_with_their_ids);
    tcase_add_test(tcase, what_is_never_answered_ends_with_the_client);
    tcase_add_test(tcase, who_comes_again_waits_longer_and_never_the_same);
    tcase_add_test(tcase, nothing_is_lost_when_the_bus_restarts_under_load);
    tcase_add_test(tcase, answers_in_any_order_reach_their_publishes);
    suite_add_tcase(suite, tcase);
    srunner_run_all(suite_runner, CK_ENV);
    failed = srunner_ntests_failed(suite_runner);
    srunner_free(suite_runner);
    return failed == 0 ? 0 : 1;
}
