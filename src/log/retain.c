/*
 * Retention: what every cursor has passed and nobody has trouble with is removed in small
 * transactions, oldest first. The newest event always stays (positions are never given twice).
 */
#include "log.h"

#include "core.h"

#define DAY_MS INT64_C(86400000)

struct ie__cleaner {
    sqlite3        *db;
    const ie_clock *clock;
    sqlite3_stmt   *bound;
    sqlite3_stmt   *remove;
    sqlite3_stmt   *ended;
    int64_t         resume; /* events up to here were kept by a delivery when we last looked */
};

ie_status
ie__cleaner_open(ie__cleaner **out, sqlite3 *db, const ie_clock *clock, ie_error *err)
{
    ie__cleaner *cleaner = ie__calloc(1, sizeof *cleaner);
    ie_status    status;

    if (cleaner == NULL)
        return ie_error_set(err, IE_ENOMEM, "open cleaner: out of memory");
    cleaner->db = db;
    cleaner->clock = ie__clock_or_system(clock);
    cleaner->resume = INT64_MIN;
    /* Nothing may go before there is a cursor; the newest event stays. The end of the next run of
     * rows_max events, and the first of them that is still too young. */
    status = ie__sql_prepare(
        &cleaner->bound, db,
        "WITH run AS (SELECT position, time FROM main.ie_event WHERE position > ?1 AND position <="
        " (SELECT min(position) FROM main.ie_cursor)"
        " AND position < (SELECT max(position) FROM main.ie_event) ORDER BY position LIMIT ?2)"
        " SELECT max(position), min(CASE WHEN time > ?3 AND time <= ?4 THEN position END), count(*)"
        " FROM run",
        err);
    if (status == IE_OK)
        status = ie__sql_prepare(&cleaner->remove, db,
                                 "DELETE FROM main.ie_event WHERE position > ?1 AND position <= ?2"
                                 " AND NOT EXISTS (SELECT 1 FROM main.ie_delivery AS d"
                                 " WHERE d.position = ie_event.position)",
                                 err);
    if (status == IE_OK)
        status = ie__sql_prepare(
            &cleaner->ended, db,
            "DELETE FROM main.ie_delivery WHERE (cursor, position) IN (SELECT cursor, position"
            " FROM main.ie_delivery WHERE state = ?1 AND since <= ?2 LIMIT ?3)",
            err);
    if (status != IE_OK) {
        ie__cleaner_close(cleaner);
        return status;
    }
    *out = cleaner;
    return IE_OK;
}

void
ie__cleaner_close(ie__cleaner *cleaner)
{
    if (cleaner == NULL)
        return;
    (void)sqlite3_finalize(cleaner->bound);
    (void)sqlite3_finalize(cleaner->remove);
    (void)sqlite3_finalize(cleaner->ended);
    ie__free(cleaner);
}

void
ie__cleaner_restart(ie__cleaner *cleaner)
{
    cleaner->resume = INT64_MIN;
}

/* Deliveries that have ended and are old enough; their events go with a later run of events. */
static ie_status
clean_ended(ie__cleaner *cleaner, ie_state state, uint32_t retention_s, uint32_t rows_max,
            bool *more, ie_error *err)
{
    sqlite3_stmt *stmt = cleaner->ended;
    ie_status     status;

    (void)sqlite3_bind_text(stmt, 1, ie_state_name(state), -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, ie__wall_ms(cleaner->clock) - (int64_t)retention_s * 1000);
    (void)sqlite3_bind_int64(stmt, 3, rows_max);
    status = ie__sql_run(cleaner->db, stmt, "clean deliveries", err);
    if (status == IE_OK && sqlite3_changes(cleaner->db) > 0) {
        ie__cleaner_restart(cleaner); /* their events may go now */
        if ((uint32_t)sqlite3_changes(cleaner->db) >= rows_max)
            *more = true;
    }
    return status;
}

/* Which run of events may go: (after, last]; false when there is none. */
static ie_status
next_run(ie__cleaner *cleaner, const ie__retention *retention, int64_t *last, bool *is_full,
         ie_error *err)
{
    sqlite3_stmt *stmt = cleaner->bound;
    const int64_t now_ms = ie__wall_ms(cleaner->clock);
    ie_status     status = IE_OK;
    int           rc;

    *last = INT64_MIN;
    *is_full = false;
    (void)sqlite3_bind_int64(stmt, 1, cleaner->resume);
    (void)sqlite3_bind_int64(stmt, 2, retention->rows_max);
    (void)sqlite3_bind_int64(stmt, 3, now_ms - (int64_t)retention->published_s * 1000);
    /* A time is the application's word. One far ahead says nothing about the event's age, and must
     * not keep everything behind it for ever; a day forgives a clock that was set back. */
    (void)sqlite3_bind_int64(stmt, 4, now_ms + DAY_MS);
    rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && sqlite3_column_int64(stmt, 2) > 0) {
        const bool has_young = sqlite3_column_type(stmt, 1) != SQLITE_NULL;

        *last = has_young ? sqlite3_column_int64(stmt, 1) - 1 : sqlite3_column_int64(stmt, 0);
        *is_full = !has_young && sqlite3_column_int64(stmt, 2) >= (int64_t)retention->rows_max;
    } else if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
        status = ie__sql_fail(cleaner->db, rc, "clean events", err);
    }
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__cleaner_step(ie__cleaner *cleaner, const ie__retention *retention, uint64_t *removed,
                 bool *more, ie_error *err)
{
    const struct {
        ie_state state;
        uint32_t retention_s;
    } ended[] = {{IE_STATE_DEAD, retention->dead_s},
                 {IE_STATE_EXPIRED, retention->expired_s},
                 {IE_STATE_DISCARDED, retention->discarded_s}};
    int64_t   last = INT64_MIN;
    bool      is_full = false;
    ie_status status;

    *removed = 0;
    *more = false;
    status = ie__sql_begin(cleaner->db, err);
    if (status != IE_OK)
        return status;
    for (size_t i = 0; status == IE_OK && i < sizeof ended / sizeof ended[0]; i++)
        status = clean_ended(cleaner, ended[i].state, ended[i].retention_s, retention->rows_max,
                             more, err);
    if (status == IE_OK)
        status = next_run(cleaner, retention, &last, &is_full, err);
    if (status == IE_OK && last > cleaner->resume) {
        (void)sqlite3_bind_int64(cleaner->remove, 1, cleaner->resume);
        (void)sqlite3_bind_int64(cleaner->remove, 2, last);
        status = ie__sql_run(cleaner->db, cleaner->remove, "clean events", err);
        if (status == IE_OK)
            *removed = (uint64_t)sqlite3_changes(cleaner->db);
    }
    if (status != IE_OK) {
        ie__sql_rollback(cleaner->db);
        return status;
    }
    status = ie__sql_commit(cleaner->db, err);
    if (status == IE_OK && last > cleaner->resume) {
        cleaner->resume = last;
        *more = *more || is_full;
    }
    return status;
}
