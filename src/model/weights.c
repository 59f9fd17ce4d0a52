/* weights.c - from slot rows to weights in memory.
 * Plan: shape_weights adds the local rows of all slots of a weight; memory plan and carving use the same shapes.
 * Load: one job per chunk of rows of a slot (a vector: one job for all its slots), spread over the backend's threads.
 * A job owns its buffers: raw bytes as in the file, fp32 values, and the rows put in order when order or columns
 * change. */
#include "weights.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/hash.h"

enum { CHUNK_ELEMS = 64 << 10, CHUNK_ROWS_UNIT = 16, NAME_BYTES = 128 };

/* ---- shapes ---- */

struct weight_shape { int64_t rows, cols; enum weight_kind kind; };    /* rows 0: absent */

static int64_t dim_size(const struct model_config *config, enum dim dim)
{
    switch (dim) {
    case DIM_ONE: return 1;
    case DIM_HIDDEN: return config->hidden_size;
    case DIM_Q: return (int64_t)config->num_attention_heads * config->head_dim;
    case DIM_KV: return (int64_t)config->num_key_value_heads * config->head_dim;
    case DIM_HEAD: return config->head_dim;
    case DIM_FFN: return config->intermediate_size;
    case DIM_VOCAB: return config->vocab_size;
    }
    bug_abort(__FILE__, __LINE__, "a dim without a size");
}

/* The part of a dimension that this shard holds when the slot is cut along it. */
static struct range dim_cut(const struct model_config *config, const struct shard *shard, enum dim dim)
{
    int64_t head_dim = config->head_dim;
    switch (dim) {
    case DIM_Q: return (struct range){ shard->heads.begin * head_dim, shard->heads.end * head_dim };
    case DIM_KV: return (struct range){ shard->kv_heads.begin * head_dim, shard->kv_heads.end * head_dim };
    case DIM_FFN: return shard->ffn;
    case DIM_VOCAB: return shard->vocab;
    default: return (struct range){ 0, dim_size(config, dim) };
    }
}

static struct range slot_rows(const struct weight_slot *slot, const struct model_config *config,
                              const struct shard *shard)
{
    bool cut = slot->part == PART_COLUMN || slot->part == PART_QKV || slot->part == PART_VOCAB;
    return cut ? dim_cut(config, shard, slot->rows) : (struct range){ 0, dim_size(config, slot->rows) };
}

static struct range slot_cols(const struct weight_slot *slot, const struct model_config *config,
                              const struct shard *shard)
{
    bool cut = slot->part == PART_ROW;
    return cut ? dim_cut(config, shard, slot->cols) : (struct range){ 0, dim_size(config, slot->cols) };
}

static bool slot_present(const struct weight_slot *slot, const struct model_config *config, const struct shard *shard)
{
    bool tied_head = config->tie_word_embeddings && shard->has_head;
    if (slot->when == WHEN_ATTENTION_BIAS && !config->attention_bias) return false;
    if (slot->when == WHEN_UNTIED && config->tie_word_embeddings) return false;
    if (slot->into == W_EMBED) return shard->has_embedding || tied_head;
    if (slot->into == W_FINAL_NORM || slot->into == W_HEAD) return shard->has_head;
    return true;
}

static void shape_group(struct weight_shape shapes[W_COUNT], const struct slot_group *group,
                        const struct model_config *config, const struct shard *shard)
{
    for (int i = 0; i < group->n; i++) {
        const struct weight_slot *slot = &group->slots[i];
        struct weight_shape *shape = &shapes[slot->into];
        int64_t rows = range_len(slot_rows(slot, config, shard));
        if (!slot_present(slot, config, shard)) continue;
        if (slot->cols == DIM_ONE) {
            *shape = (struct weight_shape){ 1, shape->cols + rows, WEIGHT_VECTOR };
        } else {
            *shape = (struct weight_shape){ shape->rows + rows, range_len(slot_cols(slot, config, shard)),
                                            WEIGHT_MATRIX };
        }
    }
}

