/* Status, lists, retry and discard, against a real worker's rows. */
#include <check.h>
#include <ie/inspect.h>
#include <ie/migrate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "stage.h"
#include "support.h"

static stage_why why;

#define HAS(text_, word_)                                                                          \
    ck_assert_msg(strstr((text_), (word_)) != NULL, "'%s' is missing in: %s", (word_), (text_))

/* ---- what the calls give ---- */

typedef struct looked {
    int            infos;
    ie_outbox_info info;
    char           journal[16];
    int            cursors;
    char           name[72];
    char           topics[200];
    char           order[16];
    bool           is_alive;
    int64_t        position;
    uint64_t       counts[IE_STATE_COUNT];
    int64_t        oldest_pending_ms;
    char           breaker[200];
} looked;

static void
keep_info(void *user, const ie_outbox_info *info)
{
    looked *out = user;

    out->infos++;
    out->info = *info;
    (void)snprintf(out->journal, sizeof out->journal, "%s", info->journal_mode);
}

static void
keep_cursor(void *user, const ie_cursor_status *cursor)
{
    looked *out = user;

    ck_assert_int_eq(out->infos, 1); /* info comes first */
    out->cursors++;
    (void)snprintf(out->name, sizeof out->name, "%s", cursor->name);
    (void)snprintf(out->topics, sizeof out->topics, "%s", cursor->topics);
    (void)snprintf(out->order, sizeof out->order, "%s", cursor->order);
    (void)snprintf(out->breaker, sizeof out->breaker, "%s", cursor->breaker_reason);
    out->is_alive = cursor->is_alive;
    out->position = cursor->position;
    out->oldest_pending_ms = cursor->oldest_pending_ms;
    memcpy(out->counts, cursor->counts, sizeof out->counts);
}

static looked
look(void)
{
    looked   out;
    ie_error error = IE_ERROR_INIT;

    memset(&out, 0, sizeof out);
    ck_assert_msg(ie_inspect_status(stage_db, keep_info, keep_cursor, &out, &error) == IE_OK, "%s",
                  error.message);
    ck_assert_int_eq(sqlite3_get_autocommit(stage_db), 1);
    return out;
}

typedef struct listed {
    int      count;
    int      stop_after; /* 0: never */
    int64_t  positions[64];
    ie_state states[64];
    char     cursors[64][72];
    uint32_t attempts;
    int64_t  due_at_ms;
    char     reason[600];
} listed;

static bool
keep_event(void *user, const ie_event_status *event)
{
    listed *out = user;

    ck_assert_int_lt(out->count, 64);
    out->positions[out->count] = event->event->position;
    out->states[out->count] = event->state;
    out->attempts = event->attempts;
    out->due_at_ms = event->due_at_ms;
    (void)snprintf(out->reason, sizeof out->reason, "%s", event->reason);
    (void)snprintf(out->cursors[out->count], sizeof out->cursors[0], "%s", event->cursor);
    out->count++;
    return out->count != out->stop_after;
}

static ie_status
list(listed *out, const ie_filter *filter)
{
    const int stop_after = out->stop_after;

    memset(out, 0, sizeof *out);
    out->stop_after = stop_after;
    return ie_inspect_list(stage_db, filter, keep_event, out, NULL);
}

static uint32_t
bit(ie_state state)
{
    return 1u << state;
}

/* ---- status ---- */

START_TEST(an_empty_outbox_has_a_status)
{
    const looked now = look();

    ck_assert_int_eq(now.infos, 1);
    ck_assert_int_eq(now.cursors, 0);
    ck_assert_uint_eq(now.info.events_kept, 0);
    ck_assert_int_eq(now.info.newest_position, 0);
    ck_assert_str_eq(now.journal, "wal");
    ck_assert_int_eq(now.info.schema_version, ie_migration_at(ie_migration_count() - 1)->version);
    ck_assert_int_gt(now.info.wal_bytes, 0);
}
END_TEST

static void
publish_one_of_each(void)
{
    (void)stage_publish("topic", "'ok.a'");                            /* 1 */
    (void)stage_publish("topic, key", "'retry.a', 'k'");               /* 2 */
    (void)stage_publish("topic, key", "'ok.b', 'k'");                  /* 3: behind it */
    (void)stage_publish("topic", "'reject.a'");                        /* 4 */
    (void)stage_publish("topic, expires_at", "'ok.c', 1000");          /* 5 */
    (void)stage_publish("topic, not_before", "'ok.d', 4102444800000"); /* 6 */
    (void)stage_publish("topic", "'ok.e'");                            /* 7 */
}

