/* The worker: one lane per destination, driven in rounds, on a thread or step by step. */
#include "worker_parts.h"

#include <ie/migrate.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* ---- trouble ---- */

void
ie__worker_trouble(ie_worker *worker, const char *what, ie_status status, const char *message)
{
    const int64_t now = ie__boot_ms(worker->options.clock);

    if (status == IE_ELEASE)
        return; /* another worker serves it: that is how it should be */
    if (status == IE_EBUSY) {
        atomic_fetch_add(&worker->n_busy, 1);
        return; /* tried again in a moment */
    }
    atomic_fetch_add(&worker->n_errors, 1);
    if (status == worker->last_error && now < worker->quiet_until_ms)
        return; /* one line each ten seconds says it as well */
    worker->last_error = status;
    worker->quiet_until_ms = now + 10000;
    ie__log(&worker->options.logger, IE_LOG_ERROR, "worker", "%s: %s", what, message);
    if (worker->options.on_error != NULL)
        worker->options.on_error(worker->options.user, status, message);
}

/* ---- one round ---- */

static ie__round
worker_round(ie_worker *worker, bool has_news, bool flush)
{
    ie__round     now = {.wake_at_ms = INT64_MAX, .is_idle = true, .is_settled = true};
    const int64_t boot_ms = ie__boot_ms(worker->options.clock);

    for (size_t i = 0; i < worker->lane_count; i++) {
        ie__lane_news news;

        ie__lane_step(worker->lanes[i], has_news, flush, &news);
        if (news.status != IE_OK)
            ie__worker_trouble(worker, ie__lane_name(worker->lanes[i]), news.status,
                               news.error.message);
        if (news.wake_at_ms < now.wake_at_ms)
            now.wake_at_ms = news.wake_at_ms;
        now.is_busy = now.is_busy || news.is_busy;
        now.is_idle = now.is_idle && news.is_idle;
        now.is_settled =
            now.is_settled && (news.is_idle || ie__lane_hinder(worker->lanes[i], NULL) != IE_OK);
    }
    for (size_t i = 0; i < worker->duty_count; i++) {
        if (boot_ms >= worker->duties[i].next_ms)
            ie__worker_duty_run(worker, &worker->duties[i]);
        if (worker->duties[i].next_ms < now.wake_at_ms)
            now.wake_at_ms = worker->duties[i].next_ms;
    }
    return now;
}

/* ---- set up and tear down ---- */

static ie_status
open_database(ie_worker *worker, ie_error *err)
{
    const ie_worker_options *options = &worker->options;
    char                     durability[IE__DURABILITY_SIZE];
    bool                     is_weak = false;
    ie_status                status;

    if (options->open_db != NULL) {
        status = options->open_db(options->user, &worker->db, err);
        if (status != IE_OK)
            return ie_error_set(err, status, "open database: the program's open_db failed");
        status = ie__database_manners(worker->db, options->busy_ms_max, err);
    } else {
        if (!options->allow_network_fs && ie__database_local(options->db, err) != IE_OK)
            return IE_ENOTSUP;
        status = ie__database_open(&worker->db, options->db, options->busy_ms_max, err);
    }
    if (status != IE_OK)
        return status;
    if (sqlite3_threadsafe() == 0)
        return ie_error_set(err, IE_ENOTSUP, "this SQLite was built without threads");
    status = ie__database_durability(durability, &is_weak, worker->db, "main", err);
    if (status == IE_OK)
        status = options->auto_migrate ? ie_migrate_up(worker->db, NULL, err)
                                       : ie_migrate_check(worker->db, err);
    if (status == IE_OK) {
        const char *name = sqlite3_db_filename(worker->db, "main");

        if (name == NULL || name[0] == '\0')
            return ie_error_set(
                err, IE_ENOTSUP,
                "a database in memory has no second connection for the worker; use a file");
        (void)snprintf(worker->db_path, sizeof worker->db_path, "%s", name);
        if (ie__sqlite_has_wal_reset_bug(sqlite3_libversion_number()))
            ie__log(
                &options->logger, IE_LOG_INFO, "worker",
                "SQLite %s has the WAL-reset bug (fixed in 3.51.3): this worker never checkpoints "
                "unguarded, see that the application does not call wal_checkpoint from a second "
                "connection either",
                sqlite3_libversion());
    }
    return status;
}

