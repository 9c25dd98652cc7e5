/* TLS: what it refuses and in which words, who a certificate is, and that all else works over it.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bus_support.h"
#include "certificates.h"
#include "core.h"
#include "security_support.h"

static ie_bus_server        *server;
static ie_bus_server_options options;
static const char *const     LISTEN[] = {"sockets://127.0.0.1:0"};
static const char *const     LISTEN_PLAIN[] = {"socket://127.0.0.1:0"};
static char                  ca_file[512];

static void
set_up(void)
{
    (void)test_dir_make();
    server = NULL;
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.logger = log_kept;
    options.listen = LISTEN;
    options.listen_count = 1;
    certificate_make(&(certificate){.name = "ca", .is_ca = true});
    certificate_make(&(certificate){
        .name = "server", .signed_by = "ca", .alt = "DNS:bus.example,DNS:localhost,IP:127.0.0.1"});
    (void)snprintf(ca_file, sizeof ca_file, "%s", test_path("ca.pem"));
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
    test_dir_remove();
}

/* The certificate NAME of the test's folder. */
static void
use_certificate(const char *name)
{
    static char cert[512];
    static char key[512];
    char        file[64];

    (void)snprintf(file, sizeof file, "%s.pem", name);
    (void)snprintf(cert, sizeof cert, "%s", test_path(file));
    (void)snprintf(file, sizeof file, "%s.key", name);
    (void)snprintf(key, sizeof key, "%s", test_path(file));
    options.tls_cert_file = cert;
    options.tls_key_file = key;
}

static void
start(void)
{
    use_certificate("server");
    server = bus_start(&options);
}

static ie_bus_client *
open_client(const char *ca, const char *cert, const char *host, ie_error *err)
{
    ie_bus_client_options client;
    ie_bus_client        *opened = NULL;
    char                  pem[64];
    char                  key[64];

    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = ie_bus_server_address(server, 0);
    client.tls_ca_file = ca;
    client.tls_host = host;
    client.logger = log_kept;
    client.reconnect_delay_ms = client.reconnect_delay_ms_max = 60000;
    client.connect_timeout_ms = WAIT_MS;
    if (cert != NULL) {
        (void)snprintf(pem, sizeof pem, "%s.pem", cert);
        (void)snprintf(key, sizeof key, "%s.key", cert);
        client.tls_cert_file = test_path(pem);
        client.tls_key_file = test_path(key);
    }
    ck_assert_msg(ie_bus_client_open(&opened, &client, err) == IE_OK, "%s", err->message);
    return opened;
}

/* The end of the first attempt to connect. */
static ie_status
try_connect(const char *ca, const char *cert, const char *host, ie_error *err)
{
    ie_bus_client *client = open_client(ca, cert, host, err);
    ie_status      status = IE_ETIMEDOUT;

    for (int i = 0; i < 2000 && status == IE_ETIMEDOUT; i++) {
        ie_error_clear(err);
        status = ie_bus_client_wait_connected(client, 20, err);
    }
    ie_bus_client_close(client);
    return status;
}

static bool
log_has_it(void *part)
{
    return log_has(part);
}

static void
expect_log(const char *part)
{
    ck_assert_msg(poll_until(log_has_it, (void *)(uintptr_t)part, WAIT_MS), "not logged: %s", part);
}

/* ---- what works ----------------------------------------------------------------------------- */

