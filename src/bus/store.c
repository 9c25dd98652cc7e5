/*
 * The store's two ends: the loop hands jobs over and takes results, the log thread works them off.
 *
 * Round of the thread: take everything that waits; one transaction with all writes, one sync; hand
 * the results back; then reads and retention, for a slice of time. When nothing waits a job is
 * worked off at once, and what comes meanwhile makes up the next round: that is the group commit.
 */
#include "store.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core.h"
#include "storage.h"

#define ROUND_BYTES       (16u << 20) /* of one transaction */
#define READ_SLICE_NS     (4 * INT64_C(1000000))
#define HANDOVER_BYTES    65536 /* so much is handed over at once, not at the turn's end */
#define CHECKPOINT_FRAMES 4000
#define SLACK_BYTES       65536 /* appended beyond the size before it is looked at again */
#define RETAIN_MS         5000
#define TROUBLE_MS        200

typedef struct jobs {
    ie__job *head;
    ie__job *tail;
    size_t   count;
} jobs;

struct ie__store {
    ie__store_options options; /* data_dir and vfs are not used from here */
    ie__storage      *storage;

    /* the loop's */
    uv_loop_t     *loop;
    uv_async_t     async;
    jobs           gathered;
    size_t         gathered_bytes;
    uint64_t       queued_bytes;
    uint64_t       pending;
    ie__store_view view;
    char           trouble[sizeof((ie_error *)0)->message];
    bool           is_running;
    bool           has_handle;

    /* the thread's */
    pthread_t thread;
    jobs      writes; /* not committed yet */
    jobs      reads;
    int64_t   retain_at_ms;
    int64_t   wait_until_ms; /* storage is in trouble: writes rest until then */
    bool      retains;       /* retention has more to do */
    bool      is_troubled;
    ie_error  error;

    pthread_mutex_t mutex;
    pthread_cond_t  wake;
    jobs            incoming;   /* mutex */
    jobs            results;    /* mutex */
    ie__loss       *losses;     /* mutex; not taken by the loop yet */
    size_t          loss_count; /* mutex */
    ie__store_view  shown;      /* mutex */
    ie_error        shown_error;
    bool            is_stopping; /* mutex */
    bool            has_reload;  /* mutex */
    uint64_t        new_bytes_max;
    uint32_t        new_retention_s;
    ie_bus_lagging  new_lagging;
};

static void
jobs_add(jobs *list, ie__job *job)
{
    job->next = NULL;
    if (list->tail != NULL)
        list->tail->next = job;
    else
        list->head = job;
    list->tail = job;
    list->count++;
}

static ie__job *
jobs_take(jobs *list)
{
    ie__job *job = list->head;

    if (job == NULL)
        return NULL;
    list->head = job->next;
    if (list->head == NULL)
        list->tail = NULL;
    list->count--;
    return job;
}

static void
jobs_append(jobs *to, jobs *from)
{
    if (from->head == NULL)
        return;
    if (to->tail != NULL)
        to->tail->next = from->head;
    else
        to->head = from->head;
    to->tail = from->tail;
    to->count += from->count;
    memset(from, 0, sizeof *from);
}

/* ---- the thread: results -------------------------------------------------------------------- */

static void
post_losses(ie__store *store)
{
    ie__storage *storage = store->storage;
    ie__loss    *grown;

    if (storage->loss_count == 0)
        return;
    grown =
        ie__realloc_array(store->losses, store->loss_count + storage->loss_count, sizeof *grown);
    if (grown == NULL)
        return; /* tried again with the next results */
    memcpy(grown + store->loss_count, storage->losses, storage->loss_count * sizeof *grown);
    store->losses = grown;
    store->loss_count += storage->loss_count;
    storage->loss_count = 0;
}

static void
post(ie__store *store, jobs *done)
{
    const ie__storage *storage = store->storage;

    (void)pthread_mutex_lock(&store->mutex);
    jobs_append(&store->results, done);
    post_losses(store);
    store->shown.bytes = storage->used_bytes + storage->since_bytes;
    store->shown.first = storage->first;
    store->shown.last = storage->last;
    store->shown.lost = storage->lost;
    store->shown.is_full = storage->is_full;
    store->shown_error = store->error;
    (void)pthread_mutex_unlock(&store->mutex);
    (void)uv_async_send(&store->async);
}

