/* dummy.cu - random weights near N(0, 0.02) made where they are needed: element (row, col) is a function of its arguments alone, the
 * same as dummy_row() of model/weights.c, rounded to an element.                                                      op: store_dummy
 * Shapes      out [R, C] elem.
 * Traffic     R*C*2 written; 16 GB (8B): 3.7 ms at 4.4 TB/s. About 60 integer operations an element: 35 ms for 8B.
 * Launch      grid-stride, 256 threads, two elements a thread and step.
 * Oracle      dummy_row(), tests/kernels/step_test.c. */
#include "common.cuh"

namespace {

constexpr int THREADS = 256;

/* The finaliser of splitmix64, then the sum of four uniform 16-bit numbers. */
__device__ float dummy_value(uint64_t row_key, int64_t col)
{
    const float scale = 0.02f * 1.7320508f / 65536.0f;
    uint64_t x = row_key ^ ((uint64_t)col * 0xD1342543DE82EF95u);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    uint64_t sum = (x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + (x >> 48);
    return (float)((int32_t)sum - 131070) * scale;
}

__global__ void __launch_bounds__(THREADS) dummy(struct dummy_kernel a)
{
    elem *out = (elem *)a.out;
    for (int64_t row = blockIdx.y; row < a.num_rows; row += gridDim.y) {
        uint64_t key = a.key + (uint64_t)(a.first_row + row) * 0x9E3779B97F4A7C15u;
        for (int64_t col = blockIdx.x * THREADS + threadIdx.x; col < a.num_cols; col += (int64_t)gridDim.x * THREADS)
            out[row * a.num_cols + col] = to_elem(dummy_value(key, a.first_col + col));
    }
}

} // namespace

extern "C" int ELEM_NAME(launch_dummy)(const struct dummy_kernel *a, const struct launch *l)
{
    if (a->num_rows < 1 || a->num_cols < 1) return 0;
    struct launch plain = *l;
    plain.pdl = false;
    int64_t blocks = (a->num_cols + THREADS - 1) / THREADS;
    return launch_kernel(&plain, dummy, dim3(blocks < 16 ? (unsigned)blocks : 16, a->num_rows < 2048 ? (unsigned)a->num_rows : 2048), dim3(THREADS), 0, *a);
}

ELEM_DOOR(launch_dummy, dummy_kernel)
