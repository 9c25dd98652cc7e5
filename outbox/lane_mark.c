/* What goes out: the cursor and the deliveries, in one short write transaction per batch. */
#include "lane_parts.h"

#include <stdio.h>
#include <string.h>

/* ---- writing down ---- */

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
        status =
            ie__delivery_key_held(lane->deliveries, at->event->key, at->position, &is_held, err);
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
        ie__log(&options->logger, IE_LOG_ERROR, "worker", "%s: event %s (%s) is dead: %s",
                lane->name, at->event->id != NULL ? at->event->id : "?",
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

/* In strict order, the first event that is not decided has failed: its row keeps its attempts. */
static bool
strict_head_failed(const ie__lane *lane, uint64_t end)
{
    return lane->strict_put && end < lane->tail && lane->slots[end % lane->window].attempts > 0;
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
    if (status == IE_OK && strict_head_failed(lane, end))
        status = mark_put(lane, &lane->slots[end % lane->window], IE_STATE_RETRYING,
                          lane->slots[end % lane->window].due_at_ms, err);
    for (uint32_t i = lane->window; status == IE_OK && lane->retries_done > 0 && i < lane->total;
         i++)
        if (state_of(&lane->slots[i]) == S_FINAL)
            status = mark_slot(lane, &lane->slots[i], err);
    return status;
}

static void
mark_done(ie__lane *lane, uint64_t end, int64_t position, int64_t now)
{
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
    lane->due_stalled = false;
    if (end > lane->head)
        lane->strict_has_row = false;
    if (strict_head_failed(lane, end))
        lane->strict_has_row = true;
    lane->strict_put = false;
    for (; lane->head < end; lane->head++) {
        const uint32_t index = (uint32_t)(lane->head % lane->window);

        mark_tell(lane, &lane->slots[index]);
        ie__slot_free(lane, index);
    }
    for (uint32_t i = lane->window; lane->retries_done > 0 && i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_FINAL) {
            mark_tell(lane, &lane->slots[i]);
            ie__slot_free(lane, i);
            lane->retries--;
            lane->retries_done--;
        }
    /* What is decided further on waits for the events before it; it counts again once they are
     * done. */
    for (uint64_t seq = lane->head; seq < lane->tail && lane->unmarked_since_ms == 0; seq++)
        if (state_of(&lane->slots[seq % lane->window]) != S_FINAL)
            break;
        else
            lane->unmarked_since_ms = now;
    atomic_store(&lane->a_position, position);
    count_up(&lane->n_marks);
}

/* The end of the contiguous prefix of decided events. */
uint64_t
ie__lane_decided_end(ie__lane *lane)
{
    uint64_t end = lane->decided_from > lane->head ? lane->decided_from : lane->head;

    while (end < lane->tail && state_of(&lane->slots[end % lane->window]) == S_FINAL)
        end++;
    lane->decided_from = end;
    return end;
}

void
ie__lane_pause(ie__lane *lane, ie_status status)
{
    lane->pause_until_ms = now_boot(lane) + (status == IE_EBUSY ? BUSY_PAUSE_MS : TROUBLE_PAUSE_MS);
}

/* One write transaction for all that is known; also renews the lease. */
ie_status
ie__lane_mark(ie__lane *lane, ie_error *err)
{
    const int64_t now =
        now_boot(lane); /* before writing: a lease never lasts longer than its row says */
    const uint64_t end = ie__lane_decided_end(lane);
    const int64_t  position = end > lane->head ? lane->slots[(end - 1) % lane->window].position
                              : lane->tail == lane->head ? lane->read_position
                                                         : lane->cursor.position;
    ie_status      status = ie__cursors_begin(lane->shared.cursors, err);

    if (status == IE_OK) {
        status = ie__cursor_advance(lane->shared.cursors, &lane->cursor, position, reserve(lane),
                                    lane->options->lease_ms, lane->unclaim, err);
        if (status == IE_OK)
            status = mark_rows(lane, end, err);
        if (status == IE_OK && lane->note_breaker)
            status =
                ie__cursor_breaker(lane->shared.cursors, &lane->cursor,
                                   lane->breaker == IE_BREAKER_CLOSED ? NULL : lane->breaker_reason,
                                   lane->breaker_since_ms,
                                   now_wall(lane) + (lane->breaker_until_ms - now_boot(lane)), err);
        if (status == IE_OK)
            status = ie__cursors_commit(lane->shared.cursors, err);
        else
            ie__sql_rollback(lane->shared.db);
    }
    if (status == IE_OK) {
        lane->pause_until_ms = 0;
        mark_done(lane, end, position, now);
    } else if (status == IE_ELEASE) {
        ie__lane_lose(lane);
    } else {
        ie__lane_pause(lane, status);
    }
    return status;
}

bool
ie__lane_must_mark(ie__lane *lane, bool flush)
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
    if (ie__lane_decided_end(lane) == lane->head && lane->retries_done == 0 && !lane->strict_put)
        return false; /* known, but something before it is still out */
    return flush || now - lane->unmarked_since_ms >= lane->options->mark_delay_ms ||
           ie__lane_decided_end(lane) - lane->head >= (lane->window + 1) / 2 || is_suspect(lane);
}

/* ---- expiry of what waits ---- */

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

/* Those of the positions that only wait. Inside a transaction. */
static ie_status
expire_waiting(ie__lane *lane, ie__batch *batch, const int64_t *positions, size_t count,
               uint64_t *expired, ie_error *err)
{
    ie_status status = IE_OK;

    for (size_t i = 0; status == IE_OK && i < count; i++) {
        /* In flight, or the head in strict order: looked at before it is sent again. */
        if (positions[i] > lane->cursor.position || ie__in_retry_slot(lane, positions[i]))
            continue;
        if (batch->bytes >= lane->options->window_bytes_max)
            break;
        status = expire_one(lane, batch, positions[i], err);
        *expired += 1;
    }
    return status;
}

ie_status
ie__lane_expire(ie__lane *lane, bool *more, ie_error *err)
{
    enum { EXPIRE_MAX = 128 };
    int64_t    positions[EXPIRE_MAX];
    size_t     count = 0;
    uint64_t   expired = 0;
    ie__batch *batch = NULL;
    ie_status  status;

    if (!lane->has_lease || now_boot(lane) >= lane->lease_until_ms)
        return IE_OK;
    status =
        ie__delivery_expired(lane->deliveries, now_wall(lane), positions, EXPIRE_MAX, &count, err);
    if (status != IE_OK || count == 0)
        return status;
    if (ie__batch_new(&batch, EXPIRE_MAX) != IE_OK)
        return ie_error_set(err, IE_ENOMEM, "expire: out of memory");
    status = ie__sql_begin(lane->shared.db, err);
    if (status == IE_OK) {
        status = ie__cursor_advance(lane->shared.cursors, &lane->cursor, lane->cursor.position,
                                    reserve(lane), lane->options->lease_ms, false, err);
        if (status == IE_OK)
            status = expire_waiting(lane, batch, positions, count, &expired, err);
        if (status == IE_OK)
            status = ie__sql_commit(lane->shared.db, err);
        else
            ie__sql_rollback(lane->shared.db);
    }
    if (status == IE_OK) {
        *more = *more || (expired > 0 && (expired < count || count == EXPIRE_MAX));
        atomic_fetch_add(&lane->n_expired, expired);
        for (size_t i = 0; i < batch->count; i++)
            lane->options->on_expired(lane->options->user, lane->name, &batch->rows[i].event);
    } else if (status == IE_ELEASE) {
        ie__lane_lose(lane);
    }
    ie__batch_free(batch);
    return status;
}
