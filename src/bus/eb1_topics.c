/*
 * Where eb/1 meets eb/2: an event is a topic of the same name, its members are a group of it; who
 * publishes in one protocol reaches the other, and can be answered.
 */
#include <stdio.h>

#include "durable.h"
#include "eb1.h"
#include "query.h"

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

/* The record in hand goes to one member, from this id. 0: none could take it; else the member. */
static uint32_t
to_member(ie__target *target, ie__conn *publisher, const ie__eb1 *alias)
{
    ie_bus_server *server = publisher->server;
    const ie__span data = server->record.data;
    const ie__span key = server->record.texts[IE__E_KEY];
    const bool     has_key = key.bytes != NULL;
    unsigned char  head[IE__EB1_HEADER];
    ie__eb1_out    out = {.from = publisher,
                          .head = head,
                          .head_bytes = sizeof head,
                          .data = data.bytes,
                          .data_bytes = data.size};
    bool           is_sent;

    ie__eb1_header(head, 0, alias->id, 0);
    is_sent = ie__eb1_event_send(server->eb1, event_of(target)->id,
                                 has_key ? IE__EB1_BY_KEY : IE__EB1_IN_TURN,
                                 has_key ? ie__item_key(key.bytes, key.size) : 0, &out, head);
    ie__blob_unref(out.blob);
    server->stats.eb1_out += is_sent;
    return is_sent ? ie__get32(head + 8) : 0;
}

bool
ie__eb1_from_topic(ie__target *target, ie__conn *publisher)
{
    const ie__eb1 *alias = alias_get(publisher);

    return alias != NULL && to_member(target, publisher, alias) != 0;
}

/* ---- questions of eb/2 ---------------------------------------------------------------------- */

ie__target *
ie__eb1_asked(ie_bus_server *server)
{
    const ie__span  topic = server->record.topic;
    ie__topic_match match;

    if (server->eb1 == NULL || topic.size > IE_EB1_EVENT_BYTES ||
        !ie__eb1_event_fits(server->record.data.size) ||
        ie__topics_match(&match, server->topics, topic.bytes, topic.size, NULL) != IE_OK)
        return NULL;
    for (size_t i = 0; i < match.count; i++) {
        ie__target *target = (ie__target *)(void *)match.entries[i];

        if (target->is_eb1 && ie__eb1_event_takes(target))
            return target;
    }
    return NULL;
}

ie__eb1 *
ie__eb1_ask(ie__target *target, ie__conn *asker, ie__query *query)
{
    ie__eb1_bus *bus = asker->server->eb1;
    ie__eb1     *ask = ie__calloc(1, sizeof *ask);

    if (ask == NULL)
        return NULL;
    ask->conn = asker;
    ask->is_alias = true;
    ask->query = query;
    ie__eb1_id_take(bus, ask);
    bus->ask_count++;
    ask->asked = to_member(target, asker, ask);
    if (ask->asked != 0)
        return ask;
    ie__eb1_ask_end(asker->server, ask);
    return NULL;
}

void
ie__eb1_ask_end(ie_bus_server *server, ie__eb1 *ask)
{
    if (ask == NULL)
        return;
    ie__eb1_id_give_back(server->eb1, ask);
    server->eb1->ask_count--;
    ie__free(ask);
}

static ie__eb1 *
ask_find(const ie__eb1_bus *bus, uint32_t asked)
{
    for (size_t i = 0; i < bus->id_buckets; i++)
        for (ie__eb1 *eb1 = bus->ids[i]; eb1 != NULL; eb1 = eb1->chain)
            if (eb1->query != NULL && eb1->asked == asked)
                return eb1;
    return NULL;
}

void
ie__eb1_asks_leave(ie__eb1 *eb1)
{
    const ie__eb1_bus *bus = eb1->conn->server->eb1;
    ie__eb1           *ask;

    while (bus->ask_count != 0 && (ask = ask_find(bus, eb1->id)) != NULL) {
        ie__query *query = ask->query;

        ask->asked = 0;
        ie__query_eb1_gone(query);
    }
}

/* ---- to eb/2 -------------------------------------------------------------------------------- */

/* A message of eb/1 as an event. The texts are the caller's. */
typedef struct message_event {
    ie_event event;
    char     source[SOURCE_SIZE];
    char     id[IE_ID_SIZE];
} message_event;

