/* ranks.c - one thread per rank, fed through num_slots plan slots.
 * `submitted` counts plans given, `finished` plans that every rank is done with; both only grow (and wrap), so slot
 * i % num_slots belongs to plan i, and plans finish in the order of submission because every rank takes them in order.
 * The plan that would come after `ending` was set tells the threads to end.
 * The first failure wins `claimed`, writes down who and where, then sets `failed` and aborts the communicators; the
 * remaining plans are only counted off. The engine thread never waits for ever: when a plan does not end in time it
 * claims the failure for the rank that has not finished and does not wait for others (that one holds them all up), and
 * gives the threads up (`abandoned`). */
#include <sluice/rank.h>

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/futex.h"
#include "base/log.h"
#include "memory_plan.h"
#include "model_runner.h"

enum {
    STALL_TIMEOUT_MS = 300000,                      /* the largest prefill on a slow CPU, with room */
    COMM_TIMEOUT_MS = 3600000,                      /* behind that: the engine thread aborts a stalled step */
    SPINS = 2000,
    OVERLAP_SLOTS = 2,                              /* one runs, one waits for it */
    GRACE_MS = 1000,                                /* for the threads to end after a failure */
};
static const int64_t SLEEP_NS = 250000000;          /* a sleeper looks again this often, wake or not */
static const int64_t LATE_NS = 1000000000;          /* it slept longer by this: the whole process stood still */
static_assert((int)MAX_STAGES == (int)MAX_PP, "a time for every stage");

struct plan_slot {
    const struct step_plan *plan;
    struct step_result *result;
    int64_t submitted_ns;
    uint64_t step;
    atomic_int ranks_left;
};

struct rank {
    struct ranks *ranks;
    pthread_t thread;
    bool started;
    struct model_runner_args args;
    struct model_runner runner;
    _Atomic uint32_t done;                          /* plans */
    uint64_t step;                                  /* launched last */
    struct err err;                                 /* of opening */
};

struct ranks {
    struct ranks_options options;
    int size;                                       /* tp_size * pp_size */
    int num_slots;                                  /* plans in flight */
    int spins;                                      /* before a wait sleeps; 0 when threads outnumber the cores */
    const struct comm_ops *comm_ops;
    struct rank *all;                               /* [size] */
    struct rank_plan *plans;                        /* [size] */
    struct comm_group *tp_groups[MAX_PP];           /* one per stage */
    struct comm_group *pp_groups[MAX_TP];           /* one per tp rank */
    char description[160];
    int layer_partition[MAX_PP];

    struct plan_slot slots[MAX_PP];
    _Atomic uint32_t submitted, finished;           /* futex words */
    uint32_t waited;                                /* engine thread only */
    _Atomic uint32_t opened;                        /* ranks whose opening ended, well or not */
    atomic_bool ending;
    atomic_bool claimed;                            /* a failure is being written down */
    atomic_int failed;                              /* 0 or the first error; then failure is const */
    char failure[160];

    uint64_t layers_begun;                          /* atomic; where options name no other place */
    int64_t longest_ns;                             /* engine thread only: of one plan */
    bool abandoned;                                 /* some thread hangs */

    void (*progress)(void *arg, double share);
    void *progress_arg;
    uint64_t load_bytes;
    _Atomic uint64_t loaded_bytes;
};

/* ---- rank threads ---- */

static struct plan_slot *slot_of(struct ranks *ranks, uint32_t plan)
{
    return &ranks->slots[plan % (uint32_t)ranks->num_slots];
}

static void await_change(const struct ranks *ranks, _Atomic uint32_t *word, uint32_t from)
{
    while (atomic_load(word) == from) futex_wait(word, from, ranks->spins, SLEEP_NS);
}

static void bump(_Atomic uint32_t *word)
{
    atomic_fetch_add(word, 1);
    futex_wake_all(word);
}

/* ---- failure ---- */

/* Any thread. True for the first only, which then has to call set_failed. */
static bool claim_failure(struct ranks *ranks)
{
    return !atomic_exchange(&ranks->claimed, true);
}

static void set_failed(struct ranks *ranks, int rc)
{
    atomic_store(&ranks->failed, rc);
    for (int i = 0; i < ranks->options.pp_size; i++) {
        if (ranks->tp_groups[i]) ranks->comm_ops->abort(ranks->comm_ops->end(ranks->tp_groups[i], 0));
    }
    for (int i = 0; i < ranks->options.tp_size; i++) {
        if (ranks->pp_groups[i]) ranks->comm_ops->abort(ranks->comm_ops->end(ranks->pp_groups[i], 0));
    }
}

