/* The keys of a sticky group: a table with open addressing, so that a key costs no allocation. */
#include "group.h"

#include "core.h"

#define KEYS_MIN 64

/* Keys are the same in every process, so that members keep theirs; a stranger could choose keys
 * that share a bucket. The table's own salt keeps them apart. */
static size_t
slot_of(const ie__group *group, uint64_t key)
{
    uint64_t h = (key ^ group->hash) * UINT64_C(0x9E3779B97F4A7C15);

    return (size_t)((h ^ h >> 29) & (group->key_max - 1));
}

ie__key *
ie__keys_find(const ie__group *group, uint64_t key)
{
    if (group->key_max == 0)
        return NULL;
    for (size_t i = slot_of(group, key); group->keys[i].key != 0;
         i = (i + 1) & (group->key_max - 1))
        if (group->keys[i].key == key)
            return &group->keys[i];
    return NULL;
}

static void
keys_put(ie__group *group, const ie__key *from)
{
    size_t i = slot_of(group, from->key);

    while (group->keys[i].key != 0)
        i = (i + 1) & (group->key_max - 1);
    group->keys[i] = *from;
}

static bool
keys_resize(ie__group *group, size_t max)
{
    ie__key     *old = group->keys;
    const size_t old_max = group->key_max;
    ie__key     *made = ie__calloc(max, sizeof *made);

    if (made == NULL)
        return false;
    group->keys = made;
    group->key_max = max;
    for (size_t i = 0; i < old_max; i++)
        if (old[i].key != 0)
            keys_put(group, &old[i]);
    ie__free(old);
    return true;
}

ie__key *
ie__keys_add(ie__group *group, uint64_t key)
{
    const ie__key fresh = {.key = key};

    if ((group->key_count + 1) * 4 > group->key_max * 3 &&
        !keys_resize(group, group->key_max != 0 ? group->key_max * 2 : KEYS_MIN))
        return NULL;
    keys_put(group, &fresh);
    group->key_count++;
    return ie__keys_find(group, key);
}

void
ie__keys_remove(ie__group *group, ie__key *slot)
{
    const size_t mask = group->key_max - 1;
    size_t       hole = (size_t)(slot - group->keys);

    /* Whoever was pushed on by the slot moves up, or a search would stop short of it. */
    for (size_t i = (hole + 1) & mask; group->keys[i].key != 0; i = (i + 1) & mask) {
        if (((i - slot_of(group, group->keys[i].key)) & mask) < ((i - hole) & mask))
            continue;
        group->keys[hole] = group->keys[i];
        hole = i;
    }
    memset(&group->keys[hole], 0, sizeof group->keys[hole]);
    group->key_count--;
    if (group->key_max > KEYS_MIN && group->key_count * 8 < group->key_max)
        (void)keys_resize(group, group->key_max / 2); /* without memory it stays large, no harm */
}

void
ie__keys_let_go(ie__group *group, ie__items *out)
{
    size_t i = 0;

    for (size_t j = 0; j < group->key_max; j++) {
        ie__key *slot = &group->keys[j];

        if (slot->key == 0 || slot->waiting.head == NULL)
            continue;
        slot->waiting.head->prev = out->tail;
        if (out->tail != NULL)
            out->tail->next = slot->waiting.head;
        else
            out->head = slot->waiting.head;
        out->tail = slot->waiting.tail;
        slot->waiting.head = slot->waiting.tail = NULL;
    }
    while (i < group->key_max) { /* removing moves others: look at the same place again */
        const size_t max = group->key_max;

        if (group->keys[i].key != 0 && !group->keys[i].is_held) {
            ie__keys_remove(group, &group->keys[i]);
            if (group->key_max != max)
                i = 0;
        } else {
            i++;
        }
    }
}
