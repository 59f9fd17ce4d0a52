/* openapi.c - GET /openapi.json: OpenAPI 3.1 of what is served. Parameters of the two generation routes come from the field
 * table of validate.c, so that the document cannot promise what the validator refuses; the rest is the list of routes below. */
#include <string.h>

#include <sluice/api.h>

#include "base/buf.h"
#include "validate.h"

/* ---- schemas that are written once ---- */

static const char components[] =
    "\"components\":{\"securitySchemes\":{\"key\":{\"type\":\"http\",\"scheme\":\"bearer\"}},\"schemas\":{"
    "\"Error\":{\"type\":\"object\",\"required\":[\"error\"],\"additionalProperties\":false,\"properties\":{\"error\":{\"type\":\"object\","
    "\"required\":[\"message\",\"type\",\"param\",\"code\"],\"additionalProperties\":false,\"properties\":{\"message\":{\"type\":\"string\"},"
    "\"type\":{\"enum\":[\"invalid_request_error\",\"authentication_error\",\"rate_limit_error\",\"server_error\"]},"
    "\"param\":{\"type\":[\"string\",\"null\"]},\"code\":{\"type\":[\"string\",\"null\"]}}}}},"
    "\"Usage\":{\"type\":\"object\",\"required\":[\"prompt_tokens\",\"completion_tokens\",\"total_tokens\",\"prompt_tokens_details\","
    "\"completion_tokens_details\"],\"properties\":{\"prompt_tokens\":{\"type\":\"integer\",\"minimum\":1},\"completion_tokens\":"
    "{\"type\":\"integer\",\"minimum\":0},\"total_tokens\":{\"type\":\"integer\",\"minimum\":1}}},"
    "\"Completion\":{\"type\":\"object\",\"required\":[\"id\",\"object\",\"created\",\"model\",\"system_fingerprint\",\"choices\",\"usage\"],"
    "\"properties\":{\"id\":{\"type\":\"string\",\"pattern\":\"^cmpl-[0-9a-f]{32}$\"},\"object\":{\"const\":\"text_completion\"},"
    "\"created\":{\"type\":\"integer\"},\"choices\":{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"object\",\"required\":[\"index\","
    "\"text\",\"logprobs\",\"finish_reason\",\"stop_reason\"],\"properties\":{\"index\":{\"type\":\"integer\",\"minimum\":0},\"text\":"
    "{\"type\":\"string\"},\"finish_reason\":{\"enum\":[\"stop\",\"length\"]}}}},\"usage\":{\"$ref\":\"#/components/schemas/Usage\"}}},"
    "\"ChatCompletion\":{\"type\":\"object\",\"required\":[\"id\",\"object\",\"created\",\"model\",\"system_fingerprint\",\"choices\",\"usage\"],"
    "\"properties\":{\"id\":{\"type\":\"string\",\"pattern\":\"^chatcmpl-[0-9a-f]{32}$\"},\"object\":{\"const\":\"chat.completion\"},"
    "\"created\":{\"type\":\"integer\"},\"choices\":{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"object\",\"required\":[\"index\","
    "\"message\",\"logprobs\",\"finish_reason\",\"stop_reason\"],\"properties\":{\"message\":{\"type\":\"object\",\"required\":[\"role\",\"content\","
    "\"refusal\"],\"properties\":{\"role\":{\"const\":\"assistant\"},\"content\":{\"type\":[\"string\",\"null\"]}}},\"finish_reason\":"
    "{\"enum\":[\"stop\",\"length\",\"tool_calls\"]}}}},\"usage\":{\"$ref\":\"#/components/schemas/Usage\"}}},"
    "\"Model\":{\"type\":\"object\",\"required\":[\"id\",\"object\",\"created\",\"owned_by\",\"root\",\"parent\",\"max_model_len\"],\"properties\":"
    "{\"id\":{\"type\":\"string\"},\"object\":{\"const\":\"model\"},\"created\":{\"type\":\"integer\"},\"max_model_len\":{\"type\":\"integer\"}}},"
    "\"Models\":{\"type\":\"object\",\"required\":[\"object\",\"data\"],\"properties\":{\"object\":{\"const\":\"list\"},\"data\":{\"type\":\"array\","
    "\"minItems\":1,\"items\":{\"$ref\":\"#/components/schemas/Model\"}}}},"
    "\"Tokens\":{\"type\":\"object\",\"required\":[\"count\",\"max_model_len\",\"tokens\",\"token_strs\"],\"properties\":{\"count\":{\"type\":"
    "\"integer\"},\"tokens\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"}},\"token_strs\":{\"type\":[\"array\",\"null\"]}}},"
    "\"Text\":{\"type\":\"object\",\"required\":[\"prompt\"],\"properties\":{\"prompt\":{\"type\":\"string\"}}},"
    "\"TokenizerInfo\":{\"type\":\"object\",\"required\":[\"eos_token\",\"bos_token\",\"pad_token\",\"unk_token\",\"chat_template\","
    "\"tokenizer_class\",\"model_max_length\"]},"
    "\"Status\":{\"type\":\"object\",\"required\":[\"status\"],\"properties\":{\"status\":{\"enum\":[\"ok\",\"loading\",\"draining\",\"down\"]}}},"
    "\"Load\":{\"type\":\"object\",\"required\":[\"server_load\",\"running\",\"waiting\",\"kv_cache_usage\"]},"
    "\"Version\":{\"type\":\"object\",\"required\":[\"version\"],\"properties\":{\"version\":{\"type\":\"string\"}}},"
    "\"Document\":{\"type\":\"object\",\"required\":[\"openapi\",\"paths\"]},"
    "\"TokenizeRequest\":{\"type\":\"object\",\"properties\":{\"prompt\":{\"type\":[\"string\",\"null\"]},\"messages\":{\"type\":[\"array\",\"null\"]},"
    "\"add_special_tokens\":{\"type\":[\"boolean\",\"null\"]},\"parse_special_tokens\":{\"type\":[\"boolean\",\"null\"]},"
    "\"return_token_strs\":{\"type\":[\"boolean\",\"null\"]},\"add_generation_prompt\":{\"type\":[\"boolean\",\"null\"]},"
    "\"continue_final_message\":{\"type\":[\"boolean\",\"null\"]},\"chat_template_kwargs\":{\"type\":[\"object\",\"null\"]}}},"
    "\"DetokenizeRequest\":{\"type\":\"object\",\"required\":[\"tokens\"],\"properties\":{\"tokens\":{\"type\":\"array\",\"items\":{\"type\":"
    "\"integer\",\"minimum\":0}}}},";

