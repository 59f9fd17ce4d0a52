/* layouts_check.c - a real model gives the same on every layout of ranks, on the oracle path:
 *   layouts_check MODEL.gguf
 * TP 1/2/3, PP 1/2/3, TP 2 x PP 2 and TP 3 x PP 3 against one rank: every logit of the prompts within 1e-3, greedy and
 * seeded continuations token by token equal. Blocks are scattered over the pool. Exit 1 when one is missed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/loader.h>
#include <sluice/rank.h>
#include <sluice/text.h>

#include "base/clock.h"
#include "base/log.h"
#include "unit/rank/plan_builder.h"

enum { PROMPTS = 3, KINDS = 3, SEQS = PROMPTS * KINDS, NEW_TOKENS = 16, MAX_LEN = 48, BLOCK_SIZE = 16,
       MAX_BLOCKS = MAX_LEN / BLOCK_SIZE, MAX_TOKENS = 64 };
static const char *const prompts[PROMPTS] = {
    "The capital of France is", "Once upon a time, in a small village by the sea,", "def add(a, b):\n    return" };
static const int layouts[][2] = { { 1, 1 }, { 2, 1 }, { 3, 1 }, { 1, 2 }, { 1, 3 }, { 2, 2 }, { 3, 3 } };
/* greedy, sampled, sampled with everything */
static const struct sampling_params kinds[KINDS] = {
    { .temperature = 0, .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 },
    { .temperature = 0.9f, .top_p = 0.95f, .repetition_penalty = 1, .num_logprobs = -1, .seed = 7 },
    { .temperature = 1.1f, .top_p = 0.9f, .min_p = 0.02f, .top_k = 40, .repetition_penalty = 1, .num_logprobs = 3,
      .seed = 1234567 } };

struct outcome { float *logits; int32_t num_rows; token_id tokens[SEQS][MAX_LEN]; };

/* Where the wrapped sampler leaves the logits of a step: [R, V]; NULL: not wanted. One thread at a time writes it. */
static float *kept_logits;

static void keeping_sample(struct backend *b, const struct sample_args *args)
{
    size_t n = (size_t)args->plan->num_rows * (size_t)args->vocab_size;
    if (kept_logits) memcpy(kept_logits, args->logits, n * sizeof(float));
    backend_cpu_ref.sample(b, args);
}

struct model { struct model_source *src; token_id ids[PROMPTS][MAX_LEN]; int32_t len[PROMPTS]; int32_t vocab_size; };

static int read_model(struct model *model, const char *path, struct err *err)
{
    struct tokenizer *tokenizer = NULL;
    int rc = model_source_open(&model->src, path, LOAD_GGUF, err);
    if (rc == 0) rc = tokenizer_load_gguf(&tokenizer, model_source_gguf(model->src), err);
    if (rc < 0) return rc;
    model->vocab_size = model_source_config(model->src)->vocab_size;
    for (int i = 0; i < PROMPTS && rc == 0; i++) {
        struct text_segment segment = { .text = prompts[i], .len = strlen(prompts[i]) };
        struct token_buf tokens = { .limit = MAX_LEN - NEW_TOKENS };
        rc = tokenizer_encode(tokenizer, &segment, 1, true, &tokens, err);
        if (rc == 0) memcpy(model->ids[i], tokens.ids, tokens.len * sizeof(token_id));
        model->len[i] = (int32_t)tokens.len;
        token_buf_release(&tokens);
    }
    tokenizer_free(tokenizer);
    return rc;
}

static void add_draw(struct step_plan *plan, int32_t seq, int kind, uint32_t num_generated)
{
    plan_add_row(plan, seq, plan_cu_seqlens_q(plan)[seq + 1] - 1, TOKEN_NONE);
    plan_rows(plan)[plan->num_rows - 1].params = kinds[kind];
    plan_rows(plan)[plan->num_rows - 1].num_generated = num_generated;
}

static void blocks_of(block_id blocks[MAX_BLOCKS], int seq)
{
    for (int i = 0; i < MAX_BLOCKS; i++) blocks[i] = (MAX_BLOCKS - 1 - i) * SEQS + (seq * 4 + i) % SEQS;
}

static int prefill(struct ranks *ranks, const struct model *model, struct step_plan *plan, struct step_result *result,
                   struct outcome *out, int seq)
{
    int prompt = seq / KINDS, kind = seq % KINDS;
    block_id blocks[MAX_BLOCKS];
    blocks_of(blocks, seq);
    step_plan_reset(plan);
    memcpy(out->tokens[seq], model->ids[prompt], sizeof(model->ids[prompt]));
    plan_add_seq(plan, &(struct plan_seq){ .tokens = out->tokens[seq], .len = model->len[prompt], .blocks = blocks,
                                           .slot = seq });
    for (int32_t t = 0; t < model->len[prompt] - 1 && kind == 0; t++) plan_add_row(plan, 0, t, 0);
    add_draw(plan, 0, kind, 0);
    kept_logits = kind == 0 ? out->logits + (size_t)out->num_rows * (size_t)model->vocab_size : NULL;
    int rc = ranks_execute(ranks, plan, result);
    if (kind == 0) out->num_rows += plan->num_rows;
    kept_logits = NULL;
    out->tokens[seq][model->len[prompt]] = result->rows[plan->num_rows - 1].token;
    return rc;
}

