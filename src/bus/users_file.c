/* Changing a users_file: a new file takes the old one's place, whole or not at all. */
#include <ie/bus_server.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"
#include "secret.h"
#include "users.h"

static ie_status
put_hex(ie_buffer *out, const unsigned char *bytes, size_t size)
{
    ie_status status = IE_OK;

    for (size_t i = 0; i < size && status == IE_OK; i++)
        status = ie__buffer_printf(out, "%02x", bytes[i]);
    return status;
}

/* Is this line about the user; kind NULL: in whatever way? */
static bool
is_line_of(const char *line, size_t bytes, const char *user, const char *kind)
{
    const size_t name_bytes = strlen(user);
    const size_t kind_bytes = kind != NULL ? strlen(kind) : 0;

    if (bytes <= name_bytes || memcmp(line, user, name_bytes) != 0 || line[name_bytes] != ':')
        return false;
    return kind == NULL || (bytes > name_bytes + 1 + kind_bytes &&
                            memcmp(line + name_bytes + 1, kind, kind_bytes) == 0 &&
                            line[name_bytes + 1 + kind_bytes] == ':');
}

/* The old text with the new line in the place of the old one; added NULL: without the user's. */
static ie_status
edit_text(ie_buffer *out, const ie_buffer *old, const char *user, const char *kind,
          const ie_buffer *added, bool *was_there)
{
    const char *at = old->data;
    const char *end = at != NULL ? at + old->size : NULL;
    ie_status   status = IE_OK;

    *was_there = false;
    while (at != NULL && at < end && status == IE_OK) {
        const char  *next = memchr(at, '\n', (size_t)(end - at));
        const size_t bytes = (size_t)((next != NULL ? next : end) - at);

        if (!is_line_of(at, bytes, user, kind)) {
            status = ie__buffer_add(out, at, bytes);
            if (status == IE_OK)
                status = ie__buffer_text(out, "\n");
        } else if (added != NULL && !*was_there) {
            status = ie__buffer_add(out, added->data, added->size);
        }
        *was_there = *was_there || is_line_of(at, bytes, user, kind);
        at += bytes + 1;
    }
    if (status == IE_OK && added != NULL && !*was_there)
        status = ie__buffer_add(out, added->data, added->size);
    return status;
}

static bool
write_all(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        const ssize_t written = write(fd, bytes, size);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        bytes += written;
        size -= (size_t)written;
    }
    return true;
}

static void
sync_folder(const char *path)
{
    char        folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int         fd;

    (void)snprintf(folder, sizeof folder, "%.*s", slash != NULL ? (int)(slash - path) + 1 : 1,
                   slash != NULL ? path : ".");
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fsync(fd);
    (void)close(fd);
}

/* Read, edit, write beside it, rename. The new file's name is the lock: two at once would lose
 * one's work. */
static ie_status
users_edit(const char *path, const char *user, const char *kind, const ie_buffer *added,
           bool *was_there, ie_error *err)
{
    char       fresh[PATH_MAX];
    ie_buffer  old = {NULL, 0, 0};
    ie_buffer  text = {NULL, 0, 0};
    ie__users *parsed = NULL;
    ie_status  status = IE_OK;
    int        fd;

    if ((size_t)snprintf(fresh, sizeof fresh, "%s.new", path) >= sizeof fresh)
        return ie_error_set(err, IE_EINVAL, "the path of the users_file is too long");
    fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (fd < 0)
        return ie_error_set(err, errno == EEXIST ? IE_EEXIST : IE_EIO, "%s: %s", fresh,
                            errno == EEXIST ? "somebody else is changing the file, or was stopped "
                                              "midway; in that case remove it"
                                            : strerror(errno));
    if (access(path, F_OK) == 0)
        status = ie__secret_file(&old, "users_file", path, true, IE__USERS_FILE_BYTES_MAX, err);
    if (status == IE_OK && old.data != NULL)
        status = ie__users_parse(&parsed, old.data, old.size, path, err); /* not ours to spoil */
    ie__users_free(parsed);
    if (status == IE_OK && edit_text(&text, &old, user, kind, added, was_there) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "no memory for users");
    if (status == IE_OK && added == NULL && !*was_there)
        status = ie_error_set(err, IE_ENOTFOUND, "%s has no user '%s'", path, user);
    if (status == IE_OK && (fchmod(fd, S_IRUSR | S_IWUSR) != 0 ||
                            !write_all(fd, text.data, text.size) || fsync(fd) != 0))
        status = ie_error_set(err, IE_EIO, "%s: %s", fresh, strerror(errno));
    (void)close(fd);
    if (status == IE_OK && rename(fresh, path) != 0)
        status = ie_error_set(err, IE_EIO, "%s: %s", path, strerror(errno));
    if (status == IE_OK)
        sync_folder(path);
    else
        (void)unlink(fresh);
    ie__secret_fini(&old);
    ie__secret_fini(&text);
    return status;
}

