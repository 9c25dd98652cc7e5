/**
 * @file
 * The event: a fact that was stored. A CloudEvents 1.0 event plus topic and key.
 */
#ifndef IE_EVENT_H
#define IE_EVENT_H

#include <ie/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Limits. A value at the limit passes, one past it is refused with IE_EINVAL or IE_ETOOBIG. */
#define IE_TOPIC_BYTES_MAX       255
#define IE_ID_BYTES_MAX          255
#define IE_ATTRIBUTE_BYTES_MAX   2048 /* source, type, subject, dataschema, content_type, key */
#define IE_HEADERS_MAX           64
#define IE_HEADER_NAME_BYTES_MAX 64
#define IE_HEADERS_BYTES_MAX     16384   /* names and values of one event together */
#define IE_DATA_BYTES_MAX        1048576 /* 1 MiB */

#define IE_ID_SIZE 37 /* a UUID as text with its terminator */

/** How a header's value is written in CloudEvents JSON; the text is canonical either way. */
typedef enum ie_header_type {
    IE_HEADER_STRING = 0,
    IE_HEADER_INTEGER = 1, /* "-2147483648" .. "2147483647" */
    IE_HEADER_BOOLEAN = 2  /* "true" or "false" */
} ie_header_type;

/** An extension attribute of CloudEvents: name [a-z0-9]{1,64}, value without control characters. */
typedef struct ie_header {
    const char    *name;
    const char    *value;
    ie_header_type type;
    uint32_t       reserved; /* 0 */
} ie_header;

/**
 * An event as the caller fills it in, or as the library hands it over.
 *
 * Start from IE_EVENT_INIT (or set size and leave the rest zero); NULL and 0 mean
 * "not given". All text is UTF-8, NUL-terminated. The struct borrows everything it
 * points to.
 */
typedef struct ie_event {
    size_t      size;         /* sizeof(ie_event) where this was compiled */
    const char *topic;        /* required: dotted name, no wildcards, 1..255 bytes */
    const char *key;          /* order is kept among events of one key; CloudEvents partitionkey */
    const char *id;           /* made (UUIDv7) when NULL; source + id name an event for ever */
    const char *type;         /* NULL: the topic */
    const char *source;       /* NULL: the outbox's source */
    const char *subject;      /* optional CloudEvents attribute */
    const char *dataschema;   /* optional, absolute URI */
    const char *content_type; /* NULL: application/json, and then data must be one JSON value */
    const void *data;         /* opaque bytes; NULL with data_bytes 0: no data */
    size_t      data_bytes;   /* 0..IE_DATA_BYTES_MAX */
    const ie_header *headers; /* extension attributes */
    size_t           header_count;  /* 0..IE_HEADERS_MAX */
    int64_t          time_ms;       /* UTC; 0: now */
    int64_t          not_before_ms; /* UTC; 0: at once */
    int64_t          expires_at_ms; /* UTC; 0: never; not sent once this has passed */
    int64_t          position;      /* set by the library when read from a log; else 0 */
    const char      *dedupe_key;    /* ie_publish() only: refused with IE_EEXIST while an event with
                                     * the same dedupe key is still in the log; never sent */
} ie_event;

#define IE_EVENT_INIT                                                                              \
    {                                                                                              \
        .size = sizeof(ie_event)                                                                   \
    }

/**
 * Check everything about an event that ie_publish() would check.
 *
 * @return IE_OK, IE_EINVAL or IE_ETOOBIG; the message names the field and the cause.
 * Threads: any. Blocks: no.
 */
IE_API ie_status ie_event_check(const ie_event *event, ie_error *err);

/**
 * A deep copy in one block of memory.
 *
 * @param[out] out  transferred: release with ie_event_free(). Untouched on failure.
 * @return IE_OK, IE_EINVAL (size too small) or IE_ENOMEM. Threads: any.
 */
IE_API ie_status ie_event_copy(ie_event **out, const ie_event *event, ie_error *err);

/** Release what ie_event_copy() or a decoder made. NULL is accepted. Threads: any. */
IE_API void ie_event_free(ie_event *event);

/** The value of header @p name, or NULL. Threads: any. */
IE_API const char *ie_event_header(const ie_event *event, const char *name);

/**
 * A new UUIDv7 as lower-case text (RFC 9562, 5.7): ascending within the process, random
 * bits from getrandom(2). Never the same twice, also after fork(). Threads: any.
 */
IE_API void ie_id_new(char out[IE_ID_SIZE]);

/**
 * Is this a topic that events may be published to: UTF-8, 1..255 bytes, words divided by
 * '.', no empty word, no control or white-space character, no '*' or '>'.
 * @return IE_OK or IE_EINVAL. Threads: any.
 */
IE_API ie_status ie_topic_check(const char *topic, ie_error *err);

/**
 * Is this a pattern to subscribe with: as a topic, but a word may be '*' (any one word) and
 * the last word may be '>' (one or more words).
 * @return IE_OK or IE_EINVAL. Threads: any.
 */
IE_API ie_status ie_pattern_check(const char *pattern, ie_error *err);

/** Does the topic match the pattern? Both must have passed their check. Threads: any. */
IE_API bool ie_pattern_matches(const char *pattern, const char *topic);

#ifdef __cplusplus
}
#endif
#endif
