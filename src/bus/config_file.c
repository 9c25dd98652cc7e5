/* The configuration file: lines of a name and a value, with the place of each fault. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

#define PLACE_SIZE     192
#define PATH_SHOWN_MAX 120
#define NAME_BYTES_MAX 64

typedef struct reader {
    ie_bus_config *config;
    const char    *path;
    const char    *line; /* where it starts */
    const char    *at;
    const char    *end; /* of the line */
    size_t         number;
} reader;

static void
place_at(char out[PLACE_SIZE], const reader *self, const char *at)
{
    const size_t bytes = strlen(self->path);
    const bool   is_long = bytes > PATH_SHOWN_MAX;
    size_t       column = 1; /* in characters, as editors count */

    for (const char *byte = self->line; byte < at; byte++)
        column += ((unsigned char)*byte & 0xC0) != 0x80 ? 1 : 0;
    (void)snprintf(out, PLACE_SIZE, "%s%s:%zu:%zu", is_long ? "..." : "",
                   is_long ? self->path + bytes - PATH_SHOWN_MAX : self->path, self->number,
                   column);
}

static void
fault_at(reader *self, const char *at, const char *what)
{
    char place[PLACE_SIZE];

    place_at(place, self, at);
    ie__config_fault(self->config, place, "%s", what);
}

static bool
is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static void
skip_blanks(reader *self)
{
    while (self->at < self->end && is_blank(*self->at))
        self->at++;
}

static bool
is_at_end(const reader *self)
{
    return self->at == self->end || *self->at == '#';
}

/* ---- words ---------------------------------------------------------------------------------- */

static bool
read_name(reader *self, char name[NAME_BYTES_MAX])
{
    const char *start = self->at;
    size_t      bytes;

    while (self->at < self->end && !is_blank(*self->at) && *self->at != '=' && *self->at != ':' &&
           *self->at != '"')
        self->at++;
    bytes = (size_t)(self->at - start);
    if (bytes == 0) {
        fault_at(self, start, "the name of a setting is missing");
        return false;
    }
    for (size_t i = 0; i < bytes; i++)
        if (!((start[i] >= 'a' && start[i] <= 'z') || (start[i] >= '0' && start[i] <= '9') ||
              start[i] == '_' || start[i] == '-' || (start[i] >= 'A' && start[i] <= 'Z'))) {
            fault_at(self, start + i, "a name consists of a-z, 0-9 and _");
            return false;
        }
    (void)snprintf(name, NAME_BYTES_MAX, "%.*s",
                   (int)(bytes < NAME_BYTES_MAX ? bytes : NAME_BYTES_MAX), start);
    return true;
}

static bool
is_control(char c)
{
    return (unsigned char)c < ' ' || c == 0x7F;
}

/* Up to the closing quote, which is passed. */
static bool
read_quoted(reader *self, char *value, size_t size)
{
    const char *start = self->at++;
    size_t      used = 0;

    for (; self->at < self->end && *self->at != '"'; self->at++) {
        char c = *self->at;

        if (c == '\\') {
            static const char ESCAPES[] = "\"\"\\\\n\nt\t"; /* written, meant */
            const char       *found = NULL;

            for (const char *pair = ESCAPES; *pair != '\0' && self->at + 1 < self->end; pair += 2)
                if (*pair == self->at[1])
                    found = pair;
            if (found == NULL) {
                fault_at(self, self->at, "in quotes there are \\\" \\\\ \\n and \\t only");
                return false;
            }
            c = found[1];
            self->at++;
        } else if (is_control(c) && c != '\t') {
            fault_at(self, self->at, "a control character");
            return false;
        }
        if (used + 1 >= size) {
            fault_at(self, start, "the value is too long");
            return false;
        }
        value[used++] = c;
    }
    if (self->at == self->end) {
        fault_at(self, start, "the closing quote is missing");
        return false;
    }
    self->at++;
    value[used] = '\0';
    return true;
}

static bool
read_word(reader *self, char *value, size_t size)
{
    const char *start = self->at;
    size_t      bytes;

    for (; self->at < self->end && !is_blank(*self->at); self->at++)
        if (is_control(*self->at) || *self->at == '"') {
            fault_at(self, self->at,
                     *self->at == '"' ? "a quote inside of a word; put the whole value into quotes"
                                      : "a control character");
            return false;
        }
    bytes = (size_t)(self->at - start);
    if (bytes >= size) {
        fault_at(self, start, "the value is too long");
        return false;
    }
    memcpy(value, start, bytes);
    value[bytes] = '\0';
    return true;
}

/* ---- lines ---------------------------------------------------------------------------------- */

/* A relative path counts from the folder of the file, wherever the bus was started. */
static bool
path_complete(const reader *self, char *value, size_t size)
{
    const char *slash = strrchr(self->path, '/');
    char        whole[IE__CONFIG_VALUE_BYTES_MAX + 1];
    int         bytes;

    if (slash == NULL || value[0] == '/')
        return true;
    bytes = snprintf(whole, sizeof whole, "%.*s/%s", (int)(slash - self->path), self->path, value);
    if (bytes < 0 || (size_t)bytes >= sizeof whole || (size_t)bytes >= size)
        return false;
    memcpy(value, whole, (size_t)bytes + 1);
    return true;
}

