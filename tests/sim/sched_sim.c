/* sched_sim.c - episodes of random requests: arrivals, lengths, aborts, n, priorities, resumes, tiny KV pools, every
 * policy. After each step scheduler_check(); every token compared with the truth; at the end of an episode nothing may
 * be left.
 * The hash of all plans is printed: the same arguments give the same hash. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { MAX_PLANS = 3, EPISODE_STEPS = 2000, STALL_STEPS = 20000, STEP_NS = 1000000 };

struct in_flight {
    const struct step_plan *plan;
    struct sim_seq seqs[SIM_MAX_LIVE];
    struct step_result result;
    bool executed;
};

struct sim {
    struct sim_random random;
    struct scheduler_options options;
    struct submission_limits limits;
    struct scheduler scheduler;
    struct sim_device device;
    struct sim_request requests[SIM_MAX_LIVE];
    struct in_flight flights[MAX_PLANS];       /* oldest first */
    int num_flights;
    int64_t step, last_progress;
    uint32_t arrival_percent, abort_percent;
    uint64_t next_id, hash;
    uint64_t finished, aborted, failed, late, hit_tokens, preemptions, tokens;       /* of all episodes */
};

void sim_fail(const char *file, int line, const char *cond)
{
    fprintf(stderr, "sched-sim: %s:%d: %s\n", file, line, cond);
    abort();
}

static struct sim_request *find(struct sim *sim, uint64_t id)
{
    for (int i = 0; i < SIM_MAX_LIVE; i++) {
        if (sim->requests[i].live && sim->requests[i].req.id == id) return &sim->requests[i];
    }
    return NULL;
}

static struct sim_request *free_place(struct sim *sim)
{
    for (int i = 0; i < SIM_MAX_LIVE; i++) {
        if (!sim->requests[i].live) return &sim->requests[i];
    }
    return NULL;
}

static void submit(struct sim *sim, struct sim_request *r)
{
    struct engine_request req = r->req;

    req.tokens = r->tokens;
    req.stop_ids = r->stop_ids;
    req.bias_ids = &r->bias_id;
    req.bias_values = &r->bias_value;
    r->submitted_step = sim->step;
    struct submission *sub = submission_new(&req, &sim->limits);
    SIM_CHECK(sub);
    scheduler_add(&sim->scheduler, sub);
}

static void arrive(struct sim *sim)
{
    struct sim_request *first = free_place(sim), *r;

    if (!first || !sim_chance(&sim->random, sim->arrival_percent)) return;
    sim_request_init(first, &sim->random, sim->next_id++, sim->options.max_model_len,
                     sim->options.policy == POLICY_PRIORITY);
    if (sim_chance(&sim->random, 15)) first->req.start_by_ms = sim->step + (int64_t)sim_below(&sim->random, 60);
    uint32_t n = sim_chance(&sim->random, 20) && !first->req.num_output ? 1 + sim_below(&sim->random, 5) : 1;
    submit(sim, first);
    for (uint32_t choice = 1; choice < n && (r = free_place(sim)); choice++) {
        sim_request_clone(r, first, sim->next_id++, choice);
        r->req.start_by_ms = 0;
        r->live = true;
        submit(sim, r);
    }
}

/* Not begun in time: it never will, and its gateway ends it before long. */
static bool is_late(struct sim *sim, const struct sim_request *r)
{
    const struct sequence *seq = sequence_pool_find(&sim->scheduler.pool, r->req.id);

    return r->req.start_by_ms && sim->step > r->req.start_by_ms && seq && !seq->scheduled_ns;
}

static bool all_are_late(struct sim *sim)
{
    for (int i = 0; i < SIM_MAX_LIVE; i++) {
        if (sim->requests[i].live && !is_late(sim, &sim->requests[i])) return false;
    }
    return true;
}

static void check_begun(struct sim *sim)
{
    for (int32_t i = 0; i < sim->scheduler.num_begun; i++) {
        const struct sim_request *r = find(sim, sim->scheduler.begun[i]);
        SIM_CHECK(r && r->req.start_by_ms >= sim->step);
    }
}

static void abort_some(struct sim *sim)
{
    for (int i = 0; i < SIM_MAX_LIVE; i++) {
        struct sim_request *r = &sim->requests[i];
        if (!r->live || !sim_chance(&sim->random, is_late(sim, r) ? 30 : sim->abort_percent)) continue;
        sim->late += is_late(sim, r);
        r->abort_sent = true;
        scheduler_abort(&sim->scheduler, r->req.id, 0);
    }
    scheduler_abort(&sim->scheduler, UINT64_MAX - 1, 0);          /* unknown: ignored */
}

