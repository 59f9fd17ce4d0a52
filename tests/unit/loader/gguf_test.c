/* gguf_test.c - the GGUF header: what is read, and that no damage gets past it or crashes it (api-contract row 62). */
#include "fixture.h"

#include "gguf.h"

/* Opens bytes; the index is the caller's to release. */
static int open_bytes(const struct buf *b, struct tensor_index *index, struct gguf_file **gguf, struct err *err)
{
    int fd = memory_file(b->data, b->len);
    assert_int_equal(tensor_index_init(index), 0);
    int rc = gguf_open(gguf, index, fd, b->len, "t.gguf", err);
    close(fd);
    return rc;
}

/* Consumes b. */
static void refuses(struct buf *b, const char *message)
{
    struct tensor_index index;
    struct gguf_file *gguf;
    struct err err = { 0 };
    assert_false(b->failed);
    int rc = open_bytes(b, &index, &gguf, &err);
    assert_null(gguf);
    assert_string_equal(err.message, message);
    assert_int_equal(rc, ERR_MODEL_FILE);
    tensor_index_release(&index);
    buf_release(b);
}

static void tiny_file_is_read(void **state)
{
    struct buf b = tiny_gguf();
    struct tensor_index index;
    struct gguf_file *gguf;
    struct err err = { 0 };
    (void)state;

    assert_int_equal(open_bytes(&b, &index, &gguf, &err), 0);
    assert_int_equal(index.count, 2);
    const struct tensor_info *info = tensor_index_find(&index, "token_embd.weight");
    assert_non_null(info);
    assert_int_equal(info->dtype, DTYPE_Q8_0);
    assert_int_equal(info->ndim, 2);
    assert_int_equal(info->shape[0], 8);
    assert_int_equal(info->shape[1], 32);
    assert_int_equal(info->bytes, 272);
    assert_int_equal(info->offset + 288 + 128, b.len);
    assert_null(tensor_index_find(&index, "token_embd"));

    struct model_config config;
    assert_int_equal(gguf_model_config(gguf, &index, "t.gguf", &config, &err), 0);
    assert_int_equal(config.arch, ARCH_LLAMA);
    assert_int_equal(config.vocab_size, 8);
    assert_int_equal(config.dtype, DTYPE_F16);             /* nothing in it is bf16 */
    assert_int_equal(config.hidden_size, 32);
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.num_key_value_heads, 1);
    assert_true(config.rope_theta == 50000.0f);
    assert_true(config.rope_interleaved);
    assert_true(config.tie_word_embeddings);
    assert_false(config.rope_freqs);
    assert_int_equal(config.bos_token_id, 1);
    assert_int_equal(config.num_eos_token_ids, 1);
    assert_int_equal(config.eos_token_ids[0], 2);
    assert_true(config.gen_temperature < 0);
    gguf_close(gguf);
    tensor_index_release(&index);
    buf_release(&b);
}

