/* The configuration of a server: values by source, their checks, the options they make. */
#include "config.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "address.h"
#include "core.h"
#include "units.h"

#define FAULT_BYTES_MAX 512

typedef struct value {
    ie__config_source source;
    size_t            count; /* of a list; else 0 or 1 */
    char            **items; /* as they were written; paths made whole */
    uint64_t          number;
    char             *place; /* where it was set: "bus.conf:3:1", "--drain" */
} value;

struct ie_bus_config {
    ie_bus_server_options options;
    ie__config_hooks      hooks;
    size_t                fault_count;
    ie_error              first;
    value                 values[]; /* by setting */
};

static const char *
setting_name_at(const void *of, size_t index)
{
    (void)of;
    return ie__settings[index].name;
}

const ie__setting *
ie__config_find(const char *name)
{
    for (size_t i = 0; i < ie__setting_count; i++)
        if (strcmp(ie__settings[i].name, name) == 0)
            return &ie__settings[i];
    return NULL;
}

static bool
is_list(const ie__setting *setting)
{
    return setting->kind == IE__SETTING_URLS || setting->kind == IE__SETTING_PATTERNS;
}

static value *
value_of(const ie_bus_config *config, const ie__setting *setting)
{
    return (value *)&config->values[setting - ie__settings];
}

/* ---- faults --------------------------------------------------------------------------------- */

void
ie__config_fault(ie_bus_config *config, const char *place, const char *fmt, ...)
{
    char    what[FAULT_BYTES_MAX];
    char    line[2 * FAULT_BYTES_MAX];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    (void)snprintf(line, sizeof line, "%s: %s", place, what);
    (void)ie_error_set(&config->first, IE_EINVAL, "%s", line);
    config->fault_count++;
    if (config->hooks.say != NULL && config->fault_count <= IE__CONFIG_FAULTS_MAX)
        config->hooks.say(config->hooks.user, true, line);
}

void
ie__config_fault_unknown(ie_bus_config *config, const char *place, const char *name)
{
    const char *meant = ie__suggest(name, setting_name_at, NULL, ie__setting_count);

    /* Who knows the options of the library writes their names. */
    for (size_t i = 0; i < ie__setting_count; i++)
        if (strcmp(ie__settings[i].field, name) == 0 && ie__settings[i].flag == 0)
            meant = ie__settings[i].name;
    if (meant != NULL)
        ie__config_fault(config, place, "'%.40s' is no setting; did you mean '%s'?", name, meant);
    else
        ie__config_fault(config, place,
                         "'%.40s' is no setting; 'ie bus --print-config' shows all of them", name);
}

/* ---- one value ------------------------------------------------------------------------------ */

static void
number_text(char out[IE__UNITS_SIZE], const ie__setting *setting, uint64_t number)
{
    switch (setting->kind) {
    case IE__SETTING_BYTES: ie__bytes_format(out, number); break;
    case IE__SETTING_MS: ie__duration_format(out, number); break;
    case IE__SETTING_SECONDS: ie__duration_format(out, number * 1000); break;
    default: (void)snprintf(out, IE__UNITS_SIZE, "%" PRIu64, number);
    }
}

static bool
count_parse(const char *text, int64_t *number)
{
    return text[0] != '\0' && strspn(text, "0123456789") == strlen(text) &&
           ie__bytes_parse(text, number);
}

