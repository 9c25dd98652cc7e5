#include "lane.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "publisher_env.h"
#include "runner.h"
#include "url.h"

#define NONE UINT32_MAX
#define PATTERNS_MAX 64
#define RETRY_SLOTS_MAX 256
#define HELD_BITS 8192u
#define SPARE_BATCHES_MAX 2
#define BUSY_PAUSE_MS 5
#define TROUBLE_PAUSE_MS 500
#define ROUNDS_PER_STEP 16

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
    uint64_t        hash;     /* of the key; 0: no order to keep */
    uint32_t        next;     /* in the chain of its key */
    uint32_t        link;     /* in its bucket, while it is its chain's last */
    uint32_t        generation;
    atomic_int      state; /* a slot_state; S_SENT -> S_ANSWERED by any thread */
    outcome         outcome;
    ie_verdict      verdict;
    bool            is_retry; /* comes from a delivery, not from the window */
    bool            is_last;  /* stands in a bucket */
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

    /* The window is a ring of slots [head, tail) in order of position; retries have the slots behind it. */
    slot     *slots;
    uint32_t  window;
    uint32_t  total;
    uint64_t  head;
    uint64_t  tail;
    uint32_t  retries;      /* retry slots in use */
    uint32_t  retries_done; /* of those, decided */
    uint32_t *ready;        /* a ring of slots that may be handed out */
    uint32_t  ready_first;
    uint32_t  ready_count;
    uint32_t *buckets;
    uint32_t  bucket_mask;
    uint32_t *scratch;
    ie_outgoing *outgoing;
    uint32_t  in_flight;
    uint8_t   held[HELD_BITS / 8]; /* keys that may be held: a clear bit means certainly not */

    ie__batch *filling;
    ie__batch *spare;
    size_t     spare_count;
    size_t     window_bytes;

    ie__cursor cursor;
    bool       has_lease;
    bool       is_lost;   /* lease gone while events were in flight */
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
    int64_t  timeout_check_ms;
    bool     blocked_noted;

    atomic_uint_fast64_t n_published, n_retried, n_dead, n_expired, n_scheduled, n_skipped,
        n_unreachable, n_stray, n_lost, n_marks, n_in_flight, n_bytes;
    atomic_int_fast64_t a_position;
    atomic_bool         a_lease;
    atomic_int          a_breaker;
};

static slot_state
state_of(const slot *at)
{
    return (slot_state)atomic_load_explicit(&at->state, memory_order_relaxed);
}

/* The lock orders what goes with it; the state alone may be read by either side at any time. */
static void
state_set(slot *at, slot_state state)
{
    atomic_store_explicit(&at->state, (int)state, memory_order_relaxed);
}

