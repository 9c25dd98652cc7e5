/* Rights: what the acl_file may say, what it means, and that a running bus keeps to it. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "acl.h"
#include "bus_support.h"
#include "security_support.h"

/* ---- the file ------------------------------------------------------------------------------- */

static const char *
fault_of(const char *text, size_t bytes)
{
    static ie_error err;
    ie__acl        *acl = NULL;

    memset(&err, 0, sizeof err);
    if (ie__acl_parse(&acl, text, bytes, "acl", &err) == IE_OK)
        ie__acl_free(acl);
    return err.message;
}

START_TEST(a_faulty_line_is_named_with_what_was_meant)
{
    static const struct {
        const char *text;
        const char *message;
    } CASES[] = {
        {"alow publish a", "acl:1:1: unknown word 'alow'; did you mean 'allow'?"},
        {"user a\n  allow publsh b", "acl:2:9: unknown word 'publsh'; did you mean 'publish'?"},
        {"user a\n  allow xyzzy b",
         "acl:2:9: unknown word 'xyzzy'; expected is publish, subscribe, query, serve or admin"},
        {"allow publish a",
         "acl:1:1: 'allow' before the first 'user NAME', 'anonymous' or 'everyone'"},
        {"user", "acl:1:5: 'user' without a name"},
        {"user a b", "acl:1:8: nothing more belongs on this line"},
        {"user a\nuser a", "acl:2:6: user 'a' has a section already"},
        {"everyone\neveryone", "acl:2:1: 'everyone' has a section already"},
        {"anonymous\n\n# x\nanonymous", "acl:4:1: 'anonymous' has a section already"},
        {"user a*", "acl:1:7: a user's name is made of visible ASCII without * > # +"},
        {"user \xC3\xA4", "acl:1:6: a user's name is made of visible ASCII without * > # +"},
        {"everyone\n allow", "acl:2:7: 'allow' what? publish, subscribe, query, serve or admin"},
        {"everyone\n deny query", "acl:2:12: a pattern is missing; '>' means every topic"},
        {"everyone\n allow query a..b", "acl:2:14: pattern has an empty word"},
        {"everyone\n allow query a >.b",
         "acl:2:16: pattern may have '*' only as a whole word and '>' only as the last word"},
        {"everyone\n allow publish $bus.x",
         "acl:2:16: topics that begin with '$' are the bus's own; 'allow admin' is about them"},
        {"anonymous\n allow publish a.%u",
         "acl:2:16: %u in 'anonymous': who is anonymous has no name"},
    };

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        ck_assert_str_eq(fault_of(CASES[i].text, strlen(CASES[i].text)), CASES[i].message);
    ck_assert_str_eq(fault_of("user a\n\0allow", 13), "acl:2:1: a NUL byte");
    ck_assert_str_eq(fault_of("# only\n\n  # comments\n", 21), "");
    ck_assert_str_eq(fault_of("everyone\r\n\tallow admin $bus.> # all\r\n", 37), "");
}
END_TEST

static ie__rights *
rights_of(const char *text, const char *user)
{
    ie__acl    *acl = NULL;
    ie__rights *rights = NULL;
    ie_error    err = IE_ERROR_INIT;

    ck_assert_msg(ie__acl_parse(&acl, text, strlen(text), "acl", &err) == IE_OK, "%s", err.message);
    ck_assert_msg(ie__rights_new(&rights, acl, user, &err) == IE_OK, "%s", err.message);
    ie__acl_free(acl);
    return rights;
}

static bool
may(const char *text, const char *user, ie__verb verb, const char *topic)
{
    ie__rights *rights = rights_of(text, user);
    const bool  first = ie__rights_topic(rights, verb, topic, strlen(topic));

    ck_assert(first == ie__rights_topic(rights, verb, topic, strlen(topic))); /* remembered */
    ie__rights_free(rights);
    return first;
}

