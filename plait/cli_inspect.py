"""`plait inspect`: a checkpoint at a glance, and what differs between two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from plait.differences import Diff

_INSPECT_EXAMPLES = """
\b
Examples:
  plait inspect MODEL                    what it holds, from headers alone
  plait inspect MODEL --tensors          and every tensor
  plait inspect MODEL --scan             reads all weights: NaN, zeros, twins
  plait inspect MODEL --format json      the same as data
  plait inspect base tuned --diff        how much did tuning change, where?
  plait inspect math code --base base    do two changes agree or fight?
  plait inspect math code --base base --rank --plot map.png --html a.html
\b
Reading a comparison (docs/inspect.md has the formulas):
  change  size of the change over the size of what was changed
  cosine  of two changes: near 0 they add up, near 1 they repeat one
          another, below 0 they fight
  signs   of the elements that both changed, how many move the same way;
          50 % is chance. Without --base: of the elements of both models
  same    elements that are as they were: a density of 1 - same keeps all
  spread  0.64 for normally distributed changes; near 0 a few elements hold
          the change, and a low density is enough
  rank    stable rank of the change: where it is low, an adapter or a
          spectral method can hold it
"""


@click.command(epilog=_INSPECT_EXAMPLES)
@click.argument("checkpoint", nargs=-1, required=True)
@click.option("--diff", "compare", is_flag=True, help="Compare two checkpoints: B with A, or with --base what each changed.")
@click.option("--base", metavar="C", help="What A and B were tuned from.")
@click.option("--rank", is_flag=True, help="Find stable ranks of the changes, too: eight more passes over the matrices.")
@click.option("--scan", "--finite", is_flag=True, help="Read all weights: NaN, infinity, zeros, largest magnitudes, equal tensors.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
@click.option("--tensors", is_flag=True, help="List every tensor, instead of layers folded.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw a comparison as heat maps, layers by kinds of tensor: .png, .svg or .pdf.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a comparison as one html page.")
@click.option("--memory", "-m", metavar="SIZE", help="Budget for private memory when weights are read. Default: half of the free memory.")
@click.option("--workers", "-j", type=int, metavar="N", help="Worker threads. Default: the cores this process may use.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def inspect(checkpoint: tuple[str, ...], compare: bool, base: str | None, form: str, tensors: bool, quiet: bool, debug: bool, **more: Any) -> None:
    """Show what CHECKPOINT holds, from file headers alone; or with --diff how two differ.

    A comparison reads every model once, in blocks, within --memory. Its figures are the same for every budget and number of
    workers. The sentences below its table are rules of thumb: they say what the figures suggest, not what a task needs.
    """
    plot, html = more.pop("plot"), more.pop("html")
    two = compare or base is not None
    if len(checkpoint) != (2 if two else 1):
        what = "a comparison takes two checkpoints, A and B" if two else "give one checkpoint, or --diff to compare two"
        raise click.UsageError(f"{what}; {len(checkpoint)} are given")
    if not two:
        _refuse({"--rank": more.pop("rank"), "--plot": plot, "--html": html}, "compares: give two checkpoints and --diff")
        _one(checkpoint[0], form, tensors=tensors, quiet=quiet, **more)
        return
    _refuse({"--scan": more.pop("scan")}, "looks at one checkpoint; a comparison counts NaN and infinity by itself")
    if plot is not None:
        from plait.plot_diff import check_plot

        check_plot(plot)
    from plait.diffing import diff

    with _watched(quiet) as watch:
        found = diff(checkpoint[0], checkpoint[1], base, **more, **watch)
    _told(found, form, tensors=tensors)
    if plot is not None:
        from plait.plot_diff import plot_diff

        plot_diff(found, plot)
    if html is not None:
        from plait.diff_page import write_page

        write_page(found, html)


def _refuse(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value:
            raise click.UsageError(f"{name} {why}")


def _one(checkpoint: str, form: str, *, tensors: bool, quiet: bool, scan: bool, **more: Any) -> None:
    from plait.inspection import inspect as look

    if scan:
        with _watched(quiet) as watch:
            found = look(checkpoint, scan=True, **more, **watch)
    else:
        found = look(checkpoint)
    if form == "json":
        click.echo(found.to_json(tensors=tensors))
        return
    from plait.show_inspect import show_inspection

    show_inspection(found, tensors=tensors)


def _told(found: Diff, form: str, *, tensors: bool) -> None:
    if form == "json":
        click.echo(found.to_json())
        return
    from plait.show_diff import show_diff

    show_diff(found, tensors=tensors)


@contextmanager
def _watched(quiet: bool) -> Iterator[dict[str, Any]]:
    """Arguments of a run that Ctrl-C stops and a terminal watches."""
    from plait.stopping import stopped_by_signals

    with stopped_by_signals() as stop:
        if quiet or not sys.stderr.isatty():  # nobody looks at a bar, so it is not even imported
            yield {"stop": stop}
            return
        from rich.console import Console

        from plait.live import LiveView

        with LiveView(Console(stderr=True, highlight=False)) as view:
            yield {"stop": stop, "events": view}
