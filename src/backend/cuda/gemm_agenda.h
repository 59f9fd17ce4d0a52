/* gemm_agenda.h - which products are to be timed, and in which order: few rows first, these are the decode steps; of one bucket of rows
 * the shapes as they were given. Then, where asked for, the layers they are in (gemm_layer.h), few rows first. What the table has timed
 * already is left out. Arithmetic over the table: no CUDA, no clock.
 * Flow: shapes, table -> agenda -> gemm_tune.c, an item at a time.        Thread: the rank's. */
#ifndef SLUICE_BACKEND_CUDA_GEMM_AGENDA_H
#define SLUICE_BACKEND_CUDA_GEMM_AGENDA_H

#include "gemm.h"
#include "gemm_cache.h"

enum { GEMM_AGENDA_MAX = GEMM_TABLE_MAX };

/* One and two rows of a weight that is not tiny are gemv's unless a layer is faster otherwise: alone a product is timed behind a kernel
 * that has ended, but in a step gemv already loads while its predecessor runs (H200, 0.6B: by products timed alone 0.87 and 0.84 ms a
 * step, so 0.78 and 0.80, by layers 0.72 and 0.73; 135M: 0.51 by products timed alone, else 0.55). */
static inline bool gemv_always(int32_t rows, int32_t n, int32_t k)
{
    enum { ROWS = 2, TINY = 2 << 20 };
    return rows <= ROWS && (int64_t)n * k >= TINY;
}

enum { GEMM_LAYER = -1, GEMM_MAX_LAYERS = 20 };

struct gemm_item {
    int shape;                     /* GEMM_LAYER: those of the bucket among their neighbours */
    int32_t bucket;                /* what the table calls it */
    int32_t rows;                  /* to time it with: the bucket's end, or the most that there can be */
};

struct gemm_agenda {
    int total;                     /* shapes and buckets that there are, timed or not */
    int num_items, next;
    struct gemm_item items[GEMM_AGENDA_MAX];
};

/* min_rows: nothing below is timed. max_rows: of shapes that do not say. layer_rows: layers are timed up to so many; 0: none. Items beyond
 * GEMM_AGENDA_MAX are left out: nothing times them. */
void gemm_agenda_make(struct gemm_agenda *a, struct gemm_table *t, const struct gemm_shape *shapes, int num_shapes, int32_t min_rows,
                      int32_t max_rows, int32_t layer_rows);
/* The next item, taken off; NULL: none is left. */
const struct gemm_item *gemm_agenda_next(struct gemm_agenda *a);
int gemm_agenda_left(const struct gemm_agenda *a);

#endif
