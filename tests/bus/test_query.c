/* Questions and answers: who is asked, what comes back, and that every query ends once. */
#include "bus_support.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

#define LONG_MS 300000 /* what ends before this has not waited for its deadline */

static ie_bus_server *server;

static void
set_up(void)
{
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_bytes_max = IE_DATA_BYTES_MAX - 1;
    server = bus_start(&options);
}

static bool
has_no_queries(void *arg)
{
    return bus_stats(arg).queries_now == 0;
}

static void
tear_down(void)
{
    ck_assert(poll_until(has_no_queries, server, WAIT_MS));
    ie_bus_server_close(server);
}

/* ---- askers and responders ------------------------------------------------------------------ */

typedef struct asker {
    atomic_ulong answers;
    atomic_ulong ended;
    atomic_int   status; /* of the last end */
    atomic_uint  code;
    atomic_ulong sum; /* of the numbers in the answers */
    char         text[64];
    char         topic[64];
    char         reason[128];
} asker;

static void
on_reply(void *user, const ie_bus_reply *reply)
{
    asker *a = user;

    if (reply->event != NULL) {
        char text[64] = "";

        if (reply->event->data_bytes < sizeof text && reply->event->data_bytes > 0)
            memcpy(text, reply->event->data, reply->event->data_bytes);
        (void)snprintf(a->text, sizeof a->text, "%s", text);
        (void)snprintf(a->topic, sizeof a->topic, "%s", reply->event->topic);
        (void)atomic_fetch_add(&a->sum, (unsigned long)strtol(text, NULL, 10));
        (void)atomic_fetch_add(&a->answers, 1);
        ck_assert_uint_ge(reply->answers, 1);
        return;
    }
    (void)snprintf(a->reason, sizeof a->reason, "%s", reply->reason);
    atomic_store(&a->status, reply->status);
    atomic_store(&a->code, reply->code);
    (void)atomic_fetch_add(&a->ended, 1);
}

static uint32_t
ask(ie_bus_client *client, const char *topic, const char *data, uint32_t timeout_ms,
    uint32_t answers_max, asker *a)
{
    ie_event question = IE_EVENT_INIT;
    ie_error err = IE_ERROR_INIT;
    uint32_t id = 0;

    question.topic = topic;
    question.data = data;
    question.data_bytes = data != NULL ? strlen(data) : 0;
    ck_assert_msg(ie_bus_client_query(client, &question, timeout_ms, answers_max, on_reply, a, &id,
                                      &err) == IE_OK,
                  "%s", err.message);
    ck_assert_uint_ne(id, 0);
    return id;
}

/* What a responder does, and what it saw. */
typedef struct responder {
    ie_bus_client   *client;
    const char      *answer;  /* NULL: the question's data */
    const char      *refusal; /* it declines with this */
    bool             keeps;   /* does nothing: last is for later */
    atomic_ulong     asked;
    _Atomic uint64_t last;
    atomic_int       status; /* of the answer */
} responder;

static void
respond(void *user, const ie_event *question, uint64_t token)
{
    responder *r = user;
    ie_event   answer = IE_EVENT_INIT;

    atomic_store(&r->last, token);
    if (r->refusal != NULL) {
        atomic_store(&r->status, ie_bus_client_decline(r->client, token, r->refusal, NULL));
    } else if (!r->keeps) {
        answer.content_type = r->answer != NULL ? NULL : question->content_type;
        answer.data = r->answer != NULL ? r->answer : question->data;
        answer.data_bytes = r->answer != NULL ? strlen(r->answer) : question->data_bytes;
        atomic_store(&r->status, ie_bus_client_answer(r->client, token, &answer, NULL));
    }
    (void)atomic_fetch_add(&r->asked, 1);
}

static uint32_t
serve_now(responder *r, ie_bus_client *client, const char *pattern, const char *group)
{
    ie_error err = IE_ERROR_INIT;
    uint32_t id = 0;

    r->client = client;
    ck_assert_msg(ie_bus_client_serve(client, pattern, group, respond, r, &id, &err) == IE_OK, "%s",
                  err.message);
    ck_assert_msg(ie_bus_client_wait_subscribed(client, WAIT_MS, &err) == IE_OK, "%s", err.message);
    return id;
}

/* ---- one question, one answer --------------------------------------------------------------- */

START_TEST(the_answer_comes_back_to_the_asker_alone)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *other = client_open(server);
    ie_bus_client *serving = client_open(server);
    counter        seen = {0};
    responder      r = {.answer = "42"};
    asker          a = {0};

    (void)subscribe_now(other, ">", NULL, 0, &seen);
    (void)serve_now(&r, serving, "price.*", NULL);
    (void)ask(client, "price.apple", "\"how much?\"", LONG_MS, 1, &a);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_uint_eq(atomic_load(&a.answers), 1);
    ck_assert_str_eq(a.text, "42");
    ck_assert_str_eq(a.topic, "price.apple");
    ck_assert_int_eq(atomic_load(&a.status), IE_OK);
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_NONE);
    ck_assert_int_eq(atomic_load(&r.status), IE_OK);
    /* a question is no event, and neither is an answer */
    ck_assert_int_eq(publish_number(client, "last", 1, 0, NULL), IE_OK);
    ck_assert(wait_for(&seen.handled, 1));
    ck_assert_uint_eq(atomic_load(&seen.handled), 1);
    /* and an event is no question */
    ck_assert_uint_eq(atomic_load(&r.asked), 1);
    ck_assert_uint_eq(bus_stats(server).queries, 1);
    ck_assert_uint_eq(bus_stats(server).queries_failed, 0);
    ie_bus_client_close(client);
    ie_bus_client_close(other);
    ie_bus_client_close(serving);
}
END_TEST

