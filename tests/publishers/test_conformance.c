/* The conformance suite over every publisher that we ship, and over fakes that break its rules:
 * a suite that passes those would prove nothing. */
#include <check.h>
#include <ie/cloudevents.h>
#include <ie/memory.h>
#include <ie/publisher.h>
#ifdef IE_HAVE_SOCKET_BUS
#include <ie/bus.h>
#endif

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conformance.h"
#include "file_publisher.h"
#include "memory_publisher.h"
#include "support.h"
#ifdef IE_HAVE_SOCKET_BUS
#include "socket_bus.h"
#endif

/* ---- received events, for peers that get them on a thread of their own -------------------- */

typedef struct inbox_node {
    struct inbox_node *next;
    ie_event          *event;
} inbox_node;

typedef struct inbox {
    pthread_mutex_t lock;
    inbox_node     *first;
    inbox_node    **last;
} inbox;

static void
inbox_init(inbox *box)
{
    (void)pthread_mutex_init(&box->lock, NULL);
    box->first = NULL;
    box->last = &box->first;
}

static bool
inbox_put(inbox *box, const ie_event *event)
{
    inbox_node *node = calloc(1, sizeof *node);

    if (node == NULL || ie_event_copy(&node->event, event, NULL) != IE_OK) {
        free(node);
        return false;
    }
    (void)pthread_mutex_lock(&box->lock);
    *box->last = node;
    box->last = &node->next;
    (void)pthread_mutex_unlock(&box->lock);
    return true;
}

static ie_event *
inbox_try(inbox *box)
{
    ie_event   *event = NULL;
    inbox_node *node;

    (void)pthread_mutex_lock(&box->lock);
    node = box->first;
    if (node != NULL) {
        box->first = node->next;
        if (box->first == NULL)
            box->last = &box->first;
        event = node->event;
    }
    (void)pthread_mutex_unlock(&box->lock);
    free(node);
    return event;
}

static ie_event *
inbox_get(inbox *box, int timeout_ms)
{
    ie_event *event = inbox_try(box);

    for (int waited_ms = 0; event == NULL && waited_ms < timeout_ms; waited_ms++) {
        (void)poll(NULL, 0, 1);
        event = inbox_try(box);
    }
    return event;
}

static void
inbox_fini(inbox *box)
{
    for (ie_event *event = inbox_try(box); event != NULL; event = inbox_try(box))
        ie_event_free(event);
    (void)pthread_mutex_destroy(&box->lock);
}

/* ---- memory ------------------------------------------------------------------------------- */

typedef struct memory_peer {
    ie_memory_queue *queue;
    ie_memory_queue *late;
} memory_peer;

static void *
memory_setup(void)
{
    static memory_peer peer;

    memset(&peer, 0, sizeof peer);
    return ie_memory_queue_open(&peer.queue, "memory:suite", ">", 4096, NULL) == IE_OK ? &peer
                                                                                       : NULL;
}

static const char *
memory_url(void *peer)
{
    (void)peer;
    return "memory:suite";
}

static const char *
memory_url_away(void *peer)
{
    (void)peer;
    return "memory:suite-away";
}

static bool
memory_come(void *arg)
{
    memory_peer *peer = arg;

    return ie_memory_queue_open(&peer->late, "memory:suite-away", NULL, 0, NULL) == IE_OK;
}

static ie_event *
memory_receive(void *arg, int timeout_ms)
{
    memory_peer *peer = arg;
    ie_event    *event = NULL;

    return ie_memory_queue_next(&event, peer->queue, timeout_ms) == IE_OK ? event : NULL;
}

static void
memory_teardown(void *arg)
{
    memory_peer *peer = arg;

    ie_memory_queue_close(peer->queue);
    ie_memory_queue_close(peer->late);
}

/* ---- file --------------------------------------------------------------------------------- */

typedef struct file_peer {
    char  url[600];
    char  url_away[600];
    FILE *lines;
} file_peer;

static void *
file_setup(void)
{
    static file_peer peer;

    (void)test_dir_make();
    (void)snprintf(peer.url, sizeof peer.url, "file://%s", test_path("events.jsonl"));
    (void)snprintf(peer.url_away, sizeof peer.url_away, "file://%s", test_path("later/e.jsonl"));
    peer.lines = NULL;
    return &peer;
}

static const char *
file_url(void *peer)
{
    return ((file_peer *)peer)->url;
}

