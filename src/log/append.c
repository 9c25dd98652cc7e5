/*
 * Writing an event: one cached INSERT on the host's connection.
 *
 * Invariant: this file never begins, commits or rolls back. The caller's rows and ours live or die
 * together, and only the caller knows where that ends.
 */
#include "log.h"

#include <string.h>

#include "core.h"
#include "headers.h"
#include "json.h"

struct ie__appender {
    sqlite3        *db;
    sqlite3_stmt   *insert;
    const ie_clock *clock;
    char           *source;  /* what NULL in the column stands for */
    ie_buffer       headers; /* reused, so that the hot path allocates nothing */
    bool            is_utf16;
};

static const char INSERT_SQL[] =
    "INSERT INTO main.ie_event (id, topic, key, type, source, time, not_before, expires_at,"
    " content_type, headers, dedupe_key, data, checked)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 1)";

ie_status
ie__appender_open(ie__appender **out, sqlite3 *db, const char *source, const ie_clock *clock,
                  ie_error *err)
{
    ie__appender *appender = ie__calloc(1, sizeof *appender);
    char          encoding[16];
    ie_status     status;

    if (appender == NULL)
        return ie_error_set(err, IE_ENOMEM, "open appender: out of memory");
    appender->db = db;
    appender->clock = ie__clock_or_system(clock);
    appender->source = ie__strdup(source);
    status = source != NULL && appender->source == NULL
                 ? ie_error_set(err, IE_ENOMEM, "open appender: out of memory")
                 : ie__sql_prepare(&appender->insert, db, INSERT_SQL, err);
    if (status == IE_OK)
        status = ie__sql_text(encoding, sizeof encoding, db, "PRAGMA main.encoding", "UTF-8", err);
    if (status != IE_OK) {
        ie__appender_close(appender);
        return status;
    }
    appender->is_utf16 = strcmp(encoding, "UTF-8") != 0;
    *out = appender;
    return IE_OK;
}

void
ie__appender_close(ie__appender *appender)
{
    if (appender == NULL)
        return;
    (void)sqlite3_finalize(appender->insert);
    ie_buffer_fini(&appender->headers);
    ie__free(appender->source);
    ie__free(appender);
}

/* What is not given needs no call: the statement comes with its bindings cleared, which are NULL.
 */
static int
bind_text(sqlite3_stmt *stmt, int index, const char *text)
{
    return text != NULL ? sqlite3_bind_text(stmt, index, text, -1, SQLITE_STATIC) : SQLITE_OK;
}

static int
bind_time(sqlite3_stmt *stmt, int index, int64_t ms)
{
    return ms != 0 ? sqlite3_bind_int64(stmt, index, ms) : SQLITE_OK;
}

static int
bind_headers(sqlite3_stmt *stmt, int index, const ie_buffer *headers)
{
    return headers->size != 0
               ? sqlite3_bind_text(stmt, index, headers->data, (int)headers->size, SQLITE_STATIC)
               : SQLITE_OK;
}

/* Is it text without a NUL? Data that is JSON has been found to be when the event was checked. */
static bool
is_text(const ie_event *event)
{
    return ie__json_is_media_type(event->content_type) ||
           (strncmp(event->content_type, "text/", 5) == 0 &&
            memchr(event->data, 0, event->data_bytes) == NULL &&
            ie__utf8_is_valid(event->data, event->data_bytes));
}

/* SQLite's way to UTF-16 turns U+FFFE and U+FFFF into U+FFFD; our bytes stay as they are. */
static bool
survives_utf16(const void *data, size_t bytes)
{
    return memmem(data, bytes, "\xEF\xBF\xBE", 3) == NULL &&
           memmem(data, bytes, "\xEF\xBF\xBF", 3) == NULL;
}

/* Text where a person with a SQL shell can read it, a blob otherwise: the same bytes either way. */
static int
bind_data(ie__appender *appender, int index, const ie_event *event)
{
    sqlite3_stmt *stmt = appender->insert;

    if (event->data_bytes == 0)
        return event->data == NULL ? SQLITE_OK : sqlite3_bind_zeroblob(stmt, index, 0);
    if (is_text(event) && (!appender->is_utf16 || survives_utf16(event->data, event->data_bytes)))
        return sqlite3_bind_text(stmt, index, event->data, (int)event->data_bytes, SQLITE_STATIC);
    return sqlite3_bind_blob(stmt, index, event->data, (int)event->data_bytes, SQLITE_STATIC);
}

