/*
 * Cursors: how far a destination is, and who may move it. Every write carries the epoch, so an
 * owner that lost its lease changes nothing.
 */
#include "log.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

/* How much smaller the next window is after each crash: 2000, 62, 1. */
#define SUSPECT_SHRINK 32

struct ie__cursors {
    sqlite3        *db;
    const ie_clock *clock;
    sqlite3_stmt   *begin;
    sqlite3_stmt   *commit;
    sqlite3_stmt   *get;
    sqlite3_stmt   *insert;
    sqlite3_stmt   *take;
    sqlite3_stmt   *advance;
    sqlite3_stmt   *claim;
    sqlite3_stmt   *release;
    sqlite3_stmt   *breaker;
};

/* ---- owners ---- */

/*
 * From /proc/PID/stat: the process's start (field 22, in clock ticks since boot), 0 when it is
 * gone. One that has ended and only waits for its parent is gone too: many a container has nobody
 * who collects. (A first thread that ended before the others looks the same, but for their number.)
 */
static unsigned long long
process_start(long pid)
{
    char               path[64];
    char               line[1024];
    char               state = '?';
    long               threads = 0;
    const char        *at;
    unsigned long long start = 0;
    FILE              *file;

    (void)snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    file = fopen(path, "re");
    if (file == NULL)
        return 0;
    if (fgets(line, sizeof line, file) != NULL && (at = strrchr(line, ')')) != NULL &&
        sscanf(at,
               ") %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld %*s %llu",
               &state, &threads, &start) == 3 &&
        (state == 'Z' || state == 'X') && threads <= 1)
        start = 0;
    (void)fclose(file);
    return start;
}

static unsigned long long
pid_namespace(void)
{
    struct stat st;

    return stat("/proc/self/ns/pid", &st) == 0 ? (unsigned long long)st.st_ino : 0;
}

void
ie__owner_make(char out[IE__OWNER_SIZE])
{
    uint64_t random;

    ie__random(&random, sizeof random);
    (void)snprintf(out, IE__OWNER_SIZE, "%llu:%ld:%llu:%016llx", pid_namespace(), (long)getpid(),
                   process_start((long)getpid()), (unsigned long long)random);
}

bool
ie__owner_is_gone(const char *owner, const char *boot_id)
{
    unsigned long long space = 0;
    unsigned long long start = 0;
    long               pid = 0;

    if (strcmp(boot_id, ie__boot_id()) != 0)
        return true; /* the machine has started anew since */
    if (sscanf(owner, "%llu:%ld:%llu:", &space, &pid, &start) != 3 || pid <= 0 || start == 0)
        return false;
    if (space == 0 || space != pid_namespace())
        return false; /* another container: its process numbers mean nothing here */
    if (kill((pid_t)pid, 0) != 0 && errno == ESRCH)
        return true;
    return process_start(pid) != start; /* the number belongs to a later process */
}

/* ---- statements ---- */

