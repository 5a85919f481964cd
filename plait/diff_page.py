"""A comparison as one html page: what it suggests, heat maps of layers by kinds, and every tensor to search and sort."""

from __future__ import annotations

from pathlib import Path

from plait.differences import Diff, Figures
from plait.ops.errors import OutputError
from plait.page import Block, Column, Facts, HeatMap, HeatView, Notes, Page, Section, Table, fragment
from plait.planner.inspect import ROLES
from plait.planner.sizes import size
from plait.plot_diff import grid, views
from plait.show_diff import notes, number, percent


def page(diff: Diff) -> str:
    """The html text of a comparison."""
    sections = [Section("At a glance", _glance(diff))]
    maps = _map(diff)
    if maps is not None:
        sections.append(Section("Layers", [maps]))
    sections.append(Section("Tensors", [_groups(diff), _tensors(diff)]))
    return Page(_title(diff), _subtitle(diff), sections, "made by `plait inspect --diff`; docs/inspect.md has the formulas").render()


def notebook(diff: Diff) -> str:
    """A part of a page for notebooks."""
    return fragment(_title(diff), [*_glance(diff), _groups(diff)])


def write_page(diff: Diff, path: Path) -> None:
    """Write the page of a comparison.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(page(diff), "utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); name another file", path=str(path)) from error


def _title(diff: Diff) -> str:
    return "Two changes of one base" if diff.has_base else "What differs"


def _subtitle(diff: Diff) -> str:
    a, b, *base = diff.labels
    return f"A = {a}, B = {b}, base = {base[0]}" if base else f"B = {b} against A = {a}"


def _glance(diff: Diff) -> list[Block]:
    items: list[tuple[str, str, str]] = []
    total = diff.total
    if total is not None:
        for name, change in zip(("change of A", "change of B") if diff.has_base else ("change",), total.changes, strict=True):
            items.append((name, number(change.relative), f"norm {number(change.norm)}, {percent(change.unchanged)} of the elements as they were"))
        items.append(("cosine", number(total.cosine), "of the changes" if diff.has_base else "of the models"))
        items.append(("signs agree", percent(total.sign_agreement), f"of the {percent(total.both)} of elements that {_both(diff)}"))
        items.append(("compared", f"{total.tensors:,} tensors", f"{total.elements:,} elements, {size(diff.bytes_read)} read in {diff.seconds:.1f} s"))
    return [Facts(items), Notes([*(reading["text"] for reading in diff.readings()), *notes(diff)])]


def _both(diff: Diff) -> str:
    return "both changed" if diff.has_base else "are not zero in both"


def _map(diff: Diff) -> HeatMap | None:
    """Layers down, kinds across: a page is read downwards."""
    cells = grid(diff)
    if not cells.drawable:
        return None
    maps = []
    for view in views(diff):
        by_kind = cells.values(view)
        reach = max([0.1, *(abs(v) for row in by_kind for v in row if v is not None)]) if view.signed else None
        low, high = (-reach, reach) if reach is not None else (view.low, view.high)
        maps.append(HeatView(view.name, [list(row) for row in zip(*by_kind, strict=True)], "number", low, high, view.about))
    return HeatMap("Layers by kinds of tensor", "layer", "kind", [str(layer) for layer in cells.layers], cells.kinds, maps)


def _columns(diff: Diff) -> list[Column]:
    names = ["change A", "change B"] if diff.has_base else ["change"]
    found = [Column(name, "number") for name in names] + [Column("cosine", "number"), Column("signs agree", "percent")]
    found += [Column(f"unchanged{name.removeprefix('change')}", "percent") for name in names]
    found += [Column(f"spread{name.removeprefix('change')}", "number") for name in names]
    return found + [Column(f"stable rank{name.removeprefix('change')}", "number") for name in names if diff.passes]


def _cells(diff: Diff, figures: Figures) -> list[float | None]:
    changes = figures.changes
    found = [*(c.relative for c in changes), figures.cosine, figures.sign_agreement, *(c.unchanged for c in changes), *(c.spread for c in changes)]
    return found + [c.stable_rank for c in changes if diff.passes]


def _groups(diff: Diff) -> Table:
    found = diff.by_role()
    rows = [[role, found[role].tensors, *_cells(diff, found[role])] for role in ROLES if role in found]
    return Table("By group", [Column("group"), Column("tensors", "count"), *_columns(diff)], rows)


def _tensors(diff: Diff) -> Table:
    columns = [Column("tensor", code=True), Column("group"), Column("shape", code=True), *_columns(diff)]
    rows = [[t.name, t.role, "x".join(map(str, t.shape)), *_cells(diff, t.figures)] for t in diff.tensors]
    return Table("Every tensor", columns, rows)
