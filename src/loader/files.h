/* files.h - opening and reading the files of a model: regular files only, nothing outside the model's root.
 * The root is the model's directory, or the models--* directory when it is a snapshot of a Hugging Face cache, whose
 * files are links to ../../blobs. `label` in messages is the file's own name, never the path. Thread: any. */
#ifndef SLUICE_LOADER_FILES_H
#define SLUICE_LOADER_FILES_H

#include <stdint.h>

#include <sluice/err.h>

/* A descriptor, or ERR_NOT_FOUND (err untouched), or ERR_MODEL_FILE. name: one component, no '/'. */
int open_beneath(int dir_fd, const char *name, uint64_t *size, struct err *err);
/* ERR_MODEL_FILE unless fd is a regular file. */
int regular_file_size(int fd, const char *label, uint64_t *size, struct err *err);
/* All len bytes or an error; a file that ends early is ERR_MODEL_FILE. */
int file_read_at(int fd, const char *label, uint64_t offset, void *dst, uint64_t len, struct err *err);

#endif
