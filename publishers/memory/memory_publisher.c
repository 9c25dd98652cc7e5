/*
 * memory:NAME, a transport inside the process: channels by name, each with those who take its
 * events. Handing out runs on the publishing thread under the channel's lock, once per batch;
 * with nobody there and sink=true it touches no lock at all.
 */
#include <ie/memory.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core.h"
#include "memory_publisher.h"
#include "url.h"

#define NAME_BYTES_MAX 64

typedef struct memory_channel memory_channel;

/* Someone who takes events; the first field of a subscription and of a queue. */
typedef struct member {
    struct member    *next;
    memory_channel   *channel;
    ie_memory_handler take;
    void             *user;
    void (*release)(struct member *member);
    bool takes_all; /* the pattern is ">" */
    bool is_closed; /* gone, but a batch is walking over it */
    char pattern[IE_TOPIC_BYTES_MAX + 1];
} member;

struct ie_memory_subscription {
    member member;
};

typedef struct slot {
    ie_event *event;
    size_t    bytes;
} slot;

struct ie_memory_queue {
    member          member;
    pthread_mutex_t lock;
    pthread_cond_t  filled;
    unsigned        waiting; /* threads in ie_memory_queue_next() */
    uint32_t        capacity;
    uint32_t        first;
    uint32_t        count;
    size_t          bytes;
    slot           *slots;
};

struct memory_channel {
    memory_channel  *next;
    unsigned         refs;        /* under hub_lock */
    unsigned         handing_out; /* batches on this thread's stack; under lock, as are members */
    pthread_mutex_t  lock;        /* recursive: handlers may subscribe and unsubscribe */
    member          *members;
    _Atomic uint32_t member_count;
    uint32_t         reserved;
    _Atomic uint64_t verdicts[4]; /* by ie_verdict */
    _Atomic uint64_t sunk;
    char             name[NAME_BYTES_MAX + 1];
};

typedef struct memory_publisher {
    ie_publisher_env *env;
    memory_channel   *channel;
    bool              is_sink;
} memory_publisher;

static pthread_mutex_t hub_lock = PTHREAD_MUTEX_INITIALIZER;
static memory_channel *hub; /* few: a list */

/* ---- channels ----------------------------------------------------------------------------- */

