/* Events in and out of the table, by our functions and by plain SQL; positions, and finding by id.
 */
#include <ie/migrate.h>

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "headers.h"
#include "log.h"
#include "support.h"

#define QUICK_ASSERT(claim)                                                                        \
    do {                                                                                           \
        if (!(claim))                                                                              \
            ck_abort_msg("%s (%s)", #claim, failure.message);                                      \
    } while (0)

static const char *const ENCODINGS[] = {"UTF-8", "UTF-16le", "UTF-16be"};

static sqlite3   *db;
static ie_error   failure;
static ie__batch *batch;

static void
migrate(sqlite3 *on)
{
    ie_error why = IE_ERROR_INIT;

    ck_assert_msg(ie_migrate_up(on, NULL, &why) == IE_OK, "%s", why.message);
}

static void
setup(void)
{
    (void)test_dir_make();
    db = test_db_open(test_path("app.db"));
    migrate(db);
    ck_assert_int_eq(ie__batch_new(&batch, 64), IE_OK);
}

static void
teardown(void)
{
    ie__batch_free(batch);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    test_dir_remove();
}

/* The events after a position, in the batch, which is emptied first. */
static size_t
read_after(sqlite3 *from, int64_t after)
{
    static const char source[] = "/default"; /* events without one borrow the reader's */
    ie__reader       *reader = NULL;
    ie_status         status;

    ie__batch_clear(batch);
    ck_assert_int_eq(ie__reader_open(&reader, from, source, &failure), IE_OK);
    status = ie__reader_after(reader, batch, after, INT64_MAX, 64, SIZE_MAX, &failure);
    ck_assert_msg(status == IE_OK, "%s", failure.message);
    for (size_t i = 0; i < batch->count; i++)
        if (strcmp(batch->rows[i].event.source, source) == 0)
            batch->rows[i].event.source = source;
    ie__reader_close(reader);
    return batch->count;
}

static ie_status
append(const ie_event *event)
{
    ie__appender *appender = NULL;
    ie_status     status;

    ie_error_clear(&failure);
    ck_assert_int_eq(ie__appender_open(&appender, db, "/default", NULL, &failure), IE_OK);
    status = ie__append(appender, event, NULL, &failure);
    ie__appender_close(appender);
    return status;
}

/* ---- round trip ---- */

START_TEST(every_column_comes_back_as_it_was_written)
{
    const ie_header headers[] = {{.name = "traceid", .value = "a \"quoted\" \\ value"},
                                 {.name = "retry", .value = "-7", .type = IE_HEADER_INTEGER},
                                 {.name = "vip", .value = "true", .type = IE_HEADER_BOOLEAN}};
    const ie_event  full = {.size = sizeof full,
                            .topic = "shop.order.placed",
                            .key = "käse-42",
                            .id = "my id / 1",
                            .type = "com.example.order.placed.v1",
                            .source = "/shop/1",
                            .subject = "order 42",
                            .dataschema = "https://example.com/order.json",
                            .content_type = "application/cloudevents+json",
                            .data = "{\"n\":1.10}",
                            .data_bytes = 10,
                            .headers = headers,
                            .header_count = 3,
                            .time_ms = 1700000000123,
                            .not_before_ms = 1700000001000,
                            .expires_at_ms = 1700000002000,
                            .dedupe_key = "once"};
    const ie_event *got;

    sqlite3 *first = db;
    char     pragma[64];

    ck_assert_int_eq(sqlite3_open(test_path("encoded.db"), &db), SQLITE_OK);
    (void)snprintf(pragma, sizeof pragma, "PRAGMA encoding='%s'", ENCODINGS[_i]);
    test_exec(db, pragma);
    migrate(db);
    ck_assert_str_eq(test_text(db, "PRAGMA encoding"), ENCODINGS[_i]);
    ck_assert_msg(append(&full) == IE_OK, "%s", failure.message);
    ck_assert_uint_eq(read_after(db, 0), 1);
    ck_assert_msg(batch->rows[0].trouble == NULL, "%s", batch->rows[0].trouble);
    got = &batch->rows[0].event;
    ck_assert_str_eq(got->topic, full.topic);
    ck_assert_str_eq(got->key, full.key);
    ck_assert_str_eq(got->id, full.id);
    ck_assert_str_eq(got->type, full.type);
    ck_assert_str_eq(got->source, full.source);
    ck_assert_str_eq(got->subject, full.subject);
    ck_assert_str_eq(got->dataschema, full.dataschema);
    ck_assert_str_eq(got->content_type, full.content_type);
    ck_assert_uint_eq(got->data_bytes, full.data_bytes);
    ck_assert_mem_eq(got->data, full.data, full.data_bytes);
    ck_assert_uint_eq(got->header_count, 3);
    for (size_t i = 0; i < 3; i++) {
        ck_assert_str_eq(got->headers[i].name, headers[i].name);
        ck_assert_str_eq(got->headers[i].value, headers[i].value);
        ck_assert_int_eq(got->headers[i].type, headers[i].type);
    }
    ck_assert_int_eq(got->time_ms, full.time_ms);
    ck_assert_int_eq(got->not_before_ms, full.not_before_ms);
    ck_assert_int_eq(got->expires_at_ms, full.expires_at_ms);
    ck_assert_int_eq(got->position, 1);
    ck_assert_str_eq(test_text(db, "SELECT dedupe_key FROM ie_event"), "once");
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    db = first;
}
END_TEST

/* Bytes that a careless store would change: NUL, no UTF-8, what UTF-16 cannot carry, nothing. */
static const struct {
    const char *content_type;
    const char *data;
    size_t      bytes;
} PAYLOADS[] = {
    {"application/octet-stream", "a\0b\0\xFF\xFE", 6},
    {"application/octet-stream", "", 0},
    {"application/octet-stream", "\0", 1},
    {"text/plain", "with\0nul", 8},
    {"text/plain", "not utf-8 \xC3", 11},
    {"text/plain", "\xEF\xBB\xBF with a byte order mark", 26},
    {"text/plain", "non-characters \xEF\xBF\xBE \xEF\xBF\xBF \xF0\x9F\xBF\xBF", 26},
    {NULL, "\"\xEF\xBF\xBF \xF0\x9F\x92\xA9\"", 10},
    {NULL, " [1e400, 0.1000] ", 17},
    {NULL, NULL, 0},
};

START_TEST(payload_bytes_are_the_same_after_the_database)
{
    sqlite3 *first = db;

    for (size_t k = 0; k < sizeof ENCODINGS / sizeof ENCODINGS[0]; k++) {
        const ie_event  event = {.size = sizeof event,
                                 .topic = "t",
                                 .content_type = PAYLOADS[_i].content_type,
                                 .data = PAYLOADS[_i].data,
                                 .data_bytes = PAYLOADS[_i].bytes};
        const ie_event *got;
        char            pragma[64];

        ck_assert_int_eq(sqlite3_open(":memory:", &db), SQLITE_OK);
        (void)snprintf(pragma, sizeof pragma, "PRAGMA encoding='%s'", ENCODINGS[k]);
        test_exec(db, pragma);
        migrate(db);
        ck_assert_int_eq(append(&event), IE_OK);
        ck_assert_uint_eq(read_after(db, 0), 1);
        ck_assert_msg(batch->rows[0].trouble == NULL, "%s", batch->rows[0].trouble);
        got = &batch->rows[0].event;
        ck_assert_uint_eq(got->data_bytes, event.data_bytes);
        ck_assert_int_eq(got->data == NULL, event.data == NULL);
        if (event.data_bytes != 0)
            ck_assert_mem_eq(got->data, event.data, event.data_bytes);
        ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
    }
    db = first;
}
END_TEST

START_TEST(the_largest_legal_event_comes_back)
{
    static char data[IE_DATA_BYTES_MAX];
    static char quotes[IE_HEADERS_BYTES_MAX];
    static char attribute[IE_ATTRIBUTE_BYTES_MAX + 1];
    char        topic[IE_TOPIC_BYTES_MAX + 1];
    ie_header   header = {.name = "h", .value = quotes};
    ie_event    event = {.size = sizeof event,
                         .topic = topic,
                         .key = attribute,
                         .type = attribute,
                         .subject = attribute,
                         .content_type = "application/octet-stream",
                         .data = data,
                         .data_bytes = sizeof data,
                         .headers = &header,
                         .header_count = 1};

    memset(data, 0xA5, sizeof data);
    memset(quotes, '"', sizeof quotes - 1); /* each is stored as two bytes; the name is one more */
    quotes[sizeof quotes - 1] = '\0';
    memset(attribute, '\\', sizeof attribute - 1);
    memset(topic, 't', sizeof topic - 1);
    topic[sizeof topic - 1] = '\0';
    ck_assert_msg(ie_event_check(&event, &failure) == IE_OK, "%s", failure.message);
    ck_assert_int_eq(append(&event), IE_OK);
    ck_assert_uint_eq(read_after(db, 0), 1);
    ck_assert_msg(batch->rows[0].trouble == NULL, "%s", batch->rows[0].trouble);
    ck_assert_str_eq(batch->rows[0].event.headers[0].value, quotes);
    ck_assert_str_eq(batch->rows[0].event.key, attribute);
    ck_assert_uint_eq(batch->rows[0].event.data_bytes, sizeof data);
    ck_assert_mem_eq(batch->rows[0].event.data, data, sizeof data);
}
END_TEST

START_TEST(defaults_are_not_stored_and_come_back)
{
    const ie_event event = {.size = sizeof event,
                            .topic = "t",
                            .type = "t",
                            .source = "/default",
                            .content_type = "application/json",
                            .data = "1",
                            .data_bytes = 1};

    ck_assert_int_eq(append(&event), IE_OK);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_event WHERE type IS NULL AND source IS"
                                  " NULL AND content_type IS NULL AND typeof(data) = 'text'"),
                     1);
    ck_assert_uint_eq(read_after(db, 0), 1);
    ck_assert_str_eq(batch->rows[0].event.type, "t");
    ck_assert_str_eq(batch->rows[0].event.source, "/default");
}
END_TEST

