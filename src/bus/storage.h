/*
 * The log thread's side of the store: the open file and what is known about it. Private to
 * store.c and the storage_*.c files; nothing here is touched by the loop while the thread runs.
 */
#ifndef IE_STORAGE_H
#define IE_STORAGE_H

#include "dedupe.h"
#include "log.h"
#include "store.h"

/* A group as retention sees it. */
typedef struct ie__stored_group {
    int64_t  id;
    int64_t  position; /* as committed */
    uint64_t lost;
    char    *pattern;
} ie__stored_group;

struct ie__storage {
    const ie_clock *clock;
    ie_logger       logger;
    char           *path; /* of the file */
    int             lock_fd;
    sqlite3        *db;
    ie__appender   *appender;
    ie__reader     *reader;
    ie__batch      *batch;
    ie__dedupe     *dedupe;
    unsigned char  *scratch; /* a record to be taken apart */
    size_t          scratch_max;
    ie__record     *record;

    sqlite3_stmt *begin;
    sqlite3_stmt *commit;
    sqlite3_stmt *mark;
    sqlite3_stmt *cursor_set;
    sqlite3_stmt *trouble_put;
    sqlite3_stmt *trouble_remove;
    sqlite3_stmt *release;
    sqlite3_stmt *due;
    sqlite3_stmt *next_due;
    sqlite3_stmt *noted;
    sqlite3_stmt *pages;

    ie__stored_group *groups; /* in order of id */
    size_t            group_count;
    size_t            group_max;

    int64_t  first; /* as committed */
    int64_t  last;
    int64_t  appended;     /* positions given in the open transaction */
    size_t   appended_ids; /* remembered by dedupe in the open transaction */
    uint64_t appended_bytes;
    int64_t  mark_ms;     /* wall time of the newest mark, never set back */
    uint64_t used_bytes;  /* of the file, when it was looked at last */
    uint64_t since_bytes; /* appended since then */
    uint64_t lost;
    int      wal_frames; /* since the last checkpoint */
    bool     is_full;    /* retention_bytes_max is reached and nothing may go */

    /* retention */
    uint64_t       retention_bytes_max;
    uint32_t       retention_s;
    ie_bus_lagging lagging;
    int64_t        resume; /* what deliveries kept up to here was seen */
    int64_t        resume_reset_ms;
    ie__loss      *losses; /* not told yet */
    size_t         loss_count;
    size_t         loss_max;
};

/* ---- storage.c: the file, transactions, appending, reading ---- */

ie_status ie__storage_open(ie__storage **out, const ie__store_options *options, ie_error *err);
void      ie__storage_close(ie__storage *storage);
ie_status ie__storage_begin(ie__storage *storage, ie_error *err);
ie_status ie__storage_commit(ie__storage *storage, ie_error *err);
void      ie__storage_rollback(ie__storage *storage);
ie_status ie__storage_append(ie__storage *storage, ie__job *job, ie_error *err);
ie_status ie__storage_read(ie__storage *storage, ie__job *job, ie_error *err);
/* The cursor's name of a group in the log's tables. */
#define IE__GROUP_CURSOR_SIZE 32
void ie__group_cursor(char out[IE__GROUP_CURSOR_SIZE], int64_t group);
/* An event as a record of eb/2; NULL: out of memory. */
ie__blob *ie__storage_record(const ie_event *event);

/* ---- storage_groups.c: groups, cursors, deliveries ---- */

ie_status         ie__storage_prepare_groups(ie__storage *storage, ie_error *err);
void              ie__storage_free_groups(ie__storage *storage);
ie__stored_group *ie__storage_group(ie__storage *storage, int64_t id);
ie_status         ie__storage_each_group(ie__storage *storage,
                                         void (*each)(void *user, const ie__group_row *row), void *user,
                                         ie_error *err);

ie_status ie__storage_held_keys(ie__storage *storage, int64_t group,
                                void (*each)(void *user, uint64_t key_hash, uint64_t count),
                                void *user, ie_error *err);

/* ---- storage_retain.c: age, size, the slowest group ---- */

/* Note when this position was stored, once a second; inside the transaction. */
ie_status ie__storage_mark(ie__storage *storage, int64_t position, ie_error *err);
/* The position behind which everything was stored at or after this time. */
ie_status ie__storage_at_time(ie__storage *storage, int64_t *position, int64_t wall_ms,
                              ie_error *err);
/* Read the file's size. */
ie_status ie__storage_measure(ie__storage *storage, ie_error *err);
/* Delete for a few milliseconds. more: call again soon. Own transactions. */
ie_status ie__storage_retain(ie__storage *storage, bool *more, ie_error *err);
/* Is it over its size, so that retention is due whatever the clock says? */
bool ie__storage_is_big(const ie__storage *storage);

#endif
