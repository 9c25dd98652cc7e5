/* TLS on bytes in memory. */
#include "tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "secret.h"

#define PEM_BYTES_MAX   (4u << 20)
#define CHAIN_BYTES_MAX (32 * 1024) /* of a peer's certificates: it has not shown who it is yet */

struct ie__tls_context {
    SSL_CTX *ctx;
    char    *host; /* NULL: of a server */
    bool     is_address;
};

struct ie__tls {
    SSL *ssl;
    bool is_server;
    bool is_open;
    bool is_failed;
    char host[64]; /* for messages, cut */
    char why[192];
};

/* ---- contexts ------------------------------------------------------------------------------- */

/* The first line of OpenSSL's own trouble; the rest is forgotten. */
static const char *
openssl_text(void)
{
    const unsigned long code = ERR_get_error();
    const char         *text = ERR_reason_error_string(code);

    ERR_clear_error();
    return text != NULL ? text : "unknown trouble";
}

static int
no_passphrase(char *out, int size, int is_writing, void *user)
{
    (void)out;
    (void)size;
    (void)is_writing;
    (void)user;
    return -1; /* nobody is there to be asked */
}

static ie_status
use_key(SSL_CTX *ctx, const char *path, ie_error *err)
{
    ie_buffer pem = {NULL, 0, 0};
    ie_status status = ie__secret_file(&pem, "tls_key_file", path, true, PEM_BYTES_MAX, err);
    BIO      *bio;
    EVP_PKEY *key;

    if (status != IE_OK)
        return status;
    bio = BIO_new_mem_buf(pem.data, (int)pem.size);
    key = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
    if (key == NULL)
        status = ie_error_set(err, IE_EINVAL,
                              "tls_key_file %s is no private key in PEM without a passphrase: %s",
                              path, openssl_text());
    else if (SSL_CTX_use_PrivateKey(ctx, key) != 1 || SSL_CTX_check_private_key(ctx) != 1)
        status = ie_error_set(err, IE_EINVAL, "tls_key_file %s does not fit the certificate: %s",
                              path, openssl_text());
    EVP_PKEY_free(key);
    (void)BIO_free(bio);
    ie__secret_wipe(pem.data, pem.size);
    ie_buffer_fini(&pem);
    return status;
}

/* Is it a file that only its owner changes? OpenSSL reads it again by itself. */
static ie_status
look_at(const char *what, const char *path, ie_error *err)
{
    ie_buffer pem = {NULL, 0, 0};
    ie_status status = ie__secret_file(&pem, what, path, false, PEM_BYTES_MAX, err);

    ie_buffer_fini(&pem);
    return status;
}

static ie_status
use_identity(SSL_CTX *ctx, const char *cert_file, const char *key_file, ie_error *err)
{
    ie_status status = look_at("tls_cert_file", cert_file, err);

    if (status == IE_OK && SSL_CTX_use_certificate_chain_file(ctx, cert_file) != 1)
        status = ie_error_set(err, IE_EINVAL, "tls_cert_file %s: %s", cert_file, openssl_text());
    return status == IE_OK ? use_key(ctx, key_file, err) : status;
}

static ie_status
use_ca(SSL_CTX *ctx, const char *ca_file, ie_error *err)
{
    ie_status status = look_at("tls_ca_file", ca_file, err);

    if (status == IE_OK && SSL_CTX_load_verify_locations(ctx, ca_file, NULL) != 1)
        status = ie_error_set(err, IE_EINVAL, "tls_ca_file %s: %s", ca_file, openssl_text());
    return status;
}

static SSL_CTX *
ctx_new(const SSL_METHOD *method)
{
    SSL_CTX *ctx;

    ERR_clear_error();
    ctx = SSL_CTX_new(method);
    if (ctx == NULL)
        return NULL;
    (void)SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    (void)SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                       SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
    (void)SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    (void)SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_max_cert_list(ctx, CHAIN_BYTES_MAX);
    return ctx;
}

static ie_status
context_new(ie__tls_context **out, const SSL_METHOD *method, ie_error *err)
{
    ie__tls_context *context = ie__calloc(1, sizeof *context);

    if (context != NULL)
        context->ctx = ctx_new(method);
    if (context == NULL || context->ctx == NULL) {
        ie__tls_context_free(context);
        return ie_error_set(err, IE_ENOMEM, "no memory for TLS");
    }
    *out = context;
    return IE_OK;
}