START_TEST(each_state_is_counted_where_it_belongs)
{
    const int64_t before_ms = ie__wall_ms(&ie__system_clock);

    publish_one_of_each();
    stage_start(NULL);
    stage_expect(&why, test_text(stage_db, "SELECT id FROM ie_event WHERE position = 7"),
                 IE_WHY_PUBLISHED);

    looked now = look();
    ck_assert_int_eq(now.cursors, 1);
    ck_assert_str_eq(now.name, "outbox");
    ck_assert_str_eq(now.order, "key");
    ck_assert(now.is_alive);
    ck_assert_int_eq(now.position, 7);
    ck_assert_uint_eq(now.counts[IE_STATE_PUBLISHED], 2);
    ck_assert_uint_eq(now.counts[IE_STATE_RETRYING], 1);
    ck_assert_uint_eq(now.counts[IE_STATE_BLOCKED], 1);
    ck_assert_uint_eq(now.counts[IE_STATE_DEAD], 1);
    ck_assert_uint_eq(now.counts[IE_STATE_EXPIRED], 1);
    ck_assert_uint_eq(now.counts[IE_STATE_SCHEDULED], 1);
    ck_assert_uint_eq(now.counts[IE_STATE_PENDING], 0);
    ck_assert_int_ge(now.oldest_pending_ms, before_ms - 1000);

    stage_stop();
    (void)stage_publish("topic", "'ok.f'");
    now = look();
    ck_assert(!now.is_alive);
    ck_assert_uint_eq(now.counts[IE_STATE_PENDING], 1);
    ck_assert_uint_eq(now.counts[IE_STATE_PUBLISHED], 2);
    ck_assert_uint_eq(now.info.events_kept, 8);
}
END_TEST

START_TEST(a_look_inside_a_transaction_leaves_it_open)
{
    looked out;

    memset(&out, 0, sizeof out);
    test_exec(stage_db, "BEGIN IMMEDIATE");
    (void)stage_publish("topic", "'ok.a'");
    ck_assert_int_eq(ie_inspect_status(stage_db, keep_info, NULL, &out, NULL), IE_OK);
    ck_assert_uint_eq(out.info.events_kept, 1);
    ck_assert_int_eq(ie_inspect_retry(stage_db, NULL, NULL, NULL), IE_ESTATE);
    ck_assert_int_eq(sqlite3_get_autocommit(stage_db), 0);
    test_exec(stage_db, "ROLLBACK");
}
END_TEST

/* ---- lists ---- */

START_TEST(the_newest_come_first_and_pages_go_on)
{
    ie_filter filter = {.size = sizeof filter, .limit = 2};
    listed    page = {.count = 0};

    for (int i = 0; i < 5; i++)
        (void)stage_publish("topic", "'ok.a'");
    ck_assert_int_eq(list(&page, &filter), IE_OK);
    ck_assert_int_eq(page.count, 2);
    ck_assert_int_eq(page.positions[0], 5);
    ck_assert_int_eq(page.positions[1], 4);
    ck_assert_str_eq(page.cursors[0], ""); /* no destination yet */
    ck_assert_int_eq(page.states[0], IE_STATE_PENDING);
    filter.before_position = 4;
    filter.limit = 0;
    ck_assert_int_eq(list(&page, &filter), IE_OK);
    ck_assert_int_eq(page.count, 3);
    ck_assert_int_eq(page.positions[0], 3);
    page.stop_after = 1;
    ck_assert_int_eq(list(&page, NULL), IE_OK);
    ck_assert_int_eq(page.count, 1);
}
END_TEST

