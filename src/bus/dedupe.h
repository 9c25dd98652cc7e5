/*
 * Ids that were stored lately, so that a publish that comes again is stored once. Memory grows with
 * the ids that are remembered; an id is 128 bits of keyed hash, so nobody can aim at a collision.
 */
#ifndef IE_DEDUPE_H
#define IE_DEDUPE_H

#include <ie/event.h>

typedef struct ie__dedupe ie__dedupe;

typedef struct ie__dedupe_key {
    uint64_t high;
    uint64_t low;
} ie__dedupe_key;

/* window_ms: how long an id is remembered; ids_max: how many, the newest. NULL: out of memory. */
ie__dedupe *ie__dedupe_new(uint32_t window_ms, uint32_t ids_max);
void        ie__dedupe_free(ie__dedupe *dedupe); /* NULL is accepted */

ie__dedupe_key ie__dedupe_key_of(const ie__dedupe *dedupe, const char *source, const char *id);
/* The position that was remembered with it, 0 when it is not (or not any more). */
int64_t ie__dedupe_find(const ie__dedupe *dedupe, ie__dedupe_key key, int64_t now_ms);
/* Remember; at ids_max the oldest is forgotten. IE_ENOMEM: it is not remembered. */
ie_status ie__dedupe_add(ie__dedupe *dedupe, ie__dedupe_key key, int64_t position, int64_t now_ms);
/* Forget the newest that were added (their transaction failed). */
void ie__dedupe_undo(ie__dedupe *dedupe, size_t count);
/* Forget what is older than the window. */
void   ie__dedupe_expire(ie__dedupe *dedupe, int64_t now_ms);
size_t ie__dedupe_count(const ie__dedupe *dedupe);

#endif
