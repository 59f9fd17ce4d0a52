/* health.c - sluice health: one GET to a running sluiced. Exit 0 when the answer is 200, else 1. */
#include <sluice/cli.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/config.h>

#include "base/program.h"
#include "say.h"
#include "url.h"

enum { DEADLINE_MS = 5000, ANSWER_MAX_BYTES = 8192 };

#define HEALTH_USAGE "usage: sluice health [--ready | --live] [--url http://HOST:PORT[/PATH]] [options of sluiced]"

/* What listens on all addresses is asked on the loopback one. */
static void target_from_config(const struct config *config, struct target *target)
{
    const char *host = config->host;

    if (strcmp(host, "0.0.0.0") == 0) host = "127.0.0.1";
    if (strcmp(host, "::") == 0) host = "::1";
    snprintf(target->host, sizeof target->host, "%s", host);
    snprintf(target->port, sizeof target->port, "%" PRId64, config->port);
}

/* Takes this command's own arguments out of argv; the rest is for config_load. */
static int take_own(int argc, char **argv, int *n_rest, char **rest, const char **url, struct target *target)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--ready") == 0) snprintf(target->path, sizeof target->path, "/health/ready");
        else if (strcmp(argv[i], "--live") == 0) snprintf(target->path, sizeof target->path, "/health/live");
        else if (strncmp(argv[i], "--url=", 6) == 0) *url = argv[i] + 6;
        else if (strcmp(argv[i], "--url") != 0) rest[(*n_rest)++] = argv[i];
        else if (++i < argc) *url = argv[i];
        else return say_refused("health", "--url: needs a value");
    }
    return 0;
}

static int report(const struct target *target, char *answer, int status, const struct err *err)
{
    char *body = NULL;

    if (status < 0) {
        fprintf(stderr, "sluice health: %s\n", err->message);
        return 1;
    }
    body = strstr(answer, "\r\n\r\n");
    body = body ? body + 4 : answer + strlen(answer);
    body[strcspn(body, "\r\n")] = '\0';
    printf("%s %d %s\n", target->path, status, body);
    return status == 200 ? say_done("health") : 1;
}

int cli_health(int argc, char **argv)
{
    struct target target = { .path = "/health/ready" };
    struct config config = { 0 };
    struct err err = { 0 };
    char answer[ANSWER_MAX_BYTES];
    const char *url = NULL;
    char **rest = NULL;
    int n_rest = 0, code = 0;

    if (wants_help(argc, argv)) {
        puts(HEALTH_USAGE "\n\nAsks a running sluiced at host and port of the configuration, or at the URL.\n"
             "--ready (default): may requests be sent? --live: does the gateway answer?\n"
             "Exit code 0 = yes, 1 = no or no answer, 78 = bad options.");
        return say_done("health");
    }
    rest = calloc((size_t)argc + 1, sizeof *rest);
    if (!rest) return EXIT_FAULT;
    code = take_own(argc, argv, &n_rest, rest, &url, &target);
    if (code == 0 && url && !url_read(url, &target))
        code = say_refused("health", "--url: '%.200s' is not http://HOST[:PORT][/PATH]", url);
    if (code == 0 && !url && config_load(&config, n_rest, rest, NULL, &err) < 0) code = say_error("health", &err);
    if (code == 0 && url && n_rest > 0) code = say_refused("health", "'%s' has no use beside --url", rest[0]);
    if (code == 0 && !url) target_from_config(&config, &target);
    if (code == 0) code = report(&target, answer, url_get(&target, answer, sizeof answer, DEADLINE_MS, &err), &err);
    config_release(&config);
    free(rest);
    return code;
}
