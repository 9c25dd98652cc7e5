/* The configuration: what it takes, what it refuses and where it says the fault is. */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core.h"
#include "support.h"
#include "units.h"

#define SAID_MAX 64

static char   said[SAID_MAX][1024];
static bool   was_fault[SAID_MAX];
static size_t said_count;

static void
keep_said(void *user, bool is_fault, const char *message)
{
    (void)user;
    ck_assert_uint_lt(said_count, SAID_MAX);
    ck_assert_ptr_null(strchr(message, '\n'));
    was_fault[said_count] = is_fault;
    (void)snprintf(said[said_count++], sizeof said[0], "%s", message);
}

static ie_bus_config *
new_config(void)
{
    const ie__config_hooks hooks = {.say = keep_said};
    ie_bus_config         *config = NULL;

    said_count = 0;
    ck_assert_int_eq(ie__config_new(&config, &hooks, NULL), IE_OK);
    return config;
}

/* What is in the file as "f". */
static ie_status
parse(ie_bus_config **out, const char *text, size_t bytes, ie_error *err)
{
    *out = new_config();
    ck_assert_int_eq(ie__config_read_text(*out, "f", text, bytes, err), IE_OK);
    return ie__config_finish(*out, err);
}

static void
write_file(const char *path, const void *bytes, size_t size)
{
    FILE *out = fopen(path, "w");

    ck_assert_ptr_nonnull(out);
    ck_assert_uint_eq(fwrite(bytes, 1, size, out), size);
    ck_assert_int_eq(fclose(out), 0);
}