START_TEST(nobody_there_is_told_at_once)
{
    ie_bus_client *client = client_open(server);
    responder      r = {0};
    asker          a = {0};
    uint32_t       id;

    (void)ask(client, "nobody.home", NULL, LONG_MS, 1, &a);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_ENOTFOUND);
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_NO_SUBSCRIBERS);
    ck_assert_str_ne(a.reason, "");
    /* nor after the last one has left */
    id = serve_now(&r, client, "nobody.*", "g");
    ck_assert_int_eq(ie_bus_client_unsubscribe(client, id, NULL), IE_OK);
    (void)ask(client, "nobody.home", NULL, LONG_MS, 0, &a);
    ck_assert(wait_for(&a.ended, 2));
    ck_assert_int_eq(atomic_load(&a.status), IE_ENOTFOUND);
    ck_assert_uint_eq(bus_stats(server).queries_failed, 2);
    ck_assert_uint_eq(bus_stats(server).subscriptions, 0);
    ie_bus_client_close(client);
}
END_TEST

static void
wait_inside(void *user, const ie_event *question, uint64_t token)
{
    responder *r = user;
    ie_buffer  answer = {NULL, 0, 0};

    (void)question;
    atomic_store(&r->status,
                 ie_bus_client_query_wait(r->client, "t", NULL, 0, 1000, &answer, NULL));
    (void)ie_bus_client_answer(r->client, token, NULL, NULL);
}

START_TEST(asking_and_waiting_is_one_call)
{
    static const unsigned char BYTES[] = {0, 1, 2, 0xFF};
    ie_bus_client             *client = client_open(server);
    ie_buffer                  answer = {NULL, 0, 0};
    ie_error                   err = IE_ERROR_INIT;
    responder                  r = {0};

    ck_assert_int_eq(ie_bus_client_query_wait(client, "t", "1", 1, WAIT_MS, &answer, &err),
                     IE_ENOTFOUND);
    ck_assert_ptr_nonnull(strstr(err.message, "nobody"));
    (void)serve_now(&r, client, "t", NULL); /* its own responder may answer */
    ck_assert_int_eq(
        ie_bus_client_query_wait(client, "t", BYTES, sizeof BYTES, WAIT_MS, &answer, NULL), IE_OK);
    ck_assert_uint_eq(answer.size, sizeof BYTES);
    ck_assert_mem_eq(answer.data, BYTES, sizeof BYTES);
    ie_buffer_fini(&answer);
    r.answer = "\"yes\"";
    ck_assert_int_eq(ie_bus_client_query_wait(client, "t", NULL, 0, WAIT_MS, &answer, NULL), IE_OK);
    ck_assert_uint_eq(answer.size, 5);
    ck_assert_mem_eq(answer.data, "\"yes\"", 5);
    ie_buffer_fini(&answer);
    ck_assert_int_eq(ie_bus_client_serve(client, "inside", NULL, wait_inside, &r, NULL, NULL),
                     IE_OK);
    ck_assert_int_eq(ie_bus_client_query_wait(client, "inside", NULL, 0, WAIT_MS, &answer, NULL),
                     IE_OK);
    ck_assert_uint_eq(answer.size, 0);
    ck_assert_int_eq(atomic_load(&r.status), IE_ESTATE);
    ie_buffer_fini(&answer);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(who_declines_says_why)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    ie_buffer      answer = {NULL, 0, 0};
    ie_error       err = IE_ERROR_INIT;
    responder      r = {.refusal = "out of apples"};

    (void)serve_now(&r, serving, "t", NULL);
    ck_assert_int_eq(ie_bus_client_query_wait(client, "t", NULL, 0, LONG_MS, &answer, &err),
                     IE_EHANDLER);
    ck_assert_str_eq(err.message, "out of apples");
    ck_assert_int_eq(ie_bus_client_decline(serving, atomic_load(&r.last), "again", NULL),
                     IE_ENOTFOUND);
    ck_assert_int_eq(ie_bus_client_answer(serving, atomic_load(&r.last), NULL, NULL), IE_ENOTFOUND);
    ie_bus_client_close(client);
    ie_bus_client_close(serving);
}
END_TEST

typedef struct late {
    ie_bus_client *client;
    uint64_t       token;
} late;

/* Asks without answering: too big an answer is refused only when the question is still open. */
static bool
is_withdrawn(void *arg)
{
    static const char big[IE_DATA_BYTES_MAX];
    late             *l = arg;
    ie_event          answer = IE_EVENT_INIT;
    ie_status         status;

    answer.content_type = "application/octet-stream";
    answer.data = big;
    answer.data_bytes = sizeof big;
    status = ie_bus_client_answer(l->client, l->token, &answer, NULL);
    ck_assert(status == IE_ETOOBIG || status == IE_ENOTFOUND);
    return status == IE_ENOTFOUND;
}

START_TEST(the_deadline_ends_what_nobody_answers)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    responder      r = {.keeps = true};
    asker          a = {0};
    late           l = {serving, 0};

    (void)serve_now(&r, serving, "t", NULL);
    (void)ask(client, "t", NULL, 50, 1, &a);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_ETIMEDOUT);
    ck_assert_uint_eq(atomic_load(&a.answers), 0);
    ck_assert(poll_until(has_no_queries, server, WAIT_MS));
    ck_assert(wait_for(&r.asked, 1));
    l.token = atomic_load(&r.last);
    ck_assert(poll_until(is_withdrawn, &l, WAIT_MS)); /* the responder is told, too */
    ck_assert_uint_eq(atomic_load(&a.ended), 1);
    ie_bus_client_close(client);
    ie_bus_client_close(serving);
}
END_TEST

