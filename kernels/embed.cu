/* embed.cu - out[t,:] = table[ids[t] - first_row,:], zeros where that row is not in this shard      op: backend.embed
 * Shapes    ids [T] i32, table [num_rows, C] elem, out [T, C] f32; C % 8 == 0.
 * Traffic   T*C*2 read + T*C*4 written.  T=8192 C=4096: 201 MB.
 * Roofline  memory bound: 47 us at 4.27 TB/s (H200 copy); at T <= 64 the launch is all there is.
 * Launch    one thread per UNITS groups of four elements (8 bytes in, 16 out), flat over T*C/4: any C fills its ctas.
 * Order     no sums.
 * Oracle    plain copy, tests/kernels/embed_test.c.  Figures: kernels/README.md.
 * Why       four elements and not eight: then a warp's stores are one contiguous run of 512 bytes. */
#include "common.cuh"

namespace {

constexpr int EMBED_THREADS = 256;

template <int UNITS>
__global__ void __launch_bounds__(EMBED_THREADS)
embed_rows(const token_id *ids, const elem *table, float *out, int num_units, int units_per_row, token_id first_row, int num_rows)
{
    pdl_trigger();
    pdl_wait();
    int first = blockIdx.x * (EMBED_THREADS * UNITS) + threadIdx.x;
    uint2 raw[UNITS];

#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int unit = first + u * EMBED_THREADS;
        raw[u] = make_uint2(0, 0);
        if (unit >= num_units) continue;
        int t = unit / units_per_row, at = unit - t * units_per_row;
        int64_t row = (int64_t)ids[t] - first_row;
        if (row >= 0 && row < num_rows) raw[u] = __ldg((const uint2 *)table + row * units_per_row + at);
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int unit = first + u * EMBED_THREADS;
        if (unit >= num_units) continue;
        float2 low = to_float2(*(const elem2 *)&raw[u].x), high = to_float2(*(const elem2 *)&raw[u].y);
        ((float4 *)out)[unit] = make_float4(low.x, low.y, high.x, high.y);
    }
}

} // namespace

extern "C" int ELEM_NAME(launch_embed)(const struct embed_kernel *a, const struct launch *l)
{
    if (a->num_tokens < 1 || a->hidden < 8 || a->hidden % 8 != 0) return ERR_UNSUPPORTED;
    if ((int64_t)a->num_tokens * a->hidden / 4 > INT32_MAX / 2) return ERR_UNSUPPORTED;
    int units_per_row = a->hidden / 4, num_units = a->num_tokens * units_per_row;
    bool wide = num_units >= l->num_sms * 8 * EMBED_THREADS;       /* enough ctas either way: two loads in flight */
    int per_cta = EMBED_THREADS * (wide ? 2 : 1);
    dim3 grid((num_units + per_cta - 1) / per_cta);
    return launch_kernel(l, wide ? embed_rows<2> : embed_rows<1>, grid, dim3(EMBED_THREADS), 0, a->ids,
                         (const elem *)a->table, a->out, num_units, units_per_row, a->first_row, a->num_rows);
}

ELEM_DOOR(launch_embed, embed_kernel)
