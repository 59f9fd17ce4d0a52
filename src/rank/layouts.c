/* layouts.c - the layouts that a host's GPUs allow, side by side. Arithmetic only. */
#include <sluice/rank.h>

#include "memory_plan.h"

/* The fullest rank decides: its plan is the one that fails first. */
static void take_fullest(struct layout_offer *offer, const struct rank_plan *plans, int num_ranks)
{
    uint64_t most = 0;

    for (int i = 0; i < num_ranks; i++) {
        const struct memory_plan *memory = &plans[i].memory;
        uint64_t fixed = memory->total - memory->kv;
        if (fixed < most) continue;
        most = fixed;
        offer->memory = *memory;
        offer->room_bytes = memory->device_bytes - memory->headroom_bytes - fixed;
    }
}

static void make_offer(struct layout_offer *offer, const struct model_config *config, const struct ranks_options *options,
                       uint64_t device_bytes, uint64_t context_bytes)
{
    struct layout layout = { .tp_size = offer->tp_size, .pp_size = offer->pp_size, .dp_size = offer->dp_size };
    struct ranks_options own = *options;
    struct rank_plan plans[MAX_RANKS];
    uint64_t device_free[MAX_RANKS];

    own.tp_size = offer->tp_size;
    own.pp_size = offer->pp_size;
    own.layer_partition = NULL;
    for (int i = 0; i < MAX_RANKS; i++) device_free[i] = device_bytes - context_bytes;
    if (layout_check(&layout, config, &offer->why) < 0) return;
    if (ranks_plan(plans, config, &own, device_bytes, options->ops->device_memory ? device_free : NULL, &offer->why) < 0) return;
    offer->fits = true;
    take_fullest(offer, plans, own.tp_size * own.pp_size);
}

int layouts_offered(struct layout_offer offers[MAX_LAYOUTS], const struct model_config *config, const struct ranks_options *options,
                    int num_gpus, uint64_t device_bytes, uint64_t context_bytes)
{
    int n = 0;

    for (int num_ranks = 1; num_ranks <= num_gpus && num_ranks <= MAX_HOST_GPUS; num_ranks++) {
        if (num_gpus % num_ranks != 0) continue;
        for (int pp = 1; pp <= num_ranks && pp <= MAX_PP; pp++) {
            if (num_ranks % pp != 0 || num_ranks / pp > MAX_TP || n == MAX_LAYOUTS) continue;
            offers[n] = (struct layout_offer){ .tp_size = num_ranks / pp, .pp_size = pp, .dp_size = num_gpus / num_ranks };
            make_offer(&offers[n++], config, options, device_bytes, context_bytes);
        }
    }
    return n;
}

int layouts_best(const struct layout_offer *offers, int n)
{
    int best = -1;

    for (int i = 0; i < n; i++) {
        if (!offers[i].fits) continue;
        if (layout_is_roomy(&offers[i])) return i;      /* they stand in order */
        if (best < 0 || offers[i].room_bytes > offers[best].room_bytes) best = i;
    }
    return best;
}
