/* rope.h - the table of cosines and sines of rotary position embedding (private to model).
 * Formulas: default and linear (Su et al. 2021; Chen et al. 2023), llama3 (Llama 3.1's release notes), yarn (Peng et
 * al. 2023), all as Hugging Face transformers computes them in modeling_rope_utils.py. Computed in double. */
#ifndef SLUICE_MODEL_ROPE_H
#define SLUICE_MODEL_ROPE_H

#include <stdint.h>

#include <sluice/loader.h>

enum { ROPE_MAX_HEAD_DIM = 1024 };

/* D/2 inverse frequencies; returns the attention factor that cosines and sines are multiplied by (1 except for yarn).
 * freq_factors: [D/2] divisors or NULL (GGUF's rope_freqs.weight). head_dim is even and <= ROPE_MAX_HEAD_DIM. */
double rope_inv_freqs(double *inv_freqs, const struct model_config *config, const float *freq_factors);
/* table [max_positions, D]: D/2 cosines, then D/2 sines. */
void rope_table_fill(float *table, const struct model_config *config, const float *freq_factors, int64_t begin,
                     int64_t end);

#endif
