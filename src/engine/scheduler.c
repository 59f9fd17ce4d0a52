#include "scheduler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/clock.h"
#include "scheduler_impl.h"

/* bias entries of a plan per sequence; rows that ask for more wait for a later step */
enum { ROW_BIAS_SHARE = 256, PREFETCH = 8 };

static const int64_t RESUMED_TURNS = INT64_MIN / 2, RESUMED_TURNS_END = INT64_MIN / 4;     /* never so many streams */

/* ---- start and end ---- */

static int alloc_batch(struct batch *batch, const struct step_plan_caps *caps)
{
    size_t bytes = step_plan_bytes(caps);

    batch->plan = aligned_alloc(64, (bytes + 63) / 64 * 64);
    batch->seqs = calloc((size_t)caps->max_seqs, sizeof *batch->seqs);
    batch->rows = calloc((size_t)caps->max_seqs, sizeof *batch->rows);
    batch->places = calloc((size_t)caps->max_seqs, sizeof *batch->places);
    batch->owners.tables = calloc((size_t)caps->max_seqs, sizeof *batch->owners.tables);
    batch->owners.rows = calloc((size_t)caps->max_rows, sizeof *batch->owners.rows);
    if (!batch->plan || !batch->seqs || !batch->rows || !batch->places || !batch->owners.tables || !batch->owners.rows)
        return ERR_NO_MEMORY;
    step_plan_init(batch->plan, caps);
    return 0;
}

static struct step_plan_caps caps_of(const struct scheduler_options *o)
{
    int32_t row_bias = MAX_LOGIT_BIAS + MAX_STOP_TOKEN_IDS + MAX_EOS_IDS + MAX_BAD_RUNS + o->vocab_size;

    return (struct step_plan_caps){
        .max_tokens = o->max_num_batched_tokens, .max_seqs = o->max_num_seqs, .max_rows = o->max_num_seqs,
        .max_blocks_per_seq = (o->max_model_len + o->block_size - 1) / o->block_size,
        .max_bias = row_bias > ROW_BIAS_SHARE * o->max_num_seqs ? row_bias : ROW_BIAS_SHARE * o->max_num_seqs,
        .max_history_tokens = o->max_model_len + o->max_num_batched_tokens,      /* the longest history always fits */
    };
}

static int alloc_tables(struct scheduler *s)
{
    const struct scheduler_options *o = &s->options;
    struct step_plan_caps caps = caps_of(o);
    size_t num_seqs = (size_t)o->max_num_seqs;

    s->running = calloc(num_seqs, sizeof(struct sequence *));
    s->placed = calloc(num_seqs, sizeof(struct sequence *));
    s->block_tables = malloc(num_seqs * (size_t)caps.max_blocks_per_seq * sizeof *s->block_tables);
    s->free_slots = malloc(num_seqs * sizeof *s->free_slots);
    s->batches = calloc((size_t)o->num_plans, sizeof *s->batches);
    s->outcomes = calloc(num_seqs + SCHEDULER_MAX_NOTES, sizeof *s->outcomes);
    s->scores = calloc((size_t)caps.max_rows, sizeof *s->scores);
    s->begun = calloc(num_seqs, sizeof *s->begun);
    s->check_scratch = calloc((size_t)o->num_blocks, sizeof *s->check_scratch);
    if (!s->running || !s->placed || !s->block_tables || !s->free_slots || !s->batches || !s->outcomes || !s->scores ||
        !s->begun || !s->check_scratch)
        return ERR_NO_MEMORY;
    for (int32_t i = 0; i < o->max_num_seqs; i++) s->free_slots[i] = o->max_num_seqs - 1 - i;
    s->num_free_slots = o->max_num_seqs;
    for (int32_t i = 0; i < o->num_plans; i++) {
        if (alloc_batch(&s->batches[i], &caps) < 0) return ERR_NO_MEMORY;
    }
    /* ended ones that plans still hold take no place from others */
    if (sequence_pool_init(&s->pool, o->max_sequences + o->max_num_seqs) < 0) return ERR_NO_MEMORY;
    return id_map_init(&s->leaders, (uint32_t)o->max_num_seqs);
}

