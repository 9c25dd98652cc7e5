/* Who may move a cursor, what a dead owner leaves, deliveries, retention, noticing commits. */
#include <ie/migrate.h>

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "log.h"
#include "support.h"

#define WALL_MS INT64_C(1700000000000)

static sqlite3     *db;
static ie__cursors *cursors;
static test_clock   clock_now;
static ie_error     failure;
static uint32_t     retry_ms;

static void
setup(void)
{
    (void)test_dir_make();
    db = test_db_open(test_path("app.db"));
    ck_assert_msg(ie_migrate_up(db, NULL, &failure) == IE_OK, "%s", failure.message);
    test_clock_init(&clock_now, WALL_MS);
    ck_assert_int_eq(ie__cursors_open(&cursors, db, &clock_now.clock, &failure), IE_OK);
}

static void
teardown(void)
{
    ie__cursors_close(cursors);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK); /* BUSY would mean a statement left behind */
    test_dir_remove();
}

static void
events(int count)
{
    char sql[256];

    (void)snprintf(sql, sizeof sql,
                   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)"
                   " INSERT INTO ie_event(topic, time) SELECT 't', %lld FROM n",
                   count, (long long)WALL_MS);
    test_exec(db, sql);
}

/* An owner as a worker of this process would be, or of one that has ended. */
static const char *
an_owner(void)
{
    static char owners[8][IE__OWNER_SIZE];
    static int  next;
    char       *owner = owners[next++ % 8];

    ie__owner_make(owner);
    return owner;
}

static ie_status
take(const char *name, const char *owner, ie__cursor *out)
{
    const ie__lease_request request = {.name = name,
                                       .owner = owner,
                                       .destination = "memory:x",
                                       .topics = "",
                                       .order = "key",
                                       .lease_ms = 10000,
                                       .reserve = 2000,
                                       .claims_max = 5};

    ie_error_clear(&failure);
    return ie__cursor_take(cursors, &request, out, &retry_ms, &failure);
}

static ie_status
advance(ie__cursor *cursor, int64_t position)
{
    ie_status status;

    ie_error_clear(&failure);
    test_exec(db, "BEGIN IMMEDIATE");
    status = ie__cursor_advance(cursors, cursor, position, 2000, 10000, false, &failure);
    test_exec(db, status == IE_OK ? "COMMIT" : "ROLLBACK");
    return status;
}

static ie_status
give_back(ie__cursor *cursor)
{
    ie_status status;

    ie_error_clear(&failure);
    test_exec(db, "BEGIN IMMEDIATE");
    status = ie__cursor_release(cursors, cursor, &failure);
    test_exec(db, status == IE_OK ? "COMMIT" : "ROLLBACK");
    return status;
}

static char *
row_text(void)
{
    static char text[512];

    (void)snprintf(text, sizeof text, "%s",
                   test_text(db, "SELECT format('%d %d %d %d %d %d %d %s %d', position, claimed_to,"
                                 " suspect_to, suspect_window, crashes, claims, epoch, owner,"
                                 " lease_until) FROM ie_cursor"));
    return text;
}

/* ---- leases ---- */

START_TEST(a_lease_has_one_holder_until_it_is_given_back_or_runs_out)
{
    const char *a = an_owner();
    const char *b = an_owner();
    ie__cursor  mine;
    ie__cursor  theirs;

    events(10);
    ck_assert_str_ne(a, b);
    ck_assert_int_eq(take("bus", a, &mine), IE_OK);
    ck_assert_int_eq(mine.position, 0);
    ck_assert_int_eq(mine.claimed_to, 2000);
    ck_assert_int_eq(mine.newest, 10);
    ck_assert_int_eq(mine.epoch, 1);
    ck_assert_uint_eq(mine.suspect_window, 0);
    ck_assert_int_eq(take("bus", b, &theirs), IE_ELEASE);
    ck_assert_msg(strstr(failure.message, a) != NULL, "%s", failure.message);
    ck_assert_uint_ge(retry_ms, 1);
    ck_assert_uint_le(retry_ms, 500); /* the owner may die before its lease runs out */
    ck_assert_int_eq(take("audit", b, &theirs), IE_OK); /* another cursor is another matter */
    ck_assert_int_eq(give_back(&theirs), IE_OK);
    ck_assert_int_eq(advance(&mine, 10), IE_OK);
    ck_assert_int_eq(give_back(&mine), IE_OK);
    ck_assert_int_eq(take("bus", b, &theirs), IE_OK);
    ck_assert_int_eq(theirs.position, 10);
    ck_assert_uint_eq(theirs.suspect_window, 0); /* an orderly end leaves nothing to suspect */
    ck_assert_int_eq(theirs.epoch, 2);
    /* Only time that passes counts: the wall clock may go wherever it likes. */
    clock_now.wall_ms += INT64_C(86400000) * 3650;
    ck_assert_int_eq(take("bus", a, &mine), IE_ELEASE);
    clock_now.wall_ms = 0;
    ck_assert_int_eq(take("bus", a, &mine), IE_ELEASE);
    clock_now.boot_ms += 9999;
    ck_assert_int_eq(take("bus", a, &mine), IE_ELEASE);
    ck_assert_uint_eq(retry_ms, 2);
    clock_now.boot_ms += 1;
    ck_assert_int_eq(take("bus", a, &mine), IE_OK);
    ck_assert_int_eq(mine.epoch, 3);
}
END_TEST

START_TEST(an_old_epoch_changes_nothing)
{
    ie__cursor  old;
    ie__cursor  now;
    char        before[512];
    const char *second = an_owner();

    events(10);
    ck_assert_int_eq(take("bus", an_owner(), &old), IE_OK);
    clock_now.boot_ms += 10000;
    ck_assert_int_eq(take("bus", second, &now), IE_OK);
    ck_assert_int_eq(advance(&now, 3), IE_OK);
    (void)snprintf(before, sizeof before, "%s", row_text());
    ck_assert_int_eq(advance(&old, 10), IE_ELEASE);
    ck_assert_msg(strstr(failure.message, "bus") != NULL, "%s", failure.message);
    ck_assert_int_eq(ie__cursor_claim(cursors, &old, NULL), IE_ELEASE);
    ck_assert_uint_eq(old.claims, 0);
    ck_assert_int_eq(give_back(&old), IE_ELEASE);
    test_exec(db, "BEGIN");
    ck_assert_int_eq(ie__cursor_breaker(cursors, &old, "down", 1, 2, NULL), IE_ELEASE);
    test_exec(db, "COMMIT");
    ck_assert_str_eq(row_text(), before);
    ck_assert_int_eq(test_int(db, "SELECT breaker IS NULL FROM ie_cursor"), 1);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
}
END_TEST

