/*
 * The parts of a client, shared by the client*.c files alone: one thread with a loop that owns the
 * connection, and a small shared part under a mutex through which all other threads hand in
 * publishes and subscriptions.
 */
#ifndef IE_BUS_CLIENT_PARTS_H
#define IE_BUS_CLIENT_PARTS_H

#include <pthread.h>
#include <time.h>

#include "address.h"
#include "client.h"
#include "core.h"
#include "stream.h"
#include "wire.h"

#define ACK_RUNS      64 /* runs of handled deliveries gathered for one frame */
#define ADDRESSES_MAX 8  /* of a host name, tried one after the other */

/* One publish that is not answered. */
typedef struct entry {
    ie_bus_answer_fn answered;
    void            *user;
    uint32_t         bytes; /* of its frame */
    bool             is_done;
} entry;

/* Publishes handed in together: their frames, and who asks. */
typedef struct batch {
    ie_buffer frames;
    entry    *entries;
    size_t    count;
    size_t    max;
} batch;

typedef enum sub_state { SUB_NEW, SUB_ASKED, SUB_CONFIRMED, SUB_REFUSED } sub_state;

typedef struct subscription {
    struct subscription *next;
    ie_bus_event_fn      handler;
    void                *user;
    char                *group; /* NULL: none */
    uint32_t             id;
    uint32_t             flags;
    sub_state            state;      /* mutex */
    bool                 is_removed; /* mutex: to be taken out by the loop */
    bool                 is_known;   /* loop: the server was asked on this connection */
    bool                 is_muted;   /* loop: unsubscribed by a handler */
    uint32_t             code;       /* mutex: why it was refused */
    char                 reason[160];
    char                 pattern[];
} subscription;

typedef enum phase {
    PHASE_IDLE,       /* no connection, a timer runs */
    PHASE_CONNECTING, /* name, TCP */
    PHASE_GREETING,
    PHASE_HELLO, /* welcome awaited */
    PHASE_OPEN,
    PHASE_LEAVING /* goodbye said or heard: nothing new is sent */
} phase;

struct ie_bus_client {
    ie_bus_client_options options;
    char                 *url;
    char                 *name;
    char                 *source;
    ie__address           address;
    pthread_t             thread;
    unsigned              generation; /* of fork */

    /* -- shared, under the mutex -- */
    pthread_mutex_t mutex;
    pthread_cond_t  changed; /* state, subscriptions, closing */
    batch           submitted;
    uint32_t        next_request;
    uint32_t        next_sub;
    size_t          unanswered; /* publishes: submitted, waiting, in flight */
    uint64_t        unanswered_bytes;
    subscription   *subs; /* in the order of their ids */
    ie_bus_state    state;
    ie_status       reason_status; /* what the last attempt met */
    char            reason[200];
    uint64_t        commands_done; /* rounds of the loop over the shared part */
    bool            is_offline;    /* known to be disconnected */
    bool            is_signalled;  /* the loop has been woken and has not looked yet */
    bool            is_closing;
    bool            is_closed;
    uint32_t        data_bytes_max; /* the server's; IE_DATA_BYTES_MAX before */

