/* chat_template_test.c - origin of every byte, limits, errors and continue_final_message. Equality with jinja2
 * is proved by tests/golden/template_parity.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/json.h>
#include <sluice/text.h>

#include "base/buf.h"

struct run { struct err err; int rc; struct buf text, shape; };

static struct cJSON *parse(const char *json)
{
    struct cJSON *root = NULL;

    if (json) assert_int_equal(json_parse(json, strlen(json), &json_limits_request, &root, NULL), 0);
    return root;
}

/* text: the prompt; shape: the prompt with client text in << >>. */
static struct run render(const char *source, const char *messages, const char *kwargs, struct chat_template_vars vars)
{
    struct run run = { .rc = 0 };
    struct chat_template *tmpl = NULL;
    struct chat_prompt prompt;
    struct cJSON *list = parse(messages), *extra = parse(kwargs);

    vars.messages = list;
    vars.kwargs = extra;
    run.rc = chat_template_compile(&tmpl, source, strlen(source), &run.err);
    if (run.rc == 0) run.rc = chat_template_render(tmpl, &vars, &prompt, &run.err);
    chat_template_free(tmpl);
    json_free(list);                             /* a prompt owns all it shows */
    json_free(extra);
    if (run.rc != 0) return run;
    for (size_t i = 0; i < prompt.n_segments; i++) {
        const struct text_segment *seg = &prompt.segments[i];
        assert_true(seg->len > 0);
        if (i) assert_int_not_equal(seg->parse_special, prompt.segments[i - 1].parse_special);
        buf_append(&run.text, seg->text, seg->len);
        buf_puts(&run.shape, seg->parse_special ? "" : "<<");
        buf_append(&run.shape, seg->text, seg->len);
        buf_puts(&run.shape, seg->parse_special ? "" : ">>");
    }
    chat_prompt_release(&prompt);
    assert_null(prompt.memory);
    return run;
}

static void done(struct run *run)
{
    buf_release(&run->text);
    buf_release(&run->shape);
}

static void expect(const char *source, const char *messages, const char *shape)
{
    struct run run =
        render(source, messages, NULL, (struct chat_template_vars){ .bos_token = "<s>", .eos_token = "</s>" });

    if (run.rc) fail_msg("%s: %s", source, run.err.message);
    if (strcmp(run.shape.data ? run.shape.data : "", shape) != 0)
        fail_msg("%s: %s, not %s", source, run.shape.data, shape);
    done(&run);
}

static void expect_error(const char *source, const char *messages, const char *part)
{
    struct run run = render(source, messages, NULL, (struct chat_template_vars){ .now_s = 0 });

    assert_int_equal(run.rc, ERR_TEMPLATE);
    assert_int_equal(run.err.code, ERR_TEMPLATE);
    if (!strstr(run.err.message, part)) fail_msg("%s: \"%s\" lacks \"%s\"", source, run.err.message, part);
    done(&run);
}

static const char one[] = "[{\"role\":\"user\",\"content\":\" A<|x|>b \",\"n\":7,\"l\":[\"p\",\"q\"]}]";

static void literals_and_tokens_are_special(void **state)
{
    (void)state;
    expect("{{ bos_token }}<|im_start|>{{ messages[0].role }}\n{{ eos_token }}", one, "<s><|im_start|><<user>>\n</s>");
    expect("{{ '<|' + 'a' ~ '|>' }}{{ ['x', 'y']|join('-') }}", one, "<|a|>x-y");
    expect("{{ messages|length }}{% for m in messages %}{{ loop.index }}{% endfor %}", one, "11");
}

