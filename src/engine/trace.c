#include "trace.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <sluice/ipc.h>

#include "base/buf.h"
#include "base/bug.h"
#include "base/hash.h"

struct trace {
    struct trace_head *head;           /* the mapped file */
    uint8_t *ring;
    uint64_t capacity, last_start;     /* position */
    struct buf scratch;                /* a submission on its way */
};

static uint64_t padded(uint64_t len) { return sizeof(struct trace_record) + (len + 7) / 8 * 8; }

static struct trace_record *record_at(const struct trace *trace, uint64_t position)
{
    return (struct trace_record *)(trace->ring + position % trace->capacity);
}

/* Forgets records until [head, head + bytes) is free. */
static void make_room(struct trace *trace, uint64_t bytes)
{
    struct trace_head *head = trace->head;

    while (head->head + bytes - head->tail > trace->capacity) {
        uint64_t size = padded(record_at(trace, head->tail)->len);
        __atomic_store_n(&head->tail, head->tail + size, __ATOMIC_RELEASE);
    }
}

/* Where the payload of the next record goes; it counts with end_record. Never across the ring's end. */
static uint8_t *begin_record(struct trace *trace, enum trace_type type, uint64_t len)
{
    uint64_t left = trace->capacity - trace->head->head % trace->capacity, bytes = padded(len);

    BUG_ON(bytes > trace->capacity / 2);
    if (left < bytes) {
        make_room(trace, left);
        *record_at(trace, trace->head->head) =
            (struct trace_record){ .len = (uint32_t)(left - sizeof(struct trace_record)), .type = TRACE_PAD };
        trace->head->head += left;
    }
    make_room(trace, bytes);
    struct trace_record *record = record_at(trace, trace->head->head);
    *record = (struct trace_record){ .len = (uint32_t)len, .type = (uint16_t)type };
    memset((uint8_t *)record + bytes - 8, 0, bytes > sizeof *record ? 8 : 0);
    return (uint8_t *)(record + 1);
}

static void end_record(struct trace *trace, uint64_t len)
{
    trace->head->num_records++;
    __atomic_store_n(&trace->head->head, trace->head->head + padded(len), __ATOMIC_RELEASE);
}

static void put(struct trace *trace, enum trace_type type, const void *payload, uint64_t len)
{
    bool fits = padded(len) <= trace->capacity / 2;

    uint8_t *to = begin_record(trace, fits ? type : TRACE_LOST, fits ? len : 0);
    if (fits && len) memcpy(to, payload, len);
    end_record(trace, fits ? len : 0);
}

int trace_open(struct trace **out, const char *path, uint64_t bytes, const struct scheduler_options *options,
               struct err *err)
{
    uint64_t capacity = bytes / 4096 * 4096;
    struct trace *trace = calloc(1, sizeof *trace);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    void *map = MAP_FAILED;

    if (fd < 0 || !trace || capacity < TRACE_MIN_BYTES) goto failed;
    if (ftruncate(fd, (off_t)(TRACE_HEAD_BYTES + capacity)) < 0) goto failed;
    map = mmap(NULL, TRACE_HEAD_BYTES + capacity, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) goto failed;
    buf_init(&trace->scratch, capacity / 2);
    if (!buf_reserve(&trace->scratch, capacity / 4)) goto failed;
    close(fd);
    trace->head = map;
    trace->ring = (uint8_t *)map + TRACE_HEAD_BYTES;
    trace->capacity = capacity;
    *trace->head = (struct trace_head){ .capacity = capacity, .options = *options };
    put(trace, TRACE_START, &(struct trace_start){ 0 }, sizeof(struct trace_start));
    __atomic_store_n(&trace->head->magic, TRACE_MAGIC, __ATOMIC_RELEASE);
    *out = trace;
    return 0;
failed:
    err_sys(err, ERR_IO, "trace %s", path);
    if (map != MAP_FAILED) munmap(map, TRACE_HEAD_BYTES + capacity);
    if (fd >= 0) close(fd);
    if (trace) buf_release(&trace->scratch);
    free(trace);
    return ERR_IO;
}

void trace_submission(struct trace *trace, const struct submission *sub)
{
    if (!trace) return;
    if (sub->kind != SUBMISSION_START) {
        struct trace_note note = { sub->id, sub->err_code };
        put(trace, sub->kind == SUBMISSION_ABORT ? TRACE_ABORT : TRACE_REFUSED, &note, sizeof note);
        return;
    }
    buf_reset(&trace->scratch);
    /* a frame larger than the scratch would have to grow it: the engine thread allocates nothing */
    uint64_t words = (uint64_t)sub->max_total + sub->req.num_stop_ids + 2 * (uint64_t)sub->req.num_bias +
                     sub->req.num_allowed + sub->req.num_bad_ints;
    if (4 * words + 4096 > trace->capacity / 4) {
        put(trace, TRACE_LOST, NULL, 0);
        return;
    }
    ipc_put_submit(&trace->scratch, &sub->req);
    BUG_ON(trace->scratch.failed);
    struct frame_head frame;
    memcpy(&frame, trace->scratch.data, sizeof frame);
    put(trace, TRACE_SUBMIT, trace->scratch.data + sizeof frame, frame.len);
}

