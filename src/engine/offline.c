/* offline.c - the engine's loop without its gateway. See engine.c for the other half: inbox, outbox, heartbeat. */
#include <sluice/offline.h>

#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine_fit.h"
#include "engine_load.h"
#include "flights.h"

struct offline {
    struct model_source *src;
    struct engine_setup setup;
    struct scheduler scheduler;
    struct submission_limits limits;
    struct flights flights;
    struct offline_info info;
};

int offline_exit_code(int code) { return engine_exit_code(code); }

int offline_ranks_options(struct ranks_options *options, int layers[MAX_PP], const struct config *config, const struct model_config *model,
                          struct err *err)
{
    return engine_ranks_options(options, layers, config, model, err);
}

const struct offline_info *offline_info(const struct offline *offline) { return &offline->info; }

/* ---- start and end ---- */

/* A table of its own gives a step one row per token; a tied one is read whole, as the head. Backends keep it in 16 bits,
 * the oracle in 32, and a GGUF file's in its own format: there its share of the bytes is taken to be that of the elements. */
static uint64_t embedding_bytes(const struct model_config *model, uint64_t weights, bool gguf)
{
    double q = (double)model->num_attention_heads * model->head_dim;
    double kv = (double)model->num_key_value_heads * model->head_dim;
    double layer = model->hidden_size * (2 * q + 2 * kv + 3.0 * model->intermediate_size);
    double table = (double)model->vocab_size * model->hidden_size;
    double share = (double)weights * (table / (2 * table + layer * model->num_hidden_layers));

    if (model->tie_word_embeddings) return 0;
    if (gguf || share > 3 * table) return (uint64_t)share;
    return (uint64_t)(2 * table);
}

static void make_info(struct offline *o, int num_ranks, int64_t began_ns)
{
    struct offline_info *info = &o->info;
    uint64_t kv_per_block = 0;

    info->describe = ranks_describe(o->setup.ranks);
    info->model = model_source_config(o->src);
    info->num_ranks = num_ranks;
    for (int i = 0; i < num_ranks; i++) {
        const struct memory_plan *memory = ranks_memory_plan(o->setup.ranks, i);
        info->weights_bytes += memory->weights;
        kv_per_block += memory->kv_per_block;
    }
    info->step_weights_bytes = info->weights_bytes -
        embedding_bytes(info->model, info->weights_bytes, model_source_format(o->src) == LOAD_GGUF);
    info->block_size = o->setup.scheduler.block_size;
    info->kv_bytes_per_token = kv_per_block / (uint64_t)info->block_size;
    info->num_blocks = ranks_num_blocks(o->setup.ranks);
    info->num_slots = ranks_num_slots(o->setup.ranks);
    info->load_s = (double)(clock_now_ns() - began_ns) / 1e9;
}

static int start_scheduler(struct offline *o, int32_t max_sequences, struct err *err)
{
    struct scheduler_options options = o->setup.scheduler;
    static const uint8_t no_secret[32];

    engine_fit_scheduler(&options, o->setup.ranks);
    options.max_sequences = max_sequences;
    int rc = scheduler_init(&o->scheduler, &options, err);
    if (rc < 0) return rc;
    options = o->scheduler.options;
    o->info.max_model_len = options.max_model_len;
    o->info.max_num_seqs = options.max_num_seqs;
    o->info.max_num_batched_tokens = options.max_num_batched_tokens;
    o->limits = engine_submission_limits(&options, no_secret, o->setup.model_digest);
    rc = flights_init(&o->flights, o->setup.ranks, o->info.num_slots, ranks_max_rows(o->setup.ranks));
    return rc < 0 ? err_set(err, rc, "no memory for %d sequences", options.max_num_seqs) : 0;
}

int offline_open(struct offline **out, const struct config *config, int32_t max_sequences, struct err *err)
{
    struct offline *o = calloc(1, sizeof *o);
    int64_t began_ns = clock_now_ns();
    int rc;

    if (!o) return err_set(err, ERR_NO_MEMORY, "out of memory");
    if ((rc = engine_load(&o->setup, &o->src, config, NULL, NULL, err)) < 0) goto out;
    make_info(o, (int)(config->tensor_parallel_size * config->pipeline_parallel_size), began_ns);
    if ((rc = start_scheduler(o, max_sequences, err)) < 0) goto out;
    *out = o;
    o = NULL;
out:
    offline_close(o);
    return rc;
}

static void free_finished(struct offline *o)
{
    struct submission *sub;

    while ((sub = scheduler_take_finished(&o->scheduler))) submission_free(sub);
}

