/* ranks_test.c - every layout of ranks gives the model of one rank; chunks, blocks and batches do not change a bit of
 * it. A row with a target reports one logprob, so a plan with one such row per vocabulary entry shows a whole
 * distribution. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/rank.h>

#include "base/log.h"
#include "unit/model/tiny_model.h"
#include "unit/rank/plan_builder.h"

enum { BLOCK_SIZE = 16, NUM_BLOCKS = 40, MAX_BLOCKS = 8, MAX_TOKENS = 128, MAX_SEQS = 4, PROMPT = 45, DECODES = 3 };
enum { POSITIONS = 1 + DECODES };

struct distribution { float logprobs[TINY_VOCAB]; };

static struct ranks_options options_of(int tp_size, int pp_size)
{
    return (struct ranks_options){ .ops = &backend_cpu_ref, .tp_size = tp_size, .pp_size = pp_size, .threads = 1,
                                   .kv_dtype = DTYPE_F32, .max_num_seqs = MAX_SEQS, .max_num_batched_tokens =
                                       MAX_TOKENS,
                                   .max_model_len = 128, .block_size = BLOCK_SIZE, .max_rows = TINY_VOCAB,
                                   .headroom = 0.1, .num_blocks_override = NUM_BLOCKS, .seed = 7 };
}

static struct ranks *start(const struct model_source *src, int tp_size, int pp_size)
{
    struct ranks_options options = options_of(tp_size, pp_size);
    struct ranks *ranks = NULL;
    struct err err = { 0 };
    if (ranks_start(&ranks, src, &options, NULL, NULL, &err) < 0) fail_msg("tp %d pp %d: %s", tp_size, pp_size,
                                                                           err.message);
    return ranks;
}

static void prompt_of(token_id tokens[PROMPT + DECODES], int which)
{
    for (int i = 0; i < PROMPT + DECODES; i++) tokens[i] = (token_id)((i * i * 31 + which * 57 + i) % TINY_VOCAB);
}

/* ascending: neighbours in memory; else scattered over the pool. */
static void blocks_of(block_id blocks[MAX_BLOCKS], int which, bool ascending)
{
    for (int i = 0; i < MAX_BLOCKS; i++) blocks[i] = ascending ? which * MAX_BLOCKS + i
        : (i * 7 + 3 + which) % NUM_BLOCKS;
}

/* A shuffled pool, so that tables of different sequences interleave and no neighbour in a table is one in memory. */
static void shuffled_pool(block_id pool[NUM_BLOCKS], uint32_t seed)
{
    for (int i = 0; i < NUM_BLOCKS; i++) pool[i] = i;
    for (int i = NUM_BLOCKS - 1; i > 0; i--) {
        seed = seed * 1664525u + 1013904223u;
        int j = (int)((seed >> 8) % (uint32_t)(i + 1));
        block_id swap = pool[i];
        pool[i] = pool[j];
        pool[j] = swap;
    }
}

static struct step_plan *new_plan(void)
{
    return plan_new(MAX_TOKENS, MAX_SEQS, TINY_VOCAB, MAX_BLOCKS, BLOCK_SIZE);
}

static void all_targets(struct step_plan *plan, int32_t seq)
{
    for (token_id v = 0; v < TINY_VOCAB; v++) plan_add_row(plan, seq, plan_cu_seqlens_q(plan)[seq + 1] - 1, v);
}