static void shape_weights(struct weight_shape shapes[W_COUNT], const struct weight_groups *groups,
                          const struct model_config *config, const struct shard *shard)
{
    memset(shapes, 0, W_COUNT * sizeof(*shapes));
    for (int g = 0; g < MAX_SLOT_GROUPS; g++) {          /* empty groups have no slots */
        shape_group(shapes, &groups->once[g], config, shard);
        shape_group(shapes, &groups->layer[g], config, shard);
    }
}

static uint64_t copies_of(enum weight_id id, const struct shard *shard)
{
    return id < W_FIRST_OF_LAYER ? 1 : (uint64_t)range_len(shard->layers);
}

/* The name in the files of one tensor of a layer of the whole model. */
static void slot_name(char name[NAME_BYTES], const struct weight_slot *slot, int64_t layer, bool gguf)
{
    const char *in_layer = gguf ? "blk.%lld.%s" : "model.layers.%lld.%s", *text = gguf ? slot->gguf : slot->safetensors;
    bool once = slot->into < W_FIRST_OF_LAYER;
    int n = once ? snprintf(name, NAME_BYTES, "%s", text) : snprintf(name, NAME_BYTES, in_layer, (long long)layer, text);
    BUG_ON(n < 0 || n >= NAME_BYTES);
}

/* The format a matrix is kept in: that of the files when all its slots have the same one, the backend takes it at this
 * width, and the shard's columns are whole blocks; else DTYPE_F32. layer: of the shard. */
static enum dtype kept_format(enum weight_id id, int64_t layer, const struct weight_groups *groups,
                              const struct model_config *config, const struct shard *shard, const struct backend_ops *ops,
                              const struct model_source *src)
{
    enum dtype found = DTYPE_F32;
    if (!ops->kept_bytes || !src || model_source_format(src) == LOAD_DUMMY) return DTYPE_F32;
    for (int i = 0; i < MAX_SLOT_GROUPS * MAX_SLOTS_PER_LAYER; i++) {
        const struct slot_group *group = id < W_FIRST_OF_LAYER ? &groups->once[i / MAX_SLOTS_PER_LAYER]
                                                               : &groups->layer[i / MAX_SLOTS_PER_LAYER];
        char name[NAME_BYTES];
        if (i % MAX_SLOTS_PER_LAYER >= group->n) continue;
        const struct weight_slot *slot = &group->slots[i % MAX_SLOTS_PER_LAYER];
        if (slot->into != id || !slot_present(slot, config, shard)) continue;
        slot_name(name, slot, shard->layers.begin + layer, model_source_format(src) == LOAD_GGUF);
        const struct tensor_info *info = model_source_find(src, name);
        struct range cols = slot_cols(slot, config, shard);
        int64_t whole = dim_size(config, slot->cols), unit = info ? dtype_block_elems(info->dtype) : 1;
        if (!info || slot->cols == DIM_ONE || (found != DTYPE_F32 && found != info->dtype)) return DTYPE_F32;
        if (whole % unit || cols.begin % unit || cols.end % unit) return DTYPE_F32;
        found = info->dtype;
        if (ops->kept_bytes(found, 1, range_len(cols)) == 0) return DTYPE_F32;
    }
    return found;
}

static size_t weight_size(const struct weight_shape *shape, enum dtype kept, const struct backend_ops *ops)
{
    if (shape->rows == 0) return 0;
    if (kept != DTYPE_F32) return ops->kept_bytes(kept, shape->rows, shape->cols);
    return ops->weight_bytes(shape->kind, shape->rows, shape->cols);
}

uint64_t weights_bytes(const struct weight_groups *groups, const struct model_config *config, const struct shard *shard,
                       const struct backend_ops *ops, const struct model_source *src)
{
    struct weight_shape shapes[W_COUNT];
    uint64_t bytes = 0;
    shape_weights(shapes, groups, config, shard);
    for (int id = 0; id < W_COUNT; id++) {
        for (uint64_t layer = 0; layer < copies_of(id, shard); layer++) {
            enum dtype kept = kept_format(id, (int64_t)layer, groups, config, shard, ops, src);
            bytes += (weight_size(&shapes[id], kept, ops) + 63) / 64 * 64;
        }
    }
    return bytes;
}

