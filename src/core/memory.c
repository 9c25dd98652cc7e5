/* The one door to the heap, and the buffers that grow through it. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static _Atomic uint64_t fail_at;      /* 0: off; else counts down to 1 */
static atomic_bool      fail_sticky;
static _Atomic uint64_t fail_count;

static bool
allocation_must_fail(void)
{
    uint64_t n = atomic_load_explicit(&fail_at, memory_order_relaxed);

    while (n != 0) {
        const uint64_t next = n > 1 ? n - 1 : (atomic_load(&fail_sticky) ? 1 : 0);

        if (atomic_compare_exchange_weak(&fail_at, &n, next)) {
            if (n != 1)
                return false;
            atomic_fetch_add(&fail_count, 1);
            return true;
        }
    }
    return false;
}

void
ie__alloc_fail_at(uint64_t n, bool sticky)
{
    atomic_store(&fail_sticky, sticky);
    atomic_store(&fail_count, 0);
    atomic_store(&fail_at, n);
}

uint64_t
ie__alloc_failed(void)
{
    return atomic_load(&fail_count);
}

void *
ie__alloc(size_t bytes)
{
    return allocation_must_fail() ? NULL : malloc(bytes != 0 ? bytes : 1);
}

void *
ie__calloc(size_t count, size_t bytes)
{
    if (count == 0 || bytes == 0)
        count = bytes = 1;
    return allocation_must_fail() ? NULL : calloc(count, bytes);
}

void *
ie__realloc(void *old, size_t bytes)
{
    return allocation_must_fail() ? NULL : realloc(old, bytes != 0 ? bytes : 1);
}

void *
ie__realloc_array(void *old, size_t count, size_t bytes)
{
    if (bytes != 0 && count > SIZE_MAX / bytes)
        return NULL;
    return ie__realloc(old, count * bytes);
}

char *
ie__strdup(const char *text)
{
    size_t size;
    char  *copy;

    if (text == NULL)
        return NULL;
    size = strlen(text) + 1;
    copy = ie__alloc(size);
    if (copy != NULL)
        memcpy(copy, text, size);
    return copy;
}

void
ie__free(void *memory)
{
    free(memory);
}

void
ie_buffer_fini(ie_buffer *buffer)
{
    if (buffer == NULL)
        return;
    ie__free(buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

ie_status
ie__buffer_reserve(ie_buffer *buffer, size_t more)
{
    size_t capacity = buffer->capacity != 0 ? buffer->capacity : 256;
    char  *data;

    if (more <= buffer->capacity - buffer->size)
        return IE_OK;
    if (more > SIZE_MAX / 2 - buffer->size)
        return IE_ENOMEM;
    while (capacity - buffer->size < more)
        capacity *= 2;
    data = ie__realloc(buffer->data, capacity);
    if (data == NULL)
        return IE_ENOMEM;
    buffer->data = data;
    buffer->capacity = capacity;
    return IE_OK;
}

ie_status
ie__buffer_add(ie_buffer *buffer, const void *bytes, size_t size)
{
    if (size == 0)
        return IE_OK;
    if (ie__buffer_reserve(buffer, size) != IE_OK)
        return IE_ENOMEM;
    memcpy(buffer->data + buffer->size, bytes, size);
    buffer->size += size;
    return IE_OK;
}

ie_status
ie__buffer_text(ie_buffer *buffer, const char *text)
{
    return ie__buffer_add(buffer, text, strlen(text));
}

ie_status
ie__buffer_printf(ie_buffer *buffer, const char *fmt, ...)
{
    va_list args;
    int     size;

    va_start(args, fmt);
    size = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (size < 0)
        return IE_EINVAL;
    if (ie__buffer_reserve(buffer, (size_t)size + 1) != IE_OK)
        return IE_ENOMEM;
    va_start(args, fmt);
    (void)vsnprintf(buffer->data + buffer->size, (size_t)size + 1, fmt, args);
    va_end(args);
    buffer->size += (size_t)size; /* the terminator is not part of the content */
    return IE_OK;
}

ie_status
ie__buffer_json_string(ie_buffer *buffer, const char *text, size_t bytes)
{
    static const char HEX[] = "0123456789abcdef";
    size_t            start = 0;

    /* Six bytes per input byte is the worst case; one check instead of one per byte. */
    if (bytes > SIZE_MAX / 8 || ie__buffer_reserve(buffer, 6 * bytes + 2) != IE_OK)
        return IE_ENOMEM;
    buffer->data[buffer->size++] = '"';
    for (size_t i = 0; i < bytes; i++) {
        const unsigned char c = (unsigned char)text[i];
        char                escape = 0;

        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        memcpy(buffer->data + buffer->size, text + start, i - start);
        buffer->size += i - start;
        start = i + 1;
        switch (c) {
        case '"':
        case '\\': escape = (char)c; break;
        case '\b': escape = 'b'; break;
        case '\f': escape = 'f'; break;
        case '\n': escape = 'n'; break;
        case '\r': escape = 'r'; break;
        case '\t': escape = 't'; break;
        default: break;
        }
        buffer->data[buffer->size++] = '\\';
        if (escape != 0) {
            buffer->data[buffer->size++] = escape;
        } else {
            memcpy(buffer->data + buffer->size, "u00", 3);
            buffer->data[buffer->size + 3] = HEX[c >> 4];
            buffer->data[buffer->size + 4] = HEX[c & 15];
            buffer->size += 5;
        }
    }
    memcpy(buffer->data + buffer->size, text + start, bytes - start);
    buffer->size += bytes - start;
    buffer->data[buffer->size++] = '"';
    return IE_OK;
}
