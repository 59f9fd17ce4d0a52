/* sample.cu - from rows of logits to tokens, without a sort                                          op: backend.sample
 * Shapes    logits [R, V] f32, R <= 1024 or more, V <= 262144; rows, lists, slots as in step_plan.h and kernels.h.
 * Traffic   greedy, and draws that cut nothing off: R*V*4 read once.  R=256 V=128256: 131 MB.  top_k reads what can
 *           be above its cut once more, top_p the row twice more; reported ranks and tops read the tiles whose maximum says so.
 * Roofline  memory bound: 30 us at 4.4 TB/s (H200 read) for the above; one row is in L2 and bound by the launch.
 * Launch    a team of 1..8 ctas (a cluster) per row, SAMPLE_THREADS threads each; everything else depends on the rows alone, so
 *           a captured launch serves any mixture. sm_80 has no clusters: one cta per row.
 * Order     sums over tiles are integers (sample_row.cuh): a row's token depends on the row alone.
 * Oracle    backend_cpu_ref.sample, tests/kernels/sample_test.c: greedy bit-equal, draws equal but for the rounding of sums.
 * Why       the first pass leaves the maximum and the sum of every tile, so that the draw reads one tile again and not the row.
 *
 * Flow of a row: maximum (and sums) per tile -> the team's maximum -> greedy: first token that equals it; else the cut
 * (sample_select.cuh) and the tile, then the token, at which the running sum reaches the uniform number's share -> reports. */
#include "sample_row.cuh"
#include "sample_select.cuh"

constexpr float LOG2E = 1.4426950408889634f;
constexpr int ROWS_PER_SM = 2;             /* ctas that fit one multiprocessor */

/* ---- the uniform number: as sampling_uniform() in src/sampling/sampling.c, bit for bit ---- */

static __device__ float uniform_number(uint64_t seed, uint32_t choice, uint32_t num_generated)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32), c0 = num_generated, c1 = 0, c2 = choice, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (float)((c0 >> 8) + 1) * 0x1p-24f;
}

static __device__ bool is_greedy(const struct sampling_params &p) { return p.temperature < 1e-5f || p.top_k == 1 || p.top_p <= 0.0f; }
static __device__ bool has_penalties(const struct sampling_params &p)
{
    return p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f;
}

/* ---- the first pass ---- */

struct pass { bool raw_sums, sums, first, min; float scale; };

static __device__ __forceinline__ float tile_max(const float4 *x)
{
    float m = -INFINITY;
#pragma unroll
    for (int j = 0; j < TILE_LOADS; j++) m = max_or_nan(max_or_nan(max_or_nan(m, x[j].x), max_or_nan(x[j].y, x[j].z)), x[j].w);
    return warp_max_or_nan(m);
}

static __device__ __forceinline__ float tile_sum(const float4 *x, float max, float scale)
{
    float sum = 0.0f, shift = max == -INFINITY ? 0.0f : max;
#pragma unroll
    for (int j = 0; j < TILE_LOADS; j++)
        sum += (exp2_fast((x[j].x - shift) * scale) + exp2_fast((x[j].y - shift) * scale)) +
               (exp2_fast((x[j].z - shift) * scale) + exp2_fast((x[j].w - shift) * scale));
    return warp_sum(sum);
}

static __device__ __forceinline__ int tile_first(const float4 *x, float max, int id)
{
    int first = INT32_MAX;
#pragma unroll
    for (int j = TILE_LOADS - 1; j >= 0; j--) {
        if (x[j].w == max) first = id + j * 4 * WARP + 3;
        if (x[j].z == max) first = id + j * 4 * WARP + 2;
        if (x[j].y == max) first = id + j * 4 * WARP + 1;
        if (x[j].x == max) first = id + j * 4 * WARP;
    }
    return __reduce_min_sync(0xffffffffu, first);
}

static __device__ __forceinline__ float finite_min(float a, float x) { return x > -INFINITY ? fminf(a, x) : a; }

