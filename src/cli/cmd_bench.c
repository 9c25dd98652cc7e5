/*
 * ie bench bus: what a bus does here, in numbers. Publishers (or askers) are threads with a client
 * each; so are the subscribers (or responders). An event carries the time it was published and its
 * number, so that lateness, loss and order are seen where it arrives.
 */
#include "cli.h"

#include <ie/bus.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core.h"
#include "histogram.h"
#include "units.h"

#define PEERS_MAX   64 /* publishers, and subscribers */
#define WAIT_MS     10000
#define STALL_MS    5000 /* without progress: what has not arrived is lost */
#define BYTES_MIN   24   /* time, number, publisher */
#define MODES_MAX   16
#define HIST_BARS   40
#define TOPIC       "ie.bench"
#define RATE_STEADY 1000

const cli_flag cli_bench_bus_flags[] = {
    {.name = "to", .value = "URL", .help = "the bus to measure (default: one in this process)"},
    {.name = "mode",
     .value = "MODE",
     .repeats = true,
     .help = "publish, fanout, group, query, durable, latency; may be repeated (all but durable)"},
    {.name = "size", .value = "BYTES", .help = "of one event's data (128)"},
    {.name = "publishers", .value = "N", .help = "clients that publish or ask (1)"},
    {.name = "subscribers", .value = "N", .help = "clients that receive or answer (by mode)"},
    {.name = "count", .value = "N", .help = "events of each publisher (100000)"},
    {.name = "duration", .value = "TIME", .help = "each mode ends then, whatever the count (10s)"},
    {.name = "rate",
     .value = "N",
     .help = "events per second of each publisher (as fast as it goes; latency: 1000)"},
    {.name = "window", .value = "N", .help = "without an answer, per publisher (by mode)"},
    {.name = "data", .value = "DIR", .help = "where the bus in this process stores, for durable"},
    {.name = "histogram", .help = "show how the times are distributed"},
    {.name = "json", .help = "one JSON object with everything"},
    {.name = NULL},
};

typedef struct mode {
    const char *name;
    int64_t     subscribers; /* by default */
    int64_t     window;
    bool        is_group;
    bool        is_query;
    bool        is_durable;
    bool        is_steady;
    const char *what; /* is timed */
} mode;

static const mode MODES[] = {
    {"publish", 1, 8192, false, false, false, false, "publish to handler"},
    {"fanout", 8, 8192, false, false, false, false, "publish to handler"},
    {"group", 4, 1024, true, false, false, false, "publish to handler"},
    {"query", 1, 64, false, true, false, false, "question to answer"},
    {"latency", 1, 8192, false, false, false, true, "publish to handler"},
    {"durable", 0, 1024, false, false, true, false, "publish to stored"},
};
#define MODE_COUNT (sizeof MODES / sizeof *MODES)

typedef struct settings {
    const char *url;
    const mode *mode;
    int64_t     bytes;
    int64_t     publishers;
    int64_t     subscribers;
    int64_t     count;
    int64_t     duration_ms;
    int64_t     rate;
    int64_t     window;
    int64_t     deadline_ns; /* no answer is waited for any longer */
} settings;

typedef struct publisher publisher;

/* One publish or question that is under way. */
typedef struct op {
    struct op *next;
    publisher *of;
    int64_t    began_ns;
} op;

struct publisher {
    settings       *of;
    pthread_t       thread;
    ie_bus_client  *client;
    pthread_mutex_t mutex;
    pthread_cond_t  changed;
    op             *ops; /* all of them */
    op             *free;
    int64_t         free_count;
    bool            is_waiting;
    int64_t         sent;
    int64_t         ended_ns;
    int64_t         answered;
    int64_t         refused;
    histogram       times; /* of answers */
    unsigned char  *data;
    uint64_t        index;
    bool            is_started;
    char            failure[200];
};

typedef struct subscriber {
    settings       *of;
    ie_bus_client  *client;
    histogram       times;
    uint64_t        next[PEERS_MAX]; /* number, by publisher */
    uint64_t        disordered;
    _Atomic int64_t received;
    _Atomic int64_t last_ns;
} subscriber;

