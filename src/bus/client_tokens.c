/* What was handed out by number and is not answered: a hash table of numbers. */
#include "client_parts.h"

#define TOKENS_MIN 64

static size_t
home(const tokens *set, uint32_t number)
{
    return (number * UINT32_C(2654435761)) & (set->max - 1);
}

static void
put(tokens *set, struct token token)
{
    size_t at = home(set, token.number);

    while (set->slots[at].number != 0)
        at = (at + 1) & (set->max - 1);
    set->slots[at] = token;
    set->count++;
}

static ie_status
resize(tokens *set, size_t max)
{
    const tokens  old = *set;
    struct token *slots = ie__calloc(max, sizeof *slots);

    if (slots == NULL)
        return IE_ENOMEM;
    set->slots = slots;
    set->max = max;
    set->count = 0;
    for (size_t i = 0; i < old.max; i++)
        if (old.slots[i].number != 0)
            put(set, old.slots[i]);
    ie__free(old.slots);
    return IE_OK;
}

ie_status
ie__tokens_add(tokens *set, uint32_t number, uint32_t owner)
{
    if (set->count >= set->max / 2 &&
        resize(set, set->max != 0 ? set->max * 2 : TOKENS_MIN) != IE_OK)
        return IE_ENOMEM;
    put(set, (struct token){.number = number, .owner = owner});
    return IE_OK;
}

/* Close the gap, so that what lies behind it is still found. */
static void
take_at(tokens *set, size_t gap)
{
    const size_t mask = set->max - 1;

    for (size_t at = (gap + 1) & mask; set->slots[at].number != 0; at = (at + 1) & mask) {
        const size_t from = home(set, set->slots[at].number);

        if (((at - from) & mask) >= ((at - gap) & mask)) {
            set->slots[gap] = set->slots[at];
            gap = at;
        }
    }
    set->slots[gap].number = 0;
    set->count--;
}

bool
ie__tokens_take(tokens *set, uint32_t number)
{
    if (set->count == 0 || number == 0)
        return false;
    for (size_t at = home(set, number); set->slots[at].number != 0; at = (at + 1) & (set->max - 1))
        if (set->slots[at].number == number) {
            take_at(set, at);
            return true;
        }
    return false;
}

void
ie__tokens_drop(tokens *set, uint32_t owner)
{
    size_t at = 0;

    while (set->count != 0 && at < set->max) {
        if (set->slots[at].number != 0 && set->slots[at].owner == owner)
            take_at(set, at); /* another one may have come here */
        else
            at++;
    }
}

void
ie__tokens_clear(tokens *set)
{
    if (set->count != 0)
        memset(set->slots, 0, set->max * sizeof *set->slots);
    set->count = 0;
}

void
ie__tokens_fini(tokens *set)
{
    ie__free(set->slots);
    memset(set, 0, sizeof *set);
}
