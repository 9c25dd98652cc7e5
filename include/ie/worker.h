/**
 * @file
 * The worker: publishes what was committed, retries, expires, cleans up.
 *
 * One worker serves one database file and any number of destinations. Run it on its own thread
 * (ie_worker_start) or step it yourself (ie_worker_open + ie_worker_run_once). Several workers, in
 * threads or processes, may share a file: each destination is served by one at a time, and the
 * others take over when it dies.
 */
#ifndef IE_WORKER_H
#define IE_WORKER_H

#include <ie/event.h>
#include <ie/publisher.h>

struct sqlite3;

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ie_worker ie_worker;

/** In which order events of one destination are sent. */
typedef enum ie_order {
    IE_ORDER_KEY = 0, /* events of one key in commit order; a failing one holds back its key only */
    IE_ORDER_NONE = 1,  /* as fast as possible */
    IE_ORDER_STRICT = 2 /* everything in commit order; a failing one holds back all */
} ie_order;

/** Where a destination that is seen for the first time begins. */
typedef enum ie_start {
    IE_START_OLDEST = 0, /* with the oldest event in the log */
    IE_START_NOW = 1     /* with what is committed from now on */
} ie_start;

typedef struct ie_destination {
    size_t      size;   /* sizeof(ie_destination) */
    const char *name;   /* the cursor: [a-z0-9._-]{1,64}; a new name starts a new cursor */
    const char *url;    /* which publisher, and where to */
    const char *topics; /* patterns divided by commas or spaces; NULL: every topic */
    ie_order    order;
    ie_start    start;
} ie_destination;

/** A periodic duty of your own, run on the worker's thread beside publish, retry, expire, clean. */
typedef struct ie_processor {
    size_t      size;        /* sizeof(ie_processor) */
    const char *name;        /* for the log */
    uint32_t    interval_ms; /* 1..86400000; from the end of one run to the start of the next */
    uint32_t    reserved;
    /* db is the worker's own connection, with no transaction open; leave none open either. A
     * failure is logged, reported to on_error and tried again after the interval. */
    ie_status (*run)(void *user, struct sqlite3 *db, ie_error *err);
    void *user; /* borrowed until the worker is closed */
} ie_processor;

/*
 * Every numeric option in one list: name, unit, default, smallest, largest. The options struct, its
 * defaults, the checks and the table in outbox/OPTIONS.md come from it (a test compares them).
 */
#define IE_WORKER_OPTION_MAP(X)                                                                    \
    X(batch_max, "events", 100, 1, 10000)                                                          \
    X(in_flight_max, "events", 1000, 1, 65536)                                                     \
    X(window_bytes_max, "bytes", 8388608, 65536, 1073741824)                                       \
    X(mark_delay_ms, "ms", 25, 0, 1000)                                                            \
    X(poll_ms, "ms", 500, 10, 60000)                                                               \
    X(busy_ms_max, "ms", 1000, 0, 60000)                                                           \
    X(lease_ms, "ms", 10000, 100, 600000)                                                          \
    X(publish_timeout_ms, "ms", 30000, 50, 3600000)                                                \
    X(attempts_max, "attempts", 15, 1, 1000000)                                                    \
    X(claims_max, "claims", 5, 2, 1000)                                                            \
    X(retry_delay_ms, "ms", 1000, 1, 3600000)                                                      \
    X(retry_delay_max_ms, "ms", 300000, 1, 86400000)                                               \
    X(breaker_delay_ms, "ms", 500, 1, 3600000)                                                     \
    X(breaker_delay_max_ms, "ms", 30000, 1, 86400000)                                              \
    X(expire_interval_ms, "ms", 1000, 10, 86400000)                                                \
    X(clean_interval_ms, "ms", 10000, 10, 86400000)                                                \
    X(clean_batch, "rows", 500, 1, 10000)                                                          \
    X(published_retention_s, "s", 86400, 0, 4000000000)                                            \
    X(dead_retention_s, "s", 1296000, 0, 4000000000)                                               \
    X(expired_retention_s, "s", 1296000, 0, 4000000000)                                            \
    X(discarded_retention_s, "s", 86400, 0, 4000000000)                                            \
    X(checkpoint_frames, "frames", 0, 0, 1000000)

typedef struct ie_worker_options {
    size_t                size; /* filled in by IE_WORKER_OPTIONS_INIT */
    const char           *db;   /* path of the database file; required unless open_db is given */
    const char           *to;   /* the one destination's URL; or use destinations */
    const char           *name; /* its cursor; NULL: "outbox" */
    const ie_destination *destinations;      /* used when to is NULL; copied */
    size_t                destination_count; /* 1..64 */
    const ie_publishers
        *publishers; /* borrowed; IE_WORKER_OPTIONS_INIT fills in the built-in ones */
    const ie_processor *processors;      /* your own; copied */
    size_t              processor_count; /* 0..64 */

    /* How to open the worker's own connection, for encrypted files or another VFS; NULL: by path.
     * Must be a connection of its own; the worker closes it. */
    ie_status (*open_db)(void *user, struct sqlite3 **db, ie_error *err);

    /* What happened; on the worker's thread, after it was written down. They may publish into other
     * connections, but must not stop or close the worker. event is borrowed for the call. */
    void (*on_published)(void *user, const char *destination, const ie_event *event);
    void (*on_dead)(void *user, const char *destination, const ie_event *event, const char *reason);
    void (*on_expired)(void *user, const char *destination, const ie_event *event);
    void (*on_error)(void *user, ie_status status, const char *message);
    void *user; /* given to the callbacks above; borrowed */

    const ie_clock *clock; /* NULL: the system's; borrowed */
    ie_logger       logger;
    bool            auto_migrate;      /* apply missing migrations when opening */
    bool            allow_network_fs;  /* do not refuse a WAL database on NFS, CIFS, 9p or FUSE */
    uint8_t         reserved_bytes[6]; /* 0 */

    /* Numbers; 0 is a value, not "default": the initialiser fills in the defaults. */
#define IE_WORKER_OPTION_FIELD(name, unit, fallback, min, max) uint32_t name;
    IE_WORKER_OPTION_MAP(IE_WORKER_OPTION_FIELD)
#undef IE_WORKER_OPTION_FIELD
} ie_worker_options;

