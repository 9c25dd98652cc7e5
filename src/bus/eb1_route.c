/*
 * The way of a message of eb/1: to a service id, to one member of an event, to everybody else.
 *
 * Invariant: a connection that has been doomed is a member of nothing, or leaves everything as
 * soon as something is sent to it; so a message goes to one that is alive, or is counted.
 */
#include "auth.h"
#include "eb1.h"

/* ---- events --------------------------------------------------------------------------------- */

static ie__eb1_event **
event_link(const ie__eb1_bus *bus, uint32_t id)
{
    ie__eb1_event **link = &bus->events[ie__hash(&id, sizeof id) & (bus->event_buckets - 1)];

    while (*link != NULL && (*link)->id != id)
        link = &(*link)->chain;
    return link;
}

static void
events_grow(ie__eb1_bus *bus)
{
    const size_t    old_buckets = bus->event_buckets;
    ie__eb1_event **old = bus->events;
    ie__eb1_event **grown = ie__calloc(old_buckets * 2, sizeof *grown);

    if (grown == NULL)
        return; /* longer chains, no more */
    bus->events = grown;
    bus->event_buckets = old_buckets * 2;
    for (size_t i = 0; i < old_buckets; i++) {
        while (old[i] != NULL) {
            ie__eb1_event *event = old[i];

            old[i] = event->chain;
            event->chain = NULL;
            *event_link(bus, event->id) = event;
        }
    }
    ie__free(old);
}

static ie__eb1_event *
event_get(ie__eb1_bus *bus, uint32_t id)
{
    ie__eb1_event **link = event_link(bus, id);
    ie__eb1_event  *event;

    if (*link != NULL)
        return *link;
    event = ie__calloc(1, sizeof *event);
    if (event == NULL)
        return NULL;
    event->id = id;
    *link = event;
    if (++bus->event_count > bus->event_buckets)
        events_grow(bus);
    return event;
}

static void
event_free(ie_bus_server *server, ie__eb1_event *event)
{
    ie__eb1_bus *bus = server->eb1;

    ie__topics_remove(server->topics, &event->target.entry);
    *event_link(bus, event->id) = event->chain;
    bus->event_count--;
    ie__free(event->members);
    ie__free(event);
}

static void
event_remove(ie_bus_server *server, ie__eb1_event *event, const ie__eb1 *member)
{
    uint32_t at = 0;

    while (event->members[at] != member)
        at++;
    event->count--;
    memmove(&event->members[at], &event->members[at + 1],
            (event->count - at) * sizeof *event->members);
    if (event->turn > at)
        event->turn--; /* whose turn it was, it still is */
    if (event->turn >= event->count)
        event->turn = 0;
    if (event->count == 0)
        event_free(server, event);
}

/* ---- membership ----------------------------------------------------------------------------- */

/* Room for one more pointer in an array that doubles. */
static bool
array_has_room(void **array, uint32_t count, uint32_t *max)
{
    const uint32_t wanted = *max != 0 ? *max * 2 : 2;
    void          *grown;

    if (count < *max)
        return true;
    grown = ie__realloc_array(*array, wanted, sizeof(void *));
    if (grown == NULL)
        return false;
    *array = grown;
    *max = wanted;
    return true;
}

/* An event is a topic of its name; what has no name needs the right to all of them. */
static bool
eb1_may(const ie__eb1 *eb1, ie__verb verb, uint32_t id)
{
    char name[5] = "";
    bool is_narrowed;

    if (eb1->conn->rights == NULL)
        return true;
    if ((id & IE__EB1_TOP) == 0)
        return ie__may_pattern(eb1->conn, verb, ">", false, &is_narrowed);
    ie__put32((unsigned char *)name, id & ~IE__EB1_TOP);
    return ie_topic_check(name, NULL) == IE_OK && ie__may(eb1->conn, verb, name, strlen(name));
}

