/* sampling.h - the random numbers and the host reference of drawing a token. Thread: any, no state. */
#ifndef SLUICE_SAMPLING_H
#define SLUICE_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/request.h>

/* Philox4x32-10 (Salmon et al. 2011) keyed (seed), counter (choice, num_generated): a uniform in (0, 1].
 * A function of its arguments alone, so a stream that is resumed elsewhere draws the same numbers. */
void  philox4x32(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4]);
float sampling_uniform(uint64_t seed, uint32_t choice, uint32_t num_generated);
bool  sampling_is_greedy(const struct sampling_params *params);       /* temperature < 1e-5 or top_k == 1 or top_p == 0 */
bool  sampling_has_penalties(const struct sampling_params *params);
void  sampling_params_default(struct sampling_params *params);        /* temperature 1, everything else off */

#endif
