/* The inbox: an event takes effect once per group, whoever delivers it however often, and whoever
 * dies on the way. */
#include <ie/inbox.h>
#include <ie/migrate.h>

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "support.h"

static sqlite3 *db;
static ie_error failure;
static int      handled;
static bool     first;

static const ie_event PLACED = {.size = sizeof PLACED,
                                .topic = "shop.order.placed",
                                .id = "event-1",
                                .source = "/shop",
                                .type = "placed",
                                .data = "{\"n\":1}",
                                .data_bytes = 7};

static void
setup(void)
{
    (void)test_dir_make();
    db = test_db_open(test_path("app.db"));
    ck_assert_int_eq(ie_migrate_up(db, NULL, &failure), IE_OK);
    test_exec(db, "CREATE TABLE effects (n INTEGER PRIMARY KEY, event TEXT)");
    handled = 0;
}

static void
teardown(void)
{
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK); /* BUSY would mean a statement left behind */
    test_dir_remove();
}

static ie_status
add_effect(void *user, sqlite3 *on, const ie_event *event)
{
    sqlite3_stmt *stmt = NULL;
    int           rc;

    (void)user;
    handled++;
    if (sqlite3_prepare_v2(on, "INSERT INTO effects(event) VALUES (?1)", -1, &stmt, NULL) !=
        SQLITE_OK)
        return IE_EIO;
    (void)sqlite3_bind_text(stmt, 1, event->id, -1, SQLITE_STATIC);
    rc = sqlite3_step(stmt);
    (void)sqlite3_finalize(stmt);
    return rc == SQLITE_DONE ? IE_OK : IE_EIO;
}

static ie_status
once_with(ie_inbox_handler handler, void *user)
{
    ie_error_clear(&failure);
    return ie_inbox_once(db, "billing", &PLACED, handler, user, &first, &failure);
}

static int64_t
effects(void)
{
    return test_int(db, "SELECT count(*) FROM effects");
}

static int64_t
remembered(void)
{
    return test_int(db, "SELECT count(*) FROM ie_inbox");
}

/* ---- once ---- */

START_TEST(the_second_delivery_does_nothing_and_is_acknowledged)
{
    ck_assert_msg(once_with(add_effect, NULL) == IE_OK, "%s", failure.message);
    ck_assert(first);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
        ck_assert(!first);
    }
    ck_assert_int_eq(handled, 1);
    ck_assert_int_eq(effects(), 1);
    ck_assert_int_eq(remembered(), 1);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    ck_assert_int_eq(ie_inbox_once(db, "billing", &PLACED, add_effect, NULL, NULL, NULL), IE_OK);
}
END_TEST

START_TEST(each_group_handles_each_event_of_each_source_once)
{
    ie_event other_source = PLACED;
    ie_event no_source = PLACED;

    other_source.source = "/shop/2";
    other_source.data = "2";
    other_source.data_bytes = 1;
    no_source.source = NULL;
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
        ck_assert_int_eq(ie_inbox_once(db, "mail", &PLACED, add_effect, NULL, &first, NULL), IE_OK);
        ck_assert_int_eq(first, i == 0);
        ck_assert_int_eq(ie_inbox_once(db, "mail", &other_source, add_effect, NULL, &first, NULL),
                         IE_OK);
        ck_assert_int_eq(first, i == 0);
        ck_assert_int_eq(ie_inbox_once(db, "mail", &no_source, add_effect, NULL, &first, NULL),
                         IE_OK);
        ck_assert_int_eq(first, i == 0);
    }
    ck_assert_int_eq(effects(), 4);
}
END_TEST

