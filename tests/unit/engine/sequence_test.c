#include "helpers.h"

#include <sluice/err.h>

#include "prefix_cache.h"

static void a_submission_holds_all_that_is_needed(void **state)
{
    struct engine_request req = test_request(7, 10, 9, 5);
    token_id stop_ids[] = { 3, 4 }, bias_ids[] = { 5 };
    float bias_values[] = { 2.5f };

    (void)state;
    req.num_stop_ids = 2;
    req.stop_ids = stop_ids;
    req.num_bias = 1;
    req.bias_ids = bias_ids;
    req.bias_values = bias_values;
    struct submission *sub = submission_new(&req, &test_limits);
    assert_int_equal(sub->kind, SUBMISSION_START);
    assert_int_equal(sub->max_total, 14);
    assert_int_equal(sub->num_tokens, 9);
    assert_int_equal(sub->num_keys, 2);                /* two full blocks of 4 */
    stop_ids[1] = bias_ids[0] = 99;                    /* nothing of the frame is borrowed */
    assert_int_equal(sub->req.stop_ids[1], 4);
    assert_int_equal(sub->req.bias_ids[0], 5);
    assert_true(sub->req.bias_values[0] == 2.5f);
    sub->tokens[13] = 1;
    submission_free(sub);
}

static void the_context_bounds_a_request(void **state)
{
    (void)state;
    struct submission *sub = test_submission(1, 0, TEST_MAX_LEN - 1, 1000);
    assert_int_equal(sub->kind, SUBMISSION_START);
    assert_int_equal(sub->max_total, TEST_MAX_LEN);
    submission_free(sub);
    sub = test_submission(2, 0, TEST_MAX_LEN, 1);
    assert_int_equal(sub->kind, SUBMISSION_REFUSED);
    assert_int_equal(sub->err_code, ERR_CONTEXT_LENGTH);
    assert_int_equal(sub->id, 2);
    submission_free(sub);
}

static void keys_depend_on_domain_and_every_token_before(void **state)
{
    struct engine_request req = test_request(1, 10, 8, 5);
    token_id changed[8];

    (void)state;
    struct submission *a = submission_new(&req, &test_limits), *b = submission_new(&req, &test_limits);
    assert_memory_equal(a->keys, b->keys, 2 * sizeof *a->keys);
    submission_free(b);
    req.cache_domain[31] = 1;
    b = submission_new(&req, &test_limits);
    assert_memory_not_equal(&a->keys[0], &b->keys[0], sizeof *a->keys);
    submission_free(b);
    req.cache_domain[31] = 0;
    memcpy(changed, req.tokens, sizeof changed);
    changed[0]++;
    req.tokens = changed;
    b = submission_new(&req, &test_limits);
    assert_memory_not_equal(&a->keys[1], &b->keys[1], sizeof *a->keys);
    submission_free(b);
    submission_free(a);
}

static void id_map_survives_collisions_and_removal(void **state)
{
    struct id_map map;
    bool present[200] = { false };

    (void)state;
    assert_int_equal(id_map_init(&map, 100), 0);
    uint32_t random = 1, count = 0;
    for (int i = 0; i < 100000; i++) {
        random = random * 1664525u + 1013904223u;
        uint64_t key = (random >> 8) % 200;
        assert_int_equal(id_map_get(&map, key), present[key] ? (int32_t)key + 5 : -1);
        if (present[key]) id_map_remove(&map, key);
        else if (count < 100) id_map_put(&map, key, (int32_t)key + 5);
        else continue;
        count += present[key] ? -1u : 1u;
        present[key] = !present[key];
        assert_int_equal(map.count, count);
    }
    for (uint64_t key = 0; key < 200; key++)
        assert_int_equal(id_map_get(&map, key), present[key] ? (int32_t)key + 5 : -1);
    id_map_remove(&map, 12345);                        /* absent: fine */
    id_map_release(&map);
}

static void the_pool_is_bounded_and_ids_are_unique(void **state)
{
    struct sequence_pool pool;
    struct submission *subs[4];

    (void)state;
    assert_int_equal(sequence_pool_init(&pool, 2), 0);
    for (uint64_t i = 0; i < 4; i++) subs[i] = test_submission(i < 3 ? i + 1 : 1, 0, 3, 3);
    struct sequence *one = sequence_pool_take(&pool, subs[0]);
    assert_null(sequence_pool_take(&pool, subs[3]));   /* id 1 again */
    struct sequence *two = sequence_pool_take(&pool, subs[1]);
    assert_null(sequence_pool_take(&pool, subs[2]));   /* full */
    assert_ptr_equal(sequence_pool_find(&pool, 1), one);
    assert_ptr_equal(sequence_pool_find(&pool, 2), two);
    sequence_pool_give(&pool, one);
    assert_null(sequence_pool_find(&pool, 1));
    assert_ptr_equal(sequence_pool_take(&pool, subs[2]), one);
    assert_int_equal(one->id, 3);
    submission_free(subs[0]);
    submission_free(subs[3]);
    sequence_pool_release(&pool);                      /* frees what is still inside */
}

static void order_is_arrival_with_priority_worth_some_seconds(void **state)
{
    struct submission_limits limits = test_limits;
    struct sequence_pool pool;
    struct sequence *seqs[4];
    const int32_t priorities[] = { 1, 0, 0, 0 };
    const int64_t arrivals[] = { 1, 9, 9, PRIORITY_STEP_MS + 2 };

    (void)state;
    assert_int_equal(sequence_pool_init(&pool, 4), 0);
    for (int i = 0; i < 4; i++) {
        struct engine_request req = test_request((uint64_t)i + 1, 10, 4, 4);
        req.priority = priorities[i];
        req.arrival_ms = arrivals[i];
        assert_non_null(seqs[i] = sequence_pool_take(&pool, submission_new(&req, &limits)));
        seqs[i]->order = (uint64_t)i;
    }
    assert_true(seq_before(seqs[1], seqs[0]));         /* better value */
    assert_false(seq_before(seqs[0], seqs[1]));
    assert_true(seq_before(seqs[1], seqs[2]));         /* same value and time: who came first */
    assert_false(seq_before(seqs[1], seqs[1]));
    assert_true(seq_before(seqs[0], seqs[3]));         /* it has waited long enough */
    sequence_pool_release(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_submission_holds_all_that_is_needed),
        cmocka_unit_test(the_context_bounds_a_request),
        cmocka_unit_test(keys_depend_on_domain_and_every_token_before),
        cmocka_unit_test(id_map_survives_collisions_and_removal),
        cmocka_unit_test(the_pool_is_bounded_and_ids_are_unique),
        cmocka_unit_test(order_is_arrival_with_priority_worth_some_seconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