/* The tokens of a lane that are looked at one by one: their maximum, the first that has it, the sum relative to it. */
struct extra { float max, sum, min; int first; };
static __device__ __forceinline__ void add_extra(struct extra *e, float logit, int id, float scale)
{
    if (logit == -INFINITY || e->max != e->max) return;      /* a NaN stays */
    if (!(logit <= e->max)) {
        e->sum = e->sum * exp2_fast((e->max - logit) * scale) + 1.0f;
        e->max = logit;
        e->first = id;
    } else e->sum += exp2_fast((logit - e->max) * scale);
    e->min = fminf(e->min, logit);
}

template <bool CHANGED>
static __device__ __noinline__ void first_pass(const struct pass &pass)
{
    struct sample_shared *s = cta_state();
    const struct row_view v = s->view;
    const bool raw_sums = pass.raw_sums, sums = pass.sums, wants_first = pass.first, wants_min = pass.min;
    const float scale = pass.scale;

    for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
        int id = (v.first_tile + tile) * TILE + (int)(threadIdx.x % WARP) * 4, first = 0;
        float4 x[TILE_LOADS];
        float raw_sum = 0.0f, sum = 0.0f, min = INFINITY;
        struct tile_bits bits = {};
        struct extra extra = { -INFINITY, 0.0f, INFINITY, INT32_MAX };
        if (CHANGED) bits = bits_of_tile(v, s, tile);
        load_logits<TILE_LOADS>(x, v, id);
        float raw_max = tile_max(x), max = raw_max;
        if (raw_sums) raw_sum = tile_sum(x, raw_max, LOG2E);
        if (CHANGED) {
#pragma unroll
            for (int j = 0; j < TILE_LOADS; j++) x[j] = without(x[j], bits, j);
            for_extra(v, bits, tile, [&](float logit, int at) { add_extra(&extra, logit, at, scale); });
            max = max_or_nan(tile_max(x), warp_max_or_nan(extra.max));
        }
        if (wants_first) {
            first = tile_first(x, max, id);
            if (CHANGED) first = ::min(first, __reduce_min_sync(0xffffffffu, extra.max == max ? extra.first : INT32_MAX));
        }
        if (sums) {
            sum = tile_sum(x, max, scale);
            if (CHANGED) sum += warp_sum(extra.max > -INFINITY ? extra.sum * exp2_fast((extra.max - max) * scale) : 0.0f);
        }
        if (wants_min) {
#pragma unroll
            for (int j = 0; j < TILE_LOADS; j++) min = finite_min(finite_min(finite_min(finite_min(min, x[j].x), x[j].y), x[j].z), x[j].w);
            min = warp_min(fminf(min, extra.min));
        }
        if (threadIdx.x % WARP == 0) {
            s->raw_max[tile] = raw_max;
            s->raw_sum[tile] = raw_sum;
            s->max[tile] = max;
            s->sum[tile] = sum;
            s->min[tile] = min;
            s->first_max[tile] = first;
        }
    }
}

struct row_max { float raw, changed, min; token_id first; };     /* first: the first token that has `changed` (greedy rows) */

/* Over this cta's tiles (every warp for itself), then over the team. */
static __device__ __forceinline__ struct row_max find_max(const struct row_view &v, struct sample_shared *s, struct team *team)
{
    int lane = threadIdx.x % WARP, first = INT32_MAX;
    float raw = -INFINITY, changed = -INFINITY, min = INFINITY;

    for (int tile = lane; tile < v.num_tiles; tile += WARP) {
        raw = max_or_nan(raw, s->raw_max[tile]);
        if (s->max[tile] > changed) first = s->first_max[tile];
        changed = max_or_nan(changed, s->max[tile]);
        min = fminf(min, s->min[tile]);
    }
    float lane_max = changed;
    raw = warp_max_or_nan(raw);
    changed = warp_max_or_nan(changed);
    min = warp_min(min);
    first = __reduce_min_sync(0xffffffffu, lane_max == changed ? first : INT32_MAX);
    if (team->ranks == 1) return { raw, changed, min, first };

    tell(s, team, __float_as_uint(raw) | (uint64_t)__float_as_uint(changed) << 32, __float_as_uint(min) | (uint64_t)first << 32);
    struct row_max row = { -INFINITY, -INFINITY, INFINITY, TOKEN_NONE };
    for (int rank = 0; rank < team->ranks; rank++) {
        struct told told = told_by(s, *team, rank);
        float here = __uint_as_float((uint32_t)(told.a >> 32));
        row.raw = max_or_nan(row.raw, __uint_as_float((uint32_t)told.a));
        row.min = fminf(row.min, __uint_as_float((uint32_t)told.b));
        if (here > row.changed) row.first = (token_id)(told.b >> 32);
        row.changed = max_or_nan(row.changed, here);
    }
    return row;
}

