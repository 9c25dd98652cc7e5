/* The command ie: the table of commands, and the way into each. */
#include "cli.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "units.h"

static cli_exit cli_version(cli *self);

static const cli_flag JSON_ONLY[] = {
    {.name = "json", .help = "one JSON object"},
    {.name = NULL},
};
static const cli_flag NONE[] = {{.name = NULL}};

/* Dispatch, help, suggestions and the test of the man page read this one table. */
const cli_command cli_commands[] = {
    {"bus", "", "run a socket bus in the foreground", 0, 0, cli_bus_flags,
     "  ie bus\n"
     "  ie bus --listen socket://127.0.0.1:0 --listen unix:/run/app/ie.sock\n"
     "  ie bus --print-config > bus.conf        # every setting, to begin with\n"
     "  ie bus --config bus.conf --check-config\n"
     "  ie bus --config bus.conf --set out_bytes_max=16MiB\n",
     cli_bus},
    {"bus passwd", "FILE USER", "give a user of a bus a password or a token", 2, 2,
     cli_passwd_flags,
     "  ie bus passwd /etc/ie/users ann                   # asks, or reads a line from a pipe\n"
     "  ie bus passwd /etc/ie/users shop --token > shop.token\n"
     "  ie bus passwd /etc/ie/users ann --delete\n",
     cli_passwd},
    {"relay", "DB", "publish what is committed in DB: a worker in the foreground", 1, 1,
     cli_relay_flags,
     "  ie relay app.db --to socket://127.0.0.1:9100\n"
     "  ie relay app.db --to file:///var/log/events.jsonl --once\n"
     "  ie relay app.db --to unix:/run/app/ie.sock --cursor billing --topics 'orders.>'\n"
     "  ie relay app.db --to socket://127.0.0.1:9100 --set lease_ms=5s --set batch_max=200\n",
     cli_relay},
    {"publish", "TOPIC [DATA|-]", "store an event in a database, or send it to a destination", 1, 2,
     cli_publish_flags,
     "  ie publish orders.placed '{\"order\":1}' --db app.db --key order-1\n"
     "  ie publish orders.placed --db app.db --not-before +10m < order.json\n"
     "  ie publish greeting.said 'hello' --to socket://127.0.0.1:9100 --content-type text/plain\n",
     cli_publish},
    {"subscribe", "PATTERN", "print events as they arrive from a bus", 1, 1, cli_subscribe_flags,
     "  ie subscribe 'orders.>'\n"
     "  ie subscribe orders.placed --json --count 10 | jq .data\n"
     "  ie subscribe '>' --group audit --from unix:/run/app/ie.sock\n"
     "  ie subscribe 'orders.>' --group billing --from-start --ack manual\n",
     cli_subscribe},
    {"query", "TOPIC [DATA|-]", "ask a topic of a bus, and print the answer", 1, 2, cli_query_flags,
     "  ie query stock.count '{\"item\":\"apple\"}'\n"
     "  ie query stock.count --all --timeout 2s --to unix:/run/app/ie.sock\n",
     cli_query},
    {"reply", "TOPIC", "answer what is asked of a topic, by running a command", 1, 1,
     cli_reply_flags,
     "  ie reply time.now --exec 'date +%s'\n"
     "  ie reply 'stock.*' --group stock --jobs 4 --exec ./count-stock\n",
     cli_reply},
    {"bus status", "", "what a running bus is and has done", 0, 0, cli_bus_status_flags,
     "  ie bus status\n  ie bus status --to unix:/run/app/ie.sock --json | jq .stats.connections\n",
     cli_bus_status},
    {"bus topics", "", "patterns that somebody listens to or answers", 0, 0, cli_bus_list_flags,
     "  ie bus topics\n", cli_bus_topics},
    {"bus groups", "", "groups: members, what waits, where they stand", 0, 0, cli_bus_list_flags,
     "  ie bus groups\n", cli_bus_groups},
    {"bus connections", "", "who is connected", 0, 0, cli_bus_list_flags,
     "  ie bus connections | cut -f 1,3\n", cli_bus_connections},
    {"bus pause", "GROUP", "give a group nothing for now", 1, 1, cli_bus_group_flags,
     "  ie bus pause billing\n  ie bus pause billing --pattern 'orders.>'\n", cli_bus_pause},
    {"bus resume", "GROUP", "let a paused group go on", 1, 1, cli_bus_group_flags,
     "  ie bus resume billing\n", cli_bus_resume},
    {"bus replay", "GROUP", "let a durable group go on from another place in the log", 1, 1,
     cli_bus_replay_flags,
     "  ie bus replay billing --from-start\n  ie bus replay billing --since 2h\n", cli_bus_replay},
    {"bus dead", "GROUP", "events that a durable group gave up; try them again, or forget them", 1,
     1, cli_bus_dead_flags,
     "  ie bus dead billing\n  ie bus dead billing --retry --all\n"
     "  ie bus dead billing --discard --position 4711\n",
     cli_bus_dead},
    {"bus delete", "GROUP", "delete a durable group that has no members", 1, 1, cli_bus_group_flags,
     "  ie bus delete billing\n", cli_bus_delete},
    {"bus kick", "ID", "end a connection; its number is in 'ie bus connections'", 1, 1,
     cli_bus_status_flags, "  ie bus kick 17\n", cli_bus_kick},
    {"why", "ID", "say in one sentence why an event is where it is", 1, 1, cli_why_flags,
     "  ie why 019a1b2c-0000-7000-8000-000000000000 --db app.db\n", cli_why},
    {"outbox status", "DB", "destinations, their workers, and how many events are in which state",
     1, 1, cli_status_flags, "  ie outbox status app.db\n", cli_outbox_status},
    {"outbox ls", "DB", "list events, newest first", 1, 1, cli_ls_flags,
     "  ie outbox ls app.db --state dead,retrying\n"
     "  ie outbox ls app.db --topic 'orders.>' --key order-1 --limit 20\n",
     cli_outbox_ls},
    {"outbox show", "DB ID", "everything about one event", 2, 2, cli_show_flags,
     "  ie outbox show app.db 019a1b2c-0000-7000-8000-000000000000\n", cli_outbox_show},
    {"outbox retry", "DB [ID]", "send events again: dead, discarded or retrying ones", 1, 2,
     cli_retry_flags,
     "  ie outbox retry app.db 019a1b2c-0000-7000-8000-000000000000\n"
     "  ie outbox retry app.db --state dead --topic 'orders.>'         # shows what it would do\n"
     "  ie outbox retry app.db --state dead --topic 'orders.>' --all   # does it\n",
     cli_outbox_retry},
    {"outbox discard", "DB [ID]", "give events up: retrying, blocked, scheduled or dead ones", 1, 2,
     cli_discard_flags,
     "  ie outbox discard app.db 019a1b2c-0000-7000-8000-000000000000 --reason 'paid by hand'\n"
     "  ie outbox discard app.db --state retrying --key order-1 --all\n",
     cli_outbox_discard},
    {"bench bus", "", "measure a bus: rates, times from end to end, losses", 0, 0,
     cli_bench_bus_flags,
     "  ie bench bus\n"
     "  ie bench bus --mode fanout --subscribers 16 --size 1KiB --histogram\n"
     "  ie bench bus --mode durable --data /var/tmp/ie-bench\n"
     "  ie bench bus --to socket://127.0.0.1:9100 --mode latency --rate 5000 --json\n",
     cli_bench_bus},
    {"migrate up", "DB", "create or update the tables; a missing file is made (WAL)", 1, 1,
     JSON_ONLY, "  ie migrate up app.db\n", cli_migrate_up},
    {"migrate status", "DB", "which migrations the database has", 1, 1, cli_migrate_status_flags,
     "  ie migrate status app.db\n", cli_migrate_status},
    {"migrate sql", "", "print the migrations for a tool of your own", 0, 0, cli_migrate_sql_flags,
     "  ie migrate sql > ie.sql\n"
     "  ie migrate sql --format goose > migrations/0007_ie.sql\n"
     "  ie migrate sql --format flyway --down\n",
     cli_migrate_sql},
    {"version", "", "versions of ie and of what it is linked with", 0, 0, JSON_ONLY,
     "  ie version\n", cli_version},
    {"help", "[COMMAND]", "show this help, or that of a command", 0, 2, NONE, "  ie help publish\n",
     NULL},
};
const size_t cli_command_count = sizeof cli_commands / sizeof cli_commands[0];