/* The name in "memory:NAME"; the options are checked against known, borrowed from url. */
static ie_status
name_parse(const char **name, ie__url *url, const char *text, const char *const *known,
           ie_error *err)
{
    ie_status status = text != NULL ? ie__url_parse(url, text, err) : IE_EINVAL;
    size_t    bytes;

    if (status != IE_OK)
        return ie_error_set(err, status, "a channel is named memory:NAME");
    if (strcmp(url->scheme, "memory") != 0)
        return ie_error_set(err, IE_EINVAL, "'%s:' is not 'memory:'", url->scheme);
    status = ie__url_known_options(url, known, err);
    if (status != IE_OK)
        return status;
    *name = url->path;
    bytes = strlen(*name);
    if (bytes == 0 || bytes > NAME_BYTES_MAX || url->host[0] != '\0' ||
        strspn(*name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != bytes)
        return ie_error_set(err, IE_EINVAL, "the name in memory:NAME is 1..%d of A-Z a-z 0-9 . _ -",
                            NAME_BYTES_MAX);
    return IE_OK;
}

static ie_status
channel_new(memory_channel **out, const char *name)
{
    memory_channel     *made = ie__calloc(1, sizeof *made);
    pthread_mutexattr_t attr;

    if (made == NULL)
        return IE_ENOMEM;
    (void)snprintf(made->name, sizeof made->name, "%s", name);
    (void)pthread_mutexattr_init(&attr);
    (void)pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    (void)pthread_mutex_init(&made->lock, &attr);
    (void)pthread_mutexattr_destroy(&attr);
    *out = made;
    return IE_OK;
}

/* The channel of that name with one more reference; made when create is set, else maybe NULL. */
static ie_status
channel_ref(memory_channel **out, const char *name, bool create, ie_error *err)
{
    ie_status       status = IE_OK;
    memory_channel *found;

    (void)pthread_mutex_lock(&hub_lock);
    for (found = hub; found != NULL && strcmp(found->name, name) != 0;)
        found = found->next;
    if (found == NULL) {
        status = create ? channel_new(&found, name) : IE_ENOTFOUND;
        if (status == IE_OK) {
            found->next = hub;
            hub = found;
        }
    }
    if (status == IE_OK)
        found->refs++;
    (void)pthread_mutex_unlock(&hub_lock);
    if (status == IE_ENOTFOUND)
        return ie_error_set(err, status, "nobody uses memory:%s", name);
    if (status != IE_OK)
        return ie_error_set(err, status, "memory:%s: out of memory", name);
    *out = found;
    return IE_OK;
}

static void
channel_unref(memory_channel *gone)
{
    memory_channel **link = &hub;

    (void)pthread_mutex_lock(&hub_lock);
    if (--gone->refs != 0) {
        (void)pthread_mutex_unlock(&hub_lock);
        return;
    }
    while (*link != gone)
        link = &(*link)->next;
    *link = gone->next;
    (void)pthread_mutex_unlock(&hub_lock);
    (void)pthread_mutex_destroy(&gone->lock);
    ie__free(gone);
}

/* ---- members ------------------------------------------------------------------------------ */

static ie_status
member_join(member *joining, const char *url, const char *pattern, ie_error *err)
{
    static const char *const NO_OPTIONS[] = {NULL};
    ie__url                  parsed;
    const char              *name = "";
    member                 **link;
    ie_status                status;

    if (pattern == NULL)
        pattern = ">";
    status = name_parse(&name, &parsed, url, NO_OPTIONS, err);
    if (status == IE_OK)
        status = ie_pattern_check(pattern, err);
    if (status == IE_OK)
        status = channel_ref(&joining->channel, name, true, err);
    if (status != IE_OK)
        return status;
    (void)snprintf(joining->pattern, sizeof joining->pattern, "%s", pattern);
    joining->takes_all = strcmp(pattern, ">") == 0;
    (void)pthread_mutex_lock(&joining->channel->lock);
    for (link = &joining->channel->members; *link != NULL;)
        link = &(*link)->next;
    *link = joining;
    (void)atomic_fetch_add(&joining->channel->member_count, 1);
    (void)pthread_mutex_unlock(&joining->channel->lock);
    return IE_OK;
}

/* Take those who left off the list and release them. Only while no batch walks over it. */
static unsigned
members_reap(memory_channel *channel)
{
    unsigned released = 0;

    for (member **link = &channel->members; *link != NULL;) {
        member *gone = *link;

        if (!gone->is_closed) {
            link = &gone->next;
            continue;
        }
        *link = gone->next;
        gone->release(gone);
        released++;
    }
    return released;
}

static void
member_leave(member *leaving)
{
    memory_channel *channel = leaving->channel;
    unsigned        released = 0;

    (void)pthread_mutex_lock(&channel->lock);
    leaving->is_closed = true;
    (void)atomic_fetch_sub(&channel->member_count, 1);
    if (channel->handing_out == 0) /* else the call comes from a handler; the batch reaps */
        released = members_reap(channel);
    (void)pthread_mutex_unlock(&channel->lock);
    for (; released > 0; released--)
        channel_unref(channel);
}

static void
subscription_release(member *gone)
{
    ie__free(gone); /* the member is its first and only field */
}

ie_status
ie_memory_subscribe(ie_memory_subscription **out, const char *url, const char *pattern,
                    ie_memory_handler handler, void *user, ie_error *err)
{
    ie_memory_subscription *subscription;
    ie_status               status;

    if (handler == NULL)
        return ie_error_set(err, IE_EINVAL, "a subscription needs a handler");
    subscription = ie__calloc(1, sizeof *subscription);
    if (subscription == NULL)
        return ie_error_set(err, IE_ENOMEM, "subscribe: out of memory");
    subscription->member.take = handler;
    subscription->member.user = user;
    subscription->member.release = subscription_release;
    status = member_join(&subscription->member, url, pattern, err);
    if (status != IE_OK) {
        ie__free(subscription);
        return status;
    }
    *out = subscription;
    return IE_OK;
}

void
ie_memory_unsubscribe(ie_memory_subscription *subscription)
{
    if (subscription != NULL)
        member_leave(&subscription->member);
}

/* ---- queues ------------------------------------------------------------------------------- */

static void
queue_release(member *gone)
{
    ie_memory_queue *queue = (ie_memory_queue *)(void *)gone; /* its first field */

    for (; queue->count > 0; queue->count--) {
        ie_event_free(queue->slots[queue->first].event);
        queue->first = (queue->first + 1) % queue->capacity;
    }
    (void)pthread_cond_destroy(&queue->filled);
    (void)pthread_mutex_destroy(&queue->lock);
    ie__free(queue->slots);
    ie__free(queue);
}

/* What a copy weighs: close enough for a limit, and cheap. */
static size_t
event_bytes(const ie_event *event)
{
    return sizeof *event + event->data_bytes + event->header_count * sizeof *event->headers;
}

static ie_status
queue_take(void *user, const ie_event *event, ie_error *err)
{
    ie_memory_queue *queue = user;
    const size_t     bytes = event_bytes(event);
    ie_event        *copy;
    ie_status        status;
    bool             is_full;

    /* Only this side adds, and the channel's lock lets one thread in: room cannot shrink. */
    (void)pthread_mutex_lock(&queue->lock);
    is_full = queue->count == queue->capacity ||
              (queue->count != 0 && queue->bytes + bytes > IE_MEMORY_QUEUE_BYTES_MAX);
    (void)pthread_mutex_unlock(&queue->lock);
    if (is_full)
        return ie_error_set(err, IE_EUNREACHABLE, "a queue of memory:%s is full",
                            queue->member.channel->name);
    status = ie_event_copy(&copy, event, err);
    if (status != IE_OK)
        return status == IE_ENOMEM ? IE_EUNREACHABLE : IE_EREFUSED;
    (void)pthread_mutex_lock(&queue->lock);
    queue->slots[(queue->first + queue->count) % queue->capacity] = (slot){copy, bytes};
    queue->count++;
    queue->bytes += bytes;
    if (queue->waiting != 0)
        (void)pthread_cond_signal(&queue->filled);
    (void)pthread_mutex_unlock(&queue->lock);
    return IE_OK;
}

ie_status
ie_memory_queue_open(ie_memory_queue **out, const char *url, const char *pattern,
                     uint32_t events_max, ie_error *err)
{
    ie_memory_queue   *queue;
    pthread_condattr_t attr;
    ie_status          status;

    if (events_max > IE_MEMORY_QUEUE_EVENTS_MAX)
        return ie_error_set(err, IE_EINVAL, "events_max %u is not in 0..%d", events_max,
                            IE_MEMORY_QUEUE_EVENTS_MAX);
    queue = ie__calloc(1, sizeof *queue);
    if (queue == NULL)
        return ie_error_set(err, IE_ENOMEM, "open queue: out of memory");
    queue->capacity = events_max != 0 ? events_max : IE_MEMORY_QUEUE_EVENTS;
    (void)pthread_mutex_init(&queue->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&queue->filled, &attr);
    (void)pthread_condattr_destroy(&attr);
    queue->member.take = queue_take;
    queue->member.user = queue;
    queue->member.release = queue_release;
    queue->slots = ie__calloc(queue->capacity, sizeof *queue->slots);
    if (queue->slots == NULL)
        status = ie_error_set(err, IE_ENOMEM, "open queue: out of memory");
    else
        status = member_join(&queue->member, url, pattern, err);
    if (status != IE_OK) {
        queue_release(&queue->member);
        return status;
    }
    *out = queue;
    return IE_OK;
}

static struct timespec
deadline_in(int timeout_ms)
{
    struct timespec deadline;

    (void)clock_gettime(CLOCK_MONOTONIC, &deadline); /* cannot fail for this clock */
    deadline.tv_sec += timeout_ms / 1000;
    deadline.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (deadline.tv_nsec >= 1000000000L) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000L;
    }
    return deadline;
}

