/*
 * kill -9 at random moments: a bus that stores, four publishers and two groups of consumers, which
 * are killed too. The bus comes back each time on the same folder and address. What the groups were
 * given is compared with what was acknowledged. Ends with one line of six numbers:
 *
 *   attempts      events that were handed to the bus
 *   acknowledged  of these, answered as stored
 *   lost          acknowledged events that a group never got
 *   duplicated    deliveries of an event to a group beyond the first (allowed: at least once)
 *   recovered     delivered, though its publisher died before it heard of it
 *   unexpected    delivered and never published, stored twice, or out of order in its key
 *
 * The first group is sticky: the order of a key holds, whoever dies. IE_TEST_SCALE percent of 300
 * rounds; IE_TEST_SEED repeats a run as far as the kernel's scheduling allows.
 */
#include <errno.h>
#include <ftw.h>
#include <ie/bus.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "support.h"

#define PUBLISHERS 4
#define GROUPS     2
#define CONSUMERS  2 /* of each group */
#define KEYS       8 /* of each publisher */
#define EVENTS_MAX 4000000
#define IN_FLIGHT  200
#define WAIT_MS    60000

/* What everybody knows, in memory that survives them. Event n has the id and the data "n"; a
 * publisher's events are numbered in its order, and so are those of a key. */
typedef struct shared {
    atomic_uint  next[PUBLISHERS]; /* events begun by each */
    atomic_uint  acknowledged;
    atomic_bool  is_over; /* publishers end */
    atomic_uint  unexpected;
    atomic_uint  duplicated;
    atomic_uint  positions_again;
    atomic_uchar is_acknowledged[EVENTS_MAX];
    atomic_uchar is_delivered[GROUPS][EVENTS_MAX];
    atomic_long  position[EVENTS_MAX];     /* as the groups were told; one event has one */
    atomic_uint settled[PUBLISHERS][KEYS]; /* newest event of a key that the sticky group handled */
} shared;

static shared  *books;
static char     folder[400];
static char     data_dir[512];
static char     url[512];
static uint64_t random_state;

static unsigned
draw(unsigned below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % below;
}

static void
must(bool ok, const char *what)
{
    if (ok)
        return;
    (void)fprintf(stderr, "crash_bus: %s failed (%s)\n", what, strerror(errno));
    _exit(3);
}

/* A socket file of our own: a TCP port might be taken by somebody while the bus is away. */
static void
make_place(void)
{
    const char *base = getenv("TMPDIR");

    (void)snprintf(folder, sizeof folder, "%s/ie-crash-XXXXXX", base != NULL ? base : "/tmp");
    must(mkdtemp(folder) != NULL, "mkdtemp");
    (void)snprintf(data_dir, sizeof data_dir, "%s/data", folder);
    (void)snprintf(url, sizeof url, "unix:%s/bus.sock", folder);
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void
nap(void)
{
    (void)poll(NULL, 0, 1);
}

/* ---- the bus ---- */

static void
run_bus(void)
{
    const char           *listen[] = {url};
    ie_bus_server_options options;
    ie_bus_server        *server = NULL;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = listen;
    options.listen_count = 1;
    options.data_dir = data_dir;
    options.retry_delay_ms = 10;
    options.retry_delay_ms_max = 50;
    options.attempts_max = 1000000;
    if (ie_bus_server_start(&server, &options, &err) != IE_OK) {
        (void)fprintf(stderr, "crash_bus: %s\n", err.message);
        _exit(4);
    }
    for (;;)
        (void)pause();
}

/* ---- publishers ---- */

typedef struct publisher {
    atomic_uint unanswered;
} publisher;

typedef struct sent {
    publisher *owner;
    unsigned   number;
} sent;

static void
on_answer(void *user, const ie_bus_answer *answer)
{
    sent *at = user;

    if (answer->status == IE_OK && answer->stored &&
        !atomic_exchange(&books->is_acknowledged[at->number], 1))
        (void)atomic_fetch_add(&books->acknowledged, 1);
    (void)atomic_fetch_sub(&at->owner->unanswered, 1);
    free(at);
}

/* What it was told must be true whatever happens to the bus, or to itself. */
static void
run_publisher(int me)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    publisher             self = {.unanswered = 0};
    unsigned              mine = atomic_load(&books->next[me]); /* the one before us was killed */

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.flags = IE_BUS_CLIENT_REPUBLISH; /* again with the same id, in the same order */
    options.reconnect_delay_ms = 5;
    options.reconnect_delay_ms_max = 20;
    must(ie_bus_client_open(&client, &options, NULL) == IE_OK, "open a client");
    while (!atomic_load(&books->is_over)) {
        const unsigned number = mine * PUBLISHERS + (unsigned)me;
        ie_event       event = IE_EVENT_INIT;
        char           id[32];
        char           key[32];
        sent          *at;

        if (number >= EVENTS_MAX)
            break;
        if (atomic_load(&self.unanswered) >= IN_FLIGHT) {
            nap();
            continue;
        }
        at = malloc(sizeof *at);
        must(at != NULL, "malloc");
        at->owner = &self;
        at->number = number;
        (void)snprintf(id, sizeof id, "%u", number);
        (void)snprintf(key, sizeof key, "%d-%u", me, mine % KEYS);
        event.topic = "crash.test";
        event.id = id;
        event.source = "/crash";
        event.key = key;
        event.data = id;
        event.data_bytes = strlen(id);
        (void)atomic_fetch_add(&self.unanswered, 1);
        atomic_store(&books->next[me], mine + 1);
        if (ie_bus_client_publish(client, &event, IE_BUS_PUBLISH_PERSISTENT, on_answer, at, NULL) ==
            IE_OK) {
            mine++;
            if (mine % 50 == 0)
                nap(); /* the test is about crashes, not about speed */
        } else {
            (void)atomic_fetch_sub(&self.unanswered, 1);
            free(at);
            nap();
        }
    }
    for (int i = 0; i < WAIT_MS && atomic_load(&self.unanswered) != 0; i++)
        nap();
    ie_bus_client_close(client);
    _exit(atomic_load(&self.unanswered) == 0 ? 0 : 5);
}

