/* generation.c - a request's choices: tokens in, visible text out. Detokenizing and stop matching happen here, on the loop, as
 * events arrive, so a slow reader never delays a stop or a resume. */
#include "router_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/clock.h"
#include "base/log.h"

static int64_t resolve_max_tokens(const struct generation_params *params, size_t prompt_len, int32_t max_model_len)
{
    int64_t room = (int64_t)max_model_len - (int64_t)prompt_len;

    if (room < 0) room = 0;
    return params->max_tokens >= 0 && params->max_tokens < room ? params->max_tokens : room;
}

/* A request can only shorten the configured limit; the clock runs from arrival. 0 = none. */
static int64_t deadline(const struct generation_spec *spec, int64_t request_ms, int64_t config_ms)
{
    int64_t ms = request_ms > 0 && (config_ms <= 0 || request_ms < config_ms) ? request_ms : config_ms;

    return ms > 0 ? spec->arrival_ms + ms : 0;
}

static void init_choice(struct generation *gen, int32_t index, const struct tokenizer *tok, int32_t max_model_len)
{
    const struct generation_params *params = gen->spec.params;
    struct choice *choice = &gen->choices[index];
    int32_t prompt = index / params->n;

    choice->gen = gen;
    choice->index = index;
    choice->prompt = prompt;
    choice->max_tokens = (uint32_t)resolve_max_tokens(params, gen->spec.prompts[prompt].n, max_model_len);
    list_init(&choice->link);
    detok_init(&choice->detok, tok, params->skip_special_tokens, true);
}

struct generation *generation_new(const struct router *router, const struct generation_spec *spec, uint64_t id, struct err *err)
{
    const struct config *config = router->config;
    const struct generation_params *params = spec->params;
    size_t n = spec->n_prompts * (size_t)params->n;
    struct generation *gen = calloc(1, sizeof *gen);

    BUG_ON(!n || n > MAX_GENERATION_CHOICES);
    if (!gen) goto no_memory;
    gen->choices = calloc(n, sizeof *gen->choices);
    if (!gen->choices) goto no_memory;
    if (params->n_stop && stop_set_new(&gen->stop_set, params->stop, params->stop_lens, params->n_stop, err) < 0) {
        generation_free(gen);
        return NULL;
    }
    gen->id = id;
    gen->spec = *spec;
    gen->num_choices = (int32_t)n;
    list_init(&gen->link);
    for (size_t i = 0; i < spec->n_prompts; i++) gen->usage.prompt_tokens += spec->prompts[i].n;
    for (int32_t i = 0; i < gen->num_choices; i++) init_choice(gen, i, router->tokenizer, router->max_model_len);
    gen->deadline_queue_ms = deadline(spec, params->timeout_queue_ms, config->timeout_queue_ms);
    gen->deadline_ttft_ms = deadline(spec, params->timeout_ttft_ms, config->timeout_ttft_ms);
    gen->deadline_total_ms = deadline(spec, params->timeout_total_ms, config->timeout_total_ms);
    return gen;
no_memory:
    generation_free(gen);
    err_set(err, ERR_NO_MEMORY, "out of memory");
    return NULL;
}

void generation_free(struct generation *gen)
{
    if (!gen) return;
    for (int32_t i = 0; gen->choices && i < gen->num_choices; i++) {
        struct choice *choice = &gen->choices[i];
        free(choice->log);
        free(choice->held);
        free(choice->held_top);
        buf_release(&choice->tail);
    }
    stop_set_free(gen->stop_set);
    free(gen->choices);
    free(gen);
}

static void end_generation(struct router *router, struct generation *gen, const struct err *err)
{
    uint32_t longest = 0;

    for (int32_t i = 0; i < gen->num_choices; i++) {
        dispatch_release(router, &gen->choices[i]);
        if (gen->choices[i].num_log > longest) longest = gen->choices[i].num_log;
    }
    if (gen->started) metric_observe(M_MAX_GENERATION, 0, longest);
    router_forget(router, gen);
    gen->spec.sink->done(gen->spec.sink_arg, &gen->usage, err);
    generation_free(gen);
}

void generation_fail(struct router *router, struct generation *gen, const struct err *err)
{
    for (int32_t i = 0; i < gen->num_choices; i++) {
        if (gen->choices[i].state == CHOICE_FINISHED) continue;
        dispatch_abort(router, &gen->choices[i]);
        metric_add(M_REQUESTS_FINISHED, err->code == ERR_ENDED ? FINISHED_ABORT : FINISHED_ERROR, 1);
    }
    end_generation(router, gen, err);
}

