/* nats-server through its C client: core publishes, JetStream files, requests. */
#include "peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nats/nats.h>

#define SUBJECT     PEERS_TOPIC
#define STORED      "bench.stored.new"
#define STREAM      "BENCH"
#define WAIT_MS     10000
#define PENDING_MAX 1000000

static void
check(natsStatus status, const char *what)
{
    if (status != NATS_OK)
        bench_die("nats: %s: %s", what, natsStatus_GetText(status));
}

/* soon: what is published is written at once instead of being gathered for its flusher. */
static natsConnection *
connection(const peers_run *run, bool soon)
{
    natsOptions    *options = NULL;
    natsConnection *made = NULL;
    char            url[64];

    (void)snprintf(url, sizeof url, "nats://%s:%d", run->server, run->port);
    check(natsOptions_Create(&options), "options");
    check(natsOptions_SetURL(options, url), "url");
    check(natsOptions_SetMaxPendingMsgs(options, PENDING_MAX), "pending");
    check(natsOptions_SetSendAsap(options, soon), "send asap");
    check(natsConnection_Connect(&made, options), "connect");
    natsOptions_Destroy(options);
    return made;
}

static void
until_killed(void)
{
    for (;;)
        (void)pause();
}

static void
on_message(natsConnection *nats, natsSubscription *from, natsMsg *message, void *user)
{
    (void)nats;
    (void)from;
    peers_received(user, natsMsg_GetData(message), (size_t)natsMsg_GetDataLength(message));
    natsMsg_Destroy(message);
}

static void
hear(natsConnection *nats, const char *subject, natsMsgHandler handler, void *user)
{
    natsSubscription *made = NULL;

    check(natsConnection_Subscribe(&made, nats, subject, handler, user), "subscribe");
    check(natsSubscription_SetPendingLimits(made, -1, -1), "limits");
    check(natsConnection_FlushTimeout(nats, WAIT_MS), "flush");
}

static void
subscribe(peers_run *run)
{
    hear(connection(run, false), SUBJECT, on_message, run);
    peers_ready(run);
    until_killed();
}

static void
publish(peers_run *run)
{
    natsConnection *nats = connection(run, run->rate != 0);

    peers_begin(run);
    while (peers_next(run))
        check(natsConnection_Publish(nats, SUBJECT, run->data, (int)run->bytes), "publish");
    check(natsConnection_FlushTimeout(nats, WAIT_MS), "flush");
    natsConnection_Destroy(nats);
}

/* ---- JetStream, file storage: acknowledged when written, synced every two minutes ---- */

static jsCtx *
jetstream(natsConnection *nats, const peers_run *run)
{
    static const char *subjects[] = {STORED};
    jsStreamConfig     config;
    jsOptions          options;
    jsCtx             *made = NULL;

    check(jsOptions_Init(&options), "options");
    options.PublishAsync.MaxPending = run->window;
    options.PublishAsync.StallWait = WAIT_MS;
    check(natsConnection_JetStream(&made, nats, &options), "jetstream");
    (void)js_DeleteStream(made, STREAM, NULL, NULL);
    check(jsStreamConfig_Init(&config), "config");
    config.Name = STREAM;
    config.Subjects = subjects;
    config.SubjectsLen = 1;
    config.Storage = js_FileStorage;
    check(js_AddStream(NULL, made, &config, NULL, NULL), "stream");
    return made;
}

static void
store(peers_run *run)
{
    natsConnection *nats = connection(run, run->window == 1);
    jsCtx          *js = jetstream(nats, run);
    jsStreamInfo   *info = NULL;
    jsPubOptions    options;

    peers_begin(run);
    while (peers_next(run)) {
        const int64_t since = bench_now_ns();

        if (run->window > 1) {
            check(js_PublishAsync(js, STORED, run->data, (int)run->bytes, NULL), "publish");
            continue;
        }
        check(js_Publish(NULL, js, STORED, run->data, (int)run->bytes, NULL, NULL), "publish");
        peers_sample(run, bench_now_ns() - since);
    }
    check(jsPubOptions_Init(&options), "options");
    options.MaxWait = WAIT_MS;
    if (run->window > 1)
        check(js_PublishAsyncComplete(js, &options), "answers");
    atomic_store(&run->shared->ended_ns, bench_now_ns());
    check(js_GetStreamInfo(&info, js, STREAM, NULL, NULL), "info");
    peers_answered(run, (int64_t)info->State.Msgs);
    jsStreamInfo_Destroy(info);
    (void)js_DeleteStream(js, STREAM, NULL, NULL);
    jsCtx_Destroy(js);
    natsConnection_Destroy(nats);
}

