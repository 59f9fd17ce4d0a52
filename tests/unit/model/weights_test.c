/* weights_test.c - every shard is a slice of the whole, permuted rows come back in order, bad files are named.
 * The backend here keeps fp32 rows as they come, so that what was stored can be read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model_private.h"
#include "tiny_model.h"

/* ---- a backend of plain rows ---- */

struct backend { char *memory; size_t used, size; };

static size_t plain_bytes(enum weight_kind kind, int64_t rows, int64_t cols)
{
    (void)kind;
    return (size_t)(rows * cols) * sizeof(float);
}

static void *plain_carve(struct backend *b, size_t bytes)
{
    void *at = b->memory + b->used;
    b->used += (bytes + 63) / 64 * 64;
    assert_true(b->used <= b->size);
    return at;
}

static void plain_store(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows,
                        const float *src)
{
    (void)b;
    assert_true(kind == WEIGHT_MATRIX || (row == 0 && n_rows == 1));
    assert_true(row >= 0 && row + n_rows <= w->rows);
    memcpy((float *)w->data + row * w->cols, src, plain_bytes(kind, n_rows, w->cols));
}

static void plain_for(struct backend *b, int64_t n, int64_t grain, void (*fn)(void *arg, int64_t begin, int64_t end),
                      void *arg)
{
    (void)b;
    for (int64_t i = 0; i < n; i += grain) fn(arg, i, i + grain < n ? i + grain : n);
}

static const struct backend_ops plain_ops = { .name = "plain", .act_dtype = DTYPE_F32, .carve = plain_carve,
                                              .weight_bytes = plain_bytes, .weight_store = plain_store, .parallel_for =
                                                  plain_for };

struct loaded {
    struct model_config config;
    struct shard shard;
    struct backend backend;
    struct weights weights;
    uint64_t seen;
};

static void count(void *arg, uint64_t bytes) { *(uint64_t *)arg += bytes; }

/* config: instead of the source's own, or NULL. */
static int load(struct loaded *l, const struct model_source *src, const struct model_config *config, int tp_size,
                int tp_rank, struct err *err)
{
    *l = (struct loaded){ .config = config ? *config : *model_source_config(src) };
    const struct weight_groups *groups = &model_arch_desc(l->config.arch)->weights;
    assert_int_equal(shard_of(&l->shard, &l->config, tp_size, 1, tp_rank, 0, NULL, NULL), 0);
    l->backend.size = weights_bytes(groups, &l->config, &l->shard, &plain_ops, src);
    l->backend.memory = calloc(1, l->backend.size);
    assert_non_null(l->backend.memory);
    struct weights_load_args args = { .src = src, .groups = groups, .config = &l->config, .shard = &l->shard, .ops =
                                      &plain_ops,
                                      .backend = &l->backend, .seed = 3, .progress = count, .progress_arg = &l->seen };
    int rc = weights_load(&l->weights, &args, err);
    if (rc == 0) {
        assert_int_equal(l->backend.used, l->backend.size);         /* the plan's arithmetic is the carving's */
        assert_int_equal(l->seen, weights_fp32_bytes(groups, &l->config, &l->shard));
    }
    return rc;
}

static void unload(struct loaded *l)
{
    weights_release(&l->weights);
    free(l->backend.memory);
}

static const float *row_of(const struct loaded *l, enum weight_id id, int64_t layer, int64_t row)
{
    const struct weight *w = weights_get(&l->weights, id, layer);
    assert_true(w->data && row < w->rows);
    return (const float *)w->data + row * w->cols;
}

/* ---- shards ---- */

static void rows_equal(const struct loaded *part, const struct loaded *whole, enum weight_id id, int64_t layer,
                       int64_t at, int64_t from, int64_t n)
{
    size_t bytes = (size_t)weights_get(&whole->weights, id, layer)->cols * sizeof(float);
    for (int64_t i = 0; i < n; i++) assert_memory_equal(row_of(part, id, layer, at + i),
                                                        row_of(whole, id, layer, from + i), bytes);
}

