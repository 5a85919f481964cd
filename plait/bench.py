"""`plait bench`: measure this machine, every method, the memory of a merge over a grid of budgets, and its time beside other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plait.bench_methods import methods
from plait.bench_options import DEBUG, FOLDER, FORMAT, PLOT, progress
from plait.bench_peers import peers
from plait.ops.errors import BudgetTooSmall, KernelError, OutputError, PlaitError
from plait.plots import check_picture, draw_machine, draw_memory

if TYPE_CHECKING:
    from plait.measuring import MemoryRun
    from plait.planner.rates import Rates

_MACHINE_EXAMPLES = """
\b
Examples:
  plait bench machine                       in the current folder
  plait bench machine --folder /data/out    where merges will be written
  plait bench machine --format json --no-save
  plait bench machine --whole --plot machine.svg
"""
_MEMORY_EXAMPLES = """
\b
Examples:
  plait bench memory recipe.yml
  plait bench memory recipe.yml --budgets 128MiB,1GiB,8GiB --plot memory.png
  plait bench memory recipe.yml --folder /data --format json
"""


@click.group()
def bench() -> None:
    """Measure this machine, and what merges really take on it."""


bench.add_command(methods)
bench.add_command(peers)


@bench.command(epilog=_MACHINE_EXAMPLES)
@click.option("--folder", type=FOLDER, default=Path("."), show_default=True, help="Measure the disk under this folder: the one that outputs go to.")
@click.option("--format", "form", type=FORMAT, default="table", show_default=True, help="A table to read, or data.")
@click.option("--save/--no-save", default=True, show_default=True, help="Keep the figures for `plait plan`.")
@click.option("--whole", is_flag=True, help="Measure products of matrices, too, for methods with polar factors; imports torch.")
@PLOT
@DEBUG
def machine(folder: Path, form: str, save: bool, whole: bool, plot: Path | None, debug: bool) -> None:
    """Measure how fast this machine reads, computes and writes.

    Takes about six seconds, the first time twice as long; what is written (some 200 MiB) is removed. `plait plan` predicts the
    time of merges with these figures.
    """
    from plait.engine.calibrate import measure_rates
    from plait.engine.ratefile import describe_machine, save_rates
    from plait.planner.rates import DEFAULT_RATES

    check_picture(plot)
    with progress() as tell:
        rates = measure_rates(folder, whole=whole, tell=lambda what: tell(f"measuring: {what}"))
    kept = None
    if save:
        try:
            kept = save_rates(rates)
        except OSError as error:
            raise OutputError(f"the figures cannot be stored ({error}); set PLAIT_CACHE_DIR to a folder you may write to, or give --no-save") from error
    if plot is not None:
        facts = describe_machine()
        draw_machine(f"{facts['cpu']}, {facts['cores']} cores", _WORDS, rates, DEFAULT_RATES, plot)
        click.echo(f"drawn in {plot}", err=True)
    if form == "json":
        click.echo(json.dumps({"machine": describe_machine(), "rates": asdict(rates), "stored": str(kept) if kept else None}, indent=1))
        return
    _show_rates(describe_machine(), rates, whole)
    if kept:
        click.echo(f"stored in {kept}")


def _show_rates(facts: dict[str, Any], rates: Rates, whole: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from plait.planner.rates import DEFAULT_RATES

    table = Table(box=None, pad_edge=False, title=f"{facts['cpu']}, {facts['cores']} cores", title_justify="left")
    for heading in ("what", "here", "default"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=heading != "what")
    for name, words in _WORDS.items():
        here = _rate(name, getattr(rates, name)) if whole or name != "whole_flops_s" else "default"
        table.add_row(words, here, _rate(name, getattr(DEFAULT_RATES, name)))
    Console(highlight=False).print(table)


_WORDS = {
    "read_bytes_s": "reading from the page cache, all cores",
    "read_thread_bytes_s": "reading from the page cache, one thread",
    "fill_bytes_s": "reading into large memory",
    "cold_read_bytes_s": "reading from the disk",
    "memory_bytes_s": "reading memory, all cores",
    "fault_bytes_s": "touching fresh memory",
    "write_bytes_s": "writing output to the disk",
    "copy_bytes_s": "copying inside the kernel",
    "sync_bytes_s": "flushing copies to the disk",
    "load_ns": "loading an element",
    "map_ns": "one operation on an element",
    "store_ns": "storing an element",
    "fold_ns": "adding an element up",
    "random_ns": "random bits of an element",
    "count_ns": "counting an element for a threshold",
    "rank_ns": "ranking an element in its row",
    "start_s": "starting",
    "component_s": "each output tensor",
    "unit_s": "each block",
    "kernel_load_s": "loading a compiled kernel",
    "compiler_start_s": "starting the compiler",
    "compile_s": "compiling a kernel",
    "whole_flops_s": "products of matrices (float64)",
}


def _rate(name: str, value: float) -> str:
    if name.endswith("bytes_s"):
        return f"{value / 1e9:.2f} GB/s"
    if name.endswith("flops_s"):
        return f"{value / 1e9:.0f} Gflop/s"
    if name.endswith("_ns"):
        return f"{value:.3f} ns"
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.3f} ms"


@bench.command(epilog=_MEMORY_EXAMPLES)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--budgets", default="64MiB,128MiB,256MiB,512MiB,1GiB,4GiB", show_default=True, metavar="SIZES", help="Budgets to try, with commas.")
@click.option("--folder", type=FOLDER, default=Path("."), show_default=True, help="Outputs go into a temporary folder here, one after another.")
@click.option("--workers", "-j", type=int, metavar="N", help="Worker threads. Default: the cores this process may use.")
@click.option("--format", "form", type=FORMAT, default="table", show_default=True, help="A table to read, or data.")
@PLOT
@click.option("--warm-up/--no-warm-up", default=True, show_default=True, help="First merge once unmeasured: compiles kernels, fills the page cache.")
@DEBUG
def memory(recipe: Path, budgets: str, folder: Path, workers: int | None, form: str, plot: Path | None, warm_up: bool, debug: bool) -> None:
    """Merge RECIPE in several budgets and compare memory and time with what the plan predicts.

    Each merge runs in a process of its own; its private memory is sampled, and what its imports take alone is subtracted. Ends
    with status 1 when a peak is above its prediction or its budget.
    """
    check_picture(plot)
    more = ["--workers", str(workers)] if workers is not None else []
    with progress() as tell:
        runs, baseline = _memory_runs(recipe, folder, [b.strip() for b in budgets.split(",") if b.strip()], workers, more, warm_up, tell)
    if form == "json":
        click.echo(json.dumps({"recipe": str(recipe), "imports_bytes": baseline, "runs": [run.to_dict() for run in runs]}, indent=1))
    else:
        _show_runs(runs, baseline)
    if plot is not None:
        draw_memory(recipe.name, runs, plot)
        click.echo(f"drawn in {plot}", err=True)
    if not all(run.within for run in runs):
        raise KernelError("a merge took more private memory than predicted; please report it with the recipe and these figures")


def _memory_runs(
    recipe: Path, folder: Path, budgets: Sequence[str], workers: int | None, more: Sequence[str], warm_up: bool, tell: Any
) -> tuple[list[MemoryRun], int]:
    """All merges, and the private memory of the imports alone."""
    from plait.api import Options, checked_size, plan
    from plait.measuring import MemoryRun, import_bytes, merge_measured

    if not budgets:
        raise PlaitError("no budgets given; write for example --budgets 128MiB,1GiB")
    sizes = {budget: checked_size(budget, "budgets") for budget in budgets}
    plans = {}
    for budget in budgets:
        try:
            plans[budget] = plan(recipe, Options(memory=budget, workers=workers)).prediction
        except BudgetTooSmall:
            continue
    if warm_up and plans:
        tell("warming up")
        merge_measured(recipe, folder, next(reversed(plans)), more)
    runs, baseline = [], 0
    for budget, nbytes in sizes.items():
        p = plans.get(budget)
        if p is None:
            runs.append(MemoryRun(budget, nbytes, refused=True))
            continue
        tell(f"merging at --memory {budget}")
        found = merge_measured(recipe, folder, budget, more)
        baseline = baseline or import_bytes(found.modules)
        peak = max(0, found.peak_bytes - baseline)
        runs.append(MemoryRun(budget, nbytes, False, p.peak_bytes, peak, p.seconds, found.wall_s, p.bytes_read, p.passes))
    return runs, baseline


def _show_runs(runs: Sequence[MemoryRun], baseline: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from plait.planner.explain import duration
    from plait.planner.sizes import size

    table = Table(box=None, pad_edge=False)
    for heading in ("budget", "peak of predicted", "time of predicted", "read", "passes", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        if run.refused:
            table.add_row(run.budget, *[""] * 4, "too small")
            continue
        peak = f"{size(run.peak_bytes)} of {size(run.predicted_peak_bytes)}"
        time = f"{duration(run.seconds)} of {duration(run.predicted_seconds)}"
        table.add_row(run.budget, peak, time, size(run.bytes_read), str(run.passes), "" if run.within else "over")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"private memory above the {size(baseline)} that the imports take; seconds of the whole command", style="dim")
