/*
 * A shop: reads orders, one JSON object per line, and stores each with its event in one
 * transaction.
 *
 *     shop DB [FILE]        FILE "-" or none: standard input
 *
 * A line that is no order is reported and skipped. An order that breaks a rule of the business is
 * rolled back, with the event that was published a moment before: nobody ever hears of it.
 * What the lines came to is printed at the end.
 */
#include <ie/ie.h>
#include <jansson.h>
#include <sqlite3.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUANTITY_MAX 1000
#define TRIES_MAX    5

static const char SCHEMA[] =
    "CREATE TABLE IF NOT EXISTS products (sku TEXT PRIMARY KEY, cents INTEGER NOT NULL,"
    " stock INTEGER NOT NULL) STRICT;"
    "CREATE TABLE IF NOT EXISTS customers (name TEXT PRIMARY KEY, credit_cents INTEGER NOT NULL)"
    " STRICT;"
    "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL,"
    " sku TEXT NOT NULL, quantity INTEGER NOT NULL, cents INTEGER NOT NULL) STRICT;"
    "INSERT OR IGNORE INTO products VALUES ('tea-assam', 890, 1100), ('tea-darjeeling', 1450, "
    "1100),"
    " ('tea-sencha', 1190, 1100), ('pot-iron', 5900, 1100), ('pot-glass', 2450, 1100),"
    " ('cup', 690, 1100), ('tin', 350, 1100), ('whisk', 1800, 1100);";

enum { ADD_CUSTOMER, ADD_ORDER, READ_CENTS, TAKE_STOCK, TAKE_CREDIT, STATEMENTS };

static const char *const SQL[STATEMENTS] = {
    [ADD_CUSTOMER] = "INSERT OR IGNORE INTO customers VALUES (?1, 120000)",
    [ADD_ORDER] = "INSERT OR IGNORE INTO orders"
                  " SELECT ?1, ?2, ?3, ?4, ?4 * cents FROM products WHERE sku = ?3",
    [READ_CENTS] = "SELECT cents FROM orders WHERE id = ?1",
    [TAKE_STOCK] = "UPDATE products SET stock = stock - ?2 WHERE sku = ?1 AND stock >= ?2",
    [TAKE_CREDIT] = "UPDATE customers SET credit_cents = credit_cents - ?2"
                    " WHERE name = ?1 AND credit_cents >= ?2",
};

typedef struct order { /* borrowed from the parsed line */
    const char *id;
    const char *customer;
    const char *sku;
    json_int_t  quantity;
} order;

typedef enum outcome { COMMITTED, BAD_PRODUCT, NO_STOCK, NO_CREDIT, TRY_AGAIN, FAILED } outcome;

typedef struct shop {
    sqlite3      *db;
    sqlite3_stmt *sql[STATEMENTS];
    ie_outbox    *outbox;
    unsigned long count[FAILED];
    unsigned long lines;
    unsigned long malformed;
} shop;

static bool
complain(const char *what, const char *why)
{
    (void)fprintf(stderr, "shop: %s: %s\n", what, why);
    return false;
}

static bool
shop_open(shop *self, const char *path)
{
    ie_outbox_options options;
    ie_error          err = IE_ERROR_INIT;

    IE_OUTBOX_OPTIONS_INIT(&options);
    options.source = "/shop";
    options.auto_migrate = true;
    if (sqlite3_open(path, &self->db) != SQLITE_OK ||
        sqlite3_busy_timeout(self->db, 10000) != SQLITE_OK ||
        sqlite3_exec(self->db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", NULL, NULL,
                     NULL) != SQLITE_OK ||
        sqlite3_exec(self->db, SCHEMA, NULL, NULL, NULL) != SQLITE_OK)
        return complain(path, sqlite3_errmsg(self->db));
    for (int i = 0; i < STATEMENTS; i++)
        if (sqlite3_prepare_v2(self->db, SQL[i], -1, &self->sql[i], NULL) != SQLITE_OK)
            return complain(path, sqlite3_errmsg(self->db));
    if (ie_outbox_open(&self->outbox, self->db, &options, &err) != IE_OK)
        return complain(path, err.message);
    return true;
}

