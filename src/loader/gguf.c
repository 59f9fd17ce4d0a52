/* gguf.c - the header parser and the look-ups.
 * Layout (v2, v3, little endian): magic, version, tensor count, key count; keys with typed values; tensor infos;
 * padding; data. The header's length is not stored, so it is read in growing bites until the parse is through. */
#include "gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"

enum {
    FIRST_BITE = 1 << 20,
    MAX_HEADER = 512 << 20,        /* the largest vocabularies in use need about 20 MB */
    MAX_KEYS = 1 << 16,
    MAX_KEY_LEN = 1 << 16,
    MAX_ALIGNMENT = 1 << 20,
    DEFAULT_ALIGNMENT = 32,
    MIN_TENSOR_ENTRY = 8 + 1 + 4 + 8 + 4 + 8,   /* bytes of the shortest tensor info */
};

struct reader {
    struct gguf_file *gguf;        /* data, len grow */
    int fd;
    uint64_t file_size;
    uint64_t pos;
    const char *label;
    struct err *err;
};

/* ---- types ---- */
static const uint8_t value_bytes[] = {
    [GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4,
    [GGUF_BOOL] = 1, [GGUF_STRING] = 0, [GGUF_ARRAY] = 0, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

/* Type numbers as files carry them; -1: named in the refusal, not readable. */
static const struct { int dtype; const char *name; } tensor_types[] = {
    [0] = {DTYPE_F32, "F32"},    [1] = {DTYPE_F16, "F16"},    [2] = {DTYPE_Q4_0, "Q4_0"},  [3] = {DTYPE_Q4_1, "Q4_1"},
    [6] = {DTYPE_Q5_0, "Q5_0"},  [7] = {DTYPE_Q5_1, "Q5_1"},  [8] = {DTYPE_Q8_0, "Q8_0"},  [9] = {-1, "Q8_1"},
    [10] = {DTYPE_Q2_K, "Q2_K"}, [11] = {DTYPE_Q3_K, "Q3_K"}, [12] = {DTYPE_Q4_K, "Q4_K"}, [13] = {DTYPE_Q5_K, "Q5_K"},
    [14] = {DTYPE_Q6_K, "Q6_K"}, [15] = {-1, "Q8_K"},         [16] = {-1, "IQ2_XXS"},      [17] = {-1, "IQ2_XS"},
    [18] = {-1, "IQ3_XXS"},      [19] = {-1, "IQ1_S"},        [20] = {-1, "IQ4_NL"},       [21] = {-1, "IQ3_S"},
    [22] = {-1, "IQ2_S"},        [23] = {-1, "IQ4_XS"},       [24] = {DTYPE_I8, "I8"},     [25] = {-1, "I16"},
    [26] = {DTYPE_I32, "I32"},   [27] = {-1, "I64"},          [28] = {-1, "F64"},          [29] = {-1, "IQ1_M"},
    [30] = {DTYPE_BF16, "BF16"}, [34] = {-1, "TQ1_0"},        [35] = {-1, "TQ2_0"},        [39] = {-1, "MXFP4"},
};

static int tensor_dtype(struct reader *r, const char *name, size_t name_len, uint32_t type, enum dtype *dtype)
{
    size_t known = sizeof tensor_types / sizeof tensor_types[0];
    const char *type_name = type < known ? tensor_types[type].name : NULL;
    if (!type_name || tensor_types[type].dtype < 0) {
        return err_set(r->err, ERR_MODEL_FILE,
                       "%s: tensor \"%.*s\": expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or "
                       "Q2_K to Q6_K, found type %" PRIu32 " (%s)",
                       r->label, (int)name_len, name, type, type_name ? type_name : "unknown");
    }
    *dtype = (enum dtype)tensor_types[type].dtype;
    return 0;
}

/* ---- bytes ---- */
/* Makes the n bytes at pos readable in gguf->data. */
static int need(struct reader *r, uint64_t n)
{
    struct gguf_file *gguf = r->gguf;

    if (n <= gguf->len - r->pos) return 0;
    if (n > r->file_size - r->pos) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: header: expected %" PRIu64 " more bytes at byte %" PRIu64
                       ", found the end at %" PRIu64, r->label, n, r->pos, r->file_size);
    }
    if (n > MAX_HEADER - r->pos) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: header: expected at most %d bytes, found more", r->label,
                       MAX_HEADER);
    }
    uint64_t want = gguf->len ? (uint64_t)gguf->len * 2 : FIRST_BITE;
    if (want < r->pos + n) want = r->pos + n;
    if (want > r->file_size) want = r->file_size;
    if (want > MAX_HEADER) want = MAX_HEADER;
    char *data = realloc(gguf->data, (size_t)want);
    if (!data)
        return err_set(r->err, ERR_NO_MEMORY, "%s: out of memory for a header of %" PRIu64 " bytes", r->label, want);
    gguf->data = data;
    int rc = file_read_at(r->fd, r->label, gguf->len, data + gguf->len, want - gguf->len, r->err);
    if (rc == 0) gguf->len = (size_t)want;
    return rc;
}

