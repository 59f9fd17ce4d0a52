#include "validate.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/api.h>
#include <sluice/json.h>

#include "base/buf.h"

enum field_type { F_INT, F_REAL, F_BOOL, F_STRING, F_ARRAY, F_OBJECT, F_TEXT_OR_ARRAY };
enum field_home { HOME_NONE, HOME_INT32, HOME_INT64, HOME_FLOAT, HOME_BOOL };

enum { C = GENERATE_COMPLETION, H = GENERATE_CHAT, CH = C | H, TOPS = MAX_TOP_LOGPROBS };

struct field {
    const char *name;
    unsigned in;
    enum field_type type;
    double min, max;          /* F_INT and F_REAL; exact below 2^53 */
    bool above_min;           /* min itself is refused too */
    enum field_home home;
    size_t offset;            /* in struct generation_params */
};

#define GEN(member) offsetof(struct generation_params, member)
#define SAMPLING(member) GEN(sampling.member)
#define DAY_MS 86400000.0
#define ANY_TOP 9007199254740992.0   /* larger integers are clamped by their reader, not refused */

/* Defaults are set by the parser before (model, route). Rows without a home are read by parse_*.c; their type is
 * checked here. min == max: no range (seed is exact int64, strings and arrays have limits of their own). */
static const struct field field_table[] = {
    /* name                       in  type             min        max          above  home        where */
    { "model",                      CH, F_STRING,        0,         0,           false, HOME_NONE,  0 },
    { "prompt",                     C,  F_TEXT_OR_ARRAY, 0,         0,           false, HOME_NONE,  0 },
    { "messages",                   H,  F_ARRAY,         0,         0,           false, HOME_NONE,  0 },
    { "max_tokens",                 CH, F_INT,           0,         ANY_TOP,     false, HOME_NONE,  0 },
    { "max_completion_tokens",      CH, F_INT,           0,         ANY_TOP,     false, HOME_NONE,  0 },
    { "min_tokens",                 CH, F_INT,           0,         INT32_MAX,   false, HOME_INT32, GEN(min_tokens) },
    { "temperature",                CH, F_REAL,          0,         2,           false, HOME_FLOAT, SAMPLING(temperature) },
    { "top_p",                      CH, F_REAL,          0,         1,           false, HOME_FLOAT, SAMPLING(top_p) },
    { "min_p",                      CH, F_REAL,          0,         1,           false, HOME_FLOAT, SAMPLING(min_p) },
    { "top_k",                      CH, F_INT,           -1,        INT32_MAX,   false, HOME_INT32, SAMPLING(top_k) },
    { "frequency_penalty",          CH, F_REAL,          -2,        2,           false, HOME_FLOAT, SAMPLING(frequency_penalty) },
    { "presence_penalty",           CH, F_REAL,          -2,        2,           false, HOME_FLOAT, SAMPLING(presence_penalty) },
    { "repetition_penalty",         CH, F_REAL,          0,         3e38,        true,  HOME_FLOAT, SAMPLING(repetition_penalty) },
    { "seed",                       CH, F_INT,           0,         0,           false, HOME_NONE,  0 },
    { "n",                          CH, F_INT,           1,         MAX_CHOICES, false, HOME_INT32, GEN(n) },
    { "best_of",                    C,  F_INT,           1,         20,          false, HOME_NONE,  0 },
    { "stop",                       CH, F_TEXT_OR_ARRAY, 0,         0,           false, HOME_NONE,  0 },
    { "stop_token_ids",             CH, F_ARRAY,         0,         0,           false, HOME_NONE,  0 },
    { "include_stop_str_in_output", CH, F_BOOL,          0,         0,           false, HOME_BOOL,  GEN(include_stop_str_in_output) },
    { "ignore_eos",                 CH, F_BOOL,          0,         0,           false, HOME_BOOL,  GEN(ignore_eos) },
    { "parse_special_tokens",       C,  F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "echo",                       CH, F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "suffix",                     C,  F_STRING,        0,         0,           false, HOME_NONE,  0 },
    { "logprobs",                   C,  F_INT,           0,         TOPS,        false, HOME_NONE,  0 },
    { "logprobs",                   H,  F_BOOL,          0,         0,           false, HOME_BOOL,  GEN(logprobs) },
    { "top_logprobs",               H,  F_INT,           0,         TOPS,        false, HOME_NONE,  0 },
    { "prompt_logprobs",            CH, F_INT,           0,         TOPS,        false, HOME_NONE,  0 },
    { "allowed_token_ids",          CH, F_ARRAY,         0,         0,           false, HOME_NONE,  0 },
    { "bad_words",                  CH, F_ARRAY,         0,         0,           false, HOME_NONE,  0 },
    { "truncate_prompt_tokens",     CH, F_INT,           0,         0,           false, HOME_NONE,  0 },
    { "truncation_side",            CH, F_STRING,        0,         0,           false, HOME_NONE,  0 },
    { "logit_bias",                 CH, F_OBJECT,        0,         0,           false, HOME_NONE,  0 },
    { "stream",                     CH, F_BOOL,          0,         0,           false, HOME_BOOL,  GEN(stream) },
    { "stream_options",             CH, F_OBJECT,        0,         0,           false, HOME_NONE,  0 },
    { "response_format",            CH, F_OBJECT,        0,         0,           false, HOME_NONE,  0 },
    { "tools",                      H,  F_ARRAY,         0,         0,           false, HOME_NONE,  0 },
    { "parallel_tool_calls",        H,  F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "reasoning_effort",           H,  F_STRING,        0,         0,           false, HOME_NONE,  0 },
    { "include_reasoning",          H,  F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "chat_template_kwargs",       H,  F_OBJECT,        0,         0,           false, HOME_NONE,  0 },
    { "add_generation_prompt",      H,  F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "continue_final_message",     H,  F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "add_special_tokens",         CH, F_BOOL,          0,         0,           false, HOME_BOOL,  GEN(add_special_tokens) },
    { "skip_special_tokens",        CH, F_BOOL,          0,         0,           false, HOME_BOOL,  GEN(skip_special_tokens) },
    { "return_token_ids",           CH, F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "return_tokens_as_token_ids", CH, F_BOOL,          0,         0,           false, HOME_NONE,  0 },
    { "priority",                   CH, F_INT,           INT32_MIN, INT32_MAX,   false, HOME_INT32, GEN(priority) },
    { "cache_salt",                 CH, F_STRING,        0,         0,           false, HOME_NONE,  0 },
    { "timeout_queue_ms",           CH, F_INT,           1,         DAY_MS,      false, HOME_INT64, GEN(timeout_queue_ms) },
    { "timeout_ttft_ms",            CH, F_INT,           1,         DAY_MS,      false, HOME_INT64, GEN(timeout_ttft_ms) },
    { "timeout_ms",                 CH, F_INT,           1,         DAY_MS,      false, HOME_INT64, GEN(timeout_total_ms) },
    { "timeout_total_ms",           CH, F_INT,           1,         DAY_MS,      false, HOME_INT64, GEN(timeout_total_ms) },
};
enum { NUM_FIELDS = sizeof field_table / sizeof field_table[0] };

