/* memory:NAME, the publisher's table; the subscribing side is <ie/memory.h>. */
#ifndef IE_MEMORY_PUBLISHER_H
#define IE_MEMORY_PUBLISHER_H

#include <ie/publisher.h>

extern const ie_publisher_ops ie__publisher_memory;

#endif