static int read_raw(struct reader *r, void *value, size_t n)
{
    int rc = need(r, n);
    if (rc < 0) return rc;
    memcpy(value, r->gguf->data + r->pos, n);
    r->pos += n;
    return 0;
}

static int read_u32(struct reader *r, uint32_t *value) { return read_raw(r, value, sizeof *value); }
static int read_u64(struct reader *r, uint64_t *value) { return read_raw(r, value, sizeof *value); }

/* A string's bytes: at *offset, *len of them. */
static int read_string(struct reader *r, uint32_t *offset, uint32_t *len)
{
    uint64_t n;
    int rc = read_u64(r, &n);
    if (rc < 0 || (rc = need(r, n)) < 0) return rc;
    *offset = (uint32_t)r->pos;
    *len = (uint32_t)n;
    r->pos += n;
    return 0;
}

/* ---- metadata ---- */
static int bad_key(struct reader *r, const struct gguf_value *value, const char *what, uint64_t found)
{
    return err_set(r->err, ERR_MODEL_FILE, "%s: key \"%.*s\": %s %" PRIu64, r->label,
                   value->key_len > 100 ? 100 : (int)value->key_len, r->gguf->data + value->key, what, found);
}

static int read_array(struct reader *r, struct gguf_value *value)
{
    uint32_t elem;
    uint64_t count, bytes;
    int rc;

    if ((rc = read_u32(r, &elem)) < 0 || (rc = read_u64(r, &count)) < 0) return rc;
    if (elem > GGUF_F64 || elem == GGUF_ARRAY)
        return bad_key(r, value, "expected an array of plain values, found type", elem);
    uint64_t left = r->file_size - r->pos, least = elem == GGUF_STRING ? 8 : value_bytes[elem];
    if (left > MAX_HEADER) left = MAX_HEADER;
    if (count > left / least) return bad_key(r, value, "expected an array that fits the file, found elements:", count);
    value->elem = (enum gguf_type)elem;
    value->count = (uint32_t)count;
    if (elem != GGUF_STRING) {
        bytes = count * least;
        if ((rc = need(r, bytes)) < 0) return rc;
        value->offset = (uint32_t)r->pos;
        r->pos += bytes;
        return 0;
    }
    value->strings = malloc((count ? count : 1) * sizeof *value->strings);
    if (!value->strings)
        return err_set(r->err, ERR_NO_MEMORY, "%s: out of memory for %" PRIu64 " strings", r->label, count);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t offset, len;
        if ((rc = read_string(r, &offset, &len)) < 0) return rc;
        value->strings[i] = offset - 8;
    }
    return 0;
}

static int read_value(struct reader *r, struct gguf_value *value)
{
    uint32_t type;
    int rc;

    if ((rc = read_string(r, &value->key, &value->key_len)) < 0) return rc;
    if (value->key_len == 0 || value->key_len >= MAX_KEY_LEN ||
        !name_is_printable(r->gguf->data + value->key, value->key_len)) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: expected a printable key at byte %" PRIu32, r->label, value->key);
    }
    if ((rc = read_u32(r, &type)) < 0) return rc;
    if (type > GGUF_F64) return bad_key(r, value, "expected a value type of 0 to 12, found", type);
    value->type = (enum gguf_type)type;
    if (type == GGUF_STRING) return read_string(r, &value->offset, &value->count);
    if (type == GGUF_ARRAY) return read_array(r, value);
    if ((rc = need(r, value_bytes[type])) < 0) return rc;
    value->offset = (uint32_t)r->pos;
    r->pos += value_bytes[type];
    return 0;
}

