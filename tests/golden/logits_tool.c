/* logits_tool.c - runs a model without server or scheduler, for comparison with an independent forward.
 *   logits_tool logits MODEL ref|fast THREADS          one rank, float logits of every position
 *   logits_tool greedy MODEL ref|fast THREADS TP PP N  N greedy tokens behind each prompt, through the rank threads
 * Prompts come from stdin, one line of token ids each. stdout is binary: per prompt float32 [tokens, vocab], or int32
 * [N]. Greedy runs all prompts of a round together as one batch and scatters their KV blocks. Details go to stderr. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/loader.h>
#include <sluice/rank.h>

#include "base/clock.h"
#include "memory_plan.h"
#include "model_runner.h"
#include "unit/rank/plan_builder.h"

enum { MAX_PROMPTS_HERE = 64, MAX_LEN = 512, BLOCK_SIZE = 16, MAX_BLOCKS = MAX_LEN / BLOCK_SIZE };

struct prompt { token_id ids[MAX_LEN]; int32_t n, prompt_n; block_id blocks[MAX_BLOCKS]; };

static int read_prompts(struct prompt *prompts)
{
    static const int cap = 16384;
    char *line = malloc((size_t)cap);
    int n = 0;
    while (line && n < MAX_PROMPTS_HERE && fgets(line, cap, stdin)) {
        struct prompt *prompt = &prompts[n];
        for (char *at = line, *end = NULL; prompt->n < MAX_LEN; at = end, prompt->n++) {
            long id = strtol(at, &end, 10);
            if (end == at) break;
            prompt->ids[prompt->n] = (token_id)id;
        }
        prompt->prompt_n = prompt->n;
        n += prompt->n > 0;
    }
    free(line);
    return n;
}

static struct ranks_options options_of(const char *backend, int threads, int32_t max_len)
{
    const struct backend_ops *ops = strcmp(backend, "fast") == 0 ? &backend_cpu_fast : &backend_cpu_ref;
    return (struct ranks_options){ .ops = ops, .tp_size = 1, .pp_size = 1, .threads = threads,
                                   .kv_dtype = ops == &backend_cpu_fast ? DTYPE_F16 : DTYPE_F32,
                                   .max_num_seqs = MAX_PROMPTS_HERE, .max_num_batched_tokens = MAX_LEN,
                                   .max_model_len = max_len, .block_size = BLOCK_SIZE, .max_rows = MAX_LEN,
                                   .num_blocks_override = MAX_PROMPTS_HERE * MAX_BLOCKS };
}

/* ---- logits of every position ---- */

static int logits_of(struct model_runner *runner, const struct prompt *prompt)
{
    struct step_plan *plan = plan_new(MAX_LEN, MAX_PROMPTS_HERE, MAX_LEN, MAX_BLOCKS, BLOCK_SIZE);
    float *logits = NULL;
    plan_add_seq(plan, &(struct plan_seq){ .tokens = prompt->ids, .len = prompt->n, .blocks = prompt->blocks });
    for (int32_t t = 0; t < prompt->n; t++) plan_add_row(plan, 0, t, 0);
    int rc = model_runner_forward(runner, plan, &logits);
    if (rc == 0) fwrite(logits, sizeof(float), (size_t)prompt->n * (size_t)runner->vocab_size, stdout);
    free(plan);
    return rc;
}

static int run_logits(const struct model_source *src, const struct ranks_options *options, const struct prompt *prompts,
                      int n, struct err *err)
{
    struct model_runner runner = { 0 };
    struct memory_plan plan;
    struct model_runner_args args = { .src = src, .options = options, .plan = &plan };
    int rc = shard_of(&args.shard, model_source_config(src), 1, 1, 0, 0, NULL, err);
    if (rc == 0) rc = memory_plan_make(&plan, model_source_config(src), &args.shard, options, host_memory_bytes(), 0, err);
    if (rc == 0) rc = model_runner_open(&runner, &args, err);
    if (rc < 0) return rc;
    fprintf(stderr, "%s, %s\n", options->ops->name, options->ops->describe(runner.backend));
    for (int i = 0; i < n && rc == 0; i++) rc = logits_of(&runner, &prompts[i]);
    model_runner_close(&runner);
    return rc;
}

/* ---- greedy continuation ---- */

