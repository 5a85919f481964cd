"""Prints what a benchmark found and keeps it: a table for people, JSON for programs, both under `benchmarks/results`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
WIDTH = 150


def table_of(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table as plain text; the first two columns are words, the others figures."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=number < 2)
    previous = None
    for row in rows:
        if previous not in (None, row[0]):
            table.add_section()
        table.add_row(*row)
        previous = row[0]
    console = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def save(name: str, data: dict[str, Any], table: str, folder: Path | None = None) -> None:
    """Prints the table and writes `NAME.txt` and `NAME.json`."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    print(table, end="")
    (folder / f"{name}.txt").write_text(table)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
