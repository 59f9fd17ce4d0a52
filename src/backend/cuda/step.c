/* step.c - a plan goes up, a step runs (op by op, or as one captured graph), its rows come back.
 * The image of step N+1 is copied on its own stream while step N runs; step_begin then spreads it over the arrays at fixed addresses
 * that captured steps use. The host learns of the end of a step by polling a number that the step's last kernel writes. */
#include "cuda_backend.h"

#include <string.h>

#include "attn_decode_plan.h"
#include "base/bug.h"
#include "base/clock.h"
#include "base/futex.h"
#include "base/log.h"
#include "gemm_cache.h"

/* ---- the image ---- */

struct packer { char *base; size_t used, room; };

static uint32_t pack(struct packer *p, const void *from, size_t bytes)
{
    size_t at = (p->used + 15) / 16 * 16;
    BUG_ON(at + bytes > p->room);
    if (from) memcpy(p->base + at, from, bytes);
    p->used = at + bytes;
    return (uint32_t)at;
}

/* The used entries of every block table row, one behind the other. */
static void pack_tables(struct packer *p, struct step_image *image, const struct step_plan *plan)
{
    const int32_t *context_lens = plan_context_lens(plan);
    const block_id *tables = plan_block_tables(plan);
    size_t num_seqs = (size_t)plan->num_seqs;

    image->off_table_begin = pack(p, NULL, (num_seqs + 1) * sizeof(int32_t));
    int32_t *begin = (int32_t *)(p->base + image->off_table_begin), total = 0;
    for (size_t b = 0; b < num_seqs; b++) {
        begin[b] = total;
        total += (context_lens[b] + plan->block_size - 1) / plan->block_size;
    }
    begin[num_seqs] = total;
    image->off_tables = pack(p, NULL, (size_t)total * sizeof(block_id));
    block_id *to = (block_id *)(p->base + image->off_tables);
    for (size_t b = 0; b < num_seqs; b++) {
        memcpy(to + begin[b], tables + b * (size_t)plan->caps.max_blocks_per_seq,
               (size_t)(begin[b + 1] - begin[b]) * sizeof(block_id));
    }
}

void cuda_plan_attention(const struct backend *b, const int32_t *context_lens, int32_t num_seqs, void *to)
{
    const struct backend_options *o = &b->options;
    struct attn_decode_shape shape = { o->num_heads, o->num_kv_heads, o->head_dim, o->sliding_window, b->launch.num_sms };
    attn_decode_plan(&shape, context_lens, num_seqs, to);
}

static void pack_attn_plan(struct backend *b, struct packer *p, struct step_image *image, const struct step_plan *plan)
{
    if (plan->num_decode_seqs == 0) return;
    image->attn_plan_words = b->sizes.attn_plan_words;
    image->off_attn_plan = pack(p, NULL, (size_t)b->sizes.attn_plan_words * sizeof(int32_t));
    cuda_plan_attention(b, plan_context_lens(plan), plan->num_decode_seqs, p->base + image->off_attn_plan);
}

/* Only decodes: the step can run as a captured graph of its bucket. A history to rebuild stands between the step's begin and the rest. */
static int bucket_of_plan(const struct backend *b, const struct step_plan *plan)
{
    if (b->options.eager || plan->num_tokens != plan->num_decode_seqs || plan->num_seqs != plan->num_decode_seqs) return -1;
    if (plan->num_rows > plan->num_seqs || plan->num_history > 0) return -1;
    int bucket = bucket_of(plan->num_seqs);
    return bucket >= 0 && bucket_size(bucket) <= b->options.max_seqs ? bucket : -1;
}