static void
count_up(atomic_uint_fast64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static int64_t
now_boot(const ie__lane *lane)
{
    return ie__boot_ms(lane->options->clock);
}

static int64_t
now_wall(const ie__lane *lane)
{
    return ie__wall_ms(lane->options->clock);
}

static uint32_t
reserve(const ie__lane *lane)
{
    return 2 * lane->window; /* dispatch never runs past it: the window is half of it */
}

/* Every size in [1, max] is as likely: many workers coming back at once spread out. */
static uint32_t
full_jitter(uint64_t ceiling, uint32_t floor)
{
    const uint64_t drawn = ie__random_below(ceiling + 1);

    return (uint32_t)(drawn < floor ? floor : drawn);
}

static uint32_t
backoff_ms(const ie_worker_options *options, uint32_t attempts)
{
    uint64_t       ceiling = options->retry_delay_ms;
    const uint32_t floor = options->retry_delay_ms < 50 ? options->retry_delay_ms : 50;

    for (uint32_t i = 1; i < attempts && ceiling < options->retry_delay_max_ms; i++)
        ceiling *= 2;
    if (ceiling > options->retry_delay_max_ms)
        ceiling = options->retry_delay_max_ms;
    return full_jitter(ceiling, floor);
}

/* ---- answers: any thread --------------------------------------------------------------------------- */

static void
lane_report(void *user, uint64_t ticket, ie_verdict verdict, const char *reason, uint32_t delay_ms)
{
    ie__lane      *lane = user;
    const uint32_t index = (uint32_t)ticket;
    bool           is_known;
    bool           must_wake = false;

    (void)pthread_mutex_lock(&lane->lock);
    is_known = index < lane->total && state_of(&lane->slots[index]) == S_SENT &&
               lane->slots[index].generation == (uint32_t)(ticket >> 32) &&
               (unsigned)verdict <= IE_REJECTED;
    if (is_known) {
        slot *at = &lane->slots[index];

        at->verdict = verdict;
        at->delay_ms = delay_ms;
        if (verdict != IE_DELIVERED && reason != NULL)
            at->reason = ie__strdup(reason); /* without memory the verdict stands, without words */
        state_set(at, S_ANSWERED);
        lane->answered[lane->answered_count++] = index;
        must_wake = !lane->is_signalled && !pthread_equal(pthread_self(), lane->thread);
        if (must_wake)
            lane->is_signalled = true;
    }
    (void)pthread_mutex_unlock(&lane->lock);
    if (!is_known)
        count_up(&lane->n_stray);
    if (must_wake)
        lane->shared.wake(lane->shared.wake_user);
}

/* A worker died with these events in its hands: smaller windows until they are passed. */
static bool
is_suspect(const ie__lane *lane)
{
    return lane->cursor.suspect_window != 0 && lane->cursor.position < lane->cursor.suspect_to;
}

/* ---- memory of events --------------------------------------------------------------------------------- */

static void
batch_recycle(ie__lane *lane, ie__batch *batch)
{
    lane->window_bytes -= batch->bytes;
    if (batch == lane->filling) {
        ie__batch_clear(batch);
        lane->window_bytes += batch->bytes;
    } else if (lane->spare_count < SPARE_BATCHES_MAX) {
        ie__batch_clear(batch);
        batch->next = lane->spare;
        lane->spare = batch;
        lane->spare_count++;
    } else {
        ie__batch_free(batch);
    }
}

/* A batch with room for another row. */
static ie__batch *
batch_with_room(ie__lane *lane)
{
    ie__batch *batch = lane->filling;

    if (batch != NULL && batch->count < batch->capacity)
        return batch;
    if (lane->spare != NULL) {
        batch = lane->spare;
        lane->spare = batch->next;
        lane->spare_count--;
    } else if (ie__batch_new(&batch, lane->options->batch_max) != IE_OK) {
        return NULL;
    }
    lane->window_bytes += batch->bytes;
    if (lane->filling != NULL && lane->filling->unanswered == 0) {
        ie__batch *old = lane->filling;

        lane->filling = NULL;
        batch_recycle(lane, old);
    }
    lane->filling = batch;
    return batch;
}

/* ---- chains of one key --------------------------------------------------------------------------------- */

static bool
is_held_maybe(const ie__lane *lane, uint64_t hash)
{
    return (lane->held[(hash % HELD_BITS) / 8] >> (hash % 8) & 1) != 0;
}

static void
held_mark(ie__lane *lane, uint64_t hash)
{
    lane->held[(hash % HELD_BITS) / 8] |= (uint8_t)(1u << (hash % 8));
}

static void
held_mark_key(void *user, const char *key)
{
    held_mark(user, ie__hash(key, strlen(key)) | 1);
}

static uint64_t
order_hash(const ie__lane *lane, const ie_event *event)
{
    switch (lane->destination->order) {
    case IE_ORDER_STRICT: return 1;
    case IE_ORDER_KEY: return event->key != NULL ? ie__hash(event->key, strlen(event->key)) | 1 : 0;
    case IE_ORDER_NONE: break;
    }
    return 0;
}

static bool
same_chain(const ie__lane *lane, const slot *a, const slot *b)
{
    return a->hash == b->hash && (lane->destination->order == IE_ORDER_STRICT ||
                                  strcmp(a->event->key, b->event->key) == 0);
}

/* Becomes its chain's last; gives the one before it, or NONE. */
static uint32_t
chain_append(ie__lane *lane, uint32_t index)
{
    slot     *at = &lane->slots[index];
    uint32_t *link = &lane->buckets[at->hash & lane->bucket_mask];

    at->next = NONE;
    at->is_last = true;
    while (*link != NONE && !same_chain(lane, &lane->slots[*link], at))
        link = &lane->slots[*link].link;
    const uint32_t before = *link;
    if (before != NONE) {
        at->link = lane->slots[before].link;
        lane->slots[before].next = index;
        lane->slots[before].is_last = false;
    } else {
        at->link = NONE;
    }
    *link = index;
    return before;
}

static void
chain_leave(ie__lane *lane, uint32_t index)
{
    slot     *at = &lane->slots[index];
    uint32_t *link;

    if (!at->is_last)
        return;
    at->is_last = false;
    for (link = &lane->buckets[at->hash & lane->bucket_mask]; *link != index;)
        link = &lane->slots[*link].link;
    *link = at->link;
}

static void
ready_push(ie__lane *lane, uint32_t index)
{
    state_set(&lane->slots[index], S_READY);
    lane->ready[(lane->ready_first + lane->ready_count++) % lane->total] = index;
}

static bool
holds_its_key(outcome what)
{
    return what == O_RETRYING || what == O_BLOCKED || what == O_UNCLAIMED;
}

/* The outcome is decided; whoever waits behind it learns what that means. */
static void
slot_finish(ie__lane *lane, uint32_t index, outcome what, const char *fixed_reason)
{
    const char *why = fixed_reason;

    while (index != NONE) {
        slot          *at = &lane->slots[index];
        const uint32_t next = at->hash != 0 ? at->next : NONE;

        at->outcome = what;
        if (why != NULL)
            at->fixed_reason = why;
        state_set(at, S_FINAL);
        if (at->is_retry)
            lane->retries_done++;
        if (lane->unmarked_since_ms == 0)
            lane->unmarked_since_ms = now_boot(lane);
        if (holds_its_key(what) && at->hash != 0)
            held_mark(lane, at->hash);
        if (next == NONE || state_of(&lane->slots[next]) != S_WAITING)
            return;
        if (!holds_its_key(what)) {
            ready_push(lane, next);
            return;
        }
        what = O_BLOCKED;
        why = "waits behind an event of its key";
        index = next;
    }
}

static void
slot_free(ie__lane *lane, uint32_t index)
{
    slot      *at = &lane->slots[index];
    ie__batch *batch = at->batch;

    chain_leave(lane, index);
    ie__free(at->reason);
    at->reason = NULL;
    at->fixed_reason = NULL;
    at->event = NULL;
    at->batch = NULL;
    state_set(at, S_FREE);
    if (batch != NULL && --batch->unanswered == 0)
        batch_recycle(lane, batch);
}

static const char *
slot_reason(const slot *at)
{
    return at->reason != NULL ? at->reason : at->fixed_reason != NULL ? at->fixed_reason : "";
}

/* Take a slot for the newest row of the batch. */
static slot *
slot_fill(ie__lane *lane, uint32_t index, ie__batch *batch, bool is_retry)
{
    slot           *at = &lane->slots[index];
    const ie_event *event = &batch->rows[batch->count - 1].event;
    const uint32_t  generation = at->generation;

    memset(at, 0, sizeof *at);
    at->generation = generation;
    at->event = event;
    at->batch = batch;
    at->position = event->position;
    at->is_retry = is_retry;
    at->next = NONE;
    at->link = NONE;
    batch->unanswered++;
    return at;
}

/* ---- the lease ------------------------------------------------------------------------------------------ */

static void
lane_reset(ie__lane *lane)
{
    for (uint32_t i = 0; i < lane->total; i++)
        if (state_of(&lane->slots[i]) != S_FREE)
            slot_free(lane, i);
    for (uint32_t i = 0; i <= lane->bucket_mask; i++)
        lane->buckets[i] = NONE;
    lane->head = lane->tail = lane->decided_from = 0;
    lane->retries = lane->retries_done = 0;
    lane->ready_first = lane->ready_count = 0;
    lane->in_flight = 0;
    lane->unmarked_since_ms = 0;
    lane->unclaim = false;
    lane->strict_put = false;
    lane->strict_has_row = false;
    lane->strict_attempts = 0;
    lane->strict_until_ms = 0;
    lane->bury_next = false;
    lane->is_lost = false;
}

/* Forget everything that is not stored, and begin again from what is. */
static void
lane_drop(ie__lane *lane)
{
    lane->has_lease = false;
    atomic_store(&lane->a_lease, false);
    lane->take_at_ms = now_boot(lane) + 100;
    lane->is_lost = lane->in_flight > 0;
    if (!lane->is_lost)
        lane_reset(lane);
}

static void
lane_lose(ie__lane *lane)
{
    count_up(&lane->n_lost);
    lane_drop(lane);
    ie__log(&lane->options->logger, IE_LOG_WARN, "worker",
            "%s: another worker has taken over; what is in flight may be sent twice", lane->name);
}

static const char *
order_name(ie_order order)
{
    return order == IE_ORDER_NONE ? "none" : order == IE_ORDER_STRICT ? "strict" : "key";
}

static ie_status
lane_take(ie__lane *lane, ie_error *err)
{
    const ie__lease_request request = {
        .name = lane->name,
        .owner = lane->shared.owner,
        .destination = lane->url_shown,
        .topics = lane->destination->topics != NULL ? lane->destination->topics : "",
        .order = order_name(lane->destination->order),
        .start_now = lane->destination->start == IE_START_NOW,
        .lease_ms = lane->options->lease_ms,
        .reserve = reserve(lane),
        .claims_max = lane->options->claims_max,
    };
    const int64_t now = now_boot(lane);
    uint32_t      retry_ms = 0;
    ie_status     status = ie__database_in_place(lane->shared.db, err);

    if (status == IE_OK)
        status = ie__cursor_take(lane->shared.cursors, &request, &lane->cursor, &retry_ms, err);
    if (status != IE_OK) {
        lane->take_at_ms = now + (status == IE_ELEASE  ? retry_ms
                                  : status == IE_EBUSY ? BUSY_PAUSE_MS
                                                       : TROUBLE_PAUSE_MS);
        return status;
    }
    lane_reset(lane);
    lane->has_lease = true;
    lane->lease_until_ms = now + lane->options->lease_ms;
    lane->renew_at_ms = now + lane->options->lease_ms / 3;
    lane->read_position = lane->cursor.position;
    lane->bury_next = lane->cursor.must_bury;
    lane->is_at_end = false;
    lane->next_due_ms = 0;
    lane->breaker = IE_BREAKER_CLOSED;
    lane->limit = lane->window;
    memset(lane->held, 0, sizeof lane->held);
    atomic_store(&lane->a_lease, true);
    atomic_store(&lane->a_position, lane->cursor.position);
    status = ie__deliveries_recover(lane->deliveries, err);
    if (status == IE_OK)
        status = ie__delivery_held_keys(lane->deliveries, held_mark_key, lane, err);
    ie__log(&lane->options->logger, IE_LOG_INFO, "worker",
            "%s: serving from position %lld to %s%s", lane->name, (long long)lane->cursor.position,
            lane->url_shown,
            lane->cursor.suspect_window != 0 ? "; the last worker died, so carefully at first" : "");
    if (status != IE_OK) {
        lane->has_lease = false;
        lane->take_at_ms = now + TROUBLE_PAUSE_MS;
    }
    return status;
}

/* ---- the breaker ------------------------------------------------------------------------------------------ */

static void
breaker_set(ie__lane *lane, ie_breaker breaker)
{
    lane->breaker = breaker;
    atomic_store(&lane->a_breaker, (int)breaker);
}

static void
breaker_open(ie__lane *lane, const char *reason)
{
    const ie_worker_options *options = lane->options;

    if (lane->breaker == IE_BREAKER_OPEN)
        return;
    if (lane->breaker == IE_BREAKER_CLOSED) {
        lane->breaker_since_ms = now_wall(lane);
        lane->breaker_delay_ms = options->breaker_delay_ms;
        ie__log(&options->logger, IE_LOG_WARN, "worker", "%s: %s cannot be reached: %s", lane->name,
                lane->url_shown, reason);
    } else if (lane->breaker_delay_ms < options->breaker_delay_max_ms) {
        lane->breaker_delay_ms *= 2;
    }
    if (lane->breaker_delay_ms > options->breaker_delay_max_ms)
        lane->breaker_delay_ms = options->breaker_delay_max_ms;
    breaker_set(lane, IE_BREAKER_OPEN);
    lane->breaker_until_ms =
        now_boot(lane) + lane->breaker_delay_ms / 2 +
        (int64_t)ie__random_below(lane->breaker_delay_ms - lane->breaker_delay_ms / 2 + 1);
    (void)snprintf(lane->breaker_reason, sizeof lane->breaker_reason, "%s",
                   reason[0] != '\0' ? reason : "no reason given");
    lane->note_breaker = true;
    lane->limit = 1;
    lane->limit_progress = 0;
    lane->ready_first = lane->ready_count = 0; /* filled again, in order, for the next try */
}

/* Somebody answered: the destination is there. */
static void
breaker_contact(ie__lane *lane)
{
    if (lane->breaker == IE_BREAKER_TRYING) {
        breaker_set(lane, IE_BREAKER_CLOSED);
        lane->note_breaker = true;
        ie__log(&lane->options->logger, IE_LOG_INFO, "worker", "%s: %s is back", lane->name,
                lane->url_shown);
    }
    if (lane->limit < lane->window && ++lane->limit_progress >= lane->limit) {
        lane->limit = lane->limit * 2 < lane->window ? lane->limit * 2 : lane->window;
        lane->limit_progress = 0;
    }
}

/* Let one event try; everything that was handed back stands in order again. */
static void
breaker_try(ie__lane *lane)
{
    breaker_set(lane, IE_BREAKER_TRYING);
    lane->ready_first = lane->ready_count = 0;
    for (uint64_t seq = lane->head; seq < lane->tail; seq++)
        if (state_of(&lane->slots[seq % lane->window]) == S_READY)
            ready_push(lane, (uint32_t)(seq % lane->window));
}

/* ---- answers: our side ---------------------------------------------------------------------------------------- */

static void
answer_retry(ie__lane *lane, uint32_t index)
{
    slot          *at = &lane->slots[index];
    const uint32_t attempts = at->attempts + 1;
    uint32_t       delay_ms;

    count_up(&lane->n_retried);
    at->attempts = attempts;
    if (attempts >= lane->options->attempts_max) {
        slot_finish(lane, index, O_DEAD, NULL);
        return;
    }
    delay_ms = backoff_ms(lane->options, attempts);
    if (at->delay_ms > delay_ms)
        delay_ms = at->delay_ms;
    at->due_at_ms = now_wall(lane) + delay_ms;
    if (lane->destination->order == IE_ORDER_STRICT && !at->is_retry) {
        /* Nothing may pass it: it stays where it is, and its row tells how it fares. */
        state_set(at, S_READY);
        lane->strict_until_ms = now_boot(lane) + delay_ms;
        lane->strict_put = true;
        if (lane->unmarked_since_ms == 0)
            lane->unmarked_since_ms = now_boot(lane);
        ready_push(lane, index);
        return;
    }
    slot_finish(lane, index, O_RETRYING, NULL);
}

static void
answer_take(ie__lane *lane, uint32_t index)
{
    slot *at = &lane->slots[index];

    lane->in_flight--;
    if (lane->is_lost) {
        state_set(at, S_FINAL);
        return;
    }
    switch (at->verdict) {
    case IE_DELIVERED:
        breaker_contact(lane);
        slot_finish(lane, index, O_PUBLISHED, NULL);
        break;
    case IE_RETRY:
        breaker_contact(lane);
        answer_retry(lane, index);
        break;
    case IE_REJECTED:
        breaker_contact(lane);
        at->attempts++;
        slot_finish(lane, index, O_DEAD, "rejected without a reason");
        break;
    case IE_UNREACHABLE:
        count_up(&lane->n_unreachable);
        lane->unclaim = true;
        breaker_open(lane, slot_reason(at));
        ie__free(at->reason);
        at->reason = NULL;
        if (at->is_retry)
            slot_finish(lane, index, O_UNCLAIMED, NULL);
        else
            state_set(at, S_READY); /* back in line; spends nothing */
        break;
    }
}

static bool
answers_collect(ie__lane *lane)
{
    uint32_t count;

    (void)pthread_mutex_lock(&lane->lock);
    count = lane->answered_count;
    memcpy(lane->scratch, lane->answered, count * sizeof lane->scratch[0]);
    lane->answered_count = 0;
    lane->is_signalled = false;
    (void)pthread_mutex_unlock(&lane->lock);
    for (uint32_t i = 0; i < count; i++)
        answer_take(lane, lane->scratch[i]);
    if (lane->is_lost && lane->in_flight == 0)
        lane_reset(lane);
    return count > 0;
}

/*
 * A publisher that does not answer: closing it ends its claim on the events, so that they may be sent
 * again. One that blocks inside publish() cannot be closed; it is waited for.
 */
static void
timeouts_check(ie__lane *lane)
{
    const int64_t now = now_boot(lane);
    const int64_t limit_ms = lane->options->publish_timeout_ms;
    bool          has_late = false;
    ie_status     status = IE_OK;
    ie_error      error = IE_ERROR_INIT;

    if (lane->in_flight == 0 || now < lane->timeout_check_ms)
        return;
    lane->timeout_check_ms = now + (limit_ms / 4 > 10 ? limit_ms / 4 : 10);
    for (uint32_t i = 0; i < lane->total && !has_late; i++)
        has_late = state_of(&lane->slots[i]) == S_SENT && now - lane->slots[i].sent_at_ms >= limit_ms;
    if (!has_late)
        return;
    if (!ie__runner_reopen(lane->runner, &status, &error)) {
        if (!lane->blocked_noted)
            ie__log(&lane->options->logger, IE_LOG_ERROR, "worker",
                    "%s: the publisher has blocked for more than %lld ms", lane->name,
                    (long long)limit_ms);
        lane->blocked_noted = true;
        return;
    }
    lane->blocked_noted = false;
    (void)answers_collect(lane);
    for (uint32_t i = 0; i < lane->total; i++) {
        slot *at = &lane->slots[i];

        if (state_of(at) != S_SENT)
            continue;
        lane->in_flight--;
        at->generation++; /* late answers count as strays from here on */
        if (lane->is_lost) {
            state_set(at, S_FINAL);
        } else if (now - at->sent_at_ms >= limit_ms) {
            at->fixed_reason = "the publisher gave no answer in time (publish_timeout_ms)";
            answer_retry(lane, i);
        } else if (at->is_retry) {
            slot_finish(lane, i, O_UNCLAIMED, NULL);
        } else {
            ready_push(lane, i);
        }
    }
    if (lane->is_lost && lane->in_flight == 0)
        lane_reset(lane);
    if (status != IE_OK)
        breaker_open(lane, error.message);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bool
is_routed(const ie__lane *lane, const ie_event *event)
{
    if (lane->pattern_count == 0)
        return true;
    for (size_t i = 0; i < lane->pattern_count; i++)
        if (ie_pattern_matches(lane->patterns[i], event->topic))
            return true;
    return false;
}

/* Its place among the events of its key: at once, behind one in flight, or behind one that is held. */
static ie_status
slot_line_up(ie__lane *lane, uint32_t index, ie_error *err)
{
    slot     *at = &lane->slots[index];
    bool      is_held = false;
    uint32_t  before;
    ie_status status = IE_OK;

    at->hash = order_hash(lane, at->event);
    if (at->hash == 0) {
        ready_push(lane, index);
        return IE_OK;
    }
    if (lane->destination->order == IE_ORDER_KEY && !at->is_retry && is_held_maybe(lane, at->hash))
        status = ie__delivery_key_held(lane->deliveries, at->event->key, at->position, &is_held, err);
    if (status != IE_OK)
        return status;
    before = chain_append(lane, index);
    if (before != NONE && state_of(&lane->slots[before]) != S_FINAL)
        state_set(at, S_WAITING);
    else if (is_held || (before != NONE && holds_its_key(lane->slots[before].outcome) &&
                         lane->slots[before].position < at->position))
        slot_finish(lane, index, O_BLOCKED, "waits behind an event of its key");
    else
        ready_push(lane, index); /* a retry goes before the later ones that wait for it */
    return IE_OK;
}

static ie_status
slot_admit(ie__lane *lane, uint32_t index, const ie__row *row, int64_t wall_ms, ie_error *err)
{
    slot           *at = &lane->slots[index];
    const ie_event *event = at->event;

    if (lane->bury_next) {
        lane->bury_next = false;
        at->claims = lane->cursor.claims;
        slot_finish(lane, index, O_DEAD,
                    "the worker died each time that it handed this event out (claims_max)");
    } else if (row->trouble != NULL) {
        slot_finish(lane, index, O_DEAD, row->trouble);
    } else if (!is_routed(lane, event)) {
        slot_finish(lane, index, O_SKIPPED, NULL);
    } else if (event->expires_at_ms != 0 && event->expires_at_ms <= wall_ms) {
        slot_finish(lane, index, O_EXPIRED, "expires_at had passed before it could be sent");
    } else if (event->not_before_ms > wall_ms) {
        at->due_at_ms = event->not_before_ms;
        slot_finish(lane, index, O_SCHEDULED, "waits for its not_before");
    } else {
        return slot_line_up(lane, index, err);
    }
    return IE_OK;
}

/* In strict order the head's earlier tries are in its row. */
static ie_status
strict_resume(ie__lane *lane, slot *at, ie_error *err)
{
    ie__delivery row;
    ie_error     ignored = IE_ERROR_INIT;
    ie_status    status = ie__delivery_get(lane->deliveries, at->position, &row, &ignored);

    if (status == IE_ENOTFOUND)
        return IE_OK;
    if (status != IE_OK)
        return ie_error_set(err, status, "%s", ignored.message);
    at->attempts = row.attempts;
    lane->strict_has_row = true;
    if (row.state == IE_STATE_RETRYING && row.due_at_ms > now_wall(lane) &&
        row.due_at_ms <= now_wall(lane) + lane->options->retry_delay_max_ms)
        lane->strict_until_ms = now_boot(lane) + (row.due_at_ms - now_wall(lane));
    return IE_OK;
}


/* How many rows may be read now, and up to which position. */
static size_t
read_room(const ie__lane *lane, int64_t *until)
{
    const size_t used = (size_t)(lane->tail - lane->head);
    size_t       room = lane->window - used;

    *until = lane->cursor.claimed_to;
    if (is_suspect(lane)) {
        if (lane->cursor.suspect_to < *until)
            *until = lane->cursor.suspect_to;
        if (lane->cursor.suspect_window <= used)
            return 0;
        if (room > lane->cursor.suspect_window - used)
            room = lane->cursor.suspect_window - used;
    } else if (room < lane->options->batch_max && room < lane->window / 2) {
        return 0; /* worth a query only when there is some room */
    }
    if (lane->window_bytes >= lane->options->window_bytes_max && used > 0)
        return 0;
    return room < lane->options->batch_max ? room : lane->options->batch_max;
}

static ie_status lane_mark(ie__lane *lane, ie_error *err);

/* Positions may be missing (someone wrote one by hand): move the reservation to where events are. */
static ie_status
read_gap(ie__lane *lane, int64_t until, ie_error *err)
{
    char      sql[128];
    int64_t   next = 0;
    ie_status status;

    (void)snprintf(sql, sizeof sql, "SELECT min(position) FROM main.ie_event WHERE position > %lld",
                   (long long)until);
    status = ie__sql_int(&next, lane->shared.db, sql, 0, err);
    if (status != IE_OK || next == 0) {
        lane->is_at_end = status == IE_OK;
        return status;
    }
    if (lane->tail != lane->head)
        return IE_OK; /* what is in the window moves the reservation by itself */
    lane->read_position = next - 1;
    return lane_mark(lane, err);
}

static ie_status
lane_read(ie__lane *lane, ie_error *err)
{
    int64_t   until;
    size_t    room = read_room(lane, &until);
    size_t    taken = 0;
    ie_status status = IE_OK;

    if (room == 0)
        return IE_OK;
    while (status == IE_OK && taken < room) {
        ie__batch   *batch = batch_with_room(lane);
        const size_t first = batch != NULL ? batch->count : 0;
        const size_t bytes = batch != NULL ? batch->bytes : 0;
        const size_t want = batch != NULL && batch->capacity - first < room - taken
                                ? batch->capacity - first
                                : room - taken;
        const int64_t wall_ms = now_wall(lane);

        if (batch == NULL)
            return ie_error_set(err, IE_ENOMEM, "read events: out of memory");
        status = ie__reader_after(lane->shared.reader, batch, lane->read_position, until, want,
                                  lane->options->window_bytes_max / 4, err);
        lane->window_bytes += batch->bytes - bytes;
        const size_t end = batch->count;
        for (size_t i = first; status == IE_OK && i < end; i++) {
            const uint32_t index = (uint32_t)(lane->tail % lane->window);

            batch->count = i + 1; /* slot_fill takes the newest row */
            slot *at = slot_fill(lane, index, batch, false);
            lane->tail++;
            lane->read_position = at->position;
            if (lane->destination->order == IE_ORDER_STRICT && lane->tail - lane->head == 1)
                status = strict_resume(lane, at, err);
            if (status == IE_OK)
                status = slot_admit(lane, index, &batch->rows[i], wall_ms, err);
        }
        batch->count = end;
        taken += end - first;
        if (end - first < want)
            break;
    }
    if (status == IE_OK && taken == 0)
        status = read_gap(lane, until, err);
    return status;
}

/* ---- deliveries that are due ------------------------------------------------------------------------------------ */

static uint32_t
retry_slot_free(const ie__lane *lane)
{
    for (uint32_t i = lane->window; i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_FREE)
            return i;
    return NONE;
}

/* One due delivery becomes a slot, or what else its row says. Inside a transaction. */
static ie_status
due_take(ie__lane *lane, int64_t position, bool is_alone, bool *is_taken, ie_error *err)
{
    const uint32_t index = retry_slot_free(lane);
    ie__batch     *batch = batch_with_room(lane);
    size_t         bytes;
    bool           is_held = false;
    ie__delivery   row;
    ie_status      status;
    slot          *at;

    if (index == NONE || batch == NULL)
        return batch == NULL ? ie_error_set(err, IE_ENOMEM, "retry: out of memory") : IE_OK;
    bytes = batch->bytes;
    status = ie__delivery_get(lane->deliveries, position, &row, err);
    if (status != IE_OK)
        return status;
    if (row.claims >= 2 && !is_alone)
        return IE_OK; /* it may be what kills workers: it goes alone, or it would take others along */
    if (lane->destination->order == IE_ORDER_KEY && row.key != NULL) {
        status = ie__delivery_key_held(lane->deliveries, row.key, position, &is_held, err);
        if (status == IE_OK && is_held) {
            row.state = IE_STATE_BLOCKED;
            row.due_at_ms = 0;
            row.reason = "waits behind an event of its key";
            return ie__delivery_put(lane->deliveries, &row, err);
        }
    }
    if (status == IE_OK) {
        ie_error gone = IE_ERROR_INIT;

        status = ie__reader_at(lane->shared.reader, batch, position, &gone);
        if (status == IE_ENOTFOUND)
            return ie__delivery_remove(lane->deliveries, position, err);
        if (status != IE_OK)
            return ie_error_set(err, status, "%s", gone.message);
    }
    lane->window_bytes += batch->bytes - bytes;
    at = slot_fill(lane, index, batch, true);
    at->attempts = row.attempts;
    at->claims = row.claims;
    lane->retries++;
    *is_taken = true;
    if (row.claims >= lane->options->claims_max) {
        slot_finish(lane, index, O_DEAD,
                    "the worker died each time that it handed this event out (claims_max)");
        return IE_OK;
    }
    status = ie__delivery_claim(lane->deliveries, position,
                                now_wall(lane) + lane->options->publish_timeout_ms, err);
    if (status != IE_OK)
        return status;
    return slot_admit(lane, index, &batch->rows[batch->count - 1], now_wall(lane), err);
}

static ie_status
lane_retry_due(ie__lane *lane, ie_error *err)
{
    const int64_t wall_ms = now_wall(lane);
    int64_t       positions[RETRY_SLOTS_MAX];
    size_t        count = 0;
    size_t        room = lane->total - lane->window - lane->retries;
    ie_status     status;

    if (room == 0 || lane->breaker != IE_BREAKER_CLOSED ||
        (wall_ms < lane->next_due_ms && lane->next_due_ms <= wall_ms + lane->options->retry_delay_max_ms))
        return IE_OK;
    if (room > lane->options->batch_max)
        room = lane->options->batch_max;
    status = ie__delivery_due(lane->deliveries, wall_ms, lane->options->retry_delay_max_ms, positions,
                              room, &count, err);
    if (status == IE_OK && count > 0) {
        status = ie__sql_begin(lane->shared.db, err);
        if (status != IE_OK)
            return status;
        for (size_t i = 0; status == IE_OK && i < count; i++) {
            bool       is_taken = false;
            const bool is_alone = lane->in_flight == 0 && lane->retries == 0 && lane->ready_count == 0;

            if (lane->destination->order == IE_ORDER_STRICT && positions[i] > lane->cursor.position)
                continue; /* the window's own head */
            status = due_take(lane, positions[i], is_alone, &is_taken, err);
            if (is_taken && is_alone && lane->slots[lane->window].claims >= 2)
                break;
        }
        if (status == IE_OK)
            status = ie__sql_commit(lane->shared.db, err);
        else
            ie__sql_rollback(lane->shared.db);
        if (status != IE_OK) {
            lane_drop(lane); /* rows and slots disagree: start over from what is stored */
            return status;
        }
    }
    if (status == IE_OK)
        status = ie__delivery_next_due(lane->deliveries, &lane->next_due_ms, err);
    return status;
}

/* ---- handing out ------------------------------------------------------------------------------------------------- */

/* True when something was handed out. */
static bool
lane_dispatch(ie__lane *lane, ie_error *err)
{
    const int64_t now = now_boot(lane);
    const int64_t wall_ms = now_wall(lane);
    uint32_t      limit = lane->limit;
    uint32_t      count = 0;

    if (lane->breaker == IE_BREAKER_OPEN && now >= lane->breaker_until_ms && lane->in_flight == 0)
        breaker_try(lane);
    if (lane->breaker == IE_BREAKER_OPEN || now < lane->strict_until_ms || now >= lane->lease_until_ms)
        return false;
    if (lane->breaker == IE_BREAKER_TRYING)
        limit = 1;
    if (!ie__runner_has_room(lane->runner))
        return false;
    if (lane->ready_count > 0 && lane->in_flight < limit && is_suspect(lane) &&
        lane->cursor.suspect_window == 1 &&
        ie__cursor_claim(lane->shared.cursors, &lane->cursor, err) != IE_OK)
        return false; /* not counted, so not handed out */
    (void)pthread_mutex_lock(&lane->lock);
    while (lane->ready_count > 0 && count < lane->options->batch_max && lane->in_flight < limit) {
        const uint32_t index = lane->ready[lane->ready_first];
        slot          *at = &lane->slots[index];

        lane->ready_first = (lane->ready_first + 1) % lane->total;
        lane->ready_count--;
        if (state_of(at) != S_READY)
            continue;
        if (at->event->expires_at_ms != 0 && at->event->expires_at_ms <= wall_ms) {
            slot_finish(lane, index, O_EXPIRED, "expires_at had passed before it could be sent");
            continue;
        }
        state_set(at, S_SENT);
        at->generation++;
        at->sent_at_ms = now;
        lane->outgoing[count++] = (ie_outgoing){
            .event = at->event,
            .ticket = (uint64_t)at->generation << 32 | index,
            .attempt = at->attempts + 1,
        };
        lane->in_flight++;
    }
    (void)pthread_mutex_unlock(&lane->lock);
    if (count == 0)
        return false;
    if (!ie__runner_publish(lane->runner, lane->outgoing, count)) {
        (void)pthread_mutex_lock(&lane->lock);
        for (uint32_t i = 0; i < count; i++) {
            ready_push(lane, (uint32_t)lane->outgoing[i].ticket);
            lane->in_flight--;
        }
        (void)pthread_mutex_unlock(&lane->lock);
        return false;
    }
    return true;
}

/* ---- writing down -------------------------------------------------------------------------------------------------- */

static ie_status
mark_put(ie__lane *lane, const slot *at, ie_state state, int64_t due_at_ms, ie_error *err)
{
    const ie__delivery row = {
        .position = at->position,
        .state = state,
        .key = at->event->key,
        .attempts = at->attempts,
        .claims = at->outcome == O_UNCLAIMED || state == IE_STATE_DEAD ? at->claims : 0,
        .due_at_ms = due_at_ms,
        .expires_at_ms = at->event->expires_at_ms,
        .since_ms = now_wall(lane),
        .reason = slot_reason(at),
    };

    if (due_at_ms != 0 && due_at_ms < lane->next_due_ms)
        lane->next_due_ms = due_at_ms;
    return ie__delivery_put(lane->deliveries, &row, err);
}

/* An event is out of its key's way. */
static ie_status
mark_release(ie__lane *lane, const slot *at, ie_error *err)
{
    bool      released = false;
    ie_status status;

    if (lane->destination->order != IE_ORDER_KEY || at->event->key == NULL)
        return IE_OK;
    status = ie__delivery_release_key(lane->deliveries, at->event->key, &released, err);
    if (released)
        lane->next_due_ms = 0;
    return status;
}

static ie_status
mark_slot(ie__lane *lane, const slot *at, ie_error *err)
{
    const int64_t wall_ms = now_wall(lane);
    bool          is_held = true;
    ie_status     status = IE_OK;

    switch (at->outcome) {
    case O_PUBLISHED:
    case O_SKIPPED:
        if (at->is_retry || lane->strict_has_row)
            status = ie__delivery_remove(lane->deliveries, at->position, err);
        break;
    case O_RETRYING: return mark_put(lane, at, IE_STATE_RETRYING, at->due_at_ms, err);
    case O_UNCLAIMED: return mark_put(lane, at, IE_STATE_RETRYING, wall_ms, err);
    case O_SCHEDULED: return mark_put(lane, at, IE_STATE_SCHEDULED, at->due_at_ms, err);
    case O_BLOCKED:
        /* The one before it may have been released since: then nobody would wake this one. */
        status = ie__delivery_key_held(lane->deliveries, at->event->key, at->position, &is_held, err);
        if (status != IE_OK)
            return status;
        return is_held ? mark_put(lane, at, IE_STATE_BLOCKED, 0, err)
                       : mark_put(lane, at, IE_STATE_RETRYING, wall_ms, err);
    case O_DEAD: status = mark_put(lane, at, IE_STATE_DEAD, 0, err); break;
    case O_EXPIRED: status = mark_put(lane, at, IE_STATE_EXPIRED, 0, err); break;
    }
    return status == IE_OK && at->is_retry ? mark_release(lane, at, err) : status;
}

static void
mark_tell(ie__lane *lane, const slot *at)
{
    const ie_worker_options *options = lane->options;

    switch (at->outcome) {
    case O_PUBLISHED:
        count_up(&lane->n_published);
        if (options->on_published != NULL)
            options->on_published(options->user, lane->name, at->event);
        break;
    case O_DEAD:
        count_up(&lane->n_dead);
        ie__log(&options->logger, IE_LOG_ERROR, "worker", "%s: event %s (%s) is dead: %s", lane->name,
                at->event->id != NULL ? at->event->id : "?",
                at->event->topic != NULL ? at->event->topic : "?", slot_reason(at));
        if (options->on_dead != NULL)
            options->on_dead(options->user, lane->name, at->event, slot_reason(at));
        break;
    case O_EXPIRED:
        count_up(&lane->n_expired);
        if (options->on_expired != NULL)
            options->on_expired(options->user, lane->name, at->event);
        break;
    case O_SCHEDULED: count_up(&lane->n_scheduled); break;
    case O_SKIPPED: count_up(&lane->n_skipped); break;
    case O_RETRYING:
    case O_BLOCKED:
    case O_UNCLAIMED: break;
    }
}

/* The rows of one mark, inside its transaction: first what is new, then what makes room. */
static ie_status
mark_rows(ie__lane *lane, uint64_t end, ie_error *err)
{
    ie_status status = IE_OK;

    for (uint64_t seq = lane->head; status == IE_OK && seq < end; seq++) {
        const slot *at = &lane->slots[seq % lane->window];

        if (at->outcome > O_SKIPPED || lane->strict_has_row)
            status = mark_slot(lane, at, err);
    }
    if (status == IE_OK && lane->strict_put && end == lane->head && lane->tail > lane->head)
        status = mark_put(lane, &lane->slots[lane->head % lane->window], IE_STATE_RETRYING,
                          lane->slots[lane->head % lane->window].due_at_ms, err);
    for (uint32_t i = lane->window; status == IE_OK && lane->retries_done > 0 && i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_FINAL)
            status = mark_slot(lane, &lane->slots[i], err);
    return status;
}

static void
mark_done(ie__lane *lane, uint64_t end, int64_t position)
{
    const int64_t now = now_boot(lane);

    if (position > lane->cursor.position || lane->unclaim)
        lane->cursor.claims = lane->cursor.crashes = 0;
    lane->cursor.position = position;
    lane->cursor.claimed_to = position + reserve(lane);
    if (position >= lane->cursor.suspect_to)
        lane->cursor.suspect_window = 0;
    lane->lease_until_ms = now + lane->options->lease_ms;
    lane->renew_at_ms = now + lane->options->lease_ms / 3;
    lane->unmarked_since_ms = 0;
    lane->unclaim = false;
    lane->note_breaker = false;
    if (lane->strict_put && end == lane->head)
        lane->strict_has_row = true;
    lane->strict_put = false;
    if (end > lane->head)
        lane->strict_has_row = false;
    for (; lane->head < end; lane->head++) {
        const uint32_t index = (uint32_t)(lane->head % lane->window);

        mark_tell(lane, &lane->slots[index]);
        slot_free(lane, index);
    }
    for (uint32_t i = lane->window; lane->retries_done > 0 && i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_FINAL) {
            mark_tell(lane, &lane->slots[i]);
            slot_free(lane, i);
            lane->retries--;
            lane->retries_done--;
        }
    /* What is decided further on waits for the events before it; it counts again once they are done. */
    for (uint64_t seq = lane->head; seq < lane->tail && lane->unmarked_since_ms == 0; seq++)
        if (state_of(&lane->slots[seq % lane->window]) != S_FINAL)
            break;
        else
            lane->unmarked_since_ms = now;
    atomic_store(&lane->a_position, position);
    count_up(&lane->n_marks);
}

/* The end of the contiguous prefix of decided events. */
static uint64_t
decided_end(ie__lane *lane)
{
    uint64_t end = lane->decided_from > lane->head ? lane->decided_from : lane->head;

    while (end < lane->tail && state_of(&lane->slots[end % lane->window]) == S_FINAL)
        end++;
    lane->decided_from = end;
    return end;
}

/* One write transaction for all that is known; also renews the lease. */
static ie_status
lane_mark(ie__lane *lane, ie_error *err)
{
    const uint64_t end = decided_end(lane);
    const int64_t  position = end > lane->head ? lane->slots[(end - 1) % lane->window].position
                              : lane->tail == lane->head ? lane->read_position
                                                         : lane->cursor.position;
    ie_status      status = ie__sql_begin(lane->shared.db, err);

    if (status == IE_OK) {
        status = ie__cursor_advance(lane->shared.cursors, &lane->cursor, position, reserve(lane),
                                    lane->options->lease_ms, lane->unclaim, err);
        if (status == IE_OK)
            status = mark_rows(lane, end, err);
        if (status == IE_OK && lane->note_breaker)
            status = ie__cursor_breaker(
                lane->shared.cursors, &lane->cursor,
                lane->breaker == IE_BREAKER_CLOSED ? NULL : lane->breaker_reason, lane->breaker_since_ms,
                now_wall(lane) + (lane->breaker_until_ms - now_boot(lane)), err);
        if (status == IE_OK)
            status = ie__sql_commit(lane->shared.db, err);
        else
            ie__sql_rollback(lane->shared.db);
    }
    if (status == IE_OK) {
        lane->pause_until_ms = 0;
        mark_done(lane, end, position);
    } else if (status == IE_ELEASE) {
        lane_lose(lane);
    } else {
        lane->pause_until_ms =
            now_boot(lane) + (status == IE_EBUSY ? BUSY_PAUSE_MS : TROUBLE_PAUSE_MS);
    }
    return status;
}

static bool
must_mark(ie__lane *lane, bool flush)
{
    const int64_t now = now_boot(lane);

    if (now < lane->pause_until_ms)
        return false;
    if (now >= lane->renew_at_ms)
        return true;
    if (lane->note_breaker && lane->in_flight == 0)
        return true;
    if (lane->unmarked_since_ms == 0)
        return false;
    if (decided_end(lane) == lane->head && lane->retries_done == 0 && !lane->strict_put)
        return false; /* known, but something before it is still out */
    return flush || now - lane->unmarked_since_ms >= lane->options->mark_delay_ms ||
           decided_end(lane) - lane->head >= lane->options->batch_max || is_suspect(lane);
}

/* ---- one step --------------------------------------------------------------------------------------------------------- */

/* True when it got somewhere, so that another round may too. */
static bool
step_round(ie__lane *lane, bool flush, ie_status *status, ie_error *err)
{
    const uint64_t tail = lane->tail;
    bool           progress = answers_collect(lane);

    if (!lane->has_lease)
        return false;
    if (must_mark(lane, flush))
        *status = lane_mark(lane, err);
    if (*status != IE_OK || !lane->has_lease || now_boot(lane) < lane->pause_until_ms)
        return false;
    timeouts_check(lane);
    if (!lane->is_draining) {
        *status = lane_retry_due(lane, err);
        if (*status == IE_OK && lane->has_lease && !lane->is_at_end)
            *status = lane_read(lane, err);
        if (*status == IE_OK && lane->has_lease)
            progress = lane_dispatch(lane, err) || progress;
    }
    return answers_collect(lane) || progress || lane->tail != tail;
}

static void
earlier(int64_t *wake_at_ms, int64_t at_ms)
{
    if (at_ms < *wake_at_ms)
        *wake_at_ms = at_ms;
}

static void
step_news(ie__lane *lane, bool progress, ie__lane_news *news)
{
    const int64_t now = now_boot(lane);
    const int64_t wall_ms = now_wall(lane);
    const bool    is_empty = lane->tail == lane->head && lane->retries == 0;

    news->wake_at_ms = INT64_MAX;
    if (!lane->has_lease) {
        earlier(&news->wake_at_ms, lane->take_at_ms);
        return;
    }
    earlier(&news->wake_at_ms, lane->renew_at_ms);
    if (lane->pause_until_ms > now) {
        earlier(&news->wake_at_ms, lane->pause_until_ms);
        return;
    }
    if (lane->in_flight > 0)
        earlier(&news->wake_at_ms, lane->timeout_check_ms > now ? lane->timeout_check_ms : now + 1);
    if (lane->unmarked_since_ms != 0 && (decided_end(lane) > lane->head || lane->retries_done > 0 || lane->strict_put))
        earlier(&news->wake_at_ms, lane->unmarked_since_ms + lane->options->mark_delay_ms);
    if (lane->breaker == IE_BREAKER_OPEN)
        earlier(&news->wake_at_ms, lane->breaker_until_ms);
    else if (lane->ready_count > 0 && lane->strict_until_ms > now)
        earlier(&news->wake_at_ms, lane->strict_until_ms);
    else if (lane->next_due_ms != INT64_MAX && lane->breaker == IE_BREAKER_CLOSED)
        earlier(&news->wake_at_ms, lane->next_due_ms > wall_ms ? now + (lane->next_due_ms - wall_ms) : now);
    if (lane->is_draining)
        return;
    /* It stops when a round gets nowhere: then only answers, time or news can change that. */
    news->is_busy = progress;
    news->is_idle = is_empty && lane->is_at_end && lane->in_flight == 0 && lane->next_due_ms > wall_ms &&
                    lane->unmarked_since_ms == 0;
}

void
ie__lane_step(ie__lane *lane, bool has_news, bool flush, ie__lane_news *news)
{
    bool progress = true;

    memset(news, 0, sizeof *news);
    if (has_news) {
        lane->is_at_end = false;
        if (lane->next_due_ms > now_wall(lane))
            lane->next_due_ms = 0; /* somebody may have sent a delivery again */
    }
    if (!lane->has_lease && !lane->is_lost && !lane->is_draining && now_boot(lane) >= lane->take_at_ms)
        news->status = lane_take(lane, &news->error);
    for (int i = 0; i < ROUNDS_PER_STEP && progress && news->status == IE_OK; i++)
        progress = step_round(lane, flush, &news->status, &news->error);
    if (flush && news->status == IE_OK && lane->has_lease && must_mark(lane, true))
        news->status = lane_mark(lane, &news->error);
    step_news(lane, progress, news);
    atomic_store_explicit(&lane->n_in_flight, lane->in_flight, memory_order_relaxed);
    atomic_store_explicit(&lane->n_bytes, lane->window_bytes, memory_order_relaxed);
}

bool
ie__lane_drain(ie__lane *lane)
{
    ie__lane_news news;

    lane->is_draining = true;
    ie__lane_step(lane, false, true, &news);
    return lane->in_flight == 0 && (!lane->has_lease || (decided_end(lane) == lane->head &&
                                                         lane->retries_done == 0 && !lane->strict_put));
}

void
ie__lane_release(ie__lane *lane)
{
    ie_error  error = IE_ERROR_INIT;
    ie_status status;

    if (!lane->has_lease)
        return;
    lane->has_lease = false;
    atomic_store(&lane->a_lease, false);
    if (lane->in_flight > 0)
        return; /* not clean: the next owner is careful with what we could not account for */
    status = ie__sql_begin(lane->shared.db, &error);
    if (status == IE_OK) {
        status = ie__cursor_release(lane->shared.cursors, &lane->cursor, &error);
        /* Retries that were taken and not sent are due at once again. */
        if (status == IE_OK)
            status = ie__deliveries_unclaim(lane->deliveries, &error);
        if (status == IE_OK)
            status = ie__sql_commit(lane->shared.db, &error);
        else
            ie__sql_rollback(lane->shared.db);
    }
    if (status != IE_OK)
        ie__log(&lane->options->logger, IE_LOG_WARN, "worker", "%s: lease not given back: %s", lane->name,
                error.message);
}

bool
ie__lane_has_lease(const ie__lane *lane)
{
    return lane->has_lease;
}

bool
ie__lane_breaker_is_open(const ie__lane *lane, char *reason, size_t size)
{
    (void)snprintf(reason, size, "%s", lane->breaker_reason);
    return lane->breaker != IE_BREAKER_CLOSED;
}

const char *
ie__lane_name(const ie__lane *lane)
{
    return lane->name;
}

static bool
is_in_retry_slot(const ie__lane *lane, int64_t position)
{
    for (uint32_t i = lane->window; i < lane->total; i++)
        if (state_of(&lane->slots[i]) != S_FREE && lane->slots[i].position == position)
            return true;
    return false;
}

/* One waiting delivery whose time is over. Inside a transaction. */
static ie_status
expire_one(ie__lane *lane, ie__batch *batch, int64_t position, ie_error *err)
{
    bool         released = false;
    ie__delivery row;
    ie_status    status = ie__delivery_get(lane->deliveries, position, &row, err);

    if (status != IE_OK)
        return status;
    row.state = IE_STATE_EXPIRED;
    row.due_at_ms = 0;
    row.since_ms = now_wall(lane);
    row.reason = "expires_at passed while it waited";
    status = ie__delivery_put(lane->deliveries, &row, err);
    if (status == IE_OK && row.key != NULL && lane->destination->order == IE_ORDER_KEY)
        status = ie__delivery_release_key(lane->deliveries, row.key, &released, err);
    if (released)
        lane->next_due_ms = 0;
    if (status == IE_OK && lane->options->on_expired != NULL &&
        (status = ie__reader_at(lane->shared.reader, batch, position, err)) == IE_ENOTFOUND) {
        ie_error_clear(err);
        status = IE_OK;
    }
    return status;
}

ie_status
ie__lane_expire(ie__lane *lane, ie_error *err)
{
    enum { EXPIRE_MAX = 128 };
    int64_t    positions[EXPIRE_MAX];
    size_t     count = 0;
    uint64_t   expired = 0;
    ie__batch *batch = NULL;
    ie_status  status;

    if (!lane->has_lease || now_boot(lane) >= lane->lease_until_ms)
        return IE_OK;
    status = ie__delivery_expired(lane->deliveries, now_wall(lane), positions, EXPIRE_MAX, &count, err);
    if (status != IE_OK || count == 0)
        return status;
    if (ie__batch_new(&batch, EXPIRE_MAX) != IE_OK)
        return ie_error_set(err, IE_ENOMEM, "expire: out of memory");
    status = ie__sql_begin(lane->shared.db, err);
    if (status == IE_OK) {
        status = ie__cursor_advance(lane->shared.cursors, &lane->cursor, lane->cursor.position,
                                    reserve(lane), lane->options->lease_ms, false, err);
        for (size_t i = 0; status == IE_OK && i < count; i++)
            if (!is_in_retry_slot(lane, positions[i])) {
                status = expire_one(lane, batch, positions[i], err);
                expired++;
            }
        if (status == IE_OK)
            status = ie__sql_commit(lane->shared.db, err);
        else
            ie__sql_rollback(lane->shared.db);
    }
    if (status == IE_OK) {
        atomic_fetch_add(&lane->n_expired, expired);
        for (size_t i = 0; i < batch->count; i++)
            lane->options->on_expired(lane->options->user, lane->name, &batch->rows[i].event);
    } else if (status == IE_ELEASE) {
        lane_lose(lane);
    }
    ie__batch_free(batch);
    return status;
}

void
ie__lane_stats(const ie__lane *lane, ie_destination_stats *stats)
{
    (void)snprintf(stats->name, sizeof stats->name, "%s", lane->name);
    stats->has_lease = atomic_load(&lane->a_lease);
    stats->breaker = (ie_breaker)atomic_load(&lane->a_breaker);
    stats->position = atomic_load(&lane->a_position);
    stats->published = atomic_load(&lane->n_published);
    stats->retried = atomic_load(&lane->n_retried);
    stats->dead = atomic_load(&lane->n_dead);
    stats->expired = atomic_load(&lane->n_expired);
    stats->scheduled = atomic_load(&lane->n_scheduled);
    stats->skipped = atomic_load(&lane->n_skipped);
    stats->in_flight = atomic_load(&lane->n_in_flight);
    stats->unreachable = atomic_load(&lane->n_unreachable);
    stats->stray_reports = atomic_load(&lane->n_stray);
    stats->lease_lost = atomic_load(&lane->n_lost);
    stats->marks = atomic_load(&lane->n_marks);
    stats->window_bytes = atomic_load(&lane->n_bytes);
}

/* ---- open and close --------------------------------------------------------------------------------------------------- */

static ie_status
patterns_parse(ie__lane *lane, ie_error *err)
{
    char *save = NULL;

    if (lane->destination->topics == NULL || lane->destination->topics[0] == '\0')
        return IE_OK;
    lane->patterns_text = ie__strdup(lane->destination->topics);
    if (lane->patterns_text == NULL)
        return ie_error_set(err, IE_ENOMEM, "open destination: out of memory");
    for (char *at = strtok_r(lane->patterns_text, ", \t\n", &save); at != NULL;
         at = strtok_r(NULL, ", \t\n", &save)) {
        if (lane->pattern_count == PATTERNS_MAX)
            return ie_error_set(err, IE_EINVAL, "destination %s: more than %d topic patterns", lane->name,
                                PATTERNS_MAX);
        if (ie_pattern_check(at, err) != IE_OK)
            return IE_EINVAL;
        lane->patterns[lane->pattern_count++] = at;
    }
    return IE_OK;
}

static ie_status
lane_allocate(ie__lane *lane, ie_error *err)
{
    uint32_t buckets = 64;

    lane->window = lane->options->in_flight_max;
    lane->total = lane->window + (lane->options->batch_max < RETRY_SLOTS_MAX ? lane->options->batch_max
                                                                             : RETRY_SLOTS_MAX);
    while (buckets < 2 * lane->total)
        buckets *= 2;
    lane->bucket_mask = buckets - 1;
    lane->slots = ie__calloc(lane->total, sizeof *lane->slots);
    lane->answered = ie__calloc(lane->total, sizeof *lane->answered);
    lane->scratch = ie__calloc(lane->total, sizeof *lane->scratch);
    lane->ready = ie__calloc(lane->total, sizeof *lane->ready);
    lane->buckets = ie__calloc(buckets, sizeof *lane->buckets);
    lane->outgoing = ie__calloc(lane->options->batch_max, sizeof *lane->outgoing);
    if (lane->slots == NULL || lane->answered == NULL || lane->scratch == NULL || lane->ready == NULL ||
        lane->buckets == NULL || lane->outgoing == NULL)
        return ie_error_set(err, IE_ENOMEM, "open destination: out of memory");
    memset(lane->buckets, 0xff, buckets * sizeof *lane->buckets);
    return IE_OK;
}

static void
lane_free(ie__lane *lane)
{
    if (lane->slots != NULL)
        lane_reset(lane);
    ie__deliveries_close(lane->deliveries);
    ie__batch_free(lane->filling);
    for (ie__batch *at = lane->spare, *next; at != NULL; at = next) {
        next = at->next;
        ie__batch_free(at);
    }
    (void)pthread_mutex_destroy(&lane->lock);
    ie__free(lane->patterns_text);
    ie__free(lane->slots);
    ie__free(lane->answered);
    ie__free(lane->scratch);
    ie__free(lane->ready);
    ie__free(lane->buckets);
    ie__free(lane->outgoing);
    ie__free(lane);
}

ie_status
ie__lane_open(ie__lane **out, const ie__lane_shared *shared, const ie_destination *destination,
              ie_error *err)
{
    ie__lane *lane = ie__calloc(1, sizeof *lane);
    ie_status status;

    if (lane == NULL)
        return ie_error_set(err, IE_ENOMEM, "open destination: out of memory");
    lane->shared = *shared;
    lane->options = shared->options;
    lane->destination = destination;
    lane->thread = pthread_self();
    (void)pthread_mutex_init(&lane->lock, NULL);
    (void)snprintf(lane->name, sizeof lane->name, "%s", destination->name);
    ie__url_redact(lane->url_shown, sizeof lane->url_shown, destination->url);
    lane->env = (ie_publisher_env){.report = lane_report, .user = lane, .logger = lane->options->logger,
                                   .name = lane->name};
    status = lane_allocate(lane, err);
    if (status == IE_OK)
        status = patterns_parse(lane, err);
    if (status == IE_OK)
        status = ie__deliveries_open(&lane->deliveries, shared->db, lane->options->clock, lane->name, err);
    if (status == IE_OK)
        status = ie_publishers_find(&lane->ops, lane->options->publishers, destination->url, err);
    if (status == IE_OK)
        status = ie__runner_open(&lane->runner, lane->ops, destination->url, &lane->env, shared->wake,
                                 shared->wake_user, err);
    if (status != IE_OK) {
        lane_free(lane);
        return status;
    }
    *out = lane;
    return IE_OK;
}

bool
ie__lane_close(ie__lane *lane, uint32_t wait_ms)
{
    if (lane == NULL)
        return true;
    if (!ie__runner_close(lane->runner, wait_ms))
        return false; /* its thread still reads our events */
    lane->runner = NULL;
    lane_free(lane);
    return true;
}
