/*
 * The rules for single attributes, in one place: ie_event_check(), the stored headers and the
 * CloudEvents decoder and the reader of the log say the same about the same text.
 */
#ifndef IE_ATTRIBUTES_H
#define IE_ATTRIBUTES_H

#include <ie/event.h>

#include "json.h"

/*
 * What is wrong with a value, as a constant that reads on after "subject "; NULL when nothing is.
 * The bytes need no terminator and may contain NUL (which is wrong). *status says which failure.
 */
typedef const char *(*ie__fault_fn)(const char *text, size_t bytes, ie_status *status);

const char *ie__fault_id(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_text(const char *text, size_t bytes, ie_status *status); /* the others */
const char *ie__fault_topic(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_source(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_dataschema(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_content_type(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_header_name(const char *name, size_t bytes);
const char *ie__fault_header_value(ie_header_type type, const char *value, size_t bytes);

/* A name that nobody has checked yet, fit for a message on one line. */
const char *ie__printable_name(char out[IE_HEADER_NAME_BYTES_MAX + 1], const char *name,
                               size_t bytes);

/* A decimal number as an Integer attribute has it: no plus, no leading zero, 32 bits, no "-0". */
bool ie__is_canonical_integer(const char *text, size_t bytes);

/*
 * A JSON member as a header. name has room for IE_HEADER_NAME_BYTES_MAX + 1; the fault is that of
 * the name, whose printable form is there all the same.
 */
const char *ie__header_name_take(char *name, const char *raw, size_t raw_bytes, size_t *bytes);
/* A string value's text to *room, as below, whatever characters it has. */
const char *ie__string_take(char **room, ie__json_span value, size_t *bytes);
/*
 * The value's text goes to *room (at least value.bytes + 1 bytes), which moves past its
 * terminator; type and *bytes say what it is. Null is for the caller to sort out before.
 */
const char *ie__header_value_take(ie_header_type *type, char **room, ie__json_span value,
                                  size_t *bytes);

#define IE__EVENT_NO_TOPIC 1u /* the event comes from elsewhere: topic may be missing */
#define IE__EVENT_NAMED    2u /* id, source and type are required */

/* The event as this build knows it, whoever filled it in. */
ie_status ie__event_import(ie_event *own, const ie_event *event, ie_error *err);
/* ie_event_check() for an event of our own size. */
ie_status ie__event_check(const ie_event *event, unsigned flags, ie_error *err);

#endif
