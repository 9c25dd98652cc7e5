/* Deliveries: what went wrong with single events, one row each, only while it lasts. */
#include "log.h"

#include <stdio.h>
#include <string.h>

#include "core.h"

struct ie__deliveries {
    sqlite3        *db;
    const ie_clock *clock;
    char            cursor[IE__CURSOR_NAME_BYTES_MAX + 1];
    char            key[IE_ATTRIBUTE_BYTES_MAX + 1];
    char            reason[IE__REASON_BYTES_MAX + 1];
    sqlite3_stmt   *put;
    sqlite3_stmt   *remove;
    sqlite3_stmt   *get;
    sqlite3_stmt   *due;
    sqlite3_stmt   *next_due;
    sqlite3_stmt   *key_held;
    sqlite3_stmt   *release_key;
    sqlite3_stmt   *held_keys;
    sqlite3_stmt   *claim;
    sqlite3_stmt   *recover;
    sqlite3_stmt   *unclaim;
    sqlite3_stmt   *expired;
};

ie_status
ie__deliveries_open(ie__deliveries **out, sqlite3 *db, const ie_clock *clock, const char *cursor,
                    ie_error *err)
{
    ie__deliveries *d = ie__calloc(1, sizeof *d);
    ie_status       status = IE_OK;

    if (d == NULL)
        return ie_error_set(err, IE_ENOMEM, "open deliveries: out of memory");
    d->db = db;
    d->clock = ie__clock_or_system(clock);
    (void)snprintf(d->cursor, sizeof d->cursor, "%s", cursor);
    const struct {
        sqlite3_stmt **stmt;
        const char    *sql;
    } statements[] = {
        {&d->put,
         "INSERT INTO main.ie_delivery (cursor, position, state, key, attempts, claims, due_at,"
         " expires_at, since, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
         " ON CONFLICT (cursor, position) DO UPDATE SET state = excluded.state,"
         " attempts = excluded.attempts, claims = excluded.claims, due_at = excluded.due_at,"
         " since = excluded.since, reason = excluded.reason"},
        {&d->remove, "DELETE FROM main.ie_delivery WHERE cursor = ?1 AND position = ?2"},
        {&d->get, "SELECT position, state, key, attempts, claims, due_at, expires_at, since, reason"
                  " FROM main.ie_delivery WHERE cursor = ?1 AND position = ?2"},
        {&d->due,
         /* Three ranges of one index, merged: what is not due is not looked at. */
         "SELECT position, due_at FROM main.ie_delivery"
         " WHERE cursor = ?1 AND state = 'retrying' AND due_at <= ?2"
         " UNION ALL SELECT position, due_at FROM main.ie_delivery"
         " WHERE cursor = ?1 AND state = 'scheduled' AND due_at <= ?2"
         " UNION ALL SELECT position, due_at FROM main.ie_delivery"
         " WHERE cursor = ?1 AND state = 'retrying' AND due_at > ?3 AND since > ?2 + 1000"
         " ORDER BY 2, 1 LIMIT ?4"},
        {&d->next_due, "SELECT min(due_at) FROM (SELECT min(due_at) AS due_at FROM main.ie_delivery"
                       " WHERE cursor = ?1 AND state = 'retrying' AND due_at IS NOT NULL"
                       " UNION ALL SELECT min(due_at) FROM main.ie_delivery"
                       " WHERE cursor = ?1 AND state = 'scheduled' AND due_at IS NOT NULL)"},
        {&d->key_held,
         "SELECT 1 FROM main.ie_delivery WHERE cursor = ?1 AND key = ?2 AND position < ?3"
         " AND state IN ('retrying', 'blocked') LIMIT 1"},
        {&d->release_key,
         "UPDATE main.ie_delivery SET state = 'retrying', due_at = ?3, since = ?3, reason = ''"
         " WHERE cursor = ?1 AND position = (SELECT position FROM main.ie_delivery"
         " WHERE cursor = ?1 AND key = ?2 AND state IN ('retrying', 'blocked') ORDER BY position"
         " LIMIT 1) AND state = 'blocked'"},
        {&d->held_keys,
         "SELECT DISTINCT key FROM main.ie_delivery WHERE cursor = ?1 AND key IS NOT NULL"
         " AND state IN ('retrying', 'blocked')"},
        {&d->claim, "UPDATE main.ie_delivery SET claims = claims + 1, due_at = ?3 WHERE cursor = ?1"
                    " AND position = ?2"},
        {&d->recover,
         "UPDATE main.ie_delivery SET due_at = ?2 WHERE cursor = ?1 AND state = 'retrying'"
         " AND claims > 0"},
        {&d->unclaim, "UPDATE main.ie_delivery SET due_at = ?2, claims = 0 WHERE cursor = ?1"
                      " AND state = 'retrying' AND claims > 0"},
        {&d->expired,
         "SELECT position FROM main.ie_delivery WHERE cursor = ?1 AND expires_at IS NOT NULL"
         " AND state IN ('retrying', 'blocked', 'scheduled') AND expires_at <= ?2 LIMIT ?3"},
    };
    for (size_t i = 0; status == IE_OK && i < sizeof statements / sizeof statements[0]; i++)
        status = ie__sql_prepare(statements[i].stmt, db, statements[i].sql, err);
    if (status != IE_OK) {
        ie__deliveries_close(d);
        return status;
    }
    *out = d;
    return IE_OK;
}

