#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "base/buf.h"
#include "base/hash.h"
#include "parse.h"
#include "validate.h"

enum { MAX_KWARGS = 16, MAX_KWARGS_BYTES = 4096, PARAM_BYTES = 96 };

struct chat_parse {
    const struct parse *p;
    bool keep_developer;          /* the template knows the role */
    struct str_map call_ids;      /* of tool calls seen so far */
    bool in_use;                  /* call_ids was initialised */
    size_t index;                 /* of the message */
};

static void name_param(const struct chat_parse *chat, char param[PARAM_BYTES], const char *rest)
{
    snprintf(param, PARAM_BYTES, "messages[%zu]%s", chat->index, rest);
}

static int fail_value(const struct chat_parse *chat, const char *rest, const char *what)
{
    char param[PARAM_BYTES];

    name_param(chat, param, rest);
    return err_param(chat->p->err, ERR_VALUE, param, "Invalid '%s': %s", param, what);
}

static int fail_kind(const struct chat_parse *chat, const char *rest, const char *expected, const struct cJSON *found)
{
    char param[PARAM_BYTES];

    name_param(chat, param, rest);
    return found ? fail_type(chat->p->err, param, expected, found) : fail_missing(chat->p->err, param);
}

static bool has_text(const struct cJSON *item, const char *text)
{
    return cJSON_IsString(item) && strcmp(item->valuestring, text) == 0;
}

/* Never fails: the key moves from the old value to the new one. (cJSON's replacing by name copies it, and goes on without a name
 * when memory is out.) */
static void replace_value(struct cJSON *object, struct cJSON *old, struct cJSON *value)
{
    free(value->string);
    value->string = old->string;
    old->string = NULL;
    cJSON_ReplaceItemViaPointer(object, old, value);
}

/* ---- content ---- */

/* A text part; every other type is refused without looking at what it points to. */
static int check_part(const struct chat_parse *chat, const struct cJSON *part, int j)
{
    char rest[48], param[PARAM_BYTES];
    const struct cJSON *type = json_get(part, "type");

    snprintf(rest, sizeof rest, ".content[%d]", j);
    if (!cJSON_IsObject(part)) return fail_kind(chat, rest, "an object", part);
    if (!cJSON_IsString(type)) {
        snprintf(rest, sizeof rest, ".content[%d].type", j);
        return fail_kind(chat, rest, "a string", type);
    }
    if (!has_text(type, "text")) {
        name_param(chat, param, rest);
        return err_param(chat->p->err, ERR_CONTENT_TYPE, param,
                         "Invalid '%s': only parts of type 'text' are supported.", param);
    }
    const struct cJSON *text = json_get(part, "text");
    snprintf(rest, sizeof rest, ".content[%d].text", j);
    return cJSON_IsString(text) ? 0 : fail_kind(chat, rest, "a string", text);
}

/* Several parts joined by newlines. Through JSON again, because only json_parse can make strings with NUL inside. */
static int join_parts(const struct chat_parse *chat, const struct cJSON *parts, struct cJSON **joined)
{
    struct buf text = BUF_INIT;
    struct json_limits limits = json_limits_request;
    struct cJSON *array = NULL;
    const struct cJSON *part;
    int rc = 0;

    limits.max_bytes = SIZE_MAX;       /* escapes may be longer than the body was */
    buf_puts(&text, "[\"");
    cJSON_ArrayForEach(part, parts) {
        const char *piece = "";
        size_t len = 0;
        json_string(json_get(part, "text"), &piece, &len);
        if (part != parts->child) buf_puts(&text, "\\n");
        buf_json_escape(&text, piece, len);
    }
    buf_puts(&text, "\"]");
    if (text.failed) { rc = parse_no_memory(chat->p); goto out; }
    if ((rc = json_parse(text.data, text.len, &limits, &array, chat->p->err)) < 0) goto out;
    *joined = cJSON_DetachItemFromArray(array, 0);
out:
    json_free(array);
    buf_release(&text);
    return rc;
}

