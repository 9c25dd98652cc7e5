#include "certificates.h"

#include <check.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core.h"
#include "support.h"

static const char *
file_of(const char *name, const char *suffix)
{
    static char text[2][64];
    static int  turn;
    char       *out = text[turn ^= 1];

    (void)snprintf(out, sizeof text[0], "%s.%s", name, suffix);
    return test_path(out);
}

static void
add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX      ctx;
    X509_EXTENSION *extension;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ck_assert_ptr_nonnull(extension);
    ck_assert_int_eq(X509_add_ext(cert, extension, -1), 1);
    X509_EXTENSION_free(extension);
}

static void
add_raw_name(X509 *cert, const char *bytes, size_t size)
{
    GENERAL_NAMES  *names = sk_GENERAL_NAME_new_null();
    GENERAL_NAME   *name = GENERAL_NAME_new();
    ASN1_IA5STRING *text = ASN1_IA5STRING_new();

    ck_assert_int_eq(ASN1_STRING_set(text, bytes, (int)size), 1);
    GENERAL_NAME_set0_value(name, GEN_DNS, text);
    ck_assert_int_gt(sk_GENERAL_NAME_push(names, name), 0);
    ck_assert_int_eq(X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, 0), 1);
    GENERAL_NAMES_free(names);
}

static void
sign(X509 *cert, EVP_PKEY *key, const certificate *wanted)
{
    FILE     *file;
    EVP_PKEY *issuer_key = key;
    X509     *issuer = cert;

    if (wanted->signed_by != NULL) {
        file = fopen(file_of(wanted->signed_by, "key"), "r");
        ck_assert_ptr_nonnull(file);
        issuer_key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
        (void)fclose(file);
        file = fopen(file_of(wanted->signed_by, "pem"), "r");
        ck_assert_ptr_nonnull(file);
        issuer = PEM_read_X509(file, NULL, NULL, NULL);
        (void)fclose(file);
    }
    ck_assert_int_eq(X509_set_issuer_name(cert, X509_get_subject_name(issuer)), 1);
    add_extension(cert, issuer, NID_basic_constraints,
                  wanted->is_ca ? "critical,CA:TRUE" : "critical,CA:FALSE");
    if (wanted->is_ca)
        add_extension(cert, issuer, NID_key_usage, "critical,keyCertSign,cRLSign");
    else
        add_extension(cert, issuer, NID_ext_key_usage,
                      wanted->for_client ? "clientAuth" : "serverAuth");
    if (wanted->alt != NULL)
        add_extension(cert, issuer, NID_subject_alt_name, wanted->alt);
    if (wanted->raw_dns != NULL)
        add_raw_name(cert, wanted->raw_dns, wanted->raw_bytes);
    ck_assert_int_gt(X509_sign(cert, issuer_key, EVP_sha256()), 0);
    if (issuer != cert) {
        X509_free(issuer);
        EVP_PKEY_free(issuer_key);
    }
}

void
certificate_make(const certificate *wanted)
{
    EVP_PKEY     *key = EVP_EC_gen("P-256");
    X509         *cert = X509_new();
    const char   *common = wanted->common != NULL ? wanted->common : wanted->name;
    unsigned char serial[8];
    BIGNUM       *number;
    FILE         *file;

    ck_assert(key != NULL && cert != NULL);
    ie__random(serial, sizeof serial);
    number = BN_bin2bn(serial, sizeof serial, NULL);
    (void)BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
    BN_free(number);
    ck_assert_int_eq(X509_set_version(cert, X509_VERSION_3), 1);
    (void)X509_gmtime_adj(X509_getm_notBefore(cert), wanted->from_s);
    (void)X509_gmtime_adj(X509_getm_notAfter(cert), wanted->to_s != 0 ? wanted->to_s : 3600);
    ck_assert_int_eq(X509_set_pubkey(cert, key), 1);
    ck_assert_int_eq(X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
                                                (const unsigned char *)common, -1, -1, 0),
                     1);
    sign(cert, key, wanted);
    (void)umask(077);
    file = fopen(file_of(wanted->name, "key"), "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
    ck_assert_int_eq(fclose(file), 0);
    file = fopen(file_of(wanted->name, "pem"), "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(PEM_write_X509(file, cert), 1);
    ck_assert_int_eq(fclose(file), 0);
    X509_free(cert);
    EVP_PKEY_free(key);
}
