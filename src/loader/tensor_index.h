/* tensor_index.h - the tensors of all files of a model, by name.
 * Flow: a parser adds the tensors of one file, then calls tensor_index_check_file; offsets come from the file, so
 * nothing is read through an entry before that check. infos move while growing: hand out pointers only when all files
 * are in. */
#ifndef SLUICE_LOADER_TENSOR_INDEX_H
#define SLUICE_LOADER_TENSOR_INDEX_H

#include <stdbool.h>

#include <sluice/loader.h>

#include "base/arena.h"
#include "base/hash.h"

enum { MAX_TENSORS = 1000000, MAX_TENSOR_DIMS = 4, MAX_TENSOR_NAME = 255 };

struct tensor_index {
    struct tensor_info *infos;
    const char **foreign;      /* per tensor: name of a type that can be listed but not read, or NULL */
    size_t count, cap;
    struct str_map by_name;    /* -> position in infos */
    struct arena names;
};

int  tensor_index_init(struct tensor_index *index);    /* 0 or ERR_NO_MEMORY */
void tensor_index_release(struct tensor_index *index);
/* Copies the name. info->name is ignored. Refuses unprintable, long and repeated names, and more than MAX_TENSORS. */
int  tensor_index_add(struct tensor_index *index, const char *label, const char *name, size_t name_len,
                      const struct tensor_info *info, const char *foreign, struct err *err);
/* Tensors [first, count) belong to one file: each must lie in [data_start, data_end), none may overlap; with `tile`
 * they must fill it without a hole (safetensors). */
int  tensor_index_check_file(const struct tensor_index *index, size_t first, const char *label, uint64_t data_start,
                             uint64_t data_end, bool tile, struct err *err);
const struct tensor_info *tensor_index_find(const struct tensor_index *index, const char *name);

/* Valid UTF-8 without control bytes: what may stand in a message. */
bool name_is_printable(const char *text, size_t len);

#endif
