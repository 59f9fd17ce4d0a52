/* draft.c - puts the next step together: who is admitted, who gets how many tokens (the rules are in scheduler.h). */
#include <string.h>

#include "base/bug.h"
#include "scheduler_impl.h"

enum {
    PREFETCH = 4,                      /* sequences ahead */
    AGE_STEPS = 16,                    /* fair: a prompt's turn grows by one quantum per so many steps */
    AGE_MOST = 4,                      /* fair: up to so many quanta */
    QUANTUM_DIVISOR = 8,               /* fair: quantum = budget / this */
    QUANTUM_MIN = 64,
    PATIENCE_STEPS = 64,               /* fair: steps without room before the next room is reserved */
    WAITING_SCAN = 64,                 /* waiting sequences looked at in vain before the step is closed */
    WATERMARK_DIVISOR = 4,             /* one block kept for the growth of so many running sequences */
    TOKENS_GRANTED = 16,               /* itl_target_ms: prompt tokens of a step even when there is no time for them */
    TOKENS_UNMEASURED = 64,            /* itl_target_ms: prompt tokens of a step while step times are unknown */
};
static const double TARGET_SHARE = 0.9;        /* of itl_target_ms is planned with: the rest is noise */

/* ---- admission ---- */

/* Another of its group is computing blocks that seq would otherwise compute as well. */
static bool held_by_group(const struct scheduler *s, const struct sequence *seq)
{
    int32_t leader = seq->sub->req.group ? id_map_get(&s->leaders, seq->sub->req.group) : -1;

    return leader >= 0 && s->pool.all[leader].num_published < (seq->num_prompt - 1) / s->kv.block_size;
}

/* Nobody waits for it any more. */
static bool too_late(const struct scheduler *s, const struct sequence *seq)
{
    return seq->start_by_ns && !seq->scheduled_ns && s->draft.now_ns > seq->start_by_ns;
}

static bool is_kept_out(const struct scheduler *s, const struct sequence *seq)
{
    return too_late(s, seq) || held_by_group(s, seq);
}

static bool may_admit(const struct scheduler *s)
{
    const struct step_draft *draft = &s->draft;

    return s->num_free_slots && draft->admissions_left && draft->batch->num_seqs < draft->max_seqs &&
           !(s->throttled && s->num_running);
}

static int32_t blocks_missing(const struct scheduler *s, const struct sequence *seq)
{
    if (seq->state == SEQ_ENDED) return 0;
    return kv_blocks_for(&s->kv, seq->num_tokens + seq->num_pending) - seq->num_blocks;
}

/* Blocks that running ones still need for the tokens they have. Most steps admit nobody and need not know. */
static int64_t committed_blocks(struct scheduler *s)
{
    struct step_draft *draft = &s->draft;

    if (draft->committed_known) return draft->committed;
    draft->committed = 0;
    for (int32_t i = 0; i < s->num_running; i++) draft->committed += blocks_missing(s, s->running[i]);
    draft->committed_known = true;
    return draft->committed;
}

/* Blocks for all tokens it has, beyond what running ones still need; a few more stay free for their growth. */
static bool has_room(struct scheduler *s, struct sequence *seq, int64_t freed, struct kv_match *match)
{
    int64_t kept = s->num_running ? 1 + s->num_running / WATERMARK_DIVISOR : 0;
    int64_t room = kv_cache_available(&s->kv) + freed - committed_blocks(s) - kept;

    if (room < 1) return false;
    *match = kv_cache_match(&s->kv, seq);
    return kv_blocks_for(&s->kv, seq->num_tokens) - match->num_hits + match->num_parked_hits <= room;
}

