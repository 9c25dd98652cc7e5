/*
 * Why is this event where it is? One sentence, what it was concluded from, and the next command.
 * The list of answers is fixed: outbox/WHY.md documents it, and a test compares the two.
 */
#include <ie/inspect.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "log.h"
#include "look.h"

#define DB_NAME_SIZE 1100
#define TEXT_SIZE    1600

static const char *const CODE_NAMES[] = {
    "unknown-id", "no-destination", "worker-not-running", "not-routed",   "pending", "in-progress",
    "scheduled",  "blocked",        "retrying",           "breaker-open", "dead",    "expired",
    "discarded",  "published",
};

typedef struct answer {
    ie__look              *look;
    const ie__look_cursor *cursor; /* NULL: none */
    const ie_event        *event;  /* NULL: unknown */
    ie__look_row           row;
    char                   db[DB_NAME_SIZE]; /* fit for a shell */
    char                   id[3 * IE_ID_BYTES_MAX];
    char                   sentence[TEXT_SIZE];
    char                   evidence[TEXT_SIZE];
    char                   next[TEXT_SIZE + DB_NAME_SIZE];
} answer;

/* ---- words ---- */

/* As one word of a shell. */
static void
shell_word(char *out, size_t size, const char *text)
{
    size_t used = 0;

    if (text[0] != '\0' &&
        strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+=,") ==
            strlen(text)) {
        (void)snprintf(out, size, "%s", text);
        return;
    }
    out[used++] = '\'';
    for (; *text != '\0' && used + 6 < size; text++) {
        if (*text == '\'') {
            memcpy(out + used, "'\\''", 4);
            used += 4;
        } else {
            out[used++] = *text;
        }
    }
    out[used++] = '\'';
    out[used] = '\0';
}

/* Cut at the size, but never inside a character. */
static void words(char *out, size_t size, const char *fmt, ...) IE_PRINTF(3, 4);
static void
words(char *out, size_t size, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(out, size, fmt, args);
    va_end(args);
    out[ie__utf8_valid_prefix(out, strlen(out))] = '\0';
}

#define SAY(answer_, ...)    words((answer_)->sentence, sizeof(answer_)->sentence, __VA_ARGS__)
#define PROVE(answer_, ...)  words((answer_)->evidence, sizeof(answer_)->evidence, __VA_ARGS__)
#define ADVISE(answer_, ...) words((answer_)->next, sizeof(answer_)->next, __VA_ARGS__)

static const char *
or_none(const char *reason)
{
    return reason[0] != '\0' ? reason : "no reason given";
}

/* ---- the answers that need no cursor ---- */

/* The time inside a UUIDv7, 0 for any other id. */
static int64_t
id_time_ms(const char *id)
{
    unsigned long long high = 0;
    unsigned           low = 0;

    if (strlen(id) != 36 || id[8] != '-' || id[13] != '-' || id[14] != '7' ||
        sscanf(id, "%8llx-%4x", &high, &low) != 2)
        return 0;
    return (int64_t)(high << 16 | low);
}

static ie_status
answer_unknown(answer *a, const char *id, ie_error *err)
{
    const int64_t made_ms = id_time_ms(id);
    int64_t       count = 0;
    int64_t       oldest_ms = 0;
    char          oldest[IE__WHEN_SIZE];
    char          made[IE__WHEN_SIZE];
    ie_status     status =
        ie__sql_int(&count, a->look->db, "SELECT count(*) FROM main.ie_event", 0, err);

    if (status == IE_OK)
        status = ie__sql_int(&oldest_ms, a->look->db,
                             "SELECT time FROM main.ie_event ORDER BY position LIMIT 1", 0, err);
    if (status != IE_OK)
        return status;
    SAY(a,
        "No event with the id %s is in this log: its transaction never committed, it was published "
        "or "
        "ended and then removed after its retention, or it is in another database.",
        id);
    ie__look_when(oldest, a->look->now_ms, oldest_ms);
    if (count == 0)
        PROVE(a, "the log is empty");
    else if (made_ms > 0 && made_ms < oldest_ms) {
        ie__look_when(made, a->look->now_ms, made_ms);
        PROVE(a,
              "the id was made %s, before the oldest of the %lld events that are kept, %s: removed "
              "after its retention is the likely one",
              made, (long long)count, oldest);
    } else if (made_ms > 0 && made_ms <= a->look->now_ms + 60000) {
        ie__look_when(made, a->look->now_ms, made_ms);
        PROVE(a,
              "the id was made %s, while the %lld events kept begin %s: not committed, or another "
              "database, is the likely one",
              made, (long long)count, oldest);
    } else {
        PROVE(a, "the log keeps %lld events, the oldest from %s", (long long)count, oldest);
    }
    ADVISE(a, "ie outbox ls %s --limit 20", a->db);
    return IE_OK;
}

