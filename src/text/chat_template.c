/* chat_template.c - messages -> prompt text with the origin of every byte.
 * A run has an arena of its own that dies with it; what stays is one block with the segments and their text.
 * continue_final_message follows transformers: a tag is put behind the last message's text, the template runs,
 * the output is cut at the tag. Here the tag has an origin of its own, so that a client who writes the same
 * words changes nothing. */
#include <sluice/text.h>

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "jinja_ast.h"
#include "jinja_unicode.h"

struct chat_template {
    struct jtemplate jinja;
    bool names_content;          /* "content" stands somewhere in the source */
};

int chat_template_compile(struct chat_template **out, const char *source, size_t len, struct err *err)
{
    struct chat_template *tmpl = calloc(1, sizeof(*tmpl));
    int rc;

    *out = NULL;
    if (!tmpl) return err_set(err, ERR_NO_MEMORY, "out of memory");
    rc = jtemplate_compile(&tmpl->jinja, source, len, err);
    if (rc < 0) {
        chat_template_free(tmpl);
        return rc;
    }
    tmpl->names_content = memmem(source, len, "content", 7) != NULL;
    *out = tmpl;
    return 0;
}

void chat_template_free(struct chat_template *tmpl)
{
    if (!tmpl) return;
    jtemplate_release(&tmpl->jinja);
    free(tmpl);
}

bool chat_template_reads(const struct chat_template *tmpl, const char *name)
{
    int32_t id = jtemplate_name(&tmpl->jinja, name, strlen(name));

    return id >= 0 && tmpl->jinja.is_read[id];
}

/* ---- variables ---- */
static void set_var(struct jrt *rt, const char *name, struct jval value)
{
    int32_t id = jtemplate_name(rt->tmpl, name, strlen(name));

    if (id >= 0) rt->root[id] = value;
}

static void set_kwargs(struct jrt *rt, const struct cJSON *kwargs)
{
    struct jval v = kwargs ? jval_from_json(rt, kwargs, JO_CLIENT) : JNONE;

    if (rt->rc || v.kind != JK_DICT) return;
    for (size_t i = 0; i < v.dict->n; i++) {
        const struct jstr *key = v.dict->pairs[i].key.s;
        int32_t id = jtemplate_name(rt->tmpl, key->data, key->len);
        if (id >= 0) rt->root[id] = v.dict->pairs[i].value;
    }
}

static void set_token(struct jrt *rt, const char *name, const char *text)
{
    if (text) set_var(rt, name, jstr_new(rt, text, strlen(text), JO_TEMPLATE));
}

/* Reasoning comes under three names; templates read one of two. As transformers: reasoning_content gets it always,
 * thinking where the message has none of its own. */
static struct jval alias_reasoning(struct jrt *rt, struct jval message)
{
    static const char *const names[] = { "reasoning_content", "thinking", "reasoning" };
    const struct jval *reasoning = NULL;
    struct jval copy;

    if (message.kind != JK_DICT) return message;
    for (size_t i = 0; i < 3 && (!reasoning || reasoning->kind == JK_NONE); i++)
        reasoning = jdict_find(message.dict, names[i], strlen(names[i]));
    if (!reasoning || reasoning->kind == JK_NONE) return message;
    copy = jdict_new(rt, JK_DICT, message.dict->n + 2);
    jdict_set(rt, copy, jstr_lit(rt, "thinking"), *reasoning);
    for (size_t i = 0; i < message.dict->n && !rt->rc; i++)
        jdict_set(rt, copy, message.dict->pairs[i].key, message.dict->pairs[i].value);
    jdict_set(rt, copy, jstr_lit(rt, "reasoning_content"), *reasoning);
    return copy;
}

/* ---- continue_final_message ---- */
static const char mark[] = "CONTINUE_FINAL_MESSAGE_TAG ";
enum { MARK_LEN = sizeof(mark) - 1 };

static struct jval with_mark(struct jrt *rt, struct jval text)
{
    struct jbuf buf;

    jbuf_init(&buf, rt);
    jbuf_add_value(&buf, text);
    jbuf_add(&buf, mark, MARK_LEN, JO_MARK);
    return jbuf_take(&buf);
}

/* Puts the mark behind text[key] of the dict; *text gets what was there. False: no such text. */
static bool mark_field(struct jrt *rt, struct jval dict, const char *key, const struct jstr **text)
{
    const struct jval *there = dict.kind == JK_DICT ? jdict_find(dict.dict, key, strlen(key)) : NULL;

    if (!there || there->kind != JK_STR) return false;
    *text = there->s;
    jdict_set(rt, dict, jstr_lit(rt, key), with_mark(rt, *there));
    return true;
}

static const struct jstr *mark_final(struct jrt *rt, struct jval messages)
{
    const struct jstr *text = NULL;
    const struct jval *content;
    struct jval last;

    if (messages.kind != JK_LIST || messages.list->n == 0) {
        jrt_fail(rt, "continue_final_message is set but the conversation is empty");
        return NULL;
    }
    last = messages.list->items[messages.list->n - 1];
    content = last.kind == JK_DICT ? jdict_find(last.dict, "content", 7) : NULL;
    if (content && content->kind == JK_LIST) {
        for (size_t i = content->list->n; i-- > 0 && !text;)
            mark_field(rt, content->list->items[i], "text", &text);
    } else {
        mark_field(rt, last, "content", &text);
    }
    if (!text && !rt->rc) jrt_fail(rt, "continue_final_message is set but the final message has no text to continue");
    return text;
}

