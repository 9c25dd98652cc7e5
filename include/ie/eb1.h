/**
 * @file
 * A client of eb/1, the protocol of the reference event bus: four-letter events, service ids,
 * direct, random, hash, round-robin and broadcast. For programs of ours that have to join such a
 * bus; between programs of ours ie/bus.h is the better choice, because eb/1 acknowledges nothing.
 *
 * Addresses: "socket://HOST:PORT", "unix:PATH" (the ipc framing), "ws://HOST:PORT/PATH".
 */
#ifndef IE_EB1_H
#define IE_EB1_H

#include <ie/bus.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IE_EB1_MESSAGE_BYTES_MAX 1048576 /* header and data; the reference's limit */
#define IE_EB1_EVENT_BYTES       4       /* longer names are cut, shorter ones padded with NUL */

/** The 32-bit number of an event name: its first four bytes and the top bit. Threads: any. */
IE_API uint32_t ie_eb1_event_id(const char *name);

typedef enum ie_eb1_mode {
    IE_EB1_RANDOM = 0, /* any member of the event */
    IE_EB1_HASH = 1,   /* member key mod count, in order of registration */
    IE_EB1_ROUND_ROBIN = 2
} ie_eb1_mode;

typedef struct ie_eb1_client ie_eb1_client;

/** Data for us, on the client's thread. @p source: the service id to answer to. */
typedef void (*ie_eb1_data_fn)(void *user, uint32_t source, const void *data, size_t bytes);
/** As ie_bus_status_fn; with IE_BUS_CONNECTED the service id is known. */
typedef ie_bus_status_fn ie_eb1_status_fn;

typedef struct ie_eb1_client_options {
    size_t           size;  /* filled in by IE_EB1_CLIENT_OPTIONS_INIT */
    const char      *url;   /* NULL: IE_BUS_URL_DEFAULT */
    const char      *event; /* to register as a member of; NULL: none */
    ie_eb1_data_fn   on_data;
    ie_eb1_status_fn on_status;
    void            *user;
    ie_logger        logger;
    uint64_t         queue_bytes_max;        /* unsent; 16 MiB */
    uint32_t         connect_timeout_ms;     /* up to the id's assignment; 5,000 */
    uint32_t         reconnect_delay_ms;     /* the first delay is random in 0..this; 100 */
    uint32_t         reconnect_delay_ms_max; /* doubles up to this; 10,000 */
    uint32_t         heartbeat_ms;           /* 30,000; no reply for twice as long: reconnect */
    uint32_t         close_timeout_ms;       /* 5,000 */
    uint32_t         reserved;               /* 0 */
} ie_eb1_client_options;

IE_API void ie_eb1_client_options_init(ie_eb1_client_options *options, size_t size);
#define IE_EB1_CLIENT_OPTIONS_INIT(o) ie_eb1_client_options_init((o), sizeof *(o))

/** Make a client; it connects, registers, and reconnects on a thread of its own. Statuses, threads
 *  and ownership as ie_bus_client_open(). */
IE_API ie_status ie_eb1_client_open(ie_eb1_client **out, const ie_eb1_client_options *options,
                                    ie_error *err);

/** Wait until the bus has assigned an id. As ie_bus_client_wait_connected(). */
IE_API ie_status ie_eb1_client_wait_connected(ie_eb1_client *client, uint32_t timeout_ms,
                                              ie_error *err);

/** Our service id now; 0 while not connected. It changes with each connection. Threads: any. */
IE_API uint32_t ie_eb1_client_id(const ie_eb1_client *client);

/**
 * Send to a service id, to one member of an event, or to everybody else.
 *
 * IE_OK means: in the queue of this client. eb/1 has no acknowledgement; a message still queued
 * when the connection is lost is sent after the reconnect, one that was written is not repeated.
 *
 * @return IE_OK, IE_EINVAL, IE_ETOOBIG, IE_ELIMIT (the queue is full), IE_ECLOSED or IE_ENOMEM.
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_eb1_client_send(ie_eb1_client *client, uint32_t destination, const void *data,
                                    size_t bytes, ie_error *err);
IE_API ie_status ie_eb1_client_send_event(ie_eb1_client *client, const char *event,
                                          ie_eb1_mode mode, uint64_t key, const void *data,
                                          size_t bytes, ie_error *err);
IE_API ie_status ie_eb1_client_broadcast(ie_eb1_client *client, const void *data, size_t bytes,
                                         ie_error *err);

/** Send what waits (up to close_timeout_ms), close, release. NULL is accepted. */
IE_API void ie_eb1_client_close(ie_eb1_client *client);

#ifdef __cplusplus
}
#endif
#endif
