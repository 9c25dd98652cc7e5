/*
 * eb/2 on the wire: frames, fields, event records. PROTOCOL.md is the specification; this is the
 * only place that knows its bytes. Pure functions over memory, for server, client and fuzzer.
 */
#ifndef IE_WIRE_H
#define IE_WIRE_H

#include <ie/bus.h>

#include <string.h>

/* ---- greeting: 00 'S' 'P' 00, protocol number, 00 00 ---- */
#define IE__GREETING_BYTES 8
#define IE__SP_EB1_BUS     170u
#define IE__SP_EB1_CLIENT  171u
#define IE__SP_EB2_CLIENT  172u
#define IE__SP_EB2_BUS     173u

/* ---- message: u64 length, then "eb", version and header length, type, u32 number, body ---- */
#define IE__LENGTH_BYTES      8
#define IE__HEADER_BYTES      8
#define IE__EB2_VERSION       2u
#define IE__HELLO_MESSAGE_MAX 4096 /* a message before the hello is answered, and the hello */
/* A message without its payload: every other field of an event at its limit, and room. */
#define IE__RECORD_OVERHEAD_MAX 40960u
#define IE__MESSAGE_MAX         (IE_DATA_BYTES_MAX + IE__RECORD_OVERHEAD_MAX)
#define IE__REASON_BYTES_MAX    500

typedef enum ie__frame_type {
    IE__HELLO = 0x01,
    IE__WELCOME = 0x02,
    IE__PING = 0x03,
    IE__PONG = 0x04,
    IE__ERROR = 0x05,
    IE__GOODBYE = 0x06,
    IE__PUBLISH = 0x10,
    IE__PUBACK = 0x11,
    IE__PUBNACK = 0x12,
    IE__SUBSCRIBE = 0x20,
    IE__SUBSCRIBED = 0x21,
    IE__SUBREFUSED = 0x22,
    IE__UNSUBSCRIBE = 0x23,
    IE__UNSUBSCRIBED = 0x24,
    IE__DELIVER = 0x30,     /* to a live subscription */
    IE__DELIVER_ACK = 0x31, /* to be acknowledged */
    IE__ACK = 0x32,
    IE__NACK = 0x33,
    IE__DELIVER_LOG =
        0x34,              /* of a durable group: u32 delivery, u32 attempt, u64 position, record */
    IE__NACK_LATER = 0x35, /* u32 ms, reason */
    IE__QUERY = 0x40,      /* u32 timeout ms, u32 answers wanted (0: all), record */
    IE__ANSWER = 0x41,     /* to the asker: record */
    IE__QUERY_END = 0x42,  /* to the asker: u32 answers, reason */
    IE__QUERY_CANCEL = 0x43,
    IE__ASK = 0x44,     /* to a responder: u32 ask, u32 ms left, record */
    IE__REPLY = 0x45,   /* number: ask; record */
    IE__DECLINE = 0x46, /* number: ask; reason */
    IE__WITHDRAW = 0x47 /* number: ask; the asker does not wait any more */
} ie__frame_type;
#define IE__FRAME_OPTIONAL 0x80u /* a type with this bit is skipped by who does not know it */

/* Flags of PUBLISH are IE_BUS_PUBLISH_*, of SUBSCRIBE IE_BUS_SUBSCRIBE_*. */
#define IE__PUBLISH_FLAGS (IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER | IE_BUS_PUBLISH_PERSISTENT)
#define IE__SUBSCRIBE_FLAGS                                                                        \
    (IE_BUS_SUBSCRIBE_ACK | IE_BUS_SUBSCRIBE_OWN | IE_BUS_SUBSCRIBE_EPHEMERAL)

/* Fields of HELLO and WELCOME. */
enum {
    IE__F_CAPABILITIES = 1,  /* u32 */
    IE__F_NAME = 2,          /* text */
    IE__F_MESSAGE_BYTES = 3, /* u32: the largest message that the sender takes */
    IE__F_PING_MS = 4,       /* u32 */
    IE__F_DATA_BYTES = 5,    /* u32 */
    IE__F_IN_FLIGHT = 6,     /* u32 */
    IE__F_SUBSCRIPTIONS = 7, /* u32 */
    IE__F_CREDIT = 8,        /* u32; also in SUBSCRIBE and SUBSCRIBED */
    IE__F_PATTERN = 9,       /* text, SUBSCRIBE */
    IE__F_GROUP = 10,        /* text, SUBSCRIBE */
    IE__F_FLAGS = 11,        /* u32, SUBSCRIBE */
    IE__F_SELECTION = 12,    /* u32, SUBSCRIBE */
    IE__F_START = 13,        /* u32, SUBSCRIBE */
    IE__F_START_AT = 14,     /* i64, SUBSCRIBE */
    IE__F_ACK_TIMEOUT = 15,  /* u32, SUBSCRIBE */
    IE__F_USER = 16,         /* text, HELLO; WELCOME: who we take the client for */
    IE__F_PASSWORD = 17,     /* bytes, HELLO */
    IE__F_TOKEN = 18,        /* bytes, HELLO */
    IE__F_ATTEMPTS = 32,     /* u32, SUBSCRIBE */
    IE__F_POSITION = 33      /* i64, SUBSCRIBED: where the durable group stands */
};

