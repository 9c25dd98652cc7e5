/*
 * Who a connection is, and what it may do. The guard of a server holds what was read from its
 * files, checks logins, and answers every question about rights. On the server's thread.
 */
#ifndef IE_AUTH_H
#define IE_AUTH_H

#include "acl.h"
#include "secret.h"
#include "server.h"
#include "users.h"

/* ---- what was read from the files ---- */

typedef struct ie__policy ie__policy;

/* Read and check all files that the options name; nothing changes on failure. Any thread. */
ie_status ie__policy_load(ie__policy **out, const ie_bus_server_options *options, ie_error *err);
void      ie__policy_free(ie__policy *policy); /* NULL is accepted */
/* NULL: no users_file. */
const ie__users *ie__policy_users(const ie__policy *policy);
/* NULL: no certificate. */
const ie__tls_context *ie__policy_tls(const ie__policy *policy);
/* May a bus with this policy listen there? IE_EDENIED or IE_EINVAL says what to do. */
ie_status ie__policy_allows(const ie__policy *policy, const ie__address *address, bool is_loopback,
                            ie_error *err);

/* ---- the guard ---- */

/* Reads the files. The loop has to exist. */
ie_status ie__guard_new(ie_bus_server *server, const ie_bus_server_options *options, ie_error *err);
/* Its handles close; checks that are under way come to their end. */
void              ie__guard_close(ie_bus_server *server);
void              ie__guard_free(ie_bus_server *server);
const ie__policy *ie__guard_policy(const ie_bus_server *server);
/* Another policy takes over, and every connection is looked at again: removed users are closed,
 * subscriptions that are not allowed any more end with SUBREFUSED 14. The policy is the guard's
 * from here on. */
void ie__guard_swap(ie_bus_server *server, ie__policy *policy);

/* ---- who it is ---- */

typedef struct ie__credentials {
    char           user[IE__USER_BYTES_MAX + 1]; /* "": none */
    unsigned char *password;                     /* in the frame; wiped by who takes them */
    unsigned char *token;
    size_t         password_bytes;
    size_t         token_bytes;
} ie__credentials;

/* A field of a hello. IE_EPROTO: not one. */
ie_status ie__credentials_field(ie__credentials *out, const ie__field *field,
                                const ie__frame *frame);
/* The hello is read: the connection is welcomed or doomed, now or after a check. */
void ie__auth_hello(ie__conn *conn, const ie__credentials *credentials);
/* For protocols without a login: by certificate, or anonymous. False: the connection is doomed. */
bool ie__auth_without_hello(ie__conn *conn);
/* The connection is about to be freed. */
void ie__auth_leave(ie__conn *conn);
/* It is this user (NULL: anonymous); what follows is ie__conn_welcome(). False: it is doomed. */
bool ie__auth_accept(ie__conn *conn, const char *user, ie__proof proof);
/* "anonymous" when it has no name. */
const char *ie__auth_name(const ie__conn *conn);

/* ---- what it may do ---- */

/* The slow part of ie__may(); a denial is counted and logged. */
bool ie__auth_may(ie__conn *conn, ie__verb verb, const void *topic, size_t bytes);
/* May it publish to, ask or administrate this topic? */
static inline bool
ie__may(ie__conn *conn, ie__verb verb, const void *topic, size_t bytes)
{
    return conn->rights == NULL || ie__auth_may(conn, verb, topic, bytes);
}
/* May it subscribe to (IE__MAY_SUBSCRIBE) or serve (IE__MAY_SERVE) this pattern? A live
 * subscription may be wider than what is allowed: *is_narrowed says that each of its deliveries
 * has to be checked with ie__may_receive(). All others need the whole pattern. */
bool ie__may_pattern(ie__conn *conn, ie__verb verb, const char *pattern, bool is_live,
                     bool *is_narrowed);
/* Of a narrowed subscription: this topic too? Not counted: nobody was refused anything. */
bool ie__may_receive(const ie__conn *conn, const void *topic, size_t bytes);

#endif
