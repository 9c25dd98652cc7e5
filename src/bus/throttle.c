/* Slowing down who guesses. */
#include "throttle.h"

#include <string.h>

#include "core.h"

typedef struct slot {
    uint64_t key;      /* 0: empty */
    int64_t  last_ms;  /* when it was noted last */
    int64_t  next_ms;  /* the next check may begin then */
    uint32_t failures; /* without a break of IE__THROTTLE_FORGETS */
    bool     is_good;  /* of a pair: was right the last time */
} slot;

struct ie__throttle {
    slot slots[IE__THROTTLE_SETS][IE__THROTTLE_WAYS];
};

ie__throttle *
ie__throttle_new(void)
{
    return ie__calloc(1, sizeof(ie__throttle));
}

void
ie__throttle_free(ie__throttle *throttle)
{
    ie__free(throttle);
}

static slot *
slot_find(ie__throttle *throttle, uint64_t key, int64_t now_ms)
{
    slot *set = throttle->slots[key & (IE__THROTTLE_SETS - 1)];

    for (size_t i = 0; i < IE__THROTTLE_WAYS; i++)
        if (set[i].key == key && key != 0)
            return now_ms - set[i].last_ms <= IE__THROTTLE_FORGETS || set[i].is_good ? &set[i]
                                                                                     : NULL;
    return NULL;
}

/* The key's slot, or that of the most harmless of its set: fewest failures, then the oldest. */
static slot *
slot_take(ie__throttle *throttle, uint64_t key, int64_t now_ms)
{
    slot *set = throttle->slots[key & (IE__THROTTLE_SETS - 1)];
    slot *taken = slot_find(throttle, key, now_ms);

    if (taken != NULL)
        return taken;
    taken = &set[0];
    for (size_t i = 0; i < IE__THROTTLE_WAYS; i++) {
        if (set[i].key == key) { /* expired */
            taken = &set[i];
            break;
        }
        if (set[i].failures < taken->failures ||
            (set[i].failures == taken->failures && set[i].last_ms < taken->last_ms))
            taken = &set[i];
    }
    memset(taken, 0, sizeof *taken);
    taken->key = key;
    return taken;
}

static int64_t
delay_of(uint32_t failures, uint32_t delay_ms)
{
    const uint32_t over = failures >= IE__THROTTLE_FREE ? failures - IE__THROTTLE_FREE : 0;

    if (failures < IE__THROTTLE_FREE)
        return 0;
    return (int64_t)delay_ms << (over < IE__THROTTLE_DOUBLES ? over : IE__THROTTLE_DOUBLES);
}

int64_t
ie__throttle_due(ie__throttle *throttle, const ie__throttle_keys *keys, int64_t now_ms,
                 uint32_t delay_ms)
{
    slot       *slots[2] = {slot_find(throttle, keys->address, now_ms),
                      keys->user != 0 ? slot_find(throttle, keys->user, now_ms) : NULL};
    const slot *pair = slot_find(throttle, keys->pair, now_ms);
    int64_t     due_ms = now_ms;

    if (pair != NULL && pair->is_good)
        return now_ms;
    for (size_t i = 0; i < 2; i++)
        if (slots[i] != NULL && slots[i]->next_ms > due_ms)
            due_ms = slots[i]->next_ms;
    if (due_ms - now_ms > (int64_t)delay_ms << IE__THROTTLE_DOUBLES)
        return -1;
    /* Its turn is taken whether it waits for it or not: coming often does not help. */
    for (size_t i = 0; i < 2; i++)
        if (slots[i] != NULL && slots[i]->failures >= IE__THROTTLE_FREE)
            slots[i]->next_ms = due_ms + delay_of(slots[i]->failures, delay_ms);
    return due_ms;
}

void
ie__throttle_note(ie__throttle *throttle, const ie__throttle_keys *keys, bool was_right,
                  int64_t now_ms, uint32_t delay_ms)
{
    const uint64_t all[2] = {keys->address, keys->user};
    slot          *pair;

    for (size_t i = 0; i < 2 && !was_right; i++) {
        slot *taken = all[i] != 0 ? slot_take(throttle, all[i], now_ms) : NULL;

        if (taken == NULL)
            continue;
        if (taken->failures < UINT32_MAX)
            taken->failures++;
        taken->last_ms = now_ms;
        if (taken->next_ms < now_ms + delay_of(taken->failures, delay_ms))
            taken->next_ms = now_ms + delay_of(taken->failures, delay_ms);
    }
    pair = was_right ? slot_take(throttle, keys->pair, now_ms)
                     : slot_find(throttle, keys->pair, now_ms);
    if (pair == NULL)
        return;
    pair->is_good = was_right;
    pair->last_ms = now_ms;
}
