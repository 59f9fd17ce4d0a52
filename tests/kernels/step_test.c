/* step_test.c - step_begin spreads an image (padding, feedback), step_end tells the host, dummy weights equal the host's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdbool.h>

#include "kernels/gpu.h"

enum { MAX_T = 64, MAX_B = 64, BLOCKS = 12, IMAGE_BYTES = 1 << 16 };

static struct step_arrays arrays_new(const token_id *last_tokens)
{
    return (struct step_arrays){
        .input_ids = gpu_new(MAX_T * 4), .positions = gpu_new(MAX_T * 4), .slot_mapping = gpu_new(MAX_T * 8),
        .cu_seqlens_q = gpu_new((MAX_B + 1) * 4), .context_lens = gpu_new(MAX_B * 4), .seq_slots = gpu_new(MAX_B * 4),
        .block_tables = gpu_new(MAX_B * BLOCKS * 4), .rows = gpu_new(MAX_B * sizeof(struct sampling_row)),
        .bias_ids = gpu_new(4 * 4), .bias_values = gpu_new(4 * 4), .history = gpu_new(sizeof(struct history_entry)),
        .history_tokens = gpu_new(3 * 4), .attn_plan = gpu_new(5 * 4), .last_tokens = last_tokens, .step = gpu_new(24),
        .max_blocks_per_seq = BLOCKS };
}

static uint32_t put(char *image, size_t *used, const void *from, size_t bytes)
{
    size_t at = (*used + 15) / 16 * 16;
    memcpy(image + at, from, bytes);
    *used = at + bytes;
    return (uint32_t)at;
}

static void an_image_is_spread_and_padded(void **state)
{
    (void)state;
    enum { T = 3, PAD = 8 };
    static char image[IMAGE_BYTES];
    token_id last[10] = { 0 }, ids[T] = { 7, TOKEN_FEEDBACK, 9 };
    int32_t positions[T] = { 70, 3, 130 }, cu[T + 1] = { 0, 1, 2, 3 }, lens[T] = { 71, 4, 131 }, slots[T] = { 2, 5, 1 };
    int64_t mapping[T] = { 1000, 2000, 3000 };
    int32_t begin[T + 1] = { 0, 2, 3, 6 }, tables[6] = { 11, 12, 21, 31, 32, 33 }, plan[5] = { 1, 2, 3, 4, 5 };
    struct sampling_row rows[T] = { { .token = 0, .slot = 2 }, { .token = 1, .slot = 5 }, { .token = 2, .slot = 1 } };
    size_t used = sizeof(struct step_image);
    last[5] = 55;
    struct step_image *head = (struct step_image *)image;
    *head = (struct step_image){ .step = 41, .num_tokens = T, .num_seqs = T, .num_rows = T, .pad_tokens = PAD, .pad_seqs = PAD,
                                 .pad_rows = PAD, .attn_plan_words = 5 };
    head->off_input_ids = put(image, &used, ids, sizeof ids);
    head->off_positions = put(image, &used, positions, sizeof positions);
    head->off_slot_mapping = put(image, &used, mapping, sizeof mapping);
    head->off_cu_seqlens_q = put(image, &used, cu, sizeof cu);
    head->off_context_lens = put(image, &used, lens, sizeof lens);
    head->off_seq_slots = put(image, &used, slots, sizeof slots);
    head->off_table_begin = put(image, &used, begin, sizeof begin);
    head->off_tables = put(image, &used, tables, sizeof tables);
    head->off_rows = put(image, &used, rows, sizeof rows);
    head->off_attn_plan = put(image, &used, plan, sizeof plan);

    struct step_arrays a = arrays_new(gpu_copy(last, sizeof last));
    struct launch l = gpu_launch(0);
    assert_int_equal(launch_step_begin(head, gpu_copy(image, sizeof image), &a, &l), 0);
    gpu_sync();

    token_id got_ids[PAD];
    int32_t got[PAD + 1], table[PAD * BLOCKS], got_plan[5];
    int64_t got_mapping[PAD];
    struct sampling_row got_rows[PAD];
    uint64_t step;
    gpu_read(got_ids, a.input_ids, sizeof got_ids);
    gpu_read(got_mapping, a.slot_mapping, sizeof got_mapping);
    gpu_read(got_rows, a.rows, sizeof got_rows);
    assert_int_equal(got_ids[0], 7);
    assert_int_equal(got_ids[1], 55);
    assert_int_equal(got_ids[2], 9);
    for (int t = T; t < PAD; t++) {
        assert_int_equal(got_ids[t], 0);
        assert_int_equal(got_mapping[t], -1);
        assert_int_equal(got_rows[t].slot, -1);
        assert_int_equal(got_rows[t].token, 0);
    }
    assert_int_equal(got_mapping[2], 3000);
    assert_memory_equal(got_rows, rows, sizeof rows);
    gpu_read(got, a.context_lens, PAD * 4);
    assert_memory_equal(got, lens, sizeof lens);
    for (int b = T; b < PAD; b++) assert_int_equal(got[b], 0);
    gpu_read(got, a.cu_seqlens_q, (PAD + 1) * 4);
    assert_memory_equal(got, cu, sizeof cu);
    for (int b = T; b <= PAD; b++) assert_int_equal(got[b], T);
    gpu_read(table, a.block_tables, sizeof table);
    assert_int_equal(table[0], 11);
    assert_int_equal(table[1], 12);
    assert_int_equal(table[BLOCKS], 21);
    assert_int_equal(table[2 * BLOCKS + 2], 33);
    gpu_read(got_plan, a.attn_plan, sizeof got_plan);
    assert_memory_equal(got_plan, plan, sizeof plan);
    gpu_read(&step, a.step, sizeof step);
    assert_int_equal(step, 41);
}

static void fill(char *bytes, size_t n, uint64_t *rng) { for (size_t i = 0; i < n; i++) bytes[i] = (char)rng_next(rng); }

static void assert_spread(const void *array, const char *image, uint32_t at, size_t bytes)
{
    char *got = malloc(bytes + 1);
    gpu_read(got, array, bytes);
    assert_memory_equal(got, image + at, bytes);
    free(got);
}

/* Every array many times as long as a block of threads, in lengths that are no multiple of four words. */
static void spread_large(bool captured)
{
    enum { B = 301, TOKENS = 17003, BIAS = 5003, ENTRIES = 207, HISTORY = 9001, PLAN = 2117 };
    static char image[1 << 20];
    uint64_t rng = 3;
    size_t used = sizeof(struct step_image), table_bytes = 0;
    struct step_image *head = (struct step_image *)image;
    struct launch l = gpu_launch(0);
    fill(image, sizeof image, &rng);
    *head = (struct step_image){ .step = 8, .num_tokens = TOKENS, .num_seqs = B, .num_rows = B, .pad_tokens = TOKENS, .pad_seqs = B,
                                 .pad_rows = B, .num_bias = BIAS, .num_history = ENTRIES, .num_history_tokens = HISTORY,
                                 .attn_plan_words = PLAN };
    uint32_t *const offsets[] = { &head->off_input_ids, &head->off_positions, &head->off_slot_mapping, &head->off_cu_seqlens_q,
                                  &head->off_context_lens, &head->off_seq_slots, &head->off_rows, &head->off_bias_ids,
                                  &head->off_bias_values, &head->off_history, &head->off_history_tokens, &head->off_attn_plan };
    const size_t sizes[] = { TOKENS * 4, TOKENS * 4, TOKENS * 8, (B + 1) * 4, B * 4, B * 4, B * sizeof(struct sampling_row), BIAS * 4,
                             BIAS * 4, ENTRIES * sizeof(struct history_entry), HISTORY * 4, PLAN * 4 };
    for (int i = 0; i < 12; i++) {
        *offsets[i] = (uint32_t)(used = (used + 15) / 16 * 16);
        used += sizes[i];
    }
    int32_t *ids = (int32_t *)(image + head->off_input_ids), *cu = (int32_t *)(image + head->off_cu_seqlens_q);
    for (int t = 0; t < TOKENS; t++) ids[t] &= 0x7FFFFFFF;
    cu[B] = TOKENS;
    head->off_table_begin = (uint32_t)(used = (used + 15) / 16 * 16);
    int32_t *begin = (int32_t *)(image + used);
    used += (B + 1) * 4;
    for (int b = 0; b <= B; b++) begin[b] = b * 7 - b / 3;
    head->off_tables = (uint32_t)(used = (used + 15) / 16 * 16);
    table_bytes = (size_t)begin[B] * 4;
    assert_true(used + table_bytes <= sizeof image);

    struct step_arrays a = { .input_ids = gpu_new(sizes[0]), .positions = gpu_new(sizes[1]), .slot_mapping = gpu_new(sizes[2]),
        .cu_seqlens_q = gpu_new(sizes[3]), .context_lens = gpu_new(sizes[4]), .seq_slots = gpu_new(sizes[5]), .rows = gpu_new(sizes[6]),
        .bias_ids = gpu_new(sizes[7]), .bias_values = gpu_new(sizes[8]), .history = gpu_new(sizes[9]), .history_tokens = gpu_new(sizes[10]),
        .attn_plan = gpu_new(sizes[11]), .block_tables = gpu_new(B * BLOCKS * 4), .last_tokens = gpu_new(4), .step = gpu_new(24),
        .max_blocks_per_seq = BLOCKS };
    static char other[1 << 20];
    struct step_image *images[2] = { gpu_copy(other, sizeof other), gpu_copy(image, sizeof image) };      /* of steps 1, 3, .. and 2, 4, .. */
    uint64_t ended[3] = { 8, 0, captured ? 7 : 0 };
    CUDA_MUST(cudaMemcpy(a.step, ended, sizeof ended, cudaMemcpyHostToDevice));
    if (captured) assert_int_equal(launch_step_begin_captured((const struct step_image *const *)images, &a, &l), 0);
    else assert_int_equal(launch_step_begin(head, images[1], &a, &l), 0);
    gpu_sync();
    const void *const arrays[] = { a.input_ids, a.positions, a.slot_mapping, a.cu_seqlens_q, a.context_lens, a.seq_slots, a.rows, a.bias_ids,
                                   a.bias_values, a.history, a.history_tokens, a.attn_plan };
    for (int i = 0; i < 12; i++) assert_spread(arrays[i], image, *offsets[i], sizes[i]);
    for (int b = 0; b < B; b++)
        assert_spread(a.block_tables + (size_t)b * BLOCKS, image, head->off_tables + (uint32_t)begin[b] * 4, (size_t)(begin[b + 1] - begin[b]) * 4);
}