ie_status
ie__tls_server(ie__tls_context **out, const char *cert_file, const char *key_file,
               const char *ca_file, ie__tls_ask ask, ie_error *err)
{
    ie__tls_context *context = NULL;
    ie_status        status = context_new(&context, TLS_server_method(), err);
    int              mode = SSL_VERIFY_NONE;

    if (status == IE_OK)
        status = use_identity(context->ctx, cert_file, key_file, err);
    if (status == IE_OK && ask != IE__TLS_ASK_NONE) {
        mode =
            SSL_VERIFY_PEER | (ask == IE__TLS_ASK_REQUIRED ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0);
        status = use_ca(context->ctx, ca_file, err);
    }
    if (status == IE_OK && ask != IE__TLS_ASK_NONE)
        SSL_CTX_set_client_CA_list(context->ctx, SSL_load_client_CA_file(ca_file));
    if (status != IE_OK) {
        ie__tls_context_free(context);
        return status;
    }
    SSL_CTX_set_verify(context->ctx, mode, NULL);
    *out = context;
    return IE_OK;
}

ie_status
ie__tls_client(ie__tls_context **out, const char *ca_file, const char *cert_file,
               const char *key_file, const char *host, ie_error *err)
{
    ie__tls_context   *context = NULL;
    ie_status          status = context_new(&context, TLS_client_method(), err);
    ASN1_OCTET_STRING *address;

    if (status != IE_OK)
        return status;
    if (ca_file != NULL)
        status = use_ca(context->ctx, ca_file, err);
    else if (SSL_CTX_set_default_verify_paths(context->ctx) != 1)
        status = ie_error_set(err, IE_EIO, "the system's certificates: %s", openssl_text());
    if (status == IE_OK && cert_file != NULL)
        status = use_identity(context->ctx, cert_file, key_file, err);
    if (status == IE_OK) {
        context->host = ie__strdup(host);
        if (context->host == NULL)
            status = ie_error_set(err, IE_ENOMEM, "no memory for TLS");
    }
    if (status != IE_OK) {
        ie__tls_context_free(context);
        return status;
    }
    address = a2i_IPADDRESS(host);
    context->is_address = address != NULL;
    ASN1_OCTET_STRING_free(address);
    ERR_clear_error();
    SSL_CTX_set_verify(context->ctx, SSL_VERIFY_PEER, NULL);
    *out = context;
    return IE_OK;
}

void
ie__tls_context_free(ie__tls_context *context)
{
    if (context == NULL)
        return;
    SSL_CTX_free(context->ctx);
    ie__free(context->host);
    ie__free(context);
}

/* ---- the sink ------------------------------------------------------------------------------- */

ie__tls_sink *
ie__tls_sink_new(void)
{
    return BIO_new(BIO_s_mem());
}

void
ie__tls_sink_free(ie__tls_sink *sink)
{
    (void)BIO_free(sink);
}

const unsigned char *
ie__tls_sink_bytes(ie__tls_sink *sink, size_t *size)
{
    char      *bytes = NULL;
    const long length = BIO_get_mem_data(sink, &bytes);

    *size = length > 0 ? (size_t)length : 0;
    return (const unsigned char *)bytes;
}

void
ie__tls_sink_clear(ie__tls_sink *sink)
{
    (void)BIO_reset(sink);
}

/* ---- one connection ------------------------------------------------------------------------- */

/* The certificate has to be for this name, in its alternative names: the subject's common name has
 * not counted for long. */
static bool
expect_host(SSL *ssl, const ie__tls_context *context)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);

    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS |
                                               X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    if (context->is_address)
        return X509_VERIFY_PARAM_set1_ip_asc(param, context->host) == 1;
    return X509_VERIFY_PARAM_set1_host(param, context->host, 0) == 1 &&
           SSL_set_tlsext_host_name(ssl, context->host) == 1;
}

ie__tls *
ie__tls_new(const ie__tls_context *context, ie__tls_sink *sink)
{
    ie__tls *tls = ie__calloc(1, sizeof *tls);
    BIO     *empty;

    if (tls == NULL)
        return NULL;
    tls->is_server = context->host == NULL;
    tls->ssl = SSL_new(context->ctx);
    empty = BIO_new_mem_buf("", 0);
    if (tls->ssl == NULL || empty == NULL || (!tls->is_server && !expect_host(tls->ssl, context)) ||
        BIO_up_ref(sink) != 1) {
        (void)BIO_free(empty);
        ie__tls_free(tls);
        ERR_clear_error();
        return NULL;
    }
    (void)BIO_set_mem_eof_return(empty, -1);
    SSL_set0_rbio(tls->ssl, empty);
    SSL_set0_wbio(tls->ssl, sink);
    if (tls->is_server)
        SSL_set_accept_state(tls->ssl);
    else
        SSL_set_connect_state(tls->ssl);
    (void)snprintf(tls->host, sizeof tls->host, "%s", context->host != NULL ? context->host : "");
    return tls;
}

