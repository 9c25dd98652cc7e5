/* Durable groups for who administers them: look, pause, move, delete, dead letters. */
#include <stdio.h>

#include "durable_parts.h"

void
ie__durable_each(const ie_bus_server *server,
                 void (*each)(void *user, const ie__durable_info *info), void *user)
{
    const ie__durable *durable = server->durable;

    if (durable == NULL)
        return;
    for (const ie__durable_group *g = durable->groups; g != NULL; g = g->next) {
        const ie__durable_info info = {
            .name = g->row.name,
            .pattern = g->row.pattern,
            .selection = g->row.selection,
            .is_paused = g->row.is_paused,
            .members = (uint32_t)g->group->member_count,
            .ack_timeout_ms = g->group->ack_timeout_ms,
            .attempts_max =
                g->row.attempts_max != 0 ? g->row.attempts_max : server->options.attempts_max,
            .position = ie__durable_cursor(g),
            .newest = durable->last,
            .in_flight = g->count,
            .waiting = g->row.waiting,
            .dead = g->row.dead,
            .lost = g->row.lost,
        };

        if (!g->is_making && !g->is_ending)
            each(user, &info);
    }
}

/* A request under way: what to do with its result. */
typedef struct request {
    union {
        ie__job       job;
        ie__group_job group;
    } job;
    ie__durable       *durable;
    ie__durable_group *g;
    ie__durable_fn     fn;
    void              *user;
    bool               is_paused;
} request;

static ie__durable_group *
find(const ie_bus_server *server, const char *name, const char *pattern, ie__durable_fn fn,
     void *user)
{
    ie__durable_group *found = NULL;

    if (server->durable == NULL) {
        fn(user, IE_BUS_CODE_UNSUPPORTED, "this bus stores nothing", 0, NULL);
        return NULL;
    }
    for (ie__durable_group *g = server->durable->groups; g != NULL; g = g->next) {
        if (strcmp(g->row.name, name) != 0 ||
            (pattern != NULL && strcmp(g->row.pattern, pattern) != 0))
            continue;
        if (found != NULL) {
            fn(user, IE_BUS_CODE_INVALID, "several groups have this name; give the pattern too", 0,
               NULL);
            return NULL;
        }
        found = g;
    }
    if (found == NULL)
        fn(user, IE_BUS_CODE_INVALID, "no durable group has this name", 0, NULL);
    else if (found->is_making || found->is_moving || found->is_pausing || found->is_ending ||
             server->is_finished) {
        fn(user, IE_BUS_CODE_BUSY, "the group is being changed; try again", 0, NULL);
        found = NULL;
    }
    return found;
}

static request *
request_new(ie__durable_group *g, ie__durable_fn fn, void *user,
            void (*done)(ie__store *store, ie__job *job))
{
    request *self = ie__calloc(1, sizeof *self);

    if (self == NULL) {
        fn(user, IE_BUS_CODE_MEMORY, "no memory for a request", 0, NULL);
        return NULL;
    }
    ie__group_job_init(&self->job.group, done, self);
    self->job.group.row = g->row;
    self->job.group.row.position = ie__durable_cursor(g);
    self->g = g;
    self->fn = fn;
    self->user = user;
    return self;
}

static void
request_end(request *self, ie__store *store, ie_status status, uint64_t count)
{
    if (status == IE_OK)
        self->fn(self->user, IE_BUS_CODE_NONE, "", count, NULL);
    else
        self->fn(self->user, status == IE_EFULL ? IE_BUS_CODE_FULL : IE_BUS_CODE_STORAGE,
                 status == IE_ECLOSED ? "the bus is shutting down" : ie__store_trouble(store), 0,
                 NULL);
    ie__free(self->job.group.held);
    ie__free(self);
}

/* ---- pause and resume ----------------------------------------------------------------------- */

static void
pause_done(ie__store *store, ie__job *job)
{
    request           *self = job->user;
    ie__durable_group *g = self->g;

    g->is_pausing = false;
    if (job->status == IE_OK)
        g->row.is_paused = self->is_paused;
    ie__group_pause(g->group, g->row.is_paused || g->rest_until_ms != 0);
    request_end(self, store, job->status, 0);
}

void
ie__durable_pause(ie_bus_server *server, const char *name, const char *pattern, bool is_paused,
                  ie__durable_fn fn, void *user)
{
    ie__durable_group *g = find(server, name, pattern, fn, user);
    request           *self = g != NULL ? request_new(g, fn, user, pause_done) : NULL;

    if (self == NULL)
        return;
    self->is_paused = is_paused;
    self->job.group.row.is_paused = is_paused;
    g->is_pausing = true;
    if (is_paused)
        ie__group_pause(g->group, true); /* at once; that it stays so is stored */
    ie__store_submit(server->durable->store, &self->job.job);
}

/* ---- moving --------------------------------------------------------------------------------- */