/* Runs one sequence: its prompt in chunks of `chunk`, then decodes; the distribution after the prompt and each. */
static void run_sequence(struct ranks *ranks, int which, int chunk, bool ascending, struct distribution out[POSITIONS])
{
    token_id tokens[PROMPT + DECODES];
    block_id blocks[MAX_BLOCKS];
    struct result_row *rows = calloc(TINY_VOCAB, sizeof(*rows));
    struct step_result result = { .rows = rows };
    int32_t done = 0;
    prompt_of(tokens, which);
    blocks_of(blocks, which, ascending);
    while (done < PROMPT + DECODES) {
        int32_t len = done >= PROMPT ? 1 : done + chunk < PROMPT ? chunk : PROMPT - done;
        struct step_plan *plan = new_plan();
        struct err err = { 0 };
        plan_add_seq(plan, &(struct plan_seq){ .tokens = tokens, .done = done, .len = len, .blocks = blocks, .slot =
                                               which });
        done += len;
        if (done >= PROMPT) all_targets(plan, 0);
        if (step_plan_check(plan, ranks_num_blocks(ranks), TINY_VOCAB, &err) < 0) fail_msg("%s", err.message);
        plan->step = (uint64_t)done;
        assert_int_equal(ranks_execute(ranks, plan, &result), 0);
        assert_int_equal(result.step, done);
        assert_int_equal(result.num_rows, plan->num_rows);
        for (int v = 0; v < plan->num_rows; v++) out[done - PROMPT].logprobs[v] = rows[v].logprob;
        free(plan);
    }
    free(rows);
}

static double max_difference(const struct distribution *a, const struct distribution *b, int n)
{
    double max = 0;
    for (int p = 0; p < n; p++) {
        for (int v = 0; v < TINY_VOCAB; v++) max = fmax(max, fabs((double)a[p].logprobs[v] - (double)b[p].logprobs[v]));
    }
    return max;
}

/* A flat distribution would make every comparison pass. */
static void assert_telling(const struct distribution *d)
{
    float low = d->logprobs[0], high = low;
    for (int v = 1; v < TINY_VOCAB; v++) {
        low = fminf(low, d->logprobs[v]);
        high = fmaxf(high, d->logprobs[v]);
    }
    assert_true(high - low > 0.3f);
}

static void every_layout_is_one_model(void **state)
{
    static const int layouts[][2] = { { 2, 1 }, { 3, 1 }, { 4, 1 }, { 6, 1 }, { 1, 2 }, { 1, 3 }, { 1, 5 }, { 2, 2 },
                                      { 3, 2 } };
    (void)state;
    for (int i = 0; i < 2 * TINY_ARCHS; i++) {
        int arch = i % TINY_ARCHS;                           /* each with a tied and with a head of its own */
        struct model_source *src = tiny_open(arch, i < TINY_ARCHS, "");
        struct distribution want[POSITIONS], got[POSITIONS];
        assert_non_null(src);
        struct ranks *one = start(src, 1, 1);
        run_sequence(one, 1, PROMPT, true, want);
        ranks_stop(one);
        assert_telling(&want[0]);
        assert_true(max_difference(&want[0], &want[1], 1) > 0.01);
        for (size_t j = 0; j < sizeof(layouts) / sizeof(layouts[0]); j++) {
            struct ranks *ranks = start(src, layouts[j][0], layouts[j][1]);
            run_sequence(ranks, 1, PROMPT, true, got);
            ranks_stop(ranks);
            double difference = max_difference(want, got, POSITIONS);
            if (!(difference <= 1e-4)) fail_msg("arch %d tp %d pp %d: %g", arch, layouts[j][0], layouts[j][1],
                                                difference);
        }
        model_source_close(src);
    }
}

static void chunks_and_blocks_change_no_bit(void **state)
{
    (void)state;
    for (int arch = 0; arch < TINY_ARCHS; arch++) {
        struct model_source *src = tiny_open(arch, true, "");
        struct distribution whole[POSITIONS], other[POSITIONS];
        assert_non_null(src);
        struct ranks *ranks = start(src, 1, 1);
        run_sequence(ranks, 0, PROMPT, true, whole);
        for (int chunk = 1; chunk < PROMPT; chunk += 7) {
            run_sequence(ranks, 0, chunk, chunk % 2 == 0, other);
            assert_memory_equal(whole, other, sizeof(whole));
        }
        ranks_stop(ranks);
        model_source_close(src);
    }
}

