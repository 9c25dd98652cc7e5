/* The store alone: real files, its own thread, faults on order. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"
#include "dedupe.h"
#include "fault_vfs.h"
#include "store.h"
#include "support.h"

#define WAIT_MS 20000

static uv_loop_t         loop;
static ie__store        *store;
static ie__store_options options;
static test_clock        clock_;

static uint64_t losses_lost;
static uint64_t losses_dead;
static int64_t  losses_position;

static void
on_lost(void *user, const ie__loss *loss)
{
    (void)user;
    losses_lost += loss->lost;
    losses_dead += loss->dead;
    if (loss->position > losses_position)
        losses_position = loss->position;
}

static void
options_default(void)
{
    memset(&options, 0, sizeof options);
    options.data_dir = test_path("data");
    options.clock = &clock_.clock;
    options.lost = on_lost;
    options.queue_bytes_max = 64u << 20;
    options.retention_bytes_max = UINT64_C(4) << 30;
    options.retention_s = 7 * 86400;
    options.dedupe_window_ms = 120000;
    options.dedupe_ids_max = 1000;
}

static void
store_up(void)
{
    ie_error err = IE_ERROR_INIT;

    ck_assert_int_eq(uv_loop_init(&loop), 0);
    ck_assert_msg(ie__store_open(&store, &options, &err) == IE_OK, "%s", err.message);
    ck_assert_msg(ie__store_start(store, &loop, &err) == IE_OK, "%s", err.message);
}

static void
store_down(void)
{
    ie__store_stop(store);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    ie__store_free(store);
    store = NULL;
}

static void
setup(void)
{
    (void)test_dir_make();
    test_clock_init(&clock_, INT64_C(1700000000000));
    options_default();
    losses_lost = losses_dead = 0;
    losses_position = 0;
}

static void
teardown(void)
{
    test_dir_remove();
}

static void
on_deadline(uv_timer_t *timer)
{
    ck_abort_msg("the store did not answer in time");
    (void)timer;
}

/* Run the loop until nothing is pending. */
static void
settle(void)
{
    uv_timer_t timer;

    ie__store_flush(store);
    (void)uv_timer_init(&loop, &timer);
    (void)uv_timer_start(&timer, on_deadline, WAIT_MS, 0);
    while (ie__store_pending(store) != 0)
        (void)uv_run(&loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&timer, NULL);
    (void)uv_run(&loop, UV_RUN_NOWAIT);
}

static void
on_tick(uv_timer_t *timer)
{
    (void)timer; /* it only lets the loop look again */
}

