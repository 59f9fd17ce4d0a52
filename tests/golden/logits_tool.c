/* logits_tool.c - runs a model without server or scheduler, for comparison with an independent forward.
 *   logits_tool logits MODEL DEVICE THREADS [TP PP]      float logits of every position
 *   logits_tool greedy MODEL DEVICE THREADS TP PP N      N greedy tokens behind each prompt
 * DEVICE: ref, fast, or cuda where the build has it. Options behind: --chunk N feeds prompts N tokens at a time (1: every step
 * is a decode; default: whole), --together takes all prompts in the same steps, --block-size N tokens in a KV block,
 * --dtype auto|bfloat16|float16 (cuda; auto: as the server would),
 * --ahead (greedy) submits each decode step before the one before it has drawn, where the ranks can.
 * Prompts come from stdin, one line of token ids each. stdout is binary: per prompt float32 [tokens, vocab], or int32 [N].
 * Greedy decodes all prompts together as one batch. KV blocks lie scattered. Every step goes through the rank threads, as in
 * the engine: on a GPU decodes are replayed from captured steps. Details go to stderr. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/comm.h>
#include <sluice/loader.h>
#include <sluice/rank.h>

#ifdef SLUICE_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

#include "base/clock.h"
#include "unit/rank/plan_builder.h"

enum { MAX_PROMPTS_HERE = 64, MAX_LEN = 4096, MIN_BLOCK_SIZE = 16, MAX_BLOCKS = MAX_LEN / MIN_BLOCK_SIZE, PLANS = 2 };

struct prompt {
    token_id ids[MAX_LEN];
    int32_t n, prompt_n, done;             /* done: positions computed */
    block_id blocks[MAX_BLOCKS];
    float *logits;                         /* [prompt_n, vocab] */
};

struct job {
    bool greedy, together, ahead;
    const char *device, *dtype;
    int threads, tp, pp, num_tokens;
    int32_t chunk, block_size, longest;
    struct prompt *prompts;
    int n;
    struct ranks *ranks;
    struct step_plan *plans[PLANS];
    struct step_result results[PLANS];
    uint64_t step;
    int32_t vocab_size;
};

