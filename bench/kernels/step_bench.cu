/* step_bench.cu - the first and the last kernel of a step of 256 decoding sequences: latency, each by itself. */
#include <sluice/kernels.h>

#include <cstring>

#include "attn_decode_plan.h"
#include "bench.cuh"

constexpr int BLOCKS = 32;

int main()
{
    cudaDeviceProp device;
    BENCH_MUST(cudaGetDeviceProperties(&device, 0));
    for (int B : { 1, 64, 256 }) {
        std::vector<char> image(1 << 20);
        size_t used = sizeof(struct step_image);
        auto room = [&](size_t bytes) { used = (used + 15) / 16 * 16; size_t at = used; used += bytes; return (uint32_t)at; };
        struct step_image head = {};
        head.step = 1;
        head.num_tokens = head.num_seqs = head.num_rows = head.pad_tokens = head.pad_seqs = head.pad_rows = B;
        head.attn_plan_words = (int32_t)(attn_decode_plan_bytes(device.multiProcessorCount) / 4);
        head.off_input_ids = room(B * 4);
        head.off_positions = room(B * 4);
        head.off_slot_mapping = room(B * 8);
        head.off_cu_seqlens_q = room((B + 1) * 4);
        head.off_context_lens = room(B * 4);
        head.off_seq_slots = room(B * 4);
        head.off_table_begin = room((B + 1) * 4);
        head.off_tables = room(B * 6 * 4);                   /* 384 tokens in blocks of 64 */
        head.off_rows = room(B * sizeof(struct sampling_row));
        head.off_attn_plan = room(head.attn_plan_words * 4);
        memcpy(image.data(), &head, sizeof head);
        for (int b = 0; b < B; b++) ((token_id *)&image[head.off_input_ids])[b] = TOKEN_FEEDBACK;
        for (int b = 0; b < B; b++) ((int32_t *)&image[head.off_seq_slots])[b] = b;
        for (int b = 0; b <= B; b++) ((int32_t *)&image[head.off_table_begin])[b] = b * 6;
        char *d_image = device_new<char>(image.size());
        BENCH_MUST(cudaMemcpy(d_image, image.data(), image.size(), cudaMemcpyHostToDevice));

        struct step_arrays a = {};
        a.input_ids = device_new<token_id>(B); a.positions = device_new<int32_t>(B); a.slot_mapping = device_new<int64_t>(B);
        a.cu_seqlens_q = device_new<int32_t>(B + 1); a.context_lens = device_new<int32_t>(B); a.seq_slots = device_new<int32_t>(B);
        a.block_tables = device_new<block_id>(B * BLOCKS); a.rows = device_new<struct sampling_row>(B);
        a.bias_ids = device_new<token_id>(4); a.bias_values = device_new<float>(4); a.history = device_new<struct history_entry>(1);
        a.history_tokens = device_new<token_id>(4); a.attn_plan = device_new<int32_t>(head.attn_plan_words);
        a.last_tokens = device_new<token_id>(B); a.step = device_new<uint64_t>(3);
        a.max_blocks_per_seq = BLOCKS;

        struct step_end_kernel end = {};
        char *mapped;
        BENCH_MUST(cudaHostAlloc((void **)&mapped, 1 << 20, cudaHostAllocMapped));
        end.rows = a.rows; end.heads = device_new<struct sample_head>(B); end.step = a.step; end.num_rows = B;
        end.tops = device_new<struct token_logprob>(B * MAX_TOP_LOGPROBS);
        for (int half = 0; half < 2; half++) {
            end.host_heads[half] = (struct sample_head *)(mapped + half * (1 << 19));
            end.host_tops[half] = (struct token_logprob *)(mapped + half * (1 << 19) + (1 << 16));
            end.host_done[half] = (volatile uint64_t *)(mapped + half * (1 << 19) + (1 << 18));
        }
        char name[32];
        snprintf(name, sizeof name, "%d sequences", B);
        auto launch_of = [&](cudaStream_t s) { return launch{ s, device.major * 10 + device.minor, device.multiProcessorCount, false }; };
        bench_line("step_begin", name, bench_us(32, 15, [&](int, cudaStream_t s) {
            struct launch l = launch_of(s);
            if (launch_step_begin(&head, (const struct step_image *)d_image, &a, &l)) exit(1);
        }), 0, 0);
        const struct step_image *images[2] = { (const struct step_image *)d_image, (const struct step_image *)d_image };
        bench_line("step_begin, captured", name, bench_us(32, 15, [&](int, cudaStream_t s) {
            struct launch l = launch_of(s);
            if (launch_step_begin_captured(images, &a, &l)) exit(1);
        }), 0, 0);
        bench_line("step_end", name, bench_us(32, 15, [&](int, cudaStream_t s) {
            struct launch l = launch_of(s);
            if (launch_step_end(&end, &l)) exit(1);
        }), 0, 0);
    }
    return 0;
}