int scheduler_init(struct scheduler *s, const struct scheduler_options *options, struct err *err)
{
    *s = (struct scheduler){ .options = *options, .resumed_turn = RESUMED_TURNS };
    struct scheduler_options *o = &s->options;
    int rc;

    list_init(&s->waiting);
    list_init(&s->prefilling.list);
    list_init(&s->queue.list);
    step_time_init(&s->step_time);
    if (o->max_num_seqs > o->max_num_batched_tokens) o->max_num_seqs = o->max_num_batched_tokens;
    if (o->max_sequences < o->max_num_seqs) o->max_sequences = o->max_num_seqs;
    if (o->max_model_len < 2 || o->max_num_seqs < 1 || o->num_plans < 1 || o->num_blocks < 1 || o->block_size < 1)
        return err_set(err, ERR_CONFIG, "scheduler: context of %d tokens, %d sequences, %d blocks of %d tokens",
                       o->max_model_len, o->max_num_seqs, o->num_blocks, o->block_size);
    if (o->max_model_len > (int64_t)o->num_blocks * o->block_size)
        return err_set(err, ERR_CONFIG,
                       "scheduler: one context of %d tokens does not fit into %d KV blocks of %d tokens",
                       o->max_model_len, o->num_blocks, o->block_size);
    if ((rc = kv_cache_init(&s->kv, o->num_blocks, o->block_size, o->enable_prefix_caching, err)) < 0) return rc;
    if (alloc_tables(s) < 0) {
        scheduler_release(s);
        return err_set(err, ERR_NO_MEMORY, "scheduler: no memory for %d sequences", o->max_sequences);
    }
    return 0;
}

int scheduler_sample(struct scheduler *s, struct samples *samples, bool blocks, struct err *err)
{
    s->samples = samples;
    return blocks ? kv_cache_measure(&s->kv, samples, err) : 0;
}

void scheduler_release(struct scheduler *s)
{
    struct submission *sub;

    while ((sub = scheduler_take_finished(s))) submission_free(sub);
    for (int32_t i = 0; s->batches && i < s->options.num_plans; i++) {
        free(s->batches[i].plan);
        free(s->batches[i].seqs);
        free(s->batches[i].rows);
        free(s->batches[i].places);
        free(s->batches[i].owners.tables);
        free(s->batches[i].owners.rows);
    }
    free(s->batches);
    free(s->running);
    free(s->placed);
    free(s->block_tables);
    free(s->free_slots);
    free(s->outcomes);
    free(s->scores);
    free(s->begun);
    free(s->check_scratch);
    id_map_release(&s->leaders);
    sequence_pool_release(&s->pool);
    kv_cache_release(&s->kv);
    *s = (struct scheduler){ 0 };
}

void scheduler_forget(struct scheduler *s)
{
    BUG_ON(s->pool.num_used);
    kv_cache_forget(&s->kv);
    for (int32_t i = 0; i < s->options.max_num_seqs; i++) s->free_slots[i] = s->options.max_num_seqs - 1 - i;
    step_time_init(&s->step_time);
}

/* ---- outcomes ---- */

static void report(struct scheduler *s, const struct token_event *event, const struct result_row *row)
{
    BUG_ON(s->num_outcomes >= s->options.max_num_seqs + SCHEDULER_MAX_NOTES);
    s->outcomes[s->num_outcomes++] = (struct step_outcome){ *event, row };
}

void scheduler_clear_outcomes(struct scheduler *s) { s->num_outcomes = s->num_scores = s->num_begun = 0; }

static void hand_back(struct scheduler *s, struct submission *sub)
{
    sub->next = s->finished;
    s->finished = sub;
}

struct submission *scheduler_take_finished(struct scheduler *s)
{
    struct submission *sub = s->finished;

    if (sub) s->finished = sub->next;
    return sub;
}

/* ---- lists and states ---- */

