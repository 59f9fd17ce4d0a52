/* attn_decode_plan.h - which cta of decode attention reads which KV. Plain C, on the host, no device call.
 * Flow: lengths of a step -> attn_decode_plan() -> copied to the device -> every layer's launch_attn_decode().
 * Thread: any; no state.
 *
 * An item is one KV head of one sequence (with more than 8 query heads on a KV head: one item per 8 of them). Its KV is cut into
 * tiles of a fixed number of tokens at fixed positions. All tiles of all items in order (sequence, then item, then tile) form one
 * line, and the line is cut into as many equal ranges as there are ctas: the load is even whatever the lengths are. An item
 * that lies in several ranges is summed by each of their ctas in part; the last to finish puts the parts together, in order.
 *
 * Multiprocessors differ in speed, some by a quarter. Where items are many, the ranges take half of the line, in whole items, and what is
 * left is dealt: whoever is through with its range takes the next item, until there are none.
 *
 * The plan is an array of grid + 2 cuts. Cta c reads from cuts[c] up to cuts[c + 1]; cuts[grid + 1] says what is dealt. Small work
 * uses fewer ctas: the ranges of the others are empty. Its size depends on the device alone, so a captured launch serves any
 * lengths and any number of sequences. */
#ifndef SLUICE_KERNELS_ATTN_DECODE_PLAN_H
#define SLUICE_KERNELS_ATTN_DECODE_PLAN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct attn_decode_shape { int32_t num_heads, num_kv_heads, head_dim, sliding_window, num_sms; };

struct attn_decode_cut {
    int32_t seq, item, tile;       /* tile: counted from the item's first; (num_seqs, 0, 0) is the end of the line */
    int32_t first, last;           /* ctas that share this item, where tile > 0 */
                                   /* cuts[grid + 1]: (seq, item) is dealt first, tile items in all; first: num_seqs */
    int32_t len, next_len;         /* context_lens[seq], [seq + 1]: the walk starts without another read; 0 behind the end */
    int32_t reserved_;
};

enum { ATTN_DECODE_HEADS = 8 };    /* query heads of one item at most */

/* Tokens of a tile, ctas of the launch, items of one sequence. */
static inline int32_t attn_decode_tile(int32_t head_dim) { return head_dim <= 64 ? 128 : 64; }
static inline int32_t attn_decode_grid(int32_t head_dim, int32_t num_sms) { return head_dim > 128 ? num_sms : 2 * num_sms; }
/* Few items: one cta a SM with a ring of twice the depth takes two neighbouring ranges as one; it reads as fast and makes half as many
 * parts. The launch decides by the rows it has, the plan by the items there are: any plan serves both. */
enum { ATTN_DECODE_FEW_ITEMS = 128, ATTN_DECODE_DEAL_ITEMS = 3 };
static inline int attn_decode_shift(int32_t head_dim, int64_t num_items) { return head_dim <= 128 && num_items <= ATTN_DECODE_FEW_ITEMS; }
/* Whether a plan of so many items may deal. A launch for fewer is compiled without: small work has nothing to spare. */
static inline int attn_decode_may_deal(int32_t head_dim, int32_t num_sms, int64_t num_items)
{
    return num_items > ATTN_DECODE_FEW_ITEMS && num_items >= ATTN_DECODE_DEAL_ITEMS * (int64_t)attn_decode_grid(head_dim, num_sms);
}
static inline int32_t attn_decode_items(const struct attn_decode_shape *s)
{
    return s->num_kv_heads * ((s->num_heads / s->num_kv_heads + ATTN_DECODE_HEADS - 1) / ATTN_DECODE_HEADS);
}

#ifdef __CUDACC__
#define HOST_AND_DEVICE __host__ __device__
#else
#define HOST_AND_DEVICE
#endif
/* Tiles of one item: [*begin, *end) in units of tiles from position 0; those that hold a position the query sees. */
static inline HOST_AND_DEVICE void attn_decode_tiles(int32_t tile, int32_t window, int32_t len, int32_t *begin, int32_t *end)
{
    *begin = window > 0 && len > window ? (len - window) / tile : 0;
    *end = len > 0 ? (len + tile - 1) / tile : 0;
}

size_t attn_decode_plan_bytes(int32_t num_sms);
size_t attn_decode_workspace_bytes(int32_t head_dim, int32_t num_sms);     /* device; zeroed once, left zeroed by each launch */

/* Fills plan, attn_decode_plan_bytes() long, for one step. context_lens[i] 0: padding, its out row is zeros. Never fails. */
void attn_decode_plan(const struct attn_decode_shape *s, const int32_t *context_lens, int32_t num_seqs, void *plan);

#ifdef __cplusplus
}
#endif
#endif
