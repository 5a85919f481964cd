"""How fast is a merge beside the cost of moving its bytes, and beside other programs?

    python benchmarks/make_checkpoint.py 1.1b /data/tl --experts 3        # 8.8 GB, once
    python benchmarks/speed.py --set /data/tl --memory 128MiB --memory 1GiB
    python benchmarks/speed.py --set /data/tl --methods linear,ties --repeat 1 --mergekit /path/to/venv --name speed_mergekit

Each run is a whole process, its start included. Runs alternate: in every repetition each method's floors, plait under each budget, and
each peer follow one another, in an order that turns. The page cache is warm (everything is read once before) and so are compiled
kernels: each method merges once before the clock, with `--cold` in an empty kernel cache, and that first run is reported apart. The
output is removed, and dirty pages are written back, between runs and outside the time. Medians are shown.

The floor reads the same inputs as often as the plan does, writes the output and makes it durable, as `plait merge` always does
(`floor.py`). It is measured with writes past the page cache ("floor direct") and through it ("floor buffered"); the faster of the two
medians is the floor that the promises speak of. "floor (not durable)" writes through the page cache without an fsync, and is shown
beside them. Exits 1 when a promise of speed or memory is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import machine
import peers
from floor import warm, weight_bytes, writes_direct
from measure import MIB, import_baseline, plait, planned, run
from recipes import METHODS, PROMISED, methods_named, models_in, models_of, text_of
from report import save, table_of

ONE_PASS = ("linear", "task_arithmetic", "dare_linear")
PRIVATE_LIMIT = (128 * MIB, 256 * MIB)  #: budget, and most private memory of the whole process under it
FASTER = {("mergekit", "linear"): 8.0, ("mergekit", "ties"): 30.0}
SAMPLE_S = 0.02  #: between samples of memory: each takes 0.1 ms of two busy cores
TIGHT = 1.3  #: most that a tight budget may slow a merge down
#: Options of `floor.py`; the first two are durable, and the faster of them is the floor.
FLOORS = {
    "floor direct": ("--write", "direct"),
    "floor buffered": ("--write", "buffered"),
    "floor (not durable)": ("--write", "buffered", "--no-sync"),
}
DURABLE = ("floor direct", "floor buffered")


@dataclass
class Row:
    """One method run by one subject: what every run took, and what the plan says.

    Attributes:
        budget: bytes; 0 for floors and peers.
        passes: how often inputs are read at most.
        plan: predicted bytes read and written, and peak.
        first_run_s: the untimed run before, None where there is none.
    """

    method: str
    subject: str
    budget: int = 0
    passes: int = 1
    plan: dict[str, int] = field(default_factory=dict)
    first_run_s: float | None = None
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return median(self.wall_s)

    @property
    def peak(self) -> int:
        """Most private memory of any run."""
        return max(self.peak_bytes)


@dataclass
class Bench:
    """What is measured, and where."""

    models: list[Path]
    methods: list[str]
    budgets: list[str]
    peers: list[peers.Peer]
    scratch: Path
    out: Path
    cold: bool
    floors: tuple[str, ...] = tuple(FLOORS)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def recipe(self, method: str) -> Path:
        """The recipe's file."""
        path = self.scratch / f"{method}.yml"
        if not path.exists():
            path.write_text(text_of(method, self.models))
        return path

    def environment(self, method: str) -> dict[str, str]:
        """With `cold`, a kernel cache for each method that nothing has filled before."""
        return {"PLAIT_CACHE_DIR": str(self.scratch / f"kernels-{method}")} if self.cold else {}

    def clear(self) -> None:
        """Removes the last output and lets the disk come to rest."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()


def prepare(bench: Bench) -> None:
    """Plans everything, fills page cache and kernel cache."""
    warm(bench.models)
    for method in bench.methods:
        for budget in bench.budgets:
            plan = planned(bench.recipe(method), budget)
            facts = {key: plan[key] for key in ("bytes_read", "bytes_written", "predicted_peak_bytes", "workers")}
            bench.rows[method, f"plait {budget}"] = Row(method, f"plait {budget}", plan["budget_bytes"], plan["passes"], facts)
        passes = max(bench.rows[method, f"plait {b}"].passes for b in bench.budgets)
        for name, count in [(f, passes) for f in bench.floors] + [(p.name, 0) for p in bench.peers if method in p.methods]:
            bench.rows[method, name] = Row(method, name, passes=count)
        bench.clear()
        command = plait("merge", bench.recipe(method), bench.out, "--memory", bench.budgets[0], "--quiet")
        first = run(command, environment=bench.environment(method))
        bench.rows[method, f"plait {bench.budgets[0]}"].first_run_s = first.wall_s
        print(f"{method}: first run {first.wall_s:.2f} s", flush=True)
    bench.clear()


def measure(bench: Bench, row: Row) -> None:
    """One run of one row."""
    used = models_of(row.method, bench.models)
    peer = next((p for p in bench.peers if p.name == row.subject), None)
    environment: dict[str, str] = {}
    if row.subject in FLOORS:
        output = str(weight_bytes(used[:1]))
        script = str(Path(__file__).with_name("floor.py"))
        command = [sys.executable, script, *map(str, used), "--out", f"{bench.out}.bin", "--bytes", output, "--passes", str(row.passes), "--no-warm"]
        command += FLOORS[row.subject]
    elif peer is not None:
        command, environment = peer.command(row.method, bench.recipe(row.method), bench.models, bench.out), peer.environment
    else:
        command = plait("merge", bench.recipe(row.method), bench.out, "--memory", str(row.budget), "--quiet")
        environment = bench.environment(row.method)
    found = run(command, every_s=SAMPLE_S, environment=environment)
    bench.clear()
    # a floor is the moving of bytes alone: what it says of itself, without the start of Python
    row.wall_s.append(json.loads(found.output)["wall_s"] if row.subject in FLOORS else found.wall_s)
    row.cpu_s.append(found.cpu_s)
    row.peak_bytes.append(found.peak_bytes)
    print(f"{row.method} {row.subject}: {row.wall_s[-1]:.2f} s, CPU {found.cpu_s:.2f} s, {found.peak_bytes / MIB:.0f} MiB", flush=True)


def floor_of(method: str, rows: dict[tuple[str, str], Row]) -> Row:
    """The faster of a method's durable floors."""
    return min((rows[method, name] for name in DURABLE if (method, name) in rows), key=lambda row: row.wall)


