/* Reading events back: batches in reused memory, rows that break the rules named instead of passed
 * on. */
#include "log.h"

#include <limits.h>
#include <string.h>

#include "attributes.h"
#include "core.h"
#include "headers.h"
#include "json.h"
#include "text.h"

#define CHUNK_BYTES 65536

typedef struct chunk {
    struct chunk *next;
    size_t        size;
    size_t        used;
    max_align_t   bytes[];
} chunk;

struct ie__reader {
    sqlite3      *db;
    sqlite3_stmt *after;
    sqlite3_stmt *at;
    sqlite3_stmt *ends;
    char         *source;
    size_t        good_topic_bytes;
    char          good_topic[IE_TOPIC_BYTES_MAX + 1];
};

#define COLUMNS                                                                                    \
    "position, id, topic, key, type, source, time, not_before, expires_at, content_type, headers," \
    " checked, data"
enum {
    C_POSITION,
    C_ID,
    C_TOPIC,
    C_KEY,
    C_TYPE,
    C_SOURCE,
    C_TIME,
    C_NOT_BEFORE,
    C_EXPIRES_AT,
    C_CONTENT_TYPE,
    C_HEADERS,
    C_CHECKED,
    C_DATA
};

ie_status
ie__reader_open(ie__reader **out, sqlite3 *db, const char *default_source, ie_error *err)
{
    ie__reader *reader = ie__calloc(1, sizeof *reader);
    ie_status   status = IE_OK;

    if (reader != NULL)
        reader->source = ie__strdup(default_source);
    if (reader == NULL || reader->source == NULL)
        status = ie_error_set(err, IE_ENOMEM, "open reader: out of memory");
    else
        reader->db = db;
    if (status == IE_OK)
        status =
            ie__sql_prepare(&reader->after, db,
                            "SELECT " COLUMNS " FROM main.ie_event"
                            " WHERE position > ?1 AND position <= ?2 ORDER BY position LIMIT ?3",
                            err);
    if (status == IE_OK)
        status = ie__sql_prepare(&reader->at, db,
                                 "SELECT " COLUMNS " FROM main.ie_event WHERE position = ?1", err);
    if (status == IE_OK)
        status =
            ie__sql_prepare(&reader->ends, db,
                            "SELECT (SELECT min(position) FROM main.ie_event WHERE position > ?1),"
                            " (SELECT max(position) FROM main.ie_event)",
                            err);
    if (status != IE_OK) {
        ie__reader_close(reader);
        return status;
    }
    *out = reader;
    return IE_OK;
}

void
ie__reader_close(ie__reader *reader)
{
    if (reader == NULL)
        return;
    (void)sqlite3_finalize(reader->after);
    (void)sqlite3_finalize(reader->at);
    (void)sqlite3_finalize(reader->ends);
    ie__free(reader->source);
    ie__free(reader);
}

ie_status
ie__batch_new(ie__batch **out, size_t rows_max)
{
    ie__batch *batch = ie__calloc(1, sizeof *batch);

    if (batch != NULL)
        batch->rows = ie__calloc(rows_max, sizeof *batch->rows);
    if (batch == NULL || batch->rows == NULL) {
        ie__free(batch);
        return IE_ENOMEM;
    }
    batch->capacity = rows_max;
    *out = batch;
    return IE_OK;
}

/* Keep one ordinary chunk for the next use; big ones go back. */
void
ie__batch_clear(ie__batch *batch)
{
    chunk *kept = NULL;

    for (chunk *at = batch->chunks, *next; at != NULL; at = next) {
        next = at->next;
        if (kept == NULL && at->size == CHUNK_BYTES)
            kept = at;
        else
            ie__free(at);
    }
    if (kept != NULL) {
        kept->next = NULL;
        kept->used = 0;
    }
    batch->chunks = kept;
    batch->bytes = kept != NULL ? CHUNK_BYTES : 0;
    batch->count = 0;
    batch->unanswered = 0;
}

