/* scheduler_impl.h - what scheduler.c and draft.c share; for nobody else.
 * scheduler.c keeps the lists and says what a finished step means; draft.c puts the next step together. */
#ifndef SLUICE_ENGINE_SCHEDULER_IMPL_H
#define SLUICE_ENGINE_SCHEDULER_IMPL_H

#include "scheduler.h"

static inline bool in_turns(const struct sequence *seq) { return !list_empty(&seq->ring); }
/* fair: into the list of its state, before or behind all others; nothing when it is in one already. */
enum turn_place { TURN_LAST, TURN_FIRST, TURN_RESUMED };     /* resumed ones stand before all others, in their own order */
void turns_enter(struct scheduler *s, struct sequence *seq, enum turn_place place);
void turns_leave(struct scheduler *s, struct sequence *seq);
void scheduler_start_leading(struct scheduler *s, struct sequence *seq);
/* Slot and blocks go back; seq waits again, in its old place. */
void scheduler_preempt(struct scheduler *s, struct sequence *seq);

#endif
