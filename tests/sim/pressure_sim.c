/* pressure_sim.c - 2,000 requests at once on 40 KV blocks: all end, nothing hangs, sequences are preempted, and every
 * token is the one that the same request gets on a device with room for all. Each policy; invariants after each step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { NUM_REQUESTS = 2000, BLOCK_SIZE = 16, TIGHT_BLOCKS = 40, WIDE_BLOCKS = 16384, STALL_STEPS = 2000 };

struct pressure {
    struct scheduler s;
    struct sim_device device;
    struct sim_request *requests;      /* [NUM_REQUESTS], id - 1 */
    struct flight { const struct step_plan *plan; struct step_result result; struct sim_seq seqs[64]; } flights[2];    /* oldest first */
    int num_flights;
    int64_t step, last_progress;
    int32_t num_ended;
};

void sim_fail(const char *file, int line, const char *cond)
{
    fprintf(stderr, "pressure-sim: %s:%d: %s\n", file, line, cond);
    abort();
}

static void submit_all(struct pressure *p)
{
    uint8_t secret[32] = { 1 }, digest[32] = { 2 };
    struct submission_limits limits = {p->s.options.max_model_len, BLOCK_SIZE, prefix_root(secret, digest), true, false};

    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        struct sim_request *r = &p->requests[i];
        struct engine_request req = r->req;
        req.tokens = r->tokens;
        req.stop_ids = r->stop_ids;
        req.bias_ids = &r->bias_id;
        req.bias_values = &r->bias_value;
        struct submission *sub = submission_new(&req, &limits);
        SIM_CHECK(sub);
        scheduler_add(&p->s, sub);
    }
}

static void publish(struct pressure *p)
{
    struct submission *sub;

    for (int32_t i = 0; i < p->s.num_outcomes; i++) {
        const struct token_event *event = &p->s.outcomes[i].event;
        struct sim_request *r = &p->requests[event->id - 1];
        SIM_CHECK(r->live && event->token == sim_truth(r, r->num_tokens));
        sim_request_append(r, event->token);
        SIM_CHECK(event->finish == sim_truth_finish(r, p->s.options.max_model_len));
        p->last_progress = p->step;
        if (event->finish == FINISH_NONE) continue;
        r->live = false;
        p->num_ended++;
    }
    scheduler_clear_outcomes(&p->s);
    while ((sub = scheduler_take_finished(&p->s))) submission_free(sub);
}

static void launch(struct pressure *p, const struct step_plan *plan)
{
    struct flight *flight = &p->flights[p->num_flights++];

    flight->plan = plan;
    for (int32_t b = 0; b < plan->num_seqs; b++) {
        struct sim_request *r = &p->requests[p->s.batches[plan->micro_batch].seqs[b]->id - 1];
        flight->seqs[b] = (struct sim_seq){ r, r->req.id, r->domain };
    }
}

/* The device works as late as it can. */
static void land(struct pressure *p)
{
    struct flight flight = p->flights[0];

    for (int32_t b = 0; b < flight.plan->num_seqs; b++)
        if (!flight.seqs[b].request->live) flight.seqs[b].request = NULL;
    sim_device_execute(&p->device, flight.plan, flight.seqs, &flight.result);
    scheduler_commit(&p->s, flight.plan, &flight.result, p->step);
    publish(p);
    p->flights[0] = p->flights[1];
    p->flights[--p->num_flights].result.rows = flight.result.rows;
}

static void one_step(struct pressure *p)
{
    p->step++;
    const struct step_plan *plan = scheduler_next_step(&p->s, p->step);
    SIM_CHECK((plan || p->num_flights) && p->step - p->last_progress < STALL_STEPS);
    if (plan) launch(p, plan);
    if (!plan || p->num_flights == p->s.options.num_plans) land(p);
    if (p->step % 16 == 0) scheduler_check(&p->s);
}

/* The requests are the same for the same seed; returns them with what they were answered. */
static struct sim_request *run(enum scheduler_policy policy, int32_t num_blocks, bool overlap, uint64_t *preemptions)
{
    struct scheduler_options o = {
        .max_num_seqs = 64, .max_num_batched_tokens = 128, .max_model_len = SIM_MAX_LEN, .max_sequences = NUM_REQUESTS,
        .num_blocks = num_blocks, .block_size = BLOCK_SIZE, .vocab_size = SIM_VOCAB, .num_plans = 1 + overlap, .overlap = overlap, .policy = policy,
        .long_prefill_chunk = 64, .enable_prefix_caching = true, .eos = {{SIM_EOS}, 1},
    };
    struct pressure p = { .requests = calloc(NUM_REQUESTS, sizeof *p.requests) };
    struct sim_random random = { 42 };
    struct err err = { 0 };

    SIM_CHECK(p.requests);
    for (int32_t i = 0; i < NUM_REQUESTS; i++)
        sim_request_init(&p.requests[i], &random, (uint64_t)i + 1, SIM_MAX_LEN, policy == POLICY_PRIORITY);
    if (scheduler_init(&p.s, &o, &err) < 0) sim_fail(__FILE__, __LINE__, err.message);
    sim_device_init(&p.device, num_blocks, BLOCK_SIZE, o.max_num_seqs, 1);
    for (int i = 0; i < 2; i++) SIM_CHECK((p.flights[i].result.rows = calloc((size_t)o.max_num_seqs, sizeof(struct result_row))));
    submit_all(&p);
    while (scheduler_num_sequences(&p.s)) one_step(&p);
    SIM_CHECK(!p.num_flights);
    scheduler_check(&p.s);
    SIM_CHECK(p.num_ended == NUM_REQUESTS && p.s.kv.num_used == 0);
    *preemptions = scheduler_stats(&p.s)->preemptions;
    printf("  %5d blocks%s: %lld steps, %llu preemptions, %llu of %llu prompt tokens cached\n", num_blocks,
           overlap ? ", overlap" : "",
           (long long)p.step, (unsigned long long)*preemptions, (unsigned long long)p.s.stats.cache_hit_tokens,
           (unsigned long long)(p.s.stats.cache_hit_tokens + p.s.stats.cache_miss_tokens));
    for (int i = 0; i < 2; i++) free(p.flights[i].result.rows);
    sim_device_release(&p.device);
    scheduler_release(&p.s);
    return p.requests;
}

static void compare(enum scheduler_policy policy, const char *name)
{
    uint64_t preemptions;

    printf("%s\n", name);
    struct sim_request *wide = run(policy, WIDE_BLOCKS, false, &preemptions);
    for (int overlap = 0; overlap <= 1; overlap++) {
        struct sim_request *tight = run(policy, TIGHT_BLOCKS, overlap, &preemptions);
        SIM_CHECK(preemptions > 0);
        for (int32_t i = 0; i < NUM_REQUESTS; i++) {
            SIM_CHECK(tight[i].num_tokens == wide[i].num_tokens);
            SIM_CHECK(!memcmp(tight[i].tokens, wide[i].tokens, (size_t)tight[i].num_tokens * sizeof(token_id)));
        }
        free(tight);
    }
    free(wide);
}

int main(void)
{
    compare(POLICY_FAIR, "fair");
    compare(POLICY_FCFS, "fcfs");
    compare(POLICY_PRIORITY, "priority");
    return 0;
}
