#include "stage.h"

#include <check.h>
#include <ie/migrate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "support.h"

sqlite3    *stage_db;
const char *stage_path;

static ie_worker     *worker;
static ie_publishers *publishers;

/* ---- the publisher ---- */

static ie_status
script_open(void **self, const char *url, ie_publisher_env *env, ie_error *err)
{
    (void)url;
    (void)err;
    *self = env;
    return IE_OK;
}

static void
script_publish(void *self, const ie_outgoing *events, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *topic = events[i].event->topic;

        if (strncmp(topic, "retry.", 6) == 0)
            ie_report(self, events[i].ticket, IE_RETRY, "the receiver is busy");
        else if (strncmp(topic, "reject.", 7) == 0)
            ie_report(self, events[i].ticket, IE_REJECTED,
                      "the receiver does not know the field colour");
        else if (strncmp(topic, "down.", 5) == 0)
            ie_report(self, events[i].ticket, IE_UNREACHABLE, "connection refused");
        else if (strncmp(topic, "hang.", 5) != 0)
            ie_report(self, events[i].ticket, IE_DELIVERED, NULL);
    }
}

static void
script_close(void *self)
{
    (void)self;
}

static const ie_publisher_ops SCRIPT = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "stage",
    .flags = IE_PUBLISHER_NONBLOCKING,
    .open = script_open,
    .publish = script_publish,
    .close = script_close,
};

const ie_publishers *
stage_publishers(void)
{
    return publishers;
}

/* ---- the database ---- */

void
stage_open(void)
{
    (void)test_dir_make();
    stage_path = test_path("app.db");
    stage_db = test_db_open(stage_path);
    ck_assert_int_eq(ie_migrate_up(stage_db, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_new(&publishers, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_add(publishers, &SCRIPT, NULL), IE_OK);
}

void
stage_stop(void)
{
    (void)ie_worker_stop(worker, 100); /* what hangs is not waited for */
    ie_worker_close(worker);
    worker = NULL;
}

void
stage_close(void)
{
    stage_stop();
    ie_publishers_free(publishers);
    publishers = NULL;
    ck_assert_int_eq(sqlite3_close(stage_db), SQLITE_OK);
    test_dir_remove();
}

const char *
stage_publish(const char *columns, const char *values)
{
    static char ids[16][IE_ID_BYTES_MAX + 1];
    static int  next;
    char       *id = ids[next++ % 16];
    char        sql[1024];

    (void)snprintf(sql, sizeof sql, "INSERT INTO ie_event (%s) VALUES (%s) RETURNING id", columns,
                   values);
    (void)snprintf(id, sizeof ids[0], "%s", test_text(stage_db, sql));
    ck_assert_str_ne(id, "");
    return id;
}

/* ---- the worker ---- */

void
stage_options(ie_worker_options *options)
{
    IE_WORKER_OPTIONS_INIT(options);
    options->db = stage_path;
    options->to = "stage:";
    options->publishers = publishers;
    options->retry_delay_ms = 60000;
    options->breaker_delay_ms = 60000;
    options->breaker_delay_max_ms = 60000;
}

void
stage_start(const ie_worker_options *options)
{
    ie_worker_options own;
    ie_error          error = IE_ERROR_INIT;

    stage_options(&own);
    ck_assert_msg(ie_worker_start(&worker, options != NULL ? options : &own, &error) == IE_OK, "%s",
                  error.message);
}

/* ---- asking ---- */

static void
keep_answer(void *user, const ie_why *why)
{
    stage_why *out = user;

    out->count++;
    out->code = why->code;
    (void)snprintf(out->name, sizeof out->name, "%s", why->code_name);
    (void)snprintf(out->cursor, sizeof out->cursor, "%s", why->cursor);
    (void)snprintf(out->sentence, sizeof out->sentence, "%s", why->sentence);
    (void)snprintf(out->evidence, sizeof out->evidence, "%s", why->evidence);
    (void)snprintf(out->next, sizeof out->next, "%s", why->next);
}

ie_status
stage_ask(stage_why *out, const char *id, const char *cursor)
{
    memset(out, 0, sizeof *out);
    return ie_why_event(stage_db, id, cursor, "app.db", keep_answer, out, NULL);
}

typedef struct waiting {
    stage_why  *out;
    const char *id;
    ie_why_code code;
} waiting;

static bool
is_answered(void *arg)
{
    waiting *at = arg;

    return stage_ask(at->out, at->id, NULL) == IE_OK && at->out->code == at->code;
}

void
stage_expect(stage_why *out, const char *id, ie_why_code code)
{
    waiting at = {out, id, code};

    ck_assert_msg(poll_until(is_answered, &at, 10000), "expected code %d, got %s: %s (%s)",
                  (int)code, out->name, out->sentence, out->evidence);
}
