/* Peers that speak raw frames without ever blocking, so that one thread can play many of them. */
#ifndef IE_TEST_PEER_H
#define IE_TEST_PEER_H

#include "bus_support.h"

typedef struct peer peer;
struct peer {
    int        fd; /* -1: not connected */
    ie__framer framer;
    void (*on_frame)(peer *p, const ie__frame *frame); /* all but PING and PONG */
    void    *user;
    uint32_t pongs;
    uint32_t pings; /* sent */
    bool     has_ended;
};

/* Connect and say hello; name may be NULL. Fails the test when it cannot. */
void peer_open(peer *p, const ie_bus_server *server, const char *name,
               void (*on_frame)(peer *p, const ie__frame *frame), void *user);
/* Hang up, whatever is under way. */
void peer_close(peer *p);
/* Handle what is there; wait at most so long for the first byte of any. */
void peers_run(peer *const *peers, size_t count, int wait_ms);
/* Run all of them until the bus has answered everything that they sent. */
void peers_barrier(peer *const *peers, size_t count);

/* SUBSCRIBE with a selection. */
void peer_subscribe(peer *p, uint32_t id, const char *pattern, const char *group, uint32_t flags,
                    uint32_t credit, ie_bus_selection selection);
/* PUBLISH with a key (NULL: none), and the number as data. */
void peer_publish(peer *p, uint32_t request, uint32_t flags, const char *topic, const char *key,
                  uint32_t number);
void peer_ack(peer *p, uint32_t first, uint32_t count);
void peer_nack(peer *p, uint32_t delivery, uint32_t code);
/* The number in the data of a DELIVER, DELIVER_ACK or DELIVER_LOG. */
uint32_t peer_number(const ie__frame *frame);

#endif
