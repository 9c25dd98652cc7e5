/* ie subscribe: events as they arrive from a bus. */
#include "cli.h"

#include <ie/bus.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "json.h"
#include "url.h"

const cli_flag cli_subscribe_flags[] = {
    {.name = "from", .value = "URL", .help = "the bus (socket://127.0.0.1:9100)"},
    {.name = "group",
     .value = "GROUP",
     .help = "share the events with the other members of this group"},
    {.name = "count", .value = "N", .help = "stop after N events"},
    {.name = "timeout",
     .value = "TIME",
     .help = "stop after this time; with --count that is a failure"},
    {.name = "wait", .help = "wait for a bus that is not there yet, instead of failing"},
    {.name = "json", .help = "one CloudEvents JSON object per line"},
    {.name = "quiet", .help = "say nothing about connections", .letter = 'q'},
    {.name = NULL},
};

typedef struct subscription {
    const cli      *self;
    char            url[256]; /* as shown */
    int64_t         wanted;   /* 0: no end */
    bool            is_json;
    bool            is_quiet;
    pthread_mutex_t lock;
    int64_t         received;
    bool            is_over;
    bool            is_broken; /* stdout */
    bool            was_connected;
    bool            is_lost;
    bool            never_connected;
    char            reason[256];
} subscription;

/* time topic key id data */
static void
print_plain(const ie_event *event)
{
    char time[CLI_TIME_SIZE];

    cli_time(time, event->time_ms);
    (void)printf("%s\t", time);
    cli_print_clean(event->topic, strlen(event->topic));
    (void)fputc('\t', stdout);
    cli_print_clean(event->key != NULL ? event->key : "-",
                    event->key != NULL ? strlen(event->key) : 1);
    (void)fputc('\t', stdout);
    cli_print_clean(event->id, strlen(event->id));
    (void)fputc('\t', stdout);
    if (ie__utf8_is_valid(event->data != NULL ? event->data : "", event->data_bytes))
        cli_print_clean(event->data, event->data_bytes);
    else
        (void)printf("(%zu bytes of %s)", event->data_bytes,
                     event->content_type != NULL ? event->content_type : "application/json");
    (void)fputc('\n', stdout);
}

static ie_status
event_arrived(void *user, const ie_event *event)
{
    subscription *to = user;
    ie_status     status = IE_OK;

    (void)pthread_mutex_lock(&to->lock);
    if (to->is_over || event->topic == NULL) {
        status = IE_EUNREACHABLE; /* a group gives it to somebody else, a worker keeps it */
    } else {
        if (to->is_json) {
            cli_json json = {{0}, false};

            cli_json_event(&json, NULL, event);
            cli_json_print(&json);
        } else {
            print_plain(event);
        }
        if (fflush(stdout) != 0) {
            to->is_broken = to->is_over = true; /* not printed, so not handled */
            status = IE_EUNREACHABLE;
        } else if (++to->received == to->wanted) {
            to->is_over = true;
        }
        if (to->is_over)
            cli_wait_wake();
    }
    (void)pthread_mutex_unlock(&to->lock);
    return status;
}

static void
state_changed(void *user, const ie_bus_client_status *status)
{
    subscription *to = user;

    (void)pthread_mutex_lock(&to->lock);
    if (status->state == IE_BUS_CONNECTED) {
        if (to->is_lost && !to->is_quiet)
            cli_say("connected to %s again", to->url);
        to->was_connected = true;
        to->is_lost = false;
        to->never_connected = false;
    } else if ((status->state == IE_BUS_RECONNECTING || status->state == IE_BUS_REFUSED) &&
               !to->is_lost) {
        to->is_lost = true;
        (void)snprintf(to->reason, sizeof to->reason, "%s", status->reason);
        if (to->was_connected && !to->is_quiet && !to->is_over)
            cli_say("lost the bus at %s: %s; connecting again", to->url, status->reason);
        else if (!to->was_connected && cli_has(to->self, "wait") && !to->is_quiet)
            cli_say("cannot reach bus at %s: %s; waiting for it", to->url, status->reason);
        to->never_connected = !to->was_connected;
        if (to->never_connected && !cli_has(to->self, "wait"))
            cli_wait_wake();
    }
    (void)pthread_mutex_unlock(&to->lock);
}

