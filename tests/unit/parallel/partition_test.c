/* partition_test.c - ranges cover everything once, in order, evenly; heads and KV heads stay matched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "partition.h"

static void ranges_cover_in_order(void **state)
{
    (void)state;
    for (int64_t n = 0; n < 200; n++) {
        for (int64_t unit = 1; unit <= 64; unit *= 4) {
            for (int parts = 1; parts <= 8; parts++) {
                int64_t at = 0, longest = 0, shortest = INT64_MAX;
                for (int part = 0; part < parts; part++) {
                    struct range range = range_split(n, unit, parts, part);
                    assert_int_equal(range.begin, at);
                    assert_true(range.end >= range.begin);
                    assert_true(range.begin % unit == 0 || range.begin == n);
                    at = range.end;
                    int64_t units = (range_len(range) + unit - 1) / unit;
                    if (units > longest) longest = units;
                    if (units < shortest) shortest = units;
                    assert_true(part == 0 || range_len(range) <= range_len(range_split(n, unit, parts, part - 1)));
                }
                assert_int_equal(at, n);
                assert_true(longest - shortest <= 1);
            }
        }
    }
}

static void remainders_go_to_the_first(void **state)
{
    (void)state;
    assert_int_equal(range_split(10, 1, 4, 0).end, 3);
    assert_int_equal(range_split(10, 1, 4, 1).end, 6);
    assert_int_equal(range_split(10, 1, 4, 2).end, 8);
    assert_int_equal(range_split(10, 1, 4, 3).end, 10);
    assert_int_equal(range_split(100, 64, 2, 0).end, 64);
    assert_int_equal(range_len(range_split(100, 64, 3, 2)), 0);
}

/* Every query head has exactly one owner; the owner holds its KV head; within a rank the heads spread evenly. */
static void check_heads(int num_heads, int num_kv_heads, int tp_size)
{
    int64_t at = 0;
    for (int tp_rank = 0; tp_rank < tp_size; tp_rank++) {
        struct range heads, kv_heads;
        heads_split(num_heads, num_kv_heads, tp_size, tp_rank, &heads, &kv_heads);
        assert_int_equal(heads.begin, at);
        at = heads.end;
        assert_true(range_len(heads) >= 1 && range_len(kv_heads) >= 1);
        assert_int_equal(range_len(heads) % range_len(kv_heads), 0);
        int64_t group = num_heads / num_kv_heads, local_group = range_len(heads) / range_len(kv_heads);
        for (int64_t h = heads.begin; h < heads.end; h++) {
            assert_int_equal(kv_heads.begin + (h - heads.begin) / local_group, h / group);
        }
    }
    assert_int_equal(at, num_heads);
}

static void heads_follow_their_kv_heads(void **state)
{
    (void)state;
    for (int num_kv_heads = 1; num_kv_heads <= 16; num_kv_heads++) {
        for (int group = 1; group <= 8; group++) {
            for (int tp_size = 1; tp_size <= 8 && tp_size <= num_kv_heads * group; tp_size++) {
                check_heads(num_kv_heads * group, num_kv_heads, tp_size);
            }
        }
    }
}

static void smollm2_over_two_and_four(void **state)
{
    struct range heads, kv_heads;
    (void)state;
    heads_split(9, 3, 2, 0, &heads, &kv_heads);
    assert_int_equal(heads.end, 6);
    assert_int_equal(kv_heads.end, 2);
    heads_split(9, 3, 2, 1, &heads, &kv_heads);
    assert_int_equal(heads.begin, 6);
    assert_int_equal(heads.end, 9);
    heads_split(9, 3, 4, 1, &heads, &kv_heads);             /* KV head 0 is shared by ranks 0 and 1 */
    assert_int_equal(heads.begin, 2);
    assert_int_equal(heads.end, 3);
    assert_int_equal(kv_heads.begin, 0);
    assert_int_equal(kv_heads.end, 1);
}

static void wide_ranges_leave_no_rank_empty(void **state)
{
    (void)state;
    assert_int_equal(wide_split(1536, 3, 1).begin, 512);
    for (int64_t n = 8; n < 1500; n++) {
        for (int tp_size = 1; tp_size <= 8; tp_size++) {
            int64_t sum = 0;
            for (int tp_rank = 0; tp_rank < tp_size; tp_rank++) {
                struct range range = wide_split(n, tp_size, tp_rank);
                assert_true(range_len(range) > 0);
                assert_true(range_len(range) <= range_len(wide_split(n, tp_size, 0)));
                sum += range_len(range);
            }
            assert_int_equal(sum, n);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_cover_in_order),       cmocka_unit_test(remainders_go_to_the_first),
        cmocka_unit_test(heads_follow_their_kv_heads), cmocka_unit_test(smollm2_over_two_and_four),
        cmocka_unit_test(wide_ranges_leave_no_rank_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