IE_API void ie_worker_options_init(ie_worker_options *options, size_t size);

/* Defaults, and the built-in publishers: named here, in the program, so that the worker itself
 * knows publishers only through their table. */
#define IE_WORKER_OPTIONS_INIT(o)                                                                  \
    (ie_worker_options_init((o), sizeof *(o)), (void)((o)->publishers = ie_publishers_builtin()))

/**
 * Open a worker without a thread: step it with ie_worker_run_once().
 *
 * @param[out] out  transferred: release with ie_worker_close(). Untouched on failure.
 * @param options   copied, with all its strings.
 * @return IE_OK; IE_EINVAL (the message names the option and its bounds), IE_ENOTFOUND (no
 * publisher for the URL), IE_ESCHEMA_MISSING, IE_ESCHEMA_NEWER, IE_ESCHEMA, IE_EUNSAFE, IE_ENOTSUP
 *         (a network file system), IE_ECURSOR, IE_EIO, IE_ENOMEM, or what the publisher's open
 * said. Threads: any.
 */
IE_API ie_status ie_worker_open(ie_worker **out, const ie_worker_options *options, ie_error *err);

/** ie_worker_open() and a thread that runs until ie_worker_stop(). */
IE_API ie_status ie_worker_start(ie_worker **out, const ie_worker_options *options, ie_error *err);

typedef struct ie_worker_report {
    uint64_t published; /* events delivered by this call */
    uint64_t retried;   /* refused for now */
    uint64_t dead;
    uint64_t expired;
    uint64_t pending; /* not finished when the call returned, of all destinations it serves */
} ie_worker_report;

/**
 * Publish until nothing is due, then return. Takes the leases it can get; runs every processor
 * once. Destinations that can be served are served to the end, also when another one cannot.
 *
 * @param timeout_ms   give up after this long; 0: no limit.
 * @param[out] report  may be NULL; filled in on failure too.
 * @return IE_OK (nothing is due), IE_EUNREACHABLE (a breaker is open: the message names the
 *         destination), IE_ELEASE (another worker serves a destination), IE_ETIMEDOUT, or a storage
 *         error. Threads: owner; not for a started worker (IE_ESTATE).
 */
IE_API ie_status ie_worker_run_once(ie_worker *worker, uint32_t timeout_ms,
                                    ie_worker_report *report, ie_error *err);

/** Look for events now instead of when the file system tells. Threads: any. Blocks: no. */
IE_API void ie_worker_wake(ie_worker *worker);

/**
 * Stop: takes no new events, waits for the answers of those in flight, writes down what is known,
 * gives the leases back. What is unanswered after @p timeout_ms is sent again by the next worker.
 * May be called twice and from any thread but the worker's own: from a callback it is refused
 * (IE_ESTATE). Statistics stay readable until ie_worker_close().
 *
 * @return IE_OK, or IE_ETIMEDOUT when something was left unanswered.
 */
IE_API ie_status ie_worker_stop(ie_worker *worker, uint32_t timeout_ms);

/** Stop (10 s) and release. NULL is accepted. Threads: any but the worker's own. */
IE_API void ie_worker_close(ie_worker *worker);

typedef enum ie_breaker {
    IE_BREAKER_CLOSED = 0, /* all is well */
    IE_BREAKER_OPEN = 1,   /* unreachable: waiting */
    IE_BREAKER_TRYING = 2  /* one event on its way, to see whether it is back */
} ie_breaker;

/** Counts since the worker was opened. */
typedef struct ie_destination_stats {
    size_t     size;
    char       name[72];
    bool       has_lease;
    uint8_t    reserved_bytes[3];
    ie_breaker breaker;
    int64_t    position; /* everything up to here is done or noted as a delivery */
    uint64_t   published;
    uint64_t   retried;
    uint64_t   dead;
    uint64_t   expired;
    uint64_t   scheduled;
    uint64_t   skipped; /* topic not routed here */
    uint64_t   in_flight;
    uint64_t   unreachable;   /* verdicts */
    uint64_t   stray_reports; /* second, late or unknown answers: a publisher's mistake */
    uint64_t   lease_lost;    /* times someone else took over */
    uint64_t   marks;         /* write transactions */
    uint64_t   window_bytes;  /* memory held by events now */
} ie_destination_stats;

typedef struct ie_worker_stats {
    size_t   size;
    uint64_t destinations;
    uint64_t wakes;   /* by the file system or ie_worker_wake() */
    uint64_t polls;   /* by the safety net */
    uint64_t cleaned; /* events removed by retention */
    uint64_t busy;    /* write lock not got in time */
    uint64_t errors;
} ie_worker_stats;

/** @return IE_OK or IE_EINVAL (size not set). Threads: any. Blocks: no. */
IE_API ie_status ie_worker_get_stats(ie_worker *worker, ie_worker_stats *stats);
/** Of destination number @p index (0..destinations-1); IE_ENOTFOUND past the end. Threads: any. */
IE_API ie_status ie_worker_get_destination_stats(ie_worker *worker, size_t index,
                                                 ie_destination_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
