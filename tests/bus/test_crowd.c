/* Many connections: a crowd that comes at once, what an idle one costs, descriptors that run out.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bus_support.h"
#include "core.h"

#define CROWD     5000
#define IDLE_KIB  6 /* that an idle connection may cost the bus */
#define EMPTY_KIB 8192
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define MEMORY_IS_OURS 0 /* the sanitizer's shadow is in it too */
#else
#define MEMORY_IS_OURS 1
#endif
#define GRACE_KIB 512 /* of the whole process: the allocator rounds */

static long
rss_kib(void)
{
    FILE *file = fopen("/proc/self/status", "r");
    char  line[256];
    long  kib = 0;

    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmRSS: %ld kB", &kib) == 1)
            break;
    (void)fclose(file);
    return kib;
}

/* Raise the limit to what is allowed; returns how many connections fit, at most wanted. */
static size_t
fit_descriptors(size_t wanted)
{
    struct rlimit limit;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur < wanted + 200) {
        printf("only %llu descriptors are allowed\n", (unsigned long long)limit.rlim_cur);
        return limit.rlim_cur - 200;
    }
    return wanted;
}

/* ---- the clients' process ------------------------------------------------------------------- */

static void
send_hello(int fd)
{
    unsigned char bytes[256];
    ie_buffer     buffer = {NULL, 0, 0};
    ie__builder   b;

    ie__greeting_put(bytes, IE__SP_EB2_CLIENT);
    ie__frame_prefix(bytes + IE__GREETING_BYTES, IE__HELLO, 0, 0);
    raw_send(fd, bytes, IE__GREETING_BYTES + IE__PREFIX_BYTES);
    ie__build_begin(&b, &buffer, IE__SUBSCRIBE, 1);
    ie__build_text(&b, IE__F_PATTERN, "idle.>");
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
}

/* All come at once, as after a restart of the bus: connect without waiting, then say hello. Every
 * one must be served. Then tell how long it took, and stay until the parent hangs up. */
static void
crowd_run(const ie_bus_server *server, size_t count, int report, int end)
{
    int          *fds = calloc(count, sizeof *fds);
    const int64_t begin_ns = ie__mono_ns();
    long          took_ms;
    char          byte;

    ck_assert_ptr_nonnull(fds);
    for (size_t i = 0; i < count; i++) {
        fds[i] = raw_connect(server);
        ck_assert_int_ge(fds[i], 0);
        send_hello(fds[i]);
    }
    for (size_t i = 0; i < count; i++) {
        unsigned char greeting[IE__GREETING_BYTES];

        ck_assert(raw_receive(fds[i], greeting, sizeof greeting));
        (void)raw_expect(fds[i], IE__WELCOME);
        (void)raw_expect(fds[i], IE__SUBSCRIBED);
    }
    took_ms = (long)((ie__mono_ns() - begin_ns) / 1000000);
    ck_assert_int_eq((int)write(report, &took_ms, sizeof took_ms), (int)sizeof took_ms);
    (void)read(end, &byte, 1); /* the parent is done */
    _exit(0);
}

START_TEST(a_crowd_connects_at_once_and_costs_little)
{
    const size_t          count = fit_descriptors(CROWD);
    const long            before_kib = rss_kib();
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   report[2];
    int                   end[2];
    long                  empty_kib;
    long                  full_kib;
    long                  took_ms = 0;
    pid_t                 child;
    int                   status;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.connections_max = CROWD + 10;
    options.ping_interval_ms = 600000; /* the children answer none */
    server = bus_start(&options);
    empty_kib = rss_kib();
    printf("an empty bus: %ld KiB in the process, %ld KiB more than before\n", empty_kib,
           empty_kib - before_kib);
    if (MEMORY_IS_OURS)
        ck_assert_int_lt(empty_kib, EMPTY_KIB);
    ck_assert_int_eq(pipe2(report, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(end, O_CLOEXEC), 0);
    child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        (void)close(end[1]);
        crowd_run(server, count, report[1], end[0]);
    }
    (void)close(report[1]);
    ck_assert_msg(read(report[0], &took_ms, sizeof took_ms) == (ssize_t)sizeof took_ms,
                  "not everybody was served");
    full_kib = rss_kib();
    CK_BUS_STAT(server, connections, count);
    CK_BUS_STAT(server, subscriptions, count);
    ck_assert_uint_eq(bus_stats(server).refused, 0);
    CK_BUS_STAT(server, timed_out, 0);
    printf("%zu connections with a subscription: served in %ld ms, %.2f KiB each\n", count, took_ms,
           (double)(full_kib - empty_kib) / (double)count);
    ck_assert_int_lt(took_ms, WAIT_MS);
    if (MEMORY_IS_OURS)
        ck_assert_int_le(full_kib - empty_kib, (long)(IDLE_KIB * count) + GRACE_KIB);
    (void)close(end[1]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    (void)close(end[0]);
    (void)close(report[0]);
    ie_bus_server_close(server);
}
END_TEST

/* ---- those who take the places and say nothing ---------------------------------------------- */

START_TEST(silent_peers_do_not_keep_others_out)
{
    enum { SILENT = 40, PLACES = 8 };
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   silent[SILENT];
    int                   honest;
    int64_t               began_ns;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.unauthenticated_max = PLACES;
    server = bus_start(&options);
    for (int i = 0; i < SILENT; i++) {
        silent[i] = raw_connect(server);
        ck_assert_int_ge(silent[i], 0);
        raw_send(silent[i], "", (size_t)(i % 2)); /* some begin, and stop there */
    }
    began_ns = ie__mono_ns();
    honest = raw_open(server); /* all 40 are before it */
    printf("%d silent peers on %d places: an honest one waited %lld ms\n", SILENT, PLACES,
           (long long)((ie__mono_ns() - began_ns) / 1000000));
    ck_assert_uint_eq(bus_stats(server).refused, 0);
    ck_assert_uint_ge(bus_stats(server).timed_out, SILENT - PLACES);
    for (int i = 0; i < SILENT; i++)
        (void)close(silent[i]);
    (void)close(honest);
    ie_bus_server_close(server);
}
END_TEST

START_TEST(with_a_place_left_the_silent_have_their_time)
{
    ie_bus_server_options options;
    ie_bus_server        *server;
    int                   silent[3];
    struct pollfd         poller = {.events = POLLIN};

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.unauthenticated_max = 4;
    server = bus_start(&options);
    for (int i = 0; i < 3; i++)
        silent[i] = raw_connect(server);
    for (int i = 0; i < 20; i++)
        (void)close(raw_open(server));
    poller.fd = silent[0];
    ck_assert_int_eq(poll(&poller, 1, 600), 0); /* longer than the grace under pressure */
    CK_BUS_STAT(server, timed_out, 0);
    for (int i = 0; i < 3; i++)
        (void)close(silent[i]);
    ie_bus_server_close(server);
}
END_TEST

/* ---- descriptors ---------------------------------------------------------------------------- */

static long
cpu_ms(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
}

static bool
is_served(int fd, int wait_ms)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};

    return poll(&poller, 1, wait_ms) == 1 && (poller.revents & POLLIN) != 0;
}

