/*
 * ie_publish() as a guest in the application's transaction: every status brought about for real,
 * the host's connection left as it was, and storage and memory failing at every point.
 */
#include <ie/migrate.h>
#include <ie/outbox.h>

#include <check.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "fault_vfs.h"
#include "support.h"

#define QUICK_ASSERT(claim)                                                                        \
    do {                                                                                           \
        if (!(claim))                                                                              \
            ck_abort_msg("%s (%s)", #claim, failure.message);                                      \
    } while (0)

static const ie_event PLACED = {
    .size = sizeof PLACED, .topic = "shop.order.placed", .data = "{\"n\":1}", .data_bytes = 7};

static sqlite3   *db;
static ie_outbox *outbox;
static ie_error   failure;

/* ---- SQLite's allocations, one of which can be made to fail ---- */

static sqlite3_mem_methods real_memory;
static _Atomic int64_t     memory_fail_at; /* 0: off */
static _Atomic int64_t     memory_fired;
static bool                memory_sticky;

static bool
memory_must_fail(void)
{
    if (memory_fail_at == 0)
        return false;
    if (memory_fail_at > 1) {
        memory_fail_at--;
        return false;
    }
    if (!memory_sticky)
        memory_fail_at = 0;
    memory_fired++;
    return true;
}

static void *
memory_malloc(int bytes)
{
    return memory_must_fail() ? NULL : real_memory.xMalloc(bytes);
}

static void *
memory_realloc(void *old, int bytes)
{
    return memory_must_fail() ? NULL : real_memory.xRealloc(old, bytes);
}

static void
memory_install(void)
{
    sqlite3_mem_methods ours;

    (void)sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real_memory);
    ours = real_memory;
    ours.xMalloc = memory_malloc;
    ours.xRealloc = memory_realloc;
    (void)sqlite3_config(SQLITE_CONFIG_MALLOC, &ours);
    (void)sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0); /* each allocation counts */
}

static void
memory_arm(int64_t n, bool sticky)
{
    memory_fired = 0;
    memory_sticky = sticky;
    memory_fail_at = n;
}

/* ---- fixtures ---- */

static void
setup(void)
{
    (void)test_dir_make();
    db = test_db_open(test_path("app.db"));
    ck_assert_int_eq(ie_migrate_up(db, NULL, &failure), IE_OK);
    test_exec(db, "CREATE TABLE orders (id INTEGER PRIMARY KEY, n INTEGER)");
    ck_assert_msg(ie_outbox_open(&outbox, db, NULL, &failure) == IE_OK, "%s", failure.message);
}

static void
teardown(void)
{
    ie_outbox_close(outbox);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK); /* BUSY would mean a statement left behind */
    test_dir_remove();
}

static ie_status
publish(const ie_event *event)
{
    ie_error_clear(&failure);
    return ie_publish(outbox, event, NULL, &failure);
}

static int64_t
events(void)
{
    return test_int(db, "SELECT count(*) FROM main.ie_event");
}

/*
 * The event was refused: it says why in one line, nothing was written, the transaction with the
 * order is still open, and takes the next event.
 */
static void
expect_refused(ie_status got, ie_status expected, const char *words)
{
    const int64_t before = events();

    ck_assert_msg(got == expected, "%s instead of %s: %s", ie_status_name(got),
                  ie_status_name(expected), failure.message);
    ck_assert_int_eq(failure.status, expected);
    ck_assert_msg(strstr(failure.message, words) != NULL, "'%s' does not say '%s'", failure.message,
                  words);
    ck_assert_ptr_null(strchr(failure.message, '\n'));
    ck_assert_int_eq(sqlite3_get_autocommit(db), 0);
    ck_assert_int_eq(events(), before);
}

static void
begin_with_order(void)
{
    test_exec(db, "BEGIN IMMEDIATE; INSERT INTO orders(n) VALUES (1)");
}

/* The transaction that an event was refused in can be committed, with and without another event. */
static void
commit_with_another(void)
{
    ck_assert_msg(publish(&PLACED) == IE_OK, "%s", failure.message);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 1);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM orders"), 1);
}

/* ---- the transaction decides ---- */

START_TEST(committed_is_stored_and_rolled_back_is_not)
{
    char id[IE_ID_SIZE] = "untouched";

    begin_with_order();
    ck_assert_int_eq(ie_publish(outbox, &PLACED, id, &failure), IE_OK);
    ck_assert_uint_eq(strlen(id), 36);
    test_exec(db, "ROLLBACK");
    ck_assert_int_eq(events(), 0);
    begin_with_order();
    ck_assert_int_eq(ie_publish(outbox, &PLACED, id, &failure), IE_OK);
    test_exec(db, "SAVEPOINT inner");
    ck_assert_int_eq(publish(&PLACED), IE_OK);
    test_exec(db, "ROLLBACK TO inner; RELEASE inner");
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 1);
    ck_assert_str_eq(test_text(db, "SELECT id FROM ie_event"), id);
}
END_TEST

START_TEST(an_id_of_the_callers_is_kept_and_none_is_given)
{
    ie_event event = PLACED;
    char     id[IE_ID_SIZE] = "untouched";

    event.id = "my-id";
    begin_with_order();
    ck_assert_int_eq(ie_publish(outbox, &event, id, &failure), IE_OK);
    test_exec(db, "COMMIT");
    ck_assert_str_eq(id, "untouched");
    ck_assert_str_eq(test_text(db, "SELECT id FROM ie_event"), "my-id");
}
END_TEST

START_TEST(outside_a_transaction_it_is_refused_unless_allowed)
{
    ie_outbox_options options;
    ie_outbox        *alone = NULL;

    ck_assert_int_eq(publish(&PLACED), IE_ENOTXN);
    ck_assert_msg(strstr(failure.message, "BEGIN IMMEDIATE") != NULL, "%s", failure.message);
    ck_assert_int_eq(events(), 0);
    IE_OUTBOX_OPTIONS_INIT(&options);
    options.allow_autocommit = true;
    ck_assert_int_eq(ie_outbox_open(&alone, db, &options, &failure), IE_OK);
    ck_assert_int_eq(ie_publish(alone, &PLACED, NULL, &failure), IE_OK);
    ck_assert_int_eq(events(), 1);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    test_exec(db, "CREATE TEMP TRIGGER no BEFORE INSERT ON main.ie_event"
                  " BEGIN SELECT RAISE(ROLLBACK, 'no'); END");
    ck_assert_int_eq(ie_publish(alone, &PLACED, NULL, NULL), IE_EDENIED); /* none to give up */
    ie_outbox_close(alone);
}
END_TEST

