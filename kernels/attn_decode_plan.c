/* attn_decode_plan.c - equal ranges of one line of tiles; see the header. */
#include "attn_decode_plan.h"

/* Costs in quarters of a tile. ITEM_COST: what an item costs beside its KV (query in, merge, result out). A cta gets at least
 * MIN_TILES, so that short work is not cut into pieces whose combination costs more than reading them. Items are not cut at all
 * where even the longest has no more than WHOLE_TILES and WHOLE_ITEMS of it make a share: a cta that has more than others reads
 * faster once those are done, and combining parts costs 4 us at the end. */
enum { TILE_COST = 4, ITEM_COST = 1, ZERO_COST = 1, MIN_TILES = 2, WHOLE_TILES = 8, WHOLE_ITEMS = 2 };

size_t attn_decode_plan_bytes(int32_t num_sms)
{
    return (size_t)(attn_decode_grid(64, num_sms) + 2) * sizeof(struct attn_decode_cut);
}

size_t attn_decode_workspace_bytes(int32_t head_dim, int32_t num_sms)
{
    size_t grid = (size_t)attn_decode_grid(head_dim, num_sms), parts = 2 * grid;
    size_t counters = ((grid + 1) * sizeof(int32_t) + 127) / 128 * 128;
    return counters + parts * ATTN_DECODE_HEADS * (2 + (size_t)(head_dim + 63) / 64 * 64) * sizeof(float);
}

/* The items of one sequence: all alike. The last tile is read as far as it is filled. */
struct seq_cost { int32_t tiles, item, all; };

static struct seq_cost cost_of(const struct attn_decode_shape *s, int32_t len, int32_t items, int32_t tile)
{
    int32_t begin, end, unit = tile / TILE_COST;
    attn_decode_tiles(tile, s->sliding_window, len, &begin, &end);
    int32_t item = (len - begin * tile + unit - 1) / unit + ITEM_COST;
    return end > begin ? (struct seq_cost){ end - begin, item, item * items } : (struct seq_cost){ 0, 0, ZERO_COST };
}

static int same_item(const struct attn_decode_cut *a, const struct attn_decode_cut *b) { return a->seq == b->seq && a->item == b->item; }

static struct attn_decode_cut carried(struct attn_decode_cut cut, int32_t tiles, int32_t items)
{
    if (cut.tile == tiles) {
        cut.tile = 0;
        cut.item++;
    }
    if (cut.item == items) {
        cut.item = 0;
        cut.seq++;
    }
    return cut;
}

/* The cut at `offset` cost units into a sequence, 0 < offset <= cost.all, rounded to a tile, or to an item. */
static struct attn_decode_cut cut_inside(int32_t seq, struct seq_cost cost, int32_t items, int32_t offset, int to_item)
{
    struct attn_decode_cut cut = { .seq = seq };
    if (cost.tiles == 0 || offset == cost.all) {
        cut.seq++;
        return cut;
    }
    if (to_item) {
        cut.item = (offset + cost.item / 2) / cost.item;
        return carried(cut, cost.tiles, items);
    }
    int32_t inside = offset % cost.item;
    cut.item = offset / cost.item;
    cut.tile = (inside + TILE_COST / 2) / TILE_COST;
    if (cut.tile * TILE_COST + TILE_COST / 2 >= cost.item - ITEM_COST) cut.tile = cost.tiles;        /* no part for half a tile */
    return carried(cut, cost.tiles, items);
}

/* How many ranges the line has: a share of MIN_TILES for a cta, but never fewer ctas than items. Where items are alike, a whole number
 * of ctas for each saves ctas the end of one and the beginning of another: worth a tenth of the ctas. */
static int64_t ranges_for(int64_t total, int64_t num_items, int64_t grid, int shift)
{
    int64_t ctas = grid >> shift, used = total / (MIN_TILES * TILE_COST + ITEM_COST);
    if (used < num_items) used = num_items;
    if (used > ctas) used = ctas;
    if (num_items > 0 && used > num_items && (used < ctas || used % num_items * 10 <= ctas)) used -= used % num_items;
    return used > 0 ? used << shift : 1;
}

/* What each cta gets where items of one cost come out whole, over nine tenths of the ctas or more and with no more than MOST_MORE for
 * one: nothing is left to combine at the end, and these ctas read as fast as all would. 0: cut evenly. */
