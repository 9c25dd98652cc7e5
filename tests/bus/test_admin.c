/* What an operator asks a running bus, and tells it. */
#include "bus_support.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>

static ie_bus_server *server;
static ie_bus_client *client;

static void
set_up(void)
{
    server = bus_start_default();
    client = client_open(server);
}

static void
tear_down(void)
{
    ie_bus_client_close(client);
    ie_bus_server_close(server);
}

/* The answer, which must come. */
static json_t *
ask(const char *topic, const char *arguments)
{
    ie_buffer answer = {NULL, 0, 0};
    ie_error  err = IE_ERROR_INIT;
    json_t   *read;

    ck_assert_msg(ie_bus_client_query_wait(client, topic, arguments, strlen(arguments), WAIT_MS,
                                           &answer, &err) == IE_OK,
                  "%s %s: %s", topic, arguments, err.message);
    read = json_loadb(answer.data, answer.size, 0, NULL);
    ck_assert_ptr_nonnull(read);
    ie_buffer_fini(&answer);
    return read;
}

static void
ask_in_vain(const char *topic, const char *arguments, ie_status status, const char *why)
{
    ie_buffer answer = {NULL, 0, 0};
    ie_error  err = IE_ERROR_INIT;

    ck_assert_int_eq(ie_bus_client_query_wait(client, topic, arguments, strlen(arguments), WAIT_MS,
                                              &answer, &err),
                     status);
    ck_assert_msg(strstr(err.message, why) != NULL, "%s", err.message);
}

static json_int_t
number(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);

    ck_assert_msg(json_is_integer(value), "%s is missing", name);
    return json_integer_value(value);
}

/* The one row with this text. */
static json_t *
row(const json_t *rows, const char *name, const char *text)
{
    json_t *found = NULL;
    json_t *each;
    size_t  index;

    json_array_foreach(rows, index, each)
    {
        const char *value = json_string_value(json_object_get(each, name));

        if (value == NULL || strcmp(value, text) != 0)
            continue;
        ck_assert_ptr_null(found);
        found = each;
    }
    return found;
}

static void
never(void *user, const ie_event *question, uint64_t token)
{
    (void)user;
    (void)question;
    (void)token;
}

START_TEST(status_tells_what_the_bus_is)
{
    json_t *status = ask("$bus.status", "");
    json_t *stats = json_object_get(status, "stats");

    ck_assert_str_eq(json_string_value(json_object_get(status, "name")), "ie");
    ck_assert_str_eq(json_string_value(json_object_get(status, "version")), ie_version());
    ck_assert_str_eq(json_string_value(json_array_get(json_object_get(status, "addresses"), 0)),
                     ie_bus_server_address(server, 0));
    ck_assert_int_ge(number(status, "uptime_ms"), 0);
    ck_assert_int_eq(number(stats, "connections"), 1);
    ck_assert_int_eq(number(stats, "queries"), 1);
    ck_assert_int_eq(number(stats, "reloads"), 0);
    ck_assert_int_gt(number(stats, "turns"), 0); /* the last one: all have their own name */
    ck_assert_int_eq(number(json_object_get(status, "limits"), "queries_in_flight_max"), 1024);
    json_decref(status);
}
END_TEST

