/* Where to listen or connect: socket://host:port, sockets://host:port (TLS), unix:/path,
 * socket:///path. */
#ifndef IE_NET_ADDRESS_H
#define IE_NET_ADDRESS_H

#include <ie/base.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "url.h"

#define IE__ADDRESS_PORT_DEFAULT 9100
#define IE__ADDRESS_TEXT_SIZE    512

typedef struct ie__address {
    bool is_unix;
    bool is_tls;
    char host[256]; /* a name or a number; "" for unix */
    int  port;      /* 0 is legal for listening */
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
} ie__address;

/* Read the address out of a URL whose options the caller looks at. IE_EINVAL names the part. */
ie_status ie__address_parse(ie__address *out, ie__url *url, const char *text, ie_error *err);

/* "socket://[::1]:9100" or "unix:/run/ie.sock". */
void ie__address_text(char out[IE__ADDRESS_TEXT_SIZE], const ie__address *address);

/* Is the host a number? Then *out is it. */
bool ie__address_numeric(struct sockaddr_storage *out, const char *host, int port);

/* 127.0.0.0/8 or ::1. */
bool ie__sockaddr_is_loopback(const struct sockaddr *address);
int  ie__sockaddr_port(const struct sockaddr *address);

#endif
