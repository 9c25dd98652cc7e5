/* ie subscribe: events as they arrive from a bus. */
#include "cli.h"

#include <ie/bus.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "json.h"
#include "manual.h"
#include "units.h"
#include "url.h"

const cli_flag cli_subscribe_flags[] = {
    {.name = "from", .value = "URL", .help = "the bus (socket://127.0.0.1:9100)"},
    {.name = "group",
     .value = "GROUP",
     .help = "share the events with the other members of this group"},
    {.name = "from-start",
     .help = "a group that is new begins with the oldest event that the bus keeps"},
    {.name = "since",
     .value = "WHEN",
     .help = "a group that is new begins then: RFC 3339, or 2h for two hours ago"},
    {.name = "position",
     .value = "N",
     .help = "a group that is new begins at this position of the bus's log"},
    {.name = "ephemeral", .help = "the group ends with its members, and has no place in the log"},
    {.name = "selection",
     .value = "HOW",
     .help = "which member gets an event: round-robin, random, hash, sticky, broadcast"},
    {.name = "ack",
     .value = "HOW",
     .help = "auto (once printed), or manual: lines on standard input answer (ack, nack, reject)"},
    {.name = "ack-timeout",
     .value = "TIME",
     .help = "a stored event without an answer for so long is delivered again"},
    {.name = "credit",
     .value = "N",
     .help = "events without an answer at a time (1024; with --ack manual 1)"},
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
    bool            is_manual;
    manual          answers; /* with is_manual */
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

static void
print_json(const ie_event *event, int64_t number, const ie_bus_delivery *delivery)
{
    cli_json json = {{0}, false};

    if (number == 0) {
        cli_json_event(&json, NULL, event);
    } else {
        cli_json_open(&json, NULL, '{');
        cli_json_number(&json, "number", number);
        if (delivery->attempt != 0)
            cli_json_number(&json, "attempt", delivery->attempt);
        if (delivery->position != 0)
            cli_json_number(&json, "position", delivery->position);
        cli_json_event(&json, "event", event);
        cli_json_close(&json, '}');
    }
    cli_json_print(&json);
}

static ie_status
event_arrived(void *user, const ie_event *event, const ie_bus_delivery *delivery)
{
    subscription *to = user;
    ie_status     status = IE_OK;
    int64_t       number = 0;

    (void)pthread_mutex_lock(&to->lock);
    if (to->is_over || event->topic == NULL ||
        (to->is_manual && (number = manual_add(&to->answers, delivery->token)) == 0)) {
        status = IE_EUNREACHABLE; /* a group gives it to somebody else, a worker keeps it */
    } else {
        if (to->is_json) {
            print_json(event, number, delivery);
        } else {
            if (number != 0)
                (void)printf("%" PRId64 "\t", number);
            print_plain(event);
        }
        if (fflush(stdout) != 0) {
            to->is_broken = to->is_over = true; /* not printed, so not handled */
            status = IE_EUNREACHABLE;
        } else if (!to->is_manual && ++to->received == to->wanted) {
            to->is_over = true;
        }
        if (to->is_over || to->is_manual) /* a line may have waited for it */
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
        to->answers.count = 0; /* they come again, with new numbers */
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

/* With the lock held: what was typed so far. */
static void
answers_give(subscription *to, ie_bus_client *client)
{
    to->received += manual_apply(&to->answers, client);
    to->is_over = (to->wanted != 0 && to->received >= to->wanted) || manual_is_over(&to->answers);
}

/* Events, until there are enough, the time is over, or somebody ends it. */
static cli_exit
receive(subscription *to, ie_bus_client *client, int64_t timeout_ms)
{
    const int64_t deadline_ms = cli_now_ms() + timeout_ms;

    for (;;) {
        const int64_t left_ms = timeout_ms < 0 ? -1 : deadline_ms - cli_now_ms();
        bool          wants_input;
        bool          is_over;

        (void)pthread_mutex_lock(&to->lock);
        if (to->is_manual && !to->is_over)
            answers_give(to, client);
        is_over = to->is_over;
        wants_input = to->is_manual && manual_wants_input(&to->answers);
        (void)pthread_mutex_unlock(&to->lock);
        if (is_over)
            return CLI_OK;
        switch (cli_wait_input(timeout_ms < 0 ? -1
                               : left_ms > 0  ? left_ms
                                              : 0,
                               wants_input ? STDIN_FILENO : -1)) {
        case CLI_SIGNALLED: return CLI_OK;
        case CLI_WOKEN: break;
        case CLI_INPUT:
            (void)pthread_mutex_lock(&to->lock);
            manual_read(&to->answers);
            (void)pthread_mutex_unlock(&to->lock);
            break;
        case CLI_TIMED_OUT:
            if (to->wanted == 0)
                return CLI_OK;
            cli_say("%" PRId64 " of %" PRId64 " events %s in time", to->received, to->wanted,
                    to->is_manual ? "were answered" : "came");
            return CLI_FAILED;
        }
    }
}

/* ---- what was asked for ---- */

static bool
take_start(const cli *self, ie_bus_subscription *out)
{
    const char *since = cli_text(self, "since");
    int64_t     position = 0;
    int64_t     ago_ms = 0;

    if (cli_has(self, "from-start") + (since != NULL) + cli_has(self, "position") > 1) {
        (void)cli_usage(self, "--from-start, --since and --position exclude each other");
        return false;
    }
    if (!cli_number(self, "position", 0, 1, INT64_MAX, &position))
        return false;
    if (cli_has(self, "from-start"))
        out->start = IE_BUS_START_FIRST;
    if (cli_has(self, "position"))
        out->start = IE_BUS_START_POSITION;
    out->start_at = position;
    if (since == NULL)
        return true;
    out->start = IE_BUS_START_TIME;
    if (ie__duration_parse(since, &ago_ms)) {
        out->start_at = cli_now_ms() - ago_ms;
    } else if (ie__time_parse(&out->start_at, since, strlen(since)) != IE_OK) {
        (void)cli_usage(
            self, "--since: '%.40s' is neither a time such as 2026-12-31T23:59:00Z nor 10m, 2h, 1d",
            since);
        return false;
    }
    return true;
}

static bool
take_selection(const cli *self, ie_bus_subscription *out)
{
    static const struct {
        const char      *name;
        ie_bus_selection selection;
    } SELECTIONS[] = {{"round-robin", IE_BUS_ROUND_ROBIN},
                      {"random", IE_BUS_RANDOM},
                      {"hash", IE_BUS_HASH},
                      {"sticky", IE_BUS_STICKY},
                      {"broadcast", IE_BUS_BROADCAST}};
    const char *text = cli_text(self, "selection");

    for (size_t i = 0; i < sizeof SELECTIONS / sizeof *SELECTIONS; i++)
        if (text == NULL || strcmp(text, SELECTIONS[i].name) == 0) {
            out->selection = SELECTIONS[i].selection;
            return true;
        }
    (void)cli_usage(self,
                    "--selection: '%.40s' is none of round-robin, random, hash, sticky,"
                    " broadcast",
                    text);
    return false;
}

static cli_exit
take_all(const cli *self, subscription *to, ie_bus_subscription *out)
{
    static const char *const OF_GROUPS[] = {"from-start", "since",     "position",
                                            "ephemeral",  "selection", "ack-timeout"};
    const char              *ack = cli_text(self, "ack");
    int64_t                  number = 0;
    ie_error                 error = IE_ERROR_INIT;

    IE_BUS_SUBSCRIPTION_INIT(out);
    out->pattern = self->operands[0];
    out->group = cli_text(self, "group");
    if (ie_pattern_check(out->pattern, &error) != IE_OK)
        return cli_usage(self, "%s", error.message);
    for (size_t i = 0; i < sizeof OF_GROUPS / sizeof *OF_GROUPS; i++)
        if (cli_has(self, OF_GROUPS[i]) && out->group == NULL)
            return cli_usage(self, "--%s goes with --group", OF_GROUPS[i]);
    if (!take_start(self, out) || !take_selection(self, out))
        return CLI_USAGE;
    if (cli_has(self, "ephemeral") && out->start != IE_BUS_START_GROUP)
        return cli_usage(self, "an --ephemeral group has no place in the log to begin at");
    out->flags = cli_has(self, "ephemeral") ? IE_BUS_SUBSCRIBE_EPHEMERAL : 0;
    if (ack != NULL && strcmp(ack, "manual") != 0 && strcmp(ack, "auto") != 0)
        return cli_usage(self, "--ack: '%.40s' is neither auto nor manual", ack);
    to->is_manual = ack != NULL && strcmp(ack, "manual") == 0;
    out->flags |= to->is_manual ? IE_BUS_SUBSCRIBE_MANUAL : 0;
    if (!cli_duration(self, "ack-timeout", 0, &number))
        return CLI_USAGE;
    out->ack_timeout_ms = (uint32_t)(number < UINT32_MAX ? number : UINT32_MAX);
    if (!cli_number(self, "credit", to->is_manual ? 1 : 0, 1, 1000000, &number))
        return CLI_USAGE;
    out->credit = (uint32_t)number;
    out->on_delivery = event_arrived;
    out->user = to;
    return CLI_OK;
}

/* ---- the command ---- */

static cli_exit
subscribe_run(cli *self, subscription *to, const ie_bus_subscription *asked, int64_t timeout_ms)
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
    if (ie_bus_client_subscribe_with(client, asked, NULL, &error) != IE_OK)
        code = cli_fail(&error);
    if (code == CLI_OK)
        code = wait_subscribed(to, client, timeout_ms);
    if (code == CLI_OK) {
        if (!to->is_quiet)
            cli_say("subscribed to %s at %s", self->operands[0], to->url);
        code = receive(to, client, timeout_ms);
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
    ie_bus_subscription asked;
    int64_t             timeout_ms = -1;
    cli_exit            code;

    if (!cli_duration(self, "timeout", -1, &timeout_ms) ||
        !cli_number(self, "count", 0, 1, INT32_MAX, &to.wanted))
        return CLI_USAGE;
    code = take_all(self, &to, &asked);
    if (code != CLI_OK)
        return code;
    ie__url_redact(to.url, sizeof to.url,
                   cli_text(self, "from") != NULL ? cli_text(self, "from") : IE_BUS_URL_DEFAULT);
    (void)pthread_mutex_init(&to.lock, NULL);
    cli_wait_begin();
    code = subscribe_run(self, &to, &asked, timeout_ms);
    manual_fini(&to.answers);
    (void)pthread_mutex_destroy(&to.lock);
    return code;
}
