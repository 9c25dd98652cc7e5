/* The way of stored events to a durable group: taken as they are stored or read when the group is
 * behind, given to group.c, settled or noted, the cursor behind them. */
#include <stdio.h>

#include "durable_parts.h"

#define READ_ROWS    256
#define READ_BYTES   (512 * 1024)
#define REST_MS_MIN  10
#define RESTING_TEXT "what the subscriber's handler needs is down"

static int64_t
now_of(const ie__durable_group *g)
{
    return (int64_t)uv_now(&g->durable->server->loop);
}

static bool
keeps_order(const ie__durable_group *g)
{
    return g->row.selection == IE_BUS_STICKY;
}

/* ---- items ---------------------------------------------------------------------------------- */

static void
list_add(ie__log_items *list, ie__log_item *li)
{
    ie__log_item *after = list->last;

    while (after != NULL && after->item.position > li->item.position)
        after = after->prev; /* nearly always none: they come in order */
    li->prev = after;
    li->next = after != NULL ? after->next : list->first;
    if (li->prev != NULL)
        li->prev->next = li;
    else
        list->first = li;
    if (li->next != NULL)
        li->next->prev = li;
    else
        list->last = li;
}

static void
list_remove(ie__log_items *list, ie__log_item *li)
{
    if (li->prev != NULL)
        li->prev->next = li->next;
    else
        list->first = li->next;
    if (li->next != NULL)
        li->next->prev = li->prev;
    else
        list->last = li->prev;
}

static ie__log_item *
item_new(ie__durable_group *g, ie__blob *record, int64_t position, uint64_t key, uint32_t attempt,
         bool is_noted)
{
    ie__log_item *li = ie__calloc(1, sizeof *li);

    if (li == NULL)
        return NULL;
    ie__blob_ref(record);
    li->item.feeder = &ie__log_feeder;
    li->item.owner = g;
    li->item.record = record;
    li->item.key = key;
    li->item.position = position;
    li->item.attempt = attempt;
    li->is_noted = is_noted;
    list_add(is_noted ? &g->due : &g->items, li);
    g->due_count += is_noted;
    g->count++;
    g->bytes += record->size;
    g->durable->bytes += record->size;
    g->durable->server->durable_bytes += record->size;
    return li;
}

static void
item_detach(ie__durable_group *g, ie__log_item *li)
{
    list_remove(li->is_noted ? &g->due : &g->items, li);
    g->due_count -= li->is_noted;
    g->count--;
    g->bytes -= li->item.record->size;
    li->item.owner = NULL;
}

static void
item_free(ie__durable *durable, ie__log_item *li)
{
    durable->bytes -= li->item.record->size;
    durable->server->durable_bytes -= li->item.record->size;
    ie__blob_unref(li->item.record);
    ie__free(li);
}

static void
item_end(ie__durable_group *g, ie__log_item *li)
{
    item_detach(g, li);
    item_free(g->durable, li);
}

/* ---- the cursor ----------------------------------------------------------------------------- */

int64_t
ie__durable_cursor(const ie__durable_group *g)
{
    if (g->items.first != NULL)
        return g->items.first->item.position - 1;
    return g->is_tail ? g->durable->last : g->read_to;
}

static void
mark_done(ie__store *store, ie__job *job)
{
    ie__durable_group *g = job->user;

    (void)store;
    g->is_marking = false;
    if (g->is_ending)
        ie__durable_group_free(g);
}

void
ie__durable_mark(ie__durable_group *g)
{
    const int64_t cursor = ie__durable_cursor(g);

    if (g->is_making || g->is_moving || g->is_ending || g->is_marking || cursor <= g->marked)
        return;
    g->marked = cursor;
    g->is_marking = true;
    ie__mark_job_init(&g->mark, g->row.id, cursor, mark_done, g);
    ie__store_submit(g->durable->store, &g->mark.job);
}

static void
last_done(ie__store *store, ie__job *job)
{
    (void)store;
    ie__free(job);
}

void
ie__durable_mark_last(ie__durable_group *g)
{
    const int64_t cursor = ie__durable_cursor(g);
    ie__mark_job *job;

    if (g->is_making || g->is_moving || g->is_ending || cursor <= g->marked)
        return;
    job = ie__alloc(sizeof *job);
    if (job == NULL)
        return; /* it costs duplicates */
    ie__mark_job_init(job, g->row.id, cursor, last_done, NULL);
    ie__store_submit(g->durable->store, &job->job);
}