/* Behind the last that came with the same priority, if that still waits: there is mostly its place. */
static void insert_waiting(struct scheduler *s, struct sequence *seq)
{
    struct list *head = &s->waiting, *after = head->prev;
    struct sequence **last = &s->last_of[(uint32_t)seq->priority % SCHEDULER_LAST];

    if (!list_empty(head) && seq_before(seq, list_entry(head->next, struct sequence, link))) after = head;
    else if (*last && *last != seq && (*last)->state == SEQ_WAITING) after = &(*last)->link;
    while (after != head && seq_before(seq, list_entry(after, struct sequence, link))) after = after->prev;
    while (after->next != head && seq_before(list_entry(after->next, struct sequence, link), seq)) after = after->next;
    list_insert_before(after->next, &seq->link);
    s->num_waiting++;
    seq->state = SEQ_WAITING;
    *last = seq;
}

/* The last of the waiting ones that have a turn of resumed streams, or the head of the list. */
static struct list *end_of_resumed(struct scheduler *s)
{
    struct sequence *last = s->last_resumed;
    struct list *head = &s->queue.list, *it = head;

    if (last && last->state == SEQ_WAITING && in_turns(last) && last->turn == s->resumed_turn - 1) return &last->ring;
    while (it->next != head && list_entry(it->next, struct sequence, ring)->turn < RESUMED_TURNS_END) it = it->next;
    return it;
}

void turns_enter(struct scheduler *s, struct sequence *seq, enum turn_place place)
{
    struct turns *turns = seq->state == SEQ_RUNNING ? &s->prefilling : &s->queue;
    struct list *after = turns->list.prev;

    if (s->options.policy != POLICY_FAIR || in_turns(seq)) return;
    BUG_ON(place != TURN_LAST && turns != &s->queue);
    if (place != TURN_LAST) after = end_of_resumed(s);
    seq->turn = place == TURN_RESUMED ? s->resumed_turn++ : place == TURN_FIRST ? --s->first_turn : s->last_turn++;
    if (place == TURN_RESUMED) s->last_resumed = seq;
    list_insert_before(after->next, &seq->ring);
    turns->num++;
}

void turns_leave(struct scheduler *s, struct sequence *seq)
{
    if (!in_turns(seq)) return;
    list_remove(&seq->ring);
    (seq->state == SEQ_RUNNING ? &s->prefilling : &s->queue)->num--;
    seq->deficit = 0;
}

void scheduler_start_leading(struct scheduler *s, struct sequence *seq)
{
    uint64_t group = seq->sub->req.group;

    if (!group || id_map_get(&s->leaders, group) >= 0) return;
    if (seq->num_prompt - 1 - seq->num_computed < s->kv.block_size) return;
    id_map_put(&s->leaders, group, (int32_t)(seq - s->pool.all));
    seq->leads_group = true;
}

static void stop_leading(struct scheduler *s, struct sequence *seq)
{
    if (!seq->leads_group) return;
    id_map_remove(&s->leaders, seq->sub->req.group);
    seq->leads_group = false;
}

static void running_remove(struct scheduler *s, const struct sequence *seq)
{
    int32_t low = 0, high = s->num_running - 1;

    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (seq_before(s->running[middle], seq)) low = middle + 1;
        else high = middle;
    }
    BUG_ON(s->running[low] != seq);
    memmove(&s->running[low], &s->running[low + 1], (size_t)(--s->num_running - low) * sizeof *s->running);
}

/* Slot and blocks go back; seq is in no list afterwards. */
static void leave_running(struct scheduler *s, struct sequence *seq)
{
    BUG_ON(seq->num_scheduled || seq->num_pending);
    stop_leading(s, seq);
    kv_cache_drop(&s->kv, seq);
    s->free_slots[s->num_free_slots++] = seq->slot;
    seq->slot = -1;
    seq->blocks = NULL;
    seq->history_sent = false;
    running_remove(s, seq);
}

void scheduler_preempt(struct scheduler *s, struct sequence *seq)
{
    turns_leave(s, seq);
    leave_running(s, seq);
    seq->waiting_since = s->step;
    insert_waiting(s, seq);
    turns_enter(s, seq, TURN_FIRST);
    s->stats.preemptions++;
}