/* ---- faults --------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    const char *fault;
} FAULTS[] = {
    {"drian 5s\n", "f:1:1: 'drian' is no setting; did you mean 'drain'?"},
    {"\n # c\n\tdrian 5s", "f:3:2: 'drian' is no setting; did you mean 'drain'?"},
    {"hello_timeout_ms 5s\n",
     "f:1:1: 'hello_timeout_ms' is no setting; did you mean 'hello_timeout'?"},
    {"data_dir /x\n", "f:1:1: 'data_dir' is no setting; did you mean 'data'?"},
    {"Drain 5s\n", "f:1:1: 'Drain' is no setting; did you mean 'drain'?"},
    {"zzzzzzzzzzzz 1\n",
     "f:1:1: 'zzzzzzzzzzzz' is no setting; 'ie bus --print-config' shows all of them"},
    {"drain 5s\ndrain 6s\n", "f:2:1: 'drain' is set already, at f:1:1"},
    {"drain\n", "f:1:6: drain: the value is missing"},
    {"drain  # nothing\n", "f:1:6: drain: the value is missing"},
    {"drain", "f:1:6: drain: the value is missing"},
    {"drain 5\n", "f:1:7: drain: '5' is no time with its unit, such as 500ms, 30s, 5m, 2h or 7d"},
    {"drain -5s\n",
     "f:1:7: drain: '-5s' is no time with its unit, such as 500ms, 30s, 5m, 2h or 7d"},
    {"drain 2h\n", "f:1:7: drain: 2h is out of bounds: 1ms to 1h"},
    {"drain 0\n", "f:1:7: drain: 0 is out of bounds: 1ms to 1h"},
    {"retention 1500ms\n", "f:1:11: retention: 1500ms is no whole number of seconds"},
    {"out_bytes_max 8MB\n",
     "f:1:15: out_bytes_max: '8MB' is no size, such as 65536, 64KiB, 8MiB or 1GiB"},
    {"out_bytes_max 99999999999999999999\n",
     "f:1:15: out_bytes_max: '99999999999999999999' is no size, such as 65536, 64KiB, 8MiB or "
     "1GiB"},
    {"data_bytes_max 2MiB\n", "f:1:16: data_bytes_max: 2MiB is out of bounds: 1 to 1MiB"},
    {"connections_max 1e3\n", "f:1:17: connections_max: '1e3' is not a whole number"},
    {"connections_max 4KiB\n", "f:1:17: connections_max: '4KiB' is not a whole number"},
    {"connections_max 0\n", "f:1:17: connections_max: 0 is out of bounds: 1 to 1000000"},
    {"connections_max 1000001\n",
     "f:1:17: connections_max: 1000001 is out of bounds: 1 to 1000000"},
    {"client_cert requierd\n", "f:1:13: client_cert: 'requierd' is not one of none, optional, "
                               "required; did you mean 'required'?"},
    {"eb1 maybe\n", "f:1:5: eb1: 'maybe' is not one of yes, no"},
    {"name a..b\n", "f:1:6: name: topic has an empty word"},
    {"durable a.>.b\ndata /x\n", "f:1:9: durable: pattern may have '*' only as a whole word and "
                                 "'>' only as the last word"},
    {"listen nonsense\n", "f:1:8: listen: URL: scheme is missing"},
    {"listen socket://:x\n", NULL}, /* the URL's own words */
    {"listen unix:relative\n", "f:1:8: listen: a unix socket needs an absolute path: unix:/PATH"},
    {"listen socket://127.0.0.1:0\nlisten socket://127.0.0.1:0\n",
     "f:2:8: listen: the same value is given twice"},
    {"drain = 5s\n", "f:1:7: name and value are divided by a blank alone"},
    {"drain=5s\n", "f:1:6: name and value are divided by a blank alone"},
    {"drain: 5s\n", "f:1:6: name and value are divided by a blank alone"},
    {"drain\"5s\"\n", "f:1:6: a blank is missing before the value"},
    {"= 5\n", "f:1:1: the name of a setting is missing"},
    {"dr*in 5\n", "f:1:3: a name consists of a-z, 0-9 and _"},
    {"drain 5 s\n", "f:1:9: one value per line; put one with blanks into double quotes"},
    {"data \"a\"b\n", "f:1:9: a blank is missing after the value"},
    {"data \"a b\n", "f:1:6: the closing quote is missing"},
    {"data \"a\\\"", "f:1:6: the closing quote is missing"},
    {"data \"a\\q\"\n", "f:1:8: in quotes there are \\\" \\\\ \\n and \\t only"},
    {"data \"a\\", "f:1:8: in quotes there are \\\" \\\\ \\n and \\t only"},
    {"data a\"b\"\n", "f:1:7: a quote inside of a word; put the whole value into quotes"},
    {"data \"\"\n", "f:1:6: data: the value is empty"},
    {"data a\x01"
     "b\n",
     "f:1:7: a control character"},
    {"data \"a\x7F\"\n", "f:1:8: a control character"},
    {"# \xC3\xBC\xC3\xBC\ndata \"\xC3\xBC\xC3\xBC\" x\n",
     "f:2:11: one value per line; put one with blanks into double quotes"},
    {"drain 5s\ndata \xFF\xFE\n", "f:2:6: this is not UTF-8"},
    {"\xFF\xFE"
     "d",
     "f:1:1: this is not UTF-8"},
    {"tls_cert a.pem\n", "f:1:1: tls_cert needs tls_key as well"},
    {"\ntls_key a.pem\n", "f:2:1: tls_key needs tls_cert as well"},
    {"durable orders.>\n", "f:1:1: durable needs data as well"},
    {"client_cert optional\n", "f:1:1: client_cert needs tls_ca: who signs those certificates"},
    {"retry_delay 10m\n", "f:1:1: retry_delay is longer than retry_delay_max"},
    {"retry_delay_max 10ms\n", "f:1:1: retry_delay is longer than retry_delay_max"},
};

START_TEST(a_fault_is_told_with_line_column_and_what_was_meant)
{
    ie_bus_config *config = NULL;
    ie_error       err = IE_ERROR_INIT;

    ck_assert_int_eq(parse(&config, FAULTS[_i].text, strlen(FAULTS[_i].text), &err), IE_EINVAL);
    ck_assert_uint_eq(said_count, 1);
    ck_assert(was_fault[0]);
    if (FAULTS[_i].fault != NULL)
        ck_assert_str_eq(said[0], FAULTS[_i].fault);
    ck_assert_str_eq(err.message, said[0]);
    ie_bus_config_free(config);
}
END_TEST

START_TEST(every_fault_of_a_file_is_told_and_the_first_counts)
{
    static const char TEXT[] = "drian 5s\n"
                               "drain 7s\n"
                               "drain 8s # again\n"
                               "  credit_max many\n"
                               "durable a b\n";
    ie_bus_config    *config = NULL;
    ie_error          err = IE_ERROR_INIT;

    ck_assert_int_eq(parse(&config, TEXT, sizeof TEXT - 1, &err), IE_EINVAL);
    ck_assert_uint_eq(said_count, 4);
    ck_assert_str_eq(said[0], "f:1:1: 'drian' is no setting; did you mean 'drain'?");
    ck_assert_str_eq(said[1], "f:3:1: 'drain' is set already, at f:2:1");
    ck_assert_str_eq(said[2], "f:4:14: credit_max: 'many' is not a whole number");
    ck_assert_str_eq(said[3], "f:5:11: one value per line; put one with blanks into double quotes");
    ck_assert_str_eq(err.message,
                     "f:1:1: 'drian' is no setting; did you mean 'drain'? (and 3 more)");
    ck_assert_uint_eq(ie__config_faults(config), 4);
    ie_bus_config_free(config);
}
END_TEST

