"""Tables for the terminal: the catalogue of methods and a checkpoint's summary."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plait.ops.method import Method, Param
from plait.planner.header_text import printable
from plait.planner.schedule import size
from plait.planner.types import Checkpoint

_BASE = {"required": "needed", "optional": "optional", "unused": "none"}


def method_json(method: Method) -> dict[str, Any]:
    """A method as data."""
    least, most = method.experts
    return {
        "name": method.name,
        "family": method.family,
        "summary": method.summary,
        "base": method.base,
        "experts": {"least": least, "most": most},
        "kinds": list(method.kinds),
        "source": method.source,
        "step": method.is_step,
        "statistics": [{"name": s.name, "kind": s.kind, "doc": s.doc} for s in method.statistics],
        "parameters": [
            {
                "name": p.name,
                "python": p.keyword,
                "type": p.type.__name__,
                "default": list(p.default) if isinstance(p.default, tuple) else p.default,
                "per_expert": p.per_expert,
                "required": p.required,
                "low": p.low,
                "high": p.high,
                "choices": list(p.choices),
                "doc": p.doc,
            }
            for p in method.params
        ],
    }


def show_methods(methods: list[Method]) -> None:
    """The catalogue."""
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "base", "experts", "runs as", "what it does"):
        table.add_column(heading, no_wrap=heading != "what it does")
    for m in sorted(methods, key=lambda m: (m.is_step, m.family, m.name)):
        least, most = m.experts
        count = f"{least}" if least == most else f"{least}+" if most is None else f"{least}-{most}"
        table.add_row(m.name + (" (step)" if m.is_step else ""), _BASE[m.base], count, ", ".join(m.kinds), m.summary)
    console = Console(highlight=False)
    console.print(table)
    console.print("\n`plait methods NAME` says more. map, fold and rows work is streamed; whole needs one tensor at a time in memory.", style="dim")


def show_method(method: Method) -> None:
    """One method in full."""
    console = Console(highlight=False)
    console.print(f"[bold]{method.name}[/]  {method.family}" + ("  (a step after any merge)" if method.is_step else ""))
    console.print(method.doc, markup=False)
    console.print(f"\nsource: {method.source}\nruns as: {', '.join(method.kinds)}; base: {_BASE[method.base]}", markup=False)
    for s in method.statistics:
        what = "a checkpoint beside each model" if s.kind == "tensors" else "a JSON file beside each model"
        console.print(f"{s.name}: PATH, {what}. {s.doc}", markup=False)
    if not method.params:
        return
    table = Table(box=None, pad_edge=False, title_justify="left")
    for heading in ("parameter", "default", "values", "where", "what it does"):
        table.add_column(heading, no_wrap=heading == "parameter")
    for p in method.params:
        table.add_row(p.name, _default(p), _values(p), "each model" if p.per_expert else "merge", p.doc)
    console.print()
    console.print(table)
    if method.is_step:
        console.print(f"\nsteps:\n  - method: {method.name}", markup=False)


def _default(p: Param) -> str:
    if p.required:
        return "required"
    return "-" if p.default is None or p.default == () else str(p.default).lower() if isinstance(p.default, bool) else str(p.default)


def _values(p: Param) -> str:
    if p.choices:
        return " | ".join(p.choices)
    if p.low is not None or p.high is not None:
        return f"{p.low:g} to {p.high:g}" if p.low is not None and p.high is not None else f"{p.low:g} or more" if p.low is not None else f"at most {p.high:g}"
    return {"float": "number", "int": "whole number", "bool": "true | false", "str": "word", "list": "names"}[p.type.__name__]


def show_checkpoint(name: str, summary: dict[str, Any], listed: Checkpoint | None) -> None:
    """A checkpoint's summary, and all its tensors when `listed` is given."""
    console = Console(highlight=False)
    console.print(f"[bold]{escape(printable(name))}[/]", soft_wrap=True)
    for key, value in summary.items():
        if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
            _table(console, key, value)
        else:
            console.print(f"  {key}: {_plain(key, value)}", markup=False, soft_wrap=True)
    if listed is None:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("tensor", "dtype", "shape", "bytes"):
        table.add_column(heading)
    for tensor, ref in listed.tensors.items():
        table.add_row(escape(tensor), ref.dtype, str(list(ref.shape)), size(ref.nbytes))
    console.print(table)


def _table(console: Console, key: str, rows: dict[str, dict[str, Any]]) -> None:
    headings = list(next(iter(rows.values())))
    table = Table(box=None, pad_edge=False)
    table.add_column(f"  {key}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row, values in rows.items():
        table.add_row(f"  {row}", *(_plain(h, values.get(h)) for h in headings))
    console.print(table)


def _plain(key: str, value: Any) -> str:
    if key.endswith("bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not said"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return printable(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