static void
answer_no_destination(answer *a)
{
    SAY(a, "Nothing publishes from this database yet: the event is stored and waits for the first "
           "worker.");
    PROVE(a, "it is at position %lld, and no destination has ever been served (ie_cursor is empty)",
          (long long)a->event->position);
    ADVISE(a, "ie relay %s --to socket://127.0.0.1:9100", a->db);
}

/* ---- the answers of one destination ---- */

/* The command that runs a worker for this destination. */
static void
advise_relay(answer *a, const char *cursor, const char *topics)
{
    char to[900];
    char names[300];

    shell_word(to, sizeof to,
               a->cursor->destination[0] != '\0' ? a->cursor->destination
                                                 : "socket://127.0.0.1:9100");
    shell_word(names, sizeof names, topics);
    ADVISE(a, "ie relay %s --to %s --cursor %s%s%s%s%s", a->db, to, cursor,
           topics[0] != '\0' ? " --topics " : "", topics[0] != '\0' ? names : "",
           strcmp(a->cursor->order, "key") == 0 ? "" : " --order ",
           strcmp(a->cursor->order, "key") == 0 ? "" : a->cursor->order);
}

/* What the event waits for apart from the worker, as a clause; "" when for nothing else. */
static void
other_trouble(const answer *a, char *out, size_t size)
{
    if (!a->row.exists)
        words(out, size, "it is committed at position %lld", (long long)a->event->position);
    else
        words(out, size, "it is %s after %u attempts%s%s", ie_state_name(a->row.state),
              a->row.attempts, a->row.reason[0] != '\0' ? ": " : "", a->row.reason);
}

static void
answer_no_worker(answer *a)
{
    const ie__look_cursor *cursor = a->cursor;
    char                   seen[IE__WHEN_SIZE];
    char                   left[IE__WHEN_SIZE];
    char                   trouble[700];

    ie__look_when(seen, a->look->now_ms, cursor->seen_at_ms);
    other_trouble(a, trouble, sizeof trouble);
    SAY(a,
        "No worker is running for destination %s, so nothing is sent; the last sign of life was "
        "%s.",
        cursor->name, cursor->seen_at_ms != 0 ? seen : "never");
    if (cursor->seen_at_ms == 0)
        PROVE(a, "its row was made, but no worker ever took its lease; %s", trouble);
    else if (cursor->owner[0] == '\0')
        PROVE(a, "the last worker gave its lease back; %s", trouble);
    else if (cursor->is_gone)
        PROVE(a, "process %ld, which held the lease, does not exist any more; %s",
              ie__look_owner_process(cursor->owner), trouble);
    else {
        ie__look_when(left, a->look->now_ms, cursor->lease_until_ms);
        PROVE(a, "the lease of process %ld ran out %s and was not renewed; %s",
              ie__look_owner_process(cursor->owner), left, trouble);
    }
    advise_relay(a, cursor->name, cursor->topics);
}

/* Of the destination's patterns the one that shares the most leading words with the topic. */
static const char *
nearest_pattern(const ie__look_cursor *cursor, const char *topic)
{
    const char *best = "";
    int         best_score = -1;

    for (size_t i = 0; i < cursor->pattern_count; i++) {
        const char *p = cursor->patterns[i];
        const char *t = topic;
        int         score = 0;

        for (;;) {
            const size_t p_bytes = strcspn(p, ".");
            const size_t t_bytes = strcspn(t, ".");

            if (p_bytes == 1 && (*p == '*' || *p == '>'))
                score += 16;
            else if (p_bytes == t_bytes && memcmp(p, t, p_bytes) == 0)
                score += 32;
            else {
                for (size_t k = 0; k < p_bytes && k < t_bytes && k < 15 && p[k] == t[k]; k++)
                    score++;
                break;
            }
            if (p[p_bytes] == '\0' || t[t_bytes] == '\0')
                break;
            p += p_bytes + 1;
            t += t_bytes + 1;
        }
        if (score > best_score) {
            best = p = cursor->patterns[i];
            best_score = score;
        }
    }
    return best;
}

