/* Groups: which member gets what, by each selection, while members come and go. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "core.h"
#include "peer.h"

#define MEMBERS_MAX 8
#define KEYS        64
#define CREDIT      256

/* ---- a stage: one publisher, and members that remember what they got ----------------------- */

typedef struct got {
    uint32_t delivery;
    uint32_t number;
    uint32_t sub;
} got;

typedef struct member {
    peer     peer;
    got      open[4 * CREDIT]; /* delivered, not answered by us */
    size_t   open_count;
    uint32_t total;
    uint32_t subscribed;
    uint32_t unsubscribed;
    uint32_t refused_code;
    uint32_t sub_count; /* in force: ids 1 and 2 */
    bool     has_sub[3];
} member;

typedef struct message {
    uint32_t acked;
    uint32_t nacked;
    uint32_t taken; /* by a member that went without answering it */
    uint32_t answers;
    uint32_t code;
    uint32_t receivers;
    uint32_t key;
} message;

static struct {
    ie_bus_server   *server;
    peer             publisher;
    member           members[MEMBERS_MAX];
    peer            *peers[MEMBERS_MAX + 1];
    message         *messages;
    size_t           message_count;
    uint32_t         answered;
    ie_bus_selection selection;
    uint32_t         in_flight[KEYS];     /* sticky: deliveries of the key that nobody answered */
    uint32_t         last_resolved[KEYS]; /* sticky: number + 1 */
    peer            *owner[KEYS];         /* hash: of this epoch */
    bool             checks_order;
    bool             is_changing; /* members come or go: keys may move */
} stage;

static void
publisher_on_frame(peer *p, const ie__frame *frame)
{
    (void)p;
    if (frame->type == IE__PUBACK) {
        for (size_t at = 0; at < frame->body_bytes; at += 12) {
            const uint32_t first = ie__get32(frame->body + at);
            const uint32_t count = ie__get32(frame->body + at + 4);

            for (uint32_t i = first; i < first + count; i++) {
                ck_assert_uint_lt(i, stage.message_count);
                stage.messages[i].answers++;
                stage.messages[i].receivers = ie__get32(frame->body + at + 8);
                stage.answered++;
            }
        }
        return;
    }
    ck_assert_uint_eq(frame->type, IE__PUBNACK);
    ck_assert_uint_lt(frame->number, stage.message_count);
    stage.messages[frame->number].answers++;
    stage.messages[frame->number].code = ie__get16(frame->body);
    stage.answered++;
}

static void
check_delivery(peer *p, uint32_t number)
{
    const uint32_t key = stage.messages[number].key;

    if (!stage.checks_order)
        return;
    if (stage.selection == IE_BUS_STICKY) {
        ck_assert_msg(stage.in_flight[key]++ == 0, "two of key %u at a time", key);
        ck_assert_msg(number + 1 > stage.last_resolved[key], "key %u: %u after %u", key, number,
                      stage.last_resolved[key] - 1);
    }
    if (stage.selection == IE_BUS_HASH && !stage.is_changing) {
        ck_assert_msg(stage.owner[key] == NULL || stage.owner[key] == p, "key %u at two members",
                      key);
        stage.owner[key] = p;
    }
}

static void
member_on_frame(peer *p, const ie__frame *frame)
{
    member *m = p->user;

    switch (frame->type) {
    case IE__SUBSCRIBED: m->subscribed++; return;
    case IE__UNSUBSCRIBED: m->unsubscribed++; return;
    case IE__SUBREFUSED: m->refused_code = ie__get16(frame->body); return;
    default: break;
    }
    ck_assert_uint_eq(frame->type, IE__DELIVER_ACK);
    ck_assert_uint_lt(m->open_count, sizeof m->open / sizeof *m->open);
    m->open[m->open_count].delivery = ie__get32(frame->body);
    m->open[m->open_count].number = peer_number(frame);
    m->open[m->open_count].sub = frame->number;
    ck_assert_uint_lt(m->open[m->open_count].number, stage.message_count);
    check_delivery(p, m->open[m->open_count].number);
    m->open_count++;
    m->total++;
}

static void
stage_run(int wait_ms)
{
    peers_run(stage.peers, MEMBERS_MAX + 1, wait_ms);
}

static void
stage_barrier(void)
{
    peers_barrier(stage.peers, MEMBERS_MAX + 1);
}

