"""`plait merge`, and what looks after its output: `plait status` and `plait verify`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plait.cli_options import RECIPE_FORM, cache_options, machine_options, optimisation_options, options_of
from plait.planner.header_text import printable

if TYPE_CHECKING:
    from plait.engine.events import Events

_MERGE_EXAMPLES = """
\b
Examples:
  plait merge recipe.yml out --memory 4GiB --workers 8
  plait merge recipe.yml out                 again after a crash: goes on
  plait merge recipe.yml out --restart       begins anew instead
  plait merge recipe.yml out --overwrite     replaces out in the end
  plait merge recipe.yml out --allow-nonfinite   merge a model that holds NaN
  plait merge recipe.yml out --cache results --cache-size 50GiB
  plait merge recipe.yml out --log-json - 2>events.jsonl   events for machines
  plait merge recipe.yml out --trace trace.json   open it in ui.perfetto.dev
  plait report out                           afterwards: promised and measured
"""
_STATUS_EXAMPLES = """
\b
Examples:
  plait status out                  nothing, running, interrupted at N of M bytes, or whole
  plait status out --format json    the same as data
"""
_VERIFY_EXAMPLES = """
\b
Examples:
  plait verify out                                   read every byte again and compare with the checksums of its manifest
  plait verify out --against recipe.yml              compute a sample of blocks again from the inputs and compare the bits
  plait verify out --against recipe.yml --blocks 100 --seed 7
"""


@click.command(epilog=_MERGE_EXAMPLES + RECIPE_FORM)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@machine_options
@cache_options
@optimisation_options
@click.option("--restart", is_flag=True, help="Begin anew: drop what an interrupted run has finished, instead of continuing it.")
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint at OUT; it stays until the new one is whole.")
@click.option("--allow-nonfinite", is_flag=True, help="Merge models that hold infinity or NaN, and write such values; they are counted and listed.")
@click.option("--log-json", metavar="FILE", help="Write what happens as one JSON object a line; `-` for standard error, which then has nothing else.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Write a Chrome/Perfetto trace of threads, tensors and memory.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing unless something is wrong.")
def merge(recipe: Path, out: Path, quiet: bool, log_json: str | None, trace: Path | None, **machine: Any) -> None:
    """Merge as RECIPE says into the new folder OUT.

    OUT appears whole, at the end, or not at all; it must not exist or be empty, unless --overwrite replaces a checkpoint. The
    result is the same for every budget and number of workers.

    A run that is interrupted, killed or fails keeps what it has finished, and the same command continues it: with other
    --memory, --workers or --device too, but not with another recipe or changed inputs. `plait status OUT` says what is there.

    On a terminal a few lines show how far it is; elsewhere a line every ten seconds does. OUT/report.json keeps what was
    promised and what was measured, and `plait report OUT` shows it.
    """
    from plait.api import merge as run
    from plait.stopping import stopped_by_signals

    options = options_of(machine)
    quiet = quiet or log_json == "-"
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        log = None
        if log_json is not None:
            from plait.logging_json import JsonLines

            log = stack.enter_context(JsonLines(log_json))
        report = run(recipe, out, options, events=None if quiet else _shown(stack), on_event=log, trace=trace, stop=stop)
    if not quiet:
        from plait.outcome import sentences

        click.echo("\n".join([*sentences(out, report), *([printable(log.trouble)] if log is not None and log.trouble else [])]), err=True)


def _shown(stack: ExitStack) -> Events:
    """What shows the run: a live view on a terminal; nothing of that is imported where nobody looks."""
    if not sys.stderr.isatty():
        from plait.following import PlainLines

        return PlainLines(sys.stderr)
    from rich.console import Console

    from plait.live import LiveView

    return stack.enter_context(LiveView(Console(stderr=True, highlight=False)))


@click.command(epilog=_STATUS_EXAMPLES)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Sentences to read, or data.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def status(out: Path, form: str, debug: bool) -> None:
    """Say what lies at OUT: nothing, a running merge, an interrupted one, or a whole output.

    Of an interrupted merge it says how much is done, from which recipe, and how to go on.
    """
    from plait.keeping import status as look

    found = look(out)
    click.echo(json.dumps(found.to_dict(), indent=1) if form == "json" else "\n".join(map(printable, found.sentences())))


@click.command(epilog=_VERIFY_EXAMPLES)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="RECIPE", help="Compute a sample of blocks again from the inputs.")
@click.option("--blocks", type=click.IntRange(1), default=32, show_default=True, help="How many blocks --against computes, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Choice of the sample of --against.")
@machine_options
def verify(out: Path, against: Path | None, blocks: int, seed: int, **machine: Any) -> None:
    """Check that OUT is what was written: every byte, against the checksums in its plait.json.

    With --against RECIPE a sample of its blocks is computed again from the inputs instead, and the bits are compared. Exit
    status 1 says that something differs.
    """
    from rich.console import Console

    from plait.keeping import verify as check
    from plait.planner.sizes import size
    from plait.progress import ByteBar

    options = options_of(machine)
    with ByteBar(Console(stderr=True, highlight=False), f"verify {printable(out.name)}") as bar:
        found = check(out, against, options=options, blocks=blocks, seed=seed, started=bar.begin, progress=bar.advance)
    where = printable(str(out))
    if against is not None:
        click.echo(f"{where}: {found.blocks} blocks computed again from the inputs have the same bits")
        return
    click.echo(f"{where}: {found.tensors} tensors of {size(found.nbytes)} and {found.files} other files are what was written")
    if found.foreign:
        told = ", ".join(map(printable, found.foreign[:5])) + (", ..." if len(found.foreign) > 5 else "")
        click.echo(f"beside them, not of this output: {told}")
