/* URLs as the transports use them: scheme://[user[:password]@]host[:port][/path][?name=value&...] */
#ifndef IE_URL_H
#define IE_URL_H

#include <ie/base.h>

#define IE__URL_BYTES_MAX 2048
#define IE__URL_OPTIONS_MAX 32

typedef struct ie__url_option {
    const char *name;
    const char *value; /* percent-decoded; "" when there was no '=' */
} ie__url_option;

typedef struct ie__url {
    const char    *scheme;   /* lower-cased */
    const char    *user;     /* NULL when absent; decoded */
    const char    *password; /* NULL when absent; decoded */
    const char    *host;     /* "" when absent; IPv6 without brackets */
    int            port;     /* 0 when absent; 1..65535 */
    const char    *path;     /* from the first '/' (without "//": what follows ':'), decoded; "" */
    size_t         option_count;
    ie__url_option options[IE__URL_OPTIONS_MAX];
    char           storage[2 * IE__URL_BYTES_MAX + 64];
} ie__url;

/*
 * Parse into out (a plain struct: its strings point into itself, do not copy it). Forms:
 * "memory:name" (path "name"), "file:///abs/path", "unix:/path", "socket://127.0.0.1:9100?x=1",
 * "socket:///run/ie.sock" (empty host, a path). IE_EINVAL or IE_ETOOBIG; the message names the
 * part that is wrong and never quotes the URL, which may hold a password. out is undefined then.
 */
ie_status ie__url_parse(ie__url *out, const char *text, ie_error *err);

/* The option's value or NULL. */
const char *ie__url_option_text(const ie__url *url, const char *name);

/* A whole number with bounds, fallback when absent; IE_EINVAL names the option and its bounds. */
ie_status ie__url_option_number(int64_t *out, const ie__url *url, const char *name,
                                int64_t fallback, int64_t min, int64_t max, ie_error *err);
/* true/false/1/0/yes/no. */
ie_status ie__url_option_bool(bool *out, const ie__url *url, const char *name, bool fallback,
                              ie_error *err);

/* Refuse options that are not in the NULL-terminated list; the message lists what exists. */
ie_status ie__url_known_options(const ie__url *url, const char *const *names, ie_error *err);

/*
 * The URL with its password, and options that are named like a secret, replaced by ***; for logs
 * and status, also for a text that is no valid URL. out gets at most size bytes, terminated.
 */
void ie__url_redact(char *out, size_t size, const char *text);

#endif
