/* A heap of deadlines. */
#include "deadlines.h"

#include <string.h>

#include "core.h"

static void
put(ie__deadlines *deadlines, size_t index, ie__deadline *deadline)
{
    deadlines->heap[index] = deadline;
    deadline->place = index + 1;
}

/* Towards the root, past all that are later. */
static void
rise(ie__deadlines *deadlines, size_t index, ie__deadline *deadline)
{
    while (index > 0 && deadlines->heap[(index - 1) / 2]->at_ms > deadline->at_ms) {
        put(deadlines, index, deadlines->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    put(deadlines, index, deadline);
}

static void
sink(ie__deadlines *deadlines, size_t index, ie__deadline *deadline)
{
    for (;;) {
        size_t child = 2 * index + 1;

        if (child >= deadlines->count)
            break;
        if (child + 1 < deadlines->count &&
            deadlines->heap[child + 1]->at_ms < deadlines->heap[child]->at_ms)
            child++;
        if (deadlines->heap[child]->at_ms >= deadline->at_ms)
            break;
        put(deadlines, index, deadlines->heap[child]);
        index = child;
    }
    put(deadlines, index, deadline);
}

ie_status
ie__deadlines_add(ie__deadlines *deadlines, ie__deadline *deadline, int64_t at_ms)
{
    if (deadlines->count == deadlines->max) {
        const size_t   max = deadlines->max != 0 ? deadlines->max * 2 : 16;
        ie__deadline **grown = ie__realloc_array(deadlines->heap, max, sizeof *grown);

        if (grown == NULL)
            return IE_ENOMEM;
        deadlines->heap = grown;
        deadlines->max = max;
    }
    deadline->at_ms = at_ms;
    rise(deadlines, deadlines->count++, deadline);
    return IE_OK;
}

void
ie__deadlines_remove(ie__deadlines *deadlines, ie__deadline *deadline)
{
    const size_t  index = deadline->place - 1;
    ie__deadline *last;

    if (deadline->place == 0)
        return;
    deadline->place = 0;
    last = deadlines->heap[--deadlines->count];
    if (last == deadline)
        return;
    if (index > 0 && deadlines->heap[(index - 1) / 2]->at_ms > last->at_ms)
        rise(deadlines, index, last);
    else
        sink(deadlines, index, last);
}

ie__deadline *
ie__deadlines_first(const ie__deadlines *deadlines)
{
    return deadlines->count != 0 ? deadlines->heap[0] : NULL;
}

void
ie__deadlines_fini(ie__deadlines *deadlines)
{
    ie__free(deadlines->heap);
    memset(deadlines, 0, sizeof *deadlines);
}
