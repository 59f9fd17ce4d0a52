/* json_guard_fuzz.c - any bytes: no crash, and what is accepted is valid UTF-8 with consistent look-ups. */
#include <stdint.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "base/bug.h"
#include "base/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look(const struct cJSON *item, int depth)
{
    const char *text = NULL;
    size_t len = 0;
    int64_t value;

    BUG_ON(depth > 65);
    BUG_ON(!json_kind(item));
    if (json_string(item, &text, &len) == 0) {
        BUG_ON(!utf8_valid(text, len) || text[len] != '\0');
        BUG_ON(json_has_nul(item) != (memchr(text, 0, len) != NULL));
    }
    if (json_int64(item, &value) == 0) BUG_ON(!json_is_int(item));
    for (const struct cJSON *child = item->child; child; child = child->next) {
        look(child, depth + 1);
        if (child->string)
            BUG_ON(json_get_raw(item, child->string) != child); /* no duplicates: the first is this one */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cJSON *root;
    struct err err = { 0 };
    if (json_parse((const char *)data, size, &json_limits_request, &root, &err) == 0) {
        BUG_ON(!utf8_valid((const char *)data, size));
        look(root, 0);
        json_free(root);
    } else {
        BUG_ON(root || !err.message[0]);
    }
    return 0;
}
