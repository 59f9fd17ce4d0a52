#include "gemm_agenda.h"

static bool is_timed(struct gemm_table *t, const struct gemm_shape *s, int32_t bucket, bool in_layer)
{
    const struct gemm_entry *plain = gemm_table_find(t, s->n, s->k, bucket, s->out_f32, false);
    const struct gemm_entry *silu = s->silu_mul ? gemm_table_find(t, s->n, s->k, bucket, false, true) : plain;

    if (!plain || !plain->tuned || !silu || !silu->tuned) return false;
    return !in_layer || s->out_f32 || plain->in_layer;
}

/* The same product as an earlier shape: two weights may have one shape. */
static bool is_repeated(const struct gemm_shape *shapes, int i)
{
    for (int j = 0; j < i; j++)
        if (shapes[j].n == shapes[i].n && shapes[j].k == shapes[i].k && shapes[j].out_f32 == shapes[i].out_f32 &&
            shapes[j].silu_mul == shapes[i].silu_mul && shapes[j].max_rows == shapes[i].max_rows) return true;
    return false;
}

void gemm_agenda_make(struct gemm_agenda *a, struct gemm_table *t, const struct gemm_shape *shapes, int num_shapes, int32_t min_rows,
                      int32_t max_rows, int32_t layer_rows)
{
    int32_t most = 0, bucket = gemm_bucket(min_rows), layers[GEMM_MAX_LAYERS];
    int num_layers = 0;

    a->total = a->num_items = a->next = 0;
    for (int i = 0; i < num_shapes; i++) {
        int32_t own = shapes[i].max_rows ? shapes[i].max_rows : max_rows;
        if (own > most) most = own;
    }
    for (int32_t from = min_rows; from <= most; from = bucket + 1) {
        if (from > bucket && gemm_bucket(from) == bucket) break;       /* the last bucket takes all that is larger */
        bucket = gemm_bucket(from);
        bool in_layer = from <= layer_rows, has_layer = false, any = false;
        for (int i = 0; i < num_shapes; i++) {
            int32_t own = shapes[i].max_rows ? shapes[i].max_rows : max_rows;
            if (own < from || is_repeated(shapes, i) || (!in_layer && gemv_always(bucket, shapes[i].n, shapes[i].k))) continue;
            a->total++;
            has_layer = has_layer || (in_layer && !shapes[i].out_f32);
            if (is_timed(t, &shapes[i], bucket, in_layer) || a->num_items == GEMM_AGENDA_MAX) continue;
            a->items[a->num_items++] = (struct gemm_item){ i, bucket, own < bucket ? own : bucket };
            any = any || !shapes[i].out_f32;
        }
        a->total += has_layer;
        if (in_layer && any && num_layers < GEMM_MAX_LAYERS) layers[num_layers++] = bucket;
    }
    for (int i = 0; i < num_layers && a->num_items < GEMM_AGENDA_MAX; i++)
        a->items[a->num_items++] = (struct gemm_item){ GEMM_LAYER, layers[i], layer_rows < layers[i] ? layer_rows : layers[i] };
}

const struct gemm_item *gemm_agenda_next(struct gemm_agenda *a)
{
    return a->next < a->num_items ? &a->items[a->next++] : NULL;
}

int gemm_agenda_left(const struct gemm_agenda *a) { return a->num_items - a->next; }