/* The clients have a process of their own: the limit is the bus's alone. It says "f" when some of
 * them wait for the bus, which has none left; then, told to go on, it hangs up with half of them
 * and must see the rest served. */
static void
fds_child(const ie_bus_server *server, int report, int go)
{
    enum { CLIENTS = 120 };
    struct rlimit limit = {1024, 1024};
    int           fds[CLIENTS];
    bool          served[CLIENTS] = {false};
    size_t        count = 0;
    char          byte = 'f';

    (void)setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = raw_connect(server);
        ck_assert_int_ge(fds[i], 0);
        send_hello(fds[i]);
    }
    for (int i = 0; i < CLIENTS; i++)
        count += served[i] = is_served(fds[i], count <= 10 ? WAIT_MS : served[i - 1] ? 2000 : 0);
    ck_assert_uint_gt(count, 10);
    ck_assert_uint_lt(count, CLIENTS);
    ck_assert_int_eq((int)write(report, &byte, 1), 1);
    (void)read(go, &byte, 1);
    for (int i = 0; i < CLIENTS; i++)
        if (served[i])
            (void)close(fds[i]);
    for (int i = 0; i < CLIENTS; i++) {
        if (served[i])
            continue;
        ck_assert_msg(is_served(fds[i], WAIT_MS), "client %d of %d was never served", i, CLIENTS);
        (void)close(fds[i]);
    }
    _exit(0);
}

START_TEST(a_bus_without_descriptors_lets_them_wait_and_burns_nothing)
{
    struct rlimit  limit;
    ie_bus_server *server = bus_start_default();
    int            report[2];
    int            go[2];
    long           before_ms;
    int            dups[64];
    size_t         dup_count = 0;
    char           byte = 0;
    int            status;
    pid_t          child;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < 1024)
        return; /* nothing to take away here */
    ck_assert_int_eq(pipe2(report, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(go, O_CLOEXEC), 0);
    child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        (void)close(go[1]);
        fds_child(server, report[1], go[0]);
    }
    limit.rlim_cur = 64;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    (void)close(report[1]);
    ck_assert_msg(read(report[0], &byte, 1) == 1 && byte == 'f', "the clients failed");
    if (_i == 1) { /* nothing is left at all, not even for libuv */
        while ((dups[dup_count] = dup(report[0])) >= 0)
            dup_count++;
        ck_assert_int_eq(errno, EMFILE);
    }
    before_ms = cpu_ms();
    ck_assert_int_eq(poll(NULL, 0, 1000), 0); /* what a busy loop would burn in a second */
    printf("out of descriptors: %ld ms of CPU in a second\n", cpu_ms() - before_ms);
    ck_assert_int_lt(cpu_ms() - before_ms, 300);
    while (dup_count > 0)
        (void)close(dups[--dup_count]);
    (void)close(go[1]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ie_bus_server_close(server);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus crowd");
    TCase   *tcase = tcase_create("crowd");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, a_crowd_connects_at_once_and_costs_little);
    tcase_add_test(tcase, silent_peers_do_not_keep_others_out);
    tcase_add_test(tcase, with_a_place_left_the_silent_have_their_time);
    tcase_add_loop_test(tcase, a_bus_without_descriptors_lets_them_wait_and_burns_nothing, 0, 2);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
