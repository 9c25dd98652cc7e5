/* The parts of a worker, shared by the worker*.c files alone. */
#ifndef IE_WORKER_PARTS_H
#define IE_WORKER_PARTS_H

#include <ie/worker.h>

#include <pthread.h>
#include <stdatomic.h>

#include "core.h"
#include "lane.h"
#include "options.h"

#define PROCESSORS_MAX   64
#define IE__LADDER_STEPS 15 /* pauses after a write was seen: worker_wait.c */

typedef struct duty duty;
struct duty { /* a processor, built in or the user's */
    const char *name;
    uint32_t    interval_ms;
    int64_t     next_ms; /* boot clock */
    ie_status (*run)(ie_worker *worker, duty *self, ie_error *err);
    const ie_processor *theirs;
};

struct ie_worker {
    ie_worker_options options;
    ie_destination   *destinations;
    ie_processor     *processors;
    char            **strings; /* copies that the structs above point into */
    size_t            string_count;
    size_t            string_capacity;
    unsigned          generation;

    sqlite3              *db;
    sqlite3_stmt         *data_version;
    int64_t               seen_version;
    ie__cursors          *cursors;
    ie__reader           *reader;
    ie__cleaner          *cleaner;
    ie__watch            *watch;
    int                   event_fd;
    char                  owner[IE__OWNER_SIZE];
    char                  db_path[1024];
    ie__lane            **lanes;
    size_t                lane_count;
    ie_destination_stats *last_stats; /* of lanes that are closed */
    duty                  duties[PROCESSORS_MAX + 4];
    size_t                duty_count;
    int64_t               last_look_ns;
    int                   ladder; /* next step, LADDER_STEPS when not climbing */
    int                   streak; /* looks in a row that found something; misses in a stream */
    bool                  is_streaming;
    bool                  more_to_clean;
    bool                  more_to_expire;
    int64_t               quiet_until_ms; /* the same error is not reported twice in a row */
    ie_status             last_error;

    bool                 has_thread;
    bool                 is_inside; /* run_once, without a thread */
    bool                 is_joined;
    pthread_t            thread;
    pthread_mutex_t      lock;
    pthread_cond_t       changed;
    bool                 is_set_up;
    ie_status            set_up_status;
    ie_error             set_up_error;
    bool                 is_stopped;
    bool                 left_behind; /* a publisher blocks: memory and thread stay */
    bool                 was_clean;
    atomic_bool          is_stopping;
    atomic_int_fast64_t  stop_deadline_ms;
    atomic_bool          is_woken;
    atomic_uint_fast64_t n_wakes, n_polls, n_cleaned, n_busy, n_errors;
};

typedef struct ie__round {
    int64_t wake_at_ms;
    bool    is_busy;
    bool    is_idle;
    bool    is_settled; /* every lane is idle, or something keeps it from going on */
} ie__round;

/* worker_wait.c */
void    ie__worker_signal(void *user);
void    ie__worker_wait(ie_worker *worker, int64_t wait_ns);
bool    ie__worker_looks(ie_worker *worker, int64_t now_ns);
int64_t ie__worker_wait_ns(const ie_worker *worker, const ie__round *last, int64_t now_ns);

/* worker_duties.c */
void ie__worker_duties(ie_worker *worker);
void ie__worker_duty_run(ie_worker *worker, duty *each);

ie_status ie__worker_in_place(ie_worker *worker, ie_error *err);

/* worker_new.c */
void      ie__worker_free(ie_worker *worker);
ie_status ie__worker_new(ie_worker **out, const ie_worker_options *given, ie_error *err);

/* worker.c */
void ie__worker_trouble(ie_worker *worker, const char *what, ie_status status, const char *message);

#endif
