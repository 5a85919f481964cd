"""A checkpoint's facts for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.page import Block, Column, Facts, Notes, Table, fragment
from plait.planner.sizes import size
from plait.planner.words import counted, dimensions
from plait.show_inspect import ODD, count

if TYPE_CHECKING:
    from plait.inspection import Inspection, Scan


def notebook(found: Inspection) -> str:
    """What a notebook shows of a checkpoint: its figures, its kinds of tensors, and what is odd."""
    summary = found.summary
    architectures = summary["architectures"]
    named = ", ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    items: list[tuple[str, str] | tuple[str, str, str]] = [
        ("Architecture", str(named or summary["model_type"] or "not named"), summary["about"] or ""),
        ("Parameters", count(summary["parameters"]), f"{summary['parameters']:,} in {counted(summary['layers'], 'layer')}"),
        ("Stored", size(summary["bytes"]), f"{counted(summary['tensors'], 'tensor')} in {counted(len(summary['shards']), 'file')}"),
        ("Types", ", ".join(summary["dtypes"]) or "none"),
    ]
    columns = [
        Column("tensors", "count"), Column("name", code=True), Column("group"), Column("shape"), Column("type"), Column("elements", "count"),
        Column("bytes", "bytes"),
    ]  # fmt: skip
    rows = [[k["tensors"], k["name"], k["role"], dimensions(tuple(k["shape"])), k["dtype"], k["elements"], k["bytes"]] for k in summary["kinds"]]
    odd = [f"{ODD[kind]}: {', '.join(map(str, names))}" for kind, names in found.odd.items()]
    notes: list[Block] = [Notes(odd)] if odd else []
    if found.scan is not None:
        notes.append(Notes(_scanned(found.scan)))
    return fragment(summary["label"], [Facts(items), *notes, Table("Kinds of tensors, layers folded", columns, rows)])


def _scanned(scan: Scan) -> list[str]:
    finite = [] if scan.nonfinite else ["no NaN, no infinity"]
    bad = [f"{t.name} holds {t.nan:,} NaN and {t.infinite:,} infinite values" for t in scan.nonfinite]
    return [*finite, *bad, *(f"the same bytes: {', '.join(names)}" for names in scan.equal)]
