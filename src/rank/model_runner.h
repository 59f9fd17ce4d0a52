/* model_runner.h - one rank's device: backend, model, KV memory, and the step they run (private to rank).
 * Thread: the rank's, from open to close. No allocation after model_runner_open. */
#ifndef SLUICE_RANK_MODEL_RUNNER_H
#define SLUICE_RANK_MODEL_RUNNER_H

#include <sluice/backend.h>
#include <sluice/comm.h>
#include <sluice/model.h>
#include <sluice/rank.h>

struct model_runner_args {
    const struct model_source *src;
    const struct ranks_options *options;
    const struct memory_plan *plan;
    struct shard shard;
    int device;
    const struct comm_ops *comm_ops;
    struct comm *tp_comm, *pp_comm;        /* NULL where the size is 1; in pp_comm a rank is its stage */
    model_progress *progress;
    void *progress_arg;
    int64_t (*now_ns)(void);               /* NULL: CLOCK_MONOTONIC */
};

struct model_runner {
    const struct backend_ops *ops;
    struct backend *backend;
    struct model *model;
    struct kv_layer *kv;                   /* [layers of the shard] */
    struct shard shard;
    const struct comm_ops *comm_ops;
    struct comm *tp_comm, *pp_comm;
    int32_t vocab_size;
    int64_t (*now_ns)(void);
    struct stage_time time;                /* of the last step */
};

int  model_runner_open(struct model_runner *runner, const struct model_runner_args *args, struct err *err);
void model_runner_close(struct model_runner *runner);
/* Receives from the stage before, runs this shard, sends to the stage behind. *logits: see model_forward. */
int  model_runner_forward(struct model_runner *runner, const struct step_plan *plan, float **logits);
/* The same, then (last stage) draws into result. plan is in host memory, both stay until collect. Up to ops->steps_in_flight
 * steps may be launched and not collected. */
int  model_runner_launch(struct model_runner *runner, const struct step_plan *plan, struct step_result *result);
/* One slice of the device's own work, as ops->idle; nothing may be in flight. */
int  model_runner_idle(struct model_runner *runner);
/* Waits for the oldest launched step; result: as given to its launch. tp_rank 0 of each stage notes its time in it. */
int  model_runner_collect(struct model_runner *runner, struct step_result *result);

#endif
