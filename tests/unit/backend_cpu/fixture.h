/* fixture.h - shared by the backend_cpu tests: random numbers, a backend with loaded weights, attention cases, plans. */
#ifndef SLUICE_TESTS_BACKEND_CPU_FIXTURE_H
#define SLUICE_TESTS_BACKEND_CPU_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <sluice/backend.h>
#include <sluice/sampling.h>

static inline float random_normal(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005ull + 1442695040888963407ull;
        sum += (float)(*state >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7f;
}

static inline float *random_floats(size_t n, uint64_t seed, float scale)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = scale * random_normal(&seed);
    return x;
}

static inline void *zeroed(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    assert_non_null(p);
    return p;
}

static inline struct backend *open_backend(const struct backend_ops *ops, enum dtype kv_dtype, int threads,
                                           int vocab_size, int max_seqs)
{
    struct backend *b = NULL;
    struct err err = { 0 };
    struct backend_options options = { .threads = threads, .kv_dtype = kv_dtype, .max_tokens = 1024, .max_seqs = max_seqs,
                                       .max_rows = 64, .vocab_size = vocab_size };
    assert_int_equal(ops->open(&b, &options, &err), 0);
    assert_int_equal(ops->reserve(b, (size_t)64 << 20, &err), 0);
    return b;
}

static inline struct weight make_weight(const struct backend_ops *ops, struct backend *b, enum weight_kind kind,
                                        int64_t rows, int64_t cols, const float *values)
{
    struct weight w = { .rows = rows, .cols = cols, .data = ops->carve(b, ops->weight_bytes(kind, rows, cols)) };
    ops->weight_store(b, &w, kind, 0, rows, values);
    return w;
}

static inline double largest_difference(const float *a, const float *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d;      /* a NaN counts as worst */
    }
    return worst;
}

/* Sequences over a paged cache, in any mix of prefill chunks and decodes. */
struct attention_case {
    int heads, kv_heads, dim, block_size, window;
    int num_seqs, q_lens[8], context_lens[8];
};

struct attention_run {
    struct attention_case c;
    int num_tokens, max_blocks, num_blocks, row;     /* row = (H + 2 Hk) * D */
    float *cos_sin;                        /* [1024][D] */
    int32_t cu[9], *positions;
    int64_t *slots;
    block_id *tables;
    struct kv_layer kv;
};

static inline void attention_run_init(struct attention_run *run, const struct attention_case *c, size_t kv_elem)
{
    *run = (struct attention_run){ .c = *c, .row = (c->heads + 2 * c->kv_heads) * c->dim };
    for (int s = 0; s < c->num_seqs; s++) {
        run->cu[s + 1] = run->cu[s] + c->q_lens[s];
        int blocks = (c->context_lens[s] + c->block_size - 1) / c->block_size;
        run->max_blocks = blocks > run->max_blocks ? blocks : run->max_blocks;
    }
    run->num_tokens = run->cu[c->num_seqs];
    run->num_blocks = run->max_blocks * c->num_seqs + 3;
    run->tables = zeroed((size_t)run->max_blocks * c->num_seqs, sizeof *run->tables);
    /* scattered blocks: 7 is prime to every count used here or the walk is repaired by the next free one */
    char *taken = zeroed((size_t)run->num_blocks, 1);
    for (int i = 0, at = 1; i < run->max_blocks * c->num_seqs; i++) {
        for (at = (at + 7) % run->num_blocks; taken[at];) at = (at + 1) % run->num_blocks;
        taken[at] = 1;
        run->tables[i] = at;
    }
    free(taken);
    size_t elems = (size_t)run->num_blocks * c->kv_heads * c->block_size * c->dim;
    run->kv.k = malloc(elems * kv_elem);
    run->kv.v = malloc(elems * kv_elem);
    assert_non_null(run->kv.k);
    assert_non_null(run->kv.v);
    memset(run->kv.k, 0xff, elems * kv_elem);        /* NaN everywhere that is not written */
    memset(run->kv.v, 0xff, elems * kv_elem);
    run->positions = zeroed((size_t)run->num_tokens, sizeof *run->positions);
    run->slots = zeroed((size_t)run->num_tokens, sizeof *run->slots);
    run->cos_sin = malloc(1024 * (size_t)c->dim * sizeof(float));
    assert_non_null(run->cos_sin);
    for (int p = 0; p < 1024; p++)
        for (int i = 0; i < c->dim / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / c->dim);
            run->cos_sin[p * c->dim + i] = (float)cos(angle);
            run->cos_sin[p * c->dim + c->dim / 2 + i] = (float)sin(angle);
        }
}

