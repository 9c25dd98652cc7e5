/* Migrations: by one process, by several at once, by another tool, killed in the middle, refused.
 */
#include <ie/migrate.h>

#include <check.h>
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

static void
setup(void)
{
    (void)test_dir_make();
    db = test_db_open(test_path("app.db"));
}

static void
teardown(void)
{
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK); /* BUSY would mean a statement left behind */
    test_dir_remove();
}

static ie_status
up(int *applied)
{
    ie_error_clear(&failure);
    return ie_migrate_up(db, applied, &failure);
}

static ie_status
check(void)
{
    ie_error_clear(&failure);
    return ie_migrate_check(db, &failure);
}

/* All objects of ours with their text, but for the history. */
static char *
schema(void)
{
    static char   texts[4][16384];
    static int    next;
    char         *text = texts[next++ % 4];
    sqlite3_stmt *stmt = NULL;
    size_t        used = 0;

    ck_assert_int_eq(sqlite3_prepare_v2(db,
                                        "SELECT type || name || coalesce(sql, '') FROM main."
                                        "sqlite_master WHERE name <> 'ie_schema_history'"
                                        " ORDER BY type, name",
                                        -1, &stmt, NULL),
                     SQLITE_OK);
    text[0] = '\0';
    while (sqlite3_step(stmt) == SQLITE_ROW)
        used += (size_t)snprintf(text + used, sizeof texts[0] - used, "%s\n",
                                 (const char *)sqlite3_column_text(stmt, 0));
    ck_assert_uint_lt(used, sizeof texts[0]);
    (void)sqlite3_finalize(stmt);
    return text;
}

static int
applied_versions(void)
{
    return (int)test_int(db, "SELECT count(*) FROM ie_schema_history");
}

/* ---- the plain way ---- */

START_TEST(up_twice_is_up_once)
{
    const int all = (int)ie_migration_count();
    int       applied = -1;

    ck_assert_int_eq(check(), IE_ESCHEMA_MISSING);
    ck_assert_msg(strstr(failure.message, "ie migrate up") != NULL, "%s", failure.message);
    ck_assert_msg(up(&applied) == IE_OK, "%s", failure.message);
    ck_assert_int_eq(applied, all);
    ck_assert_int_eq(check(), IE_OK);
    ck_assert_int_eq(up(&applied), IE_OK);
    ck_assert_int_eq(applied, 0);
    ck_assert_int_eq(up(NULL), IE_OK);
    ck_assert_int_eq(applied_versions(), all);
    ck_assert_str_eq(test_text(db, "SELECT library FROM ie_schema_history"), ie_version());
}
END_TEST

START_TEST(the_hosts_own_numbers_and_modes_are_left_alone)
{
    test_exec(db, "PRAGMA user_version=77; PRAGMA application_id=1234; CREATE TABLE host(a)");
    ck_assert_int_eq(up(NULL), IE_OK);
    ck_assert_int_eq(test_int(db, "PRAGMA user_version"), 77);
    ck_assert_int_eq(test_int(db, "PRAGMA application_id"), 1234);
    ck_assert_str_eq(test_text(db, "PRAGMA journal_mode"), "wal");
    ck_assert_int_eq(test_int(db, "PRAGMA synchronous"), 2);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND"
                                  " name NOT LIKE 'ie\\_%' ESCAPE '\\' AND name NOT LIKE"
                                  " 'sqlite%'"),
                     1);
}
END_TEST

START_TEST(works_under_every_strictness_of_the_host)
{
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
    test_exec(db, "PRAGMA foreign_keys=ON; PRAGMA recursive_triggers=ON;"
                  " PRAGMA cell_size_check=ON; PRAGMA secure_delete=ON");
    ck_assert_msg(up(NULL) == IE_OK, "%s", failure.message);
    test_exec(db, "INSERT INTO ie_event(topic, data) VALUES ('t', '1'), ('t', '2')");
    test_exec(db, "DELETE FROM ie_event WHERE position = 1");
    ck_assert_int_eq(sqlite3_exec(db, "DELETE FROM ie_event", NULL, NULL, NULL), SQLITE_CONSTRAINT);
    /* With recursive triggers REPLACE asks them too. */
    ck_assert_int_eq(sqlite3_exec(db,
                                  "INSERT OR REPLACE INTO ie_event(position, topic)"
                                  " VALUES (2, 'other')",
                                  NULL, NULL, NULL),
                     SQLITE_CONSTRAINT);
    ck_assert_str_eq(test_text(db, "PRAGMA integrity_check"), "ok");
}
END_TEST

