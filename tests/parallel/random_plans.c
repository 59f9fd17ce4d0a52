/* random_plans.c - random plans through the plan slots, barriers and mailboxes of several layouts, with a random number
 * of micro-batches in flight; built with ThreadSanitizer it is the proof that these carry every ordering.
 *   random_plans [plans [seed]]
 * Each plan holds some of a few short prompts; what they draw is known from one rank, so a plan that met another one's
 * data or a half-written result shows as a wrong token. Exit 1 at the first. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <sluice/rank.h>

#include "base/log.h"
#include "unit/model/tiny_model.h"
#include "unit/rank/plan_builder.h"

enum { NUM_PROMPTS = 24, MAX_PROMPT = 3, MAX_SEQS = 3, VOCAB = 40, BLOCK_SIZE = 16, MAX_BLOCKS = 1,
       NUM_BLOCKS = MAX_SEQS * MAX_PP, MAX_TOKENS = MAX_SEQS * MAX_PROMPT };

struct prompt { token_id tokens[MAX_PROMPT]; int32_t len; token_id drawn; float logprob; };

/* One plan in flight and what it holds. */
struct job { struct step_plan *plan; struct step_result result; int prompts[MAX_SEQS]; int num; };

static uint32_t next_random(uint32_t *state, uint32_t below)
{
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % below;
}

static struct ranks *start(const struct model_source *src, int tp_size, int pp_size)
{
    struct ranks_options options = {
        .ops = &backend_cpu_ref, .tp_size = tp_size, .pp_size = pp_size, .threads = 1, .kv_dtype = DTYPE_F32,
        .max_num_seqs = MAX_SEQS, .max_num_batched_tokens = MAX_TOKENS, .max_model_len = BLOCK_SIZE,
        .block_size = BLOCK_SIZE, .headroom = 0.1, .num_blocks_override = NUM_BLOCKS, .seed = 7 };
    struct ranks *ranks = NULL;
    struct err err = { 0 };
    if (ranks_start(&ranks, src, &options, NULL, NULL, &err) == 0) return ranks;
    fprintf(stderr, "tp %d pp %d: %s\n", tp_size, pp_size, err.message);
    exit(1);
}

/* Blocks of a micro-batch are its own: plans in flight share nothing but the weights. */
static void fill(struct job *job, const struct prompt *prompts, int slot)
{
    step_plan_reset(job->plan);
    for (int i = 0; i < job->num; i++) {
        const struct prompt *prompt = &prompts[job->prompts[i]];
        block_id block = slot * MAX_SEQS + i;
        plan_add_seq(job->plan, &(struct plan_seq){ .tokens = prompt->tokens, .len = prompt->len, .blocks = &block,
                                                    .slot = i });
        plan_add_row(job->plan, i, job->plan->num_tokens - 1, TOKEN_NONE);
    }
}

static void job_init(struct job *job)
{
    job->plan = plan_new(MAX_TOKENS, MAX_SEQS, MAX_SEQS, MAX_BLOCKS, BLOCK_SIZE);
    job->result.rows = calloc(MAX_SEQS, sizeof(*job->result.rows));
    if (!job->result.rows) abort();
}

static void job_release(struct job *job)
{
    free(job->plan);
    free(job->result.rows);
}

static void learn(const struct model_source *src, struct prompt *prompts)
{
    struct ranks *ranks = start(src, 1, 1);
    struct job job = { .num = 1 };
    uint32_t random = 99;
    job_init(&job);
    for (int i = 0; i < NUM_PROMPTS; i++) {
        prompts[i].len = 1 + (int32_t)next_random(&random, MAX_PROMPT);
        for (int t = 0; t < prompts[i].len; t++) prompts[i].tokens[t] = (token_id)next_random(&random, VOCAB);
        job.prompts[0] = i;
        fill(&job, prompts, 0);
        if (ranks_execute(ranks, job.plan, &job.result) < 0) exit(1);
        prompts[i].drawn = job.result.rows[0].token;
        prompts[i].logprob = job.result.rows[0].logprob;
    }
    job_release(&job);
    ranks_stop(ranks);
}

static int check(const struct job *job, const struct prompt *prompts, uint64_t step)
{
    int wrong = job->result.step != step || job->result.num_rows != job->num;
    for (int i = 0; i < job->num && !wrong; i++) {
        const struct prompt *prompt = &prompts[job->prompts[i]];
        const struct result_row *row = &job->result.rows[i];
        wrong = row->token != prompt->drawn || fabsf(row->logprob - prompt->logprob) > 1e-4f;
    }
    if (wrong) fprintf(stderr, "plan %llu: wrong result\n", (unsigned long long)step);
    return wrong ? -1 : 0;
}

static int run(struct ranks *ranks, int pp_size, const struct prompt *prompts, uint64_t num_plans, uint32_t *random)
{
    struct job jobs[MAX_PP] = { 0 };
    uint64_t submitted = 0, waited = 0;
    int rc = 0;
    for (int i = 0; i < pp_size; i++) job_init(&jobs[i]);
    while (waited < num_plans && rc == 0) {
        uint64_t in_flight = submitted - waited, room = (uint64_t)pp_size - in_flight;
        uint64_t more = next_random(random, (uint32_t)room + 1);
        uint64_t done = next_random(random, (uint32_t)(in_flight + more) + 1);
        for (; more > 0 && submitted < num_plans && rc == 0; more--, submitted++) {
            int slot = (int)(submitted % (uint64_t)pp_size);
            struct job *job = &jobs[slot];
            job->num = 1 + (int)next_random(random, MAX_SEQS);
            for (int i = 0; i < job->num; i++) job->prompts[i] = (int)next_random(random, NUM_PROMPTS);
            fill(job, prompts, slot);
            job->plan->step = submitted;
            job->plan->micro_batch = slot;
            rc = ranks_submit(ranks, job->plan, &job->result);
        }
        for (; done > 0 && waited < submitted && rc == 0; done--, waited++) {
            struct step_result *finished = NULL;
            rc = ranks_wait(ranks, &finished);
            struct job *job = &jobs[waited % (uint64_t)pp_size];
            if (rc == 0) rc = finished == &job->result ? check(job, prompts, waited) : -1;
        }
    }
    if (rc < 0) fprintf(stderr, "%s: %s\n", ranks_describe(ranks), err_name(rc));
    ranks_stop(ranks);
    for (int i = 0; i < pp_size; i++) job_release(&jobs[i]);
    return rc;
}

int main(int argc, char **argv)
{
    static const struct { int tp_size, pp_size, share; } layouts[] = {
        { 2, 2, 50 }, { 1, 3, 20 }, { 3, 1, 20 }, { 2, 3, 10 } };
    const struct tiny_shape shape = { .num_layers = 3, .hidden = 12, .ffn = 12, .head_dim = 2, .vocab = VOCAB };
    uint64_t num_plans = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000;
    uint32_t random = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1;
    struct model_source *src = tiny_open_shape(2, true, &shape, "");
    struct prompt prompts[NUM_PROMPTS] = { 0 };
    int rc = 0;
    log_set_level(LOG_WARNING);
    if (!src) return 1;
    learn(src, prompts);
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]) && rc == 0; i++) {
        uint64_t n = num_plans * (uint64_t)layouts[i].share / 100;
        rc = run(start(src, layouts[i].tp_size, layouts[i].pp_size), layouts[i].pp_size, prompts, n, &random);
        if (rc < 0) break;
        printf("tp %d x pp %d: %llu plans\n", layouts[i].tp_size, layouts[i].pp_size, (unsigned long long)n);
    }
    model_source_close(src);
    return rc == 0 ? 0 : 1;
}
