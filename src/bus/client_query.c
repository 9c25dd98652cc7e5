/*
 * Questions, both ways. Frames of all threads are gathered in one buffer, the talk, which the loop
 * writes in one go: what comes from the loop's own handlers leaves at the end of the same turn.
 *
 * Queries do not outlive their connection: when it is lost each of them has its end, and what was
 * put to us has nobody to be answered to. Only the loop ends a query, so that its callbacks never
 * run side by side.
 */
#include "client_parts.h"

#include <errno.h>
#include <stdio.h>

#include "codes.h"
#include "json.h"

#define UNSENT_MAX (1u << 20) /* bytes in the stream's queue; the rest stays in the talk */
#define WAIT_SLACK 500        /* ms that ie_bus_client_query_wait() gives a busy loop */

/* A query of ours that has not ended. */
typedef struct query {
    ie__numbered    entry; /* first */
    ie__deadline    deadline;
    struct query   *next; /* in a list of those that end now */
    ie_bus_reply_fn replied;
    void           *user;
    uint32_t        timeout_ms;
    uint32_t        bytes;
    uint32_t        answers; /* loop */
    bool            is_cancelled;
} query;

/* A question to us that is not answered. */
typedef struct put_question {
    ie__numbered entry;      /* first */
    uint32_t     owner;      /* the subscription */
    bool         is_started; /* a handler has it */
    char         topic[];
} put_question;

static int64_t
now_ms(void)
{
    return ie__mono_ns() / 1000000;
}

/* ---- the end of a query, on the loop -------------------------------------------------------- */

/* With the mutex held. */
static void
query_remove(client_queries *queries, query *gone)
{
    ie__numbers_remove(&queries->asked, &gone->entry);
    ie__deadlines_remove(&queries->deadlines, &gone->deadline);
    queries->bytes -= gone->bytes;
}

static ie_status
end_status(uint32_t code, uint32_t answers)
{
    if (answers != 0)
        return IE_OK; /* the code says whether some are missing */
    switch (code) {
    case IE_BUS_CODE_NO_SUBSCRIBERS: return IE_ENOTFOUND;
    case IE_BUS_CODE_SUBSCRIBER_GONE: return IE_EHANDLER;
    case IE_BUS_CODE_CANCELLED: return IE_ECLOSED;
    case IE_BUS_CODE_NONE: return IE_EPROTO; /* an end without an answer and without a reason */
    default: return ie__bus_code_status(code);
    }
}

static void
query_finish(query *ended, ie_status status, uint32_t code, const char *reason)
{
    ie_bus_reply told = {.size = sizeof told,
                         .reason = reason,
                         .status = status,
                         .code = code,
                         .answers = ended->answers};

    ended->replied(ended->user, &told);
    ie__free(ended);
}

static void
on_timer(uv_timer_t *timer)
{
    ie_bus_client  *client = timer->data;
    client_queries *queries = &client->queries;
    const int64_t   now = now_ms();
    query          *ended = NULL;
    ie__deadline   *first;

    client_lock(client);
    queries->armed_ms = 0;
    while ((first = ie__deadlines_first(&queries->deadlines)) != NULL && first->at_ms <= now) {
        query *late = (query *)(void *)((char *)first - offsetof(query, deadline));

        query_remove(queries, late);
        late->next = ended;
        ended = late;
    }
    client_unlock(client);
    while (ended != NULL) {
        query *late = ended;
        char   reason[80];

        ended = late->next;
        (void)snprintf(reason, sizeof reason, "no answer within %u ms", late->timeout_ms);
        query_finish(late, end_status(IE_BUS_CODE_ACK_TIMEOUT, late->answers),
                     IE_BUS_CODE_ACK_TIMEOUT, reason);
    }
    if (client->stream != NULL)
        ie__stream_touch(client->stream); /* someone may be waiting for them to leave */
    ie__client_talk(client);
}

/* The bus ends queries by their deadline; this is for a bus that is silent. */
static void
timer_arm(ie_bus_client *client)
{
    client_queries     *queries = &client->queries;
    const ie__deadline *first;
    int64_t             at_ms = 0;

    client_lock(client);
    first = ie__deadlines_first(&queries->deadlines);
    if (first != NULL && (queries->armed_ms == 0 || first->at_ms < queries->armed_ms))
        at_ms = queries->armed_ms = first->at_ms;
    client_unlock(client);
    if (at_ms != 0) {
        const int64_t left = at_ms - now_ms();

        uv_update_time(&client->loop);
        (void)uv_timer_start(&queries->timer, on_timer, left > 0 ? (uint64_t)left : 0, 0);
    }
}

