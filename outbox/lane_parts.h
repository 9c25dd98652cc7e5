/*
 * The parts of a lane, shared by the lane_*.c files alone. A slot holds one event from reading it
 * until its outcome is written down:
 *
 *   read -> WAITING (behind its key) -> READY -> SENT -> ANSWERED -> FINAL -> written down, free
 *
 * The window is a ring of slots in order of position. The cursor moves over its contiguous FINAL
 * prefix.
 */
#ifndef IE_LANE_PARTS_H
#define IE_LANE_PARTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "core.h"
#include "lane.h"
#include "publisher_env.h"
#include "runner.h"

#define NONE              UINT32_MAX
#define PATTERNS_MAX      64
#define RETRY_SLOTS_MAX   256
#define HELD_BITS         8192u
#define SPARE_BATCHES_MAX 2
#define BUSY_PAUSE_MS     5
#define TROUBLE_PAUSE_MS  500
#define ROUNDS_PER_STEP   16

typedef enum slot_state {
    S_FREE,
    S_WAITING,  /* for the event of its key before it */
    S_READY,    /* may be handed out */
    S_SENT,     /* the publisher has it */
    S_ANSWERED, /* has its verdict, which we have not looked at yet */
    S_FINAL     /* outcome decided, not yet written down */
} slot_state;

typedef enum outcome {
    O_PUBLISHED,
    O_SKIPPED, /* not routed to this destination */
    O_RETRYING,
    O_BLOCKED,
    O_SCHEDULED,
    O_DEAD,
    O_EXPIRED,
    O_UNCLAIMED /* a retry that was never sent: back to where it was */
} outcome;

typedef struct slot {
    const ie_event *event;
    ie__batch      *batch;
    int64_t         position;
    uint64_t        hash; /* of the key; 0: no order to keep */
    uint32_t        next; /* in the chain of its key: the one that came after it, */
    uint32_t        prev; /* and the one before it */
    uint32_t        link; /* in its bucket, while it is its chain's last */
    uint32_t        generation;
    atomic_int      state; /* a slot_state; S_SENT -> S_ANSWERED by any thread */
    outcome         outcome;
    ie_verdict      verdict;
    bool            is_retry; /* comes from a delivery, not from the window */
    bool            is_chained;
    bool            is_last; /* of its chain: stands in a bucket */
    uint32_t        attempts;
    uint32_t        claims;
    uint32_t        delay_ms;
    int64_t         due_at_ms;
    int64_t         sent_at_ms;
    const char     *fixed_reason; /* static text */
    char           *reason;       /* ours */
} slot;

struct ie__lane {
    ie__lane_shared          shared;
    const ie_worker_options *options;
    const ie_destination    *destination;
    const ie_publisher_ops  *ops;
    ie__runner              *runner;
    ie_publisher_env         env;
    ie__deliveries          *deliveries;
    char                     name[IE__CURSOR_NAME_BYTES_MAX + 1];
    char                     url_shown[256];
    char                    *patterns_text;
    const char              *patterns[PATTERNS_MAX];
    size_t                   pattern_count;
    pthread_t                thread; /* the worker's; answers from it need no wake-up */

    /* Answers: written by any thread under the lock. */
    pthread_mutex_t lock;
    uint32_t       *answered;
    uint32_t        answered_count;
    bool            is_signalled;

    /* The window is a ring of slots [head, tail) in order of position; retries have the slots
     * behind it. */
    slot        *slots;
    uint32_t     window;
    uint32_t     total;
    uint64_t     head;
    uint64_t     tail;
    uint32_t     retries;      /* retry slots in use */
    uint32_t     retries_done; /* of those, decided */
    uint32_t    *ready;        /* a ring of slots that may be handed out */
    uint32_t     ready_first;
    uint32_t     ready_count;
    uint32_t    *buckets;
    uint32_t     bucket_mask;
    uint32_t    *scratch;
    ie_outgoing *outgoing;
    uint32_t     in_flight;
    uint8_t      held[HELD_BITS / 8]; /* keys that may be held: a clear bit means certainly not */

    ie__batch *filling;
    ie__batch *spare;
    size_t     spare_count;
    size_t     window_bytes;

    ie__cursor cursor;
    bool       has_lease;
    bool       is_lost;    /* lease gone while events were in flight */
    bool       is_standby; /* someone else has the lease; the publisher is closed meanwhile */
    bool       bury_next;
    int64_t    lease_until_ms;
    int64_t    renew_at_ms;
    int64_t    take_at_ms;
    int64_t    read_position;
    bool       is_at_end;
    bool       is_draining;
    int64_t    strict_until_ms;
    uint32_t   strict_attempts;
    bool       strict_has_row;
    bool       strict_put; /* write the head's row at the next mark */

    ie_breaker breaker;
    char       breaker_reason[IE__REASON_BYTES_MAX + 1];
    int64_t    breaker_since_ms; /* wall */
    int64_t    breaker_until_ms; /* boot */
    uint32_t   breaker_delay_ms;
    bool       note_breaker;
    uint32_t   limit; /* in flight at once; grows again after an outage */
    uint32_t   limit_progress;

