/* ie bus: a socket bus in the foreground. */
#include "cli.h"

#include <ie/bus.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "core.h"

#define FILES_BESIDE_CLIENTS 64   /* listeners, the log, standard streams, room to breathe */
#define LOOP_SILENT_MS_MAX   5000 /* its timer runs every second */

const cli_flag cli_bus_flags[] = {
    {.name = "config", .value = "FILE", .help = "read settings from FILE (variable IE_BUS_CONFIG)"},
    {.name = "listen",
     .value = "URL",
     .repeats = true,
     .help = "where to listen; port 0: any free one (socket://127.0.0.1:9100)"},
    {.name = "name", .value = "NAME", .help = "told to clients (ie)"},
    {.name = "data", .value = "DIR", .help = "keep stored events in this folder"},
    {.name = "durable",
     .value = "PATTERN",
     .repeats = true,
     .help = "topics that are stored whatever their publisher says"},
    {.name = "ephemeral",
     .value = "PATTERN",
     .repeats = true,
     .help = "topics that are never stored; beats --durable"},
    {.name = "users", .value = "FILE", .help = "who may connect"},
    {.name = "acl", .value = "FILE", .help = "who may do what"},
    {.name = "tls-cert", .value = "FILE", .help = "PEM chain, for sockets:// addresses"},
    {.name = "tls-key", .value = "FILE", .help = "PEM key of that"},
    {.name = "tls-ca", .value = "FILE", .help = "PEM: who signs client certificates"},
    {.name = "client-cert", .value = "WHEN", .help = "none (default), optional or required"},
    {.name = "drain",
     .value = "TIME",
     .help = "wait at most so long for clients when stopping (30s)"},
    {.name = "set",
     .value = "NAME=VALUE",
     .repeats = true,
     .help = "any setting: out_bytes_max=16MiB ('--print-config' lists them)"},
    {.name = "check-config", .help = "say whether the settings are right, and stop"},
    {.name = "print-config", .help = "print every setting with where it comes from, and stop"},
    {.name = "log-format", .value = "FORMAT", .help = "text (default) or json"},
    {.name = "quiet", .help = "warnings and errors only", .letter = 'q'},
    {.name = "verbose", .help = "say more", .letter = 'v'},
    {.name = NULL},
};

typedef struct service {
    const cli     *self;
    ie_logger      logger;
    ie_bus_config *config; /* in effect */
    ie_bus_server *server;
    const char    *file; /* NULL: none */
    int64_t        alive_ms;
    uint64_t       turns;
    uint32_t       drain_ms;
    bool           was_cut;
    bool           had_terminal;
} service;

/* ---- settings ------------------------------------------------------------------------------- */

static ie_status
config_flag(const cli *self, ie_bus_config *config, size_t index, ie_error *err)
{
    const cli_flag *flag = self->given[index].flag;
    const char     *value = self->given[index].value;
    char            name[64];
    char            place[64];

    (void)snprintf(place, sizeof place, "--%s", flag->name);
    if (strcmp(flag->name, "set") == 0) {
        const char *equals = strchr(value, '=');

        if (equals == NULL) {
            ie__config_fault(config, place, "'%.40s' is not NAME=VALUE", value);
            return IE_OK;
        }
        (void)snprintf(name, sizeof name, "%.*s", (int)(equals - value < 63 ? equals - value : 63),
                       value);
        return ie__config_flag(config, name, equals + 1, place, err);
    }
    (void)snprintf(name, sizeof name, "%s", flag->name);
    for (char *at = name; *at != '\0'; at++)
        *at = *at == '-' ? '_' : *at;
    return ie__config_find(name) != NULL ? ie__config_flag(config, name, value, place, err) : IE_OK;
}

/* File, environment, flags. Faults go to the hooks, one by one. */
static ie_status
config_make(const service *bus, const ie__config_hooks *hooks, ie_bus_config **out, ie_error *err)
{
    ie_bus_config *config = NULL;
    ie_status      status = ie__config_new(&config, hooks, err);

    if (status == IE_OK && bus->file != NULL)
        status = ie__config_read_file(config, bus->file, err);
    if (status == IE_OK)
        status = ie__config_environment(config, environ, err);
    for (size_t i = 0; i < bus->self->given_count && status == IE_OK; i++)
        status = config_flag(bus->self, config, i, err);
    if (status == IE_OK)
        status = ie__config_finish(config, err);
    *out = config; /* with faults, too: they can be counted */
    return status;
}

