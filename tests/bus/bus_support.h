/* A peer that speaks raw bytes, a server with the options at hand, a subscriber that counts. */
#ifndef IE_BUS_SUPPORT_H
#define IE_BUS_SUPPORT_H

#include <ie/bus.h>

#include <stdatomic.h>

#include "support.h"
#include "wire.h"

#define WAIT_MS 20000 /* for what must come; generous, because machines are busy */

/* A server on a free loopback port (or options->listen). Fails the test when it does not start. */
ie_bus_server      *bus_start(ie_bus_server_options *options);
ie_bus_server      *bus_start_default(void);
ie_bus_server_stats bus_stats(ie_bus_server *server);
/* Wait until a counter has this value; what an end of a connection changes is shown after the peer
 * may have seen that end. False: not within WAIT_MS. */
bool bus_stat_becomes(ie_bus_server *server, size_t offset, uint64_t value);
#define CK_BUS_STAT(server, field, value)                                                          \
    ck_assert_msg(bus_stat_becomes((server), offsetof(ie_bus_server_stats, field), (value)),       \
                  #field " is %llu, not %llu", (unsigned long long)bus_stats(server).field,        \
                  (unsigned long long)(value))

/* A raw connection to address 0 of the server; -1 when refused. */
int raw_connect(const ie_bus_server *server);
/* Greeting and hello both ways, checked. */
int  raw_open(const ie_bus_server *server);
int  raw_open_as(const ie_bus_server *server, const char *name); /* the hello tells this name */
void raw_send(int fd, const void *bytes, size_t size);
/* False: the peer closed or reset before size bytes came (or nothing came in WAIT_MS). */
bool raw_receive(int fd, void *bytes, size_t size);
/* One message into a buffer of at least IE__MESSAGE_MAX; 0 at the connection's end. */
size_t raw_message(int fd, unsigned char *message);
/* The next message must be of this type; its frame points into a static buffer. */
ie__frame raw_expect(int fd, ie__frame_type type);
/* ... a frame with code and reason, of this code. */
void raw_expect_reason(int fd, ie__frame_type type, uint32_t number, uint32_t code);
/* Nothing more comes, and the connection ends. */
void raw_expect_end(int fd);
void raw_frame(int fd, ie__frame_type type, uint32_t number, const void *body, size_t size);
/* PUBLISH of a record with this topic and data_bytes of 'x'. */
void raw_publish(int fd, uint32_t request, uint32_t flags, const char *topic, size_t data_bytes);
void raw_subscribe(int fd, uint32_t id, const char *pattern, const char *group, uint32_t flags,
                   uint32_t credit);

/* The other side: a raw bus, for what a real one never does. */
int fake_bus_listen(char url[64]);
/* The next client, past its HELLO; it is welcomed with these capabilities. */
int fake_bus_accept(int listener, uint32_t capabilities);
/* DELIVER, DELIVER_ACK or DELIVER_LOG of an event with this topic and data. */
void fake_bus_deliver(int fd, ie__frame_type type, uint32_t subscription, uint32_t delivery,
                      uint32_t attempt, int64_t position, const char *topic, const char *data);

/* A client of the server that is connected. */
ie_bus_client *client_open(const ie_bus_server *server);
ie_bus_client *client_open_url(const char *url, uint32_t flags);

typedef struct counter {
    atomic_ulong handled;
    atomic_ulong answered;
    atomic_ulong failed;    /* of the answered */
    atomic_ulong receivers; /* sum */
    atomic_uint  last_code;
    atomic_int   last_status;
    atomic_int   result;     /* what the handler returns */
    atomic_bool  is_blocked; /* the handler waits while this is set */
    atomic_ulong out_of_order;
    atomic_long  last_number; /* in the data */
} counter;

ie_status counter_handle(void *user, const ie_event *event);
void      counter_answer(void *user, const ie_bus_answer *answer);
/* Wait for a count; false: not within WAIT_MS. */
bool wait_for(atomic_ulong *count, unsigned long value);

/* Subscribe and wait until the server knows. */
uint32_t subscribe_now(ie_bus_client *client, const char *pattern, const char *group,
                       uint32_t flags, counter *count);
/* Publish one event whose data is the number as text. */
ie_status publish_number(ie_bus_client *client, const char *topic, long number, uint32_t flags,
                         counter *count);

#endif
