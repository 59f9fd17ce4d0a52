/* engine_main.c - program sluice-engine: one replica. Started by sluiced with a socket at descriptor 3 (and the
 * heartbeat page at 4); loads the model, builds the ranks, says READY, runs until it is stopped or the socket closes.
 * sluice-engine replay [--dump] TRACE: the steps that --trace recorded, again or as text.
 * sluice-engine bench COMMAND: measurements of a replica without a gateway.
 * sluice-engine plan MODEL: what each layout of the GPUs would hold; `sluice plan` is this.
 * Exit: 0 asked to, 70 internal fault, 78 bad configuration or model (the reason is on stderr and in MSG_FAILED). */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <sluice/config.h>
#include <sluice/loader.h>
#include <sluice/rank.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"
#include "engine/engine_load.h"
#include "engine/replay.h"
#include "engine_cmd/bench.h"
#include "engine_cmd/plan.h"

static void leave(int exit_code) { _exit(exit_code); }

/* Each replica has a file of its own. */
static int trace_path_of(struct engine_setup *setup, const struct config *config, struct err *err)
{
    if (!config->trace || !config->trace[0]) return 0;
    int n = config->data_parallel_size > 1
                ? snprintf(setup->trace_path, sizeof setup->trace_path, "%s.%d", config->trace, (int)getpid())
                : snprintf(setup->trace_path, sizeof setup->trace_path, "%s", config->trace);
    if (n < 0 || (size_t)n >= sizeof setup->trace_path)
        return err_set(err, ERR_CONFIG, "--trace: the path is too long");
    setup->trace_bytes = (uint64_t)config->trace_bytes;
    return 0;
}

static int serve(struct engine *engine, const struct config *config, struct err *err)
{
    struct model_source *src = NULL;
    struct engine_setup setup = { .layers_begun = engine_layers_begun(engine) };
    int64_t began_ms = clock_now_ms();
    int rc;

    if ((rc = engine_load(&setup, &src, config, engine_progress, engine, err)) < 0) goto out;
    if ((rc = trace_path_of(&setup, config, err)) < 0) goto out;
    model_source_close(src);               /* descriptors and tables of the files are no longer needed */
    src = NULL;
    setup.load_ms = clock_now_ms() - began_ms;
    if ((rc = engine_start(engine, &setup, err)) < 0) goto out;
    if ((rc = engine_run(engine)) < 0) {
        /* A rank may hang in a call for ever: nothing it touches can be freed, so the process ends here. */
        engine_fail(engine, EXIT_FAULT, ranks_failure(setup.ranks));
        leave(EXIT_FAULT);
    }
out:
    if (src) model_source_close(src);
    engine_end_watch(engine);
    if (setup.ranks) ranks_stop(setup.ranks);
    return rc;
}

static void keep_to_the_gateway(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* Ctrl-C and systemd's stop reach the whole group: the gateway decides when engines end */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
    struct config config = { 0 };
    struct engine *engine = NULL;
    struct err err = { 0 };
    bool help = false;

    log_set_program("sluice-engine");
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        puts("sluice-engine 0.1.0");
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "replay")) return replay_main(argc - 2, argv + 2);
    if (argc > 1 && !strcmp(argv[1], "bench")) return bench_main(argc - 2, argv + 2);
    if (argc > 1 && !strcmp(argv[1], "plan")) return plan_main(argc - 2, argv + 2);
    int rc = config_load(&config, argc - 1, argv + 1, &help, &err);
    if (help) {
        config_release(&config);
        return 0;
    }
    if (fcntl(IPC_FD, F_GETFD) < 0) {
        fprintf(stderr, "sluice-engine: %s\n",
                rc < 0 ? err.message : "started by sluiced, which gives it a socket at descriptor 3");
        return EXIT_CONFIG;
    }
    keep_to_the_gateway();
    struct err channel_err = { 0 };
    if (engine_open(&engine, IPC_FD, IPC_PAGE_FD, leave, &channel_err) < 0) {
        fprintf(stderr, "sluice-engine: %s\n", channel_err.message);
        return EXIT_FAULT;
    }
    if (!rc) {
        log_set_level((enum log_level)log_level_from_name(config.log_level));
        rc = serve(engine, &config, &err);
    }
    if (rc < 0) {
        fprintf(stderr, "sluice-engine: %s\n", err.message);
        engine_fail(engine, engine_exit_code(rc), err.message);
    }
    engine_close(engine);
    config_release(&config);
    return rc < 0 ? engine_exit_code(rc) : 0;
}
