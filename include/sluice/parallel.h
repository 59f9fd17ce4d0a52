/* parallel.h - who computes what: ranks, stages, ranges. Arithmetic, no threads, no state; only gpus_visible looks at
 * the machine.
 * rank = ((dp * pp_size) + pp_stage) * tp_size + tp_rank. A partition is a list of ranges, not a division: remainders
 * go to the first ranks. Up to tp_size == num_key_value_heads a rank owns whole KV heads with all their query heads;
 * above it each KV head is held by several ranks that share its query heads out. On every rank the query heads
 * therefore spread evenly over its KV heads, which is what the attention ops assume. */
#ifndef SLUICE_PARALLEL_H
#define SLUICE_PARALLEL_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/loader.h>

enum { MAX_TP = 8, MAX_PP = 8 };

struct range { int64_t begin, end; };
static inline int64_t range_len(struct range range) { return range.end - range.begin; }

/* Range `part` of `parts` over n items in multiples of unit (n % unit may be != 0: the last range is shorter).
 * Ranges follow each other without gaps; the first ones are the longer ones; some are empty when parts > n / unit. */
struct range range_split(int64_t n, int64_t unit, int parts, int part);

/* How a tensor is cut over tp ranks: all of it, rows (outputs) by the ffn range, columns (inputs), rows by heads, rows
 * by the vocabulary range. The slot's dimension says which range applies. */
enum partition { PART_REPLICATE, PART_COLUMN, PART_ROW, PART_QKV, PART_VOCAB };

/* What one rank holds of the model. */
struct shard {
    int tp_rank, tp_size, pp_stage, pp_size;
    struct range layers;                 /* of num_hidden_layers */
    struct range heads, kv_heads;        /* query heads and KV heads of this tp_rank */
    struct range ffn;                    /* of intermediate_size */
    struct range vocab;                  /* of vocab_size: embedding rows and head */
    bool has_embedding, has_head;        /* first, last stage */
};

struct config;                           /* config.h */

/* How a model is spread, as configured: dp_size replicas of tp_size x pp_size ranks. */
struct layout {
    int tp_size, pp_size, dp_size;
    int layers[MAX_PP];                  /* of each stage, when told */
    bool told;                           /* pp_layer_partition was given; else stages by cost */
    int num_devices;                     /* GPUs to place the ranks on; 0: no limit (CPU) or unknown */
};
void layout_of_config(struct layout *layout, const struct config *config);
/* Whether its ranks belong on GPUs, as far as one can tell here: device cuda, or auto where one is visible. */
bool layout_on_gpus(const struct config *config);
static inline const int *layout_layers(const struct layout *layout) { return layout->told ? layout->layers : NULL; }
/* Before anything loads: ERR_CONFIG in one line with the numbers and the nearest layout that is possible. */
int layout_check(const struct layout *layout, const struct model_config *config, struct err *err);
/* GPUs that a process started here may use: CUDA_VISIBLE_DEVICES, else the device files. 0: none or unknown. */
int gpus_visible(void);
/* CUDA_VISIBLE_DEVICES of one replica: its per_replica GPUs of those that are visible here. ERR_NOT_FOUND: there are not so many (list
 * is then ""); ERR_LIMIT: they do not fit into size bytes. */
int replica_gpus(char *list, size_t size, int replica, int per_replica);

/* layer_partition: pp_size counts that sum to num_hidden_layers, or NULL: stages balanced by weights + head +
 * embedding. Errors as layout_check. */
int shard_of(struct shard *shard, const struct model_config *config, int tp_size, int pp_size, int tp_rank,
             int pp_stage, const int *layer_partition, struct err *err);

/* Layout of the ranks of one replica, and back. */
int  rank_of(int tp_size, int tp_rank, int pp_stage);
void rank_place(int rank, int tp_size, int *tp_rank, int *pp_stage);
/* The vocabulary range of any tp rank: logits shards differ in length. */
struct range vocab_range(int32_t vocab_size, int tp_size, int tp_rank);

#endif
