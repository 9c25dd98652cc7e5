/* Checking logins: one after the other, off the loop, each at its time. */
#include "login.h"

#include <stdio.h>

#include "throttle.h"

struct ie__login {
    ie__login        *next;
    ie__logins       *logins;
    ie__conn         *conn; /* NULL: gone while it was checked */
    uv_work_t         work;
    ie__throttle_keys keys;
    ie__scrypt        stored;
    int64_t           due_ms;
    size_t            secret_bytes;
    bool              is_token;
    bool              is_running;
    bool              is_known; /* such a user has a password; else a decoy is checked */
    bool              matches;
    char              user[IE__USER_BYTES_MAX + 1];
    unsigned char     secret[IE__SECRET_BYTES_MAX];
};

struct ie__logins {
    ie_bus_server *server;
    ie__login     *first; /* in the order in which they came */
    ie__throttle  *throttle;
    uv_timer_t     timer;
    size_t         running;
    bool           is_closed;
};

static void logins_pump(ie__logins *logins);

static int64_t
now_ms(const ie__logins *logins)
{
    return (int64_t)uv_now(&logins->server->loop);
}

/* ---- ends ---- */

static void
login_free(ie__login *login)
{
    ie__login **link = &login->logins->first;

    while (*link != login)
        link = &(*link)->next;
    *link = login->next;
    if (login->conn != NULL)
        login->conn->login = NULL;
    ie__secret_wipe(login, sizeof *login);
    ie__free(login);
}

/* user NULL: it was wrong. */
static void
login_end(ie__login *login, const char *user)
{
    ie__logins     *logins = login->logins;
    ie__conn       *conn = login->conn;
    const ie__proof proof = login->is_token ? IE__PROOF_TOKEN : IE__PROOF_PASSWORD;

    ie__throttle_note(logins->throttle, &login->keys, user != NULL, now_ms(logins),
                      logins->server->options.login_delay_ms);
    if (user == NULL)
        logins->server->stats.logins_failed++;
    if (conn != NULL && conn->state == IE__CONN_LOGIN) {
        if (user == NULL)
            ie__conn_doom(conn, IE_BUS_CODE_CREDENTIALS, "%s",
                          ie_bus_code_text(IE_BUS_CODE_CREDENTIALS));
        else if (ie__auth_accept(conn, user, proof))
            ie__conn_welcome(conn);
    }
    login_free(login);
}

/* ---- checks ---- */

static void
check_run(uv_work_t *work)
{
    ie__login *login = work->data;

    login->matches = ie__scrypt_matches(&login->stored, login->secret, login->secret_bytes);
}

static void
check_done(uv_work_t *work, int status)
{
    ie__login  *login = work->data;
    ie__logins *logins = login->logins;
    const bool  is_right = status == 0 && login->is_known && login->matches;
    char        user[sizeof login->user];

    memcpy(user, login->user, sizeof user);
    login->is_running = false;
    logins->running--;
    login_end(login, is_right ? user : NULL);
    logins_pump(logins);
}

static void
check_token(ie__login *login)
{
    const ie__users *users = ie__policy_users(ie__guard_policy(login->logins->server));

    login_end(login,
              users != NULL ? ie__users_token(users, login->secret, login->secret_bytes) : NULL);
}

/* A hash that costs the same is made for who does not exist. */
static void
check_password(ie__login *login)
{
    ie__logins      *logins = login->logins;
    const ie__users *users = ie__policy_users(ie__guard_policy(logins->server));

    if (users == NULL) {
        login_end(login, NULL);
        return;
    }
    login->is_known = ie__users_password(users, login->user, &login->stored);
    login->work.data = login;
    if (uv_queue_work(&logins->server->loop, &login->work, check_run, check_done) != 0) {
        login_end(login, NULL);
        return;
    }
    login->is_running = true;
    logins->running++;
}

static void
logins_on_timer(uv_timer_t *timer)
{
    logins_pump(timer->data);
}

