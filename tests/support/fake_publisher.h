/*
 * A publisher that follows a script: every verdict, at once, late, twice, never, for tickets that
 * never were, after close. It keeps the books in memory that forked workers share, and watches what
 * the worker promises to publishers: no two events of one key in flight together, events readable
 * and unchanged until they are answered, open, publish and close from one thread.
 */
#ifndef IE_TEST_FAKE_PUBLISHER_H
#define IE_TEST_FAKE_PUBLISHER_H

#include <ie/publisher.h>
#include <sqlite3.h>

typedef enum fake_when {
    FAKE_NOW,         /* before publish() returns */
    FAKE_LATE,        /* from another thread, late_ms after */
    FAKE_TWICE,       /* now, and once more with the opposite verdict */
    FAKE_NEVER,       /* no answer; closing the publisher ends it */
    FAKE_AFTER_CLOSE, /* the answer comes when the publisher has been closed and opened again */
    FAKE_STRAY,       /* first an answer for a ticket that never was, then the right one */
    FAKE_EXIT         /* the process ends without a word */
} fake_when;

/* The first rule that fits decides; no rule: delivered at once. */
typedef struct fake_rule {
    const char *topic; /* NULL: any */
    const char *key;   /* NULL: any; "" events without a key */
    const char *id;    /* NULL: any */
    uint32_t    from;  /* the event is sent for the from-th .. to-th time, by anyone; 0: no bound */
    uint32_t    to;
    fake_when   when;
    ie_verdict  verdict;
    const char *reason;
    uint32_t    late_ms;        /* FAKE_LATE */
    uint32_t    retry_after_ms; /* with IE_RETRY: ie_report_retry_after() */
    uint32_t    block_ms;       /* a blocking publisher sits in publish() so long */
} fake_rule;

typedef struct fake fake;

/* Gives verdicts from code instead of rules; must be the same for the same arguments where runs are
 * compared. */
typedef fake_rule (*fake_decide)(void *user, const ie_event *event, uint32_t seen);

/* In shared memory, made before any fork. url: "fake:<name>" never blocks, "fakeblock:<name>" may.
 */
fake *fake_new(const char *name);
void  fake_free(fake *publisher);
/* Add both schemes to a set. */
void fake_register(ie_publishers *publishers);

void fake_script(fake *publisher, const fake_rule *rules, size_t count); /* borrowed */
void fake_decider(fake *publisher, fake_decide decide, void *user);
/* While true every event is IE_UNREACHABLE. Threads: any. */
void fake_down(fake *publisher, bool is_down);
/* How often open() fails from now on. */
void fake_fail_open(fake *publisher, uint32_t times);
/* Order none and take-overs: events of one key may meet. */
void fake_allow_overlap(fake *publisher);

/* Counts since fake_new() or fake_reset(), of all processes. */
uint64_t fake_received(const fake *publisher);  /* events handed to publish(), repeats too */
uint64_t fake_delivered(const fake *publisher); /* answered IE_DELIVERED, repeats too */
uint64_t fake_distinct(const fake *publisher);  /* events delivered at least once */
uint64_t fake_calls(const fake *publisher);     /* of publish() */
uint64_t fake_opens(const fake *publisher);
uint32_t fake_in_flight_peak(const fake *publisher);
uint32_t fake_seen(const fake *publisher, int64_t position);  /* how often it was handed over */
uint32_t fake_times(const fake *publisher, int64_t position); /* how often it was delivered */
/* Position of the n-th delivery (0-based), in the order of delivery; 0 when there was none. */
int64_t fake_nth(const fake *publisher, uint64_t n);
/* Monotonic ns of the first delivery of this position; 0 when there was none. */
int64_t fake_when_ns(const fake *publisher, int64_t position);
void    fake_reset(fake *publisher);

/* "" or what the worker did that it must not. */
const char *fake_complaint(const fake *publisher);
/* First deliveries of each key (strict: of all) are in the order of positions; fails the test
 * otherwise. */
void fake_check_order(const fake *publisher, bool is_strict);

#endif