static const char *
register_fault(const ie__eb1 *eb1, uint32_t id)
{
    const ie_bus_server *server = eb1->conn->server;

    if ((id & IE__EB1_TOP) == 0)
        return "it registers a number that is no event";
    if (eb1->event_count >= server->options.subscriptions_per_client_max)
        return "subscriptions_per_client_max is reached";
    if (server->sub_count >= server->options.subscriptions_max)
        return "subscriptions_max is reached";
    return NULL;
}

/*
 * eb/1 has no answer to a registration, so one that cannot be served ends the connection: a member
 * that believes to be one, and never gets anything, would be worse.
 */
void
ie__eb1_register(ie__eb1 *eb1, uint32_t id)
{
    ie__conn      *conn = eb1->conn;
    ie__eb1_bus   *bus = conn->server->eb1;
    const char    *fault = register_fault(eb1, id);
    ie__eb1_event *event;

    for (uint32_t i = 0; i < eb1->event_count; i++)
        if (eb1->events[i]->id == id)
            return; /* registered already: one place */
    if (fault != NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_LIMIT, "%s", fault);
        return;
    }
    if (!eb1_may(eb1, IE__MAY_SUBSCRIBE, id)) {
        ie__conn_doom(conn, IE_BUS_CODE_DENIED, "no right to an event that it registers");
        return;
    }
    event = event_get(bus, id);
    if (event != NULL && array_has_room((void **)&eb1->events, eb1->event_count, &eb1->event_max) &&
        array_has_room((void **)&event->members, event->count, &event->max)) {
        eb1->events[eb1->event_count++] = event;
        event->members[event->count++] = eb1;
        conn->server->sub_count++;
        if (event->count == 1)
            ie__eb1_event_index(conn->server, event);
        return;
    }
    if (event != NULL && event->count == 0)
        event_free(conn->server, event);
    ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for a registration");
}

void
ie__eb1_leave(ie__eb1 *eb1)
{
    ie_bus_server *server = eb1->conn->server;

    while (eb1->event_count > 0) {
        event_remove(server, eb1->events[--eb1->event_count], eb1);
        server->sub_count--;
    }
}

/* ---- routing -------------------------------------------------------------------------------- */

static ie__eb1_how
how_of(const ie__eb1 *from, const unsigned char *message)
{
    switch (message[3] & IE__EB1_COMMAND) {
    case IE_EB1_HASH: return IE__EB1_BY_KEY;
    case IE_EB1_ROUND_ROBIN:
        if (!from->is_old)
            return IE__EB1_IN_TURN;
        return ie__get64(message + IE__EB1_HEADER) != 0 ? IE__EB1_BY_KEY : IE__EB1_ANY;
    default: return IE__EB1_ANY;
    }
}

static ie__eb1 *
event_pick(ie__eb1_event *event, ie__eb1_how how, uint64_t key)
{
    uint32_t at = 0;

    if (event->count == 1)
        return event->members[0];
    switch (how) {
    case IE__EB1_BY_KEY: at = (uint32_t)(key % event->count); break;
    case IE__EB1_ANY: at = (uint32_t)ie__random_below(event->count); break;
    case IE__EB1_IN_TURN:
        at = event->turn;
        event->turn = at + 1 < event->count ? at + 1 : 0;
        break;
    }
    return event->members[at];
}

bool
ie__eb1_event_send(ie__eb1_bus *bus, uint32_t id, ie__eb1_how how, uint64_t key, ie__eb1_out *out,
                   unsigned char head[IE__EB1_HEADER])
{
    for (;;) {
        ie__eb1_event *event = *event_link(bus, id);
        ie__eb1       *to;

        if (event == NULL)
            return false;
        to = event_pick(event, how, key);
        ie__put32(head + 8, to->id);
        if (ie__eb1_send(to, out))
            return true;
        if (!to->conn->is_doomed)
            return false;  /* no memory: nobody could get it */
        ie__eb1_leave(to); /* which shortens the list, so this ends */
    }
}

