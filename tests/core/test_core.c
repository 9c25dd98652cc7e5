/* Text, ids, topics, the event, stored headers, URLs: every rule at its limit and one past it. */
#include <ie/event.h>

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "headers.h"
#include "id.h"
#include "json.h"
#include "support.h"
#include "url.h"

/* As ck_assert(), for loops of millions: check's own tells its parent each time that it passed. */
#define QUICK_ASSERT(claim)                                                                        \
    do {                                                                                           \
        if (!(claim))                                                                              \
            ck_abort_msg("%s", #claim);                                                            \
    } while (0)

static ie_error failure;

/* The last failure's words; ready for the next call. */
static const char *
said(void)
{
    static char message[IE_ERROR_MESSAGE_SIZE];

    memcpy(message, failure.message, sizeof message);
    ie_error_clear(&failure);
    return message;
}

/* A text of so many bytes in a static buffer. */
static const char *
text_of(size_t bytes)
{
    static char text[IE_HEADERS_BYTES_MAX + 16];

    memset(text, 'a', sizeof text);
    ck_assert_uint_lt(bytes, sizeof text);
    text[bytes] = '\0';
    return text;
}

/* ---- UTF-8 -------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    size_t      valid; /* bytes of the longest valid prefix */
} UTF8[] = {
    {"", 0},
    {"plain ascii, longer than eight", 30},
    {"\xC2\x80", 2},
    {"\xDF\xBF", 2},
    {"\xE0\xA0\x80", 3},
    {"\xED\x9F\xBF", 3},
    {"\xEE\x80\x80", 3},
    {"\xEF\xBF\xBF", 3},
    {"\xF0\x90\x80\x80", 4},
    {"\xF4\x8F\xBF\xBF", 4},
    {"\xC0\x80", 0},         /* overlong NUL */
    {"\xC1\xBF", 0},         /* overlong */
    {"\xE0\x9F\xBF", 0},     /* overlong */
    {"\xF0\x8F\xBF\xBF", 0}, /* overlong */
    {"\xED\xA0\x80", 0},     /* first surrogate */
    {"\xED\xBF\xBF", 0},     /* last surrogate */
    {"\xF4\x90\x80\x80", 0}, /* U+110000 */
    {"\xF5\x80\x80\x80", 0},
    {"\xFF", 0},
    {"\x80", 0},
    {"a\xBF", 1},
    {"12345678\xC3", 8}, /* cut off */
    {"abc\xE2\x82", 3},
    {"abc\xF0\x9F\x98", 3},
    {"ab\xE2\x28\xA1", 2},
    {"\xF0\x9F\x98\x80\xF0\x28\x8C\x80", 4},
};

START_TEST(utf8_prefix_ends_at_the_first_malformed_byte)
{
    const size_t bytes = strlen(UTF8[_i].text);

    ck_assert_uint_eq(ie__utf8_valid_prefix(UTF8[_i].text, bytes), UTF8[_i].valid);
    ck_assert_int_eq(ie__utf8_is_valid(UTF8[_i].text, bytes), UTF8[_i].valid == bytes);
}
END_TEST

START_TEST(every_code_point_is_valid_utf8_in_its_own_length_only)
{
    for (uint32_t point = 0x80; point <= 0x110000; point++) {
        const bool    is_legal = (point < 0xD800 || point > 0xDFFF) && point <= 0x10FFFF;
        unsigned char four[4] = {
            (unsigned char)(0xF0 | point >> 18), (unsigned char)(0x80 | (point >> 12 & 0x3F)),
            (unsigned char)(0x80 | (point >> 6 & 0x3F)), (unsigned char)(0x80 | (point & 0x3F))};
        unsigned char three[3] = {(unsigned char)(0xE0 | (point >> 12 & 0xF)), four[2], four[3]};

        three[1] = (unsigned char)(0x80 | (point >> 6 & 0x3F));
        QUICK_ASSERT(ie__utf8_is_valid((char *)four, 4) == (is_legal && point >= 0x10000));
        QUICK_ASSERT(point >= 0x10000 ||
                     ie__utf8_is_valid((char *)three, 3) == (is_legal && point >= 0x800));
    }
}
END_TEST

/* ---- hashing ------------------------------------------------------------------------------ */

START_TEST(digest_never_changes_between_releases)
{
    /* Stored values depend on these. If this fails, the code is wrong, not the numbers. */
    ck_assert_uint_eq(ie__digest("", 0, 0), UINT64_C(0x42e7206715c5f173));
    ck_assert_uint_eq(ie__digest("orders.placed", 13, 0), UINT64_C(0x56a9783d75c12df4));
    ck_assert_uint_eq(ie__digest("orders.placed", 13, 7), UINT64_C(0x02bea312dcfac204));
}
END_TEST

START_TEST(hash_sees_every_bit_and_every_length)
{
    unsigned char bytes[24] = {0};

    for (size_t size = 0; size < sizeof bytes; size++) {
        const uint64_t hash = ie__hash(bytes, size);

        ck_assert_uint_ne(hash, ie__hash(bytes, size + 1));
        ck_assert_uint_eq(hash, ie__hash(bytes, size));
        for (size_t bit = 0; bit < size * 8; bit++) {
            bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
            ck_assert_uint_ne(hash, ie__hash(bytes, size));
            bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
    }
}
END_TEST

/* ---- time --------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    int64_t     ms;
    const char *again; /* the canonical form; NULL: the text itself */
} TIMES[] = {
    {"1970-01-01T00:00:00.000Z", 0, NULL},
    {"2026-11-21T21:30:00.123Z", 1795296600123, NULL},
    {"2026-11-21T21:30:00.123999999999999999999Z", 1795296600123, "2026-11-21T21:30:00.123Z"},
    {"2026-11-21t21:30:00z", 1795296600000, "2026-11-21T21:30:00.000Z"},
    {"2026-11-21T21:30:00.5+05:30", 1795276800500, "2026-11-21T16:00:00.500Z"},
    {"2026-11-21T21:30:00-00:30", 1795298400000, "2026-11-21T22:00:00.000Z"},
    {"2024-02-29T00:00:00Z", 1709164800000, "2024-02-29T00:00:00.000Z"},
    {"2000-02-29T23:59:59.999Z", 951868799999, NULL},
    {"1969-12-31T23:59:59.999Z", -1, NULL},
    {"0000-01-01T00:00:00.000Z", -62167219200000, NULL},
    {"9999-12-31T23:59:59.999Z", 253402300799999, NULL},
    {"2016-12-31T23:59:60Z", 1483228800000, "2017-01-01T00:00:00.000Z"},
    {"2016-12-31T18:59:60.25-05:00", 1483228800250, "2017-01-01T00:00:00.250Z"},
};

START_TEST(time_is_read_and_written_back_in_canonical_form)
{
    char    text[IE_TIME_TEXT_SIZE];
    int64_t ms = 42;

    ck_assert_int_eq(ie__time_parse(&ms, TIMES[_i].text, strlen(TIMES[_i].text)), IE_OK);
    ck_assert_int_eq(ms, TIMES[_i].ms);
    ie__time_format(text, ms);
    ck_assert_str_eq(text, TIMES[_i].again != NULL ? TIMES[_i].again : TIMES[_i].text);
}
END_TEST

static const char *const NO_TIMES[] = {
    "",
    "2026-11-21",
    "2026-11-21T21:30:00",
    "2026-11-21T21:30Z",
    "2026-11-21 21:30:00Z",
    "2026-11-21T21:30:00.Z",
    "2026-11-21T21:30:00,5Z",
    "2026-11-21T21:30:00Zx",
    "2026-11-21T21:30:00 Z",
    "2026-11-21T21:30:00+0530",
    "2026-11-21T21:30:00+05",
    "2026-11-21T21:30:00+24:00",
    "2026-11-21T21:30:00+05:60",
    "2026-11-21T21:30:00*05:00",
    "2026-13-01T00:00:00Z",
    "2026-00-01T00:00:00Z",
    "2026-04-31T00:00:00Z",
    "2026-04-00T00:00:00Z",
    "2026-02-29T00:00:00Z",
    "1900-02-29T00:00:00Z",
    "2026-11-21T24:00:00Z",
    "2026-11-21T21:60:00Z",
    "2026-11-21T21:30:61Z",
    "2026-11-21T21:30:60Z",
    "2026-11-21T23:59:60Z",
    "2016-12-31T23:59:60+01:00",
    "9999-12-31T23:59:60Z",
    "0000-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "-026-11-21T21:30:00Z",
    "2026-1a-21T21:30:00Z",
    "+2026-11-21T21:30:00Z",
};

