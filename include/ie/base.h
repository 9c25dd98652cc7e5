/**
 * @file
 * Status codes, errors, logging, versions: what every other header builds on.
 */
#ifndef IE_BASE_H
#define IE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define IE_API                  __attribute__((visibility("default")))
#define IE_PRINTF(fmt_, first_) __attribute__((format(printf, fmt_, first_)))
#else
#define IE_API
#define IE_PRINTF(fmt_, first_)
#endif

#define IE_VERSION_MAJOR 0
#define IE_VERSION_MINOR 1
#define IE_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/*
 * One list makes the enum, the names and the texts, so they cannot drift.
 * A status exists only where a caller would act differently on it.
 */
#define IE_STATUS_MAP(X)                                                                           \
    X(IE_OK, 0, "success")                                                                         \
    X(IE_EINVAL, -1, "invalid argument")                                                           \
    X(IE_ENOMEM, -2, "out of memory")                                                              \
    X(IE_EIO, -3, "input/output error")                                                            \
    X(IE_ENOTSUP, -4, "not supported by this build or version")                                    \
    X(IE_ENOTXN, -5, "no transaction is open on this connection")                                  \
    X(IE_EBUSY, -6, "the database is locked; try again")                                           \
    X(IE_EBUSY_SNAPSHOT, -7, "the transaction reads an old snapshot; roll back and run it again")  \
    X(IE_ETXN_ABORTED, -8, "SQLite gave up the caller's transaction; run it again from its start") \
    X(IE_EFULL, -9, "storage is full")                                                             \
    X(IE_EREADONLY, -10, "the database is read-only")                                              \
    X(IE_ESCHEMA_MISSING, -11, "the ie tables are missing; run the migrations")                    \
    X(IE_ESCHEMA_NEWER, -12, "the ie tables are newer than this library")                          \
    X(IE_ESCHEMA, -13, "the ie tables are not as this library expects")                            \
    X(IE_EFORKED, -14, "used in a child of the process that opened it")                            \
    X(IE_ESWALLOWED, -15, "something swallowed the insert; nothing was written")                   \
    X(IE_EDENIED, -16, "not authorized")                                                           \
    X(IE_ETOOBIG, -17, "larger than the limit")                                                    \
    X(IE_ECORRUPT, -18, "the database file is damaged")                                            \
    X(IE_EMOVED, -19, "the database file was moved or replaced")                                   \
    X(IE_ECURSOR, -20, "a cursor stands beyond the log")                                           \
    X(IE_ELEASE, -21, "the lease is held by someone else")                                         \
    X(IE_ENOTFOUND, -22, "not found")                                                              \
    X(IE_ESTATE, -23, "not possible in the present state")                                         \
    X(IE_EEXIST, -24, "already exists")                                                            \
    X(IE_EUNSAFE, -25, "this journal or synchronous mode would lose events")                       \
    X(IE_EUNREACHABLE, -26, "cannot reach the other side")                                         \
    X(IE_EREFUSED, -27, "the other side refused")                                                  \
    X(IE_EPROTO, -28, "the other side broke the protocol")                                         \
    X(IE_ETIMEDOUT, -29, "timed out")                                                              \
    X(IE_ECLOSED, -30, "closed")                                                                   \
    X(IE_ELIMIT, -31, "a configured limit is reached")                                             \
    X(IE_EHANDLER, -32, "the handler failed")                                                      \
    X(IE_ECONFLICT, -33, "same id, different content")

typedef enum ie_status {
#define IE_STATUS_ENUM(name, value, text) name = value,
    IE_STATUS_MAP(IE_STATUS_ENUM)
#undef IE_STATUS_ENUM
} ie_status;

/** The constant's own name, "IE_EINVAL"; "IE_?" for an unknown value. Threads: any. */
IE_API const char *ie_status_name(ie_status status);

/** One lower-case sentence without a full stop. Threads: any. */
IE_API const char *ie_status_text(ie_status status);

#define IE_ERROR_MESSAGE_SIZE 252

/** A failure in words. The caller owns it; the layout is frozen for 1.x. */
typedef struct ie_error {
    ie_status status;
    char      message[IE_ERROR_MESSAGE_SIZE]; /* always terminated; empty on success */
} ie_error;

#define IE_ERROR_INIT                                                                              \
    {                                                                                              \
        IE_OK, ""                                                                                  \
    }

/**
 * Record a failure and hand its status back. The first failure wins: trouble met
 * while cleaning up must not hide the cause. @p err may be NULL. Threads: any.
 */
IE_API ie_status ie_error_set(ie_error *err, ie_status status, const char *fmt, ...)
    IE_PRINTF(3, 4);

/** Make @p err empty again, ready for the next call. NULL is accepted. Threads: any. */
IE_API void ie_error_clear(ie_error *err);

typedef enum ie_log_level {
    IE_LOG_ERROR = 0, /* someone should look */
    IE_LOG_WARN = 1,  /* works, but not as it should */
    IE_LOG_INFO = 2,  /* a state changed: started, lease taken, breaker open */
    IE_LOG_DEBUG = 3
} ie_log_level;

/**
 * Where the library's log lines go. It never prints by itself.
 *
 * @param module  the part that speaks: "worker", "bus", "client", ...
 * @param message one line without a newline; valid during the call.
 *
 * Threads: called from the library's threads; may be called concurrently when one
 * logger serves several objects. Must not call back into the object that logs.
 */
typedef void (*ie_log_fn)(void *user, ie_log_level level, const char *module, const char *message);

/** A log sink; all zero means silent. Copied wherever it is passed. */
typedef struct ie_logger {
    ie_log_fn fn;
    void     *user; /* borrowed: outlives every object that got the logger */
} ie_logger;

/** The library's version as text, "0.1.0". Threads: any. */
IE_API const char *ie_version(void);

/**
 * Time as the library sees it. NULL where a clock is asked for means the system's.
 * Tests pass a virtual one. Threads: the functions are called from any thread.
 */
typedef struct ie_clock {
    int64_t (*wall_ms)(void *user); /* UTC, milliseconds since 1970; may jump */
    int64_t (*boot_ms)(void *user); /* milliseconds since boot, suspend included; never jumps */
    void *user;
} ie_clock;

/** A growable byte buffer. Zero-initialise; release with ie_buffer_fini(). */
typedef struct ie_buffer {
    char  *data; /* not terminated unless the function that filled it says so */
    size_t size;
    size_t capacity;
} ie_buffer;

/** Release the bytes and make the buffer empty. Threads: owner. */
IE_API void ie_buffer_fini(ie_buffer *buffer);

#ifdef __cplusplus
}
#endif
#endif