/* What a client receives must be what the truth says, in order, ending once. */
static void receive_event(struct sim *sim, const struct token_event *event)
{
    struct sim_request *r = find(sim, event->id);

    SIM_CHECK(r);
    SIM_CHECK(event->num_cached <= r->req.num_prompt);
    sim->last_progress = sim->step;
    if (event->finish == FINISH_ABORTED || event->finish == FINISH_ERROR) {
        SIM_CHECK(event->finish == FINISH_ABORTED ? r->abort_sent : r->may_fail && event->err_code == ERR_INTERNAL);
        SIM_CHECK(event->token == TOKEN_NONE);
        sim->aborted += event->finish == FINISH_ABORTED;
        sim->failed += event->finish == FINISH_ERROR;
        r->live = false;
        return;
    }
    SIM_CHECK(event->token == sim_truth(r, r->num_tokens));
    sim_request_append(r, event->token);
    SIM_CHECK(event->index == (uint32_t)r->num_tokens - r->req.num_prompt);
    SIM_CHECK(event->finish == sim_truth_finish(r, sim->options.max_model_len));
    sim->tokens++;
    if (event->finish == FINISH_NONE) return;
    sim->finished++;
    sim->hit_tokens += event->num_cached;
    r->live = false;
}

static void publish(struct sim *sim)
{
    struct submission *sub;

    for (int32_t i = 0; i < sim->scheduler.num_outcomes; i++) receive_event(sim, &sim->scheduler.outcomes[i].event);
    scheduler_clear_outcomes(&sim->scheduler);
    while ((sub = scheduler_take_finished(&sim->scheduler))) submission_free(sub);
}

static void hash_plan(struct sim *sim, const struct step_plan *plan)
{
    sim->hash = sim_mix(sim->hash, (uint64_t)plan->num_seqs << 32 | (uint64_t)plan->num_decode_seqs);
    for (int32_t t = 0; t < plan->num_tokens; t++) {
        sim->hash = sim_mix(sim->hash, (uint64_t)plan_input_ids(plan)[t] ^ (uint64_t)plan_slot_mapping(plan)[t] << 16);
    }
}

static void check_plan_rules(struct sim *sim, const struct step_plan *plan)
{
    const int32_t *cu = plan_cu_seqlens_q(plan);

    SIM_CHECK(plan->num_tokens <= sim->options.max_num_batched_tokens && plan->num_seqs <= sim->options.max_num_seqs);
    for (int32_t b = 0; b < plan->num_seqs; b++) SIM_CHECK((cu[b + 1] - cu[b] == 1) == (b < plan->num_decode_seqs));
}

/* The device works at any time between submit and wait, in order. */
static void execute_some(struct sim *sim, int at_least)
{
    for (int i = 0; i < sim->num_flights; i++) {
        struct in_flight *flight = &sim->flights[i];
        if (flight->executed) continue;
        if (i >= at_least && !sim_chance(&sim->random, 50)) return;
        for (int32_t b = 0; b < flight->plan->num_seqs; b++) flight->seqs[b].request = find(sim, flight->seqs[b].id);
        sim_device_execute(&sim->device, flight->plan, flight->seqs, &flight->result);
        flight->executed = true;
    }
}

static void launch(struct sim *sim, const struct step_plan *plan)
{
    struct in_flight *flight = &sim->flights[sim->num_flights++];
    const struct batch *batch = &sim->scheduler.batches[plan->micro_batch];

    check_plan_rules(sim, plan);
    hash_plan(sim, plan);
    flight->plan = plan;
    flight->executed = false;
    for (int32_t b = 0; b < plan->num_seqs; b++) {
        struct sim_request *r = find(sim, batch->seqs[b]->id);
        SIM_CHECK(r);
        flight->seqs[b] = (struct sim_seq){ r, r->req.id, r->domain };
    }
    execute_some(sim, 0);
}

static void land(struct sim *sim)
{
    struct in_flight flight = sim->flights[0];

    execute_some(sim, 1);
    scheduler_measured(&sim->scheduler, flight.plan, 0.2 + 0.1 * flight.plan->num_tokens + sim_below(&sim->random, 3));
    scheduler_commit(&sim->scheduler, flight.plan, &sim->flights[0].result, sim->step * STEP_NS);
    publish(sim);
    struct result_row *rows = sim->flights[0].result.rows;
    for (int i = 1; i < sim->num_flights; i++) sim->flights[i - 1] = sim->flights[i];
    sim->flights[--sim->num_flights].result.rows = rows;
}

static void one_step(struct sim *sim, bool arrivals)
{
    sim->step++;
    if (arrivals) arrive(sim);
    abort_some(sim);
    if (sim_chance(&sim->random, 2)) scheduler_throttle(&sim->scheduler, !sim->scheduler.throttled);
    publish(sim);
    const struct step_plan *plan = scheduler_next_step(&sim->scheduler, sim->step * STEP_NS);
    check_begun(sim);
    scheduler_check(&sim->scheduler);
    if (plan) launch(sim, plan);
    SIM_CHECK(plan || sim->num_flights || all_are_late(sim));          /* no deadlock */
    if (sim->num_flights && (!plan || sim->num_flights == sim->options.num_plans)) land(sim);
    scheduler_check(&sim->scheduler);
    /* no livelock */
    SIM_CHECK(!scheduler_num_sequences(&sim->scheduler) || sim->step - sim->last_progress < STALL_STEPS);
    if (!scheduler_num_sequences(&sim->scheduler)) sim->last_progress = sim->step;
}

