/* memory_plan.h - what the ranks share with the plan (private to rank). */
#ifndef SLUICE_RANK_MEMORY_PLAN_H
#define SLUICE_RANK_MEMORY_PLAN_H

#include <sluice/model.h>
#include <sluice/rank.h>

int32_t plan_max_rows(const struct ranks_options *options);
struct model_limits plan_limits(const struct ranks_options *options);
struct backend_options plan_backend_options(const struct ranks_options *options, const struct model_config *config,
                                            const struct shard *shard, int device);
/* num_blocks and the terms that follow from it. */
void memory_plan_set_blocks(struct memory_plan *plan, int32_t num_blocks);

#endif
