/* RFC 6455 over memory. */
#include "websocket.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "core.h"

#define KEY_BYTES     16
#define KEY_TEXT      24 /* in base64 */
#define CODE_NONE     1005
#define GUID          "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#define ANSWER_QUOTED 80 /* of a refusal's first line, in our own message */

/* ---- HTTP heads ----------------------------------------------------------------------------- */

typedef struct text {
    const char *at;
    size_t      size;
} text;

size_t
ie__http_head(const unsigned char *bytes, size_t size)
{
    const unsigned char *end = memmem(bytes, size, "\r\n\r\n", 4);

    return end != NULL ? (size_t)(end - bytes) + 4 : 0;
}

static text
text_trim(text t)
{
    while (t.size > 0 && (*t.at == ' ' || *t.at == '\t')) {
        t.at++;
        t.size--;
    }
    while (t.size > 0 && (t.at[t.size - 1] == ' ' || t.at[t.size - 1] == '\t'))
        t.size--;
    return t;
}

static bool
text_is(text t, const char *word)
{
    return t.size == strlen(word) && strncasecmp(t.at, word, t.size) == 0;
}

/* Take what is before the mark off the front; without a mark, all. */
static text
text_cut(text *rest, const char *mark)
{
    const char *found = memmem(rest->at, rest->size, mark, strlen(mark));
    text        front = *rest;

    if (found == NULL) {
        rest->at += rest->size;
        rest->size = 0;
        return front;
    }
    front.size = (size_t)(found - rest->at);
    rest->size -= front.size + strlen(mark);
    rest->at = found + strlen(mark);
    return front;
}

static bool
list_has(text list, const char *word)
{
    while (list.size > 0)
        if (text_is(text_trim(text_cut(&list, ",")), word))
            return true;
    return false;
}

/* The fields that matter; a list that comes in several lines is looked at line by line. */
typedef struct head {
    text first; /* line */
    text key;
    text accept;
    text host;
    text origin;
    text version;
    bool has_upgrade;    /* Upgrade: websocket */
    bool has_connection; /* Connection: Upgrade */
    bool has_protocol;   /* Sec-WebSocket-Protocol lists ours */
} head;

static void
head_field(head *out, text name, text value)
{
    if (text_is(name, "upgrade"))
        out->has_upgrade |= list_has(value, "websocket");
    else if (text_is(name, "connection"))
        out->has_connection |= list_has(value, "upgrade");
    else if (text_is(name, "sec-websocket-protocol"))
        out->has_protocol |= list_has(value, IE__WS_PROTOCOL);
    else if (text_is(name, "sec-websocket-key"))
        out->key = value;
    else if (text_is(name, "sec-websocket-accept"))
        out->accept = value;
    else if (text_is(name, "sec-websocket-version"))
        out->version = value;
    else if (text_is(name, "host"))
        out->host = value;
    else if (text_is(name, "origin"))
        out->origin = value;
}

static bool
head_parse(head *out, const unsigned char *bytes, size_t size)
{
    text rest = {(const char *)bytes, size};

    memset(out, 0, sizeof *out);
    if (memchr(bytes, '\0', size) != NULL)
        return false;
    out->first = text_cut(&rest, "\r\n");
    while (rest.size > 0) {
        text       line = text_cut(&rest, "\r\n");
        const bool has_colon = memchr(line.at, ':', line.size) != NULL;
        text       name;

        if (line.size == 0)
            return true;
        name = text_cut(&line, ":");
        if (!has_colon || name.size == 0 || text_trim(name).size != name.size)
            return false;
        head_field(out, name, text_trim(line));
    }
    return false;
}

/* ---- the server's side ---------------------------------------------------------------------- */

static void
accept_make(char out[IE__WS_ACCEPT_SIZE], const char *key)
{
    unsigned char both[KEY_TEXT + sizeof GUID - 1];
    unsigned char digest[SHA_DIGEST_LENGTH];

    memcpy(both, key, KEY_TEXT);
    memcpy(both + KEY_TEXT, GUID, sizeof GUID - 1);
    (void)SHA1(both, sizeof both, digest);
    (void)EVP_EncodeBlock((unsigned char *)out, digest, sizeof digest);
}

/* A page of a browser may only talk to the host that it came from: any page on the web could
 * otherwise reach a bus on the reader's own machine. */
static bool
origin_is_ours(text origin, text host)
{
    text rest = origin;

    if (origin.at == NULL)
        return true; /* no browser */
    (void)text_cut(&rest, "://");
    return rest.size > 0 && rest.size == host.size && strncasecmp(rest.at, host.at, host.size) == 0;
}

