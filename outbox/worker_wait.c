/*
 * Waiting for news: commits of others, answers, the time.
 *
 * With ppoll(2) on inotify and an eventfd rather than in a loop library: waiting needs two
 * descriptors and a deadline finer than a millisecond, and ie_worker_run_once() needs the same
 * steps without a loop.
 */
#include "worker_parts.h"

#include <poll.h>
#include <time.h>
#include <unistd.h>

#define LOOK_PAUSE_NS   200000 /* between looks while news keep coming: see look_pause() */
#define STREAM_PAUSE_NS 500000 /* between looks in a stream of commits: see worker_streams() */
#define STREAM_LOOKS    16     /* that found something, one after the other, make a stream */
#define STREAM_MISSES   20     /* that found nothing end it */

/* After a write was seen and nothing is there yet: the file changes just before the commit is
 * visible, by as long as an fsync takes. */
static const int64_t LADDER_NS[] = {30000,    50000,    100000,    200000,    400000,
                                    800000,   1500000,  3000000,   6000000,   12000000,
                                    25000000, 50000000, 100000000, 200000000, 400000000};
_Static_assert(sizeof LADDER_NS / sizeof LADDER_NS[0] == IE__LADDER_STEPS, "one pause per step");

/* The write of a second commit may have been seen together with the first, before it was visible:
 * so looking goes on after news, in the longer pauses. */
#define LADDER_AFTER_NEWS 4

/* ---- waking ---- */

void
ie__worker_signal(void *user)
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
    ie__worker_signal(worker);
}

/* ---- looking ---- */

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

/*
 * A host that commits without end would have us look after each commit: that costs both of us more
 * than it brings. How long to be deaf to the file, given that something was just found and more is
 * there.
 */
static int64_t
look_pause(const ie_worker *worker, int64_t now_ns)
{
    return worker->ladder < IE__LADDER_STEPS ? worker->last_look_ns + LOOK_PAUSE_NS - now_ns : 0;
}

/* Wait for a write to the file, an answer, a wake-up, or the time. */
void
ie__worker_wait(ie_worker *worker, int64_t wait_ns)
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
    if (worker->ladder == IE__LADDER_STEPS || look_pause(worker, now_ns) > 0)
        return false;
    if (!has_changed(worker)) {
        worker->ladder++;
        return false;
    }
    worker->ladder = LADDER_AFTER_NEWS;
    worker->streak = now_ns - worker->last_look_ns < 3 * LOOK_PAUSE_NS ? worker->streak + 1 : 0;
    if (worker->streak >= STREAM_LOOKS) {
        worker->is_streaming = true;
        worker->streak = 0;
        ie__watch_pause(worker->watch);
    }
    return true;
}

/* Is it time to look into the log? At once when told to, and at the latest after poll_ms. */
bool
ie__worker_looks(ie_worker *worker, int64_t now_ns)
{
    bool has_news =
        worker->is_streaming ? worker_streams(worker, now_ns) : worker_climbs(worker, now_ns);

    if (atomic_exchange(&worker->is_woken, false)) {
        atomic_fetch_add(&worker->n_wakes, 1);
        has_news = true;
    }
    if (!has_news && now_ns - worker->last_look_ns >= (int64_t)worker->options.poll_ms * 1000000) {
        atomic_fetch_add(&worker->n_polls, 1);
        (void)has_changed(worker);
        has_news = true; /* the safety net asks the log itself, not what it believes about it */
        worker->last_look_ns = now_ns;
    }
    if (has_news)
        worker->last_look_ns = now_ns;
    return has_news;
}

int64_t
ie__worker_wait_ns(const ie_worker *worker, const ie__round *last, int64_t now_ns)
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
    } else if (worker->ladder < IE__LADDER_STEPS) {
        const int64_t pause_ns = look_pause(worker, now_ns);
        const int64_t step_ns = pause_ns > 0 ? pause_ns : LADDER_NS[worker->ladder];

        if (step_ns < wait_ns)
            wait_ns = step_ns;
    }
    return wait_ns > 0 ? wait_ns : 0;
}
