/* Every answer of ie_why_event(), brought about by a real worker wherever that is possible. */
#include <check.h>
#include <ie/inspect.h>
#include <ie/migrate.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "stage.h"
#include "support.h"

static stage_why why;

#define HAS(text_, word_)                                                                          \
    ck_assert_msg(strstr((text_), (word_)) != NULL, "'%s' is missing in: %s", (word_), (text_))

START_TEST(an_unknown_id_is_said_to_be_unknown)
{
    ck_assert_int_eq(stage_ask(&why, "nope", NULL), IE_ENOTFOUND);
    ck_assert_int_eq(why.count, 1);
    ck_assert_int_eq(why.code, IE_WHY_UNKNOWN_ID);
    ck_assert_str_eq(why.name, "unknown-id");
    HAS(why.evidence, "empty");
    (void)stage_publish("topic", "'ok.a'");
    ck_assert_int_eq(stage_ask(&why, "nope", NULL), IE_ENOTFOUND);
    HAS(why.evidence, "keeps 1 events");
    HAS(why.next, "ie outbox ls app.db");
}
END_TEST

START_TEST(the_time_in_an_unknown_id_tells_retention_from_a_lost_transaction)
{
    (void)stage_publish("topic", "'ok.a'");
    ck_assert_int_eq(stage_ask(&why, "01800000-0000-7000-8000-000000000000", NULL), IE_ENOTFOUND);
    HAS(why.evidence, "retention is the likely one");

    test_exec(stage_db, "BEGIN");
    const char *id = stage_publish("topic", "'ok.b'");
    test_exec(stage_db, "ROLLBACK");
    ck_assert_int_eq(stage_ask(&why, id, NULL), IE_ENOTFOUND);
    HAS(why.evidence, "not committed");
}
END_TEST

START_TEST(without_any_worker_there_is_no_destination)
{
    const char *id = stage_publish("topic", "'ok.a'");

    stage_expect(&why, id, IE_WHY_NO_DESTINATION);
    ck_assert_str_eq(why.cursor, "");
    HAS(why.evidence, "position 1");
    HAS(why.next, "ie relay app.db --to ");
}
END_TEST

START_TEST(a_published_event_is_published)
{
    const char *id = stage_publish("topic", "'ok.a'");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_PUBLISHED);
    ck_assert_str_eq(why.cursor, "outbox");
    HAS(why.sentence, "stage:");
    HAS(why.evidence, "past the event's position 1");
}
END_TEST

START_TEST(a_stopped_worker_is_named_with_its_last_sign_of_life)
{
    const char *first = stage_publish("topic", "'ok.a'");

    stage_start(NULL);
    stage_expect(&why, first, IE_WHY_PUBLISHED);
    stage_stop();
    stage_expect(&why, stage_publish("topic", "'ok.b'"), IE_WHY_WORKER_NOT_RUNNING);
    HAS(why.sentence, "last sign of life was ");
    HAS(why.sentence, " ago (20");
    HAS(why.evidence, "gave its lease back");
    HAS(why.next, "ie relay app.db --to stage: --cursor outbox");
}
END_TEST

/* A worker in a process of its own. */
static pid_t
worker_process(void)
{
    const pid_t child = fork();

    ck_assert_int_ge(child, 0);
    if (child == 0) {
        ie_worker_options options;
        ie_worker        *own = NULL;

        stage_options(&options);
        options.lease_ms = 300;
        if (ie_worker_start(&own, &options, NULL) != IE_OK)
            _exit(1);
        for (;;)
            (void)pause();
    }
    return child;
}

START_TEST(a_killed_worker_is_told_from_one_that_hangs)
{
    const char *first = stage_publish("topic", "'ok.a'");
    pid_t       child = worker_process();
    char        words[96];

    stage_expect(&why, first, IE_WHY_PUBLISHED);
    ck_assert_int_eq(kill(child, SIGSTOP), 0);
    const char *second = stage_publish("topic", "'ok.b'");
    stage_expect(&why, second, IE_WHY_WORKER_NOT_RUNNING);
    (void)snprintf(words, sizeof words, "lease of process %ld ran out", (long)child);
    HAS(why.evidence, words);

    ck_assert_int_eq(kill(child, SIGKILL), 0);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    stage_expect(&why, second, IE_WHY_WORKER_NOT_RUNNING);
    (void)snprintf(words, sizeof words, "process %ld, which held the lease, does not exist",
                   (long)child);
    HAS(why.evidence, words);
}
END_TEST