void generation_finish(struct router *router, struct generation *gen) { end_generation(router, gen, NULL); }

/* ---- one token ---- */

static bool grow_log(struct choice *choice)
{
    if (choice->num_log < choice->cap_log) return true;
    uint32_t cap = choice->cap_log ? choice->cap_log * 2 : 32;
    token_id *log = realloc(choice->log, cap * sizeof *log);
    if (!log) return false;
    choice->log = log;
    choice->cap_log = cap;
    return true;
}

static bool hold_token(struct choice *choice, const struct token_event *event, const struct token_logprob *top)
{
    bool want_top = choice->gen->spec.params->sampling.num_logprobs >= 0;

    if (choice->num_held == choice->cap_held) {
        size_t cap = choice->cap_held ? choice->cap_held * 2 : 4;
        struct delta_token *held = realloc(choice->held, cap * sizeof *held);
        if (held) choice->held = held;
        struct token_logprob *held_top = !want_top ? NULL : realloc(choice->held_top, cap * MAX_TOP_LOGPROBS * sizeof *held_top);
        if (held_top) choice->held_top = held_top;
        if (!held || (want_top && !held_top)) return false;
        choice->cap_held = cap;
    }
    size_t i = choice->num_held++;
    choice->held[i] = (struct delta_token){ .id = event->token, .logprob = event->logprob, .rank = event->rank };
    if (want_top && top) {
        choice->held[i].num_top = event->num_top;
        memcpy(choice->held_top + i * MAX_TOP_LOGPROBS, top, event->num_top * sizeof *top);
    }
    return true;
}

/* The engine's clock is the host's; what does not fit between the last token and now is pulled into it. */
static int64_t within(int64_t ns, int64_t low, int64_t high) { return ns < low ? low : ns > high ? high : ns; }

static void observe_times(struct router *router, struct choice *choice, const struct token_event *event)
{
    int64_t arrival_ns = choice->gen->spec.arrival_ms * 1000000, now_ns = router->now_ns;
    int64_t step_ns = within(event->step_ns, choice->last_ns ? choice->last_ns : arrival_ns, now_ns);

    if (!choice->first_ns) {
        int64_t scheduled_ns = within(event->scheduled_ns, arrival_ns, step_ns);
        size_t prompt_len = choice->gen->spec.prompts[choice->prompt].n;
        choice->first_ns = step_ns;
        choice->scheduled_ns = scheduled_ns;
        metric_observe(M_TTFT, 0, (double)(step_ns - arrival_ns) / 1e9);
        metric_observe(M_QUEUE, 0, (double)(scheduled_ns - arrival_ns) / 1e9);
        metric_observe(M_PREFILL, 0, (double)(step_ns - scheduled_ns) / 1e9);
        metric_observe(M_PREFILL_COMPUTED, 0, prompt_len > event->num_cached ? (double)(prompt_len - event->num_cached) : 0);
    } else {
        metric_observe(M_ITL, 0, (double)(step_ns - choice->last_ns) / 1e9);
    }
    if (choice->lost_ms) {
        metric_add(M_STREAMS_RESUMED, 0, 1);
        metric_observe(M_STREAM_RESUME, 0, (double)(now_ns / 1000000 - choice->lost_ms) / 1e3);
        choice->lost_ms = 0;
    }
    choice->num_losses = 0;
    choice->last_ns = step_ns;
}

static void observe_finish(const struct choice *choice, uint8_t finish)
{
    metric_add(M_REQUESTS_FINISHED, finish == FINISH_LENGTH ? FINISHED_LENGTH : FINISHED_STOP, 1);
    metric_observe(M_REQ_GENERATION_TOKENS, 0, choice->num_log);
    if (!choice->num_log) return;
    if (choice->num_log > 1) metric_observe(M_TPOT, 0, (double)(choice->last_ns - choice->first_ns) / 1e9 / (choice->num_log - 1));
    metric_observe(M_E2E, 0, (double)(choice->last_ns - choice->gen->spec.arrival_ms * 1000000) / 1e9);
    metric_observe(M_DECODE, 0, (double)(choice->last_ns - choice->first_ns) / 1e9);
    metric_observe(M_INFERENCE, 0, (double)(choice->last_ns - choice->scheduled_ns) / 1e9);
}

