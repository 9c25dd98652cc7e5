/**
 * @file
 * The socket bus: a server that can live in any process, and its client.
 *
 * Addresses: "socket://127.0.0.1:9100", "socket://[::1]:9100", "unix:/run/ie.sock" or, the same,
 * "socket:///run/ie.sock". Both sides speak eb/2 (src/bus/PROTOCOL.md).
 *
 * What an acknowledged publish means. A subscription is either *live* (no group: events are
 * handed over and forgotten) or *acknowledged* (it names a group, or was made with
 * IE_BUS_SUBSCRIBE_ACK). The bus answers a publish after
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

#define IE_BUS_URL_DEFAULT "socket://127.0.0.1:9100"
#define IE_BUS_GROUP_BYTES_MAX 255 /* a group's name; same rules as a topic */
#define IE_BUS_NAME_BYTES_MAX 255  /* a client's or a server's name */

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
    X(IE_BUS_CODE_UNAVAILABLE, 19, "what the subscriber's handler needs is down")

typedef enum ie_bus_code {
#define IE_BUS_CODE_ENUM(name, value, text) name = value,
    IE_BUS_CODE_MAP(IE_BUS_CODE_ENUM)
#undef IE_BUS_CODE_ENUM
} ie_bus_code;

/** The code's text, "no subscribers"; "unknown code" for a number that this build lacks.
 *  Threads: any. */
IE_API const char *ie_bus_code_text(uint32_t code);

/* ---- server --------------------------------------------------------------------------------- */

typedef struct ie_bus_server ie_bus_server;

/** Every limit has a name; 0 in a field means its default. */
typedef struct ie_bus_server_options {
    size_t             size;   /* filled in by IE_BUS_SERVER_OPTIONS_INIT */
    const char *const *listen; /* URLs; port 0: any free one. NULL: IE_BUS_URL_DEFAULT alone */
    size_t             listen_count;
    const char        *name;     /* told to clients; NULL: "ie" */
    const char        *data_dir; /* durable topics live here; NULL: none (must be NULL for now) */
    ie_logger          logger;

    uint64_t out_bytes_max;       /* waiting for one client; 8 MiB. Beyond: it is disconnected */
    uint64_t out_bytes_total_max; /* waiting for all clients together; 256 MiB */
    uint64_t group_bytes_max;     /* waiting for one group; 32 MiB. Beyond: publishes are refused */
    uint64_t memory_bytes_max;    /* all buffers together; 512 MiB. Beyond: publishes are refused */

    uint32_t data_bytes_max;               /* payload of one event; 1 MiB, not more */
    uint32_t connections_max;              /* 4096 */
    uint32_t connections_per_address_max;  /* 0: no limit (listening on loopback only) */
    uint32_t unauthenticated_max;          /* connections that have not said hello; 128 */
    uint32_t subscriptions_max;            /* of all connections; 100,000 */
    uint32_t subscriptions_per_client_max; /* 256 */
    uint32_t publishes_in_flight_max;      /* unanswered, per connection; 8,192 */
    uint32_t credit_max;                   /* unacknowledged deliveries per subscription; 10,000 */
    uint32_t group_events_max;             /* waiting for one group; 10,000 */
    uint32_t hello_timeout_ms;             /* accept to hello; 5,000 */
    uint32_t frame_timeout_ms;             /* first to last byte of a frame; 30,000 */
    uint32_t ping_interval_ms;             /* silence after which the peer is asked; 20,000 */
    uint32_t ping_missed_max;              /* silent intervals until it is closed; 2 */
    uint32_t ack_timeout_ms;               /* a member that answers nothing for so long; 30,000 */
    uint32_t drain_ms;                     /* ie_bus_server_close() waits at most this; 30,000 */
    uint32_t reserved;                     /* 0 */
} ie_bus_server_options;

IE_API void ie_bus_server_options_init(ie_bus_server_options *options, size_t size);
#define IE_BUS_SERVER_OPTIONS_INIT(o) ie_bus_server_options_init((o), sizeof *(o))

