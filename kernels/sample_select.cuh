/* sample_select.cuh - the cuts of top_k and top_p without a sort of the vocabulary. Part of sample.cu.
 * A cut is a key: every token whose key reaches it stays. Tokens are counted by a histogram over their distance from the largest,
 * scaled to the row, in which the bin of a cut is looked up. A few tokens down to that bin are put in order and the token is
 * drawn from the list. Else only the bin is put in order, the cut is found in it, and the draw goes over the tiles. A bin with
 * more than LIST tokens (many equal logits) is halved by key until it fits. */
#ifndef SLUICE_KERNELS_SAMPLE_SELECT_CUH
#define SLUICE_KERNELS_SAMPLE_SELECT_CUH

#include "sample_row.cuh"

constexpr float MAX_DISTANCE = 64.0f;      /* exp(-64) is no weight */
constexpr int SHORT_LIST = 256;            /* beyond, one pass over the tiles costs less than two sorts */
constexpr int QUEUE = 2 * LIST / SAMPLE_WARPS;               /* logits of a warp, in the memory of the list */

/* ---- histogram ---- */

static __device__ __forceinline__ void add_to_bin(struct sample_shared *s, int bin, uint64_t weight)
{
    uint32_t low = (uint32_t)weight, high = (uint32_t)(weight >> 32);
    atomicAdd(&s->bin_count[bin], 1u);
    if (low != 0) high += atomicAdd(&s->bin_low[bin], low) > 0xffffffffu - low;            /* the carry, whoever causes it */
    if (high != 0) atomicAdd(&s->bin_high[bin], high);
}

static __device__ __forceinline__ float bin_at(const struct row_view &v, float bin_scale, float logit) { return (v.max - logit) * bin_scale; }

static __device__ __noinline__ void count_queue(const float *queue, int queued, float bin_scale, bool weighted)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    __syncwarp();
    for (int i = threadIdx.x % WARP; i < queued; i += WARP) {
        float weight = weight_of(v, queue[i]);
        if (weight >= v.min_p) add_to_bin(s, (int)bin_at(v, bin_scale, queue[i]), weighted ? to_fixed(weight) : 0);
    }
    __syncwarp();
}

/* Bins of the whole row: those from rank * BINS / ranks on are summed in this cta. Few tokens reach the last bin: a warp queues them,
 * so that it counts 32 at a time. */
static __device__ __noinline__ void fill_bins(const struct team &team, float bin_scale, bool weighted)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    float *queue = (float *)s->list + threadIdx.x / WARP * QUEUE;
    uint32_t lanes_before = (1u << threadIdx.x % WARP) - 1;
    int queued = 0;

    for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) s->bin_count[i] = s->bin_low[i] = s->bin_high[i] = 0;
    __syncthreads();
    for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
        if (!(bin_at(v, bin_scale, s->max[tile]) < (float)BINS)) continue;
        for_tile(v, tile, false, [&](float logit, int) {
            bool is_near = bin_at(v, bin_scale, logit) < (float)BINS;
            uint32_t lanes = __ballot_sync(0xffffffffu, is_near);
            if (is_near) queue[queued + __popc(lanes & lanes_before)] = logit;
            queued += __popc(lanes);
            if (queued > QUEUE - WARP) {
                count_queue(queue, queued, bin_scale, weighted);
                queued = 0;
            }
        });
    }
    count_queue(queue, queued, bin_scale, weighted);
    team_barrier(team);
    if (team.ranks == 1) return;
    int per_rank = BINS / team.ranks;
    for (int bin = team.rank * per_rank + threadIdx.x; bin < (team.rank + 1) * per_rank; bin += SAMPLE_THREADS) {
        uint32_t count = 0, low[MAX_TEAM], high[MAX_TEAM], counts[MAX_TEAM];
        uint64_t weight = 0;
#pragma unroll
        for (int rank = 0; rank < MAX_TEAM; rank++) {
            int from = rank < team.ranks ? rank : 0;
            counts[rank] = *at_rank(team, &s->bin_count[bin], from);
            low[rank] = *at_rank(team, &s->bin_low[bin], from);
            high[rank] = *at_rank(team, &s->bin_high[bin], from);
        }
#pragma unroll
        for (int rank = 0; rank < MAX_TEAM; rank++) {
            count += rank < team.ranks ? counts[rank] : 0;
            weight += rank < team.ranks ? low[rank] + ((uint64_t)high[rank] << 32) : 0;
        }
        s->bin_count[bin] = count;         /* nobody else reads this run of bins */
        s->bin_low[bin] = (uint32_t)weight;
        s->bin_high[bin] = (uint32_t)(weight >> 32);
    }
    __syncthreads();
}

