/* arena.h - memory that lives and dies together.
 * A request, a step, a loaded file each have one: allocation is a bump, release frees all. There is no free of one piece.
 * Thread: one owner at a time; may be handed over with what it holds. */
#ifndef SLUICE_BASE_ARENA_H
#define SLUICE_BASE_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks;   /* newest first */
    size_t used_bytes;            /* handed out, for limits and metrics */
    size_t limit_bytes;           /* arena_alloc answers NULL beyond this; 0 = none */
};

void arena_init(struct arena *arena, size_t limit_bytes);
/* Zeroed, 16-byte aligned. NULL when memory or the limit is out. size 0 gives a valid pointer. */
void *arena_alloc(struct arena *arena, size_t size);
/* n * size with overflow check. */
void *arena_array(struct arena *arena, size_t n, size_t size);
/* Copies len bytes and adds a NUL. */
char *arena_strndup(struct arena *arena, const char *text, size_t len);
char *arena_printf(struct arena *arena, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void arena_release(struct arena *arena);   /* frees all; arena is as after init */

#endif
