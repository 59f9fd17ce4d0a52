/* prefix_cache.h - key of a full block -> the block that holds it, and which unreferenced block to forget first.
 * Flow: kv_cache asks on admission (find), tells after a step (insert), takes the oldest when free blocks run out
 * (evict). Key = SHA-256(parent key | token ids), root = SHA-256(process secret | model digest), then the request's
 * cache domain: equal keys mean equal tokens from position 0 on, in one domain (api-contract 10.4).
 * Thread: engine only; the key functions are pure and run anywhere. Owns: index arrays, by block id. Never allocates
 * after init. Invariants (kv_cache_check): each block is at most once in the index; in the LRU list <=> indexed and
 * unreferenced. */
#ifndef SLUICE_ENGINE_PREFIX_CACHE_H
#define SLUICE_ENGINE_PREFIX_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/types.h>

#include "base/sha256.h"

struct prefix_entry {
    struct sha256 key;
    block_id chain_next;               /* bucket chain */
    block_id lru_prev, lru_next;       /* while unreferenced */
    bool indexed, in_lru;
};

struct prefix_cache {
    struct prefix_entry *entries;      /* [num_blocks] */
    block_id *buckets;                 /* [mask + 1] */
    uint32_t mask;
    int32_t num_blocks, num_indexed, num_lru;
    block_id lru_first, lru_last;      /* first = used longest ago */
};

/* secret: random bytes of this process. */
struct sha256 prefix_root(const uint8_t secret[32], const uint8_t model_digest[32]);
struct sha256 prefix_domain_root(const struct sha256 *root, const uint8_t cache_domain[32]);
struct sha256 prefix_key(const struct sha256 *parent, const token_id *tokens, int32_t block_size);

int  prefix_cache_init(struct prefix_cache *cache, int32_t num_blocks);
block_id prefix_cache_find(const struct prefix_cache *cache, const struct sha256 *key);     /* BLOCK_NONE if absent */
/* False when the key is there already, under another block. */
bool prefix_cache_insert(struct prefix_cache *cache, block_id block, const struct sha256 *key);
/* Out of the index and the LRU list; not indexed is fine. */
void prefix_cache_remove(struct prefix_cache *cache, block_id block);
/* The block lost its last reference / got its first again. */
void prefix_cache_park(struct prefix_cache *cache, block_id block);
void prefix_cache_unpark(struct prefix_cache *cache, block_id block);
/* The parked block used longest ago, taken out of index and list; BLOCK_NONE when none is parked. */
block_id prefix_cache_evict(struct prefix_cache *cache);
void prefix_cache_check(const struct prefix_cache *cache);
void prefix_cache_release(struct prefix_cache *cache);

#endif
