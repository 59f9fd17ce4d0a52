#include "replay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sluice/ipc.h>

/* ---- dump ---- */

static void dump_plan(const void *payload, FILE *out)
{
    struct trace_plan plan;

    memcpy(&plan, payload, sizeof plan);
    if (!plan.step) {
        fprintf(out, "plan none: %u waiting, %u running, %u blocks used\n", plan.waiting, plan.running,
                plan.blocks_used);
        return;
    }
    fprintf(out, "plan %llu: %d seqs, %d tokens, %d rows; %u waiting, %u running, %u blocks used%s; hash %016llx\n",
            (unsigned long long)plan.step, plan.num_seqs, plan.num_tokens, plan.num_rows, plan.waiting, plan.running,
            plan.blocks_used, plan.throttled ? ", throttled" : "", (unsigned long long)plan.hash);
    for (int32_t b = 0; b < plan.num_seqs; b++) {
        struct trace_seq seq;
        memcpy(&seq, (const char *)payload + sizeof plan + (size_t)b * sizeof seq, sizeof seq);
        fprintf(out, "  %llu: %d + %d\n", (unsigned long long)seq.id, seq.position, seq.num_tokens);
    }
}

static void dump_commit(const void *payload, FILE *out)
{
    struct trace_commit commit;

    memcpy(&commit, payload, sizeof commit);
    fprintf(out, "commit %llu: %.3f ms, tokens", (unsigned long long)commit.step, commit.step_ms);
    for (int32_t i = 0; i < commit.num_rows; i++) {
        struct trace_row row;
        memcpy(&row, (const char *)payload + sizeof commit + (size_t)i * sizeof row, sizeof row);
        fprintf(out, row.bad ? " bad" : " %d", row.token);
    }
    fputc('\n', out);
}

static void dump_submit(const struct trace_record *record, const void *payload, int32_t vocab_size, FILE *out)
{
    struct ipc_limits limits = { .vocab_size = vocab_size, .max_model_len = INT32_MAX };
    struct engine_request req;
    struct err err = { 0 };

    if (ipc_get_submit(payload, record->len, &limits, &req, &err) < 0) {
        fprintf(out, "submit, broken: %s\n", err.message);
        return;
    }
    fprintf(out, "submit %llu: group %llu, %u prompt and %u other tokens, at most %d, priority %d\n",
            (unsigned long long)req.id, (unsigned long long)req.group, req.num_prompt, req.num_output, req.max_tokens,
            req.priority);
}

static void dump_record(const struct trace_view *view, const struct trace_record *record, const void *payload,
                        FILE *out)
{
    struct trace_note note;
    struct trace_start start;

    switch ((enum trace_type)record->type) {
    case TRACE_START:
        memcpy(&start, payload, sizeof start);
        fprintf(out, "start after step %llu\n", (unsigned long long)start.step);
        return;
    case TRACE_ABORT:
    case TRACE_REFUSED:
        memcpy(&note, payload, sizeof note);
        fprintf(out, "%s %llu\n", record->type == TRACE_ABORT ? "abort" : "refused", (unsigned long long)note.id);
        return;
    case TRACE_SUBMIT: dump_submit(record, payload, view->head.options.vocab_size, out); return;
    case TRACE_PLAN: dump_plan(payload, out); return;
    case TRACE_COMMIT: dump_commit(payload, out); return;
    case TRACE_LOST: fputs("lost: too large for the ring\n", out); return;
    case TRACE_PAD: return;
    }
}

int trace_dump(struct trace_view *view, FILE *out, struct err *err)
{
    struct trace_record record;
    const void *payload;
    int rc;

    while ((rc = trace_view_next(view, &record, &payload, err)) == 1) dump_record(view, &record, payload, out);
    return rc;
}

/* ---- replay ---- */

struct replay {
    struct scheduler s;
    bool started;
    struct submission_limits limits;
    struct result_row *rows;           /* [max_num_seqs] */
    const struct step_plan **plans;    /* [num_plans] in flight */
    struct replay_result *result;
    struct err *err;
};

static int start(struct replay *r, const struct trace_view *view, const void *payload)
{
    struct scheduler_options o = view->head.options;
    static const uint8_t no_secret[32], no_digest[32];
    struct trace_start begin;
    int rc;

    memcpy(&begin, payload, sizeof begin);
    if (r->started) scheduler_release(&r->s);
    r->started = false;
    free(r->rows);
    free(r->plans);
    r->rows = NULL;
    r->plans = NULL;
    if ((rc = scheduler_init(&r->s, &o, r->err)) < 0) return rc;
    r->started = true;
    r->s.step = begin.step;
    r->limits = (struct submission_limits){ o.max_model_len, o.block_size, prefix_root(no_secret, no_digest),
                                            o.enable_prefix_caching, !o.enable_prefix_caching };
    r->rows = calloc((size_t)r->s.options.max_num_seqs, sizeof *r->rows);
    r->plans = calloc((size_t)o.num_plans, sizeof *r->plans);
    return r->rows && r->plans ? 0 : err_set(r->err, ERR_NO_MEMORY, "replay: out of memory");
}