START_TEST(events_travel_over_tls)
{
    counter        live = {0};
    counter        group = {0};
    counter        answers = {0};
    ie_error       err = IE_ERROR_INIT;
    ie_bus_client *publisher;
    ie_bus_client *subscriber;
    char          *large = malloc(IE_DATA_BYTES_MAX);
    ie_event       event = IE_EVENT_INIT;
    enum { N = 20000 };

    start();
    ck_assert_int_eq(strncmp(ie_bus_server_address(server, 0), "sockets://127.0.0.1:", 20), 0);
    publisher = open_client(ca_file, NULL, NULL, &err);
    subscriber = open_client(ca_file, NULL, NULL, &err);
    (void)subscribe_now(subscriber, "n", NULL, 0, &live);
    (void)subscribe_now(subscriber, "n", "g", 0, &group);
    for (long i = 1; i <= N; i++)
        while (publish_number(publisher, "n", i, 0, &answers) == IE_ELIMIT)
            (void)poll(NULL, 0, 1);
    ck_assert(wait_for(&answers.answered, N));
    ck_assert(wait_for(&live.handled, N));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ck_assert_uint_eq(atomic_load(&live.out_of_order), 0);
    ck_assert_uint_eq(atomic_load(&group.handled), N);

    memset(large, 'x', IE_DATA_BYTES_MAX);
    event.topic = "n";
    event.data = large;
    event.data_bytes = IE_DATA_BYTES_MAX;
    event.content_type = "text/plain";
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(ie_bus_client_publish_wait(publisher, &event, 0, WAIT_MS, &err), IE_OK);
    ck_assert(wait_for(&live.handled, N + 8));
    free(large);
    ie_bus_client_close(publisher);
    ie_bus_client_close(subscriber);
}
END_TEST

START_TEST(name_and_address_of_the_server_are_both_good)
{
    ie_error err = IE_ERROR_INIT;

    start();
    ck_assert_msg(try_connect(ca_file, NULL, NULL, &err) == IE_OK, "%s", err.message);
    ck_assert_msg(try_connect(ca_file, NULL, "bus.example", &err) == IE_OK, "%s", err.message);
    ck_assert(COUNTER_IS(server, tls_failed, 0));
}
END_TEST

/* ---- certificates of servers ---------------------------------------------------------------- */

static const struct {
    certificate cert;
    const char *host;
    const char *message;
} SERVERS[] = {
    {{.name = "old", .signed_by = "ca", .alt = "IP:127.0.0.1", .from_s = -7200, .to_s = -3600},
     NULL,
     "the server's certificate has expired"},
    {{.name = "early", .signed_by = "ca", .alt = "IP:127.0.0.1", .from_s = 3600, .to_s = 7200},
     NULL,
     "the server's certificate is not valid yet"},
    {{.name = "other", .signed_by = "ca", .alt = "DNS:other.example"},
     NULL,
     "the server's certificate is for another host than '127.0.0.1'"},
    {{.name = "named", .signed_by = "ca", .alt = "DNS:other.example", .common = "bus.example"},
     "bus.example", /* the common name does not count */
     "the server's certificate is for another host than 'bus.example'"},
    {{.name = "part", .signed_by = "ca", .alt = "DNS:b*.example"},
     "bus.example", /* nor do wildcards within a word */
     "the server's certificate is for another host than 'bus.example'"},
    {{.name = "foreign", .signed_by = "ca2", .alt = "IP:127.0.0.1"},
     NULL,
     "the server's certificate was not signed by anyone in tls_ca_file"},
    {{.name = "selfmade", .alt = "IP:127.0.0.1"}, NULL, "the server's certificate is self-signed"},
    {{.name = "wrong", .signed_by = "ca", .alt = "IP:127.0.0.1", .for_client = true},
     NULL,
     "the server's certificate unsuitable certificate purpose"},
};

START_TEST(a_server_that_cannot_show_who_it_is_is_refused)
{
    ie_error err = IE_ERROR_INIT;

    certificate_make(&(certificate){.name = "ca2", .is_ca = true});
    certificate_make(&SERVERS[_i].cert);
    use_certificate(SERVERS[_i].cert.name);
    server = bus_start(&options);
    ck_assert_int_eq(try_connect(ca_file, NULL, SERVERS[_i].host, &err), IE_EUNREACHABLE);
    ck_assert_msg(strstr(err.message, SERVERS[_i].message) != NULL, "%s", err.message);
    expect_log("TLS: the other side "); /* and the server hears of it */
    ck_assert(COUNTER_IS(server, connections, 0));
}
END_TEST

/* ---- certificates of clients ---------------------------------------------------------------- */