static void
stage_begin(ie_bus_selection selection, size_t messages)
{
    memset(&stage, 0, sizeof stage);
    stage.server = bus_start_default();
    stage.selection = selection;
    stage.messages = calloc(messages, sizeof *stage.messages);
    ck_assert_ptr_nonnull(stage.messages);
    peer_open(&stage.publisher, stage.server, NULL, publisher_on_frame, NULL);
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        stage.members[i].peer.fd = -1;
        stage.peers[i] = &stage.members[i].peer;
    }
    stage.peers[MEMBERS_MAX] = &stage.publisher;
}

static void
stage_end(void)
{
    for (size_t i = 0; i <= MEMBERS_MAX; i++)
        peer_close(stage.peers[i]);
    ie_bus_server_close(stage.server);
    free(stage.messages);
}

static void
stage_publish(uint32_t key)
{
    const uint32_t number = (uint32_t)stage.message_count++;
    char           text[16];

    (void)snprintf(text, sizeof text, "key-%u", key);
    stage.messages[number].key = key;
    peer_publish(&stage.publisher, number, 0, "work.item", text, number);
}

/* The bus knows of the change, and all that it sent before has come. */
static void
settle_members(void)
{
    stage_barrier();
    memset(stage.owner, 0, sizeof stage.owner);
    stage.is_changing = false;
}

static void
member_subscribe(member *m, uint32_t id, uint32_t credit)
{
    stage.is_changing = true;
    peer_subscribe(&m->peer, id, "work.>", "pool", 0, credit, stage.selection);
    m->has_sub[id] = true;
    m->sub_count++;
    settle_members();
}

static void
member_join(member *m, uint32_t credit)
{
    char name[32];

    (void)snprintf(name, sizeof name, "member-%d", (int)(m - stage.members));
    memset(m, 0, sizeof *m);
    peer_open(&m->peer, stage.server, name, member_on_frame, m);
    member_subscribe(m, 1, credit);
    ck_assert_uint_eq(m->subscribed, 1);
}

static void
member_resolve(member *m, size_t index, uint32_t code)
{
    const got g = m->open[index];
    message  *what = &stage.messages[g.number];

    m->open[index] = m->open[--m->open_count];
    stage.in_flight[what->key] = 0;
    stage.last_resolved[what->key] = g.number + 1;
    if (code == IE_BUS_CODE_NONE) {
        what->acked++;
        peer_ack(&m->peer, g.delivery, 1);
    } else {
        what->nacked++;
        peer_nack(&m->peer, g.delivery, code);
    }
}

/* Deliveries of this subscription (0: of all) will never be answered. */
static void
member_forget(member *m, uint32_t sub)
{
    for (size_t i = m->open_count; i-- > 0;) {
        if (sub != 0 && m->open[i].sub != sub)
            continue;
        stage.messages[m->open[i].number].taken++;
        stage.in_flight[stage.messages[m->open[i].number].key] = 0;
        m->open[i] = m->open[--m->open_count];
    }
}

static size_t
members_connected(void)
{
    size_t count = 0;

    for (size_t i = 0; i < MEMBERS_MAX; i++)
        count += stage.members[i].peer.fd >= 0;
    return count;
}

/* Answer everything with an ACK until all publishes are answered. */
static bool
all_is_answered(void *arg)
{
    (void)arg;
    stage_run(1);
    for (size_t i = 0; i < MEMBERS_MAX; i++)
        while (stage.members[i].peer.fd >= 0 && stage.members[i].open_count > 0)
            member_resolve(&stage.members[i], 0, IE_BUS_CODE_NONE);
    return stage.answered == stage.message_count;
}

static void
stage_finish(void)
{
    ck_assert_msg(poll_until(all_is_answered, NULL, 3 * WAIT_MS), "%u of %zu publishes answered",
                  stage.answered, stage.message_count);
}

/* ---- the model: whatever members do, sent = delivered + reported --------------------------- */