uint64_t trace_plan_hash(const struct step_plan *plan)
{
    size_t num_tokens = (size_t)plan->num_tokens, num_seqs = (size_t)plan->num_seqs;
    uint64_t hash = hash_bytes(plan_input_ids(plan), num_tokens * sizeof(token_id), 1);

    hash = hash_bytes(plan_positions(plan), num_tokens * sizeof(int32_t), hash);
    hash = hash_bytes(plan_slot_mapping(plan), num_tokens * sizeof(int64_t), hash);
    hash = hash_bytes(plan_cu_seqlens_q(plan), (num_seqs + 1) * sizeof(int32_t), hash);
    hash = hash_bytes(plan_seq_slots(plan), num_seqs * sizeof(int32_t), hash);
    for (size_t b = 0; b < num_seqs; b++) {
        const block_id *table = plan_block_tables(plan) + b * (size_t)plan->caps.max_blocks_per_seq;
        size_t n = (size_t)(plan_context_lens(plan)[b] - 1) / (size_t)plan->block_size + 1;
        hash = hash_bytes(table, n * sizeof *table, hash);
    }
    for (int32_t r = 0; r < plan->num_rows; r++) {
        const struct sampling_row *row = &plan_rows(plan)[r];
        uint64_t words[] = { (uint64_t)row->token << 32 | (uint32_t)row->slot, (uint64_t)row->target,
                             (uint64_t)row->num_generated << 32 | row->bias_count, row->allow_count, row->params.seed };
        hash = hash_bytes(words, sizeof words, hash);
    }
    return hash;
}

void trace_step(struct trace *trace, const struct scheduler *s, const struct step_plan *plan, int64_t now_ns)
{
    if (!trace || (!plan && !s->pool.num_used)) return;
    const struct batch *batch = plan ? &s->batches[plan->micro_batch] : NULL;
    struct trace_plan record = { .now_ns = now_ns, .throttled = s->throttled, .waiting = (uint32_t)s->num_waiting,
                                 .running = (uint32_t)s->num_running, .blocks_used = (uint32_t)s->kv.num_used };
    uint64_t len = sizeof record + (plan ? (uint64_t)plan->num_seqs : 0) * sizeof(struct trace_seq);

    if (padded(len) > trace->capacity / 2) {
        put(trace, TRACE_LOST, NULL, 0);
        return;
    }
    if (plan) {
        record.step = plan->step;
        record.hash = trace_plan_hash(plan);
        record.micro_batch = plan->micro_batch;
        record.num_seqs = plan->num_seqs;
        record.num_tokens = plan->num_tokens;
        record.num_rows = plan->num_rows;
    }
    uint8_t *to = begin_record(trace, TRACE_PLAN, len);
    memcpy(to, &record, sizeof record);
    for (int32_t b = 0; b < record.num_seqs; b++) {
        int32_t q_len = plan_cu_seqlens_q(plan)[b + 1] - plan_cu_seqlens_q(plan)[b];
        struct trace_seq entry = { batch->seqs[b]->id, plan_context_lens(plan)[b] - q_len, q_len };
        memcpy(to + sizeof record + (size_t)b * sizeof entry, &entry, sizeof entry);
    }
    end_record(trace, len);
}

void trace_result(struct trace *trace, const struct step_plan *plan, const struct step_result *result, double step_ms,
                  int64_t now_ns)
{
    if (!trace) return;
    struct trace_commit record = { .step = plan->step, .now_ns = now_ns, .step_ms = step_ms,
                                   .micro_batch = plan->micro_batch, .num_rows = result->num_rows };
    uint64_t len = sizeof record + (uint64_t)result->num_rows * sizeof(struct trace_row);

    if (padded(len) > trace->capacity / 2) {
        put(trace, TRACE_LOST, NULL, 0);
        return;
    }
    uint8_t *to = begin_record(trace, TRACE_COMMIT, len);
    memcpy(to, &record, sizeof record);
    for (int32_t i = 0; i < result->num_rows; i++) {
        const struct result_row *row = &result->rows[i];
        struct trace_row entry = { row->token, row->bad || row->num_top > MAX_TOP_LOGPROBS };
        memcpy(to + sizeof record + (size_t)i * sizeof entry, &entry, sizeof entry);
    }
    end_record(trace, len);
}

bool trace_wants_start(const struct trace *trace)
{
    return trace && trace->head->head - trace->last_start >= trace->capacity / 4;
}

