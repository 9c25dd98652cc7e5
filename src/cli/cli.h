/*
 * The command ie: one table of commands and flags drives dispatch, help, suggestions and the test
 * of the man page. A command gets its parsed words, prints data on stdout and everything else on
 * stderr.
 */
#ifndef IE_CLI_H
#define IE_CLI_H

#include <ie/base.h>
#include <ie/inspect.h>

#include <sqlite3.h>

#define CLI_OPERANDS_MAX 4
#define CLI_GIVEN_MAX    128

typedef enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_NOT_FOUND = 3,
    CLI_UNREACHABLE = 5
} cli_exit;

typedef struct cli_flag {
    const char *name;  /* without the dashes; NULL ends a list */
    const char *value; /* what its value is called; NULL: a switch */
    const char *help;
    bool        repeats;
    char        letter; /* short form of a switch; 0: none */
} cli_flag;

typedef struct cli cli;

typedef struct cli_command {
    const char     *name;     /* one or two words */
    const char     *operands; /* as help shows them */
    const char     *summary;
    size_t          operands_min;
    size_t          operands_max;
    const cli_flag *flags;
    const char     *examples;
    cli_exit (*run)(cli *self);
} cli_command;

extern const cli_command cli_commands[];
extern const size_t      cli_command_count;
extern const cli_flag    cli_common_flags[]; /* of every command */

struct cli { /* one invocation */
    const cli_command *command;
    const char        *operands[CLI_OPERANDS_MAX];
    size_t             operand_count;
    struct {
        const cli_flag *flag;
        const char     *value;
    } given[CLI_GIVEN_MAX];
    size_t given_count;
};

/* ---- words (args.c) ---- */

/* The words after the command's name; a usage error is printed. */
cli_exit cli_parse(cli *self, int argc, char **argv);
bool     cli_has(const cli *self, const char *flag);
/* The last value given, or NULL. */
const char *cli_text(const cli *self, const char *flag);
/* Value number index of a repeated flag, or NULL. */
const char *cli_text_at(const cli *self, const char *flag, size_t index);
/* Times with a unit (ms, s, m, h, d): "30s", "500ms"; false after printing what is wrong. */
bool cli_duration(const cli *self, const char *flag, int64_t fallback_ms, int64_t *ms);
bool cli_number(const cli *self, const char *flag, int64_t fallback, int64_t min, int64_t max,
                int64_t *number);
/* The command that was probably meant, or NULL. */
const char *cli_suggest_command(const char *typed);
void        cli_help(const cli_command *command);
void        cli_help_all(void);
/* Commands that start with this word ("outbox"); false when there are none. */
bool cli_help_group(const char *word);

/* ---- saying things (out.c) ---- */

/* "ie: ..." on stderr. */
void cli_say(const char *fmt, ...) IE_PRINTF(1, 2);
void cli_hint(const char *fmt, ...) IE_PRINTF(1, 2);
/* A usage error of this command, on stderr; gives CLI_USAGE. */
cli_exit cli_usage(const cli *self, const char *fmt, ...) IE_PRINTF(2, 3);
/* The failure in words, and the exit code that its status means. */
cli_exit cli_fail(const ie_error *error);
cli_exit cli_exit_of(ie_status status);
/* Flush stdout; CLI_OK becomes CLI_FAILED when something could not be written. A reader that has
 * gone (head, less) is no failure. */
cli_exit  cli_finish(cli_exit code);
void      cli_flush(void);             /* so that what comes on stderr comes after it */
bool      cli_is_terminal(void);       /* stdout */
ie_logger cli_logger(const cli *self); /* to stderr; -q and -v */

/* Text of strangers for a terminal or one line of a pipe: control characters are shown as \n, \x1b.
 */
void cli_print_clean(const char *text, size_t bytes);
/* "2026-11-21T21:30:00.123Z", "-" for 0. */
#define CLI_TIME_SIZE 40
void cli_time(char out[CLI_TIME_SIZE], int64_t ms);
/* "4 s", "2 min" */
#define CLI_SPAN_SIZE 24
void    cli_span(char out[CLI_SPAN_SIZE], int64_t ms);
int64_t cli_now_ms(void);

/* Rows in columns on a terminal, with a header; tab-separated without one when piped. */
typedef struct cli_table {
    size_t             columns;
    const char *const *header;
    char             **cells; /* only on a terminal: widths are known at the end */
    size_t             cell_count;
    size_t             cell_capacity;
} cli_table;
void cli_table_begin(cli_table *table, const char *const *header, size_t columns);
void cli_table_row(cli_table *table, const char *const *cells);
void cli_table_end(cli_table *table);

