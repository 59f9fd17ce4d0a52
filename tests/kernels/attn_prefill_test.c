/* attn_prefill_test.c - launch_attn_prefill() against a plain float softmax, both versions (wgmma where the GPU has it, mma.sync).
 * The KV pool holds NaN wherever no key was stored, blocks lie in random order, unused table entries are BLOCK_NONE, out is
 * poisoned. Tolerance: relative error 1e-2 per case (f16: an eighth); every row of a sequence is checked for NaN, about an eighth of
 * them against the oracle. */
#include "gpu.h"

enum { LISTED_SEQS = 40, REPEATS = 8, MAX_CASE_SEQS = LISTED_SEQS * REPEATS };

struct prefill_case {
    const char *name;
    int head_dim, kv_heads, group, block_size, window, first_seq, num_seqs;
    struct { int q_len, context; } seq[MAX_CASE_SEQS];       /* a case lists LISTED_SEQS at most */
};

static const struct prefill_case cases[] = {
    { "one query", 128, 2, 4, 64, 0, 0, 1, { { 1, 1 } } },
    { "one query, context", 128, 2, 4, 64, 0, 0, 1, { { 1, 777 } } },
    { "7 queries", 128, 2, 4, 64, 0, 0, 1, { { 7, 7 } } },
    { "64 queries", 128, 2, 4, 64, 0, 0, 1, { { 64, 64 } } },
    { "129 queries", 128, 2, 4, 64, 0, 0, 1, { { 129, 129 } } },
    { "1000 queries", 128, 2, 4, 64, 0, 0, 1, { { 1000, 1000 } } },
    { "chunk of 129 at 1500", 128, 2, 4, 64, 0, 0, 1, { { 129, 1500 } } },
    { "chunk of 500 at 3001", 128, 2, 4, 64, 0, 0, 1, { { 500, 3001 } } },
    { "group 1", 128, 4, 1, 64, 0, 0, 2, { { 300, 300 }, { 65, 400 } } },
    { "group 3", 128, 2, 3, 64, 0, 0, 2, { { 300, 300 }, { 65, 400 } } },
    { "group 7", 128, 2, 7, 64, 0, 0, 2, { { 300, 300 }, { 65, 400 } } },
    { "group 8", 128, 1, 8, 64, 0, 0, 2, { { 300, 300 }, { 65, 400 } } },
    { "group 71", 64, 1, 71, 64, 0, 0, 1, { { 70, 90 } } },
    { "head 64", 64, 2, 4, 64, 0, 0, 3, { { 1000, 1000 }, { 7, 300 }, { 129, 129 } } },
    { "head 64, group 1", 64, 3, 1, 64, 0, 0, 2, { { 500, 700 }, { 1, 64 } } },
    { "head 64, group 3", 64, 3, 3, 16, 0, 0, 2, { { 500, 700 }, { 1, 64 } } },
    { "head 64, group 7", 64, 2, 7, 64, 0, 0, 2, { { 200, 700 }, { 129, 129 } } },
    { "head 80", 80, 2, 4, 64, 0, 0, 3, { { 300, 300 }, { 7, 300 }, { 129, 129 } } },
    { "head 96", 96, 2, 3, 64, 0, 0, 3, { { 300, 300 }, { 7, 300 }, { 129, 129 } } },
    { "group 1, 2100 queries", 128, 1, 1, 64, 0, 0, 2, { { 2100, 2100 }, { 5, 9 } } },
    { "long and short", 128, 2, 4, 64, 0, 0, 5, { { 5, 5 }, { 700, 777 }, { 33, 400 }, { 520, 520 }, { 0, 0 } } },
    { "head 256", 256, 2, 4, 64, 0, 0, 3, { { 530, 530 }, { 7, 300 }, { 129, 129 } } },
    { "head 256, group 1", 256, 2, 1, 16, 0, 0, 2, { { 300, 300 }, { 7, 300 } } },
    { "head 256, group 7", 256, 1, 7, 256, 0, 0, 2, { { 300, 300 }, { 7, 700 } } },
    { "blocks of 16", 128, 2, 4, 16, 0, 0, 2, { { 300, 300 }, { 65, 401 } } },
    { "blocks of 48", 128, 2, 4, 48, 0, 0, 2, { { 300, 300 }, { 65, 401 } } },
    { "blocks of 128", 128, 2, 4, 128, 0, 0, 2, { { 300, 300 }, { 65, 401 } } },
    { "blocks of 256", 128, 2, 4, 256, 0, 0, 2, { { 300, 300 }, { 65, 1401 } } },
    { "blocks of 16, head 64", 64, 2, 4, 16, 0, 0, 2, { { 300, 300 }, { 65, 401 } } },
    { "window 100", 128, 2, 4, 64, 100, 0, 2, { { 700, 700 }, { 65, 1401 } } },
    { "window 1", 128, 2, 4, 64, 1, 0, 2, { { 200, 200 }, { 65, 401 } } },
    { "window 512, head 64", 64, 2, 4, 64, 512, 0, 2, { { 700, 900 }, { 65, 1401 } } },
    { "window 300, head 256", 256, 1, 4, 64, 300, 0, 2, { { 400, 900 }, { 65, 1401 } } },
    { "window 4096", 128, 2, 4, 64, 4096, 0, 1, { { 200, 300 } } },
    { "decodes first", 128, 2, 4, 64, 0, 3, 6, { { 1, 50 }, { 1, 60 }, { 1, 300 }, { 200, 200 }, { 3, 500 }, { 90, 190 } } },
    { "padded sequences", 128, 2, 4, 64, 0, 0, 6, { { 100, 100 }, { 0, 0 }, { 33, 150 }, { 1, 0 }, { 4, 0 }, { 0, 0 } } },
    { "padded sequences, head 64", 64, 2, 4, 64, 0, 0, 5, { { 100, 100 }, { 0, 0 }, { 33, 150 }, { 1, 0 }, { 4, 0 } } },
    { "many sequences", 128, 8, 4, 64, 0, 0, 40, {
        { 33, 33 }, { 5, 200 }, { 64, 64 }, { 128, 128 }, { 17, 900 }, { 1, 1 }, { 90, 90 }, { 2, 640 }, { 100, 300 }, { 31, 31 },
        { 33, 33 }, { 5, 100 }, { 64, 65 }, { 128, 129 }, { 17, 100 }, { 1, 2 }, { 90, 91 }, { 2, 64 }, { 100, 333 }, { 31, 32 },
        { 13, 33 }, { 5, 50 }, { 64, 66 }, { 12, 128 }, { 17, 190 }, { 1, 3 }, { 90, 290 }, { 2, 65 }, { 10, 300 }, { 31, 63 },
        { 23, 33 }, { 5, 20 }, { 64, 67 }, { 28, 128 }, { 17, 17 }, { 1, 4 }, { 90, 390 }, { 2, 63 }, { 20, 300 }, { 31, 64 } } },
};

