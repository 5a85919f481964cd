"""Is the predicted peak ever exceeded, how far off is it, and does cost grow with the bytes alone?

    python benchmarks/grid.py                                   # some minutes; makes its own checkpoints, 3 GB at most at a time
    python benchmarks/grid.py --preset tiny --no-growth         # seconds, to try it
    python benchmarks/grid.py --set /data/tl --methods ties --budgets 128MiB --no-growth

It measures the machine's rates first (`plait bench machine`). For every budget, method and shape it compares what `plait plan` predicts
with the private memory (RssAnon, sampled) of a merge in a process of its own, less that of a process which imports the same modules, and
with the seconds that this process takes; with warm kernels, and with an empty kernel cache, where compiling counts too. Budgets that a
plan refuses are listed as refused. Then it merges models of 2, 4, 8 and 16 layers, and 2 to 16 experts, and fits seconds to bytes moved.
Exits 1 when a measured peak is over its prediction or its budget.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
from floor import warm
from make_checkpoint import PRESETS, Preset, make_set
from measure import MIB, CommandFailed, import_baseline, plait, planned, run
from recipes import METHODS, methods_named, models_in, text_of
from report import save, table_of

COUNTS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Mid(Preset):
    """Four square tensors and little else."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, in model order."""
        return {f"model.layers.{i}.mlp.up_proj.weight": (self.hidden, self.inter) for i in range(self.layers)}


SHAPES: dict[str, Preset] = {"tiny": PRESETS["tiny"], "4x4096x4096": Mid(4096, 4096, 32, 8, 0, 4)}
#: One layer of it has 25 million parameters.
GROWING = {"hidden": 1536, "inter": 4096, "heads": 16, "kv_heads": 4, "vocab": 4096}


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
    def verdict(self) -> str:
        """`ok`, `refused`, or what the peak is over."""
        if self.refused:
            return "refused"
        over = [word for word, limit in (("prediction", self.predicted), ("budget", self.limit)) if self.used > limit]
        return "over " + " and ".join(over) if over else "ok"


@dataclass(frozen=True)
class Point:
    """One merge of a growing model: what it moves, and medians."""

    count: int
    bytes_moved: int
    wall_s: float
    peak: int


@dataclass(frozen=True)
class Growth:
    """How seconds and memory follow the bytes moved.

    Attributes:
        what: `layers` or `experts`.
        slope_s_per_gb: seconds for a further 10^9 bytes.
        start_s: seconds at no bytes at all.
        r2: share of the variance of the seconds that the line explains.
        memory_spread: largest peak over the smallest.
    """

    method: str
    what: str
    points: tuple[Point, ...]
    slope_s_per_gb: float
    start_s: float
    r2: float
    memory_spread: float


def calibrated(scratch: Path) -> dict[str, Any]:
    """Measures the machine in the folder that merges will write to; plans of this process's children use it from here on."""
    os.environ["PLAIT_CACHE_DIR"] = str(scratch / "calibration")
    run(plait("bench", "machine", "--folder", scratch))
    found: dict[str, Any] = json.loads((scratch / "calibration" / "machine.json").read_text())["rates"]
    return found