static const struct {
    certificate        cert; /* name NULL: none */
    ie_bus_client_cert ask;
    const char        *user;    /* NULL: refused */
    const char        *message; /* for the client */
    const char        *logged;  /* by the server */
} CLIENTS[] = {
    {{.name = NULL}, IE_BUS_CLIENT_CERT_OPTIONAL, "anonymous", NULL, NULL},
    {{.name = NULL},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "the server requires a client certificate; give tls_cert_file and tls_key_file",
     "the client showed no certificate, and one is required"},
    {{.name = "c", .signed_by = "ca", .alt = "DNS:shop.example", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     "shop.example",
     NULL,
     NULL},
    {{.name = "c", .signed_by = "ca", .alt = "email:ann@example.org", .for_client = true},
     IE_BUS_CLIENT_CERT_OPTIONAL,
     "ann@example.org",
     NULL,
     NULL},
    {{.name = "c", .signed_by = "ca", .alt = "URI:spiffe://example/shop", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     "spiffe://example/shop",
     NULL,
     NULL},
    {{.name = "c", .signed_by = "ca2", .alt = "DNS:shop", .for_client = true},
     IE_BUS_CLIENT_CERT_OPTIONAL,
     NULL,
     "the other side does not trust our certificate",
     "the client's certificate was not signed by anyone in tls_ca_file"},
    {{.name = "c",
      .signed_by = "ca",
      .alt = "DNS:shop",
      .for_client = true,
      .from_s = -9,
      .to_s = -8},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "the other side says that our certificate has expired",
     "the client's certificate has expired"},
    {{.name = "c", .signed_by = "ca", .alt = "DNS:shop", .from_s = 0},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "the other side refuses our certificate",
     "the client's certificate unsuitable certificate purpose"},
    {{.name = "c", .alt = "DNS:shop", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "the other side",
     "the client's certificate is self-signed"},
    /* good certificates that say nothing certain about who it is */
    {{.name = "c", .signed_by = "ca", .common = "shop", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "has 0 names",
     "has 0 names"},
    {{.name = "c", .signed_by = "ca", .alt = "DNS:a,DNS:b", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "has 2 names",
     "has 2 names"},
    {{.name = "c", .signed_by = "ca", .alt = "DNS:*.example", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "not plain visible ASCII",
     "not plain visible ASCII"},
    {{.name = "c",
      .signed_by = "ca",
      .raw_dns = "shop\0.evil",
      .raw_bytes = 10,
      .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "not plain visible ASCII",
     "not plain visible ASCII"},
    {{.name = "c", .signed_by = "ca", .raw_dns = "sh\xD0\xBEp", .raw_bytes = 5, .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "not plain visible ASCII",
     "not plain visible ASCII"},
    {{.name = "c", .signed_by = "ca", .raw_dns = "#", .raw_bytes = 1, .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "not plain visible ASCII",
     "not plain visible ASCII"},
    {{.name = "c", .signed_by = "ca", .alt = "DNS:anonymous", .for_client = true},
     IE_BUS_CLIENT_CERT_REQUIRED,
     NULL,
     "a word of the acl",
     "a word of the acl"},
};

START_TEST(a_client_is_who_its_certificate_says_or_nobody)
{
    ie_error  err = IE_ERROR_INIT;
    char      connected[300];
    ie_status status;

    certificate_make(&(certificate){.name = "ca2", .is_ca = true});
    if (CLIENTS[_i].cert.name != NULL)
        certificate_make(&CLIENTS[_i].cert);
    options.client_cert = CLIENTS[_i].ask;
    options.tls_ca_file = ca_file;
    start();
    status = try_connect(ca_file, CLIENTS[_i].cert.name, NULL, &err);
    if (CLIENTS[_i].user != NULL) {
        ck_assert_msg(status == IE_OK, "%s", err.message);
        (void)snprintf(connected, sizeof connected, "connected as %s\n", CLIENTS[_i].user);
        expect_log(connected);
        return;
    }
    ck_assert_int_ne(status, IE_OK);
    ck_assert_msg(strstr(err.message, CLIENTS[_i].message) != NULL, "%s", err.message);
    expect_log(CLIENTS[_i].logged);
    ck_assert(!log_has("connected as"));
}
END_TEST

/* ---- not TLS, or not one of ours ------------------------------------------------------------ */

START_TEST(plain_text_on_a_tls_address_is_told_so)
{
    ie_bus_client_options client;
    ie_bus_client        *opened = NULL;
    ie_error              err = IE_ERROR_INIT;
    ie_status             status = IE_ETIMEDOUT;
    char                  url[300];

    start();
    (void)snprintf(url, sizeof url, "socket://%s", ie_bus_server_address(server, 0) + 10);
    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = url;
    client.reconnect_delay_ms = client.reconnect_delay_ms_max = 60000;
    ck_assert_int_eq(ie_bus_client_open(&opened, &client, NULL), IE_OK);
    for (int i = 0; i < 2000 && status == IE_ETIMEDOUT; i++) {
        ie_error_clear(&err);
        status = ie_bus_client_wait_connected(opened, 20, &err);
    }
    ck_assert_int_eq(status, IE_EREFUSED);
    ck_assert_msg(strstr(err.message, "the address has to begin with sockets://") != NULL, "%s",
                  err.message);
    ie_bus_client_close(opened);
    expect_log("TLS is spoken here");
    ck_assert(COUNTER_IS(server, tls_failed, 1));
}
END_TEST

START_TEST(tls_on_a_plain_address_is_told_so)
{
    ie_bus_client_options client;
    ie_bus_client        *opened = NULL;
    ie_error              err = IE_ERROR_INIT;
    ie_status             status = IE_ETIMEDOUT;
    char                  url[300];

    options.listen = LISTEN_PLAIN;
    start();
    (void)snprintf(url, sizeof url, "sockets://%s", ie_bus_server_address(server, 0) + 9);
    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = url;
    client.tls_ca_file = ca_file;
    client.reconnect_delay_ms = client.reconnect_delay_ms_max = 60000;
    ck_assert_int_eq(ie_bus_client_open(&opened, &client, NULL), IE_OK);
    for (int i = 0; i < 2000 && status == IE_ETIMEDOUT; i++) {
        ie_error_clear(&err);
        status = ie_bus_client_wait_connected(opened, 20, &err);
    }
    ck_assert_int_eq(status, IE_EUNREACHABLE);
    ck_assert_msg(strstr(err.message, "is it a socket:// address?") != NULL, "%s", err.message);
    ie_bus_client_close(opened);
    expect_log("it wants TLS (sockets://)");
}
END_TEST

/* ---- a client of OpenSSL's own -------------------------------------------------------------- */

typedef struct raw_tls {
    SSL_CTX *ctx;
    SSL     *ssl;
    int      fd;
} raw_tls;

/* True: the handshake was made. */
static bool
raw_tls_open(raw_tls *raw, int version)
{
    raw->fd = raw_connect(server);
    raw->ctx = SSL_CTX_new(TLS_client_method());
    ck_assert_int_ge(raw->fd, 0);
    ck_assert_ptr_nonnull(raw->ctx);
    if (version != 0) {
        SSL_CTX_set_security_level(raw->ctx, 0); /* the old ones need it */
        ck_assert_int_eq(SSL_CTX_set_min_proto_version(raw->ctx, version), 1);
        ck_assert_int_eq(SSL_CTX_set_max_proto_version(raw->ctx, version), 1);
    }
    raw->ssl = SSL_new(raw->ctx);
    ck_assert_ptr_nonnull(raw->ssl);
    ck_assert_int_eq(SSL_set_fd(raw->ssl, raw->fd), 1);
    return SSL_connect(raw->ssl) == 1;
}

static void
raw_tls_close(raw_tls *raw)
{
    SSL_free(raw->ssl);
    SSL_CTX_free(raw->ctx);
    (void)close(raw->fd);
}

static void
raw_tls_hello(raw_tls *raw)
{
    unsigned char bytes[256];
    ie_buffer     buffer = {NULL, 0, 0};
    ie__builder   b;
    int           got = 0;

    ie__greeting_put(bytes, IE__SP_EB2_CLIENT);
    ck_assert_int_eq(SSL_write(raw->ssl, bytes, IE__GREETING_BYTES), IE__GREETING_BYTES);
    ie__build_begin(&b, &buffer, IE__HELLO, 0);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    ck_assert_int_gt(SSL_write(raw->ssl, buffer.data, (int)buffer.size), 0);
    ie_buffer_fini(&buffer);
    while (got < IE__GREETING_BYTES + IE__PREFIX_BYTES) {
        const int more = SSL_read(raw->ssl, bytes, sizeof bytes);

        ck_assert_int_gt(more, 0);
        got += more;
    }
}

START_TEST(old_versions_are_refused)
{
    static const int VERSIONS[] = {TLS1_VERSION, TLS1_1_VERSION};
    raw_tls          raw;

    start();
    ck_assert(!raw_tls_open(&raw, VERSIONS[_i]));
    raw_tls_close(&raw);
    expect_log("the client speaks no TLS from 1.2 on");
}
END_TEST

START_TEST(both_new_versions_are_served)
{
    static const int VERSIONS[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    raw_tls          raw;

    start();
    ck_assert(raw_tls_open(&raw, VERSIONS[_i]));
    raw_tls_hello(&raw);
    raw_tls_close(&raw);
}
END_TEST

START_TEST(nothing_is_renegotiated)
{
    raw_tls raw;

    start();
    ck_assert(raw_tls_open(&raw, TLS1_2_VERSION));
    raw_tls_hello(&raw);
    ck_assert_int_eq(SSL_renegotiate(raw.ssl), 1);
    ck_assert_int_ne(SSL_do_handshake(raw.ssl), 1);
    raw_tls_close(&raw);
}
END_TEST

START_TEST(an_end_without_close_notify_is_noticed)
{
    raw_tls raw;

    start();
    ck_assert(raw_tls_open(&raw, 0));
    raw_tls_hello(&raw);
    raw_tls_close(&raw);
    expect_log("the peer cut the connection without ending TLS");
    ck_assert(raw_tls_open(&raw, 0));
    raw_tls_hello(&raw);
    ck_assert_int_ge(SSL_shutdown(raw.ssl), 0);
    expect_log("closed: the peer closed the connection");
    raw_tls_close(&raw);
}
END_TEST

static bool
nobody_is_left(void *arg)
{
    const ie_bus_server_stats stats = bus_stats(server);

    (void)arg;
    return stats.connections == 0 && stats.memory_bytes == 0 && stats.accepted >= 1000;
}

START_TEST(a_thousand_broken_handshakes_leave_nothing)
{
    unsigned char hello[512];
    size_t        size = 0;
    ie_error      err = IE_ERROR_INIT;
    SSL_CTX      *ctx = SSL_CTX_new(TLS_client_method());
    SSL          *ssl = SSL_new(ctx);
    BIO          *out = BIO_new(BIO_s_mem());

    start();
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), out);
    ck_assert_int_ne(SSL_connect(ssl), 1);
    size = (size_t)BIO_read(out, hello, sizeof hello);
    ck_assert_uint_gt(size, 100);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    for (size_t i = 0; i < 1000; i++) {
        const int fd = raw_connect(server);
        size_t    sent = i % 4 == 3 ? size : i * 7 % size;

        ck_assert_int_ge(fd, 0);
        if (i % 4 == 1)
            hello[5 + i % 40] ^= (unsigned char)(1 + i % 255); /* a faulty one */
        if (sent != 0)
            (void)!write(fd, hello, sent);
        if (i % 8 == 3) { /* wait for its half of the handshake */
            unsigned char answer[64];

            (void)!read(fd, answer, sizeof answer);
        }
        if (i % 4 == 1)
            hello[5 + i % 40] ^= (unsigned char)(1 + i % 255);
        (void)close(fd);
    }
    ck_assert(poll_until(nobody_is_left, NULL, 60000));
    ck_assert_msg(try_connect(ca_file, NULL, NULL, &err) == IE_OK, "%s", err.message);
}
END_TEST

START_TEST(a_silent_handshake_ends_in_time)
{
    int           fd;
    unsigned char byte;

    options.hello_timeout_ms = 300;
    start();
    fd = raw_connect(server);
    ck_assert_int_eq(write(fd, "\x16\x03\x01", 3), 3);
    ck_assert_int_le(read(fd, &byte, 1), 0); /* the end, with or without a reset */
    (void)close(fd);
    ck_assert(COUNTER_IS(server, timed_out, 1));
}
END_TEST

/* ---- where it listens, and with what -------------------------------------------------------- */

START_TEST(an_open_address_needs_tls_and_users)
{
    static const char *const OPEN[] = {"sockets://0.0.0.0:0"};
    ie_error                 err = IE_ERROR_INIT;

    options.listen = OPEN;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "TLS needs tls_cert_file and tls_key_file"));
    use_certificate("server");
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EDENIED);
    ck_assert_ptr_nonnull(strstr(err.message, "name a users_file ('ie bus passwd' makes it) or set "
                                              "client_cert to required"));
    options.client_cert = IE_BUS_CLIENT_CERT_OPTIONAL;
    options.tls_ca_file = ca_file;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_EDENIED);
    options.client_cert = IE_BUS_CLIENT_CERT_REQUIRED;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_OK);
    options.client_cert = IE_BUS_CLIENT_CERT_OPTIONAL; /* a reload cannot open it either */
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_EDENIED);
    ie_bus_server_close(server);
    options.client_cert = IE_BUS_CLIENT_CERT_NONE;
    write_file("users", "", 0600);
    options.users_file = test_path("users");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_OK);
}
END_TEST

START_TEST(nobody_is_anonymous_on_an_open_address)
{
    static const char *const OPEN[] = {"sockets://0.0.0.0:0"};
    ie_error                 err = IE_ERROR_INIT;
    ie_bus_client_options    client;
    ie_bus_client           *opened = NULL;
    ie_status                status = IE_ETIMEDOUT;
    char                     url[300];

    options.listen = OPEN;
    use_certificate("server");
    write_file("users", "", 0600);
    options.users_file = test_path("users");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_OK);
    (void)snprintf(url, sizeof url, "sockets://127.0.0.1%s",
                   strrchr(ie_bus_server_address(server, 0), ':'));
    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = url;
    client.tls_ca_file = ca_file;
    client.reconnect_delay_ms = client.reconnect_delay_ms_max = 60000;
    ck_assert_int_eq(ie_bus_client_open(&opened, &client, NULL), IE_OK);
    for (int i = 0; i < 2000 && status == IE_ETIMEDOUT; i++) {
        ie_error_clear(&err);
        status = ie_bus_client_wait_connected(opened, 20, &err);
    }
    ck_assert_int_eq(status, IE_EREFUSED);
    ck_assert_ptr_nonnull(strstr(err.message, "this bus wants to know who you are"));
    ie_bus_client_close(opened);
}
END_TEST

