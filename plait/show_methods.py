"""The catalogue of methods on the terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plait.method_text import BASE, cost, data, default, example, experts, values
from plait.ops.method import Method
from plait.planner.explain import duration
from plait.planner.plan import Plan
from plait.planner.sizes import enough, size


def by_family(methods: list[Method]) -> list[tuple[str, list[Method]]]:
    """Methods by family, in alphabetical order, steps last."""
    ordered = sorted(methods, key=lambda m: (m.is_step, m.family, m.name))
    return [
        (family + (", after any merge" if step else ""), list(members)) for (step, family), members in groupby(ordered, key=lambda m: (m.is_step, m.family))
    ]


def show_methods(methods: list[Method]) -> None:
    """The catalogue, a table by family."""
    console = Console(highlight=False)
    # every table has the same columns, so that they stand below one another
    widths = {"method": max(len(m.name) for m in methods), "base": 8, "data": max(4, *(len(data(m)) for m in methods)), "cost": 9, "runs as": 10}
    for family, members in by_family(methods):
        table = Table(box=None, pad_edge=False, title=f"[bold]{family}[/]", title_justify="left", title_style="")
        for heading, width in widths.items():
            table.add_column(heading, width=width)
        table.add_column("what it does, its source")
        for m in members:
            table.add_row(m.name, BASE[m.base], data(m), cost(m)[0], ", ".join(m.kinds), f"{escape(m.summary)}\n[dim]{escape(m.source)}[/]")
        console.print(table)
        console.print()
    console.print(
        "`plait methods NAME` says more, and with `--on MODEL` what it costs there. map, fold and rows work is streamed; whole needs one matrix at a "
        "time in memory.",
        style="dim",
    )


def show_method(method: Method) -> None:
    """One method in full."""
    console = Console(highlight=False)
    parts = method.parts
    console.print(f"[bold]{method.name}[/]  {method.family}" + ("  (a step after any merge)" if method.is_step else ""))
    console.print(parts.summary, markup=False)
    for text in (parts.idea, parts.formula):
        if text:
            console.print(f"\n{text}", markup=False)
    short, words = cost(method)
    console.print(f"\nsource: {method.source}", markup=False, soft_wrap=True)
    console.print(f"takes: {experts(method)} experts; base {BASE[method.base]}; data {data(method)}", markup=False)
    console.print(f"runs as: {', '.join(method.kinds)} ({short}). {words}", markup=False)
    for heading, entries in (("differs from other codes", parts.differs), ("look out", parts.caveats)):
        for entry in entries:
            console.print(f"{heading}: {entry}", markup=False)
    if method.params:
        console.print()
        console.print(_parameters(method))
    console.print(f"\na recipe:\n{example(method)}", markup=False, end="")


def _parameters(method: Method) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    for heading in ("parameter", "default", "values", "where", "what it does"):
        table.add_column(heading, no_wrap=heading == "parameter", overflow="fold")
    for p in method.params:
        table.add_row(p.name, default(p), values(p), "each model" if p.per_expert else "merge", escape(p.doc))
    return table


def show_cost(plan: Plan, model: str, count: int) -> None:
    """What a method costs on a model's shapes."""
    console, p = Console(highlight=False), plan.prediction
    console.print(f"\non {model}, with {count} experts of its shapes (headers alone were read):", markup=False, soft_wrap=True)
    console.print(f"  reads {size(p.bytes_read)} in {p.passes} pass{'es' if p.passes != 1 else ''}, writes {size(p.bytes_written)}", markup=False)
    console.print(f"  about {duration(p.seconds)}" + ("" if plan.timing.measured else " by default rates; `plait bench machine` measures yours"), markup=False)
    console.print(f"  peak memory {size(p.peak_bytes)} of {size(plan.budget_bytes)}; {enough(p.minimum_bytes)} would do", markup=False)
    for note in plan.notes:
        console.print(f"  {note}", markup=False)
