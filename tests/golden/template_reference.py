"""The reference side of template_parity.py: python jinja2 set up as transformers sets it up for chat templates."""
import datetime
import json

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class Generation(jinja2.ext.Extension):
    """{% generation %} only marks assistant text for training."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError("underscore attribute")


class Dict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment(now=0):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: datetime.datetime.fromtimestamp(now).strftime(fmt)
    env.globals["dict"] = Dict()
    env.globals["namespace"] = Namespace
    return env


REASONING = ("reasoning_content", "thinking", "reasoning")


def alias_reasoning(message):
    found = next((message[k] for k in REASONING if message.get(k) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def mark_final(messages):
    last = messages[-1]
    if last.get("content") is None:
        raise ValueError("nothing to continue")
    if isinstance(last["content"], list):
        for part in reversed(last["content"]):
            if "text" in part:
                final = part["text"]
                part["text"] += MARK
                return final
        raise ValueError("no text to continue")
    final = last["content"]
    last["content"] += MARK
    return final


def render(case):
    """The text, or an exception. case as template_tool.c reads it."""
    messages = [alias_reasoning(m) for m in json.loads(json.dumps(case.get("messages", [])))]
    going_on = case.get("continue_final_message")
    final = mark_final(messages) if going_on else None
    variables = {k: case[j] for k, j in (("bos_token", "bos"), ("eos_token", "eos")) if j in case}
    variables.update(case.get("kwargs") or {})
    text = environment(case.get("now", 0)).from_string(case["template"]).render(
        messages=messages, tools=case.get("tools"), documents=None,
        add_generation_prompt=bool(case.get("add_generation_prompt")), **variables)
    if not going_on:
        return text
    if final.strip() not in text or MARK.strip() not in text:
        raise ValueError("final message not shown")
    at = text.rindex(MARK.strip())
    return text[:at] if text[at:at + len(MARK)] == MARK else text[:at].rstrip()
