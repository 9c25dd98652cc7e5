/*
 * eb/2: the codec, and the server's sessions. The first byte chooses.
 *
 * Even: the rest is a byte stream for the framer, cut in pieces; each frame's record is taken
 * apart, and what it gives must survive being written and read again.
 *
 * Odd: the rest is a play for two peers of a real server whose loop runs right here. Each step is
 * a byte (bit 0: which peer; bit 1: bytes as they are, or a body that gets its frame; bit 2: read
 * what came) and a length, then for a frame its type and number. In the end both are gone, and
 * nothing of theirs may be left.
 */
#include "fuzz_bus.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "wire.h"

/* ---- the codec ------------------------------------------------------------------------------ */

static bool
same_text(const char *a, const char *b)
{
    return a == NULL ? b == NULL : b != NULL && strcmp(a, b) == 0;
}

static void
check_record(unsigned char *bytes, size_t size)
{
    static ie__record record;
    static ie__record again;
    ie_event          event;
    ie_event          copy;
    unsigned char    *out;
    size_t            out_size;

    if (ie__record_parse(&record, bytes, size, 4096, NULL) != IE_OK)
        return;
    ie__record_event(&event, &record);
    CLAIM(strlen(event.topic) <= record.topic.size);
    out_size = ie__record_size(&event);
    out = malloc(out_size);
    CLAIM(out != NULL);
    CLAIM(ie__record_put(out, &event) == out + out_size);
    if (strlen(event.topic) == record.topic.size && record.topic.size != 0) {
        CLAIM(ie__record_parse(&again, out, out_size, 4096, NULL) == IE_OK);
        ie__record_event(&copy, &again);
        CLAIM(same_text(event.topic, copy.topic) && same_text(event.key, copy.key));
        CLAIM(same_text(event.id, copy.id) && same_text(event.type, copy.type));
        CLAIM(same_text(event.source, copy.source) && same_text(event.subject, copy.subject));
        CLAIM(same_text(event.dataschema, copy.dataschema));
        CLAIM(same_text(event.content_type, copy.content_type));
        CLAIM(event.time_ms == copy.time_ms && event.expires_at_ms == copy.expires_at_ms);
        CLAIM(event.header_count == copy.header_count && event.data_bytes == copy.data_bytes);
        for (size_t i = 0; i < event.header_count; i++)
            CLAIM(same_text(event.headers[i].name, copy.headers[i].name) &&
                  same_text(event.headers[i].value, copy.headers[i].value));
        CLAIM(event.data_bytes == 0 || memcmp(event.data, copy.data, event.data_bytes) == 0);
    }
    free(out);
}

static ie_status
on_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    (void)user;
    (void)ie__greeting_get(bytes);
    return IE_OK;
}

static ie_status
on_message(void *user, unsigned char *message, size_t bytes)
{
    const unsigned char *at;
    ie__frame            frame;
    ie__field            field;
    ie__reason           reason;
    char                 text[256];
    uint32_t             number;

    (void)user;
    if (ie__frame_parse(&frame, message, bytes, NULL) != IE_OK)
        return IE_OK;
    at = frame.body;
    while (ie__field_next(&field, &at, frame.body + frame.body_bytes) == IE_OK) {
        (void)ie__field_u32(&number, &field);
        if (ie__field_text(text, sizeof text - 1, &field) == IE_OK)
            CLAIM(strlen(text) == field.size);
    }
    if (ie__reason_parse(&reason, &frame) == IE_OK)
        CLAIM(strlen(reason.text) <= IE__REASON_BYTES_MAX);
    if (frame.body_bytes > 4)
        check_record(frame.body + 4, frame.body_bytes - 4);
    return IE_OK;
}

static void
fuzz_codec(const uint8_t *data, size_t size)
{
    static const ie__framer_ops OPS = {on_greeting, on_message};
    ie__framer                  framer = {.message_max = 4096};
    unsigned char              *record;
    size_t                      step;

    if (size == 0)
        return;
    step = (size_t)*data + 1;
    data++;
    size--;
    record = malloc(size != 0 ? size : 1); /* also straight in: the shortest way for the fuzzer */
    CLAIM(record != NULL);
    memcpy(record, data, size);
    check_record(record, size);
    free(record);
    while (size > 0) {
        const size_t   take = step < size ? step : size;
        unsigned char *piece = malloc(take);
        ie_status      status;

        CLAIM(piece != NULL);
        memcpy(piece, data, take);
        status = ie__framer_push(&framer, piece, take, &OPS, NULL, NULL);
        free(piece);
        CLAIM(framer.capacity <= 2 * (4096 + IE__LENGTH_BYTES));
        if (status != IE_OK)
            break;
        data += take;
        size -= take;
    }
    ie__framer_fini(&framer);
}

/* ---- sessions ------------------------------------------------------------------------------- */

static ie_bus_server *server;

static void
server_set_up(void)
{
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_bytes_max = 2048;
    options.subscriptions_per_client_max = 8;
    options.group_events_max = 8;
    options.publishes_in_flight_max = 16;
    options.out_bytes_max = 65536;
    server = fuzz_bus_make("frame", &options);
}

static int
peer_connect(void)
{
    unsigned char hello[IE__GREETING_BYTES + IE__PREFIX_BYTES];
    const int     fd = fuzz_peer_connect();

    ie__greeting_put(hello, IE__SP_EB2_CLIENT);
    ie__frame_prefix(hello + IE__GREETING_BYTES, IE__HELLO, 0, 0);
    fuzz_peer_send(fd, hello, sizeof hello);
    return fd;
}

static void
fuzz_session(const uint8_t *data, size_t size)
{
    int fds[2];

    if (server == NULL)
        server_set_up();
    fds[0] = peer_connect();
    fds[1] = peer_connect();
    fuzz_bus_turn();
    while (size >= 4) {
        const int     fd = fds[data[0] & 1];
        const bool    is_raw = (data[0] & 2) != 0;
        const bool    is_read = (data[0] & 4) != 0;
        size_t        body = data[1];
        unsigned char prefix[IE__PREFIX_BYTES];

        if (!is_raw) {
            ie__frame_prefix(prefix, (ie__frame_type)data[2], data[3],
                             body < size - 4 ? body : size - 4);
            fuzz_peer_send(fd, prefix, sizeof prefix);
        }
        data += 4;
        size -= 4;
        body = body < size ? body : size;
        fuzz_peer_send(fd, data, body);
        data += body;
        size -= body;
        if (is_read)
            fuzz_peer_drain(fd);
        fuzz_bus_turn();
    }
    (void)close(fds[0]);
    (void)close(fds[1]);
    fuzz_bus_claim_empty();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if ((data[0] & 1) == 0)
        fuzz_codec(data + 1, size - 1);
    else
        fuzz_session(data + 1, size - 1);
    return 0;
}
