/* fake_engine.c - an engine without a model: the real ipc, tokens by rule, faults by script.
 * Takes sluice-engine's arguments (reads --max-model-len, --max-num-seqs, --block-size; ignores the rest) and its
 * descriptors. The script is the environment variable SLUICE_FAKE_ENGINE, "key=value,key=value":
 *   delay_ms=N          between two steps (default 0)
 *   ready_delay_ms=N    before READY, with progress every 100 ms;  never_ready=1: progress, then silence
 *   fail=CODE           MSG_FAILED and exit CODE (78: bad model) instead of READY
 *   rule=hash|echo|count    next token: hash of all tokens so far (default; survives a resume) | the prompt again and
 *   again
 *                       | first + number of tokens generated before
 *   first=ID            of rule count (default 100);  ids=A:B:C  these tokens in turn, whatever the rule
 *   eos_after=N         the token after N generated ones is `eos` (default 2) and ends the choice;  eos=ID
 *   error_at=N          a choice ends with FINISH_ERROR instead of its token number N (1 = first)
 *   begun=1             MSG_BEGUN for each request that may begin too late
 *   cached=N            num_cached of every event, at most the prompt
 *   die_at=N            SIGKILL itself at step N;  exit_at=N: exit 70 at step N;  hang_at=N: no step N, the socket is
 *   still read
 *   garbage_at=N        a frame with a broken head at step N;  bad_event_at=N: an event with an impossible finish at
 *   step N
 *   deaf_at=N           stops reading and writing at step N, but lives
 *   evil_at=N,evil=NAME     at step N breaks the first event or its frame: token index finish choice future_id top nan row half
 *                       extra_row type stats sample sample_nan
 *   version=N           what READY says (default IPC_VERSION)
 *   once=PATH           the faults of the two lines above and `fail` only if PATH does not exist yet; the fault creates
 *   it
 *   vocab=N max_model_len=N max_num_seqs=N num_blocks=N block_size=N    what READY says
 * Steps count while there is work. One token per running choice and step. EOF or MSG_STOP: exit 0. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <sluice/ipc.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/list.h"

struct script {
    long delay_ms, ready_delay_ms, never_ready, fail, first, eos_after, eos, error_at, cached, begun;
    long die_at, exit_at, hang_at, garbage_at, bad_event_at, deaf_at;
    long evil_at, version;
    long vocab, max_model_len, max_num_seqs, num_blocks, block_size;
    char rule[16], evil[16], once[256];
    token_id ids[256];
    int num_ids;
};

struct choice {
    struct list link;
    struct engine_request req;
    token_id *tokens;              /* grows to the end of the choice */
    uint32_t num_tokens;
    int64_t scheduled_ns;
};

struct fake {
    struct script script;
    struct ipc_reader reader;
    struct list choices;           /* oldest first; the first max_num_seqs run */
    struct buf out;
    struct engine_page *page;
    struct engine_stats stats;
    uint64_t step;
};

static struct { const char *name; size_t offset;
} const long_keys[] = {
#define KEY(name) { #name, offsetof(struct script, name) }
    KEY(delay_ms),   KEY(ready_delay_ms), KEY(never_ready), KEY(fail),   KEY(first),         KEY(eos_after),
    KEY(eos),        KEY(error_at),       KEY(cached),      KEY(die_at), KEY(exit_at),       KEY(hang_at),
    KEY(garbage_at), KEY(bad_event_at),   KEY(deaf_at),     KEY(evil_at), KEY(version), KEY(vocab),  KEY(max_model_len), KEY(max_num_seqs),
    KEY(num_blocks), KEY(block_size), KEY(begun),
#undef KEY
};

static void die_of_script(const char *what)
{
    fprintf(stderr, "fake-engine: cannot read '%s' of SLUICE_FAKE_ENGINE\n", what);
    exit(EXIT_CONFIG);
}

static void parse_ids(struct script *script, const char *text)
{
    char *end;

    do {
        if (script->num_ids == 256) die_of_script(text);
        script->ids[script->num_ids++] = (token_id)strtol(text, &end, 10);
        if (end == text) die_of_script(text);
        text = end + 1;
    } while (*end == ':');
    if (*end) die_of_script(text);
}

static bool set_long(struct script *script, const char *key, size_t key_len, const char *value)
{
    char *end;

    for (size_t i = 0; i < sizeof long_keys / sizeof long_keys[0]; i++) {
        if (strlen(long_keys[i].name) != key_len || strncmp(long_keys[i].name, key, key_len)) continue;
        *(long *)((char *)script + long_keys[i].offset) = strtol(value, &end, 10);
        return end != value && !*end;
    }
    return false;
}