/* A value that equals what NULL stands for is not stored: rows are smaller, and say the same. */
static const char *
unless_default(const char *value, const char *fallback)
{
    return value != NULL && fallback != NULL && strcmp(value, fallback) == 0 ? NULL : value;
}

static ie_status
bind_event(ie__appender *appender, const ie_event *event, const char *id, ie_error *err)
{
    sqlite3_stmt *stmt = appender->insert;
    const int64_t time_ms = event->time_ms != 0 ? event->time_ms : ie__wall_ms(appender->clock);
    ie_status     status;
    bool          is_bound;

    appender->headers.size = 0;
    status = ie__headers_encode(&appender->headers, event);
    if (status != IE_OK)
        return ie_error_set(err, status, "encode headers: %s", ie_status_text(status));
    /* The first failure ends it: a bind that works makes SQLite forget the one before it. */
    is_bound =
        sqlite3_bind_text(stmt, 1, id, -1, SQLITE_STATIC) == SQLITE_OK &&
        sqlite3_bind_text(stmt, 2, event->topic, -1, SQLITE_STATIC) == SQLITE_OK &&
        bind_text(stmt, 3, event->key) == SQLITE_OK &&
        bind_text(stmt, 4, unless_default(event->type, event->topic)) == SQLITE_OK &&
        bind_text(stmt, 5, unless_default(event->source, appender->source)) == SQLITE_OK &&
        sqlite3_bind_int64(stmt, 6, time_ms) == SQLITE_OK &&
        bind_time(stmt, 7, event->not_before_ms) == SQLITE_OK &&
        bind_time(stmt, 8, event->expires_at_ms) == SQLITE_OK &&
        bind_text(stmt, 9, unless_default(event->content_type, "application/json")) == SQLITE_OK &&
        bind_headers(stmt, 10, &appender->headers) == SQLITE_OK &&
        bind_text(stmt, 11, event->dedupe_key) == SQLITE_OK &&
        bind_data(appender, 12, event) == SQLITE_OK;
    return is_bound ? IE_OK
                    : ie__sql_fail(appender->db, sqlite3_errcode(appender->db), "bind event", err);
}

ie_status
ie__append(ie__appender *appender, const ie_event *event, char *id_out, ie_error *err)
{
    const bool  was_open = sqlite3_get_autocommit(appender->db) == 0;
    char        made[IE_ID_SIZE];
    const char *id = event->id;
    ie_status   status;

    if (id == NULL) {
        ie_id_new(made);
        id = made;
    }
    status = bind_event(appender, event, id, err);
    if (status == IE_OK) {
        const int rc = sqlite3_step(appender->insert);

        /* Some failures (full, I/O, memory, interrupt, ON CONFLICT ROLLBACK) end the host's
         * transaction, and then that is what the host has to hear. */
        if (was_open && sqlite3_get_autocommit(appender->db) != 0)
            status = IE_ETXN_ABORTED;
        else if (rc == SQLITE_DONE && sqlite3_changes(appender->db) != 1)
            status = ie_error_set(err, IE_ESWALLOWED,
                                  "append event to %s: a trigger on ie_event swallowed the insert; "
                                  "nothing was written",
                                  event->topic);
        else if (rc != SQLITE_DONE)
            status = ie__sql_fail(appender->db, rc, "append event", err);
        (void)sqlite3_reset(appender->insert); /* repeats the error that step reported */
    }
    if (status == IE_ETXN_ABORTED)
        (void)ie_error_set(err, status,
                           "append event: SQLite rolled the whole transaction back (%s); run it "
                           "again from its start",
                           sqlite3_errmsg(appender->db));
    /* The host may print its statements (sqlite3_expanded_sql), also after the event is gone. */
    (void)sqlite3_clear_bindings(appender->insert);
    if (status == IE_OK && event->id == NULL && id_out != NULL)
        memcpy(id_out, made, sizeof made);
    return status;
}