static size_t fill_image(struct backend *b, const struct step_plan *plan, char *base)
{
    struct packer p = { base, sizeof(struct step_image), b->sizes.image_bytes };
    struct step_image *image = (struct step_image *)base;
    size_t tokens = (size_t)plan->num_tokens, seqs = (size_t)plan->num_seqs;
    int32_t padded = b->bucket >= 0 ? bucket_size(b->bucket) : 0;

    BUG_ON(plan->num_tokens > b->sizes.tokens || plan->num_seqs > b->sizes.seqs || plan->num_rows > b->sizes.rows ||
           plan->num_bias > b->sizes.bias || plan->num_history > b->sizes.history ||
           plan->num_history_tokens > b->sizes.history_tokens || plan->caps.max_blocks_per_seq > b->sizes.blocks_per_seq);
    *image = (struct step_image){
        .step = b->launched + 1, .num_tokens = plan->num_tokens, .num_seqs = plan->num_seqs, .num_rows = plan->num_rows,
        .pad_tokens = padded ? padded : plan->num_tokens, .pad_seqs = padded ? padded : plan->num_seqs,
        .pad_rows = padded ? padded : plan->num_rows,
        .num_bias = plan->num_bias, .num_history = plan->num_history, .num_history_tokens = plan->num_history_tokens };
    image->off_input_ids = pack(&p, plan_input_ids(plan), tokens * sizeof(token_id));
    image->off_positions = pack(&p, plan_positions(plan), tokens * sizeof(int32_t));
    image->off_slot_mapping = pack(&p, plan_slot_mapping(plan), tokens * sizeof(int64_t));
    image->off_cu_seqlens_q = pack(&p, plan_cu_seqlens_q(plan), (seqs + 1) * sizeof(int32_t));
    image->off_context_lens = pack(&p, plan_context_lens(plan), seqs * sizeof(int32_t));
    image->off_seq_slots = pack(&p, plan_seq_slots(plan), seqs * sizeof(int32_t));
    pack_tables(&p, image, plan);
    image->off_rows = pack(&p, plan_rows(plan), (size_t)plan->num_rows * sizeof(struct sampling_row));
    image->off_bias_ids = pack(&p, plan_bias_ids(plan), (size_t)plan->num_bias * sizeof(token_id));
    image->off_bias_values = pack(&p, plan_bias_values(plan), (size_t)plan->num_bias * sizeof(float));
    image->off_history = pack(&p, plan_history(plan), (size_t)plan->num_history * sizeof(struct history_entry));
    image->off_history_tokens = pack(&p, plan_history_tokens(plan), (size_t)plan->num_history_tokens * sizeof(token_id));
    pack_attn_plan(b, &p, image, plan);
    return p.used;
}

/* ---- upload ---- */

/* An offset that leads from the shadow plan to an array in device memory: addresses wrap around, and so does the sum. */
static uint64_t leads_to(const struct backend *b, const void *array)
{
    return (uint64_t)(uintptr_t)array - (uint64_t)(uintptr_t)&b->shadow;
}

void cuda_point_shadow(struct backend *b)
{
    struct step_plan *s = &b->shadow;
    const struct step_arrays *a = &b->arrays;
    s->caps.max_blocks_per_seq = b->sizes.blocks_per_seq;
    s->off_input_ids = leads_to(b, a->input_ids);
    s->off_positions = leads_to(b, a->positions);
    s->off_slot_mapping = leads_to(b, a->slot_mapping);
    s->off_cu_seqlens_q = leads_to(b, a->cu_seqlens_q);
    s->off_context_lens = leads_to(b, a->context_lens);
    s->off_block_tables = leads_to(b, a->block_tables);
    s->off_seq_slots = leads_to(b, a->seq_slots);
    s->off_rows = leads_to(b, a->rows);
    s->off_bias_ids = leads_to(b, a->bias_ids);
    s->off_bias_values = leads_to(b, a->bias_values);
    s->off_history = leads_to(b, a->history);
    s->off_history_tokens = leads_to(b, a->history_tokens);
}

static void fill_shadow(struct backend *b, const struct step_plan *plan)
{
    struct step_plan *s = &b->shadow;
    *s = *plan;
    if (b->bucket >= 0) {
        int32_t padded = bucket_size(b->bucket);
        s->num_tokens = s->num_seqs = s->num_decode_seqs = padded;
        if (plan->num_rows > 0) s->num_rows = padded;
    }
    cuda_point_shadow(b);
}

