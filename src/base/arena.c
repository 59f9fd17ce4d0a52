#include "base/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 16 << 10, ALIGN = 16 };

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, cap;
    _Alignas(16) char data[];
};

void arena_init(struct arena *arena, size_t limit_bytes) { *arena = (struct arena){ .limit_bytes = limit_bytes }; }

static struct arena_chunk *chunk_add(struct arena *arena, size_t size)
{
    /* Chunks double with use, so that a large request costs few mallocs and a small one little memory. */
    size_t want = arena->used_bytes > CHUNK_BYTES ? arena->used_bytes : CHUNK_BYTES;
    if (want > (4u << 20)) want = 4u << 20;
    size_t cap = size > want ? size : want;
    if (cap > SIZE_MAX - sizeof(struct arena_chunk)) return NULL;
    struct arena_chunk *chunk = malloc(sizeof *chunk + cap);
    if (!chunk) return NULL;
    chunk->used = 0;
    chunk->cap = cap;
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    return chunk;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    if (size > SIZE_MAX - ALIGN) return NULL;
    size = size ? (size + ALIGN - 1) & ~(size_t)(ALIGN - 1) : ALIGN;
    if (arena->limit_bytes && (size > arena->limit_bytes || arena->used_bytes > arena->limit_bytes - size)) return NULL;
    struct arena_chunk *chunk = arena->chunks;
    if (!chunk || chunk->cap - chunk->used < size) chunk = chunk_add(arena, size);
    if (!chunk) return NULL;
    void *piece = chunk->data + chunk->used;
    chunk->used += size;
    arena->used_bytes += size;
    return memset(piece, 0, size);
}

void *arena_array(struct arena *arena, size_t n, size_t size)
{
    size_t bytes;

    return __builtin_mul_overflow(n, size, &bytes) ? NULL : arena_alloc(arena, bytes);
}

char *arena_strndup(struct arena *arena, const char *text, size_t len)
{
    char *copy = len < SIZE_MAX ? arena_alloc(arena, len + 1) : NULL;

    if (copy && len) memcpy(copy, text, len);
    return copy;
}

char *arena_printf(struct arena *arena, const char *fmt, ...)
{
    va_list args, again;

    va_start(args, fmt);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, fmt, args);
    char *text = len >= 0 ? arena_alloc(arena, (size_t)len + 1) : NULL;
    if (text) vsnprintf(text, (size_t)len + 1, fmt, again);
    va_end(again);
    va_end(args);
    return text;
}

void arena_release(struct arena *arena)
{
    for (struct arena_chunk *chunk = arena->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    arena_init(arena, arena->limit_bytes);
}