static void every_string_operation_keeps_the_origin(void **state)
{
    static const char *const cases[][2] = {
        { "'[' + c + ']'", "[<< A<|x|>b >>]" },
        { "'[' ~ c|trim ~ ']'", "[<<A<|x|>b>>]" },
        { "c.strip() + '!'", "<<A<|x|>b>>!" },
        { "c|replace('<|x|>', '|T|')", "<< A>>|T|<<b >>" },
        { "'a-b'|replace('-', c)", "a<< A<|x|>b >>b" },
        { "('x' + c + 'y').split('<|x|>')|join('/')", "x<< A>>/<<b >>y" },
        { "('x' + c)[:3]", "x<< A>>" },
        { "('ab' + c)[1:4]", "b<< A>>" },
        { "('ab' + c|trim)[::-1]", "<<b>|x|<A>>ba" },
        { "('ab' + c)|upper", "AB<< A<|X|>B >>" },
        { "('AB' + c)|lower", "ab<< a<|x|>b >>" },
        { "c|tojson", "<<\" A<|x|>b \">>" },
        { "{'k': c}|tojson", "<<{\">>k<<\": \" A<|x|>b \"}>>" },
        { "messages[0].l|join('+')", "<<p>>+<<q>>" },
        { "'%s=%s' % ('k', c|trim)", "k=<<A<|x|>b>>" },
        { "'{}={}'.format('k', messages[0].n)", "k=<<7>>" },
        { "messages[0].n + 1", "<<8>>" },
        { "('1' ~ messages[0].n)|int + 0", "<<17>>" },
        { "'2'|int", "2" },
        { "c if true else 'x'", "<< A<|x|>b >>" },
        { "c|indent(2, true)", "  << A<|x|>b >>" },
        { "c|default('x')", "<< A<|x|>b >>" },
        { "zz|default(c)", "<< A<|x|>b >>" },
        { "c|first ~ 'A'", "<< >>A" },
        { "c|list|last", "<< >>" },
        { "(c|e)", "<< A&lt;|x|&gt;b >>" },
        { "c * 2", "<< A<|x|>b  A<|x|>b >>" },
        { "'<|' ~ messages[0].n ~ '|>'", "<|<<7>>|>" },
        { "messages[0]|items|map('first')|join(',')", "<<role>>,<<content>>,<<n>>,<<l>>" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf source = BUF_INIT;
        buf_printf(&source, "{%% set c = messages[0].content %%}{{ %s }}", cases[i][0]);
        expect(source.data, one, cases[i][1]);
        buf_release(&source);
    }
}

static void macros_and_blocks_keep_the_origin(void **state)
{
    (void)state;
    expect("{% macro f(a) %}<a>{{ a }}</a>{% endmacro %}{{ f(messages[0].role) }}", one, "<a><<user>></a>");
    expect("{% set x %}<a>{{ messages[0].role }}</a>{% endset %}{{ x }}{{ x|length }}", one, "<a><<user>></a>11");
    expect("{% filter upper %}a{{ messages[0].role }}{% endfilter %}", one, "A<<USER>>");
    expect("{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.role + ';' %}{% endfor %}{{ "
           "ns.t }}",
           one, "<<user>>;");
}

static void kwargs_and_time_are_client_text(void **state)
{
    struct run run = render("{{ name }}|{{ strftime_now('%Y') }}", "[]", "{\"name\":\"<|x|>\"}",
                            (struct chat_template_vars){ .now_s = 86400 * 30 });

    (void)state;
    assert_int_equal(run.rc, 0);
    assert_string_equal(run.shape.data, "<<<|x|>>>|<<1970>>");
    done(&run);
}

static void content_may_hold_nul(void **state)
{
    struct run run = render("[{{ messages[0].content }}]{{ messages[0].content|length }}",
                            "[{\"content\":\"a\\u0000b\"}]", NULL, (struct chat_template_vars){ .now_s = 0 });

    (void)state;
    assert_int_equal(run.rc, 0);
    assert_int_equal(run.text.len, 6);
    assert_memory_equal(run.text.data, "[a\0b]3", 6);
    done(&run);
}

static void syntax_errors_name_the_line(void **state)
{
    (void)state;
    expect_error("a\nb\n{% if %}", "[]", "line 3");
    expect_error("a\n{{ 1 + }}", "[]", "line 2");
    expect_error("{% for x in y %}", "[]", "unexpected end of template");
    expect_error("\n\n\n{% nosuch %}", "[]", "line 4: unknown tag 'nosuch'");
    expect_error("{{ 'abc }}", "[]", "string is not closed");
    expect_error("\xff", "[]", "UTF-8");
    expect_error("{{ 99999999999999999999 }}", "[]", "64 bits");
}

static void run_errors_say_what_failed(void **state)
{
    (void)state;
    expect_error("x\n{{ messages[0].content + 1 }}", one, "line 2: can only concatenate str");
    expect_error("{{ messages[0].zz.y }}", one, "'dict object' has no attribute 'zz'");
    expect_error("{{ nothing.y }}", one, "'nothing' is undefined");
    expect_error("{{ 9223372036854775807 + 1 }}", one, "64 bits");
    expect_error("{{ 1 is nosuch }}", one, "no test named 'nosuch'");
    expect_error("{{ messages[0].n }}", "[{\"n\":123456789012345678901234567890}]", "64 bits");
}

static void raise_exception_is_the_whole_message(void **state)
{
    struct run run = render("{{ raise_exception('Roles must alternate: ' + messages[0].role) }}", one, NULL,
                            (struct chat_template_vars){ .now_s = 0 });

    (void)state;
    assert_int_equal(run.rc, ERR_TEMPLATE);
    assert_string_equal(run.err.message, "Roles must alternate: user");
    done(&run);
}

static void steps_are_limited(void **state)
{
    (void)state;
    expect_error("{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}", "[]", "steps");
    expect_error("{% set ns = namespace(l=[1]) %}{% for a in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
                 "[]", "the run");
    expect_error("{% for a in range(99999) %}{{ range(99999)|sum }}{% endfor %}", "[]", "steps");
}

static void output_is_limited(void **state)
{
    (void)state;
    expect_error("{% set x = 'a' * 1000000 %}{% for i in range(100) %}{{ x }}{% endfor %}", "[]", "67108864");
    expect_error("{{ 'a' * 99999999999 }}", "[]", "too long");
}

static void memory_is_limited(void **state)
{
    (void)state;
    expect_error("{% set ns = namespace(s='0123456789abcdef' * 1000) %}{% for i in range(60) %}{% set ns.s = ns.s ~ "
                 "ns.s %}{% endfor %}",
                 "[]", "the run");
}

static void depth_is_limited(void **state)
{
    struct buf source = BUF_INIT;

    (void)state;
    expect_error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "[]", "macros nested deeper than 64");
    expect("{% macro f(n) %}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}ok", "[]", "ok");
    for (int i = 0; i < 5000; i++) buf_putc(&source, '(');
    buf_puts(&source, "1");
    struct buf wrapped = BUF_INIT;
    buf_printf(&wrapped, "{{ %s }}", source.data);
    expect_error(wrapped.data, "[]", "too deep");
    buf_reset(&wrapped);
    for (int i = 0; i < 3000; i++) buf_puts(&wrapped, "{% if true %}");
    expect_error(wrapped.data, "[]", "too deep");
    buf_reset(&wrapped);
    buf_puts(&wrapped, "{{ 1");
    for (int i = 0; i < 3000; i++) buf_puts(&wrapped, "|abs");
    buf_puts(&wrapped, " }}");
    expect_error(wrapped.data, "[]", "too deep");
    buf_reset(&wrapped);
    buf_puts(&wrapped, "{{ ");
    for (int i = 0; i < 3000; i++) buf_puts(&wrapped, "not ");
    buf_puts(&wrapped, "1 }}");
    expect_error(wrapped.data, "[]", "too deep");
    buf_release(&wrapped);
    buf_release(&source);
}

