/* The codec: what goes in comes out, however it is cut, and nothing else gets through. */
#include "wire.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "core.h"
#include "support.h"

static uint64_t seed;

static uint64_t
roll(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

static char *
random_text(size_t max)
{
    static const char *const PIECES[] = {
        "a", "Z", "7", " ", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x8c\x8d", "<", "\"", "~"};
    const size_t want = 1 + (size_t)roll(max);
    char        *text = calloc(1, max + 5);
    size_t       size = 0;

    ck_assert_ptr_nonnull(text);
    while (size < want) {
        const char *piece = PIECES[roll(sizeof PIECES / sizeof *PIECES)];

        if (size + strlen(piece) > max)
            break;
        memcpy(text + size, piece, strlen(piece));
        size += strlen(piece);
    }
    if (size == 0)
        text[0] = 'x';
    return text;
}

#define SAME_TEXT(a, b)                                                                            \
    ck_assert_msg(((a) == NULL && (b) == NULL) ||                                                  \
                      ((a) != NULL && (b) != NULL && strcmp((a), (b)) == 0),                       \
                  #a " differs")

START_TEST(a_record_comes_out_as_it_went_in)
{
    static ie__record record;

    seed = test_seed();
    for (int round = 0; round < 3000; round++) {
        ie_event       in = IE_EVENT_INIT;
        ie_event       out;
        ie_header      headers[8];
        char          *texts[32] = {NULL};
        size_t         text_count = 0;
        unsigned char *bytes;
        size_t         size;
        char           names[8][24];
        unsigned char  data[300];
        ie_error       err = IE_ERROR_INIT;

#define MAYBE(field, max)                                                                          \
    if (roll(2) == 0)                                                                              \
    in.field = texts[text_count++] = random_text(max)
        in.topic = "some.topic";
        MAYBE(key, 40);
        MAYBE(id, 255);
        MAYBE(type, 40);
        MAYBE(source, 2048);
        MAYBE(subject, 40);
        MAYBE(dataschema, 40);
        MAYBE(content_type, 40);
        in.time_ms = roll(3) == 0 ? 0 : (int64_t)roll(UINT64_C(1) << 42) - (INT64_C(1) << 41);
        in.not_before_ms = (int64_t)roll(2);
        in.expires_at_ms = (int64_t)roll(2) * 1700000000000;
        in.position = (int64_t)roll(2) * 99;
        in.header_count = (size_t)roll(8);
        in.headers = headers;
        for (size_t i = 0; i < in.header_count; i++) {
            (void)snprintf(names[i], sizeof names[i], "h%zu", i);
            headers[i].name = names[i];
            headers[i].value = roll(4) == 0 ? "" : (texts[text_count++] = random_text(100));
            headers[i].type = (ie_header_type)roll(3);
            headers[i].reserved = 0;
        }
        in.data_bytes = (size_t)roll(sizeof data);
        for (size_t i = 0; i < in.data_bytes; i++)
            data[i] = (unsigned char)roll(256);
        in.data = data;

        size = ie__record_size(&in);
        bytes = malloc(size); /* exactly, so that the sanitizer sees one byte too many */
        ck_assert_ptr_nonnull(bytes);
        ck_assert_ptr_eq(ie__record_put(bytes, &in), bytes + size);
        ck_assert_msg(ie__record_parse(&record, bytes, size, IE_DATA_BYTES_MAX, &err) == IE_OK,
                      "%s", err.message);
        ie__record_event(&out, &record);
        SAME_TEXT(in.topic, out.topic);
        SAME_TEXT(in.key, out.key);
        SAME_TEXT(in.id, out.id);
        SAME_TEXT(in.type, out.type);
        SAME_TEXT(in.source, out.source);
        SAME_TEXT(in.subject, out.subject);
        SAME_TEXT(in.dataschema, out.dataschema);
        SAME_TEXT(in.content_type, out.content_type);
        ck_assert_int_eq(in.time_ms, out.time_ms);
        ck_assert_int_eq(in.not_before_ms, out.not_before_ms);
        ck_assert_int_eq(in.expires_at_ms, out.expires_at_ms);
        ck_assert_int_eq(in.position, out.position);
        ck_assert_uint_eq(in.header_count, out.header_count);
        for (size_t i = 0; i < in.header_count; i++) {
            ck_assert_str_eq(in.headers[i].name, out.headers[i].name);
            ck_assert_str_eq(in.headers[i].value, out.headers[i].value);
            ck_assert_int_eq(in.headers[i].type, out.headers[i].type);
        }
        ck_assert_uint_eq(in.data_bytes, out.data_bytes);
        if (in.data_bytes != 0)
            ck_assert_mem_eq(in.data, out.data, in.data_bytes);
        for (size_t i = 0; i < text_count; i++)
            free(texts[i]);
        free(bytes);
    }
}
END_TEST

static ie_status
parse(const void *bytes, size_t size)
{
    static ie__record record;
    unsigned char    *copy = malloc(size != 0 ? size : 1);
    ie_status         status;

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, bytes, size);
    status = ie__record_parse(&record, copy, size, 16, NULL);
    free(copy);
    return status;
}
#define PARSE(literal) parse((literal), sizeof(literal) - 1)

START_TEST(a_faulty_record_is_refused)
{
    unsigned char many[2 + 65 * 8 + 1] = {1, 't'};
    size_t        size = 2;

    ck_assert_int_eq(PARSE("\1t\0"), IE_OK);
    ck_assert_int_eq(PARSE("\1t\0"
                           "0123456789abcdef"),
                     IE_OK);
    ck_assert_int_eq(PARSE("\1t\0"
                           "0123456789abcdefg"),
                     IE_ETOOBIG);
    ck_assert_int_eq(PARSE(""), IE_EINVAL);
    ck_assert_int_eq(PARSE("\0"), IE_EINVAL);
    ck_assert_int_eq(PARSE("\0\0"), IE_EINVAL);
    ck_assert_int_eq(PARSE("\2t\0"), IE_EINVAL);
    ck_assert_int_eq(PARSE("\1t"), IE_EINVAL);
    ck_assert_int_eq(PARSE("\1t\1"), IE_EINVAL);
    ck_assert_int_eq(PARSE("\1t\1\0\1k"), IE_EINVAL);       /* no end */
    ck_assert_int_eq(PARSE("\1t\1\0\2k\0"), IE_EINVAL);     /* eats the end */
    ck_assert_int_eq(PARSE("\1t\1\xff\xffk\0"), IE_EINVAL); /* far too long */
    ck_assert_int_eq(PARSE("\1t\1\0\0\0"), IE_EINVAL);      /* an empty key */
    ck_assert_int_eq(PARSE("\1t\1\0\1k\0"), IE_OK);
    ck_assert_int_eq(PARSE("\1t\1\0\1k\1\0\1k\0"), IE_EINVAL); /* twice */
    ck_assert_int_eq(PARSE("\1t\1\0\1\0\0"), IE_EINVAL);       /* NUL */
    ck_assert_int_eq(PARSE("\1t\1\0\1\n\0"), IE_EINVAL);       /* a control character */
    ck_assert_int_eq(PARSE("\1t\1\0\2\xc2\x85\0"), IE_EINVAL); /* one of the high ones */
    ck_assert_int_eq(PARSE("\1t\1\0\1\xff\0"), IE_EINVAL);     /* not UTF-8 */
    ck_assert_int_eq(PARSE("\1t\1\0\x0b"
                           "0123456\xff"
                           "890\0"),
                     IE_EINVAL);
    ck_assert_int_eq(PARSE("\1t\10\0\7"
                           "1234567\0"),
                     IE_EINVAL); /* a short time */
    ck_assert_int_eq(PARSE("\1t\10\0\10"
                           "12345678\0"),
                     IE_OK);
    ck_assert_int_eq(PARSE("\1t\13\0\4\0n\0v\0"), IE_OK);        /* a header */
    ck_assert_int_eq(PARSE("\1t\13\0\3\0n\0\0"), IE_OK);         /* an empty value */
    ck_assert_int_eq(PARSE("\1t\13\0\3\0nv\0"), IE_EINVAL);      /* nothing ends its name */
    ck_assert_int_eq(PARSE("\1t\13\0\3\0\0v\0"), IE_EINVAL);     /* no name */
    ck_assert_int_eq(PARSE("\1t\13\0\4\3n\0v\0"), IE_EINVAL);    /* no type */
    ck_assert_int_eq(PARSE("\1t\13\0\4\0N\0v\0"), IE_EINVAL);    /* no such letter */
    ck_assert_int_eq(PARSE("\1t\13\0\7\0type\0v\0"), IE_EINVAL); /* an attribute's name */
    ck_assert_int_eq(PARSE("\1t\13\0\4\0n\0\n\0"), IE_EINVAL);   /* a line feed */
    ck_assert_int_eq(PARSE("\1t\13\0\4\0n\0v\13\0\4\0n\0v\0"), IE_EINVAL); /* twice */
    ck_assert_int_eq(PARSE("\1t\x40\0\1v\0"), IE_ENOTSUP);                 /* not to be skipped */
    ck_assert_int_eq(PARSE("\1t\x80\0\1v\x80\0\1v\0"), IE_OK);
    for (int i = 0; i < 65; i++) { /* 64 headers pass, the 65th does not */
        const char name = (char)('a' + i % 26);

        if (i == 64) {
            many[size] = 0;
            ck_assert_int_eq(parse(many, size + 1), IE_OK);
        }
        size += (size_t)snprintf((char *)many + size, 4, "\13");
        many[size++] = 0;
        many[size++] = 5;
        many[size++] = 0;
        many[size++] = (unsigned char)name;
        many[size++] = (unsigned char)('a' + i / 26);
        many[size++] = 0;
        many[size++] = 'v';
    }
    many[size] = 0;
    ck_assert_int_eq(parse(many, size + 1), IE_ETOOBIG);
}
END_TEST

START_TEST(a_header_of_a_frame_is_checked)
{
    unsigned char message[64] = "eb\x22\x10"
                                "\1\2\3\4body";
    ie__frame     frame;

    ck_assert_int_eq(ie__frame_parse(&frame, message, 12, NULL), IE_OK);
    ck_assert_uint_eq(frame.number, 0x01020304);
    ck_assert_uint_eq(frame.body_bytes, 4);
    ck_assert_int_eq(ie__frame_parse(&frame, message, 7, NULL), IE_EPROTO);
    message[2] = 0x23; /* a longer header is skipped */
    ck_assert_int_eq(ie__frame_parse(&frame, message, 12, NULL), IE_OK);
    ck_assert_uint_eq(frame.body_bytes, 0);
    ck_assert_int_eq(ie__frame_parse(&frame, message, 11, NULL), IE_EPROTO);
    message[2] = 0x21;
    ck_assert_int_eq(ie__frame_parse(&frame, message, 12, NULL), IE_EPROTO);
    message[2] = 0x12;
    ck_assert_int_eq(ie__frame_parse(&frame, message, 12, NULL), IE_EPROTO);
    message[2] = 0x22;
    message[0] = 'E';
    ck_assert_int_eq(ie__frame_parse(&frame, message, 12, NULL), IE_EPROTO);
}
END_TEST

typedef struct seen {
    int      greetings;
    size_t   messages;
    uint64_t digest;
} seen;

static ie_status
see_greeting(void *user, const unsigned char bytes[IE__GREETING_BYTES])
{
    (void)bytes;
    ((seen *)user)->greetings++;
    return IE_OK;
}

static ie_status
see_message(void *user, unsigned char *message, size_t bytes)
{
    seen *s = user;

    s->messages++;
    s->digest = ie__digest(message, bytes, s->digest);
    return IE_OK;
}

static const ie__framer_ops SEE = {see_greeting, see_message};

START_TEST(a_stream_gives_the_same_messages_however_it_is_cut)
{
    unsigned char stream[8192];
    size_t        size = IE__GREETING_BYTES;
    size_t        messages = 0;
    seen          whole = {0};
    ie__framer    framer = {.message_max = 600};

    seed = test_seed();
    ie__greeting_put(stream, IE__SP_EB2_CLIENT);
    while (size < sizeof stream - 700) {
        const size_t body = (size_t)roll(roll(2) == 0 ? 20 : 590);

        ie__frame_prefix(stream + size, IE__PUBLISH, (uint32_t)messages++, body);
        for (size_t i = 0; i < body; i++)
            stream[size + IE__PREFIX_BYTES + i] = (unsigned char)roll(256);
        size += IE__PREFIX_BYTES + body;
    }
    ck_assert_int_eq(ie__framer_push(&framer, stream, size, &SEE, &whole, NULL), IE_OK);
    ck_assert(!ie__framer_is_midway(&framer));
    ck_assert_int_eq(whole.greetings, 1);
    ck_assert_uint_eq(whole.messages, messages);
    ie__framer_fini(&framer);
    for (int round = 0; round < 300; round++) {
        const uint64_t cut = 1 + roll(round < 3 ? 1 : 400); /* also byte by byte */
        seen           cuts = {0};
        size_t         at = 0;

        framer = (ie__framer){.message_max = 600};
        while (at < size) {
            size_t         take = round < 3 ? 1 : 1 + (size_t)roll(cut);
            unsigned char *piece;

            take = take > size - at ? size - at : take;
            piece = malloc(take);
            ck_assert_ptr_nonnull(piece);
            memcpy(piece, stream + at, take);
            ck_assert_int_eq(ie__framer_push(&framer, piece, take, &SEE, &cuts, NULL), IE_OK);
            free(piece);
            at += take;
        }
        ck_assert_int_eq(cuts.greetings, 1);
        ck_assert_uint_eq(cuts.messages, whole.messages);
        ck_assert_uint_eq(cuts.digest, whole.digest);
        ie__framer_fini(&framer);
    }
}
END_TEST

START_TEST(a_length_is_judged_before_anything_is_stored)
{
    static const uint64_t LENGTHS[] = {
        0, 7, 601, UINT64_C(1) << 31, (UINT64_C(1) << 32) - 1, UINT64_C(1) << 63, UINT64_MAX};

    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) {
        ie__framer    framer = {.message_max = 600, .is_greeted = true};
        unsigned char length[8];
        seen          s = {0};
        ie_status     status = IE_OK;

        ie__put64(length, LENGTHS[i]);
        for (size_t k = 0; k < sizeof length && status == IE_OK; k++)
            status = ie__framer_push(&framer, length + k, 1, &SEE, &s, NULL);
        ck_assert_int_eq(status, LENGTHS[i] < 8 ? IE_EPROTO : IE_ETOOBIG);
        ck_assert_uint_le(framer.capacity, 256);
        ie__framer_fini(&framer);
    }
}
END_TEST

