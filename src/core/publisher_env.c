/* The publisher's way back to its host. Lives below the publishers, so that none of them needs
 * to know the worker. */
#include <ie/publisher_env.h>

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

ie_status
ie_publisher_env_new(ie_publisher_env **out, ie_report_fn report, void *user,
                     const ie_logger *logger, ie_error *err)
{
    ie_publisher_env *env;

    if (report == NULL)
        return ie_error_set(err, IE_EINVAL, "a publisher's env needs a report function");
    env = ie__calloc(1, sizeof *env);
    if (env == NULL)
        return ie_error_set(err, IE_ENOMEM, "publisher's env: out of memory");
    env->report = report;
    env->user = user;
    if (logger != NULL)
        env->logger = *logger;
    *out = env;
    return IE_OK;
}

void
ie_publisher_env_free(ie_publisher_env *env)
{
    ie__free(env);
}
