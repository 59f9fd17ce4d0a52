/* What is timed, in which order, with how many rows. */
#include <stdlib.h>
#include <string.h>

#include "gemm_agenda.c"
#include "gemm_cache.c"
#include "unit/base/cmocka_all.h"

static struct gemm_table table;
static struct gemm_agenda agenda;
static const struct gemm_shape shapes[] = { { .n = 6144, .k = 4096 }, { .n = 24576, .k = 4096, .silu_mul = true },
                                            { .n = 151936, .k = 4096, .out_f32 = true, .max_rows = 100 } };
enum { QKV, GATE_UP, HEAD, NUM_SHAPES };

static void make(int num_shapes, int32_t max_rows) { gemm_agenda_make(&agenda, &table, shapes, num_shapes, 9, max_rows, 0); }

static void put(int shape, int32_t bucket, bool silu_mul, bool tuned)
{
    const struct gemm_shape *s = &shapes[shape];
    assert_true(gemm_table_put(&table, &(struct gemm_entry){ .n = s->n, .k = s->k, .rows = bucket, .out_f32 = s->out_f32, .silu_mul = silu_mul, .tuned = tuned }));
}

static void expect(int shape, int32_t bucket, int32_t rows)
{
    const struct gemm_item *item = gemm_agenda_next(&agenda);
    assert_non_null(item);
    assert_int_equal(item->shape, shape);
    assert_int_equal(item->bucket, bucket);
    assert_int_equal(item->rows, rows);
}

static int setup(void **state)
{
    (void)state;
    memset(&table, 0, sizeof table);
    return 0;
}

static void few_rows_come_first_and_each_shape_has_its_most(void **state)
{
    static const int32_t buckets[] = { 16, 24, 32, 48, 64, 96, 128 };
    (void)state;
    make(NUM_SHAPES, 192);
    assert_int_equal(agenda.total, 7 * 3 + 2);             /* above 128 rows no head */
    assert_int_equal(gemm_agenda_left(&agenda), agenda.total);
    for (int i = 0; i < 7; i++) {
        expect(QKV, buckets[i], buckets[i]);
        expect(GATE_UP, buckets[i], buckets[i]);
        expect(HEAD, buckets[i], buckets[i] < 100 ? buckets[i] : 100);
    }
    expect(QKV, 192, 192);                                 /* 129 to 192 rows are all timed with the bucket's end */
    expect(GATE_UP, 192, 192);
    assert_null(gemm_agenda_next(&agenda));
    assert_int_equal(gemm_agenda_left(&agenda), 0);
    make(NUM_SHAPES, 193);
    for (int i = 0; i < 23; i++) assert_non_null(gemm_agenda_next(&agenda));
    expect(QKV, 256, 193);                                 /* there is memory for no more */
    expect(GATE_UP, 256, 193);
    assert_null(gemm_agenda_next(&agenda));
}

static void what_is_known_is_left_out(void **state)
{
    struct gemm_shape few[NUM_SHAPES];
    (void)state;
    memcpy(few, shapes, sizeof few);
    few[HEAD].max_rows = 24;
    put(QKV, 16, false, true);
    put(GATE_UP, 16, false, true);                         /* with silu it was not timed */
    put(HEAD, 16, false, false);                           /* a guess is no timing */
    put(GATE_UP, 24, false, true);
    put(GATE_UP, 24, true, true);
    gemm_agenda_make(&agenda, &table, few, NUM_SHAPES, 9, 24, 0);
    assert_int_equal(agenda.total, 6);
    assert_int_equal(gemm_agenda_left(&agenda), 4);
    expect(GATE_UP, 16, 16);
    expect(HEAD, 16, 16);
    expect(QKV, 24, 24);
    expect(HEAD, 24, 24);
    assert_null(gemm_agenda_next(&agenda));
    for (int i = 0; i < NUM_SHAPES; i++) { put(i, 16, false, true); put(i, 24, false, true); }
    put(GATE_UP, 16, true, true);
    gemm_agenda_make(&agenda, &table, few, NUM_SHAPES, 9, 24, 0);
    assert_int_equal(agenda.total, 6);
    assert_null(gemm_agenda_next(&agenda));
}

