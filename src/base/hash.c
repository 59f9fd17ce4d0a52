#include "base/hash.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <sluice/err.h>

/* Multiply-and-fold over 8-byte words (the wyhash idea): two words per 128-bit product. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The seed is in both factors: no chosen word can make a product zero. */
static uint64_t rotate(uint64_t h) { return h << 29 | h >> 35; }

static uint64_t load_upto8(const unsigned char *p, size_t n)
{
    uint64_t word = 0;

    memcpy(&word, p, n);
    return word;
}

uint64_t hash_bytes(const void *data, size_t len, uint64_t seed)
{
    const uint64_t k0 = 0x9e3779b97f4a7c15u, k1 = 0xd6e8feb86659fd93u;
    const unsigned char *p = data;
    uint64_t h = seed ^ fold(len ^ k0, k1);

    for (; len > 16; p += 16, len -= 16) h = fold(load_upto8(p, 8) ^ k0 ^ h, load_upto8(p + 8, 8) ^ k1 ^ rotate(h));
    uint64_t a = load_upto8(p, len < 8 ? len : 8);
    uint64_t b = len > 8 ? load_upto8(p + 8, len - 8) : 0;
    h = fold(a ^ k0 ^ h, b ^ k1 ^ rotate(h));
    return fold(h ^ k1, k0);
}

uint64_t hash_process_seed(void)
{
    static uint64_t seed;
    uint64_t now = __atomic_load_n(&seed, __ATOMIC_RELAXED);

    if (now) return now;
    uint64_t fresh = 0, expected = 0;
    if (getrandom(&fresh, sizeof fresh, 0) != sizeof fresh || !fresh) fresh = 0x5bd1e9955bd1e995u;
    /* the first thread wins, all see its value */
    return __atomic_compare_exchange_n(&seed, &expected, fresh, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ? fresh : expected;
}

static struct str_map_slot *slot_of(const struct str_map *map, const char *key, size_t len, uint64_t hash)
{
    for (size_t i = hash & (map->cap - 1);; i = (i + 1) & (map->cap - 1)) {
        struct str_map_slot *slot = &map->slots[i];
        if (!slot->key) return slot;
        if (slot->hash == hash && slot->len == len && !memcmp(slot->key, key, len)) return slot;
    }
}

int str_map_init(struct str_map *map, size_t expected)
{
    size_t cap = 16;

    while (cap < expected * 2 && cap < SIZE_MAX / 64) cap *= 2;
    *map = (struct str_map){ .cap = cap, .seed = hash_process_seed() };
    map->slots = calloc(cap, sizeof *map->slots);
    return map->slots ? 0 : ERR_NO_MEMORY;
}

static int grow(struct str_map *map)
{
    struct str_map bigger = { .cap = map->cap * 2, .count = map->count, .seed = map->seed };

    bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
    if (!bigger.slots) return ERR_NO_MEMORY;
    for (size_t i = 0; i < map->cap; i++) {
        const struct str_map_slot *slot = &map->slots[i];
        if (slot->key) *slot_of(&bigger, slot->key, slot->len, slot->hash) = *slot;
    }
    free(map->slots);
    *map = bigger;
    return 0;
}

int str_map_put(struct str_map *map, const char *key, size_t len, int32_t value, int32_t *existing)
{
    uint64_t hash = hash_bytes(key, len, map->seed);
    struct str_map_slot *slot = slot_of(map, key, len, hash);

    if (existing) *existing = slot->key ? slot->value : -1;
    if (slot->key) return 0;
    if (len > UINT32_MAX) return ERR_NO_MEMORY;
    if ((map->count + 1) * 4 > map->cap * 3) {
        if (grow(map) < 0) return ERR_NO_MEMORY;
        slot = slot_of(map, key, len, hash);
    }
    *slot = (struct str_map_slot){ .key = key, .len = (uint32_t)len, .value = value, .hash = hash };
    map->count++;
    return 0;
}

int32_t str_map_get(const struct str_map *map, const char *key, size_t len)
{
    const struct str_map_slot *slot = slot_of(map, key, len, hash_bytes(key, len, map->seed));

    return slot->key ? slot->value : -1;
}

void str_map_release(struct str_map *map)
{
    free(map->slots);
    *map = (struct str_map){ 0 };
}
