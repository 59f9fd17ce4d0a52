#include "engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <sluice/channel_fd.h>
#include <sluice/ipc.h>

#include "base/buf.h"
#include "base/bug.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/ring.h"
#include "crash_record.h"
#include "engine_fit.h"
#include "flights.h"
#include "headroom.h"
#include "trace.h"

enum {
    OUTBOX_BYTES = 4 << 20,
    INBOX_MESSAGES = SCHEDULER_MAX_NOTES,
    INTERVAL_NS = 100000000,           /* MSG_PROGRESS, MSG_STATS */
    FLUSH_MS = 1000,
    HEADROOM_MS = 1000,
    STARVED_MS = 10,                   /* all that wait are too late: their aborts are on the way */
    LONG_STEP_MS = 20,                 /* the step behind such a one is planned late, */
    LONG_STEP_PART = 80,               /* after so many hundredths of it */
};

struct engine {
    struct channel_fd *channel;
    struct engine_page *page;          /* NULL: nobody watches */
    void (*leave)(int exit_code);
    struct ring inbox;                 /* I/O thread -> engine: struct submission */
    struct ring give_back;             /* engine -> I/O thread: to be freed */
    _Atomic bool ready, stopping, stop_asked;
    struct submission_limits limits;   /* const once ready */
    int32_t vocab_size;

    /* engine thread only */
    struct ranks *ranks;
    struct scheduler scheduler;
    struct headroom_watch *headroom;   /* NULL: memory is not watched */
    struct trace *trace;               /* NULL: none is written */
    struct flights flights;
    int rank_error;                    /* ends the loop */
    uint64_t longest_step_ns;
    int64_t woken_ns;                  /* when there was work again after there was none */
    struct samples samples;
    struct buf out;                    /* frames of this step; grown before READY, never after */
    int64_t told_ns;                   /* last MSG_STATS */
    bool stats_stale;                  /* something happened since */
    bool starved;                      /* there are sequences, but none that may run, and no step that could change it */

    pthread_mutex_t progress_lock;     /* progress_ns; loading only */
    int64_t progress_ns;
};

static void page_set(uint64_t *field, uint64_t value) { __atomic_store_n(field, value, __ATOMIC_RELAXED); }

/* ---- I/O thread ---- */

static void free_given_back(void *arg)
{
    struct engine *engine = arg;
    struct submission *sub;

    if (!atomic_load(&engine->ready)) return;
    while ((sub = ring_pop(&engine->give_back))) submission_free(sub);
}

/* A request that cannot be decoded is this request's end, not the engine's. */
static struct submission *decode_submit(struct engine *engine, const void *payload, size_t len)
{
    struct ipc_limits limits = { .vocab_size = engine->vocab_size, .max_model_len = INT32_MAX };
    struct engine_request req;
    struct err err = { 0 };
    uint64_t id;

    if (ipc_get_submit(payload, len, &limits, &req, &err) == 0) return submission_new(&req, &engine->limits);
    log_warn("request_refused", "%s", err.message);
    if (len < sizeof id) return NULL;
    memcpy(&id, payload, sizeof id);
    return submission_note(SUBMISSION_REFUSED, id, ERR_INTERNAL);
}

static struct submission *decode(struct engine *engine, const struct frame_head *head, const void *payload)
{
    struct msg_abort message;

    if (head->type == MSG_SUBMIT) return decode_submit(engine, payload, head->len);
    if (head->type != MSG_ABORT || head->len != sizeof message) return NULL;
    memcpy(&message, payload, sizeof message);
    struct submission *sub = submission_note(SUBMISSION_ABORT, message.id, 0);
    if (sub) sub->seen_ns = message.seen_ns;
    return sub;
}

