/* An order and its event in one transaction; the worker takes the event to whoever listens. */
#include <ie/ie.h>
#include <sqlite3.h>
#include <stdio.h>

#define FAIL(text) return fprintf(stderr, "hello: %s\n", text), 1
#define SQL(text)  if (sqlite3_exec(db, text, NULL, NULL, NULL)) FAIL(sqlite3_errmsg(db))
#define IE(call)   if ((call) != IE_OK) FAIL(err.message)

int main(void)
{
    ie_outbox_options storing = {.size = sizeof storing, .auto_migrate = true};
    ie_event event = {.size = sizeof event, .topic = "orders.placed", .key = "ada"}, *got = NULL;
    ie_worker_options sending;
    ie_error err = IE_ERROR_INIT;
    sqlite3 *db; ie_outbox *outbox; ie_worker *worker; ie_memory_queue *inbound;
    if (sqlite3_open("hello.db", &db)) FAIL(sqlite3_errmsg(db));
    sqlite3_busy_timeout(db, 5000);                   /* the worker writes to the file, too */
    SQL("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS orders(customer TEXT, item TEXT)");
    IE(ie_outbox_open(&outbox, db, &storing, &err));  /* makes its tables where they are missing */
    IE_WORKER_OPTIONS_INIT(&sending);
    sending.db = "hello.db";
    sending.to = "memory:hello";                      /* or socket://127.0.0.1:9100, file:///... */
    IE(ie_memory_queue_open(&inbound, "memory:hello", "orders.>", 0, &err));
    IE(ie_worker_start(&worker, &sending, &err));     /* a thread with its own connection */
    event.data = "{\"item\":\"tea\"}", event.data_bytes = 14;
    SQL("BEGIN IMMEDIATE; INSERT INTO orders VALUES ('ada', 'tea')");
    IE(ie_publish(outbox, &event, NULL, &err));       /* one INSERT, nothing else */
    SQL("COMMIT");                                    /* the order and its event, or neither */
    if (ie_memory_queue_next(&got, inbound, 5000) != IE_OK) FAIL("nothing arrived");
    printf("%s %s %.*s\n", got->topic, got->key, (int)got->data_bytes, (const char *)got->data);
    ie_event_free(got), ie_worker_close(worker), ie_memory_queue_close(inbound);
    return ie_outbox_close(outbox), sqlite3_close(db);
}