static void a_large_image_is_spread(void **state) { (void)state; spread_large(false); }
static void a_captured_step_finds_its_image(void **state) { (void)state; spread_large(true); }

static void the_host_sees_rows_then_the_number(void **state)
{
    (void)state;
    enum { R = 70 };
    struct sample_head heads[R];
    struct sampling_row rows[R] = { 0 };
    static struct token_logprob tops[R * MAX_TOP_LOGPROBS];
    uint64_t step[3] = { 7, 0, 6 };
    char *mapped;
    for (int r = 0; r < R; r++) {
        heads[r] = (struct sample_head){ .token = r * 3, .logprob = -0.5f * (float)r, .rank = r, .num_top = r % 2 ? 3 : 0 };
        rows[r].params.num_logprobs = r % 2 ? 3 : -1;
        for (int i = 0; i < MAX_TOP_LOGPROBS; i++) tops[r * MAX_TOP_LOGPROBS + i] = (struct token_logprob){ r + i, -1.0f };
    }
    CUDA_MUST(cudaHostAlloc((void **)&mapped, 1 << 17, cudaHostAllocMapped));
    memset(mapped, 0, 1 << 17);
    struct step_end_kernel end = { .rows = gpu_copy(rows, sizeof rows), .heads = gpu_copy(heads, sizeof heads),
                                   .tops = gpu_copy(tops, sizeof tops), .step = gpu_copy(step, sizeof step), .num_rows = R };
    for (int half = 0; half < 2; half++) {
        end.host_heads[half] = (struct sample_head *)(mapped + half * (1 << 16));
        end.host_tops[half] = (struct token_logprob *)(mapped + half * (1 << 16) + 8192);
        end.host_done[half] = (volatile uint64_t *)(mapped + half * (1 << 16) + 32768);
    }
    struct launch l = gpu_launch(0);
    assert_int_equal(launch_step_end(&end, &l), 0);
    gpu_sync();
    assert_int_equal(end.host_done[1][0], 7);              /* 7 is odd */
    assert_true(end.host_done[1][1] > 0);
    assert_int_equal(end.host_done[0][0], 0);
    gpu_read(step, end.step, sizeof step);
    assert_int_equal(step[2], 7);
    assert_memory_equal(end.host_heads[1], heads, sizeof heads);
    assert_int_equal(end.host_tops[1][3 * MAX_TOP_LOGPROBS + 2].id, 5);
    assert_int_equal(end.host_tops[1][2 * MAX_TOP_LOGPROBS + 2].id, 0);      /* row 2 asked for none */
}

