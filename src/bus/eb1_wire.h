/* The bytes of eb/1's header, for its server and its client. PROTOCOL.md section 11. */
#ifndef IE_EB1_WIRE_H
#define IE_EB1_WIRE_H

#include <ie/eb1.h>

#include "wire.h"

#define IE__EB1_HEADER       12u
#define IE__EB1_HEADER_EVENT 20u                  /* with the balance key */
#define IE__EB1_BUS          UINT32_C(0xE5627573) /* the event id of "ebus" */
#define IE__EB1_TOP          UINT32_C(0x80000000) /* set: an event; clear: a service */

/* The signalling byte. */
#define IE__EB1_CONTROL 0x20u
#define IE__EB1_EVENT   0x10u
#define IE__EB1_COMMAND 0x0fu
enum { IE__EB1_HEARTBEAT = 0, IE__EB1_REGISTER = 1, IE__EB1_ASSIGN = 2 };

/* Room for a message's length in every framing; WebSocket's is the longest. */
#define IE__EB1_PREFIX_MAX 14u

static inline size_t
ie__eb1_header_bytes(const unsigned char *message)
{
    return (size_t)(message[2] & 15) * 4;
}

/* A header of 12 bytes, version 1. */
static inline void
ie__eb1_header(unsigned char out[IE__EB1_HEADER], unsigned signalling, uint32_t source,
               uint32_t destination)
{
    out[0] = 'e';
    out[1] = 'b';
    out[2] = 0x13;
    out[3] = (unsigned char)signalling;
    ie__put32(out + 4, source);
    ie__put32(out + 8, destination);
}

#endif