static int read_metadata(struct reader *r, uint64_t num_keys)
{
    struct gguf_file *gguf = r->gguf;
    int rc;

    if (num_keys > MAX_KEYS) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: header: expected at most %d keys, found %" PRIu64, r->label,
                       (int)MAX_KEYS, num_keys);
    }
    gguf->values = calloc(num_keys ? num_keys : 1, sizeof *gguf->values);
    if (!gguf->values) return err_set(r->err, ERR_NO_MEMORY, "%s: out of memory", r->label);
    for (uint64_t i = 0; i < num_keys; i++) {
        gguf->num_values++;
        if ((rc = read_value(r, &gguf->values[i])) < 0) return rc;
    }
    return 0;
}

/* Only once data has stopped moving: the map borrows its keys. */
static int index_keys(struct reader *r)
{
    struct gguf_file *gguf = r->gguf;
    int rc = str_map_init(&gguf->by_key, gguf->num_values);
    for (size_t i = 0; rc == 0 && i < gguf->num_values; i++) {
        const struct gguf_value *value = &gguf->values[i];
        int32_t existing = -1;
        rc = str_map_put(&gguf->by_key, gguf->data + value->key, value->key_len, (int32_t)i, &existing);
        if (existing >= 0) return bad_key(r, value, "found twice, the second as number", i);
    }
    return rc < 0 ? err_set(r->err, rc, "%s: out of memory", r->label) : 0;
}

/* ---- tensors ---- */
static int read_dims(struct reader *r, const char *name, size_t name_len, struct tensor_info *info)
{
    uint32_t ndim;
    int rc = read_u32(r, &ndim);
    if (rc < 0) return rc;
    if (ndim == 0 || ndim > MAX_TENSOR_DIMS) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: tensor \"%.*s\": expected 1 to %d dimensions, found %" PRIu32,
                       r->label, (int)name_len, name, (int)MAX_TENSOR_DIMS, ndim);
    }
    info->ndim = (int)ndim;
    for (uint32_t i = 0; i < ndim; i++) {   /* the file lists the innermost first */
        uint64_t dim;
        if ((rc = read_u64(r, &dim)) < 0) return rc;
        if (dim == 0 || dim > INT64_MAX) {
            return err_set(r->err, ERR_MODEL_FILE,
                           "%s: tensor \"%.*s\": dimension %" PRIu32 ": expected at least 1, found %" PRIu64, r->label,
                           (int)name_len, name, i, dim);
        }
        info->shape[ndim - 1 - i] = (int64_t)dim;
    }
    return 0;
}

static int tensor_bytes(struct reader *r, const char *name, size_t name_len, struct tensor_info *info)
{
    int64_t total = dtype_row_bytes(info->dtype, info->shape[info->ndim - 1]);
    bool bad = total < 0;
    for (int i = 0; i < info->ndim - 1 && !bad; i++) bad = __builtin_mul_overflow(total, info->shape[i], &total);
    if (bad) {
        return err_set(r->err, ERR_MODEL_FILE,
                       "%s: tensor \"%.*s\": expected rows of whole %s blocks (%d elements) and a size "
                       "below 2^63, found rows of %" PRId64,
                       r->label, (int)name_len, name, dtype_name(info->dtype), dtype_block_elems(info->dtype),
                       info->shape[info->ndim - 1]);
    }
    info->bytes = (uint64_t)total;
    return 0;
}

/* One tensor; its offset stays relative to the data section. */
static int read_tensor(struct reader *r, struct tensor_index *index)
{
    char name[MAX_TENSOR_NAME];    /* the header may move under it */
    uint32_t name_at, name_len, type;
    struct tensor_info info = { 0 };
    int rc;

    if ((rc = read_string(r, &name_at, &name_len)) < 0) return rc;
    if (name_len > sizeof name || !name_is_printable(r->gguf->data + name_at, name_len)) {
        return err_set(r->err, ERR_MODEL_FILE,
                       "%s: tensor %zu: expected a printable name of at most %zu bytes, found %" PRIu32 " bytes",
                       r->label, index->count, sizeof name, name_len);
    }
    memcpy(name, r->gguf->data + name_at, name_len);
    if ((rc = read_dims(r, name, name_len, &info)) < 0) return rc;
    if ((rc = read_u32(r, &type)) < 0 || (rc = read_u64(r, &info.offset)) < 0) return rc;
    if ((rc = tensor_dtype(r, name, name_len, type, &info.dtype)) < 0) return rc;
    if ((rc = tensor_bytes(r, name, name_len, &info)) < 0) return rc;
    return tensor_index_add(index, r->label, name, name_len, &info, NULL, r->err);
}

