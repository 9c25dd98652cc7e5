/*
 * Groups: subscribers that share events and acknowledge them. This is the one mechanism that gives
 * items to members, by selection, credit and key, and takes them back. Where items come from it
 * does not know: a *feeder* pushes them and hears once what became of each. Live publishes
 * (route.c) are one feeder, the log (durable groups) another; both may feed the same group.
 *
 * Everything here belongs to the server's loop thread.
 */
#ifndef IE_GROUP_H
#define IE_GROUP_H

#include <ie/bus.h>

#include "stream.h"
#include "topics.h"
#include "wire.h"

typedef struct ie__conn  ie__conn;
typedef struct ie__sub   ie__sub;
typedef struct ie__group ie__group;
typedef struct ie__item  ie__item;

/* What became of an item. */
typedef struct ie__outcome {
    uint32_t    code;     /* IE_BUS_CODE_NONE: handled */
    uint32_t    delay_ms; /* the handler asks not to see it again before that; 0: it does not say */
    const char *reason;   /* borrowed for the call; NULL when handled */
    bool        was_sent; /* a member had it; false: it never left the queue */
} ie__outcome;

typedef struct ie__feeder {
    /* Required. Once for each item that ie__group_push() took. The item is the feeder's again: it
     * may be freed, or pushed again, in here. The group must not be freed in here. */
    void (*done)(ie__group *group, ie__item *item, const ie__outcome *outcome);
    /* May be NULL. A member went away with the item unanswered, and others are there to take it:
     * true puts it back in front of the queue (count the attempt in item->attempt first), false
     * has done() called instead. NULL is true. */
    bool (*taken_back)(ie__group *group, ie__item *item);
} ie__feeder;

/* An event on its way to one group, embedded in what the feeder keeps. The feeder fills in the
 * first part (zero the rest) and leaves all of it alone until done(). */
struct ie__item {
    const ie__feeder *feeder;
    void             *owner;    /* the feeder's */
    ie__blob         *record;   /* borrowed until done() */
    uint64_t          key;      /* ie__item_key(); 0: no key. Read by hash and sticky groups only */
    int64_t           position; /* in the log; 0: a live publish, sent as DELIVER_ACK */
    uint32_t          attempt;  /* of a log item: sent in DELIVER_LOG, from 1 */

    uint32_t  unsent;  /* broadcast: members that have not been sent it */
    uint32_t  waiting; /* broadcast: members that have not answered */
    uint32_t  code;    /* broadcast: the first failure */
    ie__item *next;    /* of the list in which it waits */
    ie__item *prev;
    char     *reason; /* broadcast: of the first failure; NULL: none, or no memory */
    bool      was_sent;
};

typedef struct ie__items {
    ie__item *head;
    ie__item *tail;
} ie__items;

/* What the index of topics finds: a live subscription, a group, or an event of eb/1. */
typedef struct ie__target {
    ie__topic_entry entry; /* first, so that the index's answer is the target */
    bool            is_group;
    bool            is_eb1;
} ie__target;

struct ie__sub {
    ie__target target; /* in the index when live */
    ie__conn  *conn;
    ie__sub   *next;        /* of the connection */
    ie__group *group;       /* NULL: live */
    ie__items  queue;       /* hash, sticky: waiting for this member */
    ie__item  *cursor;      /* broadcast: the next to be sent; NULL: it has all */
    uint64_t   identity;    /* of a member: its name's, so that a key finds it again */
    int64_t    progress_ms; /* when it last acknowledged, or got its first delivery */
    uint32_t   id;
    uint32_t   flags;
    uint32_t   credit;
    bool       is_narrowed;    /* live: not all of its pattern is allowed; see ie__may_receive() */
    uint32_t   outstanding;    /* deliveries that it has not answered, in time or not */
    bool       is_unconfirmed; /* its durable group is being stored; SUBSCRIBED follows */
};

/* A key of a sticky group that has an item on its way, or a failed one that is to come again. */
typedef struct ie__key {
    uint64_t  key;      /* 0: an empty slot */
    int64_t   position; /* of the item that is on its way, or failed */
    ie__items waiting;  /* later items of the key */
    bool      is_held;  /* the item failed: nothing else of the key moves before it is back */
} ie__key;

struct ie__group {
    ie__target     target;
    ie_bus_server *server;
    ie__group     *chain; /* same bucket of the table of names */
    uint64_t       hash;

    /* Of a durable group's feeder. */
    void (*hungry)(ie__group *group); /* NULL: nobody to ask; see ie__group_room() */
    void    *user;
    size_t   window;         /* how many of its items shall wait here at most */
    uint32_t ack_timeout_ms; /* an item unanswered for so long is done (code 8); 0: never */
    bool     is_durable;     /* stays without members; ends by ie__group_free() alone */
    bool     is_paused;      /* gives nothing to members; set by ie__group_pause() */

    ie_bus_selection selection;
    ie__sub        **members;
    size_t           member_count;
    size_t           member_max;
    size_t           turn;  /* whose it is next */
    ie__items        queue; /* what no member has credit for; broadcast: what is not answered */
    size_t           queue_count; /* waiting in all queues of the group */
    uint64_t         queue_bytes;
    ie__key         *keys; /* sticky: a table with open addressing */
    size_t           key_count;
    size_t           key_max; /* a power of two, or 0 */
    char            *pattern;
    char             name[]; /* "": no name, one member */
};