START_TEST(the_same_id_with_other_content_is_a_conflict)
{
    ie_event other = PLACED;

    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    other.data = "{\"n\":2}";
    ie_error_clear(&failure);
    first = true;
    ck_assert_int_eq(ie_inbox_once(db, "billing", &other, add_effect, NULL, &first, &failure),
                     IE_ECONFLICT);
    ck_assert_msg(strstr(failure.message, "event-1") != NULL, "%s", failure.message);
    ck_assert(first); /* results are written on success only */
    other = PLACED;
    other.topic = "shop.order.paid";
    ck_assert_int_eq(ie_inbox_once(db, "billing", &other, add_effect, NULL, NULL, NULL),
                     IE_ECONFLICT);
    other = PLACED;
    other.type = "paid";
    ck_assert_int_eq(ie_inbox_once(db, "billing", &other, add_effect, NULL, NULL, NULL),
                     IE_ECONFLICT);
    other = PLACED;
    other.data = NULL;
    other.data_bytes = 0;
    ck_assert_int_eq(ie_inbox_once(db, "billing", &other, add_effect, NULL, NULL, NULL),
                     IE_ECONFLICT);
    ck_assert_int_eq(handled, 1);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    /* What transports may add or leave out makes no other event. */
    other = PLACED;
    other.position = 17;
    other.time_ms = 5;
    ck_assert_int_eq(ie_inbox_once(db, "billing", &other, add_effect, NULL, NULL, NULL), IE_OK);
}
END_TEST

START_TEST(a_type_that_is_the_topic_is_no_type)
{
    ie_event event = PLACED;

    event.type = NULL;
    ck_assert_int_eq(ie_inbox_once(db, "g", &event, add_effect, NULL, &first, NULL), IE_OK);
    event.type = event.topic; /* another transport spells it out */
    ck_assert_int_eq(ie_inbox_once(db, "g", &event, add_effect, NULL, &first, NULL), IE_OK);
    ck_assert(!first);
}
END_TEST

/* ---- handlers that fail ---- */

static ie_status
effect_then_fail(void *user, sqlite3 *on, const ie_event *event)
{
    const ie_status *status = user;

    (void)add_effect(NULL, on, event);
    return *status;
}

START_TEST(a_handler_that_fails_takes_everything_back)
{
    static const ie_status STATUSES[] = {IE_EHANDLER, IE_EUNREACHABLE, IE_EINVAL};

    for (size_t i = 0; i < sizeof STATUSES / sizeof STATUSES[0]; i++) {
        ie_status status = STATUSES[i];

        ck_assert_int_eq(once_with(effect_then_fail, &status), STATUSES[i]);
        ck_assert_msg(strstr(failure.message, "event-1") != NULL &&
                          strstr(failure.message, "billing") != NULL,
                      "%s", failure.message);
        ck_assert_int_eq(effects(), 0);
        ck_assert_int_eq(remembered(), 0);
        ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    }
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert(first);
    ck_assert_int_eq(effects(), 1);
}
END_TEST

static ie_status
run_sql(void *user, sqlite3 *on, const ie_event *event)
{
    (void)event;
    handled++;
    return sqlite3_exec(on, user, NULL, NULL, NULL) == SQLITE_OK ? IE_OK : IE_EHANDLER;
}

/* Ways in which a handler can end the transaction that is not its own. */
static char ENDS[][160] = {
    "INSERT INTO effects(event) VALUES ('x'); COMMIT",
    "INSERT INTO effects(event) VALUES ('x'); ROLLBACK",
    "INSERT INTO effects(event) VALUES ('x'); COMMIT; BEGIN",
    "INSERT INTO effects(event) VALUES ('x'); ROLLBACK; BEGIN",
    "ROLLBACK; INSERT INTO effects(event) VALUES ('x')",
    "INSERT INTO effects(event) VALUES ('x'); COMMIT; BEGIN; SELECT * FROM nowhere",
    "INSERT OR ROLLBACK INTO effects(n) VALUES (1), (1)",
};

START_TEST(a_handler_that_ends_the_transaction_is_found_out)
{
    for (int nested = 0; nested < 2; nested++) {
        test_exec(db, "DELETE FROM ie_inbox; DELETE FROM effects");
        if (nested)
            test_exec(db, "BEGIN; INSERT INTO effects(event) VALUES ('the callers own')");
        ck_assert_int_eq(once_with(run_sql, ENDS[_i]), IE_ETXN_ABORTED);
        ck_assert_msg(strstr(failure.message, "transaction ended") != NULL, "%s", failure.message);
        if (!nested)
            ck_assert_int_eq(sqlite3_get_autocommit(db), 1); /* as it was found */
        if (sqlite3_get_autocommit(db) == 0)
            test_exec(db, "ROLLBACK");
    }
}
END_TEST

