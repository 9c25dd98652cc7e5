/*
 * URLs of transports (RFC 3986, the part that they need).
 *
 * What a transport gets is decoded once and holds no control character, so that nothing in a URL
 * can end a line of a text protocol. There is no fragment: a '#' is refused, since it is nearly
 * always a password that was not percent-encoded.
 */
#include "url.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "text.h"

typedef struct parser {
    ie__url  *url;
    char     *room; /* next free byte of url->storage; the sizes add up, see ie__url_parse() */
    ie_error *err;
} parser;

static ie_status
refuse(parser *p, const char *part, const char *cause)
{
    return ie_error_set(p->err, IE_EINVAL, "URL: %s %s", part, cause);
}

static int
hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Copy a component into the storage with its percent escapes undone. */
static ie_status
decode(parser *p, const char **out, const char *text, size_t bytes, const char *part)
{
    char       *start = p->room;
    const char *fault;

    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '%') {
            const int high = i + 1 < bytes ? hex_value(text[i + 1]) : -1;
            const int low = i + 2 < bytes ? hex_value(text[i + 2]) : -1;

            if (high < 0 || low < 0)
                return refuse(p, part, "contains '%' without two hexadecimal digits");
            *p->room++ = (char)(high * 16 + low);
            i += 2;
        } else {
            *p->room++ = text[i];
        }
    }
    fault = ie__text_fault(start, (size_t)(p->room - start));
    if (fault != NULL)
        return refuse(p, part, fault);
    *p->room++ = '\0';
    *out = start;
    return IE_OK;
}

static ie_status
parse_scheme(parser *p, const char **at)
{
    const char *text = *at;
    size_t      bytes = strcspn(text, ":");

    if (text[bytes] == '\0')
        return refuse(p, "scheme", "is missing");
    p->url->scheme = p->room;
    for (size_t i = 0; i < bytes; i++) {
        const char lower = (char)(text[i] | 0x20);
        const bool is_letter = lower >= 'a' && lower <= 'z';

        if (!is_letter && (i == 0 || ((text[i] < '0' || text[i] > '9') && text[i] != '+' &&
                                      text[i] != '-' && text[i] != '.')))
            return refuse(p, "scheme", "has a character that is none of a-z 0-9 + - .");
        *p->room++ = is_letter ? lower : text[i];
    }
    if (bytes == 0)
        return refuse(p, "scheme", "is missing");
    *p->room++ = '\0';
    *at = text + bytes + 1;
    return IE_OK;
}

static ie_status
parse_port(parser *p, const char *text, size_t bytes)
{
    int port = 0;

    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9' || port > 65535)
            return refuse(p, "port", "is not a number from 1 to 65535");
        port = port * 10 + (text[i] - '0');
    }
    if (bytes == 0 || port < 1 || port > 65535)
        return refuse(p, "port", "is not a number from 1 to 65535");
    p->url->port = port;
    return IE_OK;
}

static ie_status
parse_host(parser *p, const char *text, size_t bytes)
{
    size_t    host = 0;
    size_t    used;
    ie_status status;

    if (bytes > 0 && text[0] == '[') {
        const char *closing = memchr(text, ']', bytes);

        if (closing == NULL)
            return refuse(p, "host", "has '[' without ']'");
        host = (size_t)(closing - text) - 1;
        used = host + 2;
        for (size_t i = 1; i <= host && text[i] != '%'; i++) /* a zone may follow '%' */
            if (hex_value(text[i]) < 0 && text[i] != ':' && text[i] != '.')
                return refuse(p, "host", "is not an IPv6 address");
        if (host < 2)
            return refuse(p, "host", "is not an IPv6 address");
        status = decode(p, &p->url->host, text + 1, host, "host");
    } else {
        while (host < bytes && text[host] != ':') {
            const char lower = (char)(text[host] | 0x20);

            if ((lower < 'a' || lower > 'z') && (text[host] < '0' || text[host] > '9') &&
                text[host] != '-' && text[host] != '.' && text[host] != '_')
                return refuse(p, "host", "has a character that is none of a-z 0-9 - . _");
            host++;
        }
        used = host;
        status = decode(p, &p->url->host, text, host, "host");
    }
    if (status != IE_OK || used == bytes)
        return status;
    if (text[used] != ':')
        return refuse(p, "host", "has something after ']'");
    if (host == 0)
        return refuse(p, "host", "is missing before the port");
    return parse_port(p, text + used + 1, bytes - used - 1);
}