/* out[D] of one query row; k and v are the keys 0..position of its head. */
static void oracle_row(float *out, const float *q, const float *k, const float *v, int64_t stride, int dim, int position, int window, float scale, float *weights)
{
    int first = window > 0 && position - window + 1 > 0 ? position - window + 1 : 0;
    float top = -INFINITY, sum = 0;

    for (int d = 0; d < dim; d++) out[d] = 0;
    for (int p = first; p <= position; p++) {
        float part[8] = { 0 };
        for (int d = 0; d < dim; d += 8) for (int i = 0; i < 8; i++) part[i] += q[d + i] * k[p * stride + d + i];
        weights[p] = scale * (part[0] + part[1] + part[2] + part[3] + part[4] + part[5] + part[6] + part[7]);
        if (weights[p] > top) top = weights[p];
    }
    for (int p = first; p <= position; p++) {
        float w = expf(weights[p] - top);
        sum += w;
        for (int d = 0; d < dim; d++) out[d] += w * v[p * stride + d];
    }
    if (position >= first) for (int d = 0; d < dim; d++) out[d] /= sum;
}

struct built {                     /* a case on the host */
    int num_heads, num_tokens, num_blocks, table_width, max_q, max_context;
    int64_t q_stride, row;         /* elements of a row of qkv; of one position's K (all heads) in keys and values */
    int32_t cu[MAX_CASE_SEQS + 1], contexts[MAX_CASE_SEQS];
    int64_t at[MAX_CASE_SEQS];     /* first position of each sequence in keys and values */
    block_id *tables;
    float *q, *keys, *values;      /* as the kernel sees them, in order of positions */
    uint16_t *raw_q, *k_pool, *v_pool;
};