START_TEST(a_lease_can_be_taken_again_by_its_holder_without_suspicion)
{
    const char *owner = an_owner();
    ie__cursor  cursor;

    events(10);
    ck_assert_int_eq(take("bus", owner, &cursor), IE_OK);
    ck_assert_int_eq(take("bus", owner, &cursor), IE_OK);
    ck_assert_int_eq(cursor.epoch, 2);
    ck_assert_uint_eq(cursor.suspect_window, 0);
    ck_assert_uint_eq(cursor.crashes, 0);
}
END_TEST

typedef enum ending { REAPED, ZOMBIE, KILLED, ENDING_COUNT } ending;

START_TEST(a_dead_process_loses_its_lease_at_once)
{
    char       owner[IE__OWNER_SIZE] = "";
    int        down[2];
    int        up[2];
    pid_t      child;
    ie__cursor cursor;
    siginfo_t  info;

    events(10);
    ck_assert_int_eq(pipe(down), 0);
    ck_assert_int_eq(pipe(up), 0);
    child = fork();
    if (child == 0) {
        ie__owner_make(owner);
        if (write(up[1], owner, sizeof owner) != (ssize_t)sizeof owner)
            _exit(2);
        _exit(read(down[0], owner, 1) == 1 ? 0 : 3); /* until it is let go */
    }
    ck_assert_int_gt(child, 0);
    ck_assert_int_eq(read(up[0], owner, sizeof owner), sizeof owner);
    ck_assert_int_eq(take("bus", owner, &cursor), IE_OK);
    ck_assert(!ie__owner_is_gone(owner, ie__boot_id()));
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_ELEASE);
    if (_i == KILLED)
        ck_assert_int_eq(kill(child, SIGKILL), 0);
    else
        ck_assert_int_eq(write(down[1], "x", 1), 1);
    /* Ended; one that its parent has not collected is as dead as any. */
    ck_assert_int_eq(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    if (_i != ZOMBIE)
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
    ck_assert(ie__owner_is_gone(owner, ie__boot_id()));
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_uint_eq(cursor.suspect_window, 62);
    ck_assert_int_eq(cursor.suspect_to, 10);
    if (_i == ZOMBIE)
        (void)waitpid(child, NULL, 0);
}
END_TEST

static void *
outlives_main(void *arg)
{
    const int *fds = arg;
    char       byte;

    (void)read(fds[0], &byte, 1);
    _exit(0);
}

START_TEST(a_process_whose_first_thread_ended_is_alive)
{
    char  owner[IE__OWNER_SIZE] = "";
    int   down[2];
    int   up[2];
    pid_t child;

    ck_assert_int_eq(pipe(down), 0);
    ck_assert_int_eq(pipe(up), 0);
    child = fork();
    if (child == 0) {
        pthread_t thread;

        ie__owner_make(owner);
        if (pthread_create(&thread, NULL, outlives_main, down) != 0 ||
            write(up[1], owner, sizeof owner) != (ssize_t)sizeof owner)
            _exit(2);
        pthread_exit(NULL);
    }
    ck_assert_int_eq(read(up[0], owner, sizeof owner), sizeof owner);
    for (int i = 0; i < 20; i++) { /* while the first thread is ending, and after */
        ck_assert(!ie__owner_is_gone(owner, ie__boot_id()));
        (void)poll(NULL, 0, 1);
    }
    ck_assert_int_eq(write(down[1], "x", 1), 1);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    ck_assert(ie__owner_is_gone(owner, ie__boot_id()));
}
END_TEST

START_TEST(an_owner_is_gone_only_when_that_is_certain)
{
    char               mine[IE__OWNER_SIZE];
    char               text[IE__OWNER_SIZE];
    unsigned long long space = 0;
    unsigned long long start = 0;
    long               pid = 0;

    ie__owner_make(mine);
    ck_assert_int_eq(sscanf(mine, "%llu:%ld:%llu:", &space, &pid, &start), 3);
    ck_assert_int_eq(pid, getpid());
    ck_assert(!ie__owner_is_gone(mine, ie__boot_id()));
    ck_assert(ie__owner_is_gone(mine, "another boot"));
    (void)snprintf(text, sizeof text, "%llu:%ld:%llu:0", space, pid, start + 1);
    ck_assert(ie__owner_is_gone(text, ie__boot_id())); /* the number was given to another process */
    (void)snprintf(text, sizeof text, "%llu:%ld:%llu:0", space + 1, pid, start + 1);
    ck_assert(!ie__owner_is_gone(text, ie__boot_id())); /* in another container */
    ck_assert(!ie__owner_is_gone("", ie__boot_id()));
    ck_assert(!ie__owner_is_gone("somebody", ie__boot_id()));
    ck_assert(!ie__owner_is_gone("1:2:0:3", ie__boot_id()));
    (void)snprintf(text, sizeof text, "%llu:-1:5:0", space);
    ck_assert(!ie__owner_is_gone(text, ie__boot_id()));
}
END_TEST

START_TEST(after_a_reboot_every_lease_is_free)
{
    ie__cursor cursor;

    events(10);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    test_exec(db, "UPDATE ie_cursor SET boot_id = 'before'");
    clock_now.boot_ms = 5; /* its lease would seem to lie far ahead */
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_int_eq(cursor.epoch, 2);
    test_exec(db, "UPDATE ie_cursor SET owner = '0:0:0:0', lease_until = 9223372036854775807");
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK); /* nobody leases for so long */
}
END_TEST

START_TEST(a_new_cursor_begins_where_it_was_asked_to)
{
    ie__lease_request request = {.name = "late",
                                 .owner = an_owner(),
                                 .destination = "memory:x",
                                 .topics = "a.>",
                                 .order = "none",
                                 .start_now = true,
                                 .lease_ms = 10000,
                                 .reserve = 100,
                                 .claims_max = 5};
    ie__cursor        cursor;

    events(10);
    ck_assert_int_eq(ie__cursor_take(cursors, &request, &cursor, &retry_ms, NULL), IE_OK);
    ck_assert_int_eq(cursor.position, 10);
    ck_assert_int_eq(cursor.claimed_to, 110);
    ck_assert_str_eq(test_text(db, "SELECT destination || topics || event_order FROM ie_cursor"),
                     "memory:xa.>none");
    /* start_now is for the first time only. */
    events(5);
    ck_assert_int_eq(ie__cursor_take(cursors, &request, &cursor, &retry_ms, NULL), IE_OK);
    ck_assert_int_eq(cursor.position, 10);
}
END_TEST

