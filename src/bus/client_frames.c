/* What the server says: which frame may come when, with the handlers of those about the connection
 * itself. */
#include "client_parts.h"

#include "codes.h"

ie_status
ie__client_broken(ie_bus_client *client, const char *what)
{
    ie__client_why(client, IE_EPROTO, IE_BUS_CODE_NONE, what);
    return IE_EPROTO;
}

static ie_status
on_welcome(ie_bus_client *client, const ie__frame *frame)
{
    const unsigned char *at = frame->body;
    const unsigned char *end = at + frame->body_bytes;
    char                 name[IE_BUS_NAME_BYTES_MAX + 1];
    uint32_t             data_bytes = IE_DATA_BYTES_MAX;
    uint32_t             number;
    ie__field            field;
    ie_status            status;

    client->capabilities = client->server_ping_ms = 0;
    client->in_flight_max = 1024; /* of a server that does not say */
    while ((status = ie__field_next(&field, &at, end)) == IE_OK) {
        switch (field.tag) {
        case IE__F_NAME:
        case IE__F_USER: status = ie__field_text(name, IE_BUS_NAME_BYTES_MAX, &field); break;
        case IE__F_DATA_BYTES: status = ie__field_u32(&data_bytes, &field); break;
        case IE__F_IN_FLIGHT: status = ie__field_u32(&client->in_flight_max, &field); break;
        case IE__F_CAPABILITIES: status = ie__field_u32(&client->capabilities, &field); break;
        case IE__F_PING_MS: status = ie__field_u32(&client->server_ping_ms, &field); break;
        case IE__F_MESSAGE_BYTES:
        case IE__F_SUBSCRIPTIONS:
        case IE__F_CREDIT: status = ie__field_u32(&number, &field); break;
        default: status = field.tag >= IE__FIELD_OPTIONAL ? IE_OK : IE_EPROTO; break;
        }
        if (status != IE_OK)
            return ie__client_broken(client, "a malformed welcome");
    }
    if (status != IE_ENOTFOUND || client->in_flight_max == 0)
        return ie__client_broken(client, "a malformed welcome");
    ie__client_opened(client, data_bytes);
    return IE_OK;
}

static ie_status
on_ping(ie_bus_client *client, const ie__frame *frame)
{
    ie__client_write_empty(client, IE__PONG, frame->number);
    return IE_OK;
}

static ie_status
on_pong(ie_bus_client *client, const ie__frame *frame)
{
    (void)client; /* being heard is all there is to it */
    (void)frame;
    return IE_OK;
}

static ie_status
on_error(ie_bus_client *client, const ie__frame *frame)
{
    ie__reason reason;
    ie_status  status;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return ie__client_broken(client, "a malformed error");
    client->was_refused = client->phase < PHASE_OPEN;
    status = ie__bus_code_status(reason.code);
    ie__client_why(client, status != IE_OK ? status : IE_EREFUSED, reason.code,
                   reason.text[0] != '\0' ? reason.text : ie_bus_code_text(reason.code));
    return IE_ECLOSED;
}

static ie_status
on_goodbye(ie_bus_client *client, const ie__frame *frame)
{
    ie__reason reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return ie__client_broken(client, "a malformed goodbye");
    if (client->said_goodbye && reason.code == IE_BUS_CODE_DONE) {
        ie__client_why(client, IE_EUNREACHABLE, IE_BUS_CODE_NONE,
                       "the connection was ended in order");
        return IE_ECLOSED;
    }
    ie__client_why(client, IE_EUNREACHABLE, reason.code, reason.text);
    client_lock(client);
    ie__client_queries_shut(client);
    client_unlock(client);
    client->phase = PHASE_LEAVING; /* answers to what was sent still come */
    ie__stream_touch(client->stream);
    return IE_OK;
}

typedef ie_status (*frame_fn)(ie_bus_client *client, const ie__frame *frame);

/* Which frames a server may send, and from when on. */
static const struct {
    uint8_t  type;
    phase    from;
    phase    to;
    frame_fn handle;
} FRAMES[] = {
    {IE__DELIVER, PHASE_OPEN, PHASE_LEAVING, ie__client_on_deliver},
    {IE__DELIVER_ACK, PHASE_OPEN, PHASE_LEAVING, ie__client_on_deliver},
    {IE__DELIVER_LOG, PHASE_OPEN, PHASE_LEAVING, ie__client_on_deliver},
    {IE__ANSWER, PHASE_OPEN, PHASE_LEAVING, ie__client_on_answer},
    {IE__QUERY_END, PHASE_OPEN, PHASE_LEAVING, ie__client_on_query_end},
    {IE__ASK, PHASE_OPEN, PHASE_LEAVING, ie__client_on_ask},
    {IE__WITHDRAW, PHASE_OPEN, PHASE_LEAVING, ie__client_on_withdraw},
    {IE__PUBACK, PHASE_OPEN, PHASE_LEAVING, ie__client_on_puback},
    {IE__PUBNACK, PHASE_OPEN, PHASE_LEAVING, ie__client_on_pubnack},
    {IE__PING, PHASE_OPEN, PHASE_LEAVING, on_ping},
    {IE__PONG, PHASE_OPEN, PHASE_LEAVING, on_pong},
    {IE__SUBSCRIBED, PHASE_OPEN, PHASE_LEAVING, ie__client_on_subscribed},
    {IE__SUBREFUSED, PHASE_OPEN, PHASE_LEAVING, ie__client_on_subrefused},
    {IE__UNSUBSCRIBED, PHASE_OPEN, PHASE_LEAVING, ie__client_on_unsubscribed},
    {IE__WELCOME, PHASE_HELLO, PHASE_HELLO, on_welcome},
    {IE__ERROR, PHASE_GREETING, PHASE_LEAVING, on_error},
    {IE__GOODBYE, PHASE_OPEN, PHASE_LEAVING, on_goodbye},
};

static ie_status
on_message(void *user, unsigned char *message, size_t bytes)
{
    ie_bus_client *client = user;
    ie_error       err;
    ie__frame      frame;

    ie__error_begin(&err);
    if (client->stream == NULL)
        return IE_ECLOSED;
    if (ie__frame_parse(&frame, message, bytes, &err) != IE_OK)
        return ie__client_broken(client, err.message);
    for (size_t i = 0; i < sizeof FRAMES / sizeof *FRAMES; i++) {
        if (FRAMES[i].type != frame.type)
            continue;
        if (client->phase < FRAMES[i].from || client->phase > FRAMES[i].to)
            break;
        return FRAMES[i].handle(client, &frame);
    }
    return (frame.type & IE__FRAME_OPTIONAL) != 0
               ? IE_OK
               : ie__client_broken(client, "a frame out of place");
}

static ie_status
on_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    ie_bus_client *client = user;

    switch (ie__greeting_get(bytes)) {
    case IE__SP_EB2_BUS: client->phase = PHASE_HELLO; return IE_OK;
    case IE__SP_EB1_BUS:
        return ie__client_broken(client, "that is an eb/1 bus; this client speaks eb/2");
    default: return ie__client_broken(client, "what listens there is not a bus");
    }
}

const ie__framer_ops ie__client_framer_ops = {on_greeting, on_message};
