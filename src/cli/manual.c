/* Answers to deliveries, line by line from standard input. */
#include "manual.h"

#include "cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "units.h"

int64_t
manual_add(manual *self, uint64_t token)
{
    if (self->count == self->max) {
        const size_t max = self->max != 0 ? self->max * 2 : 16;
        void        *grown = ie__realloc_array(self->open, max, sizeof *self->open);

        if (grown == NULL)
            return 0;
        self->open = grown;
        self->max = max;
    }
    self->open[self->count].token = token;
    self->open[self->count++].number = ++self->last_number;
    return self->last_number;
}

void
manual_fini(manual *self)
{
    ie__free(self->open);
    memset(self, 0, sizeof *self);
}

/* ---- lines ---- */

bool
manual_wants_input(const manual *self)
{
    return !self->is_at_end && memchr(self->line, '\n', self->line_bytes) == NULL;
}

void
manual_read(manual *self)
{
    ssize_t got;

    if (self->line_bytes == sizeof self->line) { /* no line ends in all of that */
        self->is_too_long = true;
        self->line_bytes = 0;
    }
    got = read(STDIN_FILENO, self->line + self->line_bytes, sizeof self->line - self->line_bytes);
    if (got > 0)
        self->line_bytes += (size_t)got;
    else if (got == 0 || errno != EINTR)
        self->is_at_end = true;
}

bool
manual_is_over(const manual *self)
{
    return self->is_at_end && self->line_bytes == 0;
}

/* ---- what they say ---- */

typedef struct wish {
    const char *verb;
    const char *reason;
    int64_t     number; /* 0: the oldest */
    int64_t     delay_ms;
} wish;

/* The next word, terminated in place; NULL: none. */
static char *
next_word(char **rest)
{
    char *word;

    *rest += strspn(*rest, " \t\r");
    if (**rest == '\0')
        return NULL;
    word = *rest;
    *rest += strcspn(*rest, " \t\r");
    if (**rest != '\0')
        *(*rest)++ = '\0';
    return word;
}

static wish
line_parse(char *line)
{
    wish  out = {.verb = next_word(&line)};
    char *keep;
    char *end;

    line += strspn(line, " \t\r");
    keep = line;
    if (*keep >= '0' && *keep <= '9') {
        out.number = strtoll(keep, &end, 10);
        if (*end == '\0' || *end == ' ' || *end == '\t' || *end == '\r')
            line = end + strspn(end, " \t\r");
        else
            out.number = 0;
    }
    if (out.verb != NULL && strcmp(out.verb, "nack") == 0) {
        char         text[32];
        const size_t size = strcspn(line, " \t\r");

        (void)snprintf(text, sizeof text, "%.*s", (int)(size < 31 ? size : 31), line);
        if (size < sizeof text && ie__duration_parse(text, &out.delay_ms))
            line += size + strspn(line + size, " \t\r");
    }
    for (size_t size = strlen(line); size > 0 && strchr(" \t\r", line[size - 1]) != NULL; size--)
        line[size - 1] = '\0';
    out.reason = *line != '\0' ? line : NULL;
    return out;
}

static size_t
find(const manual *self, int64_t number)
{
    size_t i = 0;

    while (number != 0 && i < self->count && self->open[i].number != number)
        i++;
    return i;
}

/* True: an event was answered. */
static bool
wish_grant(manual *self, ie_bus_client *client, const wish *want)
{
    const size_t i = find(self, want->number);
    uint64_t     token;
    int64_t      number;
    ie_status    status;

    if (i == self->count) {
        cli_say("no event %" PRId64 " waits for an answer", want->number);
        return false;
    }
    token = self->open[i].token;
    number = self->open[i].number;
    if (strcmp(want->verb, "ack") == 0)
        status = ie_bus_client_ack(client, token);
    else
        status = ie_bus_client_nack(
            client, token, strcmp(want->verb, "reject") == 0 ? IE_EREFUSED : IE_EHANDLER,
            want->delay_ms < UINT32_MAX ? (uint32_t)want->delay_ms : UINT32_MAX, want->reason);
    memmove(&self->open[i], &self->open[i + 1], (self->count - i - 1) * sizeof *self->open);
    self->count--;
    if (status != IE_OK)
        cli_say("event %" PRId64 " could not be answered: its connection is gone, and it comes"
                " again",
                number);
    return status == IE_OK;
}

static bool
is_verb(const char *word)
{
    return strcmp(word, "ack") == 0 || strcmp(word, "nack") == 0 || strcmp(word, "reject") == 0;
}

int64_t
manual_apply(manual *self, ie_bus_client *client)
{
    int64_t answered = 0;

    for (;;) {
        char        line[MANUAL_LINE_MAX + 1];
        const char *feed = memchr(self->line, '\n', self->line_bytes);
        size_t      size = feed != NULL ? (size_t)(feed - self->line) : self->line_bytes;
        wish        want;

        if (feed == NULL && (!self->is_at_end || size == 0))
            return answered;
        memcpy(line, self->line, size);
        line[size] = '\0';
        want = line_parse(line);
        if (self->is_too_long) {
            cli_say("a line of more than %d bytes is not understood", MANUAL_LINE_MAX);
            self->is_too_long = false;
        } else if (want.verb != NULL && !is_verb(want.verb)) {
            cli_say("'%.40s' is not understood: ack, nack or reject, then perhaps the event's"
                    " number, for nack a delay such as 5s, and a reason",
                    want.verb);
        } else if (want.verb != NULL) {
            if (want.number == 0 ? self->count == 0 : want.number > self->last_number)
                return answered; /* its event has yet to come */
            answered += wish_grant(self, client, &want);
        }
        size += feed != NULL;
        self->line_bytes -= size;
        memmove(self->line, self->line + size, self->line_bytes);
    }
}
