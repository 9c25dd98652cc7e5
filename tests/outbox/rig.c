#include "rig.h"

#include <check.h>
#include <errno.h>
#include <ie/migrate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

rig the_rig;

static void
on_published(void *user, const char *destination, const ie_event *event)
{
    rig *r = user;

    (void)destination;
    ck_assert_ptr_nonnull(event->id);
    atomic_fetch_add(&r->published, 1);
}

static void
on_dead(void *user, const char *destination, const ie_event *event, const char *reason)
{
    rig *r = user;

    (void)destination;
    (void)snprintf(r->last_reason, sizeof r->last_reason, "%s", reason);
    (void)snprintf(r->last_dead_id, sizeof r->last_dead_id, "%s",
                   event->id != NULL ? event->id : "");
    atomic_fetch_add(&r->dead, 1);
}

static void
on_expired(void *user, const char *destination, const ie_event *event)
{
    rig *r = user;

    (void)destination;
    (void)event;
    atomic_fetch_add(&r->expired, 1);
}

static void
on_error(void *user, ie_status status, const char *message)
{
    rig *r = user;

    (void)snprintf(r->last_error, sizeof r->last_error, "%s", message);
    atomic_store(&r->last_status, (int)status); /* the words are there by now */
    atomic_fetch_add(&r->errors, 1);
}

static void
log_line(void *user, ie_log_level level, const char *module, const char *message)
{
    (void)user;
    (void)fprintf(stderr, "%d %s: %s\n", (int)level, module, message);
}