static int normalise_parts(const struct chat_parse *chat, struct cJSON *message, struct cJSON *parts)
{
    struct cJSON *text = NULL, *part;
    int j = 0, rc = 0;

    if (!parts->child) {
        char param[PARAM_BYTES];
        name_param(chat, param, ".content");
        return fail_empty_array(chat->p->err, param);
    }
    cJSON_ArrayForEach(part, parts) {
        if ((rc = check_part(chat, part, j++)) < 0) return rc;
    }
    if (!parts->child->next)
        text = cJSON_DetachItemFromObjectCaseSensitive(parts->child, "text");
    else if ((rc = join_parts(chat, parts, &text)) < 0)
        return rc;
    replace_value(message, parts, text);
    return 0;
}

/* ---- tool calls ---- */

/* Templates print arguments as an object; clients send them as the JSON text that they were given. */
static int open_arguments(const struct chat_parse *chat, struct cJSON *function, const char *rest)
{
    struct json_limits limits = json_limits_request;
    const char *text = "";
    size_t len = 0;
    struct cJSON *object = NULL;
    struct err why = { 0 };

    json_string(json_get(function, "arguments"), &text, &len);
    if (len == 0) { text = "{}"; len = 2; }
    if (json_parse(text, len, &limits, &object, &why) < 0 || !cJSON_IsObject(object)) {
        json_free(object);
        return why.code == ERR_NO_MEMORY ? parse_no_memory(chat->p) : fail_value(chat, rest, "it must be the text of a JSON object.");
    }
    replace_value(function, cJSON_GetObjectItemCaseSensitive(function, "arguments"), object);
    return 0;
}

static int check_call(struct chat_parse *chat, const struct cJSON *call, int j)
{
    char rest[64];
    const struct cJSON *function = json_get(call, "function"), *id = json_get(call, "id");

    snprintf(rest, sizeof rest, ".tool_calls[%d]", j);
    if (!cJSON_IsObject(call)) return fail_kind(chat, rest, "an object", call);
    snprintf(rest, sizeof rest, ".tool_calls[%d].id", j);
    if (!cJSON_IsString(id)) return fail_kind(chat, rest, "a string", id);
    snprintf(rest, sizeof rest, ".tool_calls[%d].function.name", j);
    if (!cJSON_IsString(json_get(function, "name")))
        return fail_kind(chat, rest, "a string", json_get(function, "name"));
    snprintf(rest, sizeof rest, ".tool_calls[%d].function.arguments", j);
    if (!cJSON_IsString(json_get(function, "arguments")))
        return fail_kind(chat, rest, "a string", json_get(function, "arguments"));
    int rc = open_arguments(chat, cJSON_GetObjectItemCaseSensitive(call, "function"), rest);
    if (rc < 0) return rc;
    if (!chat->in_use && str_map_init(&chat->call_ids, 16) < 0) return parse_no_memory(chat->p);
    chat->in_use = true;
    if (str_map_put(&chat->call_ids, id->valuestring, strlen(id->valuestring), 1, NULL) < 0)
        return parse_no_memory(chat->p);
    return 0;
}

static int check_assistant(struct chat_parse *chat, const struct cJSON *message)
{
    const struct cJSON *calls = json_get(message, "tool_calls"), *call;
    int j = 0, rc = 0;

    if (calls && !cJSON_IsArray(calls)) return fail_kind(chat, ".tool_calls", "an array", calls);
    cJSON_ArrayForEach(call, calls) {
        if ((rc = check_call(chat, call, j++)) < 0) return rc;
    }
    if (!json_get(message, "content") && j == 0)
        return fail_value(chat, ".content", "an assistant message without tool_calls needs text.");
    return 0;
}

static int check_tool(const struct chat_parse *chat, const struct cJSON *message)
{
    const struct cJSON *id = json_get(message, "tool_call_id");

    if (!cJSON_IsString(id)) return fail_kind(chat, ".tool_call_id", "a string", id);
    if (!chat->in_use || str_map_get(&chat->call_ids, id->valuestring, strlen(id->valuestring)) < 0)
        return fail_value(chat, ".tool_call_id", "no earlier assistant message has a tool call with this id.");
    return 0;
}

