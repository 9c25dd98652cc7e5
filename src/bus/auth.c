/* The guard of a server: its policy, the rights of who is connected, and what they may do. */
#include "auth.h"

#include <stdio.h>

#include "login.h"
#include "query.h"
#include "users.h"

#define GRANT_BUCKETS 256 /* a power of two */
#define DENIAL_LOG_MS 1000

struct ie__policy {
    ie__users       *users; /* NULL: no users_file */
    ie__acl         *acl;   /* NULL: no acl_file */
    bool             takes_anonymous;
    bool             wants_cert; /* every client of TLS has to show one */
    ie__tls_context *tls;        /* NULL: no certificate */
};

/* The rights of a user, shared by its connections. */
struct ie__grant {
    ie__grant  *chain;
    ie__rights *rights;
    size_t      conns;
    bool        is_old; /* in no table any more */
    char        user[]; /* "": anonymous */
};

struct ie__guard {
    ie__policy *policy;
    ie__grant  *grants[GRANT_BUCKETS];
    ie__logins *logins;
    int64_t     denials_logged_ms;
    uint64_t    denials_unlogged;
};

/* ---- policy ---- */

static ie_status
policy_check(const ie_bus_server_options *o, ie_error *err)
{
    if ((o->tls_cert_file == NULL) != (o->tls_key_file == NULL))
        return ie_error_set(err, IE_EINVAL, "tls_cert_file and tls_key_file belong together");
    if (o->client_cert != IE_BUS_CLIENT_CERT_NONE && o->tls_ca_file == NULL)
        return ie_error_set(err, IE_EINVAL,
                            "client_cert needs tls_ca_file: who signs client certificates");
    if (o->client_cert != IE_BUS_CLIENT_CERT_NONE && o->tls_cert_file == NULL)
        return ie_error_set(err, IE_EINVAL, "client_cert needs tls_cert_file and tls_key_file");
    if ((o->flags & IE_BUS_SERVER_NO_ANONYMOUS) != 0 && o->users_file == NULL &&
        o->client_cert == IE_BUS_CLIENT_CERT_NONE)
        return ie_error_set(err, IE_EINVAL,
                            "anonymous is off, and there is neither a users_file nor client_cert: "
                            "nobody could connect");
    return IE_OK;
}