static void
shop_close(shop *self)
{
    ie_outbox_close(self->outbox);
    for (int i = 0; i < STATEMENTS; i++)
        (void)sqlite3_finalize(self->sql[i]);
    (void)sqlite3_close(self->db);
}

/* Run a statement with a text and a number; how many rows it changed, -1 when it failed. */
static int
run(const shop *self, int which, const char *text, json_int_t number)
{
    sqlite3_stmt *stmt = self->sql[which];
    int           rc;

    (void)sqlite3_bind_text(stmt, 1, text, -1, SQLITE_TRANSIENT);
    if (sqlite3_bind_parameter_count(stmt) > 1)
        (void)sqlite3_bind_int64(stmt, 2, number);
    rc = sqlite3_step(stmt);
    (void)sqlite3_reset(stmt);
    return rc == SQLITE_DONE ? sqlite3_changes(self->db) : -1;
}

/* The order's row; 0: its product is unknown or its number was used before. */
static int
add_order(const shop *self, const order *placed, sqlite3_int64 *cents)
{
    sqlite3_stmt *stmt = self->sql[ADD_ORDER];
    int           changed;

    (void)sqlite3_bind_text(stmt, 2, placed->customer, -1, SQLITE_TRANSIENT);
    (void)sqlite3_bind_text(stmt, 3, placed->sku, -1, SQLITE_TRANSIENT);
    (void)sqlite3_bind_int64(stmt, 4, placed->quantity);
    (void)sqlite3_bind_text(stmt, 1, placed->id, -1, SQLITE_TRANSIENT);
    changed = sqlite3_step(stmt) == SQLITE_DONE ? sqlite3_changes(self->db) : -1;
    (void)sqlite3_reset(stmt);
    if (changed != 1)
        return changed;
    stmt = self->sql[READ_CENTS];
    (void)sqlite3_bind_text(stmt, 1, placed->id, -1, SQLITE_TRANSIENT);
    if (sqlite3_step(stmt) == SQLITE_ROW)
        *cents = sqlite3_column_int64(stmt, 0);
    else
        changed = -1;
    (void)sqlite3_reset(stmt);
    return changed;
}

/* The event says what the order's row says; its key keeps a customer's orders in order. */
static outcome
publish(const shop *self, const order *placed, sqlite3_int64 cents)
{
    ie_event  event = IE_EVENT_INIT;
    ie_error  err = IE_ERROR_INIT;
    ie_status status = IE_ENOMEM;
    json_t   *data =
        json_pack("{s:s, s:s, s:s, s:I, s:I}", "order", placed->id, "customer", placed->customer,
                  "sku", placed->sku, "quantity", placed->quantity, "cents", (json_int_t)cents);
    char *text = data != NULL ? json_dumps(data, JSON_COMPACT) : NULL;

    if (text != NULL) {
        event.topic = "orders.placed";
        event.key = placed->customer;
        event.subject = placed->id;
        event.data = text;
        event.data_bytes = strlen(text);
        status = ie_publish(self->outbox, &event, NULL, &err);
    }
    free(text);
    json_decref(data);
    if (status == IE_OK)
        return COMMITTED;
    if (status == IE_EBUSY || status == IE_EBUSY_SNAPSHOT || status == IE_ETXN_ABORTED)
        return TRY_AGAIN;
    (void)complain(placed->id, err.message);
    return FAILED;
}

/* Everything between BEGIN and COMMIT. */
static outcome
fill_transaction(const shop *self, const order *placed)
{
    sqlite3_int64 cents = 0;
    outcome       result;
    int           changed = run(self, ADD_CUSTOMER, placed->customer, 0);

    if (changed >= 0)
        changed = add_order(self, placed, &cents);
    if (changed <= 0)
        return changed == 0 ? BAD_PRODUCT : FAILED;
    result = publish(self, placed, cents);
    if (result != COMMITTED)
        return result;
    changed = run(self, TAKE_STOCK, placed->sku, placed->quantity);
    if (changed <= 0)
        return changed == 0 ? NO_STOCK : FAILED;
    changed = run(self, TAKE_CREDIT, placed->customer, cents);
    if (changed <= 0)
        return changed == 0 ? NO_CREDIT : FAILED;
    return COMMITTED;
}

