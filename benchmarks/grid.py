"""Is the predicted peak ever exceeded, and how far off are predicted peak and time?

    python benchmarks/grid.py                                   # some minutes; makes its own checkpoints, 3 GB at most at a time
    python benchmarks/grid.py --preset tiny                     # seconds, to try it
    python benchmarks/grid.py --set /data/tl --methods ties --budgets 128MiB

It measures the machine's rates first (`plait bench machine --whole`). For every budget, method and shape it compares what `plait plan` predicts
with the private memory (RssAnon, sampled) of a merge in a process of its own, less that of a process which imports the same modules, and
with the seconds that this process takes; with warm kernels, and with an empty kernel cache, where compiling counts too. Budgets that a
plan refuses are listed as refused. With matplotlib it is drawn, too. Exits 1 when a measured peak is over its prediction or its budget.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import machine
from make_checkpoint import PRESETS, Preset, make_set
from measure import MIB, CommandFailed, calibrated, import_baseline, plait, planned
from recipes import PROMISED, methods_named, models_in, text_of
from report import RESULTS, save, table_of

from plait.watching import Command, watch_each


@dataclass(frozen=True)
class Mid(Preset):
    """Four square tensors and little else."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, in model order."""
        return {f"model.layers.{i}.mlp.up_proj.weight": (self.hidden, self.inter) for i in range(self.layers)}


SHAPES: dict[str, Preset] = {"tiny": PRESETS["tiny"], "4x4096x4096": Mid(4096, 4096, 32, 8, 0, 4)}


@dataclass(frozen=True)
class Cell:
    """One merge of the grid; sizes in bytes, and none of them for a budget that the plan refuses."""

    shape: str
    method: str
    budget: str
    kernels: str
    refused: bool = False
    predicted: int = 0
    limit: int = 0
    baseline: int = 0
    peak: int = 0
    wall_s: float = 0.0
    predicted_s: float = 0.0

    @property
    def time_ratio(self) -> float:
        """Predicted over measured seconds."""
        return self.predicted_s / max(self.wall_s, 1e-9)

    @property
    def used(self) -> int:
        """Peak private memory beyond that of the imports alone."""
        return self.peak - self.baseline

    @property
    def whole_ratio(self) -> float:
        """Predicted over measured private memory of the whole process, its imports included in both."""
        return (self.predicted + self.baseline) / max(self.peak, 1)

    @property
    def verdict(self) -> str:
        """`ok`, `refused`, or what the peak is over."""
        if self.refused:
            return "refused"
        over = [word for word, limit in (("prediction", self.predicted), ("budget", self.limit)) if self.used > limit]
        return "over " + " and ".join(over) if over else "ok"


def cells(shape: str, models: list[Path], methods: list[str], budgets: list[str], scratch: Path, through: Sequence[str], *, cold: bool) -> Iterator[Cell]:
    """All cells of one shape; those of a method are measured one after another, after a merge with its kernels that does not count."""
    out = scratch / "out"
    tiny = make_set(scratch / "imports", PRESETS["tiny"], len(models) - 1)
    for method in methods:
        recipe, small = scratch / f"{method}.yml", scratch / f"imports-{method}.yml"
        recipe.write_text(text_of(method, models))
        small.write_text(text_of(method, tiny))
        baseline = import_baseline(small, out, "4GiB")
        shutil.rmtree(out)
        plans = {budget: plan for budget in budgets if (plan := planned_or_refused(recipe, budget)) is not None}
        wanted = [(budget, kernels) for budget in plans for kernels in (("cold", "warm") if cold else ("warm",))]
        commands = [merge(recipe, out, budget, scratch / f"kernels-{method}" / (budget if kernels == "cold" else "warm")) for budget, kernels in wanted]
        clear = Command(("rm", "-rf", str(out)))
        first = [merge(recipe, out, next(reversed(plans)), scratch / f"kernels-{method}" / "warm"), clear] if plans else []
        found = watch_each([*first, *(c for command in commands for c in (command, clear))], through)
        if found and found[-1].status != 0:
            raise SystemExit(f"{method} on {shape}: {found[-1].output}")
        yield from (Cell(shape, method, budget, "", refused=True) for budget in budgets if budget not in plans)
        for (budget, kernels), run_of in zip(wanted, found[2::2], strict=True):
            plan, timing = plans[budget], plans[budget]["timing"]
            expected = round(timing["seconds"] + (timing["first_run_s"] if kernels == "cold" else 0.0), 3)
            memory = (plan["predicted_peak_bytes"], plan["budget_bytes"], baseline, run_of.peak_bytes)
            yield Cell(shape, method, budget, kernels, False, *memory, round(run_of.wall_s, 3), expected)


def merge(recipe: Path, out: Path, budget: str, cache: Path) -> Command:
    """A merge with a kernel cache of its own."""
    return Command(plait("merge", recipe, out, "--memory", budget, "--quiet"), {"PLAIT_CACHE_DIR": str(cache)}, every_s=0.002)


