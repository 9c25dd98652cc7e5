/*
 * The parts of a client, shared by the client*.c files alone: one thread with a loop that owns the
 * connection, and a small shared part under a mutex through which all other threads hand in
 * publishes and subscriptions.
 */
#ifndef IE_BUS_CLIENT_PARTS_H
#define IE_BUS_CLIENT_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "address.h"
#include "client.h"
#include "core.h"
#include "deadlines.h"
#include "dial.h"
#include "numbers.h"
#include "stream.h"
#include "wire.h"

#define ACK_RUNS 64 /* runs of handled deliveries gathered for one frame */

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

typedef struct subscription subscription;

/* Answers to deliveries that are on their way to the bus: runs of handled ones. */
typedef struct acks {
    struct {
        uint32_t first;
        uint32_t count;
    } runs[ACK_RUNS];
    size_t   run_count;
    uint32_t total;
    uint32_t connection; /* on which they came */
    int64_t  since_ns;
} acks;

/* What a thread needs that runs handlers: one for the loop, one for each lane of the queue. */
typedef struct runner {
    ie__record record;
    acks       acks;
    bool       is_loop;
} runner;

/* Runs the handler for one frame; connection is the one that it came on. IE_OK, or IE_EPROTO: no
 * bus would send this. The body may be changed. */
typedef ie_status (*run_fn)(ie_bus_client *client, runner *by, subscription *sub,
                            const ie__frame *frame, uint32_t connection);

struct subscription {
    subscription      *next;
    run_fn             run;         /* NULL: ie_bus_client_next() takes its deliveries */
    ie_bus_event_fn    handler;     /* of deliveries: one of these */
    ie_bus_delivery_fn on_delivery; /* two */
    ie_bus_question_fn on_question;
    void              *user;
    char              *group; /* NULL: none */
    int64_t            start_at;
    ie_bus_start       start;
    ie_bus_selection   selection;
    uint32_t           id;
    uint32_t           flags; /* as the bus gets them */
    uint32_t           credit;
    uint32_t           ack_timeout_ms;
    uint32_t           attempts_max;
    bool               is_manual;     /* answered by token */
    bool               was_confirmed; /* loop: its group has been made; it goes on from there */
    sub_state          state;         /* mutex */
    bool               is_ending;     /* mutex: somebody is at it */
    bool               is_removed;    /* mutex: to be taken out by the loop */
    bool               is_known;      /* loop: the server was asked on this connection */
    bool               is_muted;      /* INLINE: loop; else the queue's mutex: no handler runs */
    uint32_t           code;          /* mutex: why it was refused */
    uint64_t           grave;         /* loop: messages queued before it was taken out */
    char               reason[160];
    char               pattern[];
};

/* Numbers of deliveries (or questions) that were handed out and are not answered; owner is the
 * subscription. */
typedef struct tokens {
    struct token {
        uint32_t number; /* 0: free */
        uint32_t owner;
    } * slots;
    size_t count;
    size_t max; /* a power of two, or 0 */
} tokens;

/* An answer to deliveries that was given on another thread than the loop's. */
typedef struct reply {
    char    *reason; /* of a refusal; may be NULL */
    uint32_t connection;
    uint32_t first;
    uint32_t count; /* 0: a refusal of first */
    uint32_t code;
    uint32_t delay_ms;
} reply;

/* ---- the queue between the loop and who runs handlers (client_dispatch.c) ---- */

typedef struct chunk chunk;

typedef enum lane_id { LANE_PUSH, LANE_PULL, LANES } lane_id;

/* Messages of one kind: for handlers, or for ie_bus_client_next(). */
typedef struct lane {
    chunk   *filling;    /* loop */
    uint64_t queued;     /* loop: messages ever put in */
    chunk   *head;       /* handed over and not taken */
    chunk   *tail;       /* its last */
    uint64_t handed;     /* messages ever handed over */
    uint64_t fetched;    /* ... taken out one by one */
    uint64_t done;       /* ... and finished with */
    chunk   *taken;      /* the reader's own, from here on */
    size_t   taken_at;   /* offset of its next message */
    size_t   unfinished; /* bytes of the message whose handler runs */
    runner   by;         /* the reader's own */
} lane;

