/* bench.h - sluice-engine bench: measurements of one replica, without a gateway. */
#ifndef SLUICE_ENGINE_CMD_BENCH_H
#define SLUICE_ENGINE_CMD_BENCH_H

/* argv: what follows "bench". The exit code. */
int bench_main(int argc, char **argv);

#endif
