"""`plait bench peers`: a merge beside the floor and beside other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plait.bench_options import DEBUG, FOLDER, FORMAT, PLOT, progress

if TYPE_CHECKING:
    from plait.sidebyside import Row

_PEERS_EXAMPLES = """
\b
Examples:
  plait bench peers recipe.yml                          beside the floor, and mergekit where it is on PATH
  plait bench peers recipe.yml --mergekit path/to/venv  mergekit from a virtual environment of its own
  plait bench peers recipe.yml --mergekit venv --sd-mecha venv --plot peers.svg
  plait bench peers recipe.yml --peer 'mine=python merge.py {recipe} {out}'
"""


@click.command(epilog=_PEERS_EXAMPLES)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--mergekit", type=FOLDER, metavar="VENV", help="Virtual environment that has mergekit. Default: the one on PATH, if any.")
@click.option("--sd-mecha", "sd_mecha", type=FOLDER, metavar="VENV", help="Virtual environment that has sd-mecha; it merges whole models by five methods.")
@click.option("--peer", "others", multiple=True, metavar="NAME=COMMAND", help="Another program; {recipe} and {out} are filled in. May be repeated.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; medians are shown.")
@click.option("--memory", "-m", metavar="SIZE", default="1GiB", show_default=True, help="Budget of plait's merges.")
@click.option("--workers", "-j", type=int, metavar="N", help="Worker threads. Default: the cores this process may use.")
@click.option("--folder", type=FOLDER, default=Path("."), show_default=True, help="Outputs go into a temporary folder here, one after another.")
@click.option("--format", "form", type=FORMAT, default="table", show_default=True, help="A table to read, or data.")
@PLOT
@DEBUG
def peers(
    recipe: Path,
    mergekit: Path | None,
    sd_mecha: Path | None,
    others: Sequence[str],
    repeat: int,
    memory: str,
    workers: int | None,
    folder: Path,
    form: str,
    plot: Path | None,
    debug: bool,
) -> None:
    """Merge RECIPE with plait and with other programs, in turns, beside the floor: the time that moving its bytes takes alone.

    Every run is a whole process, start-up included, with warm inputs; outputs are removed. The floor reads the inputs as often as
    the plan does and writes as many bytes durably.
    """
    from plait.api import Options, plan
    from plait.peer_sd_mecha import sd_mecha_words
    from plait.plots import check_picture, draw_peers
    from plait.sidebyside import Peer, compare, other
    from plait.sidebyside import mergekit as find_mergekit

    check_picture(plot)
    found = [p for p in [find_mergekit(mergekit), *map(other, others)] if p is not None]
    if sd_mecha is not None:
        found.append(Peer("sd-mecha", sd_mecha_words(sd_mecha, recipe)))
    planned = plan(recipe, Options(memory=memory, workers=workers))
    more = ["--memory", memory, *(["--workers", str(workers)] if workers is not None else [])]
    with progress() as tell:
        rows = compare(recipe, planned, found, folder, repeat, more, tell)
    if form == "json":
        facts = {"recipe": str(recipe), "memory": memory, "repeat": repeat, "bytes_read": planned.prediction.bytes_read}
        click.echo(json.dumps({**facts, "bytes_written": planned.prediction.bytes_written, "rows": [row.to_dict() for row in rows]}, indent=1))
    else:
        _show_peers(rows, repeat)
        if not found:
            click.echo("no other program: give --mergekit VENV, --sd-mecha VENV or --peer NAME=COMMAND", err=True)
    if plot is not None:
        runs = f"medians of {repeat}" if repeat > 1 else "one run each"
        draw_peers(f"{recipe.name} in --memory {memory}, {runs}", rows, plot)
        click.echo(f"drawn in {plot}", err=True)


def _show_peers(rows: Sequence[Row], repeat: int) -> None:
    from statistics import median

    from rich.console import Console
    from rich.table import Table

    from plait.planner.sizes import size

    own = next(row.wall for row in rows if row.subject == "plait")
    table = Table(box=None, pad_edge=False)
    for heading in ("program", "seconds", "range", "CPU s", "private memory", "times plait's"):
        table.add_column(heading, justify="left" if heading == "program" else "right", no_wrap=True)
    for row in rows:
        spread = f"{min(row.wall_s):.2f}-{max(row.wall_s):.2f}"
        peak = size(max(row.peak_bytes)) if max(row.peak_bytes) else "-"
        table.add_row(row.subject, f"{row.wall:.2f}", spread, f"{median(row.cpu_s):.2f}", peak, f"{row.wall / own:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"medians of {repeat}; whole processes, the floor without a start", style="dim")
