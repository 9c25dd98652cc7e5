/* SIGTERM for a bus with a hundred publishers at work: every publish is answered or told. */
#include <ie/bus.h>

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "support.h"

#define CLIENTS 100
#define WAIT_MS 60000

static pid_t          bus_pid;
static char           url[128];
static atomic_ulong   accepted; /* by ie_bus_client_publish() */
static atomic_ulong   answered;
static atomic_ulong   good; /* of these */
static atomic_ulong   handled;
static atomic_bool    is_over;
static ie_bus_client *clients[CLIENTS];

static void
bus_exec(int out)
{
    (void)dup2(out, STDOUT_FILENO);
    (void)execl(IE_COMMAND, "ie", "bus", "--listen", "socket://127.0.0.1:0", "--drain", "50s",
                "--quiet", (char *)NULL);
    _exit(127);
}

static void
bus_begin(void)
{
    int    pipe_fds[2];
    char   line[256] = "";
    size_t used = 0;

    ck_assert_int_eq(pipe(pipe_fds), 0);
    bus_pid = fork();
    ck_assert_int_ge(bus_pid, 0);
    if (bus_pid == 0)
        bus_exec(pipe_fds[1]);
    (void)close(pipe_fds[1]);
    while (strchr(line, '\n') == NULL) {
        struct pollfd in = {.fd = pipe_fds[0], .events = POLLIN};
        ssize_t       got;

        ck_assert_int_eq(poll(&in, 1, WAIT_MS), 1);
        got = read(pipe_fds[0], line + used, sizeof line - 1 - used);
        ck_assert_int_gt(got, 0);
        used += (size_t)got;
    }
    (void)close(pipe_fds[0]);
    ck_assert_int_eq(sscanf(line, "ie bus ready on %127s", url), 1);
}

static void
on_answer(void *user, const ie_bus_answer *answer)
{
    (void)user;
    if (answer->status == IE_OK)
        atomic_fetch_add(&good, 1);
    else
        ck_assert_uint_gt(strlen(answer->reason), 0);
    atomic_fetch_add(&answered, 1);
}

static ie_status
on_event(void *user, const ie_event *event)
{
    (void)user;
    (void)event;
    atomic_fetch_add(&handled, 1);
    return IE_OK;
}

static void *
publish_on_and_on(void *arg)
{
    (void)arg;
    while (!atomic_load(&is_over)) {
        for (int i = 0; i < CLIENTS; i++) {
            ie_event event = IE_EVENT_INIT;

            event.topic = "a.b";
            event.data = "1";
            event.data_bytes = 1;
            if (ie_bus_client_publish(clients[i], &event, 0, on_answer, NULL, NULL) == IE_OK)
                atomic_fetch_add(&accepted, 1);
        }
        (void)poll(NULL, 0, 1);
    }
    return NULL;
}

static bool
is_flowing(void *arg)
{
    (void)arg;
    return atomic_load(&good) > 2000;
}

static bool
has_ended(void *arg)
{
    return waitpid(bus_pid, arg, WNOHANG) == bus_pid;
}

static bool
all_answered(void *arg)
{
    (void)arg;
    return atomic_load(&answered) == atomic_load(&accepted);
}

START_TEST(every_publish_is_answered_or_told_and_the_bus_exits_with_0)
{
    ie_bus_client_options options;
    ie_bus_client        *subscriber = NULL;
    int                   status = -1;
    pthread_t             thread;
    int64_t               since_ms;

    bus_begin();
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.close_timeout_ms = 10; /* what waits for a bus that comes back is told at once */
    ck_assert_int_eq(ie_bus_client_open(&subscriber, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_subscribe(subscriber, "a.>", "g", 0, on_event, NULL, NULL, NULL),
                     IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(subscriber, WAIT_MS, NULL), IE_OK);
    for (int i = 0; i < CLIENTS; i++) {
        ck_assert_int_eq(ie_bus_client_open(&clients[i], &options, NULL), IE_OK);
        ck_assert_int_eq(ie_bus_client_wait_connected(clients[i], WAIT_MS, NULL), IE_OK);
    }
    ck_assert_int_eq(pthread_create(&thread, NULL, publish_on_and_on, NULL), 0);
    ck_assert(poll_until(is_flowing, NULL, WAIT_MS));

    since_ms = ie__mono_ns() / 1000000;
    ck_assert_int_eq(kill(bus_pid, SIGTERM), 0);
    ck_assert(poll_until(has_ended, &status, WAIT_MS));
    ck_assert_int_lt(ie__mono_ns() / 1000000 - since_ms, 50000);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);

    atomic_store(&is_over, true);
    (void)pthread_join(thread, NULL);
    for (int i = 0; i < CLIENTS; i++)
        ie_bus_client_close(clients[i]); /* what it still holds for later is told, too */
    ck_assert(poll_until(all_answered, NULL, WAIT_MS));
    ck_assert_uint_ge(atomic_load(&handled), atomic_load(&good)); /* acknowledged is handled */
    ie_bus_client_close(subscriber);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus_stop");
    TCase   *tcase = tcase_create("bus_stop");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, every_publish_is_answered_or_told_and_the_bus_exits_with_0);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
