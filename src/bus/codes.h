/* What a code of the protocol means for a caller. */
#ifndef IE_BUS_CODES_H
#define IE_BUS_CODES_H

#include <ie/bus.h>

ie_status ie__bus_code_status(uint32_t code);

#endif