static ie_status
worker_set_up(ie_worker *worker, ie_error *err)
{
    char               source[IE_ATTRIBUTE_BYTES_MAX + 1];
    ie__lane_shared    shared;
    ie_worker_options *options = &worker->options;
    ie_status          status = open_database(worker, err);

    if (status == IE_OK)
        status =
            ie__sql_prepare(&worker->data_version, worker->db, "PRAGMA main.data_version", err);
    if (status == IE_OK)
        status = ie__cursors_open(&worker->cursors, worker->db, options->clock, err);
    if (status == IE_OK)
        status = ie__sql_text(source, sizeof source, worker->db,
                              "SELECT value FROM main.ie_meta WHERE name = 'source'", "/ie", err);
    if (status == IE_OK)
        status = ie__reader_open(&worker->reader, worker->db, source, err);
    if (status == IE_OK)
        status = ie__cleaner_open(&worker->cleaner, worker->db, options->clock, err);
    if (status == IE_OK)
        status = ie__watch_open(&worker->watch, worker->db_path, err);
    if (status != IE_OK)
        return status;
    if (ie__watch_fd(worker->watch) < 0)
        ie__log(&options->logger, IE_LOG_WARN, "worker",
                "no inotify (%s): commits are found by polling every %u ms", strerror(errno),
                options->poll_ms);
    ie__owner_make(worker->owner);
    worker->ladder = IE__LADDER_STEPS;
    shared = (ie__lane_shared){.db = worker->db,
                               .cursors = worker->cursors,
                               .reader = worker->reader,
                               .options = options,
                               .owner = worker->owner,
                               .wake = ie__worker_signal,
                               .wake_user = worker};
    worker->lanes = ie__calloc(options->destination_count, sizeof *worker->lanes);
    worker->last_stats = ie__calloc(options->destination_count, sizeof *worker->last_stats);
    if (worker->lanes == NULL || worker->last_stats == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    for (size_t i = 0; status == IE_OK && i < options->destination_count; i++) {
        status = ie__lane_open(&worker->lanes[i], &shared, &worker->destinations[i], err);
        if (status == IE_OK)
            worker->lane_count++;
    }
    ie__worker_duties(worker);
    return status;
}

static void
worker_tear_down(ie_worker *worker)
{
    const size_t count = worker->lane_count;

    for (size_t i = 0; i < count; i++)
        if (!ie__lane_close(worker->lanes[i], 1000)) {
            worker->left_behind = true;
            ie__log(&worker->options.logger, IE_LOG_ERROR, "worker",
                    "%s: its publisher blocks and is left behind", worker->destinations[i].name);
        }
    /* Who asks for numbers from now on gets the last ones. */
    (void)pthread_mutex_lock(&worker->lock);
    for (size_t i = 0; i < count; i++)
        ie__lane_stats(worker->lanes[i], &worker->last_stats[i]);
    worker->lane_count = 0;
    (void)pthread_mutex_unlock(&worker->lock);
    if (worker->left_behind)
        return; /* that thread still uses our memory */
    for (size_t i = 0; i < count; i++)
        ie__lane_free(worker->lanes[i]);
    ie__free(worker->lanes);
    worker->lanes = NULL;
    ie__watch_close(worker->watch);
    worker->watch = NULL;
    ie__cleaner_close(worker->cleaner);
    ie__reader_close(worker->reader);
    ie__cursors_close(worker->cursors);
    (void)sqlite3_finalize(worker->data_version);
    (void)sqlite3_close(worker->db);
    worker->db = NULL;
}

/* ---- running ---- */

static bool
worker_drain(ie_worker *worker)
{
    bool is_drained = true;

    for (size_t i = 0; i < worker->lane_count; i++)
        is_drained = ie__lane_drain(worker->lanes[i]) && is_drained;
    return is_drained;
}

static void
worker_loop(ie_worker *worker)
{
    bool is_drained = false;

    while (!atomic_load(&worker->is_stopping)) {
        const int64_t   start_ns = ie__mono_ns();
        const bool      has_news = ie__worker_looks(worker, start_ns);
        const ie__round last = worker_round(worker, has_news, false);
        const int64_t   now_ns = ie__mono_ns();

        if (!last.is_busy)
            ie__worker_wait(worker, ie__worker_wait_ns(worker, &last, now_ns));
    }
    while (!(is_drained = worker_drain(worker)) &&
           ie__mono_ns() / 1000000 < atomic_load(&worker->stop_deadline_ms))
        ie__worker_wait(worker, 5000000);
    worker->was_clean = is_drained;
}

static void *
worker_main(void *argument)
{
    ie_worker *worker = argument;

    (void)pthread_setname_np(pthread_self(), "ie-worker"); /* for top, gdb and perf */
    worker->set_up_status = worker_set_up(worker, &worker->set_up_error);
    (void)pthread_mutex_lock(&worker->lock);
    worker->is_set_up = true;
    (void)pthread_cond_broadcast(&worker->changed);
    (void)pthread_mutex_unlock(&worker->lock);
    if (worker->set_up_status == IE_OK)
        worker_loop(worker);
    worker_tear_down(worker);
    (void)pthread_mutex_lock(&worker->lock);
    worker->is_stopped = true;
    (void)pthread_cond_broadcast(&worker->changed);
    (void)pthread_mutex_unlock(&worker->lock);
    return NULL;
}

/* ---- public ---- */

ie_status
ie_worker_open(ie_worker **out, const ie_worker_options *options, ie_error *err)
{
    ie_worker *worker = NULL;
    ie_status  status = ie__worker_new(&worker, options, err);

    if (status != IE_OK)
        return status;
    status = worker_set_up(worker, err);
    if (status != IE_OK) {
        worker_tear_down(worker);
        if (!worker->left_behind)
            ie__worker_free(worker);
        return status;
    }
    *out = worker;
    return IE_OK;
}

ie_status
ie_worker_start(ie_worker **out, const ie_worker_options *options, ie_error *err)
{
    ie_worker *worker = NULL;
    sigset_t   all;
    sigset_t   old;
    ie_status  status = ie__worker_new(&worker, options, err);
    int        rc;

    if (status != IE_OK)
        return status;
    /* The host's signals are the host's: none is delivered to a thread of ours. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&worker->thread, NULL, worker_main, worker);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        ie__worker_free(worker);
        return ie_error_set(err, IE_ENOMEM, "start worker thread: %s", strerror(rc));
    }
    worker->has_thread = true;
    (void)pthread_mutex_lock(&worker->lock);
    while (!worker->is_set_up)
        (void)pthread_cond_wait(&worker->changed, &worker->lock);
    (void)pthread_mutex_unlock(&worker->lock);
    status = worker->set_up_status;
    if (status != IE_OK) {
        (void)ie_error_set(err, status, "%s", worker->set_up_error.message);
        (void)pthread_join(worker->thread, NULL);
        if (!worker->left_behind)
            ie__worker_free(worker);
        return status;
    }
    *out = worker;
    return IE_OK;
}

static void
report_totals(const ie_worker *worker, ie_worker_report *totals)
{
    memset(totals, 0, sizeof *totals);
    for (size_t i = 0; i < worker->lane_count; i++) {
        ie_destination_stats stats;

        ie__lane_stats(worker->lanes[i], &stats);
        totals->published += stats.published;
        totals->retried += stats.retried;
        totals->dead += stats.dead;
        totals->expired += stats.expired;
    }
}

static ie_status
count_pending(ie_worker *worker, uint64_t *pending, ie_error *err)
{
    ie_status status = IE_OK;

    *pending = 0;
    for (size_t i = 0; status == IE_OK && i < worker->lane_count; i++) {
        char    sql[512];
        int64_t count = 0;

        (void)snprintf(
            sql, sizeof sql,
            "SELECT (SELECT count(*) FROM main.ie_event WHERE position > (SELECT position FROM"
            " main.ie_cursor WHERE name = '%s')) + (SELECT count(*) FROM main.ie_delivery WHERE"
            " cursor = '%s' AND state IN ('retrying', 'blocked', 'scheduled'))",
            ie__lane_name(worker->lanes[i]), ie__lane_name(worker->lanes[i]));
        status = ie__sql_int(&count, worker->db, sql, 0, err);
        *pending += (uint64_t)count;
    }
    return status;
}

/* What keeps run_once from finishing. */
static ie_status
what_hinders(const ie_worker *worker, ie_error *err)
{
    ie_status status = IE_OK;

    for (size_t i = 0; i < worker->lane_count && status == IE_OK; i++)
        status = ie__lane_hinder(worker->lanes[i], err);
    return status;
}

/* Rounds until every destination is done or cannot go on. */
static ie_status
run_rounds(ie_worker *worker, uint32_t timeout_ms, ie_error *err)
{
    const int64_t deadline_ns = ie__mono_ns() + (int64_t)timeout_ms * 1000000;

    for (bool has_news = true;; has_news = ie__worker_looks(worker, ie__mono_ns())) {
        const ie__round last = worker_round(worker, has_news, true);

        if (last.is_settled && !last.is_busy)
            return last.is_idle ? IE_OK : what_hinders(worker, err);
        if (timeout_ms != 0 && ie__mono_ns() >= deadline_ns)
            return ie_error_set(err, IE_ETIMEDOUT, "run once: not finished after %u ms",
                                timeout_ms);
        if (!last.is_busy)
            ie__worker_wait(worker, ie__worker_wait_ns(worker, &last, ie__mono_ns()));
    }
}

ie_status
ie_worker_run_once(ie_worker *worker, uint32_t timeout_ms, ie_worker_report *report, ie_error *err)
{
    ie_worker_report before;
    ie_worker_report after;
    ie_status        status;

    if (worker == NULL || worker->has_thread)
        return ie_error_set(err, IE_ESTATE, "run once: this worker runs on a thread of its own");
    if (worker->generation != ie__fork_generation())
        return ie_error_set(err, IE_EFORKED, "run once: this worker was opened before fork()");
    if (worker->db == NULL || worker->is_inside)
        return ie_error_set(err, IE_ESTATE, "run once: the worker was stopped, or runs already");
    report_totals(worker, &before);
    for (size_t i = 0; i < worker->duty_count; i++)
        worker->duties[i].next_ms = 0;
    worker->is_inside = true;
    status = ie__worker_in_place(worker, err);
    if (status == IE_OK)
        status = run_rounds(worker, timeout_ms, err);
    worker->is_inside = false;
    report_totals(worker, &after);
    if (report != NULL) {
        report->published = after.published - before.published;
        report->retried = after.retried - before.retried;
        report->dead = after.dead - before.dead;
        report->expired = after.expired - before.expired;
        if (status == IE_OK)
            status = count_pending(worker, &report->pending, err);
        else
            (void)count_pending(worker, &report->pending, NULL);
    }
    return status;
}

ie_status
ie_worker_stop(ie_worker *worker, uint32_t timeout_ms)
{
    bool was_clean = true;

    if (worker == NULL)
        return IE_OK;
    if (worker->generation != ie__fork_generation())
        return IE_EFORKED;
    if (worker->is_inside)
        return IE_ESTATE; /* called from a callback */
    if (!worker->has_thread) {
        const int64_t deadline_ns = ie__mono_ns() + (int64_t)timeout_ms * 1000000;

        while (worker->lane_count > 0 && !(was_clean = worker_drain(worker)) &&
               ie__mono_ns() < deadline_ns)
            ie__worker_wait(worker, 5000000);
        if (worker->db != NULL && !worker->left_behind)
            worker_tear_down(worker);
        return was_clean ? IE_OK : IE_ETIMEDOUT;
    }
    if (pthread_equal(pthread_self(), worker->thread))
        return IE_ESTATE;
    atomic_store(&worker->stop_deadline_ms, ie__mono_ns() / 1000000 + timeout_ms);
    atomic_store(&worker->is_stopping, true);
    ie__worker_signal(worker);
    (void)pthread_mutex_lock(&worker->lock);
    while (!worker->is_stopped)
        (void)pthread_cond_wait(&worker->changed, &worker->lock);
    if (!worker->is_joined) {
        worker->is_joined = true;
        (void)pthread_join(worker->thread, NULL); /* it has nothing left to do */
    }
    was_clean = worker->was_clean;
    (void)pthread_mutex_unlock(&worker->lock);
    return was_clean ? IE_OK : IE_ETIMEDOUT;
}

void
ie_worker_close(ie_worker *worker)
{
    if (worker == NULL || worker->generation != ie__fork_generation())
        return; /* in a child everything belongs to the parent */
    if (ie_worker_stop(worker, 10000) == IE_ESTATE)
        return; /* from a callback: what it stands on cannot be taken away */
    if (!worker->left_behind)
        ie__worker_free(worker);
}

ie_status
ie_worker_get_stats(ie_worker *worker, ie_worker_stats *stats)
{
    ie_worker_stats own;
    size_t          size;

    if (worker == NULL || stats == NULL || stats->size < sizeof stats->size)
        return IE_EINVAL;
    size = stats->size < sizeof own ? stats->size : sizeof own;
    memset(&own, 0, sizeof own);
    own.destinations = worker->options.destination_count;
    own.wakes = atomic_load(&worker->n_wakes);
    own.polls = atomic_load(&worker->n_polls);
    own.cleaned = atomic_load(&worker->n_cleaned);
    own.busy = atomic_load(&worker->n_busy);
    own.errors = atomic_load(&worker->n_errors);
    own.size = stats->size;
    memcpy(stats, &own, size);
    return IE_OK;
}

ie_status
ie_worker_get_destination_stats(ie_worker *worker, size_t index, ie_destination_stats *stats)
{
    ie_destination_stats own;
    size_t               size;

    if (worker == NULL || stats == NULL || stats->size < sizeof stats->size)
        return IE_EINVAL;
    if (index >= worker->options.destination_count)
        return IE_ENOTFOUND;
    size = stats->size < sizeof own ? stats->size : sizeof own;
    memset(&own, 0, sizeof own);
    (void)pthread_mutex_lock(&worker->lock);
    if (index < worker->lane_count)
        ie__lane_stats(worker->lanes[index], &own);
    else
        own = worker->last_stats[index];
    (void)pthread_mutex_unlock(&worker->lock);
    own.size = stats->size;
    memcpy(stats, &own, size);
    return IE_OK;
}