START_TEST(filters_take_what_they_name_and_nothing_else)
{
    listed    page = {.count = 0};
    ie_filter filter = {.size = sizeof filter};

    publish_one_of_each();
    stage_start(NULL);
    stage_expect(&why, test_text(stage_db, "SELECT id FROM ie_event WHERE position = 7"),
                 IE_WHY_PUBLISHED);

    for (int i = 0; i < IE_STATE_COUNT; i++) {
        static const int EXPECTED[IE_STATE_COUNT] = {0, 0, 2, 1, 1, 1, 1, 1, 0};

        filter.states = bit((ie_state)i);
        ck_assert_int_eq(list(&page, &filter), IE_OK);
        ck_assert_msg(page.count == EXPECTED[i], "%s: %d", ie_state_name((ie_state)i), page.count);
        for (int k = 0; k < page.count; k++)
            ck_assert_int_eq(page.states[k], i);
    }
    filter.states = bit(IE_STATE_DEAD) | bit(IE_STATE_PUBLISHED);
    ck_assert_int_eq(list(&page, &filter), IE_OK);
    ck_assert_int_eq(page.count, 3);

    filter = (ie_filter){.size = sizeof filter, .key = "k"};
    ck_assert_int_eq(list(&page, &filter), IE_OK);
    ck_assert_int_eq(page.count, 2);
    ck_assert_int_eq(page.states[1], IE_STATE_RETRYING);
    ck_assert_uint_eq(page.attempts, 1);
    ck_assert_str_eq(page.reason, "the receiver is busy");
    ck_assert_int_gt(page.due_at_ms, ie__wall_ms(&ie__system_clock));

    filter = (ie_filter){.size = sizeof filter, .topics = "reject.*, retry.>"};
    ck_assert_int_eq(list(&page, &filter), IE_OK);
    ck_assert_int_eq(page.count, 2);

    filter = (ie_filter){.size = sizeof filter, .id = "nope"};
    ck_assert_int_eq(list(&page, &filter), IE_OK);
    ck_assert_int_eq(page.count, 0);

    filter = (ie_filter){.size = sizeof filter, .cursor = "nope"};
    ck_assert_int_eq(list(&page, &filter), IE_ENOTFOUND);
    filter = (ie_filter){.size = sizeof filter, .topics = "a..b"};
    ck_assert_int_eq(list(&page, &filter), IE_EINVAL);
    filter = (ie_filter){.size = sizeof filter, .states = 1u << IE_STATE_COUNT};
    ck_assert_int_eq(list(&page, &filter), IE_EINVAL);
    filter = (ie_filter){.size = 3};
    ck_assert_int_eq(list(&page, &filter), IE_EINVAL);
}
END_TEST

START_TEST(a_destination_lists_only_what_it_takes)
{
    const ie_destination to[] = {
        {.size = sizeof to[0], .name = "a", .url = "stage:", .topics = "ok.*"},
        {.size = sizeof to[0], .name = "b", .url = "stage:", .topics = "reject.*"},
    };
    ie_worker_options options;
    listed            page = {.count = 0};
    const ie_filter   only = {.size = sizeof only, .cursor = "a"};

    (void)stage_publish("topic", "'ok.a'");
    const char *dead = stage_publish("topic", "'reject.a'");
    stage_options(&options);
    options.to = NULL;
    options.destinations = to;
    options.destination_count = 2;
    stage_start(&options);
    stage_expect(&why, dead, IE_WHY_DEAD); /* asked of b, the last */
    ck_assert_int_eq(list(&page, NULL), IE_OK);
    ck_assert_int_eq(page.count, 2);
    ck_assert_str_eq(page.cursors[0], "b");
    ck_assert_str_eq(page.cursors[1], "a");
    ck_assert_int_eq(list(&page, &only), IE_OK);
    ck_assert_int_eq(page.count, 1);
    ck_assert_int_eq(page.positions[0], 1);
}
END_TEST

/* ---- retry and discard ---- */

static ie_filter
by_id(const char *id)
{
    return (ie_filter){.size = sizeof(ie_filter), .id = id};
}

START_TEST(a_dead_event_is_sent_again)
{
    const char *id = stage_publish("topic", "'reject.a'");
    uint64_t    changed = 0;

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_DEAD);
    stage_stop();
    const ie_filter which = by_id(id);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, NULL), IE_OK);
    ck_assert_uint_eq(changed, 1);
    ck_assert_str_eq(test_text(stage_db, "SELECT state || attempts || claims FROM ie_delivery"),
                     "retrying00");
    stage_expect(&why, id, IE_WHY_WORKER_NOT_RUNNING);
    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_DEAD); /* it was tried again: rejected as before */
    ck_assert_int_eq(test_int(stage_db, "SELECT attempts FROM ie_delivery"), 1);
}
END_TEST

START_TEST(a_running_worker_notices_a_retry_by_hand)
{
    const char *id = stage_publish("topic", "'retry.a'");
    uint64_t    changed = 0;

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_RETRYING); /* next try in up to a minute */
    const int64_t   since = test_int(stage_db, "SELECT since FROM ie_delivery");
    const ie_filter which = by_id(id);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, NULL), IE_OK);
    stage_expect(&why, id, IE_WHY_RETRYING);
    for (int64_t end = ie__mono_ns() + 10000000000; ie__mono_ns() < end;)
        if (test_int(stage_db, "SELECT attempts FROM ie_delivery") == 1 &&
            test_int(stage_db, "SELECT since FROM ie_delivery") > since)
            break;
    ck_assert_int_eq(test_int(stage_db, "SELECT attempts FROM ie_delivery"), 1);
    ck_assert_int_gt(test_int(stage_db, "SELECT since FROM ie_delivery"), since);
}
END_TEST