/** Counters since the start, and what is there now. */
typedef struct ie_bus_server_stats {
    size_t   size;
    uint64_t connections;    /* now */
    uint64_t subscriptions;  /* now */
    uint64_t groups;         /* now */
    uint64_t out_bytes;      /* now waiting for clients */
    uint64_t held_events;    /* now waiting for a subscriber's acknowledgement */
    uint64_t memory_bytes;   /* now in buffers */
    uint64_t accepted;       /* connections */
    uint64_t refused;        /* connections, at a limit */
    uint64_t published;      /* publishes received */
    uint64_t acknowledged;   /* publishes answered with an acknowledgement */
    uint64_t unheard;        /* ... of these with 0 receivers */
    uint64_t nacked;         /* publishes refused, whatever the code */
    uint64_t no_subscribers; /* ... of these for want of a subscriber */
    uint64_t delivered;      /* deliveries written into a connection's queue */
    uint64_t redelivered;    /* ... of these to another member after one went away */
    uint64_t slow_closed;    /* connections closed because they did not read */
    uint64_t timed_out;      /* connections closed because nothing was heard */
    uint64_t protocol_errors;
    uint64_t frames_ignored; /* of optional types that this version does not know */
    uint64_t bytes_in;
    uint64_t bytes_out;
} ie_bus_server_stats;

/**
 * Start a bus: bind every address, then serve on a thread of its own.
 *
 * An address that is not loopback is refused: that needs TLS and authentication. A unix socket
 * file that nobody listens on any more is replaced; it is made for the owner only (0600).
 *
 * @param[out] out  transferred: release with ie_bus_server_close(). Untouched on failure.
 * @param options   copied, its strings too; NULL means every default.
 * @return IE_OK; IE_EINVAL (an address or an option, named); IE_ENOTSUP (data_dir); IE_EDENIED
 *         (not a loopback address); IE_EEXIST (address in use); IE_EIO; IE_ENOMEM.
 *
 * Threads: any. Blocks: no longer than it takes to bind.
 */
IE_API ie_status ie_bus_server_start(ie_bus_server **out, const ie_bus_server_options *options,
                                     ie_error *err);

/** How many addresses it listens on. Threads: any. */
IE_API size_t ie_bus_server_address_count(const ie_bus_server *server);

/**
 * The URL of address @p index with the real port, fit for a client; borrowed from the server.
 * NULL when there is no such index. Threads: any.
 */
IE_API const char *ie_bus_server_address(const ie_bus_server *server, size_t index);

/**
 * Stop accepting, tell every client goodbye, let what is in flight come to its end, then cut
 * what is left. Afterwards only stats, address and close make sense. A second call does nothing.
 *
 * @param drain_ms  wait at most so long for the clients to leave; 0: cut them at once.
 * @return IE_OK (all left by themselves) or IE_ETIMEDOUT (some were cut).
 *
 * Threads: any but the server's own (a logger's). Blocks: up to @p drain_ms.
 */
IE_API ie_status ie_bus_server_stop(ie_bus_server *server, uint32_t drain_ms);

/** Read the counters; stats->size must be set. Threads: any. Blocks: no. */
IE_API void ie_bus_server_stats_get(ie_bus_server *server, ie_bus_server_stats *stats);

/** Stop (draining options.drain_ms) if that was not done, and release. NULL is accepted.
 *  Threads: owner. Blocks: as ie_bus_server_stop(). */
IE_API void ie_bus_server_close(ie_bus_server *server);

/* ---- client --------------------------------------------------------------------------------- */

typedef struct ie_bus_client ie_bus_client;

typedef enum ie_bus_state {
    IE_BUS_CONNECTING = 0,   /* the first attempt is under way */
    IE_BUS_CONNECTED = 1,    /* hello was answered; subscriptions are being restored */
    IE_BUS_REFUSED = 2,      /* the server said no (reason); it will be tried again */
    IE_BUS_RECONNECTING = 3, /* no connection (reason); it will be tried again */
    IE_BUS_CLOSED = 4        /* by ie_bus_client_close() */
} ie_bus_state;

/** "connecting", "connected", ... Threads: any. */
IE_API const char *ie_bus_state_name(ie_bus_state state);

typedef struct ie_bus_client_status {
    size_t       size;
    const char  *reason;   /* why not connected; "" otherwise. Borrowed for the call */
    ie_bus_state state;
    uint32_t     code;     /* ie_bus_code from the server, or IE_BUS_CODE_NONE */
    uint32_t     retry_ms; /* the next attempt comes after this; 0 when there is none */
    uint32_t     attempts; /* failed in a row */
} ie_bus_client_status;

/** Called on the client's thread when its state changes. Must not block. */
typedef void (*ie_bus_status_fn)(void *user, const ie_bus_client_status *status);