START_TEST(an_effect_that_cannot_be_committed_is_the_handlers_failure)
{
    test_exec(db, "PRAGMA foreign_keys=ON; CREATE TABLE parts (e REFERENCES effects(n) DEFERRABLE"
                  " INITIALLY DEFERRED)");
    ck_assert_int_eq(once_with(run_sql, (char[]){"INSERT INTO parts VALUES (99)"}), IE_EHANDLER);
    ck_assert_msg(strstr(failure.message, "FOREIGN KEY") != NULL, "%s", failure.message);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    ck_assert_int_eq(remembered(), 0);
}
END_TEST

START_TEST(missing_arguments_are_refused)
{
    char     long_name[66];
    ie_event event = PLACED;

    memset(long_name, 'g', 65);
    long_name[65] = '\0';
    ck_assert_int_eq(ie_inbox_once(NULL, "g", &PLACED, add_effect, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_once(db, NULL, &PLACED, add_effect, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_once(db, "", &PLACED, add_effect, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_once(db, long_name, &PLACED, add_effect, NULL, NULL, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(ie_inbox_once(db, "\xFF", &PLACED, add_effect, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_once(db, "g", NULL, add_effect, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_once(db, "g", &PLACED, NULL, NULL, NULL, NULL), IE_EINVAL);
    event.id = NULL;
    ck_assert_int_eq(ie_inbox_once(db, "g", &event, add_effect, NULL, NULL, NULL), IE_EINVAL);
    event = PLACED;
    event.data = NULL;
    ck_assert_int_eq(ie_inbox_once(db, "g", &event, add_effect, NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(handled, 0);
    long_name[64] = '\0';
    ck_assert_int_eq(ie_inbox_once(db, long_name, &PLACED, add_effect, NULL, NULL, NULL), IE_OK);
}
END_TEST

/* ---- in the caller's transaction ---- */

START_TEST(in_the_callers_transaction_its_commit_decides)
{
    ie_status fail = IE_EHANDLER;

    test_exec(db, "BEGIN; INSERT INTO effects(event) VALUES ('mine')");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert(first);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 0);
    test_exec(db, "ROLLBACK");
    ck_assert_int_eq(effects() + remembered(), 0);
    test_exec(db, "BEGIN; INSERT INTO effects(event) VALUES ('mine')");
    ck_assert_int_eq(once_with(effect_then_fail, &fail), IE_EHANDLER);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 0);
    ck_assert_int_eq(effects(), 1); /* what the caller wrote stands */
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert(!first);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(effects(), 2);
    ck_assert_int_eq(remembered(), 1);
}
END_TEST

static ie_status
for_another_group(void *user, sqlite3 *on, const ie_event *event)
{
    const char     *group = user;
    const ie_status status = add_effect(NULL, on, event);

    return status == IE_OK ? ie_inbox_once(on, group, event, add_effect, NULL, NULL, NULL) : status;
}

START_TEST(a_handler_may_use_the_inbox_itself)
{
    ck_assert_int_eq(once_with(for_another_group, (char[]){"mail"}), IE_OK);
    ck_assert_int_eq(effects(), 2);
    ck_assert_int_eq(remembered(), 2);
}
END_TEST

START_TEST(locks_and_old_snapshots_are_told_apart)
{
    sqlite3 *other = test_db_open(test_path("app.db"));

    (void)sqlite3_busy_timeout(db, 0);
    test_exec(other, "BEGIN IMMEDIATE");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_EBUSY);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    test_exec(db, "BEGIN");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_EBUSY);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 0);
    ck_assert_int_eq(effects(), 0);
    test_exec(other, "INSERT INTO effects(event) VALUES ('x'); COMMIT");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_EBUSY_SNAPSHOT);
    test_exec(db, "ROLLBACK");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert_int_eq(handled, 1);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

START_TEST(what_stands_in_the_way_of_the_id_is_named)
{
    test_exec(db, "CREATE TEMP TRIGGER t BEFORE INSERT ON main.ie_inbox"
                  " BEGIN SELECT RAISE(IGNORE); END");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_ESWALLOWED);
    test_exec(db, "DROP TRIGGER temp.t; CREATE TEMP TRIGGER t BEFORE INSERT ON main.ie_inbox"
                  " BEGIN SELECT RAISE(ROLLBACK, 'x'); END");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_EDENIED);
    test_exec(db, "BEGIN");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_ETXN_ABORTED);
    test_exec(db, "DROP TRIGGER temp.t; DROP TABLE ie_inbox");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_ESCHEMA_MISSING);
    ck_assert_int_eq(handled, 0);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
}
END_TEST