void
ie__batch_free(ie__batch *batch)
{
    if (batch == NULL)
        return;
    for (chunk *at = batch->chunks, *next; at != NULL; at = next) {
        next = at->next;
        ie__free(at);
    }
    ie__free(batch->rows);
    ie__free(batch);
}

static void *
batch_take(ie__batch *batch, size_t bytes)
{
    chunk *head = batch->chunks;

    bytes = (bytes + 7) & ~(size_t)7;
    if (head == NULL || head->size - head->used < bytes) {
        const size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;

        head = ie__alloc(sizeof *head + size);
        if (head == NULL)
            return NULL;
        head->next = batch->chunks;
        head->size = size;
        head->used = 0;
        batch->chunks = head;
        batch->bytes += size;
    }
    head->used += bytes;
    return (char *)head->bytes + head->used - bytes;
}

/* A column's bytes as SQLite holds them: valid until the statement steps on. */
typedef struct column {
    const char *text;
    size_t      bytes;
} column;

static const struct {
    int         index;
    size_t      bytes_max;
    const char *too_long;
} TEXTS[] = {
    {C_ID, IE_ID_BYTES_MAX, "id is longer than 255 bytes"},
    {C_TOPIC, IE_TOPIC_BYTES_MAX, "topic is longer than 255 bytes"},
    {C_KEY, IE_ATTRIBUTE_BYTES_MAX, "key is longer than 2048 bytes"},
    {C_TYPE, IE_ATTRIBUTE_BYTES_MAX, "type is longer than 2048 bytes"},
    {C_SOURCE, IE_ATTRIBUTE_BYTES_MAX, "source is longer than 2048 bytes"},
    {C_CONTENT_TYPE, IE_ATTRIBUTE_BYTES_MAX, "content_type is longer than 2048 bytes"},
};
#define TEXT_COUNT (sizeof TEXTS / sizeof TEXTS[0])

static column
column_text(sqlite3_stmt *stmt, int index)
{
    column at = {(const char *)sqlite3_column_text(stmt, index), 0};

    if (at.text != NULL)
        at.bytes = (size_t)sqlite3_column_bytes(stmt, index);
    return at;
}

static column
column_data(sqlite3_stmt *stmt)
{
    if (sqlite3_column_type(stmt, C_DATA) != SQLITE_BLOB)
        return column_text(stmt, C_DATA);
    /* A blob of no bytes has no address; it is data all the same. */
    const void  *blob = sqlite3_column_blob(stmt, C_DATA);
    const size_t bytes = (size_t)sqlite3_column_bytes(stmt, C_DATA);

    return (column){blob != NULL ? blob : "", bytes};
}

/* Copy behind what is there already, with a terminator. A fault cuts the text and is remembered. */
static const char *
put_text(char **to, column from, size_t bytes_max, const char *too_long, const char **trouble)
{
    const char *copy = *to;

    if (from.text == NULL)
        return NULL;
    if (from.bytes > bytes_max) {
        *trouble = too_long;
        from.bytes = bytes_max;
    }
    memcpy(*to, from.text, from.bytes);
    (*to)[from.bytes] = '\0';
    *to += from.bytes + 1;
    return copy;
}

/* Milliseconds that CloudEvents can write as a time. */
static bool
is_year(int64_t ms)
{
    return ms >= INT64_C(-62167219200000) && ms <= INT64_C(253402300799999);
}

/*
 * The rules that ie_publish() enforces, for rows that anyone may have written: static text. An
 * attribute with NUL, CR or LF would be read as something else by some transport.
 */