/* ---- the talk ------------------------------------------------------------------------------- */

/* With the mutex held: room for a frame at the end of the talk; NULL: no memory. */
static unsigned char *
talk_reserve(ie_bus_client *client, size_t bytes)
{
    ie_buffer *talk = &client->queries.talk;

    return ie__buffer_reserve(talk, bytes) == IE_OK ? (unsigned char *)talk->data + talk->size
                                                    : NULL;
}

/* With the mutex held, after something was added: does the caller have to wake the loop? */
static bool
talk_signal(ie_bus_client *client)
{
    if (!on_own_thread(client))
        return client_signal(client);
    if (client->stream != NULL)
        ie__stream_touch(client->stream); /* the end of this turn writes it */
    return false;
}

/* On the loop: write what was said, and end what was cancelled. */
void
ie__client_talk(ie_bus_client *client)
{
    client_queries *queries = &client->queries;
    query          *cancelled;
    ie_buffer       said = {NULL, 0, 0};

    client_lock(client);
    cancelled = queries->cancelled;
    queries->cancelled = NULL;
    for (query *at = cancelled; at != NULL; at = at->next)
        query_remove(queries, at);
    if (queries->talk.size != 0 && client->stream != NULL && client->phase >= PHASE_OPEN &&
        !client->said_goodbye) {
        if (ie__stream_pending(client->stream) > UNSENT_MAX) {
            ie__stream_notify_below(client->stream, UNSENT_MAX / 2);
        } else {
            said = queries->talk;
            queries->talk = queries->spare;
            queries->spare = (ie_buffer){NULL, 0, 0};
        }
    }
    client_unlock(client);
    if (said.data != NULL) {
        ie__client_write(client, said.data, said.size);
        said.size = 0;
        queries->spare = said;
        timer_arm(client);
    }
    while (cancelled != NULL) {
        query *gone = cancelled;

        cancelled = gone->next;
        query_finish(gone, end_status(IE_BUS_CODE_CANCELLED, gone->answers), IE_BUS_CODE_CANCELLED,
                     ie_bus_code_text(IE_BUS_CODE_CANCELLED));
    }
}

/* ---- the connection ------------------------------------------------------------------------- */

ie_status
ie__client_queries_init(ie_bus_client *client)
{
    client->queries.timer.data = client;
    return uv_timer_init(&client->loop, &client->queries.timer) == 0 ? IE_OK : IE_EIO;
}

void
ie__client_queries_open(ie_bus_client *client)
{
    client->queries.is_open = true;
    client->queries.is_served = (client->capabilities & IE__CAP_QUERIES) != 0;
}

void
ie__client_queries_shut(ie_bus_client *client)
{
    client->queries.is_open = false;
}

bool
ie__client_queries_are_done(const ie_bus_client *client)
{
    const client_queries *queries = &client->queries;

    return queries->asked.count == 0 && queries->questions.count == 0 && queries->talk.size == 0;
}

/* With the mutex held: empties the table of questions. */
static void
questions_forget(client_queries *queries)
{
    ie__numbered *at;
    size_t        from = 0;

    while ((at = ie__numbers_any(&queries->questions, &from)) != NULL) {
        ie__numbers_remove(&queries->questions, at);
        ie__free(at);
    }
}

void
ie__client_queries_end(ie_bus_client *client, ie_status status, const char *reason)
{
    client_queries *queries = &client->queries;
    query          *ended = NULL;
    ie__numbered   *at;
    size_t          from = 0;

    client_lock(client);
    queries->is_open = false;
    queries->cancelled = NULL; /* they are in the table, too */
    while ((at = ie__numbers_any(&queries->asked, &from)) != NULL) {
        query *gone = (query *)(void *)at;

        query_remove(queries, gone);
        gone->next = ended;
        ended = gone;
    }
    client_unlock(client);
    while (ended != NULL) {
        query *gone = ended;

        ended = gone->next;
        query_finish(gone, gone->answers != 0 ? IE_OK : status,
                     gone->is_cancelled ? IE_BUS_CODE_CANCELLED : IE_BUS_CODE_NONE, reason);
    }
}

