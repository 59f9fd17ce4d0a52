/* layout.c - rank <-> (tp_rank, pp_stage), and what a rank holds of the model. */
#include <sluice/parallel.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/config.h>

#include "partition.h"

int rank_of(int tp_size, int tp_rank, int pp_stage)
{
    return pp_stage * tp_size + tp_rank;
}

void rank_place(int rank, int tp_size, int *tp_rank, int *pp_stage)
{
    *tp_rank = rank % tp_size;
    *pp_stage = rank / tp_size;
}

static int min_of(int a, int b) { return a < b ? a : b; }
static int clamp(int value, int high) { return value < 1 ? 1 : min_of(value, high); }

/* Every rank needs a query head, a slice of the MLP and of the vocabulary; every stage a layer. */
static int check_sizes(const struct model_config *config, int tp_size, int pp_size, struct err *err)
{
    int max_tp = min_of(MAX_TP, min_of(config->num_attention_heads, min_of(config->intermediate_size,
                                                                           config->vocab_size)));
    int max_pp = min_of(MAX_PP, config->num_hidden_layers);
    if (config->num_key_value_heads < 1 || config->num_attention_heads % config->num_key_value_heads != 0) {
        return err_set(err, ERR_CONFIG, "num_attention_heads %d is not a multiple of num_key_value_heads %d",
                       (int)config->num_attention_heads, (int)config->num_key_value_heads);
    }
    if (tp_size >= 1 && tp_size <= max_tp && pp_size >= 1 && pp_size <= max_pp) return 0;
    return err_set(err, ERR_CONFIG,
                   "tensor_parallel_size %d x pipeline_parallel_size %d: this model (%d heads in %d KV groups, %d "
                   "layers) splits over at most %d ranks x %d stages; the nearest layout is %d x %d", tp_size, pp_size,
                   (int)config->num_attention_heads, (int)config->num_key_value_heads, (int)config->num_hidden_layers,
                   max_tp, max_pp, clamp(tp_size, max_tp), clamp(pp_size, max_pp));
}

/* Parameters, as a measure of a stage's memory and of the time to stream them. */
static int64_t layer_cost(const struct model_config *config)
{
    int64_t q = (int64_t)config->num_attention_heads * config->head_dim;
    int64_t kv = (int64_t)config->num_key_value_heads * config->head_dim;
    return (int64_t)config->hidden_size * (2 * q + 2 * kv + 3 * (int64_t)config->intermediate_size);
}

/* Each stage gets one layer, then every further layer goes to the cheapest stage. With equal layers that makes the most
 * expensive stage as cheap as it can be. */
static void balance_layers(const struct model_config *config, int pp_size, int counts[MAX_PP])
{
    int64_t layer = layer_cost(config), table = (int64_t)config->vocab_size * config->hidden_size;
    int64_t cost[MAX_PP] = { 0 };
    cost[0] += table;
    if (pp_size > 1 || !config->tie_word_embeddings) cost[pp_size - 1] += table;
    for (int stage = 0; stage < pp_size; stage++) {
        counts[stage] = 1;
        cost[stage] += layer;
    }
    for (int left = config->num_hidden_layers - pp_size; left > 0; left--) {
        int cheapest = 0;
        for (int stage = 1; stage < pp_size; stage++) {
            if (cost[stage] < cost[cheapest]) cheapest = stage;
        }
        counts[cheapest]++;
        cost[cheapest] += layer;
    }
}

/* What was told with as few stages changed as possible: the last takes the difference, or all go by cost. */
static int refuse_partition(const struct model_config *config, int pp_size, const int *partition, int64_t sum,
                            struct err *err)
{
    int nearest[MAX_PP] = { 0 }, last = pp_size - 1;
    int64_t all_but_last = sum - partition[last];
    char told[80] = "", possible[80] = "";
    bool usable = all_but_last < config->num_hidden_layers;
    for (int stage = 0; stage < pp_size; stage++) usable = usable && (stage == last || partition[stage] >= 1);
    balance_layers(config, pp_size, nearest);
    for (int stage = 0; stage < pp_size && usable; stage++) {
        nearest[stage] = stage == last ? (int)(config->num_hidden_layers - all_but_last) : partition[stage];
    }
    for (int stage = 0, told_len = 0, len = 0; stage < pp_size; stage++) {
        const char *comma = stage > 0 ? "," : "";
        told_len += snprintf(told + told_len, sizeof(told) - (size_t)told_len, "%s%d", comma, partition[stage]);
        len += snprintf(possible + len, sizeof(possible) - (size_t)len, "%s%d", comma, nearest[stage]);
        if (told_len >= (int)sizeof(told) || len >= (int)sizeof(possible)) break;
    }
    return err_set(err, ERR_CONFIG,
                   "pp_layer_partition %s: the counts sum to %lld, the model has %d layers, one or more for every "
                   "stage; the nearest layout is %s", told, (long long)sum, (int)config->num_hidden_layers, possible);
}