ie_status
ie__policy_load(ie__policy **out, const ie_bus_server_options *options, ie_error *err)
{
    ie__policy *policy;
    ie_status   status = policy_check(options, err);

    if (status != IE_OK)
        return status;
    policy = ie__calloc(1, sizeof *policy);
    if (policy == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a policy");
    policy->takes_anonymous = (options->flags & IE_BUS_SERVER_NO_ANONYMOUS) == 0;
    policy->wants_cert = options->client_cert == IE_BUS_CLIENT_CERT_REQUIRED;
    if (options->users_file != NULL)
        status = ie__users_load(&policy->users, options->users_file, err);
    if (status == IE_OK && options->acl_file != NULL)
        status = ie__acl_load(&policy->acl, options->acl_file, err);
    if (status == IE_OK && options->tls_cert_file != NULL)
        status = ie__tls_server(&policy->tls, options->tls_cert_file, options->tls_key_file,
                                options->tls_ca_file, (ie__tls_ask)options->client_cert, err);
    if (status != IE_OK) {
        ie__policy_free(policy);
        return status;
    }
    *out = policy;
    return IE_OK;
}

void
ie__policy_free(ie__policy *policy)
{
    if (policy == NULL)
        return;
    ie__users_free(policy->users);
    ie__acl_free(policy->acl);
    ie__tls_context_free(policy->tls);
    ie__free(policy);
}

const ie__users *
ie__policy_users(const ie__policy *policy)
{
    return policy->users;
}

ie_status
ie__policy_allows(const ie__policy *policy, const ie__address *address, bool is_loopback,
                  ie_error *err)
{
    if (address->is_tls && policy->tls == NULL)
        return ie_error_set(err, IE_EINVAL,
                            "listen on sockets://%s: TLS needs tls_cert_file and tls_key_file",
                            address->host);
    if (is_loopback)
        return IE_OK;
    if (!address->is_tls)
        return ie_error_set(
            err, IE_EDENIED,
            "listen on %s: without TLS others could read along there; use sockets://%s "
            "with tls_cert_file, tls_key_file and a users_file, or a loopback address",
            address->host, address->host);
    if (policy->users == NULL && !policy->wants_cert)
        return ie_error_set(err, IE_EDENIED,
                            "listen on sockets://%s: anyone could connect there; name a users_file "
                            "('ie bus passwd' makes it) or set client_cert to required",
                            address->host);
    return IE_OK;
}

/* ---- grants ---- */

static size_t
grant_bucket(const char *user)
{
    return ie__hash(user, strlen(user)) & (GRANT_BUCKETS - 1);
}

/* The rights of this user (NULL: anonymous) under the guard's policy. *out NULL: no acl. */
static ie_status
grant_take(ie__guard *guard, ie__grant **out, const char *user, ie_error *err)
{
    const char  *name = user != NULL ? user : "";
    const size_t bucket = grant_bucket(name);
    ie__grant   *grant = guard->grants[bucket];
    ie_status    status;

    *out = NULL;
    if (guard->policy->acl == NULL)
        return IE_OK;
    while (grant != NULL && strcmp(grant->user, name) != 0)
        grant = grant->chain;
    if (grant == NULL) {
        grant = ie__calloc(1, sizeof *grant + strlen(name) + 1);
        if (grant == NULL)
            return ie_error_set(err, IE_ENOMEM, "no memory for a user's rights");
        status = ie__rights_new(&grant->rights, guard->policy->acl, user, err);
        if (status != IE_OK) {
            ie__free(grant);
            return status;
        }
        memcpy(grant->user, name, strlen(name));
        grant->chain = guard->grants[bucket];
        guard->grants[bucket] = grant;
    }
    grant->conns++;
    *out = grant;
    return IE_OK;
}

static void
grant_drop(ie__guard *guard, ie__grant *grant)
{
    ie__grant **link;

    if (grant == NULL || --grant->conns > 0)
        return;
    link = &guard->grants[grant_bucket(grant->user)];
    while (!grant->is_old && *link != grant)
        link = &(*link)->chain;
    if (!grant->is_old)
        *link = grant->chain;
    ie__rights_free(grant->rights);
    ie__free(grant);
}

static void
conn_set_grant(ie__conn *conn, ie__grant *grant)
{
    grant_drop(conn->server->guard, conn->grant);
    conn->grant = grant;
    conn->rights = grant != NULL ? grant->rights : NULL;
}

/* ---- the guard ---- */

ie_status
ie__guard_new(ie_bus_server *server, const ie_bus_server_options *options, ie_error *err)
{
    ie__guard *guard = ie__calloc(1, sizeof *guard);
    ie_status  status;

    if (guard == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a bus");
    status = ie__policy_load(&guard->policy, options, err);
    if (status == IE_OK) {
        guard->logins = ie__logins_new(server);
        if (guard->logins == NULL)
            status = ie_error_set(err, IE_ENOMEM, "no memory for a bus");
    }
    if (status != IE_OK) {
        ie__policy_free(guard->policy);
        ie__free(guard);
        return status;
    }
    server->guard = guard;
    return IE_OK;
}

void
ie__guard_close(ie_bus_server *server)
{
    if (server->guard != NULL)
        ie__logins_close(server->guard->logins);
}

void
ie__guard_free(ie_bus_server *server)
{
    if (server->guard == NULL)
        return;
    ie__logins_free(server->guard->logins);
    ie__policy_free(server->guard->policy);
    ie__free(server->guard);
    server->guard = NULL;
}

const ie__policy *
ie__guard_policy(const ie_bus_server *server)
{
    return server->guard->policy;
}

/* ---- who it is ---- */

ie_status
ie__credentials_field(ie__credentials *out, const ie__field *field, const ie__frame *frame)
{
    unsigned char *value = frame->body + (field->value - frame->body); /* not const: to be wiped */

    if (field->tag == IE__F_USER)
        return ie__field_text(out->user, IE__USER_BYTES_MAX, field);
    /* HMAC fills up with zero bytes: a password with one at its end would be another's. */
    if (field->size == 0 || field->size > IE__SECRET_BYTES_MAX ||
        memchr(value, '\0', field->size) != NULL)
        return IE_EPROTO;
    if (field->tag == IE__F_PASSWORD) {
        out->password = value;
        out->password_bytes = field->size;
    } else {
        out->token = value;
        out->token_bytes = field->size;
    }
    return IE_OK;
}

const char *
ie__auth_name(const ie__conn *conn)
{
    return conn->user != NULL ? conn->user : IE__ANONYMOUS;
}

bool
ie__auth_accept(ie__conn *conn, const char *user, ie__proof proof)
{
    ie_error   err = IE_ERROR_INIT;
    ie__grant *grant = NULL;
    ie_status  status = grant_take(conn->server->guard, &grant, user, &err);

    if (status == IE_OK && user != NULL) {
        conn->user = ie__strdup(user);
        if (conn->user == NULL)
            status = ie_error_set(&err, IE_ENOMEM, "no memory for a user");
    }
    if (status != IE_OK) {
        grant_drop(conn->server->guard, grant);
        ie__conn_doom(conn, status == IE_ENOMEM ? IE_BUS_CODE_MEMORY : IE_BUS_CODE_DENIED, "%s",
                      err.message);
        return false;
    }
    conn->proof = proof;
    conn_set_grant(conn, grant);
    return true;
}

const ie__tls_context *
ie__policy_tls(const ie__policy *policy)
{
    return policy->tls;
}

bool
ie__auth_without_hello(ie__conn *conn)
{
    const ie__policy *policy = conn->server->guard->policy;
    ie_error          err = IE_ERROR_INIT;
    char              name[IE__TLS_IDENTITY_BYTES + 1];
    const ie_status   status = ie__stream_identity(conn->stream, name, &err);

    if (status == IE_OK)
        return ie__auth_accept(conn, name, IE__PROOF_CERT);
    if (status != IE_ENOTFOUND) {
        ie__conn_doom(conn, IE_BUS_CODE_DENIED, "%s", err.message);
        return false;
    }
    if (conn->is_local && policy->takes_anonymous)
        return ie__auth_accept(conn, NULL, IE__PROOF_NONE);
    ie__conn_doom(conn, IE_BUS_CODE_DENIED, "this bus wants to know who you are: log in");
    return false;
}

void
ie__auth_hello(ie__conn *conn, const ie__credentials *credentials)
{
    if (credentials->password_bytes == 0 && credentials->token_bytes == 0 &&
        credentials->user[0] == '\0') {
        if (ie__auth_without_hello(conn))
            ie__conn_welcome(conn);
        return;
    }
    if (conn->server->guard->policy->users == NULL)
        ie__conn_doom(conn, IE_BUS_CODE_CREDENTIALS,
                      "a login, and this bus has no users_file to check it");
    else
        ie__login_begin(conn->server->guard->logins, conn, credentials);
    if (credentials->password_bytes != 0)
        ie__secret_wipe(credentials->password, credentials->password_bytes);
    if (credentials->token_bytes != 0)
        ie__secret_wipe(credentials->token, credentials->token_bytes);
}

void
ie__auth_leave(ie__conn *conn)
{
    ie__login_forget(conn);
    conn_set_grant(conn, NULL);
    ie__free(conn->user);
    conn->user = NULL;
}

/* ---- what it may do ---- */

static void
note_denial(const ie__conn *conn, ie__verb verb, const void *topic, size_t bytes)
{
    ie_bus_server *server = conn->server;
    ie__guard     *guard = server->guard;
    const int64_t  now_ms = (int64_t)uv_now(&server->loop);

    server->stats.denied++;
    if (guard->denials_logged_ms != 0 && now_ms - guard->denials_logged_ms < DENIAL_LOG_MS) {
        guard->denials_unlogged++;
        return;
    }
    ie__log(&server->options.logger, IE_LOG_WARN, "bus",
            "%s (%s): may not %s '%.*s'; %llu more denials since the last such line", conn->peer,
            ie__auth_name(conn), ie__verb_names[verb], (int)bytes, (const char *)topic,
            (unsigned long long)guard->denials_unlogged);
    guard->denials_unlogged = 0;
    guard->denials_logged_ms = now_ms != 0 ? now_ms : 1;
}

bool
ie__auth_may(ie__conn *conn, ie__verb verb, const void *topic, size_t bytes)
{
    if (ie__rights_topic(conn->rights, verb, topic, bytes))
        return true;
    note_denial(conn, verb, topic, bytes);
    return false;
}

static bool
rights_pattern(const ie__rights *rights, ie__verb verb, const char *pattern, bool is_live,
               bool *is_narrowed)
{
    *is_narrowed = false;
    if (rights == NULL || ie__rights_whole(rights, verb, pattern))
        return true;
    *is_narrowed = is_live && ie__rights_some(rights, verb, pattern);
    return *is_narrowed;
}

bool
ie__may_pattern(ie__conn *conn, ie__verb verb, const char *pattern, bool is_live, bool *is_narrowed)
{
    if (rights_pattern(conn->rights, verb, pattern, is_live, is_narrowed))
        return true;
    note_denial(conn, verb, pattern, strlen(pattern));
    return false;
}

bool
ie__may_receive(const ie__conn *conn, const void *topic, size_t bytes)
{
    return conn->rights == NULL || ie__rights_topic(conn->rights, IE__MAY_SUBSCRIBE, topic, bytes);
}

/* ---- another policy ---- */

static const char *
sub_pattern(const ie__sub *sub, char out[IE_TOPIC_BYTES_MAX + 1])
{
    if (sub->group != NULL)
        return sub->group->pattern;
    ie__topics_pattern(out, &sub->target.entry);
    return out;
}

/* Subscriptions that are not allowed any more end; true: at least one of them did, or gets less. */
static bool
recheck_subs(ie__conn *conn)
{
    bool     has_lost = false;
    ie__sub *next;

    for (ie__sub *sub = conn->subs; sub != NULL; sub = next) {
        char        text[IE_TOPIC_BYTES_MAX + 1];
        const char *pattern = sub_pattern(sub, text);
        const bool  may = rights_pattern(conn->rights, IE__MAY_SUBSCRIBE, pattern,
                                         sub->group == NULL, &sub->is_narrowed);

        next = sub->next;
        has_lost = has_lost || !may || sub->is_narrowed;
        if (may)
            continue;
        note_denial(conn, IE__MAY_SUBSCRIBE, pattern, strlen(pattern));
        ie__conn_reason(conn, IE__SUBREFUSED, sub->id, IE_BUS_CODE_DENIED,
                        "the right to subscribe was withdrawn");
        ie__route_unsubscribe(conn, sub->id);
    }
    return has_lost;
}

/* Is it still who it was, with the same proof? */
static const char *
identity_fault(const ie__policy *policy, const ie__conn *conn)
{
    switch (conn->proof) {
    case IE__PROOF_NONE:
        return policy->takes_anonymous ? NULL : "anonymous is not allowed any more";
    case IE__PROOF_CERT: return NULL;
    case IE__PROOF_PASSWORD:
    case IE__PROOF_TOKEN: break;
    }
    return policy->users != NULL &&
                   ie__users_has(policy->users, conn->user, conn->proof == IE__PROOF_TOKEN)
               ? NULL
               : "this user was removed";
}

static void
recheck(ie__conn *conn)
{
    const char *fault = identity_fault(conn->server->guard->policy, conn);
    ie_error    err = IE_ERROR_INIT;
    ie__grant  *grant = NULL;
    bool        is_same;

    if (fault != NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_DENIED, "%s", fault);
        ie__stream_drop_unsent(conn->stream);
        return;
    }
    if (grant_take(conn->server->guard, &grant, conn->user, &err) != IE_OK) {
        ie__conn_doom(conn, IE_BUS_CODE_DENIED, "%s", err.message);
        ie__stream_drop_unsent(conn->stream);
        return;
    }
    is_same =
        grant == NULL || (conn->rights != NULL && ie__rights_equal(conn->rights, grant->rights));
    conn_set_grant(conn, grant);
    if (grant == NULL) {
        for (ie__sub *sub = conn->subs; sub != NULL; sub = sub->next)
            sub->is_narrowed = false;
        return;
    }
    if (is_same)
        return;
    if (conn->eb1 != NULL) { /* no way to take a registration back: it may come again */
        ie__conn_doom(conn, IE_BUS_CODE_DENIED, "its rights have changed");
        return;
    }
    {
        /* What waits for a slow reader was allowed when it came; it is not to be had any more. */
        const bool has_waiting = ie__stream_pending(conn->stream) != 0;

        ie__query_recheck(conn);
        if (recheck_subs(conn) && has_waiting) {
            ie__conn_doom(conn, IE_BUS_CODE_DENIED,
                          "rights were withdrawn while events waited to be read");
            ie__stream_drop_unsent(conn->stream);
        }
    }
}

void
ie__guard_swap(ie_bus_server *server, ie__policy *policy)
{
    ie__guard  *guard = server->guard;
    ie__policy *old = guard->policy;

    for (size_t i = 0; i < GRANT_BUCKETS; i++) {
        for (ie__grant *grant = guard->grants[i]; grant != NULL; grant = grant->chain)
            grant->is_old = true;
        guard->grants[i] = NULL;
    }
    guard->policy = policy;
    for (ie__conn *conn = server->conns; conn != NULL; conn = conn->next)
        if (conn->state == IE__CONN_OPEN)
            recheck(conn);
    ie__policy_free(old);
}