static void
say_fault(void *user, bool is_fault, const char *message)
{
    (void)user;
    cli_say(is_fault ? "%s" : "warning: %s", message);
}

static cli_exit
config_begin(service *bus)
{
    const ie__config_hooks hooks = {.say = say_fault};
    ie_error               error = IE_ERROR_INIT;
    size_t                 faults;

    if (config_make(bus, &hooks, &bus->config, &error) == IE_OK)
        return CLI_OK;
    faults = bus->config != NULL ? ie__config_faults(bus->config) : 0;
    if (faults == 0)
        return cli_fail(&error);
    if (faults > IE__CONFIG_FAULTS_MAX)
        cli_say("and %zu faults more", faults - IE__CONFIG_FAULTS_MAX);
    return CLI_USAGE;
}

static cli_exit
config_check(const service *bus)
{
    const size_t variables = ie__config_count(bus->config, IE__CONFIG_ENVIRONMENT);
    const size_t flags = ie__config_count(bus->config, IE__CONFIG_FLAG);
    ie_error     error = IE_ERROR_INIT;

    if (ie_bus_server_check(ie_bus_config_options(bus->config), &error) != IE_OK)
        return cli_fail(&error);
    if (bus->file != NULL)
        (void)printf("%s is right: %zu settings; %zu more from variables, %zu from flags\n",
                     bus->file, ie__config_count(bus->config, IE__CONFIG_FILE), variables, flags);
    else
        (void)printf("the settings are right: %zu from variables, %zu from flags, no file\n",
                     variables, flags);
    return CLI_OK;
}

static cli_exit
config_print(const service *bus)
{
    ie_buffer out = {0};
    ie_error  error = IE_ERROR_INIT;

    if (ie__config_print(bus->config, &out, &error) != IE_OK) {
        ie_buffer_fini(&out);
        return cli_fail(&error);
    }
    (void)fwrite(out.data, 1, out.size, stdout);
    ie_buffer_fini(&out);
    return CLI_OK;
}

/* ---- reload --------------------------------------------------------------------------------- */

static void
log_fault(void *user, bool is_fault, const char *message)
{
    const service *bus = user;

    ie__log(&bus->logger, is_fault ? IE_LOG_ERROR : IE_LOG_WARN, "bus", "%s", message);
}

static void
log_changes(const service *bus, const ie_bus_config *now)
{
    for (size_t i = 0; i < ie__setting_count; i++) {
        const char *name = ie__settings[i].name;
        size_t      differs = 0;
        const char *value;
        char        before[IE__CONFIG_VALUE_BYTES_MAX + 1];

        for (size_t j = 0; (value = ie__config_text(bus->config, name, j)) != NULL; j++) {
            (void)snprintf(before, sizeof before, "%s", value);
            value = ie__config_text(now, name, j);
            if (value == NULL || strcmp(value, before) != 0) {
                ie__log(&bus->logger, IE_LOG_INFO, "bus", "%s is now %.200s (was %.200s)", name,
                        value != NULL && value[0] != '\0' ? value : "not set",
                        before[0] != '\0' ? before : "not set");
                differs++;
            }
            if (value == NULL)
                break;
        }
        if (differs > 0)
            continue;
        for (size_t j = 0; ie__config_text(now, name, j) != NULL; j++)
            if (ie__config_text(bus->config, name, j) == NULL)
                ie__log(&bus->logger, IE_LOG_INFO, "bus", "%s has %.200s as well now", name,
                        ie__config_text(now, name, j));
    }
}

static ie_status
reload(service *bus, ie_bus_config **now, ie_error *err)
{
    const ie__config_hooks hooks = {.say = log_fault, .user = bus};
    ie_bus_server_options  options;
    ie_status              status = config_make(bus, &hooks, now, err);
    const char            *fixed;

    if (status != IE_OK)
        return status;
    fixed = ie__config_fixed_change(bus->config, *now);
    if (fixed != NULL)
        return ie_error_set(err, IE_EINVAL,
                            "%s cannot change while the bus runs; restart it to change that",
                            fixed);
    options = *ie_bus_config_options(*now);
    options.logger = bus->logger;
    return ie_bus_server_reload(bus->server, &options, err);
}

