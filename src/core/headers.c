/* Headers between the event and the one JSON object that the log keeps of them. */
#include "headers.h"

#include <string.h>

#include "attributes.h"
#include "core.h"
#include "json.h"
#include "text.h"

/* ---- encode ------------------------------------------------------------------------------- */

static char *
put_escape(char *to, unsigned char c)
{
    static const char HEX[] = "0123456789abcdef";

    *to++ = '\\';
    if (c == '"' || c == '\\') {
        *to++ = (char)c;
        return to;
    }
    memcpy(to, "u00", 3);
    to[3] = HEX[c >> 4];
    to[4] = HEX[c & 15];
    return to + 5;
}

/* A string literal with its quotes; there is room for 6 * bytes + 2. */
static char *
put_string(char *to, const char *text, size_t bytes)
{
    size_t i = 0;

    *to++ = '"';
    while (i < bytes) {
        unsigned char c;

        if (bytes - i >= 8) {
            const uint64_t word = ie__load8(text + i);

            /* Bytes from 0x80 up stand for themselves, so "below space" must not count them. */
            if ((ie__has_below(word, 0x20) | ie__has_zero(word ^ IE__BYTES('"')) |
                 ie__has_zero(word ^ IE__BYTES('\\'))) == 0) {
                memcpy(to, text + i, 8);
                to += 8;
                i += 8;
                continue;
            }
        }
        c = (unsigned char)text[i++];
        if (c >= 0x20 && c != '"' && c != '\\')
            *to++ = (char)c;
        else
            to = put_escape(to, c);
    }
    *to++ = '"';
    return to;
}

static ie_status
add_member(ie_buffer *out, const char *name, const char *value, bool is_bare)
{
    const size_t name_bytes = strlen(name);
    const size_t value_bytes = strlen(value);
    char        *to;

    if (name_bytes > SIZE_MAX / 16 || value_bytes > SIZE_MAX / 16 ||
        ie__buffer_reserve(out, 6 * (name_bytes + value_bytes) + 8) != IE_OK)
        return IE_ENOMEM;
    to = out->data + out->size;
    *to++ = ','; /* the first one becomes the opening brace */
    to = put_string(to, name, name_bytes);
    *to++ = ':';
    if (is_bare) {
        memcpy(to, value, value_bytes);
        to += value_bytes;
    } else {
        to = put_string(to, value, value_bytes);
    }
    out->size = (size_t)(to - out->data);
    return IE_OK;
}

ie_status
ie__headers_encode(ie_buffer *out, const ie_event *event)
{
    const size_t start = out->size;
    ie_status    status = IE_OK;

    if (event->subject != NULL)
        status = add_member(out, "subject", event->subject, false);
    if (status == IE_OK && event->dataschema != NULL)
        status = add_member(out, "dataschema", event->dataschema, false);
    for (size_t i = 0; status == IE_OK && i < event->header_count; i++)
        status = add_member(out, event->headers[i].name, event->headers[i].value,
                            event->headers[i].type != IE_HEADER_STRING);
    if (status == IE_OK && out->size > start) {
        out->data[start] = '{';
        status = ie__buffer_add(out, "}", 1);
    }
    if (status != IE_OK)
        out->size = start;
    return status;
}

/* ---- decode ------------------------------------------------------------------------------- */

const char *
ie__header_name_take(char *name, const char *raw, size_t raw_bytes, size_t *bytes)
{
    const char *fault = ie__fault_header_name(raw, raw_bytes);
    char        plain[6 * IE_HEADER_NAME_BYTES_MAX + 2];

    /* Hardly any name holds an escape, and one that does fails as it stands. */
    if (fault != NULL && raw_bytes <= 6 * IE_HEADER_NAME_BYTES_MAX &&
        memchr(raw, '\\', raw_bytes) != NULL) {
        const ie__json_span literal = {raw - 1, raw_bytes + 2, IE__JSON_STRING};

        if (ie__json_unescape(plain, &raw_bytes, literal, NULL) == IE_OK) {
            raw = plain;
            fault = ie__fault_header_name(raw, raw_bytes);
        }
    }
    *bytes = raw_bytes;
    if (fault != NULL) {
        (void)ie__printable_name(name, raw, raw_bytes);
        return fault;
    }
    memcpy(name, raw, raw_bytes);
    name[raw_bytes] = '\0';
    return NULL;
}

static const char *
integer_take(char **room, ie__json_span value, size_t *bytes)
{
    const bool is_minus_zero = value.bytes == 2 && memcmp(value.start, "-0", 2) == 0;

    if (is_minus_zero) {
        value.start++;
        value.bytes--;
    }
    if (!ie__is_canonical_integer(value.start, value.bytes))
        return "is not a 32-bit integer";
    memcpy(*room, value.start, value.bytes);
    (*room)[value.bytes] = '\0';
    *room += value.bytes + 1;
    *bytes = value.bytes;
    return NULL;
}