static void build(struct built *b, const struct prefill_case *c, uint64_t *rng)
{
    int64_t positions = 0, used = 0;
    memset(b, 0, sizeof *b);
    b->num_heads = c->kv_heads * c->group;
    b->row = (int64_t)c->kv_heads * c->head_dim;
    b->q_stride = (int64_t)b->num_heads * c->head_dim + 2 * b->row;
    for (int s = 0; s < c->num_seqs; s++) {
        b->at[s] = positions;
        b->contexts[s] = c->seq[s].context;
        b->cu[s + 1] = b->cu[s] + c->seq[s].q_len;
        positions += c->seq[s].context;
        used += (c->seq[s].context + c->block_size - 1) / c->block_size;
        if (s >= c->first_seq && c->seq[s].q_len > b->max_q) b->max_q = c->seq[s].q_len;
        if (c->seq[s].context > b->max_context) b->max_context = c->seq[s].context;
    }
    b->num_tokens = b->cu[c->num_seqs];
    b->num_blocks = (int)used + 3;
    b->table_width = (b->max_context + c->block_size - 1) / c->block_size + 2;
    b->q = malloc((size_t)(b->num_tokens * b->q_stride) * sizeof(float));
    b->raw_q = malloc((size_t)(b->num_tokens * b->q_stride) * 2);
    random_elem(rng, 1.0f, b->q, b->raw_q, (size_t)(b->num_tokens * b->q_stride));
    b->keys = malloc((size_t)(positions * b->row + 1) * sizeof(float));
    b->values = malloc((size_t)(positions * b->row + 1) * sizeof(float));
    uint16_t *raw_k = malloc((size_t)(positions * b->row + 1) * 2), *raw_v = malloc((size_t)(positions * b->row + 1) * 2);
    random_elem(rng, 1.0f, b->keys, raw_k, (size_t)(positions * b->row));
    random_elem(rng, 1.0f, b->values, raw_v, (size_t)(positions * b->row));

    size_t pool_bytes = (size_t)b->num_blocks * (size_t)c->block_size * (size_t)b->row * 2;
    b->k_pool = malloc(pool_bytes);
    b->v_pool = malloc(pool_bytes);
    memset(b->k_pool, 0xFF, pool_bytes);
    memset(b->v_pool, 0xFF, pool_bytes);
    b->tables = malloc((size_t)(c->num_seqs * b->table_width) * sizeof(block_id));
    for (int i = 0; i < c->num_seqs * b->table_width; i++) b->tables[i] = BLOCK_NONE;
    block_id *order = malloc((size_t)b->num_blocks * sizeof(block_id));
    for (int i = 0; i < b->num_blocks; i++) order[i] = i;
    for (int i = b->num_blocks - 1; i > 0; i--) {
        int j = (int)(rng_next(rng) % (uint64_t)(i + 1));
        block_id x = order[i];
        order[i] = order[j];
        order[j] = x;
    }
    int next = 0;
    for (int s = 0; s < c->num_seqs; s++)
        for (int p = 0; p < c->seq[s].context; p++) {
            block_id *entry = &b->tables[s * b->table_width + p / c->block_size];
            if (p % c->block_size == 0) *entry = order[next++];
            for (int h = 0; h < c->kv_heads; h++) {
                int64_t to = (((int64_t)*entry * c->kv_heads + h) * c->block_size + p % c->block_size) * c->head_dim;
                int64_t from = (b->at[s] + p) * b->row + (int64_t)h * c->head_dim;
                memcpy(b->k_pool + to, raw_k + from, (size_t)c->head_dim * 2);
                memcpy(b->v_pool + to, raw_v + from, (size_t)c->head_dim * 2);
            }
        }
    free(order);
    free(raw_k);
    free(raw_v);
}

