/*
 * Random programs of transactions, savepoints, rollbacks and failing statements against a model in
 * memory: an event exists if and only if its order does, in the order of commits, and the worker
 * delivers exactly those. IE_TEST_SEED repeats a run, IE_TEST_SCALE makes it longer or shorter.
 */
#include <ie/memory.h>
#include <ie/migrate.h>
#include <ie/outbox.h>
#include <ie/worker.h>

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

#define QUICK_ASSERT(claim)                                                                        \
    do {                                                                                           \
        if (!(claim))                                                                              \
            ck_abort_msg("program %llu, step %d: %s (%s; %s)", (unsigned long long)program, step,  \
                         #claim, failure.message, sqlite3_errmsg(db));                             \
    } while (0)

enum { STEPS_MAX = 60, DEPTH_MAX = 20 };

static sqlite3   *db;
static ie_outbox *outbox;
static ie_error   failure;
static uint64_t   random_state;
static uint64_t   program;
static int        step;

/* What has to be there. Numbers name an order and its event. */
static struct {
    bool     is_open;
    bool     by_savepoint; /* the outermost savepoint is the transaction */
    int64_t  pending[STEPS_MAX];
    int      count;
    int      marks[DEPTH_MAX]; /* how many were pending at each savepoint */
    int      depth;
    int64_t *committed; /* of all programs */
    size_t   committed_count;
    size_t   committed_capacity;
} model;

static int64_t next_number;

static uint32_t
below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % limit;
}

static void
model_commit(void)
{
    if (model.committed_count + (size_t)model.count > model.committed_capacity) {
        model.committed_capacity = 2 * model.committed_capacity + STEPS_MAX;
        model.committed =
            realloc(model.committed, model.committed_capacity * sizeof *model.committed);
        ck_assert_ptr_nonnull(model.committed);
    }
    for (int i = 0; i < model.count; i++)
        model.committed[model.committed_count++] = model.pending[i];
    model.count = model.depth = 0;
    model.is_open = model.by_savepoint = false;
}

static void
model_rollback(void)
{
    model.count = model.depth = 0;
    model.is_open = model.by_savepoint = false;
}

static int
sql(const char *text)
{
    return sqlite3_exec(db, text, NULL, NULL, NULL);
}

/* An order and its event, as an application writes them. */
static void
place_order(void)
{
    const int64_t number = ++next_number;
    ie_event      event = IE_EVENT_INIT;
    char          text[64];
    char          key[16];

    (void)snprintf(text, sizeof text, "INSERT INTO orders VALUES (%lld)", (long long)number);
    if (!model.is_open)
        return;
    QUICK_ASSERT(sql(text) == SQLITE_OK);
    (void)snprintf(text, sizeof text, "%lld", (long long)number);
    (void)snprintf(key, sizeof key, "k%u", below(50));
    event.topic = "shop.order";
    event.key = below(2) ? key : NULL;
    event.data = text;
    event.data_bytes = strlen(text);
    ie_error_clear(&failure);
    if (below(8) == 0) /* a client that speaks SQL */
        QUICK_ASSERT(sql(sqlite3_snprintf(sizeof text, text,
                                          "INSERT INTO ie_event(topic, data) VALUES ('q', %lld)",
                                          (long long)number)) == SQLITE_OK);
    else
        QUICK_ASSERT(ie_publish(outbox, &event, NULL, &failure) == IE_OK);
    model.pending[model.count++] = number;
}

static void
publish_wrong(void)
{
    static const struct {
        const char *topic;
        const char *dedupe_key;
        ie_status   expected;
    } KINDS[] = {
        {"not a topic", NULL, IE_EINVAL},          {"t", "taken", IE_EEXIST},
        {"chaos.refuse", NULL, IE_EDENIED},        {"chaos.swallow", NULL, IE_ESWALLOWED},
        {"chaos.rollback", NULL, IE_ETXN_ABORTED},
    };
    const uint32_t kind = below(sizeof KINDS / sizeof KINDS[0]);
    ie_event       event = IE_EVENT_INIT;
    ie_status      status;

    event.topic = KINDS[kind].topic;
    event.dedupe_key = KINDS[kind].dedupe_key;
    ie_error_clear(&failure);
    status = ie_publish(outbox, &event, NULL, &failure);
    QUICK_ASSERT(status == (model.is_open ? KINDS[kind].expected : IE_ENOTXN));
    if (status == IE_ETXN_ABORTED)
        model_rollback();
}

static void
savepoint(void)
{
    char text[32];

    if (model.depth == DEPTH_MAX)
        return;
    (void)snprintf(text, sizeof text, "SAVEPOINT s%d", model.depth);
    QUICK_ASSERT(sql(text) == SQLITE_OK);
    if (!model.is_open)
        model.is_open = model.by_savepoint = true;
    model.marks[model.depth++] = model.count;
}