/* Values nest without the parser seeing it; sharing makes them grow by doubling. */
static void nested_values_are_limited(void **state)
{
    static const char *const uses[] = {"{{ v }}",     "{{ v|tojson }}", "{{ v == (v,) }}",
                                       "{{ v < v }}", "{{ {v: 1} }}",   "{{ [v]|unique|list }}"};

    (void)state;
    for (size_t i = 0; i < sizeof(uses) / sizeof(uses[0]); i++) {
        struct buf source = BUF_INIT;
        buf_printf(
            &source,
            "{%% set ns = namespace(v=()) %%}{%% for i in range(90000) %%}{%% set ns.v = (ns.v,) %%}{%% endfor %%}"
            "{%% set v = ns.v %%}%s",
            uses[i]);
        expect_error(source.data, "[]", "too deep");
        buf_reset(&source);
        buf_printf(&source,
                   "{%% set ns = namespace(v=(1,), w=(1,)) %%}{%% for i in range(60) %%}{%% set ns.v = (ns.v, ns.v) %%}"
                   "{%% set ns.w = (ns.w, ns.w) %%}{%% endfor %%}{%% set v = ns.v %%}%s{{ v == ns.w }}",
                   uses[i]);
        expect_error(source.data, "[]", "the run");
        buf_release(&source);
    }
}

static void a_large_conversation_fits_the_limits(void **state)
{
    struct buf messages = BUF_INIT;

    (void)state;
    buf_putc(&messages, '[');
    for (int i = 0; i < 8192; i++)
        buf_printf(&messages, "%s{\"role\":\"%s\",\"content\":\"hello %d\"}", i ? "," : "",
                   i % 2 ? "assistant" : "user", i);
    buf_putc(&messages, ']');
    struct run run =
        render("{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') "
               "}}{% endif %}"
               "{% set c = m.content|trim %}{% if m.role == 'user' %}[INST]{{ c }}{% else %}{{ c }}</s>{% endif %}"
               "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %};{% endif %}{% endfor %}",
               messages.data, NULL, (struct chat_template_vars){ .now_s = 0 });
    if (run.rc) fail_msg("%s", run.err.message);
    assert_int_equal(strncmp(run.text.data, "[INST]hello 0;hello 1</s>;", 26), 0);
    done(&run);
    buf_release(&messages);
}

static void continues(const char *source, const char *messages, const char *shape)
{
    struct run run = render(source, messages, NULL, (struct chat_template_vars){ .continue_final_message = true });

    if (run.rc) fail_msg("%s: %s", source, run.err.message);
    assert_string_equal(run.shape.data, shape);
    done(&run);
}

