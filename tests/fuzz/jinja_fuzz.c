/* jinja_fuzz.c - arbitrary bytes as a chat template, rendered over a fixed conversation. Whatever it is: no
 * crash, no leak, and an end within the limits. A template that renders gives valid segments. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/json.h>
#include <sluice/text.h>

static const char conversation[] =
    "[{\"role\":\"system\",\"content\":\"s\\u0000 <|x|>\"},{\"role\":\"user\",\"content\":\"Gr\\u00fc\\u00dfe "
    "\\ud83d\\ude00\\n\",\"n\":7,\"f\":0.5,"
    "\"l\":[1,null,true,\"a\"]},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"function\":{"
    "\"name\":\"f\",\"arguments\":{\"a\":[]}}}]},"
    "{\"role\":\"assistant\",\"content\":\"end \"}]";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cJSON *messages = NULL;
    struct chat_template *tmpl = NULL;
    struct chat_prompt prompt;
    struct err err = { 0 };

    if (size == 0 || size > 20000) return 0;
    if (json_parse(conversation, sizeof(conversation) - 1, &json_limits_request, &messages, &err) < 0) abort();
    struct chat_template_vars vars = {
        .messages = messages, .bos_token = "<s>", .eos_token = "</s>", .add_generation_prompt = data[0] & 1,
        .continue_final_message = (data[0] & 6) == 6, .now_s = 1700000000,
    };
    if (chat_template_compile(&tmpl, (const char *)data, size, &err) == 0 &&
        chat_template_render(tmpl, &vars, &prompt, &err) == 0) {
        for (size_t i = 0; i < prompt.n_segments; i++)
            if (prompt.segments[i].len == 0 ||
                (i && prompt.segments[i].parse_special == prompt.segments[i - 1].parse_special))
                abort();
        chat_prompt_release(&prompt);
    }
    chat_template_free(tmpl);
    json_free(messages);
    return 0;
}