void offline_close(struct offline *o)
{
    if (!o) return;
    if (o->setup.ranks) ranks_stop(o->setup.ranks);
    scheduler_release(&o->scheduler);
    flights_release(&o->flights);
    if (o->src) model_source_close(o->src);
    free(o);
}

/* ---- requests ---- */

int offline_add(struct offline *o, const struct offline_request *request)
{
    struct engine_request req = {
        .id = request->id, .group = request->id, .arrival_ms = clock_now_ms(), .max_tokens = request->max_tokens,
        .ignore_eos = true, .num_prompt = (uint32_t)request->num_prompt, .tokens = request->prompt,
        .sampling = { .temperature = 0, .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 },
    };
    struct submission *sub = submission_new(&req, &o->limits);
    int rc = 0;

    if (!sub) return ERR_NO_MEMORY;
    scheduler_clear_outcomes(&o->scheduler);
    scheduler_add(&o->scheduler, sub);
    if (o->scheduler.num_outcomes) rc = o->scheduler.outcomes[0].event.err_code;     /* refused */
    scheduler_clear_outcomes(&o->scheduler);
    free_finished(o);
    return rc;
}

void offline_abort(struct offline *o, uint64_t id)
{
    scheduler_clear_outcomes(&o->scheduler);
    scheduler_abort(&o->scheduler, id, 0);
    scheduler_clear_outcomes(&o->scheduler);
    free_finished(o);
}

/* ---- steps ---- */

static void describe_step(const struct flight *flight, int64_t landed_before_ns, struct offline_step *step)
{
    const struct step_plan *plan = flight->plan;
    const struct step_result *result = flight->result;
    const struct stage_time *last = &result->stages[result->num_stages - 1];

    step->num_tokens = plan->num_tokens;
    step->num_seqs = plan->num_seqs;
    step->num_decode_seqs = plan->num_decode_seqs;
    step->context_tokens = 0;
    for (int32_t b = 0; b < plan->num_seqs; b++) step->context_tokens += plan_context_lens(plan)[b];
    step->submitted_ns = flight->began_ns;
    step->landed_ns = flight->landed_ns;
    step->since_ns = flight->landed_ns - (landed_before_ns ? landed_before_ns : flight->began_ns);
    step->busy_ns = result->num_stages > 0 && last->end_ns > last->begin_ns ? last->end_ns - last->begin_ns : 0;
}

/* The oldest plan comes back and is committed. */
static int land(struct offline *o, struct offline_step *step, struct err *err)
{
    int64_t landed_before_ns = o->flights.landed_ns;
    struct flight flight;
    int rc = flights_land(&o->flights, &flight);

    if (rc < 0) return err_set(err, rc, "%s", ranks_failure(o->setup.ranks));
    describe_step(&flight, landed_before_ns, step);
    scheduler_measured(&o->scheduler, flight.plan, flight.alone_ms);
    scheduler_commit(&o->scheduler, flight.plan, flight.result, flight.landed_ns);
    step->num_events = o->scheduler.num_outcomes;
    free_finished(o);
    step->host_ns += clock_now_ns() - flight.landed_ns;
    return 1;
}

int offline_step(struct offline *o, struct offline_step *step, struct err *err)
{
    *step = (struct offline_step){ 0 };
    scheduler_clear_outcomes(&o->scheduler);
    for (;;) {
        int64_t began_ns = clock_now_ns();
        const struct step_plan *plan = scheduler_next_step(&o->scheduler, began_ns);
        if (plan) {
            int rc = flights_launch(&o->flights, &(struct flight){ .plan = plan, .began_ns = clock_now_ns() });
            if (rc < 0) return err_set(err, rc, "%s", ranks_failure(o->setup.ranks));
        }
        step->host_ns += clock_now_ns() - began_ns;
        if (!o->flights.num) {
            o->flights.landed_ns = 0;
            return 0;
        }
        if (!plan || o->flights.num == o->flights.num_slots) return land(o, step, err);
    }
}

const struct token_event *offline_event(const struct offline *o, int32_t i) { return &o->scheduler.outcomes[i].event; }

uint64_t offline_preemptions(struct offline *o) { return scheduler_stats(&o->scheduler)->preemptions; }

int offline_drain(struct offline *o, struct err *err)
{
    struct offline_step step;
    int rc = 0;

    for (int32_t i = 0; i < o->scheduler.pool.num_touched; i++) {
        const struct sequence *seq = &o->scheduler.pool.all[i];
        if (seq->state != SEQ_FREE) offline_abort(o, seq->id);
    }
    while ((rc = offline_step(o, &step, err)) == 1) continue;
    return rc;
}
