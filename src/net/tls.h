/*
 * TLS 1.2 and 1.3 on bytes in memory, by OpenSSL: what comes from the wire is put in, what goes to
 * the wire is taken out. No sockets and no loop here; stream_tls.c joins it to a stream.
 *
 * A client always checks the server's certificate, chain and name; there is no switch for that.
 * Nothing is renegotiated, compressed or resumed.
 *
 * An idle connection costs 15 KiB more than without TLS (OpenSSL 3.0), and up to 64 KiB of
 * encrypted output for a peer that does not read. Records are made and taken apart in buffers that
 * all connections of a loop share.
 */
#ifndef IE_NET_TLS_H
#define IE_NET_TLS_H

#include <ie/base.h>

#define IE__TLS_RECORD_BYTES   16384 /* the largest piece that is encrypted at once */
#define IE__TLS_IDENTITY_BYTES 255

typedef enum ie__tls_ask { /* of clients, for a certificate */
                           IE__TLS_ASK_NONE,
                           IE__TLS_ASK_OPTIONAL,
                           IE__TLS_ASK_REQUIRED
} ie__tls_ask;

/* Certificates, keys, and whom to trust; never changes once it is made. */
typedef struct ie__tls_context ie__tls_context;

/* IE_EIO, IE_EINVAL, IE_EDENIED (a key that others can read) name the file. */
ie_status ie__tls_server(ie__tls_context **out, const char *cert_file, const char *key_file,
                         const char *ca_file, ie__tls_ask ask, ie_error *err);
/* ca_file NULL: the system's; cert_file and key_file may be NULL. host: what the certificate must
 * show, a name or an IP address. */
ie_status ie__tls_client(ie__tls_context **out, const char *ca_file, const char *cert_file,
                         const char *key_file, const char *host, ie_error *err);
void      ie__tls_context_free(ie__tls_context *context); /* connections made with it go on */

/* Where all connections of a loop write to, one at a time. */
typedef struct bio_st ie__tls_sink;
ie__tls_sink         *ie__tls_sink_new(void); /* NULL: out of memory */
void                  ie__tls_sink_free(ie__tls_sink *sink);
/* What was written; it stays until ie__tls_sink_clear(). */
const unsigned char *ie__tls_sink_bytes(ie__tls_sink *sink, size_t *size);
void                 ie__tls_sink_clear(ie__tls_sink *sink);

typedef struct ie__tls ie__tls;
ie__tls *ie__tls_new(const ie__tls_context *context, ie__tls_sink *sink); /* NULL: no memory */
void     ie__tls_free(ie__tls *tls);

/* Bytes from the wire, borrowed until the next call or until they are used up. */
bool ie__tls_feed(ie__tls *tls, const unsigned char *bytes, size_t size);

typedef enum ie__tls_result {
    IE__TLS_OK,     /* the handshake is through; or bytes were read */
    IE__TLS_MORE,   /* needs more from the wire */
    IE__TLS_CLOSED, /* the peer ended it in order */
    IE__TLS_FAILED  /* see ie__tls_why() */
} ie__tls_result;
ie__tls_result ie__tls_handshake(ie__tls *tls);
bool           ie__tls_is_open(const ie__tls *tls); /* the handshake is through */
ie__tls_result ie__tls_read(ie__tls *tls, unsigned char *out, size_t max, size_t *size);
ie__tls_result ie__tls_write(ie__tls *tls, const unsigned char *bytes, size_t size);
/* Our side says that it ends. */
void ie__tls_close(ie__tls *tls);
bool ie__tls_was_closed(const ie__tls *tls); /* by the peer, in order */
/* One line. */
const char *ie__tls_why(const ie__tls *tls);
bool        ie__tls_is_server(const ie__tls *tls);

/*
 * Who the peer's certificate says it is: its one name (DNS, e-mail or URI of the subject's
 * alternative names), byte for byte. IE_ENOTFOUND: it showed none. IE_EINVAL: none fit for an
 * identity, or more than one.
 */
ie_status ie__tls_identity(const ie__tls *tls, char out[IE__TLS_IDENTITY_BYTES + 1], ie_error *err);

#endif