static void count_first_admission(struct scheduler *s, struct sequence *seq)
{
    seq->scheduled_ns = s->draft.now_ns;
    seq->num_cached = seq->num_computed < seq->num_prompt ? seq->num_computed : seq->num_prompt;
    s->stats.cache_hit_tokens += (uint64_t)seq->num_cached;
    s->stats.cache_miss_tokens += (uint64_t)(seq->num_prompt - seq->num_cached);
    if (!seq->start_by_ns) return;
    BUG_ON(s->num_begun >= s->options.max_num_seqs);
    s->begun[s->num_begun++] = seq->id;
}

/* In the order of seq_before, mostly at the end. */
static void running_insert(struct scheduler *s, struct sequence *seq)
{
    int32_t at = s->num_running++;

    for (; at && seq_before(seq, s->running[at - 1]); at--) s->running[at] = s->running[at - 1];
    s->running[at] = seq;
}

static bool admit(struct scheduler *s, struct sequence *seq)
{
    struct step_draft *draft = &s->draft;
    struct kv_match match;

    if (!may_admit(s)) return false;
    if (!has_room(s, seq, 0, &match)) {
        seq->passed_over++;
        return false;
    }
    list_remove(&seq->link);
    s->num_waiting--;
    if (in_turns(seq)) {               /* it has the lowest turn of all that can be served now */
        list_remove(&seq->ring);
        s->queue.num--;
        list_push_front(&s->prefilling.list, &seq->ring);
        s->prefilling.num++;
    }
    seq->slot = s->free_slots[--s->num_free_slots];
    seq->blocks = s->block_tables + (int64_t)seq->slot * draft->batch->plan->caps.max_blocks_per_seq;
    seq->state = SEQ_RUNNING;
    seq->admission = ++s->num_admissions;
    seq->passed_over = 0;
    running_insert(s, seq);
    kv_cache_adopt(&s->kv, seq, &match);
    draft->committed += blocks_missing(s, seq);        /* has_room made it known */
    draft->admissions_left--;
    draft->num_prompts++;
    if (s->reserved == seq) s->reserved = NULL;
    scheduler_start_leading(s, seq);
    if (!seq->scheduled_ns) count_first_admission(s, seq);
    return true;
}

/* ---- giving tokens ---- */

/* The worst running sequence after `than` that is in no plan. */
static struct sequence *pick_victim(struct scheduler *s, const struct sequence *than)
{
    for (int32_t i = s->num_running - 1; i >= 0 && s->running[i] != than; i--) {
        if (!s->running[i]->num_scheduled) return s->running[i];
    }
    return NULL;
}

static void push_out(struct scheduler *s, struct sequence *victim)
{
    s->draft.committed -= blocks_missing(s, victim);
    scheduler_preempt(s, victim);
    s->draft.admissions_left = 0;          /* what was pushed out must not come back in the same step */
}

static bool is_held(const struct scheduler *s, const struct sequence *seq)
{
    return s->draft.num_held && seq->held_step == s->step;
}

/* It is pushed out when it is next needed: once it is in no plan. */
static void hold(struct scheduler *s, struct sequence *seq)
{
    seq->held_step = s->step;
    s->draft.num_held++;
    s->draft.admissions_left = 0;          /* the room that will be is not theirs */
}

/* Overlap: all that could be pushed out for `than` are in flight. The worst of them is kept out of this step. */
static void hold_victim(struct scheduler *s, const struct sequence *than)
{
    for (int32_t i = s->num_running - 1; s->options.overlap && i >= 0 && s->running[i] != than; i--) {
        struct sequence *seq = s->running[i];
        if (seq->state == SEQ_ENDED) return;           /* its blocks come with the next commit */
        if (seq->num_drafted || is_held(s, seq)) continue;
        hold(s, seq);
        return;
    }
}