START_TEST(a_batch_stops_at_its_bytes_but_has_at_least_one)
{
    ie__reader *reader = NULL;

    test_exec(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
                  " INSERT INTO ie_event(topic, content_type, data)"
                  " SELECT 't', 'a/b', zeroblob(10000) FROM n");
    ck_assert_int_eq(ie__reader_open(&reader, db, "/", &failure), IE_OK);
    ck_assert_int_eq(ie__reader_after(reader, batch, 0, INT64_MAX, 64, 1, &failure), IE_OK);
    ck_assert_uint_eq(batch->count, 1);
    ie__batch_clear(batch);
    ck_assert_int_eq(ie__reader_after(reader, batch, 10, 90, 64, 100000, &failure), IE_OK);
    ck_assert_uint_eq(batch->count, 10);
    ck_assert_int_eq(batch->rows[0].event.position, 11);
    /* What is full takes no more, and says so only where one was asked for. */
    ck_assert_int_eq(ie__reader_after(reader, batch, 0, 100, 1000, SIZE_MAX, &failure), IE_OK);
    ck_assert_uint_eq(batch->count, 64);
    ck_assert_int_eq(ie__reader_after(reader, batch, 0, 100, 1000, SIZE_MAX, &failure), IE_OK);
    ck_assert_int_eq(ie__reader_at(reader, batch, 1, NULL), IE_ELIMIT);
    ie__batch_clear(batch);
    ck_assert_int_eq(ie__reader_at(reader, batch, 77, &failure), IE_OK);
    ck_assert_int_eq(batch->rows[0].event.position, 77);
    ck_assert_int_eq(ie__reader_at(reader, batch, 101, NULL), IE_ENOTFOUND);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_event"), 100);
    ie__reader_close(reader);
}
END_TEST

