/* Saying things: errors, tables, JSON, log lines; and what a stranger's text may do to a terminal.
 */
#include "cli.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ie/cloudevents.h>

#include "core.h"
#include "json.h"
#include "look.h"

/* ---- errors ---- */

static void
say(const char *prefix, const char *fmt, va_list args)
{
    char line[4096];

    (void)vsnprintf(line, sizeof line, fmt, args);
    flockfile(stderr);
    (void)fputs(prefix, stderr);
    for (const char *at = line; *at != '\0'; at++) /* rows and peers have a say in these texts */
        (void)fputc((unsigned char)*at < 0x20 || *at == 0x7f ? ' ' : *at, stderr);
    (void)fputc('\n', stderr);
    funlockfile(stderr);
}

void
cli_say(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    say("ie: ", fmt, args);
    va_end(args);
}

void
cli_hint(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    say("hint: ", fmt, args);
    va_end(args);
}

cli_exit
cli_usage(const cli *self, const char *fmt, ...)
{
    char    line[1024];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    cli_say("%s: %s; see 'ie %s --help'", self->command->name, line, self->command->name);
    return CLI_USAGE;
}

cli_exit
cli_exit_of(ie_status status)
{
    switch (status) {
    case IE_OK: return CLI_OK;
    case IE_EINVAL:
    case IE_ETOOBIG: return CLI_USAGE;
    case IE_ENOTFOUND: return CLI_NOT_FOUND;
    case IE_EUNREACHABLE: return CLI_UNREACHABLE;
    default: return CLI_FAILED;
    }
}

cli_exit
cli_fail(const ie_error *error)
{
    cli_say("%s", error->message[0] != '\0' ? error->message : ie_status_text(error->status));
    return cli_exit_of(error->status);
}

/* Has the reader of our pipe gone? What stdio wrote by itself has left no errno that could be
 * trusted. */
static bool
reader_is_gone(void)
{
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};

    return poll(&out, 1, 0) == 1 && (out.revents & (POLLERR | POLLHUP)) != 0;
}

static int write_errno; /* of the first flush that failed */

void
cli_flush(void)
{
    if (fflush(stdout) != 0 && write_errno == 0)
        write_errno = errno;
}

cli_exit
cli_finish(cli_exit code)
{
    cli_flush();
    if ((write_errno == 0 && ferror(stdout) == 0) || reader_is_gone())
        return code;
    cli_say("cannot write to standard output%s%s", write_errno != 0 ? ": " : "",
            write_errno != 0 ? strerror(write_errno) : "");
    return code == CLI_OK ? CLI_FAILED : code;
}

bool
cli_is_terminal(void)
{
    return isatty(STDOUT_FILENO) == 1;
}

static bool
has_colour(void)
{
    const char *term = getenv("TERM");
    const char *no_colour = getenv("NO_COLOR");

    return cli_is_terminal() && (no_colour == NULL || no_colour[0] == '\0') &&
           (term == NULL || strcmp(term, "dumb") != 0);
}

/* ---- log lines ---- */

static int  log_level;
static bool log_is_json;

/* Without memory of its own: a daemon that is short of it still has something to say. */
static void
log_json_text(const char *text)
{
    size_t bytes = strlen(text);

    while (bytes > 0) {
        const size_t good = ie__utf8_valid_prefix(text, bytes);

        for (size_t i = 0; i < good; i++)
            if ((unsigned char)text[i] < 0x20)
                (void)fprintf(stderr, "\\u%04x", (unsigned)text[i]);
            else
                (void)fprintf(stderr, text[i] == '"' || text[i] == '\\' ? "\\%c" : "%c", text[i]);
        text += good;
        bytes -= good;
        if (bytes > 0) {
            (void)fputs("\xEF\xBF\xBD", stderr);
            text++;
            bytes--;
        }
    }
}

static void
log_line(void *user, ie_log_level level, const char *module, const char *message)
{
    static const char *const NAMES[] = {"error", "warn", "info", "debug"};
    char                     utc[IE_TIME_TEXT_SIZE];

    (void)user;
    if ((int)level > log_level || (unsigned)level >= sizeof NAMES / sizeof NAMES[0])
        return;
    ie__time_format(utc, cli_now_ms());
    flockfile(stderr);
    if (log_is_json) {
        (void)fprintf(stderr, "{\"time\":\"%s\",\"level\":\"%s\",\"module\":\"%s\",\"message\":\"",
                      utc, NAMES[level], module);
        log_json_text(message);
        (void)fputs("\"}", stderr);
    } else {
        (void)fprintf(stderr, "%s %-5s %s: ", utc, NAMES[level], module);
        for (const char *at = message; *at != '\0'; at++) /* peers have a say in some texts */
            (void)fputc((unsigned char)*at < 0x20 || *at == 0x7f ? ' ' : *at, stderr);
    }
    (void)fputc('\n', stderr);
    funlockfile(stderr);
}

