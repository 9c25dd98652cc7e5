#include "bus_support.h"

#include <check.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core.h"

ie_bus_server *
bus_start(ie_bus_server_options *options)
{
    static const char *const LISTEN[] = {"socket://127.0.0.1:0"};
    ie_bus_server           *server = NULL;
    ie_error                 err = IE_ERROR_INIT;

    if (options->listen == NULL) {
        options->listen = LISTEN;
        options->listen_count = 1;
    }
    ck_assert_msg(ie_bus_server_start(&server, options, &err) == IE_OK, "%s", err.message);
    return server;
}

ie_bus_server *
bus_start_default(void)
{
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    return bus_start(&options);
}

ie_bus_server_stats
bus_stats(ie_bus_server *server)
{
    ie_bus_server_stats stats = {.size = sizeof stats};

    ie_bus_server_stats_get(server, &stats);
    return stats;
}

typedef struct stat_wanted {
    ie_bus_server *server;
    size_t         offset;
    uint64_t       value;
} stat_wanted;

static bool
stat_is_there(void *arg)
{
    const stat_wanted        *w = arg;
    const ie_bus_server_stats stats = bus_stats(w->server);
    uint64_t                  value;

    memcpy(&value, (const char *)&stats + w->offset, sizeof value);
    return value == w->value;
}

bool
bus_stat_becomes(ie_bus_server *server, size_t offset, uint64_t value)
{
    stat_wanted w = {server, offset, value};

    return poll_until(stat_is_there, &w, WAIT_MS);
}

int
raw_connect(const ie_bus_server *server)
{
    const char *url = ie_bus_server_address(server, 0);
    int         fd;

    if (strncmp(url, "unix:", 5) == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};

        (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", url + 5);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ck_assert_int_ge(fd, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            return fd;
    } else {
        struct sockaddr_in address = {.sin_family = AF_INET};

        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons((uint16_t)atoi(strrchr(url, ':') + 1));
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ck_assert_int_ge(fd, 0);
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            return fd;
    }
    (void)close(fd);
    return -1;
}

void
raw_send(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;

    while (size > 0) {
        const ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return; /* it closed; the next receive tells */
        at += sent;
        size -= (size_t)sent;
    }
}

bool
raw_receive(int fd, void *bytes, size_t size)
{
    char *at = bytes;

    while (size > 0) {
        struct pollfd poller = {.fd = fd, .events = POLLIN};
        ssize_t       got;

        if (poll(&poller, 1, WAIT_MS) <= 0)
            return false;
        got = recv(fd, at, size, 0);
        if (got <= 0)
            return false;
        at += got;
        size -= (size_t)got;
    }
    return true;
}

size_t
raw_message(int fd, unsigned char *message)
{
    unsigned char length[IE__LENGTH_BYTES];
    uint64_t      size;

    if (!raw_receive(fd, length, sizeof length))
        return 0;
    size = ie__get64(length);
    ck_assert_uint_le(size, IE__MESSAGE_MAX);
    return raw_receive(fd, message, (size_t)size) ? (size_t)size : 0;
}

ie__frame
raw_expect(int fd, ie__frame_type type)
{
    static unsigned char message[IE__MESSAGE_MAX];
    const size_t         size = raw_message(fd, message);
    ie__frame            frame = {NULL, 0, 0, 0};

    ck_assert_msg(size != 0, "the connection ended before frame %02x", type);
    ck_assert_int_eq(ie__frame_parse(&frame, message, size, NULL), IE_OK);
    ck_assert_msg(frame.type == type, "expected frame %02x, got %02x", type, frame.type);
    return frame;
}

void
raw_expect_reason(int fd, ie__frame_type type, uint32_t number, uint32_t code)
{
    const ie__frame frame = raw_expect(fd, type);
    ie__reason      reason;

    ck_assert_int_eq(ie__reason_parse(&reason, &frame), IE_OK);
    ck_assert_uint_eq(frame.number, number);
    ck_assert_msg(reason.code == code, "expected code %u, got %u: %s", code, reason.code,
                  reason.text);
    ck_assert_msg(reason.text[0] != '\0', "a reason without words");
}

