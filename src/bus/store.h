/*
 * The store: a thread of its own that owns the bus's log (data_dir/bus.db), so that a sync never
 * stalls the network. The loop thread submits jobs; everything that waits goes into one
 * transaction and one sync; the results come back on the loop, in the order in which they came
 * about. Nothing here knows who listens: durable.c does.
 *
 * Jobs are of two kinds. Writes (appends, cursors, deliveries, groups) keep their order among each
 * other; a write that is no append is tried until it works, because it is owed to somebody. Reads
 * run between transactions, a slice of time each round.
 */
#ifndef IE_STORE_H
#define IE_STORE_H

#include <ie/bus.h>
#include <ie/inspect.h>

#include "stream.h"
#include "wire.h"

#define IE__STORE_FILE "bus.db"
#define IE__STORE_LOCK "bus.lock"

typedef struct ie__store   ie__store;
typedef struct ie__storage ie__storage; /* the log thread's side: storage.h */
typedef struct ie__job     ie__job;

struct ie__job {
    ie__job *next;
    /* On the log thread. A write runs inside its batch's transaction, and again if that failed. */
    ie_status (*run)(ie__storage *storage, ie__job *job, ie_error *err);
    /* On the log thread, after the commit; NULL: nothing to do. */
    void (*committed)(ie__storage *storage, ie__job *job);
    /* On the loop; may release the job. */
    void (*done)(ie__store *store, ie__job *job);
    void     *user;
    size_t    bytes; /* counted against store_queue_bytes_max until done */
    ie_status status;
    bool      is_read;
    bool      is_append;
    bool      is_after_writes; /* a read that must see what was written before it */
};

/* What the store knows about the log, as of the results that the loop has seen. */
typedef struct ie__store_view {
    uint64_t bytes;
    int64_t  first; /* oldest position that is kept; 0: none */
    int64_t  last;  /* newest position; 0: none */
    uint64_t lost;  /* since the start */
    bool     is_full;
} ie__store_view;

/* What retention took from a group: events that it had not had, up to a position; dead letters. */
typedef struct ie__loss {
    int64_t  group;
    int64_t  position; /* 0: unchanged */
    uint64_t lost;
    uint64_t dead;
} ie__loss;
typedef void (*ie__store_lost_fn)(void *user, const ie__loss *loss); /* on the loop */

typedef struct ie__store_options {
    const char       *data_dir;
    const char       *vfs;   /* of SQLite; NULL: its default */
    const ie_clock   *clock; /* NULL: the system's */
    ie_logger         logger;
    ie__store_lost_fn lost;
    void (*after)(void *user); /* on the loop, after each batch of results; may be NULL */
    void          *user;
    uint64_t       queue_bytes_max;
    uint64_t       retention_bytes_max;
    uint32_t       retention_s;
    uint32_t       dedupe_window_ms;
    uint32_t       dedupe_ids_max;
    ie_bus_lagging lagging;
} ie__store_options;

/* A durable group as it is stored. */
typedef struct ie__group_row {
    int64_t          id;
    int64_t          position; /* everything up to here is settled */
    uint64_t         lost;
    uint64_t         dead;    /* rows of that state */
    uint64_t         waiting; /* rows that will be tried again */
    ie_bus_selection selection;
    uint32_t         ack_timeout_ms; /* 0: the server's */
    uint32_t         attempts_max;   /* 0: the server's */
    bool             is_paused;
    char             name[IE_BUS_GROUP_BYTES_MAX + 1];
    char             pattern[IE_TOPIC_BYTES_MAX + 1];
} ie__group_row;

/*
 * Open or create the log; takes the folder's lock. IE_ELEASE: another bus has it. IE_ECURSOR: a
 * group stands beyond the log's end (a restored file). No thread runs yet.
 */
ie_status ie__store_open(ie__store **out, const ie__store_options *options, ie_error *err);
/* Between open and start: every group that is stored. */
ie_status ie__store_groups(ie__store *store, void (*each)(void *user, const ie__group_row *row),
                           void *user, ie_error *err);
/* Between open and start: every key of a group that has events waiting, with how many. */
ie_status ie__store_held_keys(ie__store *store, int64_t group,
                              void (*each)(void *user, uint64_t key_hash, uint64_t count),
                              void *user, ie_error *err);
/* Start the thread; results come on this loop. */
ie_status ie__store_start(ie__store *store, uv_loop_t *loop, ie_error *err);
/* Retention and limits of a running store. */
void ie__store_reload(ie__store *store, const ie__store_options *options);

/* Queue a job; it is handed over with the turn's others by ie__store_flush(). */
void ie__store_submit(ie__store *store, ie__job *job);
void ie__store_flush(ie__store *store);
/* Would bytes more go beyond store_queue_bytes_max? */
bool ie__store_is_crowded(const ie__store *store, size_t bytes);
/* Jobs without a result yet; 0: everything is settled. */
uint64_t              ie__store_pending(const ie__store *store);
const ie__store_view *ie__store_look(const ie__store *store);
/* Why storing failed last, for people. */
const char *ie__store_trouble(const ie__store *store);

/*
 * Write what waits, end the thread, close the file, give the folder back. Results that nobody took
 * are run through done() on this thread. Call on the loop's thread (or when no loop runs), with
 * closed() called once the loop has let go of the handle; ie__store_free() after that.
 */
