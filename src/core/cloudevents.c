/*
 * CloudEvents 1.0, JSON format (its sections 2 and 3, and the batch format).
 *
 * Choices where the specification leaves one:
 * - data_base64 without datacontenttype gets "application/octet-stream", since our NULL says JSON.
 * - data_base64 with a JSON content type must hold JSON, as any event of ours with that type.
 * - "data": null is the JSON value null when the content type is JSON or missing, else no data.
 * - A timestamp of exactly 1970-01-01T00:00:00Z is read as one millisecond later: our 0 means
 *   none, and an event that expired long ago must not become one that never does.
 * - Members are checked, not repaired: a name or value that the specification forbids refuses the
 *   event, since the next receiver would refuse it too.
 */
#include <ie/cloudevents.h>

#include <string.h>

#include "attributes.h"
#include "core.h"
#include "json.h"

/* ---- base64 (RFC 4648, section 4) --------------------------------------------------------- */

static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static ie_status
add_base64(ie_buffer *out, const unsigned char *data, size_t bytes)
{
    char *to;

    if (ie__buffer_reserve(out, (bytes + 2) / 3 * 4) != IE_OK)
        return IE_ENOMEM;
    to = out->data + out->size;
    for (; bytes >= 3; data += 3, bytes -= 3) {
        *to++ = BASE64[data[0] >> 2];
        *to++ = BASE64[(data[0] & 3) << 4 | data[1] >> 4];
        *to++ = BASE64[(data[1] & 15) << 2 | data[2] >> 6];
        *to++ = BASE64[data[2] & 63];
    }
    if (bytes > 0) {
        const unsigned second = bytes == 2 ? data[1] : 0;

        *to++ = BASE64[data[0] >> 2];
        *to++ = BASE64[(data[0] & 3u) << 4 | second >> 4];
        *to++ = bytes == 2 ? BASE64[(second & 15) << 2] : '=';
        *to++ = '=';
    }
    out->size = (size_t)(to - out->data);
    return IE_OK;
}

static int
base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* In place; strict: whole groups, padding, no white space, no bits left over. */
static bool
base64_decode(char *text, size_t *bytes)
{
    size_t   end = *bytes;
    size_t   used = 0;
    unsigned bits = 0;
    unsigned count = 0;

    if (end % 4 != 0)
        return false;
    for (int padding = 0; padding < 2 && end > 0 && text[end - 1] == '='; padding++)
        end--;
    for (size_t i = 0; i < end; i++) {
        const int value = base64_value(text[i]);

        if (value < 0)
            return false;
        bits = (bits << 6 | (unsigned)value) & 0xFFFF;
        count += 6;
        if (count >= 8) {
            count -= 8;
            text[used++] = (char)(bits >> count & 0xFF);
        }
    }
    *bytes = used;
    return count < 6 && (bits & ((1u << count) - 1)) == 0;
}

/* ---- encode ------------------------------------------------------------------------------- */

static ie_status
add_text(ie_buffer *out, const char *name, const char *value)
{
    ie_status status = IE_OK;

    if (value == NULL)
        return IE_OK;
    status = ie__buffer_add(out, ",\"", 2);
    if (status == IE_OK)
        status = ie__buffer_text(out, name);
    if (status == IE_OK)
        status = ie__buffer_add(out, "\":", 2);
    if (status == IE_OK)
        status = ie__buffer_json_string(out, value, strlen(value));
    return status;
}

static ie_status
add_time(ie_buffer *out, const char *name, int64_t time_ms)
{
    char text[IE_TIME_TEXT_SIZE];

    if (time_ms == 0)
        return IE_OK;
    ie__time_format(text, time_ms);
    return add_text(out, name, text);
}

static ie_status
add_header(ie_buffer *out, const ie_header *header)
{
    if (header->type == IE_HEADER_STRING)
        return add_text(out, header->name, header->value);
    return ie__buffer_printf(out, ",\"%s\":%s", header->name, header->value);
}

