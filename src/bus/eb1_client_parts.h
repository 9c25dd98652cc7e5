/*
 * The parts of an eb/1 client, shared by its two files alone: one thread with a loop that owns the
 * connection, and a queue under a mutex through which all other threads hand in messages.
 */
#ifndef IE_EB1_CLIENT_PARTS_H
#define IE_EB1_CLIENT_PARTS_H

#include <pthread.h>

#include "address.h"
#include "core.h"
#include "dial.h"
#include "eb1_wire.h"
#include "stream.h"
#include "websocket.h"

#define EB1_RECORD_HEAD 4 /* in the queue: u32 size, then the message */

typedef enum eb1_kind { EB1_KIND_TCP, EB1_KIND_IPC, EB1_KIND_WS } eb1_kind;

typedef enum eb1_phase {
    EB1_IDLE,       /* no connection, a timer runs */
    EB1_CONNECTING, /* name, TCP */
    EB1_GREETING,   /* WebSocket: HTTP's answer awaited */
    EB1_ASSIGNING,  /* our id awaited */
    EB1_OPEN
} eb1_phase;

struct ie_eb1_client {
    ie_eb1_client_options options;
    char                 *url;
    char                 *path; /* of WebSocket; else "" */
    ie__address           address;
    eb1_kind              kind;
    uint32_t              event; /* to register; 0: none */
    pthread_t             thread;
    unsigned              generation; /* of fork */

    /* -- shared, under the mutex -- */
    pthread_mutex_t mutex;
    pthread_cond_t  changed;      /* state, closing */
    ie_buffer       submitted;    /* records, with 0 as their source */
    uint64_t        queued_bytes; /* of records that were not written */
    ie_bus_state    state;
    char            reason[200]; /* what the last attempt met */
    uint32_t        id;
    bool            is_offline;   /* known to be disconnected */
    bool            is_signalled; /* the loop has been woken and has not looked yet */
    bool            is_closing;

    /* -- the loop's own -- */
    uv_loop_t      loop;
    uv_async_t     async;
    uv_timer_t     timer; /* next attempt, or the attempt's end, or heartbeat */
    uv_timer_t     close_timer;
    ie__net        net;
    ie__dial       dial;
    ie__stream    *stream;
    ie__framer     framer;
    ie__ws         ws;
    unsigned char *http; /* the answer, as far as it came */
    size_t         http_bytes;
    char           key[IE__WS_KEY_SIZE];
    eb1_phase      phase;
    uint32_t       attempts; /* failed in a row */
    uint32_t       local;    /* what we call ourselves in control frames */
    uint32_t       own_id;
    int64_t        heard_ms;
    ie_buffer      backlog; /* records; from backlog_sent on not written */
    size_t         backlog_sent;
    bool           is_leaving; /* all is written; the stream is being closed gently */
    bool           is_ended;
    char           why[200]; /* this connection ended because; the first reason */
    ie_status      why_status;
};

/* On the client's thread. */
void *ie__eb1_client_main(void *arg);
void  ie__eb1_client_on_async(uv_async_t *async);
void  ie__eb1_client_end_of_turn(void *user);

#endif
