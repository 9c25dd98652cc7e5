/*
 * Runs one publisher: on the worker's own thread when it never blocks, on a thread of its own
 * otherwise. Either way open, publish and close come from one thread, as publishers are promised.
 */
#ifndef IE_RUNNER_H
#define IE_RUNNER_H

#include <ie/publisher.h>

#include "publisher_env.h"

typedef struct ie__runner ie__runner;

/* Opens the publisher; returns when it is open or has failed. env is borrowed. wake is called (from
 * the publisher's thread) when it may be given more. */
ie_status ie__runner_open(ie__runner **out, const ie_publisher_ops *ops, const char *url,
                          ie_publisher_env *env, void (*wake)(void *user), void *user,
                          ie_error *err);

/* Hand over a batch; the array is copied. False when as much as is sensible waits already. */
bool ie__runner_publish(ie__runner *runner, const ie_outgoing *events, size_t count);

/* Is there room for another batch? */
bool ie__runner_has_room(ie__runner *runner);

/* Close the publisher and forget what waits for it: after its return no answer comes. False while
 * publish() is busy (then nothing was done). The next ie__runner_publish() opens it again, and
 * answers IE_UNREACHABLE when that fails. */
bool ie__runner_shut(ie__runner *runner);

/* Waits at most wait_ms for a publish() that blocks. False: it still does; the runner is left
 * behind, together with its thread, and must not be freed. */
bool ie__runner_close(ie__runner *runner, uint32_t wait_ms);

#endif