/* Why the text is no number of this setting's; false. */
static bool
number_check(const ie__setting *setting, const char *text, uint64_t *out, ie_error *why)
{
    char    least[IE__UNITS_SIZE];
    char    most[IE__UNITS_SIZE];
    int64_t number = 0;

    if (setting->kind == IE__SETTING_COUNT && !count_parse(text, &number))
        (void)ie_error_set(why, IE_EINVAL, "'%.40s' is not a whole number", text);
    else if (setting->kind == IE__SETTING_BYTES && !ie__bytes_parse(text, &number))
        (void)ie_error_set(why, IE_EINVAL, "'%.40s' is no size, such as 65536, 64KiB, 8MiB or 1GiB",
                           text);
    else if (setting->kind >= IE__SETTING_MS && !ie__duration_parse(text, &number))
        (void)ie_error_set(why, IE_EINVAL,
                           "'%.40s' is no time with its unit, such as 500ms, 30s, 5m, 2h or 7d",
                           text);
    if (why->status != IE_OK)
        return false;
    *out = (uint64_t)number;
    if (setting->kind == IE__SETTING_SECONDS) {
        if (number % 1000 != 0)
            return (void)ie_error_set(why, IE_EINVAL, "%.40s is no whole number of seconds", text),
                   false;
        *out = (uint64_t)number / 1000;
    }
    if (*out >= setting->min && *out <= setting->max)
        return true;
    number_text(least, setting, setting->min);
    number_text(most, setting, setting->max);
    (void)ie_error_set(why, IE_EINVAL, "%.40s is out of bounds: %s to %s", text, least, most);
    return false;
}

typedef struct words {
    const char *const *at;
} words;

static const char *
word_at(const void *of, size_t index)
{
    return ((const words *)of)->at[index];
}

static bool
choice_check(const ie__setting *setting, const char *text, uint64_t *out, ie_error *why)
{
    const words list = {setting->words};
    char        known[128] = "";
    const char *meant;
    size_t      count = 0;

    for (; setting->words[count] != NULL; count++) {
        const size_t used = strlen(known);

        if (strcmp(setting->words[count], text) == 0) {
            *out = count;
            return true;
        }
        (void)snprintf(known + used, sizeof known - used, "%s%s", count > 0 ? ", " : "",
                       setting->words[count]);
    }
    meant = ie__suggest(text, word_at, &list, count);
    (void)ie_error_set(why, IE_EINVAL, "'%.40s' is not one of %s%s%s%s", text, known,
                       meant != NULL ? "; did you mean '" : "", meant != NULL ? meant : "",
                       meant != NULL ? "'?" : "");
    return false;
}

/* What can be said of an address without binding it; the port 0 is only for listening. */
static bool
url_check(const char *text, ie_error *why)
{
    const size_t bytes = strlen(text);
    const bool   is_any = bytes > 2 && strcmp(text + bytes - 2, ":0") == 0;
    char         plain[IE__CONFIG_VALUE_BYTES_MAX + 1];
    ie__url      url;
    ie__address  address;

    (void)snprintf(plain, sizeof plain, "%.*s", (int)(is_any ? bytes - 2 : bytes), text);
    return ie__address_parse(&address, &url, plain, why) == IE_OK;
}

static bool
value_check(const ie__setting *setting, const char *text, uint64_t *number, ie_error *why)
{
    if (text[0] == '\0')
        return (void)ie_error_set(why, IE_EINVAL, "the value is empty"), false;
    if (strlen(text) > IE__CONFIG_VALUE_BYTES_MAX)
        return (void)ie_error_set(why, IE_EINVAL, "the value is longer than %d bytes",
                                  IE__CONFIG_VALUE_BYTES_MAX),
               false;
    switch (setting->kind) {
    case IE__SETTING_CHOICE:
    case IE__SETTING_SWITCH: return choice_check(setting, text, number, why);
    case IE__SETTING_TEXT: return ie_topic_check(text, why) == IE_OK;
    case IE__SETTING_PATH: return true;
    case IE__SETTING_URLS: return url_check(text, why);
    case IE__SETTING_PATTERNS: return ie_pattern_check(text, why) == IE_OK;
    default: return number_check(setting, text, number, why);
    }
}

/* ---- keeping values ------------------------------------------------------------------------- */

static void
value_clear(value *at)
{
    for (size_t i = 0; i < at->count; i++)
        ie__free(at->items[i]);
    ie__free(at->items);
    ie__free(at->place);
    memset(at, 0, sizeof *at);
}

