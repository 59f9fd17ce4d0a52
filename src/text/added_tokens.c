#include "added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/err.h>

#include "base/utf8.h"
#include "normalize.h"

void added_set_init(struct added_set *set)
{
    *set = (struct added_set){ 0 };
    for (int i = 0; i < 256; i++) set->root[i] = -1;
}

static int32_t new_node(struct added_set *set, unsigned char byte)
{
    if (set->n_nodes == set->node_cap) {
        size_t cap = set->node_cap ? set->node_cap * 2 : 256;
        struct added_node *bigger = cap < INT32_MAX ? realloc(set->nodes, cap * sizeof *bigger) : NULL;
        if (!bigger) return -1;
        set->nodes = bigger;
        set->node_cap = cap;
    }
    set->nodes[set->n_nodes] = (struct added_node){ .child = -1, .sibling = -1, .token = -1, .byte = byte };
    return (int32_t)set->n_nodes++;
}

static int32_t find_child(const struct added_set *set, int32_t node, unsigned char byte)
{
    int32_t child = set->nodes[node].child;

    while (child >= 0 && set->nodes[child].byte != byte) child = set->nodes[child].sibling;
    return child;
}

static int32_t walk_or_grow(struct added_set *set, const char *key, size_t len)
{
    unsigned char first = (unsigned char)key[0];
    int32_t node = set->root[first];

    if (node < 0) node = set->root[first] = new_node(set, first);
    for (size_t i = 1; node >= 0 && i < len; i++) {
        int32_t child = find_child(set, node, (unsigned char)key[i]);
        if (child < 0) {
            child = new_node(set, (unsigned char)key[i]);
            if (child < 0) return -1;
            set->nodes[child].sibling = set->nodes[node].child;
            set->nodes[node].child = child;
        }
        node = child;
    }
    return node;
}

int added_set_add(struct added_set *set, const struct added_token *token, const char *key, size_t key_len)
{
    if (!key_len) return 0;
    if (set->n_tokens == set->token_cap) {
        size_t cap = set->token_cap ? set->token_cap * 2 : 64;
        struct added_token *bigger = cap < INT32_MAX ? realloc(set->tokens, cap * sizeof *bigger) : NULL;
        if (!bigger) return ERR_NO_MEMORY;
        set->tokens = bigger;
        set->token_cap = cap;
    }
    int32_t node = walk_or_grow(set, key, key_len);
    if (node < 0) return ERR_NO_MEMORY;
    if (set->nodes[node].token < 0) set->nodes[node].token = (int32_t)set->n_tokens;
    set->tokens[set->n_tokens++] = *token;
    set->any = true;
    return 0;
}

void added_set_release(struct added_set *set)
{
    free(set->tokens);
    free(set->nodes);
    added_set_init(set);
}

/* ---- search ---- */
enum region { REGION_CLIENT, REGION_TEMPLATE, REGION_MIXED };

static enum region region_of(const struct origin_map *origin, size_t start, size_t end)
{
    size_t low = 0, high = origin->n_runs;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (origin->runs[mid].end <= start) low = mid + 1; else high = mid;
    }
    if (low == origin->n_runs) return REGION_CLIENT;
    bool parse = origin->runs[low].parse_special;
    for (; low < origin->n_runs && origin->runs[low].end < end; low++)
        if (low + 1 < origin->n_runs && origin->runs[low + 1].parse_special != parse) return REGION_MIXED;
    return parse ? REGION_TEMPLATE : REGION_CLIENT;
}

bool origin_is_template(const struct origin_map *origin, size_t start, size_t end)
{
    return region_of(origin, start, end) == REGION_TEMPLATE;
}

struct hit { const struct added_token *token; size_t end; };

/* Longest acceptable token at `at`; *skip gets the end of the longest one that only the firewall refused as a whole. */
static struct hit longest_at(const struct added_set *set, const char *text, size_t len, size_t at,
                             const struct origin_map *origin, size_t base, size_t *skip)
{
    struct hit best = { 0 };
    int32_t node = set->root[(unsigned char)text[at]];
    size_t end = at + 1;

    for (;;) {
        if (set->nodes[node].token >= 0) {
            const struct added_token *token = &set->tokens[set->nodes[node].token];
            enum region region = token->special ? region_of(origin, base + at, base + end) : REGION_TEMPLATE;
            if (region == REGION_TEMPLATE) best = (struct hit){ token, end };
            *skip = region == REGION_CLIENT ? end : 0;
        }
        if (end >= len) return best;
        node = find_child(set, node, (unsigned char)text[end]);
        if (node < 0) return best;
        end++;
    }
}

static size_t last_char(const char *text, size_t end)
{
    size_t start = end - 1;

    while (start && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
    return start;
}

static bool is_single_word(const char *text, size_t len, size_t start, size_t end)
{
    uint32_t cp;

    if (start) {
        size_t before = last_char(text, start);
        if (utf8_decode(text + before, start - before, &cp) > 0 && text_is_word(cp)) return false;
    }
    return !(utf8_decode(text + end, len - end, &cp) > 0 && text_is_word(cp));
}

static size_t skip_spaces_left(const char *text, size_t start, size_t floor)
{
    while (start > floor) {
        size_t before = last_char(text, start);
        uint32_t cp;
        if (before < floor || utf8_decode(text + before, start - before, &cp) <= 0 || !text_is_space(cp)) break;
        start = before;
    }
    return start;
}

static size_t skip_spaces_right(const char *text, size_t len, size_t end)
{
    uint32_t cp;
    int step;

    while ((step = utf8_decode(text + end, len - end, &cp)) > 0 && text_is_space(cp)) end += (size_t)step;
    return end;
}

bool added_find(const struct added_set *set, const char *text, size_t len, size_t from, size_t floor,
                const struct origin_map *origin, size_t base, struct added_match *match, size_t *resume)
{
    size_t at = from;

    while (at < len) {
        if (set->root[(unsigned char)text[at]] < 0) {
            at++;
            continue;
        }
        size_t skip = 0;
        struct hit hit = longest_at(set, text, len, at, origin, base, &skip);
        if (skip) hit.token = NULL;          /* client text that looks special: the whole of it stays text */
        if (!hit.token || at < floor) {
            at = skip ? skip : at + 1;
            continue;
        }
        if (hit.token->single_word && !is_single_word(text, len, at, hit.end)) {
            at = hit.end;
            continue;
        }
        match->token = hit.token;
        match->start = hit.token->lstrip ? skip_spaces_left(text, at, floor) : at;
        match->end = hit.token->rstrip ? skip_spaces_right(text, len, hit.end) : hit.end;
        *resume = hit.end;
        return true;
    }
    return false;
}