/* ---- at once ---- */

enum { EVENTS = 300, DELIVERIES = 5, CONSUMERS = 2 };
static char path[512];

static void *
consume(void *arg)
{
    const uint64_t seed = test_seed() + (uintptr_t)arg;
    uint64_t       state = seed;
    uint64_t       ran = 0;
    sqlite3       *own = NULL;

    if (sqlite3_open(path, &own) != SQLITE_OK)
        abort();
    (void)sqlite3_busy_timeout(own, 60000);
    (void)sqlite3_exec(own, "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
    /* Each event several times, in an order of its own. */
    for (int i = 0; i < EVENTS * DELIVERIES; i++) {
        ie_event event = PLACED;
        char     id[32];
        bool     is_first = false;

        state = state * 6364136223846793005u + 1442695040888963407u;
        (void)snprintf(id, sizeof id, "e%d",
                       i < EVENTS ? i : (int)((state >> 33) % (uint64_t)EVENTS));
        event.id = id;
        if (ie_inbox_once(own, "billing", &event, run_sql,
                          (char[]){"INSERT INTO effects(event) VALUES ('x')"}, &is_first,
                          NULL) != IE_OK)
            abort();
        ran += is_first;
    }
    (void)sqlite3_close(own);
    return (void *)(uintptr_t)ran;
}

START_TEST(of_concurrent_deliveries_one_takes_effect)
{
    pthread_t threads[CONSUMERS];
    uint64_t  ran = 0;

    (void)snprintf(path, sizeof path, "%s", test_path("app.db"));
    (void)test_seed();
    for (uintptr_t i = 0; i < CONSUMERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, consume, (void *)i), 0);
    for (int i = 0; i < CONSUMERS; i++) {
        void *result = NULL;

        (void)pthread_join(threads[i], &result);
        ran += (uint64_t)(uintptr_t)result;
    }
    ck_assert_uint_eq(ran, EVENTS);
    ck_assert_int_eq(effects(), EVENTS);
    ck_assert_int_eq(remembered(), EVENTS);
}
END_TEST

/* ---- killed ---- */

typedef enum moment { BEFORE_EFFECT, AFTER_EFFECT, AFTER_COMMIT, MOMENT_COUNT } moment;

static ie_status
die_in_it(void *user, sqlite3 *on, const ie_event *event)
{
    const int *when = user;

    if (*when == BEFORE_EFFECT)
        (void)raise(SIGKILL);
    (void)add_effect(NULL, on, event);
    if (*when == AFTER_EFFECT)
        (void)raise(SIGKILL);
    return IE_OK;
}

START_TEST(whoever_dies_in_the_middle_it_takes_effect_once_in_the_end)
{
    (void)snprintf(path, sizeof path, "%s", test_path("app.db"));
    for (int round = 0; round < 20; round++) {
        const pid_t child = fork();
        int         when = _i;
        int         code = 0;

        if (child == 0) {
            sqlite3 *own = NULL;

            if (sqlite3_open(path, &own) != SQLITE_OK)
                _exit(1);
            (void)ie_inbox_once(own, "billing", &PLACED, die_in_it, &when, NULL, NULL);
            (void)raise(SIGKILL); /* before it could acknowledge: the event comes again */
        }
        ck_assert_int_eq(waitpid(child, &code, 0), child);
        ck_assert(WIFSIGNALED(code));
        ck_assert_int_eq(effects(), _i == AFTER_COMMIT ? 1 : 0);
        ck_assert_int_eq(remembered(), effects());
    }
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert_int_eq(first, _i != AFTER_COMMIT);
    ck_assert_int_eq(effects(), 1);
    ck_assert_int_eq(remembered(), 1);
}
END_TEST

/* ---- forgetting ---- */

