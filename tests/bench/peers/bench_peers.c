/*
 * The buses side by side; tests/bench/run-bus starts the servers and calls this.
 *
 *   bench_peers stream  --peer P --port N [--bytes N] [--count N] [--ms N] [--subscribers N]
 *   bench_peers latency ... [--rate N]    the same at a steady rate, with the time of each event
 *   bench_peers store   ... [--window N]  publishes acknowledged when they are stored
 *   bench_peers query   ... [--window N]
 *   bench_peers idle    --peer P --port N --server PID --count N
 *   bench_peers serve   ie|relay [--data DIR]    a server: says its port, until it is killed
 *   bench_peers list                             peers of this build, and their tests
 *
 * --server PID: whose CPU time and memory are to be told. One line per figure on stdout;
 * nanoseconds of CPU are per delivery (stream, latency) or per answer (store, query).
 */
#include "peers.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define READY_MS 20000
#define STALL_MS 4000 /* without progress: what has not arrived is lost */
#define IDLE_MAX 20000

static const peers_peer *const PEERS[] = {
    &PEERS_IE,        &PEERS_EB1, &PEERS_RELAY,
#ifdef IE_BENCH_NATS
    &PEERS_NATS,
#endif
#ifdef IE_BENCH_REDIS
    &PEERS_REDIS,
#endif
#ifdef IE_BENCH_MOSQUITTO
    &PEERS_MOSQUITTO,
#endif
};
#define PEER_COUNT (sizeof PEERS / sizeof *PEERS)

/* ---- what a process does with its run ---- */

void
peers_begin(peers_run *run)
{
    run->tick_ns = bench_now_ns();
    run->until_ns += run->tick_ns;
    atomic_store(&run->shared->begun_ns, run->tick_ns);
}

static void
put64(unsigned char *to, int64_t value)
{
    memcpy(to, &value, sizeof value);
}

static int64_t
get64(const unsigned char *from)
{
    int64_t value;

    memcpy(&value, from, sizeof value);
    return value;
}

bool
peers_next(peers_run *run)
{
    const bool looks = run->rate != 0 || (run->next & 255) == 0; /* at the clock */

    if (run->next >= run->count || (looks && bench_now_ns() >= run->until_ns))
        return false;
    if (run->rate != 0) {
        struct timespec when;

        run->tick_ns += 1000000000 / run->rate;
        when.tv_sec = (time_t)(run->tick_ns / 1000000000);
        when.tv_nsec = (long)(run->tick_ns % 1000000000);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) {
        }
        put64(run->data + 8, bench_now_ns());
    }
    put64(run->data, run->next++);
    return true;
}

void
peers_answered(peers_run *run, int64_t count)
{
    atomic_fetch_add_explicit(&run->shared->answered, count, memory_order_relaxed);
}

void
peers_refused(peers_run *run)
{
    atomic_fetch_add(&run->shared->refused, 1);
}

void
peers_sample(peers_run *run, int64_t ns)
{
    const int64_t at =
        atomic_fetch_add_explicit(&run->shared->sample_count, 1, memory_order_relaxed);

    if (at < PEERS_SAMPLES_MAX)
        run->shared->samples[at] = ns;
}

void
peers_ready(peers_run *run)
{
    atomic_fetch_add(&run->shared->ready, 1);
}

void
peers_received(peers_run *run, const void *data, size_t bytes)
{
    const int64_t number = bytes == run->bytes ? get64(data) : -1;
    const int64_t before =
        atomic_load_explicit(&run->shared->subscriber[run->index].received, memory_order_relaxed);

    if (number != run->expected)
        atomic_fetch_add(&run->shared->subscriber[run->index].disordered, 1);
    run->expected = number + 1;
    if (run->rate != 0 && run->index == 0)
        peers_sample(run, bench_now_ns() - get64((const unsigned char *)data + 8));
    if ((before & 15) == 0) /* the time of the last one, give or take */
        atomic_store_explicit(&run->shared->subscriber[run->index].last_ns, bench_now_ns(),
                              memory_order_relaxed);
    atomic_store_explicit(&run->shared->subscriber[run->index].received, before + 1,
                          memory_order_release);
}

int
peers_connect(const peers_run *run)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)run->port)};
    const int          fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int          one = 1;

    (void)inet_pton(AF_INET, run->server, &address.sin_addr);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        bench_die("connect to port %d: %s", run->port, strerror(errno));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