static bool holds(const struct jstr *text, const struct jstr *part)
{
    size_t from = jtext_lstrip(part->data, part->len), to = jtext_rstrip(part->data, part->len);

    return from >= to || memmem(text->data, text->len, part->data + from, to - from) != NULL;
}

/* The output up to the last mark. A mark without its final blank was trimmed by the template: then so is what stands
 * before it. */
static struct jval cut_at_mark(struct jrt *rt, const struct jstr *text, const struct jstr *final)
{
    size_t end = text->len, start;

    while (end > 0 && jstr_origin_at(text, end - 1) != JO_MARK) end--;
    for (start = end; start > 0 && jstr_origin_at(text, start - 1) == JO_MARK && end - start < MARK_LEN; start--) ;
    bool whole = end - start == MARK_LEN && memcmp(text->data + start, mark, MARK_LEN) == 0;
    bool trimmed = end - start == MARK_LEN - 1 && memcmp(text->data + start, mark, MARK_LEN - 1) == 0;
    if ((!whole && !trimmed) || !holds(text, final))
        return jrt_fail(rt,
                        "continue_final_message is set but the chat template does not show the final message as it is");
    if (trimmed && end < text->len && text->data[end] == ' ') whole = true;
    return jstr_sub(rt, text, 0, whole ? start : jtext_rstrip(text->data, start));
}

/* ---- output ---- */
/* One block: the segments, then their bytes. Neighbours of one kind are one segment. */
static int take_prompt(const struct jpiece *pieces, size_t n_pieces, struct chat_prompt *prompt, struct err *err)
{
    size_t n = 0, len = 0, at = 0;
    struct text_segment *segments;
    char *text;

    for (size_t i = 0; i < n_pieces; i++) {
        if (i == 0 || (pieces[i].origin == JO_TEMPLATE) != (pieces[i - 1].origin == JO_TEMPLATE)) n++;
        len += pieces[i].len;
    }
    segments = malloc(n * sizeof(*segments) + len + 1);
    if (!segments) return err_set(err, ERR_NO_MEMORY, "out of memory");
    text = (char *)(segments + n);
    *prompt = (struct chat_prompt){ .segments = segments, .memory = segments };
    for (size_t i = 0; i < n_pieces; i++) {
        bool special = pieces[i].origin == JO_TEMPLATE;
        if (i == 0 || special != segments[prompt->n_segments - 1].parse_special)
            segments[prompt->n_segments++] = (struct text_segment){ .text = text + at, .parse_special = special };
        memcpy(text + at, pieces[i].text, pieces[i].len);
        segments[prompt->n_segments - 1].len += pieces[i].len;
        at += pieces[i].len;
    }
    return 0;
}

static void set_messages(struct jrt *rt, const struct chat_template_vars *vars, const struct jstr **final)
{
    struct jval messages = vars->messages ? jval_from_json(rt, vars->messages, JO_CLIENT) : jlist_new(rt, 0);

    for (size_t i = 0; !rt->rc && messages.kind == JK_LIST && i < messages.list->n; i++)
        *jlist_at(messages, i) = alias_reasoning(rt, messages.list->items[i]);
    if (vars->continue_final_message && !rt->rc) *final = mark_final(rt, messages);
    set_var(rt, "messages", messages);
}

static void run(struct jrt *rt, const struct chat_template_vars *vars, const struct jstr **final, struct jout *out)
{
    struct jscope root = { .parent = NULL };

    set_token(rt, "bos_token", vars->bos_token);
    set_token(rt, "eos_token", vars->eos_token);
    set_kwargs(rt, vars->kwargs);
    set_messages(rt, vars, final);
    set_var(rt, "tools", vars->tools ? jval_from_json(rt, vars->tools, JO_CLIENT) : JNONE);
    set_var(rt, "documents", JNONE);
    set_var(rt, "add_generation_prompt", jbool(vars->add_generation_prompt));
    if (!rt->rc) jexec(rt, &root, rt->tmpl->body, out);
    if (rt->rc || !*final) return;
    struct jval cut = cut_at_mark(rt, jto_str(rt, jout_take(rt, out)), *final);
    *out = (struct jout){ .n = 0 };
    if (!rt->rc) jout_add_str(rt, out, cut.s);
}

int chat_template_render(const struct chat_template *tmpl, const struct chat_template_vars *vars,
                         struct chat_prompt *prompt, struct err *err)
{
    struct arena arena;
    struct jrt rt = { .arena = &arena, .err = err, .tmpl = &tmpl->jinja, .now_s = vars->now_s, .line = 1,
                      .fuel = (int64_t)JRT_MAX_STEPS * JRT_UNITS_PER_STEP };
    struct jout out = { .n = 0 };
    const struct jstr *final = NULL;

    *prompt = (struct chat_prompt){ .segments = NULL };
    if (vars->continue_final_message && !tmpl->names_content)
        return err_set(err, ERR_TEMPLATE, "continue_final_message is set but the chat template does not read content");
    arena_init(&arena, JRT_MAX_MEMORY);
    rt.root = jrt_alloc(&rt, (size_t)tmpl->jinja.n_names + 1, sizeof(*rt.root));
    if (!rt.rc) run(&rt, vars, &final, &out);
    if (!rt.rc) rt.rc = take_prompt(out.pieces, out.n, prompt, err);
    arena_release(&arena);
    return rt.rc;
}

void chat_prompt_release(struct chat_prompt *prompt)
{
    free(prompt->memory);
    *prompt = (struct chat_prompt){ .segments = NULL };
}
