/* How a set of publishers is kept; for registry.c and builtin.c. */
#ifndef IE_PUBLISHER_REGISTRY_H
#define IE_PUBLISHER_REGISTRY_H

#include <ie/publisher.h>

#define IE__PUBLISHERS_MAX   64
#define IE__SCHEME_BYTES_MAX 31

/* What a table had to bring in the first release; later slots are optional and read as NULL. */
#define IE__PUBLISHER_OPS_SIZE_MIN offsetof(ie_publisher_ops, flush)

typedef struct ie__publisher_entry {
    ie_publisher_ops ops; /* ops.scheme points to the copy below */
    char             scheme[IE__SCHEME_BYTES_MAX + 1];
} ie__publisher_entry;

struct ie_publishers {
    size_t               count;
    ie__publisher_entry *entries[IE__PUBLISHERS_MAX]; /* one block each: found tables stay put */
};

/* Check a table and import it into memory of the caller's; for sets that must not allocate. */
ie_status ie__publishers_import(ie__publisher_entry *entry, const ie_publishers *publishers,
                                const ie_publisher_ops *ops, ie_error *err);

#endif