START_TEST(a_file_of_rubbish_is_not_told_line_by_line)
{
    ie_buffer      text = {0};
    ie_bus_config *config = NULL;
    ie_error       err = IE_ERROR_INIT;

    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(ie__buffer_text(&text, "rubbish 1\n"), IE_OK);
    ck_assert_int_eq(parse(&config, text.data, text.size, &err), IE_EINVAL);
    ck_assert_uint_eq(said_count, IE__CONFIG_FAULTS_MAX);
    ck_assert_uint_eq(ie__config_faults(config), 1000);
    ck_assert_ptr_nonnull(strstr(err.message, "(and 999 more)"));
    ie_bus_config_free(config);
    ie_buffer_fini(&text);
}
END_TEST

START_TEST(a_nul_byte_is_refused_where_it_stands)
{
    static const char TEXT[] = "drain 5s\nname a\0b\ndrian 1\n";
    ie_bus_config    *config = NULL;

    ck_assert_int_eq(parse(&config, TEXT, sizeof TEXT - 1, NULL), IE_EINVAL);
    ck_assert_uint_eq(said_count, 1);
    ck_assert_str_eq(said[0], "f:2:7: a NUL byte; this is no text");
    ie_bus_config_free(config);
}
END_TEST

START_TEST(values_have_a_longest)
{
    char           text[IE__CONFIG_VALUE_BYTES_MAX + 32] = "data /";
    ie_bus_config *config = NULL;

    memset(text + 6, 'x', IE__CONFIG_VALUE_BYTES_MAX - 1);
    ck_assert_int_eq(parse(&config, text, 5 + IE__CONFIG_VALUE_BYTES_MAX, NULL), IE_OK);
    ck_assert_uint_eq(strlen(ie_bus_config_options(config)->data_dir), IE__CONFIG_VALUE_BYTES_MAX);
    ie_bus_config_free(config);
    memset(text + 6, 'x', IE__CONFIG_VALUE_BYTES_MAX);
    ck_assert_int_eq(parse(&config, text, 6 + IE__CONFIG_VALUE_BYTES_MAX, NULL), IE_EINVAL);
    ck_assert_str_eq(said[0], "f:1:6: the value is too long");
    ie_bus_config_free(config);
}
END_TEST

START_TEST(lists_have_a_longest)
{
    ie_buffer      text = {0};
    ie_bus_config *config = NULL;
    const uint64_t max = ie__config_find("listen")->max;

    for (uint64_t i = 0; i < max; i++)
        ck_assert_int_eq(ie__buffer_printf(&text, "listen unix:/run/%u\n", (unsigned)i), IE_OK);
    ck_assert_int_eq(parse(&config, text.data, text.size, NULL), IE_OK);
    ck_assert_uint_eq(ie_bus_config_options(config)->listen_count, max);
    ie_bus_config_free(config);
    ck_assert_int_eq(ie__buffer_text(&text, "listen unix:/run/more\n"), IE_OK);
    ck_assert_int_eq(parse(&config, text.data, text.size, NULL), IE_EINVAL);
    ck_assert_str_eq(said[0], "f:17:1: listen: more than 16 of them");
    ie_bus_config_free(config);
    ie_buffer_fini(&text);
}
END_TEST

/* ---- what it takes -------------------------------------------------------------------------- */