/* What a thread knows of the summed histogram: its own run of bins and everything before it. */
struct bin_sums { int first, num; uint32_t before_count; uint64_t before_weight; uint32_t all_count; uint64_t all_weight; };

static __device__ uint64_t bin_weight(const struct sample_shared *s, int bin) { return s->bin_low[bin] + ((uint64_t)s->bin_high[bin] << 32); }

static __device__ __noinline__ struct bin_sums sum_bins(struct team *team)
{
    struct sample_shared *s = cta_state();
    struct bin_sums sums = {};
    int per_rank = BINS / team->ranks;
    uint32_t count = 0, total_count;
    uint64_t weight = 0, total_weight;

    sums.num = threadIdx.x < per_rank / BINS_PER_THREAD ? BINS_PER_THREAD : 0;
    sums.first = team->rank * per_rank + threadIdx.x * BINS_PER_THREAD;
    for (int i = 0; i < sums.num; i++) {
        count += s->bin_count[sums.first + i];
        weight += bin_weight(s, sums.first + i);
    }
    if (threadIdx.x < 2) s->found_bin[threadIdx.x].is_found = 0;
    if (threadIdx.x == 0) s->counter = 0;                    /* of gather(); both before the team is told */
    sums.before_count = cta_scan_u32(count, &total_count);
    sums.before_weight = cta_scan_u64(weight, &total_weight);
    tell(s, team, total_count, total_weight);
    for (int rank = 0; rank < team->ranks; rank++) {
        if (rank < team->rank) {
            sums.before_count += (uint32_t)told_by(s, *team, rank).a;
            sums.before_weight += told_by(s, *team, rank).b;
        }
        sums.all_count += (uint32_t)told_by(s, *team, rank).a;
        sums.all_weight += told_by(s, *team, rank).b;
    }
    return sums;
}

/* The bin in which the running count reaches `most` or the running weight `enough`; count and weight are those before the bin.
 * is_found 0: neither is reached. Once for each `which` after sum_bins(). A barrier of the team. */
static __device__ __noinline__ struct found_cut find_bin(const struct team &team, const struct bin_sums &sums, int which, uint32_t most,
                                                         uint64_t enough)
{
    struct sample_shared *s = cta_state();
    uint32_t count = sums.before_count;
    uint64_t weight = sums.before_weight;

    if (count < most && weight < enough)
        for (int i = 0; i < sums.num; i++) {
            uint32_t here = s->bin_count[sums.first + i];
            uint64_t here_weight = bin_weight(s, sums.first + i);
            if (count + here >= most || weight + here_weight >= enough) {
                struct found_cut found = { 0, weight, count, sums.first + i, (int32_t)here, 1 };
                for (int rank = 0; rank < team.ranks; rank++) *at_rank(team, &s->found_bin[which], rank) = found;
                break;
            }
            count += here;
            weight += here_weight;
        }
    team_barrier(team);
    return s->found_bin[which];
}

/* ---- lists of keys, in the team's first cta ---- */

/* Keys in (low, high] of the tokens whose bin lies in first_bin..last_bin, into the list of rank 0, in no order; the caller knows
 * that they fit or looks at the counter, which is 0 since the team was told something. A barrier of the team. */
