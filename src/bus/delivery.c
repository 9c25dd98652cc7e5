/* Deliveries that want an answer: sent, numbered per connection, answered, or taken back. */
#include "server.h"

#define RING_MIN  16
#define RING_KEEP 256 /* an empty ring of at most this stays */

/* ---- the ring ------------------------------------------------------------------------------- */

static ie__delivery *
delivery_at(const ie__conn *conn, size_t index)
{
    return &conn->deliveries[(conn->delivery_head + index) & (conn->delivery_max - 1)];
}

static bool
ring_grow(ie__conn *conn)
{
    const size_t  max = conn->delivery_max != 0 ? conn->delivery_max * 2 : RING_MIN;
    ie__delivery *grown = ie__realloc_array(NULL, max, sizeof *grown);

    if (grown == NULL)
        return false;
    for (size_t i = 0; i < conn->delivery_count; i++)
        grown[i] = *delivery_at(conn, i);
    ie__free(conn->deliveries);
    conn->deliveries = grown;
    conn->delivery_head = 0;
    conn->delivery_max = max;
    return true;
}

static void
ring_pop(ie__conn *conn)
{
    while (conn->delivery_count > 0 && delivery_at(conn, 0)->sub == NULL) {
        conn->delivery_head = (conn->delivery_head + 1) & (conn->delivery_max - 1);
        conn->delivery_count--;
        conn->delivery_first++;
    }
    if (conn->delivery_count == 0 && conn->delivery_max > RING_KEEP) {
        ie__free(conn->deliveries);
        conn->deliveries = NULL;
        conn->delivery_head = conn->delivery_max = 0;
    }
}

/* ---- giving --------------------------------------------------------------------------------- */

bool
ie__delivery_prepare(ie__conn *conn)
{
    if (conn->delivery_count < conn->delivery_max || ring_grow(conn))
        return true;
    ie__conn_doom(conn, IE_BUS_CODE_MEMORY, "no memory for a delivery");
    return false;
}

void
ie__delivery_send(ie__sub *sub, ie__item *item)
{
    ie__conn      *conn = sub->conn;
    const int64_t  now_ms = (int64_t)uv_now(&conn->server->loop);
    ie__delivery  *delivery = delivery_at(conn, conn->delivery_count);
    const uint32_t number = conn->delivery_first + (uint32_t)conn->delivery_count;
    unsigned char  head[16];

    delivery->item = item;
    delivery->sub = sub;
    delivery->sent_ms = now_ms;
    conn->delivery_count++;
    if (sub->outstanding++ == 0)
        sub->progress_ms = now_ms;
    item->was_sent = true;
    ie__put32(head, number);
    if (item->position == 0) {
        ie__conn_send_record(conn, IE__DELIVER_ACK, sub->id, head, 4, item->record->bytes,
                             item->record->size, item->record);
    } else {
        ie__put32(head + 4, item->attempt);
        ie__put64(head + 8, (uint64_t)item->position);
        ie__conn_send_record(conn, IE__DELIVER_LOG, sub->id, head, sizeof head, item->record->bytes,
                             item->record->size, item->record);
    }
}

/* ---- answers -------------------------------------------------------------------------------- */

static void
delivery_answer(ie__conn *conn, size_t index, const ie__outcome *outcome)
{
    ie__delivery *delivery = delivery_at(conn, index);
    ie__item     *item = delivery->item;
    ie__sub      *sub = delivery->sub;

    if (sub == NULL)
        return; /* taken back, or answered before */
    delivery->item = NULL;
    delivery->sub = NULL;
    sub->outstanding--;
    sub->progress_ms = (int64_t)uv_now(&conn->server->loop);
    if (item != NULL) /* else the answer comes late: it only gives the credit back */
        ie__group_answered(sub->group, item, outcome);
    ie__group_pump_member(sub);
}