/* ---- a cursor beyond the log ---- */

START_TEST(a_restored_copy_stops_the_worker_or_repeats_but_never_skips)
{
    ie__cursor cursor;
    sqlite3   *live = db;
    char       sql[600];

    /* An older copy: its cursor and its events are of one moment, so the later ones come again. */
    events(10);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_int_eq(advance(&cursor, 8), IE_OK);
    (void)snprintf(sql, sizeof sql, "VACUUM INTO '%s'", test_path("copy.db"));
    test_exec(db, sql);
    events(10);
    ck_assert_int_eq(advance(&cursor, 20), IE_OK);
    ie__cursors_close(cursors);
    ck_assert_int_eq(sqlite3_open(test_path("copy.db"), &db), SQLITE_OK);
    ck_assert_int_eq(ie__cursors_open(&cursors, db, &clock_now.clock, &failure), IE_OK);
    clock_now.boot_ms += 10000;
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_int_eq(cursor.position, 8);
    ck_assert_int_eq(cursor.newest, 10);
    events(1);
    ck_assert_int_eq(test_int(db, "SELECT max(position) FROM ie_event"), 11);
    /* A cursor that was carried into it from elsewhere: positions 12 to 20 would be skipped. */
    test_exec(db, "UPDATE ie_cursor SET position = 20");
    clock_now.boot_ms += 10000;
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_ECURSOR);
    ck_assert_msg(strstr(failure.message, "bus stands at position 20") != NULL &&
                      strstr(failure.message, "11") != NULL,
                  "%s", failure.message);
    ck_assert_int_eq(test_int(db, "SELECT position FROM ie_cursor"), 20); /* left to look at */
    test_exec(db, "UPDATE ie_cursor SET position = 11");
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    /* An emptied log is the same case. */
    test_exec(db, "DROP TRIGGER ie_event_keep_newest; DELETE FROM ie_event");
    clock_now.boot_ms += 10000;
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_ECURSOR);
    ie__cursors_close(cursors);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    db = live;
    ck_assert_int_eq(ie__cursors_open(&cursors, db, &clock_now.clock, &failure), IE_OK);
}
END_TEST

START_TEST(a_copy_put_back_by_the_backup_api_is_taken_up_where_it_stood)
{
    sqlite3        *copy = NULL;
    sqlite3_backup *backup;
    ie__cursor      cursor;

    events(10);
    ck_assert_int_eq(sqlite3_open(test_path("copy.db"), &copy), SQLITE_OK);
    backup = sqlite3_backup_init(copy, "main", db, "main");
    ck_assert_int_eq(sqlite3_backup_step(backup, -1), SQLITE_DONE);
    ck_assert_int_eq(sqlite3_backup_finish(backup), SQLITE_OK);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_int_eq(advance(&cursor, 10), IE_OK);
    events(10);
    ck_assert_int_eq(advance(&cursor, 20), IE_OK);
    ck_assert_int_eq(sqlite3_close(copy), SQLITE_OK);
    ck_assert_int_eq(sqlite3_open(test_path("copy.db"), &copy), SQLITE_OK);
    backup = sqlite3_backup_init(db, "main", copy, "main");
    ck_assert_int_eq(sqlite3_backup_step(backup, -1), SQLITE_DONE);
    ck_assert_int_eq(sqlite3_backup_finish(backup), SQLITE_OK);
    /* The worker that still holds the lease finds that it has none, and changes nothing. */
    ck_assert_int_eq(advance(&cursor, 21), IE_ELEASE);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_int_eq(cursor.position, 0);
    ck_assert_int_eq(cursor.newest, 10);
    ck_assert_int_eq(sqlite3_close(copy), SQLITE_OK);
}
END_TEST

/* ---- what a dead owner leaves ---- */

/* The owner dies, the next one takes over. */
static void
crash(ie__cursor *cursor)
{
    clock_now.boot_ms += 10000;
    ck_assert_msg(take("bus", an_owner(), cursor) == IE_OK, "%s", failure.message);
}

START_TEST(windows_shrink_to_the_event_that_kills_and_it_is_buried)
{
    ie__cursor cursor;
    int        deaths = 0;

    events(5000);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    crash(&cursor);
    ck_assert_uint_eq(cursor.suspect_window, 62);
    ck_assert_int_eq(cursor.suspect_to, 2000); /* no further than what it had reserved */
    ck_assert_uint_eq(cursor.crashes, 1);
    ck_assert_int_eq(advance(&cursor, 62), IE_OK); /* a window that did no harm */
    crash(&cursor);
    ck_assert_uint_eq(cursor.suspect_window, 1);
    ck_assert_int_eq(cursor.suspect_to, 2000);
    ck_assert_int_eq(advance(&cursor, 70), IE_OK); /* one by one up to the killer, event 71 */
    ck_assert_int_eq(test_int(db, "SELECT crashes + claims FROM ie_cursor"), 0);
    while (!cursor.must_bury) {
        ck_assert_int_eq(ie__cursor_claim(cursors, &cursor, &failure), IE_OK);
        ck_assert_int_le(++deaths, 5); /* claims_max */
        crash(&cursor);
        ck_assert_uint_eq(cursor.suspect_window, 1);
        ck_assert_uint_eq(cursor.claims, (unsigned)deaths);
    }
    ck_assert_int_eq(deaths, 5);
    ck_assert_int_eq(advance(&cursor, 71), IE_OK); /* buried */
    crash(&cursor);
    ck_assert(!cursor.must_bury);
    ck_assert_uint_eq(cursor.claims, 0);
    ck_assert_uint_eq(cursor.crashes, 1);
    /* Past what was suspect, windows are large again. */
    ck_assert_int_eq(advance(&cursor, 2000), IE_OK);
    ck_assert_int_eq(test_int(db, "SELECT suspect_window FROM ie_cursor"), 0);
    crash(&cursor);
    ck_assert_uint_eq(cursor.suspect_window, 62);
    ck_assert_int_eq(cursor.suspect_to, 4000);
}
END_TEST

START_TEST(nothing_is_suspect_when_nothing_was_in_hand)
{
    ie__cursor cursor;

    events(10);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    ck_assert_int_eq(advance(&cursor, 10), IE_OK);
    for (int i = 0; i < 10; i++) {
        crash(&cursor);
        ck_assert_uint_eq(cursor.suspect_window, 0);
        ck_assert_uint_eq(cursor.crashes, 0);
        ck_assert(!cursor.must_bury);
    }
}
END_TEST

