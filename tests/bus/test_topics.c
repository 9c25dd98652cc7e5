/* The index of patterns against the definition: it must agree with ie_pattern_matches(). */
#include "topics.h"

#include <check.h>
#include <ie/bus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "support.h"

typedef struct item {
    ie__topic_entry entry;
    char            pattern[64];
    unsigned        seen;
} item;

static void
random_words(char *out, bool is_pattern)
{
    static const char *const WORDS[] = {"a", "b", "order", "x1"};
    const int                count = 1 + (int)ie__random_below(4);

    out[0] = '\0';
    for (int i = 0; i < count; i++) {
        const char *word = WORDS[ie__random_below(4)];

        if (is_pattern && ie__random_below(4) == 0)
            word = "*";
        if (is_pattern && i == count - 1 && ie__random_below(4) == 0)
            word = ">";
        if (i > 0)
            strcat(out, ".");
        strcat(out, word);
    }
}

START_TEST(the_index_agrees_with_the_definition)
{
    static item items[200];
    bool        is_in[200] = {false};
    ie__topics *topics = ie__topics_new();

    ie__random_seed(test_seed());
    ck_assert_ptr_nonnull(topics);
    for (int round = 0; round < 20000; round++) {
        const size_t    which = (size_t)ie__random_below(200);
        ie__topic_match match;
        char            topic[64];
        size_t          expected = 0;

        if (is_in[which] && ie__random_below(3) == 0) {
            ie__topics_remove(topics, &items[which].entry);
            is_in[which] = false;
        } else if (!is_in[which] && ie__random_below(3) == 0) {
            random_words(items[which].pattern, true);
            ck_assert_int_eq(ie__topics_add(topics, &items[which].entry, items[which].pattern),
                             IE_OK);
            is_in[which] = true;
        }
        random_words(topic, false);
        ck_assert_int_eq(ie__topics_match(&match, topics, topic, strlen(topic), NULL), IE_OK);
        for (size_t i = 0; i < match.count; i++)
            ((item *)(void *)match.entries[i])->seen++;
        for (size_t i = 0; i < 200; i++) {
            const bool wanted = is_in[i] && ie_pattern_matches(items[i].pattern, topic);

            if (items[i].seen != wanted) /* asserting 4 million times takes its time */
                ck_abort_msg("%s against %s: %u, not %d", topic, items[i].pattern, items[i].seen,
                             wanted);
            items[i].seen = 0;
            expected += wanted;
        }
        ck_assert_uint_eq(match.count, expected);
    }
    ie__topics_free(topics);
}
END_TEST

START_TEST(what_is_not_a_topic_is_refused_and_not_remembered)
{
    ie__topics     *topics = ie__topics_new();
    ie__topic_match match;

    ck_assert_ptr_nonnull(topics);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(ie__topics_match(&match, topics, "a..b", 4, NULL), IE_EINVAL);
        ck_assert_int_eq(ie__topics_match(&match, topics, "a.*", 3, NULL), IE_EINVAL);
        ck_assert_int_eq(ie__topics_match(&match, topics, "a\0b", 3, NULL), IE_EINVAL);
        ck_assert_int_eq(ie__topics_match(&match, topics, "a\xff", 2, NULL), IE_EINVAL);
        ck_assert_int_eq(ie__topics_match(&match, topics, "a.b", 3, NULL), IE_OK);
        ck_assert_uint_eq(match.count, 0);
    }
    ie__topics_free(topics);
}
END_TEST

START_TEST(many_subscriptions_and_topics_stay_fast_and_bounded)
{
    enum { COUNT = 100000 };
    static item items[COUNT];
    ie__topics *topics = ie__topics_new();
    int64_t     start;

    ck_assert_ptr_nonnull(topics);
    for (size_t i = 0; i < COUNT; i++) {
        (void)snprintf(items[i].pattern, sizeof items[i].pattern,
                       i % 3 == 0   ? "t%zu.>"
                       : i % 3 == 1 ? "*.w%zu"
                                    : "t%zu.w",
                       i);
        ck_assert_int_eq(ie__topics_add(topics, &items[i].entry, items[i].pattern), IE_OK);
    }
    start = ie__mono_ns();
    for (size_t i = 0; i < 2 * IE__TOPICS_CACHED_MAX; i++) { /* each one new to the cache */
        ie__topic_match match;
        char            topic[64];
        const int       size = snprintf(topic, sizeof topic, "t%zu.w%zu", i * 3, i * 3 + 1);

        ck_assert_int_eq(ie__topics_match(&match, topics, topic, (size_t)size, NULL), IE_OK);
        ck_assert_uint_eq(match.count, 2);
    }
    ck_assert_msg((ie__mono_ns() - start) / (2 * IE__TOPICS_CACHED_MAX) < 500000,
                  "a match takes longer than 500 us");
    for (size_t i = 0; i < COUNT; i++)
        ie__topics_remove(topics, &items[i].entry);
    ie__topics_free(topics);
}
END_TEST