static bool
key_is_good(text key)
{
    unsigned char decoded[KEY_BYTES + 2];

    return key.size == KEY_TEXT && memcmp(key.at + KEY_TEXT - 2, "==", 2) == 0 &&
           EVP_DecodeBlock(decoded, (const unsigned char *)key.at, KEY_TEXT) == sizeof decoded;
}

int
ie__ws_request_check(char accept[IE__WS_ACCEPT_SIZE], const char **why, const unsigned char *bytes,
                     size_t size)
{
    head fields;
    text line;
    text method;
    text path;

    *why = "not a request of HTTP/1.1";
    if (!head_parse(&fields, bytes, size))
        return 400;
    line = fields.first;
    method = text_cut(&line, " ");
    path = text_cut(&line, " ");
    if (!text_is(method, "GET") || line.size != 8 || memcmp(line.at, "HTTP/1.1", 8) != 0)
        return 400;
    path = text_cut(&path, "?");
    *why = "the bus is at the path /";
    if (path.size != 1 || path.at[0] != '/')
        return 404;
    *why = "this is an event bus: connect with WebSocket, version 13";
    if (!fields.has_upgrade || !text_is(fields.version, "13"))
        return 426;
    *why = "Connection: Upgrade and a Sec-WebSocket-Key of 16 bytes are needed";
    if (!fields.has_connection || !key_is_good(fields.key))
        return 400;
    *why = "the subprotocol " IE__WS_PROTOCOL " must be offered";
    if (!fields.has_protocol)
        return 400;
    *why = "pages of another origin may not connect";
    if (!origin_is_ours(fields.origin, fields.host))
        return 403;
    *why = "";
    accept_make(accept, fields.key.at);
    return 101;
}

size_t
ie__ws_answer(char out[IE__HTTP_BYTES_MAX], int status, const char *accept, const char *why)
{
    static const struct {
        int         status;
        const char *phrase;
    } PHRASES[] = {{403, "Forbidden"},
                   {404, "Not Found"},
                   {426, "Upgrade Required"},
                   {431, "Request Header Fields Too Large"},
                   {503, "Service Unavailable"}};
    const char *phrase = "Bad Request";

    if (status == 101)
        return (size_t)snprintf(out, IE__HTTP_BYTES_MAX,
                                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                                "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n"
                                "Sec-WebSocket-Protocol: " IE__WS_PROTOCOL "\r\n\r\n",
                                accept);
    for (size_t i = 0; i < sizeof PHRASES / sizeof *PHRASES; i++)
        if (PHRASES[i].status == status)
            phrase = PHRASES[i].phrase;
    return (size_t)snprintf(
        out, IE__HTTP_BYTES_MAX,
        "HTTP/1.1 %d %s\r\nConnection: close\r\n%s"
        "Content-Type: text/plain\r\nContent-Length: %zu\r\n\r\n%s\n",
        status, phrase, status == 426 ? "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" : "",
        strlen(why) + 1, why);
}

/* ---- the client's side ---------------------------------------------------------------------- */

void
ie__ws_key(char out[IE__WS_KEY_SIZE])
{
    unsigned char bytes[KEY_BYTES];

    ie__random(bytes, sizeof bytes);
    (void)EVP_EncodeBlock((unsigned char *)out, bytes, sizeof bytes);
}

size_t
ie__ws_request(char out[IE__HTTP_BYTES_MAX], const char *host, int port, const char *path,
               const char *key)
{
    const bool is_v6 = strchr(host, ':') != NULL;
    const int  length = snprintf(
         out, IE__HTTP_BYTES_MAX,
         "GET %s HTTP/1.1\r\nHost: %s%s%s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
          "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n"
          "Sec-WebSocket-Protocol: " IE__WS_PROTOCOL "\r\n\r\n",
        path[0] != '\0' ? path : "/", is_v6 ? "[" : "", host, is_v6 ? "]" : "", port, key);

    return length > 0 && length < IE__HTTP_BYTES_MAX ? (size_t)length : 0;
}