/* Nobody holds it any more. */
static void forget_sequence(struct scheduler *s, struct sequence *seq)
{
    if (seq->cancel_seen_ns && s->samples)
        sample_add(s->samples, SAMPLE_CANCEL, (double)(clock_now_ns() - seq->cancel_seen_ns) / 1e9);
    hand_back(s, seq->sub);
    sequence_pool_give(&s->pool, seq);
}

/* Its end was reported. What a plan in flight holds stays until release_ended. */
static void end_sequence(struct scheduler *s, struct sequence *seq)
{
    turns_leave(s, seq);
    if (s->reserved == seq) s->reserved = NULL;
    seq->num_pending = 0;
    if (seq->num_scheduled) {
        stop_leading(s, seq);
        seq->state = SEQ_ENDED;
        s->num_ended++;
        return;
    }
    if (seq->state == SEQ_RUNNING) {
        leave_running(s, seq);
    } else {
        list_remove(&seq->link);
        s->num_waiting--;
    }
    forget_sequence(s, seq);
}

static void release_ended(struct scheduler *s, struct sequence *seq)
{
    if (seq->num_scheduled) return;
    s->num_ended--;
    leave_running(s, seq);
    forget_sequence(s, seq);
}

static void end_without_token(struct scheduler *s, struct sequence *seq, enum finish_reason finish, int err_code)
{
    report(s,
           &(struct token_event){.id = seq->id,
                                 .token = TOKEN_NONE,
                                 .index = (uint32_t)seq_num_generated(seq),
                                 .finish = (uint8_t)finish,
                                 .err_code = err_code,
                                 .num_cached = (uint32_t)seq->num_cached,
                                 .scheduled_ns = seq->scheduled_ns},
           NULL);
    s->stats.aborted += finish == FINISH_ABORTED;
    end_sequence(s, seq);
}

static void refuse(struct scheduler *s, struct submission *sub, int err_code)
{
    report(s, &(struct token_event){.id = sub->id, .token = TOKEN_NONE, .finish = FINISH_ERROR, .err_code = err_code},
           NULL);
    hand_back(s, sub);
}

void scheduler_add(struct scheduler *s, struct submission *sub)
{
    if (sub->kind == SUBMISSION_REFUSED) {
        refuse(s, sub, sub->err_code);
        return;
    }
    if (sub->kind == SUBMISSION_ABORT) {
        scheduler_abort(s, sub->id, sub->seen_ns);
        hand_back(s, sub);
        return;
    }
    bool full = s->pool.num_used - s->num_ended >= s->options.max_sequences;
    struct sequence *seq = full ? NULL : sequence_pool_take(&s->pool, sub);
    if (!seq) {
        refuse(s, sub, sequence_pool_find(&s->pool, sub->id) ? ERR_INTERNAL : ERR_QUEUE_FULL);
        return;
    }
    seq->feeds_back = s->options.overlap && !seq_needs_results(seq);
    seq->order = s->num_arrivals++;
    seq->waiting_since = s->step;
    insert_waiting(s, seq);
    /* its replica died: somebody looks at a stream that stands still */
    turns_enter(s, seq, sub->req.num_output > 0 ? TURN_RESUMED : TURN_LAST);
}

void scheduler_abort(struct scheduler *s, uint64_t id, int64_t seen_ns)
{
    struct sequence *seq = sequence_pool_find(&s->pool, id);

    if (!seq || seq->state == SEQ_ENDED) return;
    seq->cancel_seen_ns = seen_ns;
    end_without_token(s, seq, FINISH_ABORTED, 0);
}

/* ---- commit ---- */

static enum finish_reason finish_of(const struct scheduler *s, const struct sequence *seq, token_id token)
{
    for (int i = 0; !seq->ignore_eos && i < s->options.eos.num; i++) {
        if (s->options.eos.ids[i] == token) return FINISH_EOS;
    }
    for (int32_t i = 0; i < seq->num_stop_ids; i++) {
        if (seq->sub->req.stop_ids[i] == token) return FINISH_STOP_TOKEN;
    }
    return seq->num_tokens == seq->max_total ? FINISH_LENGTH : FINISH_NONE;
}