static void check_qkv(const struct loaded *part, const struct loaded *whole, int64_t layer)
{
    int64_t d = TINY_HEAD_DIM, q = range_len(part->shard.heads) * d, kv = range_len(part->shard.kv_heads) * d;
    int64_t whole_q = TINY_HEADS * d, whole_kv = TINY_KV_HEADS * d;
    const int64_t at[3] = { 0, q, q + kv }, n[3] = { q, kv, kv };
    const int64_t from[3] = { part->shard.heads.begin * d, whole_q + part->shard.kv_heads.begin * d,
                              whole_q + whole_kv + part->shard.kv_heads.begin * d };
    for (int i = 0; i < 3; i++) {
        rows_equal(part, whole, W_QKV, layer, at[i], from[i], n[i]);
        if (whole->config.arch != ARCH_QWEN2) continue;
        assert_memory_equal(row_of(part, W_QKV_BIAS, layer, 0) + at[i], row_of(whole, W_QKV_BIAS, layer, 0) + from[i],
                            (size_t)n[i] * sizeof(float));
    }
}

static void check_columns(const struct loaded *part, const struct loaded *whole, enum weight_id id, int64_t layer,
                          struct range cols)
{
    assert_int_equal(weights_get(&part->weights, id, layer)->cols, range_len(cols));
    for (int64_t row = 0; row < TINY_HIDDEN; row++) {
        assert_memory_equal(row_of(part, id, layer, row), row_of(whole, id, layer, row) + cols.begin,
                            (size_t)range_len(cols) * sizeof(float));
    }
}

static void shards_are_slices_of_the_whole(void **state)
{
    (void)state;
    for (int arch = 0; arch < TINY_ARCHS; arch++) {
        struct model_source *src = tiny_open(arch, false, "");
        struct loaded whole, part;
        assert_non_null(src);
        assert_int_equal(load(&whole, src, NULL, 1, 0, NULL), 0);
        for (int tp_size = 2; tp_size <= 6; tp_size++) {
            for (int tp_rank = 0; tp_rank < tp_size; tp_rank++) {
                assert_int_equal(load(&part, src, NULL, tp_size, tp_rank, NULL), 0);
                struct range vocab = part.shard.vocab, ffn = part.shard.ffn;
                rows_equal(&part, &whole, W_EMBED, 0, 0, vocab.begin, range_len(vocab));
                rows_equal(&part, &whole, W_HEAD, 0, 0, vocab.begin, range_len(vocab));
                for (int64_t layer = 0; layer < TINY_LAYERS; layer++) {
                    check_qkv(&part, &whole, layer);
                    rows_equal(&part, &whole, W_GATE_UP, layer, 0, ffn.begin, range_len(ffn));
                    rows_equal(&part, &whole, W_GATE_UP, layer, range_len(ffn), TINY_FFN + ffn.begin, range_len(ffn));
                    check_columns(&part, &whole, W_DOWN, layer, ffn);
                    check_columns(&part, &whole, W_O, layer, (struct range){ part.shard.heads.begin * TINY_HEAD_DIM,
                                                                             part.shard.heads.end * TINY_HEAD_DIM });
                }
                unload(&part);
            }
        }
        unload(&whole);
        model_source_close(src);
    }
}

static void optional_weights_follow_the_architecture(void **state)
{
    (void)state;
    for (int arch = 0; arch < TINY_ARCHS; arch++) {
        struct model_source *src = tiny_open(arch, true, "");
        struct loaded l;
        assert_non_null(src);
        assert_int_equal(load(&l, src, NULL, 1, 0, NULL), 0);
        assert_int_equal(weights_get(&l.weights, W_QKV_BIAS, 2)->data != NULL, arch == 1);
        assert_int_equal(weights_get(&l.weights, W_Q_NORM, 2)->data != NULL, arch == 2);
        assert_null(weights_get(&l.weights, W_HEAD, 0)->data);      /* tied */
        assert_float_equal(row_of(&l, W_FINAL_NORM, 0, 0)[5], 1, 0);
        unload(&l);
        model_source_close(src);
    }
}