void
ie__deliveries_close(ie__deliveries *d)
{
    if (d == NULL)
        return;
    (void)sqlite3_finalize(d->put);
    (void)sqlite3_finalize(d->remove);
    (void)sqlite3_finalize(d->get);
    (void)sqlite3_finalize(d->due);
    (void)sqlite3_finalize(d->next_due);
    (void)sqlite3_finalize(d->key_held);
    (void)sqlite3_finalize(d->release_key);
    (void)sqlite3_finalize(d->held_keys);
    (void)sqlite3_finalize(d->claim);
    (void)sqlite3_finalize(d->recover);
    (void)sqlite3_finalize(d->unclaim);
    (void)sqlite3_finalize(d->expired);
    ie__free(d);
}

static sqlite3_stmt *
for_cursor(ie__deliveries *d, sqlite3_stmt *stmt)
{
    (void)sqlite3_bind_text(stmt, 1, d->cursor, -1, SQLITE_STATIC);
    return stmt;
}

static sqlite3_stmt *
for_position(ie__deliveries *d, sqlite3_stmt *stmt, int64_t position)
{
    (void)sqlite3_bind_int64(for_cursor(d, stmt), 2, position);
    return stmt;
}

static void
bind_time_or_null(sqlite3_stmt *stmt, int index, int64_t ms)
{
    if (ms != 0)
        (void)sqlite3_bind_int64(stmt, index, ms);
    else
        (void)sqlite3_bind_null(stmt, index);
}

ie_status
ie__delivery_put(ie__deliveries *d, const ie__delivery *row, ie_error *err)
{
    sqlite3_stmt *stmt = for_position(d, d->put, row->position);
    size_t        reason_bytes = row->reason != NULL ? strlen(row->reason) : 0;

    if (reason_bytes > IE__REASON_BYTES_MAX)
        reason_bytes = IE__REASON_BYTES_MAX;
    reason_bytes = ie__utf8_valid_prefix(row->reason != NULL ? row->reason : "", reason_bytes);
    (void)sqlite3_bind_text(stmt, 3, ie_state_name(row->state), -1, SQLITE_STATIC);
    (void)sqlite3_bind_text(stmt, 4, row->key, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 5, row->attempts);
    (void)sqlite3_bind_int64(stmt, 6, row->claims);
    bind_time_or_null(stmt, 7, row->due_at_ms);
    bind_time_or_null(stmt, 8, row->expires_at_ms);
    (void)sqlite3_bind_int64(stmt, 9, row->since_ms);
    (void)sqlite3_bind_text(stmt, 10, row->reason != NULL ? row->reason : "", (int)reason_bytes,
                            SQLITE_STATIC);
    return ie__sql_run(d->db, stmt, "write delivery", err);
}

ie_status
ie__delivery_remove(ie__deliveries *d, int64_t position, ie_error *err)
{
    return ie__sql_run(d->db, for_position(d, d->remove, position), "remove delivery", err);
}

ie_status
ie__delivery_get(ie__deliveries *d, int64_t position, ie__delivery *out, ie_error *err)
{
    sqlite3_stmt *stmt = for_position(d, d->get, position);
    const int     rc = sqlite3_step(stmt);
    ie_status     status = IE_OK;

    if (rc == SQLITE_ROW) {
        memset(out, 0, sizeof *out);
        out->position = position;
        status = ie_state_parse(&out->state, ie__sql_column_text(stmt, 1), err);
        if (sqlite3_column_type(stmt, 2) != SQLITE_NULL) {
            (void)snprintf(d->key, sizeof d->key, "%s", ie__sql_column_text(stmt, 2));
            out->key = d->key;
        }
        out->attempts = (uint32_t)sqlite3_column_int64(stmt, 3);
        out->claims = (uint32_t)sqlite3_column_int64(stmt, 4);
        out->due_at_ms = sqlite3_column_int64(stmt, 5);
        out->expires_at_ms = sqlite3_column_int64(stmt, 6);
        out->since_ms = sqlite3_column_int64(stmt, 7);
        (void)snprintf(d->reason, sizeof d->reason, "%s", ie__sql_column_text(stmt, 8));
        out->reason = d->reason;
    } else if (rc == SQLITE_DONE) {
        status =
            ie_error_set(err, IE_ENOTFOUND, "no delivery at position %lld", (long long)position);
    } else {
        status = ie__sql_fail(d->db, rc, "read delivery", err);
    }
    (void)sqlite3_reset(stmt);
    return status;
}

