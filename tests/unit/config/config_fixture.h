/* config_fixture.h - a configuration loaded from given flags, environment and files in a temporary folder. */
#ifndef SLUICE_TEST_CONFIG_FIXTURE_H
#define SLUICE_TEST_CONFIG_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "config_load.h"

struct fixture {
    char root[64];          /* holds bin/ (the program's folder) and share/sluice/configs/ */
    char bin[96];
    char file[96];          /* the configuration file, written by put_file */
    struct config config;
    struct err err;
    bool help;
};

static inline void put(const char *path, const char *text, mode_t mode)
{
    FILE *out = fopen(path, "w");

    assert_non_null(out);
    assert_int_equal(fputs(text, out) < 0, 0);
    assert_int_equal(fclose(out), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static inline int fixture_setup(void **state)
{
    struct fixture *fix = calloc(1, sizeof *fix);
    char path[160];

    if (!fix) return -1;
    snprintf(fix->root, sizeof fix->root, "/tmp/sluice-config-XXXXXX");
    if (!mkdtemp(fix->root)) return -1;
    snprintf(fix->bin, sizeof fix->bin, "%s/bin", fix->root);
    snprintf(fix->file, sizeof fix->file, "%s/s.yaml", fix->root);
    if (mkdir(fix->bin, 0700) < 0) return -1;
    snprintf(path, sizeof path, "%s/share", fix->root);
    if (mkdir(path, 0700) < 0) return -1;
    snprintf(path, sizeof path, "%s/share/sluice", fix->root);
    if (mkdir(path, 0700) < 0) return -1;
    snprintf(path, sizeof path, "%s/share/sluice/configs", fix->root);
    if (mkdir(path, 0700) < 0) return -1;
    *state = fix;
    return 0;
}

static inline int fixture_teardown(void **state)
{
    struct fixture *fix = *state;
    char command[96];

    config_release(&fix->config);
    snprintf(command, sizeof command, "rm -r %s", fix->root);
    int rc = system(command);
    free(fix);
    return rc;
}

static inline void put_file(struct fixture *fix, const char *text) { put(fix->file, text, 0600); }

static inline void put_preset(struct fixture *fix, const char *name, const char *text)
{
    char path[256];

    snprintf(path, sizeof path, "%s/share/sluice/configs/%s.yaml", fix->root, name);
    put(path, text, 0600);
}

/* args and env: words separated by one blank, "" = none. FILE in a word stands for the configuration file. */
static inline int load(struct fixture *fix, const char *args, const char *env)
{
    char text[2][2048], *words[2][64];
    const char *const given[2] = { args, env };
    size_t n[2] = { 0 };

    for (int k = 0; k < 2; k++) {
        char *out = text[k];
        for (const char *at = given[k]; *at;) {
            words[k][n[k]++] = out;
            for (; *at && *at != ' '; at++) {
                if (strncmp(at, "FILE", 4) == 0) {
                    out = stpcpy(out, fix->file);
                    at += 3;
                } else {
                    *out++ = *at;
                }
            }
            *out++ = '\0';
            if (*at == ' ') at++;
        }
        words[k][n[k]] = NULL;
    }
    struct config_sources sources = { .argc = (int)n[0], .argv = words[0], .env = words[1], .program_dir = fix->bin };
    config_release(&fix->config);
    err_clear(&fix->err);
    return config_load_from(&fix->config, &sources, &fix->help, &fix->err);
}

static inline void load_ok(struct fixture *fix, const char *args, const char *env)
{
    if (load(fix, args, env) < 0) fail_msg("%s", fix->err.message);
}

static inline void assert_refused(struct fixture *fix, const char *args, const char *env, const char *message)
{
    if (load(fix, args, env) != ERR_CONFIG) fail_msg("accepted: %s %s", args, env);
    if (!strstr(fix->err.message, message)) fail_msg("'%s' lacks '%s'", fix->err.message, message);
    assert_null(fix->config.origins);   /* nothing to release */
}

/* With text as the configuration file: the message must begin at the file's place. */
static inline void assert_file_refused(struct fixture *fix, const char *text, const char *message)
{
    char expected[256];

    put_file(fix, text);
    snprintf(expected, sizeof expected, "%s:%s", fix->file, message);
    assert_refused(fix, "--config FILE", "", expected);
}

#endif
