/*
 * Reaching a peer by its address: a name is resolved, and what it stands for is tried one after the
 * other, each with a fresh stream. How long all this may take is the owner's decision: it cancels.
 *
 * A dial is embedded in its owner and used again for each attempt. A name that is being resolved
 * cannot always be called back, so the owner must live until its loop has ended. Everything here
 * belongs to the loop's thread.
 */
#ifndef IE_NET_DIAL_H
#define IE_NET_DIAL_H

#include <ie/base.h>

#include <uv.h>

#include "address.h"
#include "stream.h"

#define IE__DIAL_ADDRESSES_MAX 8   /* of a host name, tried one after the other */
#define IE__DIAL_BUSY_MS       100 /* when to ask again whether it is still busy */

typedef struct ie__dial_ops {
    const ie__stream_ops *stream; /* of the streams, whose owner is the dial's */
    /* Before a stream connects; may be NULL. Not IE_OK: no memory, the attempt has failed. */
    ie_status (*prepare)(void *owner, ie__stream *stream);
    /* Connected: the stream is the owner's. Or it is NULL, and that is why. Called once for each
     * ie__dial_begin(), perhaps from inside it, unless the attempt is cancelled. */
    void (*done)(void *owner, ie__stream *stream, ie_status status, const char *reason);
} ie__dial_ops;

typedef struct ie__dial {
    uv_getaddrinfo_t        resolve;
    ie__net                *net;
    const ie__address      *address;
    const ie__dial_ops     *ops;
    void                   *owner;
    ie__stream             *stream; /* that is being connected */
    struct sockaddr_storage addresses[IE__DIAL_ADDRESSES_MAX];
    size_t                  address_count;
    size_t                  address_next;
    bool                    is_wanted;    /* the attempt was neither answered nor cancelled */
    bool                    is_resolving; /* the request is out, perhaps for a cancelled attempt */
} ie__dial;

/* All zero is a dial that does nothing. */

/* The name of a cancelled attempt is still being resolved: begin later. */
bool ie__dial_is_busy(const ie__dial *dial);
/* Not while it is busy, nor twice at a time. Port 0 means IE__ADDRESS_PORT_DEFAULT. The address and
 * ops stay the caller's, and must outlive the attempt. */
void ie__dial_begin(ie__dial *dial, ie__net *net, const ie__address *address,
                    const ie__dial_ops *ops, void *owner);
/* Give the attempt up, if there is one: nobody will be called. */
void ie__dial_cancel(ie__dial *dial);

/* How long to wait after so many failures in a row: anything up to base_ms, doubled for each
 * failure before this one, but at most max_ms. At random, so that not all come back at once. */
uint64_t ie__dial_retry_ms(uint32_t base_ms, uint32_t max_ms, uint32_t failures);

#endif
