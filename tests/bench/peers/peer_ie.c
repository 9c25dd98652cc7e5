/* The bus under test, through its own client: live subscriptions, and every publish answered. */
#include "peers.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS 10000

static ie_bus_client *
client_open(const peers_run *run)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;
    char                  url[64];

    (void)snprintf(url, sizeof url, "socket://%s:%d", run->server, run->port);
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    if (ie_bus_client_open(&client, &options, &err) != IE_OK ||
        ie_bus_client_wait_connected(client, WAIT_MS, &err) != IE_OK)
        bench_die("ie: %s", err.message);
    return client;
}

static void
until_killed(void)
{
    for (;;)
        (void)pause();
}

static ie_event
event_of(const peers_run *run)
{
    ie_event event = IE_EVENT_INIT;

    event.topic = PEERS_TOPIC;
    event.data = run->data;
    event.data_bytes = run->bytes;
    event.content_type = "application/octet-stream";
    return event;
}

/* ---- subscriber ---- */

static ie_status
on_event(void *user, const ie_event *event)
{
    peers_received(user, event->data, event->data_bytes);
    return IE_OK;
}

static void
subscribe(peers_run *run)
{
    ie_bus_client *client = client_open(run);
    ie_error       err = IE_ERROR_INIT;

    if (ie_bus_client_subscribe(client, PEERS_TOPIC, NULL, 0, on_event, run, NULL, &err) != IE_OK ||
        ie_bus_client_wait_subscribed(client, WAIT_MS, &err) != IE_OK)
        bench_die("ie: %s", err.message);
    peers_ready(run);
    until_killed();
}

/* ---- publisher ---- */

/* Publishes are counted by who sends, answers by the client's thread: neither waits for the other's
 * cache line more than it must. */
typedef struct window {
    pthread_mutex_t mutex;
    pthread_cond_t  changed;
    peers_run      *run;
    int64_t         sent;
    _Alignas(64) _Atomic int64_t answered;
    _Atomic int64_t wanted; /* wake the sender at so many; INT64_MAX: it does not wait */
} window;

static int64_t
answered(const window *self)
{
    return atomic_load_explicit(&self->answered, memory_order_acquire);
}

/* Until at most so many are not answered. The time-out covers a wake-up that was missed. */
static void
window_await(window *self, int64_t open)
{
    struct timespec until;

    (void)pthread_mutex_lock(&self->mutex);
    atomic_store(&self->wanted, self->sent - open);
    while (self->sent - answered(self) > open) {
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&self->changed, &self->mutex, &until);
    }
    atomic_store(&self->wanted, INT64_MAX);
    (void)pthread_mutex_unlock(&self->mutex);
}

static void
on_answer(void *user, const ie_bus_answer *answer)
{
    window       *self = user;
    const int64_t now = atomic_load_explicit(&self->answered, memory_order_relaxed) + 1;

    if (answer->status != IE_OK)
        peers_refused(self->run);
    atomic_store_explicit(&self->answered, now, memory_order_release);
    if (now == atomic_load_explicit(&self->wanted, memory_order_relaxed)) {
        (void)pthread_mutex_lock(&self->mutex);
        (void)pthread_cond_signal(&self->changed);
        (void)pthread_mutex_unlock(&self->mutex);
    }
}

static void
send_all(peers_run *run, uint32_t flags, int64_t most)
{
    ie_bus_client *client = client_open(run);
    window         self = {.run = run};
    const ie_event event = event_of(run);
    ie_error       err = IE_ERROR_INIT;

    (void)pthread_mutex_init(&self.mutex, NULL);
    (void)pthread_cond_init(&self.changed, NULL);
    atomic_store(&self.wanted, INT64_MAX);
    peers_begin(run);
    while (peers_next(run)) {
        ie_status status;

        if (self.sent - answered(&self) >= most)
            window_await(&self, most - most / 4);
        while ((status = ie_bus_client_publish(client, &event, flags, on_answer, &self, &err)) ==
               IE_ELIMIT) {
            /* bytes, not events, fill the queue: a quarter of what is out has to be answered */
            window_await(&self, (self.sent - answered(&self)) * 3 / 4);
            err.status = IE_OK;
        }
        if (status != IE_OK)
            bench_die("ie: %s", err.message);
        self.sent++;
    }
    window_await(&self, 0);
    peers_answered(run, answered(&self) - atomic_load(&run->shared->refused));
    ie_bus_client_close(client);
}

static void
publish(peers_run *run)
{
    send_all(run, 0, 16384); /* the client's own limit */
}

static void
store(peers_run *run)
{
    if (run->window == 1) {
        ie_bus_client *client = client_open(run);
        const ie_event event = event_of(run);
        ie_error       err = IE_ERROR_INIT;

        peers_begin(run);
        while (peers_next(run)) {
            const int64_t since = bench_now_ns();

            if (ie_bus_client_publish_wait(client, &event, IE_BUS_PUBLISH_PERSISTENT, WAIT_MS,
                                           &err) != IE_OK)
                bench_die("ie: %s", err.message);
            peers_sample(run, bench_now_ns() - since);
            peers_answered(run, 1);
        }
        return;
    }
    send_all(run, IE_BUS_PUBLISH_PERSISTENT, run->window);
}

/* ---- queries ---- */

static ie_bus_client *responder;

