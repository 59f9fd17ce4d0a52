/* affinity.h - which replicas have computed which beginnings of prompts: a table of hashes of whole KV blocks, each chained to
 * its parent and to the prompt's cache domain, as in the engines' prefix caches.
 * Bounded: AFFINITY_SLOTS entries, newer ones overwrite; what an engine has evicted meanwhile only costs a prefill, never an
 * answer. Thread: the router's loop. */
#ifndef SLUICE_ROUTER_AFFINITY_H
#define SLUICE_ROUTER_AFFINITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/types.h>

enum { AFFINITY_SLOTS = 1 << 16, AFFINITY_MAX_BLOCKS = 512 /* of one prompt; the rest follows its beginning */ };

struct affinity {
    struct affinity_slot { uint64_t hash; uint32_t replicas; } *slots;
    size_t block_size;
};

int  affinity_init(struct affinity *affinity, int64_t block_size);     /* 0 or ERR_NO_MEMORY */
/* Bit mask of the replicas in `among` that know the longest beginning of the prompt; 0 = none knows a whole block of it.
 * *matched (may be NULL): its tokens. */
uint32_t affinity_match(const struct affinity *affinity, const token_id *ids, size_t n, const uint8_t domain[32], uint32_t among,
                        size_t *matched);
/* The prompt goes to this replica. */
void affinity_note(struct affinity *affinity, const token_id *ids, size_t n, const uint8_t domain[32], int replica);
void affinity_forget(struct affinity *affinity, int replica);          /* it died, and its cache with it */
void affinity_release(struct affinity *affinity);

/* ---- the choice itself: pure arithmetic over what is known of each replica ---- */
struct placement {
    bool ready;                    /* and with room in its window */
    int32_t num_sent, max_num_seqs;
    int64_t outstanding_tokens;
    uint64_t num_given;            /* choices it ever got: breaks ties */
};
/* The least loaded of `liked` (bit mask) while it is not overloaded, else the least loaded of all; -1 = none is ready. */
int placement_choose(const struct placement *replicas, int n, uint32_t liked);
/* Is replica i so much busier than the least loaded one that a cached prefix is not worth the wait? */
bool placement_overloaded(const struct placement *replicas, int n, int i);
/* The replica of a session: rendezvous hashing, so that a replica that comes or goes moves only its own sessions. */
int placement_session(const struct placement *replicas, int n, uint64_t session);

#endif