void
ie__client_queries_lost(ie_bus_client *client, ie_status status, const char *reason)
{
    client_lock(client);
    client->queries.talk.size = 0;
    questions_forget(&client->queries);
    client_unlock(client);
    ie__client_queries_end(client, status, reason);
}

void
ie__client_queries_free(ie_bus_client *client)
{
    client_queries *queries = &client->queries;

    questions_forget(queries);
    ie__numbers_fini(&queries->asked);
    ie__numbers_fini(&queries->questions);
    ie__deadlines_fini(&queries->deadlines);
    ie_buffer_fini(&queries->talk);
    ie_buffer_fini(&queries->spare);
}

/* ---- what the server says ------------------------------------------------------------------- */

/* Only the loop takes queries out, so what it finds stays. */
static query *
query_find(ie_bus_client *client, uint32_t number)
{
    query *found;

    client_lock(client);
    found = (query *)(void *)ie__numbers_find(&client->queries.asked, number);
    if (found != NULL && found->is_cancelled)
        found = NULL;
    client_unlock(client);
    return found;
}

ie_status
ie__client_on_answer(ie_bus_client *client, const ie__frame *frame)
{
    query       *asked = query_find(client, frame->number);
    ie_bus_reply told = {.size = sizeof told, .reason = ""};
    ie_event     event;

    if (ie__record_parse(&client->by.record, frame->body, frame->body_bytes, IE_DATA_BYTES_MAX,
                         NULL) != IE_OK)
        return ie__client_broken(client, "a malformed answer");
    if (asked == NULL)
        return IE_OK; /* it has ended here: cancelled, or too late */
    ie__record_event(&event, &client->by.record);
    told.event = &event;
    told.answers = ++asked->answers;
    asked->replied(asked->user, &told);
    return client->stream != NULL ? IE_OK : IE_ECLOSED;
}

ie_status
ie__client_on_query_end(ie_bus_client *client, const ie__frame *frame)
{
    ie__frame  rest = *frame;
    query     *asked = query_find(client, frame->number);
    ie__reason reason;

    if (frame->body_bytes < 4)
        return ie__client_broken(client, "a malformed end of a query");
    rest.body += 4;
    rest.body_bytes -= 4;
    if (ie__reason_parse(&reason, &rest) != IE_OK)
        return ie__client_broken(client, "a malformed end of a query");
    if (asked == NULL)
        return IE_OK;
    client_lock(client);
    query_remove(&client->queries, asked);
    client_unlock(client);
    if (reason.text[0] == '\0' && reason.code != IE_BUS_CODE_NONE)
        (void)snprintf(reason.text, sizeof reason.text, "%s", ie_bus_code_text(reason.code));
    query_finish(asked, end_status(reason.code, asked->answers), reason.code, reason.text);
    if (client->stream != NULL && client->phase == PHASE_LEAVING)
        ie__stream_touch(client->stream); /* it may have been the last */
    return client->stream != NULL ? IE_OK : IE_ECLOSED;
}

/* With the mutex held; NULL: no memory, or a number twice. */
static put_question *
question_add(client_queries *queries, const subscription *sub, const ie__frame *frame)
{
    const size_t   bytes = frame->body[8]; /* of the topic, which follows */
    const uint32_t number = ie__get32(frame->body);
    put_question  *made = ie__calloc(1, sizeof *made + bytes + 1);

    if (made == NULL)
        return NULL;
    memcpy(made->topic, frame->body + 9, bytes);
    made->owner = sub->id;
    if (ie__numbers_find(&queries->questions, number) != NULL ||
        ie__numbers_add(&queries->questions, &made->entry, number) != IE_OK) {
        ie__free(made);
        return NULL;
    }
    return made;
}

static void
decline_now(ie_bus_client *client, uint32_t number, uint32_t code, const char *reason)
{
    unsigned char frame[IE__REASON_FRAME_MAX];

    ie__client_write(client, frame, ie__reason_frame(frame, IE__DECLINE, number, code, reason));
}

static const char NOT_SERVED[] = "it does not answer any more";

