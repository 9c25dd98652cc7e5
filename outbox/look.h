/*
 * What inspect.c and why.c share: the cursors as they stand at one moment, where an event is for
 * one of them, and times as people read them.
 */
#ifndef IE_LOOK_H
#define IE_LOOK_H

#include <ie/inspect.h>
#include <sqlite3.h>

#include "log.h"

#define IE__LOOK_CURSORS_MAX 1024

typedef struct ie__look_cursor {
    char    name[IE__CURSOR_NAME_BYTES_MAX + 1];
    char    destination[256];
    char    order[8];
    char    owner[IE__OWNER_SIZE];             /* "": nobody */
    char    breaker[IE__REASON_BYTES_MAX + 1]; /* "": closed */
    char   *topics;                            /* as given to the worker */
    char   *words;                             /* the patterns, cut apart */
    char  **patterns;
    size_t  pattern_count;
    bool    is_alive; /* somebody holds the lease, and exists */
    bool    is_gone;  /* the owner's process certainly does not exist any more */
    int64_t position;
    int64_t claimed_to;
    int64_t epoch;
    int64_t seen_at_ms;
    int64_t lease_until_ms; /* as UTC; 0 without an owner */
    int64_t breaker_since_ms;
    int64_t breaker_until_ms;
} ie__look_cursor;

typedef struct ie__look_row { /* the delivery of one event and one cursor */
    bool     exists;
    ie_state state;
    uint32_t attempts;
    uint32_t claims;
    int64_t  due_at_ms;
    int64_t  since_ms;
    char     reason[IE__REASON_BYTES_MAX + 1];
} ie__look_row;

typedef struct ie__look {
    sqlite3         *db;
    int64_t          now_ms;
    ie__look_cursor *cursors; /* by name */
    size_t           cursor_count;
    sqlite3_stmt    *delivery;
    ie__reader      *reader;
    ie__batch       *batch; /* room for one event */
    bool             owns_transaction;
} ie__look;

/*
 * Begin one consistent look: checks the schema, opens a read transaction (unless the caller has
 * one) and reads the cursors, or only one of them: IE_ENOTFOUND when there is no such.
 */
ie_status ie__look_begin(ie__look *look, sqlite3 *db, const char *only, ie_error *err);
void      ie__look_end(ie__look *look); /* also after a begin that failed */

/* The cursors alone; the other fields stay. For those who hold a transaction. */
ie_status ie__look_cursors(ie__look *look, const char *only, ie_error *err);

ie_status ie__look_delivery(ie__look *look, const char *cursor, int64_t position, ie__look_row *row,
                            ie_error *err);
/* The event into look->batch, where it stays until the next call. IE_ENOTFOUND. */
ie_status ie__look_event(ie__look *look, int64_t position, const ie_event **event, ie_error *err);

/* Does this destination take events of the topic? */
bool     ie__look_is_routed(const ie__look_cursor *cursor, const char *topic);
ie_state ie__look_state(const ie__look_cursor *cursor, const ie__look_row *row, int64_t position);
/* Does a living worker hold this event in its memory, so that its row must not be changed now? */
bool ie__look_is_held(const ie__look_cursor *cursor, const ie__look_row *row, int64_t position);

/* Patterns divided by commas or spaces, cut apart in place; more than max are refused. */
ie_status ie__look_split(char *text, char ***patterns, size_t *count, ie_error *err);

/* The process in an owner's name, 0 when there is none. */
long ie__look_owner_process(const char *owner);

/* "340 ms", "4 s", "2 min", "3 h", "5 days". */
#define IE__SPAN_SIZE 24
void ie__look_span(char out[IE__SPAN_SIZE], int64_t ms);
/* "in 4 s (2026-11-21T21:30:04.000Z)", "2 min ago (...)". */
#define IE__WHEN_SIZE 72
void ie__look_when(char out[IE__WHEN_SIZE], int64_t now_ms, int64_t at_ms);

#endif