static void parse_script(struct script *script, const char *text)
{
    char item[512];

    while (text && *text) {
        size_t len = strcspn(text, ",");
        if (len >= sizeof item) die_of_script(text);
        memcpy(item, text, len);
        item[len] = '\0';
        text += len + (text[len] == ',');
        char *value = strchr(item, '=');
        if (!value) die_of_script(item);
        size_t key_len = (size_t)(value++ - item);
        if (!strncmp(item, "rule=", 5)) snprintf(script->rule, sizeof script->rule, "%.15s", value);
        else if (!strncmp(item, "evil=", 5)) snprintf(script->evil, sizeof script->evil, "%.15s", value);
        else if (!strncmp(item, "once=", 5)) snprintf(script->once, sizeof script->once, "%.255s", value);
        else if (!strncmp(item, "ids=", 4)) parse_ids(script, value);
        else if (!set_long(script, item, key_len, value)) die_of_script(item);
    }
}

static void parse_args(struct script *script, int argc, char **argv)
{
    static const char *const flags[] = { "--max-model-len=", "--max-num-seqs=", "--block-size=" };
    long *const values[] = { &script->max_model_len, &script->max_num_seqs, &script->block_size };

    for (int i = 1; i < argc; i++) {
        for (int f = 0; f < 3; f++) {
            size_t len = strlen(flags[f]);
            long value = strncmp(argv[i], flags[f], len) ? 0 : strtol(argv[i] + len, NULL, 10);
            if (value > 0) *values[f] = value;
        }
    }
}

/* ---- sending ---- */

static void send_all(struct fake *fake)
{
    size_t sent = 0;

    if (fake->out.failed) exit(EXIT_FAULT);
    while (sent < fake->out.len) {
        ssize_t n = write(IPC_FD, fake->out.data + sent, fake->out.len - sent);
        struct pollfd fd = { .fd = IPC_FD, .events = POLLOUT };
        if (n >= 0) sent += (size_t)n;
        else if (errno == EAGAIN) poll(&fd, 1, -1);
        else if (errno != EINTR) exit(0);
    }
    buf_reset(&fake->out);
}

static void send_progress(struct fake *fake, float share)
{
    struct msg_progress progress = { share };

    ipc_put(&fake->out, MSG_PROGRESS, &progress, sizeof progress);
    send_all(fake);
}

static void send_ready(struct fake *fake)
{
    const struct script *s = &fake->script;
    struct msg_ready ready = {
        .version = (uint32_t)s->version,
        .pid = (uint32_t)getpid(),
        .num_blocks = (int32_t)s->num_blocks,
        .block_size = (int32_t)s->block_size,
        .max_model_len = (int32_t)s->max_model_len,
        .max_num_seqs = (int32_t)s->max_num_seqs,
        .max_num_batched_tokens = 2048,
        .vocab_size = (int32_t)s->vocab,
        .load_ms = s->ready_delay_ms,
        .describe = "fake engine",
    };

    ipc_put(&fake->out, MSG_READY, &ready, sizeof ready);
    send_all(fake);
}

static void send_stats(struct fake *fake)
{
    uint32_t n = 0;

    list_for_each(it, &fake->choices) n++;
    fake->stats.running = n < (uint32_t)fake->script.max_num_seqs ? n : (uint32_t)fake->script.max_num_seqs;
    fake->stats.waiting = n - fake->stats.running;
    fake->stats.blocks_total = (uint32_t)fake->script.num_blocks;
    fake->stats.blocks_used =
        fake->stats.running < fake->stats.blocks_total ? fake->stats.running : fake->stats.blocks_total;
    fake->stats.steps = fake->step;
    ipc_put(&fake->out, MSG_STATS, &fake->stats, sizeof fake->stats);
}

/* ---- faults ---- */

