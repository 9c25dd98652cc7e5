/*
 * What may go from the log, oldest first, in small steps: what is older than retention_s, or too
 * much for retention_bytes_max, and what every group has had (or not, with IE_BUS_LAGGING_DROP;
 * then it is counted). The newest event always stays, so that no position is given twice.
 */
#include <string.h>

#include "core.h"
#include "storage.h"

#define STEP_ROWS     500
#define SLICE_NS      (5 * INT64_C(1000000))
#define MARK_MS       1000
#define RESUME_MS     600000 /* so often, what deliveries kept is looked at again */
#define MEASURE_BYTES (64 * 1024)

/* ---- when was it stored? -------------------------------------------------------------------- */

ie_status
ie__storage_mark(ie__storage *storage, int64_t position, ie_error *err)
{
    const int64_t now_ms = ie__wall_ms(storage->clock);

    if (now_ms < storage->mark_ms + MARK_MS)
        return IE_OK; /* recent, or the clock was set back */
    (void)sqlite3_bind_int64(storage->mark, 1, position);
    (void)sqlite3_bind_int64(storage->mark, 2, now_ms);
    storage->mark_ms = now_ms;
    return ie__sql_run(storage->db, storage->mark, "note the time", err);
}

/*
 * What follows a mark, up to the next one, was stored within MARK_MS behind it. So everything
 * before the first mark that is younger than wall_ms - MARK_MS is older than wall_ms.
 */