START_TEST(forgetting_is_bounded_and_never_sooner_than_the_sender_may_send_again)
{
    uint32_t removed = 77;

    test_exec(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25)"
                  " INSERT INTO ie_inbox SELECT iif(i <= 20, 'billing', 'mail'), '/', i, 0,"
                  " CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - 1000000 + i"
                  " FROM n");
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ie_error_clear(&failure);
    ck_assert_int_eq(ie_inbox_purge(db, "billing", 99, 100, 10, &removed, &failure), IE_EINVAL);
    ck_assert_msg(strstr(failure.message, "99 s") != NULL &&
                      strstr(failure.message, "100 s") != NULL,
                  "%s", failure.message);
    ck_assert_int_eq(ie_inbox_purge(db, "billing", 100, 100, 0, &removed, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_purge(db, "", 100, 100, 10, &removed, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_inbox_purge(NULL, "billing", 100, 100, 10, &removed, NULL), IE_EINVAL);
    ck_assert_uint_eq(removed, 77);
    ck_assert_int_eq(ie_inbox_purge(db, "billing", IE_INBOX_RETENTION_S_DEFAULT,
                                    IE_INBOX_HORIZON_S_DEFAULT, 10, &removed, NULL),
                     IE_OK);
    ck_assert_uint_eq(removed, 0); /* all younger */
    for (uint32_t expected = 15; expected > 0;) {
        const uint32_t now = expected < 10 ? expected : 10;

        if (expected == 15)
            test_exec(db, "UPDATE ie_inbox SET handled_at = handled_at + 990000 WHERE"
                          " group_name = 'billing' AND CAST(id AS INTEGER) BETWEEN 16 AND 20");
        ck_assert_int_eq(ie_inbox_purge(db, "billing", 100, 100, 10, &removed, NULL), IE_OK);
        ck_assert_uint_eq(removed, now);
        expected -= now;
    }
    ck_assert_int_eq(ie_inbox_purge(db, "billing", 100, 100, 10, &removed, NULL), IE_OK);
    ck_assert_uint_eq(removed, 0);
    ck_assert_int_eq(remembered(), 5 + 5 + 1); /* the young, the other group's, and ours */
    ck_assert_int_eq(once_with(add_effect, NULL), IE_OK);
    ck_assert(!first);
}
END_TEST

START_TEST(without_memory_it_is_done_or_undone)
{
    ie_status status = IE_ENOMEM;

    for (uint64_t n = 1; status != IE_OK; n++) {
        ie__alloc_fail_at(n, false);
        status = once_with(add_effect, NULL);
        ie__alloc_fail_at(0, false);
        ck_assert(status == IE_OK || status == IE_ENOMEM);
        ck_assert_int_eq(effects(), status == IE_OK);
        ck_assert_int_eq(remembered(), effects());
    }
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("inbox");
    TCase   *once = tcase_create("once");
    SRunner *runner;
    int      failed;

    tcase_add_checked_fixture(once, setup, teardown);
    tcase_set_timeout(once, 120);
    tcase_add_test(once, the_second_delivery_does_nothing_and_is_acknowledged);
    tcase_add_test(once, each_group_handles_each_event_of_each_source_once);
    tcase_add_test(once, the_same_id_with_other_content_is_a_conflict);
    tcase_add_test(once, a_type_that_is_the_topic_is_no_type);
    tcase_add_test(once, a_handler_that_fails_takes_everything_back);
    tcase_add_loop_test(once, a_handler_that_ends_the_transaction_is_found_out, 0,
                        sizeof ENDS / sizeof ENDS[0]);
    tcase_add_test(once, an_effect_that_cannot_be_committed_is_the_handlers_failure);
    tcase_add_test(once, missing_arguments_are_refused);
    tcase_add_test(once, in_the_callers_transaction_its_commit_decides);
    tcase_add_test(once, a_handler_may_use_the_inbox_itself);
    tcase_add_test(once, locks_and_old_snapshots_are_told_apart);
    tcase_add_test(once, what_stands_in_the_way_of_the_id_is_named);
    tcase_add_test(once, of_concurrent_deliveries_one_takes_effect);
    tcase_add_loop_test(once, whoever_dies_in_the_middle_it_takes_effect_once_in_the_end, 0,
                        MOMENT_COUNT);
    tcase_add_test(once, forgetting_is_bounded_and_never_sooner_than_the_sender_may_send_again);
    tcase_add_test(once, without_memory_it_is_done_or_undone);
    suite_add_tcase(suite, once);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