static const char *
file_url_away(void *peer)
{
    return ((file_peer *)peer)->url_away;
}

static bool
file_come(void *peer)
{
    (void)peer;
    return mkdir(test_path("later"), 0700) == 0;
}

/* Delivered means that the line is there; nothing to wait for. */
static ie_event *
file_receive(void *arg, int timeout_ms)
{
    file_peer *peer = arg;
    ie_event  *event = NULL;
    char      *line = NULL;
    size_t     size = 0;
    ssize_t    bytes;

    (void)timeout_ms;
    if (peer->lines == NULL)
        peer->lines = fopen(test_path("events.jsonl"), "re");
    if (peer->lines == NULL)
        return NULL;
    bytes = getline(&line, &size, peer->lines);
    if (bytes > 0 && line[bytes - 1] == '\n')
        (void)ie_cloudevents_decode(&event, line, (size_t)bytes - 1, NULL);
    free(line);
    return event;
}

static void
file_teardown(void *arg)
{
    file_peer *peer = arg;

    if (peer->lines != NULL)
        (void)fclose(peer->lines);
    test_dir_remove();
}

/* ---- socket ------------------------------------------------------------------------------- */

#ifdef IE_HAVE_SOCKET_BUS
typedef struct socket_side {
    ie_bus_server *server;
    ie_bus_client *client;
} socket_side;

typedef struct socket_peer {
    socket_side here;
    socket_side late;
    char        url_away[64];
    inbox       box;
} socket_peer;

static ie_status
socket_take(void *user, const ie_event *event)
{
    return inbox_put(user, event) ? IE_OK : IE_EHANDLER;
}

/* A bus with one subscriber that is known to it. */
static bool
socket_start(socket_side *side, const char *url, inbox *box)
{
    ie_bus_server_options server;
    ie_bus_client_options client;

    IE_BUS_SERVER_OPTIONS_INIT(&server);
    server.listen = &url;
    server.listen_count = 1;
    if (ie_bus_server_start(&side->server, &server, NULL) != IE_OK)
        return false;
    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = ie_bus_server_address(side->server, 0);
    return ie_bus_client_open(&side->client, &client, NULL) == IE_OK &&
           ie_bus_client_subscribe(side->client, ">", NULL, IE_BUS_SUBSCRIBE_ACK, socket_take, box,
                                   NULL, NULL) == IE_OK &&
           ie_bus_client_wait_subscribed(side->client, 10000, NULL) == IE_OK;
}

static void
socket_end(socket_side *side)
{
    ie_bus_client_close(side->client);
    ie_bus_server_close(side->server);
    memset(side, 0, sizeof *side);
}

static void *
socket_setup(void)
{
    static socket_peer peer;

    memset(&peer, 0, sizeof peer);
    inbox_init(&peer.box);
    (void)snprintf(peer.url_away, sizeof peer.url_away, "socket://127.0.0.1:%d", test_free_port());
    return socket_start(&peer.here, "socket://127.0.0.1:0", &peer.box) ? &peer : NULL;
}

static const char *
socket_url(void *peer)
{
    return ie_bus_server_address(((socket_peer *)peer)->here.server, 0);
}

static const char *
socket_url_away(void *peer)
{
    return ((socket_peer *)peer)->url_away;
}

static bool
socket_come(void *arg)
{
    socket_peer *peer = arg;

    return socket_start(&peer->late, peer->url_away, &peer->box);
}

static ie_event *
socket_receive(void *peer, int timeout_ms)
{
    return inbox_get(&((socket_peer *)peer)->box, timeout_ms);
}

static void
socket_teardown(void *arg)
{
    socket_peer *peer = arg;

    socket_end(&peer->here);
    socket_end(&peer->late);
    inbox_fini(&peer->box);
}
#endif

/* ---- a fake that answers later, from a thread of its own, and can be told to misbehave ---- */

typedef struct late_fake {
    ie_publisher_env *env;
    const char       *manners; /* what follows "fake:" */
    pthread_t         thread;
    pthread_mutex_t   lock;
    pthread_cond_t    changed;
    ie_outgoing       jobs[2048];
    size_t            count;
    size_t            done;
    bool              is_closing;
} late_fake;

static inbox fake_box;

