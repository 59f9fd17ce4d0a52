/* sampling_test.c - Philox against the published vectors, and the small predicates. */
#include <sluice/sampling.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct vector { uint64_t key, hi, lo; uint32_t want[4]; };

static void philox_known_answers(void **state)
{
    (void)state;
    /* Random123, kat_vectors: philox4x32 10. Words are listed low first. */
    static const struct vector vectors[] = {
        { 0, 0, 0, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { UINT64_MAX, UINT64_MAX, UINT64_MAX, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { 0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u,
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        uint32_t out[4];
        philox4x32(vectors[i].key, vectors[i].hi, vectors[i].lo, out);
        for (int word = 0; word < 4; word++) assert_int_equal(out[word], vectors[i].want[word]);
    }
}

static void uniform_is_in_range_and_flat(void **state)
{
    (void)state;
    enum { DRAWS = 100000, BINS = 20 };
    int counts[BINS] = { 0 };
    for (uint32_t i = 0; i < DRAWS; i++) {
        float u = sampling_uniform(42, 3, i);
        assert_true(u > 0.0f && u <= 1.0f);
        int bin = (int)(u * BINS);
        counts[bin < BINS ? bin : BINS - 1]++;
    }
    double chi2 = 0, expected = (double)DRAWS / BINS;
    for (int bin = 0; bin < BINS; bin++) chi2 += pow(counts[bin] - expected, 2) / expected;
    assert_true(chi2 < 43.8);      /* 99.9 % of 19 degrees of freedom */
}

static void uniform_depends_on_every_argument(void **state)
{
    (void)state;
    float u = sampling_uniform(1, 2, 3);
    assert_true(u == sampling_uniform(1, 2, 3));
    assert_true(u != sampling_uniform(2, 2, 3));
    assert_true(u != sampling_uniform(1u + (1ull << 32), 2, 3));
    assert_true(u != sampling_uniform(1, 3, 3));
    assert_true(u != sampling_uniform(1, 2, 4));
}

static void predicates(void **state)
{
    (void)state;
    struct sampling_params p;
    sampling_params_default(&p);
    assert_false(sampling_is_greedy(&p));
    assert_false(sampling_has_penalties(&p));
    assert_int_equal(p.num_logprobs, -1);
    p.temperature = 0;
    assert_true(sampling_is_greedy(&p));
    sampling_params_default(&p);
    p.top_k = 1;
    assert_true(sampling_is_greedy(&p));
    sampling_params_default(&p);
    p.top_p = 0;
    assert_true(sampling_is_greedy(&p));
    sampling_params_default(&p);
    p.presence_penalty = -0.5f;
    assert_true(sampling_has_penalties(&p));
    sampling_params_default(&p);
    p.repetition_penalty = 1.1f;
    assert_true(sampling_has_penalties(&p));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(uniform_is_in_range_and_flat),
        cmocka_unit_test(uniform_depends_on_every_argument),
        cmocka_unit_test(predicates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
