/* file:///PATH, the publisher's table. */
#ifndef IE_FILE_PUBLISHER_H
#define IE_FILE_PUBLISHER_H

#include <ie/publisher.h>

extern const ie_publisher_ops ie__publisher_file;

#endif