def cells(shape: str, models: list[Path], methods: list[str], budgets: list[str], scratch: Path, *, cold: bool) -> Iterator[Cell]:
    """All cells of one shape."""
    out = scratch / "out"
    tiny = make_set(scratch / "imports", PRESETS["tiny"], len(models) - 1)
    for method in methods:
        recipe, small = scratch / f"{method}.yml", scratch / f"imports-{method}.yml"
        recipe.write_text(text_of(method, models))
        small.write_text(text_of(method, tiny))
        baseline = import_baseline(small, out, "4GiB")
        shutil.rmtree(out)
        warmed = False
        for budget in budgets:
            try:
                plan = planned(recipe, budget)
            except CommandFailed as refusal:
                if refusal.status != 2 or "too small" not in refusal.output:
                    raise
                yield Cell(shape, method, budget, "", refused=True)
                continue
            command = plait("merge", recipe, out, "--memory", budget, "--quiet")
            for kernels in ("cold", "warm") if cold else ("warm",):
                cache = scratch / f"kernels-{method}" / (budget if kernels == "cold" else "warm")
                if kernels == "warm" and not warmed:
                    run(command, environment={"PLAIT_CACHE_DIR": str(cache)})
                    shutil.rmtree(out)
                    warmed = True
                found = run(command, environment={"PLAIT_CACHE_DIR": str(cache)}, every_s=0.002)
                shutil.rmtree(out)
                wall, timing = round(found.wall_s, 3), plan["timing"]
                expected = round(timing["seconds"] + (timing["first_run_s"] if kernels == "cold" else 0.0), 3)
                memory = (plan["predicted_peak_bytes"], plan["budget_bytes"], baseline, found.peak_bytes)
                yield Cell(shape, method, budget, kernels, False, *memory, wall, expected)


def growth(methods: list[str], what: str, budget: str, repeat: int, scratch: Path) -> list[Growth]:
    """Merges ever larger models with each method and fits lines."""
    points: dict[str, list[Point]] = {method: [] for method in methods}
    for count in COUNTS:
        layers, experts = (count, 2) if what == "layers" else (2, count)
        folder = scratch / f"grow-{what}-{count}"
        models = make_set(folder, Preset(**GROWING, layers=layers), experts)
        warm(models)
        for method in methods:
            recipe = folder / f"{method}.yml"
            recipe.write_text(text_of(method, models))
            points[method].append(point(count, recipe, folder / "out", budget, repeat))
        shutil.rmtree(folder)
    return [fitted(method, what, found) for method, found in points.items()]


def point(count: int, recipe: Path, out: Path, budget: str, repeat: int) -> Point:
    """One merge, several times; the first run fills the kernel cache and does not count."""
    plan = planned(recipe, budget)
    found = []
    for _ in range(repeat + 1):
        found.append(run(plait("merge", recipe, out, "--memory", budget, "--quiet")))
        shutil.rmtree(out)
        os.sync()
    moved = plan["bytes_read"] + plan["bytes_written"]
    return Point(count, moved, round(median(f.wall_s for f in found[1:]), 3), max(f.peak_bytes for f in found[1:]))


def fitted(method: str, what: str, points: list[Point]) -> Growth:
    """The least-squares line of seconds over bytes, and how well it fits."""
    gigabytes, seconds = np.array([p.bytes_moved / 1e9 for p in points]), np.array([p.wall_s for p in points])
    slope, start = np.polyfit(gigabytes, seconds, 1)
    spread = float(np.square(seconds - seconds.mean()).sum())
    r2 = 1 - float(np.square(seconds - slope * gigabytes - start).sum()) / spread if spread else 1.0
    peaks = [p.peak for p in points]
    return Growth(method, what, tuple(points), round(float(slope), 3), round(float(start), 3), round(r2, 4), round(max(peaks) / max(1, min(peaks)), 3))


def shown(found: list[Cell]) -> list[list[str]]:
    """The grid as rows of a table."""
    rows = []
    for c in found:
        figures = [c.predicted / MIB, c.used / MIB, c.baseline / MIB]
        times = [f"{c.predicted_s:.2f}", f"{c.wall_s:.2f}", f"{c.time_ratio:.2f}"]
        texts = [""] * 7 if c.refused else [*(f"{f:.1f}" for f in figures), f"{c.predicted / max(c.used, 1):.2f}", *times]
        rows.append([c.method, c.shape, c.budget, c.kernels, *texts, c.verdict])
    return rows


