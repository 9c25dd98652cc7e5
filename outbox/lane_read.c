/* What comes in: new events from the log, and deliveries that are due again. */
#include "lane_parts.h"

#include <stdio.h>
#include <string.h>

#define GAP_PAUSE_MS 20

/* ---- reading ---- */

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

/* Is an event of its key, from the window as well and before it, held but not yet written down? */
static bool
is_behind_held(const ie__lane *lane, const slot *at)
{
    uint32_t before = at->prev;

    while (before != NONE && lane->slots[before].is_retry)
        before = lane->slots[before].prev;
    return before != NONE && state_of(&lane->slots[before]) == S_FINAL &&
           ie__holds_its_key(lane->slots[before].outcome) &&
           lane->slots[before].position < at->position;
}

/* Its place among the events of its key: at once, behind one in flight, or behind one that is held.
 */
static ie_status
slot_line_up(ie__lane *lane, uint32_t index, ie_error *err)
{
    slot     *at = &lane->slots[index];
    bool      is_held = false;
    uint32_t  before;
    ie_status status = IE_OK;

    at->hash = ie__order_hash(lane, at->event);
    if (at->hash == 0) {
        ie__ready_push(lane, index);
        return IE_OK;
    }
    if (lane->destination->order == IE_ORDER_KEY && !at->is_retry && ie__held_maybe(lane, at->hash))
        status =
            ie__delivery_key_held(lane->deliveries, at->event->key, at->position, &is_held, err);
    if (status != IE_OK)
        return status;
    before = ie__chain_append(lane, index);
    /* Held goes first: between one in flight and this one, others may be blocked. */
    if (is_held || is_behind_held(lane, at))
        ie__slot_finish(lane, index, O_BLOCKED, "waits behind an event of its key");
    else if (before != NONE && state_of(&lane->slots[before]) != S_FINAL)
        state_set(at, S_WAITING);
    else
        ie__ready_push(lane, index); /* a retry goes before the later ones that wait for it */
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
        ie__slot_finish(lane, index, O_DEAD,
                        "the worker died each time that it handed this event out (claims_max)");
    } else if (row->trouble != NULL) {
        ie__slot_finish(lane, index, O_DEAD, row->trouble);
    } else if (!is_routed(lane, event)) {
        ie__slot_finish(lane, index, O_SKIPPED, NULL);
    } else if (event->expires_at_ms != 0 && event->expires_at_ms <= wall_ms) {
        ie__slot_finish(lane, index, O_EXPIRED, "expires_at had passed before it could be sent");
    } else if (event->not_before_ms > wall_ms) {
        at->due_at_ms = event->not_before_ms;
        ie__slot_finish(lane, index, O_SCHEDULED, "waits for its not_before");
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

/* Positions may be missing (someone wrote one by hand): move the reservation to where events are.
 */
static ie_status
read_gap(ie__lane *lane, int64_t until, ie_error *err)
{
    int64_t   next = 0;
    int64_t   newest = 0;
    ie_status status = ie__reader_ends(lane->shared.reader, until, &next, &newest, err);

    lane->gap_asked_ms = now_boot(lane);
    lane->gap_check_ms = 0;
    if (status == IE_OK && next == 0 && newest < lane->cursor.position) {
        ie__lane_drop(lane); /* taking it again says the same until somebody mends it */
        return ie_error_set(err, IE_ECURSOR,
                            "cursor %s stands at position %lld, beyond the newest event %lld: the "
                            "file was restored or changed under the running worker",
                            lane->name, (long long)lane->cursor.position, (long long)newest);
    }
    if (status != IE_OK || next == 0) {
        lane->is_at_end = status == IE_OK;
        return status;
    }
    if (lane->tail != lane->head)
        return IE_OK; /* what is in the window moves the reservation by itself */
    lane->read_position = next - 1;
    return ie__lane_mark(lane, err);
}

/*
 * Fewer events came than were wanted, so the log ends here, unless the batch was cut by its size or
 * someone left a gap in the positions. In a stream of news that is not asked each time, only a
 * little later.
 */
static bool
ends_here(ie__lane *lane, const ie__batch *batch, size_t first, int64_t until)
{
    const int64_t again_ms = lane->gap_asked_ms + GAP_PAUSE_MS;
    size_t        bytes = 0;

    for (size_t i = first; i < batch->count; i++)
        bytes += batch->rows[i].bytes;
    if (lane->is_hurried || bytes >= lane->options->window_bytes_max / 4 || is_suspect(lane) ||
        lane->read_position >= until || now_boot(lane) >= again_ms)
        return false;
    lane->gap_check_ms = again_ms;
    return true;
}

ie_status
ie__lane_read(ie__lane *lane, ie_error *err)
{
    int64_t   until;
    size_t    room = read_room(lane, &until);
    size_t    taken = 0;
    ie_status status = IE_OK;

    if (room == 0 || lane->wants_solo)
        return IE_OK;
    while (status == IE_OK && taken < room) {
        ie__batch    *batch = ie__lane_batch(lane);
        const size_t  first = batch != NULL ? batch->count : 0;
        const size_t  bytes = batch != NULL ? batch->bytes : 0;
        const size_t  want = batch != NULL && batch->capacity - first < room - taken
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
            slot *at = ie__slot_fill(lane, index, batch, false);
            if (lane->destination->order == IE_ORDER_STRICT && lane->tail == lane->head)
                status = strict_resume(lane, at, err);
            if (status == IE_OK)
                status = slot_admit(lane, index, &batch->rows[i], wall_ms, err);
            if (status == IE_OK) {
                lane->tail++;
                lane->read_position = at->position;
            } else {
                ie__slot_undo(lane, index); /* read again, with those behind it */
            }
        }
        if (status != IE_OK)
            return status;
        taken += end - first;
        if (end - first < want) {
            lane->is_at_end = end > first && ends_here(lane, batch, first, until);
            break;
        }
    }
    if (status == IE_OK && taken == 0)
        status = read_gap(lane, until, err);
    return status;
}

