/* rehearsal.c - a few layers of the model on a step of our own making (decodes, or above some rows a prompt), so that products can be
 * timed among their neighbours. The step's arrays are written as an upload writes them; the next upload writes them all again. */
#include "cuda_backend.h"

#include "base/bug.h"

enum {
    CONTEXT = 128,                 /* tokens of each decode's sequence: attention is there, and does not drown the products */
    MOST_DECODES = 512,
    MOST_ROWS = 2048,              /* above, the neighbours hardly matter, and the power limit decides */
    DECODE_LAYERS = 6, PROMPT_LAYERS = 3,                  /* to run at least, and at most */
};
static const int64_t WEIGHT_BYTES = 700 << 20;             /* of the layers that run: far more than any L2 */

/* A step of more rows than this is a prompt. */
static int32_t most_decodes(const struct backend *b) { return b->options.max_seqs < MOST_DECODES ? b->options.max_seqs : MOST_DECODES; }

/* So many layers that their weights are cold, and a pass is long beside its launch. */
static int64_t layers_to_run(const struct backend *b, bool prompt)
{
    int64_t all = b->rehearsal.num_layers, layers = WEIGHT_BYTES / b->layer_bytes + 1;
    if (prompt) layers = PROMPT_LAYERS;
    else if (layers < DECODE_LAYERS) layers = DECODE_LAYERS;
    return layers < all ? layers : all;
}

/* The arrays of a step in the pinned memory of an upload: there is none under way. */
struct host_arrays { int32_t *ids, *positions, *cu, *lens; block_id *tables; void *attn_plan; };

static void *place(struct backend *b, size_t *used, size_t bytes)
{
    char *host = b->stages[0].host + *used;
    *used += (bytes + 15) / 16 * 16;
    BUG_ON(*used > b->sizes.image_bytes);
    return host;
}

static size_t words(int64_t n) { return (size_t)n * sizeof(int32_t); }
static size_t plan_bytes(const struct backend *b) { return words(b->sizes.attn_plan_words); }

/* num_seqs sequences of `context` tokens: each one decode, or each all of its tokens (the last what is left of them). */
static struct host_arrays fill(struct backend *b, int32_t rows, int32_t num_seqs, int32_t context, int32_t blocks)
{
    bool prompts = num_seqs < rows;
    size_t used = 0;
    struct host_arrays h = { place(b, &used, words(rows)), place(b, &used, words(rows)), place(b, &used, words(num_seqs + 1)), place(b, &used, words(num_seqs)),
                             place(b, &used, words((int64_t)num_seqs * blocks)), place(b, &used, plan_bytes(b)) };

    for (int32_t t = 0; t < rows; t++) {
        h.ids[t] = (int32_t)(((int64_t)t * 7919 + 13) % b->options.vocab_size);
        h.positions[t] = prompts ? t % context : context - 1;
    }
    for (int32_t i = 0; i < num_seqs; i++) {
        h.cu[i] = prompts ? i * context : i;
        h.lens[i] = prompts && rows - i * context < context ? rows - i * context : context;
        for (int32_t j = 0; j < blocks; j++) h.tables[i * blocks + j] = (block_id)(((int64_t)i * blocks + j) % b->rehearsal.num_blocks);
    }
    h.cu[num_seqs] = rows;
    if (!prompts) cuda_plan_attention(b, h.lens, num_seqs, h.attn_plan);
    return h;
}

static cudaError_t copy(struct backend *b, void *device, const void *host, size_t bytes)
{
    return cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, b->stream);
}

static int begin(void *arg, int32_t rows)
{
    struct backend *b = arg;
    const struct backend_options *o = &b->options;
    const struct step_arrays *a = &b->arrays;
    bool prompts = rows > most_decodes(b);
    int32_t context = prompts ? rows : CONTEXT, num_seqs;
    if (context > o->max_model_len) context = o->max_model_len;
    num_seqs = prompts ? (rows + context - 1) / context : rows;
    BUG_ON(num_seqs > o->max_seqs);
    int32_t blocks = (context + o->block_size - 1) / o->block_size;
    struct host_arrays h = fill(b, rows, num_seqs, context, blocks);

    cudaError_t code = copy(b, a->input_ids, h.ids, words(rows));
    if (code == cudaSuccess) code = copy(b, a->positions, h.positions, words(rows));
    if (code == cudaSuccess) code = copy(b, a->cu_seqlens_q, h.cu, words(num_seqs + 1));
    if (code == cudaSuccess) code = copy(b, a->context_lens, h.lens, words(num_seqs));
    if (code == cudaSuccess && !prompts) code = copy(b, a->attn_plan, h.attn_plan, plan_bytes(b));
    if (code == cudaSuccess) code = cudaMemsetAsync(a->slot_mapping, 0xFF, (size_t)rows * sizeof(int64_t), b->stream);       /* none is stored */
    if (code == cudaSuccess)
        code = cudaMemcpy2DAsync(a->block_tables, words(b->sizes.blocks_per_seq), h.tables, words(blocks), words(blocks), (size_t)num_seqs,
                                 cudaMemcpyHostToDevice, b->stream);
    if (code == cudaSuccess) code = cudaStreamSynchronize(b->stream);
    b->shadow = (struct step_plan){ .num_tokens = rows, .num_seqs = num_seqs, .num_decode_seqs = prompts ? 0 : rows, .max_q_len = prompts ? context : 1,
                                    .max_context_len = context, .block_size = o->block_size };
    cuda_point_shadow(b);
    b->layers_rehearsed = layers_to_run(b, prompts);
    return code == cudaSuccess ? 0 : ERR_INTERNAL;
}

static int run(void *arg)
{
    struct backend *b = arg;
    b->rehearsal.run(b->rehearsal.arg, &b->shadow, b->layers_rehearsed);
    b->unscaled = NULL;                                    /* of the layer that does not come */
    return b->error;
}

struct gemm_layers cuda_rehearsal(struct backend *b, const struct matmul_shape *shapes, int num_shapes)
{
    int64_t rows = b->options.max_tokens < MOST_ROWS ? b->options.max_tokens : MOST_ROWS, fit = (int64_t)b->options.max_seqs * b->options.max_model_len;
    if (rows > fit) rows = fit;
    if (!b->rehearsal.run) return (struct gemm_layers){ 0 };
    b->layer_bytes = 1;
    for (int i = 0; i < num_shapes; i++) b->layer_bytes += shapes[i].out_f32 ? 0 : shapes[i].rows * shapes[i].cols * 2;
    return (struct gemm_layers){ begin, run, b, (int32_t)rows, b->options.eager ? 0 : most_decodes(b) };
}
