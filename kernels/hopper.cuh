/* hopper.cuh - the instructions that only sm_90a has, each behind one small function: mbarriers, bulk tensor copies (TMA), warpgroup
 * matrix products (wgmma), register hand-over; and the host side of tensor maps. Private to kernels/.
 *
 * Device code that uses this sits inside #ifdef HOPPER_CODE: the other architectures compile an empty kernel.
 *
 * Tiles in shared memory: a tensor map's box is 64 elements wide (one 128-byte row) and R rows high, with the 128-byte swizzle. A tile of
 * C columns is C / 64 such panels one behind the other, each [R][64], each aligned to 1024 bytes. The swizzle permutes the
 * eight 16-byte pieces inside a row: piece c of row r lies at c ^ (r % 8). Copy engine and matrix unit undo it on both sides;
 * only code that reads a tile by ordinary loads has to know. Rows may come from several boxes of a multiple of 8 rows.
 *
 * A ring of stages, the usual loop (s = stage, phase flips each time the ring wraps; a fresh mbarrier is in phase 0):
 *   producer  mbar_wait(empty[s], phase ^ 1); mbar_expect(full[s], bytes); tma_load(..., full[s]);
 *   consumer  mbar_wait(full[s], phase); wgmma ...; wgmma_wait<0>(); mbar_arrive(empty[s]);
 * Consumers arrive once per warp (lane 0): the count of empty[s] is the number of consumer warps. */
#ifndef SLUICE_KERNELS_HOPPER_CUH
#define SLUICE_KERNELS_HOPPER_CUH

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "common.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#endif

constexpr int WARPGROUP = 128;           /* threads that issue one wgmma together; the first one's index is a multiple of it */
constexpr int PANEL = 64;                /* columns of a swizzled panel */
constexpr int PANEL_ROW_BYTES = 128;
constexpr int TILE_ALIGN = 1024;         /* eight rows: the period of the swizzle */

__device__ __forceinline__ uint32_t smem_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* ---- mbarriers ---- */

__device__ __forceinline__ void mbar_init(uint64_t *bar, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(smem_address(bar)), "r"(arrivals));
}

/* After the inits, by the thread that made them, before the __syncthreads() that shows them to the others: the copy engine must
 * see them too. */
__device__ __forceinline__ void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void mbar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(smem_address(bar)) : "memory");
}

/* As many arrivals at once. */
template <int N> __device__ __forceinline__ void mbar_arrive_for(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" :: "r"(smem_address(bar)), "n"(N) : "memory");
}

/* One arrival, and the phase ends only when `bytes` more have been copied in. */
__device__ __forceinline__ void mbar_expect(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(smem_address(bar)), "r"(bytes) : "memory");
}

/* Until the phase with this parity is over. Sleeps in hardware between tries. */
__device__ __forceinline__ void mbar_wait(uint64_t *bar, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra out;\n"
                 "bra again;\n"
                 "out:\n"
                 "}" :: "r"(smem_address(bar)), "r"(parity) : "memory");
}

/* Barrier 1..15 of the block (0 is __syncthreads): `threads` in all arrive, some of them without waiting. */
__device__ __forceinline__ void named_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

/* ---- clusters: blocks that run at the same time and see each other's shared memory. Rank: 0 .. size - 1 along x. ---- */

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all blocks of the cluster: before the first access to another block (it may not have started), and before leaving
 * while others may still access this one. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The same in two halves. */
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/* One arrival at the same barrier of block `rank`. It orders nothing of this thread's beyond its block, so it costs no fence: enough
 * to say that shared memory has been read by wgmma. */
__device__ __forceinline__ void mbar_arrive_cluster(uint64_t *bar, uint32_t rank)
{
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" :: "r"(smem_address(bar)), "r"(rank) : "memory");
}

