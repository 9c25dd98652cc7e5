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

/* ---- a schema without history: somebody's own tool may have run our SQL ---- */

/* One line per object and column of ours, in order; the history table is not part of the shape. */
static const char SHAPE[] =
    "SELECT m.type || ' ' || m.name || coalesce(' ' || c.name || ' ' || c.type || ' '"
    " || c.\"notnull\" || ' ' || c.pk, '') AS line FROM main.sqlite_master AS m"
    " LEFT JOIN pragma_table_info(m.name, 'main') AS c ON m.type = 'table'"
    " WHERE m.name LIKE 'ie\\_%' ESCAPE '\\' AND m.name <> 'ie_schema_history' ORDER BY line";

/* Is every line that wanted gives also one of have's? Both are in order. */
static ie_status
shape_covers(bool *out, sqlite3_stmt *have, sqlite3_stmt *wanted, ie_error *err)
{
    int want;
    int rc = SQLITE_ROW;

    *out = true;
    while (*out && (want = sqlite3_step(wanted)) != SQLITE_DONE) {
        int order = -1;

        if (want != SQLITE_ROW)
            return ie__sql_fail(sqlite3_db_handle(wanted), want, "compare schema", err);
        while (order < 0 && (rc = sqlite3_step(have)) == SQLITE_ROW)
            order = strcmp(ie__sql_column_text(have, 0), ie__sql_column_text(wanted, 0));
        if (rc != SQLITE_ROW && rc != SQLITE_DONE)
            return ie__sql_fail(sqlite3_db_handle(have), rc, "compare schema", err);
        *out = order == 0;
    }
    return IE_OK;
}

/* Does the database have all that the first count migrations make? They are run in memory to see.
 */
static ie_status
has_shape(bool *out, sqlite3 *db, size_t count, ie_error *err)
{
    sqlite3      *scratch = NULL;
    sqlite3_stmt *have = NULL;
    sqlite3_stmt *wanted = NULL;
    ie_status     status = IE_OK;

    *out = false;
    if (sqlite3_open_v2(":memory:", &scratch, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) !=
        SQLITE_OK)
        status = ie_error_set(err, IE_ENOMEM, "compare schema: out of memory");
    for (size_t i = 0; status == IE_OK && i < count; i++)
        status = ie__sql_exec(scratch, ie_migration_at(i)->up, err);
    if (status == IE_OK)
        status = ie__sql_prepare(&wanted, scratch, SHAPE, err);
    if (status == IE_OK)
        status = ie__sql_prepare(&have, db, SHAPE, err);
    if (status == IE_OK)
        status = shape_covers(out, have, wanted, err);
    (void)sqlite3_finalize(have);
    (void)sqlite3_finalize(wanted);
    (void)sqlite3_close(scratch);
    return status;
}

/* How many migrations a database without history has had, going by what is there. */
static ie_status
shape_count(size_t *out, sqlite3 *db, ie_error *err)
{
    bool      is_there = false;
    ie_status status = has_table(&is_there, db, "ie_event", err);

    *out = is_there ? ie_migration_count() : 0;
    while (status == IE_OK && *out > 0) {
        status = has_shape(&is_there, db, *out, err);
        if (status == IE_OK && is_there)
            break;
        (*out)--;
    }
    return status;
}

static ie_status
foreign_refused(ie_error *err)
{
    return ie_error_set(
        err, IE_ESCHEMA,
        "table ie_event exists but is not the one that this library creates (or some "
        "of what belongs to it is missing); rename yours, or see "
        "migrations/README.md");
}

ie_status
ie_migrate_status(sqlite3 *db, void (*each)(void *user, const ie_migration_state *state),
                  void *user, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    bool          has_history = false;
    size_t        next = 0;
    size_t        by_hand = 0;
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
    if (status == IE_OK && next == 0)
        status = shape_count(&by_hand, db, err);
    for (; status == IE_OK && next < ie_migration_count(); next++)
        each(user, &(ie_migration_state){.migration = ie_migration_at(next),
                                         .version = ie_migration_at(next)->version,
                                         .is_applied = next < by_hand});
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
    size_t    count = 0;
    history   seen;
    ie_status status = history_read(&seen, db, err);

    if (status == IE_OK)
        status = has_table(&has_events, db, "ie_event", err);
    if (status != IE_OK)
        return status;
    if (seen.newer != 0)
        return newer_refused(&seen, err);
    if (!has_events) {
        seen.newest = 0; /* whatever the history says: it was taken back by hand */
    } else if (seen.newest == 0) {
        /* A team may apply our SQL with a tool of its own; then the shape is what counts. */
        status = shape_count(&count, db, err);
        if (status != IE_OK)
            return status;
        if (count == 0)
            return foreign_refused(err);
        seen.newest = ie_migration_at(count - 1)->version;
    }
    if (seen.newest == newest)
        return IE_OK;
    return ie_error_set(err, IE_ESCHEMA_MISSING,
                        "the database has schema version %d of %d; run: ie migrate up DB",
                        seen.newest, newest);
}