static void
answer_not_routed(answer *a)
{
    const ie__look_cursor *cursor = a->cursor;
    const bool             is_passed = a->event->position <= cursor->position;
    char                   name[IE__CURSOR_NAME_BYTES_MAX + 8];
    char                   topics[300];

    SAY(a, "Destination %s does not take the topic %s; its nearest pattern is %s.", cursor->name,
        a->event->topic, nearest_pattern(cursor, a->event->topic));
    PROVE(a, "its patterns are '%s', and the worker %s the event at position %lld", cursor->topics,
          is_passed ? "has passed" : "will pass", (long long)a->event->position);
    /* A cursor that has passed the event never comes back to it; a new one starts at the oldest. */
    words(name, sizeof name, "%.60s%s", cursor->name, is_passed ? ".new" : "");
    if (is_passed)
        words(topics, sizeof topics, "%s", a->event->topic);
    else
        words(topics, sizeof topics, "%s,%s", cursor->topics, a->event->topic);
    advise_relay(a, name, topics);
}

static void
answer_ended(answer *a, ie_why_code code)
{
    char since[IE__WHEN_SIZE];
    char expired[IE__WHEN_SIZE];

    ie__look_when(since, a->look->now_ms, a->row.since_ms);
    ie__look_when(expired, a->look->now_ms, a->event->expires_at_ms);
    switch (code) {
    case IE_WHY_DEAD:
        SAY(a, "It died for destination %s %s and will not be tried again by itself: %s",
            a->cursor->name, since, or_none(a->row.reason));
        PROVE(a, "%u attempts; last reason: %s", a->row.attempts, or_none(a->row.reason));
        ADVISE(a, "ie outbox retry %s %s --cursor %s", a->db, a->id, a->cursor->name);
        break;
    case IE_WHY_EXPIRED:
        SAY(a, "It expired for destination %s and was not sent: its expires_at passed %s.",
            a->cursor->name, expired);
        PROVE(a, "%s; %u attempts before; noted %s", or_none(a->row.reason), a->row.attempts,
              since);
        ADVISE(a, "ie outbox show %s %s", a->db, a->id);
        break;
    default:
        SAY(a, "It was discarded for destination %s %s: %s", a->cursor->name, since,
            or_none(a->row.reason));
        PROVE(a, "%u attempts before", a->row.attempts);
        ADVISE(a, "ie outbox retry %s %s --cursor %s", a->db, a->id, a->cursor->name);
        break;
    }
}

static void
answer_scheduled(answer *a)
{
    char due[IE__WHEN_SIZE];

    ie__look_when(due, a->look->now_ms, a->row.due_at_ms);
    if (a->row.due_at_ms > a->look->now_ms)
        SAY(a, "It is scheduled for destination %s: it will be sent %s.", a->cursor->name, due);
    else
        SAY(a, "It was scheduled for destination %s and came due %s: the worker takes it next.",
            a->cursor->name, due);
    if (a->cursor->is_alive)
        PROVE(a, "its not_before says so; a worker (process %ld) is running",
              ie__look_owner_process(a->cursor->owner));
    else
        PROVE(a, "its not_before says so; at the moment no worker is running");
    ADVISE(a, "ie outbox ls %s --state scheduled", a->db);
}

/* The event that holds the key: the first of its waiting ones. */
typedef struct holder {
    int64_t      position;
    int64_t      between; /* others that wait before ours */
    char         id[IE_ID_BYTES_MAX + 1];
    char         word[3 * IE_ID_BYTES_MAX];
    ie__look_row row;
} holder;

