/*
 * The log: an append-only table of events, cursors that read it, deliveries for what went wrong.
 * Used by the outbox, and by whatever else stores events. SQLite is shared with a host: every
 * statement names its schema, write transactions are short, nothing of the host's is changed.
 */
#ifndef IE_LOG_H
#define IE_LOG_H

#include <ie/event.h>
#include <ie/inspect.h>
#include <sqlite3.h>

#define IE__CURSOR_NAME_BYTES_MAX 64
#define IE__REASON_BYTES_MAX      500

/* ---- SQLite, in our words (sql.c) ---- */

/* The one place that maps SQLite's codes to ours: records "what: SQLite's words". */
ie_status ie__sql_fail(sqlite3 *db, int rc, const char *what, ie_error *err);
/* Prepare for keeps: statements that live as long as the object that holds them. */
ie_status ie__sql_prepare(sqlite3_stmt **out, sqlite3 *db, const char *sql, ie_error *err);
/* Run statements that give no rows. */
ie_status ie__sql_exec(sqlite3 *db, const char *sql, ie_error *err);
ie_status ie__sql_begin(sqlite3 *db, ie_error *err);  /* BEGIN IMMEDIATE */
ie_status ie__sql_commit(sqlite3 *db, ie_error *err); /* on failure: rolled back */
void      ie__sql_rollback(sqlite3 *db);              /* nothing to roll back is fine */
/* Step a prepared statement that gives no rows, reset it, clear its bindings. */
ie_status ie__sql_run(sqlite3 *db, sqlite3_stmt *stmt, const char *what, ie_error *err);
/* One integer / one text (copied into out) from a query; fallback when there is no row or NULL. */
ie_status ie__sql_int(int64_t *out, sqlite3 *db, const char *sql, int64_t fallback, ie_error *err);
ie_status ie__sql_text(char *out, size_t size, sqlite3 *db, const char *sql, const char *fallback,
                       ie_error *err);
/* A column as text, never NULL. */
const char *ie__sql_column_text(sqlite3_stmt *stmt, int column);

/* ---- a connection of our own on somebody's file (database.c) ---- */

/*
 * The manners of a guest: no automatic checkpoint, none on close, no mmap, synchronous NORMAL where
 * that is safe (WAL: losing our last marks costs duplicates, nothing else), foreign keys off. One
 * thread at a time: the connection has no mutex, which is worth a tenth of the read rate.
 */
ie_status ie__database_open(sqlite3 **out, const char *path, uint32_t busy_ms_max, ie_error *err);
ie_status ie__database_manners(sqlite3 *db, uint32_t busy_ms_max, ie_error *err);
/* IE_EUNSAFE for journal OFF or MEMORY, or synchronous OFF; writes "wal+full" into out. */
#define IE__DURABILITY_SIZE 24
ie_status ie__database_durability(char out[IE__DURABILITY_SIZE], bool *is_weak, sqlite3 *db,
                                  const char *schema, ie_error *err);
/* IE_ENOTSUP: the file is on a network file system, which SQLite's WAL does not survive. */
ie_status ie__database_local(const char *path, ie_error *err);
/* IE_EMOVED: the file under this connection is not the one at its path any more. */
ie_status ie__database_in_place(sqlite3 *db, ie_error *err);
/* Checkpoint that cannot meet SQLite's WAL-reset bug: a guard holds the write lock meanwhile, so no
 * commit can fall into the window. PASSIVE; does nothing below frames_min or when the lock is
 * taken. */
ie_status ie__database_checkpoint(const char *path, uint32_t frames_min, ie_error *err);
/* Is this SQLite version one with the WAL-reset bug (3.7.0 to 3.51.2 but for 3.44.6+, 3.50.7+)? */
bool ie__sqlite_has_wal_reset_bug(int version_number);

/* ---- writing (append.c) ---- */

typedef struct ie__appender ie__appender;
ie_status                   ie__appender_open(ie__appender **out, sqlite3 *db, const char *source,
                                              const ie_clock *clock, ie_error *err);
void                        ie__appender_close(ie__appender *appender);
/* Insert an event that has passed its check into the open transaction; the status list of
 * ie_publish(). id_out may be NULL. */
ie_status ie__append(ie__appender *appender, const ie_event *event, char *id_out, ie_error *err);

/* ---- reading (read.c) ---- */

/*
 * A batch of events in one piece of memory that is used again. Rows that break the rules (anyone
 * may have written them) come with a reason.
 */
typedef struct ie__row {
    ie_event    event;
    const char *trouble; /* NULL: fine; else why it can never be sent */
    size_t      bytes;   /* memory that it takes */
} ie__row;