static int on_frame(void *arg, const struct frame_head *head, const void *payload)
{
    struct engine *engine = arg;

    if (head->type == MSG_STOP) {
        atomic_store(&engine->stop_asked, true);
        return ERR_ENDED;
    }
    if (!atomic_load(&engine->ready)) return ERR_PROTOCOL;
    if (ring_count(&engine->inbox) == INBOX_MESSAGES) return ERR_QUEUE_FULL;     /* the only writer is this thread */
    free_given_back(engine);
    struct submission *sub = decode(engine, head, payload);
    if (!sub) return ERR_PROTOCOL;
    BUG_ON(ring_push(&engine->inbox, sub) < 0);
    return 0;
}

static void on_ended(void *arg, int code)
{
    struct engine *engine = arg;
    bool polite = code == ERR_ENDED;

    if (!polite) log_error("gateway_stream", "stream from the gateway broke: %s", err_name(code));
    atomic_store(&engine->stopping, true);
    if (engine->leave && !(atomic_load(&engine->stop_asked) && atomic_load(&engine->ready)))
        engine->leave(polite ? 0 : EXIT_FAULT);
    ring_close(&engine->inbox);
}

static const struct channel_fd_events channel_callbacks = {
    .frame = on_frame, .ended = on_ended, .woken = free_given_back};

/* ---- start ---- */

int engine_open(struct engine **out, int fd, int page_fd, void (*leave)(int exit_code), struct err *err)
{
    struct engine *engine = calloc(1, sizeof *engine);
    int rc;

    if (!engine || ring_init(&engine->inbox, INBOX_MESSAGES) < 0) {
        free(engine);
        close(fd);
        return err_set(err, ERR_NO_MEMORY, "engine: out of memory");
    }
    pthread_mutex_init(&engine->progress_lock, NULL);
    engine->leave = leave;
    engine->page = engine_page_map(page_fd);
    if (engine->page) page_set(&engine->page->magic, ENGINE_PAGE_MAGIC);
    if ((rc = channel_fd_open(&engine->channel, fd, OUTBOX_BYTES, &channel_callbacks, engine, err)) < 0) {
        engine_close(engine);
        return rc;
    }
    *out = engine;
    return 0;
}

static void send_message(struct engine *engine, enum msg_type type, const void *payload, size_t len)
{
    struct buf frame = BUF_INIT;

    ipc_put(&frame, type, payload, len);
    if (!frame.failed) channel_fd_write(engine->channel, frame.data, frame.len);
    buf_release(&frame);
}

uint64_t *engine_layers_begun(struct engine *engine) { return engine->page ? &engine->page->layers : NULL; }

void engine_progress(void *arg, double share)
{
    struct engine *engine = arg;
    struct msg_progress progress = { .share = share < 0 ? 0 : share > 1 ? 1 : (float)share };
    int64_t now = clock_now_ns();

    pthread_mutex_lock(&engine->progress_lock);
    bool due = now - engine->progress_ns >= INTERVAL_NS;
    if (due) engine->progress_ns = now;
    pthread_mutex_unlock(&engine->progress_lock);
    if (due) send_message(engine, MSG_PROGRESS, &progress, sizeof progress);
}

void engine_fail(struct engine *engine, int exit_code, const char *message)
{
    struct msg_failed failed = { .exit_code = exit_code };
    size_t len = strnlen(message, sizeof failed.message - 1);

    memcpy(failed.message, message, len);
    send_message(engine, MSG_FAILED, &failed, sizeof failed);
    channel_fd_flush(engine->channel, FLUSH_MS);
}

/* The largest step: an event per sequence and note, top logprobs per sequence, stats. */
static int alloc_out(struct engine *engine, int32_t max_num_seqs)
{
    size_t events = ((size_t)max_num_seqs + SCHEDULER_MAX_NOTES) * sizeof(struct token_event);
    size_t rows =
        (size_t)max_num_seqs * (sizeof(struct prompt_row_head) + MAX_TOP_LOGPROBS * sizeof(struct token_logprob));
    size_t bytes = events + rows + (size_t)max_num_seqs * sizeof(uint64_t) + sizeof(struct engine_stats) +
                   sizeof(struct engine_sample) * SAMPLES_MAX + 64;

    BUG_ON(bytes > OUTBOX_BYTES);
    buf_init(&engine->out, bytes);
    return buf_reserve(&engine->out, bytes) ? 0 : ERR_NO_MEMORY;
}

