/*
 * New options for a running server. They are prepared on the caller's thread, where anything may
 * fail, then taken on the server's, where nothing can: so a change happens whole or not at all.
 */
#ifndef IE_RELOAD_H
#define IE_RELOAD_H

#include "server.h"

/* At the start: remember what a reload cannot change. */
void ie__reload_begin(ie_bus_server *server, const ie_bus_server_options *options);
/* On the server's thread: take what waits, if something does. */
void ie__reload_take(ie_bus_server *server);
/* On the server's thread, at its end: nothing will be taken any more. */
void ie__reload_end(ie_bus_server *server);

#endif
