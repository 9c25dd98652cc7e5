/*
 * Groups: which member gets an item, and when.
 *
 * Invariant: an item that was pushed and is not done is in exactly one place: in a queue of its
 * group (the common one, a member's, a key's), or with a member as a delivery. A broadcast item is
 * in the common queue until every member answered, and with several members at once.
 */
#include "group.h"

#include "server.h"

#define PAUSE_BYTES (1024 * 1024) /* a member with so much unread output gets no more for now */

/* ---- lists ---------------------------------------------------------------------------------- */

static void
items_add(ie__items *list, ie__item *item)
{
    item->next = NULL;
    item->prev = list->tail;
    if (list->tail != NULL)
        list->tail->next = item;
    else
        list->head = item;
    list->tail = item;
}

static void
items_add_front(ie__items *list, ie__item *item)
{
    item->prev = NULL;
    item->next = list->head;
    if (list->head != NULL)
        list->head->prev = item;
    else
        list->tail = item;
    list->head = item;
}

static void
items_remove(ie__items *list, ie__item *item)
{
    if (item->prev != NULL)
        item->prev->next = item->next;
    else
        list->head = item->next;
    if (item->next != NULL)
        item->next->prev = item->prev;
    else
        list->tail = item->prev;
    item->next = item->prev = NULL;
}

static ie__item *
items_take(ie__items *list)
{
    ie__item *item = list->head;

    if (item != NULL)
        items_remove(list, item);
    return item;
}

static void
count_in(ie__group *group, const ie__item *item)
{
    group->queue_count++;
    group->queue_bytes += item->record->size;
}

static void
count_out(ie__group *group, const ie__item *item)
{
    group->queue_count--;
    group->queue_bytes -= item->record->size;
}

/* ---- members -------------------------------------------------------------------------------- */

static bool
member_is_ready(const ie__sub *sub)
{
    return sub->outstanding < sub->credit && !sub->conn->is_doomed && !sub->group->is_paused &&
           ie__stream_pending(sub->conn->stream) < PAUSE_BYTES;
}

/* It may only have to read; if it has no credit, it will ask by answering. */
static void
member_wait(const ie__sub *sub)
{
    if (!sub->conn->is_doomed && ie__stream_pending(sub->conn->stream) >= PAUSE_BYTES)
        ie__stream_notify_below(sub->conn->stream, PAUSE_BYTES / 2);
}

static bool
keeps_order(const ie__group *group)
{
    return group->selection == IE_BUS_HASH || group->selection == IE_BUS_STICKY;
}

static ie__sub *
pick_in_turn(ie__group *group)
{
    for (size_t i = 0; i < group->member_count; i++) {
        ie__sub *sub = group->members[(group->turn + i) % group->member_count];

        if (member_is_ready(sub)) {
            group->turn = (group->turn + i + 1) % group->member_count;
            return sub;
        }
    }
    return NULL;
}

static ie__sub *
pick_any(const ie__group *group)
{
    ie__sub *picked = NULL;
    uint64_t ready = 0;

    for (size_t i = 0; i < group->member_count; i++)
        if (member_is_ready(group->members[i]) && ie__random_below(++ready) == 0)
            picked = group->members[i];
    return picked;
}

static ie__sub *
pick_ready(ie__group *group)
{
    return group->selection == IE_BUS_RANDOM ? pick_any(group) : pick_in_turn(group);
}

/* Rendezvous hashing: a key belongs to the member with the highest score for it, so only the keys
 * of a member that leaves, or those that one who joins wins, ever move. */
