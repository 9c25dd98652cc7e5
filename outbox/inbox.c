/*
 * The inbox: the handler's writes and the event's id in one transaction, so that handling takes
 * effect once. The id is inserted first: whoever comes second with the same id finds it, or waits
 * for the lock.
 */
#include <ie/inbox.h>

#include <string.h>

#include "core.h"
#include "log.h"

#define GROUP_BYTES_MAX 64

static ie_status
check_group(const char *group, ie_error *err)
{
    const size_t bytes = group != NULL ? strlen(group) : 0;

    if (bytes == 0 || bytes > GROUP_BYTES_MAX || !ie__utf8_is_valid(group, bytes))
        return ie_error_set(err, IE_EINVAL, "inbox: a group's name has 1 to %d bytes of UTF-8",
                            GROUP_BYTES_MAX);
    return IE_OK;
}

/* What makes two copies the same event: everything that a sender repeats. */
static int64_t
event_digest(const ie_event *event)
{
    uint64_t digest = ie__digest(event->data, event->data_bytes, 1);

    digest = ie__digest(event->topic, strlen(event->topic), digest);
    if (event->type != NULL && strcmp(event->type, event->topic) != 0) /* NULL means the topic */
        digest = ie__digest(event->type, strlen(event->type), digest);
    return (int64_t)(digest >> 1); /* fits a signed column */
}

