/* One lane: handing out, the steps in their order, opening and closing. */
#include "lane_parts.h"

#include <stdio.h>
#include <string.h>

#include "url.h"

#define DUE_PAUSE_MS 50

/* ---- handing out ---- */

/* The suspect delivery goes first, and alone. */
static void
solo_first(ie__lane *lane)
{
    for (uint32_t i = 0; i < lane->ready_count; i++) {
        uint32_t *at = &lane->ready[(lane->ready_first + i) % lane->total];

        if (*at == lane->solo) {
            *at = lane->ready[lane->ready_first];
            lane->ready[lane->ready_first] = lane->solo;
            return;
        }
    }
}

/* How many may be handed out now; 0 while something else comes first. */
static uint32_t
dispatch_limit(ie__lane *lane)
{
    const int64_t now = now_boot(lane);

    if (lane->breaker == IE_BREAKER_OPEN && now >= lane->breaker_until_ms && lane->in_flight == 0)
        ie__breaker_try(lane);
    if (lane->breaker == IE_BREAKER_OPEN || now < lane->strict_until_ms ||
        now >= lane->lease_until_ms || lane->ready_count == 0 || !ie__runner_has_room(lane->runner))
        return 0;
    if (lane->solo != NONE) {
        if (state_of(&lane->slots[lane->solo]) != S_READY || lane->in_flight > 0)
            return 0;
        solo_first(lane);
        return 1;
    }
    return lane->breaker == IE_BREAKER_TRYING ? 1 : lane->limit;
}

/* After crashes events go one by one, and each is counted before it is handed out. */
static ie_status
dispatch_claim(ie__lane *lane, ie_error *err)
{
    ie_status status;

    if (!is_suspect(lane) || lane->cursor.suspect_window != 1 || lane->solo != NONE ||
        lane->tail == lane->head || state_of(&lane->slots[lane->head % lane->window]) != S_READY)
        return IE_OK;
    status = ie__cursor_claim(lane->shared.cursors, &lane->cursor, err);
    if (status == IE_ELEASE)
        ie__lane_lose(lane);
    return status;
}