/* Prefills one prompt, or decodes one token of all. */
static int greedy_step(struct ranks *ranks, struct prompt *prompts, int first, int count, bool prefill,
                       struct step_result *result)
{
    struct step_plan *plan = plan_new(MAX_LEN, MAX_PROMPTS_HERE, MAX_LEN, MAX_BLOCKS, BLOCK_SIZE);
    for (int i = 0; i < count; i++) {
        const struct prompt *prompt = &prompts[first + i];
        int32_t done = prefill ? 0 : prompt->n - 1;
        plan_add_seq(plan, &(struct plan_seq){ .tokens = prompt->ids, .done = done, .len = prompt->n - done,
                                               .blocks = prompt->blocks, .slot = first + i });
        plan_add_row(plan, i, plan->num_tokens - 1, TOKEN_NONE);
    }
    int rc = ranks_execute(ranks, plan, result);
    for (int i = 0; i < count && rc == 0; i++) {
        struct prompt *prompt = &prompts[first + i];
        prompt->ids[prompt->n++] = result->rows[i].token;
    }
    free(plan);
    return rc;
}

static int run_greedy(const struct model_source *src, const struct ranks_options *options, struct prompt *prompts,
                      int n, int num_tokens, struct err *err)
{
    struct step_result result = { .rows = calloc(MAX_LEN, sizeof(*result.rows)) };
    struct ranks *ranks = NULL;
    int64_t start = clock_now_ms();
    int rc = result.rows ? ranks_start(&ranks, src, options, NULL, NULL, err)
        : err_set(err, ERR_NO_MEMORY, "result rows");
    if (rc < 0) goto out;
    fprintf(stderr, "%s; loaded in %lld ms\n", ranks_describe(ranks), (long long)(clock_now_ms() - start));
    memory_plan_print(ranks_memory_plan(ranks, 0), stderr);
    for (int i = 0; i < n && rc == 0; i++) rc = greedy_step(ranks, prompts, i, 1, true, &result);
    start = clock_now_ms();
    for (int step = 1; step < num_tokens && rc == 0; step++) rc = greedy_step(ranks, prompts, 0, n, false, &result);
    fprintf(stderr, "%d sequences x %d decode steps in %lld ms\n", n, num_tokens - 1,
            (long long)(clock_now_ms() - start));
    for (int i = 0; i < n && rc == 0; i++) {
        fwrite(prompts[i].ids + prompts[i].prompt_n, sizeof(token_id), (size_t)num_tokens, stdout);
    }
    if (rc < 0) err_set(err, rc, "a step failed: %s", err_name(rc));
out:
    ranks_stop(ranks);
    free(result.rows);
    return rc;
}

int main(int argc, char **argv)
{
    struct prompt *prompts = calloc(MAX_PROMPTS_HERE, sizeof(*prompts));
    struct model_source *src = NULL;
    struct err err = { 0 };
    bool greedy = argc == 8 && strcmp(argv[1], "greedy") == 0;
    if (!prompts || (!greedy && !(argc == 5 && strcmp(argv[1], "logits") == 0))) {
        fprintf(stderr, "usage: logits_tool logits MODEL ref|fast THREADS | greedy MODEL ref|fast THREADS TP PP N\n");
        free(prompts);
        return EXIT_CONFIG;
    }
    int n = read_prompts(prompts), num_tokens = greedy ? (int)strtol(argv[7], NULL, 10) : 0;
    for (int i = 0; i < n; i++) {                  /* block j of prompt i: neighbours in a sequence lie far apart */
        for (int j = 0; j < MAX_BLOCKS; j++) prompts[i].blocks[j] = (MAX_BLOCKS - 1 - j) * MAX_PROMPTS_HERE + i;
        if (prompts[i].n + num_tokens > MAX_LEN) prompts[i].n = prompts[i].prompt_n = MAX_LEN - num_tokens;
    }
    int rc = model_source_open(&src, argv[2], LOAD_AUTO, &err);
    if (rc == 0) {
        int32_t longest = model_source_config(src)->max_position_embeddings;
        struct ranks_options options = options_of(argv[3], (int)strtol(argv[4], NULL, 10), longest < MAX_LEN ? longest
                                                  : MAX_LEN);
        if (greedy) options.tp_size = (int)strtol(argv[5], NULL, 10);
        if (greedy) options.pp_size = (int)strtol(argv[6], NULL, 10);
        rc = greedy ? run_greedy(src, &options, prompts, n, num_tokens, &err)
            : run_logits(src, &options, prompts, n, &err);
    }
    if (rc < 0) fprintf(stderr, "logits_tool: %s\n", err.message);
    model_source_close(src);
    free(prompts);
    return rc == 0 ? 0 : EXIT_FAULT;
}
