#include "peer.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

static ie_status
peer_on_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    (void)user;
    ck_assert_uint_eq(ie__greeting_get(bytes), IE__SP_EB2_BUS);
    return IE_OK;
}

static ie_status
peer_on_message(void *user, unsigned char *message, size_t bytes)
{
    peer     *p = user;
    ie__frame frame;

    ck_assert_int_eq(ie__frame_parse(&frame, message, bytes, NULL), IE_OK);
    if (frame.type == IE__PING)
        raw_frame(p->fd, IE__PONG, frame.number, NULL, 0);
    else if (frame.type == IE__PONG)
        p->pongs++;
    else
        p->on_frame(p, &frame);
    return IE_OK;
}

void
peer_open(peer *p, const ie_bus_server *server, const char *name,
          void (*on_frame)(peer *p, const ie__frame *frame), void *user)
{
    memset(p, 0, sizeof *p);
    p->fd = raw_open_as(server, name);
    p->framer.message_max = IE__MESSAGE_MAX;
    p->framer.is_greeted = true;
    p->on_frame = on_frame;
    p->user = user;
}

void
peer_close(peer *p)
{
    if (p->fd >= 0)
        (void)close(p->fd);
    p->fd = -1;
    ie__framer_fini(&p->framer);
}

/* What the socket holds now. */
static void
peer_read(peer *p)
{
    static const ie__framer_ops OPS = {peer_on_greeting, peer_on_message};
    static unsigned char        bytes[65536];

    while (p->fd >= 0 && !p->has_ended) {
        const ssize_t got = recv(p->fd, bytes, sizeof bytes, MSG_DONTWAIT);

        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            p->has_ended = true;
            return;
        }
        ck_assert_int_eq(ie__framer_push(&p->framer, bytes, (size_t)got, &OPS, p, NULL), IE_OK);
    }
}

void
peers_run(peer *const *peers, size_t count, int wait_ms)
{
    struct pollfd fds[64];

    ck_assert_uint_le(count, sizeof fds / sizeof *fds);
    for (size_t i = 0; i < count; i++)
        fds[i] = (struct pollfd){.fd = peers[i]->has_ended ? -1 : peers[i]->fd, .events = POLLIN};
    (void)poll(fds, (nfds_t)count, wait_ms);
    for (size_t i = 0; i < count; i++)
        if (fds[i].revents != 0)
            peer_read(peers[i]);
}

static bool
all_answered(peer *const *peers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (peers[i]->fd >= 0 && !peers[i]->has_ended && peers[i]->pongs != peers[i]->pings)
            return false;
    return true;
}

static void
barrier_once(peer *const *peers, size_t count)
{
    const int64_t deadline_ns = ie__mono_ns() + WAIT_MS * INT64_C(1000000);

    for (size_t i = 0; i < count; i++) {
        if (peers[i]->fd < 0 || peers[i]->has_ended)
            continue;
        peers[i]->pings++;
        raw_frame(peers[i]->fd, IE__PING, peers[i]->pings, NULL, 0);
    }
    while (!all_answered(peers, count)) {
        ck_assert_msg(ie__mono_ns() < deadline_ns, "no PONG came");
        peers_run(peers, count, 100);
    }
}

void
peers_barrier(peer *const *peers, size_t count)
{
    barrier_once(peers, count); /* the bus has read what all of them sent */
    barrier_once(peers, count); /* and what it sent to any of them for that has come */
}

void
peer_subscribe(peer *p, uint32_t id, const char *pattern, const char *group, uint32_t flags,
               uint32_t credit, ie_bus_selection selection)
{
    ie_buffer   buffer = {NULL, 0, 0};
    ie__builder b;

    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, id);
    ie__build_text(&b, IE__F_PATTERN, pattern);
    if (group != NULL)
        ie__build_text(&b, IE__F_GROUP, group);
    ie__build_u32(&b, IE__F_FLAGS, flags);
    ie__build_u32(&b, IE__F_CREDIT, credit);
    ie__build_u32(&b, IE__F_SELECTION, (uint32_t)selection);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(p->fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
}

void
peer_publish(peer *p, uint32_t request, uint32_t flags, const char *topic, const char *key,
             uint32_t number)
{
    ie_event       event = IE_EVENT_INIT;
    unsigned char  data[4];
    unsigned char *body;

    ie__put32(data, number);
    event.topic = topic;
    event.key = key;
    event.data = data;
    event.data_bytes = sizeof data;
    body = malloc(4 + ie__record_size(&event));
    ck_assert_ptr_nonnull(body);
    ie__put32(body, flags);
    raw_frame(p->fd, IE__PUBLISH, request, body, (size_t)(ie__record_put(body + 4, &event) - body));
    free(body);
}

void
peer_ack(peer *p, uint32_t first, uint32_t count)
{
    unsigned char range[8];

    ie__put32(range, first);
    ie__put32(range + 4, count);
    raw_frame(p->fd, IE__ACK, 0, range, sizeof range);
}

void
peer_nack(peer *p, uint32_t delivery, uint32_t code)
{
    unsigned char frame[IE__REASON_FRAME_MAX];

    raw_send(p->fd, frame, ie__reason_frame(frame, IE__NACK, delivery, code, "no"));
}

uint32_t
peer_number(const ie__frame *frame)
{
    ck_assert_uint_ge(frame->body_bytes, 4);
    return ie__get32(frame->body + frame->body_bytes - 4); /* the data ends the record */
}