static ie_status
check_name(const char *user, ie_error *err)
{
    const char *fault = user != NULL ? ie__user_name_fault(user) : "a user's name is missing";

    return fault != NULL ? ie_error_set(err, IE_EINVAL, "%s", fault) : IE_OK;
}

ie_status
ie_bus_users_set_password(const char *path, const char *user, const char *password, size_t bytes,
                          ie_error *err)
{
    unsigned char salt[IE__SALT_BYTES];
    unsigned char hash[IE__HASH_BYTES];
    ie_buffer     line = {NULL, 0, 0};
    bool          was_there;
    ie_status     status = check_name(user, err);

    if (status != IE_OK)
        return status;
    if (bytes == 0 || bytes > IE__SECRET_BYTES_MAX || memchr(password, '\n', bytes) != NULL ||
        memchr(password, '\r', bytes) != NULL || memchr(password, '\0', bytes) != NULL)
        return ie_error_set(err, IE_EINVAL, "a password is one line of 1 to %d bytes",
                            IE__SECRET_BYTES_MAX);
    ie__random(salt, sizeof salt);
    if (EVP_PBE_scrypt(password, bytes, salt, sizeof salt, IE__SCRYPT_N, IE__SCRYPT_R, IE__SCRYPT_P,
                       UINT64_C(64) << 20, hash, sizeof hash) != 1)
        return ie_error_set(err, IE_ENOMEM, "no memory for hashing a password");
    status = ie__buffer_printf(&line, "%s:scrypt:%u:%u:%u:", user, IE__SCRYPT_N, IE__SCRYPT_R,
                               IE__SCRYPT_P);
    if (status == IE_OK)
        status = put_hex(&line, salt, sizeof salt);
    if (status == IE_OK)
        status = ie__buffer_text(&line, ":");
    if (status == IE_OK)
        status = put_hex(&line, hash, sizeof hash);
    if (status == IE_OK)
        status = ie__buffer_text(&line, "\n");
    if (status == IE_OK)
        status = users_edit(path, user, "scrypt", &line, &was_there, err);
    else
        (void)ie_error_set(err, IE_ENOMEM, "no memory for users");
    ie__secret_wipe(hash, sizeof hash);
    ie__secret_fini(&line);
    return status;
}

ie_status
ie_bus_users_make_token(const char *path, const char *user, char token[IE_BUS_TOKEN_SIZE],
                        ie_error *err)
{
    unsigned char random[(IE_BUS_TOKEN_SIZE - 1) / 2];
    unsigned char hash[IE__HASH_BYTES];
    char          text[IE_BUS_TOKEN_SIZE];
    ie_buffer     line = {NULL, 0, 0};
    bool          was_there;
    ie_status     status = check_name(user, err);

    if (status != IE_OK)
        return status;
    ie__random(random, sizeof random);
    for (size_t i = 0; i < sizeof random; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", random[i]);
    (void)SHA256((const unsigned char *)text, sizeof text - 1, hash);
    status = ie__buffer_printf(&line, "%s:sha256:", user);
    if (status == IE_OK)
        status = put_hex(&line, hash, sizeof hash);
    if (status == IE_OK)
        status = ie__buffer_text(&line, "\n");
    if (status == IE_OK)
        status = users_edit(path, user, "sha256", &line, &was_there, err);
    else
        (void)ie_error_set(err, IE_ENOMEM, "no memory for users");
    if (status == IE_OK)
        memcpy(token, text, sizeof text);
    ie__secret_wipe(text, sizeof text);
    ie__secret_wipe(random, sizeof random);
    ie_buffer_fini(&line);
    return status;
}

ie_status
ie_bus_users_remove(const char *path, const char *user, ie_error *err)
{
    bool            was_there;
    const ie_status status = check_name(user, err);

    return status == IE_OK ? users_edit(path, user, NULL, NULL, &was_there, err) : status;
}