/* Hands the first len bytes of the tail and every held token to the sink. */
static void emit(struct choice *choice, size_t len, uint8_t finish, int32_t stop_index)
{
    struct generation *gen = choice->gen;

    for (size_t i = 0; i < choice->num_held; i++) choice->held[i].top = choice->held_top ? choice->held_top + i * MAX_TOP_LOGPROBS : NULL;
    struct text_delta delta = {
        .choice = choice->index,
        .text = choice->tail.data ? choice->tail.data : "",
        .len = len,
        .tokens = choice->held,
        .num_tokens = choice->num_held,
        .finish = finish,
        .stop_index = stop_index,
        .stop_token = finish == FINISH_STOP_TOKEN ? choice->log[choice->num_log - 1] : TOKEN_NONE,
        .num_generated = choice->num_log,
    };
    gen->spec.sink->delta(gen->spec.sink_arg, &delta, &gen->usage);
    choice->num_held = 0;
    if (!len) return;
    memmove(choice->tail.data, choice->tail.data + len, choice->tail.len - len + 1);
    choice->tail.len -= len;
}

static void finish_choice(struct router *router, struct choice *choice, size_t len, uint8_t finish, int32_t stop_index)
{
    struct generation *gen = choice->gen;

    dispatch_release(router, choice);
    observe_finish(choice, finish);
    gen->num_finished++;
    emit(choice, len, finish, stop_index);
    if (gen->num_finished == gen->num_choices) generation_finish(router, gen);
}

/* New text of this token is at the end of the tail, from `fresh` on. Shows what can be shown; true when a stop string ended it. */
static bool match_stops(struct router *router, struct choice *choice, size_t fresh, size_t *visible)
{
    struct generation *gen = choice->gen;
    const struct generation_params *params = gen->spec.params;
    size_t tail_start = choice->fed_len - choice->tail.len;     /* position of the tail's first byte in the whole text */
    size_t safe = choice->fed_len, match_end = 0;

    *visible = choice->tail.len;
    if (!gen->stop_set || choice->num_log < (uint32_t)params->min_tokens) return false;
    int match = stop_push(gen->stop_set, &choice->stop, choice->tail.data ? choice->tail.data + fresh : "",
                          choice->tail.len - fresh, tail_start + fresh, &safe, &match_end);
    if (match < 0) {
        *visible = safe > tail_start ? safe - tail_start : 0;
        return false;
    }
    size_t end = params->include_stop_str_in_output ? match_end : safe;
    dispatch_abort(router, choice);
    finish_choice(router, choice, end > tail_start ? end - tail_start : 0, FINISH_STOP_STRING, match);
    return true;
}

bool choice_has_work(const struct choice *choice)
{
    const struct generation_spec *spec = &choice->gen->spec;
    return choice->max_tokens > 0 || (spec->params->score_prompt && spec->prompts[choice->prompt].n > 1);
}

static bool all_scored(const struct choice *choice)
{
    const struct generation_spec *spec = &choice->gen->spec;
    return !spec->params->score_prompt || choice->num_scored + 1 >= spec->prompts[choice->prompt].n;
}

static bool event_is_sane(const struct router *router, const struct choice *choice, const struct token_event *event)
{
    int32_t asked_top = choice->gen->spec.params->sampling.num_logprobs;

    if (event->finish > FINISH_ERROR) return false;
    if (event->finish == FINISH_ABORTED || event->finish == FINISH_ERROR) return event->num_top == 0;
    if (event->num_top > (asked_top > 0 ? asked_top : 0) || isnan(event->logprob) || !all_scored(choice)) return false;
    if (!choice->max_tokens) return event->token == TOKEN_NONE && event->finish == FINISH_LENGTH && event->num_top == 0;
    /* an engine that goes on after the last token would leave the client waiting for ever */
    if (event->index == choice->max_tokens && event->finish == FINISH_NONE) return false;
    return event->token >= 0 && event->token < router->replicas[choice->replica].vocab_size &&
           event->index == choice->num_log + 1 && event->index <= choice->max_tokens;
}