ie_status
ie_memory_queue_next(ie_event **out, ie_memory_queue *queue, int timeout_ms)
{
    const struct timespec deadline = deadline_in(timeout_ms > 0 ? timeout_ms : 0);
    bool                  is_late = timeout_ms == 0;
    ie_status             status = IE_ETIMEDOUT;

    (void)pthread_mutex_lock(&queue->lock);
    while (queue->count == 0 && !is_late) {
        queue->waiting++;
        if (timeout_ms < 0)
            (void)pthread_cond_wait(&queue->filled, &queue->lock);
        else
            is_late = pthread_cond_timedwait(&queue->filled, &queue->lock, &deadline) == ETIMEDOUT;
        queue->waiting--;
    }
    if (queue->count != 0) {
        *out = queue->slots[queue->first].event;
        queue->bytes -= queue->slots[queue->first].bytes;
        queue->first = (queue->first + 1) % queue->capacity;
        queue->count--;
        status = IE_OK;
    }
    (void)pthread_mutex_unlock(&queue->lock);
    return status;
}

void
ie_memory_queue_close(ie_memory_queue *queue)
{
    if (queue != NULL)
        member_leave(&queue->member);
}

ie_status
ie_memory_counters_get(ie_memory_counters *counters, const char *url, ie_error *err)
{
    static const char *const NO_OPTIONS[] = {NULL};
    ie_memory_counters       now = {.size = sizeof now};
    const size_t             size = counters->size;
    ie__url                  parsed;
    const char              *name = "";
    memory_channel          *channel;
    ie_status                status;

    if (size < sizeof counters->size)
        return ie_error_set(err, IE_EINVAL, "set the counters' size first");
    status = name_parse(&name, &parsed, url, NO_OPTIONS, err);
    if (status == IE_OK)
        status = channel_ref(&channel, name, false, err);
    if (status != IE_OK)
        return status;
    now.delivered = atomic_load(&channel->verdicts[IE_DELIVERED]);
    now.sunk = atomic_load(&channel->sunk);
    now.retried = atomic_load(&channel->verdicts[IE_RETRY]);
    now.rejected = atomic_load(&channel->verdicts[IE_REJECTED]);
    now.unreachable = atomic_load(&channel->verdicts[IE_UNREACHABLE]);
    now.subscribers = atomic_load(&channel->member_count);
    channel_unref(channel);
    memset(counters, 0, size); /* what a newer caller knows and we do not reads as 0 */
    memcpy(counters, &now, size < sizeof now ? size : sizeof now);
    counters->size = size;
    return IE_OK;
}