static void tell_ready(struct engine *engine, const struct engine_setup *setup)
{
    const struct scheduler_options *o = &engine->scheduler.options;
    struct msg_ready ready = {
        .version = IPC_VERSION,
        .pid = (uint32_t)getpid(),
        .num_blocks = o->num_blocks,
        .block_size = o->block_size,
        .max_model_len = o->max_model_len,
        .max_num_seqs = o->max_num_seqs,
        .max_num_batched_tokens = o->max_num_batched_tokens,
        .vocab_size = o->vocab_size,
        .load_ms = setup->load_ms,
    };
    const char *describe = ranks_describe(engine->ranks);

    memcpy(ready.describe, describe, strnlen(describe, sizeof ready.describe - 1));
    send_message(engine, MSG_READY, &ready, sizeof ready);
}

int engine_start(struct engine *engine, const struct engine_setup *setup, struct err *err)
{
    struct scheduler_options o = setup->scheduler;
    uint8_t secret[32];
    int rc;

    engine->ranks = setup->ranks;
    engine_fit_scheduler(&o, setup->ranks);
    if (o.max_model_len < setup->scheduler.max_model_len) {
        log_warn("context_shrunk", "max_model_len %d does not fit into %d KV blocks of %d tokens: now %d",
                 setup->scheduler.max_model_len, o.num_blocks, o.block_size, o.max_model_len);
    }
    if (getrandom(secret, sizeof secret, 0) != sizeof secret) return err_sys(err, ERR_IO, "getrandom");
    if ((rc = scheduler_init(&engine->scheduler, &o, err)) < 0) return rc;
    if ((rc = scheduler_sample(&engine->scheduler, &engine->samples, setup->sample_blocks, err)) < 0) return rc;
    o = engine->scheduler.options;
    engine->vocab_size = o.vocab_size;
    engine->limits = engine_submission_limits(&o, secret, setup->model_digest);
    /* all that can be alive at once: sequences, inbox, and what is being given back */
    size_t most = (size_t)o.max_sequences + 2 * INBOX_MESSAGES;
    if (flights_init(&engine->flights, setup->ranks, o.num_plans, o.max_num_seqs) < 0 || alloc_out(engine, o.max_num_seqs) < 0 ||
        ring_init(&engine->give_back, most) < 0)
        return err_set(err, ERR_NO_MEMORY, "engine: no memory for %d sequences", o.max_num_seqs);
    if (setup->free_memory && (rc = headroom_open(&engine->headroom, setup->headroom_bytes, setup->free_memory,
                                                  setup->free_memory_arg, HEADROOM_MS, err)) < 0)
        return rc;
    if (setup->trace_path[0] &&
        (rc = trace_open(&engine->trace, setup->trace_path, setup->trace_bytes, &o, err)) < 0)
        return rc;
    atomic_store(&engine->ready, true);
    engine->stats_stale = true;
    tell_ready(engine, setup);
    return 0;
}

/* ---- the loop ---- */

static void watch_memory(struct engine *engine)
{
    if (!engine->headroom) return;
    bool throttled = headroom_throttled(engine->headroom);
    if (throttled == engine->scheduler.throttled) return;
    scheduler_throttle(&engine->scheduler, throttled);
    engine->stats_stale = true;
}

static void put_samples(struct engine *engine)
{
    struct samples *samples = &engine->samples;

    if (samples->num) ipc_put(&engine->out, MSG_SAMPLES, samples->at, (size_t)samples->num * sizeof samples->at[0]);
    samples->num = 0;
}

