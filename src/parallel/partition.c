/* partition.c - ranges over items, heads and wide dimensions. */
#include <sluice/parallel.h>

#include "base/bug.h"
#include "partition.h"

enum { WIDE_UNIT = 64 };

struct range range_split(int64_t n, int64_t unit, int parts, int part)
{
    BUG_ON(n < 0 || unit < 1 || parts < 1 || part < 0 || part >= parts);
    int64_t units = n / unit + (n % unit != 0);
    int64_t each = units / parts, extra = units % parts;
    int64_t first = part * each + (part < extra ? part : extra);
    int64_t count = each + (part < extra ? 1 : 0);
    int64_t begin = first * unit, end = (first + count) * unit;
    return (struct range){ begin < n ? begin : n, end < n ? end : n };
}

void heads_split(int num_heads, int num_kv_heads, int tp_size, int tp_rank, struct range *heads, struct range *kv_heads)
{
    int64_t group = num_heads / num_kv_heads;    /* query heads per KV head */
    if (tp_size <= num_kv_heads) {
        *kv_heads = range_split(num_kv_heads, 1, tp_size, tp_rank);
        *heads = (struct range){ kv_heads->begin * group, kv_heads->end * group };
        return;
    }
    /* More ranks than KV heads: first share the ranks out over the KV heads, then a head's queries over its ranks. */
    for (int kv = 0; kv < num_kv_heads; kv++) {
        struct range owners = range_split(tp_size, 1, num_kv_heads, kv);
        if (tp_rank < owners.begin || tp_rank >= owners.end) continue;
        struct range queries = range_split(group, 1, (int)range_len(owners), tp_rank - (int)owners.begin);
        *kv_heads = (struct range){ kv, kv + 1 };
        *heads = (struct range){ kv * group + queries.begin, kv * group + queries.end };
        return;
    }
    bug_abort(__FILE__, __LINE__, "a rank without a KV head");
}

struct range wide_split(int64_t n, int tp_size, int tp_rank)
{
    int64_t unit = n >= (int64_t)WIDE_UNIT * tp_size ? WIDE_UNIT : 1;
    return range_split(n, unit, tp_size, tp_rank);
}

struct range vocab_range(int32_t vocab_size, int tp_size, int tp_rank)
{
    return wide_split(vocab_size, tp_size, tp_rank);
}
