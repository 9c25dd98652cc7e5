/**
 * @file
 * Writing events: ie_publish() puts an event into the outbox inside the caller's transaction.
 *
 * The same from any language: INSERT INTO ie_event(topic, data) VALUES (?, ?) RETURNING id.
 */
#ifndef IE_OUTBOX_H
#define IE_OUTBOX_H

#include <ie/event.h>

struct sqlite3;

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ie_outbox ie_outbox;

typedef struct ie_outbox_options {
    size_t      size;       /* filled in by IE_OUTBOX_OPTIONS_INIT */
    const char *source;     /* CloudEvents source of events that name none; NULL: the one that
                             * the migration recorded in ie_meta ("/ie" unless changed) */
    const ie_clock *clock;  /* NULL: the system's; borrowed */
    ie_logger       logger; /* copied */
    bool allow_autocommit;  /* publish outside a transaction too: the event stands alone */
    bool allow_unsafe;      /* accept journal_mode OFF or MEMORY and synchronous OFF, which lose
                             * or corrupt in a crash; for throw-away databases */
    bool    auto_migrate;   /* apply missing migrations when opening */
    uint8_t reserved[5];    /* 0; fills the tail, so that the next field changes the size */
} ie_outbox_options;

IE_API void ie_outbox_options_init(ie_outbox_options *options, size_t size);
#define IE_OUTBOX_OPTIONS_INIT(o) ie_outbox_options_init((o), sizeof *(o))

/**
 * Open an outbox on a connection of the application's.
 *
 * Checks the schema (IE_ESCHEMA_MISSING says how to migrate, IE_ESCHEMA_NEWER names the
 * versions) and the journal and synchronous modes in force (IE_EUNSAFE where a crash would lose
 * events; a warning through the logger for synchronous NORMAL, where a power cut may), and notes
 * the mode for `ie outbox status` with one small write when it differs from what is noted (not
 * inside a transaction of the caller's). No
 * hook is installed, no pragma changed, no file opened. The tables are those of schema "main": a
 * transaction over attached files is not atomic in WAL mode, so the outbox lives beside the rows.
 *
 * @param[out] out  the new outbox, transferred: release it with ie_outbox_close() before the
 *                  connection is closed. Untouched on failure.
 * @param db        borrowed; must outlive the outbox.
 * @param options   copied; NULL means every default.
 * @param[out] err  may be NULL.
 * @return IE_OK, IE_EINVAL, IE_ENOTSUP, IE_ENOMEM, IE_ESCHEMA_MISSING, IE_ESCHEMA_NEWER,
 *         IE_ESCHEMA, IE_EUNSAFE, IE_EBUSY or IE_EIO.
 *
 * Threads: owner of @p db. Blocks: as long as the connection's busy handler does.
 */
IE_API ie_status ie_outbox_open(ie_outbox **out, struct sqlite3 *db,
                                const ie_outbox_options *options, ie_error *err);

/** Finalise the statements and release the outbox; the connection stays as it is. NULL is accepted.
 *  Threads: owner of the connection. */
IE_API void ie_outbox_close(ie_outbox *outbox);

/**
 * Store one event in the caller's open transaction.
 *
 * Never begins, commits, rolls back, sends, waits for the network or wakes anyone: whether the
 * event exists is decided by the caller's COMMIT.
 *
 * @param event    borrowed for the call. See ie_event for what NULL and 0 mean.
 * @param[out] id  NULL, or room for IE_ID_SIZE bytes when event->id is NULL: the id that was
 *                 given; else untouched.
 *
 * @return IE_OK: the event is in the transaction.
 *   Nothing was written and the transaction is still open after:
 *     IE_ENOTXN (no transaction is open), IE_EINVAL, IE_ETOOBIG (the event: the message names the
 *     field), IE_EEXIST (its dedupe_key is taken), IE_EBUSY (locked: try again), IE_EFULL,
 *     IE_EREADONLY, IE_EDENIED (an authorizer or a trigger's RAISE said no), IE_ESCHEMA_MISSING,
 *     IE_ESCHEMA, IE_ESWALLOWED (a trigger ate the row), IE_EFORKED, IE_ENOMEM, IE_EIO,
 *     IE_ECORRUPT.
 *   IE_EBUSY_SNAPSHOT: roll back and run the transaction again (BEGIN IMMEDIATE avoids this).
 *   IE_ETXN_ABORTED: SQLite has rolled the caller's transaction back; what follows would commit
 *     alone. Stop, and run the transaction again from its start.
 *
 * Threads: owner of the connection. Blocks: as long as the connection's busy handler does.
 */
IE_API ie_status ie_publish(ie_outbox *outbox, const ie_event *event, char *id, ie_error *err);

/**
 * Store several events in order. On failure @p failed (may be NULL) is the index of the event that
 * was refused; the ones before it are in the transaction, so roll back to a savepoint of your own
 * to have all or none. Otherwise as ie_publish(); ids are not returned: set them beforehand with
 * ie_id_new() where you need them.
 */
IE_API ie_status ie_publish_many(ie_outbox *outbox, const ie_event *events, size_t count,
                                 size_t *failed, ie_error *err);

/**
 * The journal and synchronous modes in force on the connection, as "wal+full". Static text, valid
 * as long as the outbox. Threads: owner of the connection.
 */
IE_API const char *ie_outbox_durability(const ie_outbox *outbox);

#ifdef __cplusplus
}
#endif
#endif