void trace_restart(struct trace *trace, struct scheduler *s)
{
    scheduler_forget(s);
    trace->last_start = trace->head->head;
    put(trace, TRACE_START, &(struct trace_start){ s->step }, sizeof(struct trace_start));
}

void trace_close(struct trace *trace)
{
    if (!trace) return;
    munmap(trace->head, TRACE_HEAD_BYTES + trace->capacity);
    buf_release(&trace->scratch);
    free(trace);
}

/* ---- reading ---- */

static bool options_are_sane(const struct scheduler_options *o)
{
    if (o->max_num_seqs < 1 || o->max_num_seqs > 1 << 16 || o->max_num_batched_tokens < 1 ||
        o->max_num_batched_tokens > 1 << 20 || o->max_model_len < 2 || o->max_model_len > 1 << 24)
        return false;
    if (o->block_size < 1 || o->block_size > 1 << 12 || o->num_blocks < 1 || o->num_blocks > 1 << 26 ||
        o->vocab_size < 1 || o->vocab_size > 1 << 24 || o->num_plans < 1 || o->num_plans > 64)
        return false;
    if (o->max_sequences < 1 || o->max_sequences > 1 << 24 || o->policy < POLICY_FAIR || o->policy > POLICY_PRIORITY ||
        o->eos.num < 0 || o->eos.num > MAX_EOS_IDS || o->long_prefill_chunk < 0 || o->itl_target_ms < 0)
        return false;
    return (int64_t)o->max_num_seqs * (o->max_model_len / o->block_size + 1) <= 1 << 28;
}

int trace_view_open(struct trace_view *view, const void *data, size_t len, struct err *err)
{
    struct trace_head *head = &view->head;

    *view = (struct trace_view){ 0 };
    if (len < TRACE_HEAD_BYTES + TRACE_MIN_BYTES)
        return err_set(err, ERR_PROTOCOL, "trace: %zu bytes are too few", len);
    memcpy(head, data, sizeof *head);
    if (head->magic != TRACE_MAGIC) return err_set(err, ERR_PROTOCOL, "trace: this is none, or of another version");
    if (head->capacity != len - TRACE_HEAD_BYTES || head->capacity % 8 || head->tail > head->head || head->tail % 8 ||
        head->head % 8 || head->head - head->tail > head->capacity)
        return err_set(err, ERR_PROTOCOL, "trace: the head does not fit the file");
    /* a bool that is neither would be undefined to read as one */
    uint8_t caching, overlap;
    memcpy(&caching, &head->options.enable_prefix_caching, 1);
    memcpy(&overlap, &head->options.overlap, 1);
    if (caching > 1 || overlap > 1 || !options_are_sane(&head->options))
        return err_set(err, ERR_PROTOCOL, "trace: options out of range");
    view->data = (const uint8_t *)data + TRACE_HEAD_BYTES;
    view->at = head->tail;
    return 0;
}

/* Bytes that a record of this type must have, by its fixed part; never its length when that is wrong. */
static uint64_t length_of(const struct trace_record *record, const void *payload)
{
    uint64_t wrong = record->len + (uint64_t)1;
    struct trace_plan plan;
    struct trace_commit commit;

    switch ((enum trace_type)record->type) {
    case TRACE_START: return sizeof(struct trace_start);
    case TRACE_ABORT:
    case TRACE_REFUSED: return sizeof(struct trace_note);
    case TRACE_PLAN:
        if (record->len < sizeof plan) return wrong;
        memcpy(&plan, payload, sizeof plan);
        return plan.num_seqs < 0 ? wrong : sizeof plan + (uint64_t)plan.num_seqs * sizeof(struct trace_seq);
    case TRACE_COMMIT:
        if (record->len < sizeof commit) return wrong;
        memcpy(&commit, payload, sizeof commit);
        return commit.num_rows < 0 ? wrong : sizeof commit + (uint64_t)commit.num_rows * sizeof(struct trace_row);
    case TRACE_PAD:
    case TRACE_SUBMIT:
    case TRACE_LOST: return record->len;
    }
    return wrong;                      /* no such type */
}

int trace_view_next(struct trace_view *view, struct trace_record *record, const void **payload, struct err *err)
{
    while (view->at < view->head.head) {
        uint64_t place = view->at % view->head.capacity, left = view->head.capacity - place;
        if (left > view->head.head - view->at) left = view->head.head - view->at;
        memcpy(record, view->data + place, sizeof *record);        /* capacity and places are multiples of 8 */
        *payload = view->data + place + sizeof *record;
        if (record->zero || padded(record->len) > left || length_of(record, *payload) != record->len)
            return err_set(err, ERR_PROTOCOL, "trace: broken record of type %d at %llu", record->type,
                           (unsigned long long)view->at);
        view->at += padded(record->len);
        if (record->type != TRACE_PAD) return 1;
    }
    return 0;
}
