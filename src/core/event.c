/* The event: what is legal in one, and copies. */
#include <ie/event.h>

#include <string.h>

#include "attributes.h"
#include "core.h"
#include "headers.h"
#include "json.h"
#include "text.h"

/* Years 0000..9999, which is what a timestamp's text can say. */
#define TIME_MS_MIN INT64_C(-62167219200000)
#define TIME_MS_MAX INT64_C(253402300799999)

/* ---- single values ------------------------------------------------------------------------ */

static const char *
fault_bounded(const char *text, size_t bytes, size_t bytes_max, ie_status *status)
{
    *status = bytes > bytes_max ? IE_ETOOBIG : IE_EINVAL;
    if (bytes == 0)
        return "is empty";
    if (bytes > bytes_max)
        return bytes_max == IE_ID_BYTES_MAX ? "is longer than 255 bytes"
                                            : "is longer than 2048 bytes";
    return ie__text_fault(text, bytes);
}

const char *
ie__fault_id(const char *text, size_t bytes, ie_status *status)
{
    return fault_bounded(text, bytes, IE_ID_BYTES_MAX, status);
}

const char *
ie__fault_text(const char *text, size_t bytes, ie_status *status)
{
    return fault_bounded(text, bytes, IE_ATTRIBUTE_BYTES_MAX, status);
}

static bool
is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* RFC 3986's characters. Those beyond ASCII pass: many write IRIs here, and nothing breaks. */
const char *
ie__fault_source(const char *text, size_t bytes, ie_status *status)
{
    const char *fault = fault_bounded(text, bytes, IE_ATTRIBUTE_BYTES_MAX, status);

    for (size_t i = 0; fault == NULL && i < bytes; i++) {
        switch (text[i]) {
        case ' ':
        case '"':
        case '<':
        case '>':
        case '\\':
        case '^':
        case '`':
        case '{':
        case '|':
        case '}': fault = "contains a character that a URI may not have"; break;
        case '%':
            if (bytes - i < 3 || !is_hex(text[i + 1]) || !is_hex(text[i + 2]))
                fault = "contains '%' without two hexadecimal digits";
            break;
        default: break;
        }
    }
    return fault;
}

const char *
ie__fault_dataschema(const char *text, size_t bytes, ie_status *status)
{
    const char *fault = ie__fault_source(text, bytes, status);
    size_t      i = 0;

    if (fault != NULL)
        return fault;
    while (i < bytes && (((text[i] | 0x20) >= 'a' && (text[i] | 0x20) <= 'z') ||
                         (i > 0 && ((text[i] >= '0' && text[i] <= '9') || text[i] == '+' ||
                                    text[i] == '-' || text[i] == '.'))))
        i++;
    return i > 0 && i < bytes && text[i] == ':' ? NULL : "is not an absolute URI";
}

/* Letters, digits and !#$%&'*+-.^_`{|}~, a bit per byte below 0x80. */
static bool
is_token(char c)
{
    static const uint32_t TOKENS[4] = {0, 0x03FF6CFA, 0xC7FFFFFE, 0x7FFFFFFF};
    const unsigned char   byte = (unsigned char)c;

    return byte < 0x80 && (TOKENS[byte >> 5] >> (byte & 31) & 1) != 0;
}

const char *
ie__fault_content_type(const char *text, size_t bytes, ie_status *status)
{
    static const char BAD[] = "is not a media type like application/json";
    const char       *fault = fault_bounded(text, bytes, IE_ATTRIBUTE_BYTES_MAX, status);
    size_t            slash = 0;
    size_t            i;

    if (fault != NULL)
        return fault;
    while (slash < bytes && is_token(text[slash]))
        slash++;
    if (slash == 0 || slash == bytes || text[slash] != '/')
        return BAD;
    for (i = slash + 1; i < bytes && is_token(text[i]); i++)
        ;
    if (i == slash + 1)
        return BAD;
    while (i < bytes && text[i] == ' ')
        i++;
    return i == bytes || (text[i] == ';' && i + 1 < bytes) ? NULL : BAD;
}

/* ---- headers ------------------------------------------------------------------------------ */

