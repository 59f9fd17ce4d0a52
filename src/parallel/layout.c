/* layout.c - rank <-> (tp_rank, pp_stage), and what a rank holds of the model. */
#include <sluice/parallel.h>

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

static int check_sizes(const struct model_config *config, int tp_size, int pp_size, struct err *err)
{
    int max_tp = config->num_attention_heads < MAX_TP ? config->num_attention_heads : MAX_TP;
    int max_pp = config->num_hidden_layers < MAX_PP ? config->num_hidden_layers : MAX_PP;
    if (config->num_key_value_heads < 1 || config->num_attention_heads % config->num_key_value_heads != 0) {
        return err_set(err, ERR_CONFIG, "num_attention_heads %d is not a multiple of num_key_value_heads %d",
                       (int)config->num_attention_heads, (int)config->num_key_value_heads);
    }
    if (config->intermediate_size < max_tp) max_tp = config->intermediate_size;
    if (config->vocab_size < max_tp) max_tp = config->vocab_size;
    if (tp_size < 1 || tp_size > max_tp) {
        return err_set(err, ERR_CONFIG,
                       "tensor_parallel_size %d: this model (%d heads, %d KV heads) splits over 1 to %d ranks; "
                       "the nearest is %d", tp_size, (int)config->num_attention_heads,
                       (int)config->num_key_value_heads, max_tp, tp_size < 1 ? 1 : max_tp);
    }
    if (pp_size < 1 || pp_size > max_pp) {
        return err_set(err, ERR_CONFIG,
                       "pipeline_parallel_size %d: this model (%d layers) splits over 1 to %d stages; "
                       "the nearest is %d",
                       pp_size, (int)config->num_hidden_layers, max_pp, pp_size < 1 ? 1 : max_pp);
    }
    return 0;
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

static int told_layers(const struct model_config *config, int pp_size, const int *partition, int counts[MAX_PP],
                       struct err *err)
{
    int64_t sum = 0;
    for (int stage = 0; stage < pp_size; stage++) {
        if (partition[stage] < 1) {
            return err_set(err, ERR_CONFIG, "pp_layer_partition: stage %d has %d layers; every stage needs one or more",
                           stage, partition[stage]);
        }
        sum += counts[stage] = partition[stage];
    }
    if (sum != config->num_hidden_layers) {
        return err_set(err, ERR_CONFIG, "pp_layer_partition: the counts sum to %lld, the model has %d layers",
                       (long long)sum, (int)config->num_hidden_layers);
    }
    return 0;
}

int shard_of(struct shard *shard, const struct model_config *config, int tp_size, int pp_size, int tp_rank,
             int pp_stage, const int *layer_partition, struct err *err)
{
    int counts[MAX_PP] = { 0 };
    int rc = check_sizes(config, tp_size, pp_size, err);
    if (rc < 0) return rc;
    if (tp_rank < 0 || tp_rank >= tp_size || pp_stage < 0 || pp_stage >= pp_size) {
        return err_set(err, ERR_CONFIG, "rank (tp %d, pp %d) is outside a layout of %d x %d", tp_rank, pp_stage,
                       tp_size, pp_size);
    }
    if (layer_partition) {
        if ((rc = told_layers(config, pp_size, layer_partition, counts, err)) < 0) return rc;
    } else {
        balance_layers(config, pp_size, counts);
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
