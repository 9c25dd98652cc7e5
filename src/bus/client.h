/* What the socket publisher may do beyond the public client. */
#ifndef IE_CLIENT_H
#define IE_CLIENT_H

#include <ie/bus.h>

/* The event has been checked, by ie_event_check() or by whoever read it from the log. */
#define IE__BUS_PUBLISH_CHECKED 0x80000000u

#endif