static ie_status
add_data(ie_buffer *out, const ie_event *event)
{
    ie_status status;

    if (event->data == NULL)
        return IE_OK;
    if (ie__json_is_media_type(event->content_type)) {
        status = ie__buffer_text(out, ",\"data\":");
        return status == IE_OK ? ie__buffer_add(out, event->data, event->data_bytes) : status;
    }
    if (ie__utf8_is_valid(event->data, event->data_bytes)) {
        status = ie__buffer_text(out, ",\"data\":");
        return status == IE_OK ? ie__buffer_json_string(out, event->data, event->data_bytes)
                               : status;
    }
    status = ie__buffer_text(out, ",\"data_base64\":\"");
    if (status == IE_OK)
        status = add_base64(out, event->data, event->data_bytes);
    return status == IE_OK ? ie__buffer_add(out, "\"", 1) : status;
}

static ie_status
add_event(ie_buffer *out, const ie_event *given, ie_error *err)
{
    ie_event  event;
    ie_status status = ie__event_import(&event, given, err);

    if (status == IE_OK)
        status = ie__event_check(&event, IE__EVENT_NO_TOPIC | IE__EVENT_NAMED, err);
    if (status != IE_OK)
        return status;
    status = ie__buffer_text(out, "{\"specversion\":\"1.0\"");
    if (status == IE_OK)
        status = add_text(out, "id", event.id);
    if (status == IE_OK)
        status = add_text(out, "source", event.source);
    if (status == IE_OK)
        status = add_text(out, "type", event.type);
    if (status == IE_OK)
        status = add_text(out, "subject", event.subject);
    if (status == IE_OK)
        status = add_time(out, "time", event.time_ms);
    if (status == IE_OK)
        status = add_text(out, "topic", event.topic);
    if (status == IE_OK)
        status = add_text(out, "partitionkey", event.key);
    if (status == IE_OK)
        status = add_time(out, "notbefore", event.not_before_ms);
    if (status == IE_OK)
        status = add_time(out, "expirytime", event.expires_at_ms);
    for (size_t i = 0; status == IE_OK && i < event.header_count; i++)
        status = add_header(out, &event.headers[i]);
    if (status == IE_OK)
        status = add_text(out, "dataschema", event.dataschema);
    if (status == IE_OK)
        status = add_text(out, "datacontenttype", event.content_type);
    if (status == IE_OK)
        status = add_data(out, &event);
    if (status == IE_OK)
        status = ie__buffer_add(out, "}", 1);
    return status == IE_OK ? status : ie_error_set(err, status, "encode event: out of memory");
}

ie_status
ie_cloudevents_encode(ie_buffer *out, const ie_event *event, ie_error *err)
{
    const size_t    start = out->size;
    const ie_status status = add_event(out, event, err);

    if (status != IE_OK)
        out->size = start;
    return status;
}

ie_status
ie_cloudevents_encode_batch(ie_buffer *out, const ie_event *const *events, size_t count,
                            ie_error *err)
{
    const size_t start = out->size;
    ie_error     cause = IE_ERROR_INIT;
    ie_status    status = ie__buffer_add(out, "[", 1);
    size_t       i;

    for (i = 0; status == IE_OK && i < count; i++) {
        if (i > 0)
            status = ie__buffer_add(out, ",", 1);
        if (status == IE_OK)
            status = add_event(out, events[i], &cause);
    }
    if (status == IE_OK)
        status = ie__buffer_add(out, "]", 1);
    if (status == IE_OK)
        return IE_OK;
    out->size = start;
    if (cause.status != IE_OK)
        return ie_error_set(err, status, "event %zu of the batch: %s", i, cause.message);
    return ie_error_set(err, status, "encode batch: out of memory");
}

/* ---- decode: find the members ------------------------------------------------------------- */