/* Capabilities in HELLO and WELCOME. */
#define IE__CAP_STORAGE 0x1u /* WELCOME: the bus has a log */
#define IE__CAP_QUERIES 0x2u

/* Set in the count of receivers of PUBACK: stored and synced. */
#define IE__PUBACK_STORED 0x80000000u

/* A flag of SUBSCRIBE beside IE_BUS_SUBSCRIBE_*: this one answers queries, and gets no events. */
#define IE__SUBSCRIBE_ANSWERS 0x80000000u
#define IE__FIELD_OPTIONAL    0x80u /* a tag with this bit is skipped by who does not know it */

/* Fields of an event record, in any order, each once but the header. */
enum {
    IE__E_END = 0,
    IE__E_KEY = 1,
    IE__E_ID = 2,
    IE__E_TYPE = 3,
    IE__E_SOURCE = 4,
    IE__E_SUBJECT = 5,
    IE__E_DATASCHEMA = 6,
    IE__E_CONTENT_TYPE = 7,
    IE__E_TIME = 8,       /* i64 */
    IE__E_NOT_BEFORE = 9, /* i64 */
    IE__E_EXPIRES = 10,   /* i64 */
    IE__E_HEADER = 11,    /* u8 type, name, 00, value */
    IE__E_POSITION = 12   /* i64 */
};
#define IE__E_TEXTS 7 /* tags 1..7 are text */

/* An error without its 252 bytes of text cleared: for what happens with each frame. */
static inline void
ie__error_begin(ie_error *err)
{
    err->status = IE_OK;
    err->message[0] = '\0';
}

/* ---- numbers, big-endian ---- */

static inline void
ie__put16(unsigned char *to, unsigned value)
{
    to[0] = (unsigned char)(value >> 8);
    to[1] = (unsigned char)value;
}

static inline void
ie__put32(unsigned char *to, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(to, &value, sizeof value);
}

static inline void
ie__put64(unsigned char *to, uint64_t value)
{
    value = __builtin_bswap64(value);
    memcpy(to, &value, sizeof value);
}

static inline unsigned
ie__get16(const unsigned char *from)
{
    return (unsigned)from[0] << 8 | from[1];
}

static inline uint32_t
ie__get32(const unsigned char *from)
{
    uint32_t value;

    memcpy(&value, from, sizeof value);
    return __builtin_bswap32(value);
}

static inline uint64_t
ie__get64(const unsigned char *from)
{
    uint64_t value;

    memcpy(&value, from, sizeof value);
    return __builtin_bswap64(value);
}

/* ---- greeting ---- */

void ie__greeting_put(unsigned char out[IE__GREETING_BYTES], unsigned protocol);
/* The peer's protocol number, or 0 when these are no SP bytes. */
unsigned ie__greeting_get(const unsigned char in[IE__GREETING_BYTES]);
/* Can these be the first bytes of a greeting, or of a WebSocket? */
bool ie__greeting_may_begin(const unsigned char *bytes, size_t size);
/* For the log: what a peer that began with these bytes probably took us for. */
const char *ie__greeting_guess(const unsigned char *bytes, size_t size);

/* ---- frames ---- */

typedef struct ie__frame {
    unsigned char *body;
    size_t         body_bytes;
    uint32_t       number;
    uint8_t        type;
} ie__frame;

/* IE_EPROTO with a message: not an eb/2 frame. */
ie_status ie__frame_parse(ie__frame *out, unsigned char *message, size_t bytes, ie_error *err);

/* Length and header of a frame whose body has body_bytes. */
#define IE__PREFIX_BYTES (IE__LENGTH_BYTES + IE__HEADER_BYTES)
static inline void
ie__frame_prefix(unsigned char out[IE__PREFIX_BYTES], ie__frame_type type, uint32_t number,
                 size_t body_bytes)
{
    ie__put64(out, IE__HEADER_BYTES + body_bytes);
    out[8] = 'e';
    out[9] = 'b';
    out[10] = IE__EB2_VERSION << 4 | IE__HEADER_BYTES / 4;
    out[11] = (unsigned char)type;
    ie__put32(out + 12, number);
}

/*
 * Cuts the byte stream into greeting and messages. A message that lies whole in the input is
 * handed over where it lies; only the broken one at the end is copied, into memory that grows
 * with the bytes that came, never with the length that was announced.
 */
typedef struct ie__framer {
    unsigned char *partial;
    size_t         size;
    size_t         capacity;
    size_t         message_max; /* the owner raises it after the hello */
    bool           is_greeted;
    bool           is_eb1; /* a message of any length is handed over */
    uint8_t        lead;   /* bytes in front of each length that mean nothing: eb/1 on unix */
} ie__framer;

