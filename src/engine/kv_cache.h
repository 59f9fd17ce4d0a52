/* kv_cache.h - which KV block holds which tokens of which sequence.
 * Flow: scheduler -> kv_cache -> step_plan.block_tables.      Thread: engine only, no locks.
 * Owns: block pool, prefix index. Borrows: sequences.         Metadata only: ids, never device pointers.
 * A block is free (no content), used (referenced by 1.. sequences) or cached (unreferenced, but its tokens can be
 * found). Without prefix_caching only sequences of one group find each other's prompt blocks, and only while one of them
 * holds them. Invariants, asserted by kv_cache_check():
 *   num_free + num_used + num_cached == num_blocks
 *   ref_count of a block == number of sequences whose table holds it
 *   ref_count >= 2  =>  the block is full and read-only; only blocks that no other sequence holds are written
 * Never allocates after init and measure. */
#ifndef SLUICE_ENGINE_KV_CACHE_H
#define SLUICE_ENGINE_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/types.h>

#include "prefix_cache.h"
#include "samples.h"
#include "sequence.h"

/* When blocks were used, for histograms. */
struct kv_ages {
    struct samples *samples;           /* NULL: not measured */
    int64_t *taken_ns, *held_ns;       /* [num_blocks] for its tokens; by a sequence, last */
};

struct kv_cache {
    int32_t num_blocks, block_size;    /* tokens per block */
    bool prefix_caching;
    int32_t num_free, num_used;        /* cached = prefix.num_lru */
    block_id *free_stack;              /* [num_blocks], the first num_free are free */
    int32_t *ref_counts;               /* [num_blocks] */
    struct prefix_cache prefix;
    struct kv_ages ages;
    int64_t now_ns;                    /* the scheduler's clock */
};

/* What an admission would find: blocks that are there already, and how many blocks it has to take from free +
 * cached. */
struct kv_match { int32_t num_hits, num_parked_hits; };

int  kv_cache_init(struct kv_cache *kv, int32_t num_blocks, int32_t block_size, bool prefix_caching, struct err *err);
/* From now on ages of blocks are sampled. ERR_NO_MEMORY. */
int  kv_cache_measure(struct kv_cache *kv, struct samples *samples, struct err *err);
static inline int32_t kv_cache_available(const struct kv_cache *kv) { return kv->num_free + kv->prefix.num_lru; }
static inline int32_t kv_blocks_for(const struct kv_cache *kv, int32_t num_tokens)
{
    return (num_tokens + kv->block_size - 1) / kv->block_size;
}
/* Looks the full blocks of seq's tokens up, front to back; at least one token is left to compute (its logits are
 * needed). Changes nothing. Keys that are not known yet are computed into the submission. */
struct kv_match kv_cache_match(const struct kv_cache *kv, struct sequence *seq);
/* Puts the matched blocks at the front of seq's empty table and sets num_computed. match must be fresh. */
void kv_cache_adopt(struct kv_cache *kv, struct sequence *seq, const struct kv_match *match);
/* Room for num_tokens tokens in all. All or nothing: on ERR_NO_BLOCKS nothing changed and the caller may preempt. */
int  kv_cache_reserve(struct kv_cache *kv, struct sequence *seq, int32_t num_tokens);
/* Offers the blocks that num_computed now fills to the prefix index. */
void kv_cache_publish(struct kv_cache *kv, struct sequence *seq);
/* Takes the blocks that seq computed itself out of the index: their content is not to be trusted. */
void kv_cache_distrust(struct kv_cache *kv, struct sequence *seq);
/* Gives every block of seq back. Idempotent; full blocks stay in the prefix index until evicted. */
void kv_cache_drop(struct kv_cache *kv, struct sequence *seq);
/* Forgets all cached blocks, when none is in use. */
void kv_cache_forget(struct kv_cache *kv);
/* Aborts with the first broken invariant. seqs: every sequence that holds blocks. */
void kv_cache_check(const struct kv_cache *kv, struct sequence *const *seqs, int32_t num_seqs,
                    int32_t *scratch /* [num_blocks] */);
void kv_cache_release(struct kv_cache *kv);      /* contents only */

#endif