static void
fake_answer(late_fake *fake, const ie_outgoing *job)
{
    const uint64_t ticket = job->ticket;
    const bool     is_kept = inbox_put(&fake_box, job->event);

    if (strcmp(fake->manners, "never") == 0 && ticket % 10 == 3)
        return;
    if (strcmp(fake->manners, "mute") == 0)
        ie_report(fake->env, ticket, IE_RETRY, NULL);
    else
        ie_report(fake->env, strcmp(fake->manners, "narrow") == 0 ? (uint32_t)ticket : ticket,
                  is_kept ? IE_DELIVERED : IE_RETRY, is_kept ? NULL : "out of memory");
    if (strcmp(fake->manners, "twice") == 0)
        ie_report(fake->env, ticket, IE_RETRY, "on second thought");
}

static void *
fake_run(void *arg)
{
    late_fake *fake = arg;

    (void)pthread_mutex_lock(&fake->lock);
    for (;;) {
        while (fake->done == fake->count && !fake->is_closing)
            (void)pthread_cond_wait(&fake->changed, &fake->lock);
        if (fake->is_closing)
            break; /* what is unanswered stays so */
        const ie_outgoing job = fake->jobs[fake->done++];

        (void)pthread_mutex_unlock(&fake->lock);
        fake_answer(fake, &job);
        (void)pthread_mutex_lock(&fake->lock);
    }
    (void)pthread_mutex_unlock(&fake->lock);
    return NULL;
}

static ie_status
fake_open(void **self, const char *url, ie_publisher_env *env, ie_error *err)
{
    late_fake *made;

    if (strchr(url, '?') != NULL)
        return ie_error_set(err, IE_EINVAL, "unknown option%s",
                            strstr(url, "shy") != NULL ? "" : " nonsense");
    made = calloc(1, sizeof *made);
    if (made == NULL)
        return ie_error_set(err, IE_ENOMEM, "out of memory");
    made->env = env;
    made->manners = strchr(url, ':') + 1;
    (void)pthread_mutex_init(&made->lock, NULL);
    (void)pthread_cond_init(&made->changed, NULL);
    if (pthread_create(&made->thread, NULL, fake_run, made) != 0) {
        free(made);
        return ie_error_set(err, IE_ENOMEM, "no thread");
    }
    if (strcmp(made->manners, "leaky") == 0)
        (void)dup(STDERR_FILENO);
    *self = made;
    return IE_OK;
}

static void
fake_publish(void *self, const ie_outgoing *events, size_t count)
{
    late_fake *fake = self;

    (void)pthread_mutex_lock(&fake->lock);
    for (size_t i = 0; i < count; i++)
        fake->jobs[fake->count++] = events[i];
    (void)pthread_cond_signal(&fake->changed);
    (void)pthread_mutex_unlock(&fake->lock);
}

static void
fake_close(void *self)
{
    late_fake *fake = self;

    (void)pthread_mutex_lock(&fake->lock);
    fake->is_closing = true;
    (void)pthread_cond_signal(&fake->changed);
    (void)pthread_mutex_unlock(&fake->lock);
    (void)pthread_join(fake->thread, NULL);
    (void)pthread_cond_destroy(&fake->changed);
    (void)pthread_mutex_destroy(&fake->lock);
    free(fake);
}

static const ie_publisher_ops FAKE = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "fake",
    .flags = IE_PUBLISHER_NONBLOCKING,
    .open = fake_open,
    .publish = fake_publish,
    .close = fake_close,
};

static const char *fake_manners = "fake:good";

static void *
fake_setup(void)
{
    inbox_init(&fake_box);
    return &fake_box;
}

static const char *
fake_url(void *peer)
{
    (void)peer;
    return fake_manners;
}

static ie_event *
fake_receive(void *peer, int timeout_ms)
{
    return inbox_get(peer, timeout_ms);
}

static void
fake_teardown(void *peer)
{
    inbox_fini(peer);
}

/* ---- the rows: a new publisher joins here ------------------------------------------------- */

