/* partition.h - the cuts along one dimension (private to parallel). */
#ifndef SLUICE_PARALLEL_PARTITION_H
#define SLUICE_PARALLEL_PARTITION_H

#include <sluice/parallel.h>

/* Query and KV heads of one tp rank. Needs 1 <= tp_size <= num_heads and num_heads % num_kv_heads == 0. */
void heads_split(int num_heads, int num_kv_heads, int tp_size, int tp_rank, struct range *heads,
                 struct range *kv_heads);
/* A wide dimension (ffn, vocabulary): ranges in multiples of 64, which suit vector code, unless that would leave a rank
 * with nothing. */
struct range wide_split(int64_t n, int tp_size, int tp_rank);

#endif
