#include "fake_publisher.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

#define POSITIONS_MAX 400000 /* of the books: what a test may number its events up to */
#define RECORDS_MAX   1000000
#define FAKES_MAX     8
#define TICKETS_MAX   70000
#define KEY_BUCKETS   4096u

typedef struct record {
    int64_t  position;
    uint64_t key; /* digest; 0: none */
} record;

/* Shared by all processes that were forked after fake_new(). */
typedef struct books {
    atomic_uint_fast64_t received;
    atomic_uint_fast64_t delivered;
    atomic_uint_fast64_t distinct;
    atomic_uint_fast64_t calls;
    atomic_uint_fast64_t opens;
    atomic_uint          peak;
    atomic_bool          is_down;
    atomic_uint          fail_open;
    atomic_flag          has_complaint;
    atomic_bool          complaint_is_written;
    char                 complaint[256];
    atomic_uint          seen[POSITIONS_MAX];
    atomic_uint          times[POSITIONS_MAX];
    _Atomic int64_t      first_ns[POSITIONS_MAX];
    record               records[RECORDS_MAX];
} books;

struct fake {
    char             name[64];
    books           *books;
    const fake_rule *rules;
    size_t           rule_count;
    fake_decide      decide;
    void            *decide_user;
    bool             may_overlap;
};

static fake *fakes[FAKES_MAX];

/* ---- one open publisher -----------------------------------------------------------------------
 */

typedef struct ticket {
    uint64_t        number;
    const ie_event *event;
    uint64_t        digest; /* of what it said when it came */
    uint64_t        key;
    fake_rule       rule;
    int64_t         due_ns;
    bool            is_used;
} ticket;

typedef struct instance {
    fake             *owner;
    ie_publisher_env *env;
    pthread_t         opener;
    pthread_t         thread;
    pthread_mutex_t   lock;
    pthread_cond_t    changed;
    bool              is_closing;
    ticket           *tickets;
    size_t            ticket_count; /* highest used + 1 */
    uint32_t          in_flight;
    uint16_t          keys[KEY_BUCKETS];
} instance;

/* Answers for after close: they belong to the next open() of the same worker. */
static pthread_mutex_t after_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    ie_publisher_env *env;
    uint64_t          number;
    ie_verdict        verdict;
} after[64];
static size_t after_count;

static void
complain(fake *owner, const char *fmt, ...)
{
    va_list args;

    if (atomic_flag_test_and_set(&owner->books->has_complaint))
        return;
    va_start(args, fmt);
    (void)vsnprintf(owner->books->complaint, sizeof owner->books->complaint, fmt, args);
    va_end(args);
    atomic_store(&owner->books->complaint_is_written, true);
}

static uint64_t
text_digest(const char *text, uint64_t seed)
{
    return text != NULL ? ie__digest(text, strlen(text), seed) : seed;
}

static uint64_t
event_digest(const ie_event *event)
{
    uint64_t digest = text_digest(event->id, 1);

    digest = text_digest(event->topic, digest);
    digest = text_digest(event->key, digest);
    digest = text_digest(event->type, digest);
    digest = text_digest(event->source, digest);
    return event->data_bytes != 0 ? ie__digest(event->data, event->data_bytes, digest) : digest;
}

static uint64_t
key_digest(const char *key)
{
    return key != NULL ? text_digest(key, 7) | 1 : 0;
}

/* Positions may be anything in SQL; the books keep what fits. */
static size_t
slot_of(int64_t position)
{
    return position > 0 && position < POSITIONS_MAX ? (size_t)position : 0;
}

static void
book_delivery(fake *owner, int64_t position, uint64_t key)
{
    books         *b = owner->books;
    const uint64_t n = atomic_fetch_add(&b->delivered, 1);
    int64_t        none = 0;

    if (n < RECORDS_MAX)
        b->records[n] = (record){position, key};
    else
        complain(owner, "more than %d deliveries", RECORDS_MAX);
    if (atomic_fetch_add(&b->times[slot_of(position)], 1) == 0)
        atomic_fetch_add(&b->distinct, 1);
    (void)atomic_compare_exchange_strong(&b->first_ns[slot_of(position)], &none, ie__mono_ns());
}

/* Under the lock: the ticket is done with; what it said must still be there. */
static void
ticket_end(instance *self, ticket *t)
{
    if (event_digest(t->event) != t->digest)
        complain(self->owner, "event at position %lld changed while it was in flight",
                 (long long)t->event->position);
    if (t->key != 0)
        self->keys[t->key % KEY_BUCKETS]--;
    self->in_flight--;
    t->is_used = false;
    while (self->ticket_count > 0 && !self->tickets[self->ticket_count - 1].is_used)
        self->ticket_count--;
}

