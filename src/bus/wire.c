/* The bytes of eb/2. */
#include "wire.h"

#include <stdio.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "core.h"
#include "headers.h"
#include "text.h"

/* ---- text ----------------------------------------------------------------------------------- */

/* Is the top bit of some byte set, or is it below 0x20, or 0x7f? */
static inline bool
word_is_odd(uint64_t word)
{
    return ((word & IE__HIGH_BITS) | ie__has_below(word, 0x20) |
            ie__has_zero(word ^ IE__BYTES(0x7F))) != 0;
}

/* The same of sixteen bytes. */
static inline bool
pair_is_odd(const unsigned char *bytes)
{
#ifdef __SSE2__
    const __m128i both = _mm_loadu_si128((const __m128i *)(const void *)bytes);
    const __m128i high = _mm_cmpgt_epi8(both, _mm_set1_epi8(0x1F)); /* signed: below 0x80, too */

    return _mm_movemask_epi8(_mm_andnot_si128(_mm_cmpeq_epi8(both, _mm_set1_epi8(0x7F)), high)) !=
           0xFFFF;
#else
    return word_is_odd(ie__load8(bytes)) || word_is_odd(ie__load8(bytes + 8));
#endif
}

/* The slow way, for text with something else than printable ASCII. */
static bool
text_is_good_slow(const unsigned char *bytes, size_t size)
{
    for (size_t k = 0; k < size; k++) {
        if (bytes[k] < 0x20 || bytes[k] == 0x7f)
            return false;
        if (bytes[k] == 0xC2 && k + 1 < size && bytes[k + 1] < 0xA0)
            return false; /* U+0080..009F */
    }
    return ie__utf8_is_valid((const char *)bytes, size);
}

/* UTF-8 without control characters. Almost all text here is plain ASCII, so eight bytes are looked
 * at together, or sixteen; the last ones overlap those before. */
static inline bool
text_is_good(const unsigned char *bytes, size_t size)
{
    bool is_odd = false;

    if (size >= 16) {
        for (size_t i = 0; i + 16 < size && !is_odd; i += 16)
            is_odd = pair_is_odd(bytes + i);
        is_odd = is_odd || pair_is_odd(bytes + size - 16);
    } else if (size >= 8) {
        is_odd = word_is_odd(ie__load8(bytes)) || word_is_odd(ie__load8(bytes + size - 8));
    } else {
        for (size_t i = 0; i < size; i++)
            is_odd = is_odd || (unsigned char)(bytes[i] - 0x20) >= 0x5F;
    }
    return !is_odd || text_is_good_slow(bytes, size);
}

/* ---- greeting ------------------------------------------------------------------------------- */

void
ie__greeting_put(unsigned char out[IE__GREETING_BYTES], unsigned protocol)
{
    memcpy(out, "\0SP\0\0\0\0\0", IE__GREETING_BYTES);
    ie__put16(out + 4, protocol);
}

unsigned
ie__greeting_get(const unsigned char in[IE__GREETING_BYTES])
{
    return memcmp(in, "\0SP\0", 4) == 0 && in[6] == 0 && in[7] == 0 ? ie__get16(in + 4) : 0;
}

bool
ie__greeting_may_begin(const unsigned char *bytes, size_t size)
{
    static const unsigned char SP[] = {0, 'S', 'P', 0, 0};
    static const unsigned char WEB[] = {'G', 'E', 'T', ' ', '/'};
    const size_t               compared = size < sizeof SP ? size : sizeof SP;

    return memcmp(bytes, SP, compared) == 0 || memcmp(bytes, WEB, compared) == 0;
}

const char *
ie__greeting_guess(const unsigned char *bytes, size_t size)
{
    static const struct {
        const char *begin;
        size_t      size;
        const char *text;
    } KNOWN[] = {
        {"GET ", 4, "not a client of this bus: it speaks HTTP"},
        {"POST", 4, "not a client of this bus: it speaks HTTP"},
        {"HEAD", 4, "not a client of this bus: it speaks HTTP"},
        {"OPTI", 4, "not a client of this bus: it speaks HTTP"},
        {"PRI ", 4, "not a client of this bus: it speaks HTTP/2"},
        {"\x16\x03", 2, "not a client of this bus: it wants TLS (sockets://)"},
        {"SSH-", 4, "not a client of this bus: it speaks SSH"},
        {"AMQP", 4, "not a client of this bus: it speaks AMQP"},
        {"CONN", 4, "not a client of this bus: it speaks the protocol of NATS"},
        {"PING", 4, "not a client of this bus: it speaks the protocol of Redis or NATS"},
        {"*", 1, "not a client of this bus: it speaks the protocol of Redis"},
        {"\x10", 1, "not a client of this bus: it speaks MQTT"},
    };

    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (size >= KNOWN[i].size && memcmp(bytes, KNOWN[i].begin, KNOWN[i].size) == 0)
            return KNOWN[i].text;
    return "not a client of this bus";
}