const struct step_plan *cuda_upload(struct backend *b, const struct step_plan *plan)
{
    struct stage *stage = &b->stages[b->launched % CUDA_STEPS];
    struct launch plain = b->launch;

    BUG_ON(b->launched - b->collected >= CUDA_STEPS);
    b->plan = plan;
    b->bucket = bucket_of_plan(b, plan);
    size_t bytes = fill_image(b, plan, stage->host);
    cudaError_t code = cudaMemcpyAsync(stage->device, stage->host, bytes, cudaMemcpyHostToDevice, b->copy_stream);
    if (code == cudaSuccess) code = cudaEventRecord(stage->copied, b->copy_stream);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(b->stream, stage->copied, 0);
    cuda_check(b, code == cudaSuccess ? 0 : ERR_INTERNAL, "upload");
    plain.pdl = false;                                     /* it follows a copy and, mostly, a graph */
    if (b->bucket < 0 || !b->graphs[b->bucket].warm) {     /* else the captured step begins with it */
        const struct step_image *head = (const struct step_image *)stage->host, *image = (const struct step_image *)stage->device;
        cuda_check(b, launch_step_begin(head, image, &b->arrays, &plain), "step_begin");
    }
    if (plan->num_history > 0 && b->options.is_last) {
        struct sample_kernel history = b->sampler;
        history.num_history = plan->num_history;
        history.vocab_size = b->options.vocab_size;
        cuda_check(b, launch_sample_history(&history, &plain), "sample_history");
    }
    fill_shadow(b, plan);
    return &b->shadow;
}

/* ---- captured steps ---- */

static void capture_begin(struct backend *b)
{
    const struct step_image *images[CUDA_STEPS];
    struct launch plain = b->launch;
    for (int i = 0; i < CUDA_STEPS; i++) images[i] = (const struct step_image *)b->stages[i].device;
    plain.pdl = false;
    cuda_check(b, launch_step_begin_captured(images, &b->arrays, &plain), "step_begin");
}

/* The first step of a bucket runs op by op (kernels get loaded), the second is captured, later ones replay. */
bool cuda_step_begin(struct backend *b, const struct step_plan *uploaded)
{
    (void)uploaded;
    struct captured *graph = b->bucket >= 0 ? &b->graphs[b->bucket] : NULL;
    b->capturing = false;
    if (!graph || !graph->warm) return true;
    if (graph->exec) {
        cuda_check(b, cudaGraphLaunch(graph->exec, b->stream) == cudaSuccess ? 0 : ERR_INTERNAL, "graph launch");
        return false;
    }
    b->capturing = cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    cuda_check(b, b->capturing ? 0 : ERR_INTERNAL, "begin capture");
    if (b->capturing) capture_begin(b);
    return true;
}

static void end_capture(struct backend *b, struct captured *graph)
{
    cudaGraph_t made = NULL;
    cudaError_t code = cudaStreamEndCapture(b->stream, &made);
    if (code == cudaSuccess) code = cudaGraphInstantiate(&graph->exec, made, 0);
    if (made) cudaGraphDestroy(made);
    if (code == cudaSuccess) code = cudaGraphLaunch(graph->exec, b->stream);
    cuda_check(b, code == cudaSuccess ? 0 : ERR_INTERNAL, "capture");
    b->capturing = false;
}

static void launch_end(struct backend *b, const struct step_plan *uploaded)
{
    struct step_end_kernel end = b->end;
    end.num_rows = b->options.is_last ? uploaded->num_rows : 0;
    cuda_check(b, launch_step_end(&end, &b->launch), "step_end");
}

/* What was on the device when something went wrong: the record that an operator gets. */
static int report_failure(struct backend *b, const struct flight *flight, const char *what, const char *why)
{
    log_error("cuda_error", "GPU %d: %s: %s; step %llu of %d tokens in %d sequences from slot %d, %d rows%s",
              (int)b->options.device, what, why, (unsigned long long)flight->step, (int)flight->num_tokens, (int)flight->num_seqs,
              (int)flight->first_slot, (int)flight->num_rows, b->bucket >= 0 ? ", captured" : "");
    return ERR_INTERNAL;
}

