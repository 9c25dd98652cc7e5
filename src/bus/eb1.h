/*
 * eb/1 on the server: eb1.c is a session, eb1_route.c the way of its messages, eb1_web.c the same
 * session inside WebSocket. All of it belongs to the server's thread.
 */
#ifndef IE_EB1_SERVER_H
#define IE_EB1_SERVER_H

#include "eb1_wire.h"
#include "server.h"
#include "websocket.h"

typedef struct ie__eb1_event ie__eb1_event;
typedef struct ie__eb1_web   ie__eb1_web;

typedef enum ie__eb1_framing {
    IE__EB1_TCP, /* u64 length */
    IE__EB1_IPC, /* 01, u64 length */
    IE__EB1_HTTP /* a request, then WebSocket frames */
} ie__eb1_framing;

struct ie__eb1 {
    ie__conn       *conn;
    ie__eb1        *prev; /* of all that have an id */
    ie__eb1        *next;
    ie__eb1        *chain;  /* same bucket of the table of ids */
    ie__eb1_event **events; /* that it is a member of */
    ie__eb1_web    *web;    /* NULL: no WebSocket */
    uint32_t        event_count;
    uint32_t        event_max;
    uint32_t        id; /* 0: none yet */
    uint32_t        dropped;
    int64_t         begun_ms;
    int64_t         beat_ms;     /* of its last heartbeat */
    int64_t         beat_gap_ms; /* the longest between two */
    ie__eb1_framing framing;
    bool            has_beaten; /* one heartbeat came */
    bool            is_beating; /* two: it means to go on */
    bool            is_silent;  /* it has said nothing, and got nothing but its id */
    bool            is_invited; /* got the older revision's assignment too */
    bool            is_old;     /* ... and answered it */
    ie__query      *query;      /* of an alias: the question that is asked by this id; or NULL */
    uint32_t        asked;      /* ... whom */
    bool            is_alias; /* the id of a connection of eb/2; most of the above means nothing */
};

/* Members in the order in which they registered. */
struct ie__eb1_event {
    ie__target     target; /* first: a topic of the same name, where there is one */
    ie__eb1_event *chain;  /* same bucket */
    ie__eb1      **members;
    uint32_t       count;
    uint32_t       max;
    uint32_t       turn; /* whose it is next */
    uint32_t       id;
    bool           has_subscribers; /* in eb/2, */
    uint64_t       generation;      /* when the index of topics was like this */
};

struct ie__eb1_bus {
    ie__eb1        *sessions; /* with an id */
    ie__eb1       **ids;
    ie__eb1_event **events;
    size_t          id_buckets; /* powers of two */
    size_t          event_buckets;
    size_t          id_count;
    size_t          event_count;
    size_t          ask_count; /* aliases that are questions */
    uint32_t        next_id;
};

/* ---- eb1.c: called by session.c ---- */

/* Do these first eight bytes announce eb/1, in whatever framing? */
bool ie__eb1_is_greeting(const unsigned char bytes[IE__GREETING_BYTES]);
/* The connection speaks eb/1 from here on. IE_ESTATE: what comes now goes to ie__eb1_web_data(). */
ie_status ie__eb1_begin(ie__conn *conn, const unsigned char bytes[IE__GREETING_BYTES]);
ie_status ie__eb1_message(ie__conn *conn, unsigned char *message, size_t size);
void      ie__eb1_tick(ie__conn *conn, int64_t now_ms);
/* It is being ended because it does not read: what waits for it is lost, and counted. */
void ie__eb1_drop_unsent(ie__conn *conn);
/* Takes it off everything and closes its stream. */
void ie__eb1_end(ie__conn *conn);
void ie__eb1_free(ie_bus_server *server);

/* ---- eb1.c: for the other two ---- */