static const char *
row_trouble(ie__reader *reader, const ie_event *event, const column *texts)
{
    const column topic = texts[1];
    ie_status    ignored;

    for (size_t i = 0; i < TEXT_COUNT; i++)
        if (i != 1 && texts[i].text != NULL &&
            ie__text_fault(texts[i].text, texts[i].bytes) != NULL)
            return "an attribute (id, key, type, source or content_type) has a control character, "
                   "a non-character or is not UTF-8";
    /* Topics repeat: the one that was just found good is not looked at again. */
    if (topic.bytes == 0 || topic.bytes != reader->good_topic_bytes ||
        memcmp(topic.text, reader->good_topic, topic.bytes) != 0) {
        if (strlen(event->topic) != topic.bytes || ie_topic_check(event->topic, NULL) != IE_OK)
            return "topic is not valid: dotted words without wildcards, spaces or control "
                   "characters";
        memcpy(reader->good_topic, topic.text, topic.bytes);
        reader->good_topic_bytes = topic.bytes;
    }
    if (event->id[0] == '\0')
        return "id is empty";
    if (event->type[0] == '\0' || event->source[0] == '\0')
        return "type or source is empty";
    if (texts[4].text != NULL && ie__fault_source(event->source, texts[4].bytes, &ignored) != NULL)
        return "source is not a URI or a part of one";
    if (texts[5].text != NULL &&
        ie__fault_content_type(event->content_type, texts[5].bytes, &ignored) != NULL)
        return "content_type is not a media type like application/json";
    if (event->key != NULL && event->key[0] == '\0')
        return "key is empty; NULL means no key";
    if (!is_year(event->time_ms) || !is_year(event->not_before_ms) ||
        !is_year(event->expires_at_ms))
        return "time, not_before or expires_at is outside of the years 0000 to 9999";
    if (event->data != NULL && ie__json_is_media_type(event->content_type) &&
        ie__json_check(event->data, event->data_bytes, NULL) != IE_OK)
        return event->data_bytes == 0 ? "data is empty, which is not JSON; NULL means no data"
                                      : "data is not JSON, though its content type says so";
    return NULL;
}

/* What ie_publish() wrote is in its own compact form; anything else is read with all care. */
static bool
take_headers(ie_event *event, void *arena, column headers, bool is_checked)
{
    if (is_checked && ie__headers_decode_compact(event, arena, headers.text, headers.bytes))
        return true;
    return ie__headers_decode_into(event, arena, headers.text, headers.bytes, NULL) == IE_OK;
}