/** Publishes fail at once (IE_EUNREACHABLE) while the client knows that it is disconnected: from
 *  a failed attempt or a loss until the next success. Without it they wait in the queue. */
#define IE_BUS_CLIENT_FAIL_OFFLINE 0x1u

/** 0 in a number means its default. */
typedef struct ie_bus_client_options {
    size_t           size;   /* filled in by IE_BUS_CLIENT_OPTIONS_INIT */
    const char      *url;    /* NULL: IE_BUS_URL_DEFAULT */
    const char      *name;   /* shown by the bus; NULL: the program's name and process id */
    const char      *source; /* for events that have none; NULL: "ie" */
    ie_bus_status_fn on_status;
    void            *user; /* for on_status */
    ie_logger        logger;
    uint64_t publish_queue_bytes_max; /* unanswered publishes of this client; 16 MiB */
    uint32_t publish_queue_max;       /* the same, in events; 16,384 */
    uint32_t connect_timeout_ms;      /* one attempt, up to the server's welcome; 5,000 */
    uint32_t reconnect_delay_ms;      /* the first delay is random in 0..this; 100 */
    uint32_t reconnect_delay_ms_max;  /* doubles up to this; 10,000 */
    uint32_t ping_interval_ms;        /* silence after which the server is asked; 20,000 */
    uint32_t ping_missed_max;         /* silent intervals until it counts as lost; 2 */
    uint32_t close_timeout_ms;        /* ie_bus_client_close() waits at most this; 5,000 */
    uint32_t credit;                  /* unacknowledged deliveries per subscription; 1,024 */
    uint32_t flags;                   /* IE_BUS_CLIENT_... */
    uint32_t reserved;                /* 0 */
} ie_bus_client_options;

IE_API void ie_bus_client_options_init(ie_bus_client_options *options, size_t size);
#define IE_BUS_CLIENT_OPTIONS_INIT(o) ie_bus_client_options_init((o), sizeof *(o))

/**
 * Make a client. It connects, and reconnects with full-jitter backoff, on a thread of its own;
 * a bus that is away is no failure of this call.
 *
 * @param[out] out  transferred: release with ie_bus_client_close(). Untouched on failure.
 * @param options   copied, its strings too; NULL means every default.
 * @return IE_OK, IE_EINVAL (the URL or an option, named), IE_ENOTSUP, IE_ENOMEM or IE_EIO.
 *
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_bus_client_open(ie_bus_client **out, const ie_bus_client_options *options,
                                    ie_error *err);

/**
 * Wait until the client is connected.
 *
 * @return IE_OK, IE_EUNREACHABLE or IE_EREFUSED (not in time; the message says what the last
 *         attempt met), IE_ETIMEDOUT (not in time, nothing went wrong yet), IE_ECLOSED, IE_ESTATE
 *         (called on the client's own thread).
 * Threads: any but the client's. Blocks: up to @p timeout_ms.
 */
IE_API ie_status ie_bus_client_wait_connected(ie_bus_client *client, uint32_t timeout_ms,
                                              ie_error *err);

/** The state at this moment. Threads: any. Blocks: no. */
IE_API ie_bus_state ie_bus_client_state(ie_bus_client *client);

/** Refuse the event (IE_EREFUSED, code "no subscribers") when no subscription matches. */
#define IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER 0x1u
/** Store the event before answering, where the bus has a data folder; else as without. */
#define IE_BUS_PUBLISH_PERSISTENT 0x2u

/** What became of a publish. */
typedef struct ie_bus_answer {
    size_t      size;
    const char *reason;    /* "" with IE_OK; else one line. Borrowed for the call */
    uint64_t    receivers; /* with IE_OK: matching subscriptions, each group counted once */
    ie_status   status;
    uint32_t    code;      /* ie_bus_code, where the bus refused */
} ie_bus_answer;

/** Called exactly once per accepted publish, on the client's thread. Must not block for long. */
typedef void (*ie_bus_answer_fn)(void *user, const ie_bus_answer *answer);