void
raw_expect_end(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    char          byte;

    ck_assert_msg(poll(&poller, 1, WAIT_MS) == 1, "the connection stays open");
    ck_assert_msg(recv(fd, &byte, 1, 0) <= 0, "more came instead of the end");
}

void
raw_frame(int fd, ie__frame_type type, uint32_t number, const void *body, size_t size)
{
    unsigned char *frame = malloc(IE__PREFIX_BYTES + size);

    ck_assert_ptr_nonnull(frame);
    ie__frame_prefix(frame, type, number, size);
    if (size != 0)
        memcpy(frame + IE__PREFIX_BYTES, body, size);
    raw_send(fd, frame, IE__PREFIX_BYTES + size);
    free(frame);
}

int
raw_open_as(const ie_bus_server *server, const char *name)
{
    unsigned char greeting[IE__GREETING_BYTES];
    ie_buffer     hello = {NULL, 0, 0};
    ie__builder   b;
    const int     fd = raw_connect(server);

    ck_assert_int_ge(fd, 0);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    raw_send(fd, greeting, sizeof greeting);
    ie__build_begin(&b, &hello, IE__HELLO, 0);
    if (name != NULL)
        ie__build_text(&b, IE__F_NAME, name);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, hello.data, hello.size);
    ie_buffer_fini(&hello);
    ck_assert(raw_receive(fd, greeting, sizeof greeting));
    ck_assert_uint_eq(ie__greeting_get(greeting), IE__SP_EB2_BUS);
    (void)raw_expect(fd, IE__WELCOME);
    return fd;
}

int
raw_open(const ie_bus_server *server)
{
    return raw_open_as(server, NULL);
}

void
raw_publish(int fd, uint32_t request, uint32_t flags, const char *topic, size_t data_bytes)
{
    ie_event       event = IE_EVENT_INIT;
    unsigned char *body;
    char          *data = malloc(data_bytes + 1);

    ck_assert_ptr_nonnull(data);
    memset(data, 'x', data_bytes);
    event.topic = topic;
    event.data = data;
    event.data_bytes = data_bytes;
    body = malloc(4 + ie__record_size(&event));
    ck_assert_ptr_nonnull(body);
    ie__put32(body, flags);
    raw_frame(fd, IE__PUBLISH, request, body, (size_t)(ie__record_put(body + 4, &event) - body));
    free(body);
    free(data);
}

void
raw_subscribe(int fd, uint32_t id, const char *pattern, const char *group, uint32_t flags,
              uint32_t credit)
{
    ie_buffer   buffer = {NULL, 0, 0};
    ie__builder b;

    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, id);
    ie__build_text(&b, IE__F_PATTERN, pattern);
    if (group != NULL)
        ie__build_text(&b, IE__F_GROUP, group);
    ie__build_u32(&b, IE__F_FLAGS, flags);
    ie__build_u32(&b, IE__F_CREDIT, credit);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
}

int
fake_bus_listen(char url[64])
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t          size = sizeof address;
    const int          fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_ge(fd, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    (void)snprintf(url, 64, "socket://127.0.0.1:%d", ntohs(address.sin_port));
    return fd;
}

int
fake_bus_accept(int listener, uint32_t capabilities)
{
    struct pollfd poller = {.fd = listener, .events = POLLIN};
    unsigned char greeting[IE__GREETING_BYTES];
    ie_buffer     buffer = {NULL, 0, 0};
    ie__builder   b;
    int           fd;

    ck_assert_int_eq(poll(&poller, 1, WAIT_MS), 1);
    fd = accept(listener, NULL, NULL);
    ck_assert_int_ge(fd, 0);
    ck_assert(raw_receive(fd, greeting, sizeof greeting));
    ck_assert_uint_eq(ie__greeting_get(greeting), IE__SP_EB2_CLIENT);
    (void)raw_expect(fd, IE__HELLO);
    ie__greeting_put(greeting, IE__SP_EB2_BUS);
    raw_send(fd, greeting, sizeof greeting);
    ie__build_begin(&b, &buffer, IE__WELCOME, 0);
    ie__build_u32(&b, IE__F_CAPABILITIES, capabilities);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
    return fd;
}