/* ---- plain SQL ---- */

START_TEST(a_row_by_plain_sql_gets_an_id_and_a_time)
{
    const int64_t before_ms = ie__wall_ms(&ie__system_clock);
    char          id[64];
    char          again[64];
    int64_t       id_ms = 0;

    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    (void)snprintf(id, sizeof id, "%s",
                   test_text(db, "INSERT INTO ie_event(topic, data) VALUES ('shop.x', '{}')"
                                 " RETURNING id"));
    (void)snprintf(again, sizeof again, "%s",
                   test_text(db, "INSERT INTO ie_event(topic) VALUES ('shop.x') RETURNING id"));
    ck_assert_str_ne(id, again);
    ck_assert_uint_eq(strlen(id), 36);
    for (int i = 0; i < 36; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23)
            ck_assert_int_eq(id[i], '-');
        else
            ck_assert_msg(strchr("0123456789abcdef", id[i]) != NULL, "%s", id);
    ck_assert_int_eq(id[14], '7');
    ck_assert_msg(strchr("89ab", id[19]) != NULL, "%s", id);
    id_ms = (int64_t)strtoull((char[]){id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7],
                                       id[9], id[10], id[11], id[12], '\0'},
                              NULL, 16);
    ck_assert_int_ge(id_ms, before_ms - 1); /* julianday() rounds */
    ck_assert_int_le(id_ms, ie__wall_ms(&ie__system_clock) + 1);
    ck_assert_int_eq(test_int(db, "SELECT time FROM ie_event WHERE position = 1"), id_ms);
    ck_assert_uint_eq(read_after(db, 0), 2);
    ck_assert_ptr_null(batch->rows[0].trouble);
    ck_assert_str_eq(batch->rows[0].event.id, id);
    ck_assert_mem_eq(batch->rows[0].event.data, "{}", 2);
    ck_assert_ptr_null(batch->rows[1].event.data);
    /* An ORM that stores numbers: the text of the number is its JSON. */
    test_exec(db, "INSERT INTO ie_event(topic, data) VALUES ('t', 42), ('t', 1.5)");
    ck_assert_uint_eq(read_after(db, 2), 2);
    ck_assert_ptr_null(batch->rows[0].trouble);
    ck_assert_mem_eq(batch->rows[0].event.data, "42", 3);
    ck_assert_mem_eq(batch->rows[1].event.data, "1.5", 4);
}
END_TEST