START_TEST(time_refuses_everything_else)
{
    int64_t ms = 42;

    ck_assert_int_eq(ie__time_parse(&ms, NO_TIMES[_i], strlen(NO_TIMES[_i])), IE_EINVAL);
    ck_assert_int_eq(ms, 42);
}
END_TEST

START_TEST(time_beyond_four_digit_years_is_shown_as_the_end)
{
    char text[IE_TIME_TEXT_SIZE];

    ie__time_format(text, INT64_MAX);
    ck_assert_str_eq(text, "9999-12-31T23:59:59.999Z");
    ie__time_format(text, INT64_MIN);
    ck_assert_str_eq(text, "0000-01-01T00:00:00.000Z");
}
END_TEST

START_TEST(every_day_of_ten_thousand_years_comes_back)
{
    for (int64_t day = -719528; day < 2932897; day++) {
        const int64_t ms = day * 86400000 + (day & 0xFFFFFF);
        int64_t       again = 0;
        char          text[IE_TIME_TEXT_SIZE];

        ie__time_format(text, ms);
        QUICK_ASSERT(ie__time_parse(&again, text, strlen(text)) == IE_OK);
        QUICK_ASSERT(again == ms);
    }
}
END_TEST

/* ---- ids ---------------------------------------------------------------------------------- */

START_TEST(id_is_a_uuid_of_version_7_with_the_time_in_front)
{
    char          id[IE_ID_SIZE];
    unsigned long high;
    unsigned long low;

    for (int i = 0; i < 1000; i++) {
        const int64_t before = ie__wall_ms(&ie__system_clock);
        int64_t       in_id;

        ie_id_new(id);
        ck_assert_uint_eq(strlen(id), 36);
        ck_assert_uint_eq(strspn(id, "0123456789abcdef-"), 36);
        ck_assert(id[8] == '-' && id[13] == '-' && id[18] == '-' && id[23] == '-');
        ck_assert_int_eq(id[14], '7');
        ck_assert_ptr_nonnull(strchr("89ab", id[19]));
        ck_assert_int_eq(sscanf(id, "%8lx-%4lx", &high, &low), 2);
        in_id = (int64_t)(high << 16 | low);
        ck_assert_int_ge(in_id, before);
        ck_assert_int_le(in_id, ie__wall_ms(&ie__system_clock) + 1);
    }
}
END_TEST

START_TEST(ids_ascend_when_the_clock_goes_back_or_stands_still)
{
    const int64_t start = ie__wall_ms(&ie__system_clock) + 10000;
    char          last[IE_ID_SIZE];
    char          id[IE_ID_SIZE];

    ie__id_new_at(last, start);
    for (int i = 0; i < 300000; i++) { /* more than the counter's 65,536 in one millisecond */
        ie__id_new_at(id, i % 3 == 0 ? start - 86400000 : start);
        QUICK_ASSERT(strcmp(last, id) < 0);
        memcpy(last, id, sizeof last);
    }
    ie__id_new_at(id, start + 60000);
    ck_assert_int_lt(strcmp(last, id), 0);
}
END_TEST

#define ID_THREADS 4
#define IDS_EACH   50000

static char (*ids)[IE_ID_SIZE];

static void *
make_ids(void *arg)
{
    char(*own)[IE_ID_SIZE] = arg;

    for (int i = 0; i < IDS_EACH; i++)
        ie_id_new(own[i]);
    return NULL;
}

static int
compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

START_TEST(ids_of_many_threads_ascend_in_each_and_never_repeat)
{
    pthread_t threads[ID_THREADS];

    ids = calloc((size_t)ID_THREADS * IDS_EACH, sizeof *ids);
    ck_assert_ptr_nonnull(ids);
    for (int t = 0; t < ID_THREADS; t++)
        ck_assert_int_eq(pthread_create(&threads[t], NULL, make_ids, ids + t * IDS_EACH), 0);
    for (int t = 0; t < ID_THREADS; t++)
        ck_assert_int_eq(pthread_join(threads[t], NULL), 0);
    for (int i = 1; i < ID_THREADS * IDS_EACH; i++)
        QUICK_ASSERT(i % IDS_EACH == 0 || strcmp(ids[i - 1], ids[i]) < 0);
    qsort(ids, (size_t)ID_THREADS * IDS_EACH, sizeof *ids, compare_ids);
    for (int i = 1; i < ID_THREADS * IDS_EACH; i++)
        QUICK_ASSERT(strcmp(ids[i - 1], ids[i]) != 0);
    free(ids);
}
END_TEST

START_TEST(ids_of_parent_and_children_differ_in_their_random_part)
{
    enum { CHILDREN = 8, EACH = 20 };
    char all[(CHILDREN + 1) * EACH][IE_ID_SIZE];
    char first[IE_ID_SIZE];
    int  ends[2];
    int  count = 0;

    ie_id_new(first); /* the pool is full of bytes that no child may use */
    ck_assert_int_eq(pipe(ends), 0);
    for (int c = 0; c < CHILDREN; c++) {
        const pid_t pid = fork();

        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
            char id[IE_ID_SIZE];
            bool is_written = true;

            for (int i = 0; i < EACH; i++) {
                ie_id_new(id);
                is_written = write(ends[1], id, sizeof id) == (ssize_t)sizeof id && is_written;
            }
            _exit(is_written ? 0 : 1);
        }
    }
    for (; count < EACH; count++)
        ie_id_new(all[count]);
    (void)close(ends[1]);
    while (count < (CHILDREN + 1) * EACH) {
        ck_assert_int_eq(read(ends[0], all[count], IE_ID_SIZE), IE_ID_SIZE);
        count++;
    }
    for (int c = 0; c < CHILDREN; c++) {
        int status = -1;

        ck_assert_int_gt(wait(&status), 0);
        ck_assert_int_eq(status, 0);
    }
    for (int i = 0; i < count; i++)
        for (int k = 0; k < i; k++)
            ck_assert_str_ne(all[i] + 21, all[k] + 21); /* the 58 random bits, but for ten */
    (void)close(ends[0]);
}
END_TEST

START_TEST(seeded_randomness_reaches_the_ids)
{
    char a[IE_ID_SIZE];
    char b[IE_ID_SIZE];
    char c[IE_ID_SIZE];

    ie__random_seed(77);
    ie_id_new(a);
    ie__random_seed(77);
    ie_id_new(b);
    ie__random_seed(78);
    ie_id_new(c);
    ie__random_seed(0);
    ck_assert_str_eq(a + 24, b + 24);
    ck_assert_str_ne(a + 24, c + 24);
}
END_TEST

/* ---- topics and patterns ------------------------------------------------------------------ */

static const struct {
    const char *name;
    bool        is_topic;
    bool        is_pattern;
} NAMES[] = {
    {"orders", true, true},
    {"orders.placed", true, true},
    {"a.b.c.d", true, true},
    {"Orders-1_x:y/z@h", true, true},
    {"\xD0\xB7\xD0\xB0\xD0\xBA\xD0\xB0\xD0\xB7.\xE2\x82\xAC", true, true},
    {"a$b", true, true},
    {"", false, false},
    {".", false, false},
    {".a", false, false},
    {"a.", false, false},
    {"a..b", false, false},
    {"$SYS", false, false},
    {"a b", false, false},
    {"a\tb", false, false},
    {"a\nb", false, false},
    {"a\x7F", false, false},
    {"a\xC2\x85", false, false},     /* U+0085, a control */
    {"a\xC2\x9F", false, false},     /* the last C1 */
    {"a\xC2\xA0", false, false},     /* no-break space */
    {"a\xE1\x9A\x80", false, false}, /* ogham space mark */
    {"a\xE2\x80\x80", false, false}, /* en quad */
    {"a\xE2\x80\x8A", false, false}, /* hair space */
    {"a\xE2\x80\x8B", true, true},   /* zero width space: not white space in Unicode's sense */
    {"a\xE2\x80\xA8", false, false},
    {"a\xE2\x80\xAF", false, false},
    {"a\xE2\x81\x9F", false, false},
    {"a\xE3\x80\x80", false, false}, /* ideographic space */
    {"a\xEF\xBF\xBE", false, false}, /* U+FFFE */
    {"a\xEF\xB7\x90", false, false}, /* U+FDD0 */
    {"a\xF4\x8F\xBF\xBF", false, false},
    {"a\xFF", false, false},
    {"a\xC3", false, false},
    {"*", false, true},
    {">", false, true},
    {"a.*", false, true},
    {"*.a", false, true},
    {"a.*.b", false, true},
    {"*.*", false, true},
    {"a.>", false, true},
    {"*.>", false, true},
    {"a*", false, false},
    {"*a", false, false},
    {"a.b*.c", false, false},
    {"**", false, false},
    {">.a", false, false},
    {"a>", false, false},
    {"a.>b", false, false},
    {">>", false, false},
    {"#", false, false},
    {"a.#", false, false},
    {"+", false, false},
    {"a+b", false, false},
    {"a#b", false, false},
};

