/*
 * Where eb/1 meets eb/2: an event is a topic of the same name, its members are a group of it; who
 * publishes in one protocol reaches the other, and can be answered.
 */
#include <stdio.h>

#include "eb1.h"

#define DIRECT_TOPIC "eb1.direct" /* direct messages of eb/1 to a connection of eb/2 */
#define SOURCE_SIZE  32

/* The topic of an event. False: its name is none, or one of the bus's own. */
static bool
event_topic(char out[IE_EB1_EVENT_BYTES + 1], uint32_t id)
{
    ie__put32((unsigned char *)out, id & ~IE__EB1_TOP);
    out[IE_EB1_EVENT_BYTES] = '\0';
    for (size_t i = strlen(out); i < IE_EB1_EVENT_BYTES; i++)
        if (out[i] != '\0')
            return false;
    return out[0] != '$' && ie_topic_check(out, NULL) == IE_OK;
}

void
ie__eb1_event_index(ie_bus_server *server, ie__eb1_event *event)
{
    char topic[IE_EB1_EVENT_BYTES + 1];

    event->target.is_eb1 = true;
    if (!event_topic(topic, event->id))
        return;
    if (ie__topics_add(server->topics, &event->target.entry, topic) != IE_OK)
        ie__log(&server->options.logger, IE_LOG_WARN, "bus",
                "no memory to show the members of %s to eb/2", topic);
}

/* ---- from eb/2 ------------------------------------------------------------------------------ */

static ie__eb1_event *
event_of(ie__target *target)
{
    return (ie__eb1_event *)(void *)target;
}

bool
ie__eb1_event_takes(const ie__target *target)
{
    const ie__eb1_event *event = (const ie__eb1_event *)(const void *)target;

    for (uint32_t i = 0; i < event->count; i++)
        if (!event->members[i]->conn->is_doomed)
            return true;
    return false;
}

bool
ie__eb1_event_fits(size_t data_bytes)
{
    return data_bytes <= IE_EB1_MESSAGE_BYTES_MAX - IE__EB1_HEADER;
}

/* What eb/1 knows a connection of eb/2 by. */
static ie__eb1 *
alias_get(ie__conn *conn)
{
    ie__eb1 *alias = conn->eb1_alias;

    if (alias != NULL)
        return alias;
    alias = ie__calloc(1, sizeof *alias);
    if (alias == NULL)
        return NULL;
    alias->conn = conn;
    alias->is_alias = true;
    ie__eb1_id_take(conn->server->eb1, alias);
    conn->eb1_alias = alias;
    return alias;
}

void
ie__eb1_alias_free(ie__conn *conn)
{
    if (conn->eb1_alias == NULL)
        return;
    ie__eb1_id_give_back(conn->server->eb1, conn->eb1_alias);
    ie__free(conn->eb1_alias);
    conn->eb1_alias = NULL;
}

bool
ie__eb1_from_topic(ie__target *target, ie__conn *publisher)
{
    ie_bus_server *server = publisher->server;
    const ie__span data = server->record.data;
    const ie__span key = server->record.texts[IE__E_KEY];
    const ie__eb1 *alias = alias_get(publisher);
    const bool     has_key = key.bytes != NULL;
    unsigned char  head[IE__EB1_HEADER];
    ie__eb1_out    out = {.from = publisher,
                          .head = head,
                          .head_bytes = sizeof head,
                          .data = data.bytes,
                          .data_bytes = data.size};
    bool           is_sent;

    if (alias == NULL)
        return false;
    ie__eb1_header(head, 0, alias->id, 0);
    is_sent = ie__eb1_event_send(server->eb1, event_of(target)->id,
                                 has_key ? IE__EB1_BY_KEY : IE__EB1_IN_TURN,
                                 has_key ? ie__item_key(key.bytes, key.size) : 0, &out, head);
    ie__blob_unref(out.blob);
    server->stats.eb1_out += is_sent;
    return is_sent;
}

/* ---- to eb/2 -------------------------------------------------------------------------------- */

static bool
inject(ie__eb1 *from, const char *topic, const char *key, const unsigned char *message, size_t size,
       const ie__conn *only)
{
    const size_t   header = ie__eb1_header_bytes(message);
    const uint32_t source = ie__get32(message + 4);
    ie_event       event = IE_EVENT_INIT;
    char           text[SOURCE_SIZE];
    char           id[IE_ID_SIZE];

    (void)snprintf(text, sizeof text, "eb1:%u.%u.%u.%u", source >> 24, source >> 16 & 255,
                   source >> 8 & 255, source & 255);
    ie_id_new(id);
    event.topic = topic;
    event.key = key;
    event.id = id;
    event.type = "eb1";
    event.content_type = "application/octet-stream"; /* whatever it is */
    event.source = text;
    event.time_ms = ie__wall_ms(&ie__system_clock);
    event.data = size != header ? message + header : NULL;
    event.data_bytes = size - header;
    return ie__route_inject(from->conn, &event, only);
}

/* Is somebody of eb/2 subscribed to it? Kept with the event, as long as nobody comes or goes. */
static bool
has_subscribers(ie_bus_server *server, ie__eb1_event *event, const char *topic)
{
    const uint64_t  generation = ie__topics_generation(server->topics);
    ie__topic_match match;

    if (event != NULL && event->generation == generation)
        return event->has_subscribers;
    if (ie__topics_match(&match, server->topics, topic, strlen(topic), NULL) != IE_OK)
        return false;
    if (event == NULL)
        return match.count != 0;
    event->generation = generation;
    event->has_subscribers = match.count > (event->target.entry.node != NULL ? 1u : 0u);
    return event->has_subscribers;
}

bool
ie__eb1_to_topic(ie__eb1 *from, ie__eb1_event *event, const unsigned char *message, size_t size)
{
    char topic[IE_EB1_EVENT_BYTES + 1];
    char key[24];

    if (!event_topic(topic, ie__get32(message + 8)) ||
        !has_subscribers(from->conn->server, event, topic))
        return false;
    (void)snprintf(key, sizeof key, "%llu",
                   (unsigned long long)ie__get64(message + IE__EB1_HEADER));
    return inject(from, topic, (message[3] & IE__EB1_COMMAND) == IE_EB1_HASH ? key : NULL, message,
                  size, NULL);
}

bool
ie__eb1_to_alias(ie__eb1 *from, const ie__eb1 *alias, const unsigned char *message, size_t size)
{
    return inject(from, DIRECT_TOPIC, NULL, message, size, alias->conn);
}