static void
act(void)
{
    member        *m = &stage.members[ie__random_below(MEMBERS_MAX)];
    const uint64_t what = ie__random_below(100);

    if (what < 50 || m->peer.fd < 0 || m->peer.has_ended)
        return;
    if (what < 95) { /* answer some, in any order */
        for (uint64_t n = ie__random_below(m->open_count + 1); n > 0; n--)
            member_resolve(m, ie__random_below(m->open_count),
                           ie__random_below(50) != 0  ? IE_BUS_CODE_NONE
                           : ie__random_below(2) == 0 ? IE_BUS_CODE_HANDLER
                                                      : IE_BUS_CODE_REJECTED);
        return;
    }
    if (what < 97 && !m->has_sub[2] && m->has_sub[1]) { /* twice in the group */
        member_subscribe(m, 2, 1 + (uint32_t)ie__random_below(CREDIT));
    } else if (what == 97 && m->has_sub[1]) { /* the same subscription again: refused */
        m->refused_code = 0;
        peer_subscribe(&m->peer, 1, "work.>", "pool", 0, 1, stage.selection);
        stage_barrier();
        ck_assert_uint_eq(m->refused_code, IE_BUS_CODE_EXISTS);
    }
}

/* One subscription ends in good order. */
static void
leave_politely(member *m)
{
    const uint32_t id = m->has_sub[2] ? 2 : 1;

    stage_barrier(); /* what was answered has arrived, what was delivered is in the list */
    stage.is_changing = true;
    member_forget(m, id); /* the bus takes these back when it reads the next frame */
    raw_frame(m->peer.fd, IE__UNSUBSCRIBE, id, NULL, 0);
    m->has_sub[id] = false;
    m->sub_count--;
    settle_members();
}

static bool
connections_agree(void *arg)
{
    (void)arg;
    stage_run(0);
    return bus_stats(stage.server).connections == 1 + members_connected();
}

/* The connection ends with whatever is open. */
static void
leave_rudely(member *m)
{
    stage_barrier();
    stage.is_changing = true;
    member_forget(m, 0);
    peer_close(&m->peer);
    m->sub_count = 0;
    ck_assert(poll_until(connections_agree, NULL, WAIT_MS));
    settle_members();
}

static void
come_or_go(void)
{
    member *m = &stage.members[ie__random_below(MEMBERS_MAX)];

    if (m->peer.fd < 0)
        member_join(m, 1 + (uint32_t)ie__random_below(CREDIT));
    else if (m->sub_count > 0 && ie__random_below(2) == 0)
        leave_politely(m);
    else
        leave_rudely(m);
}

static void
check_message(const message *what, uint32_t number)
{
    ck_assert_msg(what->answers == 1, "publish %u: %u answers", number, what->answers);
    if (what->code == IE_BUS_CODE_NONE && what->receivers == 0)
        ck_assert_msg(what->acked == 0 && what->nacked == 0, "publish %u: nobody had it?", number);
    else if (what->code == IE_BUS_CODE_NONE)
        ck_assert_msg(what->acked >= 1 && what->nacked == 0, "publish %u: %u handled it", number,
                      what->acked);
    else if (what->code == IE_BUS_CODE_HANDLER || what->code == IE_BUS_CODE_REJECTED)
        ck_assert_msg(what->nacked >= 1, "publish %u: nobody refused it", number);
    else /* the members went before they answered, or before they had it */
        ck_assert_msg(what->code == IE_BUS_CODE_SUBSCRIBER_GONE, "publish %u: code %u", number,
                      what->code);
    if (stage.selection != IE_BUS_BROADCAST)
        ck_assert_msg(what->acked + what->nacked <= 1, "publish %u: handled twice", number);
}

START_TEST(nothing_is_lost_silently_whatever_members_do)
{
    static const char *const NAMES[] = {"round-robin", "random", "hash", "sticky", "broadcast"};
    const size_t             total = test_scale(20000);
    uint64_t                 outcomes[3] = {0, 0, 0}; /* handled, reported, nobody there */

    ie__random_seed(test_seed());
    stage_begin((ie_bus_selection)_i, total + 64);
    stage.checks_order = true;
    member_join(&stage.members[0], CREDIT);
    while (stage.message_count < total) {
        if (stage.message_count - stage.answered < 4000)
            for (uint64_t n = ie__random_below(64); n > 0; n--)
                stage_publish((uint32_t)ie__random_below(KEYS));
        stage_run(0);
        for (int i = 0; i < 10; i++)
            act();
        if (ie__random_below(8) == 0)
            come_or_go();
    }
    if (members_connected() == 0)
        member_join(&stage.members[0], CREDIT);
    stage_finish();
    for (uint32_t i = 0; i < stage.message_count; i++) {
        check_message(&stage.messages[i], i);
        outcomes[stage.messages[i].code != IE_BUS_CODE_NONE ? 1
                 : stage.messages[i].receivers != 0         ? 0
                                                            : 2]++;
    }
    printf("%s: %zu sent = %llu handled + %llu reported + %llu that nobody was there for\n",
           NAMES[_i], stage.message_count, (unsigned long long)outcomes[0],
           (unsigned long long)outcomes[1], (unsigned long long)outcomes[2]);
    /* one of eight that refuses is enough to fail a broadcast */
    ck_assert_uint_gt(outcomes[0], stage.message_count / (_i == IE_BUS_BROADCAST ? 50 : 4));
    stage_end();
}
END_TEST

