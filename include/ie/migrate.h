/**
 * @file
 * The schema: which migrations a database has, applying them, printing them.
 */
#ifndef IE_MIGRATE_H
#define IE_MIGRATE_H

#include <ie/base.h>

struct sqlite3;

#ifdef __cplusplus
extern "C" {
#endif

/** One migration of this library. Static. */
typedef struct ie_migration {
    int         version;  /* 1, 2, ... */
    const char *name;     /* "init" */
    const char *up;       /* SQL, one statement per ';' except in triggers */
    const char *down;     /* SQL that takes it back */
    const char *checksum; /* 16 hex digits of the up text */
} ie_migration;

/** How many migrations this library has; the newest is the last. Threads: any. */
IE_API size_t ie_migration_count(void);

/** Migration number @p index (0..count-1), or NULL. Threads: any. */
IE_API const ie_migration *ie_migration_at(size_t index);

/** The state of one migration in a database. */
typedef struct ie_migration_state {
    const ie_migration *migration; /* NULL for one that is newer than this library */
    int                 version;
    bool                is_applied;
    int64_t             applied_at_ms; /* UTC; 0 when not applied */
} ie_migration_state;

/**
 * What the database has: called once per migration known to either side, in order.
 *
 * @return IE_OK, IE_EIO, IE_EBUSY, IE_ENOMEM. Threads: owner of @p db.
 */
IE_API ie_status ie_migrate_status(struct sqlite3 *db,
                                   void (*each)(void *user, const ie_migration_state *state),
                                   void *user, ie_error *err);

/**
 * Apply what is missing, each migration in one transaction (BEGIN IMMEDIATE) with its row in
 * ie_schema_history. Any number of processes may do this at once: exactly one applies each.
 * user_version and the journal mode are not touched.
 *
 * @param[out] applied  how many this call applied; may be NULL.
 * @return IE_OK, IE_ESCHEMA (a recorded checksum differs, or a table of that name exists but is not
 *         ours), IE_ESCHEMA_NEWER, IE_ESTATE (called inside a transaction), IE_EBUSY,
 *         IE_EREADONLY, IE_EFULL, IE_EIO.
 * Threads: owner of @p db. Blocks: as long as the busy handler does.
 */
IE_API ie_status ie_migrate_up(struct sqlite3 *db, int *applied, ie_error *err);

/**
 * Is the schema one that this library can use?
 * @return IE_OK, IE_ESCHEMA_MISSING, IE_ESCHEMA_NEWER, IE_ESCHEMA; the message says what to do.
 */
IE_API ie_status ie_migrate_check(struct sqlite3 *db, ie_error *err);

#ifdef __cplusplus
}
#endif
#endif
