/**
 * @file
 * The receiving side of memory:NAME, the transport inside one process: for tests, and for
 * programs whose consumers live in the process that publishes.
 *
 * NAME is [A-Za-z0-9._-]{1,64} and names a channel that exists while somebody uses it; either
 * side may come first. Every subscription and queue whose pattern matches gets the event (fan-out).
 * An event counts as delivered when all of them took it. When one did not, the event comes again
 * to all of them: at least once, as everywhere.
 *
 * An event that nobody takes is not lost: its verdict is IE_UNREACHABLE, so the outbox keeps
 * it and tries again without spending an attempt. With memory:NAME?sink=true it is
 * accepted and counted instead: a null device for benchmarks, and a filter for channels on which
 * only some topics matter.
 */
#ifndef IE_MEMORY_H
#define IE_MEMORY_H

#include <ie/event.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IE_MEMORY_QUEUE_EVENTS     1024 /* when events_max is 0 */
#define IE_MEMORY_QUEUE_EVENTS_MAX 1000000
#define IE_MEMORY_QUEUE_BYTES_MAX  67108864 /* of copied events waiting in one queue */

typedef struct ie_memory_subscription ie_memory_subscription;
typedef struct ie_memory_queue        ie_memory_queue;

/**
 * Take one event.
 *
 * @param event  borrowed for the call.
 * @param err    set it to give the reason that `ie why` prints later.
 * @return IE_OK: delivered. IE_EREFUSED: never again, dead letter at once. IE_EUNREACHABLE:
 *         what the handler needs is down, spends nothing. IE_EHANDLER or any other: retry,
 *         spends an attempt.
 *
 * Threads: runs on the publishing worker's thread, one handler of a channel at a time; while it
 * runs that worker waits, so long work belongs into a queue. It may subscribe and unsubscribe,
 * itself too.
 */
typedef ie_status (*ie_memory_handler)(void *user, const ie_event *event, ie_error *err);

/**
 * Hand every event on a channel that matches to a handler.
 *
 * @param[out] out  transferred: release with ie_memory_unsubscribe(). Untouched on failure.
 * @param url       "memory:NAME"; options belong to the publisher and are refused here.
 * @param pattern   topics to take, as in ie_pattern_check(); NULL means all.
 * @param user      borrowed until ie_memory_unsubscribe() returned.
 * @return IE_OK, IE_EINVAL or IE_ENOMEM.
 *
 * Threads: any. Blocks: while a batch is being handed out on this channel.
 */
IE_API ie_status ie_memory_subscribe(ie_memory_subscription **out, const char *url,
                                     const char *pattern, ie_memory_handler handler, void *user,
                                     ie_error *err);

/**
 * No call of the handler starts after this returned, and none is running, except the one that
 * called it. NULL is accepted. Threads: any. Blocks: while a batch is being handed out.
 */
IE_API void ie_memory_unsubscribe(ie_memory_subscription *subscription);

/**
 * Keep copies of the matching events until someone pulls them.
 *
 * A full queue answers IE_UNREACHABLE and not IE_RETRY: a slow reader is no fault of the event,
 * and must not use up its attempts until it is dead. The event stays in the outbox, and the
 * worker comes back when its breaker lets it. An event counts as delivered once it is in the
 * queue: what waits there is lost with the process. Who cannot afford that uses a handler.
 *
 * @param[out] out    transferred: release with ie_memory_queue_close(). Untouched on failure.
 * @param events_max  1..IE_MEMORY_QUEUE_EVENTS_MAX; 0 means IE_MEMORY_QUEUE_EVENTS. The copies
 *                    are also bounded by IE_MEMORY_QUEUE_BYTES_MAX together.
 * @return IE_OK, IE_EINVAL or IE_ENOMEM. Threads and blocking as ie_memory_subscribe().
 */
IE_API ie_status ie_memory_queue_open(ie_memory_queue **out, const char *url, const char *pattern,
                                      uint32_t events_max, ie_error *err);

/**
 * The oldest waiting event.
 *
 * @param[out] out    transferred: release with ie_event_free(). Untouched on failure.
 * @param timeout_ms  how long to wait for one; 0: do not wait, -1: for ever.
 * @return IE_OK, or IE_ETIMEDOUT: there was none.
 *
 * Threads: any; several may pull from one queue. Blocks: at most @p timeout_ms.
 */
IE_API ie_status ie_memory_queue_next(ie_event **out, ie_memory_queue *queue, int timeout_ms);

/** Release the queue with the events still in it. Nobody may be pulling. NULL is accepted. */
IE_API void ie_memory_queue_close(ie_memory_queue *queue);

/** What happened on a channel since somebody first used it. Set size before asking. */
typedef struct ie_memory_counters {
    size_t   size;        /* sizeof(ie_memory_counters) where this was compiled */
    uint64_t delivered;   /* verdict IE_DELIVERED, those that nobody took (sunk) included */
    uint64_t sunk;        /* accepted with sink=true although nobody took them */
    uint64_t retried;     /* verdict IE_RETRY */
    uint64_t rejected;    /* verdict IE_REJECTED */
    uint64_t unreachable; /* verdict IE_UNREACHABLE */
    uint32_t subscribers; /* subscriptions and queues at this moment */
    uint32_t reserved;
} ie_memory_counters;

/**
 * Read a channel's counters. They live as long as a publisher, a subscription or a queue does.
 *
 * @return IE_OK, IE_EINVAL, or IE_ENOTFOUND when nobody uses the channel. Threads: any.
 */
IE_API ie_status ie_memory_counters_get(ie_memory_counters *counters, const char *url,
                                        ie_error *err);

#ifdef __cplusplus
}
#endif
#endif