void
ie__durable_dirty(ie__durable_group *g)
{
    ie__durable *durable = g->durable;

    if (g->is_dirty || durable->is_stopped)
        return;
    g->is_dirty = true;
    g->dirty_next = durable->dirty;
    durable->dirty = g;
    if (!uv_is_active((uv_handle_t *)&durable->marks))
        (void)uv_timer_start(&durable->marks, ie__durable_on_marks, 50, 0);
}

void
ie__durable_on_marks(uv_timer_t *timer)
{
    ie__durable       *durable = timer->data;
    ie__durable_group *g = durable->dirty;

    durable->dirty = NULL;
    while (g != NULL) {
        ie__durable_group *next = g->dirty_next;

        g->is_dirty = false;
        if (g->is_marking && ie__durable_cursor(g) > g->marked)
            ie__durable_dirty(g);
        ie__durable_mark(g);
        g = next;
    }
}

/* Groups at whom events only pass by are not dirty, but stand further on all the same. */
void
ie__durable_on_sweep(uv_timer_t *timer)
{
    ie__durable *durable = timer->data;

    for (ie__durable_group *g = durable->groups; g != NULL; g = g->next) {
        ie__durable_mark(g);
        ie__durable_hungry(g->group); /* it may have waited for memory that others held */
    }
}

/* ---- noting --------------------------------------------------------------------------------- */

static void
release_done(ie__store *store, ie__job *job)
{
    (void)store;
    ie__free(job);
}

void
ie__durable_release(ie__durable_group *g, uint64_t key)
{
    ie__release_job *job = ie__alloc(sizeof *job);

    if (job == NULL)
        return; /* what is blocked comes after the next start; nothing is lost */
    ie__release_job_init(job, g->row.id, key, release_done, NULL);
    ie__store_submit(g->durable->store, &job->job);
    ie__durable_due(g, ie__wall_ms(&ie__system_clock)); /* a read of what is due comes behind it */
}

/* A noted event is out of the way: the next of its key may come. */
static void
unhold(ie__durable_group *g, uint64_t key)
{
    if (keeps_order(g) && ie__held_drop(&g->held, key))
        ie__durable_release(g, key);
}

/* Write down what became of an event; counts are kept in step. False: no memory, nothing is. */
static bool
note(ie__durable_group *g, int64_t position, uint64_t key, bool was_noted, ie_state state,
     uint32_t attempts, int64_t due_at_ms, const char *reason)
{
    const bool       stays = state == IE_STATE_RETRYING || state == IE_STATE_BLOCKED;
    ie__trouble_job *job = ie__trouble_job_new(g->row.id, position, state, reason);

    if (job == NULL)
        return false;
    if (stays && !was_noted && keeps_order(g) && !ie__held_add(&g->held, key, 1)) {
        ie__free(job->reason);
        ie__free(job);
        return false;
    }
    job->attempts = attempts;
    job->due_at_ms = due_at_ms;
    job->key_hash = stays && keeps_order(g) ? key : 0;
    ie__store_submit(g->durable->store, &job->job);
    g->row.waiting += stays && !was_noted;
    g->row.waiting -= !stays && was_noted;
    g->row.dead += state == IE_STATE_DEAD;
    g->durable->is_dead_stale |= state == IE_STATE_DEAD;
    if (position > g->sent_to)
        g->sent_to = position; /* never read again: its row tells */
    if (!stays && was_noted)
        unhold(g, key);
    if (state == IE_STATE_RETRYING)
        ie__durable_due(g, due_at_ms);
    ie__durable_dirty(g);
    return true;
}

/* ---- resting: what the handler needs is down ------------------------------------------------ */

static uint32_t
jitter(uint64_t ms)
{
    return (uint32_t)(ms / 2 + ie__random_below(ms / 2 + 1));
}

/* It waits here, with all that the group has: what is down for one event is down for the others. */
static void
rest(ie__durable_group *g, ie__log_item *li, uint32_t delay_ms)
{
    const ie_bus_server_options *options = &g->durable->server->options;

    li->is_resting = true;
    li->rest_next = g->resting;
    g->resting = li;
    if (g->rest_until_ms != 0)
        return;
    g->rest_ms = g->rest_ms == 0 ? options->retry_delay_ms : g->rest_ms * 2;
    if (g->rest_ms > options->retry_delay_ms_max)
        g->rest_ms = options->retry_delay_ms_max;
    g->rest_until_ms = now_of(g) + (delay_ms != 0 ? delay_ms : jitter(g->rest_ms)) + REST_MS_MIN;
    ie__group_pause(g->group, true);
    ie__durable_wake_at(g->durable, g->rest_until_ms);
}

