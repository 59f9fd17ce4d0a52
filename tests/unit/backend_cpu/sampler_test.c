/* sampler_test.c - the sample op of both backends against a plain implementation that sorts, and against exact
 * probabilities; reported numbers; what cannot be drawn; independence of the other rows. */
#include "fixture.h"

static const struct backend_ops *const BACKENDS[] = { &backend_cpu_ref, &backend_cpu_fast };

static struct backend *open_sampler(const struct backend_ops *ops, int threads, int vocab_size)
{
    return open_backend(ops, ops == &backend_cpu_ref ? DTYPE_F32 : DTYPE_F16, threads, vocab_size, 8);
}

static void run(const struct backend_ops *ops, struct backend *b, const struct step_plan *plan, const float *logits,
                int vocab_size, struct result_row *rows)
{
    size_t bytes = (size_t)plan->num_rows * vocab_size * sizeof(float);
    float *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, logits, bytes);
    struct step_result result = { .rows = rows };
    ops->sample(b, &(struct sample_args){ copy, plan, &result, vocab_size });
    assert_int_equal(result.num_rows, plan->num_rows);
    assert_int_equal(result.step, plan->step);
    free(copy);
}

struct entry { double logit, p; int id; };

static int by_rank(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

/* Probabilities after min_p, top_k, top_p: sorts everything, in double. p by id. */
static void naive_probabilities(const float *logits, int n, const struct sampling_params *params, double *p)
{
    struct entry *e = zeroed((size_t)n, sizeof *e);
    double total = 0, running = 0;
    int kept = n;
    for (int i = 0; i < n; i++) e[i] = (struct entry){ logits[i], 0, i };
    qsort(e, (size_t)n, sizeof *e, by_rank);
    for (int i = 0; i < n; i++) e[i].p = exp((e[i].logit - e[0].logit) / params->temperature);
    while (kept > 0 && (e[kept - 1].p < params->min_p || e[kept - 1].p == 0)) kept--;
    if (params->top_k > 0 && kept > params->top_k) kept = params->top_k;
    for (int i = 0; i < kept; i++) total += e[i].p;
    if (params->top_p < 1) {
        int i = 0;
        while (i < kept) {
            running += e[i++].p;
            if (running >= params->top_p * total) break;
        }
        kept = i;
        total = running;
    }
    memset(p, 0, (size_t)n * sizeof *p);
    for (int i = 0; i < kept; i++) p[e[i].id] = e[i].p / total;
    free(e);
}

static token_id naive_draw(const double *p, int n, double u)
{
    double running = 0;
    int last = TOKEN_NONE;
    for (int i = 0; i < n; i++) {
        if (p[i] <= 0) continue;
        running += p[i];
        last = i;
        if (running >= u) break;
    }
    return last;
}

static void greedy_takes_the_largest_and_the_lower_id(void **state)
{
    (void)state;
    enum { V = 101 };
    for (int i = 0; i < 2; i++) {
        struct backend *b = open_sampler(BACKENDS[i], 2, V);
        float *logits = random_floats(3 * V, 4, 1);
        struct step_plan *plan = make_plan(3, 3, 0, 0, 0);
        struct result_row rows[3];
        logits[60] = logits[77] = 50;
        logits[V + 100] = 51;
        logits[2 * V + 3] = 50, logits[2 * V + 99] = 49.999f;
        plan_rows(plan)[0].params.temperature = 0;
        plan_rows(plan)[1].params.top_k = 1;
        plan_rows(plan)[2].params.top_p = 0;
        run(BACKENDS[i], b, plan, logits, V, rows);
        assert_int_equal(rows[0].token, 60);
        assert_int_equal(rows[1].token, 100);
        assert_int_equal(rows[2].token, 3);
        for (int r = 0; r < 3; r++) {
            assert_int_equal(rows[r].bad, 0);
            assert_int_equal(rows[r].rank, 0);
            assert_int_equal(rows[r].num_top, 0);
        }
        free(plan), free(logits);
        BACKENDS[i]->close(b);
    }
}

/* Thousands of parameter sets over several vocabularies: the drawn token is the one of the sorted implementation. */
static void draws_agree_with_the_sorted_implementation(void **state)
{
    (void)state;
    static const int vocabs[] = { 2, 31, 257, 5000 };
    uint64_t seed = 77;
    int rows_seen = 0, disagree = 0;
    for (int i = 0; i < 2; i++)
        for (int v = 0; v < 4; v++) {
            int n = vocabs[v];
            struct backend *b = open_sampler(BACKENDS[i], 2, n);
            double *p = zeroed((size_t)n, sizeof *p);
            for (int rep = 0; rep < 60; rep++) {
                float *logits = random_floats(8 * (size_t)n, seed++, rep % 3 == 0 ? 0.1f : 3.0f);
                if (rep % 5 == 0) for (int j = 0; j < 8 * n; j++) logits[j] = roundf(logits[j] * 2) / 2;   /* many ties */
                struct step_plan *plan = make_plan(8, 8, 0, 0, 0);
                struct result_row rows[8];
                for (int r = 0; r < 8; r++) {
                    struct sampling_params *params = &plan_rows(plan)[r].params;
                    params->seed = seed * 31 + (uint64_t)r;
                    plan_rows(plan)[r].num_generated = (uint32_t)rep;
                    params->temperature = 0.25f + 0.25f * (float)((rep + r) % 5);
                    if (r & 1) params->top_k = 2 + (rep * 7 + r) % (n < 40 ? n : 40);
                    if (r & 2) params->top_p = 0.1f + 0.85f * (float)(rep % 10) / 10;
                    if (r & 4) params->min_p = 0.02f * (float)(rep % 8);
                }
                run(BACKENDS[i], b, plan, logits, n, rows);
                for (int r = 0; r < 8; r++) {
                    const struct sampling_row *row = &plan_rows(plan)[r];
                    naive_probabilities(logits + r * n, n, &row->params, p);
                    assert_int_equal(rows[r].bad, 0);
                    assert_true(rows[r].token >= 0 && rows[r].token < n);
                    double u = sampling_uniform(row->params.seed, 0, row->num_generated);
                    rows_seen++;
                    disagree += naive_draw(p, n, u) != rows[r].token;
                }
                free(logits), free(plan);
            }
            free(p);
            BACKENDS[i]->close(b);
        }
    assert_true(rows_seen == 2 * 4 * 60 * 8);
    assert_true(disagree <= rows_seen / 500);        /* u within rounding of an edge between two tokens */
}

/* top_k and top_p on flat and tied logits: the kept set is exact, so tokens outside of it never appear. */
static void kept_sets_are_exact(void **state)
{
    (void)state;
    enum { V = 200, DRAWS = 400 };
    for (int i = 0; i < 2; i++) {
        struct backend *b = open_sampler(BACKENDS[i], 1, V);
        float logits[V];
        int low = V, high = -1;
        struct step_plan *plan = make_plan(1, 1, 0, 0, 0);
        struct sampling_row *row = plan_rows(plan);
        struct result_row result;
        for (int j = 0; j < V; j++) logits[j] = 1.5f;
        for (int kind = 0; kind < 3; kind++) {
            sampling_params_default(&row->params);
            if (kind == 0) row->params.top_k = 7;                        /* ids 0..6 */
            if (kind == 1) row->params.top_p = 0.0501f;                  /* 10 x 0.005 < 0.0501: ids 0..10 */
            if (kind == 2) row->params.top_k = 20, row->params.top_p = 0.5f;   /* half of twenty: ids 0..9 */
            int most = kind == 0 ? 6 : kind == 1 ? 10 : 9;
            low = V, high = -1;
            for (int d = 0; d < DRAWS; d++) {
                row->num_generated = (uint32_t)d;
                run(BACKENDS[i], b, plan, logits, V, &result);
                low = result.token < low ? result.token : low;
                high = result.token > high ? result.token : high;
            }
            assert_int_equal(low, 0);
            assert_int_equal(high, most);
        }
        free(plan);
        BACKENDS[i]->close(b);
    }
}

static void frequencies_follow_the_probabilities(void **state)
{
    (void)state;
    enum { V = 40, DRAWS = 20000, ROWS = 8 };
    float *one = random_floats(V, 12, 1.5f), *logits = zeroed(ROWS * V, sizeof *logits);
    double p[V];
    for (int r = 0; r < ROWS; r++) memcpy(logits + r * V, one, V * sizeof *one);
    for (int i = 0; i < 2; i++)
        for (int kind = 0; kind < 3; kind++) {
            struct backend *b = open_sampler(BACKENDS[i], 2, V);
            struct step_plan *plan = make_plan(ROWS, ROWS, 0, 0, 0);
            struct result_row rows[ROWS];
            int counts[V] = { 0 }, cells = 0;
            for (int r = 0; r < ROWS; r++) {
                struct sampling_params *params = &plan_rows(plan)[r].params;
                params->seed = 1234;
                params->choice = (uint32_t)r;
                params->temperature = 0.8f;
                if (kind == 1) params->top_k = 10;
                if (kind == 2) params->top_p = 0.7f, params->min_p = 0.02f;
            }
            for (uint32_t d = 0; d < DRAWS / ROWS; d++) {
                for (int r = 0; r < ROWS; r++) plan_rows(plan)[r].num_generated = d;
                run(BACKENDS[i], b, plan, logits, V, rows);
                for (int r = 0; r < ROWS; r++) counts[rows[r].token]++;
            }
            naive_probabilities(one, V, &plan_rows(plan)[0].params, p);
            double chi2 = 0;
            for (int t = 0; t < V; t++) {
                if (p[t] == 0) assert_int_equal(counts[t], 0);
                if (p[t] * DRAWS < 5) continue;
                chi2 += pow(counts[t] - p[t] * DRAWS, 2) / (p[t] * DRAWS);
                cells++;
            }
            assert_true(cells > 3);
            assert_true(chi2 < cells - 1 + 4.5 * sqrt(2.0 * cells));
            free(plan);
            BACKENDS[i]->close(b);
        }
    free(one), free(logits);
}

static void logprobs_are_of_the_raw_row(void **state)
{
    (void)state;
    enum { V = 333 };
    for (int i = 0; i < 2; i++) {
        struct backend *b = open_sampler(BACKENDS[i], 2, V);
        float *logits = random_floats(2 * V, 21, 4);
        struct step_plan *plan = make_plan(2, 2, 1, 0, 0);
        struct sampling_row *row = plan_rows(plan);
        struct result_row rows[2];
        struct entry e[V];
        double z = 0;
        logits[10] = logits[11] = 20;      /* a tie at the top */
        row[0].params.num_logprobs = 5;
        row[0].params.temperature = 0.3f;
        row[0].bias_count = 1;
        plan_bias_ids(plan)[0] = 200;
        plan_bias_values(plan)[0] = 1000;  /* forces 200; must not show in what is reported */
        memcpy(logits + V, logits, V * sizeof *logits);
        row[1].target = 11;
        row[1].params.num_logprobs = 0;
        run(BACKENDS[i], b, plan, logits, V, rows);
        for (int t = 0; t < V; t++) e[t] = (struct entry){ logits[t], 0, t }, z += exp(logits[t] - 20.0);
        qsort(e, V, sizeof *e, by_rank);
        z = 20 + log(z);
        assert_int_equal(rows[0].token, 200);
        assert_true(fabs(rows[0].logprob - (logits[200] - z)) < 1e-4);
        assert_int_equal(e[rows[0].rank - 1].id, 200);
        assert_int_equal(rows[0].num_top, 5);
        for (int k = 0; k < 5; k++) {
            assert_int_equal(rows[0].top[k].id, e[k].id);
            assert_true(fabs(rows[0].top[k].logprob - (e[k].logit - z)) < 1e-4);
        }
        assert_int_equal(rows[1].token, 11);
        assert_int_equal(rows[1].rank, 2);
        assert_int_equal(rows[1].num_top, 0);
        assert_true(fabs(rows[1].logprob - (20 - z)) < 1e-4);
        free(plan), free(logits);
        BACKENDS[i]->close(b);
    }
}

/* History rebuilt from the plan, then grown by what is drawn, against counts kept here. */
static void penalties_follow_the_formula(void **state)
{
    (void)state;
    enum { V = 130, STEPS = 40, PROMPT = 6, OUTPUT = 3 };
    for (int i = 0; i < 2; i++) {
        struct backend *b = open_sampler(BACKENDS[i], 2, V);
        int output[V] = { 0 }, prompt[V] = { 0 };
        static const token_id history[PROMPT + OUTPUT] = { 5, 9, 9, 64, 127, 128, 9, 129, 129 };
        for (int t = 0; t < PROMPT; t++) prompt[history[t]]++;
        for (int t = PROMPT; t < PROMPT + OUTPUT; t++) output[history[t]]++;
        for (int step = 0; step < STEPS; step++) {
            struct step_plan *plan = make_plan(1, 1, 2, step == 0 ? 2 : 0, step == 0 ? PROMPT + OUTPUT + 1 : 0);
            struct sampling_row *row = plan_rows(plan);
            struct result_row result;
            float *logits = random_floats(V, 300 + (uint64_t)step, 2), want = -INFINITY;
            int best = -1;
            if (step == 0) {
                plan_history(plan)[0] = (struct history_entry){ 3, 0, PROMPT, OUTPUT };
                plan_history(plan)[1] = (struct history_entry){ 4, PROMPT + OUTPUT, 1, 0 };   /* a neighbour */
                memcpy(plan_history_tokens(plan), history, sizeof history);
                plan_history_tokens(plan)[PROMPT + OUTPUT] = 77;
            }
            row->slot = 3;
            row->use_penalties = 1;
            row->bias_count = 2;
            plan_bias_ids(plan)[0] = 50, plan_bias_values(plan)[0] = 3;
            plan_bias_ids(plan)[1] = 51, plan_bias_values(plan)[1] = -INFINITY;
            row->params.temperature = 0;
            row->params.repetition_penalty = 1.3f;
            row->params.frequency_penalty = 0.4f;
            row->params.presence_penalty = 0.7f;
            run(BACKENDS[i], b, plan, logits, V, &result);
            for (int t = 0; t < V; t++) {
                float logit = logits[t] + (t == 50 ? 3.0f : 0) + (t == 51 ? -INFINITY : 0);
                if (prompt[t] || output[t]) logit = logit > 0 ? logit / 1.3f : logit * 1.3f;
                if (output[t]) logit = logit - (0.4f * (float)output[t] + 0.7f);
                if (logit > want) want = logit, best = t;
            }
            assert_int_equal(result.token, best);
            output[best]++;
            free(plan), free(logits);
        }
        BACKENDS[i]->close(b);
    }
}

static void a_row_is_alone(void **state)
{
    (void)state;
    enum { V = 3001, ROWS = 8 };
    float *logits = random_floats(ROWS * V, 5, 3);
    for (int i = 0; i < 2; i++) {
        struct backend *one = open_sampler(BACKENDS[i], 1, V), *three = open_sampler(BACKENDS[i], 3, V);
        struct step_plan *all = make_plan(ROWS, ROWS, 0, 0, 0), *single = make_plan(1, 1, 0, 0, 0);
        struct result_row rows[ROWS], alone;
        for (int r = 0; r < ROWS; r++) {
            struct sampling_params *params = &plan_rows(all)[r].params;
            params->seed = (uint64_t)r * 17;
            params->num_logprobs = r;
            params->top_p = r % 2 ? 0.9f : 1.0f;
            params->top_k = r % 3 ? 0 : 50;
        }
        run(BACKENDS[i], three, all, logits, V, rows);
        for (int r = 0; r < ROWS; r++) {
            plan_rows(single)[0] = plan_rows(all)[r];
            run(BACKENDS[i], one, single, logits + r * V, V, &alone);
            assert_int_equal(alone.token, rows[r].token);
            assert_int_equal(alone.num_top, r);
            assert_memory_equal(&alone, &rows[r], offsetof(struct result_row, top) + (size_t)r * sizeof alone.top[0]);
        }
        free(all), free(single);
        BACKENDS[i]->close(one);
        BACKENDS[i]->close(three);
    }
    free(logits);
}

static void bad_rows_are_told(void **state)
{
    (void)state;
    enum { V = 70, ROWS = 6 };
    for (int i = 0; i < 2; i++)
        for (int greedy = 0; greedy < 2; greedy++) {
            struct backend *b = open_sampler(BACKENDS[i], 2, V);
            float *logits = random_floats(ROWS * V, 9, 1);
            struct step_plan *plan = make_plan(ROWS, ROWS, V, 0, 0);
            struct sampling_row *row = plan_rows(plan);
            struct result_row rows[ROWS];
            for (int r = 0; r < ROWS; r++) row[r].params.temperature = greedy ? 0.0f : 1.0f;
            logits[0 * V + 69] = NAN;                            /* in the odd end */
            logits[1 * V + 3] = NAN;
            for (int t = 0; t < V; t++) logits[2 * V + t] = -INFINITY;
            for (int t = 0; t < V; t++) plan_bias_ids(plan)[t] = t, plan_bias_values(plan)[t] = -INFINITY;
            row[3].bias_count = V;                               /* everything masked */
            row[4].bias_count = V - 1;                           /* all but one */
            for (int t = 0; t < V; t++) if (t != 20) logits[5 * V + t] = -INFINITY;
            run(BACKENDS[i], b, plan, logits, V, rows);
            for (int r = 0; r < 4; r++) {
                assert_int_equal(rows[r].bad, 1);
                assert_int_equal(rows[r].token, TOKEN_NONE);
            }
            assert_int_equal(rows[4].token, V - 1);
            assert_int_equal(rows[5].token, 20);
            assert_int_equal(rows[4].bad + rows[5].bad, 0);
            free(plan), free(logits);
            BACKENDS[i]->close(b);
        }
}

/* The drawn token is the next step's input without passing through the host. */
static void the_token_drawn_last_feeds_embed(void **state)
{
    (void)state;
    enum { V = 40, C = 8, ROWS = 4 };
    for (int i = 0; i < 2; i++) {
        struct backend *b = open_sampler(BACKENDS[i], 2, V);
        float *table = random_floats(V * C, 5, 1), *logits = random_floats(ROWS * V, 9, 1);
        float plain[C], fed[ROWS * C], zeros[C] = { 0 };
        struct weight w = make_weight(BACKENDS[i], b, WEIGHT_MATRIX, V, C, table);
        struct step_plan *plan = make_plan(ROWS, ROWS, V, 0, 0);
        struct result_row rows[ROWS];
        const token_id ids[ROWS] = { TOKEN_FEEDBACK, TOKEN_FEEDBACK, TOKEN_FEEDBACK, 11 };
        const int32_t seq_slots[ROWS] = { 2, 0, 3, 1 };
        for (int r = 0; r < ROWS; r++) plan_rows(plan)[r].slot = r;
        logits[0 * V + 30] = logits[2 * V + 17] = 50;
        run(BACKENDS[i], b, plan, logits, V, rows);
        plan_rows(plan)[0].target = 5;                           /* scores: the last token stays */
        logits[3 * V] = NAN;                                     /* draws nothing */
        run(BACKENDS[i], b, plan, logits, V, rows);
        BACKENDS[i]->embed(b, &(struct embed_args){ .ids = ids, .num_tokens = ROWS, .table = &w, .out = fed,
                                                    .seq_slots = seq_slots });
        const token_id want[ROWS] = { 17, 30, TOKEN_NONE, 11 };
        for (int t = 0; t < ROWS; t++) {
            BACKENDS[i]->embed(b, &(struct embed_args){ .ids = &want[t], .num_tokens = 1, .table = &w, .out = plain });
            assert_memory_equal(fed + t * C, t == 2 ? zeros : plain, sizeof plain);
        }
        free(plan), free(logits), free(table);
        BACKENDS[i]->close(b);
    }
}

static void only_allowed_tokens_are_drawn(void **state)
{
    (void)state;
    enum { V = 101 };
    for (int i = 0; i < 2; i++) {
        struct backend *b = open_sampler(BACKENDS[i], 2, V);
        float *logits = random_floats(3 * V, 4, 1);
        struct step_plan *plan = make_plan(3, 3, 4, 0, 0);
        struct result_row rows[3];
        static const token_id ids[4] = { 20, 30, 30, 40 };
        logits[60] = logits[V + 60] = logits[2 * V + 60] = 50;
        logits[30] = 5, logits[40] = 4;
        plan->num_bias = 4;
        memcpy(plan_bias_ids(plan), ids, sizeof ids);
        plan_bias_values(plan)[0] = plan_bias_values(plan)[1] = plan_bias_values(plan)[3] = 0;
        plan_bias_values(plan)[2] = -INFINITY;
        for (int r = 0; r < 3; r++) plan_rows(plan)[r].params.temperature = 0, plan_rows(plan)[r].allow_count = 2;
        plan_rows(plan)[1].allow_begin = 3, plan_rows(plan)[1].allow_count = 1;
        plan_rows(plan)[2].bias_begin = 2, plan_rows(plan)[2].bias_count = 1;
        run(BACKENDS[i], b, plan, logits, V, rows);
        assert_int_equal(rows[0].token, 30);
        assert_int_equal(rows[1].token, 40);
        assert_int_equal(rows[2].token, 20);             /* 30 is allowed and biased away */
        free(plan), free(logits);
        BACKENDS[i]->close(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest_and_the_lower_id),
        cmocka_unit_test(draws_agree_with_the_sorted_implementation),
        cmocka_unit_test(kept_sets_are_exact),
        cmocka_unit_test(frequencies_follow_the_probabilities),
        cmocka_unit_test(logprobs_are_of_the_raw_row),
        cmocka_unit_test(penalties_follow_the_formula),
        cmocka_unit_test(a_row_is_alone),
        cmocka_unit_test(the_token_drawn_last_feeds_embed),
        cmocka_unit_test(only_allowed_tokens_are_drawn),
        cmocka_unit_test(bad_rows_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