/* ---- frames --------------------------------------------------------------------------------- */

ie_status
ie__frame_parse(ie__frame *out, unsigned char *message, size_t bytes, ie_error *err)
{
    size_t header;

    if (bytes < IE__HEADER_BYTES)
        return ie_error_set(err, IE_EPROTO, "a message of %zu bytes", bytes);
    if (message[0] != 'e' || message[1] != 'b')
        return ie_error_set(err, IE_EPROTO, "a message that does not start with \"eb\"");
    if (message[2] >> 4 != IE__EB2_VERSION)
        return ie_error_set(err, IE_EPROTO, "a frame of version %d", message[2] >> 4);
    header = (size_t)(message[2] & 15) * 4; /* a longer header is a newer peer's; skip its rest */
    if (header < IE__HEADER_BYTES || header > bytes)
        return ie_error_set(err, IE_EPROTO, "a frame header of %zu bytes", header);
    out->type = message[3];
    out->number = ie__get32(message + 4);
    out->body = message + header;
    out->body_bytes = bytes - header;
    return IE_OK;
}

static ie_status
framer_keep(ie__framer *framer, const unsigned char *bytes, size_t size)
{
    if (framer->capacity - framer->size < size) {
        size_t         capacity = framer->capacity != 0 ? framer->capacity : 256;
        unsigned char *partial;

        while (capacity - framer->size < size)
            capacity *= 2; /* size is at most one read: this ends */
        partial = ie__realloc(framer->partial, capacity);
        if (partial == NULL)
            return IE_ENOMEM;
        framer->partial = partial;
        framer->capacity = capacity;
    }
    memcpy(framer->partial + framer->size, bytes, size);
    framer->size += size;
    return IE_OK;
}

/* How long the unit that starts here is, as far as can be told from size bytes; 0: not yet. */
static ie_status
framer_unit(const ie__framer *framer, const unsigned char *bytes, size_t size, size_t *unit,
            ie_error *err)
{
    uint64_t length;

    *unit = 0;
    if (!framer->is_greeted) {
        *unit = IE__GREETING_BYTES;
        return IE_OK;
    }
    if (size < (size_t)framer->lead + IE__LENGTH_BYTES)
        return IE_OK;
    length = ie__get64(bytes + framer->lead);
    if (length > framer->message_max)
        return ie_error_set(err, IE_ETOOBIG, "a message of %llu bytes; at most %zu are taken",
                            (unsigned long long)length, framer->message_max);
    if (length < IE__HEADER_BYTES && !framer->is_eb1)
        return ie_error_set(err, IE_EPROTO, "a message of %llu bytes", (unsigned long long)length);
    *unit = framer->lead + IE__LENGTH_BYTES + (size_t)length;
    return IE_OK;
}

static ie_status
framer_hand_over(ie__framer *framer, unsigned char *unit, size_t size, const ie__framer_ops *ops,
                 void *user)
{
    const size_t prefix = (size_t)framer->lead + IE__LENGTH_BYTES;

    if (framer->is_greeted)
        return ops->message(user, unit + prefix, size - prefix);
    framer->is_greeted = true;
    return ops->greeting(user, unit);
}

/* Complete the unit that an earlier push began. */
static ie_status
framer_complete(ie__framer *framer, unsigned char **bytes, size_t *size, const ie__framer_ops *ops,
                void *user, ie_error *err)
{
    ie_status status = IE_OK;
    size_t    unit = 0;

    while (*size > 0 && framer->size > 0) {
        size_t take;

        status = framer_unit(framer, framer->partial, framer->size, &unit, err);
        if (status != IE_OK)
            return status;
        take = (unit != 0 ? unit : (size_t)framer->lead + IE__LENGTH_BYTES) - framer->size;
        if (take > *size)
            take = *size;
        if (framer_keep(framer, *bytes, take) != IE_OK)
            return ie_error_set(err, IE_ENOMEM, "no memory for a message");
        *bytes += take;
        *size -= take;
        if (unit == 0) {
            status = framer_unit(framer, framer->partial, framer->size, &unit, err);
            if (status != IE_OK)
                return status;
        }
        if (unit != 0 && framer->size == unit) {
            framer->size = 0;
            status = framer_hand_over(framer, framer->partial, unit, ops, user);
            if (status != IE_OK)
                return status;
        }
    }
    return IE_OK;
}