ie_logger
cli_logger(const cli *self)
{
    const ie_logger logger = {.fn = log_line};
    const char     *format = cli_text(self, "log-format");

    /* What runs once says what it did at its end; the steps are for those who ask. */
    log_level = cli_has(self, "verbose")                          ? IE_LOG_DEBUG
                : cli_has(self, "quiet") || cli_has(self, "once") ? IE_LOG_WARN
                                                                  : IE_LOG_INFO;
    log_is_json = format != NULL && strcmp(format, "json") == 0;
    return logger;
}

/* ---- text ---- */

static size_t
clean_into(char *out, size_t size, const char *text, size_t bytes)
{
    size_t used = 0;

    for (size_t i = 0; i < bytes && used + 5 < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        /* U+0080..U+009F are control characters too, for terminals that decode them. */
        const bool is_c1 = c == 0xC2 && i + 1 < bytes && (unsigned char)text[i + 1] < 0xA0;

        if (c == '\n' || c == '\t' || c == '\r')
            used += (size_t)snprintf(out + used, size - used, "\\%c",
                                     c == '\n'   ? 'n'
                                     : c == '\t' ? 't'
                                                 : 'r');
        else if (c < 0x20 || c == 0x7f || is_c1)
            used += (size_t)snprintf(out + used, size - used, "\\x%02x", c);
        else
            out[used++] = (char)c;
    }
    out[used] = '\0';
    return used;
}

void
cli_print_clean(const char *text, size_t bytes)
{
    char piece[4096];

    for (size_t done = 0; done < bytes; done += 512) {
        const size_t part = bytes - done < 512 ? bytes - done : 512;

        (void)fwrite(piece, 1, clean_into(piece, sizeof piece, text + done, part), stdout);
    }
}

void
cli_time(char out[CLI_TIME_SIZE], int64_t ms)
{
    char text[IE_TIME_TEXT_SIZE];

    if (ms != 0)
        ie__time_format(text, ms);
    (void)snprintf(out, CLI_TIME_SIZE, "%s", ms != 0 ? text : "-");
}

void
cli_span(char out[CLI_SPAN_SIZE], int64_t ms)
{
    ie__look_span(out, ms);
}

int64_t
cli_now_ms(void)
{
    return ie__wall_ms(&ie__system_clock);
}

/* ---- tables ---- */

#define CELL_BYTES_MAX 256

void
cli_table_begin(cli_table *table, const char *const *header, size_t columns)
{
    memset(table, 0, sizeof *table);
    table->columns = columns;
    table->header = header;
}

/* How many columns of a terminal a text takes: its characters, not its bytes. */
static size_t
width_of(const char *text)
{
    size_t width = 0;

    for (; *text != '\0'; text++)
        if (((unsigned char)*text & 0xC0) != 0x80)
            width++;
    return width;
}

void
cli_table_row(cli_table *table, const char *const *cells)
{
    char clean[2 * CELL_BYTES_MAX];

    for (size_t i = 0; i < table->columns; i++) {
        if (!cli_is_terminal()) {
            (void)fputs(i > 0 ? "\t" : "", stdout);
            cli_print_clean(cells[i], strlen(cells[i]));
            continue;
        }
        if (table->cell_count == table->cell_capacity) {
            const size_t capacity = table->cell_capacity != 0 ? 2 * table->cell_capacity : 64;
            char       **grown = ie__realloc_array(table->cells, capacity, sizeof *grown);

            if (grown == NULL)
                return;
            table->cells = grown;
            table->cell_capacity = capacity;
        }
        (void)clean_into(clean, sizeof clean, cells[i], strlen(cells[i]));
        clean[ie__utf8_valid_prefix(clean, strlen(clean))] = '\0';
        table->cells[table->cell_count++] = ie__strdup(clean);
    }
    if (!cli_is_terminal())
        (void)fputc('\n', stdout);
}

static const char *
cell_at(const cli_table *table, size_t row, size_t column)
{
    const size_t index = row * table->columns + column;

    return index < table->cell_count && table->cells[index] != NULL ? table->cells[index] : "";
}

