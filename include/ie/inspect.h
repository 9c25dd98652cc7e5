/**
 * @file
 * Looking at an outbox and acting on it: status, lists, one event, why it is where it is. Works on
 * the database alone, whether a worker runs or not.
 */
#ifndef IE_INSPECT_H
#define IE_INSPECT_H

#include <ie/event.h>

struct sqlite3;

#ifdef __cplusplus
extern "C" {
#endif

/** Where an event is, as one destination sees it. */
typedef enum ie_state {
    IE_STATE_PENDING = 0,     /* committed, not yet read */
    IE_STATE_IN_PROGRESS = 1, /* inside the leased window */
    IE_STATE_PUBLISHED = 2,
    IE_STATE_SCHEDULED = 3, /* waits for not_before */
    IE_STATE_RETRYING = 4,
    IE_STATE_BLOCKED = 5, /* waits behind an event of its key */
    IE_STATE_DEAD = 6,
    IE_STATE_EXPIRED = 7,
    IE_STATE_DISCARDED = 8
} ie_state;
#define IE_STATE_COUNT 9

/** "pending", "in progress", ... Threads: any. */
IE_API const char *ie_state_name(ie_state state);
/** The other way; IE_EINVAL lists the names. Threads: any. */
IE_API ie_status ie_state_parse(ie_state *out, const char *name, ie_error *err);

/** One destination, as its cursor row says. Text is valid during the callback. */
typedef struct ie_cursor_status {
    const char *name;
    const char *destination; /* URL without its password; "" before the first worker */
    const char *topics;      /* patterns; "" for all */
    const char *order;       /* "key", "none", "strict" */
    const char *owner;       /* who holds the lease; "" for nobody */
    bool        is_alive;    /* the lease has not run out and its process exists */
    int64_t     seen_at_ms;  /* UTC of the owner's last sign of life; 0: never */
    int64_t     position;
    int64_t     claimed_to;
    int64_t     epoch;
    const char *breaker_reason; /* "" when closed */
    int64_t     breaker_since_ms;
    int64_t     breaker_until_ms;
    /* By ie_state. Published counts what is still kept. A destination with topic patterns counts
     * what it has not passed yet as pending and what it has passed as published, whatever the
     * topic. */
    uint64_t counts[IE_STATE_COUNT];
    int64_t  oldest_pending_ms; /* UTC time of the oldest unfinished event, scheduled ones aside;
                                 * 0: none */
} ie_cursor_status;

typedef struct ie_outbox_info {
    int64_t     newest_position; /* 0: empty */
    int64_t     oldest_position;
    uint64_t    events_kept;
    const char *journal_mode; /* of the file */
    const char *durability;   /* noted by the application's last ie_outbox_open(); "" unknown */
    const char *source;       /* default CloudEvents source */
    const char *sqlite_version;
    bool        sqlite_has_wal_reset_bug; /* the linked SQLite; see README, Limits */
    int64_t     wal_bytes;                /* size of the -wal file; 0: none */
    int         schema_version;
} ie_outbox_info;

/**
 * One consistent look: info once, then each cursor.
 * @return IE_OK, IE_ESCHEMA_MISSING, IE_EBUSY, IE_EIO. Threads: owner of @p db.
 */
IE_API ie_status ie_inspect_status(struct sqlite3 *db,
                                   void (*info)(void *user, const ie_outbox_info *info),
                                   void (*cursor)(void *user, const ie_cursor_status *cursor),
                                   void *user, ie_error *err);

/** One event as one destination sees it. Valid during the callback. */
typedef struct ie_event_status {
    const ie_event *event; /* position, id, times and attributes; data too */
    const char     *cursor;
    ie_state        state;
    uint32_t        attempts;
    uint32_t        claims;
    int64_t         due_at_ms; /* next try or not_before; 0: none */
    int64_t         since_ms;  /* when it came into this state; 0: not known */
    const char     *reason;    /* last trouble; "" for none */
} ie_event_status;

/** Which events. Zero-initialise; 0 and NULL mean "any". */
typedef struct ie_filter {
    size_t      size;   /* sizeof(ie_filter) */
    const char *cursor; /* NULL: every destination */
    uint32_t    states; /* bits 1u << ie_state; 0: all */
    uint32_t    limit;  /* 0: 100 in a list, no limit for retry and discard */
    const char *topics; /* patterns divided by commas or spaces */
    const char *key;
    const char *id;
    int64_t     before_position; /* page on: only older than this */
} ie_filter;

/**
 * Newest first; one call per event and destination that takes its topic (cursor "" while there is
 * no destination yet). The callback returns false to stop.
 * @return IE_OK (also when nothing matches), IE_EINVAL, IE_ENOTFOUND (no such cursor),
 *         IE_ESCHEMA_MISSING, IE_EBUSY, IE_EIO.
 */
IE_API ie_status ie_inspect_list(struct sqlite3 *db, const ie_filter *filter,
                                 bool (*each)(void *user, const ie_event_status *event), void *user,
                                 ie_error *err);

/**
 * Send again: dead, discarded or retrying events become due now with their attempts reset. The
 * key's order is not restored for events sent again. An expired event is not sent again: it would
 * arrive after its expires_at. What a living worker has in its hands at this moment is left alone.
 * Short transactions of its own (BEGIN IMMEDIATE), so none may be open.
 *
 * @param[out] changed  may be NULL; on failure too: how many were changed before it.
 * @return IE_OK; IE_EINVAL; IE_ENOTFOUND (no event matched, no such cursor), IE_ESTATE (events
 *         matched, none in a state that allows it: the message names it), IE_EBUSY, IE_EIO.
 * Threads: owner of @p db.
 */
IE_API ie_status ie_inspect_retry(struct sqlite3 *db, const ie_filter *filter, uint64_t *changed,
                                  ie_error *err);

/**
 * Give up: retrying, blocked, scheduled or dead events become discarded, with the reason (NULL:
 * "discarded by hand"). What waited behind one of them goes on. Otherwise as ie_inspect_retry().
 */
IE_API ie_status ie_inspect_discard(struct sqlite3 *db, const ie_filter *filter, const char *reason,
                                    uint64_t *changed, ie_error *err);

/** Why is this event where it is? The list is fixed and documented in outbox/WHY.md. */
typedef enum ie_why_code {
    IE_WHY_UNKNOWN_ID = 0,
    IE_WHY_NO_DESTINATION = 1, /* no worker has ever served this outbox */
    IE_WHY_WORKER_NOT_RUNNING = 2,
    IE_WHY_NOT_ROUTED = 3,
    IE_WHY_PENDING = 4,
    IE_WHY_IN_PROGRESS = 5,
    IE_WHY_SCHEDULED = 6,
    IE_WHY_BLOCKED = 7,
    IE_WHY_RETRYING = 8,
    IE_WHY_BREAKER_OPEN = 9,
    IE_WHY_DEAD = 10,
    IE_WHY_EXPIRED = 11,
    IE_WHY_DISCARDED = 12,
    IE_WHY_PUBLISHED = 13
} ie_why_code;

typedef struct ie_why {
    ie_why_code code;
    const char *code_name; /* "breaker-open" */
    const char *cursor;    /* "" where it concerns none */
    const char *sentence;  /* the answer */
    const char *evidence;  /* what it was concluded from */
    const char *next;      /* the command that mends it or shows more */
} ie_why;

/**
 * One answer per destination (one in all when the id is unknown or nothing serves the outbox).
 *
 * @param id      the event's id.
 * @param cursor  NULL: every destination.
 * @param db_name how the commands in the answers should name the database; NULL: its file name.
 * @return IE_OK; IE_ENOTFOUND when the answer was IE_WHY_UNKNOWN_ID (the callback ran too);
 *         IE_ESCHEMA_MISSING, IE_EBUSY, IE_EIO. Threads: owner of @p db.
 */
IE_API ie_status ie_why_event(struct sqlite3 *db, const char *id, const char *cursor,
                              const char *db_name, void (*each)(void *user, const ie_why *why),
                              void *user, ie_error *err);

#ifdef __cplusplus
}
#endif
#endif