/* ---- deliveries that are due ---- */

static uint32_t
retry_slot_free(const ie__lane *lane)
{
    for (uint32_t i = lane->window; i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_FREE)
            return i;
    return NONE;
}

bool
ie__in_retry_slot(const ie__lane *lane, int64_t position)
{
    for (uint32_t i = lane->window; i < lane->total; i++)
        if (state_of(&lane->slots[i]) != S_FREE && lane->slots[i].position == position)
            return true;
    return false;
}

/* Its event is gone: somebody removed it by hand. Those behind it go on. */
static ie_status
due_forget(ie__lane *lane, const ie__delivery *row, ie_error *err)
{
    bool      released;
    ie_status status = ie__delivery_remove(lane->deliveries, row->position, err);

    if (status == IE_OK && row->key != NULL && lane->destination->order == IE_ORDER_KEY)
        status = ie__delivery_release_key(lane->deliveries, row->key, &released, err);
    return status;
}

/* What the row says may make it wait some more: gives false, and the row is written. */
static ie_status
due_may_go(ie__lane *lane, ie__delivery *row, bool *may_go, ie_error *err)
{
    bool      is_held = false;
    ie_status status = IE_OK;

    *may_go = false;
    if (ie__in_retry_slot(lane, row->position)) {
        /* In flight, and only the clock has jumped: it counts as claimed for longer. */
        row->due_at_ms = now_wall(lane) + lane->options->publish_timeout_ms;
        row->since_ms = now_wall(lane);
        return ie__delivery_put(lane->deliveries, row, err);
    }
    if (lane->destination->order == IE_ORDER_KEY && row->key != NULL)
        status = ie__delivery_key_held(lane->deliveries, row->key, row->position, &is_held, err);
    if (status == IE_OK && is_held) {
        row->state = IE_STATE_BLOCKED;
        row->due_at_ms = 0;
        row->reason = "waits behind an event of its key";
        return ie__delivery_put(lane->deliveries, row, err);
    }
    *may_go = status == IE_OK;
    return status;
}

/* The newest row of the batch takes a retry slot. */
static ie_status
due_admit(ie__lane *lane, uint32_t index, ie__batch *batch, const ie__delivery *row, ie_error *err)
{
    slot     *at = ie__slot_fill(lane, index, batch, true);
    ie_status status = IE_OK;

    at->attempts = row->attempts;
    at->claims = row->claims;
    if (row->claims >= lane->options->claims_max) {
        ie__slot_finish(lane, index, O_DEAD,
                        "the worker died each time that it handed this event out (claims_max)");
    } else {
        status = ie__delivery_claim(lane->deliveries, row->position,
                                    now_wall(lane) + lane->options->publish_timeout_ms, err);
        if (status == IE_OK)
            status = slot_admit(lane, index, &batch->rows[batch->count - 1], now_wall(lane), err);
        if (status != IE_OK) {
            ie__slot_undo(lane, index);
            return status;
        }
        if (row->claims >= 2 && state_of(at) == S_READY)
            lane->solo = index;
    }
    lane->retries++;
    return IE_OK;
}

