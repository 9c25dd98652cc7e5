/*
 * A lane: one destination's way from the log to its publisher. Reads a window, hands out, collects
 * one verdict per event, advances the cursor over the contiguous prefix, writes exceptions as
 * deliveries. Everything runs on the worker's thread but the answers, which come from anywhere.
 */
#ifndef IE_LANE_H
#define IE_LANE_H

#include <ie/worker.h>

#include "log.h"

/* What all lanes of a worker share. */
typedef struct ie__lane_shared {
    sqlite3                 *db;
    ie__cursors             *cursors;
    ie__reader              *reader;
    const ie_worker_options *options; /* imported and checked; clock never NULL */
    const char              *owner;
    void (*wake)(void *user); /* any thread */
    void *wake_user;
} ie__lane_shared;

typedef struct ie__lane ie__lane;

/* Opens the publisher. destination's strings are borrowed for the lane's life. */
ie_status ie__lane_open(ie__lane **out, const ie__lane_shared *shared,
                        const ie_destination *destination, ie_error *err);

typedef struct ie__lane_news {
    int64_t
         wake_at_ms;  /* boot clock: when there is something to do without news; INT64_MAX: never */
    bool is_busy;     /* more to do at once */
    bool is_idle;     /* nothing is due, nothing in flight, everything is written down */
    ie_status status; /* trouble of this step */
    ie_error  error;
} ie__lane_news;

/*
 * Do what can be done now without waiting. has_news: someone may have committed events. flush:
 * write down at once what is known.
 */
void ie__lane_step(ie__lane *lane, bool has_news, bool flush, ie__lane_news *news);

/* Take nothing new; true when nothing is in flight and everything is written down. */
bool ie__lane_drain(ie__lane *lane);

/* The file is not the one at its path any more: forget it all. */
void ie__lane_evict(ie__lane *lane);

/* What keeps it from publishing what is due, in words; IE_OK when nothing does. */
ie_status ie__lane_hinder(const ie__lane *lane, ie_error *err);

bool        ie__lane_has_lease(const ie__lane *lane);
const char *ie__lane_name(const ie__lane *lane);

/* Waiting deliveries that have expired; one transaction of its own. more: set when some are left.
 */
ie_status ie__lane_expire(ie__lane *lane, bool *more, ie_error *err);

void ie__lane_stats(const ie__lane *lane, ie_destination_stats *stats); /* any thread */

/*
 * Close the publisher, write down what it still said, give the lease back. False: the publisher
 * blocks; it and the lane are left behind, the lease runs out by itself.
 */
bool ie__lane_close(ie__lane *lane, uint32_t wait_ms);

/* After ie__lane_close() gave true. NULL is accepted. */
void ie__lane_free(ie__lane *lane);

#endif
