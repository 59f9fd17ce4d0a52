#!/usr/bin/env python3
"""readme_options.py - keeps README's table of options equal to docs/options.md, which comes from the option table itself.

    scripts/readme_options.py          rewrites README.md between its options markers
    scripts/readme_options.py --check  exit 1 when README.md is stale (ctest readme_options)
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- options:begin -->", "<!-- options:end -->"


def table():
    lines = ["<details><summary>All options</summary>", "", "| option | default | meaning |", "|---|---|---|"]
    for line in (ROOT / "docs" / "options.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            lines.append(f"| {cells[0]} | {cells[2]} | {cells[5]} |")
    return "\n".join(lines + ["", "</details>"])


readme = (ROOT / "README.md").read_text()
head, rest = readme.split(BEGIN)
tail = rest.split(END)[1]
fresh = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
if "--check" in sys.argv:
    if fresh != readme:
        sys.exit("README.md: the table of options is stale; run scripts/readme_options.py")
else:
    (ROOT / "README.md").write_text(fresh)
