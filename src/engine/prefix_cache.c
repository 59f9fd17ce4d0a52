#include "prefix_cache.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/err.h>

#include "base/bug.h"

struct sha256 prefix_root(const uint8_t secret[32], const uint8_t model_digest[32])
{
    struct sha256_piece pieces[] = { { secret, 32 }, { model_digest, 32 } };

    return sha256_of(pieces, 2);
}

struct sha256 prefix_domain_root(const struct sha256 *root, const uint8_t cache_domain[32])
{
    struct sha256_piece pieces[] = { { root->bytes, 32 }, { cache_domain, 32 } };

    return sha256_of(pieces, 2);
}

struct sha256 prefix_key(const struct sha256 *parent, const token_id *tokens, int32_t block_size)
{
    struct sha256_piece pieces[] = { { parent->bytes, 32 }, { tokens, (size_t)block_size * sizeof *tokens } };

    return sha256_of(pieces, 2);
}

int prefix_cache_init(struct prefix_cache *cache, int32_t num_blocks)
{
    uint32_t cap = 16;

    while (cap < (uint32_t)num_blocks) cap *= 2;
    *cache = (struct prefix_cache){
        .mask = cap - 1, .num_blocks = num_blocks, .lru_first = BLOCK_NONE, .lru_last = BLOCK_NONE};
    cache->entries = calloc((size_t)num_blocks, sizeof *cache->entries);
    cache->buckets = malloc(cap * sizeof *cache->buckets);
    if (!cache->entries || !cache->buckets) return ERR_NO_MEMORY;
    for (uint32_t i = 0; i < cap; i++) cache->buckets[i] = BLOCK_NONE;
    return 0;
}

/* The key is a SHA-256 under a secret root: any bits of it are spread evenly, whatever clients send. */
static block_id *bucket_of(const struct prefix_cache *cache, const struct sha256 *key)
{
    uint32_t bits;

    memcpy(&bits, key->bytes, sizeof bits);
    return &cache->buckets[bits & cache->mask];
}

block_id prefix_cache_find(const struct prefix_cache *cache, const struct sha256 *key)
{
    block_id block = *bucket_of(cache, key);

    while (block != BLOCK_NONE && memcmp(cache->entries[block].key.bytes, key->bytes, sizeof key->bytes)) {
        block = cache->entries[block].chain_next;
    }
    return block;
}

bool prefix_cache_insert(struct prefix_cache *cache, block_id block, const struct sha256 *key)
{
    struct prefix_entry *entry = &cache->entries[block];
    block_id *bucket = bucket_of(cache, key);

    BUG_ON(entry->indexed || entry->in_lru);
    if (prefix_cache_find(cache, key) != BLOCK_NONE) return false;
    entry->key = *key;
    entry->chain_next = *bucket;
    entry->indexed = true;
    *bucket = block;
    cache->num_indexed++;
    return true;
}

void prefix_cache_park(struct prefix_cache *cache, block_id block)
{
    struct prefix_entry *entry = &cache->entries[block];

    BUG_ON(!entry->indexed || entry->in_lru);
    entry->in_lru = true;
    entry->lru_next = BLOCK_NONE;
    entry->lru_prev = cache->lru_last;
    if (cache->lru_last != BLOCK_NONE) cache->entries[cache->lru_last].lru_next = block;
    else cache->lru_first = block;
    cache->lru_last = block;
    cache->num_lru++;
}

void prefix_cache_unpark(struct prefix_cache *cache, block_id block)
{
    struct prefix_entry *entry = &cache->entries[block];

    BUG_ON(!entry->in_lru);
    if (entry->lru_prev != BLOCK_NONE) cache->entries[entry->lru_prev].lru_next = entry->lru_next;
    else cache->lru_first = entry->lru_next;
    if (entry->lru_next != BLOCK_NONE) cache->entries[entry->lru_next].lru_prev = entry->lru_prev;
    else cache->lru_last = entry->lru_prev;
    entry->in_lru = false;
    cache->num_lru--;
}

void prefix_cache_remove(struct prefix_cache *cache, block_id block)
{
    struct prefix_entry *entry = &cache->entries[block];

    if (!entry->indexed) return;
    if (entry->in_lru) prefix_cache_unpark(cache, block);
    block_id *at = bucket_of(cache, &entry->key);
    while (*at != block) at = &cache->entries[*at].chain_next;
    *at = entry->chain_next;
    entry->indexed = false;
    cache->num_indexed--;
}

block_id prefix_cache_evict(struct prefix_cache *cache)
{
    block_id block = cache->lru_first;

    if (block != BLOCK_NONE) prefix_cache_remove(cache, block);
    return block;
}

void prefix_cache_check(const struct prefix_cache *cache)
{
    int32_t num_lru = 0, num_chained = 0;
    block_id prev = BLOCK_NONE;

    for (block_id b = cache->lru_first; b != BLOCK_NONE; prev = b, b = cache->entries[b].lru_next) {
        BUG_ON(!cache->entries[b].in_lru || !cache->entries[b].indexed || cache->entries[b].lru_prev != prev);
        BUG_ON(++num_lru > cache->num_blocks);
    }
    BUG_ON(num_lru != cache->num_lru || cache->lru_last != prev);
    for (uint32_t i = 0; i <= cache->mask; i++) {
        for (block_id b = cache->buckets[i]; b != BLOCK_NONE; b = cache->entries[b].chain_next) {
            BUG_ON(!cache->entries[b].indexed || prefix_cache_find(cache, &cache->entries[b].key) != b);
            BUG_ON(++num_chained > cache->num_blocks);
        }
    }
    BUG_ON(num_chained != cache->num_indexed);
}

void prefix_cache_release(struct prefix_cache *cache)
{
    free(cache->entries);
    free(cache->buckets);
    *cache = (struct prefix_cache){ 0 };
}