START_TEST(ids_of_plain_sql_never_repeat)
{
    const uint64_t rows = test_scale(50000);
    char           sql[256];

    (void)snprintf(sql, sizeof sql,
                   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %llu)"
                   " INSERT INTO ie_event(topic) SELECT 't' FROM n",
                   (unsigned long long)rows);
    test_exec(db, sql);
    ck_assert_int_eq(test_int(db, "SELECT count(DISTINCT id) FROM ie_event"), (int64_t)rows);
}
END_TEST

static const struct {
    const char *columns;
    const char *values;
    const char *trouble; /* a part of it */
} BAD[] = {
    {"topic", "('')", "topic"},
    {"topic", "('a b')", "topic"},
    {"topic", "('a.*')", "topic"},
    {"topic", "('a..b')", "topic"},
    {"topic", "('a' || char(0) || 'b')", "topic"},
    {"topic", "(CAST(x'61ff' AS TEXT))", "topic"},
    {"topic", "(printf('%.256c', 't'))", "topic is longer than 255"},
    {"topic, id", "('t', '')", "id is empty"},
    {"topic, id", "('t', printf('%.256c', 'i'))", "id is longer than 255"},
    {"topic, id", "('t', 'a' || char(10))", "control character"},
    {"topic, key", "('t', 'a' || char(13, 10) || 'b')", "control character"},
    {"topic, key", "('t', 'a' || char(133))", "control character"},
    {"topic, key", "('t', CAST(x'c328' AS TEXT))", "UTF-8"},
    {"topic, key", "('t', '')", "key is empty"},
    {"topic, key", "('t', printf('%.2049c', 'k'))", "key is longer"},
    {"topic, type", "('t', '')", "type or source is empty"},
    {"topic, type", "('t', 'a' || char(0) || 'b')", "control character"},
    {"topic, type", "('t', printf('%.2049c', 'k'))", "type is longer"},
    {"topic, source", "('t', '')", "type or source is empty"},
    {"topic, source", "('t', 'no uri')", "source"},
    {"topic, source", "('t', printf('%.2049c', 'k'))", "source is longer"},
    {"topic, content_type", "('t', 'json')", "content_type"},
    {"topic, content_type", "('t', 'a/b' || char(13) || 'X: y')", "control character"},
    {"topic, content_type", "('t', printf('a/%.2049c', 'k'))", "content_type is longer"},
    {"topic, headers", "('t', '[]')", "headers"},
    {"topic, headers", "('t', '{\"A\":1}')", "headers"},
    {"topic, headers", "('t', '{\"a\":{}}')", "headers"},
    {"topic, headers", "('t', '{\"a\":\"' || printf('%.70000c', 'x') || '\"}')", "headers"},
    {"topic, headers", "('t', '{\"a\":\"x\\ny\"}')", "headers"},
    {"topic, data", "('t', '{')", "not JSON"},
    {"topic, data", "('t', '')", "data is empty"},
    {"topic, data", "('t', x'')", "data is empty"},
    {"topic, data", "('t', 9e999)", "not JSON"},
    {"topic, data", "('t', zeroblob(1048577))", "larger than 1 MiB"},
    {"topic, content_type, data", "('t', 'a/b', zeroblob(1048577))", "larger than 1 MiB"},
    {"topic, time", "('t', 253402300800000)", "years 0000 to 9999"},
    {"topic, expires_at", "('t', -9223372036854775808)", "years 0000 to 9999"},
};

