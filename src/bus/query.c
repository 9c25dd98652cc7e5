/*
 * The way of a question: to whom serves its topic, and back with answers or the reason why not.
 *
 * Invariants: a query is in its asker's table, and in the heap of deadlines, until its one
 * QUERY_END; each of its asks that is open is in the table of the connection that was asked, so an
 * answer is taken from nobody else. A question is never put twice: who was asked and went away
 * may have acted on it.
 */
#include "query.h"

#include "auth.h"
#include "eb1.h"
#include "admin.h"

#include <stdio.h>

#define PAUSE_BYTES   (1024 * 1024) /* who has so much unread output is not asked */
#define PANEL_BUCKETS 1024          /* a power of two */

/* Responders that share the questions of a pattern. One without a name has one member. */
struct ie__panel {
    ie__topic_entry entry; /* first, so that the index's answer is the panel */
    ie__panel      *chain; /* same bucket of the table of names */
    ie__responder **members;
    uint64_t        hash;
    size_t          member_count;
    size_t          member_max;
    size_t          turn; /* whose it is next */
    char           *pattern;
    char            name[]; /* "": no name */
};

struct ie__responder {
    ie__panel     *panel;
    ie__conn      *conn;
    ie__responder *next; /* of the connection */
    uint32_t       id;
    uint32_t       credit;
    uint32_t       outstanding;
};

/* A question put to one responder. */
typedef struct ie__ask {
    ie__numbered   entry; /* first; among what its connection was asked */
    ie__query     *query;
    ie__conn      *conn;      /* NULL: not open any more */
    ie__responder *responder; /* NULL: it serves no more */
} ie__ask;

struct ie__query {
    ie__numbered entry; /* first; among what the asker asks */
    ie__deadline deadline;
    ie__conn    *asker;
    ie__query  **watch;  /* of who answers inside the bus; NULL: nobody */
    char        *reason; /* of the first that declined; NULL: none, or no memory for it */
    uint32_t     code;   /* ... and its code */
    ie__eb1     *eb1;    /* what a member of eb/1 answers to; NULL: none was asked */
    uint32_t     wanted; /* answers; 0: all there are */
    uint32_t     answers;
    uint32_t     open; /* asks, that of eb/1 too */
    uint32_t     ask_count;
    ie__ask      asks[];
};

static size_t
query_bytes(uint32_t asks)
{
    return sizeof(ie__query) + asks * sizeof(ie__ask);
}

/* ---- frames out ----------------------------------------------------------------------------- */

