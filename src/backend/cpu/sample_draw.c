/* sample_draw.c - one draw from the truncated softmax, without sorting the vocabulary.
 * Weights are exp((logit - max) / temperature). A truncation is a cut in the one order of tokens (larger logit first, ties
 * to the lower id): everything up to the cut stays. The cuts of top_k and top_p are looked for among the candidates, the
 * tokens whose weight reaches a threshold; if the cut lies below, again with a lower threshold, at last with every token.
 * Candidates are counted by a histogram over (max - logit) / temperature, and only the bin in which the cut lies is put in
 * order, by a heap that is popped as far as needed.
 * Sums run in a fixed order over the row alone, so a row gives the same token in any batch. */
#include "sampler.h"

#include <math.h>
#include <string.h>

static const float BINS_PER_UNIT = 32.0f;  /* of (max - logit) / temperature: the last bin starts at exp(-64) */
static const float THRESHOLDS[] = { 0x1p-7f, 0x1p-12f, 0x1p-16f, 0.0f };   /* tried in turn when min_p does not say one */

struct cut { float logit; token_id id; };  /* the last token that stays */

struct draw {
    const struct sample_scratch *scratch;
    const float *logits;
    int32_t n, num_candidates;             /* candidates rise by id */
    float max, bin_scale;
};

static inline int bin_of(const struct draw *d, float logit)
{
    float at = (d->max - logit) * d->bin_scale;      /* rises as the logit falls, rounding included */
    return at < (float)(SAMPLE_BINS - 1) ? (int)at : SAMPLE_BINS - 1;
}

static double weight_held(const struct draw *d)
{
    double total = 0;
    for (int32_t i = 0; i < d->num_candidates; i++) total += d->scratch->weights[d->scratch->candidates[i]];
    return total;
}

static void fill_bins(const struct draw *d)
{
    struct sample_bin *bins = d->scratch->bins;
    memset(bins, 0, SAMPLE_BINS * sizeof *bins);
    for (int32_t i = 0; i < d->num_candidates; i++) {
        int32_t id = d->scratch->candidates[i];
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
    for (int32_t i = 0; i < d->num_candidates; i++) {
        int32_t id = d->scratch->candidates[i];
        if (bin_of(d, d->logits[id]) == bin) heap[count++] = id;
    }
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

/* The cut of top_k (at most the number of candidates) and then of top_p among what top_k left. total: the weight that top_p
 * is a share of when there is no top_k. Bins are filled. */
static struct cut find_cut(const struct draw *d, int32_t top_k, float top_p, double total)
{
    const struct sample_bin *bins = d->scratch->bins;
    struct cut cut = { -INFINITY, d->n };
    int k_bin = SAMPLE_BINS;               /* the bin of the k-th token, which is the k_left-th in it */
    int32_t k_left = top_k;

    if (top_k > 0) {
        total = 0;
        for (k_bin = 0; k_left > bins[k_bin].count; k_bin++) {
            k_left -= bins[k_bin].count;
            total += bins[k_bin].weight;
        }
        cut = cut_in_bin(d, k_bin, k_left, INFINITY, &total);
    }
    if (top_p >= 1.0f) return cut;

    double enough = (double)top_p * total, weight = 0;
    int bin = 0;
    for (; bin < k_bin && weight + bins[bin].weight < enough; bin++) weight += bins[bin].weight;
    if (bin == SAMPLE_BINS) return cut;    /* rounding: all of them are just not enough */
    return cut_in_bin(d, bin, bin == k_bin ? k_left : d->n, enough, &weight);
}

static inline bool stays(const struct draw *d, struct cut cut, int32_t id)
{
    return d->logits[id] > cut.logit || (d->logits[id] == cut.logit && id <= cut.id);
}

/* The candidate, by rising id, at which the running weight of those that stay reaches u times their sum. */
static token_id draw_candidate(const struct draw *d, struct cut cut, float u)
{
    const int32_t *candidates = d->scratch->candidates;
    const float *weights = d->scratch->weights;
    double total = 0, running = 0;
    token_id last = TOKEN_NONE;

    for (int32_t i = 0; i < d->num_candidates; i++)
        if (stays(d, cut, candidates[i])) total += weights[candidates[i]];
    for (int32_t i = 0; i < d->num_candidates && (last == TOKEN_NONE || running < u * total); i++) {
        int32_t id = candidates[i];
        if (!(weights[id] > 0) || !stays(d, cut, id)) continue;
        running += weights[id];
        last = id;
    }
    return last;
}

/* Nothing is cut off: the weights of all tokens, summed by blocks; the token by rising id. */
static token_id draw_any(const struct draw *d, float u)
{
    const float *weights = d->scratch->weights;
    double *sums = d->scratch->block_sums, total = 0, running = 0, before = 0;
    int32_t at = 0, last = TOKEN_NONE;

    for (int32_t begin = 0, block = 0; begin < d->n; begin += SAMPLE_BLOCK, block++) {
        int32_t end = begin + SAMPLE_BLOCK < d->n ? begin + SAMPLE_BLOCK : d->n;
        float lanes[4] = { 0 };
        for (int32_t id = begin; id < end; id++) lanes[id % 4] += weights[id];
        sums[block] = (double)(lanes[0] + lanes[1]) + (double)(lanes[2] + lanes[3]);
        total += sums[block];
    }
    double target = (double)u * total;
    for (int32_t block = 0; block * SAMPLE_BLOCK < d->n && running < target; block++) {
        if (!(sums[block] > 0)) continue;  /* rounding can leave target above the last sum: `at` always has weight */
        at = block * SAMPLE_BLOCK;
        before = running;
        running += sums[block];
    }
    running = before;
    for (int32_t id = at; id < d->n && id < at + SAMPLE_BLOCK && (last == TOKEN_NONE || running < target); id++) {
        if (!(weights[id] > 0)) continue;
        last = id;
        running += weights[id];
    }
    return last;
}

token_id sample_draw(const struct sample_scratch *scratch, const struct cpu_kernels *kernels, const float *logits,
                     int32_t n, float max, const struct sampling_params *params, float u)
{
    float inverse_temperature = 1.0f / params->temperature;
    struct draw d = { scratch, logits, n, 0, max, BINS_PER_UNIT * inverse_temperature };
    int32_t top_k = params->top_k < n ? params->top_k : 0;
    struct cut cut = { -INFINITY, n };     /* all candidates stay */
    double all = kernels->exp_sum(scratch->weights, logits, n, max, inverse_temperature);

    if (top_k <= 0 && params->top_p >= 1.0f && params->min_p <= 0.0f) return draw_any(&d, u);
    for (int try = 0;; try++) {
        float threshold = params->min_p > 0.0f ? params->min_p : THRESHOLDS[try];
        bool complete = threshold == params->min_p || threshold == 0.0f;
        d.num_candidates = kernels->at_least(scratch->candidates, scratch->weights, n, threshold);
        if (top_k <= 0 && params->top_p >= 1.0f) break;
        if (top_k > d.num_candidates && !complete) continue;
        double held = weight_held(&d), total = complete ? held : all;
        if (top_k <= 0 && !complete && held < (double)params->top_p * total) continue;
        fill_bins(&d);
        cut = find_cut(&d, top_k < d.num_candidates ? top_k : 0, params->top_p, total);
        break;
    }
    return draw_candidate(&d, cut, u);
}
