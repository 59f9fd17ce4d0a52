#include "helpers.h"

#include "kv_cache.h"

enum { NUM_BLOCKS = 8, TABLE = 16, MAX_SEQS = 3 };

/* Up to three sequences over 8 blocks of 4 tokens. */
struct bench {
    struct kv_cache kv;
    struct sequence seqs[MAX_SEQS];
    block_id tables[MAX_SEQS][TABLE];
};

static int setup(void **state)
{
    struct bench *bench = calloc(1, sizeof *bench);

    if (!bench) return -1;
    *state = bench;
    return kv_cache_init(&bench->kv, NUM_BLOCKS, TEST_BLOCK_SIZE, true, NULL);
}

static int teardown(void **state)
{
    struct bench *bench = *state;

    for (int i = 0; i < MAX_SEQS; i++) submission_free(bench->seqs[i].sub);
    kv_cache_release(&bench->kv);
    free(bench);
    return 0;
}

static struct sequence *start(struct bench *bench, int i, token_id first, int32_t num_tokens)
{
    struct sequence *seq = &bench->seqs[i];

    submission_free(seq->sub);
    *seq = (struct sequence){.id = (uint64_t)i,
                             .sub = test_submission((uint64_t)i, first, (uint32_t)num_tokens, 20),
                             .blocks = bench->tables[i]};
    seq->tokens = seq->sub->tokens;
    seq->num_tokens = seq->num_prompt = num_tokens;
    return seq;
}

static void check(struct bench *bench)
{
    struct sequence *seqs[MAX_SEQS];
    int32_t scratch[NUM_BLOCKS];

    for (int i = 0; i < MAX_SEQS; i++) seqs[i] = &bench->seqs[i];
    kv_cache_check(&bench->kv, seqs, MAX_SEQS, scratch);
}

static void compute_all(struct bench *bench, struct sequence *seq)
{
    assert_int_equal(kv_cache_reserve(&bench->kv, seq, seq->num_tokens), 0);
    seq->num_computed = seq->num_tokens;
    kv_cache_publish(&bench->kv, seq);
    check(bench);
}

static void reserve_is_all_or_nothing(void **state)
{
    struct bench *bench = *state;
    struct sequence *seq = start(bench, 0, 0, 40);

    assert_int_equal(kv_cache_reserve(&bench->kv, seq, 33), ERR_NO_BLOCKS);
    assert_int_equal(bench->kv.num_free, NUM_BLOCKS);          /* nothing moved */
    assert_int_equal(seq->num_blocks, 0);
    assert_int_equal(kv_cache_reserve(&bench->kv, seq, 5), 0);
    assert_int_equal(seq->num_blocks, 2);
    assert_int_equal(kv_cache_reserve(&bench->kv, seq, 8), 0); /* fits the second block */
    assert_int_equal(seq->num_blocks, 2);
    assert_int_equal(kv_cache_reserve(&bench->kv, seq, 32), 0);
    assert_int_equal(bench->kv.num_free, 0);
    check(bench);
    kv_cache_drop(&bench->kv, seq);
    kv_cache_drop(&bench->kv, seq);                            /* idempotent */
    assert_int_equal(bench->kv.num_free, NUM_BLOCKS);
    check(bench);
}

static void a_prefix_is_shared_and_the_last_token_recomputed(void **state)
{
    struct bench *bench = *state;
    struct sequence *a = start(bench, 0, 0, 12), *b = start(bench, 1, 0, 12);

    compute_all(bench, a);
    struct kv_match match = kv_cache_match(&bench->kv, b);
    assert_int_equal(match.num_hits, 2);       /* 12 tokens are 3 full blocks, but the last token needs its logits */
    assert_int_equal(match.num_parked_hits, 0);
    kv_cache_adopt(&bench->kv, b, &match);
    assert_int_equal(b->num_computed, 8);
    assert_int_equal(b->blocks[0], a->blocks[0]);
    assert_int_equal(b->blocks[1], a->blocks[1]);
    check(bench);
    compute_all(bench, b);                     /* the third block is its own, of equal content: stays private */
    assert_int_not_equal(b->blocks[2], a->blocks[2]);
    assert_int_equal(bench->kv.num_used, 4);
    kv_cache_drop(&bench->kv, a);
    check(bench);
    kv_cache_drop(&bench->kv, b);
    check(bench);
    assert_int_equal(bench->kv.num_used, 0);
    assert_int_equal(bench->kv.prefix.num_lru, 3);
    assert_int_equal(bench->kv.num_free, NUM_BLOCKS - 3);
}

static void cached_blocks_are_evicted_from_the_end_of_a_sequence(void **state)
{
    struct bench *bench = *state;
    struct sequence *a = start(bench, 0, 0, 16);

    compute_all(bench, a);
    kv_cache_drop(&bench->kv, a);              /* 4 cached, 4 free */
    struct sequence *b = start(bench, 1, 500, 24);
    compute_all(bench, b);                     /* takes 2 of the cached ones */
    struct sequence *c = start(bench, 2, 0, 17);
    assert_int_equal(kv_cache_match(&bench->kv, c).num_hits, 2);
    check(bench);
}

