"""A table for the terminal: what a cache of results holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plait.planner.explain import duration
from plait.planner.header_text import printable
from plait.planner.sizes import size

if TYPE_CHECKING:
    from plait.engine.survey import Survey


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
