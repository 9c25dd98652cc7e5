/* Reaching a peer by its address. */
#include "dial.h"

#include <stdio.h>
#include <string.h>

#include "core.h"

static void
dial_answer(ie__dial *dial, ie_status status, const char *reason)
{
    ie__stream *stream = dial->stream;

    dial->stream = NULL;
    dial->is_wanted = false;
    dial->ops->done(dial->owner, stream, status, reason);
}

static void
dial_drop_stream(ie__dial *dial)
{
    ie__stream_close(dial->stream);
    dial->stream = NULL;
}

static void dial_next(ie__dial *dial, int last_error);

static void
on_connected(void *user, int error)
{
    ie__dial *dial = user;

    if (error == 0) {
        dial_answer(dial, IE_OK, "");
        return;
    }
    dial_drop_stream(dial);
    dial_next(dial, error);
}

static void
dial_next(ie__dial *dial, int last_error)
{
    const ie__address *to = dial->address;

    while (dial->address_next < dial->address_count) {
        const struct sockaddr *address =
            (const struct sockaddr *)&dial->addresses[dial->address_next++];

        dial->stream = ie__stream_new(dial->net, to->is_unix, dial->ops->stream, dial->owner);
        if (dial->stream != NULL && dial->ops->prepare != NULL &&
            dial->ops->prepare(dial->owner, dial->stream) != IE_OK)
            dial_drop_stream(dial);
        if (dial->stream == NULL) {
            dial_answer(dial, IE_ENOMEM, "out of memory");
            return;
        }
        last_error = ie__stream_connect(dial->stream, address, to->path, on_connected, dial);
        if (last_error == 0)
            return;
        dial_drop_stream(dial);
    }
    dial_answer(dial, IE_EUNREACHABLE, uv_strerror(last_error));
}

static void
on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *list)
{
    ie__dial *dial = request->data;

    dial->is_resolving = false;
    if (!dial->is_wanted) {
        uv_freeaddrinfo(list);
        return;
    }
    for (struct addrinfo *at = list; at != NULL && dial->address_count < IE__DIAL_ADDRESSES_MAX;
         at = at->ai_next)
        if (at->ai_addrlen <= sizeof dial->addresses[0])
            memcpy(&dial->addresses[dial->address_count++], at->ai_addr, at->ai_addrlen);
    uv_freeaddrinfo(list);
    dial_next(dial, status != 0 ? status : UV_EAI_NONAME);
}

bool
ie__dial_is_busy(const ie__dial *dial)
{
    return dial->is_resolving;
}

void
ie__dial_begin(ie__dial *dial, ie__net *net, const ie__address *address, const ie__dial_ops *ops,
               void *owner)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC};
    const int       port = address->port != 0 ? address->port : IE__ADDRESS_PORT_DEFAULT;
    char            service[16];
    int             error;

    dial->net = net;
    dial->address = address;
    dial->ops = ops;
    dial->owner = owner;
    dial->address_count = dial->address_next = 0;
    dial->is_wanted = true;
    if (address->is_unix || ie__address_numeric(&dial->addresses[0], address->host, port)) {
        dial->address_count = 1;
        dial_next(dial, 0);
        return;
    }
    (void)snprintf(service, sizeof service, "%d", port);
    dial->resolve.data = dial;
    error = uv_getaddrinfo(net->loop, &dial->resolve, on_resolved, address->host, service, &hints);
    if (error != 0)
        dial_answer(dial, IE_EUNREACHABLE, uv_strerror(error));
    else
        dial->is_resolving = true;
}

void
ie__dial_cancel(ie__dial *dial)
{
    if (dial->is_wanted && dial->is_resolving)
        (void)uv_cancel((uv_req_t *)&dial->resolve);
    dial->is_wanted = false;
    dial_drop_stream(dial);
}

uint64_t
ie__dial_retry_ms(uint32_t base_ms, uint32_t max_ms, uint32_t failures)
{
    uint64_t ceiling = base_ms;

    for (uint32_t i = 0; i < failures && ceiling < max_ms; i++)
        ceiling *= 2;
    if (ceiling > max_ms)
        ceiling = max_ms;
    return ie__random_below(ceiling + 1);
}
