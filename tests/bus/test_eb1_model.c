/*
 * Members of two events join, register twice, and leave, while messages of every kind are sent. A
 * small model says who must get what; in the end sent = delivered + reported.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "eb1_peer.h"

#define MEMBERS_MAX 8
#define EVENTS      2
#define BURST       250
#define ANYBODY     (-1)
#define NOBODY      (-2)
#define EVERYBODY   (-3)

static const char *const NAMES[EVENTS] = {"aaaa", "bbbb"};

typedef struct member {
    eb1_peer peer;
    bool     is_in[EVENTS];
} member;

typedef struct model {
    ie_bus_server *server;
    eb1_peer       sender;
    member         members[MEMBERS_MAX]; /* in the order in which they came */
    size_t         count;
    size_t         turn[EVENTS];
    int            event_of[BURST]; /* of this burst's messages: the event, or -1 */
    int            wanted[BURST];   /* the member, or ANYBODY ... */
    unsigned       got[BURST];
    uint64_t       sent;
    uint64_t       delivered;
    uint64_t       reported;
} model;

/* The n-th member of an event, in the order of registration; its index among all. */
static size_t
nth_member(const model *m, int event, size_t n)
{
    for (size_t i = 0; i < m->count; i++)
        if (m->members[i].is_in[event] && n-- == 0)
            return i;
    ck_abort_msg("there is no such member");
    return 0;
}

static size_t
event_count(const model *m, int event)
{
    size_t count = 0;

    for (size_t i = 0; i < m->count; i++)
        count += m->members[i].is_in[event];
    return count;
}

static void
join(model *m)
{
    member *new = &m->members[m->count];

    memset(new, 0, sizeof *new);
    new->peer = eb1_open(m->server, EB1_TCP);
    for (uint64_t i = ie__random_below(4); i > 0; i--) { /* also twice, also none */
        const size_t event = (size_t)ie__random_below(EVENTS);

        eb1_say(&new->peer, "65621331 00000001 %08x", ie_eb1_event_id(NAMES[event]));
        new->is_in[event] = true;
    }
    eb1_expect_nothing(&new->peer);
    m->count++;
}

static void
leave(model *m)
{
    const size_t gone = (size_t)ie__random_below(m->count);

    for (int event = 0; event < EVENTS; event++) {
        size_t place = 0;

        if (!m->members[gone].is_in[event])
            continue;
        for (size_t i = 0; i < gone; i++)
            place += m->members[i].is_in[event];
        if (m->turn[event] > place)
            m->turn[event]--;
        if (m->turn[event] >= event_count(m, event) - 1)
            m->turn[event] = 0;
    }
    eb1_close(&m->members[gone].peer);
    memmove(&m->members[gone], &m->members[gone + 1], (--m->count - gone) * sizeof *m->members);
    wait_stat_of(m->server, eb1_connections, m->count + 1);
}

/* What the model says about a message to an event. */
static int
choose(model *m, int event, unsigned command, uint64_t key)
{
    const size_t count = event_count(m, event);
    size_t       n;

    if (count == 0)
        return NOBODY;
    if (command == 1)
        return (int)nth_member(m, event, (size_t)(key % count));
    if (command != 2)
        return ANYBODY;
    n = m->turn[event];
    m->turn[event] = (n + 1) % count;
    return (int)nth_member(m, event, n);
}

static size_t
put_message(unsigned char *at, model *m, unsigned i)
{
    const uint64_t kind = ie__random_below(20);
    const uint64_t key =
        ie__random_below(2) == 0 ? ie__random_below(16) : UINT64_MAX - ie__random_below(16);
    const int      event = (int)ie__random_below(EVENTS);
    const unsigned command = (unsigned)ie__random_below(3);
    unsigned char *start = at;
    const size_t   header = kind < 18 ? 20 : 12;
    uint32_t       destination;

    m->event_of[i] = -1;
    if (kind < 18) {
        m->event_of[i] = event;
        m->wanted[i] = choose(m, event, command, key);
        destination = ie_eb1_event_id(NAMES[event]);
    } else if (kind == 18 && m->count > 0) {
        m->wanted[i] = (int)ie__random_below(m->count);
        destination = m->members[m->wanted[i]].peer.id;
    } else {
        m->wanted[i] = m->count > 0 ? EVERYBODY : NOBODY;
        destination = 0;
    }
    ie__put64(at, header + 4);
    at += 8;
    memcpy(at, header == 20 ? "eb\x15\x10" : "eb\x13\x00", 4);
    at[3] = (unsigned char)(at[3] | (header == 20 ? command : 0));
    ie__put32(at + 4, m->sender.id);
    ie__put32(at + 8, destination);
    ie__put64(at + 12, key);
    ie__put32(at + header, i);
    return (size_t)(at + header + 4 - start);
}