static int read_prompts(struct prompt *prompts)
{
    static const int cap = 1 << 16;
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

/* ---- the device ---- */

/* Where the last step's logits lie: [R, V] in the memory of the device. A replayed step has them where its capture had. */
static _Atomic(const float *) seen_logits;
static const struct backend_ops *real_ops;

static void note_and_sample(struct backend *b, const struct sample_args *args)
{
    atomic_store(&seen_logits, args->logits);
    real_ops->sample(b, args);
}

static int read_logits(float *to, size_t first, size_t n)
{
    const float *from = atomic_load(&seen_logits) + first;
#ifdef SLUICE_HAVE_CUDA
    if (!strcmp(real_ops->name, "cuda")) return cudaMemcpy(to, from, n * sizeof(float), cudaMemcpyDefault) == cudaSuccess ? 0 : ERR_INTERNAL;
#endif
    memcpy(to, from, n * sizeof(float));
    return 0;
}

static int choose_device(struct ranks_options *options, const struct job *job, const struct model_config *model, struct err *err)
{
    static struct backend_ops ops;
    const char *name = job->device;
    bool f16 = !strcmp(job->dtype, "auto") ? model->dtype == DTYPE_F16 : !strcmp(job->dtype, "float16");
    (void)f16;
    if (!strcmp(name, "ref")) real_ops = &backend_cpu_ref, options->kv_dtype = DTYPE_F32;
    else if (!strcmp(name, "fast")) real_ops = &backend_cpu_fast, options->kv_dtype = DTYPE_F16;
#ifdef SLUICE_HAVE_CUDA
    else if (!strcmp(name, "cuda")) {
        real_ops = f16 ? &backend_cuda_f16 : &backend_cuda;
        options->kv_dtype = real_ops->act_dtype;
        options->comm_ops = &comm_nccl_ops;
    }
#endif
    else return err_set(err, ERR_CONFIG, "device %s: ref, fast, or cuda in a build with it", name);
    ops = *real_ops;
    ops.sample = note_and_sample;
    options->ops = &ops;
    return 0;
}

/* ---- steps ---- */

static int32_t chunk_of(const struct job *job, const struct prompt *prompt)
{
    int32_t left = prompt->prompt_n - prompt->done;
    return left < job->chunk ? left : job->chunk;
}

static struct step_plan *fresh_plan(struct job *job)
{
    struct step_plan *plan = job->plans[job->step % PLANS];
    struct step_plan_caps caps = plan->caps;
    step_plan_init(plan, &caps);
    plan->block_size = job->block_size;
    plan->step = ++job->step;
    return plan;
}

static void add_prompt(struct job *job, struct step_plan *plan, int i)
{
    struct prompt *prompt = &job->prompts[i];
    int32_t len = chunk_of(job, prompt), first = plan->num_tokens, seq = plan->num_seqs;
    plan_add_seq(plan, &(struct plan_seq){ .tokens = prompt->ids, .done = prompt->done, .len = len,
                                           .blocks = prompt->blocks, .slot = i });
    if (!job->greedy) for (int32_t t = 0; t < len; t++) plan_add_row(plan, seq, first + t, 0);
    else if (prompt->done + len == prompt->prompt_n) plan_add_row(plan, seq, plan->num_tokens - 1, TOKEN_NONE);
}

/* What came of add_prompt, in the same order: logits to their place, or the first token drawn. */
static int take_prompt(struct job *job, int i, const struct step_result *result, int32_t *row)
{
    struct prompt *prompt = &job->prompts[i];
    int32_t len = chunk_of(job, prompt), begin = prompt->done;
    size_t vocab = (size_t)job->vocab_size;
    int rc = 0;
    prompt->done += len;
    if (!job->greedy) {
        rc = read_logits(prompt->logits + (size_t)begin * vocab, (size_t)*row * vocab, (size_t)len * vocab);
        *row += len;
    } else if (prompt->done == prompt->prompt_n) {
        prompt->ids[prompt->n++] = result->rows[(*row)++].token;
    }
    return rc;
}

/* One chunk of each of prompts first..first + count - 1 that has tokens left; single tokens first. */
static int prompt_step(struct job *job, int first, int count)
{
    int order[MAX_PROMPTS_HERE], num = 0, rc = 0;
    int32_t row = 0;
    struct step_plan *plan = fresh_plan(job);
    struct step_result *result = &job->results[0];
    for (int pass = 0; pass < 2; pass++) {
        for (int i = first; i < first + count; i++) {
            int32_t len = chunk_of(job, &job->prompts[i]);
            if (len > 0 && (len == 1) == (pass == 0)) order[num++] = i;
        }
    }
    for (int k = 0; k < num; k++) add_prompt(job, plan, order[k]);
    if ((rc = ranks_execute(job->ranks, plan, result)) < 0) return rc;
    for (int k = 0; k < num && rc == 0; k++) rc = take_prompt(job, order[k], result, &row);
    return rc;
}

static bool tokens_left(const struct job *job, int first, int count)
{
    for (int i = first; i < first + count; i++) if (chunk_of(job, &job->prompts[i]) > 0) return true;
    return false;
}

static int run_prompts(struct job *job)
{
    int at_once = job->together ? job->n : 1, rc = 0;
    for (int first = 0; first < job->n && rc == 0; first += at_once) {
        while (rc == 0 && tokens_left(job, first, at_once)) rc = prompt_step(job, first, at_once);
    }
    return rc;
}

/* Decodes token `at` (from 1) of every prompt. feedback: the token before it is not known on this side yet. */
static int submit_decode(struct job *job, int at, bool feedback)
{
    struct step_plan *plan = fresh_plan(job);
    for (int i = 0; i < job->n; i++) {
        struct prompt *prompt = &job->prompts[i];
        int32_t done = prompt->prompt_n + at - 1;
        if (feedback) prompt->ids[done] = TOKEN_FEEDBACK;
        plan_add_seq(plan, &(struct plan_seq){ .tokens = prompt->ids, .done = done, .len = 1, .blocks = prompt->blocks, .slot = i });
        plan_add_row(plan, i, i, TOKEN_NONE);
    }
    return ranks_submit(job->ranks, plan, &job->results[at % PLANS]);
}

static int take_decode(struct job *job)
{
    struct step_result *result = NULL;
    int rc = ranks_wait(job->ranks, &result);
    for (int i = 0; i < job->n && rc == 0; i++) {
        struct prompt *prompt = &job->prompts[i];
        prompt->ids[prompt->n++] = result->rows[i].token;
    }
    return rc;
}

static int run_decodes(struct job *job)
{
    int64_t start_ns = clock_now_ns();
    int rc = 0, depth = job->ahead && ranks_overlaps(job->ranks) ? 2 : 1;
    for (int at = 1; at < job->num_tokens + depth - 1 && rc == 0; at++) {
        if (at < job->num_tokens) rc = submit_decode(job, at, depth == 2 && at > 1);
        if (rc == 0 && at >= depth) rc = take_decode(job);
    }
    fprintf(stderr, "%d sequences x %d decode steps in %.1f ms\n", job->n, job->num_tokens - 1, (double)(clock_now_ns() - start_ns) / 1e6);
    return rc;
}

/* ---- all of it ---- */

/* Of the longest prompt with its answer. */
static int32_t blocks_of(const struct job *job)
{
    return (job->longest + job->block_size - 1) / job->block_size;
}

static struct ranks_options options_of(const struct job *job)
{
    int32_t step_tokens = 0, most = job->chunk < job->longest ? job->chunk : job->longest;
    for (int i = 0; i < job->n; i++) {
        int32_t len = job->prompts[i].prompt_n < most ? job->prompts[i].prompt_n : most;
        step_tokens = job->together ? step_tokens + len : len > step_tokens ? len : step_tokens;
    }
    if (step_tokens < job->n) step_tokens = job->n;
    return (struct ranks_options){ .tp_size = job->tp, .pp_size = job->pp, .threads = job->threads, .overlap = job->ahead,
                                   .max_num_seqs = MAX_PROMPTS_HERE, .max_num_batched_tokens = step_tokens,
                                   .max_model_len = job->longest, .block_size = job->block_size,
                                   .max_rows = job->greedy ? MAX_PROMPTS_HERE : step_tokens,
                                   .num_blocks_override = job->n * blocks_of(job) };
}

/* Block j of prompt i: neighbours in a sequence lie far apart. */
static void place_blocks(struct job *job)
{
    int32_t blocks = blocks_of(job);
    for (int i = 0; i < job->n; i++) {
        for (int j = 0; j < blocks; j++) job->prompts[i].blocks[j] = (blocks - 1 - j) * job->n + i;
    }
}

static int make_room(struct job *job, const struct ranks_options *options, struct err *err)
{
    for (int i = 0; i < PLANS; i++) {
        job->plans[i] = plan_new(options->max_num_batched_tokens, MAX_PROMPTS_HERE, options->max_rows, blocks_of(job), job->block_size);
        job->results[i].rows = calloc((size_t)options->max_rows, sizeof(*job->results[i].rows));
        if (!job->results[i].rows) return err_set(err, ERR_NO_MEMORY, "results");
    }
    for (int i = 0; i < job->n && !job->greedy; i++) {
        job->prompts[i].logits = malloc((size_t)job->prompts[i].prompt_n * (size_t)job->vocab_size * sizeof(float));
        if (!job->prompts[i].logits) return err_set(err, ERR_NO_MEMORY, "logits");
    }
    return 0;
}

static void write_output(const struct job *job)
{
    for (int i = 0; i < job->n; i++) {
        const struct prompt *prompt = &job->prompts[i];
        if (job->greedy) fwrite(prompt->ids + prompt->prompt_n, sizeof(token_id), (size_t)job->num_tokens, stdout);
        else fwrite(prompt->logits, sizeof(float), (size_t)prompt->prompt_n * (size_t)job->vocab_size, stdout);
    }
}

static int run(struct job *job, const char *model, struct err *err)
{
    struct model_source *src = NULL;
    int64_t start = clock_now_ms();
    int rc = model_source_open(&src, model, LOAD_AUTO, err);
    if (rc < 0) return rc;
    int32_t longest = model_source_config(src)->max_position_embeddings;
    job->vocab_size = model_source_config(src)->vocab_size;
    if (longest > MAX_LEN) longest = MAX_LEN;
    for (int i = 0; i < job->n; i++) {
        struct prompt *prompt = &job->prompts[i];
        if (prompt->n + job->num_tokens > longest) prompt->n = prompt->prompt_n = longest - job->num_tokens;
        if (prompt->n + job->num_tokens > job->longest) job->longest = prompt->n + job->num_tokens;
    }
    if (job->chunk <= 0) job->chunk = MAX_LEN;
    struct ranks_options options = options_of(job);
    place_blocks(job);
    if ((rc = choose_device(&options, job, model_source_config(src), err)) < 0) goto out;
    if ((rc = make_room(job, &options, err)) < 0) goto out;
    if ((rc = ranks_start(&job->ranks, src, &options, NULL, NULL, err)) < 0) goto out;
    fprintf(stderr, "%s; loaded in %lld ms\n", ranks_describe(job->ranks), (long long)(clock_now_ms() - start));
    memory_plan_print(ranks_memory_plan(job->ranks, 0), stderr);
    rc = run_prompts(job);
    if (rc == 0 && job->greedy) rc = run_decodes(job);
    if (rc < 0) err_set(err, rc, "step %llu failed: %s %s", (unsigned long long)job->step, err_name(rc), ranks_failure(job->ranks));
    else write_output(job);
out:
    ranks_stop(job->ranks);
    model_source_close(src);
    for (int i = 0; i < PLANS; i++) {
        free(job->plans[i]);
        free(job->results[i].rows);
    }
    for (int i = 0; i < job->n; i++) free(job->prompts[i].logits);
    return rc;
}

/* Options behind the plain arguments; false: something else is there. */
static bool read_options(struct job *job, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--together")) job->together = true;
        else if (!strcmp(argv[i], "--ahead")) job->ahead = true;
        else if (!strcmp(argv[i], "--dtype")) job->dtype = value, i++;
        else if (!strcmp(argv[i], "--chunk")) job->chunk = (int32_t)strtol(value, NULL, 10), i++;
        else if (!strcmp(argv[i], "--block-size")) job->block_size = (int32_t)strtol(value, NULL, 10), i++;
        else return false;
    }
    return job->block_size >= MIN_BLOCK_SIZE && job->block_size <= MAX_LEN && job->chunk >= 0;
}

