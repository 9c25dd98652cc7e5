/* ie why: one sentence, what it was concluded from, the next command. */
#include "cli.h"

#include <stdio.h>
#include <string.h>

const cli_flag cli_why_flags[] = {
    {.name = "db", .value = "DB", .help = "the database (required)"},
    {.name = "cursor", .value = "NAME", .help = "only this destination"},
    {.name = "json", .help = "one JSON array, an answer per destination"},
    {.name = NULL},
};

typedef struct telling {
    cli_json json;
    bool     is_json;
    int      count;
} telling;

static void
line(const char *label, const char *text)
{
    (void)fputs(label, stdout);
    cli_print_clean(text, strlen(text));
    (void)fputc('\n', stdout);
}

static void
tell(void *user, const ie_why *why)
{
    telling *to = user;

    to->count++;
    if (to->is_json) {
        cli_json_open(&to->json, NULL, '{');
        cli_json_text(&to->json, "code", why->code_name);
        cli_json_text(&to->json, "cursor", why->cursor[0] != '\0' ? why->cursor : NULL);
        cli_json_text(&to->json, "sentence", why->sentence);
        cli_json_text(&to->json, "evidence", why->evidence);
        cli_json_text(&to->json, "next", why->next);
        cli_json_close(&to->json, '}');
        return;
    }
    if (to->count > 1)
        (void)fputc('\n', stdout);
    line("", why->sentence);
    line("  evidence: ", why->evidence);
    line("  next:     ", why->next);
}

cli_exit
cli_why(cli *self)
{
    const char *path = cli_text(self, "db");
    sqlite3    *db = NULL;
    telling     to = {.is_json = cli_has(self, "json")};
    ie_error    error = IE_ERROR_INIT;
    cli_exit    code;
    ie_status   status;

    if (path == NULL)
        return cli_usage(self, "--db names the database to look into");
    code = cli_db_open(&db, path);
    if (code != CLI_OK)
        return code;
    if (to.is_json)
        cli_json_open(&to.json, NULL, '[');
    status = ie_why_event(db, self->operands[0], cli_text(self, "cursor"), path, tell, &to, &error);
    if (to.is_json) {
        cli_json_close(&to.json, ']');
        cli_json_print(&to.json);
    }
    if (status == IE_ENOTFOUND && to.count > 0)
        code = CLI_NOT_FOUND; /* that was the answer */
    else if (status != IE_OK)
        code = cli_fail(&error);
    (void)sqlite3_close(db);
    return code;
}
