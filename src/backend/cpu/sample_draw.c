/* sample_draw.c - one draw from the truncated softmax, without sorting the vocabulary.
 * A truncation is a cut in the one order of tokens (larger logit first, ties to the lower id): everything up to the cut
 * stays. top_k and top_p find their cut by a histogram over (max - logit) / temperature: whole bins are counted, and only
 * the bin in which the cut lies is put in order, by a heap that is popped as far as needed.
 * Sums run in a fixed order, so a row gives the same token in any batch. */
#include "sampler.h"

#include <math.h>
#include <string.h>

static const float BINS_PER_UNIT = 32.0f;  /* of (max - logit) / temperature: the last bin starts at exp(-64) */

struct cut { float logit; token_id id; };  /* the last token that stays */

struct draw {
    const struct sample_scratch *scratch;
    const float *logits;
    int32_t n;
    float max, bin_scale, min_weight;
};

/* Not below by min_p; a masked token is never a candidate. */
static inline bool is_candidate(const struct draw *d, int32_t id)
{
    return d->scratch->weights[id] >= d->min_weight && d->logits[id] > -INFINITY;
}

static inline int bin_of(const struct draw *d, float logit)
{
    float at = (d->max - logit) * d->bin_scale;      /* rises as the logit falls, rounding included */
    return at < (float)(SAMPLE_BINS - 1) ? (int)at : SAMPLE_BINS - 1;
}

static void fill_bins(const struct draw *d)
{
    struct sample_bin *bins = d->scratch->bins;
    memset(bins, 0, SAMPLE_BINS * sizeof *bins);
    for (int32_t id = 0; id < d->n; id++) {
        if (!is_candidate(d, id)) continue;
        struct sample_bin *bin = &bins[bin_of(d, d->logits[id])];
        bin->weight += d->scratch->weights[id];
        bin->count++;
    }
}