enum { SPECVERSION, TIME, NOT_BEFORE, EXPIRES_AT, DATA, DATA_BASE64, TEXTS };
enum { TEXT_COUNT = 8, SLOT_COUNT = TEXTS + TEXT_COUNT };

/* The attributes that are text in the event; their slots follow TEXTS in this order. */
static const struct {
    size_t       offset;
    ie__fault_fn find_fault;
    bool         is_required;
} TEXT_FIELDS[TEXT_COUNT] = {
    {offsetof(ie_event, id), ie__fault_id, true},
    {offsetof(ie_event, source), ie__fault_source, true},
    {offsetof(ie_event, type), ie__fault_text, true},
    {offsetof(ie_event, subject), ie__fault_text, false},
    {offsetof(ie_event, topic), ie__fault_topic, false},
    {offsetof(ie_event, key), ie__fault_text, false},
    {offsetof(ie_event, dataschema), ie__fault_dataschema, false},
    {offsetof(ie_event, content_type), ie__fault_content_type, false},
};

static const char *const SLOT_NAMES[SLOT_COUNT] = {
    "specversion", "time",
    "notbefore",   "expirytime",
    "data",        "data_base64",
    "id",          "source",
    "type",        "subject",
    "topic",       "partitionkey",
    "dataschema",  "datacontenttype",
};

#define EXTENSIONS_MAX (2 * IE_HEADERS_MAX) /* with those that are null and count for nothing */

typedef struct extension {
    char          name[IE_HEADER_NAME_BYTES_MAX + 1];
    size_t        name_bytes;
    ie__json_span value;
} extension;

typedef struct decoder {
    const char   *base;              /* what byte offsets count from */
    ie__json_span slots[SLOT_COUNT]; /* start is NULL for what is absent, also while null */
    bool          is_seen[SLOT_COUNT];
    size_t        extension_count;
    extension     extensions[EXTENSIONS_MAX];
} decoder;

static ie_status
refuse(const decoder *d, ie_status status, const char *name, const char *fault, const char *at,
       ie_error *err)
{
    return ie_error_set(err, status, "%s %s (byte %zu)", name, fault, (size_t)(at - d->base));
}

static ie_status
take_extension(decoder *d, const char *raw, size_t raw_bytes, ie__json_span value, ie_error *err)
{
    extension  *taken = &d->extensions[d->extension_count];
    const char *fault;

    if (d->extension_count == EXTENSIONS_MAX)
        return ie_error_set(err, IE_ETOOBIG, "extension attributes: too many (byte %zu)",
                            (size_t)(raw - d->base));
    fault = ie__header_name_take(taken->name, raw, raw_bytes, &taken->name_bytes);
    for (size_t i = 0; fault == NULL && i < d->extension_count; i++)
        if (d->extensions[i].name_bytes == taken->name_bytes &&
            memcmp(d->extensions[i].name, taken->name, taken->name_bytes) == 0)
            fault = "is there twice";
    if (fault != NULL) {
        ie_error shown = IE_ERROR_INIT;

        (void)ie_error_set(&shown, IE_EINVAL, "attribute '%s'", taken->name);
        return refuse(d, IE_EINVAL, shown.message, fault, raw, err);
    }
    taken->value = value;
    d->extension_count++;
    return IE_OK;
}

