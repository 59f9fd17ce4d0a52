/* cublaslt.h - cublasLt, opened when the first GPU is: an engine that runs on a CPU starts where there is no CUDA install.
 * The functions keep their names and their header (cublasLt.h); before the open they answer CUBLAS_STATUS_NOT_INITIALIZED.
 * Looked for where the dynamic linker looks (LD_LIBRARY_PATH, ldconfig), then in /usr/local/cuda/lib64. */
#ifndef SLUICE_BACKEND_CUDA_CUBLASLT_H
#define SLUICE_BACKEND_CUDA_CUBLASLT_H

#include <sluice/err.h>

/* Idempotent, any thread. ERR_CONFIG: where it was looked for and what is missing. */
int cublaslt_open(struct err *err);

#endif