START_TEST(announced_bytes_cost_nothing_before_they_come)
{
    ie__framer    framer = {.message_max = IE__MESSAGE_MAX, .is_greeted = true};
    unsigned char start[108];
    seen          s = {0};

    memset(start, 'x', sizeof start);
    ie__put64(start, IE__MESSAGE_MAX);
    ck_assert_int_eq(ie__framer_push(&framer, start, sizeof start, &SEE, &s, NULL), IE_OK);
    ck_assert_uint_le(framer.capacity, 256);
    ck_assert(ie__framer_is_midway(&framer));
    ie__framer_fini(&framer);
}
END_TEST

START_TEST(a_reason_is_cut_between_characters_and_fit_for_a_log)
{
    unsigned char frame[IE__REASON_FRAME_MAX];
    char          text[600];
    ie__frame     parsed;
    ie__reason    reason;
    size_t        size;

    memset(text, 'a', sizeof text);
    memcpy(text + 498, "\xe2\x82\xac", 3); /* would be cut in two */
    text[520] = '\0';
    size = ie__reason_frame(frame, IE__ERROR, 0, 10, text);
    ck_assert_int_eq(ie__frame_parse(&parsed, frame + 8, size - 8, NULL), IE_OK);
    ck_assert_int_eq(ie__reason_parse(&reason, &parsed), IE_OK);
    ck_assert_uint_eq(strlen(reason.text), 498);
    size = ie__reason_frame(frame, IE__ERROR, 0, 10, "one\ntwo\x1b[2J");
    ck_assert_int_eq(ie__frame_parse(&parsed, frame + 8, size - 8, NULL), IE_OK);
    ck_assert_int_eq(ie__reason_parse(&reason, &parsed), IE_OK);
    ck_assert_str_eq(reason.text, "one two [2J");
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("bus wire");
    TCase   *tcase = tcase_create("wire");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_record_comes_out_as_it_went_in);
    tcase_add_test(tcase, a_faulty_record_is_refused);
    tcase_add_test(tcase, a_header_of_a_frame_is_checked);
    tcase_add_test(tcase, a_stream_gives_the_same_messages_however_it_is_cut);
    tcase_add_test(tcase, a_length_is_judged_before_anything_is_stored);
    tcase_add_test(tcase, announced_bytes_cost_nothing_before_they_come);
    tcase_add_test(tcase, a_reason_is_cut_between_characters_and_fit_for_a_log);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
