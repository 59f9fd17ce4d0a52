/* The contest in layers on a device that is made up: its clock is a function of what stands in the table. Built where CUDA's headers are;
 * no GPU is asked. */
#include <stdlib.h>
#include <string.h>

#include "gemm_cache.c"
#include "gemm_layer.c"
#include "unit/base/cmocka_all.h"

enum { BUCKET = 64, ROWS = 60, QKV_N = 4096, GATE_N = 6144, K = 1024, WAYS = 8, MOST_EXECS = 512 };

/* What a pass costs: a price for each product's way, and one for each pair of ways. */
static struct {
    float qkv[WAYS], gate[WAYS], fused[WAYS], pair[WAYS][WAYS], flip[FLIP_ALL + 1];
    bool capturing;
    float shown;                       /* of the pass between the last two events */
    float execs[MOST_EXECS];
    int num_execs, num_freed, passes, begun, fail_at, full_at;
    int32_t rows;
} device;
static struct gemm gemm;
static struct layer_contest contest;

static struct gemm_entry way(int32_t n, bool silu_mul, uint64_t cut)
{
    return (struct gemm_entry){ .n = n, .k = K, .rows = BUCKET, .silu_mul = silu_mul, .how = GEMM_SKINNY, .tuned = true, .us = 5, .algo = { cut } };
}

static float cost(void)
{
    const struct gemm_entry *qkv = gemm_table_find(&gemm.table, QKV_N, K, BUCKET, false, false), *gate = gemm_table_find(&gemm.table, GATE_N, K, BUCKET, false, false);
    const struct gemm_entry *fused = gemm_table_find(&gemm.table, GATE_N, K, BUCKET, false, true);
    float sum = device.qkv[qkv->algo[0]] + device.flip[qkv->flips];

    if (gate) sum += fused->how == GEMM_APART ? device.gate[gate->algo[0]] : device.fused[fused->algo[0]];
    return sum + (gate ? device.pair[qkv->algo[0]][gate->algo[0]] : 0);
}

