/**
 * @file
 * The consumer's inbox: handling an event takes effect once, however often it is delivered.
 */
#ifndef IE_INBOX_H
#define IE_INBOX_H

#include <ie/event.h>

struct sqlite3;

#ifdef __cplusplus
extern "C" {
#endif

/**
 * The consumer's work on one event, inside the inbox's transaction on @p db.
 *
 * Return IE_OK to commit its writes together with the event's id; anything else rolls both back and
 * the event may come again. Must not commit or roll back itself.
 */
typedef ie_status (*ie_inbox_handler)(void *user, struct sqlite3 *db, const ie_event *event);

/**
 * Run the handler unless this group has handled the event (source + id) before. Inside a
 * transaction of the caller's it uses a savepoint, and the caller's COMMIT decides; else its own
 * BEGIN IMMEDIATE.
 *
 * @param group       which consumer: 1..64 bytes; each group handles each event once.
 * @param[out] first  may be NULL; true when the handler ran and its work is committed (or, in the
 *                    caller's transaction, stands), false when it was handled before.
 * @return IE_OK: acknowledge the event (whether first or not). IE_EHANDLER or the handler's own
 *         status: do not. IE_ECONFLICT: the same id came with other content: quarantine it.
 *         IE_EBUSY, IE_EBUSY_SNAPSHOT, IE_ETXN_ABORTED, IE_EFULL, IE_ESCHEMA_MISSING, IE_EIO: try
 * again later. Threads: owner of @p db. Blocks: as the busy handler does, and the handler.
 */
IE_API ie_status ie_inbox_once(struct sqlite3 *db, const char *group, const ie_event *event,
                               ie_inbox_handler handler, void *user, bool *first, ie_error *err);

/* The sender keeps a dead letter this long and may send it again afterwards; see worker options. */
#define IE_INBOX_HORIZON_S_DEFAULT   1382400u /* 16 days: dead_retention_s and a day */
#define IE_INBOX_RETENTION_S_DEFAULT 2592000u /* 30 days */

/**
 * Forget ids that were handled more than @p retention_s ago, at most @p rows_max rows in one
 * transaction; call it again while *removed equals rows_max.
 *
 * @param horizon_s   how late the sender may still deliver again: its dead_retention_s plus its
 * longest delay. Forgetting sooner would handle an event twice, so a retention shorter than the
 * horizon is refused with IE_EINVAL.
 * @return IE_OK, IE_EINVAL, IE_EBUSY, IE_ESCHEMA_MISSING, IE_EIO. Threads: owner of @p db.
 */
IE_API ie_status ie_inbox_purge(struct sqlite3 *db, const char *group, uint32_t retention_s,
                                uint32_t horizon_s, uint32_t rows_max, uint32_t *removed,
                                ie_error *err);

#ifdef __cplusplus
}
#endif
#endif
