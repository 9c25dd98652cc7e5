/*
 * How long a login has to wait, by its address and its user. The first failures are free; then one
 * check at a time is let through, after a delay that doubles. Who was right from the same address
 * before does not wait. A table of fixed size: whoever floods it pushes out the harmless first.
 */
#ifndef IE_THROTTLE_H
#define IE_THROTTLE_H

#include <ie/base.h>

#define IE__THROTTLE_FREE    5      /* failures */
#define IE__THROTTLE_DOUBLES 3      /* the delay is at most 8 times the first */
#define IE__THROTTLE_FORGETS 600000 /* ms after the last failure */
#define IE__THROTTLE_SETS    512    /* a power of two */
#define IE__THROTTLE_WAYS    4

typedef struct ie__throttle ie__throttle;

/* Keys are hashes of what they stand for (ie__hash()): address, user, and both together. */
typedef struct ie__throttle_keys {
    uint64_t address;
    uint64_t user; /* 0: not known, as with a token */
    uint64_t pair;
} ie__throttle_keys;

ie__throttle *ie__throttle_new(void); /* NULL: out of memory */
void          ie__throttle_free(ie__throttle *throttle);
/* When may this login be checked; now_ms: at once. -1: too many wait already. */
int64_t ie__throttle_due(ie__throttle *throttle, const ie__throttle_keys *keys, int64_t now_ms,
                         uint32_t delay_ms);
void    ie__throttle_note(ie__throttle *throttle, const ie__throttle_keys *keys, bool was_right,
                          int64_t now_ms, uint32_t delay_ms);

#endif
