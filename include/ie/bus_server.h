/**
 * @file
 * The server of the socket bus: limits, storage, security, start, reload, stop.
 */
#ifndef IE_BUS_SERVER_H
#define IE_BUS_SERVER_H

#include <ie/bus.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- server --------------------------------------------------------------------------------- */

typedef struct ie_bus_server ie_bus_server;

/** What retention does about a group that has not had an old event yet. */
typedef enum ie_bus_lagging {
    IE_BUS_LAGGING_KEEP = 0, /* keeps it; at retention_bytes_max publishes are refused ("full") */
    IE_BUS_LAGGING_DROP = 1  /* deletes it; counted, logged and shown for the group as lost */
} ie_bus_lagging;

typedef enum ie_bus_client_cert {
    IE_BUS_CLIENT_CERT_NONE = 0,     /* not asked for */
    IE_BUS_CLIENT_CERT_OPTIONAL = 1, /* a valid one is an identity (its SAN), a wrong one refused */
    IE_BUS_CLIENT_CERT_REQUIRED = 2
} ie_bus_client_cert;

#define IE_BUS_SERVER_NO_EB1       0x1u /* eb/1 and WebSocket clients are refused */
#define IE_BUS_SERVER_NO_ANONYMOUS 0x2u /* a user is required on loopback and unix sockets too */

/** Every limit has a name; 0 in a field means its default. */
typedef struct ie_bus_server_options {
    size_t             size;   /* filled in by IE_BUS_SERVER_OPTIONS_INIT */
    const char *const *listen; /* URLs; port 0: any free one. NULL: IE_BUS_URL_DEFAULT alone */
    size_t             listen_count;
    const char        *name;     /* told to clients; NULL: "ie" */
    const char        *data_dir; /* the log of stored events lives here, in "bus.db"; NULL: none */
    const char *const *durable_topics; /* patterns: stored whatever the publisher says */
    size_t             durable_topic_count;
    const char *const *ephemeral_topics; /* patterns: never stored; beat durable_topics */
    size_t             ephemeral_topic_count;
    ie_logger          logger;

    /* security: see below */
    const char *users_file;    /* who may connect, from "ie bus passwd"; NULL: nobody is known */
    const char *acl_file;      /* who may do what; NULL: whoever may connect may do everything */
    const char *tls_cert_file; /* PEM chain; with tls_key_file: "sockets://" can be listened on */
    const char *tls_key_file;  /* PEM; not readable for others */
    const char *tls_ca_file;   /* PEM: who signs client certificates */

    uint64_t out_bytes_max;       /* waiting for one client; 8 MiB. Beyond: it is disconnected */
    uint64_t out_bytes_total_max; /* waiting for all clients together; 256 MiB */
    uint64_t group_bytes_max;     /* waiting for one group; 32 MiB. Beyond: publishes are refused */
    uint64_t memory_bytes_max;    /* all buffers together; 512 MiB. Beyond: publishes are refused */
    uint64_t
        store_queue_bytes_max;    /* waiting to be stored; 64 MiB. Beyond: publishes are refused */
    uint64_t retention_bytes_max; /* of the log; 4 GiB. Beyond: see retention_lagging */

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
    uint32_t retention_s;                  /* age at which a stored event may go; 7 days */
    uint32_t dedupe_window_ms;      /* the same source and id again within it: stored once; 2 min */
    uint32_t dedupe_ids_max;        /* remembered for that, the newest; 1,000,000 */
    uint32_t groups_max;            /* durable groups; 10,000 */
    uint32_t attempts_max;          /* deliveries of one event to one group; then dead; 16 */
    uint32_t retry_delay_ms;        /* after the first failure, doubling with jitter; 1,000 */
    uint32_t retry_delay_ms_max;    /* 300,000 */
    uint32_t queries_in_flight_max; /* unanswered, per connection; 1,024 */
    uint32_t query_timeout_ms_max;  /* longest deadline of a query; 300,000 */
    uint32_t login_delay_ms;        /* after 5 failures of an address or user, doubling; 500 */
    uint32_t flags;                 /* IE_BUS_SERVER_... */
    ie_bus_client_cert client_cert; /* of "sockets://" */
    ie_bus_lagging     retention_lagging;
} ie_bus_server_options;

/**
 * Security. Without users_file and client certificates a bus listens on loopback and unix sockets
 * only, and takes whoever can reach it. Any other address needs TLS and a users_file (or required
 * client certificates): ie_bus_server_start() refuses otherwise, and no option weakens that.
 */

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
    uint64_t stored;          /* publishes written to the log */
    uint64_t duplicates;      /* publishes that were in the log already */
    uint64_t store_failures;  /* publishes refused because storing failed */
    uint64_t log_bytes;       /* now, of the log */
    uint64_t log_first;       /* now, oldest position that is kept */
    uint64_t log_last;        /* now, newest position; 0: none */
    uint64_t dead;            /* now, dead letters of all groups */
    uint64_t lost;            /* events deleted before a lagging group had them */
    uint64_t queries;         /* received */
    uint64_t queries_now;     /* unanswered now */
    uint64_t queries_failed;  /* ended without an answer: nobody, timeout, cancelled, gone */
    uint64_t eb1_connections; /* now */
    uint64_t eb1_in;          /* data messages of eb/1 clients */
    uint64_t eb1_out;         /* data messages to eb/1 clients */
    uint64_t eb1_dropped;     /* data messages of eb/1 that nobody could get, all reasons */
    uint64_t denied;          /* publishes, subscriptions, queries, deliveries refused by rights */
    uint64_t logins_failed;
    uint64_t tls_failed; /* handshakes */
    uint64_t reloads;
    uint64_t turns; /* of the server's loop: grows within two seconds as long as it is alive */
} ie_bus_server_stats;