static void choose_options(struct sim *sim)
{
    static const int32_t block_sizes[] = { 2, 4, 8, 16 };
    struct sim_random *random = &sim->random;
    int32_t block_size = block_sizes[sim_below(random, 4)];
    int32_t max_model_len = 8 + (int32_t)sim_below(random, SIM_MAX_LEN - 8);
    int32_t least = (max_model_len + block_size - 1) / block_size;

    sim->options = (struct scheduler_options){
        .max_num_seqs = 1 + (int32_t)sim_below(random, 16),
        .max_num_batched_tokens = 1 + (int32_t)sim_below(random, 96),
        .max_model_len = max_model_len,
        .max_sequences = SIM_MAX_LIVE,
        .block_size = block_size,
        .vocab_size = SIM_VOCAB,
        .num_blocks = least + (int32_t)sim_below(random, sim_chance(random, 50) ? 8 : (uint32_t)(6 * least)),
        .num_plans = 1 + (int32_t)sim_below(random, MAX_PLANS),
        .overlap = sim_chance(random, 50),
        .policy = (enum scheduler_policy)sim_below(random, 3),
        .itl_target_ms = sim_chance(random, 25) ? 1 + (int32_t)sim_below(random, 20) : 0,
        .long_prefill_chunk = sim_chance(random, 50) ? (int32_t)sim_below(random, 40) : 0,
        .enable_prefix_caching = !sim_chance(random, 20),
        .eos = {{SIM_EOS}, 1},
    };
    sim->arrival_percent = 5 + sim_below(random, 60);
    sim->abort_percent = sim_chance(random, 50) ? 1 : 0;
}

static void run_episode(struct sim *sim, int64_t steps)
{
    struct err err = { 0 };
    uint8_t secret[32] = { 1 }, digest[32] = { 2 };

    choose_options(sim);
    if (scheduler_init(&sim->scheduler, &sim->options, &err) < 0) sim_fail(__FILE__, __LINE__, err.message);
    sim->options = sim->scheduler.options;
    sim->limits = (struct submission_limits){sim->options.max_model_len, sim->options.block_size,
                                             prefix_root(secret, digest), sim_chance(&sim->random, 50),
                                             !sim->options.enable_prefix_caching};
    sim_device_init(&sim->device, sim->options.num_blocks, sim->options.block_size, sim->options.max_num_seqs,
                    sim->next_id);
    sim->device.bad_percent = sim_chance(&sim->random, 20) ? 1 : 0;
    for (int i = 0; i < MAX_PLANS; i++) {
        sim->flights[i].result.rows = calloc((size_t)sim->options.max_num_seqs, sizeof(struct result_row));
        SIM_CHECK(sim->flights[i].result.rows);
    }
    for (int64_t i = 0; i < steps; i++) one_step(sim, true);
    while (scheduler_num_sequences(&sim->scheduler) || sim->num_flights) one_step(sim, false);
    for (int i = 0; i < SIM_MAX_LIVE; i++) SIM_CHECK(!sim->requests[i].live);
    const struct engine_stats *stats = scheduler_stats(&sim->scheduler);
    SIM_CHECK(stats->blocks_used == 0 && stats->running == 0 && stats->waiting == 0 && !sim->scheduler.leaders.count);
    SIM_CHECK(sim->options.enable_prefix_caching || stats->blocks_cached == 0);
    sim->preemptions += stats->preemptions;
    for (int i = 0; i < MAX_PLANS; i++) free(sim->flights[i].result.rows);
    sim_device_release(&sim->device);
    scheduler_release(&sim->scheduler);
}

static void run(struct sim *sim, int64_t steps, uint64_t seed)
{
    memset(sim, 0, sizeof *sim);
    sim->random.state = seed * 0x9e3779b97f4a7c15u + 1;
    sim->next_id = 1;
    while (sim->step < steps) run_episode(sim, steps - sim->step < EPISODE_STEPS ? steps - sim->step : EPISODE_STEPS);
}

int main(int argc, char **argv)
{
    static struct sim sim;
    int64_t steps = argc > 1 ? strtoll(argv[1], NULL, 10) : 200000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;

    run(&sim, steps < 4000 ? steps : 4000, seed);
    uint64_t first_hash = sim.hash;
    run(&sim, steps < 4000 ? steps : 4000, seed);
    SIM_CHECK(sim.hash == first_hash);
    run(&sim, steps, seed);
    printf("steps %lld, finished %llu, aborted %llu (%llu too late to begin), failed %llu, tokens %llu, cached prompt tokens %llu, preemptions "
           "%llu, hash %016llx\n",
           (long long)sim.step, (unsigned long long)sim.finished, (unsigned long long)sim.aborted,
           (unsigned long long)sim.late, (unsigned long long)sim.failed, (unsigned long long)sim.tokens, (unsigned long long)sim.hit_tokens,
           (unsigned long long)sim.preemptions, (unsigned long long)sim.hash);
    SIM_CHECK(steps < 100000 || (sim.finished && sim.aborted && sim.late && sim.failed && sim.hit_tokens && sim.preemptions));
    return 0;
}
