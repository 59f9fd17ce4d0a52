#include "crash_record.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/log.h"

/* false: there is no room for it, and for `spare` bytes behind it; nothing is added. */
static bool add(char text[CRASH_RECORD_MAX], size_t *used, size_t spare, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static bool add(char text[CRASH_RECORD_MAX], size_t *used, size_t spare, const char *fmt, ...)
{
    size_t room = CRASH_RECORD_MAX - *used;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text + *used, room, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n + spare >= room) {
        text[*used] = '\0';
        return false;
    }
    *used += (size_t)n;
    return true;
}

void crash_record_text(char text[CRASH_RECORD_MAX], const struct batch *batch)
{
    enum { SPARE = 24 };                                   /* for "and N more" */
    const struct step_plan *plan = batch->plan;
    const int32_t *begin = plan_cu_seqlens_q(plan), *positions = plan_positions(plan);
    size_t used = 0;

    text[0] = '\0';
    add(text, &used, SPARE, "step %llu: %d tokens in %d sequences (%d decodes), %d rows, longest context %d; sequences", (unsigned long long)plan->step,
        (int)plan->num_tokens, (int)batch->num_seqs, (int)plan->num_decode_seqs, (int)plan->num_rows, (int)plan->max_context_len);
    for (int32_t b = batch->num_seqs - 1; b >= 0; b--) {   /* decodes come first in a plan */
        if (add(text, &used, SPARE, "%s %llu (%d from %d)", b == batch->num_seqs - 1 ? "" : ",", (unsigned long long)batch->seqs[b]->id,
                (int)(begin[b + 1] - begin[b]), (int)positions[begin[b]])) continue;
        add(text, &used, 0, " and %d more", (int)b + 1);
        return;
    }
}

void crash_record(const struct scheduler *s)
{
    char text[CRASH_RECORD_MAX];

    for (uint64_t last = 0;;) {                            /* in the order of their steps */
        const struct batch *next = NULL;
        for (int32_t i = 0; i < s->options.num_plans; i++) {
            const struct batch *batch = &s->batches[i];
            if (batch->in_flight && batch->plan->step > last && (!next || batch->plan->step < next->plan->step)) next = batch;
        }
        if (!next) return;
        crash_record_text(text, next);
        log_error("step_lost", "%s", text);
        last = next->plan->step;
    }
}