START_TEST(a_failing_allocation_changes_nothing)
{
    ie__topics     *topics = ie__topics_new();
    ie__topic_match match;
    item            kept = {.pattern = "a.*"};
    item            tried = {.pattern = "a.b.c.d.>"};
    uint64_t        n;

    ck_assert_ptr_nonnull(topics);
    ck_assert_int_eq(ie__topics_add(topics, &kept.entry, kept.pattern), IE_OK);
    for (n = 1;; n++) {
        ie_status status;

        ie__alloc_fail_at(n, false);
        status = ie__topics_add(topics, &tried.entry, tried.pattern);
        ie__alloc_fail_at(0, false);
        if (status == IE_OK)
            break;
        ck_assert_int_eq(status, IE_ENOMEM);
        ck_assert_ptr_null(tried.entry.node);
    }
    ck_assert_uint_gt(n, 3);
    for (n = 1;; n++) {
        ie_status status;

        ie__alloc_fail_at(n, false);
        status = ie__topics_match(&match, topics, "a.b.c.d.e", 9, NULL);
        ie__alloc_fail_at(0, false);
        if (status == IE_OK)
            break;
        ck_assert_int_eq(status, IE_ENOMEM);
    }
    ck_assert_uint_eq(match.count, 1);
    ck_assert_ptr_eq(match.entries[0], &tried.entry);
    ie__topics_free(topics);
}
END_TEST

#define OVERLAPPING 100000 /* what a bus takes by default */
#define OF_A_CLIENT 256    /* what it takes of one client */

/* Patterns that all begin as the topic does, half of their words "*", and none of which matches:
 * only the last word differs. This is the most that a topic can cost. */
static void
overlapping_pattern(char out[256], size_t words, uint64_t number)
{
    char *at = out;

    for (size_t i = 0; i + 1 < words; i++) {
        *at++ = (number >> (i % 17) & 1) != 0 ? '*' : 'a';
        *at++ = '.';
    }
    (void)snprintf(at, 8, "z");
}

START_TEST(overlapping_wildcards_cost_what_they_are)
{
    static const size_t WORDS[] = {4, 12, 18, IE_BUS_PATTERN_WORDS_MAX};
    const size_t        words = WORDS[_i / 2];
    const uint64_t      count = _i % 2 == 0 ? OF_A_CLIENT : test_scale(OVERLAPPING);
    ie__topics         *topics = ie__topics_new();
    ie__topic_entry    *entries = calloc(count, sizeof *entries);
    char                text[256];
    ie__topic_match     match;
    int64_t             worst_ns = 0;

    ck_assert_ptr_nonnull(topics);
    ck_assert_ptr_nonnull(entries);
    for (uint64_t i = 0; i < count; i++) {
        overlapping_pattern(text, words, i);
        ck_assert_int_eq(ie__topics_add(topics, &entries[i], text), IE_OK);
    }
    for (int round = 0; round < 5; round++) { /* another topic each time: no cached answer */
        int64_t began_ns;
        size_t  size = 0;

        for (size_t i = 0; i + 1 < words; i++)
            size += (size_t)snprintf(text + size, sizeof text - size, "a.");
        size += (size_t)snprintf(text + size, sizeof text - size, "%c", 'a' + round);
        began_ns = ie__mono_ns();
        ck_assert_int_eq(ie__topics_match(&match, topics, text, size, NULL), IE_OK);
        began_ns = ie__mono_ns() - began_ns;
        worst_ns = began_ns > worst_ns ? began_ns : worst_ns;
        ck_assert_uint_eq(match.count, 0);
    }
    printf("%llu overlapping patterns of %zu words: a topic costs %lld us\n",
           (unsigned long long)count, words, (long long)(worst_ns / 1000));
    /* One client cannot make a topic cost more than some milliseconds. */
    if (count == OF_A_CLIENT)
        ck_assert_int_lt(worst_ns, 100 * INT64_C(1000000));
    for (uint64_t i = 0; i < count; i++)
        ie__topics_remove(topics, &entries[i]);
    ie__topics_free(topics);
    free(entries);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus topics");
    TCase   *tcase = tcase_create("topics");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, the_index_agrees_with_the_definition);
    tcase_add_test(tcase, what_is_not_a_topic_is_refused_and_not_remembered);
    tcase_add_test(tcase, many_subscriptions_and_topics_stay_fast_and_bounded);
    tcase_add_test(tcase, a_failing_allocation_changes_nothing);
    tcase_add_loop_test(tcase, overlapping_wildcards_cost_what_they_are, 0, 8);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