/* ---- the selections, one by one ------------------------------------------------------------- */

#define FAIR_MEMBERS 4

static void
share_out(size_t messages)
{
    for (size_t i = 0; i < FAIR_MEMBERS; i++)
        member_join(&stage.members[i], CREDIT);
    while (stage.message_count < messages) {
        for (int i = 0; i < 50; i++)
            stage_publish((uint32_t)(stage.message_count % KEYS));
        stage_finish();
    }
}

START_TEST(round_robin_is_fair)
{
    stage_begin(IE_BUS_ROUND_ROBIN, 10000);
    share_out(10000);
    for (size_t i = 0; i < FAIR_MEMBERS; i++)
        ck_assert_uint_eq(stage.members[i].total, 10000 / FAIR_MEMBERS);
    stage_end();
}
END_TEST

START_TEST(random_is_fair)
{
    stage_begin(IE_BUS_RANDOM, 10000);
    share_out(10000);
    for (size_t i = 0; i < FAIR_MEMBERS; i++) {
        /* a standard deviation is 43: this fails once in 10^9 runs */
        ck_assert_uint_gt(stage.members[i].total, 2500 - 6 * 44);
        ck_assert_uint_lt(stage.members[i].total, 2500 + 6 * 44);
    }
    stage_end();
}
END_TEST

static void
owners(uint32_t owner[KEYS])
{
    memset(stage.owner, 0, sizeof stage.owner);
    for (uint32_t key = 0; key < KEYS; key++)
        stage_publish(key);
    stage_finish();
    for (uint32_t key = 0; key < KEYS; key++) {
        ck_assert_ptr_nonnull(stage.owner[key]);
        owner[key] = (uint32_t)((member *)stage.owner[key]->user - stage.members);
    }
}

START_TEST(few_keys_move_when_a_member_goes_and_they_come_back_with_it)
{
    uint32_t before[KEYS];
    uint32_t without[KEYS];
    uint32_t again[KEYS];
    uint32_t moved = 0;

    stage_begin(IE_BUS_HASH, 4 * KEYS);
    stage.checks_order = true;
    for (size_t i = 0; i < FAIR_MEMBERS; i++)
        member_join(&stage.members[i], CREDIT);
    owners(before);
    leave_rudely(&stage.members[1]);
    owners(without);
    member_join(&stage.members[1], CREDIT);
    owners(again);
    for (uint32_t key = 0; key < KEYS; key++) {
        ck_assert_uint_eq(before[key], again[key]);
        ck_assert_uint_ne(without[key], 1);
        if (before[key] != 1)
            ck_assert_uint_eq(without[key], before[key]);
        else
            moved++;
    }
    ck_assert_uint_gt(moved, 0);
    ck_assert_uint_lt(moved, KEYS / 2);
    stage_end();
}
END_TEST

START_TEST(a_slow_key_holds_up_no_other)
{
    stage_begin(IE_BUS_STICKY, 100);
    stage.checks_order = true;
    member_join(&stage.members[0], CREDIT);
    stage_publish(1);
    stage_publish(1);
    for (uint32_t key = 2; key < 12; key++)
        stage_publish(key);
    stage_barrier();
    ck_assert_uint_eq(stage.members[0].total, 11); /* all but the second of key 1 */
    for (size_t i = stage.members[0].open_count; i-- > 0;)
        if (stage.members[0].open[i].number != 0)
            member_resolve(&stage.members[0], i, IE_BUS_CODE_NONE);
    stage_barrier();
    ck_assert_uint_eq(stage.answered, 10);
    ck_assert_uint_eq(stage.members[0].total, 11);
    member_resolve(&stage.members[0], 0, IE_BUS_CODE_HANDLER); /* refused: told, and on it goes */
    stage_barrier();
    ck_assert_uint_eq(stage.members[0].total, 12);
    stage_finish();
    ck_assert_uint_eq(stage.messages[0].code, IE_BUS_CODE_HANDLER);
    stage_end();
}
END_TEST

