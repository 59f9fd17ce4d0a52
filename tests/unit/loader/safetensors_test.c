/* safetensors_test.c - headers: offsets must tile the data exactly, shape x dtype must equal bytes (api-contract row
 * 62). */
#include "fixture.h"

#include "safetensors.h"

static int open_bytes(const struct buf *b, struct tensor_index *index, struct err *err)
{
    int fd = memory_file(b->data, b->len);
    assert_int_equal(tensor_index_init(index), 0);
    int rc = safetensors_open(index, 0, "t.safetensors", fd, b->len, err);
    close(fd);
    return rc;
}

static void refuses(const char *header, size_t data_bytes, const char *message)
{
    struct buf b = safetensors_file(header, data_bytes);
    struct tensor_index index;
    struct err err = { 0 };
    int rc = open_bytes(&b, &index, &err);
    char expected[400];
    snprintf(expected, sizeof expected, "t.safetensors: %s", message);
    assert_string_equal(err.message, expected);
    assert_int_equal(rc, ERR_MODEL_FILE);
    tensor_index_release(&index);
    buf_release(&b);
}

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[16,28]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
    "\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[28,30]},"
    "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[16,16]},"
    "\"ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[30,38]}}   ";

static void tensors_are_listed(void **state)
{
    struct buf b = safetensors_file(good, 38);
    struct tensor_index index;
    struct err err = { 0 };
    (void)state;
    assert_int_equal(open_bytes(&b, &index, &err), 0);
    assert_int_equal(index.count, 5);
    const struct tensor_info *info = tensor_index_find(&index, "b");
    assert_int_equal(info->dtype, DTYPE_BF16);
    assert_int_equal(info->ndim, 2);
    assert_int_equal(info->shape[0], 2);
    assert_int_equal(info->shape[1], 3);
    assert_int_equal(info->bytes, 12);
    assert_int_equal(info->offset, 8 + strlen(good) + 16);
    assert_int_equal(tensor_index_find(&index, "scalar")->ndim, 0);
    assert_int_equal(tensor_index_find(&index, "scalar")->bytes, 2);
    assert_int_equal(tensor_index_find(&index, "empty")->bytes, 0);
    assert_int_equal(tensor_index_find(&index, "ids")->dtype, DTYPE_COUNT);
    assert_null(tensor_index_find(&index, "__metadata__"));
    tensor_index_release(&index);
    buf_release(&b);
}

