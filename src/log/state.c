/* The names of an event's states: in SQL, help and documents the same. */
#include <string.h>

#include "log.h"

static const char *const NAMES[IE_STATE_COUNT] = {
    "pending", "in-progress", "published", "scheduled", "retrying",
    "blocked", "dead",        "expired",   "discarded",
};

const char *
ie_state_name(ie_state state)
{
    return (unsigned)state < IE_STATE_COUNT ? NAMES[state] : "unknown";
}

ie_status
ie_state_parse(ie_state *out, const char *name, ie_error *err)
{
    for (int i = 0; i < IE_STATE_COUNT; i++)
        if (strcmp(NAMES[i], name) == 0) {
            *out = (ie_state)i;
            return IE_OK;
        }
    return ie_error_set(err, IE_EINVAL,
                        "state '%.40s' is not one of pending, in-progress, published, scheduled, "
                        "retrying, blocked, dead, expired, discarded",
                        name);
}
