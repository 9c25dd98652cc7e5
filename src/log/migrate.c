/* Migrations: numbered SQL that is compiled in, a history table of our own, one transaction each.
 */
#include <ie/migrate.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "log.h"
#include "migrations.h"

#define MIGRATIONS_MAX 64

static ie_migration   list[MIGRATIONS_MAX];
static char           checksums[MIGRATIONS_MAX][17];
static pthread_once_t list_once = PTHREAD_ONCE_INIT;

static const char CREATE_HISTORY[] =
    "CREATE TABLE IF NOT EXISTS main.ie_schema_history ("
    " version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL,"
    " applied_at INTEGER NOT NULL, library TEXT NOT NULL) STRICT";

static void
list_fill(void)
{
    for (size_t i = 0; i < ie__migration_text_count && i < MIGRATIONS_MAX; i++) {
        const ie__migration_text *text = &ie__migration_texts[i];

        (void)snprintf(checksums[i], sizeof checksums[i], "%016llx",
                       (unsigned long long)ie__digest(text->up, strlen(text->up), 0));
        list[i] = (ie_migration){text->version, text->name, text->up, text->down, checksums[i]};
    }
}

size_t
ie_migration_count(void)
{
    return ie__migration_text_count < MIGRATIONS_MAX ? ie__migration_text_count : MIGRATIONS_MAX;
}

const ie_migration *
ie_migration_at(size_t index)
{
    (void)pthread_once(&list_once, list_fill);
    return index < ie_migration_count() ? &list[index] : NULL;
}

static const ie_migration *
migration_find(int version)
{
    for (size_t i = 0; i < ie_migration_count(); i++)
        if (ie_migration_at(i)->version == version)
            return ie_migration_at(i);
    return NULL;
}

static ie_status
has_table(bool *out, sqlite3 *db, const char *name, ie_error *err)
{
    char    sql[160];
    int64_t count = 0;

    (void)snprintf(sql, sizeof sql,
                   "SELECT count(*) FROM main.sqlite_master WHERE type='table' AND name='%s'",
                   name);
    const ie_status status = ie__sql_int(&count, db, sql, 0, err);

    *out = count != 0;
    return status;
}

ie_status
ie_migrate_status(sqlite3 *db, void (*each)(void *user, const ie_migration_state *state),
                  void *user, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    bool          has_history = false;
    size_t        next = 0;
    int           rc = SQLITE_DONE;
    ie_status     status = has_table(&has_history, db, "ie_schema_history", err);

    if (status == IE_OK && has_history) {
        status = ie__sql_prepare(
            &stmt, db, "SELECT version, applied_at FROM main.ie_schema_history ORDER BY version",
            err);
        while (status == IE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
            ie_migration_state state = {.version = sqlite3_column_int(stmt, 0),
                                        .is_applied = true,
                                        .applied_at_ms = sqlite3_column_int64(stmt, 1)};

            for (; next < ie_migration_count() && ie_migration_at(next)->version < state.version;
                 next++)
                each(user, &(ie_migration_state){.migration = ie_migration_at(next),
                                                 .version = ie_migration_at(next)->version});
            state.migration = migration_find(state.version);
            if (state.migration != NULL)
                next++;
            each(user, &state);
        }
        if (status == IE_OK && rc != SQLITE_DONE)
            status = ie__sql_fail(db, rc, "read ie_schema_history", err);
        (void)sqlite3_finalize(stmt);
    }
    for (; status == IE_OK && next < ie_migration_count(); next++)
        each(user, &(ie_migration_state){.migration = ie_migration_at(next),
                                         .version = ie_migration_at(next)->version});
    return status;
}

typedef struct history {
    int  newest;      /* highest version applied, 0 for none */
    int  newer;       /* one that we do not know, 0 for none */
    bool has_history; /* false: no table of that name */
} history;

