/* http_guard_fuzz.c - the request guard on header fields cut out of random bytes. First line: method, URL, version;
 * then
 * "name: value" lines. What the guard lets through must hold the promises that the rest of http/ builds on. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "http/guard.h"

static void check_promises(const struct guard_input *input, const struct guard_result *result)
{
    BUG_ON(result->chunked && result->has_length);
    BUG_ON(input->n_fields > GUARD_MAX_FIELDS);
    BUG_ON(strlen(input->raw_url) > GUARD_MAX_URL);
    BUG_ON(result->request_id && (result->request_id->value_len > REQUEST_ID_MAX ||
                                  memchr(result->request_id->value, '\n', result->request_id->value_len)));
    for (size_t i = 0; i < input->n_fields; i++) {
        BUG_ON(input->fields[i].name_len == 0);
        BUG_ON(memchr(input->fields[i].value, '\r', input->fields[i].value_len) ||
               memchr(input->fields[i].value, '\0', input->fields[i].value_len));
    }
}

/* Splits text at the first `by`; the rest, or NULL. */
static char *cut(char *text, char by)
{
    char *at = strchr(text, by);

    if (!at) return NULL;
    *at = '\0';
    return at + 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char *hosts[] = { "localhost" };
    struct str_list allowed = { hosts, 1 };
    struct guard_field fields[GUARD_MAX_FIELDS];
    struct guard_input input = { .method = "", .version = "", .raw_url = "", .fields = fields };
    struct guard_result result;
    struct err err = { 0 };
    char *text = malloc(size + 1);

    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    char *end = text + size, *lines = cut(text, '\n');
    char *url = cut(text, ' ');
    char *version = url ? cut(url, ' ') : NULL;
    input.method = text;
    if (url) input.raw_url = url;
    if (version) input.version = version;
    while (lines && lines < end) {        /* lines may hold NUL, as header lines from the wire may */
        char *stop = memchr(lines, '\n', (size_t)(end - lines));
        size_t len = (size_t)((stop ? stop : end) - lines);
        char *colon = memchr(lines, ':', len);
        size_t name_len = colon ? (size_t)(colon - lines) : len;
        size_t skip = colon ? name_len + 1 : len;
        if (colon && skip < len && lines[skip] == ' ') skip++;
        if (input.n_fields < GUARD_MAX_FIELDS)
            fields[input.n_fields] = (struct guard_field){ lines, name_len, lines + skip, len - skip };
        input.n_fields++;
        lines = stop ? stop + 1 : NULL;
    }
    int rc = guard_check(&input, size % 2 ? &allowed : NULL, &result, &err);
    BUG_ON(rc != err.code);
    if (rc == 0) check_promises(&input, &result);
    free(text);
    return 0;
}
