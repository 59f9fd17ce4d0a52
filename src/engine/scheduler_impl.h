/* scheduler_impl.h - what scheduler.c and draft.c share; for nobody else.
 * scheduler.c keeps the lists and says what a finished step means; draft.c puts the next step together. */
#ifndef SLUICE_ENGINE_SCHEDULER_IMPL_H
#define SLUICE_ENGINE_SCHEDULER_IMPL_H

#include "scheduler.h"

static inline bool in_turns(const struct sequence *seq) { return !list_empty(&seq->ring); }
/* fair: into the list of its state, before or behind all others; nothing when it is in one already. */
void turns_enter(struct scheduler *s, struct sequence *seq, bool at_front);
void turns_leave(struct scheduler *s, struct sequence *seq);
void scheduler_start_leading(struct scheduler *s, struct sequence *seq);
/* Slot and blocks go back; seq waits again, in its old place. */
void scheduler_preempt(struct scheduler *s, struct sequence *seq);

#endif
