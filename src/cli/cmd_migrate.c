/* ie migrate: the tables, and their SQL for those who bring a migration tool of their own. */
#include "cli.h"

#include <ie/migrate.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

const cli_flag cli_migrate_status_flags[] = {
    {.name = "json", .help = "one JSON array"},
    {.name = NULL},
};

const cli_flag cli_migrate_sql_flags[] = {
    {.name = "format", .value = "FORMAT", .help = "plain (default), goose, dbmate or flyway"},
    {.name = "down", .help = "the way back instead of the way up"},
    {.name = "number", .value = "N", .help = "only migration N, for tools that want one file each"},
    {.name = NULL},
};

/*
 * A new file of our own: WAL, and EXTRA before that, because otherwise a power cut may bring the
 * old journal back and undo everything.
 */
static cli_exit
open_or_create(sqlite3 **out, const char *path, bool *is_new)
{
    struct stat st;
    sqlite3    *db = NULL;

    *is_new = stat(path, &st) != 0 || (S_ISREG(st.st_mode) && st.st_size == 0);
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK ||
        sqlite3_busy_timeout(db, 5000) != SQLITE_OK ||
        (*is_new && sqlite3_exec(db, "PRAGMA synchronous=EXTRA; PRAGMA journal_mode=WAL", NULL,
                                 NULL, NULL) != SQLITE_OK)) {
        cli_say("cannot open database %s: %s", path, sqlite3_errmsg(db));
        (void)sqlite3_close(db);
        return CLI_FAILED;
    }
    *out = db;
    return CLI_OK;
}

cli_exit
cli_migrate_up(cli *self)
{
    const char *path = self->operands[0];
    sqlite3    *db = NULL;
    bool        is_new = false;
    int         applied = 0;
    const int   newest = ie_migration_at(ie_migration_count() - 1)->version;
    ie_error    error = IE_ERROR_INIT;
    cli_exit    code = open_or_create(&db, path, &is_new);

    if (code != CLI_OK)
        return code;
    if (ie_migrate_up(db, &applied, &error) != IE_OK) {
        cli_say("%s: %s", path, error.message);
        code = cli_exit_of(error.status);
    } else if (cli_has(self, "json")) {
        cli_json json = {{0}, false};

        cli_json_open(&json, NULL, '{');
        cli_json_text(&json, "database", path);
        cli_json_bool(&json, "created", is_new);
        cli_json_number(&json, "applied", applied);
        cli_json_number(&json, "version", newest);
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else if (applied == 0) {
        (void)printf("%s is at schema version %d already\n", path, newest);
    } else {
        (void)printf("%s%s is at schema version %d now, %d applied\n", path,
                     is_new ? " was created (journal mode WAL) and" : "", newest, applied);
    }
    (void)sqlite3_close(db);
    return code;
}

/* ---- status ---- */

typedef struct listing {
    cli_table table;
    cli_json  json;
    bool      is_json;
    int       missing;
} listing;

static void
status_row(void *user, const ie_migration_state *state)
{
    listing    *list = user;
    const char *name = state->migration != NULL ? state->migration->name : "(newer than this ie)";
    char        version[16];
    char        applied[CLI_TIME_SIZE];

    list->missing += state->is_applied ? 0 : 1;
    if (list->is_json) {
        cli_json_open(&list->json, NULL, '{');
        cli_json_number(&list->json, "version", state->version);
        cli_json_text(&list->json, "name",
                      state->migration != NULL ? state->migration->name : NULL);
        cli_json_bool(&list->json, "applied", state->is_applied);
        cli_json_time(&list->json, "appliedAt", state->applied_at_ms);
        cli_json_close(&list->json, '}');
        return;
    }
    (void)snprintf(version, sizeof version, "%d", state->version);
    cli_time(applied, state->applied_at_ms);
    cli_table_row(
        &list->table,
        (const char *const[]){version, name, state->is_applied ? "applied" : "missing", applied});
}

cli_exit
cli_migrate_status(cli *self)
{
    static const char *const HEADER[] = {"VERSION", "NAME", "STATE", "APPLIED AT"};
    sqlite3                 *db = NULL;
    listing                  list = {.is_json = cli_has(self, "json")};
    ie_error                 error = IE_ERROR_INIT;
    cli_exit                 code = cli_db_open(&db, self->operands[0]);

    if (code != CLI_OK)
        return code;
    cli_table_begin(&list.table, HEADER, 4);
    if (list.is_json)
        cli_json_open(&list.json, NULL, '[');
    if (ie_migrate_status(db, status_row, &list, &error) != IE_OK)
        code = cli_fail(&error);
    if (list.is_json) {
        cli_json_close(&list.json, ']');
        cli_json_print(&list.json);
    }
    cli_table_end(&list.table);
    if (code == CLI_OK && list.missing > 0)
        cli_hint("'ie migrate up %s' applies what is missing", self->operands[0]);
    (void)sqlite3_close(db);
    return code;
}

/* ---- sql ---- */

/* One file of the tool's. goose cuts at each ';' unless told that a statement goes on. */
static void
print_goose(const ie_migration *migration, bool down)
{
    if (!down)
        (void)printf("-- +goose Up\n-- +goose StatementBegin\n%s-- +goose StatementEnd\n\n",
                     migration->up);
    (void)printf("-- +goose Down\n-- +goose StatementBegin\n%s-- +goose StatementEnd\n",
                 migration->down);
}

static void
print_dbmate(const ie_migration *migration, bool down)
{
    if (!down)
        (void)printf("-- migrate:up\n%s\n", migration->up);
    (void)printf("-- migrate:down\n%s", migration->down);
}

static void
print_flyway(const ie_migration *migration, bool down)
{
    (void)printf("-- %c%d__ie_%s.sql\n%s", down ? 'U' : 'V', migration->version, migration->name,
                 down ? migration->down : migration->up);
}

static void
print_plain(const ie_migration *migration, bool down)
{
    (void)fputs(down ? migration->down : migration->up, stdout);
}

cli_exit
cli_migrate_sql(cli *self)
{
    static const struct {
        const char *name;
        void (*print)(const ie_migration *migration, bool down);
    } FORMATS[] = {{"plain", print_plain},
                   {"goose", print_goose},
                   {"dbmate", print_dbmate},
                   {"flyway", print_flyway}};
    const char  *format = cli_text(self, "format") != NULL ? cli_text(self, "format") : "plain";
    const bool   down = cli_has(self, "down");
    const size_t count = ie_migration_count();
    const int    newest = ie_migration_at(count - 1)->version;
    int64_t      number = 0;
    size_t       chosen = 0;

    while (chosen < 4 && strcmp(FORMATS[chosen].name, format) != 0)
        chosen++;
    if (chosen == 4)
        return cli_usage(self, "--format: '%.40s' is not one of plain, goose, dbmate, flyway",
                         format);
    if (!cli_number(self, "number", 0, 1, newest, &number))
        return CLI_USAGE;
    for (size_t i = 0; i < count; i++) {
        const ie_migration *migration = ie_migration_at(down ? count - 1 - i : i);

        if (number == 0 || migration->version == number)
            FORMATS[chosen].print(migration, down);
    }
    return CLI_OK;
}
