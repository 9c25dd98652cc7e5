/*
 * The insides of durable groups, for the durable*.c files alone.
 *
 * An event of a group is, from the moment it is taken from the log, an item: in the hands of
 * group.c, or resting until what its handler needs is back. It ends by being *settled* (handled) or
 * *noted* (a row in the log says: again later, blocked behind its key, dead). The cursor is the
 * position before the first item that is neither. Items that come from such a row are *noted* from
 * the start and hold no cursor.
 */
#ifndef IE_DURABLE_PARTS_H
#define IE_DURABLE_PARTS_H

#include "durable.h"

#define IE__DUE_MAX 64 /* noted items of a group in memory */

typedef struct ie__log_item ie__log_item;
struct ie__log_item {
    ie__item      item; /* first */
    ie__log_item *prev; /* in its group's list, by position */
    ie__log_item *next;
    ie__log_item *rest_next;
    bool          is_noted;
    bool          is_resting;
};

typedef struct ie__log_items {
    ie__log_item *first;
    ie__log_item *last;
} ie__log_items;

/* Keys that have noted events, with how many: a table with open addressing. */
typedef struct ie__held_key {
    uint64_t key; /* 0: empty */
    uint64_t count;
} ie__held_key;
typedef struct ie__held_keys {
    ie__held_key *slots;
    size_t        count;
    size_t        max; /* a power of two, or 0 */
} ie__held_keys;

struct ie__durable_group {
    ie__durable       *durable;
    ie__group         *group;
    ie__durable_group *next;          /* of all */
    ie__durable_group *dirty_next;    /* its cursor has moved */
    ie__group_row      row;           /* dead, waiting and lost are kept up to date */
    int64_t            read_to;       /* everything up to here was taken, or is not for the group */
    int64_t            sent_to;       /* the newest that a member ever had */
    int64_t            marked;        /* the cursor as it was submitted last */
    int64_t            due_at_ms;     /* UTC: a noted event is due; INT64_MAX: none */
    int64_t            rest_until_ms; /* loop time; 0: nothing rests */
    uint32_t           rest_ms;
    uint32_t           generation; /* what was read before a move is void */
    ie__log_items      items;      /* neither settled nor noted */
    ie__log_items      due;        /* noted */
    ie__log_item      *resting;
    size_t             due_count;
    uint64_t           count; /* of all items */
    uint64_t           bytes;
    ie__held_keys      held;
    ie__mark_job       mark;
    bool               is_tail; /* there is nothing to read: what comes is taken as it is stored */
    bool               is_reading;
    bool               is_reading_due;
    bool               is_marking;
    bool               is_dirty;
    bool               is_making; /* not stored yet */
    bool               is_moving;
    bool               is_pausing;
    bool               is_ending;
};

struct ie__durable_rules {
    ie__topics      *durable;
    ie__topics      *ephemeral;
    ie__topic_entry *entries;
    size_t           ephemeral_count;
    size_t           durable_count;
};

typedef struct ie__stored ie__stored;

struct ie__durable {
    ie_bus_server     *server;
    ie__store         *store;
    ie__durable_rules *rules;
    ie__durable_group *groups;
    ie__durable_group *dirty;
    size_t             group_count;
    int64_t            last;  /* newest position whose results were seen */
    uint64_t           bytes; /* of items in memory */
    uint64_t           storing;
    uv_timer_t         timer;       /* due events and rests */
    int64_t            timer_at_ms; /* loop time; 0: it does not run */
    uv_timer_t         marks;       /* cursors are written so often */
    uv_timer_t         sweep;       /* ... of groups at whom events only pass by */
    bool               has_timers;
    bool               is_stopped;
    bool               is_dead_stale; /* the number of dead letters shown is not right any more */
};

/* ---- durable.c ---- */

ie__durable_group *ie__durable_group_new(ie__durable *durable, const ie__group_row *row);
/* It must have no members and nothing may be under way. */
void               ie__durable_group_free(ie__durable_group *g);
ie__durable_group *ie__durable_of(const ie__group *group);

/* ---- durable_feed.c ---- */

extern const ie__feeder ie__log_feeder;
/* group.c wants more. */
void ie__durable_hungry(ie__group *group);
/* An event was stored: for a group that keeps up it comes from here. */
void ie__durable_offer(ie__durable_group *g, ie__blob *record, int64_t position, uint64_t key);
/* Where the group stands. */
int64_t ie__durable_cursor(const ie__durable_group *g);
void    ie__durable_dirty(ie__durable_group *g);
/* Submit the cursor if it has moved. */
void ie__durable_mark(ie__durable_group *g);
/* The same at the end, whatever is under way. */
void ie__durable_mark_last(ie__durable_group *g);
/* Noted events may be due at this time (UTC). */
void ie__durable_due(ie__durable_group *g, int64_t at_ms);
/* The next event of the key that is blocked becomes due. */
void ie__durable_release(ie__durable_group *g, uint64_t key);
/* Look at due events and rests at this time of the loop. */
void ie__durable_wake_at(ie__durable *durable, int64_t at_ms);
/* Forget all items that nobody has (the group is moved, or ends). */
void ie__durable_forget(ie__durable_group *g);
void ie__durable_on_timer(uv_timer_t *timer);
void ie__durable_on_marks(uv_timer_t *timer);
void ie__durable_on_sweep(uv_timer_t *timer);

/* ---- durable_keys.c ---- */

bool ie__held_has(const ie__held_keys *held, uint64_t key);
bool ie__held_add(ie__held_keys *held, uint64_t key, uint64_t count); /* false: no memory */
/* One less; true: others of the key remain. */
bool ie__held_drop(ie__held_keys *held, uint64_t key);
void ie__held_fini(ie__held_keys *held);

#endif