/* ---- the publisher ------------------------------------------------------------------------ */

static ie_status
memory_open(void **self, const char *url, ie_publisher_env *env, ie_error *err)
{
    static const char *const OPTIONS[] = {"sink", NULL};
    memory_publisher        *publisher;
    ie__url                  parsed;
    const char              *name = "";
    bool                     is_sink;
    ie_status                status = name_parse(&name, &parsed, url, OPTIONS, err);

    if (status == IE_OK)
        status = ie__url_option_bool(&is_sink, &parsed, "sink", false, err);
    if (status != IE_OK)
        return status;
    publisher = ie__calloc(1, sizeof *publisher);
    if (publisher == NULL)
        return ie_error_set(err, IE_ENOMEM, "memory:%s: out of memory", name);
    status = channel_ref(&publisher->channel, name, true, err);
    if (status != IE_OK) {
        ie__free(publisher);
        return status;
    }
    publisher->env = env;
    publisher->is_sink = is_sink;
    *self = publisher;
    return IE_OK;
}

/* What a handler's answer means. */
static ie_verdict
verdict_of(ie_status status)
{
    switch (status) {
    case IE_OK: return IE_DELIVERED;
    case IE_EUNREACHABLE: return IE_UNREACHABLE;
    case IE_EREFUSED: return IE_REJECTED;
    default: return IE_RETRY;
    }
}

