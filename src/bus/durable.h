/*
 * Durable topics on the loop thread: which publishes are stored, and groups that read them from
 * the log. A durable group is a cursor in the log (name and pattern), which stays when its members
 * go; group.c gives its events to members, the store keeps what is to survive.
 *
 * Everything here belongs to the server's loop thread. server->durable is NULL on a bus without a
 * data folder.
 */
#ifndef IE_DURABLE_H
#define IE_DURABLE_H

#include "server.h"
#include "store.h"

typedef struct ie__durable_group ie__durable_group;

/* ---- server.c ---- */

/* Open the log in options->data_dir and start its thread; makes the groups that it knows. Sets
 * server->durable. The loop must be there; the statuses are those of ie__store_open(). */
ie_status ie__durable_open(ie_bus_server *server, const ie_bus_server_options *options,
                           ie_error *err);
/* Write what is owed, end the log's thread, let go of the loop's handles. All connections have
 * ended. Blocks until the log is closed. */
void ie__durable_stop(ie_bus_server *server);
void ie__durable_free(ie_bus_server *server);
/* Hand over what the turn has gathered. */
void ie__durable_end_of_turn(ie_bus_server *server);
/* Put the log's counters into server->stats. */
void ie__durable_show(ie_bus_server *server);
/* Is a publish on its way to the log? */
bool ie__durable_is_storing(const ie_bus_server *server);

/* Which topics are stored: made anew for a reload, then swapped in. */
typedef struct ie__durable_rules ie__durable_rules;
ie_status ie__durable_rules_new(ie__durable_rules **out, const ie_bus_server_options *options,
                                ie_error *err);
void      ie__durable_rules_free(ie__durable_rules *rules); /* NULL is accepted */
/* Takes the rules, and the limits in server->options. */
void ie__durable_reload(ie_bus_server *server, ie__durable_rules *rules);

/* ---- route.c ---- */

/* Is a publish with this topic and these flags stored? False on a bus without storage. */
bool ie__durable_takes(const ie_bus_server *server, const void *topic, size_t topic_bytes,
                       uint32_t flags);
/* May it be stored now? IE_BUS_CODE_NONE, or a code with a static reason. */
uint32_t ie__durable_check(const ie__conn *conn, size_t size, const char **reason);
/* The record as it will be stored: with id, source, type and time. NULL: out of memory. */
ie__blob *ie__durable_record(ie_bus_server *server, const unsigned char *record, size_t size);
/* Store it; the answer follows when it is synced. publisher may be NULL. False: no memory. */
bool ie__durable_publish(ie_bus_server *server, ie__conn *publisher, uint32_t request,
                         ie__blob *record, uint32_t receivers);

typedef struct ie__durable_request {
    const char      *name;
    const char      *pattern;
    ie_bus_selection selection;
    ie_bus_start     start;
    int64_t          start_at;
    uint32_t         ack_timeout_ms;
    uint32_t         attempts_max;
} ie__durable_request;
/*
 * Make the subscription a member of the durable group, which is made when there is none. A new one
 * is confirmed when it is stored: sub->is_unconfirmed is set then, and ie__route_confirm() or
 * ie__route_refuse() follows. A code with a message: refused.
 */
uint32_t ie__durable_join(ie__sub *sub, const ie__durable_request *request, ie_error *err);
/* Where the group of this subscription stands. */
int64_t ie__durable_position(const ie__sub *sub);
/* The connection ends: its publishes have nobody to answer any more. */
void ie__durable_leave(ie__conn *conn);

/* ---- admin.c: groups are named by name and pattern; a NULL pattern means the only one ---- */

typedef struct ie__durable_info {
    const char      *name;
    const char      *pattern;
    ie_bus_selection selection;
    bool             is_paused;
    uint32_t         members;
    uint32_t         ack_timeout_ms;
    uint32_t         attempts_max;
    int64_t          position;  /* everything up to here is settled or noted */
    int64_t          newest;    /* of the log: newest - position is at most its backlog */
    uint64_t         in_flight; /* taken from the log, not settled */
    uint64_t         waiting;   /* failed, to be tried again (or behind one of their key) */
    uint64_t         dead;
    uint64_t         lost;
} ie__durable_info;

/* Call each for every durable group. */
void ie__durable_each(const ie_bus_server *server,
                      void (*each)(void *user, const ie__durable_info *info), void *user);

/*
 * What became of a request: IE_BUS_CODE_NONE, and count events were concerned; or a code with its
 * reason. rows: of a list. Called once, later or before the function returns, on the loop; also
 * when the bus stops meanwhile.
 */
typedef void (*ie__durable_fn)(void *user, uint32_t code, const char *reason, uint64_t count,
                               const ie__dead_row *rows);

void ie__durable_pause(ie_bus_server *server, const char *name, const char *pattern, bool is_paused,
                       ie__durable_fn fn, void *user);
/* Replay, or skip: the group goes on from there. count: its new position. */
void ie__durable_move(ie_bus_server *server, const char *name, const char *pattern,
                      ie_bus_start start, int64_t start_at, ie__durable_fn fn, void *user);
/* Refused (IE_BUS_CODE_BUSY) while it has members. */
void ie__durable_delete(ie_bus_server *server, const char *name, const char *pattern,
                        ie__durable_fn fn, void *user);
/* Dead letters: list those behind position (at most rows_max); try again or forget that one (0:
 * all). */
void ie__durable_dead(ie_bus_server *server, const char *name, const char *pattern, ie__dead_op op,
                      int64_t position, size_t rows_max, ie__durable_fn fn, void *user);

#endif