/* Until confirmed, refused, or nobody is there. */
static cli_exit
wait_subscribed(subscription *to, ie_bus_client *client, int64_t timeout_ms)
{
    const int64_t deadline_ms = cli_now_ms() + timeout_ms;

    for (;;) {
        ie_error        error = IE_ERROR_INIT;
        const ie_status status = ie_bus_client_wait_subscribed(client, 100, &error);
        bool            has_failed;

        if (status == IE_OK)
            return CLI_OK;
        (void)pthread_mutex_lock(&to->lock);
        has_failed = to->never_connected && !cli_has(to->self, "wait");
        (void)pthread_mutex_unlock(&to->lock);
        if (has_failed) {
            cli_say("cannot reach bus at %s: %s", to->url, to->reason);
            cli_hint("'ie bus' starts one; '--wait' waits for it");
            return CLI_UNREACHABLE;
        }
        if (status != IE_ETIMEDOUT && status != IE_EUNREACHABLE)
            return cli_fail(&error);
        if (timeout_ms >= 0 && cli_now_ms() >= deadline_ms) {
            cli_say("cannot reach bus at %s: %s", to->url, error.message);
            return CLI_UNREACHABLE;
        }
        if (cli_wait(0) == CLI_SIGNALLED)
            return CLI_FAILED;
    }
}

/* Events, until there are enough, the time is over, or somebody ends it. */
static cli_exit
receive(subscription *to, int64_t timeout_ms)
{
    const int64_t deadline_ms = cli_now_ms() + timeout_ms;

    for (;;) {
        const int64_t left_ms = timeout_ms < 0 ? -1 : deadline_ms - cli_now_ms();
        bool          is_over;

        (void)pthread_mutex_lock(&to->lock);
        is_over = to->is_over;
        (void)pthread_mutex_unlock(&to->lock);
        if (is_over)
            return CLI_OK;
        switch (cli_wait(timeout_ms < 0 ? -1 : left_ms > 0 ? left_ms : 0)) {
        case CLI_SIGNALLED: return CLI_OK;
        case CLI_WOKEN: break;
        case CLI_TIMED_OUT:
            if (to->wanted == 0)
                return CLI_OK;
            cli_say("%" PRId64 " of %" PRId64 " events came in time", to->received, to->wanted);
            return CLI_FAILED;
        }
    }
}

static cli_exit
subscribe_run(cli *self, subscription *to, int64_t timeout_ms)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              error = IE_ERROR_INIT;
    cli_exit              code = CLI_OK;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = cli_text(self, "from");
    options.on_status = state_changed;
    options.user = to;
    options.close_timeout_ms = 1000;
    options.reconnect_delay_ms_max = 2000; /* somebody is looking */
    if (ie_bus_client_open(&client, &options, &error) != IE_OK)
        return cli_fail(&error);
    if (ie_bus_client_subscribe(client, self->operands[0], cli_text(self, "group"), 0,
                                event_arrived, to, NULL, &error) != IE_OK)
        code = cli_fail(&error);
    if (code == CLI_OK)
        code = wait_subscribed(to, client, timeout_ms);
    if (code == CLI_OK) {
        if (!to->is_quiet)
            cli_say("subscribed to %s at %s", self->operands[0], to->url);
        code = receive(to, timeout_ms);
    }
    (void)pthread_mutex_lock(&to->lock);
    to->is_over = true;
    (void)pthread_mutex_unlock(&to->lock);
    ie_bus_client_close(client);
    return code;
}

cli_exit
cli_subscribe(cli *self)
{
    subscription to = {
        .self = self, .is_json = cli_has(self, "json"), .is_quiet = cli_has(self, "quiet")};
    ie_error error = IE_ERROR_INIT;
    int64_t  timeout_ms = -1;
    cli_exit code;

    if (!cli_duration(self, "timeout", -1, &timeout_ms) ||
        !cli_number(self, "count", 0, 1, INT32_MAX, &to.wanted))
        return CLI_USAGE;
    if (ie_pattern_check(self->operands[0], &error) != IE_OK)
        return cli_usage(self, "%s", error.message);
    ie__url_redact(to.url, sizeof to.url,
                   cli_text(self, "from") != NULL ? cli_text(self, "from") : IE_BUS_URL_DEFAULT);
    (void)pthread_mutex_init(&to.lock, NULL);
    cli_wait_begin();
    code = subscribe_run(self, &to, timeout_ms);
    (void)pthread_mutex_destroy(&to.lock);
    return code;
}