static void put_stats(struct engine *engine)
{
    struct engine_stats *stats = &engine->scheduler.stats;

    put_samples(engine);
    if (engine->headroom) headroom_gauges(engine->headroom, &stats->free_bytes, &stats->headroom_bytes);
    stats->throttled = engine->scheduler.throttled;
    ipc_put(&engine->out, MSG_STATS, scheduler_stats(&engine->scheduler), sizeof(struct engine_stats));
    engine->told_ns = clock_now_ns();
    engine->stats_stale = false;
}

static void put_logprobs(struct engine *engine)
{
    const struct scheduler *s = &engine->scheduler;
    struct frame_head head = { .type = MSG_LOGPROBS };

    for (int32_t i = 0; i < s->num_outcomes; i++) {
        uint32_t n = s->outcomes[i].event.num_top;
        if (n) head.len += (uint32_t)(sizeof(struct logprob_row_head) + n * sizeof(struct token_logprob));
    }
    if (!head.len) return;
    buf_append(&engine->out, &head, sizeof head);      /* a row is a multiple of 8 bytes: no padding */
    for (int32_t i = 0; i < s->num_outcomes; i++) {
        const struct token_event *event = &s->outcomes[i].event;
        struct logprob_row_head row = { .id = event->id, .index = event->index, .n = event->num_top };
        if (!row.n) continue;
        buf_append(&engine->out, &row, sizeof row);
        buf_append(&engine->out, s->outcomes[i].row->top, row.n * sizeof(struct token_logprob));
    }
}

static void put_scores(struct engine *engine)
{
    const struct scheduler *s = &engine->scheduler;
    struct frame_head head = { .type = MSG_PROMPT_LOGPROBS };

    for (int32_t i = 0; i < s->num_scores; i++)
        head.len += (uint32_t)(sizeof(struct prompt_row_head) + (size_t)s->scores[i].row->num_top * sizeof(struct token_logprob));
    if (!head.len) return;
    buf_append(&engine->out, &head, sizeof head);      /* a row is a multiple of 8 bytes: no padding */
    for (int32_t i = 0; i < s->num_scores; i++) {
        const struct result_row *row = s->scores[i].row;
        struct prompt_row_head prompt_row = { .id = s->scores[i].id, .position = s->scores[i].position, .token = row->token,
                                              .logprob = row->logprob, .rank = row->rank, .n = (uint32_t)row->num_top };
        buf_append(&engine->out, &prompt_row, sizeof prompt_row);
        buf_append(&engine->out, row->top, (size_t)row->num_top * sizeof(struct token_logprob));
    }
}

static void put_events(struct engine *engine)
{
    const struct scheduler *s = &engine->scheduler;
    struct frame_head head = {.type = MSG_EVENTS,
                              .len = (uint32_t)((size_t)s->num_outcomes * sizeof(struct token_event))};

    if (!s->num_outcomes) return;
    buf_append(&engine->out, &head, sizeof head);
    for (int32_t i = 0; i < s->num_outcomes; i++)
        buf_append(&engine->out, &s->outcomes[i].event, sizeof(struct token_event));
}

/* One write for all that the step has to say. */
static void engine_publish(struct engine *engine)
{
    struct submission *sub;
    bool idle = !scheduler_num_sequences(&engine->scheduler);

    put_scores(engine);
    put_logprobs(engine);
    put_events(engine);
    scheduler_clear_outcomes(&engine->scheduler);
    if (engine->samples.num >= SAMPLES_PLENTY) put_samples(engine);
    if (engine->stats_stale && (idle || clock_now_ns() - engine->told_ns >= INTERVAL_NS)) put_stats(engine);
    BUG_ON(engine->out.failed);
    /* ended: the loop sees it */
    if (engine->out.len) channel_fd_write(engine->channel, engine->out.data, engine->out.len);
    buf_reset(&engine->out);
    while ((sub = scheduler_take_finished(&engine->scheduler))) BUG_ON(ring_push(&engine->give_back, sub) < 0);
    if (engine->page) page_set(&engine->page->pending, (uint64_t)scheduler_num_sequences(&engine->scheduler));
}