ie_status
ie__route_ack(ie__conn *conn, const ie__frame *frame)
{
    static const ie__outcome HANDLED = {IE_BUS_CODE_NONE, 0, NULL, true};
    const uint32_t           base = conn->delivery_first;
    size_t                   from = 0; /* ranges ascend: each delivery is looked at once */
    const size_t             window = conn->delivery_count;

    if (frame->body_bytes == 0 || frame->body_bytes % 8 != 0)
        return IE_EPROTO;
    for (size_t at = 0; at < frame->body_bytes; at += 8) {
        const uint32_t first = ie__get32(frame->body + at) - base;
        uint32_t       count = ie__get32(frame->body + at + 4);

        if (count == 0)
            return IE_EPROTO;
        if (first >= window)
            continue; /* of a subscription that is gone */
        if (first < from)
            return IE_EPROTO;
        if (count > window - first)
            count = (uint32_t)(window - first);
        for (size_t i = first; i < (size_t)first + count; i++)
            delivery_answer(conn, i, &HANDLED);
        from = (size_t)first + count;
    }
    ring_pop(conn);
    return IE_OK;
}

void
ie__route_nack(ie__conn *conn, uint32_t number, uint32_t delay_ms, const ie__reason *reason)
{
    const uint32_t index = number - conn->delivery_first;
    ie__outcome    outcome = {reason->code, delay_ms, reason->text, true};

    /* Only what a handler can say; a subscriber does not speak for the bus. */
    if (outcome.code != IE_BUS_CODE_REJECTED && outcome.code != IE_BUS_CODE_UNAVAILABLE)
        outcome.code = IE_BUS_CODE_HANDLER;
    if (index < conn->delivery_count)
        delivery_answer(conn, index, &outcome);
    ring_pop(conn);
}

/* ---- taking back ---------------------------------------------------------------------------- */

void
ie__deliveries_take_back(ie__conn *conn, const ie__sub *only, uint32_t code, const char *reason)
{
    for (size_t i = conn->delivery_count; i-- > 0;) {
        ie__delivery *delivery = delivery_at(conn, i);
        ie__item     *item = delivery->item;
        ie__sub      *sub = delivery->sub;

        if (sub == NULL || (only != NULL && sub != only))
            continue;
        delivery->item = NULL;
        delivery->sub = NULL;
        sub->outstanding--;
        if (item != NULL)
            ie__group_return(sub->group, item, code, reason);
    }
    ring_pop(conn);
}

/* A member that leaves everything unanswered is cut: what waits for it shall go elsewhere. Where
 * items have a deadline of their own it gets a second one, for its answers count even then. */
static bool
sub_is_stuck(const ie__sub *sub, int64_t now_ms)
{
    const int64_t limit_ms = sub->group != NULL && sub->group->ack_timeout_ms != 0
                                 ? 2 * (int64_t)sub->group->ack_timeout_ms
                                 : (int64_t)sub->conn->server->options.ack_timeout_ms;

    return sub->outstanding > 0 && now_ms - sub->progress_ms >= limit_ms;
}

bool
ie__deliveries_tick(ie__conn *conn, int64_t now_ms)
{
    static const ie__outcome LATE = {IE_BUS_CODE_ACK_TIMEOUT, 0,
                                     "the subscriber did not answer in time", true};
    bool                     has_deadlines = false;

    for (const ie__sub *sub = conn->subs; sub != NULL; sub = sub->next) {
        if (sub_is_stuck(sub, now_ms))
            return true;
        has_deadlines |= sub->group != NULL && sub->group->ack_timeout_ms != 0;
    }
    for (size_t i = 0; has_deadlines && i < conn->delivery_count; i++) {
        ie__delivery *delivery = delivery_at(conn, i);
        ie__item     *item = delivery->item;

        /* Its credit stays spent until it answers: one that hangs is not fed for ever. */
        if (item == NULL || item->position == 0 || delivery->sub->group->ack_timeout_ms == 0 ||
            now_ms - delivery->sent_ms < (int64_t)delivery->sub->group->ack_timeout_ms)
            continue;
        delivery->item = NULL;
        ie__group_answered(delivery->sub->group, item, &LATE);
    }
    return false;
}