enum refuse_when { ALWAYS, WHEN_TRUE, WHEN_FILLED, WHEN_NOT_NEGATIVE };   /* null is never refused */

struct refusal { const char *name; unsigned in; enum refuse_when when; const char *hint; };

static const struct refusal refusal_table[] = {
    { "echo", H, WHEN_TRUE, NULL },
    { "chat_template", CH, ALWAYS, "; the model's own template is used" },
    { "prompt_embeds", CH, ALWAYS, NULL },
    { "use_beam_search", CH, WHEN_TRUE, NULL },
    { "functions", CH, ALWAYS, "; use tools" },
    { "function_call", CH, ALWAYS, "; use tools" },
    { "audio", CH, ALWAYS, NULL },
    { "web_search_options", CH, ALWAYS, NULL },
    { "logits_processors", CH, WHEN_FILLED, NULL },
    { "logprob_token_ids", CH, WHEN_FILLED, NULL },
    { "documents", CH, WHEN_FILLED, NULL },
    { "thinking_token_budget", CH, WHEN_NOT_NEGATIVE, NULL },
    { "repetition_detection", CH, ALWAYS, NULL },
    { "vllm_xargs", CH, WHEN_FILLED, NULL },
    { "kv_transfer_params", CH, ALWAYS, NULL },
    { "ec_transfer_params", CH, ALWAYS, NULL },
    { "structured_outputs", CH, ALWAYS, NULL },
    { "guided_json", CH, ALWAYS, NULL },
    { "guided_regex", CH, ALWAYS, NULL },
    { "guided_choice", CH, ALWAYS, NULL },
    { "guided_grammar", CH, ALWAYS, NULL },
    { "json_schema", CH, ALWAYS, "; use response_format" },
    { "regex", CH, ALWAYS, NULL },
    { "ebnf", CH, ALWAYS, NULL },
    { "grammar", CH, ALWAYS, NULL },
    { "stop_regex", CH, ALWAYS, NULL },
    { "input_ids", CH, ALWAYS, "; use prompt" },
    { "lora_request", CH, ALWAYS, NULL },
};