/* ---- the device's side of CUDA ---- */

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { (void)stream; return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    (void)stream;
    (void)mode;
    assert_false(device.capturing);
    device.capturing = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    (void)stream;
    device.capturing = false;
    *graph = (cudaGraph_t)&device;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)graph;
    (void)flags;
    assert_true(device.num_execs < MOST_EXECS);
    if (device.full_at > 0 && --device.full_at == 0) return cudaErrorMemoryAllocation;
    device.execs[device.num_execs] = cost();
    *exec = (cudaGraphExec_t)&device.execs[device.num_execs++];
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { (void)graph; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    assert_true(*(float *)exec > 0);
    *(float *)exec = -1;                                   /* a launch of it would be seen */
    device.num_freed++;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    (void)stream;
    assert_true(*(float *)exec > 0);
    device.shown = *(float *)exec;
    device.passes++;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { (void)event; (void)stream; return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { (void)event; return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    (void)begin;
    (void)end;
    *ms = device.shown;
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }

static int begin(void *arg, int32_t rows)
{
    (void)arg;
    device.begun++;
    device.rows = rows;
    return 0;
}
static int run(void *arg)
{
    (void)arg;
    if (device.fail_at > 0 && --device.fail_at == 0) return ERR_INTERNAL;
    if (!device.capturing) {
        device.shown = cost();
        device.passes++;
    }
    return 0;
}

/* ---- the contest ---- */

static int setup(void **state)
{
    (void)state;
    memset(&device, 0, sizeof device);
    memset(&gemm, 0, sizeof gemm);
    memset(&contest, 0, sizeof contest);
    for (int i = 0; i < WAYS; i++) device.qkv[i] = device.gate[i] = device.fused[i] = 10;
    layer_contest_begin(&contest, BUCKET, ROWS);
    return 0;
}

static void stands(const struct gemm_entry *entry) { assert_true(gemm_table_put(&gemm.table, entry)); }
static void enter(struct gemm_entry entry, enum layer_change change) { layer_contest_enter(&contest, &(struct layer_trial){ .way = entry, .change = change }); }

/* All trials. -> how often something changed. */
static int play(int32_t max_captured)
{
    const struct gemm_layers layers = { begin, run, NULL, 512, max_captured };
    struct err err = { 0 };
    int changes = 0;

    log_set_level(LOG_ERROR);
    while (!layer_contest_is_over(&contest)) {
        bool changed;
        if (layer_contest_next(&contest, &gemm, &layers, NULL, NULL, NULL, &changed, &err) < 0) fail_msg("%s", err.message);
        changes += changed;
    }
    assert_int_equal(device.num_freed, device.num_execs);
    assert_false(device.capturing);
    return changes;
}

static const struct gemm_entry *now(int32_t n, bool silu_mul) { return gemm_table_find(&gemm.table, n, K, BUCKET, false, silu_mul); }

static void qkv_alone(void)
{
    struct gemm_entry first = way(QKV_N, false, 1);
    stands(&first);
    for (uint64_t cut = 1; cut <= 4; cut++) enter(way(QKV_N, false, cut), LAYER_WAY);
}

static void the_fastest_way_stays(void **state)
{
    (void)state;
    qkv_alone();
    device.qkv[2] = 8, device.qkv[3] = 9, device.qkv[4] = 7.99f;       /* the last gains too little to be more than noise */
    assert_int_equal(play(512), 1);
    assert_int_equal(now(QKV_N, false)->algo[0], 2);
    assert_true(now(QKV_N, false)->in_layer);
    assert_int_equal(device.rows, ROWS);
}

static void what_is_launched_kernel_by_kernel_is_timed_so(void **state)
{
    (void)state;
    qkv_alone();
    device.qkv[3] = 6;
    assert_int_equal(play(ROWS - 1), 1);
    assert_int_equal(now(QKV_N, false)->algo[0], 3);
    assert_int_equal(device.num_execs, 0);
    assert_true(device.passes > 0);
}

static void what_stands_is_not_tried_against_itself(void **state)
{
    struct gemm_entry first = way(QKV_N, false, 1);
    (void)state;
    stands(&first);
    enter(first, LAYER_WAY);
    assert_int_equal(play(512), 0);
    assert_int_equal(device.begun, 0);
    assert_true(now(QKV_N, false)->in_layer);
}

/* gate's way 2 is better by itself, and only beside it qkv's way 2 is. */
static void what_lost_by_a_little_is_tried_again_beside_what_won(void **state)
{
    struct gemm_entry qkv = way(QKV_N, false, 1), gate = way(GATE_N, false, 1), apart = { .n = GATE_N, .k = K, .rows = BUCKET, .silu_mul = true, .how = GEMM_APART, .tuned = true, .us = 1 };
    (void)state;
    stands(&qkv);
    stands(&gate);
    stands(&apart);
    enter(way(QKV_N, false, 2), LAYER_WAY);
    enter(way(GATE_N, false, 2), LAYER_APART);
    device.gate[2] = 8;
    device.pair[2][1] = 0.1f;
    device.pair[2][2] = -1;
    assert_int_equal(play(512), 2);
    assert_int_equal(now(QKV_N, false)->algo[0], 2);
    assert_int_equal(now(GATE_N, false)->algo[0], 2);
}

static void what_lost_by_far_is_out(void **state)
{
    (void)state;
    qkv_alone();
    device.qkv[2] = 20, device.qkv[3] = 10.1f, device.qkv[4] = 9;
    assert_int_equal(play(512), 1);
    assert_int_equal(now(QKV_N, false)->algo[0], 4);
    assert_int_equal(device.begun, 3 + 2);                 /* again the first, which stood, and the one that came close */
}

static void silu_inside_or_behind(void **state)
{
    struct gemm_entry qkv = way(QKV_N, false, 1), gate = way(GATE_N, false, 1), fused = way(GATE_N, true, 1);
    (void)state;
    stands(&qkv);
    stands(&gate);
    stands(&fused);
    enter(way(GATE_N, false, 3), LAYER_APART);
    enter(way(GATE_N, false, 4), LAYER_APART);
    enter(way(GATE_N, true, 2), LAYER_WAY);
    device.gate[3] = 9, device.gate[4] = 8;
    assert_int_equal(play(512), 2);
    assert_int_equal(now(GATE_N, true)->how, GEMM_APART);
    assert_int_equal(now(GATE_N, false)->algo[0], 4);
    assert_true(now(GATE_N, true)->in_layer);
    layer_contest_begin(&contest, BUCKET, ROWS);           /* and back inside */
    enter(way(GATE_N, true, 2), LAYER_WAY);
    enter(way(GATE_N, false, 3), LAYER_APART);
    device.fused[2] = 5;
    assert_int_equal(play(512), 1);
    assert_int_equal(now(GATE_N, true)->how, GEMM_SKINNY);
    assert_int_equal(now(GATE_N, true)->algo[0], 2);
    assert_int_equal(now(GATE_N, false)->algo[0], 4);      /* what is behind is as it was */
}

static void flips_that_help_stay(void **state)
{
    struct gemm_entry qkv = way(QKV_N, false, 1);
    (void)state;
    stands(&qkv);
    for (uint8_t flip = FLIP_INSIDE; flip <= FLIP_BEHIND; flip <<= 1)
        layer_contest_enter(&contest, &(struct layer_trial){ .way = qkv, .change = LAYER_FLIP, .flip = flip });
    device.flip[FLIP_INSIDE] = 1;
    device.flip[FLIP_EARLY] = -1;
    device.flip[FLIP_EARLY | FLIP_BEHIND] = -2;
    device.flip[FLIP_EARLY | FLIP_INSIDE] = 3;
    assert_int_equal(play(512), 2);
    assert_int_equal(now(QKV_N, false)->flips, FLIP_EARLY | FLIP_BEHIND);
}

/* Only whether it waits can be changed of a product with silu inside. */
static void flips_of_a_fused_product(void **state)
{
    struct gemm_entry qkv = way(QKV_N, false, 1), gate = way(GATE_N, false, 1), fused = way(GATE_N, true, 1);
    (void)state;
    stands(&qkv);
    stands(&gate);
    stands(&fused);
    layer_contest_enter(&contest, &(struct layer_trial){ .way = gate, .change = LAYER_FLIP, .flip = FLIP_BEHIND });
    assert_int_equal(play(512), 0);
    assert_int_equal(device.begun, 0);
    layer_contest_begin(&contest, BUCKET, ROWS);
    layer_contest_enter(&contest, &(struct layer_trial){ .way = gate, .change = LAYER_FLIP, .flip = FLIP_EARLY });
    assert_int_equal(play(512), 0);
    assert_int_equal(device.begun, 1);
    assert_int_equal(now(GATE_N, true)->flips, 0);
}

static void a_device_that_fails_is_told_and_nothing_is_left(void **state)
{
    const struct gemm_layers layers = { begin, run, NULL, 512, 512 };
    for (int at = 1; at <= 4; at++) {
        struct err err = { 0 };
        bool changed;
        int rc;
        setup(state);
        qkv_alone();
        device.qkv[2] = 8;
        device.fail_at = at;
        contest.next = 1;
        rc = layer_contest_next(&contest, &gemm, &layers, NULL, NULL, NULL, &changed, &err);
        assert_int_equal(rc, ERR_INTERNAL);
        assert_false(changed);
        layer_contest_end(&contest);
        assert_int_equal(device.num_freed, device.num_execs);
    }
}

/* The first and the second captured layers: nothing is lost, and the bucket is timed again at the next start. */
static void without_memory_what_stands_stays(void **state)
{
    for (int at = 1; at <= 2; at++) {
        setup(state);
        qkv_alone();
        device.qkv[2] = 8;
        device.full_at = at;
        assert_int_equal(play(512), 0);
        assert_int_equal(now(QKV_N, false)->algo[0], 1);
        assert_false(now(QKV_N, false)->in_layer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test_setup(the_fastest_way_stays, setup),
                                        cmocka_unit_test_setup(what_is_launched_kernel_by_kernel_is_timed_so, setup),
                                        cmocka_unit_test_setup(what_stands_is_not_tried_against_itself, setup),
                                        cmocka_unit_test_setup(what_lost_by_a_little_is_tried_again_beside_what_won, setup),
                                        cmocka_unit_test_setup(what_lost_by_far_is_out, setup),
                                        cmocka_unit_test_setup(silu_inside_or_behind, setup),
                                        cmocka_unit_test_setup(flips_that_help_stay, setup),
                                        cmocka_unit_test_setup(flips_of_a_fused_product, setup),
                                        cmocka_unit_test_setup(a_device_that_fails_is_told_and_nothing_is_left, setup),
                                        cmocka_unit_test_setup(without_memory_what_stands_stays, setup) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