void
ie__client_questions_drop(ie_bus_client *client, uint32_t owner)
{
    ie__numbers *questions = &client->queries.questions;

    for (size_t i = 0; i < questions->bucket_count && questions->count != 0; i++) {
        ie__numbered *at = questions->buckets[i];

        while (at != NULL) {
            put_question *asked = (put_question *)(void *)at;

            at = at->chain;
            if (asked->owner != owner || asked->is_started)
                continue;
            decline_now(client, asked->entry.number, IE_BUS_CODE_SUBSCRIBER_GONE, NOT_SERVED);
            ie__numbers_remove(questions, &asked->entry);
            ie__free(asked);
        }
    }
}

ie_status
ie__client_on_ask(ie_bus_client *client, const ie__frame *frame)
{
    subscription *sub = ie__client_sub_find(client, frame->number);
    put_question *made;
    ie_status     status;
    uint32_t      number;

    if (frame->body_bytes < 9 || frame->body_bytes - 9 < frame->body[8])
        return ie__client_broken(client, "a malformed question");
    number = ie__get32(frame->body);
    client_lock(client);
    made = sub != NULL && !sub->is_removed && sub->on_question != NULL
               ? question_add(&client->queries, sub, frame)
               : NULL;
    client_unlock(client);
    if (made == NULL) {
        decline_now(client, number, IE_BUS_CODE_SUBSCRIBER_GONE, NOT_SERVED);
        return IE_OK;
    }
    status = ie__client_dispatch_message(client, sub, frame);
    if (status == IE_EPROTO)
        return ie__client_broken(client, "a malformed question");
    return client->stream != NULL ? status : IE_ECLOSED;
}

/* A run_fn: the handler's turn. */
static ie_status
question_run(ie_bus_client *client, runner *by, subscription *sub, const ie__frame *frame,
             uint32_t connection)
{
    const uint32_t number = ie__get32(frame->body);
    put_question  *asked = NULL;
    ie_event       event;

    if (ie__record_parse(&by->record, frame->body + 8, frame->body_bytes - 8, IE_DATA_BYTES_MAX,
                         NULL) != IE_OK)
        return IE_EPROTO;
    client_lock(client);
    if (atomic_load(&client->connection) == connection)
        asked = (put_question *)(void *)ie__numbers_find(&client->queries.questions, number);
    if (asked != NULL)
        asked->is_started = true;
    client_unlock(client);
    if (asked == NULL)
        return IE_OK; /* taken back while it waited for its turn */
    ie__record_event(&event, &by->record);
    sub->on_question(sub->user, &event, (uint64_t)connection << 32 | number);
    return IE_OK;
}

ie_status
ie__client_on_withdraw(ie_bus_client *client, const ie__frame *frame)
{
    ie__numbered *gone;

    client_lock(client);
    gone = ie__numbers_find(&client->queries.questions, frame->number);
    if (gone != NULL)
        ie__numbers_remove(&client->queries.questions, gone);
    client_unlock(client);
    ie__free(gone);
    return IE_OK;
}

/* ---- public: asking ------------------------------------------------------------------------- */

/* Reserved topics, too, may be asked: the bus itself answers those. */
static ie_status
question_check(ie_event *full, const ie_event *question, ie_error *err)
{
    const char     *topic;
    const ie_status status =
        ie__struct_import(full, sizeof *full, question, offsetof(ie_event, dedupe_key));
    ie_status checked;

    if (status != IE_OK)
        return ie_error_set(err, status, "the event's size is not set; use IE_EVENT_INIT");
    topic = full->topic;
    if (topic != NULL && topic[0] == '$')
        full->topic = topic + 1;
    checked = ie_event_check(full, err);
    full->topic = topic;
    return checked;
}

/* With the mutex held: is there room, and is this the time? */
static ie_status
query_admit(const ie_bus_client *client, const ie_event *question, size_t bytes, ie_error *err)
{
    const client_queries *queries = &client->queries;

    if (client->is_closing)
        return ie_error_set(err, IE_ECLOSED, "the client was closed");
    if (!queries->is_open)
        return ie_error_set(err, IE_EUNREACHABLE, "%s: %s", client->url,
                            client->reason[0] != '\0' ? client->reason : "not connected");
    if (!queries->is_served)
        return ie_error_set(err, IE_ENOTSUP, "%s: this bus takes no queries", client->url);
    if (question->data_bytes > client->data_bytes_max)
        return ie_error_set(err, IE_ETOOBIG, "data is larger than %u bytes, the bus's limit",
                            client->data_bytes_max);
    if (queries->asked.count >= client->options.publish_queue_max)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_max: %zu queries are unanswered",
                            queries->asked.count);
    if (queries->bytes + bytes > client->options.publish_queue_bytes_max && queries->bytes != 0)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_bytes_max: %llu bytes are unanswered",
                            (unsigned long long)queries->bytes);
    return IE_OK;
}

