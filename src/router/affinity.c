#include "affinity.h"

#include <stdlib.h>

#include <sluice/err.h>

#include "base/hash.h"

enum {
    WAYS = 4,                      /* slots where a hash may stand: one cache line */
    SLACK_TOKENS = 4096,           /* a favourite may be this much busier than the idlest, plus a quarter */
};

int affinity_init(struct affinity *affinity, int64_t block_size)
{
    affinity->block_size = (size_t)block_size;
    affinity->slots = calloc(AFFINITY_SLOTS, sizeof *affinity->slots);
    return affinity->slots ? 0 : ERR_NO_MEMORY;
}

static size_t num_blocks(const struct affinity *affinity, size_t n)
{
    size_t blocks = n / affinity->block_size;

    return blocks < AFFINITY_MAX_BLOCKS ? blocks : AFFINITY_MAX_BLOCKS;
}

static uint64_t next_hash(const struct affinity *affinity, const token_id *ids, size_t block, uint64_t parent)
{
    return hash_bytes(ids + block * affinity->block_size, affinity->block_size * sizeof *ids, parent);
}

static uint64_t root_hash(const uint8_t domain[32]) { return hash_bytes(domain, 32, hash_process_seed()); }

static struct affinity_slot *bucket(const struct affinity *affinity, uint64_t hash)
{
    return affinity->slots + hash % (AFFINITY_SLOTS / WAYS) * WAYS;
}

static uint32_t known_by(const struct affinity *affinity, uint64_t hash)
{
    const struct affinity_slot *ways = bucket(affinity, hash);

    for (int i = 0; i < WAYS; i++) {
        if (ways[i].hash == hash) return ways[i].replicas;
    }
    return 0;
}

uint32_t affinity_match(const struct affinity *affinity, const token_id *ids, size_t n, const uint8_t domain[32], uint32_t among,
                        size_t *matched)
{
    uint64_t hash = root_hash(domain);
    uint32_t liked = 0;
    size_t known = 0;

    for (size_t i = 0, blocks = num_blocks(affinity, n); i < blocks; i++) {
        hash = next_hash(affinity, ids, i, hash);
        uint32_t replicas = known_by(affinity, hash) & among;
        if (!replicas) break;
        liked = replicas;
        known++;
    }
    if (matched) *matched = known * affinity->block_size;
    return liked;
}

/* Its slot, or one that it takes: a free one, else any. */
static struct affinity_slot *slot_of(struct affinity *affinity, uint64_t hash)
{
    struct affinity_slot *ways = bucket(affinity, hash), *slot = &ways[hash >> 62];

    for (int i = WAYS - 1; i >= 0; i--) {
        if (ways[i].hash == hash) return &ways[i];
        if (!ways[i].replicas) slot = &ways[i];
    }
    *slot = (struct affinity_slot){ .hash = hash };
    return slot;
}

void affinity_note(struct affinity *affinity, const token_id *ids, size_t n, const uint8_t domain[32], int replica)
{
    uint64_t hash = root_hash(domain);

    for (size_t i = 0, blocks = num_blocks(affinity, n); i < blocks; i++) {
        hash = next_hash(affinity, ids, i, hash);
        slot_of(affinity, hash)->replicas |= UINT32_C(1) << replica;
    }
}

void affinity_forget(struct affinity *affinity, int replica)
{
    for (size_t i = 0; i < AFFINITY_SLOTS; i++) affinity->slots[i].replicas &= ~(UINT32_C(1) << replica);
}

void affinity_release(struct affinity *affinity)
{
    free(affinity->slots);
    affinity->slots = NULL;
}

/* ---- placement ---- */

static bool less_loaded(const struct placement *a, const struct placement *b)
{
    return a->outstanding_tokens != b->outstanding_tokens ? a->outstanding_tokens < b->outstanding_tokens : a->num_given < b->num_given;
}

static int idlest(const struct placement *replicas, int n, uint32_t among)
{
    int best = -1;

    for (int i = 0; i < n; i++) {
        if (!replicas[i].ready || !(among >> i & 1)) continue;
        if (best < 0 || less_loaded(&replicas[i], &replicas[best])) best = i;
    }
    return best;
}

bool placement_overloaded(const struct placement *replicas, int n, int i)
{
    int other = idlest(replicas, n, UINT32_MAX);

    if (other < 0 || other == i) return false;
    const struct placement *busy = &replicas[i], *idle = &replicas[other];
    if (busy->num_sent >= busy->max_num_seqs && idle->num_sent < idle->max_num_seqs) return true;     /* it would queue here, run there */
    return busy->outstanding_tokens > idle->outstanding_tokens + idle->outstanding_tokens / 4 + SLACK_TOKENS;
}

int placement_choose(const struct placement *replicas, int n, uint32_t liked)
{
    int favourite = idlest(replicas, n, liked);

    if (favourite >= 0 && !placement_overloaded(replicas, n, favourite)) return favourite;
    return idlest(replicas, n, UINT32_MAX);
}

int placement_session(const struct placement *replicas, int n, uint64_t session)
{
    uint64_t best_score = 0;
    int best = -1;

    for (int i = 0; i < n; i++) {
        uint64_t score = hash_bytes(&i, sizeof i, session);
        if (!replicas[i].ready || (best >= 0 && score <= best_score)) continue;
        best = i;
        best_score = score;
    }
    return best;
}
