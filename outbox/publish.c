/*
 * ie_publish(): an event into the caller's transaction.
 *
 * Invariant: publishing never begins, commits or rolls back, and never waits for anything but
 * SQLite.
 */
#include <ie/migrate.h>
#include <ie/outbox.h>

#include <stdio.h>
#include <string.h>

#include "attributes.h"
#include "core.h"
#include "log.h"

struct ie_outbox {
    sqlite3      *db;
    ie__appender *appender;
    char         *source;
    ie_logger     logger;
    unsigned      generation;
    bool          allow_autocommit;
    char          durability[IE__DURABILITY_SIZE];
};

void
ie_outbox_options_init(ie_outbox_options *options, size_t size)
{
    memset(options, 0, size);
    options->size = size;
}

/*
 * What operators should see: a note in the host's file, written only when it says something new. A
 * busy moment, an authorizer or a full disk is no reason to refuse to open, and a transaction
 * of the host's gets nothing into it that the host did not ask for.
 */
static void
note_durability(ie_outbox *outbox)
{
    sqlite3_stmt *stmt = NULL;
    char          noted[IE__DURABILITY_SIZE];

    if (sqlite3_get_autocommit(outbox->db) == 0 || sqlite3_db_readonly(outbox->db, "main") == 1)
        return;
    if (ie__sql_text(noted, sizeof noted, outbox->db,
                     "SELECT value FROM main.ie_meta WHERE name = 'durability'", "",
                     NULL) != IE_OK ||
        strcmp(noted, outbox->durability) == 0)
        return;
    if (ie__sql_prepare(&stmt, outbox->db,
                        "INSERT INTO main.ie_meta (name, value) VALUES ('durability', ?1)"
                        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                        NULL) == IE_OK) {
        (void)sqlite3_bind_text(stmt, 1, outbox->durability, -1, SQLITE_STATIC);
        (void)sqlite3_step(stmt);
    }
    (void)sqlite3_finalize(stmt);
}

static ie_status
check_durability(ie_outbox *outbox, bool allow_unsafe, ie_error *err)
{
    bool      is_weak = false;
    ie_error  why = IE_ERROR_INIT;
    ie_status status =
        ie__database_durability(outbox->durability, &is_weak, outbox->db, "main", &why);

    if (status == IE_EUNSAFE && allow_unsafe) {
        ie__log(&outbox->logger, IE_LOG_WARN, "outbox", "%s", why.message);
        return IE_OK;
    }
    if (status != IE_OK)
        return ie_error_set(err, status, "open outbox: %s", why.message);
    if (is_weak)
        ie__log(&outbox->logger, IE_LOG_WARN, "outbox",
                "with %s a power cut may take back the last commits, and an event that was already "
                "published then has no row behind it; synchronous=FULL (DELETE journal: EXTRA) "
                "prevents it",
                outbox->durability);
    return IE_OK;
}

/* It goes into events that name none, and those have been checked before it does. */
static ie_status
check_source(const char *source, ie_error *err)
{
    ie_event  probe = IE_EVENT_INIT;
    ie_error  why = IE_ERROR_INIT;
    ie_status status;

    probe.topic = "x";
    probe.source = source;
    status = ie_event_check(&probe, &why);
    return status == IE_OK ? IE_OK : ie_error_set(err, status, "open outbox: %s", why.message);
}

/* The first thing that newcomers meet when the worker and they write at the same moment. */
static void
advise_busy(const ie_outbox *outbox)
{
    int64_t busy_ms = 1;

    if (ie__sql_int(&busy_ms, outbox->db, "PRAGMA busy_timeout", 1, NULL) == IE_OK && busy_ms == 0)
        ie__log(
            &outbox->logger, IE_LOG_INFO, "outbox",
            "this connection has no busy timeout: unless it has a busy handler, a statement fails "
            "with "
            "\"database is locked\" while another connection commits; see sqlite3_busy_timeout()");
}