void
ie__tls_free(ie__tls *tls)
{
    if (tls == NULL)
        return;
    SSL_free(tls->ssl);
    ie__free(tls);
}

bool
ie__tls_feed(ie__tls *tls, const unsigned char *bytes, size_t size)
{
    BIO *bio = BIO_new_mem_buf(bytes, (int)size);

    if (bio == NULL) {
        (void)snprintf(tls->why, sizeof tls->why, "out of memory");
        return false;
    }
    (void)BIO_set_mem_eof_return(bio, -1); /* its end is not that of the connection */
    SSL_set0_rbio(tls->ssl, bio);
    return true;
}

/* ---- failures in words ---------------------------------------------------------------------- */

static void
why_verify(ie__tls *tls, long code)
{
    const char *whose = tls->is_server ? "the client's" : "the server's";
    const char *cause = X509_verify_cert_error_string(code);

    switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED: cause = "has expired"; break;
    case X509_V_ERR_CERT_NOT_YET_VALID: cause = "is not valid yet"; break;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT: cause = "is self-signed"; break;
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
        cause = "was not signed by anyone in tls_ca_file";
        break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        (void)snprintf(tls->why, sizeof tls->why,
                       "TLS: %s certificate is for another host than '%s'; tls_host says which "
                       "name to expect",
                       whose, tls->host);
        return;
    default: break;
    }
    (void)snprintf(tls->why, sizeof tls->why, "TLS: %s certificate %s", whose, cause);
}

static const struct {
    int         reason;
    bool        by_server; /* who meets it */
    bool        by_client;
    const char *text;
} REASONS[] = {
    {SSL_R_UNSUPPORTED_PROTOCOL, true, false, "the client speaks no TLS from 1.2 on"},
    {SSL_R_UNSUPPORTED_PROTOCOL, false, true, "the server speaks no TLS from 1.2 on"},
    {SSL_R_TLSV1_ALERT_PROTOCOL_VERSION, true, true, "the other side speaks no TLS from 1.2 on"},
    {SSL_R_WRONG_VERSION_NUMBER, false, true,
     "what answers there does not speak TLS; is it a socket:// address?"},
    {SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, true, false,
     "the client showed no certificate, and one is required"},
    {SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED, false, true,
     "the server requires a client certificate; give tls_cert_file and tls_key_file"},
    {SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE, false, true,
     "the server refused the handshake; it may require a client certificate (tls_cert_file)"},
    {SSL_R_TLSV1_ALERT_UNKNOWN_CA, true, true, "the other side does not trust our certificate"},
    {SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED, true, true,
     "the other side says that our certificate has expired"},
    {SSL_R_SSLV3_ALERT_BAD_CERTIFICATE, true, true, "the other side refuses our certificate"},
    {SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN, true, true, "the other side refuses our certificate"},
    {SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE, true, true,
     "the other side refuses our certificate"},
    {SSL_R_NO_SHARED_CIPHER, true, true, "no cipher in common"},
};

static ie__tls_result
tls_failed(ie__tls *tls)
{
    const unsigned long code = ERR_peek_error();
    const int           reason = ERR_GET_REASON(code);
    const long          verified = SSL_get_verify_result(tls->ssl);
    const char         *text = ERR_reason_error_string(code);

    tls->is_failed = true;
    if (tls->why[0] != '\0') {
        ERR_clear_error();
        return IE__TLS_FAILED;
    }
    if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED && verified != X509_V_OK) {
        why_verify(tls, verified);
        ERR_clear_error();
        return IE__TLS_FAILED;
    }
    for (size_t i = 0; code != 0 && i < sizeof REASONS / sizeof *REASONS; i++)
        if (REASONS[i].reason == reason &&
            (tls->is_server ? REASONS[i].by_server : REASONS[i].by_client))
            text = REASONS[i].text;
    (void)snprintf(tls->why, sizeof tls->why, "TLS: %s",
                   text != NULL ? text : "the peer broke the protocol");
    ERR_clear_error();
    return IE__TLS_FAILED;
}

static ie__tls_result
tls_result(ie__tls *tls, int returned)
{
    switch (SSL_get_error(tls->ssl, returned)) {
    case SSL_ERROR_NONE: return IE__TLS_OK;
    case SSL_ERROR_WANT_READ: return IE__TLS_MORE;
    case SSL_ERROR_ZERO_RETURN: return IE__TLS_CLOSED;
    default: return tls_failed(tls);
    }
}