uint64_t weights_fp32_bytes(const struct weight_groups *groups, const struct model_config *config,
                            const struct shard *shard)
{
    struct weight_shape shapes[W_COUNT];
    uint64_t bytes = 0;
    shape_weights(shapes, groups, config, shard);
    for (int id = 0; id < W_COUNT; id++) {
        bytes += copies_of(id, shard) * (uint64_t)shapes[id].rows * (uint64_t)shapes[id].cols * sizeof(float);
    }
    return bytes;
}

/* ---- the table ---- */

static int64_t weight_index(enum weight_id id, int64_t layer)
{
    return id < W_FIRST_OF_LAYER ? id : id + layer * (W_COUNT - W_FIRST_OF_LAYER);
}

const struct weight *weights_get(const struct weights *weights, enum weight_id id, int64_t layer)
{
    return &weights->all[weight_index(id, layer)];
}

static int carve_weights(struct weights *weights, const struct weight_shape shapes[W_COUNT],
                         const struct weights_load_args *args, struct err *err)
{
    int64_t layers = range_len(args->shard->layers);
    weights->n = weight_index(W_FIRST_OF_LAYER, layers);
    weights->all = calloc((size_t)weights->n, sizeof(*weights->all));
    if (!weights->all) return err_set(err, ERR_NO_MEMORY, "weight table");
    for (int id = 0; id < W_COUNT; id++) {
        for (uint64_t layer = 0; layer < copies_of(id, args->shard) && shapes[id].rows > 0; layer++) {
            struct weight *w = &weights->all[weight_index(id, (int64_t)layer)];
            *w = (struct weight){ .rows = shapes[id].rows, .cols = shapes[id].cols };
            w->kept = kept_format(id, (int64_t)layer, args->groups, args->config, args->shard, args->ops, args->src);
            w->data = args->ops->carve(args->backend, weight_size(&shapes[id], w->kept, args->ops));
        }
    }
    return 0;
}

void weights_release(struct weights *weights)
{
    free(weights->all);
    *weights = (struct weights){ 0 };
}

/* ---- jobs ---- */

/* One tensor of the files and where its part of this shard goes. */
struct source_slot {
    const struct weight_slot *slot;
    const struct tensor_info *info;        /* NULL: dummy */
    char name[NAME_BYTES];                 /* in safetensors' words, whatever the container */
    struct weight *w;
    struct range rows, cols;
    int64_t file_cols;
    int64_t at;                            /* first row in w (a vector: first entry) */
};

/* Matrix: rows [begin, end) of source first. Vector: all of sources [first, first + count). */
struct load_job { int32_t first, count; int64_t begin, end; };

struct loading {
    const struct weights_load_args *args;
    struct source_slot *sources;
    int32_t n_sources, cap_sources;
    struct load_job *jobs;
    int64_t n_jobs, cap_jobs;
    atomic_bool failed;
    pthread_mutex_t lock;                  /* guards err */
    struct err *err;
};

static void loading_fail(struct loading *loading, const struct err *err)
{
    pthread_mutex_lock(&loading->lock);
    if (!atomic_exchange(&loading->failed, true)) err_set(loading->err, err->code, "%s", err->message);
    pthread_mutex_unlock(&loading->lock);
}

/* Row (or entry) of the file -> row of the half-split rotation: within a head, 2i -> i and 2i+1 -> i + D/2. */
static int64_t unpermuted(int64_t row, int64_t head_dim)
{
    int64_t in_head = row % head_dim;
    return row - in_head + in_head / 2 + (in_head % 2) * (head_dim / 2);
}