static int decode(struct ranks *ranks, const struct model *model, struct step_plan *plan, struct step_result *result,
                  struct outcome *out, int generated)
{
    block_id blocks[MAX_BLOCKS];
    step_plan_reset(plan);
    for (int seq = 0; seq < SEQS; seq++) {
        blocks_of(blocks, seq);
        int32_t done = model->len[seq / KINDS] + generated - 1;
        plan_add_seq(plan, &(struct plan_seq){ .tokens = out->tokens[seq], .done = done, .len = 1, .blocks = blocks,
                                               .slot = seq });
        add_draw(plan, seq, seq % KINDS, (uint32_t)generated);
    }
    int rc = ranks_execute(ranks, plan, result);
    for (int seq = 0; seq < SEQS; seq++) {
        out->tokens[seq][model->len[seq / KINDS] + generated] = result->rows[seq].token;
    }
    return rc;
}

static int run_layout(struct outcome *out, const struct model *model, int tp_size, int pp_size, struct err *err)
{
    struct backend_ops ops = backend_cpu_ref;
    struct step_plan *plan = plan_new(MAX_TOKENS, SEQS, MAX_TOKENS, MAX_BLOCKS, BLOCK_SIZE);
    struct step_result result = { .rows = calloc(MAX_TOKENS, sizeof(*result.rows)) };
    struct ranks *ranks = NULL;
    ops.sample = keeping_sample;
    struct ranks_options options = {
        .ops = &ops, .tp_size = tp_size, .pp_size = pp_size, .threads = tp_size * pp_size == 1 ? 2 : 1,
        .kv_dtype = DTYPE_F32, .max_num_seqs = SEQS, .max_num_batched_tokens = MAX_TOKENS, .max_rows = MAX_TOKENS,
        .max_model_len = MAX_LEN, .block_size = BLOCK_SIZE, .num_blocks_override = SEQS * MAX_BLOCKS };
    int rc = result.rows ? ranks_start(&ranks, model->src, &options, NULL, NULL, err)
                         : err_set(err, ERR_NO_MEMORY, "result rows");
    out->logits = calloc((size_t)PROMPTS * MAX_LEN * (size_t)model->vocab_size, sizeof(float));
    if (rc == 0 && !out->logits) rc = err_set(err, ERR_NO_MEMORY, "logits");
    for (int seq = 0; seq < SEQS && rc == 0; seq++) rc = prefill(ranks, model, plan, &result, out, seq);
    for (int i = 1; i < NEW_TOKENS && rc == 0; i++) rc = decode(ranks, model, plan, &result, out, i);
    if (rc < 0) err_set(err, rc, "a step failed: %s", err_name(rc));
    ranks_stop(ranks);
    free(result.rows);
    free(plan);
    return rc;
}

/* Sequences of one kind whose tokens all equal. */
static int count_equal(const struct outcome *a, const struct outcome *b, const struct model *model, int kind)
{
    int equal = 0;
    for (int prompt = 0; prompt < PROMPTS; prompt++) {
        size_t bytes = (size_t)(model->len[prompt] + NEW_TOKENS) * sizeof(token_id);
        int seq = prompt * KINDS + kind;
        equal += memcmp(a->tokens[seq], b->tokens[seq], bytes) == 0;
    }
    return equal;
}

static bool agrees(const struct outcome *one, const struct outcome *other, const struct model *model)
{
    size_t n = (size_t)one->num_rows * (size_t)model->vocab_size;
    double max = 0;
    bool ok = one->num_rows == other->num_rows;
    for (size_t i = 0; i < n; i++) max = fmax(max, fabs((double)one->logits[i] - (double)other->logits[i]));
    printf("max |d logit| %.2g over %d rows (limit 1e-3)", max, (int)one->num_rows);
    for (int kind = 0; kind < KINDS; kind++) {
        int equal = count_equal(one, other, model, kind);
        printf(", %s %d/%d", kind == 0 ? "greedy" : "sampled", equal, PROMPTS);
        ok = ok && equal == PROMPTS;
    }
    return ok && max <= 1e-3;
}

/* A model that answers everything alike, or a sampler that never draws, would agree with itself. */
static bool is_telling(const struct outcome *one, const struct model *model)
{
    bool telling = one->num_rows > 0;
    for (int prompt = 0; prompt < PROMPTS; prompt++) {
        const token_id *greedy = one->tokens[prompt * KINDS] + model->len[prompt];
        const token_id *sampled = one->tokens[prompt * KINDS + 1] + model->len[prompt];
        telling = telling && memcmp(greedy, sampled, NEW_TOKENS * sizeof(token_id)) != 0;
    }
    return telling;
}

int main(int argc, char **argv)
{
    struct model model = { 0 };
    struct outcome one = { 0 };
    struct err err = { 0 };
    bool ok = true;
    log_set_level(LOG_WARNING);
    if (argc != 2) {
        fprintf(stderr, "usage: layouts_check MODEL.gguf\n");
        return EXIT_CONFIG;
    }
    int rc = read_model(&model, argv[1], &err);
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]) && rc == 0; i++) {
        struct outcome other = { 0 };
        int64_t began_ms = clock_now_ms();
        rc = run_layout(i == 0 ? &one : &other, &model, layouts[i][0], layouts[i][1], &err);
        if (rc < 0) free(other.logits);
        if (rc < 0) break;
        printf("tp %d x pp %d: ", layouts[i][0], layouts[i][1]);
        bool agreed = i == 0 ? is_telling(&one, &model) : agrees(&one, &other, &model);
        printf("%s, %lld ms%s\n", i == 0 ? "the reference" : "", (long long)(clock_now_ms() - began_ms),
               agreed ? "" : "  FAILED");
        ok = ok && agreed;
        free(other.logits);
    }
    if (rc < 0) fprintf(stderr, "layouts_check: %s\n", err.message);
    free(one.logits);
    model_source_close(model.src);
    return rc == 0 && ok ? 0 : 1;
}
