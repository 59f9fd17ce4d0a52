/* replay.h - a step trace again: as text, or through the real scheduler with the recorded results, whose plans must be
 * the recorded ones.  sluice-engine replay [--dump] TRACE */
#ifndef SLUICE_ENGINE_REPLAY_H
#define SLUICE_ENGINE_REPLAY_H

#include <stdint.h>
#include <stdio.h>

#include <sluice/err.h>

#include "trace.h"

struct replay_result { uint64_t plans, submissions, tokens; };

/* One line per record. ERR_PROTOCOL at a broken one. */
int trace_dump(struct trace_view *view, FILE *out, struct err *err);
/* From the first START on. ERR_NOT_FOUND: there is none any more; ERR_PROTOCOL: broken or lost record, or a plan that
 * differs (err names it). */
int trace_replay(struct trace_view *view, struct replay_result *result, struct err *err);
/* The subcommand; argv behind its name. Returns the exit code. */
int replay_main(int argc, char **argv);

#endif
