/* CloudEvents JSON: what is written, what is read, what is refused, and that both ends agree. */
#include <ie/cloudevents.h>

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "json.h"
#include "support.h"

/* As ck_assert(), for long loops: check's own tells its parent each time that it passed. */
#define QUICK_ASSERT(claim)                                                                        \
    do {                                                                                           \
        if (!(claim))                                                                              \
            ck_abort_msg("%s", #claim);                                                            \
    } while (0)

static ie_error failure;

static const ie_header HEADERS[] = {
    {"tenant", "acme \"east\"", IE_HEADER_STRING, 0},
    {"attempt", "-3", IE_HEADER_INTEGER, 0},
    {"deprecated", "true", IE_HEADER_BOOLEAN, 0},
};

static ie_event
event_named(void)
{
    ie_event event = IE_EVENT_INIT;

    event.id = "1";
    event.source = "/s";
    event.type = "t";
    return event;
}

static void
assert_encodes(const ie_event *event, const char *json)
{
    ie_buffer out = {0};

    ck_assert_msg(ie_cloudevents_encode(&out, event, &failure) == IE_OK, "%s", failure.message);
    ck_assert_int_eq(ie__buffer_add(&out, "", 1), IE_OK);
    ck_assert_str_eq(out.data, json);
    ie_buffer_fini(&out);
}

/* ---- encode ------------------------------------------------------------------------------- */

#define HEAD "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\""

START_TEST(a_whole_event_is_written_with_typed_extensions_and_untouched_data)
{
    ie_event event = event_named();

    event.topic = "orders.placed";
    event.key = "customer-42";
    event.subject = "a\\b";
    event.dataschema = "https://example.com/s";
    event.content_type = "application/json";
    event.data = "{ \"n\" : 1.10e+2,\"big\":12345678901234567890 }";
    event.data_bytes = strlen(event.data);
    event.headers = HEADERS;
    event.header_count = 3;
    event.time_ms = 1795296600123;
    event.not_before_ms = 1795296600000;
    event.expires_at_ms = 1795296601000;
    event.position = 9;
    event.dedupe_key = "never sent";
    assert_encodes(
        &event, HEAD
        ",\"subject\":\"a\\\\b\",\"time\":\"2026-11-21T21:30:00.123Z\","
        "\"topic\":\"orders.placed\",\"partitionkey\":\"customer-42\","
        "\"notbefore\":\"2026-11-21T21:30:00.000Z\",\"expirytime\":\"2026-11-21T21:30:01.000Z\","
        "\"tenant\":\"acme \\\"east\\\"\",\"attempt\":-3,\"deprecated\":true,"
        "\"dataschema\":\"https://example.com/s\",\"datacontenttype\":\"application/json\","
        "\"data\":{ \"n\" : 1.10e+2,\"big\":12345678901234567890 }}");
}
END_TEST

static const struct {
    const char *content_type;
    const char *data;
    size_t      bytes;
    const char *json;
} DATA[] = {
    {NULL, NULL, 0, ""},
    {NULL, "null", 4, ",\"data\":null"},
    {NULL, "\"s\"", 3, ",\"data\":\"s\""},
    {"application/x+json", "[1]", 3, ",\"datacontenttype\":\"application/x+json\",\"data\":[1]"},
    {"text/plain", NULL, 0, ",\"datacontenttype\":\"text/plain\""},
    {"text/plain", "", 0, ",\"datacontenttype\":\"text/plain\",\"data\":\"\""},
    {"text/plain", "a\"b\n\0c", 6,
     ",\"datacontenttype\":\"text/plain\",\"data\":\"a\\\"b\\n\\u0000c\""},
    {"text/xml", "<a>\xC3\xA9</a>", 9,
     ",\"datacontenttype\":\"text/xml\",\"data\":\"<a>\xC3\xA9</a>\""},
    {"text/plain", "\xFF", 1, ",\"datacontenttype\":\"text/plain\",\"data_base64\":\"/w==\""},
    {"a/b", "\xFF\xFE", 2, ",\"datacontenttype\":\"a/b\",\"data_base64\":\"//4=\""},
    {"a/b", "\xFF\xFE\x00", 3, ",\"datacontenttype\":\"a/b\",\"data_base64\":\"//4A\""},
    {"a/b", "\xFF\xFE\x00M", 4, ",\"datacontenttype\":\"a/b\",\"data_base64\":\"//4ATQ==\""},
};

START_TEST(data_is_written_as_its_content_type_says)
{
    ie_event event = event_named();
    char     json[256];

    event.content_type = DATA[_i].content_type;
    event.data = DATA[_i].data;
    event.data_bytes = DATA[_i].bytes;
    (void)snprintf(json, sizeof json, HEAD "%s}", DATA[_i].json);
    assert_encodes(&event, json);
}
END_TEST

START_TEST(an_event_without_its_names_or_with_bad_data_is_not_written)
{
    ie_buffer out = {0};
    ie_event  event = event_named();

    ck_assert_int_eq(ie__buffer_text(&out, "before"), IE_OK);
    event.id = NULL;
    ck_assert_int_eq(ie_cloudevents_encode(&out, &event, &failure), IE_EINVAL);
    ck_assert_str_eq(failure.message, "id is missing");
    event = event_named();
    event.source = NULL;
    ck_assert_int_eq(ie_cloudevents_encode(&out, &event, NULL), IE_EINVAL);
    event = event_named();
    event.type = NULL;
    ck_assert_int_eq(ie_cloudevents_encode(&out, &event, NULL), IE_EINVAL);
    event = event_named();
    event.data = "{} {}";
    event.data_bytes = 5;
    ck_assert_int_eq(ie_cloudevents_encode(&out, &event, NULL), IE_EINVAL);
    event = event_named();
    event.topic = "no.*";
    ck_assert_int_eq(ie_cloudevents_encode(&out, &event, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_cloudevents_encode(&out, NULL, NULL), IE_EINVAL);
    ck_assert_uint_eq(out.size, 6);
    ie_buffer_fini(&out);
}
END_TEST

START_TEST(batch_is_an_array_that_may_be_empty)
{
    const ie_event        a = event_named();
    ie_event              bad = event_named();
    const ie_event *const two[] = {&a, &a};
    const ie_event *const wrong[] = {&a, &bad};
    ie_buffer             out = {0};
    ie_event            **events = NULL;
    size_t                count = 9;

    bad.type = "";
    ck_assert_int_eq(ie_cloudevents_encode_batch(&out, NULL, 0, &failure), IE_OK);
    ck_assert_int_eq(ie_cloudevents_encode_batch(&out, two, 2, &failure), IE_OK);
    ck_assert_int_eq(ie_cloudevents_encode_batch(&out, wrong, 2, &failure), IE_EINVAL);
    ck_assert_str_eq(failure.message, "event 2 of the batch: type is empty");
    ck_assert_int_eq(ie__buffer_add(&out, "", 1), IE_OK);
    ck_assert_str_eq(out.data, "[][" HEAD "}," HEAD "}]");
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, out.data, 2, NULL), IE_OK);
    ck_assert_uint_eq(count, 0);
    ie_cloudevents_batch_free(events, count);
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, out.data + 2, out.size - 3, NULL),
                     IE_OK);
    ck_assert_uint_eq(count, 2);
    ck_assert_str_eq(events[1]->type, "t");
    ie_cloudevents_batch_free(events, count);
    ie_cloudevents_batch_free(NULL, 0);
    ie_buffer_fini(&out);
}
END_TEST

