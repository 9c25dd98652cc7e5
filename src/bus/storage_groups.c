/* Groups in the log's tables: their settings, cursors, deliveries. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "storage.h"

void
ie__group_cursor(char out[IE__GROUP_CURSOR_SIZE], int64_t group)
{
    (void)snprintf(out, IE__GROUP_CURSOR_SIZE, "group.%lld", (long long)group);
}

/* ---- what the thread knows of them ---------------------------------------------------------- */

ie__stored_group *
ie__storage_group(ie__storage *storage, int64_t id)
{
    size_t low = 0;
    size_t high = storage->group_count;

    while (low < high) {
        const size_t middle = (low + high) / 2;

        if (storage->groups[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < storage->group_count && storage->groups[low].id == id ? &storage->groups[low]
                                                                       : NULL;
}

static ie_status
group_know(ie__storage *storage, const ie__group_row *row)
{
    ie__stored_group *group = ie__storage_group(storage, row->id);
    size_t            at = storage->group_count;

    if (group != NULL) {
        group->position = row->position;
        return IE_OK;
    }
    if (storage->group_count == storage->group_max) {
        const size_t      max = storage->group_max != 0 ? storage->group_max * 2 : 16;
        ie__stored_group *grown = ie__realloc_array(storage->groups, max, sizeof *grown);

        if (grown == NULL)
            return IE_ENOMEM;
        storage->groups = grown;
        storage->group_max = max;
    }
    while (at > 0 && storage->groups[at - 1].id > row->id)
        at--;
    memmove(&storage->groups[at + 1], &storage->groups[at],
            (storage->group_count - at) * sizeof *storage->groups);
    group = &storage->groups[at];
    group->id = row->id;
    group->position = row->position;
    group->lost = row->lost;
    group->pattern = ie__strdup(row->pattern);
    storage->group_count++;
    return group->pattern != NULL ? IE_OK : IE_ENOMEM;
}

static void
group_forget(ie__storage *storage, int64_t id)
{
    ie__stored_group *group = ie__storage_group(storage, id);

    if (group == NULL)
        return;
    ie__free(group->pattern);
    memmove(group, group + 1,
            (storage->group_count - 1 - (size_t)(group - storage->groups)) * sizeof *group);
    storage->group_count--;
}

static void
know_each(void *user, const ie__group_row *row)
{
    (void)group_know(user, row);
}

ie_status
ie__storage_prepare_groups(ie__storage *storage, ie_error *err)
{
    const struct {
        sqlite3_stmt **stmt;
        const char    *sql;
    } statements[] = {
        {&storage->cursor_set,
         "UPDATE main.ie_cursor SET position = ?2, claimed_to = ?2, seen_at = ?3 WHERE name = ?1"},
        {&storage->trouble_put,
         "INSERT INTO main.ie_delivery (cursor, position, state, key, attempts, due_at, since,"
         " reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (cursor, position)"
         " DO UPDATE SET state = excluded.state, key = excluded.key, attempts = excluded.attempts,"
         " due_at = excluded.due_at, since = excluded.since, reason = excluded.reason"},
        {&storage->trouble_remove,
         "DELETE FROM main.ie_delivery WHERE cursor = ?1 AND position = ?2"},
        {&storage->release,
         "UPDATE main.ie_delivery SET state = 'retrying', due_at = ?3 WHERE cursor = ?1"
         " AND position = (SELECT position FROM main.ie_delivery WHERE cursor = ?1 AND key = ?2"
         " AND state IN ('retrying', 'blocked') ORDER BY position LIMIT 1) AND state = 'blocked'"},
        /* What could not be due so far ahead (the clock was set back) counts as due. */
        {&storage->due, "SELECT position, attempts FROM main.ie_delivery WHERE cursor = ?1"
                        " AND state = 'retrying' AND due_at <= ?2 ORDER BY due_at, position"},
        {&storage->next_due,
         "SELECT min(due_at) FROM main.ie_delivery WHERE cursor = ?1 AND state = 'retrying'"
         " AND due_at > ?2"},
        {&storage->noted,
         "SELECT position FROM main.ie_delivery WHERE cursor = ?1 AND position > ?2"
         " AND state IN ('retrying', 'blocked') ORDER BY position"},
    };
    ie_status status = IE_OK;

    for (size_t i = 0; status == IE_OK && i < sizeof statements / sizeof statements[0]; i++)
        status = ie__sql_prepare(statements[i].stmt, storage->db, statements[i].sql, err);
    if (status == IE_OK)
        status = ie__storage_each_group(storage, know_each, storage, err);
    return status;
}

void
ie__storage_free_groups(ie__storage *storage)
{
    (void)sqlite3_finalize(storage->cursor_set);
    (void)sqlite3_finalize(storage->trouble_put);
    (void)sqlite3_finalize(storage->trouble_remove);
    (void)sqlite3_finalize(storage->release);
    (void)sqlite3_finalize(storage->due);
    (void)sqlite3_finalize(storage->next_due);
    (void)sqlite3_finalize(storage->noted);
    for (size_t i = 0; i < storage->group_count; i++)
        ie__free(storage->groups[i].pattern);
    ie__free(storage->groups);
    storage->groups = NULL;
    storage->group_count = 0;
}

ie_status
ie__storage_each_group(ie__storage *storage, void (*each)(void *user, const ie__group_row *row),
                       void *user, ie_error *err)
{
    static const char SQL[] =
        "SELECT g.id, g.name, g.pattern, g.selection, g.ack_timeout_ms, g.attempts_max,"
        " g.is_paused, g.lost, c.position,"
        " (SELECT count(*) FROM main.ie_delivery WHERE cursor = c.name AND state = 'dead'),"
        " (SELECT count(*) FROM main.ie_delivery WHERE cursor = c.name"
        "   AND state IN ('retrying', 'blocked'))"
        " FROM main.ie_bus_group AS g JOIN main.ie_cursor AS c ON c.name = 'group.' || g.id"
        " ORDER BY g.id";
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(&stmt, storage->db, SQL, err);
    int           rc = SQLITE_DONE;

    while (status == IE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        ie__group_row row = {.id = sqlite3_column_int64(stmt, 0)};

        (void)snprintf(row.name, sizeof row.name, "%s", ie__sql_column_text(stmt, 1));
        (void)snprintf(row.pattern, sizeof row.pattern, "%s", ie__sql_column_text(stmt, 2));
        row.selection = (ie_bus_selection)sqlite3_column_int(stmt, 3);
        row.ack_timeout_ms = (uint32_t)sqlite3_column_int64(stmt, 4);
        row.attempts_max = (uint32_t)sqlite3_column_int64(stmt, 5);
        row.is_paused = sqlite3_column_int(stmt, 6) != 0;
        row.lost = (uint64_t)sqlite3_column_int64(stmt, 7);
        row.position = sqlite3_column_int64(stmt, 8);
        row.dead = (uint64_t)sqlite3_column_int64(stmt, 9);
        row.waiting = (uint64_t)sqlite3_column_int64(stmt, 10);
        each(user, &row);
    }
    if (status == IE_OK && rc != SQLITE_DONE)
        status = ie__sql_fail(storage->db, rc, "read groups", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

/* ---- small statements ----------------------------------------------------------------------- */

/* Run once a statement that is not worth keeping. Bindings: i for int64, t for text. */
static ie_status
run_once(ie__storage *storage, const char *sql, const char *types, ie_error *err, ...)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(&stmt, storage->db, sql, err);
    va_list       args;

    if (status != IE_OK)
        return status;
    va_start(args, err);
    for (int i = 0; types[i] != '\0'; i++) {
        if (types[i] == 'i')
            (void)sqlite3_bind_int64(stmt, i + 1, va_arg(args, int64_t));
        else
            (void)sqlite3_bind_text(stmt, i + 1, va_arg(args, const char *), -1, SQLITE_STATIC);
    }
    va_end(args);
    status = ie__sql_run(storage->db, stmt, "write", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

/* ---- groups --------------------------------------------------------------------------------- */

/* Everything up to here is not for the group. */
static ie_status
start_position(ie__storage *storage, const ie__group_job *job, int64_t *position, ie_error *err)
{
    const int64_t last = storage->appended != 0 ? storage->appended : storage->last;
    ie_status     status = IE_OK;

    switch (job->start) {
    case IE_BUS_START_FIRST: *position = storage->first != 0 ? storage->first - 1 : 0; break;
    case IE_BUS_START_POSITION: *position = job->start_at > 1 ? job->start_at - 1 : 0; break;
    case IE_BUS_START_TIME:
        status = ie__storage_at_time(storage, position, job->start_at, err);
        break;
    case IE_BUS_START_GROUP:
        if (!job->is_new)
            return IE_OK;
        *position = last;
        break;
    case IE_BUS_START_END: *position = last; break;
    default: return ie_error_set(err, IE_EINVAL, "unknown start %d", (int)job->start);
    }
    if (*position > last)
        *position = last;
    return status;
}

static ie_status
group_delete(ie__storage *storage, const ie__group_row *row, const char *cursor, ie_error *err)
{
    ie_status status;

    status = run_once(storage, "DELETE FROM main.ie_delivery WHERE cursor = ?1", "t", err, cursor);
    if (status == IE_OK)
        status = run_once(storage, "DELETE FROM main.ie_cursor WHERE name = ?1", "t", err, cursor);
    if (status == IE_OK)
        status =
            run_once(storage, "DELETE FROM main.ie_bus_group WHERE id = ?1", "i", err, row->id);
    return status;
}

static ie_status
group_insert(ie__storage *storage, ie__group_row *row, ie_error *err)
{
    char      cursor[IE__GROUP_CURSOR_SIZE];
    ie_status status =
        run_once(storage,
                 "INSERT INTO main.ie_bus_group (name, pattern, selection, ack_timeout_ms,"
                 " attempts_max, is_paused, lost) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
                 "ttiiii", err, row->name, row->pattern, (int64_t)row->selection,
                 (int64_t)row->ack_timeout_ms, (int64_t)row->attempts_max, (int64_t)row->is_paused);

    if (status != IE_OK)
        return status;
    row->id = sqlite3_last_insert_rowid(storage->db);
    ie__group_cursor(cursor, row->id);
    return run_once(storage,
                    "INSERT INTO main.ie_cursor (name, position, claimed_to, seen_at, destination,"
                    " topics) VALUES (?1, ?2, ?2, ?3, ?4, ?5)",
                    "tiitt", err, cursor, row->position, ie__wall_ms(storage->clock), row->name,
                    row->pattern);
}

static ie_status
group_update(ie__storage *storage, const ie__group_job *job, const char *cursor, ie_error *err)
{
    const ie__group_row *row = &job->row;
    ie_status            status =
        run_once(storage,
                 "UPDATE main.ie_bus_group SET selection = ?2, ack_timeout_ms = ?3,"
                 " attempts_max = ?4, is_paused = ?5 WHERE id = ?1",
                 "iiiii", err, row->id, (int64_t)row->selection, (int64_t)row->ack_timeout_ms,
                 (int64_t)row->attempts_max, (int64_t)row->is_paused);

    if (status != IE_OK || job->start == IE_BUS_START_GROUP)
        return status;
    /* It will have those events again, so what is noted about them is over. */
    status = run_once(storage, "DELETE FROM main.ie_delivery WHERE cursor = ?1 AND position > ?2",
                      "ti", err, cursor, row->position);
    if (status == IE_OK)
        status = run_once(storage,
                          "UPDATE main.ie_cursor SET position = ?2, claimed_to = ?2, seen_at = ?3"
                          " WHERE name = ?1",
                          "tii", err, cursor, row->position, ie__wall_ms(storage->clock));
    return status;
}

static ie_status
group_count_rows(ie__storage *storage, ie__group_row *row, const char *cursor, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(&stmt, storage->db,
                                           "SELECT count(*) FILTER (WHERE state = 'dead'),"
                                               " count(*) FILTER (WHERE state IN ('retrying', 'blocked'))"
                                               " FROM main.ie_delivery WHERE cursor = ?1",
                                           err);

    if (status == IE_OK) {
        (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
        if (sqlite3_step(stmt) == SQLITE_ROW) {
            row->dead = (uint64_t)sqlite3_column_int64(stmt, 0);
            row->waiting = (uint64_t)sqlite3_column_int64(stmt, 1);
        } else {
            status = ie__sql_fail(storage->db, sqlite3_errcode(storage->db), "count", err);
        }
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

static void
collect_key(void *user, uint64_t key_hash, uint64_t count)
{
    ie__group_job *job = user;
    uint64_t      *grown = ie__realloc_array(job->held, 2 * (job->held_count + 1), sizeof *grown);

    if (grown == NULL)
        return;
    job->held = grown;
    grown[2 * job->held_count] = key_hash;
    grown[2 * job->held_count++ + 1] = count;
}

static ie_status
group_run(ie__storage *storage, ie__job *base, ie_error *err)
{
    ie__group_job *job = (ie__group_job *)(void *)base;
    char           cursor[IE__GROUP_CURSOR_SIZE];
    ie_status      status;

    ie__group_cursor(cursor, job->row.id);
    if (job->is_delete)
        return group_delete(storage, &job->row, cursor, err);
    status = start_position(storage, job, &job->row.position, err);
    if (status != IE_OK)
        return status;
    if (job->is_new)
        return group_insert(storage, &job->row, err);
    status = group_update(storage, job, cursor, err);
    if (status == IE_OK)
        status = group_count_rows(storage, &job->row, cursor, err);
    job->held_count = 0;
    if (status == IE_OK && job->start != IE_BUS_START_GROUP)
        status = ie__storage_held_keys(storage, job->row.id, collect_key, job, err);
    return status;
}

static void
group_committed(ie__storage *storage, ie__job *base)
{
    const ie__group_job *job = (ie__group_job *)(void *)base;

    if (job->is_delete)
        group_forget(storage, job->row.id);
    else if (job->is_new || job->start != IE_BUS_START_GROUP)
        (void)group_know(storage, &job->row);
}

void
ie__group_job_init(ie__group_job *job, void (*done)(ie__store *store, ie__job *job), void *user)
{
    memset(job, 0, sizeof *job);
    job->job.run = group_run;
    job->job.committed = group_committed;
    job->job.done = done;
    job->job.user = user;
}

/* ---- cursors -------------------------------------------------------------------------------- */

static ie_status
mark_run(ie__storage *storage, ie__job *base, ie_error *err)
{
    const ie__mark_job *job = (ie__mark_job *)(void *)base;
    char                cursor[IE__GROUP_CURSOR_SIZE];

    ie__group_cursor(cursor, job->group);
    (void)sqlite3_bind_text(storage->cursor_set, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(storage->cursor_set, 2, job->position);
    (void)sqlite3_bind_int64(storage->cursor_set, 3, ie__wall_ms(storage->clock));
    return ie__sql_run(storage->db, storage->cursor_set, "move cursor", err);
}

static void
mark_committed(ie__storage *storage, ie__job *base)
{
    const ie__mark_job *job = (ie__mark_job *)(void *)base;
    ie__stored_group   *group = ie__storage_group(storage, job->group);

    if (group != NULL)
        group->position = job->position;
}

void
ie__mark_job_init(ie__mark_job *job, int64_t group, int64_t position,
                  void (*done)(ie__store *store, ie__job *job), void *user)
{
    memset(job, 0, sizeof *job);
    job->job.run = mark_run;
    job->job.committed = mark_committed;
    job->job.done = done;
    job->job.user = user;
    job->group = group;
    job->position = position;
}

/* ---- deliveries ----------------------------------------------------------------------------- */

/* The key's hash as text: what the column holds. */
#define KEY_TEXT_SIZE 17

static ie_status
trouble_run(ie__storage *storage, ie__job *base, ie_error *err)
{
    const ie__trouble_job *job = (ie__trouble_job *)(void *)base;
    sqlite3_stmt          *stmt =
        job->state == IE_STATE_PUBLISHED ? storage->trouble_remove : storage->trouble_put;
    char cursor[IE__GROUP_CURSOR_SIZE];
    char key[KEY_TEXT_SIZE];

    ie__group_cursor(cursor, job->group);
    if (job->state != IE_STATE_PUBLISHED && ie__storage_group(storage, job->group) == NULL)
        return IE_OK; /* the group was deleted meanwhile */
    (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, job->position);
    if (job->state == IE_STATE_PUBLISHED)
        return ie__sql_run(storage->db, stmt, "end a delivery", err);
    (void)sqlite3_bind_text(stmt, 3, ie_state_name(job->state), -1, SQLITE_STATIC);
    if (job->key_hash != 0) {
        (void)snprintf(key, sizeof key, "%016llx", (unsigned long long)job->key_hash);
        (void)sqlite3_bind_text(stmt, 4, key, -1, SQLITE_STATIC);
    }
    (void)sqlite3_bind_int64(stmt, 5, job->attempts);
    if (job->state == IE_STATE_RETRYING)
        (void)sqlite3_bind_int64(stmt, 6, job->due_at_ms);
    (void)sqlite3_bind_int64(stmt, 7, ie__wall_ms(storage->clock));
    (void)sqlite3_bind_text(stmt, 8, job->reason != NULL ? job->reason : "", -1, SQLITE_STATIC);
    return ie__sql_run(storage->db, stmt, "note a delivery", err);
}

static void
trouble_done(ie__store *store, ie__job *base)
{
    ie__trouble_job *job = (ie__trouble_job *)(void *)base;

    (void)store;
    ie__free(job->reason);
    ie__free(job);
}

ie__trouble_job *
ie__trouble_job_new(int64_t group, int64_t position, ie_state state, const char *reason)
{
    ie__trouble_job *job = ie__calloc(1, sizeof *job);

    if (job == NULL)
        return NULL;
    job->job.run = trouble_run;
    job->job.done = trouble_done;
    job->job.bytes = sizeof *job;
    job->group = group;
    job->position = position;
    job->state = state;
    if (reason != NULL && reason[0] != '\0')
        job->reason = ie__strdup(reason); /* without it there is only less to read */
    return job;
}

static ie_status
release_run(ie__storage *storage, ie__job *base, ie_error *err)
{
    const ie__release_job *job = (ie__release_job *)(void *)base;
    char                   cursor[IE__GROUP_CURSOR_SIZE];
    char                   key[KEY_TEXT_SIZE];

    ie__group_cursor(cursor, job->group);
    (void)snprintf(key, sizeof key, "%016llx", (unsigned long long)job->key_hash);
    (void)sqlite3_bind_text(storage->release, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_text(storage->release, 2, key, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(storage->release, 3, ie__wall_ms(storage->clock));
    return ie__sql_run(storage->db, storage->release, "release a key", err);
}

void
ie__release_job_init(ie__release_job *job, int64_t group, uint64_t key_hash,
                     void (*done)(ie__store *store, ie__job *job), void *user)
{
    memset(job, 0, sizeof *job);
    job->job.run = release_run;
    job->job.done = done;
    job->job.user = user;
    job->group = group;
    job->key_hash = key_hash;
}

ie_status
ie__storage_held_keys(ie__storage *storage, int64_t                                      group,
                      void (*each)(void *user, uint64_t key_hash, uint64_t count), void *user,
                      ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    char          cursor[IE__GROUP_CURSOR_SIZE];
    ie_status     status = ie__sql_prepare(
            &stmt, storage->db,
            "SELECT key, count(*) FROM main.ie_delivery WHERE cursor = ?1 AND key IS NOT NULL"
                " AND state IN ('retrying', 'blocked') GROUP BY key",
            err);
    int rc = SQLITE_DONE;

    if (status != IE_OK)
        return status;
    ie__group_cursor(cursor, group);
    (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
        each(user, strtoull(ie__sql_column_text(stmt, 0), NULL, 16),
             (uint64_t)sqlite3_column_int64(stmt, 1));
    if (rc != SQLITE_DONE)
        status = ie__sql_fail(storage->db, rc, "read held keys", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

/* ---- dead letters --------------------------------------------------------------------------- */

static ie_status
dead_list(ie__storage *storage, ie__dead_job *job, const char *cursor, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(
            &stmt, storage->db,
            "SELECT d.position, d.since, d.attempts, d.reason, e.topic, e.id FROM main.ie_delivery AS d"
                " LEFT JOIN main.ie_event AS e ON e.position = d.position WHERE d.cursor = ?1"
                " AND d.state = 'dead' AND d.position > ?2 ORDER BY d.position LIMIT ?3",
            err);
    int rc = SQLITE_DONE;

    if (status != IE_OK)
        return status;
    (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, job->position);
    (void)sqlite3_bind_int64(stmt, 3, (sqlite3_int64)job->rows_max);
    job->count = 0;
    while (job->count < job->rows_max && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        ie__dead_row *row = &job->rows[job->count++];

        row->position = sqlite3_column_int64(stmt, 0);
        row->since_ms = sqlite3_column_int64(stmt, 1);
        row->attempts = (uint32_t)sqlite3_column_int64(stmt, 2);
        (void)snprintf(row->reason, sizeof row->reason, "%s", ie__sql_column_text(stmt, 3));
        (void)snprintf(row->topic, sizeof row->topic, "%s", ie__sql_column_text(stmt, 4));
        (void)snprintf(row->id, sizeof row->id, "%s", ie__sql_column_text(stmt, 5));
    }
    if (rc != SQLITE_DONE && rc != SQLITE_ROW)
        status = ie__sql_fail(storage->db, rc, "read dead letters", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

static ie_status
dead_run(ie__storage *storage, ie__job *base, ie_error *err)
{
    ie__dead_job *job = (ie__dead_job *)(void *)base;
    char          cursor[IE__GROUP_CURSOR_SIZE];
    ie_status     status;

    ie__group_cursor(cursor, job->group);
    if (job->op == IE__DEAD_LIST)
        return dead_list(storage, job, cursor, err);
    if (job->op == IE__DEAD_RETRY)
        status = run_once(storage,
                          "UPDATE main.ie_delivery SET state = 'retrying', due_at = ?3,"
                          " attempts = 0 WHERE cursor = ?1 AND state = 'dead'"
                          " AND (?2 = 0 OR position = ?2)",
                          "tii", err, cursor, job->position, ie__wall_ms(storage->clock));
    else
        status = run_once(storage,
                          "DELETE FROM main.ie_delivery WHERE cursor = ?1 AND state = 'dead'"
                          " AND (?2 = 0 OR position = ?2)",
                          "ti", err, cursor, job->position);
    if (status == IE_OK)
        job->count = (size_t)sqlite3_changes(storage->db);
    return status;
}

ie__dead_job *
ie__dead_job_new(ie__dead_op op, int64_t group, int64_t position, size_t rows_max,
                 void (*done)(ie__store *store, ie__job *job), void *user)
{
    ie__dead_job *job = ie__calloc(1, sizeof *job);

    if (job == NULL)
        return NULL;
    job->job.run = dead_run;
    job->job.done = done;
    job->job.user = user;
    job->job.is_read = op == IE__DEAD_LIST;
    job->op = op;
    job->group = group;
    job->position = position;
    job->rows_max = rows_max;
    if (op == IE__DEAD_LIST) {
        job->rows = ie__calloc(rows_max, sizeof *job->rows);
        if (job->rows == NULL) {
            ie__free(job);
            return NULL;
        }
    }
    return job;
}

void
ie__dead_job_free(ie__dead_job *job)
{
    if (job == NULL)
        return;
    ie__free(job->rows);
    ie__free(job);
}
