/* A table of things with a number, which hold their own links: finding, adding and removing cost
 * the same however many there are. */
#ifndef IE_NUMBERS_H
#define IE_NUMBERS_H

#include <ie/base.h>

/* Embedded in what is found by its number. */
typedef struct ie__numbered {
    struct ie__numbered *chain;
    uint32_t             number;
} ie__numbered;

typedef struct ie__numbers {
    ie__numbered **buckets;
    size_t         bucket_count; /* a power of two, or 0 */
    size_t         count;
} ie__numbers;

/* The number must not be in the table. IE_ENOMEM: nothing was added. */
ie_status     ie__numbers_add(ie__numbers *numbers, ie__numbered *entry, uint32_t number);
ie__numbered *ie__numbers_find(const ie__numbers *numbers, uint32_t number); /* or NULL */
void          ie__numbers_remove(ie__numbers *numbers, ie__numbered *entry);
/* For removing all: any that is left; NULL when there is none. *from starts as 0. */
ie__numbered *ie__numbers_any(const ie__numbers *numbers, size_t *from);
void          ie__numbers_fini(ie__numbers *numbers);

#endif