static void
report(instance *self, uint64_t number, const fake_rule *rule)
{
    if (rule->verdict == IE_RETRY && rule->retry_after_ms != 0)
        ie_report_retry_after(self->env, number, rule->reason, rule->retry_after_ms);
    else
        ie_report(self->env, number, rule->verdict, rule->reason);
}

/* Under the lock. After the report the event's memory is no longer ours. */
static void
answer(instance *self, ticket *t)
{
    const uint64_t  number = t->number;
    const fake_rule rule = t->rule;

    if (rule.verdict == IE_DELIVERED)
        book_delivery(self->owner, t->event->position, t->key);
    ticket_end(self, t);
    if (rule.when == FAKE_STRAY) {
        ie_report(self->env, number ^ (UINT64_C(1) << 62), IE_REJECTED, "for a ticket that never was");
        ie_report(self->env, UINT64_MAX, IE_DELIVERED, NULL);
        ie_report(self->env, number, (ie_verdict)77, "no such verdict");
    }
    report(self, number, &rule);
    if (rule.when == FAKE_TWICE)
        ie_report(self->env, number, rule.verdict == IE_DELIVERED ? IE_REJECTED : IE_DELIVERED,
                  "second answer");
}

static void *
late_main(void *argument)
{
    instance *self = argument;

    (void)pthread_mutex_lock(&self->lock);
    while (!self->is_closing) {
        const int64_t   now_ns = ie__mono_ns();
        int64_t         next_ns = now_ns + 1000000000;
        struct timespec until;

        for (size_t i = 0; i < self->ticket_count; i++) {
            ticket *t = &self->tickets[i];

            if (!t->is_used || t->rule.when != FAKE_LATE)
                continue;
            if (t->due_ns <= now_ns)
                answer(self, t);
            else if (t->due_ns < next_ns)
                next_ns = t->due_ns;
        }
        until.tv_sec = next_ns / 1000000000;
        until.tv_nsec = next_ns % 1000000000;
        (void)pthread_cond_timedwait(&self->changed, &self->lock, &until);
    }
    (void)pthread_mutex_unlock(&self->lock);
    return NULL;
}

static fake_rule
rule_for(fake *owner, const ie_event *event, uint32_t seen)
{
    if (atomic_load(&owner->books->is_down))
        return (fake_rule){.verdict = IE_UNREACHABLE, .reason = "the fake is down"};
    if (owner->decide != NULL)
        return owner->decide(owner->decide_user, event, seen);
    for (size_t i = 0; i < owner->rule_count; i++) {
        const fake_rule *rule = &owner->rules[i];

        if ((rule->topic == NULL || strcmp(rule->topic, event->topic) == 0) &&
            (rule->key == NULL || strcmp(rule->key, event->key != NULL ? event->key : "") == 0) &&
            (rule->id == NULL || strcmp(rule->id, event->id) == 0) &&
            (rule->from == 0 || seen >= rule->from) && (rule->to == 0 || seen <= rule->to))
            return *rule;
    }
    return (fake_rule){.verdict = IE_DELIVERED};
}

static ticket *
ticket_new(instance *self)
{
    size_t i = 0;

    while (i < self->ticket_count && self->tickets[i].is_used)
        i++;
    if (i == TICKETS_MAX) {
        complain(self->owner, "more than %d events in flight", TICKETS_MAX);
        return NULL;
    }
    if (i == self->ticket_count)
        self->ticket_count++;
    return &self->tickets[i];
}

static void
take(instance *self, const ie_outgoing *out)
{
    fake           *owner = self->owner;
    const ie_event *event = out->event;
    const uint32_t  seen = atomic_fetch_add(&owner->books->seen[slot_of(event->position)], 1) + 1;
    ticket         *t = ticket_new(self);
    unsigned        peak = atomic_load(&owner->books->peak);

    if (t == NULL)
        return;
    *t = (ticket){.number = out->ticket,
                  .event = event,
                  .digest = event_digest(event),
                  .key = key_digest(event->key),
                  .rule = rule_for(owner, event, seen),
                  .is_used = true};
    if (out->attempt == 0)
        complain(owner, "attempt 0");
    if (t->rule.when == FAKE_EXIT)
        _exit(77);
    /* A bucket may hold two keys: look closer before complaining. */
    if (t->key != 0 && !owner->may_overlap && self->keys[t->key % KEY_BUCKETS] > 0)
        for (size_t i = 0; i < self->ticket_count; i++)
            if (&self->tickets[i] != t && self->tickets[i].is_used &&
                self->tickets[i].key == t->key)
                complain(owner, "positions %lld and %lld of key %s are in flight together",
                         (long long)self->tickets[i].event->position, (long long)event->position,
                         event->key);
    if (t->key != 0)
        self->keys[t->key % KEY_BUCKETS]++;
    self->in_flight++;
    while (self->in_flight > peak &&
           !atomic_compare_exchange_weak(&owner->books->peak, &peak, self->in_flight)) {
    }
    switch (t->rule.when) {
    case FAKE_LATE:
        t->due_ns = ie__mono_ns() + (int64_t)t->rule.late_ms * 1000000;
        (void)pthread_cond_signal(&self->changed);
        break;
    case FAKE_NEVER: break;
    case FAKE_AFTER_CLOSE:
        (void)pthread_mutex_lock(&after_lock);
        ck_assert_uint_lt(after_count, sizeof after / sizeof after[0]);
        after[after_count].env = self->env;
        after[after_count].number = t->number;
        after[after_count++].verdict = t->rule.verdict;
        (void)pthread_mutex_unlock(&after_lock);
        break;
    default: answer(self, t); break;
    }
}