    uint64_t decided_from; /* window slots before this are known to be decided */
    int64_t  unmarked_since_ms;
    bool     unclaim;
    int64_t  pause_until_ms; /* storage trouble: nothing new before */
    int64_t  next_due_ms;    /* wall */
    int64_t  gap_asked_ms;   /* boot: when the log was last asked for events beyond a gap */
    int64_t  gap_check_ms;   /* boot: when to ask again; 0: no need */
    bool     is_hurried;     /* somebody waits for this step: leave nothing for later */
    int64_t  due_asked_ms;   /* wall: when it was asked for; a clock that goes back shows here */
    bool     is_set_back;    /* the wall clock went back: retries that lie too far ahead are due */
    bool     due_stalled;    /* more is due than can be taken before something is answered */
    bool     wants_solo;     /* a suspect delivery is due: read nothing until it can go alone */
    uint32_t solo;           /* slot of the suspect delivery that goes alone, or NONE */
    int64_t  timeout_check_ms;
    bool     blocked_noted;
    ie_error trouble; /* what keeps it from working; IE_OK: nothing */

    atomic_uint_fast64_t n_published, n_retried, n_dead, n_expired, n_scheduled, n_skipped,
        n_unreachable, n_stray, n_lost, n_marks, n_in_flight, n_bytes;
    atomic_int_fast64_t a_position;
    atomic_bool         a_lease;
    atomic_int          a_breaker;
};

/* ---- small helpers ---- */

static inline slot_state
state_of(const slot *at)
{
    return (slot_state)atomic_load_explicit(&at->state, memory_order_relaxed);
}

/* The lock orders what goes with it; the state alone may be read by either side at any time. */
static inline void
state_set(slot *at, slot_state state)
{
    atomic_store_explicit(&at->state, (int)state, memory_order_relaxed);
}

static inline void
count_up(atomic_uint_fast64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static inline int64_t
now_boot(const ie__lane *lane)
{
    return ie__boot_ms(lane->options->clock);
}

static inline int64_t
now_wall(const ie__lane *lane)
{
    return ie__wall_ms(lane->options->clock);
}

static inline uint32_t
reserve(const ie__lane *lane)
{
    return 2 * lane->window; /* dispatch never runs past it: the window is half of it */
}

/* A worker died with these events in its hands: smaller windows until they are passed. */
static inline bool
is_suspect(const ie__lane *lane)
{
    return lane->cursor.suspect_window != 0 && lane->cursor.position < lane->cursor.suspect_to;
}

static inline const char *
slot_reason(const slot *at)
{
    return at->reason != NULL ? at->reason : at->fixed_reason != NULL ? at->fixed_reason : "";
}

/* ---- slots and the chains of their keys (lane_slots.c) ---- */
ie__batch *ie__lane_batch(ie__lane *lane);
bool       ie__held_maybe(const ie__lane *lane, uint64_t hash);
void       ie__held_mark(ie__lane *lane, uint64_t hash);
uint64_t   ie__order_hash(const ie__lane *lane, const ie_event *event);
uint32_t   ie__chain_append(ie__lane *lane, uint32_t index);
void       ie__ready_push(ie__lane *lane, uint32_t index);
bool       ie__holds_its_key(outcome what);
void       ie__slot_finish(ie__lane *lane, uint32_t index, outcome what, const char *fixed_reason);
void       ie__slot_free(ie__lane *lane, uint32_t index);
slot      *ie__slot_fill(ie__lane *lane, uint32_t index, ie__batch *batch, bool is_retry);
void       ie__slot_undo(ie__lane *lane, uint32_t index);

/* ---- the lease and the breaker (lane_lease.c) ---- */
void      ie__lane_reset(ie__lane *lane);
void      ie__lane_drop(ie__lane *lane);
void      ie__lane_lose(ie__lane *lane);
ie_status ie__lane_take(ie__lane *lane, ie_error *err);
void      ie__breaker_open(ie__lane *lane, const char *reason);
void      ie__breaker_contact(ie__lane *lane);
void      ie__breaker_try(ie__lane *lane);

/* ---- answers (lane_answers.c) ---- */
void ie__lane_report(void *user, uint64_t ticket, ie_verdict verdict, const char *reason,
                     uint32_t delay_ms);
bool ie__answers_collect(ie__lane *lane);
void ie__answers_revoke(ie__lane *lane, int64_t late_before_ms);
void ie__timeouts_check(ie__lane *lane);

/* ---- reading (lane_read.c) ---- */
ie_status ie__lane_read(ie__lane *lane, ie_error *err);
ie_status ie__lane_retry_due(ie__lane *lane, ie_error *err);
/* May a due delivery be taken now, as far as the destination and the slots go? */
bool ie__lane_takes_due(const ie__lane *lane);

/* ---- writing down (lane_mark.c) ---- */
uint64_t  ie__lane_decided_end(ie__lane *lane);
ie_status ie__lane_mark(ie__lane *lane, ie_error *err);
bool      ie__lane_must_mark(ie__lane *lane, bool flush);
/* Something failed that belongs to storage: nothing more before a pause. */
void ie__lane_pause(ie__lane *lane, ie_status status);
bool ie__in_retry_slot(const ie__lane *lane, int64_t position);

#endif