const char *
ie__string_take(char **room, ie__json_span value, size_t *bytes)
{
    if (value.kind != IE__JSON_STRING)
        return "is not a string";
    if (memchr(value.start, '\\', value.bytes) == NULL) {
        *bytes = value.bytes - 2;
        memcpy(*room, value.start + 1, *bytes);
    } else if (ie__json_unescape(*room, bytes, value, NULL) != IE_OK) {
        return "has a broken escape";
    }
    (*room)[*bytes] = '\0';
    *room += *bytes + 1;
    return NULL;
}

const char *
ie__header_value_take(ie_header_type *type, char **room, ie__json_span value, size_t *bytes)
{
    const char *text = *room;
    const char *fault;

    switch (value.kind) {
    case IE__JSON_STRING:
        *type = IE_HEADER_STRING;
        fault = ie__string_take(room, value, bytes);
        return fault != NULL ? fault : ie__text_fault(text, *bytes);
    case IE__JSON_NUMBER: *type = IE_HEADER_INTEGER; return integer_take(room, value, bytes);
    case IE__JSON_TRUE:
    case IE__JSON_FALSE:
        *type = IE_HEADER_BOOLEAN;
        memcpy(*room, value.start, value.bytes);
        (*room)[value.bytes] = '\0';
        *room += value.bytes + 1;
        *bytes = value.bytes;
        return NULL;
    default: return "is neither a string nor an integer nor a boolean";
    }
}

typedef struct decoder {
    ie_header  *headers;
    char       *room;
    size_t      count;
    size_t      bytes; /* of names and values, against their limit */
    const char *subject;
    const char *dataschema;
} decoder;

static bool
is_word(const char *name, size_t bytes, const char *word, size_t word_bytes)
{
    return bytes == word_bytes && memcmp(name, word, word_bytes) == 0;
}

static ie_status
refuse(const char *raw, size_t raw_bytes, const char *fault, ie_error *err)
{
    char shown[IE_HEADER_NAME_BYTES_MAX + 1];

    return ie_error_set(err, IE_EINVAL, "header '%s' %s", ie__printable_name(shown, raw, raw_bytes),
                        fault);
}

/* subject or dataschema: attributes that only live here while stored. */
static ie_status
take_attribute(decoder *d, const char **slot, const char *name, size_t name_bytes,
               ie__json_span value, ie_error *err)
{
    ie_status   status = IE_EINVAL;
    size_t      bytes = 0;
    char       *text = d->room;
    const char *fault = *slot != NULL ? "is there twice" : ie__string_take(&d->room, value, &bytes);

    if (fault == NULL)
        fault = slot == &d->subject ? ie__fault_text(text, bytes, &status)
                                    : ie__fault_dataschema(text, bytes, &status);
    if (fault != NULL)
        return refuse(name, name_bytes, fault, err);
    *slot = text;
    return IE_OK;
}

static ie_status
take_member(void *user, const char *raw, size_t raw_bytes, ie__json_span value, ie_error *err)
{
    decoder    *d = user;
    char        name[IE_HEADER_NAME_BYTES_MAX + 1];
    ie_header  *header = &d->headers[d->count];
    size_t      name_bytes;
    size_t      value_bytes = 0;
    const char *fault;

    if (value.kind == IE__JSON_NULL)
        return IE_OK; /* as in CloudEvents: null is absent */
    if (is_word(raw, raw_bytes, "subject", 7))
        return take_attribute(d, &d->subject, raw, raw_bytes, value, err);
    if (is_word(raw, raw_bytes, "dataschema", 10))
        return take_attribute(d, &d->dataschema, raw, raw_bytes, value, err);
    if (d->count == IE_HEADERS_MAX)
        return ie_error_set(err, IE_ETOOBIG, "headers: more than %d", IE_HEADERS_MAX);

    fault = ie__header_name_take(name, raw, raw_bytes, &name_bytes);
    for (size_t i = 0; fault == NULL && i < d->count; i++)
        if (d->headers[i].name[0] == name[0] && strcmp(d->headers[i].name, name) == 0)
            fault = "is there twice";
    if (fault != NULL)
        return refuse(raw, raw_bytes, fault, err);
    memcpy(d->room, name, name_bytes + 1);
    header->name = d->room;
    header->reserved = 0;
    d->room += name_bytes + 1;
    header->value = d->room;
    fault = ie__header_value_take(&header->type, &d->room, value, &value_bytes);
    if (fault != NULL)
        return refuse(raw, raw_bytes, fault, err);
    d->bytes += name_bytes + value_bytes;
    if (d->bytes > IE_HEADERS_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "headers: larger than %d bytes together",
                            IE_HEADERS_BYTES_MAX);
    d->count++;
    return IE_OK;
}

/* Six bytes make the shortest header with its comma. */
static size_t
headers_max(size_t json_bytes)
{
    const size_t most = json_bytes / 6 + 1;

    return most < IE_HEADERS_MAX ? most : IE_HEADERS_MAX;
}