#define ONE(dtype, shape, offsets) "{\"w\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void bad_entries_are_named(void **state)
{
    static const struct { const char *header; size_t data; const char *message;
    } rows[] = {
        {ONE("\"F32\"", "[4]", "[0,12]"), 12,
         "tensor \"w\": data_offsets: expected 16 bytes (shape and dtype), found 12"},
        {ONE("\"F32\"", "[4]", "[0,16]"), 12, "tensor \"w\": expected to end by byte 75, found 16 bytes at 63"},
        {ONE("\"F32\"", "[4]", "[0,16]"), 20, "expected tensors up to byte 83, found them up to 79"},
        {ONE("\"F32\"", "[4]", "[4,20]"), 20, "tensor \"w\": expected to start at byte 63, found 67 (a hole)"},
        {ONE("\"F32\"", "[4]", "[16,0]"), 16, "tensor \"w\": data_offsets: expected two integers, 0 <= begin <= end"},
        {ONE("\"F32\"", "[4]", "[-16,0]"), 16, "tensor \"w\": data_offsets: expected two integers, 0 <= begin <= end"},
        {ONE("\"F32\"", "[4]", "[0]"), 16, "tensor \"w\": data_offsets: expected two integers, 0 <= begin <= end"},
        {ONE("\"F32\"", "[4]", "[0,16,16]"), 16,
         "tensor \"w\": data_offsets: expected two integers, 0 <= begin <= end"},
        {ONE("\"F32\"", "[4]", "[0,16.5]"), 16, "tensor \"w\": data_offsets: expected two integers, 0 <= begin <= end"},
        {ONE("\"F32\"", "[4]", "\"x\""), 16, "tensor \"w\": data_offsets: expected two integers, 0 <= begin <= end"},
        {ONE("\"F32\"", "[4]", "[9223372036854775791,9223372036854775807]"), 16,
         "tensor \"w\": expected to end by byte 114, found 16 bytes at 9223372036854775889"},
        {ONE("\"F32\"", "[-4]", "[0,16]"), 16, "tensor \"w\": shape: expected integers of at least 0"},
        {ONE("\"F32\"", "[1.5]", "[0,16]"), 16, "tensor \"w\": shape: expected integers of at least 0"},
        {ONE("\"F32\"", "[true]", "[0,16]"), 16, "tensor \"w\": shape: expected integers of at least 0"},
        {ONE("\"F32\"", "4", "[0,16]"), 16, "tensor \"w\": shape: expected an array"},
        {ONE("\"F32\"", "[4611686018427387904,4611686018427387904]", "[0,16]"), 16,
         "tensor \"w\": shape: expected a size below 2^60 bytes, found more"},
        {ONE("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0,
         "tensor \"w\": shape: expected a size below 2^60 bytes, found more"},
        {ONE("\"F33\"", "[4]", "[0,16]"), 16, "tensor \"w\": dtype: expected F32, F16 or BF16, found F33"},
        {ONE("7", "[4]", "[0,16]"), 16, "tensor \"w\": dtype: expected a string"},
        {"{\"w\":{\"shape\":[4],\"data_offsets\":[0,16]}}", 16, "tensor \"w\": dtype: expected a string"},
        {"{\"w\":[]}", 0, "tensor \"w\": expected an object"},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
         "tensor 0: expected a name of 1 to 255 bytes, found 0"},
        {"{\"\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
         "tensor 0: expected a printable name"},
        {"{\"\\u001b[2J\":7}", 1, "tensor \"(unprintable)\": expected an object"},
        {"{\"a\":1,\"a\":1}", 0, "header: duplicate key at byte 7"},
        {"[]", 0, "header: expected it to start with {"},
        {"{} {}", 0, "header: bytes after the document at byte 3"},
        {"", 0, "header: expected it to start with {"},
        {"{}", 1, "expected tensors up to byte 11, found them up to 10"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) refuses(rows[i].header, rows[i].data, rows[i].message);
}

static void overlaps_and_holes_are_refused(void **state)
{
    (void)state;
    refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
            "\"data_offsets\":[2,6]}}",
            6, "tensor \"b\": expected to start at byte 117 or later, found 115 inside tensor \"a\"");
    refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
            "\"data_offsets\":[6,10]}}",
            10, "tensor \"b\": expected to start at byte 118, found 120 (a hole)");
    refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
            "\"data_offsets\":[0,4]}}",
            4, "tensor \"b\": expected to start at byte 117 or later, found 113 inside tensor \"a\"");
}

static void header_length_is_bounded(void **state)
{
    static const uint64_t lengths[] = { 3, 100, (100u << 20) + 1, UINT64_MAX, UINT64_MAX - 7 };
    (void)state;
    for (size_t i = 0; i < COUNT(lengths); i++) {
        struct buf b = BUF_INIT;
        struct tensor_index index;
        struct err err = { 0 };
        put_u64(&b, lengths[i]);
        buf_puts(&b, "{}");
        assert_int_equal(open_bytes(&b, &index, &err), ERR_MODEL_FILE);
        assert_non_null(strstr(err.message, "t.safetensors: header: expected at most 2 bytes, found "));
        tensor_index_release(&index);
        buf_release(&b);
    }
}

static void truncations_and_flips_stay_inside(void **state)
{
    struct buf b = safetensors_file(good, 38);
    size_t whole = b.len;
    int refused = 0;
    (void)state;
    for (b.len = 0; b.len < whole; b.len++) {
        struct tensor_index index;
        assert_int_equal(open_bytes(&b, &index, NULL), ERR_MODEL_FILE);
        tensor_index_release(&index);
    }
    for (size_t bit = 0; bit < (whole - 38) * 8; bit++) {
        struct tensor_index index;
        b.data[bit / 8] ^= (char)(1 << bit % 8);
        int rc = open_bytes(&b, &index, NULL);
        refused += rc < 0;
        for (size_t i = 0; rc == 0 && i < index.count; i++) {
            assert_true(index.infos[i].offset <= b.len && index.infos[i].bytes <= b.len - index.infos[i].offset);
        }
        tensor_index_release(&index);
        b.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_true(refused > 1000);
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_listed),
        cmocka_unit_test(bad_entries_are_named),
        cmocka_unit_test(overlaps_and_holes_are_refused),
        cmocka_unit_test(header_length_is_bounded),
        cmocka_unit_test(truncations_and_flips_stay_inside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