/* Sleeps when there is nothing to do; where memory is watched its gauges are told while idle, too. */
static struct submission *await_message(struct engine *engine)
{
    struct submission *sub;

    if (!engine->starved && (scheduler_num_sequences(&engine->scheduler) || engine->flights.num)) return ring_pop(&engine->inbox);
    if (engine->starved) sub = ring_pop_within(&engine->inbox, STARVED_MS);
    else if (!engine->headroom) sub = ring_pop_wait(&engine->inbox);
    else if (!(sub = ring_pop_within(&engine->inbox, HEADROOM_MS))) engine->stats_stale = true;
    engine->woken_ns = clock_now_ns();
    if (!sub) engine->rank_error = ranks_error(engine->ranks);         /* a device may fail while idle, too */
    return sub;
}

/* While a long step runs the plan of the next would keep out who comes now: there is time to make it when this one has nearly
 * ended, or has. */
static bool too_early(const struct engine *engine)
{
    const struct flights *flights = &engine->flights;

    if (!engine->scheduler.options.overlap || flights->num != 1 || atomic_load(&engine->stopping)) return false;
    if (flights->at[0].expected_ms < LONG_STEP_MS || ranks_finished(engine->ranks)) return false;
    return flights_alone_ms(flights, clock_now_ns()) < flights->at[0].expected_ms * LONG_STEP_PART / 100;
}

/* New requests and aborts. */
static void engine_receive(struct engine *engine)
{
    struct submission *sub = await_message(engine);

    for (int n = 0; n < SCHEDULER_MAX_NOTES && (sub || too_early(engine));) {
        if (sub) {
            n++;
            trace_submission(engine->trace, sub);
            scheduler_add(&engine->scheduler, sub);
            engine->stats_stale = true;
        }
        sub = n == SCHEDULER_MAX_NOTES ? NULL : too_early(engine) ? ring_pop_within(&engine->inbox, 1) : ring_pop(&engine->inbox);
    }
    if (engine->page) page_set(&engine->page->pending, (uint64_t)scheduler_num_sequences(&engine->scheduler));
}

/* At once: the step may be long. */
static void tell_begun(struct engine *engine)
{
    const struct scheduler *s = &engine->scheduler;

    if (!s->num_begun) return;
    ipc_put(&engine->out, MSG_BEGUN, s->begun, (size_t)s->num_begun * sizeof *s->begun);
    channel_fd_write(engine->channel, engine->out.data, engine->out.len);
    buf_reset(&engine->out);
}

static void launch(struct engine *engine, const struct step_plan *plan)
{
    const struct flights *flights = &engine->flights;
    int64_t now = clock_now_ns(), free_ns = flights->landed_ns > engine->woken_ns ? flights->landed_ns : engine->woken_ns;
    struct flight flight = { .plan = plan, .began_ns = now, .host_ns = flights->num ? 0 : now - free_ns,
                             .expected_ms = scheduler_expected_ms(&engine->scheduler, plan) };

    if (engine->page) __atomic_store_n(&engine->page->step_began_ns, now, __ATOMIC_RELAXED);
    engine->rank_error = flights_launch(&engine->flights, &flight);
    tell_begun(engine);
}

/* The oldest plan's result. */
static bool land(struct engine *engine, struct flight *flight)
{
    if ((engine->rank_error = flights_land(&engine->flights, flight))) return false;
    uint64_t took_ns = (uint64_t)(flight->landed_ns - flight->began_ns);
    engine->scheduler.stats.last_step_ms = (float)flight->alone_ms;
    engine->stats_stale = true;
    if (took_ns > engine->longest_step_ns) engine->longest_step_ns = took_ns;
    if (!engine->page) return true;
    page_set(&engine->page->longest_step_ns, engine->longest_step_ns);
    page_set(&engine->page->steps, engine->scheduler.stats.steps + 1);
    __atomic_store_n(&engine->page->step_began_ns, engine->flights.num ? engine->flights.at[0].began_ns : 0, __ATOMIC_RELAXED);
    return true;
}

