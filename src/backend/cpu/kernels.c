/* kernels.c - which table runs here. */
#include "kernels.h"

#if defined(__x86_64__)
static bool machine_has(enum cpu_isa isa)
{
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    switch (isa) {
    case CPU_ISA_AVX2: return avx2;
    case CPU_ISA_AVX512: return avx512;
    case CPU_ISA_AVX512_BF16: return avx512 && __builtin_cpu_supports("avx512bf16") &&
                                    __builtin_cpu_supports("avx512vnni");
    default: return isa == CPU_ISA_PORTABLE;
    }
}

const struct cpu_kernels *cpu_kernels_for(enum cpu_isa isa)
{
    if (!machine_has(isa)) return NULL;
    switch (isa) {
    case CPU_ISA_AVX2: return &cpu_kernels_avx2;
    case CPU_ISA_AVX512: return &cpu_kernels_avx512;
    case CPU_ISA_AVX512_BF16: return &cpu_kernels_avx512_bf16;
    default: return &cpu_kernels_portable;
    }
}
#else
const struct cpu_kernels *cpu_kernels_for(enum cpu_isa isa)
{
    return isa == CPU_ISA_PORTABLE ? &cpu_kernels_portable : NULL;
}
#endif

enum cpu_isa cpu_isa_best(void)
{
    int isa = CPU_ISA_COUNT - 1;
    while (!cpu_kernels_for((enum cpu_isa)isa)) isa--;
    return (enum cpu_isa)isa;
}

/* q and accumulators [ROWS][D], scores [ROWS][CHUNK], a gathered K chunk [D/2][CHUNK] of pairs, max and sum per row. */
size_t attend_scratch_bytes(int head_dim)
{
    size_t d = ((size_t)head_dim + 15) & ~(size_t)15;
    size_t floats = 2 * ATTEND_ROWS * d + ATTEND_ROWS * ATTEND_CHUNK + d / 2 * ATTEND_CHUNK + 2 * ATTEND_ROWS;
    return (floats * sizeof(float) + 63) & ~(size_t)63;
}