struct operation {
    const char *method, *path, *summary;
    const char *request;           /* component, or NULL */
    const char *answer;            /* component, or NULL: text */
    bool needs_key, streams, may_wait;   /* may_wait: 503 with a Status */
};

static const struct operation operations[] = {
    { "post", "/v1/completions", "Text completion", "CompletionRequest", "Completion", true, true, false },
    { "post", "/v1/chat/completions", "Chat completion", "ChatRequest", "ChatCompletion", true, true, false },
    { "get", "/v1/models", "Served models", NULL, "Models", true, false, false },
    { "get", "/v1/models/{id}", "One served model", NULL, "Model", true, false, false },
    { "post", "/tokenize", "Text or messages to token ids", "TokenizeRequest", "Tokens", true, false, false },
    { "post", "/detokenize", "Token ids to text", "DetokenizeRequest", "Text", true, false, false },
    { "get", "/tokenizer_info", "What a remote tokenizer client needs", NULL, "TokenizerInfo", true, false, false },
    { "get", "/health", "May traffic be sent here", NULL, "Status", false, false, true },
    { "get", "/health/ready", "May traffic be sent here", NULL, "Status", false, false, true },
    { "get", "/health/live", "The event loop answers", NULL, "Status", false, false, false },
    { "get", "/ping", "May traffic be sent here", NULL, "Status", false, false, true },
    { "get", "/version", "Build", NULL, "Version", true, false, false },
    { "get", "/load", "Load for simple balancers", NULL, "Load", true, false, false },
    { "get", "/metrics", "Prometheus text", NULL, NULL, true, false, false },
    { "get", "/openapi.json", "This document", NULL, "Document", false, false, false },
};

