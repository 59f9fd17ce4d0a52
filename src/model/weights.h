/* weights.h - the weight-slot table and what it drives: lookup in both containers, shape check, TP slice, memory plan,
 * load (private to model).
 * A slot is one tensor of the files. Slots with the same `into` are stacked, in table order, into one weight in memory:
 * q | k | v and gate | up become one matmul each. */
#ifndef SLUICE_MODEL_WEIGHTS_H
#define SLUICE_MODEL_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/backend.h>
#include <sluice/loader.h>
#include <sluice/model.h>
#include <sluice/parallel.h>

/* Weights in memory. Those up to W_HEAD exist once, the others once per layer. */
enum weight_id {
    W_EMBED, W_FINAL_NORM, W_HEAD,
    W_ATTN_NORM, W_FIRST_OF_LAYER = W_ATTN_NORM,
    W_QKV, W_QKV_BIAS, W_Q_NORM, W_K_NORM, W_O, W_MLP_NORM, W_GATE_UP, W_DOWN,
    W_COUNT
};

enum dim { DIM_ONE, DIM_HIDDEN, DIM_Q, DIM_KV, DIM_HEAD, DIM_FFN, DIM_VOCAB };
enum slot_when { WHEN_ALWAYS, WHEN_ATTENTION_BIAS, WHEN_UNTIED };
enum dummy_value { DUMMY_RANDOM, DUMMY_ONE };

struct weight_slot {
    enum weight_id into;
    const char *safetensors, *gguf;   /* a layer's: behind "model.layers.N." and "blk.N." */
    enum dim rows, cols;              /* of the whole model; cols DIM_ONE: a vector of `rows` */
    enum partition part;
    bool rope_rows;                   /* q, k: rows (or entries) are permuted where config.rope_interleaved */
    enum slot_when when;
    enum dummy_value dummy;
};

struct slot_group { const struct weight_slot *slots; int n; };
#define SLOT_GROUP(table) { (table), (int)(sizeof(table) / sizeof((table)[0])) }
enum { MAX_SLOT_GROUPS = 4, MAX_SLOTS_PER_LAYER = 24 };

struct weight_groups {
    struct slot_group once[MAX_SLOT_GROUPS], layer[MAX_SLOT_GROUPS];    /* end with the first empty group */
};

/* Every weight of a shard: [W_FIRST_OF_LAYER] once, then [layers][W_COUNT - W_FIRST_OF_LAYER]. */
struct weights {
    struct weight *all;
    int64_t n;
};
/* layer: index within the shard; ignored for what exists once. data is NULL where the model has no such weight. */
const struct weight *weights_get(const struct weights *weights, enum weight_id id, int64_t layer);

/* Bytes of all weights of the shard in the backend's layout, and as fp32 values read (progress). src: the files, whose
 * formats decide what is kept as it is; NULL: nothing is. */
uint64_t weights_bytes(const struct weight_groups *groups, const struct model_config *config, const struct shard *shard,
                       const struct backend_ops *ops, const struct model_source *src);
uint64_t weights_fp32_bytes(const struct weight_groups *groups, const struct model_config *config,
                            const struct shard *shard);

struct weights_load_args {
    const struct model_source *src;
    const struct weight_groups *groups;
    const struct model_config *config;
    const struct shard *shard;
    const struct backend_ops *ops;
    struct backend *backend;
    uint64_t seed;
    model_progress *progress;
    void *progress_arg;
};
int  weights_load(struct weights *weights, const struct weights_load_args *args, struct err *err);
void weights_release(struct weights *weights);     /* the table; data belongs to the backend's arena */

/* n values near N(0, 0.02) for row `row` of tensor `name`, columns from first_col: a function of its arguments alone,
 * so that every way of sharding a dummy model gives the same model. (Sum of four uniform numbers, scaled.) */
void dummy_row(uint64_t seed, const char *name, int64_t row, int64_t first_col, float *dst, int64_t n);

#endif