static inline bool comes_before(const float *logits, int32_t a, int32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(const float *logits, int32_t *heap, int32_t n, int32_t at)
{
    int32_t moved = heap[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_before(logits, heap[child + 1], heap[child])) child++;
        if (!comes_before(logits, heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static int32_t pop(const float *logits, int32_t *heap, int32_t *n)
{
    int32_t first = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) sift_down(logits, heap, *n, 0);
    return first;
}

static int32_t gather_bin(const struct draw *d, int bin)
{
    int32_t *heap = d->scratch->heap, count = 0;
    for (int32_t id = 0; id < d->n; id++)
        if (is_candidate(d, id) && bin_of(d, d->logits[id]) == bin) heap[count++] = id;
    for (int32_t at = count / 2 - 1; at >= 0; at--) sift_down(d->logits, heap, count, at);
    return count;
}

/* Pops tokens of the bin in order until `most` are taken or *weight reaches `enough`; *weight grows by what was taken. */
static struct cut cut_in_bin(const struct draw *d, int bin, int32_t most, double enough, double *weight)
{
    int32_t left = gather_bin(d, bin), id = 0;
    while (left > 0 && most-- > 0) {
        id = pop(d->logits, d->scratch->heap, &left);
        *weight += d->scratch->weights[id];
        if (*weight >= enough) break;
    }
    return (struct cut){ d->logits[id], id };
}

/* The cut of top_k, then of top_p among what top_k left. Bins are filled. */
static struct cut find_cut(const struct draw *d, int32_t top_k, float top_p)
{
    const struct sample_bin *bins = d->scratch->bins;
    struct cut cut = { -INFINITY, d->n };
    int bin = 0, k_bin = SAMPLE_BINS;
    int32_t k_left = top_k > 0 ? top_k : d->n;
    double total = 0, weight = 0;

    for (; bin < SAMPLE_BINS && k_left >= bins[bin].count; bin++) {
        k_left -= bins[bin].count;
        total += bins[bin].weight;
    }
    if (bin < SAMPLE_BINS && k_left > 0) {
        k_bin = bin;
        cut = cut_in_bin(d, k_bin, k_left, INFINITY, &total);
    } else if (bin < SAMPLE_BINS) {        /* the k-th token closed its bin: cut at the bin's end */
        k_bin = bin;
        while (bin > 0 && bins[bin - 1].count == 0) bin--;
        double ignored = 0;
        cut = cut_in_bin(d, bin - 1, d->n, INFINITY, &ignored);
    }
    if (top_p >= 1.0f) return cut;

    double enough = (double)top_p * total;
    for (bin = 0; bin < k_bin && weight + bins[bin].weight < enough; bin++) weight += bins[bin].weight;
    if (bin == SAMPLE_BINS) return cut;
    if (bin == k_bin) return k_left > 0 ? cut_in_bin(d, bin, k_left, enough, &weight) : cut;
    return cut_in_bin(d, bin, d->n, enough, &weight);
}

/* Zeroes the weights behind the cut and sums the rest by blocks; returns the total. */
static double sum_blocks(const struct draw *d, bool truncated, struct cut cut)
{
    float *weights = d->scratch->weights;
    double total = 0;

    for (int32_t begin = 0; begin < d->n; begin += SAMPLE_BLOCK) {
        int32_t end = begin + SAMPLE_BLOCK < d->n ? begin + SAMPLE_BLOCK : d->n;
        float lanes[4] = { 0 };
        for (int32_t id = begin; truncated && id < end; id++) {
            float logit = d->logits[id];
            bool stays = weights[id] >= d->min_weight && (logit > cut.logit || (logit == cut.logit && id <= cut.id));
            weights[id] = stays ? weights[id] : 0.0f;
        }
        for (int32_t id = begin; id < end; id++) lanes[id % 4] += weights[id];
        double sum = (double)(lanes[0] + lanes[1]) + (double)(lanes[2] + lanes[3]);
        d->scratch->block_sums[begin / SAMPLE_BLOCK] = sum;
        total += sum;
    }
    return total;
}

/* The first token, by id, at which the running sum reaches target. */
static token_id inverse_cdf(const struct draw *d, double target)
{
    const float *weights = d->scratch->weights;
    const double *sums = d->scratch->block_sums;
    int32_t blocks = (d->n + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK, at = 0, last = TOKEN_NONE;
    double running = 0, before = 0;        /* before: the sum in front of block `at` */

    for (int32_t block = 0; block < blocks && running < target; block++) {
        if (!(sums[block] > 0)) continue;  /* rounding can leave target above the last sum: `at` always has weight */
        at = block;
        before = running;
        running += sums[block];
    }
    running = before;
    int32_t end = (at + 1) * SAMPLE_BLOCK < d->n ? (at + 1) * SAMPLE_BLOCK : d->n;
    for (int32_t id = at * SAMPLE_BLOCK; id < end; id++) {
        if (!(weights[id] > 0)) continue;
        last = id;
        running += weights[id];
        if (running >= target) break;
    }
    return last;
}

token_id sample_draw(const struct sample_scratch *scratch, const struct cpu_kernels *kernels, const float *logits,
                     int32_t n, float max, const struct sampling_params *params, float u)
{
    float inverse_temperature = 1.0f / params->temperature;
    struct draw d = { scratch, logits, n, max, BINS_PER_UNIT * inverse_temperature, params->min_p };
    bool by_rank = (params->top_k > 0 && params->top_k < n) || params->top_p < 1.0f;
    struct cut cut = { -INFINITY, n };

    kernels->exp_sum(scratch->weights, logits, n, max, inverse_temperature);
    if (by_rank) {
        fill_bins(&d);
        cut = find_cut(&d, params->top_k, params->top_p);
    }
    double total = sum_blocks(&d, by_rank || params->min_p > 0, cut);
    return inverse_cdf(&d, (double)u * total);
}