static __device__ __noinline__ void gather(const struct team &team, float bin_scale, int first_bin, int last_bin, uint64_t low, uint64_t high)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    struct sample_shared *first = at_rank(team, s, 0);
    for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
        if (!(bin_at(v, bin_scale, s->max[tile]) < (float)(last_bin + 1))) continue;
        for_tile(v, tile, false, [&](float logit, int id) {
            float at = bin_at(v, bin_scale, logit);
            if (!(at < (float)(last_bin + 1)) || (int)at < first_bin || !(weight_of(v, logit) >= v.min_p)) return;
            uint64_t key = key_of(logit, id);
            if (key <= low || key > high) return;
            uint32_t to = atomicAdd(&first->counter, 1u);
            if (to < LIST) first->list[to] = key;
        });
    }
    team_barrier(team);
}

/* Falling; n <= LIST, padded with zeros to a power of two. One cta. Ends with a barrier. */
static __device__ __noinline__ void sort_list(int n)
{
    struct sample_shared *s = cta_state();
    int padded = WARP;
    while (padded < n) padded *= 2;
    for (int i = n + threadIdx.x; i < padded; i += SAMPLE_THREADS) s->list[i] = 0;
    __syncthreads();
    for (int run = 2; run <= padded; run *= 2)
        for (int gap = run / 2; gap > 0; gap /= 2) {
            for (int pair = threadIdx.x; pair < padded / 2; pair += SAMPLE_THREADS) {
                int i = pair / gap * gap * 2 + pair % gap, j = i + gap;
                uint64_t a = s->list[i], b = s->list[j];
                if ((a < b) == ((i & run) == 0)) {
                    s->list[i] = b;
                    s->list[j] = a;
                }
            }
            __syncthreads();
        }
}

/* The first of the sorted list at which `most` are counted or the running weight reaches `enough`: found.count counts it, and
 * found.weight holds it; else is_found 0 and the sums of all. by_id: the list holds keys turned by turn_to_ids(). One cta. */
static __device__ __noinline__ struct found_cut find_in_list(int n, uint32_t most, uint64_t enough, bool by_id)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    int first = threadIdx.x * LIST_PER_THREAD;
    uint64_t own = 0, total, weights[LIST_PER_THREAD];

#pragma unroll
    for (int i = 0; i < LIST_PER_THREAD; i++) {
        uint64_t key = first + i < n ? s->list[first + i] : 0;
        weights[i] = first + i < n ? to_fixed(weight_of(v, key_logit(by_id ? key << 32 : key))) : 0;
        own += weights[i];
    }
    uint64_t running = cta_scan_u64(own, &total);
    if (threadIdx.x == 0) s->found = { 0, total, (uint32_t)n, 0, 0, 0 };
    __syncthreads();
    bool is_mine = running < enough && (uint32_t)first < most;
#pragma unroll
    for (int i = 0; i < LIST_PER_THREAD; i++) {
        running += weights[i];
        if (!is_mine || first + i >= n || (running < enough && (uint32_t)(first + i + 1) < most)) continue;
        s->found = { s->list[first + i], running, (uint32_t)(first + i + 1), 0, 0, 1 };
        is_mine = false;
    }
    __syncthreads();
    struct found_cut found = s->found;
    __syncthreads();
    return found;
}

/* The first n keys of the list: id first, rising as the turned key falls. */
static __device__ void turn_to_ids(int n)
{
    struct sample_shared *s = cta_state();
    for (int i = threadIdx.x; i < n; i += SAMPLE_THREADS) s->list[i] = s->list[i] << 32 | s->list[i] >> 32;
    __syncthreads();
}

/* ---- cuts ---- */

