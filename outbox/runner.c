#include "runner.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "core.h"

#define JOBS_MAX                                                                                   \
    2 /* one being sent, one ready: the publisher never waits for us, memory stays bounded */

typedef struct job {
    ie_outgoing *events;
    size_t       count;
} job;

struct ie__runner {
    const ie_publisher_ops *ops;
    char                   *url;
    ie_publisher_env       *env;
    void (*wake)(void *user);
    void *user;
    void *self;    /* the publisher; touched only by the thread that runs it */
    bool  is_open; /* self is valid */

    /* The rest only when it has a thread. */
    bool            has_thread;
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    job             jobs[JOBS_MAX];
    size_t          job_count;
    bool            is_busy; /* inside publish() */
    bool            is_done; /* the thread has ended */
    enum { RUN, OPEN, SHUT, QUIT } wanted;
    ie_status status; /* of the last open */
    ie_error  error;
};

/* ---- on the publisher's thread ---- */

static void
publisher_open(ie__runner *runner)
{
    ie_error_clear(&runner->error);
    runner->status = runner->ops->open(&runner->self, runner->url, runner->env, &runner->error);
    runner->is_open = runner->status == IE_OK;
    if (!runner->is_open)
        (void)ie_error_set(&runner->error, runner->status, "open %s: %s", runner->ops->scheme,
                           ie_status_text(runner->status));
}

static void
publisher_close(ie__runner *runner)
{
    if (runner->is_open)
        runner->ops->close(runner->self);
    runner->is_open = false;
    runner->self = NULL;
}

static void
publisher_publish(ie__runner *runner, const ie_outgoing *events, size_t count)
{
    if (!runner->is_open)
        publisher_open(runner); /* it was shut, or could not be opened before */
    if (!runner->is_open) {
        for (size_t i = 0; i < count; i++)
            ie_report(runner->env, events[i].ticket, IE_UNREACHABLE, runner->error.message);
        return;
    }
    runner->ops->publish(runner->self, events, count);
    if (runner->ops->flush != NULL)
        runner->ops->flush(runner->self);
}

static void *
runner_main(void *argument)
{
    ie__runner *runner = argument;

    (void)pthread_setname_np(pthread_self(), "ie-publisher");
    (void)pthread_mutex_lock(&runner->lock);
    while (runner->wanted != QUIT) {
        if (runner->wanted != RUN) {
            const bool must_open = runner->wanted == OPEN;

            runner->is_busy = true;
            (void)pthread_mutex_unlock(&runner->lock);
            if (must_open)
                publisher_open(runner);
            else
                publisher_close(runner);
            (void)pthread_mutex_lock(&runner->lock);
            runner->is_busy = false;
            if (runner->wanted != QUIT)
                runner->wanted = RUN;
            (void)pthread_cond_broadcast(&runner->changed);
        } else if (runner->job_count > 0) {
            const job now = runner->jobs[0];

            runner->is_busy = true;
            (void)pthread_mutex_unlock(&runner->lock);
            publisher_publish(runner, now.events, now.count);
            ie__free(now.events);
            (void)pthread_mutex_lock(&runner->lock);
            runner->is_busy = false;
            runner->job_count--;
            memmove(runner->jobs, runner->jobs + 1, runner->job_count * sizeof runner->jobs[0]);
            (void)pthread_cond_broadcast(&runner->changed);
            runner->wake(runner->user);
        } else {
            (void)pthread_cond_wait(&runner->changed, &runner->lock);
        }
    }
    (void)pthread_mutex_unlock(&runner->lock);
    publisher_close(runner);
    (void)pthread_mutex_lock(&runner->lock);
    runner->is_done = true;
    (void)pthread_cond_broadcast(&runner->changed);
    (void)pthread_mutex_unlock(&runner->lock);
    return NULL;
}

/* ---- on the worker's thread ---- */