void
fake_bus_deliver(int fd, ie__frame_type type, uint32_t subscription, uint32_t delivery,
                 uint32_t attempt, int64_t position, const char *topic, const char *data)
{
    const size_t  head = type == IE__DELIVER_LOG ? 16 : 4;
    ie_event      event = IE_EVENT_INIT;
    unsigned char body[1024];

    event.topic = topic;
    event.id = data;
    event.type = topic;
    event.source = "fake";
    event.time_ms = 1;
    event.data = data;
    event.data_bytes = strlen(data);
    ck_assert_uint_lt(head + ie__record_size(&event), sizeof body);
    ie__put32(body, delivery);
    if (type == IE__DELIVER_LOG) {
        ie__put32(body + 4, attempt);
        ie__put64(body + 8, (uint64_t)position);
    }
    raw_frame(fd, type, subscription, body, (size_t)(ie__record_put(body + head, &event) - body));
}

ie_bus_client *
client_open_url(const char *url, uint32_t flags)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.flags = flags;
    options.reconnect_delay_ms = 10;
    options.reconnect_delay_ms_max = 50;
    ck_assert_msg(ie_bus_client_open(&client, &options, &err) == IE_OK, "%s", err.message);
    return client;
}

ie_bus_client *
client_open(const ie_bus_server *server)
{
    ie_bus_client *client = client_open_url(ie_bus_server_address(server, 0), 0);
    ie_error       err = IE_ERROR_INIT;

    ck_assert_msg(ie_bus_client_wait_connected(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
    return client;
}

ie_status
counter_handle(void *user, const ie_event *event)
{
    counter *count = user;
    char     text[32] = "";
    long     number;

    while (atomic_load(&count->is_blocked))
        (void)poll(NULL, 0, 1);
    if (event->data_bytes > 0 && event->data_bytes < sizeof text) {
        memcpy(text, event->data, event->data_bytes);
        number = strtol(text, NULL, 10);
        if (number <= atomic_load(&count->last_number))
            (void)atomic_fetch_add(&count->out_of_order, 1);
        atomic_store(&count->last_number, number);
    }
    (void)atomic_fetch_add(&count->handled, 1);
    return (ie_status)atomic_load(&count->result);
}

void
counter_answer(void *user, const ie_bus_answer *answer)
{
    counter *count = user;

    if (answer->status != IE_OK) {
        atomic_store(&count->last_status, answer->status);
        atomic_store(&count->last_code, answer->code);
        (void)atomic_fetch_add(&count->failed, 1);
    }
    (void)atomic_fetch_add(&count->receivers, answer->receivers);
    (void)atomic_fetch_add(&count->answered, 1);
}

typedef struct wanted {
    atomic_ulong *count;
    unsigned long value;
} wanted;

static bool
is_reached(void *arg)
{
    const wanted *w = arg;

    return atomic_load(w->count) >= w->value;
}

bool
wait_for(atomic_ulong *count, unsigned long value)
{
    wanted w = {count, value};

    return poll_until(is_reached, &w, WAIT_MS);
}

uint32_t
subscribe_now(ie_bus_client *client, const char *pattern, const char *group, uint32_t flags,
              counter *count)
{
    ie_error err = IE_ERROR_INIT;
    uint32_t id = 0;

    ck_assert_int_eq(
        ie_bus_client_subscribe(client, pattern, group, flags, counter_handle, count, &id, &err),
        IE_OK);
    ck_assert_msg(ie_bus_client_wait_subscribed(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
    return id;
}

ie_status
publish_number(ie_bus_client *client, const char *topic, long number, uint32_t flags,
               counter *count)
{
    ie_event event = IE_EVENT_INIT;
    char     text[32];

    event.topic = topic;
    event.data_bytes = (size_t)snprintf(text, sizeof text, "%ld", number);
    event.data = text;
    return ie_bus_client_publish(client, &event, flags, count != NULL ? counter_answer : NULL,
                                 count, NULL);
}