static int64_t whole_items(int64_t num_items, int64_t item_cost, int64_t ctas)
{
    enum { MOST_MORE = 4 * TILE_COST };
    int64_t each = (num_items + ctas - 1) / ctas;
    if (num_items <= ctas || (num_items + each - 1) / each * 10 < ctas * 9) return 0;
    return (each * ctas - num_items) * item_cost <= MOST_MORE * ctas ? each * item_cost : 0;
}

/* What each cta gets before the rest is dealt: half of the line, in whole items. 0: nothing is dealt, as items are too few or one of them
 * is longer than half a share. */
static int64_t share_before_deal(const struct attn_decode_shape *s, int64_t num_items, int64_t dearest, int64_t total, int64_t ctas)
{
    int64_t share = total / 2 / ctas;
    if (!attn_decode_may_deal(s->head_dim, s->num_sms, num_items) || dearest > share) return 0;
    return total == num_items * dearest ? share - share % dearest : share;
}

void attn_decode_plan(const struct attn_decode_shape *s, const int32_t *context_lens, int32_t num_seqs, void *plan)
{
    struct attn_decode_cut *cuts = plan;
    int32_t grid = attn_decode_grid(s->head_dim, s->num_sms), tile = attn_decode_tile(s->head_dim), items = attn_decode_items(s);
    int64_t total = 0, num_items = 0, before = 0, dearest = 0;
    struct seq_cost cost = { 0, 0, 0 };
    int32_t seq = -1;

    for (int32_t i = 0; i < num_seqs; i++) {
        struct seq_cost of = cost_of(s, context_lens[i], items, tile);
        total += of.all;
        num_items += context_lens[i] > 0 ? items : 0;
        if (of.item > dearest) dearest = of.item;
    }
    int shift = attn_decode_shift(s->head_dim, num_items);
    int64_t used = ranges_for(total, num_items, grid, shift), share = 0;
    int to_item = shift == 0 && dearest <= WHOLE_TILES * TILE_COST + ITEM_COST && dearest * WHOLE_ITEMS * used <= total;
    if (shift == 0 && total == num_items * dearest) share = whole_items(num_items, dearest, grid);
    int64_t dealt = share_before_deal(s, num_items, dearest, total, grid), end = total;
    if (dealt > 0) {
        share = dealt;
        end = share * grid;
        to_item = 1;
    }

    /* before: cost of the sequences before seq; cut c lies at c shares, or at total * c / used. */
    for (int32_t c = 0; c <= grid; c++) {
        int64_t at = share > 0 ? c * share : c < used ? total * c / used : total;
        if (at > end || (dealt > 0 && c == grid)) at = end;
        while (seq + 1 < num_seqs && at > before + cost.all) {
            before += cost.all;
            cost = cost_of(s, context_lens[++seq], items, tile);
        }
        if (c == 0) cuts[c] = (struct attn_decode_cut){ .seq = 0 };
        else if (at == total) cuts[c] = (struct attn_decode_cut){ .seq = num_seqs };
        else cuts[c] = cut_inside(seq, cost, items, (int32_t)(at - before), to_item);
        if (c > 0 && cuts[c].tile > 0 && cuts[c].tile <= cuts[c - 1].tile && same_item(&cuts[c - 1], &cuts[c])) {
            cuts[c].tile = cuts[c - 1].tile + 1;               /* no range inside an item is empty: its parts are counted */
            cuts[c] = carried(cuts[c], cost.tiles, items);
        }
    }
    cuts[grid + 1] = (struct attn_decode_cut){ .seq = cuts[grid].seq, .item = cuts[grid].item, .first = num_seqs };
    if (cuts[grid].seq < num_seqs) cuts[grid + 1].tile = (num_seqs - cuts[grid].seq) * items - cuts[grid].item;
    for (int32_t c = 0; c <= grid; c++) {
        cuts[c].len = cuts[c].seq < num_seqs ? context_lens[cuts[c].seq] : 0;
        cuts[c].next_len = cuts[c].seq + 1 < num_seqs ? context_lens[cuts[c].seq + 1] : 0;
    }
    for (int32_t c = 1; c <= grid; c++)
        if (cuts[c].tile > 0) cuts[c].first = cuts[c - 1].tile > 0 && same_item(&cuts[c - 1], &cuts[c]) ? cuts[c - 1].first : c - 1;
    for (int32_t c = grid - 1; c >= 0; c--)
        if (cuts[c].tile > 0) cuts[c].last = cuts[c + 1].tile > 0 && same_item(&cuts[c], &cuts[c + 1]) ? cuts[c + 1].last : c;
}