START_TEST(a_row_that_breaks_the_rules_comes_with_a_reason)
{
    char sql[512];

    /* Good ones around it are read as ever: one bad row costs only itself. */
    test_exec(db, "INSERT INTO ie_event(topic, data) VALUES ('good', '1')");
    (void)snprintf(sql, sizeof sql, "INSERT INTO ie_event(%s) VALUES %s", BAD[_i].columns,
                   BAD[_i].values);
    test_exec(db, sql);
    test_exec(db, "INSERT INTO ie_event(topic, data) VALUES ('good', '3')");
    for (int64_t after = 0; after < 2; after++) { /* the bad one second, and first */
        ck_assert_uint_eq(read_after(db, after), (size_t)(3 - after));
        ck_assert_ptr_null(batch->rows[batch->count - 1].trouble);
        const ie__row *bad = &batch->rows[1 - after];

        ck_assert_msg(bad->trouble != NULL, "%s passed", BAD[_i].values);
        ck_assert_msg(strstr(bad->trouble, BAD[_i].trouble) != NULL, "'%s' instead of '%s'",
                      bad->trouble, BAD[_i].trouble);
        ck_assert_ptr_nonnull(bad->event.topic); /* good enough to be shown */
        ck_assert_ptr_nonnull(bad->event.id);
        ck_assert_int_eq(bad->event.position, 2);
    }
}
END_TEST

START_TEST(the_table_refuses_what_can_never_be_an_event)
{
    static const char *const SQL[] = {
        "INSERT INTO ie_event(topic) VALUES (NULL)",
        "INSERT INTO ie_event(topic, id) VALUES ('t', NULL)",
        "INSERT INTO ie_event(topic, time) VALUES ('t', NULL)",
        "INSERT INTO ie_event(topic, time) VALUES ('t', 'noon')",
        "INSERT INTO ie_event(topic, key) VALUES ('t', x'00')",
        "INSERT INTO ie_event(position, topic) VALUES (0, 't')",
        "INSERT INTO ie_event(position, topic) VALUES (-1, 't')",
        "INSERT INTO ie_event(position, topic) VALUES (9223372036854775807, 't')",
        "INSERT INTO ie_event(topic, dedupe_key) VALUES ('t', 'd'), ('t', 'd')",
        "UPDATE ie_event SET topic = 'other'",
        "UPDATE ie_event SET position = position + 1",
        "UPDATE OR REPLACE ie_event SET data = NULL",
        "DELETE FROM ie_event",
        "DELETE FROM ie_event WHERE position = 2",
    };

    test_exec(db, "INSERT INTO ie_event(topic, data) VALUES ('t', '1'), ('t', '2')");
    for (size_t i = 0; i < sizeof SQL / sizeof SQL[0]; i++)
        ck_assert_msg((sqlite3_exec(db, SQL[i], NULL, NULL, NULL) & 0xff) == SQLITE_CONSTRAINT,
                      "%s: %s", SQL[i], sqlite3_errmsg(db));
    ck_assert_str_eq(test_text(db, "SELECT group_concat(position || topic || data) FROM ie_event"),
                     "1t1,2t2");
}
END_TEST

/* ---- by id ---- */

