/*
 * What every publisher must do, as a suite that anyone runs against a table of their own. It
 * plays the worker's part and needs nothing but libie and threads: no test framework.
 *
 * For a publisher outside this project: compile conformance.c (installed in
 * share/ie/conformance) with a program that fills in one row and says
 *
 *     int main(void) { return ie_conformance_main(&MY_ROW) == 0 ? 0 : 1; }
 *
 * then run it as it is, and once more under -fsanitize=address and =thread: the suite
 * releases events as soon as they are answered and the env as soon as close returned, so a
 * publisher that holds on to them is caught there.
 */
#ifndef IE_CONFORMANCE_H
#define IE_CONFORMANCE_H

#include <ie/publisher.h>

/* A publisher to test, and the other side of it. A case calls setup, then the rest, teardown. */
typedef struct ie_conformance_row {
    const char             *name;
    const ie_publisher_ops *ops;

    /* Make the receiving side, ready to receive; NULL means that it failed. */
    void *(*setup)(void);
    /* The URL that leads to it; lives until teardown. */
    const char *(*url)(void *peer);
    /* The next event that arrived there, transferred; NULL when none came in time. */
    ie_event *(*receive)(void *peer, int timeout_ms);
    void (*teardown)(void *peer);

    /* Optional: a URL at which nobody is, and how somebody comes there (true: is there now). */
    const char *(*url_away)(void *peer);
    bool (*come)(void *peer);

    /* A URL with an option that does not exist, and the option's name. */
    const char *bad_url;
    const char *bad_option;

    bool carries_id_only; /* the transport does not carry all of an event: compare no more */
    int  wait_ms_max;     /* for answers and arrivals; 0: 20,000 */
} ie_conformance_row;

/* The cases. NULL past the end. */
const char *ie_conformance_case_name(size_t index);

/* Run one case. False: why says, in one line, what the publisher did wrong. */
bool ie_conformance_run(const ie_conformance_row *row, size_t index, char *why, size_t why_size);

/* Run every case and print a line for each to stderr; gives the number that failed. */
size_t ie_conformance_main(const ie_conformance_row *row);

#endif
