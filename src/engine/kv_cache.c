#include "kv_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/bug.h"

int kv_cache_init(struct kv_cache *kv, int32_t num_blocks, int32_t block_size, bool prefix_caching, struct err *err)
{
    *kv = (struct kv_cache){ .num_blocks = num_blocks, .block_size = block_size, .prefix_caching = prefix_caching };
    BUG_ON(num_blocks < 1 || block_size < 1);
    kv->free_stack = malloc((size_t)num_blocks * sizeof *kv->free_stack);
    kv->ref_counts = calloc((size_t)num_blocks, sizeof *kv->ref_counts);
    if (!kv->free_stack || !kv->ref_counts || prefix_cache_init(&kv->prefix, num_blocks) < 0) {
        kv_cache_release(kv);
        return err_set(err, ERR_NO_MEMORY, "kv cache: no memory for the tables of %d blocks", num_blocks);
    }
    for (int32_t i = 0; i < num_blocks; i++) kv->free_stack[i] = num_blocks - 1 - i;
    kv->num_free = num_blocks;
    return 0;
}

int kv_cache_measure(struct kv_cache *kv, struct samples *samples, struct err *err)
{
    kv->ages.taken_ns = calloc((size_t)kv->num_blocks, sizeof *kv->ages.taken_ns);
    kv->ages.held_ns = calloc((size_t)kv->num_blocks, sizeof *kv->ages.held_ns);
    if (!kv->ages.taken_ns || !kv->ages.held_ns)
        return err_set(err, ERR_NO_MEMORY, "kv cache: no memory for the ages of %d blocks", kv->num_blocks);
    kv->ages.samples = samples;
    return 0;
}

/* ---- ages ---- */

static double seconds_since(const struct kv_cache *kv, int64_t ns) { return (double)(kv->now_ns - ns) / 1e9; }

static void age_taken(struct kv_cache *kv, block_id block)
{
    if (kv->ages.samples) kv->ages.taken_ns[block] = kv->ages.held_ns[block] = kv->now_ns;
}

static void age_left(struct kv_cache *kv, block_id block)
{
    if (kv->ages.samples) kv->ages.held_ns[block] = kv->now_ns;
}

static void age_found(struct kv_cache *kv, block_id block)
{
    if (!kv->ages.samples) return;
    sample_add(kv->ages.samples, SAMPLE_BLOCK_REUSE, seconds_since(kv, kv->ages.held_ns[block]));
    kv->ages.held_ns[block] = kv->now_ns;
}

static void age_evicted(struct kv_cache *kv, block_id block)
{
    if (!kv->ages.samples) return;
    sample_add(kv->ages.samples, SAMPLE_BLOCK_LIFETIME, seconds_since(kv, kv->ages.taken_ns[block]));
    sample_add(kv->ages.samples, SAMPLE_BLOCK_IDLE, seconds_since(kv, kv->ages.held_ns[block]));
}

/* ---- blocks ---- */

/* Key of full block i of seq; the chain is extended as tokens come. Idempotent, so const for the cache. */
static const struct sha256 *key_of(const struct kv_cache *kv, struct sequence *seq, int32_t i)
{
    struct submission *sub = seq->sub;

    for (; sub->num_keys <= i; sub->num_keys++) {
        const struct sha256 *parent = sub->num_keys ? &sub->keys[sub->num_keys - 1] : &sub->root;
        sub->keys[sub->num_keys] =
            prefix_key(parent, seq->tokens + (int64_t)sub->num_keys * kv->block_size, kv->block_size);
    }
    return &sub->keys[i];
}

static bool shares(const struct kv_cache *kv, const struct sequence *seq)
{
    return kv->prefix_caching || seq->sub->req.group;
}

struct kv_match kv_cache_match(const struct kv_cache *kv, struct sequence *seq)
{
    struct kv_match match = { 0 };

    if (!shares(kv, seq)) return match;
    /* a block that is found gives no logits: what has still to be scored is computed */
    int32_t usable = seq->num_scored + 1 < seq->num_to_score ? seq->num_scored : seq->num_tokens - 1;
    for (int32_t i = 0; i < usable / kv->block_size; i++) {
        block_id block = prefix_cache_find(&kv->prefix, key_of(kv, seq, i));
        if (block == BLOCK_NONE) break;
        match.num_hits++;
        if (!kv->ref_counts[block]) match.num_parked_hits++;
    }
    return match;
}

void kv_cache_adopt(struct kv_cache *kv, struct sequence *seq, const struct kv_match *match)
{
    BUG_ON(seq->num_blocks || seq->num_computed);
    for (int32_t i = 0; i < match->num_hits; i++) {
        block_id block = prefix_cache_find(&kv->prefix, key_of(kv, seq, i));
        BUG_ON(block == BLOCK_NONE);
        if (!kv->ref_counts[block]++) {
            prefix_cache_unpark(&kv->prefix, block);
            kv->num_used++;
        }
        age_found(kv, block);
        seq->blocks[seq->num_blocks++] = block;
    }
    seq->num_computed = match->num_hits * kv->block_size;
    seq->num_shared = seq->num_published = match->num_hits;
}

