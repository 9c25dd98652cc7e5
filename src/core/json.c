/*
 * A JSON scanner without a tree, a stack of calls, or memory: RFC 8259 to the letter.
 *
 * Where it differs from jansson (the fuzzer knows these): numbers may be of any size, since they
 * are not converted; nesting ends at IE__JSON_DEPTH_MAX; "\u0000" is legal, also in a name; a NUL
 * byte behind the value is no end.
 */
#include "json.h"

#include <string.h>
#include <strings.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "text.h"

typedef unsigned char byte;

typedef struct fault {
    const char *cause;
    const byte *at;
} fault;

static const byte *
fail(fault *f, const byte *at, const char *cause)
{
    f->at = at;
    f->cause = cause;
    return NULL;
}

static const byte *
skip_space(const byte *at, const byte *end)
{
    while (at < end && *at <= ' ' && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
        at++;
    return at;
}

/* The first byte that ends a run of plain characters: '"', '\\', a control, or >= 0x80. */
static const byte *
skip_plain(const byte *at, const byte *end)
{
#if defined(__SSE2__)
    const __m128i space = _mm_set1_epi8(0x20);
    const __m128i quote = _mm_set1_epi8('"');
    const __m128i slash = _mm_set1_epi8('\\');

    for (; end - at >= 16; at += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
        /* The comparison is signed: bytes from 0x80 up count as below space, as wanted. */
        const __m128i stops =
            _mm_or_si128(_mm_cmplt_epi8(bytes, space),
                         _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, slash)));
        const unsigned mask = (unsigned)_mm_movemask_epi8(stops);

        if (mask != 0)
            return at + __builtin_ctz(mask);
    }
#endif
    for (; end - at >= 8; at += 8) {
        const uint64_t word = ie__load8(at);

        if (((word & IE__HIGH_BITS) | ie__has_below(word, 0x20) |
             ie__has_zero(word ^ IE__BYTES('"')) | ie__has_zero(word ^ IE__BYTES('\\'))) != 0)
            break;
    }
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

/* Four hexadecimal digits as a number, or -1. */
static int
hex4(const byte *at, const byte *end)
{
    int value = 0;

    if (end - at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        const byte c = at[i];
        const byte lower = c | 0x20;

        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            value = value * 16 + (lower - 'a' + 10);
        else
            return -1;
    }
    return value;
}

/*
 * The escape that starts with the backslash at *at: its code point, *at moved past it. -1 and a
 * fault when it is none.
 */
