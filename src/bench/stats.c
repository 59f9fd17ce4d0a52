/* stats.c - percentiles and random numbers of the benchmarks. */
#include <sluice/bench.h>

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_percentile(const double *sorted, size_t n, double percent)
{
    double at = percent / 100 * (double)(n - 1);
    size_t below = (size_t)at;
    size_t above = below + 1 < n ? below + 1 : below;

    return sorted[below] + (sorted[above] - sorted[below]) * (at - (double)below);
}

void bench_stats_of(struct bench_stats *stats, double *values, size_t n)
{
    double sum = 0, squares = 0;

    *stats = (struct bench_stats){ .n = n };
    if (!n) return;
    qsort(values, n, sizeof *values, by_value);
    for (size_t i = 0; i < n; i++) sum += values[i];
    stats->mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) squares += (values[i] - stats->mean) * (values[i] - stats->mean);
    stats->std = sqrt(squares / (double)n);
    stats->min = values[0];
    stats->max = values[n - 1];
    stats->median = bench_percentile(values, n, 50);
    stats->p10 = bench_percentile(values, n, 10);
    stats->p90 = bench_percentile(values, n, 90);
    stats->p95 = bench_percentile(values, n, 95);
    stats->p99 = bench_percentile(values, n, 99);
}

uint64_t bench_random_next(struct bench_random *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int64_t bench_random_between(struct bench_random *random, int64_t low, int64_t high)
{
    uint64_t span = (uint64_t)(high - low) + 1;

    return low + (int64_t)(bench_random_next(random) % span);
}

double bench_random_unit(struct bench_random *random)
{
    return ((double)(bench_random_next(random) >> 11) + 0.5) * 0x1p-53;
}

static double normal(struct bench_random *random)
{
    double u = bench_random_unit(random), v = bench_random_unit(random);

    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

/* Marsaglia and Tsang (2000): accepted at once nearly always; a shape below 1 is drawn one higher and scaled back. */
static double gamma_of(struct bench_random *random, double shape)
{
    if (shape < 1) {
        double u = bench_random_unit(random);
        return gamma_of(random, shape + 1) * pow(u, 1 / shape);
    }
    double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = normal(random), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(bench_random_unit(random)) < 0.5 * x * x + d - d * v + d * log(v)) return d * v;
    }
}

double bench_random_gamma(struct bench_random *random, double shape) { return gamma_of(random, shape) / shape; }
