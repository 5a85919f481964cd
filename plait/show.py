"""Tables for the terminal: a checkpoint's summary, and what a cache of results holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plait.planner.explain import duration
from plait.planner.header_text import printable
from plait.planner.schedule import size
from plait.planner.types import Checkpoint

if TYPE_CHECKING:
    from plait.engine.survey import Survey


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


def show_cache(found: Survey, removed: int, damaged: list[str]) -> None:
    """What a result cache holds, and what was removed from it."""
    console = Console(highlight=False)
    for line in damaged:
        console.print(f"damaged and removed: {printable(line)}", markup=False, soft_wrap=True)
    if removed:
        console.print(f"{size(removed)} removed", markup=False)
    console.print(f"{found.path}: {found.entries} results, {size(found.nbytes)}", markup=False, soft_wrap=True)
    if found.partial_bytes:
        console.print(f"{size(found.partial_bytes)} more are being written, or were left by a run that was killed (--check removes them)", markup=False)
    if found.odd:
        console.print(f"{found.odd} files are damaged (--check removes them)", markup=False)
    if not found.kinds:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("op", "results", "bytes", "uses", "last used", "oldest", "worth"):
        table.add_column(heading, justify="left" if heading == "op" else "right")
    for op, kind in found.kinds.items():
        row = (f"{kind.entries:,}", size(kind.nbytes), f"{kind.hits:,}", f"{_age(kind.youngest_s)} ago", f"{_age(kind.oldest_s)} ago", duration(kind.seconds))
        table.add_row(escape(printable(op)), *row)
    console.print(table)


def _age(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else duration(seconds)