static ie_status
find_holder(answer *a, holder *out, ie_error *err)
{
    sqlite3_stmt *stmt = NULL;
    ie_status     status = ie__sql_prepare(
            &stmt, a->look->db,
            "SELECT d.position, e.id, (SELECT count(*) FROM main.ie_delivery AS m"
        " WHERE m.cursor = ?1 AND m.key = d.key AND m.position > d.position"
        " AND m.position < ?2 AND m.state IN ('retrying', 'blocked'))"
        " FROM main.ie_delivery AS d LEFT JOIN main.ie_event AS e ON e.position = d.position"
        " WHERE d.cursor = ?1 AND d.position < ?2 AND d.state IN ('retrying', 'blocked')"
        " AND d.key = (SELECT key FROM main.ie_delivery WHERE cursor = ?1 AND position = ?2)"
        " ORDER BY d.position LIMIT 1",
        err);

    memset(out, 0, sizeof *out);
    if (status == IE_OK) {
        int rc;

        (void)sqlite3_bind_text(stmt, 1, a->cursor->name, -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(stmt, 2, a->event->position);
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW) {
            out->position = sqlite3_column_int64(stmt, 0);
            words(out->id, sizeof out->id, "%s", ie__sql_column_text(stmt, 1));
            shell_word(out->word, sizeof out->word, out->id);
            out->between = sqlite3_column_int64(stmt, 2);
        } else if (rc != SQLITE_DONE) {
            status = ie__sql_fail(a->look->db, rc, "find what blocks", err);
        }
    }
    (void)sqlite3_finalize(stmt);
    if (status == IE_OK && out->position != 0)
        status = ie__look_delivery(a->look, a->cursor->name, out->position, &out->row, err);
    return status;
}

static ie_status
answer_blocked(answer *a, ie_error *err)
{
    holder    first;
    char      due[IE__WHEN_SIZE];
    char      key[200];
    ie_status status = find_holder(a, &first, err);

    if (status != IE_OK)
        return status;
    words(key, sizeof key, "%s", a->event->key != NULL ? a->event->key : "");
    if (first.position == 0) {
        SAY(a,
            "It waited behind an event of its key '%s', which is out of the way: the worker takes "
            "it "
            "next.",
            key);
        PROVE(a, "no event of the key before position %lld is held any more",
              (long long)a->event->position);
        ADVISE(a, "ie why %s --db %s", a->id, a->db);
        return IE_OK;
    }
    ie__look_when(due, a->look->now_ms, first.row.due_at_ms);
    if (first.row.state == IE_STATE_RETRYING)
        SAY(a,
            "It waits behind event %s of its key '%s', which is retrying: %u attempts so far, the "
            "next "
            "%s.",
            first.id, key, first.row.attempts, due);
    else
        SAY(a, "It waits behind event %s of its key '%s', which is %s.", first.id, key,
            ie_state_name(first.row.state));
    PROVE(
        a,
        "that event is at position %lld, this one at %lld, %lld more of the key between them; its "
        "reason: %s",
        (long long)first.position, (long long)a->event->position, (long long)first.between,
        or_none(first.row.reason));
    ADVISE(a, "ie why %s --db %s", first.word, a->db);
    return IE_OK;
}

static void
answer_retrying(answer *a)
{
    char due[IE__WHEN_SIZE];
    char since[IE__WHEN_SIZE];

    ie__look_when(due, a->look->now_ms, a->row.due_at_ms);
    ie__look_when(since, a->look->now_ms, a->row.since_ms);
    if (a->row.claims > 0)
        SAY(a, "Destination %s is retrying it: attempt %u is under way.", a->cursor->name,
            a->row.attempts + 1);
    else if (a->row.due_at_ms > a->look->now_ms)
        SAY(a, "Destination %s is retrying it: attempt %u failed, the next comes %s.",
            a->cursor->name, a->row.attempts, due);
    else
        SAY(a, "Destination %s is retrying it: attempt %u is due and comes next.", a->cursor->name,
            a->row.attempts + 1);
    PROVE(a, "last reason: %s; noted %s", or_none(a->row.reason), since);
    ADVISE(a, "ie outbox show %s %s", a->db, a->id);
}

