/* Verdicts: taken from any thread, weighed on ours; and publishers that give none. */
#include "lane_parts.h"

#include <stdio.h>
#include <string.h>

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

/* ---- answers: any thread ---- */

/* As much of the reason as is kept; without memory the verdict stands, without words. */
static char *
reason_copy(const char *reason)
{
    const size_t bytes = strnlen(reason, IE__REASON_BYTES_MAX);
    char        *copy = ie__alloc(bytes + 1);

    if (copy != NULL) {
        memcpy(copy, reason, bytes);
        copy[bytes] = '\0';
    }
    return copy;
}

void
ie__lane_report(void *user, uint64_t ticket, ie_verdict verdict, const char *reason,
                uint32_t delay_ms)
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
        ie__free(at->reason); /* of the try before, in strict order */
        at->reason = verdict != IE_DELIVERED && reason != NULL ? reason_copy(reason) : NULL;
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

/* ---- answers: our side ---- */

static void
answer_retry(ie__lane *lane, uint32_t index)
{
    slot          *at = &lane->slots[index];
    const uint32_t attempts = at->attempts + 1;
    uint32_t       delay_ms;

    count_up(&lane->n_retried);
    at->attempts = attempts;
    if (attempts >= lane->options->attempts_max) {
        ie__slot_finish(lane, index, O_DEAD,
                        at->fixed_reason != NULL ? NULL
                                                 : "refused attempts_max times without a reason");
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
        ie__ready_push(lane, index);
        return;
    }
    ie__slot_finish(lane, index, O_RETRYING, NULL);
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
        ie__breaker_contact(lane);
        ie__slot_finish(lane, index, O_PUBLISHED, NULL);
        break;
    case IE_RETRY:
        ie__breaker_contact(lane);
        answer_retry(lane, index);
        break;
    case IE_REJECTED:
        ie__breaker_contact(lane);
        at->attempts++;
        ie__slot_finish(lane, index, O_DEAD, "rejected without a reason");
        break;
    case IE_UNREACHABLE:
        count_up(&lane->n_unreachable);
        lane->unclaim = true;
        ie__breaker_open(lane, slot_reason(at));
        if (at->is_retry)
            ie__slot_finish(lane, index, O_UNCLAIMED, "the destination could not be reached");
        else
            state_set(at, S_READY); /* back in line; spends nothing */
        break;
    }
}

bool
ie__answers_collect(ie__lane *lane)
{
    uint32_t count;

    (void)pthread_mutex_lock(&lane->lock);
    count = lane->answered_count;
    memcpy(lane->scratch, lane->answered, count * sizeof lane->scratch[0]);
    lane->answered_count = 0;
    lane->is_signalled = false;
    lane->thread = pthread_self();
    (void)pthread_mutex_unlock(&lane->lock);
    if (count > 0)
        lane->due_stalled = false;
    for (uint32_t i = 0; i < count; i++)
        answer_take(lane, lane->scratch[i]);
    if (lane->is_lost && lane->in_flight == 0)
        ie__lane_reset(lane);
    return count > 0;
}

/* Take what the publisher has out of its hands; gives how many, their slots in scratch. */
static uint32_t
sent_revoke(ie__lane *lane)
{
    uint32_t count = 0;

    (void)pthread_mutex_lock(&lane->lock);
    for (uint32_t i = 0; i < lane->total; i++)
        if (state_of(&lane->slots[i]) == S_SENT) {
            lane->slots[i].generation++; /* late answers count as strays from here on */
            state_set(&lane->slots[i], S_ANSWERED);
            lane->scratch[count++] = i;
        }
    (void)pthread_mutex_unlock(&lane->lock);
    lane->in_flight -= count;
    return count;
}

/* The publisher is closed: what it did not answer goes back in line. */
void
ie__answers_revoke(ie__lane *lane, int64_t late_before_ms)
{
    uint32_t count;

    (void)ie__answers_collect(lane);
    count = sent_revoke(lane);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t index = lane->scratch[i];
        slot          *at = &lane->slots[index];

        if (lane->is_lost) {
            state_set(at, S_FINAL);
        } else if (at->sent_at_ms <= late_before_ms) {
            at->fixed_reason = "the publisher gave no answer in time (publish_timeout_ms)";
            answer_retry(lane, index);
        } else if (at->is_retry) {
            ie__slot_finish(lane, index, O_UNCLAIMED, "handed back without an answer");
        } else {
            ie__ready_push(lane, index);
        }
    }
    if (lane->is_lost && lane->in_flight == 0)
        ie__lane_reset(lane);
}

/*
 * A publisher that does not answer: closing it ends its claim on the events, so that they may be
 * sent again. One that blocks inside publish() cannot be closed; it is waited for.
 */
void
ie__timeouts_check(ie__lane *lane)
{
    const int64_t now = now_boot(lane);
    const int64_t limit_ms = lane->options->publish_timeout_ms;
    bool          has_late = false;

    if (lane->in_flight == 0 || now < lane->timeout_check_ms)
        return;
    lane->timeout_check_ms = now + (limit_ms / 4 > 10 ? limit_ms / 4 : 10);
    for (uint32_t i = 0; i < lane->total && !has_late; i++)
        has_late =
            state_of(&lane->slots[i]) == S_SENT && now - lane->slots[i].sent_at_ms >= limit_ms;
    if (!has_late)
        return;
    if (ie__runner_shut(lane->runner)) {
        lane->blocked_noted = false;
        ie__answers_revoke(lane, now - limit_ms);
        return;
    }
    if (!lane->blocked_noted)
        ie__log(&lane->options->logger, IE_LOG_ERROR, "worker",
                "%s: the publisher has blocked for more than %lld ms", lane->name,
                (long long)limit_ms);
    lane->blocked_noted = true;
}
