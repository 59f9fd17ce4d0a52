/* gemm_contest.h - which way is fastest for one product and bucket of rows, by itself: the library's algorithms and the own kernels' cuts,
 * each behind a small kernel, with weights that are cold. What comes close is entered for the contest of its layer (gemm_layer.h).
 * Flow: gemm_tune.c -> contest_run() -> the table, layer_contest_enter().        Thread: the rank's, stream empty. No memory of its own. */
#ifndef SLUICE_BACKEND_CUDA_GEMM_CONTEST_H
#define SLUICE_BACKEND_CUDA_GEMM_CONTEST_H

#include "gemm_layer.h"
#include "gemm_ways.h"

enum { CONTEST_MAX_WAYS = 48, CHECK_COLS = 1024, CHECK_PARTS = 4 };       /* both ends of the first and of the last row are checked */

/* What the library makes of the first copy of w, and silu(gate) * up of it. */
struct reference { bool known; float plain[CHECK_PARTS][CHECK_COLS], silu[CHECK_PARTS][CHECK_COLS]; };

/* What one product is timed with. */
struct bench {
    struct reference reference;
    void *x, *out, *lead, *spacer;
    const void *w[GEMM_MAX_COPIES];
    int copies;
    int32_t spacer_width;
    size_t lead_bytes;
    const struct launch *launch;
    cudaStream_t stream;
    cudaEvent_t begin, end, laps[CONTEST_MAX_WAYS + 1];
};

/* Cuts the scratch memory into x and as many copies of w as it takes to be cold in the L2, from the front, and out, at the end: what is
 * written there, fp32 above all, would be infinities and NaN as x or w of another shape. false: it does not fit. */
bool bench_carve(struct bench *b, const struct gemm_shape *shape, int32_t rows, void *scratch, size_t bytes);
/* The same in the shape's own memory: real weights of several layers, and activations that no step uses now. */
bool bench_borrow(struct bench *b, const struct gemm_shape *shape, int32_t rows);
/* Steps find finite numbers in what they do not write themselves (padding), as before. */
cudaError_t bench_give_back(const struct bench *b, const struct gemm_shape *shape, int32_t rows);

/* Times the ways to do one shape and bucket into the table. layer: where those that come close are entered; NULL: nowhere. */
void contest_run(struct gemm *g, struct bench *b, const struct gemm_shape *shape, const struct gemm_item *item, bool library_only,
                 struct layer_contest *layer);

#endif
