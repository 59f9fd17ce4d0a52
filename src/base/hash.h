/* hash.h - 64-bit hash of bytes and a map from byte strings to int32 (vocabularies, option names).
 * The hash is keyed with a per-process random seed where keys come from outside, so that nobody can aim collisions. */
#ifndef SLUICE_BASE_HASH_H
#define SLUICE_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t len, uint64_t seed);
uint64_t hash_process_seed(void);    /* random, fixed for the life of the process; any thread */

/* Keys are borrowed: they must outlive the map. */
struct str_map {
    struct str_map_slot *slots;
    size_t cap;      /* power of two */
    size_t count;
    uint64_t seed;
};
struct str_map_slot { const char *key; uint32_t len; int32_t value; uint64_t hash; };

int  str_map_init(struct str_map *map, size_t expected);                       /* 0 or ERR_NO_MEMORY */
/* 0, or ERR_NO_MEMORY. An existing key keeps its first value and *existing (may be NULL) gets it; else *existing = -1. */
int  str_map_put(struct str_map *map, const char *key, size_t len, int32_t value, int32_t *existing);
int32_t str_map_get(const struct str_map *map, const char *key, size_t len);   /* value >= 0, or -1 */
void str_map_release(struct str_map *map);

#endif