/* ---- requests ---- */

static void
on_request(natsConnection *nats, natsSubscription *from, natsMsg *message, void *user)
{
    (void)from;
    (void)user;
    check(natsConnection_Publish(nats, natsMsg_GetReply(message), natsMsg_GetData(message),
                                 natsMsg_GetDataLength(message)),
          "answer");
    natsMsg_Destroy(message);
}

static void
serve(peers_run *run)
{
    hear(connection(run, true), SUBJECT, on_request, run);
    peers_ready(run);
    until_killed();
}

typedef struct asker {
    pthread_mutex_t mutex;
    pthread_cond_t  changed;
    natsConnection *nats;
    natsInbox      *inbox;
    peers_run      *run;
    int64_t         open;
    int64_t         began_ns[65536];
} asker;

static void
ask_more(asker *self) /* mutex held */
{
    while (self->open < self->run->window && peers_next(self->run)) {
        self->open++;
        self->began_ns[(self->run->next - 1) & 65535] = bench_now_ns();
        check(natsConnection_PublishRequest(self->nats, SUBJECT, self->inbox, self->run->data,
                                            (int)self->run->bytes),
              "request");
    }
}

static void
on_reply(natsConnection *nats, natsSubscription *from, natsMsg *message, void *user)
{
    asker  *self = user;
    int64_t number;

    (void)nats;
    (void)from;
    memcpy(&number, natsMsg_GetData(message), sizeof number);
    natsMsg_Destroy(message);
    peers_sample(self->run, bench_now_ns() - self->began_ns[number & 65535]);
    peers_answered(self->run, 1);
    (void)pthread_mutex_lock(&self->mutex);
    self->open--;
    ask_more(self);
    if (self->open == 0)
        (void)pthread_cond_signal(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
}

static void
ask_one_by_one(peers_run *run)
{
    natsConnection *nats = connection(run, true);

    peers_begin(run);
    while (peers_next(run)) {
        const int64_t since = bench_now_ns();
        natsMsg      *reply = NULL;

        check(natsConnection_Request(&reply, nats, SUBJECT, run->data, (int)run->bytes, WAIT_MS),
              "request");
        peers_sample(run, bench_now_ns() - since);
        peers_answered(run, 1);
        natsMsg_Destroy(reply);
    }
}

static void
ask(peers_run *run)
{
    asker *self;

    if (run->window == 1) {
        ask_one_by_one(run);
        return;
    }
    self = calloc(1, sizeof *self);
    if (self == NULL)
        bench_die("out of memory");
    (void)pthread_mutex_init(&self->mutex, NULL);
    (void)pthread_cond_init(&self->changed, NULL);
    self->nats = connection(run, true);
    self->run = run;
    check(natsInbox_Create(&self->inbox), "inbox");
    hear(self->nats, self->inbox, on_reply, self);
    peers_begin(run);
    (void)pthread_mutex_lock(&self->mutex);
    ask_more(self);
    while (self->open > 0)
        (void)pthread_cond_wait(&self->changed, &self->mutex);
    (void)pthread_mutex_unlock(&self->mutex);
}

static size_t
idle(int fd)
{
    char out[128];

    peers_write_all(
        fd, out,
        (size_t)snprintf(out, sizeof out,
                         "CONNECT {\"verbose\":false}\r\nSUB bench.idle.%d 1\r\nPING\r\n", fd));
    return 100; /* its INFO is longer than that, and the PONG follows */
}

const peers_peer PEERS_NATS = {
    .name = "nats",
    .subscribe = subscribe,
    .publish = publish,
    .store = store,
    .serve = serve,
    .ask = ask,
    .idle = idle,
};
