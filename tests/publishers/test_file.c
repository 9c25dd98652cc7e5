/* file:///PATH where things go wrong: torn lines, full disks, locks, rotation. */
#include <check.h>
#include <ie/cloudevents.h>
#include <ie/publisher_env.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "file_publisher.h"
#include "support.h"

#define EVENTS_MAX 3000

static ie_publisher_env *env;
static ie_verdict        verdicts[EVENTS_MAX];
static char              reason[300];   /* the last one */
static char              warning[1100]; /* the last log line */
static unsigned          report_count;
static ie_event          events[EVENTS_MAX];
static char              ids[EVENTS_MAX][16];
static ie_outgoing       batch[EVENTS_MAX];
static char              url[700];
static const char       *path;

static void
note(void *user, uint64_t ticket, ie_verdict verdict, const char *why, uint32_t delay_ms)
{
    (void)user;
    (void)delay_ms;
    if (ticket < EVENTS_MAX)
        verdicts[ticket] = verdict;
    if (why != NULL)
        (void)snprintf(reason, sizeof reason, "%s", why);
    report_count++;
}

static void
note_log(void *user, ie_log_level level, const char *module, const char *message)
{
    (void)user;
    (void)module;
    if (level <= IE_LOG_WARN)
        (void)snprintf(warning, sizeof warning, "%s", message);
}

static void
begin(void)
{
    const ie_logger logger = {note_log, NULL};

    (void)test_dir_make();
    path = test_path("events.jsonl");
    (void)snprintf(url, sizeof url, "file://%s", path);
    ck_assert_int_eq(ie_publisher_env_new(&env, note, NULL, &logger, NULL), IE_OK);
    for (size_t i = 0; i < EVENTS_MAX; i++) {
        (void)snprintf(ids[i], sizeof ids[i], "id-%zu", i);
        events[i] = (ie_event){.size = sizeof(ie_event),
                               .topic = "orders.placed",
                               .id = ids[i],
                               .type = "orders.placed",
                               .source = "/test",
                               .content_type = "application/json",
                               .data = "{\"n\":1}",
                               .data_bytes = 7,
                               .time_ms = 1784000000000};
        batch[i] = (ie_outgoing){.event = &events[i], .ticket = i, .attempt = 1};
    }
}

static void
finish(void)
{
    ie_publisher_env_free(env);
    test_dir_remove();
}

static void *
file_open(void)
{
    ie_error err = IE_ERROR_INIT;
    void    *file = NULL;

    ck_assert_msg(ie__publisher_file.open(&file, url, env, &err) == IE_OK, "%s", err.message);
    return file;
}

/* Publish the first count events and expect one verdict for all. */
static void
publish_expect(void *file, size_t count, ie_verdict verdict)
{
    report_count = 0;
    ie__publisher_file.publish(file, batch, count);
    ck_assert_uint_eq(report_count, count);
    for (size_t i = 0; i < count; i++)
        ck_assert_msg(verdicts[i] == verdict, "event %zu: %d (%s)", i, (int)verdicts[i], reason);
}

static void
content_write(const char *text)
{
    FILE *file = fopen(path, "we");

    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

static off_t
size_of(const char *name)
{
    struct stat st;

    ck_assert_int_eq(stat(name, &st), 0);
    return st.st_size;
}

/* Each line decodes; gives their number. */
static size_t
lines_in(const char *name)
{
    FILE   *file = fopen(name, "re");
    char   *line = NULL;
    size_t  capacity = 0;
    size_t  count = 0;
    ssize_t bytes;

    ck_assert_ptr_nonnull(file);
    while ((bytes = getline(&line, &capacity, file)) > 0) {
        ie_event *event = NULL;
        ie_error  err = IE_ERROR_INIT;

        ck_assert_int_eq(line[bytes - 1], '\n');
        ck_assert_msg(ie_cloudevents_decode(&event, line, (size_t)bytes - 1, &err) == IE_OK, "%s",
                      err.message);
        ie_event_free(event);
        count++;
    }
    free(line);
    (void)fclose(file);
    return count;
}

START_TEST(file_is_made_for_the_owner_only)
{
    struct stat st;
    void       *file = file_open();

    publish_expect(file, 2, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0600);
    ck_assert_uint_eq(lines_in(path), 2);
    file = file_open(); /* appends */
    publish_expect(file, EVENTS_MAX, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), EVENTS_MAX + 2);
}
END_TEST

START_TEST(torn_last_line_is_cut_off)
{
    void *file = file_open();
    char *torn;

    publish_expect(file, 2, IE_DELIVERED);
    ie__publisher_file.close(file);
    /* Long enough to need several blocks when looking for its start. */
    torn = malloc(20001);
    memset(torn, 'x', 20000);
    torn[0] = '{';
    torn[20000] = '\0';
    {
        FILE *half = fopen(path, "ae");

        ck_assert_ptr_nonnull(half);
        ck_assert_int_ge(fputs(torn, half), 0);
        ck_assert_int_eq(fclose(half), 0);
    }
    free(torn);
    file = file_open();
    ck_assert_ptr_nonnull(strstr(warning, "cut a torn last line of 20000 bytes"));
    publish_expect(file, 1, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 3);
}
END_TEST