START_TEST(a_responder_that_goes_away_is_told_at_once)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    responder      r = {.keeps = true};
    asker          a = {0};

    (void)serve_now(&r, serving, "t", NULL);
    (void)ask(client, "t", NULL, LONG_MS, 1, &a);
    ck_assert(wait_for(&r.asked, 1));
    ie_bus_client_close(serving);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_EHANDLER);
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_SUBSCRIBER_GONE);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(a_cancelled_query_ends_and_its_responder_is_told)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    responder      r = {.keeps = true};
    asker          a = {0};
    late           l = {serving, 0};
    uint32_t       id;

    (void)serve_now(&r, serving, "t", NULL);
    id = ask(client, "t", NULL, LONG_MS, 1, &a);
    ck_assert(wait_for(&r.asked, 1));
    ck_assert_int_eq(ie_bus_client_query_cancel(client, id), IE_OK);
    ck_assert_int_eq(ie_bus_client_query_cancel(client, id), IE_ENOTFOUND);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_CANCELLED);
    ck_assert_int_eq(atomic_load(&a.status), IE_ECLOSED);
    l.token = atomic_load(&r.last);
    ck_assert(poll_until(has_no_queries, server, WAIT_MS));
    ck_assert(poll_until(is_withdrawn, &l, WAIT_MS));
    ck_assert_uint_eq(atomic_load(&a.ended), 1);
    ie_bus_client_close(client);
    ie_bus_client_close(serving);
}
END_TEST

START_TEST(what_was_asked_before_the_responder_left_may_be_answered)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    responder      r = {.keeps = true};
    asker          a = {0};
    uint32_t       id;

    id = serve_now(&r, serving, "t", NULL);
    (void)ask(client, "t", NULL, LONG_MS, 1, &a);
    ck_assert(wait_for(&r.asked, 1));
    ck_assert_int_eq(ie_bus_client_unsubscribe(serving, id, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_answer(serving, atomic_load(&r.last), NULL, NULL), IE_OK);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_OK);
    ck_assert_uint_eq(atomic_load(&a.answers), 1);
    ie_bus_client_close(client);
    ie_bus_client_close(serving);
}
END_TEST

/* ---- several answers ------------------------------------------------------------------------ */

START_TEST(all_that_serve_answer_a_group_as_one)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving[5];
    responder      r[5] = {{.answer = "1"},
                           {.answer = "10"},
                           {.answer = "100"},
                           {.answer = "1000"},
                           {.answer = "1000"}};
    asker          a = {0};

    for (int i = 0; i < 5; i++) {
        serving[i] = client_open(server);
        (void)serve_now(&r[i], serving[i], i < 3 ? "t.*" : "t.>", i < 3 ? NULL : "g");
    }
    for (unsigned long round = 1; round <= 4; round++) {
        (void)ask(client, "t.x", NULL, LONG_MS, 0, &a);
        ck_assert(wait_for(&a.ended, round));
        ck_assert_int_eq(atomic_load(&a.status), IE_OK);
        ck_assert_uint_eq(atomic_load(&a.answers), 4 * round);
        ck_assert_uint_eq(atomic_load(&a.sum), 1111 * round);
    }
    ck_assert_uint_eq(atomic_load(&r[3].asked), 2); /* in turn */
    ck_assert_uint_eq(atomic_load(&r[4].asked), 2);
    /* one answer: one of them is asked, each in turn */
    for (unsigned long round = 5; round <= 12; round++) {
        (void)ask(client, "t.x", NULL, LONG_MS, 1, &a);
        ck_assert(wait_for(&a.ended, round));
    }
    ck_assert_uint_eq(atomic_load(&a.answers), 16 + 8);
    ck_assert_uint_eq(atomic_load(&r[0].asked), 4 + 2);
    ck_assert_uint_eq(atomic_load(&r[4].asked), 2 + 1);
    for (int i = 0; i < 5; i++)
        ie_bus_client_close(serving[i]);
    ie_bus_client_close(client);
}
END_TEST

START_TEST(enough_answers_end_it_and_the_others_are_told)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    responder      quick[2] = {{.answer = "1"}, {.answer = "1"}};
    responder      slow = {.keeps = true};
    asker          a = {0};
    late           l = {serving, 0};

    (void)serve_now(&slow, serving, "t", NULL);
    (void)serve_now(&quick[0], client, "t", NULL);
    (void)serve_now(&quick[1], client, "t", NULL);
    (void)ask(client, "t", NULL, LONG_MS, 2, &a);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_uint_eq(atomic_load(&a.answers), 2);
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_NONE);
    ck_assert(wait_for(&slow.asked, 1));
    l.token = atomic_load(&slow.last);
    ck_assert(poll_until(is_withdrawn, &l, WAIT_MS));
    ie_bus_client_close(client);
    ie_bus_client_close(serving);
}
END_TEST

START_TEST(some_answers_are_a_success_that_says_what_is_missing)
{
    ie_bus_client *client = client_open(server);
    ie_bus_client *serving = client_open(server);
    responder      quick = {.answer = "7"};
    responder      slow = {.keeps = true};
    responder      unwilling = {.refusal = "no"};
    asker          a = {0};

    (void)serve_now(&quick, client, "t", NULL);
    (void)serve_now(&unwilling, client, "t", NULL);
    (void)ask(client, "t", NULL, LONG_MS, 0, &a); /* one declines, one answers: that is all */
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_OK);
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_NONE);
    (void)serve_now(&slow, serving, "t", NULL);
    (void)ask(client, "t", NULL, 200, 0, &a); /* one never answers: the deadline tells */
    ck_assert(wait_for(&a.ended, 2));
    ck_assert_int_eq(atomic_load(&a.status), IE_OK);
    ck_assert_uint_eq(atomic_load(&a.code), IE_BUS_CODE_ACK_TIMEOUT);
    ck_assert_uint_eq(atomic_load(&a.answers), 2);
    (void)ask(client, "t", NULL, LONG_MS, 0, &a); /* one goes away: no deadline is needed */
    ck_assert(wait_for(&slow.asked, 2));
    ie_bus_client_close(serving);
    ck_assert(wait_for(&a.ended, 3));
    ck_assert_uint_eq(atomic_load(&a.answers), 3);
    ie_bus_client_close(client);
}
END_TEST

