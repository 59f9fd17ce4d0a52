/* launch.cu - the doors of the ops that touch elements: to the bfloat16 build of the op's file, or to its float16 build.
 * An op more: its row here, and its file in ELEMENT_OPS of CMakeLists.txt. */
#include <sluice/kernels.h>

#include "gemm_skinny_plan.h"
#include "gemm_sm90_plan.h"
#include "gemv_plan.h"

#define DOOR(name, args)                                                                                   \
    extern "C" int name##_bf16(const struct args *, const struct launch *);                                \
    extern "C" int name##_f16(const struct args *, const struct launch *);                                 \
    extern "C" int name(const struct args *a, const struct launch *l) { return (l->f16 ? name##_f16 : name##_bf16)(a, l); }
#define PLANNED_DOOR(name, args, plan)                                                                     \
    extern "C" int name##_bf16(const struct args *, const struct plan *, const struct launch *);           \
    extern "C" int name##_f16(const struct args *, const struct plan *, const struct launch *);            \
    extern "C" int name(const struct args *a, const struct plan *p, const struct launch *l) { return (l->f16 ? name##_f16 : name##_bf16)(a, p, l); }

DOOR(launch_embed, embed_kernel)
DOOR(launch_rmsnorm, rmsnorm_kernel)
DOOR(launch_rope_store, rope_store_kernel)
DOOR(launch_silu_mul, silu_mul_kernel)
DOOR(launch_attn_decode, attn_decode_kernel)
DOOR(launch_attn_prefill, attn_prefill_kernel)
DOOR(launch_gemv, gemv_kernel)
PLANNED_DOOR(launch_gemv_planned, gemv_kernel, gemv_plan)
DOOR(launch_gemm_skinny, gemv_kernel)
PLANNED_DOOR(launch_gemm_skinny_planned, gemv_kernel, gemm_skinny_plan)
DOOR(launch_gemm, gemm_kernel)
PLANNED_DOOR(launch_gemm_planned, gemm_kernel, gemm_sm90_plan)
DOOR(launch_dummy, dummy_kernel)
