/* The worker's side of the contract in <ie/publisher.h>, played with a suspicious mind. */
#include "conformance.h"

#include <ie/publisher_env.h>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define WAIT_MS_MAX  20000              /* unless the row says otherwise */
#define EVENTS_MAX   1100               /* of one case */
#define TICKET_FIRST 0x9000000000000001 /* uses all 64 bits: a narrower copy is noticed */
#define LARGE_BYTES  ((size_t)1 << 20)

/* ---- the host: hands events out, keeps the book of answers -------------------------------- */

typedef struct handed {
    ie_event  *event; /* the publisher's copy; released when it is answered */
    ie_verdict verdict;
    unsigned   answers;
    char       reason[128];
} handed;

typedef struct suite_host {
    const ie_conformance_row *row;
    void                     *peer;
    void                     *self; /* the open publisher; NULL: none */
    ie_publisher_env         *env;
    char                     *why;
    size_t                    why_size;
    bool                      is_good;
    int                       wait_ms;
    pthread_mutex_t           lock;
    pthread_cond_t            answered;
    size_t                    count; /* handed out so far */
    size_t                    answered_count;
    size_t                    doubled;
    size_t                    unknown;
    size_t                    bad_verdicts;
    size_t                    mute; /* not delivered, and no reason */
    handed                    events[EVENTS_MAX];
} suite_host;

/* The first complaint stays. */
static bool complain(suite_host *host, const char *fmt, ...) IE_PRINTF(2, 3);
static bool
complain(suite_host *host, const char *fmt, ...)
{
    va_list args;

    if (host->is_good) {
        va_start(args, fmt);
        (void)vsnprintf(host->why, host->why_size, fmt, args);
        va_end(args);
    }
    host->is_good = false;
    return false;
}

static void
host_report(void *user, uint64_t ticket, ie_verdict verdict, const char *reason, uint32_t delay_ms)
{
    suite_host    *host = user;
    const uint64_t index = ticket - TICKET_FIRST;

    (void)delay_ms;
    (void)pthread_mutex_lock(&host->lock);
    if (index >= host->count) {
        host->unknown++;
    } else if (host->events[index].answers++ != 0) {
        host->doubled++;
    } else {
        handed *answered = &host->events[index];

        if ((int)verdict < IE_DELIVERED || verdict > IE_REJECTED)
            host->bad_verdicts++;
        else if (verdict != IE_DELIVERED && (reason == NULL || reason[0] == '\0'))
            host->mute++;
        answered->verdict = verdict;
        (void)snprintf(answered->reason, sizeof answered->reason, "%s",
                       reason != NULL ? reason : "");
        ie_event_free(answered->event); /* whoever still reads it reads freed memory */
        answered->event = NULL;
        host->answered_count++;
        (void)pthread_cond_broadcast(&host->answered);
    }
    (void)pthread_mutex_unlock(&host->lock);
}

static bool
host_open(suite_host *host, const char *url)
{
    ie_error err = IE_ERROR_INIT;

    if (ie_publisher_env_new(&host->env, host_report, host, NULL, &err) != IE_OK)
        return complain(host, "%s", err.message);
    if (host->row->ops->open(&host->self, url, host->env, &err) == IE_OK)
        return true;
    ie_publisher_env_free(host->env);
    host->env = NULL;
    return complain(host, "open %s failed: %s", url, err.message);
}

/* Every answer that came, or did not, is in the book now: the publisher is gone. */
static void
host_close(suite_host *host)
{
    if (host->env == NULL)
        return;
    host->row->ops->close(host->self);
    ie_publisher_env_free(host->env); /* whoever still reports uses freed memory */
    host->env = NULL;
    if (host->doubled != 0)
        (void)complain(host, "%zu events were answered more than once", host->doubled);
    if (host->unknown != 0)
        (void)complain(host, "%zu answers carry a ticket that was never given", host->unknown);
    if (host->bad_verdicts != 0)
        (void)complain(host, "%zu answers are no ie_verdict", host->bad_verdicts);
    if (host->mute != 0)
        (void)complain(host, "%zu events were not delivered and no reason was given", host->mute);
}