/* ---- texts ---- */

static const char *with_article(const struct cJSON *found, char *text, size_t size)
{
    const char *kind = json_kind(found);

    if (strcmp(kind, "null") == 0) return "null";
    snprintf(text, size, "%s %s", strchr("aeiou", kind[0]) ? "an" : "a", kind);
    return text;
}

int fail_type(struct err *err, const char *param, const char *expected, const struct cJSON *found)
{
    char kind[32];

    return err_param(err, ERR_TYPE, param, "Invalid type for '%s': expected %s, but got %s instead.", param, expected,
                     with_article(found, kind, sizeof kind));
}

int fail_missing(struct err *err, const char *param)
{
    return err_param(err, ERR_MISSING, param, "Missing required parameter: '%s'.", param);
}

int fail_empty_array(struct err *err, const char *param)
{
    return err_param(err, ERR_EMPTY_ARRAY, param,
                     "Invalid '%s': empty array. Expected an array with minimum length 1, but got an empty array "
                     "instead.", param);
}

int fail_array_long(struct err *err, const char *param, long long max, long long found)
{
    return err_param(err, ERR_ARRAY_LONG, param,
                     "Invalid '%s': array too long. Expected an array with maximum length %lld, but got an array with "
                     "length %lld instead.", param, max, found);
}

int fail_int_low(struct err *err, const char *param, long long min, const char *found)
{
    return err_param(err, ERR_INT_LOW, param,
                     "Invalid '%s': integer below minimum value. Expected a value >= %lld, but got %s instead.",
                     param, min, found);
}

int fail_int_high(struct err *err, const char *param, long long max, const char *found)
{
    return err_param(err, ERR_INT_HIGH, param,
                     "Invalid '%s': integer above maximum value. Expected a value <= %lld, but got %s instead.",
                     param, max, found);
}

/* ---- readers ---- */

double json_real(const struct cJSON *item) { return item->valuedouble; }

bool read_bool(const struct cJSON *root, const char *name, bool fallback)
{
    const struct cJSON *item = json_get(root, name);
    return item ? cJSON_IsTrue(item) : fallback;
}

int read_int(const struct cJSON *item, const char *param, int64_t min, int64_t max, int64_t *value, struct err *err)
{
    char found[32];
    int64_t number = 0;

    if (!item) return 0;
    if (!json_is_int(item)) return fail_type(err, param, "an integer", item);
    if (json_int64(item, &number) < 0) {
        snprintf(found, sizeof found, "%.20g", json_real(item));
        return json_real(item) < 0 ? fail_int_low(err, param, min, found) : fail_int_high(err, param, max, found);
    }
    snprintf(found, sizeof found, "%" PRId64, number);
    if (number < min) return fail_int_low(err, param, min, found);
    if (number > max) return fail_int_high(err, param, max, found);
    *value = number;
    return 0;
}

static int read_real(const struct cJSON *item, const struct field *field, double *value, struct err *err)
{
    double number = json_real(item);

    if (number < field->min || (field->above_min && number <= field->min))
        return err_param(err, ERR_REAL_LOW, field->name,
                         "Invalid '%s': decimal below minimum value. Expected a value %s %g, but got %.9g instead.",
                         field->name,
                         field->above_min ? ">" : ">=", field->min, number);
    if (!(number <= field->max))
        return err_param(err, ERR_REAL_HIGH, field->name,
                         "Invalid '%s': decimal above maximum value. Expected a value <= %g, but got %.9g instead.",
                         field->name,
                         field->max, number);
    *value = number;
    return 0;
}

