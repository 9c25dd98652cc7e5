/* Publishing to the socket bus: pipelined, one answer of the bus per event. README.md has the URL
 * options and the verdicts. */
#include "socket_bus.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "address.h"
#include "client.h"
#include "core.h"
#include "url.h"

#define CLOSE_TIMEOUT_MS 1000

typedef struct bus_publisher bus_publisher;

/* An event on its way. */
typedef struct slot {
    bus_publisher *self;
    struct slot   *next; /* free */
    uint64_t       ticket;
} slot;

/* An event that waits for a slot. */
typedef struct waiting {
    const ie_event *event;
    uint64_t        ticket;
} waiting;

struct bus_publisher {
    ie_publisher_env *env;
    ie_bus_client    *client;
    uint32_t          flags;

    pthread_mutex_t mutex;
    slot           *slots;
    slot           *free_slots;
    waiting        *queue; /* a ring */
    size_t          queue_head;
    size_t          queue_count;
    size_t          queue_max;  /* a power of two, or 0 */
    bool            is_sending; /* somebody empties the queue: order needs that to be one */
    atomic_bool     was_told;   /* that this bus does not store */
};

/* ---- verdicts ------------------------------------------------------------------------------- */

/* What the bus said, by its code. What is not here can only be tried again. What an operator has to
 * mend (rights, credentials, a full disk) spends nothing: it would turn good events into dead
 * letters. */
static const struct {
    ie_bus_code code;
    ie_verdict  verdict;
} BY_CODE[] = {
    {IE_BUS_CODE_NO_SUBSCRIBERS, IE_UNREACHABLE}, {IE_BUS_CODE_SUBSCRIBER_GONE, IE_UNREACHABLE},
    {IE_BUS_CODE_LIMIT, IE_UNREACHABLE},          {IE_BUS_CODE_BUSY, IE_UNREACHABLE},
    {IE_BUS_CODE_MEMORY, IE_UNREACHABLE},         {IE_BUS_CODE_SHUTTING_DOWN, IE_UNREACHABLE},
    {IE_BUS_CODE_UNAVAILABLE, IE_UNREACHABLE},    {IE_BUS_CODE_HANDLER, IE_RETRY},
    {IE_BUS_CODE_ACK_TIMEOUT, IE_RETRY},          {IE_BUS_CODE_TOO_BIG, IE_REJECTED},
    {IE_BUS_CODE_INVALID, IE_REJECTED},           {IE_BUS_CODE_REJECTED, IE_REJECTED},
    {IE_BUS_CODE_STORAGE, IE_UNREACHABLE},        {IE_BUS_CODE_FULL, IE_UNREACHABLE},
    {IE_BUS_CODE_DENIED, IE_UNREACHABLE},         {IE_BUS_CODE_CREDENTIALS, IE_UNREACHABLE},
};

static ie_verdict
verdict_of(ie_status status, uint32_t code)
{
    if (status == IE_OK)
        return IE_DELIVERED;
    for (size_t i = 0; code != IE_BUS_CODE_NONE && i < sizeof BY_CODE / sizeof *BY_CODE; i++)
        if (BY_CODE[i].code == code)
            return BY_CODE[i].verdict;
    if (code != IE_BUS_CODE_NONE)
        return IE_RETRY;
    /* No code: it never reached the bus, or the answer did not reach us. */
    return status == IE_EINVAL || status == IE_ETOOBIG ? IE_REJECTED : IE_UNREACHABLE;
}

/* ---- sending -------------------------------------------------------------------------------- */

static void bus_send(bus_publisher *self);

static void
slot_release(bus_publisher *self, slot *used)
{
    (void)pthread_mutex_lock(&self->mutex);
    used->next = self->free_slots;
    self->free_slots = used;
    (void)pthread_mutex_unlock(&self->mutex);
}

static void
bus_on_answer(void *user, const ie_bus_answer *answer)
{
    slot          *used = user;
    bus_publisher *self = used->self;
    const uint64_t ticket = used->ticket;

    slot_release(self, used);
    if (answer->status == IE_OK && !answer->stored &&
        (self->flags & IE_BUS_PUBLISH_PERSISTENT) != 0 && !atomic_exchange(&self->was_told, true))
        ie_publisher_log(self->env, IE_LOG_INFO,
                         "the bus has no storage for these events: they reach who is connected");
    ie_report(self->env, ticket, verdict_of(answer->status, answer->code),
              answer->status == IE_OK ? NULL : answer->reason);
    bus_send(self);
}

/* The next event with a slot for it; NULL: nothing waits, or nothing is free, or another thread
 * is at it. */
