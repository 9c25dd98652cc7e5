/* Keys whose order must wait for a noted event. */
#include "durable_parts.h"

static size_t
slot_of(const ie__held_keys *held, uint64_t key)
{
    size_t slot = (size_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 20) & (held->max - 1);

    while (held->slots[slot].key != 0 && held->slots[slot].key != key)
        slot = (slot + 1) & (held->max - 1);
    return slot;
}

bool
ie__held_has(const ie__held_keys *held, uint64_t key)
{
    return held->count != 0 && key != 0 && held->slots[slot_of(held, key)].key == key;
}

static bool
grow(ie__held_keys *held)
{
    ie__held_keys grown = {NULL, held->count, held->max != 0 ? held->max * 2 : 16};

    grown.slots = ie__calloc(grown.max, sizeof *grown.slots);
    if (grown.slots == NULL)
        return false;
    for (size_t i = 0; i < held->max; i++)
        if (held->slots[i].key != 0)
            grown.slots[slot_of(&grown, held->slots[i].key)] = held->slots[i];
    ie__free(held->slots);
    *held = grown;
    return true;
}

bool
ie__held_add(ie__held_keys *held, uint64_t key, uint64_t count)
{
    ie__held_key *slot;

    if (2 * (held->count + 1) > held->max && !grow(held))
        return false;
    slot = &held->slots[slot_of(held, key)];
    held->count += slot->key == 0;
    slot->key = key;
    slot->count += count;
    return true;
}

bool
ie__held_drop(ie__held_keys *held, uint64_t key)
{
    size_t slot;
    size_t at;

    if (!ie__held_has(held, key))
        return false;
    slot = slot_of(held, key);
    if (--held->slots[slot].count != 0)
        return true;
    held->count--;
    held->slots[slot].key = 0;
    /* what was pushed behind it moves up */
    for (at = (slot + 1) & (held->max - 1); held->slots[at].key != 0;
         at = (at + 1) & (held->max - 1)) {
        const ie__held_key moved = held->slots[at];

        held->slots[at] = (ie__held_key){0, 0};
        held->slots[slot_of(held, moved.key)] = moved;
    }
    if (held->count == 0)
        ie__held_fini(held);
    return false;
}

void
ie__held_fini(ie__held_keys *held)
{
    ie__free(held->slots);
    *held = (ie__held_keys){NULL, 0, 0};
}