typedef struct queue {
    pthread_mutex_t mutex; /* after the client's, where both are needed */
    pthread_cond_t  ready; /* messages came, or it stops */
    pthread_cond_t  idle;  /* a handler returned, or a caller left */
    pthread_t       thread;
    pthread_t       running_thread;
    lane            lanes[LANES];
    uint64_t        bytes;      /* of the messages that wait */
    uint32_t        running_id; /* whose handler runs; 0: none */
    uint32_t        readers;    /* wait for ready */
    atomic_uint     watchers;   /* wait for idle */
    uint32_t        callers;    /* are inside of dispatch or next */
    chunk          *spare;
    size_t          spare_count;
    subscription   *graves; /* loop: ended, but perhaps still in the queue */
    ie_event        pulled; /* the last one of ie_bus_client_next() */
    int             fd;     /* eventfd of IE_BUS_DISPATCH_CALLER; -1: none */
    bool            is_readable;
    bool            is_paused;      /* the loop does not read on: too much waits */
    bool            is_wanted_idle; /* the loop waits for the queue to be empty */
    bool            is_stopping;
    bool            has_thread;
} queue;

/* Questions of this client, and to it (client_query.c). */
typedef struct client_queries {
    /* under the mutex */
    ie_buffer     talk;      /* frames of all threads, for the connection that is open */
    ie__numbers   asked;     /* by us, and not ended */
    ie__numbers   questions; /* put to us, and not answered */
    ie__deadlines deadlines;
    struct query *cancelled; /* to be ended by the loop */
    uint64_t      bytes;     /* of what is asked */
    int64_t       armed_ms;  /* when the timer fires; 0: it does not */
    uint32_t      number;    /* of the last that was asked */
    bool          is_open;   /* the connection takes queries now */
    bool          is_served; /* ... if it ever does */
    /* the loop's own */
    ie_buffer  spare;
    uv_timer_t timer;
} client_queries;

typedef enum phase {
    PHASE_IDLE,       /* no connection, a timer runs */
    PHASE_CONNECTING, /* name, TCP */
    PHASE_GREETING,
    PHASE_HELLO, /* welcome awaited */
    PHASE_OPEN,
    PHASE_LEAVING /* goodbye said or heard: nothing new is sent */
} phase;

typedef struct ie__client_login ie__client_login;

struct ie_bus_client {
    ie_bus_client_options options;
    char                 *url;
    char                 *name;
    char                 *source;
    ie__address           address;
    ie__client_login     *login;
    pthread_t             thread;
    unsigned              generation; /* of fork */

    /* -- shared, under the mutex -- */
    pthread_mutex_t mutex;
    pthread_cond_t  changed; /* state, subscriptions, closing */
    batch           submitted;
    uint32_t        next_request;
    uint32_t        next_sub;
    size_t          handed_in; /* publishes, ever; and their bytes */
    uint64_t        handed_in_bytes;
    subscription   *subs; /* in the order of their ids */
    ie_bus_state    state;
    ie_status       reason_status; /* what the last attempt met */
    char            reason[200];
    uint64_t        commands_done; /* rounds of the loop over the shared part */
    bool            is_offline;    /* known to be disconnected */
    bool            is_signalled;  /* the loop has been woken and has not looked yet */
    bool            is_commanded;  /* for more than publishes */
    bool            is_closing;
    bool            is_closed;
    bool            may_leave;      /* closing, and no handler runs any more */
    bool            is_short;       /* an answer was lost for want of memory: connect anew */
    bool            is_malformed;   /* an event that no bus would send was in the queue */
    uint32_t        data_bytes_max; /* the server's; IE_DATA_BYTES_MAX before */
    tokens          tokens;         /* of this connection's deliveries */
    reply          *replies;
    size_t          reply_count;
    size_t          reply_max;

    client_queries queries;
    atomic_uint    connection; /* changes when one is lost; written by the loop, mutex held */
    atomic_uint    waiters;    /* threads that wait for an answer */
    queue          queue;

    /* -- written by the loop alone, read by all; in a cache line that callers do not write -- */
    char             apart[64];
    _Atomic size_t   answered; /* of handed_in */
    _Atomic uint64_t answered_bytes;

