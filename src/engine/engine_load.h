/* engine_load.h - from the configuration to a loaded replica: what the engine needs besides its gateway.
 * Flow: config -> model_source -> ranks_start -> engine_setup -> engine_start, or offline.c.   Thread: the engine's. */
#ifndef SLUICE_ENGINE_LOAD_H
#define SLUICE_ENGINE_LOAD_H

#include <sluice/config.h>
#include <sluice/err.h>
#include <sluice/loader.h>
#include <sluice/rank.h>

#include "engine.h"

/* Fills setup (but for trace and load_ms) and starts the ranks. *src and setup->ranks are the caller's to close, after an
 * error too when they are not NULL. progress: as in ranks_start. ERR_CONFIG, ERR_MODEL_FILE, ERR_NO_MEMORY, ERR_IO. */
int engine_load(struct engine_setup *setup, struct model_source **src, const struct config *config,
                void (*progress)(void *arg, double share), void *progress_arg, struct err *err);
/* ranks_options_of with the GPUs' backend, if this program has it; device cuda is refused if not. */
int engine_ranks_options(struct ranks_options *options, int layers[MAX_PP], const struct config *config, const struct model_config *model,
                         struct err *err);
/* The exit code for an error of engine_load. */
int engine_exit_code(int code);

#endif
