/* Names and texts that server and client share. */
#include <ie/bus.h>

#include "codes.h"

const char *
ie_bus_code_text(uint32_t code)
{
    switch (code) {
#define IE_BUS_CODE_TEXT(name, value, text)                                                        \
    case value: return text;
        IE_BUS_CODE_MAP(IE_BUS_CODE_TEXT)
#undef IE_BUS_CODE_TEXT
    default: return "unknown code";
    }
}

const char *
ie_bus_state_name(ie_bus_state state)
{
    switch (state) {
    case IE_BUS_CONNECTING: return "connecting";
    case IE_BUS_CONNECTED: return "connected";
    case IE_BUS_REFUSED: return "refused";
    case IE_BUS_RECONNECTING: return "reconnecting";
    case IE_BUS_CLOSED: return "closed";
    }
    return "?";
}

/* One place says what a code means for a caller. */
ie_status
ie__bus_code_status(uint32_t code)
{
    switch (code) {
    case IE_BUS_CODE_NONE:
    case IE_BUS_CODE_DONE: return IE_OK;
    case IE_BUS_CODE_TOO_BIG: return IE_ETOOBIG;
    case IE_BUS_CODE_INVALID: return IE_EINVAL;
    case IE_BUS_CODE_LIMIT:
    case IE_BUS_CODE_BUSY:
    case IE_BUS_CODE_FULL:
    case IE_BUS_CODE_MEMORY: return IE_ELIMIT;
    case IE_BUS_CODE_HANDLER:
    case IE_BUS_CODE_REJECTED:
    case IE_BUS_CODE_UNAVAILABLE: return IE_EHANDLER;
    case IE_BUS_CODE_ACK_TIMEOUT:
    case IE_BUS_CODE_TIMEOUT: return IE_ETIMEDOUT;
    case IE_BUS_CODE_SHUTTING_DOWN: return IE_EUNREACHABLE;
    case IE_BUS_CODE_BAD_FRAME: return IE_EPROTO;
    case IE_BUS_CODE_UNSUPPORTED: return IE_ENOTSUP;
    case IE_BUS_CODE_CREDENTIALS:
    case IE_BUS_CODE_DENIED: return IE_EDENIED;
    default: return IE_EREFUSED; /* no subscribers, subscriber gone, what newer buses invent */
    }
}