/* ---- queries inside handlers ---------------------------------------------------------------- */

typedef struct middle {
    ie_bus_client *client;
    uint64_t       token;
    char           text[64];
} middle;

static void
pass_back(void *user, const ie_bus_reply *reply)
{
    middle  *m = user;
    ie_event answer = IE_EVENT_INIT;

    if (reply->event != NULL) {
        (void)snprintf(m->text, sizeof m->text, "[%.*s]", (int)reply->event->data_bytes,
                       (const char *)reply->event->data);
        return;
    }
    if (reply->status == IE_OK) {
        answer.data = m->text;
        answer.data_bytes = strlen(m->text);
        ck_assert_int_eq(ie_bus_client_answer(m->client, m->token, &answer, NULL), IE_OK);
    } else {
        ck_assert_int_eq(ie_bus_client_decline(m->client, m->token, reply->reason, NULL), IE_OK);
    }
    free(m);
}

/* Answers with what another topic says. */
static void
pass_on(void *user, const ie_event *question, uint64_t token)
{
    middle  *m = calloc(1, sizeof *m);
    ie_event next = IE_EVENT_INIT;

    ck_assert_ptr_nonnull(m);
    m->client = user;
    m->token = token;
    next.topic = strcmp(question->topic, "a") == 0 ? "b" : "c";
    next.data = question->data;
    next.data_bytes = question->data_bytes;
    ck_assert_int_eq(ie_bus_client_query(m->client, &next, LONG_MS, 1, pass_back, m, NULL, NULL),
                     IE_OK);
}

START_TEST(a_handler_may_ask_on_its_own_connection)
{
    ie_bus_client *client = client_open(server);
    responder      r = {0};
    asker          a = {0};

    ck_assert_int_eq(ie_bus_client_serve(client, "a", NULL, pass_on, client, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_serve(client, "b", NULL, pass_on, client, NULL, NULL), IE_OK);
    (void)serve_now(&r, client, "c", NULL);
    (void)ask(client, "a", "1", LONG_MS, 1, &a);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_str_eq(a.text, "[[1]]");
    r.refusal = "not today";
    (void)ask(client, "a", "1", LONG_MS, 1, &a);
    ck_assert(wait_for(&a.ended, 2));
    ck_assert_str_eq(a.reason, "not today");
    ie_bus_client_close(client);
}
END_TEST

/* On a thread of the client's: waits for another topic's answer, and passes it on. */
static void
ask_and_wait(void *user, const ie_event *question, uint64_t token)
{
    ie_bus_client *client = *(ie_bus_client **)user;
    ie_event       answer = IE_EVENT_INIT;
    ie_buffer      said = {NULL, 0, 0};
    ie_error       err = IE_ERROR_INIT;

    if (ie_bus_client_query_wait(client, "b", question->data, question->data_bytes, WAIT_MS, &said,
                                 &err) != IE_OK) {
        (void)ie_bus_client_decline(client, token, err.message, NULL);
        return;
    }
    answer.data = said.data;
    answer.data_bytes = said.size;
    (void)ie_bus_client_answer(client, token, &answer, NULL);
    ie_buffer_fini(&said);
}

START_TEST(a_handler_on_a_thread_of_its_own_may_wait)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_bus_client        *other = client_open(server);
    responder             r = {0};
    asker                 a = {0};

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = ie_bus_server_address(server, 0);
    options.dispatch = IE_BUS_DISPATCH_THREAD;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_serve(client, "a", NULL, ask_and_wait, &client, NULL, NULL),
                     IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    (void)serve_now(&r, other, "b", NULL);
    for (unsigned long i = 1; i <= 100; i++)
        (void)ask(other, "a", "1", LONG_MS, 1, &a);
    ck_assert(wait_for(&a.ended, 100));
    ck_assert_uint_eq(atomic_load(&a.sum), 100);
    r.refusal = "no";
    (void)ask(other, "a", "1", LONG_MS, 1, &a);
    ck_assert(wait_for(&a.ended, 101));
    ck_assert_int_eq(atomic_load(&a.status), IE_EHANDLER);
    ck_assert_str_eq(a.reason, "no");
    ie_bus_client_close(client);
    ie_bus_client_close(other);
}
END_TEST

static void
fill_up(void *user, const ie_event *question, uint64_t token)
{
    (void)question;
    ck_assert_int_eq(ie_bus_client_answer(*(ie_bus_client **)user, token, NULL, NULL), IE_OK);
}