static void
rest_over(ie__durable_group *g)
{
    ie__log_item *li = g->resting;

    g->resting = NULL;
    g->rest_until_ms = 0;
    while (li != NULL) {
        ie__log_item *next = li->rest_next;

        li->is_resting = false;
        li->rest_next = NULL;
        if (!ie__group_push_again(g->group, &li->item) &&
            (li->is_noted ||
             note(g, li->item.position, li->item.key, false, IE_STATE_RETRYING,
                  li->item.attempt - 1, ie__wall_ms(&ie__system_clock), RESTING_TEXT))) {
            if (li->is_noted)
                ie__durable_due(g, ie__wall_ms(&ie__system_clock));
            ie__group_release_key(g->group, li->item.key);
            item_end(g, li);
        }
        li = next;
    }
    if (!g->row.is_paused)
        ie__group_pause(g->group, false);
}

/* ---- what became of an item ----------------------------------------------------------------- */

static void
settle(ie__durable_group *g, ie__log_item *li)
{
    g->rest_ms = 0;
    if (li->is_noted &&
        !note(g, li->item.position, li->item.key, true, IE_STATE_PUBLISHED, 0, 0, NULL))
        ie__durable_due(
            g, ie__wall_ms(&ie__system_clock)); /* its row stays: a duplicate, not a loss */
    item_end(g, li);
}

/* No member had it: the group has none any more, or the key's head failed. */
static void
withdraw(ie__durable_group *g, ie__log_item *li)
{
    const int64_t  position = li->item.position;
    const uint64_t key = li->item.key;

    if (li->is_noted) {
        ie__durable_due(g, ie__wall_ms(&ie__system_clock));
    } else if (keeps_order(g) && ie__held_has(&g->held, key)) {
        if (!note(g, position, key, false, IE_STATE_BLOCKED, li->item.attempt - 1, 0, NULL)) {
            rest(g, li, 0);
            return;
        }
    } else if (position > g->sent_to) {
        /* Nothing behind it was ever sent either: it will be read again. */
        g->read_to = g->is_tail || g->read_to >= position ? position - 1 : g->read_to;
        g->is_tail = false;
    } else if (!note(g, position, key, false, IE_STATE_RETRYING, li->item.attempt - 1,
                     ie__wall_ms(&ie__system_clock), NULL)) {
        rest(g, li, 0);
        return;
    }
    item_end(g, li);
}

static uint32_t
backoff(const ie__durable_group *g, uint32_t attempt)
{
    const ie_bus_server_options *options = &g->durable->server->options;
    uint64_t                     ms = options->retry_delay_ms;

    for (uint32_t i = 1; i < attempt && ms < options->retry_delay_ms_max; i++)
        ms *= 2;
    return jitter(ms < options->retry_delay_ms_max ? ms : options->retry_delay_ms_max);
}

static void
fail(ie__durable_group *g, ie__log_item *li, const ie__outcome *outcome)
{
    const uint32_t attempts_max =
        g->row.attempts_max != 0 ? g->row.attempts_max : g->durable->server->options.attempts_max;
    const bool is_gone = outcome->code == IE_BUS_CODE_SUBSCRIBER_GONE;
    const bool is_dead =
        outcome->code == IE_BUS_CODE_REJECTED || (!is_gone && li->item.attempt >= attempts_max);
    const uint64_t key = li->item.key;
    uint32_t       delay_ms = outcome->delay_ms;

    /* Who went away did not fail; the next member has it at once. */
    if (!is_gone && delay_ms == 0)
        delay_ms = backoff(g, li->item.attempt);
    if (outcome->code == IE_BUS_CODE_UNAVAILABLE ||
        !note(g, li->item.position, key, li->is_noted, is_dead ? IE_STATE_DEAD : IE_STATE_RETRYING,
              li->item.attempt, ie__wall_ms(&ie__system_clock) + delay_ms, outcome->reason)) {
        rest(g, li, outcome->delay_ms);
        return;
    }
    if (is_dead)
        ie__log(&g->durable->server->options.logger, IE_LOG_WARN, "bus",
                "group %s: the event at position %lld is dead after %u deliveries: %.200s",
                g->row.name, (long long)li->item.position, li->item.attempt, outcome->reason);
    item_end(g, li);
    if (!keeps_order(g))
        return;
    ie__group_withdraw(g->group, key); /* they come behind it, from the log */
    ie__group_release_key(g->group, key);
}