START_TEST(torn_first_line_is_cut_off)
{
    void *file;

    content_write("{\"specversion\":\"1.");
    file = file_open();
    publish_expect(file, 1, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 1);
}
END_TEST

START_TEST(file_of_someone_else_is_not_cut)
{
    void *file;

    content_write("root:x:0:0\nlast line without an end");
    file = file_open();
    publish_expect(file, 1, IE_UNREACHABLE);
    ck_assert_ptr_nonnull(strstr(reason, "ends with something that is not an event"));
    ie__publisher_file.close(file);
    ck_assert_int_eq(size_of(path), 35);
}
END_TEST

START_TEST(second_writer_is_unreachable_until_the_first_leaves)
{
    void *first = file_open();
    void *second = file_open();

    publish_expect(first, 1, IE_DELIVERED);
    publish_expect(second, 1, IE_UNREACHABLE);
    ck_assert_ptr_nonnull(strstr(reason, "events.jsonl is locked by another process"));
    ie__publisher_file.close(first);
    publish_expect(second, 1, IE_DELIVERED);
    ie__publisher_file.close(second);
    ck_assert_uint_eq(lines_in(path), 2);
}
END_TEST

START_TEST(rotated_file_is_opened_anew)
{
    const char *old = test_path("events.jsonl.1");
    void       *file = file_open();

    publish_expect(file, 3, IE_DELIVERED);
    ck_assert_int_eq(rename(path, old), 0);
    publish_expect(file, 2, IE_DELIVERED);
    ck_assert_uint_eq(lines_in(old), 3);
    ck_assert_uint_eq(lines_in(path), 2);
    ck_assert_int_eq(unlink(path), 0); /* removed counts as moved */
    publish_expect(file, 1, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 1);
}
END_TEST

/* A limit on the size of files is the full disk that a test can have. */
START_TEST(full_disk_leaves_whole_lines_and_nothing_unacknowledged)
{
    struct rlimit limit;
    void         *file = file_open();
    off_t         good;

    publish_expect(file, 2, IE_DELIVERED);
    good = size_of(path);
    ck_assert(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = (rlim_t)good + 1000; /* room for half of the batch */
    report_count = 0;
    /* No assertion while the limit holds: check notes each one in a file of its own. */
    (void)setrlimit(RLIMIT_FSIZE, &limit);
    ie__publisher_file.publish(file, batch, 100);
    limit.rlim_cur = limit.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_uint_eq(report_count, 100);
    for (size_t i = 0; i < 100; i++)
        ck_assert_int_eq(verdicts[i], IE_UNREACHABLE);
    ck_assert_ptr_nonnull(strstr(reason, "write "));
    ck_assert_ptr_nonnull(strstr(reason, "File too large"));
    ck_assert_int_eq(size_of(path), good);
    publish_expect(file, 100, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 102);
}
END_TEST

START_TEST(event_that_cannot_be_encoded_is_rejected_alone)
{
    void *file = file_open();

    events[1].source = NULL;
    report_count = 0;
    ie__publisher_file.publish(file, batch, 3);
    ck_assert_uint_eq(report_count, 3);
    ck_assert_int_eq(verdicts[0], IE_DELIVERED);
    ck_assert_int_eq(verdicts[1], IE_REJECTED);
    ck_assert_ptr_nonnull(strstr(reason, "source"));
    ck_assert_int_eq(verdicts[2], IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 2);
}
END_TEST

START_TEST(payload_printed_over_lines_is_one_line)
{
    void *file = file_open();

    events[0].data = "{\r\n  \"a\": \"\\n\",\n\t\"b\": [1,\n2]\n}\n";
    events[0].data_bytes = strlen(events[0].data);
    publish_expect(file, 2, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 2);
}
END_TEST

START_TEST(large_batch_goes_out_in_parts)
{
    char *data = malloc(IE_DATA_BYTES_MAX);
    void *file = file_open();

    memset(data, 'x', IE_DATA_BYTES_MAX);
    for (size_t i = 0; i < 20; i++) {
        events[i].content_type = "text/plain";
        events[i].data = data;
        events[i].data_bytes = IE_DATA_BYTES_MAX;
    }
    publish_expect(file, 20, IE_DELIVERED);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 20);
    free(data);
}
END_TEST

START_TEST(what_is_no_regular_file_is_unreachable)
{
    void *file;

    ck_assert_int_eq(mkfifo(path, 0600), 0);
    file = file_open(); /* does not hang */
    publish_expect(file, 1, IE_UNREACHABLE);
    ck_assert_ptr_nonnull(strstr(reason, "not a regular file"));
    ie__publisher_file.close(file);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    file = file_open();
    publish_expect(file, 1, IE_UNREACHABLE);
    ck_assert_ptr_nonnull(strstr(reason, "Is a directory"));
    ie__publisher_file.close(file);
}
END_TEST