/* The same place in the shared memory of block `rank`, for ordinary loads. */
template <typename T> __device__ __forceinline__ const T *cluster_map(const T *p, uint32_t rank)
{
    uint64_t there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((uint64_t)p), "r"(rank));
    return (const T *)there;
}
/* Where `address` of this block's shared memory lies in block `rank`, and a store there that counts its 16 bytes on that block's barrier. */
__device__ __forceinline__ uint32_t cluster_address(const void *address, uint32_t rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(smem_address(address)), "r"(rank));
    return there;
}
__device__ __forceinline__ void cluster_store(uint32_t there, float4 v, uint32_t bar)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
                 :: "r"(there), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(bar) : "memory");
}

/* ---- bulk tensor copies; one thread issues, bar counts the bytes. Elements outside the tensor arrive as zeros and count. ---- */

__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map)       /* the map itself, into the descriptor cache */
{
    asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}
__device__ __forceinline__ void tma_load_2d(void *smem, const CUtensorMap *map, int x, int y, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 :: "r"(smem_address(smem)), "l"(map), "r"(x), "r"(y), "r"(smem_address(bar)) : "memory");
}
/* How long a box stays in the L2: words that the copy engine takes as they are. */
constexpr uint64_t L2_EVICT_NORMAL = 0x1000000000000000, L2_EVICT_FIRST = 0x12F0000000000000, L2_EVICT_LAST = 0x14F0000000000000;
__device__ __forceinline__ void tma_load_2d_hinted(void *smem, const CUtensorMap *map, int x, int y, uint64_t *bar, uint64_t l2)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
                 :: "r"(smem_address(smem)), "l"(map), "r"(x), "r"(y), "r"(smem_address(bar)), "l"(l2) : "memory");
}
/* The same box for every block of the cluster whose bit is set, to the same place in each and counted by the same barrier of each. */
__device__ __forceinline__ void tma_load_2d_multicast(void *smem, const CUtensorMap *map, int x, int y, uint64_t *bar, uint32_t blocks, uint64_t l2)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;"
                 :: "r"(smem_address(smem)), "l"(map), "r"(x), "r"(y), "r"(smem_address(bar)), "h"((uint16_t)blocks), "l"(l2) : "memory");
}
__device__ __forceinline__ void tma_load_3d(void *smem, const CUtensorMap *map, int x, int y, int z, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
                 :: "r"(smem_address(smem)), "l"(map), "r"(x), "r"(y), "r"(z), "r"(smem_address(bar)) : "memory");
}
__device__ __forceinline__ void tma_load_4d(void *smem, const CUtensorMap *map, int x, int y, int z, int w, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
                 :: "r"(smem_address(smem)), "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(smem_address(bar)) : "memory");
}
__device__ __forceinline__ void tma_load_5d(void *smem, const CUtensorMap *map, int x, int y, int z, int w, int v, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], [%7];"
                 :: "r"(smem_address(smem)), "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v), "r"(smem_address(bar)) : "memory");
}
__device__ __forceinline__ void tma_store_2d(const CUtensorMap *map, const void *smem, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
                 :: "l"(map), "r"(x), "r"(y), "r"(smem_address(smem)) : "memory");
}
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Until at most N groups still read shared memory: their source may be overwritten. */
template <int N> __device__ __forceinline__ void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory"); }
template <int N> __device__ __forceinline__ void tma_store_wait() { asm volatile("cp.async.bulk.wait_group %0;" :: "n"(N) : "memory"); }

/* Ordinary stores to shared memory before this are seen by copy engine and matrix unit after it: in every storing thread, then a
 * barrier. */
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Sums of wgmma, packed to bf16 pairs, as rows: lane l gives the address of row l % 8 of matrix l / 8, of 8 x 8 each. */
__device__ __forceinline__ void store_matrices(uint32_t smem, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(smem), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void store_matrices(uint32_t smem, uint32_t a, uint32_t b)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" :: "r"(smem), "r"(a), "r"(b) : "memory");
}

/* ---- registers: the producer gives most of its share to the consumers. N % 8 == 0; whole warpgroups, and the kernel needs
 * __launch_bounds__(threads, 1) ---- */