/* Insert the id; *first tells whether it was new. */
static ie_status
inbox_enter(sqlite3 *db, const char *group, const ie_event *event, bool *first, ie_error *err)
{
    const int64_t digest = event_digest(event);
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(
            &stmt, db,
            "INSERT INTO main.ie_inbox (group_name, source, id, digest, handled_at)"
                " VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (group_name, id, source) DO NOTHING",
            err);

    if (status == IE_OK) {
        (void)sqlite3_bind_text(stmt, 1, group, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(stmt, 2, event->source != NULL ? event->source : "", -1,
                                SQLITE_STATIC);
        (void)sqlite3_bind_text(stmt, 3, event->id, -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(stmt, 4, digest);
        (void)sqlite3_bind_int64(stmt, 5, ie__wall_ms(&ie__system_clock));
        status = ie__sql_run(db, stmt, "inbox", err);
        *first = status == IE_OK && sqlite3_changes(db) == 1;
    }
    (void)sqlite3_finalize(stmt);
    stmt = NULL;
    if (status != IE_OK || *first)
        return status;
    status =
        ie__sql_prepare(&stmt, db,
                        "SELECT digest FROM main.ie_inbox WHERE group_name = ?1 AND source = ?2"
                        " AND id = ?3",
                        err);
    if (status == IE_OK) {
        (void)sqlite3_bind_text(stmt, 1, group, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(stmt, 2, event->source != NULL ? event->source : "", -1,
                                SQLITE_STATIC);
        (void)sqlite3_bind_text(stmt, 3, event->id, -1, SQLITE_STATIC);
        const int rc = sqlite3_step(stmt);

        if (rc != SQLITE_ROW && rc != SQLITE_DONE)
            status = ie__sql_fail(db, rc, "inbox", err);
        else if (rc == SQLITE_DONE)
            status = ie_error_set(err, IE_ESWALLOWED,
                                  "inbox: a trigger on ie_inbox swallowed event %s", event->id);
        else if (sqlite3_column_int64(stmt, 0) != digest)
            status =
                ie_error_set(err, IE_ECONFLICT,
                             "inbox: event %s of %s came before with other content; somebody used "
                             "an id twice",
                             event->id, event->source != NULL ? event->source : "");
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

/*
 * The savepoint inside the transaction shows whether it is still the one that was begun here: a
 * handler that commits and begins another leaves one without it.
 */
static ie_status
inbox_begin(sqlite3 *db, bool is_nested, ie_error *err)
{
    ie_status status = is_nested ? IE_OK : ie__sql_begin(db, err);

    if (status == IE_OK)
        status = ie__sql_exec(db, "SAVEPOINT ie_inbox", err);
    if (status != IE_OK && !is_nested)
        ie__sql_rollback(db);
    return status;
}

/* Keep the work or take it back. False: the transaction is not the one that was begun. */
static bool
savepoint_end(sqlite3 *db, bool is_kept, ie_status *status, ie_error *err)
{
    if (sqlite3_get_autocommit(db) != 0)
        return false;
    if (is_kept) {
        const int rc = sqlite3_exec(db, "RELEASE ie_inbox", NULL, NULL, NULL);

        if (rc == SQLITE_OK)
            return true;
        if ((rc & 0xff) == SQLITE_ERROR)
            return false; /* no such savepoint */
        *status = ie__sql_fail(db, rc, "inbox", err);
    }
    return sqlite3_exec(db, "ROLLBACK TO ie_inbox; RELEASE ie_inbox", NULL, NULL, NULL) ==
           SQLITE_OK;
}

/* Our own transaction; what the handler wrote may break a rule that is checked only now. */
static ie_status
inbox_commit(sqlite3 *db, const char *group, const ie_event *event, ie_error *err)
{
    const int rc = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
    ie_status status = IE_OK;

    if ((rc & 0xff) == SQLITE_CONSTRAINT)
        status = ie_error_set(err, IE_EHANDLER,
                              "inbox: what the handler of group %s wrote for event %s cannot be "
                              "committed: %s",
                              group, event->id, sqlite3_errmsg(db));
    else if (rc != SQLITE_OK)
        status = ie__sql_fail(db, rc, "inbox: commit", err);
    if (status != IE_OK)
        ie__sql_rollback(db);
    return status;
}

ie_status
ie_inbox_once(sqlite3 *db, const char *group, const ie_event *event, ie_inbox_handler handler,
              void *user, bool *first, ie_error *err)
{
    const bool is_nested = db != NULL && sqlite3_get_autocommit(db) == 0;
    bool       is_first = false;
    ie_error   why = IE_ERROR_INIT;
    ie_status  status = check_group(group, err);

    if (status != IE_OK)
        return status;
    if (db == NULL || handler == NULL || event == NULL || event->size < sizeof *event ||
        event->id == NULL || event->id[0] == '\0' || event->topic == NULL ||
        (event->data == NULL && event->data_bytes != 0))
        return ie_error_set(err, IE_EINVAL,
                            "inbox: needs a database, a handler, and an event with id and topic");
    status = inbox_begin(db, is_nested, err);
    if (status != IE_OK)
        return status;
    status = inbox_enter(db, group, event, &is_first, &why);
    if (status == IE_OK && is_first) {
        status = handler(user, db, event);
        if (status != IE_OK)
            (void)ie_error_set(&why, status, "inbox: the handler of group %s failed on event %s",
                               group, event->id);
    }
    if (!savepoint_end(db, status == IE_OK, &status, &why)) {
        if (!is_nested)
            ie__sql_rollback(db);
        /* Without a handler's work a transaction of our own that failed is over, and no harm done.
         */
        if (is_nested || is_first || status == IE_OK)
            return ie_error_set(err, IE_ETXN_ABORTED,
                                "inbox: the transaction ended under the handler of group %s (event "
                                "%s): SQLite gave it up, or the handler did",
                                group, event->id);
    } else if (!is_nested) {
        if (status == IE_OK)
            status = inbox_commit(db, group, event, &why);
        else
            ie__sql_rollback(db);
    }
    if (status != IE_OK)
        return ie_error_set(err, status, "%s", why.message);
    if (first != NULL)
        *first = is_first;
    return IE_OK;
}

ie_status
ie_inbox_purge(sqlite3 *db, const char *group, uint32_t retention_s, uint32_t horizon_s,
               uint32_t rows_max, uint32_t *removed, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = check_group(group, err);

    if (status != IE_OK)
        return status;
    if (db == NULL || rows_max == 0)
        return ie_error_set(err, IE_EINVAL, "inbox purge: needs a database and rows_max above 0");
    if (retention_s < horizon_s)
        return ie_error_set(
            err, IE_EINVAL,
            "inbox: a retention of %u s is shorter than the %u s within which the sender "
            "may deliver again; an event would be handled twice",
            retention_s, horizon_s);
    status = ie__sql_prepare(&stmt, db,
                             "DELETE FROM main.ie_inbox WHERE (group_name, id, source) IN (SELECT"
                             " group_name, id, source FROM main.ie_inbox WHERE group_name = ?1"
                             " AND handled_at <= ?2 LIMIT ?3)",
                             err);
    if (status != IE_OK)
        return status;
    (void)sqlite3_bind_text(stmt, 1, group, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, ie__wall_ms(&ie__system_clock) - (int64_t)retention_s * 1000);
    (void)sqlite3_bind_int64(stmt, 3, rows_max);
    status = ie__sql_run(db, stmt, "inbox purge", err);
    if (status == IE_OK && removed != NULL)
        *removed = (uint32_t)sqlite3_changes(db);
    (void)sqlite3_finalize(stmt);
    return status;
}