def shown_growth(found: list[Growth]) -> list[list[str]]:
    """The growth as rows of a table."""
    return [
        [g.method, g.what, str(p.count), f"{p.bytes_moved / 1e9:.2f}", f"{p.wall_s:.2f}", f"{p.peak / MIB:.0f}", *line]
        for g in found
        for p, line in zip(g.points, [[f"{g.slope_s_per_gb:.2f}", f"{g.start_s:.2f}", f"{g.r2:.3f}"], *[["", "", ""]] * (len(g.points) - 1)], strict=True)
    ]


def main() -> None:
    args = arguments()
    methods = methods_named(args.methods)
    found: list[Cell] = []
    grown: list[Growth] = []
    with tempfile.TemporaryDirectory(prefix="grid-", dir=args.scratch) as name:
        scratch = Path(name)
        rates = calibrated(scratch)
        sets = {args.set.name: models_in(args.set)} if args.set else {p: make_set(scratch / p, SHAPES[p], 3) for p in args.preset or SHAPES}
        for shape, models in sets.items():
            (scratch / f"work-{shape}").mkdir()
            for cell in cells(shape, models, methods, args.budgets.split(","), scratch / f"work-{shape}", cold=not args.no_cold):
                print(
                    f"{cell.shape} {cell.method} {cell.budget} {cell.kernels}: {cell.used / MIB:.1f} of {cell.predicted / MIB:.1f} MiB, {cell.verdict}",
                    flush=True,
                )
                found.append(cell)
        if not args.no_growth:
            for what in ("layers", "experts"):
                grown += growth(methods_named(args.growth_methods), what, args.growth_memory, args.repeat, scratch)
        facts = machine.describe(scratch)
    write(args, {**facts, "rates": rates}, found, grown)
    sys.exit(any(c.verdict not in ("ok", "refused") for c in found))


def write(args: argparse.Namespace, facts: dict[str, Any], found: list[Cell], grown: list[Growth]) -> None:
    """Table and JSON."""
    within = [c for c in found if c.verdict == "ok" and c.predicted <= 1.25 * c.used]
    ran = [c for c in found if not c.refused]
    notes = [f"{len([c for c in ran if c.verdict == 'ok'])} of {len(ran)} within prediction and budget; {len(within)} of them within 25 % of the prediction"]
    twice = [c for c in ran if 0.5 <= c.time_ratio <= 2.0]
    notes.append(f"{len(twice)} of {len(ran)} predicted times are within a factor of two of the measured ones")
    memory = ["predicted MiB", "measured MiB", "imports MiB", "predicted/measured"]
    headings = ["method", "shape", "budget", "kernels", *memory, "predicted s", "wall s", "predicted/wall", ""]
    text = table_of("predicted and measured peak of private memory, above that of the imports", headings, shown(found), notes)
    if grown:
        headings = ["method", "growing", "count", "GB moved", "wall s", "private MiB", "s/GB", "start s", "R2"]
        text += "\n" + table_of(f"growth at --memory {args.growth_memory}", headings, shown_growth(grown))
    data = {
        "machine": facts,
        "cells": [{**asdict(c), "used": c.used, "verdict": c.verdict} for c in found],
        "growth": json.loads(json.dumps([asdict(g) for g in grown])),
        "notes": notes,
    }
    save(args.name, data, text + machine.line(facts) + "\n", args.results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=SHAPES, help="shapes to make; default: all")
    parser.add_argument("--set", type=Path, help="use this set of checkpoints instead")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas; default: %(default)s")
    parser.add_argument("--budgets", default="64MiB,128MiB,256MiB,1GiB", help="with commas; default: %(default)s")
    parser.add_argument("--no-cold", action="store_true", help="leave out the runs with an empty kernel cache")
    parser.add_argument("--no-growth", action="store_true", help="leave out the growing models")
    parser.add_argument("--growth-methods", default="linear,ties")
    parser.add_argument("--growth-memory", default="128MiB")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each growing model; default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints and outputs (default: the system's)")
    parser.add_argument("--name", default="grid", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
