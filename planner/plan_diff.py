"""Two plans side by side: which outputs will have other bits, and what that does to memory, bytes and time."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from plait.planner.cost import kernel_count
from plait.planner.grouping import folded
from plait.planner.header_text import printable
from plait.planner.plan import Component, Plan
from plait.planner.program import Program
from plait.planner.reuse import Facts, Names
from plait.planner.sizes import size
from plait.planner.treeline import Line, headed
from plait.planner.words import counted, duration

if TYPE_CHECKING:
    from rich.tree import Tree

#: What may be said of an output, in the order in which it is told.
SAME, INPUTS, PARAMETERS, EXPRESSION, NEW, GONE = "same", "inputs", "parameters", "expression", "new", "gone"
_SAID = {
    SAME: "the same bits",
    INPUTS: "the same computation of other inputs",
    PARAMETERS: "other parameters",
    EXPRESSION: "another computation",
    NEW: "only in the second",
    GONE: "only in the first",
}
_TOLD = 4  # parameters that a line names


@dataclass(frozen=True, slots=True)
class Change:
    """Outputs of one name, layer numbers folded, with which the same happens.

    Attributes:
        label: their name.
        what: one of `same`, `inputs`, `parameters`, `expression`, `new`, `gone`.
        count: how many.
        nbytes: of the output, in the second plan where it has them.
        details: for other parameters which, as `op: before -> after`.
    """

    label: str
    what: str
    count: int
    nbytes: int
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both plans.

    Attributes:
        name: of the figure.
        before, after: of the first plan and of the second.
        unit: `bytes`, `s` or empty for a count.
    """

    name: str
    before: float
    after: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """How a second plan differs from a first.

    Attributes:
        before, after: what they are called: their titles, or the recipes that they were made from.
        figures: of both.
        changes: outputs, grouped.
    """

    before: str
    after: str
    figures: tuple[Figure, ...]
    changes: tuple[Change, ...]

    def count(self, what: str) -> int:
        """Outputs with which that happens."""
        return sum(change.count for change in self.changes if change.what == what)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def plan_diff(before: Plan, after: Plan) -> PlanDiff:
    """How `after` differs from `before`."""
    names = [Names(plan, _facts(plan)) for plan in (before, after)]
    old = {c.name: c for c in before.components}
    found: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for component in after.components:
        was = old.pop(component.name, None)
        what, details = (NEW, ()) if was is None else _changed(before, was, after, component, names)
        found.setdefault((folded(component.name), what, details), []).append(after.layout.places[component.name].nbytes)
    for name in old:
        found.setdefault((folded(name), GONE, ()), []).append(before.layout.places[name].nbytes)
    order = list(_SAID)
    changes = [Change(label, what, len(sizes), sum(sizes), details) for (label, what, details), sizes in found.items()]
    return PlanDiff(before.title, after.title, tuple(_figures(before, after)), tuple(sorted(changes, key=lambda c: (order.index(c.what), -c.nbytes))))


def _facts(plan: Plan) -> Facts:
    """Both plans are of one program and machine: what is computed by the same op is computed alike, on one device."""
    solvers = {str(node.param("solver")): str(node.param("solver")) for program in plan.programs for node in program.nodes if node.op == "solve"}
    return Facts("", solvers, ("cpu", "cuda"))


def _changed(before: Plan, was: Component, after: Plan, now: Component, names: Sequence[Names]) -> tuple[str, tuple[str, ...]]:
    old, new = before.program_of(was), after.program_of(now)
    if old.dtype == new.dtype and names[0].key(was, old.root) == names[1].key(now, new.root):
        return SAME, ()
    if old.nodes == new.nodes and old.dtype == new.dtype:
        return INPUTS, ()
    details = _parameters(old, new)
    return (PARAMETERS, details) if details else (EXPRESSION, ())


def _parameters(old: Program, new: Program) -> tuple[str, ...]:
    """Parameters that differ between two programs of one structure; nothing where the structures differ."""
    if [(n.op, n.inputs, n.shape) for n in old.nodes] != [(n.op, n.inputs, n.shape) for n in new.nodes]:
        return ()
    found: dict[str, None] = {}
    for a, b in zip(old.nodes, new.nodes, strict=True):
        mine, theirs = dict(a.params), dict(b.params)
        for key in dict.fromkeys((*mine, *theirs)):
            if mine.get(key) != theirs.get(key) and key not in ("slot", "use"):
                found[f"{_spoken(a.op, key)}: {_value(mine.get(key))} -> {_value(theirs.get(key))}"] = None
    if old.dtype != new.dtype:
        found[f"dtype: {old.dtype.lower()} -> {new.dtype.lower()}"] = None
    return tuple(found)