def limit_s(method: str, floor: float) -> float:
    """Most seconds that a method may take above its floor."""
    return 1.3 * floor + 0.7 if method in ONE_PASS else 1.7 * floor + 1.0


def broken(rows: dict[tuple[str, str], Row]) -> list[str]:
    """The promises that the figures do not keep, as sentences; they are about models of 1.1B parameters and more."""
    out = []
    for row in (r for r in rows.values() if r.budget):
        where = f"{row.method} in {row.budget // MIB} MiB"
        same = [r for r in rows.values() if r.method == row.method]
        floor = floor_of(row.method, rows).wall
        if row.wall > limit_s(row.method, floor):
            out.append(f"{where}: {row.wall:.2f} s, over the limit of {limit_s(row.method, floor):.2f} s (floor {floor:.2f} s)")
        if row.budget <= PRIVATE_LIMIT[0] and row.peak > PRIVATE_LIMIT[1]:
            out.append(f"{where}: {row.peak / MIB:.0f} MiB of private memory, over {PRIVATE_LIMIT[1] // MIB} MiB")
        ample = min((r for r in same if r.budget >= row.budget), key=lambda r: r.wall)
        if row.wall > TIGHT * ample.wall:
            out.append(f"{where}: {row.wall / ample.wall:.2f} times the run in {ample.budget // MIB} MiB, over {TIGHT:g}")
        for peer in same:
            factor = FASTER.get((peer.subject, row.method), 0.0)
            if peer.wall < factor * row.wall:
                out.append(f"{where}: {peer.wall / row.wall:.1f} times as fast as {peer.subject}, less than {factor:g}")
    return out


def as_data(row: Row, rows: dict[tuple[str, str], Row]) -> dict[str, Any]:
    """A row for JSON, with its ratios."""
    found: dict[str, Any] = {**asdict(row), "median_wall_s": round(row.wall, 3), "median_cpu_s": round(median(row.cpu_s), 3), "max_peak_bytes": row.peak}
    if row.budget:
        others = [r for (method, _), r in rows.items() if method == row.method and not r.budget]
        floor = floor_of(row.method, rows)
        found["ratio_to"] = {"floor": round(row.wall / floor.wall, 3), **{r.subject: round(row.wall / r.wall, 3) for r in others}}
        found["floor"] = floor.subject
        found["limit_s"] = round(limit_s(row.method, floor.wall), 3)
    return found