static uint64_t
score(uint64_t key, uint64_t identity)
{
    uint64_t h = key ^ identity;

    h = (h ^ h >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    h = (h ^ h >> 27) * UINT64_C(0x94D049BB133111EB);
    return h ^ h >> 31;
}

static ie__sub *
owner_of(ie__group *group, const ie__item *item)
{
    /* Without a key anybody may have it. */
    const uint64_t key = item->key != 0 ? item->key : score(++group->turn, group->hash);
    ie__sub       *best = NULL;
    uint64_t       best_score = 0;

    for (size_t i = 0; i < group->member_count; i++) {
        const uint64_t s = score(key, group->members[i]->identity);

        if (best == NULL || s > best_score) {
            best = group->members[i];
            best_score = s;
        }
    }
    return best;
}

/* ---- giving --------------------------------------------------------------------------------- */

static void
pump_own_queue(ie__sub *sub)
{
    while (sub->queue.head != NULL && member_is_ready(sub) && ie__delivery_prepare(sub->conn)) {
        ie__item *item = items_take(&sub->queue);

        count_out(sub->group, item);
        ie__delivery_send(sub, item);
    }
    if (sub->queue.head != NULL)
        member_wait(sub);
}

static void
pump_broadcast(ie__sub *sub)
{
    while (sub->cursor != NULL && member_is_ready(sub) && ie__delivery_prepare(sub->conn)) {
        ie__item *item = sub->cursor;

        sub->cursor = item->next;
        if (--item->unsent == 0)
            count_out(sub->group, item);
        ie__delivery_send(sub, item);
    }
    if (sub->cursor != NULL)
        member_wait(sub);
}

static void
pump_common_queue(ie__group *group)
{
    while (group->queue.head != NULL) {
        ie__sub  *sub = pick_ready(group);
        ie__item *item;

        if (sub == NULL)
            break;
        if (!ie__delivery_prepare(sub->conn))
            continue; /* it is doomed now, and not ready any more */
        item = items_take(&group->queue);
        count_out(group, item);
        ie__delivery_send(sub, item);
    }
    for (size_t i = 0; group->queue.head != NULL && i < group->member_count; i++)
        member_wait(group->members[i]);
}

static void
ask_for_more(ie__group *group)
{
    if (group->hungry != NULL && group->queue_count < (group->window + 1) / 2 &&
        group->member_count != 0 && !group->is_paused)
        group->hungry(group);
}

static void
pump_member(ie__sub *sub)
{
    if (keeps_order(sub->group))
        pump_own_queue(sub);
    else if (sub->group->selection == IE_BUS_BROADCAST)
        pump_broadcast(sub);
    else if (sub->group->queue.head != NULL)
        pump_common_queue(sub->group);
}

void
ie__group_pump_member(ie__sub *sub)
{
    pump_member(sub);
    ask_for_more(sub->group);
}

void
ie__group_pump(ie__group *group)
{
    for (size_t i = 0; i < group->member_count; i++) {
        pump_member(group->members[i]);
        if (!keeps_order(group) && group->selection != IE_BUS_BROADCAST)
            break; /* once is for all of them */
    }
    ask_for_more(group);
}

/* The item may go: to the member whose it is. */
static void
admit(ie__group *group, ie__item *item, bool in_front)
{
    ie__sub *sub = owner_of(group, item);

    if (in_front)
        items_add_front(&sub->queue, item);
    else
        items_add(&sub->queue, item);
    count_in(group, item);
    if (!in_front)
        pump_own_queue(sub);
}

static bool
push_sticky(ie__group *group, ie__item *item)
{
    ie__key *slot = item->key != 0 ? ie__keys_find(group, item->key) : NULL;

    if (slot != NULL &&
        !(slot->is_held && item->position != 0 && slot->position == item->position)) {
        items_add(&slot->waiting, item);
        count_in(group, item);
        return true;
    }
    if (slot == NULL && item->key != 0)
        slot = ie__keys_add(group, item->key);
    if (slot == NULL && item->key != 0)
        return false;
    if (slot != NULL) {
        slot->is_held = false;
        slot->position = item->position;
    }
    admit(group, item, false);
    return true;
}

static void
push_broadcast(ie__group *group, ie__item *item)
{
    item->unsent = item->waiting = (uint32_t)group->member_count;
    item->code = IE_BUS_CODE_NONE;
    item->reason = NULL;
    items_add(&group->queue, item);
    count_in(group, item);
    for (size_t i = 0; i < group->member_count; i++) {
        if (group->members[i]->cursor == NULL)
            group->members[i]->cursor = item;
        pump_broadcast(group->members[i]);
    }
}

bool
ie__group_push(ie__group *group, ie__item *item)
{
    item->was_sent = false;
    if (group->member_count == 0)
        return false;
    switch (group->selection) {
    case IE_BUS_HASH: admit(group, item, false); return true;
    case IE_BUS_STICKY: return push_sticky(group, item);
    case IE_BUS_BROADCAST: push_broadcast(group, item); return true;
    case IE_BUS_ROUND_ROBIN:
    case IE_BUS_RANDOM: break;
    }
    if (group->queue.head == NULL) {
        ie__sub *sub = pick_ready(group);

        if (sub != NULL && ie__delivery_prepare(sub->conn)) {
            ie__delivery_send(sub, item);
            return true;
        }
    }
    items_add(&group->queue, item);
    count_in(group, item);
    if (group->queue.head == item)
        pump_common_queue(group); /* asks to be told when output drains */
    return true;
}

bool
ie__group_push_again(ie__group *group, ie__item *item)
{
    item->was_sent = false;
    if (group->member_count == 0)
        return false;
    if (group->selection == IE_BUS_STICKY)
        return push_sticky(group, item);
    if (keeps_order(group)) {
        admit(group, item, true);
        return true;
    }
    items_add_front(&group->queue, item);
    count_in(group, item);
    return true;
}

bool
ie__group_is_full(const ie__group *group, size_t size)
{
    const ie_bus_server_options *options = &group->server->options;

    return group->queue_count > 0 && (group->queue_count >= options->group_events_max ||
                                      group->queue_bytes + size > options->group_bytes_max);
}

size_t
ie__group_room(const ie__group *group)
{
    if (group->member_count == 0 || group->is_paused || group->queue_count >= group->window)
        return 0;
    return group->window - group->queue_count;
}

void
ie__group_pause(ie__group *group, bool is_paused)
{
    group->is_paused = is_paused;
    if (!is_paused)
        ie__group_pump(group);
}

uint64_t
ie__item_key(const void *bytes, size_t size)
{
    const uint64_t key = ie__digest(bytes, size, 0);

    return key != 0 ? key : 1;
}

/* ---- taking back from the queues ------------------------------------------------------------- */

static void key_next(ie__group *group, ie__key *slot);

static void
withdraw_from(ie__group *group, ie__items *list, ie__items *out)
{
    for (ie__item *item = list->head, *next; item != NULL; item = next) {
        next = item->next;
        if (item->position == 0)
            continue;
        items_remove(list, item);
        count_out(group, item);
        items_add(out, item);
    }
}

void
ie__group_withdraw(ie__group *group, uint64_t key)
{
    static const ie__outcome WITHDRAWN = {IE_BUS_CODE_SUBSCRIBER_GONE, 0, "withdrawn", false};
    ie__items                out = {NULL, NULL};

    if (key != 0) {
        ie__key *slot = ie__keys_find(group, key);

        if (slot != NULL)
            withdraw_from(group, &slot->waiting, &out);
    } else {
        if (group->selection != IE_BUS_BROADCAST)
            withdraw_from(group, &group->queue, &out);
        for (size_t i = 0; i < group->key_max; i++)
            if (group->keys[i].key != 0)
                withdraw_from(group, &group->keys[i].waiting, &out);
        for (size_t i = 0; i < group->member_count; i++) {
            ie__items own = {NULL, NULL};

            withdraw_from(group, &group->members[i]->queue, &own);
            for (ie__item *item; (item = items_take(&own)) != NULL;) {
                ie__key *slot = group->selection == IE_BUS_STICKY && item->key != 0
                                    ? ie__keys_find(group, item->key)
                                    : NULL;

                if (slot != NULL && !slot->is_held)
                    key_next(group, slot);
                items_add(&out, item);
            }
        }
    }
    for (ie__item *item; (item = items_take(&out)) != NULL;)
        item->feeder->done(group, item, &WITHDRAWN);
}

/* ---- answers -------------------------------------------------------------------------------- */

/* Nothing of this key is on its way any more: the next one goes. */
static void
key_next(ie__group *group, ie__key *slot)
{
    ie__item *next = items_take(&slot->waiting);

    if (next == NULL) {
        ie__keys_remove(group, slot);
        return;
    }
    slot->is_held = false;
    slot->position = next->position;
    count_out(group, next);
    admit(group, next, false);
}

static void
key_answered(ie__group *group, const ie__item *item, uint32_t code)
{
    ie__key *slot = ie__keys_find(group, item->key);

    if (slot == NULL)
        return;
    if (code != IE_BUS_CODE_NONE && item->position != 0)
        slot->is_held = true;
    else if (group->member_count != 0)
        key_next(group, slot);
}

void
ie__group_release_key(ie__group *group, uint64_t key)
{
    ie__key *slot = key != 0 ? ie__keys_find(group, key) : NULL;

    if (slot == NULL || !slot->is_held)
        return;
    slot->is_held = false;
    if (group->member_count != 0)
        key_next(group, slot);
    else
        ie__keys_remove(group, slot); /* nothing waits where nobody is */
}

/* One member of a broadcast is through with it. */
static void
broadcast_answered(ie__group *group, ie__item *item, const ie__outcome *outcome)
{
    ie__outcome all = {IE_BUS_CODE_NONE, 0, NULL, item->was_sent};
    char       *reason;

    if (outcome->code != IE_BUS_CODE_NONE && item->code == IE_BUS_CODE_NONE) {
        item->code = outcome->code;
        item->reason = ie__strdup(outcome->reason);
    }
    if (--item->waiting > 0)
        return;
    items_remove(&group->queue, item);
    reason = item->reason;
    item->reason = NULL;
    all.code = item->code;
    if (all.code != IE_BUS_CODE_NONE)
        all.reason = reason != NULL ? reason : ie_bus_code_text(all.code);
    item->feeder->done(group, item, &all);
    ie__free(reason);
}

void
ie__group_answered(ie__group *group, ie__item *item, const ie__outcome *outcome)
{
    if (group->selection == IE_BUS_BROADCAST) {
        broadcast_answered(group, item, outcome);
        return;
    }
    if (group->selection == IE_BUS_STICKY && item->key != 0)
        key_answered(group, item, outcome->code);
    item->feeder->done(group, item, outcome);
}

void
ie__group_return(ie__group *group, ie__item *item, uint32_t code, const char *reason)
{
    const ie__outcome gone = {code, 0, reason, true};

    if (group->selection == IE_BUS_BROADCAST || group->member_count == 0 ||
        (item->feeder->taken_back != NULL && !item->feeder->taken_back(group, item))) {
        ie__group_answered(group, item, &gone);
        return;
    }
    group->server->stats.redelivered++;
    if (keeps_order(group)) {
        admit(group, item, true);
        return;
    }
    items_add_front(&group->queue, item);
    count_in(group, item);
}

/* ---- the table of groups -------------------------------------------------------------------- */

static uint64_t
group_hash(const char *name, const char *pattern)
{
    return ie__hash(name, strlen(name)) ^ ie__hash(pattern, strlen(pattern)) << 1;
}

ie__group *
ie__group_find(const ie_bus_server *server, const char *name, const char *pattern)
{
    const uint64_t hash = group_hash(name, pattern);
    ie__group     *group = server->groups[hash & (server->group_buckets - 1)];

    while (group != NULL && !(group->hash == hash && strcmp(group->name, name) == 0 &&
                              strcmp(group->pattern, pattern) == 0))
        group = group->chain;
    return group;
}

void
ie__group_free(ie__group *group)
{
    ie_bus_server *server = group->server;

    if (group->name[0] != '\0') {
        ie__group **link = &server->groups[group->hash & (server->group_buckets - 1)];

        while (*link != NULL && *link != group)
            link = &(*link)->chain;
        if (*link == group)
            *link = group->chain;
    }
    ie__topics_remove(server->topics, &group->target.entry);
    ie__free(group->members);
    ie__free(group->keys);
    ie__free(group->pattern);
    ie__free(group);
    server->group_count--;
}

ie__group *
ie__group_new(ie_bus_server *server, const char *name, const char *pattern,
              ie_bus_selection selection)
{
    const size_t name_bytes = strlen(name) + 1;
    ie__group   *group = ie__calloc(1, sizeof *group + name_bytes);

    if (group == NULL)
        return NULL;
    memcpy(group->name, name, name_bytes);
    group->server = server;
    group->target.is_group = true;
    group->selection = selection;
    group->hash = group_hash(name, pattern);
    group->pattern = ie__strdup(pattern);
    if (group->pattern == NULL ||
        ie__topics_add(server->topics, &group->target.entry, pattern) != IE_OK) {
        ie__free(group->pattern);
        ie__free(group);
        return NULL;
    }
    if (name[0] != '\0') {
        group->chain = server->groups[group->hash & (server->group_buckets - 1)];
        server->groups[group->hash & (server->group_buckets - 1)] = group;
    }
    server->group_count++;
    return group;
}

/* ---- joining and leaving -------------------------------------------------------------------- */

/* The client's name, and which of those with that name it is: one that comes again under its name
 * gets its keys again. */
static uint64_t
member_identity(const ie__group *group, const ie__conn *conn)
{
    const char *name = conn->name != NULL ? conn->name : "";
    uint64_t    ordinal = 0;
    uint64_t    identity;
    size_t      i;

    do {
        identity = ie__digest(name, strlen(name), ordinal++);
        for (i = 0; i < group->member_count && group->members[i]->identity != identity; i++)
            continue;
    } while (i < group->member_count);
    return identity;
}

/* Keys that the new member wins move to it with what waits for them. */
static void
rebalance(ie__group *group, ie__sub *joined)
{
    for (size_t i = 0; i < group->member_count; i++) {
        ie__sub  *sub = group->members[i];
        ie__item *next;

        for (ie__item *item = sub->queue.head; item != NULL && sub != joined; item = next) {
            next = item->next;
            if (item->key == 0 ||
                score(item->key, joined->identity) <= score(item->key, sub->identity))
                continue;
            items_remove(&sub->queue, item);
            items_add(&joined->queue, item);
        }
    }
}

uint32_t
ie__group_join(ie_bus_server *server, const char *name, const char *pattern,
               ie_bus_selection selection, ie__sub *sub, ie_error *err)
{
    ie__group *group = name[0] != '\0' ? ie__group_find(server, name, pattern) : NULL;

    if (group != NULL && group->selection != selection) {
        (void)ie_error_set(err, IE_EEXIST, "group %.100s has selection %d, not %d", name,
                           (int)group->selection, (int)selection);
        return IE_BUS_CODE_CONFLICT;
    }
    if (group == NULL)
        group = ie__group_new(server, name, pattern, selection);
    if (group != NULL && group->member_count == group->member_max) {
        const size_t max = group->member_max != 0 ? group->member_max * 2 : 1;
        ie__sub    **grown = ie__realloc_array(group->members, max, sizeof *grown);

        if (grown != NULL) {
            group->members = grown;
            group->member_max = max;
        } else {
            if (group->member_count == 0 && !group->is_durable)
                ie__group_free(group);
            group = NULL;
        }
    }
    if (group == NULL) {
        (void)ie_error_set(err, IE_ENOMEM, "no memory for a subscription");
        return IE_BUS_CODE_MEMORY;
    }
    sub->identity = keeps_order(group) ? member_identity(group, sub->conn) : 0;
    group->members[group->member_count++] = sub;
    sub->group = group;
    if (keeps_order(group))
        rebalance(group, sub);
    return IE_BUS_CODE_NONE;
}

void
ie__group_leave(ie__sub *sub, uint32_t code, const char *reason)
{
    const ie__outcome gone = {code, 0, reason, false};
    ie__group        *group = sub->group;
    ie__item         *item;
    size_t            i = 0;

    while (group->members[i] != sub)
        i++;
    memmove(&group->members[i], &group->members[i + 1],
            (--group->member_count - i) * sizeof *group->members);
    if (!keeps_order(group)) {
        if (group->turn > i)
            group->turn--;
        if (group->member_count != 0)
            group->turn %= group->member_count;
    }
    while ((item = sub->queue.tail) != NULL) {
        items_remove(&sub->queue, item);
        count_out(group, item);
        if (group->member_count != 0) {
            admit(group, item, true);
        } else {
            items_add_front(&group->queue, item);
            count_in(group, item);
        }
    }
    while ((item = sub->cursor) != NULL) {
        sub->cursor = item->next;
        if (--item->unsent == 0)
            count_out(group, item);
        broadcast_answered(group, item, &gone);
    }
}

void
ie__group_settle(ie__group *group, uint32_t code, const char *reason)
{
    ie__outcome gone = {code, 0, reason, false};
    ie__items   left;
    ie__item   *item;

    if (group->member_count != 0) {
        ie__group_pump(group);
        return;
    }
    left = group->queue;
    group->queue.head = group->queue.tail = NULL;
    ie__keys_let_go(group, &left);
    while ((item = items_take(&left)) != NULL) {
        count_out(group, item);
        gone.was_sent = item->was_sent;
        item->feeder->done(group, item, &gone);
    }
    if (!group->is_durable)
        ie__group_free(group);
}