START_TEST(topic_and_pattern_rules)
{
    ck_assert_int_eq(ie_topic_check(NAMES[_i].name, &failure),
                     NAMES[_i].is_topic ? IE_OK : IE_EINVAL);
    ck_assert_int_eq(strncmp(said(), "topic ", 6) == 0, !NAMES[_i].is_topic);
    ck_assert_int_eq(ie_pattern_check(NAMES[_i].name, &failure),
                     NAMES[_i].is_pattern ? IE_OK : IE_EINVAL);
    ck_assert_int_eq(strncmp(said(), "pattern ", 8) == 0, !NAMES[_i].is_pattern);
}
END_TEST

START_TEST(topic_of_255_bytes_passes_and_of_256_does_not)
{
    ck_assert_int_eq(ie_topic_check(text_of(IE_TOPIC_BYTES_MAX), NULL), IE_OK);
    ck_assert_int_eq(ie_topic_check(text_of(IE_TOPIC_BYTES_MAX + 1), NULL), IE_EINVAL);
    ck_assert_int_eq(ie_pattern_check(text_of(IE_TOPIC_BYTES_MAX), NULL), IE_OK);
    ck_assert_int_eq(ie_pattern_check(text_of(IE_TOPIC_BYTES_MAX + 1), NULL), IE_EINVAL);
    ck_assert_int_eq(ie_topic_check(NULL, NULL), IE_EINVAL);
}
END_TEST

static const struct {
    const char *pattern;
    const char *topic;
    bool        matches;
} MATCHES[] = {
    {"a", "a", true},        {"a", "b", false},        {"a", "ab", false},
    {"ab", "a", false},      {"a.b", "a.b", true},     {"a.b", "a.c", false},
    {"a.b", "a", false},     {"a", "a.b", false},      {"*", "a", true},
    {"*", "a.b", false},     {"*.b", "a.b", true},     {"*.b", "a.b.b", false},
    {"a.*", "a.b", true},    {"a.*", "a", false},      {"a.*.c", "a.b.c", true},
    {"a.*.c", "a.c", false}, {">", "a", true},         {">", "a.b.c", true},
    {"a.>", "a.b", true},    {"a.>", "a.b.c.d", true}, {"a.>", "a", false},
    {"a.>", "b.c", false},   {"*.>", "a.b", true},     {"*.>", "a", false},
    {"a.*.>", "a.b", false}, {"a.*.>", "a.b.c", true}, {"aa.*", "a.b", false},
    {"a.*", "aa.b", false},
};

START_TEST(pattern_matches_whole_words)
{
    ck_assert_int_eq(ie_pattern_matches(MATCHES[_i].pattern, MATCHES[_i].topic),
                     MATCHES[_i].matches);
}
END_TEST

/* Word by word, the way one would explain it: the reference for random names. */
static bool
naive_matches(const char *pattern, const char *topic)
{
    char  a[64];
    char  b[64];
    char *a_words[32];
    char *b_words[32];
    char *save = NULL;
    int   a_count = 0;
    int   b_count = 0;

    (void)snprintf(a, sizeof a, "%s", pattern);
    (void)snprintf(b, sizeof b, "%s", topic);
    for (char *word = strtok_r(a, ".", &save); word != NULL; word = strtok_r(NULL, ".", &save))
        a_words[a_count++] = word;
    for (char *word = strtok_r(b, ".", &save); word != NULL; word = strtok_r(NULL, ".", &save))
        b_words[b_count++] = word;
    for (int i = 0; i < a_count; i++) {
        if (i == b_count)
            return false;
        if (strcmp(a_words[i], ">") == 0)
            return true;
        if (strcmp(a_words[i], "*") != 0 && strcmp(a_words[i], b_words[i]) != 0)
            return false;
    }
    return a_count == b_count;
}

static void
random_name(char *out, bool is_pattern)
{
    const uint64_t words = 1 + ie__random_below(5);

    for (uint64_t i = 0; i < words; i++) {
        const uint64_t dice = ie__random_below(8);

        if (i > 0)
            *out++ = '.';
        if (is_pattern && dice == 0) {
            *out++ = '*';
        } else if (is_pattern && dice == 1 && i + 1 == words) {
            *out++ = '>';
        } else {
            for (uint64_t n = 1 + ie__random_below(2); n > 0; n--)
                *out++ = (char)('a' + ie__random_below(2));
        }
    }
    *out = '\0';
}

START_TEST(matcher_agrees_with_the_naive_one)
{
    unsigned matched = 0;

    ie__random_seed(test_seed());
    for (uint64_t i = test_scale(500000); i > 0; i--) {
        char pattern[64];
        char topic[64];

        random_name(pattern, true);
        random_name(topic, false);
        QUICK_ASSERT(ie_pattern_check(pattern, NULL) == IE_OK);
        QUICK_ASSERT(ie_topic_check(topic, NULL) == IE_OK);
        if (ie_pattern_matches(pattern, topic) != naive_matches(pattern, topic))
            ck_abort_msg("%s against %s", pattern, topic);
        matched += ie_pattern_matches(pattern, topic);
    }
    ie__random_seed(0);
    ck_assert_uint_gt(matched, 0);
}
END_TEST

/* ---- the event ---------------------------------------------------------------------------- */

static const ie_header HEADERS[] = {
    {"tenant", "acme", IE_HEADER_STRING, 0},
    {"attempt", "-3", IE_HEADER_INTEGER, 0},
    {"deprecated", "true", IE_HEADER_BOOLEAN, 0},
};

static ie_event
event_whole(void)
{
    ie_event event = IE_EVENT_INIT;

    event.topic = "orders.placed";
    event.key = "customer-42";
    event.id = "id-1";
    event.type = "com.example.order.placed";
    event.source = "/shop";
    event.subject = "order 1";
    event.dataschema = "https://example.com/order.json";
    event.content_type = "application/json; charset=utf-8";
    event.data = "{\"a\":1.10}";
    event.data_bytes = 10;
    event.headers = HEADERS;
    event.header_count = 3;
    event.time_ms = 1795296600123;
    event.not_before_ms = 1795296600124;
    event.expires_at_ms = 1795296700000;
    event.position = 7;
    event.dedupe_key = "order-1";
    return event;
}

static void
assert_refused(const ie_event *event, ie_status status, const char *words)
{
    ck_assert_int_eq(ie_event_check(event, &failure), status);
    ck_assert_int_eq(failure.status, status);
    ck_assert_msg(strstr(failure.message, words) != NULL, "'%s' without '%s'", failure.message,
                  words);
    (void)said();
}

START_TEST(a_whole_event_and_a_bare_one_pass)
{
    const ie_event whole = event_whole();
    ie_event       bare = IE_EVENT_INIT;

    ck_assert_int_eq(ie_event_check(&whole, &failure), IE_OK);
    bare.topic = "t";
    ck_assert_int_eq(ie_event_check(&bare, &failure), IE_OK);
    ck_assert_str_eq(said(), "");
}
END_TEST

START_TEST(event_of_another_size_is_read_with_care)
{
    struct {
        ie_event event;
        void    *later;
    } newer = {event_whole(), NULL};
    ie_event older = event_whole();

    newer.event.size = sizeof newer;
    ck_assert_int_eq(ie_event_check(&newer.event, NULL), IE_OK);
    newer.later = &newer;
    assert_refused(&newer.event, IE_ENOTSUP, "lacks");
    older.size = 0;
    assert_refused(&older, IE_EINVAL, "size");
    assert_refused(NULL, IE_EINVAL, "missing");
}
END_TEST

