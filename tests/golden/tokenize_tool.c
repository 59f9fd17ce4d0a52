/* tokenize_tool - drives the tokenizer for tokenizer_parity.py.
 *   tokenize_tool json|dir|gguf PATH < requests > answers
 * Little-endian 32-bit words. Request: flags (1 parse_special, 2 add_special, 4 skip_special when decoding),
 * length, bytes.
 * Answer: number of ids, ids, length of the decoded text, its bytes. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sluice/loader.h>
#include <sluice/text.h>

enum { PARSE_SPECIAL = 1, ADD_SPECIAL = 2, SKIP_SPECIAL = 4, MAX_TEXT = 256 << 20 };

static char *read_whole(const char *path, size_t *len)
{
    FILE *file = fopen(path, "rb");
    char *data = NULL;

    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && ftell(file) >= 0) {
        *len = (size_t)ftell(file);
        rewind(file);
        data = malloc(*len + 1);
        if (data && fread(data, 1, *len, file) != *len) {
            free(data);
            data = NULL;
        }
    }
    fclose(file);
    return data;
}

static int load(struct tokenizer **tok, const char *kind, const char *path, struct err *err)
{
    int rc = ERR_NOT_FOUND;

    if (!strcmp(kind, "json")) {
        size_t len = 0;
        char *json = read_whole(path, &len);
        if (!json) return err_set(err, ERR_IO, "cannot read %s", path);
        rc = tokenizer_load_json(tok, json, len, NULL, 0, err);
        free(json);
    } else if (!strcmp(kind, "dir")) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) return err_sys(err, ERR_IO, "open %s", path);
        rc = tokenizer_load_dir(tok, fd, err);
        close(fd);
    } else if (!strcmp(kind, "gguf")) {
        struct model_source *src = NULL;
        if ((rc = model_source_open(&src, path, LOAD_GGUF, err)) < 0) return rc;
        rc = tokenizer_load_gguf(tok, model_source_gguf(src), err);
        model_source_close(src);
    }
    return rc;
}

static int answer(const struct tokenizer *tok, uint32_t flags, const char *text, uint32_t len, struct token_buf *ids,
                  struct err *err)
{
    struct text_segment segment = { text, len, (flags & PARSE_SPECIAL) != 0 };
    char *decoded = NULL;
    size_t decoded_len = 0;
    int rc;

    ids->len = 0;
    if ((rc = tokenizer_encode(tok, &segment, 1, (flags & ADD_SPECIAL) != 0, ids, err)) < 0) return rc;
    if ((rc = tokenizer_decode(tok, ids->ids, ids->len, (flags & SKIP_SPECIAL) != 0, &decoded, &decoded_len, err)) < 0)
        return rc;
    uint32_t n = (uint32_t)ids->len, n_bytes = (uint32_t)decoded_len;
    fwrite(&n, sizeof n, 1, stdout);
    if (n) fwrite(ids->ids, sizeof *ids->ids, n, stdout);
    fwrite(&n_bytes, sizeof n_bytes, 1, stdout);
    fwrite(decoded, 1, n_bytes, stdout);
    free(decoded);
    return 0;
}

static int serve(const struct tokenizer *tok, struct err *err)
{
    struct token_buf ids = { 0 };
    uint32_t head[2];
    int rc = 0;

    while (!rc && fread(head, sizeof head, 1, stdin) == 1) {
        char *text = head[1] <= MAX_TEXT ? malloc((size_t)head[1] + 1) : NULL;
        if (!text || fread(text, 1, head[1], stdin) != head[1])
            rc = err_set(err, ERR_IO, "a request of %u bytes cannot be read", head[1]);
        else
            rc = answer(tok, head[0], text, head[1], &ids, err);
        free(text);
    }
    token_buf_release(&ids);
    return rc;
}

int main(int argc, char **argv)
{
    struct tokenizer *tok = NULL;
    struct err err = { 0 };

    if (argc != 3) {
        fprintf(stderr, "usage: tokenize_tool json|dir|gguf PATH\n");
        return 2;
    }
    int rc = load(&tok, argv[1], argv[2], &err);
    if (!rc) rc = serve(tok, &err);
    if (rc < 0) fprintf(stderr, "tokenize_tool: %s: %s\n", err_name(rc), err.message);
    tokenizer_free(tok);
    return rc < 0 ? 1 : 0;
}