START_TEST(down_and_up_make_the_same_schema)
{
    const char *before;

    ck_assert_int_eq(up(NULL), IE_OK);
    before = schema();
    test_exec(db, "INSERT INTO ie_event(topic) VALUES ('t')");
    test_exec(db, "PRAGMA foreign_keys=ON");
    for (size_t i = ie_migration_count(); i > 0; i--)
        test_exec(db, ie_migration_at(i - 1)->down);
    ck_assert_str_eq(schema(), "");
    /* The history still says that it was applied; what is there is what counts. */
    ck_assert_int_eq(check(), IE_ESCHEMA_MISSING);
    {
        int applied = 0;

        ck_assert_msg(up(&applied) == IE_OK, "%s", failure.message);
        ck_assert_int_eq(applied, (int)ie_migration_count());
    }
    ck_assert_str_eq(schema(), before);
    ck_assert_int_eq(check(), IE_OK);
    ck_assert_int_eq(applied_versions(), (int)ie_migration_count());
}
END_TEST

START_TEST(the_list_of_migrations_is_in_order_and_complete)
{
    ck_assert_uint_ge(ie_migration_count(), 1);
    ck_assert_ptr_null(ie_migration_at(ie_migration_count()));
    ck_assert_ptr_null(ie_migration_at(SIZE_MAX));
    for (size_t i = 0; i < ie_migration_count(); i++) {
        const ie_migration *at = ie_migration_at(i);

        ck_assert_int_eq(at->version, (int)i + 1);
        ck_assert_uint_eq(strlen(at->checksum), 16);
        ck_assert_uint_gt(strlen(at->up), 20);
        ck_assert_uint_gt(strlen(at->down), 20);
    }
    ck_assert_str_eq(ie_migration_at(0)->name, "init");
}
END_TEST

/* ---- refused ---- */

START_TEST(a_newer_schema_is_refused_with_what_to_do)
{
    ck_assert_int_eq(up(NULL), IE_OK);
    test_exec(db, "INSERT INTO ie_schema_history VALUES (9999, 'future', 'x', 1, '9.9.9')");
    ck_assert_int_eq(check(), IE_ESCHEMA_NEWER);
    ck_assert_msg(strstr(failure.message, "9999") != NULL &&
                      strstr(failure.message, "update the library") != NULL,
                  "%s", failure.message);
    ck_assert_int_eq(up(NULL), IE_ESCHEMA_NEWER);
    ck_assert_int_eq(applied_versions(), (int)ie_migration_count() + 1);
}
END_TEST

START_TEST(a_migration_that_was_edited_is_refused)
{
    ck_assert_int_eq(up(NULL), IE_OK);
    test_exec(db, "UPDATE ie_schema_history SET checksum = '0123456789abcdef'");
    ck_assert_int_eq(check(), IE_ESCHEMA);
    ck_assert_msg(strstr(failure.message, "1_init") != NULL &&
                      strstr(failure.message, "0123456789abcdef") != NULL,
                  "%s", failure.message);
    ck_assert_int_eq(up(NULL), IE_ESCHEMA);
}
END_TEST

static const char *const FOREIGN[] = {
    "CREATE TABLE ie_event (id INTEGER PRIMARY KEY, what TEXT)",
    /* Every name is there, but the types are not ours. */
    ("CREATE TABLE ie_event (position, id, topic, key, type, source, time, not_before, expires_at, "
     "content_type, headers, dedupe_key, data)"),
    "CREATE TABLE ie_event (position TEXT PRIMARY KEY) WITHOUT ROWID",
};

START_TEST(a_table_of_somebody_elses_is_refused_and_left_alone)
{
    const char *before;

    test_exec(db, FOREIGN[_i]);
    test_exec(db, "CREATE TABLE ie_orders (a)");
    before = schema();
    ck_assert_int_eq(check(), IE_ESCHEMA);
    ck_assert_msg(strstr(failure.message, "ie_event") != NULL, "%s", failure.message);
    ck_assert_int_eq(up(NULL), IE_ESCHEMA);
    ck_assert_msg(strstr(failure.message, "ie_event") != NULL, "%s", failure.message);
    ck_assert_str_eq(schema(), before);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
}
END_TEST