static void record_failure(struct ranks *ranks, int i, uint64_t step, int rc, const char *what)
{
    const struct shard *shard = &ranks->plans[i].shard;
    snprintf(ranks->failure, sizeof(ranks->failure), "rank %d (stage %d, tp %d) %s at step %llu: %s", i,
             shard->pp_stage, shard->tp_rank, what, (unsigned long long)step, err_name(rc));
    log_error("rank_failed", "%s", ranks->failure);
}

static bool waits_for_others(const struct ranks *ranks, const struct rank *rank)
{
    const struct comm *tp_comm = rank->args.tp_comm, *pp_comm = rank->args.pp_comm;
    return (tp_comm && ranks->comm_ops->waiting(tp_comm)) || (pp_comm && ranks->comm_ops->waiting(pp_comm));
}

/* Who holds plan number `plan` up: the first rank that has not done it and computes; -1 when all have. */
static int find_stalled(const struct ranks *ranks, uint32_t plan, const struct rank *except)
{
    int waiting = -1;
    for (int i = ranks->size - 1; i >= 0; i--) {
        if (atomic_load(&ranks->all[i].done) == plan && &ranks->all[i] != except) waiting = i;
    }
    for (int i = 0; i < ranks->size; i++) {
        const struct rank *rank = &ranks->all[i];
        if (rank != except && atomic_load(&rank->done) == plan && !waits_for_others(ranks, rank)) return i;
    }
    return waiting;
}

/* On the rank's thread. ERR_ENDED without an abort before it: another rank did not come in time. */
static void rank_failed(struct rank *rank, uint64_t step, uint32_t plan, int rc)
{
    struct ranks *ranks = rank->ranks;
    if (!claim_failure(ranks)) return;
    int self = (int)(rank - ranks->all), stalled = rc == ERR_ENDED ? find_stalled(ranks, plan, rank) : -1;
    if (stalled >= 0) record_failure(ranks, stalled, step, rc, "stalled");
    else record_failure(ranks, self, step, rc, "failed");
    set_failed(ranks, rc);
}

static int64_t stall_limit_ns(const struct ranks *ranks)
{
    int64_t least = ranks->options.stall_timeout_ms * 1000000, limit = ranks->longest_ns * RANKS_STALL_FACTOR;
    return limit > least ? limit : least;
}

/* On the engine thread, when the oldest plan did not end in time. */
static void give_up(struct ranks *ranks)
{
    const struct plan_slot *slot = slot_of(ranks, ranks->waited);
    int stalled = find_stalled(ranks, ranks->waited, NULL);
    if (stalled < 0) return;                        /* just now finished */
    if (claim_failure(ranks)) {
        record_failure(ranks, stalled, slot->step, ERR_ENDED, "stalled");
        set_failed(ranks, ERR_ENDED);
    } else if (atomic_load(&ranks->failed) == 0) return;       /* a rank is just telling its own */
    ranks->abandoned = true;
}

static void launch_plan(struct rank *rank, uint32_t plan)
{
    struct plan_slot *slot = slot_of(rank->ranks, plan);
    if (atomic_load(&rank->ranks->failed) != 0) return;
    int rc = model_runner_launch(&rank->runner, slot->plan, slot->result);
    rank->step = slot->step;
    if (rc < 0) rank_failed(rank, slot->step, plan, rc);
}

static void collect_plan(struct rank *rank, uint32_t plan)
{
    struct ranks *ranks = rank->ranks;
    struct plan_slot *slot = slot_of(ranks, plan);
    if (atomic_load(&ranks->failed) == 0) {
        int rc = model_runner_collect(&rank->runner, slot->result);
        if (rc < 0) rank_failed(rank, slot->step, plan, rc);
    }
    atomic_store(&rank->done, plan + 1);
    if (atomic_fetch_sub(&slot->ranks_left, 1) == 1) bump(&ranks->finished);
}

/* A device that takes the next step while this one runs: waits for a new plan or the end of the oldest, whichever is first. */
static bool plan_came(struct rank *rank, uint32_t launched)
{
    struct ranks *ranks = rank->ranks;
    while (atomic_load(&ranks->submitted) == launched) {
        if (rank->runner.ops->done(rank->runner.backend) || atomic_load(&ranks->failed) != 0) return false;
        cpu_relax();
    }
    return true;
}

