/* Manners of a guest: how we open somebody's file, what we refuse, and the one safe checkpoint. */
#include "log.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/vfs.h>
#include <time.h>

#include "core.h"

/* From statfs(2): file systems where SQLite's shared memory or locks do not work across hosts. */
static const struct {
    unsigned long magic;
    const char   *name;
} NETWORK_FS[] = {
    {0x6969, "NFS"},     {0xFF534D42, "CIFS"}, {0xFE534D42, "SMB2"},
    {0x517B, "SMB"},     {0x01021997, "9p"},   {0x65735546, "FUSE"},
    {0x5346414F, "AFS"}, {0x00C36400, "Ceph"}, {0x0BD00BD0, "Lustre"},
};

ie_status
ie__database_local(const char *path, ie_error *err)
{
    struct statfs fs;

    if (statfs(path, &fs) != 0)
        return IE_OK; /* not there yet, or not a path; opening it will say so */
    for (size_t i = 0; i < sizeof NETWORK_FS / sizeof NETWORK_FS[0]; i++)
        if ((unsigned long)fs.f_type == NETWORK_FS[i].magic)
            return ie_error_set(
                err, IE_ENOTSUP,
                "%s is on a %s file system, where SQLite's locks cannot be trusted; "
                "move it to a local disk",
                path, NETWORK_FS[i].name);
    return IE_OK;
}

/*
 * Wait for the write lock on a connection of ours. SQLite's own handler sleeps up to 100 ms at a
 * time, so beside a host that commits without end it hardly ever meets the gap between two
 * transactions. Short random sleeps do, and cost little: the wait is rare and bounded.
 */
static int
wait_for_lock(void *user, int count)
{
    static _Thread_local int64_t started_ns;
    const int64_t                now_ns = ie__mono_ns();
    const int64_t                limit_ms = (int64_t)(intptr_t)user;
    const uint64_t               ceiling_us =
        count < 20 ? 100 + 50 * (uint64_t)count : 1000 + 20 * (uint64_t)count;
    struct timespec pause = {0};

    if (count == 0)
        started_ns = now_ns;
    if (now_ns - started_ns >= limit_ms * 1000000)
        return 0;
    pause.tv_nsec = (long)(20 + ie__random_below(ceiling_us < 5000 ? ceiling_us : 5000)) * 1000;
    (void)nanosleep(&pause, NULL);
    return 1;
}

ie_status
ie__database_manners(sqlite3 *db, uint32_t busy_ms_max, ie_error *err)
{
    char      mode[16];
    ie_status status;

    (void)sqlite3_extended_result_codes(db, 1);
    (void)sqlite3_busy_handler(db, wait_for_lock, (void *)(intptr_t)busy_ms_max);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    if (sqlite3_wal_autocheckpoint(db, 0) != SQLITE_OK)
        return ie__sql_fail(db, SQLITE_ERROR, "switch automatic checkpoints off", err);
    status = ie__sql_exec(db, "PRAGMA mmap_size=0; PRAGMA foreign_keys=OFF", err);
    if (status == IE_OK)
        status = ie__sql_text(mode, sizeof mode, db, "PRAGMA main.journal_mode", "", err);
    if (status != IE_OK)
        return status;
    /* Losing our last marks in a power cut costs duplicates, which receivers expect. */
    return ie__sql_exec(db,
                        strcasecmp(mode, "wal") == 0 ? "PRAGMA main.synchronous=NORMAL"
                                                     : "PRAGMA main.synchronous=EXTRA",
                        err);
}

ie_status
ie__database_open(sqlite3 **out, const char *path, uint32_t busy_ms_max, ie_error *err)
{
    sqlite3  *db = NULL;
    ie_error  why = IE_ERROR_INIT;
    ie_status status;
    const int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);

    if (rc != SQLITE_OK) {
        status =
            ie_error_set(err, rc == SQLITE_CANTOPEN ? IE_ENOTFOUND : IE_EIO, "open database %s: %s",
                         path, db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    } else {
        status = ie__database_manners(db, busy_ms_max, &why);
        if (status != IE_OK)
            (void)ie_error_set(err, status, "open database %s: %s", path, why.message);
    }
    if (status != IE_OK) {
        (void)sqlite3_close(db);
        return status;
    }
    *out = db;
    return IE_OK;
}