/* What the database says, with every checksum compared. */
static ie_status
history_read(history *out, sqlite3 *db, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    int           rc = SQLITE_DONE;
    ie_status     status;

    memset(out, 0, sizeof *out);
    status = has_table(&out->has_history, db, "ie_schema_history", err);
    if (status != IE_OK || !out->has_history)
        return status;
    status = ie__sql_prepare(
        &stmt, db, "SELECT version, name, checksum FROM main.ie_schema_history ORDER BY version",
        err);
    while (status == IE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        const int           version = sqlite3_column_int(stmt, 0);
        const ie_migration *known = migration_find(version);

        if (known == NULL)
            out->newer = version;
        else if (strcmp(known->checksum, ie__sql_column_text(stmt, 2)) != 0)
            status =
                ie_error_set(err, IE_ESCHEMA,
                             "migration %d_%s was applied with other text (checksum %s, this "
                             "library has %s); a released migration is never edited",
                             version, known->name, ie__sql_column_text(stmt, 2), known->checksum);
        if (version > out->newest)
            out->newest = version;
    }
    if (status == IE_OK && rc != SQLITE_DONE)
        status = ie__sql_fail(db, rc, "read ie_schema_history", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

static ie_status
newer_refused(const history *seen, ie_error *err)
{
    return ie_error_set(err, IE_ESCHEMA_NEWER,
                        "the database has schema version %d, this library (%s) knows up to %d; "
                        "update the library of this program",
                        seen->newer, ie_version(),
                        ie_migration_at(ie_migration_count() - 1)->version);
}

ie_status
ie_migrate_check(sqlite3 *db, ie_error *err)
{
    const int newest = ie_migration_at(ie_migration_count() - 1)->version;
    bool      has_events = false;
    history   seen;
    ie_status status = history_read(&seen, db, err);

    if (status != IE_OK)
        return status;
    if (seen.newer != 0)
        return newer_refused(&seen, err);
    if (seen.has_history && seen.newest == newest)
        return IE_OK;
    status = has_table(&has_events, db, "ie_event", err);
    if (status != IE_OK)
        return status;
    if (!seen.has_history && has_events) {
        /* A team may apply our SQL with a tool of its own; then the shape is what counts. */
        int64_t columns = 0;

        status =
            ie__sql_int(&columns, db,
                        "SELECT count(*) FROM main.pragma_table_info('ie_event') WHERE name IN ("
                        "'position','id','topic','key','type','source','time','not_before',"
                        "'expires_at','content_type','headers','dedupe_key','data')",
                        0, err);
        if (status == IE_OK && columns != 13)
            status = ie_error_set(err, IE_ESCHEMA,
                                  "table ie_event exists but is not the one that this library "
                                  "creates; see migrations/README.md");
        return status;
    }
    return ie_error_set(err, IE_ESCHEMA_MISSING,
                        "the database has schema version %d of %d; run: ie migrate up DB",
                        seen.newest, newest);
}

/* One migration, in one transaction with its history row; does nothing if somebody was faster. */
static ie_status
apply_one(sqlite3 *db, const ie_migration *migration, bool *applied, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    int64_t       present = 0;
    char          sql[96];
    ie_status     status = ie__sql_begin(db, err);

    if (status != IE_OK)
        return status;
    (void)snprintf(sql, sizeof sql, "SELECT count(*) FROM main.ie_schema_history WHERE version=%d",
                   migration->version);
    status = ie__sql_exec(db, CREATE_HISTORY, err);
    if (status == IE_OK)
        status = ie__sql_int(&present, db, sql, 0, err);
    if (status == IE_OK && present == 0) {
        status = ie__sql_exec(db, migration->up, err);
        if (status != IE_OK && err != NULL) {
            char words[128];

            (void)snprintf(words, sizeof words, "%.120s", sqlite3_errmsg(db));
            ie_error_clear(err);
            (void)ie_error_set(err, status, "migration %d_%s: %s", migration->version,
                               migration->name, words);
        }
        if (status == IE_OK)
            status = ie__sql_prepare(
                &stmt, db, "INSERT INTO main.ie_schema_history VALUES (?1, ?2, ?3, ?4, ?5)", err);
        if (status == IE_OK) {
            (void)sqlite3_bind_int(stmt, 1, migration->version);
            (void)sqlite3_bind_text(stmt, 2, migration->name, -1, SQLITE_STATIC);
            (void)sqlite3_bind_text(stmt, 3, migration->checksum, -1, SQLITE_STATIC);
            (void)sqlite3_bind_int64(stmt, 4, ie__wall_ms(&ie__system_clock));
            (void)sqlite3_bind_text(stmt, 5, ie_version(), -1, SQLITE_STATIC);
            status = ie__sql_run(db, stmt, "record migration", err);
        }
        (void)sqlite3_finalize(stmt);
        *applied = status == IE_OK;
    }
    if (status != IE_OK) {
        ie__sql_rollback(db);
        return status;
    }
    status = ie__sql_commit(db, err);
    if (status != IE_OK)
        *applied = false;
    return status;
}

ie_status
ie_migrate_up(sqlite3 *db, int *applied, ie_error *err)
{
    int       count = 0;
    history   seen;
    ie_status status;

    if (sqlite3_get_autocommit(db) == 0)
        return ie_error_set(err, IE_ESTATE,
                            "migrations need a transaction of their own; commit first");
    status = history_read(&seen, db, err);
    if (status == IE_OK && seen.newer != 0)
        status = newer_refused(&seen, err);
    for (size_t i = 0; status == IE_OK && i < ie_migration_count(); i++) {
        bool done = false;

        if (ie_migration_at(i)->version > seen.newest)
            status = apply_one(db, ie_migration_at(i), &done, err);
        if (done)
            count++;
    }
    if (applied != NULL)
        *applied = count;
    return status;
}
