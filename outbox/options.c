#include "options.h"

#include <string.h>

#include "core.h"

const ie__option_row ie__option_rows[] = {
#define IE_OPTION_ROW(name, unit, fallback, min, max)                                              \
    {#name, unit, fallback, min, max, offsetof(ie_worker_options, name)},
    IE_WORKER_OPTION_MAP(IE_OPTION_ROW)
#undef IE_OPTION_ROW
};
const size_t ie__option_row_count = sizeof ie__option_rows / sizeof ie__option_rows[0];

void
ie_worker_options_init(ie_worker_options *options, size_t size)
{
    ie_worker_options full;

    memset(&full, 0, sizeof full);
    for (size_t i = 0; i < ie__option_row_count; i++)
        memcpy((char *)&full + ie__option_rows[i].offset, &ie__option_rows[i].fallback,
               sizeof(uint32_t));
    memset(options, 0, size);
    memcpy(options, &full, size < sizeof full ? size : sizeof full);
    options->size = size;
}

ie_status
ie__options_check(const ie_worker_options *options, ie_error *err)
{
    for (size_t i = 0; i < ie__option_row_count; i++) {
        const ie__option_row *row = &ie__option_rows[i];
        uint32_t              value;

        memcpy(&value, (const char *)options + row->offset, sizeof value);
        if (value < row->min || value > row->max)
            return ie_error_set(err, IE_EINVAL, "option %s is %u; it must be %u to %u %s",
                                row->name, value, row->min, row->max, row->unit);
    }
    if (options->retry_delay_ms > options->retry_delay_max_ms)
        return ie_error_set(err, IE_EINVAL,
                            "option retry_delay_ms (%u) is above retry_delay_max_ms (%u)",
                            options->retry_delay_ms, options->retry_delay_max_ms);
    if (options->breaker_delay_ms > options->breaker_delay_max_ms)
        return ie_error_set(err, IE_EINVAL,
                            "option breaker_delay_ms (%u) is above breaker_delay_max_ms (%u)",
                            options->breaker_delay_ms, options->breaker_delay_max_ms);
    return IE_OK;
}
