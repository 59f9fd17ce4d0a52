/* rope.c - inverse frequencies of each scaling, and the table. */
#include "rope.h"

#include <math.h>

#include "base/bug.h"

static double scale_llama3(double inv_freq, const struct rope_scaling *scaling)
{
    double old_len = scaling->original_max_position_embeddings;
    double low = scaling->low_freq_factor, high = scaling->high_freq_factor;
    double wavelen = 2.0 * M_PI / inv_freq;
    if (wavelen < old_len / high) return inv_freq;
    if (wavelen > old_len / low) return inv_freq / scaling->factor;
    double smooth = (old_len / wavelen - low) / (high - low);
    return (1.0 - smooth) * inv_freq / scaling->factor + smooth * inv_freq;
}

/* The dimension that turns `rotations` times within the original context. */
static double yarn_dim(double rotations, int head_dim, double theta, double old_len)
{
    return head_dim * log(old_len / (rotations * 2.0 * M_PI)) / (2.0 * log(theta));
}

/* Fast dimensions keep their frequency, slow ones are interpolated, with a ramp between. */
static double scale_yarn(double inv_freq, int i, const struct model_config *config)
{
    const struct rope_scaling *scaling = &config->rope_scaling;
    double old_len = scaling->original_max_position_embeddings;
    double low = floor(yarn_dim(scaling->beta_fast, config->head_dim, config->rope_theta, old_len));
    double high = ceil(yarn_dim(scaling->beta_slow, config->head_dim, config->rope_theta, old_len));
    low = fmax(low, 0.0);
    high = fmin(high, config->head_dim - 1);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax((i - low) / (high - low), 0.0), 1.0);
    return inv_freq / scaling->factor * ramp + inv_freq * (1.0 - ramp);
}

double rope_inv_freqs(double *inv_freqs, const struct model_config *config, const float *freq_factors)
{
    const struct rope_scaling *scaling = &config->rope_scaling;
    for (int i = 0; i < config->head_dim / 2; i++) {
        double inv_freq = pow(config->rope_theta, -2.0 * i / config->head_dim);
        switch (scaling->type) {
        case ROPE_DEFAULT: break;
        case ROPE_LINEAR: inv_freq /= scaling->factor; break;
        case ROPE_LLAMA3: inv_freq = scale_llama3(inv_freq, scaling); break;
        case ROPE_YARN: inv_freq = scale_yarn(inv_freq, i, config); break;
        }
        inv_freqs[i] = freq_factors ? inv_freq / freq_factors[i] : inv_freq;
    }
    if (scaling->type != ROPE_YARN) return 1.0;
    if (scaling->attention_factor > 0) return scaling->attention_factor;
    return scaling->factor > 1 ? 0.1 * log(scaling->factor) + 1.0 : 1.0;
}

void rope_table_fill(float *table, const struct model_config *config, const float *freq_factors, int64_t begin,
                     int64_t end)
{
    double inv_freqs[ROPE_MAX_HEAD_DIM / 2];
    int half = config->head_dim / 2;
    BUG_ON(config->head_dim < 2 || config->head_dim > ROPE_MAX_HEAD_DIM || config->head_dim % 2 != 0);
    double factor = rope_inv_freqs(inv_freqs, config, freq_factors);
    for (int64_t position = begin; position < end; position++) {
        float *row = table + position * config->head_dim;
        for (int i = 0; i < half; i++) {
            double angle = (double)position * inv_freqs[i];
            row[i] = (float)(cos(angle) * factor);
            row[half + i] = (float)(sin(angle) * factor);
        }
    }
}