/* True when a fault of the script may happen in this life. */
static bool fault_allowed(const struct script *script)
{
    if (!script->once[0]) return true;
    int fd = open(script->once, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

static void sleep_for_ever(void)
{
    for (;;) pause();
}

static void step_faults(struct fake *fake)
{
    const struct script *s = &fake->script;
    long step = (long)fake->step;
    static const struct frame_head broken = { .len = UINT32_MAX, .type = MSG_EVENTS, .zero = 1 };
    struct token_event event = { .id = 1, .finish = 250 };

    if (step == s->die_at && fault_allowed(s)) kill(getpid(), SIGKILL);
    if (step == s->exit_at && fault_allowed(s)) exit(EXIT_FAULT);
    if (step == s->deaf_at && fault_allowed(s)) sleep_for_ever();
    if (step == s->garbage_at && fault_allowed(s)) buf_append(&fake->out, &broken, sizeof broken);
    if (step == s->bad_event_at && fault_allowed(s)) ipc_put(&fake->out, MSG_EVENTS, &event, sizeof event);
}

/* ---- requests ---- */

static void drop_choice(struct choice *choice)
{
    list_remove(&choice->link);
    free(choice->tokens);
    free(choice);
}

static void on_submit(struct fake *fake, const void *payload, size_t len)
{
    struct ipc_limits limits = { (int32_t)fake->script.vocab, (int32_t)fake->script.max_model_len };
    struct choice *choice = calloc(1, sizeof *choice);
    struct err err = { 0 };

    if (!choice) exit(EXIT_FAULT);
    if (ipc_get_submit(payload, len, &limits, &choice->req, &err) < 0) {
        fprintf(stderr, "fake-engine: %s\n", err.message);
        exit(EXIT_FAULT);
    }
    choice->num_tokens = choice->req.num_prompt + choice->req.num_output;
    choice->tokens = calloc((size_t)choice->req.num_prompt + (size_t)choice->req.max_tokens + 1, sizeof *choice->tokens);
    if (!choice->tokens) exit(EXIT_FAULT);
    memcpy(choice->tokens, choice->req.tokens, choice->num_tokens * sizeof *choice->tokens);
    list_push_back(&fake->choices, &choice->link);
    if (!fake->script.begun || !choice->req.start_by_ms) return;
    ipc_put(&fake->out, MSG_BEGUN, &choice->req.id, sizeof choice->req.id);
    send_all(fake);
}

static void put_end(struct fake *fake, const struct choice *choice, enum finish_reason finish, int err_code)
{
    struct token_event event = {.id = choice->req.id,
                                .token = TOKEN_NONE,
                                .index = choice->num_tokens - choice->req.num_prompt,
                                .finish = (uint8_t)finish,
                                .err_code = err_code,
                                .scheduled_ns = choice->scheduled_ns};

    ipc_put(&fake->out, MSG_EVENTS, &event, sizeof event);
}

static void on_abort(struct fake *fake, uint64_t id)
{
    list_for_each_safe(it, tmp, &fake->choices) {
        struct choice *choice = list_entry(it, struct choice, link);
        if (choice->req.id != id) continue;
        put_end(fake, choice, FINISH_ABORTED, 0);
        fake->stats.aborted++;
        drop_choice(choice);
    }
}

static void receive(struct fake *fake)
{
    static char chunk[64 << 10];
    struct frame_head head;
    const void *payload;
    struct msg_abort abort_msg;
    int rc;

    ssize_t n = read(IPC_FD, chunk, sizeof chunk);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) exit(0);
    if (n < 0) return;
    if (ipc_reader_feed(&fake->reader, chunk, (size_t)n) < 0) exit(EXIT_FAULT);
    while ((rc = ipc_reader_next(&fake->reader, &head, &payload)) > 0) {
        if (head.type == MSG_STOP) exit(0);
        if (head.type == MSG_SUBMIT) on_submit(fake, payload, head.len);
        if (head.type == MSG_ABORT && head.len == sizeof abort_msg) {
            memcpy(&abort_msg, payload, sizeof abort_msg);
            on_abort(fake, abort_msg.id);
        }
    }
    if (rc < 0) exit(EXIT_FAULT);
    if (fake->out.len) send_all(fake);
}

/* Reads what comes for ms milliseconds (-1: until something came). */
static void listen_for(struct fake *fake, int64_t ms)
{
    int64_t until = clock_now_ms() + ms;

    for (;;) {
        struct pollfd fd = { .fd = IPC_FD, .events = POLLIN };
        int64_t left = until - clock_now_ms();
        int n = poll(&fd, 1, ms < 0 ? -1 : left > 0 ? (int)left : 0);
        if (n > 0) receive(fake);
        if (ms < 0 || left <= 0) return;
    }
}

/* ---- steps ---- */

static token_id next_token(const struct script *s, const struct choice *choice)
{
    uint32_t generated = choice->num_tokens - choice->req.num_prompt;

    if (s->num_ids) return s->ids[generated % (uint32_t)s->num_ids];
    if (!strcmp(s->rule, "echo")) return choice->tokens[generated % choice->req.num_prompt];
    if (!strcmp(s->rule, "count")) return (token_id)((s->first + (long)generated) % s->vocab);
    uint64_t seed =
        choice->req.sampling.temperature < 1e-5f ? 0 : choice->req.sampling.seed + choice->req.sampling.choice;
    uint64_t hash = hash_bytes(choice->tokens, choice->num_tokens * sizeof(token_id), seed);
    return (token_id)(hash % (uint64_t)s->vocab);
}

static enum finish_reason finish_of(const struct script *s, const struct choice *choice, token_id token)
{
    uint32_t generated = choice->num_tokens - choice->req.num_prompt;

    if (s->eos_after >= 0 && token == s->eos && !choice->req.ignore_eos) return FINISH_EOS;
    for (uint32_t i = 0; i < choice->req.num_stop_ids; i++) {
        if (choice->req.stop_ids[i] == token) return FINISH_STOP_TOKEN;
    }
    bool full = generated >= (uint32_t)choice->req.max_tokens || choice->num_tokens >= (uint32_t)s->max_model_len;
    return full ? FINISH_LENGTH : FINISH_NONE;
}

/* Made-up logprobs: the token itself is the most likely one, its successors follow. */
static void put_logprobs(struct buf *rows, const struct script *s, const struct choice *choice, token_id token,
                         uint32_t index)
{
    struct logprob_row_head head = {
        .id = choice->req.id, .index = index, .n = (uint32_t)choice->req.sampling.num_logprobs};

    buf_append(rows, &head, sizeof head);
    for (uint32_t i = 0; i < head.n; i++) {
        struct token_logprob top = { (token_id)(((long)token + i) % s->vocab), -0.5f - (float)i };
        buf_append(rows, &top, sizeof top);
    }
}

/* The whole prompt at once, each token as likely as those that are made. */
static void put_scores(struct fake *fake, const struct choice *choice)
{
    struct buf rows = BUF_INIT;

    for (uint32_t i = 1; i < choice->req.num_prompt; i++) {
        struct prompt_row_head head = { .id = choice->req.id, .position = i, .token = choice->tokens[i], .logprob = -0.5f, .rank = 1,
                                        .n = (uint32_t)choice->req.num_prompt_logprobs };
        buf_append(&rows, &head, sizeof head);
        for (uint32_t k = 0; k < head.n; k++) {
            struct token_logprob top = { (token_id)(((long)head.token + k) % fake->script.vocab), -0.5f - (float)k };
            buf_append(&rows, &top, sizeof top);
        }
    }
    if (rows.len) ipc_put(&fake->out, MSG_PROMPT_LOGPROBS, rows.data, rows.len);
    buf_release(&rows);
}

static void step_choice(struct fake *fake, struct choice *choice, struct buf *events, struct buf *rows)
{
    const struct script *s = &fake->script;
    uint32_t generated = choice->num_tokens - choice->req.num_prompt;

    if (!choice->scheduled_ns) {
        choice->scheduled_ns = clock_now_ns();
        if (choice->req.score_prompt) put_scores(fake, choice);
    }
    if (!choice->req.max_tokens) {
        put_end(fake, choice, FINISH_LENGTH, 0);
        drop_choice(choice);
        return;
    }
    if (s->error_at == (long)generated + 1) {
        put_end(fake, choice, FINISH_ERROR, ERR_INTERNAL);
        drop_choice(choice);
        return;
    }
    token_id token = s->eos_after == (long)generated ? (token_id)s->eos : next_token(s, choice);
    bool logprobs = choice->req.sampling.num_logprobs >= 0;
    uint32_t cached = (uint32_t)s->cached < choice->req.num_prompt ? (uint32_t)s->cached : choice->req.num_prompt;
    choice->tokens[choice->num_tokens++] = token;
    struct token_event event = {
        .id = choice->req.id,
        .token = token,
        .index = generated + 1,
        .logprob = logprobs ? -0.5f : 0,
        .rank = logprobs,
        .num_top = (uint16_t)(logprobs ? choice->req.sampling.num_logprobs : 0),
        .finish = (uint8_t)finish_of(s, choice, token),
        .num_cached = cached,
        .scheduled_ns = choice->scheduled_ns,
        .step_ns = clock_now_ns(),
    };
    buf_append(events, &event, sizeof event);
    if (event.num_top) put_logprobs(rows, s, choice, token, event.index);
    fake->stats.generation_tokens++;
    if (event.finish) drop_choice(choice);
}

/* What an engine that was taken over, or whose memory went bad, might say. */
static void corrupt(struct fake *fake, struct buf *events, struct buf *rows)
{
    struct token_event *first = (struct token_event *)events->data;
    struct logprob_row_head extra = { .id = first->id, .index = first->index };
    const char *evil = fake->script.evil;
    struct engine_sample unknown = { SAMPLE_KINDS, 0 }, nan = { SAMPLE_CANCEL, __builtin_nanf("") };

    if (!strcmp(evil, "token")) first->token = (token_id)fake->script.vocab;
    if (!strcmp(evil, "index")) first->index++;
    if (!strcmp(evil, "finish")) first->finish = 250;
    if (!strcmp(evil, "choice")) first->id |= 1023;
    if (!strcmp(evil, "future_id")) first->id += UINT64_C(1) << 40;
    if (!strcmp(evil, "top")) first->num_top = 20;
    if (!strcmp(evil, "nan")) first->logprob = __builtin_nanf("");
    if (!strcmp(evil, "row") && rows->len) ((struct logprob_row_head *)rows->data)->index++;
    if (!strcmp(evil, "extra_row")) buf_append(rows, &extra, sizeof extra);
    if (!strcmp(evil, "half")) events->len -= 8;
    if (!strcmp(evil, "sample")) ipc_put(&fake->out, MSG_SAMPLES, &unknown, sizeof unknown);
    if (!strcmp(evil, "sample_nan")) ipc_put(&fake->out, MSG_SAMPLES, &nan, sizeof nan);
    if (!strcmp(evil, "type")) ipc_put(&fake->out, MSG_SUBMIT, NULL, 0);
    if (!strcmp(evil, "stats")) ipc_put(&fake->out, MSG_STATS, &fake->step, sizeof fake->step);
}

static void run_step(struct fake *fake)
{
    struct buf events = BUF_INIT, rows = BUF_INIT;
    long running = 0;

    list_for_each_safe(it, tmp, &fake->choices) {
        if (running++ == fake->script.max_num_seqs) break;
        step_choice(fake, list_entry(it, struct choice, link), &events, &rows);
    }
    if (events.len && (long)fake->step == fake->script.evil_at && fault_allowed(&fake->script)) corrupt(fake, &events, &rows);
    if (rows.len) ipc_put(&fake->out, MSG_LOGPROBS, rows.data, rows.len);
    if (events.len) ipc_put(&fake->out, MSG_EVENTS, events.data, events.len);
    send_stats(fake);
    send_all(fake);
    buf_release(&events);
    buf_release(&rows);
}

static void page_set(uint64_t *field, uint64_t value) { __atomic_store_n(field, value, __ATOMIC_RELAXED); }

static void serve(struct fake *fake)
{
    for (;;) {
        if (fake->page) page_set(&fake->page->pending, !list_empty(&fake->choices));
        listen_for(fake, list_empty(&fake->choices) ? -1 : fake->script.delay_ms);
        if (list_empty(&fake->choices)) continue;
        if (fake->page) page_set(&fake->page->pending, 1);
        if ((long)fake->step + 1 == fake->script.hang_at && fault_allowed(&fake->script)) {
            for (;;) listen_for(fake, -1);
        }
        fake->step++;
        step_faults(fake);
        run_step(fake);
        if (fake->page) page_set(&fake->page->steps, fake->step);
    }
}

static void start(struct fake *fake)
{
    const struct script *s = &fake->script;

    if (s->fail && fault_allowed(s)) {
        struct msg_failed failed = { (int32_t)s->fail, "model.gguf: scripted failure" };
        ipc_put(&fake->out, MSG_FAILED, &failed, sizeof failed);
        send_all(fake);
        fprintf(stderr, "fake-engine: %s\n", failed.message);
        exit((int)s->fail);
    }
    for (long ms = 0; ms < s->ready_delay_ms; ms += 100) {
        send_progress(fake, (float)ms / (float)s->ready_delay_ms);
        listen_for(fake, s->ready_delay_ms - ms < 100 ? s->ready_delay_ms - ms : 100);
    }
    send_progress(fake, 1);
    while (s->never_ready) listen_for(fake, -1);
    send_ready(fake);
}

int main(int argc, char **argv)
{
    static struct fake fake;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    fake.script = (struct script){.first = 100,
                                  .eos_after = -1,
                                  .eos = 2,
                                  .vocab = 49152,
                                  .max_model_len = 2048,
                                  .max_num_seqs = 256,
                                  .num_blocks = 1024,
                                  .block_size = 64,
                                  .rule = "hash",
                                  .version = IPC_VERSION};
    parse_args(&fake.script, argc, argv);
    parse_script(&fake.script, getenv("SLUICE_FAKE_ENGINE"));
    list_init(&fake.choices);
    ipc_reader_init(&fake.reader);
    fake.page = engine_page_map(IPC_PAGE_FD);
    if (fake.page) page_set(&fake.page->magic, ENGINE_PAGE_MAGIC);
    start(&fake);
    serve(&fake);
}