/* The text attributes, their limits, and what is special about them. */
static const struct {
    const char *name;
    size_t      offset;
    size_t      bytes_max;
    const char *prefix; /* makes a legal value with any number of 'a' behind it */
} ATTRIBUTES[] = {
    {"key", offsetof(ie_event, key), IE_ATTRIBUTE_BYTES_MAX, ""},
    {"id", offsetof(ie_event, id), IE_ID_BYTES_MAX, ""},
    {"type", offsetof(ie_event, type), IE_ATTRIBUTE_BYTES_MAX, ""},
    {"source", offsetof(ie_event, source), IE_ATTRIBUTE_BYTES_MAX, "#"},
    {"subject", offsetof(ie_event, subject), IE_ATTRIBUTE_BYTES_MAX, ""},
    {"dataschema", offsetof(ie_event, dataschema), IE_ATTRIBUTE_BYTES_MAX, "urn:"},
    {"content_type", offsetof(ie_event, content_type), IE_ATTRIBUTE_BYTES_MAX, "x/"},
    {"dedupe_key", offsetof(ie_event, dedupe_key), IE_ATTRIBUTE_BYTES_MAX, ""},
};

static void
attribute_set(ie_event *event, int i, const char *value)
{
    memcpy((char *)event + ATTRIBUTES[i].offset, &value, sizeof value);
}

START_TEST(attribute_has_its_limit_and_no_control_characters)
{
    static const char *const BAD[] = {"\x01",
                                      "\x1F",
                                      "\x7F",
                                      "\xC2\x80",
                                      "\xC2\x9F",
                                      "\xEF\xBF\xBE",
                                      "\xEF\xBF\xBF",
                                      "\xEF\xB7\x90",
                                      "\xEF\xB7\xAF",
                                      "\xF0\x9F\xBF\xBF",
                                      "\xFF",
                                      "\r",
                                      "\n"};
    ie_event                 event = event_whole();
    char                     text[IE_ATTRIBUTE_BYTES_MAX + 2];

    event.data = NULL;
    event.data_bytes = 0;
    for (size_t past = 0; past < 2; past++) {
        const size_t prefix = strlen(ATTRIBUTES[_i].prefix);

        memset(text, 'a', sizeof text);
        memcpy(text, ATTRIBUTES[_i].prefix, prefix);
        text[ATTRIBUTES[_i].bytes_max + past] = '\0';
        attribute_set(&event, _i, text);
        if (past == 0)
            ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
        else
            assert_refused(&event, IE_ETOOBIG, ATTRIBUTES[_i].name);
    }
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        for (size_t pad = 0; pad < 20; pad++) { /* wherever it stands among whole words */
            (void)snprintf(text, sizeof text, "%s%.*s%s%s", ATTRIBUTES[_i].prefix, (int)pad,
                           "aaaaaaaaaaaaaaaaaaaa", BAD[i], "bb");
            attribute_set(&event, _i, text);
            assert_refused(&event, IE_EINVAL, ATTRIBUTES[_i].name);
        }
    }
    attribute_set(&event, _i, "");
    assert_refused(&event, IE_EINVAL, "is empty");
}
END_TEST

START_TEST(source_and_dataschema_are_uris)
{
    static const char *const SOURCES[] = {
        "/x",   "#fragment",         "urn:uuid:1", "https://h/p?q=%20",
        "shop", "\xC3\xA9t\xC3\xA9", "mailto:a@b"};
    static const char *const NO_SOURCES[] = {"a b", "a<", "a>", "a\"", "a\\b", "a^",  "a`",
                                             "{",   "|",  "}",  "%",   "%2",   "%2g", "a%"};
    static const char *const NO_SCHEMAS[] = {"/x", "#f", "shop", ":x", "1a:x", "a_b:x", "a"};
    ie_event                 event = event_whole();

    for (size_t i = 0; i < sizeof SOURCES / sizeof *SOURCES; i++) {
        event.source = SOURCES[i];
        ck_assert_msg(ie_event_check(&event, NULL) == IE_OK, "%s", SOURCES[i]);
    }
    for (size_t i = 0; i < sizeof NO_SOURCES / sizeof *NO_SOURCES; i++) {
        event.source = NO_SOURCES[i];
        assert_refused(&event, IE_EINVAL, "source contains");
    }
    event = event_whole();
    for (size_t i = 0; i < sizeof NO_SCHEMAS / sizeof *NO_SCHEMAS; i++) {
        event.dataschema = NO_SCHEMAS[i];
        assert_refused(&event, IE_EINVAL, "dataschema is not an absolute URI");
    }
}
END_TEST

START_TEST(content_type_is_a_media_type)
{
    static const char *const GOOD[] = {"text/plain", "application/vnd.x+xml", "a/b;c=d",
                                       "text/plain ; charset=\"utf-8\"", "image/png"};
    static const char *const BAD[] = {"text",        "/plain",      "text/",        "text plain",
                                      "text/pl ain", "text/plain;", "text/plain,b", "t(/x"};
    ie_event                 event = event_whole();

    event.data = "any";
    event.data_bytes = 3;
    for (size_t i = 0; i < sizeof GOOD / sizeof *GOOD; i++) {
        event.content_type = GOOD[i];
        ck_assert_msg(ie_event_check(&event, NULL) == IE_OK, "%s", GOOD[i]);
    }
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        event.content_type = BAD[i];
        assert_refused(&event, IE_EINVAL, "content_type is not a media type");
    }
}
END_TEST

START_TEST(data_is_json_unless_the_content_type_says_otherwise)
{
    ie_event event = event_whole();
    char    *big = malloc(IE_DATA_BYTES_MAX + 1);

    ck_assert_ptr_nonnull(big);
    event.data = "{\"a\":";
    event.data_bytes = 5;
    assert_refused(&event, IE_EINVAL, "data is not valid: JSON, byte 5");
    event.content_type = NULL;
    assert_refused(&event, IE_EINVAL, "data is not valid: JSON");
    event.content_type = "application/x+JSON";
    assert_refused(&event, IE_EINVAL, "data is not valid: JSON");
    event.content_type = "text/plain";
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
    event.content_type = NULL;
    event.data_bytes = 0;
    assert_refused(&event, IE_EINVAL, "NULL means no data");
    event.data = NULL;
    event.data_bytes = 1;
    assert_refused(&event, IE_EINVAL, "data is NULL");

    event.data = memset(big, ' ', IE_DATA_BYTES_MAX + 1);
    big[0] = '1';
    event.data_bytes = IE_DATA_BYTES_MAX;
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
    event.data_bytes = IE_DATA_BYTES_MAX + 1;
    assert_refused(&event, IE_ETOOBIG, "data is larger");
    free(big);
}
END_TEST

START_TEST(times_stay_within_four_digit_years)
{
    ie_event event = event_whole();

    event.time_ms = -62167219200000;
    event.expires_at_ms = event.not_before_ms = 253402300799999;
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
    event.time_ms--;
    assert_refused(&event, IE_EINVAL, "time_ms");
    event = event_whole();
    event.expires_at_ms = 253402300800000;
    assert_refused(&event, IE_EINVAL, "expires_at_ms");
    event = event_whole();
    event.not_before_ms = INT64_MAX;
    assert_refused(&event, IE_EINVAL, "not_before_ms");
}
END_TEST