START_TEST(faulty_files_are_named)
{
    ie_error err = IE_ERROR_INIT;

    use_certificate("server");
    options.tls_key_file = NULL;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_EINVAL);
    use_certificate("server");
    ck_assert_int_eq(chmod(options.tls_key_file, 0644), 0);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EDENIED);
    ck_assert_ptr_nonnull(strstr(err.message, "server.key is open to others (mode 0644)"));
    ck_assert_int_eq(chmod(options.tls_key_file, 0400), 0);
    options.tls_cert_file = ca_file;
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "does not fit the certificate"));
    options.tls_cert_file = test_path("absent");
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "absent: No such file"));
    options.tls_cert_file = test_path("");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_EINVAL);
    write_file("garbage", "planted-secret", 0600);
    options.tls_cert_file = test_path("garbage");
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_null(strstr(err.message, "planted"));
    use_certificate("server");
    options.tls_key_file = test_path("garbage");
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "is no private key in PEM"));
    use_certificate("server");
    options.client_cert = IE_BUS_CLIENT_CERT_REQUIRED;
    ie_error_clear(&err);
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "client_cert needs tls_ca_file"));
}
END_TEST

START_TEST(the_clients_own_settings_are_looked_at_before)
{
    static const struct {
        const char *url;
        const char *ca;
        const char *cert;
        ie_status   status;
    } CASES[] = {
        {"socket://127.0.0.1:1", "ca.pem", NULL, IE_EINVAL},
        {"sockets://127.0.0.1:1", "absent", NULL, IE_EIO},
        {"sockets://127.0.0.1:1", "", NULL, IE_EINVAL},
        {"sockets://127.0.0.1:1", "ca.key", NULL, IE_EINVAL},
        {"sockets://127.0.0.1:1", "ca.pem", "server.pem", IE_EINVAL},
        {"sockets:///run/ie.sock", "ca.pem", NULL, IE_EINVAL},
    };

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ie_bus_client_options client;
        ie_bus_client        *opened = NULL;

        IE_BUS_CLIENT_OPTIONS_INIT(&client);
        client.url = CASES[i].url;
        client.tls_ca_file = test_path(CASES[i].ca);
        client.tls_cert_file = CASES[i].cert != NULL ? test_path(CASES[i].cert) : NULL;
        ck_assert_int_eq(ie_bus_client_open(&opened, &client, NULL), CASES[i].status);
    }
}
END_TEST

