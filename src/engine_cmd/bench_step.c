/* bench_step.c - sluice-engine bench step: what a decode step takes, through scheduler and ranks as the engine runs it.
 * bench ttft: one prompt at a time on an idle replica, until its first token.
 * A batch's prompts are computed first; then every step in which all of its sequences decode counts, from the landing of
 * the step before to its own, so that host work that the device does not hide is in it. Early prompts decode while later
 * ones are computed: contexts differ a little; their mean over the measured steps is printed and used for the floor.
 * floor = (weights but the embedding table + tokens of context x KV per token) / read bandwidth of all ranks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench_private.h"

enum { WARM_STEPS = 4, SLACK_TOKENS = 16 };
static const int64_t max_sequences = 4096;

/* ---- step ---- */

struct step_args {
    struct bench_ints batch;
    int64_t context, input_len, output_len;
};

struct step_sums {
    double *step_ms, *host_us;         /* [num] each */
    size_t num;
    double tokens, context, total_ns, busy_ns;
};

/* Prompts such that the contexts are about args->context in the middle of the measured steps. */
static int64_t input_len_of(const struct bench_run *run, const struct step_args *args, int64_t batch)
{
    if (args->input_len) return args->input_len;
    int64_t skew = batch * args->context / run->info->max_num_batched_tokens;
    int64_t len = args->context - args->output_len / 2 - WARM_STEPS - skew / 2;
    return len > 1 ? len : 1;
}

/* Steps until the first sequence, which decodes from the first prompt on, could end: all prompts, then what is measured. */
static int64_t max_tokens_of(const struct bench_run *run, const struct step_args *args, int64_t batch, int64_t input_len)
{
    int64_t room = run->info->max_num_batched_tokens - batch;     /* decodes go first */
    int64_t prefill_steps = batch * input_len / (room > 1 ? room : 1) + batch;

    return prefill_steps + args->output_len + WARM_STEPS + SLACK_TOKENS;
}

static int check_batch(const struct bench_run *run, int64_t batch, int64_t input_len, int64_t max_tokens, struct err *err)
{
    const struct offline_info *info = run->info;
    int64_t needed = batch * ((input_len + max_tokens + info->block_size - 1) / info->block_size);

    if (batch > info->max_num_seqs)
        return err_set(err, ERR_CONFIG, "--batch: %lld is above max_num_seqs %d", (long long)batch, info->max_num_seqs);
    if (input_len + max_tokens > info->max_model_len)
        return err_set(err, ERR_CONFIG, "batch %lld: contexts of up to %lld tokens, but max_model_len is %d",
                       (long long)batch, (long long)(input_len + max_tokens), info->max_model_len);
    if (needed > info->num_blocks)
        return err_set(err, ERR_CONFIG, "batch %lld: needs %lld KV blocks, there are %d (kv_cache_memory_bytes)",
                       (long long)batch, (long long)needed, info->num_blocks);
    return 0;
}

static int add_prompts(struct bench_run *run, int64_t num, int64_t input_len, int64_t max_tokens, struct err *err)
{
    token_id *ids = malloc((size_t)input_len * sizeof *ids);
    int rc = ids ? 0 : err_set(err, ERR_NO_MEMORY, "out of memory");

    for (int64_t i = 0; i < num && rc == 0; i++) {
        bench_run_prompt(run, ids, input_len);
        struct offline_request request = { .id = (uint64_t)i + 1, .prompt = ids, .num_prompt = (int32_t)input_len,
                                           .max_tokens = (int32_t)max_tokens };
        rc = offline_add(run->replica, &request);
        if (rc < 0) err_set(err, rc, "request of %lld tokens refused: %s", (long long)input_len, err_name(rc));
    }
    free(ids);
    return rc;
}

/* Sequences of all plans in flight together: a pipeline splits the batch. */
static int64_t decoding_in_turn(const int32_t *seqs, int32_t num_slots)
{
    int64_t sum = 0;

    for (int32_t i = 0; i < num_slots; i++) sum += seqs[i];
    return sum;
}

