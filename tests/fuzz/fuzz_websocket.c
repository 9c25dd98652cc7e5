/*
 * WebSocket. The first byte chooses: heads of requests and answers; or frames, as a server and as
 * a client, which must come to the same messages whether they arrive at once or in pieces.
 */
#include "fuzz.h"

#include <string.h>

#include "core.h"
#include "websocket.h"

#define MESSAGE_MAX 4096

static void
fuzz_heads(const uint8_t *data, size_t size)
{
    char        accept[IE__WS_ACCEPT_SIZE];
    char        answer[IE__HTTP_BYTES_MAX];
    char        key[IE__WS_KEY_SIZE];
    const char *why = NULL;
    ie_error    err = IE_ERROR_INIT;
    int         status;

    CLAIM(ie__http_head(data, size) <= size);
    status = ie__ws_request_check(accept, &why, data, size);
    CLAIM(status == 101 || (status >= 400 && why[0] != '\0'));
    if (status == 101) {
        CLAIM(strlen(accept) == IE__WS_ACCEPT_SIZE - 1);
        CLAIM(ie__http_head((const unsigned char *)answer,
                            ie__ws_answer(answer, 101, accept, "")) != 0);
    }
    ie__ws_key(key);
    if (ie__ws_answer_check(data, size, key, &err) != IE_OK)
        CLAIM(err.message[0] != '\0');
}

/* All that came, one behind the other. */
typedef struct seen {
    ie_buffer messages;
    size_t    count;
} seen;

static void
note(seen *s, unsigned kind, const unsigned char *bytes, size_t size)
{
    const unsigned char head = (unsigned char)kind;

    CLAIM(ie__buffer_add(&s->messages, &head, 1) == IE_OK);
    CLAIM(ie__buffer_add(&s->messages, &size, sizeof size) == IE_OK);
    if (size != 0)
        CLAIM(ie__buffer_add(&s->messages, bytes, size) == IE_OK);
    s->count++;
}

static ie_status
on_message(void *user, unsigned char *bytes, size_t size)
{
    CLAIM(size <= MESSAGE_MAX);
    note(user, IE__WS_BINARY, bytes, size);
    return IE_OK;
}

static ie_status
on_control(void *user, ie__ws_opcode opcode, unsigned char *bytes, size_t size)
{
    CLAIM(size <= IE__WS_CONTROL_MAX && opcode >= IE__WS_CLOSE);
    if (opcode == IE__WS_CLOSE)
        (void)ie__ws_close_code(bytes, size);
    note(user, opcode, bytes, size);
    return IE_OK;
}

static ie_status
push(seen *out, bool is_client, const uint8_t *data, size_t size, size_t step)
{
    static const ie__ws_ops OPS = {on_message, on_control};
    ie__ws                  ws = {.is_client = is_client, .message_max = MESSAGE_MAX};
    ie_status               status = IE_OK;

    while (status == IE_OK && size > 0) {
        const size_t   take = step < size ? step : size;
        unsigned char *piece = malloc(take);

        CLAIM(piece != NULL);
        memcpy(piece, data, take);
        status = ie__ws_push(&ws, piece, take, &OPS, out, NULL);
        free(piece);
        CLAIM(ws.capacity <= 2 * MESSAGE_MAX + 512);
        data += take;
        size -= take;
    }
    ie__ws_fini(&ws);
    return status;
}

static void
fuzz_frames(bool is_client, size_t step, const uint8_t *data, size_t size)
{
    seen            whole = {0};
    seen            pieces = {0};
    const ie_status status = push(&whole, is_client, data, size, size);

    CLAIM(push(&pieces, is_client, data, size, step) == status);
    CLAIM(whole.count == pieces.count && whole.messages.size == pieces.messages.size);
    CLAIM(whole.messages.size == 0 ||
          memcmp(whole.messages.data, pieces.messages.data, whole.messages.size) == 0);
    ie_buffer_fini(&whole.messages);
    ie_buffer_fini(&pieces.messages);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    if ((data[0] & 3) == 0)
        fuzz_heads(data + 1, size - 1);
    else
        fuzz_frames((data[0] & 1) != 0, (size_t)(data[0] >> 2) + 1, data + 1, size - 1);
    return 0;
}