static const ie_conformance_row ROWS[] = {
    {.name = "memory",
     .ops = &ie__publisher_memory,
     .setup = memory_setup,
     .url = memory_url,
     .url_away = memory_url_away,
     .come = memory_come,
     .receive = memory_receive,
     .teardown = memory_teardown,
     .bad_url = "memory:suite?nonsense=1",
     .bad_option = "nonsense"},
    {.name = "file",
     .ops = &ie__publisher_file,
     .setup = file_setup,
     .url = file_url,
     .url_away = file_url_away,
     .come = file_come,
     .receive = file_receive,
     .teardown = file_teardown,
     .bad_url = "file:///tmp/x?nonsense=1",
     .bad_option = "nonsense"},
    {.name = "fake",
     .ops = &FAKE,
     .setup = fake_setup,
     .url = fake_url,
     .receive = fake_receive,
     .teardown = fake_teardown,
     .bad_url = "fake:good?nonsense=1",
     .bad_option = "nonsense"},
#ifdef IE_HAVE_SOCKET_BUS
    {.name = "socket",
     .ops = &ie__publisher_socket,
     .setup = socket_setup,
     .url = socket_url,
     .url_away = socket_url_away,
     .come = socket_come,
     .receive = socket_receive,
     .teardown = socket_teardown,
     .bad_url = "socket://127.0.0.1:1?nonsense=1",
     .bad_option = "nonsense"},
#endif
};

#define ROW_COUNT ((int)(sizeof ROWS / sizeof ROWS[0]))

static int
case_count(void)
{
    int count = 0;

    while (ie_conformance_case_name((size_t)count) != NULL)
        count++;
    return count;
}

START_TEST(publisher_keeps_the_contract)
{
    const ie_conformance_row *row = &ROWS[_i / case_count()];
    const size_t              index = (size_t)(_i % case_count());
    char                      why[512];

    ck_assert_msg(ie_conformance_run(row, index, why, sizeof why), "%s: %s: %s", row->name,
                  ie_conformance_case_name(index), why);
}
END_TEST

/* The complaint of the suite about the fake with these manners in this case. */
static const char *
complaint_about(const char *manners, const char *case_name)
{
    static char        why[512];
    ie_conformance_row row = ROWS[2];
    size_t             index = 0;

    fake_manners = manners;
    row.wait_ms_max = 200;
    while (strcmp(ie_conformance_case_name(index), case_name) != 0)
        index++;
    ck_assert_msg(!ie_conformance_run(&row, index, why, sizeof why), "%s passed", manners);
    return why;
}

START_TEST(suite_catches_a_second_answer)
{
    ck_assert_ptr_nonnull(strstr(complaint_about("fake:twice", "batch_of_100"), "more than once"));
}
END_TEST

START_TEST(suite_catches_a_missing_answer)
{
    ck_assert_ptr_nonnull(
        strstr(complaint_about("fake:never", "batch_of_100"), "10 of 100 events were never"));
}
END_TEST

START_TEST(suite_catches_a_ticket_cut_to_32_bits)
{
    ck_assert_ptr_nonnull(strstr(complaint_about("fake:narrow", "batch_of_1"), "never answered"));
}
END_TEST

START_TEST(suite_catches_a_refusal_without_a_reason)
{
    ck_assert_ptr_nonnull(strstr(complaint_about("fake:mute", "batch_of_1"), "verdict 1"));
}
END_TEST

START_TEST(suite_catches_a_leaked_descriptor)
{
    ck_assert_ptr_nonnull(
        strstr(complaint_about("fake:leaky", "opens_and_closes_200_times"), "descriptors leak"));
}
END_TEST

START_TEST(suite_catches_an_unnamed_option)
{
    ie_conformance_row row = ROWS[2];
    char               why[512];
    size_t             index = 0;

    row.bad_url = "fake:shy?nonsense=1";
    while (strcmp(ie_conformance_case_name(index), "bad_option_is_refused_by_name") != 0)
        index++;
    ck_assert(!ie_conformance_run(&row, index, why, sizeof why));
    ck_assert_ptr_nonnull(strstr(why, "does not name nonsense"));
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("conformance");
    TCase   *rows = tcase_create("publishers");
    TCase   *fakes = tcase_create("suite");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(rows, 60);
    tcase_add_loop_test(rows, publisher_keeps_the_contract, 0, ROW_COUNT * case_count());
    suite_add_tcase(suite, rows);
    tcase_set_timeout(fakes, 60);
    tcase_add_test(fakes, suite_catches_a_second_answer);
    tcase_add_test(fakes, suite_catches_a_missing_answer);
    tcase_add_test(fakes, suite_catches_a_ticket_cut_to_32_bits);
    tcase_add_test(fakes, suite_catches_a_refusal_without_a_reason);
    tcase_add_test(fakes, suite_catches_a_leaked_descriptor);
    tcase_add_test(fakes, suite_catches_an_unnamed_option);
    suite_add_tcase(suite, fakes);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
