/*
 * The server's insides: server.c is its life, session.c one connection, route.c the way of an
 * event from a publish to its answer, group.h what subscribers share. All of it belongs to the
 * server's thread, except what the mutex guards.
 */
#ifndef IE_SERVER_H
#define IE_SERVER_H

#include <ie/bus.h>

#include <pthread.h>

#include "core.h"
#include "deadlines.h"
#include "group.h"
#include "numbers.h"
#include "stream.h"
#include "topics.h"
#include "wire.h"

#define IE__LISTEN_MAX 16
#define IE__ACK_RUNS   32 /* runs of acknowledged publishes gathered per connection */

typedef struct ie__held    ie__held;
typedef struct ie__stored  ie__stored;
typedef struct ie__durable ie__durable;
typedef struct ie__eb1     ie__eb1;
typedef struct ie__eb1_bus ie__eb1_bus;
typedef struct ie__rights  ie__rights;
typedef struct ie__grant   ie__grant;
typedef struct ie__login   ie__login;
typedef struct ie__guard   ie__guard;

/* Questions and answers: query.c. */
typedef struct ie__query     ie__query;
typedef struct ie__panel     ie__panel;
typedef struct ie__responder ie__responder;

typedef struct ie__queries {
    ie__topics   *topics; /* who serves what; events never meet responders */
    ie__panel   **panels; /* by name and pattern */
    ie__deadlines deadlines;
    uv_timer_t    timer;
    int64_t       armed_ms; /* when the timer fires; 0: it does not */
    uint64_t      bytes;
    uint32_t      count;
    uint32_t      turn;
} ie__queries;

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
    uint32_t  code;    /* of the first refusal */
    uint32_t  pushed;  /* items that went to a group */
    bool      is_eb1;  /* came from eb/1: nobody to answer, a failure is counted */
    ie__item  items[]; /* one for each group */
};

/* Lines of one kind in the log, so that a flood of connections is not one of lines. */
typedef struct ie__log_gate {
    int64_t  until_ms; /* end of its minute */
    uint32_t logged;   /* in it */
    uint32_t hushed;   /* since the last one that was logged */
} ie__log_gate;

enum {
    IE__GATE_DESCRIPTORS,
    IE__GATE_STRANGERS,   /* what is no client of a bus */
    IE__GATE_UNKNOWN,     /* ended before they said hello */
    IE__GATE_CONNECTIONS, /* ended after */
    IE__GATES
};

typedef struct ie__ack_run {
    uint32_t first;
    uint32_t count;
    uint32_t receivers;
} ie__ack_run;

typedef enum ie__conn_state {
    IE__CONN_GREETING,
    IE__CONN_HELLO, /* greeted, hello awaited */
    IE__CONN_LOGIN, /* what hello said about the user is being checked */
    IE__CONN_OPEN,
    IE__CONN_ENDED /* doomed: input is ignored, it goes at the end of the turn */
} ie__conn_state;

typedef enum ie__proof {                 /* how we know who it is */
                         IE__PROOF_NONE, /* anonymous */
                         IE__PROOF_PASSWORD,
                         IE__PROOF_TOKEN,
                         IE__PROOF_CERT
} ie__proof;