    /* -- the loop's own -- */
    uv_loop_t               loop;
    uv_async_t              async;
    uv_timer_t              timer;       /* next attempt, or the attempt's end, or heartbeat */
    uv_timer_t              close_timer; /* the end of ie_bus_client_close()'s patience */
    uv_getaddrinfo_t        resolve;
    bool                    is_resolving;
    ie__net                 net;
    ie__stream             *stream;
    ie__framer              framer;
    phase                   phase;
    struct sockaddr_storage addresses[ADDRESSES_MAX];
    size_t                  address_count;
    size_t                  address_next;
    uint32_t                attempts; /* failed in a row */
    uint32_t                pings;
    int64_t                 heard_ms;
    batch                   spare;   /* memory for the next batch */
    ie_buffer               backlog; /* frames not sent; from backlog_sent on */
    size_t                  backlog_sent;
    entry                  *flight; /* a ring of all unanswered publishes that the loop knows */
    size_t                  flight_head;
    size_t                  flight_count;
    size_t                  flight_sent;   /* of these, written */
    size_t                  flight_max;    /* a power of two, or 0 */
    uint32_t                flight_first;  /* request number of the head */
    uint32_t                in_flight_max; /* the server's limit */
    struct {
        uint32_t first;
        uint32_t count;
    } acks[ACK_RUNS];
    size_t        ack_count;
    int64_t       ack_since_ns;
    subscription *last_sub; /* found last */
    ie__record    record;
    bool          is_ended; /* the loop is winding up */
    bool          said_goodbye;
    bool          was_refused; /* an error came instead of a welcome */
    char          why[200];    /* this connection ended because; the first reason */
    uint32_t      why_code;
    ie_status     why_status;
};

/* ---- the shared part ---- */

static inline void
client_lock(ie_bus_client *client)
{
    (void)pthread_mutex_lock(&client->mutex);
}

static inline void
client_unlock(ie_bus_client *client)
{
    (void)pthread_mutex_unlock(&client->mutex);
}

static inline bool
on_own_thread(const ie_bus_client *client)
{
    return pthread_equal(pthread_self(), client->thread) != 0;
}

/* With the mutex held; true: the caller has to wake the loop after unlocking. */
static inline bool
client_signal(ie_bus_client *client)
{
    const bool was = client->is_signalled;

    client->is_signalled = true;
    return !was;
}

/* ---- making, watching and closing a client (client.c) ---- */
struct timespec ie__client_deadline(uint32_t ms);
void            ie__client_cond_init(pthread_cond_t *cond);

/* ---- the connection, on the client's thread (client_loop.c) ---- */
void *ie__client_main(void *arg);
void  ie__client_on_async(uv_async_t *async);
/* The server took us in: from now on publishes and subscriptions are sent. */
void ie__client_opened(ie_bus_client *client, uint32_t data_bytes_max);
/* This connection ends because; the first reason stays. */
void ie__client_why(ie_bus_client *client, ie_status status, uint32_t code, const char *reason);
/* Failure needs no answer: the stream ends then, and on_gone() tells. */
void ie__client_write(ie_bus_client *client, const void *bytes, size_t size);
void ie__client_write_built(ie_bus_client *client, ie_buffer *buffer, ie__builder *b);
void ie__client_write_empty(ie_bus_client *client, ie__frame_type type, uint32_t number);

/* ---- frames of the server (client_frames.c) ---- */
extern const ie__framer_ops ie__client_framer_ops;
/* Every handler of a frame returns IE_OK, or ends the connection with a reason: this one. */
ie_status ie__client_broken(ie_bus_client *client, const char *what);

/* ---- publishes (client_publish.c) ---- */
void      ie__client_take(ie_bus_client *client);
void      ie__client_send(ie_bus_client *client);
void      ie__client_flight_lost(ie_bus_client *client);
void      ie__client_flight_fail_all(ie_bus_client *client, ie_status status, const char *reason);
ie_status ie__client_on_puback(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_pubnack(ie_bus_client *client, const ie__frame *frame);

/* ---- subscriptions and their deliveries (client_subscribe.c) ---- */
/* With the mutex held: ask for all of them, on a new connection. */
void ie__client_subs_ask(ie_bus_client *client);
/* With the mutex held: the connection that they were asked on is gone. */
void ie__client_subs_forget(ie_bus_client *client);
/* New subscriptions are asked for, removed ones are ended. */
void      ie__client_subs_sync(ie_bus_client *client);
void      ie__client_subs_free(ie_bus_client *client);
void      ie__client_acks_flush(ie_bus_client *client);
ie_status ie__client_on_subscribed(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_subrefused(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_unsubscribed(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_deliver(ie_bus_client *client, const ie__frame *frame);

#endif