/* A block to write to; there is one. */
static block_id take_block(struct kv_cache *kv)
{
    if (kv->num_free) return kv->free_stack[--kv->num_free];
    block_id block = prefix_cache_evict(&kv->prefix);
    BUG_ON(block == BLOCK_NONE);
    age_evicted(kv, block);
    return block;
}

int kv_cache_reserve(struct kv_cache *kv, struct sequence *seq, int32_t num_tokens)
{
    int32_t want = kv_blocks_for(kv, num_tokens) - seq->num_blocks;

    if (want > kv_cache_available(kv)) return ERR_NO_BLOCKS;
    for (; want > 0; want--) {
        block_id block = take_block(kv);
        BUG_ON(kv->ref_counts[block]);
        kv->ref_counts[block] = 1;
        age_taken(kv, block);
        kv->num_used++;
        seq->blocks[seq->num_blocks++] = block;
    }
    return 0;
}

void kv_cache_publish(struct kv_cache *kv, struct sequence *seq)
{
    /* of an ended sequence plans in flight may have computed more than it has */
    int32_t full = (seq->num_computed < seq->num_tokens ? seq->num_computed : seq->num_tokens) / kv->block_size;

    if (seq->num_published >= full || seq->publish_off || !shares(kv, seq)) return;
    if (!kv->prefix_caching && full > seq->num_prompt / kv->block_size) full = seq->num_prompt / kv->block_size;
    for (; seq->num_published < full; seq->num_published++) {
        /* a block of equal content may be there already, computed side by side: then ours stays private */
        prefix_cache_insert(&kv->prefix, seq->blocks[seq->num_published], key_of(kv, seq, seq->num_published));
    }
}

void kv_cache_distrust(struct kv_cache *kv, struct sequence *seq)
{
    for (int32_t i = seq->num_shared; i < seq->num_published; i++) prefix_cache_remove(&kv->prefix, seq->blocks[i]);
    seq->publish_off = true;
}

/* Back to front, so that of one sequence the last block is forgotten first: a prefix is worth more than what follows
 * it. */
void kv_cache_drop(struct kv_cache *kv, struct sequence *seq)
{
    while (seq->num_blocks) {
        block_id block = seq->blocks[--seq->num_blocks];
        seq->blocks[seq->num_blocks] = BLOCK_NONE;
        BUG_ON(kv->ref_counts[block] < 1);
        age_left(kv, block);
        if (--kv->ref_counts[block]) continue;
        kv->num_used--;
        if (!kv->prefix_caching) prefix_cache_remove(&kv->prefix, block);
        if (kv->prefix.entries[block].indexed) prefix_cache_park(&kv->prefix, block);
        else kv->free_stack[kv->num_free++] = block;
    }
    seq->num_computed = seq->num_shared = seq->num_published = 0;
}

void kv_cache_forget(struct kv_cache *kv)
{
    BUG_ON(kv->num_used);
    while (prefix_cache_evict(&kv->prefix) != BLOCK_NONE) continue;
    for (int32_t i = 0; i < kv->num_blocks; i++) kv->free_stack[i] = kv->num_blocks - 1 - i;
    kv->num_free = kv->num_blocks;
}

static void check_sequence(const struct kv_cache *kv, const struct sequence *seq, int32_t *refs)
{
    BUG_ON(seq->num_computed + seq->num_scheduled > seq->num_blocks * kv->block_size);
    BUG_ON(seq->num_published > seq->num_computed / kv->block_size || seq->num_shared > seq->num_published);
    for (int32_t i = 0; i < seq->num_blocks; i++) {
        BUG_ON(seq->blocks[i] < 0 || seq->blocks[i] >= kv->num_blocks);
        refs[seq->blocks[i]]++;
        BUG_ON(kv->ref_counts[seq->blocks[i]] >= 2 && i >= seq->num_published);
    }
}

void kv_cache_check(const struct kv_cache *kv, struct sequence *const *seqs, int32_t num_seqs, int32_t *scratch)
{
    int32_t num_used = 0;

    memset(scratch, 0, (size_t)kv->num_blocks * sizeof *scratch);
    for (int32_t i = 0; i < num_seqs; i++) check_sequence(kv, seqs[i], scratch);
    for (int32_t b = 0; b < kv->num_blocks; b++) {
        BUG_ON(scratch[b] != kv->ref_counts[b]);
        BUG_ON(kv->prefix.entries[b].in_lru != (kv->prefix.entries[b].indexed && !kv->ref_counts[b]));
        num_used += kv->ref_counts[b] > 0;
    }
    for (int32_t i = 0; i < kv->num_free; i++) {
        BUG_ON(kv->ref_counts[kv->free_stack[i]] || kv->prefix.entries[kv->free_stack[i]].indexed);
    }
    BUG_ON(num_used != kv->num_used || kv->num_free + kv->num_used + kv->prefix.num_lru != kv->num_blocks);
    prefix_cache_check(&kv->prefix);
}

void kv_cache_release(struct kv_cache *kv)
{
    free(kv->free_stack);
    free(kv->ref_counts);
    free(kv->ages.taken_ns);
    free(kv->ages.held_ns);
    prefix_cache_release(&kv->prefix);
    *kv = (struct kv_cache){ 0 };
}
