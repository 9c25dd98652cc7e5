/* The worker's numbers: one table for defaults, bounds, documents and tests. */
#ifndef IE_OPTIONS_H
#define IE_OPTIONS_H

#include <ie/worker.h>

typedef struct ie__option_row {
    const char *name;
    const char *unit;
    uint32_t    fallback;
    uint32_t    min;
    uint32_t    max;
    size_t      offset; /* in ie_worker_options */
} ie__option_row;

extern const ie__option_row ie__option_rows[];
extern const size_t         ie__option_row_count;

/* IE_EINVAL names the first option out of its bounds. */
ie_status ie__options_check(const ie_worker_options *options, ie_error *err);

#endif
