/* fast_matmul.c - weights as panels of 32 outputs, of bf16 or of the file's blocks, and the product over them.
 * A chunk of rows is packed once into blocks of tile_rows; then threads share the panels, and each panel, read from memory
 * once, meets every block of the chunk while it sits in the cache. One row is the same loop with one block of one row. */
#include <string.h>

#include "base/bug.h"
#include "blocks.h"
#include "fast_ops.h"

enum { CHUNK_BYTES = 768 << 10 };          /* packed rows at a time: most of a 1 MiB second-level cache */

static int64_t pairs_of(int64_t k) { return (k + 1) / 2; }
static int64_t panel_words(int64_t k) { return pairs_of(k) * PANEL_COLS; }

/* A matrix is padded with zero outputs to whole panels; a vector stays f32. */
size_t fast_weight_bytes(enum weight_kind kind, int64_t rows, int64_t cols)
{
    if (kind == WEIGHT_VECTOR) return (size_t)rows * (size_t)cols * sizeof(float);
    return (size_t)((rows + PANEL_COLS - 1) / PANEL_COLS) * (size_t)panel_words(cols) * sizeof(uint32_t);
}

void fast_weight_store(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows,
                       const float *src)
{
    BUG_ON(row < 0 || n_rows < 0 || row + n_rows > w->rows);
    if (kind == WEIGHT_VECTOR) {
        memcpy((float *)w->data + row * w->cols, src, (size_t)n_rows * (size_t)w->cols * sizeof(float));
        return;
    }
    for (int64_t end = row + n_rows, next; row < end; row = next) {
        int first = (int)(row % PANEL_COLS);
        next = row - first + PANEL_COLS < end ? row - first + PANEL_COLS : end;
        b->kernels->pack_panel((uint32_t *)w->data + row / PANEL_COLS * panel_words(w->cols), first, (int)(next - row), src,
                               w->cols);
        src += (next - row) * w->cols;
    }
}

static int64_t kept_panel_bytes(enum dtype dtype, int64_t k)
{
    return (int64_t)block_panel_bytes(dtype) * (k / BLOCK_INPUTS);
}

size_t fast_kept_bytes(enum dtype dtype, int64_t rows, int64_t cols)
{
    if (cols % BLOCK_INPUTS != 0) return 0;
    return (size_t)((rows + PANEL_COLS - 1) / PANEL_COLS) * (size_t)kept_panel_bytes(dtype, cols);
}

void fast_store_kept(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, const void *src)
{
    const uint8_t *blocks = src;
    int64_t num_blocks = w->cols / BLOCK_INPUTS;
    (void)b;
    BUG_ON(row < 0 || n_rows < 0 || row + n_rows > w->rows || w->cols % BLOCK_INPUTS != 0);
    for (int64_t end = row + n_rows; row < end; row++, blocks += num_blocks * dtype_block_bytes(w->kept)) {
        uint8_t *panel = (uint8_t *)w->data + row / PANEL_COLS * kept_panel_bytes(w->kept, w->cols);
        blocks_store(panel, w->kept, (int)(row % PANEL_COLS), blocks, num_blocks);
    }
}

struct matmul_job {
    const struct cpu_kernels *kernels;
    const float *x, *bias;
    const void *weights;
    enum dtype kept;
    float *out;
    char *packed;
    int64_t rows, n, k;                    /* of the chunk */
};

static int64_t block_row_bytes(const struct cpu_kernels *kernels, int64_t k)
{
    return pairs_of(k) * kernels->pair_bytes + k / BLOCK_INPUTS * SCALE_ROWS * (int64_t)sizeof(float);
}

/* Packed rows; what blocks_pack says of each block of inputs lies behind the pairs. */
struct row_block { int64_t first; int rows; char *packed; float *scales; };

static int rows_of_next(const struct matmul_job *job, int64_t left)
{
    if (job->kept != DTYPE_F32) return job->kernels->blocks_tile_rows(left);
    return left < job->kernels->tile_rows ? (int)left : job->kernels->tile_rows;
}