START_TEST(a_commit_that_fails_decides_later)
{
    sqlite3 *other = test_db_open(test_path("journal.db"));

    /* Rollback journal: a reader keeps COMMIT waiting. */
    test_exec(other, "PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA");
    ck_assert_int_eq(ie_migrate_up(other, NULL, NULL), IE_OK);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
    for (int retried = 0; retried < 2; retried++) {
        sqlite3   *writer = NULL;
        sqlite3   *reader = NULL;
        ie_outbox *own = NULL;

        ck_assert_int_eq(sqlite3_open(test_path("journal.db"), &writer), SQLITE_OK);
        ck_assert_int_eq(sqlite3_open(test_path("journal.db"), &reader), SQLITE_OK);
        test_exec(writer, "PRAGMA synchronous=EXTRA");
        ck_assert_int_eq(ie_outbox_open(&own, writer, NULL, NULL), IE_OK);
        test_exec(reader, "BEGIN; SELECT * FROM ie_event");
        test_exec(writer, "BEGIN IMMEDIATE");
        ck_assert_int_eq(ie_publish(own, &PLACED, NULL, NULL), IE_OK);
        ck_assert_int_eq(sqlite3_exec(writer, "COMMIT", NULL, NULL, NULL), SQLITE_BUSY);
        test_exec(reader, "COMMIT");
        test_exec(writer, retried ? "COMMIT" : "ROLLBACK");
        ck_assert_int_eq(test_int(reader, "SELECT count(*) FROM ie_event"), retried);
        ie_outbox_close(own);
        ck_assert_int_eq(sqlite3_close(writer), SQLITE_OK);
        ck_assert_int_eq(sqlite3_close(reader), SQLITE_OK);
    }
    /* A deferred constraint of the host's. */
    test_exec(db, "PRAGMA foreign_keys=ON; CREATE TABLE lines (o REFERENCES orders(id) DEFERRABLE"
                  " INITIALLY DEFERRED)");
    test_exec(db, "BEGIN; INSERT INTO lines VALUES (99)");
    ck_assert_int_eq(publish(&PLACED), IE_OK);
    ck_assert_int_eq(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL), SQLITE_CONSTRAINT);
    test_exec(db, "ROLLBACK");
    ck_assert_int_eq(events(), 0);
}
END_TEST

/* ---- limits ---- */

static char      filler[IE_DATA_BYTES_MAX + 16];
static ie_header many_headers[IE_HEADERS_MAX + 1];
static char      header_names[IE_HEADERS_MAX + 1][24];

static char *
text_of(size_t bytes)
{
    static char text[4][IE_HEADERS_BYTES_MAX + 16];
    static int  next;
    char       *at = text[next++ % 4];

    memset(at, 'a', bytes);
    at[bytes] = '\0';
    return at;
}

#define SET_TEXT(field_)                                                                           \
    static void set_##field_(ie_event *event, size_t bytes)                                        \
    {                                                                                              \
        event->field_ = text_of(bytes);                                                            \
    }
SET_TEXT(topic)
SET_TEXT(key)
SET_TEXT(id)
SET_TEXT(type)
SET_TEXT(source)
SET_TEXT(subject)
SET_TEXT(dedupe_key)

static void
set_dataschema(ie_event *event, size_t bytes)
{
    char *text = text_of(bytes);

    text[1] = ':';
    event->dataschema = text;
}

static void
set_content_type(ie_event *event, size_t bytes)
{
    char *text = text_of(bytes);

    text[1] = '/';
    event->content_type = text;
}

static void
set_data(ie_event *event, size_t bytes)
{
    event->content_type = "application/octet-stream";
    event->data = filler;
    event->data_bytes = bytes;
}

static void
set_header_count(ie_event *event, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        (void)snprintf(header_names[i], sizeof header_names[i], "h%zu", i);
        many_headers[i] = (ie_header){.name = header_names[i], .value = "v"};
    }
    event->headers = many_headers;
    event->header_count = count;
}

static void
set_header_name(ie_event *event, size_t bytes)
{
    many_headers[0] = (ie_header){.name = text_of(bytes), .value = "v"};
    event->headers = many_headers;
    event->header_count = 1;
}

static void
set_header_bytes(ie_event *event, size_t bytes)
{
    many_headers[0] = (ie_header){.name = "h", .value = text_of(bytes - 1)};
    event->headers = many_headers;
    event->header_count = 1;
}

static const struct {
    const char *name;
    void (*set)(ie_event *event, size_t amount);
    size_t max;
} LIMITS[] = {
    {"topic", set_topic, IE_TOPIC_BYTES_MAX},
    {"key", set_key, IE_ATTRIBUTE_BYTES_MAX},
    {"id", set_id, IE_ID_BYTES_MAX},
    {"type", set_type, IE_ATTRIBUTE_BYTES_MAX},
    {"source", set_source, IE_ATTRIBUTE_BYTES_MAX},
    {"subject", set_subject, IE_ATTRIBUTE_BYTES_MAX},
    {"dataschema", set_dataschema, IE_ATTRIBUTE_BYTES_MAX},
    {"content_type", set_content_type, IE_ATTRIBUTE_BYTES_MAX},
    {"dedupe_key", set_dedupe_key, IE_ATTRIBUTE_BYTES_MAX},
    {"data", set_data, IE_DATA_BYTES_MAX},
    {"header", set_header_count, IE_HEADERS_MAX},
    {"header", set_header_name, IE_HEADER_NAME_BYTES_MAX},
    {"header", set_header_bytes, IE_HEADERS_BYTES_MAX},
};

START_TEST(each_limit_holds_what_it_says_and_not_one_more)
{
    ie_event  event = PLACED;
    ie_status status;

    begin_with_order();
    LIMITS[_i].set(&event, LIMITS[_i].max + 1);
    status = publish(&event);
    ck_assert_msg(status == IE_EINVAL || status == IE_ETOOBIG, "%s", ie_status_name(status));
    expect_refused(status, status, LIMITS[_i].name);
    LIMITS[_i].set(&event, LIMITS[_i].max);
    ck_assert_msg(publish(&event) == IE_OK, "%s: %s", LIMITS[_i].name, failure.message);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 1);
}
END_TEST

static const struct {
    const char *words;
    ie_event    event;
} WRONG[] = {
    {"topic", {.size = sizeof(ie_event)}},
    {"topic", {.size = sizeof(ie_event), .topic = ""}},
    {"topic", {.size = sizeof(ie_event), .topic = "a.*"}},
    {"topic", {.size = sizeof(ie_event), .topic = "a.>"}},
    {"topic", {.size = sizeof(ie_event), .topic = "a b"}},
    {"topic", {.size = sizeof(ie_event), .topic = "a..b"}},
    {"topic", {.size = sizeof(ie_event), .topic = "a\r\nb"}},
    {"topic", {.size = sizeof(ie_event), .topic = "\xED\xA0\x80"}},
    {"topic", {.size = sizeof(ie_event), .topic = "\xC0\xAF"}},
    {"key", {.size = sizeof(ie_event), .topic = "t", .key = ""}},
    {"key", {.size = sizeof(ie_event), .topic = "t", .key = "a\nb"}},
    {"id", {.size = sizeof(ie_event), .topic = "t", .id = ""}},
    {"source", {.size = sizeof(ie_event), .topic = "t", .source = "no uri"}},
    {"data", {.size = sizeof(ie_event), .topic = "t", .data = "{", .data_bytes = 1}},
    {"data", {.size = sizeof(ie_event), .topic = "t", .data = "", .data_bytes = 0}},
    {"data", {.size = sizeof(ie_event), .topic = "t", .data_bytes = 1}},
    {"headers", {.size = sizeof(ie_event), .topic = "t", .header_count = 1}},
    {"time_ms", {.size = sizeof(ie_event), .topic = "t", .time_ms = INT64_MAX}},
    {"size", {.size = 0, .topic = "t"}},
    {"size", {.size = sizeof(ie_event) - 8, .topic = "t"}},
};

