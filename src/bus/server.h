/*
 * The server's insides: server.c is its life, session.c one connection, route.c the way of an
 * event from a publish to its answer. All of it belongs to the server's thread, except what the
 * mutex guards.
 */
#ifndef IE_SERVER_H
#define IE_SERVER_H

#include <ie/bus.h>

#include <pthread.h>

#include "core.h"
#include "stream.h"
#include "topics.h"
#include "wire.h"

#define IE__LISTEN_MAX 16
#define IE__ACK_RUNS   32 /* runs of acknowledged publishes gathered per connection */

typedef struct ie__conn  ie__conn;
typedef struct ie__sub   ie__sub;
typedef struct ie__group ie__group;
typedef struct ie__held  ie__held;

/* What the index of topics finds: a live subscription, or a group. */
typedef struct ie__target {
    ie__topic_entry entry; /* first, so that the index's answer is the target */
    bool            is_group;
} ie__target;

struct ie__sub {
    ie__target target; /* in the index when live */
    ie__conn  *conn;
    ie__sub   *next;        /* of the connection */
    ie__group *group;       /* NULL: live */
    int64_t    progress_ms; /* when it last acknowledged, or got its first delivery */
    uint32_t   id;
    uint32_t   flags;
    uint32_t   credit;
    uint32_t   outstanding;
};

/* Subscribers that share events and acknowledge them. One without a name has one member. */
struct ie__group {
    ie__target target;
    ie__group *chain; /* same bucket of the table of names */
    uint64_t   hash;
    ie__sub  **members;
    size_t     member_count;
    size_t     member_max;
    size_t     turn;  /* whose it is next */
    ie__held **queue; /* a ring: events that no member has credit for */
    size_t     queue_head;
    size_t     queue_count;
    size_t     queue_max; /* a power of two, or 0 */
    uint64_t   queue_bytes;
    char      *pattern;
    char       name[]; /* "": no name */
};

/* A publish whose answer waits for acknowledgements. */
struct ie__held {
    ie__conn *publisher; /* NULL: gone, nobody to answer */
    ie__held *prev;      /* of the publisher's */
    ie__held *next;
    ie__blob *record;
    char     *reason; /* of the first refusal; NULL: none, or no memory for it */
    uint32_t  request;
    uint32_t  waiting; /* groups that have not answered */
    uint32_t  receivers;
    uint32_t  code; /* of the first refusal */
};

/* A delivery that its member has not answered; held is NULL once it has. */
typedef struct ie__delivery {
    ie__held *held;
    ie__sub  *sub;
} ie__delivery;

typedef struct ie__ack_run {
    uint32_t first;
    uint32_t count;
    uint32_t receivers;
} ie__ack_run;

typedef enum ie__conn_state {
    IE__CONN_GREETING,
    IE__CONN_HELLO, /* greeted, hello awaited */
    IE__CONN_OPEN,
    IE__CONN_ENDED /* doomed: input is ignored, it goes at the end of the turn */
} ie__conn_state;

struct ie__conn {
    ie_bus_server *server;
    ie__stream    *stream;
    ie__conn      *prev;
    ie__conn      *next;
    ie__conn      *doomed_next;
    ie__sub       *subs;
    ie__held      *held;       /* its publishes that wait for acknowledgements */
    ie__delivery  *deliveries; /* a ring */
    size_t         delivery_head;
    size_t         delivery_count;
    size_t         delivery_max;   /* a power of two, or 0 */
    uint32_t       delivery_first; /* number of the one at the head */
    uint32_t       held_count;
    uint32_t       sub_count;
    uint32_t       run_count;
    uint32_t       pings; /* sent since something was heard */
    uint32_t       end_code;
    int64_t        accepted_ms;
    int64_t        heard_ms;
    int64_t        partial_ms; /* since when a frame is unfinished; 0: none is */
    ie__framer     framer;
    ie__conn_state state;
    bool           is_doomed;
    bool           is_told;    /* that the bus is shutting down */
    bool           is_orderly; /* ends by goodbye, not by error */
    bool           is_pumping; /* paused groups are to go on once the output drained */
    bool           may_speak;  /* our greeting is out: last words will be understood */
    char          *name;
    char           peer[64];
    char           end_reason[160];
    ie__ack_run    runs[IE__ACK_RUNS];
};