/* ---- decode ------------------------------------------------------------------------------- */

/* Decode a copy at its own size, so that a sanitizer sees a read past the end. */
static ie_status
decode(ie_event **out, const char *json)
{
    const size_t bytes = strlen(json);
    char        *copy = malloc(bytes + 1);
    ie_status    status;

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, json, bytes);
    ie_error_clear(&failure);
    status = ie_cloudevents_decode(out, copy, bytes, &failure);
    free(copy);
    return status;
}

START_TEST(a_whole_event_is_read)
{
    ie_event *event = NULL;

    ck_assert_msg(
        decode(
            &event,
            "{ \"data\" : {\"n\" : 1.10} , \"id\":\"A\\u0041\",\"source\":\"https:\\/\\/x\","
            "\"type\":\"t\",\"\\u0073pecversion\":\"1.0\",\"time\":\"2026-11-21T22:30:00.1239+01:"
            "00\","
            "\"topic\":\"a.b\",\"partitionkey\":\"k\",\"subject\":\"s\",\"dataschema\":\"urn:x\","
            "\"expirytime\":\"2026-11-21T21:30:01Z\",\"notbefore\":\"2026-11-21T21:30:00Z\","
            "\"datacontenttype\":\"application/json\",\"tenant\":\"\xE2\x82\xAC\",\"n\":-0,"
            "\"b\":false,\"gone\":null}") == IE_OK,
        "%s", failure.message);
    ck_assert_uint_eq(event->size, sizeof *event);
    ck_assert_str_eq(event->id, "AA");
    ck_assert_str_eq(event->source, "https://x");
    ck_assert_str_eq(event->type, "t");
    ck_assert_str_eq(event->topic, "a.b");
    ck_assert_str_eq(event->key, "k");
    ck_assert_str_eq(event->subject, "s");
    ck_assert_str_eq(event->dataschema, "urn:x");
    ck_assert_str_eq(event->content_type, "application/json");
    ck_assert_int_eq(event->time_ms, 1795296600123);
    ck_assert_int_eq(event->expires_at_ms, 1795296601000);
    ck_assert_int_eq(event->not_before_ms, 1795296600000);
    ck_assert_uint_eq(event->data_bytes, 12);
    ck_assert_mem_eq(event->data, "{\"n\" : 1.10}", 12);
    ck_assert_uint_eq(event->header_count, 3);
    ck_assert_str_eq(ie_event_header(event, "tenant"), "\xE2\x82\xAC");
    ck_assert_str_eq(ie_event_header(event, "n"), "0");
    ck_assert_str_eq(ie_event_header(event, "b"), "false");
    ck_assert_int_eq(event->headers[0].type, IE_HEADER_STRING);
    ck_assert_int_eq(event->headers[1].type, IE_HEADER_INTEGER);
    ck_assert_int_eq(event->headers[2].type, IE_HEADER_BOOLEAN);
    ie_event_free(event);
}
END_TEST