ie_status
ie__ws_answer_check(const unsigned char *bytes, size_t size, const char *key, ie_error *err)
{
    char accept[IE__WS_ACCEPT_SIZE];
    char quoted[ANSWER_QUOTED];
    head fields;

    if (!head_parse(&fields, bytes, size) || fields.first.size < 12 ||
        memcmp(fields.first.at, "HTTP/1.1 ", 9) != 0)
        return ie_error_set(err, IE_EREFUSED, "the answer is not HTTP/1.1");
    if (memcmp(fields.first.at + 9, "101", 3) != 0) {
        (void)snprintf(quoted, sizeof quoted, "%.*s", (int)fields.first.size, fields.first.at);
        for (char *at = quoted; *at != '\0'; at++)
            if ((unsigned char)*at < ' ' || (unsigned char)*at > '~')
                *at = '?'; /* a stranger's text, on its way into logs */
        return ie_error_set(err, IE_EREFUSED, "the server answered \"%s\"", quoted);
    }
    accept_make(accept, key);
    if (!fields.has_upgrade || !fields.has_connection || !fields.has_protocol ||
        fields.accept.size != strlen(accept) ||
        memcmp(fields.accept.at, accept, fields.accept.size) != 0)
        return ie_error_set(err, IE_EREFUSED, "the server's upgrade is not that of an event bus");
    return IE_OK;
}

/* ---- frames --------------------------------------------------------------------------------- */

size_t
ie__ws_frame_head(unsigned char out[IE__WS_HEAD_MAX], ie__ws_opcode opcode, size_t size,
                  const unsigned char mask[4])
{
    const unsigned masked = mask != NULL ? 0x80 : 0;
    size_t         length = 2;

    out[0] = (unsigned char)(0x80u | (unsigned)opcode);
    if (size < 126) {
        out[1] = (unsigned char)(masked | size);
    } else if (size < 65536) {
        out[1] = (unsigned char)(masked | 126);
        out[2] = (unsigned char)(size >> 8);
        out[3] = (unsigned char)size;
        length = 4;
    } else {
        out[1] = (unsigned char)(masked | 127);
        for (size_t i = 0; i < 8; i++)
            out[2 + i] = (unsigned char)((uint64_t)size >> (56 - 8 * i));
        length = 10;
    }
    if (mask != NULL) {
        memcpy(out + length, mask, 4);
        length += 4;
    }
    return length;
}

void
ie__ws_mask(unsigned char *bytes, size_t size, const unsigned char mask[4], size_t at)
{
    unsigned char turned[8];
    uint64_t      word;
    size_t        i = 0;

    for (size_t k = 0; k < sizeof turned; k++)
        turned[k] = mask[(at + k) & 3];
    memcpy(&word, turned, sizeof word);
    for (; size - i >= 8; i += 8) {
        uint64_t part;

        memcpy(&part, bytes + i, sizeof part);
        part ^= word;
        memcpy(bytes + i, &part, sizeof part);
    }
    for (; i < size; i++)
        bytes[i] ^= turned[i & 7];
}

static size_t
head_size(const ie__ws *ws)
{
    const unsigned length = ws->head_bytes >= 2 ? ws->head[1] & 127u : 0;

    return 2u +
           (length == 126   ? 2u
            : length == 127 ? 8u
                            : 0u) +
           (ws->head_bytes >= 2 && (ws->head[1] & 128) != 0 ? 4u : 0u);
}

/* The head is complete: what does it announce? */
static ie_status
frame_begin(ie__ws *ws, ie_error *err)
{
    const uint8_t  opcode = ws->head[0] & 15;
    const unsigned short_length = ws->head[1] & 127u;
    const bool     is_masked = (ws->head[1] & 128) != 0;
    const bool     is_control = opcode >= 8;
    uint64_t       length = short_length;

    if (short_length >= 126) {
        length = 0;
        for (size_t i = 0; i < (short_length == 126 ? 2u : 8u); i++)
            length = length << 8 | ws->head[2 + i];
        if (length < (short_length == 126 ? 126u : 65536u) || length >> 63 != 0)
            return ie_error_set(err, IE_EPROTO, "a WebSocket frame with a malformed length");
    }
    ws->is_final = (ws->head[0] & 128) != 0;
    if ((ws->head[0] & 0x70) != 0)
        return ie_error_set(err, IE_EPROTO, "a WebSocket frame with reserved bits");
    if (is_masked == ws->is_client)
        return ie_error_set(err, IE_EPROTO, "a WebSocket frame that is%s masked",
                            is_masked ? "" : " not");
    if (is_control ? opcode > IE__WS_PONG || !ws->is_final || length > IE__WS_CONTROL_MAX
                   : opcode > IE__WS_BINARY)
        return ie_error_set(err, IE_EPROTO, "a WebSocket frame of type %u that makes no sense",
                            opcode);
    if (!is_control && (opcode == IE__WS_CONTINUATION) != ws->in_message)
        return ie_error_set(err, IE_EPROTO, "a WebSocket fragment out of order");
    if (!is_control && length > ws->message_max - ws->size)
        return ie_error_set(err, IE_ETOOBIG, "a WebSocket message beyond %zu bytes",
                            ws->message_max);
    ws->opcode = opcode;
    ws->left = ws->frame_bytes = length;
    ws->control_bytes = 0;
    ws->in_frame = true;
    return IE_OK;
}

