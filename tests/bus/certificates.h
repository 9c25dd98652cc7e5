/* Certificates made for a test: an authority, another one, and what they sign. */
#ifndef IE_TEST_CERTIFICATES_H
#define IE_TEST_CERTIFICATES_H

#include <stdbool.h>
#include <stddef.h>

typedef struct certificate {
    const char *name;      /* of the files NAME.pem and NAME.key in the test's folder */
    const char *signed_by; /* NULL: by itself */
    const char *alt;       /* alternative names as OpenSSL writes them: "DNS:localhost,IP:::1" */
    const char *common;    /* NULL: name */
    const char *raw_dns;   /* an alternative name with these bytes, whatever they are */
    size_t      raw_bytes;
    long        from_s; /* seconds from now */
    long        to_s;   /* 0: an hour */
    bool        is_ca;
    bool        for_client; /* extended use; else for servers */
} certificate;

void certificate_make(const certificate *wanted);

#endif
