/* step.cu - the first and the last kernel of a step, and the joining of vocabulary shards.                    op: upload, collect
 * step_begin  spreads the uploaded image over arrays at fixed addresses, fills in tokens that only the device knows (the ones it
 *             drew last), pads to the bucket of the captured step.
 * step_end    hands the drawn rows to the host: heads and tops to mapped memory, then the step number, which the host polls.
 * Traffic     B=256 decode: about 60 KB read and written, 8 KB over PCIe; both are latency: 2 us each.
 * Launch      step_begin 64 blocks of 256 threads, each loops over every array; step_end one block of 1024: the fence and the
 *             flag need an order that only a block has.
 * Oracle      tests/kernels/step_test.c. */
#include "common.cuh"

namespace {

constexpr int BEGIN_BLOCKS = 64, BEGIN_THREADS = 256, END_THREADS = 1024, JOIN_THREADS = 256;

template <typename T> __device__ const T *part(const struct step_image *image, uint32_t offset)
{
    return reinterpret_cast<const T *>(reinterpret_cast<const char *>(image) + offset);
}

/* The device's clock in nanoseconds: coarse (a tick can be a microsecond), the same on all multiprocessors. */
__device__ uint64_t device_ns()
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

template <typename T> __device__ void copy(T *to, const T *from, int n, int first, int stride)
{
    for (int i = first; i < n; i += stride) to[i] = from[i];
}

/* Triggers last: the kernels behind it read lengths, tables and the plan before their own pdl_wait(). */
__global__ void __launch_bounds__(BEGIN_THREADS) step_begin(const struct step_image *image, struct step_arrays to)
{
    pdl_wait();
    int me = blockIdx.x * BEGIN_THREADS + threadIdx.x, all = gridDim.x * BEGIN_THREADS;
    const struct step_image head = *image;
    const token_id *ids = part<token_id>(image, head.off_input_ids);
    const int32_t *slots = part<int32_t>(image, head.off_seq_slots);

    if (me == 0) {
        to.step[0] = head.step;
        to.step[1] = device_ns();
    }
    for (int t = me; t < head.pad_tokens; t += all) {
        bool is_real = t < head.num_tokens;
        token_id id = is_real ? ids[t] : 0;
        to.input_ids[t] = id >= 0 ? id : to.last_tokens[slots[t]];
        to.positions[t] = is_real ? part<int32_t>(image, head.off_positions)[t] : 0;
        to.slot_mapping[t] = is_real ? part<int64_t>(image, head.off_slot_mapping)[t] : -1;
    }
    for (int b = me; b < head.pad_seqs; b += all) {
        bool is_real = b < head.num_seqs;
        to.context_lens[b] = is_real ? part<int32_t>(image, head.off_context_lens)[b] : 0;
        to.seq_slots[b] = is_real ? slots[b] : -1;
        to.cu_seqlens_q[b] = is_real ? part<int32_t>(image, head.off_cu_seqlens_q)[b] : head.num_tokens;
    }
    if (me == 0) to.cu_seqlens_q[head.pad_seqs] = head.num_tokens;

    const int32_t *table_begin = part<int32_t>(image, head.off_table_begin);
    const block_id *tables = part<block_id>(image, head.off_tables);
    for (int b = me / WARP; b < head.num_seqs; b += all / WARP) {
        int begin = table_begin[b], n = table_begin[b + 1] - begin;
        copy(to.block_tables + (int64_t)b * to.max_blocks_per_seq, tables + begin, n, me % WARP, WARP);
    }

    /* rows as words: a row has no 16-byte alignment */
    constexpr int ROW_WORDS = sizeof(struct sampling_row) / 4;
    copy(reinterpret_cast<uint32_t *>(to.rows), part<uint32_t>(image, head.off_rows), head.num_rows * ROW_WORDS, me, all);
    for (int r = head.num_rows + me; r < head.pad_rows; r += all) {
        to.rows[r].slot = -1;
        to.rows[r].token = 0;
        to.rows[r].params.num_logprobs = -1;
    }
    copy(to.bias_ids, part<token_id>(image, head.off_bias_ids), head.num_bias, me, all);
    copy(to.bias_values, part<float>(image, head.off_bias_values), head.num_bias, me, all);
    copy(reinterpret_cast<uint32_t *>(to.history), part<uint32_t>(image, head.off_history),
         head.num_history * (int)(sizeof(struct history_entry) / 4), me, all);
    copy(to.history_tokens, part<token_id>(image, head.off_history_tokens), head.num_history_tokens, me, all);
    copy(to.attn_plan, part<int32_t>(image, head.off_attn_plan), head.attn_plan_words, me, all);
    __threadfence();
    pdl_trigger();
}

__global__ void __launch_bounds__(END_THREADS) step_end(struct step_end_kernel a)
{
    pdl_trigger();
    pdl_wait();
    uint64_t step = a.step[0];
    int half = (int)(step & 1);
    constexpr int HEAD_QUADS = sizeof(struct sample_head) / 16;
    const uint4 *from = reinterpret_cast<const uint4 *>(a.heads);
    uint4 *to = reinterpret_cast<uint4 *>(a.host_heads[half]);

    for (int i = threadIdx.x; i < a.num_rows * HEAD_QUADS; i += END_THREADS) to[i] = from[i];
    for (int r = threadIdx.x / WARP; r < a.num_rows; r += END_THREADS / WARP) {
        if (a.rows[r].slot < 0 || a.rows[r].params.num_logprobs <= 0) continue;
        if (threadIdx.x % WARP < MAX_TOP_LOGPROBS) {
            int at = r * MAX_TOP_LOGPROBS + threadIdx.x % WARP;
            a.host_tops[half][at] = a.tops[at];
        }
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        a.host_done[half][1] = device_ns() - a.step[1];
        __threadfence_system();
        a.host_done[half][0] = step;
    }
}

__global__ void __launch_bounds__(JOIN_THREADS) join_shards(struct join_shards_kernel a)
{
    pdl_trigger();
    pdl_wait();
    int r = blockIdx.y, shard = 0;
    for (int v = blockIdx.x * JOIN_THREADS + threadIdx.x; v < a.vocab_size; v += gridDim.x * JOIN_THREADS) {
        while (v >= a.begins[shard + 1]) shard++;
        int64_t width = a.begins[shard + 1] - a.begins[shard];
        a.logits[(int64_t)r * a.vocab_size + v] = a.gathered[shard * a.num_rows * a.widest + r * width + v - a.begins[shard]];
    }
}

} // namespace

extern "C" int launch_step_begin(const struct step_image *image, const struct step_arrays *arrays, const struct launch *l)
{
    return launch_kernel(l, step_begin, dim3(BEGIN_BLOCKS), dim3(BEGIN_THREADS), 0, image, *arrays);
}

extern "C" int launch_step_end(const struct step_end_kernel *a, const struct launch *l)
{
    return launch_kernel(l, step_end, dim3(1), dim3(END_THREADS), 0, *a);
}

extern "C" int launch_join_shards(const struct join_shards_kernel *a, const struct launch *l)
{
    if (a->num_rows < 1 || a->tp_size > JOIN_MAX_SHARDS) return a->num_rows < 1 ? 0 : ERR_UNSUPPORTED;
    int blocks = (a->vocab_size + JOIN_THREADS * 8 - 1) / (JOIN_THREADS * 8);
    return launch_kernel(l, join_shards, dim3(blocks, a->num_rows), dim3(JOIN_THREADS), 0, *a);
}