START_TEST(a_wrong_event_is_refused_by_name)
{
    begin_with_order();
    expect_refused(publish(&WRONG[_i].event), IE_EINVAL, WRONG[_i].words);
    commit_with_another();
}
END_TEST

START_TEST(missing_arguments_are_refused)
{
    size_t failed = 77;

    begin_with_order();
    expect_refused(publish(NULL), IE_EINVAL, "event");
    ie_error_clear(&failure);
    expect_refused(ie_publish(NULL, &PLACED, NULL, &failure), IE_EINVAL, "outbox");
    ie_error_clear(&failure);
    expect_refused(ie_publish_many(outbox, NULL, 2, &failed, &failure), IE_EINVAL, "events");
    ck_assert_int_eq(ie_publish_many(outbox, NULL, 0, &failed, NULL), IE_OK);
    ck_assert_uint_eq(failed, 77);
    commit_with_another();
    ie_outbox_close(NULL);
    ck_assert_int_eq(ie_outbox_open(NULL, db, NULL, NULL), IE_EINVAL);
    {
        ie_outbox        *none = NULL;
        ie_outbox_options options;

        ck_assert_int_eq(ie_outbox_open(&none, NULL, NULL, NULL), IE_EINVAL);
        IE_OUTBOX_OPTIONS_INIT(&options);
        options.size = 4;
        ck_assert_int_eq(ie_outbox_open(&none, db, &options, NULL), IE_EINVAL);
        IE_OUTBOX_OPTIONS_INIT(&options);
        options.source = "not a uri";
        ie_error_clear(&failure);
        ck_assert_int_eq(ie_outbox_open(&none, db, &options, &failure), IE_EINVAL);
        ck_assert_msg(strstr(failure.message, "source") != NULL, "%s", failure.message);
        ck_assert_ptr_null(none);
    }
}
END_TEST

/* ---- what SQLite says, in our words ---- */

START_TEST(a_dedupe_key_is_taken_once)
{
    ie_event event = PLACED;

    event.dedupe_key = "order-1";
    begin_with_order();
    ck_assert_int_eq(publish(&event), IE_OK);
    expect_refused(publish(&event), IE_EEXIST, "dedupe_key");
    test_exec(db, "COMMIT");
    test_exec(db, "BEGIN");
    expect_refused(publish(&event), IE_EEXIST, "dedupe_key");
    event.dedupe_key = "order-2";
    ck_assert_int_eq(publish(&event), IE_OK);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 2);
}
END_TEST

START_TEST(a_lock_of_another_is_busy_and_the_transaction_may_try_again)
{
    sqlite3 *other = test_db_open(test_path("app.db"));

    (void)sqlite3_busy_timeout(db, 0);
    test_exec(other, "BEGIN IMMEDIATE; INSERT INTO orders(n) VALUES (2)");
    test_exec(db, "BEGIN"); /* deferred: the lock is wanted at the first write */
    ck_assert_int_eq(publish(&PLACED), IE_EBUSY);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 0);
    test_exec(other, "ROLLBACK");
    ck_assert_int_eq(publish(&PLACED), IE_OK);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 1);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

START_TEST(an_old_snapshot_is_told_apart_from_a_lock)
{
    sqlite3 *other = test_db_open(test_path("app.db"));

    test_exec(db, "BEGIN");
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM orders"), 0);
    test_exec(other, "INSERT INTO orders(n) VALUES (2)");
    expect_refused(publish(&PLACED), IE_EBUSY_SNAPSHOT, "locked");
    test_exec(db, "ROLLBACK");
    begin_with_order();
    ck_assert_int_eq(publish(&PLACED), IE_OK);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 1);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

static int
say_stop(void *user)
{
    (void)user;
    return 1;
}

/* How SQLite may give up the whole transaction under an INSERT. */
static const char *const ABORTS[] = {
    "CREATE TEMP TRIGGER t BEFORE INSERT ON main.ie_event BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    "CREATE TEMP TRIGGER t AFTER INSERT ON main.ie_event BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    ("CREATE TEMP TRIGGER t AFTER INSERT ON main.ie_event"
     " BEGIN INSERT OR ROLLBACK INTO orders(id) SELECT id FROM orders; END"),
    "interrupt",
    "full",
};

START_TEST(a_transaction_that_sqlite_gave_up_is_called_that)
{
    static char big[IE_DATA_BYTES_MAX];
    ie_event    event = PLACED;
    ie_error    earlier = IE_ERROR_INIT;

    if (strcmp(ABORTS[_i], "interrupt") != 0 && strcmp(ABORTS[_i], "full") != 0)
        test_exec(db, ABORTS[_i]);
    test_exec(db, "INSERT INTO orders(id, n) VALUES (100, 1)");
    begin_with_order();
    ck_assert_int_eq(events(), 0);
    if (strcmp(ABORTS[_i], "interrupt") == 0)
        sqlite3_progress_handler(db, 1, say_stop, NULL);
    if (strcmp(ABORTS[_i], "full") == 0) {
        test_exec(db, "PRAGMA max_page_count=1");
        event.content_type = "application/octet-stream";
        event.data = big;
        event.data_bytes = sizeof big;
    }
    ck_assert_int_eq(publish(&event), IE_ETXN_ABORTED);
    sqlite3_progress_handler(db, 0, NULL, NULL);
    ck_assert_msg(strstr(failure.message, "from its start") != NULL, "%s", failure.message);
    ck_assert_msg(strstr(failure.message, "not an error") == NULL, "%s", failure.message);
    ck_assert_int_eq(sqlite3_get_autocommit(db), 1);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM orders"), 1); /* the order is gone */
    ck_assert_int_eq(events(), 0);
    /* A caller that goes on regardless is stopped, instead of committing alone. */
    ck_assert_int_eq(publish(&PLACED), IE_ENOTXN);
    /* The first failure wins, also over this one. */
    (void)ie_error_set(&earlier, IE_EPROTO, "what came before");
    begin_with_order();
    if (_i < 3) {
        ck_assert_int_eq(ie_publish(outbox, &PLACED, NULL, &earlier), IE_ETXN_ABORTED);
        ck_assert_str_eq(earlier.message, "what came before");
        test_exec(db, "DROP TRIGGER temp.t");
        begin_with_order();
    }
    test_exec(db, "PRAGMA max_page_count=100000");
    ck_assert_msg(publish(&PLACED) == IE_OK, "%s", failure.message);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), 1);
}
END_TEST