ie_status
ie_outbox_open(ie_outbox **out, sqlite3 *db, const ie_outbox_options *options, ie_error *err)
{
    ie_outbox_options own;
    char              source[IE_ATTRIBUTE_BYTES_MAX + 1];
    ie_outbox        *outbox;
    ie_status         status;

    if (out == NULL || db == NULL)
        return ie_error_set(err, IE_EINVAL, "open outbox: out and db are required");
    IE_OUTBOX_OPTIONS_INIT(&own);
    if (options != NULL) {
        status = ie__struct_import(&own, sizeof own, options, sizeof own);
        if (status != IE_OK)
            return ie_error_set(err, status, "open outbox: options.size is %zu, expected %zu",
                                options->size, sizeof own);
    }
    status = check_source(own.source, err);
    if (status != IE_OK)
        return status;
    outbox = ie__calloc(1, sizeof *outbox);
    if (outbox == NULL)
        return ie_error_set(err, IE_ENOMEM, "open outbox: out of memory");
    outbox->db = db;
    outbox->logger = own.logger;
    outbox->allow_autocommit = own.allow_autocommit;
    outbox->generation = ie__fork_generation();
    status = own.auto_migrate && sqlite3_get_autocommit(db) != 0 ? ie_migrate_up(db, NULL, err)
                                                                 : ie_migrate_check(db, err);
    if (status == IE_OK)
        status = check_durability(outbox, own.allow_unsafe, err);
    if (status == IE_OK) {
        note_durability(outbox);
        advise_busy(outbox);
    }
    if (status == IE_OK)
        status = ie__sql_text(source, sizeof source, db,
                              "SELECT value FROM main.ie_meta WHERE name = 'source'", "/ie", err);
    if (status == IE_OK)
        status = ie__appender_open(&outbox->appender, db, source, own.clock, err);
    if (status == IE_OK && own.source != NULL && strcmp(own.source, source) != 0) {
        outbox->source = ie__strdup(own.source);
        if (outbox->source == NULL)
            status = ie_error_set(err, IE_ENOMEM, "open outbox: out of memory");
    }
    if (status != IE_OK) {
        ie_outbox_close(outbox);
        return status;
    }
    *out = outbox;
    return IE_OK;
}

void
ie_outbox_close(ie_outbox *outbox)
{
    if (outbox == NULL)
        return;
    if (outbox->generation == ie__fork_generation())
        ie__appender_close(outbox->appender);
    ie__free(outbox->source);
    ie__free(outbox);
}

/* Everything that can be said before SQLite is asked. */
static ie_status
may_publish(const ie_outbox *outbox, ie_error *err)
{
    if (outbox == NULL)
        return ie_error_set(err, IE_EINVAL, "publish: outbox is NULL");
    if (outbox->generation != ie__fork_generation())
        return ie_error_set(
            err, IE_EFORKED,
            "publish: this outbox was opened before fork(); a SQLite connection must not "
            "be carried into a child");
    if (!outbox->allow_autocommit && sqlite3_get_autocommit(outbox->db) != 0)
        return ie_error_set(
            err, IE_ENOTXN,
            "publish: no transaction is open; BEGIN IMMEDIATE first, so that the event and "
            "your rows live or die together");
    return IE_OK;
}

static ie_status
publish_one(ie_outbox *outbox, const ie_event *event, char *id, ie_error *err)
{
    ie_event  own;
    ie_status status;

    status = ie__event_import(&own, event, err);
    if (status == IE_OK)
        status = ie__event_check(&own, 0, err);
    if (status != IE_OK)
        return status;
    if (own.source == NULL)
        own.source = outbox->source; /* NULL still: the database's own */
    return ie__append(outbox->appender, &own, id, err);
}

ie_status
ie_publish(ie_outbox *outbox, const ie_event *event, char *id, ie_error *err)
{
    const ie_status status = may_publish(outbox, err);

    return status == IE_OK ? publish_one(outbox, event, id, err) : status;
}

ie_status
ie_publish_many(ie_outbox *outbox, const ie_event *events, size_t count, size_t *failed,
                ie_error *err)
{
    const char *at = (const char *)events;
    ie_status   status = may_publish(outbox, err);

    if (status == IE_OK && events == NULL && count > 0)
        status = ie_error_set(err, IE_EINVAL, "publish: events is NULL");
    for (size_t i = 0; status == IE_OK && i < count; i++) {
        size_t size;

        memcpy(&size, at, sizeof size); /* the caller's array has the caller's stride */
        status = publish_one(outbox, (const ie_event *)(const void *)at, NULL, err);
        if (status != IE_OK && failed != NULL)
            *failed = i;
        at += size;
    }
    return status;
}

const char *
ie_outbox_durability(const ie_outbox *outbox)
{
    return outbox->durability;
}