START_TEST(an_empty_file_allows_nothing)
{
    for (int verb = 0; verb < IE__VERBS; verb++) {
        ck_assert(!may("", "a", (ie__verb)verb, "a"));
        ck_assert(!may("# nothing\n", NULL, (ie__verb)verb, "a"));
        ck_assert(!may("user a\neveryone\nanonymous\n", "a", (ie__verb)verb, "a"));
    }
}
END_TEST

START_TEST(topics_are_compared_byte_by_byte)
{
    static const char ACL[] = "user a\nallow publish secret.\xC3\xA9 Plain\n";

    ck_assert(may(ACL, "a", IE__MAY_PUBLISH, "secret.\xC3\xA9"));
    ck_assert(!may(ACL, "a", IE__MAY_PUBLISH, "secret.e\xCC\x81")); /* the same to the eye */
    ck_assert(!may(ACL, "a", IE__MAY_PUBLISH, "plain"));
    ck_assert(!may(ACL, "a", IE__MAY_PUBLISH, "Plain."));
    ck_assert(!may(ACL, "a", IE__MAY_PUBLISH, "Plain.x"));
    ck_assert(!may(ACL, "A", IE__MAY_PUBLISH, "Plain"));
    ck_assert(!may(ACL, NULL, IE__MAY_PUBLISH, "Plain"));
}
END_TEST

START_TEST(percent_u_is_the_users_own_place_and_no_wider)
{
    static const char ACL[] = "everyone\nallow publish inbox.%u.> %u-%u\ndeny publish inbox.%u.no\n"
                              "anonymous\nallow publish open\n";
    ie__acl          *acl = NULL;
    ie__rights       *rights = NULL;
    ie_error          err = IE_ERROR_INIT;
    const char *const WIDE[] = {"a.b", "*", ">", "a*", "$x", "#", "+"};

    ck_assert(may(ACL, "ann", IE__MAY_PUBLISH, "inbox.ann.x"));
    ck_assert(may(ACL, "ann", IE__MAY_PUBLISH, "ann-ann"));
    ck_assert(!may(ACL, "ann", IE__MAY_PUBLISH, "inbox.ann.no"));
    ck_assert(!may(ACL, "ann", IE__MAY_PUBLISH, "inbox.bob.x"));
    ck_assert(may(ACL, NULL, IE__MAY_PUBLISH, "open"));
    ck_assert(!may(ACL, NULL, IE__MAY_PUBLISH, "inbox.%u.x"));
    ck_assert_int_eq(ie__acl_parse(&acl, ACL, strlen(ACL), "acl", NULL), IE_OK);
    for (size_t i = 0; i < sizeof WIDE / sizeof *WIDE; i++)
        ck_assert_int_eq(ie__rights_new(&rights, acl, WIDE[i], &err), IE_EDENIED);
    ck_assert_str_eq(err.message, "line 2 of the acl has %u, for which a name has to be one word "
                                  "without wildcards");
    ie__acl_free(acl);
}
END_TEST

/* ---- against a reference -------------------------------------------------------------------- */

/*
 * The universe: every topic of one to four words out of a, b, c. Patterns have at most three words
 * and never c, so the universe has a witness for each way in which two patterns can differ.
 */
#define TOPICS   120
#define PATTERNS 64

typedef struct bits {
    uint64_t low;
    uint64_t high;
} bits;

static char   topics[TOPICS][8];
static char   patterns[PATTERNS][8];
static bits   reach[PATTERNS];
static size_t pattern_count;

/* The plainest matcher: words side by side. */
static bool
reference_matches(const char *pattern, const char *topic)
{
    if (*pattern == '>')
        return true;
    if (*pattern != '*' && *pattern != *topic)
        return false;
    if (pattern[1] == '\0' || topic[1] == '\0')
        return pattern[1] == topic[1];
    return reference_matches(pattern + 2, topic + 2);
}