ie_status
ie__framer_push(ie__framer *framer, unsigned char *bytes, size_t size, const ie__framer_ops *ops,
                void *user, ie_error *err)
{
    ie_status status = framer_complete(framer, &bytes, &size, ops, user, err);

    while (status == IE_OK && size > 0) {
        size_t unit;

        status = framer_unit(framer, bytes, size, &unit, err);
        if (status != IE_OK)
            return status;
        if (unit == 0 || unit > size) {
            if (framer_keep(framer, bytes, size) != IE_OK)
                return ie_error_set(err, IE_ENOMEM, "no memory for a message");
            return IE_OK;
        }
        status = framer_hand_over(framer, bytes, unit, ops, user);
        bytes += unit;
        size -= unit;
    }
    if (status == IE_OK && framer->size == 0 && framer->capacity > 0) {
        ie__free(framer->partial); /* an idle connection holds nothing */
        framer->partial = NULL;
        framer->capacity = 0;
    }
    return status;
}

bool
ie__framer_is_midway(const ie__framer *framer)
{
    return framer->size > 0;
}

void
ie__framer_fini(ie__framer *framer)
{
    ie__free(framer->partial);
    memset(framer, 0, sizeof *framer);
}

/* ---- fields --------------------------------------------------------------------------------- */

ie_status
ie__field_next(ie__field *out, const unsigned char **pos, const unsigned char *end)
{
    const unsigned char *at = *pos;
    size_t               size;

    if (at == end)
        return IE_ENOTFOUND;
    if (end - at < 3)
        return IE_EPROTO;
    size = ie__get16(at + 1);
    if ((size_t)(end - at) - 3 < size)
        return IE_EPROTO;
    out->tag = at[0];
    out->value = at + 3;
    out->size = size;
    *pos = at + 3 + size;
    return IE_OK;
}

ie_status
ie__field_u32(uint32_t *out, const ie__field *field)
{
    if (field->size != 4)
        return IE_EPROTO;
    *out = ie__get32(field->value);
    return IE_OK;
}

ie_status
ie__field_i64(int64_t *out, const ie__field *field)
{
    if (field->size != 8)
        return IE_EPROTO;
    *out = (int64_t)ie__get64(field->value);
    return IE_OK;
}

ie_status
ie__field_text(char *out, size_t max, const ie__field *field)
{
    if (field->size == 0 || field->size > max || !text_is_good(field->value, field->size))
        return IE_EPROTO;
    memcpy(out, field->value, field->size);
    out[field->size] = '\0';
    return IE_OK;
}

void
ie__build_begin(ie__builder *builder, ie_buffer *buffer, ie__frame_type type, uint32_t number)
{
    unsigned char prefix[IE__PREFIX_BYTES];

    builder->buffer = buffer;
    builder->start = buffer->size;
    ie__frame_prefix(prefix, type, number, 0);
    builder->status = ie__buffer_add(buffer, prefix, sizeof prefix);
}

void
ie__build_bytes(ie__builder *builder, const void *bytes, size_t size)
{
    if (builder->status == IE_OK)
        builder->status = ie__buffer_add(builder->buffer, bytes, size);
}

void
ie__build_u32(ie__builder *builder, unsigned tag, uint32_t value)
{
    unsigned char field[7];

    field[0] = (unsigned char)tag;
    ie__put16(field + 1, 4);
    ie__put32(field + 3, value);
    ie__build_bytes(builder, field, sizeof field);
}

void
ie__build_i64(ie__builder *builder, unsigned tag, int64_t value)
{
    unsigned char field[11];

    field[0] = (unsigned char)tag;
    ie__put16(field + 1, 8);
    ie__put64(field + 3, (uint64_t)value);
    ie__build_bytes(builder, field, sizeof field);
}

void
ie__build_text(ie__builder *builder, unsigned tag, const char *text)
{
    const size_t  size = strlen(text);
    unsigned char head[3];

    head[0] = (unsigned char)tag;
    ie__put16(head + 1, (unsigned)size);
    ie__build_bytes(builder, head, sizeof head);
    ie__build_bytes(builder, text, size);
}