static ie_status
take_row(ie__reader *reader, ie__batch *batch, sqlite3_stmt *stmt, ie_error *err)
{
    ie__row    *row = &batch->rows[batch->count];
    ie_event   *event = &row->event;
    const bool  is_checked = sqlite3_column_int(stmt, C_CHECKED) == 1;
    const char *trouble = NULL;
    const char *copies[TEXT_COUNT];
    column      texts[TEXT_COUNT];
    column      data = column_data(stmt);
    column      headers = column_text(stmt, C_HEADERS);
    size_t      arena_bytes = 0;
    size_t      bytes;
    char       *block;
    char       *to;

    if (data.bytes > IE_DATA_BYTES_MAX) {
        trouble = "data is larger than 1 MiB";
        data.bytes = 0;
    }
    if (headers.bytes > IE__HEADERS_STORED_BYTES_MAX) {
        trouble = "headers are too long";
        headers.text = NULL;
    }
    if (headers.text != NULL)
        arena_bytes = (ie__headers_arena_bytes(headers.bytes) + 7) & ~(size_t)7;
    bytes = arena_bytes + data.bytes + 1;
    for (size_t i = 0; i < TEXT_COUNT; i++) {
        texts[i] = column_text(stmt, TEXTS[i].index);
        if (texts[i].text != NULL)
            bytes +=
                (texts[i].bytes < TEXTS[i].bytes_max ? texts[i].bytes : TEXTS[i].bytes_max) + 1;
    }
    /* A text that SQLite had no memory to convert reads as NULL, which would be another event. */
    block = sqlite3_errcode(reader->db) != SQLITE_NOMEM ? batch_take(batch, bytes) : NULL;
    if (block == NULL)
        return ie_error_set(err, IE_ENOMEM, "read events: out of memory");
    to = block + arena_bytes;

    memset(row, 0, sizeof *row);
    row->bytes = bytes;
    for (size_t i = 0; i < TEXT_COUNT; i++)
        copies[i] = put_text(&to, texts[i], TEXTS[i].bytes_max, TEXTS[i].too_long, &trouble);
    event->size = sizeof *event;
    event->position = sqlite3_column_int64(stmt, C_POSITION);
    event->id = copies[0];
    event->topic = copies[1];
    event->key = copies[2];
    event->type = copies[3] != NULL ? copies[3] : copies[1];
    event->source = copies[4] != NULL ? copies[4] : reader->source;
    event->content_type = copies[5];
    event->time_ms = sqlite3_column_int64(stmt, C_TIME);
    event->not_before_ms = sqlite3_column_int64(stmt, C_NOT_BEFORE);
    event->expires_at_ms = sqlite3_column_int64(stmt, C_EXPIRES_AT);
    if (data.text != NULL) {
        memcpy(to, data.text, data.bytes);
        to[data.bytes] = '\0';
        event->data = to;
        event->data_bytes = data.bytes;
    }
    if (headers.text != NULL && trouble == NULL && !take_headers(event, block, headers, is_checked))
        trouble = "headers are not a JSON object of strings, integers and booleans with names "
                  "[a-z0-9]";
    if (trouble == NULL && !is_checked)
        trouble = row_trouble(reader, event, texts);
    row->trouble = trouble;
    batch->count++;
    return IE_OK;
}

ie_status
ie__reader_after(ie__reader *reader, ie__batch *batch, int64_t after, int64_t until,
                 size_t rows_max, size_t bytes_max, ie_error *err)
{
    size_t    taken = 0;
    ie_status status = IE_OK;
    int       rc = SQLITE_DONE;

    if (rows_max > batch->capacity - batch->count)
        rows_max = batch->capacity - batch->count;
    if (rows_max == 0)
        return IE_OK;
    (void)sqlite3_bind_int64(reader->after, 1, after);
    (void)sqlite3_bind_int64(reader->after, 2, until);
    (void)sqlite3_bind_int64(reader->after, 3, (sqlite3_int64)rows_max);
    while (status == IE_OK && (taken == 0 || taken < bytes_max) &&
           (rc = sqlite3_step(reader->after)) == SQLITE_ROW) {
        status = take_row(reader, batch, reader->after, err);
        if (status == IE_OK)
            taken += batch->rows[batch->count - 1].bytes;
    }
    if (status == IE_OK && rc != SQLITE_ROW && rc != SQLITE_DONE)
        status = ie__sql_fail(reader->db, rc, "read events", err);
    (void)sqlite3_reset(
        reader->after); /* ends the read transaction: none is held while publishing */
    return status;
}

ie_status
ie__reader_at(ie__reader *reader, ie__batch *batch, int64_t position, ie_error *err)
{
    ie_status status;
    int       rc;

    if (batch->count == batch->capacity)
        return ie_error_set(err, IE_ELIMIT, "read event: the batch is full");
    (void)sqlite3_bind_int64(reader->at, 1, position);
    rc = sqlite3_step(reader->at);
    if (rc == SQLITE_ROW)
        status = take_row(reader, batch, reader->at, err);
    else if (rc == SQLITE_DONE)
        status = ie_error_set(err, IE_ENOTFOUND, "no event at position %lld", (long long)position);
    else
        status = ie__sql_fail(reader->db, rc, "read event", err);
    (void)sqlite3_reset(reader->at);
    return status;
}

