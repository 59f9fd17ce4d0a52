/* echo_gateway.c - a server without model or engine for tests of the wire: prints its URL, runs until its stdin ends.
 * Arguments are flags of sluiced. SLUICE_ECHO_PAUSE_US: microseconds between two tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "unit/api/tiny_gateway.h"
#include "unit/http/fake_router.h"

#include <sluice/metrics.h>

#include "base/log.h"

int main(int argc, char **argv)
{
    struct metrics_info info = { .model_name = "tiny", .num_replicas = 1, .version = "0.1.0", .commit = "",
        .max_model_len = 2048 };
    struct http_server *server = NULL;
    struct router router;
    struct tiny tiny;
    struct err err = { 0 };
    int port = 0;
    char byte;

    (void)argc;
    metrics_init(&info);
    tiny_init(&tiny, argv + 1);
    log_set_level((enum log_level)log_level_from_name(tiny.config.log_level));
    fake_router_start(&router, tiny.tokenizer, getenv("SLUICE_ECHO_PAUSE_US"));
    tiny.gateway.router = &router;
    if (http_server_start(&server, &tiny.gateway, &port, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return EXIT_CONFIG;
    }
    printf("http://127.0.0.1:%d\n", port);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) { }
    http_server_stop(server, 1000);
    fake_router_stop(&router);
    tiny_release(&tiny);
    return 0;
}