START_TEST(bad_urls_are_refused)
{
    static const char *const BAD[] = {"file:relative", "file://host/path", "file:///",
                                      "file:", "file:///tmp/x?fsync=maybe"};

    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        ie_error err = IE_ERROR_INIT;
        void    *file = NULL;

        ck_assert_msg(ie__publisher_file.open(&file, BAD[i], env, &err) == IE_EINVAL,
                      "'%s' was taken", BAD[i]);
        ck_assert_str_ne(err.message, "");
    }
}
END_TEST

START_TEST(every_allocation_may_fail)
{
    void     *file = NULL;
    ie_status status;

    ie__alloc_fail_at(1, false);
    status = ie__publisher_file.open(&file, url, env, NULL);
    ie__alloc_fail_at(0, false);
    ck_assert_int_eq(status, IE_ENOMEM);
    file = file_open();
    for (uint64_t n = 1; n < 100; n++) {
        ie__alloc_fail_at(n, false);
        report_count = 0;
        ie__publisher_file.publish(file, batch, 20);
        if (ie__alloc_failed() == 0)
            break;
        ie__alloc_fail_at(0, false);
        ck_assert_uint_eq(report_count, 20);
        for (size_t i = 0; i < 20; i++)
            ck_assert_int_eq(verdicts[i], IE_UNREACHABLE);
        ck_assert_int_eq(size_of(path), 0);
    }
    ie__alloc_fail_at(0, false);
    ck_assert_uint_eq(report_count, 20);
    ie__publisher_file.close(file);
    ck_assert_uint_eq(lines_in(path), 20);
}
END_TEST

START_TEST(without_fsync_lines_are_written_all_the_same)
{
    void *file = NULL;

    (void)snprintf(url, sizeof url, "file://%s?fsync=false", path);
    file = file_open();
    publish_expect(file, 5, IE_DELIVERED);
    ck_assert_uint_eq(lines_in(path), 5);
    ie__publisher_file.close(file);
}
END_TEST

/* Publishes for ever and tells each acknowledged batch through the pipe; ends by a signal. */
static void
child_publish(int acknowledged)
{
    void *file = NULL;

    if (ie__publisher_file.open(&file, url, env, NULL) != IE_OK)
        _exit(1);
    for (;;) {
        report_count = 0;
        ie__publisher_file.publish(file, batch, 50);
        for (size_t i = 0; i < 50; i++)
            if (verdicts[i] != IE_DELIVERED)
                _exit(1);
        if (write(acknowledged, "+", 1) != 1)
            _exit(1);
    }
}

START_TEST(killed_writer_loses_nothing_that_it_acknowledged)
{
    size_t batches = 0;
    size_t lines;

    for (uint64_t round = 0; round < test_scale(20); round++) {
        int     ends[2];
        char    marks[4096];
        pid_t   child;
        int     state = 0;
        ssize_t got;

        ck_assert_int_eq(pipe(ends), 0);
        child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) {
            (void)close(ends[0]);
            child_publish(ends[1]);
        }
        (void)close(ends[1]);
        /* After some batches, at any point of the next one. */
        for (uint64_t wanted = 1 + ie__random_below(10); wanted > 0; wanted--) {
            ck_assert_int_eq(read(ends[0], marks, 1), 1);
            batches++;
        }
        (void)poll(NULL, 0, (int)ie__random_below(3));
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        ck_assert_int_eq(waitpid(child, &state, 0), child);
        ck_assert(WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL);
        while ((got = read(ends[0], marks, sizeof marks)) > 0)
            batches += (size_t)got;
        (void)close(ends[0]);
        ie__publisher_file.close(file_open()); /* repairs */
        lines = lines_in(path);
        ck_assert_uint_ge(lines, batches * 50);
        /* What was written and not acknowledged may be there: that is "at least once". */
        ck_assert_uint_le(lines, (batches + round + 1) * 50);
    }
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("file");
    TCase   *cases = tcase_create("file");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(cases, begin, finish);
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, file_is_made_for_the_owner_only);
    tcase_add_test(cases, torn_last_line_is_cut_off);
    tcase_add_test(cases, torn_first_line_is_cut_off);
    tcase_add_test(cases, file_of_someone_else_is_not_cut);
    tcase_add_test(cases, second_writer_is_unreachable_until_the_first_leaves);
    tcase_add_test(cases, rotated_file_is_opened_anew);
    tcase_add_test(cases, full_disk_leaves_whole_lines_and_nothing_unacknowledged);
    tcase_add_test(cases, event_that_cannot_be_encoded_is_rejected_alone);
    tcase_add_test(cases, payload_printed_over_lines_is_one_line);
    tcase_add_test(cases, large_batch_goes_out_in_parts);
    tcase_add_test(cases, what_is_no_regular_file_is_unreachable);
    tcase_add_test(cases, bad_urls_are_refused);
    tcase_add_test(cases, every_allocation_may_fail);
    tcase_add_test(cases, without_fsync_lines_are_written_all_the_same);
    tcase_add_test(cases, killed_writer_loses_nothing_that_it_acknowledged);
    suite_add_tcase(suite, cases);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
