/* template_tool.c - renders chat templates for template_parity.py, which compares with python jinja2.
 * stdin: one JSON object per line, all but template optional:
 *        {"template": S, "messages": [...], "tools": [...], "kwargs": {...}, "bos": S, "eos": S,
 *         "add_generation_prompt": 0|1, "continue_final_message": 0|1, "now": int}
 * stdout: one JSON object per line: {"text": S} or {"error": S}, with --segments also
 *         "segments": [[S, special], ...] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/json.h>
#include <sluice/text.h>

#include "base/buf.h"

static const char *text_of(const struct cJSON *root, const char *key, size_t *len)
{
    const char *text = NULL;

    *len = 0;
    if (json_get(root, key)) json_string(json_get(root, key), &text, len);
    return text;
}

static bool is_set(const struct cJSON *root, const char *key)
{
    const struct cJSON *item = json_get(root, key);
    int64_t value = 0;

    return item && json_int64(item, &value) == 0 && value != 0;
}

static void print_prompt(struct buf *out, const struct chat_prompt *prompt, bool segments)
{
    buf_puts(out, "{\"text\": \"");
    for (size_t i = 0; i < prompt->n_segments; i++)
        buf_json_escape(out, prompt->segments[i].text, prompt->segments[i].len);
    buf_putc(out, '"');
    if (segments) {
        buf_puts(out, ", \"segments\": [");
        for (size_t i = 0; i < prompt->n_segments; i++) {
            buf_puts(out, i ? ", [\"" : "[\"");
            buf_json_escape(out, prompt->segments[i].text, prompt->segments[i].len);
            buf_puts(out, prompt->segments[i].parse_special ? "\", true]" : "\", false]");
        }
        buf_putc(out, ']');
    }
    buf_puts(out, "}\n");
}

static int render(const struct cJSON *root, struct buf *out, bool segments, struct err *err)
{
    size_t len, ignored;
    int64_t now = 0;
    const char *source = text_of(root, "template", &len);
    struct chat_template *tmpl = NULL;
    struct chat_prompt prompt;
    struct chat_template_vars vars = {
        .messages = json_get(root, "messages"), .tools = json_get(root, "tools"), .kwargs = json_get(root, "kwargs"),
        .bos_token = text_of(root, "bos", &ignored), .eos_token = text_of(root, "eos", &ignored),
        .add_generation_prompt = is_set(root, "add_generation_prompt"),
        .continue_final_message = is_set(root, "continue_final_message"),
    };
    int rc;

    if (json_get(root, "now") && json_int64(json_get(root, "now"), &now) == 0) vars.now_s = now;
    if ((rc = chat_template_compile(&tmpl, source ? source : "", len, err)) < 0) return rc;
    rc = chat_template_render(tmpl, &vars, &prompt, err);
    chat_template_free(tmpl);                    /* the prompt does not need it any more */
    if (rc < 0) return rc;
    print_prompt(out, &prompt, segments);
    chat_prompt_release(&prompt);
    return 0;
}

static int answer(const char *line, size_t len, bool segments)
{
    struct cJSON *root = NULL;
    struct buf out = BUF_INIT;
    struct err err = { 0 };
    int rc = json_parse(line, len, &json_limits_file, &root, &err);

    if (rc == 0) rc = render(root, &out, segments, &err);
    if (rc < 0) {
        buf_puts(&out, "{\"error\": \"");
        buf_json_escape(&out, err.message, strlen(err.message));
        buf_puts(&out, "\"}\n");
    }
    if (!out.failed) fwrite(out.data, 1, out.len, stdout);
    buf_release(&out);
    json_free(root);
    return out.failed ? -1 : 0;
}

int main(int argc, char **argv)
{
    bool segments = argc > 1 && strcmp(argv[1], "--segments") == 0;
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    int rc = 0;

    while (rc == 0 && (len = getline(&line, &cap, stdin)) > 0) {
        rc = answer(line, (size_t)len, segments);
        fflush(stdout);
    }
    free(line);
    return rc < 0;
}
