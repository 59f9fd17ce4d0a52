/* ranks.c - one thread per rank, fed through pp_size plan slots.
 * `submitted` counts plans given, `finished` plans that every rank is done with; both only grow (and wrap), so slot
 * i % num_slots belongs to plan i, and plans finish in the order of submission because every rank takes them in order.
 * A slot without a plan tells the threads to end. After the first failure the communicators are aborted and the
 * remaining plans are only counted off: nobody waits for a rank that is gone. */
#include <sluice/rank.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/futex.h"
#include "memory_plan.h"
#include "model_runner.h"

/* A stage waits for the stages before it as long as they compute: the largest prefill on a slow CPU, with room. */
enum { COMM_TIMEOUT_MS = 300000, SPINS = 2000 };
static const int64_t SLEEP_NS = 1000000000;         /* a sleeper looks again this often, wake or not */

struct plan_slot {
    const struct step_plan *plan;                   /* NULL: end */
    struct step_result *result;
    atomic_int ranks_left;
};

struct rank {
    struct ranks *ranks;
    pthread_t thread;
    bool started;
    struct model_runner_args args;
    struct memory_plan plan;
    struct model_runner runner;
    struct err err;                                 /* of opening */
};

struct ranks {
    struct ranks_options options;
    int size;                                       /* tp_size * pp_size */
    struct rank *all;                               /* [size] */
    struct comm_group *tp_groups[MAX_PP];           /* one per stage */
    struct comm_group *pp_groups[MAX_TP];           /* one per tp rank */
    char description[160];
    int layer_partition[MAX_PP];

    struct plan_slot slots[MAX_PP];
    _Atomic uint32_t submitted, finished;           /* futex words */
    uint32_t waited;                                /* engine thread only */
    _Atomic uint32_t opened;                        /* ranks whose opening ended, well or not */
    atomic_int failed;                              /* 0 or the first error */

    void (*progress)(void *arg, double share);
    void *progress_arg;
    uint64_t load_bytes;
    _Atomic uint64_t loaded_bytes;
};

/* ---- rank threads ---- */

static void await_change(_Atomic uint32_t *word, uint32_t from)
{
    while (atomic_load(word) == from) futex_wait(word, from, SPINS, SLEEP_NS);
}

static void bump(_Atomic uint32_t *word)
{
    atomic_fetch_add(word, 1);
    futex_wake_all(word);
}

static void fail_all(struct rank *rank, int rc)
{
    struct ranks *ranks = rank->ranks;
    int none = 0;
    atomic_compare_exchange_strong(&ranks->failed, &none, rc);
    for (int i = 0; i < ranks->options.pp_size; i++) {
        if (ranks->tp_groups[i]) comm_cpu_ops.abort(comm_cpu_rank(ranks->tp_groups[i], 0));
    }
    for (int i = 0; i < ranks->options.tp_size; i++) {
        if (ranks->pp_groups[i]) comm_cpu_ops.abort(comm_cpu_rank(ranks->pp_groups[i], 0));
    }
}

static void *rank_main(void *arg)
{
    struct rank *rank = arg;
    struct ranks *ranks = rank->ranks;
    int rc = model_runner_open(&rank->runner, &rank->args, &rank->err);
    if (rc < 0) fail_all(rank, rc);
    bump(&ranks->opened);

    for (uint32_t next = 0;; next++) {
        await_change(&ranks->submitted, next);
        struct plan_slot *slot = &ranks->slots[next % (uint32_t)ranks->options.pp_size];
        if (!slot->plan) break;
        if (atomic_load(&ranks->failed) == 0) {
            rc = model_runner_step(&rank->runner, slot->plan, slot->result);
            if (rc < 0) fail_all(rank, rc);
        }
        if (atomic_fetch_sub(&slot->ranks_left, 1) == 1) bump(&ranks->finished);
    }
    model_runner_close(&rank->runner);
    return NULL;
}

/* ---- start ---- */

static void count_loaded(void *arg, uint64_t bytes)
{
    struct ranks *ranks = arg;
    uint64_t done = atomic_fetch_add(&ranks->loaded_bytes, bytes) + bytes;
    if (ranks->progress) ranks->progress(ranks->progress_arg, (double)done / (double)ranks->load_bytes);
}

