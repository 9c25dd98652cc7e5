/* The bus about itself: queries to topics that begin with "$bus." are answered here, with JSON. */
#ifndef IE_ADMIN_H
#define IE_ADMIN_H

#include <jansson.h>

#include "query.h"

/* The query in hand; server->record is its record, and the topic begins with '$'. It ends here, or
 * later. */
void ie__admin_ask(ie_bus_server *server, ie__query *query);

/* ---- between admin.c and admin_durable.c ---- */

typedef struct ie__request {
    ie_bus_server *server;
    ie__query     *query;
    json_t        *arguments; /* an object */
    json_t        *answer;    /* NULL when done: no memory for it */
    bool           is_later;  /* the query ends when the log has done it */
} ie__request;

/* Only these; IE_EINVAL names another. */
ie_status ie__admin_known(const ie__request *r, const char *const *known, ie_error *err);
/* Absent: the fallback. */
ie_status ie__admin_number(int64_t *out, const json_t *arguments, const char *name,
                           int64_t fallback, int64_t min, int64_t max, ie_error *err);
/* Absent: NULL. */
ie_status ie__admin_text(const char **out, const json_t *arguments, const char *name,
                         ie_error *err);
/* "group", which is required, and "pattern". */
ie_status ie__admin_group(const ie__request *r, const char **name, const char **pattern,
                          ie_error *err);
/* End the query with this answer, which is released; NULL: no memory. */
void ie__admin_answer(ie__query *query, json_t *answer);

/* What the log does about a durable group: all of these end the query later. */
typedef ie_status (*ie__admin_fn)(ie__request *r, const ie__group *group, ie_error *err);
ie_status ie__admin_durable_pause(ie__request *r, const ie__group *group, bool is_paused,
                                  ie_error *err);
ie_status ie__admin_durable_replay(ie__request *r, const ie__group *group, ie_error *err);
ie_status ie__admin_durable_delete(ie__request *r, const ie__group *group, ie_error *err);
ie_status ie__admin_durable_dead(ie__request *r, const ie__group *group, ie_error *err);
ie_status ie__admin_durable_dead_retry(ie__request *r, const ie__group *group, ie_error *err);
ie_status ie__admin_durable_dead_discard(ie__request *r, const ie__group *group, ie_error *err);

#endif