/* No plan is in flight here: waits for one, and lets the device work for itself meanwhile. */
static void await_plan(struct rank *rank, uint32_t launched, bool *idle_left)
{
    struct ranks *ranks = rank->ranks;
    int64_t quiet_ns = clock_now_ns() + (int64_t)RANKS_IDLE_MS * 1000000;
    while (*idle_left && atomic_load(&ranks->submitted) == launched && atomic_load(&ranks->failed) == 0) {
        int64_t left_ns = quiet_ns - clock_now_ns();
        if (left_ns > 0) {
            futex_wait(&ranks->submitted, launched, ranks->spins, left_ns);
            continue;
        }
        int rc = model_runner_idle(&rank->runner);
        if (rc < 0) rank_failed(rank, rank->step, launched, rc);
        *idle_left = rc > 0;
    }
    await_change(ranks, &ranks->submitted, launched);
}

static void *rank_main(void *arg)
{
    struct rank *rank = arg;
    struct ranks *ranks = rank->ranks;
    int rc = model_runner_open(&rank->runner, &rank->args, &rank->err);
    if (rc < 0 && claim_failure(ranks)) set_failed(ranks, rc);       /* told by ranks_start */
    bump(&ranks->opened);

    /* ending is set when nothing is in flight any more, and then one more plan is "submitted" */
    uint32_t launched = 0, collected = 0, depth = (uint32_t)ranks->options.ops->steps_in_flight;
    bool idle_left = rc == 0;
    for (;;) {
        if (launched == collected) {
            await_plan(rank, launched, &idle_left);
            if (atomic_load(&ranks->ending) && atomic_load(&ranks->submitted) == launched + 1) break;
        } else if (launched - collected == depth || !plan_came(rank, launched)) {
            collect_plan(rank, collected++);
            continue;
        }
        launch_plan(rank, launched++);
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
        rc = ranks->comm_ops->new_group(&ranks->tp_groups[i], options->tp_size, COMM_TIMEOUT_MS, err);
        if (rc == 0 && ranks->spins == 0 && !options->ops->device_memory) comm_cpu_no_spin(ranks->tp_groups[i]);
    }
    for (int i = 0; i < options->tp_size && options->pp_size > 1 && rc == 0; i++) {
        rc = ranks->comm_ops->new_group(&ranks->pp_groups[i], options->pp_size, COMM_TIMEOUT_MS, err);
        if (rc == 0 && ranks->spins == 0 && !options->ops->device_memory) comm_cpu_no_spin(ranks->pp_groups[i]);
    }
    return rc;
}

static void log_plans(const struct ranks *ranks)
{
    char line[RANK_LINE_MAX];
    for (int i = -1; i <= ranks->size; i++) {
        ranks_plan_line(line, ranks->plans, ranks->size, i);
        log_event(ranks->size > 1 ? LOG_INFO : LOG_DEBUG, "rank_plan", "%s", line);
    }
}

/* The terms of rank 0's plan, and what its device says is in use: before the ranks serve, and when they end. */
static void log_memory(const struct ranks *ranks, const char *when)
{
    const struct memory_plan *plan = &ranks->plans[0].memory;
    uint64_t total = 0, available = 0;
    if (!ranks->options.ops->device_memory) return;
    if (ranks->options.ops->device_memory(ranks->options.first_device, &total, &available, NULL) < 0) return;
    double mib = 1 << 20, used = (double)(total - available) / mib, planned = (double)plan->total / mib;
    log_info("memory_plan", "%s: weights %.0f + activations %.0f + workspace %.0f + rope table %.0f + comm %.0f + context %.0f + "
             "library %.0f + kv %.0f (%d blocks) = %.0f MiB planned of %.0f, %.0f kept free; the device reports %.0f in use, %+.2f %%",
             when, (double)plan->weights / mib, (double)plan->activations / mib, (double)plan->workspace / mib,
             (double)plan->rope_table / mib, (double)plan->comm / mib, (double)plan->context / mib, (double)plan->library / mib,
             (double)plan->kv / mib, (int)plan->num_blocks, planned, (double)total / mib, (double)plan->headroom_bytes / mib, used,
             100 * (used - planned) / planned);
}