static void dummy_rows_are_normal(void **state)
{
    float row[20000], again[20000];
    double sum = 0, squares = 0;
    (void)state;
    dummy_row(1, "some.weight", 17, 0, row, 20000);
    for (int i = 0; i < 20000; i++) {
        sum += row[i];
        squares += (double)row[i] * row[i];
    }
    assert_float_equal(sum / 20000, 0, 0.001);
    assert_float_equal(squares / 20000, 0.0004, 0.00002);
    dummy_row(1, "some.weight", 17, 5000, again, 100);
    assert_memory_equal(again, row + 5000, 100 * sizeof(float));
    dummy_row(2, "some.weight", 17, 0, again, 100);
    assert_memory_not_equal(again, row, 100 * sizeof(float));
    dummy_row(1, "some.other", 17, 0, again, 100);
    assert_memory_not_equal(again, row, 100 * sizeof(float));
    dummy_row(1, "some.weight", 18, 0, again, 100);
    assert_memory_not_equal(again, row, 100 * sizeof(float));
}

/* ---- files ---- */

struct file_tensor { const char *name; int64_t rows, cols; };       /* cols 0: a vector */

/* A one-layer Llama: hidden 8, 2 heads over 1 KV head of 4, ffn 12, vocab 10. Element i of tensor t is 1000 t + i. */
static const struct file_tensor one_layer[] = {
    { "model.embed_tokens.weight", 10, 8 },
    { "model.norm.weight", 8, 0 },
    { "model.layers.0.input_layernorm.weight", 8, 0 },
    { "model.layers.0.post_attention_layernorm.weight", 8, 0 },
    { "model.layers.0.self_attn.q_proj.weight", 8, 8 },
    { "model.layers.0.self_attn.k_proj.weight", 4, 8 },
    { "model.layers.0.self_attn.v_proj.weight", 4, 8 },
    { "model.layers.0.self_attn.o_proj.weight", 8, 8 },
    { "model.layers.0.mlp.gate_proj.weight", 12, 8 },
    { "model.layers.0.mlp.up_proj.weight", 12, 8 },
    { "model.layers.0.mlp.down_proj.weight", 8, 12 },
};
enum { ONE_LAYER = sizeof(one_layer) / sizeof(one_layer[0]) };

