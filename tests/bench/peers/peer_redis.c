/* redis-server through hiredis: PUBLISH and SUBSCRIBE, XADD, and queries by two channels. */
#include "peers.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <hiredis/hiredis.h>

#define AT_ONCE 100 /* commands written together, their replies read together */
#define STREAM  "bench.stored"
#define ANSWERS "bench.answers"

static redisContext *
connection(const peers_run *run)
{
    redisContext *made = redisConnect(run->server, run->port);
    const int     one = 1;

    if (made == NULL || made->err != 0)
        bench_die("redis: connect: %s", made != NULL ? made->errstr : "out of memory");
    (void)setsockopt(made->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return made;
}

static redisReply *
next_reply(redisContext *redis)
{
    void *reply = NULL;

    if (redisGetReply(redis, &reply) != REDIS_OK)
        bench_die("redis: %s", redis->errstr);
    if (((redisReply *)reply)->type == REDIS_REPLY_ERROR)
        bench_die("redis: %s", ((redisReply *)reply)->str);
    return reply;
}

/* One that was read already, or NULL. */
static redisReply *
read_reply(redisContext *redis)
{
    void *reply = NULL;

    if (redisGetReplyFromReader(redis, &reply) != REDIS_OK)
        bench_die("redis: %s", redis->errstr);
    return reply;
}

static void
replies(redisContext *redis, int64_t *open, peers_run *run)
{
    for (; *open > 0; --*open) {
        freeReplyObject(next_reply(redis));
        if (run != NULL)
            peers_answered(run, 1);
    }
}

static void
hear(redisContext *redis, const char *channel)
{
    freeReplyObject(redisCommand(redis, "SUBSCRIBE %s", channel));
}

static void
send_publish(redisContext *redis, const char *channel, const void *data, size_t bytes)
{
    const char  *words[] = {"PUBLISH", channel, data};
    const size_t sizes[] = {7, strlen(channel), bytes};

    (void)redisAppendCommandArgv(redis, 3, words, sizes);
}

static void
subscribe(peers_run *run)
{
    redisContext *redis = connection(run);

    hear(redis, PEERS_TOPIC);
    peers_ready(run);
    for (;;) {
        redisReply *reply = next_reply(redis);

        if (reply->elements == 3)
            peers_received(run, reply->element[2]->str, (size_t)reply->element[2]->len);
        freeReplyObject(reply);
    }
}

static void
publish(peers_run *run)
{
    redisContext *redis = connection(run);
    const int64_t most = run->rate != 0 ? 1 : AT_ONCE;
    int64_t       open = 0;

    peers_begin(run);
    while (peers_next(run)) {
        send_publish(redis, PEERS_TOPIC, run->data, run->bytes);
        if (++open == most)
            replies(redis, &open, NULL);
    }
    replies(redis, &open, NULL);
    redisFree(redis);
}

static void
store(peers_run *run)
{
    redisContext *redis = connection(run);
    const char   *words[] = {"XADD", STREAM, "*", "d", (char *)run->data};
    const size_t  sizes[] = {4, strlen(STREAM), 1, 1, run->bytes};
    int64_t       open = 0;

    freeReplyObject(redisCommand(redis, "DEL " STREAM));
    peers_begin(run);
    while (peers_next(run)) {
        const int64_t since = bench_now_ns();

        (void)redisAppendCommandArgv(redis, 5, words, sizes);
        if (++open < run->window)
            continue;
        replies(redis, &open, run);
        if (run->window == 1)
            peers_sample(run, bench_now_ns() - since);
    }
    replies(redis, &open, run);
    atomic_store(&run->shared->ended_ns, bench_now_ns());
    freeReplyObject(redisCommand(redis, "DEL " STREAM));
    redisFree(redis);
}

/* All questions that came in one read are answered with one write. */
static void
serve(peers_run *run)
{
    redisContext *questions = connection(run);
    redisContext *answers = connection(run);

    hear(questions, PEERS_TOPIC);
    peers_ready(run);
    for (;;) {
        redisReply *reply = next_reply(questions);
        int64_t     open = 0;

        for (; reply != NULL; reply = read_reply(questions), open++) {
            send_publish(answers, ANSWERS, reply->element[2]->str, reply->element[2]->len);
            freeReplyObject(reply);
        }
        replies(answers, &open, NULL);
    }
}

static void
ask(peers_run *run)
{
    redisContext *questions = connection(run);
    redisContext *answers = connection(run);
    int64_t      *began = calloc(65536, sizeof *began);
    int64_t       answered = 0;
    bool          is_more = true;

    if (began == NULL)
        bench_die("out of memory");
    hear(answers, ANSWERS);
    peers_begin(run);
    for (;;) {
        int64_t     open = 0;
        redisReply *reply;

        while (run->next - answered < run->window && (is_more = is_more && peers_next(run))) {
            began[(run->next - 1) & 65535] = bench_now_ns();
            send_publish(questions, PEERS_TOPIC, run->data, run->bytes);
            open++;
        }
        replies(questions, &open, NULL);
        if (run->next == answered)
            return;
        for (reply = next_reply(answers); reply != NULL; reply = read_reply(answers)) {
            int64_t number;

            memcpy(&number, reply->element[2]->str, sizeof number);
            peers_sample(run, bench_now_ns() - began[number & 65535]);
            peers_answered(run, 1);
            answered++;
            freeReplyObject(reply);
        }
    }
}

static size_t
idle(int fd)
{
    char out[64];

    peers_write_all(fd, out, (size_t)snprintf(out, sizeof out, "SUBSCRIBE bench.idle.%d\r\n", fd));
    return 30;
}

const peers_peer PEERS_REDIS = {
    .name = "redis",
    .subscribe = subscribe,
    .publish = publish,
    .store = store,
    .serve = serve,
    .ask = ask,
    .idle = idle,
};
