/* Receives orders from the bus; each is packed once, however often it is delivered. */
#include <ie/ie.h>
#include <sqlite3.h>
#include <stdio.h>

#define IE(call) if ((call) != IE_OK) return fprintf(stderr, "%s\n", err.message), 1

static ie_status pack(void *user, sqlite3 *db, const ie_event *event) /* in one transaction ... */
{
    char *sql = sqlite3_mprintf("INSERT INTO parcels VALUES ('%.*q')", (int)event->data_bytes,
                                event->data);
    int rc = sql != NULL ? sqlite3_exec(db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;
    return (void)user, sqlite3_free(sql), rc == SQLITE_OK ? IE_OK : IE_EHANDLER;
}

static ie_status receive(void *db, const ie_event *event)       /* ... with the id of the event */
{
    ie_error err = IE_ERROR_INIT;
    bool first = false;
    ie_status status = ie_inbox_once(db, "packing", event, pack, NULL, &first, &err);
    printf("%s %s\n", event->id, status != IE_OK ? err.message : first ? "packed" : "was known");
    return status;                             /* IE_OK acknowledges; anything else: comes again */
}

int main(int argc, char **argv)
{
    ie_bus_client_options from = {.size = sizeof from, .url = argc > 1 ? argv[1] : NULL};
    ie_error err = IE_ERROR_INIT;
    ie_bus_client *bus;
    sqlite3 *db;
    if (sqlite3_open("parcels.db", &db) ||
        sqlite3_exec(db, "CREATE TABLE IF NOT EXISTS parcels(what TEXT)", NULL, NULL, NULL))
        return fprintf(stderr, "%s\n", sqlite3_errmsg(db)), 1;
    IE(ie_migrate_up(db, NULL, &err));
    IE(ie_bus_client_open(&bus, &from, &err)); /* connects, and again whenever it has to */
    IE(ie_bus_client_subscribe(bus, "orders.>", "packing", 0, receive, db, NULL, &err));
    IE(ie_bus_client_wait_connected(bus, 5000, &err));
    printf("waiting for orders; Enter ends\n"), getchar();
    ie_bus_client_close(bus);
    return sqlite3_close(db);
}
