/* Words of the command line: parsing by the table, numbers, help. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "units.h"

const cli_flag cli_common_flags[] = {
    {.name = "help", .help = "show this help", .letter = 'h'},
    {.name = NULL},
};

/* ---- flags ---- */

typedef struct flag_list {
    const cli_flag *flags[64];
    size_t          count;
} flag_list;

static void
flags_of(flag_list *list, const cli_command *command)
{
    const cli_flag *const parts[] = {command->flags, cli_common_flags};

    list->count = 0;
    for (size_t p = 0; p < 2; p++)
        for (const cli_flag *flag = parts[p]; flag != NULL && flag->name != NULL; flag++)
            if (list->count < sizeof list->flags / sizeof list->flags[0])
                list->flags[list->count++] = flag;
}

static const char *
flag_name_at(const void *of, size_t index)
{
    return ((const flag_list *)of)->flags[index]->name;
}

static const cli_flag *
flag_find(const flag_list *list, const char *name, size_t bytes)
{
    for (size_t i = 0; i < list->count; i++)
        if (strlen(list->flags[i]->name) == bytes && memcmp(list->flags[i]->name, name, bytes) == 0)
            return list->flags[i];
    return NULL;
}

static cli_exit
flag_unknown(const cli *self, const flag_list *list, const char *name, size_t bytes)
{
    char        word[64];
    const char *meant;

    (void)snprintf(word, sizeof word, "%.*s", (int)(bytes < 60 ? bytes : 60), name);
    meant = ie__suggest(word, flag_name_at, list, list->count);
    if (meant != NULL)
        return cli_usage(self, "unknown option '--%s'; did you mean '--%s'?", word, meant);
    return cli_usage(self, "unknown option '--%s'", word);
}

static cli_exit
flag_keep(cli *self, const cli_flag *flag, const char *value)
{
    if (self->given_count == CLI_GIVEN_MAX)
        return cli_usage(self, "more than %d options", CLI_GIVEN_MAX);
    if (!flag->repeats && cli_has(self, flag->name) && flag->value != NULL)
        return cli_usage(self, "option '--%s' is given twice", flag->name);
    self->given[self->given_count].flag = flag;
    self->given[self->given_count].value = value;
    self->given_count++;
    return CLI_OK;
}

/* "--name", "--name=value", "--name value"; *i moves over a value that is a word of its own. */
static cli_exit
parse_long(cli *self, const flag_list *list, int argc, char **argv, int *i)
{
    const char     *name = argv[*i] + 2;
    const char     *equals = strchr(name, '=');
    const size_t    bytes = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const cli_flag *flag = flag_find(list, name, bytes);

    if (flag == NULL)
        return flag_unknown(self, list, name, bytes);
    if (flag->value == NULL)
        return equals != NULL ? cli_usage(self, "option '--%s' takes no value", flag->name)
                              : flag_keep(self, flag, "");
    if (equals != NULL)
        return flag_keep(self, flag, equals + 1);
    if (*i + 1 >= argc)
        return cli_usage(self, "option '--%s' needs a value: %s", flag->name, flag->value);
    return flag_keep(self, flag, argv[++*i]);
}

static cli_exit
parse_letters(cli *self, const flag_list *list, const char *letters)
{
    for (const char *at = letters; *at != '\0'; at++) {
        const cli_flag *found = NULL;
        cli_exit        code;

        for (size_t i = 0; i < list->count; i++)
            if (list->flags[i]->letter == *at)
                found = list->flags[i];
        if (found == NULL)
            return cli_usage(self, "unknown option '-%c'", *at);
        code = flag_keep(self, found, "");
        if (code != CLI_OK)
            return code;
    }
    return CLI_OK;
}

static const char *
command_name_at(const void *of, size_t index)
{
    (void)of;
    return cli_commands[index].name;
}

const char *
cli_suggest_command(const char *typed)
{
    return ie__suggest(typed, command_name_at, NULL, cli_command_count);
}

/* One word too many; perhaps the second word of a command that begins like this one. */
static cli_exit
unexpected(const cli *self, const char *word)
{
    char        meant[64];
    const char *nearest;

    (void)snprintf(meant, sizeof meant, "%s %.40s", self->command->name, word);
    nearest = cli_suggest_command(meant);
    if (nearest != NULL && strchr(nearest, ' ') != NULL)
        return cli_usage(self, "unexpected word '%.60s'; did you mean 'ie %s'?", word, nearest);
    return cli_usage(self, "unexpected word '%.60s'", word);
}