/* Two sequences, one decoding while the other prefills, against each alone. */
static void neighbours_change_no_bit(void **state)
{
    struct model_source *src = tiny_open(0, true, "");
    struct distribution alone[POSITIONS];
    struct result_row *rows = calloc(TINY_VOCAB, sizeof(*rows));
    struct step_result result = { .rows = rows };
    token_id a[PROMPT + DECODES], b[PROMPT + DECODES];
    block_id blocks_a[MAX_BLOCKS], blocks_b[MAX_BLOCKS];
    (void)state;
    assert_non_null(src);
    struct ranks *ranks = start(src, 1, 1);
    run_sequence(ranks, 2, PROMPT, true, alone);
    prompt_of(a, 1);
    prompt_of(b, 2);
    blocks_of(blocks_a, 1, true);
    blocks_of(blocks_b, 3, true);
    struct step_plan *plan = new_plan();
    plan_add_seq(plan, &(struct plan_seq){ .tokens = a, .len = PROMPT, .blocks = blocks_a, .slot = 1 });
    assert_int_equal(ranks_execute(ranks, plan, &result), 0);
    step_plan_reset(plan);
    plan_add_seq(plan, &(struct plan_seq){ .tokens = a, .done = PROMPT, .len = 1, .blocks = blocks_a, .slot = 1 });
    plan_add_seq(plan, &(struct plan_seq){ .tokens = b, .len = PROMPT, .blocks = blocks_b, .slot = 2 });
    all_targets(plan, 1);
    assert_int_equal(ranks_execute(ranks, plan, &result), 0);
    for (int v = 0; v < TINY_VOCAB; v++) assert_memory_equal(&rows[v].logprob, &alone[0].logprobs[v], sizeof(float));
    free(plan);
    ranks_stop(ranks);
    model_source_close(src);
    free(rows);
}

/* Four sequences of one pool, their blocks dealt out at random, prefilled in turns by chunks of 13: each ends with the
 * distribution that it has alone in neighbouring blocks. */
static void run_scattered(struct ranks *ranks, uint32_t seed, struct distribution want[MAX_SEQS][POSITIONS])
{
    enum { CHUNK = 13 };
    block_id pool[NUM_BLOCKS];
    token_id tokens[PROMPT + DECODES];
    struct result_row *rows = calloc(TINY_VOCAB, sizeof(*rows));
    struct step_result result = { .rows = rows };
    shuffled_pool(pool, seed);
    for (int32_t done = 0; done < PROMPT; done += CHUNK) {
        int32_t len = done + CHUNK < PROMPT ? CHUNK : PROMPT - done;
        for (int i = 0; i < MAX_SEQS; i++) {
            struct step_plan *plan = new_plan();
            prompt_of(tokens, i);
            plan_add_seq(plan, &(struct plan_seq){ .tokens = tokens, .done = done, .len = len,
                                                   .blocks = pool + i * MAX_BLOCKS, .slot = i });
            if (done + len == PROMPT) all_targets(plan, 0);
            assert_int_equal(ranks_execute(ranks, plan, &result), 0);
            for (int v = 0; v < plan->num_rows; v++) {
                assert_memory_equal(&rows[v].logprob, &want[i][0].logprobs[v], sizeof(float));
            }
            free(plan);
        }
    }
    free(rows);
}

static void scattered_blocks_change_no_bit(void **state)
{
    static const int layouts[][2] = { { 1, 1 }, { 3, 1 }, { 4, 1 }, { 1, 2 }, { 2, 2 } };
    struct model_source *src = tiny_open(2, true, "");
    (void)state;
    assert_non_null(src);
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        struct ranks *ranks = start(src, layouts[i][0], layouts[i][1]);
        struct distribution want[MAX_SEQS][POSITIONS];
        for (int which = 0; which < MAX_SEQS; which++) run_sequence(ranks, which, PROMPT, true, want[which]);
        for (uint32_t seed = 1; seed <= 2; seed++) run_scattered(ranks, seed, want);
        ranks_stop(ranks);
    }
    model_source_close(src);
}

