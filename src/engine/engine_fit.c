#include "engine_fit.h"

#include "prefix_cache.h"

void engine_fit_scheduler(struct scheduler_options *options, const struct ranks *ranks)
{
    options->num_plans = ranks_num_slots(ranks);
    options->overlap = ranks_overlaps(ranks);
    options->num_blocks = ranks_num_blocks(ranks);
    int64_t fits = (int64_t)options->num_blocks * options->block_size;
    if (options->max_model_len > fits) options->max_model_len = (int32_t)fits;
}

struct submission_limits engine_submission_limits(const struct scheduler_options *options, const uint8_t secret[32],
                                                  const uint8_t model_digest[32])
{
    return (struct submission_limits){ .max_model_len = options->max_model_len, .block_size = options->block_size,
        .cache_root = prefix_root(secret, model_digest), .hash_prompt = options->enable_prefix_caching,
        .group_domains = !options->enable_prefix_caching };
}