static slot *
queue_take(bus_publisher *self, waiting *out)
{
    slot *taken;

    (void)pthread_mutex_lock(&self->mutex);
    taken = self->queue_count > 0 ? self->free_slots : NULL;
    if (taken != NULL) {
        self->free_slots = taken->next;
        *out = self->queue[self->queue_head];
        self->queue_head = (self->queue_head + 1) & (self->queue_max - 1);
        self->queue_count--;
        taken->ticket = out->ticket;
    } else {
        self->is_sending = false;
    }
    (void)pthread_mutex_unlock(&self->mutex);
    return taken;
}

static void
bus_send(bus_publisher *self)
{
    waiting next;
    slot   *taken;
    bool    is_mine;

    (void)pthread_mutex_lock(&self->mutex);
    is_mine = !self->is_sending && self->queue_count > 0;
    self->is_sending = self->is_sending || is_mine;
    (void)pthread_mutex_unlock(&self->mutex);
    while (is_mine && (taken = queue_take(self, &next)) != NULL) {
        ie_error  err = IE_ERROR_INIT;
        ie_status status;

        /* The bus would say "not allowed", which for any other topic is worth waiting for. */
        if (next.event->topic[0] == '$')
            status = ie_error_set(&err, IE_EINVAL, "topics that begin with $ are the bus's own");
        else
            status = ie_bus_client_publish(self->client, next.event, self->flags, bus_on_answer,
                                           taken, &err);
        if (status == IE_OK)
            continue;
        slot_release(self, taken);
        ie_report(self->env, next.ticket, verdict_of(status, IE_BUS_CODE_NONE), err.message);
    }
}

static bool
queue_reserve(bus_publisher *self, size_t more)
{
    size_t   max = self->queue_max != 0 ? self->queue_max : 64;
    waiting *grown;

    if (self->queue_max != 0 && self->queue_max - self->queue_count >= more)
        return true;
    while (max - self->queue_count < more)
        max *= 2;
    grown = ie__realloc_array(NULL, max, sizeof *grown);
    if (grown == NULL)
        return false;
    for (size_t i = 0; i < self->queue_count; i++)
        grown[i] = self->queue[(self->queue_head + i) & (self->queue_max - 1)];
    ie__free(self->queue);
    self->queue = grown;
    self->queue_head = 0;
    self->queue_max = max;
    return true;
}

static void
bus_publish(void *opened, const ie_outgoing *events, size_t count)
{
    bus_publisher *self = opened;
    bool           has_room;

    (void)pthread_mutex_lock(&self->mutex);
    has_room = queue_reserve(self, count);
    for (size_t i = 0; has_room && i < count; i++) {
        waiting *at =
            &self->queue[(self->queue_head + self->queue_count++) & (self->queue_max - 1)];

        at->event = events[i].event;
        at->ticket = events[i].ticket;
    }
    (void)pthread_mutex_unlock(&self->mutex);
    for (size_t i = 0; !has_room && i < count; i++)
        ie_report(self->env, events[i].ticket, IE_UNREACHABLE, "out of memory in the publisher");
    bus_send(self);
}

/* ---- open and close ------------------------------------------------------------------------- */

static void
bus_on_status(void *user, const ie_bus_client_status *status)
{
    bus_publisher *self = user;

    if (status->state == IE_BUS_CONNECTED)
        atomic_store(&self->was_told, false); /* it may be another bus now */
    if (status->state == IE_BUS_CONNECTED)
        ie_publisher_log(self->env, IE_LOG_INFO, "connected to the bus");
    else if (status->attempts == 1 && status->state != IE_BUS_CLOSED)
        ie_publisher_log(self->env, IE_LOG_WARN, "no connection to the bus: %s", status->reason);
}

static void
bus_free(bus_publisher *self)
{
    (void)pthread_mutex_destroy(&self->mutex);
    ie__free(self->slots);
    ie__free(self->queue);
    ie__free(self);
}

typedef struct bus_options {
    bool    require_subscriber;
    bool    persistent;
    int64_t max_in_flight;
    int64_t connect_timeout_ms;
    char    url[IE__ADDRESS_TEXT_SIZE];
} bus_options;