    /* -- the loop's own -- */
    uv_loop_t     loop;
    uv_async_t    async;
    uv_timer_t    timer;       /* next attempt, or the attempt's end, or heartbeat */
    uv_timer_t    close_timer; /* the end of ie_bus_client_close()'s patience */
    ie__net       net;
    ie__dial      dial;
    ie__stream   *stream;
    ie__framer    framer;
    phase         phase;
    uint32_t      attempts; /* failed in a row */
    uint32_t      pings;
    int64_t       heard_ms;
    batch         spare;        /* memory for the next batch */
    ie_buffer     backlog;      /* frames of the flight that are still needed, and older */
    size_t        backlog_kept; /* from here on */
    size_t        backlog_sent; /* from here on not sent */
    entry        *flight;       /* a ring of all unanswered publishes that the loop knows */
    size_t        flight_head;
    size_t        flight_count;
    size_t        flight_sent;    /* of these, written */
    size_t        flight_max;     /* a power of two, or 0 */
    uint32_t      flight_first;   /* request number of the head */
    uint32_t      in_flight_max;  /* the server's limit */
    uint32_t      capabilities;   /* the server's */
    uint32_t      full_batches;   /* in a row: publishes come in a stream */
    uint32_t      server_ping_ms; /* after so long it asks whether we are there; 0: unknown */
    int64_t       spoke_ms;       /* last ping while we did not read */
    reply        *reply_spare;    /* memory for the next replies */
    size_t        reply_spare_max;
    runner        by;
    subscription *last_sub; /* found last */
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
    client->is_commanded = true;
    return !was && !client->is_closed;
}

/* The same, when all there is to see are publishes. */
static inline bool
client_signal_publish(ie_bus_client *client)
{
    const bool was = client->is_signalled;

    client->is_signalled = true;
    return !was && !client->is_closed;
}

/* With the mutex held: publishes submitted, waiting, in flight. */
static inline size_t
client_unanswered(const ie_bus_client *client)
{
    return client->handed_in - atomic_load_explicit(&client->answered, memory_order_acquire);
}

