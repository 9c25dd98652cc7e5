/*
 * Answers to deliveries that a person or a script types: "ack", "nack 5s out of stock", "reject
 * 3 no such order", a line each. A line without a number is about the oldest unanswered event; one
 * that comes before its event waits for it. So "yes ack" answers them all.
 *
 * The caller serializes.
 */
#ifndef IE_CLI_MANUAL_H
#define IE_CLI_MANUAL_H

#include <ie/bus.h>

#define MANUAL_LINE_MAX 1024

typedef struct manual {
    struct {
        uint64_t token;
        int64_t  number;
    } * open; /* unanswered, oldest first */
    size_t  count;
    size_t  max;
    int64_t last_number;
    char    line[MANUAL_LINE_MAX]; /* what was read and is not done with */
    size_t  line_bytes;
    bool    is_at_end; /* standard input is */
    bool    is_too_long;
} manual;

/* The number that the event is shown with; 0: no memory. */
int64_t manual_add(manual *self, uint64_t token);
/* Are there lines to read now? Not while one waits for its event. */
bool manual_wants_input(const manual *self);
/* Standard input is readable. */
void manual_read(manual *self);
/* Do what can be done. How many events were answered. */
int64_t manual_apply(manual *self, ie_bus_client *client);
/* Nothing more can be said. */
bool manual_is_over(const manual *self);
void manual_fini(manual *self);

#endif
