/* source_test.c - a path becomes a model: containers, shards, links, templates, reads. */
#include "fixture.h"

static const char config_json[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"vocab_size\":8,\"max_position_embeddings\":64,\"eos_token_id\":2}";
static const char header_a[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                               "\"ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[4,12]}}";
static const char header_b[] = "{\"b\":{\"dtype\":\"U8\",\"shape\":[6],\"data_offsets\":[0,6]}}";

static void write_safetensors(const char *dir, const char *name, const char *header, size_t data_bytes)
{
    struct buf b = safetensors_file(header, data_bytes);
    write_file(dir, name, b.data, b.len);
    buf_release(&b);
}

static int setup(void **state)
{
    static char path[64];
    *state = temp_dir(path);
    return 0;
}

static int teardown(void **state)
{
    remove_dir(*state);
    return 0;
}

static struct model_source *open_ok(const char *path, enum load_format format)
{
    struct model_source *src;
    struct err err = { 0 };
    if (model_source_open(&src, path, format, &err) != 0) fail_msg("%s", err.message);
    return src;
}

static void refuses(const char *path, enum load_format format, const char *message)
{
    struct model_source *src;
    struct err err = { 0 };
    int rc = model_source_open(&src, path, format, &err);
    assert_null(src);
    assert_string_equal(err.message, message);
    assert_int_equal(rc, ERR_MODEL_FILE);
}

static void one_safetensors_file(void **state)
{
    const char *dir = *state;
    unsigned char bytes[4];
    struct err err = { 0 };
    write_text(dir, "config.json", config_json);
    write_text(dir, "generation_config.json", "{\"temperature\":0.25,\"eos_token_id\":3}");
    write_safetensors(dir, "model.safetensors", header_a, 12);

    struct model_source *src = open_ok(dir, LOAD_AUTO);
    assert_int_equal(model_source_format(src), LOAD_SAFETENSORS);
    assert_null(model_source_gguf(src));
    assert_true(model_source_dir_fd(src) >= 0);
    assert_int_equal(model_source_num_tensors(src), 2);
    assert_int_equal(model_source_bytes(src), 12);
    assert_int_equal(model_source_config(src)->num_eos_token_ids, 2);
    assert_true(model_source_config(src)->gen_temperature == 0.25f);
    const struct tensor_info *a = model_source_find(src, "a");
    assert_int_equal(model_source_read(src, a, 1, bytes, 3, &err), 0);
    assert_memory_equal(bytes, "\1\2\3", 3);
    assert_null(model_source_find(src, "c"));
    assert_int_equal(model_source_read(src, model_source_find(src, "ids"), 0, bytes, 4, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message,
                        "model.safetensors: tensor \"ids\": expected F32, F16 or BF16, found one of type I64");
    model_source_close(src);
}

static void shards_by_index(void **state)
{
    const char *dir = *state;
    unsigned char bytes[6];
    uint8_t before[32], after[32];
    write_text(dir, "config.json", config_json);
    write_safetensors(dir, "m-1.safetensors", header_a, 12);
    write_safetensors(dir, "m-2.safetensors", header_b, 6);
    write_text(dir, "model.safetensors.index.json",
               "{\"metadata\":{},\"weight_map\":{\"b\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\",\"ids\":\"m-1."
               "safetensors\"}}");
    struct model_source *src = open_ok(dir, LOAD_AUTO);
    const struct tensor_info *b = model_source_find(src, "b");
    assert_int_equal(model_source_read(src, b, 0, bytes, 6, NULL), 0);
    assert_memory_equal(bytes, "\0\1\2\3\4\5", 6);
    assert_int_not_equal(b->file, model_source_find(src, "a")->file);
    model_source_digest(src, before);
    model_source_close(src);

    src = open_ok(dir, LOAD_SAFETENSORS);
    model_source_digest(src, after);
    assert_memory_equal(before, after, 32);
    model_source_close(src);
    write_safetensors(dir, "m-2.safetensors", "{\"b\":{\"dtype\":\"U8\",\"shape\":[2,3],\"data_offsets\":[0,6]}}", 6);
    src = open_ok(dir, LOAD_SAFETENSORS);
    model_source_digest(src, after);
    assert_memory_not_equal(before, after, 32);
    model_source_close(src);

    static const struct { const char *index, *message; } rows[] = {
        { "{\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}}",
          "model.safetensors.index.json: tensor \"a\": expected in m-2.safetensors, found m-1.safetensors" },
        { "{\"weight_map\":{\"x\":\"m-2.safetensors\"}}",
          "model.safetensors.index.json: tensor \"x\": expected in m-2.safetensors, found nowhere" },
        { "{\"weight_map\":{\"x\":\"m-3.safetensors\"}}", "m-3.safetensors: expected this file, found none" },
        { "{\"weight_map\":{\"x\":\"../m-2.safetensors\"}}",
          "model.safetensors.index.json: weight_map: expected names of .safetensors files in this directory" },
        { "{\"weight_map\":{\"x\":7}}",
          "model.safetensors.index.json: weight_map: expected names of .safetensors files in this directory" },
        { "{}", "model.safetensors.index.json: weight_map: expected an object" },
        { "{", "model.safetensors.index.json: expected a key in quotes at byte 1" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        write_text(dir, "model.safetensors.index.json", rows[i].index);
        refuses(dir, LOAD_AUTO, rows[i].message);
    }
    write_safetensors(dir, "m-2.safetensors", header_a, 12);
    write_text(dir, "model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\"}}");
    refuses(dir, LOAD_AUTO, "m-2.safetensors: tensor \"a\": found twice");
}

static void gguf_alone_and_in_a_directory(void **state)
{
    const char *dir = *state;
    char path[128], *text;
    size_t len;
    struct buf b = tiny_gguf();
    write_file(dir, "tiny.gguf", b.data, b.len);
    snprintf(path, sizeof path, "%s/tiny.gguf", dir);
    for (int i = 0; i < 2; i++) {
        struct model_source *src = open_ok(i ? dir : path, LOAD_AUTO);
        assert_int_equal(model_source_format(src), LOAD_GGUF);
        assert_int_equal(model_source_dir_fd(src), -1);
        assert_non_null(model_source_gguf(src));
        assert_int_equal(model_source_bytes(src), 272 + 128);
        unsigned char bytes[8];
        assert_int_equal(model_source_read(src, model_source_find(src, "output_norm.weight"), 120, bytes, 8, NULL), 0);
        assert_memory_equal(bytes, b.data + b.len - 8, 8);
        assert_int_equal(model_source_chat_template(src, &text, &len, NULL), 0);
        assert_string_equal(text, "{{ messages }}");
        assert_int_equal(len, 14);
        free(text);
        model_source_close(src);
    }
    struct model_source *src = open_ok(path, LOAD_DUMMY);
    assert_int_equal(model_source_format(src), LOAD_DUMMY);
    assert_null(model_source_find(src, "output_norm.weight"));
    assert_non_null(model_source_gguf(src));
    assert_int_equal(model_source_config(src)->vocab_size, 8);
    model_source_close(src);

    write_file(dir, "other.gguf", b.data, b.len);
    refuses(dir, LOAD_AUTO, "model directory: expected exactly one .gguf file, found 2");
    write_file(dir, "cut.gguf", b.data, b.len - 1);
    snprintf(path, sizeof path, "%s/cut.gguf", dir);
    char message[200];
    snprintf(message, sizeof message,
             "cut.gguf: tensor \"output_norm.weight\": expected to end by byte %zu, found 128 bytes at %zu", b.len - 1,
             b.len - 128);
    refuses(path, LOAD_AUTO, message);
    buf_release(&b);
}

static void dummy_needs_only_the_config(void **state)
{
    const char *dir = *state;
    write_text(dir, "config.json", config_json);
    refuses(dir, LOAD_AUTO,
            "expected model.safetensors or model.safetensors.index.json beside config.json, found neither "
            "(load_format dummy makes random weights)");
    struct model_source *src = open_ok(dir, LOAD_DUMMY);
    assert_int_equal(model_source_format(src), LOAD_DUMMY);
    assert_int_equal(model_source_num_tensors(src), 0);
    assert_null(model_source_find(src, "a"));
    assert_int_equal(model_source_config(src)->hidden_size, 32);
    model_source_close(src);
}

static void what_is_not_a_model(void **state)
{
    const char *dir = *state;
    char path[128], message[200];
    refuses(dir, LOAD_AUTO, "config.json: expected this file, found none");
    refuses(dir, LOAD_GGUF, "model directory: expected exactly one .gguf file, found 0");
    snprintf(path, sizeof path, "%s/none", dir);
    snprintf(message, sizeof message, "model %s: open: No such file or directory", path);
    refuses(path, LOAD_AUTO, message);
    snprintf(path, sizeof path, "%s/text.gguf", dir);
    write_text(dir, "text.gguf", "not a model");
    refuses(path, LOAD_AUTO, "text.gguf: expected a GGUF file, found other bytes");
    snprintf(path, sizeof path, "%s/pipe.gguf", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    refuses(path, LOAD_AUTO, "pipe.gguf: expected a regular file");
    refuses("/dev/zero", LOAD_AUTO, "zero: expected a regular file");
    write_text(dir, "config.json", config_json);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    refuses(dir, LOAD_AUTO, "model.safetensors: expected a regular file");
}

static void make_link(const char *target, const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(symlink(target, path), 0);
}

static void links_stay_inside_the_directory(void **state)
{
    const char *dir = *state;
    char inner[128];
    snprintf(inner, sizeof inner, "%s/model", dir);
    assert_int_equal(mkdir(inner, 0700), 0);
    write_text(dir, "secret.json", config_json);
    write_text(inner, "real.json", config_json);

    make_link("../secret.json", inner, "config.json");
    refuses(inner, LOAD_DUMMY, "config.json: symbolic link leaves the model's directory");
    snprintf(inner, sizeof inner, "%s/model/config.json", dir);
    assert_int_equal(unlink(inner), 0);
    snprintf(inner, sizeof inner, "%s/model", dir);
    make_link("/etc/passwd", inner, "config.json");
    refuses(inner, LOAD_DUMMY, "config.json: symbolic link leaves the model's directory");
    snprintf(inner, sizeof inner, "%s/model/config.json", dir);
    assert_int_equal(unlink(inner), 0);
    snprintf(inner, sizeof inner, "%s/model", dir);
    make_link("real.json", inner, "config.json");
    model_source_close(open_ok(inner, LOAD_DUMMY));
}

static void snapshots_of_the_hub_cache_may_link_to_blobs(void **state)
{
    const char *dir = *state;
    static const char *const parts[] = { "models--org--name", "models--org--name/blobs", "models--org--name/snapshots",
                                         "models--org--name/snapshots/abc", "other", "other/blobs", "other/snapshots",
                                         "other/snapshots/abc" };
    char path[256], blobs[256];
    for (size_t i = 0; i < COUNT(parts); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, parts[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    write_text(dir, "outside.json", config_json);
    for (int cache = 0; cache < 2; cache++) {
        const char *root = cache ? "models--org--name" : "other";
        snprintf(blobs, sizeof blobs, "%s/%s/blobs", dir, root);
        write_text(blobs, "0123", config_json);
        snprintf(path, sizeof path, "%s/%s/snapshots/abc", dir, root);
        make_link("../../blobs/0123", path, "config.json");
        if (cache) model_source_close(open_ok(path, LOAD_DUMMY));
        else refuses(path, LOAD_DUMMY, "config.json: symbolic link leaves the model's directory");
    }
    make_link("../../../outside.json", path, "generation_config.json");
    refuses(path, LOAD_DUMMY, "generation_config.json: symbolic link leaves the model's directory");
}

static void chat_templates_of_a_directory(void **state)
{
    const char *dir = *state;
    static const struct { const char *tokenizer_config, *expected;
    } rows[] = {
        {"{\"chat_template\":\"one\"}", "one"},
        {"{\"chat_template\":[{\"name\":\"rag\",\"template\":\"no\"},{\"name\":\"default\",\"template\":\"two\"}]}",
         "two"},
        {"{\"chat_template\":null}", NULL},
        {"{\"chat_template\":[]}", NULL},
        {"{}", NULL},
    };
    char *text;
    size_t len;
    struct err err = { 0 };
    write_text(dir, "config.json", config_json);
    struct model_source *src = open_ok(dir, LOAD_DUMMY);
    assert_int_equal(model_source_chat_template(src, &text, &len, NULL), 0);
    assert_null(text);
    for (size_t i = 0; i < COUNT(rows); i++) {
        write_text(dir, "tokenizer_config.json", rows[i].tokenizer_config);
        assert_int_equal(model_source_chat_template(src, &text, &len, NULL), 0);
        if (rows[i].expected) assert_string_equal(text, rows[i].expected);
        else assert_null(text);
        free(text);
    }
    write_text(dir, "tokenizer_config.json", "{\"chat_template\":7}");
    assert_int_equal(model_source_chat_template(src, &text, &len, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message,
                        "tokenizer_config.json: chat_template: expected a string, found a value of type integer");
    write_text(dir, "chat_template.jinja", "three");
    assert_int_equal(model_source_chat_template(src, &text, &len, NULL), 0);
    assert_string_equal(text, "three");
    assert_int_equal(len, 5);
    free(text);
    model_source_close(src);
}

static void small_files_are_bounded(void **state)
{
    const char *dir = *state;
    char *data;
    size_t len;
    struct err err = { 0 };
    int fd = open(dir, O_RDONLY | O_DIRECTORY);
    write_text(dir, "f", "12345");
    assert_int_equal(model_read_file(fd, "f", 5, &data, &len, &err), 0);
    assert_int_equal(len, 5);
    assert_string_equal(data, "12345");
    free(data);
    assert_int_equal(model_read_file(fd, "f", 4, &data, &len, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, "f: expected at most 4 bytes, found 5");
    assert_null(data);
    assert_int_equal(model_read_file(fd, "none", 4, &data, &len, NULL), ERR_NOT_FOUND);
    err_clear(&err);
    assert_int_equal(model_read_file(fd, "../f", 4, &data, &len, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, "../f: expected a file name without a path");
    close(fd);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(one_safetensors_file),
        CASE(shards_by_index),
        CASE(gguf_alone_and_in_a_directory),
        CASE(dummy_needs_only_the_config),
        CASE(what_is_not_a_model),
        CASE(links_stay_inside_the_directory),
        CASE(snapshots_of_the_hub_cache_may_link_to_blobs),
        CASE(chat_templates_of_a_directory),
        CASE(small_files_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