/* A prompt is scored from its beginning on by every replica that gets it: what was told before is passed over. */
bool choice_scored(struct choice *choice, const struct scored_token *scored, size_t n)
{
    struct generation *gen = choice->gen;
    const struct prompt_tokens *prompt = &gen->spec.prompts[choice->prompt];
    struct delta_token tokens[MAX_SCORED];
    struct text_delta delta = { .choice = choice->index, .text = "", .stop_index = -1, .stop_token = TOKEN_NONE, .tokens = tokens };

    BUG_ON(n > MAX_SCORED);
    for (size_t i = 0; i < n; i++) {
        const struct prompt_row_head *head = &scored[i].head;
        bool known = head->position >= 1 && head->position < prompt->n && head->token == prompt->ids[head->position];
        if (!known || !gen->spec.params->score_prompt || choice->num_log || isnan(head->logprob)) return false;
        if (head->position <= choice->num_scored) continue;
        if (head->position != choice->num_scored + 1 || head->n > (uint32_t)gen->spec.params->num_prompt_logprobs) return false;
        choice->num_scored++;
        if (!delta.num_tokens) delta.prompt_begin = head->position;
        tokens[delta.num_tokens++] = (struct delta_token){ .id = head->token, .logprob = head->logprob, .rank = head->rank,
                                                           .num_top = (int32_t)head->n, .top = scored[i].top };
    }
    if (delta.num_tokens) gen->spec.sink->delta(gen->spec.sink_arg, &delta, &gen->usage);
    return true;
}

static void fail_choice(struct router *router, struct choice *choice, int code, const char *message)
{
    struct err err = { 0 };

    err_set(&err, code, "%s", message);
    generation_fail(router, choice->gen, &err);
}

/* The engine ended the choice without a token. */
static void end_by_engine(struct router *router, struct choice *choice, const struct token_event *event)
{
    dispatch_release(router, choice);
    metric_add(M_REQUESTS_FINISHED, FINISHED_ERROR, 1);
    if (event->finish == FINISH_ERROR && event->err_code == ERR_CONTEXT_LENGTH)
        fail_choice(router, choice, ERR_CONTEXT_LENGTH, "The prompt does not fit in the KV cache.");
    else if (event->finish == FINISH_ERROR && event->err_code == ERR_DEAD_END)
        fail_choice(router, choice, ERR_DEAD_END, "Nothing that the request allows could come next.");
    else
        fail_choice(router, choice, ERR_INTERNAL, "The engine could not finish this request.");
}

/* Usage, log, metrics. */
static bool log_token(struct router *router, struct choice *choice, const struct token_event *event, const struct token_logprob *top)
{
    struct generation *gen = choice->gen;

    if (!grow_log(choice) || !hold_token(choice, event, top)) return false;
    if (!choice->num_log && choice->index % gen->spec.params->n == 0) {      /* n choices share one prompt */
        size_t prompt_len = gen->spec.prompts[choice->prompt].n;
        gen->usage.cached_tokens += event->num_cached < prompt_len ? event->num_cached : prompt_len;
    }
    gen->usage.completion_tokens++;
    gen->started = true;
    router_leave_queue(router, choice);
    choice->log[choice->num_log++] = event->token;
    metric_add(M_GENERATION_TOKENS, 0, 1);
    observe_times(router, choice, event);
    return true;
}

bool choice_token(struct router *router, struct choice *choice, const struct token_event *event, const struct token_logprob *top)
{
    if (!event_is_sane(router, choice, event)) return false;
    if (event->finish == FINISH_ERROR || event->finish == FINISH_ABORTED) {
        end_by_engine(router, choice, event);
        return true;
    }
    if (event->token == TOKEN_NONE) {        /* only its prompt was wanted */
        finish_choice(router, choice, 0, FINISH_LENGTH, -1);
        return true;
    }
    if (!log_token(router, choice, event, top)) {
        fail_choice(router, choice, ERR_NO_MEMORY, "out of memory");
        return true;
    }

    size_t fresh = choice->tail.len, visible;
    bool hidden = event->finish == FINISH_EOS || event->finish == FINISH_STOP_TOKEN;
    if (!hidden) detok_push(&choice->detok, event->token, &choice->tail);
    if (event->finish != FINISH_NONE) detok_finish(&choice->detok, &choice->tail);
    choice->fed_len += choice->tail.len - fresh;
    if (choice->tail.failed) {
        fail_choice(router, choice, ERR_NO_MEMORY, "out of memory");
        return true;
    }
    if (match_stops(router, choice, fresh, &visible)) return true;
    if (event->finish != FINISH_NONE) finish_choice(router, choice, choice->tail.len, event->finish, -1);
    else if (visible) emit(choice, visible, FINISH_NONE, -1);
    return true;
}