void
peers_write_all(int fd, const void *bytes, size_t size)
{
    const char *from = bytes;

    while (size > 0) {
        const ssize_t sent = write(fd, from, size);

        if (sent < 0 && errno != EINTR)
            bench_die("write: %s", strerror(errno));
        if (sent > 0) {
            from += sent;
            size -= (size_t)sent;
        }
    }
}

/* ---- processes ---- */

typedef void (*part_fn)(peers_run *run);

static pid_t
start(part_fn part, peers_run *run)
{
    const pid_t pid = fork();

    if (pid < 0)
        bench_die("fork: %s", strerror(errno));
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing outlives an interrupted run */
        part(run);
        _exit(0);
    }
    return pid;
}

/* Its CPU time in ns. One that was not killed must have ended well. */
static int64_t
end(pid_t pid, bool kills)
{
    struct rusage usage;
    int           status = 0;

    if (kills)
        (void)kill(pid, SIGKILL);
    if (wait4(pid, &status, 0, &usage) != pid || (!kills && status != 0))
        bench_die("a part ended with status %x", (unsigned)status);
    return ((int64_t)usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000 +
           ((int64_t)usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

/* CPU time of a server, all its threads. */
static int64_t
server_cpu_ns(int64_t pid)
{
    char           path[300];
    int64_t        total = 0;
    struct dirent *entry;
    DIR           *dir;

    if (pid == 0)
        return 0;
    (void)snprintf(path, sizeof path, "/proc/%lld/task", (long long)pid);
    dir = opendir(path);
    if (dir == NULL)
        bench_die("no process %lld", (long long)pid);
    while ((entry = readdir(dir)) != NULL) {
        FILE     *file;
        long long ns = 0;

        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof path, "/proc/%lld/task/%s/schedstat", (long long)pid,
                       entry->d_name);
        file = fopen(path, "r");
        if (file != NULL && fscanf(file, "%lld", &ns) == 1)
            total += ns;
        if (file != NULL)
            (void)fclose(file);
    }
    (void)closedir(dir);
    return total;
}

static void
pause_ms(int64_t ms)
{
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    (void)nanosleep(&time, NULL);
}

static void
await_ready(const peers_run *run, int count)
{
    const int64_t deadline = bench_now_ns() + (int64_t)READY_MS * 1000000;

    while (atomic_load(&run->shared->ready) < count) {
        if (bench_now_ns() > deadline)
            bench_die("only %d of %d subscribers are ready", atomic_load(&run->shared->ready),
                      count);
        pause_ms(1);
    }
}

static int64_t
received_by_all(const peers_run *run, int subscribers)
{
    int64_t total = 0;

    for (int i = 0; i < subscribers; i++)
        total += atomic_load_explicit(&run->shared->subscriber[i].received, memory_order_acquire);
    return total;
}

/* Until everything that was sent has arrived, or nothing arrives any more. */
static void
await_received(const peers_run *run, int subscribers)
{
    const int64_t wanted = atomic_load(&run->shared->sent) * subscribers;
    int64_t       seen = -1;
    int64_t       since = bench_now_ns();

    for (;;) {
        const int64_t now = bench_now_ns();
        const int64_t total = received_by_all(run, subscribers);

        if (total >= wanted || (total == seen && now - since > (int64_t)STALL_MS * 1000000))
            return;
        if (total != seen)
            since = now;
        seen = total;
        pause_ms(1);
    }
}

/* ---- what is told ---- */

static int
compare(const void *a, const void *b)
{
    const int64_t left = *(const int64_t *)a;
    const int64_t right = *(const int64_t *)b;

    return (left > right) - (left < right);
}

static void
tell_samples(const char *name, peers_shared *shared)
{
    int64_t count = atomic_load(&shared->sample_count);

    if (count > PEERS_SAMPLES_MAX)
        count = PEERS_SAMPLES_MAX;
    if (count == 0)
        return;
    qsort(shared->samples, (size_t)count, sizeof *shared->samples, compare);
    bench_print("p50_us", name, (double)shared->samples[count / 2] / 1e3);
    bench_print("p99_us", name, (double)shared->samples[count * 99 / 100] / 1e3);
}

static void
tell(const char *name, peers_shared *shared, int64_t wanted, int64_t got, int64_t last_ns,
     const int64_t cpu_ns[3])
{
    static const char *const WHOSE[] = {"broker_cpu_ns", "publisher_cpu_ns", "subscriber_cpu_ns"};
    const int64_t            took = last_ns - atomic_load(&shared->begun_ns);

    bench_print("events", name, (double)atomic_load(&shared->sent));
    bench_print("lost", name, (double)(wanted - got));
    bench_print("refused", name, (double)atomic_load(&shared->refused));
    bench_print("per_s", name, took > 0 ? (double)got * 1e9 / (double)took : 0);
    for (size_t i = 0; i < 3; i++)
        bench_print(WHOSE[i], name, got > 0 ? (double)cpu_ns[i] / (double)got : 0);
    tell_samples(name, shared);
}

static void
publish_part(peers_run *run, part_fn publish)
{
    publish(run);
    atomic_store(&run->shared->ended_ns, bench_now_ns());
    atomic_store(&run->shared->sent, run->next);
}

static part_fn active; /* of the publisher or asker that is to be started */

static void
active_part(peers_run *run)
{
    publish_part(run, active);
}

/* ---- tests ---- */

/* stream and latency */
static void
test_stream(const peers_peer *peer, peers_run *run, int subscribers, int64_t server)
{
    pid_t   pids[PEERS_SUBSCRIBERS_MAX];
    int64_t cpu_ns[3] = {0, 0, 0};
    int64_t disordered = 0;
    int64_t last_ns;
    int64_t got;

    for (run->index = 0; run->index < subscribers; run->index++)
        pids[run->index] = start(peer->subscribe, run);
    await_ready(run, subscribers);
    cpu_ns[0] = server_cpu_ns(server);
    active = peer->publish;
    cpu_ns[1] = end(start(active_part, run), false);
    await_received(run, subscribers);
    cpu_ns[0] = server_cpu_ns(server) - cpu_ns[0];
    last_ns = atomic_load(&run->shared->begun_ns);
    for (int i = 0; i < subscribers; i++) {
        const int64_t at = atomic_load(&run->shared->subscriber[i].last_ns);

        cpu_ns[2] += end(pids[i], true);
        last_ns = at > last_ns ? at : last_ns;
        disordered += atomic_load(&run->shared->subscriber[i].disordered);
    }
    got = received_by_all(run, subscribers);
    tell(peer->name, run->shared, atomic_load(&run->shared->sent) * subscribers, got, last_ns,
         cpu_ns);
    bench_print("disordered", peer->name, (double)disordered);
}

static void
test_store(const peers_peer *peer, peers_run *run, int64_t server)
{
    int64_t cpu_ns[3] = {server_cpu_ns(server), 0, 0};

    active = peer->store;
    cpu_ns[1] = end(start(active_part, run), false);
    cpu_ns[0] = server_cpu_ns(server) - cpu_ns[0];
    tell(peer->name, run->shared, atomic_load(&run->shared->sent),
         atomic_load(&run->shared->answered), atomic_load(&run->shared->ended_ns), cpu_ns);
}

static void
test_query(const peers_peer *peer, peers_run *run, int64_t server)
{
    const pid_t responder = start(peer->serve, run);
    int64_t     cpu_ns[3];

    await_ready(run, 1);
    cpu_ns[0] = server_cpu_ns(server);
    active = peer->ask;
    cpu_ns[1] = end(start(active_part, run), false);
    cpu_ns[0] = server_cpu_ns(server) - cpu_ns[0];
    cpu_ns[2] = end(responder, true);
    tell(peer->name, run->shared, atomic_load(&run->shared->sent),
         atomic_load(&run->shared->answered), atomic_load(&run->shared->ended_ns), cpu_ns);
}

static int64_t
resident_kib(int64_t pid)
{
    char    path[64];
    char    line[256];
    int64_t kib = 0;
    FILE   *file;

    (void)snprintf(path, sizeof path, "/proc/%lld/status", (long long)pid);
    file = fopen(path, "r");
    if (file == NULL)
        bench_die("no process %lld", (long long)pid);
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kib = strtoll(line + 6, NULL, 10);
    (void)fclose(file);
    return kib;
}

static void
test_idle(const peers_peer *peer, peers_run *run, int64_t server)
{
    static int    fds[IDLE_MAX];
    const int64_t before = resident_kib(server);
    int64_t       after;

    if (run->count > IDLE_MAX)
        run->count = IDLE_MAX;
    for (int i = 0; i < run->count; i++) {
        unsigned char in[4096];
        size_t        want;
        size_t        have = 0;

        fds[i] = peers_connect(run);
        want = peer->idle(fds[i]);
        while (have < want) {
            const ssize_t got = read(fds[i], in, sizeof in);

            if (got <= 0)
                bench_die("connection %d of %lld was closed", i + 1, (long long)run->count);
            have += (size_t)got;
        }
    }
    after = resident_kib(server);
    bench_print("rss_empty_kib", peer->name, (double)before);
    bench_print("rss_kib", peer->name, (double)after);
    bench_print("connection_kib", peer->name, (double)(after - before) / (double)run->count);
    for (int i = 0; i < run->count; i++)
        (void)close(fds[i]);
}

/* ---- words ---- */

static const peers_peer *
find(const char *name)
{
    for (size_t i = 0; i < PEER_COUNT; i++)
        if (strcmp(PEERS[i]->name, name) == 0)
            return PEERS[i];
    bench_die("this build has no peer '%s'", name);
}

static peers_run *
run_make(int argc, char **argv)
{
    peers_run *run = calloc(1, sizeof *run);
    void      *shared =
        mmap(NULL, sizeof(peers_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (run == NULL || shared == MAP_FAILED)
        bench_die("out of memory");
    run->shared = shared;
    run->server = "127.0.0.1";
    run->port = (int)bench_option(argc, argv, "--port", 0);
    run->bytes = (size_t)bench_option(argc, argv, "--bytes", 128);
    run->count = bench_option(argc, argv, "--count", 100000);
    run->until_ns = bench_option(argc, argv, "--ms", 10000) * 1000000;
    run->rate = bench_option(argc, argv, "--rate", 0);
    run->window = bench_option(argc, argv, "--window", 1);
    if (run->bytes < PEERS_DATA_MIN || run->bytes > sizeof run->data)
        bench_die("--bytes: %d to %zu", PEERS_DATA_MIN, sizeof run->data);
    memset(run->data, 'x', run->bytes);
    return run;
}

int
main(int argc, char **argv)
{
    const char       *test = argc > 1 ? argv[1] : "";
    const int         subscribers = (int)bench_option(argc, argv, "--subscribers", 1);
    const int64_t     server = bench_option(argc, argv, "--server", 0);
    const peers_peer *peer;
    peers_run        *run;

    (void)signal(SIGPIPE, SIG_IGN);
    if (strcmp(test, "list") == 0) {
        for (size_t i = 0; i < PEER_COUNT; i++)
            (void)printf(
                "%s%s%s%s%s\n", PEERS[i]->name, PEERS[i]->publish != NULL ? " stream latency" : "",
                PEERS[i]->store != NULL ? " store" : "", PEERS[i]->ask != NULL ? " query" : "",
                PEERS[i]->idle != NULL ? " idle" : "");
        return 0;
    }
    if (strcmp(test, "serve") == 0 && argc > 2) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (strcmp(argv[2], "relay") == 0)
            peers_relay_serve();
        else
            peers_ie_serve(bench_text_option(argc, argv, "--data", NULL));
        return 0;
    }
    peer = find(bench_text_option(argc, argv, "--peer", "ie"));
    run = run_make(argc, argv);
    if (subscribers < 1 || subscribers > PEERS_SUBSCRIBERS_MAX)
        bench_die("--subscribers: 1 to %d", PEERS_SUBSCRIBERS_MAX);
    if (strcmp(test, "latency") == 0 && run->rate == 0)
        run->rate = 1000;
    if (peer->prepare != NULL)
        (void)end(start(peer->prepare, run), false);
    if ((strcmp(test, "stream") == 0 || strcmp(test, "latency") == 0) && peer->publish != NULL)
        test_stream(peer, run, subscribers, server);
    else if (strcmp(test, "store") == 0 && peer->store != NULL)
        test_store(peer, run, server);
    else if (strcmp(test, "query") == 0 && peer->ask != NULL)
        test_query(peer, run, server);
    else if (strcmp(test, "idle") == 0 && peer->idle != NULL)
        test_idle(peer, run, server);
    else
        bench_die("no test '%s' of %s", test, peer->name);
    return 0;
}