size_t
ie__headers_arena_bytes(size_t json_bytes)
{
    /* Quotes, colon and comma of each member leave more than the room for two terminators. */
    return headers_max(json_bytes) * sizeof(ie_header) + json_bytes + 8;
}

ie_status
ie__headers_decode_into(ie_event *event, void *arena, const char *json, size_t bytes, ie_error *err)
{
    decoder   d = {0};
    ie_status status;

    if (bytes > IE__HEADERS_STORED_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "headers: larger than %d bytes as JSON",
                            IE__HEADERS_STORED_BYTES_MAX);
    d.headers = arena;
    d.room = (char *)(d.headers + headers_max(bytes));
    status = ie__json_walk(json, bytes, IE__JSON_OBJECT, take_member, &d, err);
    if (status != IE_OK)
        return status;
    event->subject = d.subject;
    event->dataschema = d.dataschema;
    event->headers = d.count > 0 ? d.headers : NULL;
    event->header_count = d.count;
    return IE_OK;
}

/* Copy with a terminator into the room, which there is for every byte of the object. */
static const char *
room_put(decoder *d, const char *text, size_t bytes)
{
    const char *copy = d->room;

    memcpy(d->room, text, bytes);
    d->room[bytes] = '\0';
    d->room += bytes + 1;
    return copy;
}

/* The bytes of a plain string at *at, which moves behind its closing quote; NULL: there is none. */
static const char *
plain_string(const char **at, const char *end, size_t *bytes)
{
    const char *start = *at + 1;
    const char *quote;

    if (*at >= end || **at != '"' || (quote = memchr(start, '"', (size_t)(end - start))) == NULL)
        return NULL;
    *bytes = (size_t)(quote - start);
    *at = quote + 1;
    return start;
}

/* One "name":value at *at. False: of another form. */
static bool
compact_member(decoder *d, const char **at, const char *end)
{
    ie_header  *header = &d->headers[d->count];
    size_t      name_bytes = 0;
    size_t      value_bytes = 0;
    const char *name = plain_string(at, end, &name_bytes);
    const char *value;
    bool        is_string;

    if (name == NULL || *at >= end || **at != ':')
        return false;
    (*at)++;
    value = *at;
    is_string = value < end && *value == '"';
    if (is_string) {
        value = plain_string(at, end, &value_bytes);
        if (value == NULL)
            return false;
    } else {
        while (*at < end && **at != ',')
            (*at)++;
        value_bytes = (size_t)(*at - value);
    }
    if (is_word(name, name_bytes, "subject", 7)) {
        d->subject = room_put(d, value, value_bytes);
    } else if (is_word(name, name_bytes, "dataschema", 10)) {
        d->dataschema = room_put(d, value, value_bytes);
    } else {
        if (d->count == IE_HEADERS_MAX || value_bytes == 0 ||
            (!is_string && memchr("-0123456789tf", *value, 13) == NULL))
            return false;
        header->name = room_put(d, name, name_bytes);
        header->value = room_put(d, value, value_bytes);
        header->type = is_string                        ? IE_HEADER_STRING
                       : *value == 't' || *value == 'f' ? IE_HEADER_BOOLEAN
                                                        : IE_HEADER_INTEGER;
        header->reserved = 0;
        d->count++;
    }
    return true;
}

bool
ie__headers_decode_compact(ie_event *event, void *arena, const char *json, size_t bytes)
{
    const char *end = json + bytes - 1; /* the closing brace */
    const char *at = json;
    decoder     d = {0};

    if (bytes < 2 || bytes > IE__HEADERS_STORED_BYTES_MAX || *json != '{' || *end != '}' ||
        memchr(json, '\\', bytes) != NULL)
        return false;
    d.headers = arena;
    d.room = (char *)(d.headers + headers_max(bytes));
    while (at < end) {
        if (*at != (at == json ? '{' : ','))
            return false;
        at++;
        if (!compact_member(&d, &at, end))
            return false;
    }
    event->subject = d.subject;
    event->dataschema = d.dataschema;
    event->headers = d.count > 0 ? d.headers : NULL;
    event->header_count = d.count;
    return true;
}

ie_status
ie__headers_decode(ie_event *event, void **arena, const char *json, size_t bytes, ie_error *err)
{
    void     *memory;
    ie_status status;

    if (bytes > IE__HEADERS_STORED_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "headers: larger than %d bytes as JSON",
                            IE__HEADERS_STORED_BYTES_MAX);
    memory = ie__alloc(ie__headers_arena_bytes(bytes));
    if (memory == NULL)
        return ie_error_set(err, IE_ENOMEM, "read headers: out of memory");
    status = ie__headers_decode_into(event, memory, json, bytes, err);
    if (status == IE_OK)
        *arena = memory;
    else
        ie__free(memory);
    return status;
}
