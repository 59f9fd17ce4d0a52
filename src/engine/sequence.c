#include "sequence.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/err.h>
#include <sluice/sampling.h>

#include "base/bug.h"
#include "prefix_cache.h"

enum { ID_EMPTY = -1 };

/* ---- submissions (I/O thread) ---- */

struct submission *submission_note(enum submission_kind kind, uint64_t id, int err_code)
{
    struct submission *sub = calloc(1, sizeof *sub);

    if (!sub) return NULL;
    sub->kind = kind;
    sub->id = id;
    sub->err_code = err_code;
    return sub;
}

void submission_free(struct submission *sub) { free(sub); }

/* Sizes of the arrays behind the struct; counts are bounded by the context and by MAX_STOP_TOKEN_IDS,
 * MAX_LOGIT_BIAS. */
static struct submission *allocate(const struct engine_request *req, int32_t max_total, int32_t max_keys)
{
    size_t keys_bytes = (size_t)max_keys * sizeof(struct sha256);
    size_t words = (size_t)max_total + req->num_stop_ids + 2 * (size_t)req->num_bias + req->num_allowed + req->num_bad_ints;
    struct submission *sub = malloc(sizeof *sub + keys_bytes + 4 * words);

    if (!sub) return NULL;
    *sub = (struct submission){ .kind = SUBMISSION_START, .id = req->id, .req = *req, .max_total = max_total };
    sub->keys = (struct sha256 *)(sub + 1);
    sub->tokens = (token_id *)(sub->keys + max_keys);
    token_id *stop_ids = sub->tokens + max_total;
    token_id *bias_ids = stop_ids + req->num_stop_ids;
    float *bias_values = (float *)(bias_ids + req->num_bias);
    token_id *allowed_ids = (token_id *)(bias_values + req->num_bias);
    int32_t *bad_words = allowed_ids + req->num_allowed;
    memcpy(sub->tokens, req->tokens, 4 * ((size_t)req->num_prompt + req->num_output));
    if (req->num_stop_ids) memcpy(stop_ids, req->stop_ids, 4 * (size_t)req->num_stop_ids);
    if (req->num_bias) memcpy(bias_ids, req->bias_ids, 4 * (size_t)req->num_bias);
    if (req->num_bias) memcpy(bias_values, req->bias_values, 4 * (size_t)req->num_bias);
    if (req->num_allowed) memcpy(allowed_ids, req->allowed_ids, 4 * (size_t)req->num_allowed);
    if (req->num_bad_ints) memcpy(bad_words, req->bad_words, 4 * (size_t)req->num_bad_ints);
    for (uint32_t at = 0; at < req->num_bad_ints; at += 1 + (uint32_t)bad_words[at]) sub->num_bad_runs++;
    sub->req.allowed_ids = allowed_ids;
    sub->req.bad_words = bad_words;
    sub->req.tokens = sub->tokens;
    sub->req.stop_ids = stop_ids;
    sub->req.bias_ids = bias_ids;
    sub->req.bias_values = bias_values;
    return sub;
}

static struct sha256 root_of(const struct engine_request *req, const struct submission_limits *limits)
{
    uint8_t domain[sizeof req->cache_domain] = { 0 };

    if (!limits->group_domains) return prefix_domain_root(&limits->cache_root, req->cache_domain);
    memcpy(domain, &req->group, sizeof req->group);
    return prefix_domain_root(&limits->cache_root, domain);
}

struct submission *submission_new(const struct engine_request *req, const struct submission_limits *limits)
{
    /* the last token of a prompt that is only scored says nothing: it is not computed */
    int64_t num_tokens = (int64_t)req->num_prompt + req->num_output - (req->max_tokens == 0);
    int64_t max_total = (int64_t)req->num_prompt + req->max_tokens;
    int32_t block_size = limits->block_size;

    if (num_tokens >= limits->max_model_len) return submission_note(SUBMISSION_REFUSED, req->id, ERR_CONTEXT_LENGTH);
    if (num_tokens < 1 || num_tokens >= max_total) return submission_note(SUBMISSION_REFUSED, req->id, ERR_INTERNAL);
    if (max_total > limits->max_model_len) max_total = limits->max_model_len;

    struct submission *sub = allocate(req, (int32_t)max_total, (int32_t)max_total / block_size);
    if (!sub) return NULL;
    sub->num_tokens = (int32_t)num_tokens;
    sub->root = root_of(req, limits);
    if (!limits->hash_prompt) return sub;
    for (; sub->num_keys < sub->num_tokens / block_size; sub->num_keys++) {
        const struct sha256 *parent = sub->num_keys ? &sub->keys[sub->num_keys - 1] : &sub->root;
        sub->keys[sub->num_keys] = prefix_key(parent, sub->tokens + sub->num_keys * block_size, block_size);
    }
    return sub;
}

/* ---- id_map ---- */

static uint32_t home_of(const struct id_map *map, uint64_t key)
{
    key *= 0x9e3779b97f4a7c15u;            /* ids count up: spread them */
    return (uint32_t)(key >> 32) & map->mask;
}

int id_map_init(struct id_map *map, uint32_t max_entries)
{
    uint32_t cap = 16;

    while (cap < 2 * max_entries) cap *= 2;
    *map = (struct id_map){ .mask = cap - 1 };
    map->keys = calloc(cap, sizeof *map->keys);
    map->values = malloc(cap * sizeof *map->values);
    if (!map->keys || !map->values) return ERR_NO_MEMORY;
    for (uint32_t i = 0; i < cap; i++) map->values[i] = ID_EMPTY;
    return 0;
}