/* ---- passes ---- */

static int check_type(const struct field *field, const struct cJSON *item, struct err *err)
{
    bool is_number = cJSON_IsNumber(item) || json_is_int(item);

    switch (field->type) {
    case F_INT: return json_is_int(item) ? 0 : fail_type(err, field->name, "an integer", item);
    case F_REAL: return is_number ? 0 : fail_type(err, field->name, "a decimal", item);
    case F_BOOL: return cJSON_IsBool(item) ? 0 : fail_type(err, field->name, "a boolean", item);
    case F_STRING: return cJSON_IsString(item) ? 0 : fail_type(err, field->name, "a string", item);
    case F_ARRAY: return cJSON_IsArray(item) ? 0 : fail_type(err, field->name, "an array", item);
    case F_OBJECT: return cJSON_IsObject(item) ? 0 : fail_type(err, field->name, "an object", item);
    case F_TEXT_OR_ARRAY:
        if (cJSON_IsString(item) || cJSON_IsArray(item)) return 0;
        return fail_type(err, field->name, "a string or an array", item);
    }
    return 0;
}

/* Required fields may not even be null; every other null is as absent. */
static int check_required(const struct cJSON *root, const char *name, const char *expected, struct err *err)
{
    const struct cJSON *item = json_get_raw(root, name);

    if (!item) return fail_missing(err, name);
    return cJSON_IsNull(item) ? fail_type(err, name, expected, item) : 0;
}

int validate_types(const struct cJSON *root, unsigned in, struct err *err)
{
    int rc = check_required(root, "model", "a string", err);

    if (rc == 0 && in == C) rc = check_required(root, "prompt", "a string or an array", err);
    if (rc == 0 && in == H) rc = check_required(root, "messages", "an array", err);
    for (int i = 0; rc == 0 && i < NUM_FIELDS; i++) {
        const struct cJSON *item = field_table[i].in & in ? json_get(root, field_table[i].name) : NULL;
        if (item) rc = check_type(&field_table[i], item, err);
    }
    return rc;
}

static bool is_refused(enum refuse_when when, const struct cJSON *item)
{
    switch (when) {
    case ALWAYS: return true;
    case WHEN_TRUE: return !cJSON_IsFalse(item);
    case WHEN_FILLED:
        if (cJSON_IsString(item)) return item->valuestring[0] != '\0' || json_has_nul(item);
        return !(cJSON_IsArray(item) || cJSON_IsObject(item)) || item->child;
    case WHEN_NOT_NEGATIVE: return !cJSON_IsNumber(item) || json_real(item) >= 0;
    }
    return true;
}

static int refuse(struct err *err, const char *name, const char *hint)
{
    return err_param(err, ERR_UNSUPPORTED, name, "Unsupported parameter: '%s' is not supported by this server%s.", name,
                     hint ? hint : "");
}

/* Prefixes and values that a row cannot say. */
static int check_special_refusals(const struct cJSON *root, unsigned in, struct err *err)
{
    const struct cJSON *item;

    cJSON_ArrayForEach(item, root) {
        if (item->string && strncmp(item->string, "multi_modal_", 12) == 0 && !cJSON_IsNull(item))
            return err_param(err, ERR_UNSUPPORTED, "multi_modal_data",
                             "Unsupported parameter: multi-modal input is not supported by this server.");
    }
    item = json_get(root, "modalities");
    const struct cJSON *only = cJSON_IsArray(item) ? item->child : NULL;
    if (item && !(only && !only->next && cJSON_IsString(only) && strcmp(only->valuestring, "text") == 0))
        return refuse(err, "modalities", " with anything but [\"text\"]");
    item = json_get(root, "response_format");
    if (item) {
        const struct cJSON *type = json_get(item, "type");
        if (!type) return fail_missing(err, "response_format.type");
        if (!cJSON_IsString(type)) return fail_type(err, "response_format.type", "a string", type);
        if (strcmp(type->valuestring, "text") != 0)
            return refuse(err, "response_format", " with a type other than text");
    }
    if (in != H) return 0;
    if ((item = json_get(root, "tools")))
        return item->child ? refuse(err, "tools", NULL) : fail_empty_array(err, "tools");
    item = json_get(root, "tool_choice");
    if (!item || (cJSON_IsString(item) && strcmp(item->valuestring, "none") == 0)) return 0;
    if (cJSON_IsString(item) && strcmp(item->valuestring, "auto") == 0) return 0;
    return err_param(err, ERR_VALUE, "tool_choice",
                     "Invalid 'tool_choice': it may be 'none' or 'auto' when there are no tools.");
}