/* Take from the ready ring what goes out now. */
static uint32_t
dispatch_collect(ie__lane *lane, uint32_t limit)
{
    const int64_t now = now_boot(lane);
    const int64_t wall_ms = now_wall(lane);
    uint32_t      count = 0;

    (void)pthread_mutex_lock(&lane->lock);
    while (lane->ready_count > 0 && count < lane->options->batch_max && lane->in_flight < limit) {
        const uint32_t index = lane->ready[lane->ready_first];
        slot          *at = &lane->slots[index];

        lane->ready_first = (lane->ready_first + 1) % lane->total;
        lane->ready_count--;
        if (state_of(at) != S_READY)
            continue;
        if (at->event->expires_at_ms != 0 && at->event->expires_at_ms <= wall_ms) {
            ie__slot_finish(lane, index, O_EXPIRED,
                            "expires_at had passed before it could be sent");
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
    return count;
}

static ie_status
lane_dispatch(ie__lane *lane, bool *progress, ie_error *err)
{
    const uint32_t limit = dispatch_limit(lane);
    uint32_t       count;
    ie_status      status;

    if (limit <= lane->in_flight)
        return IE_OK;
    status = dispatch_claim(lane, err);
    if (status != IE_OK)
        return status; /* not counted, so not handed out */
    count = dispatch_collect(lane, limit);
    if (count == 0)
        return IE_OK;
    if (!ie__runner_publish(lane->runner, lane->outgoing, count)) {
        (void)pthread_mutex_lock(&lane->lock);
        for (uint32_t i = 0; i < count; i++) {
            ie__ready_push(lane, (uint32_t)lane->outgoing[i].ticket);
            lane->in_flight--;
        }
        (void)pthread_mutex_unlock(&lane->lock);
        lane->unclaim = true; /* it was not handed out after all */
        return ie_error_set(err, IE_ENOMEM, "publish: out of memory");
    }
    *progress = true;
    return IE_OK;
}

/* ---- one step ---- */

/* What is new: due deliveries, events from the log, and out with what is ready. */
static ie_status
step_work(ie__lane *lane, bool *progress, ie_error *err)
{
    ie_status status = ie__lane_retry_due(lane, err);

    if (status == IE_OK && lane->has_lease && !lane->is_at_end)
        status = ie__lane_read(lane, err);
    if (status == IE_OK && lane->has_lease)
        status = lane_dispatch(lane, progress, err);
    if (status != IE_OK && status != IE_ELEASE && lane->has_lease)
        ie__lane_pause(lane, status);
    return status;
}

/* True when it got somewhere, so that another round may too. */
static bool
step_round(ie__lane *lane, bool flush, ie_status *status, ie_error *err)
{
    const uint64_t tail = lane->tail;
    bool           progress = ie__answers_collect(lane);

    ie__timeouts_check(lane);
    if (!lane->has_lease)
        return false;
    /* While there is more to read the next batch comes first: fewer, larger marks. */
    if (ie__lane_must_mark(lane, flush && lane->is_at_end))
        *status = ie__lane_mark(lane, err);
    if (*status != IE_OK || !lane->has_lease || now_boot(lane) < lane->pause_until_ms)
        return false;
    if (!lane->is_draining)
        *status = step_work(lane, &progress, err);
    return ie__answers_collect(lane) || progress || lane->tail != tail;
}

static void
earlier(int64_t *wake_at_ms, int64_t at_ms)
{
    if (at_ms < *wake_at_ms)
        *wake_at_ms = at_ms;
}

/* In strict order, nothing is due while the head waits for its next try. */
static bool
strict_waits(const ie__lane *lane)
{
    return lane->destination->order == IE_ORDER_STRICT && lane->in_flight == 0 &&
           lane->retries == 0 && lane->ready_count > 0 && lane->strict_until_ms > now_boot(lane);
}

/* When to come back without news. */
static void
step_wake(ie__lane *lane, ie__lane_news *news)
{
    const int64_t now = now_boot(lane);
    const int64_t wall_ms = now_wall(lane);

    if (lane->in_flight > 0)
        earlier(&news->wake_at_ms, lane->timeout_check_ms > now ? lane->timeout_check_ms : now + 1);
    if (!lane->has_lease) {
        if (!lane->is_lost)
            earlier(&news->wake_at_ms, lane->take_at_ms);
        return;
    }
    earlier(&news->wake_at_ms, lane->renew_at_ms);
    if (lane->pause_until_ms > now) {
        news->wake_at_ms = lane->pause_until_ms;
        return;
    }
    if (lane->unmarked_since_ms != 0 &&
        (ie__lane_decided_end(lane) > lane->head || lane->retries_done > 0 || lane->strict_put))
        earlier(&news->wake_at_ms, lane->unmarked_since_ms + lane->options->mark_delay_ms);
    if (lane->gap_check_ms != 0)
        earlier(&news->wake_at_ms, lane->gap_check_ms);
    if (lane->breaker == IE_BREAKER_OPEN && lane->in_flight == 0)
        earlier(&news->wake_at_ms, lane->breaker_until_ms);
    if (lane->ready_count > 0 && lane->strict_until_ms > now)
        earlier(&news->wake_at_ms, lane->strict_until_ms);
    else if (lane->next_due_ms != INT64_MAX && ie__lane_takes_due(lane) && !lane->is_draining)
        earlier(&news->wake_at_ms,
                lane->next_due_ms > wall_ms ? now + (lane->next_due_ms - wall_ms) : now);
}

static void
step_news(ie__lane *lane, bool progress, ie__lane_news *news)
{
    const bool is_empty = lane->tail == lane->head && lane->retries == 0 && lane->is_at_end &&
                          lane->next_due_ms > now_wall(lane);

    news->wake_at_ms = INT64_MAX;
    step_wake(lane, news);
    if (!lane->has_lease || lane->is_draining || lane->pause_until_ms > now_boot(lane))
        return;
    /* It stops when a round gets nowhere: then only answers, time or news can change that. */
    news->is_busy = progress;
    news->is_idle =
        (is_empty || strict_waits(lane)) && lane->in_flight == 0 && lane->unmarked_since_ms == 0;
}

/* Trouble stays until a step of a working lane goes well. */
static void
step_trouble(ie__lane *lane, const ie__lane_news *news)
{
    if (news->status != IE_OK)
        lane->trouble = news->error;
    else if (lane->has_lease && lane->pause_until_ms <= now_boot(lane))
        ie_error_clear(&lane->trouble);
}

void
ie__lane_step(ie__lane *lane, bool has_news, bool flush, ie__lane_news *news)
{
    bool progress = true;

    memset(news, 0, sizeof *news);
    lane->is_hurried = flush;
    if (lane->gap_check_ms != 0 && (flush || now_boot(lane) >= lane->gap_check_ms)) {
        lane->gap_check_ms = 0;
        lane->is_at_end = false;
    }
    if (has_news) {
        lane->is_at_end = false;
        /* Somebody may have sent a delivery again; in a stream of news this is asked now and then.
         */
        if (lane->next_due_ms > lane->due_asked_ms + DUE_PAUSE_MS)
            lane->next_due_ms = lane->due_asked_ms + DUE_PAUSE_MS;
    }
    if (!lane->has_lease && !lane->is_lost && !lane->is_draining &&
        now_boot(lane) >= lane->take_at_ms)
        news->status = ie__lane_take(lane, &news->error);
    for (int i = 0; i < ROUNDS_PER_STEP && progress && news->status == IE_OK; i++)
        progress = step_round(lane, flush, &news->status, &news->error);
    if (flush && news->status == IE_OK && lane->has_lease && ie__lane_must_mark(lane, true))
        news->status = ie__lane_mark(lane, &news->error);
    step_trouble(lane, news);
    step_news(lane, progress, news);
    atomic_store_explicit(&lane->n_in_flight, lane->in_flight, memory_order_relaxed);
    atomic_store_explicit(&lane->n_bytes, lane->window_bytes, memory_order_relaxed);
}

static bool
is_written_down(ie__lane *lane)
{
    return !lane->has_lease || (ie__lane_decided_end(lane) == lane->head &&
                                lane->retries_done == 0 && !lane->strict_put);
}

/*
 * Nothing is in flight any more. What was not sent, but stands before something that was, gets a
 * row of its own, so that the cursor may pass and nothing is sent twice.
 */
static void
drain_holes(ie__lane *lane)
{
    uint64_t last = lane->tail;

    if (lane->destination->order == IE_ORDER_STRICT)
        return;
    while (last > lane->head && state_of(&lane->slots[(last - 1) % lane->window]) != S_FINAL)
        last--;
    for (uint64_t seq = lane->head; seq < last; seq++)
        if (state_of(&lane->slots[seq % lane->window]) == S_READY)
            ie__slot_finish(lane, (uint32_t)(seq % lane->window), O_UNCLAIMED,
                            "handed back when the worker stopped");
}

bool
ie__lane_drain(ie__lane *lane)
{
    ie__lane_news news;

    lane->is_draining = true;
    ie__lane_step(lane, false, true, &news);
    if (lane->in_flight == 0 && lane->has_lease) {
        drain_holes(lane);
        ie__lane_step(lane, false, true, &news);
    }
    return lane->in_flight == 0 && is_written_down(lane);
}

static void
lane_release(ie__lane *lane)
{
    ie_error  error = IE_ERROR_INIT;
    ie_status status = ie__sql_begin(lane->shared.db, &error);

    lane->has_lease = false;
    atomic_store(&lane->a_lease, false);
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
        ie__log(&lane->options->logger, IE_LOG_WARN, "worker", "%s: lease not given back: %s",
                lane->name, error.message);
}

void
ie__lane_evict(ie__lane *lane)
{
    if (lane->has_lease)
        ie__lane_drop(lane);
}

ie_status
ie__lane_hinder(const ie__lane *lane, ie_error *err)
{
    const bool is_stopped =
        lane->has_lease ? lane->pause_until_ms > now_boot(lane) : !lane->is_lost;

    if (is_stopped && lane->trouble.status == IE_ELEASE)
        return ie_error_set(err, IE_ELEASE, "destination %s is served by another worker: %s",
                            lane->name, lane->trouble.message);
    if (is_stopped && lane->trouble.status != IE_OK && lane->trouble.status != IE_EBUSY)
        return ie_error_set(err, lane->trouble.status, "%s", lane->trouble.message);
    if (lane->breaker == IE_BREAKER_OPEN && lane->in_flight == 0 && lane->unmarked_since_ms == 0)
        return ie_error_set(err, IE_EUNREACHABLE, "destination %s cannot be reached: %s",
                            lane->name, lane->breaker_reason);
    return IE_OK;
}

bool
ie__lane_has_lease(const ie__lane *lane)
{
    return lane->has_lease;
}

const char *
ie__lane_name(const ie__lane *lane)
{
    return lane->name;
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

/* ---- open and close ---- */

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
            return ie_error_set(err, IE_EINVAL, "destination %s: more than %d topic patterns",
                                lane->name, PATTERNS_MAX);
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
    lane->total =
        lane->window +
        (lane->options->batch_max < RETRY_SLOTS_MAX ? lane->options->batch_max : RETRY_SLOTS_MAX);
    while (buckets < 2 * lane->total)
        buckets *= 2;
    lane->bucket_mask = buckets - 1;
    lane->slots = ie__calloc(lane->total, sizeof *lane->slots);
    lane->answered = ie__calloc(lane->total, sizeof *lane->answered);
    lane->scratch = ie__calloc(lane->total, sizeof *lane->scratch);
    lane->ready = ie__calloc(lane->total, sizeof *lane->ready);
    lane->buckets = ie__calloc(buckets, sizeof *lane->buckets);
    lane->outgoing = ie__calloc(lane->options->batch_max, sizeof *lane->outgoing);
    if (lane->slots == NULL || lane->answered == NULL || lane->scratch == NULL ||
        lane->ready == NULL || lane->buckets == NULL || lane->outgoing == NULL)
        return ie_error_set(err, IE_ENOMEM, "open destination: out of memory");
    memset(lane->buckets, 0xff, buckets * sizeof *lane->buckets);
    return IE_OK;
}

void
ie__lane_free(ie__lane *lane)
{
    if (lane == NULL)
        return;
    if (lane->slots != NULL && lane->buckets != NULL)
        ie__lane_reset(lane);
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
    lane->solo = NONE;
    (void)pthread_mutex_init(&lane->lock, NULL);
    (void)snprintf(lane->name, sizeof lane->name, "%s", destination->name);
    ie__url_redact(lane->url_shown, sizeof lane->url_shown, destination->url);
    lane->env = (ie_publisher_env){.report = ie__lane_report,
                                   .user = lane,
                                   .logger = lane->options->logger,
                                   .name = lane->name};
    status = lane_allocate(lane, err);
    if (status == IE_OK)
        status = patterns_parse(lane, err);
    if (status == IE_OK)
        status = ie__deliveries_open(&lane->deliveries, shared->db, lane->options->clock,
                                     lane->name, err);
    if (status == IE_OK)
        status = ie_publishers_find(&lane->ops, lane->options->publishers, destination->url, err);
    if (status == IE_OK)
        status = ie__runner_open(&lane->runner, lane->ops, destination->url, &lane->env,
                                 shared->wake, shared->wake_user, err);
    if (status != IE_OK) {
        ie__lane_free(lane);
        return status;
    }
    *out = lane;
    return IE_OK;
}

bool
ie__lane_close(ie__lane *lane, uint32_t wait_ms)
{
    ie_error error = IE_ERROR_INIT;

    if (!ie__runner_close(lane->runner, wait_ms))
        return false; /* its thread still reads our events */
    lane->runner = NULL;
    ie__answers_revoke(lane, INT64_MIN);
    if (lane->has_lease) {
        drain_holes(lane);
        if (!is_written_down(lane) && ie__lane_mark(lane, &error) != IE_OK)
            ie__log(&lane->options->logger, IE_LOG_WARN, "worker",
                    "%s: what was sent last could not be written down, it is sent again: %s",
                    lane->name, error.message);
    }
    if (lane->has_lease)
        lane_release(lane);
    return true;
}
