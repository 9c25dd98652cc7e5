/* The JSON scanner: RFC 8259 to the letter, and in agreement with jansson. */
#include "json.h"

#include <check.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "support.h"

static const char *const VALID[] = {
    "{}",
    "[]",
    "\"\"",
    "0",
    "-0",
    "1",
    "-1.5",
    "1e5",
    "1E+5",
    "1e-5",
    "0.0",
    "0e0",
    "true",
    "false",
    "null",
    " \t\r\n1 \t\r\n",
    "[1,2]",
    "[ 1 , 2 ]",
    "{\"a\":1}",
    "{ \"a\" : [ { } , [ ] ] }",
    "\"plain ascii that is longer than sixteen bytes, and more than thirty-two\"",
    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
    "\"\\u0041\\u00e9\\u20AC\\uD83D\\uDE00\"",
    "\"\\u0000\"",
    "\"\x7F\"",
    "\"\xC2\x80\"",
    "\"\xE2\x82\xAC\xF0\x9F\x98\x80\"",
    "\"\xEF\xBF\xBF\"",
    "123456789012345678901234567890",
    "1e999",
    "-1e-999",
    "{\"a\":1,\"a\":2}",
    "{\"\":0}",
    "{\"\\u0000\":0}",
    "[[[[[[]]]]]]",
    "\"\xF4\x8F\xBF\xBF\"",
};

static const struct {
    const char *json;
    size_t      at; /* the byte that the message names */
} INVALID[] = {
    {"", 0},
    {" ", 1},
    {"x", 0},
    {"tru", 0},
    {"truE", 0},
    {"nul", 0},
    {"True", 0},
    {"NaN", 0},
    {"Infinity", 0},
    {"-Infinity", 1},
    {"01", 0},
    {"-01", 1},
    {"-", 1},
    {"+1", 0},
    {".5", 0},
    {"1.", 2},
    {"1.e5", 2},
    {"1e", 2},
    {"1e+", 3},
    {"0x1", 1},
    {"1 2", 2},
    {"1,", 1},
    {"[", 1},
    {"]", 0},
    {"[1", 2},
    {"[1,", 3},
    {"[1,]", 3},
    {"[,1]", 1},
    {"[1 2]", 3},
    {"[1}", 2},
    {"{", 1},
    {"}", 0},
    {"{]", 1},
    {"{1:2}", 1},
    {"{\"a\"", 4},
    {"{\"a\":", 5},
    {"{\"a\":}", 5},
    {"{\"a\":1", 6},
    {"{\"a\":1,", 7},
    {"{\"a\":1,}", 7},
    {"{\"a\" 1}", 5},
    {"{\"a\":1]", 6},
    {"{,}", 1},
    {"{a:1}", 1},
    {"{'a':1}", 1},
    {"\"", 1},
    {"\"abc", 4},
    {"\"\\\"", 3},
    {"\"\\", 1},
    {"\"\\x\"", 1},
    {"\"\\u\"", 1},
    {"\"\\u12\"", 1},
    {"\"\\u123g\"", 1},
    {"\"\\u 123\"", 1},
    {"\"\\uD800\"", 1},
    {"\"\\uDC00\"", 1},
    {"\"\\uDBFF\\u0041\"", 1},
    {"\"\\uD800\\uD800\"", 1},
    {"\"\\uD800x\"", 1},
    {"\"\\uD800\\", 1},
    {"\"\\uD83D\\uDE0\"", 1},
    {"\"\t\"", 1},
    {"\"a\nb\"", 2},
    {"\"0123456789abcdef\x01\"", 17},
    {"\"\x80\"", 1},
    {"\"\xC0\x80\"", 1},
    {"\"\xED\xA0\x80\"", 1},
    {"\"\xF4\x90\x80\x80\"", 1},
    {"\"\xC3", 1},
    {"\"\xC3\"", 1},
    {"\xEF\xBB\xBF{}", 0},
    {"{}x", 2},
    {"[]]", 2},
    {"//c\n1", 0},
    {"1/**/", 1},
    {"\v1", 0},
    {"\xC2\xA0"
     "1",
     0},
};