typedef struct ie__listener {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t    tcp;
        uv_pipe_t   pipe;
    } uv;
    ie_bus_server *server;
    bool           is_unix;
    bool           is_open;
    bool           is_waiting; /* a connection waits for memory */
    char           url[IE__ADDRESS_TEXT_SIZE];
} ie__listener;

struct ie_bus_server {
    ie_bus_server_options options; /* listen, name, data_dir are not used from here */
    char                 *name;
    uv_loop_t             loop;
    uv_async_t            async;
    uv_timer_t            tick;
    uv_timer_t            drain;
    ie__net               net;
    ie__listener          listeners[IE__LISTEN_MAX];
    size_t                listener_count;
    ie__conn             *conns;
    ie__conn             *doomed;
    uint32_t              conn_count;
    uint32_t              unauthenticated;
    uint32_t              sub_count;
    uint32_t              group_count;
    uint64_t              held_count;
    uint64_t              held_bytes;
    ie__topics           *topics;
    ie__group           **groups; /* by name and pattern */
    size_t                group_buckets;
    ie__record            record; /* the publish in hand */
    ie_bus_server_stats   stats;  /* the thread's own */
    uint32_t              drain_ms;
    bool                  is_draining;
    bool                  subscribers_told; /* everyone was sent home, not only publishers */
    bool                  is_finished;
    bool                  was_cut; /* somebody did not leave in time */

    pthread_t           thread;
    pthread_mutex_t     mutex;
    bool                is_joined;      /* mutex */
    bool                stop_requested; /* mutex */
    uint32_t            stop_drain_ms;  /* mutex */
    ie_bus_server_stats shown;          /* mutex */
};

/* ---- server.c ---- */

/* A server without its thread: whoever made it runs its loop. For the fuzzer. */
ie_status ie__bus_server_make(ie_bus_server **out, const ie_bus_server_options *options,
                              ie_error *err);
void      ie__bus_server_unmake(ie_bus_server *server);

/* ---- session.c ---- */

/* Take the connection that waits at a listener. */
void ie__conn_accept(ie_bus_server *server, ie__listener *listener);
/* End it at the end of this turn, with an error frame. The first reason counts. */
void ie__conn_doom(ie__conn *conn, uint32_t code, const char *fmt, ...) IE_PRINTF(3, 4);
/* End it now; not from inside its own input. */
void ie__conn_end(ie__conn *conn);
/* Look at its clocks. */
void ie__conn_tick(ie__conn *conn, int64_t now_ms);
void ie__conn_say_goodbye(ie__conn *conn);
/* Frames that consist of code and reason. */
void ie__conn_reason(ie__conn *conn, ie__frame_type type, uint32_t number, uint32_t code,
                     const char *reason);
/* Acknowledge a publish; acknowledgements of one turn are gathered. */
void ie__conn_puback(ie__conn *conn, uint32_t request, uint32_t receivers);
void ie__conn_pubnack(ie__conn *conn, uint32_t request, uint32_t code, const char *reason);

/* ---- route.c ---- */

void      ie__route_publish(ie__conn *conn, const ie__frame *frame);
ie_status ie__route_subscribe(ie__conn *conn, const ie__frame *frame);
void      ie__route_unsubscribe(ie__conn *conn, uint32_t id);
/* IE_EPROTO: not a list of ranges. */
ie_status ie__route_ack(ie__conn *conn, const ie__frame *frame);
void      ie__route_nack(ie__conn *conn, uint32_t number, const ie__reason *reason);
/* The connection is about to go: its subscriptions end, what it did not answer goes to others. */
void ie__route_leave(ie__conn *conn);
/* Its output drained: its groups may go on. */
void ie__route_resume(ie__conn *conn);
/* A member that answers nothing for too long. */
bool ie__route_is_stuck(const ie__conn *conn, int64_t now_ms);
void ie__route_free(ie_bus_server *server);

#endif
