/* attn_decode_plan_test.c - every tile of every item in exactly one range or dealt, ranges even, parts of a cut item told to all who share
 * it. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attn_decode_plan.h"
#include "unit/base/cmocka_all.h"

enum { NUM_SMS = 132, MAX_B = 512 };

struct totals { int64_t tiles, most, pieces, dealt; int32_t busy; };

/* Walks the ranges as the kernel does, 1 << shift of them as one, and checks all that it rests on. */
static struct totals check_walk(const struct attn_decode_shape *s, const int32_t *lens, int32_t n, int shift)
{
    int32_t grid = attn_decode_grid(s->head_dim, s->num_sms) >> shift, tile = attn_decode_tile(s->head_dim), items = attn_decode_items(s);
    struct attn_decode_cut *cuts = malloc(attn_decode_plan_bytes(s->num_sms));
    struct totals sum = { 0, 0, 0, 0, 0 };
    int32_t seq = 0, item = 0, at = 0, parts_seen = 0, first_seen = 0;

    assert_non_null(cuts);
    memset(cuts, 0xAB, attn_decode_plan_bytes(s->num_sms));
    attn_decode_plan(s, lens, n, cuts);
    assert_true(cuts[0].seq == 0 && cuts[0].item == 0 && cuts[0].tile == 0);
    const struct attn_decode_cut *behind = &cuts[grid << shift], *deal = &cuts[attn_decode_grid(s->head_dim, s->num_sms) + 1];
    assert_int_equal(deal->first, n);
    assert_true(behind->tile == 0 && behind->seq <= n && (behind->seq < n || behind->item == 0));
    assert_int_equal(deal->tile, (n - behind->seq) * items - behind->item);
    if (deal->tile > 0) assert_true(deal->seq == behind->seq && deal->item == behind->item);
    for (int32_t c = 0; c < grid; c++) {
        const struct attn_decode_cut *from = &cuts[c << shift], *to = &cuts[(c + 1) << shift];
        int64_t tiles = 0, pieces = 0;
        assert_true(from->seq == seq && from->item == item && from->tile == at);
        assert_int_equal(from->len, seq < n ? lens[seq] : 0);
        assert_int_equal(from->next_len, seq + 1 < n ? lens[seq + 1] : 0);
        while (seq < to->seq || (seq == to->seq && (item < to->item || (item == to->item && at < to->tile)))) {
            int32_t begin, end;
            attn_decode_tiles(tile, s->sliding_window, lens[seq], &begin, &end);
            bool last = seq == to->seq && item == to->item;
            int32_t stop = last ? to->tile : end - begin;
            assert_true(stop <= end - begin);
            if (lens[seq] <= 0) {                          /* padding: one piece of no tiles for all items */
                assert_true(!last && item == 0 && at == 0);
                seq++;
                continue;
            }
            assert_true(stop > at);
            if (at > 0) {
                assert_true(from->tile == at);
                assert_int_equal(from->first >> shift, first_seen);
                assert_true(from->last >> shift >= c);
                parts_seen++;
            } else {
                first_seen = c;
                parts_seen = 1;
            }
            if (stop < end - begin) assert_int_equal(to->first >> shift, first_seen);
            if (stop == end - begin && at > 0) {
                assert_int_equal(from->last >> shift, c);
                assert_int_equal(parts_seen, (from->last >> shift) - (from->first >> shift) + 1);
            }
            if (stop < end - begin) assert_true(to->last >> shift > c);
            tiles += stop - at;
            pieces++;
            at = stop;
            if (stop == end - begin) {
                at = 0;
                if (++item == items) {
                    item = 0;
                    seq++;
                }
            }
        }
        sum.tiles += tiles;
        sum.pieces += pieces;
        if (tiles > sum.most) sum.most = tiles;
        sum.busy += tiles > 0;
    }
    assert_true(seq == behind->seq && item == behind->item && at == 0);
    for (int32_t t = 0; t < deal->tile; t++) {
        int32_t begin, stop, i = (seq * items + item + t) / items;
        attn_decode_tiles(tile, s->sliding_window, lens[i], &begin, &stop);
        sum.tiles += stop - begin;
        sum.pieces += stop > begin;
        sum.dealt += stop - begin;
    }
    int64_t expected = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t begin, end;
        attn_decode_tiles(tile, s->sliding_window, lens[i], &begin, &end);
        expected += (int64_t)(end - begin) * items;
    }
    assert_int_equal(sum.tiles, expected);
    free(cuts);
    return sum;
}

static struct totals check_plan(const struct attn_decode_shape *s, const int32_t *lens, int32_t n)
{
    if (s->head_dim <= 128) check_walk(s, lens, n, 1);
    return check_walk(s, lens, n, 0);
}

static void a_tile_range_covers_what_the_query_sees(void **state)
{
    (void)state;
    for (int32_t len = 0; len < 700; len++)
        for (int32_t window = 0; window < 300; window += 37) {
            int32_t begin, end, from = window > 0 && len > window ? len - window : 0;
            attn_decode_tiles(64, window, len, &begin, &end);
            if (len == 0) assert_int_equal(begin, end);
            else assert_true(begin * 64 <= from && from < (begin + 1) * 64 && (end - 1) * 64 < len && len <= end * 64);
        }
}

