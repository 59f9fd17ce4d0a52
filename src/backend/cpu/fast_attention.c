/* fast_attention.c - attention as tiles: one KV head of one sequence and as many of its query rows as fit, so that K and V
 * are read once for the whole group of query heads and, in a prefill, for several tokens.
 * Softmax steps are chunks of 64 positions counted from 0, so a row gives the same bits in any tile. */
#include "base/bug.h"
#include "fast_ops.h"

struct attention_job {
    const struct attention_args *args;
    const struct cpu_kernels *kernels;
    const int32_t *task_begin;             /* [num_seqs + 1] */
    char *scratch;
    int tile_tokens, group;                /* query tokens of a tile, query heads per KV head and tile */
    int groups;                            /* tiles side by side when more query heads share a KV head than fit */
};

static int sequence_of(const int32_t *task_begin, int num_seqs, int64_t task)
{
    int low = 0, high = num_seqs;          /* task_begin[low] <= task < task_begin[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (task_begin[middle] <= task) low = middle;
        else high = middle;
    }
    return low;
}

static void attend_tile(const struct attention_job *job, int thread, int64_t task)
{
    const struct attention_args *a = job->args;
    const float *q[ATTEND_ROWS];
    float *out[ATTEND_ROWS];
    int32_t begin[ATTEND_ROWS], end[ATTEND_ROWS];
    int seq = sequence_of(job->task_begin, a->num_seqs, task), rows = 0, dim = a->head_dim;
    int64_t local = task - job->task_begin[seq];
    int unit = (int)(local % ((int64_t)a->num_kv_heads * job->groups));
    int kv_head = unit / job->groups, share = a->num_heads / a->num_kv_heads;
    int first_head = kv_head * share + unit % job->groups * job->group;
    int last_head = first_head + job->group < (kv_head + 1) * share ? first_head + job->group : (kv_head + 1) * share;
    int64_t token = a->cu_seqlens_q[seq] + local / ((int64_t)a->num_kv_heads * job->groups) * job->tile_tokens;
    int64_t stop = a->cu_seqlens_q[seq + 1];

    if (token + job->tile_tokens < stop) stop = token + job->tile_tokens;
    for (; token < stop; token++) {
        int32_t position = a->context_lens[seq] - a->cu_seqlens_q[seq + 1] + (int32_t)token;
        for (int head = first_head; head < last_head; head++, rows++) {
            q[rows] = (const float *)a->qkv + (token * (a->num_heads + 2 * a->num_kv_heads) + head) * dim;
            out[rows] = (float *)a->out + (token * a->num_heads + head) * dim;
            end[rows] = position + 1;
            begin[rows] = a->sliding_window > 0 && position >= a->sliding_window ? position - a->sliding_window + 1 : 0;
        }
    }
    int64_t head_elems = (int64_t)a->block_size * dim;
    job->kernels->attend(&(struct attend_args){
        .q = q, .out = out, .begin = begin, .end = end, .rows = rows,
        .k = (const uint16_t *)a->kv.k + kv_head * head_elems, .v = (const uint16_t *)a->kv.v + kv_head * head_elems,
        .block_stride = a->num_kv_heads * head_elems, .blocks = a->block_tables + (int64_t)seq * a->max_blocks_per_seq,
        .scratch = job->scratch + (size_t)thread * attend_scratch_bytes(MAX_HEAD_DIM), .head_dim = dim,
        .block_size = a->block_size, .scale = a->scale });
}

static void attend_tiles(void *arg, int thread, int64_t begin, int64_t end)
{
    for (int64_t task = begin; task < end; task++) attend_tile(arg, thread, task);
}

void fast_attention(struct backend *b, const struct attention_args *args)
{
    int share = args->num_heads / args->num_kv_heads;
    struct attention_job job = { .args = args, .kernels = b->kernels, .task_begin = b->task_begin,
                                 .scratch = b->attend_scratch };
    job.group = share < ATTEND_ROWS ? share : ATTEND_ROWS;
    job.groups = (share + job.group - 1) / job.group;
    job.tile_tokens = ATTEND_ROWS / job.group;
    BUG_ON(args->head_dim > MAX_HEAD_DIM || args->head_dim % 2 || args->num_seqs > b->options.max_seqs);

    b->task_begin[0] = 0;
    for (int32_t s = 0; s < args->num_seqs; s++) {
        int32_t tokens = args->cu_seqlens_q[s + 1] - args->cu_seqlens_q[s];
        int32_t tiles = (tokens + job.tile_tokens - 1) / job.tile_tokens;
        b->task_begin[s + 1] = b->task_begin[s] + tiles * args->num_kv_heads * job.groups;
    }
    /* A short context of one sequence is done sooner than a worker wakes. */
    int64_t grain = (int64_t)args->num_tokens * args->max_context_len * args->num_heads < 4096 ? b->task_begin[args->num_seqs] : 1;
    pool_run(b->pool, b->task_begin[args->num_seqs], grain, attend_tiles, &job);
}