ie_status
ie__build_end(ie__builder *builder)
{
    if (builder->status != IE_OK) {
        builder->buffer->size = builder->start;
        return builder->status;
    }
    ie__put64((unsigned char *)builder->buffer->data + builder->start,
              builder->buffer->size - builder->start - IE__LENGTH_BYTES);
    return IE_OK;
}

size_t
ie__reason_frame(unsigned char out[IE__REASON_FRAME_MAX], ie__frame_type type, uint32_t number,
                 uint32_t code, const char *reason)
{
    size_t size = reason != NULL ? strnlen(reason, IE__REASON_BYTES_MAX) : 0;

    if (size != 0)
        size = ie__utf8_valid_prefix(reason, size); /* never cut a character in two */
    ie__frame_prefix(out, type, number, 2 + size);
    ie__put16(out + IE__PREFIX_BYTES, code);
    if (size != 0)
        memcpy(out + IE__PREFIX_BYTES + 2, reason, size);
    return IE__PREFIX_BYTES + 2 + size;
}

ie_status
ie__reason_parse(ie__reason *out, const ie__frame *frame)
{
    size_t size;

    if (frame->body_bytes < 2 || frame->body_bytes - 2 > IE__REASON_BYTES_MAX)
        return IE_EPROTO;
    size = frame->body_bytes - 2;
    out->code = ie__get16(frame->body);
    if (!ie__utf8_is_valid((const char *)frame->body + 2, size))
        return IE_EPROTO;
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = frame->body[2 + i];

        out->text[i] = (char)(c < 0x20 || c == 0x7f ? ' ' : c);
    }
    out->text[size] = '\0';
    return IE_OK;
}

/* ---- event records -------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t      max;
} TEXTS[IE__E_TEXTS + 1] = {
    [IE__E_KEY] = {"key", IE_ATTRIBUTE_BYTES_MAX},
    [IE__E_ID] = {"id", IE_ID_BYTES_MAX},
    [IE__E_TYPE] = {"type", IE_ATTRIBUTE_BYTES_MAX},
    [IE__E_SOURCE] = {"source", IE_ATTRIBUTE_BYTES_MAX},
    [IE__E_SUBJECT] = {"subject", IE_ATTRIBUTE_BYTES_MAX},
    [IE__E_DATASCHEMA] = {"dataschema", IE_ATTRIBUTE_BYTES_MAX},
    [IE__E_CONTENT_TYPE] = {"content type", IE_ATTRIBUTE_BYTES_MAX},
};

static ie_status
record_header(ie__record *record, size_t *total, unsigned char *value, size_t size, ie_error *err)
{
    ie_header     *header = &record->headers[record->header_count];
    unsigned char *end = size > 1 ? memchr(value + 1, 0, size - 1) : NULL;
    ie_header      probe;

    if (record->header_count == IE_HEADERS_MAX)
        return ie_error_set(err, IE_ETOOBIG, "more than %d headers", IE_HEADERS_MAX);
    if (end == NULL || value[0] > IE_HEADER_BOOLEAN)
        return ie_error_set(err, IE_EINVAL, "a header that is not type, name, 00, value");
    header->type = (ie_header_type)value[0];
    header->reserved = 0;
    header->name = (const char *)value + 1;
    header->value = (const char *)end + 1;
    record->value_bytes[record->header_count] = size - (size_t)(end + 1 - value);
    *total += size - 2;
    if (*total > IE_HEADERS_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "headers of more than %d bytes", IE_HEADERS_BYTES_MAX);
    probe = *header;
    probe.type = IE_HEADER_STRING;
    probe.value = "x"; /* the value is not terminated yet */
    if (ie__header_check(&probe, err) != IE_OK)
        return IE_EINVAL;
    if (!text_is_good(end + 1, record->value_bytes[record->header_count]))
        return ie_error_set(err, IE_EINVAL, "header %s: not UTF-8, or a control character",
                            header->name);
    for (size_t i = 0; i < record->header_count; i++)
        if (strcmp(record->headers[i].name, header->name) == 0)
            return ie_error_set(err, IE_EINVAL, "header %s appears twice", header->name);
    record->header_count++;
    return IE_OK;
}

static ie_status
record_number(int64_t *out, const unsigned char *value, size_t size, ie_error *err)
{
    if (size != 8)
        return ie_error_set(err, IE_EINVAL, "a time or position of %zu bytes", size);
    *out = (int64_t)ie__get64(value);
    return IE_OK;
}