START_TEST(what_came_back_unsent_is_not_to_blame)
{
    ie__cursor cursor;

    events(10);
    ck_assert_int_eq(take("bus", an_owner(), &cursor), IE_OK);
    crash(&cursor);
    crash(&cursor);
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(ie__cursor_claim(cursors, &cursor, &failure), IE_OK);
        test_exec(db, "BEGIN IMMEDIATE");
        ck_assert_int_eq(ie__cursor_advance(cursors, &cursor, 0, 2000, 10000, true, &failure),
                         IE_OK);
        test_exec(db, "COMMIT");
        crash(&cursor);
        ck_assert(!cursor.must_bury);
        ck_assert_uint_eq(cursor.claims, 0);
    }
}
END_TEST

/* ---- deliveries ---- */

static ie__deliveries *
deliveries_of(const char *cursor)
{
    ie__deliveries *d = NULL;

    ck_assert_msg(ie__deliveries_open(&d, db, &clock_now.clock, cursor, &failure) == IE_OK, "%s",
                  failure.message);
    return d;
}

static void
put(ie__deliveries *d, int64_t position, ie_state state, const char *key, int64_t due_ms,
    int64_t expires_ms)
{
    const ie__delivery row = {.position = position,
                              .state = state,
                              .key = key,
                              .attempts = 3,
                              .claims = 0,
                              .due_at_ms = due_ms,
                              .expires_at_ms = expires_ms,
                              .since_ms = WALL_MS,
                              .reason = "broker said no"};

    ck_assert_msg(ie__delivery_put(d, &row, &failure) == IE_OK, "%s", failure.message);
}

START_TEST(a_delivery_is_written_changed_read_and_removed)
{
    ie__deliveries *d = deliveries_of("bus");
    ie__deliveries *other = deliveries_of("audit");
    ie__delivery    row;
    char            long_reason[2000];

    put(d, 7, IE_STATE_RETRYING, "k", WALL_MS + 5, WALL_MS + 9);
    ck_assert_int_eq(ie__delivery_get(d, 7, &row, NULL), IE_OK);
    ck_assert_int_eq(row.position, 7);
    ck_assert_int_eq(row.state, IE_STATE_RETRYING);
    ck_assert_str_eq(row.key, "k");
    ck_assert_uint_eq(row.attempts, 3);
    ck_assert_int_eq(row.due_at_ms, WALL_MS + 5);
    ck_assert_int_eq(row.expires_at_ms, WALL_MS + 9);
    ck_assert_int_eq(row.since_ms, WALL_MS);
    ck_assert_str_eq(row.reason, "broker said no");
    ck_assert_int_eq(ie__delivery_get(other, 7, &row, NULL), IE_ENOTFOUND);
    /* A reason is cut at its limit, and not in the middle of a character. */
    memset(long_reason, 'a', sizeof long_reason);
    memcpy(long_reason + IE__REASON_BYTES_MAX - 1, "\xC3\xA4", 2);
    long_reason[sizeof long_reason - 1] = '\0';
    row = (ie__delivery){.position = 7, .state = IE_STATE_DEAD, .key = "k", .reason = long_reason};
    ck_assert_int_eq(ie__delivery_put(d, &row, NULL), IE_OK);
    ck_assert_int_eq(ie__delivery_get(d, 7, &row, NULL), IE_OK);
    ck_assert_int_eq(row.state, IE_STATE_DEAD);
    ck_assert_uint_eq(strlen(row.reason), IE__REASON_BYTES_MAX - 1);
    row = (ie__delivery){.position = 8, .state = IE_STATE_BLOCKED};
    ck_assert_int_eq(ie__delivery_put(d, &row, NULL), IE_OK);
    ck_assert_int_eq(ie__delivery_get(d, 8, &row, NULL), IE_OK);
    ck_assert_ptr_null(row.key);
    ck_assert_str_eq(row.reason, "");
    ck_assert_int_eq(ie__delivery_remove(d, 7, NULL), IE_OK);
    ck_assert_int_eq(ie__delivery_remove(d, 7, NULL), IE_OK); /* gone is gone */
    ck_assert_int_eq(ie__delivery_get(d, 7, &row, NULL), IE_ENOTFOUND);
    ie__deliveries_close(d);
    ie__deliveries_close(other);
}
END_TEST

