/* bandwidth.c - what the host's memory gives when it is only read: the floor of a decode step on a CPU. */
#include <sluice/bench.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { MAX_READERS = 256, PASSES = 8 };
static const size_t PART_BYTES = 128 << 20;        /* of a thread; together beyond the caches of most machines */

struct reader { const uint64_t *words; size_t num; uint64_t sum; pthread_t thread; bool started; };

static void *read_all(void *arg)
{
    struct reader *reader = arg;
    uint64_t a = 0, b = 0, c = 0, d = 0;

    for (size_t i = 0; i + 4 <= reader->num; i += 4) {
        a += reader->words[i];
        b ^= reader->words[i + 1];
        c += reader->words[i + 2];
        d ^= reader->words[i + 3];
    }
    reader->sum = a + b + c + d;
    return NULL;
}

static double one_pass(struct reader *readers, int num)
{
    int64_t began_ns = clock_now_ns();

    for (int i = 0; i < num; i++) readers[i].started = pthread_create(&readers[i].thread, NULL, read_all, &readers[i]) == 0;
    for (int i = 0; i < num; i++)
        if (readers[i].started) pthread_join(readers[i].thread, NULL);
    return (double)num * (double)PART_BYTES / (double)(clock_now_ns() - began_ns);
}

double bench_host_bandwidth_gbs(int threads)
{
    int num = threads < 1 ? 1 : threads > MAX_READERS ? MAX_READERS : threads;
    char *memory = malloc((size_t)num * PART_BYTES);
    struct reader readers[MAX_READERS];
    double best = 0;

    if (!memory) return 0;
    memset(memory, 1, (size_t)num * PART_BYTES);       /* pages of its own, not all the zero page */
    for (int i = 0; i < num; i++)
        readers[i] = (struct reader){ .words = (const uint64_t *)(memory + (size_t)i * PART_BYTES), .num = PART_BYTES / 8 };
    for (int pass = 0; pass < PASSES; pass++) {
        double gbs = one_pass(readers, num);
        if (gbs > best) best = gbs;
    }
    free(memory);
    return best;
}