static ie_status
parse_authority(parser *p, const char *text, size_t bytes)
{
    const char *sign = memrchr(text, '@', bytes);
    ie_status   status;

    if (sign != NULL) {
        const size_t user_bytes = (size_t)(sign - text);
        const char  *colon = memchr(text, ':', user_bytes);
        const size_t name_bytes = colon != NULL ? (size_t)(colon - text) : user_bytes;

        status = decode(p, &p->url->user, text, name_bytes, "user");
        if (status == IE_OK && colon != NULL)
            status =
                decode(p, &p->url->password, colon + 1, user_bytes - name_bytes - 1, "password");
        if (status != IE_OK)
            return status;
        if (user_bytes + 1 == bytes)
            return refuse(p, "host", "is missing after '@'");
        text += user_bytes + 1;
        bytes -= user_bytes + 1;
    }
    return parse_host(p, text, bytes);
}

static ie_status
parse_options(parser *p, const char *text)
{
    while (*text != '\0') {
        const size_t    bytes = strcspn(text, "&");
        const char     *equals = memchr(text, '=', bytes);
        const size_t    name_bytes = equals != NULL ? (size_t)(equals - text) : bytes;
        ie__url_option *option = &p->url->options[p->url->option_count];
        ie_status       status;

        if (p->url->option_count == IE__URL_OPTIONS_MAX)
            return ie_error_set(p->err, IE_ETOOBIG, "URL: more than %d options",
                                IE__URL_OPTIONS_MAX);
        if (name_bytes == 0)
            return refuse(p, "option", "has no name");
        status = decode(p, &option->name, text, name_bytes, "option name");
        option->value = "";
        if (status == IE_OK && equals != NULL)
            status = decode(p, &option->value, equals + 1, bytes - name_bytes - 1, "option value");
        if (status != IE_OK)
            return status;
        if (ie__url_option_text(p->url, option->name) != NULL)
            return ie_error_set(p->err, IE_EINVAL, "URL: option '%s' is there twice", option->name);
        p->url->option_count++;
        text += bytes;
        if (*text == '&' && *++text == '\0')
            return refuse(p, "option", "has no name");
    }
    return IE_OK;
}

ie_status
ie__url_parse(ie__url *out, const char *text, ie_error *err)
{
    parser      p = {out, out->storage, err};
    const char *at = text;
    const char *question;
    size_t      bytes;
    ie_status   status;

    memset(out, 0, sizeof *out);
    out->host = out->path = "";
    if (text == NULL)
        return refuse(&p, "text", "is missing");
    /*
     * Each component is at most as long as it was, and its terminator takes the place of the
     * delimiter before it; only the scheme and an empty host have none. So the storage holds it.
     */
    if (strnlen(text, IE__URL_BYTES_MAX + 1) > IE__URL_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "URL: longer than %d bytes", IE__URL_BYTES_MAX);
    if (strchr(text, '#') != NULL)
        return refuse(&p, "text", "contains '#'; write it as %23");
    if (strchr(text, ' ') != NULL)
        return refuse(&p, "text", "contains a space; write it as %20");
    status = parse_scheme(&p, &at);
    if (status == IE_OK && at[0] == '/' && at[1] == '/') {
        at += 2;
        bytes = strcspn(at, "/?");
        status = parse_authority(&p, at, bytes);
        at += bytes;
    }
    if (status != IE_OK)
        return status;
    question = strchr(at, '?');
    bytes = question != NULL ? (size_t)(question - at) : strlen(at);
    status = decode(&p, &out->path, at, bytes, "path");
    if (status == IE_OK && question != NULL)
        status = parse_options(&p, question + 1);
    return status;
}

const char *
ie__url_option_text(const ie__url *url, const char *name)
{
    for (size_t i = 0; i < url->option_count; i++)
        if (strcmp(url->options[i].name, name) == 0)
            return url->options[i].value;
    return NULL;
}