static void every_value_type_is_read(void **state)
{
    struct buf b = BUF_INIT;
    struct tensor_index index;
    struct gguf_file *gguf;
    int64_t i64;
    double f64;
    const char *text;
    size_t len;
    (void)state;

    put_preamble(&b, 0, 14);
    put_key(&b, "u8", GGUF_U8), buf_append(&b, "\xFF", 1);
    put_key(&b, "i8", GGUF_I8), buf_append(&b, "\xFF", 1);
    put_key(&b, "u16", GGUF_U16), buf_append(&b, "\xFE\xFF", 2);
    put_key(&b, "i16", GGUF_I16), buf_append(&b, "\xFE\xFF", 2);
    put_key_u32(&b, "u32", UINT32_MAX);
    put_key(&b, "i32", GGUF_I32), put_u32(&b, UINT32_MAX);
    put_key(&b, "u64", GGUF_U64), put_u64(&b, UINT64_MAX);
    put_key(&b, "i64", GGUF_I64), put_u64(&b, UINT64_MAX);
    put_key_f32(&b, "f32", 0.5f);
    put_key(&b, "f64", GGUF_F64), buf_append(&b, &(double){ 0.1 }, 8);
    put_key(&b, "bool", GGUF_BOOL), buf_append(&b, "\1", 1);
    put_key_text(&b, "text", "hello");
    put_key(&b, "ints", GGUF_ARRAY), put_u32(&b, GGUF_I16), put_u64(&b, 2), buf_append(&b, "\1\0\xFF\xFF", 4);
    put_key(&b, "words", GGUF_ARRAY), put_u32(&b, GGUF_STRING), put_u64(&b, 2), put_text(&b, "a"), put_text(&b, "bc");
    assert_int_equal(open_bytes(&b, &index, &gguf, NULL), 0);

    static const struct { const char *key; int64_t value;
    } ints[] = {
        {"u8", 255},         {"i8", -1},  {"u16", 65534}, {"i16", -2},
        {"u32", UINT32_MAX}, {"i32", -1}, {"i64", -1},    {"bool", 1},
    };
    for (size_t i = 0; i < COUNT(ints); i++) {
        assert_int_equal(gguf_get_i64(gguf, ints[i].key, &i64), 0);
        assert_int_equal(i64, ints[i].value);
        assert_int_equal(gguf_get_f64(gguf, ints[i].key, &f64), 0);
        assert_true(f64 == (double)ints[i].value);
    }
    assert_int_equal(gguf_get_i64(gguf, "u64", &i64), ERR_TYPE);   /* beyond int64 */
    assert_int_equal(gguf_get_i64(gguf, "f32", &i64), ERR_TYPE);
    assert_int_equal(gguf_get_i64(gguf, "none", &i64), ERR_NOT_FOUND);
    assert_int_equal(gguf_get_f64(gguf, "f32", &f64), 0);
    assert_true(f64 == 0.5);
    assert_int_equal(gguf_get_f64(gguf, "f64", &f64), 0);
    assert_true(f64 == 0.1);
    assert_int_equal(gguf_get_f64(gguf, "text", &f64), ERR_TYPE);
    assert_int_equal(gguf_get_str(gguf, "text", &text, &len), 0);
    assert_int_equal(len, 5);
    assert_memory_equal(text, "hello", 5);
    assert_int_equal(gguf_get_str(gguf, "u8", &text, &len), ERR_TYPE);
    assert_int_equal(gguf_array_len(gguf, "words"), 2);
    assert_int_equal(gguf_array_len(gguf, "text"), 0);
    assert_int_equal(gguf_array_str(gguf, "words", 1, &text, &len), 0);
    assert_int_equal(len, 2);
    assert_memory_equal(text, "bc", 2);
    assert_int_equal(gguf_array_str(gguf, "words", 2, &text, &len), ERR_NOT_FOUND);
    assert_int_equal(gguf_array_str(gguf, "ints", 0, &text, &len), ERR_TYPE);
    assert_int_equal(gguf_array_i64(gguf, "ints", 1, &i64), 0);
    assert_int_equal(i64, -1);
    assert_int_equal(gguf_array_i64(gguf, "words", 0, &i64), ERR_TYPE);
    assert_int_equal(gguf_array_f64(gguf, "ints", 0, &f64), 0);
    assert_true(f64 == 1.0);
    assert_true(gguf_has(gguf, "bool"));
    assert_false(gguf_has(gguf, "boo"));
    gguf_close(gguf);
    tensor_index_release(&index);
    buf_release(&b);
}

static void every_truncation_is_refused(void **state)
{
    struct buf b = tiny_gguf();
    size_t whole = b.len;
    (void)state;
    for (b.len = 0; b.len < whole; b.len++) {
        struct tensor_index index;
        struct gguf_file *gguf;
        struct err err = { 0 };
        assert_int_equal(open_bytes(&b, &index, &gguf, &err), ERR_MODEL_FILE);
        assert_true(strncmp(err.message, "t.gguf: ", 8) == 0);
        tensor_index_release(&index);
    }
    buf_release(&b);
}

