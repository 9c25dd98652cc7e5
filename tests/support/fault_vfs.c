/* Everything goes to the default VFS, except what was ordered to fail. */
#include "fault_vfs.h"

#include <stdatomic.h>
#include <string.h>

typedef struct fault_file {
    sqlite3_file  base;
    sqlite3_file *real; /* in the memory behind this struct */
} fault_file;

static sqlite3_vfs      vfs;
static sqlite3_vfs     *real_vfs;
static _Atomic uint64_t fail_at; /* 0: off; else counts down to 1 */
static _Atomic uint64_t fired;
static atomic_uint      fail_operations;
static atomic_int       fail_code;
static atomic_bool      fail_sticky;

void
fault_vfs_arm(uint64_t n, unsigned operations, int code, bool sticky)
{
    atomic_store(&fail_operations, operations);
    atomic_store(&fail_code, code);
    atomic_store(&fail_sticky, sticky);
    atomic_store(&fired, 0);
    atomic_store(&fail_at, n);
}

uint64_t
fault_vfs_fired(void)
{
    return atomic_load(&fired);
}

/* What this operation has to give instead: SQLITE_OK when it may go on. */
static int
verdict(unsigned operation, int io_error)
{
    uint64_t n = atomic_load(&fail_at);

    if ((atomic_load(&fail_operations) & operation) == 0)
        return SQLITE_OK;
    while (n != 0) {
        const uint64_t next = n > 1 ? n - 1 : (atomic_load(&fail_sticky) ? 1 : 0);

        if (atomic_compare_exchange_weak(&fail_at, &n, next)) {
            if (n != 1)
                return SQLITE_OK;
            atomic_fetch_add(&fired, 1);
            return atomic_load(&fail_code) == SQLITE_FULL && operation == FAULT_WRITE ? SQLITE_FULL
                                                                                      : io_error;
        }
    }
    return SQLITE_OK;
}

#define REAL(file_)               (((fault_file *)(file_))->real)
#define CALL(file_, method_, ...) REAL(file_)->pMethods->method_(REAL(file_), __VA_ARGS__)

static int
file_close(sqlite3_file *file)
{
    return REAL(file)->pMethods != NULL ? REAL(file)->pMethods->xClose(REAL(file)) : SQLITE_OK;
}

static int
file_read(sqlite3_file *file, void *out, int bytes, sqlite3_int64 at)
{
    const int rc = verdict(FAULT_READ, SQLITE_IOERR_READ);

    return rc != SQLITE_OK ? rc : CALL(file, xRead, out, bytes, at);
}

static int
file_write(sqlite3_file *file, const void *bytes, int size, sqlite3_int64 at)
{
    const int rc = verdict(FAULT_WRITE, SQLITE_IOERR_WRITE);

    if (rc != SQLITE_OK && size > 1) /* a part of it got through, as on a disk that fills up */
        (void)CALL(file, xWrite, bytes, size / 2, at);
    return rc != SQLITE_OK ? rc : CALL(file, xWrite, bytes, size, at);
}

static int
file_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    const int rc = verdict(FAULT_TRUNCATE, SQLITE_IOERR_TRUNCATE);

    return rc != SQLITE_OK ? rc : CALL(file, xTruncate, size);
}

static int
file_sync(sqlite3_file *file, int flags)
{
    const int rc = verdict(FAULT_SYNC, SQLITE_IOERR_FSYNC);

    return rc != SQLITE_OK ? rc : CALL(file, xSync, flags);
}

static int
file_size(sqlite3_file *file, sqlite3_int64 *size)
{
    return CALL(file, xFileSize, size);
}

static int
file_lock(sqlite3_file *file, int level)
{
    return CALL(file, xLock, level);
}

static int
file_unlock(sqlite3_file *file, int level)
{
    return CALL(file, xUnlock, level);
}

static int
file_check_lock(sqlite3_file *file, int *is_locked)
{
    return CALL(file, xCheckReservedLock, is_locked);
}

static int
file_control(sqlite3_file *file, int operation, void *arg)
{
    return CALL(file, xFileControl, operation, arg);
}