START_TEST(comments_quotes_blanks_and_any_line_end_are_taken)
{
    static const char            TEXT[] = "\xEF\xBB\xBF# first\r\n"
                                          "\r\n"
                                          "\tname \t orders.bus \t # why\r\n"
                                          "users /etc/a#b\n"
                                          "data \"/a b/\\\"c\\\\d\\te#\"# no blank\n"
                                          "listen unix:/run/a%23b\n"
                                          "listen socket://[::1]:0\n"
                                          "eb1 no\n"
                                          "retention_lagging drop\n"
                                          "connections_per_address_max 0\n"
                                          "retention 2d\n"
                                          "drain 1h"; /* no line end */
    ie_bus_config               *config = NULL;
    const ie_bus_server_options *options;

    ck_assert_int_eq(parse(&config, TEXT, sizeof TEXT - 1, NULL), IE_OK);
    options = ie_bus_config_options(config);
    ck_assert_str_eq(options->name, "orders.bus");
    ck_assert_str_eq(options->data_dir, "/a b/\"c\\d\te#");
    ck_assert_uint_eq(options->listen_count, 2);
    ck_assert_str_eq(options->listen[0], "unix:/run/a%23b");
    ck_assert_str_eq(options->listen[1], "socket://[::1]:0");
    ck_assert_uint_eq(options->flags, IE_BUS_SERVER_NO_EB1);
    ck_assert_int_eq(options->retention_lagging, IE_BUS_LAGGING_DROP);
    ck_assert_uint_eq(options->connections_per_address_max, 0);
    ck_assert_uint_eq(options->retention_s, 2 * 86400);
    ck_assert_uint_eq(options->drain_ms, 3600000);
    ck_assert_uint_eq(options->credit_max, 0); /* the server's default */
    ck_assert_str_eq(options->users_file, "/etc/a#b");
    ck_assert_uint_eq(ie__config_count(config, IE__CONFIG_FILE), 9);
    ie_bus_config_free(config);
}
END_TEST