/* Everything that the bus had for a member when the sender's own heartbeat came back. */
static void
collect(model *m, size_t index)
{
    static unsigned char message[IE_EB1_MESSAGE_BYTES_MAX + 64];
    const member        *of = &m->members[index];
    int64_t              last = -1;

    eb1_say(&of->peer, "65621320 00000abc e5627573 'end'");
    for (;;) {
        const size_t size = eb1_receive(&of->peer, message);
        uint32_t     i;

        ck_assert_uint_ge(size, 12);
        if ((message[3] & 0x20) != 0)
            return;
        ck_assert_uint_eq(size, 16);
        i = ie__get32(message + 12);
        ck_assert_uint_lt(i, BURST);
        ck_assert_msg((int64_t)i > last, "out of order");
        last = i;
        ck_assert_uint_eq(ie__get32(message + 4), m->sender.id);
        ck_assert_uint_eq(ie__get32(message + 8), m->wanted[i] == EVERYBODY ? 0 : of->peer.id);
        if (m->wanted[i] >= 0)
            ck_assert_int_eq(m->wanted[i], (int)index);
        else if (m->wanted[i] == ANYBODY)
            ck_assert(of->is_in[m->event_of[i]]);
        else
            ck_assert_int_eq(m->wanted[i], EVERYBODY);
        m->got[i]++;
    }
}

static void
burst(model *m)
{
    static unsigned char bytes[BURST * 64];
    size_t               size = 0;

    memset(m->got, 0, sizeof m->got);
    for (unsigned i = 0; i < BURST; i++)
        size += put_message(bytes + size, m, i);
    raw_send(m->sender.fd, bytes, size);
    eb1_expect_nothing(&m->sender);
    for (size_t i = 0; i < m->count; i++)
        collect(m, i);
    for (unsigned i = 0; i < BURST; i++) {
        const unsigned wanted = m->wanted[i] == NOBODY      ? 0
                                : m->wanted[i] == EVERYBODY ? (unsigned)m->count
                                                            : 1;

        ck_assert_msg(m->got[i] == wanted, "message %u came %u times, not %u", i, m->got[i],
                      wanted);
        m->delivered += wanted;
        m->reported += wanted == 0;
    }
    m->sent += BURST;
}

START_TEST(every_mode_is_right_whoever_comes_and_goes)
{
    const uint64_t total = test_scale(100000);
    model         *m = calloc(1, sizeof *m);
    size_t         largest = 0;

    ck_assert_ptr_nonnull(m);
    (void)test_seed();
    m->server = eb1_bus_start(NULL, EB1_TCP);
    m->sender = eb1_open(m->server, EB1_TCP);
    while (m->sent < total) {
        for (uint64_t changes = ie__random_below(4); changes > 0; changes--) {
            if (m->count == 0 || (m->count < MEMBERS_MAX && ie__random_below(3) != 0))
                join(m);
            else
                leave(m);
        }
        largest = m->count > largest ? m->count : largest;
        burst(m);
    }
    ck_assert_uint_eq(largest, MEMBERS_MAX);
    wait_stat_of(m->server, eb1_in, m->sent);
    wait_stat_of(m->server, eb1_out, m->delivered);
    wait_stat_of(m->server, eb1_dropped, m->reported);
    while (m->count > 0)
        leave(m);
    eb1_close(&m->sender);
    wait_stat_of(m->server, connections, 0);
    wait_stat_of(m->server, subscriptions, 0);
    ie_bus_server_close(m->server);
    free(m);
}
END_TEST

/* With fixed members the share of each is even, and the counts of round robin are exact. */
START_TEST(shares_are_even_for_one_to_eight_members)
{
    enum { MESSAGES = 8400 }; /* divides by 1 to 8 */
    ie_bus_server *server = eb1_bus_start(NULL, EB1_TCP);
    eb1_peer       sender = eb1_open(server, EB1_TCP);
    eb1_peer       members[MEMBERS_MAX];

    for (size_t n = 1; n <= MEMBERS_MAX; n++) {
        members[n - 1] = eb1_join(server, EB1_TCP, "sess", NULL);
        for (unsigned mode = 0; mode < 3; mode += 2) {
            size_t all = 0;

            for (unsigned i = 0; i < MESSAGES / 10; i++)
                eb1_send_number(&sender, 0x10 | mode, ie_eb1_event_id("sess"), 0, i);
            eb1_expect_nothing(&sender);
            for (size_t k = 0; k < n; k++) {
                unsigned char message[64];
                size_t        share = 0;

                eb1_say(&members[k], "65621320 00000abc e5627573");
                while (eb1_receive(&members[k], message) > 0 && (message[3] & 0x20) == 0)
                    share++;
                if (mode == 2)
                    ck_assert_uint_eq(share, MESSAGES / 10 / n);
                else /* chance: 840 over at most 8; ten standard deviations would be 100 off */
                    ck_assert_uint_ge(share, n == 1 ? MESSAGES / 10 : 5);
                all += share;
            }
            ck_assert_uint_eq(all, MESSAGES / 10);
        }
    }
    for (size_t n = 0; n < MEMBERS_MAX; n++)
        eb1_close(&members[n]);
    eb1_close(&sender);
    ie_bus_server_close(server);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("eb1 model");
    TCase   *tc = tcase_create("model");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tc, 110);
    tcase_add_test(tc, every_mode_is_right_whoever_comes_and_goes);
    tcase_add_test(tc, shares_are_even_for_one_to_eight_members);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