/* Offer one event to all who match. The first that does not take it ends the round: the event
 * comes again, and those after it should not see it twice. */
static ie_verdict
event_offer(memory_publisher *publisher, const ie_event *event, uint64_t *sunk, ie_error *err)
{
    bool is_taken = false;

    for (member *taker = publisher->channel->members; taker != NULL; taker = taker->next) {
        ie_status status;

        if (taker->is_closed ||
            !(taker->takes_all || ie_pattern_matches(taker->pattern, event->topic)))
            continue;
        status = taker->take(taker->user, event, err);
        if (status != IE_OK) {
            (void)ie_error_set(err, status, "%s", ie_status_text(status));
            return verdict_of(status);
        }
        is_taken = true;
    }
    if (is_taken)
        return IE_DELIVERED;
    if (publisher->is_sink) {
        ++*sunk;
        return IE_DELIVERED;
    }
    (void)ie_error_set(err, IE_EUNREACHABLE, "no subscribers on memory:%s for topic %s",
                       publisher->channel->name, event->topic);
    return IE_UNREACHABLE;
}

static void
batch_sink(memory_publisher *publisher, const ie_outgoing *events, size_t count)
{
    memory_channel *channel = publisher->channel;

    for (size_t i = 0; i < count; i++)
        ie_report(publisher->env, events[i].ticket, IE_DELIVERED, NULL);
    (void)atomic_fetch_add_explicit(&channel->sunk, count, memory_order_relaxed);
    (void)atomic_fetch_add_explicit(&channel->verdicts[IE_DELIVERED], count, memory_order_relaxed);
}

static void
memory_publish(void *self, const ie_outgoing *events, size_t count)
{
    memory_publisher *publisher = self;
    memory_channel   *channel = publisher->channel;
    uint64_t          verdicts[4] = {0};
    uint64_t          sunk = 0;
    unsigned          released = 0;
    ie_verdict        verdict = IE_DELIVERED;
    ie_error          err = IE_ERROR_INIT;

    if (publisher->is_sink && atomic_load(&channel->member_count) == 0) {
        batch_sink(publisher, events, count);
        return;
    }
    (void)pthread_mutex_lock(&channel->lock);
    channel->handing_out++;
    for (size_t i = 0; i < count; i++) {
        /* Unreachable holds for the rest of the batch, so that it stays in order for its takers. */
        if (verdict != IE_UNREACHABLE) {
            ie_error_clear(&err);
            verdict = event_offer(publisher, events[i].event, &sunk, &err);
        }
        verdicts[verdict]++;
        ie_report(publisher->env, events[i].ticket, verdict,
                  verdict != IE_DELIVERED ? err.message : NULL);
    }
    if (--channel->handing_out == 0)
        released = members_reap(channel);
    (void)pthread_mutex_unlock(&channel->lock);
    for (; released > 0; released--)
        channel_unref(channel); /* never the last: the publisher holds one */
    for (int i = 0; i < 4; i++)
        (void)atomic_fetch_add_explicit(&channel->verdicts[i], verdicts[i], memory_order_relaxed);
    (void)atomic_fetch_add_explicit(&channel->sunk, sunk, memory_order_relaxed);
}

static void
memory_close(void *self)
{
    memory_publisher *publisher = self;

    channel_unref(publisher->channel);
    ie__free(publisher);
}

const ie_publisher_ops ie__publisher_memory = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "memory",
    .flags = IE_PUBLISHER_NONBLOCKING,
    .open = memory_open,
    .publish = memory_publish,
    .close = memory_close,
};