static cli_exit
cli_version(cli *self)
{
    if (cli_has(self, "json")) {
        cli_json json = {{0}, false};

        cli_json_open(&json, NULL, '{');
        cli_json_text(&json, "version", ie_version());
        cli_json_text(&json, "sqlite", sqlite3_libversion());
        cli_json_close(&json, '}');
        cli_json_print(&json);
    } else {
        (void)printf("ie %s (SQLite %s)\n", ie_version(), sqlite3_libversion());
    }
    return CLI_OK;
}

/* The command that these words begin with, the longer name first; *words: how many they are. */
static const cli_command *
find(int argc, char **argv, int *words)
{
    for (int take = 2; take >= 1; take--)
        for (size_t i = 0; i < cli_command_count; i++) {
            const char  *name = cli_commands[i].name;
            const char  *space = strchr(name, ' ');
            const size_t first = space != NULL ? (size_t)(space - name) : strlen(name);

            if (argc < take || (space != NULL) != (take == 2))
                continue;
            if (strlen(argv[0]) == first && memcmp(argv[0], name, first) == 0 &&
                (space == NULL || strcmp(argv[1], space + 1) == 0)) {
                *words = take;
                return &cli_commands[i];
            }
        }
    return NULL;
}

static bool
is_group(const char *word)
{
    const size_t bytes = strlen(word);

    for (size_t i = 0; i < cli_command_count; i++)
        if (strncmp(cli_commands[i].name, word, bytes) == 0 && cli_commands[i].name[bytes] == ' ')
            return true;
    return false;
}

