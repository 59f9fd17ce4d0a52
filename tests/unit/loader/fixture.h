/* fixture.h - tiny models for the loader's tests: files in a fresh directory, a GGUF writer, a safetensors writer. */
#ifndef SLUICE_TESTS_LOADER_FIXTURE_H
#define SLUICE_TESTS_LOADER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sluice/loader.h>

#include "base/buf.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- directories ---- */
static inline char *temp_dir(char path[64])
{
    snprintf(path, 64, "/tmp/sluice-loader-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void remove_dir(const char *path)
{
    assert_int_equal(nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static inline void write_file(const char *dir, const char *name, const void *data, size_t len)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static inline void write_text(const char *dir, const char *name, const char *text)
{
    write_file(dir, name, text, strlen(text));
}

/* A descriptor of these bytes, nowhere in the file system. */
static inline int memory_file(const void *data, size_t len)
{
    int fd = memfd_create("loader-test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), (ssize_t)len);
    return fd;
}

/* ---- GGUF ---- */
static inline void put_u32(struct buf *b, uint32_t v) { buf_append(b, &v, 4); }
static inline void put_u64(struct buf *b, uint64_t v) { buf_append(b, &v, 8); }

static inline void put_text(struct buf *b, const char *text)
{
    put_u64(b, strlen(text));
    buf_puts(b, text);
}

static inline void put_key(struct buf *b, const char *key, enum gguf_type type)
{
    put_text(b, key);
    put_u32(b, type);
}

static inline void put_key_u32(struct buf *b, const char *key, uint32_t v)
{
    put_key(b, key, GGUF_U32);
    put_u32(b, v);
}

static inline void put_key_f32(struct buf *b, const char *key, float v)
{
    put_key(b, key, GGUF_F32);
    buf_append(b, &v, 4);
}

static inline void put_key_text(struct buf *b, const char *key, const char *text)
{
    put_key(b, key, GGUF_STRING);
    put_text(b, text);
}

static inline void put_tensor(struct buf *b, const char *name, int ndim, uint64_t d0, uint64_t d1, uint32_t type,
                              uint64_t offset)
{
    put_text(b, name);
    put_u32(b, (uint32_t)ndim);
    put_u64(b, d0);
    for (int i = 1; i < ndim; i++) put_u64(b, i == 1 ? d1 : 1);
    put_u32(b, type);
    put_u64(b, offset);
}

static inline void put_preamble(struct buf *b, uint64_t num_tensors, uint64_t num_keys)
{
    buf_append(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, num_tensors);
    put_u64(b, num_keys);
}

/* The metadata of a llama of hidden size 32, 2 heads, 1 KV head, 1 layer. */
enum { TINY_KEYS = 13 };
static inline void put_tiny_keys(struct buf *b)
{
    put_key_text(b, "general.architecture", "llama");
    put_key_u32(b, "llama.block_count", 1);
    put_key_u32(b, "llama.context_length", 128);
    put_key_u32(b, "llama.embedding_length", 32);
    put_key_u32(b, "llama.feed_forward_length", 64);
    put_key_u32(b, "llama.attention.head_count", 2);
    put_key_u32(b, "llama.attention.head_count_kv", 1);
    put_key_f32(b, "llama.rope.freq_base", 50000.0f);
    put_key_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    put_key_u32(b, "tokenizer.ggml.bos_token_id", 1);
    put_key_u32(b, "tokenizer.ggml.eos_token_id", 2);
    put_key(b, "tokenizer.ggml.tokens", GGUF_ARRAY);
    put_u32(b, GGUF_STRING);
    put_u64(b, 3);
    put_text(b, "<unk>");
    put_text(b, "");
    put_text(b, "abc");
    put_key_text(b, "tokenizer.chat_template", "{{ messages }}");
}

static inline void put_padding(struct buf *b, size_t alignment)
{
    while (b->len % alignment != 0) buf_putc(b, 0);
}

/* A whole file: embedding Q8_0 [8, 32] (272 bytes, then padding), norm F32 [32]. */
static inline struct buf tiny_gguf(void)
{
    struct buf b = BUF_INIT;
    put_preamble(&b, 2, TINY_KEYS);
    put_tiny_keys(&b);
    put_tensor(&b, "token_embd.weight", 2, 32, 8, 8, 0);
    put_tensor(&b, "output_norm.weight", 1, 32, 0, 0, 288);
    put_padding(&b, 32);
    for (int i = 0; i < 288 + 128; i++) buf_putc(&b, (char)i);
    assert_false(b.failed);
    return b;
}

/* ---- safetensors ---- */
static inline struct buf safetensors_file(const char *header, size_t data_bytes)
{
    struct buf b = BUF_INIT;
    put_u64(&b, strlen(header));
    buf_puts(&b, header);
    for (size_t i = 0; i < data_bytes; i++) buf_putc(&b, (char)i);
    assert_false(b.failed);
    return b;
}

#endif