static const struct {
    ie_header   header;
    const char *words; /* NULL: it passes */
} ONE_HEADER[] = {
    {{"a", "", IE_HEADER_STRING, 0}, NULL},
    {{"traceparent", "00-4bf9-01", IE_HEADER_STRING, 0}, NULL},
    {{"9", "x", IE_HEADER_STRING, 0}, NULL},
    {{"n", "0", IE_HEADER_INTEGER, 0}, NULL},
    {{"n", "2147483647", IE_HEADER_INTEGER, 0}, NULL},
    {{"n", "-2147483648", IE_HEADER_INTEGER, 0}, NULL},
    {{"b", "true", IE_HEADER_BOOLEAN, 0}, NULL},
    {{"b", "false", IE_HEADER_BOOLEAN, 0}, NULL},
    {{"n", "2147483648", IE_HEADER_INTEGER, 0}, "header 'n' is not a 32-bit integer"},
    {{"n", "-2147483649", IE_HEADER_INTEGER, 0}, "header 'n' is not a 32-bit integer"},
    {{"n", "99999999999999999999", IE_HEADER_INTEGER, 0}, "header 'n' is not a 32-bit integer"},
    {{"n", "-0", IE_HEADER_INTEGER, 0}, "header 'n' is not"},
    {{"n", "01", IE_HEADER_INTEGER, 0}, "header 'n' is not"},
    {{"n", "+1", IE_HEADER_INTEGER, 0}, "header 'n' is not"},
    {{"n", "", IE_HEADER_INTEGER, 0}, "header 'n' is not"},
    {{"n", "-", IE_HEADER_INTEGER, 0}, "header 'n' is not"},
    {{"n", "1.0", IE_HEADER_INTEGER, 0}, "header 'n' is not"},
    {{"b", "True", IE_HEADER_BOOLEAN, 0}, "header 'b' is neither true nor false"},
    {{"b", "1", IE_HEADER_BOOLEAN, 0}, "header 'b' is neither true nor false"},
    {{"x", "y", (ie_header_type)3, 0}, "header 'x' has an unknown type"},
    {{"x", "y", IE_HEADER_STRING, 1}, "header 'x' has its reserved field set"},
    {{"x", NULL, IE_HEADER_STRING, 0}, "header 'x' has no value"},
    {{NULL, "y", IE_HEADER_STRING, 0}, "header without a name"},
    {{"", "y", IE_HEADER_STRING, 0}, "empty name"},
    {{"Tenant", "y", IE_HEADER_STRING, 0}, "header 'Tenant' has a name with other characters"},
    {{"a-b", "y", IE_HEADER_STRING, 0}, "header 'a-b' has a name with other characters"},
    {{"a\r\nb", "y", IE_HEADER_STRING, 0}, "header 'a??b' has a name with other characters"},
    {{"x", "a\rb", IE_HEADER_STRING, 0}, "header 'x' contains a control character"},
    {{"x", "a\nb", IE_HEADER_STRING, 0}, "header 'x' contains a control character"},
    {{"x", "\xC2\x80", IE_HEADER_STRING, 0}, "header 'x' contains a control character"},
    {{"x", "\xEF\xBF\xBF", IE_HEADER_STRING, 0}, "header 'x' contains a Unicode non-character"},
    {{"x", "\xFF", IE_HEADER_STRING, 0}, "header 'x' is not valid UTF-8"},
    {{"id", "y", IE_HEADER_STRING, 0}, "header 'id' is an attribute"},
    {{"source", "y", IE_HEADER_STRING, 0}, "header 'source' is an attribute"},
    {{"type", "y", IE_HEADER_STRING, 0}, "header 'type' is an attribute"},
    {{"specversion", "y", IE_HEADER_STRING, 0}, "header 'specversion' is an attribute"},
    {{"datacontenttype", "y", IE_HEADER_STRING, 0}, "header 'datacontenttype' is an attribute"},
    {{"dataschema", "y", IE_HEADER_STRING, 0}, "header 'dataschema' is an attribute"},
    {{"subject", "y", IE_HEADER_STRING, 0}, "header 'subject' is an attribute"},
    {{"time", "y", IE_HEADER_STRING, 0}, "header 'time' is an attribute"},
    {{"data", "y", IE_HEADER_STRING, 0}, "header 'data' is an attribute"},
    {{"topic", "y", IE_HEADER_STRING, 0}, "header 'topic' is an attribute"},
    {{"partitionkey", "y", IE_HEADER_STRING, 0}, "header 'partitionkey' is an attribute"},
    {{"expirytime", "y", IE_HEADER_STRING, 0}, "header 'expirytime' is an attribute"},
    {{"notbefore", "y", IE_HEADER_STRING, 0}, "header 'notbefore' is an attribute"},
};

START_TEST(header_rules)
{
    ie_event event = event_whole();

    event.headers = &ONE_HEADER[_i].header;
    event.header_count = 1;
    if (ONE_HEADER[_i].words == NULL)
        ck_assert_int_eq(ie_event_check(&event, &failure), IE_OK);
    else
        assert_refused(&event, IE_EINVAL, ONE_HEADER[_i].words);
}
END_TEST

START_TEST(headers_have_limits_in_number_and_bytes)
{
    ie_header headers[IE_HEADERS_MAX + 1];
    char      names[IE_HEADERS_MAX + 1][24];
    ie_event  event = event_whole();
    char      long_name[IE_HEADER_NAME_BYTES_MAX + 2];

    memset(headers, 0, sizeof headers);
    for (size_t i = 0; i <= IE_HEADERS_MAX; i++) {
        (void)snprintf(names[i], sizeof names[i], "h%zu", i);
        headers[i].name = names[i];
        headers[i].value = "v";
    }
    event.headers = headers;
    event.header_count = IE_HEADERS_MAX;
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
    event.header_count++;
    assert_refused(&event, IE_ETOOBIG, "more than 64");

    event.header_count = 1;
    headers[0].value = text_of(IE_HEADERS_BYTES_MAX - 2); /* "h0" counts too */
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
    headers[0].value = text_of(IE_HEADERS_BYTES_MAX - 1);
    assert_refused(&event, IE_ETOOBIG, "16384 bytes together");
    event.header_count = 2;
    headers[0].value = text_of(IE_HEADERS_BYTES_MAX - 4);
    assert_refused(&event, IE_ETOOBIG, "16384 bytes together");

    headers[0].value = "v";
    memset(long_name, 'n', sizeof long_name);
    long_name[IE_HEADER_NAME_BYTES_MAX] = '\0';
    headers[0].name = long_name;
    ck_assert_int_eq(ie_event_check(&event, NULL), IE_OK);
    long_name[IE_HEADER_NAME_BYTES_MAX] = 'n';
    long_name[IE_HEADER_NAME_BYTES_MAX + 1] = '\0';
    assert_refused(&event, IE_EINVAL, "longer than 64");
    headers[0].name = "h1";
    assert_refused(&event, IE_EINVAL, "header 'h1' is there twice");
    event.headers = NULL;
    assert_refused(&event, IE_EINVAL, "headers: missing");
}
END_TEST

static void
assert_same_text(const char *a, const char *b)
{
    ck_assert_int_eq(a == NULL, b == NULL);
    if (a != NULL) {
        ck_assert_ptr_ne(a, b);
        ck_assert_str_eq(a, b);
    }
}

START_TEST(copy_is_deep_and_whole)
{
    const ie_event event = event_whole();
    ie_event       bare = IE_EVENT_INIT;
    ie_event      *copy = NULL;

    ck_assert_int_eq(ie_event_copy(&copy, &event, &failure), IE_OK);
    for (size_t i = 0; i < sizeof ATTRIBUTES / sizeof *ATTRIBUTES; i++) {
        const char *a;
        const char *b;

        memcpy(&a, (const char *)&event + ATTRIBUTES[i].offset, sizeof a);
        memcpy(&b, (const char *)copy + ATTRIBUTES[i].offset, sizeof b);
        assert_same_text(a, b);
    }
    assert_same_text(event.topic, copy->topic);
    ck_assert_uint_eq(copy->size, sizeof event);
    ck_assert_uint_eq(copy->data_bytes, event.data_bytes);
    ck_assert_ptr_ne(copy->data, event.data);
    ck_assert_mem_eq(copy->data, event.data, event.data_bytes);
    ck_assert_int_eq(copy->time_ms, event.time_ms);
    ck_assert_int_eq(copy->not_before_ms, event.not_before_ms);
    ck_assert_int_eq(copy->expires_at_ms, event.expires_at_ms);
    ck_assert_int_eq(copy->position, event.position);
    ck_assert_uint_eq(copy->header_count, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_same_text(event.headers[i].name, copy->headers[i].name);
        assert_same_text(event.headers[i].value, copy->headers[i].value);
        ck_assert_int_eq(event.headers[i].type, copy->headers[i].type);
    }
    ck_assert_str_eq(ie_event_header(copy, "attempt"), "-3");
    ck_assert_ptr_null(ie_event_header(copy, "nothing"));
    ck_assert_ptr_null(ie_event_header(NULL, "attempt"));
    ie_event_free(copy);

    ck_assert_int_eq(ie_event_copy(&copy, &bare, &failure), IE_OK);
    ck_assert_mem_eq(copy, &bare, sizeof bare);
    ie_event_free(copy);
    ie_event_free(NULL);

    copy = NULL;
    bare.size = 8;
    ck_assert_int_eq(ie_event_copy(&copy, &bare, NULL), IE_EINVAL);
    ck_assert_ptr_null(copy);
}
END_TEST