static void write_tensors(FILE *file, const struct file_tensor *tensors)
{
    char header[4096] = "{", padding[8] = "       ";
    size_t len = 1, at = 0;
    for (int t = 0; t < ONE_LAYER; t++) {
        size_t bytes = (size_t)(tensors[t].rows * (tensors[t].cols ? tensors[t].cols : 1)) * sizeof(float);
        char shape[64];
        if (tensors[t].cols) snprintf(shape, sizeof(shape), "%lld,%lld", (long long)tensors[t].rows,
                                      (long long)tensors[t].cols);
        else snprintf(shape, sizeof(shape), "%lld", (long long)tensors[t].rows);
        len += (size_t)snprintf(header + len, sizeof(header) - len,
                                "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                t ? "," : "", tensors[t].name, shape, at, at + bytes);
        at += bytes;
    }
    len += (size_t)snprintf(header + len, sizeof(header) - len, "}");
    uint64_t padded = (len + 7) / 8 * 8;
    fwrite(&padded, 8, 1, file);
    fwrite(header, 1, len, file);
    fwrite(padding, 1, padded - len, file);
    for (int t = 0; t < ONE_LAYER; t++) {
        int64_t n = tensors[t].rows * (tensors[t].cols ? tensors[t].cols : 1);
        for (int64_t i = 0; i < n; i++) fwrite(&(float){ (float)(1000 * t + i) }, sizeof(float), 1, file);
    }
}

/* *dir is removed by close_files. */
static struct model_source *open_files(char dir[32], const struct file_tensor *tensors)
{
    char path[64];
    struct model_source *src = NULL;
    struct err err = { 0 };
    snprintf(dir, 32, "/tmp/sluice-files-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,"
          "\"intermediate_size\":12,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
          "\"vocab_size\":10,\"max_position_embeddings\":64,\"tie_word_embeddings\":true}", file);
    fclose(file);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    file = fopen(path, "wb");
    assert_non_null(file);
    write_tensors(file, tensors);
    fclose(file);
    if (model_source_open(&src, dir, LOAD_AUTO, &err) < 0) fail_msg("%s", err.message);
    return src;
}

static void close_files(struct model_source *src, const char *dir)
{
    char path[64];
    model_source_close(src);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    unlink(path);
    rmdir(dir);
}

static void files_load_and_permuted_rows_return(void **state)
{
    char dir[32];
    struct model_source *src = open_files(dir, one_layer);
    struct loaded plain, permuted;
    (void)state;
    assert_int_equal(load(&plain, src, NULL, 1, 0, NULL), 0);
    assert_float_equal(row_of(&plain, W_EMBED, 0, 9)[7], 79, 0);
    assert_float_equal(row_of(&plain, W_QKV, 0, 8)[0], 5000, 0);            /* first row of k */
    assert_float_equal(row_of(&plain, W_QKV, 0, 15)[7], 6031, 0);           /* last of v */
    assert_float_equal(row_of(&plain, W_GATE_UP, 0, 12)[0], 9000, 0);       /* first of up */
    assert_float_equal(row_of(&plain, W_DOWN, 0, 7)[11], 10095, 0);

    struct model_config config = *model_source_config(src);
    config.rope_interleaved = true;
    assert_int_equal(load(&permuted, src, &config, 1, 0, NULL), 0);
    /* heads of 4: row i, i + 2 are 2i, 2i + 1 */
    static const int64_t file_row[4] = { 0, 2, 1, 3 };
    for (int64_t head = 0; head < 3; head++) {                              /* two of q, one of k */
        for (int64_t i = 0; i < 4; i++) {
            assert_memory_equal(row_of(&permuted, W_QKV, 0, head * 4 + i),
                                row_of(&plain, W_QKV, 0, head * 4 + file_row[i]), 32);
        }
    }
    rows_equal(&permuted, &plain, W_QKV, 0, 12, 12, 4);                     /* v stays */
    unload(&plain);
    unload(&permuted);
    close_files(src, dir);
}

static void refusal(int t, struct file_tensor instead, const char *part, const char *other)
{
    struct file_tensor tensors[ONE_LAYER];
    struct loaded l;
    struct err err = { 0 };
    char dir[32];
    memcpy(tensors, one_layer, sizeof(tensors));
    tensors[t] = instead;
    struct model_source *src = open_files(dir, tensors);
    assert_int_equal(load(&l, src, NULL, 1, 0, &err), ERR_MODEL_FILE);
    if (!strstr(err.message, part) || !strstr(err.message, other)) fail_msg("%s", err.message);
    unload(&l);
    close_files(src, dir);
}

static void bad_tensors_are_named(void **state)
{
    (void)state;
    refusal(7, (struct file_tensor){ "something.else", 8, 8 }, "model.layers.0.self_attn.o_proj.weight",
            "found nothing");
    refusal(6, (struct file_tensor){ one_layer[6].name, 8, 4 }, "v_proj.weight: expected [4, 8]", "found [8, 4]");
    refusal(1, (struct file_tensor){ one_layer[1].name, 9, 0 }, "model.norm.weight: expected [8]", "found [9]");
    refusal(2, (struct file_tensor){ one_layer[2].name, 1, 8 }, "input_layernorm.weight: expected [8]", "found [1, 8]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_are_slices_of_the_whole),
                 cmocka_unit_test(optional_weights_follow_the_architecture),
        cmocka_unit_test(dummy_rows_are_normal),               cmocka_unit_test(files_load_and_permuted_rows_return),
        cmocka_unit_test(bad_tensors_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