static void
bus_reload(service *bus)
{
    ie_bus_config *now = NULL;
    ie_error       error = IE_ERROR_INIT;

    (void)cli_notify("RELOADING=1\nMONOTONIC_USEC=%" PRId64, ie__mono_ns() / 1000);
    if (reload(bus, &now, &error) == IE_OK) {
        log_changes(bus, now);
        ie_bus_config_free(bus->config);
        bus->config = now;
        ie__log(&bus->logger, IE_LOG_INFO, "bus", "the configuration was reloaded");
        (void)cli_notify("READY=1\nSTATUS=The configuration was reloaded");
        return;
    }
    ie__log(&bus->logger, IE_LOG_ERROR, "bus",
            "the configuration was not reloaded, the bus goes on as before: %s", error.message);
    (void)cli_notify("READY=1\nSTATUS=The configuration was not reloaded: %s", error.message);
    ie_bus_config_free(now);
}

/* ---- running -------------------------------------------------------------------------------- */

/* Nobody reads our memory, and what we make is ours alone. */
static void
harden(void)
{
    (void)umask(S_IRWXG | S_IRWXO);
#if !defined(__SANITIZE_ADDRESS__) /* which looks for leaks by tracing itself */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

/* As many files as we may have; the soft limit is for programs that use select(). */
static void
raise_file_limit(const service *bus)
{
    const ie__setting *setting = ie__config_find("connections_max");
    uint64_t           wanted = ie__setting_get(setting, ie_bus_config_options(bus->config));
    struct rlimit      limit;

    if (wanted == 0)
        wanted = setting->fallback;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < wanted + FILES_BESIDE_CLIENTS)
        ie__log(&bus->logger, IE_LOG_WARN, "bus",
                "only %" PRIu64 " files may be open, fewer than connections_max (%" PRIu64
                ") needs; raise the limit (ulimit -n, LimitNOFILE=)",
                (uint64_t)limit.rlim_max, wanted);
}

static cli_exit
start_fail(const ie_error *error)
{
    const cli_exit code = cli_fail(error);

    if (error->status == IE_EEXIST)
        cli_hint("another bus may be running; '--listen socket://127.0.0.1:0' takes any free port");
    else if (strstr(error->message, "permission denied") != NULL)
        cli_hint("ports below 1024 and the folders of others need more rights; take another port "
                 "or path");
    return code;
}

/* For a person who sees it for the first time. */
static void
tell_newcomer(const service *bus)
{
    const char *url = ie_bus_server_address(bus->server, 0);
    const char *data = ie_bus_config_options(bus->config)->data_dir;
    const bool  is_default = strcmp(url, IE_BUS_URL_DEFAULT) == 0;

    if (data != NULL)
        cli_say("stored events are kept in %s", data);
    else
        cli_say("nothing is stored: events go to who is connected; '--data DIR' keeps them");
    cli_hint("in another terminal:  ie subscribe 'orders.>'%s%s", is_default ? "" : " --from ",
             is_default ? "" : url);
    cli_hint("and in a third:       ie publish orders.placed '{\"order\":1}' --to %s", url);
    cli_hint("Ctrl-C stops the bus");
}

static void
tell_ready(service *bus)
{
    (void)printf("ie bus ready on");
    for (size_t i = 0; i < ie_bus_server_address_count(bus->server); i++)
        (void)printf(" %s", ie_bus_server_address(bus->server, i));
    (void)printf("\n");
    cli_flush();
    (void)cli_notify("READY=1\nMAINPID=%ld\nSTATUS=Listening on %s", (long)getpid(),
                     ie_bus_server_address(bus->server, 0));
    if (bus->had_terminal && !cli_has(bus->self, "quiet"))
        tell_newcomer(bus);
}

/* Alive is when the server's thread goes round, not when this one does. */
static void
watchdog(service *bus)
{
    ie_bus_server_stats stats = {.size = sizeof stats};
    const int64_t       now_ms = ie__mono_ns() / 1000000;

    ie_bus_server_stats_get(bus->server, &stats);
    if (stats.turns != bus->turns)
        bus->alive_ms = now_ms;
    bus->turns = stats.turns;
    if (now_ms - bus->alive_ms <= LOOP_SILENT_MS_MAX)
        (void)cli_notify("WATCHDOG=1");
}

/* Its terminal was closed, instead of somebody asking for a reload. */
static bool
has_lost_terminal(const service *bus)
{
    return bus->had_terminal && isatty(STDOUT_FILENO) == 0;
}