static cli_exit
unknown(int argc, char **argv)
{
    char        typed[128];
    const char *meant;

    if (is_group(argv[0]) && argc >= 2 && argv[1][0] != '-')
        (void)snprintf(typed, sizeof typed, "%.60s %.60s", argv[0], argv[1]);
    else
        (void)snprintf(typed, sizeof typed, "%.60s", argv[0]);
    meant = cli_suggest_command(typed);
    if (is_group(typed))
        cli_say("'%s' needs a command; see 'ie %s --help'", typed, typed);
    else if (meant != NULL)
        cli_say("unknown command '%s'; did you mean '%s'? see 'ie --help'", typed, meant);
    else
        cli_say("unknown command '%s'; see 'ie --help'", typed);
    return CLI_USAGE;
}

static bool
is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

static cli_exit
help(int argc, char **argv)
{
    int                words = 0;
    const cli_command *command;

    if (argc == 0) {
        cli_help_all();
        return CLI_OK;
    }
    command = find(argc, argv, &words);
    if (command != NULL) {
        cli_help(command);
        return CLI_OK;
    }
    return cli_help_group(argv[0]) ? CLI_OK : unknown(argc, argv);
}

static cli_exit
dispatch(int argc, char **argv)
{
    int      words = 0;
    cli      self = {.command = NULL};
    cli_exit code;

    if (argc == 0) {
        cli_say("a command is needed; see 'ie --help'");
        return CLI_USAGE;
    }
    if (is_help(argv[0]))
        return help(0, NULL);
    if (strcmp(argv[0], "--version") == 0)
        argv[0] += 2;
    if (strcmp(argv[0], "help") == 0 && argc >= 2 && is_help(argv[1]))
        return help(1, argv); /* the help of help */
    if (strcmp(argv[0], "help") == 0)
        return help(argc - 1, argv + 1);
    self.command = find(argc, argv, &words);
    if (self.command == NULL)
        return argc >= 2 && is_help(argv[1]) && cli_help_group(argv[0]) ? CLI_OK
                                                                        : unknown(argc, argv);
    code = cli_parse(&self, argc - words, argv + words);
    if (code != CLI_OK)
        return code;
    if (cli_has(&self, "help")) {
        cli_help(self.command);
        return CLI_OK;
    }
    return self.command->run(&self);
}

int
main(int argc, char **argv)
{
    /* A reader that goes away (head, less) is noticed where we write. */
    (void)signal(SIGPIPE, SIG_IGN);
    return (int)cli_finish(dispatch(argc - 1, argv + 1));
}
