/* A table by number. */
#include "numbers.h"

#include <string.h>

#include "core.h"

#define IDLE_BUCKETS 256 /* kept by an empty table */

/* Whoever gives the numbers counts up, so the lowest bits spread them best. */
static ie__numbered **
bucket_of(const ie__numbers *numbers, uint32_t number)
{
    return &numbers->buckets[number & (numbers->bucket_count - 1)];
}

static bool
numbers_grow(ie__numbers *numbers)
{
    ie__numbers grown = {NULL, numbers->bucket_count != 0 ? numbers->bucket_count * 2 : 16, 0};

    grown.buckets = ie__calloc(grown.bucket_count, sizeof *grown.buckets);
    if (grown.buckets == NULL)
        return false;
    for (size_t i = 0; i < numbers->bucket_count; i++) {
        while (numbers->buckets[i] != NULL) {
            ie__numbered  *entry = numbers->buckets[i];
            ie__numbered **bucket = bucket_of(&grown, entry->number);

            numbers->buckets[i] = entry->chain;
            entry->chain = *bucket;
            *bucket = entry;
        }
    }
    grown.count = numbers->count;
    ie__free(numbers->buckets);
    *numbers = grown;
    return true;
}

ie_status
ie__numbers_add(ie__numbers *numbers, ie__numbered *entry, uint32_t number)
{
    ie__numbered **bucket;

    if (numbers->count >= numbers->bucket_count && !numbers_grow(numbers) &&
        numbers->bucket_count == 0)
        return IE_ENOMEM; /* with some buckets, longer chains do no harm */
    bucket = bucket_of(numbers, number);
    entry->number = number;
    entry->chain = *bucket;
    *bucket = entry;
    numbers->count++;
    return IE_OK;
}

ie__numbered *
ie__numbers_find(const ie__numbers *numbers, uint32_t number)
{
    ie__numbered *entry = numbers->count != 0 ? *bucket_of(numbers, number) : NULL;

    while (entry != NULL && entry->number != number)
        entry = entry->chain;
    return entry;
}

void
ie__numbers_remove(ie__numbers *numbers, ie__numbered *entry)
{
    ie__numbered **link = bucket_of(numbers, entry->number);

    while (*link != entry)
        link = &(*link)->chain;
    *link = entry->chain;
    if (--numbers->count == 0 && numbers->bucket_count > IDLE_BUCKETS)
        ie__numbers_fini(numbers); /* a burst is over */
}

ie__numbered *
ie__numbers_any(const ie__numbers *numbers, size_t *from)
{
    while (numbers->count != 0 && *from < numbers->bucket_count) {
        if (numbers->buckets[*from] != NULL)
            return numbers->buckets[*from];
        ++*from;
    }
    return NULL;
}

void
ie__numbers_fini(ie__numbers *numbers)
{
    ie__free(numbers->buckets);
    memset(numbers, 0, sizeof *numbers);
}