static void
partial_free(ie__ws *ws)
{
    ie__free(ws->partial); /* an idle connection holds nothing */
    ws->partial = NULL;
    ws->size = ws->capacity = 0;
}

static ie_status
partial_add(ie__ws *ws, const unsigned char *bytes, size_t size)
{
    if (ws->capacity - ws->size < size) {
        size_t         capacity = ws->capacity != 0 ? ws->capacity : 256;
        unsigned char *grown;

        while (capacity - ws->size < size)
            capacity *= 2; /* size is at most one read: this ends */
        grown = ie__realloc(ws->partial, capacity);
        if (grown == NULL)
            return IE_ENOMEM;
        ws->partial = grown;
        ws->capacity = capacity;
    }
    memcpy(ws->partial + ws->size, bytes, size);
    ws->size += size;
    return IE_OK;
}

/* The frame at hand is complete; its last bytes, unmasked, are here when nothing was gathered. */
static ie_status
frame_end(ie__ws *ws, unsigned char *whole, const ie__ws_ops *ops, void *user)
{
    const size_t size = (size_t)ws->frame_bytes;
    ie_status    status;

    ws->in_frame = false;
    ws->head_bytes = 0;
    if (ws->opcode >= 8)
        return ops->control(user, (ie__ws_opcode)ws->opcode, ws->control, ws->control_bytes);
    ws->in_message = !ws->is_final;
    if (!ws->is_final)
        return IE_OK;
    if (whole != NULL)
        return ops->message(user, whole, size);
    status = ops->message(user, ws->partial, ws->size);
    partial_free(ws);
    return status;
}

static ie_status
frame_take(ie__ws *ws, unsigned char *bytes, size_t size, const ie__ws_ops *ops, void *user,
           ie_error *err)
{
    const unsigned char *mask = ws->head + ws->head_bytes - 4;
    const size_t         at = (size_t)(ws->frame_bytes - ws->left);
    const bool           is_control = ws->opcode >= 8;
    /* Nothing was gathered and this is all of it: hand it over where it lies. */
    const bool is_whole = !is_control && ws->is_final && ws->size == 0 && at == 0 &&
                          size == ws->frame_bytes && size != 0;

    if (!ws->is_client)
        ie__ws_mask(bytes, size, mask, at);
    ws->left -= size;
    if (is_control) {
        memcpy(ws->control + ws->control_bytes, bytes, size);
        ws->control_bytes = (uint8_t)(ws->control_bytes + size);
    } else if (!is_whole && size != 0 && partial_add(ws, bytes, size) != IE_OK) {
        return ie_error_set(err, IE_ENOMEM, "no memory for a message");
    }
    return ws->left == 0 ? frame_end(ws, is_whole ? bytes : NULL, ops, user) : IE_OK;
}

ie_status
ie__ws_push(ie__ws *ws, unsigned char *bytes, size_t size, const ie__ws_ops *ops, void *user,
            ie_error *err)
{
    static unsigned char none[1];
    ie_status            status = IE_OK;

    while (status == IE_OK && size > 0) {
        size_t take;

        if (!ws->in_frame) {
            ws->head[ws->head_bytes++] = *bytes++;
            size--;
            if (ws->head_bytes < 2 || ws->head_bytes < head_size(ws))
                continue;
            status = frame_begin(ws, err);
            if (status == IE_OK && ws->left == 0)
                status = frame_take(ws, none, 0, ops, user, err);
            continue;
        }
        take = ws->left < size ? (size_t)ws->left : size;
        status = frame_take(ws, bytes, take, ops, user, err);
        bytes += take;
        size -= take;
    }
    return status;
}

bool
ie__ws_is_midway(const ie__ws *ws)
{
    return ws->in_frame || ws->in_message || ws->head_bytes != 0;
}

void
ie__ws_fini(ie__ws *ws)
{
    partial_free(ws);
}

unsigned
ie__ws_close_code(const unsigned char *bytes, size_t size)
{
    const unsigned code = size >= 2 ? (unsigned)bytes[0] << 8 | bytes[1] : CODE_NONE;

    if (size == 0)
        return CODE_NONE;
    if (size == 1)
        return 0;
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
                   (code >= 3000 && code <= 4999)
               ? code
               : 0;
}
