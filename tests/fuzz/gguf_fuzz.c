/* gguf_fuzz.c - any bytes as a GGUF file: no crash; what is accepted lies inside the file and can be looked up. */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <sluice/loader.h>

#include "base/bug.h"
#include "loader/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look(const struct gguf_file *gguf)
{
    const char *text;
    size_t len, bytes = 0;
    int64_t i64;
    double f64;
    for (size_t v = 0; v < gguf->num_values; v++) {
        char key[65536];
        const struct gguf_value *value = &gguf->values[v];
        for (uint32_t i = 0; i < value->key_len; i++) key[i] = gguf->data[value->key + i];
        key[value->key_len] = '\0';
        BUG_ON(!gguf_has(gguf, key));
        if (gguf_get_str(gguf, key, &text, &len) == 0 && len)
            bytes += (unsigned char)text[0] + (unsigned char)text[len - 1];
        (void)gguf_get_i64(gguf, key, &i64);
        (void)gguf_get_f64(gguf, key, &f64);
        size_t n = gguf_array_len(gguf, key);
        for (size_t i = n > 20 ? n - 20 : 0; i < n; i++) {
            if (gguf_array_str(gguf, key, i, &text, &len) == 0 && len) bytes += (unsigned char)text[len - 1];
            (void)gguf_array_i64(gguf, key, i, &i64);
            (void)gguf_array_f64(gguf, key, i, &f64);
        }
        BUG_ON(gguf_array_str(gguf, key, n, &text, &len) == 0);
    }
    BUG_ON(bytes == SIZE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tensor_index index;
    struct gguf_file *gguf;
    struct model_config config;
    struct err err = { 0 };
    int fd = memfd_create("gguf", MFD_CLOEXEC);
    BUG_ON(fd < 0 || write(fd, data, size) != (ssize_t)size);
    BUG_ON(tensor_index_init(&index) < 0);
    if (gguf_open(&gguf, &index, fd, size, "fuzz", &err) == 0) {
        for (size_t i = 0; i < index.count; i++) {
            BUG_ON(index.infos[i].offset > size || index.infos[i].bytes > size - index.infos[i].offset);
            BUG_ON(tensor_index_find(&index, index.infos[i].name) != &index.infos[i]);
        }
        look(gguf);
        if (gguf_model_config(gguf, &index, "fuzz", &config, &err) == 0) {
            BUG_ON(config.vocab_size <= 0 || config.hidden_size <= 0 || config.head_dim <= 0 ||
                   config.num_key_value_heads <= 0);
        } else {
            BUG_ON(!err.message[0]);
        }
        gguf_close(gguf);
    } else {
        BUG_ON(gguf || !err.message[0]);
    }
    tensor_index_release(&index);
    close(fd);
    return 0;
}