static void commit_token(struct scheduler *s, struct sequence *seq, const struct result_row *row, int64_t now_ns)
{
    if (seq->num_tokens == seq->num_known) s->stats.prompt_tokens += (uint64_t)seq->num_prompt;
    s->stats.generation_tokens++;
    BUG_ON(seq->num_tokens >= seq->max_total || s->num_outcomes >= s->options.max_num_seqs + SCHEDULER_MAX_NOTES);
    seq->tokens[seq->num_tokens++] = row->token;
    if (seq->num_pending) seq->num_pending--;
    enum finish_reason finish = finish_of(s, seq, row->token);
    struct step_outcome *outcome = &s->outcomes[s->num_outcomes++];
    outcome->event = (struct token_event){ .id = seq->id, .token = row->token,
        .index = (uint32_t)seq_num_generated(seq), .finish = (uint8_t)finish, .num_cached = (uint32_t)seq->num_cached, .scheduled_ns = seq->scheduled_ns,
        .step_ns = now_ns };
    outcome->row = seq->wants_logprobs ? row : NULL;
    if (seq->wants_logprobs) {
        outcome->event.logprob = row->logprob;
        outcome->event.rank = row->rank;
        outcome->event.num_top = (uint16_t)row->num_top;
    }
    if (finish != FINISH_NONE) end_sequence(s, seq);
}

static bool row_is_bad(const struct scheduler *s, const struct result_row *row)
{
    return row->bad || row->token < 0 || row->token >= s->options.vocab_size || row->num_top > MAX_TOP_LOGPROBS;
}

/* The rows of the plan that score seq's prompt, reported in the order of their positions. False: numbers are bad. */
static bool commit_scores(struct scheduler *s, struct sequence *seq, const struct result_row *rows, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (row_is_bad(s, &rows[i])) return false;
        seq->num_scored++;
        BUG_ON(s->num_scores >= s->batches[0].plan->caps.max_rows || rows[i].token != seq->tokens[seq->num_scored]);
        s->scores[s->num_scores++] = (struct step_score){ seq->id, (uint32_t)seq->num_scored, &rows[i] };
    }
    seq->feeds_back = s->options.overlap && !seq_needs_results(seq);
    return true;
}

/* All of its prompt that can be scored is. */
static void end_scored(struct scheduler *s, struct sequence *seq, int64_t now_ns)
{
    s->stats.prompt_tokens += (uint64_t)seq->num_prompt;
    report(s,
           &(struct token_event){.id = seq->id,
                                 .token = TOKEN_NONE,
                                 .finish = FINISH_LENGTH,
                                 .scheduled_ns = seq->scheduled_ns,
                                 .step_ns = now_ns},
           NULL);
    end_sequence(s, seq);
}

/* Every id that the row allows was masked. (Without such a list the masks are too few to cover a vocabulary.) */
static bool is_dead_end(const struct step_plan *plan, const struct sampling_row *row)
{
    const token_id *ids = plan_bias_ids(plan);
    const float *values = plan_bias_values(plan);

    if (!row->allow_count || row->allow_count > row->bias_count) return false;
    for (uint32_t a = 0; a < row->allow_count; a++) {
        uint32_t i = row->bias_begin, end = row->bias_begin + row->bias_count;
        while (i < end && (ids[i] != ids[row->allow_begin + a] || values[i] != -INFINITY)) i++;
        if (i == end) return false;
    }
    return true;
}

/* Nothing could be drawn. */
static void end_bad(struct scheduler *s, struct sequence *seq, bool dead_end)
{
    s->stats.corrupted += !dead_end;
    end_without_token(s, seq, FINISH_ERROR, dead_end ? ERR_DEAD_END : ERR_INTERNAL);
}