typedef struct ie__batch ie__batch;
struct ie__batch {
    ie__row   *rows;
    size_t     count;
    size_t     capacity;
    size_t     bytes;      /* memory held */
    void      *chunks;     /* private */
    size_t     unanswered; /* for the owner's use */
    ie__batch *next;       /* for the owner's use */
};

typedef struct ie__reader ie__reader;
ie_status ie__reader_open(ie__reader **out, sqlite3 *db, const char *default_source, ie_error *err);
void      ie__reader_close(ie__reader *reader);
ie_status ie__batch_new(ie__batch **out, size_t rows_max);
void      ie__batch_free(ie__batch *batch);
void      ie__batch_clear(ie__batch *batch);
/* Up to rows_max events (and about bytes_max, but at least one) with position > after and <= until.
 */
ie_status ie__reader_after(ie__reader *reader, ie__batch *batch, int64_t after, int64_t until,
                           size_t rows_max, size_t bytes_max, ie_error *err);
/* Add the event at this position; IE_ENOTFOUND when it is gone. */
ie_status ie__reader_at(ie__reader *reader, ie__batch *batch, int64_t position, ie_error *err);
/* The first position beyond after, and the newest of all; 0 where there is none. */
ie_status ie__reader_ends(ie__reader *reader, int64_t after, int64_t *next, int64_t *newest,
                          ie_error *err);
/* Position of the event with this id, 0 when there is none. UUIDv7 ids carry their time, so only
 * the neighbourhood is searched first; other ids cost a scan. */
ie_status ie__log_find(int64_t *out, sqlite3 *db, const char *id, ie_error *err);

/* ---- cursors (cursor.c) ---- */

typedef struct ie__cursor {
    char     name[IE__CURSOR_NAME_BYTES_MAX + 1];
    int64_t  position;
    int64_t  claimed_to;
    int64_t  suspect_to;     /* beyond position: a worker died with these events in its hands */
    uint32_t suspect_window; /* send at most so many at a time until suspect_to is passed */
    uint32_t crashes;        /* of owners, since the position last moved */
    uint32_t claims;         /* of the single event after position, since the position last moved */
    int64_t  epoch;
    int64_t  newest;    /* position of the newest event when the lease was taken */
    bool     must_bury; /* the event after position has used its claims up */
} ie__cursor;

typedef struct ie__lease_request {
    const char *name;
    const char *owner;
    const char *destination;
    const char *topics;
    const char *order;
    bool        start_now;
    uint32_t    lease_ms;
    uint32_t    reserve; /* positions to claim beyond position */
    uint32_t    claims_max;
} ie__lease_request;

/* "<pid namespace>:<pid>:<start time>:<random>", unique for each call. */
#define IE__OWNER_SIZE 96
void ie__owner_make(char out[IE__OWNER_SIZE]);
/* Does the process behind this owner certainly not exist any more? (Same boot and pid namespace.)
 */
bool ie__owner_is_gone(const char *owner, const char *boot_id);

typedef struct ie__cursors ie__cursors; /* prepared statements on one connection */
ie_status ie__cursors_open(ie__cursors **out, sqlite3 *db, const ie_clock *clock, ie_error *err);
void      ie__cursors_close(ie__cursors *cursors);
/* As ie__sql_begin() and ie__sql_commit(), from statements that are prepared once. */
ie_status ie__cursors_begin(ie__cursors *cursors, ie_error *err);
ie_status ie__cursors_commit(ie__cursors *cursors, ie_error *err);
/*
 * Take the lease if it is free, run out, or its owner is gone. Own transaction. Creates the cursor.
 * IE_ELEASE: held by someone else, err names the owner and how long; *retry_ms when to look again.
 * IE_ECURSOR: the cursor stands beyond the log.
 */
ie_status ie__cursor_take(ie__cursors *cursors, const ie__lease_request *request, ie__cursor *out,
                          uint32_t *retry_ms, ie_error *err);
/*
 * Move on: inside the caller's transaction. Writes position, claims, reservation and the renewed
 * lease if the epoch is still ours; IE_ELEASE otherwise (change nothing else then). unclaim: what
 * was handed out came back unsent, so it is not to blame for a crash.
 */
ie_status ie__cursor_advance(ie__cursors *cursors, ie__cursor *cursor, int64_t position,
                             uint32_t reserve, uint32_t lease_ms, bool unclaim, ie_error *err);
/* Count a claim of the one event after position, before it is handed out. Own transaction. */
ie_status ie__cursor_claim(ie__cursors *cursors, ie__cursor *cursor, ie_error *err);
/* Give it back: inside the caller's transaction. */
ie_status ie__cursor_release(ie__cursors *cursors, const ie__cursor *cursor, ie_error *err);
/* Note the breaker for others to see; reason NULL closes it. Inside the caller's transaction. */
ie_status ie__cursor_breaker(ie__cursors *cursors, const ie__cursor *cursor, const char *reason,
                             int64_t since_ms, int64_t until_ms, ie_error *err);