START_TEST(an_event_is_found_by_its_id_wherever_it_is)
{
    const int rows = 30000;
    char      sql[512];
    char      id[64];
    int64_t   position = 0;

    /* A second apart, so that the id's time leads to the neighbourhood. */
    (void)snprintf(sql, sizeof sql,
                   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)"
                   " INSERT INTO ie_event(topic, time, id) SELECT 't', 1700000000000 + i * 1000,"
                   " lower(printf('%%08x-%%04x-7000-8000-%%012x', (1700000000000 + i * 1000) >> 16,"
                   " (1700000000000 + i * 1000) & 65535, i)) FROM n",
                   rows);
    test_exec(db, sql);
    test_exec(db, "INSERT INTO ie_event(topic, time, id) VALUES"
                  " ('t', 1, 'order-1'), ('t', 1700000000000, 'order-2')");
    for (int at = 1; at <= rows; at = at < 10 ? at + 1 : at * 3 / 2) {
        (void)snprintf(sql, sizeof sql, "SELECT id FROM ie_event WHERE position = %d", at);
        (void)snprintf(id, sizeof id, "%s", test_text(db, sql));
        ck_assert_int_eq(ie__log_find(&position, db, id, &failure), IE_OK);
        ck_assert_int_eq(position, at);
    }
    ck_assert_int_eq(ie__log_find(&position, db, "order-2", &failure), IE_OK);
    ck_assert_int_eq(position, rows + 2);
    /* A UUIDv7 whose time is nowhere near its row: found all the same, by looking at all. */
    test_exec(db, "INSERT INTO ie_event(topic, id) VALUES"
                  " ('t', '01000000-0000-7000-8000-000000000000')");
    ck_assert_int_eq(ie__log_find(&position, db, "01000000-0000-7000-8000-000000000000", &failure),
                     IE_OK);
    ck_assert_int_eq(position, rows + 3);
    ck_assert_int_eq(ie__log_find(&position, db, "nobody", &failure), IE_OK);
    ck_assert_int_eq(position, 0);
    ck_assert_int_eq(ie__log_find(&position, db, "018bcfe5-6800-7000-8000-ffffffffffff", &failure),
                     IE_OK);
    ck_assert_int_eq(position, 0);
    ck_assert_int_eq(ie__log_find(&position, db, "", &failure), IE_OK);
    ck_assert_int_eq(position, 0);
    ck_assert_int_eq(ie__log_find(&position, db, "zzzzzzzz-zzzz-7zzz-zzzz-zzzzzzzzzzzz", &failure),
                     IE_OK);
    ck_assert_int_eq(position, 0);
}
END_TEST

static int
count_one(void *user)
{
    ++*(int64_t *)user;
    return 0;
}

START_TEST(a_uuid_is_found_without_looking_at_every_row)
{
    int64_t position = 0;
    int64_t thousands = 0;

    test_exec(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)"
                  " INSERT INTO ie_event(topic, time, id) SELECT 't', 1700000000000 + i,"
                  " lower(printf('%08x-%04x-7000-8000-%012x', (1700000000000 + i) >> 16,"
                  " (1700000000000 + i) & 65535, i)) FROM n");
    sqlite3_progress_handler(db, 1000, count_one, &thousands);
    ck_assert_int_eq(ie__log_find(&position, db, "018bcfe6-8338-7000-8000-000000011b38", &failure),
                     IE_OK);
    sqlite3_progress_handler(db, 0, NULL, NULL);
    ck_assert_int_eq(position, 0x11b38);
    ck_assert_int_le(thousands, 100); /* all rows would be 800 */
}
END_TEST

/* ---- positions ---- */

START_TEST(ids_never_repeat_though_positions_of_rolled_back_events_do)
{
    const uint64_t rounds = test_scale(1000000) / 10;
    ie__appender  *appender = NULL;
    const ie_event event = {.size = sizeof event, .topic = "t"};
    char           last[IE_ID_SIZE] = "";
    char           id[IE_ID_SIZE];
    int64_t        repeated = 0;
    int64_t        before = 0;

    ck_assert_int_eq(ie__appender_open(&appender, db, "/", NULL, &failure), IE_OK);
    for (uint64_t i = 0; i < rounds; i++) {
        QUICK_ASSERT(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK);
        for (int k = 0; k < 10; k++) {
            QUICK_ASSERT(ie__append(appender, &event, id, &failure) == IE_OK);
            QUICK_ASSERT(strcmp(id, last) > 0); /* they ascend, so none comes twice */
            memcpy(last, id, sizeof last);
            if (k == 0 && sqlite3_last_insert_rowid(db) == before)
                repeated++;
            if (k == 0)
                before = sqlite3_last_insert_rowid(db);
        }
        QUICK_ASSERT(sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL) == SQLITE_OK);
    }
    ie__appender_close(appender);
    ck_assert_int_eq(repeated, (int64_t)rounds - 1); /* why a position is no id */
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_event"), 0);
}
END_TEST