/**
 * Start a bus: bind every address, then serve on a thread of its own.
 *
 * An address that is not loopback needs TLS and users (see Security). A unix socket
 * file that nobody listens on any more is replaced; it is made for the owner only (0600).
 *
 * @param[out] out  transferred: release with ie_bus_server_close(). Untouched on failure.
 * @param options   copied, its strings too; NULL means every default.
 * @return IE_OK; IE_EINVAL (an address or an option, named); IE_EDENIED (the address
 *         needs more security; or data_dir, a secret file is open to others); IE_EEXIST (address in
 * use); IE_EIO; IE_ENOMEM.
 *
 * Threads: any. Blocks: no longer than it takes to bind.
 */
IE_API ie_status ie_bus_server_start(ie_bus_server **out, const ie_bus_server_options *options,
                                     ie_error *err);

/**
 * Would a bus start with these options? Checks every setting, reads the users, rights, keys and
 * certificates, and asks whether each address may be listened on with them. Nothing is bound, and
 * nothing is written.
 *
 * @return IE_OK, or what ie_bus_server_start() would say.
 * Threads: any. Blocks: reads the files.
 */
IE_API ie_status ie_bus_server_check(const ie_bus_server_options *options, ie_error *err);

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

/**
 * Change a running bus: limits, topics, users, rights and certificates take effect at once, for
 * connections that are there too (a right that was revoked ends within a second). Addresses,
 * name and data_dir cannot change: give those of the start again. The logger stays what it was.
 * All or nothing: on any failure the bus goes on as before.
 *
 * @return IE_OK; IE_EINVAL (what is wrong, or what cannot change); IE_EDENIED; IE_EIO; IE_ENOMEM.
 * Threads: any but the server's own. Blocks: until the server's thread has taken it.
 */
IE_API ie_status ie_bus_server_reload(ie_bus_server *server, const ie_bus_server_options *options,
                                      ie_error *err);

/** Read the counters; stats->size must be set. They have at least what was counted before the last
 *  answer that a client could read. Threads: any. Blocks: no. */
IE_API void ie_bus_server_stats_get(ie_bus_server *server, ie_bus_server_stats *stats);

/** Stop (draining options.drain_ms) if that was not done, and release. NULL is accepted.
 *  Threads: owner. Blocks: as ie_bus_server_stop(). */
IE_API void ie_bus_server_close(ie_bus_server *server);

/* ---- users_file -------------------------------------------------------------------------------
 */

#define IE_BUS_TOKEN_SIZE 65 /* a token and its terminator */

/**
 * Give a user of a users_file a new password; the file (0600) and the user are made when they are
 * not there. What is stored is salted scrypt. The file is replaced whole, or stays as it was.
 *
 * @param user      1 to 64 letters, digits and . _ - @
 * @param password  one line of 1 to 512 bytes; borrowed for the call.
 * @return IE_OK; IE_EINVAL (a name, a password, a line of the file, named); IE_EDENIED (the file is
 *         open to others); IE_EEXIST (somebody else is changing it); IE_EIO; IE_ENOMEM.
 * Threads: any. Blocks: some 0.2 s for the hash, and on the disk.
 */
IE_API ie_status ie_bus_users_set_password(const char *path, const char *user, const char *password,
                                           size_t bytes, ie_error *err);
/**
 * As ie_bus_users_set_password(), but a random token of 256 bits, which takes the place of the
 * user's old one. Only its hash is stored: this is the one time to see it.
 *
 * @param[out] token  text; the caller wipes it. Untouched on failure.
 */
IE_API ie_status ie_bus_users_make_token(const char *path, const char *user,
                                         char token[IE_BUS_TOKEN_SIZE], ie_error *err);
/** Remove a user, password and token. IE_ENOTFOUND: there is none; else as above. */
IE_API ie_status ie_bus_users_remove(const char *path, const char *user, ie_error *err);

/* ---- configuration file --------------------------------------------------------------------- */

typedef struct ie_bus_config ie_bus_config;

/**
 * Read a configuration file. Its syntax: one setting per line, "name value", "#" begins a comment,
 * values with spaces in double quotes; the names are those of the options, sizes take KiB, MiB and
 * GiB, times ms, s, m, h and d. Every name with its default: `ie bus --print-config`.
 *
 * @param[out] out  transferred: release with ie_bus_config_free(). Untouched on failure.
 * @return IE_OK; IE_EINVAL: "FILE:LINE:COLUMN: what is wrong; what was probably meant"; IE_EIO;
 *         IE_ENOMEM.
 * Threads: any. Blocks: reads the file.
 */
IE_API ie_status ie_bus_config_load(ie_bus_config **out, const char *path, ie_error *err);
/** Options that borrow from @p config. Threads: owner. */
IE_API const ie_bus_server_options *ie_bus_config_options(const ie_bus_config *config);
/** NULL is accepted. */
IE_API void ie_bus_config_free(ie_bus_config *config);

#ifdef __cplusplus
}
#endif
#endif