START_TEST(another_table_that_is_in_the_way_changes_nothing)
{
    const char *before;

    test_exec(db, "CREATE TABLE ie_inbox (mine)");
    before = schema();
    ck_assert_int_eq(up(NULL), IE_ESCHEMA);
    ck_assert_msg(strstr(failure.message, "migration 1_init") != NULL &&
                      strstr(failure.message, "ie_inbox") != NULL,
                  "%s", failure.message);
    ck_assert_str_eq(schema(), before);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM sqlite_master WHERE name ="
                                  " 'ie_schema_history'"),
                     0);
}
END_TEST

START_TEST(a_part_that_is_missing_is_noticed)
{
    test_exec(db, ie_migration_at(0)->up);
    test_exec(db, "DROP TRIGGER ie_event_keep_newest");
    ck_assert_int_eq(check(), IE_ESCHEMA);
    ck_assert_int_eq(up(NULL), IE_ESCHEMA);
}
END_TEST

START_TEST(a_transaction_of_the_callers_is_refused_and_stays_open)
{
    test_exec(db, "BEGIN; CREATE TABLE host(a)");
    ck_assert_int_eq(up(NULL), IE_ESTATE);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 0);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM host"), 0);
    ck_assert_int_eq(up(NULL), IE_OK);
}
END_TEST

START_TEST(a_temporary_table_cannot_take_the_place_of_ours)
{
    test_exec(db, "CREATE TEMP TABLE ie_event (dedupe_key)");
    ck_assert_int_eq(up(NULL), IE_ESCHEMA);
    ck_assert_msg(strstr(failure.message, "temp") != NULL, "%s", failure.message);
    test_exec(db, "DROP TABLE temp.ie_event");
    ck_assert_int_eq(up(NULL), IE_OK);
    test_exec(db, "CREATE TEMP TABLE ie_event (dedupe_key)");
    ck_assert_int_eq(up(NULL), IE_OK); /* nothing to do, so nothing to refuse */
    ck_assert_int_eq(check(), IE_OK);
}
END_TEST

START_TEST(a_database_that_may_not_be_written_says_so)
{
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_open_v2(test_path("app.db"), &db, SQLITE_OPEN_READONLY, NULL),
                     SQLITE_OK);
    ck_assert_int_eq(check(), IE_ESCHEMA_MISSING);
    ck_assert_int_eq(up(NULL), IE_EREADONLY);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    db = test_db_open(test_path("app.db"));
    test_exec(db, "PRAGMA query_only=ON");
    ck_assert_int_eq(up(NULL), IE_EREADONLY);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    test_exec(db, "PRAGMA query_only=OFF");
    ck_assert_int_eq(up(NULL), IE_OK);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_open_v2(test_path("app.db"), &db, SQLITE_OPEN_READONLY, NULL),
                     SQLITE_OK);
    ck_assert_int_eq(up(NULL), IE_OK); /* nothing to write */
}
END_TEST