/* With the mutex held. */
static ie_status
query_add(ie_bus_client *client, query *asked, const ie_event *question, uint32_t wanted)
{
    client_queries *queries = &client->queries;
    unsigned char  *at = talk_reserve(client, asked->bytes);

    if (at == NULL)
        return IE_ENOMEM;
    do {
        queries->number++;
    } while (queries->number == 0 || ie__numbers_find(&queries->asked, queries->number) != NULL);
    if (ie__numbers_add(&queries->asked, &asked->entry, queries->number) != IE_OK)
        return IE_ENOMEM;
    if (ie__deadlines_add(&queries->deadlines, &asked->deadline, now_ms() + asked->timeout_ms) !=
        IE_OK) {
        ie__numbers_remove(&queries->asked, &asked->entry);
        return IE_ENOMEM;
    }
    ie__frame_prefix(at, IE__QUERY, queries->number, asked->bytes - IE__PREFIX_BYTES);
    ie__put32(at + IE__PREFIX_BYTES, asked->timeout_ms);
    ie__put32(at + IE__PREFIX_BYTES + 4, wanted);
    (void)ie__record_put(at + IE__PREFIX_BYTES + 8, question);
    queries->talk.size += asked->bytes;
    queries->bytes += asked->bytes;
    return IE_OK;
}

ie_status
ie_bus_client_query(ie_bus_client *client, const ie_event *question, uint32_t timeout_ms,
                    uint32_t answers_max, ie_bus_reply_fn replied, void *user, uint32_t *id,
                    ie_error *err)
{
    ie_event  full = IE_EVENT_INIT;
    query    *asked;
    ie_status status;
    bool      must_wake;

    if (client->generation != ie__fork_generation())
        return ie_error_set(err, IE_EFORKED, "the client belongs to the parent process");
    if (replied == NULL || timeout_ms == 0)
        return ie_error_set(err, IE_EINVAL,
                            replied == NULL ? "replied is NULL" : "timeout_ms: 1 or more");
    status = question_check(&full, question, err);
    if (status != IE_OK)
        return status;
    asked = ie__calloc(1, sizeof *asked);
    if (asked == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a query");
    asked->replied = replied;
    asked->user = user;
    asked->timeout_ms = timeout_ms;
    asked->bytes = (uint32_t)(IE__PREFIX_BYTES + 8 + ie__record_size(&full));

    client_lock(client);
    status = query_admit(client, &full, asked->bytes, err);
    if (status == IE_OK && query_add(client, asked, &full, answers_max) != IE_OK)
        status = ie_error_set(err, IE_ENOMEM, "no memory for a query");
    if (status == IE_OK && id != NULL)
        *id = asked->entry.number;
    must_wake = status == IE_OK && talk_signal(client);
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    if (status != IE_OK)
        ie__free(asked);
    return status;
}

ie_status
ie_bus_client_query_cancel(ie_bus_client *client, uint32_t id)
{
    client_queries *queries = &client->queries;
    unsigned char  *at;
    query          *asked;

    client_lock(client);
    asked = (query *)(void *)ie__numbers_find(&queries->asked, id);
    if (asked == NULL || asked->is_cancelled) {
        client_unlock(client);
        return IE_ENOTFOUND;
    }
    asked->is_cancelled = true;
    ie__deadlines_remove(&queries->deadlines, &asked->deadline);
    asked->next = queries->cancelled;
    queries->cancelled = asked;
    at = talk_reserve(client, IE__PREFIX_BYTES);
    if (at != NULL) { /* else the bus finds out by its deadline */
        ie__frame_prefix(at, IE__QUERY_CANCEL, id, 0);
        queries->talk.size += IE__PREFIX_BYTES;
    }
    (void)client_signal(client);
    client_unlock(client);
    (void)uv_async_send(&client->async);
    return IE_OK;
}

/* Shared by the caller, who may lose patience, and the query's end, which comes in any case. */
typedef struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t  cond;
    int             refs;
    bool            is_ended;
    ie_status       status;
    ie_buffer       answer;
    char            reason[IE__REASON_BYTES_MAX + 1];
} waiter;

