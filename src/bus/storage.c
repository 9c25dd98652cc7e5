/* The bus's log as a file: opening it, transactions, appending, reading. */
#include "storage.h"

#include <errno.h>
#include <fcntl.h>
#include <ie/migrate.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

#define BATCH_ROWS     512
#define DEFAULT_SOURCE "ie" /* the source of an event that was written by hand without one */

/* Version 1 of what the bus adds to the log's tables; ie_meta remembers it. */
#define BUS_SCHEMA_VERSION 1
static const char BUS_SCHEMA[] =
    "CREATE TABLE IF NOT EXISTS main.ie_bus_group (id INTEGER PRIMARY KEY, name TEXT NOT NULL,"
    " pattern TEXT NOT NULL, selection INTEGER NOT NULL, ack_timeout_ms INTEGER NOT NULL,"
    " attempts_max INTEGER NOT NULL, is_paused INTEGER NOT NULL, lost INTEGER NOT NULL,"
    " UNIQUE (name, pattern)) STRICT;"
    "CREATE TABLE IF NOT EXISTS main.ie_bus_mark (position INTEGER PRIMARY KEY,"
    " stored_at INTEGER NOT NULL) STRICT;"
    "INSERT OR IGNORE INTO main.ie_meta (name, value) VALUES ('bus', '1')";

/* ---- the folder ----------------------------------------------------------------------------- */

static ie_status
folder_prepare(const char *path, ie_error *err)
{
    struct stat st;

    if (mkdir(path, S_IRWXU) != 0 && errno != EEXIST)
        return ie_error_set(err, IE_EIO, "data folder %s: %s", path, strerror(errno));
    if (stat(path, &st) != 0)
        return ie_error_set(err, IE_EIO, "data folder %s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return ie_error_set(err, IE_EINVAL, "data folder %s: it is not a folder", path);
    if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return ie_error_set(err, IE_EDENIED,
                            "data folder %s: others may write to it; run: chmod go-w %s", path,
                            path);
    return ie__database_local(path, err);
}

static ie_status
folder_lock(int *out, const char *folder, ie_error *err)
{
    char path[PATH_MAX];
    char text[32] = "";
    int  fd;

    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, IE__STORE_LOCK) >= sizeof path)
        return ie_error_set(err, IE_EINVAL, "data folder: its name is too long");
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
    if (fd < 0)
        return ie_error_set(err, IE_EIO, "%s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        const int error = errno;

        if (error != EWOULDBLOCK || read(fd, text, sizeof text - 1) < 0)
            text[0] = '\0';
        (void)close(fd);
        if (error != EWOULDBLOCK)
            return ie_error_set(err, IE_EIO, "%s: %s", path, strerror(error));
        return ie_error_set(err, IE_ELEASE,
                            "data folder %s is used by another bus (process %.20s); stop that one "
                            "or give this one a folder of its own",
                            folder, text[0] != '\0' ? text : "unknown");
    }
    (void)snprintf(text, sizeof text, "%ld", (long)getpid());
    if (ftruncate(fd, 0) == 0)
        (void)!write(fd, text, strlen(text)); /* only for people */
    *out = fd;
    return IE_OK;
}

/* SQLite would make it readable for all; -wal and -shm take after it. Before SQLite has it open:
 * closing a descriptor later would drop SQLite's locks. */
static ie_status
file_prepare(const char *path, ie_error *err)
{
    struct stat st;
    const int   fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);

    if (fd >= 0) {
        (void)close(fd);
        return IE_OK;
    }
    if (errno != EEXIST)
        return ie_error_set(err, IE_EIO, "%s: %s", path, strerror(errno));
    if (stat(path, &st) == 0 && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0 &&
        chmod(path, S_IRUSR | S_IWUSR) != 0)
        return ie_error_set(err, IE_EDENIED, "%s: others may read it, and that cannot be changed",
                            path);
    return IE_OK;
}

/* ---- the file ------------------------------------------------------------------------------- */

/*
 * One connection, and nobody else's: the exclusive lock keeps other processes out, so SQLite's
 * WAL-reset bug (it takes a second connection) cannot happen, and the -shm file is not needed.
 * EXTRA first: it syncs the folder when the journal mode changes.
 */
