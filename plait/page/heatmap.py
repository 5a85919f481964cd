"""Heat maps: a table whose cells are coloured by value, so that it is read by eye, pointer and screen reader alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from plait.page.blocks import Block
from plait.page.text import escaped, shown


class HeatView(NamedTuple):
    """One statistic over the same rows and columns.

    Attributes:
        name: of the statistic.
        values: `[rows][columns]`; None where there is no such cell.
        kind: how values are shown.
        low, high: ends of the colour scale; the extremes of the values where None.
        about: a sentence that says how to read it.
    """

    name: str
    values: Sequence[Sequence[float | None]]
    kind: str = "number"
    low: float | None = None
    high: float | None = None
    about: str = ""


@dataclass(frozen=True)
class HeatMap(Block):
    """Statistics over rows and columns, one shown at a time.

    Attributes:
        title: of the map.
        row_name, column_name: what rows and columns are.
        rows, columns: their names.
        views: the statistics.
    """

    scripts: ClassVar[tuple[str, ...]] = ("heatmap.js",)
    title: str
    row_name: str
    column_name: str
    rows: Sequence[str]
    columns: Sequence[str]
    views: Sequence[HeatView]

    def render(self, ident: str) -> str:
        """Choices of the statistic, the coloured table, and its scale."""
        choices = "".join(
            f'<label><input type="radio" name="{ident}-view" value="{n}"{" checked" if not n else ""}> {escaped(v.name)}</label>'
            for n, v in enumerate(self.views)
        )
        chooser = f'<fieldset class="views"><legend>Statistic</legend>{choices}</fieldset>' if len(self.views) > 1 else ""
        return (
            f'<figure class="heat" id="{ident}" data-block="heatmap"><figcaption><b>{escaped(self.title)}</b> <span class="about"></span></figcaption>{chooser}'
            f'<div class="legend" aria-hidden="true"><span class="low"></span><i></i><span class="high"></span></div>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(self.title)}">{self._table()}</div>'
            f'<p class="readout" aria-live="polite">Point at a cell, or walk with the arrow keys, to read it.</p></figure>'
        )

    def data(self) -> Any:
        """All views with the ends of their scales."""
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "rowName": self.row_name,
            "views": [{**v._asdict(), "values": [list(r) for r in v.values], "low": _ends(v)[0], "high": _ends(v)[1]} for v in self.views],
        }

    def static(self) -> str:
        """The first view as a coloured table."""
        return f"<p><b>{escaped(self.title)}</b></p>{self._table()}"

    def _table(self) -> str:
        view = self.views[0]
        low, high = _ends(view)
        span = (high - low) or 1.0
        heads = "".join(f'<th scope="col"><span>{escaped(c)}</span></th>' for c in self.columns)
        body = []
        for name, values in zip(self.rows, view.values, strict=True):
            cells = "".join([_cell(v, None if v is None else min(1.0, max(0.0, (v - low) / span)), view.kind) for v in values])
            body.append(f'<tr><th scope="row">{escaped(name)}</th>{cells}</tr>')
        corner = f'<td class="corner">{escaped(self.row_name)} \\ {escaped(self.column_name)}</td>'
        return f"<table><caption>{escaped(f'{self.title}: {view.name}')}</caption><thead><tr>{corner}{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(value: float | None, place: float | None, kind: str) -> str:
    """A cell, coloured by where its value lies between the ends of the scale."""
    return '<td class="none"></td>' if place is None else f'<td style="--v:{place:.3f}"><span>{escaped(shown(value, kind))}</span></td>'


def _ends(view: HeatView) -> tuple[float, float]:
    found = [v for row in view.values for v in row if v is not None]
    low = view.low if view.low is not None else min(found, default=0.0)
    return low, view.high if view.high is not None else max(found, default=1.0)