START_TEST(positions_grow_whatever_is_deleted)
{
    int64_t highest = 0;

    for (int round = 0; round < 50; round++) {
        int64_t next;

        test_exec(db, "INSERT INTO ie_event(topic) VALUES ('t'), ('t'), ('t')");
        next = test_int(db, "SELECT max(position) FROM ie_event");
        ck_assert_int_gt(next, highest);
        highest = next;
        ck_assert_int_eq(sqlite3_exec(db, "DELETE FROM ie_event", NULL, NULL, NULL),
                         SQLITE_CONSTRAINT);
        ck_assert_msg(strstr(sqlite3_errmsg(db), "newest") != NULL, "%s", sqlite3_errmsg(db));
        ck_assert_int_eq(test_int(db, "SELECT max(position) FROM ie_event"), highest);
        if (round % 3 != 0)
            test_exec(db, "DELETE FROM ie_event WHERE position <"
                          " (SELECT max(position) FROM ie_event)");
        if (round % 7 == 0)
            test_exec(db, "VACUUM");
    }
    /* REPLACE removes rows without asking a delete trigger; what it removes is not given again. */
    test_exec(db, "INSERT INTO ie_event(topic, dedupe_key) VALUES ('t', 'd')");
    highest = test_int(db, "SELECT max(position) FROM ie_event");
    test_exec(db, "INSERT OR REPLACE INTO ie_event(topic, dedupe_key) VALUES ('t', 'd')");
    ck_assert_int_gt(test_int(db, "SELECT max(position) FROM ie_event"), highest);
}
END_TEST

/* T-A20: the order of positions is the order of commits. */
#define WRITERS 8

static struct {
    char            path[512];
    pthread_mutex_t lock;
    int64_t         stamp;
    uint64_t        commits_each;
    int             inversions;
    int64_t         committed;
} race;

static void *
race_writer(void *arg)
{
    uint64_t       state = test_seed() + (uintptr_t)arg * 7919;
    sqlite3       *own = NULL;
    ie__appender  *appender = NULL;
    ie_error       why = IE_ERROR_INIT;
    const ie_event event = {.size = sizeof event, .topic = "t"};

    if (sqlite3_open(race.path, &own) != SQLITE_OK)
        abort();
    (void)sqlite3_busy_timeout(own, 60000);
    (void)sqlite3_exec(own, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
    if (ie__appender_open(&appender, own, "/", NULL, &why) != IE_OK)
        abort();
    for (uint64_t i = 0; i < race.commits_each; i++) {
        const bool is_kept =
            (state = state * 6364136223846793005u + 1442695040888963407u) >> 62 != 0;
        char sql[96];

        if (sqlite3_exec(own, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK ||
            ie__append(appender, &event, NULL, &why) != IE_OK)
            abort();
        /* The stamp is drawn while the write lock is held, and goes into the same transaction. */
        (void)pthread_mutex_lock(&race.lock);
        (void)snprintf(sql, sizeof sql, "INSERT INTO stamps VALUES (%lld, %lld)",
                       (long long)sqlite3_last_insert_rowid(own), (long long)++race.stamp);
        if (is_kept)
            race.committed++;
        (void)pthread_mutex_unlock(&race.lock);
        if (sqlite3_exec(own, sql, NULL, NULL, NULL) != SQLITE_OK ||
            sqlite3_exec(own, is_kept ? "COMMIT" : "ROLLBACK", NULL, NULL, NULL) != SQLITE_OK)
            abort();
    }
    ie__appender_close(appender);
    (void)sqlite3_close(own);
    return NULL;
}

/* Follows the log as a worker does, while it is written: what it sees must never have a gap filled
 * in behind it. */
static void *
race_reader(void *arg)
{
    sqlite3      *own = NULL;
    sqlite3_stmt *stmt = NULL;
    int64_t       cursor = 0;
    int64_t      *seen = arg;

    if (sqlite3_open(race.path, &own) != SQLITE_OK ||
        sqlite3_prepare_v2(own,
                           "SELECT position FROM ie_event WHERE position > ?1 ORDER BY"
                           " position",
                           -1, &stmt, NULL) != SQLITE_OK)
        abort();
    (void)sqlite3_busy_timeout(own, 60000);
    while (__atomic_load_n(&seen[1], __ATOMIC_ACQUIRE) >= 0) {
        const bool is_last = __atomic_load_n(&seen[1], __ATOMIC_ACQUIRE) == 1;

        (void)sqlite3_bind_int64(stmt, 1, cursor);
        while (sqlite3_step(stmt) == SQLITE_ROW) {
            cursor = sqlite3_column_int64(stmt, 0);
            seen[0]++;
        }
        (void)sqlite3_reset(stmt);
        if (is_last)
            break;
    }
    (void)sqlite3_finalize(stmt);
    (void)sqlite3_close(own);
    return NULL;
}

START_TEST(the_order_of_positions_is_the_order_of_commits)
{
    pthread_t writers[WRITERS];
    pthread_t reader;
    int64_t   seen[2] = {0, 0};

    (void)test_seed(); /* drawn once, before there are threads */
    (void)pthread_mutex_init(&race.lock, NULL);
    (void)snprintf(race.path, sizeof race.path, "%s", test_path("app.db"));
    race.commits_each = test_scale(20000) / WRITERS + 1;
    test_exec(db, "CREATE TABLE stamps (position INTEGER PRIMARY KEY, stamp INTEGER)");
    ck_assert_int_eq(pthread_create(&reader, NULL, race_reader, seen), 0);
    for (uintptr_t i = 0; i < WRITERS; i++)
        ck_assert_int_eq(pthread_create(&writers[i], NULL, race_writer, (void *)i), 0);
    for (int i = 0; i < WRITERS; i++)
        (void)pthread_join(writers[i], NULL);
    __atomic_store_n(&seen[1], 1, __ATOMIC_RELEASE);
    (void)pthread_join(reader, NULL);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_event"), race.committed);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM ie_event JOIN stamps USING (position)"),
                     race.committed);
    ck_assert_int_eq(test_int(db, "SELECT count(*) FROM (SELECT stamp, lag(stamp) OVER (ORDER BY"
                                  " position) AS before FROM stamps) WHERE before > stamp"),
                     0);
    ck_assert_int_eq(seen[0], race.committed); /* no event came in behind the cursor */
}
END_TEST