START_TEST(null_is_absent)
{
    ie_event *event = NULL;

    ck_assert_int_eq(
        decode(&event,
               HEAD ",\"subject\":null,\"time\":null,\"datacontenttype\":null,"
                    "\"dataschema\":null,\"partitionkey\":null,\"topic\":null,"
                    "\"expirytime\":null,\"notbefore\":null,\"data_base64\":null,\"x\":null}"),
        IE_OK);
    ck_assert_ptr_null(event->subject);
    ck_assert_ptr_null(event->content_type);
    ck_assert_ptr_null(event->dataschema);
    ck_assert_ptr_null(event->key);
    ck_assert_ptr_null(event->topic);
    ck_assert_ptr_null(event->data);
    ck_assert_int_eq(event->time_ms, 0);
    ck_assert_int_eq(event->expires_at_ms, 0);
    ck_assert_uint_eq(event->header_count, 0);
    ck_assert_ptr_null(event->headers);
    ie_event_free(event);
}
END_TEST

static const struct {
    const char *json; /* after the four required attributes */
    const char *content_type;
    const char *data; /* NULL: none */
    size_t      bytes;
} READ[] = {
    {"", NULL, NULL, 0},
    {",\"data\":null", NULL, "null", 4},
    {",\"data\":\"{\\\"a\\\":1}\"", NULL, "\"{\\\"a\\\":1}\"", 11}, /* never parsed again */
    {",\"data\": 1.50 ", NULL, "1.50", 4},
    {",\"data\":[ 1, 2 ]", NULL, "[ 1, 2 ]", 8},
    {",\"data\":1,\"data_base64\":null", NULL, "1", 1},
    {",\"data\":\"a\\n\\u0000b\",\"datacontenttype\":\"text/plain\"", "text/plain", "a\n\0b", 4},
    {",\"data\":\"\",\"datacontenttype\":\"text/plain\"", "text/plain", "", 0},
    {",\"data\":null,\"datacontenttype\":\"text/plain\"", "text/plain", NULL, 0},
    {",\"datacontenttype\":\"text/plain\"", "text/plain", NULL, 0},
    {",\"data_base64\":\"\"", "application/octet-stream", "", 0},
    {",\"data_base64\":\"AA==\"", "application/octet-stream", "\0", 1},
    {",\"data_base64\":\"\\/\\/4=\"", "application/octet-stream", "\xFF\xFE", 2},
    {",\"data_base64\":\"//4ATQ==\",\"datacontenttype\":\"a/b\"", "a/b", "\xFF\xFE\0M", 4},
    {",\"data_base64\":\"MQ==\",\"datacontenttype\":\"application/json\"", "application/json", "1",
     1},
};

START_TEST(data_is_read_as_its_content_type_says)
{
    ie_event *event = NULL;
    char      json[256];

    (void)snprintf(json, sizeof json, HEAD "%s}", READ[_i].json);
    ck_assert_msg(decode(&event, json) == IE_OK, "%s: %s", json, failure.message);
    ck_assert_int_eq(event->content_type == NULL, READ[_i].content_type == NULL);
    if (event->content_type != NULL)
        ck_assert_str_eq(event->content_type, READ[_i].content_type);
    ck_assert_int_eq(event->data == NULL, READ[_i].data == NULL);
    ck_assert_uint_eq(event->data_bytes, READ[_i].bytes);
    if (READ[_i].bytes > 0)
        ck_assert_mem_eq(event->data, READ[_i].data, READ[_i].bytes);
    ie_event_free(event);
}
END_TEST