START_TEST(whoever_calls_may_answer_questions)
{
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_bus_client        *other = client_open(server);
    asker                 a = {0};
    size_t                ran = 0;

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = ie_bus_server_address(server, 0);
    options.dispatch = IE_BUS_DISPATCH_CALLER;
    ck_assert_int_eq(ie_bus_client_open(&client, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_serve(client, "a", NULL, fill_up, &client, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    for (int i = 0; i < 10; i++)
        (void)ask(other, "a", NULL, LONG_MS, 1, &a);
    while (ran < 10) {
        const size_t more = ie_bus_client_dispatch(client, 0, WAIT_MS);

        ck_assert_uint_ne(more, 0);
        ran += more;
    }
    ck_assert(wait_for(&a.ended, 10));
    ck_assert_uint_eq(atomic_load(&a.answers), 10);
    ie_bus_client_close(client);
    ie_bus_client_close(other);
}
END_TEST

/* ---- limits --------------------------------------------------------------------------------- */

START_TEST(limits_hold_at_the_value_and_one_past_it)
{
    ie_bus_server_options options;
    ie_bus_server        *strict;
    ie_bus_client        *client;
    responder             r = {.keeps = true};
    asker                 a = {0};
    asker                 b = {0};

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.queries_in_flight_max = 3;
    options.query_timeout_ms_max = 60000;
    strict = bus_start(&options);
    client = client_open(strict);
    (void)serve_now(&r, client, "t", NULL);
    (void)ask(client, "t", NULL, 60001, 1, &b);
    ck_assert(wait_for(&b.ended, 1));
    ck_assert_int_eq(atomic_load(&b.status), IE_ELIMIT);
    ck_assert_ptr_nonnull(strstr(b.reason, "query_timeout_ms_max"));
    for (int i = 0; i < 3; i++)
        (void)ask(client, "t", NULL, 60000, 1, &a);
    (void)ask(client, "t", NULL, 60000, 1, &b);
    ck_assert(wait_for(&b.ended, 2));
    ck_assert_int_eq(atomic_load(&b.status), IE_ELIMIT);
    ck_assert_uint_eq(atomic_load(&b.code), IE_BUS_CODE_LIMIT);
    ck_assert_ptr_nonnull(strstr(b.reason, "queries_in_flight_max"));
    ck_assert_uint_eq(atomic_load(&a.ended), 0);
    ck_assert_uint_eq(bus_stats(strict).queries_now, 3);
    ie_bus_client_close(client); /* what is open ends, once */
    ck_assert_uint_eq(atomic_load(&a.ended), 3);
    ck_assert_int_eq(atomic_load(&a.status), IE_ECLOSED);
    ck_assert(poll_until(has_no_queries, strict, WAIT_MS));
    ie_bus_server_close(strict);
}
END_TEST

static void
raw_query(int fd, uint32_t number, const char *topic, size_t data_bytes, uint32_t timeout_ms,
          uint32_t answers_max)
{
    ie_event       question = IE_EVENT_INIT;
    unsigned char *body;
    char          *data = malloc(data_bytes + 1);

    ck_assert_ptr_nonnull(data);
    memset(data, 'x', data_bytes);
    question.topic = topic;
    question.data = data;
    question.data_bytes = data_bytes;
    body = malloc(8 + ie__record_size(&question));
    ck_assert_ptr_nonnull(body);
    ie__put32(body, timeout_ms);
    ie__put32(body + 4, answers_max);
    raw_frame(fd, IE__QUERY, number, body, (size_t)(ie__record_put(body + 8, &question) - body));
    free(body);
    free(data);
}

static void
raw_expect_query_end(int fd, uint32_t number, uint32_t answers, uint32_t code)
{
    ie__frame frame = raw_expect(fd, IE__QUERY_END);

    ck_assert_uint_eq(frame.number, number);
    ck_assert_uint_ge(frame.body_bytes, 6);
    ck_assert_uint_eq(ie__get32(frame.body), answers);
    ck_assert_uint_eq(ie__get16(frame.body + 4), code);
}

/* The number of the question that comes now. */
static uint32_t
raw_expect_ask(int fd, uint32_t id)
{
    const ie__frame frame = raw_expect(fd, IE__ASK);

    ck_assert_uint_eq(frame.number, id);
    ck_assert_uint_ge(frame.body_bytes, 8);
    return ie__get32(frame.body);
}

static void
raw_serve(int fd, uint32_t id, const char *pattern, const char *group, uint32_t credit)
{
    raw_subscribe(fd, id, pattern, group, IE__SUBSCRIBE_ANSWERS, credit);
    (void)raw_expect(fd, IE__SUBSCRIBED);
}

/* PING and its PONG: whatever was sent before has been dealt with. */
static void
raw_settle(int fd)
{
    raw_frame(fd, IE__PING, 9, NULL, 0);
    (void)raw_expect(fd, IE__PONG);
}

static const unsigned char REPLY[] = {1, 't', 0, '1'}; /* a record: topic t, data 1 */

START_TEST(a_responder_without_credit_is_not_asked)
{
    const int asking = raw_open(server);
    const int one = raw_open(server);
    const int two = raw_open(server);
    uint32_t  number;

    raw_serve(one, 5, "t", "g", 1);
    raw_query(asking, 1, "t", 0, LONG_MS, 1);
    number = raw_expect_ask(one, 5);
    raw_query(asking, 2, "t", 0, LONG_MS, 1);
    raw_expect_query_end(asking, 2, 0, IE_BUS_CODE_BUSY);
    raw_serve(two, 6, "t", "g", 1);
    raw_query(asking, 3, "t", 0, LONG_MS, 1); /* the other member has credit */
    raw_frame(two, IE__REPLY, raw_expect_ask(two, 6), REPLY, sizeof REPLY);
    (void)raw_expect(asking, IE__ANSWER);
    raw_expect_query_end(asking, 3, 1, IE_BUS_CODE_NONE);
    raw_frame(one, IE__REPLY, number, REPLY, sizeof REPLY);
    (void)raw_expect(asking, IE__ANSWER);
    raw_expect_query_end(asking, 1, 1, IE_BUS_CODE_NONE);
    (void)close(asking);
    (void)close(one);
    (void)close(two);
}
END_TEST

START_TEST(an_answer_counts_only_from_whom_was_asked)
{
    const int asking = raw_open(server);
    const int asked = raw_open(server);
    const int thief = raw_open(server);
    uint32_t  number;

    raw_serve(asked, 1, "t", NULL, 0);
    raw_serve(thief, 1, "u", NULL, 0);
    raw_query(asking, 7, "t", 3, LONG_MS, 1);
    number = raw_expect_ask(asked, 1);
    for (uint32_t guess = 0; guess < 100; guess++)
        raw_frame(thief, guess % 2 != 0 ? IE__REPLY : IE__DECLINE, guess,
                  guess % 2 != 0 ? (const void *)REPLY : (const void *)"\0\7no", 4);
    raw_frame(asking, IE__REPLY, number, REPLY, sizeof REPLY); /* nor from the asker */
    raw_settle(thief);
    raw_settle(asking); /* nothing came but the pong */
    raw_frame(asked, IE__REPLY, number, REPLY, sizeof REPLY);
    raw_frame(asked, IE__REPLY, number, REPLY, sizeof REPLY); /* a second one goes nowhere */
    raw_settle(asked);
    ck_assert_uint_eq(raw_expect(asking, IE__ANSWER).number, 7);
    raw_expect_query_end(asking, 7, 1, IE_BUS_CODE_NONE);
    raw_settle(asking);
    (void)close(asking);
    (void)close(asked);
    (void)close(thief);
}
END_TEST

START_TEST(an_asker_that_goes_away_is_forgotten)
{
    const int asking = raw_open(server);
    const int asked = raw_open(server);
    uint32_t  number;

    raw_serve(asked, 1, "t", NULL, 0);
    raw_query(asking, 7, "t", 3, LONG_MS, 1);
    number = raw_expect_ask(asked, 1);
    (void)close(asking);
    ck_assert_uint_eq(raw_expect(asked, IE__WITHDRAW).number, number);
    raw_frame(asked, IE__REPLY, number, REPLY, sizeof REPLY);
    raw_settle(asked);
    ck_assert_uint_eq(bus_stats(server).queries_now, 0);
    (void)close(asked);
}
END_TEST

START_TEST(a_faulty_answer_ends_the_query_with_a_reason)
{
    static const unsigned char FAULTY[][6] = {
        {1, 't', 0x40, 0, 0, 0},    /* a field that must not be skipped */
        {4, 'a', '.', '.', 'b', 0}, /* not a topic */
        {9, 't', 0, 0, 0, 0},       /* cut off */
    };
    const int asking = raw_open(server);
    const int asked = raw_open(server);

    raw_serve(asked, 1, "t", NULL, 0);
    for (uint32_t i = 0; i < sizeof FAULTY / sizeof *FAULTY; i++) {
        raw_query(asking, i, "t", 3, LONG_MS, 1);
        raw_frame(asked, IE__REPLY, raw_expect_ask(asked, 1), FAULTY[i], sizeof *FAULTY);
        raw_expect_query_end(asking, i, 0, i == 0 ? IE_BUS_CODE_UNSUPPORTED : IE_BUS_CODE_INVALID);
    }
    (void)close(asking);
    (void)close(asked);
}
END_TEST

START_TEST(broken_rules_end_the_connection_or_the_query)
{
    static const struct {
        const char *body;
        size_t      size;
        uint32_t    number;
        uint32_t    code;
    } REFUSED[] = {
        {"\0\0\0\0\0\0\0\1\1t\0", 11, 1, IE_BUS_CODE_INVALID}, /* no time */
        {"\0\0\1\0\0\0\0\1\4a..b\0", 14, 2, IE_BUS_CODE_INVALID},
        {"\0\0\1\0\0\0\0\1\1", 9, 3, IE_BUS_CODE_INVALID},
        {"\0\0\1\0\0\0\0\1\1t\x40\0\0\0", 14, 4, IE_BUS_CODE_UNSUPPORTED},
        {"\0\0\1\0\0\0\0\1\2$x\0", 12, 5, IE_BUS_CODE_NO_SUBSCRIBERS},
    };
    static const struct {
        ie__frame_type type;
        const char    *body;
        size_t         size;
    } BROKEN[] = {
        {IE__QUERY, "\0\0\1\0\0\0\0", 7},
        {IE__QUERY_CANCEL, "x", 1},
        {IE__DECLINE, "x", 1},
        {IE__ASK, "", 0},
        {IE__ANSWER, "", 0},
        {IE__QUERY_END, "", 0},
        {IE__WITHDRAW, "", 0},
    };
    int fd = raw_open(server);

    for (size_t i = 0; i < sizeof REFUSED / sizeof *REFUSED; i++) {
        raw_frame(fd, IE__QUERY, REFUSED[i].number, REFUSED[i].body, REFUSED[i].size);
        raw_expect_query_end(fd, REFUSED[i].number, 0, REFUSED[i].code);
    }
    /* names that begin with '$' are the bus's own */
    raw_subscribe(fd, 1, "$bus.status", NULL, IE__SUBSCRIBE_ANSWERS, 0);
    raw_expect_reason(fd, IE__SUBREFUSED, 1, IE_BUS_CODE_DENIED);
    raw_publish(fd, 1, 0, "$bus.status", 1);
    raw_expect_reason(fd, IE__PUBNACK, 1, IE_BUS_CODE_DENIED);
    /* answers come alone */
    raw_subscribe(fd, 1, "t", NULL, IE__SUBSCRIBE_ANSWERS | IE_BUS_SUBSCRIBE_ACK, 0);
    raw_expect_reason(fd, IE__SUBREFUSED, 1, IE_BUS_CODE_UNSUPPORTED);
    raw_serve(fd, 1, "t", NULL, 0);
    raw_subscribe(fd, 1, "u", NULL, 0, 0);
    raw_expect_reason(fd, IE__SUBREFUSED, 1, IE_BUS_CODE_EXISTS);
    raw_query(fd, 9, "t", 1, LONG_MS, 1);
    (void)raw_expect_ask(fd, 1);
    raw_query(fd, 9, "t", 1, LONG_MS, 1); /* a number that is in use */
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
    raw_expect_end(fd);
    (void)close(fd);
    for (size_t i = 0; i < sizeof BROKEN / sizeof *BROKEN; i++) {
        fd = raw_open(server);
        raw_frame(fd, BROKEN[i].type, 1, BROKEN[i].body, BROKEN[i].size);
        raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
        raw_expect_end(fd);
        (void)close(fd);
    }
}
END_TEST

static bool
somebody_was_slow(void *arg)
{
    return bus_stats(arg).slow_closed != 0;
}

START_TEST(an_asker_that_does_not_read_is_closed)
{
    enum { BIG = 512 * 1024 };
    const int      asking = raw_open(server);
    ie_bus_client *serving = client_open(server);
    char          *big = malloc(BIG + 1);
    responder      r = {0};
    int            asked = 0;

    ck_assert_ptr_nonnull(big);
    memset(big, '1', BIG);
    big[BIG] = '\0';
    r.answer = big;
    (void)serve_now(&r, serving, "t", NULL);
    while (asked < 1000 && !somebody_was_slow(server))
        raw_query(asking, (uint32_t)++asked, "t", 1, LONG_MS, 1);
    ck_assert(poll_until(somebody_was_slow, server, WAIT_MS));
    ck_assert_uint_le(bus_stats(server).out_bytes, 16u << 20);
    (void)close(asking);
    ie_bus_client_close(serving);
    free(big);
}
END_TEST

/* ---- the bus goes --------------------------------------------------------------------------- */

START_TEST(a_lost_connection_ends_what_was_asked)
{
    ie_bus_server_options options;
    ie_bus_server        *mine = bus_start_default();
    ie_bus_client        *client = client_open(mine);
    ie_event              question = IE_EVENT_INIT;
    ie_error              err = IE_ERROR_INIT;
    ie_buffer             answer = {NULL, 0, 0};
    responder             r = {.keeps = true};
    asker                 a = {0};
    char                  url[128];
    const char           *listen = url;

    (void)snprintf(url, sizeof url, "%s", ie_bus_server_address(mine, 0));
    (void)serve_now(&r, client, "t", NULL);
    (void)ask(client, "t", NULL, LONG_MS, 1, &a);
    ck_assert(wait_for(&r.asked, 1));
    (void)ie_bus_server_stop(mine, 0);
    ie_bus_server_close(mine);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_EUNREACHABLE);
    question.topic = "t"; /* queries do not wait for a connection */
    ck_assert_int_eq(ie_bus_client_query(client, &question, LONG_MS, 1, on_reply, &a, NULL, &err),
                     IE_EUNREACHABLE);
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = &listen;
    options.listen_count = 1;
    mine = bus_start(&options);
    r.keeps = false;
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    /* a token of the old connection is worth nothing on the new one */
    ck_assert_int_eq(ie_bus_client_answer(client, atomic_load(&r.last), NULL, NULL), IE_ENOTFOUND);
    ie_error_clear(&err);
    ck_assert_msg(ie_bus_client_query_wait(client, "t", "1", 1, WAIT_MS, &answer, &err) == IE_OK,
                  "%s", err.message);
    ie_buffer_fini(&answer);
    ie_bus_client_close(client);
    ie_bus_server_close(mine);
}
END_TEST

static void *
stop_gently(void *arg)
{
    (void)ie_bus_server_stop(arg, WAIT_MS);
    return NULL;
}

START_TEST(a_bus_that_shuts_down_lets_answers_through)
{
    ie_bus_server *mine = bus_start_default();
    ie_bus_client *client = client_open(mine);
    ie_bus_client *serving = client_open(mine);
    responder      r = {.keeps = true};
    asker          a = {0};
    pthread_t      thread;
    ie_event       question = IE_EVENT_INIT;
    ie_status      status;
    uint64_t       token;

    (void)serve_now(&r, serving, "t", NULL);
    (void)ask(client, "t", NULL, LONG_MS, 1, &a);
    ck_assert(wait_for(&r.asked, 1));
    token = atomic_load(&r.last);
    ck_assert_int_eq(pthread_create(&thread, NULL, stop_gently, mine), 0);
    question.topic = "t";
    do { /* until the goodbye has come, questions are taken */
        asker *more = calloc(1, sizeof *more);

        ck_assert_ptr_nonnull(more);
        status = ie_bus_client_query(client, &question, 1, 1, on_reply, more, NULL, NULL);
        if (status == IE_OK)
            ck_assert(wait_for(&more->ended, 1));
        free(more);
    } while (status == IE_OK);
    ck_assert_int_eq(status, IE_EUNREACHABLE);
    ck_assert_uint_eq(atomic_load(&a.ended), 0);
    ck_assert_int_eq(ie_bus_client_answer(serving, token, NULL, NULL), IE_OK);
    ck_assert(wait_for(&a.ended, 1));
    ck_assert_int_eq(atomic_load(&a.status), IE_OK);
    (void)pthread_join(thread, NULL);
    ie_bus_client_close(client);
    ie_bus_client_close(serving);
    ie_bus_server_close(mine);
}
END_TEST

/* ---- many that come and go ------------------------------------------------------------------ */

#define PEERS  8
#define TOPICS 6

typedef struct asked {
    struct asked *next;
    atomic_ulong  ended;
    atomic_ulong  late; /* replies after the end */
    atomic_int    status;
} asked;

/* One that asks and answers; answers come at once, later, never, or as a refusal. */
typedef struct peer {
    ie_bus_client   *client;
    _Atomic uint64_t kept; /* a token for later */
    atomic_uint      turn;
} peer;

static void
on_random_reply(void *user, const ie_bus_reply *reply)
{
    asked *a = user;

    if (atomic_load(&a->ended) != 0)
        (void)atomic_fetch_add(&a->late, 1);
    if (reply->event != NULL)
        return;
    atomic_store(&a->status, reply->status);
    (void)atomic_fetch_add(&a->ended, 1);
}

static void
respond_somehow(void *user, const ie_event *question, uint64_t token)
{
    peer *p = user;

    (void)question;
    switch (atomic_fetch_add(&p->turn, 1) % 4) {
    case 0:
    case 1: (void)ie_bus_client_answer(p->client, token, NULL, NULL); break;
    case 2: (void)ie_bus_client_decline(p->client, token, "no", NULL); break;
    default: /* this one later, the one that was kept for it now */
        token = atomic_exchange(&p->kept, token);
        if (token != 0)
            (void)ie_bus_client_answer(p->client, token, NULL, NULL);
        break;
    }
}

static const char *
random_topic(char *out, size_t size)
{
    (void)snprintf(out, size, "t.%d", (int)ie__random_below(TOPICS));
    return out;
}

static void
peer_serve(peer *p)
{
    char topic[16];

    ck_assert_int_eq(
        ie_bus_client_serve(p->client,
                            ie__random_below(4) == 0 ? "t.*" : random_topic(topic, sizeof topic),
                            ie__random_below(2) == 0 ? "g" : NULL, respond_somehow, p, NULL, NULL),
        IE_OK);
}

static void
peer_ask(peer *p, asked **all)
{
    ie_event  question = IE_EVENT_INIT;
    asked    *a = calloc(1, sizeof *a);
    uint32_t  id = 0;
    char      topic[16];
    ie_status status;

    ck_assert_ptr_nonnull(a);
    question.topic = random_topic(topic, sizeof topic);
    status = ie_bus_client_query(p->client, &question, 1 + (uint32_t)ie__random_below(2000),
                                 (uint32_t)ie__random_below(4), on_random_reply, a, &id, NULL);
    ck_assert_msg(status == IE_OK || status == IE_EUNREACHABLE, "%s", ie_status_name(status));
    if (status != IE_OK) {
        free(a);
        return;
    }
    a->next = *all;
    *all = a;
    if (ie__random_below(5) == 0)
        (void)ie_bus_client_query_cancel(p->client, id);
}

START_TEST(every_query_ends_once_whoever_comes_and_goes)
{
    peer          peers[PEERS] = {0};
    asked        *all = NULL;
    unsigned long count = 0;
    unsigned long answered = 0;

    ie__random_seed(test_seed());
    for (uint64_t joins = test_scale(1000); joins > 0;) {
        peer *p = &peers[ie__random_below(PEERS)];

        if (p->client == NULL) {
            p->client = client_open(server);
            peer_serve(p);
            joins--;
        } else if (ie__random_below(30) == 0) {
            ie_bus_client_close(p->client); /* with whatever it asked, and was asked */
            p->client = NULL;
            atomic_store(&p->kept, 0);
        } else if (ie__random_below(10) == 0) {
            peer_serve(p);
        } else {
            peer_ask(p, &all);
        }
    }
    for (int i = 0; i < PEERS; i++)
        ie_bus_client_close(peers[i].client);
    while (all != NULL) {
        asked *gone = all;

        all = gone->next;
        count++;
        answered += atomic_load(&gone->status) == IE_OK;
        ck_assert_uint_eq(atomic_load(&gone->ended), 1);
        ck_assert_uint_eq(atomic_load(&gone->late), 0);
        free(gone);
    }
    ck_assert_uint_gt(answered, count / 20); /* it was a real exchange */
    ck_assert(poll_until(has_no_queries, server, WAIT_MS));
    ck_assert_uint_eq(bus_stats(server).protocol_errors, 0);
    ie__random_seed(0);
}
END_TEST

static Suite *
suite(void)
{
    Suite *s = suite_create("query");
    TCase *one = tcase_create("query");

    tcase_add_checked_fixture(one, set_up, tear_down);
    tcase_set_timeout(one, 100);
    tcase_add_test(one, the_answer_comes_back_to_the_asker_alone);
    tcase_add_test(one, nobody_there_is_told_at_once);
    tcase_add_test(one, asking_and_waiting_is_one_call);
    tcase_add_test(one, who_declines_says_why);
    tcase_add_test(one, the_deadline_ends_what_nobody_answers);
    tcase_add_test(one, a_responder_that_goes_away_is_told_at_once);
    tcase_add_test(one, a_cancelled_query_ends_and_its_responder_is_told);
    tcase_add_test(one, what_was_asked_before_the_responder_left_may_be_answered);
    tcase_add_test(one, all_that_serve_answer_a_group_as_one);
    tcase_add_test(one, enough_answers_end_it_and_the_others_are_told);
    tcase_add_test(one, some_answers_are_a_success_that_says_what_is_missing);
    tcase_add_test(one, a_handler_may_ask_on_its_own_connection);
    tcase_add_test(one, a_handler_on_a_thread_of_its_own_may_wait);
    tcase_add_test(one, whoever_calls_may_answer_questions);
    tcase_add_test(one, limits_hold_at_the_value_and_one_past_it);
    tcase_add_test(one, a_responder_without_credit_is_not_asked);
    tcase_add_test(one, an_answer_counts_only_from_whom_was_asked);
    tcase_add_test(one, an_asker_that_goes_away_is_forgotten);
    tcase_add_test(one, a_faulty_answer_ends_the_query_with_a_reason);
    tcase_add_test(one, broken_rules_end_the_connection_or_the_query);
    tcase_add_test(one, an_asker_that_does_not_read_is_closed);
    tcase_add_test(one, a_lost_connection_ends_what_was_asked);
    tcase_add_test(one, a_bus_that_shuts_down_lets_answers_through);
    tcase_add_test(one, every_query_ends_once_whoever_comes_and_goes);
    suite_add_tcase(s, one);
    return s;
}

int
main(void)
{
    SRunner *runner = srunner_create(suite());
    int      failed;

    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