static ie_status
take_member(void *user, const char *raw, size_t raw_bytes, ie__json_span value, ie_error *err)
{
    decoder    *d = user;
    const char *name = raw;
    size_t      name_bytes = raw_bytes;
    char        plain[IE_HEADER_NAME_BYTES_MAX];

    /* Names hardly ever hold escapes; but "\u0069d" is "id", and must not slip past the rules. */
    if (raw_bytes <= sizeof plain * 6 && memchr(raw, '\\', raw_bytes) != NULL) {
        char                whole[sizeof plain * 6 + 2];
        const ie__json_span literal = {raw - 1, raw_bytes + 2, IE__JSON_STRING};

        if (ie__json_unescape(whole, &name_bytes, literal, NULL) == IE_OK &&
            name_bytes <= sizeof plain)
            name = memcpy(plain, whole, name_bytes);
        else
            name_bytes = 0;
    }
    for (int i = 0; i < SLOT_COUNT; i++) {
        if (strlen(SLOT_NAMES[i]) != name_bytes || memcmp(SLOT_NAMES[i], name, name_bytes) != 0)
            continue;
        if (d->is_seen[i])
            return refuse(d, IE_EINVAL, SLOT_NAMES[i], "is there twice", raw, err);
        d->is_seen[i] = true;
        if (value.kind != IE__JSON_NULL || i == DATA)
            d->slots[i] = value;
        return IE_OK;
    }
    return take_extension(d, raw, raw_bytes, value, err);
}

/* ---- decode: build the event -------------------------------------------------------------- */

static ie_status
build_texts(const decoder *d, ie_event *event, char **room, ie_error *err)
{
    for (int i = 0; i < TEXT_COUNT; i++) {
        const ie__json_span value = d->slots[TEXTS + i];
        const char         *name = SLOT_NAMES[TEXTS + i];
        const char         *text = *room;
        ie_status           status = IE_EINVAL;
        size_t              bytes = 0;
        const char         *fault;

        if (value.start == NULL) {
            if (TEXT_FIELDS[i].is_required)
                return ie_error_set(err, IE_EINVAL, "%s is missing", name);
            continue;
        }
        fault = ie__string_take(room, value, &bytes);
        if (fault == NULL)
            fault = TEXT_FIELDS[i].find_fault(text, bytes, &status);
        if (fault != NULL)
            return refuse(d, status, name, fault, value.start, err);
        memcpy((char *)event + TEXT_FIELDS[i].offset, &text, sizeof text);
    }
    return IE_OK;
}

static ie_status
build_time(const decoder *d, int slot, int64_t *out, ie_error *err)
{
    const ie__json_span value = d->slots[slot];
    char                plain[6 * 64];
    size_t              bytes = 0;
    bool                is_time = value.kind == IE__JSON_STRING && value.bytes <= sizeof plain;

    if (value.start == NULL)
        return IE_OK;
    is_time = is_time && ie__json_unescape(plain, &bytes, value, NULL) == IE_OK &&
              ie__time_parse(out, plain, bytes) == IE_OK;
    if (!is_time)
        return refuse(d, IE_EINVAL, SLOT_NAMES[slot], "is not an RFC 3339 timestamp", value.start,
                      err);
    if (*out == 0)
        *out = 1;
    return IE_OK;
}

static ie_status
build_headers(const decoder *d, ie_event *event, ie_header *headers, char **room, ie_error *err)
{
    size_t total = 0;

    for (size_t i = 0; i < d->extension_count; i++) {
        const extension *given = &d->extensions[i];
        ie_header       *header = &headers[event->header_count];
        size_t           bytes = 0;
        const char      *fault;

        if (given->value.kind == IE__JSON_NULL)
            continue;
        memcpy(*room, given->name, given->name_bytes + 1);
        header->name = *room;
        header->reserved = 0;
        *room += given->name_bytes + 1;
        header->value = *room;
        fault = ie__header_value_take(&header->type, room, given->value, &bytes);
        if (fault != NULL)
            return refuse(d, IE_EINVAL, given->name, fault, given->value.start, err);
        total += given->name_bytes + bytes;
        if (total > IE_HEADERS_BYTES_MAX)
            return ie_error_set(err, IE_ETOOBIG,
                                "extension attributes: larger than %d bytes together (byte %zu)",
                                IE_HEADERS_BYTES_MAX, (size_t)(given->value.start - d->base));
        event->header_count++;
    }
    if (event->header_count > 0)
        event->headers = headers;
    return IE_OK;
}

