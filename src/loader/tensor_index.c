#include "tensor_index.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

int tensor_index_init(struct tensor_index *index)
{
    *index = (struct tensor_index){ 0 };
    arena_init(&index->names, 0);
    return str_map_init(&index->by_name, 512);
}

void tensor_index_release(struct tensor_index *index)
{
    str_map_release(&index->by_name);
    arena_release(&index->names);
    free(index->foreign);
    free(index->infos);
    *index = (struct tensor_index){ 0 };
}

bool name_is_printable(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F) return false;
    }
    return utf8_valid(text, len);
}

static int grow(struct tensor_index *index)
{
    size_t cap = index->cap ? index->cap * 2 : 256;
    struct tensor_info *infos = realloc(index->infos, cap * sizeof *infos);
    if (!infos) return ERR_NO_MEMORY;
    index->infos = infos;
    const char **foreign = realloc(index->foreign, cap * sizeof *foreign);
    if (!foreign) return ERR_NO_MEMORY;
    index->foreign = foreign;
    index->cap = cap;
    return 0;
}

int tensor_index_add(struct tensor_index *index, const char *label, const char *name, size_t name_len,
                     const struct tensor_info *info, const char *foreign, struct err *err)
{
    int32_t existing = -1;

    if (name_len == 0 || name_len > MAX_TENSOR_NAME) {
        return err_set(err, ERR_MODEL_FILE, "%s: tensor %zu: expected a name of 1 to %d bytes, found %zu", label,
                       index->count, (int)MAX_TENSOR_NAME, name_len);
    }
    if (!name_is_printable(name, name_len)) {
        return err_set(err, ERR_MODEL_FILE, "%s: tensor %zu: expected a printable name", label, index->count);
    }
    if (index->count >= MAX_TENSORS) {
        return err_set(err, ERR_MODEL_FILE, "%s: expected at most %d tensors, found more", label, (int)MAX_TENSORS);
    }
    char *copy = arena_strndup(&index->names, name, name_len);
    if (!copy || (index->count == index->cap && grow(index) < 0) ||
        str_map_put(&index->by_name, copy, name_len, (int32_t)index->count, &existing) < 0) {
        return err_set(err, ERR_NO_MEMORY, "%s: out of memory for %zu tensors", label, index->count + 1);
    }
    if (existing >= 0) return err_set(err, ERR_MODEL_FILE, "%s: tensor \"%s\": found twice", label, copy);
    index->infos[index->count] = *info;
    index->infos[index->count].name = copy;
    index->foreign[index->count++] = foreign;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor_info *x = *(const struct tensor_info *const *)a, *y = *(const struct tensor_info *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1
                               : x->bytes > y->bytes; /* empty ones first, so that they do not look like overlaps */
}

static int check_sorted(const struct tensor_info **sorted, size_t n, const char *label, uint64_t data_start,
                        uint64_t data_end, bool tile, struct err *err)
{
    uint64_t end = data_start;
    for (size_t i = 0; i < n; i++) {
        const struct tensor_info *info = sorted[i];
        if (info->offset < data_start || info->offset > data_end || info->bytes > data_end - info->offset) {
            return err_set(err, ERR_MODEL_FILE,
                           "%s: tensor \"%s\": expected to end by byte %" PRIu64 ", found %" PRIu64
                           " bytes at %" PRIu64,
                           label, info->name, data_end, info->bytes, info->offset);
        }
        if (info->offset < end) {
            return err_set(err, ERR_MODEL_FILE, "%s: tensor \"%s\": expected to start at byte %" PRIu64
                           " or later, found %" PRIu64 " inside tensor \"%s\"", label, info->name, end, info->offset,
                           i ? sorted[i - 1]->name : "");
        }
        if (tile && info->offset > end) {
            return err_set(err, ERR_MODEL_FILE,
                           "%s: tensor \"%s\": expected to start at byte %" PRIu64 ", found %" PRIu64 " (a hole)",
                           label, info->name, end, info->offset);
        }
        end = info->offset + info->bytes;
    }
    if (tile && end != data_end) {
        return err_set(err, ERR_MODEL_FILE, "%s: expected tensors up to byte %" PRIu64 ", found them up to %" PRIu64,
                       label, data_end, end);
    }
    return 0;
}

int tensor_index_check_file(const struct tensor_index *index, size_t first, const char *label, uint64_t data_start,
                            uint64_t data_end, bool tile, struct err *err)
{
    size_t n = index->count - first;
    const struct tensor_info **sorted = malloc((n ? n : 1) * sizeof *sorted);
    if (!sorted) return err_set(err, ERR_NO_MEMORY, "%s: out of memory for %zu tensors", label, n);
    for (size_t i = 0; i < n; i++) sorted[i] = &index->infos[first + i];
    qsort(sorted, n, sizeof *sorted, by_offset);
    int rc = check_sorted(sorted, n, label, data_start, data_end, tile, err);
    free(sorted);
    return rc;
}

const struct tensor_info *tensor_index_find(const struct tensor_index *index, const char *name)
{
    int32_t i = str_map_get(&index->by_name, name, strlen(name));
    return i < 0 ? NULL : &index->infos[i];
}