START_TEST(a_broadcast_is_answered_when_all_members_have)
{
    stage_begin(IE_BUS_BROADCAST, 100);
    for (size_t i = 0; i < 3; i++)
        member_join(&stage.members[i], 2);
    for (int i = 0; i < 4; i++)
        stage_publish(0);
    stage_barrier();
    for (size_t i = 0; i < 3; i++)
        ck_assert_uint_eq(stage.members[i].total, 2); /* that is their credit */
    member_resolve(&stage.members[0], 0, IE_BUS_CODE_NONE);
    member_resolve(&stage.members[1], 0, IE_BUS_CODE_REJECTED);
    stage_barrier();
    ck_assert_uint_eq(stage.answered, 0);
    ck_assert_uint_eq(stage.members[2].total, 2);
    ck_assert_uint_eq(stage.members[0].total, 3); /* one that waits holds up nobody */
    member_join(&stage.members[3], 2);            /* too late for these */
    member_resolve(&stage.members[2], 0, IE_BUS_CODE_NONE);
    stage_barrier();
    ck_assert_uint_eq(stage.answered, 1);
    ck_assert_uint_eq(stage.messages[0].code, IE_BUS_CODE_REJECTED);
    leave_rudely(&stage.members[2]); /* it owes three answers, one for an event it never got */
    stage_finish();
    for (uint32_t i = 1; i < 4; i++)
        ck_assert_uint_eq(stage.messages[i].code, IE_BUS_CODE_SUBSCRIBER_GONE);
    ck_assert_uint_eq(stage.members[3].total, 0);
    stage_end();
}
END_TEST

START_TEST(members_agree_on_the_selection)
{
    stage_begin(IE_BUS_HASH, 1);
    member_join(&stage.members[0], 1);
    peer_open(&stage.members[1].peer, stage.server, NULL, member_on_frame, &stage.members[1]);
    peer_subscribe(&stage.members[1].peer, 1, "work.>", "pool", 0, 1, IE_BUS_RANDOM);
    stage_barrier();
    ck_assert_uint_eq(stage.members[1].refused_code, IE_BUS_CODE_CONFLICT);
    peer_subscribe(&stage.members[1].peer, 1, "work.>", "pool", 0, 1, (ie_bus_selection)5);
    stage_barrier();
    ck_assert_uint_eq(stage.members[1].refused_code, IE_BUS_CODE_UNSUPPORTED);
    peer_subscribe(&stage.members[1].peer, 1, "work.>", NULL, 0, 1, IE_BUS_HASH);
    stage_barrier();
    ck_assert_uint_eq(stage.members[1].refused_code, IE_BUS_CODE_INVALID);
    peer_subscribe(&stage.members[1].peer, 1, "work.>", "other", 0, 1, IE_BUS_RANDOM);
    stage_barrier();
    ck_assert_uint_eq(stage.members[1].subscribed, 1);
    stage_end();
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus groups");
    TCase   *model = tcase_create("model");
    TCase   *modes = tcase_create("selections");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(model, 300);
    tcase_add_loop_test(model, nothing_is_lost_silently_whatever_members_do, IE_BUS_ROUND_ROBIN,
                        IE_BUS_BROADCAST + 1);
    suite_add_tcase(suite, model);
    tcase_set_timeout(modes, 60);
    tcase_add_test(modes, round_robin_is_fair);
    tcase_add_test(modes, random_is_fair);
    tcase_add_test(modes, few_keys_move_when_a_member_goes_and_they_come_back_with_it);
    tcase_add_test(modes, a_slow_key_holds_up_no_other);
    tcase_add_test(modes, a_broadcast_is_answered_when_all_members_have);
    tcase_add_test(modes, members_agree_on_the_selection);
    suite_add_tcase(suite, modes);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
