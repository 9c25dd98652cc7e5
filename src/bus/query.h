/*
 * Questions and answers, on the server: who serves a topic is asked, the answers go to the asker
 * alone, and every query has one end. Belongs to the server's thread.
 */
#ifndef IE_QUERY_H
#define IE_QUERY_H

#include "server.h"

ie_status ie__queries_init(ie_bus_server *server); /* IE_ENOMEM: call free all the same */
void ie__queries_finish(ie_bus_server *server);    /* closes the timer; all connections are gone */
void ie__queries_free(ie_bus_server *server);

/* -- who serves -- */
bool ie__query_has_responder(const ie__conn *conn, uint32_t id);
/* A SUBSCRIBE that was found good; group "": none. Answers it. */
void ie__query_serve(ie__conn *conn, uint32_t id, const char *pattern, const char *group,
                     uint32_t credit);
/* False: this connection has no such responder. What it was asked it may still answer. */
bool ie__query_unserve(ie__conn *conn, uint32_t id);

/* Its rights have changed: what it may not serve any more ends with SUBREFUSED 14. */
void ie__query_recheck(ie__conn *conn);

/* -- frames; IE_EPROTO: malformed -- */
ie_status ie__query_on_query(ie__conn *conn, const ie__frame *frame);
ie_status ie__query_on_cancel(ie__conn *conn, const ie__frame *frame);
ie_status ie__query_on_reply(ie__conn *conn, const ie__frame *frame);
ie_status ie__query_on_decline(ie__conn *conn, const ie__frame *frame);

/* -- for who answers inside the bus; each ends the query -- */
/* The answer is JSON. Too big for the bus's limits, or for memory: the query fails with that. */
void ie__query_answer(ie__query *query, const char *json, size_t bytes);
void ie__query_fail(ie__query *query, uint32_t code, const char *reason);
/* Who answers later watches the query by a pointer of its own, which becomes NULL when it ends. */
void ie__query_watch(ie__query *query, ie__query **watch);
/* How many serve the pattern of this entry of server->queries.topics. */
size_t ie__query_panel_members(const ie__topic_entry *entry);

/* -- a member of eb/1 was asked: its answer, a record; or it went away. The query may end -- */
void ie__query_eb1_answered(ie__query *query, const unsigned char *record, size_t size);
void ie__query_eb1_gone(ie__query *query);

/* The connection is about to go: what it asked is forgotten, what it was asked has no answer. */
void ie__query_leave(ie__conn *conn);

#endif
