/*
 * The worker: lanes (one per destination), periodic duties, and waiting for news.
 *
 * It waits with ppoll(2) on inotify and an eventfd rather than in a loop library: waiting needs two
 * descriptors and a deadline finer than a millisecond, and ie_worker_run_once() needs the same
 * steps without a loop.
 */
#include <ie/migrate.h>
#include <ie/worker.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "core.h"
#include "lane.h"
#include "options.h"

#define DESTINATIONS_MAX     64
#define PROCESSORS_MAX       64
#define LOOK_PAUSE_NS        200000 /* between looks while news keep coming: see look_pause() */
#define STREAM_PAUSE_NS      500000 /* between looks in a stream of commits: see worker_streams() */
#define STREAM_LOOKS         16     /* that found something, one after the other, make a stream */
#define STREAM_MISSES        3      /* that found nothing end it */
#define CLEAN_SLICE_MS       20     /* of each round belong to cleaning at most */
#define IN_PLACE_INTERVAL_MS 1000

/* After a write was seen and nothing is there yet: the file changes just before the commit is
 * visible, by as long as an fsync takes. */
static const int64_t LADDER_NS[] = {30000,    50000,    100000,    200000,    400000,
                                    800000,   1500000,  3000000,   6000000,   12000000,
                                    25000000, 50000000, 100000000, 200000000, 400000000};
#define LADDER_STEPS ((int)(sizeof LADDER_NS / sizeof LADDER_NS[0]))

typedef struct duty duty;
struct duty { /* a processor, built in or the user's */
    const char *name;
    uint32_t    interval_ms;
    int64_t     next_ms; /* boot clock */
    ie_status (*run)(ie_worker *worker, duty *self, ie_error *err);
    const ie_processor *theirs;
};

struct ie_worker {
    ie_worker_options options;
    ie_destination   *destinations;
    ie_processor     *processors;
    char            **strings; /* copies that the structs above point into */
    size_t            string_count;
    size_t            string_capacity;
    unsigned          generation;

    sqlite3              *db;
    sqlite3_stmt         *data_version;
    int64_t               seen_version;
    ie__cursors          *cursors;
    ie__reader           *reader;
    ie__cleaner          *cleaner;
    ie__watch            *watch;
    int                   event_fd;
    char                  owner[IE__OWNER_SIZE];
    char                  db_path[1024];
    ie__lane            **lanes;
    size_t                lane_count;
    ie_destination_stats *last_stats; /* of lanes that are closed */
    duty                  duties[PROCESSORS_MAX + 4];
    size_t                duty_count;
    int64_t               last_look_ns;
    int                   ladder; /* next step, LADDER_STEPS when not climbing */
    int                   streak; /* looks in a row that found something; misses in a stream */
    bool                  is_streaming;
    bool                  more_to_clean;
    bool                  more_to_expire;
    int64_t               quiet_until_ms; /* the same error is not reported twice in a row */
    ie_status             last_error;

    bool                 has_thread;
    bool                 is_inside; /* run_once, without a thread */
    bool                 is_joined;
    pthread_t            thread;
    pthread_mutex_t      lock;
    pthread_cond_t       changed;
    bool                 is_set_up;
    ie_status            set_up_status;
    ie_error             set_up_error;
    bool                 is_stopped;
    bool                 left_behind; /* a publisher blocks: memory and thread stay */
    bool                 was_clean;
    atomic_bool          is_stopping;
    atomic_int_fast64_t  stop_deadline_ms;
    atomic_bool          is_woken;
    atomic_uint_fast64_t n_wakes, n_polls, n_cleaned, n_busy, n_errors;
};

/* ---- waking ---- */

static void
worker_signal(void *user)
{
    ie_worker     *worker = user;
    const uint64_t one = 1;

    /* Full means that a wake-up is pending already. */
    (void)!write(worker->event_fd, &one, sizeof one);
}

void
ie_worker_wake(ie_worker *worker)
{
    if (worker == NULL || worker->generation != ie__fork_generation())
        return;
    atomic_store(&worker->is_woken, true);
    worker_signal(worker);
}

/* ---- trouble ---- */

static void
worker_trouble(ie_worker *worker, const char *what, ie_status status, const char *message)
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