START_TEST(copy_without_memory_changes_nothing)
{
    const ie_event event = event_whole();
    ie_event      *copy = NULL;

    ie__alloc_fail_at(1, false);
    ck_assert_int_eq(ie_event_copy(&copy, &event, &failure), IE_ENOMEM);
    ie__alloc_fail_at(0, false);
    ck_assert_ptr_null(copy);
    ck_assert_int_eq(failure.status, IE_ENOMEM);
}
END_TEST

/* ---- stored headers ----------------------------------------------------------------------- */

START_TEST(headers_are_stored_as_one_compact_object)
{
    ie_event  event = event_whole();
    ie_event  again = IE_EVENT_INIT;
    ie_event  none = IE_EVENT_INIT;
    ie_buffer out = {0};
    void     *arena = NULL;

    event.subject = "a \"quoted\" \\ \xE2\x82\xAC subject";
    ck_assert_int_eq(ie__headers_encode(&out, &none), IE_OK);
    ck_assert_uint_eq(out.size, 0);
    ck_assert_int_eq(ie__headers_encode(&out, &event), IE_OK);
    ck_assert_int_eq(ie__buffer_add(&out, "", 1), IE_OK);
    ck_assert_str_eq(out.data, "{\"subject\":\"a \\\"quoted\\\" \\\\ \xE2\x82\xAC subject\","
                               "\"dataschema\":\"https://example.com/order.json\","
                               "\"tenant\":\"acme\",\"attempt\":-3,\"deprecated\":true}");
    ck_assert_int_eq(ie__headers_decode(&again, &arena, out.data, out.size - 1, &failure), IE_OK);
    ck_assert_str_eq(again.subject, event.subject);
    ck_assert_str_eq(again.dataschema, event.dataschema);
    ck_assert_uint_eq(again.header_count, 3);
    for (size_t i = 0; i < 3; i++) {
        ck_assert_str_eq(again.headers[i].name, event.headers[i].name);
        ck_assert_str_eq(again.headers[i].value, event.headers[i].value);
        ck_assert_int_eq(again.headers[i].type, event.headers[i].type);
    }
    ie__free(arena);
    ie_buffer_fini(&out);
}
END_TEST

/* The quick reader of our own objects says what the careful one says, or nothing. */
START_TEST(compact_headers_read_the_same_both_ways)
{
    static const struct {
        const char *json;
        bool        is_compact;
    } ROWS[] = {
        {"{\"a\":\"b\"}", true},
        {"{\"subject\":\"s\",\"dataschema\":\"urn:x\",\"n\":-7,\"yes\":true,\"no\":false}", true},
        {"{\"traceparent\":\"00-0af7-01\",\"tenant\":\"\xc3\xa4\"}", true},
        {"{\"a\":\"b\\\"c\"}", false},
        {"{\"a\": \"b\"}", false},
        {"{ \"a\":\"b\"}", false},
        {"{\"a\":\"b\",}", false},
        {"{\"a\":\"b\"\"c\":\"d\"}", false},
        {"{\"a\":\"b}", false},
        {"{\"a\":}", false},
        {"{\"a\"}", false},
        {"{", false},
        {"", false},
    };

    for (size_t r = 0; r < sizeof ROWS / sizeof ROWS[0]; r++) {
        const size_t bytes = strlen(ROWS[r].json);
        char        *exact = ie__alloc(bytes);
        void        *quick_arena = ie__alloc(ie__headers_arena_bytes(bytes));
        void        *arena = NULL;
        ie_event     quick = IE_EVENT_INIT;
        ie_event     careful = IE_EVENT_INIT;

        memcpy(exact, ROWS[r].json,
               bytes); /* without a terminator, so that reading past it shows */
        ck_assert_msg(ie__headers_decode_compact(&quick, quick_arena, exact, bytes) ==
                          ROWS[r].is_compact,
                      "%s", ROWS[r].json);
        if (ROWS[r].is_compact) {
            ck_assert_int_eq(ie__headers_decode(&careful, &arena, exact, bytes, NULL), IE_OK);
            ck_assert_uint_eq(quick.header_count, careful.header_count);
            ck_assert_pstr_eq(quick.subject, careful.subject);
            ck_assert_pstr_eq(quick.dataschema, careful.dataschema);
            for (size_t i = 0; i < careful.header_count; i++) {
                ck_assert_str_eq(quick.headers[i].name, careful.headers[i].name);
                ck_assert_str_eq(quick.headers[i].value, careful.headers[i].value);
                ck_assert_int_eq(quick.headers[i].type, careful.headers[i].type);
            }
        } else {
            ck_assert_uint_eq(quick.header_count, 0);
        }
        ie__free(arena);
        ie__free(quick_arena);
        ie__free(exact);
    }
}
END_TEST

START_TEST(the_largest_legal_headers_come_back)
{
    ie_event  event = event_whole();
    ie_event  again = IE_EVENT_INIT;
    ie_header headers[IE_HEADERS_MAX];
    char      names[IE_HEADERS_MAX][IE_HEADER_NAME_BYTES_MAX + 1];
    char      value[IE_HEADERS_BYTES_MAX / IE_HEADERS_MAX + 1];
    char      subject[IE_ATTRIBUTE_BYTES_MAX + 1];
    ie_buffer out = {0};
    void     *arena = NULL;

    memset(headers, 0, sizeof headers);
    memset(value, '"', sizeof value);
    value[IE_HEADERS_BYTES_MAX / IE_HEADERS_MAX - 2] = '\0';
    memset(subject, '\\', sizeof subject);
    subject[IE_ATTRIBUTE_BYTES_MAX] = '\0';
    for (int i = 0; i < IE_HEADERS_MAX; i++) {
        (void)snprintf(names[i], sizeof names[i], "%02d", i);
        headers[i].name = names[i];
        headers[i].value = value;
    }
    event.headers = headers;
    event.header_count = IE_HEADERS_MAX;
    event.subject = subject;
    ck_assert_int_eq(ie_event_check(&event, &failure), IE_OK);
    ck_assert_int_eq(ie__headers_encode(&out, &event), IE_OK);
    ck_assert_uint_le(out.size, IE__HEADERS_STORED_BYTES_MAX);
    ck_assert_int_eq(ie__headers_decode(&again, &arena, out.data, out.size, &failure), IE_OK);
    ck_assert_uint_eq(again.header_count, IE_HEADERS_MAX);
    ck_assert_str_eq(again.headers[63].value, value);
    ck_assert_str_eq(again.subject, subject);
    ie__free(arena);
    ie_buffer_fini(&out);
}
END_TEST

static const struct {
    const char *json;
    const char *words; /* of the refusal; NULL: it passes */
} STORED[] = {
    {"{}", NULL},
    {" { \"a\" : \"x\" , \"b\" : null } ", NULL},
    {"{\"\\u0061b\":\"\\u00e9\"}", NULL},
    {"{\"a\":-0}", NULL},
    {"", "JSON"},
    {"[]", "not an object"},
    {"{\"a\":1", "JSON"},
    {"{\"a\":1}x", "JSON"},
    {"{\"a\":[]}", "header 'a' is neither"},
    {"{\"a\":{}}", "header 'a' is neither"},
    {"{\"a\":1.0}", "header 'a' is not a 32-bit integer"},
    {"{\"a\":1e2}", "header 'a' is not a 32-bit integer"},
    {"{\"a\":2147483648}", "header 'a' is not a 32-bit integer"},
    {"{\"a\":1,\"a\":2}", "header 'a' is there twice"},
    {"{\"a\":1,\"\\u0061\":2}", "is there twice"},
    {"{\"A\":1}", "other characters"},
    {"{\"\":1}", "empty name"},
    {"{\"id\":\"x\"}", "header 'id' is an attribute"},
    {"{\"\\u0069d\":\"x\"}", "is an attribute"},
    {"{\"a\":\"\\u0000\"}", "header 'a' contains a control character"},
    {"{\"a\":\"\\r\\n\"}", "header 'a' contains a control character"},
    {"{\"subject\":\"s\",\"subject\":\"s\"}", "header 'subject' is there twice"},
    {"{\"subject\":1}", "header 'subject' is not a string"},
    {"{\"subject\":\"\"}", "header 'subject' is empty"},
    {"{\"dataschema\":\"x\"}", "header 'dataschema' is not an absolute URI"},
    {"{\"a\":\"\\ud800\"}", "lone surrogate"},
};