/**
 * Publish without waiting. The event is encoded before this returns; publishes of all threads
 * are gathered into large writes, and written at once when the connection is idle. Events leave
 * in the order of the calls.
 *
 * Missing id, time, type and source are filled in. not_before_ms is carried, not acted upon.
 *
 * @param event     borrowed for the call.
 * @param answered  called once if, and only if, IE_OK was returned; NULL: nobody asks. Statuses:
 *                  IE_OK; IE_EREFUSED (code says: no subscribers, subscriber gone, ...);
 *                  IE_EHANDLER (a subscriber's handler failed; code says how); IE_ETIMEDOUT (a subscriber did
 *                  not answer); IE_ELIMIT (bus short of room); IE_ETOOBIG; IE_EINVAL;
 *                  IE_EUNREACHABLE (connection lost before the answer: it may or may not have
 *                  been handled); IE_ECLOSED.
 * @return IE_OK; IE_EINVAL or IE_ETOOBIG (the event); IE_ELIMIT (the queue is full: wait for
 *         answers); IE_EUNREACHABLE (IE_BUS_CLIENT_FAIL_OFFLINE); IE_ECLOSED; IE_ENOMEM.
 *
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_bus_client_publish(ie_bus_client *client, const ie_event *event, uint32_t flags,
                                       ie_bus_answer_fn answered, void *user, ie_error *err);

/**
 * Publish and wait for the answer, whose status is returned and whose reason is the message.
 *
 * @return as the answer, or as ie_bus_client_publish(); IE_ETIMEDOUT when there was none within
 *         @p timeout_ms (the event may still arrive); IE_ESTATE on the client's own thread.
 * Threads: any but the client's. Blocks: up to @p timeout_ms.
 */
IE_API ie_status ie_bus_client_publish_wait(ie_bus_client *client, const ie_event *event,
                                            uint32_t flags, uint32_t timeout_ms, ie_error *err);

/**
 * Handles one event, on the client's thread; everything in @p event is borrowed for the call.
 * While it runs, nothing else of this client does: a handler that takes long belongs on a thread
 * of its own.
 *
 * @return IE_OK: handled. On an acknowledged subscription anything else reaches the publisher, and
 *         an outbox behind it acts on it: IE_EREFUSED: never again (dead letter at once);
 *         IE_EUNREACHABLE: what the handler needs is down (spends nothing); IE_EHANDLER or any
 *         other: retry. On a live one it is logged, no more.
 */
typedef ie_status (*ie_bus_event_fn)(void *user, const ie_event *event);

/** Acknowledge with the handler's result, without a group: every such subscriber gets each event. */
#define IE_BUS_SUBSCRIBE_ACK 0x1u
/** Also receive what this same client publishes. A group receives it in any case. */
#define IE_BUS_SUBSCRIBE_OWN 0x2u

/**
 * Subscribe. Needs no connection: it is (re)made at each connect. What was published before the
 * server knows it is missed; ie_bus_client_wait_subscribed() waits for that moment.
 *
 * @param pattern  copied; "*" one word, ">" the rest.
 * @param group    copied; NULL: none. Members of a group - same name, same pattern, any
 *                 connection - share its events, one member per event, and acknowledge them.
 * @param[out] id  may be NULL; for ie_bus_client_unsubscribe(). Never 0, never used again.
 * @return IE_OK, IE_EINVAL, IE_ECLOSED or IE_ENOMEM.
 *
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_bus_client_subscribe(ie_bus_client *client, const char *pattern,
                                         const char *group, uint32_t flags,
                                         ie_bus_event_fn handler, void *user, uint32_t *id,
                                         ie_error *err);

/**
 * Wait until the server has confirmed every subscription made so far.
 *
 * @return IE_OK; IE_EREFUSED or IE_ELIMIT (it refused one, the message says which and why);
 *         IE_ETIMEDOUT; IE_ECLOSED; IE_ESTATE on the client's own thread.
 * Threads: any but the client's. Blocks: up to @p timeout_ms.
 */
IE_API ie_status ie_bus_client_wait_subscribed(ie_bus_client *client, uint32_t timeout_ms,
                                               ie_error *err);

/**
 * End a subscription. After the return its handler does not run and is not called again.
 *
 * @return IE_OK or IE_ENOTFOUND.
 * Threads: any. Blocks: while handlers of this client run; not on the client's own thread.
 */
IE_API ie_status ie_bus_client_unsubscribe(ie_bus_client *client, uint32_t id, ie_error *err);

/**
 * Close: what was published is sent and its answers are waited for (up to close_timeout_ms),
 * then the connection is ended in order. Publishes still unanswered get IE_ECLOSED. No callback
 * runs after the return. NULL is accepted.
 *
 * Threads: any but the client's. Blocks: up to close_timeout_ms, and while a handler runs.
 */
IE_API void ie_bus_client_close(ie_bus_client *client);

#ifdef __cplusplus
}
#endif
#endif