/* The positions that a query gives. */
static ie_status
collect(ie__deliveries *d, sqlite3_stmt *stmt, int64_t *positions, size_t max, size_t *count,
        ie_error *err)
{
    ie_status status = IE_OK;
    int       rc = SQLITE_DONE;

    *count = 0;
    while (*count < max && (rc = sqlite3_step(stmt)) == SQLITE_ROW)
        positions[(*count)++] = sqlite3_column_int64(stmt, 0);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        status = ie__sql_fail(d->db, rc, "read deliveries", err);
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__delivery_due(ie__deliveries *d, int64_t now_ms, int64_t ahead_ms_max, int64_t *positions,
                 size_t max, size_t *count, ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->due);

    (void)sqlite3_bind_int64(stmt, 2, now_ms);
    (void)sqlite3_bind_int64(stmt, 3, now_ms + ahead_ms_max);
    (void)sqlite3_bind_int64(stmt, 4, (sqlite3_int64)max);
    return collect(d, stmt, positions, max, count, err);
}

ie_status
ie__delivery_next_due(ie__deliveries *d, int64_t *due_at_ms, ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->next_due);
    const int     rc = sqlite3_step(stmt);
    ie_status     status = IE_OK;

    *due_at_ms = INT64_MAX;
    if (rc == SQLITE_ROW && sqlite3_column_type(stmt, 0) != SQLITE_NULL)
        *due_at_ms = sqlite3_column_int64(stmt, 0);
    else if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        status = ie__sql_fail(d->db, rc, "read deliveries", err);
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__delivery_key_held(ie__deliveries *d, const char *key, int64_t before, bool *is_held,
                      ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->key_held);
    ie_status     status = IE_OK;
    int           rc;

    (void)sqlite3_bind_text(stmt, 2, key, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 3, before);
    rc = sqlite3_step(stmt);
    *is_held = rc == SQLITE_ROW;
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        status = ie__sql_fail(d->db, rc, "read deliveries", err);
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__delivery_release_key(ie__deliveries *d, const char *key, bool *released, ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->release_key);
    ie_status     status;

    (void)sqlite3_bind_text(stmt, 2, key, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 3, ie__wall_ms(d->clock));
    status = ie__sql_run(d->db, stmt, "release key", err);
    *released = status == IE_OK && sqlite3_changes(d->db) == 1;
    return status;
}

ie_status
ie__delivery_held_keys(ie__deliveries *d, void (*each)(void *user, const char *key), void *user,
                       ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->held_keys);
    ie_status     status = IE_OK;
    int           rc;

    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
        each(user, ie__sql_column_text(stmt, 0));
    if (rc != SQLITE_DONE)
        status = ie__sql_fail(d->db, rc, "read deliveries", err);
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__delivery_claim(ie__deliveries *d, int64_t position, int64_t due_at_ms, ie_error *err)
{
    sqlite3_stmt *stmt = for_position(d, d->claim, position);

    (void)sqlite3_bind_int64(stmt, 3, due_at_ms);
    return ie__sql_run(d->db, stmt, "claim delivery", err);
}

ie_status
ie__deliveries_recover(ie__deliveries *d, ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->recover);

    (void)sqlite3_bind_int64(stmt, 2, ie__wall_ms(d->clock));
    return ie__sql_run(d->db, stmt, "recover deliveries", err);
}

ie_status
ie__deliveries_unclaim(ie__deliveries *d, ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->unclaim);

    (void)sqlite3_bind_int64(stmt, 2, ie__wall_ms(d->clock));
    return ie__sql_run(d->db, stmt, "release deliveries", err);
}

ie_status
ie__delivery_expired(ie__deliveries *d, int64_t now_ms, int64_t *positions, size_t max,
                     size_t *count, ie_error *err)
{
    sqlite3_stmt *stmt = for_cursor(d, d->expired);

    (void)sqlite3_bind_int64(stmt, 2, now_ms);
    (void)sqlite3_bind_int64(stmt, 3, (sqlite3_int64)max);
    return collect(d, stmt, positions, max, count, err);
}