START_TEST(an_empty_file_means_every_default)
{
    ie_bus_config        *config = NULL;
    ie_bus_server_options expected;
    ie_bus_server_options got;

    ck_assert_int_eq(parse(&config, "", 0, NULL), IE_OK);
    ck_assert_int_eq(ie__settings_import(&expected, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie__settings_import(&got, ie_bus_config_options(config), NULL), IE_OK);
    ck_assert_mem_eq(&got, &expected, sizeof got);
    ie_bus_config_free(config);
}
END_TEST

/* A value of each setting that is not its default. */
static void
other_value(char out[128], const ie__setting *setting, bool is_most)
{
    switch (setting->kind) {
    case IE__SETTING_URLS: (void)snprintf(out, 128, "unix:/run/%d", is_most); break;
    case IE__SETTING_PATTERNS: (void)snprintf(out, 128, "a.%d.>", is_most); break;
    case IE__SETTING_TEXT: (void)snprintf(out, 128, "a.%d", is_most); break;
    case IE__SETTING_PATH: (void)snprintf(out, 128, "/some where/%d", is_most); break;
    case IE__SETTING_CHOICE:
    case IE__SETTING_SWITCH: (void)snprintf(out, 128, "%s", setting->words[is_most]); break;
    case IE__SETTING_SECONDS:
        ie__duration_format(out, (is_most ? setting->max : setting->min) * 1000);
        break;
    case IE__SETTING_MS: ie__duration_format(out, is_most ? setting->max : setting->min); break;
    case IE__SETTING_BYTES: ie__bytes_format(out, is_most ? setting->max : setting->min); break;
    case IE__SETTING_COUNT:
        (void)snprintf(out, 128, "%llu",
                       (unsigned long long)(is_most ? setting->max : setting->min));
        break;
    }
}

/* Everything that a setting may need beside it. */
static void
give_company(ie_bus_config *config)
{
    static const char *const COMPANY[][2] = {{"data", "/d"},         {"tls_cert", "/c"},
                                             {"tls_key", "/k"},      {"tls_ca", "/a"},
                                             {"retry_delay", "1ms"}, {"retry_delay_max", "1d"}};

    for (size_t i = 0; i < sizeof COMPANY / sizeof COMPANY[0]; i++) {
        const ie__setting *setting = ie__config_find(COMPANY[i][0]);

        if (ie__config_place(config, setting, IE__CONFIG_FILE) == NULL)
            ck_assert_int_eq(
                ie__config_take(config, setting, IE__CONFIG_FILE, COMPANY[i][1], "f", "f", NULL),
                IE_OK);
    }
}

/* Smallest and largest of each setting come back from what is printed, and reach the options. */
START_TEST(every_setting_comes_back_from_what_is_printed)
{
    const ie__setting *setting = &ie__settings[_i / 2];
    ie_bus_config     *config = new_config();
    ie_bus_config     *again = NULL;
    ie_buffer          out = {0};
    char               text[128];

    other_value(text, setting, _i % 2 != 0);
    ck_assert_int_eq(
        ie__config_take(config, setting, IE__CONFIG_FILE, text, "f:1:1", "f:1:9", NULL), IE_OK);
    give_company(config);
    ck_assert_int_eq(ie__config_finish(config, NULL), IE_OK);
    ck_assert_int_eq(ie__config_print(config, &out, NULL), IE_OK);
    ck_assert_int_eq(parse(&again, out.data, out.size, NULL), IE_OK);
    for (size_t i = 0; i < ie__setting_count; i++)
        ck_assert_str_eq(ie__config_text(again, ie__settings[i].name, 0),
                         ie__config_text(config, ie__settings[i].name, 0));
    ck_assert_str_eq(ie__config_text(again, setting->name, 0), text);
    if (ie__setting_is_number(setting))
        ck_assert_uint_eq(ie__setting_get(setting, ie_bus_config_options(again)),
                          setting->kind == IE__SETTING_CHOICE ? (uint64_t)(_i % 2)
                          : _i % 2 != 0                       ? setting->max
                                                              : setting->min);
    ie_bus_config_free(config);
    ie_bus_config_free(again);
    ie_buffer_fini(&out);
}
END_TEST

START_TEST(a_bound_passes_and_one_past_it_does_not)
{
    const ie__setting *setting = &ie__settings[_i];
    ie_bus_config     *config;
    char               text[64];
    const char        *unit = setting->kind == IE__SETTING_MS        ? "ms"
                              : setting->kind == IE__SETTING_SECONDS ? "s"
                                                                     : "";

    if (!ie__setting_is_number(setting) || setting->kind == IE__SETTING_CHOICE)
        return;
    for (int side = 0; side < 2; side++) {
        if (side == 0 && setting->min == 0)
            continue;
        (void)snprintf(text, sizeof text, "%llu%s",
                       (unsigned long long)(side == 0 ? setting->min - 1 : setting->max + 1), unit);
        config = new_config();
        ck_assert_int_eq(ie__config_flag(config, setting->name, text, "--set", NULL), IE_OK);
        ck_assert_int_eq(ie__config_finish(config, NULL), IE_EINVAL);
        ck_assert_ptr_nonnull(strstr(said[0], " to "));
        ie_bus_config_free(config);
    }
}
END_TEST

/* ---- the table ------------------------------------------------------------------------------ */

START_TEST(each_default_lies_within_its_bounds_and_names_are_unique)
{
    for (size_t i = 0; i < ie__setting_count; i++) {
        const ie__setting *setting = &ie__settings[i];

        ck_assert_ptr_eq(ie__config_find(setting->name), setting);
        ck_assert(i > 0 || setting->section != NULL);
        if (!ie__setting_is_number(setting))
            continue;
        ck_assert_msg(setting->fallback >= setting->min && setting->fallback <= setting->max, "%s",
                      setting->name);
    }
}
END_TEST

/* A field that is in the struct and not in the table could not be configured. */
START_TEST(the_table_covers_the_options_to_the_last_byte)
{
    unsigned char covered[sizeof(ie_bus_server_options)] = {0};

    memset(covered, 1, sizeof(size_t)); /* size */
    memset(covered + offsetof(ie_bus_server_options, logger), 1, sizeof(ie_logger));
    for (size_t i = 0; i < ie__setting_count; i++) {
        const ie__setting *setting = &ie__settings[i];
        size_t             bytes = sizeof(void *);

        if (setting->kind == IE__SETTING_URLS || setting->kind == IE__SETTING_PATTERNS)
            bytes = sizeof(void *) + sizeof(size_t);
        else if (setting->kind == IE__SETTING_BYTES && !setting->is_narrow)
            bytes = sizeof(uint64_t);
        else if (ie__setting_is_number(setting) || setting->kind == IE__SETTING_SWITCH)
            bytes = sizeof(uint32_t);
        memset(covered + setting->offset, 1, bytes);
    }
    for (size_t i = 0; i < sizeof covered; i++)
        ck_assert_msg(covered[i] == 1, "byte %zu of the options is no setting's", i);
}
END_TEST

/* "| `drain` | time | 30s | 1ms | 1h | no | ..." */
static bool
is_row(const char *line, const ie__setting *setting)
{
    static const char *const KINDS[] = {"count", "size", "time", "time", "word",
                                        "word",  "text", "path", "URLs", "patterns"};
    ie_bus_config           *config = new_config();
    const char              *shown = ie__config_text(config, setting->name, 0);
    char                     expected[512];
    char                     least[IE__UNITS_SIZE] = "";
    char                     most[IE__UNITS_SIZE] = "";

    if (setting->kind == IE__SETTING_COUNT) {
        (void)snprintf(least, sizeof least, "%llu", (unsigned long long)setting->min);
        (void)snprintf(most, sizeof most, "%llu", (unsigned long long)setting->max);
    } else if (setting->kind == IE__SETTING_BYTES) {
        ie__bytes_format(least, setting->min);
        ie__bytes_format(most, setting->max);
    } else if (ie__setting_is_number(setting) && setting->kind != IE__SETTING_CHOICE) {
        const uint64_t factor = setting->kind == IE__SETTING_SECONDS ? 1000 : 1;

        ie__duration_format(least, setting->min * factor);
        ie__duration_format(most, setting->max * factor);
    }
    (void)snprintf(expected, sizeof expected, "| `%s` | %s | %s | %s | %s | %s | %s |\n",
                   setting->name, KINDS[setting->kind], shown[0] != '\0' ? shown : "none",
                   least[0] != '\0' ? least : "-", most[0] != '\0' ? most : "-",
                   setting->is_fixed ? "no" : "yes", setting->help);
    ie_bus_config_free(config);
    ck_assert_str_eq(line, expected);
    return true;
}

START_TEST(the_document_is_the_table)
{
    FILE  *in = fopen(IE_CONFIG_DOCUMENT, "r");
    char   line[1024];
    size_t row = 0;

    ck_assert_ptr_nonnull(in);
    while (fgets(line, sizeof line, in) != NULL) {
        if (strncmp(line, "## Names elsewhere", 18) == 0)
            break;
        if (row < ie__setting_count && strncmp(line, "### ", 4) == 0) {
            char expected[128];

            ck_assert_ptr_nonnull(ie__settings[row].section);
            (void)snprintf(expected, sizeof expected, "### %s\n", ie__settings[row].section);
            ck_assert_str_eq(line, expected);
        }
        if (strncmp(line, "| `", 3) != 0)
            continue;
        ck_assert_uint_lt(row, ie__setting_count);
        ck_assert(is_row(line, &ie__settings[row]));
        row++;
    }
    (void)fclose(in);
    ck_assert_uint_eq(row, ie__setting_count);
}
END_TEST

/* ---- sources -------------------------------------------------------------------------------- */

START_TEST(flags_go_before_variables_and_these_before_the_file)
{
    static const char            TEXT[] = "drain 1s\ncredit_max 11\nname file\n"
                                          "listen unix:/run/1\nlisten unix:/run/2\n"
                                          "ephemeral a.b\n";
    char                         drain[] = "IE_BUS_DRAIN=2s";
    char                         credit[] = "IE_BUS_CREDIT_MAX=12";
    char                         listen[] = "IE_BUS_LISTEN=unix:/run/3, unix:/run/4\tunix:/run/5";
    char                         empty[] = "IE_BUS_NAME=";
    char                         path[] = "PATH=/bin";
    char                        *environment[] = {path, drain, credit, listen, empty, NULL};
    ie_bus_config               *config = new_config();
    const ie_bus_server_options *options = ie_bus_config_options(config);
    ie_buffer                    out = {0};

    ck_assert_int_eq(ie__config_read_text(config, "f", TEXT, sizeof TEXT - 1, NULL), IE_OK);
    ck_assert_int_eq(ie__config_environment(config, environment, NULL), IE_OK);
    ck_assert_int_eq(ie__config_flag(config, "drain", "3s", "--drain", NULL), IE_OK);
    ck_assert_int_eq(ie__config_flag(config, "ephemeral", "c", "--ephemeral", NULL), IE_OK);
    ck_assert_int_eq(ie__config_flag(config, "ephemeral", "d", "--ephemeral", NULL), IE_OK);
    ck_assert_int_eq(ie__config_finish(config, NULL), IE_OK);
    ck_assert_uint_eq(said_count, 0);
    ck_assert_uint_eq(options->drain_ms, 3000);
    ck_assert_uint_eq(options->credit_max, 12);
    ck_assert_str_eq(options->name, "file");
    ck_assert_uint_eq(options->listen_count, 3); /* replaced, not added to */
    ck_assert_str_eq(options->listen[2], "unix:/run/5");
    ck_assert_uint_eq(options->ephemeral_topic_count, 2);
    ck_assert_str_eq(options->ephemeral_topics[0], "c");
    ck_assert_int_eq(ie__config_print(config, &out, NULL), IE_OK);
    ck_assert_int_eq(ie__buffer_add(&out, "", 1), IE_OK);
    ck_assert_ptr_nonnull(strstr(out.data, "\ndrain 3s  # --drain\n"));
    ck_assert_ptr_nonnull(strstr(out.data, "\ncredit_max 12  # IE_BUS_CREDIT_MAX\n"));
    ck_assert_ptr_nonnull(strstr(out.data, "\nname file  # f:3:1\n"));
    ck_assert_ptr_nonnull(strstr(out.data, "\n#out_bytes_max 8MiB\n"));
    ie_buffer_fini(&out);
    ie_bus_config_free(config);
}
END_TEST

START_TEST(faults_of_variables_and_flags_name_them)
{
    char           drain[] = "IE_BUS_DRAIN=2x";
    char           typo[] = "IE_BUS_LISTN=unix:/x";
    char           kubernetes[] = "IE_BUS_SERVICE_HOST=10.0.0.1";
    char           port[] = "IE_BUS_PORT_9100_TCP=tcp://10.0.0.1:9100";
    char          *environment[] = {drain, typo, kubernetes, port, NULL};
    ie_bus_config *config = new_config();

    ck_assert_int_eq(ie__config_environment(config, environment, NULL), IE_OK);
    ck_assert_int_eq(ie__config_flag(config, "drian", "3s", "--set", NULL), IE_OK);
    ck_assert_uint_eq(said_count, 3);
    ck_assert_str_eq(said[0], "IE_BUS_DRAIN: drain: '2x' is no time with its unit, such as 500ms, "
                              "30s, 5m, 2h or 7d");
    ck_assert_str_eq(said[1], "the variable IE_BUS_LISTN is ignored; did you mean IE_BUS_LISTEN?");
    ck_assert(!was_fault[1]);
    ck_assert_str_eq(said[2], "--set: 'drian' is no setting; did you mean 'drain'?");
    ck_assert_int_eq(ie__config_finish(config, NULL), IE_EINVAL);
    ie_bus_config_free(config);
}
END_TEST

START_TEST(what_a_reload_cannot_change_is_found)
{
    ie_bus_config *before = NULL;
    ie_bus_config *after = NULL;

    ck_assert_int_eq(parse(&before, "listen unix:/a\nname x\ndrain 1s\n", 31, NULL), IE_OK);
    ck_assert_int_eq(parse(&after, "listen unix:/a\nname x\ndrain 2s\n", 31, NULL), IE_OK);
    ck_assert_ptr_null(ie__config_fixed_change(before, after));
    ie_bus_config_free(after);
    ck_assert_int_eq(parse(&after, "listen unix:/a\nlisten unix:/b\nname x\n", 37, NULL), IE_OK);
    ck_assert_str_eq(ie__config_fixed_change(before, after), "listen");
    ie_bus_config_free(after);
    ck_assert_int_eq(parse(&after, "listen unix:/a\n", 15, NULL), IE_OK);
    ck_assert_str_eq(ie__config_fixed_change(before, after), "name");
    ie_bus_config_free(after);
    ie_bus_config_free(before);
}
END_TEST

/* ---- files ---------------------------------------------------------------------------------- */

START_TEST(a_file_is_loaded_and_its_paths_count_from_its_folder)
{
    static const char TEXT[] = "data state\nusers /etc/ie/users\n";
    ie_bus_config    *config = NULL;
    char              expected[512];

    (void)test_dir_make();
    write_file(test_path("bus.conf"), TEXT, sizeof TEXT - 1);
    ck_assert_int_eq(ie_bus_config_load(&config, test_path("bus.conf"), NULL), IE_OK);
    (void)snprintf(expected, sizeof expected, "%s", test_path("state"));
    ck_assert_str_eq(ie_bus_config_options(config)->data_dir, expected);
    ck_assert_str_eq(ie_bus_config_options(config)->users_file, "/etc/ie/users");
    ie_bus_config_free(config);
    test_dir_remove();
}
END_TEST

START_TEST(what_is_no_readable_file_is_refused_in_words)
{
    ie_bus_config *config = (ie_bus_config *)(void *)&said;
    ie_error       err = IE_ERROR_INIT;
    char          *big;

    (void)test_dir_make();
    ck_assert_int_eq(ie_bus_config_load(&config, test_path("none"), &err), IE_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "none: No such file or directory"));
    err = (ie_error)IE_ERROR_INIT;
    ck_assert_int_eq(ie_bus_config_load(&config, test_path(""), &err), IE_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "is a folder; a file is needed"));

    big = calloc(1, IE__CONFIG_FILE_BYTES_MAX + 1);
    ck_assert_ptr_nonnull(big);
    memset(big, '#', IE__CONFIG_FILE_BYTES_MAX + 1);
    write_file(test_path("big"), big, IE__CONFIG_FILE_BYTES_MAX + 1);
    err = (ie_error)IE_ERROR_INIT;
    ck_assert_int_eq(ie_bus_config_load(&config, test_path("big"), &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "longer than 1024 KiB"));
    ck_assert_ptr_eq(config, (void *)&said); /* untouched */
    write_file(test_path("big"), big, IE__CONFIG_FILE_BYTES_MAX);
    ck_assert_int_eq(ie_bus_config_load(&config, test_path("big"), NULL), IE_OK);
    ie_bus_config_free(config);
    free(big);
    test_dir_remove();
}
END_TEST

