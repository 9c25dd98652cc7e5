/* The lease (who may move this cursor) and the breaker (is the destination there). */
#include "lane_parts.h"

#include <stdio.h>
#include <string.h>

/* ---- the lease ---- */

static void
breaker_set(ie__lane *lane, ie_breaker breaker)
{
    lane->breaker = breaker;
    atomic_store(&lane->a_breaker, (int)breaker);
}

void
ie__lane_reset(ie__lane *lane)
{
    for (uint32_t i = 0; i < lane->total; i++)
        if (state_of(&lane->slots[i]) != S_FREE)
            ie__slot_free(lane, i);
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
    lane->due_stalled = false;
    lane->gap_check_ms = 0;
    lane->wants_solo = false;
    lane->solo = NONE;
}

/* Forget everything that is not stored, and begin again from what is. */
void
ie__lane_drop(ie__lane *lane)
{
    lane->has_lease = false;
    atomic_store(&lane->a_lease, false);
    lane->take_at_ms = now_boot(lane) + 100;
    lane->is_lost = lane->in_flight > 0;
    if (!lane->is_lost)
        ie__lane_reset(lane);
}

void
ie__lane_lose(ie__lane *lane)
{
    count_up(&lane->n_lost);
    ie__lane_drop(lane);
    ie__log(&lane->options->logger, IE_LOG_WARN, "worker",
            "%s: another worker has taken over; what is in flight may be sent twice", lane->name);
}

static const char *
order_name(ie_order order)
{
    return order == IE_ORDER_NONE ? "none" : order == IE_ORDER_STRICT ? "strict" : "key";
}

static void
held_mark_key(void *user, const char *key)
{
    ie__held_mark(user, ie__hash(key, strlen(key)) | 1);
}

ie_status
ie__lane_take(ie__lane *lane, ie_error *err)
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
        /* Who only waits keeps nothing open: the destination may allow one of us (a file's lock).
         */
        if (status == IE_ELEASE && !lane->is_standby)
            lane->is_standby = ie__runner_shut(lane->runner);
        return status;
    }
    ie__lane_reset(lane);
    lane->has_lease = true;
    lane->is_standby = false;
    lane->lease_until_ms = now + lane->options->lease_ms;
    lane->renew_at_ms = now + lane->options->lease_ms / 3;
    lane->read_position = lane->cursor.position;
    lane->bury_next = lane->cursor.must_bury;
    lane->is_at_end = false;
    lane->next_due_ms = 0;
    lane->due_asked_ms = 0;
    lane->is_set_back = true; /* nobody knows what the clock did meanwhile */
    breaker_set(lane, IE_BREAKER_CLOSED);
    lane->limit = lane->window;
    memset(lane->held, 0, sizeof lane->held);
    atomic_store(&lane->a_lease, true);
    atomic_store(&lane->a_position, lane->cursor.position);
    status = ie__deliveries_recover(lane->deliveries, err);
    if (status == IE_OK)
        status = ie__delivery_held_keys(lane->deliveries, held_mark_key, lane, err);
    ie__log(&lane->options->logger, IE_LOG_INFO, "worker", "%s: serving from position %lld to %s%s",
            lane->name, (long long)lane->cursor.position, lane->url_shown,
            lane->cursor.suspect_window != 0 ? "; the last worker died, so carefully at first"
                                             : "");
    if (status != IE_OK) {
        ie__lane_drop(lane);
        lane->take_at_ms = now + TROUBLE_PAUSE_MS;
    }
    return status;
}

/* ---- the breaker ---- */

void
ie__breaker_open(ie__lane *lane, const char *reason)
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
void
ie__breaker_contact(ie__lane *lane)
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
void
ie__breaker_try(ie__lane *lane)
{
    breaker_set(lane, IE_BREAKER_TRYING);
    lane->ready_first = lane->ready_count = 0;
    for (uint32_t i = lane->window; i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_READY)
            ie__ready_push(lane, i);
    for (uint64_t seq = lane->head; seq < lane->tail; seq++)
        if (state_of(&lane->slots[seq % lane->window]) == S_READY)
            ie__ready_push(lane, (uint32_t)(seq % lane->window));
}