START_TEST(a_full_disk_that_leaves_the_transaction_open_is_only_full)
{
    static char big[IE_DATA_BYTES_MAX];
    ie_event    event = PLACED;

    /* With a statement journal (several writes in one statement) SQLite takes back only that. */
    test_exec(db, "CREATE TABLE audit (what); CREATE TRIGGER host AFTER INSERT ON ie_event BEGIN"
                  " INSERT INTO audit SELECT NEW.topic UNION ALL SELECT NEW.topic; END");
    begin_with_order();
    event.content_type = "application/octet-stream";
    event.data = big;
    event.data_bytes = sizeof big;
    test_exec(db, "PRAGMA max_page_count=1");
    expect_refused(publish(&event), IE_EFULL, "full");
    test_exec(db, "PRAGMA max_page_count=100000");
    commit_with_another();
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM audit"), 2);
}
END_TEST

static int
deny_events(void *user, int action, const char *a, const char *b, const char *c, const char *d)
{
    (void)user;
    (void)b;
    (void)c;
    (void)d;
    return action == SQLITE_INSERT && a != NULL && strcmp(a, "ie_event") == 0 ? SQLITE_DENY
                                                                              : SQLITE_OK;
}

START_TEST(an_authorizer_that_says_no_is_heard)
{
    begin_with_order();
    (void)sqlite3_set_authorizer(db, deny_events, NULL);
    expect_refused(publish(&PLACED), IE_EDENIED, "not authorized");
    (void)sqlite3_set_authorizer(db, NULL, NULL);
    commit_with_another();
}
END_TEST

START_TEST(a_trigger_that_says_no_is_heard)
{
    static const char *const KINDS[] = {"ABORT", "FAIL"};
    char                     sql[160];

    for (int i = 0; i < 2; i++) {
        (void)snprintf(sql, sizeof sql,
                       "CREATE TEMP TRIGGER t BEFORE INSERT ON main.ie_event"
                       " BEGIN SELECT RAISE(%s, 'office hours only'); END",
                       KINDS[i]);
        test_exec(db, sql);
        begin_with_order();
        expect_refused(publish(&PLACED), IE_EDENIED, "office hours only");
        test_exec(db, "ROLLBACK; DROP TRIGGER temp.t");
    }
    begin_with_order();
    commit_with_another();
}
END_TEST

START_TEST(a_swallowed_insert_is_noticed)
{
    test_exec(db, "CREATE TEMP TRIGGER t BEFORE INSERT ON main.ie_event"
                  " BEGIN SELECT RAISE(IGNORE); END");
    begin_with_order();
    expect_refused(publish(&PLACED), IE_ESWALLOWED, "trigger");
    test_exec(db, "DROP TRIGGER temp.t");
    commit_with_another();
}
END_TEST

START_TEST(what_may_not_be_written_is_read_only)
{
    sqlite3   *reader = NULL;
    ie_outbox *own = NULL;

    test_exec(db, "BEGIN; PRAGMA query_only=ON");
    expect_refused(publish(&PLACED), IE_EREADONLY, "readonly");
    test_exec(db, "PRAGMA query_only=OFF; ROLLBACK");
    ck_assert_int_eq(sqlite3_open_v2(test_path("app.db"), &reader, SQLITE_OPEN_READONLY, NULL),
                     SQLITE_OK);
    ck_assert_msg(ie_outbox_open(&own, reader, NULL, &failure) == IE_OK, "%s", failure.message);
    test_exec(reader, "BEGIN");
    ck_assert_int_eq(ie_publish(own, &PLACED, NULL, NULL), IE_EREADONLY);
    ck_assert_int_eq(sqlite3_get_autocommit(reader), 0);
    ie_outbox_close(own);
    ck_assert_int_eq(sqlite3_close(reader), SQLITE_OK);
}
END_TEST

START_TEST(missing_changed_and_newer_tables_are_told_apart)
{
    sqlite3   *other = test_db_open(test_path("other.db"));
    ie_outbox *own = NULL;

    ie_error_clear(&failure);
    ck_assert_int_eq(ie_outbox_open(&own, other, NULL, &failure), IE_ESCHEMA_MISSING);
    ck_assert_msg(strstr(failure.message, "ie migrate up") != NULL, "%s", failure.message);
    {
        ie_outbox_options options;

        IE_OUTBOX_OPTIONS_INIT(&options);
        options.auto_migrate = true;
        ck_assert_int_eq(ie_outbox_open(&own, other, &options, NULL), IE_OK);
        ie_outbox_close(own);
        own = NULL;
    }
    test_exec(other, "INSERT INTO ie_schema_history VALUES (99, 'future', '', 1, '9')");
    ie_error_clear(&failure);
    ck_assert_int_eq(ie_outbox_open(&own, other, NULL, &failure), IE_ESCHEMA_NEWER);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
    ck_assert_ptr_null(own);

    begin_with_order();
    test_exec(db, "ALTER TABLE ie_event RENAME COLUMN data TO payload");
    expect_refused(publish(&PLACED), IE_ESCHEMA, "data");
    test_exec(db, "ALTER TABLE ie_event RENAME COLUMN payload TO data;"
                  " ALTER TABLE ie_event ADD COLUMN needed TEXT NOT NULL DEFAULT 'x'"
                  " CHECK (needed <> 'x')");
    expect_refused(publish(&PLACED), IE_ESCHEMA, "CHECK");
    test_exec(db, "ROLLBACK");
    test_exec(db, "BEGIN; DROP TABLE ie_event");
    ck_assert_int_eq(publish(&PLACED), IE_ESCHEMA_MISSING);
    ck_assert_msg(strstr(failure.message, "ie migrate up") != NULL, "%s", failure.message);
    test_exec(db, "ROLLBACK");
    begin_with_order();
    commit_with_another();
}
END_TEST

START_TEST(tiny_limits_of_the_host_never_cut_an_event)
{
    ie_event event = PLACED;

    event.key = text_of(500);
    begin_with_order();
    (void)sqlite3_limit(db, SQLITE_LIMIT_LENGTH, 400);
    expect_refused(publish(&event), IE_ETOOBIG, "too big");
    (void)sqlite3_limit(db, SQLITE_LIMIT_LENGTH, 1000000);
    commit_with_another();
}
END_TEST

START_TEST(a_forked_child_is_refused_and_the_parent_goes_on)
{
    pid_t child;
    int   code = -1;

    begin_with_order();
    child = fork();
    if (child == 0) {
        ie_error why = IE_ERROR_INIT;
        int      wrong = ie_publish(outbox, &PLACED, NULL, &why) != IE_EFORKED;

        wrong += ie_publish_many(outbox, &PLACED, 1, NULL, NULL) != IE_EFORKED;
        wrong += strstr(why.message, "fork") == NULL;
        ie_outbox_close(outbox); /* memory only */
        _exit(wrong);
    }
    ck_assert_int_eq(waitpid(child, &code, 0), child);
    ck_assert_int_eq(code, 0);
    commit_with_another();
}
END_TEST

