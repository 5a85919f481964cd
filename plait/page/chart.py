"""Charts of lines and steps, with a readout under the pointer, from the keyboard, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from plait.page.blocks import Block
from plait.page.table import Column, Table
from plait.page.text import escaped

#: Rows of the table that says what a chart shows.
TABLE_ROWS = 40


class Series(NamedTuple):
    """One line.

    Attributes:
        name: in the legend.
        values: one for each x; None leaves a gap.
        kind: how its values are shown.
        step: the value holds until the next x, so the line is a staircase.
        fill: the area under it is shaded.
        points: each value has a dot.
    """

    name: str
    values: Sequence[float | None]
    kind: str = "bytes"
    step: bool = False
    fill: bool = False
    points: bool = False


class Mark(NamedTuple):
    """A horizontal line, such as a budget.

    Attributes:
        name: what it is.
        value: where it is.
    """

    name: str
    value: float


@dataclass(frozen=True)
class LineChart(Block):
    """Lines over one x axis.

    Attributes:
        title: of the chart.
        summary: one sentence that says what the lines show, for those who do not see them.
        x: ascending values.
        series: the lines; all of one kind share an axis, and a second kind has its own at the right.
        x_name, x_kind: name of the x axis, and how its values are shown.
        labels: for each x a word that the readout shows beside the values, such as the task at work.
        label_name: what those words are.
        marks: horizontal lines.
        log_x: the x axis is logarithmic.
        stacked: each line stands on the next one, and the readout shows the differences and their sum.
        height: in pixels.
    """

    scripts: ClassVar[tuple[str, ...]] = ("vendor/uPlot.iife.min.js", "chart.js")
    styles: ClassVar[tuple[str, ...]] = ("vendor/uPlot.min.css",)
    title: str
    summary: str
    x: Sequence[float]
    series: Sequence[Series]
    x_name: str = "time"
    x_kind: str = "seconds"
    labels: Sequence[str] = ()
    label_name: str = ""
    marks: Sequence[Mark] = ()
    log_x: bool = False
    stacked: bool = False
    height: int = 260

    def render(self, ident: str) -> str:
        """A figure: caption, drawing and readout, and a table of the values."""
        return (
            f'<figure class="chart" id="{ident}" data-block="chart"><figcaption><b>{escaped(self.title)}</b> <span>{escaped(self.summary)}</span></figcaption>'
            f'<div class="plot" tabindex="0" role="img" aria-label="{escaped(f"{self.title}. {self.summary}")} Arrow keys move the readout."></div>'
            f'<p class="readout" aria-live="polite"></p>'
            f'<details><summary>Values as a table</summary><div class="scroll" tabindex="0">{self._table().static_rows(TABLE_ROWS)}</div></details></figure>'
        )

    def data(self) -> Any:
        """Values, and how they are drawn; words are listed once."""
        words = list(dict.fromkeys(self.labels))
        places = {word: n for n, word in enumerate(words)}
        return {
            "x": list(self.x),
            "xName": self.x_name,
            "xKind": self.x_kind,
            "logX": self.log_x,
            "stacked": self.stacked,
            "height": self.height,
            "series": [{**s._asdict(), "values": list(s.values)} for s in self.series],
            "marks": [m._asdict() for m in self.marks],
            "words": words,
            "labels": [places[label] for label in self.labels],
            "labelName": self.label_name,
        }

    def static(self) -> str:
        """The sentence."""
        return f"<p><b>{escaped(self.title)}</b> {escaped(self.summary)}</p>"

    def _table(self) -> Table:
        columns = [Column(self.x_name, self.x_kind), *(Column(s.name, s.kind) for s in self.series)]
        rows: list[list[Any]] = [[x, *values] for x, *values in zip(self.x, *(s.values for s in self.series), strict=True)]
        if self.labels:
            columns.append(Column(self.label_name, code=True))
            rows = [[*row, label] for row, label in zip(rows, self.labels, strict=True)]
        return Table(self.title, columns, _thinned(rows, self.series))


def _thinned(rows: list[list[Any]], series: Sequence[Series]) -> list[list[Any]]:
    """As many rows as a person reads: at even distances, with the largest of each line."""
    if len(rows) <= TABLE_ROWS:
        return rows
    largest = {max(range(len(rows)), key=lambda i, n=n: rows[i][n + 1] or 0) for n in range(len(series))}  # type: ignore[misc]
    room = max(2, TABLE_ROWS - len(largest))
    return [rows[i] for i in sorted({round(k * (len(rows) - 1) / (room - 1)) for k in range(room)} | largest)]