def planned_or_refused(recipe: Path, budget: str) -> dict[str, Any] | None:
    """The plan, or None where it does not fit into the budget."""
    try:
        return planned(recipe, budget)
    except CommandFailed as refusal:
        if refusal.status != 2 or "too small" not in refusal.output:
            raise
        return None


def shown(found: list[Cell]) -> list[list[str]]:
    """The grid as rows of a table."""
    rows = []
    for c in found:
        figures = [c.predicted / MIB, c.used / MIB, c.baseline / MIB]
        times = [f"{c.predicted_s:.2f}", f"{c.wall_s:.2f}", f"{c.time_ratio:.2f}"]
        ratios = [f"{c.predicted / max(c.used, 1):.2f}", f"{c.whole_ratio:.2f}"]
        texts = [""] * 8 if c.refused else [*(f"{f:.1f}" for f in figures), *ratios, *times]
        rows.append([c.method, c.shape, c.budget, c.kernels, *texts, c.verdict])
    return rows


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that outputs of gigabytes do not stay behind
    if args.redraw:
        kept = json.loads(((args.results or RESULTS) / f"{args.name}.json").read_text())["cells"]
        names = {f.name for f in fields(Cell)}
        draw([Cell(**{k: v for k, v in cell.items() if k in names}) for cell in kept], (args.results or RESULTS) / f"{args.name}.png")
        return
    methods = methods_named(args.methods)
    found: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="grid-", dir=args.scratch) as name:
        scratch = Path(name)
        through = shlex.split(args.through)
        rates = calibrated(scratch, through)
        sets = {args.set.name: models_in(args.set)} if args.set else {p: make_set(scratch / p, SHAPES[p], 3) for p in args.preset or SHAPES}
        for shape, models in sets.items():
            (scratch / f"work-{shape}").mkdir()
            for cell in cells(shape, models, methods, args.budgets.split(","), scratch / f"work-{shape}", through, cold=not args.no_cold):
                print(
                    f"{cell.shape} {cell.method} {cell.budget} {cell.kernels}: {cell.used / MIB:.1f} of {cell.predicted / MIB:.1f} MiB, {cell.verdict}",
                    flush=True,
                )
                found.append(cell)
        facts = machine.describe(scratch)
    write(args, {**facts, "rates": rates}, found)
    sys.exit(any(c.verdict not in ("ok", "refused") for c in found))


def draw(found: list[Cell], path: Path) -> bool:
    """Predicted over measured, of every merge and by cell; False where matplotlib is missing."""
    try:
        import grid_picture
    except ModuleNotFoundError:
        return False
    grid_picture.draw(found, path)
    return True


def write(args: argparse.Namespace, facts: dict[str, Any], found: list[Cell]) -> None:
    """Table and JSON."""
    within = [c for c in found if c.verdict == "ok" and c.predicted <= 1.25 * c.used]
    ran = [c for c in found if not c.refused]
    notes = [f"{len([c for c in ran if c.verdict == 'ok'])} of {len(ran)} within prediction and budget; {len(within)} of them within 25 % of the prediction"]
    whole = [c for c in ran if c.verdict == "ok" and c.whole_ratio <= 1.25]
    notes.append(f"{len(whole)} of {len(ran)} within 25 % of the private memory of the whole process, imports included")
    twice = [c for c in ran if 0.5 <= c.time_ratio <= 2.0]
    notes.append(f"{len(twice)} of {len(ran)} predicted times are within a factor of two of the measured ones")
    memory = ["predicted MiB", "measured MiB", "imports MiB", "predicted/measured", "of whole process"]
    headings = ["method", "shape", "budget", "kernels", *memory, "predicted s", "wall s", "predicted/wall", ""]
    text = table_of("predicted and measured peak of private memory, above that of the imports", headings, shown(found), notes)
    data = {
        "machine": facts,
        "cells": [{**asdict(c), "used": c.used, "verdict": c.verdict} for c in found],
        "notes": notes,
    }
    save(args.name, data, text + machine.line(facts) + "\n", args.results)
    if draw(found, (args.results or RESULTS) / f"{args.name}.png"):
        print(f"drawn: {args.name}.png")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=SHAPES, help="shapes to make; default: all")
    parser.add_argument("--set", type=Path, help="use this set of checkpoints instead")
    parser.add_argument("--methods", default=",".join((*PROMISED, "della", "iso_c")), help="with commas; default: %(default)s")
    parser.add_argument("--budgets", default="64MiB,128MiB,256MiB,1GiB", help="with commas; default: %(default)s")
    parser.add_argument("--no-cold", action="store_true", help="leave out the runs with an empty kernel cache")
    parser.add_argument("--through", default="", metavar="COMMAND", help="put before each measured series of runs, such as 'taskset -c 0,1'")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints and outputs (default: the system's)")
    parser.add_argument("--redraw", action="store_true", help="run nothing: draw the data that are there")
    parser.add_argument("--name", default="grid", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