static ie_status
text_fault(unsigned tag, size_t size, ie_error *err)
{
    if (size == 0 || size > TEXTS[tag].max)
        return ie_error_set(err, size == 0 ? IE_EINVAL : IE_ETOOBIG, "%s: 1 to %zu bytes, not %zu",
                            TEXTS[tag].name, TEXTS[tag].max, size);
    return ie_error_set(err, IE_EINVAL, "%s: not UTF-8, or a control character", TEXTS[tag].name);
}

static ie_status
record_field(ie__record *record, unsigned tag, unsigned char *value, size_t size, size_t *headers,
             ie_error *err)
{
    switch (tag) {
    case IE__E_TIME: return record_number(&record->time_ms, value, size, err);
    case IE__E_NOT_BEFORE: return record_number(&record->not_before_ms, value, size, err);
    case IE__E_EXPIRES: return record_number(&record->expires_at_ms, value, size, err);
    case IE__E_POSITION: return record_number(&record->position, value, size, err);
    case IE__E_HEADER: return record_header(record, headers, value, size, err);
    default: break;
    }
    if (tag >= IE__FIELD_OPTIONAL)
        return IE_OK;
    return ie_error_set(err, IE_ENOTSUP, "a field with the unknown tag %u", tag);
}

/* Copied, because compilers clear a block of this size in a slow way. */
static const struct {
    _Alignas(ie__record) unsigned char bytes[offsetof(ie__record, headers)];
} NOTHING;

ie_status
ie__record_parse(ie__record *out, unsigned char *bytes, size_t size, size_t data_bytes_max,
                 ie_error *err)
{
    unsigned char       *at = bytes;
    unsigned char *const end = bytes + size;
    size_t               headers = 0;
    uint32_t             seen = 0;

    memcpy(out, &NOTHING, sizeof NOTHING);
    if (size < 2 || at[0] == 0 || (size_t)(end - at) < (size_t)at[0] + 2)
        return ie_error_set(err, IE_EINVAL, "the record is cut off");
    out->topic.bytes = at + 1;
    out->topic.size = at[0];
    at += 1 + (size_t)at[0];
    while (*at != IE__E_END) {
        const unsigned tag = *at;
        size_t         length;
        ie_status      status;

        /* three bytes of the field, its value, and one of what follows: an end or a field */
        if (end - at < 4 || (size_t)(end - at) - 4 < ie__get16(at + 1))
            return ie_error_set(err, IE_EINVAL, "a field of the record is cut off");
        length = ie__get16(at + 1);
        if (tag < 32 && tag != IE__E_HEADER) {
            if ((seen & 1u << tag) != 0)
                return ie_error_set(err, IE_EINVAL, "field %u appears twice", tag);
            seen |= 1u << tag;
        }
        if (tag <= IE__E_TEXTS) {
            if (length == 0 || length > TEXTS[tag].max || !text_is_good(at + 3, length))
                return text_fault(tag, length, err);
            out->texts[tag].bytes = at + 3;
            out->texts[tag].size = length;
        } else {
            status = record_field(out, tag, at + 3, length, &headers, err);
            if (status != IE_OK)
                return status;
        }
        at += 3 + length;
    }
    out->data.bytes = at + 1;
    out->data.size = (size_t)(end - at) - 1;
    if (out->data.size > data_bytes_max)
        return ie_error_set(err, IE_ETOOBIG, "data of %zu bytes; at most %zu are taken",
                            out->data.size, data_bytes_max);
    return IE_OK;
}

/* Every text is followed by a tag that has been read already, so its place can hold the NUL. */
static const char *
span_text(const ie__span *span)
{
    if (span->bytes == NULL)
        return NULL;
    span->bytes[span->size] = '\0';
    return (const char *)span->bytes;
}