static int
on_commit(void *user, sqlite3 *db, const char *schema, int frames)
{
    ie__storage *storage = user;

    (void)db;
    (void)schema;
    storage->wal_frames = frames;
    return SQLITE_OK;
}

static ie_status
file_open(ie__storage *storage, const char *vfs, ie_error *err)
{
    char      mode[16];
    ie_error  why = IE_ERROR_INIT;
    ie_status status = IE_OK;
    const int rc = sqlite3_open_v2(storage->path, &storage->db,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, vfs);

    if (rc != SQLITE_OK) {
        status = ie__sql_fail(storage->db, rc, "open", &why);
        return ie_error_set(err, status, "%s: %s", storage->path, why.message);
    }
    (void)sqlite3_extended_result_codes(storage->db, 1);
    (void)sqlite3_busy_timeout(storage->db, 2000);
    (void)sqlite3_db_config(storage->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    status = ie__sql_exec(storage->db,
                          "PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=EXTRA;"
                          "PRAGMA mmap_size=0; PRAGMA foreign_keys=OFF; PRAGMA secure_delete=FAST;"
                          "PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY",
                          &why);
    if (status == IE_OK)
        status = ie__sql_text(mode, sizeof mode, storage->db, "PRAGMA journal_mode=WAL", "", &why);
    if (status == IE_OK && strcmp(mode, "wal") != 0)
        status = ie_error_set(&why, IE_EIO, "cannot switch to WAL; the journal mode is %s", mode);
    if (status == IE_OK)
        status =
            ie__sql_exec(storage->db, "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0", &why);
    (void)sqlite3_wal_hook(storage->db, on_commit, storage); /* in place of its own checkpoints */
    if (status == IE_OK)
        status = ie_migrate_up(storage->db, NULL, &why);
    if (status == IE_OK)
        status = ie__sql_begin(storage->db, &why);
    if (status == IE_OK) {
        int64_t version = 0;

        status = ie__sql_exec(storage->db, BUS_SCHEMA, &why);
        if (status == IE_OK)
            status = ie__sql_int(&version, storage->db,
                                 "SELECT CAST(value AS INTEGER) FROM main.ie_meta"
                                 " WHERE name = 'bus'",
                                 0, &why);
        if (status == IE_OK && version != BUS_SCHEMA_VERSION)
            status = ie_error_set(&why, IE_ESCHEMA_NEWER,
                                  "its tables are of version %lld, this bus knows %d; use a newer "
                                  "bus",
                                  (long long)version, BUS_SCHEMA_VERSION);
        if (status == IE_OK)
            status = ie__sql_commit(storage->db, &why);
        else
            ie__sql_rollback(storage->db);
    }
    return status == IE_OK ? IE_OK
                           : ie_error_set(err, status, "%s: %s", storage->path, why.message);
}

static ie_status
file_statements(ie__storage *storage, ie_error *err)
{
    const struct {
        sqlite3_stmt **stmt;
        const char    *sql;
    } statements[] = {
        {&storage->begin, "BEGIN IMMEDIATE"},
        {&storage->commit, "COMMIT"},
        {&storage->mark, "INSERT OR IGNORE INTO main.ie_bus_mark (position, stored_at)"
                         " VALUES (?1, ?2)"},
        {&storage->pages, "SELECT (SELECT page_count FROM pragma_page_count) -"
                          " (SELECT freelist_count FROM pragma_freelist_count),"
                          " (SELECT page_size FROM pragma_page_size)"},
    };
    ie_status status = IE_OK;

    for (size_t i = 0; status == IE_OK && i < sizeof statements / sizeof statements[0]; i++)
        status = ie__sql_prepare(statements[i].stmt, storage->db, statements[i].sql, err);
    if (status == IE_OK)
        status = ie__storage_prepare_groups(storage, err);
    return status;
}

/* A log that ends before what a group has settled lost its end: another file was put here. */
static ie_status
file_check_cursors(const ie__storage *storage, ie_error *err)
{
    char      name[IE_BUS_GROUP_BYTES_MAX + 1];
    int64_t   position = 0;
    ie_status status =
        ie__sql_int(&position, storage->db, "SELECT max(position) FROM main.ie_cursor", 0, err);

    if (status != IE_OK || position <= storage->last)
        return status;
    status = ie__sql_text(name, sizeof name, storage->db,
                          "SELECT destination FROM main.ie_cursor ORDER BY position DESC LIMIT 1",
                          "", err);
    if (status != IE_OK)
        return status;
    return ie_error_set(err, IE_ECURSOR,
                        "%s: group %s stands at position %lld, but the log ends at %lld: the file "
                        "is an older copy, or was changed by hand; put the right one back, or set "
                        "the cursors in ie_cursor yourself",
                        storage->path, name, (long long)position, (long long)storage->last);
}

/* What was stored within the window before the bus was stopped may be published again now. */
static ie_status
dedupe_rebuild(ie__storage *storage, const ie__store_options *options, ie_error *err)
{
    const int64_t now_ms = ie__wall_ms(storage->clock);
    sqlite3_stmt *stmt = NULL;
    int64_t       after = 0;
    ie_status     status;
    int           rc = SQLITE_DONE;

    status = ie__storage_at_time(storage, &after, now_ms - options->dedupe_window_ms, err);
    if (status == IE_OK && storage->last - after > (int64_t)options->dedupe_ids_max)
        after = storage->last - (int64_t)options->dedupe_ids_max;
    if (status == IE_OK)
        status = ie__sql_prepare(&stmt, storage->db,
                                 "SELECT position, source, id FROM main.ie_event"
                                 " WHERE position > ?1 ORDER BY position",
                                 err);
    if (status == IE_OK) {
        const int64_t boot_ms = ie__boot_ms(storage->clock);

        (void)sqlite3_bind_int64(stmt, 1, after);
        while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
            const ie__dedupe_key key = ie__dedupe_key_of(
                storage->dedupe, ie__sql_column_text(stmt, 1), ie__sql_column_text(stmt, 2));

            (void)ie__dedupe_add(storage->dedupe, key, sqlite3_column_int64(stmt, 0), boot_ms);
        }
        if (rc != SQLITE_DONE)
            status = ie__sql_fail(storage->db, rc, "read the log's end", err);
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

static ie_status
file_look(ie__storage *storage, ie_error *err)
{
    ie_status status;
    int64_t   first = 0;

    status = ie__sql_int(&first, storage->db, "SELECT min(position) FROM main.ie_event", 0, err);
    storage->first = first;
    if (status == IE_OK)
        status = ie__sql_int(&storage->last, storage->db, "SELECT max(position) FROM main.ie_event",
                             0, err);
    if (status == IE_OK)
        status = ie__sql_int(&storage->mark_ms, storage->db,
                             "SELECT max(stored_at) FROM main.ie_bus_mark", 0, err);
    if (status == IE_OK)
        status = file_check_cursors(storage, err);
    if (status == IE_OK)
        status = ie__storage_measure(storage, err);
    return status;
}

ie_status
ie__storage_open(ie__storage **out, const ie__store_options *options, ie_error *err)
{
    ie__storage *storage = ie__calloc(1, sizeof *storage);
    char         path[PATH_MAX];
    ie_status    status;

    if (storage == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a log");
    storage->lock_fd = -1;
    storage->clock = ie__clock_or_system(options->clock);
    storage->logger = options->logger;
    storage->retention_bytes_max = options->retention_bytes_max;
    storage->retention_s = options->retention_s;
    storage->lagging = options->lagging;
    (void)snprintf(path, sizeof path, "%s/%s", options->data_dir, IE__STORE_FILE);
    storage->path = ie__strdup(path);
    storage->record = ie__alloc(sizeof *storage->record);
    storage->dedupe = ie__dedupe_new(options->dedupe_window_ms, options->dedupe_ids_max);
    if (storage->path == NULL || storage->record == NULL || storage->dedupe == NULL ||
        ie__batch_new(&storage->batch, BATCH_ROWS) != IE_OK) {
        ie__storage_close(storage);
        return ie_error_set(err, IE_ENOMEM, "no memory for a log");
    }
    status = folder_prepare(options->data_dir, err);
    if (status == IE_OK)
        status = folder_lock(&storage->lock_fd, options->data_dir, err);
    if (status == IE_OK)
        status = file_prepare(path, err);
    if (status == IE_OK)
        status = file_open(storage, options->vfs, err);
    if (status == IE_OK)
        status = ie__appender_open(&storage->appender, storage->db, NULL, storage->clock, err);
    if (status == IE_OK)
        status = ie__reader_open(&storage->reader, storage->db, DEFAULT_SOURCE, err);
    if (status == IE_OK)
        status = file_statements(storage, err);
    if (status == IE_OK)
        status = file_look(storage, err);
    if (status == IE_OK)
        status = dedupe_rebuild(storage, options, err);
    if (status != IE_OK) {
        ie__storage_close(storage);
        return status;
    }
    *out = storage;
    return IE_OK;
}

void
ie__storage_close(ie__storage *storage)
{
    if (storage == NULL)
        return;
    ie__appender_close(storage->appender);
    ie__reader_close(storage->reader);
    ie__batch_free(storage->batch);
    (void)sqlite3_finalize(storage->begin);
    (void)sqlite3_finalize(storage->commit);
    (void)sqlite3_finalize(storage->mark);
    (void)sqlite3_finalize(storage->pages);
    ie__storage_free_groups(storage);
    (void)sqlite3_close(storage->db); /* the last connection: folds the -wal in */
    if (storage->lock_fd >= 0)
        (void)close(storage->lock_fd);
    ie__dedupe_free(storage->dedupe);
    ie__free(storage->losses);
    ie__free(storage->scratch);
    ie__free(storage->record);
    ie__free(storage->path);
    ie__free(storage);
}

/* ---- transactions --------------------------------------------------------------------------- */

ie_status
ie__storage_begin(ie__storage *storage, ie_error *err)
{
    storage->appended = 0;
    storage->appended_ids = 0;
    storage->appended_bytes = 0;
    return ie__sql_run(storage->db, storage->begin, "begin", err);
}

ie_status
ie__storage_commit(ie__storage *storage, ie_error *err)
{
    const ie_status status = ie__sql_run(storage->db, storage->commit, "commit", err);

    if (status != IE_OK) {
        ie__storage_rollback(storage);
        return status;
    }
    if (storage->appended != 0) {
        storage->last = storage->appended;
        if (storage->first == 0)
            storage->first = 1;
        storage->since_bytes += storage->appended_bytes;
    }
    return IE_OK;
}

void
ie__storage_rollback(ie__storage *storage)
{
    ie__sql_rollback(storage->db);
    ie__dedupe_undo(storage->dedupe, storage->appended_ids);
    storage->appended = 0;
    storage->appended_ids = 0;
}

/* ---- appending ------------------------------------------------------------------------------ */

/* Take a copy of the record apart: the loop may be writing the blob to subscribers meanwhile. */
static ie_status
record_event(ie__storage *storage, ie_event *event, const ie__blob *blob, ie_error *err)
{
    ie_status status;

    if (blob->size > storage->scratch_max) {
        unsigned char *grown = ie__realloc(storage->scratch, blob->size + 1024);

        if (grown == NULL)
            return ie_error_set(err, IE_ENOMEM, "no memory for an event");
        storage->scratch = grown;
        storage->scratch_max = blob->size + 1024;
    }
    memcpy(storage->scratch, blob->bytes, blob->size);
    status =
        ie__record_parse(storage->record, storage->scratch, blob->size, IE_DATA_BYTES_MAX, err);
    if (status == IE_OK)
        ie__record_event(event, storage->record);
    return status;
}

ie_status
ie__storage_append(ie__storage *storage, ie__job *base, ie_error *err)
{
    ie__append_job *job = (ie__append_job *)(void *)base;
    const int64_t   now_ms = ie__boot_ms(storage->clock);
    ie__dedupe_key  key = {0, 0};
    ie_event        event;
    ie_status       status;

    job->is_duplicate = false;
    if (storage->is_full)
        return ie_error_set(err, IE_ELIMIT,
                            "retention_bytes_max is reached, and groups have not had what is old");
    status = record_event(storage, &event, job->record, err);
    if (status != IE_OK)
        return status;
    if (event.id != NULL && event.source != NULL) {
        key = ie__dedupe_key_of(storage->dedupe, event.source, event.id);
        job->position = ie__dedupe_find(storage->dedupe, key, now_ms);
        if (job->position != 0) {
            job->is_duplicate = true;
            return IE_OK;
        }
    }
    status = ie__append(storage->appender, &event, NULL, err);
    if (status != IE_OK)
        return status;
    job->position = sqlite3_last_insert_rowid(storage->db);
    if (storage->appended == 0)
        status = ie__storage_mark(storage, job->position, err);
    storage->appended = job->position;
    storage->appended_bytes += job->record->size;
    if (key.high != 0 && ie__dedupe_add(storage->dedupe, key, job->position, now_ms) == IE_OK)
        storage->appended_ids++;
    return status;
}

/* ---- reading -------------------------------------------------------------------------------- */

ie__blob *
ie__storage_record(const ie_event *event)
{
    ie_event  plain = *event;
    ie__blob *blob;

    plain.position = 0; /* the frame tells it */
    if (plain.type != NULL && strcmp(plain.type, plain.topic) == 0)
        plain.type = plain.topic;
    blob = ie__blob_new(ie__record_size(&plain));
    if (blob != NULL)
        (void)ie__record_put(blob->bytes, &plain);
    return blob;
}

#define KEY_SEED 0 /* as ie__item_key(): what comes live and what comes from the log share keys */

static uint64_t
key_hash(const void *bytes, size_t size)
{
    const uint64_t hash = ie__digest(bytes, size, KEY_SEED);

    return hash != 0 ? hash : 1;
}

static uint64_t
event_key_hash(const ie_event *event)
{
    if (event->key != NULL)
        return key_hash(event->key, strlen(event->key));
    return key_hash(event->id, strlen(event->id));
}

uint64_t
ie__record_key_hash(const unsigned char *record, size_t size)
{
    const unsigned char *end = record + size;
    const unsigned char *at = record + 1 + record[0];
    const unsigned char *id = record;
    size_t               id_bytes = 0;

    while (at < end && *at != IE__E_END) { /* the record has been parsed before */
        const size_t length = ie__get16(at + 1);

        if (*at == IE__E_KEY)
            return key_hash(at + 3, length);
        if (*at == IE__E_ID) {
            id = at + 3;
            id_bytes = length;
        }
        at += 3 + length;
    }
    return key_hash(id, id_bytes);
}

static ie_status
read_take(ie__read_job *job, const ie_event *event, uint32_t attempts)
{
    ie__read_row *row = &job->rows[job->count];

    row->record = ie__storage_record(event);
    if (row->record == NULL)
        return IE_ENOMEM;
    row->position = event->position;
    row->key_hash = event_key_hash(event);
    row->attempts = attempts;
    job->count++;
    return IE_OK;
}

/* Rows that somebody wrote by hand and that break the rules are passed over, with a word. */
static void
row_complain(const ie__storage *storage, const ie__row *row)
{
    ie__log(&storage->logger, IE_LOG_WARN, "bus", "position %lld of the log is skipped: %s",
            (long long)row->event.position, row->trouble);
}

/* The group's first noted position from this one on; INT64_MAX: none. The statement goes on from
 * where it stands. */
static int64_t
noted_from(ie__storage *storage, int64_t noted, int64_t position)
{
    while (noted < position)
        noted = sqlite3_step(storage->noted) == SQLITE_ROW ? sqlite3_column_int64(storage->noted, 0)
                                                           : INT64_MAX;
    return noted;
}

/*
 * What the batch has for the job. A crash may leave the cursor behind events that were noted
 * already: those come when they are due, and to take them for new ones would overwrite their notes.
 */
static ie_status
window_take(ie__storage *storage, ie__read_job *job, ie_error *err)
{
    int64_t noted = 0;
    size_t  bytes = 0;

    job->scanned_to = job->after;
    job->is_at_end = storage->batch->count == 0;
    for (size_t i = 0; i < storage->batch->count && job->count < job->rows_max; i++) {
        const ie__row *row = &storage->batch->rows[i];

        if (row->trouble != NULL)
            row_complain(storage, row);
        else if ((noted = noted_from(storage, noted, row->event.position)) != row->event.position &&
                 ie_pattern_matches(job->pattern, row->event.topic)) {
            if (bytes >= job->bytes_max)
                return IE_OK;
            if (read_take(job, &row->event, 0) != IE_OK)
                return ie_error_set(err, IE_ENOMEM, "no memory for an event");
            bytes += row->bytes;
        }
        job->scanned_to = row->event.position;
    }
    job->is_at_end = job->scanned_to >= storage->last;
    return IE_OK;
}

/* Look at one batch of events behind job->after. */
static ie_status
read_window(ie__storage *storage, ie__read_job *job, ie_error *err)
{
    char      cursor[IE__GROUP_CURSOR_SIZE];
    ie_status status;
    int       rc;

    ie__batch_clear(storage->batch);
    status = ie__reader_after(storage->reader, storage->batch, job->after, INT64_MAX, BATCH_ROWS,
                              job->bytes_max, err);
    if (status != IE_OK)
        return status;
    ie__group_cursor(cursor, job->group);
    (void)sqlite3_bind_text(storage->noted, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(storage->noted, 2, job->after);
    status = window_take(storage, job, err);
    rc = sqlite3_reset(storage->noted); /* tells whether a step failed */
    return status == IE_OK && rc != SQLITE_OK
               ? ie__sql_fail(storage->db, rc, "read deliveries", err)
               : status;
}

static bool
is_skipped(const ie__read_job *job, int64_t position)
{
    for (size_t i = 0; i < job->skip_count; i++)
        if (job->skip[i] == position)
            return true;
    return false;
}

static ie_status
read_due(ie__storage *storage, ie__read_job *job, ie_error *err)
{
    sqlite3_stmt *stmt = storage->due;
    char          cursor[IE__GROUP_CURSOR_SIZE];
    int64_t       positions[64];
    uint32_t      attempts[64];
    const size_t  max = job->rows_max < 64 ? job->rows_max : 64;
    size_t        count = 0;
    ie_status     status = IE_OK;
    int           rc = SQLITE_DONE;

    ie__group_cursor(cursor, job->group);
    (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, job->now_ms);
    while (count < max && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (is_skipped(job, sqlite3_column_int64(stmt, 0)))
            continue;
        positions[count] = sqlite3_column_int64(stmt, 0);
        attempts[count++] = (uint32_t)sqlite3_column_int64(stmt, 1);
    }
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        status = ie__sql_fail(storage->db, rc, "read deliveries", err);
    (void)sqlite3_reset(stmt);
    for (size_t i = 0; i < count && status == IE_OK; i++) {
        ie__batch_clear(storage->batch);
        status = ie__reader_at(storage->reader, storage->batch, positions[i], NULL);
        if (status == IE_OK && read_take(job, &storage->batch->rows[0].event, attempts[i]) != IE_OK)
            status = ie_error_set(err, IE_ENOMEM, "no memory for an event");
        else if (status == IE_ENOTFOUND) {
            /* retention took it: a row without a record, so that the delivery ends too */
            job->rows[job->count++] = (ie__read_row){NULL, positions[i], 0, attempts[i]};
            status = IE_OK;
        }
    }
    if (status != IE_OK)
        return status;
    stmt = storage->next_due;
    (void)sqlite3_bind_text(stmt, 1, cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 2, job->now_ms);
    job->next_due_ms = INT64_MAX;
    rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && sqlite3_column_type(stmt, 0) != SQLITE_NULL)
        job->next_due_ms = count == max ? job->now_ms : sqlite3_column_int64(stmt, 0);
    else if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        status = ie__sql_fail(storage->db, rc, "read deliveries", err);
    (void)sqlite3_reset(stmt);
    return status;
}

ie_status
ie__storage_read(ie__storage *storage, ie__job *base, ie_error *err)
{
    ie__read_job *job = (ie__read_job *)(void *)base;

    return job->is_due ? read_due(storage, job, err) : read_window(storage, job, err);
}
