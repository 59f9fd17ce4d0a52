/* model_runner.c - plan -> hidden state in -> forward -> hidden state out, or sample. */
#include "model_runner.h"

#include <stdlib.h>

#include "base/clock.h"
#include "memory_plan.h"

enum { CARVE_ALIGN = 64 };

static uint64_t kv_bytes_per_layer(const struct model_runner_args *args)
{
    uint64_t layers = (uint64_t)range_len(args->shard.layers);
    uint64_t half = args->plan->kv_per_block / layers / 2 * (uint64_t)args->plan->num_blocks;
    return (half + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
}

/* The arena: weights | activations | rope table | KV, as model_load and carve_kv take it. */
static uint64_t arena_bytes(const struct model_runner_args *args)
{
    const struct memory_plan *plan = args->plan;
    return plan->weights + plan->activations + plan->rope_table +
           2 * (uint64_t)range_len(args->shard.layers) * kv_bytes_per_layer(args);
}

static int carve_kv(struct model_runner *runner, const struct model_runner_args *args, struct err *err)
{
    int64_t layers = range_len(args->shard.layers);
    runner->kv = calloc((size_t)layers, sizeof(*runner->kv));
    if (!runner->kv) return err_set(err, ERR_NO_MEMORY, "KV table");
    for (int64_t layer = 0; layer < layers; layer++) {
        runner->kv[layer].num_blocks = args->plan->num_blocks;
        runner->kv[layer].k = runner->ops->carve(runner->backend, kv_bytes_per_layer(args));
        runner->kv[layer].v = runner->ops->carve(runner->backend, kv_bytes_per_layer(args));
    }
    return model_set_kv(runner->model, runner->kv, err);
}

int model_runner_open(struct model_runner *runner, const struct model_runner_args *args, struct err *err)
{
    const struct model_config *config = model_source_config(args->src);
    struct backend_options backend_options = plan_backend_options(args->options, config, &args->shard, args->device);
    int rc = 0;

    *runner = (struct model_runner){ .ops = args->options->ops, .shard = args->shard, .comm_ops = args->comm_ops,
                                     .tp_comm = args->tp_comm, .pp_comm = args->pp_comm,
                                     .vocab_size = config->vocab_size,
                                     .now_ns = args->now_ns ? args->now_ns : clock_now_ns };
    if ((rc = runner->ops->open(&runner->backend, &backend_options, err)) < 0) goto out;
    void *stream = runner->ops->stream(runner->backend);
    if (args->tp_comm && (rc = args->comm_ops->join(args->tp_comm, args->device, stream, err)) < 0) goto out;
    if (args->pp_comm && (rc = args->comm_ops->join(args->pp_comm, args->device, stream, err)) < 0) goto out;
    if ((rc = runner->ops->reserve(runner->backend, arena_bytes(args), err)) < 0) goto out;
    struct model_env env = { .ops = runner->ops, .backend = runner->backend, .comm_ops = args->comm_ops,
                             .tp_comm = args->tp_comm, .limits = plan_limits(args->options),
                             .layers_begun = args->options->layers_begun };
    rc = model_load(&runner->model, args->src, &args->shard, &env, args->options->seed, args->progress,
                    args->progress_arg, err);
    if (rc < 0) goto out;
    rc = carve_kv(runner, args, err);
out:
    if (rc < 0) model_runner_close(runner);
    return rc;
}

void model_runner_close(struct model_runner *runner)
{
    model_free(runner->model);
    free(runner->kv);
    if (runner->backend) runner->ops->close(runner->backend);
    runner->model = NULL;
    runner->kv = NULL;
    runner->backend = NULL;
}

static int receive_hidden(struct model_runner *runner, const struct step_plan *plan)
{
    struct model_hidden hidden = model_hidden(runner->model);
    int from = runner->shard.pp_stage - 1;
    int rc = runner->comm_ops->recv(runner->pp_comm, hidden.residual, plan->num_tokens * (int64_t)hidden.residual_row_bytes, from);
    return rc < 0 ? rc : runner->comm_ops->recv(runner->pp_comm, hidden.x, plan->num_tokens * (int64_t)hidden.x_row_bytes, from);
}

static int send_hidden(struct model_runner *runner, const struct step_plan *plan)
{
    struct model_hidden hidden = model_hidden(runner->model);
    int to = runner->shard.pp_stage + 1;
    int rc = runner->comm_ops->send(runner->pp_comm, hidden.residual, plan->num_tokens * (int64_t)hidden.residual_row_bytes, to);
    return rc < 0 ? rc : runner->comm_ops->send(runner->pp_comm, hidden.x, plan->num_tokens * (int64_t)hidden.x_row_bytes, to);
}

int model_runner_forward(struct model_runner *runner, const struct step_plan *plan, float **logits)
{
    int rc = 0;
    if (runner->shard.pp_stage > 0 && (rc = receive_hidden(runner, plan)) < 0) return rc;
    runner->time.begin_ns = runner->now_ns();
    if ((rc = model_forward(runner->model, plan, logits)) < 0) return rc;
    runner->time.end_ns = runner->now_ns();
    return runner->shard.pp_stage + 1 < runner->shard.pp_size ? send_hidden(runner, plan) : 0;
}

/* Every tp rank of a device that draws the next step's tokens itself (steps_in_flight > 1) needs them; else only rank 0. */
static bool draws(const struct model_runner *runner)
{
    return runner->shard.has_head && (runner->shard.tp_rank == 0 || runner->ops->steps_in_flight > 1);
}

static bool reports(const struct model_runner *runner)
{
    return runner->shard.has_head && runner->shard.tp_rank == 0;
}

int model_runner_launch(struct model_runner *runner, const struct step_plan *plan, struct step_result *result)
{
    const struct step_plan *uploaded = runner->ops->upload(runner->backend, plan);
    float *logits = NULL;
    if (reports(runner)) {
        result->step = plan->step;
        result->num_rows = plan->num_rows;
    }
    if (runner->ops->step_begin(runner->backend, uploaded)) {
        int rc = model_runner_forward(runner, uploaded, &logits);
        if (rc < 0) return rc;
        if (draws(runner) && uploaded->num_rows > 0) {
            runner->ops->sample(runner->backend, &(struct sample_args){
                .logits = logits, .plan = uploaded, .result = result, .vocab_size = runner->vocab_size });
        }
    } else {
        runner->time.begin_ns = runner->now_ns();
    }
    return runner->ops->step_end(runner->backend, uploaded);
}

int model_runner_idle(struct model_runner *runner)
{
    return runner->ops->idle ? runner->ops->idle(runner->backend) : 0;
}

int model_runner_collect(struct model_runner *runner, struct step_result *result)
{
    int rc = runner->ops->collect(runner->backend, reports(runner) ? result : NULL);
    if (rc == 0 && runner->tp_comm) rc = runner->comm_ops->check(runner->tp_comm);
    if (rc == 0 && runner->pp_comm) rc = runner->comm_ops->check(runner->pp_comm);
    if (runner->ops->steps_in_flight > 1 || reports(runner)) runner->time.end_ns = runner->now_ns();
    if (runner->ops->busy_ns) runner->time.begin_ns = runner->time.end_ns - runner->ops->busy_ns(runner->backend);
    if (runner->shard.tp_rank == 0) result->stages[runner->shard.pp_stage] = runner->time;
    return rc;
}