static void
waiter_release(waiter *w) /* mutex held */
{
    const bool is_last = --w->refs == 0;

    (void)pthread_mutex_unlock(&w->mutex);
    if (is_last) {
        (void)pthread_cond_destroy(&w->cond);
        (void)pthread_mutex_destroy(&w->mutex);
        ie_buffer_fini(&w->answer);
        ie__free(w);
    }
}

static void
waiter_replied(void *user, const ie_bus_reply *told)
{
    waiter *w = user;

    (void)pthread_mutex_lock(&w->mutex);
    if (told->event != NULL) {
        if (told->answers == 1 &&
            ie__buffer_add(&w->answer, told->event->data, told->event->data_bytes) != IE_OK)
            w->status = IE_ENOMEM;
        (void)pthread_mutex_unlock(&w->mutex);
        return;
    }
    w->is_ended = true;
    if (w->status == IE_OK)
        w->status = told->status;
    (void)snprintf(w->reason, sizeof w->reason, "%s",
                   w->status == IE_ENOMEM ? "no memory for the answer" : told->reason);
    (void)pthread_cond_signal(&w->cond);
    waiter_release(w);
}

static waiter *
waiter_new(void)
{
    waiter *w = ie__calloc(1, sizeof *w);

    if (w == NULL)
        return NULL;
    (void)pthread_mutex_init(&w->mutex, NULL);
    ie__client_cond_init(&w->cond);
    w->refs = 2;
    return w;
}