/* The exact cut inside a bin of which `most` tokens or the weight `enough` stay: its key and the weight down to it. */
static __device__ __noinline__ struct found_cut cut_in_bin(struct team *team, float bin_scale, const struct found_cut &bin, uint32_t most,
                                                           uint64_t enough)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    uint64_t low = 0, high = ~0ull, taken = 0;               /* the cut is in (low, high]; taken: the weight above high */
    uint32_t inside = (uint32_t)bin.in_bin;

    while (inside > LIST) {
        uint64_t middle = low + (high - low) / 2, weight = 0;
        uint32_t count = 0;
        for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
            if (!(bin_at(v, bin_scale, s->max[tile]) < (float)(bin.bin + 1))) continue;
            for_tile(v, tile, false, [&](float logit, int id) {
                float at = bin_at(v, bin_scale, logit), w = weight_of(v, logit);
                uint64_t key = key_of(logit, id);
                if (!(at < (float)(bin.bin + 1)) || (int)at != bin.bin || !(w >= v.min_p) || key <= middle || key > high) return;
                count++;
                weight += to_fixed(w);
            });
        }
        uint32_t all_count;
        uint64_t all_weight;
        cta_scan_u32(count, &all_count);
        cta_scan_u64(weight, &all_weight);
        tell(s, team, all_count, all_weight);
        count = 0, weight = 0;
        for (int rank = 0; rank < team->ranks; rank++) {
            count += (uint32_t)told_by(s, *team, rank).a;
            weight += told_by(s, *team, rank).b;
        }
        if (count >= most || weight >= enough) {
            low = middle;
            inside = count;
        } else {
            high = middle;
            inside -= count;
            most -= count;
            enough -= enough == ~0ull ? 0 : weight;
            taken += weight;
        }
    }
    gather(*team, bin_scale, bin.bin, bin.bin, low, high);
    if (threadIdx.x == 0) s->counter = 0;
    if (team->rank == 0) {
        sort_list(inside);
        struct found_cut cut = find_in_list(inside, most, enough, false);
        if (!cut.is_found) cut.key = s->list[inside - 1];    /* cannot be: the sums are exact */
        if (threadIdx.x < team->ranks) *at_rank(*team, &s->found, threadIdx.x) = cut;
    }
    team_barrier(*team);
    struct found_cut cut = s->found;
    team_barrier(*team);
    cut.weight += taken + bin.weight;
    return cut;
}

/* Weights of tiles that hold only the tokens that stay. Ends with a barrier. */
static __device__ __noinline__ void weigh_tiles(uint64_t cut)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    float least = cut ? key_logit(cut) : -INFINITY;
    for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
        uint64_t sum = 0;
        if (s->max[tile] >= least && weight_of(v, s->max[tile]) >= v.min_p)
            for_tile(v, tile, false, [&](float logit, int id) {
                float weight = weight_of(v, logit);
                if (weight >= v.min_p && key_of(logit, id) >= cut) sum += to_fixed(weight);
            });
        sum = warp_sum_u64(sum);
        if (threadIdx.x % WARP == 0) s->weight[tile] = sum;
    }
    __syncthreads();
}

/* The same in one pass with the search of the cut, which lies in a bin that fits the list: what is above the bin stays, what is in it
 * goes to the list, and those that stay are added to their tiles. Returns the cut. */
static __device__ __noinline__ uint64_t weigh_to_bin(const struct team &team, float bin_scale, const struct found_cut &bin, uint32_t most,
                                                     uint64_t enough)
{
    struct sample_shared *s = cta_state(), *first = at_rank(team, s, 0);
    const struct row_view &v = s->view;

    for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
        uint64_t sum = 0;
        if (bin_at(v, bin_scale, s->max[tile]) < (float)(bin.bin + 1))
            for_tile(v, tile, false, [&](float logit, int id) {
                float at = bin_at(v, bin_scale, logit), weight = weight_of(v, logit);
                if (!(at < (float)(bin.bin + 1)) || !(weight >= v.min_p)) return;
                if ((int)at < bin.bin) { sum += to_fixed(weight); return; }
                uint32_t to = atomicAdd(&first->counter, 1u);
                if (to < LIST) first->list[to] = key_of(logit, id);
            });
        sum = warp_sum_u64(sum);
        if (threadIdx.x % WARP == 0) s->weight[tile] = sum;
    }
    team_barrier(team);
    if (team.rank == 0) {
        sort_list(bin.in_bin);
        struct found_cut cut = find_in_list(bin.in_bin, most, enough, false);
        if (!cut.is_found) cut.key = s->list[bin.in_bin - 1];
        if (threadIdx.x < team.ranks) *at_rank(team, &s->found, threadIdx.x) = cut;
    }
    team_barrier(team);
    for (int i = threadIdx.x; i < (int)s->found.count; i += SAMPLE_THREADS) {
        uint64_t key = first->list[i];
        int tile = key_id(key) / TILE - v.first_tile;
        if (tile >= 0 && tile < v.num_tiles)
            atomicAdd((unsigned long long *)&s->weight[tile], (unsigned long long)to_fixed(weight_of(v, key_logit(key))));
    }
    team_has_read(team);
    __syncthreads();
    team_join(team);
    return s->found.key;
}