static void
route_event(ie__eb1 *from, unsigned char *message, size_t size)
{
    ie_bus_server    *server = from->conn->server;
    const uint32_t    id = ie__get32(message + 8);
    const uint64_t    key = ie__get64(message + IE__EB1_HEADER);
    const ie__eb1_how how = how_of(from, message);
    unsigned char     head[IE__EB1_HEADER];
    ie__eb1_out       out = {.from = from->conn,
                             .head = head,
                             .head_bytes = sizeof head,
                             .data = message + IE__EB1_HEADER_EVENT,
                             .data_bytes = size - IE__EB1_HEADER_EVENT};
    /* The topic's subscribers first: they do not end the event, but its members might. */
    bool is_heard = ie__eb1_to_topic(from, *event_link(server->eb1, id), message, size);

    ie__eb1_header(head, message[3] & IE__EB1_COMMAND, ie__get32(message + 4), 0);
    head[2] = (unsigned char)((message[2] & 0xf0) | IE__EB1_HEADER / 4);
    if (ie__eb1_event_send(server->eb1, id, how, key, &out, head)) {
        server->stats.eb1_out++;
        is_heard = true;
    }
    if (!is_heard)
        ie__eb1_drop(from, "the event has no member");
    ie__blob_unref(out.blob);
}

static void
route_direct(ie__eb1 *from, unsigned char *message, size_t size)
{
    ie_bus_server *server = from->conn->server;
    ie__eb1       *to = ie__eb1_find(server->eb1, ie__get32(message + 8));
    ie__eb1_out    out = {.from = from->conn,
                          .head = message,
                          .head_bytes = IE__EB1_HEADER,
                          .data = message + IE__EB1_HEADER,
                          .data_bytes = size - IE__EB1_HEADER};

    if (to == NULL)
        ie__eb1_drop(from, "no such service id");
    else if (to->is_alias) {
        if (!ie__eb1_to_alias(from, to, message, size))
            ie__eb1_drop(from, "the client of eb/2 expects no such message");
    } else if (ie__eb1_send(to, &out))
        server->stats.eb1_out++;
    else
        ie__eb1_drop(from, "the receiver takes no more");
    ie__blob_unref(out.blob);
}

static void
route_broadcast(ie__eb1 *from, unsigned char *message, size_t size)
{
    ie_bus_server *server = from->conn->server;
    const size_t   header = ie__eb1_header_bytes(message);
    const uint32_t source = ie__get32(message + 4);
    ie__eb1_out    out = {.from = from->conn,
                          .head = message,
                          .head_bytes = header,
                          .data = message + header,
                          .data_bytes = size - header};
    uint64_t       reached = 0;

    for (ie__eb1 *to = server->eb1->sessions; to != NULL; to = to->next)
        if (to->id != source && ie__eb1_send(to, &out))
            reached++;
    server->stats.eb1_out += reached;
    if (reached == 0)
        ie__eb1_drop(from, "a broadcast, and nobody else is there");
    ie__blob_unref(out.blob);
}

void
ie__eb1_route(ie__eb1 *from, unsigned char *message, size_t size)
{
    ie_bus_server *server = from->conn->server;
    const size_t   header = ie__eb1_header_bytes(message);
    const uint32_t destination = ie__get32(message + 8);
    const bool     is_event = (message[3] & IE__EB1_EVENT) != 0;

    server->stats.eb1_in++;
    if (ie__get32(message + 4) == 0)
        ie__eb1_drop(from, "its source is 0");
    else if (!eb1_may(from, IE__MAY_PUBLISH, is_event ? destination | IE__EB1_TOP : 0))
        ie__eb1_drop(from, "no right to publish it");
    else if (destination == 0 && (header == IE__EB1_HEADER || header == IE__EB1_HEADER_EVENT))
        route_broadcast(from, message, size);
    else if (destination == IE__EB1_BUS)
        ie__eb1_drop(from, "the bus itself takes no data");
    else if (header != (is_event ? IE__EB1_HEADER_EVENT : IE__EB1_HEADER))
        ie__eb1_drop(from, "its header has the wrong length for its kind");
    else if (ie__server_memory(server) + size > server->options.memory_bytes_max)
        ie__eb1_drop(from, "memory_bytes_max is reached");
    else if (is_event)
        route_event(from, message, size);
    else
        route_direct(from, message, size);
}