START_TEST(a_url_can_say_whom_to_trust)
{
    char           url[900];
    ie_bus_client *client;

    start();
    (void)snprintf(url, sizeof url, "%s?ca=%s&tls_host=bus.example",
                   ie_bus_server_address(server, 0), ca_file);
    client = client_open_url(url, 0);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_reload_takes_a_new_certificate)
{
    ie_error       err = IE_ERROR_INIT;
    ie_bus_client *before;
    counter        answers = {0};

    start();
    before = open_client(ca_file, NULL, NULL, &err);
    ck_assert_int_eq(ie_bus_client_wait_connected(before, WAIT_MS, NULL), IE_OK);
    certificate_make(&(certificate){.name = "ca2", .is_ca = true});
    certificate_make(&(certificate){.name = "next", .signed_by = "ca2", .alt = "IP:127.0.0.1"});
    use_certificate("absent");
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_EIO);
    ck_assert_int_eq(try_connect(ca_file, NULL, NULL, &err), IE_OK);
    use_certificate("next");
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_OK);
    ck_assert_int_eq(try_connect(ca_file, NULL, NULL, &err), IE_EUNREACHABLE);
    ck_assert_int_eq(try_connect(test_path("ca2.pem"), NULL, NULL, &err), IE_OK);
    ck_assert_int_eq(publish_number(before, "a", 1, 0, &answers), IE_OK); /* it goes on */
    ck_assert(wait_for(&answers.answered, 1));
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
    ie_bus_client_close(before);
}
END_TEST