START_TEST(a_table_of_the_same_name_in_temp_is_not_written_to)
{
    test_exec(db, "CREATE TEMP TABLE ie_event AS SELECT * FROM main.ie_event;"
                  " CREATE TEMP TABLE ie_meta (name TEXT, value TEXT)");
    begin_with_order();
    commit_with_another();
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM temp.ie_event"), 0);
    {
        ie_outbox *again = NULL;

        ck_assert_msg(ie_outbox_open(&again, db, NULL, &failure) == IE_OK, "%s", failure.message);
        ie_outbox_close(again);
    }
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM temp.ie_meta"), 0);
}
END_TEST

START_TEST(a_change_of_the_schema_by_another_is_taken_in_stride)
{
    sqlite3 *other = test_db_open(test_path("app.db"));

    begin_with_order();
    commit_with_another();
    test_exec(other, "ALTER TABLE ie_event ADD COLUMN note TEXT; CREATE TABLE more (a);"
                     " CREATE INDEX ie_event_by_key ON ie_event(key)");
    for (int i = 0; i < 3; i++) {
        begin_with_order();
        ck_assert_msg(publish(&PLACED) == IE_OK, "%s", failure.message);
        test_exec(db, "COMMIT");
    }
    ck_assert_int_eq(events(), 4);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

/* ---- a guest ---- */

typedef struct calls {
    int commit, rollback, update, wal, authorize, progress, trace;
} calls;

static int
on_commit(void *user)
{
    ((calls *)user)->commit++;
    return 0;
}

static void
on_rollback(void *user)
{
    ((calls *)user)->rollback++;
}

static void
on_update(void *user, int action, const char *schema, const char *table, sqlite3_int64 row)
{
    (void)action;
    (void)schema;
    (void)table;
    (void)row;
    ((calls *)user)->update++;
}

static int
on_wal(void *user, sqlite3 *connection, const char *schema, int frames)
{
    (void)connection;
    (void)schema;
    (void)frames;
    ((calls *)user)->wal++;
    return SQLITE_OK;
}

static int
on_busy(void *user, int times)
{
    ((calls *)user)->progress++;
    return times < 3;
}

static int
on_authorize(void *user, int action, const char *a, const char *b, const char *c, const char *d)
{
    (void)action;
    (void)a;
    (void)b;
    (void)c;
    (void)d;
    ((calls *)user)->authorize++;
    return SQLITE_OK;
}

static void
install(calls *counts)
{
    (void)sqlite3_commit_hook(db, on_commit, counts);
    (void)sqlite3_rollback_hook(db, on_rollback, counts);
    (void)sqlite3_update_hook(db, on_update, counts);
    (void)sqlite3_wal_hook(db, on_wal, counts);
    (void)sqlite3_busy_handler(db, on_busy, counts);
}

START_TEST(the_hosts_hooks_are_called_as_often_as_without_us)
{
    calls    counts;
    sqlite3 *other = test_db_open(test_path("app.db"));

    for (int before = 0; before < 2; before++) {
        memset(&counts, 0, sizeof counts);
        ie_outbox_close(outbox);
        if (before)
            install(&counts);
        ck_assert_int_eq(ie_outbox_open(&outbox, db, NULL, NULL), IE_OK);
        if (!before)
            install(&counts);
        memset(&counts, 0, sizeof counts);
        for (int i = 0; i < 10; i++) {
            begin_with_order();
            ck_assert_int_eq(publish(&PLACED), IE_OK);
            test_exec(db, i % 2 == 0 ? "COMMIT" : "ROLLBACK");
        }
        ck_assert_int_eq(counts.commit, 5);
        ck_assert_int_eq(counts.rollback, 5);
        ck_assert_int_eq(counts.update, 20); /* the order and the event, as two INSERTs would */
        ck_assert_int_eq(counts.wal, 5);
        ck_assert_int_eq(counts.progress, 0);
        test_exec(other, "BEGIN IMMEDIATE");
        test_exec(db, "BEGIN");
        ck_assert_int_eq(publish(&PLACED), IE_EBUSY);
        ck_assert_int_eq(counts.progress, 4);
        test_exec(db, "ROLLBACK");
        test_exec(other, "ROLLBACK");
        /* They are still the host's. */
        ck_assert_ptr_eq(sqlite3_commit_hook(db, NULL, NULL), &counts);
        ck_assert_ptr_eq(sqlite3_rollback_hook(db, NULL, NULL), &counts);
        ck_assert_ptr_eq(sqlite3_update_hook(db, NULL, NULL), &counts);
        ck_assert_ptr_eq(sqlite3_wal_hook(db, NULL, NULL), &counts);
    }
    memset(&counts, 0, sizeof counts);
    (void)sqlite3_set_authorizer(db, on_authorize, &counts);
    begin_with_order();
    ck_assert_int_eq(publish(&PLACED), IE_OK);
    counts.authorize = 0;
    ck_assert_int_eq(publish(&PLACED), IE_OK); /* prepared already: nothing to ask */
    ck_assert_int_eq(counts.authorize, 0);
    test_exec(db, "ROLLBACK");
    (void)sqlite3_set_authorizer(db, NULL, NULL);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

START_TEST(no_pragma_of_the_host_is_changed)
{
    static const char *const PRAGMAS[] = {
        "foreign_keys",       "recursive_triggers", "synchronous",  "busy_timeout",
        "wal_autocheckpoint", "mmap_size",          "cache_size",   "query_only",
        "temp_store",         "trusted_schema",     "user_version", "journal_size_limit",
        "auto_vacuum",        "cell_size_check",
    };
    char before[sizeof PRAGMAS / sizeof PRAGMAS[0]][64];
    char sql[64];

    test_exec(db, "PRAGMA foreign_keys=ON; PRAGMA cache_size=77; PRAGMA busy_timeout=123;"
                  " PRAGMA wal_autocheckpoint=55; PRAGMA mmap_size=65536");
    for (int after = 0; after < 2; after++) {
        for (size_t i = 0; i < sizeof PRAGMAS / sizeof PRAGMAS[0]; i++) {
            (void)snprintf(sql, sizeof sql, "PRAGMA %s", PRAGMAS[i]);
            if (after)
                ck_assert_str_eq(test_text(db, sql), before[i]);
            else
                (void)snprintf(before[i], sizeof before[i], "%s", test_text(db, sql));
        }
        ie_outbox_close(outbox);
        ck_assert_int_eq(ie_outbox_open(&outbox, db, NULL, NULL), IE_OK);
        begin_with_order();
        ck_assert_int_eq(publish(&PLACED), IE_OK);
        test_exec(db, "COMMIT");
    }
}
END_TEST

START_TEST(our_statement_forgets_the_event_it_was_given)
{
    ie_event event = PLACED;
    char     topic[] = "secret.topic";

    event.topic = topic;
    begin_with_order();
    ck_assert_int_eq(publish(&event), IE_OK);
    memset(topic, 'x', sizeof topic - 1);
    for (sqlite3_stmt *stmt = sqlite3_next_stmt(db, NULL); stmt != NULL;
         stmt = sqlite3_next_stmt(db, stmt)) {
        char *text = sqlite3_expanded_sql(stmt); /* as a host's debug print would */

        ck_assert_ptr_null(strstr(text, "xxxx"));
        ck_assert(!sqlite3_stmt_busy(stmt));
        sqlite3_free(text);
    }
    test_exec(db, "ROLLBACK");
}
END_TEST

static char warned[512];

static void
keep_warning(void *user, ie_log_level level, const char *module, const char *message)
{
    (void)user;
    (void)module;
    if (level == IE_LOG_WARN)
        (void)snprintf(warned, sizeof warned, "%s", message);
}

static const struct {
    const char *journal;
    const char *synchronous;
    const char *durability;
    bool        is_refused;
    bool        is_warned;
} MODES[] = {
    {"WAL", "FULL", "wal+full", false, false},
    {"WAL", "EXTRA", "wal+extra", false, false},
    {"WAL", "NORMAL", "wal+normal", false, true},
    {"WAL", "OFF", "wal+off", true, true},
    {"DELETE", "EXTRA", "delete+extra", false, false},
    {"DELETE", "FULL", "delete+full", false, true},
    {"DELETE", "NORMAL", "delete+normal", false, true},
    {"TRUNCATE", "FULL", "truncate+full", false, false},
    {"PERSIST", "FULL", "persist+full", false, false},
    {"PERSIST", "OFF", "persist+off", true, true},
    {"MEMORY", "FULL", "memory+full", true, true},
    {"OFF", "EXTRA", "off+extra", true, true},
};

START_TEST(modes_that_lose_events_are_refused_or_warned_of_and_noted)
{
    ie_outbox_options options;
    ie_outbox        *own = NULL;
    sqlite3          *other = NULL;
    char              sql[128];

    ck_assert_int_eq(sqlite3_open(test_path("modes.db"), &other), SQLITE_OK);
    ck_assert_int_eq(ie_migrate_up(other, NULL, NULL), IE_OK);
    (void)snprintf(sql, sizeof sql, "PRAGMA journal_mode=%s; PRAGMA synchronous=%s",
                   MODES[_i].journal, MODES[_i].synchronous);
    test_exec(other, sql);
    IE_OUTBOX_OPTIONS_INIT(&options);
    options.logger.fn = keep_warning;
    ie_error_clear(&failure);
    if (MODES[_i].is_refused) {
        ck_assert_int_eq(ie_outbox_open(&own, other, &options, &failure), IE_EUNSAFE);
        ck_assert_msg(strstr(failure.message, "loses or corrupts") != NULL, "%s", failure.message);
        ck_assert_ptr_null(own);
        ck_assert_int_eq(test_int(other, "SELECT count(*) FROM ie_meta WHERE name = 'durability'"),
                         0);
        options.allow_unsafe = true;
    }
    ck_assert_msg(ie_outbox_open(&own, other, &options, &failure) == IE_OK || MODES[_i].is_refused,
                  "%s", failure.message);
    ck_assert_ptr_nonnull(own);
    ck_assert_int_eq(warned[0] != '\0', MODES[_i].is_warned);
    ck_assert_str_eq(ie_outbox_durability(own), MODES[_i].durability);
    ck_assert_str_eq(test_text(other, "SELECT value FROM ie_meta WHERE name = 'durability'"),
                     MODES[_i].durability);
    ie_outbox_close(own);
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

START_TEST(the_note_is_written_once_and_never_into_the_hosts_transaction)
{
    ie_outbox *own = NULL;
    sqlite3   *other = test_db_open(test_path("app.db"));
    int64_t    version;

    ie_outbox_close(outbox);
    outbox = NULL;
    version = test_int(other, "PRAGMA data_version");
    ck_assert_int_eq(ie_outbox_open(&own, db, NULL, NULL), IE_OK);
    ie_outbox_close(own);
    ck_assert_int_eq(test_int(other, "PRAGMA data_version"), version); /* said already */
    test_exec(db, "DELETE FROM ie_meta WHERE name = 'durability'");
    test_exec(db, "BEGIN");
    ck_assert_int_eq(ie_outbox_open(&own, db, NULL, NULL), IE_OK);
    ie_outbox_close(own);
    test_exec(other, "BEGIN IMMEDIATE; ROLLBACK"); /* no lock was taken */
    test_exec(db, "COMMIT");
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_meta WHERE name = 'durability'"), 0);
    /* A busy moment is no reason to refuse. */
    (void)sqlite3_busy_timeout(db, 0);
    test_exec(other, "BEGIN IMMEDIATE");
    ck_assert_int_eq(ie_outbox_open(&own, db, NULL, NULL), IE_OK);
    ie_outbox_close(own);
    test_exec(other, "COMMIT");
    ck_assert_int_eq(sqlite3_close(other), SQLITE_OK);
}
END_TEST

START_TEST(a_database_in_memory_is_refused_unless_allowed)
{
    ie_outbox_options options;
    ie_outbox        *own = NULL;
    sqlite3          *memory = NULL;

    ck_assert_int_eq(sqlite3_open(":memory:", &memory), SQLITE_OK);
    ck_assert_int_eq(ie_migrate_up(memory, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_outbox_open(&own, memory, NULL, NULL), IE_EUNSAFE);
    IE_OUTBOX_OPTIONS_INIT(&options);
    options.allow_unsafe = true;
    ck_assert_int_eq(ie_outbox_open(&own, memory, &options, NULL), IE_OK);
    ie_outbox_close(own);
    ck_assert_int_eq(sqlite3_close(memory), SQLITE_OK);
}
END_TEST

START_TEST(the_connection_may_be_closed_before_the_outbox)
{
    sqlite3   *own = test_db_open(test_path("app.db"));
    ie_outbox *on_it = NULL;

    ck_assert_int_eq(ie_outbox_open(&on_it, own, NULL, NULL), IE_OK);
    ck_assert_int_eq(sqlite3_close(own), SQLITE_BUSY);  /* it says so */
    ck_assert_int_eq(sqlite3_close_v2(own), SQLITE_OK); /* a zombie until we let go */
    ie_outbox_close(on_it);
}
END_TEST

START_TEST(a_thousand_outboxes_come_and_go)
{
    const int64_t before = sqlite3_memory_used();

    for (int i = 0; i < 1000; i++) {
        ie_outbox *own = NULL;

        QUICK_ASSERT(ie_outbox_open(&own, db, NULL, &failure) == IE_OK);
        ie_outbox_close(own);
    }
    ck_assert_int_le(sqlite3_memory_used() - before, 65536);
}
END_TEST

/* ---- many ---- */

START_TEST(publish_many_names_the_one_that_failed)
{
    ie_event list[5];
    size_t   failed = 77;

    for (int i = 0; i < 5; i++)
        list[i] = PLACED;
    begin_with_order();
    ck_assert_int_eq(ie_publish_many(outbox, list, 5, &failed, &failure), IE_OK);
    ck_assert_uint_eq(failed, 77);
    list[3].topic = "a.*";
    ck_assert_int_eq(ie_publish_many(outbox, list, 5, &failed, &failure), IE_EINVAL);
    ck_assert_uint_eq(failed, 3);
    ck_assert_int_eq(events(), 8);
    test_exec(db, "ROLLBACK");
    failed = 77;
    ck_assert_int_eq(ie_publish_many(outbox, list, 5, &failed, NULL), IE_ENOTXN);
    ck_assert_uint_eq(failed, 77); /* none was looked at */
    ck_assert_int_eq(events(), 0);
}
END_TEST

START_TEST(a_hundred_thousand_events_in_one_transaction_take_no_more_memory)
{
    const uint64_t count = test_scale(100000) + 10000;
    size_t         baseline = 0;

    test_exec(db, "PRAGMA cache_size=50; PRAGMA cache_spill=ON");
    test_exec(db, "BEGIN IMMEDIATE");
    for (uint64_t i = 0; i < count; i++) {
        QUICK_ASSERT(publish(&PLACED) == IE_OK);
        if (i == 5000) /* SQLite's page cache is full by then */
            baseline = mallinfo2().uordblks;
    }
    ck_assert_uint_le(mallinfo2().uordblks, baseline + 65536);
    test_exec(db, "COMMIT");
    ck_assert_int_eq(events(), (int64_t)count);
}
END_TEST

#define WRITERS 8
static char     writers_path[512];
static uint64_t writers_each;

static void *
writer(void *arg)
{
    sqlite3   *own = NULL;
    ie_outbox *mine = NULL;

    (void)arg;
    if (sqlite3_open(writers_path, &own) != SQLITE_OK)
        abort();
    (void)sqlite3_busy_timeout(own, 60000);
    (void)sqlite3_exec(own, "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
    if (ie_outbox_open(&mine, own, NULL, NULL) != IE_OK)
        abort();
    for (uint64_t i = 0; i < writers_each; i++)
        if (sqlite3_exec(own, "BEGIN IMMEDIATE; INSERT INTO orders(n) VALUES (1)", NULL, NULL,
                         NULL) != SQLITE_OK ||
            ie_publish(mine, &PLACED, NULL, NULL) != IE_OK ||
            sqlite3_exec(own, i % 10 == 9 ? "ROLLBACK" : "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
            abort();
    ie_outbox_close(mine);
    (void)sqlite3_close(own);
    return NULL;
}

START_TEST(eight_threads_publish_on_connections_of_their_own)
{
    pthread_t threads[WRITERS];

    (void)snprintf(writers_path, sizeof writers_path, "%s", test_path("app.db"));
    writers_each = test_scale(10000) / WRITERS / 10 * 10 + 10;
    for (int i = 0; i < WRITERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, writer, NULL), 0);
    for (int i = 0; i < WRITERS; i++)
        (void)pthread_join(threads[i], NULL);
    ck_assert_int_eq(events(), (int64_t)(WRITERS * writers_each * 9 / 10));
    ck_assert_int_eq(test_int(db, "SELECT count(DISTINCT id) FROM ie_event"), events());
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM orders"), events());
}
END_TEST

/* ---- memory and storage that fail ---- */

/* One order with its event on a fresh connection, as a careful application does it. */
static ie_status
place_order(sqlite3 *on, ie_outbox **own)
{
    ie_header      header = {.name = "trace", .value = "abc"};
    const ie_event event = {.size = sizeof event,
                            .topic = "t",
                            .key = "k",
                            .data = "[1]",
                            .data_bytes = 3,
                            .headers = &header,
                            .header_count = 1};
    ie_status      status;
    int            rc;

    ie_error_clear(&failure);
    status = ie_outbox_open(own, on, NULL, &failure);
    if (status != IE_OK)
        return status;
    rc = sqlite3_exec(on, "BEGIN IMMEDIATE; INSERT INTO orders(n) VALUES (1)", NULL, NULL, NULL);
    if (rc == SQLITE_OK) {
        status = ie_publish(*own, &event, NULL, &failure);
        /* The promise that everything rests on: refused means open, aborted means over. */
        if (status == IE_ETXN_ABORTED)
            ck_assert_int_eq(sqlite3_get_autocommit(on), 1);
        else
            ck_assert_int_eq(sqlite3_get_autocommit(on), 0);
        if (status == IE_OK)
            rc = sqlite3_exec(on, "COMMIT", NULL, NULL, NULL);
    }
    if (rc != SQLITE_OK && status == IE_OK)
        status = IE_EIO;
    return status;
}

/* Whatever happened, orders and events are as many, and what was acknowledged is there. */
static void
check_pairs(const char *path, int64_t acknowledged, int64_t attempted)
{
    sqlite3 *fresh = NULL;
    int64_t  orders;

    ck_assert_int_eq(sqlite3_open(path, &fresh), SQLITE_OK);
    orders = test_int(fresh, "SELECT count(*) FROM orders");
    ck_assert_int_eq(test_int(fresh, "SELECT count(*) FROM ie_event"), orders);
    ck_assert_int_ge(orders, acknowledged);
    ck_assert_int_le(orders, attempted);
    ck_assert_str_eq(test_text(fresh, "PRAGMA integrity_check"), "ok");
    ck_assert_int_eq(sqlite3_close(fresh), SQLITE_OK);
}

START_TEST(without_memory_of_ours_it_is_done_or_undone)
{
    const bool sticky = _i == 1;
    char       path[512];
    ie_status  status = IE_ENOMEM;
    int64_t    acknowledged = 0;
    int64_t    n = 0;

    (void)snprintf(path, sizeof path, "%s", test_path("app.db"));
    while (status != IE_OK) {
        sqlite3   *on = test_db_open(path);
        ie_outbox *own = NULL;

        ie__alloc_fail_at((uint64_t)++n, sticky);
        status = place_order(on, &own);
        ie__alloc_fail_at(0, false);
        ck_assert_msg(status == IE_OK || status == IE_ENOMEM, "%s", failure.message);
        acknowledged += status == IE_OK;
        ie_outbox_close(own);
        ck_assert_int_eq(sqlite3_close(on), SQLITE_OK);
        check_pairs(path, acknowledged, n);
    }
    ck_assert_int_gt(n, 3);
}
END_TEST

START_TEST(without_memory_of_sqlites_it_is_done_or_undone)
{
    const bool sticky = _i == 1;
    char       path[512];
    int64_t    acknowledged = 0;
    int64_t    aborted = 0;
    int64_t    n = 0;
    bool       has_fired = true;

    (void)snprintf(path, sizeof path, "%s", test_path("app.db"));
    while (has_fired) {
        sqlite3   *on = test_db_open(path);
        ie_outbox *own = NULL;
        ie_status  status;

        memory_arm(++n, sticky);
        status = place_order(on, &own);
        has_fired = memory_fired > 0;
        memory_arm(0, false);
        ck_assert_msg(status == IE_OK || status == IE_ENOMEM || status == IE_EIO ||
                          status == IE_ETXN_ABORTED,
                      "allocation %lld: %s", (long long)n, failure.message);
        ck_assert(has_fired || status == IE_OK);
        acknowledged += status == IE_OK;
        aborted += status == IE_ETXN_ABORTED;
        ie_outbox_close(own);
        ck_assert_int_eq(sqlite3_close(on), SQLITE_OK);
        if (n % 16 == 0 || !has_fired)
            check_pairs(path, acknowledged, n);
    }
    (void)fprintf(stderr, "SQLite's allocations: %lld points, %lld aborted transactions\n",
                  (long long)n - 1, (long long)aborted);
    ck_assert_int_gt(n, 100);
}
END_TEST

static const struct {
    const char *journal;
    int         code;
    bool        sticky;
} FAULTS[] = {
    {"WAL", SQLITE_IOERR, false},     {"WAL", SQLITE_IOERR, true},
    {"WAL", SQLITE_FULL, false},      {"WAL", SQLITE_FULL, true},
    {"DELETE", SQLITE_IOERR, false},  {"DELETE", SQLITE_IOERR, true},
    {"DELETE", SQLITE_FULL, false},   {"DELETE", SQLITE_FULL, true},
    {"PERSIST", SQLITE_IOERR, false},
};

START_TEST(storage_that_fails_keeps_order_and_event_together)
{
    char    path[512];
    char    sql[128];
    int64_t acknowledged = 0;
    int64_t n = 0;
    bool    has_fired = true;

    (void)snprintf(path, sizeof path, "%s", test_path("faulty.db"));
    {
        sqlite3 *first = NULL;

        ck_assert_int_eq(sqlite3_open(path, &first), SQLITE_OK);
        (void)snprintf(sql, sizeof sql, "PRAGMA journal_mode=%s", FAULTS[_i].journal);
        test_exec(first, sql);
        ck_assert_int_eq(ie_migrate_up(first, NULL, NULL), IE_OK);
        test_exec(first, "CREATE TABLE orders (id INTEGER PRIMARY KEY, n INTEGER)");
        ck_assert_int_eq(sqlite3_close(first), SQLITE_OK);
    }
    while (has_fired) {
        sqlite3   *on = NULL;
        ie_outbox *own = NULL;
        ie_status  status;

        ck_assert_int_eq(sqlite3_open_v2(path, &on, SQLITE_OPEN_READWRITE, FAULT_VFS), SQLITE_OK);
        (void)snprintf(sql, sizeof sql,
                       "PRAGMA journal_mode=%s; PRAGMA synchronous=EXTRA;"
                       " PRAGMA cache_size=2; SELECT * FROM ie_meta",
                       FAULTS[_i].journal);
        test_exec(on, sql);
        fault_vfs_arm((uint64_t)++n, FAULT_ALL, FAULTS[_i].code, FAULTS[_i].sticky);
        status = place_order(on, &own);
        has_fired = fault_vfs_fired() > 0;
        ck_assert_msg(status == IE_OK || status == IE_EIO || status == IE_EFULL ||
                          status == IE_ETXN_ABORTED,
                      "operation %lld: %s", (long long)n, failure.message);
        ck_assert(has_fired || status == IE_OK);
        acknowledged += status == IE_OK;
        fault_vfs_arm(0, 0, SQLITE_OK, false);
        ie_outbox_close(own);
        ck_assert_int_eq(sqlite3_close(on), SQLITE_OK);
        check_pairs(path, acknowledged, n);
    }
    (void)fprintf(stderr, "%s: %lld operations\n", FAULTS[_i].journal, (long long)n - 1);
    ck_assert_int_gt(n, 3);
}
END_TEST

#define LOOP(tcase_, test_, table_)                                                                \
    tcase_add_loop_test(tcase_, test_, 0, sizeof table_ / sizeof table_[0])

int
main(void)
{
    Suite   *suite = suite_create("publish");
    TCase   *decides = tcase_create("transaction");
    TCase   *refuses = tcase_create("refuses");
    TCase   *guest = tcase_create("guest");
    TCase   *many = tcase_create("many");
    TCase   *faults = tcase_create("faults");
    TCase   *cases[] = {decides, refuses, guest, many, faults};
    SRunner *runner;
    int      failed;

    memory_install(); /* before SQLite is used */
    fault_vfs_register();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tcase_add_checked_fixture(cases[i], setup, teardown);
        tcase_set_timeout(cases[i], 240);
        suite_add_tcase(suite, cases[i]);
    }
    tcase_add_test(decides, committed_is_stored_and_rolled_back_is_not);
    tcase_add_test(decides, an_id_of_the_callers_is_kept_and_none_is_given);
    tcase_add_test(decides, outside_a_transaction_it_is_refused_unless_allowed);
    tcase_add_test(decides, a_commit_that_fails_decides_later);
    LOOP(refuses, each_limit_holds_what_it_says_and_not_one_more, LIMITS);
    LOOP(refuses, a_wrong_event_is_refused_by_name, WRONG);
    tcase_add_test(refuses, missing_arguments_are_refused);
    tcase_add_test(refuses, a_dedupe_key_is_taken_once);
    tcase_add_test(refuses, a_lock_of_another_is_busy_and_the_transaction_may_try_again);
    tcase_add_test(refuses, an_old_snapshot_is_told_apart_from_a_lock);
    LOOP(refuses, a_transaction_that_sqlite_gave_up_is_called_that, ABORTS);
    tcase_add_test(refuses, a_full_disk_that_leaves_the_transaction_open_is_only_full);
    tcase_add_test(refuses, an_authorizer_that_says_no_is_heard);
    tcase_add_test(refuses, a_trigger_that_says_no_is_heard);
    tcase_add_test(refuses, a_swallowed_insert_is_noticed);
    tcase_add_test(refuses, what_may_not_be_written_is_read_only);
    tcase_add_test(refuses, missing_changed_and_newer_tables_are_told_apart);
    tcase_add_test(refuses, tiny_limits_of_the_host_never_cut_an_event);
    tcase_add_test(refuses, a_forked_child_is_refused_and_the_parent_goes_on);
    tcase_add_test(guest, a_table_of_the_same_name_in_temp_is_not_written_to);
    tcase_add_test(guest, a_change_of_the_schema_by_another_is_taken_in_stride);
    tcase_add_test(guest, the_hosts_hooks_are_called_as_often_as_without_us);
    tcase_add_test(guest, no_pragma_of_the_host_is_changed);
    tcase_add_test(guest, our_statement_forgets_the_event_it_was_given);
    LOOP(guest, modes_that_lose_events_are_refused_or_warned_of_and_noted, MODES);
    tcase_add_test(guest, the_note_is_written_once_and_never_into_the_hosts_transaction);
    tcase_add_test(guest, a_database_in_memory_is_refused_unless_allowed);
    tcase_add_test(guest, the_connection_may_be_closed_before_the_outbox);
    tcase_add_test(guest, a_thousand_outboxes_come_and_go);
    tcase_add_test(many, publish_many_names_the_one_that_failed);
    tcase_add_test(many, a_hundred_thousand_events_in_one_transaction_take_no_more_memory);
    tcase_add_test(many, eight_threads_publish_on_connections_of_their_own);
    tcase_add_loop_test(faults, without_memory_of_ours_it_is_done_or_undone, 0, 2);
    tcase_add_loop_test(faults, without_memory_of_sqlites_it_is_done_or_undone, 0, 2);
    LOOP(faults, storage_that_fails_keeps_order_and_event_together, FAULTS);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
