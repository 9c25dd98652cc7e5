/**
 * @file
 * Publishers: transports to send with. Write your own, register it, name it by URL.
 *
 * A blocking transport reports in a loop before it returns from publish; a pipelined one
 * keeps thousands in flight and reports from wherever its answers come. Both are one table.
 */
#ifndef IE_PUBLISHER_H
#define IE_PUBLISHER_H

#include <ie/event.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What became of one event. */
typedef enum ie_verdict {
    IE_DELIVERED = 0,   /* the receiver has it: the cursor may pass                */
    IE_RETRY = 1,       /* refused for now: spends an attempt, backs off           */
    IE_UNREACHABLE = 2, /* the transport is down: spends nothing, the breaker opens */
    IE_REJECTED = 3     /* will never work: dead letter at once, with the reason   */
} ie_verdict;

/** One event on its way out. */
typedef struct ie_outgoing {
    const ie_event *event;   /* borrowed until the ticket is answered */
    uint64_t        ticket;  /* hand back to ie_report() */
    uint32_t        attempt; /* 1 for the first */
    uint32_t        reserved;
} ie_outgoing;

/** The publisher's way back into the worker. One per open publisher. */
typedef struct ie_publisher_env ie_publisher_env;

/**
 * Answer one event. Every ticket is answered exactly once; a second answer, one for an unknown
 * ticket, or one after close returned is counted and ignored.
 *
 * @param reason  for every verdict but IE_DELIVERED: one line that a person can act on;
 *                copied (at most 500 bytes). NULL is accepted.
 * Threads: any. Blocks: no.
 */
IE_API void ie_report(ie_publisher_env *env, uint64_t ticket, ie_verdict verdict,
                      const char *reason);

/** As ie_report(IE_RETRY), but not sooner than @p delay_ms from now (Retry-After). */
IE_API void ie_report_retry_after(ie_publisher_env *env, uint64_t ticket, const char *reason,
                                  uint32_t delay_ms);

/** Log through the worker's logger. Threads: any. */
IE_API void ie_publisher_log(ie_publisher_env *env, ie_log_level level, const char *fmt, ...)
    IE_PRINTF(3, 4);

/**
 * publish() hands the events over and returns at once; the answers come from elsewhere (or at
 * once). Without this flag the publisher gets a thread of its own, so that it may block.
 */
#define IE_PUBLISHER_NONBLOCKING 0x1u

/**
 * A publisher, as the worker sees it: open, any number of publish, close, all from one thread.
 * A publisher never calls back into the worker except through ie_report() and
 * ie_publisher_log(). Keep one const table per publisher.
 */
typedef struct ie_publisher_ops {
    size_t      size;   /* sizeof(ie_publisher_ops) where the table was built */
    const char *scheme; /* "lines" serves URLs that start with lines: */
    uint32_t    flags;  /* IE_PUBLISHER_... */
    uint32_t    reserved;

    /**
     * Required. Make a publisher for @p url (borrowed for the call). May block unless
     * IE_PUBLISHER_NONBLOCKING. A peer that is away is no failure: open, then answer
     * IE_UNREACHABLE. On failure *self is ignored and close is not called.
     */
    ie_status (*open)(void **self, const char *url, ie_publisher_env *env, ie_error *err);

    /**
     * Required. Start sending. Each event must be answered exactly once by ie_report(), before
     * this returns or later, from any thread. The array is borrowed for the call, the events
     * until they are answered. Events of one key are never in flight together, except with
     * order none.
     */
    void (*publish)(void *self, const ie_outgoing *events, size_t count);

    /**
     * Required. Release everything; no ie_report() may follow its return. Cannot fail.
     * Unanswered events count as IE_UNREACHABLE afterwards: they are sent again.
     */
    void (*close)(void *self);

    /** Optional (NULL). Push out what the publisher still buffers; called when a window ends. */
    void (*flush)(void *self);
} ie_publisher_ops;

/** A set of publishers, found by the scheme of a URL. */
typedef struct ie_publishers ie_publishers;

/**
 * The publishers that this library was built with: "memory", "file", "socket", "unix". Shared and
 * unchangeable; copy it with ie_publishers_new() to add to it. Never NULL. Threads: any.
 */
IE_API const ie_publishers *ie_publishers_builtin(void);

/**
 * A new set that starts with everything in @p base (may be NULL: empty).
 *
 * @param[out] out  transferred: release with ie_publishers_free(), not before the workers that
 *                  use it are closed.
 * @return IE_OK or IE_ENOMEM.
 */
IE_API ie_status ie_publishers_new(ie_publishers **out, const ie_publishers *base, ie_error *err);

/**
 * Add a table. It is imported: a table built against an older library reads as NULL in the slots
 * that it lacks. Refused, in words: a missing required slot, a scheme that is taken or not
 * [a-z][a-z0-9+.-]*, a table from a newer library that uses slots which this one lacks.
 *
 * @return IE_OK, IE_EINVAL, IE_EEXIST, IE_ENOTSUP or IE_ENOMEM. Threads: owner.
 */
IE_API ie_status ie_publishers_add(ie_publishers *publishers, const ie_publisher_ops *ops,
                                   ie_error *err);

/**
 * The table that serves @p url, borrowed from the set; IE_ENOTFOUND names the schemes that
 * exist. Threads: any, while nobody adds.
 */
IE_API ie_status ie_publishers_find(const ie_publisher_ops **out, const ie_publishers *publishers,
                                    const char *url, ie_error *err);

/** Release a set of one's own. NULL is accepted. */
IE_API void ie_publishers_free(ie_publishers *publishers);

#ifdef __cplusplus
}
#endif
#endif