static void
log_done(ie__group *group, ie__item *item, const ie__outcome *outcome)
{
    ie__log_item      *li = (ie__log_item *)(void *)item;
    ie__durable_group *g = item->owner;

    if (g == NULL) { /* the group was moved meanwhile */
        ie__group_release_key(group, item->key);
        item_free(ie__durable_of(group)->durable, li);
        return;
    }
    if (g->is_moving || g->is_ending) {
        item_end(g, li);
        return;
    }
    if (outcome->was_sent && item->position > g->sent_to)
        g->sent_to = item->position;
    ie__durable_dirty(g);
    if (outcome->code == IE_BUS_CODE_NONE)
        settle(g, li);
    else if (!outcome->was_sent)
        withdraw(g, li);
    else
        fail(g, li, outcome);
}

/* A member went away, others are there: the next one is told that it is not the first. */
static bool
log_taken_back(ie__group *group, ie__item *item)
{
    (void)group;
    item->attempt++;
    return true;
}

const ie__feeder ie__log_feeder = {log_done, log_taken_back};

void
ie__durable_forget(ie__durable_group *g)
{
    ie__group_withdraw(g->group, 0);
    while (g->items.first != NULL || g->due.first != NULL) {
        ie__log_item *li = g->items.first != NULL ? g->items.first : g->due.first;
        const bool    is_resting = li->is_resting;

        item_detach(g, li);
        if (is_resting)
            item_free(g->durable, li); /* nobody else has it */
    }
    g->resting = NULL;
    if (g->rest_until_ms != 0 && !g->row.is_paused)
        ie__group_pause(g->group, false);
    g->rest_until_ms = 0;
}

/* ---- taking --------------------------------------------------------------------------------- */

/* Is there room for more of this group's events in memory? */
static bool
has_room(const ie__durable_group *g)
{
    const ie__durable           *durable = g->durable;
    const ie_bus_server_options *options = &durable->server->options;

    return g->rest_until_ms == 0 && !g->is_making && !g->is_moving && !g->is_ending &&
           g->bytes < options->group_bytes_max && durable->bytes < options->memory_bytes_max / 2 &&
           ie__group_room(g->group) != 0;
}

/* One event, in its order. False: it was not taken, nor may a later one be. */
static bool
take(ie__durable_group *g, ie__blob *record, int64_t position, uint64_t key, uint32_t attempts,
     bool is_noted)
{
    ie__log_item *li;

    if (!is_noted && keeps_order(g) && ie__held_has(&g->held, key))
        return note(g, position, key, false, IE_STATE_BLOCKED, 0, 0, NULL);
    li = item_new(g, record, position, key, attempts + 1, is_noted);
    if (li == NULL)
        return false;
    if (ie__group_push(g->group, &li->item))
        return true;
    item_end(g, li);
    return false;
}

void
ie__durable_offer(ie__durable_group *g, ie__blob *record, int64_t position, uint64_t key)
{
    if (!g->is_tail)
        return;
    if (has_room(g) && take(g, record, position, key, 0, false))
        return;
    g->is_tail = false;
    g->read_to = position - 1;
}

static void
read_done(ie__store *store, ie__job *base)
{
    ie__read_job      *job = (ie__read_job *)(void *)base;
    ie__durable_group *g = job->job.user;
    bool               took_all = true;

    (void)store;
    g->is_reading = false;
    if (g->is_ending) {
        ie__durable_group_free(g);
    } else if (job->generation == g->generation && job->job.status == IE_OK) {
        for (size_t i = 0; i < job->count && took_all; i++) {
            const ie__read_row *row = &job->rows[i];

            took_all = take(g, row->record, row->position, row->key_hash, 0, false);
            if (took_all)
                g->read_to = row->position;
        }
        if (took_all) {
            g->read_to = job->scanned_to;
            g->is_tail = job->is_at_end && g->read_to >= g->durable->last;
        }
        ie__durable_dirty(g);
        if (took_all)
            ie__durable_hungry(g->group);
        else
            ie__durable_wake_at(g->durable, now_of(g) + 100);
    } else if (job->job.status != IE_OK && job->job.status != IE_ECLOSED) {
        ie__durable_wake_at(g->durable, now_of(g) + 1000); /* look again */
    }
    ie__read_job_free(job);
}

static void
read_more(ie__durable_group *g)
{
    size_t        room = ie__group_room(g->group);
    ie__read_job *job;

    if (room > READ_ROWS)
        room = READ_ROWS;
    job = ie__read_job_new(room, read_done, g);
    if (job == NULL)
        return; /* asked again with the next answer, or by the timer */
    job->group = g->row.id;
    job->after = g->read_to;
    job->bytes_max = READ_BYTES;
    job->generation = g->generation;
    (void)snprintf(job->pattern, sizeof job->pattern, "%s", g->row.pattern);
    g->is_reading = true;
    ie__store_submit(g->durable->store, &job->job);
}

