/*
 * A JSON scanner that builds no tree: is this one valid JSON value (RFC 8259), and where are the
 * members of the top-level object. It agrees with jansson on what is accepted (fuzzed against it,
 * exceptions are listed in json.c).
 */
#ifndef IE_JSON_H
#define IE_JSON_H

#include <ie/base.h>

#define IE__JSON_DEPTH_MAX 128 /* of a value on its own; containers that are walked do not count */

typedef enum ie__json_kind {
    IE__JSON_OBJECT,
    IE__JSON_ARRAY,
    IE__JSON_STRING,
    IE__JSON_NUMBER,
    IE__JSON_TRUE,
    IE__JSON_FALSE,
    IE__JSON_NULL
} ie__json_kind;

typedef struct ie__json_span {
    const char   *start; /* first byte of the value; a string's includes its quote */
    size_t        bytes;
    ie__json_kind kind;
} ie__json_span;

/*
 * Check that the bytes are exactly one JSON value, white space around it allowed. On failure the
 * message gives the byte offset and the cause. Threads: any; no allocation, no recursion.
 */
ie_status ie__json_check(const char *json, size_t bytes, ie_error *err);

/*
 * Walk the members of a top-level object / elements of a top-level array, in order. The input is
 * validated on the way: a walk that ends with IE_OK has seen a valid value to its last byte.
 * For arrays name is NULL. The callback may stop the walk with a failure status, which is
 * returned. Duplicate member names are reported as they come; the caller decides.
 * name is the raw literal between the quotes (escapes not undone).
 */
typedef ie_status (*ie__json_member_fn)(void *user, const char *name, size_t name_bytes,
                                        ie__json_span value, ie_error *err);
ie_status ie__json_walk(const char *json, size_t bytes, ie__json_kind expected,
                        ie__json_member_fn fn, void *user, ie_error *err);

/*
 * Undo a string literal (span with quotes) into out, which has room for span.bytes; *out_bytes
 * gets the length; no terminator. IE_EINVAL for a lone surrogate.
 */
ie_status ie__json_unescape(char *out, size_t *out_bytes, ie__json_span string, ie_error *err);

/*
 * For formats with one JSON text per line: line breaks between the tokens of a valid JSON text (the
 * only place where it can have any) become spaces.
 */
void ie__json_one_line(char *json, size_t bytes);

/* Does the media type carry JSON (application/json, text/json, anything +json)? NULL: yes. */
bool ie__json_is_media_type(const char *content_type);

#endif
