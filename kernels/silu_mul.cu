/* silu_mul.cu - out[t,f] = g / (1 + exp(-g)) * u,  g = gate_up[t,f], u = gate_up[t,F+f]           op: backend.silu_mul
 * Shapes    gate_up [T, 2F], out [T, F], elem row-major; F % 8 == 0; fp32 inside.
 * Traffic   T*F*4 read + T*F*2 written.  T=8192 F=14336: 705 MB.
 * Roofline  memory bound: 165 us at 4.27 TB/s (H200 copy); at T <= 64 the launch is all there is.
 * Launch    one thread per eight elements (16-byte accesses), flat over T*F/8.
 * Order     no sums.
 * Oracle    plain loops, tests/kernels/silu_mul_test.c.  Figures: kernels/README.md.
 * Why       the ctas are many and small, so that the next loads are under way while others compute; two groups a thread were slower. */
#include "common.cuh"

namespace {

constexpr int SILU_THREADS = 256;

static __device__ __forceinline__ float silu(float g) { return __fdividef(g, 1.0f + __expf(-g)); }

__global__ void __launch_bounds__(SILU_THREADS)
silu_mul_rows(const uint4 *gate_up, uint4 *out, int num_units, int units_per_row)
{
    pdl_trigger();
    pdl_wait();
    int unit = blockIdx.x * SILU_THREADS + threadIdx.x;
    elem8 gate, up, y;

    if (unit >= num_units) return;
    const uint4 *at = gate_up + unit + (int64_t)(unit / units_per_row) * units_per_row;        /* a row holds gate, then up */
    gate.raw = at[0];
    up.raw = at[units_per_row];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 g = to_finite2(gate.pair[i]), u = to_finite2(up.pair[i]);
        y.pair[i] = to_elem2(silu(g.x) * u.x, silu(g.y) * u.y);
    }
    out[unit] = y.raw;
}

} // namespace

extern "C" int ELEM_NAME(launch_silu_mul)(const struct silu_mul_kernel *a, const struct launch *l)
{
    if (a->num_tokens < 1 || a->ffn < 8 || a->ffn % 8 != 0) return ERR_UNSUPPORTED;
    if ((int64_t)a->num_tokens * a->ffn / 8 > INT32_MAX / 2) return ERR_UNSUPPORTED;
    int units_per_row = a->ffn / 8, num_units = a->num_tokens * units_per_row;
    return launch_kernel(l, silu_mul_rows, dim3((num_units + SILU_THREADS - 1) / SILU_THREADS), dim3(SILU_THREADS), 0,
                         (const uint4 *)a->gate_up, (uint4 *)a->out, num_units, units_per_row);
}

ELEM_DOOR(launch_silu_mul, silu_mul_kernel)