static bool read_arguments(struct job *job, int argc, char **argv)
{
    int plain = 1;
    while (plain < argc && strncmp(argv[plain], "--", 2) != 0) plain++;
    if (plain < 5 || (strcmp(argv[1], "logits") != 0 && strcmp(argv[1], "greedy") != 0)) return false;
    job->greedy = !strcmp(argv[1], "greedy");
    if (plain != (job->greedy ? 8 : 7) && (job->greedy || plain != 5)) return false;
    job->device = argv[3];
    job->threads = (int)strtol(argv[4], NULL, 10);
    if (plain >= 7) {
        job->tp = (int)strtol(argv[5], NULL, 10);
        job->pp = (int)strtol(argv[6], NULL, 10);
    }
    if (job->greedy) job->num_tokens = (int)strtol(argv[7], NULL, 10);
    return read_options(job, argc - plain, argv + plain) && job->num_tokens < MAX_LEN;
}

int main(int argc, char **argv)
{
    struct job job = { .tp = 1, .pp = 1, .block_size = MIN_BLOCK_SIZE, .dtype = "auto" };
    struct err err = { 0 };
    if (!read_arguments(&job, argc, argv)) {
        fprintf(stderr, "usage: logits_tool logits MODEL ref|fast|cuda THREADS [TP PP] [options] | "
                        "greedy MODEL ref|fast|cuda THREADS TP PP N [options]\n"
                        "options: --chunk N, --together, --block-size N, --ahead, --dtype auto|bfloat16|float16\n");
        return EXIT_CONFIG;
    }
    job.prompts = calloc(MAX_PROMPTS_HERE, sizeof(*job.prompts));
    if (!job.prompts) return EXIT_FAULT;
    job.n = read_prompts(job.prompts);
    int rc = run(&job, argv[2], &err);
    if (rc < 0) fprintf(stderr, "logits_tool: %s\n", err.message);
    free(job.prompts);
    return rc == 0 ? 0 : EXIT_FAULT;
}