static outcome
place(const shop *self, const order *placed)
{
    outcome result;

    /* IMMEDIATE: the write lock at once, so that no later statement finds it taken. */
    if (sqlite3_exec(self->db, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK)
        return sqlite3_errcode(self->db) == SQLITE_BUSY ? TRY_AGAIN : FAILED;
    result = fill_transaction(self, placed);
    if (result == COMMITTED && sqlite3_exec(self->db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
        result = sqlite3_errcode(self->db) == SQLITE_BUSY ? TRY_AGAIN : FAILED;
    if (result == FAILED)
        (void)complain(placed->id, sqlite3_errmsg(self->db));
    if (sqlite3_get_autocommit(self->db) == 0)
        (void)sqlite3_exec(self->db, "ROLLBACK", NULL, NULL, NULL);
    return result;
}

/* What is wrong with the line; NULL: nothing, and *out is the order in it. */
static const char *
read_order(order *out, json_t *line)
{
    if (json_unpack(line, "{s:s, s:s, s:s, s:I}", "order", &out->id, "customer", &out->customer,
                    "sku", &out->sku, "quantity", &out->quantity) != 0)
        return "an order has order, customer, sku and quantity";
    if (out->id[0] == '\0' || out->customer[0] == '\0')
        return "order and customer are not empty";
    if (out->quantity < 1 || out->quantity > QUANTITY_MAX)
        return "quantity is 1 to 1000";
    return NULL;
}

static bool
take_line(shop *self, const char *text)
{
    json_error_t what = {.text = ""};
    json_t      *line = json_loads(text, JSON_REJECT_DUPLICATES, &what);
    order        placed = {0};
    const char  *wrong = line != NULL ? read_order(&placed, line) : what.text;
    outcome      result = TRY_AGAIN;

    self->lines++;
    if (wrong != NULL) {
        self->malformed++;
        (void)fprintf(stderr, "shop: line %lu: %s\n", self->lines, wrong);
        json_decref(line);
        return true;
    }
    for (int tries = 0; result == TRY_AGAIN && tries < TRIES_MAX; tries++)
        result = place(self, &placed);
    if (result == TRY_AGAIN)
        (void)complain(placed.id, "the database stays locked");
    else if (result != FAILED)
        self->count[result]++;
    json_decref(line);
    return result != TRY_AGAIN && result != FAILED;
}

static void
print_summary(const shop *self)
{
    const unsigned long refused =
        self->count[BAD_PRODUCT] + self->count[NO_STOCK] + self->count[NO_CREDIT];

    (void)printf("read       %6lu\n", self->lines);
    (void)printf("malformed  %6lu\n", self->malformed);
    (void)printf("refused    %6lu  (unknown product or number used before %lu, out of stock %lu,"
                 " over the credit limit %lu)\n",
                 refused, self->count[BAD_PRODUCT], self->count[NO_STOCK], self->count[NO_CREDIT]);
    (void)printf("committed  %6lu\n", self->count[COMMITTED]);
}

int
main(int argc, char **argv)
{
    shop   self = {0};
    FILE  *in = stdin;
    char  *line = NULL;
    size_t capacity = 0;
    bool   is_well;

    if (argc < 2 || argc > 3) {
        (void)fprintf(stderr, "usage: shop DB [FILE]\n");
        return 2;
    }
    if (argc == 3 && strcmp(argv[2], "-") != 0)
        in = fopen(argv[2], "r");
    if (in == NULL) {
        perror(argv[2]);
        return 1;
    }
    is_well = shop_open(&self, argv[1]);
    while (is_well && getline(&line, &capacity, in) >= 0)
        is_well = take_line(&self, line);
    if (is_well && ferror(in) != 0)
        is_well = complain("read", "input/output error");
    free(line);
    print_summary(&self);
    shop_close(&self);
    (void)fclose(in);
    return is_well ? 0 : 1;
}
