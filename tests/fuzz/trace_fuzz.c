/* Step traces: the records of a ring are read, dumped and replayed through the scheduler. The input is the ring; the head
 * is made here, with options that are small enough to be fast. First byte: policy, caching, plans in flight, overlap. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fill_head(struct trace_head *head, uint8_t variant, uint64_t len)
{
    *head = (struct trace_head){ .magic = TRACE_MAGIC, .capacity = TRACE_MIN_BYTES, .head = len / 8 * 8,
        .options = { .max_num_seqs = 8, .max_num_batched_tokens = 24, .max_model_len = 64, .max_sequences = 64,
                     .num_blocks = 20, .block_size = 4, .vocab_size = 1000, .num_plans = 1 + (variant >> 4 & 1),
                     .overlap = variant >> 7, .itl_target_ms = variant >> 5 & 3, .policy = (enum scheduler_policy)(variant % 3),
                     .enable_prefix_caching = variant >> 3 & 1, .eos = { { 999 }, 1 } } };
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint64_t file[(TRACE_HEAD_BYTES + TRACE_MIN_BYTES) / 8];
    struct trace_view view;
    struct replay_result result;
    struct err err = { 0 };
    FILE *out;

    if (size < 1) return 0;
    uint64_t len = size - 1 < TRACE_MIN_BYTES ? size - 1 : TRACE_MIN_BYTES;
    memset(file, 0, sizeof file);
    fill_head((struct trace_head *)file, data[0], len);
    memcpy((char *)file + TRACE_HEAD_BYTES, data + 1, len);
    if (trace_view_open(&view, file, sizeof file, &err) == 0) trace_replay(&view, &result, &err);
    if (trace_view_open(&view, file, sizeof file, &err) == 0 && (out = fopen("/dev/null", "w"))) {
        trace_dump(&view, out, &err);
        fclose(out);
    }
    /* the same bytes as a whole file: heads of all kinds */
    if (trace_view_open(&view, data, size, &err) == 0) trace_dump(&view, stderr, &err);
    return 0;
}