static void
make_universe(void)
{
    size_t count = 0;

    for (int words = 1; words <= 4; words++)
        for (int n = 0, all = (int[]){0, 3, 9, 27, 81}[words]; n < all; n++, count++)
            for (int w = 0, rest = n; w < words; w++, rest /= 3) {
                topics[count][2 * w] = (char)('a' + rest % 3);
                topics[count][2 * w + 1] = w + 1 < words ? '.' : '\0';
            }
    ck_assert_uint_eq(count, TOPICS);
    pattern_count = 0;
    for (int words = 1; words <= 3; words++)
        for (int n = 0, all = 1 << (2 * words); n < all; n++) {
            char *text = patterns[pattern_count];
            bool  is_good = true;

            for (int w = 0, rest = n; w < words; w++, rest /= 4) {
                text[2 * w] = "ab*>"[rest % 4];
                text[2 * w + 1] = w + 1 < words ? '.' : '\0';
                is_good = is_good && (text[2 * w] != '>' || w + 1 == words);
            }
            if (is_good && pattern_count + 1 < PATTERNS)
                pattern_count++;
        }
    for (size_t p = 0; p < pattern_count; p++)
        for (size_t t = 0; t < TOPICS; t++)
            if (reference_matches(patterns[p], topics[t])) {
                reach[p].low |= t < 64 ? UINT64_C(1) << t : 0;
                reach[p].high |= t >= 64 ? UINT64_C(1) << (t - 64) : 0;
            }
}

static bool
bits_meet(bits a, bits b)
{
    return (a.low & b.low) != 0 || (a.high & b.high) != 0;
}

static bool
bits_within(bits a, bits b) /* is a part of b? */
{
    return (a.low & ~b.low) == 0 && (a.high & ~b.high) == 0;
}

static bool
bit_of(bits a, size_t index)
{
    return (index < 64 ? a.low >> index : a.high >> (index - 64)) & 1;
}

static uint64_t random_state;

static size_t
below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state >> 11) % limit;
}

#define RULES_MAX 10

typedef struct reference {
    bool   is_deny[RULES_MAX];
    size_t verb[RULES_MAX];
    size_t pattern[RULES_MAX];
    size_t count;
} reference;

/* A file with rules for everyone, for the user and for somebody else; the reference has the first
 * two. */
static void
make_acl(char *out, size_t size, reference *ref)
{
    static const char *const SECTIONS[] = {"user other\n", "everyone\n", "user me\n",
                                           "anonymous\n"};
    size_t                   used = 0;

    ref->count = 0;
    for (size_t s = 0; s < 4; s++) {
        used += (size_t)snprintf(out + used, size - used, "%s", SECTIONS[s]);
        for (size_t i = below(6); i > 0; i--) {
            const bool   is_deny = below(3) == 0;
            const size_t verb = below(IE__VERBS);
            const size_t pattern = below(pattern_count);

            used +=
                (size_t)snprintf(out + used, size - used, "%s %s %s\n", is_deny ? "deny" : "allow",
                                 ie__verb_names[verb], patterns[pattern]);
            if (s != 1 && s != 2)
                continue;
            ref->is_deny[ref->count] = is_deny;
            ref->verb[ref->count] = verb;
            ref->pattern[ref->count++] = pattern;
        }
    }
}

static bool
reference_topic(const reference *ref, size_t verb, size_t topic)
{
    bool is_allowed = false;

    for (size_t i = 0; i < ref->count; i++) {
        if (ref->verb[i] != verb || !bit_of(reach[ref->pattern[i]], topic))
            continue;
        if (ref->is_deny[i])
            return false;
        is_allowed = true;
    }
    return is_allowed;
}

