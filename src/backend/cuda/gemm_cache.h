/* gemm_cache.h - how each matrix product runs: own kernel or library, with which cut or algorithm; and the text file that keeps it
 * between starts.
 * Flow: gemm_tune -> table -> file; gemm_open <- file.        Thread: the rank's, no locks.        No CUDA types here.
 * The file: a first line "sluice-gemm 3 <key>", then one line per entry: n k rows out_f32 silu_mul how flips in_layer workspace us algo
 * (128 hex digits).
 * key names what an algorithm depends on (GPU, driver, library version): another key, and the file is as good as absent.
 * A line that does not parse is left out with a warning; the file is replaced by rename, so a reader sees the old or the new. */
#ifndef SLUICE_BACKEND_CUDA_GEMM_CACHE_H
#define SLUICE_BACKEND_CUDA_GEMM_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>

enum { GEMM_TABLE_MAX = 512, GEMM_KEY_MAX = 192, GEMM_ALGO_WORDS = 8 };

enum gemm_how {
    GEMM_LIBRARY,                  /* algo: the library's */
    GEMM_SM90,                     /* launch_gemm_planned; algo[0]: the cut */
    GEMM_SKINNY,                   /* launch_gemm_skinny; algo[0]: its cut */
    GEMM_APART,                    /* of silu_mul only: a product and silu_mul behind it are faster than both in one */
    GEMM_GEMV,                     /* launch_gemv */
    GEMM_NUM_HOW,
};

enum {
    FLIP_INSIDE = 1,               /* the norm or rotation behind it is not inside it, or is */
    FLIP_EARLY = 2,                /* it waits for its predecessor before it begins to load */
    FLIP_BEHIND = 4,               /* the small kernel behind it does not start early, or does */
    FLIP_ALL = 7,
};

struct gemm_entry {
    int32_t n, k, rows;            /* weight [n, k]; rows: upper end of the bucket of T */
    bool out_f32;
    bool silu_mul;                 /* the product with silu_mul in it: an entry of its own, beside that of the product alone */
    enum gemm_how how;
    uint8_t flips;                 /* FLIP_* bits: what is done the other way round than the rules (gemm_ways.h) say */
    bool tuned;                    /* timed, so worth keeping; else the library's first guess */
    bool in_layer;                 /* timed among its neighbours too (gemm_layer.h) */
    uint64_t workspace_bytes;
    float us;                      /* what it took when it was timed */
    uint64_t algo[GEMM_ALGO_WORDS];
};

struct gemm_table {
    char key[GEMM_KEY_MAX];
    int num_entries;
    struct gemm_entry entries[GEMM_TABLE_MAX];
};

/* The same kernel with the same cut or algorithm; flips may differ. */
bool gemm_same_way(const struct gemm_entry *a, const struct gemm_entry *b);
/* The bucket of T rows: products of the same bucket share an algorithm. */
int32_t gemm_bucket(int32_t rows);
/* NULL: not there. */
struct gemm_entry *gemm_table_find(struct gemm_table *t, int32_t n, int32_t k, int32_t rows, bool out_f32, bool silu_mul);
/* Adds or replaces. A full table drops the entry (-> false): the product then asks the library each time. */
bool gemm_table_put(struct gemm_table *t, const struct gemm_entry *entry);
/* Adds the file's entries to the table when its key is the table's. Returns how many, 0 when there is no usable file. */
int gemm_cache_read(struct gemm_table *t, const char *path);
/* Writes the table's timed entries and, beside them, those of the file that it does not have. */
int gemm_cache_write(const struct gemm_table *t, const char *path, struct err *err);

#endif