static void
savepoint_end(bool is_kept)
{
    char text[32];
    int  level;

    if (model.depth == 0)
        return;
    level = (int)below((uint32_t)model.depth);
    (void)snprintf(text, sizeof text, "%s s%d", is_kept ? "RELEASE" : "ROLLBACK TO", level);
    QUICK_ASSERT(sql(text) == SQLITE_OK);
    if (!is_kept) {
        model.count = model.marks[level]; /* the savepoint itself stays */
        model.depth = level + 1;
    } else if (level == 0 && model.by_savepoint) {
        model_commit();
    } else {
        model.depth = level;
    }
}

/* Statements of the host that fail, some of them taking everything with them. */
static void
fail_statement(void)
{
    switch (below(5)) {
    case 0: QUICK_ASSERT(sql("INSERT INTO orders VALUES (-1)") == SQLITE_CONSTRAINT); break;
    case 1: QUICK_ASSERT(sql("INSERT INTO nowhere VALUES (1)") == SQLITE_ERROR); break;
    case 2: /* the first row of the statement goes in and out again */
        QUICK_ASSERT(sql("INSERT INTO orders VALUES (-2), (-1)") == SQLITE_CONSTRAINT);
        break;
    case 3: /* SQL's own way into the log: refused as a whole */
        QUICK_ASSERT(sql("INSERT INTO ie_event(topic, dedupe_key) VALUES ('t', 'new'),"
                         " ('t', 'taken')") == SQLITE_CONSTRAINT);
        break;
    default:
        QUICK_ASSERT(sql("INSERT OR ROLLBACK INTO orders VALUES (-1)") == SQLITE_CONSTRAINT);
        model_rollback();
        break;
    }
}

static void
run_step(void)
{
    switch (below(20)) {
    case 0:
    case 1:
        if (!model.is_open) {
            QUICK_ASSERT(sql(below(2) ? "BEGIN IMMEDIATE" : "BEGIN") == SQLITE_OK);
            model.is_open = true;
        }
        break;
    case 2:
        if (model.is_open) {
            QUICK_ASSERT(sql("COMMIT") == SQLITE_OK);
            model_commit();
        }
        break;
    case 3:
        if (model.is_open && below(2)) {
            QUICK_ASSERT(sql("ROLLBACK") == SQLITE_OK);
            model_rollback();
        }
        break;
    case 4:
    case 5:
    case 6: savepoint(); break;
    case 7:
    case 8: savepoint_end(true); break;
    case 9:
    case 10: savepoint_end(false); break;
    case 11: fail_statement(); break;
    case 12: publish_wrong(); break;
    default: place_order(); break;
    }
    QUICK_ASSERT(sqlite3_get_autocommit(db) == (model.is_open ? 0 : 1));
}

/* The events and orders that are new since the last program are those of the model, in its order.
 */
static void
compare(size_t from, int64_t *last_position)
{
    static sqlite3_stmt *stmt;
    size_t               at = from;

    if (stmt == NULL)
        ck_assert_int_eq(
            sqlite3_prepare_v2(db,
                               "SELECT position, CAST(data AS INTEGER), (SELECT count(*) FROM"
                               " orders WHERE n = CAST(data AS INTEGER)) FROM ie_event"
                               " WHERE position > ?1 ORDER BY position",
                               -1, &stmt, NULL),
            SQLITE_OK);
    (void)sqlite3_bind_int64(stmt, 1, *last_position);
    while (sqlite3_step(stmt) == SQLITE_ROW) {
        *last_position = sqlite3_column_int64(stmt, 0);
        QUICK_ASSERT(at < model.committed_count);
        QUICK_ASSERT(sqlite3_column_int64(stmt, 1) == model.committed[at]);
        QUICK_ASSERT(sqlite3_column_int64(stmt, 2) == 1);
        at++;
    }
    (void)sqlite3_reset(stmt);
    QUICK_ASSERT(at == model.committed_count);
    if (program % 1000 == 999) { /* and no order without its event */
        (void)sqlite3_finalize(stmt);
        stmt = NULL;
        ck_assert_int_eq(test_int(db, "SELECT count(*) FROM orders WHERE n > 0"),
                         (int64_t)model.committed_count);
    }
}

typedef struct delivered {
    unsigned char *times; /* per number */
    int64_t        highest;
    uint64_t       count;
    uint64_t       strangers;
} delivered;

