/* A connection to a running bus, or the news that nobody is there. */
#include "cli.h"

#include <ie/bus.h>

#include "url.h"

#define REACH_MS 5000
#define LOOK_MS  20

cli_exit
cli_reach_bus(const cli *self, const char *flag, const ie_bus_client_options *given,
              ie_bus_client **out)
{
    const int64_t         deadline_ms = cli_now_ms() + REACH_MS;
    const char           *url = cli_text(self, flag);
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              error = IE_ERROR_INIT;
    ie_status             status;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    if (given != NULL)
        options = *given;
    options.url = url;
    if (options.close_timeout_ms == 0)
        options.close_timeout_ms = 1000;
    if (ie_bus_client_open(&client, &options, &error) != IE_OK)
        return cli_fail(&error);
    do { /* the first failed attempt is known as soon as it failed */
        ie_error_clear(&error);
        status = ie_bus_client_wait_connected(client, LOOK_MS, &error);
    } while (status == IE_ETIMEDOUT && cli_now_ms() < deadline_ms);
    if (status == IE_OK) {
        *out = client;
        return CLI_OK;
    }
    ie_bus_client_close(client);
    if (status == IE_EUNREACHABLE || status == IE_ETIMEDOUT) {
        cli_say("cannot reach bus at %s", error.message); /* the address, and why */
        cli_hint("'ie bus' starts one; --%s says where it is", flag);
        return CLI_UNREACHABLE;
    }
    return cli_fail(&error);
}
