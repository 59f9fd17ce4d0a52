#include "sim.h"

#include <math.h>
#include <string.h>

uint32_t sim_below(struct sim_random *random, uint32_t n)
{
    random->state = random->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((random->state >> 33) * n) >> 31);
}

bool sim_chance(struct sim_random *random, uint32_t percent) { return sim_below(random, 100) < percent; }

uint64_t sim_mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
    hash *= 0xbf58476d1ce4e5b9u;
    return hash ^ hash >> 32;
}

void sim_request_append(struct sim_request *r, token_id token)
{
    uint64_t before = r->num_tokens ? r->chain[r->num_tokens - 1] : sim_mix(0, r->domain);

    SIM_CHECK(r->num_tokens < SIM_MAX_LEN);
    r->tokens[r->num_tokens] = token;
    r->chain[r->num_tokens++] = sim_mix(before, (uint64_t)token);
    if (r->num_drawn < r->num_tokens) r->num_drawn = r->num_tokens;
}

/* A few prompt heads that many requests share, so that the prefix cache has work. */
static void make_prompt(struct sim_request *r, struct sim_random *random, int32_t len)
{
    uint32_t head = sim_below(random, 4);
    int32_t shared = (int32_t)sim_below(random, (uint32_t)len + 1);

    for (int32_t i = 0; i < len; i++) {
        uint64_t fixed = sim_mix(head, (uint64_t)i) % SIM_VOCAB;
        sim_request_append(r, i < shared ? (token_id)fixed : (token_id)sim_below(random, SIM_VOCAB));
    }
}

void sim_request_init(struct sim_request *r, struct sim_random *random, uint64_t id, int32_t max_model_len,
                      bool priorities)
{
    *r = (struct sim_request){ .live = true, .domain = (uint8_t)sim_below(random, SIM_DOMAINS) };
    int32_t most = sim_chance(random, 20) ? max_model_len - 1 : 1 + max_model_len / 4;
    int32_t num_prompt = 1 + (int32_t)sim_below(random, (uint32_t)most);
    int32_t max_tokens = 1 + (int32_t)sim_below(random, sim_chance(random, 10) ? (uint32_t)max_model_len : 24);
    struct engine_request *req = &r->req;

    make_prompt(r, random, num_prompt);
    *req = (struct engine_request){
        .id = id,
        .group = id,
        .arrival_ms = (int64_t)id * 1000,         /* far enough apart for priorities to age */
        .max_tokens = max_tokens,
        .num_prompt = (uint32_t)num_prompt,
        .priority = priorities ? (int32_t)sim_below(random, 3) : 0,
        .ignore_eos = sim_chance(random, 20),
        .sampling = {.temperature = 1,
                     .top_p = 1,
                     .repetition_penalty = 1,
                     .num_logprobs = -1,
                     .seed = sim_below(random, 1u << 30)},
    };
    if (sim_chance(random, 20)) req->min_tokens = (int32_t)sim_below(random, (uint32_t)max_tokens + 1);
    if (sim_chance(random, 25)) req->sampling.frequency_penalty = 0.5f;
    if (sim_chance(random, 20)) req->num_stop_ids = 1 + sim_below(random, SIM_MAX_STOPS);
    for (uint32_t i = 0; i < req->num_stop_ids; i++) r->stop_ids[i] = (token_id)sim_below(random, SIM_VOCAB);
    if (sim_chance(random, 15)) req->num_bias = 1;
    r->bias_id = (token_id)sim_below(random, SIM_VOCAB);
    r->bias_value = -100;
    memset(req->cache_domain, r->domain, sizeof req->cache_domain);
    /* some come from a lost replica with tokens drawn there */
    uint32_t resumed = sim_chance(random, 15) ? sim_below(random, (uint32_t)max_tokens) : 0;
    while (req->num_output < resumed && r->num_tokens < max_model_len - 1) {
        sim_request_append(r, sim_truth(r, r->num_tokens));
        req->num_output++;
        if (sim_truth_finish(r, max_model_len) == FINISH_NONE) continue;
        r->num_drawn = --r->num_tokens;
        req->num_output--;
        break;
    }
}

void sim_request_clone(struct sim_request *r, const struct sim_request *first, uint64_t id, uint32_t choice)
{
    *r = *first;
    r->req.id = id;
    r->req.sampling.choice = choice;
    r->num_drawn = r->num_tokens = (int32_t)r->req.num_prompt;
    r->req.num_output = 0;
}

bool sim_is_masked(const struct sim_request *r, int32_t n, token_id token)
{
    if (n - (int32_t)r->req.num_prompt >= r->req.min_tokens) return false;
    if (token == SIM_EOS && !r->req.ignore_eos) return true;
    for (uint32_t i = 0; i < r->req.num_stop_ids; i++) {
        if (r->stop_ids[i] == token) return true;
    }
    return false;
}

token_id sim_truth(const struct sim_request *r, int32_t n)
{
    uint64_t hash = sim_mix(r->chain[n - 1], r->req.sampling.seed + r->req.sampling.choice);
    token_id token = (token_id)(hash % SIM_VOCAB);

    while (sim_is_masked(r, n, token) || (r->req.num_bias && token == r->bias_id)) token = (token + 1) % SIM_VOCAB;
    return token;
}

enum finish_reason sim_truth_finish(const struct sim_request *r, int32_t max_model_len)
{
    token_id last = r->tokens[r->num_tokens - 1];

    if (last == SIM_EOS && !r->req.ignore_eos) return FINISH_EOS;
    for (uint32_t i = 0; i < r->req.num_stop_ids; i++) {
        if (r->stop_ids[i] == last) return FINISH_STOP_TOKEN;
    }
    int32_t generated = r->num_tokens - (int32_t)r->req.num_prompt;
    return generated == r->req.max_tokens || r->num_tokens == max_model_len ? FINISH_LENGTH : FINISH_NONE;
}