/* ---- the thread: writing -------------------------------------------------------------------- */

/* What another try may mend. Anything else is the job's own fault, and its answer. */
static bool
is_trouble(ie_status status)
{
    switch (status) {
    case IE_EIO:
    case IE_EFULL:
    case IE_ENOMEM:
    case IE_EBUSY:
    case IE_EREADONLY:
    case IE_ECORRUPT:
    case IE_EMOVED:
    case IE_ETXN_ABORTED: return true;
    default: return false;
    }
}

/* Run the writes at the head of the queue in the open transaction; *count: how many. */
static ie_status
run_writes(ie__store *store, size_t *count, ie_error *err)
{
    ie__storage *storage = store->storage;
    ie_error     why = IE_ERROR_INIT;
    size_t       bytes = 0;

    *count = 0;
    for (ie__job *job = store->writes.head; job != NULL && bytes < ROUND_BYTES; job = job->next) {
        if (job->next != NULL) /* the loop wrote it, on another core */
            __builtin_prefetch(job->next);
        job->status = job->run(storage, job, &why);
        if (job->status != IE_OK && is_trouble(job->status))
            return ie_error_set(err, job->status, "%s", why.message);
        if (job->status == IE_ELIMIT)
            store->error = why; /* retention_bytes_max: the append alone is refused */
        else if (job->status != IE_OK)
            ie__log(&storage->logger, IE_LOG_WARN, "bus", "store: %s", why.message);
        if (job->status != IE_OK)
            ie_error_clear(&why);
        bytes += job->bytes;
        ++*count;
    }
    return IE_OK;
}

static void
finish_writes(ie__store *store, size_t count)
{
    jobs done = {NULL, NULL, 0};

    for (size_t i = 0; i < count; i++) {
        ie__job *job = jobs_take(&store->writes);

        if (job->status == IE_OK && job->committed != NULL)
            job->committed(store->storage, job);
        jobs_add(&done, job);
    }
    post(store, &done);
}

/* The transaction failed: publishes are refused, what is owed stays queued in its order. */
static void
fail_writes(ie__store *store, const ie_error *err)
{
    jobs kept = {NULL, NULL, 0};
    jobs done = {NULL, NULL, 0};

    for (ie__job *job; (job = jobs_take(&store->writes)) != NULL;) {
        if (!job->is_append) {
            jobs_add(&kept, job);
            continue;
        }
        job->status = err->status == IE_EFULL ? IE_EFULL : IE_EIO;
        jobs_add(&done, job);
    }
    store->writes = kept;
    store->error = *err;
    if (!store->is_troubled)
        ie__log(&store->storage->logger, IE_LOG_ERROR, "bus",
                "the log cannot be written: %s; publishes to be stored are refused until it can",
                err->message);
    store->is_troubled = true;
    store->wait_until_ms = ie__mono_ns() / 1000000 + TROUBLE_MS;
    post(store, &done);
}

static void
write_round(ie__store *store)
{
    ie__storage *storage = store->storage;
    ie_error     err = IE_ERROR_INIT;
    size_t       count = 0;
    ie_status    status = ie__storage_begin(storage, &err);

    if (status == IE_OK) {
        status = run_writes(store, &count, &err);
        if (status == IE_OK)
            status = ie__storage_commit(storage, &err);
        else
            ie__storage_rollback(storage);
    }
    if (status != IE_OK) {
        fail_writes(store, &err);
        return;
    }
    if (store->is_troubled)
        ie__log(&storage->logger, IE_LOG_INFO, "bus", "the log can be written again");
    store->is_troubled = false;
    finish_writes(store, count);
}

/* ---- the thread: everything else ------------------------------------------------------------ */