static void continue_cuts_after_the_final_content(void **state)
{
    static const char plain[] = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}";
    static const char trimmed[] = "{% for m in messages %}[{{ m.role }}]{{ m.content|trim }}[end]{% endfor %}";
    static const char two[] = "[{\"role\":\"u\",\"content\":\"q\"},{\"role\":\"a\",\"content\":\"so far \"}]";

    (void)state;
    continues(plain, two, "[<<u>>]<<q>>[end][<<a>>]<<so far >>");
    continues(trimmed, two, "[<<u>>]<<q>>[end][<<a>>]<<so far>>");
    continues(plain, "[{\"role\":\"a\",\"content\":\"x CONTINUE_FINAL_MESSAGE_TAG y\"}]",
              "[<<a>>]<<x CONTINUE_FINAL_MESSAGE_TAG y>>");
}

static void continue_needs_a_shown_text(void **state)
{
    struct chat_template_vars vars = { .continue_final_message = true };
    struct run run = render("{% for m in messages %}{{ m.content[:1] }}{% endfor %}", one, NULL, vars);

    (void)state;
    assert_int_equal(run.rc, ERR_TEMPLATE);
    done(&run);
    run = render("{{ messages[0].role }}", one, NULL, vars);
    assert_int_equal(run.rc, ERR_TEMPLATE);
    run = render("{{ messages[0].content }}", "[]", NULL, vars);
    assert_int_equal(run.rc, ERR_TEMPLATE);
    run = render("{{ messages[0].content }}", "[{\"role\":\"a\",\"content\":null}]", NULL, vars);
    assert_int_equal(run.rc, ERR_TEMPLATE);
}

static void reasoning_has_three_names(void **state)
{
    (void)state;
    expect("{{ messages[0].reasoning_content }},{{ messages[0].thinking }}", "[{\"reasoning\":\"r\"}]", "<<r>>,<<r>>");
    expect("{{ messages[0].reasoning_content }},{{ messages[0].thinking }}",
           "[{\"thinking\":\"t\",\"reasoning\":\"r\"}]", "<<t>>,<<t>>");
    expect("{{ messages[0].reasoning_content is defined }}", "[{\"reasoning\":null}]", "False");
}

static void reads_knows_the_variables(void **state)
{
    static const char source[] =
        "{% set unread = 1 %}{% if tools %}{{ x.attribute }}{% endif %}{{ f(kw=1) }}{{ 'literal' }}";
    struct chat_template *tmpl = NULL;

    (void)state;
    assert_int_equal(chat_template_compile(&tmpl, source, strlen(source), NULL), 0);
    assert_true(chat_template_reads(tmpl, "tools"));
    assert_true(chat_template_reads(tmpl, "x"));
    assert_false(chat_template_reads(tmpl, "attribute"));
    assert_false(chat_template_reads(tmpl, "unread"));
    assert_false(chat_template_reads(tmpl, "kw"));
    assert_false(chat_template_reads(tmpl, "literal"));
    assert_false(chat_template_reads(tmpl, "enable_thinking"));
    chat_template_free(tmpl);
}

static void an_empty_prompt_has_no_segments(void **state)
{
    struct chat_template *tmpl = NULL;
    struct chat_prompt prompt;
    struct chat_template_vars vars = { .now_s = 0 };

    (void)state;
    assert_int_equal(chat_template_compile(&tmpl, "{# nothing #}", 13, NULL), 0);
    assert_int_equal(chat_template_render(tmpl, &vars, &prompt, NULL), 0);
    assert_int_equal(prompt.n_segments, 0);
    chat_prompt_release(&prompt);
    chat_template_free(tmpl);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(literals_and_tokens_are_special),
        cmocka_unit_test(every_string_operation_keeps_the_origin),
        cmocka_unit_test(macros_and_blocks_keep_the_origin),
        cmocka_unit_test(kwargs_and_time_are_client_text),
        cmocka_unit_test(content_may_hold_nul),
        cmocka_unit_test(syntax_errors_name_the_line),
        cmocka_unit_test(run_errors_say_what_failed),
        cmocka_unit_test(raise_exception_is_the_whole_message),
        cmocka_unit_test(steps_are_limited),
        cmocka_unit_test(output_is_limited),
        cmocka_unit_test(memory_is_limited),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(nested_values_are_limited),
        cmocka_unit_test(a_large_conversation_fits_the_limits),
        cmocka_unit_test(continue_cuts_after_the_final_content),
        cmocka_unit_test(continue_needs_a_shown_text),
        cmocka_unit_test(reasoning_has_three_names),
        cmocka_unit_test(reads_knows_the_variables),
        cmocka_unit_test(an_empty_prompt_has_no_segments),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