/* Both return IE_OK to go on; anything else ends the push and is its result. */
typedef struct ie__framer_ops {
    ie_status (*greeting)(void *user, const unsigned char bytes[IE__GREETING_BYTES]);
    ie_status (*message)(void *user, unsigned char *message, size_t bytes);
} ie__framer_ops;

/* IE_ETOOBIG: a length beyond message_max. IE_EPROTO: one too short to be a frame. */
ie_status ie__framer_push(ie__framer *framer, unsigned char *bytes, size_t size,
                          const ie__framer_ops *ops, void *user, ie_error *err);
/* Is a greeting or a message begun and not ended? */
bool ie__framer_is_midway(const ie__framer *framer);
void ie__framer_fini(ie__framer *framer);

/* ---- fields of control frames ---- */

typedef struct ie__field {
    const unsigned char *value;
    size_t               size;
    uint8_t              tag;
} ie__field;

/* IE_OK: *out is the next one and *pos behind it. IE_ENOTFOUND: the end. IE_EPROTO: broken. */
ie_status ie__field_next(ie__field *out, const unsigned char **pos, const unsigned char *end);
ie_status ie__field_u32(uint32_t *out, const ie__field *field);
ie_status ie__field_i64(int64_t *out, const ie__field *field);
/* Copies text of 1..max bytes, checked and terminated; out has room for max + 1. */
ie_status ie__field_text(char *out, size_t max, const ie__field *field);

/* Frames are built in a buffer: begin, fields, end. Failures stick until end tells. */
typedef struct ie__builder {
    ie_buffer *buffer;
    size_t     start;
    ie_status  status;
} ie__builder;
void ie__build_begin(ie__builder *builder, ie_buffer *buffer, ie__frame_type type, uint32_t number);
void ie__build_bytes(ie__builder *builder, const void *bytes, size_t size);
void ie__build_u32(ie__builder *builder, unsigned tag, uint32_t value);
void ie__build_i64(ie__builder *builder, unsigned tag, int64_t value);
void ie__build_text(ie__builder *builder, unsigned tag, const char *text);
ie_status ie__build_end(ie__builder *builder); /* on failure the buffer is as before begin */

/* PUBNACK, SUBREFUSED, NACK, ERROR, GOODBYE: u16 code, then the reason's text. */
#define IE__REASON_FRAME_MAX (IE__PREFIX_BYTES + 2 + IE__REASON_BYTES_MAX)
size_t ie__reason_frame(unsigned char out[IE__REASON_FRAME_MAX], ie__frame_type type,
                        uint32_t number, uint32_t code, const char *reason);
typedef struct ie__reason {
    uint32_t code;
    char     text[IE__REASON_BYTES_MAX + 1]; /* no control characters: fit for a log */
} ie__reason;
ie_status ie__reason_parse(ie__reason *out, const ie__frame *frame);

/* ---- event records ---- */

typedef struct ie__span {
    unsigned char *bytes; /* NULL: absent */
    size_t         size;
} ie__span;

/* A record taken apart; everything points into it. */
typedef struct ie__record {
    ie__span  topic;
    ie__span  texts[IE__E_TEXTS + 1]; /* by tag */
    ie__span  data;
    int64_t   time_ms;
    int64_t   not_before_ms;
    int64_t   expires_at_ms;
    int64_t   position;
    size_t    header_count;
    ie_header headers[IE_HEADERS_MAX]; /* value is not terminated before ie__record_event() */
    size_t    value_bytes[IE_HEADERS_MAX];
} ie__record;

/*
 * Take a record apart and check all but the topic's syntax (whoever routes does that, once per
 * topic): bounds, UTF-8, no NUL, header names and values, numbers, nothing twice.
 * IE_EINVAL, IE_ETOOBIG or IE_ENOTSUP (a field that must not be skipped).
 */
ie_status ie__record_parse(ie__record *out, unsigned char *bytes, size_t size,
                           size_t data_bytes_max, ie_error *err);

/* The event, borrowing from the record's bytes, which are changed: texts get terminated. */
void ie__record_event(ie_event *out, ie__record *record);

/* How many bytes the record of an event takes. */
size_t ie__record_size(const ie_event *event);
/* Write it; returns the byte behind. The event must have passed ie_event_check(). */
unsigned char *ie__record_put(unsigned char *out, const ie_event *event);

/* The same in two steps that look for the ends of the texts once. */
typedef struct ie__record_plan {
    const char *texts[IE__E_TEXTS + 1]; /* by tag; [0]: the topic */
    size_t      sizes[IE__E_TEXTS + 1]; /* 0: absent */
    size_t      total;
} ie__record_plan;
void           ie__record_measure(ie__record_plan *out, const ie_event *event);
unsigned char *ie__record_write(unsigned char *out, const ie_event *event,
                                const ie__record_plan *plan);

#endif