static ie_status
value_add(value *at, const char *text, uint64_t number, const char *place)
{
    char **items = ie__realloc_array(at->items, at->count + 1, sizeof *items);
    char  *copy = ie__strdup(text);
    char  *where = at->place != NULL ? at->place : ie__strdup(place);

    if (items != NULL)
        at->items = items;
    if (where != NULL)
        at->place = where;
    if (items == NULL || copy == NULL || where == NULL) {
        ie__free(copy);
        return IE_ENOMEM;
    }
    at->items[at->count++] = copy;
    at->number = number;
    return IE_OK;
}

const char *
ie__config_place(const ie_bus_config *config, const ie__setting *setting, ie__config_source source)
{
    const value *at = value_of(config, setting);

    return at->source == source ? at->place : NULL;
}

static bool
is_there(const value *at, const char *text)
{
    for (size_t i = 0; i < at->count; i++)
        if (strcmp(at->items[i], text) == 0)
            return true;
    return false;
}

ie_status
ie__config_take(ie_bus_config *config, const ie__setting *setting, ie__config_source source,
                const char *text, const char *name_place, const char *value_place, ie_error *err)
{
    value   *at = value_of(config, setting);
    uint64_t number = 0;
    ie_error why = IE_ERROR_INIT;

    if (!value_check(setting, text, &number, &why)) {
        ie__config_fault(config, value_place, "%s: %s", setting->name, why.message);
        return IE_OK;
    }
    if (at->source == source && !is_list(setting)) {
        ie__config_fault(config, name_place, "'%s' is set already, at %s", setting->name,
                         at->place);
        return IE_OK;
    }
    if (at->source == source && is_there(at, text)) {
        ie__config_fault(config, value_place, "%s: the same value is given twice", setting->name);
        return IE_OK;
    }
    if (at->source == source && at->count == setting->max) {
        ie__config_fault(config, name_place, "%s: more than %" PRIu64 " of them", setting->name,
                         setting->max);
        return IE_OK;
    }
    if (at->source != source)
        value_clear(at);
    at->source = source;
    if (value_add(at, text, number, name_place) != IE_OK)
        return ie_error_set(err, IE_ENOMEM, "no memory for a configuration");
    return IE_OK;
}

/* ---- environment and flags ------------------------------------------------------------------ */

/* "listen" of "IE_BUS_LISTEN=..."; false when it is no variable of ours. */
static bool
variable_name(char name[64], const char *variable)
{
    const size_t prefix = sizeof IE__CONFIG_ENV_PREFIX - 1;
    const char  *equals = strchr(variable, '=');
    size_t       bytes;

    if (equals == NULL || strncmp(variable, IE__CONFIG_ENV_PREFIX, prefix) != 0)
        return false;
    bytes = (size_t)(equals - variable) - prefix;
    if (bytes == 0 || bytes >= 64 || equals[1] == '\0') /* an empty one counts as absent */
        return false;
    for (size_t i = 0; i < bytes; i++)
        name[i] = (char)tolower((unsigned char)variable[prefix + i]);
    name[bytes] = '\0';
    return true;
}

/* Others use the prefix too: the clients of a bus, and Kubernetes for a service named "ie-bus". So
 * an unknown one is no fault; one that was probably meant for us is worth a word. */
static void
variable_unknown(const ie_bus_config *config, const char *name)
{
    static const char *const OTHERS[] = {"config", "url",  "user",    "password",
                                         "token",  "port", "service", "log_format"};
    const char              *meant = ie__suggest(name, setting_name_at, NULL, ie__setting_count);
    char                     line[256];
    char                     typed[64];
    char                     known[64];

    for (size_t i = 0; i < sizeof OTHERS / sizeof OTHERS[0]; i++)
        if (strncmp(name, OTHERS[i], strlen(OTHERS[i])) == 0)
            return;
    if (meant == NULL || config->hooks.say == NULL)
        return;
    (void)snprintf(typed, sizeof typed, "%s", name);
    (void)snprintf(known, sizeof known, "%s", meant);
    for (char *at = typed; *at != '\0'; at++)
        *at = (char)toupper((unsigned char)*at);
    for (char *at = known; *at != '\0'; at++)
        *at = (char)toupper((unsigned char)*at);
    (void)snprintf(line, sizeof line,
                   "the variable " IE__CONFIG_ENV_PREFIX
                   "%s is ignored; did you mean " IE__CONFIG_ENV_PREFIX "%s?",
                   typed, known);
    config->hooks.say(config->hooks.user, false, line);
}