static const struct {
    const char *json;
    const char *words;
} REFUSED[] = {
    {"", "JSON, byte 0"},
    {"[]", "not an object"},
    {HEAD, "JSON, byte 54: ends inside"},
    {HEAD "}x", "something follows"},
    {"{}", "specversion is missing"},
    {"{\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}", "specversion is missing"},
    {"{\"specversion\":\"0.3\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}",
     "specversion is not \"1.0\" (byte 15)"},
    {"{\"specversion\":1.0,\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}", "specversion is not"},
    {"{\"specversion\":null,\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}",
     "specversion is missing"},
    {"{\"specversion\":\"1.0\",\"source\":\"/s\",\"type\":\"t\"}", "id is missing"},
    {"{\"specversion\":\"1.0\",\"id\":null,\"source\":\"/s\",\"type\":\"t\"}", "id is missing"},
    {"{\"specversion\":\"1.0\",\"id\":\"\",\"source\":\"/s\",\"type\":\"t\"}",
     "id is empty (byte 26)"},
    {"{\"specversion\":\"1.0\",\"id\":1,\"source\":\"/s\",\"type\":\"t\"}", "id is not a string"},
    {"{\"specversion\":\"1.0\",\"id\":\"1\",\"type\":\"t\"}", "source is missing"},
    {"{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"\",\"type\":\"t\"}", "source is empty"},
    {"{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"a b\",\"type\":\"t\"}", "source contains"},
    {"{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\"}", "type is missing"},
    {"{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"\"}", "type is empty"},
    {HEAD ",\"id\":\"2\"}", "id is there twice (byte 56)"},
    {HEAD ",\"\\u0069d\":\"2\"}", "id is there twice"},
    {HEAD ",\"x\":1,\"x\":1}", "attribute 'x' is there twice"},
    {HEAD ",\"x\":null,\"x\":1}", "attribute 'x' is there twice"},
    {HEAD ",\"data\":1,\"data\":1}", "data is there twice"},
    {HEAD ",\"data\":1,\"data_base64\":\"\"}", "data stands beside data_base64"},
    {HEAD ",\"data\":null,\"data_base64\":\"\"}", "data stands beside data_base64"},
    {HEAD ",\"subject\":\"\"}", "subject is empty"},
    {HEAD ",\"subject\":1}", "subject is not a string"},
    {HEAD ",\"subject\":\"\\u0000\"}", "subject contains a control character"},
    {HEAD ",\"subject\":\"\\u0085\"}", "subject contains a control character"},
    {HEAD ",\"subject\":\"\\uFFFE\"}", "subject contains a Unicode non-character"},
    {HEAD ",\"subject\":\"\\uD800\"}", "lone surrogate"},
    {HEAD ",\"dataschema\":\"/relative\"}", "dataschema is not an absolute URI"},
    {HEAD ",\"datacontenttype\":\"json\"}", "datacontenttype is not a media type"},
    {HEAD ",\"partitionkey\":\"\"}", "partitionkey is empty"},
    {HEAD ",\"partitionkey\":1}", "partitionkey is not a string"},
    {HEAD ",\"topic\":\"a.*\"}", "topic contains one of the wildcards"},
    {HEAD ",\"topic\":\"a..b\"}", "topic has an empty word"},
    {HEAD ",\"time\":\"yesterday\"}", "time is not an RFC 3339 timestamp"},
    {HEAD ",\"time\":1}", "time is not an RFC 3339 timestamp"},
    {HEAD ",\"expirytime\":\"2026-11-21\"}", "expirytime is not"},
    {HEAD ",\"notbefore\":\"\"}", "notbefore is not"},
    {HEAD ",\"X\":1}", "attribute 'X' has a name with other characters"},
    {HEAD ",\"a_b\":1}", "attribute 'a_b' has a name with other characters"},
    {HEAD ",\"a\\nb\":1}", "attribute 'a?b' has a name with other characters"},
    {HEAD ",\"\":1}", "empty name"},
    {HEAD ",\"x\":1.5}", "x is not a 32-bit integer"},
    {HEAD ",\"x\":1.0}", "x is not a 32-bit integer"},
    {HEAD ",\"x\":1e3}", "x is not a 32-bit integer"},
    {HEAD ",\"x\":2147483648}", "x is not a 32-bit integer"},
    {HEAD ",\"x\":{}}", "x is neither a string"},
    {HEAD ",\"x\":[]}", "x is neither a string"},
    {HEAD ",\"x\":\"a\\rb\"}", "x contains a control character"},
    {HEAD ",\"data\":{},\"datacontenttype\":\"text/plain\"}", "data is not a string"},
    {HEAD ",\"data_base64\":1}", "data_base64 is not a string"},
    {HEAD ",\"data_base64\":\"A\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AA\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AAA\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"A===\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"====\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AB==\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AAB=\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AA==AAAA\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AA A\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"AA-_\"}", "data_base64 is not base64"},
    {HEAD ",\"data_base64\":\"/w==\",\"datacontenttype\":\"application/json\"}",
     "does not hold JSON"},
    {HEAD ",\"data_base64\":\"\",\"datacontenttype\":\"a/b+json\"}", "does not hold JSON"},
};

