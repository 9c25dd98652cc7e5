/*
 * The server's sessions, by the rules and against them: four peers of a real server whose loop
 * runs right here. The input is a list of steps; a step is one byte that says which peer does what,
 * and the bytes that this takes. Most are frames that are well formed, so that the play gets far
 * into the groups; others are whatever bytes the input has, in whatever state the peer is.
 *
 * After each step every group is counted through; in the end all peers are gone, and nothing of
 * theirs may be left.
 */
#include "fuzz_bus.h"

#include <string.h>
#include <unistd.h>

#include "core.h"
#include "wire.h"

#define PEERS 4

static ie_bus_server *server;

typedef struct input {
    const uint8_t *at;
    const uint8_t *end;
} input;

static uint8_t
next(input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

/* ---- the server ----------------------------------------------------------------------------- */

static void
server_set_up(void)
{
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_bytes_max = 2048;
    options.subscriptions_per_client_max = 6;
    options.group_events_max = 16;
    options.publishes_in_flight_max = 32;
    options.unauthenticated_max = 2;
    options.credit_max = 8;
    options.out_bytes_max = 65536;
    server = fuzz_bus_make("session", &options);
}

/* ---- what must always hold ------------------------------------------------------------------ */

static size_t
count_items(const ie__items *list, uint64_t *bytes)
{
    const ie__item *before = NULL;
    size_t          count = 0;

    for (const ie__item *item = list->head; item != NULL; item = item->next) {
        CLAIM(item->prev == before);
        before = item;
        *bytes += item->record->size;
        count++;
    }
    CLAIM(list->tail == before);
    return count;
}

static void
check_group(const ie__group *group)
{
    uint64_t bytes = 0;
    size_t   count = 0;
    size_t   keys = 0;

    CLAIM(group->member_count > 0 && group->member_count <= group->member_max);
    if (group->selection == IE_BUS_BROADCAST) {
        for (const ie__item *item = group->queue.head; item != NULL; item = item->next) {
            CLAIM(item->unsent <= item->waiting && item->waiting > 0);
            count += item->unsent > 0;
            bytes += item->unsent > 0 ? item->record->size : 0;
        }
    } else {
        count = count_items(&group->queue, &bytes);
    }
    for (size_t i = 0; i < group->member_count; i++) {
        const ie__sub *sub = group->members[i];

        CLAIM(sub->group == group && sub->outstanding <= sub->credit);
        count += count_items(&sub->queue, &bytes);
        for (size_t j = 0; j < i; j++)
            CLAIM(group->members[j] != sub &&
                  (group->members[j]->identity != sub->identity || sub->identity == 0));
    }
    for (size_t i = 0; i < group->key_max; i++) {
        if (group->keys[i].key == 0)
            continue;
        CLAIM(ie__keys_find(group, group->keys[i].key) == &group->keys[i]);
        count += count_items(&group->keys[i].waiting, &bytes);
        keys++;
    }
    CLAIM(count == group->queue_count && bytes == group->queue_bytes);
    CLAIM(keys == group->key_count);
}

static void
check_server(void)
{
    uint32_t conns = 0;
    uint32_t subs = 0;
    uint32_t strangers = 0;

    for (const ie__conn *conn = server->conns; conn != NULL; conn = conn->next) {
        conns++;
        subs += conn->sub_count;
        strangers += conn->is_stranger;
        CLAIM(conn->delivery_count <= conn->delivery_max);
    }
    CLAIM(conns == server->conn_count && subs == server->sub_count);
    CLAIM(strangers == server->unauthenticated);
    for (size_t i = 0; i < server->group_buckets; i++)
        for (const ie__group *group = server->groups[i]; group != NULL; group = group->chain)
            check_group(group);
}

/* ---- the peers ------------------------------------------------------------------------------ */

static void
peer_frame(int fd, ie__frame_type type, uint32_t number, const void *body, size_t size)
{
    unsigned char frame[IE__PREFIX_BYTES + 512];

    CLAIM(size <= 512);
    ie__frame_prefix(frame, type, number, size);
    if (size != 0)
        memcpy(frame + IE__PREFIX_BYTES, body, size);
    fuzz_peer_send(fd, frame, IE__PREFIX_BYTES + size);
}

static void
peer_hello(int fd, input *in)
{
    unsigned char greeting[IE__GREETING_BYTES];
    unsigned char name[4] = {IE__F_NAME, 0, 1, 0};

    name[3] = (unsigned char)('a' + next(in) % 3);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    fuzz_peer_send(fd, greeting, sizeof greeting);
    peer_frame(fd, IE__HELLO, 0, name, sizeof name);
}

static void
peer_subscribe(int fd, input *in)
{
    static const char *const PATTERNS[] = {"a", "a.>", "*.b", ">"};
    static const char *const GROUPS[] = {"g", "h", "i", "j"};
    const uint8_t            what = next(in);
    ie_buffer                buffer = {NULL, 0, 0};
    ie__builder              b;

    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, 1 + next(in) % 4);
    ie__build_text(&b, IE__F_PATTERN, PATTERNS[what & 3]);
    if ((what & 0x80) == 0) {
        /* mostly the selection that goes with the group, so that members meet */
        ie__build_text(&b, IE__F_GROUP, GROUPS[what >> 2 & 3]);
        ie__build_u32(&b, IE__F_SELECTION, 1 + (uint32_t)(what >> 2 & 3));
    }
    ie__build_u32(&b, IE__F_FLAGS, what >> 4 & 7);
    ie__build_u32(&b, IE__F_CREDIT, next(in) % 5);
    CLAIM(ie__build_end(&b) == IE_OK);
    fuzz_peer_send(fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
}

static void
peer_publish(int fd, ie__frame_type type, input *in)
{
    static const char *const TOPICS[] = {"a", "a.b", "c.b", "a.b.c"};
    static const char *const KEYS[] = {NULL, "k1", "k2", "k3"};
    const uint8_t            what = next(in);
    ie_event                 event = IE_EVENT_INIT;
    unsigned char            body[512] = {0};
    unsigned char           *at = body + (type == IE__QUERY ? 8 : 4);

    event.topic = TOPICS[what & 3];
    event.key = KEYS[what >> 2 & 3];
    event.data = "data";
    event.data_bytes = 4;
    body[3] = what >> 4 & 3;
    peer_frame(fd, type, next(in), body, (size_t)(ie__record_put(at, &event) - body));
}

static void
peer_answer(int fd, input *in)
{
    const uint8_t what = next(in);
    unsigned char body[16] = {0};

    switch (what & 3) {
    case 0:
    case 1: /* a range, or two */
        body[3] = next(in);
        body[7] = 1 + next(in) % 4;
        body[11] = (unsigned char)(body[3] + body[7]);
        body[15] = 1;
        peer_frame(fd, IE__ACK, 0, body, (what & 3) == 0 ? 8 : 16);
        break;
    case 2:
        body[1] = next(in) % 24;
        peer_frame(fd, IE__NACK, next(in), body, 2);
        break;
    default:
        body[3] = what;
        body[5] = next(in) % 24;
        peer_frame(fd, IE__NACK_LATER, next(in), body, 6);
        break;
    }
}

static void
peer_other(int fd, input *in)
{
    static const uint8_t TYPES[] = {IE__PING,  IE__PONG,    IE__UNSUBSCRIBE,  IE__GOODBYE,
                                    IE__REPLY, IE__DECLINE, IE__QUERY_CANCEL, IE__ERROR};
    const uint8_t        what = next(in);
    unsigned char        body[64];
    size_t               size = next(in) % sizeof body;

    for (size_t i = 0; i < size; i++)
        body[i] = next(in);
    if ((what & 8) != 0)
        size = 0;
    peer_frame(fd, (ie__frame_type)((what & 0x80) != 0 ? next(in) : TYPES[what & 7]), next(in),
               body, size);
}

static void
peer_raw(int fd, input *in)
{
    const size_t left = (size_t)(in->end - in->at);
    size_t       size = next(in) % 64;

    size = size < left ? size : left > 0 ? left - 1 : 0;
    fuzz_peer_send(fd, in->at, size);
    in->at += size;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, data + size};
    int   fds[PEERS] = {-1, -1, -1, -1};

    if (server == NULL)
        server_set_up();
    while (in.at < in.end) {
        const uint8_t what = next(&in);
        int          *fd = &fds[what & 3];

        if (*fd < 0) {
            *fd = fuzz_peer_connect();
            if ((what & 0xe0) != 0xe0) /* else it says nothing yet */
                peer_hello(*fd, &in);
            fuzz_bus_turn();
        }
        switch (what >> 2 & 7) {
        case 0: peer_subscribe(*fd, &in); break;
        case 1:
        case 2: peer_publish(*fd, IE__PUBLISH, &in); break;
        case 3: peer_answer(*fd, &in); break;
        case 4: peer_other(*fd, &in); break;
        case 5: peer_raw(*fd, &in); break;
        case 6: peer_publish(*fd, IE__QUERY, &in); break;
        default:
            (void)close(*fd);
            *fd = -1;
            break;
        }
        if ((what & 0x20) != 0) {
            fuzz_bus_turn();
            check_server();
        }
        if ((what & 0x40) != 0 && *fd >= 0)
            fuzz_peer_drain(*fd);
    }
    for (int i = 0; i < PEERS; i++)
        if (fds[i] >= 0)
            (void)close(fds[i]);
    for (int i = 0; i < 1000 && (server->conns != NULL || server->net.linger_count != 0); i++)
        fuzz_bus_turn();
    fuzz_bus_claim_empty();
    CLAIM(server->in_bytes == 0);
    CLAIM(server->net.pending_bytes == 0);
    return 0;
}
