/* gateway.h - what every request handler of sluiced may look at: built once in sluiced_main.c, const afterwards.
 * Also the doors of http/: the server that is bound before weights load and answers until the process ends. */
#ifndef SLUICE_GATEWAY_H
#define SLUICE_GATEWAY_H

#include <stdint.h>

#include <sluice/config.h>
#include <sluice/err.h>
#include <sluice/loader.h>
#include <sluice/router.h>
#include <sluice/text.h>

struct gateway {
    const struct config *config;
    const struct model_config *model;          /* vocab_size, eos ids, sampling defaults */
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL: the model has none; /v1/chat/completions answers 400 */
    const char *chat_template_text;            /* or NULL; for /tokenizer_info */
    struct router *router;
    int32_t max_model_len;
    int64_t created_s;                         /* Unix seconds of the start: models' "created" */
    char fingerprint[32];                      /* "fp_" + 12 hex */
    const char *version;
};

struct http_server;
/* Binds config->host:port (port 0: any) and serves. *port gets the bound port. ERR_CONFIG when the address is taken. */
int  http_server_start(struct http_server **out, const struct gateway *gateway, int *port, struct err *err);
/* The API keys of config, a second one made aside, are in force for every request whose headers end from now on; what
 * runs goes on. ERR_CONFIG (the old keys stay): as key_ring_init, or no key is left where there were some. Main
 * thread. */
int  http_server_set_keys(struct http_server *server, const struct config *config, struct err *err);
/* Refuses new connections, lets answers in flight finish up to timeout_ms, resumes every suspended connection, stops. */
void http_server_stop(struct http_server *server, int64_t timeout_ms);

#endif
