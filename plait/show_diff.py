"""A comparison of models for the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plait.differences import Figures, after_layer
from plait.planner.header_text import printable
from plait.planner.inspect import ROLES
from plait.planner.schedule import size

if TYPE_CHECKING:
    from plait.differences import Change, Diff

#: Tensors of one kind of note that are listed.
_MOST = 4
_Cell = Callable[[Figures], str]


def show_diff(diff: Diff, *, tensors: bool) -> None:
    """Figures by group, or of every tensor, and what they suggest."""
    console = Console(highlight=False)
    a, b, *base = (printable(label) for label in diff.labels)
    title = f"A = {a}, B = {b}, each against {base[0]}" if base else f"B = {b} against A = {a}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(_table(diff, tensors=tensors))
    for line in notes(diff):
        console.print(printable(line), markup=False, soft_wrap=True)
    console.print()
    for reading in diff.readings():
        console.print(f"- {printable(reading['text'])}", markup=False)
    passes = f", {diff.passes + 1} passes" if diff.passes else ""
    console.print(
        f"{size(diff.bytes_read)} read in {diff.seconds:.1f} s{passes}; predicted peak {size(diff.peak_bytes)} of {size(diff.budget_bytes)}",
        markup=False,
        style="dim",
    )


def _columns(diff: Diff) -> dict[str, _Cell]:
    """Heading and content of each column."""
    if diff.has_base:
        found: dict[str, _Cell] = {
            "change A": lambda f: number(f.changes[0].relative),
            "change B": lambda f: number(f.changes[1].relative),
            "cosine": lambda f: "-" if f.cosine is None else f"{f.cosine:.3f}",
            "signs": lambda f: percent(f.sign_agreement),
            "both": lambda f: percent(f.both),
        }
        if diff.passes:
            found |= {"rank A": lambda f: rank(f.changes[0]), "rank B": lambda f: rank(f.changes[1])}
        return found
    found = {
        "change": lambda f: number(f.changes[0].relative),
        "largest": lambda f: number(f.changes[0].largest),
        "same": lambda f: percent(f.changes[0].unchanged),
        "signs": lambda f: percent(f.sign_agreement),
        "spread": lambda f: number(f.changes[0].spread),
    }
    return {**found, "rank": lambda f: rank(f.changes[0])} if diff.passes else found


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share in per cent."""
    return "-" if share is None else f"{100 * share:.3g} %"


def rank(change: Change) -> str:
    """A stable rank."""
    return "-" if change.stable_rank is None else f"{change.stable_rank:.1f}"


def _table(diff: Diff, *, tensors: bool) -> Table:
    columns = _columns(diff)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("tensors", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)

    def add(name: str, found: Figures, *, bold: bool = False) -> None:
        table.add_row(escape(printable(name)), *(cell(found) for cell in columns.values()), style="bold" if bold else None)

    total = diff.total
    if total is not None:
        add("all", total, bold=True)
    by_role = diff.by_role()
    members: dict[str, dict[str, Figures]] = {role: {} for role in ROLES}
    if tensors:
        for tensor in diff.tensors:
            members[tensor.role][tensor.name] = tensor.figures
    else:
        for (role, kind), found in diff.grouped(lambda t: (t.role, after_layer(t.name))).items():
            times = f"{found.tensors} x " if found.tensors > 1 else ""
            members[role][f"{times}{kind}"] = found
    for role in ROLES:
        if role in by_role:
            add(role, by_role[role], bold=True)
        for name, found in members[role].items():
            add(f"  {name}", found)
    return table


def notes(diff: Diff) -> list[str]:
    """What was not compared, and what holds no numbers."""
    found = []
    by_reason: dict[str, list[str]] = {}
    for name, why in diff.left_out.items():
        by_reason.setdefault(why, []).append(name)
    found += [f"not compared ({why}): {_some(names)}" for why, names in by_reason.items()]
    differing = [name for name, same in diff.bitwise.items() if not same]
    if diff.bitwise:
        told = f"differ: {_some(differing)}" if differing else "all equal"
        found.append(f"compared bit by bit (integers, float64, quantised), {len(diff.bitwise)}: {told}")
    for tensor in diff.tensors:
        if any(tensor.nonfinite):
            counts = ", ".join(f"{n:,} in {label}" for n, label in zip(tensor.nonfinite, ("A", "B", "the base"), strict=False) if n)
            found.append(f"{tensor.name} holds NaN or infinity ({counts}): not in the totals")
    mixed = sum(len(set(tensor.dtypes)) > 1 for tensor in diff.tensors)
    if mixed:
        found.append(f"{mixed} tensors are stored in different dtypes; their values are compared as they are stored")
    return found


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "")