static void
on_question(void *user, const ie_event *question, uint64_t token)
{
    ie_event answer = IE_EVENT_INIT;
    ie_error err = IE_ERROR_INIT;

    (void)user;
    answer.data = question->data;
    answer.data_bytes = question->data_bytes;
    answer.content_type = question->content_type;
    if (ie_bus_client_answer(responder, token, &answer, &err) != IE_OK)
        bench_die("ie: %s", err.message);
}

static void
serve(peers_run *run)
{
    ie_error err = IE_ERROR_INIT;

    responder = client_open(run);
    if (ie_bus_client_serve(responder, PEERS_TOPIC, NULL, on_question, run, NULL, &err) != IE_OK ||
        ie_bus_client_wait_subscribed(responder, WAIT_MS, &err) != IE_OK)
        bench_die("ie: %s", err.message);
    peers_ready(run);
    until_killed();
}

typedef struct asker {
    pthread_mutex_t mutex;
    pthread_cond_t  changed;
    ie_bus_client  *client;
    peers_run      *run;
    int64_t         open;
    int64_t         began_ns[65536]; /* by the question's number, from which the answer is known */
} asker;

static void ask_more(asker *self); /* mutex held */

static void
on_reply(void *user, const ie_bus_reply *reply)
{
    asker  *self = user;
    int64_t number;

    if (reply->event != NULL) {
        memcpy(&number, reply->event->data, sizeof number);
        peers_sample(self->run, bench_now_ns() - self->began_ns[number & 65535]);
        peers_answered(self->run, 1);
        return;
    }
    if (reply->status != IE_OK)
        peers_refused(self->run);
    (void)pthread_mutex_lock(&self->mutex);
    self->open--;
    ask_more(self);
    if (self->open == 0)
        (void)pthread_cond_signal(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
}

static void
ask_more(asker *self)
{
    const ie_event event = event_of(self->run);
    ie_error       err = IE_ERROR_INIT;

    while (self->open < self->run->window && peers_next(self->run)) {
        self->open++;
        self->began_ns[(self->run->next - 1) & 65535] = bench_now_ns();
        if (ie_bus_client_query(self->client, &event, WAIT_MS, 1, on_reply, self, NULL, &err) !=
            IE_OK)
            bench_die("ie: %s", err.message);
    }
}

static void
ask(peers_run *run)
{
    asker *self = calloc(1, sizeof *self);

    if (self == NULL)
        bench_die("out of memory");
    (void)pthread_mutex_init(&self->mutex, NULL);
    (void)pthread_cond_init(&self->changed, NULL);
    self->client = client_open(run);
    self->run = run;
    peers_begin(run);
    if (run->window == 1) {
        while (peers_next(run)) {
            const int64_t since = bench_now_ns();
            ie_buffer     answer = {NULL, 0, 0};
            ie_error      err = IE_ERROR_INIT;

            if (ie_bus_client_query_wait(self->client, PEERS_TOPIC, run->data, run->bytes, WAIT_MS,
                                         &answer, &err) != IE_OK)
                bench_die("ie: %s", err.message);
            peers_sample(run, bench_now_ns() - since);
            peers_answered(run, 1);
            ie_buffer_fini(&answer);
        }
        return;
    }
    (void)pthread_mutex_lock(&self->mutex);
    ask_more(self);
    while (self->open > 0)
        (void)pthread_cond_wait(&self->changed, &self->mutex);
    (void)pthread_mutex_unlock(&self->mutex);
}

/* ---- an idle connection, by hand: a client of ours would bring a thread ---- */

static size_t
idle(int fd)
{
    /* greeting, hello without fields, subscribe with a pattern whose length comes last */
    static const unsigned char BEGIN[] = "\0SP\0\0\xac\0\0"
                                         "\0\0\0\0\0\0\0\x08"
                                         "eb\x22\x01\0\0\0\0"
                                         "\0\0\0\0\0\0\0\0"
                                         "eb\x22\x20\0\0\0\x01"
                                         "\x09\0";
    unsigned char              out[128];
    const int length = snprintf((char *)out + sizeof BEGIN, 32, "bench.idle.%d", fd);

    memcpy(out, BEGIN, sizeof BEGIN - 1);
    out[sizeof BEGIN - 1] = (unsigned char)length;
    out[31] = (unsigned char)(8 + 3 + length);
    peers_write_all(fd, out, sizeof BEGIN + (size_t)length);
    return 8 + 16 + 16; /* greeting, welcome, subscribed */
}

const peers_peer PEERS_IE = {
    .name = "ie",
    .subscribe = subscribe,
    .publish = publish,
    .store = store,
    .serve = serve,
    .ask = ask,
    .idle = idle,
};

/* ---- the server ---- */

void
peers_ie_serve(const char *data_dir)
{
    static const char *const LISTEN[] = {"socket://127.0.0.1:0"};
    ie_bus_server_options    options;
    ie_bus_server           *server = NULL;
    ie_error                 err = IE_ERROR_INIT;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = LISTEN;
    options.listen_count = 1;
    options.data_dir = data_dir;
    options.connections_max = 20000;
    if (ie_bus_server_start(&server, &options, &err) != IE_OK)
        bench_die("ie: %s", err.message);
    (void)printf("ready %s\n", strrchr(ie_bus_server_address(server, 0), ':') + 1);
    (void)fflush(stdout);
    until_killed();
}