/* Starts plan (may be NULL); true with the oldest one landed when the pipeline is full or nothing else could start. */
static bool execute(struct engine *engine, const struct step_plan *plan, struct flight *flight)
{
    const struct flights *flights = &engine->flights;

    if (plan) launch(engine, plan);
    if (engine->rank_error || !flights->num || (plan && flights->num < flights->num_slots)) return false;
    return land(engine, flight);
}

static const struct step_plan *plan_next(struct engine *engine)
{
    bool idle = !scheduler_num_sequences(&engine->scheduler) && !engine->flights.num;
    int64_t now_ns = clock_now_ns();

    if (idle && trace_wants_start(engine->trace)) trace_restart(engine->trace, &engine->scheduler);
    const struct step_plan *plan = scheduler_next_step(&engine->scheduler, now_ns);
    engine->starved = !plan && !engine->flights.num && scheduler_num_sequences(&engine->scheduler);
    trace_step(engine->trace, &engine->scheduler, plan, now_ns);
    return plan;
}

/* Of a step that landed, before its plan is given back. */
static void sample_step(struct engine *engine, const struct flight *flight)
{
    const struct step_plan *plan = flight->plan;
    bool decode = plan->num_decode_seqs == plan->num_seqs;
    enum sample_kind kind = decode ? SAMPLE_STEP_DECODE : plan->num_decode_seqs ? SAMPLE_STEP_MIXED : SAMPLE_STEP_PREFILL;

    sample_add(&engine->samples, kind, flight->alone_ms / 1e3);
    sample_add(&engine->samples, SAMPLE_STEP_HOST, (double)flight->host_ns / 1e9);
    sample_add(&engine->samples, SAMPLE_STEP_TOKENS, plan->num_tokens);
    sample_add(&engine->samples, SAMPLE_STEP_SEQUENCES, plan->num_seqs);
}

static void commit(struct engine *engine, const struct flight *flight)
{
    int64_t now_ns = clock_now_ns();

    sample_step(engine, flight);
    trace_result(engine->trace, flight->plan, flight->result, flight->alone_ms, now_ns);
    scheduler_measured(&engine->scheduler, flight->plan, flight->alone_ms);
    scheduler_commit(&engine->scheduler, flight->plan, flight->result, now_ns);
}

int engine_run(struct engine *engine)
{
    pthread_setname_np(pthread_self(), "engine-step");
    while (!atomic_load(&engine->stopping) && !engine->rank_error) {
        struct flight flight;
        engine_receive(engine);
        watch_memory(engine);
        const struct step_plan *plan = plan_next(engine);
        if (execute(engine, plan, &flight)) commit(engine, &flight);
        engine_publish(engine);
    }
    pthread_setname_np(pthread_self(), "engine-end");
    if (engine->rank_error) {
        log_error("ranks_failed", "step %llu: %s", (unsigned long long)engine->scheduler.step, err_name(engine->rank_error));
        crash_record(&engine->scheduler);
    }
    return engine->rank_error;
}

void engine_end_watch(struct engine *engine)
{
    headroom_close(engine->headroom);
    engine->headroom = NULL;
}

void engine_close(struct engine *engine)
{
    struct submission *sub;

    if (!engine) return;
    channel_fd_close(engine->channel);
    while ((sub = ring_pop(&engine->inbox))) submission_free(sub);
    while (engine->give_back.slots && (sub = ring_pop(&engine->give_back))) submission_free(sub);
    ring_release(&engine->inbox);
    ring_release(&engine->give_back);
    engine_end_watch(engine);
    trace_close(engine->trace);
    scheduler_release(&engine->scheduler);
    flights_release(&engine->flights);
    buf_release(&engine->out);
    engine_page_unmap(engine->page);
    pthread_mutex_destroy(&engine->progress_lock);
    free(engine);
}