/* ---- memory ---- */

START_TEST(reading_without_memory_fails_and_loses_nothing)
{
    ie__reader *reader = NULL;
    uint64_t    n = 0;
    ie_status   status;

    test_exec(db, "INSERT INTO ie_event(topic, key, headers, data) VALUES"
                  " ('t', 'k', '{\"a\":\"b\"}', '1'), ('t', 'k', NULL, NULL)");
    do {
        ie_error_clear(&failure);
        ie__batch_free(batch);
        batch = NULL;
        ie__alloc_fail_at(++n, false);
        status = ie__batch_new(&batch, 4);
        if (status == IE_OK)
            status = ie__reader_open(&reader, db, "/", &failure);
        if (status == IE_OK)
            status = ie__reader_after(reader, batch, 0, INT64_MAX, 4, SIZE_MAX, &failure);
        ie__alloc_fail_at(0, false);
        ck_assert_msg(status == IE_OK || status == IE_ENOMEM, "%s", failure.message);
        ie__reader_close(reader);
        reader = NULL;
    } while (status != IE_OK);
    ck_assert_uint_gt(n, 4);
    ck_assert_uint_eq(batch->count, 2);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("log");
    TCase   *rows = tcase_create("rows");
    TCase   *find = tcase_create("find");
    TCase   *positions = tcase_create("positions");
    TCase   *cases[] = {rows, find, positions};
    SRunner *runner;
    int      failed;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tcase_add_checked_fixture(cases[i], setup, teardown);
        tcase_set_timeout(cases[i], 240);
        suite_add_tcase(suite, cases[i]);
    }
    tcase_add_loop_test(rows, every_column_comes_back_as_it_was_written, 0,
                        sizeof ENCODINGS / sizeof ENCODINGS[0]);
    tcase_add_loop_test(rows, payload_bytes_are_the_same_after_the_database, 0,
                        sizeof PAYLOADS / sizeof PAYLOADS[0]);
    tcase_add_test(rows, the_largest_legal_event_comes_back);
    tcase_add_test(rows, defaults_are_not_stored_and_come_back);
    tcase_add_test(rows, a_batch_stops_at_its_bytes_but_has_at_least_one);
    tcase_add_test(rows, a_row_by_plain_sql_gets_an_id_and_a_time);
    tcase_add_test(rows, ids_of_plain_sql_never_repeat);
    tcase_add_loop_test(rows, a_row_that_breaks_the_rules_comes_with_a_reason, 0,
                        sizeof BAD / sizeof BAD[0]);
    tcase_add_test(rows, the_table_refuses_what_can_never_be_an_event);
    tcase_add_test(rows, reading_without_memory_fails_and_loses_nothing);
    tcase_add_test(find, an_event_is_found_by_its_id_wherever_it_is);
    tcase_add_test(find, a_uuid_is_found_without_looking_at_every_row);
    tcase_add_test(positions, ids_never_repeat_though_positions_of_rolled_back_events_do);
    tcase_add_test(positions, positions_grow_whatever_is_deleted);
    tcase_add_test(positions, the_order_of_positions_is_the_order_of_commits);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