static uint32_t place_of(const struct id_map *map, uint64_t key)
{
    uint32_t i = home_of(map, key);

    while (map->values[i] != ID_EMPTY && map->keys[i] != key) i = (i + 1) & map->mask;
    return i;
}

void id_map_put(struct id_map *map, uint64_t key, int32_t value)
{
    uint32_t i = place_of(map, key);

    BUG_ON(map->values[i] != ID_EMPTY || value < 0 || 2 * map->count > map->mask);
    map->keys[i] = key;
    map->values[i] = value;
    map->count++;
}

int32_t id_map_get(const struct id_map *map, uint64_t key) { return map->values[place_of(map, key)]; }

void id_map_remove(struct id_map *map, uint64_t key)
{
    uint32_t hole = place_of(map, key);

    if (map->values[hole] == ID_EMPTY) return;
    /* entries behind the hole move up when their home is not between it and them */
    for (uint32_t i = (hole + 1) & map->mask; map->values[i] != ID_EMPTY; i = (i + 1) & map->mask) {
        uint32_t home = home_of(map, map->keys[i]);
        if (((i - home) & map->mask) < ((i - hole) & map->mask)) continue;
        map->keys[hole] = map->keys[i];
        map->values[hole] = map->values[i];
        hole = i;
    }
    map->values[hole] = ID_EMPTY;
    map->count--;
}

void id_map_release(struct id_map *map)
{
    free(map->keys);
    free(map->values);
    *map = (struct id_map){ 0 };
}

/* ---- sequence_pool ---- */

int sequence_pool_init(struct sequence_pool *pool, int32_t capacity)
{
    *pool = (struct sequence_pool){ .capacity = capacity };
    list_init(&pool->free);
    pool->all = aligned_alloc(64, (size_t)capacity * sizeof *pool->all);       /* untouched pages cost nothing */
    return pool->all && id_map_init(&pool->by_id, (uint32_t)capacity) == 0 ? 0 : ERR_NO_MEMORY;
}

struct sequence *sequence_pool_take(struct sequence_pool *pool, struct submission *sub)
{
    struct sequence *seq;

    BUG_ON(sub->kind != SUBMISSION_START);
    if (id_map_get(&pool->by_id, sub->id) >= 0) return NULL;
    if (!list_empty(&pool->free)) {
        seq = list_entry(pool->free.next, struct sequence, link);
        list_remove(&seq->link);
    } else if (pool->num_touched < pool->capacity) {
        seq = &pool->all[pool->num_touched++];
    } else {
        return NULL;
    }
    *seq = (struct sequence){
        .id = sub->id,
        .state = SEQ_WAITING,
        .sub = sub,
        .tokens = sub->tokens,
        .num_prompt = (int32_t)sub->req.num_prompt - (sub->req.max_tokens == 0),
        .num_to_score = sub->req.score_prompt ? (int32_t)sub->req.num_prompt : 0,
        .only_scores = sub->req.max_tokens == 0,
        .num_tokens = sub->num_tokens,
        .slot = -1,
        .num_stop_ids = (int32_t)sub->req.num_stop_ids,
        .sampling = sub->req.sampling,
        .max_total = sub->max_total,
        .num_known = sub->num_tokens,
        .ignore_eos = sub->req.ignore_eos,
        .wants_logprobs = sub->req.sampling.num_logprobs >= 0,
        .rank = (int64_t)((uint64_t)sub->req.arrival_ms + (uint64_t)sub->req.priority * PRIORITY_STEP_MS),
        .priority = sub->req.priority,
        .start_by_ns = sub->req.start_by_ms > 0 && sub->req.start_by_ms < INT64_MAX / 1000000 ? sub->req.start_by_ms * 1000000 : 0,
        .has_penalties = sampling_has_penalties(&sub->req.sampling),
    };
    seq->is_plain = !seq->has_penalties && !sub->req.num_bias && sub->req.min_tokens < 1 && !sub->req.num_allowed &&
                    !sub->num_bad_runs && !seq->num_to_score && !seq->only_scores;
    list_init(&seq->link);
    list_init(&seq->ring);
    id_map_put(&pool->by_id, seq->id, (int32_t)(seq - pool->all));
    pool->num_used++;
    return seq;
}

bool seq_needs_results(const struct sequence *seq)
{
    const struct engine_request *req = &seq->sub->req;

    if (seq->num_scored + 1 < seq->num_to_score || seq->only_scores) return true;
    for (uint32_t at = 0; at < req->num_bad_ints; at += 1 + (uint32_t)req->bad_words[at]) {
        if (req->bad_words[at] > 1) return true;
    }
    return false;
}

struct sequence *sequence_pool_find(const struct sequence_pool *pool, uint64_t id)
{
    int32_t index = id_map_get(&pool->by_id, id);

    return index < 0 ? NULL : &pool->all[index];
}

void sequence_pool_give(struct sequence_pool *pool, struct sequence *seq)
{
    BUG_ON(seq->state == SEQ_FREE || seq->num_blocks || seq->num_scheduled);
    id_map_remove(&pool->by_id, seq->id);
    seq->state = SEQ_FREE;
    seq->sub = NULL;
    pool->num_used--;
    list_push_front(&pool->free, &seq->link);
}

void sequence_pool_release(struct sequence_pool *pool)
{
    for (int32_t i = 0; i < pool->num_touched; i++) {
        if (pool->all[i].state != SEQ_FREE) submission_free(pool->all[i].sub);
    }
    id_map_release(&pool->by_id);
    free(pool->all);
    *pool = (struct sequence_pool){ 0 };
}