/* seq after q_len more tokens. scores: the first of num_scores rows; row: the drawn one, or NULL; dead_end: why it is bad. */
static void commit_sequence(struct scheduler *s, struct sequence *seq, int32_t q_len, const struct result_row *scores,
                            int32_t num_scores, const struct result_row *row, bool dead_end, int64_t now_ns)
{
    bool bad = row && row_is_bad(s, row), ended = seq->state == SEQ_ENDED;
    if (num_scores && !bad && !ended) bad = !commit_scores(s, seq, scores, num_scores);

    seq->num_computed += q_len;
    seq->num_scheduled -= q_len;
    if (bad && !dead_end) kv_cache_distrust(&s->kv, seq);
    else if (seq->num_computed >= (seq->num_published + 1) * s->kv.block_size) kv_cache_publish(&s->kv, seq);
    if (seq->num_computed >= seq->num_prompt) stop_leading(s, seq);
    if (ended) release_ended(s, seq);
    else if (bad) end_bad(s, seq, dead_end);
    else if (row) commit_token(s, seq, row, now_ns);
    else if (seq->only_scores && seq->num_computed == seq->num_tokens) end_scored(s, seq, now_ns);
}

void scheduler_measured(struct scheduler *s, const struct step_plan *plan, double step_ms)
{
    const struct batch *batch = &s->batches[plan->micro_batch];

    if (s->options.itl_target_ms || s->options.overlap) step_time_learn(&s->step_time, plan->num_tokens, batch->num_keys, step_ms);
}

double scheduler_expected_ms(const struct scheduler *s, const struct step_plan *plan)
{
    return step_time_of(&s->step_time, plan->num_tokens, s->batches[plan->micro_batch].num_keys);
}

static void prefetch_commit(const struct sequence *seq)
{
    __builtin_prefetch(seq);
    __builtin_prefetch((const char *)seq + 64);
}

void scheduler_commit(struct scheduler *s, const struct step_plan *plan, const struct step_result *result,
                      int64_t now_ns)
{
    struct batch *batch = &s->batches[plan->micro_batch];
    const int32_t *cu = plan_cu_seqlens_q(plan), *contexts = plan_context_lens(plan);
    int32_t next_row = 0;

    s->kv.now_ns = now_ns;
    BUG_ON(!batch->in_flight || batch->plan != plan || result->num_rows != plan->num_rows);
    for (int32_t b = 0; b < batch->num_seqs; b++) {
        struct sequence *seq = batch->seqs[b];
        if (b + PREFETCH < batch->num_seqs) prefetch_commit(batch->seqs[b + PREFETCH]);
        int32_t drawn = batch->rows[b], q_len = cu[b + 1] - cu[b];
        int32_t num_scores = seq->num_to_score ? seq_num_scores(seq, seq->num_computed, q_len) : 0;
        const struct result_row *scores = &result->rows[next_row];
        next_row += num_scores + (drawn >= 0);
        BUG_ON((drawn >= 0 && drawn != next_row - 1) || contexts[b] - q_len != seq->num_computed);
        const struct result_row *row = drawn < 0 ? NULL : &result->rows[drawn];
        bool dead_end = row && row->bad && is_dead_end(plan, &plan_rows(plan)[drawn]);
        commit_sequence(s, seq, q_len, scores, num_scores, row, dead_end, now_ns);
    }
    BUG_ON(next_row != result->num_rows);
    batch->in_flight = false;
    batch->num_seqs = 0;
    s->stats.steps++;
}

const struct engine_stats *scheduler_stats(struct scheduler *s)
{
    s->stats.running = (uint32_t)(s->num_running - s->num_ended);
    s->stats.waiting = (uint32_t)s->num_waiting;
    s->stats.blocks_total = (uint32_t)s->kv.num_blocks;
    s->stats.blocks_used = (uint32_t)s->kv.num_used;
    s->stats.blocks_cached = (uint32_t)s->kv.prefix.num_lru;
    return &s->stats;
}

/* ---- check ---- */