/* ---- the tables
 * ---------------------------------------------------------------------------------- */

static ie_status
fake_open(void **self_out, const char *url, ie_publisher_env *env, ie_error *err)
{
    const char        *name = strchr(url, ':') + 1;
    fake              *owner = NULL;
    instance          *self;
    pthread_condattr_t attr;
    unsigned           fails;

    for (size_t i = 0; i < FAKES_MAX; i++)
        if (fakes[i] != NULL && strcmp(fakes[i]->name, name) == 0)
            owner = fakes[i];
    if (owner == NULL)
        return ie_error_set(err, IE_EINVAL, "no fake publisher is called %s", name);
    atomic_fetch_add(&owner->books->opens, 1);
    fails = atomic_load(&owner->books->fail_open);
    while (fails > 0)
        if (atomic_compare_exchange_weak(&owner->books->fail_open, &fails, fails - 1))
            return ie_error_set(err, IE_EIO, "told to fail");
    self = calloc(1, sizeof *self);
    ck_assert_ptr_nonnull(self);
    self->tickets = calloc(TICKETS_MAX, sizeof *self->tickets);
    ck_assert_ptr_nonnull(self->tickets);
    self->owner = owner;
    self->env = env;
    self->opener = pthread_self();
    (void)pthread_mutex_init(&self->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&self->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    ck_assert_int_eq(pthread_create(&self->thread, NULL, late_main, self), 0);
    (void)pthread_mutex_lock(&after_lock);
    for (size_t i = 0; i < after_count; i++)
        if (after[i].env == env) {
            ie_report(env, after[i].number, after[i].verdict, "after close");
            after[i--] = after[--after_count];
        }
    (void)pthread_mutex_unlock(&after_lock);
    *self_out = self;
    return IE_OK;
}

static void
fake_publish(void *argument, const ie_outgoing *events, size_t count)
{
    instance *self = argument;
    uint32_t  block_ms = 0;

    atomic_fetch_add(&self->owner->books->calls, 1);
    atomic_fetch_add(&self->owner->books->received, count);
    if (!pthread_equal(self->opener, pthread_self()))
        complain(self->owner, "publish() came from another thread than open()");
    for (size_t i = 0; i < count; i++) {
        const uint32_t seen =
            atomic_load(&self->owner->books->seen[slot_of(events[i].event->position)]);
        const fake_rule rule = rule_for(self->owner, events[i].event, seen + 1);

        if (rule.block_ms > block_ms)
            block_ms = rule.block_ms;
    }
    if (block_ms > 0)
        (void)poll(NULL, 0, (int)block_ms); /* what a slow peer does to a blocking publisher */
    (void)pthread_mutex_lock(&self->lock);
    for (size_t i = 0; i < count; i++)
        take(self, &events[i]);
    (void)pthread_mutex_unlock(&self->lock);
}

static void
fake_close(void *argument)
{
    instance *self = argument;

    if (!pthread_equal(self->opener, pthread_self()))
        complain(self->owner, "close() came from another thread than open()");
    (void)pthread_mutex_lock(&self->lock);
    self->is_closing = true;
    for (size_t i = self->ticket_count; i-- > 0;)
        if (self->tickets[i].is_used)
            ticket_end(self, &self->tickets[i]);
    (void)pthread_cond_signal(&self->changed);
    (void)pthread_mutex_unlock(&self->lock);
    (void)pthread_join(self->thread, NULL);
    (void)pthread_cond_destroy(&self->changed);
    (void)pthread_mutex_destroy(&self->lock);
    free(self->tickets);
    free(self);
}

static const ie_publisher_ops FAKE = {.size = sizeof FAKE,
                                      .scheme = "fake",
                                      .flags = IE_PUBLISHER_NONBLOCKING,
                                      .open = fake_open,
                                      .publish = fake_publish,
                                      .close = fake_close};

static const ie_publisher_ops FAKE_BLOCK = {.size = sizeof FAKE_BLOCK,
                                            .scheme = "fakeblock",
                                            .open = fake_open,
                                            .publish = fake_publish,
                                            .close = fake_close};

void
fake_register(ie_publishers *publishers)
{
    ck_assert_int_eq(ie_publishers_add(publishers, &FAKE, NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_add(publishers, &FAKE_BLOCK, NULL), IE_OK);
}

fake *
fake_new(const char *name)
{
    fake  *publisher = calloc(1, sizeof *publisher);
    size_t i = 0;

    ck_assert_ptr_nonnull(publisher);
    (void)snprintf(publisher->name, sizeof publisher->name, "%s", name);
    publisher->books = mmap(NULL, sizeof *publisher->books, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ck_assert(publisher->books != MAP_FAILED);
    while (i < FAKES_MAX && fakes[i] != NULL)
        i++;
    ck_assert_uint_lt(i, FAKES_MAX);
    fakes[i] = publisher;
    return publisher;
}

void
fake_free(fake *publisher)
{
    if (publisher == NULL)
        return;
    for (size_t i = 0; i < FAKES_MAX; i++)
        if (fakes[i] == publisher)
            fakes[i] = NULL;
    (void)munmap(publisher->books, sizeof *publisher->books);
    free(publisher);
}

void
fake_script(fake *publisher, const fake_rule *rules, size_t count)
{
    publisher->rules = rules;
    publisher->rule_count = count;
}

void
fake_decider(fake *publisher, fake_decide decide, void *user)
{
    publisher->decide = decide;
    publisher->decide_user = user;
}

void
fake_down(fake *publisher, bool is_down)
{
    atomic_store(&publisher->books->is_down, is_down);
}

void
fake_fail_open(fake *publisher, uint32_t times)
{
    atomic_store(&publisher->books->fail_open, times);
}

void
fake_allow_overlap(fake *publisher)
{
    publisher->may_overlap = true;
}

uint64_t
fake_received(const fake *publisher)
{
    return atomic_load(&publisher->books->received);
}

uint64_t
fake_delivered(const fake *publisher)
{
    return atomic_load(&publisher->books->delivered);
}

uint64_t
fake_distinct(const fake *publisher)
{
    return atomic_load(&publisher->books->distinct);
}

uint64_t
fake_calls(const fake *publisher)
{
    return atomic_load(&publisher->books->calls);
}

uint64_t
fake_opens(const fake *publisher)
{
    return atomic_load(&publisher->books->opens);
}

uint32_t
fake_in_flight_peak(const fake *publisher)
{
    return atomic_load(&publisher->books->peak);
}

uint32_t
fake_seen(const fake *publisher, int64_t position)
{
    return atomic_load(&publisher->books->seen[slot_of(position)]);
}

uint32_t
fake_times(const fake *publisher, int64_t position)
{
    return atomic_load(&publisher->books->times[slot_of(position)]);
}

int64_t
fake_nth(const fake *publisher, uint64_t n)
{
    return n < fake_delivered(publisher) && n < RECORDS_MAX ? publisher->books->records[n].position
                                                            : 0;
}

int64_t
fake_when_ns(const fake *publisher, int64_t position)
{
    return atomic_load(&publisher->books->first_ns[slot_of(position)]);
}

void
fake_reset(fake *publisher)
{
    const bool is_down = atomic_load(&publisher->books->is_down);

    /* New pages instead of writing zeros over tens of megabytes. */
    ck_assert_int_eq(madvise(publisher->books, sizeof *publisher->books, MADV_REMOVE), 0);
    atomic_store(&publisher->books->is_down, is_down);
}

const char *
fake_complaint(const fake *publisher)
{
    return atomic_load(&publisher->books->complaint_is_written) ? publisher->books->complaint : "";
}

void
fake_check_order(const fake *publisher, bool is_strict)
{
    enum { TABLE = 1 << 16 };
    struct last {
        uint64_t key;
        int64_t  position;
    } *table = calloc(TABLE, sizeof *table);
    unsigned char *was = calloc(POSITIONS_MAX, 1);
    const uint64_t count = fake_delivered(publisher);

    ck_assert(table != NULL && was != NULL);
    for (uint64_t n = 0; n < count; n++) {
        const record *at = &publisher->books->records[n];
        uint64_t      key = is_strict ? 1 : at->key;
        size_t        i;

        if (was[slot_of(at->position)] || key == 0)
            continue;
        was[slot_of(at->position)] = 1;
        for (i = key % TABLE; table[i].key != 0 && table[i].key != key;)
            i = (i + 1) % TABLE;
        table[i].key = key;
        ck_assert_msg(table[i].position < at->position,
                      "position %lld was delivered first after %lld of the same key",
                      (long long)at->position, (long long)table[i].position);
        table[i].position = at->position;
    }
    free(was);
    free(table);
}
