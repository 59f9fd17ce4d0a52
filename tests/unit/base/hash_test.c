#include <stdio.h>
#include <string.h>

#include <sluice/err.h>

#include "base/hash.h"
#include "base/sha256.h"
#include "unit/base/cmocka_all.h"

static void map_keeps_first_value_and_survives_growth(void **state)
{
    static char keys[5000][12];
    struct str_map map;
    int32_t existing;

    (void)state;
    assert_int_equal(str_map_init(&map, 4), 0);
    for (int i = 0; i < 5000; i++) {
        snprintf(keys[i], sizeof keys[i], "key%d", i);
        assert_int_equal(str_map_put(&map, keys[i], strlen(keys[i]), i, &existing), 0);
        assert_int_equal(existing, -1);
    }
    assert_int_equal(str_map_put(&map, "key77", 5, 1, &existing), 0);
    assert_int_equal(existing, 77);
    for (int i = 0; i < 5000; i++) assert_int_equal(str_map_get(&map, keys[i], strlen(keys[i])), i);
    assert_int_equal(str_map_get(&map, "key", 3), -1);
    assert_int_equal(str_map_get(&map, "key5000", 7), -1);
    str_map_release(&map);
}

static void keys_may_hold_nul_and_be_empty(void **state)
{
    struct str_map map;

    (void)state;
    assert_int_equal(str_map_init(&map, 4), 0);
    assert_int_equal(str_map_put(&map, "a\0b", 3, 1, NULL), 0);
    assert_int_equal(str_map_put(&map, "", 0, 2, NULL), 0);
    assert_int_equal(str_map_get(&map, "a\0b", 3), 1);
    assert_int_equal(str_map_get(&map, "a", 1), -1);
    assert_int_equal(str_map_get(&map, "", 0), 2);
    str_map_release(&map);
}

/* Every bit of a short key reaches the hash: single-bit neighbours never collide here. */
static void neighbours_hash_apart(void **state)
{
    unsigned char key[24] = { 0 };

    (void)state;
    for (size_t len = 1; len <= sizeof key; len++) {
        uint64_t base = hash_bytes(key, len, 7);
        for (size_t bit = 0; bit < len * 8; bit++) {
            key[bit / 8] ^= (unsigned char)(1 << bit % 8);
            assert_int_not_equal(hash_bytes(key, len, 7), base);
            key[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
        assert_int_not_equal(hash_bytes(key, len, 8), base);
    }
}

static void sha256_known_answer(void **state)
{
    char hex[65];
    struct sha256_piece pieces[] = { { "a", 1 }, { "bc", 2 } };
    struct sha256 hash = sha256_of(pieces, 2), other = hash;

    (void)state;
    sha256_hex(&hash, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_true(sha256_equal(&hash, &other));
    other.bytes[31] ^= 1;
    assert_false(sha256_equal(&hash, &other));
}

static void err_table_is_the_wire_contract(void **state)
{
    struct err err = { 0 };

    (void)state;
    assert_string_equal(err_wire_code(ERR_CONTEXT_LENGTH), "context_length_exceeded");
    assert_int_equal(err_http_status(ERR_QUEUE_FULL), 429);
    assert_string_equal(err_type(ERR_API_KEY), "authentication_error");
    assert_string_equal(err_name(12345), "ERR_?");
    assert_int_equal(err_param(&err, ERR_TYPE, "n", "first %d", 1), ERR_TYPE);
    assert_int_equal(err_set(&err, ERR_IO, "second"), ERR_IO);
    assert_string_equal(err.message, "first 1");                  /* the first error wins */
    assert_int_equal(err_prefix(&err, "file %s", "x"), ERR_TYPE);
    assert_string_equal(err.message, "file x: first 1");
    assert_string_equal(err.param, "n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map_keeps_first_value_and_survives_growth), cmocka_unit_test(keys_may_hold_nul_and_be_empty),
        cmocka_unit_test(neighbours_hash_apart), cmocka_unit_test(sha256_known_answer), cmocka_unit_test(err_table_is_the_wire_contract),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
