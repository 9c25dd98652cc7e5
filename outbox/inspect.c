/*
 * Looking at an outbox: status and lists, from the database alone. Counting must stay cheap on
 * millions of rows: the whole table is counted by its pages, ranges only above a cursor.
 */
#include <ie/inspect.h>

#include <ie/migrate.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core.h"
#include "log.h"
#include "look.h"

#define LIST_LIMIT_DEFAULT      100
#define COUNTED_MAX             100000 /* rows above a cursor counted one by one: some 10 ms */
#define CHANGES_PER_TRANSACTION 200 /* short, so that the host's commits do not wait */

#define BIT(state) (1u << (state))
#define STATES_ALL (BIT(IE_STATE_COUNT) - 1)
#define STATES_OF_ROWS                                                                             \
    (BIT(IE_STATE_SCHEDULED) | BIT(IE_STATE_RETRYING) | BIT(IE_STATE_BLOCKED) |                    \
     BIT(IE_STATE_DEAD) | BIT(IE_STATE_EXPIRED) | BIT(IE_STATE_DISCARDED))

/* ---- status ---- */

static int64_t
wal_bytes(sqlite3 *db)
{
    const char *name = sqlite3_db_filename(db, "main");
    const char *wal = name != NULL && name[0] != '\0' ? sqlite3_filename_wal(name) : NULL;
    struct stat st;

    /* By name only: a descriptor of ours on it, once closed, would drop SQLite's locks. */
    return wal != NULL && stat(wal, &st) == 0 ? (int64_t)st.st_size : 0;
}

/* A database whose tables were made by another tool has no history: then it is what we checked for.
 */
static ie_status
schema_version(int *out, sqlite3 *db, ie_error *err)
{
    int64_t   has_history = 0;
    int64_t   version = ie_migration_at(ie_migration_count() - 1)->version;
    ie_status status = ie__sql_int(
        &has_history, db,
        "SELECT count(*) FROM main.sqlite_master WHERE name = 'ie_schema_history'", 0, err);

    if (status == IE_OK && has_history != 0)
        status = ie__sql_int(&version, db, "SELECT max(version) FROM main.ie_schema_history",
                             version, err);
    *out = (int)version;
    return status;
}

static ie_status
info_tell(ie__look *look, uint64_t *kept, int64_t *newest,
          void (*tell)(void *user, const ie_outbox_info *info), void *user, ie_error *err)
{
    char           journal[16];
    char           durability[64];
    char           source[IE_ATTRIBUTE_BYTES_MAX + 1];
    int64_t        count = 0;
    ie_outbox_info info;
    ie_status      status;

    memset(&info, 0, sizeof info);
    status = ie__sql_int(&info.newest_position, look->db, "SELECT max(position) FROM main.ie_event",
                         0, err);
    if (status == IE_OK)
        status = ie__sql_int(&info.oldest_position, look->db,
                             "SELECT min(position) FROM main.ie_event", 0, err);
    if (status == IE_OK)
        status = ie__sql_int(&count, look->db, "SELECT count(*) FROM main.ie_event", 0, err);
    if (status == IE_OK)
        status =
            ie__sql_text(journal, sizeof journal, look->db, "PRAGMA main.journal_mode", "", err);
    if (status == IE_OK)
        status = ie__sql_text(durability, sizeof durability, look->db,
                              "SELECT value FROM main.ie_meta WHERE name = 'durability'", "", err);
    if (status == IE_OK)
        status = ie__sql_text(source, sizeof source, look->db,
                              "SELECT value FROM main.ie_meta WHERE name = 'source'", "/ie", err);
    if (status == IE_OK)
        status = schema_version(&info.schema_version, look->db, err);
    if (status != IE_OK)
        return status;
    *kept = info.events_kept = (uint64_t)count;
    *newest = info.newest_position;
    info.journal_mode = journal;
    info.durability = durability;
    info.source = source;
    info.sqlite_version = sqlite3_libversion();
    info.sqlite_has_wal_reset_bug = ie__sqlite_has_wal_reset_bug(sqlite3_libversion_number());
    info.wal_bytes = wal_bytes(look->db);
    if (tell != NULL)
        tell(user, &info);
    return IE_OK;
}