ie_status
ie__storage_at_time(ie__storage *storage, int64_t *position, int64_t wall_ms, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(&stmt, storage->db,
                                           "SELECT position FROM main.ie_bus_mark"
                                               " WHERE stored_at > ?1 ORDER BY position LIMIT 1",
                                           err);

    *position = storage->appended != 0 ? storage->appended : storage->last;
    if (status == IE_OK) {
        int rc;

        (void)sqlite3_bind_int64(stmt, 1, wall_ms - MARK_MS);
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW)
            *position = sqlite3_column_int64(stmt, 0) - 1;
        else if (rc != SQLITE_DONE)
            status = ie__sql_fail(storage->db, rc, "find a time", err);
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

/* ---- how much is there? --------------------------------------------------------------------- */

ie_status
ie__storage_measure(ie__storage *storage, ie_error *err)
{
    ie_status status = IE_OK;
    const int rc = sqlite3_step(storage->pages);

    if (rc == SQLITE_ROW)
        storage->used_bytes = (uint64_t)sqlite3_column_int64(storage->pages, 0) *
                              (uint64_t)sqlite3_column_int64(storage->pages, 1);
    else
        status = ie__sql_fail(storage->db, rc, "measure the log", err);
    (void)sqlite3_reset(storage->pages);
    storage->since_bytes = 0;
    return status;
}

bool
ie__storage_is_big(const ie__storage *storage)
{
    return storage->used_bytes + storage->since_bytes > storage->retention_bytes_max;
}

/* ---- deleting ------------------------------------------------------------------------------- */

static void
loss_add(ie__storage *storage, int64_t group, int64_t position, uint64_t lost, uint64_t dead)
{
    if (storage->loss_count == storage->loss_max) {
        const size_t max = storage->loss_max != 0 ? storage->loss_max * 2 : 16;
        ie__loss    *grown = ie__realloc_array(storage->losses, max, sizeof *grown);

        if (grown == NULL)
            return; /* the numbers in the file are right; those shown wait for the next start */
        storage->losses = grown;
        storage->loss_max = max;
    }
    storage->losses[storage->loss_count++] = (ie__loss){group, position, lost, dead};
}

static int64_t
slowest(const ie__storage *storage)
{
    int64_t least = INT64_MAX;

    for (size_t i = 0; i < storage->group_count; i++)
        if (storage->groups[i].position < least)
            least = storage->groups[i].position;
    return least;
}

/* Up to where may events go now, and must deliveries be spared? */
static ie_status
find_bound(ie__storage *storage, int64_t *bound, ie_error *err)
{
    ie_status status = ie__storage_at_time(
        storage, bound, ie__wall_ms(storage->clock) - (int64_t)storage->retention_s * 1000, err);

    if (ie__storage_is_big(storage))
        *bound = storage->last - 1;
    if (storage->lagging == IE_BUS_LAGGING_KEEP && *bound > slowest(storage))
        *bound = slowest(storage);
    if (*bound > storage->last - 1)
        *bound = storage->last - 1;
    return status;
}

/* The groups that have not had the events of (from, to]: count what they lose. */
static ie_status
count_losses(ie__storage *storage, int64_t from, int64_t to, uint64_t *lost, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(
            &stmt, storage->db,
            "SELECT position, topic FROM main.ie_event WHERE position > ?1 AND position <= ?2", err);
    int rc = SQLITE_DONE;

    if (status != IE_OK)
        return status;
    (void)sqlite3_bind_int64(stmt, 1, from);
    (void)sqlite3_bind_int64(stmt, 2, to);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        const int64_t position = sqlite3_column_int64(stmt, 0);
        const char   *topic = ie__sql_column_text(stmt, 1);

        for (size_t i = 0; i < storage->group_count; i++)
            if (storage->groups[i].position < position &&
                ie_pattern_matches(storage->groups[i].pattern, topic))
                lost[i]++;
    }
    if (rc != SQLITE_DONE)
        status = ie__sql_fail(storage->db, rc, "read the log", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

static ie_status
run_range(ie__storage *storage, const char *sql, int64_t a, int64_t b, int64_t *changes,
          ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(&stmt, storage->db, sql, err);

    if (status != IE_OK)
        return status;
    (void)sqlite3_bind_int64(stmt, 1, a);
    (void)sqlite3_bind_int64(stmt, 2, b);
    status = ie__sql_run(storage->db, stmt, "retention", err);
    if (changes != NULL)
        *changes = status == IE_OK ? sqlite3_changes(storage->db) : 0;
    (void)sqlite3_finalize(stmt);
    return status;
}

/* Groups that stood before what is gone stand behind it now. */
static ie_status
move_laggards(ie__storage *storage, int64_t to, const uint64_t *lost, ie_error *err)
{
    ie_status status = IE_OK;

    for (size_t i = 0; i < storage->group_count && status == IE_OK; i++) {
        const ie__stored_group *group = &storage->groups[i];
        char                    cursor[IE__GROUP_CURSOR_SIZE];

        if (group->position >= to)
            continue;
        ie__group_cursor(cursor, group->id);
        (void)sqlite3_bind_text(storage->cursor_set, 1, cursor, -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(storage->cursor_set, 2, to);
        (void)sqlite3_bind_int64(storage->cursor_set, 3, ie__wall_ms(storage->clock));
        status = ie__sql_run(storage->db, storage->cursor_set, "move cursor", err);
        if (status == IE_OK && lost[i] != 0)
            status = run_range(storage,
                               "UPDATE main.ie_bus_group SET lost = lost + ?2"
                               " WHERE id = ?1",
                               group->id, (int64_t)lost[i], NULL, err);
    }
    return status;
}

/* Delete (storage->resume, to] inside the open transaction. */
static ie_status
delete_run(ie__storage *storage, int64_t to, uint64_t *lost, ie_error *err)
{
    const bool drops = storage->lagging == IE_BUS_LAGGING_DROP;
    ie_status  status = IE_OK;

    if (drops && slowest(storage) < to) {
        status = count_losses(storage, storage->resume, to, lost, err);
        if (status == IE_OK)
            status = move_laggards(storage, to, lost, err);
    }
    if (status == IE_OK && drops && ie__storage_is_big(storage))
        status = run_range(storage,
                           "DELETE FROM main.ie_delivery WHERE position > ?1"
                           " AND position <= ?2 AND state = 'dead'",
                           storage->resume, to, NULL, err);
    if (status == IE_OK)
        status = run_range(storage,
                           "DELETE FROM main.ie_event WHERE position > ?1 AND position <= ?2"
                           " AND NOT EXISTS (SELECT 1 FROM main.ie_delivery AS d"
                           " WHERE d.position = ie_event.position)",
                           storage->resume, to, NULL, err);
    if (status == IE_OK)
        status = run_range(storage,
                           "DELETE FROM main.ie_bus_mark WHERE position <= ?1 AND position <"
                           " (SELECT max(position) FROM main.ie_bus_mark WHERE position <= ?1)",
                           to, 0, NULL, err);
    return status;
}

static ie_status
next_end(ie__storage *storage, int64_t bound, int64_t *to, int64_t *count, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status =
        ie__sql_prepare(&stmt, storage->db,
                        "SELECT max(position), count(*) FROM (SELECT position FROM main.ie_event"
                        " WHERE position > ?1 AND position <= ?2 ORDER BY position LIMIT ?3)",
                        err);

    *to = *count = 0;
    if (status != IE_OK)
        return status;
    (void)sqlite3_bind_int64(stmt, 1, storage->resume);
    (void)sqlite3_bind_int64(stmt, 2, bound);
    (void)sqlite3_bind_int64(stmt, 3, STEP_ROWS);
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        *to = sqlite3_column_int64(stmt, 0);
        *count = sqlite3_column_int64(stmt, 1);
    } else {
        status = ie__sql_fail(storage->db, sqlite3_errcode(storage->db), "read the log", err);
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

/* After the commit: what the thread knows, and what the loop is to hear. */
static void
note_losses(ie__storage *storage, int64_t to, const uint64_t *lost)
{
    for (size_t i = 0; i < storage->group_count; i++) {
        ie__stored_group *group = &storage->groups[i];

        if (group->position >= to || storage->lagging != IE_BUS_LAGGING_DROP)
            continue;
        group->position = to;
        group->lost += lost[i];
        storage->lost += lost[i];
        loss_add(storage, group->id, to, lost[i], 0);
    }
}

static ie_status
delete_step(ie__storage *storage, bool *more, ie_error *err)
{
    uint64_t *lost = NULL;
    int64_t   bound = 0;
    int64_t   to = 0;
    int64_t   count = 0;
    ie_status status = find_bound(storage, &bound, err);

    *more = false;
    if (status == IE_OK && bound > storage->resume)
        status = next_end(storage, bound, &to, &count, err);
    if (status != IE_OK || count == 0)
        return status;
    lost = ie__calloc(storage->group_count + 1, sizeof *lost);
    if (lost == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for retention");
    status = ie__storage_begin(storage, err);
    if (status == IE_OK) {
        status = delete_run(storage, to, lost, err);
        if (status == IE_OK)
            status = ie__storage_commit(storage, err);
        else
            ie__storage_rollback(storage);
    }
    if (status == IE_OK) {
        note_losses(storage, to, lost);
        storage->resume = to;
        *more = count == STEP_ROWS;
    }
    ie__free(lost);
    return status;
}

/* Dead letters live as long as events do, from the day of their death. */
static ie_status
delete_dead(ie__storage *storage, bool *more, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    size_t        count = 0;
    ie_status     status = ie__sql_prepare(
            &stmt, storage->db,
            "DELETE FROM main.ie_delivery WHERE (cursor, position) IN (SELECT cursor, position"
                " FROM main.ie_delivery WHERE state = 'dead' AND since <= ?1 LIMIT ?2)"
                " RETURNING cast(substr(cursor, 7) AS INTEGER)",
            err);
    int rc = SQLITE_DONE;

    if (status == IE_OK)
        status = ie__storage_begin(storage, err);
    if (status != IE_OK) {
        (void)sqlite3_finalize(stmt);
        return status;
    }
    (void)sqlite3_bind_int64(stmt, 1,
                             ie__wall_ms(storage->clock) - (int64_t)storage->retention_s * 1000);
    (void)sqlite3_bind_int64(stmt, 2, STEP_ROWS);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        loss_add(storage, sqlite3_column_int64(stmt, 0), 0, 0, 1);
        count++;
    }
    if (rc != SQLITE_DONE)
        status = ie__sql_fail(storage->db, rc, "delete dead letters", err);
    (void)sqlite3_finalize(stmt);
    if (status == IE_OK)
        status = ie__storage_commit(storage, err);
    else
        ie__storage_rollback(storage);
    if (status != IE_OK)
        storage->loss_count -= count < storage->loss_count ? count : storage->loss_count;
    else if (count != 0)
        storage->resume = 0; /* their events may go now */
    *more = status == IE_OK && count == STEP_ROWS;
    return status;
}

ie_status
ie__storage_retain(ie__storage *storage, bool *more, ie_error *err)
{
    const int64_t started_ns = ie__mono_ns();
    const int64_t now_ms = ie__boot_ms(storage->clock);
    bool          more_dead = false;
    ie_status     status = delete_dead(storage, &more_dead, err);

    *more = false;
    if (now_ms - storage->resume_reset_ms >= RESUME_MS) {
        storage->resume_reset_ms = now_ms;
        storage->resume = 0;
    }
    do {
        if (status == IE_OK)
            status = delete_step(storage, more, err);
        if (status == IE_OK)
            status = ie__storage_measure(storage, err);
    } while (status == IE_OK && *more && ie__mono_ns() - started_ns < SLICE_NS);
    if (status == IE_OK)
        status = ie__sql_int(&storage->first, storage->db,
                             "SELECT min(position) FROM main.ie_event", 0, err);
    /* Nothing more may go and it is still too much: then nothing more can come. */
    storage->is_full = status == IE_OK && !*more && storage->lagging == IE_BUS_LAGGING_KEEP &&
                       ie__storage_is_big(storage);
    *more = *more || more_dead;
    return status;
}