/* Hand out one batch. The events are copied; the array lives for the call only. */
static bool
host_publish(suite_host *host, const ie_event *events, size_t count)
{
    ie_outgoing *batch = calloc(count, sizeof *batch);

    if (batch == NULL || host->count + count > EVENTS_MAX) {
        free(batch);
        return complain(host, "the suite ran out of room");
    }
    (void)pthread_mutex_lock(&host->lock);
    for (size_t i = 0; i < count; i++) {
        handed  *slot = &host->events[host->count];
        ie_error err = IE_ERROR_INIT;

        memset(slot, 0, sizeof *slot);
        if (ie_event_copy(&slot->event, &events[i], &err) != IE_OK)
            (void)complain(host, "%s", err.message);
        batch[i].event = slot->event;
        batch[i].ticket = TICKET_FIRST + host->count++;
        batch[i].attempt = 1;
    }
    (void)pthread_mutex_unlock(&host->lock);
    if (host->is_good) {
        host->row->ops->publish(host->self, batch, count);
        if (host->row->ops->flush != NULL)
            host->row->ops->flush(host->self);
    }
    memset(batch, 0xa5, count * sizeof *batch); /* borrowed for the call only */
    free(batch);
    return host->is_good;
}

static bool
host_wait(suite_host *host)
{
    struct timespec deadline;
    size_t          missing;

    (void)clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += host->wait_ms / 1000;
    deadline.tv_nsec += host->wait_ms % 1000 * 1000000L;
    deadline.tv_sec += deadline.tv_nsec / 1000000000L;
    deadline.tv_nsec %= 1000000000L;
    (void)pthread_mutex_lock(&host->lock);
    while (host->answered_count < host->count)
        if (pthread_cond_timedwait(&host->answered, &host->lock, &deadline) != 0)
            break;
    missing = host->count - host->answered_count;
    (void)pthread_mutex_unlock(&host->lock);
    return missing == 0 ||
           complain(host, "%zu of %zu events were never answered", missing, host->count);
}

/* All answered, and all delivered. */
static bool
host_delivered(suite_host *host)
{
    if (!host_wait(host))
        return false;
    for (size_t i = 0; i < host->count; i++)
        if (host->events[i].verdict != IE_DELIVERED)
            return complain(host, "event %zu got verdict %d: %s", i, (int)host->events[i].verdict,
                            host->events[i].reason);
    return true;
}

/* Begin the book anew; what was handed out must be answered. */
static void
host_forget(suite_host *host)
{
    (void)pthread_mutex_lock(&host->lock);
    for (size_t i = 0; i < host->count; i++)
        ie_event_free(host->events[i].event); /* NULL when it was answered */
    host->count = 0;
    host->answered_count = 0;
    (void)pthread_mutex_unlock(&host->lock);
}

/* ---- events ------------------------------------------------------------------------------- */

typedef struct numbered {
    char     id[32];
    char     key[32];
    ie_event event;
} numbered;

static numbered *
numbered_make(size_t count, bool has_one_key)
{
    numbered *made = calloc(count, sizeof *made);

    for (size_t i = 0; made != NULL && i < count; i++) {
        (void)snprintf(made[i].id, sizeof made[i].id, "n-%06zu", i);
        (void)snprintf(made[i].key, sizeof made[i].key, "k-%zu", has_one_key ? 0 : i);
        made[i].event = (ie_event){.size = sizeof(ie_event),
                                   .topic = "suite.numbered",
                                   .key = made[i].key,
                                   .id = made[i].id,
                                   .type = "suite.numbered",
                                   .source = "/suite",
                                   .content_type = "application/json",
                                   .data = "{\"n\": 1}",
                                   .data_bytes = 8,
                                   .time_ms = 1784000000123};
    }
    return made;
}