ie_status
ie__url_option_number(int64_t *out, const ie__url *url, const char *name, int64_t fallback,
                      int64_t min, int64_t max, ie_error *err)
{
    const char *text = ie__url_option_text(url, name);
    char       *end;
    long long   value;

    if (text == NULL) {
        *out = fallback;
        return IE_OK;
    }
    errno = 0;
    value = strtoll(text, &end, 10);
    /* strtoll() takes white space and '+' in front; a setting does not. */
    if (errno != 0 || *end != '\0' || (*text != '-' && (*text < '0' || *text > '9')) ||
        value < min || value > max)
        return ie_error_set(err, IE_EINVAL, "URL: option '%s' is not a number from %lld to %lld",
                            name, (long long)min, (long long)max);
    *out = value;
    return IE_OK;
}

ie_status
ie__url_option_bool(bool *out, const ie__url *url, const char *name, bool fallback, ie_error *err)
{
    static const struct {
        const char *word;
        bool        value;
    } WORDS[] = {{"true", true},   {"1", true},  {"yes", true},
                 {"false", false}, {"0", false}, {"no", false}};
    const char *text = ie__url_option_text(url, name);

    if (text == NULL) {
        *out = fallback;
        return IE_OK;
    }
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++) {
        if (strcmp(text, WORDS[i].word) == 0) {
            *out = WORDS[i].value;
            return IE_OK;
        }
    }
    return ie_error_set(err, IE_EINVAL, "URL: option '%s' is neither true nor false", name);
}

ie_status
ie__url_known_options(const ie__url *url, const char *const *names, ie_error *err)
{
    char   list[160] = "";
    size_t used = 0;

    for (size_t i = 0; i < url->option_count; i++) {
        const char *const *name = names;

        while (*name != NULL && strcmp(*name, url->options[i].name) != 0)
            name++;
        if (*name != NULL)
            continue;
        for (name = names; *name != NULL && used < sizeof list; name++)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s",
                                     name == names ? "" : ", ", *name);
        return ie_error_set(err, IE_EINVAL, "URL: unknown option '%.40s'; there is: %s",
                            url->options[i].name, list[0] != '\0' ? list : "none");
    }
    return IE_OK;
}

/* ---- hiding secrets ----------------------------------------------------------------------- */

typedef struct sink {
    char  *out;
    size_t size;
    size_t used;
} sink;

static void
put(sink *s, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes && s->used + 1 < s->size; i++) {
        const char c = text[i];

        s->out[s->used++] = c >= 0 && (c < 0x20 || c == 0x7F) ? '?' : c; /* one line, always */
    }
}

static bool
is_secret_name(const char *name, size_t bytes)
{
    static const char *const WORDS[] = {"pass", "secret", "token", "key", "auth", "credential"};

    for (size_t w = 0; w < sizeof WORDS / sizeof *WORDS; w++) {
        const size_t size = strlen(WORDS[w]);

        for (size_t i = 0; i + size <= bytes; i++)
            if (strncasecmp(name + i, WORDS[w], size) == 0)
                return true;
    }
    return false;
}

void
ie__url_redact(char *out, size_t size, const char *text)
{
    sink        s = {out, size, 0};
    const char *at = strstr(text, "://");
    const char *query;

    if (size == 0)
        return;
    if (at != NULL) {
        size_t      bytes = strcspn(at + 3, "/?#");
        const char *sign = memrchr(at + 3, '@', bytes);
        const char *colon;

        /* A password that was not encoded may hold '/', '?' or '#': then the last '@' of all
         * counts, and rather too much is hidden than too little. */
        if (sign == NULL && memchr(at + 3, ':', bytes) != NULL)
            sign = strrchr(at + 3, '@');
        colon = sign != NULL ? memchr(at + 3, ':', (size_t)(sign - at) - 3) : NULL;
        if (colon != NULL) {
            put(&s, text, (size_t)(colon - text) + 1);
            put(&s, "***", 3);
            text = sign;
        }
    }
    query = strchr(text, '?');
    if (query == NULL) {
        put(&s, text, strlen(text));
        text = "";
    } else {
        put(&s, text, (size_t)(query - text) + 1);
        text = query + 1;
    }
    while (*text != '\0') {
        const size_t bytes = strcspn(text, "&");
        const char  *equals = memchr(text, '=', bytes);
        const size_t name_bytes = equals != NULL ? (size_t)(equals - text) : bytes;

        if (equals != NULL && is_secret_name(text, name_bytes)) {
            put(&s, text, name_bytes + 1);
            put(&s, "***", 3);
        } else {
            put(&s, text, bytes);
        }
        text += bytes;
        if (*text == '&')
            put(&s, text++, 1);
    }
    out[s.used] = '\0';
}
