/* The document, the bounds and the checks of the worker's options are one table. */
#include <ie/worker.h>

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "support.h"

#define ROW_BYTES_MAX 2048
#define CELLS         5 /* name, unit, default, min, max; more may follow */

/* "| `batch_max` | events | 100 | ..." in place; false when the line is no row of the first table.
 */
static bool
split_row(char *line, char *cells[CELLS])
{
    char *at = line;

    if (strncmp(line, "| `", 3) != 0)
        return false;
    for (int i = 0; i < CELLS; i++) {
        char *end;

        if (*at != '|' || (end = strchr(at + 1, '|')) == NULL)
            return false;
        cells[i] = at + 1;
        at = end;
    }
    if (*at != '|')
        return false;
    for (int i = 0; i < CELLS; i++) {
        char *end = strchr(cells[i], '|');

        *end = '\0';
        while (*cells[i] == ' ' || *cells[i] == '`')
            cells[i]++;
        while (end > cells[i] && (end[-1] == ' ' || end[-1] == '`'))
            *--end = '\0';
    }
    return true;
}

static unsigned long
number(const char *text)
{
    char         *end = NULL;
    unsigned long value = strtoul(text, &end, 10);

    ck_assert_msg(end != text && *end == '\0', "'%s' is no number", text);
    return value;
}

START_TEST(the_document_lists_every_option_with_its_unit_and_bounds)
{
    FILE  *in = fopen(IE_OPTIONS_DOCUMENT, "r");
    char   line[ROW_BYTES_MAX];
    size_t row = 0;
    bool   is_numbers = false;

    ck_assert_ptr_nonnull(in);
    while (fgets(line, sizeof line, in) != NULL) {
        char *cells[CELLS];

        ck_assert_msg(strchr(line, '\n') != NULL, "a line of more than %d bytes", ROW_BYTES_MAX);
        if (line[0] == '#')
            is_numbers = strcmp(line, "## Numbers\n") == 0;
        if (!is_numbers || !split_row(line, cells))
            continue;
        ck_assert_uint_lt(row, ie__option_row_count);
        ck_assert_str_eq(cells[0], ie__option_rows[row].name);
        ck_assert_str_eq(cells[1], ie__option_rows[row].unit);
        ck_assert_uint_eq(number(cells[2]), ie__option_rows[row].fallback);
        ck_assert_uint_eq(number(cells[3]), ie__option_rows[row].min);
        ck_assert_uint_eq(number(cells[4]), ie__option_rows[row].max);
        row++;
    }
    (void)fclose(in);
    ck_assert_uint_eq(row, ie__option_row_count);
}
END_TEST

START_TEST(the_initialiser_fills_in_the_defaults)
{
    ie_worker_options options;

    memset(&options, 0xff, sizeof options);
    IE_WORKER_OPTIONS_INIT(&options);
    ck_assert_uint_eq(options.size, sizeof options);
    ck_assert_ptr_null(options.db);
    ck_assert_ptr_eq(options.publishers, ie_publishers_builtin());
#define CHECK_FIELD(name, unit, fallback, min, max)                                                \
    ck_assert_uint_eq(options.name, (uint32_t)(fallback));
    IE_WORKER_OPTION_MAP(CHECK_FIELD)
#undef CHECK_FIELD
    ck_assert_int_eq(ie__options_check(&options, NULL), IE_OK);
}
END_TEST

/* Sets option number row, and the partner that must not be below or above it. */
static void
set_option(ie_worker_options *options, size_t row, uint32_t value)
{
    IE_WORKER_OPTIONS_INIT(options);
    memcpy((char *)options + ie__option_rows[row].offset, &value, sizeof value);
    if (strcmp(ie__option_rows[row].name, "retry_delay_ms") == 0)
        options->retry_delay_max_ms = 86400000;
    if (strcmp(ie__option_rows[row].name, "breaker_delay_ms") == 0)
        options->breaker_delay_max_ms = 86400000;
    if (strcmp(ie__option_rows[row].name, "retry_delay_max_ms") == 0)
        options->retry_delay_ms = 1;
    if (strcmp(ie__option_rows[row].name, "breaker_delay_max_ms") == 0)
        options->breaker_delay_ms = 1;
}

START_TEST(a_value_at_a_bound_passes_and_one_past_it_is_refused_by_name)
{
    const ie__option_row *row = &ie__option_rows[_i];
    ie_worker_options     options;
    ie_error              err = IE_ERROR_INIT;

    set_option(&options, (size_t)_i, row->min);
    ck_assert_int_eq(ie__options_check(&options, NULL), IE_OK);
    set_option(&options, (size_t)_i, row->max);
    ck_assert_int_eq(ie__options_check(&options, NULL), IE_OK);
    ck_assert_uint_lt(row->max, UINT32_MAX);
    set_option(&options, (size_t)_i, row->max + 1);
    ck_assert_int_eq(ie__options_check(&options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, row->name));
    if (row->min > 0) {
        ie_error_clear(&err);
        set_option(&options, (size_t)_i, row->min - 1);
        ck_assert_int_eq(ie__options_check(&options, &err), IE_EINVAL);
        ck_assert_ptr_nonnull(strstr(err.message, row->name));
    }
}
END_TEST

START_TEST(a_first_delay_above_the_longest_is_refused)
{
    ie_worker_options options;
    ie_error          err = IE_ERROR_INIT;

    IE_WORKER_OPTIONS_INIT(&options);
    options.retry_delay_ms = options.retry_delay_max_ms;
    ck_assert_int_eq(ie__options_check(&options, NULL), IE_OK);
    options.retry_delay_ms++;
    ck_assert_int_eq(ie__options_check(&options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "retry_delay_max_ms"));
    ie_error_clear(&err);
    IE_WORKER_OPTIONS_INIT(&options);
    options.breaker_delay_ms = options.breaker_delay_max_ms + 1;
    ck_assert_int_eq(ie__options_check(&options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "breaker_delay_max_ms"));
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("options");
    TCase   *tcase = tcase_create("options");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_add_test(tcase, the_document_lists_every_option_with_its_unit_and_bounds);
    tcase_add_test(tcase, the_initialiser_fills_in_the_defaults);
    tcase_add_loop_test(tcase, a_value_at_a_bound_passes_and_one_past_it_is_refused_by_name, 0,
                        (int)ie__option_row_count);
    tcase_add_test(tcase, a_first_delay_above_the_longest_is_refused);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