/* Every bit of the header flipped: refused, or what was accepted stays inside the file. */
static void no_flipped_bit_escapes_the_file(void **state)
{
    struct buf b = tiny_gguf();
    int refused = 0;
    (void)state;
    for (size_t bit = 0; bit < (b.len - 416) * 8; bit++) {
        struct tensor_index index;
        struct gguf_file *gguf;
        struct model_config config;
        struct err err = { 0 };
        b.data[bit / 8] ^= (char)(1 << bit % 8);
        int rc = open_bytes(&b, &index, &gguf, &err);
        for (size_t i = 0; rc == 0 && i < index.count; i++) {
            assert_true(index.infos[i].offset <= b.len && index.infos[i].bytes <= b.len - index.infos[i].offset);
        }
        if (rc == 0) rc = gguf_model_config(gguf, &index, "t.gguf", &config, &err);
        refused += rc < 0;
        assert_true((rc == 0) == (err.message[0] == '\0'));
        gguf_close(gguf);
        tensor_index_release(&index);
        b.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_true(refused > 1000);   /* most bits matter */
    buf_release(&b);
}

static struct buf with_tensor(const char *name, int ndim, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset)
{
    struct buf b = BUF_INIT;
    put_preamble(&b, 1, 0);
    put_tensor(&b, name, ndim, d0, d1, type, offset);
    put_padding(&b, 32);
    for (int i = 0; i < 128; i++) buf_putc(&b, 0);
    return b;
}

static void bad_tensors_are_named(void **state)
{
    static const struct { int ndim; uint64_t d0, d1; uint32_t type; uint64_t offset; const char *message;
    } rows[] = {
        {0, 32, 0, 0, 0, "t.gguf: tensor \"w\": expected 1 to 4 dimensions, found 0"},
        {5, 1, 1, 0, 0, "t.gguf: tensor \"w\": expected 1 to 4 dimensions, found 5"},
        {1, 0, 0, 0, 0, "t.gguf: tensor \"w\": dimension 0: expected at least 1, found 0"},
        {1, UINT64_MAX, 0, 0, 0, "t.gguf: tensor \"w\": dimension 0: expected at least 1, found 18446744073709551615"},
        {2, 1ULL << 40, 1ULL << 40, 0, 0,
         "t.gguf: tensor \"w\": expected rows of whole f32 blocks (1 elements) and a size "
         "below 2^63, found rows of 1099511627776"},
        {1, 48, 0, 2, 0,
         "t.gguf: tensor \"w\": expected rows of whole q4_0 blocks (32 elements) and a size below 2^63, "
         "found rows of 48"},
        {1, 32, 0, 28, 0,
         "t.gguf: tensor \"w\": expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K, "
         "found type 28 (F64)"},
        {1, 32, 0, 17, 0,
         "t.gguf: tensor \"w\": expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K, "
         "found type 17 (IQ2_XS)"},
        {1, 32, 0, 4000000000u, 0,
         "t.gguf: tensor \"w\": expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to "
         "Q6_K, found type 4000000000 (unknown)"},
        {1, 32, 0, 0, 16, "t.gguf: tensor \"w\": expected an offset that is a multiple of 32, found 16"},
        {1, 32, 0, 0, 32, "t.gguf: tensor \"w\": expected to end by byte 192, found 128 bytes at 96"},
        {1, 33, 0, 0, 0, "t.gguf: tensor \"w\": expected to end by byte 192, found 132 bytes at 64"},
        {1, 32, 0, 0, UINT64_MAX - 31, "t.gguf: tensor \"w\": expected an offset that is a multiple of 32, found 32"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf b = with_tensor("w", rows[i].ndim, rows[i].d0, rows[i].d1, rows[i].type, rows[i].offset);
        refuses(&b, rows[i].message);
    }
    struct buf b = with_tensor("a\x1B[31m", 1, 32, 0, 0, 0);
    refuses(&b, "t.gguf: tensor 0: expected a printable name of at most 255 bytes, found 6 bytes");
    b = with_tensor("", 1, 32, 0, 0, 0);
    refuses(&b, "t.gguf: tensor 0: expected a name of 1 to 255 bytes, found 0");
}

static void overlaps_and_repeats_are_refused(void **state)
{
    struct buf b = BUF_INIT;
    (void)state;
    put_preamble(&b, 2, 0);
    put_tensor(&b, "first", 1, 32, 0, 0, 0);
    put_tensor(&b, "second", 1, 8, 0, 0, 96);
    put_padding(&b, 32);
    size_t start = b.len;
    for (int i = 0; i < 128; i++) buf_putc(&b, 0);
    char message[200];
    snprintf(message, sizeof message,
             "t.gguf: tensor \"second\": expected to start at byte %zu or later, found %zu inside "
             "tensor \"first\"",
             start + 128, start + 96);
    refuses(&b, message);

    put_preamble(&b, 2, 0);
    put_tensor(&b, "w", 1, 8, 0, 0, 0);
    put_tensor(&b, "w", 1, 8, 0, 0, 32);
    put_padding(&b, 32);
    for (int i = 0; i < 64; i++) buf_putc(&b, 0);
    refuses(&b, "t.gguf: tensor \"w\": found twice");

    put_preamble(&b, 0, 2);
    put_key_u32(&b, "k", 1);
    put_key_u32(&b, "k", 2);
    refuses(&b, "t.gguf: key \"k\": found twice, the second as number 1");
}

static void bad_headers_are_refused(void **state)
{
    struct buf b = BUF_INIT;
    (void)state;
    buf_append(&b, "GGML\3\0\0\0", 8);
    refuses(&b, "t.gguf: expected a GGUF file, found other bytes");
    buf_append(&b, "GGUF\1\0\0\0", 8);
    refuses(&b, "t.gguf: expected GGUF version 2 or 3, found 1");
    buf_append(&b, "GGUF\0\0\0\3", 8);
    refuses(&b, "t.gguf: expected a little-endian GGUF file, found a big-endian one");
    put_preamble(&b, UINT64_MAX, 0);
    refuses(&b, "t.gguf: header: expected at most 1000000 tensors that fit the file, found 18446744073709551615");
    put_preamble(&b, 0, UINT64_MAX);
    refuses(&b, "t.gguf: header: expected at most 65536 keys, found 18446744073709551615");
    put_preamble(&b, 0, 1);
    put_u64(&b, UINT64_MAX);
    refuses(&b, "t.gguf: header: expected 18446744073709551615 more bytes at byte 32, found the end at 32");
    put_preamble(&b, 0, 1);
    put_key(&b, "k", (enum gguf_type)13);
    refuses(&b, "t.gguf: key \"k\": expected a value type of 0 to 12, found 13");
    put_preamble(&b, 0, 1);
    put_key(&b, "k", GGUF_ARRAY), put_u32(&b, GGUF_ARRAY), put_u64(&b, 0);
    refuses(&b, "t.gguf: key \"k\": expected an array of plain values, found type 9");
    put_preamble(&b, 0, 1);
    put_key(&b, "k", GGUF_ARRAY), put_u32(&b, GGUF_U64), put_u64(&b, 1ULL << 61);
    refuses(&b, "t.gguf: key \"k\": expected an array that fits the file, found elements: 2305843009213693952");
    put_preamble(&b, 0, 1);
    put_key_u32(&b, "general.alignment", 24);
    refuses(&b, "t.gguf: key \"general.alignment\": expected a power of two from 8 to 1048576, found 24");
}

/* The tiny file with one more key (or one key's value replaced) is refused with this message. */
static void config_refuses(const char *key, uint32_t value, const char *message)
{
    struct buf b = BUF_INIT;
    struct tensor_index index;
    struct gguf_file *gguf;
    struct model_config config;
    struct err err = { 0 };

    struct buf tiny = tiny_gguf();
    char *at = memmem(tiny.data, tiny.len, key, strlen(key));
    if (at) {
        memcpy(at + strlen(key) + 4, &value, 4);
        buf_append(&b, tiny.data, tiny.len);
    } else {
        put_preamble(&b, 2, TINY_KEYS + 1);
        put_tiny_keys(&b);
        put_key_u32(&b, key, value);
        put_tensor(&b, "token_embd.weight", 2, 32, 8, 8, 0);
        put_tensor(&b, "output_norm.weight", 1, 32, 0, 0, 288);
        put_padding(&b, 32);
        for (int i = 0; i < 288 + 128; i++) buf_putc(&b, 0);
    }
    assert_int_equal(open_bytes(&b, &index, &gguf, &err), 0);
    assert_int_equal(gguf_model_config(gguf, &index, "t.gguf", &config, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, message);
    gguf_close(gguf);
    tensor_index_release(&index);
    buf_release(&tiny);
    buf_release(&b);
}

static void absurd_metadata_is_refused(void **state)
{
    (void)state;
    config_refuses("llama.block_count", 0, "t.gguf: num_hidden_layers: expected 1 to 1024, found 0");
    config_refuses("llama.block_count", 2000000000, "t.gguf: num_hidden_layers: expected 1 to 1024, found 2000000000");
    config_refuses("llama.block_count", UINT32_MAX,
                   "t.gguf: key \"llama.block_count\": expected one 31-bit integer for all "
                   "layers");
    config_refuses("llama.attention.head_count", 0, "t.gguf: num_attention_heads: expected 1 to 1024, found 0");
    config_refuses("llama.attention.head_count_kv", 3, "t.gguf: num_key_value_heads: expected 1 to 2, found 3");
    config_refuses("llama.embedding_length", 64,
                   "t.gguf: tensor \"token_embd.weight\": expected [vocab, 64], found another "
                   "shape");
    config_refuses("llama.attention.layer_norm_rms_epsilon", 0x7FC00000,
                   "t.gguf: key \"llama.attention.layer_norm_rms_epsilon\": expected a number");
    config_refuses("llama.rope.freq_base", 0, "t.gguf: rope_theta: expected more than 0 and at most 1e+15, found 0");
    config_refuses("llama.expert_count", 8,
                   "t.gguf: key \"llama.expert_count\": expected 0 (mixtures of experts are not "
                   "supported)");
    config_refuses("llama.rope.dimension_count", 8,
                   "t.gguf: key \"llama.rope.dimension_count\": expected the head's whole "
                   "length (partial rotation is not supported)");
    config_refuses("split.count", 2, "t.gguf: split.count: expected one file, found a part of 2 (merge them first)");
    config_refuses("tokenizer.ggml.eos_token_id", 8, "t.gguf: eos_token_id: expected an id below 8, found 8");
    config_refuses("tokenizer.ggml.bos_token_id", 99,
                   "t.gguf: tokenizer.ggml.bos_token_id: expected an id below 8, found 99");
}

static void other_architectures_are_refused(void **state)
{
    struct buf b = BUF_INIT;
    struct tensor_index index;
    struct gguf_file *gguf;
    struct model_config config;
    struct err err = { 0 };
    (void)state;
    put_preamble(&b, 0, 1);
    put_key_text(&b, "general.architecture", "gemma2");
    assert_int_equal(open_bytes(&b, &index, &gguf, &err), 0);
    assert_int_equal(gguf_model_config(gguf, &index, "t.gguf", &config, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, "t.gguf: general.architecture: expected llama, qwen2 or qwen3, found gemma2");
    gguf_close(gguf);
    tensor_index_release(&index);
    buf_release(&b);
}

static void qwen3_with_yarn_and_rope_factors(void **state)
{
    struct buf b = BUF_INIT;
    struct tensor_index index;
    struct gguf_file *gguf;
    struct model_config c;
    struct err err = { 0 };
    (void)state;
    put_preamble(&b, 4, 14);
    put_key_text(&b, "general.architecture", "qwen3");
    put_key_u32(&b, "general.alignment", 64);
    put_key_u32(&b, "qwen3.block_count", 1);
    put_key_u32(&b, "qwen3.context_length", 4096);
    put_key_u32(&b, "qwen3.embedding_length", 32);
    put_key_u32(&b, "qwen3.feed_forward_length", 64);
    put_key(&b, "qwen3.attention.head_count", GGUF_ARRAY), put_u32(&b, GGUF_I32), put_u64(&b, 2), put_u32(&b, 4),
        put_u32(&b, 4);
    put_key_u32(&b, "qwen3.attention.key_length", 16);
    put_key_u32(&b, "qwen3.attention.value_length", 16);
    put_key_f32(&b, "qwen3.attention.layer_norm_rms_epsilon", 1e-6f);
    put_key_text(&b, "qwen3.rope.scaling.type", "yarn");
    put_key_f32(&b, "qwen3.rope.scaling.factor", 4.0f);
    put_key_u32(&b, "qwen3.rope.scaling.original_context_length", 1024);
    put_key_f32(&b, "qwen3.rope.scaling.attn_factor", 2.0f);
    put_tensor(&b, "token_embd.weight", 2, 32, 4, 30, 0);
    put_tensor(&b, "output.weight", 2, 32, 4, 30, 256);
    put_tensor(&b, "rope_freqs.weight", 1, 8, 0, 0, 512);
    put_tensor(&b, "blk.0.attn_q.bias", 1, 8, 0, 0, 576);
    put_padding(&b, 64);
    for (int i = 0; i < 608; i++) buf_putc(&b, 0);
    assert_int_equal(open_bytes(&b, &index, &gguf, &err), 0);
    assert_int_equal(gguf_model_config(gguf, &index, "t.gguf", &c, &err), 0);
    assert_int_equal(c.arch, ARCH_QWEN3);
    assert_true(c.qk_norm && c.rope_freqs && c.attention_bias);
    assert_false(c.tie_word_embeddings || c.rope_interleaved);
    assert_int_equal(c.num_attention_heads, 4);
    assert_int_equal(c.num_key_value_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.rope_scaling.type, ROPE_YARN);
    assert_true(c.rope_scaling.factor == 4.0f);
    assert_int_equal(c.rope_scaling.original_max_position_embeddings, 1024);
    assert_true(c.rope_scaling.attention_factor > 2.277f &&
                c.rope_scaling.attention_factor < 2.278f); /* 2 (0.1 ln 4 + 1) */
    gguf_close(gguf);
    tensor_index_release(&index);
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_file_is_read),
        cmocka_unit_test(every_value_type_is_read),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(no_flipped_bit_escapes_the_file),
        cmocka_unit_test(bad_tensors_are_named),
        cmocka_unit_test(overlaps_and_repeats_are_refused),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(absurd_metadata_is_refused),
        cmocka_unit_test(other_architectures_are_refused),
        cmocka_unit_test(qwen3_with_yarn_and_rope_factors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
