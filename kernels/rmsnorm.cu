/* rmsnorm.cu - r[t,:] += x[t,:];  out[t,:] = r[t,:] * rsqrt(mean(r[t,:]^2) + eps) * w                op: backend.rmsnorm
 * Shapes    x, out [T, C] elem, r [T, C] f32, w [C] f32, row-major; C % 8 == 0, C <= 16384; x may be NULL; out == x allowed.
 *           With rows: out [R, C], row r from token rows[r].token, r is only read.
 * Traffic   T*C*(2 + 4) read + T*C*(4 + 2) written + w.  T=8192 C=4096: 403 MB.
 * Roofline  memory bound: 94 us at 4.27 TB/s (H200 copy); at T <= 64 the launch and one trip to L2.
 * Launch    grid T ctas of one row each; a thread holds UNITS groups of four elements in registers.
 * Order     fixed reduction tree per row, chosen by C alone: the result does not depend on T.
 * Oracle    plain loops, tests/kernels/rmsnorm_test.c.  Figures: kernels/README.md.
 * Why       groups of four: the f32 stream moves 16 bytes per thread, in one contiguous run per warp. w is read before the
 *           wait, so that it arrives while the predecessor drains. */
#include "common.cuh"

namespace {

constexpr int RMSNORM_MAX_HIDDEN = 16384;

template <int UNITS>
__global__ void rmsnorm_row(const elem *x, float *residual, const float *weight, elem *out, const struct sampling_row *rows,
                            int hidden, float eps)
{
    __shared__ float scratch[WARP];
    int units = hidden / 4;
    float4 w[UNITS], r[UNITS];
    uint2 add[UNITS];

    pdl_trigger();
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int at = threadIdx.x + u * blockDim.x;
        w[u] = at < units ? __ldg((const float4 *)weight + at) : make_float4(0, 0, 0, 0);
    }
    pdl_wait();
    int64_t token = rows ? max(rows[blockIdx.x].token, 0) : blockIdx.x;
    float4 *residual_row = (float4 *)residual + token * units;
    const uint2 *x_row = (const uint2 *)x + token * units;
    uint2 *out_row = (uint2 *)out + (int64_t)blockIdx.x * units;

#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int at = threadIdx.x + u * blockDim.x;
        bool inside = at < units;
        r[u] = inside ? residual_row[at] : make_float4(0, 0, 0, 0);
        add[u] = inside && x ? x_row[at] : make_uint2(0, 0);
    }
    float sum = 0.0f;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int at = threadIdx.x + u * blockDim.x;
        float2 low = to_finite2(*(const elem2 *)&add[u].x), high = to_finite2(*(const elem2 *)&add[u].y);
        r[u] = make_float4(r[u].x + low.x, r[u].y + low.y, r[u].z + high.x, r[u].w + high.y);
        sum += (r[u].x * r[u].x + r[u].y * r[u].y) + (r[u].z * r[u].z + r[u].w * r[u].w);
        if (x && !rows && at < units) residual_row[at] = r[u];
    }
    float scale = rsqrtf(block_sum(sum, scratch) / (float)hidden + eps);
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int at = threadIdx.x + u * blockDim.x;
        elem2 low = to_elem2(r[u].x * scale * w[u].x, r[u].y * scale * w[u].y);
        elem2 high = to_elem2(r[u].z * scale * w[u].z, r[u].w * scale * w[u].w);
        if (at < units) out_row[at] = make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
    }
}

template <int UNITS>
static int launch_rows(const struct rmsnorm_kernel *a, const struct launch *l)
{
    int threads = (a->hidden / 4 + UNITS - 1) / UNITS;
    return launch_kernel(l, rmsnorm_row<UNITS>, dim3(a->num_tokens), dim3((threads + WARP - 1) / WARP * WARP), 0,
                         (const elem *)a->x, a->residual, a->weight, (elem *)a->out, a->rows, a->hidden, a->eps);
}

} // namespace

extern "C" int ELEM_NAME(launch_rmsnorm)(const struct rmsnorm_kernel *a, const struct launch *l)
{
    if (a->num_tokens < 1 || a->hidden < 8 || a->hidden % 8 != 0 || a->hidden > RMSNORM_MAX_HIDDEN) return ERR_UNSUPPORTED;
    if (a->hidden <= 1024) return launch_rows<1>(a, l);
    if (a->hidden <= 8192) return launch_rows<2>(a, l);
    return launch_rows<4>(a, l);
}

ELEM_DOOR(launch_rmsnorm, rmsnorm_kernel)
