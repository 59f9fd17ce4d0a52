/* fast_matmul.c - weights as bf16 panels of 32 outputs, and the product over them.
 * A chunk of rows is packed once into blocks of tile_rows; then threads share the panels, and each panel, read from memory
 * once, meets every block of the chunk while it sits in the cache. One row is the same loop with one block of one row. */
#include <string.h>

#include "base/bug.h"
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

struct matmul_job {
    const struct cpu_kernels *kernels;
    const float *x, *bias;
    const uint32_t *weights;
    float *out;
    char *packed;
    int64_t rows, n, k;                    /* of the chunk */
};

static int64_t block_bytes(const struct matmul_job *job)
{
    return pairs_of(job->k) * job->kernels->tile_rows * job->kernels->pair_bytes;
}

static int block_rows(const struct matmul_job *job, int64_t block)
{
    int64_t left = job->rows - block * job->kernels->tile_rows;
    return left < job->kernels->tile_rows ? (int)left : job->kernels->tile_rows;
}

static void pack_blocks(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct matmul_job *job = arg;
    (void)thread;
    for (int64_t block = begin; block < end; block++)
        job->kernels->pack_rows(job->packed + block * block_bytes(job), job->x + block * job->kernels->tile_rows * job->k,
                                block_rows(job, block), job->k);
}

static void multiply_panels(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct matmul_job *job = arg;
    int64_t tile_rows = job->kernels->tile_rows, blocks = (job->rows + tile_rows - 1) / tile_rows;

    (void)thread;
    for (int64_t p = begin; p < end; p++) {
        int64_t first = p * PANEL_COLS;
        struct panel_args args = { .panel = job->weights + p * panel_words(job->k), .out_stride = job->n,
                                   .bias = job->bias ? job->bias + first : NULL, .k_pairs = pairs_of(job->k),
                                   .cols = job->n - first < PANEL_COLS ? (int)(job->n - first) : PANEL_COLS };
        for (int64_t block = 0; block < blocks; block++) {
            args.packed = job->packed + block * block_bytes(job);
            args.out = job->out + block * tile_rows * job->n + first;
            args.rows = block_rows(job, block);
            job->kernels->panel(&args);
        }
    }
}

void fast_matmul(struct backend *b, const struct matmul_args *args)
{
    const struct cpu_kernels *kernels = b->kernels;
    int64_t n = args->w->rows, k = args->w->cols, panels = (n + PANEL_COLS - 1) / PANEL_COLS;
    int64_t row_bytes = pairs_of(k) * kernels->pair_bytes, tile = kernels->tile_rows;
    int64_t chunk = CHUNK_BYTES / row_bytes / tile * tile;
    if (chunk < tile) chunk = tile;
    BUG_ON(chunk * row_bytes > PACK_BYTES);

    for (int64_t row = 0; row < args->num_tokens; row += chunk) {
        int64_t rows = args->num_tokens - row < chunk ? args->num_tokens - row : chunk;
        struct matmul_job job = { .kernels = kernels, .x = (const float *)args->x + row * k, .rows = rows, .n = n, .k = k,
                                  .bias = args->bias ? args->bias->data : NULL, .weights = args->w->data,
                                  .out = (float *)args->out + row * n, .packed = b->packed };
        int64_t blocks = (rows + tile - 1) / tile;
        pool_run(b->pool, blocks, cpu_grain(b, blocks, tile * k / 4), pack_blocks, &job);
        pool_run(b->pool, panels, cpu_grain(b, panels, PANEL_COLS * k / 2), multiply_panels, &job);
    }
}