static void nothing_for_few_rows_and_no_end_for_many(void **state)
{
    int32_t bucket = 0;
    const struct gemm_item *item;
    (void)state;
    make(1, 8);
    assert_int_equal(agenda.total, 0);
    assert_null(gemm_agenda_next(&agenda));
    make(0, 1000);
    assert_int_equal(agenda.total, 0);
    static const struct gemm_shape tiny[] = { { .n = 1536, .k = 576 } };
    gemm_agenda_make(&agenda, &table, tiny, 1, 1, 7, 0);      /* from the first row on */
    assert_int_equal(agenda.total, 4);
    for (int32_t rows = 1; rows <= 4; rows *= 2) expect(0, rows, rows);
    expect(0, 8, 7);
    gemm_agenda_make(&agenda, &table, shapes, 1, 1, 7, 0);    /* of a weight that is not tiny one and two rows are gemv's */
    assert_int_equal(agenda.total, 2);
    expect(QKV, 4, 4);
    expect(QKV, 8, 7);
    make(1, 1 << 20);                                      /* the last bucket has all above, timed with its end */
    while ((item = gemm_agenda_next(&agenda))) {
        assert_true(item->bucket > bucket && item->rows == item->bucket);
        bucket = item->bucket;
    }
    assert_int_equal(bucket, gemm_bucket(1 << 20));
    make(1, 8193);
    assert_int_equal(agenda.items[agenda.num_items - 1].rows, 8192);
}

static void put_in_layer(int shape, int32_t bucket)
{
    put(shape, bucket, false, true);
    gemm_table_find(&table, shapes[shape].n, shapes[shape].k, bucket, shapes[shape].out_f32, false)->in_layer = true;
}

static void layers_follow_all_shapes(void **state)
{
    struct gemm_shape few[NUM_SHAPES];
    (void)state;
    memcpy(few, shapes, sizeof few);
    few[HEAD].max_rows = 32;
    gemm_agenda_make(&agenda, &table, few, NUM_SHAPES, 9, 32, 20);
    assert_int_equal(agenda.total, 3 * 3 + 2);
    for (int32_t bucket = 16; bucket <= 32; bucket += 8)
        for (int i = 0; i < NUM_SHAPES; i++) expect(i, bucket, bucket);
    expect(GEMM_LAYER, 16, 16);
    expect(GEMM_LAYER, 24, 20);                            /* no step of decodes has more */
    assert_null(gemm_agenda_next(&agenda));
}

static void what_was_timed_alone_is_timed_again_for_its_layer(void **state)
{
    struct gemm_shape few[NUM_SHAPES];
    (void)state;
    memcpy(few, shapes, sizeof few);
    few[HEAD].max_rows = 16;
    put(QKV, 16, false, true);
    put_in_layer(GATE_UP, 16);
    put(GATE_UP, 16, true, true);
    gemm_agenda_make(&agenda, &table, few, NUM_SHAPES, 9, 16, 16);
    expect(QKV, 16, 16);
    expect(HEAD, 16, 16);
    expect(GEMM_LAYER, 16, 16);
    assert_null(gemm_agenda_next(&agenda));
    put_in_layer(QKV, 16);
    gemm_agenda_make(&agenda, &table, few, NUM_SHAPES, 9, 16, 16);
    expect(HEAD, 16, 16);                                  /* is in no layer */
    assert_null(gemm_agenda_next(&agenda));
    assert_int_equal(agenda.total, 4);
    gemm_agenda_make(&agenda, &table, few, 2, 9, 16, 16);
    assert_int_equal(gemm_agenda_left(&agenda), 0);
}

static void two_weights_of_one_shape_are_timed_once(void **state)
{
    struct gemm_shape twice[] = { shapes[QKV], shapes[QKV], shapes[GATE_UP] };
    (void)state;
    gemm_agenda_make(&agenda, &table, twice, 3, 9, 16, 0);
    assert_int_equal(agenda.total, 2);
    expect(0, 16, 16);
    expect(2, 16, 16);
}

static void more_than_fits_is_cut_off(void **state)
{
    struct gemm_shape many[GEMM_MAX_SHAPES] = { 0 };
    (void)state;
    for (int i = 0; i < GEMM_MAX_SHAPES; i++) many[i] = (struct gemm_shape){ .n = 8 * (i + 1), .k = 64 };
    gemm_agenda_make(&agenda, &table, many, GEMM_MAX_SHAPES, 9, 8192, 0);
    assert_int_equal(agenda.total, GEMM_MAX_SHAPES * 16);
    assert_in_range(gemm_agenda_left(&agenda), 1, GEMM_AGENDA_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test_setup(few_rows_come_first_and_each_shape_has_its_most, setup),
                                        cmocka_unit_test_setup(what_is_known_is_left_out, setup),
                                        cmocka_unit_test_setup(nothing_for_few_rows_and_no_end_for_many, setup),
                                        cmocka_unit_test_setup(layers_follow_all_shapes, setup),
                                        cmocka_unit_test_setup(what_was_timed_alone_is_timed_again_for_its_layer, setup),
                                        cmocka_unit_test_setup(two_weights_of_one_shape_are_timed_once, setup),
                                        cmocka_unit_test_setup(more_than_fits_is_cut_off, setup) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