/* ---- moving --------------------------------------------------------------------------------- */

ie__tls_result
ie__tls_handshake(ie__tls *tls)
{
    ie__tls_result result;

    if (tls->is_failed)
        return IE__TLS_FAILED;
    ERR_clear_error();
    result = tls_result(tls, SSL_do_handshake(tls->ssl));
    tls->is_open = tls->is_open || result == IE__TLS_OK;
    return result;
}

bool
ie__tls_is_open(const ie__tls *tls)
{
    return tls->is_open && !tls->is_failed;
}

ie__tls_result
ie__tls_read(ie__tls *tls, unsigned char *out, size_t max, size_t *size)
{
    int got;

    *size = 0;
    if (tls->is_failed)
        return IE__TLS_FAILED;
    ERR_clear_error();
    got = SSL_read(tls->ssl, out, (int)max);
    if (got > 0) {
        *size = (size_t)got;
        return IE__TLS_OK;
    }
    return tls_result(tls, got);
}

ie__tls_result
ie__tls_write(ie__tls *tls, const unsigned char *bytes, size_t size)
{
    if (!ie__tls_is_open(tls))
        return IE__TLS_FAILED;
    ERR_clear_error();
    return tls_result(tls, SSL_write(tls->ssl, bytes, (int)size)); /* memory takes all of it */
}

void
ie__tls_close(ie__tls *tls)
{
    if (!ie__tls_is_open(tls))
        return;
    ERR_clear_error();
    (void)SSL_shutdown(tls->ssl);
    ERR_clear_error();
}

bool
ie__tls_was_closed(const ie__tls *tls)
{
    return (SSL_get_shutdown(tls->ssl) & SSL_RECEIVED_SHUTDOWN) != 0;
}

const char *
ie__tls_why(const ie__tls *tls)
{
    return tls->why;
}

bool
ie__tls_is_server(const ie__tls *tls)
{
    return tls->is_server;
}

/* ---- who the peer is ------------------------------------------------------------------------ */

/* Visible ASCII without wildcards: nothing that looks like another name, or matches several. */
static bool
identity_is_plain(const unsigned char *text, size_t bytes)
{
    if (bytes == 0 || bytes > IE__TLS_IDENTITY_BYTES || text[0] == '$')
        return false;
    for (size_t i = 0; i < bytes; i++)
        if (text[i] < 0x21 || text[i] > 0x7E || strchr("*>#+\"'\\", text[i]) != NULL)
            return false;
    return true;
}

static ie_status
identity_of(X509 *cert, char *out, ie_error *err)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    size_t         found = 0;
    bool           is_plain = true;

    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        const ASN1_STRING  *text;

        if (name->type != GEN_DNS && name->type != GEN_EMAIL && name->type != GEN_URI)
            continue;
        text = name->d.ia5;
        found++;
        is_plain = is_plain &&
                   identity_is_plain(ASN1_STRING_get0_data(text), (size_t)ASN1_STRING_length(text));
        if (is_plain) {
            memcpy(out, ASN1_STRING_get0_data(text), (size_t)ASN1_STRING_length(text));
            out[ASN1_STRING_length(text)] = '\0';
        }
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    if (found != 1)
        return ie_error_set(err, IE_EINVAL,
                            "the client's certificate has %zu names (DNS, e-mail, URI) in its "
                            "alternative names; exactly one says who it is",
                            found);
    return is_plain ? IE_OK
                    : ie_error_set(err, IE_EINVAL,
                                   "the client's certificate has a name that is not plain visible "
                                   "ASCII without wildcards");
}

ie_status
ie__tls_identity(const ie__tls *tls, char out[IE__TLS_IDENTITY_BYTES + 1], ie_error *err)
{
    X509     *cert = SSL_get1_peer_certificate(tls->ssl);
    ie_status status;

    if (cert == NULL || SSL_get_verify_result(tls->ssl) != X509_V_OK) {
        X509_free(cert);
        return ie_error_set(err, IE_ENOTFOUND, "no certificate");
    }
    status = identity_of(cert, out, err);
    X509_free(cert);
    if (status == IE_OK && (strcmp(out, "anonymous") == 0 || strcmp(out, "everyone") == 0))
        status = ie_error_set(err, IE_EINVAL,
                              "the client's certificate is for '%s', which is a "
                              "word of the acl",
                              out);
    return status;
}