/* ---- the table of groups ---- */

ie__group *ie__group_find(const ie_bus_server *server, const char *name, const char *pattern);
/* A group without members, in the table and in the index of topics. NULL: no memory. */
ie__group *ie__group_new(ie_bus_server *server, const char *name, const char *pattern,
                         ie_bus_selection selection);
/* It must have no members. Whatever waits in it must have been answered (it has: the last member
 * that left saw to that). */
void ie__group_free(ie__group *group);

/* ---- for feeders ---- */

/* A key's (or id's) bytes as a number, the same in every process; never 0. */
uint64_t ie__item_key(const void *bytes, size_t size);
/*
 * Give the group an item. False: it has no members, or no memory for the key; done() will not be
 * called then. The item may be sent, but is never done(), inside this call. Never refuses for
 * fullness: ask ie__group_is_full() or ie__group_room() before.
 *
 * Sticky: after a log item (position not 0) failed, its key is held, across leaving members too:
 * later items of the key wait until the same position is pushed again or
 * ie__group_release_key() is called, which may happen inside done().
 */
bool ie__group_push(ie__group *group, ie__item *item);
/* The same for a log item that was here before: it waits in front of the others, and nothing is
 * sent before the group is pumped. */
bool ie__group_push_again(ie__group *group, ie__item *item);
/* Has it reached group_events_max or group_bytes_max with so much more? */
bool ie__group_is_full(const ie__group *group, size_t size);
/*
 * How many more items its window takes now; 0 without members or while paused. hungry() is called
 * whenever less than half a window waits after members answered, joined or drained: it is a level,
 * not an edge, so it must be cheap when there is nothing to push. It may push.
 */
size_t ie__group_room(const ie__group *group);
/* Sticky: the failed item of this key will not come again (dead, or handled otherwise). */
void ie__group_release_key(ie__group *group, uint64_t key);
void ie__group_pause(ie__group *group, bool is_paused);
/* Log items that wait and that no member has: done (code 6, not sent). key: those of a sticky
 * group that wait behind this key's failed item; 0: all. */
void ie__group_withdraw(ie__group *group, uint64_t key);

/* ---- members (route.c) ---- */

/* IE_BUS_CODE_NONE, _CONFLICT (it has another selection) or _MEMORY, with a message. Makes the
 * group when there is none. sub->conn must be set. */
uint32_t ie__group_join(ie_bus_server *server, const char *name, const char *pattern,
                        ie_bus_selection selection, ie__sub *sub, ie_error *err);
/* The first step of leaving: it is out of the list, what waited for it waits for others. Then
 * ie__deliveries_take_back(), then ie__group_settle() once for the group. */
void ie__group_leave(ie__sub *sub, uint32_t code, const char *reason);
/* Go on with who is left. With nobody left everything that waits is done with this code, and a
 * group that is not durable ends. */
void ie__group_settle(ie__group *group, uint32_t code, const char *reason);
/* A member got credit, or its output drained: it may be given more. */
void ie__group_pump(ie__group *group);
void ie__group_pump_member(ie__sub *sub);

/* ---- group_keys.c: keys of sticky groups ---- */

ie__key *ie__keys_find(const ie__group *group, uint64_t key);
ie__key *ie__keys_add(ie__group *group, uint64_t key); /* must not be there; NULL: no memory */
void     ie__keys_remove(ie__group *group, ie__key *slot);
/* With the last member gone: only held keys stay. What waited is appended to *out. */
void ie__keys_let_go(ie__group *group, ie__items *out);

/* ---- delivery.c: what a connection was given and has not answered ---- */

/* A delivery; the ring of its connection holds it until it is answered. */
typedef struct ie__delivery {
    ie__item *item; /* NULL: taken back, because its time was over */
    ie__sub  *sub;  /* NULL: answered, or the subscription is gone */
    int64_t   sent_ms;
} ie__delivery;

/* Room for one more delivery. False: no memory, and the connection is doomed. */
bool ie__delivery_prepare(ie__conn *conn);
/* Send an item to a member; ie__delivery_prepare() must have said yes. */
void ie__delivery_send(ie__sub *sub, ie__item *item);
/*
 * What these subscriptions were given and did not answer goes back to their groups, or is done
 * with this code when no member is left. only: one subscription, or NULL for all of the
 * connection's. The members must have left their groups.
 */
void ie__deliveries_take_back(ie__conn *conn, const ie__sub *only, uint32_t code,
                              const char *reason);
/* Clocks. True: it is stuck, and to be closed (code 8). */
bool ie__deliveries_tick(ie__conn *conn, int64_t now_ms);

/* What a member answered; used by delivery.c. */
void ie__group_answered(ie__group *group, ie__item *item, const ie__outcome *outcome);
/* What a member that left had not answered; newest first. */
void ie__group_return(ie__group *group, ie__item *item, uint32_t code, const char *reason);

#endif
