/* models.c - small bodies about the server itself: models, health, load, version, what a remote tokenizer client
 * needs. */
#include <inttypes.h>
#include <string.h>

#include <sluice/api.h>

#include "base/buf.h"

static void put_string(struct buf *out, const char *text)
{
    if (!text) { buf_puts(out, "null"); return; }
    buf_putc(out, '"');
    buf_json_escape(out, text, strlen(text));
    buf_putc(out, '"');
}

static void put_model(const struct gateway *gateway, const char *name, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    put_string(out, name);
    buf_printf(out, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":\"sluice\",\"root\":",
               gateway->created_s);
    put_string(out, config_model_name(gateway->config));
    buf_printf(out, ",\"parent\":null,\"max_model_len\":%d}", gateway->max_model_len);
}

void reply_models(const struct gateway *gateway, struct buf *out)
{
    const struct str_list *names = &gateway->config->served_model_name;

    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < names->n; i++) {
        if (i) buf_putc(out, ',');
        put_model(gateway, names->items[i], out);
    }
    buf_puts(out, "]}");
}

int reply_model(const struct gateway *gateway, const char *id, size_t len, struct buf *out, struct err *err)
{
    const struct str_list *names = &gateway->config->served_model_name;

    for (size_t i = 0; i < names->n; i++) {
        if (strlen(names->items[i]) != len || memcmp(names->items[i], id, len) != 0) continue;
        put_model(gateway, names->items[i], out);
        return 0;
    }
    return err_param(err, ERR_MODEL_NOT_FOUND, "model", "The model '%.*s' does not exist", len < 100 ? (int)len : 0,
                     id);
}

bool reply_health(const struct gateway *gateway, struct buf *out)
{
    static const char *const names[] = {
        [ROUTER_LOADING] = "loading", [ROUTER_READY] = "ok", [ROUTER_DOWN] = "down", [ROUTER_DRAINING] = "draining",
    };
    enum router_state state = router_state(gateway->router);

    buf_printf(out, "{\"status\":\"%s\"}", names[state]);
    return state == ROUTER_READY;
}

void reply_load(const struct gateway *gateway, struct buf *out)
{
    struct router_load load = { 0 };

    router_load(gateway->router, &load);
    buf_printf(out, "{\"server_load\":%u,\"running\":%u,\"waiting\":%u,\"kv_cache_usage\":%.6f}", load.in_server,
               load.running,
               load.waiting, load.kv_usage);
}

void reply_version(const struct gateway *gateway, struct buf *out)
{
    buf_puts(out, "{\"version\":");
    put_string(out, gateway->version);
    buf_putc(out, '}');
}

static const char *or_null(const char *text) { return text && text[0] ? text : NULL; }

void reply_tokenizer_info(const struct gateway *gateway, struct buf *out)
{
    const struct tokenizer *tok = gateway->tokenizer;

    buf_puts(out, "{\"eos_token\":");
    put_string(out, or_null(tokenizer_eos_text(tok)));
    buf_puts(out, ",\"bos_token\":");
    put_string(out, or_null(tokenizer_bos_text(tok)));
    buf_puts(out, ",\"pad_token\":null,\"unk_token\":null,\"chat_template\":");
    put_string(out, gateway->chat_template_text);
    buf_puts(out, ",\"tokenizer_class\":");
    put_string(out, or_null(tokenizer_class(tok)));
    buf_printf(out, ",\"model_max_length\":%d}", gateway->max_model_len);
}