/* Until a signal says that it is enough. */
static void
run(service *bus)
{
    const int64_t every_ms = cli_watchdog_ms() > 0 ? cli_watchdog_ms() / 2 : -1;

    bus->alive_ms = ie__mono_ns() / 1000000;
    for (;;) {
        const cli_wait_end end = cli_wait(every_ms);

        if (end == CLI_SIGNALLED)
            return;
        if (cli_wait_hung_up()) {
            if (has_lost_terminal(bus))
                return;
            bus_reload(bus);
        }
        if (every_ms > 0)
            watchdog(bus);
    }
}

/* ---- stopping ------------------------------------------------------------------------------- */

static void *
stop_main(void *arg)
{
    service *bus = arg;

    bus->was_cut = ie_bus_server_stop(bus->server, bus->drain_ms) != IE_OK;
    cli_wait_wake();
    return NULL;
}

static void
tell_stopped(const service *bus)
{
    ie_bus_server_stats stats = {.size = sizeof stats};

    ie_bus_server_stats_get(bus->server, &stats);
    if (bus->was_cut)
        ie__log(&bus->logger, IE_LOG_WARN, "bus",
                "some clients did not leave in time and were cut off");
    if (!cli_has(bus->self, "quiet"))
        cli_say("stopped; %" PRIu64 " events were published, %" PRIu64 " delivered",
                stats.published, stats.delivered);
}

/* Drain, with an ear for whoever cannot wait. */
static void
stop(service *bus)
{
    const ie__setting  *setting = ie__config_find("drain");
    const uint64_t      given = ie__setting_get(setting, ie_bus_config_options(bus->config));
    ie_bus_server_stats stats = {.size = sizeof stats};
    pthread_t           thread;

    bus->drain_ms = (uint32_t)(given != 0 ? given : setting->fallback);
    ie_bus_server_stats_get(bus->server, &stats);
    (void)cli_notify("STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64,
                     ((uint64_t)bus->drain_ms + 5000) * 1000);
    if (bus->had_terminal && stats.connections > 0)
        cli_say("stopping: %" PRIu64 " clients are told; Ctrl-C again stops at once",
                stats.connections);
    if (pthread_create(&thread, NULL, stop_main, bus) != 0) {
        (void)stop_main(bus);
        tell_stopped(bus);
        return;
    }
    for (;;) {
        const cli_wait_end end = cli_wait(-1);

        if (end == CLI_WOKEN && !cli_wait_hung_up())
            break;
        if (end ==
            CLI_SIGNALLED) { /* what was acknowledged is stored; the rest is told by the cut */
            ie__log(&bus->logger, IE_LOG_WARN, "bus",
                    "stopped at once by a second signal; clients were cut off");
            _exit(CLI_FAILED);
        }
    }
    (void)pthread_join(thread, NULL);
    tell_stopped(bus);
}

static cli_exit
serve(service *bus)
{
    ie_bus_server_options options = *ie_bus_config_options(bus->config);
    ie_error              error = IE_ERROR_INIT;

    options.logger = bus->logger;
    harden();
    raise_file_limit(bus);
    cli_wait_begin_hangup();
    if (ie_bus_server_start(&bus->server, &options, &error) != IE_OK)
        return start_fail(&error);
    tell_ready(bus);
    run(bus);
    stop(bus);
    ie_bus_server_close(bus->server);
    return CLI_OK;
}

cli_exit
cli_bus(cli *self)
{
    service     bus = {.self = self, .had_terminal = cli_is_terminal()};
    const char *format = cli_text(self, "log-format");
    cli_exit    code;

    if (format != NULL && strcmp(format, "text") != 0 && strcmp(format, "json") != 0)
        return cli_usage(self, "--log-format: '%.40s' is not one of text, json", format);
    bus.file = cli_has(self, "config") ? cli_text(self, "config") : getenv("IE_BUS_CONFIG");
    if (bus.file != NULL && bus.file[0] == '\0')
        bus.file = NULL;
    bus.logger = cli_logger(self);
    code = config_begin(&bus);
    if (code == CLI_OK && cli_has(self, "print-config"))
        code = config_print(&bus);
    else if (code == CLI_OK && cli_has(self, "check-config"))
        code = config_check(&bus);
    else if (code == CLI_OK)
        code = serve(&bus);
    ie_bus_config_free(bus.config);
    return code;
}
