/* sampling.c - see sampling.h. Philox4x32-10: ten rounds of two 32x32->64 products, key bumped by Weyl constants. */
#include <sluice/sampling.h>

#include <string.h>

enum { PHILOX_ROUNDS = 10 };
static const uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;
static const uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;

void philox4x32(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);

    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)PHILOX_M0 * c0;
        uint64_t p1 = (uint64_t)PHILOX_M1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

float sampling_uniform(uint64_t seed, uint32_t choice, uint32_t num_generated)
{
    uint32_t bits[4];
    philox4x32(seed, choice, num_generated, bits);
    /* 24 bits fill a float exactly; + 1 moves [0, 1) to (0, 1], so that a zero never selects a token of weight zero. */
    return (float)((bits[0] >> 8) + 1) * 0x1p-24f;
}

bool sampling_is_greedy(const struct sampling_params *params)
{
    return params->temperature < 1e-5f || params->top_k == 1 || params->top_p <= 0.0f;
}

bool sampling_has_penalties(const struct sampling_params *params)
{
    return params->repetition_penalty != 1.0f || params->frequency_penalty != 0.0f || params->presence_penalty != 0.0f;
}

void sampling_params_default(struct sampling_params *params)
{
    memset(params, 0, sizeof *params);
    params->temperature = 1.0f;
    params->top_p = 1.0f;
    params->repetition_penalty = 1.0f;
    params->num_logprobs = -1;
}
