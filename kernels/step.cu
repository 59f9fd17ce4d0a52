/* step.cu - the first and the last kernel of a step, and the joining of vocabulary shards.                    op: upload, collect
 * step_begin  spreads the uploaded image over arrays at fixed addresses, fills in tokens that only the device knows (the ones it
 *             drew last), pads to the bucket of the captured step.
 * step_end    hands the drawn rows to the host: heads and tops to mapped memory, then the step number, which the host polls.
 * Traffic     B=256 decode: about 60 KB read and written, 8 KB over PCIe; both are latency: 2 us each.
 * Launch      step_begin 64 blocks of 256 threads, each loops over every array, the head is an argument; step_end one block of 1024:
 *             the fence and the flag need an order that only a block has.
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

/* Both sides start at 16 bytes. */
__device__ void copy_words(void *to, const void *from, int words, int first, int stride)
{
    copy(static_cast<uint4 *>(to), static_cast<const uint4 *>(from), words / 4, first, stride);
    int whole = words / 4 * 4;
    copy(static_cast<uint32_t *>(to) + whole, static_cast<const uint32_t *>(from) + whole, words - whole, first, stride);
}

/* The arrays begin at blocks of their own: their loads are under way at the same time, not one behind the other in one thread. */
__device__ __forceinline__ void spread(const struct step_image &head, const struct step_image *image, const struct step_arrays &to)
{
    constexpr int ALL = BEGIN_BLOCKS * BEGIN_THREADS;
    static_assert((ALL & (ALL - 1)) == 0, "first_from() counts around");
    int me = blockIdx.x * BEGIN_THREADS + threadIdx.x;
    auto first_from = [&](int block) { return (me - block * BEGIN_THREADS) & (ALL - 1); };
    const token_id *ids = part<token_id>(image, head.off_input_ids);
    const int32_t *slots = part<int32_t>(image, head.off_seq_slots);

    for (int t = me; t < head.pad_tokens; t += ALL) {
        bool is_real = t < head.num_tokens;
        token_id id = is_real ? ids[t] : 0;
        int32_t position = is_real ? part<int32_t>(image, head.off_positions)[t] : 0;
        int64_t slot = is_real ? part<int64_t>(image, head.off_slot_mapping)[t] : -1;
        to.input_ids[t] = id >= 0 ? id : to.last_tokens[slots[t]];
        to.positions[t] = position;
        to.slot_mapping[t] = slot;
    }
    for (int b = first_from(8); b < head.pad_seqs; b += ALL) {
        bool is_real = b < head.num_seqs;
        to.context_lens[b] = is_real ? part<int32_t>(image, head.off_context_lens)[b] : 0;
        to.seq_slots[b] = is_real ? slots[b] : -1;
        to.cu_seqlens_q[b] = is_real ? part<int32_t>(image, head.off_cu_seqlens_q)[b] : head.num_tokens;
    }
    if (first_from(12) == 0) {
        to.step[0] = head.step;
        to.step[1] = device_ns();
        to.cu_seqlens_q[head.pad_seqs] = head.num_tokens;
    }

    const int32_t *table_begin = part<int32_t>(image, head.off_table_begin);
    const block_id *tables = part<block_id>(image, head.off_tables);
    for (int b = first_from(32) / WARP; b < head.num_seqs; b += ALL / WARP) {
        int begin = table_begin[b], n = table_begin[b + 1] - begin;
        copy(to.block_tables + (int64_t)b * to.max_blocks_per_seq, tables + begin, n, me % WARP, WARP);
    }

    constexpr int ROW_WORDS = sizeof(struct sampling_row) / 4;
    copy_words(to.rows, part<uint32_t>(image, head.off_rows), head.num_rows * ROW_WORDS, first_from(16), ALL);
    for (int r = head.num_rows + first_from(14); r < head.pad_rows; r += ALL) {
        to.rows[r].slot = -1;
        to.rows[r].token = 0;
        to.rows[r].params.num_logprobs = -1;
    }
    copy_words(to.attn_plan, part<uint32_t>(image, head.off_attn_plan), head.attn_plan_words, first_from(24), ALL);
    copy_words(to.bias_ids, part<uint32_t>(image, head.off_bias_ids), head.num_bias, first_from(28), ALL);
    copy_words(to.bias_values, part<uint32_t>(image, head.off_bias_values), head.num_bias, first_from(30), ALL);
    copy_words(to.history, part<uint32_t>(image, head.off_history), head.num_history * (int)(sizeof(struct history_entry) / 4), first_from(48), ALL);
    copy_words(to.history_tokens, part<uint32_t>(image, head.off_history_tokens), head.num_history_tokens, first_from(48), ALL);
}

