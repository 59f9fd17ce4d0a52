/* Aho-Corasick over at most 16 strings. A node has at most 16 children, so children are lists and the automaton of the
 * longest allowed set stays under 0.5 MiB (a dense table would be 16 MiB per request). Following failure links costs
 * O(1) per byte amortised: each link shortens the match, each byte lengthens it by one. */
#include <stdlib.h>
#include <string.h>

#include <sluice/text.h>

struct stop_node {
    int32_t child, sibling;     /* -1 none */
    int32_t fail, depth;
    int32_t match;              /* longest string that ends here: its index, -1 none */
    unsigned char byte;
};

struct stop_set {
    int32_t n_nodes;
    int32_t lens[STOP_MAX_STRINGS];
    struct stop_node nodes[];
};

static int32_t child_of(const struct stop_set *set, int32_t node, unsigned char byte)
{
    int32_t child = set->nodes[node].child;

    while (child >= 0 && set->nodes[child].byte != byte) child = set->nodes[child].sibling;
    return child;
}

static int32_t step(const struct stop_set *set, int32_t node, unsigned char byte)
{
    int32_t child;

    while ((child = child_of(set, node, byte)) < 0 && node) node = set->nodes[node].fail;
    return child < 0 ? 0 : child;
}

static void add_string(struct stop_set *set, const char *text, size_t len, int32_t index)
{
    int32_t node = 0;

    for (size_t i = 0; i < len; i++) {
        int32_t child = child_of(set, node, (unsigned char)text[i]);
        if (child < 0) {
            child = set->n_nodes++;
            set->nodes[child] = (struct stop_node){.child = -1,
                                                   .sibling = set->nodes[node].child,
                                                   .match = -1,
                                                   .depth = set->nodes[node].depth + 1,
                                                   .byte = (unsigned char)text[i]};
            set->nodes[node].child = child;
        }
        node = child;
    }
    if (set->nodes[node].match < 0) set->nodes[node].match = index;
    set->lens[index] = (int32_t)len;
}

/* Breadth first, so that a node's failure target is complete before the node. queue has room for every node. */
static void link_failures(struct stop_set *set, int32_t *queue)
{
    int32_t head = 0, tail = 0;

    queue[tail++] = 0;
    while (head < tail) {
        int32_t node = queue[head++];
        for (int32_t child = set->nodes[node].child; child >= 0; child = set->nodes[child].sibling) {
            struct stop_node *it = &set->nodes[child];
            it->fail = node ? step(set, set->nodes[node].fail, it->byte) : 0;
            if (it->match < 0) it->match = set->nodes[it->fail].match;
            queue[tail++] = child;
        }
    }
}

int stop_set_new(struct stop_set **out, const char *const *strings, const size_t *lens, size_t n, struct err *err)
{
    size_t total = 1;

    *out = NULL;
    if (!n) return 0;
    if (n > STOP_MAX_STRINGS) return err_set(err, ERR_ARRAY_LONG, "%zu stop strings, at most %d", n, STOP_MAX_STRINGS);
    for (size_t i = 0; i < n; i++) {
        if (!lens[i] || lens[i] > STOP_MAX_BYTES)
            return err_set(err, ERR_VALUE, "stop string %zu has %zu bytes, expected 1..%d", i, lens[i], STOP_MAX_BYTES);
        total += lens[i];
    }
    struct stop_set *set = calloc(1, sizeof *set + total * sizeof *set->nodes);
    int32_t *queue = calloc(total, sizeof *queue);
    if (!set || !queue) {
        free(set);
        free(queue);
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu stop strings", n);
    }
    set->n_nodes = 1;
    set->nodes[0] = (struct stop_node){ .child = -1, .sibling = -1, .match = -1 };
    for (size_t i = 0; i < n; i++) add_string(set, strings[i], lens[i], (int32_t)i);
    link_failures(set, queue);
    free(queue);
    *out = set;
    return 0;
}

void stop_set_free(struct stop_set *set) { free(set); }

int stop_push(const struct stop_set *set, struct stop_state *state, const char *text, size_t len, size_t fed_len,
              size_t *safe_len, size_t *match_end)
{
    if (!set) {
        *safe_len = fed_len + len;
        return -1;
    }
    for (size_t i = 0; i < len; i++) {
        state->node = step(set, state->node, (unsigned char)text[i]);
        int32_t match = set->nodes[state->node].match;
        if (match < 0) continue;
        *match_end = fed_len + i + 1;
        *safe_len = *match_end - (size_t)set->lens[match];
        state->node = 0;
        return match;
    }
    *safe_len = fed_len + len - (size_t)set->nodes[state->node].depth;
    return -1;
}
