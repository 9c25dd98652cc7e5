/*
 * Headers as they are stored: one compact JSON object of strings, integers and booleans. The
 * CloudEvents attributes subject and dataschema travel in it too, under their own names.
 */
#ifndef IE_HEADERS_H
#define IE_HEADERS_H

#include <ie/event.h>

/* The largest object that a legal event makes: each byte of a value escaped as two. */
#define IE__HEADERS_STORED_BYTES_MAX                                                               \
    (2 * IE_HEADERS_BYTES_MAX + 4 * IE_ATTRIBUTE_BYTES_MAX + 6 * IE_HEADERS_MAX + 64)

/* Append the object for event's subject, dataschema and headers; nothing when there are none. */
ie_status ie__headers_encode(ie_buffer *out, const ie_event *event);

/*
 * Read a stored object (at most IE__HEADERS_STORED_BYTES_MAX bytes) back, into event->subject,
 * dataschema, headers and header_count. All memory comes from *arena, one block that the caller
 * releases with ie__free(); it is NULL when there was nothing to allocate. Untrusted input is fine:
 * anyone may have written the row. On failure the event is unchanged and the message names the
 * header.
 */
ie_status ie__headers_decode(ie_event *event, void **arena, const char *json, size_t bytes,
                             ie_error *err);

/* How many bytes ie__headers_decode() will need for this object; an upper bound, cheap. */
size_t ie__headers_arena_bytes(size_t json_bytes);
/* As ie__headers_decode() with memory of the caller's, of at least that size, 8-byte aligned. */
ie_status ie__headers_decode_into(ie_event *event, void *arena, const char *json, size_t bytes,
                                  ie_error *err);

/*
 * As ie__headers_decode_into(), for an object that ie__headers_encode() made and nobody could
 * change: a third of the time, since nothing is checked but its form. False, and the event as
 * before, when it has another form or an escape.
 */
bool ie__headers_decode_compact(ie_event *event, void *arena, const char *json, size_t bytes);

/* Is the name one that a header may have: [a-z0-9]{1,64}, none of the attributes' own names? */
ie_status ie__header_check(const ie_header *header, ie_error *err);

#endif
