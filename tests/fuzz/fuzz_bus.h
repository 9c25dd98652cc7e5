/*
 * A real server for the targets that play with sessions: its loop runs right here, in turns, and
 * raw peers reach it by a unix socket. One for each process.
 */
#ifndef IE_FUZZ_BUS_H
#define IE_FUZZ_BUS_H

#include "fuzz.h"
#include "server.h"

/* The limits are the caller's, the address is not; the socket is named after the target. */
ie_bus_server *fuzz_bus_make(const char *target, ie_bus_server_options *options);
/* Let it do what there is to do. */
void fuzz_bus_turn(void);
/* All peers are closed: nothing of theirs may be left. */
void fuzz_bus_claim_empty(void);

int  fuzz_peer_connect(void);
void fuzz_peer_send(int fd, const void *bytes, size_t size); /* what the socket takes */
void fuzz_peer_drain(int fd);

#endif
