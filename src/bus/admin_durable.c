/* Requests about durable groups: the log does them, and the query waits for that. */
#include <stdio.h>

#include "admin.h"
#include "durable.h"

#define DEAD_DEFAULT 100
#define DEAD_MAX     500

/* A request that is on its way; its query may end before it. */
typedef struct task {
    ie__query *query; /* NULL: it has ended */
    bool       is_list;
    bool       is_move; /* count is a position */
    bool       is_state;
    bool       is_paused;
    char       name[IE_BUS_GROUP_BYTES_MAX + 1];
    char       pattern[IE_TOPIC_BYTES_MAX + 1];
} task;

static task *
task_new(ie__request *r, const ie__group *group, ie_error *err)
{
    task *self = ie__calloc(1, sizeof *self);

    if (self == NULL) {
        (void)ie_error_set(err, IE_ENOMEM, "no memory for a request");
        return NULL;
    }
    (void)snprintf(self->name, sizeof self->name, "%s", group->name);
    (void)snprintf(self->pattern, sizeof self->pattern, "%s", group->pattern);
    ie__query_watch(r->query, &self->query);
    r->is_later = true;
    return self;
}

static json_t *
dead_json(const ie__dead_row *rows, uint64_t count)
{
    json_t *list = json_array();

    for (uint64_t i = 0; i < count; i++) {
        char since[IE_TIME_TEXT_SIZE];

        ie__time_format(since, rows[i].since_ms);
        (void)json_array_append_new(list, json_pack("{s:I, s:s, s:s, s:I, s:s, s:s}", "position",
                                                    (json_int_t)rows[i].position, "topic",
                                                    rows[i].topic, "id", rows[i].id, "attempts",
                                                    (json_int_t)rows[i].attempts, "since", since,
                                                    "reason", rows[i].reason));
    }
    return list;
}

/* It is done, or failed: the answer. */
static void
on_done(void *user, uint32_t code, const char *reason, uint64_t count, const ie__dead_row *rows)
{
    task   *self = user;
    json_t *answer;

    if (self->query == NULL) { /* whoever asked has gone, or would not wait */
        ie__free(self);
        return;
    }
    if (code != IE_BUS_CODE_NONE) {
        ie__query_fail(self->query, code, reason);
    } else {
        answer = json_pack("{s:s, s:s}", "group", self->name, "pattern", self->pattern);
        if (self->is_list)
            (void)json_object_set_new(answer, "dead", dead_json(rows, count));
        else if (self->is_state)
            (void)json_object_set_new(answer, "paused", json_boolean(self->is_paused));
        else
            (void)json_object_set_new(answer, self->is_move ? "position" : "count",
                                      json_integer((json_int_t)count));
        ie__admin_answer(self->query, answer);
    }
    ie__free(self);
}

ie_status
ie__admin_durable_pause(ie__request *r, const ie__group *group, bool is_paused, ie_error *err)
{
    task *self = task_new(r, group, err);

    if (self == NULL)
        return IE_ENOMEM;
    self->is_state = true;
    self->is_paused = is_paused;
    ie__durable_pause(r->server, self->name, self->pattern, is_paused, on_done, self);
    return IE_OK;
}

ie_status
ie__admin_durable_replay(ie__request *r, const ie__group *group, ie_error *err)
{
    const char  *from = NULL;
    int64_t      position = 0;
    int64_t      time_ms = 0;
    ie_bus_start start = IE_BUS_START_GROUP;
    task        *self;

    if (ie__admin_text(&from, r->arguments, "from", err) != IE_OK ||
        ie__admin_number(&position, r->arguments, "position", 0, 1, INT64_MAX, err) != IE_OK ||
        ie__admin_number(&time_ms, r->arguments, "time", 0, 1, INT64_MAX, err) != IE_OK)
        return IE_EINVAL;
    if ((from != NULL) + (position != 0) + (time_ms != 0) != 1)
        return ie_error_set(err, IE_EINVAL,
                            "one of: from (\"first\" or \"end\"), position, time (ms)");
    if (position != 0)
        start = IE_BUS_START_POSITION;
    else if (time_ms != 0)
        start = IE_BUS_START_TIME;
    else if (strcmp(from, "first") == 0)
        start = IE_BUS_START_FIRST;
    else if (strcmp(from, "end") == 0)
        start = IE_BUS_START_END;
    else
        return ie_error_set(err, IE_EINVAL, "from: \"first\" or \"end\"");
    self = task_new(r, group, err);
    if (self == NULL)
        return IE_ENOMEM;
    self->is_move = true;
    ie__durable_move(r->server, self->name, self->pattern, start,
                     position != 0 ? position : time_ms, on_done, self);
    return IE_OK;
}

ie_status
ie__admin_durable_delete(ie__request *r, const ie__group *group, ie_error *err)
{
    task *self = task_new(r, group, err);

    if (self == NULL)
        return IE_ENOMEM;
    ie__durable_delete(r->server, self->name, self->pattern, on_done, self);
    return IE_OK;
}

ie_status
ie__admin_durable_dead(ie__request *r, const ie__group *group, ie_error *err)
{
    int64_t after = 0;
    int64_t limit = 0;
    task   *self;

    if (ie__admin_number(&after, r->arguments, "after", 0, 0, INT64_MAX, err) != IE_OK ||
        ie__admin_number(&limit, r->arguments, "limit", DEAD_DEFAULT, 1, DEAD_MAX, err) != IE_OK)
        return IE_EINVAL;
    self = task_new(r, group, err);
    if (self == NULL)
        return IE_ENOMEM;
    self->is_list = true;
    ie__durable_dead(r->server, self->name, self->pattern, IE__DEAD_LIST, after, (size_t)limit,
                     on_done, self);
    return IE_OK;
}

static ie_status
dead_change(ie__request *r, const ie__group *group, ie__dead_op op, ie_error *err)
{
    int64_t position = 0;
    task   *self;

    if (ie__admin_number(&position, r->arguments, "position", 0, 0, INT64_MAX, err) != IE_OK)
        return IE_EINVAL;
    self = task_new(r, group, err);
    if (self == NULL)
        return IE_ENOMEM;
    ie__durable_dead(r->server, self->name, self->pattern, op, position, 0, on_done, self);
    return IE_OK;
}

ie_status
ie__admin_durable_dead_retry(ie__request *r, const ie__group *group, ie_error *err)
{
    return dead_change(r, group, IE__DEAD_RETRY, err);
}

ie_status
ie__admin_durable_dead_discard(ie__request *r, const ie__group *group, ie_error *err)
{
    return dead_change(r, group, IE__DEAD_DISCARD, err);
}