static bool
publish_numbered(suite_host *host, size_t count)
{
    numbered *made = numbered_make(count, false);
    ie_event *events = calloc(count, sizeof *events);
    bool      is_good = made != NULL && events != NULL;

    for (size_t i = 0; is_good && i < count; i++)
        events[i] = made[i].event;
    is_good = is_good && host_publish(host, events, count);
    free(events);
    free(made);
    return is_good;
}

static bool
texts_equal(const char *a, const char *b)
{
    return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

static const ie_header *
header_find(const ie_event *event, const char *name)
{
    for (size_t i = 0; i < event->header_count; i++)
        if (strcmp(event->headers[i].name, name) == 0)
            return &event->headers[i];
    return NULL;
}

/* The attribute in which they differ, NULL when they are the same. */
static const char *
difference(const ie_event *sent, const ie_event *got, bool id_only)
{
    if (!texts_equal(sent->id, got->id))
        return "id";
    if (id_only)
        return NULL;
    if (!texts_equal(sent->topic, got->topic))
        return "topic";
    if (!texts_equal(sent->key, got->key))
        return "key";
    if (!texts_equal(sent->type, got->type))
        return "type";
    if (!texts_equal(sent->source, got->source))
        return "source";
    if (!texts_equal(sent->subject, got->subject))
        return "subject";
    if (!texts_equal(sent->dataschema, got->dataschema))
        return "dataschema";
    if (sent->data_bytes != 0 && !texts_equal(sent->content_type, got->content_type))
        return "content_type";
    if (sent->data_bytes != got->data_bytes ||
        (sent->data_bytes != 0 && memcmp(sent->data, got->data, sent->data_bytes) != 0))
        return "data";
    if (sent->time_ms != got->time_ms)
        return "time_ms";
    if (sent->not_before_ms != got->not_before_ms)
        return "not_before_ms";
    if (sent->expires_at_ms != got->expires_at_ms)
        return "expires_at_ms";
    if (sent->header_count != got->header_count)
        return "header_count";
    for (size_t i = 0; i < sent->header_count; i++) {
        const ie_header *header = header_find(got, sent->headers[i].name);

        if (header == NULL || header->type != sent->headers[i].type ||
            !texts_equal(header->value, sent->headers[i].value))
            return sent->headers[i].name;
    }
    return NULL;
}

/* ---- the cases ---------------------------------------------------------------------------- */

static bool
batch_arrives(suite_host *host, size_t count)
{
    bool *seen = calloc(count, sizeof *seen);

    if (seen == NULL || !host_open(host, host->row->url(host->peer))) {
        free(seen);
        return false;
    }
    if (publish_numbered(host, count) && host_delivered(host)) {
        for (size_t i = 0; i < count && host->is_good; i++) {
            ie_event *event = host->row->receive(host->peer, host->wait_ms);
            size_t    n;

            if (event == NULL)
                (void)complain(host, "%zu of %zu events arrived", i, count);
            else if (sscanf(event->id, "n-%zu", &n) != 1 || n >= count || seen[n])
                (void)complain(host, "event %s arrived twice or was never sent", event->id);
            else
                seen[n] = true;
            ie_event_free(event);
        }
    }
    host_close(host);
    free(seen);
    return host->is_good;
}

static bool
batch_of_1(suite_host *host)
{
    return batch_arrives(host, 1);
}

static bool
batch_of_100(suite_host *host)
{
    return batch_arrives(host, 100);
}

static bool
batch_of_1000(suite_host *host)
{
    return batch_arrives(host, 1000);
}

/* Send it, and see the same come out. */
static bool
event_survives(suite_host *host, const ie_event *event, const char *what)
{
    ie_event   *got;
    const char *where;

    if (!host_publish(host, event, 1) || !host_delivered(host))
        return false;
    got = host->row->receive(host->peer, host->wait_ms);
    where = got != NULL ? difference(event, got, host->row->carries_id_only) : "everything";
    if (where != NULL)
        (void)complain(host, "%s: %s did not arrive as it was sent", what, where);
    ie_event_free(got);
    return host->is_good;
}

static bool
contents_survive(suite_host *host)
{
    static const ie_header HEADERS[] = {
        {"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", IE_HEADER_STRING,
         0},
        {"tenant", "Z\xc3\xbcrich \"quoted\" \\ back", IE_HEADER_STRING, 0},
        {"retries", "-2147483648", IE_HEADER_INTEGER, 0},
        {"express", "true", IE_HEADER_BOOLEAN, 0},
        {"numeric", "0042", IE_HEADER_STRING, 0},
    };
    ie_event       event = {.size = sizeof event,
                            .topic = "suite.contents.\xc3\xa4",
                            .key = "key \"1\"/\xe2\x82\xac",
                            .id = "contents-1",
                            .type = "org.example.Contents",
                            .source = "https://example.org/a?b=c",
                            .subject = "subject 1",
                            .dataschema = "https://example.org/schema/1",
                            .content_type = "application/json",
                            .data = "{ \"n\" : 1.0e+2, \"a\":[ ] ,\"s\":\"\\u00e9\\/\"}",
                            .headers = HEADERS,
                            .header_count = sizeof HEADERS / sizeof HEADERS[0],
                            .time_ms = 1784000000123,
                            .not_before_ms = 1784000000456,
                            .expires_at_ms = 4102444800789};
    unsigned char *bytes = malloc(LARGE_BYTES);

    event.data_bytes = strlen(event.data);
    if (bytes == NULL || !host_open(host, host->row->url(host->peer))) {
        free(bytes);
        return false;
    }
    for (size_t i = 0; i < LARGE_BYTES; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 11);
    if (event_survives(host, &event, "JSON with every attribute")) {
        event.headers = NULL;
        event.header_count = 0;
        event.subject = event.dataschema = event.key = NULL;
        event.not_before_ms = event.expires_at_ms = 0;
        event.data = NULL;
        event.data_bytes = 0;
        event.id = "contents-2";
        (void)event_survives(host, &event, "no payload");
    }
    event.content_type = "application/octet-stream";
    event.data = bytes;
    event.data_bytes = 256;
    event.id = "contents-3";
    (void)(host->is_good && event_survives(host, &event, "binary payload"));
    event.data_bytes = LARGE_BYTES;
    event.id = "contents-4";
    (void)(host->is_good && event_survives(host, &event, "payload of 1 MiB"));
    event.data = "\r\n\0{\"a\":1}\n";
    event.data_bytes = 11;
    event.id = "contents-5";
    (void)(host->is_good && event_survives(host, &event, "payload with newlines and a NUL"));
    host_close(host);
    free(bytes);
    return host->is_good;
}

/* Events of one key are never in flight together, so each is sent after the last was answered. */
static bool
one_key_stays_in_order(suite_host *host)
{
    enum { COUNT = 50 };
    numbered *made = numbered_make(COUNT, true);

    if (made == NULL || !host_open(host, host->row->url(host->peer))) {
        free(made);
        return false;
    }
    for (size_t i = 0; i < COUNT && host->is_good; i++)
        (void)(host_publish(host, &made[i].event, 1) && host_delivered(host));
    for (size_t i = 0; i < COUNT && host->is_good; i++) {
        ie_event *event = host->row->receive(host->peer, host->wait_ms);

        if (event == NULL || strcmp(event->id, made[i].id) != 0)
            (void)complain(host, "expected %s, got %s", made[i].id,
                           event != NULL ? event->id : "nothing");
        ie_event_free(event);
    }
    host_close(host);
    free(made);
    return host->is_good;
}

static bool
peer_away_is_unreachable_until_it_comes(suite_host *host)
{
    struct timespec now;
    time_t          deadline_s;
    bool            is_delivered = false;

    if (host->row->url_away == NULL)
        return true;
    if (!host_open(host, host->row->url_away(host->peer)))
        return false;
    if (publish_numbered(host, 10) && host_wait(host)) {
        for (size_t i = 0; i < host->count; i++)
            if (host->events[i].verdict != IE_UNREACHABLE)
                (void)complain(host, "nobody is there, and the verdict is %d: %s",
                               (int)host->events[i].verdict, host->events[i].reason);
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    deadline_s = now.tv_sec + host->wait_ms / 1000 + 1;
    if (host->is_good && host->row->come != NULL && !host->row->come(host->peer))
        (void)complain(host, "the row's peer did not come");
    while (host->is_good && host->row->come != NULL && !is_delivered) {
        host_forget(host);
        if (!publish_numbered(host, 1) || !host_wait(host))
            break;
        is_delivered = host->events[0].verdict == IE_DELIVERED;
        if (!is_delivered && host->events[0].verdict != IE_UNREACHABLE)
            (void)complain(host, "a peer that is coming got verdict %d: %s",
                           (int)host->events[0].verdict, host->events[0].reason);
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        if (!is_delivered && now.tv_sec > deadline_s)
            (void)complain(host, "the peer came, and is still unreachable: %s",
                           host->events[0].reason);
        if (!is_delivered)
            (void)poll(NULL, 0, 10); /* between tries */
    }
    host_close(host);
    return host->is_good;
}

static bool
bad_option_is_refused_by_name(suite_host *host)
{
    ie_error err = IE_ERROR_INIT;
    void    *self = NULL;

    if (ie_publisher_env_new(&host->env, host_report, host, NULL, &err) != IE_OK)
        return complain(host, "%s", err.message);
    if (host->row->ops->open(&self, host->row->bad_url, host->env, &err) == IE_OK) {
        host->row->ops->close(self);
        (void)complain(host, "%s was opened", host->row->bad_url);
    } else if (err.status == IE_OK || strstr(err.message, host->row->bad_option) == NULL) {
        (void)complain(host, "the message does not name %s: '%s'", host->row->bad_option,
                       err.message);
    }
    ie_publisher_env_free(host->env);
    host->env = NULL;
    return host->is_good;
}

/* Neither count opens a descriptor, which would be one of those that it counts. */
static size_t
descriptor_count(void)
{
    size_t count = 0;

    for (int fd = 0; fd < 4096; fd++)
        count += fcntl(fd, F_GETFD) != -1 ? 1 : 0;
    return count;
}

static size_t
thread_count(void)
{
    struct stat st;

    return stat("/proc/self/task", &st) == 0 ? (size_t)st.st_nlink : 0;
}

/* Threads leave /proc a moment after they were joined; a receiver may close as late. */
static bool
settles_at(size_t (*count)(void), size_t count_max, int wait_ms)
{
    for (int waited_ms = 0; waited_ms < wait_ms; waited_ms += 10) {
        if (count() <= count_max)
            return true;
        (void)poll(NULL, 0, 10);
    }
    return false;
}

static bool
opens_and_closes_200_times(suite_host *host)
{
    size_t descriptors = 0;
    size_t threads = 0;

    for (int i = 0; i < 200 && host->is_good; i++) {
        if (!host_open(host, host->row->url(host->peer)))
            return false;
        if (i % 20 == 0) { /* every one of them must work, but that is another case */
            host_forget(host);
            (void)(publish_numbered(host, 1) && host_delivered(host));
        }
        host_close(host);
        if (i == 19) { /* lazily made singletons exist by now */
            descriptors = descriptor_count();
            threads = thread_count();
        }
    }
    if (host->is_good && !settles_at(descriptor_count, descriptors, host->wait_ms))
        return complain(host, "descriptors leak: %zu became %zu", descriptors, descriptor_count());
    if (host->is_good && !settles_at(thread_count, threads, host->wait_ms))
        return complain(host, "threads leak: %zu became %zu", threads, thread_count());
    return host->is_good;
}

/* What was not answered by then counts as unreachable; what was, was answered once. */
static bool
close_is_the_end_of_answers(suite_host *host)
{
    for (int i = 0; i < 20 && host->is_good; i++) {
        size_t answered;

        host_forget(host);
        if (!host_open(host, host->row->url(host->peer)) || !publish_numbered(host, 50))
            break;
        host_close(host);
        (void)pthread_mutex_lock(&host->lock);
        answered = host->answered_count;
        (void)pthread_mutex_unlock(&host->lock);
        (void)poll(NULL, 0, 1); /* a chance for the wrong to show; nothing depends on it */
        (void)pthread_mutex_lock(&host->lock);
        if (host->answered_count != answered || host->doubled != 0)
            (void)complain(host, "answers came after close had returned");
        (void)pthread_mutex_unlock(&host->lock);
    }
    host_close(host);
    return host->is_good;
}

static bool
closes_unused(suite_host *host)
{
    if (!host_open(host, host->row->url(host->peer)))
        return false;
    host_close(host);
    if (host->row->url_away != NULL && host_open(host, host->row->url_away(host->peer)))
        host_close(host);
    return host->is_good;
}

static const struct {
    const char *name;
    bool (*run)(suite_host *host);
} CASES[] = {
    {"batch_of_1", batch_of_1},
    {"batch_of_100", batch_of_100},
    {"batch_of_1000", batch_of_1000},
    {"contents_survive", contents_survive},
    {"one_key_stays_in_order", one_key_stays_in_order},
    {"peer_away_is_unreachable_until_it_comes", peer_away_is_unreachable_until_it_comes},
    {"bad_option_is_refused_by_name", bad_option_is_refused_by_name},
    {"opens_and_closes_200_times", opens_and_closes_200_times},
    {"close_is_the_end_of_answers", close_is_the_end_of_answers},
    {"closes_unused", closes_unused},
};

const char *
ie_conformance_case_name(size_t index)
{
    return index < sizeof CASES / sizeof CASES[0] ? CASES[index].name : NULL;
}

bool
ie_conformance_run(const ie_conformance_row *row, size_t index, char *why, size_t why_size)
{
    suite_host *host = calloc(1, sizeof *host);
    bool        is_good;

    (void)snprintf(why, why_size, "the suite is out of memory");
    if (host == NULL)
        return false;
    host->row = row;
    host->why = why;
    host->why_size = why_size;
    host->is_good = true;
    host->wait_ms = row->wait_ms_max != 0 ? row->wait_ms_max : WAIT_MS_MAX;
    (void)pthread_mutex_init(&host->lock, NULL);
    (void)pthread_cond_init(&host->answered, NULL);
    host->peer = row->setup();
    if (host->peer == NULL)
        (void)complain(host, "the row's setup failed");
    else if (!CASES[index].run(host))
        (void)complain(host, "failed");
    host_close(host); /* where a case broke off */
    host_forget(host);
    if (host->peer != NULL)
        row->teardown(host->peer);
    is_good = host->is_good;
    if (is_good)
        why[0] = '\0';
    (void)pthread_cond_destroy(&host->answered);
    (void)pthread_mutex_destroy(&host->lock);
    free(host);
    return is_good;
}

size_t
ie_conformance_main(const ie_conformance_row *row)
{
    size_t failed = 0;
    char   why[512];

    for (size_t i = 0; ie_conformance_case_name(i) != NULL; i++) {
        const bool is_good = ie_conformance_run(row, i, why, sizeof why);

        (void)fprintf(stderr, "%s %s: %s%s%s\n", is_good ? "ok    " : "FAILED", row->name,
                      ie_conformance_case_name(i), is_good ? "" : ": ", why);
        failed += is_good ? 0 : 1;
    }
    return failed;
}
