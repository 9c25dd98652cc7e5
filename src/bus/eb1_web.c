/* A session of eb/1 inside WebSocket: the request, its answer, frames in, the closing handshake. */
#include <stdio.h>

#include "eb1.h"

struct ie__eb1_web {
    ie__ws         ws;
    unsigned char *request; /* as far as it came; NULL once it is answered */
    size_t         request_bytes;
    bool           was_refused; /* by HTTP: a close frame would not be understood */
    bool           said_close;
};

static void
web_write(ie__eb1 *eb1, const void *bytes, size_t size)
{
    if (ie__stream_write(eb1->conn->stream, bytes, size) != IE_OK)
        ie__conn_doom(eb1->conn, IE_BUS_CODE_MEMORY, "no memory for its output");
}

static void
web_control(ie__eb1 *eb1, ie__ws_opcode opcode, const void *bytes, size_t size)
{
    unsigned char frame[IE__WS_HEAD_MAX + IE__WS_CONTROL_MAX];
    size_t        head = ie__ws_frame_head(frame, opcode, size, NULL);

    if (size != 0)
        memcpy(frame + head, bytes, size);
    web_write(eb1, frame, head + size);
}

static void
web_close(ie__eb1 *eb1, unsigned code)
{
    unsigned char payload[2];

    if (eb1->web->said_close)
        return;
    eb1->web->said_close = true;
    ie__put16(payload, code);
    web_control(eb1, IE__WS_CLOSE, payload, sizeof payload);
}

/* ---- frames --------------------------------------------------------------------------------- */

static ie_status
on_message(void *user, unsigned char *bytes, size_t size)
{
    ie__eb1 *eb1 = user;

    eb1->conn->partial_ms = 0;
    return ie__eb1_message(eb1->conn, bytes, size);
}

static ie_status
on_control(void *user, ie__ws_opcode opcode, unsigned char *bytes, size_t size)
{
    ie__eb1 *eb1 = user;
    unsigned code;

    switch (opcode) {
    case IE__WS_PING:
        if (ie__stream_pending(eb1->conn->stream) > eb1->conn->server->options.out_bytes_max) {
            ie__conn_doom(eb1->conn, IE_BUS_CODE_SLOW, "it does not read its pongs");
            return IE_ECLOSED;
        }
        web_control(eb1, IE__WS_PONG, bytes, size);
        return IE_OK;
    case IE__WS_CLOSE:
        code = ie__ws_close_code(bytes, size);
        if (code == 0) {
            ie__conn_doom(eb1->conn, IE_BUS_CODE_BAD_FRAME, "a malformed close frame");
            return IE_ECLOSED;
        }
        eb1->web->said_close = true;
        web_control(eb1, IE__WS_CLOSE, bytes, size < 2 ? 0 : 2); /* the code comes back */
        ie__conn_doom(eb1->conn, IE_BUS_CODE_DONE, "goodbye");
        return IE_ECLOSED;
    default: return IE_OK;
    }
}

static const ie__ws_ops WS_OPS = {on_message, on_control};

static void
web_frames(ie__eb1 *eb1, unsigned char *bytes, size_t size)
{
    ie__conn *conn = eb1->conn;
    ie_error  err = IE_ERROR_INIT;
    ie_status status = ie__ws_push(&eb1->web->ws, bytes, size, &WS_OPS, eb1, &err);

    if (status == IE_ETOOBIG)
        ie__conn_doom(conn, IE_BUS_CODE_TOO_BIG, "%s", err.message);
    else if (status == IE_EPROTO)
        ie__conn_doom(conn, IE_BUS_CODE_BAD_FRAME, "%s", err.message);
    else if (status == IE_ENOMEM)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "%s", err.message);
}

/* ---- the request ---------------------------------------------------------------------------- */

static void
web_refuse(ie__eb1 *eb1, int status, const char *why)
{
    char answer[IE__HTTP_BYTES_MAX];

    eb1->web->was_refused = true;
    web_write(eb1, answer, ie__ws_answer(answer, status, NULL, why));
    ie__conn_doom(eb1->conn, IE_BUS_CODE_BAD_FRAME, "HTTP %d: %s", status, why);
}

