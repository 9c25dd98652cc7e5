/* How much of one kind may be logged per minute. */
#include "server.h"

#define MINUTE_MS 60000

bool
ie__gate_open(ie__log_gate *gate, int64_t now_ms, uint32_t per_minute, uint32_t *hushed)
{
    if (gate->until_ms == 0 || now_ms >= gate->until_ms) {
        gate->until_ms = now_ms + MINUTE_MS;
        gate->logged = 0;
    }
    if (gate->logged >= per_minute) {
        gate->hushed++;
        return false;
    }
    gate->logged++;
    *hushed = gate->hushed;
    gate->hushed = 0;
    return true;
}