static void
answer_breaker(answer *a)
{
    char since[IE__WHEN_SIZE];
    char until[IE__WHEN_SIZE];
    char trouble[700];

    ie__look_when(since, a->look->now_ms, a->cursor->breaker_since_ms);
    ie__look_when(until, a->look->now_ms, a->cursor->breaker_until_ms);
    other_trouble(a, trouble, sizeof trouble);
    SAY(a, "Destination %s (%s) cannot be reached: its breaker opened %s, the next try %s %s.",
        a->cursor->name, a->cursor->destination, since,
        a->cursor->breaker_until_ms > a->look->now_ms ? "comes" : "was due", until);
    PROVE(a, "the reason: %s; this costs the event no attempt, %s", a->cursor->breaker, trouble);
    ADVISE(a, "ie outbox status %s", a->db);
}

static ie_status
answer_ahead(answer *a, ie_error *err)
{
    const ie__look_cursor *cursor = a->cursor;
    char                   until[IE__WHEN_SIZE];
    char                   sql[128];
    int64_t                before = 0;
    ie_status              status = IE_OK;

    (void)snprintf(sql, sizeof sql,
                   "SELECT count(*) FROM main.ie_event WHERE position > %lld AND position < %lld",
                   (long long)cursor->position, (long long)a->event->position);
    status = ie__sql_int(&before, a->look->db, sql, 0, err);
    if (status != IE_OK)
        return status;
    ie__look_when(until, a->look->now_ms, cursor->lease_until_ms);
    PROVE(a,
          "the cursor stands at %lld, the event at %lld, claimed up to %lld; process %ld holds the "
          "lease, which it renews; this one ends %s",
          (long long)cursor->position, (long long)a->event->position, (long long)cursor->claimed_to,
          ie__look_owner_process(cursor->owner), until);
    if (a->event->position <= cursor->claimed_to)
        SAY(a,
            "It is in progress: leased to the worker of destination %s (process %ld), with %lld "
            "events "
            "before it.",
            cursor->name, ie__look_owner_process(cursor->owner), (long long)before);
    else
        SAY(a, "It is pending for destination %s: it waits its turn behind %lld events.",
            cursor->name, (long long)before);
    ADVISE(a, "ie outbox status %s", a->db);
    return IE_OK;
}

static void
answer_published(answer *a)
{
    SAY(a, "It was published to destination %s (%s).", a->cursor->name, a->cursor->destination);
    PROVE(
        a,
        "the cursor stands at %lld, past the event's position %lld, and nothing went wrong with it",
        (long long)a->cursor->position, (long long)a->event->position);
    ADVISE(a, "ie outbox show %s %s", a->db, a->id);
}

/* Does the event wait for the worker to do something now? */
static bool
waits_for_worker(const answer *a)
{
    if (!a->row.exists)
        return a->event->position > a->cursor->position;
    return a->row.state == IE_STATE_RETRYING || a->row.state == IE_STATE_BLOCKED ||
           (a->row.state == IE_STATE_SCHEDULED && a->row.due_at_ms <= a->look->now_ms);
}

/* What is furthest from the event comes first: no worker, then no destination, then its own
 * trouble. */
static ie_why_code
decide(const answer *a)
{
    const ie__look_cursor *cursor = a->cursor;

    if (!a->row.exists && !ie__look_is_routed(cursor, a->event->topic))
        return IE_WHY_NOT_ROUTED;
    if (waits_for_worker(a) && !cursor->is_alive)
        return IE_WHY_WORKER_NOT_RUNNING;
    if (waits_for_worker(a) && cursor->breaker[0] != '\0')
        return IE_WHY_BREAKER_OPEN;
    switch (ie__look_state(cursor, &a->row, a->event->position)) {
    case IE_STATE_PENDING: return IE_WHY_PENDING;
    case IE_STATE_IN_PROGRESS: return IE_WHY_IN_PROGRESS;
    case IE_STATE_SCHEDULED: return IE_WHY_SCHEDULED;
    case IE_STATE_RETRYING: return IE_WHY_RETRYING;
    case IE_STATE_BLOCKED: return IE_WHY_BLOCKED;
    case IE_STATE_DEAD: return IE_WHY_DEAD;
    case IE_STATE_EXPIRED: return IE_WHY_EXPIRED;
    case IE_STATE_DISCARDED: return IE_WHY_DISCARDED;
    case IE_STATE_PUBLISHED: break;
    }
    return IE_WHY_PUBLISHED;
}