static void
read_round(ie__store *store)
{
    const int64_t started_ns = ie__mono_ns();
    jobs          done = {NULL, NULL, 0};

    jobs kept = {NULL, NULL, 0};

    while (store->reads.head != NULL && ie__mono_ns() - started_ns < READ_SLICE_NS) {
        ie__job *job = jobs_take(&store->reads);
        ie_error err = IE_ERROR_INIT;

        if (job->is_after_writes && store->is_troubled) {
            jobs_add(&kept, job); /* what it would see is not true yet */
            continue;
        }

        job->status = job->run(store->storage, job, &err);
        if (job->status != IE_OK)
            ie__log(&store->storage->logger, IE_LOG_WARN, "bus", "reading the log: %s",
                    err.message);
        jobs_add(&done, job);
    }
    jobs_append(&kept, &store->reads);
    store->reads = kept;
    if (done.count != 0)
        post(store, &done);
}

/* The file is ours alone, so checkpoints are too: no commit of anybody else can fall into one. */
static void
checkpoint(ie__store *store)
{
    ie__storage *storage = store->storage;

    if (storage->wal_frames < CHECKPOINT_FRAMES)
        return;
    storage->wal_frames = 0; /* if it does not get through, the next commit says so again */
    (void)sqlite3_wal_checkpoint_v2(storage->db, "main", SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
}

static void
housekeep(ie__store *store)
{
    ie__storage  *storage = store->storage;
    const int64_t now_ms = ie__mono_ns() / 1000000;
    const bool    was_full = storage->is_full;
    ie_error      err = IE_ERROR_INIT;

    checkpoint(store);
    if (!storage->is_full && ie__storage_is_big(storage) && storage->since_bytes > SLACK_BYTES)
        store->retains = true;
    if (!store->is_troubled && (now_ms >= store->retain_at_ms || store->retains)) {
        const ie_status status = ie__storage_retain(storage, &store->retains, &err);

        store->retain_at_ms = now_ms + (storage->is_full ? 100 : RETAIN_MS);
        if (status != IE_OK) {
            store->retains = false;
            ie__log(&storage->logger, IE_LOG_WARN, "bus", "retention: %s", err.message);
        }
        if (storage->is_full && !was_full)
            ie__log(&storage->logger, IE_LOG_ERROR, "bus",
                    "retention_bytes_max is reached, and groups have not had what is old: "
                    "publishes to be stored are refused");
        post(store, &(jobs){NULL, NULL, 0});
    }
}

/* ---- the thread ----------------------------------------------------------------------------- */

/* A deadline on the monotonic clock. */
static void
wait_until(ie__store *store, int64_t at_ms)
{
    const struct timespec at = {.tv_sec = at_ms / 1000, .tv_nsec = at_ms % 1000 * 1000000};

    (void)pthread_cond_timedwait(&store->wake, &store->mutex, &at);
}

/* Take what came, wait while there is nothing to do. False: it is time to stop. */
static bool
take_incoming(ie__store *store)
{
    bool goes_on = true;
    bool has_append = false;

    (void)pthread_mutex_lock(&store->mutex);
    while (store->incoming.head == NULL && !store->is_stopping && !store->has_reload) {
        const int64_t now_ms = ie__mono_ns() / 1000000;
        int64_t       at_ms = store->retain_at_ms;

        if (store->is_troubled && store->wait_until_ms < at_ms)
            at_ms = store->wait_until_ms;
        if (store->retains || (store->writes.head != NULL && !store->is_troubled) ||
            (store->reads.head != NULL && !store->is_troubled) || now_ms >= at_ms)
            break;
        wait_until(store, at_ms);
    }
    for (ie__job *job; (job = jobs_take(&store->incoming)) != NULL;) {
        has_append = has_append || job->is_append;
        jobs_add(job->is_read ? &store->reads : &store->writes, job);
    }
    if (has_append)
        store->wait_until_ms = 0; /* try now, whatever happened before */
    if (store->has_reload) {
        store->has_reload = false;
        store->storage->retention_bytes_max = store->new_bytes_max;
        store->storage->retention_s = store->new_retention_s;
        store->storage->lagging = store->new_lagging;
        store->retain_at_ms = 0;
    }
    goes_on = !store->is_stopping;
    (void)pthread_mutex_unlock(&store->mutex);
    return goes_on;
}

/* The last round: what is owed is written if it can be, reads have nobody left to read. */
static void
finish_thread(ie__store *store)
{
    jobs done = {NULL, NULL, 0};

    for (int tries = 0; store->writes.head != NULL && tries < 3;) {
        write_round(store);
        tries += store->is_troubled;
    }
    jobs_append(&done, &store->writes);
    jobs_append(&done, &store->reads);
    for (ie__job *job = done.head; job != NULL; job = job->next)
        job->status = IE_ECLOSED;
    post(store, &done);
}

static void *
store_main(void *arg)
{
    ie__store *store = arg;

    ie__net_thread_enter("ie-bus-log");
    while (take_incoming(store)) {
        const int64_t now_ms = ie__mono_ns() / 1000000;

        if (store->writes.head != NULL && (!store->is_troubled || now_ms >= store->wait_until_ms))
            write_round(store);
        if (store->reads.head != NULL)
            read_round(store);
        housekeep(store);
    }
    finish_thread(store);
    return NULL;
}

/* ---- the loop: results ---------------------------------------------------------------------- */

static void
take_results(ie__store *store)
{
    jobs      done;
    ie__loss *losses;
    size_t    loss_count;

    (void)pthread_mutex_lock(&store->mutex);
    done = store->results;
    memset(&store->results, 0, sizeof store->results);
    losses = store->losses;
    loss_count = store->loss_count;
    store->losses = NULL;
    store->loss_count = 0;
    store->view = store->shown;
    if (store->shown_error.status != IE_OK)
        memcpy(store->trouble, store->shown_error.message, sizeof store->trouble);
    (void)pthread_mutex_unlock(&store->mutex);
    for (ie__job *job; (job = jobs_take(&done)) != NULL;) {
        store->pending--;
        store->queued_bytes -= job->bytes;
        job->done(store, job);
    }
    for (size_t i = 0; i < loss_count; i++)
        store->options.lost(store->options.user, &losses[i]);
    ie__free(losses);
    if (store->options.after != NULL)
        store->options.after(store->options.user);
}

static void
on_async(uv_async_t *async)
{
    take_results(async->data);
}

/* ---- the loop: jobs ------------------------------------------------------------------------- */

void
ie__store_submit(ie__store *store, ie__job *job)
{
    job->status = IE_OK;
    store->pending++;
    store->queued_bytes += job->bytes;
    store->gathered_bytes += job->bytes;
    jobs_add(&store->gathered, job);
    if (store->gathered_bytes >= HANDOVER_BYTES)
        ie__store_flush(store);
}

void
ie__store_flush(ie__store *store)
{
    if (store->gathered.head == NULL)
        return;
    store->gathered_bytes = 0;
    (void)pthread_mutex_lock(&store->mutex);
    jobs_append(&store->incoming, &store->gathered);
    (void)pthread_cond_signal(&store->wake);
    (void)pthread_mutex_unlock(&store->mutex);
}

bool
ie__store_is_crowded(const ie__store *store, size_t bytes)
{
    return store->queued_bytes + bytes > store->options.queue_bytes_max;
}

uint64_t
ie__store_pending(const ie__store *store)
{
    return store->pending;
}

const ie__store_view *
ie__store_look(const ie__store *store)
{
    return &store->view;
}

const char *
ie__store_trouble(const ie__store *store)
{
    return store->trouble;
}

/* ---- its life ------------------------------------------------------------------------------- */

ie_status
ie__store_open(ie__store **out, const ie__store_options *options, ie_error *err)
{
    ie__store         *store = ie__calloc(1, sizeof *store);
    pthread_condattr_t attr;
    ie_status          status;

    if (store == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a log");
    store->options = *options;
    status = ie__storage_open(&store->storage, options, err);
    if (status != IE_OK) {
        ie__free(store);
        return status;
    }
    store->options.data_dir = store->options.vfs = NULL; /* the caller's */
    (void)pthread_mutex_init(&store->mutex, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&store->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    store->view.bytes = store->storage->used_bytes;
    store->view.first = store->storage->first;
    store->view.last = store->storage->last;
    *out = store;
    return IE_OK;
}

ie_status
ie__store_groups(ie__store *store, void (*each)(void *user, const ie__group_row *row), void *user,
                 ie_error *err)
{
    return ie__storage_each_group(store->storage, each, user, err);
}

ie_status
ie__store_held_keys(ie__store *store, int64_t                                          group,
                    void (*each)(void *user, uint64_t key_hash, uint64_t count), void *user,
                    ie_error *err)
{
    return ie__storage_held_keys(store->storage, group, each, user, err);
}

ie_status
ie__store_start(ie__store *store, uv_loop_t *loop, ie_error *err)
{
    store->loop = loop;
    if (uv_async_init(loop, &store->async, on_async) != 0)
        return ie_error_set(err, IE_EIO, "cannot set up the log's thread");
    store->async.data = store;
    store->has_handle = true;
    if (pthread_create(&store->thread, NULL, store_main, store) != 0)
        return ie_error_set(err, IE_EIO, "cannot start the log's thread");
    store->is_running = true;
    return IE_OK;
}

void
ie__store_reload(ie__store *store, const ie__store_options *options)
{
    store->options.queue_bytes_max = options->queue_bytes_max;
    (void)pthread_mutex_lock(&store->mutex);
    store->has_reload = true;
    store->new_bytes_max = options->retention_bytes_max;
    store->new_retention_s = options->retention_s;
    store->new_lagging = options->lagging;
    (void)pthread_cond_signal(&store->wake);
    (void)pthread_mutex_unlock(&store->mutex);
}

void
ie__store_stop(ie__store *store)
{
    ie__store_flush(store);
    if (store->is_running) {
        (void)pthread_mutex_lock(&store->mutex);
        store->is_stopping = true;
        (void)pthread_cond_signal(&store->wake);
        (void)pthread_mutex_unlock(&store->mutex);
        (void)pthread_join(store->thread, NULL);
        store->is_running = false;
        take_results(store);
    }
    if (store->has_handle)
        uv_close((uv_handle_t *)&store->async, NULL);
    store->has_handle = false;
    ie__storage_close(store->storage);
    store->storage = NULL;
}

void
ie__store_free(ie__store *store)
{
    if (store == NULL)
        return;
    ie__storage_close(store->storage);
    (void)pthread_mutex_destroy(&store->mutex);
    (void)pthread_cond_destroy(&store->wake);
    ie__free(store->losses);
    ie__free(store);
}

/* ---- jobs ----------------------------------------------------------------------------------- */

void
ie__append_job_init(ie__append_job *job, ie__blob                      *record,
                    void (*done)(ie__store *store, ie__job *job), void *user)
{
    memset(job, 0, sizeof *job);
    job->job.run = ie__storage_append;
    job->job.done = done;
    job->job.user = user;
    job->job.bytes = record->size + sizeof *job;
    job->job.is_append = true;
    job->record = record;
}

ie__read_job *
ie__read_job_new(size_t rows_max, void (*done)(ie__store *store, ie__job *job), void *user)
{
    ie__read_job *job = ie__calloc(1, sizeof *job);

    if (job == NULL)
        return NULL;
    job->rows = ie__calloc(rows_max, sizeof *job->rows);
    if (job->rows == NULL) {
        ie__free(job);
        return NULL;
    }
    job->rows_max = rows_max;
    job->job.run = ie__storage_read;
    job->job.done = done;
    job->job.user = user;
    job->job.is_read = true;
    return job;
}

void
ie__read_job_free(ie__read_job *job)
{
    if (job == NULL)
        return;
    for (size_t i = 0; i < job->count; i++)
        ie__blob_unref(job->rows[i].record);
    ie__free(job->rows);
    ie__free(job->skip);
    ie__free(job);
}
