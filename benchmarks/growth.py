"""Does the cost of a merge grow with the bytes that it moves, and its memory not at all?

    python benchmarks/growth.py                                   # some minutes; makes its own checkpoints, 11 GB at most at a time
    python benchmarks/growth.py --preset tiny --repeat 1          # seconds, to try it

Merges models of 2, 4, 8 and 16 layers with two experts, and of two layers with 2 to 16 experts, as whole processes with warm kernels and a
warm page cache, and fits a line to their seconds over the bytes that the plan says they move, all reads and the write. The line's slope,
its start (seconds at no bytes) and the share of the variance that it explains (R2) stand beside the peaks of private memory (RssAnon),
which include the imports. Sizes take turns: every one is merged once before any is merged again. Exits 1 when a line explains less than
90 % of the variance, or the peak of a model with more layers is over 1.1 times that of another. With more experts a block's inputs
take more room, so that the peak grows within the budget.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import machine
import numpy as np
from floor import warm
from make_checkpoint import PRESETS, Preset, make_set
from measure import MIB, Measured, plait, planned, run
from recipes import methods_named, text_of
from report import save, table_of

#: One layer of it has 61 million parameters.
SHAPE = Preset(hidden=2048, inter=8192, heads=16, kv_heads=4, vocab=4096, layers=1)
LEAST_R2 = 0.9
MOST_SPREAD = 1.1


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


def growth(shape: Preset, methods: list[str], what: str, counts: list[int], budget: str, repeat: int, scratch: Path) -> list[Growth]:
    """Merges ever larger models with each method, in turn, and fits lines."""
    recipes: dict[tuple[str, int], Path] = {}
    for count in counts:
        layers, experts = (count, 2) if what == "layers" else (2, count)
        folder = scratch / f"{what}-{count}"
        models = make_set(folder, replace(shape, layers=layers), experts)
        warm(models)
        for method in methods:
            recipe = recipes[method, count] = folder / f"{method}.yml"
            recipe.write_text(text_of(method, models))
    found: dict[tuple[str, int], list[Measured]] = {key: [] for key in recipes}
    for _ in range(repeat + 1):  # the first round fills the kernel cache and does not count
        for (method, count), recipe in recipes.items():
            found[method, count].append(run(plait("merge", recipe, scratch / "out", "--memory", budget, "--quiet")))
            shutil.rmtree(scratch / "out")
            os.sync()
    lines = [fitted(method, what, [point(count, recipes[method, count], budget, found[method, count][1:]) for count in counts]) for method in methods]
    for count in counts:
        shutil.rmtree(scratch / f"{what}-{count}")
    return lines


def point(count: int, recipe: Path, budget: str, runs: list[Measured]) -> Point:
    """What the runs of one size show."""
    plan = planned(recipe, budget)
    return Point(count, plan["bytes_read"] + plan["bytes_written"], round(median(r.wall_s for r in runs), 3), max(r.peak_bytes for r in runs))


def fitted(method: str, what: str, points: list[Point]) -> Growth:
    """The least-squares line of seconds over bytes, and how well it fits."""
    gigabytes, seconds = np.array([p.bytes_moved / 1e9 for p in points]), np.array([p.wall_s for p in points])
    slope, start = np.polyfit(gigabytes, seconds, 1)
    spread = float(np.square(seconds - seconds.mean()).sum())
    r2 = 1 - float(np.square(seconds - slope * gigabytes - start).sum()) / spread if spread else 1.0
    peaks = [p.peak for p in points]
    return Growth(method, what, tuple(points), round(float(slope), 3), round(float(start), 3), round(r2, 4), round(max(peaks) / max(1, min(peaks)), 3))


def broken(found: list[Growth]) -> list[str]:
    """What does not grow as it should, as sentences."""
    out = [f"{g.method}: {g.what} explain only {g.r2:.3f} of the variance of the seconds" for g in found if g.r2 < LEAST_R2]
    out += [
        f"{g.method}: the largest peak over {g.what} is {g.memory_spread:.2f} times the smallest"
        for g in found
        if g.what == "layers" and g.memory_spread > MOST_SPREAD
    ]
    return out


def shown(found: list[Growth]) -> list[list[str]]:
    """The points as rows of a table, each line's figures beside its first."""
    rows = []
    for g in found:
        line = [f"{g.slope_s_per_gb:.2f}", f"{g.start_s:.2f}", f"{g.r2:.3f}", f"{g.memory_spread:.2f}"]
        for number, p in enumerate(g.points):
            figures = [str(p.count), f"{p.bytes_moved / 1e9:.2f}", f"{p.wall_s:.2f}", f"{p.peak / MIB:.1f}"]
            rows.append([f"{g.method}, {g.what}", "", *figures, *(line if not number else [""] * 4)])
    return rows


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gigabytes do not stay behind
    counts = [int(n) for n in args.counts.split(",")]
    found: list[Growth] = []
    shape = PRESETS[args.preset] if args.preset else SHAPE
    with tempfile.TemporaryDirectory(prefix="growth-", dir=args.scratch) as name:
        for what in ("layers", "experts"):
            found += growth(shape, methods_named(args.methods), what, counts, args.memory, args.repeat, Path(name))
        facts = machine.describe(Path(name))
    failures = broken(found)
    headings = ["growing", "", "count", "GB moved", "wall s", "private MiB", "s/GB", "start s", "R2", "peaks, largest/smallest"]
    notes = [machine.line(facts), *(failures or ["seconds follow the bytes, and memory does not follow the layers"])]
    table = table_of(f"growth at --memory {args.memory}, median of {args.repeat}", headings, shown(found), notes)
    sizes = {name: getattr(shape, name) for name in ("hidden", "inter", "heads", "kv_heads", "vocab")}
    data = {"memory": args.memory, "repeat": args.repeat, "page_cache": "warm", "machine": facts, "shape_of_a_layer": sizes}
    save(args.name, {**data, "growth": [asdict(g) for g in found], "notes": failures}, table, args.results)
    sys.exit(bool(failures))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="linear,ties", help="with commas; default: %(default)s")
    parser.add_argument("--preset", choices=PRESETS, help="layers of this preset's shape (default: such as this benchmark is about)")
    parser.add_argument("--counts", default="2,4,8,16", help="layers, and experts, with commas; default: %(default)s")
    parser.add_argument("--memory", default="128MiB", help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each size; default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints and outputs (default: the system's)")
    parser.add_argument("--name", default="growth", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