/* ---- duties ---- */

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
static ie_status
duty_in_place(ie_worker *worker, duty *self, ie_error *err)
{
    const ie_status status = ie__database_in_place(worker->db, err);

    (void)self;
    for (size_t i = 0; status != IE_OK && i < worker->lane_count; i++)
        ie__lane_evict(worker->lanes[i]);
    return status;
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
static void
duties_list(ie_worker *worker)
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

static void
duty_run(ie_worker *worker, duty *each)
{
    ie_error        error = IE_ERROR_INIT;
    const ie_status status = each->run(worker, each, &error);
    bool            has_more;

    if (status != IE_OK)
        worker_trouble(worker, each->name, status, error.message);
    has_more = (each->run == duty_clean && worker->more_to_clean) ||
               (each->run == duty_expire && worker->more_to_expire);
    each->next_ms = ie__boot_ms(worker->options.clock) + (has_more ? 1 : each->interval_ms);
}

/* ---- one round ---- */

/* Did any other connection commit since we last asked? About a microsecond. */
static bool
has_changed(ie_worker *worker)
{
    int64_t version = -1;

    if (sqlite3_step(worker->data_version) == SQLITE_ROW)
        version = sqlite3_column_int64(worker->data_version, 0);
    (void)sqlite3_reset(worker->data_version);
    if (version == worker->seen_version)
        return false;
    worker->seen_version = version;
    return true;
}

typedef struct round {
    int64_t wake_at_ms;
    bool    is_busy;
    bool    is_idle;
    bool    is_settled; /* every lane is idle, or something keeps it from going on */
} round;

static round
worker_round(ie_worker *worker, bool has_news, bool flush)
{
    round         now = {.wake_at_ms = INT64_MAX, .is_idle = true, .is_settled = true};
    const int64_t boot_ms = ie__boot_ms(worker->options.clock);

    for (size_t i = 0; i < worker->lane_count; i++) {
        ie__lane_news news;

        ie__lane_step(worker->lanes[i], has_news, flush, &news);
        if (news.status != IE_OK)
            worker_trouble(worker, ie__lane_name(worker->lanes[i]), news.status,
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
            duty_run(worker, &worker->duties[i]);
        if (worker->duties[i].next_ms < now.wake_at_ms)
            now.wake_at_ms = worker->duties[i].next_ms;
    }
    return now;
}

/*
 * A host that commits without end would have us look after each commit: that costs both of us more
 * than it brings. How long to be deaf to the file, given that something was just found and more is
 * there.
 */
static int64_t
look_pause(const ie_worker *worker, int64_t now_ns)
{
    return worker->ladder < LADDER_STEPS ? worker->last_look_ns + LOOK_PAUSE_NS - now_ns : 0;
}

/* Wait for a write to the file, an answer, a wake-up, or the time. */
static void
worker_wait(ie_worker *worker, int64_t wait_ns)
{
    const bool      is_deaf = worker->is_streaming || look_pause(worker, ie__mono_ns()) > 0;
    struct pollfd   fds[2] = {{.fd = worker->event_fd, .events = POLLIN},
                              {.fd = is_deaf ? -1 : ie__watch_fd(worker->watch), .events = POLLIN}};
    uint64_t        count;
    struct timespec wait = {.tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000};

    if (ppoll(fds, 2, &wait, NULL) <= 0)
        return;
    if ((fds[0].revents & POLLIN) != 0)
        (void)!read(worker->event_fd, &count, sizeof count);
    if ((fds[1].revents & POLLIN) != 0) {
        ie__watch_drain(worker->watch);
        worker->ladder = 0;
        atomic_fetch_add(&worker->n_wakes, 1);
    }
}

/*
 * A host that commits all the time pays for each write to a file that is watched. In such a stream
 * we take the watch away and look by the clock, until there was nothing for a while.
 */
static bool
worker_streams(ie_worker *worker, int64_t now_ns)
{
    if (now_ns - worker->last_look_ns < STREAM_PAUSE_NS)
        return false;
    worker->last_look_ns = now_ns;
    if (has_changed(worker)) {
        worker->streak = 0;
        return true;
    }
    if (++worker->streak < STREAM_MISSES)
        return false;
    worker->is_streaming = false;
    worker->streak = 0;
    ie__watch_resume(worker->watch);
    worker->ladder = 0; /* a commit just before told nobody */
    return false;
}

/* A write to the file was seen: look in growing pauses until the commit shows. */
static bool
worker_climbs(ie_worker *worker, int64_t now_ns)
{
    if (worker->ladder == LADDER_STEPS || look_pause(worker, now_ns) > 0)
        return false;
    if (!has_changed(worker)) {
        worker->ladder++;
        return false;
    }
    worker->ladder = LADDER_STEPS;
    worker->streak = now_ns - worker->last_look_ns < 3 * LOOK_PAUSE_NS ? worker->streak + 1 : 0;
    if (worker->streak >= STREAM_LOOKS) {
        worker->is_streaming = true;
        worker->streak = 0;
        ie__watch_pause(worker->watch);
    }
    return true;
}

/* Is it time to look into the log? At once when told to, and at the latest after poll_ms. */
static bool
worker_looks(ie_worker *worker, int64_t now_ns)
{
    bool has_news =
        worker->is_streaming ? worker_streams(worker, now_ns) : worker_climbs(worker, now_ns);

    if (atomic_exchange(&worker->is_woken, false)) {
        atomic_fetch_add(&worker->n_wakes, 1);
        has_news = true;
    }
    if (!has_news && now_ns - worker->last_look_ns >= (int64_t)worker->options.poll_ms * 1000000) {
        atomic_fetch_add(&worker->n_polls, 1);
        has_news = has_changed(worker);
        worker->last_look_ns = now_ns;
    }
    if (has_news)
        worker->last_look_ns = now_ns;
    return has_news;
}

static int64_t
wait_for(const ie_worker *worker, const round *last, int64_t now_ns)
{
    const int64_t boot_ms = ie__boot_ms(worker->options.clock);
    int64_t wait_ns = worker->last_look_ns + (int64_t)worker->options.poll_ms * 1000000 - now_ns;

    if (last->wake_at_ms != INT64_MAX) {
        const int64_t left_ms = last->wake_at_ms - boot_ms;

        /* A clock that jumps must not make us sleep past our own poll. */
        if (left_ms * 1000000 < wait_ns)
            wait_ns = left_ms * 1000000;
    }
    if (worker->is_streaming) {
        const int64_t step_ns = worker->last_look_ns + STREAM_PAUSE_NS - now_ns;

        if (step_ns < wait_ns)
            wait_ns = step_ns;
    } else if (worker->ladder < LADDER_STEPS) {
        const int64_t pause_ns = look_pause(worker, now_ns);
        const int64_t step_ns = pause_ns > 0 ? pause_ns : LADDER_NS[worker->ladder];

        if (step_ns < wait_ns)
            wait_ns = step_ns;
    }
    return wait_ns > 0 ? wait_ns : 0;
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
    worker->ladder = LADDER_STEPS;
    shared = (ie__lane_shared){.db = worker->db,
                               .cursors = worker->cursors,
                               .reader = worker->reader,
                               .options = options,
                               .owner = worker->owner,
                               .wake = worker_signal,
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
    duties_list(worker);
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
        const int64_t start_ns = ie__mono_ns();
        const bool    has_news = worker_looks(worker, start_ns);
        const round   last = worker_round(worker, has_news, false);
        const int64_t now_ns = ie__mono_ns();

        if (!last.is_busy)
            worker_wait(worker, wait_for(worker, &last, now_ns));
    }
    while (!(is_drained = worker_drain(worker)) &&
           ie__mono_ns() / 1000000 < atomic_load(&worker->stop_deadline_ms))
        worker_wait(worker, 5000000);
    worker->was_clean = is_drained;
}

static void *
worker_main(void *argument)
{
    ie_worker *worker = argument;

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

/* ---- options ---- */

static ie_status
keep_string(ie_worker *worker, const char **text, ie_error *err)
{
    char *copy;

    if (*text == NULL)
        return IE_OK;
    copy = ie__strdup(*text);
    if (copy == NULL || worker->string_count == worker->string_capacity) {
        ie__free(copy);
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    }
    worker->strings[worker->string_count++] = copy;
    *text = copy;
    return IE_OK;
}

static ie_status
check_destination(const ie_destination *to, ie_error *err)
{
    const size_t length = to->name != NULL ? strlen(to->name) : 0;

    if (length == 0 || length > IE__CURSOR_NAME_BYTES_MAX ||
        strspn(to->name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != length)
        return ie_error_set(err, IE_EINVAL,
                            "destination name '%s' must be 1 to %d characters of a-z 0-9 . _ -",
                            to->name != NULL ? to->name : "", IE__CURSOR_NAME_BYTES_MAX);
    if (to->url == NULL || to->url[0] == '\0')
        return ie_error_set(err, IE_EINVAL, "destination %s has no URL", to->name);
    if ((unsigned)to->order > IE_ORDER_STRICT || (unsigned)to->start > IE_START_NOW)
        return ie_error_set(err, IE_EINVAL,
                            "destination %s: order or start is not one of the constants", to->name);
    return IE_OK;
}

static ie_status
copy_destinations(ie_worker *worker, ie_error *err)
{
    ie_worker_options   *options = &worker->options;
    const ie_destination single = {.size = sizeof single,
                                   .name = options->name != NULL ? options->name : "outbox",
                                   .url = options->to};
    const char *from = (const char *)(options->to != NULL ? &single : options->destinations);
    ie_status   status = IE_OK;

    if (options->to != NULL)
        options->destination_count = 1;
    if (from == NULL || options->destination_count == 0 ||
        options->destination_count > DESTINATIONS_MAX)
        return ie_error_set(err, IE_EINVAL,
                            "a worker needs where to publish: set options.to to a URL such as "
                            "socket://127.0.0.1:9100, or give 1 to %d destinations",
                            DESTINATIONS_MAX);
    worker->destinations = ie__calloc(options->destination_count, sizeof *worker->destinations);
    if (worker->destinations == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    for (size_t i = 0; status == IE_OK && i < options->destination_count; i++) {
        ie_destination *to = &worker->destinations[i];
        size_t          size;

        memcpy(&size, from, sizeof size);
        status = ie__struct_import(to, sizeof *to, from, sizeof *to);
        if (status != IE_OK)
            return ie_error_set(err, status, "destination %zu: size is not set", i);
        from += size;
        status = check_destination(to, err);
        for (size_t j = 0; status == IE_OK && j < i; j++)
            if (strcmp(worker->destinations[j].name, to->name) == 0)
                status = ie_error_set(err, IE_EINVAL, "two destinations are named %s", to->name);
        if (status == IE_OK)
            status = keep_string(worker, &to->name, err);
        if (status == IE_OK)
            status = keep_string(worker, &to->url, err);
        if (status == IE_OK)
            status = keep_string(worker, &to->topics, err);
    }
    options->destinations = worker->destinations;
    return status;
}

static ie_status
copy_processors(ie_worker *worker, ie_error *err)
{
    ie_worker_options *options = &worker->options;
    const char        *from = (const char *)options->processors;
    ie_status          status = IE_OK;

    if (options->processor_count > PROCESSORS_MAX || (options->processor_count > 0 && from == NULL))
        return ie_error_set(err, IE_EINVAL,
                            "at most %d processors, and options.processors with them",
                            PROCESSORS_MAX);
    worker->processors = ie__calloc(options->processor_count, sizeof *worker->processors);
    if (worker->processors == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    for (size_t i = 0; status == IE_OK && i < options->processor_count; i++) {
        ie_processor *processor = &worker->processors[i];
        size_t        size;

        memcpy(&size, from, sizeof size);
        status = ie__struct_import(processor, sizeof *processor, from, sizeof *processor);
        if (status != IE_OK)
            return ie_error_set(err, status, "processor %zu: size is not set", i);
        from += size;
        if (processor->run == NULL || processor->name == NULL || processor->interval_ms == 0 ||
            processor->interval_ms > 86400000)
            return ie_error_set(
                err, IE_EINVAL,
                "processor %zu needs a name, run, and an interval_ms of 1 to 86400000", i);
        status = keep_string(worker, &processor->name, err);
    }
    options->processors = worker->processors;
    return status;
}

static void
worker_free(ie_worker *worker)
{
    if (worker->event_fd >= 0)
        (void)close(worker->event_fd);
    for (size_t i = 0; i < worker->string_count; i++)
        ie__free(worker->strings[i]);
    ie__free(worker->strings);
    ie__free(worker->last_stats);
    ie__free(worker->destinations);
    ie__free(worker->processors);
    (void)pthread_cond_destroy(&worker->changed);
    (void)pthread_mutex_destroy(&worker->lock);
    ie__free(worker);
}

static ie_status
worker_new(ie_worker **out, const ie_worker_options *given, ie_error *err)
{
    ie_worker        *worker;
    ie_worker_options own;
    ie_status         status;

    if (out == NULL || given == NULL)
        return ie_error_set(err, IE_EINVAL, "open worker: out and options are required");
    ie_worker_options_init(&own, sizeof own);
    status = ie__struct_import(&own, sizeof own, given, sizeof own);
    if (status != IE_OK)
        return ie_error_set(
            err, status,
            "open worker: options.size is %zu, expected %zu; use IE_WORKER_OPTIONS_INIT",
            given->size, sizeof own);
    if (own.db == NULL && own.open_db == NULL)
        return ie_error_set(err, IE_EINVAL,
                            "open worker: set options.db to the path of the database");
    if (own.publishers == NULL)
        return ie_error_set(err, IE_EINVAL,
                            "open worker: options.publishers is NULL; use IE_WORKER_OPTIONS_INIT");
    status = ie__options_check(&own, err);
    if (status != IE_OK)
        return status;
    worker = ie__calloc(1, sizeof *worker);
    if (worker == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    worker->options = own;
    worker->options.clock = ie__clock_or_system(own.clock);
    worker->generation = ie__fork_generation();
    worker->seen_version = -1;
    (void)pthread_mutex_init(&worker->lock, NULL);
    (void)pthread_cond_init(&worker->changed, NULL);
    worker->string_capacity = 2 + 3 * DESTINATIONS_MAX + PROCESSORS_MAX;
    worker->strings = ie__calloc(worker->string_capacity, sizeof *worker->strings);
    worker->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (worker->strings == NULL || worker->event_fd < 0)
        status = ie_error_set(err, IE_ENOMEM, "open worker: %s", strerror(errno));
    if (status == IE_OK)
        status = keep_string(worker, &worker->options.db, err);
    if (status == IE_OK)
        status = copy_destinations(worker, err);
    if (status == IE_OK)
        status = copy_processors(worker, err);
    if (status != IE_OK) {
        worker_free(worker);
        return status;
    }
    worker->options.to = NULL;
    worker->options.name = NULL;
    *out = worker;
    return IE_OK;
}

/* ---- public ---- */

ie_status
ie_worker_open(ie_worker **out, const ie_worker_options *options, ie_error *err)
{
    ie_worker *worker = NULL;
    ie_status  status = worker_new(&worker, options, err);

    if (status != IE_OK)
        return status;
    status = worker_set_up(worker, err);
    if (status != IE_OK) {
        worker_tear_down(worker);
        if (!worker->left_behind)
            worker_free(worker);
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
    ie_status  status = worker_new(&worker, options, err);
    int        rc;

    if (status != IE_OK)
        return status;
    /* The host's signals are the host's: none is delivered to a thread of ours. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&worker->thread, NULL, worker_main, worker);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        worker_free(worker);
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
            worker_free(worker);
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

    for (bool has_news = true;; has_news = worker_looks(worker, ie__mono_ns())) {
        const round last = worker_round(worker, has_news, true);

        if (last.is_settled && !last.is_busy)
            return last.is_idle ? IE_OK : what_hinders(worker, err);
        if (timeout_ms != 0 && ie__mono_ns() >= deadline_ns)
            return ie_error_set(err, IE_ETIMEDOUT, "run once: not finished after %u ms",
                                timeout_ms);
        if (!last.is_busy)
            worker_wait(worker, wait_for(worker, &last, ie__mono_ns()));
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
    status = duty_in_place(worker, NULL, err);
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
            worker_wait(worker, 5000000);
        if (worker->db != NULL && !worker->left_behind)
            worker_tear_down(worker);
        return was_clean ? IE_OK : IE_ETIMEDOUT;
    }
    if (pthread_equal(pthread_self(), worker->thread))
        return IE_ESTATE;
    atomic_store(&worker->stop_deadline_ms, ie__mono_ns() / 1000000 + timeout_ms);
    atomic_store(&worker->is_stopping, true);
    worker_signal(worker);
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
        worker_free(worker);
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
