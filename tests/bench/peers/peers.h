/*
 * One workload for every bus: the bus under test and what people would use instead, through their
 * own C clients. A peer says how it publishes, receives, stores and asks; bench_peers.c starts the
 * processes, counts what arrives and prints. Publisher and subscribers are processes of their own,
 * so that each peer pays for what its client does.
 */
#ifndef IE_BENCH_PEERS_H
#define IE_BENCH_PEERS_H

#include "bench.h"

#include <stdatomic.h>
#include <stdbool.h>

#define PEERS_SUBSCRIBERS_MAX 16
#define PEERS_SAMPLES_MAX     1000000
#define PEERS_TOPIC           "bench.orders.new" /* 16 bytes, for those that name topics */
#define PEERS_DATA_MIN        16                 /* a number and a time */

/* What the processes of one run share. */
typedef struct peers_shared {
    _Atomic int     ready; /* subscribers and responders that hear */
    _Atomic int64_t begun_ns;
    _Atomic int64_t ended_ns; /* the publisher's last answer, or its last send */
    _Atomic int64_t sent;
    _Atomic int64_t answered; /* acknowledgements and answers */
    _Atomic int64_t refused;
    struct {
        _Alignas(64) _Atomic int64_t received;
        _Atomic int64_t last_ns;
        _Atomic int64_t disordered;
    } subscriber[PEERS_SUBSCRIBERS_MAX];
    _Atomic int64_t sample_count;
    int64_t         samples[PEERS_SAMPLES_MAX]; /* ns */
} peers_shared;

typedef struct peers_run {
    const char   *server; /* 127.0.0.1 */
    int           port;
    size_t        bytes; /* of one event's data */
    int64_t       count; /* events, at most */
    int64_t       until_ns;
    int64_t       rate;   /* events per second; 0: as fast as it goes */
    int64_t       window; /* unanswered stores or queries */
    int           index;  /* of this subscriber */
    int64_t       next;   /* number of the event to send */
    int64_t       expected;
    int64_t       tick_ns;
    unsigned char data[1 << 20]; /* of the event to send */
    peers_shared *shared;
} peers_run;

/* Each runs in a process of its own. NULL: the peer has no such thing. */
typedef struct peers_peer {
    const char *name;
    void (*prepare)(peers_run *run);   /* before the others, may be NULL */
    void (*subscribe)(peers_run *run); /* until it is killed */
    void (*publish)(peers_run *run);   /* while peers_next() says so */
    void (*store)(peers_run *run);     /* the same, each acknowledged when it is stored */
    void (*serve)(peers_run *run);     /* answers queries with their data, until it is killed */
    void (*ask)(peers_run *run);
    /* Make this connection an idle, subscribed one; how many bytes come back at least. */
    size_t (*idle)(int fd);
} peers_peer;

extern const peers_peer PEERS_IE;
extern const peers_peer PEERS_EB1;
extern const peers_peer PEERS_RELAY;
extern const peers_peer PEERS_NATS;
extern const peers_peer PEERS_REDIS;
extern const peers_peer PEERS_MOSQUITTO;

/* The floor: a relay that looks a topic up and forwards. Says its port on stdout; until killed. */
void peers_relay_serve(void);
/* The bus under test, with room for many connections; data_dir may be NULL. As above. */
void peers_ie_serve(const char *data_dir);

/* ---- for the publisher ---- */

/* Connected: the clock starts. */
void peers_begin(peers_run *run);
/* Fill run->data with the next event; false: that was the last. Waits, when there is a rate. */
bool peers_next(peers_run *run);
/* So many more were acknowledged, or answered. */
void peers_answered(peers_run *run, int64_t count);
void peers_refused(peers_run *run);
void peers_sample(peers_run *run, int64_t ns);

/* ---- for the subscriber ---- */

void peers_ready(peers_run *run);
void peers_received(peers_run *run, const void *data, size_t bytes);

/* A connected TCP socket without delay. */
int  peers_connect(const peers_run *run);
void peers_write_all(int fd, const void *bytes, size_t size);

#endif