START_TEST(a_topic_that_nobody_takes_shows_the_nearest_pattern)
{
    ie_worker_options    options;
    const ie_destination to = {.size = sizeof to,
                               .name = "orders",
                               .url = "stage:",
                               .topics = "stock.>, ok.orders.*, billing"};
    const char          *id = stage_publish("topic", "'ok.invoices.paid'");
    const char          *fence = stage_publish("topic", "'ok.orders.placed'");

    stage_options(&options);
    options.to = NULL;
    options.destinations = &to;
    options.destination_count = 1;
    stage_start(&options);
    stage_expect(&why, fence, IE_WHY_PUBLISHED);
    stage_expect(&why, id, IE_WHY_NOT_ROUTED);
    HAS(why.sentence, "nearest pattern is ok.orders.*");
    HAS(why.evidence, "has passed");
    HAS(why.next, "--cursor orders.new --topics ok.invoices.paid");
}
END_TEST

START_TEST(an_event_in_the_workers_hands_is_in_progress_and_the_rest_pending)
{
    ie_worker_options options;
    const char       *ids[3];

    for (int i = 0; i < 3; i++)
        ids[i] = stage_publish("topic", "'hang.a'");
    stage_options(&options);
    options.in_flight_max = 1; /* the reservation is twice the window */
    stage_start(&options);
    stage_expect(&why, ids[0], IE_WHY_IN_PROGRESS);
    HAS(why.sentence, "leased to the worker of destination outbox");
    HAS(why.evidence, " in ");
    stage_expect(&why, ids[1], IE_WHY_IN_PROGRESS);
    HAS(why.sentence, "1 events before it");
    stage_expect(&why, ids[2], IE_WHY_PENDING);
    HAS(why.sentence, "behind 2 events");
}
END_TEST

START_TEST(a_scheduled_event_names_its_time)
{
    const char *id = stage_publish("topic, not_before", "'ok.a', 4102444800000");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_SCHEDULED);
    HAS(why.sentence, "2100-01-01T00:00:00.000Z");
    HAS(why.sentence, "in ");
    HAS(why.evidence, "a worker (process ");
    stage_stop();
    stage_expect(&why, id, IE_WHY_SCHEDULED);
    HAS(why.evidence, "no worker is running");
}
END_TEST

START_TEST(a_refused_event_is_retrying_and_holds_its_key)
{
    const char *first = stage_publish("topic, key", "'retry.a', 'order-7'");
    const char *second = stage_publish("topic, key", "'ok.b', 'order-7'");
    const char *third = stage_publish("topic, key", "'ok.c', 'order-7'");
    const char *other = stage_publish("topic, key", "'ok.d', 'order-8'");

    stage_start(NULL);
    stage_expect(&why, other, IE_WHY_PUBLISHED);
    stage_expect(&why, first, IE_WHY_RETRYING);
    HAS(why.sentence, "attempt 1 failed");
    HAS(why.sentence, "in ");
    HAS(why.evidence, "the receiver is busy");
    stage_expect(&why, second, IE_WHY_BLOCKED);
    HAS(why.sentence, first);
    HAS(why.sentence, "order-7");
    HAS(why.sentence, "1 attempts so far");
    HAS(why.evidence, "the receiver is busy");
    HAS(why.next, first);
    stage_expect(&why, third, IE_WHY_BLOCKED);
    HAS(why.sentence, first);
    HAS(why.evidence, "1 more of the key");
}
END_TEST

START_TEST(an_unreachable_destination_is_an_open_breaker)
{
    const char *id = stage_publish("topic", "'down.a'");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_BREAKER_OPEN);
    HAS(why.sentence, "cannot be reached");
    HAS(why.sentence, " ago (");
    HAS(why.sentence, "comes in ");
    HAS(why.evidence, "connection refused");
    HAS(why.evidence, "no attempt");
}
END_TEST

START_TEST(a_rejected_event_is_dead_with_the_receivers_words)
{
    const char *id = stage_publish("topic", "'reject.a'");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_DEAD);
    HAS(why.sentence, "does not know the field colour");
    HAS(why.sentence, " ago (");
    HAS(why.next, "ie outbox retry app.db ");
    HAS(why.next, id);
}
END_TEST

START_TEST(an_expired_event_was_never_sent)
{
    const char *id = stage_publish("topic, expires_at", "'ok.a', 1000");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_EXPIRED);
    HAS(why.sentence, "1970-01-01T00:00:01.000Z");
}
END_TEST

START_TEST(a_discarded_event_names_who_said_so)
{
    const char *id = stage_publish("topic", "'reject.a'");

    stage_start(NULL);
    stage_expect(&why, id, IE_WHY_DEAD);
    const ie_filter which = {.size = sizeof which, .id = id};
    ck_assert_int_eq(ie_inspect_discard(stage_db, &which, "paid by hand, ticket 4711", NULL, NULL),
                     IE_OK);
    stage_expect(&why, id, IE_WHY_DISCARDED);
    HAS(why.sentence, "paid by hand, ticket 4711");
}
END_TEST