/* ---- the token ---- */

/* Weights of whole tiles, from the sums of the first pass; the cta's total in all threads. Ends with a barrier. */
static __device__ __noinline__ uint64_t scale_tiles(const float *max, const float *sum, float row_max, float scale)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    uint64_t total = 0;
    __syncthreads();
    for (int tile = threadIdx.x % WARP; tile < v.num_tiles; tile += WARP) {
        uint64_t weight = to_fixed(sum[tile] * exp2_fast((max[tile] - row_max) * scale));
        if (threadIdx.x < WARP) s->weight[tile] = weight;
        total += weight;
    }
    __syncthreads();
    return warp_sum_u64(total);
}

/* The token, by rising id, at which the running weight reaches share of its total, from weight[] of all tiles; in the cta that
 * holds it, TOKEN_NONE in the others. is_cut: weights are of the tokens that stay, relative to the row's maximum; else whole
 * tiles, and inside one relative to its own. A barrier of the team. */
static __device__ __noinline__ token_id draw_by_tiles(struct team *team, float share, bool is_cut, uint64_t cut)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    constexpr int PER_LANE = MAX_TILES / WARP;
    int lane = threadIdx.x % WARP;
    uint64_t own = 0, before = 0, all = 0;

    for (int i = 0; i < PER_LANE; i++)
        if (lane * PER_LANE + i < v.num_tiles) own += s->weight[lane * PER_LANE + i];
    uint64_t upto = warp_scan_u64(own), mine = __shfl_sync(0xffffffffu, upto, WARP - 1);
    if (team->ranks > 1) {
        tell(s, team, mine, 0);
        for (int rank = 0; rank < team->ranks; rank++) {
            if (rank < team->rank) before += told_by(s, *team, rank).a;
            all += told_by(s, *team, rank).a;
        }
    } else all = mine;
    uint64_t target = share_of(share, all);
    if (threadIdx.x >= WARP || target <= before || target > before + mine) return TOKEN_NONE;    /* thread 0 of one cta answers */

    /* The lane, then its tile. */
    target -= before;
    int owner = __ffs(__ballot_sync(0xffffffffu, upto >= target)) - 1;
    uint64_t running = __shfl_sync(0xffffffffu, upto - own, owner), weight = 0;
    int tile = owner * PER_LANE;
    for (;; tile++) {
        weight = s->weight[tile];
        if (running + weight >= target || tile == v.num_tiles - 1) break;
        running += weight;
    }
    /* In the tile, its own sum anew: first a word of 32 tokens per lane, then a token of the word per lane. */
    float shift = is_cut ? v.max : s->max[tile];
    auto staying = [&](float logit, int id) {
        float w = exp2_fast((logit - shift) * v.scale);
        return !is_cut || (w >= v.min_p && key_of(logit, id) >= cut) ? to_fixed(w) : (uint64_t)0;
    };
    int first = (v.first_tile + tile) * TILE + lane * 32;
    float4 x[TILE_LOADS];
    struct tile_bits bits = {};
    uint64_t sum = 0;
    load_logits<TILE_LOADS, 4>(x, v, first);
    if (v.is_changed) {
        bits = bits_of_tile(v, s, tile);
        for_extra(v, bits, tile, [&](float logit, int id) { sum += staying(logit, id); });
    }
