/* crash_record.h - what an engine says last when its ranks fail: each plan that was in flight, oldest first, with its shapes and the
 * sequences in it, so that one can tell which request brought a device down. What the device itself said (op, GPU) is in the line before
 * ("cuda_error", "rank_failed").
 * Flow: engine_run -> crash_record() -> the log, event "step_lost".        Thread: engine. No allocation. */
#ifndef SLUICE_ENGINE_CRASH_RECORD_H
#define SLUICE_ENGINE_CRASH_RECORD_H

#include <stddef.h>

#include "scheduler.h"

enum { CRASH_RECORD_MAX = 1000 };      /* bytes of a plan's text; a line of the log holds no more */

void crash_record(const struct scheduler *s);
/* The text of one plan: "step 7: 19 tokens in 2 sequences (1 decode), 2 rows, longest context 20; sequences 5 (18 from 0), 4 (1 from 19)".
 * Prompts before decodes, each with its tokens and the position of the first; what does not fit is counted: "and 250 more". */
void crash_record_text(char text[CRASH_RECORD_MAX], const struct batch *batch);

#endif
