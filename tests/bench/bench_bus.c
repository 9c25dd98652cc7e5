/*
 * From the outbox over the socket bus to a handler in another process.
 *
 *   bench_bus drain [--events N] [--mode ack|live] [--batch N] [--in-flight N] [--dir FOLDER]
 *       worker here, bus and subscriber in processes of their own
 *   bench_bus latency [--rate N] [--seconds N] [--idle SECONDS] [--mode ack|live] [--dir FOLDER]
 *       application, worker, bus and subscriber in processes of their own; then what an idle
 *       worker uses
 *
 * The program starts itself again for each part. A part tells on stdout that it is ready, and ends
 * when its stdin does.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS 60000

/* ---- parts: processes that talk by lines ---- */

typedef struct part {
    pid_t pid;
    FILE *to;
    FILE *from;
} part;

static void
part_start(part *out, char *const *args)
{
    int in[2];
    int back[2];

    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(back, O_CLOEXEC) != 0)
        bench_die("pipe: %s", strerror(errno));
    out->pid = fork();
    if (out->pid == 0) {
        (void)dup2(in[0], STDIN_FILENO);
        (void)dup2(back[1], STDOUT_FILENO);
        (void)execv("/proc/self/exe", args);
        _exit(127);
    }
    if (out->pid < 0)
        bench_die("fork: %s", strerror(errno));
    (void)close(in[0]);
    (void)close(back[1]);
    out->to = fdopen(in[1], "w");
    out->from = fdopen(back[0], "r");
    if (out->to == NULL || out->from == NULL)
        bench_die("fdopen: %s", strerror(errno));
}

/* The rest of the next line, which must begin with this word. */
static void
part_expect(part *of, const char *word, char *rest, size_t size)
{
    char line[512];

    if (fgets(line, sizeof line, of->from) == NULL || strncmp(line, word, strlen(word)) != 0)
        bench_die("a part did not say '%s'", word);
    line[strcspn(line, "\n")] = '\0';
    if (rest != NULL)
        (void)snprintf(rest, size, "%s", line + strlen(word) + (line[strlen(word)] == ' '));
}

static void
part_say(part *of, const char *line)
{
    (void)fprintf(of->to, "%s\n", line);
    (void)fflush(of->to);
}

static void
part_end(part *of)
{
    int status = 0;

    (void)fclose(of->to);
    if (waitpid(of->pid, &status, 0) != of->pid || status != 0)
        bench_die("a part ended with status %d", status);
    (void)fclose(of->from);
}

/* In a part: the next line of the parent; false when it is gone. */
static bool
heard(char *line, size_t size)
{
    if (fgets(line, (int)size, stdin) == NULL)
        return false;
    line[strcspn(line, "\n")] = '\0';
    return true;
}

static void
until_parent_leaves(void)
{
    char line[64];

    while (heard(line, sizeof line))
        ;
}

static void
say(const char *fmt, const char *text)
{
    (void)printf(fmt, text);
    (void)printf("\n");
    (void)fflush(stdout);
}

/* ---- the bus ---- */

static int
part_bus(void)
{
    static const char *const LISTEN[] = {"socket://127.0.0.1:0"};
    ie_bus_server_options    options;
    ie_bus_server           *server = NULL;
    ie_error                 err = IE_ERROR_INIT;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = LISTEN;
    options.listen_count = 1;
    if (ie_bus_server_start(&server, &options, &err) != IE_OK)
        bench_die("bus: %s", err.message);
    say("ready %s", ie_bus_server_address(server, 0));
    until_parent_leaves();
    bench_print("bus_cpu_ns_total", "ours", (double)bench_cpu_ns());
    (void)ie_bus_server_stop(server, 0);
    ie_bus_server_close(server);
    return 0;
}

/* ---- the subscriber ---- */

typedef struct receiver {
    int64_t       wanted;
    int64_t       count;
    atomic_bool   is_done;
    bench_samples latency;
} receiver;

static ie_status
on_event(void *user, const ie_event *event)
{
    receiver *self = user;

    bench_samples_add(&self->latency, bench_now_ns() - bench_event_stamp_of(event));
    if (++self->count == self->wanted)
        atomic_store(&self->is_done, true);
    return IE_OK;
}

/* Waits for the handler's flag; the program polls, so that nothing of it stands in the way. */
static void
await(atomic_bool *flag)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    const int64_t         deadline = bench_now_ns() + (int64_t)WAIT_MS * 1000000;

    while (!atomic_load(flag)) {
        if (bench_now_ns() > deadline)
            bench_die("not everything arrived in time");
        (void)nanosleep(&pause, NULL);
    }
}