/* ---- messages ---- */

static int check_role(const struct chat_parse *chat, struct cJSON *message, const struct cJSON **role)
{
    static const char *const known[] = { "system", "developer", "user", "assistant", "tool" };

    *role = json_get(message, "role");
    if (!cJSON_IsString(*role)) return fail_kind(chat, ".role", "a string", *role);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (!has_text(*role, known[i])) continue;
        if (i != 1 || chat->keep_developer) return 0;
        struct cJSON *system = cJSON_CreateString("system");
        if (!system) return parse_no_memory(chat->p);
        replace_value(message, cJSON_GetObjectItemCaseSensitive(message, "role"), system);
        *role = json_get(message, "role");
        return 0;
    }
    return fail_value(chat, ".role", "expected one of system, developer, user, assistant, tool.");
}

static int check_content(const struct chat_parse *chat, struct cJSON *message, struct cJSON *content)
{
    if (cJSON_IsString(content)) return 0;
    if (cJSON_IsArray(content)) return normalise_parts(chat, message, content);
    return fail_kind(chat, ".content", "a string or an array of parts", content);
}

static int check_message(struct chat_parse *chat, struct cJSON *message)
{
    const struct cJSON *role = NULL;
    int rc;

    if (!cJSON_IsObject(message)) return fail_kind(chat, "", "an object", message);
    if ((rc = check_role(chat, message, &role)) < 0) return rc;
    struct cJSON *content = cJSON_GetObjectItemCaseSensitive(message, "content");
    if (has_text(role, "assistant")) {
        if ((rc = check_assistant(chat, message)) < 0) return rc;
        if (content && !cJSON_IsNull(content)) return check_content(chat, message, content);
        /* with tool calls: to templates it is empty text, which all of them can print */
        cJSON_DeleteItemFromObjectCaseSensitive(message, "content");
        return cJSON_AddStringToObject(message, "content", "") ? 0 : parse_no_memory(chat->p);
    } else if (!content || cJSON_IsNull(content)) {
        char param[PARAM_BYTES];
        name_param(chat, param, ".content");
        if (!content) return fail_missing(chat->p->err, param);
        return err_param(chat->p->err, ERR_VALUE, param,
                         "Invalid '%s': null is allowed for an assistant with tool_calls only.", param);
    }
    if (has_text(role, "tool") && (rc = check_tool(chat, message)) < 0) return rc;
    return check_content(chat, message, content);
}

static int check_messages(const struct parse *p, struct cJSON *messages)
{
    const char *template = p->gateway->chat_template_text;
    struct chat_parse chat = { .p = p, .keep_developer = template && strstr(template, "developer") };
    int n = cJSON_GetArraySize(messages), rc = 0;
    struct cJSON *message;

    if (n == 0) return fail_empty_array(p->err, "messages");
    if (n > MAX_MESSAGES) return fail_array_long(p->err, "messages", MAX_MESSAGES, n);
    cJSON_ArrayForEach(message, messages) {
        if ((rc = check_message(&chat, message)) < 0) break;
        chat.index++;
    }
    if (chat.in_use) str_map_release(&chat.call_ids);
    return rc;
}

/* ---- template variables ---- */

static int check_kwargs(const struct parse *p, const struct cJSON *kwargs)
{
    static const char *const reserved[] = { "messages", "tools", "documents", "bos_token", "eos_token",
        "chat_template" };
    char *text = cJSON_PrintUnformatted(kwargs);
    size_t bytes = text ? strlen(text) : SIZE_MAX;

    cJSON_free(text);
    if (cJSON_GetArraySize(kwargs) > MAX_KWARGS || bytes > MAX_KWARGS_BYTES)
        return err_param(p->err, ERR_VALUE, "chat_template_kwargs",
                         "Invalid 'chat_template_kwargs': at most %d keys and %d bytes.", MAX_KWARGS, MAX_KWARGS_BYTES);
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++) {
        if (json_get_raw(kwargs, reserved[i]))
            return err_param(p->err, ERR_VALUE, "chat_template_kwargs",
                             "Invalid 'chat_template_kwargs': '%s' is reserved.", reserved[i]);
    }
    return 0;
}

