/**
 * @file
 * The socket bus: a server that can live in any process (ie/bus_server.h), and its client
 * (ie/bus_client.h). This header has what both share, and includes both.
 *
 * Addresses: "socket://127.0.0.1:9100", "socket://[::1]:9100", "unix:/run/ie.sock" or, the same,
 * "socket:///run/ie.sock"; "sockets://bus.example.org:9101" is the same over TLS. Both sides speak
 * eb/2 (src/bus/PROTOCOL.md); the server also serves eb/1 on the same port (ie/eb1.h is a client
 * for that).
 *
 * What an acknowledged publish means. A publish that is *stored* (marked persistent, on a bus with
 * a data folder, or forced by the bus's topics) is answered once it is in the log and the log is
 * synced: consumer groups find it whenever they come. Every other publish is *ephemeral*: it goes
 * to who is connected. A subscription is either *live* (no group: events are
 * handed over and forgotten) or *acknowledged* (it names a group, or was made with
 * IE_BUS_SUBSCRIBE_ACK). The bus answers an ephemeral publish after
 *  - each matching live subscriber's connection has it in its queue, and
 *  - each matching acknowledged subscription (a group counts as one) had a handler return IE_OK.
 * The answer says how many there were. So with acknowledged subscribers an event that was
 * answered with IE_OK has been handled; with only live ones it was handed to their connections;
 * with none (and without IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER) nobody has it, and receivers is 0.
 */
#ifndef IE_BUS_H
#define IE_BUS_H

#include <ie/event.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IE_BUS_URL_DEFAULT       "socket://127.0.0.1:9100"
#define IE_BUS_GROUP_BYTES_MAX   255 /* a group's name; same rules as a topic */
#define IE_BUS_PATTERN_WORDS_MAX 32  /* of a subscription: they decide what a publish may cost */
#define IE_BUS_NAME_BYTES_MAX    255 /* a client's or a server's name */

/*
 * Why a publish or a subscription was refused, or a connection closed. The numbers are those of
 * the protocol; the texts are what users see.
 */
#define IE_BUS_CODE_MAP(X)                                                                         \
    X(IE_BUS_CODE_NONE, 0, "none")                                                                 \
    X(IE_BUS_CODE_NO_SUBSCRIBERS, 1, "no subscribers")                                             \
    X(IE_BUS_CODE_TOO_BIG, 2, "too big")                                                           \
    X(IE_BUS_CODE_INVALID, 3, "invalid event")                                                     \
    X(IE_BUS_CODE_LIMIT, 4, "a limit of the bus is reached")                                       \
    X(IE_BUS_CODE_BUSY, 5, "the subscriber is too far behind")                                     \
    X(IE_BUS_CODE_SUBSCRIBER_GONE, 6, "subscriber went away")                                      \
    X(IE_BUS_CODE_HANDLER, 7, "the subscriber's handler refused")                                  \
    X(IE_BUS_CODE_ACK_TIMEOUT, 8, "the subscriber did not answer in time")                         \
    X(IE_BUS_CODE_SHUTTING_DOWN, 9, "shutting down")                                               \
    X(IE_BUS_CODE_BAD_FRAME, 10, "the protocol was broken")                                        \
    X(IE_BUS_CODE_UNSUPPORTED, 11, "not supported")                                                \
    X(IE_BUS_CODE_TIMEOUT, 12, "nothing was heard in time")                                        \
    X(IE_BUS_CODE_SLOW, 13, "too slow: the queue of undelivered events is full")                   \
    X(IE_BUS_CODE_DENIED, 14, "not allowed")                                                       \
    X(IE_BUS_CODE_MEMORY, 15, "the bus is short of memory")                                        \
    X(IE_BUS_CODE_EXISTS, 16, "already in use")                                                    \
    X(IE_BUS_CODE_DONE, 17, "done")                                                                \
    X(IE_BUS_CODE_REJECTED, 18, "the subscriber's handler rejected it for good")                   \
    X(IE_BUS_CODE_UNAVAILABLE, 19, "what the subscriber's handler needs is down")                  \
    X(IE_BUS_CODE_STORAGE, 20, "the bus could not store it")                                       \
    X(IE_BUS_CODE_CANCELLED, 21, "cancelled")                                                      \
    X(IE_BUS_CODE_CONFLICT, 22, "the group exists with other settings")                            \
    X(IE_BUS_CODE_CREDENTIALS, 23, "user name, password or token is wrong")                        \
    X(IE_BUS_CODE_FULL, 24, "the bus's storage is full")

typedef enum ie_bus_code {
#define IE_BUS_CODE_ENUM(name, value, text) name = value,
    IE_BUS_CODE_MAP(IE_BUS_CODE_ENUM)
#undef IE_BUS_CODE_ENUM
} ie_bus_code;

/** The code's text, "no subscribers"; "unknown code" for a number that this build lacks.
 *  Threads: any. */
IE_API const char *ie_bus_code_text(uint32_t code);

/** How a group chooses the member that gets an event. All members of a group ask for the same. */
typedef enum ie_bus_selection {
    IE_BUS_ROUND_ROBIN = 0, /* in turn, among members with credit */
    IE_BUS_RANDOM = 1,      /* among members with credit */
    IE_BUS_HASH = 2,        /* by the event's key (its id without one); few keys move when members
                               come and go */
    IE_BUS_STICKY = 3,      /* as hash, and one event per key at a time: order per key holds,
                               through redelivery too */
    IE_BUS_BROADCAST = 4    /* to all members; handled when every one of them has answered. Not for
                               stored events: there each consumer takes a group of its own */
} ie_bus_selection;

/** Where a durable group begins; only who makes the group, or moves it, decides. */
typedef enum ie_bus_start {
    IE_BUS_START_GROUP = 0,    /* where the group stands; a new one begins at the end */
    IE_BUS_START_FIRST = 1,    /* the oldest event that is kept */
    IE_BUS_START_POSITION = 2, /* start_at is a position of the bus's log */
    IE_BUS_START_TIME = 3,     /* start_at is UTC milliseconds */
    IE_BUS_START_END = 4       /* what is published from now on */
} ie_bus_start;

#ifdef __cplusplus
}
#endif

#include <ie/bus_client.h>
#include <ie/bus_server.h>

#endif