START_TEST(discarding_the_head_lets_its_key_go_on)
{
    const char *first = stage_publish("topic, key", "'retry.a', 'k'");
    const char *second = stage_publish("topic, key", "'ok.b', 'k'");
    const char *third = stage_publish("topic, key", "'ok.c', 'k'");
    uint64_t    changed = 0;

    stage_start(NULL);
    stage_expect(&why, third, IE_WHY_BLOCKED);
    const ie_filter middle = by_id(second);
    ck_assert_int_eq(ie_inspect_discard(stage_db, &middle, NULL, &changed, NULL), IE_OK);
    stage_expect(&why, second, IE_WHY_DISCARDED);
    HAS(why.sentence, "discarded by hand");
    stage_expect(&why, third, IE_WHY_BLOCKED); /* the head still holds the key */
    const ie_filter head = by_id(first);
    ck_assert_int_eq(ie_inspect_discard(stage_db, &head, "no use", &changed, NULL), IE_OK);
    stage_expect(&why, third, IE_WHY_PUBLISHED);
}
END_TEST

START_TEST(refusals_name_the_state)
{
    const char *done = stage_publish("topic", "'ok.a'");
    const char *late = stage_publish("topic, expires_at", "'ok.b', 1000");
    const char *later = stage_publish("topic, not_before", "'ok.c', 4102444800000");
    ie_error    error = IE_ERROR_INIT;
    uint64_t    changed = 7;
    ie_filter   which = by_id(done);

    stage_start(NULL);
    stage_expect(&why, later, IE_WHY_SCHEDULED);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, &error), IE_ESTATE);
    ck_assert_uint_eq(changed, 0);
    HAS(error.message, "is published");
    ie_error_clear(&error);
    ck_assert_int_eq(ie_inspect_discard(stage_db, &which, "x", &changed, &error), IE_ESTATE);
    HAS(error.message, "is published");
    ie_error_clear(&error);
    which = by_id(late);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, &error), IE_ESTATE);
    HAS(error.message, "expired at 1970-01-01T00:00:01.000Z");
    ie_error_clear(&error);
    which = by_id(later);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, &error), IE_ESTATE);
    HAS(error.message, "is scheduled");
    ck_assert_int_eq(ie_inspect_discard(stage_db, &which, "x", &changed, NULL), IE_OK);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, NULL), IE_OK);
    which = by_id("nope");
    ck_assert_int_eq(ie_inspect_retry(stage_db, &which, &changed, NULL), IE_ENOTFOUND);
    which = (ie_filter){.size = sizeof which, .key = "nope"};
    ck_assert_int_eq(ie_inspect_discard(stage_db, &which, "x", &changed, NULL), IE_ENOTFOUND);
}
END_TEST

START_TEST(a_strict_orders_head_is_the_workers_while_it_runs)
{
    const ie_destination to = {
        .size = sizeof to, .name = "outbox", .url = "stage:", .order = IE_ORDER_STRICT};
    const char       *head = stage_publish("topic", "'retry.a'");
    const char       *next = stage_publish("topic", "'ok.b'");
    ie_worker_options options;
    ie_error          error = IE_ERROR_INIT;
    ie_filter         which = by_id(head);

    stage_options(&options);
    options.to = NULL;
    options.destinations = &to;
    options.destination_count = 1;
    stage_start(&options);
    stage_expect(&why, head, IE_WHY_RETRYING);
    ck_assert_int_eq(ie_inspect_discard(stage_db, &which, NULL, NULL, &error), IE_ESTATE);
    HAS(error.message, "stop the worker");
    stage_stop();
    ck_assert_int_eq(ie_inspect_discard(stage_db, &which, NULL, NULL, NULL), IE_OK);
    stage_expect(&why, head, IE_WHY_DISCARDED);
    stage_start(&options);
    stage_expect(&why, next, IE_WHY_PUBLISHED);
    stage_expect(&why, head, IE_WHY_DISCARDED); /* nothing sent it after all */
    ck_assert_int_eq(look().position, 2);
}
END_TEST