ie_status
ie__cursors_open(ie__cursors **out, sqlite3 *db, const ie_clock *clock, ie_error *err)
{
    ie__cursors *cursors = ie__calloc(1, sizeof *cursors);
    ie_status    status = IE_OK;

    if (cursors == NULL)
        return ie_error_set(err, IE_ENOMEM, "open cursors: out of memory");
    cursors->db = db;
    cursors->clock = ie__clock_or_system(clock);
    const struct {
        sqlite3_stmt **stmt;
        const char    *sql;
    } statements[] = {
        {&cursors->begin, "BEGIN IMMEDIATE"},
        {&cursors->commit, "COMMIT"},
        {&cursors->get,
         "SELECT position, claimed_to, suspect_to, suspect_window, crashes, claims, epoch, owner,"
         " boot_id, lease_until, (SELECT coalesce(max(position), 0) FROM main.ie_event)"
         " FROM main.ie_cursor WHERE name = ?1"},
        {&cursors->insert,
         "INSERT INTO main.ie_cursor (name, position) VALUES (?1, CASE ?2 WHEN 0 THEN 0 ELSE"
         " (SELECT coalesce(max(position), 0) FROM main.ie_event) END)"},
        {&cursors->take,
         "UPDATE main.ie_cursor SET claimed_to = ?2, suspect_to = ?3, suspect_window = ?4,"
         " crashes = ?5, epoch = epoch + 1, owner = ?6, boot_id = ?7, lease_until = ?8,"
         " seen_at = ?9, destination = ?10, topics = ?11, event_order = ?12, breaker = NULL"
         " WHERE name = ?1"},
        {&cursors->advance,
         "UPDATE main.ie_cursor SET position = ?2, claimed_to = ?3, lease_until = ?4, seen_at = ?5,"
         " crashes = CASE WHEN ?2 > position OR ?7 THEN 0 ELSE crashes END,"
         " claims = CASE WHEN ?2 > position OR ?7 THEN 0 ELSE claims END,"
         " suspect_window = CASE WHEN ?2 >= suspect_to THEN 0 ELSE suspect_window END"
         " WHERE name = ?1 AND epoch = ?6"},
        {&cursors->claim,
         "UPDATE main.ie_cursor SET claims = claims + 1 WHERE name = ?1 AND epoch = ?2"},
        {&cursors->release,
         "UPDATE main.ie_cursor SET owner = NULL, lease_until = 0, claimed_to = position,"
         " suspect_to = 0, suspect_window = 0, crashes = 0, claims = 0, breaker = NULL, seen_at = "
         "?3"
         " WHERE name = ?1 AND epoch = ?2"},
        {&cursors->breaker,
         "UPDATE main.ie_cursor SET breaker = ?3, breaker_since = ?4, breaker_until = ?5"
         " WHERE name = ?1 AND epoch = ?2"},
    };
    for (size_t i = 0; status == IE_OK && i < sizeof statements / sizeof statements[0]; i++)
        status = ie__sql_prepare(statements[i].stmt, db, statements[i].sql, err);
    if (status != IE_OK) {
        ie__cursors_close(cursors);
        return status;
    }
    *out = cursors;
    return IE_OK;
}

void
ie__cursors_close(ie__cursors *cursors)
{
    if (cursors == NULL)
        return;
    (void)sqlite3_finalize(cursors->begin);
    (void)sqlite3_finalize(cursors->commit);
    (void)sqlite3_finalize(cursors->get);
    (void)sqlite3_finalize(cursors->insert);
    (void)sqlite3_finalize(cursors->take);
    (void)sqlite3_finalize(cursors->advance);
    (void)sqlite3_finalize(cursors->claim);
    (void)sqlite3_finalize(cursors->release);
    (void)sqlite3_finalize(cursors->breaker);
    ie__free(cursors);
}

ie_status
ie__cursors_begin(ie__cursors *cursors, ie_error *err)
{
    return ie__sql_run(cursors->db, cursors->begin, "BEGIN IMMEDIATE", err);
}

ie_status
ie__cursors_commit(ie__cursors *cursors, ie_error *err)
{
    const ie_status status = ie__sql_run(cursors->db, cursors->commit, "COMMIT", err);

    if (status != IE_OK)
        ie__sql_rollback(cursors->db);
    return status;
}

/* ---- the lease ---- */