/* Entries of a list are divided by white space or commas. */
static ie_status
variable_take(ie_bus_config *config, const ie__setting *setting, const char *text,
              const char *place, ie_error *err)
{
    ie_status status = IE_OK;

    if (!is_list(setting))
        return ie__config_take(config, setting, IE__CONFIG_ENVIRONMENT, text, place, place, err);
    for (size_t bytes; status == IE_OK && *text != '\0'; text += bytes) {
        char entry[IE__CONFIG_VALUE_BYTES_MAX + 2];

        text += strspn(text, " \t\n,");
        bytes = strcspn(text, " \t\n,");
        if (bytes == 0)
            break;
        (void)snprintf(entry, sizeof entry, "%.*s",
                       (int)(bytes < sizeof entry ? bytes : sizeof entry), text);
        status = ie__config_take(config, setting, IE__CONFIG_ENVIRONMENT, entry, place, place, err);
    }
    return status;
}

ie_status
ie__config_environment(ie_bus_config *config, char *const *environment, ie_error *err)
{
    ie_status status = IE_OK;

    for (; *environment != NULL && status == IE_OK; environment++) {
        const char        *equals = strchr(*environment, '=');
        const ie__setting *setting;
        char               name[64];
        char               place[80];

        if (!variable_name(name, *environment))
            continue;
        setting = ie__config_find(name);
        if (setting == NULL) {
            variable_unknown(config, name);
            continue;
        }
        (void)snprintf(place, sizeof place, "%.*s", (int)(equals - *environment), *environment);
        if (value_of(config, setting)->source == IE__CONFIG_ENVIRONMENT)
            continue; /* the same name twice, or in another case: the first counts, as in getenv */
        status = variable_take(config, setting, equals + 1, place, err);
    }
    return status;
}

ie_status
ie__config_flag(ie_bus_config *config, const char *name, const char *text, const char *place,
                ie_error *err)
{
    const ie__setting *setting = ie__config_find(name);

    if (setting == NULL) {
        ie__config_fault_unknown(config, place, name);
        return IE_OK;
    }
    return ie__config_take(config, setting, IE__CONFIG_FLAG, text, place, place, err);
}

/* ---- the whole ------------------------------------------------------------------------------ */

