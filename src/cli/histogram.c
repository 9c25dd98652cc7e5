#include "histogram.h"

/* Values below 64 have a bucket each; above, the five bits behind the highest one tell. */
static size_t
bucket_of(uint64_t value)
{
    unsigned shift;
    size_t   bucket;

    if (value < 2 * HISTOGRAM_STEPS)
        return (size_t)value;
    shift = 58u - (unsigned)__builtin_clzll(value); /* leaves 32 to 63 */
    bucket = shift * (size_t)HISTOGRAM_STEPS + (size_t)(value >> shift);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

int64_t
histogram_upper(size_t bucket)
{
    size_t shift;

    if (bucket < 2 * HISTOGRAM_STEPS)
        return (int64_t)bucket;
    shift = bucket / HISTOGRAM_STEPS - 1;
    return (int64_t)(((bucket - shift * HISTOGRAM_STEPS + 1) << shift) - 1);
}

void
histogram_add(histogram *self, int64_t value)
{
    if (value < 0)
        value = 0;
    self->counts[bucket_of((uint64_t)value)]++;
    self->total++;
    if (value > self->max)
        self->max = value;
}

void
histogram_merge(histogram *self, const histogram *other)
{
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        self->counts[i] += other->counts[i];
    self->total += other->total;
    if (other->max > self->max)
        self->max = other->max;
}

int64_t
histogram_at(const histogram *self, double part)
{
    const uint64_t wanted = (uint64_t)(part * (double)self->total + 0.5);
    uint64_t       seen = 0;

    if (self->total == 0)
        return 0;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += self->counts[i];
        if (seen >= wanted && seen > 0)
            return histogram_upper(i) < self->max ? histogram_upper(i) : self->max;
    }
    return self->max;
}
