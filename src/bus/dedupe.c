/* A ring of ids in the order in which they came, and an open-addressed table that finds them. */
#include "dedupe.h"

#include <string.h>

#include "core.h"

#define RING_MIN 256 /* a power of two */

typedef struct remembered {
    ie__dedupe_key key;
    int64_t        position;
    int64_t        at_ms;
} remembered;

/* A slot of the table. The tag spares a look at the ring, which is elsewhere in memory. */
typedef struct finger {
    uint32_t place; /* 0: free, else place in the ring + 1 */
    uint32_t tag;   /* of the key */
} finger;

struct ie__dedupe {
    remembered *ring;
    finger     *table; /* twice as long as the ring */
    size_t      ring_max;
    size_t      head;
    size_t      count;
    uint64_t    seed;
    uint32_t    window_ms;
    uint32_t    ids_max;
};

ie__dedupe *
ie__dedupe_new(uint32_t window_ms, uint32_t ids_max)
{
    ie__dedupe *dedupe = ie__calloc(1, sizeof *dedupe);

    if (dedupe == NULL)
        return NULL;
    dedupe->window_ms = window_ms;
    dedupe->ids_max = ids_max;
    ie__random(&dedupe->seed, sizeof dedupe->seed);
    return dedupe;
}

void
ie__dedupe_free(ie__dedupe *dedupe)
{
    if (dedupe == NULL)
        return;
    ie__free(dedupe->ring);
    ie__free(dedupe->table);
    ie__free(dedupe);
}

ie__dedupe_key
ie__dedupe_key_of(const ie__dedupe *dedupe, const char *source, const char *id)
{
    char           text[IE_ATTRIBUTE_BYTES_MAX + IE_ID_BYTES_MAX + 1];
    size_t         source_bytes = strnlen(source, IE_ATTRIBUTE_BYTES_MAX);
    size_t         id_bytes = strnlen(id, IE_ID_BYTES_MAX);
    ie__dedupe_key key;

    memcpy(text, source, source_bytes);
    text[source_bytes++] = '\0'; /* neither has one inside, so no two pairs make one text */
    memcpy(text + source_bytes, id, id_bytes);
    key.high = ie__hash(text, source_bytes + id_bytes);
    key.low = ie__digest(text, source_bytes + id_bytes, dedupe->seed);
    return key;
}

static size_t
table_slot(const ie__dedupe *dedupe, ie__dedupe_key key)
{
    return (size_t)key.low & (2 * dedupe->ring_max - 1);
}

static uint32_t
tag_of(ie__dedupe_key key)
{
    return (uint32_t)key.high;
}

static size_t
table_next(const ie__dedupe *dedupe, size_t slot)
{
    return (slot + 1) & (2 * dedupe->ring_max - 1);
}

/* The slot that leads to this place of the ring. */
static size_t
table_find_place(const ie__dedupe *dedupe, size_t place)
{
    size_t slot = table_slot(dedupe, dedupe->ring[place].key);

    while (dedupe->table[slot].place != place + 1)
        slot = table_next(dedupe, slot);
    return slot;
}

static void
table_put(ie__dedupe *dedupe, size_t place)
{
    size_t slot = table_slot(dedupe, dedupe->ring[place].key);

    while (dedupe->table[slot].place != 0)
        slot = table_next(dedupe, slot);
    dedupe->table[slot].place = (uint32_t)place + 1;
    dedupe->table[slot].tag = tag_of(dedupe->ring[place].key);
}

/* Free a slot, and move up what was pushed behind it, so that no search ends too early. */
static void
table_remove(ie__dedupe *dedupe, size_t slot)
{
    size_t from = slot;

    dedupe->table[slot].place = 0;
    for (;;) {
        size_t home;

        from = table_next(dedupe, from);
        if (dedupe->table[from].place == 0)
            return;
        home = table_slot(dedupe, dedupe->ring[dedupe->table[from].place - 1].key);
        /* may it lie at slot: is home, going round, not between slot (excluded) and from? */
        if (slot <= from ? (home <= slot || home > from) : (home <= slot && home > from)) {
            dedupe->table[slot] = dedupe->table[from];
            dedupe->table[from].place = 0;
            slot = from;
        }
    }
}