def shown(bench: Bench) -> list[list[str]]:
    """The rows of the table."""
    lines = []
    for (method, subject), row in bench.rows.items():
        floor = floor_of(method, bench.rows).wall
        others = [bench.rows[method, p.name].wall for p in bench.peers if (method, p.name) in bench.rows]
        lines.append(
            [
                method,
                subject,
                f"{row.wall:.2f}",
                f"{min(row.wall_s):.2f}-{max(row.wall_s):.2f}",
                f"{median(row.cpu_s):.2f}",
                f"{row.peak / MIB:.0f}",
                f"{row.plan['bytes_read'] / 1e9:.2f}" if row.plan else "",
                f"{row.plan['bytes_written'] / 1e9:.2f}" if row.plan else "",
                f"{row.wall / floor:.2f}" if row.budget else "",
                f"{limit_s(method, floor):.2f}" if row.budget else "",
                " ".join(f"{other / row.wall:.1f}" for other in others) if row.budget else "",
                f"{row.first_run_s:.2f}" if row.first_run_s is not None else "",
            ]
        )
    return lines


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an output of gigabytes does not stay behind
    models = models_in(args.set)
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        out = (args.out or args.set) / f"speed-out-{os.getpid()}"
        budgets = args.memory or ["128MiB", "1GiB"]
        direct = writes_direct(out.parent)
        floors = tuple(f for f in FLOORS if direct or f != "floor direct")
        bench = Bench(models, methods_named(args.methods), budgets, peers.chosen(args), Path(name), out, args.cold, floors)
        try:
            prepare(bench)
            for repetition in range(args.repeat):
                for method in bench.methods:
                    subjects = [r for r in bench.rows.values() if r.method == method]
                    turn = repetition % len(subjects)
                    for row in subjects[turn:] + subjects[:turn]:
                        measure(bench, row)
            baseline = import_baseline(bench.recipe(bench.methods[0]), bench.out, budgets[-1])
        finally:
            bench.clear()
    failures = broken(bench.rows)
    facts = machine.describe(args.set)
    peer_names = [f"{p.name} {p.version}".strip() for p in bench.peers]
    title = f"base + {len(models) - 1} experts of {weight_bytes(models[:1]) / 1e9:.3g} GB, median of {args.repeat}"
    headings = [
        "method",
        "subject",
        "wall s",
        "range",
        "CPU s",
        "private MiB",
        "GB read",
        "GB written",
        "x floor",
        "limit s",
        "faster than peer",
        "first run s",
    ]
    notes = [] if direct else ["no floor direct: the outputs' file system does not write past the page cache"]
    notes += [machine.line(facts), *(f"peers: {p}" for p in peer_names), *(failures or ["every promise is kept"])]
    table = table_of(title, headings, shown(bench), notes)
    data = {
        "set": {"model_bytes": weight_bytes(models[:1]), "experts": len(models) - 1},
        "repeat": args.repeat,
        "page_cache": "warm",
        "kernel_cache": "warm; first run with an empty one" if args.cold else "warm",
        "machine": facts,
        "peers": peer_names,
        "import_baseline_bytes": baseline,
        "recipes": {m: {"each": METHODS[m].each, "overall": METHODS[m].overall} for m in bench.methods},
        "rows": [as_data(r, bench.rows) for r in bench.rows.values()],
        "broken_promises": failures,
    }
    save(args.name, data, table, args.results)
    sys.exit(bool(failures))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder with base, expert1, expert2, ... (make_checkpoint.py)")
    parser.add_argument("--methods", default=",".join(PROMISED), help="with commas; default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default: %(default)s")
    parser.add_argument("--memory", action="append", metavar="SIZE", help="budget; may be given several times; default: 128MiB and 1GiB")
    parser.add_argument("--cold", action="store_true", help="start from an empty kernel cache and report the first run")
    parser.add_argument("--out", type=Path, help="folder for outputs (default: the set's)")
    parser.add_argument("--name", default="speed", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    peers.add_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
