/*
 * What a publisher's env is made of: whoever runs publishers (the worker, the conformance suite)
 * fills one in and hands it to open(). Publishers see it only through ie_report() and
 * ie_publisher_log(), so it may change without anyone rebuilding.
 */
#ifndef IE_PUBLISHER_ENV_H
#define IE_PUBLISHER_ENV_H

#include <ie/publisher_env.h>

struct ie_publisher_env {
    /*
     * Required. One verdict; reason is borrowed, NULL when there is none; delay_ms is 0 unless
     * the publisher asked for a later retry. Called from any thread, also for tickets that the
     * host never gave out: it counts those and ignores them.
     */
    ie_report_fn report;
    void        *user;
    ie_logger    logger;
    const char  *name; /* the module in log lines, for example the destination's name */
};

#endif