/* It has an id and takes part; tell it. */
void     ie__eb1_enter(ie__eb1 *eb1);
ie__eb1 *ie__eb1_find(const ie__eb1_bus *bus, uint32_t id);
/* What goes to one receiver, or to many. */
typedef struct ie__eb1_out {
    ie__conn            *from; /* held back for a moment while the receiver is behind; or NULL */
    const unsigned char *head; /* 12 or 20 bytes, or more */
    const unsigned char *data;
    ie__blob            *blob; /* of data, made when first shared; the caller unrefs it */
    size_t               head_bytes;
    size_t               data_bytes;
} ie__eb1_out;
/* False: it is gone, or has just been ended because it does not read. */
bool ie__eb1_send(ie__eb1 *to, ie__eb1_out *out);
/* Nobody gets this message; counted, and logged at times. */
void ie__eb1_drop(ie__eb1 *from, const char *why);

/* Ids; an alias has one, too, and no session. */
void ie__eb1_id_take(ie__eb1_bus *bus, ie__eb1 *eb1);
void ie__eb1_id_give_back(ie__eb1_bus *bus, ie__eb1 *eb1);

/* ---- eb1_route.c ---- */

typedef enum ie__eb1_how { IE__EB1_ANY, IE__EB1_BY_KEY, IE__EB1_IN_TURN } ie__eb1_how;
/* To one member that can take it; head[8..] becomes its id. False: there is none. */
bool ie__eb1_event_send(ie__eb1_bus *bus, uint32_t id, ie__eb1_how how, uint64_t key,
                        ie__eb1_out *out, unsigned char head[IE__EB1_HEADER]);

void ie__eb1_register(ie__eb1 *eb1, uint32_t event);
/* A member of nothing any more. */
void ie__eb1_leave(ie__eb1 *eb1);
/* A data message: header checked to be whole. */
void ie__eb1_route(ie__eb1 *from, unsigned char *message, size_t size);

/* ---- eb1_topics.c: where eb/1 meets eb/2 ---- */

/* The event is a topic: it can be found by who publishes. */
void ie__eb1_event_index(ie_bus_server *server, ie__eb1_event *event);
/* A message to an event, for its topic's subscribers; event NULL: it has no members. False: nobody
 * there has it. */
bool ie__eb1_to_topic(ie__eb1 *from, ie__eb1_event *event, const unsigned char *message,
                      size_t size);
/* A direct message to an alias. False: nobody has it. */
bool ie__eb1_to_alias(ie__eb1 *from, const ie__eb1 *alias, const unsigned char *message,
                      size_t size);
/* For route.c: has this event of eb/1 a member that is alive; would the data fit? */
bool ie__eb1_event_takes(const ie__target *target);
bool ie__eb1_event_fits(size_t data_bytes);
/* The publish in hand (server->record) goes to one member. False: none could take it. */
bool ie__eb1_from_topic(ie__target *target, ie__conn *publisher);
/* For query.c. An event of eb/1 that has members and whose topic is that of the query in hand;
 * NULL: none, or its data does not fit. */
ie__target *ie__eb1_asked(ie_bus_server *server);
/* Put the query in hand to one member. NULL: none could take it. */
ie__eb1 *ie__eb1_ask(ie__target *target, ie__conn *asker, ie__query *query);
void     ie__eb1_ask_end(ie_bus_server *server, ie__eb1 *ask); /* NULL is accepted */
/* For eb1.c: this session ends, and so do the questions that it was asked. */
void ie__eb1_asks_leave(ie__eb1 *eb1);
/* For session.c: a connection of eb/2 ends. */
void ie__eb1_alias_free(ie__conn *conn);

/* ---- eb1_web.c ---- */

static inline bool
ie__eb1_is_web(const ie__eb1 *eb1)
{
    return eb1->web != NULL;
}
ie_status ie__eb1_web_begin(ie__eb1 *eb1, const unsigned char bytes[IE__GREETING_BYTES]);
void      ie__eb1_web_data(ie__conn *conn, unsigned char *bytes, size_t size);
/* Last words, in WebSocket's own. */
void ie__eb1_web_end(ie__eb1 *eb1);
void ie__eb1_web_free(ie__eb1 *eb1);

#endif