static int submit(struct replay *r, const struct trace_record *record, const void *payload)
{
    struct ipc_limits limits = { .vocab_size = r->s.options.vocab_size, .max_model_len = INT32_MAX };
    struct engine_request req;
    struct submission *sub;
    int rc;

    if ((rc = ipc_get_submit(payload, record->len, &limits, &req, r->err)) < 0) return rc;
    if (!(sub = submission_new(&req, &r->limits))) return err_set(r->err, ERR_NO_MEMORY, "replay: out of memory");
    scheduler_add(&r->s, sub);
    r->result->submissions++;
    return 0;
}

static int note(struct replay *r, enum trace_type type, const void *payload)
{
    struct trace_note recorded;

    memcpy(&recorded, payload, sizeof recorded);
    enum submission_kind kind = type == TRACE_ABORT ? SUBMISSION_ABORT : SUBMISSION_REFUSED;
    struct submission *sub = submission_note(kind, recorded.id, (int)recorded.err_code);
    if (!sub) return err_set(r->err, ERR_NO_MEMORY, "replay: out of memory");
    scheduler_add(&r->s, sub);
    return 0;
}

static int differs(struct replay *r, const struct trace_plan *recorded, const char *what, long long was, long long is)
{
    return err_set(r->err, ERR_PROTOCOL, "step %llu is planned differently: %s was %lld, is %lld",
                   (unsigned long long)recorded->step, what, was, is);
}

static int compare(struct replay *r, const struct trace_plan *recorded, const void *seqs, const struct step_plan *plan)
{
    const struct batch *batch = &r->s.batches[plan->micro_batch];

    if (plan->num_seqs != recorded->num_seqs)
        return differs(r, recorded, "number of sequences", recorded->num_seqs, plan->num_seqs);
    for (int32_t b = 0; b < plan->num_seqs; b++) {
        struct trace_seq was;
        memcpy(&was, (const char *)seqs + (size_t)b * sizeof was, sizeof was);
        uint64_t id = batch->seqs[b]->id;
        int32_t end = plan_context_lens(plan)[b], q_len = plan_cu_seqlens_q(plan)[b + 1] - plan_cu_seqlens_q(plan)[b];
        if (was.id != id) return differs(r, recorded, "a sequence", (long long)was.id, (long long)id);
        if (was.num_tokens != q_len || was.position != end - q_len)
            return differs(r, recorded, "a chunk's end", (long long)was.position + was.num_tokens, end);
    }
    if (recorded->micro_batch != plan->micro_batch)
        return differs(r, recorded, "micro-batch", recorded->micro_batch, plan->micro_batch);
    uint64_t hash = trace_plan_hash(plan);
    if (hash == recorded->hash) return 0;
    return differs(r, recorded, "hash of the arrays", (long long)recorded->hash, (long long)hash);
}

static int plan_step(struct replay *r, const void *payload)
{
    struct trace_plan recorded;

    memcpy(&recorded, payload, sizeof recorded);
    scheduler_throttle(&r->s, recorded.throttled != 0);
    const struct step_plan *plan = scheduler_next_step(&r->s, recorded.now_ns);
    if (!plan != !recorded.step) return differs(r, &recorded, "is there a plan", recorded.step != 0, plan != NULL);
    if (!plan) return 0;
    if (plan->step != recorded.step)
        return differs(r, &recorded, "its number", (long long)recorded.step, (long long)plan->step);
    r->plans[plan->micro_batch] = plan;
    r->result->plans++;
    r->result->tokens += (uint64_t)plan->num_tokens;
    return compare(r, &recorded, (const char *)payload + sizeof recorded, plan);
}

static bool is_oldest(const struct replay *r, const struct step_plan *plan)
{
    for (int32_t i = 0; i < r->s.options.num_plans; i++) {
        if (r->plans[i] && r->plans[i]->step < plan->step) return false;
    }
    return true;
}

