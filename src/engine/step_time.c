#include "step_time.h"

/* Terms of about the same size keep the fit well-conditioned. */
static const double TOKENS_UNIT = 256, KEYS_UNIT = 65536;
static const double FORGET = 0.99;             /* a measurement 100 steps old weighs a third */
static const double ERROR_MOST = 3;            /* times what was expected */
static const double SURE_SPREAD = 0.5;
static const double COV_START = 1e4;           /* nothing is known: the first measurements decide */

enum { MIN_SEEN = 16 };

void step_time_init(struct step_time *t)
{
    *t = (struct step_time){ 0 };
    for (int i = 0; i < STEP_TIME_TERMS; i++) t->cov[i][i] = COV_START;
}

bool step_time_ready(const struct step_time *t) { return t->num_seen >= MIN_SEEN; }

double step_time_of(const struct step_time *t, int64_t tokens, int64_t keys)
{
    double ms = t->terms[0] + t->terms[1] * (double)tokens / TOKENS_UNIT + t->terms[2] * (double)keys / KEYS_UNIT;

    return ms > 0 ? ms : 0;
}

/* How far the measurement is off. Where the fit is sure, what is far above all expectation is taken for less. */
static double error_of(double expected, double ms, double spread)
{
    double most = ERROR_MOST * (expected > 1 ? expected : 1);

    return spread < SURE_SPREAD && ms - expected > most ? most : ms - expected;
}

void step_time_learn(struct step_time *t, int64_t tokens, int64_t keys, double ms)
{
    const double x[STEP_TIME_TERMS] = { 1, (double)tokens / TOKENS_UNIT, (double)keys / KEYS_UNIT };
    double px[STEP_TIME_TERMS] = { 0 }, spread = 0, expected = 0;

    if (!(ms >= 0) || ms > 1e9) return;
    for (int i = 0; i < STEP_TIME_TERMS; i++) {
        for (int j = 0; j < STEP_TIME_TERMS; j++) px[i] += t->cov[i][j] * x[j];
        spread += px[i] * x[i];
        expected += t->terms[i] * x[i];
    }
    double error = error_of(expected, ms, spread);
    /* Directional forgetting: only what this measurement speaks of grows uncertain again, so that hours of the same
     * step neither blow the rest up nor harden the fit. */
    double news = spread > 0 ? (FORGET - (1 - FORGET) / spread) / (FORGET * (1 + spread)) : 0;
    for (int i = 0; i < STEP_TIME_TERMS; i++) {
        t->terms[i] += px[i] / (1 + spread) * error;
        for (int j = 0; j <= i; j++) t->cov[i][j] = t->cov[j][i] = t->cov[i][j] - news * px[i] * px[j];
    }
    t->num_seen++;
}

int32_t step_time_fit(const struct step_time *t, double ms, int64_t held, int32_t want)
{
    double per_token = t->terms[1] > 0 ? t->terms[1] / TOKENS_UNIT : 0;
    double per_key = t->terms[2] > 0 ? t->terms[2] / KEYS_UNIT : 0;
    int32_t low = 0, high = want;

    while (low < high) {
        int32_t n = low + (high - low + 1) / 2;
        if (per_token * n + per_key * (double)step_time_keys(held, n) <= ms) low = n;
        else high = n - 1;
    }
    return low;
}