def _value(value: object) -> str:
    return "none" if value in ("", None) else str(value)


def _spoken(op: str, key: str) -> str:
    return {"const": "number", "kth_magnitude": "threshold"}.get(op, op) + ("" if key in ("value", "rank") else f" {key}")


def _figures(before: Plan, after: Plan) -> list[Figure]:
    found = []
    for name in ("peak_bytes", "minimum_bytes", "bytes_read", "bytes_written", "bytes_copied"):
        found.append(Figure(name, getattr(before.prediction, name), getattr(after.prediction, name), "bytes"))
    found.append(Figure("seconds", before.prediction.seconds, after.prediction.seconds, "s"))
    for name, a, b in (
        ("passes", before.prediction.passes, after.prediction.passes),
        ("workers", before.workers, after.workers),
        ("tensors", len(before.components), len(after.components)),
        ("programs", len(_used(before)), len(_used(after))),
        ("kernels", kernel_count(_used(before)), kernel_count(_used(after))),
        ("files", len(before.files), len(after.files)),
    ):
        found.append(Figure(name, a, b))
    return found


def _used(plan: Plan) -> list[Program]:
    return [plan.programs[n] for n in Counter(c.program for c in plan.components)]


# -- as a tree -------------------------------------------------------------------------------------
_FIGURES = {
    "peak_bytes": "peak memory",
    "minimum_bytes": "smallest budget",
    "bytes_read": "reads",
    "bytes_written": "writes",
    "bytes_copied": "copied undecoded",
    "seconds": "time",
    "files": "input files",
}


def diff_tree(found: PlanDiff) -> Tree:
    """The difference as a rich tree."""
    from rich.tree import Tree

    total, same = sum(c.count for c in found.changes if c.what != GONE), found.count(SAME)
    if same == total and not found.count(GONE):
        first = f"{printable(found.before)} -> {printable(found.after)}: all {counted(total, 'output')} have the same bits"
    else:
        first = f"{printable(found.before)} -> {printable(found.after)}: {total - same:,} of {counted(total, 'output')} change, {same:,} keep their bits"
    root = Tree(Line(first, 0, len(first)))
    _add_figures(root, found)
    for what, said in _SAID.items():
        changes = [c for c in found.changes if c.what == what]
        if changes:
            figures = f"{counted(sum(c.count for c in changes), 'tensor')}, {size(sum(c.nbytes for c in changes))}"
            alike = len({change.details for change in changes}) == 1
            branch = root.add(headed(said, figures + (_details(changes[0]) if alike else "")))
            for change in changes:
                count = f"{change.count} x " if change.count > 1 else ""
                branch.add(Line(f"{count}{printable(change.label)}, {size(change.nbytes)}{'' if alike else _details(change)}", len(count) or 2))
    return root


def _details(change: Change) -> str:
    if not change.details:
        return ""
    more = f", and {len(change.details) - _TOLD} more" if len(change.details) > _TOLD else ""
    return f"  ({'; '.join(map(printable, change.details[:_TOLD]))}{more})"


def _add_figures(root: Tree, found: PlanDiff) -> None:
    branch = root.add(headed("needs"))
    differing = [f for f in found.figures if _shown(f, f.before) != _shown(f, f.after)]
    rows = [(_FIGURES.get(f.name, f.name), _shown(f, f.before), "->", _shown(f, f.after), _change(f)) for f in differing]
    widths = [max(len(row[k]) for row in rows) for k in range(5)] if rows else []
    for row in rows:
        branch.add(Line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    if not rows:
        branch.add(Line("the same memory, bytes and time"))


def _shown(figure: Figure, value: float) -> str:
    return size(value) if figure.unit == "bytes" else duration(value) if figure.unit == "s" else f"{value:,.0f}"


def _change(figure: Figure) -> str:
    more = figure.after - figure.before
    return f"{'+' if more > 0 else '-'} {_shown(figure, abs(more))}"


def diff_text(found: PlanDiff, width: int = 120) -> str:
    """The difference as plain text."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(diff_tree(found))
    return buffer.getvalue().rstrip()
