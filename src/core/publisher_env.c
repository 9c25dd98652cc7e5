/* The publisher's way back to its host. Lives below the publishers, so that none of them needs
 * to know the worker. */
#include <ie/publisher.h>

#include <stdio.h>

#include "core.h"
#include "publisher_env.h"

void
ie_report(ie_publisher_env *env, uint64_t ticket, ie_verdict verdict, const char *reason)
{
    env->report(env->user, ticket, verdict, reason, 0);
}

void
ie_report_retry_after(ie_publisher_env *env, uint64_t ticket, const char *reason, uint32_t delay_ms)
{
    env->report(env->user, ticket, IE_RETRY, reason, delay_ms);
}

void
ie_publisher_log(ie_publisher_env *env, ie_log_level level, const char *fmt, ...)
{
    char    line[1024];
    va_list args;

    if (env->logger.fn == NULL)
        return;
    va_start(args, fmt);
    (void)vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    env->logger.fn(env->logger.user, level, env->name != NULL ? env->name : "publisher", line);
}