static void
event_make(message_event *out, const char *topic, const unsigned char *message, size_t size)
{
    static const ie_event EMPTY = IE_EVENT_INIT;
    const size_t          header = ie__eb1_header_bytes(message);
    const uint32_t        source = ie__get32(message + 4);

    (void)snprintf(out->source, sizeof out->source, "eb1:%u.%u.%u.%u", source >> 24,
                   source >> 16 & 255, source >> 8 & 255, source & 255);
    ie_id_new(out->id);
    out->event = EMPTY;
    out->event.topic = topic;
    out->event.id = out->id;
    out->event.type = "eb1";
    out->event.source = out->source;
    out->event.content_type = "application/octet-stream"; /* whatever it is */
    out->event.time_ms = ie__wall_ms(&ie__system_clock);
    out->event.data = size != header ? message + header : NULL;
    out->event.data_bytes = size - header;
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

/* Into the log, where durable_topics wants that. eb/1 hears of nothing: what cannot be stored is
 * counted, as a failed publish of eb/2 is. */
static bool
store(ie__eb1 *from, const ie_event *event)
{
    ie_bus_server *server = from->conn->server;
    const size_t   size = ie__record_size(event);
    unsigned char *record = ie__alloc(size);
    ie__blob      *blob = NULL;
    const char    *why = "no memory";
    uint32_t       code = IE_BUS_CODE_MEMORY;

    if (record != NULL) {
        (void)ie__record_put(record, event);
        if (ie__record_parse(&server->record, record, size, server->options.data_bytes_max, NULL) ==
            IE_OK)
            blob = ie__durable_record(server, record, size);
    }
    if (blob != NULL)
        code = ie__durable_check(from->conn, blob->size, &why);
    if (code == IE_BUS_CODE_NONE && !ie__durable_publish(server, NULL, 0, blob, 0)) {
        code = IE_BUS_CODE_MEMORY;
        why = "no memory";
    }
    if (code != IE_BUS_CODE_NONE)
        ie__log(&server->options.logger, IE_LOG_WARN, "bus", "%s: %s: not stored: %s",
                from->conn->peer, event->topic, why);
    ie__blob_unref(blob);
    ie__free(record);
    return code == IE_BUS_CODE_NONE;
}

bool
ie__eb1_to_topic(ie__eb1 *from, ie__eb1_event *event, const unsigned char *message, size_t size)
{
    ie_bus_server *server = from->conn->server;
    message_event  made;
    char           topic[IE_EB1_EVENT_BYTES + 1];
    char           key[24];
    bool           is_stored;
    bool           is_heard;

    if (!event_topic(topic, ie__get32(message + 8)))
        return false;
    is_stored = ie__durable_takes(server, topic, strlen(topic), 0);
    is_heard = has_subscribers(server, event, topic);
    if (!is_stored && !is_heard)
        return false;
    event_make(&made, topic, message, size);
    (void)snprintf(key, sizeof key, "%llu",
                   (unsigned long long)ie__get64(message + IE__EB1_HEADER));
    if ((message[3] & IE__EB1_COMMAND) == IE_EB1_HASH)
        made.event.key = key;
    is_stored = is_stored && store(from, &made.event);
    return (is_heard && ie__route_inject(from->conn, &made.event, NULL, is_stored)) || is_stored;
}

/* Only who was asked may answer: ids are no secret. */
static bool
answer(const ie__eb1 *from, const ie__eb1 *ask, const ie_event *event)
{
    const size_t   size = ie__record_size(event);
    unsigned char *record;

    if (ask->asked != from->id)
        return false;
    record = ie__alloc(size);
    if (record == NULL)
        return false;
    (void)ie__record_put(record, event);
    ie__query_eb1_answered(ask->query, record, size);
    ie__free(record);
    return true;
}

bool
ie__eb1_to_alias(ie__eb1 *from, const ie__eb1 *alias, const unsigned char *message, size_t size)
{
    message_event made;

    event_make(&made, DIRECT_TOPIC, message, size);
    if (alias->query != NULL)
        return answer(from, alias, &made.event);
    return ie__route_inject(from->conn, &made.event, alias->conn, false);
}