static void
move_done(ie__store *store, ie__job *job)
{
    request             *self = job->user;
    const ie__group_job *moved = &self->job.group;
    ie__durable_group   *g = self->g;

    g->is_moving = false;
    if (job->status == IE_OK) {
        g->read_to = g->sent_to = g->marked = moved->row.position;
        g->row.dead = moved->row.dead;
        g->row.waiting = moved->row.waiting;
        g->durable->is_dead_stale = true;
        ie__held_fini(&g->held);
        for (size_t i = 0; i < moved->held_count; i++)
            (void)ie__held_add(&g->held, moved->held[2 * i], moved->held[2 * i + 1]);
    } else {
        g->read_to = g->sent_to = g->marked; /* what was forgotten is read again */
    }
    g->is_tail = g->read_to >= g->durable->last;
    if (g->row.waiting != 0)
        ie__durable_due(g, 0);
    ie__durable_hungry(g->group);
    request_end(self, store, job->status, (uint64_t)g->read_to);
}

void
ie__durable_move(ie_bus_server *server, const char *name, const char *pattern, ie_bus_start start,
                 int64_t start_at, ie__durable_fn fn, void *user)
{
    ie__durable_group *g = find(server, name, pattern, fn, user);
    request           *self;

    if (g == NULL)
        return;
    if (start == IE_BUS_START_GROUP || start > IE_BUS_START_END) {
        fn(user, IE_BUS_CODE_INVALID, "where to? first, a position, a time, or end", 0, NULL);
        return;
    }
    self = request_new(g, fn, user, move_done);
    if (self == NULL)
        return;
    self->job.group.start = start;
    self->job.group.start_at = start_at;
    g->is_moving = true;
    g->generation++;
    g->due_at_ms = INT64_MAX;
    ie__durable_forget(g);
    g->is_tail = false;
    ie__store_submit(server->durable->store, &self->job.job);
}

/* ---- deleting ------------------------------------------------------------------------------- */

static void
delete_done(ie__store *store, ie__job *job)
{
    request           *self = job->user;
    ie__durable_group *g = self->g;
    const ie_status    status = job->status;

    g->is_moving = false;
    if (status == IE_OK || status == IE_ECLOSED) {
        ie__durable_group_free(g);
    } else {
        g->is_ending = false;
    }
    request_end(self, store, status, 0);
}

void
ie__durable_delete(ie_bus_server *server, const char *name, const char *pattern, ie__durable_fn fn,
                   void *user)
{
    ie__durable_group *g = find(server, name, pattern, fn, user);
    request           *self;

    if (g == NULL)
        return;
    if (g->group->member_count != 0) {
        fn(user, IE_BUS_CODE_BUSY, "the group has members; they must leave first", 0, NULL);
        return;
    }
    self = request_new(g, fn, user, delete_done);
    if (self == NULL)
        return;
    self->job.group.is_delete = true;
    g->is_ending = true;
    g->is_moving = true; /* keeps it until the answer is here */
    g->generation++;
    ie__durable_forget(g);
    ie__store_submit(server->durable->store, &self->job.job);
}

/* ---- dead letters --------------------------------------------------------------------------- */

static void
dead_done(ie__store *store, ie__job *job)
{
    ie__dead_job      *dead = (ie__dead_job *)(void *)job;
    request           *self = job->user;
    ie__durable       *durable = self->durable;
    ie__durable_group *g = durable->groups;

    while (g != NULL && g->row.id != dead->group)
        g = g->next; /* it may have been deleted meanwhile */
    if (job->status == IE_OK && dead->op == IE__DEAD_LIST) {
        self->fn(self->user, IE_BUS_CODE_NONE, "", dead->count, dead->rows);
        ie__free(self);
    } else {
        if (job->status == IE_OK && g != NULL) {
            g->row.dead -= dead->count < g->row.dead ? dead->count : g->row.dead;
            durable->is_dead_stale = true;
            if (dead->op == IE__DEAD_RETRY) {
                g->row.waiting += dead->count;
                ie__durable_due(g, ie__wall_ms(&ie__system_clock));
            }
        }
        request_end(self, store, job->status, dead->count);
    }
    ie__dead_job_free(dead);
}

void
ie__durable_dead(ie_bus_server *server, const char *name, const char *pattern, ie__dead_op op,
                 int64_t position, size_t rows_max, ie__durable_fn fn, void *user)
{
    ie__durable_group *g = find(server, name, pattern, fn, user);
    request           *self = g != NULL ? request_new(g, fn, user, NULL) : NULL;
    ie__dead_job      *dead;

    if (self == NULL)
        return;
    dead = ie__dead_job_new(op, g->row.id, position, rows_max, dead_done, self);
    if (dead == NULL) {
        fn(user, IE_BUS_CODE_MEMORY, "no memory for a request", 0, NULL);
        ie__free(self);
        return;
    }
    self->durable = server->durable;
    ie__store_submit(server->durable->store, &dead->job);
}
