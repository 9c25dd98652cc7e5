/* Addresses: reading them out of URLs and writing them back. */
#include "address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <uv.h>

ie_status
ie__address_parse(ie__address *out, ie__url *url, const char *text, ie_error *err)
{
    ie__address address;
    ie_status   status;

    memset(&address, 0, sizeof address);
    status = ie__url_parse(url, text, err);
    if (status != IE_OK)
        return status;
    address.is_tls = strcmp(url->scheme, "sockets") == 0;
    if (strcmp(url->scheme, "socket") != 0 && strcmp(url->scheme, "unix") != 0 && !address.is_tls)
        return ie_error_set(err, IE_EINVAL,
                            "%s: the bus is at socket://HOST:PORT, sockets://HOST:PORT (TLS) or "
                            "unix:/PATH",
                            url->scheme);
    if (address.is_tls && url->host[0] == '\0')
        return ie_error_set(err, IE_EINVAL, "TLS is for hosts: sockets://HOST:PORT");
    if (url->password != NULL)
        return ie_error_set(err, IE_EINVAL,
                            "a password in a URL is seen by others; put it into a "
                            "file and say password_file");
    if (strcmp(url->scheme, "unix") == 0 || (url->host[0] == '\0' && url->path[0] == '/')) {
        if (url->path[0] != '/' || url->path[1] == '\0' || url->host[0] != '\0')
            return ie_error_set(err, IE_EINVAL, "a unix socket needs an absolute path: unix:/PATH");
        if (strlen(url->path) >= sizeof address.path)
            return ie_error_set(err, IE_EINVAL, "the path of a unix socket has at most %zu bytes",
                                sizeof address.path - 1);
        address.is_unix = true;
        (void)snprintf(address.path, sizeof address.path, "%s", url->path);
    } else {
        if (url->path[0] != '\0' && strcmp(url->path, "/") != 0)
            return ie_error_set(err, IE_EINVAL, "%s: a path makes no sense after host and port",
                                url->path);
        if (strlen(url->host) >= sizeof address.host)
            return ie_error_set(err, IE_EINVAL, "the host name is too long");
        if (url->host[0] == '\0')
            return ie_error_set(err, IE_EINVAL, "the host is missing: socket://HOST:PORT");
        (void)snprintf(address.host, sizeof address.host, "%s", url->host);
        address.port = url->port;
    }
    *out = address;
    return IE_OK;
}

void
ie__address_text(char out[IE__ADDRESS_TEXT_SIZE], const ie__address *address)
{
    if (address->is_unix)
        (void)snprintf(out, IE__ADDRESS_TEXT_SIZE, "unix:%s", address->path);
    else
        (void)snprintf(out, IE__ADDRESS_TEXT_SIZE,
                       strchr(address->host, ':') != NULL ? "%s://[%s]:%d" : "%s://%s:%d",
                       address->is_tls ? "sockets" : "socket", address->host, address->port);
}

bool
ie__address_numeric(struct sockaddr_storage *out, const char *host, int port)
{
    memset(out, 0, sizeof *out);
    return uv_ip4_addr(host, port, (struct sockaddr_in *)(void *)out) == 0 ||
           uv_ip6_addr(host, port, (struct sockaddr_in6 *)(void *)out) == 0;
}

bool
ie__sockaddr_is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;

        return (ntohl(in->sin_addr.s_addr) >> 24) == 127;
    }
    if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;

        return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
    }
    return false;
}

int
ie__sockaddr_port(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)(const void *)address)->sin_port);
    if (address->sa_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)(const void *)address)->sin6_port);
    return 0;
}