#pragma unroll
    for (int j = 0; j < TILE_LOADS; j++) {
        int id = first + j * 4;
        x[j] = without(x[j], bits.held >> j * 4);
        sum += staying(x[j].x, id) + staying(x[j].y, id + 1) + staying(x[j].z, id + 2) + staying(x[j].w, id + 3);
    }
    upto = warp_scan_u64(sum);
    target = share_of((double)(target - running) / (double)weight, __shfl_sync(0xffffffffu, upto, WARP - 1));
    owner = __ffs(__ballot_sync(0xffffffffu, upto >= target)) - 1;
    target -= __shfl_sync(0xffffffffu, upto - sum, owner);
    int id = __shfl_sync(0xffffffffu, first, owner) + lane;
    float logit = id < v.vocab_size ? v.logits[id] : -INFINITY;
    uint32_t held = __shfl_sync(0xffffffffu, bits.held, owner), marked = __shfl_sync(0xffffffffu, bits.marked, owner);
    uint32_t seen = __shfl_sync(0xffffffffu, bits.seen, owner);
    if (held >> lane & 1u) logit = changed_logit(logit, id, marked >> lane & 1u, seen >> lane & 1u);
    upto = warp_scan_u64(staying(logit, id));
    return __shfl_sync(0xffffffffu, id, __ffs(__ballot_sync(0xffffffffu, upto >= target)) - 1);
}

/* The k-th largest of this cta's tile maxima; -inf: so many tiles there are not. At least k tokens reach it. Ends with a barrier. */
static __device__ __noinline__ float kth_max(const float *max, int num_tiles, int k)
{
    struct sample_shared *s = cta_state();
    int tile = threadIdx.x, ahead = 0;

    if (threadIdx.x == 0) s->counter = __float_as_uint(-INFINITY);
    __syncthreads();
    if (tile < num_tiles) {
        for (int other = 0; other < num_tiles; other++) ahead += max[other] > max[tile] || (max[other] == max[tile] && other < tile);
        if (ahead == k - 1) s->counter = __float_as_uint(max[tile]);
    }
    __syncthreads();
    float kth = __uint_as_float(s->counter);
    __syncthreads();
    return kth;
}

/* Temperature, cuts, draw. The token in the first warp of one cta of the team, TOKEN_NONE elsewhere. */
static __device__ __noinline__ token_id draw(struct team *team, const struct sampling_row &row, const struct row_max &max)
{
    struct sample_shared *s = cta_state();
    struct row_view &v = s->view;
    const struct sampling_params &p = row.params;
    float inverse = 1.0f / p.temperature, top_p = p.top_p, share = uniform_number(p.seed, p.choice, row.num_generated);
    int top_k = p.top_k > 0 && p.top_k < v.vocab_size ? p.top_k : 0;
    token_id token;
    uint64_t cut;

    if (threadIdx.x == 0) {
        v.max = max.changed;
        v.scale = inverse * LOG2E;
        v.min_p = p.min_p > 0.0f ? p.min_p : 0.0f;
    }
    __syncthreads();
    uint64_t mine = scale_tiles(s->max, s->sum, v.max, v.scale), total = 0;
    if (top_k == 0 && top_p >= 1.0f && v.min_p == 0.0f) return draw_by_tiles(team, share, false, 0);

    /* Every cta has k / ranks tokens that reach the bound which it tells: k tokens reach the least of these. */
    float bound = top_k > 0 ? kth_max(s->max, v.num_tiles, (top_k + team->ranks - 1) / team->ranks) : -INFINITY;
    if (threadIdx.x == 0) s->counter = 0;                    /* of gather() */
    tell(s, team, mine, __float_as_uint(bound));
    for (int rank = 0; rank < team->ranks; rank++) {
        total += told_by(s, *team, rank).a;
        bound = fminf(bound, __uint_as_float((uint32_t)told_by(s, *team, rank).b));
    }
    /* How far from the largest a cut can lie: the histogram has nothing else to count. Of what lies further than the bound
     * of top_p each token weighs so little that all of them together do not fill the share that is cut off. */
    float distance = fminf((v.max - fmaxf(max.min, bound)) * inverse, MAX_DISTANCE);
    if (v.min_p > 0.0f) distance = fminf(distance, -logf(v.min_p));
    else if (top_k == 0) distance = fminf(distance, logf((float)v.vocab_size / ((1.0f - top_p) * (float)of_fixed(total))));
    float bin_scale = inverse * (float)(BINS - 1) / (distance * 1.001f + 1e-3f);
    if (draw_truncated(team, bin_scale, bound > -INFINITY, top_k, top_p, total, share, &token, &cut)) return token;
    return draw_by_tiles(team, share, true, cut);
}