static void check_sequence(const struct scheduler *s, const struct sequence *seq, const struct sequence *prev)
{
    BUG_ON(prev && !seq_before(prev, seq));
    BUG_ON(sequence_pool_find(&s->pool, seq->id) != seq);
    BUG_ON(seq->num_tokens > seq->sub->max_total || seq->num_drafted || seq_num_left(seq) < 0);
    BUG_ON(seq->num_pending < 0 || seq->num_tokens + seq->num_pending >= seq->sub->max_total + !seq->num_pending);
    BUG_ON(seq->num_pending && (!seq->feeds_back || seq->num_pending > seq->num_scheduled));
    BUG_ON(seq->leads_group && id_map_get(&s->leaders, seq->sub->req.group) != (int32_t)(seq - s->pool.all));
}

static void check_waiting(const struct scheduler *s)
{
    const struct sequence *prev = NULL;
    int32_t n = 0;

    list_for_each(it, &s->waiting) {
        const struct sequence *seq = list_entry(it, struct sequence, link);
        BUG_ON(it->next->prev != it || seq->state != SEQ_WAITING || ++n > s->num_waiting);
        BUG_ON(seq->slot >= 0 || seq->num_blocks || seq->num_computed || seq->num_scheduled || seq->leads_group);
        BUG_ON(s->options.policy == POLICY_FAIR && !in_turns(seq));
        check_sequence(s, seq, prev);
        prev = seq;
    }
    BUG_ON(n != s->num_waiting);
}

static void check_running(const struct scheduler *s)
{
    int32_t num_leaders = 0, num_ended = 0;

    for (int32_t i = 0; i < s->num_running; i++) {
        const struct sequence *seq = s->running[i];
        BUG_ON(seq->state != SEQ_RUNNING && (seq->state != SEQ_ENDED || !seq->num_scheduled || seq->leads_group));
        BUG_ON(seq->slot < 0 || seq->slot >= s->options.max_num_seqs);
        for (int32_t j = 0; j < i; j++) BUG_ON(s->running[j]->slot == seq->slot);
        check_sequence(s, seq, i ? s->running[i - 1] : NULL);
        num_leaders += seq->leads_group;
        num_ended += seq->state == SEQ_ENDED;
    }
    BUG_ON(num_leaders != (int32_t)s->leaders.count || num_ended != s->num_ended);
}

static void check_plans(const struct scheduler *s)
{
    int64_t num_planned = 0, num_scheduled = 0;

    for (int32_t i = 0; i < s->options.num_plans; i++) {
        const struct batch *batch = &s->batches[i];
        if (!batch->in_flight) continue;
        num_planned += batch->plan->num_tokens;
        for (int32_t b = 0; b < batch->num_seqs; b++) {
            const struct sequence *seq = batch->seqs[b];
            int32_t q_len = plan_cu_seqlens_q(batch->plan)[b + 1] - plan_cu_seqlens_q(batch->plan)[b];
            BUG_ON(seq->state < SEQ_RUNNING || seq->num_scheduled < q_len || (!s->options.overlap && seq->num_scheduled != q_len));
        }
    }
    for (int32_t i = 0; i < s->num_running; i++) num_scheduled += s->running[i]->num_scheduled;
    BUG_ON(num_planned != num_scheduled);
}

static void check_turns(const struct turns *turns, enum seq_state state)
{
    const struct sequence *prev = NULL;
    int32_t n = 0;

    list_for_each(it, &turns->list) {
        const struct sequence *seq = list_entry(it, struct sequence, ring);
        BUG_ON(it->next->prev != it || seq->state != state || ++n > turns->num);
        BUG_ON(prev && prev->turn >= seq->turn);
        prev = seq;
    }
    BUG_ON(n != turns->num);
}

void scheduler_check(struct scheduler *s)
{
    check_waiting(s);
    check_running(s);
    BUG_ON(s->num_waiting + s->num_running != s->pool.num_used);
    BUG_ON(s->num_running + s->num_free_slots != s->options.max_num_seqs);
    check_turns(&s->prefilling, SEQ_RUNNING);
    check_turns(&s->queue, SEQ_WAITING);
    BUG_ON(s->reserved && s->reserved->state != SEQ_WAITING);
    check_plans(s);
    kv_cache_check(&s->kv, s->running, s->num_running, s->check_scratch);
}
