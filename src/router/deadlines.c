/* deadlines.c - a binary heap of the generations that have a deadline, the earliest on top: a tick looks at what is due, not at
 * every stream. A key may be too early (the first token lifted a limit): it is made right when it comes up. */
#include "router_impl.h"

#include <stdlib.h>

enum { BEGUN_MS = 20 };        /* what an engine began just in time is known here by then */

int64_t generation_due_ms(const struct router *router, const struct generation *gen, enum abort_cause *cause)
{
    struct { int64_t at_ms; enum abort_cause cause; } limits[] = {
        { gen->doomed ? 1 : 0, ABORT_REPLICA_LOST },
        { gen->num_orphans ? gen->orphan_since_ms + router->config->engine_start_timeout_ms : 0, ABORT_REPLICA_LOST },
        /* that it ran out of time is the dead replica's doing */
        { gen->deadline_total_ms, gen->num_orphans ? ABORT_REPLICA_LOST : ABORT_TOTAL_TIMEOUT },
        { gen->started ? 0 : gen->deadline_ttft_ms, ABORT_TTFT_TIMEOUT },
        { gen->begun || gen->started || !gen->deadline_queue_ms ? 0 : gen->deadline_queue_ms + BEGUN_MS, ABORT_QUEUE_TIMEOUT },
    };
    int64_t due = 0;

    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (!limits[i].at_ms || (due && limits[i].at_ms >= due)) continue;
        due = limits[i].at_ms;
        *cause = limits[i].cause;
    }
    return due;
}

int64_t generation_start_by_ms(const struct generation *gen)
{
    int64_t limits[] = { gen->deadline_total_ms, gen->started ? 0 : gen->deadline_ttft_ms,
                         gen->started || gen->begun ? 0 : gen->deadline_queue_ms };
    int64_t least = 0;

    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (limits[i] && (!least || limits[i] < least)) least = limits[i];
    }
    return least;
}

static void place(struct router *router, size_t at, struct generation *gen)
{
    router->due[at] = gen;
    gen->due_at = at;
}

static void sift(struct router *router, struct generation *gen, size_t at)
{
    for (; at > 1 && router->due[at / 2]->due_ms > gen->due_ms; at /= 2) place(router, at, router->due[at / 2]);
    for (size_t child; (child = 2 * at) <= router->num_due; at = child) {
        if (child < router->num_due && router->due[child + 1]->due_ms < router->due[child]->due_ms) child++;
        if (router->due[child]->due_ms >= gen->due_ms) break;
        place(router, at, router->due[child]);
    }
    place(router, at, gen);
}

bool deadlines_reserve(struct router *router, size_t n)
{
    if (n < router->due_cap) return true;
    size_t cap = router->due_cap ? router->due_cap * 2 : 1024;
    while (cap <= n) cap *= 2;
    struct generation **due = realloc(router->due, cap * sizeof *due);
    if (!due) return false;
    router->due = due;
    router->due_cap = cap;
    return true;
}

void deadlines_remove(struct router *router, struct generation *gen)
{
    size_t hole = gen->due_at;

    if (!hole) return;
    struct generation *last = router->due[router->num_due--];
    if (last != gen) sift(router, last, hole);
    gen->due_at = 0;
}

void deadlines_update(struct router *router, struct generation *gen)
{
    enum abort_cause cause;

    gen->due_ms = generation_due_ms(router, gen, &cause);
    if (!gen->due_ms) deadlines_remove(router, gen);
    else sift(router, gen, gen->due_at ? gen->due_at : ++router->num_due);
}

struct generation *deadlines_first(const struct router *router, int64_t now_ms)
{
    return router->num_due && router->due[1]->due_ms <= now_ms ? router->due[1] : NULL;
}