static ie_status
bus_parse(bus_options *out, ie__url *url, const char *text, ie_error *err)
{
    static const char *const NAMES[] = {"require_subscriber",
                                        "persistent",
                                        "max_in_flight",
                                        "connect_timeout_ms",
                                        "password_file",
                                        "token_file",
                                        "ca",
                                        "cert",
                                        "key",
                                        "tls_host",
                                        NULL};
    ie__address              address;
    ie_status                status = ie__address_parse(&address, url, text, err);

    if (status == IE_OK)
        status = ie__url_known_options(url, NAMES, err);
    if (status == IE_OK)
        status =
            ie__url_option_bool(&out->require_subscriber, url, "require_subscriber", true, err);
    if (status == IE_OK)
        status = ie__url_option_bool(&out->persistent, url, "persistent", true, err);
    if (status == IE_OK)
        status =
            ie__url_option_number(&out->max_in_flight, url, "max_in_flight", 4096, 1, 65536, err);
    if (status == IE_OK)
        status = ie__url_option_number(&out->connect_timeout_ms, url, "connect_timeout_ms", 2000,
                                       10, 600000, err);
    if (status == IE_OK) {
        if (!address.is_unix && address.port == 0)
            address.port = IE__ADDRESS_PORT_DEFAULT;
        ie__address_text(out->url, &address);
    }
    return status;
}

/* Who we are and whom we trust; what the client takes from options as well as from a URL. */
static void
bus_security(ie_bus_client_options *client, const ie__url *url)
{
    client->login = url->user;
    client->password_file = ie__url_option_text(url, "password_file");
    client->token_file = ie__url_option_text(url, "token_file");
    client->tls_ca_file = ie__url_option_text(url, "ca");
    client->tls_cert_file = ie__url_option_text(url, "cert");
    client->tls_key_file = ie__url_option_text(url, "key");
    client->tls_host = ie__url_option_text(url, "tls_host");
}

static ie_status
bus_open_with(void **opened, ie__url *url, const char *text, ie_publisher_env *env, ie_error *err)
{
    ie_bus_client_options client;
    bus_options           options;
    bus_publisher        *self;
    ie_status             status = bus_parse(&options, url, text, err);

    if (status != IE_OK)
        return status;
    self = ie__calloc(1, sizeof *self);
    if (self == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a publisher");
    (void)pthread_mutex_init(&self->mutex, NULL);
    self->env = env;
    self->flags = IE__BUS_PUBLISH_CHECKED; /* the worker hands over what it has checked */
    self->flags |= options.require_subscriber ? IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER : 0;
    self->flags |= options.persistent ? IE_BUS_PUBLISH_PERSISTENT : 0;
    self->slots = ie__calloc((size_t)options.max_in_flight, sizeof *self->slots);
    if (self->slots == NULL) {
        bus_free(self);
        return ie_error_set(err, IE_ENOMEM, "no memory for a publisher");
    }
    for (int64_t i = options.max_in_flight - 1; i >= 0; i--) {
        self->slots[i].self = self;
        self->slots[i].next = self->free_slots;
        self->free_slots = &self->slots[i];
    }
    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = options.url;
    client.flags = IE_BUS_CLIENT_FAIL_OFFLINE;
    client.connect_timeout_ms = (uint32_t)options.connect_timeout_ms;
    client.close_timeout_ms = CLOSE_TIMEOUT_MS;
    client.publish_queue_max = (uint32_t)options.max_in_flight + 1; /* the slots are the limit */
    client.publish_queue_bytes_max = UINT64_C(1) << 40;
    client.on_status = bus_on_status;
    client.user = self;
    bus_security(&client, url);
    status = ie_bus_client_open(&self->client, &client, err);
    if (status != IE_OK) {
        bus_free(self);
        return status;
    }
    *opened = self;
    return IE_OK;
}

static ie_status
bus_open(void **opened, const char *text, ie_publisher_env *env, ie_error *err)
{
    ie__url  *url = ie__alloc(sizeof *url);
    ie_status status;

    if (url == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a publisher");
    status = bus_open_with(opened, url, text, env, err);
    ie__free(url);
    return status;
}

static void
bus_close(void *opened)
{
    bus_publisher *self = opened;

    (void)pthread_mutex_lock(&self->mutex);
    self->queue_count = 0; /* what was not sent stays unanswered: it is sent again */
    (void)pthread_mutex_unlock(&self->mutex);
    ie_bus_client_close(self->client);
    bus_free(self);
}

const ie_publisher_ops ie__publisher_socket = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "socket",
    .flags = IE_PUBLISHER_NONBLOCKING,
    .open = bus_open,
    .publish = bus_publish,
    .close = bus_close,
};

const ie_publisher_ops ie__publisher_sockets = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "sockets",
    .flags = IE_PUBLISHER_NONBLOCKING,
    .open = bus_open,
    .publish = bus_publish,
    .close = bus_close,
};

const ie_publisher_ops ie__publisher_unix = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "unix",
    .flags = IE_PUBLISHER_NONBLOCKING,
    .open = bus_open,
    .publish = bus_publish,
    .close = bus_close,
};