/* A copy at its own size, so that a sanitizer sees a read past the end. */
static char *
exact_copy(const char *bytes, size_t size)
{
    char *copy = malloc(size != 0 ? size : 1);

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, bytes, size);
    return copy;
}

START_TEST(valid_json_passes)
{
    const size_t bytes = strlen(VALID[_i]);
    char        *json = exact_copy(VALID[_i], bytes);
    ie_error     err = IE_ERROR_INIT;

    ck_assert_msg(ie__json_check(json, bytes, &err) == IE_OK, "%s: %s", VALID[_i], err.message);
    free(json);
}
END_TEST

START_TEST(invalid_json_is_refused_at_its_byte)
{
    const size_t bytes = strlen(INVALID[_i].json);
    char        *json = exact_copy(INVALID[_i].json, bytes);
    ie_error     err = IE_ERROR_INIT;
    size_t       at = SIZE_MAX;

    ck_assert_int_eq(ie__json_check(json, bytes, &err), IE_EINVAL);
    ck_assert_int_eq(sscanf(err.message, "JSON, byte %zu:", &at), 1);
    ck_assert_msg(at == INVALID[_i].at, "%s: %s", INVALID[_i].json, err.message);
    free(json);
}
END_TEST

START_TEST(a_nul_byte_is_no_end)
{
    ck_assert_int_eq(ie__json_check("1\0", 2, NULL), IE_EINVAL);
    ck_assert_int_eq(ie__json_check("\0", 1, NULL), IE_EINVAL);
    ck_assert_int_eq(ie__json_check("\"\0\"", 3, NULL), IE_EINVAL);
}
END_TEST

START_TEST(every_stop_in_a_string_is_seen_at_every_place)
{
    char json[80];

    for (size_t bytes = 1; bytes < 70; bytes++) {
        for (size_t at = 1; at <= bytes; at++) {
            for (int c = 0; c < 256; c++) {
                const bool is_plain = c >= 0x20 && c < 0x80 && c != '"' && c != '\\';

                memset(json, 'a', sizeof json);
                json[0] = json[bytes + 1] = '"';
                json[at] = (char)c;
                if ((ie__json_check(json, bytes + 2, NULL) == IE_OK) != is_plain)
                    ck_abort_msg("byte %d at %zu of %zu", c, at, bytes);
            }
        }
    }
}
END_TEST

static size_t
nest(char *out, size_t depth, bool is_object)
{
    char *at = out;

    for (size_t i = 0; i < depth; i++) {
        memcpy(at, is_object ? "{\"a\":" : "[", is_object ? 5 : 1);
        at += is_object ? 5 : 1;
    }
    *at++ = '1';
    for (size_t i = 0; i < depth; i++)
        *at++ = is_object ? '}' : ']';
    return (size_t)(at - out);
}

static ie_status
accept_member(void *user, const char *name, size_t name_bytes, ie__json_span value, ie_error *err)
{
    (void)name;
    (void)name_bytes;
    (void)value;
    (void)err;
    ++*(int *)user;
    return IE_OK;
}