START_TEST(what_the_specification_forbids_is_refused_by_member_and_byte)
{
    ie_event *event = NULL;

    ck_assert_int_eq(decode(&event, REFUSED[_i].json), IE_EINVAL);
    ck_assert_ptr_null(event);
    ck_assert_msg(strstr(failure.message, REFUSED[_i].words) != NULL, "%s: %s", REFUSED[_i].json,
                  failure.message);
}
END_TEST

START_TEST(decoding_has_limits)
{
    ie_buffer json = {0};
    ie_event *event = NULL;

    for (int past = 0; past < 2; past++) { /* extension attributes */
        json.size = 0;
        ck_assert_int_eq(ie__buffer_text(&json, HEAD), IE_OK);
        for (int i = 0; i < IE_HEADERS_MAX + past; i++)
            ck_assert_int_eq(ie__buffer_printf(&json, ",\"h%d\":%d,\"n%d\":null", i, i, i), IE_OK);
        ck_assert_int_eq(ie__buffer_text(&json, "}"), IE_OK);
        ck_assert_int_eq(ie_cloudevents_decode(&event, json.data, json.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0)
            ck_assert_uint_eq(event->header_count, IE_HEADERS_MAX);
        if (past == 0)
            ie_event_free(event);
    }
    for (int past = 0; past < 2; past++) { /* their bytes */
        json.size = 0;
        ck_assert_int_eq(ie__buffer_text(&json, HEAD ",\"h\":\""), IE_OK);
        for (int i = 0; i < IE_HEADERS_BYTES_MAX - 1 + past; i++)
            QUICK_ASSERT(ie__buffer_text(&json, "x") == IE_OK);
        ck_assert_int_eq(ie__buffer_text(&json, "\"}"), IE_OK);
        ck_assert_int_eq(ie_cloudevents_decode(&event, json.data, json.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0)
            ie_event_free(event);
    }
    for (int past = 0; past < 2; past++) { /* an attribute */
        json.size = 0;
        ck_assert_int_eq(ie__buffer_text(&json, HEAD ",\"subject\":\""), IE_OK);
        for (int i = 0; i < IE_ATTRIBUTE_BYTES_MAX + past; i++)
            ck_assert_int_eq(ie__buffer_text(&json, "\\u0078"), IE_OK);
        ck_assert_int_eq(ie__buffer_text(&json, "\"}"), IE_OK);
        ck_assert_int_eq(ie_cloudevents_decode(&event, json.data, json.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0)
            ie_event_free(event);
    }
    for (int form = 0; form < 3; form++) { /* data: raw JSON, text, base64 */
        static const char *const START[] = {
            ",\"data\":\"", ",\"datacontenttype\":\"a/b\",\"data\":\"", ",\"data_base64\":\""};
        static const size_t LETTERS[] = {IE_DATA_BYTES_MAX - 2, IE_DATA_BYTES_MAX,
                                         IE_DATA_BYTES_MAX / 3 * 4};

        for (size_t past = 0; past < 2; past++) {
            const size_t letters = LETTERS[form] + (form == 2 ? past * 4 : past);

            json.size = 0;
            ck_assert_int_eq(ie__buffer_text(&json, HEAD), IE_OK);
            ck_assert_int_eq(ie__buffer_text(&json, START[form]), IE_OK);
            ck_assert_int_eq(ie__buffer_reserve(&json, letters + 2), IE_OK);
            memset(json.data + json.size, 'A', letters);
            json.size += letters;
            ck_assert_int_eq(ie__buffer_text(&json, "\"}"), IE_OK);
            ck_assert_int_eq(ie_cloudevents_decode(&event, json.data, json.size, NULL),
                             past == 0 ? IE_OK : IE_ETOOBIG);
            if (past == 0)
                ie_event_free(event);
        }
    }
    ie_buffer_fini(&json);
}
END_TEST

START_TEST(batch_has_a_limit_and_names_the_event_that_is_wrong)
{
    ie_buffer  json = {0};
    ie_event **events = NULL;
    size_t     count = 0;

    for (int past = 0; past < 2; past++) {
        json.size = 0;
        for (int i = 0; i < IE_CLOUDEVENTS_BATCH_MAX + past; i++)
            QUICK_ASSERT(ie__buffer_printf(&json, "%s" HEAD "}", i == 0 ? "[" : ",") == IE_OK);
        ck_assert_int_eq(ie__buffer_text(&json, "]"), IE_OK);
        ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, json.data, json.size, NULL),
                         past == 0 ? IE_OK : IE_ETOOBIG);
        if (past == 0) {
            ck_assert_uint_eq(count, IE_CLOUDEVENTS_BATCH_MAX);
            ie_cloudevents_batch_free(events, count);
        }
    }
    events = NULL;
    json.size = 0;
    ck_assert_int_eq(ie__buffer_text(&json, "[" HEAD "},{\"specversion\":\"1.0\",\"id\":\"\"}]"),
                     IE_OK);
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, json.data, json.size, &failure),
                     IE_EINVAL);
    ck_assert_str_eq(failure.message, "event 2 of the batch: id is empty (byte 83)");
    ck_assert_int_eq(strncmp(json.data + 83, "\"\"}", 3), 0);
    ie_error_clear(&failure);
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, "[1]", 3, &failure), IE_EINVAL);
    ck_assert_str_eq(failure.message, "event 1 of the batch is not an object (byte 1)");
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, "{}", 2, NULL), IE_EINVAL);
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, "[", 1, NULL), IE_EINVAL);
    ck_assert_ptr_null(events);
    ie_buffer_fini(&json);
}
END_TEST