/* What there is to do for a migration, decided under the write lock. */
typedef enum todo { TODO_NOTHING, TODO_RECORD, TODO_APPLY } todo;

static ie_status
decide(todo *out, sqlite3 *db, size_t index, ie_error *err)
{
    int64_t   present = 0;
    bool      has_events = false;
    bool      is_ours = false;
    char      sql[96];
    ie_status status;

    (void)snprintf(sql, sizeof sql, "SELECT count(*) FROM main.ie_schema_history WHERE version=%d",
                   ie_migration_at(index)->version);
    status = ie__sql_int(&present, db, sql, 0, err);
    if (status == IE_OK)
        status = has_table(&has_events, db, "ie_event", err);
    if (status != IE_OK)
        return status;
    *out = TODO_NOTHING;
    if (!has_events) {
        /* Taken back by hand: a history without tables would keep them away for ever. */
        *out = TODO_APPLY;
        return present != 0 && index == 0
                   ? ie__sql_exec(db, "DELETE FROM main.ie_schema_history", err)
                   : IE_OK;
    }
    if (present != 0)
        return IE_OK;
    status = has_shape(&is_ours, db, index + 1, err);
    if (status == IE_OK && !is_ours && index == 0)
        return foreign_refused(err);
    *out = is_ours ? TODO_RECORD : TODO_APPLY;
    return status;
}

static ie_status
run_up(sqlite3 *db, const ie_migration *migration, ie_error *err)
{
    ie_error        why = IE_ERROR_INIT;
    const int       rc = sqlite3_exec(db, migration->up, NULL, NULL, NULL);
    const ie_status status = rc == SQLITE_OK ? IE_OK : ie__sql_fail(db, rc, "apply", &why);

    return status == IE_OK ? IE_OK
                           : ie_error_set(err, status, "migration %d_%s: %s", migration->version,
                                          migration->name, why.message);
}

static ie_status
record(sqlite3 *db, const ie_migration *migration, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(
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
    return status;
}

/* One migration, in one transaction with its history row; does nothing if somebody was faster. */
static ie_status
apply_one(sqlite3 *db, size_t index, bool *applied, ie_error *err)
{
    todo      what = TODO_NOTHING;
    ie_status status = ie__sql_begin(db, err);

    if (status != IE_OK)
        return status;
    status = ie__sql_exec(db, CREATE_HISTORY, err);
    if (status == IE_OK)
        status = decide(&what, db, index, err);
    if (status == IE_OK && what == TODO_APPLY)
        status = run_up(db, ie_migration_at(index), err);
    if (status == IE_OK && what != TODO_NOTHING)
        status = record(db, ie_migration_at(index), err);
    if (status != IE_OK) {
        ie__sql_rollback(db);
        return status;
    }
    status = ie__sql_commit(db, err);
    *applied = status == IE_OK && what == TODO_APPLY;
    return status;
}

/* Migrations are plain SQL for any tool, so their names would find a TEMP table first. */
static ie_status
check_no_shadow(sqlite3 *db, ie_error *err)
{
    char            name[64];
    const ie_status status = ie__sql_text(
        name, sizeof name, db,
        "SELECT name FROM temp.sqlite_master WHERE name LIKE 'ie\\_%' ESCAPE '\\' LIMIT 1", "",
        err);

    if (status == IE_OK && name[0] != '\0')
        return ie_error_set(err, IE_ESCHEMA,
                            "%s in schema temp hides the table that is meant; drop it, or migrate "
                            "on another connection",
                            name);
    return status;
}

ie_status
ie_migrate_up(sqlite3 *db, int *applied, ie_error *err)
{
    int       count = 0;
    bool      has_events = false;
    history   seen;
    ie_status status;

    if (sqlite3_get_autocommit(db) == 0)
        return ie_error_set(err, IE_ESTATE,
                            "migrations need a transaction of their own; commit first");
    status = history_read(&seen, db, err);
    if (status == IE_OK && seen.newer != 0)
        status = newer_refused(&seen, err);
    if (status == IE_OK)
        status = has_table(&has_events, db, "ie_event", err);
    if (status == IE_OK && !has_events)
        seen.newest = 0;
    if (status == IE_OK && seen.newest < ie_migration_at(ie_migration_count() - 1)->version)
        status = check_no_shadow(db, err);
    for (size_t i = 0; status == IE_OK && i < ie_migration_count(); i++) {
        bool done = false;

        if (ie_migration_at(i)->version > seen.newest)
            status = apply_one(db, i, &done, err);
        if (done)
            count++;
    }
    if (applied != NULL)
        *applied = count;
    return status;
}
