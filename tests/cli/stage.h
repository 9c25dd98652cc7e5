/*
 * A stage for inspection tests: a migrated database, and a real worker whose publisher does what
 * the first word of an event's topic says: ok, retry, reject, down, hang.
 */
#ifndef IE_TEST_STAGE_H
#define IE_TEST_STAGE_H

#include <ie/inspect.h>
#include <ie/worker.h>
#include <sqlite3.h>

extern sqlite3    *stage_db;
extern const char *stage_path;

void stage_open(void);
void stage_close(void);

/* INSERT INTO ie_event (columns) VALUES (values); its id, in one of a few static buffers. */
const char *stage_publish(const char *columns, const char *values);

/* Options for a worker with one destination "outbox" at stage:; retries and breaker wait a minute.
 */
void stage_options(ie_worker_options *options);
/* Start it; NULL options: those of stage_options(). Stopped by stage_stop() or stage_close(). */
void                 stage_start(const ie_worker_options *options);
void                 stage_stop(void);
const ie_publishers *stage_publishers(void);

typedef struct stage_why {
    int         count; /* answers */
    ie_why_code code;  /* of the last */
    char        name[40];
    char        cursor[72];
    char        sentence[2048];
    char        evidence[2048];
    char        next[4096];
} stage_why;
/* Ask; the status of ie_why_event() is returned. */
ie_status stage_ask(stage_why *out, const char *id, const char *cursor);
/* Ask until the answer is this one, or fail the test after ten seconds. */
void stage_expect(stage_why *out, const char *id, ie_why_code code);

#endif