/* ---- what is reported ---- */

/* How many tokens of this cta come before `key` among the raw logits. Barriers of the cta. */
static __device__ __noinline__ uint32_t count_ahead(uint64_t key)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    float own = key_logit(key);
    uint32_t ahead = 0, total;
    for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS)
        if (s->raw_max[tile] >= own) for_tile(v, tile, true, [&](float logit, int id) { ahead += key_of(logit, id) > key; });
    cta_scan_u32(ahead, &total);
    return total;
}

/* The n largest raw keys of the row, falling, in rank 0's list; bound: a logit that n tokens reach, if so many there are. Mostly a
 * few more than n reach it; where they are too many for the list, a better one is searched for by halves. The team's counters
 * are 0. Barriers of the team. */
static __device__ __noinline__ void take_top(const struct team &team, float bound, int n)
{
    struct sample_shared *s = cta_state(), *first = at_rank(team, s, 0);
    const struct row_view &v = s->view;
    uint64_t least = key_of(bound, SAMPLE_MAX_VOCAB), low = 0, high = ~0ull;     /* n keys or all are >= low, fewer than n >= high */

    for (;;) {
        float floor = key_logit(least);
        for (int tile = threadIdx.x / WARP; tile < v.num_tiles; tile += SAMPLE_WARPS) {
            if (!(s->raw_max[tile] >= floor)) continue;
            for_tile(v, tile, true, [&](float logit, int id) {
                if (!(logit >= floor) || id >= v.vocab_size) return;
                uint64_t key = key_of(logit, id);
                if (key < least) return;
                uint32_t at = atomicAdd(&first->counter, 1u);
                if (at < LIST) first->list[at] = key;
            });
        }
        team_barrier(team);
        int count = (int)first->counter;
        bool fits = count <= LIST && (count >= n || low == 0);
        team_has_read(team);
        if (fits && team.rank == 0) sort_list(count);
        team_join(team);
        if (fits) return;
        __syncthreads();
        if (threadIdx.x == 0) s->counter = 0;
        team_barrier(team);
        if (count >= n) low = least;
        else high = least;
        least = low + (high - low) / 2;
    }
}

static __device__ void write_head(const struct sample_kernel &a, int r, token_id token, float logprob, int rank, int num_top)
{
    uint4 *head = (uint4 *)&a.heads[r];
    head[0] = make_uint4((uint32_t)token, __float_as_uint(logprob), (uint32_t)rank, (uint32_t)num_top);
    head[1] = make_uint4(token == TOKEN_NONE, 0, 0, 0);
}

static __device__ void add_count(uint16_t *counts, int64_t at)                             /* saturating; others may add too */
{
    uint32_t *word = (uint32_t *)((uintptr_t)&counts[at] & ~(uintptr_t)3), shift = (uintptr_t)&counts[at] & 2 ? 16 : 0;
    for (uint32_t old = *(volatile uint32_t *)word;;) {
        if ((old >> shift & 0xffffu) == 0xffffu) return;
        uint32_t seen = atomicCAS(word, old, old + (1u << shift));
        if (seen == old) return;
        old = seen;
    }
}

/* What the next step needs of a drawn token. */
static __device__ void remember(const struct sample_kernel &a, const struct sampling_row &row, token_id token)
{
    a.last_tokens[row.slot] = token;
    if (!row.use_penalties) return;
    atomicOr(&a.seen[(int64_t)row.slot * ((a.vocab_size + 31) / 32) + token / 32], 1u << token % 32);
    add_count(a.counts, (int64_t)row.slot * a.vocab_size + token);
}

static_assert(sizeof(struct sample_head) == 32 && sizeof(struct token_logprob) == 8, "written in 16-byte pieces");