START_TEST(stored_headers_of_a_stranger_are_checked)
{
    ie_event     event = IE_EVENT_INIT;
    ie_event     before;
    void        *arena = NULL;
    const size_t bytes = strlen(STORED[_i].json);
    char        *exact = malloc(bytes + 1); /* at its own size, so that a sanitizer sees one past */

    ck_assert_ptr_nonnull(exact);
    memcpy(exact, STORED[_i].json, bytes);
    event.subject = "old";
    before = event;
    if (STORED[_i].words == NULL) {
        ck_assert_int_eq(ie__headers_decode(&event, &arena, exact, bytes, &failure), IE_OK);
        ck_assert_ptr_null(event.subject);
        ck_assert(event.header_count == 0 || event.headers[0].value != NULL);
    } else {
        ck_assert_int_eq(ie__headers_decode(&event, &arena, exact, bytes, &failure), IE_EINVAL);
        ck_assert_msg(strstr(failure.message, STORED[_i].words) != NULL, "%s", failure.message);
        ck_assert_mem_eq(&event, &before, sizeof event);
        ck_assert_ptr_null(arena);
    }
    ie__free(arena);
    free(exact);
}
END_TEST

START_TEST(stored_headers_have_limits)
{
    ie_event  event = IE_EVENT_INIT;
    ie_buffer out = {0};
    void     *arena = NULL;

    for (int past = 0; past < 2; past++) {
        out.size = 0;
        ck_assert_int_eq(ie__buffer_text(&out, "{"), IE_OK);
        for (int i = 0; i < IE_HEADERS_MAX + past; i++)
            ck_assert_int_eq(ie__buffer_printf(&out, "%s\"h%d\":%d", i > 0 ? "," : "", i, i),
                             IE_OK);
        ck_assert_int_eq(ie__buffer_text(&out, "}"), IE_OK);
        ck_assert_int_eq(ie__headers_decode(&event, &arena, out.data, out.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0)
            ie__free(arena);
    }
    for (int past = 0; past < 2; past++) {
        out.size = 0;
        ck_assert_int_eq(ie__buffer_printf(&out, "{\"a\":\"%s\"}",
                                           text_of(IE_HEADERS_BYTES_MAX - 1 + (size_t)past)),
                         IE_OK);
        ck_assert_int_eq(ie__headers_decode(&event, &arena, out.data, out.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0)
            ie__free(arena);
    }
    for (int past = 0; past < 2; past++) { /* white space counts as well */
        out.size = 0;
        ck_assert_int_eq(ie__buffer_text(&out, "{}"), IE_OK);
        while (out.size < IE__HEADERS_STORED_BYTES_MAX + (size_t)past)
            ck_assert_int_eq(ie__buffer_add(&out, " ", 1), IE_OK);
        ck_assert_int_eq(ie__headers_decode(&event, &arena, out.data, out.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0)
            ie__free(arena);
    }
    ie_buffer_fini(&out);
}
END_TEST

START_TEST(headers_without_memory_change_nothing)
{
    const ie_event event = event_whole();
    ie_event       again = IE_EVENT_INIT;
    const ie_event before = again;
    void          *arena = NULL;
    ie_buffer      out = {0};

    ie__alloc_fail_at(1, false);
    ck_assert_int_eq(ie__headers_encode(&out, &event), IE_ENOMEM);
    ck_assert_uint_eq(out.size, 0);
    ie__alloc_fail_at(0, false);
    ck_assert_int_eq(ie__headers_encode(&out, &event), IE_OK);
    ie__alloc_fail_at(1, false);
    ck_assert_int_eq(ie__headers_decode(&again, &arena, out.data, out.size, NULL), IE_ENOMEM);
    ie__alloc_fail_at(0, false);
    ck_assert_mem_eq(&again, &before, sizeof before);
    ck_assert_ptr_null(arena);
    ie_buffer_fini(&out);
}
END_TEST

/* ---- URLs --------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    const char *scheme;
    const char *user;
    const char *password;
    const char *host;
    int         port;
    const char *path;
    const char *option; /* the value of "x" */
} URLS[] = {
    {"memory:name", "memory", NULL, NULL, "", 0, "name", NULL},
    {"memory:", "memory", NULL, NULL, "", 0, "", NULL},
    {"file:///abs/p%20x", "file", NULL, NULL, "", 0, "/abs/p x", NULL},
    {"unix:/path", "unix", NULL, NULL, "", 0, "/path", NULL},
    {"SOCKET://127.0.0.1:9100?x=1", "socket", NULL, NULL, "127.0.0.1", 9100, "", "1"},
    {"socket:///run/ie.sock", "socket", NULL, NULL, "", 0, "/run/ie.sock", NULL},
    {"redis://u:p%40s%3as@[::1]:6379/0?x=a%26b", "redis", "u", "p@s:s", "::1", 6379, "/0", "a&b"},
    {"redis://:pw@h", "redis", "", "pw", "h", 0, "", NULL},
    {"nats://u@h-1.example_x.com:65535/?a&x", "nats", "u", NULL, "h-1.example_x.com", 65535, "/",
     ""},
    {"http+unix://h/a?b=/c?x", "http+unix", NULL, NULL, "h", 0, "/a", NULL},
    {"tcp://[fe80::1%25eth0]:1", "tcp", NULL, NULL, "fe80::1%eth0", 1, "", NULL},
    {"a://h?x=1=2&y=%E2%82%AC", "a", NULL, NULL, "h", 0, "", "1=2"},
    {"a://u:p@x@h", "a", "u", "p@x", "h", 0, "", NULL},
};

static void
assert_text(const char *found, const char *expected)
{
    ck_assert_int_eq(found == NULL, expected == NULL);
    if (expected != NULL)
        ck_assert_str_eq(found, expected);
}

START_TEST(url_is_taken_apart)
{
    ie__url url;

    ck_assert_int_eq(ie__url_parse(&url, URLS[_i].text, &failure), IE_OK);
    assert_text(url.scheme, URLS[_i].scheme);
    assert_text(url.user, URLS[_i].user);
    assert_text(url.password, URLS[_i].password);
    assert_text(url.host, URLS[_i].host);
    ck_assert_int_eq(url.port, URLS[_i].port);
    assert_text(url.path, URLS[_i].path);
    assert_text(ie__url_option_text(&url, "x"), URLS[_i].option);
}
END_TEST

static const struct {
    const char *text;
    const char *words;
} NO_URLS[] = {
    {"", "scheme"},
    {"plain", "scheme"},
    {":x", "scheme"},
    {"1a://h", "scheme"},
    {"a b://h", "space"},
    {"a_b://h", "scheme"},
    {"a://h:0", "port"},
    {"a://h:65536", "port"},
    {"a://h:", "port"},
    {"a://h:1x", "port"},
    {"a://h:-1", "port"},
    {"a://h:99999999999999999999", "port"},
    {"a://:1", "host"},
    {"a://u@", "host"},
    {"a://[::1", "host"},
    {"a://[]", "host"},
    {"a://[x]", "host"},
    {"a://[::1]x", "host"},
    {"a://h,g", "host"},
    {"a://h%41", "host"},
    {"a://h/%", "path"},
    {"a://h/%4", "path"},
    {"a://h/%zz", "path"},
    {"a://h/%00", "path contains a control"},
    {"a://h/%0d%0a", "path contains a control"},
    {"a://h/%ff", "path is not valid UTF-8"},
    {"a://h/\n", "path contains a control"},
    {"a://u%0a@h", "user contains a control"},
    {"a://u:%0a@h", "password contains a control"},
    {"a://h?x=%0a", "option value contains a control"},
    {"a://h?x%0a", "option name contains a control"},
    {"a://h#f", "'#'"},
    {"a://h?=1", "option has no name"},
    {"a://h?a&&b", "option has no name"},
    {"a://h?a&", "option has no name"},
    {"a://h?a=1&a=2", "option 'a' is there twice"},
};

START_TEST(url_that_is_wrong_is_refused_by_part)
{
    ie__url url;

    ck_assert_int_eq(ie__url_parse(&url, NO_URLS[_i].text, &failure), IE_EINVAL);
    ck_assert_msg(strstr(failure.message, NO_URLS[_i].words) != NULL, "%s: %s", NO_URLS[_i].text,
                  failure.message);
}
END_TEST

START_TEST(url_has_limits)
{
    ie__url url;
    char    text[IE__URL_BYTES_MAX + 2];

    memset(text, 'a', sizeof text);
    memcpy(text, "x:", 2);
    text[IE__URL_BYTES_MAX] = '\0';
    ck_assert_int_eq(ie__url_parse(&url, text, NULL), IE_OK);
    text[IE__URL_BYTES_MAX] = 'a';
    text[IE__URL_BYTES_MAX + 1] = '\0';
    ck_assert_int_eq(ie__url_parse(&url, text, NULL), IE_ETOOBIG);
    for (int past = 0; past < 2; past++) {
        size_t used = (size_t)snprintf(text, sizeof text, "x:?");

        for (int i = 0; i < IE__URL_OPTIONS_MAX + past; i++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%so%d", i > 0 ? "&" : "", i);
        ck_assert_int_eq(ie__url_parse(&url, text, NULL), past == 0 ? IE_OK : IE_ETOOBIG);
    }
    ck_assert_int_eq(ie__url_parse(&url, NULL, NULL), IE_EINVAL);
}
END_TEST

START_TEST(url_options_are_read_with_bounds)
{
    static const char *const KNOWN[] = {"n", "bad", "plus", "space", "yes", "no", "odd", NULL};
    ie__url                  url;
    int64_t                  number = 0;
    bool                     is_set = false;

    ck_assert_int_eq(
        ie__url_parse(&url, "a:?n=10&bad=1x&plus=+1&space=%201&yes=yes&no=0&odd=maybe", NULL),
        IE_OK);
    ck_assert_int_eq(ie__url_option_number(&number, &url, "n", 5, 1, 10, &failure), IE_OK);
    ck_assert_int_eq(number, 10);
    ck_assert_int_eq(ie__url_option_number(&number, &url, "none", 5, 1, 10, &failure), IE_OK);
    ck_assert_int_eq(number, 5);
    ck_assert_int_eq(ie__url_option_number(&number, &url, "n", 5, 1, 9, &failure), IE_EINVAL);
    ck_assert_str_eq(said(), "URL: option 'n' is not a number from 1 to 9");
    ck_assert_int_eq(ie__url_option_number(&number, &url, "n", 5, 11, 90, NULL), IE_EINVAL);
    ck_assert_int_eq(ie__url_option_number(&number, &url, "bad", 5, 1, 9, NULL), IE_EINVAL);
    ck_assert_int_eq(ie__url_option_number(&number, &url, "plus", 5, 1, 9, NULL), IE_EINVAL);
    ck_assert_int_eq(ie__url_option_number(&number, &url, "space", 5, 1, 9, NULL), IE_EINVAL);
    ck_assert_int_eq(number, 5);
    ck_assert_int_eq(ie__url_option_bool(&is_set, &url, "yes", false, NULL), IE_OK);
    ck_assert(is_set);
    ck_assert_int_eq(ie__url_option_bool(&is_set, &url, "no", true, NULL), IE_OK);
    ck_assert(!is_set);
    ck_assert_int_eq(ie__url_option_bool(&is_set, &url, "none", true, NULL), IE_OK);
    ck_assert(is_set);
    ck_assert_int_eq(ie__url_option_bool(&is_set, &url, "odd", true, NULL), IE_EINVAL);
    ck_assert_int_eq(ie__url_known_options(&url, KNOWN, &failure), IE_OK);
    ck_assert_int_eq(ie__url_known_options(&url, KNOWN + 1, &failure), IE_EINVAL);
    ck_assert_str_eq(said(), "URL: unknown option 'n'; there is: bad, plus, space, yes, no, odd");
}
END_TEST

static const char *const REDACTED[][2] = {
    {"memory:name", "memory:name"},
    {"socket://127.0.0.1:9100/p?x=1", "socket://127.0.0.1:9100/p?x=1"},
    {"redis://u:secret@h:1/0?x=1", "redis://u:***@h:1/0?x=1"},
    {"redis://:secret@h", "redis://:***@h"},
    {"nats://u@h", "nats://u@h"},
    {"redis://u:se/cret@h:1", "redis://u:***@h:1"},
    {"redis://u:se?cr=et@h", "redis://u:***@h"},
    {"redis://u:se#cret@h", "redis://u:***@h"},
    {"a://u:p@q@h", "a://u:***@h"},
    {"http://h?access_token=abc&x=1&password=p", "http://h?access_token=***&x=1&password=***"},
    {"not a url", "not a url"},
    {"two\nlines", "two?lines"},
};

START_TEST(secrets_of_a_url_are_not_shown)
{
    char out[256];
    char small[8];

    ie__url_redact(out, sizeof out, REDACTED[_i][0]);
    ck_assert_str_eq(out, REDACTED[_i][1]);
    memset(small, 'x', sizeof small);
    ie__url_redact(small, sizeof small, REDACTED[_i][0]);
    ck_assert_uint_lt(strlen(small), sizeof small);
    ck_assert_int_eq(strncmp(small, out, strlen(small)), 0);
}
END_TEST

#define LOOP(tcase, test, table)                                                                   \
    tcase_add_loop_test(tcase, test, 0, (int)(sizeof(table) / sizeof *(table)))

int
main(void)
{
    Suite   *suite = suite_create("core");
    TCase   *text = tcase_create("text");
    TCase   *id = tcase_create("id");
    TCase   *topic = tcase_create("topic");
    TCase   *event = tcase_create("event");
    TCase   *headers = tcase_create("headers");
    TCase   *url = tcase_create("url");
    SRunner *runner;
    int      failed;

    LOOP(text, utf8_prefix_ends_at_the_first_malformed_byte, UTF8);
    tcase_add_test(text, every_code_point_is_valid_utf8_in_its_own_length_only);
    tcase_add_test(text, digest_never_changes_between_releases);
    tcase_add_test(text, hash_sees_every_bit_and_every_length);
    LOOP(text, time_is_read_and_written_back_in_canonical_form, TIMES);
    LOOP(text, time_refuses_everything_else, NO_TIMES);
    tcase_add_test(text, time_beyond_four_digit_years_is_shown_as_the_end);
    tcase_add_test(text, every_day_of_ten_thousand_years_comes_back);
    tcase_add_test(id, id_is_a_uuid_of_version_7_with_the_time_in_front);
    tcase_add_test(id, ids_ascend_when_the_clock_goes_back_or_stands_still);
    tcase_add_test(id, ids_of_many_threads_ascend_in_each_and_never_repeat);
    tcase_add_test(id, ids_of_parent_and_children_differ_in_their_random_part);
    tcase_add_test(id, seeded_randomness_reaches_the_ids);
    LOOP(topic, topic_and_pattern_rules, NAMES);
    tcase_add_test(topic, topic_of_255_bytes_passes_and_of_256_does_not);
    LOOP(topic, pattern_matches_whole_words, MATCHES);
    tcase_add_test(topic, matcher_agrees_with_the_naive_one);
    tcase_add_test(event, a_whole_event_and_a_bare_one_pass);
    tcase_add_test(event, event_of_another_size_is_read_with_care);
    LOOP(event, attribute_has_its_limit_and_no_control_characters, ATTRIBUTES);
    tcase_add_test(event, source_and_dataschema_are_uris);
    tcase_add_test(event, content_type_is_a_media_type);
    tcase_add_test(event, data_is_json_unless_the_content_type_says_otherwise);
    tcase_add_test(event, times_stay_within_four_digit_years);
    LOOP(event, header_rules, ONE_HEADER);
    tcase_add_test(event, headers_have_limits_in_number_and_bytes);
    tcase_add_test(event, copy_is_deep_and_whole);
    tcase_add_test(event, copy_without_memory_changes_nothing);
    tcase_add_test(headers, headers_are_stored_as_one_compact_object);
    tcase_add_test(headers, compact_headers_read_the_same_both_ways);
    tcase_add_test(headers, the_largest_legal_headers_come_back);
    LOOP(headers, stored_headers_of_a_stranger_are_checked, STORED);
    tcase_add_test(headers, stored_headers_have_limits);
    tcase_add_test(headers, headers_without_memory_change_nothing);
    LOOP(url, url_is_taken_apart, URLS);
    LOOP(url, url_that_is_wrong_is_refused_by_part, NO_URLS);
    tcase_add_test(url, url_has_limits);
    tcase_add_test(url, url_options_are_read_with_bounds);
    LOOP(url, secrets_of_a_url_are_not_shown, REDACTED);
    suite_add_tcase(suite, text);
    suite_add_tcase(suite, id);
    suite_add_tcase(suite, topic);
    suite_add_tcase(suite, event);
    suite_add_tcase(suite, headers);
    suite_add_tcase(suite, url);
    tcase_set_timeout(text, 60);
    tcase_set_timeout(id, 60);
    tcase_set_timeout(topic, 60);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