/* The token from the list of rank 0, which holds n keys down to the cuts or below; total: what top_p is a share of, without top_k. */
static __device__ __noinline__ token_id draw_from_list(int n, int top_k, float top_p, uint64_t total, float share)
{
    struct found_cut last;

    sort_list(n);
    if (top_k > 0) {
        last = find_in_list(n, top_k, ~0ull, false);
        if (top_p < 1.0f) last = find_in_list(last.count, ~0u, share_of(top_p, last.weight), false);
    } else last = find_in_list(n, ~0u, top_p < 1.0f ? share_of(top_p, total) : ~0ull, false);
    turn_to_ids(last.count);
    sort_list(last.count);
    last = find_in_list(last.count, ~0u, share_of(share, last.weight), true);
    return key_id(last.key >> 32);
}

/* A truncated row. Either its token is drawn from a list: *token, in rank 0 (TOKEN_NONE elsewhere), true. Or the cut is in *cut and
 * the weight of what stays in weight[]: false. total: the weight of all tokens; share: the uniform number; has_bound: the bins
 * end where top_k tokens or some more are. */
static __device__ __noinline__ bool draw_truncated(struct team *team, float bin_scale, bool has_bound, int top_k, float top_p,
                                                   uint64_t total, float share, token_id *token, uint64_t *cut)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    *token = TOKEN_NONE;
    *cut = 0;
    if (top_k <= 0 && top_p >= 1.0f) {                       /* min_p alone */
        weigh_tiles(0);
        return false;
    }
    if (has_bound) {
        gather(*team, bin_scale, 0, BINS - 1, 0, ~0ull);
        uint32_t n = *at_rank(*team, &s->counter, 0);
        team_has_read(*team);
        if (n <= LIST && team->rank == 0) *token = draw_from_list(n, top_k, top_p, total, share);
        team_join(*team);
        if (n <= LIST) return true;
    }
    fill_bins(*team, bin_scale, top_p < 1.0f);
    struct bin_sums sums = sum_bins(team);
    if (v.min_p > 0.0f) total = sums.all_weight;
    if (sums.all_count <= (uint32_t)top_k) {                 /* so few have weight: it cuts nothing */
        top_k = 0;
        total = sums.all_weight;
    }
    uint32_t most = top_k > 0 ? (uint32_t)top_k : ~0u;
    uint64_t enough = top_k == 0 && top_p < 1.0f ? share_of(top_p, total) : ~0ull;
    struct found_cut bin = find_bin(*team, sums, 0, most, enough);
    uint32_t down_to_it = bin.is_found ? bin.count + (uint32_t)bin.in_bin : sums.all_count;

    if (down_to_it <= SHORT_LIST) {
        gather(*team, bin_scale, 0, bin.is_found ? bin.bin : BINS - 1, 0, ~0ull);
        if (team->rank == 0) *token = draw_from_list(down_to_it, top_k, top_p, total, share);
        return true;
    }
    if (bin.is_found && top_k > 0 && top_p < 1.0f) {         /* the weight down to top_k, then the bin of top_p, which is no later */
        struct found_cut last = cut_in_bin(team, bin_scale, bin, most - bin.count, ~0ull);
        *cut = last.key;
        most = ~0u;
        enough = share_of(top_p, last.weight);
        bin = find_bin(*team, sums, 1, most, enough);
    }
    if (!bin.is_found) {
        weigh_tiles(*cut);
        return false;
    }
    if (most != ~0u) most -= bin.count;
    if (enough != ~0ull) enough -= bin.weight;
    if (bin.in_bin <= LIST) *cut = weigh_to_bin(*team, bin_scale, bin, most, enough);
    else {
        *cut = cut_in_bin(team, bin_scale, bin, most, enough).key;
        weigh_tiles(*cut);
    }
    return false;
}

#endif