/* Relative error of what the kernel wrote; NaN where something that should have been written was not, or the other way round. */
static double check(const struct built *b, const struct prefill_case *c, const uint16_t *out, uint64_t *rng)
{
    float *weights = malloc((size_t)(b->max_context + 1) * sizeof(float)), want[256];
    double difference = 0, size = 0;
    for (int s = 0; s < c->num_seqs; s++) {
        for (int q = 0; q < c->seq[s].q_len; q++)
            for (int h = 0; h < b->num_heads; h++) {
                int64_t token = b->cu[s] + q;
                const uint16_t *row = out + (token * b->num_heads + h) * c->head_dim;
                int position = c->seq[s].context - c->seq[s].q_len + q;
                if (s < c->first_seq) {                    /* not this launch's: still poisoned */
                    for (int d = 0; d < c->head_dim; d++) if (row[d] != 0xFFFF) difference = NAN;
                    continue;
                }
                for (int d = 0; d < c->head_dim; d++) if (isnan(of_elem(row[d]))) difference = NAN;
                bool edge = q < 2 || q >= c->seq[s].q_len - 2 || position < 2;
                if (!edge && rng_next(rng) % 8) continue;
                oracle_row(want, b->q + token * b->q_stride + (int64_t)h * c->head_dim, b->keys + b->at[s] * b->row + h / c->group * c->head_dim,
                           b->values + b->at[s] * b->row + h / c->group * c->head_dim, b->row, c->head_dim, position, c->window,
                           1.0f / sqrtf((float)c->head_dim), weights);
                for (int d = 0; d < c->head_dim; d++) {
                    double x = (double)of_elem(row[d]) - want[d];
                    difference += x * x;
                    size += (double)want[d] * want[d];
                }
            }
    }
    free(weights);
    return sqrt(size > 0 ? difference / size : difference);
}

static int run(const struct prefill_case *c, int sm, bool pdl, const char *version)
{
    if (!gpu_turn()) return 0;
    uint64_t rng = 7;
    struct built b;
    struct launch l = gpu_launch(pdl);
    build(&b, c, &rng);
    size_t out_count = (size_t)(b.num_tokens + 1) * (size_t)b.num_heads * (size_t)c->head_dim;       /* a row more: nobody writes it */
    size_t pool_bytes = (size_t)b.num_blocks * (size_t)c->block_size * (size_t)b.row * 2;
    uint16_t *out = malloc(out_count * 2);
    void *q = gpu_copy(b.raw_q, (size_t)(b.num_tokens * b.q_stride) * 2), *k = gpu_copy(b.k_pool, pool_bytes), *v = gpu_copy(b.v_pool, pool_bytes);
    void *tables = gpu_copy(b.tables, (size_t)(c->num_seqs * b.table_width) * sizeof(block_id));
    void *cu = gpu_copy(b.cu, sizeof b.cu), *contexts = gpu_copy(b.contexts, sizeof b.contexts), *device_out = gpu_new(out_count * 2);
    struct attn_prefill_kernel a = {
        .q = q, .q_stride = b.q_stride, .out = device_out, .kv = { k, v, tables, b.table_width, c->block_size, b.num_blocks },
        .cu_seqlens_q = cu, .context_lens = contexts, .first_seq = c->first_seq, .num_seqs = c->num_seqs, .max_q_len = b.max_q,
        .num_heads = b.num_heads, .num_kv_heads = c->kv_heads, .head_dim = c->head_dim, .sliding_window = c->window,
        .scale = 1.0f / sqrtf((float)c->head_dim), .num_tokens = b.num_tokens,
    };
    if (sm) l.sm = sm;
    int rc = launch_attn_prefill(&a, &l);
    gpu_sync();
    gpu_read(out, device_out, out_count * 2);
    double error = rc ? NAN : check(&b, c, out, &rng);
    for (size_t i = out_count - (size_t)(b.num_heads * c->head_dim); i < out_count; i++) if (out[i] != 0xFFFF) error = NAN;
    bool ok = error <= gpu_tolerance(1e-2);
    printf("%s %-28s %-8s rc %d, relative error %.2e\n", ok ? "ok  " : "FAIL", c->name, version, rc, error);
    fflush(stdout);
    void *device[] = { q, k, v, tables, cu, contexts, device_out }, *host[] = { out, b.tables, b.q, b.keys, b.values, b.raw_q, b.k_pool, b.v_pool };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) gpu_free(device[i]);
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    return ok ? 0 : 1;
}

int main(void)
{
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    struct prefill_case crowd = cases[sizeof cases / sizeof *cases - 1];     /* "many sequences" REPEATS times over */
    crowd.name = "320 sequences";
    crowd.kv_heads = 1;
    crowd.num_seqs = MAX_CASE_SEQS;
    for (int i = LISTED_SEQS; i < MAX_CASE_SEQS; i++) crowd.seq[i] = crowd.seq[i - LISTED_SEQS];
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += run(&crowd, 80, false, "mma");
        failed += run(&crowd, 0, true, "native");
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            failed += run(&cases[i], 80, false, "mma");
            failed += run(&cases[i], 0, i % 2, "native");
        }
    }
    printf(failed ? "%d failed\n" : "all passed\n", failed);
    return failed != 0;
}
