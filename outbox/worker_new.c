/* A worker from its options: checked, and copied with every string in them. */
#include "worker_parts.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define DESTINATIONS_MAX 64

static ie_status
keep_string(ie_worker *worker, const char **text, ie_error *err)
{
    char *copy;

    if (*text == NULL)
        return IE_OK;
    copy = ie__strdup(*text);
    if (copy == NULL || worker->string_count == worker->string_capacity) {
        ie__free(copy);
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    }
    worker->strings[worker->string_count++] = copy;
    *text = copy;
    return IE_OK;
}

static ie_status
check_destination(const ie_destination *to, ie_error *err)
{
    const size_t length = to->name != NULL ? strlen(to->name) : 0;

    if (length == 0 || length > IE__CURSOR_NAME_BYTES_MAX ||
        strspn(to->name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != length)
        return ie_error_set(err, IE_EINVAL,
                            "destination name '%s' must be 1 to %d characters of a-z 0-9 . _ -",
                            to->name != NULL ? to->name : "", IE__CURSOR_NAME_BYTES_MAX);
    if (to->url == NULL || to->url[0] == '\0')
        return ie_error_set(err, IE_EINVAL, "destination %s has no URL", to->name);
    if ((unsigned)to->order > IE_ORDER_STRICT || (unsigned)to->start > IE_START_NOW)
        return ie_error_set(err, IE_EINVAL,
                            "destination %s: order or start is not one of the constants", to->name);
    return IE_OK;
}

static ie_status
copy_destinations(ie_worker *worker, ie_error *err)
{
    ie_worker_options   *options = &worker->options;
    const ie_destination single = {.size = sizeof single,
                                   .name = options->name != NULL ? options->name : "outbox",
                                   .url = options->to};
    const char *from = (const char *)(options->to != NULL ? &single : options->destinations);
    ie_status   status = IE_OK;

    if (options->to != NULL)
        options->destination_count = 1;
    if (from == NULL || options->destination_count == 0 ||
        options->destination_count > DESTINATIONS_MAX)
        return ie_error_set(err, IE_EINVAL,
                            "a worker needs where to publish: set options.to to a URL such as "
                            "socket://127.0.0.1:9100, or give 1 to %d destinations",
                            DESTINATIONS_MAX);
    worker->destinations = ie__calloc(options->destination_count, sizeof *worker->destinations);
    if (worker->destinations == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    for (size_t i = 0; status == IE_OK && i < options->destination_count; i++) {
        ie_destination *to = &worker->destinations[i];
        size_t          size;

        memcpy(&size, from, sizeof size);
        status = ie__struct_import(to, sizeof *to, from, sizeof *to);
        if (status != IE_OK)
            return ie_error_set(err, status, "destination %zu: size is not set", i);
        from += size;
        status = check_destination(to, err);
        for (size_t j = 0; status == IE_OK && j < i; j++)
            if (strcmp(worker->destinations[j].name, to->name) == 0)
                status = ie_error_set(err, IE_EINVAL, "two destinations are named %s", to->name);
        if (status == IE_OK)
            status = keep_string(worker, &to->name, err);
        if (status == IE_OK)
            status = keep_string(worker, &to->url, err);
        if (status == IE_OK)
            status = keep_string(worker, &to->topics, err);
    }
    options->destinations = worker->destinations;
    return status;
}

static ie_status
copy_processors(ie_worker *worker, ie_error *err)
{
    ie_worker_options *options = &worker->options;
    const char        *from = (const char *)options->processors;
    ie_status          status = IE_OK;

    if (options->processor_count > PROCESSORS_MAX || (options->processor_count > 0 && from == NULL))
        return ie_error_set(err, IE_EINVAL,
                            "at most %d processors, and options.processors with them",
                            PROCESSORS_MAX);
    worker->processors = ie__calloc(options->processor_count, sizeof *worker->processors);
    if (worker->processors == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    for (size_t i = 0; status == IE_OK && i < options->processor_count; i++) {
        ie_processor *processor = &worker->processors[i];
        size_t        size;

        memcpy(&size, from, sizeof size);
        status = ie__struct_import(processor, sizeof *processor, from, sizeof *processor);
        if (status != IE_OK)
            return ie_error_set(err, status, "processor %zu: size is not set", i);
        from += size;
        if (processor->run == NULL || processor->name == NULL || processor->interval_ms == 0 ||
            processor->interval_ms > 86400000)
            return ie_error_set(
                err, IE_EINVAL,
                "processor %zu needs a name, run, and an interval_ms of 1 to 86400000", i);
        status = keep_string(worker, &processor->name, err);
    }
    options->processors = worker->processors;
    return status;
}

void
ie__worker_free(ie_worker *worker)
{
    if (worker->event_fd >= 0)
        (void)close(worker->event_fd);
    for (size_t i = 0; i < worker->string_count; i++)
        ie__free(worker->strings[i]);
    ie__free(worker->strings);
    ie__free(worker->last_stats);
    ie__free(worker->destinations);
    ie__free(worker->processors);
    (void)pthread_cond_destroy(&worker->changed);
    (void)pthread_mutex_destroy(&worker->lock);
    ie__free(worker);
}

ie_status
ie__worker_new(ie_worker **out, const ie_worker_options *given, ie_error *err)
{
    ie_worker        *worker;
    ie_worker_options own;
    ie_status         status;

    if (out == NULL || given == NULL)
        return ie_error_set(err, IE_EINVAL, "open worker: out and options are required");
    ie_worker_options_init(&own, sizeof own);
    status = ie__struct_import(&own, sizeof own, given, sizeof own);
    if (status != IE_OK)
        return ie_error_set(
            err, status,
            "open worker: options.size is %zu, expected %zu; use IE_WORKER_OPTIONS_INIT",
            given->size, sizeof own);
    if (own.db == NULL && own.open_db == NULL)
        return ie_error_set(err, IE_EINVAL,
                            "open worker: set options.db to the path of the database");
    if (own.publishers == NULL)
        return ie_error_set(err, IE_EINVAL,
                            "open worker: options.publishers is NULL; use IE_WORKER_OPTIONS_INIT");
    status = ie__options_check(&own, err);
    if (status != IE_OK)
        return status;
    worker = ie__calloc(1, sizeof *worker);
    if (worker == NULL)
        return ie_error_set(err, IE_ENOMEM, "open worker: out of memory");
    worker->options = own;
    worker->options.clock = ie__clock_or_system(own.clock);
    worker->generation = ie__fork_generation();
    worker->seen_version = -1;
    (void)pthread_mutex_init(&worker->lock, NULL);
    (void)pthread_cond_init(&worker->changed, NULL);
    worker->string_capacity = 2 + 3 * DESTINATIONS_MAX + PROCESSORS_MAX;
    worker->strings = ie__calloc(worker->string_capacity, sizeof *worker->strings);
    worker->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (worker->strings == NULL || worker->event_fd < 0)
        status = ie_error_set(err, IE_ENOMEM, "open worker: %s", strerror(errno));
    if (status == IE_OK)
        status = keep_string(worker, &worker->options.db, err);
    if (status == IE_OK)
        status = copy_destinations(worker, err);
    if (status == IE_OK)
        status = copy_processors(worker, err);
    if (status != IE_OK) {
        ie__worker_free(worker);
        return status;
    }
    worker->options.to = NULL;
    worker->options.name = NULL;
    *out = worker;
    return IE_OK;
}
