/* The publishers for socket:// and unix:, for the set that all builds share. */
#ifndef IE_SOCKET_BUS_H
#define IE_SOCKET_BUS_H

#include <ie/publisher.h>

extern const ie_publisher_ops ie__publisher_socket;
extern const ie_publisher_ops ie__publisher_unix;
extern const ie_publisher_ops ie__publisher_sockets; /* TLS */

#endif