START_TEST(the_deepest_legal_data_survives_envelope_and_batch)
{
    char                  data[2 * IE__JSON_DEPTH_MAX];
    ie_event              event = event_named();
    const ie_event *const one[] = {&event};
    ie_event             *again = NULL;
    ie_event            **events = NULL;
    size_t                count = 0;
    ie_buffer             json = {0};

    memset(data, '[', IE__JSON_DEPTH_MAX);
    memset(data + IE__JSON_DEPTH_MAX, ']', IE__JSON_DEPTH_MAX);
    event.data = data;
    event.data_bytes = sizeof data;
    ck_assert_int_eq(ie_cloudevents_encode(&json, &event, NULL), IE_OK);
    ck_assert_int_eq(ie_cloudevents_decode(&again, json.data, json.size, NULL), IE_OK);
    ck_assert_mem_eq(again->data, data, sizeof data);
    ie_event_free(again);
    json.size = 0;
    ck_assert_int_eq(ie_cloudevents_encode_batch(&json, one, 1, NULL), IE_OK);
    ck_assert_int_eq(ie_cloudevents_decode_batch(&events, &count, json.data, json.size, NULL),
                     IE_OK);
    ie_cloudevents_batch_free(events, count);
    ie_buffer_fini(&json);
}
END_TEST

START_TEST(an_event_that_expired_in_1970_stays_expired)
{
    ie_event *event = NULL;

    ck_assert_int_eq(decode(&event, HEAD ",\"expirytime\":\"1970-01-01T00:00:00Z\"}"), IE_OK);
    ck_assert_int_eq(event->expires_at_ms, 1);
    ie_event_free(event);
}
END_TEST

/* ---- both ways ---------------------------------------------------------------------------- */

static bool
same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static void
assert_same(const ie_event *a, const ie_event *b)
{
    QUICK_ASSERT(same_text(a->topic, b->topic));
    QUICK_ASSERT(same_text(a->key, b->key));
    QUICK_ASSERT(same_text(a->id, b->id));
    QUICK_ASSERT(same_text(a->type, b->type));
    QUICK_ASSERT(same_text(a->source, b->source));
    QUICK_ASSERT(same_text(a->subject, b->subject));
    QUICK_ASSERT(same_text(a->dataschema, b->dataschema));
    QUICK_ASSERT(same_text(a->content_type, b->content_type));
    QUICK_ASSERT(a->time_ms == b->time_ms);
    QUICK_ASSERT(a->not_before_ms == b->not_before_ms);
    QUICK_ASSERT(a->expires_at_ms == b->expires_at_ms);
    QUICK_ASSERT((a->data == NULL) == (b->data == NULL));
    QUICK_ASSERT(a->data_bytes == b->data_bytes);
    QUICK_ASSERT(a->data_bytes == 0 || memcmp(a->data, b->data, a->data_bytes) == 0);
    QUICK_ASSERT(a->header_count == b->header_count);
    for (size_t i = 0; i < a->header_count; i++) {
        QUICK_ASSERT(same_text(a->headers[i].name, b->headers[i].name));
        QUICK_ASSERT(same_text(a->headers[i].value, b->headers[i].value));
        QUICK_ASSERT(a->headers[i].type == b->headers[i].type);
    }
}

