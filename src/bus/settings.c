/* The table of the server's settings. */
#include "settings.h"

#include <stddef.h>
#include <string.h>

#include "core.h"

#define OPTIONS_SIZE_MIN sizeof(ie_bus_server_options)
#define FLAGS_KNOWN      (IE_BUS_SERVER_NO_EB1 | IE_BUS_SERVER_NO_ANONYMOUS)

#define AT(member) .field = #member, .offset = offsetof(ie_bus_server_options, member)
#define KIB        UINT64_C(1024)
#define MIB        (KIB * 1024)
#define GIB        (MIB * 1024)
#define TIB        (GIB * 1024)
#define MINUTE_MS  60000
#define HOUR_MS    (60 * MINUTE_MS)
#define DAY_MS     (24 * HOUR_MS)

static const char *const LAGGING[] = {"keep", "drop", NULL};
static const char *const CLIENT_CERT[] = {"none", "optional", "required", NULL};
static const char *const YES_NO[] = {"yes", "no", NULL};

const ie__setting ie__settings[] = {
    {.section = "Addresses",
     .name = "listen",
     AT(listen),
     .kind = IE__SETTING_URLS,
     .shown = IE_BUS_URL_DEFAULT,
     .max = 16,
     .is_fixed = true,
     .help = "where to listen: socket://HOST:PORT, sockets://HOST:PORT (TLS), unix:/PATH; port 0: "
             "any free one"},
    {.name = "name",
     AT(name),
     .kind = IE__SETTING_TEXT,
     .shown = "ie",
     .is_fixed = true,
     .help = "told to clients; letters, digits and dots"},
    {.name = "eb1",
     AT(flags),
     .kind = IE__SETTING_SWITCH,
     .words = YES_NO,
     .flag = IE_BUS_SERVER_NO_EB1,
     .help = "take clients of eb/1 and of WebSocket"},

    {.section = "Storage",
     .name = "data",
     AT(data_dir),
     .kind = IE__SETTING_PATH,
     .shown = "",
     .is_fixed = true,
     .help = "folder of the log, bus.db; without one nothing is stored"},
    {.name = "durable",
     AT(durable_topics),
     .kind = IE__SETTING_PATTERNS,
     .shown = "",
     .max = 1000,
     .help = "topics that are stored whatever their publisher says"},
    {.name = "ephemeral",
     AT(ephemeral_topics),
     .kind = IE__SETTING_PATTERNS,
     .shown = "",
     .max = 1000,
     .help = "topics that are never stored; beats durable"},
    {.name = "retention",
     AT(retention_s),
     .kind = IE__SETTING_SECONDS,
     .fallback = 7 * 86400,
     .min = 1,
     .max = UINT32_C(36500) * 86400,
     .help = "age at which a stored event may go"},
    {.name = "retention_bytes_max",
     AT(retention_bytes_max),
     .kind = IE__SETTING_BYTES,
     .fallback = 4 * GIB,
     .min = 1,
     .max = 1024 * TIB,
     .help = "size of the log; beyond it retention_lagging decides"},
    {.name = "retention_lagging",
     AT(retention_lagging),
     .kind = IE__SETTING_CHOICE,
     .words = LAGGING,
     .shown = "keep",
     .max = IE_BUS_LAGGING_DROP,
     .help = "what a group has not had yet: keep (a full log refuses publishes) or drop (counted)"},
    {.name = "dedupe_window",
     AT(dedupe_window_ms),
     .kind = IE__SETTING_MS,
     .fallback = 2 * MINUTE_MS,
     .min = 1,
     .max = DAY_MS,
     .help = "the same source and id again within it is stored once"},
    {.name = "dedupe_ids_max",
     AT(dedupe_ids_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 1000000,
     .min = 1,
     .max = 100000000,
     .help = "ids remembered for that, the newest"},
    {.name = "store_queue_bytes_max",
     AT(store_queue_bytes_max),
     .kind = IE__SETTING_BYTES,
     .fallback = 64 * MIB,
     .min = 1,
     .max = TIB,
     .help = "waiting to be stored; beyond it publishes are refused"},

    {.section = "Delivery",
     .name = "groups_max",
     AT(groups_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 10000,
     .min = 1,
     .max = 1000000,
     .help = "durable groups"},
    {.name = "group_events_max",
     AT(group_events_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 10000,
     .min = 1,
     .max = 10000000,
     .help = "events waiting for one group; beyond it publishes are refused"},
    {.name = "group_bytes_max",
     AT(group_bytes_max),
     .kind = IE__SETTING_BYTES,
     .fallback = 32 * MIB,
     .min = 1,
     .max = TIB,
     .help = "... and their size"},
    {.name = "credit_max",
     AT(credit_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 10000,
     .min = 1,
     .max = 1u << 20,
     .help = "unacknowledged deliveries per subscription"},
    {.name = "ack_timeout",
     AT(ack_timeout_ms),
     .kind = IE__SETTING_MS,
     .fallback = 30000,
     .min = 1,
     .max = DAY_MS,
     .help = "a member of a group that answers nothing for so long loses its events to others"},
    {.name = "attempts_max",
     AT(attempts_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 16,
     .min = 1,
     .max = 1000000,
     .help = "deliveries of one stored event to one group, then it is a dead letter"},
    {.name = "retry_delay",
     AT(retry_delay_ms),
     .kind = IE__SETTING_MS,
     .fallback = 1000,
     .min = 1,
     .max = DAY_MS,
     .help = "after the first failure; doubles, with jitter"},
    {.name = "retry_delay_max",
     AT(retry_delay_ms_max),
     .kind = IE__SETTING_MS,
     .fallback = 5 * MINUTE_MS,
     .min = 1,
     .max = DAY_MS,
     .help = "where the doubling ends"},
    {.name = "queries_in_flight_max",
     AT(queries_in_flight_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 1024,
     .min = 1,
     .max = 1000000,
     .help = "unanswered queries per connection"},
    {.name = "query_timeout_max",
     AT(query_timeout_ms_max),
     .kind = IE__SETTING_MS,
     .fallback = 5 * MINUTE_MS,
     .min = 1,
     .max = DAY_MS,
     .help = "the longest deadline of a query"},

    {.section = "Limits",
     .name = "connections_max",
     AT(connections_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 4096,
     .min = 1,
     .max = 1000000,
     .help = "connections"},
    {.name = "connections_per_address_max",
     AT(connections_per_address_max),
     .kind = IE__SETTING_COUNT,
     .max = 1000000,
     .help = "... of one address; 0: no limit"},
    {.name = "unauthenticated_max",
     AT(unauthenticated_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 128,
     .min = 1,
     .max = 1000000,
     .help = "... that have not said hello"},
    {.name = "subscriptions_max",
     AT(subscriptions_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 100000,
     .min = 1,
     .max = 10000000,
     .help = "subscriptions of all connections"},
    {.name = "subscriptions_per_client_max",
     AT(subscriptions_per_client_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 256,
     .min = 1,
     .max = 100000,
     .help = "... of one connection"},
    {.name = "publishes_in_flight_max",
     AT(publishes_in_flight_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 8192,
     .min = 1,
     .max = 1u << 20,
     .help = "unanswered publishes per connection"},
    {.name = "data_bytes_max",
     AT(data_bytes_max),
     .kind = IE__SETTING_BYTES,
     .is_narrow = true,
     .fallback = IE_DATA_BYTES_MAX,
     .min = 1,
     .max = IE_DATA_BYTES_MAX,
     .help = "payload of one event"},
    {.name = "out_bytes_max",
     AT(out_bytes_max),
     .kind = IE__SETTING_BYTES,
     .fallback = 8 * MIB,
     .min = 1,
     .max = TIB,
     .help = "waiting for one client; beyond it, it is disconnected"},
    {.name = "out_bytes_total_max",
     AT(out_bytes_total_max),
     .kind = IE__SETTING_BYTES,
     .fallback = 256 * MIB,
     .min = 1,
     .max = TIB,
     .help = "waiting for all clients together"},
    {.name = "memory_bytes_max",
     AT(memory_bytes_max),
     .kind = IE__SETTING_BYTES,
     .fallback = 512 * MIB,
     .min = 1,
     .max = TIB,
     .help = "all buffers together; beyond it publishes are refused"},

    {.section = "Times",
     .name = "hello_timeout",
     AT(hello_timeout_ms),
     .kind = IE__SETTING_MS,
     .fallback = 5000,
     .min = 1,
     .max = HOUR_MS,
     .help = "from accept to hello"},
    {.name = "frame_timeout",
     AT(frame_timeout_ms),
     .kind = IE__SETTING_MS,
     .fallback = 30000,
     .min = 1,
     .max = HOUR_MS,
     .help = "from the first to the last byte of a frame"},
    {.name = "ping_interval",
     AT(ping_interval_ms),
     .kind = IE__SETTING_MS,
     .fallback = 20000,
     .min = 1,
     .max = HOUR_MS,
     .help = "silence after which a client is asked whether it is there"},
    {.name = "ping_missed_max",
     AT(ping_missed_max),
     .kind = IE__SETTING_COUNT,
     .fallback = 2,
     .min = 1,
     .max = 100,
     .help = "silent intervals until it is disconnected"},
    {.name = "drain",
     AT(drain_ms),
     .kind = IE__SETTING_MS,
     .fallback = 30000,
     .min = 1,
     .max = HOUR_MS,
     .help = "wait at most so long for the clients when stopping"},

    {.section = "Security",
     .name = "users",
     AT(users_file),
     .kind = IE__SETTING_PATH,
     .shown = "",
     .help = "who may connect, from 'ie bus passwd'; not readable for others"},
    {.name = "acl",
     AT(acl_file),
     .kind = IE__SETTING_PATH,
     .shown = "",
     .help = "who may do what; without one, whoever may connect may do everything"},
    {.name = "anonymous",
     AT(flags),
     .kind = IE__SETTING_SWITCH,
     .words = YES_NO,
     .flag = IE_BUS_SERVER_NO_ANONYMOUS,
     .help = "loopback and unix sockets need no user; other addresses always need one"},
    {.name = "login_delay",
     AT(login_delay_ms),
     .kind = IE__SETTING_MS,
     .fallback = 500,
     .min = 1,
     .max = MINUTE_MS,
     .help = "after 5 failures of an address or user; doubles"},
    {.name = "tls_cert",
     AT(tls_cert_file),
     .kind = IE__SETTING_PATH,
     .shown = "",
     .help = "PEM chain; sockets:// needs it"},
    {.name = "tls_key",
     AT(tls_key_file),
     .kind = IE__SETTING_PATH,
     .shown = "",
     .help = "PEM key of tls_cert; not readable for others"},
    {.name = "tls_ca",
     AT(tls_ca_file),
     .kind = IE__SETTING_PATH,
     .shown = "",
     .help = "PEM: who signs client certificates"},
    {.name = "client_cert",
     AT(client_cert),
     .kind = IE__SETTING_CHOICE,
     .words = CLIENT_CERT,
     .shown = "none",
     .max = IE_BUS_CLIENT_CERT_REQUIRED,
     .help = "of sockets://: none, optional or required"},
};
const size_t ie__setting_count = sizeof ie__settings / sizeof ie__settings[0];

/* The enums of the options are read and written as what they are stored in. */
_Static_assert(sizeof(ie_bus_lagging) == sizeof(uint32_t), "an enum is four bytes");
_Static_assert(sizeof(ie_bus_client_cert) == sizeof(uint32_t), "an enum is four bytes");

static bool
is_wide(const ie__setting *setting)
{
    return setting->kind == IE__SETTING_BYTES && !setting->is_narrow;
}

bool
ie__setting_is_number(const ie__setting *setting)
{
    return setting->kind <= IE__SETTING_CHOICE;
}

uint64_t
ie__setting_get(const ie__setting *setting, const ie_bus_server_options *options)
{
    const char *at = (const char *)options + setting->offset;
    uint64_t    wide;
    uint32_t    narrow;

    if (is_wide(setting)) {
        memcpy(&wide, at, sizeof wide);
        return wide;
    }
    memcpy(&narrow, at, sizeof narrow);
    return narrow;
}

void
ie__setting_put(const ie__setting *setting, ie_bus_server_options *options, uint64_t value)
{
    char          *at = (char *)options + setting->offset;
    const uint32_t narrow = (uint32_t)value;

    if (is_wide(setting))
        memcpy(at, &value, sizeof value);
    else
        memcpy(at, &narrow, sizeof narrow);
}

void
ie_bus_server_options_init(ie_bus_server_options *options, size_t size)
{
    if (size < sizeof(size_t))
        return;
    memset(options, 0, size);
    options->size = size;
}

ie_status
ie__settings_import(ie_bus_server_options *out, const ie_bus_server_options *given, ie_error *err)
{
    ie_status status = IE_OK;

    ie_bus_server_options_init(out, sizeof *out);
    if (given != NULL)
        status = ie__struct_import(out, sizeof *out, given, OPTIONS_SIZE_MIN);
    if (status != IE_OK)
        return ie_error_set(err, status, "bus options: %s",
                            status == IE_EINVAL ? "size is not set; use IE_BUS_SERVER_OPTIONS_INIT"
                                                : "made for a newer library");
    if ((out->flags & ~FLAGS_KNOWN) != 0)
        return ie_error_set(err, IE_EINVAL, "bus options: unknown flags %x", out->flags);
    for (size_t i = 0; i < ie__setting_count; i++) {
        const ie__setting *setting = &ie__settings[i];
        const uint64_t value = ie__setting_is_number(setting) ? ie__setting_get(setting, out) : 0;

        if (value > setting->max && ie__setting_is_number(setting))
            return ie_error_set(err, IE_EINVAL, "%s: at most %llu", setting->field,
                                (unsigned long long)setting->max);
        if (value == 0 && ie__setting_is_number(setting))
            ie__setting_put(setting, out, setting->fallback);
    }
    return IE_OK;
}
