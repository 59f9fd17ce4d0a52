/* safetensors.c - {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}}
 * Types that exist in the format but are not served (F64, I64, BOOL, F8...) are listed and refused when read. */
#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "files.h"

static const struct { const char *name; int bits; int dtype; } dtypes[] = {
    { "F32", 32, DTYPE_F32 }, { "F16", 16, DTYPE_F16 }, { "BF16", 16, DTYPE_BF16 }, { "I32", 32, DTYPE_I32 },
    { "I8", 8, DTYPE_I8 }, { "U8", 8, DTYPE_U8 },
    { "F64", 64, -1 }, { "I64", 64, -1 }, { "U64", 64, -1 }, { "U32", 32, -1 }, { "I16", 16, -1 }, { "U16", 16, -1 },
    { "BOOL", 8, -1 }, { "F8_E4M3", 8, -1 }, { "F8_E5M2", 8, -1 }, { "F8_E8M0", 8, -1 }, { "F4", 4, -1 },
    { "F6_E2M3", 6, -1 }, { "F6_E3M2", 6, -1 }, { "C64", 64, -1 },
};
enum { NUM_DTYPES = sizeof dtypes / sizeof dtypes[0] };

struct entry {
    const char *label, *name;    /* for messages */
    struct tensor_info info;
    const char *foreign;
    int bits;
    struct err *err;
};

static int bad(struct entry *e, const char *what)
{
    return err_set(e->err, ERR_MODEL_FILE, "%s: tensor \"%.100s\": %s", e->label, e->name, what);
}

static int read_dtype(struct entry *e, const struct cJSON *item)
{
    if (!cJSON_IsString(item)) return bad(e, "dtype: expected a string");
    for (int i = 0; i < NUM_DTYPES; i++) {
        if (strcmp(item->valuestring, dtypes[i].name) != 0) continue;
        e->bits = dtypes[i].bits;
        e->info.dtype = dtypes[i].dtype < 0 ? DTYPE_COUNT : (enum dtype)dtypes[i].dtype;
        e->foreign = dtypes[i].dtype < 0 ? dtypes[i].name : NULL;
        return 0;
    }
    return err_set(e->err, ERR_MODEL_FILE, "%s: tensor \"%.100s\": dtype: expected F32, F16 or BF16, found %.40s",
                   e->label, e->name, item->valuestring);
}

/* Shape, and from it the bytes. */
static int read_shape(struct entry *e, const struct cJSON *item)
{
    int64_t dim, bits = e->bits;
    if (!cJSON_IsArray(item)) return bad(e, "shape: expected an array");
    for (const struct cJSON *each = item->child; each; each = each->next) {
        if (json_int64(each, &dim) < 0 || dim < 0) return bad(e, "shape: expected integers of at least 0");
        if (__builtin_mul_overflow(bits, dim, &bits))
            return bad(e, "shape: expected a size below 2^60 bytes, found more");
        if (e->info.ndim < MAX_TENSOR_DIMS) e->info.shape[e->info.ndim] = dim;
        else e->foreign = "of more than 4 dimensions";
        e->info.ndim++;
    }
    if (e->info.ndim > MAX_TENSOR_DIMS) e->info.ndim = MAX_TENSOR_DIMS;
    if (bits % 8 != 0) return bad(e, "shape: expected whole bytes");
    e->info.bytes = (uint64_t)bits / 8;
    return 0;
}

static int read_offsets(struct entry *e, const struct cJSON *item, uint64_t data_start)
{
    int64_t begin, end;
    const struct cJSON *first = cJSON_IsArray(item) ? item->child : NULL;
    if (!first || !first->next || first->next->next || json_int64(first, &begin) < 0 ||
        json_int64(first->next, &end) < 0 || begin < 0 || end < begin) {
        return bad(e, "data_offsets: expected two integers, 0 <= begin <= end");
    }
    if ((uint64_t)(end - begin) != e->info.bytes) {
        return err_set(e->err, ERR_MODEL_FILE, "%s: tensor \"%.100s\": data_offsets: expected %" PRIu64
                       " bytes (shape and dtype), found %" PRId64, e->label, e->name, e->info.bytes, end - begin);
    }
    e->info.offset = data_start + (uint64_t)begin;   /* below 2^63 + 2^27 */
    return 0;
}

static int add_tensor(struct tensor_index *index, int32_t file, const char *label, const struct cJSON *item,
                      uint64_t data_start, struct err *err)
{
    struct entry e = { .label = label, .name = item->string, .info = { .file = file }, .err = err };
    int rc;

    if (!name_is_printable(e.name, strlen(e.name))) e.name = "(unprintable)";
    if (!cJSON_IsObject(item)) return bad(&e, "expected an object");
    if ((rc = read_dtype(&e, json_get(item, "dtype"))) < 0) return rc;
    if ((rc = read_shape(&e, json_get(item, "shape"))) < 0) return rc;
    if ((rc = read_offsets(&e, json_get(item, "data_offsets"), data_start)) < 0) return rc;
    return tensor_index_add(index, label, item->string, strlen(item->string), &e.info, e.foreign, err);
}

int safetensors_parse(struct tensor_index *index, int32_t file, const char *label, const char *header, size_t len,
                      uint64_t file_size, struct err *err)
{
    struct json_limits limits = json_limits_file;
    struct cJSON *root;
    struct err why = { 0 };
    size_t first = index->count;
    uint64_t data_start = 8 + (uint64_t)len;

    limits.max_nodes = (size_t)MAX_TENSORS * 12;
    limits.max_depth = 8;
    if (len == 0 || header[0] != '{')
        return err_set(err, ERR_MODEL_FILE, "%s: header: expected it to start with {", label);
    int rc = json_parse(header, len, &limits, &root, &why);
    if (rc < 0) return err_set(err, rc == ERR_NO_MEMORY ? rc : ERR_MODEL_FILE, "%s: header: %s", label, why.message);
    for (const struct cJSON *item = root->child; item && rc == 0; item = item->next) {
        if (strcmp(item->string, "__metadata__") != 0) rc = add_tensor(index, file, label, item, data_start, err);
    }
    json_free(root);
    if (rc < 0) return rc;
    return tensor_index_check_file(index, first, label, data_start, file_size, true, err);
}

int safetensors_open(struct tensor_index *index, int32_t file, const char *label, int fd, uint64_t file_size,
                     struct err *err)
{
    unsigned char raw[8];
    uint64_t len = 0;
    int rc = file_read_at(fd, label, 0, raw, sizeof raw, err);
    if (rc < 0) return rc;
    for (int i = 7; i >= 0; i--) len = len << 8 | raw[i];
    if (len > SAFETENSORS_MAX_HEADER || len > file_size - 8) {
        return err_set(err, ERR_MODEL_FILE, "%s: header: expected at most %" PRIu64 " bytes, found %" PRIu64, label,
                       file_size - 8 < SAFETENSORS_MAX_HEADER ? file_size - 8 : (uint64_t)SAFETENSORS_MAX_HEADER, len);
    }
    char *header = malloc((size_t)len + 1);
    if (!header) return err_set(err, ERR_NO_MEMORY, "%s: out of memory for a header of %" PRIu64 " bytes", label, len);
    rc = file_read_at(fd, label, 8, header, len, err);
    if (rc == 0) rc = safetensors_parse(index, file, label, header, (size_t)len, file_size, err);
    free(header);
    return rc;
}
