/*
 * Billing: receives orders from the bus and writes an invoice for each into its own database.
 *
 *     billing DB [BUS]      BUS: socket://127.0.0.1:9100 unless given
 *
 * An order may be delivered more than once; the inbox remembers its id in the transaction that
 * writes the invoice, so there is one invoice all the same. SIGTERM or SIGINT ends it: what was
 * delivered is handled, then it prints its counts. Says "ready" when the bus knows of it.
 */
#include <ie/ie.h>
#include <jansson.h>
#include <sqlite3.h>

#include <signal.h>
#include <stdio.h>

typedef struct billing {
    sqlite3      *db;
    sqlite3_stmt *add;
    ie_error      err; /* of the event at hand */
    unsigned long written;
    unsigned long duplicates;
    unsigned long failed;
} billing;

/* The work itself, inside the inbox's transaction. */
static ie_status
write_invoice(void *user, sqlite3 *db, const ie_event *event)
{
    billing    *self = user;
    ie_status   status = IE_EREFUSED; /* an order that cannot be read will not get better */
    const char *order = NULL;
    const char *customer = NULL;
    json_int_t  cents = 0;
    json_t     *data = json_loadb(event->data, event->data_bytes, 0, NULL);

    if (data == NULL || json_unpack(data, "{s:s, s:s, s:I}", "order", &order, "customer", &customer,
                                    "cents", &cents) != 0) {
        (void)ie_error_set(&self->err, status, "event %s is not an order", event->id);
    } else {
        (void)sqlite3_bind_text(self->add, 1, order, -1, SQLITE_TRANSIENT);
        (void)sqlite3_bind_text(self->add, 2, customer, -1, SQLITE_TRANSIENT);
        (void)sqlite3_bind_int64(self->add, 3, cents);
        (void)sqlite3_bind_text(self->add, 4, event->id, -1, SQLITE_TRANSIENT);
        status = sqlite3_step(self->add) == SQLITE_DONE ? IE_OK : IE_EHANDLER;
        if (status != IE_OK)
            (void)ie_error_set(&self->err, status, "invoice for %s: %s", order, sqlite3_errmsg(db));
        (void)sqlite3_reset(self->add);
    }
    json_decref(data);
    return status;
}

/* On the client's thread. IE_OK acknowledges; with anything else the event comes again. */
static ie_status
receive(void *user, const ie_event *event)
{
    billing  *self = user;
    bool      first = false;
    ie_status status;

    ie_error_clear(&self->err);
    status = ie_inbox_once(self->db, "billing", event, write_invoice, self, &first, &self->err);
    if (status != IE_OK) {
        self->failed++;
        (void)fprintf(stderr, "billing: %s\n", self->err.message);
    } else if (first) {
        self->written++;
    } else {
        self->duplicates++;
    }
    return status;
}

static ie_status
billing_open(billing *self, const char *path, ie_error *err)
{
    if (sqlite3_open(path, &self->db) != SQLITE_OK ||
        sqlite3_busy_timeout(self->db, 10000) != SQLITE_OK ||
        sqlite3_exec(self->db,
                     "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                     "CREATE TABLE IF NOT EXISTS invoices (order_id TEXT PRIMARY KEY,"
                     " customer TEXT NOT NULL, cents INTEGER NOT NULL, event_id TEXT NOT NULL)"
                     " STRICT",
                     NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(self->db, "INSERT INTO invoices VALUES (?1, ?2, ?3, ?4)", -1, &self->add,
                           NULL) != SQLITE_OK)
        return ie_error_set(err, IE_EIO, "%s: %s", path, sqlite3_errmsg(self->db));
    return ie_migrate_up(self->db, NULL, err);
}

/* Until a signal, which main() has blocked in all threads. */
static void
wait_for_the_end(void)
{
    sigset_t wanted;
    int      got = 0;

    (void)sigemptyset(&wanted);
    (void)sigaddset(&wanted, SIGTERM);
    (void)sigaddset(&wanted, SIGINT);
    (void)sigwait(&wanted, &got);
}

int
main(int argc, char **argv)
{
    billing               self = {.err = IE_ERROR_INIT};
    ie_bus_client_options options;
    ie_bus_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;
    ie_status             status;
    sigset_t              blocked;

    if (argc < 2 || argc > 3) {
        (void)fprintf(stderr, "usage: billing DB [BUS]\n");
        return 2;
    }
    (void)sigemptyset(&blocked);
    (void)sigaddset(&blocked, SIGTERM);
    (void)sigaddset(&blocked, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &blocked, NULL);
    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = argc == 3 ? argv[2] : NULL;
    options.name = "billing";

    status = billing_open(&self, argv[1], &err);
    if (status == IE_OK)
        status = ie_bus_client_open(&client, &options, &err);
    /* In a group an event goes to one of its members, and again to another if that one dies. */
    if (status == IE_OK)
        status =
            ie_bus_client_subscribe(client, "orders.>", "billing", 0, receive, &self, NULL, &err);
    if (status == IE_OK)
        status = ie_bus_client_wait_connected(client, 5000, &err);
    if (status == IE_OK)
        status = ie_bus_client_wait_subscribed(client, 5000, &err);
    if (status == IE_OK) {
        (void)printf("ready\n");
        (void)fflush(stdout);
        wait_for_the_end();
    } else {
        (void)fprintf(stderr, "billing: %s%s\n", err.message,
                      status == IE_EUNREACHABLE ? "; start a bus with: ie bus" : "");
    }
    ie_bus_client_close(client); /* no handler runs after this */
    (void)printf("invoices %lu, duplicates absorbed %lu, failed %lu\n", self.written,
                 self.duplicates, self.failed);
    (void)sqlite3_finalize(self.add);
    (void)sqlite3_close(self.db);
    return status == IE_OK ? 0 : 1;
}