void ie__store_stop(ie__store *store);
void ie__store_free(ie__store *store); /* NULL is accepted */

/* ---- jobs ----------------------------------------------------------------------------------- */

/* Store a record. Done: IE_OK with the position; IE_EFULL (the disk), IE_ELIMIT
 * (retention_bytes_max), or another failure. */
typedef struct ie__append_job {
    ie__job   job;
    ie__blob *record; /* borrowed until done */
    int64_t   position;
    bool      is_duplicate; /* it was in the log already */
} ie__append_job;
void ie__append_job_init(ie__append_job *job, ie__blob                      *record,
                         void (*done)(ie__store *store, ie__job *job), void *user);

/* Make a group, or change it; the id is set by done. */
typedef struct ie__group_job {
    ie__job       job;
    ie__group_row row;
    int64_t       start_at;
    ie_bus_start  start; /* where a new one begins, or an old one is moved; GROUP: stays */
    bool          is_new;
    bool          is_delete;
    uint64_t     *held; /* moved: keys that have events waiting, each followed by how many; ours */
    size_t        held_count;
} ie__group_job;
void ie__group_job_init(ie__group_job *job, void (*done)(ie__store *store, ie__job *job),
                        void          *user);

/* Everything up to position is settled for the group. */
typedef struct ie__mark_job {
    ie__job job;
    int64_t group;
    int64_t position;
} ie__mark_job;
void ie__mark_job_init(ie__mark_job *job, int64_t group, int64_t position,
                       void (*done)(ie__store *store, ie__job *job), void *user);

/* An event's trouble with a group: IE_STATE_RETRYING, _BLOCKED or _DEAD; _PUBLISHED: it is over. */
typedef struct ie__trouble_job {
    ie__job  job;
    int64_t  group;
    int64_t  position;
    int64_t  due_at_ms; /* UTC */
    ie_state state;
    uint32_t attempts;
    uint64_t key_hash; /* 0: the group keeps no order */
    char    *reason;   /* ours; NULL: none */
} ie__trouble_job;
/* NULL: out of memory. Released by the store. */
ie__trouble_job *ie__trouble_job_new(int64_t group, int64_t position, ie_state state,
                                     const char *reason);

/* The key's head is out of the way: the next event of the key that is blocked becomes due. */
typedef struct ie__release_job {
    ie__job  job;
    int64_t  group;
    uint64_t key_hash;
} ie__release_job;
void ie__release_job_init(ie__release_job *job, int64_t group, uint64_t key_hash,
                          void (*done)(ie__store *store, ie__job *job), void *user);

/* One event on its way from the log. */
typedef struct ie__read_row {
    ie__blob *record; /* one reference, for who takes it */
    int64_t   position;
    uint64_t  key_hash;
    uint32_t  attempts; /* failed before */
} ie__read_row;

/* Events behind a position that match a pattern and that the group has no note of; or those of its
 * noted ones that are due again. */
typedef struct ie__read_job {
    ie__job       job;
    int64_t       after;
    int64_t       scanned_to;  /* everything up to here was looked at */
    int64_t       group;       /* whose noted events are left out, or those that are due wanted */
    int64_t       now_ms;      /* due ones: UTC */
    int64_t       next_due_ms; /* due ones: when the next is; INT64_MAX: never */
    ie__read_row *rows;
    size_t        count;
    size_t        rows_max;
    size_t        bytes_max;
    int64_t      *skip; /* due ones: not these, they are in the loop's hands; ours */
    size_t        skip_count;
    uint32_t      generation; /* the asker's */
    bool          is_due;     /* which of the two */
    bool          is_at_end;  /* there was nothing behind scanned_to */
    char          pattern[IE_TOPIC_BYTES_MAX + 1];
} ie__read_job;
ie__read_job *ie__read_job_new(size_t rows_max, void (*done)(ie__store *store, ie__job *job),
                               void  *user);
void          ie__read_job_free(ie__read_job *job); /* with the records that nobody took */

/* Dead letters of a group: list, try again, forget. */
typedef enum ie__dead_op { IE__DEAD_LIST, IE__DEAD_RETRY, IE__DEAD_DISCARD } ie__dead_op;
typedef struct ie__dead_row {
    int64_t  position;
    int64_t  since_ms;
    uint32_t attempts;
    char     topic[IE_TOPIC_BYTES_MAX + 1];
    char     id[IE_ID_BYTES_MAX + 1];
    char     reason[IE__REASON_BYTES_MAX + 1];
} ie__dead_row;
typedef struct ie__dead_job {
    ie__job       job;
    ie__dead_op   op;
    int64_t       group;
    int64_t       position; /* that one; 0: all. A list: those behind it */
    size_t        rows_max; /* of a list */
    ie__dead_row *rows;
    size_t        count; /* listed, or changed */
} ie__dead_job;
ie__dead_job *ie__dead_job_new(ie__dead_op op, int64_t group, int64_t position, size_t rows_max,
                               void (*done)(ie__store *store, ie__job *job), void *user);
void          ie__dead_job_free(ie__dead_job *job);

/* The order key of a record: a hash of its key, or of its id where it has none; never 0, and the
 * same in every run, because it is stored. */
uint64_t ie__record_key_hash(const unsigned char *record, size_t size);

#endif