typedef struct result {
    int64_t   sent;
    int64_t   expected;
    int64_t   arrived; /* handled, answered or stored */
    int64_t   refused;
    int64_t   disordered;
    int64_t   took_ns;
    histogram times;
} result;

/* ---- answers -------------------------------------------------------------------------------- */

/* NULL: no answer came in time. */
static op *
op_take(publisher *self)
{
    op *taken;

    (void)pthread_mutex_lock(&self->mutex);
    while (self->free == NULL && ie__mono_ns() < self->of->deadline_ns) {
        struct timespec until;

        self->is_waiting = true;
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++; /* to look at the deadline */
        (void)pthread_cond_timedwait(&self->changed, &self->mutex, &until);
    }
    self->is_waiting = false;
    taken = self->free;
    if (taken != NULL) {
        self->free = taken->next;
        self->free_count--;
    }
    (void)pthread_mutex_unlock(&self->mutex);
    return taken;
}

static void
op_give(op *done)
{
    publisher *self = done->of;

    (void)pthread_mutex_lock(&self->mutex);
    done->next = self->free;
    self->free = done;
    self->free_count++;
    if (self->is_waiting && self->free_count >= (self->of->window + 3) / 4)
        (void)pthread_cond_signal(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
}

static void
on_answer(void *user, const ie_bus_answer *answer)
{
    op        *done = user;
    publisher *self = done->of;

    if (answer->status == IE_OK && (!self->of->mode->is_durable || answer->stored != 0)) {
        self->answered++;
        histogram_add(&self->times, ie__mono_ns() - done->began_ns);
    } else {
        self->refused++;
        if (self->failure[0] == '\0')
            (void)snprintf(self->failure, sizeof self->failure, "%s",
                           answer->status == IE_OK ? "the bus does not store" : answer->reason);
    }
    op_give(done);
}

static void
on_reply(void *user, const ie_bus_reply *reply)
{
    op        *done = user;
    publisher *self = done->of;

    if (reply->event != NULL) {
        self->answered++;
        histogram_add(&self->times, ie__mono_ns() - done->began_ns);
        return;
    }
    if (reply->status != IE_OK) {
        self->refused++;
        if (self->failure[0] == '\0')
            (void)snprintf(self->failure, sizeof self->failure, "%s", reply->reason);
    }
    op_give(done);
}

/* ---- publishers ----------------------------------------------------------------------------- */

static void
stamp(publisher *self, int64_t now_ns)
{
    const uint64_t number = (uint64_t)self->sent;

    memcpy(self->data, &now_ns, 8);
    memcpy(self->data + 8, &number, 8);
    memcpy(self->data + 16, &self->index, 8);
}

static ie_status
send_one(publisher *self, const ie_event *event, ie_error *err)
{
    const mode *how = self->of->mode;
    op         *asked = op_take(self);
    ie_status   status;

    if (asked == NULL)
        return ie_error_set(err, IE_ETIMEDOUT, "no answer from the bus within %d s",
                            WAIT_MS / 1000);
    asked->began_ns = ie__mono_ns();
    stamp(self, asked->began_ns);
    for (;;) {
        if (how->is_query)
            status =
                ie_bus_client_query(self->client, event, WAIT_MS, 1, on_reply, asked, NULL, err);
        else
            status = ie_bus_client_publish(self->client, event,
                                           how->is_durable ? IE_BUS_PUBLISH_PERSISTENT : 0,
                                           on_answer, asked, err);
        if (status != IE_ELIMIT || ie__mono_ns() >= self->of->deadline_ns)
            break;
        (void)nanosleep(&(struct timespec){.tv_nsec = 100000},
                        NULL); /* its bytes, not its events */
        *err = (ie_error)IE_ERROR_INIT;
    }
    if (status == IE_OK)
        self->sent++;
    else
        op_give(asked);
    return status;
}

static void *
publisher_main(void *arg)
{
    publisher      *self = arg;
    const settings *of = self->of;
    const int64_t   begun_ns = ie__mono_ns();
    ie_event        event = IE_EVENT_INIT;
    ie_error        err = IE_ERROR_INIT;

    event.topic = TOPIC;
    event.content_type = "application/octet-stream";
    event.data = self->data;
    event.data_bytes = (size_t)of->bytes;
    while (self->sent < of->count) {
        const int64_t now_ns = ie__mono_ns();

        if (now_ns - begun_ns >= of->duration_ms * 1000000)
            break;
        if (of->rate != 0) {
            const int64_t   due_ns = begun_ns + self->sent * (1000000000 / of->rate);
            struct timespec due = {.tv_sec = (time_t)(due_ns / 1000000000),
                                   .tv_nsec = (long)(due_ns % 1000000000)};

            (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        }
        if (send_one(self, &event, &err) != IE_OK) {
            (void)snprintf(self->failure, sizeof self->failure, "%.190s", err.message);
            break;
        }
    }
    for (int64_t all = 0; all < of->window; all++) { /* the last answers */
        if (op_take(self) != NULL)
            continue;
        (void)snprintf(self->failure, sizeof self->failure, "some answers did not come in time");
        break;
    }
    self->ended_ns = ie__mono_ns();
    return NULL;
}

static bool
publisher_open(publisher *self, settings *of, uint64_t index, ie_error *err)
{
    ie_bus_client_options options;

    self->of = of;
    self->index = index;
    (void)pthread_mutex_init(&self->mutex, NULL);
    (void)pthread_cond_init(&self->changed, NULL);
    self->data = ie__calloc(1, (size_t)of->bytes);
    self->ops = ie__calloc((size_t)of->window, sizeof *self->ops);
    if (self->data == NULL || self->ops == NULL) {
        (void)ie_error_set(err, IE_ENOMEM, "out of memory");
        return false;
    }
    memset(self->data, 'x', (size_t)of->bytes);
    for (int64_t i = 0; i < of->window; i++) {
        self->ops[i].of = self;
        self->ops[i].next = self->free;
        self->free = &self->ops[i];
    }
    self->free_count = of->window;
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = of->url;
    return ie_bus_client_open(&self->client, &options, err) == IE_OK &&
           ie_bus_client_wait_connected(self->client, WAIT_MS, err) == IE_OK;
}

static void
publisher_close(publisher *self)
{
    if (self->of == NULL)
        return;
    ie_bus_client_close(self->client);
    ie__free(self->ops);
    ie__free(self->data);
    (void)pthread_cond_destroy(&self->changed);
    (void)pthread_mutex_destroy(&self->mutex);
}

/* ---- subscribers ---------------------------------------------------------------------------- */

static ie_status
on_event(void *user, const ie_event *event)
{
    subscriber   *self = user;
    const int64_t now_ns = ie__mono_ns();
    int64_t       began_ns;
    uint64_t      number;
    uint64_t      from;

    if (event->data_bytes != (size_t)self->of->bytes)
        return IE_OK; /* somebody else's */
    memcpy(&began_ns, event->data, 8);
    memcpy(&number, (const char *)event->data + 8, 8);
    memcpy(&from, (const char *)event->data + 16, 8);
    histogram_add(&self->times, now_ns - began_ns);
    if (from < PEERS_MAX) {
        /* members of a group get some of them, but never an older one after a newer one */
        self->disordered +=
            self->of->mode->is_group ? number < self->next[from] : number != self->next[from];
        self->next[from] = number + 1;
    }
    atomic_store_explicit(&self->last_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&self->received,
                          atomic_load_explicit(&self->received, memory_order_relaxed) + 1,
                          memory_order_release);
    return IE_OK;
}

static void
on_question(void *user, const ie_event *question, uint64_t token)
{
    subscriber *self = user;
    ie_event    answer = IE_EVENT_INIT;

    answer.data = question->data;
    answer.data_bytes = question->data_bytes;
    answer.content_type = question->content_type;
    (void)ie_bus_client_answer(self->client, token, &answer, NULL); /* else its end tells */
}

static bool
subscriber_open(subscriber *self, settings *of, ie_error *err)
{
    const mode           *how = of->mode;
    ie_bus_subscription   subscription;
    ie_bus_client_options options;

    self->of = of;
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = of->url;
    if (ie_bus_client_open(&self->client, &options, err) != IE_OK)
        return false;
    IE_BUS_SUBSCRIPTION_INIT(&subscription);
    subscription.pattern = TOPIC;
    subscription.handler = on_event;
    subscription.user = self;
    if (how->is_group) {
        subscription.group = "ie.bench";
        subscription.flags = IE_BUS_SUBSCRIBE_EPHEMERAL; /* nothing of it stays */
    }
    if ((how->is_query
             ? ie_bus_client_serve(self->client, TOPIC, "ie.bench", on_question, self, NULL, err)
             : ie_bus_client_subscribe_with(self->client, &subscription, NULL, err)) != IE_OK)
        return false;
    return ie_bus_client_wait_subscribed(self->client, WAIT_MS, err) == IE_OK;
}

static int64_t
received_by_all(const subscriber *subscribers, int64_t count)
{
    int64_t total = 0;

    for (int64_t i = 0; i < count; i++)
        total += atomic_load_explicit(&subscribers[i].received, memory_order_acquire);
    return total;
}

static void
await_received(const settings *of, const subscriber *subscribers, int64_t wanted)
{
    int64_t seen = -1;
    int64_t since_ns = 0;

    for (;;) {
        const int64_t total = received_by_all(subscribers, of->subscribers);
        const int64_t now_ns = ie__mono_ns();

        if (total != seen)
            since_ns = now_ns;
        seen = total;
        if (total >= wanted || now_ns - since_ns > (int64_t)STALL_MS * 1000000)
            return;
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

/* ---- one mode ------------------------------------------------------------------------------- */

typedef struct bench {
    publisher  publishers[PEERS_MAX];
    subscriber subscribers[PEERS_MAX];
} bench;

static void
add_up(const settings *of, const bench *all, int64_t begun_ns, result *out)
{
    const bool is_received = !of->mode->is_query && !of->mode->is_durable;
    int64_t    last_ns = begun_ns;

    for (int64_t i = 0; i < of->publishers; i++) {
        const publisher *self = &all->publishers[i];

        out->sent += self->sent;
        out->refused += self->refused;
        if (!is_received) {
            out->arrived += self->answered;
            histogram_merge(&out->times, &self->times);
            last_ns = self->ended_ns > last_ns ? self->ended_ns : last_ns;
        }
    }
    out->expected = out->sent;
    if (is_received) {
        if (!of->mode->is_group)
            out->expected *= of->subscribers;
        out->arrived = received_by_all(all->subscribers, of->subscribers);
        for (int64_t i = 0; i < of->subscribers; i++) {
            const subscriber *self = &all->subscribers[i];
            const int64_t     at_ns = atomic_load(&self->last_ns);

            histogram_merge(&out->times, &self->times);
            out->disordered += (int64_t)self->disordered;
            last_ns = at_ns > last_ns ? at_ns : last_ns;
        }
    }
    out->took_ns = last_ns - begun_ns;
}

static cli_exit
run_parts(settings *of, bench *all, result *out)
{
    const bool is_received = !of->mode->is_query && !of->mode->is_durable;
    ie_error   err = IE_ERROR_INIT;
    int64_t    begun_ns;
    int64_t    sent = 0;
    cli_exit   code = CLI_OK;

    for (int64_t i = 0; i < of->subscribers; i++)
        if (!subscriber_open(&all->subscribers[i], of, &err))
            return cli_fail(&err);
    for (int64_t i = 0; i < of->publishers; i++)
        if (!publisher_open(&all->publishers[i], of, (uint64_t)i, &err))
            return cli_fail(&err);
    begun_ns = ie__mono_ns();
    of->deadline_ns = begun_ns + (of->duration_ms + WAIT_MS) * 1000000;
    for (int64_t i = 0; i < of->publishers; i++) {
        publisher *self = &all->publishers[i];

        self->is_started = pthread_create(&self->thread, NULL, publisher_main, self) == 0;
    }
    for (int64_t i = 0; i < of->publishers; i++) {
        publisher *self = &all->publishers[i];

        if (!self->is_started)
            (void)snprintf(self->failure, sizeof self->failure, "cannot start a thread");
        else
            (void)pthread_join(self->thread, NULL);
        sent += self->sent;
        if (self->failure[0] != '\0' && code == CLI_OK) {
            cli_say("%s: %s", of->mode->name, self->failure);
            code = CLI_FAILED;
        }
    }
    if (is_received)
        await_received(of, all->subscribers, of->mode->is_group ? sent : sent * of->subscribers);
    for (int64_t i = 0; i < of->subscribers; i++) { /* their handlers are through with it */
        ie_bus_client_close(all->subscribers[i].client);
        all->subscribers[i].client = NULL;
    }
    add_up(of, all, begun_ns, out);
    return code;
}

static cli_exit
run_mode(settings *of, result *out)
{
    bench   *all = ie__calloc(1, sizeof *all);
    cli_exit code;

    if (all == NULL) {
        cli_say("out of memory");
        return CLI_FAILED;
    }
    code = run_parts(of, all, out);
    for (int64_t i = 0; i < PEERS_MAX; i++) {
        ie_bus_client_close(all->subscribers[i].client);
        publisher_close(&all->publishers[i]);
    }
    ie__free(all);
    return code;
}

/* ---- what is told --------------------------------------------------------------------------- */

static const struct {
    const char *name;
    double      part;
} PARTS[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99_9", 0.999}};
#define PART_COUNT (sizeof PARTS / sizeof *PARTS)

static int64_t
per_second(const result *of)
{
    return of->took_ns > 0 ? (int64_t)((double)of->arrived * 1e9 / (double)of->took_ns) : 0;
}

static void
table_row(cli_table *table, const settings *of, const result *got)
{
    char        cells[12][32];
    const char *row[12];

    (void)snprintf(cells[0], sizeof cells[0], "%s", of->mode->name);
    (void)snprintf(cells[1], sizeof cells[1], "%lld:%lld", (long long)of->publishers,
                   (long long)of->subscribers);
    (void)snprintf(cells[2], sizeof cells[2], "%lld", (long long)of->bytes);
    (void)snprintf(cells[3], sizeof cells[3], "%lld", (long long)got->sent);
    (void)snprintf(cells[4], sizeof cells[4], "%lld", (long long)per_second(got));
    (void)snprintf(cells[5], sizeof cells[5], "%.1f",
                   (double)per_second(got) * (double)of->bytes / 1e6);
    for (size_t i = 0; i < PART_COUNT; i++)
        (void)snprintf(cells[6 + i], sizeof cells[0], "%.1f",
                       (double)histogram_at(&got->times, PARTS[i].part) / 1e3);
    (void)snprintf(cells[10], sizeof cells[10], "%.1f", (double)got->times.max / 1e3);
    (void)snprintf(cells[11], sizeof cells[11], "%lld", (long long)(got->expected - got->arrived));
    for (size_t i = 0; i < 12; i++)
        row[i] = cells[i];
    cli_table_row(table, row);
}

static void
json_result(cli_json *json, const settings *of, const result *got)
{
    cli_json_open(json, NULL, '{');
    cli_json_text(json, "mode", of->mode->name);
    cli_json_text(json, "timed", of->mode->what);
    cli_json_number(json, "publishers", of->publishers);
    cli_json_number(json, "subscribers", of->subscribers);
    cli_json_number(json, "bytes", of->bytes);
    cli_json_number(json, "window", of->window);
    cli_json_number(json, "sent", got->sent);
    cli_json_number(json, "arrived", got->arrived);
    cli_json_number(json, "lost", got->expected - got->arrived);
    cli_json_number(json, "refused", got->refused);
    cli_json_number(json, "disordered", got->disordered);
    cli_json_number(json, "took_us", got->took_ns / 1000);
    cli_json_number(json, "per_second", per_second(got));
    cli_json_open(json, "ns", '{');
    for (size_t i = 0; i < PART_COUNT; i++)
        cli_json_number(json, PARTS[i].name, histogram_at(&got->times, PARTS[i].part));
    cli_json_number(json, "max", got->times.max);
    cli_json_close(json, '}');
    cli_json_open(json, "histogram", '[');
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (got->times.counts[i] == 0)
            continue;
        cli_json_open(json, NULL, '{');
        cli_json_number(json, "up_to_ns", histogram_upper(i));
        cli_json_number(json, "count", (int64_t)got->times.counts[i]);
        cli_json_close(json, '}');
    }
    cli_json_close(json, ']');
    cli_json_close(json, '}');
}

/* A line per doubling. */
static void
print_histogram(const settings *of, const result *got)
{
    uint64_t most = 1;
    uint64_t counts[HISTOGRAM_BUCKETS / HISTOGRAM_STEPS] = {0};

    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        counts[i / HISTOGRAM_STEPS] += got->times.counts[i];
        if (counts[i / HISTOGRAM_STEPS] > most)
            most = counts[i / HISTOGRAM_STEPS];
    }
    (void)printf("\n%s, %s:\n", of->mode->name, of->mode->what);
    for (size_t i = 0; i < HISTOGRAM_BUCKETS / HISTOGRAM_STEPS; i++) {
        const int bars = (int)((double)counts[i] * HIST_BARS / (double)most + 0.5);

        if (counts[i] != 0)
            (void)printf("  up to %10.1f us %10llu %.*s\n",
                         (double)histogram_upper((i + 1) * HISTOGRAM_STEPS - 1) / 1e3,
                         (unsigned long long)counts[i], bars,
                         "########################################");
    }
}

/* ---- words ---------------------------------------------------------------------------------- */

static const char *
mode_name_at(const void *of, size_t index)
{
    (void)of;
    return MODES[index].name;
}

/* The modes that were asked for; 0: said what is wrong. */
static size_t
modes_of(const cli *self, const mode *out[MODES_MAX])
{
    size_t      count = 0;
    const char *name;

    while ((name = cli_text_at(self, "mode", count)) != NULL && count < MODES_MAX) {
        size_t i = 0;

        while (i < MODE_COUNT && strcmp(MODES[i].name, name) != 0)
            i++;
        if (i == MODE_COUNT) {
            const char *meant = ie__suggest(name, mode_name_at, NULL, MODE_COUNT);

            (void)cli_usage(self, "--mode: unknown mode '%.40s'%s%s%s", name,
                            meant != NULL ? "; did you mean '" : "", meant != NULL ? meant : "",
                            meant != NULL ? "'" : "");
            return 0;
        }
        out[count++] = &MODES[i];
    }
    if (count == 0)
        for (size_t i = 0; i < MODE_COUNT; i++)
            if (!MODES[i].is_durable)
                out[count++] = &MODES[i];
    return count;
}

static bool
settings_of(const cli *self, const mode *how, settings *out)
{
    const char *size = cli_text(self, "size");

    memset(out, 0, sizeof *out);
    out->mode = how;
    out->bytes = 128;
    if (size != NULL && (!ie__bytes_parse(size, &out->bytes) || out->bytes < BYTES_MIN ||
                         out->bytes > IE_DATA_BYTES_MAX)) {
        (void)cli_usage(self, "--size: '%.40s' is not a size from %d bytes to 1MiB", size,
                        BYTES_MIN);
        return false;
    }
    if (!cli_number(self, "publishers", 1, 1, PEERS_MAX, &out->publishers) ||
        !cli_number(self, "subscribers", how->subscribers, 1, PEERS_MAX, &out->subscribers) ||
        !cli_number(self, "count", 100000, 1, INT64_C(1000000000), &out->count) ||
        !cli_number(self, "rate", how->is_steady ? RATE_STEADY : 0, 1, 1000000, &out->rate) ||
        !cli_number(self, "window", how->window, 1, 65536, &out->window) ||
        !cli_duration(self, "duration", 10000, &out->duration_ms))
        return false;
    if (how->is_durable)
        out->subscribers = 0;
    if (how->is_steady && !cli_has(self, "count"))
        out->count = out->rate * 5;
    return true;
}

static ie_status
own_bus(const cli *self, ie_bus_server **out, ie_error *err)
{
    static const char *const LISTEN[] = {"socket://127.0.0.1:0"};
    ie_bus_server_options    options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = LISTEN;
    options.listen_count = 1;
    options.data_dir = cli_text(self, "data");
    return ie_bus_server_start(out, &options, err);
}

static cli_exit
run_all(cli *self, const mode *const *modes, size_t count, const char *url)
{
    static const char *const HEADER[] = {"mode",   "pub:sub",  "bytes",  "events",
                                         "/s",     "MB/s",     "p50 us", "p90 us",
                                         "p99 us", "p99.9 us", "max us", "lost"};
    const bool               is_json = cli_has(self, "json");
    settings                *all = ie__calloc(count, sizeof *all);
    result                  *got = ie__calloc(count, sizeof *got);
    cli_json                 json = {{0}, false};
    cli_table                table;
    cli_exit                 code = all != NULL && got != NULL ? CLI_OK : CLI_FAILED;
    size_t                   done = 0;

    for (; code == CLI_OK && done < count; done++) {
        if (!settings_of(self, modes[done], &all[done])) {
            code = CLI_USAGE;
            break;
        }
        all[done].url = url;
        code = run_mode(&all[done], &got[done]);
        if (code != CLI_OK && got[done].sent == 0)
            break; /* not even begun */
        if (code == CLI_OK && got[done].arrived != got[done].expected) {
            cli_say("%s: %lld of %lld did not arrive", modes[done]->name,
                    (long long)(got[done].expected - got[done].arrived),
                    (long long)got[done].expected);
            code = CLI_FAILED;
        }
    }
    if (is_json) {
        cli_json_open(&json, NULL, '{');
        cli_json_text(&json, "bus", url);
        cli_json_open(&json, "results", '[');
    } else {
        cli_table_begin(&table, HEADER, sizeof HEADER / sizeof *HEADER);
    }
    for (size_t i = 0; i < done; i++)
        is_json ? json_result(&json, &all[i], &got[i]) : table_row(&table, &all[i], &got[i]);
    if (is_json) {
        cli_json_close(&json, ']');
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else {
        cli_table_end(&table);
        for (size_t i = 0; i < done && cli_has(self, "histogram"); i++)
            print_histogram(&all[i], &got[i]);
    }
    ie__free(all);
    ie__free(got);
    return code;
}

cli_exit
cli_bench_bus(cli *self)
{
    const char    *to = cli_text(self, "to");
    const mode    *modes[MODES_MAX];
    const size_t   count = modes_of(self, modes);
    ie_bus_server *server = NULL;
    ie_error       err = IE_ERROR_INIT;
    settings       probe;
    cli_exit       code;

    if (count == 0 || !settings_of(self, modes[0], &probe))
        return CLI_USAGE;
    for (size_t i = 0; i < count; i++)
        if (modes[i]->is_durable && to == NULL && cli_text(self, "data") == NULL)
            return cli_usage(self,
                             "--mode durable: needs --data DIR, or --to URL of a bus that stores");
    if (to != NULL && cli_text(self, "data") != NULL)
        return cli_usage(self, "--data is for the bus in this process; --to names another");
    if (to == NULL && own_bus(self, &server, &err) != IE_OK)
        return cli_fail(&err);
    code = run_all(self, modes, count, to != NULL ? to : ie_bus_server_address(server, 0));
    ie_bus_server_close(server);
    return code;
}
