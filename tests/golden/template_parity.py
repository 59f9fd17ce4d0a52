#!/usr/bin/env python3
"""Compares sluice's chat template engine with python jinja2, byte for byte.

    template_parity.py BUILD/tests/template_tool [--model FILE.gguf] [--fuzz N] [--seed S]

Three parts: every template of templates/*.jinja over every conversation of template_conversations.py, the small programs
of template_snippets.py, and N random programs. Where python raises, the tool must report an error. Needs jinja2 >= 3.1.6.
Prints counts; exit 1 on any difference."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import warnings

os.environ["TZ"] = "UTC"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import template_conversations
import template_fuzz
import template_reference
import template_snippets

HERE = pathlib.Path(__file__).resolve().parent
NOW = 1721995200
warnings.filterwarnings("ignore", category=SyntaxWarning)      # Python's about what jinja2 compiled for it


class Tool:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def render(self, case):
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("template_tool died on: " + json.dumps(case))
        return json.loads(line)


def reference(case):
    try:
        text = template_reference.render(case)
        text.encode("utf-8")
        return {"text": text}
    except Exception as e:  # noqa: BLE001 any failure of the reference is "raises"
        return {"error": f"{type(e).__name__}: {e}"}


class Count:
    def __init__(self, name):
        self.name, self.same, self.raised, self.bad = name, 0, 0, 0

    def compare(self, label, case, tool):
        want, got = reference(case), tool.render(case)
        if not template_fuzz.is_stable(want.get("text", "")):
            return
        if "error" in want and "error" in got:
            self.raised += 1
        elif want.get("text") is not None and want.get("text") == got.get("text"):
            self.same += 1
        else:
            self.bad += 1
            if self.bad <= 40:
                print(f"DIFFERENT {label}\n  jinja2: {want!r}\n  sluice: {got!r}")

    def report(self):
        print(f"{self.name}: {self.same} equal, {self.raised} raise in both, {self.bad} different")
        return self.bad


def templates(model):
    found = {p.stem: p.read_text(encoding="utf-8") for p in sorted((HERE / "templates").glob("*.jinja"))}
    if model:
        import gguf  # only for this

        field = gguf.GGUFReader(model).fields["tokenizer.chat_template"]
        found["(from " + pathlib.Path(model).name + ")"] = field.contents()
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("--model")
    parser.add_argument("--fuzz", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tool = Tool(args.tool)
    bad = 0

    found = templates(args.model)
    whole = Count("templates")
    for name, source in found.items():
        one = Count("  " + name)
        for label, conversation in template_conversations.all_cases():
            one.compare(f"{name} / {label}", {"template": source, "bos": "<s>", "eos": "</s>", "now": NOW, **conversation}, tool)
        one.report()
        if one.same < 12:
            print(f"  {name}: only {one.same} conversations render, the fixture proves too little")
            bad += 1
        whole.same, whole.raised, whole.bad = whole.same + one.same, whole.raised + one.raised, whole.bad + one.bad
    print(f"{len(found)} templates, {len(template_conversations.all_cases())} conversations each")
    bad += whole.report()

    small = Count("snippets")
    for source in template_snippets.SNIPPETS:
        small.compare(repr(source), {"template": source, "kwargs": template_snippets.V, "bos": "<s>", "now": NOW}, tool)
    bad += small.report()

    random_programs = Count(f"random programs (seed {args.seed})")
    for source in template_fuzz.programs(args.fuzz, args.seed):
        random_programs.compare(repr(source), {"template": source, "kwargs": template_snippets.V, "bos": "<s>", "now": NOW}, tool)
    bad += random_programs.report()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