cli_exit
cli_parse(cli *self, int argc, char **argv)
{
    bool      only_operands = false;
    flag_list list;

    flags_of(&list, self->command);
    for (int i = 0; i < argc; i++) {
        cli_exit code = CLI_OK;

        if (!only_operands && strcmp(argv[i], "--") == 0)
            only_operands = true;
        else if (!only_operands && strncmp(argv[i], "--", 2) == 0)
            code = parse_long(self, &list, argc, argv, &i);
        else if (!only_operands && argv[i][0] == '-' && argv[i][1] != '\0')
            code = parse_letters(self, &list, argv[i] + 1);
        else if (self->operand_count == self->command->operands_max)
            code = unexpected(self, argv[i]);
        else
            self->operands[self->operand_count++] = argv[i];
        if (code != CLI_OK)
            return code;
    }
    if (!cli_has(self, "help") && self->operand_count < self->command->operands_min)
        return cli_usage(self, "expected: ie %s %s", self->command->name, self->command->operands);
    return CLI_OK;
}

const char *
cli_text_at(const cli *self, const char *flag, size_t index)
{
    for (size_t i = 0; i < self->given_count; i++)
        if (strcmp(self->given[i].flag->name, flag) == 0 && index-- == 0)
            return self->given[i].value;
    return NULL;
}

const char *
cli_text(const cli *self, const char *flag)
{
    return cli_text_at(self, flag, 0);
}

bool
cli_has(const cli *self, const char *flag)
{
    return cli_text_at(self, flag, 0) != NULL;
}

/* ---- numbers with units ---- */

bool
cli_duration(const cli *self, const char *flag, int64_t fallback_ms, int64_t *ms)
{
    const char *text = cli_text(self, flag);

    *ms = fallback_ms;
    if (text == NULL || (ie__duration_parse(text, ms) && *ms <= INT32_MAX))
        return true;
    (void)cli_usage(self, "--%s: '%.40s' is not a time such as 500ms, 30s, 5m or 2h", flag, text);
    return false;
}

bool
cli_number(const cli *self, const char *flag, int64_t fallback, int64_t min, int64_t max,
           int64_t *number)
{
    const char *text = cli_text(self, flag);
    char       *end = NULL;

    *number = fallback;
    if (text == NULL)
        return true;
    errno = 0;
    *number = strtoll(text, &end, 10);
    if (errno == 0 && end != text && *end == '\0' && *number >= min && *number <= max)
        return true;
    (void)cli_usage(self, "--%s: '%.40s' is not a number from %lld to %lld", flag, text,
                    (long long)min, (long long)max);
    return false;
}

/* ---- help ---- */

void
cli_help(const cli_command *command)
{
    flag_list list;

    flags_of(&list, command);
    (void)printf("usage: ie %s%s%s%s\n\n%s\n\noptions:\n", command->name,
                 command->operands[0] != '\0' ? " " : "", command->operands,
                 list.count > 1 ? " [options]" : "", command->summary);
    for (size_t i = 0; i < list.count; i++) {
        char left[64];

        (void)snprintf(left, sizeof left, "%s--%s%s%s%s",
                       list.flags[i]->letter == 'h'   ? "-h, "
                       : list.flags[i]->letter == 'q' ? "-q, "
                       : list.flags[i]->letter == 'v' ? "-v, "
                                                      : "    ",
                       list.flags[i]->name, list.flags[i]->value != NULL ? " " : "",
                       list.flags[i]->value != NULL ? list.flags[i]->value : "",
                       list.flags[i]->repeats ? " ..." : "");
        (void)printf("  %-28s %s\n", left, list.flags[i]->help);
    }
    (void)printf("\nexamples:\n%s", command->examples);
}

void
cli_help_all(void)
{
    (void)printf("usage: ie COMMAND [words] [options]\n\n"
                 "Integration events: stored with your rows in SQLite, published by a worker.\n\n"
                 "commands:\n");
    for (size_t i = 0; i < cli_command_count; i++)
        (void)printf("  %-15s %s\n", cli_commands[i].name, cli_commands[i].summary);
    (void)printf("\n'ie COMMAND --help' shows the options and examples of one.\n\n"
                 "first steps:\n"
                 "  ie bus                                              # a bus, in one terminal\n"
                 "  ie subscribe 'orders.>'                             # in another\n"
                 "  ie migrate up app.db                                # then, in a third\n"
                 "  ie publish orders.placed '{\"order\":1}' --db app.db\n"
                 "  ie relay app.db --to socket://127.0.0.1:9100 --once\n\n"
                 "exit status: 0 ok, 1 failed, 2 wrong usage, 3 not found, 5 unreachable\n");
}

bool
cli_help_group(const char *word)
{
    const size_t bytes = strlen(word);
    bool         any = false;

    for (size_t i = 0; i < cli_command_count; i++) {
        const char *name = cli_commands[i].name;

        if (strncmp(name, word, bytes) != 0 || name[bytes] != ' ')
            continue;
        if (!any)
            (void)printf("usage: ie %s COMMAND [words] [options]\n\ncommands:\n", word);
        any = true;
        (void)printf("  %-15s %s\n", name, cli_commands[i].summary);
    }
    if (any)
        (void)printf("\n'ie %s COMMAND --help' shows the options and examples of one.\n", word);
    return any;
}