/* Blocks for `want` tokens more; fewer tokens when only those fit, 0 when not even one. */
static int32_t reserve_tokens(struct scheduler *s, struct sequence *seq, int32_t want)
{
    int32_t held = seq_next_position(seq), before = seq->num_blocks;
    struct sequence *victim;
    int64_t room;

    if (held + want <= before * s->kv.block_size) return want;
    while ((room = ((int64_t)before + kv_cache_available(&s->kv)) * s->kv.block_size - held) < 1) {
        if (!(victim = pick_victim(s, seq))) {
            hold_victim(s, seq);
            return 0;
        }
        push_out(s, victim);
    }
    if (want > room) want = (int32_t)room;
    BUG_ON(kv_cache_reserve(&s->kv, seq, held + want) < 0);
    s->draft.committed -= seq->num_blocks - before;
    return want;
}

/* itl_target_ms: how many of `want` prompt tokens the decodes of this step can bear. */
static int32_t bearable(const struct scheduler *s, const struct sequence *seq, int32_t want)
{
    const struct step_draft *draft = &s->draft;
    int32_t held = seq_next_position(seq);
    int32_t fits = step_time_ready(&s->step_time) ? step_time_fit(&s->step_time, draft->ms_left, held, want) : 0;

    if (fits < draft->tokens_granted) fits = draft->tokens_granted;
    return want < fits ? want : fits;
}

static void count_given(struct scheduler *s, const struct sequence *seq, int32_t given)
{
    struct step_draft *draft = &s->draft;
    int64_t keys = step_time_keys(seq_next_position(seq), given);

    draft->batch->num_keys += keys;
    draft->budget -= given;
    if (!draft->timed) return;
    draft->ms_left -= step_time_of(&s->step_time, given, keys) - step_time_of(&s->step_time, 0, 0);
    draft->tokens_granted = draft->tokens_granted > given ? draft->tokens_granted - given : 0;
}

/* From the first token that is to be scored on, each takes a row: as many as the step has left. */
static int32_t scorable(const struct step_draft *draft, const struct sequence *seq, int32_t want)
{
    int32_t held = seq_next_position(seq), rows = draft->batch->plan->caps.max_rows - draft->used.rows;
    int32_t without = held < seq->num_scored ? seq->num_scored - held : 0;

    if (seq_num_scores(seq, held, want) <= rows) return want;
    return without + rows;
}

/* Puts up to `want` more tokens of a running sequence into the step. Returns how many. */
static int32_t give(struct scheduler *s, struct sequence *seq, int64_t want)
{
    struct step_draft *draft = &s->draft;
    struct row_need need = row_need_of(seq, &s->options.eos);
    int32_t left = seq_num_left(seq);
    bool is_new = !seq->num_drafted;

    if (is_held(s, seq)) return 0;
    if (want > left) want = left;
    if (want > draft->budget) want = draft->budget;
    if (want > draft->chunk_cap - seq->num_drafted) want = draft->chunk_cap - seq->num_drafted;
    if (want > 0 && draft->timed) {
        want = bearable(s, seq, (int32_t)want);
        if (!want) draft->budget = 0;  /* no time left */
    }
    if (seq->num_to_score) want = scorable(draft, seq, (int32_t)want);
    need.rows += seq_num_scores(seq, seq_next_position(seq), (int32_t)want);
    if (want == left && !row_need_fits(&draft->used, &need, &draft->batch->plan->caps)) want--;
    if (want < 1 || (is_new && draft->batch->num_seqs == draft->max_seqs)) return 0;
    int32_t given = reserve_tokens(s, seq, (int32_t)want);
    if (!given) return 0;
    if (is_new) draft->batch->seqs[draft->batch->num_seqs++] = seq;
    draft->used.rows += seq_num_scores(seq, seq_next_position(seq), given);
    if (given == left) {
        draft->num_ending += left > 1;
        draft->used.rows += !seq->only_scores;
        draft->used.bias += need.bias;
        draft->used.history_tokens += need.history_tokens;
    }
    count_given(s, seq, given);
    seq->num_scheduled += given;
    seq->num_drafted += given;
    return given;
}