START_TEST(the_due_ones_come_oldest_first)
{
    ie__deliveries *d = deliveries_of("bus");
    int64_t         at[16];
    int64_t         next;
    size_t          count;

    ck_assert_int_eq(ie__delivery_next_due(d, &next, NULL), IE_OK);
    ck_assert_int_eq(next, INT64_MAX);
    put(d, 1, IE_STATE_RETRYING, "a", WALL_MS + 30, 0);
    put(d, 2, IE_STATE_SCHEDULED, "b", WALL_MS + 10, 0);
    put(d, 3, IE_STATE_RETRYING, "c", WALL_MS + 20, 0);
    put(d, 4, IE_STATE_BLOCKED, "c", 0, 0);
    put(d, 5, IE_STATE_DEAD, "d", 0, 0);
    put(d, 6, IE_STATE_SCHEDULED, "e", WALL_MS + 10, 0);
    ck_assert_int_eq(ie__delivery_next_due(d, &next, NULL), IE_OK);
    ck_assert_int_eq(next, WALL_MS + 10);
    ck_assert_int_eq(ie__delivery_due(d, WALL_MS + 9, 1000, at, 16, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 0);
    ck_assert_int_eq(ie__delivery_due(d, WALL_MS + 20, 1000, at, 16, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 3);
    ck_assert_int_eq(at[0], 2);
    ck_assert_int_eq(at[1], 6);
    ck_assert_int_eq(at[2], 3);
    ck_assert_int_eq(ie__delivery_due(d, WALL_MS + 99, 1000, at, 2, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 2);
    /* The wall clock was set back by a year: a retry cannot lie so far ahead, a schedule can. */
    ck_assert_int_eq(
        ie__delivery_due(d, WALL_MS - 365 * INT64_C(86400000), 300000, at, 16, &count, NULL),
        IE_OK);
    ck_assert_uint_eq(count, 2);
    ck_assert_int_eq(at[0], 3);
    ck_assert_int_eq(at[1], 1);
    /* What is claimed is out of reach until then. */
    test_exec(db, "BEGIN");
    ck_assert_int_eq(ie__delivery_claim(d, 3, WALL_MS + 500, NULL), IE_OK);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(ie__delivery_due(d, WALL_MS + 20, 1000, at, 16, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 2);
    /* A new owner looks at it at once, and knows that it was claimed. */
    ck_assert_int_eq(ie__deliveries_recover(d, NULL), IE_OK);
    ck_assert_int_eq(ie__delivery_due(d, WALL_MS + 20, 1000, at, 16, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 3);
    ck_assert_int_eq(test_int(db, "SELECT claims FROM ie_delivery WHERE position = 3"), 1);
    ck_assert_int_eq(test_int(db, "SELECT due_at FROM ie_delivery WHERE position = 1"),
                     WALL_MS + 30); /* not claimed: waits as before */
    ck_assert_int_eq(ie__deliveries_unclaim(d, NULL), IE_OK);
    ck_assert_int_eq(test_int(db, "SELECT sum(claims) FROM ie_delivery"), 0);
    ie__deliveries_close(d);
}
END_TEST

static int
count_one(void *user)
{
    ++*(int64_t *)user;
    return 0;
}

START_TEST(a_hundred_thousand_that_wait_cost_nothing_until_they_are_due)
{
    ie__deliveries *d = deliveries_of("bus");
    ie__cleaner    *cleaner = NULL;
    ie__retention   retention = {1, 1, 1, 1, 500};
    int64_t         at[16];
    int64_t         next;
    int64_t         thousands = 0;
    uint64_t        removed;
    size_t          count;
    bool            more;
    char            sql[400];

    events(2);
    (void)snprintf(sql, sizeof sql,
                   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <"
                   " 100000) INSERT INTO ie_delivery(cursor, position, state, due_at, since)"
                   " SELECT 'bus', i, iif(i %% 2, 'scheduled', 'retrying'), %lld + i, %lld FROM n",
                   (long long)WALL_MS + 100000, (long long)WALL_MS);
    test_exec(db, sql);
    ck_assert_int_eq(ie__cleaner_open(&cleaner, db, &clock_now.clock, NULL), IE_OK);
    sqlite3_progress_handler(db, 1000, count_one, &thousands);
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(ie__delivery_due(d, WALL_MS, 300000, at, 16, &count, NULL), IE_OK);
        ck_assert_uint_eq(count, 0);
        ck_assert_int_eq(ie__delivery_next_due(d, &next, NULL), IE_OK);
        ck_assert_int_eq(ie__delivery_due(d, WALL_MS + 200000, 300000, at, 16, &count, NULL),
                         IE_OK);
        ck_assert_uint_eq(count, 16);
        ck_assert_int_eq(ie__cleaner_step(cleaner, &retention, &removed, &more, NULL), IE_OK);
    }
    sqlite3_progress_handler(db, 0, NULL, NULL);
    ck_assert_int_eq(next, WALL_MS + 100001);
    ck_assert_int_le(thousands, 20); /* looking at each would be thousands */
    ie__cleaner_close(cleaner);
    ie__deliveries_close(d);
}
END_TEST

typedef struct keys {
    int  count;
    char text[64];
} keys;

static void
add_key(void *user, const char *key)
{
    keys        *seen = user;
    const size_t used = strlen(seen->text);

    seen->count++;
    (void)snprintf(seen->text + used, sizeof seen->text - used, "%s,", key);
}

START_TEST(a_key_is_held_from_its_first_trouble_and_released_one_by_one)
{
    ie__deliveries *d = deliveries_of("bus");
    keys            seen = {0, ""};
    bool            is_held;
    bool            released;

    put(d, 5, IE_STATE_RETRYING, "k", WALL_MS + 5, 0);
    put(d, 6, IE_STATE_BLOCKED, "k", 0, 0);
    put(d, 8, IE_STATE_BLOCKED, "k", 0, 0);
    put(d, 9, IE_STATE_DEAD, "gone", 0, 0);
    put(d, 10, IE_STATE_RETRYING, NULL, WALL_MS + 5, 0);
    put(d, 11, IE_STATE_SCHEDULED, "later", WALL_MS + 5, 0);
    ck_assert_int_eq(ie__delivery_key_held(d, "k", 100, &is_held, NULL), IE_OK);
    ck_assert(is_held);
    ck_assert_int_eq(ie__delivery_key_held(d, "k", 5, &is_held, NULL), IE_OK);
    ck_assert(!is_held); /* not by itself */
    ck_assert_int_eq(ie__delivery_key_held(d, "gone", 100, &is_held, NULL), IE_OK);
    ck_assert(!is_held);
    ck_assert_int_eq(ie__delivery_key_held(d, "later", 100, &is_held, NULL), IE_OK);
    ck_assert(!is_held);
    ck_assert_int_eq(ie__delivery_held_keys(d, add_key, &seen, NULL), IE_OK);
    ck_assert_str_eq(seen.text, "k,");
    /* The head is still there: nothing behind it is released. */
    ck_assert_int_eq(ie__delivery_release_key(d, "k", &released, NULL), IE_OK);
    ck_assert(!released);
    ck_assert_int_eq(ie__delivery_remove(d, 5, NULL), IE_OK);
    ck_assert_int_eq(ie__delivery_release_key(d, "k", &released, NULL), IE_OK);
    ck_assert(released);
    ck_assert_str_eq(test_text(db, "SELECT group_concat(position || state, ' ') FROM ie_delivery"
                                   " WHERE key = 'k'"),
                     "6retrying 8blocked");
    ck_assert_int_eq(test_int(db, "SELECT due_at FROM ie_delivery WHERE position = 6"), WALL_MS);
    ck_assert_int_eq(ie__delivery_release_key(d, "nobody", &released, NULL), IE_OK);
    ck_assert(!released);
    ie__deliveries_close(d);
}
END_TEST

START_TEST(what_waits_expires_and_what_has_ended_does_not)
{
    ie__deliveries *d = deliveries_of("bus");
    int64_t         at[16];
    size_t          count;

    put(d, 1, IE_STATE_RETRYING, "a", WALL_MS + 5, WALL_MS + 10);
    put(d, 2, IE_STATE_BLOCKED, "a", 0, WALL_MS + 10);
    put(d, 3, IE_STATE_SCHEDULED, "b", WALL_MS + 5, WALL_MS + 11);
    put(d, 4, IE_STATE_DEAD, "c", 0, WALL_MS + 1);
    put(d, 5, IE_STATE_RETRYING, "d", WALL_MS + 5, 0);
    ck_assert_int_eq(ie__delivery_expired(d, WALL_MS + 9, at, 16, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 0);
    ck_assert_int_eq(ie__delivery_expired(d, WALL_MS + 10, at, 16, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 2);
    ck_assert_int_eq(ie__delivery_expired(d, WALL_MS + 11, at, 2, &count, NULL), IE_OK);
    ck_assert_uint_eq(count, 2);
    ie__deliveries_close(d);
}
END_TEST

/* ---- retention ---- */

static uint64_t
clean(const ie__retention *retention)
{
    ie__cleaner *cleaner = NULL;
    uint64_t     all = 0;
    bool         more = true;

    ck_assert_int_eq(ie__cleaner_open(&cleaner, db, &clock_now.clock, &failure), IE_OK);
    for (int i = 0; more; i++) {
        uint64_t removed;

        ck_assert_int_lt(i, 1000);
        ck_assert_msg(ie__cleaner_step(cleaner, retention, &removed, &more, &failure) == IE_OK,
                      "%s", failure.message);
        ck_assert_uint_le(removed, retention->rows_max);
        all += removed;
    }
    ie__cleaner_close(cleaner);
    return all;
}

static void
cursor_at(const char *name, int64_t position)
{
    char sql[160];

    (void)snprintf(sql, sizeof sql,
                   "INSERT INTO ie_cursor(name, position) VALUES ('%s', %lld)"
                   " ON CONFLICT DO UPDATE SET position = excluded.position",
                   name, (long long)position);
    test_exec(db, sql);
}

START_TEST(only_what_every_cursor_has_passed_is_removed_and_the_newest_stays)
{
    const ie__retention now = {0, 0, 0, 0, 7};

    events(100);
    clock_now.wall_ms += 1;
    ck_assert_uint_eq(clean(&now), 0); /* nobody reads yet: nothing has been published */
    cursor_at("bus", 0);
    ck_assert_uint_eq(clean(&now), 0);
    cursor_at("bus", 60);
    cursor_at("slow", 25);
    ck_assert_uint_eq(clean(&now), 25);
    ck_assert_int_eq(test_int(db, "SELECT min(position) FROM ie_event"), 26);
    cursor_at("slow", 100);
    ck_assert_uint_eq(clean(&now), 35);
    cursor_at("bus", 100);
    ck_assert_uint_eq(clean(&now), 39);
    ck_assert_str_eq(test_text(db, "SELECT group_concat(position) FROM ie_event"), "100");
    ck_assert_uint_eq(clean(&now), 0);
    events(1);
    ck_assert_int_eq(test_int(db, "SELECT max(position) FROM ie_event"), 101);
}
END_TEST

START_TEST(what_is_too_young_stays_to_the_millisecond)
{
    const ie__retention minute = {60, 60, 60, 60, 500};

    events(10);
    clock_now.wall_ms += 30000;
    test_exec(db, "INSERT INTO ie_event(topic, time) VALUES ('t', 1700000030000),"
                  " ('t', 1700000030000)");
    cursor_at("bus", 12);
    clock_now.wall_ms = WALL_MS + 59999;
    ck_assert_uint_eq(clean(&minute), 0);
    clock_now.wall_ms = WALL_MS + 60000;
    ck_assert_uint_eq(clean(&minute), 10);
    clock_now.wall_ms = WALL_MS + 90000;
    ck_assert_uint_eq(clean(&minute), 1);
}
END_TEST

START_TEST(an_event_dated_in_the_future_does_not_keep_the_table_for_ever)
{
    const ie__retention minute = {60, 60, 60, 60, 500};

    test_exec(db, "INSERT INTO ie_event(topic, time) VALUES ('t', 253402300799999)");
    events(100);
    cursor_at("bus", 101);
    clock_now.wall_ms += 60000;
    ck_assert_uint_eq(clean(&minute), 100);
}
END_TEST

START_TEST(an_event_with_a_delivery_stays_as_long_as_its_state_says)
{
    const ie__retention ages = {10, 40, 30, 20, 2};
    ie__deliveries     *d = deliveries_of("bus");

    events(10);
    cursor_at("bus", 10);
    put(d, 1, IE_STATE_DEAD, NULL, 0, 0);
    put(d, 2, IE_STATE_EXPIRED, NULL, 0, 0);
    put(d, 3, IE_STATE_DISCARDED, NULL, 0, 0);
    put(d, 4, IE_STATE_RETRYING, "k", WALL_MS, 0);
    put(d, 5, IE_STATE_BLOCKED, "k", 0, 0);
    put(d, 6, IE_STATE_SCHEDULED, NULL, WALL_MS, 0);
    clock_now.wall_ms = WALL_MS + 10000;
    ck_assert_uint_eq(clean(&ages), 3); /* 7, 8, 9 */
    clock_now.wall_ms = WALL_MS + 19999;
    ck_assert_uint_eq(clean(&ages), 0);
    clock_now.wall_ms = WALL_MS + 20000;
    ck_assert_uint_eq(clean(&ages), 1);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_event WHERE position = 3"), 0);
    clock_now.wall_ms = WALL_MS + 30000;
    ck_assert_uint_eq(clean(&ages), 1);
    clock_now.wall_ms = WALL_MS + 40000;
    ck_assert_uint_eq(clean(&ages), 1);
    clock_now.wall_ms = WALL_MS + INT64_C(86400000) * 365;
    ck_assert_uint_eq(clean(&ages), 0); /* what is unfinished has no age */
    ck_assert_str_eq(test_text(db, "SELECT group_concat(position) FROM ie_event"), "4,5,6,10");
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_delivery"), 3);
    ie__deliveries_close(d);
}
END_TEST

START_TEST(a_round_of_cleaning_looks_again_at_what_a_delivery_kept)
{
    const ie__retention now = {0, 1000, 1000, 1000, 10};
    ie__deliveries     *d = deliveries_of("bus");
    ie__cleaner        *cleaner = NULL;
    uint64_t            removed;
    bool                more;

    events(10);
    cursor_at("bus", 10);
    put(d, 1, IE_STATE_RETRYING, NULL, WALL_MS, 0);
    clock_now.wall_ms += 1;
    ck_assert_int_eq(ie__cleaner_open(&cleaner, db, &clock_now.clock, NULL), IE_OK);
    ck_assert_int_eq(ie__cleaner_step(cleaner, &now, &removed, &more, NULL), IE_OK);
    ck_assert_uint_eq(removed, 8);
    ck_assert_int_eq(ie__delivery_remove(d, 1, NULL), IE_OK);
    ie__cleaner_restart(cleaner);
    ck_assert_int_eq(ie__cleaner_step(cleaner, &now, &removed, &more, NULL), IE_OK);
    ck_assert_uint_eq(removed, 1);
    ie__cleaner_close(cleaner);
    ie__deliveries_close(d);
}
END_TEST

START_TEST(cleaning_gives_way_to_whoever_writes)
{
    const ie__retention now = {0, 0, 0, 0, 10};
    ie__cleaner        *cleaner = NULL;
    sqlite3            *other = NULL;
    uint64_t            removed;
    bool                more;

    events(10);
    cursor_at("bus", 10);
    clock_now.wall_ms += 1;
    ck_assert_int_eq(sqlite3_open(test_path("app.db"), &other), SQLITE_OK);
    ck_assert_int_eq(ie__cleaner_open(&cleaner, other, &clock_now.clock, NULL), IE_OK);
    test_exec(db, "BEGIN IMMEDIATE");
    ck_assert_int_eq(ie__cleaner_step(cleaner, &now, &removed, &more, NULL), IE_EBUSY);
    ck_assert_uint_eq(removed, 0);
    ck_assert_int_eq(sqlite3_get_autocommit(other), 1);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(ie__cleaner_step(cleaner, &now, &removed, &more, NULL), IE_OK);
    ck_assert_uint_eq(removed, 9);
    ie__cleaner_close(cleaner);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

/* ---- noticing commits ---- */

static bool
is_readable(void *watch)
{
    struct pollfd at = {.fd = ie__watch_fd(watch), .events = POLLIN};

    return poll(&at, 1, 0) == 1;
}

/* Commit one event in another process. */
static void
commit_elsewhere(const char *path)
{
    const pid_t child = fork();
    int         code = -1;

    if (child == 0) {
        sqlite3 *own = NULL;

        _exit(sqlite3_open(path, &own) == SQLITE_OK &&
                      sqlite3_exec(own, "INSERT INTO ie_event(topic) VALUES ('t')", NULL, NULL,
                                   NULL) == SQLITE_OK
                  ? 0
                  : 1);
    }
    ck_assert_int_eq(waitpid(child, &code, 0), child);
    ck_assert_int_eq(code, 0);
}

START_TEST(a_commit_by_another_process_is_noticed)
{
    ie__watch *watch = NULL;

    ck_assert_int_eq(ie__watch_open(&watch, test_path("app.db"), &failure), IE_OK);
    ck_assert_int_ge(ie__watch_fd(watch), 0);
    for (int i = 0; i < 20; i++) {
        ie__watch_drain(watch);
        ck_assert(!is_readable(watch)); /* and nothing is heard while nothing happens */
        commit_elsewhere(test_path("app.db"));
        ck_assert(poll_until(is_readable, watch, 5000));
    }
    ie__watch_close(watch);
}
END_TEST

START_TEST(commits_are_noticed_after_the_wal_was_removed_and_made_again)
{
    ie__watch  *watch = NULL;
    const char *path = test_path("coming-and-going.db");
    sqlite3    *other = test_db_open(path);

    ck_assert_int_eq(ie_migrate_up(other, NULL, &failure), IE_OK);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK); /* the last one out removes the -wal */
    ck_assert_int_ne(access(test_path("coming-and-going.db-wal"), F_OK), 0);
    ck_assert_int_eq(ie__watch_open(&watch, path, &failure), IE_OK);
    for (int i = 0; i < 5; i++) {
        ie__watch_drain(watch);
        other = test_db_open(path); /* a new -wal */
        test_exec(other, "INSERT INTO ie_event(topic) VALUES ('t')");
        ck_assert(poll_until(is_readable, watch, 5000));
        ie__watch_drain(watch);
        test_exec(other, "INSERT INTO ie_event(topic) VALUES ('t')"); /* into the known one */
        ck_assert(poll_until(is_readable, watch, 5000));
        ie__watch_drain(watch);
        ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
        ck_assert(poll_until(is_readable, watch, 5000)); /* at the latest when it goes */
    }
    ie__watch_close(watch);
}
END_TEST

START_TEST(rollback_journals_are_noticed_too)
{
    ie__watch *watch = NULL;
    sqlite3   *other = NULL;

    ck_assert_int_eq(sqlite3_open(test_path("journal.db"), &other), SQLITE_OK);
    ck_assert_int_eq(ie_migrate_up(other, NULL, &failure), IE_OK);
    ck_assert_int_eq(ie__watch_open(&watch, test_path("journal.db"), &failure), IE_OK);
    ie__watch_drain(watch);
    ck_assert(!is_readable(watch));
    test_exec(other, "INSERT INTO ie_event(topic) VALUES ('t')");
    ck_assert(poll_until(is_readable, watch, 5000));
    ie__watch_close(watch);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

/* ---- a guest's connection ---- */

START_TEST(our_own_connection_has_the_manners_of_a_guest)
{
    sqlite3 *own = NULL;

    ck_assert_int_eq(ie__database_open(&own, test_path("app.db"), 50, &failure), IE_OK);
    ck_assert_int_eq(test_int(own, "PRAGMA wal_autocheckpoint"), 0);
    ck_assert_int_eq(test_int(own, "PRAGMA mmap_size"), 0);
    ck_assert_int_eq(test_int(own, "PRAGMA synchronous"), 1);
    ck_assert_int_eq(test_int(own, "PRAGMA trusted_schema"), 0);
    test_exec(own, "INSERT INTO ie_event(topic) VALUES ('t')"); /* works with such a schema */
    ck_assert_int_eq(sqlite3_close(own), SQLITE_OK);
    ie_error_clear(&failure);
    ck_assert_int_eq(ie__database_open(&own, test_path("missing.db"), 50, &failure), IE_ENOTFOUND);
    ck_assert_msg(strstr(failure.message, "missing.db") != NULL, "%s", failure.message);
    ck_assert_int_ne(access(test_path("missing.db"), F_OK), 0); /* not made by looking */
}
END_TEST

START_TEST(a_file_that_is_no_database_is_said_to_be_none)
{
    FILE    *file = fopen(test_path("letter.txt"), "w");
    sqlite3 *own = NULL;

    for (int i = 0; i < 100; i++)
        (void)fputs("Dear Sir or Madam, this is not a database. ", file);
    (void)fclose(file);
    ck_assert_int_eq(ie__database_open(&own, test_path("letter.txt"), 50, NULL), IE_ECORRUPT);
    ck_assert_int_eq(ie__database_open(&own, test_path("letter.txt"), 50, &failure), IE_ECORRUPT);
    ck_assert_msg(strstr(failure.message, "letter.txt") != NULL, "%s", failure.message);
    ck_assert_ptr_null(own);
}
END_TEST

START_TEST(a_file_that_was_replaced_is_noticed)
{
    sqlite3 *own = NULL;
    sqlite3 *another = NULL;

    ck_assert_int_eq(ie__database_open(&own, test_path("app.db"), 50, &failure), IE_OK);
    ck_assert_int_eq(ie__database_in_place(own, &failure), IE_OK);
    ck_assert_int_eq(rename(test_path("app.db"), test_path("away.db")), 0);
    ck_assert_int_eq(ie__database_in_place(own, NULL), IE_EMOVED);
    another = test_db_open(test_path("app.db"));
    ck_assert_int_eq(ie__database_in_place(own, &failure), IE_EMOVED);
    ck_assert_msg(strstr(failure.message, "app.db") != NULL, "%s", failure.message);
    ck_assert_int_eq(sqlite3_close(another), SQLITE_OK);
    ck_assert_int_eq(sqlite3_close(own), SQLITE_OK);
}
END_TEST

START_TEST(versions_with_the_wal_reset_bug_are_known)
{
    ck_assert(!ie__sqlite_has_wal_reset_bug(3006023));
    ck_assert(ie__sqlite_has_wal_reset_bug(3007000));
    ck_assert(ie__sqlite_has_wal_reset_bug(3040001));
    ck_assert(ie__sqlite_has_wal_reset_bug(3044005));
    ck_assert(!ie__sqlite_has_wal_reset_bug(3044006));
    ck_assert(ie__sqlite_has_wal_reset_bug(3045000));
    ck_assert(ie__sqlite_has_wal_reset_bug(3050006));
    ck_assert(!ie__sqlite_has_wal_reset_bug(3050007));
    ck_assert(ie__sqlite_has_wal_reset_bug(3051000));
    ck_assert(ie__sqlite_has_wal_reset_bug(3051002));
    ck_assert(!ie__sqlite_has_wal_reset_bug(3051003));
    ck_assert(!ie__sqlite_has_wal_reset_bug(3053002));
}
END_TEST

START_TEST(the_guarded_checkpoint_empties_the_wal_and_gives_way_to_writers)
{
    (void)sqlite3_wal_autocheckpoint(db, 0);
    events(2000);
    ck_assert_int_eq(ie__database_checkpoint(test_path("app.db"), 1, &failure), IE_OK);
    events(1); /* the next writer starts the -wal from its beginning when all was copied */
    {
        int frames = -1;
        int done = -1;

        ck_assert_int_eq(
            sqlite3_wal_checkpoint_v2(db, "main", SQLITE_CHECKPOINT_PASSIVE, &frames, &done),
            SQLITE_OK);
        ck_assert_int_lt(frames, 20);
    }
    test_exec(db, "BEGIN IMMEDIATE");
    ck_assert_int_eq(ie__database_checkpoint(test_path("app.db"), 1, &failure), IE_EBUSY);
    test_exec(db, "ROLLBACK");
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("cursor");
    TCase   *lease = tcase_create("lease");
    TCase   *delivery = tcase_create("delivery");
    TCase   *retention = tcase_create("retention");
    TCase   *watch = tcase_create("watch");
    TCase   *guest = tcase_create("guest");
    TCase   *cases[] = {lease, delivery, retention, watch, guest};
    SRunner *runner;
    int      failed;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tcase_add_checked_fixture(cases[i], setup, teardown);
        tcase_set_timeout(cases[i], 60);
        suite_add_tcase(suite, cases[i]);
    }
    tcase_add_test(lease, a_lease_has_one_holder_until_it_is_given_back_or_runs_out);
    tcase_add_test(lease, an_old_epoch_changes_nothing);
    tcase_add_test(lease, a_lease_can_be_taken_again_by_its_holder_without_suspicion);
    tcase_add_loop_test(lease, a_dead_process_loses_its_lease_at_once, 0, ENDING_COUNT);
    tcase_add_test(lease, a_process_whose_first_thread_ended_is_alive);
    tcase_add_test(lease, an_owner_is_gone_only_when_that_is_certain);
    tcase_add_test(lease, after_a_reboot_every_lease_is_free);
    tcase_add_test(lease, a_new_cursor_begins_where_it_was_asked_to);
    tcase_add_test(lease, a_restored_copy_stops_the_worker_or_repeats_but_never_skips);
    tcase_add_test(lease, a_copy_put_back_by_the_backup_api_is_taken_up_where_it_stood);
    tcase_add_test(lease, windows_shrink_to_the_event_that_kills_and_it_is_buried);
    tcase_add_test(lease, nothing_is_suspect_when_nothing_was_in_hand);
    tcase_add_test(lease, what_came_back_unsent_is_not_to_blame);
    tcase_add_test(delivery, a_delivery_is_written_changed_read_and_removed);
    tcase_add_test(delivery, the_due_ones_come_oldest_first);
    tcase_add_test(delivery, a_hundred_thousand_that_wait_cost_nothing_until_they_are_due);
    tcase_add_test(delivery, a_key_is_held_from_its_first_trouble_and_released_one_by_one);
    tcase_add_test(delivery, what_waits_expires_and_what_has_ended_does_not);
    tcase_add_test(retention, only_what_every_cursor_has_passed_is_removed_and_the_newest_stays);
    tcase_add_test(retention, what_is_too_young_stays_to_the_millisecond);
    tcase_add_test(retention, an_event_dated_in_the_future_does_not_keep_the_table_for_ever);
    tcase_add_test(retention, an_event_with_a_delivery_stays_as_long_as_its_state_says);
    tcase_add_test(retention, a_round_of_cleaning_looks_again_at_what_a_delivery_kept);
    tcase_add_test(retention, cleaning_gives_way_to_whoever_writes);
    tcase_add_test(watch, a_commit_by_another_process_is_noticed);
    tcase_add_test(watch, commits_are_noticed_after_the_wal_was_removed_and_made_again);
    tcase_add_test(watch, rollback_journals_are_noticed_too);
    tcase_add_test(guest, our_own_connection_has_the_manners_of_a_guest);
    tcase_add_test(guest, a_file_that_is_no_database_is_said_to_be_none);
    tcase_add_test(guest, a_file_that_was_replaced_is_noticed);
    tcase_add_test(guest, versions_with_the_wal_reset_bug_are_known);
    tcase_add_test(guest, the_guarded_checkpoint_empties_the_wal_and_gives_way_to_writers);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
