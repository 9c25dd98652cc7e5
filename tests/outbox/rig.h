/* What the worker's tests share: a database with an outbox, a fake publisher, workers on it. */
#ifndef IE_TEST_RIG_H
#define IE_TEST_RIG_H

#include <ie/outbox.h>
#include <ie/worker.h>

#include <stdatomic.h>
#include <sys/types.h>

#include "fake_publisher.h"
#include "support.h"

typedef struct rig {
    sqlite3       *db;
    ie_outbox     *outbox;
    ie_publishers *publishers;
    fake          *fake; /* "fake:a" */
    test_clock     clock;
    ie_worker_options
         options; /* one destination fake:a; quick delays; no virtual clock until asked */
    char path[512];

    /* From the callbacks; the reasons are the last ones. */
    atomic_uint published;
    atomic_uint dead;
    atomic_uint expired;
    atomic_uint errors;
    atomic_int  last_status;
    char        last_reason[600];
    char        last_error[300];
    char        last_dead_id[64];
} rig;

extern rig the_rig;

void rig_setup(void);    /* checked fixtures */
void rig_teardown(void); /* also fails on what the fake complains about */
/* Use the virtual clock, at 2026-11-21 12:00 UTC. */
void rig_virtual(void);
/* The application's connection and outbox; for forking, close them first and open again after. */
void rig_db_open(void);
void rig_db_close(void);

/* One event in a transaction of its own; key NULL for none. Gives its position. */
int64_t rig_publish(const char *topic, const char *key);
/* Many, keys "k0".."k<keys-1>" in turn (keys 0: none), topic "t.<key number>", in transactions of
 * 500. */
void rig_publish_many(uint64_t count, uint64_t keys);

ie_worker *rig_worker(void); /* ie_worker_open(); fails the test when it cannot */
ie_worker *rig_start(void);  /* ie_worker_start() */
/* ie_worker_open(), run_once, close. */
ie_status rig_run(ie_worker_report *report);
ie_status rig_run_on(ie_worker *worker, ie_worker_report *report);

/* Counts in ie_delivery. */
int64_t rig_deliveries(const char *state);
int64_t rig_cursor(void); /* position of cursor "outbox" */
int64_t rig_newest(void);
/* Waits until the fake has so many distinct deliveries. */
bool rig_wait_distinct(uint64_t count, int wait_ms_max);
/* Fork a process that runs body; the application's connection is closed meanwhile. */
pid_t rig_fork(void (*body)(void *arg), void *arg);
int   rig_reap(pid_t pid); /* exit code, or 1000 + signal */

ie_destination_stats rig_stats(ie_worker *worker, size_t index);

#endif