/* ---- consumers ---- */

static int my_group;

/* A repeat may come late. One that comes for the first time may not, when a later one of its key
 * was handled already. */
static void
check_order(unsigned number)
{
    const unsigned mine = number / PUBLISHERS;
    const unsigned settled = atomic_load(&books->settled[number % PUBLISHERS][mine % KEYS]);

    if (!atomic_load(&books->is_delivered[0][number]) && settled > mine + 1) {
        (void)atomic_fetch_add(&books->unexpected, 1);
        (void)fprintf(stderr, "crash_bus: event %u came after a later one of its key\n", number);
    }
}

static ie_status
on_delivery(void *user, const ie_event *event, const ie_bus_delivery *delivery)
{
    char     text[32] = "";
    unsigned number;
    long     position;
    long     none = 0;

    (void)user;
    if (event->data_bytes == 0 || event->data_bytes >= sizeof text) {
        (void)atomic_fetch_add(&books->unexpected, 1);
        return IE_OK;
    }
    memcpy(text, event->data, event->data_bytes);
    number = (unsigned)strtoul(text, NULL, 10);
    position = (long)delivery->position;
    if (number >= EVENTS_MAX || strcmp(text, event->id) != 0 ||
        number / PUBLISHERS >= atomic_load(&books->next[number % PUBLISHERS])) {
        (void)atomic_fetch_add(&books->unexpected, 1);
        return IE_OK;
    }
    if (!atomic_compare_exchange_strong(&books->position[number], &none, position) &&
        none != position)
        (void)atomic_fetch_add(&books->positions_again, 1); /* stored twice */
    if (my_group == 0)
        check_order(number);
    if (number % 97 == 0 && delivery->attempt == 1)
        return IE_EHANDLER; /* some fail at first */
    if (atomic_exchange(&books->is_delivered[my_group][number], 1))
        (void)atomic_fetch_add(&books->duplicated, 1);
    if (my_group == 0) {
        atomic_uint *settled = &books->settled[number % PUBLISHERS][number / PUBLISHERS % KEYS];
        unsigned     before = atomic_load(settled);

        while (before < number / PUBLISHERS + 1 &&
               !atomic_compare_exchange_weak(settled, &before, number / PUBLISHERS + 1)) {
        }
    }
    return IE_OK;
}

static void
run_consumer(int group)
{
    ie_bus_client_options options;
    ie_bus_subscription   subscription;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;

    my_group = group;
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.reconnect_delay_ms = 5;
    options.reconnect_delay_ms_max = 20;
    must(ie_bus_client_open(&client, &options, NULL) == IE_OK, "open a client");
    IE_BUS_SUBSCRIPTION_INIT(&subscription);
    subscription.pattern = "crash.>";
    subscription.group = group == 0 ? "sticky" : "shared";
    subscription.selection = group == 0 ? IE_BUS_STICKY : IE_BUS_ROUND_ROBIN;
    subscription.start = IE_BUS_START_FIRST;
    subscription.on_delivery = on_delivery;
    subscription.credit = 64;
    must(ie_bus_client_subscribe_with(client, &subscription, NULL, &err) == IE_OK, err.message);
    for (;;)
        (void)pause();
}

