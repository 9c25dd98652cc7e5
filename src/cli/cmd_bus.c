/* ie bus: a socket bus in the foreground. */
#include "cli.h"

#include <ie/bus.h>

#include <stdio.h>

#define LISTEN_MAX 16

const cli_flag cli_bus_flags[] = {
    {.name = "listen",
     .value = "URL",
     .repeats = true,
     .help = "where to listen; port 0: any free one (socket://127.0.0.1:9100)"},
    {.name = "data", .value = "DIR", .help = "keep durable topics in this folder"},
    {.name = "drain",
     .value = "TIME",
     .help = "wait at most so long for clients when stopping (5s)"},
    {.name = "quiet", .help = "warnings and errors only", .letter = 'q'},
    {.name = "verbose", .help = "say more", .letter = 'v'},
    {.name = NULL},
};

cli_exit
cli_bus(cli *self)
{
    const char           *listen[LISTEN_MAX];
    ie_bus_server_options options;
    ie_bus_server        *server = NULL;
    ie_error              error = IE_ERROR_INIT;
    int64_t               drain_ms = 0;

    if (!cli_duration(self, "drain", 5000, &drain_ms))
        return CLI_USAGE;
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    while (options.listen_count < LISTEN_MAX &&
           cli_text_at(self, "listen", options.listen_count) != NULL) {
        listen[options.listen_count] = cli_text_at(self, "listen", options.listen_count);
        options.listen_count++;
    }
    if (cli_text_at(self, "listen", LISTEN_MAX) != NULL)
        return cli_usage(self, "at most %d addresses to listen on", LISTEN_MAX);
    options.listen = options.listen_count > 0 ? listen : NULL;
    options.data_dir = cli_text(self, "data");
    options.logger = cli_logger(self);
    cli_wait_begin();
    if (ie_bus_server_start(&server, &options, &error) != IE_OK) {
        const cli_exit code = cli_fail(&error);

        if (error.status == IE_EEXIST)
            cli_hint(
                "another bus may be running; '--listen socket://127.0.0.1:0' takes any free port");
        return code;
    }
    (void)printf("ie bus ready on");
    for (size_t i = 0; i < ie_bus_server_address_count(server); i++)
        (void)printf(" %s", ie_bus_server_address(server, i));
    (void)printf("\n");
    (void)fflush(stdout);
    (void)cli_wait(-1);
    (void)ie_bus_server_stop(server, (uint32_t)drain_ms);
    ie_bus_server_close(server);
    return CLI_OK;
}
