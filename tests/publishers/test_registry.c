/* The sets of publishers, and the layout of their table. */
#include <check.h>
#include <ie/publisher.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static ie_status
some_open(void **self, const char *url, ie_publisher_env *env, ie_error *err)
{
    (void)self;
    (void)url;
    (void)env;
    return ie_error_set(err, IE_ENOTSUP, "not to be opened");
}

static void
some_publish(void *self, const ie_outgoing *events, size_t count)
{
    (void)self;
    (void)events;
    (void)count;
}

static void
some_close(void *self)
{
    (void)self;
}

static const ie_publisher_ops SOME = {
    .size = sizeof(ie_publisher_ops),
    .scheme = "some",
    .open = some_open,
    .publish = some_publish,
    .close = some_close,
    .flush = some_close,
};

static ie_publishers *set;

static void
set_make(void)
{
    ck_assert_int_eq(ie_publishers_new(&set, NULL, NULL), IE_OK);
}

static void
set_free(void)
{
    ie_publishers_free(set);
}

/* An insertion in the middle would break every publisher that is already built. */
START_TEST(released_slots_stay_where_they_are)
{
    const size_t p = sizeof(void *);

    ck_assert_uint_eq(offsetof(ie_publisher_ops, size), 0);
    ck_assert_uint_eq(offsetof(ie_publisher_ops, scheme), sizeof(size_t));
    ck_assert_uint_eq(offsetof(ie_publisher_ops, flags), sizeof(size_t) + p);
    ck_assert_uint_eq(offsetof(ie_publisher_ops, reserved), sizeof(size_t) + p + 4);
    ck_assert_uint_eq(offsetof(ie_publisher_ops, open), sizeof(size_t) + p + 8);
    ck_assert_uint_eq(offsetof(ie_publisher_ops, publish), sizeof(size_t) + 2 * p + 8);
    ck_assert_uint_eq(offsetof(ie_publisher_ops, close), sizeof(size_t) + 3 * p + 8);
    ck_assert_uint_eq(offsetof(ie_publisher_ops, flush), sizeof(size_t) + 4 * p + 8);
    ck_assert_uint_eq(offsetof(ie_outgoing, event), 0);
    ck_assert_uint_eq(offsetof(ie_outgoing, ticket), p);
    ck_assert_uint_eq(offsetof(ie_outgoing, attempt), p + 8);
    ck_assert_uint_eq(sizeof(ie_outgoing), p + 16);
    ck_assert_int_eq(IE_DELIVERED, 0);
    ck_assert_int_eq(IE_RETRY, 1);
    ck_assert_int_eq(IE_UNREACHABLE, 2);
    ck_assert_int_eq(IE_REJECTED, 3);
}
END_TEST

