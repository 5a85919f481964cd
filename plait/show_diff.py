"""A comparison of models for the terminal, readable at 80 columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plait.differences import Figures, after_layer
from plait.planner.header_text import printable
from plait.planner.inspect import ROLES
from plait.planner.sizes import size

if TYPE_CHECKING:
    from plait.differences import Diff

#: Tensors of one kind of note that are listed.
_MOST = 4
#: Decimals of a column at most, and a number that needs a power of ten.
_MOST_DECIMALS, _LARGE = 5, 1e4
_TENTH_OF_PERCENT = 0.001
#: Columns that labels keep on a narrow terminal.
_LEAST_ROOM = 16
#: How a column finds its figure, and how all of them are written.
_Column = tuple[Callable[[Figures], float | None], Callable[[Sequence[float | None]], list[str]]]


def show_diff(diff: Diff, *, tensors: bool) -> None:
    """Figures by group, or of every tensor, and what they suggest."""
    console = Console(highlight=False)
    a, b, *base = (printable(label) for label in diff.labels)
    title = f"A = {a}, B = {b}, each against {base[0]}" if base else f"B = {b} against A = {a}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(_table(diff, console, tensors=tensors))
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


def _columns(diff: Diff) -> dict[str, _Column]:
    """Heading, figure and form of each column."""
    if diff.has_base:
        found: dict[str, _Column] = {
            "change A": (lambda f: f.changes[0].relative, aligned),
            "change B": (lambda f: f.changes[1].relative, aligned),
            "cosine": (lambda f: f.cosine, _thousandths),
            "signs": (lambda f: f.sign_agreement, _tenths_of_percent),
            "both": (lambda f: f.both, _tenths_of_percent),
        }
        if diff.passes:
            found |= {"rank A": (lambda f: f.changes[0].stable_rank, _tenths), "rank B": (lambda f: f.changes[1].stable_rank, _tenths)}
        return found
    found = {
        "change": (lambda f: f.changes[0].relative, aligned),
        "largest": (lambda f: f.changes[0].largest, aligned),
        "same": (lambda f: f.changes[0].unchanged, _tenths_of_percent),
        "signs": (lambda f: f.sign_agreement, _tenths_of_percent),
        "spread": (lambda f: f.changes[0].spread, aligned),
    }
    return {**found, "rank": (lambda f: f.changes[0].stable_rank, _tenths)} if diff.passes else found


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share in per cent."""
    return "-" if share is None else f"{100 * share:.3g} %"


def aligned(values: Sequence[float | None]) -> list[str]:
    """Numbers of one column with their points in line: three digits of the largest, two of the smallest, within five decimals.

    What would be shown as zero and is not has a power of ten instead, as have columns that reach beyond 10,000.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes or max(sizes) >= _LARGE:
        return [number(value) for value in values]
    decimals = min(_MOST_DECIMALS, max(0, 2 - _exponent(max(sizes)), 1 - _exponent(min(sizes))))
    smallest = 0.5 * 10.0**-decimals
    return ["-" if v is None else f"{v:.0e}" if 0.0 < abs(v) < smallest else f"{v:.{decimals}f}" for v in values]


def shortened(label: str, room: int, mark: str = "…") -> str:
    """A label of at most `room` columns, its middle left out: names differ at their ends."""
    if len(label) <= room:
        return label
    head = (room - len(mark)) // 2
    return label[:head] + mark + label[len(label) - (room - len(mark) - head) :]


def _exponent(value: float) -> int:
    return math.floor(math.log10(value))


def _tenths(values: Sequence[float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.1f}" for value in values]


def _thousandths(values: Sequence[float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _tenths_of_percent(shares: Sequence[float | None]) -> list[str]:
    return ["-" if share is None else "<0.1 %" if 0.0 < share < _TENTH_OF_PERCENT / 2 else f"{100 * share:.1f} %" for share in shares]


def _table(diff: Diff, console: Console, *, tensors: bool) -> Table:
    rows = list(_rows(diff, tensors=tensors))
    columns = {heading: form([figure(found) for _, found, _ in rows]) for heading, (figure, form) in _columns(diff).items()}
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("tensors", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    # every tensor is listed with its whole name, on two lines where it must be
    taken = sum(1 + max(map(len, (heading, *cells))) for heading, cells in columns.items())
    room = 10**9 if tensors else max(_LEAST_ROOM, console.width - taken)
    mark = "…" if console.encoding.startswith("utf") else "..."
    for at, (label, _, bold) in enumerate(rows):
        table.add_row(escape(shortened(printable(label), room, mark)), *(cells[at] for cells in columns.values()), style="bold" if bold else None)
    return table


def _rows(diff: Diff, *, tensors: bool) -> Iterator[tuple[str, Figures, bool]]:
    """Label and figures of each row, and whether it is a total."""
    if diff.total is not None:
        yield "all", diff.total, True
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
            yield role, by_role[role], True
        for name, found in members[role].items():
            yield f"  {name}", found, False


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