static void only_full_computed_blocks_are_published(void **state)
{
    struct bench *bench = *state;
    struct sequence *a = start(bench, 0, 0, 16), *b = start(bench, 1, 0, 16);

    assert_int_equal(kv_cache_reserve(&bench->kv, a, 16), 0);
    a->num_computed = 7;                       /* one block and three quarters */
    kv_cache_publish(&bench->kv, a);
    assert_int_equal(kv_cache_match(&bench->kv, b).num_hits, 1);
    check(bench);
}

static void distrusted_blocks_are_not_found_again(void **state)
{
    struct bench *bench = *state;
    struct sequence *a = start(bench, 0, 0, 12), *b = start(bench, 1, 0, 20), *c = start(bench, 2, 0, 20);

    compute_all(bench, a);
    struct kv_match match = kv_cache_match(&bench->kv, b);
    kv_cache_adopt(&bench->kv, b, &match);
    compute_all(bench, b);                     /* 3 from a, 2 of its own */
    kv_cache_distrust(&bench->kv, b);
    assert_int_equal(kv_cache_match(&bench->kv, c).num_hits, 3);
    b->num_computed = 20;
    kv_cache_publish(&bench->kv, b);           /* never again */
    assert_int_equal(kv_cache_match(&bench->kv, c).num_hits, 3);
    kv_cache_drop(&bench->kv, b);
    check(bench);
}

static void without_prefix_caching_nothing_is_kept(void **state)
{
    struct bench *bench = *state;

    bench->kv.prefix_caching = false;
    struct sequence *a = start(bench, 0, 0, 16), *b = start(bench, 1, 0, 16);
    compute_all(bench, a);
    assert_int_equal(kv_cache_match(&bench->kv, b).num_hits, 0);
    kv_cache_drop(&bench->kv, a);
    assert_int_equal(bench->kv.num_free, NUM_BLOCKS);
    check(bench);
}

static double value_of(struct samples *samples, enum sample_kind kind)
{
    double value = -1;

    for (int32_t i = 0; i < samples->num; i++) {
        if (samples->at[i].kind == (uint32_t)kind) value = samples->at[i].value;
    }
    return value;
}

static void ages_of_blocks_are_sampled(void **state)
{
    struct bench *bench = *state;
    static struct samples samples;
    const int64_t second_ns = 1000000000;

    samples.num = 0;
    assert_int_equal(kv_cache_measure(&bench->kv, &samples, NULL), 0);
    bench->kv.now_ns = second_ns;
    struct sequence *seq = start(bench, 0, 0, 5);
    compute_all(bench, seq);
    bench->kv.now_ns = 2 * second_ns;
    kv_cache_drop(&bench->kv, seq);
    assert_int_equal(samples.num, 0);
    bench->kv.now_ns = 5 * second_ns;                          /* its full block is found 3 s after it was left */
    seq = start(bench, 0, 0, 5);
    struct kv_match match = kv_cache_match(&bench->kv, seq);
    kv_cache_adopt(&bench->kv, seq, &match);
    assert_int_equal(samples.num, 1);
    assert_true(value_of(&samples, SAMPLE_BLOCK_REUSE) == 3);
    bench->kv.now_ns = 6 * second_ns;
    kv_cache_drop(&bench->kv, seq);
    bench->kv.now_ns = 10 * second_ns;                         /* all others are taken first */
    seq = start(bench, 1, 100, NUM_BLOCKS * TEST_BLOCK_SIZE);
    compute_all(bench, seq);
    assert_int_equal(samples.num, 3);
    assert_true(value_of(&samples, SAMPLE_BLOCK_LIFETIME) == 9 && value_of(&samples, SAMPLE_BLOCK_IDLE) == 4);
    for (int i = 0; i < 2 * SAMPLES_MAX; i++) sample_add(&samples, SAMPLE_CANCEL, i - 5.0);
    assert_int_equal(samples.num, SAMPLES_MAX);                /* the rest is left out */
    assert_true(samples.at[3].value == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reserve_is_all_or_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_prefix_is_shared_and_the_last_token_recomputed, setup, teardown),
        cmocka_unit_test_setup_teardown(cached_blocks_are_evicted_from_the_end_of_a_sequence, setup, teardown),
        cmocka_unit_test_setup_teardown(only_full_computed_blocks_are_published, setup, teardown),
        cmocka_unit_test_setup_teardown(distrusted_blocks_are_not_found_again, setup, teardown),
        cmocka_unit_test_setup_teardown(without_prefix_caching_nothing_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(ages_of_blocks_are_sampled, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