static int32_t
take_escape(const byte **at, const byte *end, fault *f)
{
    const byte *start = *at;
    int         high;
    int         low;

    if (end - start < 2) {
        (void)fail(f, start, "string without its closing quote");
        return -1;
    }
    *at = start + 2;
    switch (start[1]) {
    case '"': return '"';
    case '\\': return '\\';
    case '/': return '/';
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'u': break;
    default: (void)fail(f, start, "unknown escape"); return -1;
    }
    high = hex4(start + 2, end);
    if (high < 0) {
        (void)fail(f, start, "\\u without four hexadecimal digits");
        return -1;
    }
    *at = start + 6;
    if (high < 0xD800 || high > 0xDFFF)
        return high;
    low = high < 0xDC00 && end - *at >= 6 && (*at)[0] == '\\' && (*at)[1] == 'u'
              ? hex4(*at + 2, end)
              : -1;
    if (low < 0xDC00 || low > 0xDFFF) {
        (void)fail(f, start, "lone surrogate");
        return -1;
    }
    *at += 6;
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

/* At the opening quote; the answer is past the closing one. */
static const byte *
scan_string(const byte *at, const byte *end, fault *f)
{
    for (at++;;) {
        at = skip_plain(at, end);
        if (at == end)
            return fail(f, at, "string without its closing quote");
        if (*at == '"')
            return at + 1;
        if (*at == '\\') {
            if (take_escape(&at, end, f) < 0)
                return NULL;
        } else if (*at < 0x20) {
            return fail(f, at, "control character in a string");
        }
        while (at < end && *at >= 0x80) {
            uint32_t     point;
            const size_t size = ie__utf8_sequence(at, (size_t)(end - at), &point);

            if (size == 0)
                return fail(f, at, "not valid UTF-8");
            at += size;
        }
    }
}

static const byte *
skip_digits(const byte *at, const byte *end)
{
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at;
}

static const byte *
scan_number(const byte *at, const byte *end, fault *f)
{
    const byte *digits;

    if (*at == '-')
        at++;
    digits = at;
    at = skip_digits(at, end);
    if (at == digits || (*digits == '0' && at - digits > 1))
        return fail(f, digits, at == digits ? "number without digits" : "number with a leading 0");
    if (at < end && *at == '.') {
        digits = ++at;
        at = skip_digits(at, end);
        if (at == digits)
            return fail(f, at, "number without digits after the point");
    }
    if (at < end && (*at | 0x20) == 'e') {
        at++;
        if (at < end && (*at == '+' || *at == '-'))
            at++;
        digits = at;
        at = skip_digits(at, end);
        if (at == digits)
            return fail(f, at, "number without digits in its exponent");
    }
    return at;
}

static const byte *
scan_word(const byte *at, const byte *end, const char *word, fault *f)
{
    const size_t size = strlen(word);

    if ((size_t)(end - at) < size || memcmp(at, word, size) != 0)
        return fail(f, at, "neither a value nor true, false or null");
    return at + size;
}

/* A value that is neither object nor array. */
static const byte *
scan_scalar(const byte *at, const byte *end, fault *f)
{
    switch (*at) {
    case '"': return scan_string(at, end, f);
    case 't': return scan_word(at, end, "true", f);
    case 'f': return scan_word(at, end, "false", f);
    case 'n': return scan_word(at, end, "null", f);
    default:
        if (*at == '-' || (*at >= '0' && *at <= '9'))
            return scan_number(at, end, f);
        return fail(f, at, "no value starts like this");
    }
}

/* A member's name and its colon, up to the first byte of the value. */
static const byte *
scan_name(const byte *at, const byte *end, fault *f)
{
    if (at == end || *at != '"')
        return fail(f, at, "a member name is missing");
    at = scan_string(at, end, f);
    if (at == NULL)
        return NULL;
    at = skip_space(at, end);
    if (at == end || *at != ':')
        return fail(f, at, "':' is missing");
    return skip_space(at + 1, end);
}

/* The value that starts at `at`, with at most so many containers in each other; gives its end. */
static const byte *
scan_value(const byte *at, const byte *end, unsigned depth_max, fault *f)
{
    byte     closers[IE__JSON_DEPTH_MAX + 1]; /* of the open containers, innermost last */
    unsigned depth = 0;
    bool     is_named = false;

    for (;;) {
        if (is_named && (at = scan_name(at, end, f)) == NULL)
            return NULL;
        if (at == end)
            return fail(f, at, "a value is missing");
        if (*at == '{' || *at == '[') {
            if (depth == depth_max)
                return fail(f, at, "nested too deep");
            is_named = *at == '{';
            closers[depth++] = is_named ? '}' : ']';
            at = skip_space(at + 1, end);
            if (at == end || *at != closers[depth - 1])
                continue;
        } else {
            at = scan_scalar(at, end, f);
            if (at == NULL)
                return NULL;
        }
        for (;;) { /* a value ended: close what closes here, up to the next comma */
            if (depth == 0)
                return at;
            at = skip_space(at, end);
            if (at == end)
                return fail(f, at, "ends inside an object or array");
            if (*at == ',')
                break;
            if (*at != closers[depth - 1])
                return fail(f, at, "neither ',' nor the closing bracket");
            at++;
            depth--;
        }
        at = skip_space(at + 1, end);
        is_named = closers[depth - 1] == '}';
    }
}

static ie_status
refuse(const fault *f, const char *json, ie_error *err)
{
    return ie_error_set(err, IE_EINVAL, "JSON, byte %zu: %s", (size_t)(f->at - (const byte *)json),
                        f->cause);
}

ie_status
ie__json_check(const char *json, size_t bytes, ie_error *err)
{
    const byte *at;
    const byte *end;
    fault       f;

    if (bytes == 0)
        json = ""; /* no arithmetic on NULL */
    at = (const byte *)json;
    end = at + bytes;
    at = scan_value(skip_space(at, end), end, IE__JSON_DEPTH_MAX, &f);
    if (at != NULL) {
        at = skip_space(at, end);
        if (at == end)
            return IE_OK;
        (void)fail(&f, at, "something follows the value");
    }
    return refuse(&f, json, err);
}

static ie__json_kind
kind_of(byte first)
{
    switch (first) {
    case '{': return IE__JSON_OBJECT;
    case '[': return IE__JSON_ARRAY;
    case '"': return IE__JSON_STRING;
    case 't': return IE__JSON_TRUE;
    case 'f': return IE__JSON_FALSE;
    case 'n': return IE__JSON_NULL;
    default: return IE__JSON_NUMBER;
    }
}

ie_status
ie__json_walk(const char *json, size_t bytes, ie__json_kind expected, ie__json_member_fn fn,
              void *user, ie_error *err)
{
    const bool is_object = expected == IE__JSON_OBJECT;
    /* What passed ie__json_check() must still pass inside an envelope, and that in an array. */
    const unsigned depth_max = IE__JSON_DEPTH_MAX + (is_object ? 0 : 1);
    const byte     closer = is_object ? '}' : ']';
    const byte    *end;
    const byte    *at;
    fault          f;

    if (bytes == 0)
        json = ""; /* no arithmetic on NULL */
    end = (const byte *)json + bytes;
    at = skip_space((const byte *)json, end);
    if (at == end || *at != (is_object ? '{' : '[')) {
        (void)fail(&f, at, is_object ? "not an object" : "not an array");
        return refuse(&f, json, err);
    }
    at = skip_space(at + 1, end);
    if (at == end || *at != closer) {
        for (;;) {
            const byte   *name = at;
            size_t        name_bytes = 0;
            ie__json_span value;
            ie_status     status;

            if (is_object) {
                const byte *colon;

                at = scan_name(at, end, &f);
                if (at == NULL)
                    return refuse(&f, json, err);
                for (colon = at - 1; *colon != '"'; colon--)
                    ; /* back over ':' and white space to the name's closing quote */
                name_bytes = (size_t)(colon - name) - 1;
            }
            value.start = (const char *)at;
            at = scan_value(at, end, depth_max, &f);
            if (at == NULL)
                return refuse(&f, json, err);
            value.bytes = (size_t)((const char *)at - value.start);
            value.kind = kind_of((byte)*value.start);
            status = fn(user, is_object ? (const char *)name + 1 : NULL, name_bytes, value, err);
            if (status != IE_OK)
                return status;
            at = skip_space(at, end);
            if (at == end || *at != ',')
                break;
            at = skip_space(at + 1, end);
        }
        if (at == end || *at != closer) {
            (void)fail(&f, at,
                       at == end ? "ends inside an object or array"
                                 : "neither ',' nor the closing bracket");
            return refuse(&f, json, err);
        }
    }
    at = skip_space(at + 1, end);
    if (at != end) {
        (void)fail(&f, at, "something follows the value");
        return refuse(&f, json, err);
    }
    return IE_OK;
}

static char *
put_utf8(char *out, uint32_t point)
{
    if (point < 0x80) {
        *out++ = (char)point;
    } else if (point < 0x800) {
        *out++ = (char)(0xC0 | point >> 6);
        *out++ = (char)(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        *out++ = (char)(0xE0 | point >> 12);
        *out++ = (char)(0x80 | (point >> 6 & 0x3F));
        *out++ = (char)(0x80 | (point & 0x3F));
    } else {
        *out++ = (char)(0xF0 | point >> 18);
        *out++ = (char)(0x80 | (point >> 12 & 0x3F));
        *out++ = (char)(0x80 | (point >> 6 & 0x3F));
        *out++ = (char)(0x80 | (point & 0x3F));
    }
    return out;
}

ie_status
ie__json_unescape(char *out, size_t *out_bytes, ie__json_span string, ie_error *err)
{
    const byte *at = (const byte *)string.start + 1;
    const byte *end;
    char       *to = out;
    fault       f;

    if (string.kind != IE__JSON_STRING || string.bytes < 2)
        return ie_error_set(err, IE_EINVAL, "JSON: not a string");
    end = (const byte *)string.start + string.bytes - 1;
    while (at < end) {
        const byte  *slash = memchr(at, '\\', (size_t)(end - at));
        const size_t run = (size_t)((slash != NULL ? slash : end) - at);
        int32_t      point;

        memcpy(to, at, run);
        to += run;
        at += run;
        if (slash == NULL)
            break;
        point = take_escape(&at, end, &f);
        if (point < 0)
            return refuse(&f, string.start, err);
        to = put_utf8(to, (uint32_t)point);
    }
    *out_bytes = (size_t)(to - out);
    return IE_OK;
}

void
ie__json_one_line(char *json, size_t bytes)
{
    for (char *at = json; (at = memchr(at, '\n', bytes - (size_t)(at - json))) != NULL;)
        *at = ' ';
    for (char *at = json; (at = memchr(at, '\r', bytes - (size_t)(at - json))) != NULL;)
        *at = ' ';
}

bool
ie__json_is_media_type(const char *content_type)
{
    size_t bytes;

    if (content_type == NULL)
        return true;
    bytes = 0; /* parameters do not change what it is */
    while (content_type[bytes] != '\0' && content_type[bytes] != ';' &&
           content_type[bytes] != ' ' && content_type[bytes] != '\t')
        bytes++;
    content_type += bytes;
    if (bytes < 5)
        return false;
    content_type -= 5;
    if (*content_type != '/' && *content_type != '+')
        return false;
    return strncasecmp(content_type, "/json", 5) == 0 || strncasecmp(content_type, "+json", 5) == 0;
}