/* JSON objects, member by member. Text that is not UTF-8 gets replacement characters. */
typedef struct cli_json {
    ie_buffer buffer;
    bool      needs_comma;
} cli_json;
void cli_json_open(cli_json *json, const char *name, char bracket); /* name NULL: none */
void cli_json_close(cli_json *json, char bracket);
void cli_json_text(cli_json *json, const char *name, const char *text); /* NULL: left out */
void cli_json_number(cli_json *json, const char *name, int64_t number);
void cli_json_bool(cli_json *json, const char *name, bool value);
void cli_json_time(cli_json *json, const char *name, int64_t ms); /* 0: left out */
/* Already JSON. */
void cli_json_raw(cli_json *json, const char *name, const char *bytes, size_t size);
/* The event as its CloudEvents object; one that breaks the rules as what can be said of it. */
void cli_json_event(cli_json *json, const char *name, const ie_event *event);
/* Print with a line feed, forget. */
void cli_json_print(cli_json *json);

/* ---- waiting (wait.c) ---- */

/* Block SIGINT and SIGTERM, for this thread and those it starts, before any is started. */
void cli_wait_begin(void);
/* ... and SIGHUP, which then counts as a wake-up; cli_wait_hung_up() tells once that it was one. */
void cli_wait_begin_hangup(void);
bool cli_wait_hung_up(void);
/* From any thread: let cli_wait() return. */
void cli_wait_wake(void);
typedef enum cli_wait_end { CLI_WOKEN, CLI_SIGNALLED, CLI_TIMED_OUT, CLI_INPUT } cli_wait_end;
/* timeout_ms < 0: none. */
cli_wait_end cli_wait(int64_t timeout_ms);
/* As cli_wait(), or until the descriptor is readable; -1: none. */
cli_wait_end cli_wait_input(int64_t timeout_ms, int fd);

/* ---- standard input (input.c) ---- */

/* A pipe or a file was put before us; anything else (a terminal, /dev/null, a service's stdin) was
 * not meant. */
bool cli_input_is_given(void);
/* All of it, up to one byte more than an event may have. *data is released with ie__free(), on
 * failure too. */
cli_exit cli_input_read(char **data, size_t *bytes);

/* ---- a running bus (reach.c) ---- */

struct ie_bus_client;
struct ie_bus_client_options;

/* A client that is connected, of the URL in this flag; options NULL: defaults. When nobody is
 * there, that is said at once, with exit 5. */
cli_exit cli_reach_bus(const cli *self, const char *flag,
                       const struct ie_bus_client_options *options, struct ie_bus_client **out);

/* ---- the service manager (notify.c) ---- */

/* "READY=1", "STATUS=...": to systemd, if it started us. False: it did not, or nobody listens. */
bool cli_notify(const char *fmt, ...) IE_PRINTF(1, 2);
/* How long it lets us be silent; -1: as long as we like. */
int64_t cli_watchdog_ms(void);

/* ---- databases (db.c) ---- */

/* A guest's connection; a file that does not exist is named, never made. False: said why. */
cli_exit cli_db_open(sqlite3 **db, const char *path);

/* ---- the commands ---- */

extern const cli_flag cli_bench_bus_flags[];
extern const cli_flag cli_bus_flags[];
extern const cli_flag cli_passwd_flags[];
extern const cli_flag cli_relay_flags[];
extern const cli_flag cli_publish_flags[];
extern const cli_flag cli_subscribe_flags[];
extern const cli_flag cli_query_flags[];
extern const cli_flag cli_reply_flags[];
extern const cli_flag cli_bus_status_flags[];
extern const cli_flag cli_bus_list_flags[];
extern const cli_flag cli_bus_group_flags[];
extern const cli_flag cli_bus_replay_flags[];
extern const cli_flag cli_bus_dead_flags[];
extern const cli_flag cli_status_flags[];
extern const cli_flag cli_ls_flags[];
extern const cli_flag cli_show_flags[];
extern const cli_flag cli_retry_flags[];
extern const cli_flag cli_discard_flags[];
extern const cli_flag cli_why_flags[];
extern const cli_flag cli_migrate_status_flags[];
extern const cli_flag cli_migrate_sql_flags[];

cli_exit cli_bench_bus(cli *self);
cli_exit cli_bus(cli *self);
cli_exit cli_passwd(cli *self);
cli_exit cli_relay(cli *self);
cli_exit cli_publish(cli *self);
cli_exit cli_subscribe(cli *self);
cli_exit cli_query(cli *self);
cli_exit cli_reply(cli *self);
cli_exit cli_bus_status(cli *self);
cli_exit cli_bus_topics(cli *self);
cli_exit cli_bus_groups(cli *self);
cli_exit cli_bus_connections(cli *self);
cli_exit cli_bus_pause(cli *self);
cli_exit cli_bus_resume(cli *self);
cli_exit cli_bus_replay(cli *self);
cli_exit cli_bus_delete(cli *self);
cli_exit cli_bus_dead(cli *self);
cli_exit cli_bus_kick(cli *self);
cli_exit cli_outbox_status(cli *self);
cli_exit cli_outbox_ls(cli *self);
cli_exit cli_outbox_show(cli *self);
cli_exit cli_outbox_retry(cli *self);
cli_exit cli_outbox_discard(cli *self);
cli_exit cli_why(cli *self);
cli_exit cli_migrate_up(cli *self);
cli_exit cli_migrate_status(cli *self);
cli_exit cli_migrate_sql(cli *self);

#endif
