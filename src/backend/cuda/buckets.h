/* buckets.h - how many sequences a captured decode step is made for: 1, 2, 4, 8, then by 8 to 256, by 16 to 512, by 32 to 1024.
 * Arithmetic without state; no CUDA. */
#ifndef SLUICE_BACKEND_CUDA_BUCKETS_H
#define SLUICE_BACKEND_CUDA_BUCKETS_H

#include <stdint.h>

enum { NUM_BUCKETS = 4 + 31 + 16 + 16, MAX_BUCKET = 1024 };

/* Index of the smallest bucket that holds n sequences, 0..NUM_BUCKETS-1; -1 above MAX_BUCKET or below 1. */
int bucket_of(int32_t n);
/* Sequences of a bucket. */
int32_t bucket_size(int index);

#endif
