/* A client of eb/1: opened with its options, used from any thread, closed. */
#include <ie/eb1.h>

#include "eb1_wire.h"

uint32_t
ie_eb1_event_id(const char *name)
{
    unsigned char first[IE_EB1_EVENT_BYTES] = {0};

    for (size_t i = 0; i < sizeof first && name[i] != '\0'; i++)
        first[i] = (unsigned char)name[i];
    return ie__get32(first) | IE__EB1_TOP;
}