START_TEST(topics_tells_who_listens_and_who_answers)
{
    counter count = {0};
    json_t *topics;
    json_t *one;

    (void)subscribe_now(client, "a.*", NULL, 0, &count);
    (void)subscribe_now(client, "a.*", NULL, 0, &count);
    (void)subscribe_now(client, "a.*", "g", 0, &count);
    (void)subscribe_now(client, "b.>", "g", 0, &count);
    ck_assert_int_eq(ie_bus_client_serve(client, "a.*", NULL, never, NULL, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_serve(client, "c.d.e", "h", never, NULL, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_serve(client, "c.d.e", "h", never, NULL, NULL, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    topics = ask("$bus.topics", "{}");
    ck_assert_int_eq(number(topics, "total"), 3);
    one = row(json_object_get(topics, "topics"), "pattern", "a.*");
    ck_assert_int_eq(number(one, "subscribers"), 2);
    ck_assert_int_eq(number(one, "groups"), 1);
    ck_assert_int_eq(number(one, "responders"), 1);
    one = row(json_object_get(topics, "topics"), "pattern", "b.>");
    ck_assert_int_eq(number(one, "groups"), 1);
    one = row(json_object_get(topics, "topics"), "pattern", "c.d.e");
    ck_assert_int_eq(number(one, "subscribers"), 0);
    ck_assert_int_eq(number(one, "responders"), 2);
    json_decref(topics);
}
END_TEST

static bool
ten_are_queued(void *arg)
{
    json_t          *groups = ask("$bus.groups", "{}");
    const json_t    *one = row(json_object_get(groups, "groups"), "group", "g");
    const json_int_t queued = number(one, "queued");

    (void)arg;
    ck_assert_int_eq(number(one, "members"), 1);
    ck_assert_str_eq(json_string_value(json_object_get(one, "selection")), "round-robin");
    json_decref(groups);
    return queued == 10;
}

START_TEST(a_paused_group_holds_what_comes)
{
    counter count = {0};
    counter answers = {0};
    json_t *group;

    (void)subscribe_now(client, "t", "g", 0, &count);
    group = ask("$bus.pause", "{\"group\": \"g\"}");
    ck_assert(json_is_true(json_object_get(group, "paused")));
    json_decref(group);
    for (long i = 1; i <= 10; i++)
        ck_assert_int_eq(publish_number(client, "t", i, 0, &answers), IE_OK);
    ck_assert(poll_until(ten_are_queued, NULL, WAIT_MS));
    ck_assert_uint_eq(atomic_load(&count.handled), 0);
    json_decref(ask("$bus.resume", "{\"group\": \"g\", \"pattern\": \"t\"}"));
    ck_assert(wait_for(&answers.answered, 10));
    ck_assert_uint_eq(atomic_load(&count.handled), 10);
    ck_assert_uint_eq(atomic_load(&answers.failed), 0);
}
END_TEST

START_TEST(connections_are_listed_and_ended)
{
    ie_bus_client_options options;
    ie_bus_client        *other = NULL;
    json_t               *list;
    const json_t         *one;
    char                  arguments[64];

    IE_BUS_CLIENT_OPTIONS_INIT(&options);
    options.url = ie_bus_server_address(server, 0);
    options.name = "other";
    options.reconnect_delay_ms = options.reconnect_delay_ms_max = 600000;
    ck_assert_int_eq(ie_bus_client_open(&other, &options, NULL), IE_OK);
    ck_assert_int_eq(ie_bus_client_wait_connected(other, WAIT_MS, NULL), IE_OK);
    list = ask("$bus.connections", "{}");
    ck_assert_int_eq(number(list, "total"), 2);
    one = row(json_object_get(list, "connections"), "name", "other");
    ck_assert_ptr_nonnull(one);
    ck_assert_str_eq(json_string_value(json_object_get(one, "protocol")), "eb/2");
    ck_assert_int_gt(number(one, "bytes_in"), 0);
    (void)snprintf(arguments, sizeof arguments, "{\"id\": %lld}", (long long)number(one, "id"));
    json_decref(list);
    json_decref(ask("$bus.kick", arguments));
    list = ask("$bus.connections", "{}");
    ck_assert_int_eq(number(list, "total"), 1);
    json_decref(list);
    ask_in_vain("$bus.kick", arguments, IE_ENOTFOUND, "no connection");
    ie_bus_client_close(other);
}
END_TEST

START_TEST(lists_come_in_pages)
{
    counter count = {0};
    json_t *page;
    int     seen = 0;

    for (int i = 0; i < 25; i++) {
        char pattern[16];

        (void)snprintf(pattern, sizeof pattern, "p.%d", i);
        ck_assert_int_eq(
            ie_bus_client_subscribe(client, pattern, NULL, 0, counter_handle, &count, NULL, NULL),
            IE_OK);
    }
    ck_assert_int_eq(ie_bus_client_wait_subscribed(client, WAIT_MS, NULL), IE_OK);
    for (int skip = 0; skip < 30; skip += 10) {
        char arguments[64];

        (void)snprintf(arguments, sizeof arguments, "{\"skip\": %d, \"limit\": 10}", skip);
        page = ask("$bus.topics", arguments);
        ck_assert_int_eq(number(page, "total"), 25);
        seen += (int)json_array_size(json_object_get(page, "topics"));
        json_decref(page);
    }
    ck_assert_int_eq(seen, 25);
    json_decref(ask("$bus.topics", "{\"limit\": 500}"));
    ask_in_vain("$bus.topics", "{\"limit\": 501}", IE_EINVAL, "limit");
    ask_in_vain("$bus.topics", "{\"limit\": 0}", IE_EINVAL, "limit");
    ask_in_vain("$bus.topics", "{\"skip\": -1}", IE_EINVAL, "skip");
}
END_TEST

START_TEST(faulty_requests_are_refused_in_words)
{
    counter count = {0};

    ask_in_vain("$bus.nothing", "", IE_ENOTFOUND, "no such question");
    ask_in_vain("$other", "", IE_ENOTFOUND, "no such question");
    ask_in_vain("$bus.status", "{\"x\": 1}", IE_EINVAL, "\"x\"");
    ask_in_vain("$bus.status", "[]", IE_EINVAL, "not a JSON object");
    ask_in_vain("$bus.status", "{", IE_EINVAL, "arguments");
    ask_in_vain("$bus.pause", "{}", IE_EINVAL, "group is missing");
    ask_in_vain("$bus.pause", "{\"group\": 1}", IE_EINVAL, "string");
    ask_in_vain("$bus.pause", "{\"group\": \"g\"}", IE_ENOTFOUND, "no group 'g'");
    ask_in_vain("$bus.kick", "{}", IE_EINVAL, "id is missing");
    (void)subscribe_now(client, "a", "g", 0, &count);
    (void)subscribe_now(client, "b", "g", 0, &count);
    ask_in_vain("$bus.pause", "{\"group\": \"g\"}", IE_EINVAL, "pattern");
    ask_in_vain("$bus.pause", "{\"group\": \"g\", \"pattern\": \"c\"}", IE_ENOTFOUND, "of c");
    ck_assert_uint_eq(bus_stats(server).queries_now, 0);
}
END_TEST

/* ---- durable groups ------------------------------------------------------------------------- */

static void
set_up_durable(void)
{
    ie_bus_server_options options;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.data_dir = test_dir_make();
    options.attempts_max = 2;
    options.retry_delay_ms = 1;
    server = bus_start(&options);
    client = client_open(server);
}

static void
tear_down_durable(void)
{
    tear_down();
    test_dir_remove();
}

typedef struct group_wish {
    const char *member;
    json_int_t  value;
} group_wish;

/* Does the one group show this number? */
static bool
group_shows(void *arg)
{
    const group_wish *wish = arg;
    json_t           *groups = ask("$bus.groups", "{}");
    const json_int_t  value =
        number(row(json_object_get(groups, "groups"), "group", "g"), wish->member);

    json_decref(groups);
    return value == wish->value;
}

static void
await_group(const char *member, json_int_t value)
{
    group_wish wish = {member, value};

    ck_assert_msg(poll_until(group_shows, &wish, WAIT_MS), "%s never became %lld", member,
                  (long long)value);
}

static void
publish_stored(int count)
{
    for (int i = 1; i <= count; i++) {
        ie_event event = IE_EVENT_INIT;
        char     text[16];

        event.topic = "t";
        event.data_bytes = (size_t)snprintf(text, sizeof text, "%d", i);
        event.data = text;
        ck_assert_int_eq(
            ie_bus_client_publish_wait(client, &event, IE_BUS_PUBLISH_PERSISTENT, WAIT_MS, NULL),
            IE_OK);
    }
}

START_TEST(a_durable_group_is_paused_replayed_and_deleted)
{
    counter  count = {0};
    uint32_t id = subscribe_now(client, "t", "g", 0, &count);
    json_t  *answer = ask("$bus.pause", "{\"group\": \"g\"}");

    ck_assert(json_is_true(json_object_get(answer, "paused")));
    json_decref(answer);
    publish_stored(5);
    await_group("lag", 5);
    ck_assert_uint_eq(atomic_load(&count.handled), 0);
    json_decref(ask("$bus.resume", "{\"group\": \"g\"}"));
    ck_assert(wait_for(&count.handled, 5));
    await_group("lag", 0);
    answer = ask("$bus.replay", "{\"group\": \"g\", \"from\": \"first\"}");
    json_decref(answer);
    ck_assert(wait_for(&count.handled, 10));
    await_group("lag", 0);
    answer = ask("$bus.replay", "{\"group\": \"g\", \"position\": 4}");
    json_decref(answer);
    ck_assert(wait_for(&count.handled, 12));
    ask_in_vain("$bus.replay", "{\"group\": \"g\"}", IE_EINVAL, "one of");
    ask_in_vain("$bus.replay", "{\"group\": \"g\", \"from\": \"x\"}", IE_EINVAL, "first");
    ask_in_vain("$bus.delete", "{\"group\": \"g\"}", IE_ELIMIT, "members");
    ck_assert_int_eq(ie_bus_client_unsubscribe(client, id, NULL), IE_OK);
    await_group("members", 0);
    json_decref(ask("$bus.delete", "{\"group\": \"g\"}"));
    ask_in_vain("$bus.delete", "{\"group\": \"g\"}", IE_ENOTFOUND, "no group");
    ck_assert_uint_eq(bus_stats(server).queries_now, 0);
}
END_TEST

START_TEST(dead_letters_are_listed_tried_again_and_discarded)
{
    counter count = {.result = IE_EHANDLER};
    json_t *answer;
    json_t *rows;

    (void)subscribe_now(client, "t", "g", 0, &count);
    publish_stored(3);
    await_group("dead", 3);
    answer = ask("$bus.dead", "{\"group\": \"g\", \"limit\": 2}");
    rows = json_object_get(answer, "dead");
    ck_assert_uint_eq(json_array_size(rows), 2);
    ck_assert_int_eq(number(json_array_get(rows, 0), "attempts"), 2);
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(rows, 0), "topic")), "t");
    json_decref(answer);
    answer = ask("$bus.dead", "{\"group\": \"g\", \"after\": 2}");
    ck_assert_uint_eq(json_array_size(json_object_get(answer, "dead")), 1);
    json_decref(answer);
    answer = ask("$bus.dead.discard", "{\"group\": \"g\", \"position\": 2}");
    ck_assert_int_eq(number(answer, "count"), 1);
    json_decref(answer);
    atomic_store(&count.result, IE_OK);
    answer = ask("$bus.dead.retry", "{\"group\": \"g\"}");
    ck_assert_int_eq(number(answer, "count"), 2);
    json_decref(answer);
    await_group("dead", 0);
    await_group("retrying", 0);
    ck_assert_uint_eq(atomic_load(&count.handled), 3 * 2 + 2);
}
END_TEST

START_TEST(what_only_a_log_can_do_is_refused_without_one)
{
    counter count = {0};

    (void)subscribe_now(client, "t", "g", 0, &count);
    ask_in_vain("$bus.replay", "{\"group\": \"g\", \"from\": \"first\"}", IE_EINVAL, "not durable");
    ask_in_vain("$bus.delete", "{\"group\": \"g\"}", IE_EINVAL, "not durable");
    ask_in_vain("$bus.dead", "{\"group\": \"g\"}", IE_EINVAL, "not durable");
}
END_TEST

int
main(void)
{
    Suite   *s = suite_create("admin");
    TCase   *one = tcase_create("admin");
    TCase   *durable = tcase_create("durable");
    SRunner *runner = srunner_create(s);
    int      failed;

    tcase_add_checked_fixture(one, set_up, tear_down);
    tcase_set_timeout(one, 100);
    tcase_add_test(one, status_tells_what_the_bus_is);
    tcase_add_test(one, topics_tells_who_listens_and_who_answers);
    tcase_add_test(one, a_paused_group_holds_what_comes);
    tcase_add_test(one, connections_are_listed_and_ended);
    tcase_add_test(one, lists_come_in_pages);
    tcase_add_test(one, faulty_requests_are_refused_in_words);
    tcase_add_test(one, what_only_a_log_can_do_is_refused_without_one);
    suite_add_tcase(s, one);
    tcase_add_checked_fixture(durable, set_up_durable, tear_down_durable);
    tcase_set_timeout(durable, 100);
    tcase_add_test(durable, a_durable_group_is_paused_replayed_and_deleted);
    tcase_add_test(durable, dead_letters_are_listed_tried_again_and_discarded);
    suite_add_tcase(s, durable);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
