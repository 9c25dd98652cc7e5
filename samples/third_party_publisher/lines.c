/* The whole publisher. It blocks, so it may simply answer before publish returns. */
#include "lines.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct lines {
    ie_publisher_env *env;
    FILE             *out; /* NULL: could not be opened; tried again with each batch */
    char              path[];
} lines;

static ie_status
lines_open(void **self, const char *url, ie_publisher_env *env, ie_error *err)
{
    const char *path = url + strlen("lines:");
    lines      *made;

    if (strchr(path, '?') != NULL)
        return ie_error_set(err, IE_EINVAL, "lines: has no options: %s", strchr(path, '?'));
    made = calloc(1, sizeof *made + strlen(path) + 1);
    if (made == NULL)
        return ie_error_set(err, IE_ENOMEM, "lines: out of memory");
    made->env = env;
    strcpy(made->path, path);
    *self = made;
    return IE_OK;
}

static void
lines_publish(void *self, const ie_outgoing *events, size_t count)
{
    lines *me = self;

    if (me->out == NULL)
        me->out = strcmp(me->path, "stderr") == 0 ? stderr : fopen(me->path, "a");
    for (size_t i = 0; i < count; i++) {
        const ie_event *event = events[i].event;

        /* Flushed before the answer: what is delivered must not wait in a buffer of ours. */
        if (me->out != NULL && fprintf(me->out, "%s %s\n", event->topic, event->id) > 0 &&
            fflush(me->out) == 0)
            ie_report(me->env, events[i].ticket, IE_DELIVERED, NULL);
        else
            ie_report(me->env, events[i].ticket, IE_UNREACHABLE, strerror(errno));
    }
}

static void
lines_close(void *self)
{
    lines *me = self;

    if (me->out != NULL && me->out != stderr)
        (void)fclose(me->out);
    free(me);
}

const ie_publisher_ops LINES = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "lines",
    .open = lines_open,
    .publish = lines_publish,
    .close = lines_close,
};