START_TEST(nesting_ends_at_its_limit)
{
    char     json[8 * IE__JSON_DEPTH_MAX];
    ie_error err = IE_ERROR_INIT;
    int      count = 0;

    for (int is_object = 0; is_object < 2; is_object++) {
        ck_assert_int_eq(ie__json_check(json, nest(json, IE__JSON_DEPTH_MAX, is_object != 0), NULL),
                         IE_OK);
        ck_assert_int_eq(
            ie__json_check(json, nest(json, IE__JSON_DEPTH_MAX + 1, is_object != 0), &err),
            IE_EINVAL);
        ck_assert_ptr_nonnull(strstr(err.message, "nested too deep"));
    }
    /* A walked container does not count, nor does an array of such. */
    ck_assert_int_eq(ie__json_walk(json, nest(json, IE__JSON_DEPTH_MAX + 1, true), IE__JSON_OBJECT,
                                   accept_member, &count, NULL),
                     IE_OK);
    ck_assert_int_eq(ie__json_walk(json, nest(json, IE__JSON_DEPTH_MAX + 2, true), IE__JSON_OBJECT,
                                   accept_member, &count, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(ie__json_walk(json, nest(json, IE__JSON_DEPTH_MAX + 2, false), IE__JSON_ARRAY,
                                   accept_member, &count, NULL),
                     IE_OK);
    ck_assert_int_eq(ie__json_walk(json, nest(json, IE__JSON_DEPTH_MAX + 3, false), IE__JSON_ARRAY,
                                   accept_member, &count, NULL),
                     IE_EINVAL);
    ck_assert_int_eq(count, 2);
}
END_TEST

/* ---- the walk ----------------------------------------------------------------------------- */

static ie_status
note_member(void *user, const char *name, size_t name_bytes, ie__json_span value, ie_error *err)
{
    if (name != NULL && name_bytes == 4 && memcmp(name, "stop", 4) == 0)
        return ie_error_set(err, IE_ELIMIT, "told to stop");
    return ie__buffer_printf(user, "%.*s%s%d=%.*s;", (int)name_bytes, name != NULL ? name : "",
                             name != NULL ? ":" : "", (int)value.kind, (int)value.bytes,
                             value.start);
}

static const struct {
    const char   *json;
    ie__json_kind expected;
    ie_status     status;
    const char   *seen;
} WALKS[] = {
    {" { } ", IE__JSON_OBJECT, IE_OK, ""},
    {"[]", IE__JSON_ARRAY, IE_OK, ""},
    {" {\"a\" : 1.50 , \"b\":{\"x\":[]},\"a\":\"s\"} ", IE__JSON_OBJECT, IE_OK,
     "a:3=1.50;b:0={\"x\":[]};a:2=\"s\";"},
    {"[true, false ,null,[1],\"\\u0041\",-3]", IE__JSON_ARRAY, IE_OK,
     "4=true;5=false;6=null;1=[1];2=\"\\u0041\";3=-3;"},
    {"{\"a\\\"b\":1,\"\":2}", IE__JSON_OBJECT, IE_OK, "a\\\"b:3=1;:3=2;"},
    {"{\"a\":1,\"stop\":2,\"b\":}", IE__JSON_OBJECT, IE_ELIMIT, "a:3=1;"},
    {"{\"a\":1,}", IE__JSON_OBJECT, IE_EINVAL, "a:3=1;"},
    {"{\"a\":1]", IE__JSON_OBJECT, IE_EINVAL, "a:3=1;"},
    {"{\"a\":1}1", IE__JSON_OBJECT, IE_EINVAL, "a:3=1;"},
    {"{\"a\":1", IE__JSON_OBJECT, IE_EINVAL, "a:3=1;"},
    {"{\"a\"}", IE__JSON_OBJECT, IE_EINVAL, ""},
    {"[1,]", IE__JSON_ARRAY, IE_EINVAL, "3=1;"},
    {"{}", IE__JSON_ARRAY, IE_EINVAL, ""},
    {"[]", IE__JSON_OBJECT, IE_EINVAL, ""},
    {"", IE__JSON_OBJECT, IE_EINVAL, ""},
    {"{", IE__JSON_OBJECT, IE_EINVAL, ""},
    {"[ ", IE__JSON_ARRAY, IE_EINVAL, ""},
};

START_TEST(walk_reports_members_in_order_and_validates)
{
    const size_t bytes = strlen(WALKS[_i].json);
    char        *json = exact_copy(WALKS[_i].json, bytes);
    ie_buffer    seen = {0};
    ie_error     err = IE_ERROR_INIT;

    ck_assert_int_eq(ie__json_walk(json, bytes, WALKS[_i].expected, note_member, &seen, &err),
                     WALKS[_i].status);
    ck_assert_int_eq(err.status, WALKS[_i].status);
    ck_assert_int_eq(ie__buffer_add(&seen, "", 1), IE_OK);
    ck_assert_str_eq(seen.data, WALKS[_i].seen);
    ie_buffer_fini(&seen);
    free(json);
}
END_TEST

/* ---- strings, media types, lines ---------------------------------------------------------- */

static const char *const ESCAPED[][2] = {
    {"\"\"", ""},
    {"\"abc\"", "abc"},
    {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
    {"\"\\u0041\\u00e9\\u20aC\\uD83D\\uDE00!\"", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80!"},
    {"\"\\uD800\\uDC00\\uDBFF\\uDFFF\"", "\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"},
    {"\"x\\u007f\\u0080\\u07ff\\u0800\"", "x\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80"},
};

START_TEST(escapes_are_undone)
{
    const size_t        bytes = strlen(ESCAPED[_i][0]);
    const ie__json_span span = {ESCAPED[_i][0], bytes, IE__JSON_STRING};
    char               *out = malloc(bytes);
    size_t              size = 0;

    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(ie__json_unescape(out, &size, span, NULL), IE_OK);
    ck_assert_uint_eq(size, strlen(ESCAPED[_i][1]));
    ck_assert_mem_eq(out, ESCAPED[_i][1], size);
    free(out);
}
END_TEST

START_TEST(broken_escapes_are_refused)
{
    static const char *const BAD[] = {"\"\\uD800\"", "\"\\uDC00\"", "\"\\x\"", "\"\\u12\"",
                                      "\"\\\""};
    char                     out[16];
    size_t                   size = 0;
    const ie__json_span      number = {"12", 2, IE__JSON_NUMBER};

    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        const ie__json_span span = {BAD[i], strlen(BAD[i]), IE__JSON_STRING};

        ck_assert_int_eq(ie__json_unescape(out, &size, span, NULL), IE_EINVAL);
    }
    ck_assert_int_eq(ie__json_unescape(out, &size, number, NULL), IE_EINVAL);
}
END_TEST

START_TEST(media_types_that_carry_json)
{
    static const char *const JSON[] = {"application/json",
                                       "APPLICATION/JSON",
                                       "text/json",
                                       "application/json; charset=utf-8",
                                       "application/json ;a=b",
                                       "application/vnd.x+json",
                                       "a/b+JSON;x=y"};
    static const char *const OTHER[] = {"text/plain",
                                        "application/jsonx",
                                        "application/xml",
                                        "text/plain; a=application/json",
                                        "json",
                                        "+jso",
                                        "",
                                        "application/json-seq",
                                        "application/octet-stream"};

    ck_assert(ie__json_is_media_type(NULL));
    for (size_t i = 0; i < sizeof JSON / sizeof *JSON; i++)
        ck_assert_msg(ie__json_is_media_type(JSON[i]), "%s", JSON[i]);
    for (size_t i = 0; i < sizeof OTHER / sizeof *OTHER; i++)
        ck_assert_msg(!ie__json_is_media_type(OTHER[i]), "%s", OTHER[i]);
}
END_TEST

START_TEST(one_line_keeps_the_value)
{
    char json[] = "{\n\t\"a\\n\" :\r\n[1,\n2]\r}\n";

    ie__json_one_line(json, sizeof json - 1);
    ck_assert_str_eq(json, "{ \t\"a\\n\" :  [1, 2] } ");
}
END_TEST

/* ---- against jansson ---------------------------------------------------------------------- */

/* Does jansson agree? Also true where we differ on purpose; see the head of json.c. */
static bool
jansson_agrees(const char *json, size_t bytes)
{
    ie_error     err = IE_ERROR_INIT;
    json_error_t theirs;
    const bool   is_valid = ie__json_check(json, bytes, &err) == IE_OK;
    json_t      *value = json_loadb(json, bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &theirs);

    if (value != NULL) {
        json_decref(value);
        return is_valid || strstr(err.message, "nested too deep") != NULL;
    }
    switch (json_error_code(&theirs)) {
    case json_error_numeric_overflow:
    case json_error_null_byte_in_key:
    case json_error_stack_overflow:
        return true; /* it stopped there, and says nothing on the rest */
    default: return !is_valid;
    }
}

START_TEST(jansson_agrees_on_the_corpus_and_on_its_mutations)
{
    static const char *const LONGER[] = {
        "{\"order_id\":\"o-1\",\"items\":[{\"sku\":\"A\",\"qty\":2,\"price\":19.90}],\"total\":-4e-"
        "2,"
        "\"paid\":true,\"note\":null,\"text\":\"\\u00e9\\uD83D\\uDE00 \xE2\x82\xAC "
        "\\\"quoted\\\"\"}",
        "[[],[[]],{\"a\":{\"b\":{\"c\":[1,2,3,{\"d\":\"e\"}]}}},\"\\\\\",\"\\/\",0,-0,1.25E+10]",
    };
    /* What mutations are made of: the bytes that mean something, and a few that do not. */
    static const char BYTES[] =
        "{}[]\",:\\/ \t\n0123456789+-.eEtrufalsn\x01\x7F\x80\xBF\xC2\xE2\xED"
        "\xF0\xF4\xFF";
    const size_t texts = sizeof VALID / sizeof *VALID + sizeof INVALID / sizeof *INVALID +
                         sizeof LONGER / sizeof *LONGER;
    const int64_t deadline_ns = ie__mono_ns() + INT64_C(5000000000);
    uint64_t      valid = 0;
    char          json[512];

    ie__random_seed(test_seed());
    for (uint64_t n = 0; n < test_scale(200000) && ie__mono_ns() < deadline_ns; n++) {
        size_t      pick = n < texts ? n : ie__random_below(texts);
        const char *text;
        size_t      bytes;

        if (pick < sizeof VALID / sizeof *VALID)
            text = VALID[pick];
        else if ((pick -= sizeof VALID / sizeof *VALID) < sizeof INVALID / sizeof *INVALID)
            text = INVALID[pick].json;
        else
            text = LONGER[pick - sizeof INVALID / sizeof *INVALID];
        bytes = strlen(text);
        memcpy(json, text, bytes);
        for (uint64_t changes = n < texts ? 0 : 1 + ie__random_below(3); changes > 0; changes--) {
            const size_t at = ie__random_below(bytes + 1);
            const char   byte = BYTES[ie__random_below(sizeof BYTES - 1)];

            switch (ie__random_below(3)) {
            case 0: /* insert */
                memmove(json + at + 1, json + at, bytes - at);
                json[at] = byte;
                bytes++;
                break;
            case 1: /* delete */
                if (at < bytes) {
                    memmove(json + at, json + at + 1, bytes - at - 1);
                    bytes--;
                }
                break;
            default: /* replace */
                if (at < bytes)
                    json[at] = byte;
            }
        }
        if (!jansson_agrees(json, bytes))
            ck_abort_msg("we differ on: %.*s", (int)bytes, json);
        valid += ie__json_check(json, bytes, NULL) == IE_OK;
    }
    ie__random_seed(0);
    ck_assert_uint_gt(valid, 0);
}
END_TEST

#define LOOP(tcase, test, table)                                                                   \
    tcase_add_loop_test(tcase, test, 0, (int)(sizeof(table) / sizeof *(table)))

int
main(void)
{
    Suite   *suite = suite_create("json");
    TCase   *check = tcase_create("check");
    TCase   *walk = tcase_create("walk");
    TCase   *text = tcase_create("text");
    TCase   *jansson = tcase_create("jansson");
    SRunner *runner;
    int      failed;

    LOOP(check, valid_json_passes, VALID);
    LOOP(check, invalid_json_is_refused_at_its_byte, INVALID);
    tcase_add_test(check, a_nul_byte_is_no_end);
    tcase_add_test(check, every_stop_in_a_string_is_seen_at_every_place);
    tcase_add_test(check, nesting_ends_at_its_limit);
    LOOP(walk, walk_reports_members_in_order_and_validates, WALKS);
    LOOP(text, escapes_are_undone, ESCAPED);
    tcase_add_test(text, broken_escapes_are_refused);
    tcase_add_test(text, media_types_that_carry_json);
    tcase_add_test(text, one_line_keeps_the_value);
    tcase_add_test(jansson, jansson_agrees_on_the_corpus_and_on_its_mutations);
    tcase_set_timeout(jansson, 60);
    suite_add_tcase(suite, check);
    suite_add_tcase(suite, walk);
    suite_add_tcase(suite, text);
    suite_add_tcase(suite, jansson);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
