/* Sets of publishers: objects that are passed in, so that two workers or two tests in one process
 * never meet. */
#include <ie/publisher.h>

#include <stdio.h>
#include <string.h>

#include "core.h"
#include "registry.h"

static bool
is_scheme(const char *text, size_t bytes)
{
    if (bytes == 0 || bytes > IE__SCHEME_BYTES_MAX || text[0] < 'a' || text[0] > 'z')
        return false;
    for (size_t i = 1; i < bytes; i++) {
        const char c = text[i];

        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '+' && c != '.' && c != '-')
            return false;
    }
    return true;
}

static const ie__publisher_entry *
entry_find(const ie_publishers *publishers, const char *scheme, size_t bytes)
{
    for (size_t i = 0; i < publishers->count; i++) {
        const ie__publisher_entry *entry = publishers->entries[i];

        if (strlen(entry->scheme) == bytes && memcmp(entry->scheme, scheme, bytes) == 0)
            return entry;
    }
    return NULL;
}

ie_status
ie__publishers_import(ie__publisher_entry *entry, const ie_publishers *publishers,
                      const ie_publisher_ops *ops, ie_error *err)
{
    const ie_status status =
        ie__struct_import(&entry->ops, sizeof entry->ops, ops, IE__PUBLISHER_OPS_SIZE_MIN);
    const char *scheme = entry->ops.scheme;

    if (status == IE_ENOTSUP)
        return ie_error_set(err, status,
                            "the publisher's table is newer than this library and "
                            "uses slots that it lacks");
    if (status != IE_OK)
        return ie_error_set(err, status,
                            "the publisher's table is too small: set its size to "
                            "sizeof(ie_publisher_ops)");
    if (scheme == NULL || !is_scheme(scheme, strnlen(scheme, IE__SCHEME_BYTES_MAX + 1)))
        return ie_error_set(err, IE_EINVAL,
                            "the scheme '%.40s' is not [a-z][a-z0-9+.-]* of at "
                            "most %d bytes",
                            scheme != NULL ? scheme : "", IE__SCHEME_BYTES_MAX);
    if (entry->ops.open == NULL || entry->ops.publish == NULL || entry->ops.close == NULL)
        return ie_error_set(err, IE_EINVAL, "publisher '%s' lacks its %s function", scheme,
                            entry->ops.open == NULL      ? "open"
                            : entry->ops.publish == NULL ? "publish"
                                                         : "close");
    if ((entry->ops.flags & ~IE_PUBLISHER_NONBLOCKING) != 0)
        return ie_error_set(err, IE_ENOTSUP,
                            "publisher '%s' sets flags that this library does "
                            "not know: 0x%x",
                            scheme, (unsigned)(entry->ops.flags & ~IE_PUBLISHER_NONBLOCKING));
    if (entry_find(publishers, scheme, strlen(scheme)) != NULL)
        return ie_error_set(err, IE_EEXIST, "the scheme '%s' is taken", scheme);
    (void)snprintf(entry->scheme, sizeof entry->scheme, "%s", scheme);
    entry->ops.scheme = entry->scheme;
    return IE_OK;
}

ie_status
ie_publishers_new(ie_publishers **out, const ie_publishers *base, ie_error *err)
{
    ie_publishers *publishers = ie__calloc(1, sizeof *publishers);

    if (publishers == NULL)
        return ie_error_set(err, IE_ENOMEM, "new set of publishers: out of memory");
    for (size_t i = 0; base != NULL && i < base->count; i++) {
        const ie_status status = ie_publishers_add(publishers, &base->entries[i]->ops, err);

        if (status != IE_OK) {
            ie_publishers_free(publishers);
            return status;
        }
    }
    *out = publishers;
    return IE_OK;
}

ie_status
ie_publishers_add(ie_publishers *publishers, const ie_publisher_ops *ops, ie_error *err)
{
    ie__publisher_entry *entry;
    ie_status            status;

    if (publishers->count == IE__PUBLISHERS_MAX)
        return ie_error_set(err, IE_EINVAL, "a set holds at most %d publishers",
                            IE__PUBLISHERS_MAX);
    entry = ie__calloc(1, sizeof *entry);
    if (entry == NULL)
        return ie_error_set(err, IE_ENOMEM, "add publisher: out of memory");
    status = ie__publishers_import(entry, publishers, ops, err);
    if (status != IE_OK) {
        ie__free(entry);
        return status;
    }
    publishers->entries[publishers->count++] = entry;
    return IE_OK;
}

ie_status
ie_publishers_find(const ie_publisher_ops **out, const ie_publishers *publishers, const char *url,
                   ie_error *err)
{
    const char                *colon = strchr(url, ':');
    const ie__publisher_entry *entry = NULL;
    char                       scheme[IE__SCHEME_BYTES_MAX + 1] = "";
    char                       known[160] = "";
    size_t                     bytes = 0;

    if (colon == NULL)
        return ie_error_set(err, IE_EINVAL, "not a URL: no scheme in front of a ':'");
    if ((size_t)(colon - url) < sizeof scheme) {
        for (const char *c = url; c < colon; c++) /* schemes know no case (RFC 3986, 3.1) */
            scheme[c - url] = (char)(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
        entry = entry_find(publishers, scheme, strlen(scheme));
    }
    if (entry == NULL) {
        for (size_t i = 0; i < publishers->count && bytes < sizeof known; i++)
            bytes += (size_t)snprintf(known + bytes, sizeof known - bytes, "%s%s",
                                      i != 0 ? ", " : "", publishers->entries[i]->scheme);
        return ie_error_set(err, IE_ENOTFOUND, "no publisher serves '%.*s:'; there are: %s",
                            (int)(colon - url < 40 ? colon - url : 40), url,
                            publishers->count != 0 ? known : "none");
    }
    *out = &entry->ops;
    return IE_OK;
}

void
ie_publishers_free(ie_publishers *publishers)
{
    if (publishers == NULL)
        return;
    for (size_t i = 0; i < publishers->count; i++)
        ie__free(publishers->entries[i]);
    ie__free(publishers);
}