ie_status
ie__database_durability(char out[IE__DURABILITY_SIZE], bool *is_weak, sqlite3 *db,
                        const char *schema, ie_error *err)
{
    static const char *const LEVELS[] = {"off", "normal", "full", "extra"};
    char                     sql[128];
    char                     mode[16];
    int64_t                  level = 0;
    ie_status                status;

    (void)snprintf(sql, sizeof sql, "PRAGMA %s.journal_mode", schema);
    status = ie__sql_text(mode, sizeof mode, db, sql, "", err);
    if (status != IE_OK)
        return status;
    (void)snprintf(sql, sizeof sql, "PRAGMA %s.synchronous", schema);
    status = ie__sql_int(&level, db, sql, 0, err);
    if (status != IE_OK)
        return status;
    level = level < 0 ? 0 : level > 3 ? 3 : level;
    (void)snprintf(out, IE__DURABILITY_SIZE, "%s+%s", mode, LEVELS[level]);
    if (level == 0 || strcasecmp(mode, "off") == 0 || strcasecmp(mode, "memory") == 0)
        return ie_error_set(
            err, IE_EUNSAFE,
            "journal_mode %s with synchronous %s loses or corrupts data in a crash; use "
            "WAL, TRUNCATE or PERSIST with FULL",
            mode, LEVELS[level]);
    /* A power cut takes back the last commits, published or not (WAL), or may undo a finished one
     * (DELETE: the journal's removal is not synced before EXTRA). */
    *is_weak = level == 1 || (strcasecmp(mode, "delete") == 0 && level < 3);
    return IE_OK;
}

ie_status
ie__database_in_place(sqlite3 *db, ie_error *err)
{
    int moved = 0;

    if (sqlite3_file_control(db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved != 0)
        return ie_error_set(
            err, IE_EMOVED,
            "the database file %s was moved, removed or replaced while it was open; "
            "start again on the right file",
            sqlite3_db_filename(db, "main"));
    return IE_OK;
}

bool
ie__sqlite_has_wal_reset_bug(int version)
{
    if (version < 3007000 || version >= 3051003)
        return false;
    return !(version >= 3050007 && version < 3051000) && !(version >= 3044006 && version < 3045000);
}

/*
 * The guard takes the write lock on one connection, the checkpoint runs on another: nobody can
 * commit into the window that the WAL-reset bug needs. PASSIVE never waits for readers.
 */
ie_status
ie__database_checkpoint(const char *path, uint32_t frames_min, ie_error *err)
{
    sqlite3  *guard = NULL;
    sqlite3  *worker = NULL;
    int       frames = 0;
    int       done = 0;
    ie_status status = ie__database_open(&guard, path, 50, err);

    if (status == IE_OK)
        status = ie__database_open(&worker, path, 50, err);
    if (status == IE_OK)
        status = ie__sql_begin(guard, err);
    if (status == IE_OK) {
        /* NOOP is newer than our SQLite; the -wal's size is read through SQLite's own handle. */
        sqlite3_file *wal = NULL;
        sqlite3_int64 bytes = 0;
        int64_t       page_bytes = 0;

        if (sqlite3_file_control(guard, "main", SQLITE_FCNTL_JOURNAL_POINTER, &wal) == SQLITE_OK &&
            wal != NULL && wal->pMethods != NULL)
            (void)wal->pMethods->xFileSize(wal, &bytes);
        status = ie__sql_int(&page_bytes, guard, "PRAGMA main.page_size", 4096, err);
        if (status == IE_OK && bytes / page_bytes >= (sqlite3_int64)frames_min) {
            const int rc = sqlite3_wal_checkpoint_v2(worker, "main", SQLITE_CHECKPOINT_PASSIVE,
                                                     &frames, &done);

            if (rc != SQLITE_OK && (rc & 0xff) != SQLITE_BUSY)
                status = ie__sql_fail(worker, rc, "checkpoint", err);
        }
        ie__sql_rollback(guard);
    }
    (void)sqlite3_close(worker);
    (void)sqlite3_close(guard);
    return status;
}
