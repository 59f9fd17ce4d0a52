/* options_test.c - the table itself: every row is whole, names are found, hints are near. */
#include "options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void rows_are_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        assert_ptr_equal(option_find(option->name).option, option);   /* also: no name twice */
        assert_true(strlen(option->help) > 3);
        assert_int_equal(strspn(option->name, "abcdefghijklmnopqrstuvwxyz_"), strlen(option->name));
        assert_true(option->type == OPT_ENUM ? option->choices != NULL : option->choices == NULL);
        assert_true(option->offset < sizeof(struct config));
        assert_true(option->min <= option->max);
        for (size_t j = 0; j < i; j++) assert_int_not_equal(option_table[j].offset, option->offset);
    }
}

static void groups_are_contiguous(void **state)
{
    (void)state;
    for (size_t i = 1; i < option_count; i++) {
        if (strcmp(option_table[i].group, option_table[i - 1].group) == 0) continue;
        for (size_t j = 0; j < i; j++) assert_string_not_equal(option_table[j].group, option_table[i].group);
    }
}

static void aliases_reach_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_alias_count; i++) {
        struct option_ref ref = option_find(option_aliases[i].name);
        assert_non_null(ref.option);
        assert_string_equal(ref.option->name, option_aliases[i].target);
        assert_int_equal(ref.complement, option_aliases[i].complement);
        if (ref.complement) assert_int_equal(ref.option->type, OPT_REAL);
    }
    assert_null(option_find("max_num").option);
    assert_null(option_find("").option);
}

static void nearest_forgives_slips(void **state)
{
    (void)state;
    assert_string_equal(option_nearest("max_num_seq"), "max_num_seqs");
    assert_string_equal(option_nearest("max-num-seqs"), "max_num_seqs");
    assert_string_equal(option_nearest("prot"), "port");                 /* neighbours swapped */
    assert_string_equal(option_nearest("max_queue_request"), "max_queue_requests");
    assert_string_equal(option_nearest("gpu_memory_utilisation"), "gpu_memory_utilization");
    assert_string_equal(option_nearest("modle"), "model");
    assert_null(option_nearest("quantum_entanglement_factor_of_doom"));
    assert_null(option_nearest("a_name_that_is_much_longer_than_any_of_the_names_in_the_table_could_be"));
}

static void only_lists_may_be_verbatim(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        if (option_table[i].flags & OPTION_VERBATIM) assert_int_equal(option_table[i].type, OPT_LIST);
        /* a secret must never reach an engine's command line */
        if (option_table[i].flags & OPTION_SECRET) assert_false(option_table[i].flags & OPTION_ENGINE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_whole),
        cmocka_unit_test(groups_are_contiguous),
        cmocka_unit_test(aliases_reach_rows),
        cmocka_unit_test(nearest_forgives_slips),
        cmocka_unit_test(only_lists_may_be_verbatim),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
