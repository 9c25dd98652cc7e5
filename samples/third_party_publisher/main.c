/*
 * A publisher from outside in a worker: two orders in one transaction, their events as lines.
 *
 *     third_party_publisher DB [lines:/path/to/file]
 */
#include <ie/ie.h>
#include <sqlite3.h>

#include <stdio.h>
#include <stdlib.h>

#include "lines.h"

static void
need(ie_status status, const ie_error *err)
{
    if (status != IE_OK) {
        (void)fprintf(stderr, "third_party_publisher: %s\n", err->message);
        exit(1);
    }
}

static void
sql(sqlite3 *db, const char *text)
{
    if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK) {
        (void)fprintf(stderr, "third_party_publisher: %s\n", sqlite3_errmsg(db));
        exit(1);
    }
}

/* The application's side: rows and events, one transaction. */
static void
place_orders(const char *path)
{
    ie_outbox_options options;
    ie_outbox        *outbox = NULL;
    sqlite3          *db = NULL;
    ie_error          err = IE_ERROR_INIT;
    ie_event          event = IE_EVENT_INIT;

    if (sqlite3_open(path, &db) != SQLITE_OK) {
        (void)fprintf(stderr, "third_party_publisher: %s\n", sqlite3_errmsg(db));
        exit(1);
    }
    sql(db, "PRAGMA journal_mode=WAL");
    sql(db, "CREATE TABLE IF NOT EXISTS orders(id INTEGER PRIMARY KEY, customer TEXT)");
    IE_OUTBOX_OPTIONS_INIT(&options);
    options.auto_migrate = true;
    need(ie_outbox_open(&outbox, db, &options, &err), &err);
    event.topic = "orders.placed";
    event.data = "{\"customer\":\"ada\"}";
    event.data_bytes = 18;
    sql(db, "BEGIN IMMEDIATE");
    for (int i = 0; i < 2; i++) {
        sql(db, "INSERT INTO orders(customer) VALUES ('ada')");
        need(ie_publish(outbox, &event, NULL, &err), &err);
    }
    sql(db, "COMMIT");
    ie_outbox_close(outbox);
    (void)sqlite3_close(db);
}

int
main(int argc, char **argv)
{
    ie_worker_options options;
    ie_worker_report  report = {0};
    ie_worker        *worker = NULL;
    ie_publishers    *publishers = NULL;
    ie_error          err = IE_ERROR_INIT;

    if (argc < 2 || argc > 3) {
        (void)fprintf(stderr, "usage: third_party_publisher DB [lines:/path/to/file]\n");
        return 2;
    }
    place_orders(argv[1]);
    need(ie_publishers_new(&publishers, ie_publishers_builtin(), &err), &err);
    need(ie_publishers_add(publishers, &LINES, &err), &err);
    IE_WORKER_OPTIONS_INIT(&options);
    options.db = argv[1];
    options.to = argc == 3 ? argv[2] : "lines:stderr";
    options.publishers = publishers;
    need(ie_worker_open(&worker, &options, &err), &err);
    need(ie_worker_run_once(worker, 10000, &report, &err), &err);
    ie_worker_close(worker);
    ie_publishers_free(publishers);
    (void)printf("published %llu, pending %llu\n", (unsigned long long)report.published,
                 (unsigned long long)report.pending);
    return 0;
}