/* pp_size prompts at once through the stages; each comes back in order with what it gives alone. */
static void pipeline_keeps_plans_apart(void **state)
{
    enum { STAGES = 3, ROUNDS = 4 };
    struct model_source *src = tiny_open(2, true, "");
    struct distribution alone[STAGES][POSITIONS];
    struct step_plan *plans[STAGES];
    struct step_result results[STAGES] = { 0 }, *finished = NULL;
    token_id tokens[STAGES][PROMPT + DECODES];
    block_id blocks[STAGES][MAX_BLOCKS];
    (void)state;
    assert_non_null(src);
    struct ranks *ranks = start(src, 2, STAGES);
    assert_int_equal(ranks_num_slots(ranks), STAGES);
    assert_int_equal(ranks_wait(ranks, &finished), ERR_NOT_FOUND);
    for (int i = 0; i < STAGES; i++) {
        run_sequence(ranks, i, PROMPT, true, alone[i]);
        results[i].rows = calloc(TINY_VOCAB, sizeof(struct result_row));
        prompt_of(tokens[i], i);
        blocks_of(blocks[i], i, true);
        plans[i] = new_plan();
        plans[i]->step = 100 + (uint64_t)i;
        plan_add_seq(plans[i], &(struct plan_seq){ .tokens = tokens[i], .len = PROMPT, .blocks = blocks[i], .slot =
                                                   i });
        all_targets(plans[i], 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < STAGES; i++) assert_int_equal(ranks_submit(ranks, plans[i], &results[i]), 0);
        assert_int_equal(ranks_submit(ranks, plans[0], &results[0]), ERR_QUEUE_FULL);
        for (int i = 0; i < STAGES; i++) {
            assert_int_equal(ranks_wait(ranks, &finished), 0);
            assert_ptr_equal(finished, &results[i]);
            assert_int_equal(finished->step, 100 + i);
            for (int v = 0; v < TINY_VOCAB; v++) {
                assert_memory_equal(&finished->rows[v].logprob, &alone[i][0].logprobs[v], sizeof(float));
                finished->rows[v].logprob = 0;
            }
        }
    }
    for (int i = 0; i < STAGES; i++) {
        free(plans[i]);
        free(results[i].rows);
    }
    ranks_stop(ranks);
    model_source_close(src);
}

static void bad_options_and_files_are_reported(void **state)
{
    struct model_source *src = tiny_open(0, true, "");
    struct ranks *ranks = NULL;
    struct err err = { 0 };
    (void)state;
    assert_non_null(src);
    struct ranks_options options = options_of(7, 1);
    assert_int_equal(ranks_start(&ranks, src, &options, NULL, NULL, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "nearest layout is 6 x 1"));
    err_clear(&err);
    options = options_of(1, 1);
    options.num_blocks_override = INT32_MAX;
    assert_int_equal(ranks_start(&ranks, src, &options, NULL, NULL, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "Ways out"));
    assert_null(ranks);
    model_source_close(src);
}

static void note_share(void *arg, double share)
{
    double *last = arg;
    if (share > *last) *last = share;
}

static void progress_ends_at_one(void **state)
{
    struct model_source *src = tiny_open(1, false, "");
    struct ranks_options options = options_of(1, 1);
    struct ranks *ranks = NULL;
    double last = 0;
    (void)state;
    assert_non_null(src);
    assert_int_equal(ranks_start(&ranks, src, &options, note_share, &last, NULL), 0);
    assert_float_equal(last, 1.0, 1e-9);
    assert_non_null(strstr(ranks_describe(ranks), "cpu-ref"));
    assert_int_equal(ranks_num_blocks(ranks), NUM_BLOCKS);
    ranks_stop(ranks);
    model_source_close(src);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_is_one_model),  cmocka_unit_test(chunks_and_blocks_change_no_bit),
        cmocka_unit_test(neighbours_change_no_bit),   cmocka_unit_test(scattered_blocks_change_no_bit),
        cmocka_unit_test(pipeline_keeps_plans_apart),
        cmocka_unit_test(bad_options_and_files_are_reported), cmocka_unit_test(progress_ends_at_one),
    };
    log_set_level(LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
