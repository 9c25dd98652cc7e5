/* Periodic duties beside publishing: expire, clean, checkpoint, and what the program adds. */
#include "worker_parts.h"

#include <string.h>

#define CLEAN_SLICE_MS       20 /* of each round belong to cleaning at most */
#define IN_PLACE_INTERVAL_MS 1000

static ie_status
duty_expire(ie_worker *worker, duty *self, ie_error *err)
{
    ie_status status = IE_OK;

    (void)self;
    worker->more_to_expire = false;
    for (size_t i = 0; i < worker->lane_count && status == IE_OK; i++)
        status = ie__lane_expire(worker->lanes[i], &worker->more_to_expire, err);
    return status;
}

static bool
owns_a_lane(const ie_worker *worker)
{
    for (size_t i = 0; i < worker->lane_count; i++)
        if (ie__lane_has_lease(worker->lanes[i]))
            return true;
    return false;
}

/*
 * Small transactions until the slice is used up; what is left comes in the next round, so that the
 * table cannot grow however fast events are published, and publishing is never held up for long.
 */
static ie_status
duty_clean(ie_worker *worker, duty *self, ie_error *err)
{
    const ie_worker_options *options = &worker->options;
    const ie__retention      retention = {.published_s = options->published_retention_s,
                                          .dead_s = options->dead_retention_s,
                                          .expired_s = options->expired_retention_s,
                                          .discarded_s = options->discarded_retention_s,
                                          .rows_max = options->clean_batch};
    const int64_t            end_ns = ie__mono_ns() + CLEAN_SLICE_MS * 1000000LL;
    ie_status                status = IE_OK;
    bool                     more = true;

    (void)self;
    if (!owns_a_lane(worker))
        return IE_OK; /* whoever serves the file cleans it */
    if (!worker->more_to_clean)
        ie__cleaner_restart(worker->cleaner);
    while (status == IE_OK && more && ie__mono_ns() < end_ns) {
        uint64_t removed = 0;

        status = ie__cleaner_step(worker->cleaner, &retention, &removed, &more, err);
        atomic_fetch_add(&worker->n_cleaned, removed);
    }
    worker->more_to_clean = status == IE_OK && more;
    return status;
}

/* A file that was moved or replaced is not the application's any more: nothing is sent from it. */
ie_status
ie__worker_in_place(ie_worker *worker, ie_error *err)
{
    const ie_status status = ie__database_in_place(worker->db, err);

    for (size_t i = 0; status != IE_OK && i < worker->lane_count; i++)
        ie__lane_evict(worker->lanes[i]);
    return status;
}

static ie_status
duty_in_place(ie_worker *worker, duty *self, ie_error *err)
{
    (void)self;
    return ie__worker_in_place(worker, err);
}

static ie_status
duty_checkpoint(ie_worker *worker, duty *self, ie_error *err)
{
    (void)self;
    if (!owns_a_lane(worker))
        return IE_OK;
    return ie__database_checkpoint(worker->db_path, worker->options.checkpoint_frames, err);
}

static ie_status
duty_theirs(ie_worker *worker, duty *self, ie_error *err)
{
    const int changes = sqlite3_total_changes(worker->db);
    ie_status status = self->theirs->run(self->theirs->user, worker->db, err);

    if (sqlite3_get_autocommit(worker->db) == 0) {
        ie__sql_rollback(worker->db);
        ie_error_clear(err);
        status = ie_error_set(
            err, IE_ESTATE, "processor %s left a transaction open; it was rolled back", self->name);
    }
    if (sqlite3_total_changes(worker->db) != changes)
        ie_worker_wake(worker); /* our own connection's commits are no news to it */
    return status;
}

/* Publish and retry run with every step of a lane; these have a clock of their own. */
void
ie__worker_duties(ie_worker *worker)
{
    const ie_worker_options *options = &worker->options;
    const duty               ours[] = {
                      {.name = "expire", .interval_ms = options->expire_interval_ms, .run = duty_expire},
                      {.name = "clean", .interval_ms = options->clean_interval_ms, .run = duty_clean},
                      {.name = "in place", .interval_ms = IN_PLACE_INTERVAL_MS, .run = duty_in_place},
    };

    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        worker->duties[worker->duty_count++] = ours[i];
    if (options->checkpoint_frames != 0 && worker->db_path[0] != '\0')
        worker->duties[worker->duty_count++] =
            (duty){.name = "checkpoint", .interval_ms = 1000, .run = duty_checkpoint};
    for (size_t i = 0; i < options->processor_count; i++)
        worker->duties[worker->duty_count++] =
            (duty){.name = worker->processors[i].name,
                   .interval_ms = worker->processors[i].interval_ms,
                   .run = duty_theirs,
                   .theirs = &worker->processors[i]};
}

void
ie__worker_duty_run(ie_worker *worker, duty *each)
{
    ie_error        error = IE_ERROR_INIT;
    const ie_status status = each->run(worker, each, &error);
    bool            has_more;

    if (status != IE_OK)
        ie__worker_trouble(worker, each->name, status, error.message);
    has_more = (each->run == duty_clean && worker->more_to_clean) ||
               (each->run == duty_expire && worker->more_to_expire);
    each->next_ms = ie__boot_ms(worker->options.clock) + (has_more ? 1 : each->interval_ms);
}