START_TEST(a_long_path_leaves_room_for_what_is_wrong)
{
    char           path[400];
    ie_bus_config *config = new_config();
    ie_error       err = IE_ERROR_INIT;

    memset(path, 'p', sizeof path);
    (void)snprintf(path + sizeof path - 10, 10, "/bus.conf");
    ck_assert_int_eq(ie__config_read_text(config, path, "drian 5s", 8, NULL), IE_OK);
    ck_assert_int_eq(ie__config_finish(config, &err), IE_EINVAL);
    ck_assert_int_eq(strncmp(err.message, "...ppp", 6), 0);
    ck_assert_ptr_nonnull(
        strstr(err.message, "/bus.conf:1:1: 'drian' is no setting; did you mean 'drain'?"));
    ie_bus_config_free(config);
}
END_TEST

START_TEST(memory_that_runs_out_is_told_and_nothing_leaks)
{
    static const char TEXT[] = "name a\nlisten unix:/a\nlisten unix:/b\ndrain 5s\n";
    ie_status         status = IE_ENOMEM;

    (void)test_dir_make();
    write_file(test_path("f"), TEXT, sizeof TEXT - 1);
    for (uint64_t n = 1; status != IE_OK; n++) {
        ie_bus_config *config = NULL;
        ie_error       err = IE_ERROR_INIT;

        ck_assert_uint_lt(n, 100);
        ie__alloc_fail_at(n, true);
        status = ie_bus_config_load(&config, test_path("f"), &err);
        ie__alloc_fail_at(0, false);
        ck_assert(status == IE_OK || status == IE_ENOMEM);
        ck_assert((status == IE_OK) == (config != NULL));
        ie_bus_config_free(config);
    }
    test_dir_remove();
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("config");
    TCase   *faults = tcase_create("faults");
    TCase   *taken = tcase_create("taken");
    TCase   *table = tcase_create("table");
    TCase   *sources = tcase_create("sources");
    TCase   *files = tcase_create("files");
    SRunner *runner;
    int      failed;

    tcase_add_loop_test(faults, a_fault_is_told_with_line_column_and_what_was_meant, 0,
                        (int)(sizeof FAULTS / sizeof FAULTS[0]));
    tcase_add_test(faults, every_fault_of_a_file_is_told_and_the_first_counts);
    tcase_add_test(faults, a_file_of_rubbish_is_not_told_line_by_line);
    tcase_add_test(faults, a_nul_byte_is_refused_where_it_stands);
    tcase_add_test(faults, values_have_a_longest);
    tcase_add_test(faults, lists_have_a_longest);
    suite_add_tcase(suite, faults);
    tcase_add_test(taken, comments_quotes_blanks_and_any_line_end_are_taken);
    tcase_add_test(taken, an_empty_file_means_every_default);
    tcase_add_loop_test(taken, every_setting_comes_back_from_what_is_printed, 0,
                        2 * (int)ie__setting_count);
    tcase_add_loop_test(taken, a_bound_passes_and_one_past_it_does_not, 0, (int)ie__setting_count);
    suite_add_tcase(suite, taken);
    tcase_add_test(table, each_default_lies_within_its_bounds_and_names_are_unique);
    tcase_add_test(table, the_table_covers_the_options_to_the_last_byte);
    tcase_add_test(table, the_document_is_the_table);
    suite_add_tcase(suite, table);
    tcase_add_test(sources, flags_go_before_variables_and_these_before_the_file);
    tcase_add_test(sources, faults_of_variables_and_flags_name_them);
    tcase_add_test(sources, what_a_reload_cannot_change_is_found);
    suite_add_tcase(suite, sources);
    tcase_add_test(files, a_file_is_loaded_and_its_paths_count_from_its_folder);
    tcase_add_test(files, what_is_no_readable_file_is_refused_in_words);
    tcase_add_test(files, a_long_path_leaves_room_for_what_is_wrong);
    tcase_add_test(files, memory_that_runs_out_is_told_and_nothing_leaks);
    suite_add_tcase(suite, files);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