/* The chunk's rows as blocks: whole tiles, then what is left, in one block or in a few. */
static struct row_block row_block(const struct matmul_job *job, int64_t index)
{
    int64_t tile = job->kernels->tile_rows, whole = job->rows / tile, at = index < whole ? index : whole;
    struct row_block block = { .first = at * tile };
    block.rows = rows_of_next(job, job->rows - block.first);
    for (; at < index; at++) {
        block.first += block.rows;
        block.rows = rows_of_next(job, job->rows - block.first);
    }
    block.packed = job->packed + block.first * block_row_bytes(job->kernels, job->k);
    block.scales = (float *)(block.packed + pairs_of(job->k) * block.rows * job->kernels->pair_bytes);
    return block;
}

static int64_t row_blocks(const struct matmul_job *job)
{
    int64_t tile = job->kernels->tile_rows, blocks = job->rows / tile;
    for (int64_t left = job->rows % tile; left > 0; left -= rows_of_next(job, left)) blocks++;
    return blocks;
}

static void pack_blocks(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct matmul_job *job = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        struct row_block block = row_block(job, i);
        const float *x = job->x + block.first * job->k;
        if (job->kept == DTYPE_F32) job->kernels->pack_rows(block.packed, x, block.rows, job->k);
        else job->kernels->blocks_pack(block.packed, block.scales, x, block.rows, job->k);
    }
}

static void multiply_panels(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct matmul_job *job = arg;
    int64_t blocks = row_blocks(job);

    (void)thread;
    for (int64_t p = begin; p < end; p++) {
        int64_t first = p * PANEL_COLS;
        struct panel_args args = { .panel = (const uint32_t *)job->weights + p * panel_words(job->k), .out_stride = job->n,
                                   .bias = job->bias ? job->bias + first : NULL, .k_pairs = pairs_of(job->k),
                                   .cols = job->n - first < PANEL_COLS ? (int)(job->n - first) : PANEL_COLS };
        for (int64_t i = 0; i < blocks; i++) {
            struct row_block block = row_block(job, i);
            args.packed = block.packed;
            args.out = job->out + block.first * job->n + first;
            args.rows = block.rows;
            job->kernels->panel(&args);
        }
    }
}

static void multiply_kept_panels(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct matmul_job *job = arg;
    int64_t blocks = row_blocks(job);

    (void)thread;
    for (int64_t p = begin; p < end; p++) {
        int64_t first = p * PANEL_COLS;
        struct blocks_args args = { .panel = (const uint8_t *)job->weights + p * kept_panel_bytes(job->kept, job->k),
                                    .bias = job->bias ? job->bias + first : NULL, .out_stride = job->n,
                                    .num_blocks = job->k / BLOCK_INPUTS, .dtype = job->kept,
                                    .cols = job->n - first < PANEL_COLS ? (int)(job->n - first) : PANEL_COLS };
        for (int64_t i = 0; i < blocks; i++) {
            struct row_block block = row_block(job, i);
            args.packed = block.packed;
            args.scales = block.scales;
            args.out = job->out + block.first * job->n + first;
            args.rows = block.rows;
            job->kernels->blocks_panel(&args);
        }
    }
}

void fast_matmul(struct backend *b, const struct matmul_args *args)
{
    const struct cpu_kernels *kernels = b->kernels;
    int64_t n = args->w->rows, k = args->w->cols, panels = (n + PANEL_COLS - 1) / PANEL_COLS;
    int64_t row_bytes = block_row_bytes(kernels, k), tile = kernels->tile_rows;
    int64_t chunk = CHUNK_BYTES / row_bytes / tile * tile;
    if (chunk < tile) chunk = tile;
    BUG_ON(chunk * row_bytes > PACK_BYTES);

    for (int64_t row = 0; row < args->num_tokens; row += chunk) {
        int64_t rows = args->num_tokens - row < chunk ? args->num_tokens - row : chunk;
        struct matmul_job job = { .kernels = kernels, .x = (const float *)args->x + row * k, .rows = rows, .n = n, .k = k,
                                  .bias = args->bias ? args->bias->data : NULL, .weights = args->w->data, .kept = args->w->kept,
                                  .out = (float *)args->out + row * n, .packed = b->packed };
        int64_t blocks = row_blocks(&job);
        pool_run(b->pool, blocks, cpu_grain(b, blocks, tile * k / 4), pack_blocks, &job);
        pool_run(b->pool, panels, cpu_grain(b, panels, PANEL_COLS * k / 2),
                 job.kept == DTYPE_F32 ? multiply_panels : multiply_kept_panels, &job);
    }
}