static int make_groups(struct ranks *ranks, struct err *err)
{
    const struct ranks_options *options = &ranks->options;
    int rc = 0;
    for (int i = 0; i < options->pp_size && options->tp_size > 1 && rc == 0; i++) {
        rc = comm_cpu_new(&ranks->tp_groups[i], options->tp_size, COMM_TIMEOUT_MS, err);
    }
    for (int i = 0; i < options->tp_size && options->pp_size > 1 && rc == 0; i++) {
        rc = comm_cpu_new(&ranks->pp_groups[i], options->pp_size, COMM_TIMEOUT_MS, err);
    }
    return rc;
}

/* Each rank's share of the host; then the lowest count of blocks holds for all. */
static int plan_ranks(struct ranks *ranks, const struct model_source *src, struct err *err)
{
    const struct ranks_options *options = &ranks->options;
    const struct model_config *config = model_source_config(src);
    uint64_t share = host_memory_bytes() / (uint64_t)ranks->size;
    int32_t num_blocks = INT32_MAX;
    for (int i = 0; i < ranks->size; i++) {
        struct rank *rank = &ranks->all[i];
        struct shard *shard = &rank->args.shard;
        int tp_rank, pp_stage, rc;
        rank_place(i, options->tp_size, &tp_rank, &pp_stage);
        rc = shard_of(shard, config, options->tp_size, options->pp_size, tp_rank, pp_stage, options->layer_partition,
                      err);
        if (rc == 0) rc = memory_plan_make(&rank->plan, config, shard, options, share, err);
        if (rc < 0) return rc;
        if (rank->plan.num_blocks < num_blocks) num_blocks = rank->plan.num_blocks;
        ranks->load_bytes += model_load_bytes(config, shard);
    }
    for (int i = 0; i < ranks->size; i++) memory_plan_set_blocks(&ranks->all[i].plan, num_blocks);
    return 0;
}

static int start_thread(struct ranks *ranks, int i, const struct model_source *src, struct err *err)
{
    struct rank *rank = &ranks->all[i];
    struct shard shard = rank->args.shard;
    char name[16];
    rank->ranks = ranks;
    rank->args = (struct model_runner_args){
        .src = src, .options = &ranks->options, .plan = &rank->plan, .shard = shard, .device = i,
        .comm_ops = &comm_cpu_ops,
        .tp_comm = shard.tp_size > 1 ? comm_cpu_rank(ranks->tp_groups[shard.pp_stage], shard.tp_rank) : NULL,
        .pp_comm = shard.pp_size > 1 ? comm_cpu_rank(ranks->pp_groups[shard.tp_rank], shard.pp_stage) : NULL,
        .progress = count_loaded, .progress_arg = ranks };
    if (pthread_create(&rank->thread, NULL, rank_main, rank) != 0) {
        return err_set(err, ERR_NO_MEMORY, "thread of rank %d", i);
    }
    rank->started = true;
    snprintf(name, sizeof(name), "rank %d", i);
    pthread_setname_np(rank->thread, name);
    return 0;
}

static int await_opened(struct ranks *ranks, struct err *err)
{
    for (uint32_t seen = 0; seen < (uint32_t)ranks->size; seen = atomic_load(&ranks->opened)) {
        await_change(&ranks->opened, seen);
    }
    for (int i = 0; i < ranks->size; i++) {
        const struct err *found = &ranks->all[i].err;
        if (found->code != 0) return err_set(err, found->code, "%s", found->message);
    }
    return 0;
}

static void describe(struct ranks *ranks)
{
    const struct ranks_options *options = &ranks->options;
    const char *what = options->ops->describe(ranks->all[0].runner.backend);
    if (ranks->size == 1) snprintf(ranks->description, sizeof(ranks->description), "%s, %s", options->ops->name, what);
    else snprintf(ranks->description, sizeof(ranks->description), "%s, %s, tp %d x pp %d", options->ops->name, what,
                  options->tp_size, options->pp_size);
}