static ie_status
cursor_create(ie__cursors *cursors, const ie__lease_request *request, ie_error *err)
{
    (void)sqlite3_bind_text(cursors->insert, 1, request->name, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int(cursors->insert, 2, request->start_now ? 1 : 0);
    return ie__sql_run(cursors->db, cursors->insert, "create cursor", err);
}

/* What a dead owner leaves behind: see the table's comment. */
static void
cursor_suspect(ie__cursor *cursor, const ie__lease_request *request)
{
    const int64_t end = cursor->claimed_to < cursor->newest ? cursor->claimed_to : cursor->newest;

    if (end <= cursor->position) {
        cursor->crashes = 0; /* it had nothing in its hands */
        return;
    }
    cursor->crashes++;
    if (cursor->suspect_to <= cursor->position || cursor->suspect_window == 0) {
        cursor->suspect_to = end;
        cursor->suspect_window = request->reserve;
    }
    cursor->must_bury = cursor->suspect_window == 1 && cursor->claims >= request->claims_max;
    cursor->suspect_window /= SUSPECT_SHRINK;
    if (cursor->suspect_window == 0)
        cursor->suspect_window = 1;
}

/* Read the row, created when missing, and decide whether the lease may be taken. */
static ie_status
cursor_look(ie__cursors *cursors, const ie__lease_request *request, ie__cursor *out,
            uint32_t *retry_ms, ie_error *err)
{
    sqlite3_stmt *get = cursors->get;
    const int64_t boot_ms = ie__boot_ms(cursors->clock);
    ie_status     status = IE_OK;
    const char   *owner;
    const char   *boot_id;
    int64_t       lease_until;
    int           rc;

    (void)sqlite3_bind_text(get, 1, request->name, -1, SQLITE_STATIC);
    rc = sqlite3_step(get);
    if (rc == SQLITE_DONE) {
        (void)sqlite3_reset(get);
        status = cursor_create(cursors, request, err);
        rc = status == IE_OK ? sqlite3_step(get) : SQLITE_DONE;
    }
    if (rc != SQLITE_ROW) {
        if (status == IE_OK)
            status = ie__sql_fail(cursors->db, rc, "read cursor", err);
        (void)sqlite3_reset(get);
        return status;
    }
    memset(out, 0, sizeof *out);
    (void)snprintf(out->name, sizeof out->name, "%s", request->name);
    out->position = sqlite3_column_int64(get, 0);
    out->claimed_to = sqlite3_column_int64(get, 1);
    out->suspect_to = sqlite3_column_int64(get, 2);
    out->suspect_window = (uint32_t)sqlite3_column_int64(get, 3);
    out->crashes = (uint32_t)sqlite3_column_int64(get, 4);
    out->claims = (uint32_t)sqlite3_column_int64(get, 5);
    out->epoch = sqlite3_column_int64(get, 6);
    owner = (const char *)sqlite3_column_text(get, 7);
    boot_id = ie__sql_column_text(get, 8);
    lease_until = sqlite3_column_int64(get, 9);
    out->newest = sqlite3_column_int64(get, 10);
    if (out->position > out->newest) {
        status = ie_error_set(
            err, IE_ECURSOR,
            "cursor %s stands at position %lld, beyond the newest event %lld: the file "
            "was restored or changed by hand; compare it with its backup, then set the "
            "cursor's position yourself",
            request->name, (long long)out->position, (long long)out->newest);
    } else if (owner != NULL && strcmp(owner, request->owner) != 0) {
        const bool is_over = strcmp(boot_id, ie__boot_id()) != 0 || lease_until <= boot_ms ||
                             lease_until > boot_ms + 86400000 || ie__owner_is_gone(owner, boot_id);

        if (!is_over) {
            const int64_t left = lease_until - boot_ms;

            *retry_ms = (uint32_t)(left < 500 ? left + 1 : 500);
            status =
                ie_error_set(err, IE_ELEASE, "cursor %s is served by worker %s for another %lld ms",
                             request->name, owner, (long long)left);
        } else {
            cursor_suspect(out, request);
        }
    }
    (void)sqlite3_reset(get);
    return status;
}

ie_status
ie__cursor_take(ie__cursors *cursors, const ie__lease_request *request, ie__cursor *out,
                uint32_t *retry_ms, ie_error *err)
{
    sqlite3_stmt *take = cursors->take;
    ie_status     status = ie__sql_begin(cursors->db, err);

    *retry_ms = request->lease_ms;
    if (status != IE_OK)
        return status;
    status = cursor_look(cursors, request, out, retry_ms, err);
    if (status == IE_OK) {
        out->claimed_to = out->position + request->reserve;
        out->epoch++;
        (void)sqlite3_bind_text(take, 1, request->name, -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(take, 2, out->claimed_to);
        (void)sqlite3_bind_int64(take, 3, out->suspect_to);
        (void)sqlite3_bind_int64(take, 4, out->suspect_window);
        (void)sqlite3_bind_int64(take, 5, out->crashes);
        (void)sqlite3_bind_text(take, 6, request->owner, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(take, 7, ie__boot_id(), -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(take, 8, ie__boot_ms(cursors->clock) + request->lease_ms);
        (void)sqlite3_bind_int64(take, 9, ie__wall_ms(cursors->clock));
        (void)sqlite3_bind_text(take, 10, request->destination, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(take, 11, request->topics, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(take, 12, request->order, -1, SQLITE_STATIC);
        status = ie__sql_run(cursors->db, take, "take lease", err);
    }
    if (status != IE_OK) {
        ie__sql_rollback(cursors->db);
        return status;
    }
    return ie__sql_commit(cursors->db, err);
}

/* Run an UPDATE that carries the epoch; no row changed means that somebody else took over. */
static ie_status
run_fenced(ie__cursors *cursors, sqlite3_stmt *stmt, const char *what, const ie__cursor *cursor,
           ie_error *err)
{
    ie_status status = ie__sql_run(cursors->db, stmt, what, err);

    if (status == IE_OK && sqlite3_changes(cursors->db) != 1)
        status = ie_error_set(err, IE_ELEASE, "%s: another worker has taken cursor %s over", what,
                              cursor->name);
    return status;
}

ie_status
ie__cursor_advance(ie__cursors *cursors, ie__cursor *cursor, int64_t position, uint32_t reserve,
                   uint32_t lease_ms, bool unclaim, ie_error *err)
{
    sqlite3_stmt *stmt = cursors->advance;

    (void)sqlite3_bind_text(stmt, 1, cursor->name, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, position);
    (void)sqlite3_bind_int64(stmt, 3, position + reserve);
    (void)sqlite3_bind_int64(stmt, 4, ie__boot_ms(cursors->clock) + lease_ms);
    (void)sqlite3_bind_int64(stmt, 5, ie__wall_ms(cursors->clock));
    (void)sqlite3_bind_int64(stmt, 6, cursor->epoch);
    (void)sqlite3_bind_int(stmt, 7, unclaim ? 1 : 0);
    return run_fenced(cursors, stmt, "advance", cursor, err);
}

ie_status
ie__cursor_claim(ie__cursors *cursors, ie__cursor *cursor, ie_error *err)
{
    ie_status status = ie__sql_begin(cursors->db, err);

    if (status != IE_OK)
        return status;
    (void)sqlite3_bind_text(cursors->claim, 1, cursor->name, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(cursors->claim, 2, cursor->epoch);
    status = run_fenced(cursors, cursors->claim, "claim", cursor, err);
    if (status == IE_OK)
        status = ie__sql_commit(cursors->db, err);
    else
        ie__sql_rollback(cursors->db);
    if (status == IE_OK)
        cursor->claims++;
    return status;
}

ie_status
ie__cursor_release(ie__cursors *cursors, const ie__cursor *cursor, ie_error *err)
{
    (void)sqlite3_bind_text(cursors->release, 1, cursor->name, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(cursors->release, 2, cursor->epoch);
    (void)sqlite3_bind_int64(cursors->release, 3, ie__wall_ms(cursors->clock));
    return run_fenced(cursors, cursors->release, "release", cursor, err);
}

ie_status
ie__cursor_breaker(ie__cursors *cursors, const ie__cursor *cursor, const char *reason,
                   int64_t since_ms, int64_t until_ms, ie_error *err)
{
    sqlite3_stmt *stmt = cursors->breaker;

    (void)sqlite3_bind_text(stmt, 1, cursor->name, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, cursor->epoch);
    (void)sqlite3_bind_text(stmt, 3, reason, -1, SQLITE_STATIC); /* NULL binds NULL: closed */
    (void)sqlite3_bind_int64(stmt, 4, since_ms);
    (void)sqlite3_bind_int64(stmt, 5, until_ms);
    return run_fenced(cursors, stmt, "note breaker", cursor, err);
}