static ie_status
answer_fill(answer *a, ie_why_code code, ie_error *err)
{
    switch (code) {
    case IE_WHY_UNKNOWN_ID: break; /* said before there was an event */
    case IE_WHY_NO_DESTINATION: answer_no_destination(a); break;
    case IE_WHY_WORKER_NOT_RUNNING: answer_no_worker(a); break;
    case IE_WHY_NOT_ROUTED: answer_not_routed(a); break;
    case IE_WHY_PENDING:
    case IE_WHY_IN_PROGRESS: return answer_ahead(a, err);
    case IE_WHY_SCHEDULED: answer_scheduled(a); break;
    case IE_WHY_BLOCKED: return answer_blocked(a, err);
    case IE_WHY_RETRYING: answer_retrying(a); break;
    case IE_WHY_BREAKER_OPEN: answer_breaker(a); break;
    case IE_WHY_DEAD:
    case IE_WHY_EXPIRED:
    case IE_WHY_DISCARDED: answer_ended(a, code); break;
    case IE_WHY_PUBLISHED: answer_published(a); break;
    }
    return IE_OK;
}

/* ---- asking ---- */

static void
answer_tell(const answer *a, ie_why_code code, void (*each)(void *user, const ie_why *why),
            void *user)
{
    const ie_why why = {
        .code = code,
        .code_name = CODE_NAMES[code],
        .cursor = a->cursor != NULL ? a->cursor->name : "",
        .sentence = a->sentence,
        .evidence = a->evidence,
        .next = a->next,
    };

    each(user, &why);
}

static ie_status
ask(answer *a, const char *id, void (*each)(void *user, const ie_why *why), void *user,
    ie_error *err)
{
    ie__look *look = a->look;
    int64_t   position = 0;
    ie_status status = ie__log_find(&position, look->db, id, err);

    if (status == IE_OK && position == 0) {
        status = answer_unknown(a, id, err);
        if (status != IE_OK)
            return status;
        answer_tell(a, IE_WHY_UNKNOWN_ID, each, user);
        return ie_error_set(err, IE_ENOTFOUND, "no event has the id %s", id);
    }
    if (status == IE_OK)
        status = ie__look_event(look, position, &a->event, err);
    if (status == IE_OK && look->cursor_count == 0) {
        answer_no_destination(a);
        answer_tell(a, IE_WHY_NO_DESTINATION, each, user);
    }
    for (size_t i = 0; status == IE_OK && i < look->cursor_count; i++) {
        a->cursor = &look->cursors[i];
        status = ie__look_delivery(look, a->cursor->name, position, &a->row, err);
        if (status == IE_OK) {
            const ie_why_code code = decide(a);

            status = answer_fill(a, code, err);
            if (status == IE_OK)
                answer_tell(a, code, each, user);
        }
    }
    return status;
}

ie_status
ie_why_event(sqlite3 *db, const char *id, const char *cursor, const char *db_name,
             void (*each)(void *user, const ie_why *why), void *user, ie_error *err)
{
    ie__look  look;
    answer   *a;
    ie_status status;

    if (id == NULL || id[0] == '\0' || strlen(id) > IE_ID_BYTES_MAX || each == NULL)
        return ie_error_set(err, IE_EINVAL, "why: an id of 1 to %d bytes is required",
                            IE_ID_BYTES_MAX);
    a = ie__calloc(1, sizeof *a);
    if (a == NULL)
        return ie_error_set(err, IE_ENOMEM, "why: out of memory");
    a->look = &look;
    status = ie__look_begin(&look, db, cursor, err);
    if (status == IE_OK) {
        if (db_name == NULL)
            db_name = sqlite3_db_filename(db, "main");
        shell_word(a->db, sizeof a->db, db_name != NULL && db_name[0] != '\0' ? db_name : "DB");
        shell_word(a->id, sizeof a->id, id);
        status = ask(a, id, each, user, err);
    }
    ie__look_end(&look);
    ie__free(a);
    return status;
}