static void put_component(struct buf *out, const char *media, const char *component)
{
    buf_printf(out, "\"content\":{\"%s\":{\"schema\":", media);
    if (component) buf_printf(out, "{\"$ref\":\"#/components/schemas/%s\"}}}", component);
    else buf_puts(out, "{\"type\":\"string\"}}}");
}

static void put_failures(struct buf *out, const struct operation *op)
{
    static const struct { const char *status, *text; bool with_body, with_key; } rows[] = {
        { "400", "Invalid request", false, false }, { "401", "No valid key", false, true }, { "404", "Unknown model or path", false, false },
        { "408", "Sent too slowly", false, false }, { "411", "No length", true, false }, { "413", "Too large", true, false },
        { "415", "Content coding", true, false }, { "429", "Queue full", true, false }, { "431", "Headers too large", false, false },
        { "500", "Fault of the server", true, false }, { "503", "No replica, draining, timeouts", true, false },
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if ((rows[i].with_body && !op->request) || (rows[i].with_key && !op->needs_key)) continue;
        buf_printf(out, ",\"%s\":{\"description\":\"%s\",", rows[i].status, rows[i].text);
        put_component(out, "application/json", "Error");
        buf_putc(out, '}');
    }
}

static void put_operation(struct buf *out, const struct operation *op)
{
    buf_printf(out, "\"%s\":{\"%s\":{\"summary\":\"%s\",", op->path, op->method, op->summary);
    if (op->needs_key) buf_puts(out, "\"security\":[{\"key\":[]},{}],");
    if (strchr(op->path, '{'))
        buf_puts(out, "\"parameters\":[{\"name\":\"id\",\"in\":\"path\",\"required\":true,\"schema\":{\"type\":\"string\",\"minLength\":1}}],");
    if (op->request) {
        buf_puts(out, "\"requestBody\":{\"required\":true,");
        put_component(out, "application/json", op->request);
        buf_puts(out, "},");
    }
    buf_puts(out, "\"responses\":{\"200\":{\"description\":\"OK\",");
    if (op->streams)
        buf_printf(out, "\"content\":{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}},"
                   "\"text/event-stream\":{\"schema\":{\"type\":\"string\"}}}", op->answer);
    else
        put_component(out, op->answer ? "application/json" : "text/plain", op->answer);
    buf_putc(out, '}');
    put_failures(out, op);
    if (op->may_wait) {
        buf_puts(out, ",\"503\":{\"description\":\"Not now\",");
        put_component(out, "application/json", "Status");
        buf_putc(out, '}');
    }
    buf_puts(out, "}}}");
}

/* ---- the two request bodies, from the field table ---- */

static void put_model_names(const struct gateway *gateway, struct buf *out)
{
    const struct str_list *names = &gateway->config->served_model_name;

    buf_puts(out, "\"model\":{\"type\":\"string\",\"enum\":[");
    for (size_t i = 0; i < names->n; i++) {
        buf_puts(out, i ? ",\"" : "\"");
        buf_json_escape(out, names->items[i], strlen(names->items[i]));
        buf_putc(out, '"');
    }
    buf_puts(out, "]}");
}

static void put_request(const struct gateway *gateway, enum generation_route route, struct buf *out)
{
    bool chat = route == GENERATE_CHAT;

    buf_printf(out, "\"%s\":{\"type\":\"object\",\"required\":[\"model\",\"%s\"],\"properties\":{", chat ? "ChatRequest" : "CompletionRequest",
               chat ? "messages" : "prompt");
    put_model_names(gateway, out);
    validate_put_schema(route, out);
    buf_puts(out, "}}");
}

void reply_openapi(const struct gateway *gateway, struct buf *out)
{
    buf_puts(out, "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"sluice\",\"version\":\"");
    buf_json_escape(out, gateway->version, strlen(gateway->version));
    buf_puts(out, "\"},\"paths\":{");
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++) {
        if (i) buf_putc(out, ',');
        put_operation(out, &operations[i]);
    }
    buf_puts(out, "},");
    buf_puts(out, components);
    put_request(gateway, GENERATE_COMPLETION, out);
    buf_putc(out, ',');
    put_request(gateway, GENERATE_CHAT, out);
    buf_puts(out, "}}}");
}