/* Binary data; the content type is known by now. */
static ie_status
build_base64(const decoder *d, ie_event *event, char **room, ie_error *err)
{
    const ie__json_span value = d->slots[DATA_BASE64];
    char               *data = *room;
    const char         *fault = ie__string_take(room, value, &event->data_bytes);

    if (fault == NULL && !base64_decode(data, &event->data_bytes))
        fault = "is not base64";
    if (event->content_type == NULL)
        event->content_type = "application/octet-stream";
    else if (fault == NULL && ie__json_is_media_type(event->content_type) &&
             ie__json_check(data, event->data_bytes, NULL) != IE_OK)
        fault = "does not hold JSON, as datacontenttype says";
    if (fault != NULL)
        return refuse(d, IE_EINVAL, "data_base64", fault, value.start, err);
    data[event->data_bytes] = '\0';
    event->data = data;
    return IE_OK;
}

static ie_status
build_data(const decoder *d, ie_event *event, char **room, ie_error *err)
{
    const ie__json_span value = d->slots[DATA];
    char               *data = *room;
    ie_status           status = IE_OK;

    if (d->slots[DATA_BASE64].start != NULL) {
        if (value.start != NULL)
            return refuse(d, IE_EINVAL, "data", "stands beside data_base64", value.start, err);
        status = build_base64(d, event, room, err);
    } else if (value.start == NULL) {
        return IE_OK;
    } else if (ie__json_is_media_type(event->content_type)) {
        memcpy(data, value.start, value.bytes);
        data[value.bytes] = '\0';
        event->data = data;
        event->data_bytes = value.bytes;
    } else if (value.kind != IE__JSON_NULL) {
        const char *fault = ie__string_take(room, value, &event->data_bytes);

        if (fault != NULL)
            return refuse(d, IE_EINVAL, "data", "is not a string, but the content type is not JSON",
                          value.start, err);
        event->data = data;
    }
    if (status == IE_OK && event->data_bytes > IE_DATA_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "data is larger than %d bytes", IE_DATA_BYTES_MAX);
    return status;
}

/* The room that everything needs at most: each text as long as its literal. */
static size_t
count_bytes(const decoder *d, size_t *header_count)
{
    size_t bytes = sizeof(ie_event);

    *header_count = 0;
    for (int i = 0; i < SLOT_COUNT; i++)
        if (d->slots[i].start != NULL)
            bytes += d->slots[i].bytes + 1;
    for (size_t i = 0; i < d->extension_count; i++) {
        if (d->extensions[i].value.kind == IE__JSON_NULL)
            continue;
        ++*header_count;
        bytes +=
            sizeof(ie_header) + d->extensions[i].name_bytes + 1 + d->extensions[i].value.bytes + 1;
    }
    return bytes;
}

static ie_status
build_event(const decoder *d, ie_event **out, ie_error *err)
{
    const ie__json_span version = d->slots[SPECVERSION];
    size_t              header_count;
    const size_t        bytes = count_bytes(d, &header_count);
    ie_event           *event;
    ie_header          *headers;
    char               *room;
    ie_status           status;

    if (version.start == NULL)
        return ie_error_set(err, IE_EINVAL, "specversion is missing");
    if (version.bytes != 5 || memcmp(version.start, "\"1.0\"", 5) != 0)
        return refuse(d, IE_EINVAL, "specversion", "is not \"1.0\"", version.start, err);
    if (header_count > IE_HEADERS_MAX)
        return ie_error_set(err, IE_ETOOBIG, "extension attributes: more than %d", IE_HEADERS_MAX);
    /* Six bytes of JSON are the most that one byte of text can take. */
    if (d->slots[DATA].bytes > 6 * (size_t)IE_DATA_BYTES_MAX + 2 ||
        d->slots[DATA_BASE64].bytes > 6 * (size_t)IE_DATA_BYTES_MAX + 2)
        return ie_error_set(err, IE_ETOOBIG, "data is larger than %d bytes", IE_DATA_BYTES_MAX);

    event = ie__alloc(bytes);
    if (event == NULL)
        return ie_error_set(err, IE_ENOMEM, "decode event: out of memory");
    memset(event, 0, sizeof *event);
    event->size = sizeof *event;
    headers = (ie_header *)(void *)(event + 1);
    room = (char *)(headers + header_count);
    status = build_texts(d, event, &room, err);
    if (status == IE_OK)
        status = build_time(d, TIME, &event->time_ms, err);
    if (status == IE_OK)
        status = build_time(d, NOT_BEFORE, &event->not_before_ms, err);
    if (status == IE_OK)
        status = build_time(d, EXPIRES_AT, &event->expires_at_ms, err);
    if (status == IE_OK)
        status = build_headers(d, event, headers, &room, err);
    if (status == IE_OK)
        status = build_data(d, event, &room, err);
    if (status == IE_OK)
        *out = event;
    else
        ie__free(event);
    return status;
}