struct image_pair { const struct step_image *of[2]; };

/* Both trigger last: the kernels behind them read lengths, tables and the plan before their own pdl_wait(). */
__global__ void __launch_bounds__(BEGIN_THREADS) step_begin(const __grid_constant__ struct step_image head, const struct step_image *image,
                                                            const __grid_constant__ struct step_arrays to)
{
    pdl_wait();
    spread(head, image, to);
    __threadfence();
    pdl_trigger();
}

/* What step_end left says which image is this step's. */
__global__ void __launch_bounds__(BEGIN_THREADS) step_begin_captured(const __grid_constant__ struct image_pair images,
                                                                     const __grid_constant__ struct step_arrays to)
{
    __shared__ struct step_image head;
    pdl_wait();
    const struct step_image *image = images.of[to.step[2] % 2];
    constexpr int WORDS = sizeof(struct step_image) / 4;
    static_assert(WORDS <= BEGIN_THREADS, "a word a thread");
    if (threadIdx.x < WORDS) reinterpret_cast<uint32_t *>(&head)[threadIdx.x] = reinterpret_cast<const uint32_t *>(image)[threadIdx.x];
    __syncthreads();
    spread(head, image, to);
    __threadfence();
    pdl_trigger();
}

__global__ void __launch_bounds__(END_THREADS) step_end(const __grid_constant__ struct step_end_kernel a)
{
    pdl_trigger();
    pdl_wait();
    uint64_t step = a.step[0], begin_ns = a.step[1];
    int half = (int)(step & 1);
    bool wants_tops = false;
    constexpr int HEAD_QUADS = sizeof(struct sample_head) / 16;
    const uint4 *from = reinterpret_cast<const uint4 *>(a.heads);
    uint4 *to = reinterpret_cast<uint4 *>(a.host_heads[half]);

    for (int r = threadIdx.x; r < a.num_rows; r += END_THREADS) wants_tops |= a.rows[r].slot >= 0 && a.rows[r].params.num_logprobs > 0;
    for (int i = threadIdx.x; i < a.num_rows * HEAD_QUADS; i += END_THREADS) to[i] = from[i];
    if (__syncthreads_or(wants_tops))                      /* mostly nobody does: one look in parallel instead of a row after the other */
        for (int r = threadIdx.x / WARP; r < a.num_rows; r += END_THREADS / WARP) {
            if (a.rows[r].slot < 0 || a.rows[r].params.num_logprobs <= 0) continue;
            if (threadIdx.x % WARP < MAX_TOP_LOGPROBS) {
                int at = r * MAX_TOP_LOGPROBS + threadIdx.x % WARP;
                a.host_tops[half][at] = a.tops[at];
            }
        }
    if (threadIdx.x == 0) a.step[2] = step;
    if (threadIdx.x == 0) a.host_done[half][1] = device_ns() - begin_ns;       /* before the fence: a second one would cost a trip over PCIe */
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) a.host_done[half][0] = step;
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

extern "C" int launch_step_begin(const struct step_image *head, const struct step_image *image, const struct step_arrays *arrays,
                                 const struct launch *l)
{
    return launch_kernel(l, step_begin, dim3(BEGIN_BLOCKS), dim3(BEGIN_THREADS), 0, *head, image, *arrays);
}

extern "C" int launch_step_begin_captured(const struct step_image *const images[2], const struct step_arrays *arrays, const struct launch *l)
{
    struct image_pair pair = { { images[0], images[1] } };
    return launch_kernel(l, step_begin_captured, dim3(BEGIN_BLOCKS), dim3(BEGIN_THREADS), 0, pair, *arrays);
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
