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

/* Close and open anew: after its return no answer of the old one comes. False while publish() is
 * busy (then nothing was done). When opening fails the runner stays closed; call again later. */
bool ie__runner_reopen(ie__runner *runner, ie_status *status, ie_error *err);

/* Waits at most wait_ms for a publish() that blocks. False: it still does; the runner is left
 * behind, together with its thread, and must not be freed. */
bool ie__runner_close(ie__runner *runner, uint32_t wait_ms);

#endif