static ie_status
decode_event(ie_event **out, const char *base, const char *json, size_t bytes, ie_error *err)
{
    decoder   d; /* extension_count says how many extensions are there; the rest stays as it is */
    ie_status status;

    d.base = base;
    d.extension_count = 0;
    memset(d.slots, 0, sizeof d.slots);
    memset(d.is_seen, 0, sizeof d.is_seen);
    status = ie__json_walk(json, bytes, IE__JSON_OBJECT, take_member, &d, err);
    return status == IE_OK ? build_event(&d, out, err) : status;
}

ie_status
ie_cloudevents_decode(ie_event **out, const char *json, size_t json_bytes, ie_error *err)
{
    return decode_event(out, json, json, json_bytes, err);
}

typedef struct batch {
    const char *base;
    ie_event  **events;
    size_t      count;
    size_t      capacity;
} batch;

static ie_status
take_element(void *user, const char *name, size_t name_bytes, ie__json_span value, ie_error *err)
{
    batch    *b = user;
    ie_error  cause = IE_ERROR_INIT;
    ie_status status;

    (void)name;
    (void)name_bytes;
    if (b->count == IE_CLOUDEVENTS_BATCH_MAX)
        return ie_error_set(err, IE_ETOOBIG, "batch: more than %d events",
                            IE_CLOUDEVENTS_BATCH_MAX);
    if (b->count == b->capacity) {
        ie_event **more = ie__realloc_array(b->events, b->capacity * 2, sizeof *more);

        if (more == NULL)
            return ie_error_set(err, IE_ENOMEM, "decode batch: out of memory");
        b->events = more;
        b->capacity *= 2;
    }
    if (value.kind != IE__JSON_OBJECT)
        return ie_error_set(err, IE_EINVAL, "event %zu of the batch is not an object (byte %zu)",
                            b->count + 1, (size_t)(value.start - b->base));
    status = decode_event(&b->events[b->count], b->base, value.start, value.bytes, &cause);
    if (status != IE_OK)
        return ie_error_set(err, status, "event %zu of the batch: %s", b->count + 1, cause.message);
    b->count++;
    return IE_OK;
}

ie_status
ie_cloudevents_decode_batch(ie_event ***out, size_t *count, const char *json, size_t json_bytes,
                            ie_error *err)
{
    batch     b = {json, NULL, 0, 16};
    ie_status status;

    b.events = ie__calloc(b.capacity, sizeof *b.events);
    if (b.events == NULL)
        return ie_error_set(err, IE_ENOMEM, "decode batch: out of memory");
    status = ie__json_walk(json, json_bytes, IE__JSON_ARRAY, take_element, &b, err);
    if (status != IE_OK) {
        ie_cloudevents_batch_free(b.events, b.count);
        return status;
    }
    *out = b.events;
    *count = b.count;
    return IE_OK;
}

void
ie_cloudevents_batch_free(ie_event **events, size_t count)
{
    if (events == NULL)
        return;
    for (size_t i = 0; i < count; i++)
        ie_event_free(events[i]);
    ie__free(events);
}
