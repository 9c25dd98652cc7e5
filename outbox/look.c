/* One consistent look at an outbox, for inspect.c and why.c. */
#include "look.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ie/migrate.h>

#include "core.h"

#define PATTERNS_MAX 64

/* ---- patterns ---- */

ie_status
ie__look_split(char *text, char ***patterns, size_t *count, ie_error *err)
{
    char  *save = NULL;
    char **list = ie__calloc(PATTERNS_MAX, sizeof *list);

    if (list == NULL)
        return ie_error_set(err, IE_ENOMEM, "topics: out of memory");
    *count = 0;
    for (char *at = strtok_r(text, ", \t\n", &save); at != NULL;
         at = strtok_r(NULL, ", \t\n", &save)) {
        if (*count == PATTERNS_MAX) {
            ie__free(list);
            return ie_error_set(err, IE_EINVAL, "topics: more than %d patterns", PATTERNS_MAX);
        }
        if (ie_pattern_check(at, err) != IE_OK) {
            ie__free(list);
            return IE_EINVAL;
        }
        list[(*count)++] = at;
    }
    *patterns = list;
    return IE_OK;
}

bool
ie__look_is_routed(const ie__look_cursor *cursor, const char *topic)
{
    /* The worker looks at an event's own faults before it looks where it goes. */
    if (cursor->pattern_count == 0 || ie_topic_check(topic, NULL) != IE_OK)
        return true;
    for (size_t i = 0; i < cursor->pattern_count; i++)
        if (ie_pattern_matches(cursor->patterns[i], topic))
            return true;
    return false;
}

/* ---- cursors ---- */

static void
cursors_free(ie__look *look)
{
    for (size_t i = 0; i < look->cursor_count; i++) {
        ie__free(look->cursors[i].topics);
        ie__free(look->cursors[i].words);
        ie__free(look->cursors[i].patterns);
    }
    ie__free(look->cursors);
    look->cursors = NULL;
    look->cursor_count = 0;
}

enum {
    C_NAME,
    C_POSITION,
    C_CLAIMED_TO,
    C_EPOCH,
    C_OWNER,
    C_BOOT_ID,
    C_LEASE_UNTIL,
    C_SEEN_AT,
    C_DESTINATION,
    C_TOPICS,
    C_ORDER,
    C_BREAKER,
    C_BREAKER_SINCE,
    C_BREAKER_UNTIL
};

static void
cursor_owner(ie__look_cursor *cursor, sqlite3_stmt *stmt, int64_t now_ms)
{
    const int64_t boot_ms = ie__boot_ms(&ie__system_clock);
    const int64_t until_ms = sqlite3_column_int64(stmt, C_LEASE_UNTIL);
    const char   *boot_id = ie__sql_column_text(stmt, C_BOOT_ID);

    (void)snprintf(cursor->owner, sizeof cursor->owner, "%s", ie__sql_column_text(stmt, C_OWNER));
    if (cursor->owner[0] == '\0')
        return;
    cursor->is_gone = ie__owner_is_gone(cursor->owner, boot_id);
    /* The rule of the lease itself: see ie__cursor_take(). */
    cursor->is_alive = !cursor->is_gone && until_ms > boot_ms && until_ms <= boot_ms + 86400000;
    if (strcmp(boot_id, ie__boot_id()) == 0)
        cursor->lease_until_ms = now_ms + (until_ms - boot_ms);
}

static ie_status
cursor_fill(ie__look_cursor *cursor, sqlite3_stmt *stmt, int64_t now_ms, ie_error *err)
{
    (void)snprintf(cursor->name, sizeof cursor->name, "%s", ie__sql_column_text(stmt, C_NAME));
    cursor->position = sqlite3_column_int64(stmt, C_POSITION);
    cursor->claimed_to = sqlite3_column_int64(stmt, C_CLAIMED_TO);
    cursor->epoch = sqlite3_column_int64(stmt, C_EPOCH);
    cursor->seen_at_ms = sqlite3_column_int64(stmt, C_SEEN_AT);
    cursor->breaker_since_ms = sqlite3_column_int64(stmt, C_BREAKER_SINCE);
    cursor->breaker_until_ms = sqlite3_column_int64(stmt, C_BREAKER_UNTIL);
    (void)snprintf(cursor->destination, sizeof cursor->destination, "%s",
                   ie__sql_column_text(stmt, C_DESTINATION));
    (void)snprintf(cursor->order, sizeof cursor->order, "%s", ie__sql_column_text(stmt, C_ORDER));
    (void)snprintf(cursor->breaker, sizeof cursor->breaker, "%s",
                   ie__sql_column_text(stmt, C_BREAKER));
    cursor_owner(cursor, stmt, now_ms);
    cursor->topics = ie__strdup(ie__sql_column_text(stmt, C_TOPICS));
    cursor->words = ie__strdup(cursor->topics);
    if (cursor->topics == NULL || cursor->words == NULL)
        return ie_error_set(err, IE_ENOMEM, "read cursors: out of memory");
    return ie__look_split(cursor->words, &cursor->patterns, &cursor->pattern_count, err);
}

