#include "infill.h"

#include <string.h>

struct markers { const char *prefix, *suffix, *middle; };

/* As the models were trained: prefix marker, text before, suffix marker, text behind, middle marker. */
static const struct markers families[] = {
    { "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>" },      /* Qwen, CodeGemma */
    { "<fim_prefix>", "<fim_suffix>", "<fim_middle>" },            /* StarCoder, Granite */
    { "<\xef\xbd\x9c" "fim\xe2\x96\x81" "begin\xef\xbd\x9c>", "<\xef\xbd\x9c" "fim\xe2\x96\x81" "hole\xef\xbd\x9c>",
      "<\xef\xbd\x9c" "fim\xe2\x96\x81" "end\xef\xbd\x9c>" },      /* DeepSeek */
};

/* One token of the vocabulary, whether or not its files call it special. */
static int is_token(const struct tokenizer *tok, const char *text, bool *yes, struct err *err)
{
    struct token_buf tokens = { .limit = 64 };
    struct text_segment segment = { text, strlen(text), true };
    int rc = tokenizer_encode(tok, &segment, 1, false, &tokens, err);

    *yes = rc == 0 && tokens.len == 1;
    token_buf_release(&tokens);
    return rc;
}

static int has_all(const struct tokenizer *tok, const struct markers *markers, bool *yes, struct err *err)
{
    int rc = is_token(tok, markers->prefix, yes, err);

    if (rc == 0 && *yes) rc = is_token(tok, markers->suffix, yes, err);
    if (rc == 0 && *yes) rc = is_token(tok, markers->middle, yes, err);
    return rc;
}

static struct text_segment literal(const char *text) { return (struct text_segment){ text, strlen(text), true }; }

int infill_segments(const struct tokenizer *tok, const struct text_segment *before, const struct text_segment *behind,
                    struct text_segment out[INFILL_SEGMENTS], struct err *err)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        bool yes = false;
        int rc = has_all(tok, &families[i], &yes, err);
        if (rc < 0) return rc;
        if (!yes) continue;
        out[0] = literal(families[i].prefix);
        out[1] = *before;
        out[2] = literal(families[i].suffix);
        out[3] = *behind;
        out[4] = literal(families[i].middle);
        return 0;
    }
    return err_param(err, ERR_UNSUPPORTED, "suffix",
                     "Unsupported parameter: 'suffix' needs a model with fill-in-the-middle tokens, and this one has none.");
}
