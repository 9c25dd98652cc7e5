/* Numbers with a unit, both ways. */
#include "units.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct unit {
    const char *name;
    int64_t     factor;
} unit;

static bool
parse_units(const char *text, const unit *units, size_t count, int64_t *out)
{
    char     *end = NULL;
    long long number;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    number = strtoll(text, &end, 10);
    if (errno != 0 || number > INT64_C(1) << 53)
        return false;
    for (size_t i = 0; i < count; i++)
        if (strcmp(end, units[i].name) == 0)
            return !__builtin_mul_overflow(number, units[i].factor, out);
    return number == 0 && *end == '\0' && (*out = 0, true);
}

bool
ie__duration_parse(const char *text, int64_t *ms)
{
    static const unit UNITS[] = {{"ms", 1},      {"s", 1000},    {"m", 60000},
                                 {"min", 60000}, {"h", 3600000}, {"d", 86400000}};

    return parse_units(text, UNITS, sizeof UNITS / sizeof UNITS[0], ms);
}

bool
ie__bytes_parse(const char *text, int64_t *bytes)
{
    static const unit UNITS[] = {{"", 1},
                                 {"B", 1},
                                 {"KiB", 1024},
                                 {"MiB", 1048576},
                                 {"GiB", 1073741824},
                                 {"TiB", INT64_C(1) << 40},
                                 {"K", 1024},
                                 {"M", 1048576},
                                 {"G", 1073741824}};

    return parse_units(text, UNITS, sizeof UNITS / sizeof UNITS[0], bytes);
}

/* Names from the largest to the smallest. */
static void
format_units(char out[IE__UNITS_SIZE], uint64_t number, const unit *units, size_t count)
{
    size_t i = 0;

    while (i + 1 < count && (number == 0 || number % (uint64_t)units[i].factor != 0))
        i++;
    (void)snprintf(out, IE__UNITS_SIZE, "%" PRIu64 "%s", number / (uint64_t)units[i].factor,
                   units[i].name);
}

void
ie__duration_format(char out[IE__UNITS_SIZE], uint64_t ms)
{
    static const unit UNITS[] = {
        {"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}};

    format_units(out, ms, UNITS, sizeof UNITS / sizeof UNITS[0]);
}

void
ie__bytes_format(char out[IE__UNITS_SIZE], uint64_t bytes)
{
    static const unit UNITS[] = {
        {"TiB", INT64_C(1) << 40}, {"GiB", 1073741824}, {"MiB", 1048576}, {"KiB", 1024}, {"", 1}};

    format_units(out, bytes, UNITS, sizeof UNITS / sizeof UNITS[0]);
}