static ie_status
cursor_missing(ie__look *look, const char *only, ie_error *err)
{
    char names[160];

    if (ie__sql_text(names, sizeof names, look->db,
                     "SELECT group_concat(name, ', ') FROM main.ie_cursor", "none yet",
                     err) != IE_OK)
        return err != NULL ? err->status : IE_EIO;
    return ie_error_set(err, IE_ENOTFOUND, "no destination is named '%s'; there are: %s", only,
                        names);
}

ie_status
ie__look_cursors(ie__look *look, const char *only, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    size_t        capacity = 0;
    int           rc = SQLITE_DONE;
    ie_status     status;

    cursors_free(look);
    look->now_ms = ie__wall_ms(&ie__system_clock);
    status =
        ie__sql_prepare(&stmt, look->db,
                        "SELECT name, position, claimed_to, epoch, owner, boot_id, lease_until,"
                        " seen_at, destination, topics, event_order, breaker, breaker_since,"
                        " breaker_until FROM main.ie_cursor WHERE ?1 IS NULL OR name = ?1"
                        " ORDER BY name",
                        err);
    if (status == IE_OK && only != NULL)
        (void)sqlite3_bind_text(stmt, 1, only, -1, SQLITE_STATIC);
    while (status == IE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (look->cursor_count == IE__LOOK_CURSORS_MAX) {
            status = ie_error_set(err, IE_ELIMIT, "more than %d cursors", IE__LOOK_CURSORS_MAX);
            break;
        }
        if (look->cursor_count == capacity) {
            ie__look_cursor *grown;

            capacity = capacity != 0 ? 2 * capacity : 4;
            grown = ie__realloc_array(look->cursors, capacity, sizeof *grown);
            if (grown == NULL) {
                status = ie_error_set(err, IE_ENOMEM, "read cursors: out of memory");
                break;
            }
            look->cursors = grown;
        }
        memset(&look->cursors[look->cursor_count], 0, sizeof look->cursors[0]);
        look->cursor_count++; /* so that what was filled in is released with the rest */
        status = cursor_fill(&look->cursors[look->cursor_count - 1], stmt, look->now_ms, err);
    }
    if (status == IE_OK && rc != SQLITE_DONE)
        status = ie__sql_fail(look->db, rc, "read cursors", err);
    (void)sqlite3_finalize(stmt);
    if (status == IE_OK && only != NULL && look->cursor_count == 0)
        status = cursor_missing(look, only, err);
    return status;
}

/* ---- begin and end ---- */

ie_status
ie__look_begin(ie__look *look, sqlite3 *db, const char *only, ie_error *err)
{
    char      source[IE_ATTRIBUTE_BYTES_MAX + 1];
    ie_status status = IE_OK;

    memset(look, 0, sizeof *look);
    look->db = db;
    if (sqlite3_get_autocommit(db) != 0) {
        status = ie__sql_exec(db, "BEGIN", err);
        look->owns_transaction = status == IE_OK;
    }
    if (status == IE_OK)
        status = ie_migrate_check(db, err);
    if (status == IE_OK)
        status = ie__look_cursors(look, only, err);
    if (status == IE_OK)
        status = ie__sql_prepare(&look->delivery, db,
                                 "SELECT state, attempts, claims, due_at, since, reason"
                                 " FROM main.ie_delivery WHERE cursor = ?1 AND position = ?2",
                                 err);
    if (status == IE_OK)
        status = ie__sql_text(source, sizeof source, db,
                              "SELECT value FROM main.ie_meta WHERE name = 'source'", "/ie", err);
    if (status == IE_OK)
        status = ie__reader_open(&look->reader, db, source, err);
    if (status == IE_OK && ie__batch_new(&look->batch, 1) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "look into the log: out of memory");
    return status;
}

