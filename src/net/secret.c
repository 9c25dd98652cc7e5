/* Reading files that hold secrets. */
#include "secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

void
ie__secret_wipe(void *bytes, size_t size)
{
    OPENSSL_cleanse(bytes, size);
}

void
ie__secret_fini(ie_buffer *buffer)
{
    if (buffer->data != NULL)
        ie__secret_wipe(buffer->data, buffer->capacity);
    ie_buffer_fini(buffer);
}

static ie_status
secret_check(const struct stat *st, const char *what, const char *path, bool is_private,
             ie_error *err)
{
    const unsigned mode = (unsigned)st->st_mode & 0777;

    if (!S_ISREG(st->st_mode))
        return ie_error_set(err, IE_EINVAL, "%s %s is %s, not a file", what, path,
                            S_ISDIR(st->st_mode) ? "a directory" : "something special");
    if (is_private && (mode & 077) != 0)
        return ie_error_set(err, IE_EDENIED,
                            "%s %s is open to others (mode %04o); close it with: chmod 600 %s",
                            what, path, mode, path);
    if ((mode & 022) != 0)
        return ie_error_set(err, IE_EDENIED,
                            "%s %s can be changed by others (mode %04o); close it with: "
                            "chmod go-w %s",
                            what, path, mode, path);
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return ie_error_set(err, IE_EDENIED, "%s %s belongs to somebody else (user id %u)", what,
                            path, (unsigned)st->st_uid);
    return IE_OK;
}

ie_status
ie__secret_open(int *fd, const char *what, const char *path, bool is_private, ie_error *err)
{
    const int   opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    ie_status   status;

    if (opened < 0)
        return ie_error_set(err, errno == EACCES ? IE_EDENIED : IE_EIO, "%s %s: %s", what, path,
                            strerror(errno));
    if (fstat(opened, &st) != 0)
        status = ie_error_set(err, IE_EIO, "%s %s: %s", what, path, strerror(errno));
    else
        status = secret_check(&st, what, path, is_private, err);
    if (status != IE_OK) {
        (void)close(opened);
        return status;
    }
    *fd = opened;
    return IE_OK;
}

ie_status
ie__secret_file(ie_buffer *out, const char *what, const char *path, bool is_private,
                size_t bytes_max, ie_error *err)
{
    ie_buffer buffer = {NULL, 0, 0};
    ie_status status;
    int       fd = -1;

    status = ie__secret_open(&fd, what, path, is_private, err);
    if (status != IE_OK)
        return status;
    /* At once: growing would leave copies behind. */
    if (ie__buffer_reserve(&buffer, bytes_max + 2) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "%s: no memory", what);
    while (status == IE_OK) {
        const ssize_t got = read(fd, buffer.data + buffer.size, bytes_max + 1 - buffer.size);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            status = ie_error_set(err, IE_EIO, "%s %s: %s", what, path, strerror(errno));
        else if (got == 0)
            break;
        else
            buffer.size += (size_t)got;
        if (status == IE_OK && buffer.size > bytes_max)
            status = ie_error_set(err, IE_ETOOBIG, "%s %s is larger than %zu bytes", what, path,
                                  bytes_max);
    }
    (void)close(fd);
    if (status != IE_OK) {
        ie__secret_fini(&buffer);
        return status;
    }
    buffer.data[buffer.size] = '\0';
    *out = buffer;
    return IE_OK;
}

ie_status
ie__secret_line(ie_buffer *out, const char *what, const char *path, ie_error *err)
{
    ie_buffer buffer = {NULL, 0, 0};
    ie_status status = ie__secret_file(&buffer, what, path, true, 65536, err);
    size_t    bytes;

    if (status != IE_OK)
        return status;
    bytes = strcspn(buffer.data, "\r\n"); /* also ends at a NUL */
    if (bytes == 0 || bytes > IE__SECRET_BYTES_MAX || strlen(buffer.data) != buffer.size) {
        ie__secret_fini(&buffer);
        return ie_error_set(err, IE_EINVAL,
                            "%s %s: its first line has to be a text of 1 to %d bytes", what, path,
                            IE__SECRET_BYTES_MAX);
    }
    ie__secret_wipe(buffer.data + bytes, buffer.size - bytes);
    buffer.size = bytes;
    *out = buffer;
    return IE_OK;
}