/* What nearly all decodes are: one row that needs nothing, and a place left in the last block. */
static bool give_plain(struct scheduler *s, struct sequence *seq)
{
    struct step_draft *draft = &s->draft;
    struct batch *batch = draft->batch;
    int32_t position = seq_next_position(seq);

    if (!seq->is_plain || position >= seq->num_blocks * s->kv.block_size || is_held(s, seq)) return false;
    if (batch->num_seqs == draft->max_seqs || draft->used.rows == batch->plan->caps.max_rows) return false;
    batch->seqs[batch->num_seqs++] = seq;
    batch->num_keys += position + 1;
    seq->num_scheduled++;
    seq->num_drafted = 1;
    draft->used.rows++;
    draft->budget--;
    return true;
}

static void give_decodes(struct scheduler *s)
{
    /* only later ones are pushed out by a turn */
    for (int32_t i = 0; i < s->num_running && s->draft.budget; i++) {
        struct sequence *seq = s->running[i];
        if (i + PREFETCH < s->num_running) __builtin_prefetch(s->running[i + PREFETCH]);
        int32_t left = seq_num_left(seq);
        if (left != 1 || seq_waits(seq)) s->draft.num_prompts += left > 0;
        else if (!give_plain(s, seq)) give(s, seq, 1);
    }
}

/* Prompts may take what the decodes of the step leave of the target. */
static void start_timing(struct scheduler *s)
{
    struct step_draft *draft = &s->draft;
    const struct batch *batch = draft->batch;

    if (!s->options.itl_target_ms || !batch->num_seqs) return;
    draft->timed = true;
    draft->ms_left = TARGET_SHARE * s->options.itl_target_ms -
                     step_time_of(&s->step_time, s->options.max_num_batched_tokens - draft->budget, batch->num_keys);
    draft->tokens_granted = step_time_ready(&s->step_time) ? TOKENS_GRANTED : TOKENS_UNMEASURED;
}

/* ---- fcfs and priority ---- */

static void give_in_order(struct scheduler *s)
{
    int32_t num_kept_out = 0;

    for (int32_t i = 0; s->draft.num_prompts && i < s->num_running && s->draft.budget; i++) {
        struct sequence *seq = s->running[i];
        if (seq_num_left(seq) && !seq_waits(seq)) give(s, seq, INT32_MAX);
    }
    list_for_each_safe(it, tmp, &s->waiting) {
        struct sequence *seq = list_entry(it, struct sequence, link);
        if (!s->draft.budget || !may_admit(s)) return;
        if (is_kept_out(s, seq)) {
            if (++num_kept_out == WAITING_SCAN) return;
            continue;
        }
        if (!admit(s, seq)) return;
        give(s, seq, INT32_MAX);
    }
}

/* Index, at `from` or before, of the worst running one that `urgent` may push out: after it in the order, of a strictly
 * worse value, in no plan (overlap: if it is in one it can be held). -1: none. */
static int32_t pick_for_urgent(const struct scheduler *s, const struct sequence *urgent, int32_t from)
{
    for (int32_t i = from; i >= 0 && seq_before(urgent, s->running[i]); i--) {
        const struct sequence *seq = s->running[i];
        if (seq->state == SEQ_ENDED || seq->priority <= urgent->priority) continue;
        if (!seq->num_scheduled || s->options.overlap) return i;
    }
    return -1;
}

/* Would it run if all that it may push out were gone? Shared blocks count for each holder, so this may say yes too
 * often. */
static bool worth_pushing(struct scheduler *s, struct sequence *urgent)
{
    int32_t victim = pick_for_urgent(s, urgent, s->num_running - 1);
    int64_t freed = 0;
    struct kv_match match;

    while (victim >= 0) {
        freed += kv_blocks_for(&s->kv, s->running[victim]->num_tokens);
        if (has_room(s, urgent, freed, &match)) return true;
        victim = pick_for_urgent(s, urgent, victim - 1);
    }
    return false;
}