void
ie__look_end(ie__look *look)
{
    cursors_free(look);
    (void)sqlite3_finalize(look->delivery);
    ie__reader_close(look->reader);
    ie__batch_free(look->batch);
    if (look->owns_transaction)
        ie__sql_rollback(look->db); /* nothing was written */
}

/* ---- one event ---- */

ie_status
ie__look_delivery(ie__look *look, const char *cursor, int64_t position, ie__look_row *row,
                  ie_error *err)
{
    sqlite3_stmt *stmt = look->delivery;
    ie_status     status = IE_OK;
    int           rc;

    memset(row, 0, sizeof *row);
    (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, position);
    rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW) {
        row->exists = true;
        status = ie_state_parse(&row->state, ie__sql_column_text(stmt, 0), err);
        row->attempts = (uint32_t)sqlite3_column_int64(stmt, 1);
        row->claims = (uint32_t)sqlite3_column_int64(stmt, 2);
        row->due_at_ms = sqlite3_column_int64(stmt, 3);
        row->since_ms = sqlite3_column_int64(stmt, 4);
        (void)snprintf(row->reason, sizeof row->reason, "%s", ie__sql_column_text(stmt, 5));
        row->reason[ie__utf8_valid_prefix(row->reason, strlen(row->reason))] = '\0';
    } else if (rc != SQLITE_DONE) {
        status = ie__sql_fail(look->db, rc, "read delivery", err);
    }
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__look_event(ie__look *look, int64_t position, const ie_event **event, ie_error *err)
{
    ie_status status;

    ie__batch_clear(look->batch);
    status = ie__reader_at(look->reader, look->batch, position, err);
    if (status == IE_OK)
        *event = &look->batch->rows[0].event;
    return status;
}

ie_state
ie__look_state(const ie__look_cursor *cursor, const ie__look_row *row, int64_t position)
{
    if (row->exists)
        return row->state;
    if (position <= cursor->position)
        return IE_STATE_PUBLISHED;
    return cursor->is_alive && position <= cursor->claimed_to ? IE_STATE_IN_PROGRESS
                                                              : IE_STATE_PENDING;
}

bool
ie__look_is_held(const ie__look_cursor *cursor, const ie__look_row *row, int64_t position)
{
    return cursor->is_alive &&
           (position > cursor->position || (row->claims > 0 && (row->state == IE_STATE_RETRYING ||
                                                                row->state == IE_STATE_SCHEDULED)));
}

long
ie__look_owner_process(const char *owner)
{
    const char *at = strchr(owner, ':');

    return at != NULL ? strtol(at + 1, NULL, 10) : 0;
}

/* ---- time ---- */

void
ie__look_span(char out[IE__SPAN_SIZE], int64_t ms)
{
    const struct {
        int64_t     below_ms;
        int64_t     unit_ms;
        const char *name;
    } units[] = {
        {1000, 1, "ms"},
        {60000, 1000, "s"},
        {7200000, 60000, "min"},
        {172800000, 3600000, "h"},
    };

    if (ms < 0)
        ms = 0;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        if (ms < units[i].below_ms) {
            (void)snprintf(out, IE__SPAN_SIZE, "%" PRId64 " %s", ms / units[i].unit_ms,
                           units[i].name);
            return;
        }
    (void)snprintf(out, IE__SPAN_SIZE, "%" PRId64 " days", ms / 86400000);
}

void
ie__look_when(char out[IE__WHEN_SIZE], int64_t now_ms, int64_t at_ms)
{
    char span[IE__SPAN_SIZE];
    char utc[IE_TIME_TEXT_SIZE];

    ie__time_format(utc, at_ms);
    ie__look_span(span, at_ms > now_ms ? at_ms - now_ms : now_ms - at_ms);
    if (at_ms > now_ms)
        (void)snprintf(out, IE__WHEN_SIZE, "in %s (%s)", span, utc);
    else
        (void)snprintf(out, IE__WHEN_SIZE, "%s ago (%s)", span, utc);
}