static inline void attention_run_free(struct attention_run *run)
{
    free(run->tables);
    free(run->kv.k);
    free(run->kv.v);
    free(run->positions);
    free(run->slots);
    free(run->cos_sin);
}

static inline int64_t slot_of(const struct attention_run *run, int seq, int position)
{
    return (int64_t)run->tables[seq * run->max_blocks + position / run->c.block_size] * run->c.block_size +
           position % run->c.block_size;
}

/* Stores and attends positions [from[s], to[s]) of each sequence; qkv_all[s] holds [context][row] before rope.
 * out: [sum of to - from][H * D]. */
static inline void attend_range(const struct backend_ops *ops, struct backend *b, struct attention_run *run,
                                float *const *qkv_all, const int *from, const int *to, const struct weight *norm,
                                float *out)
{
    const struct attention_case *c = &run->c;
    int32_t cu[9] = { 0 }, context[8], total = 0, decode = 0, max_q = 0, max_context = 0;
    for (int s = 0; s < c->num_seqs; s++) {
        cu[s + 1] = total += to[s] - from[s];
        context[s] = to[s];
        decode += to[s] - from[s] == 1 && decode == s;
        max_q = to[s] - from[s] > max_q ? to[s] - from[s] : max_q;
        max_context = to[s] > max_context ? to[s] : max_context;
    }
    float *qkv = zeroed((size_t)total * run->row, sizeof *qkv);
    int32_t *positions = zeroed((size_t)total, sizeof *positions);
    int64_t *slots = zeroed((size_t)total, sizeof *slots);
    for (int s = 0; s < c->num_seqs; s++)
        for (int p = from[s]; p < to[s]; p++) {
            int t = cu[s] + p - from[s];
            memcpy(qkv + (size_t)t * run->row, qkv_all[s] + (size_t)p * run->row, (size_t)run->row * sizeof *qkv);
            positions[t] = p;
            slots[t] = slot_of(run, s, p);
        }
    ops->rope_store(b, &(struct rope_store_args){ .qkv = qkv, .q_norm = norm, .k_norm = norm, .cos_sin = run->cos_sin,
        .positions = positions, .slot_mapping = slots, .kv = run->kv, .num_tokens = total, .num_heads = c->heads,
        .num_kv_heads = c->kv_heads, .head_dim = c->dim, .block_size = c->block_size, .eps = 1e-5f });
    ops->attention(b, &(struct attention_args){ .qkv = qkv, .out = out, .kv = run->kv, .cu_seqlens_q = cu,
        .context_lens = context, .block_tables = run->tables, .num_tokens = total, .num_seqs = c->num_seqs,
        .num_decode_seqs = decode, .max_blocks_per_seq = run->max_blocks, .max_q_len = max_q,
        .max_context_len = max_context, .num_heads = c->heads, .num_kv_heads = c->kv_heads, .head_dim = c->dim,
        .block_size = c->block_size, .sliding_window = c->window, .scale = 1.0f / sqrtf((float)c->dim) });
    free(qkv);
    free(positions);
    free(slots);
}

/* A plan with the arrays the sampler and norm_rows read, laid out behind the struct. */
static inline struct step_plan *make_plan(int num_tokens, int num_rows, int num_bias, int num_history, int num_tokens_history)
{
    size_t at = (sizeof(struct step_plan) + 63) & ~(size_t)63, rows = at;
    size_t bias_ids = rows + (size_t)num_rows * sizeof(struct sampling_row);
    size_t bias_values = bias_ids + (size_t)num_bias * sizeof(token_id);
    size_t history = (bias_values + (size_t)num_bias * sizeof(float) + 63) & ~(size_t)63;
    size_t tokens = history + (size_t)num_history * sizeof(struct history_entry);
    struct step_plan *plan = zeroed(1, tokens + (size_t)num_tokens_history * sizeof(token_id));
    *plan = (struct step_plan){ .step = 7, .num_tokens = num_tokens, .num_rows = num_rows, .num_bias = num_bias,
        .num_history = num_history, .num_history_tokens = num_tokens_history, .off_rows = rows, .off_bias_ids = bias_ids,
        .off_bias_values = bias_values, .off_history = history, .off_history_tokens = tokens };
    for (int r = 0; r < num_rows; r++) {
        plan_rows(plan)[r] = (struct sampling_row){ .seq = r, .slot = r, .target = TOKEN_NONE };
        sampling_params_default(&plan_rows(plan)[r].params);
    }
    return plan;
}

#endif