/* A head of up to 8 bytes and a record; blob, when not NULL, is the same bytes, to be shared. */
static void
send_record(ie__conn *conn, ie__frame_type type, uint32_t number, const unsigned char *head,
            size_t head_bytes, const unsigned char *record, size_t size, ie__blob *blob)
{
    const size_t   small = IE__PREFIX_BYTES + head_bytes;
    const bool     is_apart = size >= IE__NET_SHARE_BYTES;
    unsigned char *at = ie__stream_reserve(conn->stream, small + (is_apart ? 0 : size));
    ie_status      status = IE_OK;

    if (at == NULL) {
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        return;
    }
    ie__frame_prefix(at, type, number, head_bytes + size);
    if (head_bytes != 0)
        memcpy(at + IE__PREFIX_BYTES, head, head_bytes);
    if (!is_apart)
        memcpy(at + small, record, size);
    else if (blob != NULL)
        status = ie__stream_write_blob(conn->stream, blob);
    else
        status = ie__stream_write(conn->stream, record, size);
    if (status != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
}

static void
send_end(ie__conn *asker, uint32_t number, uint32_t answers, uint32_t code, const char *reason)
{
    unsigned char reasoned[IE__REASON_FRAME_MAX];
    unsigned char frame[IE__REASON_FRAME_MAX + 4];
    const size_t  size = ie__reason_frame(reasoned, IE__QUERY_END, number, code, reason);
    const size_t  body = size - IE__PREFIX_BYTES;

    ie__frame_prefix(frame, IE__QUERY_END, number, 4 + body);
    ie__put32(frame + IE__PREFIX_BYTES, answers);
    memcpy(frame + IE__PREFIX_BYTES + 4, reasoned + IE__PREFIX_BYTES, body);
    if (ie__stream_write(asker->stream, frame, size + 4) != IE_OK)
        ie__conn_doom(asker, IE_BUS_CODE_MEMORY, "no memory for its output");
}

/* May the asker's output grow by so much? Who does not read is closed, as with deliveries. */
static bool
asker_has_room(ie__conn *asker, size_t size)
{
    ie_bus_server *server = asker->server;

    if (asker->is_doomed)
        return false;
    if (ie__stream_pending(asker->stream) + size > server->options.out_bytes_max) {
        ie__conn_doom(asker, IE_BUS_CODE_SLOW, "it does not read: out_bytes_max is reached");
        ie__stream_drop_unsent(asker->stream);
        return false;
    }
    if (server->net.pending_bytes + size > server->options.out_bytes_total_max)
        ie__route_shed_longest(server);
    return !asker->is_doomed;
}

/* ---- asks and queries ----------------------------------------------------------------------- */

static void
ask_close(ie__ask *ask)
{
    ie__numbers_remove(&ask->conn->asks, &ask->entry);
    if (ask->responder != NULL)
        ask->responder->outstanding--;
    ask->conn = NULL;
    ask->query->open--;
}

/* Take back what is open, and forget the query. */
static void
query_free(ie__query *query)
{
    ie_bus_server *server = query->asker->server;

    for (uint32_t i = 0; query->open > 0 && i < query->ask_count; i++) {
        ie__ask  *ask = &query->asks[i];
        ie__conn *conn = ask->conn;

        if (conn == NULL)
            continue;
        if (!conn->is_doomed) {
            unsigned char frame[IE__PREFIX_BYTES];

            ie__frame_prefix(frame, IE__WITHDRAW, ask->entry.number, 0);
            if (ie__stream_write(conn->stream, frame, sizeof frame) != IE_OK)
                ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
        }
        ask_close(ask);
    }
    ie__eb1_ask_end(server, query->eb1);
    ie__deadlines_remove(&server->queries.deadlines, &query->deadline);
    ie__numbers_remove(&query->asker->queries, &query->entry);
    server->queries.count--;
    server->queries.bytes -= query_bytes(query->ask_count);
    if (query->answers == 0)
        server->stats.queries_failed++;
    if (query->watch != NULL)
        *query->watch = NULL;
    ie__free(query->reason);
    ie__free(query);
}

static void
query_end(ie__query *query, uint32_t code, const char *reason)
{
    if (!query->asker->is_doomed)
        send_end(query->asker, query->entry.number, query->answers, code, reason);
    query_free(query);
}

/* Nobody is left who could answer. */
static void
query_end_if_done(ie__query *query)
{
    if (query->answers != 0 && (query->open == 0 || query->answers == query->wanted))
        query_end(query, IE_BUS_CODE_NONE, NULL);
    else if (query->open == 0)
        query_end(query, query->code,
                  query->reason != NULL ? query->reason : ie_bus_code_text(query->code));
}

static void
ask_failed(ie__ask *ask, uint32_t code, const char *reason)
{
    ie__query *query = ask->query;

    ask_close(ask);
    if (query->code == IE_BUS_CODE_NONE) {
        query->code = code;
        query->reason = ie__strdup(reason);
    }
    query_end_if_done(query);
}

/* ---- deadlines ------------------------------------------------------------------------------ */

static void on_deadline(uv_timer_t *timer);

/* The timer is set for the nearest deadline or earlier: most queries end before theirs. */
static void
deadlines_arm(ie_bus_server *server)
{
    ie__queries        *queries = &server->queries;
    const ie__deadline *first = ie__deadlines_first(&queries->deadlines);
    const int64_t       now = (int64_t)uv_now(&server->loop);

    if (first == NULL || (queries->armed_ms != 0 && queries->armed_ms <= first->at_ms))
        return;
    queries->armed_ms = first->at_ms;
    (void)uv_timer_start(&queries->timer, on_deadline,
                         first->at_ms > now ? (uint64_t)(first->at_ms - now) : 0, 0);
}

static void
on_deadline(uv_timer_t *timer)
{
    ie_bus_server *server = timer->data;
    const int64_t  now = (int64_t)uv_now(&server->loop);
    ie__deadline  *first;

    server->queries.armed_ms = 0;
    while ((first = ie__deadlines_first(&server->queries.deadlines)) != NULL &&
           first->at_ms <= now) {
        ie__query  *query = (ie__query *)(void *)((char *)first - offsetof(ie__query, deadline));
        const char *reason = query->answers != 0 ? "the deadline came before all had answered"
                                                 : "no answer came in time";

        query_end(query, IE_BUS_CODE_ACK_TIMEOUT, reason);
    }
    deadlines_arm(server);
}

/* ---- who serves ----------------------------------------------------------------------------- */

static ie__panel *
panel_find(const ie_bus_server *server, const char *name, const char *pattern, uint64_t hash)
{
    ie__panel *panel = server->queries.panels[hash & (PANEL_BUCKETS - 1)];

    while (panel != NULL && !(panel->hash == hash && strcmp(panel->name, name) == 0 &&
                              strcmp(panel->pattern, pattern) == 0))
        panel = panel->chain;
    return panel;
}

static ie__panel *
panel_new(ie_bus_server *server, const char *name, const char *pattern, uint64_t hash)
{
    const size_t name_bytes = strlen(name) + 1;
    ie__panel   *panel = ie__calloc(1, sizeof *panel + name_bytes);
    ie__panel  **bucket = &server->queries.panels[hash & (PANEL_BUCKETS - 1)];

    if (panel == NULL)
        return NULL;
    memcpy(panel->name, name, name_bytes);
    panel->hash = hash;
    panel->pattern = ie__strdup(pattern);
    if (panel->pattern == NULL ||
        ie__topics_add(server->queries.topics, &panel->entry, pattern) != IE_OK) {
        ie__free(panel->pattern);
        ie__free(panel);
        return NULL;
    }
    if (name[0] != '\0') {
        panel->chain = *bucket;
        *bucket = panel;
    }
    return panel;
}

static void
panel_free(ie_bus_server *server, ie__panel *panel)
{
    if (panel->name[0] != '\0') {
        ie__panel **link = &server->queries.panels[panel->hash & (PANEL_BUCKETS - 1)];

        while (*link != panel)
            link = &(*link)->chain;
        *link = panel->chain;
    }
    ie__topics_remove(server->queries.topics, &panel->entry);
    ie__free(panel->members);
    ie__free(panel->pattern);
    ie__free(panel);
}

static ie_status
panel_join(ie_bus_server *server, ie__responder *responder, const char *name, const char *pattern)
{
    const uint64_t hash = ie__hash(name, strlen(name)) ^ ie__hash(pattern, strlen(pattern)) << 1;
    ie__panel     *panel = name[0] != '\0' ? panel_find(server, name, pattern, hash) : NULL;

    if (panel == NULL)
        panel = panel_new(server, name, pattern, hash);
    if (panel == NULL)
        return IE_ENOMEM;
    if (panel->member_count == panel->member_max) {
        const size_t    max = panel->member_max != 0 ? panel->member_max * 2 : 1;
        ie__responder **grown = ie__realloc_array(panel->members, max, sizeof *grown);

        if (grown == NULL) {
            if (panel->member_count == 0)
                panel_free(server, panel);
            return IE_ENOMEM;
        }
        panel->members = grown;
        panel->member_max = max;
    }
    panel->members[panel->member_count++] = responder;
    responder->panel = panel;
    return IE_OK;
}

static void
panel_leave(ie__responder *responder)
{
    ie__panel *panel = responder->panel;
    size_t     i = 0;

    while (panel->members[i] != responder)
        i++;
    memmove(&panel->members[i], &panel->members[i + 1],
            (--panel->member_count - i) * sizeof(ie__responder *));
    if (panel->turn > i)
        panel->turn--;
    if (panel->member_count == 0)
        panel_free(responder->conn->server, panel);
}

bool
ie__query_has_responder(const ie__conn *conn, uint32_t id)
{
    const ie__responder *responder = conn->responders;

    while (responder != NULL && responder->id != id)
        responder = responder->next;
    return responder != NULL;
}

static ie_status
serve(ie__conn *conn, uint32_t id, const char *pattern, const char *group, uint32_t credit)
{
    ie__responder *responder = ie__calloc(1, sizeof *responder);

    if (responder == NULL)
        return IE_ENOMEM;
    responder->conn = conn;
    responder->id = id;
    responder->credit = credit;
    if (panel_join(conn->server, responder, group, pattern) != IE_OK) {
        ie__free(responder);
        return IE_ENOMEM;
    }
    responder->next = conn->responders;
    conn->responders = responder;
    conn->sub_count++;
    conn->server->sub_count++;
    return IE_OK;
}

void
ie__query_serve(ie__conn *conn, uint32_t id, const char *pattern, const char *group,
                uint32_t credit)
{
    const uint32_t max = conn->server->options.credit_max;
    ie_buffer      buffer = {NULL, 0, 0};
    ie__builder    b;

    credit = credit == 0 || credit > max ? max : credit;
    if (serve(conn, id, pattern, group, credit) != IE_OK) {
        ie__conn_reason(conn, IE__SUBREFUSED, id, IE_BUS_CODE_MEMORY,
                        "no memory for a subscription");
        return;
    }
    ie__build_begin(&b, &buffer, IE__SUBSCRIBED, id);
    ie__build_u32(&b, IE__F_CREDIT, credit);
    if (ie__build_end(&b) != IE_OK ||
        ie__stream_write(conn->stream, buffer.data, buffer.size) != IE_OK)
        ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for its output");
    ie_buffer_fini(&buffer);
}

static void
responder_free(ie__responder **link)
{
    ie__responder *responder = *link;

    *link = responder->next;
    responder->conn->sub_count--;
    responder->conn->server->sub_count--;
    panel_leave(responder);
    ie__free(responder);
}

bool
ie__query_unserve(ie__conn *conn, uint32_t id)
{
    ie__responder **link = &conn->responders;

    while (*link != NULL && (*link)->id != id)
        link = &(*link)->next;
    if (*link == NULL)
        return false;
    for (size_t i = 0; (*link)->outstanding > 0 && i < conn->asks.bucket_count; i++)
        for (ie__numbered *at = conn->asks.buckets[i]; at != NULL; at = at->chain) {
            ie__ask *ask = (ie__ask *)(void *)at;

            if (ask->responder == *link)
                ask->responder = NULL;
        }
    responder_free(link);
    return true;
}

void
ie__query_recheck(ie__conn *conn)
{
    ie__responder *next;

    for (ie__responder *at = conn->responders; at != NULL; at = next) {
        const uint32_t id = at->id;
        bool           is_narrowed;

        next = at->next;
        if (ie__may_pattern(conn, IE__MAY_SERVE, at->panel->pattern, false, &is_narrowed))
            continue;
        ie__conn_reason(conn, IE__SUBREFUSED, id, IE_BUS_CODE_DENIED,
                        "the right to serve was withdrawn");
        (void)ie__query_unserve(conn, id);
    }
}

/* ---- asking --------------------------------------------------------------------------------- */

static void
query_refuse(ie__conn *asker, uint32_t number, uint32_t code, const char *reason)
{
    asker->server->stats.queries_failed++;
    send_end(asker, number, 0, code, reason);
}

/* The member whose turn it is among those that can take a question; NULL: none can. */
static ie__responder *
panel_pick(ie__panel *panel)
{
    for (size_t i = 0; i < panel->member_count; i++) {
        ie__responder *responder = panel->members[(panel->turn + i) % panel->member_count];

        if (responder->outstanding < responder->credit && !responder->conn->is_doomed &&
            ie__stream_pending(responder->conn->stream) < PAUSE_BYTES) {
            panel->turn = (panel->turn + i + 1) % panel->member_count;
            return responder;
        }
    }
    return NULL;
}

static void
query_put(ie__query *query, ie__responder *responder, uint32_t timeout_ms,
          const unsigned char *record, size_t size, ie__blob *blob)
{
    ie__conn     *conn = responder->conn;
    ie__ask      *ask = &query->asks[query->ask_count];
    unsigned char head[8];

    do {
        conn->ask_number++;
    } while (ie__numbers_find(&conn->asks, conn->ask_number) != NULL);
    if (ie__numbers_add(&conn->asks, &ask->entry, conn->ask_number) != IE_OK)
        return; /* as if it were not there */
    ask->query = query;
    ask->conn = conn;
    ask->responder = responder;
    query->ask_count++;
    query->open++;
    responder->outstanding++;
    ie__put32(head, ask->entry.number);
    ie__put32(head + 4, timeout_ms);
    send_record(conn, IE__ASK, responder->id, head, sizeof head, record, size, blob);
}

/* One of them is asked (in turn), or all. */
static void
query_put_all(ie__query *query, const ie__topic_match *match, uint32_t timeout_ms,
              const unsigned char *record, size_t size)
{
    ie__queries *queries = &query->asker->server->queries;
    const size_t first = query->wanted == 1 ? queries->turn++ % match->count : 0;
    ie__blob    *blob = NULL;

    if (size >= IE__NET_SHARE_BYTES && match->count > 1 && query->wanted != 1) {
        blob = ie__blob_new(size); /* none: each gets a copy */
        if (blob != NULL)
            memcpy(blob->bytes, record, size);
    }
    for (size_t i = 0; i < match->count; i++) {
        ie__panel     *panel = (ie__panel *)(void *)match->entries[(first + i) % match->count];
        ie__responder *responder = panel_pick(panel);

        if (responder != NULL)
            query_put(query, responder, timeout_ms, record, size, blob);
        if (query->wanted == 1 && query->open != 0)
            break;
    }
    ie__blob_unref(blob);
}

/* The query itself, known to its asker and with its deadline; NULL: no memory. */
static ie__query *
query_new(ie__conn *asker, uint32_t number, uint32_t wanted, uint32_t asks, uint32_t timeout_ms)
{
    ie_bus_server *server = asker->server;
    ie__query     *query = ie__calloc(1, query_bytes(asks));

    if (query == NULL)
        return NULL;
    query->asker = asker;
    query->wanted = wanted;
    if (ie__numbers_add(&asker->queries, &query->entry, number) != IE_OK) {
        ie__free(query);
        return NULL;
    }
    if (ie__deadlines_add(&server->queries.deadlines, &query->deadline,
                          (int64_t)uv_now(&server->loop) + timeout_ms) != IE_OK) {
        ie__numbers_remove(&asker->queries, &query->entry);
        ie__free(query);
        return NULL;
    }
    server->queries.count++;
    server->queries.bytes += query_bytes(asks);
    deadlines_arm(server);
    return query;
}

/* Nobody of eb/2 serves the topic: a member of eb/1 is asked, who may answer as it would anybody.
 */
static void
query_put_eb1(ie__query *query, ie__target *target)
{
    query->eb1 = ie__eb1_ask(target, query->asker, query);
    query->open += query->eb1 != NULL;
}

void
ie__query_eb1_answered(ie__query *query, const unsigned char *record, size_t size)
{
    query->open--;
    query->answers++;
    if (asker_has_room(query->asker, size + IE__PREFIX_BYTES))
        send_record(query->asker, IE__ANSWER, query->entry.number, NULL, 0, record, size, NULL);
    query_end_if_done(query);
}

void
ie__query_eb1_gone(ie__query *query)
{
    query->open--;
    query->code = IE_BUS_CODE_SUBSCRIBER_GONE;
    query_end_if_done(query);
}

static uint32_t
record_code(ie_status status)
{
    switch (status) {
    case IE_ETOOBIG: return IE_BUS_CODE_TOO_BIG;
    case IE_ENOTSUP: return IE_BUS_CODE_UNSUPPORTED;
    case IE_ENOMEM: return IE_BUS_CODE_MEMORY;
    default: return IE_BUS_CODE_INVALID;
    }
}

/* May it be asked at all? */
static uint32_t
query_check(const ie__conn *conn, uint32_t timeout_ms, size_t size, const char **reason)
{
    const ie_bus_server *server = conn->server;

    if (timeout_ms == 0) {
        *reason = "a query without time";
        return IE_BUS_CODE_INVALID;
    }
    if (timeout_ms > server->options.query_timeout_ms_max) {
        *reason = "query_timeout_ms_max is reached";
        return IE_BUS_CODE_LIMIT;
    }
    if (conn->queries.count >= server->options.queries_in_flight_max) {
        *reason = "queries_in_flight_max is reached";
        return IE_BUS_CODE_LIMIT;
    }
    if (ie__server_memory(server) + size > server->options.memory_bytes_max) {
        *reason = "memory_bytes_max is reached";
        return IE_BUS_CODE_MEMORY;
    }
    return IE_BUS_CODE_NONE;
}

/* Who serves the topic of the record in hand; none of them for a topic of the bus's own. */
static uint32_t
query_match(ie__conn *conn, unsigned char *record, size_t size, ie__topic_match *match,
            ie_error *err)
{
    ie_bus_server  *server = conn->server;
    const ie__span *topic = &server->record.topic;
    bool            is_own;
    ie_status       status =
        ie__record_parse(&server->record, record, size, server->options.data_bytes_max, err);

    match->count = 0;
    is_own = status == IE_OK && topic->bytes[0] == '$'; /* the bus's own: admin.c */
    if (status == IE_OK && !is_own)
        status = ie__topics_match(match, server->queries.topics, topic->bytes, topic->size, err);
    if (status != IE_OK)
        return record_code(status);
    if (!ie__may(conn, is_own ? IE__MAY_ADMIN : IE__MAY_QUERY, topic->bytes, topic->size)) {
        (void)ie_error_set(err, IE_EDENIED, "no right to ask this topic");
        return IE_BUS_CODE_DENIED;
    }
    if (is_own || match->count != 0 || ie__eb1_asked(server) != NULL)
        return IE_BUS_CODE_NONE;
    (void)ie_error_set(err, IE_ENOTFOUND, "nobody answers this topic");
    return IE_BUS_CODE_NO_SUBSCRIBERS;
}

ie_status
ie__query_on_query(ie__conn *conn, const ie__frame *frame)
{
    ie_bus_server  *server = conn->server;
    unsigned char  *record = frame->body + 8;
    ie_error        err;
    const char     *reason = err.message;
    ie__topic_match match;
    ie__query      *query;
    uint32_t        timeout_ms;
    uint32_t        wanted;
    uint32_t        code;
    size_t          size;

    ie__error_begin(&err);
    if (frame->body_bytes < 8 || ie__numbers_find(&conn->queries, frame->number) != NULL)
        return IE_EPROTO;
    server->stats.queries++;
    timeout_ms = ie__get32(frame->body);
    wanted = ie__get32(frame->body + 4);
    size = frame->body_bytes - 8;
    code = query_check(conn, timeout_ms, size, &reason);
    if (code == IE_BUS_CODE_NONE)
        code = query_match(conn, record, size, &match, &err);
    if (code != IE_BUS_CODE_NONE) {
        query_refuse(conn, frame->number, code, reason);
        return IE_OK;
    }
    query =
        query_new(conn, frame->number, wanted, wanted == 1 ? 1 : (uint32_t)match.count, timeout_ms);
    if (query == NULL) {
        query_refuse(conn, frame->number, IE_BUS_CODE_MEMORY, "no memory for a query");
    } else if (match.count == 0 && server->record.topic.bytes[0] == '$') {
        ie__admin_ask(server, query);
    } else {
        if (match.count != 0)
            query_put_all(query, &match, timeout_ms, record, size);
        else
            query_put_eb1(query, ie__eb1_asked(server));
        if (query->open == 0)
            query_end(query, IE_BUS_CODE_BUSY, "whoever answers this topic is too far behind");
    }
    return IE_OK;
}

ie_status
ie__query_on_cancel(ie__conn *conn, const ie__frame *frame)
{
    ie__query *query = (ie__query *)(void *)ie__numbers_find(&conn->queries, frame->number);

    if (frame->body_bytes != 0)
        return IE_EPROTO;
    if (query != NULL) /* else it has ended meanwhile */
        query_end(query, IE_BUS_CODE_CANCELLED, ie_bus_code_text(IE_BUS_CODE_CANCELLED));
    return IE_OK;
}

/* ---- answers -------------------------------------------------------------------------------- */

static ie_status
answer_check(ie_bus_server *server, const ie__frame *frame, ie_error *err)
{
    char            topic[IE_TOPIC_BYTES_MAX + 1];
    const ie_status status = ie__record_parse(&server->record, frame->body, frame->body_bytes,
                                              server->options.data_bytes_max, err);

    if (status != IE_OK)
        return status;
    memcpy(topic, server->record.topic.bytes, server->record.topic.size);
    topic[server->record.topic.size] = '\0';
    if (strlen(topic) != server->record.topic.size)
        return ie_error_set(err, IE_EINVAL, "topic contains NUL");
    return ie_topic_check(topic, err);
}

ie_status
ie__query_on_reply(ie__conn *conn, const ie__frame *frame)
{
    ie__ask   *ask = (ie__ask *)(void *)ie__numbers_find(&conn->asks, frame->number);
    ie_error   err;
    ie__query *query;
    ie_status  status;

    ie__error_begin(&err);
    if (ask == NULL)
        return IE_OK; /* too late */
    status = answer_check(conn->server, frame, &err);
    if (status != IE_OK) {
        char reason[sizeof err.message + 32];

        (void)snprintf(reason, sizeof reason, "a faulty answer came: %s", err.message);
        ask_failed(ask, record_code(status), reason);
        return IE_OK;
    }
    query = ask->query;
    ask_close(ask);
    query->answers++;
    if (asker_has_room(query->asker, frame->body_bytes + IE__PREFIX_BYTES))
        send_record(query->asker, IE__ANSWER, query->entry.number, NULL, 0, frame->body,
                    frame->body_bytes, NULL);
    query_end_if_done(query);
    return IE_OK;
}

ie_status
ie__query_on_decline(ie__conn *conn, const ie__frame *frame)
{
    ie__ask   *ask = (ie__ask *)(void *)ie__numbers_find(&conn->asks, frame->number);
    ie__reason reason;

    if (ie__reason_parse(&reason, frame) != IE_OK)
        return IE_EPROTO;
    if (ask == NULL)
        return IE_OK;      /* too late */
    switch (reason.code) { /* a responder does not speak for the bus */
    case IE_BUS_CODE_BUSY:
    case IE_BUS_CODE_SUBSCRIBER_GONE:
    case IE_BUS_CODE_REJECTED:
    case IE_BUS_CODE_UNAVAILABLE: break;
    default: reason.code = IE_BUS_CODE_HANDLER; break;
    }
    ask_failed(ask, reason.code,
               reason.text[0] != '\0' ? reason.text : ie_bus_code_text(reason.code));
    return IE_OK;
}

/* ---- answers of the bus itself -------------------------------------------------------------- */

void
ie__query_watch(ie__query *query, ie__query **watch)
{
    query->watch = watch;
    *watch = query;
}

void
ie__query_fail(ie__query *query, uint32_t code, const char *reason)
{
    query_end(query, code, reason);
}

void
ie__query_answer(ie__query *query, const char *json, size_t bytes)
{
    ie__conn      *asker = query->asker;
    ie_event       answer = IE_EVENT_INIT;
    unsigned char *record;
    size_t         size;

    answer.topic = "bus"; /* the asker knows what it asked */
    answer.data = json;
    answer.data_bytes = bytes;
    size = ie__record_size(&answer);
    if (bytes > asker->server->options.data_bytes_max) {
        query_end(query, IE_BUS_CODE_TOO_BIG, "the answer is too big: ask for less (limit)");
        return;
    }
    record = ie__alloc(size);
    if (record == NULL) {
        query_end(query, IE_BUS_CODE_MEMORY, "no memory for the answer");
        return;
    }
    (void)ie__record_put(record, &answer);
    query->answers++;
    if (asker_has_room(asker, size + IE__PREFIX_BYTES))
        send_record(asker, IE__ANSWER, query->entry.number, NULL, 0, record, size, NULL);
    ie__free(record);
    query_end(query, IE_BUS_CODE_NONE, NULL);
}

size_t
ie__query_panel_members(const ie__topic_entry *entry)
{
    return ((const ie__panel *)(const void *)entry)->member_count;
}

/* ---- the end of a connection, and of the server --------------------------------------------- */

void
ie__query_leave(ie__conn *conn)
{
    ie__numbered *at;
    size_t        from = 0;

    while ((at = ie__numbers_any(&conn->queries, &from)) != NULL)
        query_free((ie__query *)(void *)at);
    while (conn->responders != NULL)
        (void)ie__query_unserve(conn, conn->responders->id);
    from = 0;
    while ((at = ie__numbers_any(&conn->asks, &from)) != NULL)
        ask_failed((ie__ask *)(void *)at, IE_BUS_CODE_SUBSCRIBER_GONE,
                   "who was asked went away before it answered");
    ie__numbers_fini(&conn->queries);
    ie__numbers_fini(&conn->asks);
}

ie_status
ie__queries_init(ie_bus_server *server)
{
    ie__queries *queries = &server->queries;

    queries->topics = ie__topics_new();
    queries->panels = ie__calloc(PANEL_BUCKETS, sizeof *queries->panels);
    return queries->topics != NULL && queries->panels != NULL ? IE_OK : IE_ENOMEM;
}

void
ie__queries_finish(ie_bus_server *server)
{
    uv_close((uv_handle_t *)&server->queries.timer, NULL);
}

void
ie__queries_free(ie_bus_server *server)
{
    ie__topics_free(server->queries.topics);
    ie__free(server->queries.panels);
    ie__deadlines_fini(&server->queries.deadlines);
}