static inline uint64_t
client_unanswered_bytes(const ie_bus_client *client)
{
    return client->handed_in_bytes -
           atomic_load_explicit(&client->answered_bytes, memory_order_acquire);
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

/* ---- who we are (client_login.c) ---- */
extern const char *const ie__client_url_options[];
/* Copies what the options and the URL say, and has a look at the files. */
ie_status ie__client_login_init(ie_bus_client *client, const ie__url *url, ie_error *err);
void      ie__client_login_free(ie_bus_client *client);
/* TLS below this stream, if the address says so. */
ie_status ie__client_secure(ie_bus_client *client, ie__stream *stream);
/* The fields of a hello. Reads the files again. */
ie_status ie__client_login_put(const ie_bus_client *client, ie__builder *b, ie_error *err);

/* ---- frames of the server (client_frames.c) ---- */
extern const ie__framer_ops ie__client_framer_ops;
/* Every handler of a frame returns IE_OK, or ends the connection with a reason: this one. */
ie_status ie__client_broken(ie_bus_client *client, const char *what);

/* ---- publishes (client_publish.c) ---- */
void      ie__client_take(ie_bus_client *client);
void      ie__client_take_locked(ie_bus_client *client); /* releases the mutex */
void      ie__client_send(ie_bus_client *client);
void      ie__client_flight_lost(ie_bus_client *client);
void      ie__client_flight_fail_all(ie_bus_client *client, ie_status status, const char *reason);
ie_status ie__client_on_puback(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_pubnack(ie_bus_client *client, const ie__frame *frame);

/* ---- subscriptions (client_subscribe.c) ---- */
/* One that is not known to anybody yet; flags, handlers and so on are for the caller to fill in.
 * NULL: no memory. */
subscription *ie__client_sub_new(const char *pattern, const char *group);
/* Takes it over, on failure too (it is released). */
ie_status ie__client_sub_add(ie_bus_client *client, subscription *sub, uint32_t *id, ie_error *err);
/* On the loop; NULL: there is none. */
subscription *ie__client_sub_find(ie_bus_client *client, uint32_t id);
void          ie__client_sub_free(subscription *sub);
/* With the mutex held: ask for all of them, on a new connection. */
void ie__client_subs_ask(ie_bus_client *client);
/* With the mutex held: the connection that they were asked on is gone. */
void ie__client_subs_forget(ie_bus_client *client);
/* New subscriptions are asked for, removed ones are ended. */
void      ie__client_subs_sync(ie_bus_client *client);
void      ie__client_subs_free(ie_bus_client *client);
ie_status ie__client_on_subscribed(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_subrefused(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_unsubscribed(ie_bus_client *client, const ie__frame *frame);

/* ---- deliveries and their answers (client_delivery.c) ---- */
ie_status ie__client_on_deliver(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_delivery_run(ie_bus_client *client, runner *by, subscription *sub,
                                  const ie__frame *frame, uint32_t connection);
/* As run_fn, for who pulls. IE_ENOTFOUND: it came on a connection that is gone, and will come
 * again. */
ie_status ie__client_delivery_pull(ie_bus_client *client, runner *by, subscription *sub,
                                   const ie__frame *frame, uint32_t connection, ie_event *event,
                                   ie_bus_delivery *delivery);
/* What this thread has to answer goes to the loop, or, on the loop, to the stream. */
void ie__client_acks_flush(ie_bus_client *client, runner *by);
/* Write the answers that other threads gave. */
void ie__client_replies_write(ie_bus_client *client);
/* With the mutex held: the connection is gone, and so is what could be answered. */
void ie__client_replies_forget(ie_bus_client *client);
void ie__client_replies_fini(ie_bus_client *client);

/* ---- questions (client_query.c) ---- */
ie_status ie__client_queries_init(ie_bus_client *client);
/* With the mutex held: a connection takes queries; takes no more; has nothing left to wait for. */
void ie__client_queries_open(ie_bus_client *client);
void ie__client_queries_shut(ie_bus_client *client);
bool ie__client_queries_are_done(const ie_bus_client *client);
/* With the mutex held, on the loop: what no handler of this subscription has seen is declined. */
void ie__client_questions_drop(ie_bus_client *client, uint32_t owner);
/* On the loop: every query of ours ends. */
void ie__client_queries_end(ie_bus_client *client, ie_status status, const char *reason);
/* On the loop: the connection is gone; as end, and questions to us are forgotten. */
void ie__client_queries_lost(ie_bus_client *client, ie_status status, const char *reason);
void ie__client_queries_free(ie_bus_client *client);
/* On the loop: write what other threads, and handlers, have said. */
void      ie__client_talk(ie_bus_client *client);
ie_status ie__client_on_answer(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_query_end(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_ask(ie_bus_client *client, const ie__frame *frame);
ie_status ie__client_on_withdraw(ie_bus_client *client, const ie__frame *frame);

/* ---- what was handed out (client_tokens.c); with the mutex held ---- */
ie_status ie__tokens_add(tokens *set, uint32_t number, uint32_t owner);
/* False: it was not there. */
bool ie__tokens_take(tokens *set, uint32_t number);
void ie__tokens_drop(tokens *set, uint32_t owner);
void ie__tokens_clear(tokens *set);
void ie__tokens_fini(tokens *set);

/* ---- who runs handlers, and when (client_dispatch.c) ---- */
ie_status ie__client_dispatch_init(ie_bus_client *client, ie_error *err);
/* No handler runs after this, and what they answered is with the loop. Not on a handler's thread.
 */
void ie__client_dispatch_stop(ie_bus_client *client);
void ie__client_dispatch_fini(ie_bus_client *client);
/* On the loop: a frame for this subscription. Its run() is called at once (INLINE), or later from
 * a copy on another thread. What it returns ends the connection, unless IE_OK. */
ie_status ie__client_dispatch_message(ie_bus_client *client, subscription *sub,
                                      const ie__frame *frame);
/* On the loop, after each piece of input: let the others see it. */
void ie__client_dispatch_hand_over(ie_bus_client *client);
/* On the loop: read on, if there is room again. */
void ie__client_dispatch_resume(ie_bus_client *client);
bool ie__client_dispatch_is_paused(ie_bus_client *client);
/* On the loop: nothing waits for a handler, and none runs. Else the loop is woken when so. */
bool ie__client_dispatch_is_idle(ie_bus_client *client);
/* On the loop: release it as soon as nobody can meet it any more. */
void ie__client_dispatch_bury(ie_bus_client *client, subscription *sub);
/* With the client's mutex held: its handler is not called again. */
void ie__client_dispatch_mute(ie_bus_client *client, subscription *sub);
/* Wait until its handler does not run; at once in a handler. */
void ie__client_dispatch_await(ie_bus_client *client, uint32_t id);
/* Is this thread in the middle of a handler? */
bool ie__client_dispatch_is_handler(ie_bus_client *client);
/* Around waiting for an answer, on any thread: reading goes on meanwhile, even when handlers are
 * behind, for the answer is behind their events. */
void ie__client_wait_begin(ie_bus_client *client);
void ie__client_wait_end(ie_bus_client *client);
/* Wake the loop, from any thread. */
void ie__client_wake(ie_bus_client *client);

#endif
