/*
 * file:///PATH: appends events as CloudEvents JSON, one per line. Invariant: what was reported
 * as delivered is a whole line on stable storage; what was not is cut off again, or found as a
 * torn last line at the next open and cut off then.
 *
 * Options: fsync=false leaves it to the kernel when lines reach the disk (a power cut may then
 * lose lines that were acknowledged).
 */
#include <ie/cloudevents.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"
#include "file_publisher.h"
#include "json.h"
#include "url.h"

#define SLICE_EVENTS   1000     /* events per write and fsync */
#define WRITE_BYTES    4194304  /* a slice of large events is written in parts of about this size */
#define KEEP_BYTES     8388608  /* a larger buffer is given back after the batch */
#define LINE_BYTES_MAX 16777216 /* longer than any line of ours (1 MiB as base64, headers) */
#define OPEN_TRIES     8        /* against someone who keeps moving the file away */

typedef struct file_publisher {
    ie_publisher_env *env;
    int               fd; /* -1: not open, tried again before the next batch */
    bool              is_synced;
    dev_t             device;
    ino_t             inode;
    off_t             size; /* the end of the last good line */
    ie_buffer         lines;
    char              path[IE__URL_BYTES_MAX];
} file_publisher;

static ie_status
file_fail(const file_publisher *file, const char *what, int error, ie_error *err)
{
    return ie_error_set(err, IE_EUNREACHABLE, "%s %s: %s", what, file->path, strerror(error));
}

static void
file_shut(file_publisher *file)
{
    if (file->fd >= 0)
        (void)close(file->fd); /* gives the lock back; what counts was synced before */
    file->fd = -1;
}

/* A new name lasts only once its directory is on disk. */
static ie_status
directory_sync(const file_publisher *file, ie_error *err)
{
    char      folder[sizeof file->path];
    char     *slash;
    int       fd;
    ie_status status = IE_OK;

    memcpy(folder, file->path, sizeof folder);
    slash = strrchr(folder, '/'); /* the path is absolute, so there is one */
    slash[slash == folder ? 1 : 0] = '\0';
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return file_fail(file, "open the directory of", errno, err);
    if (fsync(fd) != 0)
        status = file_fail(file, "sync the directory of", errno, err);
    (void)close(fd);
    return status;
}