/* Logprob, rank and tops of a token that one cta knows (its first warp; TOKEN_NONE elsewhere). */
static __device__ __noinline__ void report(struct team *team, const struct sample_kernel &a, int r, token_id token, float raw_max)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    int num_logprobs = a.rows[r].params.num_logprobs, num_top = min(min(num_logprobs, MAX_TOP_LOGPROBS), v.vocab_size);
    uint64_t total = scale_tiles(s->raw_max, s->raw_sum, raw_max, LOG2E);
    uint32_t ahead = 0;

    tell(s, team, (uint32_t)token, total);
    total = 0;
    for (int rank = 0; rank < team->ranks; rank++) {
        token_id here = (token_id)(uint32_t)told_by(s, *team, rank).a;
        if (here != TOKEN_NONE) token = here;
        total += told_by(s, *team, rank).b;
    }
    float log_z = raw_max + logf((float)of_fixed(total)), own = v.logits[token];
    if (num_logprobs >= 0) {
        uint32_t here = count_ahead(key_of(own, token));
        float bound = num_top > 0 ? kth_max(s->raw_max, v.num_tiles, (num_top + team->ranks - 1) / team->ranks) : 0.0f;
        if (threadIdx.x == 0) s->counter = 0;
        tell(s, team, here, __float_as_uint(bound));
        for (int rank = 0; rank < team->ranks; rank++) {
            ahead += (uint32_t)told_by(s, *team, rank).a;
            bound = fminf(bound, __uint_as_float((uint32_t)told_by(s, *team, rank).b));
        }
        if (num_top > 0) take_top(*team, bound, num_top);
    }
    if (team->rank != 0) return;
    if (threadIdx.x == 0) write_head(a, r, token, own - log_z, num_logprobs >= 0 ? (int)ahead + 1 : 0, max(num_top, 0));
    if ((int)threadIdx.x * 2 < num_top) {
        uint64_t first = s->list[threadIdx.x * 2], second = threadIdx.x * 2 + 1 < num_top ? s->list[threadIdx.x * 2 + 1] : first;
        ((uint4 *)(a.tops + (int64_t)r * MAX_TOP_LOGPROBS))[threadIdx.x] =
            make_uint4(key_id(first), __float_as_uint(key_logit(first) - log_z), key_id(second), __float_as_uint(key_logit(second) - log_z));
    }
}

__global__ void __launch_bounds__(SAMPLE_THREADS, ROWS_PER_SM) sample_rows(const __grid_constant__ struct sample_kernel a, int ranks)
{
    struct sample_shared *s = cta_state();
    struct team team = { (int)blockIdx.x % ranks, ranks, 0 };
    int r = blockIdx.x / ranks, tiles = (a.vocab_size + TILE - 1) / TILE, per_rank = (tiles + ranks - 1) / ranks;

    pdl_trigger();
    pdl_wait();
    const struct sampling_row &row = a.rows[r];
    const struct sampling_params &p = row.params;
    if (row.slot < 0) return;
    team_begin(s, team);

    bool is_target = row.target >= 0, reports = is_target || p.num_logprobs >= 0, draws = !is_target && !is_greedy(p);
    struct row_view v = {};
    v.logits = a.logits + (int64_t)r * a.vocab_size;
    v.vocab_size = a.vocab_size;
    v.first_tile = team.rank * per_rank;
    v.num_tiles = min(max(tiles - v.first_tile, 0), per_rank);
    v.is_aligned = a.vocab_size % 4 == 0;
    v.has_allowed = !is_target && row.allow_count > 0;
    v.has_bias = !is_target && row.bias_count > 0;
    v.has_hash = v.has_bias && row.bias_count <= HASH / 4 * 3;
    v.has_penalties = !is_target && row.use_penalties && has_penalties(p);
    v.is_changed = v.has_allowed || v.has_bias || v.has_penalties;
    v.bias_ids = a.bias_ids + row.bias_begin;
    v.bias_values = a.bias_values + row.bias_begin;
    v.bias_count = (int)row.bias_count;
    v.seen = a.seen + (int64_t)row.slot * ((a.vocab_size + 31) / 32);
    v.counts = a.counts + (int64_t)row.slot * a.vocab_size;
    v.repetition = p.repetition_penalty;
    v.frequency = p.frequency_penalty;
    v.presence = p.presence_penalty;
    if (threadIdx.x == 0) s->view = v;
    __syncthreads();
    if (v.has_allowed || v.has_bias) prepare_changes(a.bias_ids + row.allow_begin, v.has_allowed ? (int)row.allow_count : 0);

    struct pass pass = { reports, draws, !draws && !is_target, draws, LOG2E / p.temperature };
    if (v.is_changed) first_pass<true>(pass);
    else first_pass<false>(pass);
    __syncthreads();
    team_join(team);
    struct row_max max = find_max(v, s, &team);
    if (!isfinite(max.raw) || !isfinite(max.changed) || row.target >= a.vocab_size) {
        if (team.rank == 0 && threadIdx.x == 0) {
            write_head(a, r, TOKEN_NONE, 0.0f, 0, 0);
            if (!is_target) a.last_tokens[row.slot] = TOKEN_NONE;
        }
        return;
    }
    token_id token = TOKEN_NONE;
    if (is_target) token = row.target;
    else if (draws) token = draw(&team, row, max);
    else if (team.rank == 0) token = max.first;
    if (threadIdx.x == 0 && token != TOKEN_NONE && !is_target) {
        remember(a, row, token);
        if (!reports) write_head(a, r, token, 0.0f, 0, 0);
    }
    if (reports) report(&team, a, r, token, max.raw);
}