int cuda_step_end(struct backend *b, const struct step_plan *uploaded)
{
    struct captured *graph = b->bucket >= 0 ? &b->graphs[b->bucket] : NULL;
    struct flight *flight = &b->flights[b->launched % CUDA_STEPS];
    bool replayed = graph && graph->exec;

    *flight = (struct flight){ .step = b->plan->step, .num_tokens = b->plan->num_tokens,
                               .num_seqs = b->plan->num_seqs, .num_rows = b->plan->num_rows,
                               .first_slot = plan_seq_slots(b->plan)[0] };
    if (!replayed) launch_end(b, uploaded);
    if (b->capturing) end_capture(b, graph);
    if (graph) graph->warm = true;
    b->launched++;
    if (b->error) return report_failure(b, flight, b->failed_op, "launch failed");
    return 0;
}

/* ---- while nothing runs ---- */

/* A product of so many rows has a faster way now: what was captured with the old one is made anew when its bucket comes next. */
static void drop_graphs(struct backend *b, int32_t rows)
{
    for (int i = 0; i < NUM_BUCKETS; i++) {
        if (gemm_bucket(bucket_size(i)) != rows) continue;
        if (b->graphs[i].exec) cudaGraphExecDestroy(b->graphs[i].exec);
        b->graphs[i] = (struct captured){ 0 };
    }
}

int cuda_idle(struct backend *b)
{
    struct err err = { 0 };
    int32_t changed = 0;

    BUG_ON(b->launched != b->collected);
    int rc = gemm_tune_more(b->gemm, &b->launch, &changed, &err);
    if (rc < 0) log_error("cuda_error", "GPU %d: while idle: %s", (int)b->options.device, err.message);
    if (changed > 0) drop_graphs(b, changed);
    return rc;
}

/* ---- results ---- */

static bool has_ended(const struct backend *b)
{
    uint64_t number = b->collected + 1;
    return b->end.host_done[number % CUDA_STEPS][0] == number;
}

bool cuda_done(struct backend *b)
{
    return has_ended(b) || cudaStreamQuery(b->stream) != cudaErrorNotReady;
}

static void read_row(struct result_row *row, const struct sample_head *head, const struct token_logprob *tops)
{
    row->token = head->token;
    row->logprob = head->logprob;
    row->rank = head->rank;
    row->num_top = head->num_top;
    row->bad = head->bad;
    if (head->num_top > 0 && head->num_top <= MAX_TOP_LOGPROBS) {
        memcpy(row->top, tops, (size_t)head->num_top * sizeof(*tops));
    }
}

int cuda_collect(struct backend *b, struct step_result *result)
{
    enum { QUERY_EVERY = 4096 };                           /* polls; a faulted device never writes the number */
    const struct flight *flight = &b->flights[b->collected % CUDA_STEPS];
    int half = (int)((b->collected + 1) % CUDA_STEPS);

    for (uint32_t polls = 1; !has_ended(b); polls++) {
        cpu_relax();
        if (polls % QUERY_EVERY != 0) continue;
        cudaError_t code = cudaStreamQuery(b->stream);
        if (code == cudaErrorNotReady) continue;
        if (code == cudaSuccess && has_ended(b)) break;
        return report_failure(b, flight, code == cudaSuccess ? "a step ended without its last kernel" : "device fault",
                              cudaGetErrorString(code));
    }
    atomic_thread_fence(memory_order_acquire);
    b->busy_ns = (int64_t)b->end.host_done[half][1];
    b->collected++;
    if (!result) return 0;
    result->rc = 0;
    for (int32_t r = 0; r < flight->num_rows; r++) {
        read_row(&result->rows[r], &b->end.host_heads[half][r], b->end.host_tops[half] + (size_t)r * MAX_TOP_LOGPROBS);
    }
    return 0;
}

int64_t cuda_busy_ns(const struct backend *b) { return b->busy_ns; }

void *cuda_stream(struct backend *b) { return b->stream; }