START_TEST(each_destination_has_its_answer)
{
    const ie_destination to[] = {
        {.size = sizeof to[0], .name = "all", .url = "stage:"},
        {.size = sizeof to[0], .name = "some", .url = "stage:", .topics = "nothing"},
    };
    ie_worker_options options;
    const char       *id = stage_publish("topic", "'reject.a'");

    stage_options(&options);
    options.to = NULL;
    options.destinations = to;
    options.destination_count = 2;
    stage_start(&options);
    stage_expect(&why, id, IE_WHY_NOT_ROUTED); /* the last one, by name */
    ck_assert_int_eq(why.count, 2);
    ck_assert_int_eq(stage_ask(&why, id, "some"), IE_OK);
    ck_assert_int_eq(why.count, 1);
    ck_assert_int_eq(stage_ask(&why, id, "missing"), IE_ENOTFOUND);
    ck_assert_int_eq(why.count, 0);
}
END_TEST

START_TEST(commands_are_safe_to_paste)
{
    ie_error error = IE_ERROR_INIT;

    (void)stage_publish("topic, id", "'ok.a', 'it''s; rm $HOME'");
    ck_assert_int_eq(stage_ask(&why, "it's; rm $HOME", NULL), IE_OK);
    stage_start(NULL);
    stage_expect(&why, "it's; rm $HOME", IE_WHY_PUBLISHED);
    HAS(why.next, "'it'\\''s; rm $HOME'");
    ck_assert_int_eq(ie_why_event(stage_db, "", NULL, NULL, NULL, NULL, &error), IE_EINVAL);
}
END_TEST

START_TEST(tables_that_are_missing_are_named)
{
    sqlite3  *empty = test_db_open(test_path("empty.db"));
    ie_error  error = IE_ERROR_INIT;
    stage_why out;

    memset(&out, 0, sizeof out);
    ck_assert_int_eq(ie_inspect_status(empty, NULL, NULL, NULL, &error), IE_ESCHEMA_MISSING);
    HAS(error.message, "ie migrate up");
    ck_assert_int_eq(sqlite3_get_autocommit(empty), 1);
    ck_assert_int_eq(sqlite3_close(empty), SQLITE_OK);
}
END_TEST

/* The codes of the document, in its first table column, are the codes of the library. */
START_TEST(the_document_lists_exactly_the_answers)
{
    static const char *const NAMES[] = {
        "unknown-id",   "no-destination", "worker-not-running",
        "not-routed",   "pending",        "in-progress",
        "scheduled",    "blocked",        "retrying",
        "breaker-open", "dead",           "expired",
        "discarded",    "published",
    };
    char  line[2000];
    int   found = 0;
    FILE *file = fopen(IE_WHY_DOCUMENT, "r");

    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file) != NULL) {
        char *end = strncmp(line, "| `", 3) == 0 ? strchr(line + 3, '`') : NULL;
        bool  is_known = false;

        if (end == NULL)
            continue;
        *end = '\0';
        for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++)
            is_known = is_known || strcmp(NAMES[i], line + 3) == 0;
        ck_assert_msg(is_known, "WHY.md lists %s", line + 3);
        found++;
    }
    (void)fclose(file);
    ck_assert_int_eq(found, (int)(sizeof NAMES / sizeof NAMES[0]));
    ck_assert_int_eq(found, IE_WHY_PUBLISHED + 1);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("why");
    TCase   *tcase = tcase_create("why");
    SRunner *runner;
    int      failed;

    tcase_add_checked_fixture(tcase, stage_open, stage_close);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, an_unknown_id_is_said_to_be_unknown);
    tcase_add_test(tcase, the_time_in_an_unknown_id_tells_retention_from_a_lost_transaction);
    tcase_add_test(tcase, without_any_worker_there_is_no_destination);
    tcase_add_test(tcase, a_published_event_is_published);
    tcase_add_test(tcase, a_stopped_worker_is_named_with_its_last_sign_of_life);
    tcase_add_test(tcase, a_killed_worker_is_told_from_one_that_hangs);
    tcase_add_test(tcase, a_topic_that_nobody_takes_shows_the_nearest_pattern);
    tcase_add_test(tcase, an_event_in_the_workers_hands_is_in_progress_and_the_rest_pending);
    tcase_add_test(tcase, a_scheduled_event_names_its_time);
    tcase_add_test(tcase, a_refused_event_is_retrying_and_holds_its_key);
    tcase_add_test(tcase, an_unreachable_destination_is_an_open_breaker);
    tcase_add_test(tcase, a_rejected_event_is_dead_with_the_receivers_words);
    tcase_add_test(tcase, an_expired_event_was_never_sent);
    tcase_add_test(tcase, a_discarded_event_names_who_said_so);
    tcase_add_test(tcase, each_destination_has_its_answer);
    tcase_add_test(tcase, commands_are_safe_to_paste);
    tcase_add_test(tcase, tables_that_are_missing_are_named);
    tcase_add_test(tcase, the_document_lists_exactly_the_answers);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
