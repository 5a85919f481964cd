"""`plait bench methods`: time, memory, passes and bytes of methods on given shapes."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plait.bench_options import DEBUG, FOLDER, FORMAT, PLOT, progress
from plait.ops.errors import KernelError, PlaitError

if TYPE_CHECKING:
    from plait.method_runs import MethodRun, Models

_PRESETS = ("tiny", "0.1b", "1.1b", "70b-width-1layer", "70b-width-layer-alone", "70b", "moe-1layer", "moe-100k")
_EXAMPLES = """
\b
Examples:
  plait bench methods                                  all, on 0.1 billion made-up parameters
  plait bench methods --methods ties,dare_ties,iso_c   some
  plait bench methods --on models/base                 your shapes; experts: the model and noise
  plait bench methods --on models/base --expert models/math --expert models/code
  plait bench methods --shapes 1.1b --memory 256MiB --limit 60 --plot methods.png
"""


@click.command(epilog=_EXAMPLES)
@click.option("--on", "model", type=click.Path(path_type=Path), metavar="MODEL", help="Base model: a checkpoint of yours. Default: a made-up one.")
@click.option("--expert", "given", type=click.Path(path_type=Path), multiple=True, metavar="MODEL", help="With --on, an expert of yours. May be repeated.")
@click.option("--shapes", type=click.Choice(_PRESETS), help="Make up base and experts of these shapes, seeded and normal. Default: 0.1b.")
@click.option("--methods", "names", default="", metavar="NAMES", help="Methods and steps, with commas. Default: all.")
@click.option("--experts", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Experts to make up.")
@click.option("--memory", "-m", metavar="SIZE", help="Budget of each merge. Default: 128MiB, or half of the free memory where that is too small.")
@click.option("--workers", "-j", type=int, metavar="N", help="Worker threads. Default: the cores this process may use.")
@click.option("--folder", type=FOLDER, default=Path("."), show_default=True, help="Models and outputs go into a temporary folder here, which is removed.")
@click.option("--limit", "limit_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop a merge after this time.")
@click.option("--warm-up/--no-warm-up", default=True, show_default=True, help="First compile kernels and read the inputs once, apart from the merge.")
@click.option("--through", default="", metavar="COMMAND", help="Put before each measured command, such as 'taskset -c 0' or 'nice'.")
@click.option("--format", "form", type=FORMAT, default="table", show_default=True, help="A table to read, or data.")
@PLOT
@DEBUG
def methods(
    model: Path | None,
    given: Sequence[Path],
    shapes: str | None,
    names: str,
    experts: int,
    memory: str | None,
    workers: int | None,
    folder: Path,
    limit_s: float | None,
    warm_up: bool,
    through: str,
    form: str,
    plot: Path | None,
    debug: bool,
) -> None:
    """Merge the same models with every method, and compare time and memory with what the plans predict.

    Parameters are those of the example that `plait methods NAME` shows. Statistics that a method needs (importance, sensitivity) are
    made up. Each merge is a process of its own; a method that cannot run says why, and the others go on. Ends with status 1 when a
    peak is above its prediction or its budget.
    """
    from plait.api import checked_size
    from plait.method_runs import Settings, chosen, run_methods
    from plait.plots import check_picture, draw_methods

    if model is not None and shapes is not None:
        raise PlaitError("--on and --shapes exclude each other: models of yours, or made-up ones")
    if given and model is None:
        raise PlaitError("--expert goes with --on, the base model that it was fine-tuned from")
    wanted = chosen([name.strip() for name in names.split(",") if name.strip()])
    if memory is not None:
        checked_size(memory, "memory")
    check_picture(plot)
    settings = Settings(memory, workers, limit_s, warm_up, tuple(shlex.split(through)))
    with progress() as tell, tempfile.TemporaryDirectory(prefix=".plait-bench-", dir=folder.resolve()) as scratch:
        models = models_for(model, given, shapes or "0.1b", experts, Path(scratch), tell)
        title = f"{model or shapes or '0.1b'} and {len(models.experts)} expert{'s' if len(models.experts) != 1 else ''}"
        runs = list(run_methods(wanted, models, Path(scratch), settings, tell))
    if form == "json":
        click.echo(json.dumps({"models": title, "runs": [run.to_dict() for run in runs]}, indent=1))
    else:
        show_runs(title, runs)
    if plot is not None:
        draw_methods(f"{title}: time and memory of each method", runs, plot)
        click.echo(f"drawn in {plot}", err=True)
    if over := [run.method for run in runs if not run.within]:
        raise KernelError(f"{', '.join(over)} took more private memory than predicted; please report it with these figures")


def models_for(model: Path | None, given: Sequence[Path], shapes: str, experts: int, scratch: Path, tell: Callable[[str], None]) -> Models:
    """The models to merge; those that are made up lie in `scratch`.

    Raises:
        CheckpointError: a model cannot be opened.
        OutputError: there is no room for those that are made up.
    """
    from plait.method_runs import Models, need_space
    from plait.synthetic import ITEM_BYTES, PRESETS, make_set, open_base, write_like

    if model is None:
        need_space(scratch, PRESETS[shapes].numel * ITEM_BYTES["BF16"] * (experts + 2), f"{experts + 1} models of {shapes} and an output")
        tell(f"making up {experts + 1} models of {shapes}")
        base, *made = make_set(scratch / "models", PRESETS[shapes], experts)
        return Models(base, made, scratch)
    base_model = open_base(model)
    folder = Path(base_model.path)
    if given:
        return Models(folder, [Path(open_base(path).path) for path in given], scratch)
    need_space(scratch, (experts + 1) * sum(f.size for f in base_model.files), f"{experts} experts and an output")
    made = []
    for number in range(1, experts + 1):
        tell(f"making up expert {number} of {experts}")
        made.append(write_like(base_model, scratch / f"expert{number}", number))
    return Models(folder, made, scratch)


def show_runs(title: str, runs: Sequence[MethodRun]) -> None:
    """The table, and below it why methods did not run."""
    from rich.console import Console
    from rich.table import Table

    from plait.planner.explain import duration
    from plait.planner.sizes import size

    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("method", "time", "predicted", "peak", "predicted", "passes", "read", ""):
        table.add_column(heading, justify="left" if heading in ("method", "") else "right", no_wrap=True)
    for run in runs:
        if run.state == "ran":
            peaks = (size(run.peak_bytes), size(run.predicted_peak_bytes))
            table.add_row(
                run.method,
                duration(run.seconds),
                duration(run.predicted_seconds),
                *peaks,
                str(run.passes),
                size(run.read_bytes),
                "" if run.within else "over",
            )
        else:
            table.add_row(run.method, run.state)
    console = Console(highlight=False)
    console.print(table)
    for run in runs:
        if run.why:
            console.print(f"{run.method}: {run.why}", markup=False, soft_wrap=True)
    made_up = [run.method for run in runs if run.made_up and run.state == "ran"]
    if made_up:
        console.print(f"made-up statistics: {', '.join(made_up)}", style="dim")
    streamed = [run.private_bytes for run in runs if run.state == "ran" and run.streams]
    if streamed:
        console.print(f"streamed methods took {size(max(streamed))} of private memory at most, imports included", style="dim")
    console.print("peak: private memory above that of the imports; time of the whole command", style="dim")