int ranks_start(struct ranks **out, const struct model_source *src, const struct ranks_options *options,
                void (*progress)(void *arg, double share), void *progress_arg, struct err *err)
{
    struct shard probe;
    struct ranks *ranks = NULL;
    int rc = shard_of(&probe, model_source_config(src), options->tp_size, options->pp_size, 0, 0,
                      options->layer_partition, err);
    if (rc < 0) return rc;
    ranks = calloc(1, sizeof(*ranks));
    if (!ranks) return err_set(err, ERR_NO_MEMORY, "ranks");
    ranks->options = *options;
    ranks->size = options->tp_size * options->pp_size;
    ranks->progress = progress;
    ranks->progress_arg = progress_arg;
    if (options->layer_partition) {
        for (int i = 0; i < options->pp_size; i++) ranks->layer_partition[i] = options->layer_partition[i];
        ranks->options.layer_partition = ranks->layer_partition;
    }
    ranks->all = calloc((size_t)ranks->size, sizeof(*ranks->all));
    if (!ranks->all) { rc = err_set(err, ERR_NO_MEMORY, "ranks"); goto out; }
    if ((rc = plan_ranks(ranks, src, err)) < 0) goto out;
    if ((rc = make_groups(ranks, err)) < 0) goto out;
    for (int i = 0; i < ranks->size; i++) {
        if ((rc = start_thread(ranks, i, src, err)) < 0) goto out;
    }
    if ((rc = await_opened(ranks, err)) < 0) goto out;
    describe(ranks);
    *out = ranks;
    ranks = NULL;
out:
    ranks_stop(ranks);
    return rc;
}

void ranks_stop(struct ranks *ranks)
{
    struct step_result *result;
    if (!ranks) return;
    while (ranks_wait(ranks, &result) != ERR_NOT_FOUND) continue;
    ranks->slots[atomic_load(&ranks->submitted) % (uint32_t)ranks->options.pp_size].plan = NULL;
    bump(&ranks->submitted);
    for (int i = 0; i < ranks->size && ranks->all; i++) {
        if (ranks->all[i].started) pthread_join(ranks->all[i].thread, NULL);
    }
    for (int i = 0; i < MAX_PP; i++) comm_cpu_free(ranks->tp_groups[i]);
    for (int i = 0; i < MAX_TP; i++) comm_cpu_free(ranks->pp_groups[i]);
    free(ranks->all);
    free(ranks);
}

/* ---- steps ---- */

int ranks_submit(struct ranks *ranks, const struct step_plan *plan, struct step_result *result)
{
    uint32_t submitted = atomic_load(&ranks->submitted);
    int failed = atomic_load(&ranks->failed);
    if (failed < 0) return failed;
    if (submitted - ranks->waited == (uint32_t)ranks->options.pp_size) return ERR_QUEUE_FULL;
    struct plan_slot *slot = &ranks->slots[submitted % (uint32_t)ranks->options.pp_size];
    slot->plan = plan;
    slot->result = result;
    atomic_store(&slot->ranks_left, ranks->size);
    bump(&ranks->submitted);
    return 0;
}

int ranks_wait(struct ranks *ranks, struct step_result **result)
{
    if (atomic_load(&ranks->submitted) == ranks->waited) return ERR_NOT_FOUND;
    await_change(&ranks->finished, ranks->waited);
    *result = ranks->slots[ranks->waited % (uint32_t)ranks->options.pp_size].result;
    ranks->waited++;
    int failed = atomic_load(&ranks->failed);
    (*result)->rc = failed;
    if (failed < 0) (*result)->num_rows = 0;
    return failed;
}

int ranks_execute(struct ranks *ranks, const struct step_plan *plan, struct step_result *result)
{
    struct step_result *finished;
    int rc = ranks_submit(ranks, plan, result);
    return rc < 0 ? rc : ranks_wait(ranks, &finished);
}

int32_t ranks_num_blocks(const struct ranks *ranks)
{
    return ranks->all[0].plan.num_blocks;
}

int32_t ranks_num_slots(const struct ranks *ranks)
{
    return ranks->options.pp_size;
}

int32_t ranks_max_rows(const struct ranks *ranks)
{
    return plan_max_rows(&ranks->options);
}

const struct memory_plan *ranks_memory_plan(const struct ranks *ranks, int rank)
{
    return &ranks->all[rank].plan;
}

const char *ranks_describe(const struct ranks *ranks)
{
    return ranks->description;
}