START_TEST(many_are_changed_page_by_page_up_to_a_limit)
{
    uint64_t        changed = 0;
    const ie_filter dead = {.size = sizeof dead, .states = bit(IE_STATE_DEAD)};
    const ie_filter some = {.size = sizeof some, .states = bit(IE_STATE_DEAD), .limit = 7};
    const ie_filter topic = {.size = sizeof topic, .topics = "reject.3.*"};

    test_exec(stage_db,
              "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999)"
              " INSERT INTO ie_event (topic) SELECT 'reject.' || (i % 10) || '.x' FROM n");
    stage_start(NULL);
    stage_expect(&why, test_text(stage_db, "SELECT id FROM ie_event WHERE position = 1000"),
                 IE_WHY_DEAD);
    stage_stop();
    ck_assert_int_eq(ie_inspect_discard(stage_db, &topic, NULL, &changed, NULL), IE_OK);
    ck_assert_uint_eq(changed, 100);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &some, &changed, NULL), IE_OK);
    ck_assert_uint_eq(changed, 7);
    ck_assert_int_eq(
        test_int(stage_db, "SELECT min(position) FROM ie_delivery WHERE state = 'retrying'"), 993);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &dead, &changed, NULL), IE_OK);
    ck_assert_uint_eq(changed, 893);
    ck_assert_int_eq(ie_inspect_retry(stage_db, &dead, &changed, NULL), IE_ENOTFOUND);
}
END_TEST

START_TEST(each_allocation_may_fail)
{
    const ie_filter which = {
        .size = sizeof which, .topics = "retry.*", .states = bit(IE_STATE_RETRYING)};
    ie_status   status = IE_ENOMEM;
    const char *id = stage_publish("topic, key", "'retry.a', 'k'");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_RETRYING);
    stage_stop();
    for (uint64_t n = 1; status == IE_ENOMEM; n++) {
        listed page = {.count = 0};

        ie__alloc_fail_at(n, false);
        status = list(&page, &which);
        ie__alloc_fail_at(0, false);
        ck_assert_int_eq(page.count, status == IE_OK ? 1 : 0);
        ck_assert_int_eq(sqlite3_get_autocommit(stage_db), 1);
    }
    ck_assert_int_eq(status, IE_OK);
    status = IE_ENOMEM;
    for (uint64_t n = 1; status == IE_ENOMEM; n++) {
        ie__alloc_fail_at(n, false);
        status = ie_inspect_discard(stage_db, &which, NULL, NULL, NULL);
        ie__alloc_fail_at(0, false);
        ck_assert_int_eq(sqlite3_get_autocommit(stage_db), 1);
        ck_assert_int_eq(
            test_int(stage_db, "SELECT count(*) FROM ie_delivery WHERE state = 'discarded'"),
            status == IE_OK ? 1 : 0);
    }
    ck_assert_int_eq(status, IE_OK);
    status = IE_ENOMEM;
    for (uint64_t n = 1; status == IE_ENOMEM; n++) {
        ie__alloc_fail_at(n, false);
        status = stage_ask(&why, id, NULL);
        ie__alloc_fail_at(0, false);
        ck_assert_int_eq(sqlite3_get_autocommit(stage_db), 1);
    }
    ck_assert_int_eq(status, IE_OK);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("inspect");
    TCase   *tcase = tcase_create("inspect");
    SRunner *runner;
    int      failed;

    tcase_add_checked_fixture(tcase, stage_open, stage_close);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, an_empty_outbox_has_a_status);
    tcase_add_test(tcase, each_state_is_counted_where_it_belongs);
    tcase_add_test(tcase, a_look_inside_a_transaction_leaves_it_open);
    tcase_add_test(tcase, the_newest_come_first_and_pages_go_on);
    tcase_add_test(tcase, filters_take_what_they_name_and_nothing_else);
    tcase_add_test(tcase, a_destination_lists_only_what_it_takes);
    tcase_add_test(tcase, a_dead_event_is_sent_again);
    tcase_add_test(tcase, a_running_worker_notices_a_retry_by_hand);
    tcase_add_test(tcase, discarding_the_head_lets_its_key_go_on);
    tcase_add_test(tcase, refusals_name_the_state);
    tcase_add_test(tcase, a_strict_orders_head_is_the_workers_while_it_runs);
    tcase_add_test(tcase, many_are_changed_page_by_page_up_to_a_limit);
    tcase_add_test(tcase, each_allocation_may_fail);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