static int
part_subscriber(const char *url, const char *mode, int64_t count)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    receiver              self = {.wanted = count};
    const bool            is_acked = strcmp(mode, "ack") == 0;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    if (ie_bus_client_open(&client, &options, &err) != IE_OK ||
        ie_bus_client_subscribe(client, "orders.>", is_acked ? "bench" : NULL, 0, on_event, &self,
                                NULL, &err) != IE_OK ||
        ie_bus_client_wait_subscribed(client, 5000, &err) != IE_OK)
        bench_die("subscriber: %s", err.message);
    say("ready%s", "");
    await(&self.is_done);
    bench_print("p50_ns", "ours", (double)bench_percentile(&self.latency, 0.5));
    bench_print("p99_ns", "ours", (double)bench_percentile(&self.latency, 0.99));
    bench_print("cpu_ns", "ours", (double)bench_cpu_ns());
    until_parent_leaves();
    ie_bus_client_close(client);
    bench_samples_fini(&self.latency);
    return 0;
}

/* ---- the worker ---- */

static ie_worker *
worker_make(const char *db, const char *url, int64_t batch, int64_t in_flight, bool has_thread)
{
    ie_worker_options options;
    ie_worker        *worker = NULL;
    ie_error          err = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(&options);
    options.db = db;
    options.to = url;
    if (batch > 0)
        options.batch_max = (uint32_t)batch;
    if (in_flight > 0)
        options.in_flight_max = (uint32_t)in_flight;
    if ((has_thread ? ie_worker_start(&worker, &options, &err)
                    : ie_worker_open(&worker, &options, &err)) != IE_OK)
        bench_die("worker: %s", err.message);
    return worker;
}

static int
part_worker(const char *db, const char *url)
{
    ie_worker *worker = worker_make(db, url, 0, 0, true);
    char       line[64];

    say("ready%s", "");
    while (heard(line, sizeof line)) {
        /* "idle SECONDS": what this process uses while nothing happens. */
        const struct timespec pause = {.tv_sec = strtol(line + strcspn(line, " "), NULL, 10)};
        const int64_t         first = bench_now_ns();
        const int64_t         cpu = bench_cpu_ns();

        (void)nanosleep(&pause, NULL);
        bench_print("idle_percent", "ours",
                    100.0 * (double)(bench_cpu_ns() - cpu) / (double)(bench_now_ns() - first));
    }
    ie_worker_close(worker);
    return 0;
}

/* ---- the application ---- */

