/*
 * Who publishes faster than a live subscriber reads is held back for a moment: its connection is
 * not read. That turns a burst, or a reader that the scheduler left out for some milliseconds, into
 * a short wait instead of a lost subscriber. A subscriber that is slow for good is not waited for:
 * one that has not read half of what it should within EPISODE_MS_MAX lags until it has caught up;
 * and all together it may hold others back for STALL_MS_MAX, of which time in which it keeps up
 * earns some back. A subscriber that lags is not waited for: its queue grows to out_bytes_max, and
 * it is closed.
 */
#include "server.h"

#define EPISODE_MS_MAX 50
#define STALL_MS_MAX   2000
#define STALL_REGAIN   4 /* ms of keeping up for one of stalling */
#define STALL_SHARE    8 /* of out_bytes_max: from here on */
#define TICK_MS        5

static size_t
high_mark(const ie_bus_server *server)
{
    return (size_t)(server->options.out_bytes_max / STALL_SHARE);
}

static int64_t
now_ms(const ie_bus_server *server)
{
    return (int64_t)uv_now(&server->loop);
}

static void
go_on_all(ie_bus_server *server)
{
    while (server->held_back != NULL) {
        ie__conn *publisher = server->held_back;

        server->held_back = publisher->held_back_next;
        publisher->is_held_back = false;
        ie__stream_resume(publisher->stream);
    }
}

/* Publishers that meet another subscriber of this kind are held back again by their next event. */
static void
stall_end(ie__conn *reader)
{
    ie_bus_server *server = reader->server;
    ie__conn     **link = &server->stalling;

    while (*link != reader)
        link = &(*link)->stalling_next;
    *link = reader->stalling_next;
    reader->is_stalling = false;
    reader->stall_ms += now_ms(server) - reader->stall_at_ms;
    reader->stall_at_ms = now_ms(server);
    if (server->stalling == NULL)
        (void)uv_timer_stop(&server->stall_timer);
    go_on_all(server);
}

static void
on_tick(uv_timer_t *timer)
{
    ie_bus_server *server = timer->data;
    ie__conn      *next;

    for (ie__conn *reader = server->stalling; reader != NULL; reader = next) {
        const int64_t took = now_ms(server) - reader->stall_at_ms;

        next = reader->stalling_next;
        if (took < EPISODE_MS_MAX && reader->stall_ms + took < STALL_MS_MAX)
            continue;
        reader->is_lagging = true; /* until it has caught up */
        stall_end(reader);
    }
}

/* May this subscriber hold others back once more? */
static bool
stall_begin(ie__conn *reader)
{
    ie_bus_server *server = reader->server;
    const int64_t  earned = (now_ms(server) - reader->stall_at_ms) / STALL_REGAIN;

    if (reader->is_lagging)
        return false;
    reader->stall_ms = earned < reader->stall_ms ? reader->stall_ms - earned : 0;
    ie__stream_notify_below(reader->stream, high_mark(server) / 2);
    if (reader->stall_ms >= STALL_MS_MAX) {
        reader->is_lagging = true;
        return false;
    }
    reader->is_stalling = true;
    reader->stall_at_ms = now_ms(server);
    reader->stalling_next = server->stalling;
    if (server->stalling == NULL) {
        server->stall_timer.data = server;
        (void)uv_timer_start(&server->stall_timer, on_tick, TICK_MS, TICK_MS);
    }
    server->stalling = reader;
    return true;
}

void
ie__stall_check(ie__conn *publisher, ie__conn *reader)
{
    ie_bus_server *server = reader->server;

    if (ie__stream_pending(reader->stream) < high_mark(server) ||
        (!reader->is_stalling && !stall_begin(reader)) || publisher->is_held_back)
        return;
    publisher->is_held_back = true;
    publisher->held_back_next = server->held_back;
    server->held_back = publisher;
    ie__stream_pause(publisher->stream);
}

void
ie__stall_drained(ie__conn *reader)
{
    if (!reader->is_stalling && !reader->is_lagging)
        return;
    if (ie__stream_pending(reader->stream) > high_mark(reader->server) / 2) {
        ie__stream_notify_below(reader->stream, high_mark(reader->server) / 2);
        return; /* told for another reason */
    }
    if (reader->is_lagging)
        reader->stall_at_ms = now_ms(reader->server); /* from now on it earns */
    reader->is_lagging = false;
    if (reader->is_stalling)
        stall_end(reader);
}

void
ie__stall_leave(ie__conn *conn)
{
    ie__conn **link = &conn->server->held_back;

    if (conn->is_stalling)
        stall_end(conn);
    if (!conn->is_held_back)
        return;
    while (*link != conn)
        link = &(*link)->held_back_next;
    *link = conn->held_back_next;
    conn->is_held_back = false;
    ie__stream_resume(conn->stream); /* it shall hear its last words */
}