static int start_thread(struct ranks *ranks, int i, const struct model_source *src, struct err *err)
{
    struct rank *rank = &ranks->all[i];
    struct shard shard = ranks->plans[i].shard;
    char name[16];
    rank->ranks = ranks;
    rank->args = (struct model_runner_args){
        .src = src, .options = &ranks->options, .plan = &ranks->plans[i].memory, .shard = shard, .device = ranks->options.first_device + i,
        .comm_ops = ranks->comm_ops, .now_ns = ranks->options.now_ns,
        .tp_comm = shard.tp_size > 1 ? ranks->comm_ops->end(ranks->tp_groups[shard.pp_stage], shard.tp_rank) : NULL,
        .pp_comm = shard.pp_size > 1 ? ranks->comm_ops->end(ranks->pp_groups[shard.tp_rank], shard.pp_stage) : NULL,
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
        await_change(ranks, &ranks->opened, seen);
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

/* What the devices have; the first call on each makes the driver's context, so that its share is known. */
static int plan_memory(struct ranks *ranks, const struct model_config *config, struct err *err)
{
    const struct ranks_options *options = &ranks->options;
    uint64_t total = 0, least = UINT64_MAX, device_free[MAX_RANKS];
    int rc;
    if (!options->ops->device_memory) return ranks_plan(ranks->plans, config, options, host_memory_bytes(), NULL, err);
    for (int i = 0; i < ranks->size; i++) {
        if ((rc = options->ops->device_memory(options->first_device + i, &total, &device_free[i], err)) < 0) return rc;
        if (total < least) least = total;
    }
    return ranks_plan(ranks->plans, config, options, least, device_free, err);
}

int ranks_start(struct ranks **out, const struct model_source *src, const struct ranks_options *options,
                void (*progress)(void *arg, double share), void *progress_arg, struct err *err)
{
    const struct model_config *config = model_source_config(src);
    struct shard probe;
    struct ranks *ranks = NULL;
    int rc = shard_of(&probe, config, options->tp_size, options->pp_size, 0, 0,
                      options->layer_partition, err);
    if (rc < 0) return rc;
    ranks = calloc(1, sizeof(*ranks));
    if (!ranks) return err_set(err, ERR_NO_MEMORY, "ranks");
    ranks->options = *options;
    ranks->options.src = src;
    if (options->stall_timeout_ms == 0) ranks->options.stall_timeout_ms = STALL_TIMEOUT_MS;
    if (!options->layers_begun) ranks->options.layers_begun = &ranks->layers_begun;
    ranks->comm_ops = options->comm_ops ? options->comm_ops : &comm_cpu_ops;
    ranks->size = options->tp_size * options->pp_size;
    ranks->num_slots = ranks_overlaps(ranks) ? OVERLAP_SLOTS : options->pp_size;
    ranks->spins = ranks->size < sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 0;
    ranks->progress = progress;
    ranks->progress_arg = progress_arg;
    if (options->layer_partition) {
        for (int i = 0; i < options->pp_size; i++) ranks->layer_partition[i] = options->layer_partition[i];
        ranks->options.layer_partition = ranks->layer_partition;
    }
    ranks->all = calloc((size_t)ranks->size, sizeof(*ranks->all));
    ranks->plans = calloc((size_t)ranks->size, sizeof(*ranks->plans));
    if (!ranks->all || !ranks->plans) { rc = err_set(err, ERR_NO_MEMORY, "ranks"); goto out; }
    if ((rc = plan_memory(ranks, config, err)) < 0) goto out;
    log_plans(ranks);
    for (int i = 0; i < ranks->size; i++) ranks->load_bytes += model_load_bytes(config, &ranks->plans[i].shard);
    if ((rc = make_groups(ranks, err)) < 0) goto out;
    for (int i = 0; i < ranks->size; i++) {
        if ((rc = start_thread(ranks, i, src, err)) < 0) goto out;
    }
    if ((rc = await_opened(ranks, err)) < 0) goto out;
    describe(ranks);
    log_memory(ranks, "ready");
    *out = ranks;
    ranks = NULL;
out:
    ranks_stop(ranks);
    return rc;
}

/* False: a thread still hangs after GRACE_MS. Only a failure makes it worth a doubt. */
static bool join_all(struct ranks *ranks)
{
    struct timespec until;
    bool joined = true;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += GRACE_MS / 1000;
    for (int i = 0; i < ranks->size && ranks->all; i++) {
        if (!ranks->all[i].started) continue;
        if (!ranks->abandoned) pthread_join(ranks->all[i].thread, NULL);
        else joined = pthread_timedjoin_np(ranks->all[i].thread, NULL, &until) == 0 && joined;
    }
    return joined;
}

void ranks_stop(struct ranks *ranks)
{
    struct step_result *result;
    if (!ranks) return;
    while (ranks_wait(ranks, &result) != ERR_NOT_FOUND) continue;
    if (ranks->description[0]) log_memory(ranks, "ending");
    atomic_store(&ranks->ending, true);
    bump(&ranks->submitted);
    if (!join_all(ranks)) return;
    for (int i = 0; i < MAX_PP; i++) ranks->comm_ops->free_group(ranks->tp_groups[i]);
    for (int i = 0; i < MAX_TP; i++) ranks->comm_ops->free_group(ranks->pp_groups[i]);
    free(ranks->plans);
    free(ranks->all);
    free(ranks);
}

/* ---- steps ---- */

int ranks_submit(struct ranks *ranks, const struct step_plan *plan, struct step_result *result)
{
    uint32_t submitted = atomic_load(&ranks->submitted);
    int failed = atomic_load(&ranks->failed);
    if (failed < 0) return failed;
    if (submitted - ranks->waited == (uint32_t)ranks->num_slots) return ERR_QUEUE_FULL;
    struct plan_slot *slot = slot_of(ranks, submitted);
    slot->plan = plan;
    slot->result = result;
    slot->step = plan->step;
    slot->submitted_ns = clock_now_ns();
    result->num_stages = ranks->options.pp_size;
    atomic_store(&slot->ranks_left, ranks->size);
    bump(&ranks->submitted);
    return 0;
}

/* Until the oldest plan is finished, or given up. */
static void await_finished(struct ranks *ranks)
{
    const struct plan_slot *slot = slot_of(ranks, ranks->waited);
    int64_t moved_ns = clock_now_ns();
    uint64_t seen = 0;
    while (atomic_load(&ranks->finished) == ranks->waited && !ranks->abandoned) {
        int64_t before_ns = clock_now_ns();
        futex_wait(&ranks->finished, ranks->waited, ranks->spins, SLEEP_NS);
        int64_t now_ns = clock_now_ns();
        uint64_t layers = __atomic_load_n(ranks->options.layers_begun, __ATOMIC_RELAXED);
        if (now_ns - before_ns > SLEEP_NS + LATE_NS || layers != seen) moved_ns = now_ns;
        else if (now_ns - moved_ns > stall_limit_ns(ranks)) give_up(ranks);
        seen = layers;
    }
    int64_t took_ns = clock_now_ns() - slot->submitted_ns;
    if (took_ns > ranks->longest_ns) ranks->longest_ns = took_ns;
}

int ranks_wait(struct ranks *ranks, struct step_result **result)
{
    if (atomic_load(&ranks->submitted) == ranks->waited) return ERR_NOT_FOUND;
    await_finished(ranks);
    *result = slot_of(ranks, ranks->waited)->result;
    ranks->waited++;
    int failed = atomic_load(&ranks->failed);
    if (ranks->abandoned) return failed;            /* a rank that hangs may yet write the result */
    (*result)->rc = failed;
    if (failed < 0) (*result)->num_rows = 0;
    return failed;
}

bool ranks_finished(const struct ranks *ranks)
{
    return atomic_load(&ranks->finished) != ranks->waited || atomic_load(&ranks->submitted) == ranks->waited;
}

int ranks_execute(struct ranks *ranks, const struct step_plan *plan, struct step_result *result)
{
    struct step_result *finished;
    int rc = ranks_submit(ranks, plan, result);
    return rc < 0 ? rc : ranks_wait(ranks, &finished);
}

int32_t ranks_num_blocks(const struct ranks *ranks)
{
    return ranks->plans[0].memory.num_blocks;
}

int32_t ranks_num_slots(const struct ranks *ranks)
{
    return ranks->num_slots;
}

bool ranks_overlaps(const struct ranks *ranks)
{
    const struct ranks_options *options = &ranks->options;
    return options->overlap && options->pp_size == 1 && (options->ops->steps_in_flight > 1 || options->tp_size == 1);
}

int32_t ranks_max_rows(const struct ranks *ranks)
{
    return plan_max_rows(&ranks->options);
}

const struct memory_plan *ranks_memory_plan(const struct ranks *ranks, int rank)
{
    return &ranks->plans[rank].memory;
}

uint64_t ranks_free_memory(const struct ranks *ranks)
{
    const struct ranks_options *options = &ranks->options;
    uint64_t least = UINT64_MAX, total = 0, available = 0;

    if (!options->ops->device_memory) return host_memory_bytes();
    for (int i = 0; i < ranks->size; i++) {
        if (options->ops->device_memory(options->first_device + i, &total, &available, NULL) < 0) return 0;
        if (available < least) least = available;
    }
    return least;
}

const char *ranks_describe(const struct ranks *ranks)
{
    return ranks->description;
}

int ranks_error(const struct ranks *ranks)
{
    return atomic_load(&ranks->failed);
}

const char *ranks_failure(const struct ranks *ranks)
{
    return atomic_load(&ranks->failed) < 0 ? ranks->failure : "";
}