ie_status
ie__config_new(ie_bus_config **out, const ie__config_hooks *hooks, ie_error *err)
{
    ie_bus_config *config =
        ie__calloc(1, sizeof *config + ie__setting_count * sizeof config->values[0]);

    if (config == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a configuration");
    if (hooks != NULL)
        config->hooks = *hooks;
    IE_BUS_SERVER_OPTIONS_INIT(&config->options);
    *out = config;
    return IE_OK;
}

static const value *
value_named(const ie_bus_config *config, const char *name)
{
    return value_of(config, ie__config_find(name));
}

static bool
is_set(const ie_bus_config *config, const char *name)
{
    return value_named(config, name)->source != IE__CONFIG_DEFAULT;
}

/* Settings that need another one. */
static void
check_pairs(ie_bus_config *config)
{
    static const char *const NEEDS[][2] = {
        {"tls_cert", "tls_key"}, {"tls_key", "tls_cert"}, {"durable", "data"}};
    uint64_t least;
    uint64_t most;

    for (size_t i = 0; i < sizeof NEEDS / sizeof NEEDS[0]; i++)
        if (is_set(config, NEEDS[i][0]) && !is_set(config, NEEDS[i][1]))
            ie__config_fault(config, value_named(config, NEEDS[i][0])->place, "%s needs %s as well",
                             NEEDS[i][0], NEEDS[i][1]);
    if (value_named(config, "client_cert")->number > 0 && !is_set(config, "tls_ca"))
        ie__config_fault(config, value_named(config, "client_cert")->place,
                         "client_cert needs tls_ca: who signs those certificates");
    least = is_set(config, "retry_delay") ? value_named(config, "retry_delay")->number
                                          : ie__config_find("retry_delay")->fallback;
    most = is_set(config, "retry_delay_max") ? value_named(config, "retry_delay_max")->number
                                             : ie__config_find("retry_delay_max")->fallback;
    if (least > most)
        ie__config_fault(
            config,
            value_named(config, is_set(config, "retry_delay") ? "retry_delay" : "retry_delay_max")
                ->place,
            "retry_delay is longer than retry_delay_max");
}

/* Into the field of the options that the setting stands for. */
static void
value_apply(ie_bus_config *config, const ie__setting *setting, const value *at)
{
    char              *field = (char *)&config->options + setting->offset;
    const char *const *list = (const char *const *)at->items;

    if (ie__setting_is_number(setting)) {
        ie__setting_put(setting, &config->options, at->number);
    } else if (setting->kind == IE__SETTING_SWITCH) {
        config->options.flags |= at->number != 0 ? setting->flag : 0;
    } else if (is_list(setting)) {
        memcpy(field, &list, sizeof list);
        memcpy(field + sizeof list, &at->count, sizeof at->count);
    } else {
        memcpy(field, &at->items[0], sizeof at->items[0]);
    }
}

ie_status
ie__config_finish(ie_bus_config *config, ie_error *err)
{
    check_pairs(config);
    if (config->fault_count > 1)
        return ie_error_set(err, IE_EINVAL, "%.220s (and %zu more)", config->first.message,
                            config->fault_count - 1);
    if (config->fault_count == 1)
        return ie_error_set(err, IE_EINVAL, "%s", config->first.message);
    IE_BUS_SERVER_OPTIONS_INIT(&config->options);
    for (size_t i = 0; i < ie__setting_count; i++)
        if (config->values[i].source != IE__CONFIG_DEFAULT)
            value_apply(config, &ie__settings[i], &config->values[i]);
    return IE_OK;
}

const ie_bus_server_options *
ie_bus_config_options(const ie_bus_config *config)
{
    return &config->options;
}

void
ie_bus_config_free(ie_bus_config *config)
{
    if (config == NULL)
        return;
    for (size_t i = 0; i < ie__setting_count; i++)
        value_clear(&config->values[i]);
    ie__free(config);
}

ie_status
ie_bus_config_load(ie_bus_config **out, const char *path, ie_error *err)
{
    ie_bus_config *config = NULL;
    ie_status      status = ie__config_new(&config, NULL, err);

    if (status == IE_OK)
        status = ie__config_read_file(config, path, err);
    if (status == IE_OK)
        status = ie__config_finish(config, err);
    if (status != IE_OK) {
        ie_bus_config_free(config);
        return status;
    }
    *out = config;
    return IE_OK;
}

size_t
ie__config_faults(const ie_bus_config *config)
{
    return config->fault_count;
}

size_t
ie__config_count(const ie_bus_config *config, ie__config_source source)
{
    size_t count = 0;

    for (size_t i = 0; i < ie__setting_count; i++)
        count += config->values[i].source == source ? 1 : 0;
    return count;
}

/* ---- showing it ----------------------------------------------------------------------------- */

static const char *
default_text(char buffer[IE__UNITS_SIZE], const ie__setting *setting)
{
    if (setting->kind == IE__SETTING_SWITCH)
        return setting->words[0];
    if (setting->shown != NULL)
        return setting->shown;
    number_text(buffer, setting, setting->fallback);
    return buffer;
}

const char *
ie__config_text(const ie_bus_config *config, const char *name, size_t index)
{
    static _Thread_local char buffer[IE__UNITS_SIZE];
    const ie__setting        *setting = ie__config_find(name);
    const value              *at = value_of(config, setting);

    if (at->source != IE__CONFIG_DEFAULT)
        return index < at->count ? at->items[index] : NULL;
    return index == 0 ? default_text(buffer, setting) : NULL;
}

const char *
ie__config_fixed_change(const ie_bus_config *before, const ie_bus_config *after)
{
    for (size_t i = 0; i < ie__setting_count; i++) {
        const char *const name = ie__settings[i].name;
        const char       *old;

        if (!ie__settings[i].is_fixed)
            continue;
        for (size_t j = 0;; j++) {
            const char *now = ie__config_text(after, name, j);

            old = ie__config_text(before, name, j);
            if (old == NULL && now == NULL)
                break;
            if (old == NULL || now == NULL || strcmp(old, now) != 0)
                return name;
        }
    }
    return NULL;
}

/* A word as it is, anything else in quotes. */
static ie_status
print_value(ie_buffer *out, const char *text)
{
    ie_status status = IE_OK;
    bool      is_word = text[0] != '\0' && text[0] != '#' && text[0] != '"';

    for (const char *at = text; *at != '\0' && is_word; at++)
        is_word = (unsigned char)*at > ' ' && *at != 0x7F && *at != '"' && *at != '\\';
    if (is_word)
        return ie__buffer_text(out, text);
    status = ie__buffer_text(out, "\"");
    for (; *text != '\0' && status == IE_OK; text++) {
        if (*text == '"' || *text == '\\')
            status = ie__buffer_printf(out, "\\%c", *text);
        else if (*text == '\n' || *text == '\t')
            status = ie__buffer_text(out, *text == '\n' ? "\\n" : "\\t");
        else
            status = ie__buffer_add(out, text, 1);
    }
    return status == IE_OK ? ie__buffer_text(out, "\"") : status;
}

static ie_status
print_bounds(ie_buffer *out, const ie__setting *setting)
{
    char least[IE__UNITS_SIZE];
    char most[IE__UNITS_SIZE];

    if (is_list(setting))
        return ie__buffer_printf(out, " (repeat it for more, up to %" PRIu64 ")", setting->max);
    if (!ie__setting_is_number(setting) || setting->kind == IE__SETTING_CHOICE)
        return IE_OK;
    number_text(least, setting, setting->min);
    number_text(most, setting, setting->max);
    return ie__buffer_printf(out, " (%s to %s)", least, most);
}

static ie_status
print_setting(ie_buffer *out, const ie__setting *setting, const value *at)
{
    char      buffer[IE__UNITS_SIZE];
    ie_status status = IE_OK;

    if (setting->section != NULL)
        status = ie__buffer_printf(out, "\n# ---- %s ----\n", setting->section);
    if (status == IE_OK)
        status = ie__buffer_printf(out, "\n# %s", setting->help);
    if (status == IE_OK)
        status = print_bounds(out, setting);
    if (status == IE_OK)
        status = ie__buffer_text(out, "\n");
    if (status == IE_OK && at->source == IE__CONFIG_DEFAULT) {
        const char *text = default_text(buffer, setting);

        return text[0] != '\0' ? ie__buffer_printf(out, "#%s %s\n", setting->name, text)
                               : ie__buffer_printf(out, "#%s ...\n", setting->name);
    }
    for (size_t i = 0; i < at->count && status == IE_OK; i++) {
        status = ie__buffer_printf(out, "%s ", setting->name);
        if (status == IE_OK)
            status = print_value(out, at->items[i]);
        if (status == IE_OK)
            status = ie__buffer_printf(out, "  # %s\n", at->place);
    }
    return status;
}

ie_status
ie__config_print(const ie_bus_config *config, ie_buffer *out, ie_error *err)
{
    ie_status status = ie__buffer_text(
        out, "# Settings of 'ie bus'. A line that begins with # shows a default; behind a value "
             "stands where it\n"
             "# comes from. This is a configuration file: ie bus --config FILE. Each setting is "
             "also a flag,\n"
             "# --set NAME=VALUE, and a variable, " IE__CONFIG_ENV_PREFIX
             "NAME; flags go before variables, these before the file.\n");

    for (size_t i = 0; i < ie__setting_count && status == IE_OK; i++)
        status = print_setting(out, &ie__settings[i], &config->values[i]);
    return status == IE_OK ? IE_OK : ie_error_set(err, status, "no memory for a configuration");
}