/* Start what is due and has room; wake up for the next. */
static void
logins_pump(ie__logins *logins)
{
    const int64_t now = now_ms(logins);
    int64_t       next_ms = INT64_MAX;
    ie__login    *next;

    if (logins->is_closed)
        return;
    for (ie__login *login = logins->first; login != NULL; login = next) {
        next = login->next;
        if (login->is_running)
            continue;
        if (login->due_ms > now) {
            next_ms = login->due_ms < next_ms ? login->due_ms : next_ms;
            continue;
        }
        if (login->is_token)
            check_token(login);
        else if (logins->running < IE__LOGIN_CHECKS_MAX)
            check_password(login);
    }
    if (next_ms != INT64_MAX)
        (void)uv_timer_start(&logins->timer, logins_on_timer, (uint64_t)(next_ms - now), 0);
}

/* ---- beginnings ---- */

/* The address without the port; of IPv6 the network, since the rest is anybody's choice there. */
static uint64_t
address_key(const char *peer)
{
    struct in6_addr in6;
    char            host[64];
    const char     *end = peer[0] == '[' ? strchr(peer, ']') : strrchr(peer, ':');
    const char     *start = peer[0] == '[' ? peer + 1 : peer;

    if (end == NULL)
        end = peer + strlen(peer);
    (void)snprintf(host, sizeof host, "%.*s", (int)(end - start), start);
    if (peer[0] == '[' && uv_inet_pton(AF_INET6, host, &in6) == 0)
        return ie__hash(&in6, 8) | 1;
    return ie__hash(host, strlen(host)) | 1;
}

static void
login_keys(ie__login *login)
{
    const size_t user_bytes = strlen(login->user);

    login->keys.address = address_key(login->conn->peer);
    login->keys.user = login->is_token ? 0 : ie__hash(login->user, user_bytes) | 2;
    login->keys.pair = (login->is_token ? ie__hash(login->secret, login->secret_bytes)
                                        : ie__hash(login->user, user_bytes)) *
                           UINT64_C(0x9E3779B97F4A7C15) ^
                       login->keys.address;
}

void
ie__login_begin(ie__logins *logins, ie__conn *conn, const ie__credentials *credentials)
{
    const bool  is_token = credentials->token_bytes != 0;
    ie__login  *login;
    ie__login **link = &logins->first;

    if (is_token ? credentials->password_bytes != 0 || credentials->user[0] != '\0'
                 : credentials->password_bytes == 0 || credentials->user[0] == '\0') {
        ie__conn_doom(conn, IE_BUS_CODE_CREDENTIALS,
                      "a login is a user with a password, or a token alone");
        return;
    }
    login = ie__calloc(1, sizeof *login);
    if (login == NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for a login");
        return;
    }
    login->logins = logins;
    login->conn = conn;
    login->is_token = is_token;
    login->secret_bytes = is_token ? credentials->token_bytes : credentials->password_bytes;
    memcpy(login->secret, is_token ? credentials->token : credentials->password,
           login->secret_bytes);
    memcpy(login->user, credentials->user, sizeof login->user);
    login_keys(login);
    login->due_ms = ie__throttle_due(logins->throttle, &login->keys, now_ms(logins),
                                     logins->server->options.login_delay_ms);
    while (*link != NULL)
        link = &(*link)->next;
    *link = login;
    conn->login = login;
    if (login->due_ms < 0) {
        ie__conn_doom(conn, IE_BUS_CODE_CREDENTIALS, "too many failed logins; try again later");
        login_free(login);
        return;
    }
    logins_pump(logins);
}

void
ie__login_forget(ie__conn *conn)
{
    ie__login *login = conn->login;

    if (login == NULL)
        return;
    if (login->is_running) {
        login->conn = NULL; /* its thread is at it */
        conn->login = NULL;
    } else {
        login_free(login);
    }
}

/* ---- the guard's side ---- */

ie__logins *
ie__logins_new(ie_bus_server *server)
{
    ie__logins *logins = ie__calloc(1, sizeof *logins);

    if (logins == NULL)
        return NULL;
    logins->throttle = ie__throttle_new();
    if (logins->throttle == NULL) {
        ie__free(logins);
        return NULL;
    }
    logins->server = server;
    (void)uv_timer_init(&server->loop, &logins->timer);
    logins->timer.data = logins;
    return logins;
}

void
ie__logins_close(ie__logins *logins)
{
    if (logins->is_closed)
        return;
    logins->is_closed = true;
    uv_close((uv_handle_t *)&logins->timer, NULL);
}

void
ie__logins_free(ie__logins *logins)
{
    ie__throttle_free(logins->throttle);
    ie__free(logins);
}