static void
check_patterns(const reference *ref, const ie__rights *rights, size_t verb, const char *acl)
{
    for (size_t p = 0; p < pattern_count; p++) {
        bool is_whole = false;
        bool is_some = false;
        bool is_cut = false;
        bool is_gone = false;

        for (size_t i = 0; i < ref->count; i++) {
            const bits rule = reach[ref->pattern[i]];

            if (ref->verb[i] != verb)
                continue;
            is_cut = is_cut || (ref->is_deny[i] && bits_meet(rule, reach[p]));
            is_gone = is_gone || (ref->is_deny[i] && bits_within(reach[p], rule));
            is_whole = is_whole || (!ref->is_deny[i] && bits_within(reach[p], rule));
            is_some = is_some || (!ref->is_deny[i] && bits_meet(rule, reach[p]));
        }
        ck_assert_msg(ie__rights_whole(rights, (ie__verb)verb, patterns[p]) ==
                          (is_whole && !is_cut),
                      "whole %s %s\n%s", ie__verb_names[verb], patterns[p], acl);
        ck_assert_msg(ie__rights_some(rights, (ie__verb)verb, patterns[p]) == (is_some && !is_gone),
                      "some %s %s\n%s", ie__verb_names[verb], patterns[p], acl);
    }
}

START_TEST(every_decision_is_that_of_the_reference)
{
    const uint64_t wanted = test_scale(4000000);
    uint64_t       cases = 0;
    uint64_t       allowed = 0;

    make_universe();
    random_state = test_seed() | 1;
    while (cases < wanted) {
        char        acl[1024];
        reference   ref;
        ie__rights *rights;

        make_acl(acl, sizeof acl, &ref);
        rights = rights_of(acl, "me");
        for (size_t verb = 0; verb < IE__VERBS; verb++) {
            for (size_t t = 0; t < TOPICS; t++) {
                const bool expected = reference_topic(&ref, verb, t);

                if (ie__rights_topic(rights, (ie__verb)verb, topics[t], strlen(topics[t])) !=
                    expected)
                    ck_abort_msg("%s %s: expected %s\n%s", ie__verb_names[verb], topics[t],
                                 expected ? "yes" : "no", acl);
                allowed += expected;
                cases++;
            }
            check_patterns(&ref, rights, verb, acl);
            cases += 2 * pattern_count;
        }
        ie__rights_free(rights);
    }
    ck_assert_uint_gt(allowed, cases / 50); /* both answers come often enough to mean something */
    printf("%llu cases\n", (unsigned long long)cases);
}
END_TEST

/* ---- on a bus ------------------------------------------------------------------------------- */

static ie_bus_server        *server;
static ie_bus_server_options options;

static void
start_with_acl(const char *acl)
{
    write_file("acl", acl, 0600);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.acl_file = test_path("acl");
    options.logger = log_kept;
    server = bus_start(&options);
}

static void
reload_with_acl(const char *acl)
{
    ie_error err = IE_ERROR_INIT;

    write_file("acl", acl, 0600);
    ck_assert_msg(ie_bus_server_reload(server, &options, &err) == IE_OK, "%s", err.message);
}

static void
set_up(void)
{
    (void)test_dir_make();
    server = NULL;
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
    test_dir_remove();
}

START_TEST(publishing_needs_the_right)
{
    int fd;

    start_with_acl("anonymous\nallow publish a.> b\ndeny publish a.no.>\n");
    fd = raw_open(server);
    raw_publish(fd, 1, 0, "a.x", 1);
    (void)raw_expect(fd, IE__PUBACK);
    raw_publish(fd, 2, 0, "a.no.x", 1);
    raw_expect_reason(fd, IE__PUBNACK, 2, IE_BUS_CODE_DENIED);
    raw_publish(fd, 3, 0, "c", 1);
    raw_expect_reason(fd, IE__PUBNACK, 3, IE_BUS_CODE_DENIED);
    raw_publish(fd, 4, 0, "b", 1);
    (void)raw_expect(fd, IE__PUBACK);
    ck_assert(COUNTER_IS(server, denied, 2));
    ck_assert(log_has("may not publish 'a.no.x'"));
    (void)close(fd);
}
END_TEST

