/* sim.h - a scheduler simulator: random clients and a fake device around the real scheduler.
 * The truth: a request's tokens are a pure function of its prompt, domain and sampling, computed here without the
 * scheduler. The device stores in each KV slot a hash of everything up to that position, made from what the plan's
 * block tables say came before. A block that is shared, reused or published wrongly therefore shows as a hash that is
 * not the truth's. With overlap it draws ahead of what the client has received: from its own last tokens, as a device
 * does. A request that has ended for its client while a plan still holds it is dead: what the device then writes and
 * draws is not compared with it. */
#ifndef SLUICE_TESTS_SIM_H
#define SLUICE_TESTS_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler.h"

enum { SIM_VOCAB = 61, SIM_EOS = 3, SIM_MAX_LEN = 192, SIM_MAX_STOPS = 3, SIM_MAX_LIVE = 64, SIM_DOMAINS = 3 };

struct sim_random { uint64_t state; };
uint32_t sim_below(struct sim_random *random, uint32_t n);         /* 0..n-1 */
bool     sim_chance(struct sim_random *random, uint32_t percent);
uint64_t sim_mix(uint64_t hash, uint64_t value);

#define SIM_CHECK(cond) do { if (!(cond)) sim_fail(__FILE__, __LINE__, #cond); } while (0)
void sim_fail(const char *file, int line, const char *cond) __attribute__((noreturn));

/* One request as its client sees it. */
struct sim_request {
    bool live, abort_sent, may_fail;
    bool doomed;                       /* the device drew nothing for it: it will fail */
    struct engine_request req;
    uint8_t domain;
    token_id tokens[SIM_MAX_LEN];      /* prompt, then what was received */
    int32_t num_tokens;
    int32_t num_drawn;                 /* those and what the device has drawn since */
    uint64_t chain[SIM_MAX_LEN];       /* truth: hash of domain and tokens 0..i */
    token_id stop_ids[SIM_MAX_STOPS];
    token_id bias_id;
    float bias_value;
    int64_t submitted_step;
};

void sim_request_init(struct sim_request *r, struct sim_random *random, uint64_t id, int32_t max_model_len,
                      bool priorities);
/* A further choice of the same prompt. */
void     sim_request_clone(struct sim_request *r, const struct sim_request *first, uint64_t id, uint32_t choice);
void     sim_request_append(struct sim_request *r, token_id token);
/* What the model would draw after the first n tokens, masks applied. */
token_id sim_truth(const struct sim_request *r, int32_t n);
bool     sim_is_masked(const struct sim_request *r, int32_t n, token_id token);
enum finish_reason sim_truth_finish(const struct sim_request *r, int32_t max_model_len);

/* The device. */
struct sim_slot_history { uint64_t hash; int32_t num_tokens; };
struct sim_device {
    int32_t num_blocks, block_size, max_num_seqs;
    uint64_t *kv;                      /* [num_blocks * block_size] */
    struct sim_slot_history *histories;/* [max_num_seqs] penalty counts */
    token_id *last_tokens;             /* [max_num_seqs] drawn in each slot */
    struct sim_random random;
    uint32_t bad_percent;
};
void sim_device_init(struct sim_device *d, int32_t num_blocks, int32_t block_size, int32_t max_num_seqs, uint64_t seed);
void sim_device_release(struct sim_device *d);
/* A plan's sequence; request NULL: it is dead. */
struct sim_seq { struct sim_request *request; uint64_t id; uint8_t domain; };
void sim_device_execute(struct sim_device *d, const struct step_plan *plan, const struct sim_seq *seqs,
                        struct step_result *result);

#endif