static void random_lengths(void **state)
{
    static const int32_t dims[] = { 64, 80, 96, 128, 256 }, heads[][2] = { { 32, 8 }, { 9, 3 }, { 7, 1 }, { 16, 8 }, { 64, 4 }, { 71, 1 }, { 28, 4 } };
    int32_t lens[MAX_B];

    (void)state;
    srand(1);
    for (int round = 0; round < 3000; round++) {
        const int32_t *h = heads[rand() % 7];
        struct attn_decode_shape s = { h[0], h[1], dims[rand() % 5], rand() % 3 ? 0 : 1 + rand() % 3000, rand() % 4 ? NUM_SMS : 1 + rand() % 200 };
        int32_t n = 1 + rand() % (rand() % 2 ? 8 : MAX_B), most = 1 << rand() % 16;
        for (int32_t i = 0; i < n; i++) lens[i] = rand() % 10 ? 1 + rand() % most : 0;
        if (round % 5 == 0) for (int32_t i = n / 2; i < n; i++) lens[i] = 0;
        check_plan(&s, lens, n);
    }
}

/* No cta reads more than the average, the share of item costs and a tile of rounding. */
static void ranges_are_even(void **state)
{
    struct attn_decode_shape s = { 32, 8, 128, 0, NUM_SMS };
    int32_t grid = attn_decode_grid(128, NUM_SMS), lens[MAX_B];

    (void)state;
    for (int32_t i = 0; i < 256; i++) lens[i] = 4096;
    struct totals even = check_plan(&s, lens, 256);
    assert_true(even.most <= even.tiles / grid + 2);
    for (int32_t i = 0; i < 256; i++) lens[i] = 128;
    lens[77] = 32768;
    struct totals skewed = check_plan(&s, lens, 256);
    assert_true(skewed.most <= skewed.tiles / grid + 5);
    lens[0] = 32768;
    struct totals one = check_plan(&s, lens, 1);
    assert_true(one.busy >= grid * 9 / 10 && one.most <= one.tiles / one.busy + 2);
    lens[0] = 1;
    struct totals tiny = check_plan(&s, lens, 1);
    assert_true(tiny.tiles == 8 && tiny.pieces == 8);
    lens[0] = 4096;
    struct totals alike = check_walk(&s, lens, 1, 1);             /* no cta has the end of one item and the beginning of another */
    assert_int_equal(alike.pieces, alike.busy);
    for (int32_t i = 0; i < 256; i++) lens[i] = 256;
    for (int32_t n = 60; n <= 256; n++) {
        struct totals whole = check_walk(&s, lens, n, 0);         /* short items that come out even are not cut */
        int64_t each = (n * 8 + grid - 1) / grid, busy = (n * 8 + each - 1) / each;
        if (n * 8 >= ATTN_DECODE_DEAL_ITEMS * grid) assert_true(whole.pieces == n * 8 && whole.dealt >= whole.tiles / 2);
        else if (busy >= grid * 9 / 10 + 1 && (each * grid - n * 8) <= 4 * grid / 5) assert_true(whole.pieces == n * 8 && whole.busy == busy);
        assert_true(whole.most <= whole.tiles / grid + 5);
    }
    srand(2);
    for (int32_t i = 0; i < 256; i++) lens[i] = 128 + rand() % 257;
    struct totals uneven = check_walk(&s, lens, 256, 0);
    assert_true(uneven.pieces == 256 * 8 && uneven.dealt > 0 && uneven.most <= uneven.tiles / grid / 2 + 8);
    assert_true(even.dealt >= even.tiles / 2 && skewed.dealt == 0);      /* no item longer than half a share */
}

static void window_bounds_the_work(void **state)
{
    struct attn_decode_shape s = { 8, 4, 128, 1000, NUM_SMS };
    int32_t lens[2] = { 100000, 50 };

    (void)state;
    struct totals t = check_plan(&s, lens, 2);
    assert_true(t.tiles <= 4 * (1000 / 64 + 2 + 1));
}

static void padding_is_walked_over(void **state)
{
    struct attn_decode_shape s = { 32, 8, 128, 0, NUM_SMS };
    int32_t lens[256] = { 0 };

    (void)state;
    assert_int_equal(check_plan(&s, lens, 256).tiles, 0);
    assert_int_equal(check_plan(&s, lens, 0).tiles, 0);
    lens[3] = 100;
    assert_int_equal(check_plan(&s, lens, 256).tiles, 16);
}

static void planning_is_cheap(void **state)
{
    struct attn_decode_shape s = { 32, 8, 128, 0, NUM_SMS };
    int32_t lens[256];
    void *plan = malloc(attn_decode_plan_bytes(NUM_SMS));
    struct timespec a, b;
    double best = 1e9;

    (void)state;
    for (int32_t i = 0; i < 256; i++) lens[i] = 1 + i * 37 % 5000;
    for (int round = 0; round < 50; round++) {
        clock_gettime(CLOCK_MONOTONIC, &a);
        attn_decode_plan(&s, lens, 256, plan);
        clock_gettime(CLOCK_MONOTONIC, &b);
        double us = (double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) * 1e-3;
        if (us < best) best = us;
    }
    print_message("plan of 256 sequences: %.1f us\n", best);
    free(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tile_range_covers_what_the_query_sees), cmocka_unit_test(random_lengths), cmocka_unit_test(ranges_are_even),
        cmocka_unit_test(window_bounds_the_work), cmocka_unit_test(padding_is_walked_over), cmocka_unit_test(planning_is_cheap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
