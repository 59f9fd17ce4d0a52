/* safetensors.h - the header of one safetensors file -> tensor_index. */
#ifndef SLUICE_LOADER_SAFETENSORS_H
#define SLUICE_LOADER_SAFETENSORS_H

#include "tensor_index.h"

enum { SAFETENSORS_MAX_HEADER = 100 << 20 };

/* header: the JSON text after the 8 length bytes. Data fills [8 + len, file_size). Adds its tensors as file `file`. */
int safetensors_parse(struct tensor_index *index, int32_t file, const char *label, const char *header, size_t len,
                      uint64_t file_size, struct err *err);
/* Reads length and header of fd, then safetensors_parse. */
int safetensors_open(struct tensor_index *index, int32_t file, const char *label, int fd, uint64_t file_size,
                     struct err *err);

#endif
