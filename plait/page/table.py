"""A table of thousands of rows to search and sort, a page of it at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from plait.page.blocks import Block
from plait.page.text import escaped, shown

#: Rows that a notebook is shown.
STATIC_ROWS = 20


class Column(NamedTuple):
    """A column.

    Attributes:
        name: its heading.
        kind: `text`, or how its numbers are shown: `bytes`, `seconds`, `count`, `number` or `percent`.
        code: its text is a name out of a file, set in a fixed-width face.
    """

    name: str
    kind: str = "text"
    code: bool = False


@dataclass(frozen=True)
class Table(Block):
    """Rows to search and sort.

    Attributes:
        caption: what the rows are.
        columns: of the table.
        rows: values in the order of the columns: text, numbers or None.
        sort: column and direction that it opens with, such as `(2, True)` for descending; the order given where None.
        page: rows shown at a time.
    """

    scripts: ClassVar[tuple[str, ...]] = ("table.js",)
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    sort: tuple[int, bool] | None = None
    page: int = 50

    def render(self, ident: str) -> str:
        """A search field, the table and its pages; small tables go without the first and the last."""
        tools = (
            f'<div class="tools"><label>Search <input type="search" id="{ident}-search" autocomplete="off" spellcheck="false" '
            f'placeholder="words, all of them"></label><span class="count" role="status" aria-live="polite"></span></div>'
            if len(self.rows) > 12
            else ""
        )
        heads = "".join(f'<th scope="col" class="{self._class(c)}"><button type="button">{escaped(c.name)}</button></th>' for c in self.columns)
        pages = (
            '<nav class="pages" aria-label="Pages of the table"><button type="button" class="previous">Previous</button>'
            '<span></span><button type="button" class="next">Next</button></nav>'
            if len(self.rows) > self.page
            else ""
        )
        return (
            f'<div class="table" id="{ident}" data-block="table">{tools}<div class="scroll" tabindex="0" role="region" aria-label="{escaped(self.caption)}">'
            f"<table><caption>{escaped(self.caption)}</caption><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>{pages}</div>"
        )

    def data(self) -> Any:
        """Columns and rows."""
        return {
            "columns": [{"kind": c.kind, "class": self._class(c)} for c in self.columns],
            "rows": [list(row) for row in self.rows],
            "sort": None if self.sort is None else list(self.sort),
            "page": self.page,
        }

    def static(self) -> str:
        """The first rows."""
        return self.static_rows(STATIC_ROWS)

    def static_rows(self, limit: int) -> str:
        """Html of the first rows, without a script."""
        heads = "".join(f'<th scope="col" class="{self._class(c)}">{escaped(c.name)}</th>' for c in self.columns)
        cells = [
            "".join(f'<td class="{self._class(c)}">{escaped(shown(v, c.kind))}</td>' for c, v in zip(self.columns, row, strict=True))
            for row in self.rows[:limit]
        ]
        more = f"<p>and {len(self.rows) - limit:,} more</p>" if len(self.rows) > limit else ""
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><caption>{escaped(self.caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{more}"

    @staticmethod
    def _class(column: Column) -> str:
        return ("name" if column.code else "") if column.kind == "text" else "figure"