void
cli_table_end(cli_table *table)
{
    size_t       widths[16] = {0};
    const size_t rows = table->columns != 0 ? table->cell_count / table->columns : 0;

    for (size_t column = 0; column < table->columns && column < 16; column++) {
        widths[column] = strlen(table->header[column]);
        for (size_t row = 0; row < rows; row++)
            if (width_of(cell_at(table, row, column)) > widths[column])
                widths[column] = width_of(cell_at(table, row, column));
    }
    for (size_t row = 0; rows > 0 && row <= rows; row++) {
        (void)fputs(row == 0 && has_colour() ? "\033[1m" : "", stdout);
        for (size_t column = 0; column < table->columns && column < 16; column++) {
            const char *cell = row == 0 ? table->header[column] : cell_at(table, row - 1, column);

            (void)printf("%s%s", column > 0 ? "  " : "", cell);
            if (column + 1 < table->columns)
                (void)printf("%*s", (int)(widths[column] - width_of(cell)), "");
        }
        (void)fputs(row == 0 && has_colour() ? "\033[0m\n" : "\n", stdout);
    }
    for (size_t i = 0; i < table->cell_count; i++)
        ie__free(table->cells[i]);
    ie__free(table->cells);
    memset(table, 0, sizeof *table);
}

/* ---- JSON ---- */

/* Memory that runs out in a short-lived program is told and ends it. */
static void
must(ie_status status)
{
    if (status != IE_OK) {
        cli_say("%s", ie_status_text(status));
        _exit(CLI_FAILED);
    }
}

static void
json_text_value(cli_json *json, const char *text, size_t bytes)
{
    ie_buffer valid = {0};

    while (bytes > 0) {
        const size_t good = ie__utf8_valid_prefix(text, bytes);

        must(ie__buffer_add(&valid, text, good));
        text += good;
        bytes -= good;
        if (bytes > 0) {
            must(ie__buffer_add(&valid, "\xEF\xBF\xBD", 3));
            text++;
            bytes--;
        }
    }
    must(ie__buffer_json_string(&json->buffer, valid.data != NULL ? valid.data : "", valid.size));
    ie_buffer_fini(&valid);
}

static void
json_name(cli_json *json, const char *name)
{
    if (json->needs_comma)
        must(ie__buffer_add(&json->buffer, ",", 1));
    json->needs_comma = true;
    if (name != NULL) {
        must(ie__buffer_json_string(&json->buffer, name, strlen(name)));
        must(ie__buffer_add(&json->buffer, ":", 1));
    }
}

void
cli_json_open(cli_json *json, const char *name, char bracket)
{
    json_name(json, name);
    must(ie__buffer_add(&json->buffer, &bracket, 1));
    json->needs_comma = false;
}

void
cli_json_close(cli_json *json, char bracket)
{
    must(ie__buffer_add(&json->buffer, &bracket, 1));
    json->needs_comma = true;
}

void
cli_json_text(cli_json *json, const char *name, const char *text)
{
    if (text == NULL)
        return;
    json_name(json, name);
    json_text_value(json, text, strlen(text));
}

void
cli_json_number(cli_json *json, const char *name, int64_t number)
{
    json_name(json, name);
    must(ie__buffer_printf(&json->buffer, "%lld", (long long)number));
}

void
cli_json_bool(cli_json *json, const char *name, bool value)
{
    json_name(json, name);
    must(ie__buffer_text(&json->buffer, value ? "true" : "false"));
}

void
cli_json_time(cli_json *json, const char *name, int64_t ms)
{
    char text[CLI_TIME_SIZE];

    if (ms == 0)
        return;
    cli_time(text, ms);
    cli_json_text(json, name, text);
}

void
cli_json_raw(cli_json *json, const char *name, const char *bytes, size_t size)
{
    json_name(json, name);
    must(ie__buffer_add(&json->buffer, bytes, size));
}

void
cli_json_event(cli_json *json, const char *name, const ie_event *event)
{
    ie_buffer encoded = {0};
    ie_error  error = IE_ERROR_INIT;

    if (event->data_bytes != 0 && ie__json_is_media_type(event->content_type))
        (void)ie__json_check(event->data, event->data_bytes, &error);
    if (error.status == IE_OK && ie_cloudevents_encode(&encoded, event, &error) == IE_OK) {
        ie__json_one_line(encoded.data, encoded.size);
        cli_json_raw(json, name, encoded.data, encoded.size);
    } else { /* a row that breaks the rules: what can be said of it */
        cli_json_open(json, name, '{');
        cli_json_text(json, "id", event->id);
        cli_json_text(json, "topic", event->topic);
        cli_json_text(json, "error", error.message);
        cli_json_close(json, '}');
    }
    ie_buffer_fini(&encoded);
}

void
cli_json_print(cli_json *json)
{
    (void)fwrite(json->buffer.data, 1, json->buffer.size, stdout);
    (void)fputc('\n', stdout);
    ie_buffer_fini(&json->buffer);
    memset(json, 0, sizeof *json);
}
