/* The bus about itself: queries to topics that begin with "$bus." are answered here, with JSON. */
#ifndef IE_ADMIN_H
#define IE_ADMIN_H

#include "query.h"

/* The query in hand; server->record is its record, and the topic begins with '$'. It ends here, or
 * later. */
void ie__admin_ask(ie_bus_server *server, ie__query *query);

#endif