void
rig_db_open(void)
{
    ie_outbox_options options;

    IE_OUTBOX_OPTIONS_INIT(&options);
    the_rig.db = test_db_open(the_rig.path);
    ck_assert_int_eq(ie_migrate_up(the_rig.db, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_outbox_open(&the_rig.outbox, the_rig.db, &options, NULL), IE_OK);
}

void
rig_db_close(void)
{
    ie_outbox_close(the_rig.outbox);
    the_rig.outbox = NULL;
    ck_assert_int_eq(sqlite3_close(the_rig.db), SQLITE_OK);
    the_rig.db = NULL;
}

void
rig_setup(void)
{
    ie_worker_options *options = &the_rig.options;

    memset(&the_rig, 0, sizeof the_rig);
    (void)test_dir_make();
    (void)snprintf(the_rig.path, sizeof the_rig.path, "%s", test_path("app.db"));
    rig_db_open();
    /* What the tests measure is the worker; the application's own fsyncs only make them slow. */
    test_exec(the_rig.db, "PRAGMA synchronous=NORMAL");
    ck_assert_int_eq(ie_publishers_new(&the_rig.publishers, ie_publishers_builtin(), NULL), IE_OK);
    fake_register(the_rig.publishers);
    the_rig.fake = fake_new("a");
    IE_WORKER_OPTIONS_INIT(options);
    options->db = the_rig.path;
    options->to = "fake:a";
    options->publishers = the_rig.publishers;
    options->on_published = on_published;
    options->on_dead = on_dead;
    options->on_expired = on_expired;
    options->on_error = on_error;
    options->user = &the_rig;
    options->retry_delay_ms = 1;
    options->retry_delay_max_ms = 20;
    options->breaker_delay_ms = 5;
    options->breaker_delay_max_ms = 20;
    options->mark_delay_ms = 1;
    if (getenv("IE_TEST_LOG") != NULL)
        options->logger.fn = log_line;
}

void
rig_teardown(void)
{
    ck_assert_str_eq(fake_complaint(the_rig.fake), "");
    if (the_rig.db != NULL)
        rig_db_close();
    ie_publishers_free(the_rig.publishers);
    fake_free(the_rig.fake);
    test_dir_remove();
}

void
rig_virtual(void)
{
    test_clock_init(&the_rig.clock, INT64_C(1795262400000));
    the_rig.options.clock = &the_rig.clock.clock;
}

static void
publish(const char *topic, const char *key, const char *data)
{
    ie_event event = IE_EVENT_INIT;
    ie_error error = IE_ERROR_INIT;

    event.topic = topic;
    event.key = key;
    event.data = data;
    event.data_bytes = strlen(data);
    ck_assert_msg(ie_publish(the_rig.outbox, &event, NULL, &error) == IE_OK, "%s", error.message);
}

int64_t
rig_publish(const char *topic, const char *key)
{
    test_exec(the_rig.db, "BEGIN IMMEDIATE");
    publish(topic, key, "{\"n\":1}");
    test_exec(the_rig.db, "COMMIT");
    return rig_newest();
}

void
rig_publish_many(uint64_t count, uint64_t keys)
{
    char topic[32];
    char key[32];
    char data[64];

    for (uint64_t i = 0; i < count; i++) {
        if (i % 500 == 0)
            test_exec(the_rig.db, "BEGIN IMMEDIATE");
        (void)snprintf(topic, sizeof topic, "t.%llu",
                       (unsigned long long)(keys != 0 ? i % keys : i));
        (void)snprintf(key, sizeof key, "k%llu", (unsigned long long)(keys != 0 ? i % keys : 0));
        (void)snprintf(data, sizeof data, "{\"i\":%llu}", (unsigned long long)i);
        publish(topic, keys != 0 ? key : NULL, data);
        if (i % 500 == 499 || i + 1 == count)
            test_exec(the_rig.db, "COMMIT");
    }
}

ie_worker *
rig_worker(void)
{
    ie_worker *worker = NULL;
    ie_error   error = IE_ERROR_INIT;

    ck_assert_msg(ie_worker_open(&worker, &the_rig.options, &error) == IE_OK, "%s", error.message);
    return worker;
}

ie_worker *
rig_start(void)
{
    ie_worker *worker = NULL;
    ie_error   error = IE_ERROR_INIT;

    ck_assert_msg(ie_worker_start(&worker, &the_rig.options, &error) == IE_OK, "%s", error.message);
    return worker;
}

ie_status
rig_run_on(ie_worker *worker, ie_worker_report *report)
{
    ie_error        error = IE_ERROR_INIT;
    const ie_status status = ie_worker_run_once(worker, 20000, report, &error);

    if (status != IE_OK)
        (void)snprintf(the_rig.last_error, sizeof the_rig.last_error, "%s", error.message);
    return status;
}

ie_status
rig_run(ie_worker_report *report)
{
    ie_worker      *worker = rig_worker();
    const ie_status status = rig_run_on(worker, report);

    ie_worker_close(worker);
    return status;
}

int64_t
rig_deliveries(const char *state)
{
    char sql[128];

    (void)snprintf(sql, sizeof sql, "SELECT count(*) FROM ie_delivery WHERE state = '%s'", state);
    return test_int(the_rig.db, sql);
}

int64_t
rig_cursor(void)
{
    return test_int(the_rig.db, "SELECT position FROM ie_cursor WHERE name = 'outbox'");
}

int64_t
rig_newest(void)
{
    return test_int(the_rig.db, "SELECT max(position) FROM ie_event");
}

static bool
has_distinct(void *arg)
{
    return fake_distinct(the_rig.fake) >= *(uint64_t *)arg;
}

bool
rig_wait_distinct(uint64_t count, int wait_ms_max)
{
    return poll_until(has_distinct, &count, wait_ms_max);
}

pid_t
rig_fork(void (*body)(void *arg), void *arg)
{
    const bool had_db = the_rig.db != NULL;
    pid_t      pid;

    if (had_db)
        rig_db_close(); /* SQLite must not be carried over a fork */
    pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        body(arg);
        _exit(0);
    }
    if (had_db)
        rig_db_open();
    return pid;
}

int
rig_reap(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0)
        ck_assert_int_eq(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

ie_destination_stats
rig_stats(ie_worker *worker, size_t index)
{
    ie_destination_stats stats = {.size = sizeof stats};

    ck_assert_int_eq(ie_worker_get_destination_stats(worker, index, &stats), IE_OK);
    return stats;
}