int validate_supported(const struct cJSON *root, unsigned in, struct err *err)
{
    for (size_t i = 0; i < sizeof refusal_table / sizeof refusal_table[0]; i++) {
        const struct refusal *row = &refusal_table[i];
        const struct cJSON *item = row->in & in ? json_get(root, row->name) : NULL;
        if (item && is_refused(row->when, item)) return refuse(err, row->name, row->hint);
    }
    return check_special_refusals(root, in, err);
}

static int read_field(const struct field *field, const struct cJSON *item, struct generation_params *gen,
                      struct err *err)
{
    char *home = (char *)gen + field->offset;
    int64_t number = 0;
    double real = 0;
    int rc = 0;

    if (field->type == F_INT && field->max > field->min && !(field->max == ANY_TOP && json_real(item) >= ANY_TOP))
        rc = read_int(item, field->name, (int64_t)field->min, (int64_t)field->max, &number, err);
    else if (field->type == F_REAL)
        rc = read_real(item, field, &real, err);
    if (rc < 0) return rc;
    switch (field->home) {
    case HOME_NONE: break;
    case HOME_INT32: *(int32_t *)home = (int32_t)number; break;
    case HOME_INT64: *(int64_t *)home = number; break;
    case HOME_FLOAT: *(float *)home = (float)real; break;
    case HOME_BOOL: *(bool *)home = cJSON_IsTrue(item); break;
    }
    return 0;
}

int validate_ranges(const struct cJSON *root, unsigned in, struct generation_params *gen, struct err *err)
{
    int rc = 0;

    for (int i = 0; rc == 0 && i < NUM_FIELDS; i++) {
        const struct cJSON *item = field_table[i].in & in ? json_get(root, field_table[i].name) : NULL;
        if (item) rc = read_field(&field_table[i], item, gen, err);
    }
    return rc;
}

/* Recursion is bounded by the JSON guard's depth of 64. */
static bool any_nul(const struct cJSON *item)
{
    if (json_has_nul(item)) return true;
    if (item->string && strstr(item->string, "\xC0\x80")) return true;
    for (const struct cJSON *child = item->child; child; child = child->next) {
        if (any_nul(child)) return true;
    }
    return false;
}

static bool message_has_nul(const struct cJSON *message)
{
    if (!cJSON_IsObject(message)) return any_nul(message);
    for (const struct cJSON *field = message->child; field; field = field->next) {
        if (field->string && strcmp(field->string, "content") == 0) continue;
        if (any_nul(field)) return true;
    }
    return false;
}

int validate_no_nul(const struct cJSON *root, struct err *err)
{
    for (const struct cJSON *item = root->child; item; item = item->next) {
        bool found = false;
        if (item->string && strcmp(item->string, "prompt") == 0) continue;
        if (item->string && strcmp(item->string, "messages") == 0 && cJSON_IsArray(item)) {
            for (const struct cJSON *message = item->child; message && !found; message = message->next)
                found = message_has_nul(message);
        } else {
            found = any_nul(item);
        }
        /* the name itself comes from the client: only a short, harmless one goes into the answer */
        bool shown = item->string && strlen(item->string) < 64 && !strstr(item->string, "\xC0\x80");
        if (found)
            return err_param(err, ERR_VALUE, shown ? item->string : "",
                             "Invalid value: \\u0000 is allowed in 'prompt' and message 'content' only.");
    }
    return 0;
}

/* ---- the document ---- */