static void
web_request(ie__eb1 *eb1, size_t head_bytes)
{
    char        answer[IE__HTTP_BYTES_MAX];
    char        accept[IE__WS_ACCEPT_SIZE];
    const char *why = "";
    const int   status = ie__ws_request_check(accept, &why, eb1->web->request, head_bytes);

    if (status != 101) {
        web_refuse(eb1, status, why);
        return;
    }
    web_write(eb1, answer, ie__ws_answer(answer, status, accept, why));
    eb1->web->ws.message_max = IE_EB1_MESSAGE_BYTES_MAX;
    ie__eb1_enter(eb1);
}

/* The bytes of the request, up to where it ends; returns how many of them were taken. */
static size_t
request_add(ie__eb1_web *web, const unsigned char *bytes, size_t size, size_t *head_bytes)
{
    const size_t before = web->request_bytes;
    const size_t room = IE__HTTP_BYTES_MAX - before;
    const size_t take = size < room ? size : room;

    memcpy(web->request + before, bytes, take);
    web->request_bytes += take;
    *head_bytes = ie__http_head(web->request, web->request_bytes);
    return *head_bytes != 0 ? *head_bytes - before : take;
}

void
ie__eb1_web_data(ie__conn *conn, unsigned char *bytes, size_t size)
{
    ie__eb1     *eb1 = conn->eb1;
    ie__eb1_web *web = eb1->web;
    size_t       head_bytes = 0;

    if (web->request != NULL) {
        const size_t taken = request_add(web, bytes, size, &head_bytes);

        if (head_bytes == 0) {
            if (web->request_bytes == IE__HTTP_BYTES_MAX)
                web_refuse(eb1, 431, "a request has at most 4096 bytes here");
            return;
        }
        web_request(eb1, head_bytes);
        ie__free(web->request);
        web->request = NULL;
        bytes += taken;
        size -= taken;
    }
    if (conn->state == IE__CONN_ENDED || size == 0)
        return;
    web_frames(eb1, bytes, size);
    if (!ie__ws_is_midway(&web->ws))
        conn->partial_ms = 0;
    else if (conn->partial_ms == 0)
        conn->partial_ms = conn->heard_ms;
}

/* ---- beginning and end ---------------------------------------------------------------------- */

ie_status
ie__eb1_web_begin(ie__eb1 *eb1, const unsigned char bytes[IE__GREETING_BYTES])
{
    ie__eb1_web *web = ie__calloc(1, sizeof *web);

    if (web != NULL)
        web->request = ie__alloc(IE__HTTP_BYTES_MAX);
    if (web == NULL || web->request == NULL) {
        ie__free(web);
        ie__conn_doom(eb1->conn, IE_BUS_CODE_MEMORY, "no memory for a session");
        return IE_ECLOSED;
    }
    eb1->web = web;
    memcpy(web->request, bytes, IE__GREETING_BYTES);
    web->request_bytes = IE__GREETING_BYTES;
    return IE_ESTATE;
}

void
ie__eb1_web_end(ie__eb1 *eb1)
{
    unsigned code = IE__WS_BROKEN;

    if (eb1->web->request != NULL || eb1->web->was_refused)
        return; /* HTTP has said what there was to say */
    switch (eb1->conn->end_code) {
    case IE_BUS_CODE_SHUTTING_DOWN: code = IE__WS_GOING_AWAY; break;
    case IE_BUS_CODE_TOO_BIG: code = IE__WS_TOO_BIG; break;
    case IE_BUS_CODE_LIMIT:
    case IE_BUS_CODE_TIMEOUT: code = IE__WS_POLICY; break;
    default: break;
    }
    web_close(eb1, code);
}

void
ie__eb1_web_free(ie__eb1 *eb1)
{
    ie__free(eb1->web->request);
    ie__ws_fini(&eb1->web->ws);
    ie__free(eb1->web);
    eb1->web = NULL;
}