static int
file_sector_size(sqlite3_file *file)
{
    return REAL(file)->pMethods->xSectorSize(REAL(file));
}

static int
file_characteristics(sqlite3_file *file)
{
    return REAL(file)->pMethods->xDeviceCharacteristics(REAL(file));
}

static int
file_shm_map(sqlite3_file *file, int page, int size, int extend, void volatile **out)
{
    return CALL(file, xShmMap, page, size, extend, out);
}

static int
file_shm_lock(sqlite3_file *file, int offset, int n, int flags)
{
    return CALL(file, xShmLock, offset, n, flags);
}

static void
file_shm_barrier(sqlite3_file *file)
{
    REAL(file)->pMethods->xShmBarrier(REAL(file));
}

static int
file_shm_unmap(sqlite3_file *file, int is_deleted)
{
    return CALL(file, xShmUnmap, is_deleted);
}

static const sqlite3_io_methods METHODS = {
    .iVersion = 2,
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_unlock,
    .xCheckReservedLock = file_check_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector_size,
    .xDeviceCharacteristics = file_characteristics,
    .xShmMap = file_shm_map,
    .xShmLock = file_shm_lock,
    .xShmBarrier = file_shm_barrier,
    .xShmUnmap = file_shm_unmap,
};

static int
vfs_open(sqlite3_vfs *self, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    fault_file *at = (fault_file *)file;
    int         rc;

    (void)self;
    at->base.pMethods = NULL;
    at->real = (sqlite3_file *)(void *)(at + 1);
    at->real->pMethods = NULL;
    rc = real_vfs->xOpen(real_vfs, name, at->real, flags, out_flags);
    if (at->real->pMethods != NULL) /* set by xOpen also where it failed and xClose is wanted */
        at->base.pMethods = &METHODS;
    return rc;
}

static int
vfs_delete(sqlite3_vfs *self, const char *name, int sync_folder)
{
    const int rc = verdict(FAULT_DELETE, SQLITE_IOERR_DELETE);

    (void)self;
    return rc != SQLITE_OK ? rc : real_vfs->xDelete(real_vfs, name, sync_folder);
}

static int
vfs_access(sqlite3_vfs *self, const char *name, int flags, int *out)
{
    (void)self;
    return real_vfs->xAccess(real_vfs, name, flags, out);
}

static int
vfs_full_path(sqlite3_vfs *self, const char *name, int size, char *out)
{
    (void)self;
    return real_vfs->xFullPathname(real_vfs, name, size, out);
}

static int
vfs_randomness(sqlite3_vfs *self, int size, char *out)
{
    (void)self;
    return real_vfs->xRandomness(real_vfs, size, out);
}

static int
vfs_sleep(sqlite3_vfs *self, int us)
{
    (void)self;
    return real_vfs->xSleep(real_vfs, us);
}

static int
vfs_time(sqlite3_vfs *self, double *out)
{
    (void)self;
    return real_vfs->xCurrentTime(real_vfs, out);
}

static int
vfs_last_error(sqlite3_vfs *self, int size, char *out)
{
    (void)self;
    return real_vfs->xGetLastError(real_vfs, size, out);
}

static int
vfs_time64(sqlite3_vfs *self, sqlite3_int64 *out)
{
    (void)self;
    return real_vfs->xCurrentTimeInt64(real_vfs, out);
}

void
fault_vfs_register(void)
{
    if (real_vfs != NULL)
        return;
    real_vfs = sqlite3_vfs_find(NULL);
    vfs = (sqlite3_vfs){
        .iVersion = 2,
        .szOsFile = (int)sizeof(fault_file) + real_vfs->szOsFile,
        .mxPathname = real_vfs->mxPathname,
        .zName = FAULT_VFS,
        .xOpen = vfs_open,
        .xDelete = vfs_delete,
        .xAccess = vfs_access,
        .xFullPathname = vfs_full_path,
        .xRandomness = vfs_randomness,
        .xSleep = vfs_sleep,
        .xCurrentTime = vfs_time,
        .xGetLastError = vfs_last_error,
        .xCurrentTimeInt64 = vfs_time64,
    };
    (void)sqlite3_vfs_register(&vfs, 0);
}