/* One integer from a query about a cursor: ?1 its name, ?2 and ?3 two positions. */
static ie_status
cursor_int(int64_t *out, sqlite3 *db, const char *sql, const ie__look_cursor *cursor,
           int64_t second, int64_t third, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(&stmt, db, sql, err);

    *out = 0;
    if (status == IE_OK) {
        int rc;

        (void)sqlite3_bind_text(stmt, 1, cursor->name, -1, SQLITE_STATIC);
        if (sqlite3_bind_parameter_count(stmt) >= 2)
            (void)sqlite3_bind_int64(stmt, 2, second);
        if (sqlite3_bind_parameter_count(stmt) >= 3)
            (void)sqlite3_bind_int64(stmt, 3, third);
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW)
            *out = sqlite3_column_int64(stmt, 0);
        else if (rc != SQLITE_DONE)
            status = ie__sql_fail(db, rc, "read status", err);
    }
    (void)sqlite3_finalize(stmt);
    return status;
}

static ie_status
count_deliveries(ie__look *look, const ie__look_cursor *cursor, uint64_t counts[IE_STATE_COUNT],
                 ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    int           rc = SQLITE_DONE;
    ie_status     status = ie__sql_prepare(&stmt, look->db,
                                           "SELECT state, count(*) FROM main.ie_delivery"
                                               " WHERE cursor = ?1 GROUP BY state",
                                           err);

    if (status == IE_OK)
        (void)sqlite3_bind_text(stmt, 1, cursor->name, -1, SQLITE_STATIC);
    while (status == IE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        ie_state state;

        status = ie_state_parse(&state, ie__sql_column_text(stmt, 0), err);
        if (status == IE_OK)
            counts[state] = (uint64_t)sqlite3_column_int64(stmt, 1);
    }
    if (status == IE_OK && rc != SQLITE_DONE)
        status = ie__sql_fail(look->db, rc, "count deliveries", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

/*
 * Events in (position, until]. Counted one by one while that is cheap; beyond, by their positions,
 * which are without gaps above a cursor unless somebody wrote or removed rows by hand.
 */
static ie_status
count_range(int64_t *out, ie__look *look, const ie__look_cursor *cursor, int64_t until,
            ie_error *err)
{
    char      sql[160];
    int64_t   rows = 0;
    ie_status status;

    (void)snprintf(sql, sizeof sql,
                   "SELECT count(*) FROM (SELECT 1 FROM main.ie_event WHERE position > ?2"
                   " AND position <= ?3 LIMIT %d)",
                   COUNTED_MAX + 1);
    status = cursor_int(out, look->db, sql, cursor, cursor->position, until, err);
    if (status == IE_OK && *out > COUNTED_MAX)
        *out = until - cursor->position;
    /* The row of a strict order's head stands there too, and is counted under its state. */
    if (status == IE_OK)
        status =
            cursor_int(&rows, look->db,
                       "SELECT count(*) FROM main.ie_delivery WHERE cursor = ?1 AND position > ?2"
                       " AND position <= ?3",
                       cursor, cursor->position, until, err);
    *out -= rows;
    return status;
}

/* The oldest event that is neither done nor asked to wait (scheduled). */
static ie_status
oldest_pending(int64_t *out, ie__look *look, const ie__look_cursor *cursor, ie_error *err)
{
    int64_t   ahead_ms = 0;
    int64_t   held_ms = 0;
    ie_status status =
        cursor_int(&ahead_ms, look->db,
                   "SELECT time FROM main.ie_event WHERE position > ?2 ORDER BY position LIMIT 1",
                   cursor, cursor->position, 0, err);

    if (status == IE_OK)
        status = cursor_int(&held_ms, look->db,
                            "SELECT time FROM main.ie_event WHERE position = (SELECT min(position)"
                            " FROM main.ie_delivery WHERE cursor = ?1 AND state IN ('retrying',"
                            " 'blocked'))",
                            cursor, 0, 0, err);
    *out = held_ms != 0 && (ahead_ms == 0 || held_ms < ahead_ms) ? held_ms : ahead_ms;
    return status;
}

static ie_status
cursor_tell(ie__look *look, const ie__look_cursor *cursor, uint64_t kept, int64_t newest,
            void (*tell)(void *user, const ie_cursor_status *cursor), void *user, ie_error *err)
{
    int64_t          ahead = 0;
    int64_t          claimed = 0;
    uint64_t         rows = 0;
    ie_cursor_status out;
    ie_status        status;

    memset(&out, 0, sizeof out);
    out.name = cursor->name;
    out.destination = cursor->destination;
    out.topics = cursor->topics;
    out.order = cursor->order;
    out.owner = cursor->owner;
    out.is_alive = cursor->is_alive;
    out.seen_at_ms = cursor->seen_at_ms;
    out.position = cursor->position;
    out.claimed_to = cursor->claimed_to;
    out.epoch = cursor->epoch;
    out.breaker_reason = cursor->breaker;
    if (cursor->breaker[0] != '\0') {
        out.breaker_since_ms = cursor->breaker_since_ms;
        out.breaker_until_ms = cursor->breaker_until_ms;
    }
    status = count_deliveries(look, cursor, out.counts, err);
    if (status == IE_OK)
        status = count_range(&ahead, look, cursor, newest, err);
    if (status == IE_OK && cursor->is_alive)
        status = count_range(&claimed, look, cursor,
                             cursor->claimed_to < newest ? cursor->claimed_to : newest, err);
    if (status == IE_OK)
        status = oldest_pending(&out.oldest_pending_ms, look, cursor, err);
    if (status != IE_OK)
        return status;
    for (size_t i = 0; i < IE_STATE_COUNT; i++)
        rows += out.counts[i];
    ahead = ahead < 0 ? 0 : ahead;
    claimed = claimed < 0 ? 0 : claimed > ahead ? ahead : claimed;
    out.counts[IE_STATE_IN_PROGRESS] = (uint64_t)claimed;
    out.counts[IE_STATE_PENDING] = (uint64_t)(ahead - claimed);
    if (kept > (uint64_t)ahead + rows)
        out.counts[IE_STATE_PUBLISHED] = kept - (uint64_t)ahead - rows;
    tell(user, &out);
    return IE_OK;
}

ie_status
ie_inspect_status(sqlite3 *db, void (*info)(void *user, const ie_outbox_info *info),
                  void (*cursor)(void *user, const ie_cursor_status *cursor), void *user,
                  ie_error *err)
{
    uint64_t  kept = 0;
    int64_t   newest = 0;
    ie__look  look;
    ie_status status = ie__look_begin(&look, db, NULL, err);

    if (status == IE_OK)
        status = info_tell(&look, &kept, &newest, info, user, err);
    for (size_t i = 0; status == IE_OK && cursor != NULL && i < look.cursor_count; i++)
        status = cursor_tell(&look, &look.cursors[i], kept, newest, cursor, user, err);
    ie__look_end(&look);
    return status;
}

/* ---- filters ---- */

typedef struct wanted {
    ie_filter given;
    uint32_t  states;
    char     *words;
    char    **patterns;
    size_t    pattern_count;
    int64_t   only; /* position of the event with the id; 0: any */
} wanted;

static void
filter_end(wanted *own)
{
    ie__free(own->words);
    ie__free(own->patterns);
}

static ie_status
filter_begin(wanted *own, const ie_filter *given, ie_error *err)
{
    ie_status status;

    memset(own, 0, sizeof *own);
    if (given != NULL) {
        status = ie__struct_import(&own->given, sizeof own->given, given, sizeof own->given);
        if (status != IE_OK)
            return ie_error_set(err, status, "filter.size is not set");
    }
    if ((own->given.states & ~STATES_ALL) != 0)
        return ie_error_set(err, IE_EINVAL, "filter.states has a bit that is no state");
    own->states = own->given.states != 0 ? own->given.states : STATES_ALL;
    if (own->given.before_position <= 0)
        own->given.before_position = INT64_MAX;
    if (own->given.topics == NULL)
        return IE_OK;
    own->words = ie__strdup(own->given.topics);
    if (own->words == NULL)
        return ie_error_set(err, IE_ENOMEM, "filter: out of memory");
    return ie__look_split(own->words, &own->patterns, &own->pattern_count, err);
}

/* *is_empty: there is no event with that id. */
static ie_status
filter_find_id(wanted *own, sqlite3 *db, bool *is_empty, ie_error *err)
{
    ie_status status = IE_OK;

    *is_empty = false;
    if (own->given.id != NULL) {
        status = ie__log_find(&own->only, db, own->given.id, err);
        *is_empty = own->only == 0;
    }
    return status;
}

static bool
filter_takes_topic(const wanted *own, const char *topic)
{
    if (own->pattern_count == 0)
        return true;
    if (ie_topic_check(topic, NULL) != IE_OK)
        return false;
    for (size_t i = 0; i < own->pattern_count; i++)
        if (ie_pattern_matches(own->patterns[i], topic))
            return true;
    return false;
}

/* "'dead', 'expired'" for the states that have rows. */
#define STATE_LIST_SIZE 96
static void
state_list(char out[STATE_LIST_SIZE], uint32_t states)
{
    size_t used = 0;

    out[0] = '\0';
    for (unsigned i = 0; i < IE_STATE_COUNT; i++)
        if ((states & STATES_OF_ROWS & BIT(i)) != 0)
            used += (size_t)snprintf(out + used, STATE_LIST_SIZE - used, "%s'%s'",
                                     used > 0 ? ", " : "", ie_state_name((ie_state)i));
}

/* ---- lists ---- */

typedef struct listing {
    ie__look     *look;
    const wanted *filter;
    bool (*each)(void *user, const ie_event_status *event);
    void    *user;
    uint32_t left;
    bool     is_over;
} listing;

/* One event as each destination sees it. */
static ie_status
list_event(listing *list, int64_t position, const char *topic, ie_error *err)
{
    /* Without a worker so far every event waits, for nobody in particular. */
    static const ie__look_cursor NOBODY = {.position = INT64_MIN};
    ie__look                    *look = list->look;
    const size_t                 count = look->cursor_count != 0 ? look->cursor_count : 1;

    for (size_t i = 0; i < count && !list->is_over; i++) {
        const ie__look_cursor *cursor = look->cursor_count != 0 ? &look->cursors[i] : &NOBODY;
        ie_event_status        out;
        ie__look_row           row;
        ie_status              status = ie__look_delivery(look, cursor->name, position, &row, err);

        if (status != IE_OK)
            return status;
        if (!row.exists && !ie__look_is_routed(cursor, topic))
            continue; /* none of this destination's */
        memset(&out, 0, sizeof out);
        out.state = ie__look_state(cursor, &row, position);
        if ((list->filter->states & BIT(out.state)) == 0)
            continue;
        status = ie__look_event(look, position, &out.event, err);
        if (status == IE_ENOTFOUND) {
            ie_error_clear(err);
            return IE_OK;
        }
        if (status != IE_OK)
            return status;
        out.cursor = cursor->name;
        out.attempts = row.attempts;
        out.claims = row.claims;
        out.due_at_ms = row.due_at_ms;
        out.since_ms = row.since_ms;
        out.reason = row.reason;
        list->is_over = !list->each(list->user, &out) || --list->left == 0;
    }
    return IE_OK;
}

/* Where events of these states can be: above the slowest cursor, up to the fastest, or anywhere. */
static void
list_bounds(const listing *list, int64_t *above, int64_t *below)
{
    const ie__look *look = list->look;
    int64_t         slowest = INT64_MAX;
    int64_t         fastest = INT64_MIN;

    *above = INT64_MIN;
    *below = list->filter->given.before_position;
    for (size_t i = 0; i < look->cursor_count; i++) {
        if (look->cursors[i].position < slowest)
            slowest = look->cursors[i].position;
        if (look->cursors[i].position > fastest)
            fastest = look->cursors[i].position;
    }
    if (look->cursor_count == 0 || (list->filter->states & STATES_OF_ROWS) != 0)
        return;
    if ((list->filter->states & BIT(IE_STATE_PUBLISHED)) == 0)
        *above = slowest;
    else if (list->filter->states == BIT(IE_STATE_PUBLISHED) && fastest < *below)
        *below = fastest + 1;
}

static ie_status
list_run(listing *list, ie_error *err)
{
    const wanted *own = list->filter;
    const bool    rows_only = (own->states & ~STATES_OF_ROWS) == 0;
    char          names[STATE_LIST_SIZE];
    char          sql[512];
    sqlite3_stmt *stmt = NULL;
    int64_t       above;
    int64_t       below;
    int           rc = SQLITE_DONE;
    ie_status     status;

    state_list(names, own->states);
    if (rows_only)
        (void)snprintf(sql, sizeof sql,
                       "SELECT DISTINCT d.position, e.topic FROM main.ie_delivery AS d"
                       " JOIN main.ie_event AS e ON e.position = d.position"
                       " WHERE d.position < ?1 AND d.position > ?2 AND (?3 IS NULL OR e.key = ?3)"
                       " AND (?4 = 0 OR d.position = ?4) AND d.state IN (%s)"
                       " ORDER BY d.position DESC",
                       names);
    else
        (void)snprintf(sql, sizeof sql,
                       "SELECT position, topic FROM main.ie_event"
                       " WHERE position < ?1 AND position > ?2 AND (?3 IS NULL OR key = ?3)%s"
                       " ORDER BY position DESC",
                       own->only != 0 ? " AND position = ?4" : "");
    list_bounds(list, &above, &below);
    status = ie__sql_prepare(&stmt, list->look->db, sql, err);
    if (status == IE_OK) {
        (void)sqlite3_bind_int64(stmt, 1, below);
        (void)sqlite3_bind_int64(stmt, 2, above);
        if (own->given.key != NULL)
            (void)sqlite3_bind_text(stmt, 3, own->given.key, -1, SQLITE_STATIC);
        if (sqlite3_bind_parameter_count(stmt) >= 4)
            (void)sqlite3_bind_int64(stmt, 4, own->only);
    }
    while (status == IE_OK && !list->is_over && (rc = sqlite3_step(stmt)) == SQLITE_ROW)
        if (filter_takes_topic(own, ie__sql_column_text(stmt, 1)))
            status =
                list_event(list, sqlite3_column_int64(stmt, 0), ie__sql_column_text(stmt, 1), err);
    if (status == IE_OK && !list->is_over && rc != SQLITE_DONE)
        status = ie__sql_fail(list->look->db, rc, "list events", err);
    (void)sqlite3_finalize(stmt);
    return status;
}

ie_status
ie_inspect_list(sqlite3 *db, const ie_filter                                 *given,
                bool (*each)(void *user, const ie_event_status *event), void *user, ie_error *err)
{
    bool      is_empty = false;
    wanted    own;
    ie__look  look;
    listing   list = {.look = &look, .filter = &own, .each = each, .user = user};
    ie_status status = filter_begin(&own, given, err);

    if (status == IE_OK) {
        list.left = own.given.limit != 0 ? own.given.limit : LIST_LIMIT_DEFAULT;
        status = ie__look_begin(&look, db, own.given.cursor, err);
        if (status == IE_OK)
            status = filter_find_id(&own, db, &is_empty, err);
        if (status == IE_OK && !is_empty)
            status = list_run(&list, err);
        ie__look_end(&look);
    }
    filter_end(&own);
    return status;
}

/* ---- retry and discard ---- */

typedef struct change {
    sqlite3        *db;
    const wanted   *filter;
    bool            is_retry;
    uint32_t        states; /* that allow it, and are asked for */
    const char     *reason; /* of a discard */
    ie__look        look;   /* the cursors, read anew in each transaction */
    sqlite3_stmt   *select;
    sqlite3_stmt   *update;
    sqlite3_stmt   *skip; /* moves a strict order's cursor over its head */
    ie__deliveries *deliveries;
    char            deliveries_of[IE__CURSOR_NAME_BYTES_MAX + 1];
    uint64_t        changed;
    uint64_t        held;
    char            held_by[IE__OWNER_SIZE];
    int64_t         at_position; /* the page ends here */
    char            at_cursor[IE__CURSOR_NAME_BYTES_MAX + 1];
} change;

typedef struct candidate {
    char         cursor[IE__CURSOR_NAME_BYTES_MAX + 1];
    char         key[IE_ATTRIBUTE_BYTES_MAX + 1];
    bool         has_key;
    int64_t      position;
    ie__look_row row;
} candidate;

static ie_status
change_prepare(change *now, ie_error *err)
{
    char      names[STATE_LIST_SIZE];
    char      sql[768];
    ie_status status;

    state_list(names, now->states);
    /* An event whose time is over is never sent, whoever asks. */
    (void)snprintf(sql, sizeof sql,
                   "SELECT d.cursor, d.position, e.topic, d.key, d.state, d.claims"
                   " FROM main.ie_delivery AS d JOIN main.ie_event AS e ON e.position = d.position"
                   " WHERE (d.position, d.cursor) < (?1, ?2) AND (?3 IS NULL OR d.cursor = ?3)"
                   " AND (?4 IS NULL OR e.key = ?4) AND (?5 = 0 OR d.position = ?5)"
                   " AND d.state IN (%s)%s ORDER BY d.position DESC, d.cursor DESC LIMIT %d",
                   names, now->is_retry ? " AND (d.state <> 'expired' OR d.expires_at > ?6)" : "",
                   CHANGES_PER_TRANSACTION);
    status = ie__sql_prepare(&now->select, now->db, sql, err);
    if (status == IE_OK)
        status = ie__sql_prepare(
            &now->update, now->db,
            now->is_retry
                ? "UPDATE main.ie_delivery SET state = 'retrying', attempts = 0, claims = 0,"
                  " due_at = ?3, since = ?3 WHERE cursor = ?1 AND position = ?2"
                : "UPDATE main.ie_delivery SET state = 'discarded', due_at = NULL, since = ?3,"
                  " reason = ?4 WHERE cursor = ?1 AND position = ?2",
            err);
    if (status == IE_OK)
        status =
            ie__sql_prepare(&now->skip, now->db,
                            "UPDATE main.ie_cursor SET position = ?2, claimed_to = ?2,"
                            " epoch = epoch + 1, crashes = 0, claims = 0 WHERE name = ?1"
                            " AND position < ?2 AND NOT EXISTS (SELECT 1 FROM main.ie_event AS e"
                            " WHERE e.position > ie_cursor.position AND e.position < ?2)",
                            err);
    return status;
}

static void
change_end(change *now)
{
    (void)sqlite3_finalize(now->select);
    (void)sqlite3_finalize(now->update);
    (void)sqlite3_finalize(now->skip);
    ie__deliveries_close(now->deliveries);
    ie__look_end(&now->look);
}

/* One page of candidates; *read: rows seen, whatever the topic filter made of them. */
static ie_status
change_read(change *now, candidate *page, size_t *count, size_t *read, ie_error *err)
{
    sqlite3_stmt *stmt = now->select;
    ie_status     status = IE_OK;
    int           rc;

    *count = *read = 0;
    (void)sqlite3_bind_int64(stmt, 1, now->at_position);
    (void)sqlite3_bind_text(stmt, 2, now->at_cursor, -1, SQLITE_TRANSIENT);
    if (now->filter->given.cursor != NULL)
        (void)sqlite3_bind_text(stmt, 3, now->filter->given.cursor, -1, SQLITE_STATIC);
    if (now->filter->given.key != NULL)
        (void)sqlite3_bind_text(stmt, 4, now->filter->given.key, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(stmt, 5, now->filter->only);
    if (now->is_retry)
        (void)sqlite3_bind_int64(stmt, 6, now->look.now_ms);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW && status == IE_OK) {
        candidate *at = &page[*count];

        ++*read;
        memset(at, 0, sizeof *at);
        (void)snprintf(at->cursor, sizeof at->cursor, "%s", ie__sql_column_text(stmt, 0));
        at->position = sqlite3_column_int64(stmt, 1);
        at->has_key = sqlite3_column_type(stmt, 3) != SQLITE_NULL;
        (void)snprintf(at->key, sizeof at->key, "%s", ie__sql_column_text(stmt, 3));
        at->row.exists = true;
        status = ie_state_parse(&at->row.state, ie__sql_column_text(stmt, 4), err);
        at->row.claims = (uint32_t)sqlite3_column_int64(stmt, 5);
        now->at_position = at->position;
        memcpy(now->at_cursor, at->cursor, sizeof now->at_cursor);
        if (filter_takes_topic(now->filter, ie__sql_column_text(stmt, 2)))
            ++*count;
    }
    if (status == IE_OK && rc != SQLITE_DONE)
        status = ie__sql_fail(now->db, rc, "find events", err);
    (void)sqlite3_reset(stmt);
    return status;
}

/* The key's next event may go, as when the worker is done with the one before it. */
static ie_status
change_release(change *now, const candidate *at, ie_error *err)
{
    bool      released = false;
    ie_status status = IE_OK;

    if (now->deliveries == NULL || strcmp(now->deliveries_of, at->cursor) != 0) {
        ie__deliveries_close(now->deliveries);
        now->deliveries = NULL;
        (void)snprintf(now->deliveries_of, sizeof now->deliveries_of, "%s", at->cursor);
        status = ie__deliveries_open(&now->deliveries, now->db, NULL, at->cursor, err);
    }
    return status == IE_OK ? ie__delivery_release_key(now->deliveries, at->key, &released, err)
                           : status;
}

static const ie__look_cursor *
change_cursor(const change *now, const char *name)
{
    for (size_t i = 0; i < now->look.cursor_count; i++)
        if (strcmp(now->look.cursors[i].name, name) == 0)
            return &now->look.cursors[i];
    return NULL; /* rows of a cursor that was removed by hand */
}

static ie_status
change_one(change *now, const candidate *at, ie_error *err)
{
    const ie__look_cursor *cursor = change_cursor(now, at->cursor);
    ie_status              status;

    if (cursor == NULL)
        return IE_OK;
    if (ie__look_is_held(cursor, &at->row, at->position)) {
        now->held++;
        (void)snprintf(now->held_by, sizeof now->held_by, "%s", cursor->owner);
        return IE_OK;
    }
    (void)sqlite3_bind_text(now->update, 1, at->cursor, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(now->update, 2, at->position);
    (void)sqlite3_bind_int64(now->update, 3, now->look.now_ms);
    if (!now->is_retry)
        (void)sqlite3_bind_text(now->update, 4, now->reason, -1, SQLITE_STATIC);
    status = ie__sql_run(now->db, now->update, now->is_retry ? "retry" : "discard", err);
    if (status == IE_OK && !now->is_retry && at->position > cursor->position) {
        /* The head of a strict order stands before the cursor: what comes next must not meet it. */
        (void)sqlite3_bind_text(now->skip, 1, at->cursor, -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(now->skip, 2, at->position);
        status = ie__sql_run(now->db, now->skip, "discard", err);
    }
    if (status == IE_OK && !now->is_retry && at->has_key && strcmp(cursor->order, "key") == 0 &&
        (at->row.state == IE_STATE_RETRYING || at->row.state == IE_STATE_BLOCKED))
        status = change_release(now, at, err);
    if (status == IE_OK)
        now->changed++;
    return status;
}

/* One short transaction; *more: there may be another page. */
static ie_status
change_page(change *now, candidate *page, bool *more, ie_error *err)
{
    const uint64_t before = now->changed;
    size_t         count = 0;
    size_t         read = 0;
    ie_status      status = ie__sql_begin(now->db, err);

    if (status != IE_OK)
        return status;
    status = ie__look_cursors(&now->look, now->filter->given.cursor, err);
    if (status == IE_OK)
        status = change_read(now, page, &count, &read, err);
    for (size_t i = 0; status == IE_OK && i < count; i++) {
        if (now->filter->given.limit != 0 && now->changed >= now->filter->given.limit)
            break;
        status = change_one(now, &page[i], err);
    }
    if (status == IE_OK)
        status = ie__sql_commit(now->db, err);
    else
        ie__sql_rollback(now->db);
    if (status != IE_OK)
        now->changed = before;
    *more = status == IE_OK && read == CHANGES_PER_TRANSACTION &&
            (now->filter->given.limit == 0 || now->changed < now->filter->given.limit);
    return status;
}

typedef struct seen {
    bool     any;
    ie_state state;
    int64_t  expires_at_ms;
    char     id[IE_ID_BYTES_MAX + 1];
} seen;

static bool
see_first(void *user, const ie_event_status *event)
{
    seen *first = user;

    first->any = true;
    first->state = event->state;
    first->expires_at_ms = event->event->expires_at_ms;
    (void)snprintf(first->id, sizeof first->id, "%s",
                   event->event->id != NULL ? event->event->id : "");
    return false;
}

/* Nothing was changed: say why. */
static ie_status
change_nothing(const change *now, ie_error *err)
{
    const char *verb = now->is_retry ? "sent again" : "discarded";
    ie_filter   filter = now->filter->given;
    seen        first = {.any = false};
    char        expired[IE_TIME_TEXT_SIZE];
    ie_status   status;

    if (now->held > 0)
        return ie_error_set(err, IE_ESTATE,
                            "a worker (process %ld) has it in its hands right now; try again in a "
                            "moment, or stop the worker first",
                            ie__look_owner_process(now->held_by));
    filter.limit = 1;
    status = ie_inspect_list(now->db, &filter, see_first, &first, err);
    if (status != IE_OK)
        return status;
    if (!first.any)
        return ie_error_set(err, IE_ENOTFOUND, "no event matches");
    if (first.state == IE_STATE_EXPIRED && now->is_retry) {
        ie__time_format(expired, first.expires_at_ms);
        return ie_error_set(err, IE_ESTATE,
                            "event %s expired at %s: an event is never sent after its expires_at; "
                            "publish a new one",
                            first.id, expired);
    }
    return ie_error_set(err, IE_ESTATE, "event %s is %s; only events that are %s can be %s",
                        first.id, ie_state_name(first.state),
                        now->is_retry ? "dead, discarded or retrying"
                                      : "retrying, blocked, scheduled or dead",
                        verb);
}

static ie_status
change_all(change *now, ie_error *err)
{
    candidate *page = ie__calloc(CHANGES_PER_TRANSACTION + 1, sizeof *page);
    bool       more = (now->states & STATES_OF_ROWS) != 0;
    ie_status  status = IE_OK;

    if (page == NULL)
        return ie_error_set(err, IE_ENOMEM, "change events: out of memory");
    if (more)
        status = change_prepare(now, err);
    while (status == IE_OK && more)
        status = change_page(now, page, &more, err);
    ie__free(page);
    return status;
}

static ie_status
inspect_change(sqlite3 *db, const ie_filter *given, bool is_retry, const char *reason,
               uint64_t *changed, ie_error *err)
{
    bool      is_empty = false;
    wanted    own;
    change    now = {.db = db, .filter = &own, .is_retry = is_retry, .reason = reason};
    ie_status status = filter_begin(&own, given, err);

    now.look.db = db;
    if (status == IE_OK && sqlite3_get_autocommit(db) == 0)
        status = ie_error_set(err, IE_ESTATE, "retry and discard need a transaction of their own");
    if (status == IE_OK)
        status = ie_migrate_check(db, err);
    if (status == IE_OK)
        status = filter_find_id(&own, db, &is_empty, err);
    if (status == IE_OK && is_empty)
        status = ie_error_set(err, IE_ENOTFOUND, "no event has the id %s", own.given.id);
    if (status == IE_OK) {
        now.states = own.states & (is_retry ? BIT(IE_STATE_DEAD) | BIT(IE_STATE_EXPIRED) |
                                                  BIT(IE_STATE_DISCARDED) | BIT(IE_STATE_RETRYING)
                                            : BIT(IE_STATE_RETRYING) | BIT(IE_STATE_BLOCKED) |
                                                  BIT(IE_STATE_SCHEDULED) | BIT(IE_STATE_DEAD));
        now.at_position = own.given.before_position;
        status = change_all(&now, err);
    }
    if (changed != NULL)
        *changed = now.changed;
    if (status == IE_OK && now.changed == 0)
        status = change_nothing(&now, err);
    change_end(&now);
    filter_end(&own);
    return status;
}

ie_status
ie_inspect_retry(sqlite3 *db, const ie_filter *filter, uint64_t *changed, ie_error *err)
{
    return inspect_change(db, filter, true, NULL, changed, err);
}

ie_status
ie_inspect_discard(sqlite3 *db, const ie_filter *filter, const char *reason, uint64_t *changed,
                   ie_error *err)
{
    char   text[IE__REASON_BYTES_MAX + 1];
    size_t bytes;

    if (reason == NULL || reason[0] == '\0')
        reason = "discarded by hand";
    bytes = strlen(reason) < sizeof text ? strlen(reason) : sizeof text - 1;
    bytes = ie__utf8_valid_prefix(reason, bytes);
    memcpy(text, reason, bytes);
    text[bytes] = '\0';
    return inspect_change(db, filter, false, text, changed, err);
}