static int place_tensors(struct reader *r, struct tensor_index *index, size_t first)
{
    int64_t alignment = DEFAULT_ALIGNMENT;
    if (gguf_has(r->gguf, "general.alignment") && gguf_get_i64(r->gguf, "general.alignment", &alignment) < 0)
        alignment = 0;
    if (alignment < 8 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0) {
        return err_set(r->err, ERR_MODEL_FILE,
                       "%s: key \"general.alignment\": expected a power of two from 8 to %d, found %" PRId64, r->label,
                       (int)MAX_ALIGNMENT, alignment);
    }
    uint64_t mask = (uint64_t)alignment - 1, data_start = (r->pos + mask) & ~mask;
    if (index->count > first && data_start > r->file_size) {
        return err_set(r->err, ERR_MODEL_FILE,
                       "%s: expected tensor data at byte %" PRIu64 ", found the end at %" PRIu64, r->label, data_start,
                       r->file_size);
    }
    for (size_t i = first; i < index->count; i++) {
        struct tensor_info *info = &index->infos[i];
        if ((info->offset & mask) != 0 || __builtin_add_overflow(info->offset, data_start, &info->offset)) {
            return err_set(r->err, ERR_MODEL_FILE,
                           "%s: tensor \"%s\": expected an offset that is a multiple of %" PRId64 ", found %" PRIu64,
                           r->label, info->name, alignment, info->offset);
        }
    }
    return tensor_index_check_file(index, first, r->label, data_start, r->file_size, false, r->err);
}

/* ---- the file ---- */
static int read_preamble(struct reader *r, uint64_t *num_tensors, uint64_t *num_keys)
{
    char magic[4];
    uint32_t version;
    int rc;

    if ((rc = read_raw(r, magic, 4)) < 0) return rc;
    if (memcmp(magic, "GGUF", 4) != 0)
        return err_set(r->err, ERR_MODEL_FILE, "%s: expected a GGUF file, found other bytes", r->label);
    if ((rc = read_u32(r, &version)) < 0) return rc;
    if (version == 0x02000000 || version == 0x03000000) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: expected a little-endian GGUF file, found a big-endian one",
                       r->label);
    }
    if (version != 2 && version != 3) {
        return err_set(r->err, ERR_MODEL_FILE, "%s: expected GGUF version 2 or 3, found %" PRIu32, r->label, version);
    }
    if ((rc = read_u64(r, num_tensors)) < 0 || (rc = read_u64(r, num_keys)) < 0) return rc;
    if (*num_tensors > MAX_TENSORS || *num_tensors > r->file_size / MIN_TENSOR_ENTRY) {
        return err_set(r->err, ERR_MODEL_FILE,
                       "%s: header: expected at most %d tensors that fit the file, found %" PRIu64, r->label,
                       (int)MAX_TENSORS, *num_tensors);
    }
    return 0;
}

static int parse(struct reader *r, struct tensor_index *index)
{
    uint64_t num_tensors = 0, num_keys = 0;
    size_t first = index->count;
    int rc;

    if ((rc = read_preamble(r, &num_tensors, &num_keys)) < 0) return rc;
    if ((rc = read_metadata(r, num_keys)) < 0) return rc;
    for (uint64_t i = 0; i < num_tensors; i++) {
        if ((rc = read_tensor(r, index)) < 0) return rc;
    }
    if ((rc = index_keys(r)) < 0) return rc;
    return place_tensors(r, index, first);
}

int gguf_open(struct gguf_file **out, struct tensor_index *index, int fd, uint64_t size, const char *label,
              struct err *err)
{
    *out = NULL;
    struct gguf_file *gguf = calloc(1, sizeof *gguf);
    if (!gguf) return err_set(err, ERR_NO_MEMORY, "%s: out of memory", label);
    struct reader reader = { .gguf = gguf, .fd = fd, .file_size = size, .label = label, .err = err };
    int rc = parse(&reader, index);
    if (rc < 0) {
        gguf_close(gguf);
        return rc;
    }
    *out = gguf;
    return 0;
}

void gguf_close(struct gguf_file *gguf)
{
    if (!gguf) return;
    for (size_t i = 0; i < gguf->num_values; i++) free(gguf->values[i].strings);
    str_map_release(&gguf->by_key);
    free(gguf->values);
    free(gguf->data);
    free(gguf);
}