/* Text of 1..bytes_max bytes from pieces that are legal in attributes, or with awkward ones. */
static const char *
random_text(char *out, size_t bytes_max, bool is_awkward)
{
    static const char *const PIECES[] = {
        "a",  "B", "7",  "-",  ".", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80",
        "zz", "/", "\"", "\\", " ", "{",        "\xC2\xA0",     "\xEF\xBF\xBD"};
    const size_t goal = 1 + ie__random_below(bytes_max);
    size_t       used = 0;

    do {
        const char  *piece = PIECES[ie__random_below(is_awkward ? 16 : 9)];
        const size_t size = strlen(piece);

        if (used + size > bytes_max)
            break;
        memcpy(out + used, piece, size);
        used += size;
    } while (used < goal);
    if (used == 0)
        out[used++] = 'x';
    out[used] = '\0';
    return out;
}

typedef struct random_event {
    ie_event  event;
    ie_header headers[8];
    char      names[8][48];
    char      values[8][64];
    char      texts[8][300];
    char      data[512];
} random_event;

static const char *
maybe(const char *text)
{
    return ie__random_below(3) == 0 ? NULL : text;
}

static int64_t
random_time(void)
{
    if (ie__random_below(3) == 0)
        return 0;
    return (int64_t)ie__random_below(253402300800000) + 1;
}

static void
random_data(random_event *r)
{
    static const char *const JSON[] = {"null", "1.50", "\"\\u00e9\"", "{\"a\" : [1e400, {}]}",
                                       "[]",   "-0.0", "\"\"",        "{\"a\":1,\"a\":2}"};
    static const char *const TYPES[] = {"text/plain", "application/xml; q=\"a b\"", "a/octet"};
    size_t                   bytes = 0;

    switch (ie__random_below(4)) {
    case 0: return;
    case 1:
        r->event.content_type = ie__random_below(2) == 0 ? NULL : "application/vnd.x+json";
        bytes = (size_t)snprintf(r->data, sizeof r->data, "%s", JSON[ie__random_below(8)]);
        break;
    case 2:
        r->event.content_type = TYPES[ie__random_below(3)];
        (void)random_text(r->data, 300, true);
        bytes = strlen(r->data);
        r->data[0] = (char)ie__random_below(0x80); /* control characters are legal in data */
        break;
    default:
        r->event.content_type = TYPES[ie__random_below(3)];
        bytes = ie__random_below(sizeof r->data);
        ie__random(r->data, bytes);
    }
    r->event.data = r->data;
    r->event.data_bytes = bytes;
}

static void
random_event_make(random_event *r)
{
    memset(r, 0, sizeof *r);
    r->event.size = sizeof r->event;
    r->event.id = random_text(r->texts[0], IE_ID_BYTES_MAX, true);
    r->event.type = random_text(r->texts[1], 200, true);
    r->event.source = random_text(r->texts[2], 200, false);
    r->event.key = maybe(random_text(r->texts[3], 200, true));
    r->event.subject = maybe(random_text(r->texts[4], 200, true));
    r->event.topic = maybe("orders.placed.\xE2\x82\xAC");
    r->event.dataschema = maybe("urn:schema:x%20y");
    r->event.time_ms = random_time();
    r->event.not_before_ms = random_time();
    r->event.expires_at_ms = random_time();
    r->event.headers = r->headers;
    r->event.header_count = ie__random_below(8);
    for (size_t i = 0; i < r->event.header_count; i++) {
        ie_header *header = &r->headers[i];

        (void)snprintf(r->names[i], sizeof r->names[i], "h%zux%d", i, (int)ie__random_below(1000));
        header->name = r->names[i];
        header->value = r->values[i];
        header->type = (ie_header_type)ie__random_below(3);
        if (header->type == IE_HEADER_STRING)
            (void)random_text(r->values[i], 60, true);
        else if (header->type == IE_HEADER_INTEGER)
            (void)snprintf(r->values[i], sizeof r->values[i], "%d",
                           (int)(int32_t)(uint32_t)ie__random_below(UINT64_C(1) << 32));
        else
            header->value = ie__random_below(2) == 0 ? "true" : "false";
    }
    random_data(r);
}