/* Steps of this batch until `wanted` full ones were measured. */
static int measure(struct bench_run *run, int64_t batch, int64_t wanted, struct step_sums *sums, struct err *err)
{
    int32_t micro_batches = run->config.pipeline_parallel_size > 1 && batch > 1 ? (int32_t)run->config.pipeline_parallel_size : 1;
    int32_t recent[MAX_PP] = { 0 };
    int64_t full = 0;
    struct offline_step step;
    int rc;

    while (sums->num < (size_t)wanted && (rc = offline_step(run->replica, &step, err)) == 1) {
        bool decode = step.num_decode_seqs == step.num_seqs;
        memmove(recent + 1, recent, sizeof recent - sizeof recent[0]);
        recent[0] = decode ? step.num_seqs : 0;
        full = decoding_in_turn(recent, micro_batches) >= batch ? full + 1 : 0;
        if (full <= WARM_STEPS) continue;
        sums->step_ms[sums->num] = (double)step.since_ns / 1e6;
        sums->host_us[sums->num++] = (double)step.host_ns / 1e3;
        sums->tokens += step.num_seqs;
        sums->context += (double)step.context_tokens;
        sums->total_ns += (double)step.since_ns;
        sums->busy_ns += (double)step.busy_ns;
    }
    if (rc < 0) return rc;
    if (sums->num < (size_t)wanted)
        return err_set(err, ERR_INTERNAL, "batch %lld: only %zu full steps", (long long)batch, sums->num);
    return 0;
}

static int print_batch(const struct bench_run *run, int64_t batch, int64_t input_len, struct step_sums *sums, struct err *err)
{
    const struct offline_info *info = run->info;
    double steps = (double)sums->num, context = sums->context / steps;
    double bytes = (double)info->step_weights_bytes + context * (double)info->kv_bytes_per_token;
    double floor_ms = run->bandwidth_gbs > 0 ? bytes / run->bandwidth_gbs / 1e6 : NAN;
    struct bench_stats ms, host;
    struct bench_line line;

    bench_stats_of(&ms, sums->step_ms, sums->num);
    bench_stats_of(&host, sums->host_us, sums->num);
    bench_run_line(run, &line);
    bench_line_int(&line, "batch", batch);
    bench_line_int(&line, "input_len", input_len);
    bench_line_real(&line, "context", context / (sums->tokens / steps));
    bench_line_int(&line, "steps", (int64_t)sums->num);
    bench_line_real(&line, "step_ms", ms.median);
    bench_line_real(&line, "step_ms_p10", ms.p10);
    bench_line_real(&line, "step_ms_p90", ms.p90);
    bench_line_real(&line, "host_us", host.median);
    bench_line_real(&line, "host_us_p90", host.p90);
    bench_line_real(&line, "tokens_per_s", sums->tokens / (sums->total_ns / 1e9));
    bench_line_int(&line, "step_bytes", (int64_t)bytes);
    bench_line_real(&line, "step_gbs", bytes / ms.median / 1e6);
    bench_line_real(&line, "bandwidth_gbs", run->bandwidth_gbs > 0 ? run->bandwidth_gbs : NAN);
    bench_line_real(&line, "floor_ms", floor_ms);
    bench_line_real(&line, "floor_pct", 100 * floor_ms / ms.median);
    bench_line_real(&line, "idle_pct", sums->busy_ns > 0 ? 100 * (1 - sums->busy_ns / sums->total_ns) : NAN);
    fprintf(stderr, "batch %4lld, context %6.0f: step %8.3f ms (p10 %.3f, p90 %.3f), host %.0f us, %.0f tok/s",
            (long long)batch, context / (sums->tokens / steps), ms.median, ms.p10, ms.p90, host.median,
            sums->tokens / (sums->total_ns / 1e9));
    if (run->bandwidth_gbs > 0) fprintf(stderr, ", floor %.3f ms (%.0f %%)", floor_ms, 100 * floor_ms / ms.median);
    fputc('\n', stderr);
    return bench_line_end(&line, stdout, err);
}

static int run_batch(struct bench_run *run, const struct step_args *args, int64_t batch, struct err *err)
{
    int64_t input_len = input_len_of(run, args, batch);
    int64_t max_tokens = max_tokens_of(run, args, batch, input_len);
    struct step_sums sums = { .step_ms = calloc((size_t)args->output_len, sizeof(double)),
                              .host_us = calloc((size_t)args->output_len, sizeof(double)) };
    int rc = sums.step_ms && sums.host_us ? 0 : err_set(err, ERR_NO_MEMORY, "out of memory");

    if (rc == 0) rc = check_batch(run, batch, input_len, max_tokens, err);
    if (rc == 0) rc = add_prompts(run, batch, input_len, max_tokens, err);
    if (rc == 0) rc = measure(run, batch, args->output_len, &sums, err);
    if (rc == 0) rc = print_batch(run, batch, input_len, &sums, err);
    if (rc == 0) rc = offline_drain(run->replica, err);
    free(sums.step_ms);
    free(sums.host_us);
    return rc;
}