void
ie__record_event(ie_event *out, ie__record *record)
{
    memset(out, 0, sizeof *out);
    out->size = sizeof *out;
    out->topic = span_text(&record->topic);
    out->key = span_text(&record->texts[IE__E_KEY]);
    out->id = span_text(&record->texts[IE__E_ID]);
    out->type = span_text(&record->texts[IE__E_TYPE]);
    out->source = span_text(&record->texts[IE__E_SOURCE]);
    out->subject = span_text(&record->texts[IE__E_SUBJECT]);
    out->dataschema = span_text(&record->texts[IE__E_DATASCHEMA]);
    out->content_type = span_text(&record->texts[IE__E_CONTENT_TYPE]);
    out->data = record->data.size != 0 ? record->data.bytes : NULL;
    out->data_bytes = record->data.size;
    out->time_ms = record->time_ms;
    out->not_before_ms = record->not_before_ms;
    out->expires_at_ms = record->expires_at_ms;
    out->position = record->position;
    for (size_t i = 0; i < record->header_count; i++) {
        /* the same bytes, now writable: they lie in the record */
        const size_t offset =
            (size_t)(record->headers[i].value - (const char *)record->topic.bytes);

        record->topic.bytes[offset + record->value_bytes[i]] = '\0';
    }
    out->headers = record->header_count != 0 ? record->headers : NULL;
    out->header_count = record->header_count;
}

void
ie__record_measure(ie__record_plan *out, const ie_event *event)
{
    out->texts[0] = event->topic;
    out->texts[IE__E_KEY] = event->key;
    out->texts[IE__E_ID] = event->id;
    out->texts[IE__E_TYPE] = event->type;
    out->texts[IE__E_SOURCE] = event->source;
    out->texts[IE__E_SUBJECT] = event->subject;
    out->texts[IE__E_DATASCHEMA] = event->dataschema;
    out->texts[IE__E_CONTENT_TYPE] = event->content_type;
    out->sizes[0] = strlen(event->topic);
    out->total = 1 + out->sizes[0] + 1 + event->data_bytes;
    for (unsigned tag = 1; tag <= IE__E_TEXTS; tag++) {
        const char *text = out->texts[tag];

        out->sizes[tag] = text == NULL ? 0 : strlen(text);
        out->total += out->sizes[tag] != 0 ? 3 + out->sizes[tag] : 0;
    }
    out->total += event->time_ms != 0 ? 11 : 0;
    out->total += event->not_before_ms != 0 ? 11 : 0;
    out->total += event->expires_at_ms != 0 ? 11 : 0;
    out->total += event->position != 0 ? 11 : 0;
    for (size_t i = 0; i < event->header_count; i++)
        out->total += 5 + strlen(event->headers[i].name) + strlen(event->headers[i].value);
}

size_t
ie__record_size(const ie_event *event)
{
    ie__record_plan plan;

    ie__record_measure(&plan, event);
    return plan.total;
}

static unsigned char *
put_number(unsigned char *out, unsigned tag, int64_t value)
{
    if (value == 0)
        return out;
    *out = (unsigned char)tag;
    ie__put16(out + 1, 8);
    ie__put64(out + 3, (uint64_t)value);
    return out + 11;
}

unsigned char *
ie__record_write(unsigned char *out, const ie_event *event, const ie__record_plan *plan)
{
    *out++ = (unsigned char)plan->sizes[0];
    memcpy(out, event->topic, plan->sizes[0]);
    out += plan->sizes[0];
    for (unsigned tag = 1; tag <= IE__E_TEXTS; tag++) {
        const size_t size = plan->sizes[tag];

        if (size == 0)
            continue;
        *out = (unsigned char)tag;
        ie__put16(out + 1, (unsigned)size);
        memcpy(out + 3, plan->texts[tag], size);
        out += 3 + size;
    }
    out = put_number(out, IE__E_TIME, event->time_ms);
    out = put_number(out, IE__E_NOT_BEFORE, event->not_before_ms);
    out = put_number(out, IE__E_EXPIRES, event->expires_at_ms);
    out = put_number(out, IE__E_POSITION, event->position);
    for (size_t i = 0; i < event->header_count; i++) {
        const ie_header *header = &event->headers[i];
        const size_t     name = strlen(header->name);
        const size_t     value = strlen(header->value);

        *out = IE__E_HEADER;
        ie__put16(out + 1, (unsigned)(2 + name + value));
        out[3] = (unsigned char)header->type;
        memcpy(out + 4, header->name, name + 1);
        memcpy(out + 5 + name, header->value, value);
        out += 5 + name + value;
    }
    *out++ = IE__E_END;
    if (event->data_bytes != 0)
        memcpy(out, event->data, event->data_bytes);
    return out + event->data_bytes;
}

unsigned char *
ie__record_put(unsigned char *out, const ie_event *event)
{
    ie__record_plan plan;

    ie__record_measure(&plan, event);
    return ie__record_write(out, event, &plan);
}
