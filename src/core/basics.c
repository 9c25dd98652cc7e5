/* Status texts, errors, the log callback, the version, and structs that grow. */
#include <ie/base.h>

#include <stdio.h>
#include <string.h>

#include "core.h"

#define IE_TEXT_(x) #x
#define IE_TEXT(x) IE_TEXT_(x)

const char *
ie_status_name(ie_status status)
{
    switch (status) {
#define IE_STATUS_NAME(name, value, text)                                                          \
    case name:                                                                                     \
        return #name;
        IE_STATUS_MAP(IE_STATUS_NAME)
#undef IE_STATUS_NAME
    }
    return "IE_?";
}

const char *
ie_status_text(ie_status status)
{
    switch (status) {
#define IE_STATUS_TEXT(name, value, text)                                                          \
    case name:                                                                                     \
        return text;
        IE_STATUS_MAP(IE_STATUS_TEXT)
#undef IE_STATUS_TEXT
    }
    return "unknown status";
}

ie_status
ie_error_set(ie_error *err, ie_status status, const char *fmt, ...)
{
    va_list args;

    if (err == NULL || err->status != IE_OK)
        return status;
    err->status = status;
    va_start(args, fmt);
    (void)vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    return status;
}

void
ie_error_clear(ie_error *err)
{
    if (err != NULL) {
        err->status = IE_OK;
        err->message[0] = '\0';
    }
}

const char *
ie_version(void)
{
    return IE_TEXT(IE_VERSION_MAJOR) "." IE_TEXT(IE_VERSION_MINOR) "." IE_TEXT(IE_VERSION_PATCH);
}

void
ie__log(const ie_logger *logger, ie_log_level level, const char *module, const char *fmt, ...)
{
    char    line[1024];
    va_list args;

    if (logger == NULL || logger->fn == NULL)
        return;
    va_start(args, fmt);
    (void)vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    logger->fn(logger->user, level, module, line);
}

ie_status
ie__struct_import(void *dst, size_t dst_size, const void *src, size_t size_min)
{
    const unsigned char *bytes = src;
    size_t               size;

    memcpy(&size, src, sizeof size); /* every such struct starts with its size */
    if (size < size_min)
        return IE_EINVAL;
    for (size_t i = dst_size; i < size; i++)
        if (bytes[i] != 0)
            return IE_ENOTSUP; /* a newer caller uses a field that we lack */
    memcpy(dst, src, size < dst_size ? size : dst_size); /* the rest keeps its defaults */
    memcpy(dst, &dst_size, sizeof dst_size);
    return IE_OK;
}