/* reasoning_effort becomes a variable of the template where the template reads one. */
static int add_reasoning_effort(const struct parse *p, struct cJSON *kwargs)
{
    static const char *const levels[] = { "none", "minimal", "low", "medium", "high", "xhigh", "max" };
    const struct cJSON *effort = json_get(p->root, "reasoning_effort");
    const struct chat_template *template = p->gateway->chat_template;
    size_t i = 0, n = sizeof levels / sizeof levels[0];

    if (!effort) return 0;
    while (i < n && !has_text(effort, levels[i])) i++;
    if (i == n)
        return err_param(p->err, ERR_VALUE, "reasoning_effort",
                         "Invalid 'reasoning_effort': expected one of none, minimal, low, medium, high, xhigh, max.");
    bool wanted = chat_template_reads(template, "reasoning_effort") && !json_get_raw(kwargs, "reasoning_effort");
    if (wanted && !cJSON_AddStringToObject(kwargs, "reasoning_effort", levels[i])) return parse_no_memory(p);
    wanted = chat_template_reads(template, "enable_thinking") && !json_get_raw(kwargs, "enable_thinking");
    if (wanted && !cJSON_AddBoolToObject(kwargs, "enable_thinking", i != 0)) return parse_no_memory(p);
    return 0;
}

static int parse_kwargs(const struct parse *p, struct chat_request *request)
{
    struct cJSON *kwargs = cJSON_GetObjectItemCaseSensitive(p->root, "chat_template_kwargs");

    if (kwargs && cJSON_IsNull(kwargs)) {
        cJSON_DeleteItemFromObjectCaseSensitive(p->root, "chat_template_kwargs");
        kwargs = NULL;
    }
    int rc = kwargs ? check_kwargs(p, kwargs) : 0;
    if (rc < 0) return rc;
    if (!kwargs) kwargs = cJSON_AddObjectToObject(p->root, "chat_template_kwargs");
    if (!kwargs) return parse_no_memory(p);
    request->chat_template_kwargs = kwargs;
    return add_reasoning_effort(p, kwargs);
}

static int parse_generation_prompt(const struct parse *p, struct chat_request *request)
{
    const struct cJSON *last = request->messages->child->prev;   /* cJSON: the first child's prev is the last */

    request->continue_final_message = read_bool(p->root, "continue_final_message", false);
    request->add_generation_prompt = read_bool(p->root, "add_generation_prompt", !request->continue_final_message);
    if (!request->continue_final_message) return 0;
    if (request->add_generation_prompt)
        return err_param(p->err, ERR_VALUE, "continue_final_message",
                         "Invalid 'continue_final_message': it needs 'add_generation_prompt' to be absent or false.");
    if (!has_text(json_get(last, "role"), "assistant") || !cJSON_IsString(json_get(last, "content")))
        return err_param(p->err, ERR_VALUE, "continue_final_message",
                         "Invalid 'continue_final_message': the last message must be an assistant's with text.");
    return 0;
}

int parse_chat(const struct parse *p, struct chat_request *request)
{
    struct cJSON *messages = cJSON_GetObjectItemCaseSensitive(p->root, "messages");
    int rc = check_messages(p, messages);

    if (rc < 0) return rc;
    if (!p->gateway->chat_template)
        return err_param(p->err, ERR_UNSUPPORTED, "messages",
                         "The model has no chat template; use /v1/completions or start the server with --chat-template.");
    request->messages = messages;
    if ((rc = parse_kwargs(p, request)) < 0) return rc;
    return parse_generation_prompt(p, request);
}
