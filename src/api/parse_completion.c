#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "parse.h"
#include "validate.h"

/* The four forms of `prompt`: a string, a list of strings, a list of ids, a list of lists of ids. No mixing. */
enum prompt_form { ONE_TEXT, TEXTS, ONE_IDS, IDS_LISTS };

static int prompt_form_of(const struct parse *p, const struct cJSON *prompt, enum prompt_form *form)
{
    const struct cJSON *first = prompt->child;

    if (cJSON_IsString(prompt)) { *form = ONE_TEXT; return 0; }
    if (!first) return fail_empty_array(p->err, "prompt");
    if (cJSON_IsString(first)) { *form = TEXTS; return 0; }
    if (cJSON_IsArray(first)) { *form = IDS_LISTS; return 0; }
    if (cJSON_IsNumber(first) || json_is_int(first)) { *form = ONE_IDS; return 0; }
    return fail_type(p->err, "prompt", "a string, an array of strings, of token ids or of arrays of token ids", prompt);
}

static int fail_mixed(const struct parse *p)
{
    return err_param(p->err, ERR_VALUE, "prompt",
                     "Invalid 'prompt': strings and token ids cannot be mixed in one array.");
}

/* Borrowed from the tree, which lives until the text is tokenized. */
static int add_text(const struct parse *p, const struct cJSON *item, struct completion_request *request, size_t i)
{
    const char *text;

    if (json_string(item, &text, &request->prompts[i].len) < 0) return fail_mixed(p);
    request->prompts[i].text = text;
    return 0;
}

static int add_ids(const struct parse *p, const struct cJSON *array, struct completion_request *request, size_t i)
{
    if (!cJSON_IsArray(array)) return fail_mixed(p);
    if (!array->child) return fail_empty_array(p->err, "prompt");
    for (const struct cJSON *item = array->child; item; item = item->next) {
        if (!cJSON_IsNumber(item) && !json_is_int(item)) return fail_mixed(p);
    }
    request->prompts[i].is_ids = true;
    return parse_token_ids(p, array, "prompt", &request->prompts[i].ids.ids, &request->prompts[i].ids.n);
}

int parse_completion(const struct parse *p, struct completion_request *request)
{
    const struct cJSON *prompt = json_get(p->root, "prompt");
    enum prompt_form form = ONE_TEXT;
    int rc = prompt_form_of(p, prompt, &form);

    if (rc < 0) return rc;
    bool many = form == TEXTS || form == IDS_LISTS;
    request->n_prompts = many ? (size_t)cJSON_GetArraySize(prompt) : 1;
    if (request->n_prompts > MAX_PROMPTS)
        return fail_array_long(p->err, "prompt", MAX_PROMPTS, (long long)request->n_prompts);
    if (request->n_prompts * (size_t)request->gen.n > MAX_PROMPTS)
        return err_param(p->err, ERR_ARRAY_LONG, request->gen.n > request->gen.n_shown ? "best_of" : "n",
                         "Invalid 'n': %zu prompts with n = %d are %zu choices. Expected at most %d.",
                         request->n_prompts, request->gen.n, request->n_prompts * (size_t)request->gen.n, MAX_PROMPTS);
    request->prompts = arena_array(p->arena, request->n_prompts, sizeof *request->prompts);
    if (!request->prompts) return parse_no_memory(p);
    const struct cJSON *item = many ? prompt->child : prompt;
    for (size_t i = 0; rc == 0 && i < request->n_prompts; i++, item = many ? item->next : NULL)
        rc = form == ONE_TEXT || form == TEXTS ? add_text(p, item, request, i) : add_ids(p, item, request, i);
    if (json_string(json_get(p->root, "suffix"), &request->suffix, &request->suffix_len) < 0 || !request->suffix_len)
        request->suffix = NULL;
    if (rc == 0 && request->suffix && request->prompts[0].is_ids)
        return err_param(p->err, ERR_VALUE, "suffix", "Invalid 'suffix': it needs a prompt of text.");
    request->parse_special_tokens = p->gateway->config->prompt_special_tokens &&
        read_bool(p->root, "parse_special_tokens", true);
    return rc;
}