int bench_step(int argc, char **argv)
{
    struct bench_run run = { .name = "step", .argc = argc, .argv = argv,
        .usage = "Decode steps of batches of random prompts: greedy, end ids ignored. One line of JSON per batch." };
    struct step_args args = { .batch = { 4, { 1, 8, 64, 256 } }, .context = 1024, .output_len = 64 };
    const struct bench_option options[] = {
        { "--batch", BENCH_INTS, &args.batch, 1, 4096, "sequences that decode together (1,8,64,256)" },
        { "--context", BENCH_INT, &args.context, 2, 1 << 24, "mean context of the measured steps (1024)" },
        { "--input-len", BENCH_INT, &args.input_len, 1, 1 << 24, "tokens of each prompt, instead of --context" },
        { "--output-len", BENCH_INT, &args.output_len, 1, 1 << 20, "steps that are measured (64)" },
        { "--bandwidth-gbs", BENCH_REAL, &run.bandwidth_gbs, 0, 1e9, "of all ranks, for the floor; of GPUs by name, else measured" },
    };
    struct err err = { 0 };

    run.options = options;
    run.num_options = sizeof options / sizeof options[0];
    int rc = bench_run_open(&run, &max_sequences, &err);
    if (rc == 0) bench_run_find_bandwidth(&run);
    for (int i = 0; i < args.batch.n && rc == 0; i++) rc = run_batch(&run, &args, args.batch.items[i], &err);
    return bench_run_close(&run, rc, &err);
}

/* ---- ttft ---- */

/* From handing the prompt over to its first token. */
static int time_one(struct bench_run *run, int64_t len, double *ms, struct err *err)
{
    struct offline_step step;
    int rc, steps = 0;

    int64_t began_ns = clock_now_ns();
    if ((rc = add_prompts(run, 1, len, 1, err)) < 0) return rc;
    while ((rc = offline_step(run->replica, &step, err)) == 1 && !step.num_events) steps++;
    if (rc < 0) return rc;
    *ms = (double)(step.landed_ns - began_ns) / 1e6;
    return offline_drain(run->replica, err);
}

static int run_len(struct bench_run *run, int64_t len, int64_t repeat, struct err *err)
{
    double *ms = calloc((size_t)repeat, sizeof *ms), ignored;
    struct bench_stats stats;
    struct bench_line line;
    int rc = ms ? 0 : err_set(err, ERR_NO_MEMORY, "out of memory");

    if (rc == 0 && len >= run->info->max_model_len)
        rc = err_set(err, ERR_CONFIG, "--input-len: %lld, but max_model_len is %d", (long long)len, run->info->max_model_len);
    if (rc == 0) rc = time_one(run, len, &ignored, err);
    for (int64_t i = 0; i < repeat && rc == 0; i++) rc = time_one(run, len, &ms[i], err);
    if (rc == 0) {
        bench_stats_of(&stats, ms, (size_t)repeat);
        bench_run_line(run, &line);
        bench_line_int(&line, "input_len", len);
        bench_line_int(&line, "repeat", repeat);
        bench_line_real(&line, "ttft_ms", stats.median);
        bench_line_real(&line, "ttft_ms_min", stats.min);
        bench_line_real(&line, "ttft_ms_max", stats.max);
        bench_line_real(&line, "prefill_tokens_per_s", (double)len / (stats.median / 1e3));
        fprintf(stderr, "prompt of %6lld: first token after %.2f ms (%.2f to %.2f), %.0f tok/s\n", (long long)len,
                stats.median, stats.min, stats.max, (double)len / (stats.median / 1e3));
        rc = bench_line_end(&line, stdout, err);
    }
    free(ms);
    return rc;
}

int bench_ttft(int argc, char **argv)
{
    struct bench_run run = { .name = "ttft", .argc = argc, .argv = argv,
        .usage = "Time from handing over one random prompt to its first token, on an idle replica. The first is not counted." };
    struct bench_ints lens = { 3, { 128, 1024, 8192 } };
    int64_t repeat = 5;
    const struct bench_option options[] = {
        { "--input-len", BENCH_INTS, &lens, 1, 1 << 24, "tokens of the prompt (128,1024,8192)" },
        { "--repeat", BENCH_INT, &repeat, 1, 10000, "different prompts of each length (5)" },
    };
    struct err err = { 0 };

    run.options = options;
    run.num_options = sizeof options / sizeof options[0];
    int rc = bench_run_open(&run, &max_sequences, &err);
    for (int i = 0; i < lens.n && rc == 0; i++) rc = run_len(&run, lens.items[i], repeat, &err);
    return bench_run_close(&run, rc, &err);
}
