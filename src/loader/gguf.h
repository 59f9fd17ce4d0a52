/* gguf.h - a GGUF file's header: metadata and tensor list. The public look-ups are in <sluice/loader.h>.
 * The header is kept as read, one block of memory; values and strings are offsets into it. Immutable after
 * gguf_open. */
#ifndef SLUICE_LOADER_GGUF_H
#define SLUICE_LOADER_GGUF_H

#include <sluice/loader.h>

#include "tensor_index.h"

struct gguf_value {
    uint32_t key, key_len;      /* offset in data */
    uint32_t offset;            /* of the value; of the first element of an array */
    enum gguf_type type;
    enum gguf_type elem;        /* of an array */
    uint32_t count;             /* elements of an array; bytes of a string */
    uint32_t *strings;          /* array of strings: offset of each one's length */
};

struct gguf_file {
    char *data;                 /* the header's bytes */
    size_t len;
    struct gguf_value *values;
    size_t num_values;
    struct str_map by_key;      /* -> position in values */
};

/* Reads and checks the header of fd (borrowed, size bytes) and adds its tensors as file 0 of index. */
int gguf_open(struct gguf_file **out, struct tensor_index *index, int fd, uint64_t size, const char *label,
              struct err *err);
void gguf_close(struct gguf_file *gguf);

/* The model configuration that the metadata and tensors describe. */
int gguf_model_config(const struct gguf_file *gguf, const struct tensor_index *index, const char *label,
                      struct model_config *config, struct err *err);

#endif
