#!/usr/bin/env python
"""Writes docs/methods/: a page for every registered method and step, and a table of them all.

    python scripts/method_pages.py            write what changed, remove pages of methods that are gone
    python scripts/method_pages.py --check    write nothing; exit status 1 where a page is not up to date

Everything on a page comes from the code: the decorator's facts, the docstring (ops/method_doc.py says how one is read), the source itself.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plait.method_text import BASE, cost, data, default, example, experts, values
from plait.ops.method import Method, methods, steps
from plait.show_methods import by_family

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods"
NOTE = "<!-- Written by scripts/method_pages.py from the method's docstring and source; change those. -->\n"


def pages() -> dict[str, str]:
    """Text of every page by file name, of plait's own methods alone."""
    known = [m for m in (*methods().values(), *steps().values()) if m.build.__module__.startswith("plait.")]
    return {"README.md": overview(known), **{f"{m.name}.md": page(m) for m in known}}


def overview(known: list[Method]) -> str:
    """The table of all methods."""
    lines = [NOTE, "# Merge methods", ""]
    lines += [
        "One page a method: idea, formula, parameters, a recipe that runs, its code, and what differs from other codes. `plait methods` shows the same.",
        "",
    ]
    lines += ["Cost: `1 pass` and `2+ passes` stream the inputs that often; `matrices` also decomposes one matrix at a time in memory."]
    lines += ["Kinds of op: [decision 0002](../decisions/0002-small-values-between-passes.md) and `ops/op.py`.", ""]
    for family, members in by_family(known):
        lines += [
            f"## {family[:1].upper()}{family[1:]}",
            "",
            "| method | what it does | base | experts | data | cost | runs as | source |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for m in members:
            facts = (f"[`{m.name}`]({m.name}.md)", m.summary, BASE[m.base], experts(m), data(m), cost(m)[0], ", ".join(m.kinds), m.source)
            lines.append("| " + " | ".join(map(_cell, facts)) + " |")
        lines.append("")
    return "\n".join(lines)


def page(m: Method) -> str:
    """The page of one method."""
    parts = m.parts
    lines = [NOTE, f"# {m.name}", "", parts.summary, ""]
    role = "a step after any merge" if m.is_step else "a merge method"
    lines += [f"*{m.family}*: {role}; base {BASE[m.base]}, experts {experts(m)}, data {data(m)}. Source: {m.source}.", ""]
    if parts.idea:
        lines += ["## Idea", "", parts.idea, ""]
    if parts.formula:
        lines += ["## Formula", "", *_formula(parts.formula), ""]
    lines += [f"## {heading}\n\n" + "\n".join(f"- {e}" for e in entries) + "\n" for heading, entries in _lists(m) if entries]
    if m.params:
        lines += ["## Parameters", "", "| name | default | values | where | what it does |", "|---|---|---|---|---|"]
        lines += [
            "| " + " | ".join(map(_cell, (f"`{p.name}`", default(p), values(p), "each model" if p.per_expert else "merge", p.doc))) + " |" for p in m.params
        ]
        lines.append("")
        renamed = [f"`{p.name}` is `{p.keyword}`" for p in m.params if p.keyword != p.name]
        lines += [f"In Python {' and '.join(renamed)}.", ""] if renamed else []
    lines += ["## A recipe", "", "```yaml", example(m).rstrip(), "```", ""]
    lines += ["## Cost", "", f"Runs as {', '.join(m.kinds)}. {cost(m)[1]} `plait methods {m.name} --on MODEL` says what that is for your shapes.", ""]
    lines += ["## Code", "", "```python", source(m.build), "```", ""]
    helpers = [source(f) for f in used(m.build)]
    if helpers:
        lines += ["<details><summary>What it calls</summary>", "", "```python", "\n\n\n".join(helpers), "```", "", "</details>", ""]
    return "\n".join(lines)


def _lists(m: Method) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "Differences from other codes", m.parts.differs
    yield "Look out", m.parts.caveats


def _formula(text: str) -> list[str]:
    """Prose as it is, with what Markdown would swallow escaped; lines that are formulas alone as a block."""
    if all(len(line) < 100 for line in text.splitlines()) and "\n" in text:
        return ["```text", text, "```"]
    spans = text.split("`")  # every second one is code, and stays
    return ["`".join(span if k % 2 else span.translate({ord(c): f"\\{c}" for c in "*_<"}) for k, span in enumerate(spans))]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def source(function: Callable[..., Any]) -> str:
    """A function's or class's text without decorators, and without the docstring of a method, which stands above."""
    text = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(text).body[0]
    assert isinstance(node, (ast.FunctionDef, ast.ClassDef))
    lines = text.splitlines()
    first, doc = node.body[0], isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node) is not None
    if doc and any("method" in ast.unparse(d) or "step" in ast.unparse(d) for d in node.decorator_list):
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines[node.lineno - 1 :]).rstrip()


def used(function: Callable[..., Any]) -> list[Any]:
    """Functions and classes of the method's package that it uses, directly or through others, in the order in which they are met."""
    package = function.__module__.rpartition(".")[0]
    found: dict[Any, None] = {}
    todo = [function]
    while todo:
        item = todo.pop(0)
        members = [item] if inspect.isfunction(item) else [m for m in vars(item).values() if inspect.isfunction(m)]
        for member in members:
            for name in _names(member.__code__):
                value = member.__globals__.get(name)
                if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith(package) and value not in (*found, function):
                    found[value] = None
                    todo.append(value)
    return list(found)


def _names(code: Any) -> Iterator[str]:
    """Global names of a function and of those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            yield from _names(constant)


def main(check: bool) -> int:
    """Write or compare; the exit status."""
    wanted = pages()
    there = {p.name: p.read_text() for p in FOLDER.glob("*.md")} if FOLDER.is_dir() else {}
    stale = sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))
    if check:
        print("\n".join([*(f"docs/methods/{name} is not up to date" for name in stale), *(["run python scripts/method_pages.py"] if stale else [])]))
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name])
        else:
            (FOLDER / name).unlink()
    print(f"{len(wanted)} pages, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
