"""How do the time and the memory of planning grow with the number of tensors?

    python benchmarks/planning.py                         # 1,043, 10,013 and 100,298 output tensors, base + 2 experts
    python benchmarks/planning.py --experts-per-layer 3   # the smallest only, to try it

Plans TIES of a base and two experts from headers alone (sparse files, 62 MB of disk at most): a mixture of 65 layers whose feed-forward
experts are unfused, with 3, 49 and 512 of them in each layer, so that only the number of tensors changes and not the kinds of tensor.
Each plan is made three times in processes of their own; the fastest stands in the table, all are in the JSON. Peak memory is RssAnon's
highest value less its value after the imports. Exits 1 when the largest takes over 15 s or more than 4 KiB an output tensor and model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from machine import describe, line
from make_checkpoint import PRESETS, make_set
from recipes import text_of
from report import save, table_of

LIMIT_S = 15.0
LIMIT_BYTES = 4096  #: of memory, for each output tensor and model
MODELS = 3

#: Plans the recipe it is given, then prints seconds, sizes and counts. A thread samples: the high-water mark of the whole process would count imports.
PLAN = """
import json, sys, threading, time
import plait
import plait.engine.compile, plait.planner.explain

def anon():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anon())

before = anon()
peak, done = [before], threading.Event()
thread = threading.Thread(target=watch, daemon=True)
thread.start()
wall, cpu = time.perf_counter(), time.process_time()
plan = plait.plan(sys.argv[1], plait.Options(memory="4GiB", workers=2, device="cpu"))
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
done.set()
thread.join()
begun = time.process_time()
plait.planner.explain.to_text(plan)
tree = time.process_time() - begun
begun = time.process_time()
plan.to_json()
print(json.dumps([len(plan.components), len(plan.programs), wall, cpu, tree, time.process_time() - begun, max(peak[0], anon()) - before]))
"""


@dataclass(frozen=True)
class Planned:
    """One plan: seconds (of the processor too, and for showing it), and bytes of memory above the imports."""

    experts_per_layer: int
    tensors: int
    programs: int
    wall_s: float
    cpu_s: float
    tree_s: float
    json_s: float
    peak_bytes: int

    @property
    def bytes_each(self) -> float:
        """Memory for each output tensor and model."""
        return self.peak_bytes / self.tensors / MODELS


def plan_once(experts: int, recipe: Path) -> Planned:
    """Plan in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PLAN, str(recipe)], capture_output=True, text=True, check=True)
    tensors, programs, wall, cpu, tree, text, peak = json.loads(done.stdout)
    return Planned(experts, tensors, programs, round(wall, 3), round(cpu, 3), round(tree, 3), round(text, 3), peak)


def measure(experts: int, folder: Path, repeat: int) -> list[Planned]:
    """Make the headers and plan several times."""
    models = make_set(folder / str(experts), replace(PRESETS["moe-100k"], experts=experts), MODELS - 1, sparse=True)
    recipe = folder / f"{experts}.yml"
    recipe.write_text(text_of("ties", models))
    return [plan_once(experts, recipe) for _ in range(repeat)]


def table(best: list[Planned], machine: str) -> str:
    """What was found, a line for each size."""
    headings = ("output tensors", "programs", "plan s", "CPU s", "us a tensor", "tree s", "JSON s", "peak MiB", "bytes a tensor and model")
    rows = [
        [
            f"{p.tensors:,}",
            str(p.programs),
            f"{p.wall_s:.2f}",
            f"{p.cpu_s:.2f}",
            f"{p.cpu_s / p.tensors * 1e6:.0f}",
            f"{p.tree_s:.2f}",
            f"{p.json_s:.2f}",
            f"{p.peak_bytes / 2**20:.0f}",
            f"{p.bytes_each:.0f}",
        ]
        for p in best
    ]
    return table_of("planning TIES of base + 2 experts, unfused mixtures of 65 layers, from headers alone", headings, rows, [machine])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts-per-layer", type=int, action="append", help="sizes to plan; default 3, 49 and 512; may be given several times")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--name", default="planning", help="of the files under results")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error("--repeat must be at least 1")
    with tempfile.TemporaryDirectory(prefix="planning-") as name:
        facts = describe(Path(name))
        runs = [measure(experts, Path(name), args.repeat) for experts in args.experts_per_layer or (3, 49, 512)]
    best = [min(found, key=lambda p: p.wall_s) for found in runs]
    data = {"machine": facts, "runs": [asdict(p) for found in runs for p in found], "best": [{**asdict(p), "bytes_each": round(p.bytes_each)} for p in best]}
    save(args.name, data, table(best, line(facts)))
    sys.exit(any(p.wall_s > LIMIT_S or (p.tensors > 50_000 and p.bytes_each > LIMIT_BYTES) for p in best))


if __name__ == "__main__":
    main()