/* Overlap: the blocks of those in flight come with a commit; until then enough of them are held. */
static int64_t hold_for_urgent(struct scheduler *s, struct sequence *victim)
{
    hold(s, victim);
    return victim->num_blocks;
}

/* priority: the first that waits pushes out running ones of worse value, when that lets it run. */
static void push_out_for_urgent(struct scheduler *s)
{
    struct kv_match match;

    if (s->options.policy != POLICY_PRIORITY || list_empty(&s->waiting)) return;
    struct sequence *urgent = list_entry(s->waiting.next, struct sequence, link);
    if (is_kept_out(s, urgent) || (s->num_free_slots && has_room(s, urgent, 0, &match))) return;
    if (!worth_pushing(s, urgent)) return;
    int32_t from = s->num_running;
    int64_t coming = 0;
    while (!(s->num_free_slots + s->draft.num_held) || !has_room(s, urgent, coming, &match)) {
        if ((from = pick_for_urgent(s, urgent, from - 1)) < 0) return;
        if (s->running[from]->num_scheduled) coming += hold_for_urgent(s, s->running[from]);
        else push_out(s, s->running[from]);
    }
    if (!s->draft.num_held) s->draft.admissions_left = 1;
}

/* ---- fair ---- */

static int64_t quantum_of(const struct scheduler *s, const struct sequence *seq)
{
    int64_t quantum = s->options.max_num_batched_tokens / QUANTUM_DIVISOR;
    int64_t age = 1 + (int64_t)((s->step - seq->waiting_since) / AGE_STEPS);

    if (quantum < QUANTUM_MIN) quantum = QUANTUM_MIN;
    return quantum * (age < AGE_MOST ? age : AGE_MOST);
}

static void turn_ends(struct scheduler *s, struct sequence *seq)
{
    list_remove(&seq->ring);
    list_push_back(&s->prefilling.list, &seq->ring);
    seq->turn = s->last_turn++;
}

/* One turn of a running prompt. False when it could not use it. */
static bool take_turn(struct scheduler *s, struct sequence *seq)
{
    if (!seq_num_left(seq)) {
        turns_leave(s, seq);
        return true;
    }
    if (seq_waits(seq)) {
        turn_ends(s, seq);
        return false;
    }
    if (seq->deficit <= 0) seq->deficit += quantum_of(s, seq);
    int32_t given = give(s, seq, seq->deficit);
    seq->deficit -= given;
    if (!seq_num_left(seq)) turns_leave(s, seq);
    /* one that the budget interrupted goes on next step */
    else if (!given || seq->deficit <= 0 || s->draft.budget) turn_ends(s, seq);
    return given > 0;
}

/* A waiting prompt's turn has come. One that finds no room keeps its place; after long it gets the next room. */
static bool let_in(struct scheduler *s, struct sequence *seq)
{
    if ((s->reserved && s->reserved != seq) || is_kept_out(s, seq)) return false;
    if (admit(s, seq)) return true;
    if (seq->passed_over > PATIENCE_STEPS && !s->reserved) s->reserved = seq;
    return false;
}

static struct sequence *at_turn(const struct turns *turns, struct list *it)
{
    return it == &turns->list ? NULL : list_entry(it, struct sequence, ring);
}

static void give_fair(struct scheduler *s)
{
    struct list *next = s->reserved ? &s->reserved->ring : s->queue.list.next;
    int32_t running_in_vain = 0, waiting_in_vain = 0;

    while (s->draft.budget) {
        bool letting = waiting_in_vain < WAITING_SCAN && may_admit(s);
        struct sequence *waiting = letting ? at_turn(&s->queue, next) : NULL;
        bool going_on = running_in_vain < s->prefilling.num;
        struct sequence *seq = going_on ? at_turn(&s->prefilling, s->prefilling.list.next) : NULL;
        if (waiting && (!seq || waiting->turn < seq->turn)) {
            next = waiting->ring.next;
            waiting_in_vain++;
            if (!let_in(s, waiting)) continue;
            waiting_in_vain = 0;
            seq = waiting;
        }
        if (!seq) return;
        running_in_vain = take_turn(s, seq) ? 0 : running_in_vain + 1;
    }
}