struct ie__conn {
    ie_bus_server *server;
    ie__stream    *stream;
    ie__eb1       *eb1;       /* NULL: it speaks eb/2, or nothing yet */
    ie__eb1       *eb1_alias; /* of eb/2: what eb/1 knows it by; NULL: it does not */
    ie__conn      *prev;
    ie__conn      *next;
    ie__conn      *doomed_next;
    ie__conn      *stranger_prev; /* of those that have not said hello */
    ie__conn      *stranger_next;
    ie__sub       *subs;
    ie__held      *held;       /* its publishes that wait for acknowledgements */
    ie__delivery  *deliveries; /* a ring */
    size_t         delivery_head;
    size_t         delivery_count;
    size_t         delivery_max;   /* a power of two, or 0 */
    uint32_t       delivery_first; /* number of the one at the head */
    uint64_t       id;             /* for administrators; never 0 and never used again */
    uint64_t       bytes_in;       /* since it came */
    ie__responder *responders;
    ie__numbers    queries;      /* that it asks, by its numbers */
    ie__numbers    asks;         /* that it was asked, by ours */
    uint32_t       ask_number;   /* the last */
    uint32_t       capabilities; /* of those that it showed, ours */
    ie__stored    *storing;      /* its publishes on their way to the log */
    uint32_t       storing_count;
    uint32_t       held_count;
    uint32_t       sub_count; /* responders, too */
    uint32_t       run_count;
    uint32_t       pings; /* sent since something was heard */
    uint32_t       end_code;
    int64_t        accepted_ms;
    int64_t        heard_ms;
    int64_t        partial_ms; /* since when a frame is unfinished; 0: none is */
    ie__framer     framer;
    size_t         in_bytes; /* what the framer holds, as counted for all */
    ie__conn_state state;
    bool           is_unix;
    bool           was_welcome; /* said hello, and got its answer */
    bool           is_foreign;  /* speaks something else altogether */
    bool           is_stranger; /* counts as unauthenticated */
    bool           is_doomed;
    bool           is_told;      /* that the bus is shutting down */
    bool           is_orderly;   /* ends by goodbye, not by error */
    bool           is_pumping;   /* paused groups are to go on once the output drained */
    bool           may_speak;    /* our greeting is out: last words will be understood */
    bool           is_stalling;  /* its queue is long: who publishes to it is held back */
    bool           is_lagging;   /* its queue is long, and nobody waits for it any more */
    bool           is_held_back; /* it publishes too fast for somebody, and is not read */
    ie__conn      *stalling_next;
    ie__conn      *held_back_next;
    int64_t        stall_at_ms; /* when that began, or ended last */
    int64_t        stall_ms;    /* for how long it held others back */
    char          *name;
    char          *user;   /* NULL: anonymous; known once the connection is open */
    ie__rights    *rights; /* NULL: everything is allowed; see ie__may() */
    ie__grant     *grant;
    ie__login     *login; /* being checked */
    ie__proof      proof;
    bool           is_local; /* came in by loopback or a unix socket */
    char           peer[64];
    ie__ack_run   *runs; /* room for IE__ACK_RUNS, made with the first */
    char           end_reason[160];
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
    bool           is_local; /* a unix socket or loopback */
    bool           is_open;
    bool           is_waiting; /* a connection waits: see accept.c */
    int            reserve_fd; /* to give up when descriptors run out; -1: was given up */
    ie__address    address;
    char           url[IE__ADDRESS_TEXT_SIZE]; /* with the real port */
} ie__listener;

/* Digests of what a reload cannot change. */
typedef struct ie__fixed {
    uint64_t listen;
    uint64_t name;
    uint64_t data_dir;
} ie__fixed;

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
    ie__conn             *strangers_oldest; /* these, in the order of their coming */
    ie__conn             *strangers_newest;
    uv_timer_t            accept_timer;
    uv_timer_t            stall_timer;
    ie__conn             *stalling;
    ie__conn             *held_back;
    int                   last_fd; /* of the connection that was taken last */
    ie__log_gate          gates[IE__GATES];
    uint32_t              sub_count;
    uint32_t              group_count;
    uint64_t              held_count;
    uint64_t              held_bytes;
    uint64_t              in_bytes;      /* kept of messages that have not come whole */
    uint64_t              durable_bytes; /* of events on their way to and from the log */
    ie__durable          *durable;       /* NULL: it stores nothing */
    ie__topics           *topics;
    ie__eb1_bus          *eb1; /* NULL before the first eb/1 client */
    ie__guard            *guard;
    ie__group           **groups; /* by name and pattern */
    size_t                group_buckets;
    ie__queries           queries;
    int64_t               started_ms; /* wall clock */
    ie__record            record;     /* the publish in hand */
    ie_bus_server_stats   stats;      /* the thread's own */
    uint32_t              drain_ms;
    bool                  is_draining;
    bool                  subscribers_told; /* everyone was sent home, not only publishers */
    bool                  is_finished;
    bool                  was_cut; /* somebody did not leave in time */

    ie__fixed fixed;

    pthread_t           thread;
    pthread_mutex_t     mutex;
    pthread_cond_t      reloaded;
    struct ie__reload  *reload;         /* mutex: waits to be taken */
    bool                is_reload_over; /* mutex */
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
/* Start the timer that looks at the clocks, or start it anew after a change of the options. */
void ie__bus_server_tick_start(ie_bus_server *server);

