/* plan.h - sluice-engine plan: which layout of the GPUs holds the model, and what its memory then holds. */
#ifndef SLUICE_ENGINE_CMD_PLAN_H
#define SLUICE_ENGINE_CMD_PLAN_H

/* argv: what follows "plan". The exit code: EXIT_CONFIG when nothing fits. */
int plan_main(int argc, char **argv);

#endif