static void
due_done(ie__store *store, ie__job *base)
{
    ie__read_job      *job = (ie__read_job *)(void *)base;
    ie__durable_group *g = job->job.user;

    (void)store;
    g->is_reading_due = false;
    if (g->is_ending) {
        ie__durable_group_free(g);
    } else if (job->generation == g->generation && job->job.status == IE_OK) {
        bool took_all = true;

        for (size_t i = 0; i < job->count && took_all; i++) {
            const ie__read_row *row = &job->rows[i];

            if (row->record == NULL) /* retention took it */
                (void)note(g, row->position, row->key_hash, true, IE_STATE_PUBLISHED, 0, 0, NULL);
            else
                took_all = take(g, row->record, row->position, row->key_hash, row->attempts, true);
        }
        if (!took_all)
            g->due_at_ms = job->now_ms;
        else if (job->next_due_ms < INT64_MAX)
            ie__durable_due(g, job->next_due_ms);
    } else if (job->job.status != IE_ECLOSED) {
        ie__durable_due(g, ie__wall_ms(&ie__system_clock) + 1000);
    }
    ie__read_job_free(job);
}

static void
read_due(ie__durable_group *g, int64_t now_ms)
{
    ie__read_job *job = ie__read_job_new(IE__DUE_MAX - g->due_count, due_done, g);

    if (job != NULL && g->due_count != 0) {
        job->skip = ie__realloc_array(NULL, g->due_count, sizeof *job->skip);
        if (job->skip == NULL) {
            ie__read_job_free(job);
            return;
        }
        for (const ie__log_item *li = g->due.first; li != NULL; li = li->next)
            job->skip[job->skip_count++] = li->item.position;
    }
    if (job == NULL)
        return;
    job->is_due = true;
    job->job.is_after_writes = true;
    job->group = g->row.id;
    job->now_ms = now_ms;
    job->generation = g->generation;
    g->due_at_ms = INT64_MAX;
    g->is_reading_due = true;
    ie__store_submit(g->durable->store, &job->job);
}

void
ie__durable_hungry(ie__group *group)
{
    ie__durable_group *g = ie__durable_of(group);

    if ((g->is_tail && g->due_at_ms == INT64_MAX) || !has_room(g))
        return;
    if (g->due_at_ms != INT64_MAX && !g->is_reading_due && g->due_count < IE__DUE_MAX) {
        const int64_t now_ms = ie__wall_ms(&ie__system_clock);

        if (g->due_at_ms <= now_ms)
            read_due(g, now_ms);
    }
    if (!g->is_tail && !g->is_reading)
        read_more(g);
}

/* ---- time ----------------------------------------------------------------------------------- */

void
ie__durable_wake_at(ie__durable *durable, int64_t at_ms)
{
    const int64_t now_ms = (int64_t)uv_now(&durable->server->loop);

    if (durable->is_stopped)
        return;
    if (durable->timer_at_ms != 0 && durable->timer_at_ms <= at_ms)
        return;
    durable->timer_at_ms = at_ms;
    (void)uv_timer_start(&durable->timer, ie__durable_on_timer,
                         at_ms > now_ms ? (uint64_t)(at_ms - now_ms) : 0, 0);
}

void
ie__durable_due(ie__durable_group *g, int64_t at_ms)
{
    const int64_t wall_ms = ie__wall_ms(&ie__system_clock);

    if (at_ms < g->due_at_ms)
        g->due_at_ms = at_ms;
    ie__durable_wake_at(g->durable, now_of(g) + (at_ms > wall_ms ? at_ms - wall_ms : 0));
}

void
ie__durable_on_timer(uv_timer_t *timer)
{
    ie__durable  *durable = timer->data;
    const int64_t now_ms = (int64_t)uv_now(&durable->server->loop);
    const int64_t wall_ms = ie__wall_ms(&ie__system_clock);

    durable->timer_at_ms = 0;
    for (ie__durable_group *g = durable->groups; g != NULL; g = g->next) {
        if (g->rest_until_ms != 0) {
            if (g->rest_until_ms <= now_ms)
                rest_over(g);
            else
                ie__durable_wake_at(durable, g->rest_until_ms);
        }
        ie__durable_hungry(g->group);
        if (g->due_at_ms != INT64_MAX && g->due_at_ms > wall_ms)
            ie__durable_wake_at(durable, now_ms + g->due_at_ms - wall_ms);
    }
}
