/**
 * @file
 * The client of the socket bus: publish, subscribe, query; reconnects by itself.
 */
#ifndef IE_BUS_CLIENT_H
#define IE_BUS_CLIENT_H

#include <ie/bus.h>

#ifdef __cplusplus
extern "C" {
#endif

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
    const char  *reason; /* why not connected; "" otherwise. Borrowed for the call */
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
/** Publishes go on being queued, and are sent again with the same id, over a lost connection: what
 *  was not answered is published again after reconnecting. Duplicates are possible; a bus that
 *  stores recognises them. Not together with IE_BUS_CLIENT_FAIL_OFFLINE. */
#define IE_BUS_CLIENT_REPUBLISH 0x2u

/**
 * On which thread handlers of events and questions run (answers of publishes and queries, and
 * status changes: always the client's own).
 *
 * With THREAD and CALLER what has arrived waits for its handler in the client: as many
 * unanswered deliveries as their credit allows, and 8 MiB altogether. Beyond that the client stops
 * reading, and the bus feels it; heartbeats go on. While some thread waits for an answer
 * (publish_wait, query_wait), reading goes on up to 64 MiB, because the answer is behind the
 * events. What waits unanswered when the connection is lost is forgotten: the bus gives it out
 * again.
 */
typedef enum ie_bus_dispatch {
    IE_BUS_DISPATCH_INLINE = 0, /* the client's own: fastest; a handler must not block */
    IE_BUS_DISPATCH_THREAD = 1, /* a second thread of the client: handlers may take their time,
                                   and may call what waits (publish_wait, query_wait) */
    IE_BUS_DISPATCH_CALLER = 2  /* whoever calls ie_bus_client_dispatch() or _next(): for an event
                                   loop of your own, or for pulling events one by one */
} ie_bus_dispatch;

/** 0 in a number means its default. */
typedef struct ie_bus_client_options {
    size_t           size;   /* filled in by IE_BUS_CLIENT_OPTIONS_INIT */
    const char      *url;    /* NULL: IE_BUS_URL_DEFAULT */
    const char      *name;   /* shown by the bus; NULL: the program's name and process id */
    const char      *source; /* for events that have none; NULL: "ie" */
    ie_bus_status_fn on_status;
    void            *user; /* for on_status */
    ie_logger        logger;
    uint64_t         publish_queue_bytes_max; /* unanswered publishes of this client; 16 MiB */
    uint32_t         publish_queue_max;       /* the same, in events; 16,384 */
    uint32_t         connect_timeout_ms;      /* one attempt, up to the server's welcome; 5,000 */
    uint32_t         reconnect_delay_ms;      /* the first delay is random in 0..this; 100 */
    uint32_t         reconnect_delay_ms_max;  /* doubles up to this; 10,000 */
    uint32_t         ping_interval_ms;        /* silence after which the server is asked; 20,000 */
    uint32_t         ping_missed_max;         /* silent intervals until it counts as lost; 2 */
    uint32_t         close_timeout_ms;        /* ie_bus_client_close() waits at most this; 5,000 */
    uint32_t         credit; /* unacknowledged deliveries per subscription; 1,024 */
    uint32_t         flags;  /* IE_BUS_CLIENT_... */
    ie_bus_dispatch  dispatch;
    const char      *login;         /* NULL: none, or from the URL "socket://LOGIN@HOST" */
    const char      *password_file; /* first line is the password; must not be open to others */
    const char      *token_file;    /* instead of login and password */
    const char      *tls_ca_file;   /* PEM; NULL: the system's. For "sockets://" */
    const char      *tls_cert_file; /* PEM: our own certificate; NULL: none */
    const char      *tls_key_file;  /* PEM, not open to others */
    const char      *tls_host;      /* name the server's certificate must show; NULL: the URL's */
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
    uint32_t    code;     /* ie_bus_code, where the bus refused */
    uint32_t    stored;   /* with IE_OK: 1: it is in the bus's log, synced; 0: it was ephemeral */
    uint32_t    reserved; /* 0 */
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
 *                  IE_EHANDLER (a subscriber's handler failed; code says how); IE_ETIMEDOUT (a
 * subscriber did not answer); IE_ELIMIT (bus short of room); IE_ETOOBIG; IE_EINVAL; IE_EUNREACHABLE
 * (connection lost before the answer: it may or may not have been handled); IE_ECLOSED.
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
 * Handles one event, on the thread that ie_bus_dispatch says; everything in @p event is borrowed
 * for the call. With IE_BUS_DISPATCH_INLINE nothing else of this client runs meanwhile: a handler
 * that takes long wants IE_BUS_DISPATCH_THREAD. Handlers of one client never run side by side.
 *
 * @return IE_OK: handled. On an acknowledged subscription anything else reaches the publisher, and
 *         an outbox behind it acts on it: IE_EREFUSED: never again (dead letter at once);
 *         IE_EUNREACHABLE: what the handler needs is down (spends nothing); IE_EHANDLER or any
 *         other: retry. On a live one it is logged, no more.
 */
typedef ie_status (*ie_bus_event_fn)(void *user, const ie_event *event);

/** Acknowledge with the handler's result, without a group: every such subscriber gets each event.
 */
#define IE_BUS_SUBSCRIBE_ACK 0x1u
/** Also receive what this same client publishes. A group receives it in any case. */
#define IE_BUS_SUBSCRIBE_OWN 0x2u
/** The group lives as long as its members, also on a bus that stores: it gets what is published
 *  while it is there and has no place in the log. */
#define IE_BUS_SUBSCRIBE_EPHEMERAL 0x4u
/** The handler's return does not answer; ie_bus_client_ack() or _nack() does, later, from any
 *  thread. It needs on_delivery, which is told the token. Without a group it means
 *  IE_BUS_SUBSCRIBE_ACK too. */
#define IE_BUS_SUBSCRIBE_MANUAL 0x8u

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
                                         const char *group, uint32_t flags, ie_bus_event_fn handler,
                                         void *user, uint32_t *id, ie_error *err);

/** One delivery. Valid during the handler's call. */
typedef struct ie_bus_delivery {
    size_t   size;
    uint64_t token;        /* for ie_bus_client_ack() and _nack(); 0: nobody waits for an answer */
    int64_t  position;     /* in the bus's log; 0: not stored */
    uint32_t attempt;      /* 1: the first delivery to this group; 0: not counted */
    uint32_t subscription; /* its id */
} ie_bus_delivery;

/** As ie_bus_event_fn, with the delivery. */
typedef ie_status (*ie_bus_delivery_fn)(void *user, const ie_event *event,
                                        const ie_bus_delivery *delivery);

/** Everything about a subscription; 0 and NULL are defaults. */
typedef struct ie_bus_subscription {
    size_t             size;    /* filled in by IE_BUS_SUBSCRIPTION_INIT */
    const char        *pattern; /* required */
    const char        *group;
    ie_bus_event_fn    handler;     /* one of these two, */
    ie_bus_delivery_fn on_delivery; /* or none with IE_BUS_DISPATCH_CALLER: ie_bus_client_next() */
    void              *user;
    int64_t            start_at; /* a position, or UTC milliseconds; see start */
    ie_bus_start       start;    /* where a durable group begins that does not exist yet */
    ie_bus_selection   selection;
    uint32_t           flags;          /* IE_BUS_SUBSCRIBE_... */
    uint32_t           credit;         /* unanswered deliveries; the client's default */
    uint32_t           ack_timeout_ms; /* of a durable group; the server's default */
    uint32_t           attempts_max;   /* of a durable group; the server's default */
} ie_bus_subscription;

IE_API void ie_bus_subscription_init(ie_bus_subscription *subscription, size_t size);
#define IE_BUS_SUBSCRIPTION_INIT(s) ie_bus_subscription_init((s), sizeof *(s))

/**
 * As ie_bus_client_subscribe(), with every choice. On a bus that stores, a subscription with a
 * group (without IE_BUS_SUBSCRIBE_EPHEMERAL) is durable: the group's place in the log stays when
 * its members go, and what comes meanwhile waits.
 *
 * start counts when the group is made, and only then: a program that is started again with the
 * same options, another member, and this client after a lost connection go on where the group
 * stands. To move a group that exists is an administrator's act. A bus without storage ignores
 * what belongs to a log (start, ack_timeout_ms, attempts_max, IE_BUS_SUBSCRIBE_EPHEMERAL); for
 * start the client logs a warning.
 *
 * @return as ie_bus_client_subscribe(); IE_EINVAL also for choices that exclude each other.
 */
IE_API ie_status ie_bus_client_subscribe_with(ie_bus_client             *client,
                                              const ie_bus_subscription *subscription, uint32_t *id,
                                              ie_error *err);

/**
 * Answer a delivery of a manual subscription: handled.
 *
 * @return IE_OK; IE_ENOTFOUND (answered before, or its connection is gone: it will be delivered
 *         again); IE_ECLOSED.
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_bus_client_ack(ie_bus_client *client, uint64_t token);

/**
 * Answer a delivery: not handled.
 *
 * @param status    as a handler would return: IE_EREFUSED rejects it for good.
 * @param delay_ms  not again before; 0: as the bus does after failures.
 * @param reason    one line for people; NULL: none.
 * @return as ie_bus_client_ack().
 */
IE_API ie_status ie_bus_client_nack(ie_bus_client *client, uint64_t token, ie_status status,
                                    uint32_t delay_ms, const char *reason);

/* -- IE_BUS_DISPATCH_CALLER -- */

/** A descriptor that is readable while deliveries or questions wait: poll it (or epoll, level
 *  triggered), never read it. Borrowed; -1 with any other dispatch. Threads: any. */
IE_API int ie_bus_client_fd(const ie_bus_client *client);

/**
 * Run the handlers of up to @p max waiting deliveries (0: all that wait now) on this thread, after
 * waiting up to @p timeout_ms for the first.
 *
 * @return how many ran; 0: none came in time, or closed.
 * Threads: one at a time. Blocks: up to @p timeout_ms and while handlers run.
 */
IE_API size_t ie_bus_client_dispatch(ie_bus_client *client, size_t max, uint32_t timeout_ms);

/**
 * Take the next delivery of a subscription that has no handler. What has handlers is not touched:
 * ie_bus_client_dispatch() runs those.
 *
 * @param[out] event     borrowed until the next call of this. A delivery with a token must be
 *                       answered with ie_bus_client_ack() or _nack().
 * @param[out] delivery  may be NULL.
 * @return IE_OK; IE_ETIMEDOUT; IE_ECLOSED; IE_ESTATE (the client dispatches otherwise).
 * Threads: one at a time. Blocks: up to @p timeout_ms.
 */
IE_API ie_status ie_bus_client_next(ie_bus_client *client, const ie_event **event,
                                    ie_bus_delivery *delivery, uint32_t timeout_ms, ie_error *err);

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
 * Threads: any. Blocks: while a handler of this subscription runs (INLINE: any handler); not in a
 * handler, nor on the client's own thread.
 */
IE_API ie_status ie_bus_client_unsubscribe(ie_bus_client *client, uint32_t id, ie_error *err);

/* ---- queries -------------------------------------------------------------------------------- */

/** One answer to a query, or its end. */
typedef struct ie_bus_reply {
    size_t          size;
    const ie_event *event;    /* the answer; NULL: the end. Borrowed for the call */
    const char     *reason;   /* at the end: "" or one line */
    ie_status       status;   /* at the end: see ie_bus_client_query() */
    uint32_t        code;     /* at the end: ie_bus_code */
    uint32_t        answers;  /* so far */
    uint32_t        reserved; /* 0 */
} ie_bus_reply;

/** Called for each answer, and once for the end, which comes last; on the client's thread. */
typedef void (*ie_bus_reply_fn)(void *user, const ie_bus_reply *reply);

/**
 * Ask a topic. The question goes to one responder (answers_max 1) or to all that serve the topic,
 * a group counting as one; answers go to the asker only.
 *
 * @param question     borrowed for the call; goes out as it is, nothing is filled in. Its topic may
 *                     be one of the bus's own, "$bus.status".
 * @param timeout_ms   1 or more: the end comes at this time at the latest.
 * @param answers_max  end after so many; 0: all there are.
 * @param[out] id      may be NULL; for ie_bus_client_query_cancel().
 *
 * The end's status: IE_OK (at least one answer came; with several wanted, code tells whether the
 * deadline cut them short); IE_ENOTFOUND at once (nobody serves the topic); IE_ETIMEDOUT;
 * IE_EHANDLER (whom we asked declined, or went away: reason); IE_EUNREACHABLE (connection lost);
 * IE_EDENIED; IE_ELIMIT (of the bus, or whoever serves the topic is too far behind); IE_ECLOSED
 * (cancelled, or the client closes).
 * @return IE_OK (the end will come), IE_EINVAL, IE_ETOOBIG, IE_EUNREACHABLE (not connected: queries
 *         do not wait), IE_ENOTSUP (the bus takes no queries), IE_ELIMIT (publish_queue_max or
 *         publish_queue_bytes_max queries are open), IE_ECLOSED or IE_ENOMEM (it will not).
 * Threads: any, handlers too. Blocks: no.
 */
IE_API ie_status ie_bus_client_query(ie_bus_client *client, const ie_event *question,
                                     uint32_t timeout_ms, uint32_t answers_max,
                                     ie_bus_reply_fn replied, void *user, uint32_t *id,
                                     ie_error *err);

/** Forget a query; its end comes with code "cancelled". IE_ENOTFOUND: it has ended. Threads: any.
 */
IE_API ie_status ie_bus_client_query_cancel(ie_bus_client *client, uint32_t id);

/**
 * Ask and wait for the first answer. Data that is not JSON goes as application/octet-stream.
 *
 * @param[out] answer  its data, transferred: release with ie_buffer_fini(). Untouched on failure.
 * @return as the end of ie_bus_client_query(); IE_ESTATE on the client's own thread (inside a
 *         handler: use IE_BUS_DISPATCH_THREAD, or ie_bus_client_query()).
 * Threads: any but the client's. Blocks: up to @p timeout_ms.
 */
IE_API ie_status ie_bus_client_query_wait(ie_bus_client *client, const char *topic,
                                          const void *data, size_t data_bytes, uint32_t timeout_ms,
                                          ie_buffer *answer, ie_error *err);

/**
 * Handles a question; everything in it is borrowed for the call. Answer with
 * ie_bus_client_answer() or _decline(), now or later, from any thread.
 */
typedef void (*ie_bus_question_fn)(void *user, const ie_event *question, uint64_t token);

/**
 * Serve queries of a topic pattern. Needs no connection, as ie_bus_client_subscribe(); ended by
 * ie_bus_client_unsubscribe(); what was asked before that may still be answered.
 *
 * @param group  responders that share the questions (one is asked, in turn); NULL: none.
 */
IE_API ie_status ie_bus_client_serve(ie_bus_client *client, const char *pattern, const char *group,
                                     ie_bus_question_fn handler, void *user, uint32_t *id,
                                     ie_error *err);

/**
 * Answer a question. @p answer NULL: yes, without data. Its topic may be NULL: that of the
 * question.
 *
 * @return IE_OK; IE_ENOTFOUND (answered before, too late, or its asker is gone); IE_EINVAL;
 *         IE_ETOOBIG; IE_ELIMIT (publish_queue_bytes_max of answers wait to be sent); IE_ECLOSED;
 *         IE_ENOMEM. Only the first two end the question.
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_bus_client_answer(ie_bus_client *client, uint64_t token, const ie_event *answer,
                                      ie_error *err);

/** No answer, and why, in one line. As ie_bus_client_answer(). */
IE_API ie_status ie_bus_client_decline(ie_bus_client *client, uint64_t token, const char *reason,
                                       ie_error *err);

/**
 * Close: what was published is sent and its answers are waited for (up to close_timeout_ms),
 * then the connection is ended in order. Publishes still unanswered get IE_ECLOSED. No callback
 * runs after the return. NULL is accepted.
 *
 * Threads: any but the client's and those of handlers; a thread inside of ie_bus_client_dispatch()
 * or _next() is sent back first. Blocks: up to close_timeout_ms, and while a handler runs.
 */
IE_API void ie_bus_client_close(ie_bus_client *client);

#ifdef __cplusplus
}
#endif
#endif
