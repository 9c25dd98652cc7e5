/* The JSON scanner against jansson, and the walk against the check. */
#include "json.h"

#include <jansson.h>
#include <string.h>

#include "fuzz.h"

static ie_status
look_at_member(void *user, const char *name, size_t name_bytes, ie__json_span value, ie_error *err)
{
    const char *base = user;

    CLAIM(value.bytes > 0 && value.start >= base);
    CLAIM(name == NULL || name[name_bytes] == '"');
    CLAIM(ie__json_check(value.start, value.bytes, err) == IE_OK ||
          strstr(err->message, "nested too deep") != NULL);
    if (value.kind == IE__JSON_STRING) {
        char  *out = malloc(value.bytes);
        size_t bytes = 0;

        CLAIM(out != NULL);
        CLAIM(ie__json_unescape(out, &bytes, value, err) == IE_OK);
        CLAIM(bytes + 2 <= value.bytes);
        free(out);
    }
    ie_error_clear(err);
    return IE_OK;
}

/* Unescaped text must be what jansson made of it. */
static void
compare_text(const char *json, size_t bytes, const json_t *value)
{
    const char   *start = memchr(json, '"', bytes);
    const char   *end = memrchr(json, '"', bytes);
    ie__json_span span;
    char         *out;
    size_t        size = 0;

    CLAIM(start != NULL && end > start);
    span.start = start;
    span.bytes = (size_t)(end - start) + 1;
    span.kind = IE__JSON_STRING;
    out = malloc(span.bytes);
    CLAIM(out != NULL);
    CLAIM(ie__json_unescape(out, &size, span, NULL) == IE_OK);
    CLAIM(size == json_string_length(value));
    CLAIM(memcmp(out, json_string_value(value), size) == 0);
    free(out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char  *json = (const char *)data;
    ie_error     err = IE_ERROR_INIT;
    ie_error     walk_err = IE_ERROR_INIT;
    json_error_t theirs;
    json_t      *value = json_loadb(json, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &theirs);
    const bool   is_valid = ie__json_check(json, size, &err) == IE_OK;
    const bool   is_too_deep = strstr(err.message, "nested too deep") != NULL;

    if (memchr(json, '\0', size) != NULL) {
        CLAIM(!is_valid); /* nowhere legal, but jansson takes one behind the value for the end */
        json_decref(value);
    } else if (value != NULL) {
        CLAIM(is_valid || is_too_deep);
        if (json_is_string(value))
            compare_text(json, size, value);
        if (is_valid && json_is_object(value))
            CLAIM(ie__json_walk(json, size, IE__JSON_OBJECT, look_at_member,
                                (void *)(uintptr_t)json, &walk_err) == IE_OK);
        if (is_valid && json_is_array(value))
            CLAIM(ie__json_walk(json, size, IE__JSON_ARRAY, look_at_member, (void *)(uintptr_t)json,
                                &walk_err) == IE_OK);
        json_decref(value);
    } else {
        const enum json_error_code code = json_error_code(&theirs);

        /* Where jansson stops for reasons of its own it says nothing about the rest. */
        CLAIM(!is_valid || code == json_error_numeric_overflow ||
              code == json_error_null_byte_in_key || code == json_error_stack_overflow);
        if (!is_valid && !is_too_deep) {
            CLAIM(ie__json_walk(json, size, IE__JSON_OBJECT, look_at_member,
                                (void *)(uintptr_t)json, &walk_err) != IE_OK);
            ie_error_clear(&walk_err);
            CLAIM(ie__json_walk(json, size, IE__JSON_ARRAY, look_at_member, (void *)(uintptr_t)json,
                                &walk_err) != IE_OK);
        }
    }
    return 0;
}