/* ---- the rounds ---- */

static pid_t
spawn(void (*run)(int), int arg)
{
    const pid_t pid = fork();

    must(pid >= 0, "fork");
    if (pid == 0) {
        (void)signal(SIGPIPE, SIG_IGN);
        run(arg);
        _exit(0);
    }
    return pid;
}

static void
run_bus_arg(int arg)
{
    (void)arg;
    run_bus();
}

static void
kill_now(pid_t pid)
{
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

static unsigned
events_end(void)
{
    unsigned end = 0;

    for (unsigned i = 0; i < PUBLISHERS; i++)
        if (atomic_load(&books->next[i]) > end)
            end = atomic_load(&books->next[i]);
    return end * PUBLISHERS < EVENTS_MAX ? end * PUBLISHERS : EVENTS_MAX;
}

static uint64_t
count_missing(int group)
{
    const unsigned end = events_end();
    uint64_t       missing = 0;

    for (unsigned i = 0; i < end; i++)
        missing +=
            atomic_load(&books->is_acknowledged[i]) && !atomic_load(&books->is_delivered[group][i]);
    return missing;
}

static bool
all_arrived(void *arg)
{
    (void)arg;
    return count_missing(0) + count_missing(1) == 0;
}

int
main(void)
{
    const uint64_t rounds = test_scale(300);
    pid_t          bus;
    pid_t          publishers[PUBLISHERS];
    pid_t          consumers[GROUPS][CONSUMERS];
    uint64_t       attempts = 0, recovered = 0, lost;
    int            status = 0;
    bool           is_good = true;

    random_state = test_seed();
    make_place();
    books = mmap(NULL, sizeof *books, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(books != MAP_FAILED, "mmap");
    bus = spawn(run_bus_arg, 0);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < CONSUMERS; i++)
            consumers[g][i] = spawn(run_consumer, g);
    for (int i = 0; i < PUBLISHERS; i++)
        publishers[i] = spawn(run_publisher, i);
    for (uint64_t round = 0; round < rounds; round++) {
        (void)poll(NULL, 0, 20 + (int)draw(100));
        kill_now(bus);
        if (draw(2) == 0) {
            const unsigned g = draw(GROUPS);
            const unsigned i = draw(CONSUMERS);

            kill_now(consumers[g][i]);
            consumers[g][i] = spawn(run_consumer, (int)g);
        }
        if (draw(4) == 0) {
            const unsigned i = draw(PUBLISHERS);

            kill_now(publishers[i]);
            publishers[i] = spawn(run_publisher, (int)i);
        }
        bus = spawn(run_bus_arg, 0);
    }
    atomic_store(&books->is_over, true);
    for (int i = 0; i < PUBLISHERS; i++) {
        (void)waitpid(publishers[i], &status, 0);
        is_good = is_good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    (void)poll_until(all_arrived, NULL, WAIT_MS);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < CONSUMERS; i++)
            kill_now(consumers[g][i]);
    kill_now(bus);
    lost = count_missing(0) + count_missing(1);
    for (int i = 0; i < PUBLISHERS; i++)
        attempts += atomic_load(&books->next[i]);
    for (unsigned i = 0; i < events_end(); i++)
        recovered +=
            !atomic_load(&books->is_acknowledged[i]) &&
            (atomic_load(&books->is_delivered[0][i]) || atomic_load(&books->is_delivered[1][i]));
    (void)printf(
        "rounds %llu: attempts %llu acknowledged %u lost %llu duplicated %u recovered %llu "
        "unexpected %u\n",
        (unsigned long long)rounds, (unsigned long long)attempts, atomic_load(&books->acknowledged),
        (unsigned long long)lost, atomic_load(&books->duplicated), (unsigned long long)recovered,
        atomic_load(&books->unexpected) + atomic_load(&books->positions_again));
    if (!is_good)
        (void)fprintf(stderr, "crash_bus: a publisher was not answered in the end\n");
    (void)nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return is_good && lost == 0 && atomic_load(&books->unexpected) == 0 &&
                   atomic_load(&books->positions_again) == 0 &&
                   atomic_load(&books->acknowledged) != 0
               ? 0
               : 1;
}