/* All buffers together: what memory_bytes_max is about. */
static inline uint64_t
ie__server_memory(const ie_bus_server *server)
{
    return server->net.memory_bytes + server->held_bytes + server->in_bytes +
           server->queries.bytes + server->durable_bytes;
}

/* ---- accept.c ---- */

void ie__accept_on_connection(uv_stream_t *handle, int status);
/* Look again at the connections that wait at listeners. */
void ie__accept_go_on(ie_bus_server *server);
/* A connection that has not said hello yet; and one that has, or ends. */
void ie__accept_enlist(ie__conn *conn);
void ie__accept_known(ie__conn *conn);
void ie__accept_close(ie__listener *listener);

/* ---- stall.c ---- */

/* An event of this publisher is in this live subscriber's queue: has it become long? */
void ie__stall_check(ie__conn *publisher, ie__conn *reader);
void ie__stall_drained(ie__conn *reader);
void ie__stall_leave(ie__conn *conn);

/* ---- gate.c ---- */

/* May this line be logged now: is it one of the first per_minute of its kind in this minute?
 * *hushed is how many were not since the last one that was. */
bool ie__gate_open(ie__log_gate *gate, int64_t now_ms, uint32_t per_minute, uint32_t *hushed);

/* The options' strings are the caller's. */
void ie__server_forget_strings(ie_bus_server *server);
/* The counters as they are now, for ie_bus_server_stats_get(). */
void ie__server_show(ie_bus_server *server);

/* ---- session.c ---- */

/* Take the connection that waits at a listener. */
void ie__conn_accept(ie_bus_server *server, ie__listener *listener);
/* Its hello was good, and who it is is known. */
void ie__conn_welcome(ie__conn *conn);
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
/* A frame with a record in it: head (at most 16 bytes) comes before it. blob, when not NULL, has
 * the same bytes, to be shared. */
void ie__conn_send_record(ie__conn *conn, ie__frame_type type, uint32_t number,
                          const unsigned char *head, size_t head_bytes, const unsigned char *record,
                          size_t size, ie__blob *blob);
/* The group of a durable subscription has been stored; or has not. */
void ie__route_confirm(ie__sub *sub);
void ie__route_refuse(ie__sub *sub, uint32_t code, const char *reason);
/* The connection is about to go: its subscriptions end, what it did not answer goes to others. */
void ie__route_leave(ie__conn *conn);
/* Its output drained: its groups may go on. */
void ie__route_resume(ie__conn *conn);
/* All output together is too much: the connection with the longest queue is ended. */
void ie__route_shed_longest(ie_bus_server *server);
/* An event from elsewhere, for the subscribers of eb/2: all that match, or those of one connection.
 * Durable groups have one that is stored from the log. Nobody waits for answers. False: nobody
 * gets it. */
bool ie__route_inject(ie__conn *from, const ie_event *event, const ie__conn *only, bool is_stored);

/* ---- delivery.c ---- */

/* IE_EPROTO: not a list of ranges. */
ie_status ie__route_ack(ie__conn *conn, const ie__frame *frame);
void ie__route_nack(ie__conn *conn, uint32_t number, uint32_t delay_ms, const ie__reason *reason);

#endif