static int commit(struct replay *r, const void *payload)
{
    struct trace_commit recorded;

    memcpy(&recorded, payload, sizeof recorded);
    bool known = recorded.micro_batch >= 0 && recorded.micro_batch < r->s.options.num_plans;
    const struct step_plan *plan = known ? r->plans[recorded.micro_batch] : NULL;
    if (!plan || plan->step != recorded.step || plan->num_rows != recorded.num_rows || !is_oldest(r, plan))
        return err_set(r->err, ERR_PROTOCOL, "trace: the result of step %llu is not of the oldest plan in flight",
                       (unsigned long long)recorded.step);
    for (int32_t i = 0; i < recorded.num_rows; i++) {
        struct trace_row row;
        memcpy(&row, (const char *)payload + sizeof recorded + (size_t)i * sizeof row, sizeof row);
        token_id target = plan_rows(plan)[i].target;
        if (!row.bad && target >= 0 && row.token != target)
            return err_set(r->err, ERR_PROTOCOL, "trace: step %llu scores token %d, not %d",
                           (unsigned long long)recorded.step, row.token, target);
        r->rows[i] = (struct result_row){ .token = row.token, .bad = row.bad };
    }
    struct step_result result = { .step = plan->step, .num_rows = plan->num_rows, .rows = r->rows };
    r->plans[recorded.micro_batch] = NULL;
    scheduler_measured(&r->s, plan, recorded.step_ms);
    scheduler_commit(&r->s, plan, &result, recorded.now_ns);
    return 0;
}

static int replay_record(struct replay *r, const struct trace_view *view, const struct trace_record *record,
                         const void *payload)
{
    struct submission *sub;
    int rc = 0;

    switch ((enum trace_type)record->type) {
    case TRACE_START: return start(r, view, payload);
    case TRACE_SUBMIT: rc = r->started ? submit(r, record, payload) : 0; break;
    case TRACE_ABORT:
    case TRACE_REFUSED: rc = r->started ? note(r, (enum trace_type)record->type, payload) : 0; break;
    case TRACE_PLAN: rc = r->started ? plan_step(r, payload) : 0; break;
    case TRACE_COMMIT: rc = r->started ? commit(r, payload) : 0; break;
    case TRACE_LOST:
        if (r->started) rc = err_set(r->err, ERR_PROTOCOL, "trace: a record was too large for the ring");
        break;
    case TRACE_PAD: return 0;
    }
    if (!r->started) return rc;
    scheduler_clear_outcomes(&r->s);
    while ((sub = scheduler_take_finished(&r->s))) submission_free(sub);
    return rc;
}

int trace_replay(struct trace_view *view, struct replay_result *result, struct err *err)
{
    struct replay r = { .result = result, .err = err };
    struct trace_record record;
    const void *payload;
    bool found = false;
    int rc;

    *result = (struct replay_result){ 0 };
    while ((rc = trace_view_next(view, &record, &payload, err)) == 1) {
        found = found || record.type == TRACE_START;
        if ((rc = replay_record(&r, view, &record, payload)) < 0) break;
    }
    if (r.started) scheduler_release(&r.s);
    free(r.rows);
    free(r.plans);
    if (!rc && !found)
        return err_set(err, ERR_NOT_FOUND, "trace: its last start was overwritten; a larger --trace-bytes keeps it");
    return rc;
}

/* ---- the subcommand ---- */

static int run_on(const void *data, size_t len, bool dump, struct err *err)
{
    struct trace_view view;
    struct replay_result result;
    int rc = trace_view_open(&view, data, len, err);

    if (rc < 0) return rc;
    if (dump) return trace_dump(&view, stdout, err);
    rc = trace_replay(&view, &result, err);
    printf("%llu plans of %llu tokens for %llu requests: %s\n", (unsigned long long)result.plans,
           (unsigned long long)result.tokens, (unsigned long long)result.submissions,
           rc < 0 ? "not all identical" : "identical");
    return rc;
}

int replay_main(int argc, char **argv)
{
    bool dump = argc == 2 && !strcmp(argv[0], "--dump");
    const char *path = argc == 1 + dump ? argv[argc - 1] : NULL;
    struct err err = { 0 };
    struct stat status;

    if (!path || path[0] == '-') {
        fputs("usage: sluice-engine replay [--dump] TRACE\n", stderr);
        return EXIT_CONFIG;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size < TRACE_HEAD_BYTES) {
        fprintf(stderr, "sluice-engine: %s: %s\n", path, fd < 0 ? strerror(errno) : "no trace");
        if (fd >= 0) close(fd);
        return EXIT_CONFIG;
    }
    /* a copy: the file may belong to an engine that still writes it */
    void *data = malloc((size_t)status.st_size);
    ssize_t n, at = 0;
    while (data && at < status.st_size && (n = read(fd, (char *)data + at, (size_t)(status.st_size - at))) > 0) at += n;
    close(fd);
    int rc = data ? run_on(data, (size_t)at, dump, &err) : err_set(&err, ERR_NO_MEMORY, "replay: out of memory");
    if (rc < 0) fprintf(stderr, "sluice-engine: %s\n", err.message);
    free(data);
    return rc < 0 ? EXIT_FAULT : 0;
}
