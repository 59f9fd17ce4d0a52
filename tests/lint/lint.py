#!/usr/bin/env python3
"""lint.py - the rules of the tree that a compiler does not check.

Errors (exit 1): a module includes another module's private header; a foreign header outside its home; a contract header that
includes more than contracts and the standard library; a banned call; a tab.
Information: files over 800 lines (.c, .cu) or 200 (.h), lines over 120 columns.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOMES = {  # foreign header -> modules (folders below src/) that may include it
    r"microhttpd\.h": ["http"],
    r"uv\.h": ["router", "supervisor", "ipc"],
    r"cjson/cJSON\.h": ["json", "api", "loader", "text", "grammar"],
    r"yaml\.h": ["config"],
    r"cuda_runtime\.h|cublasLt\.h": ["backend", "comm"],
    r"nccl\.h": ["comm"],
    r"pcre2\.h|utf8proc\.h": ["text"],
    r"openssl/.*": ["base"],
    r"dnnl\.h": ["backend"],
}
BANNED = re.compile(r"\b(strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|alloca|strtok)\s*\(")
STD = re.compile(r"<(assert|ctype|errno|float|inttypes|limits|math|setjmp|signal|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|string|time)\.h>")

errors, notes = [], []


def say(path, line, text):
    errors.append(f"{path.relative_to(ROOT)}:{line}: {text}")


def module_of(path):
    parts = path.relative_to(ROOT / "src").parts
    return parts[0] if len(parts) > 1 else ""


def check_include(path, number, text):
    quoted = re.match(r'#include "([^"]+)"', text)
    angled = re.match(r"#include <([^>]+)>", text)
    in_src = (ROOT / "src") in path.parents
    if quoted and in_src:
        name = quoted.group(1)
        own = (path.parent / name).exists() or name.startswith("base/")
        own |= module_of(path) == "backend" and name.endswith("_plan.h") and (ROOT / "kernels" / name).exists()
        if not own:
            say(path, number, f'"{name}" is not of this module: go through include/sluice/')
    if angled and in_src:
        for pattern, homes in HOMES.items():
            if re.fullmatch(pattern, angled.group(1)) and module_of(path) not in homes:
                say(path, number, f"<{angled.group(1)}> belongs to {', '.join(homes)}")
    if (ROOT / "include") in path.parents:
        full = text.split()[1]
        if not (full.startswith("<sluice/") or STD.fullmatch(full)):
            say(path, number, f"contract headers include only contracts and the standard library, not {full}")


for path in sorted(p for d in ("src", "include", "kernels", "tests", "bench") for p in (ROOT / d).rglob("*") if p.suffix in (".c", ".h", ".cu", ".cuh")):
    lines = path.read_text(encoding="utf-8").split("\n")
    long_lines = 0
    limit = 200 if path.suffix in (".h", ".cuh") else 800
    if len(lines) > limit:
        notes.append(f"{path.relative_to(ROOT)}: {len(lines)} lines (guide: {limit})")
    for number, line in enumerate(lines, 1):
        if line.startswith("#include"):
            check_include(path, number, line)
        if "\t" in line:
            say(path, number, "tab")
        long_lines += len(line) > 120
        if BANNED.search(line) and not line.lstrip().startswith(("*", "/*", "//")):
            say(path, number, f"banned call: {BANNED.search(line).group(1)}")
    if long_lines > 5:
        notes.append(f"{path.relative_to(ROOT)}: {long_lines} lines over 120 columns")

for note in notes:
    print("note:", note)
for error in errors:
    print("error:", error)
print(f"lint: {len(errors)} errors, {len(notes)} notes")
sys.exit(1 if errors else 0)
