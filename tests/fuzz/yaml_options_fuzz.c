/* yaml_options_fuzz.c - any bytes as the configuration file: refused with a message, or a configuration whose engine
 * arguments read back. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config/config_load.h"

static int load(struct config *config, char *const *args, int n, struct err *err)
{
    static char *const no_env[] = { NULL };
    struct config_sources sources = { .argc = n, .argv = args, .env = no_env, .program_dir = "/nonexistent" };

    return config_load_from(config, &sources, NULL, err);
}

static void check_engine_args(const struct config *config)
{
    struct config second = { 0 };
    struct err err = { 0 };
    char **args = config_engine_args(config);
    int n = 0;

    if (!args) abort();
    while (args[n]) n++;
    if (load(&second, args, n, &err) < 0) abort();
    if (second.max_num_seqs != config->max_num_seqs || second.headroom != config->headroom) abort();
    config_release(&second);
    config_args_free(args);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config config = { 0 };
    struct err err = { 0 };
    char flag[64];
    char *args[] = { flag, NULL };
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(flag, sizeof flag, "--config=/proc/self/fd/%d", fd);
    int rc = load(&config, args, 1, &err);
    if (rc == 0) check_engine_args(&config);
    else if (err.message[0] == '\0') abort();
    config_release(&config);
    close(fd);
    return 0;
}
