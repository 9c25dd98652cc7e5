/* Deadlines, the nearest at hand: one timer serves as many as there are. */
#ifndef IE_DEADLINES_H
#define IE_DEADLINES_H

#include <ie/base.h>

/* Embedded in what has a deadline. */
typedef struct ie__deadline {
    int64_t at_ms;
    size_t  place; /* in the heap, from 1; 0: in none */
} ie__deadline;

typedef struct ie__deadlines {
    ie__deadline **heap;
    size_t         count;
    size_t         max;
} ie__deadlines;

/* IE_ENOMEM: nothing was added. */
ie_status ie__deadlines_add(ie__deadlines *deadlines, ie__deadline *deadline, int64_t at_ms);
void      ie__deadlines_remove(ie__deadlines *deadlines, ie__deadline *deadline);
/* The nearest; NULL when there is none. */
ie__deadline *ie__deadlines_first(const ie__deadlines *deadlines);
void          ie__deadlines_fini(ie__deadlines *deadlines);

#endif