START_TEST(added_table_is_found_by_the_scheme_of_a_url)
{
    const ie_publisher_ops *found = NULL;

    ck_assert_int_eq(ie_publishers_add(set, &SOME, NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_find(&found, set, "some:thing", NULL), IE_OK);
    ck_assert(found->open == some_open && found->flush == some_close);
    ck_assert_int_eq(ie_publishers_find(&found, set, "SOME://thing", NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_find(&found, set, "som:thing", NULL), IE_ENOTFOUND);
    ck_assert_int_eq(ie_publishers_find(&found, set, "somes:thing", NULL), IE_ENOTFOUND);
}
END_TEST

START_TEST(unknown_scheme_is_refused_with_the_known_ones)
{
    const ie_publisher_ops *found = NULL;
    ie_error                err = IE_ERROR_INIT;

    ck_assert_int_eq(ie_publishers_find(&found, ie_publishers_builtin(), "smtp://x", &err),
                     IE_ENOTFOUND);
    ck_assert_ptr_nonnull(strstr(err.message, "'smtp:'"));
    ck_assert_ptr_nonnull(strstr(err.message, "memory, file"));
    ie_error_clear(&err);
    ck_assert_int_eq(ie_publishers_find(&found, set, "x:y", &err), IE_ENOTFOUND);
    ck_assert_ptr_nonnull(strstr(err.message, "none"));
    ck_assert_int_eq(ie_publishers_find(&found, set, "no url", NULL), IE_EINVAL);
    ck_assert_ptr_null(found);
}
END_TEST

START_TEST(table_of_an_older_library_reads_as_null_where_it_ends)
{
    const size_t            size = offsetof(ie_publisher_ops, flush);
    ie_publisher_ops       *old = malloc(size); /* exactly as long as it says */
    const ie_publisher_ops *found = NULL;

    memcpy(old, &SOME, size);
    memcpy(old, &size, sizeof size);
    ck_assert_int_eq(ie_publishers_add(set, old, NULL), IE_OK);
    free(old);
    ck_assert_int_eq(ie_publishers_find(&found, set, "some:x", NULL), IE_OK);
    ck_assert(found->close == some_close);
    ck_assert(found->flush == NULL);
}
END_TEST

START_TEST(table_of_a_newer_library_is_taken_only_when_its_new_slots_are_empty)
{
    struct {
        ie_publisher_ops ops;
        void            *slot;
    } newer = {SOME, NULL};
    ie_error err = IE_ERROR_INIT;

    newer.ops.size = sizeof newer;
    newer.slot = &newer;
    ck_assert_int_eq(ie_publishers_add(set, &newer.ops, &err), IE_ENOTSUP);
    ck_assert_ptr_nonnull(strstr(err.message, "newer"));
    newer.slot = NULL;
    ck_assert_int_eq(ie_publishers_add(set, &newer.ops, NULL), IE_OK);
}
END_TEST

START_TEST(missing_slot_is_refused_by_name)
{
    ie_publisher_ops ops = SOME;
    ie_error         err = IE_ERROR_INIT;

    ops.publish = NULL;
    ck_assert_int_eq(ie_publishers_add(set, &ops, &err), IE_EINVAL);
    ck_assert_str_eq(err.message, "publisher 'some' lacks its publish function");
    ops = SOME;
    ops.size = 8;
    ck_assert_int_eq(ie_publishers_add(set, &ops, NULL), IE_EINVAL);
    ops = SOME;
    ops.flags = 0x80;
    ck_assert_int_eq(ie_publishers_add(set, &ops, NULL), IE_ENOTSUP);
}
END_TEST

START_TEST(scheme_that_is_taken_or_malformed_is_refused)
{
    static const char *const BAD[] = {"", "1a", "Some", "so me", "so:me", "s\xc3\xa4", NULL};
    ie_publisher_ops         ops = SOME;
    ie_error                 err = IE_ERROR_INIT;

    ck_assert_int_eq(ie_publishers_add(set, &SOME, NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_add(set, &SOME, &err), IE_EEXIST);
    ck_assert_str_eq(err.message, "the scheme 'some' is taken");
    for (int i = 0; BAD[i] != NULL; i++) {
        ops.scheme = BAD[i];
        ck_assert_msg(ie_publishers_add(set, &ops, NULL) == IE_EINVAL, "'%s' was taken", BAD[i]);
    }
    ops.scheme = NULL;
    ck_assert_int_eq(ie_publishers_add(set, &ops, NULL), IE_EINVAL);
    ops.scheme = "a234567890123456789012345678901"; /* 31 */
    ck_assert_int_eq(ie_publishers_add(set, &ops, NULL), IE_OK);
    ops.scheme = "a2345678901234567890123456789012";
    ck_assert_int_eq(ie_publishers_add(set, &ops, NULL), IE_EINVAL);
}
END_TEST

START_TEST(full_set_is_refused)
{
    ie_publisher_ops ops = SOME;
    char             scheme[8] = "s00";

    ops.scheme = scheme;
    for (int i = 0; i < 64; i++) {
        scheme[1] = (char)('0' + i / 10);
        scheme[2] = (char)('0' + i % 10);
        ck_assert_int_eq(ie_publishers_add(set, &ops, NULL), IE_OK);
    }
    ck_assert_int_eq(ie_publishers_add(set, &SOME, NULL), IE_EINVAL);
}
END_TEST

START_TEST(copy_of_the_builtin_set_can_grow)
{
    const ie_publisher_ops *found = NULL;
    ie_publishers          *mine = NULL;

    ck_assert_int_eq(ie_publishers_new(&mine, ie_publishers_builtin(), NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_add(mine, &SOME, NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_find(&found, mine, "some:x", NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_find(&found, mine, "memory:x", NULL), IE_OK);
    ck_assert_int_eq(ie_publishers_find(&found, ie_publishers_builtin(), "some:x", NULL),
                     IE_ENOTFOUND);
    ie_publishers_free(mine);
}
END_TEST

static void *
builtin_ask(void *arg)
{
    const ie_publisher_ops *found = NULL;

    (void)arg;
    (void)ie_publishers_find(&found, ie_publishers_builtin(), "file:///x", NULL);
    return (void *)(uintptr_t)found;
}

START_TEST(builtin_set_is_the_same_for_all_threads)
{
    static const char *const SCHEMES[] = {"memory:x", "file:///x",
#ifdef IE_HAVE_SOCKET_BUS
                                          "socket://x", "sockets://x", "unix:/x",
#endif
                                          NULL};
    const ie_publisher_ops *found = NULL;
    pthread_t               threads[8];

    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, builtin_ask, NULL), 0);
    ck_assert_int_eq(ie_publishers_find(&found, ie_publishers_builtin(), "file:///x", NULL), IE_OK);
    for (int i = 0; i < 8; i++) {
        void *theirs = NULL;

        ck_assert_int_eq(pthread_join(threads[i], &theirs), 0);
        ck_assert_ptr_eq(theirs, found);
    }
    for (int i = 0; SCHEMES[i] != NULL; i++)
        ck_assert_int_eq(ie_publishers_find(&found, ie_publishers_builtin(), SCHEMES[i], NULL),
                         IE_OK);
}
END_TEST

START_TEST(copying_without_memory_changes_nothing)
{
    ie_publishers *mine = NULL;
    ie_status      status = IE_ENOMEM;

    for (uint64_t n = 1; status != IE_OK; n++) {
        ck_assert_uint_lt(n, 100);
        ie__alloc_fail_at(n, false);
        status = ie_publishers_new(&mine, ie_publishers_builtin(), NULL);
        ck_assert(status == IE_OK ? n > 1 : status == IE_ENOMEM && mine == NULL);
    }
    ie__alloc_fail_at(0, false);
    ie_publishers_free(mine);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("registry");
    TCase   *sets = tcase_create("sets");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_checked_fixture(sets, set_make, set_free);
    tcase_add_test(sets, released_slots_stay_where_they_are);
    tcase_add_test(sets, added_table_is_found_by_the_scheme_of_a_url);
    tcase_add_test(sets, unknown_scheme_is_refused_with_the_known_ones);
    tcase_add_test(sets, table_of_an_older_library_reads_as_null_where_it_ends);
    tcase_add_test(sets, table_of_a_newer_library_is_taken_only_when_its_new_slots_are_empty);
    tcase_add_test(sets, missing_slot_is_refused_by_name);
    tcase_add_test(sets, scheme_that_is_taken_or_malformed_is_refused);
    tcase_add_test(sets, full_set_is_refused);
    tcase_add_test(sets, copy_of_the_builtin_set_can_grow);
    tcase_add_test(sets, builtin_set_is_the_same_for_all_threads);
    tcase_add_test(sets, copying_without_memory_changes_nothing);
    suite_add_tcase(suite, sets);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
