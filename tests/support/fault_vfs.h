/* A SQLite VFS that fails the n-th write, sync or read: storage as bad as it can be, on order. */
#ifndef IE_TEST_FAULT_VFS_H
#define IE_TEST_FAULT_VFS_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#define FAULT_WRITE    1u /* xWrite of any file, the journal and the -wal too */
#define FAULT_SYNC     2u /* xSync */
#define FAULT_TRUNCATE 4u /* xTruncate */
#define FAULT_DELETE   8u /* xDelete: the end of a rollback journal */
#define FAULT_ALL      15u
#define FAULT_READ     16u /* xRead; not in FAULT_ALL */

/* Register the VFS under its name, for sqlite3_open_v2(); not as the default. Idempotent. */
#define FAULT_VFS "fault"
void fault_vfs_register(void);

/*
 * Let the n-th of these operations from now fail (1 = the next) with code, once or from then on;
 * code SQLITE_FULL or SQLITE_IOERR: the operation's own kind of it is given. 0 ends it.
 */
void fault_vfs_arm(uint64_t n, unsigned operations, int code, bool sticky);
/* How many operations were failed since. */
uint64_t fault_vfs_fired(void);

#endif