template <int N> __device__ __forceinline__ void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> __device__ __forceinline__ void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }

/* ---- wgmma: D[64, N] (+)= A[64, 16] * B[N, 16]^T for one warpgroup, elements in, fp32 sums ----
 * Warp w of the group holds rows 16 w .. 16 w + 15. Lane l, row r = l / 4 (and r + 8): D is laid out as with mma.m16n8k16:
 *   d[4 j + 0, 1] = row r,     columns 8 j + 2 (l % 4) + 0, 1
 *   d[4 j + 2, 3] = row r + 8, the same columns          j = 0 .. N / 8 - 1
 * A in registers: a[0..3] are that layout of two neighbouring 8-column groups packed to pairs of elements: (r, j), (r + 8, j),
 * (r, j + 1), (r + 8, j + 1). So D of one product becomes A of the next without a shuffle. */

/* Descriptor of a panel with K contiguous (rows of the panel = rows of the operand). A step of 16 along K adds 2, eight rows 64.
 * eight_rows: bytes from eight rows to the next eight, 1024 where they follow each other. */
__device__ __forceinline__ uint64_t wgmma_desc_k(const void *panel, uint32_t eight_rows = 1024)
{
    return (uint64_t)((smem_address(panel) & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(eight_rows >> 4) << 32 | (uint64_t)1 << 62;
}

/* Descriptor of B with N contiguous (rows of the panel = K): for wgmma with TRANSPOSED. panel_bytes: from one panel of 64 columns
 * to the next. A step of 16 along K adds 128 (16 rows of 128 bytes). */
__device__ __forceinline__ uint64_t wgmma_desc_n(const void *panel, uint32_t panel_bytes)
{
    return (uint64_t)((smem_address(panel) & 0x3FFFF) >> 4) | (uint64_t)(panel_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* The descriptor `step` units of 16 bytes further on: the address is in the low word and does not carry. */
__device__ __forceinline__ uint64_t wgmma_desc_at(uint64_t desc, uint32_t step)
{
    return (desc & 0xFFFFFFFF00000000u) | ((uint32_t)desc + step);
}

/* Before the first wgmma, and again whenever ordinary code touched registers that the next wgmma reads or writes. */
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until at most N committed groups are unfinished. The compiler does not know which registers a group writes: pass them through
 * wgmma_hold() after the wait. */
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

/* The operand lists of the instruction text: registers of D are %0 .. %(N/2-1), what follows is numbered after them. */
#define WG_R8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WG_R16(d, i) WG_R8(d, i), WG_R8(d, i + 8)
#define WG_R32(d, i) WG_R16(d, i), WG_R16(d, i + 16)
#define WG_R64(d, i) WG_R32(d, i), WG_R32(d, i + 32)
#define WG_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WG_T4 "%0,%1,%2,%3"
#define WG_T8 WG_T4 ",%4,%5,%6,%7"
#define WG_T12 WG_T8 ",%8,%9,%10,%11"
#define WG_T16 WG_T12 ",%12,%13,%14,%15"
#define WG_T24 WG_T16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define WG_T32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WG_T40 WG_T32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define WG_T48 WG_T40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WG_T64 WG_T48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WG_T80 WG_T64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define WG_T96 WG_T80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WG_T112 WG_T96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define WG_T128 WG_T96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

template <int N> struct wgmma_shape;

/* ss: A and B by descriptor. rs: A in registers. accumulate 0: D is overwritten. TRANSPOSED: B is N-contiguous (wgmma_desc_n). */
#define WGMMA_SHAPE(N, TEXT, REGS, n0, n1, n2, n3, n4, n5, n6) \
    template <> struct wgmma_shape<N> { \
        template <int TRANSPOSED> static __device__ __forceinline__ void ss(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) \
        { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" n2 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ELEM_PTX "." ELEM_PTX " {" TEXT "}, %" n0 ", %" n1 ", p, 1, 1, 0, %" n3 ";\n}" \
                         : REGS : "l"(a), "l"(b), "r"(accumulate), "n"(TRANSPOSED)); \
        } \
        template <int TRANSPOSED> static __device__ __forceinline__ void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) \
        { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" n5 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ELEM_PTX "." ELEM_PTX " {" TEXT "}, {%" n0 ", %" n1 ", %" n2 ", %" n3 "}, %" n4 ", p, 1, 1, %" n6 ";\n}" \
                         : REGS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANSPOSED)); \
        } \
    }
#define WG_COMMA ,
WGMMA_SHAPE(8, WG_T4, WG_R4(d, 0), "4", "5", "6", "7", "8", "9", "10");
WGMMA_SHAPE(16, WG_T8, WG_R8(d, 0), "8", "9", "10", "11", "12", "13", "14");
WGMMA_SHAPE(24, WG_T12, WG_R8(d, 0) WG_COMMA WG_R4(d, 8), "12", "13", "14", "15", "16", "17", "18");
WGMMA_SHAPE(32, WG_T16, WG_R16(d, 0), "16", "17", "18", "19", "20", "21", "22");
WGMMA_SHAPE(48, WG_T24, WG_R16(d, 0) WG_COMMA WG_R8(d, 16), "24", "25", "26", "27", "28", "29", "30");
WGMMA_SHAPE(64, WG_T32, WG_R32(d, 0), "32", "33", "34", "35", "36", "37", "38");
WGMMA_SHAPE(80, WG_T40, WG_R32(d, 0) WG_COMMA WG_R8(d, 32), "40", "41", "42", "43", "44", "45", "46");
WGMMA_SHAPE(96, WG_T48, WG_R32(d, 0) WG_COMMA WG_R16(d, 32), "48", "49", "50", "51", "52", "53", "54");
WGMMA_SHAPE(128, WG_T64, WG_R64(d, 0), "64", "65", "66", "67", "68", "69", "70");
WGMMA_SHAPE(160, WG_T80, WG_R64(d, 0) WG_COMMA WG_R16(d, 64), "80", "81", "82", "83", "84", "85", "86");
WGMMA_SHAPE(192, WG_T96, WG_R64(d, 0) WG_COMMA WG_R32(d, 64), "96", "97", "98", "99", "100", "101", "102");
WGMMA_SHAPE(224, WG_T112, WG_R64(d, 0) WG_COMMA WG_R32(d, 64) WG_COMMA WG_R16(d, 96), "112", "113", "114", "115", "116", "117", "118");
WGMMA_SHAPE(256, WG_T128, WG_R64(d, 0) WG_COMMA WG_R64(d, 64), "128", "129", "130", "131", "132", "133", "134");
#undef WGMMA_SHAPE

/* ---- host: tensor maps ---- */

/* A tensor of elements of 2 to 5 dimensions, innermost first; strides[i] is bytes from one index of dimension i + 1 to the next (multiples of
 * 16). box[0] is 64 for the 128-byte swizzle above. Returns 0, or -1 where the driver has no such call or refuses the shape.
 * Fills the 128 bytes at map on the host; under a microsecond. The map goes to the kernel as a const __grid_constant__ parameter. */
static inline int tensor_map_elem(CUtensorMap *map, const void *base, int rank, const uint64_t *dims, const uint64_t *strides, const uint32_t *box)
{
    typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static const encode_fn encode = [] {                 /* looked up once per process; the program does not link libcuda */
        void *fn = nullptr;
        cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
        cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found);
        return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_fn)fn : (encode_fn)nullptr;
    }();
    cuuint32_t steps[5] = { 1, 1, 1, 1, 1 };

    if (!encode) return -1;
    return encode(map, ELEM_TENSOR_MAP, (cuuint32_t)rank, const_cast<void *>(base), (const cuuint64_t *)dims, (const cuuint64_t *)strides,
                  (const cuuint32_t *)box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS ? 0 : -1;
}

#endif
