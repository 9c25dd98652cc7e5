/* SQLite in our words: one translation of its codes, and the few calls that everything else uses.
 */
#include "log.h"

#include <stdio.h>
#include <string.h>

#include "core.h"

static ie_status
status_of(int rc)
{
    switch (rc) {
    case SQLITE_BUSY_SNAPSHOT: return IE_EBUSY_SNAPSHOT;
    case SQLITE_READONLY_DBMOVED: return IE_EMOVED;
    case SQLITE_IOERR_NOMEM: return IE_ENOMEM;
    case SQLITE_CONSTRAINT_UNIQUE:
    case SQLITE_CONSTRAINT_PRIMARYKEY:
    case SQLITE_CONSTRAINT_ROWID: return IE_EEXIST;
    case SQLITE_CONSTRAINT_TRIGGER: return IE_EDENIED; /* a trigger's RAISE said no */
    default: break;
    }
    switch (rc & 0xff) {
    case SQLITE_OK: return IE_OK;
    case SQLITE_NOMEM: return IE_ENOMEM;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL: return IE_EBUSY;
    case SQLITE_FULL: return IE_EFULL;
    case SQLITE_READONLY: return IE_EREADONLY;
    case SQLITE_AUTH:
    case SQLITE_PERM: return IE_EDENIED;
    case SQLITE_TOOBIG: return IE_ETOOBIG;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return IE_ECORRUPT;
    case SQLITE_CONSTRAINT: /* one that our tables do not have */
    case SQLITE_SCHEMA:
    case SQLITE_ERROR: return IE_ESCHEMA;
    case SQLITE_MISUSE: return IE_EINVAL;
    default: return IE_EIO;
    }
}

ie_status
ie__sql_fail(sqlite3 *db, int rc, const char *what, ie_error *err)
{
    const int   code = db != NULL ? sqlite3_extended_errcode(db) : rc;
    ie_status   status = status_of((code & 0xff) == (rc & 0xff) ? code : rc);
    const char *words = db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(rc);

    if (status == IE_ESCHEMA && strstr(words, "no such table") != NULL)
        return ie_error_set(err, IE_ESCHEMA_MISSING,
                            "%s: %s; create the tables with: ie migrate up DB", what, words);
    return ie_error_set(err, status, "%s: %s", what, words);
}

ie_status
ie__sql_prepare(sqlite3_stmt **out, sqlite3 *db, const char *sql, ie_error *err)
{
    const int rc = sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);

    return rc == SQLITE_OK ? IE_OK : ie__sql_fail(db, rc, "prepare statement", err);
}

ie_status
ie__sql_exec(sqlite3 *db, const char *sql, ie_error *err)
{
    const int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);

    return rc == SQLITE_OK ? IE_OK : ie__sql_fail(db, rc, sql, err);
}

ie_status
ie__sql_begin(sqlite3 *db, ie_error *err)
{
    return ie__sql_exec(db, "BEGIN IMMEDIATE", err);
}

ie_status
ie__sql_commit(sqlite3 *db, ie_error *err)
{
    const ie_status status = ie__sql_exec(db, "COMMIT", err);

    if (status != IE_OK)
        ie__sql_rollback(db);
    return status;
}

void
ie__sql_rollback(sqlite3 *db)
{
    if (sqlite3_get_autocommit(db) == 0)
        (void)sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
}

ie_status
ie__sql_run(sqlite3 *db, sqlite3_stmt *stmt, const char *what, ie_error *err)
{
    const int rc = sqlite3_step(stmt);
    ie_status status = IE_OK;

    if (rc != SQLITE_DONE && rc != SQLITE_ROW)
        status = ie__sql_fail(db, rc, what, err);
    (void)sqlite3_reset(stmt); /* repeats the error that step reported */
    (void)sqlite3_clear_bindings(stmt);
    return status;
}

ie_status
ie__sql_int(int64_t *out, sqlite3 *db, const char *sql, int64_t fallback, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = IE_OK;
    int           rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && sqlite3_column_type(stmt, 0) != SQLITE_NULL)
        *out = sqlite3_column_int64(stmt, 0);
    else if (rc == SQLITE_ROW || rc == SQLITE_DONE)
        *out = fallback;
    else
        status = ie__sql_fail(db, rc, "read", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

ie_status
ie__sql_text(char *out, size_t size, sqlite3 *db, const char *sql, const char *fallback,
             ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = IE_OK;
    int           rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && sqlite3_column_type(stmt, 0) != SQLITE_NULL) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);

        if (text != NULL)
            (void)snprintf(out, size, "%s", text);
        else
            status = ie__sql_fail(db, SQLITE_NOMEM, "read", err);
    } else if (rc == SQLITE_ROW || rc == SQLITE_DONE)
        (void)snprintf(out, size, "%s", fallback);
    else
        status = ie__sql_fail(db, rc, "read", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

const char *
ie__sql_column_text(sqlite3_stmt *stmt, int column)
{
    const unsigned char *text = sqlite3_column_text(stmt, column);

    return text != NULL ? (const char *)text : "";
}