START_TEST(decoding_what_was_encoded_gives_the_same_event)
{
    random_event *r = malloc(sizeof *r);
    ie_buffer     json = {0};

    ck_assert_ptr_nonnull(r);
    ie__random_seed(test_seed());
    for (uint64_t n = test_scale(20000); n > 0; n--) {
        ie_event *again = NULL;

        random_event_make(r);
        json.size = 0;
        ie_error_clear(&failure);
        if (ie_cloudevents_encode(&json, &r->event, &failure) != IE_OK)
            ck_abort_msg("%s", failure.message);
        QUICK_ASSERT(ie__json_check(json.data, json.size, NULL) == IE_OK);
        if (ie_cloudevents_decode(&again, json.data, json.size, &failure) != IE_OK)
            ck_abort_msg("%s: %.*s", failure.message, (int)json.size, json.data);
        assert_same(&r->event, again);
        ie_event_free(again);
    }
    ie__random_seed(0);
    ie_buffer_fini(&json);
    free(r);
}
END_TEST

START_TEST(every_allocation_may_fail_and_nothing_changes)
{
    random_event   *r = malloc(sizeof *r);
    const ie_event *list[3];
    ie_buffer       json = {0};
    ie_event       *event = NULL;
    ie_event      **events = NULL;
    size_t          count = 77;
    ie_status       status = IE_ENOMEM;

    ck_assert_ptr_nonnull(r);
    ie__random_seed(5);
    random_event_make(r);
    ie__random_seed(0);
    list[0] = list[1] = list[2] = &r->event;
    for (uint64_t n = 1; status != IE_OK; n++) {
        ie_buffer_fini(&json);
        ie__alloc_fail_at(n, false);
        status = ie_cloudevents_encode_batch(&json, list, 3, NULL);
        ie__alloc_fail_at(0, false);
        ck_assert(status == IE_OK || (status == IE_ENOMEM && json.size == 0));
        ck_assert_uint_lt(n, 100);
        ck_assert(n > 1 || status == IE_ENOMEM);
    }
    status = IE_ENOMEM;
    for (uint64_t n = 1; status != IE_OK; n++) {
        ie__alloc_fail_at(n, false);
        status = ie_cloudevents_decode_batch(&events, &count, json.data, json.size, NULL);
        ie__alloc_fail_at(0, false);
        ck_assert(status == IE_OK || (status == IE_ENOMEM && events == NULL && count == 77));
        ck_assert_uint_lt(n, 100);
        ck_assert(n > 1 || status == IE_ENOMEM);
    }
    ck_assert_uint_eq(count, 3);
    ie_cloudevents_batch_free(events, count);
    json.size = 0;
    ck_assert_int_eq(ie_cloudevents_encode(&json, &r->event, NULL), IE_OK);
    ie__alloc_fail_at(1, false);
    ck_assert_int_eq(ie_cloudevents_decode(&event, json.data, json.size, NULL), IE_ENOMEM);
    ie__alloc_fail_at(0, false);
    ck_assert_ptr_null(event);
    ie_buffer_fini(&json);
    free(r);
}
END_TEST

#define LOOP(tcase, test, table)                                                                   \
    tcase_add_loop_test(tcase, test, 0, (int)(sizeof(table) / sizeof *(table)))

int
main(void)
{
    Suite   *suite = suite_create("cloudevents");
    TCase   *encode = tcase_create("encode");
    TCase   *read = tcase_create("decode");
    TCase   *both = tcase_create("both ways");
    SRunner *runner;
    int      failed;

    tcase_add_test(encode, a_whole_event_is_written_with_typed_extensions_and_untouched_data);
    LOOP(encode, data_is_written_as_its_content_type_says, DATA);
    tcase_add_test(encode, an_event_without_its_names_or_with_bad_data_is_not_written);
    tcase_add_test(encode, batch_is_an_array_that_may_be_empty);
    tcase_add_test(read, a_whole_event_is_read);
    tcase_add_test(read, null_is_absent);
    LOOP(read, data_is_read_as_its_content_type_says, READ);
    LOOP(read, what_the_specification_forbids_is_refused_by_member_and_byte, REFUSED);
    tcase_add_test(read, decoding_has_limits);
    tcase_add_test(read, batch_has_a_limit_and_names_the_event_that_is_wrong);
    tcase_add_test(read, the_deepest_legal_data_survives_envelope_and_batch);
    tcase_add_test(read, an_event_that_expired_in_1970_stays_expired);
    tcase_add_test(both, decoding_what_was_encoded_gives_the_same_event);
    tcase_add_test(both, every_allocation_may_fail_and_nothing_changes);
    tcase_set_timeout(read, 60);
    tcase_set_timeout(both, 60);
    suite_add_tcase(suite, encode);
    suite_add_tcase(suite, read);
    suite_add_tcase(suite, both);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
