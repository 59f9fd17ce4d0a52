/* plan_fill.h - scheduled sequences -> the flat arrays of a step_plan.
 * Flow: scheduler decides num_drafted per sequence -> plan_fill, decodes first -> ranks.
 * Thread: engine only. A sequence gets a row when this step computes its last token; penalties and masks travel with
 * it. */
#ifndef SLUICE_ENGINE_PLAN_FILL_H
#define SLUICE_ENGINE_PLAN_FILL_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/loader.h>
#include <sluice/step_plan.h>

#include "sequence.h"

struct eos_ids { token_id ids[MAX_EOS_IDS]; int num; };

/* What rows take from a plan's bounded arrays. */
struct row_need { int32_t rows, bias, history_tokens; };
struct row_need row_need_of(const struct sequence *seq, const struct eos_ids *eos);
bool row_need_fits(const struct row_need *used, const struct row_need *more, const struct step_plan_caps *caps);

/* Appends seq with its num_drafted tokens (0 afterwards); the room was checked. Rows that score its prompt come first. A
 * token that a plan in flight draws is TOKEN_FEEDBACK. Returns the index of the row that draws, or -1: a prompt goes on,
 * or nothing is to be drawn. */
int32_t plan_fill_add(struct step_plan *plan, struct sequence *seq, const struct eos_ids *eos);

/* Who filled a place of a plan's memory last, so that a decode which comes back to it only adds what is new: its block table
 * only grows, its row's parameters stay. Per plan; zeroed at the start. */
struct plan_owners {
    uint64_t *tables, *rows;           /* [max_seqs], [max_rows] sequence.admission, 0 = nobody's */
};
/* plan_fill_add for each of n sequences; rows [n]. plan was reset, its memory is as the last plan_fill left it. */
void plan_fill(struct step_plan *plan, struct plan_owners *owners, struct sequence *const *seqs, int32_t n,
               const struct eos_ids *eos, int32_t *rows);

#endif