ie_status
ie_bus_client_query_wait(ie_bus_client *client, const char *topic, const void *data,
                         size_t data_bytes, uint32_t timeout_ms, ie_buffer *answer, ie_error *err)
{
    const struct timespec deadline = ie__client_deadline(
        timeout_ms < UINT32_MAX - WAIT_SLACK ? timeout_ms + WAIT_SLACK : timeout_ms);
    ie_event  question = IE_EVENT_INIT;
    uint32_t  id = 0;
    ie_status status;
    waiter   *w;

    if (on_own_thread(client))
        return ie_error_set(err, IE_ESTATE, "waiting on the client's own thread");
    w = waiter_new();
    if (w == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a query");
    question.topic = topic;
    question.data = data_bytes != 0 ? data : NULL;
    question.data_bytes = data_bytes;
    if (data_bytes != 0 && ie__json_check(data, data_bytes, NULL) != IE_OK)
        question.content_type = "application/octet-stream";
    ie__client_wait_begin(client);
    status = ie_bus_client_query(client, &question, timeout_ms, 1, waiter_replied, w, &id, err);
    (void)pthread_mutex_lock(&w->mutex);
    if (status != IE_OK) {
        ie__client_wait_end(client);
        w->refs = 1;
        waiter_release(w);
        return status;
    }
    while (!w->is_ended && status == IE_OK)
        if (pthread_cond_timedwait(&w->cond, &w->mutex, &deadline) == ETIMEDOUT)
            status = IE_ETIMEDOUT;
    ie__client_wait_end(client);
    if (w->is_ended)
        status = w->status == IE_OK ? IE_OK : ie_error_set(err, w->status, "%s", w->reason);
    else
        (void)ie_error_set(err, IE_ETIMEDOUT, "no answer within %u ms", timeout_ms);
    if (status == IE_OK) {
        *answer = w->answer;
        w->answer = (ie_buffer){NULL, 0, 0};
    }
    waiter_release(w);
    if (status == IE_ETIMEDOUT)
        (void)ie_bus_client_query_cancel(client, id);
    return status;
}

/* ---- public: answering ---------------------------------------------------------------------- */

ie_status
ie_bus_client_serve(ie_bus_client *client, const char *pattern, const char *group,
                    ie_bus_question_fn handler, void *user, uint32_t *id, ie_error *err)
{
    subscription *sub;

    if (ie_pattern_check(pattern, err) != IE_OK)
        return IE_EINVAL;
    if (group != NULL && ie_topic_check(group, NULL) != IE_OK)
        return ie_error_set(err, IE_EINVAL, "group: not a name like a topic's");
    if (handler == NULL)
        return ie_error_set(err, IE_EINVAL, "handler is NULL");
    sub = ie__client_sub_new(pattern, group);
    if (sub == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a subscription");
    sub->run = question_run;
    sub->on_question = handler;
    sub->user = user;
    sub->flags = IE__SUBSCRIBE_ANSWERS;
    return ie__client_sub_add(client, sub, id, err);
}

/* With the mutex held: whose answer this is; NULL: nobody's any more. */
static put_question *
question_find(ie_bus_client *client, uint64_t token)
{
    if ((uint32_t)(token >> 32) != atomic_load(&client->connection))
        return NULL;
    return (put_question *)(void *)ie__numbers_find(&client->queries.questions, (uint32_t)token);
}

/* With the mutex held: it is answered. */
static void
question_done(ie_bus_client *client, put_question *done)
{
    ie__numbers_remove(&client->queries.questions, &done->entry);
    ie__free(done);
}

/* With the mutex held: may this be said? */
static ie_status
answer_admit(const ie_bus_client *client, const put_question *asked, ie_error *err)
{
    if (asked == NULL)
        return client->is_closing
                   ? ie_error_set(err, IE_ECLOSED, "the client was closed")
                   : ie_error_set(err, IE_ENOTFOUND, "nobody waits for this answer any more");
    if (client->queries.talk.size > client->options.publish_queue_bytes_max)
        return ie_error_set(err, IE_ELIMIT, "publish_queue_bytes_max: %zu bytes are unsent",
                            client->queries.talk.size);
    return IE_OK;
}

static ie_status
answer_import(ie_event *full, const ie_event *answer, ie_error *err)
{
    ie_status status = IE_OK;

    if (answer != NULL)
        status = ie__struct_import(full, sizeof *full, answer, offsetof(ie_event, dedupe_key));
    if (status != IE_OK)
        return ie_error_set(err, status, "the event's size is not set; use IE_EVENT_INIT");
    if (full->topic != NULL)
        return ie_event_check(full, err);
    full->topic = "question"; /* stands for a topic that the bus has checked */
    status = ie_event_check(full, err);
    full->topic = NULL;
    return status;
}

ie_status
ie_bus_client_answer(ie_bus_client *client, uint64_t token, const ie_event *answer, ie_error *err)
{
    ie_event       full = IE_EVENT_INIT;
    ie_status      status = answer_import(&full, answer, err);
    put_question  *asked;
    unsigned char *at;
    bool           must_wake = false;

    if (status != IE_OK)
        return status;
    client_lock(client);
    asked = question_find(client, token);
    status = answer_admit(client, asked, err);
    if (status == IE_OK && full.data_bytes > client->data_bytes_max)
        status = ie_error_set(err, IE_ETOOBIG, "data is larger than %u bytes, the bus's limit",
                              client->data_bytes_max);
    if (status == IE_OK) {
        size_t record;

        if (full.topic == NULL)
            full.topic = asked->topic;
        record = ie__record_size(&full);
        at = talk_reserve(client, IE__PREFIX_BYTES + record);
        if (at == NULL) {
            status = ie_error_set(err, IE_ENOMEM, "no memory for an answer");
        } else {
            ie__frame_prefix(at, IE__REPLY, asked->entry.number, record);
            (void)ie__record_put(at + IE__PREFIX_BYTES, &full);
            client->queries.talk.size += IE__PREFIX_BYTES + record;
            question_done(client, asked);
            must_wake = talk_signal(client);
        }
    }
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    return status;
}

ie_status
ie_bus_client_decline(ie_bus_client *client, uint64_t token, const char *reason, ie_error *err)
{
    unsigned char  frame[IE__REASON_FRAME_MAX];
    put_question  *asked;
    ie_status      status;
    unsigned char *at;
    size_t         size;
    bool           must_wake = false;

    client_lock(client);
    asked = question_find(client, token);
    status = answer_admit(client, asked, err);
    if (status == IE_OK) {
        size = ie__reason_frame(frame, IE__DECLINE, asked->entry.number, IE_BUS_CODE_HANDLER,
                                reason != NULL ? reason : "declined");
        at = talk_reserve(client, size);
        if (at == NULL) {
            status = ie_error_set(err, IE_ENOMEM, "no memory for an answer");
        } else {
            memcpy(at, frame, size);
            client->queries.talk.size += size;
            question_done(client, asked);
            must_wake = talk_signal(client);
        }
    }
    client_unlock(client);
    if (must_wake)
        (void)uv_async_send(&client->async);
    return status;
}