/* ---- deliveries (delivery.c) ---- */

typedef struct ie__delivery {
    int64_t     position;
    ie_state    state;
    const char *key;
    uint32_t    attempts;
    uint32_t    claims;
    int64_t     due_at_ms;
    int64_t     expires_at_ms;
    int64_t     since_ms;
    const char *reason;
} ie__delivery;

typedef struct ie__deliveries ie__deliveries;
ie_status ie__deliveries_open(ie__deliveries **out, sqlite3 *db, const ie_clock *clock,
                              const char *cursor, ie_error *err);
void      ie__deliveries_close(ie__deliveries *deliveries);
/* Insert or replace; inside the caller's transaction. */
ie_status ie__delivery_put(ie__deliveries *deliveries, const ie__delivery *delivery, ie_error *err);
/* Gone: it was delivered. */
ie_status ie__delivery_remove(ie__deliveries *deliveries, int64_t position, ie_error *err);
/* The row's text is valid until the next call on the same object. IE_ENOTFOUND. */
ie_status ie__delivery_get(ie__deliveries *deliveries, int64_t position, ie__delivery *out,
                           ie_error *err);
/*
 * Positions that are due now (retrying or scheduled), oldest due first. A row that could not be due
 * so far ahead (clock set back) counts as due.
 */
ie_status ie__delivery_due(ie__deliveries *deliveries, int64_t now_ms, int64_t ahead_ms_max,
                           int64_t *positions, size_t max, size_t *count, ie_error *err);
/* When the next one is due, INT64_MAX for never. */
ie_status ie__delivery_next_due(ie__deliveries *deliveries, int64_t *due_at_ms, ie_error *err);
/* Is the key held by an event before this position (retrying or blocked)? */
ie_status ie__delivery_key_held(ie__deliveries *deliveries, const char *key, int64_t before,
                                bool *is_held, ie_error *err);
/* The key's head is out of the way: its next blocked event becomes due now. */
ie_status ie__delivery_release_key(ie__deliveries *deliveries, const char *key, bool *released,
                                   ie_error *err);
/* Call each for every distinct held key; for filling a filter at take-over. */
ie_status ie__delivery_held_keys(ie__deliveries *deliveries,
                                 void (*each)(void *user, const char *key), void *user,
                                 ie_error *err);
/* Count a claim of a due delivery, and keep it from being due again before then; inside the
 * caller's transaction. */
ie_status ie__delivery_claim(ie__deliveries *deliveries, int64_t position, int64_t due_at_ms,
                             ie_error *err);
/* A new owner: what the last one had claimed and not answered is due now; its claims stay counted.
 */
ie_status ie__deliveries_recover(ie__deliveries *deliveries, ie_error *err);
/* An orderly end: nothing is claimed any more. Inside the caller's transaction. */
ie_status ie__deliveries_unclaim(ie__deliveries *deliveries, ie_error *err);
/* Positions whose expires_at has passed while they were waiting. */
ie_status ie__delivery_expired(ie__deliveries *deliveries, int64_t now_ms, int64_t *positions,
                               size_t max, size_t *count, ie_error *err);

/* ---- retention (retain.c) ---- */

typedef struct ie__retention {
    uint32_t published_s;
    uint32_t dead_s;
    uint32_t expired_s;
    uint32_t discarded_s;
    uint32_t rows_max; /* in this transaction */
} ie__retention;

typedef struct ie__cleaner ie__cleaner;
ie_status ie__cleaner_open(ie__cleaner **out, sqlite3 *db, const ie_clock *clock, ie_error *err);
void      ie__cleaner_close(ie__cleaner *cleaner);
/* Begin a new round: events that a delivery kept in the last one are looked at again. */
void ie__cleaner_restart(ie__cleaner *cleaner);
/* One small transaction of its own. *removed: events; *more: call again. */
ie_status ie__cleaner_step(ie__cleaner *cleaner, const ie__retention *retention, uint64_t *removed,
                           bool *more, ie_error *err);

/* ---- wake-up (wake.c) ---- */

/* Notices commits of others without touching the files: inotify on the -wal and its folder. */
typedef struct ie__watch ie__watch;
ie_status                ie__watch_open(ie__watch **out, const char *db_path, ie_error *err);
int  ie__watch_fd(const ie__watch *watch); /* readable: something was written; -1: no inotify */
void ie__watch_drain(ie__watch *watch);    /* forget what was seen; re-arms after WAL changes */
/* While commits come without end every write to a watched file costs the writer; the caller looks
 * by the clock meanwhile. After resume it must look once more: a commit in between has told nobody.
 */
void ie__watch_pause(ie__watch *watch);
void ie__watch_resume(ie__watch *watch);
void ie__watch_close(ie__watch *watch);

#endif
