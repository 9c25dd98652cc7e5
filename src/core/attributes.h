/*
 * The rules for single attributes, in one place: ie_event_check(), the stored headers and the
 * CloudEvents decoder say the same about the same text. Private to src/core.
 */
#ifndef IE_ATTRIBUTES_H
#define IE_ATTRIBUTES_H

#include <ie/event.h>

/*
 * What is wrong with a value, as a constant that reads on after "subject "; NULL when nothing is.
 * The bytes need no terminator and may contain NUL (which is wrong). *status says which failure.
 */
typedef const char *(*ie__fault_fn)(const char *text, size_t bytes, ie_status *status);

const char *ie__fault_id(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_text(const char *text, size_t bytes, ie_status *status); /* type, subject, key */
const char *ie__fault_source(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_dataschema(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_content_type(const char *text, size_t bytes, ie_status *status);
const char *ie__fault_header_name(const char *name, size_t bytes);
const char *ie__fault_header_value(ie_header_type type, const char *value, size_t bytes);

/* A decimal number as an Integer attribute has it: no plus, no leading zero, 32 bits, no "-0". */
bool ie__is_canonical_integer(const char *text, size_t bytes);

#define IE__EVENT_NO_TOPIC 1u   /* the event comes from elsewhere: topic may be missing */
#define IE__EVENT_JSON_SEEN 2u  /* JSON data has been scanned already */
#define IE__EVENT_NAMED 4u      /* id, source and type are required */

/* ie_event_check() for an event of our own size. */
ie_status ie__event_check(const ie_event *event, unsigned flags, ie_error *err);

#endif