START_TEST(a_broad_subscription_gets_what_is_allowed_and_no_more)
{
    int fd;
    int to;

    start_with_acl("anonymous\nallow publish >\nallow subscribe a.>\ndeny subscribe a.no\n");
    fd = raw_open(server);
    to = raw_open(server);
    raw_subscribe(to, 1, ">", NULL, 0, 0);
    (void)raw_expect(to, IE__SUBSCRIBED);
    raw_subscribe(to, 2, "b", NULL, 0, 0);
    raw_expect_reason(to, IE__SUBREFUSED, 2, IE_BUS_CODE_DENIED);
    raw_subscribe(to, 3, "a.>", "group", 0, 0);
    raw_expect_reason(to, IE__SUBREFUSED, 3, IE_BUS_CODE_DENIED);
    raw_subscribe(to, 4, "a.no", NULL, 0, 0);
    raw_expect_reason(to, IE__SUBREFUSED, 4, IE_BUS_CODE_DENIED);
    raw_subscribe(to, 5, "a.*", NULL, IE_BUS_SUBSCRIBE_ACK, 0);
    raw_expect_reason(to, IE__SUBREFUSED, 5, IE_BUS_CODE_DENIED);
    raw_subscribe(to, 6, "a.yes", "group", 0, 0);
    (void)raw_expect(to, IE__SUBSCRIBED);
    raw_publish(fd, 1, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, "a.no", 1);
    raw_expect_reason(fd, IE__PUBNACK, 1, IE_BUS_CODE_NO_SUBSCRIBERS);
    raw_publish(fd, 2, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, "b", 1);
    raw_expect_reason(fd, IE__PUBNACK, 2, IE_BUS_CODE_NO_SUBSCRIBERS);
    raw_publish(fd, 3, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, "a.x", 1);
    (void)raw_expect(fd, IE__PUBACK);
    ck_assert_uint_eq(raw_expect(to, IE__DELIVER).number, 1); /* the first thing that came */
    (void)close(fd);
    (void)close(to);
}
END_TEST

START_TEST(a_right_that_is_withdrawn_ends_at_once)
{
    counter        live = {0};
    counter        group = {0};
    counter        kept = {0};
    counter        answers = {0};
    ie_bus_client *client;
    ie_bus_client *publisher;
    unsigned long  before;

    start_with_acl("anonymous\nallow publish >\nallow subscribe >\n");
    client = client_open(server);
    publisher = client_open(server);
    (void)subscribe_now(client, "a.>", NULL, 0, &live);
    (void)subscribe_now(client, "a.b", "g", 0, &group);
    (void)subscribe_now(client, "k", NULL, 0, &kept);
    ck_assert_int_eq(publish_number(publisher, "a.b", 1, 0, &answers), IE_OK);
    ck_assert(wait_for(&live.handled, 1));
    ck_assert(wait_for(&group.handled, 1));
    reload_with_acl("anonymous\nallow publish >\nallow subscribe k\n");
    ck_assert(COUNTER_IS(server, subscriptions, 1)); /* when reload returns, it is so */
    before = atomic_load(&answers.answered);
    ck_assert_int_eq(publish_number(publisher, "a.b", 2, 0, &answers), IE_OK);
    ck_assert_int_eq(publish_number(publisher, "k", 1, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, before + 2));
    ck_assert(wait_for(&kept.handled, 1));
    ck_assert_uint_eq(atomic_load(&live.handled), 1);
    ck_assert_uint_eq(atomic_load(&group.handled), 1);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, 10000, NULL), IE_EDENIED);
    reload_with_acl("anonymous\nallow publish a\n");
    ck_assert_int_eq(publish_number(publisher, "k", 2, 0, &answers), IE_OK);
    ck_assert(wait_for(&answers.answered, before + 3));
    ck_assert_uint_eq(atomic_load(&answers.last_code), IE_BUS_CODE_DENIED);
    ck_assert(COUNTER_IS(server, reloads, 2));
    ie_bus_client_close(client);
    ie_bus_client_close(publisher);
}
END_TEST