static ie_status
grow(ie__dedupe *dedupe)
{
    const size_t max = dedupe->ring_max != 0 ? dedupe->ring_max * 2 : RING_MIN;
    remembered  *ring = ie__realloc_array(NULL, max, sizeof *ring);
    finger      *table = ie__calloc(2 * max, sizeof *table);

    if (ring == NULL || table == NULL) {
        ie__free(ring);
        ie__free(table);
        return IE_ENOMEM;
    }
    for (size_t i = 0; i < dedupe->count; i++)
        ring[i] = dedupe->ring[(dedupe->head + i) & (dedupe->ring_max - 1)];
    ie__free(dedupe->ring);
    ie__free(dedupe->table);
    dedupe->ring = ring;
    dedupe->table = table;
    dedupe->ring_max = max;
    dedupe->head = 0;
    for (size_t i = 0; i < dedupe->count; i++)
        table_put(dedupe, i);
    return IE_OK;
}

static const remembered *
find(const ie__dedupe *dedupe, ie__dedupe_key key)
{
    if (dedupe->count == 0)
        return NULL;
    for (size_t slot = table_slot(dedupe, key); dedupe->table[slot].place != 0;
         slot = table_next(dedupe, slot)) {
        const remembered *at = &dedupe->ring[dedupe->table[slot].place - 1];

        if (dedupe->table[slot].tag == tag_of(key) && at->key.high == key.high &&
            at->key.low == key.low)
            return at;
    }
    return NULL;
}

int64_t
ie__dedupe_find(const ie__dedupe *dedupe, ie__dedupe_key key, int64_t now_ms)
{
    const remembered *at = find(dedupe, key);

    return at != NULL && now_ms - at->at_ms < (int64_t)dedupe->window_ms ? at->position : 0;
}

static void
forget_oldest(ie__dedupe *dedupe)
{
    table_remove(dedupe, table_find_place(dedupe, dedupe->head));
    dedupe->head = (dedupe->head + 1) & (dedupe->ring_max - 1);
    dedupe->count--;
}

void
ie__dedupe_expire(ie__dedupe *dedupe, int64_t now_ms)
{
    while (dedupe->count > 0 &&
           now_ms - dedupe->ring[dedupe->head].at_ms >= (int64_t)dedupe->window_ms)
        forget_oldest(dedupe);
    if (dedupe->count == 0 && dedupe->ring_max > RING_MIN) {
        ie__free(dedupe->ring);
        ie__free(dedupe->table);
        dedupe->ring = NULL;
        dedupe->table = NULL;
        dedupe->ring_max = dedupe->head = 0;
    }
}

ie_status
ie__dedupe_add(ie__dedupe *dedupe, ie__dedupe_key key, int64_t position, int64_t now_ms)
{
    size_t place;

    ie__dedupe_expire(dedupe, now_ms);
    if (dedupe->count >= dedupe->ids_max)
        forget_oldest(dedupe);
    if (dedupe->count == dedupe->ring_max && grow(dedupe) != IE_OK)
        return IE_ENOMEM;
    place = (dedupe->head + dedupe->count++) & (dedupe->ring_max - 1);
    dedupe->ring[place].key = key;
    dedupe->ring[place].position = position;
    dedupe->ring[place].at_ms = now_ms;
    table_put(dedupe, place);
    return IE_OK;
}

void
ie__dedupe_undo(ie__dedupe *dedupe, size_t count)
{
    for (; count > 0 && dedupe->count > 0; count--) {
        const size_t place = (dedupe->head + dedupe->count - 1) & (dedupe->ring_max - 1);

        table_remove(dedupe, table_find_place(dedupe, place));
        dedupe->count--;
    }
}

size_t
ie__dedupe_count(const ie__dedupe *dedupe)
{
    return dedupe->count;
}