static bool
read_value(reader *self, char *value, size_t size)
{
    const char *extra;

    if (!(*self->at == '"' ? read_quoted(self, value, size) : read_word(self, value, size)))
        return false;
    extra = self->at;
    skip_blanks(self);
    if (is_at_end(self))
        return true;
    fault_at(self, extra == self->at ? extra : self->at,
             extra == self->at ? "a blank is missing after the value"
                               : "one value per line; put one with blanks into double quotes");
    return false;
}

static ie_status
read_line(reader *self, ie_error *err)
{
    char               name[NAME_BYTES_MAX];
    char               value[IE__CONFIG_VALUE_BYTES_MAX + 1];
    char               name_place[PLACE_SIZE];
    char               value_place[PLACE_SIZE];
    const char        *start;
    const ie__setting *setting;

    skip_blanks(self);
    if (is_at_end(self))
        return IE_OK;
    start = self->at;
    if (!read_name(self, name))
        return IE_OK;
    place_at(name_place, self, start);
    setting = ie__config_find(name);
    if (setting == NULL) {
        ie__config_fault_unknown(self->config, name_place, name);
        return IE_OK;
    }
    start = self->at;
    skip_blanks(self);
    if (!is_at_end(self) && (*self->at == '=' || *self->at == ':')) {
        fault_at(self, self->at, "name and value are divided by a blank alone");
        return IE_OK;
    }
    if (is_at_end(self)) {
        place_at(value_place, self, start);
        ie__config_fault(self->config, value_place, "%s: the value is missing", name);
        return IE_OK;
    }
    if (start == self->at) {
        fault_at(self, start, "a blank is missing before the value");
        return IE_OK;
    }
    place_at(value_place, self, self->at);
    if (!read_value(self, value, sizeof value))
        return IE_OK;
    if (setting->kind == IE__SETTING_PATH && value[0] != '\0' &&
        !path_complete(self, value, sizeof value)) {
        ie__config_fault(self->config, value_place, "%s: the path is too long", name);
        return IE_OK;
    }
    return ie__config_take(self->config, setting, IE__CONFIG_FILE, value, name_place, value_place,
                           err);
}

/* The next line; false after the last. */
static bool
next_line(reader *self, const char **rest, const char *end)
{
    const char *feed;

    if (*rest == end)
        return false;
    feed = memchr(*rest, '\n', (size_t)(end - *rest));
    self->line = self->at = *rest;
    self->end = feed != NULL ? feed : end;
    *rest = feed != NULL ? feed + 1 : end;
    self->number++;
    if (self->end > self->line && self->end[-1] == '\r')
        self->end--;
    return true;
}

ie_status
ie__config_read_text(ie_bus_config *config, const char *path, const char *text, size_t bytes,
                     ie_error *err)
{
    static const char MARK[] = "\xEF\xBB\xBF";
    reader            self = {.config = config, .path = path};
    const char       *end = text + bytes;
    const char       *rest = text;
    const char       *nul = memchr(text, '\0', bytes);
    const char       *wrong = text + ie__utf8_valid_prefix(text, bytes);
    ie_status         status = IE_OK;

    if (nul != NULL && nul < wrong)
        wrong = nul;
    if (bytes >= 3 && memcmp(text, MARK, 3) == 0)
        rest += 3;
    while (status == IE_OK && next_line(&self, &rest, end)) {
        if (wrong >= self.line && wrong < rest && wrong < end) {
            fault_at(&self, wrong,
                     wrong == nul ? "a NUL byte; this is no text" : "this is not UTF-8");
            return IE_OK; /* whatever follows, it is not what somebody wrote */
        }
        status = read_line(&self, err);
    }
    return status;
}

/* ---- files ---------------------------------------------------------------------------------- */

static ie_status
read_all(int fd, const char *path, ie_buffer *out, ie_error *err)
{
    for (;;) {
        char          chunk[16384];
        const ssize_t got = read(fd, chunk, sizeof chunk);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return ie_error_set(err, IE_EIO, "%.150s: %s", path,
                                errno == EISDIR ? "is a folder; a file is needed"
                                                : strerror(errno));
        if (got == 0)
            return IE_OK;
        if (out->size + (size_t)got > IE__CONFIG_FILE_BYTES_MAX)
            return ie_error_set(err, IE_EINVAL, "%.150s: longer than %u KiB, no configuration",
                                path, IE__CONFIG_FILE_BYTES_MAX / 1024);
        if (ie__buffer_add(out, chunk, (size_t)got) != IE_OK)
            return ie_error_set(err, IE_ENOMEM, "no memory for a configuration");
    }
}

ie_status
ie__config_read_file(ie_bus_config *config, const char *path, ie_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    ie_buffer text = {0};
    ie_status status;

    if (fd < 0)
        return ie_error_set(err, IE_EIO, "%.150s: %s", path, strerror(errno));
    status = read_all(fd, path, &text, err);
    (void)close(fd);
    if (status == IE_OK && text.size > 0)
        status = ie__config_read_text(config, path, text.data, text.size, err);
    ie_buffer_fini(&text);
    return status;
}