START_TEST(what_waits_for_a_slow_reader_is_not_read_after_its_right_is_gone)
{
    int           fd;
    int           to;
    unsigned char message[4096];

    start_with_acl("anonymous\nallow publish >\nallow subscribe a\n");
    fd = raw_open(server);
    to = raw_open(server);
    raw_subscribe(to, 1, "a", NULL, 0, 0);
    (void)raw_expect(to, IE__SUBSCRIBED);
    for (uint32_t i = 1; bus_stats(server).out_bytes < 1000000; i++) { /* the socket is full */
        raw_publish(fd, i, 0, "a", 100000);
        (void)raw_expect(fd, IE__PUBACK);
    }
    reload_with_acl("anonymous\nallow publish >\n");
    ck_assert_uint_lt(bus_stats(server).out_bytes, 110000); /* at most the event that was begun */
    while (read(to, message, sizeof message) > 0) { /* what the kernel had, and then the end */
    }
    (void)close(fd);
    (void)close(to);
}
END_TEST

START_TEST(a_faulty_reload_changes_nothing)
{
    ie_error              err = IE_ERROR_INIT;
    const char *const     ELSEWHERE[] = {"socket://127.0.0.1:1"};
    ie_bus_server_options other;
    int                   fd;

    start_with_acl("anonymous\nallow publish a\n");
    fd = raw_open(server);
    write_file("acl", "anonymous\nallow publish >\nalow", 0600);
    ck_assert_int_eq(ie_bus_server_reload(server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "acl:3:1: unknown word 'alow'"));
    ck_assert_int_eq(chmod(test_path("acl"), 0666), 0);
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_EDENIED);
    ck_assert_int_eq(unlink(test_path("acl")), 0);
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_EIO);
    ck_assert_int_eq(mkdir(test_path("acl"), 0700), 0);
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_EINVAL);
    ck_assert_int_eq(rmdir(test_path("acl")), 0);
    write_file("acl", "anonymous\nallow publish >\n", 0600);
    other = options;
    other.listen = ELSEWHERE;
    ck_assert_int_eq(ie_bus_server_reload(server, &other, NULL), IE_EINVAL);
    other = options;
    other.credit_max = UINT32_MAX;
    ck_assert_int_eq(ie_bus_server_reload(server, &other, NULL), IE_EINVAL);
    raw_publish(fd, 1, 0, "b", 1);
    raw_expect_reason(fd, IE__PUBNACK, 1, IE_BUS_CODE_DENIED);
    ck_assert(COUNTER_IS(server, reloads, 0));
    (void)close(fd);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("acl");
    TCase   *file = tcase_create("file");
    TCase   *bus = tcase_create("bus");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(file, 200);
    tcase_add_test(file, a_faulty_line_is_named_with_what_was_meant);
    tcase_add_test(file, an_empty_file_allows_nothing);
    tcase_add_test(file, topics_are_compared_byte_by_byte);
    tcase_add_test(file, percent_u_is_the_users_own_place_and_no_wider);
    tcase_add_test(file, every_decision_is_that_of_the_reference);
    suite_add_tcase(suite, file);
    tcase_set_timeout(bus, 100);
    tcase_add_checked_fixture(bus, set_up, tear_down);
    tcase_add_test(bus, publishing_needs_the_right);
    tcase_add_test(bus, a_broad_subscription_gets_what_is_allowed_and_no_more);
    tcase_add_test(bus, a_right_that_is_withdrawn_ends_at_once);
    tcase_add_test(bus, what_waits_for_a_slow_reader_is_not_read_after_its_right_is_gone);
    tcase_add_test(bus, a_faulty_reload_changes_nothing);
    suite_add_tcase(suite, bus);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
