/* parallel.h - who computes what: ranks, stages, ranges. Pure arithmetic, no device, no threads.
 * rank = ((dp * pp) + pp_stage) * tp + tp_rank. A partition is a list of ranges, not a division: remainders go to the
 * first ranks; above the number of KV groups KV heads are replicated. */
#ifndef SLUICE_PARALLEL_H
#define SLUICE_PARALLEL_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/loader.h>

enum { MAX_TP = 8, MAX_PP = 8 };

struct range { int64_t begin, end; };

/* Range `part` of `parts` over n items in multiples of unit (n % unit may be != 0: the last range is shorter). */
struct range range_split(int64_t n, int64_t unit, int parts, int part);

/* What one rank holds of the model. */
struct shard {
    int tp_rank, tp_size, pp_stage, pp_size;
    struct range layers;                 /* of num_hidden_layers */
    struct range heads, kv_heads;        /* query heads and KV heads of this tp_rank */
    struct range ffn;                    /* of intermediate_size */
    struct range vocab;                  /* of vocab_size: embedding rows and head */
    bool has_embedding, has_head;        /* first, last stage */
};

/* layer_partition: pp_size counts that sum to num_hidden_layers, or NULL: stages balanced by weights + head + embedding.
 * ERR_CONFIG with the numbers and the nearest possible layout. */
int shard_of(struct shard *shard, const struct model_config *config, int tp_size, int pp_size, int tp_rank, int pp_stage,
             const int *layer_partition, struct err *err);

enum partition { PART_REPLICATE, PART_COLUMN, PART_ROW, PART_QKV, PART_VOCAB };

#endif
