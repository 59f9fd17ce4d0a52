#include "helpers.h"

#include "prefix_cache.h"

static struct sha256 key(token_id n) { return prefix_key(&(struct sha256){ { 0 } }, &n, 1); }

static void what_is_inserted_is_found_once(void **state)
{
    struct prefix_cache cache;

    (void)state;
    assert_int_equal(prefix_cache_init(&cache, 100), 0);
    for (block_id b = 0; b < 100; b++) {
        struct sha256 k = key(b);
        assert_int_equal(prefix_cache_find(&cache, &k), BLOCK_NONE);
        assert_true(prefix_cache_insert(&cache, b, &k));
        assert_int_equal(prefix_cache_find(&cache, &k), b);
    }
    prefix_cache_check(&cache);
    prefix_cache_remove(&cache, 50);
    prefix_cache_remove(&cache, 50);                   /* not indexed: fine */
    struct sha256 k = key(50), other = key(51);
    assert_int_equal(prefix_cache_find(&cache, &k), BLOCK_NONE);
    assert_false(prefix_cache_insert(&cache, 50, &other));     /* block 51 holds that */
    prefix_cache_check(&cache);
    prefix_cache_release(&cache);
}

static void the_one_parked_longest_goes_first(void **state)
{
    struct prefix_cache cache;

    (void)state;
    assert_int_equal(prefix_cache_init(&cache, 5), 0);
    for (block_id b = 0; b < 5; b++) {
        struct sha256 k = key(b);
        assert_true(prefix_cache_insert(&cache, b, &k));
    }
    for (block_id b = 0; b < 5; b++) prefix_cache_park(&cache, b);
    prefix_cache_unpark(&cache, 0);                    /* used again: now the youngest */
    prefix_cache_park(&cache, 0);
    prefix_cache_unpark(&cache, 3);                    /* in use: not to be evicted */
    prefix_cache_check(&cache);
    assert_int_equal(prefix_cache_evict(&cache), 1);
    assert_int_equal(prefix_cache_evict(&cache), 2);
    assert_int_equal(prefix_cache_evict(&cache), 4);
    assert_int_equal(prefix_cache_evict(&cache), 0);
    assert_int_equal(prefix_cache_evict(&cache), BLOCK_NONE);
    struct sha256 gone = key(1), kept = key(3);
    assert_int_equal(prefix_cache_find(&cache, &gone), BLOCK_NONE);
    assert_int_equal(prefix_cache_find(&cache, &kept), 3);
    prefix_cache_check(&cache);
    prefix_cache_release(&cache);
}

static void roots_separate_processes_models_and_domains(void **state)
{
    uint8_t zero[32] = { 0 }, one[32] = { 1 };
    struct sha256 a = prefix_root(zero, zero), b = prefix_root(one, zero), c = prefix_root(zero, one);
    struct sha256 x = prefix_domain_root(&a, zero), y = prefix_domain_root(&a, one);

    (void)state;
    assert_false(sha256_equal(&a, &b));
    assert_false(sha256_equal(&a, &c));
    assert_false(sha256_equal(&b, &c));
    assert_false(sha256_equal(&x, &y));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_inserted_is_found_once),
        cmocka_unit_test(the_one_parked_longest_goes_first),
        cmocka_unit_test(roots_separate_processes_models_and_domains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
