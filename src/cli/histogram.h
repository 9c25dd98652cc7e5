/* How often which time was seen: 32 buckets for each doubling, so every value is kept to 3 %. */
#ifndef IE_CLI_HISTOGRAM_H
#define IE_CLI_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_STEPS   32 /* per doubling, a power of two */
#define HISTOGRAM_BUCKETS (HISTOGRAM_STEPS * 40)

typedef struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS];
    uint64_t total;
    int64_t  max;
} histogram;

void histogram_add(histogram *self, int64_t value); /* below 0 counts as 0 */
void histogram_merge(histogram *self, const histogram *other);
/* The value that this part (0..1) of all does not exceed; 0 when there is none. */
int64_t histogram_at(const histogram *self, double part);
/* The largest value of a bucket. */
int64_t histogram_upper(size_t bucket);

#endif