const char *
ie__fault_header_name(const char *name, size_t bytes)
{
    /* What the event has a field for, and CloudEvents' own words. */
    static const struct {
        size_t bytes;
        char   word[16];
    } TAKEN[] = {{2, "id"},
                 {4, "data"},
                 {4, "time"},
                 {4, "type"},
                 {5, "topic"},
                 {6, "source"},
                 {7, "subject"},
                 {9, "notbefore"},
                 {10, "dataschema"},
                 {10, "expirytime"},
                 {11, "specversion"},
                 {12, "partitionkey"},
                 {15, "datacontenttype"}};

    if (bytes == 0)
        return "has an empty name";
    if (bytes > IE_HEADER_NAME_BYTES_MAX)
        return "has a name longer than 64 bytes";
    for (size_t i = 0; i < bytes; i++)
        if (!((name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9')))
            return "has a name with other characters than a-z and 0-9";
    for (size_t i = 0; i < sizeof TAKEN / sizeof *TAKEN; i++)
        if (TAKEN[i].bytes == bytes && TAKEN[i].word[0] == *name &&
            memcmp(TAKEN[i].word, name, bytes) == 0)
            return "is an attribute that the event has a field for";
    return NULL;
}

bool
ie__is_canonical_integer(const char *text, size_t bytes)
{
    const size_t sign = bytes > 0 && text[0] == '-' ? 1 : 0;
    int64_t      value = 0;

    if (bytes == sign || bytes - sign > 10 || (text[sign] == '0' && bytes > 1))
        return false;
    for (size_t i = sign; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (text[i] - '0');
    }
    return value <= INT32_MAX + (int64_t)sign;
}

const char *
ie__fault_header_value(ie_header_type type, const char *value, size_t bytes)
{
    switch (type) {
    case IE_HEADER_STRING: return ie__text_fault(value, bytes);
    case IE_HEADER_INTEGER:
        return ie__is_canonical_integer(value, bytes) ? NULL : "is not a 32-bit integer";
    case IE_HEADER_BOOLEAN:
        return (bytes == 4 && memcmp(value, "true", 4) == 0) ||
                       (bytes == 5 && memcmp(value, "false", 5) == 0)
                   ? NULL
                   : "is neither true nor false";
    }
    return "has an unknown type";
}

const char *
ie__printable_name(char out[IE_HEADER_NAME_BYTES_MAX + 1], const char *name, size_t bytes)
{
    size_t i;

    for (i = 0; i < IE_HEADER_NAME_BYTES_MAX && i < bytes; i++)
        out[i] = name[i] < 0x20 || name[i] > 0x7E ? '?' : name[i];
    out[i] = '\0';
    return out;
}

ie_status
ie__header_check(const ie_header *header, ie_error *err)
{
    const char *fault;
    size_t      bytes;
    char        shown[IE_HEADER_NAME_BYTES_MAX + 1];

    if (header->name == NULL)
        return ie_error_set(err, IE_EINVAL, "header without a name");
    bytes = strnlen(header->name, IE_HEADER_NAME_BYTES_MAX + 1);
    fault = ie__fault_header_name(header->name, bytes);
    if (fault == NULL && header->value == NULL)
        fault = "has no value";
    if (fault == NULL && header->reserved != 0)
        fault = "has its reserved field set";
    if (fault == NULL)
        fault = ie__fault_header_value(header->type, header->value,
                                       strnlen(header->value, IE_HEADERS_BYTES_MAX + 1));
    if (fault != NULL)
        return ie_error_set(err, IE_EINVAL, "header '%s' %s",
                            ie__printable_name(shown, header->name, bytes), fault);
    return IE_OK;
}

static ie_status
headers_check(const ie_event *event, ie_error *err)
{
    size_t total = 0;

    if (event->header_count == 0)
        return IE_OK;
    if (event->header_count > IE_HEADERS_MAX)
        return ie_error_set(err, IE_ETOOBIG, "headers: more than %d", IE_HEADERS_MAX);
    if (event->headers == NULL)
        return ie_error_set(err, IE_EINVAL, "headers: missing");
    for (size_t i = 0; i < event->header_count; i++) {
        const ie_header *header = &event->headers[i];
        const ie_status  status = ie__header_check(header, err);

        if (status != IE_OK)
            return status;
        total += strlen(header->name) + strnlen(header->value, IE_HEADERS_BYTES_MAX + 1);
        if (total > IE_HEADERS_BYTES_MAX)
            return ie_error_set(err, IE_ETOOBIG, "headers: larger than %d bytes together",
                                IE_HEADERS_BYTES_MAX);
        for (size_t k = 0; k < i; k++)
            if (header->name[0] == event->headers[k].name[0] &&
                strcmp(header->name, event->headers[k].name) == 0)
                return ie_error_set(err, IE_EINVAL, "header '%s' is there twice", header->name);
    }
    return IE_OK;
}

/* ---- the event ---------------------------------------------------------------------------- */

static inline ie_status
attribute_check(const char *name, const char *text, ie__fault_fn find_fault, bool is_required,
                ie_error *err)
{
    ie_status   status = IE_EINVAL;
    const char *fault;

    if (text == NULL) {
        if (!is_required)
            return IE_OK;
        return ie_error_set(err, IE_EINVAL, "%s is missing", name);
    }
    fault = find_fault(text, strnlen(text, IE_ATTRIBUTE_BYTES_MAX + 1), &status);
    return fault != NULL ? ie_error_set(err, status, "%s %s", name, fault) : IE_OK;
}

static ie_status
data_check(const ie_event *event, ie_error *err)
{
    ie_error cause = IE_ERROR_INIT;

    if (event->data == NULL)
        return event->data_bytes == 0
                   ? IE_OK
                   : ie_error_set(err, IE_EINVAL, "data is NULL, but data_bytes is not 0");
    if (event->data_bytes > IE_DATA_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "data is larger than %d bytes", IE_DATA_BYTES_MAX);
    if (!ie__json_is_media_type(event->content_type))
        return IE_OK;
    if (event->data_bytes == 0)
        return ie_error_set(err, IE_EINVAL, "data is empty, which is not JSON; NULL means no data");
    if (ie__json_check(event->data, event->data_bytes, &cause) != IE_OK)
        return ie_error_set(err, IE_EINVAL, "data is not valid: %s", cause.message);
    return IE_OK;
}

static ie_status
time_check(const char *name, int64_t time_ms, ie_error *err)
{
    if (time_ms < TIME_MS_MIN || time_ms > TIME_MS_MAX)
        return ie_error_set(err, IE_EINVAL, "%s is outside of the years 0000 to 9999", name);
    return IE_OK;
}

/* What passed last on this thread. Who publishes much does so with few topics and types, and the
 * same text again needs no second look. */
static _Thread_local struct {
    char topic[IE_TOPIC_BYTES_MAX + 1];
    char content_type[48];
} passed;

static ie_status
topic_check(const char *topic, ie_error *err)
{
    if (topic == NULL || topic[0] == '\0' || strcmp(topic, passed.topic) != 0) {
        if (ie_topic_check(topic, err) != IE_OK)
            return IE_EINVAL;
        memcpy(passed.topic, topic, strlen(topic) + 1);
    }
    return IE_OK;
}

static ie_status
content_type_check(const char *text, ie_error *err)
{
    ie_status status;
    size_t    bytes;

    if (text == NULL || (text[0] != '\0' && strcmp(text, passed.content_type) == 0))
        return IE_OK;
    status = attribute_check("content_type", text, ie__fault_content_type, false, err);
    if (status != IE_OK)
        return status;
    bytes = strlen(text) + 1;
    if (bytes <= sizeof passed.content_type)
        memcpy(passed.content_type, text, bytes);
    return IE_OK;
}

ie_status
ie__event_check(const ie_event *event, unsigned flags, ie_error *err)
{
    const bool is_named = (flags & IE__EVENT_NAMED) != 0;
    ie_status  status = IE_OK;

    if (event->topic != NULL || (flags & IE__EVENT_NO_TOPIC) == 0)
        status = topic_check(event->topic, err);
    if (status == IE_OK)
        status = attribute_check("key", event->key, ie__fault_text, false, err);
    if (status == IE_OK)
        status = attribute_check("id", event->id, ie__fault_id, is_named, err);
    if (status == IE_OK)
        status = attribute_check("type", event->type, ie__fault_text, is_named, err);
    if (status == IE_OK)
        status = attribute_check("source", event->source, ie__fault_source, is_named, err);
    if (status == IE_OK)
        status = attribute_check("subject", event->subject, ie__fault_text, false, err);
    if (status == IE_OK)
        status = attribute_check("dataschema", event->dataschema, ie__fault_dataschema, false, err);
    if (status == IE_OK)
        status = content_type_check(event->content_type, err);
    if (status == IE_OK)
        status = attribute_check("dedupe_key", event->dedupe_key, ie__fault_text, false, err);
    if (status == IE_OK)
        status = time_check("time_ms", event->time_ms, err);
    if (status == IE_OK)
        status = time_check("not_before_ms", event->not_before_ms, err);
    if (status == IE_OK)
        status = time_check("expires_at_ms", event->expires_at_ms, err);
    if (status == IE_OK)
        status = headers_check(event, err);
    if (status == IE_OK)
        status = data_check(event, err);
    return status;
}

ie_status
ie__event_import(ie_event *own, const ie_event *event, ie_error *err)
{
    ie_status status = IE_EINVAL;

    if (event != NULL && event->size == sizeof *own) {
        *own = *event; /* made with this header, as nearly always */
        return IE_OK;
    }
    memset(own, 0, sizeof *own);
    if (event != NULL)
        status = ie__struct_import(own, sizeof *own, event, sizeof *own);
    if (status == IE_ENOTSUP)
        return ie_error_set(err, status, "event: uses a field that this library lacks");
    if (status != IE_OK)
        return ie_error_set(err, status, "event: %s",
                            event == NULL ? "missing" : "size is not set; use IE_EVENT_INIT");
    return IE_OK;
}

ie_status
ie_event_check(const ie_event *event, ie_error *err)
{
    ie_event        own;
    const ie_status status = ie__event_import(&own, event, err);

    return status == IE_OK ? ie__event_check(&own, 0, err) : status;
}

/* ---- copies ------------------------------------------------------------------------------- */

static size_t
text_size(const char *text)
{
    return text != NULL ? strlen(text) + 1 : 0;
}

/* Move a text into the block at *at, which moves on. */
static const char *
put_text(char **at, const char *text)
{
    const size_t size = text_size(text);
    char        *copy = *at;

    if (text == NULL)
        return NULL;
    memcpy(copy, text, size);
    *at += size;
    return copy;
}

ie_status
ie_event_copy(ie_event **out, const ie_event *event, ie_error *err)
{
    ie_event        own;
    ie_event       *copy;
    ie_header      *headers;
    char           *at;
    size_t          bytes;
    const ie_status status = ie__event_import(&own, event, err);

    if (status != IE_OK)
        return status;
    if (own.header_count > IE_HEADERS_MAX || (own.header_count > 0 && own.headers == NULL) ||
        own.data_bytes > SIZE_MAX / 2 || (own.data == NULL && own.data_bytes > 0))
        return ie_error_set(err, IE_EINVAL, "event: headers or data cannot be right");
    bytes = sizeof *copy + own.header_count * sizeof *headers + own.data_bytes + 1 +
            text_size(own.topic) + text_size(own.key) + text_size(own.id) + text_size(own.type) +
            text_size(own.source) + text_size(own.subject) + text_size(own.dataschema) +
            text_size(own.content_type) + text_size(own.dedupe_key);
    for (size_t i = 0; i < own.header_count; i++)
        bytes += text_size(own.headers[i].name) + text_size(own.headers[i].value);

    copy = ie__alloc(bytes);
    if (copy == NULL)
        return ie_error_set(err, IE_ENOMEM, "copy event: out of memory");
    headers = (ie_header *)(void *)(copy + 1);
    at = (char *)(headers + own.header_count);
    for (size_t i = 0; i < own.header_count; i++) {
        headers[i] = own.headers[i];
        headers[i].name = put_text(&at, own.headers[i].name);
        headers[i].value = put_text(&at, own.headers[i].value);
    }
    *copy = own;
    copy->headers = own.header_count > 0 ? headers : NULL;
    copy->topic = put_text(&at, own.topic);
    copy->key = put_text(&at, own.key);
    copy->id = put_text(&at, own.id);
    copy->type = put_text(&at, own.type);
    copy->source = put_text(&at, own.source);
    copy->subject = put_text(&at, own.subject);
    copy->dataschema = put_text(&at, own.dataschema);
    copy->content_type = put_text(&at, own.content_type);
    copy->dedupe_key = put_text(&at, own.dedupe_key);
    if (own.data != NULL) {
        memcpy(at, own.data, own.data_bytes);
        at[own.data_bytes] = '\0'; /* so that text data can be printed */
        copy->data = at;
    }
    *out = copy;
    return IE_OK;
}

void
ie_event_free(ie_event *event)
{
    ie__free(event);
}

const char *
ie_event_header(const ie_event *event, const char *name)
{
    if (event == NULL || name == NULL)
        return NULL;
    for (size_t i = 0; i < event->header_count; i++)
        if (strcmp(event->headers[i].name, name) == 0)
            return event->headers[i].value;
    return NULL;
}