static float host_dummy(uint64_t key, int64_t row, int64_t col)
{
    uint64_t x = (key + (uint64_t)row * 0x9E3779B97F4A7C15u) ^ ((uint64_t)col * 0xD1342543DE82EF95u);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    uint64_t sum = (x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + (x >> 48);
    return (float)((int32_t)sum - 131070) * (0.02f * 1.7320508f / 65536.0f);
}

static void dummy_weights_are_the_hosts(void **state)
{
    (void)state;
    enum { ROWS = 5, COLS = 1003 };
    uint16_t got[ROWS * COLS];
    struct dummy_kernel a = { .out = gpu_new(sizeof got), .num_rows = ROWS, .num_cols = COLS, .key = 12345, .first_row = 17,
                              .first_col = 30 };
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        struct launch l = gpu_launch(0);
        assert_int_equal(launch_dummy(&a, &l), 0);
        gpu_sync();
        gpu_read(got, a.out, sizeof got);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < COLS; c++) assert_int_equal(got[r * COLS + c], to_elem(host_dummy(12345, 17 + r, 30 + c)));
    }
}

static void shards_are_joined(void **state)
{
    (void)state;
    enum { R = 3, V = 11, TP = 2, WIDEST = 6 };
    float gathered[TP * R * WIDEST] = { 0 }, logits[R * V];
    struct join_shards_kernel a = { .num_rows = R, .vocab_size = V, .tp_size = TP, .widest = WIDEST, .begins = { 0, 6, 11 } };
    for (int t = 0; t < TP; t++)
        for (int r = 0; r < R; r++)
            for (int i = 0; i < a.begins[t + 1] - a.begins[t]; i++)
                gathered[t * R * WIDEST + r * (a.begins[t + 1] - a.begins[t]) + i] = (float)(r * 100 + a.begins[t] + i);
    a.gathered = gpu_copy(gathered, sizeof gathered);
    a.logits = gpu_new(sizeof logits);
    struct launch l = gpu_launch(0);
    assert_int_equal(launch_join_shards(&a, &l), 0);
    gpu_sync();
    gpu_read(logits, a.logits, sizeof logits);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) assert_int_equal((int)logits[r * V + v], r * 100 + v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_image_is_spread_and_padded), cmocka_unit_test(a_large_image_is_spread), cmocka_unit_test(a_captured_step_finds_its_image),
        cmocka_unit_test(the_host_sees_rows_then_the_number),
        cmocka_unit_test(dummy_weights_are_the_hosts), cmocka_unit_test(shards_are_joined),
    };
    if (gpu_absent()) return GPU_SKIP;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
