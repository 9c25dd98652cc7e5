/**
 * @file
 * For those who run publishers themselves - a test, the conformance suite, a bridge without an
 * outbox - and so stand where the worker stands. Authors and users of publishers need
 * <ie/publisher.h> only.
 */
#ifndef IE_PUBLISHER_ENV_API_H
#define IE_PUBLISHER_ENV_API_H

#include <ie/publisher.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Receives what a publisher says about one event.
 *
 * @param ticket    as given to publish(); a faulty publisher may name one that never was.
 * @param reason    borrowed for the call; NULL when there is none.
 * @param delay_ms  with IE_RETRY: not sooner than this; 0 when the publisher did not say.
 *
 * Threads: any, several at once. Must not call the publisher.
 */
typedef void (*ie_report_fn)(void *user, uint64_t ticket, ie_verdict verdict, const char *reason,
                             uint32_t delay_ms);

/**
 * Make what ie_publisher_ops.open() wants as its env.
 *
 * @param[out] out  transferred: release with ie_publisher_env_free() after close() returned.
 * @param user      borrowed until then; handed to @p report.
 * @param logger    copied; NULL means silent.
 * @return IE_OK, IE_EINVAL (no report function) or IE_ENOMEM. Threads: any.
 */
IE_API ie_status ie_publisher_env_new(ie_publisher_env **out, ie_report_fn report, void *user,
                                      const ie_logger *logger, ie_error *err);

/** Release it. NULL is accepted. */
IE_API void ie_publisher_env_free(ie_publisher_env *env);

#ifdef __cplusplus
}
#endif
#endif