ie_status
ie__reader_ends(ie__reader *reader, int64_t after, int64_t *next, int64_t *newest, ie_error *err)
{
    ie_status status = IE_OK;
    int       rc;

    (void)sqlite3_bind_int64(reader->ends, 1, after);
    rc = sqlite3_step(reader->ends);
    if (rc == SQLITE_ROW) {
        *next = sqlite3_column_int64(reader->ends, 0); /* NULL reads as 0 */
        *newest = sqlite3_column_int64(reader->ends, 1);
    } else {
        status = ie__sql_fail(reader->db, rc, "read events", err);
    }
    (void)sqlite3_reset(reader->ends);
    return status;
}

/* ---- by id ---- */

static bool
uuid7_time(int64_t *ms, const char *id)
{
    int64_t value = 0;
    int     digits = 0;

    if (strlen(id) != 36 || id[14] != '7')
        return false;
    for (int i = 0; digits < 12; i++) {
        const char c = id[i];

        if (c == '-')
            continue;
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (c >= 'a' && c <= 'f')
            value = value * 16 + (c - 'a' + 10);
        else
            return false;
        digits++;
    }
    *ms = value;
    return true;
}

/* The first position whose time is not before ms, by bisection; times are nearly in order. */
static ie_status
position_at_time(int64_t *out, sqlite3 *db, sqlite3_stmt *probe, int64_t low, int64_t high,
                 int64_t ms, ie_error *err)
{
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        int           rc;

        (void)sqlite3_bind_int64(probe, 1, middle);
        rc = sqlite3_step(probe);
        if (rc == SQLITE_ROW && sqlite3_column_int64(probe, 0) < ms)
            low = middle + 1;
        else if (rc == SQLITE_ROW || rc == SQLITE_DONE)
            high = middle;
        (void)sqlite3_reset(probe);
        if (rc != SQLITE_ROW && rc != SQLITE_DONE)
            return ie__sql_fail(db, rc, "find event", err);
    }
    *out = low;
    return IE_OK;
}

static ie_status
find_between(int64_t *out, sqlite3 *db, const char *id, int64_t low, int64_t high, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status =
        ie__sql_prepare(&stmt, db,
                        "SELECT position FROM main.ie_event WHERE position BETWEEN ?1"
                        " AND ?2 AND id = ?3 ORDER BY position DESC LIMIT 1",
                        err);

    if (status == IE_OK) {
        int rc;

        (void)sqlite3_bind_int64(stmt, 1, low);
        (void)sqlite3_bind_int64(stmt, 2, high);
        (void)sqlite3_bind_text(stmt, 3, id, -1, SQLITE_STATIC);
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW)
            *out = sqlite3_column_int64(stmt, 0);
        else if (rc != SQLITE_DONE)
            status = ie__sql_fail(db, rc, "find event", err);
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

ie_status
ie__log_find(int64_t *out, sqlite3 *db, const char *id, ie_error *err)
{
    sqlite3_stmt *probe = NULL;
    int64_t       oldest = 0;
    int64_t       newest = 0;
    int64_t       near = 0;
    int64_t       ms = 0;
    ie_status     status;

    *out = 0;
    status = ie__sql_int(&oldest, db, "SELECT min(position) FROM main.ie_event", 0, err);
    if (status == IE_OK)
        status = ie__sql_int(&newest, db, "SELECT max(position) FROM main.ie_event", 0, err);
    if (status == IE_OK && uuid7_time(&ms, id) && newest - oldest > 20000) {
        status = ie__sql_prepare(
            &probe, db,
            "SELECT time FROM main.ie_event WHERE position >= ?1 ORDER BY position LIMIT 1", err);
        if (status == IE_OK)
            status = position_at_time(&near, db, probe, oldest, newest, ms, err);
        (void)sqlite3_finalize(probe);
        if (status == IE_OK)
            status = find_between(out, db, id, near - 5000, near + 5000, err);
    }
    if (status == IE_OK && *out == 0)
        status = find_between(out, db, id, INT64_MIN, INT64_MAX, err);
    return status;
}