/* Run the loop until the condition holds. */
static void
await(bool (*is_true)(void))
{
    const int64_t deadline_ns = ie__mono_ns() + WAIT_MS * INT64_C(1000000);
    uv_timer_t    timer;

    (void)uv_timer_init(&loop, &timer);
    (void)uv_timer_start(&timer, on_tick, 5, 5);
    while (!is_true()) {
        ck_assert_msg(ie__mono_ns() < deadline_ns, "it did not come true in time");
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    uv_close((uv_handle_t *)&timer, NULL);
    (void)uv_run(&loop, UV_RUN_NOWAIT);
}

/* ---- appending ---- */

typedef struct stored {
    ie__append_job append;
    bool           is_done;
} stored;

static void
on_stored(ie__store *from, ie__job *job)
{
    stored *at = job->user;

    (void)from;
    at->is_done = true;
    ie__blob_unref(at->append.record);
}

static ie__blob *
record_of(const ie_event *event)
{
    ie__blob *blob = ie__blob_new(ie__record_size(event));

    (void)ie__record_put(blob->bytes, event);
    return blob;
}

static void
append(stored *at, const char *topic, const char *id, const char *key, const void *data,
       size_t bytes)
{
    ie_event event = IE_EVENT_INIT;

    event.topic = topic;
    event.id = id;
    event.key = key;
    event.source = "test";
    event.time_ms = 1700000000000;
    event.data = data;
    event.data_bytes = bytes;
    memset(at, 0, sizeof *at);
    ie__append_job_init(&at->append, record_of(&event), on_stored, at);
    ie__store_submit(store, &at->append.job);
}

static stored
append_now(const char *topic, const char *id)
{
    stored at;

    append(&at, topic, id, NULL, "1", 1);
    settle();
    ck_assert(at.is_done);
    return at;
}

/* ---- reading ---- */

static ie__read_job *read_result;

static void
on_read(ie__store *from, ie__job *job)
{
    (void)from;
    read_result = (ie__read_job *)(void *)job;
}

static ie__read_job *
read_after(int64_t after, const char *pattern, size_t rows)
{
    ie__read_job *job = ie__read_job_new(rows, on_read, NULL);

    job->after = after;
    job->bytes_max = 1 << 20;
    (void)snprintf(job->pattern, sizeof job->pattern, "%s", pattern);
    read_result = NULL;
    ie__store_submit(store, &job->job);
    settle();
    ck_assert_ptr_eq(read_result, job);
    return job;
}

static ie__read_job *
read_due(int64_t group, int64_t now_ms)
{
    ie__read_job *job = ie__read_job_new(64, on_read, NULL);

    job->group = group;
    job->now_ms = now_ms;
    job->is_due = true;
    job->job.is_after_writes = true;
    ie__store_submit(store, &job->job);
    settle();
    return job;
}

/* ---- groups ---- */

static bool group_done;

static void
on_group(ie__store *from, ie__job *job)
{
    (void)from;
    (void)job;
    group_done = true;
}

static int64_t
group_make(const char *name, const char *pattern, ie_bus_start start, int64_t start_at,
           int64_t *position)
{
    ie__group_job job;

    ie__group_job_init(&job, on_group, NULL);
    job.is_new = true;
    job.start = start;
    job.start_at = start_at;
    (void)snprintf(job.row.name, sizeof job.row.name, "%s", name);
    (void)snprintf(job.row.pattern, sizeof job.row.pattern, "%s", pattern);
    group_done = false;
    ie__store_submit(store, &job.job);
    settle();
    ck_assert(group_done);
    ck_assert_int_eq(job.job.status, IE_OK);
    if (position != NULL)
        *position = job.row.position;
    return job.row.id;
}

static void
on_marked(ie__store *from, ie__job *job)
{
    (void)from;
    (void)job;
}

static void
mark(int64_t group, int64_t position)
{
    ie__mark_job job;

    ie__mark_job_init(&job, group, position, on_marked, NULL);
    ie__store_submit(store, &job.job);
    settle();
}

static void
trouble(int64_t group, int64_t position, ie_state state, uint32_t attempts, int64_t due_at_ms,
        uint64_t key, const char *reason)
{
    ie__trouble_job *job = ie__trouble_job_new(group, position, state, reason);

    job->attempts = attempts;
    job->due_at_ms = due_at_ms;
    job->key_hash = key;
    ie__store_submit(store, &job->job);
    settle();
}

static ie__group_row rows[16];
static size_t        row_count;

static void
on_row(void *user, const ie__group_row *row)
{
    (void)user;
    rows[row_count++] = *row;
}

static void
read_groups(void)
{
    ie_error err = IE_ERROR_INIT;

    row_count = 0;
    ck_assert_int_eq(ie__store_groups(store, on_row, NULL, &err), IE_OK);
}

/* ---- tests ---- */

START_TEST(folder_and_files_are_for_the_owner_only)
{
    static const char *const FILES[] = {"data/bus.db", "data/bus.db-wal", "data/bus.lock"};
    struct stat              st;

    store_up();
    (void)append_now("a", "1");
    ck_assert_int_eq(stat(test_path("data"), &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0700);
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        ck_assert_msg(stat(test_path(FILES[i]), &st) == 0, "%s", FILES[i]);
        ck_assert_uint_eq(st.st_mode & 0777, 0600);
    }
    store_down();
    ck_assert_int_eq(chmod(test_path("data/bus.db"), 0644), 0);
    store_up();
    ck_assert_int_eq(stat(test_path("data/bus.db"), &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0600);
    store_down();
}
END_TEST

START_TEST(a_folder_has_one_bus)
{
    ie__store *other = NULL;
    ie_error   err = IE_ERROR_INIT;

    store_up();
    ck_assert_int_eq(ie__store_open(&other, &options, &err), IE_ELEASE);
    ck_assert_ptr_nonnull(strstr(err.message, "another bus"));
    store_down();
    store_up(); /* it was given back */
    store_down();
    ck_assert_int_eq(chmod(test_path("data"), 0777), 0);
    err = (ie_error)IE_ERROR_INIT;
    ck_assert_int_eq(ie__store_open(&other, &options, &err), IE_EDENIED);
    ck_assert_ptr_nonnull(strstr(err.message, "chmod"));
}
END_TEST

START_TEST(every_attribute_and_byte_comes_back)
{
    static const ie_header HEADERS[] = {{"tenant", "north \"1\"", IE_HEADER_STRING, 0},
                                        {"level", "-3", IE_HEADER_INTEGER, 0},
                                        {"test", "true", IE_HEADER_BOOLEAN, 0}};
    unsigned char          data[300];
    ie_event               event = IE_EVENT_INIT;
    ie__blob              *blob;
    stored                 at = {.is_done = false};
    ie__read_job          *job;

    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)i; /* NUL and what is not UTF-8 too */
    event.topic = "order.placed";
    event.id = "id-1";
    event.source = "/shop";
    event.type = "org.example.placed";
    event.key = "customer-7";
    event.subject = "4711";
    event.dataschema = "https://example.org/s.json";
    event.content_type = "application/octet-stream";
    event.time_ms = 1732224600123;
    event.not_before_ms = 1732224600124;
    event.expires_at_ms = 1732228200000;
    event.headers = HEADERS;
    event.header_count = 3;
    event.data = data;
    event.data_bytes = sizeof data;
    store_up();
    blob = record_of(&event);
    ie__blob_ref(blob);
    ie__append_job_init(&at.append, blob, on_stored, &at);
    ie__store_submit(store, &at.append.job);
    settle();
    job = read_after(0, ">", 10);
    ck_assert_uint_eq(job->count, 1);
    ck_assert_int_eq(job->rows[0].position, at.append.position);
    ck_assert_uint_eq(job->rows[0].record->size, blob->size);
    ck_assert_mem_eq(job->rows[0].record->bytes, blob->bytes, blob->size);
    ck_assert_uint_eq(job->rows[0].key_hash, ie__record_key_hash(blob->bytes, blob->size));
    ck_assert(job->is_at_end);
    ie__read_job_free(job);
    ie__blob_unref(blob);
    store_down();
}
END_TEST

/* Data that says it is JSON and is not, because nobody checks it on the bus. */
START_TEST(data_of_the_wrong_kind_comes_back_too)
{
    static const unsigned char DATA[] = {'{', 0, 0xff, 0xfe, '"', 0xc3};
    stored                     at;
    ie__read_job              *job;
    ie__record                *record = malloc(sizeof *record);

    ck_assert_ptr_nonnull(record);
    store_up();
    append(&at, "t", "1", NULL, DATA, sizeof DATA);
    settle();
    job = read_after(0, "t", 10);
    ck_assert_uint_eq(job->count, 1);
    ck_assert_int_eq(ie__record_parse(record, job->rows[0].record->bytes, job->rows[0].record->size,
                                      IE_DATA_BYTES_MAX, NULL),
                     IE_OK);
    ck_assert_uint_eq(record->data.size, sizeof DATA);
    ck_assert_mem_eq(record->data.bytes, DATA, sizeof DATA);
    ie__read_job_free(job);
    free(record);
    store_down();
}
END_TEST

START_TEST(the_same_id_is_stored_once)
{
    stored  first;
    stored  again[3];
    int64_t position;

    store_up();
    first = append_now("t", "one");
    ck_assert(!first.append.is_duplicate);
    position = first.append.position;
    append(&again[0], "t", "two", NULL, "1", 1); /* a duplicate within one transaction */
    append(&again[1], "t", "two", NULL, "1", 1);
    append(&again[2], "t", "one", NULL, "1", 1);
    settle();
    ck_assert(!again[0].append.is_duplicate);
    ck_assert(again[1].append.is_duplicate);
    ck_assert_int_eq(again[1].append.position, again[0].append.position);
    ck_assert(again[2].append.is_duplicate);
    ck_assert_int_eq(again[2].append.position, position);
    test_clock_advance(&clock_, 119999);
    ck_assert(append_now("t", "one").append.is_duplicate);
    test_clock_advance(&clock_, 1);
    ck_assert(!append_now("t", "one").append.is_duplicate);
    store_down();
}
END_TEST

START_TEST(a_restart_remembers_ids)
{
    store_up();
    (void)append_now("t", "old");
    test_clock_advance(&clock_, 200000);
    (void)append_now("t", "one");
    store_down();
    test_clock_advance(&clock_, 100000);
    store_up();
    ck_assert(append_now("t", "one").append.is_duplicate);
    ck_assert(!append_now("t", "old").append.is_duplicate); /* out of its window */
    store_down();
}
END_TEST

START_TEST(at_the_limit_the_oldest_id_is_forgotten)
{
    char id[32];

    options.dedupe_ids_max = 10;
    store_up();
    for (int i = 0; i < 10; i++) {
        (void)snprintf(id, sizeof id, "%d", i);
        ck_assert(!append_now("t", id).append.is_duplicate);
    }
    ck_assert(append_now("t", "0").append.is_duplicate); /* ten are remembered */
    (void)append_now("t", "10");
    ck_assert(append_now("t", "1").append.is_duplicate);
    ck_assert(!append_now("t", "0").append.is_duplicate); /* one past it */
    store_down();
}
END_TEST

/* The table against a plain list, with collisions, growth, undo and expiry. */
START_TEST(ids_are_found_whatever_happened_before)
{
    enum { IDS = 3000, MAX = 700 };
    static int64_t at[IDS];
    ie__dedupe    *dedupe = ie__dedupe_new(1000000, MAX);
    uint64_t       state = test_seed();
    int            newest = 0;

    memset(at, 0, sizeof at);
    for (int i = 0; i < IDS; i++) {
        char           id[16];
        ie__dedupe_key key;

        (void)snprintf(id, sizeof id, "%d", i);
        key = ie__dedupe_key_of(dedupe, "s", id);
        ck_assert_int_eq(ie__dedupe_find(dedupe, key, i), 0);
        ck_assert_int_eq(ie__dedupe_add(dedupe, key, i + 1, i), IE_OK);
        state = state * 6364136223846793005u + 1;
        if (state >> 60 == 0) {
            ie__dedupe_undo(dedupe, 1);
            ck_assert_int_eq(ie__dedupe_find(dedupe, key, i), 0);
            at[i] = -1;
        } else {
            newest = i;
        }
        for (int j = 0, seen = 0; j < 20 && i - j >= 0; j++) {
            if (at[i - j] == -1)
                continue;
            (void)snprintf(id, sizeof id, "%d", i - j);
            key = ie__dedupe_key_of(dedupe, "s", id);
            ck_assert_int_eq(ie__dedupe_find(dedupe, key, i), i - j + 1);
            seen++;
        }
        ck_assert_uint_le(ie__dedupe_count(dedupe), MAX);
    }
    (void)newest;
    ie__dedupe_expire(dedupe, 1000000 + IDS - 1);
    ck_assert_uint_eq(ie__dedupe_count(dedupe), 0);
    ie__dedupe_free(dedupe);
}
END_TEST

START_TEST(a_full_disk_refuses_and_recovers)
{
    stored at[5];
    stored later;

    fault_vfs_register();
    options.vfs = FAULT_VFS;
    store_up();
    (void)append_now("t", "before");
    for (unsigned kind = 0; kind < 3; kind++) {
        static const struct {
            unsigned  operation;
            int       code;
            ie_status status;
        } KINDS[] = {{FAULT_WRITE, SQLITE_FULL, IE_EFULL},
                     {FAULT_WRITE, SQLITE_IOERR, IE_EIO},
                     {FAULT_SYNC, SQLITE_IOERR, IE_EIO}};
        char ids[5][32];

        fault_vfs_arm(1, KINDS[kind].operation, KINDS[kind].code, true);
        for (int i = 0; i < 5; i++) {
            (void)snprintf(ids[i], sizeof ids[i], "%u.%d", kind, i);
            append(&at[i], "t", ids[i], NULL, "1", 1);
        }
        settle();
        ck_assert_uint_gt(fault_vfs_fired(), 0);
        for (int i = 0; i < 5; i++)
            ck_assert_int_eq(at[i].append.job.status, KINDS[kind].status);
        ck_assert_str_ne(ie__store_trouble(store), "");
        fault_vfs_arm(0, 0, 0, false);
        later = append_now("t", ids[0]); /* by itself, and it is no duplicate of what failed */
        ck_assert_int_eq(later.append.job.status, IE_OK);
        ck_assert(!later.append.is_duplicate);
    }
    store_down();
    options.vfs = NULL;
    store_up();
    {
        ie__read_job *job = read_after(0, ">", 10);

        ck_assert_uint_eq(job->count, 4); /* each position once, nothing of the refused */
        for (size_t i = 0; i < job->count; i++)
            ck_assert_int_eq(job->rows[i].position, (int64_t)i + 1);
        ie__read_job_free(job);
    }
    store_down();
}
END_TEST

static stored waited_for;

static bool
is_answered(void)
{
    return waited_for.is_done;
}

/* What is owed to a group is written once the disk allows, in its order. */
START_TEST(marks_are_kept_until_they_can_be_written)
{
    ie__mark_job     move;
    ie__trouble_job *note;
    int64_t          group;

    fault_vfs_register();
    options.vfs = FAULT_VFS;
    store_up();
    (void)append_now("t", "1");
    (void)append_now("t", "2");
    group = group_make("g", "t", IE_BUS_START_FIRST, 0, NULL);
    fault_vfs_arm(1, FAULT_WRITE, SQLITE_FULL, true);
    note = ie__trouble_job_new(group, 1, IE_STATE_DEAD, "broken");
    note->attempts = 16;
    ie__store_submit(store, &note->job);
    ie__mark_job_init(&move, group, 1, on_marked, NULL);
    ie__store_submit(store, &move.job);
    append(&waited_for, "t", "3", NULL, "1", 1);
    ie__store_flush(store);
    await(is_answered);
    ck_assert_int_eq(waited_for.append.job.status, IE_EFULL);
    ck_assert_uint_gt(fault_vfs_fired(), 0);
    ck_assert_uint_eq(ie__store_pending(store), 2);
    fault_vfs_arm(0, 0, 0, false);
    settle();
    store_down();
    store_up();
    read_groups();
    ck_assert_uint_eq(row_count, 1);
    ck_assert_int_eq(rows[0].position, 1);
    ck_assert_uint_eq(rows[0].dead, 1);
    store_down();
}
END_TEST

START_TEST(groups_start_where_they_are_told)
{
    int64_t position = -1;

    store_up();
    (void)group_make("empty", ">", IE_BUS_START_FIRST, 0, &position);
    ck_assert_int_eq(position, 0);
    for (int i = 1; i <= 5; i++) {
        char id[16];

        (void)snprintf(id, sizeof id, "%d", i);
        (void)append_now("t", id);
        test_clock_advance(&clock_, 10000);
    }
    (void)group_make("first", ">", IE_BUS_START_FIRST, 0, &position);
    ck_assert_int_eq(position, 0);
    (void)group_make("new", ">", IE_BUS_START_GROUP, 0, &position);
    ck_assert_int_eq(position, 5);
    (void)group_make("end", ">", IE_BUS_START_END, 0, &position);
    ck_assert_int_eq(position, 5);
    (void)group_make("position", ">", IE_BUS_START_POSITION, 3, &position);
    ck_assert_int_eq(position, 2);
    (void)group_make("beyond", ">", IE_BUS_START_POSITION, 99, &position);
    ck_assert_int_eq(position, 5);
    (void)group_make("time", ">", IE_BUS_START_TIME, 1700000000000 + 20000, &position);
    ck_assert_int_eq(position, 2);
    (void)group_make("early", ">", IE_BUS_START_TIME, 1600000000000, &position);
    ck_assert_int_eq(position, 0);
    (void)group_make("late", ">", IE_BUS_START_TIME, 1700000000000 + 60000, &position);
    ck_assert_int_eq(position, 5);
    store_down();
    store_up();
    read_groups();
    ck_assert_uint_eq(row_count, 9);
    ck_assert_str_eq(rows[0].name, "empty");
    ck_assert_int_eq(rows[4].position, 2);
    store_down();
}
END_TEST

START_TEST(deliveries_come_when_they_are_due)
{
    const int64_t now = 1700000000000;
    int64_t       group;
    ie__read_job *job;

    store_up();
    for (int i = 1; i <= 4; i++) {
        char id[16];

        (void)snprintf(id, sizeof id, "%d", i);
        (void)append_now("t", id);
    }
    group = group_make("g", "t", IE_BUS_START_FIRST, 0, NULL);
    trouble(group, 1, IE_STATE_RETRYING, 1, now + 1000, 0, "no");
    trouble(group, 2, IE_STATE_RETRYING, 3, now + 500, 7, "no");
    trouble(group, 3, IE_STATE_BLOCKED, 0, 0, 7, NULL);
    trouble(group, 4, IE_STATE_DEAD, 16, 0, 0, "never");
    job = read_due(group, now + 499);
    ck_assert_uint_eq(job->count, 0);
    ck_assert_int_eq(job->next_due_ms, now + 500);
    ie__read_job_free(job);
    job = read_due(group, now + 500);
    ck_assert_uint_eq(job->count, 1);
    ck_assert_int_eq(job->rows[0].position, 2);
    ck_assert_uint_eq(job->rows[0].attempts, 3);
    ck_assert_int_eq(job->next_due_ms, now + 1000);
    ie__read_job_free(job);
    trouble(group, 2, IE_STATE_PUBLISHED, 0, 0, 0, NULL);
    {
        ie__release_job release;

        ie__release_job_init(&release, group, 7, on_marked, NULL);
        ie__store_submit(store, &release.job);
        settle();
    }
    job = read_due(group, now + 1000);
    ck_assert_uint_eq(job->count, 2);
    ie__read_job_free(job);
    store_down();
    store_up();
    read_groups();
    ck_assert_uint_eq(rows[0].dead, 1);
    ck_assert_uint_eq(rows[0].waiting, 2);
    {
        ie__dead_job *dead = ie__dead_job_new(IE__DEAD_LIST, group, 0, 10, on_marked, NULL);

        ie__store_submit(store, &dead->job);
        settle();
        ck_assert_uint_eq(dead->count, 1);
        ck_assert_int_eq(dead->rows[0].position, 4);
        ck_assert_uint_eq(dead->rows[0].attempts, 16);
        ck_assert_str_eq(dead->rows[0].reason, "never");
        ck_assert_str_eq(dead->rows[0].topic, "t");
        ck_assert_str_eq(dead->rows[0].id, "4");
        ie__dead_job_free(dead);
        dead = ie__dead_job_new(IE__DEAD_RETRY, group, 4, 0, on_marked, NULL);
        ie__store_submit(store, &dead->job);
        settle();
        ck_assert_uint_eq(dead->count, 1);
        ie__dead_job_free(dead);
    }
    job = read_due(group, now + 100000);
    ck_assert_uint_eq(job->count, 3);
    ie__read_job_free(job);
    store_down();
}
END_TEST

START_TEST(a_log_behind_a_cursor_is_refused)
{
    ie__store *other = NULL;
    ie_error   err = IE_ERROR_INIT;
    sqlite3   *db;

    store_up();
    (void)append_now("t", "1");
    (void)group_make("g", "t", IE_BUS_START_END, 0, NULL);
    store_down();
    ck_assert_int_eq(sqlite3_open(test_path("data/bus.db"), &db), SQLITE_OK);
    test_exec(db, "UPDATE ie_cursor SET position = 2");
    (void)sqlite3_close(db);
    ck_assert_int_eq(ie__store_open(&other, &options, &err), IE_ECURSOR);
    ck_assert_ptr_nonnull(strstr(err.message, "group g"));
    ck_assert_ptr_nonnull(strstr(err.message, "position 2"));
}
END_TEST

/* ---- retention ---- */

static bool
only_newest_is_left(void)
{
    return ie__store_look(store)->first == ie__store_look(store)->last;
}

static void
reload(void)
{
    ie__store_reload(store, &options); /* retention looks at once */
}

static bool
the_old_are_gone(void)
{
    return ie__store_look(store)->first == 1201;
}

START_TEST(old_events_go_once_every_group_had_them)
{
    int64_t group;

    options.retention_s = 100;
    store_up();
    for (int i = 1; i <= 1200; i++) {
        static stored at[1200];
        static char   ids[1200][8];

        (void)snprintf(ids[i - 1], sizeof ids[0], "%d", i);
        append(&at[i - 1], "t", ids[i - 1], NULL, "1", 1);
    }
    settle();
    group = group_make("slow", "t", IE_BUS_START_FIRST, 0, NULL);
    test_clock_advance(&clock_, 50000);
    (void)append_now("t", "young");
    test_clock_advance(&clock_, 60000);
    reload();
    (void)append_now("t", "next");
    settle();
    ck_assert_int_eq(ie__store_look(store)->first, 1); /* the group has not had them */
    mark(group, 1202);
    reload();
    await(the_old_are_gone);
    ck_assert_uint_eq(losses_lost, 0);
    store_down();
    store_up();
    ck_assert_int_eq(append_now("t", "more").append.position, 1203);
    store_down();
}
END_TEST

/* A crash may leave a cursor behind events that were noted already. */
START_TEST(what_is_noted_is_not_read_as_new)
{
    static const int64_t EXPECTED[] = {1, 4, 6};
    ie__read_job        *read;
    int64_t              group;

    store_up();
    for (int i = 1; i <= 6; i++) {
        char id[8];

        (void)snprintf(id, sizeof id, "%d", i);
        (void)append_now("t", id);
    }
    group = group_make("g", "t", IE_BUS_START_FIRST, 0, NULL);
    trouble(group, 2, IE_STATE_RETRYING, 1, 1000, 77, "failed");
    trouble(group, 3, IE_STATE_BLOCKED, 0, 0, 77, "");
    trouble(group, 4, IE_STATE_DEAD, 16, 0, 0, "given up"); /* asked for again: it may come */
    trouble(group, 5, IE_STATE_BLOCKED, 0, 0, 77, "");
    read = ie__read_job_new(10, on_read, NULL);
    read->group = group;
    read->bytes_max = 1 << 20;
    (void)snprintf(read->pattern, sizeof read->pattern, "t");
    ie__store_submit(store, &read->job);
    settle();
    ck_assert_uint_eq(read->count, 3);
    for (size_t i = 0; i < read->count; i++)
        ck_assert_int_eq(read->rows[i].position, EXPECTED[i]);
    ck_assert_int_eq(read->scanned_to, 6);
    ck_assert(read->is_at_end);
    ie__read_job_free(read);
    read = read_after(1, "t", 10); /* of no group: all of them */
    ck_assert_uint_eq(read->count, 5);
    ie__read_job_free(read);
    store_down();
}
END_TEST

START_TEST(the_newest_event_stays_and_positions_go_on)
{
    options.retention_s = 10;
    store_up();
    (void)append_now("t", "1");
    (void)append_now("t", "2");
    test_clock_advance(&clock_, 5000);
    (void)append_now("t", "3");
    test_clock_advance(&clock_, 100000);
    reload();
    await(only_newest_is_left);
    ck_assert_int_eq(append_now("t", "4").append.position, 4);
    store_down();
}
END_TEST

static bool
something_was_lost(void)
{
    return losses_lost >= 2;
}

START_TEST(a_lagging_group_loses_and_is_told)
{
    options.retention_s = 10;
    options.lagging = IE_BUS_LAGGING_DROP;
    store_up();
    (void)group_make("slow", "t.*", IE_BUS_START_FIRST, 0, NULL);
    (void)append_now("t.a", "1");
    (void)append_now("u.a", "2"); /* not the group's */
    (void)append_now("t.b", "3");
    test_clock_advance(&clock_, 5000);
    (void)append_now("t.c", "4");
    test_clock_advance(&clock_, 8000);
    reload();
    await(something_was_lost);
    ck_assert_uint_eq(losses_lost, 2);
    ck_assert_int_eq(losses_position, 3);
    store_down();
    store_up();
    read_groups();
    ck_assert_uint_eq(rows[0].lost, 2);
    ck_assert_int_eq(rows[0].position, 3);
    store_down();
}
END_TEST

static bool
is_full(void)
{
    static int n;
    char       id[32];
    char      *data = calloc(1, 20000);
    stored     at;

    (void)snprintf(id, sizeof id, "f%d", n++);
    append(&at, "t", id, NULL, data, 20000);
    settle();
    free(data);
    if (at.append.job.status != IE_OK)
        ck_assert_int_eq(at.append.job.status, IE_ELIMIT);
    return at.append.job.status != IE_OK;
}

static bool
is_not_full(void)
{
    return !is_full();
}

START_TEST(a_full_log_refuses_until_the_slowest_group_moves)
{
    int64_t group;

    options.retention_bytes_max = 1 << 20;
    store_up();
    group = group_make("slow", "t", IE_BUS_START_FIRST, 0, NULL);
    await(is_full);
    ck_assert(ie__store_look(store)->is_full);
    ck_assert_int_eq(ie__store_look(store)->first, 1);
    ck_assert_uint_lt(ie__store_look(store)->bytes, 2 << 20);
    mark(group, ie__store_look(store)->last);
    await(is_not_full);
    ck_assert_int_gt(ie__store_look(store)->first, 1);
    store_down();
}
END_TEST

START_TEST(a_big_log_drops_what_a_slow_group_has_not_had)
{
    char *data = calloc(1, 20000);

    options.retention_bytes_max = 1 << 20;
    options.lagging = IE_BUS_LAGGING_DROP;
    store_up();
    (void)group_make("slow", "t", IE_BUS_START_FIRST, 0, NULL);
    for (int i = 0; i < 200; i++) {
        char   id[32];
        stored at;

        (void)snprintf(id, sizeof id, "%d", i);
        append(&at, "t", id, NULL, data, 20000);
        settle();
        ck_assert_int_eq(at.append.job.status, IE_OK);
    }
    free(data);
    await(something_was_lost);
    ck_assert_int_gt(ie__store_look(store)->first, 1);
    store_down();
    store_up();
    read_groups();
    ck_assert_uint_eq(rows[0].lost, losses_lost);
    store_down();
}
END_TEST

START_TEST(the_queue_has_a_limit)
{
    stored at[3];
    char  *data = calloc(1, 1000);
    size_t one;

    store_up();
    append(&at[0], "t", "1", NULL, data, 1000);
    one = at[0].append.job.bytes;
    settle();
    options.queue_bytes_max = 2 * one;
    ie__store_reload(store, &options);
    append(&at[0], "t", "2", NULL, data, 1000);
    ck_assert(!ie__store_is_crowded(store, one));
    ck_assert(ie__store_is_crowded(store, one + 1));
    append(&at[1], "t", "3", NULL, data, 1000);
    ck_assert(ie__store_is_crowded(store, 1));
    settle();
    ck_assert(!ie__store_is_crowded(store, 2 * one));
    store_down();
    free(data);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus store");
    TCase   *tcase = tcase_create("store");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, folder_and_files_are_for_the_owner_only);
    tcase_add_test(tcase, a_folder_has_one_bus);
    tcase_add_test(tcase, every_attribute_and_byte_comes_back);
    tcase_add_test(tcase, data_of_the_wrong_kind_comes_back_too);
    tcase_add_test(tcase, the_same_id_is_stored_once);
    tcase_add_test(tcase, a_restart_remembers_ids);
    tcase_add_test(tcase, at_the_limit_the_oldest_id_is_forgotten);
    tcase_add_test(tcase, ids_are_found_whatever_happened_before);
    tcase_add_test(tcase, a_full_disk_refuses_and_recovers);
    tcase_add_test(tcase, marks_are_kept_until_they_can_be_written);
    tcase_add_test(tcase, groups_start_where_they_are_told);
    tcase_add_test(tcase, deliveries_come_when_they_are_due);
    tcase_add_test(tcase, a_log_behind_a_cursor_is_refused);
    tcase_add_test(tcase, old_events_go_once_every_group_had_them);
    tcase_add_test(tcase, what_is_noted_is_not_read_as_new);
    tcase_add_test(tcase, the_newest_event_stays_and_positions_go_on);
    tcase_add_test(tcase, a_lagging_group_loses_and_is_told);
    tcase_add_test(tcase, a_full_log_refuses_until_the_slowest_group_moves);
    tcase_add_test(tcase, a_big_log_drops_what_a_slow_group_has_not_had);
    tcase_add_test(tcase, the_queue_has_a_limit);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