static int told_layers(const struct model_config *config, int pp_size, const int *partition, int counts[MAX_PP],
                       struct err *err)
{
    int64_t sum = 0;
    bool empty = false;
    for (int stage = 0; stage < pp_size; stage++) {
        empty = empty || partition[stage] < 1;
        sum += counts[stage] = partition[stage];
    }
    if (empty || sum != config->num_hidden_layers) return refuse_partition(config, pp_size, partition, sum, err);
    return 0;
}

static int check_model(const struct model_config *config, int tp_size, int pp_size, const int *partition,
                       int counts[MAX_PP], struct err *err)
{
    int rc = check_sizes(config, tp_size, pp_size, err);
    if (rc < 0) return rc;
    if (partition) return told_layers(config, pp_size, partition, counts, err);
    balance_layers(config, pp_size, counts);
    return 0;
}

/* Fewer replicas if that is enough, else fewer stages, else fewer ranks. */
static int check_devices(const struct layout *layout, struct err *err)
{
    int64_t ranks = (int64_t)layout->tp_size * layout->pp_size * layout->dp_size;
    int tp = min_of(layout->tp_size, layout->num_devices);
    int pp = min_of(layout->pp_size, layout->num_devices / tp), dp = layout->num_devices / (tp * pp);
    if (ranks <= layout->num_devices) return 0;
    return err_set(err, ERR_CONFIG,
                   "tensor_parallel_size %d x pipeline_parallel_size %d x data_parallel_size %d needs %lld GPUs, %d "
                   "are visible; the nearest layout is %d x %d x %d", layout->tp_size, layout->pp_size, layout->dp_size,
                   (long long)ranks, layout->num_devices, tp, pp, min_of(dp, layout->dp_size));
}

int layout_check(const struct layout *layout, const struct model_config *config, struct err *err)
{
    int counts[MAX_PP] = { 0 };
    int rc = check_model(config, layout->tp_size, layout->pp_size, layout_layers(layout), counts, err);
    if (rc < 0 || layout->num_devices == 0) return rc;
    return check_devices(layout, err);
}

bool layout_on_gpus(const struct config *config)
{
    return strcmp(config->device, "cuda") == 0 || (strcmp(config->device, "auto") == 0 && gpus_visible() > 0);
}

void layout_of_config(struct layout *layout, const struct config *config)
{
    const struct str_list *told = &config->pp_layer_partition;
    *layout = (struct layout){ .tp_size = (int)config->tensor_parallel_size,
                               .pp_size = (int)config->pipeline_parallel_size,
                               .dp_size = (int)config->data_parallel_size, .told = told->n > 0,
                               .num_devices = strcmp(config->device, "cuda") == 0 ? gpus_visible() : 0 };
    for (size_t i = 0; i < told->n && i < MAX_PP; i++) layout->layers[i] = (int)strtol(told->items[i], NULL, 10);
}

int shard_of(struct shard *shard, const struct model_config *config, int tp_size, int pp_size, int tp_rank,
             int pp_stage, const int *layer_partition, struct err *err)
{
    int counts[MAX_PP] = { 0 };
    int rc = check_model(config, tp_size, pp_size, layer_partition, counts, err);
    if (rc < 0) return rc;
    if (tp_rank < 0 || tp_rank >= tp_size || pp_stage < 0 || pp_stage >= pp_size) {
        return err_set(err, ERR_CONFIG, "rank (tp %d, pp %d) is outside a layout of %d x %d", tp_rank, pp_stage,
                       tp_size, pp_size);
    }

    *shard = (struct shard){ .tp_rank = tp_rank, .tp_size = tp_size, .pp_stage = pp_stage, .pp_size = pp_size };
    for (int stage = 0; stage < pp_stage; stage++) shard->layers.begin += counts[stage];
    shard->layers.end = shard->layers.begin + counts[pp_stage];
    heads_split(config->num_attention_heads, config->num_key_value_heads, tp_size, tp_rank, &shard->heads,
                &shard->kv_heads);
    shard->ffn = wide_split(config->intermediate_size, tp_size, tp_rank);
    shard->vocab = vocab_range(config->vocab_size, tp_size, tp_rank);
    shard->has_embedding = pp_stage == 0;
    shard->has_head = pp_stage == pp_size - 1;
    return 0;
}