/* Open or create, and take the lock. The descriptor stays in file->fd also on failure. */
static ie_status
file_acquire(file_publisher *file, struct stat *st, ie_error *err)
{
    /* O_NONBLOCK: a pipe of that name must not hold us; regular files do not care. */
    const int flags = O_RDWR | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

    file->fd = open(file->path, flags | O_CREAT, 0600);
    if (file->fd < 0)
        return file_fail(file, "open", errno, err);
    if (flock(file->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK ? ie_error_set(err, IE_EUNREACHABLE,
                                                   "%s is locked by another process", file->path)
                                    : file_fail(file, "lock", errno, err);
    if (fstat(file->fd, st) != 0)
        return file_fail(file, "stat", errno, err);
    if (!S_ISREG(st->st_mode))
        return ie_error_set(err, IE_EUNREACHABLE, "%s is not a regular file", file->path);
    return IE_OK;
}

/* Does the name still lead to the file that we hold? */
static bool
file_is_current(const file_publisher *file)
{
    struct stat st;

    return stat(file->path, &st) == 0 && st.st_dev == file->device && st.st_ino == file->inode;
}

/* Where the last line without a newline starts; size when there is none, -1 with errno else. */
static off_t
torn_line_start(const file_publisher *file, off_t size)
{
    char  block[4096];
    off_t end = size;

    while (end > 0 && size - end <= LINE_BYTES_MAX) {
        const size_t  want = end < (off_t)sizeof block ? (size_t)end : sizeof block;
        const ssize_t got = pread(file->fd, block, want, end - (off_t)want);
        const char   *newline;

        if (got != (ssize_t)want) {
            errno = got < 0 ? errno : EIO;
            return -1;
        }
        newline = memrchr(block, '\n', want);
        if (newline != NULL)
            return end - (off_t)want + (newline - block) + 1;
        end -= (off_t)want;
    }
    if (end > 0) {
        errno = EFBIG;
        return -1;
    }
    return 0;
}

/* A crash may leave half a line. It was never acknowledged, so its event comes again. */
static ie_status
torn_line_repair(file_publisher *file, off_t size, ie_error *err)
{
    const off_t start = torn_line_start(file, size);
    char        first;

    if (start < 0 && errno != EFBIG)
        return file_fail(file, "read", errno, err);
    /* Someone's file that only looks like ours must not be cut. */
    if (start < 0 || (start < size && (pread(file->fd, &first, 1, start) != 1 || first != '{')))
        return ie_error_set(err, IE_EUNREACHABLE,
                            "%s ends with something that is not an event; "
                            "end its last line or name another file",
                            file->path);
    if (start < size) {
        if (ftruncate(file->fd, start) != 0)
            return file_fail(file, "cut the torn last line of", errno, err);
        ie_publisher_log(file->env, IE_LOG_WARN, "%s: cut a torn last line of %lld bytes",
                         file->path, (long long)(size - start));
    }
    file->size = start;
    return IE_OK;
}

static ie_status
file_open(file_publisher *file, ie_error *err)
{
    struct stat st;
    ie_status   status = IE_OK;

    for (int tries = 0; tries < OPEN_TRIES; tries++) {
        status = file_acquire(file, &st, err);
        if (status != IE_OK)
            break;
        file->device = st.st_dev;
        file->inode = st.st_ino;
        if (file_is_current(file)) { /* else it was moved between open and lock */
            status = torn_line_repair(file, st.st_size, err);
            if (status == IE_OK && file->size == 0 && file->is_synced)
                status = directory_sync(file, err);
            break;
        }
        file_shut(file);
        status = ie_error_set(tries + 1 == OPEN_TRIES ? err : NULL, IE_EUNREACHABLE,
                              "%s is moved away again and again", file->path);
    }
    if (status != IE_OK)
        file_shut(file);
    return status;
}

/* Open, or open anew what was moved away (log rotation), before a batch. */
static ie_status
file_ready(file_publisher *file, ie_error *err)
{
    if (file->fd >= 0 && !file_is_current(file)) {
        ie_publisher_log(file->env, IE_LOG_INFO, "%s was moved away: opening a new one",
                         file->path);
        file_shut(file);
    }
    return file->fd >= 0 ? IE_OK : file_open(file, err);
}

static ie_status
lines_write(file_publisher *file, ie_error *err)
{
    size_t done = 0;

    while (done < file->lines.size) {
        const ssize_t n = write(file->fd, file->lines.data + done, file->lines.size - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return file_fail(file, "write", errno, err);
        done += (size_t)n;
    }
    file->lines.size = 0;
    return IE_OK;
}

/* Append the events that can be written; the others are answered here and marked. */
static ie_status
slice_write(file_publisher *file, const ie_outgoing *events, size_t count, bool *is_answered,
            ie_error *err)
{
    ie_status status = IE_OK;

    for (size_t i = 0; i < count && status == IE_OK; i++) {
        const size_t start = file->lines.size;
        ie_error     why = IE_ERROR_INIT;

        status = ie_cloudevents_encode(&file->lines, events[i].event, &why);
        if (status == IE_OK) /* the payload may be printed over several lines */
            ie__json_one_line(file->lines.data + start, file->lines.size - start);
        if (status == IE_OK)
            status = ie__buffer_add(&file->lines, "\n", 1);
        if (status == IE_ENOMEM)
            return ie_error_set(err, IE_EUNREACHABLE, "%s: out of memory", file->path);
        if (status != IE_OK) {
            is_answered[i] = true;
            ie_report(file->env, events[i].ticket, IE_REJECTED, why.message);
            status = IE_OK;
        } else if (file->lines.size >= WRITE_BYTES) {
            status = lines_write(file, err);
        }
    }
    if (status == IE_OK)
        status = lines_write(file, err);
    if (status == IE_OK && file->is_synced && fdatasync(file->fd) != 0)
        status = file_fail(file, "sync", errno, err);
    return status;
}

/* Bring the file back to its last good line. After a failed sync nobody knows what the page cache
 * holds, so the next batch starts from a fresh descriptor in any case. */
static void
slice_undo(file_publisher *file)
{
    if (file->fd >= 0 && ftruncate(file->fd, file->size) != 0)
        ie_publisher_log(file->env, IE_LOG_ERROR,
                         "%s: cannot cut back to %lld bytes: %s; its "
                         "last lines may come twice",
                         file->path, (long long)file->size, strerror(errno));
    file_shut(file);
}

static void
slice_publish(file_publisher *file, const ie_outgoing *events, size_t count)
{
    bool        is_answered[SLICE_EVENTS] = {false};
    ie_error    err = IE_ERROR_INIT;
    ie_status   status = file_ready(file, &err);
    struct stat st;

    file->lines.size = 0;
    if (status == IE_OK) {
        status = slice_write(file, events, count, is_answered, &err);
        if (status == IE_OK && fstat(file->fd, &st) != 0)
            status = file_fail(file, "stat", errno, &err);
        if (status == IE_OK)
            file->size = st.st_size;
        else
            slice_undo(file);
    }
    for (size_t i = 0; i < count; i++)
        if (!is_answered[i])
            ie_report(file->env, events[i].ticket, status == IE_OK ? IE_DELIVERED : IE_UNREACHABLE,
                      status == IE_OK ? NULL : err.message);
}

static void
file_publisher_publish(void *self, const ie_outgoing *events, size_t count)
{
    file_publisher *file = self;

    for (size_t i = 0; i < count; i += SLICE_EVENTS)
        slice_publish(file, events + i, count - i < SLICE_EVENTS ? count - i : SLICE_EVENTS);
    if (file->lines.capacity > KEEP_BYTES)
        ie_buffer_fini(&file->lines);
}

static void
file_publisher_close(void *self)
{
    file_publisher *file = self;

    file_shut(file);
    ie_buffer_fini(&file->lines);
    ie__free(file);
}

static ie_status
file_publisher_open(void **self, const char *url, ie_publisher_env *env, ie_error *err)
{
    static const char *const OPTIONS[] = {"fsync", NULL};
    file_publisher          *file = NULL;
    ie__url                  parsed;
    ie_error                 why = IE_ERROR_INIT;
    bool                     is_synced;
    ie_status                status = ie__url_parse(&parsed, url, err);

    if (status == IE_OK)
        status = ie__url_known_options(&parsed, OPTIONS, err);
    if (status == IE_OK)
        status = ie__url_option_bool(&is_synced, &parsed, "fsync", true, err);
    if (status != IE_OK)
        return status;
    if (parsed.host[0] != '\0' || parsed.path[0] != '/' || parsed.path[1] == '\0' ||
        strlen(parsed.path) >= sizeof file->path)
        return ie_error_set(err, IE_EINVAL, "a file is named file:///ABSOLUTE/PATH");
    file = ie__calloc(1, sizeof *file);
    if (file == NULL)
        return ie_error_set(err, IE_ENOMEM, "%s: out of memory", parsed.path);
    file->env = env;
    file->fd = -1;
    file->is_synced = is_synced;
    memcpy(file->path, parsed.path, strlen(parsed.path) + 1);
    /* The path may come later (a disk to be mounted, a lock to be given back). */
    if (file_open(file, &why) != IE_OK)
        ie_publisher_log(env, IE_LOG_WARN, "%s", why.message);
    *self = file;
    return IE_OK;
}

const ie_publisher_ops ie__publisher_file = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "file",
    .open = file_publisher_open,
    .publish = file_publisher_publish,
    .close = file_publisher_close,
};