START_TEST(a_lock_held_by_another_is_busy_and_later_not)
{
    sqlite3 *other = test_db_open(test_path("app.db"));

    (void)sqlite3_busy_timeout(db, 0);
    test_exec(other, "BEGIN IMMEDIATE");
    ck_assert_int_eq(up(NULL), IE_EBUSY);
    test_exec(other, "COMMIT");
    ck_assert_int_eq(up(NULL), IE_OK);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

START_TEST(a_full_disk_leaves_the_database_as_it_was)
{
    const char *before;

    test_exec(db, "CREATE TABLE host(a)");
    before = schema();
    test_exec(db, "PRAGMA max_page_count=6");
    ck_assert_int_eq(up(NULL), IE_EFULL);
    ck_assert_str_eq(schema(), before);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    test_exec(db, "PRAGMA max_page_count=1000");
    ck_assert_int_eq(up(NULL), IE_OK);
}
END_TEST

/* ---- by another tool ---- */

typedef struct seen {
    int     count;
    int     applied;
    int     unknown;
    int64_t when;
} seen;

static void
see(void *user, const ie_migration_state *state)
{
    seen *all = user;

    all->count++;
    all->applied += state->is_applied;
    all->unknown += state->migration == NULL;
    all->when = state->applied_at_ms;
}

START_TEST(status_tells_what_is_applied_whoever_did_it)
{
    const int all = (int)ie_migration_count();
    seen      got = {0, 0, 0, 0};

    ck_assert_int_eq(ie_migrate_status(db, see, &got, &failure), IE_OK);
    ck_assert_int_eq(got.count, all);
    ck_assert_int_eq(got.applied, 0);
    for (int i = 0; i < all; i++)
        test_exec(db, ie_migration_at((size_t)i)->up);
    memset(&got, 0, sizeof got);
    ck_assert_int_eq(ie_migrate_status(db, see, &got, &failure), IE_OK);
    ck_assert_int_eq(got.count, all);
    ck_assert_int_eq(got.applied, all);
    ck_assert_int_eq(got.when, 0);
    ck_assert_int_eq(up(NULL), IE_OK);
    test_exec(db, "INSERT INTO ie_schema_history VALUES (9999, 'future', 'x', 1, '9.9.9')");
    memset(&got, 0, sizeof got);
    ck_assert_int_eq(ie_migrate_status(db, see, &got, &failure), IE_OK);
    ck_assert_int_eq(got.count, all + 1);
    ck_assert_int_eq(got.applied, all + 1);
    ck_assert_int_eq(got.unknown, 1);
}
END_TEST

START_TEST(sql_run_by_another_tool_is_accepted_and_then_recorded)
{
    int applied = -1;

    for (size_t i = 0; i < ie_migration_count(); i++)
        test_exec(db, ie_migration_at(i)->up);
    test_exec(db, "CREATE TABLE goose_db_version (id); CREATE INDEX ie_event_by_topic ON"
                  " ie_event(topic)");
    test_exec(db, "INSERT INTO ie_event(topic) VALUES ('kept')");
    ck_assert_msg(check() == IE_OK, "%s", failure.message);
    ck_assert_msg(up(&applied) == IE_OK, "%s", failure.message);
    ck_assert_int_eq(applied, 0); /* recorded, not applied */
    ck_assert_int_eq(applied_versions(), (int)ie_migration_count());
    ck_assert_str_eq(test_text(db, "SELECT topic FROM ie_event"), "kept");
    ck_assert_int_eq(check(), IE_OK);
}
END_TEST

/* ---- at once, and killed ---- */

START_TEST(of_many_processes_exactly_one_applies)
{
    enum { PROCESSES = 4, ROUNDS = 5 };

    for (int round = 0; round < ROUNDS; round++) {
        pid_t children[PROCESSES];
        int   go[2];
        int   total = 0;

        (void)unlink(test_path("race.db"));
        (void)unlink(test_path("race.db-wal"));
        (void)unlink(test_path("race.db-shm"));
        ck_assert_int_eq(sqlite3_close(test_db_open(test_path("race.db"))), SQLITE_OK);
        ck_assert_int_eq(pipe(go), 0);
        for (int i = 0; i < PROCESSES; i++) {
            children[i] = fork();
            if (children[i] == 0) {
                sqlite3  *own = NULL;
                int       applied = 0;
                char      byte;
                ie_status status;

                (void)close(go[1]);
                (void)read(go[0], &byte, 1); /* all start when the pipe closes */
                if (sqlite3_open(test_path("race.db"), &own) != SQLITE_OK)
                    _exit(100);
                (void)sqlite3_busy_timeout(own, 20000);
                status = ie_migrate_up(own, &applied, NULL);
                if (status == IE_OK)
                    status = ie_migrate_check(own, NULL);
                (void)sqlite3_close(own);
                _exit(status == IE_OK ? applied : 101);
            }
        }
        (void)close(go[0]);
        (void)close(go[1]);
        for (int i = 0; i < PROCESSES; i++) {
            int code = -1;

            ck_assert_int_eq(waitpid(children[i], &code, 0), children[i]);
            ck_assert(WIFEXITED(code));
            ck_assert_int_lt(WEXITSTATUS(code), 100);
            total += WEXITSTATUS(code);
        }
        ck_assert_int_eq(total, (int)ie_migration_count());
    }
}
END_TEST

START_TEST(killed_at_any_moment_it_leaves_the_old_or_the_new)
{
    const int rounds = (int)test_scale(50);
    uint64_t  state = test_seed();
    int64_t   whole_ns = 0; /* what it takes when nobody kills it */
    int       old = 0;

    for (int round = -1; round < rounds; round++) {
        const int64_t begin_ns = ie__mono_ns();
        int64_t       spared_ns;
        pid_t         child;

        (void)unlink(test_path("killed.db"));
        (void)unlink(test_path("killed.db-journal"));
        (void)unlink(test_path("killed.db-wal"));
        (void)unlink(test_path("killed.db-shm"));
        child = fork();
        if (child == 0) {
            sqlite3 *own = NULL;

            if (sqlite3_open(test_path("killed.db"), &own) != SQLITE_OK)
                _exit(1);
            if (round % 2 == 0)
                (void)sqlite3_exec(own, "PRAGMA journal_mode=WAL", NULL, NULL, NULL);
            (void)ie_migrate_up(own, NULL, NULL);
            _exit(0);
        }
        if (round < 0) {
            ck_assert_int_eq(waitpid(child, NULL, 0), child);
            whole_ns = ie__mono_ns() - begin_ns;
            continue;
        }
        state = state * 6364136223846793005u + 1442695040888963407u;
        spared_ns = (int64_t)((state >> 33) % (uint64_t)(whole_ns + whole_ns / 4));
        while (ie__mono_ns() - begin_ns < spared_ns)
            ;
        (void)kill(child, SIGKILL);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
        ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
        db = test_db_open(test_path("killed.db"));
        if (check() == IE_OK) {
            ck_assert_int_eq(applied_versions(), (int)ie_migration_count());
        } else {
            ck_assert_msg(failure.status == IE_ESCHEMA_MISSING, "%s", failure.message);
            ck_assert_str_eq(schema(), "");
            old++;
        }
        ck_assert_msg(up(NULL) == IE_OK, "%s", failure.message);
        ck_assert_int_eq(check(), IE_OK);
        ck_assert_str_eq(test_text(db, "PRAGMA integrity_check"), "ok");
    }
    (void)fprintf(stderr, "killed %d times: %d old, %d new\n", rounds, old, rounds - old);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("migrate");
    TCase   *plain = tcase_create("plain");
    TCase   *refused = tcase_create("refused");
    TCase   *others = tcase_create("others");
    TCase   *cases[] = {plain, refused, others};
    SRunner *runner;
    int      failed;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tcase_add_checked_fixture(cases[i], setup, teardown);
        tcase_set_timeout(cases[i], 120);
        suite_add_tcase(suite, cases[i]);
    }
    tcase_add_test(plain, up_twice_is_up_once);
    tcase_add_test(plain, the_hosts_own_numbers_and_modes_are_left_alone);
    tcase_add_test(plain, works_under_every_strictness_of_the_host);
    tcase_add_test(plain, down_and_up_make_the_same_schema);
    tcase_add_test(plain, the_list_of_migrations_is_in_order_and_complete);
    tcase_add_test(refused, a_newer_schema_is_refused_with_what_to_do);
    tcase_add_test(refused, a_migration_that_was_edited_is_refused);
    tcase_add_loop_test(refused, a_table_of_somebody_elses_is_refused_and_left_alone, 0,
                        sizeof FOREIGN / sizeof FOREIGN[0]);
    tcase_add_test(refused, another_table_that_is_in_the_way_changes_nothing);
    tcase_add_test(refused, a_part_that_is_missing_is_noticed);
    tcase_add_test(refused, a_transaction_of_the_callers_is_refused_and_stays_open);
    tcase_add_test(refused, a_temporary_table_cannot_take_the_place_of_ours);
    tcase_add_test(refused, a_database_that_may_not_be_written_says_so);
    tcase_add_test(refused, a_lock_held_by_another_is_busy_and_later_not);
    tcase_add_test(refused, a_full_disk_leaves_the_database_as_it_was);
    tcase_add_test(others, status_tells_what_is_applied_whoever_did_it);
    tcase_add_test(others, sql_run_by_another_tool_is_accepted_and_then_recorded);
    tcase_add_test(others, of_many_processes_exactly_one_applies);
    tcase_add_test(others, killed_at_any_moment_it_leaves_the_old_or_the_new);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