static void
publish_one(ie_outbox *outbox, bench_business *business, bench_event *event)
{
    ie_error err = IE_ERROR_INIT;

    bench_business_begin(business);
    bench_event_stamp(event, bench_now_ns());
    if (ie_publish(outbox, &event->event, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    bench_business_commit(business);
}

static int
part_application(const char *path, int64_t rate, int64_t count)
{
    sqlite3        *db = bench_db_open(path, "NORMAL");
    ie_outbox      *outbox = NULL;
    bench_business  business;
    bench_event     event;
    bench_samples   commits = {0};
    struct timespec next;
    char            line[64];
    ie_error        err = IE_ERROR_INIT;

    bench_business_open(&business, db);
    bench_event_init(&event);
    if (ie_outbox_open(&outbox, db, NULL, &err) != IE_OK)
        bench_die("%s", err.message);
    say("ready%s", "");
    if (!heard(line, sizeof line))
        return 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &next);
    for (int64_t i = 0; i < count; i++) {
        int64_t first;

        next.tv_nsec += 1000000000 / rate;
        if (next.tv_nsec >= 1000000000) {
            next.tv_nsec -= 1000000000;
            next.tv_sec++;
        }
        (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        bench_event_number(&event, (uint64_t)i);
        first = bench_now_ns();
        publish_one(outbox, &business, &event);
        bench_samples_add(&commits, bench_now_ns() - first);
    }
    bench_print("commit_p50_ns", "ours", (double)bench_percentile(&commits, 0.5));
    until_parent_leaves();
    ie_outbox_close(outbox);
    bench_business_close(&business);
    bench_samples_fini(&commits);
    bench_db_close(db);
    return 0;
}

/* ---- what is measured ---- */

static double
part_figure(part *of, const char *name)
{
    char rest[128];

    part_expect(of, name, rest, sizeof rest);
    return strtod(rest + strcspn(rest, " "), NULL);
}

static void
bus_start(part *bus, part *subscriber, char *url, size_t size, const char *mode, int64_t count)
{
    char  number[32];
    char *bus_args[] = {(char *)"bench_bus", (char *)"part-bus", NULL};
    char *subscriber_args[] = {
        (char *)"bench_bus", (char *)"part-subscriber", url, (char *)mode, number, NULL};

    (void)snprintf(number, sizeof number, "%lld", (long long)count);
    part_start(bus, bus_args);
    part_expect(bus, "ready", url, size);
    part_start(subscriber, subscriber_args);
    part_expect(subscriber, "ready", NULL, 0);
}

static void
measure_drain(int argc, char **argv)
{
    const int64_t events = bench_option(argc, argv, "--events", 300000);
    const char   *mode = bench_text_option(argc, argv, "--mode", "ack");
    char         *path = bench_path("bus.db");
    sqlite3      *db = bench_db_open(path, "NORMAL");
    part          bus;
    part          subscriber;
    char          url[256];
    ie_worker    *worker;
    double        subscriber_cpu;
    double        bus_cpu;
    int64_t       first;
    int64_t       cpu;
    ie_error      err = IE_ERROR_INIT;

    bench_schema(db);
    bench_fill(db, "ie_event", events);
    bus_start(&bus, &subscriber, url, sizeof url, mode, events);
    worker = worker_make(path, url, bench_option(argc, argv, "--batch", 0),
                         bench_option(argc, argv, "--in-flight", 0), false);
    first = bench_now_ns();
    cpu = bench_cpu_ns();
    if (ie_worker_run_once(worker, WAIT_MS, NULL, &err) != IE_OK)
        bench_die("run once: %s", err.message);
    bench_print("bus_drain_per_s", mode, (double)events * 1e9 / (double)(bench_now_ns() - first));
    bench_print("bus_drain_worker_cpu_ns", mode, (double)(bench_cpu_ns() - cpu) / (double)events);
    (void)part_figure(&subscriber, "p50_ns");
    (void)part_figure(&subscriber, "p99_ns");
    subscriber_cpu = part_figure(&subscriber, "cpu_ns");
    ie_worker_close(worker);
    part_end(&subscriber);
    (void)fclose(bus.to);
    bus_cpu = part_figure(&bus, "bus_cpu_ns_total");
    bus.to = fopen("/dev/null", "w");
    part_end(&bus);
    bench_print("bus_drain_bus_cpu_ns", mode, bus_cpu / (double)events);
    bench_print("bus_drain_subscriber_cpu_ns", mode, subscriber_cpu / (double)events);
    bench_db_close(db);
    free(path);
}

static void
measure_latency(int argc, char **argv)
{
    const int64_t rate = bench_option(argc, argv, "--rate", 1000);
    const int64_t count = rate * bench_option(argc, argv, "--seconds", 5);
    const int64_t idle = bench_option(argc, argv, "--idle", 10);
    const char   *mode = bench_text_option(argc, argv, "--mode", "ack");
    char         *path = bench_path("latency.db");
    sqlite3      *db = bench_db_open(path, "NORMAL");
    part          bus;
    part          subscriber;
    part          worker;
    part          application;
    char          url[256];
    char          rate_text[32];
    char          count_text[32];
    char          line[64];
    char         *worker_args[] = {(char *)"bench_bus", (char *)"part-worker", path, url, NULL};
    char         *application_args[] = {
                (char *)"bench_bus", (char *)"part-application", path, rate_text, count_text, NULL};

    (void)snprintf(rate_text, sizeof rate_text, "%lld", (long long)rate);
    (void)snprintf(count_text, sizeof count_text, "%lld", (long long)count);
    bench_schema(db);
    bench_db_close(db);
    bus_start(&bus, &subscriber, url, sizeof url, mode, count);
    part_start(&worker, worker_args);
    part_expect(&worker, "ready", NULL, 0);
    part_start(&application, application_args);
    part_expect(&application, "ready", NULL, 0);
    part_say(&application, "go");
    bench_print("latency_commit_p50_us", "ours", part_figure(&application, "commit_p50_ns") / 1e3);
    bench_print("latency_p50_us", "ours", part_figure(&subscriber, "p50_ns") / 1e3);
    bench_print("latency_p99_us", "ours", part_figure(&subscriber, "p99_ns") / 1e3);
    (void)part_figure(&subscriber, "cpu_ns");
    if (idle > 0) {
        (void)snprintf(line, sizeof line, "idle %lld", (long long)idle);
        part_say(&worker, line);
        bench_print("idle_percent", "ours", part_figure(&worker, "idle_percent"));
    }
    part_end(&application);
    part_end(&worker);
    part_end(&subscriber);
    part_end(&bus);
    free(path);
}

int
main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    (void)signal(SIGPIPE, SIG_IGN);
    if (strcmp(what, "part-bus") == 0)
        return part_bus();
    if (strcmp(what, "part-subscriber") == 0 && argc == 5)
        return part_subscriber(argv[2], argv[3], strtoll(argv[4], NULL, 10));
    if (strcmp(what, "part-worker") == 0 && argc == 4)
        return part_worker(argv[2], argv[3]);
    if (strcmp(what, "part-application") == 0 && argc == 5)
        return part_application(argv[2], strtoll(argv[3], NULL, 10), strtoll(argv[4], NULL, 10));
    bench_dir_make(bench_text_option(argc, argv, "--dir", NULL));
    if (strcmp(what, "drain") == 0)
        measure_drain(argc, argv);
    else if (strcmp(what, "latency") == 0)
        measure_latency(argc, argv);
    else
        bench_die("usage: bench_bus drain|latency, see the top of bench_bus.c");
    return 0;
}