static ie_status
take(void *user, const ie_event *event, ie_error *err)
{
    delivered    *got = user;
    const int64_t number = event->data != NULL ? strtoll(event->data, NULL, 10) : 0;

    (void)err;
    got->count++;
    if (number > 0 && number <= got->highest && got->times[number] < 255)
        got->times[number]++;
    else
        got->strangers++;
    return IE_OK;
}

static void
deliver_and_count(void)
{
    ie_memory_subscription *subscription = NULL;
    ie_worker              *worker = NULL;
    ie_worker_options       options;
    ie_worker_report        report;
    delivered               got = {NULL, next_number, 0, 0};
    uint64_t                wrong = 0;

    got.times = calloc((size_t)next_number + 1, 1);
    ck_assert_ptr_nonnull(got.times);
    ck_assert_int_eq(ie_memory_subscribe(&subscription, "memory:model", NULL, take, &got, &failure),
                     IE_OK);
    IE_WORKER_OPTIONS_INIT(&options);
    options.db = test_path("app.db");
    options.to = "memory:model";
    ck_assert_msg(ie_worker_open(&worker, &options, &failure) == IE_OK, "%s", failure.message);
    ck_assert_msg(ie_worker_run_once(worker, 60000, &report, &failure) == IE_OK, "%s",
                  failure.message);
    ck_assert_uint_eq(report.pending, 0);
    ck_assert_uint_eq(report.dead, 0);
    ie_worker_close(worker);
    ie_memory_unsubscribe(subscription);
    for (size_t i = 0; i < model.committed_count; i++)
        wrong += got.times[model.committed[i]] != 1;
    ck_assert_uint_eq(wrong, 0);
    ck_assert_uint_eq(got.strangers, 1); /* the event that holds the taken key */
    ck_assert_uint_eq(got.count, model.committed_count + 1);
    free(got.times);
}

START_TEST(an_event_is_there_and_sent_if_and_only_if_its_transaction_committed)
{
    const uint64_t programs = test_scale(10000);
    int64_t        last_position;
    ie_event       holder = IE_EVENT_INIT;

    random_state = test_seed();
    holder.topic = "t";
    holder.dedupe_key = "taken";
    test_exec(db, "BEGIN; INSERT INTO orders VALUES (-1)");
    ck_assert_int_eq(ie_publish(outbox, &holder, NULL, &failure), IE_OK);
    test_exec(db, "COMMIT");
    test_exec(db, "CREATE TEMP TRIGGER chaos BEFORE INSERT ON main.ie_event"
                  " WHEN NEW.topic LIKE 'chaos.%' BEGIN SELECT CASE NEW.topic"
                  " WHEN 'chaos.refuse' THEN RAISE(ABORT, 'refused')"
                  " WHEN 'chaos.swallow' THEN RAISE(IGNORE)"
                  " ELSE RAISE(ROLLBACK, 'given up') END; END");
    last_position = test_int(db, "SELECT max(position) FROM ie_event");
    for (program = 0; program < programs; program++) {
        const size_t from = model.committed_count;
        const int    steps = 1 + (int)below(STEPS_MAX);

        for (step = 0; step < steps; step++)
            run_step();
        if (model.is_open && below(2)) {
            QUICK_ASSERT(sql("COMMIT") == SQLITE_OK);
            model_commit();
        } else if (model.is_open) {
            QUICK_ASSERT(sql("ROLLBACK") == SQLITE_OK);
            model_rollback();
        }
        compare(from, &last_position);
    }
    program = 999;
    compare(model.committed_count, &last_position);
    ck_assert_str_eq(test_text(db, "PRAGMA integrity_check"), "ok");
    deliver_and_count();
    (void)fprintf(stderr, "%llu programs, %lld orders tried, %zu committed\n",
                  (unsigned long long)programs, (long long)next_number, model.committed_count);
    free(model.committed);
}
END_TEST

static void
setup(void)
{
    (void)test_dir_make();
    db = test_db_open(test_path("app.db"));
    ck_assert_int_eq(ie_migrate_up(db, NULL, &failure), IE_OK);
    test_exec(db, "PRAGMA synchronous=NORMAL; CREATE TABLE orders (n INTEGER PRIMARY KEY)");
    ck_assert_int_eq(ie_outbox_open(&outbox, db, NULL, &failure), IE_OK);
}

static void
teardown(void)
{
    ie_outbox_close(outbox);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    test_dir_remove();
}

int
main(void)
{
    Suite   *suite = suite_create("model");
    TCase   *programs = tcase_create("programs");
    SRunner *runner;
    int      failed;

    tcase_add_checked_fixture(programs, setup, teardown);
    tcase_set_timeout(programs, 280);
    tcase_add_test(programs, an_event_is_there_and_sent_if_and_only_if_its_transaction_committed);
    suite_add_tcase(suite, programs);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