START_TEST(who_is_full_says_so_over_tls)
{
    ie_error       err = IE_ERROR_INIT;
    ie_bus_client *first;

    options.connections_max = 1;
    start();
    first = open_client(ca_file, NULL, NULL, &err);
    ck_assert_int_eq(ie_bus_client_wait_connected(first, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(try_connect(ca_file, NULL, NULL, &err), IE_EREFUSED);
    ck_assert_msg(strstr(err.message, "connections_max") != NULL, "%s", err.message);
    ie_bus_client_close(first);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("tls");
    TCase   *tcase = tcase_create("tls");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, events_travel_over_tls);
    tcase_add_test(tcase, name_and_address_of_the_server_are_both_good);
    tcase_add_loop_test(tcase, a_server_that_cannot_show_who_it_is_is_refused, 0,
                        (int)(sizeof SERVERS / sizeof *SERVERS));
    tcase_add_loop_test(tcase, a_client_is_who_its_certificate_says_or_nobody, 0,
                        (int)(sizeof CLIENTS / sizeof *CLIENTS));
    tcase_add_test(tcase, plain_text_on_a_tls_address_is_told_so);
    tcase_add_test(tcase, tls_on_a_plain_address_is_told_so);
    tcase_add_loop_test(tcase, old_versions_are_refused, 0, 2);
    tcase_add_loop_test(tcase, both_new_versions_are_served, 0, 2);
    tcase_add_test(tcase, nothing_is_renegotiated);
    tcase_add_test(tcase, an_end_without_close_notify_is_noticed);
    tcase_add_test(tcase, a_thousand_broken_handshakes_leave_nothing);
    tcase_add_test(tcase, a_silent_handshake_ends_in_time);
    tcase_add_test(tcase, an_open_address_needs_tls_and_users);
    tcase_add_test(tcase, nobody_is_anonymous_on_an_open_address);
    tcase_add_test(tcase, faulty_files_are_named);
    tcase_add_test(tcase, the_clients_own_settings_are_looked_at_before);
    tcase_add_test(tcase, a_url_can_say_whom_to_trust);
    tcase_add_test(tcase, a_reload_takes_a_new_certificate);
    tcase_add_test(tcase, who_is_full_says_so_over_tls);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
