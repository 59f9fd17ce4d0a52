#include "affinity.h"

#include <stdlib.h>
#include <string.h>

#include "unit/base/cmocka_all.h"

enum { BLOCK = 16, GROUPS = 12, PREFIX = 160, PROMPT = 176, REPLICAS = 3 };

static const uint8_t domain[32] = { 1 }, other_domain[32] = { 2 };

static void fill(token_id *ids, size_t n, int seed)
{
    for (size_t i = 0; i < n; i++) ids[i] = (token_id)((size_t)seed * 7919 + i * 31) % 50000;
}

static void test_the_longest_known_beginning_wins(void **state)
{
    struct affinity affinity;
    token_id ids[64];

    (void)state;
    assert_int_equal(affinity_init(&affinity, BLOCK), 0);
    fill(ids, 64, 1);
    assert_int_equal(affinity_match(&affinity, ids, 64, domain, 7, NULL), 0);
    affinity_note(&affinity, ids, 20, domain, 0);                 /* one whole block */
    affinity_note(&affinity, ids, 50, domain, 2);                 /* three */
    assert_int_equal(affinity_match(&affinity, ids, 64, domain, 7, NULL), 1 << 2);
    assert_int_equal(affinity_match(&affinity, ids, 16, domain, 7, NULL), 1 << 0 | 1 << 2);
    assert_int_equal(affinity_match(&affinity, ids, 15, domain, 7, NULL), 0);
    assert_int_equal(affinity_match(&affinity, ids, 64, domain, 3, NULL), 1 << 0);      /* replica 2 is not to be had */
    assert_int_equal(affinity_match(&affinity, ids, 64, other_domain, 7, NULL), 0);
    ids[20]++;                                                    /* the second block differs: only the first is shared */
    assert_int_equal(affinity_match(&affinity, ids, 64, domain, 7, NULL), 1 << 0 | 1 << 2);
    affinity_forget(&affinity, 2);
    assert_int_equal(affinity_match(&affinity, ids, 64, domain, 7, NULL), 1 << 0);
    affinity_release(&affinity);
}

static void test_load_decides_and_overrules(void **state)
{
    struct placement r[REPLICAS] = {
        { .ready = true, .max_num_seqs = 8, .outstanding_tokens = 3000 },
        { .ready = true, .max_num_seqs = 8, .outstanding_tokens = 1000 },
        { .ready = true, .max_num_seqs = 8, .outstanding_tokens = 2000 },
    };

    (void)state;
    assert_int_equal(placement_choose(r, REPLICAS, 0), 1);
    assert_int_equal(placement_choose(r, REPLICAS, 1 << 0), 0);            /* 3,000 is within the slack */
    assert_int_equal(placement_choose(r, REPLICAS, 1 << 0 | 1 << 2), 2);   /* of two that know it the idler one */
    r[0].outstanding_tokens = 5400;                                         /* 1,000 x 1.25 + 4,096 = 5,346 */
    assert_int_equal(placement_choose(r, REPLICAS, 1 << 0), 1);
    r[0].outstanding_tokens = 3000;
    r[0].num_sent = 8;                                                      /* it would wait here and run there */
    assert_int_equal(placement_choose(r, REPLICAS, 1 << 0), 1);
    r[1].num_sent = 8;                                                      /* it would wait anywhere */
    assert_int_equal(placement_choose(r, REPLICAS, 1 << 0), 0);
    r[1].ready = false;
    assert_int_equal(placement_choose(r, REPLICAS, 1 << 1), 2);
    r[0].ready = r[2].ready = false;
    assert_int_equal(placement_choose(r, REPLICAS, 7), -1);
    assert_int_equal(placement_session(r, REPLICAS, 5), -1);
}

static void test_idle_replicas_take_turns(void **state)
{
    struct placement r[REPLICAS] = { { .ready = true, .max_num_seqs = 8 }, { .ready = true, .max_num_seqs = 8 }, { .ready = true, .max_num_seqs = 8 } };

    (void)state;
    for (int i = 0; i < 30; i++) r[placement_choose(r, REPLICAS, 0)].num_given++;
    for (int i = 0; i < REPLICAS; i++) assert_int_equal(r[i].num_given, 10);
}

static void test_sessions_spread_and_move_little(void **state)
{
    struct placement r[REPLICAS] = { { .ready = true }, { .ready = true }, { .ready = true } };
    int count[REPLICAS] = { 0 }, before[300];

    (void)state;
    for (int s = 0; s < 300; s++) count[before[s] = placement_session(r, REPLICAS, (uint64_t)s + 1)]++;
    for (int i = 0; i < REPLICAS; i++) assert_in_range(count[i], 60, 140);
    r[1].ready = false;
    for (int s = 0; s < 300; s++) {
        int now = placement_session(r, REPLICAS, (uint64_t)s + 1);
        assert_int_not_equal(now, 1);
        if (before[s] != 1) assert_int_equal(now, before[s]);
    }
}

/* Nine of ten prompts begin with one of GROUPS prefixes. Sums the tokens that the chosen replica has computed before. */
static size_t hits(int num_replicas, int num_requests, int in_flight)
{
    struct placement r[REPLICAS] = { { .ready = true, .max_num_seqs = 64 }, { .ready = true, .max_num_seqs = 64 }, { .ready = true, .max_num_seqs = 64 } };
    struct affinity affinity, cached;
    size_t total = 0;
    int *sent_to = calloc((size_t)num_requests, sizeof *sent_to);

    assert_non_null(sent_to);
    assert_int_equal(affinity_init(&affinity, BLOCK), 0);
    assert_int_equal(affinity_init(&cached, BLOCK), 0);            /* stands for the engines' caches, which lose nothing here */
    for (int i = 0; i < num_requests; i++) {
        token_id ids[PROMPT];
        size_t matched;
        fill(ids, PROMPT, 1000 + i);
        if (i % 10) fill(ids, PREFIX, i * 7 % GROUPS);
        uint32_t liked = num_replicas > 1 ? affinity_match(&affinity, ids, PROMPT, domain, (1u << num_replicas) - 1, NULL) : 0;
        int to = placement_choose(r, num_replicas, liked);
        affinity_match(&cached, ids, PROMPT, domain, 1u << to, &matched);
        total += matched;
        affinity_note(&affinity, ids, PROMPT, domain, to);
        affinity_note(&cached, ids, PROMPT, domain, to);
        r[to].outstanding_tokens += PROMPT + 32;
        r[to].num_given++;
        sent_to[i] = to;
        if (i >= in_flight) r[sent_to[i - in_flight]].outstanding_tokens -= PROMPT + 32;
    }
    affinity_release(&affinity);
    affinity_release(&cached);
    free(sent_to);
    return total;
}

static void test_shared_prefixes_hit_as_on_one_replica(void **state)
{
    (void)state;
    for (int in_flight = 1; in_flight <= 33; in_flight += 16) {
        size_t one = hits(1, 2000, in_flight), three = hits(REPLICAS, 2000, in_flight);
        assert_in_range(one, 1700 * PREFIX, 2000 * PREFIX);
        assert_true(three * 100 >= one * 95);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_longest_known_beginning_wins), cmocka_unit_test(test_load_decides_and_overrules),
        cmocka_unit_test(test_idle_replicas_take_turns), cmocka_unit_test(test_sessions_spread_and_move_little),
        cmocka_unit_test(test_shared_prefixes_hit_as_on_one_replica),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