static ie_status
runner_thread(ie__runner *runner, ie_error *err)
{
    pthread_condattr_t attr;
    sigset_t           all;
    sigset_t           old;
    int                rc;

    (void)pthread_mutex_init(&runner->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&runner->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    runner->wanted = OPEN; /* its first duty */
    /* The host's signals are the host's: none is delivered to a thread of ours. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&runner->thread, NULL, runner_main, runner);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        (void)pthread_cond_destroy(&runner->changed);
        (void)pthread_mutex_destroy(&runner->lock);
        return ie_error_set(err, IE_ENOMEM, "start publisher thread: %s", strerror(rc));
    }
    runner->has_thread = true;
    (void)pthread_mutex_lock(&runner->lock);
    while (runner->wanted == OPEN)
        (void)pthread_cond_wait(&runner->changed, &runner->lock);
    (void)pthread_mutex_unlock(&runner->lock);
    return IE_OK;
}

ie_status
ie__runner_open(ie__runner **out, const ie_publisher_ops *ops, const char *url,
                ie_publisher_env *env, void (*wake)(void *user), void *user, ie_error *err)
{
    ie__runner *runner = ie__calloc(1, sizeof *runner);
    ie_status   status = IE_OK;

    if (runner != NULL)
        runner->url = ie__strdup(url);
    if (runner == NULL || runner->url == NULL) {
        ie__free(runner);
        return ie_error_set(err, IE_ENOMEM, "open publisher: out of memory");
    }
    runner->ops = ops;
    runner->env = env;
    runner->wake = wake;
    runner->user = user;
    if ((ops->flags & IE_PUBLISHER_NONBLOCKING) != 0)
        publisher_open(runner);
    else
        status = runner_thread(runner, err);
    if (status == IE_OK && runner->status != IE_OK)
        status = ie_error_set(err, runner->status, "%s", runner->error.message);
    if (status != IE_OK) {
        if (runner->has_thread || runner->is_open) {
            (void)ie__runner_close(runner, UINT32_MAX);
        } else {
            ie__free(runner->url);
            ie__free(runner);
        }
        return status;
    }
    *out = runner;
    return IE_OK;
}

bool
ie__runner_has_room(ie__runner *runner)
{
    bool has_room = true;

    if (runner->has_thread) {
        (void)pthread_mutex_lock(&runner->lock);
        has_room = runner->job_count < JOBS_MAX;
        (void)pthread_mutex_unlock(&runner->lock);
    }
    return has_room;
}

bool
ie__runner_publish(ie__runner *runner, const ie_outgoing *events, size_t count)
{
    ie_outgoing *copy;
    bool         has_room;

    if (!runner->has_thread) {
        publisher_publish(runner, events, count);
        return true;
    }
    copy = ie__realloc_array(NULL, count, sizeof *copy);
    if (copy == NULL)
        return false;
    memcpy(copy, events, count * sizeof *copy);
    (void)pthread_mutex_lock(&runner->lock);
    has_room = runner->job_count < JOBS_MAX;
    if (has_room) {
        runner->jobs[runner->job_count++] = (job){copy, count};
        (void)pthread_cond_broadcast(&runner->changed);
    }
    (void)pthread_mutex_unlock(&runner->lock);
    if (!has_room)
        ie__free(copy);
    return has_room;
}

bool
ie__runner_shut(ie__runner *runner)
{
    bool is_busy = false;

    if (!runner->has_thread) {
        publisher_close(runner);
        return true;
    }
    (void)pthread_mutex_lock(&runner->lock);
    is_busy = runner->is_busy;
    if (!is_busy) {
        for (size_t i = 0; i < runner->job_count; i++)
            ie__free(runner->jobs[i].events); /* the caller sends those events again */
        runner->job_count = 0;
        runner->wanted = SHUT;
        (void)pthread_cond_broadcast(&runner->changed);
        while (runner->wanted == SHUT)
            (void)pthread_cond_wait(&runner->changed, &runner->lock);
    }
    (void)pthread_mutex_unlock(&runner->lock);
    return !is_busy;
}

bool
ie__runner_close(ie__runner *runner, uint32_t wait_ms)
{
    bool is_done = true;

    if (runner == NULL)
        return true;
    if (!runner->has_thread) {
        publisher_close(runner);
    } else {
        struct timespec until;

        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += wait_ms / 1000;
        until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        (void)pthread_mutex_lock(&runner->lock);
        runner->wanted = QUIT;
        (void)pthread_cond_broadcast(&runner->changed);
        while (!runner->is_done)
            if (pthread_cond_timedwait(&runner->changed, &runner->lock, &until) == ETIMEDOUT)
                break;
        is_done = runner->is_done;
        (void)pthread_mutex_unlock(&runner->lock);
        if (!is_done)
            return false;
        (void)pthread_join(runner->thread, NULL);
        for (size_t i = 0; i < runner->job_count; i++)
            ie__free(runner->jobs[i].events);
        (void)pthread_cond_destroy(&runner->changed);
        (void)pthread_mutex_destroy(&runner->lock);
    }
    ie__free(runner->url);
    ie__free(runner);
    return is_done;
}