/* One due delivery becomes a slot, or what else its row says. Inside a transaction. */
static ie_status
due_take(ie__lane *lane, int64_t position, ie_error *err)
{
    const uint32_t index = retry_slot_free(lane);
    ie__batch     *batch = ie__lane_batch(lane);
    size_t         bytes;
    bool           may_go = false;
    ie__delivery   row;
    ie_error       gone = IE_ERROR_INIT;
    ie_status      status;

    if (index == NONE || batch == NULL)
        return batch == NULL ? ie_error_set(err, IE_ENOMEM, "retry: out of memory") : IE_OK;
    status = ie__delivery_get(lane->deliveries, position, &row, &gone);
    if (status == IE_ENOTFOUND)
        return IE_OK; /* somebody was quicker than our transaction */
    if (status != IE_OK)
        return ie_error_set(err, status, "%s", gone.message);
    if (row.claims >= 2 && (lane->in_flight > 0 || lane->retries > 0)) {
        /* It may be what kills workers: it goes alone, or it would take others along. */
        lane->wants_solo = lane->due_stalled = true;
        return IE_OK;
    }
    status = due_may_go(lane, &row, &may_go, err);
    if (status != IE_OK || !may_go)
        return status;
    bytes = batch->bytes;
    status = ie__reader_at(lane->shared.reader, batch, position, &gone);
    if (status == IE_ENOTFOUND)
        return due_forget(lane, &row, err);
    if (status != IE_OK)
        return ie_error_set(err, status, "%s", gone.message);
    lane->window_bytes += batch->bytes - bytes;
    return due_admit(lane, index, batch, &row, err);
}

/* Inside a transaction. */
static ie_status
due_take_all(ie__lane *lane, const int64_t *positions, size_t count, ie_error *err)
{
    ie_status status = IE_OK;

    lane->wants_solo = false;
    for (size_t i = 0; status == IE_OK && i < count; i++) {
        if (lane->window_bytes >= lane->options->window_bytes_max && lane->retries > 0) {
            lane->due_stalled = true; /* memory first */
            break;
        }
        if (lane->destination->order == IE_ORDER_STRICT && positions[i] > lane->cursor.position) {
            lane->due_stalled = true; /* the window's own head, which has its own clock */
            continue;
        }
        status = due_take(lane, positions[i], err);
        if (lane->solo != NONE || lane->wants_solo)
            break;
    }
    return status;
}

bool
ie__lane_takes_due(const ie__lane *lane)
{
    const bool is_quiet = lane->in_flight == 0 && lane->retries == 0;

    if (lane->retries == lane->total - lane->window || lane->solo != NONE ||
        (lane->due_stalled && !is_quiet))
        return false;
    /* A destination that may be away is tried with one event; a due delivery may be all there is.
     */
    return lane->breaker == IE_BREAKER_CLOSED ||
           (lane->breaker == IE_BREAKER_TRYING && is_quiet && lane->ready_count == 0);
}

ie_status
ie__lane_retry_due(ie__lane *lane, ie_error *err)
{
    const int64_t wall_ms = now_wall(lane);
    int64_t       positions[RETRY_SLOTS_MAX];
    size_t        count = 0;
    size_t        room = lane->total - lane->window - lane->retries;
    ie_status     status;

    if (wall_ms < lane->due_asked_ms)
        lane->is_set_back = true;
    if (!ie__lane_takes_due(lane) || (wall_ms < lane->next_due_ms && !lane->is_set_back))
        return IE_OK;
    if (lane->breaker == IE_BREAKER_TRYING)
        room = 1;
    lane->due_asked_ms = wall_ms;
    status = ie__delivery_due(lane->deliveries, wall_ms, lane->is_set_back ? 0 : INT64_MAX / 2,
                              positions, room, &count, err);
    lane->due_stalled = false;
    if (status == IE_OK && count < room)
        lane->is_set_back = false;
    if (status == IE_OK && count > 0) {
        status = ie__sql_begin(lane->shared.db, err);
        if (status != IE_OK)
            return status;
        status = due_take_all(lane, positions, count, err);
        if (status == IE_OK)
            status = ie__sql_commit(lane->shared.db, err);
        else
            ie__sql_rollback(lane->shared.db);
        if (status != IE_OK) {
            ie__lane_drop(lane); /* rows and slots disagree: start over from what is stored */
            return status;
        }
    }
    if (status == IE_OK)
        status = ie__delivery_next_due(lane->deliveries, &lane->next_due_ms, err);
    return status;
}