/* ---- a step ---- */

static struct batch *free_batch(struct scheduler *s)
{
    for (int32_t i = 0; i < s->options.num_plans; i++) {
        if (!s->batches[i].in_flight) return &s->batches[i];
    }
    return NULL;
}

static void begin_draft(struct scheduler *s, struct batch *batch, int64_t now_ns)
{
    int32_t could_run = s->num_running + (s->num_waiting < s->num_free_slots ? s->num_waiting : s->num_free_slots);
    int32_t shares = s->options.overlap ? 1 : s->options.num_plans;

    s->draft = (struct step_draft){
        .batch = batch, .budget = s->options.max_num_batched_tokens, .admissions_left = INT32_MAX, .now_ns = now_ns,
        .max_seqs = (could_run + shares - 1) / shares,
        .chunk_cap = s->options.long_prefill_chunk ? s->options.long_prefill_chunk : INT32_MAX,
    };
    step_plan_reset(batch->plan);
    batch->plan->step = s->step;
    batch->plan->block_size = s->options.block_size;
    batch->plan->micro_batch = (int32_t)(batch - s->batches);
    batch->num_seqs = 0;
    batch->num_keys = 0;
}

/* Decodes first. One that was in this plan's memory before keeps its place there (plan_owners), the others fill the gaps.
 * Returns how many. */
static int32_t place_sequences(struct scheduler *s, struct batch *batch)
{
    struct sequence **drafted = batch->seqs, **placed = s->placed;
    int32_t n = batch->num_seqs, num_decodes = 0, num_others = 0, left = 0, next = 0;

    for (int32_t i = 0; i < n; i++) num_decodes += drafted[i]->num_drafted == 1;
    memset(placed, 0, (size_t)num_decodes * sizeof *placed);
    for (int32_t i = 0; i < n; i++) {
        struct sequence *seq = drafted[i];
        int32_t place = batch->places[seq->slot];
        if (seq->num_drafted != 1) placed[num_decodes + num_others++] = seq;
        else if (place < num_decodes && batch->owners.tables[place] == seq->admission) placed[place] = seq;
        else drafted[left++] = seq;
    }
    for (int32_t p = 0; next < left; p++) {
        if (placed[p]) continue;
        batch->places[drafted[next]->slot] = p;
        placed[p] = drafted[next++];
    }
    batch->seqs = placed;
    s->placed = drafted;
    return num_decodes;
}

static void fill_plan(struct scheduler *s, struct batch *batch)
{
    batch->plan->num_decode_seqs = place_sequences(s, batch);
    plan_fill(batch->plan, &batch->owners, batch->seqs, batch->num_seqs, &s->options.eos, batch->rows);
}

const struct step_plan *scheduler_next_step(struct scheduler *s, int64_t now_ns)
{
    struct batch *batch = free_batch(s);

    if (!batch || !s->pool.num_used) return NULL;
    s->step++;
    s->kv.now_ns = now_ns;
    begin_draft(s, batch, now_ns);
    push_out_for_urgent(s);
    give_decodes(s);
    start_timing(s);
    for (int pass = 0; pass < 2 && s->draft.budget; pass++) {
        if (s->options.policy == POLICY_FAIR) give_fair(s);
        else give_in_order(s);
        if (s->draft.chunk_cap == INT32_MAX) break;
        /* The first token of a prompt that ends in this step would wait for all that the long ones take beside it. */
        if (s->options.policy == POLICY_FAIR && s->draft.num_ending) break;
        s->draft.chunk_cap = INT32_MAX;    /* second pass: what nobody else wanted */
    }
    if (!batch->num_seqs) return NULL;
    fill_plan(s, batch);
    batch->in_flight = true;
    return batch->plan;
}