/* counts and seen of one slot from its whole history; one cta per entry. */
__global__ void __launch_bounds__(1024) sample_history(const struct sample_kernel a)
{
    pdl_trigger();
    pdl_wait();
    const struct history_entry entry = a.history[blockIdx.x];
    int words = (a.vocab_size + 31) / 32;
    uint32_t *seen = a.seen + (int64_t)entry.slot * words;
    int64_t counts = (int64_t)entry.slot * a.vocab_size;

    for (int i = threadIdx.x; i < words; i += blockDim.x) seen[i] = 0;
    if (a.vocab_size % 8 == 0)
        for (int i = threadIdx.x; i < a.vocab_size / 8; i += blockDim.x) ((uint4 *)(a.counts + counts))[i] = make_uint4(0, 0, 0, 0);
    else
        for (int i = threadIdx.x; i < a.vocab_size; i += blockDim.x) a.counts[counts + i] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < entry.num_prompt + entry.num_output; i += blockDim.x) {
        token_id token = a.history_tokens[entry.begin + i];
        if (token < 0 || token >= a.vocab_size) continue;
        atomicOr(&seen[token / 32], 1u << token % 32);
        if (i >= entry.num_prompt) add_count(a.counts, counts + token);
    }
}

/* Ctas per row: as many as have a multiprocessor each; a row of few tiles is not worth a team. */
static int team_size(int sm, int num_sms, int num_rows, int vocab_size)
{
    int ranks = sm >= 90 ? 8 : 1;
    while (ranks > 1 && (ranks * num_rows > num_sms || ranks * 4 * TILE > vocab_size)) ranks /= 2;
    return ranks;
}

static int launch_teams(const struct sample_kernel *a, const struct launch *l, int ranks)
{
    int tiles = (a->vocab_size + TILE - 1) / TILE;
    size_t shared = sizeof(struct sample_shared) + (size_t)((tiles + ranks - 1) / ranks) * (TILE / 8);

    if (cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) != cudaSuccess) return ERR_INTERNAL;
    if (ranks > 8 && cudaFuncSetAttribute(sample_rows, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) return ERR_INTERNAL;
    return launch_clusters(l, ranks, sample_rows, dim3(a->num_rows * ranks), dim3(SAMPLE_THREADS), shared, *a, ranks);
}

/* What a row needs lies in the shared memory of its team. */
extern "C" size_t sample_workspace_bytes(int32_t max_rows, int32_t vocab_size)
{
    (void)max_rows;
    (void)vocab_size;
    return 0;
}

extern "C" int launch_sample_history(const struct sample_kernel *a, const struct launch *l)
{
    if (a->num_history < 1) return 0;
    return launch_kernel(l, sample_history, dim3(a->num_history), dim3(1024), 0, *a);
}

extern "C" int launch_sample(const struct sample_kernel *a, const struct launch *l)
{
    if (a->num_rows < 1 || a->vocab_size < 1 || a->vocab_size > SAMPLE_MAX_VOCAB) return ERR_UNSUPPORTED;
    int rc = launch_sample_history(a, l);
    return rc != 0 ? rc : launch_teams(a, l, team_size(l->sm, l->num_sms, a->num_rows, a->vocab_size));
}