/* ---- look-ups ---- */
static const struct gguf_value *find(const struct gguf_file *gguf, const char *key)
{
    int32_t i = str_map_get(&gguf->by_key, key, strlen(key));
    return i < 0 ? NULL : &gguf->values[i];
}

static int scalar_i64(const char *at, enum gguf_type type, int64_t *value)
{
    uint64_t raw = 0;
    if (type == GGUF_STRING || type == GGUF_ARRAY || type == GGUF_F32 || type == GGUF_F64) return ERR_TYPE;
    memcpy(&raw, at, value_bytes[type]);
    switch (type) {
    case GGUF_I8: *value = (int8_t)raw; return 0;
    case GGUF_I16: *value = (int16_t)raw; return 0;
    case GGUF_I32: *value = (int32_t)raw; return 0;
    case GGUF_BOOL: *value = raw != 0; return 0;
    case GGUF_U64:
        if (raw > INT64_MAX) return ERR_TYPE;
        break;
    default: break;
    }
    *value = (int64_t)raw;
    return 0;
}

static int scalar_f64(const char *at, enum gguf_type type, double *value)
{
    int64_t integer;
    float single;
    if (type == GGUF_F32) {
        memcpy(&single, at, sizeof single);
        *value = single;
        return 0;
    }
    if (type == GGUF_F64) {
        memcpy(value, at, sizeof *value);
        return 0;
    }
    int rc = scalar_i64(at, type, &integer);
    if (rc == 0) *value = (double)integer;
    return rc;
}

bool gguf_has(const struct gguf_file *gguf, const char *key)
{
    return find(gguf, key) != NULL;
}

int gguf_get_str(const struct gguf_file *gguf, const char *key, const char **text, size_t *len)
{
    const struct gguf_value *value = find(gguf, key);
    if (!value) return ERR_NOT_FOUND;
    if (value->type != GGUF_STRING) return ERR_TYPE;
    *text = gguf->data + value->offset;
    *len = value->count;
    return 0;
}

int gguf_get_i64(const struct gguf_file *gguf, const char *key, int64_t *number)
{
    const struct gguf_value *value = find(gguf, key);
    return value ? scalar_i64(gguf->data + value->offset, value->type, number) : ERR_NOT_FOUND;
}

int gguf_get_f64(const struct gguf_file *gguf, const char *key, double *number)
{
    const struct gguf_value *value = find(gguf, key);
    return value ? scalar_f64(gguf->data + value->offset, value->type, number) : ERR_NOT_FOUND;
}

size_t gguf_array_len(const struct gguf_file *gguf, const char *key)
{
    const struct gguf_value *value = find(gguf, key);
    return value && value->type == GGUF_ARRAY ? value->count : 0;
}

static int find_element(const struct gguf_file *gguf, const char *key, size_t i, const struct gguf_value **value)
{
    *value = find(gguf, key);
    if (!*value) return ERR_NOT_FOUND;
    if ((*value)->type != GGUF_ARRAY) return ERR_TYPE;
    return i < (*value)->count ? 0 : ERR_NOT_FOUND;
}

int gguf_array_str(const struct gguf_file *gguf, const char *key, size_t i, const char **text, size_t *len)
{
    const struct gguf_value *value;
    uint64_t bytes;
    int rc = find_element(gguf, key, i, &value);
    if (rc < 0) return rc;
    if (value->elem != GGUF_STRING) return ERR_TYPE;
    const char *at = gguf->data + value->strings[i];
    memcpy(&bytes, at, sizeof bytes);
    *text = at + 8;
    *len = (size_t)bytes;
    return 0;
}

int gguf_array_i64(const struct gguf_file *gguf, const char *key, size_t i, int64_t *number)
{
    const struct gguf_value *value;
    int rc = find_element(gguf, key, i, &value);
    if (rc < 0) return rc;
    return scalar_i64(gguf->data + value->offset + i * value_bytes[value->elem], value->elem, number);
}

int gguf_array_f64(const struct gguf_file *gguf, const char *key, size_t i, double *number)
{
    const struct gguf_value *value;
    int rc = find_element(gguf, key, i, &value);
    if (rc < 0) return rc;
    return scalar_f64(gguf->data + value->offset + i * value_bytes[value->elem], value->elem, number);
}