/* What the type of a row does not say. */
static const struct { const char *name, *schema; } schema_table[] = {
    { "prompt", "\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"minItems\":1,\"maxItems\":1024,\"items\":{\"type\":\"string\"}},"
                "{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"integer\",\"minimum\":0}},{\"type\":\"array\",\"minItems\":1,"
                "\"items\":{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"integer\",\"minimum\":0}}}]" },
    { "messages", "\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"object\",\"required\":[\"role\"],\"properties\":{\"role\":"
                  "{\"enum\":[\"system\",\"developer\",\"user\",\"assistant\",\"tool\"]},\"content\":{\"type\":[\"string\",\"array\",\"null\"]}}}" },
    { "stop", "\"anyOf\":[{\"type\":\"string\",\"minLength\":1},{\"type\":\"array\",\"maxItems\":16,\"items\":{\"type\":\"string\",\"minLength\":1}},"
              "{\"type\":\"null\"}]" },
    { "seed", "\"type\":[\"integer\",\"null\"],\"minimum\":-9223372036854775808,\"maximum\":9223372036854775807" },
    { "logit_bias", "\"type\":[\"object\",\"null\"],\"maxProperties\":1024,\"additionalProperties\":{\"type\":\"number\",\"minimum\":-100,\"maximum\":100}" },
    { "stream_options", "\"type\":[\"object\",\"null\"],\"properties\":{\"include_usage\":{\"type\":[\"boolean\",\"null\"]},"
                        "\"continuous_usage_stats\":{\"type\":[\"boolean\",\"null\"]}}" },
    { "response_format", "\"type\":[\"object\",\"null\"],\"required\":[\"type\"],\"properties\":{\"type\":{\"enum\":[\"text\"]}}" },
    { "truncation_side", "\"enum\":[\"left\",\"right\",null]" },
    { "truncate_prompt_tokens", "\"type\":[\"integer\",\"null\"],\"minimum\":-1" },
    { "reasoning_effort", "\"enum\":[\"none\",\"minimal\",\"low\",\"medium\",\"high\",\"xhigh\",\"max\",null]" },
    { "cache_salt", "\"type\":[\"string\",\"null\"],\"minLength\":1,\"maxLength\":1024" },
    { "stop_token_ids", "\"type\":[\"array\",\"null\"],\"maxItems\":1024,\"items\":{\"type\":\"integer\",\"minimum\":0}" },
    { "allowed_token_ids", "\"type\":[\"array\",\"null\"],\"minItems\":1,\"items\":{\"type\":\"integer\",\"minimum\":0}" },
    { "bad_words", "\"type\":[\"array\",\"null\"],\"maxItems\":256,\"items\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":256}" },
    { "chat_template_kwargs", "\"type\":[\"object\",\"null\"],\"maxProperties\":16" },
    { "suffix", "\"type\":[\"string\",\"null\"],\"description\":\"needs a model with fill-in-the-middle tokens\"" },
    { "tools", "\"type\":\"null\"" },
};

static const char *special_schema(const char *name)
{
    for (size_t i = 0; i < sizeof schema_table / sizeof schema_table[0]; i++) {
        if (strcmp(schema_table[i].name, name) == 0) return schema_table[i].schema;
    }
    return NULL;
}

static void put_bounds(const struct field *field, struct buf *out)
{
    if (field->max <= field->min) {
        if (field->type == F_INT) buf_puts(out, ",\"minimum\":0,\"maximum\":20");      /* logprobs of all kinds */
        return;
    }
    buf_printf(out, ",\"%s\":%.17g", field->above_min ? "exclusiveMinimum" : "minimum", field->min);
    if (field->max < ANY_TOP) buf_printf(out, ",\"maximum\":%.17g", field->max);
}

static void put_schema(const struct field *field, struct buf *out)
{
    static const char *const types[] = { [F_INT] = "integer", [F_REAL] = "number", [F_BOOL] = "boolean", [F_STRING] = "string",
        [F_ARRAY] = "array", [F_OBJECT] = "object", [F_TEXT_OR_ARRAY] = "string" };
    const char *special = special_schema(field->name);

    buf_printf(out, ",\"%s\":{", field->name);
    if (special) buf_puts(out, special);
    else buf_printf(out, "\"type\":[\"%s\",\"null\"]", types[field->type]);
    if (!special && (field->type == F_INT || field->type == F_REAL)) put_bounds(field, out);
    buf_putc(out, '}');
}

void validate_put_schema(unsigned in, struct buf *out)
{
    for (int i = 0; i < NUM_FIELDS; i++) {
        bool refused = strcmp(field_table[i].name, "echo") == 0 && in == H;
        if (!(field_table[i].in & in) || strcmp(field_table[i].name, "model") == 0 || refused) continue;
        put_schema(&field_table[i], out);
    }
}