void dummy_row(uint64_t seed, const char *name, int64_t row, int64_t first_col, float *dst, int64_t n)
{
    /* The variance of a sum of four uniforms over 0..65535 is 4 * 65536^2 / 12. */
    const float scale = 0.02f * 1.7320508f / 65536.0f;
    uint64_t key = hash_bytes(name, strlen(name), seed) + (uint64_t)row * 0x9E3779B97F4A7C15u;
    for (int64_t i = 0; i < n; i++) {
        uint64_t x = key ^ ((uint64_t)(first_col + i) * 0xD1342543DE82EF95u);
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;             /* the finaliser of splitmix64 */
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
        uint64_t sum = (x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + (x >> 48);
        dst[i] = (float)((int32_t)sum - 131070) * scale;
    }
}

static void dummy_rows(const struct loading *loading, const struct source_slot *source, int64_t begin, int64_t end,
                       float *dst)
{
    int64_t n = range_len(source->cols);
    for (int64_t row = begin; row < end; row++, dst += n) {
        if (source->slot->dummy == DUMMY_ONE) {
            for (int64_t i = 0; i < n; i++) dst[i] = 1.0f;
        } else {
            dummy_row(loading->args->seed, source->name, row, source->cols.begin, dst, n);
        }
    }
}

/* The device makes its own random numbers, the same ones. */
static bool dummy_on_device(const struct loading *loading, const struct load_job *job)
{
    const struct source_slot *source = &loading->sources[job->first];
    const struct weights_load_args *args = loading->args;
    if (source->info || !args->ops->store_dummy || source->slot->dummy != DUMMY_RANDOM) return false;
    args->ops->store_dummy(args->backend, source->w, source->at + job->begin - source->rows.begin, job->end - job->begin,
                           hash_bytes(source->name, strlen(source->name), args->seed), job->begin, source->cols.begin);
    return true;
}

/* Rows [begin, end) of the file, all columns, as they are; *raw malloc'ed. */
static int read_raw(const struct loading *loading, const struct source_slot *source, int64_t begin, int64_t end,
                    char **raw, struct err *err)
{
    const struct tensor_info *info = source->info;
    int64_t offset = dtype_row_bytes(info->dtype, begin * source->file_cols);
    int64_t bytes = dtype_row_bytes(info->dtype, (end - begin) * source->file_cols);
    *raw = NULL;
    if (offset < 0 || bytes < 0) {
        return err_set(err, ERR_MODEL_FILE, "%s: rows are not whole %s blocks", info->name, dtype_name(info->dtype));
    }
    *raw = malloc((size_t)bytes);
    if (!*raw) return err_set(err, ERR_NO_MEMORY, "%lld bytes to load %s", (long long)bytes, info->name);
    return model_source_read(loading->args->src, info, (uint64_t)offset, *raw, (uint64_t)bytes, err);
}

/* The same as fp32 in dst. */
static int read_rows(const struct loading *loading, const struct source_slot *source, int64_t begin, int64_t end,
                     float *dst, struct err *err)
{
    char *raw = NULL;
    int rc = read_raw(loading, source, begin, end, &raw, err);
    if (rc == 0) dequantize_row(source->info->dtype, raw, dst, (end - begin) * source->file_cols);
    free(raw);
    return rc;
}

/* Rows [begin, end) of this shard's part in memory order. full: [end - begin, file_cols], part: [end - begin, cols];
 * the result lies in the one returned in *rows. Permuted rows: begin and end are head borders. */
static int source_rows(const struct loading *loading, const struct source_slot *source, int64_t begin, int64_t end,
                       float *full, float *part, float **rows, struct err *err)
{
    const struct model_config *config = loading->args->config;
    int64_t cols = range_len(source->cols);
    bool permuted = source->slot->rope_rows && config->rope_interleaved;
    *rows = full;
    if (!source->info) {
        dummy_rows(loading, source, begin, end, full);
        return 0;
    }
    int rc = read_rows(loading, source, begin, end, full, err);
    if (rc < 0 || (!permuted && cols == source->file_cols)) return rc;
    *rows = part;
    for (int64_t row = begin; row < end; row++) {
        int64_t to = permuted ? unpermuted(row, config->head_dim) : row;
        memcpy(part + (to - begin) * cols, full + (row - begin) * source->file_cols + source->cols.begin,
               (size_t)cols * sizeof(float));
    }
    return 0;
}

/* A vector is stored whole: the entries of its slots one behind the other. */
static int load_vector(const struct loading *loading, const struct load_job *job, struct err *err)
{
    const struct source_slot *source = &loading->sources[job->first];
    const struct weights_load_args *args = loading->args;
    struct weight *w = source->w;
    float *whole = calloc((size_t)w->cols, sizeof(*whole)), *buffers = NULL;
    int rc = whole ? 0 : err_set(err, ERR_NO_MEMORY, "loading %s", source->name);
    for (int32_t i = 0; i < job->count && rc == 0; i++, source++) {
        int64_t n = range_len(source->rows);
        float *rows = NULL;
        buffers = calloc((size_t)n, 2 * sizeof(*buffers));
        if (!buffers) rc = err_set(err, ERR_NO_MEMORY, "loading %s", source->name);
        else rc = source_rows(loading, source, source->rows.begin, source->rows.end, buffers, buffers + n, &rows, err);
        if (rc == 0) memcpy(whole + source->at, rows, (size_t)n * sizeof(*whole));
        free(buffers);
    }
    if (rc == 0) args->ops->weight_store(args->backend, w, WEIGHT_VECTOR, 0, 1, whole);
    free(whole);
    return rc;
}

/* A matrix kept in the file's blocks: rows in memory order, the shard's columns, no arithmetic. */
static int load_kept_rows(const struct loading *loading, const struct load_job *job, struct err *err)
{
    const struct source_slot *source = &loading->sources[job->first];
    const struct weights_load_args *args = loading->args;
    bool permuted = source->slot->rope_rows && args->config->rope_interleaved;
    enum dtype dtype = source->w->kept;
    size_t file_row = (size_t)dtype_row_bytes(dtype, source->file_cols);
    size_t skip = (size_t)dtype_row_bytes(dtype, source->cols.begin);
    int64_t at = source->at - source->rows.begin;
    char *raw = NULL;
    int rc = read_raw(loading, source, job->begin, job->end, &raw, err);
    if (rc == 0 && !permuted && range_len(source->cols) == source->file_cols) {
        args->ops->store_kept(args->backend, source->w, at + job->begin, job->end - job->begin, raw);
    } else if (rc == 0) {
        for (int64_t row = job->begin; row < job->end; row++) {
            int64_t to = permuted ? unpermuted(row, args->config->head_dim) : row;
            args->ops->store_kept(args->backend, source->w, at + to, 1, raw + (size_t)(row - job->begin) * file_row + skip);
        }
    }
    free(raw);
    return rc;
}

static int load_matrix_rows(const struct loading *loading, const struct load_job *job, struct err *err)
{
    const struct source_slot *source = &loading->sources[job->first];
    const struct weights_load_args *args = loading->args;
    if (source->w->kept != DTYPE_F32) return load_kept_rows(loading, job, err);
    if (dummy_on_device(loading, job)) return 0;
    size_t n = (size_t)(job->end - job->begin);
    float *full = malloc(n * (size_t)source->file_cols * sizeof(*full));
    float *part = malloc(n * (size_t)range_len(source->cols) * sizeof(*part));
    float *rows = NULL;
    int rc = full && part ? 0 : err_set(err, ERR_NO_MEMORY, "loading %s", source->name);
    if (rc == 0) rc = source_rows(loading, source, job->begin, job->end, full, part, &rows, err);
    if (rc == 0) {
        args->ops->weight_store(args->backend, source->w, WEIGHT_MATRIX, source->at + job->begin - source->rows.begin,
                                (int64_t)n, rows);
    }
    free(part);
    free(full);
    return rc;
}

static void load_jobs(void *arg, int64_t begin, int64_t end)
{
    struct loading *loading = arg;
    for (int64_t i = begin; i < end && !atomic_load(&loading->failed); i++) {
        const struct load_job *job = &loading->jobs[i];
        const struct source_slot *source = &loading->sources[job->first];
        struct err err = { 0 };
        bool vector = source->slot->cols == DIM_ONE;
        int rc = vector ? load_vector(loading, job, &err) : load_matrix_rows(loading, job, &err);
        if (rc < 0) {
            loading_fail(loading, &err);
        } else if (loading->args->progress) {
            int64_t elems = vector ? source->w->cols : (job->end - job->begin) * range_len(source->cols);
            loading->args->progress(loading->args->progress_arg, (uint64_t)elems * sizeof(float));
        }
    }
}

/* ---- from slots to jobs ---- */

static int check_shape(const struct source_slot *source, int64_t rows, int64_t cols, struct err *err)
{
    const struct tensor_info *info = source->info;
    bool vector = source->slot->cols == DIM_ONE;
    bool fits = vector ? info->ndim == 1 && info->shape[0] == rows
                       : info->ndim == 2 && info->shape[0] == rows && info->shape[1] == cols;
    char expected[64], found[128];
    int len = 0;
    if (fits) return 0;
    if (vector) snprintf(expected, sizeof(expected), "[%lld]", (long long)rows);
    else snprintf(expected, sizeof(expected), "[%lld, %lld]", (long long)rows, (long long)cols);
    for (int i = 0; i < info->ndim && i < 4; i++) {
        len += snprintf(found + len, sizeof(found) - (size_t)len, "%s%lld", i ? ", " : "", (long long)info->shape[i]);
    }
    if (info->ndim < 1) found[0] = '\0';
    return err_set(err, ERR_MODEL_FILE, "tensor %s: expected %s, found [%s]", info->name, expected, found);
}

static int find_source(const struct weights_load_args *args, struct source_slot *source, int64_t layer, struct err *err)
{
    const struct weight_slot *slot = source->slot;
    enum load_format format = model_source_format(args->src);
    char in_file[NAME_BYTES];
    slot_name(source->name, slot, layer, false);
    slot_name(in_file, slot, layer, true);
    if (format == LOAD_DUMMY) return 0;
    const char *name = format == LOAD_GGUF ? in_file : source->name;
    source->info = model_source_find(args->src, name);
    if (!source->info) {
        return err_set(err, ERR_MODEL_FILE, "tensor %s: expected [%lld, %lld], found nothing of this name", name,
                       (long long)dim_size(args->config, slot->rows), (long long)dim_size(args->config, slot->cols));
    }
    return check_shape(source, dim_size(args->config, slot->rows), dim_size(args->config, slot->cols), err);
}

static int push_job(struct loading *loading, struct load_job job, struct err *err)
{
    if (loading->n_jobs == loading->cap_jobs) {
        int64_t cap = loading->cap_jobs ? 2 * loading->cap_jobs : 1024;
        struct load_job *jobs = realloc(loading->jobs, (size_t)cap * sizeof(*jobs));
        if (!jobs) return err_set(err, ERR_NO_MEMORY, "list of load jobs");
        loading->jobs = jobs;
        loading->cap_jobs = cap;
    }
    loading->jobs[loading->n_jobs++] = job;
    return 0;
}

/* A matrix: chunks of rows. A vector: joined to the vector job before it when it continues the same weight. */
static int push_slot_jobs(struct loading *loading, int32_t index, struct err *err)
{
    const struct source_slot *source = &loading->sources[index];
    const struct model_config *config = loading->args->config;
    struct load_job *last = loading->n_jobs > 0 ? &loading->jobs[loading->n_jobs - 1] : NULL;
    int rc = 0;
    if (source->slot->cols == DIM_ONE) {
        if (last && loading->sources[last->first].w == source->w) {
            last->count++;
            return 0;
        }
        return push_job(loading, (struct load_job){ .first = index, .count = 1 }, err);
    }
    int64_t unit = source->slot->rope_rows ? config->head_dim : CHUNK_ROWS_UNIT;
    int64_t elems = loading->args->ops->load_chunk ? loading->args->ops->load_chunk() : CHUNK_ELEMS;
    int64_t chunk = elems / source->file_cols / unit * unit;
    if (chunk < unit) chunk = unit;
    for (int64_t begin = source->rows.begin; begin < source->rows.end && rc == 0; begin += chunk) {
        int64_t end = begin + chunk < source->rows.end ? begin + chunk : source->rows.end;
        rc = push_job(loading, (struct load_job){ .first = index, .count = 1, .begin = begin, .end = end }, err);
    }
    return rc;
}

/* layer: of the shard; filled[]: rows (entries) of each weight taken by the slots before. */
static int add_group(struct loading *loading, struct weights *weights, const struct slot_group *group, int64_t layer,
                     int64_t filled[W_COUNT], struct err *err)
{
    const struct weights_load_args *args = loading->args;
    int rc = 0;
    for (int i = 0; i < group->n && rc == 0; i++) {
        const struct weight_slot *slot = &group->slots[i];
        if (!slot_present(slot, args->config, args->shard)) continue;
        BUG_ON(loading->n_sources == loading->cap_sources);
        struct source_slot *source = &loading->sources[loading->n_sources];
        *source = (struct source_slot){ .slot = slot, .w = &weights->all[weight_index(slot->into, layer)] };
        source->rows = slot_rows(slot, args->config, args->shard);
        source->cols = slot_cols(slot, args->config, args->shard);
        source->at = filled[slot->into];
        filled[slot->into] += range_len(source->rows);
        if ((rc = find_source(args, source, args->shard->layers.begin + layer, err)) < 0) return rc;
        source->file_cols = source->info ? dim_size(args->config, slot->cols) : range_len(source->cols);
        rc = push_slot_jobs(loading, loading->n_sources++, err);
    }
    return rc;
}

static int add_all(struct loading *loading, struct weights *weights, struct err *err)
{
    const struct weight_groups *groups = loading->args->groups;
    int64_t layers = range_len(loading->args->shard->layers);
    int64_t filled[W_COUNT] = { 0 };
    int rc = 0;
    loading->cap_sources = (int32_t)((layers + 1) * MAX_SLOTS_PER_LAYER);
    loading->sources = calloc((size_t)loading->cap_sources, sizeof(*loading->sources));
    if (!loading->sources) return err_set(err, ERR_NO_MEMORY, "list of tensors");
    for (int g = 0; g < MAX_SLOT_GROUPS && groups->once[g].n > 0 && rc == 0; g++) {
        rc = add_group(loading, weights, &groups->once[g], 0, filled, err);
    }
    for (int64_t layer = 0; layer < layers && rc == 0; layer++) {
        memset(filled, 0, sizeof(filled));
        for (int g = 0; g < MAX_SLOT_GROUPS && groups->layer[g].n > 0 && rc == 0; g++) {
            rc = add_group(loading, weights, &groups->layer[g], layer, filled, err);
        }
    }
    return rc;
}

int weights_load(struct weights *weights, const struct weights_load_args *args, struct err *err)
{
    struct weight_shape shapes[W_COUNT];
    struct loading loading = { .args = args, .lock = PTHREAD_MUTEX_INITIALIZER, .err = err };
    struct err first = { 0 };
    int rc = 0;

    *weights = (struct weights){ 0 };
    shape_weights(shapes, args->groups, args->config, args->shard);
    if ((rc = carve_weights(weights, shapes, args, err)) < 0) goto out;
    if ((rc = add_all(&loading, weights, err)) < 0) goto out;
    loading.err = &first;
    args->ops->parallel_for(args->backend, loading.n_jobs, 1, load_jobs, &loading);
    if (atomic_load(&loading.failed)) rc = err_set(err, first.code, "%s", first.message);
out:
    free(loading.jobs);
    free(loading.sources);
    if (rc < 0) weights_release(weights);
    return rc;
}
