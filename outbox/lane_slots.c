/* Slots: memory of events, the order within a key, and how one outcome decides about those behind
 * it. */
#include "lane_parts.h"

#include <stdio.h>
#include <string.h>

/* ---- memory of events ---- */

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
ie__batch *
ie__lane_batch(ie__lane *lane)
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

/* ---- chains of one key ---- */

bool
ie__held_maybe(const ie__lane *lane, uint64_t hash)
{
    return (lane->held[(hash % HELD_BITS) / 8] >> (hash % 8) & 1) != 0;
}

void
ie__held_mark(ie__lane *lane, uint64_t hash)
{
    lane->held[(hash % HELD_BITS) / 8] |= (uint8_t)(1u << (hash % 8));
}

uint64_t
ie__order_hash(const ie__lane *lane, const ie_event *event)
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
uint32_t
ie__chain_append(ie__lane *lane, uint32_t index)
{
    slot     *at = &lane->slots[index];
    uint32_t *link = &lane->buckets[at->hash & lane->bucket_mask];

    at->next = NONE;
    at->is_chained = true;
    at->is_last = true;
    while (*link != NONE && !same_chain(lane, &lane->slots[*link], at))
        link = &lane->slots[*link].link;
    at->prev = *link;
    if (at->prev != NONE) {
        at->link = lane->slots[at->prev].link;
        lane->slots[at->prev].next = index;
        lane->slots[at->prev].is_last = false;
    } else {
        at->link = NONE;
    }
    *link = index;
    return at->prev;
}

static void
chain_leave(ie__lane *lane, uint32_t index)
{
    slot     *at = &lane->slots[index];
    uint32_t *link;

    if (!at->is_chained)
        return;
    at->is_chained = false;
    if (at->next != NONE)
        lane->slots[at->next].prev = at->prev;
    if (at->prev != NONE)
        lane->slots[at->prev].next = at->next;
    if (!at->is_last)
        return;
    at->is_last = false;
    for (link = &lane->buckets[at->hash & lane->bucket_mask]; *link != index;)
        link = &lane->slots[*link].link;
    if (at->prev != NONE) { /* a retry goes, the events that wait for it are still here */
        lane->slots[at->prev].link = at->link;
        lane->slots[at->prev].is_last = true;
        *link = at->prev;
    } else {
        *link = at->link;
    }
}

void
ie__ready_push(ie__lane *lane, uint32_t index)
{
    state_set(&lane->slots[index], S_READY);
    lane->ready[(lane->ready_first + lane->ready_count++) % lane->total] = index;
}

bool
ie__holds_its_key(outcome what)
{
    return what == O_RETRYING || what == O_BLOCKED || what == O_UNCLAIMED;
}

/* The outcome is decided; whoever waits behind it learns what that means. */
void
ie__slot_finish(ie__lane *lane, uint32_t index, outcome what, const char *fixed_reason)
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
        if (ie__holds_its_key(what) && at->hash != 0)
            ie__held_mark(lane, at->hash);
        if (next == NONE || state_of(&lane->slots[next]) != S_WAITING)
            return;
        if (!ie__holds_its_key(what)) {
            ie__ready_push(lane, next);
            return;
        }
        what = O_BLOCKED;
        why = "waits behind an event of its key";
        index = next;
    }
}

void
ie__slot_free(ie__lane *lane, uint32_t index)
{
    slot      *at = &lane->slots[index];
    ie__batch *batch = at->batch;

    chain_leave(lane, index);
    if (index == lane->solo)
        lane->solo = NONE;
    ie__free(at->reason);
    at->reason = NULL;
    at->fixed_reason = NULL;
    at->event = NULL;
    at->batch = NULL;
    state_set(at, S_FREE);
    if (batch != NULL && --batch->unanswered == 0)
        batch_recycle(lane, batch);
}

/* Take a slot for the newest row of the batch. */
slot *
ie__slot_fill(ie__lane *lane, uint32_t index, ie__batch *batch, bool is_retry)
{
    slot           *at = &lane->slots[index];
    const ie_event *event = &batch->rows[batch->count - 1].event;

    /* State and generation stay: answers for a ticket that is over may look at them meanwhile. */
    at->event = event;
    at->batch = batch;
    at->position = event->position;
    at->hash = 0;
    at->next = NONE;
    at->prev = NONE;
    at->link = NONE;
    at->is_chained = false;
    at->outcome = O_PUBLISHED;
    at->verdict = IE_DELIVERED;
    at->is_retry = is_retry;
    at->is_last = false;
    at->attempts = 0;
    at->claims = 0;
    at->delay_ms = 0;
    at->due_at_ms = 0;
    at->sent_at_ms = 0;
    at->fixed_reason = NULL;
    at->reason = NULL;
    batch->unanswered++;
    return at;
}

/* As if it had never been filled; for the slot that was filled last and got no state yet. */
void
ie__slot_undo(ie__lane *lane, uint32_t index)
{
    slot *at = &lane->slots[index];

    at->batch->unanswered--;
    at->batch->count--;
    at->batch = NULL;
    at->event = NULL;
}
