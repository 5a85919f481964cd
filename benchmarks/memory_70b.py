"""Does a merge of 70B width stay inside its budget, and inside the prediction?

    python benchmarks/memory_70b.py --set /data/wide           # made there when missing: 18 GB, and as much again for each output

Runs `linear` and `ties` on one layer of 70B width (base + 2 experts, bfloat16) as separate processes, samples each one's private
memory (RssAnon) and subtracts what importing the same modules costs by itself. Fails when a peak is over the prediction of
`plait plan` or over the budget. Also times `plait plan` on the whole 80-layer model (headers only; sparse files).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from make_checkpoint import PRESETS, Preset, make_set

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
SAMPLE_S = 0.005
PLAN_LIMIT_S = 2.0

#: Ends a `python -m plait …` by printing every module it has imported.
WITH_MODULES = """
import json, runpy, sys
try:
    runpy.run_module("plait", run_name="__main__", alter_sys=True)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""

#: Imports the modules named on standard input and waits to be measured.
IMPORT_ONLY = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception:
        pass
print("ready", flush=True)
import time
time.sleep(60)
"""


@dataclass(frozen=True)
class Run:
    """One measured merge; sizes in bytes."""

    method: str
    budget: int
    predicted: int
    baseline: int
    peak: int
    wall_s: float
    plan_wall_s: float

    @property
    def used(self) -> int:
        """Peak private memory beyond that of the imports alone."""
        return self.peak - self.baseline

    @property
    def verdict(self) -> str:
        over = [word for word, limit in (("prediction", self.predicted), ("budget", self.budget)) if self.used > limit]
        return "over " + " and ".join(over) if over else "ok"


def recipe(method: str, models: list[Path]) -> str:
    """The recipe of `method` over a base and its experts."""
    base, *experts = (str(m.resolve()) for m in models)
    parameters = {"linear": {"weight": 0.5}, "ties": {"weight": 0.5, "density": 0.2}}[method]
    lines = {"merge_method": method, "dtype": "bfloat16", "models": [{"model": e, "parameters": parameters} for e in experts]}
    if method != "linear":
        lines["base_model"] = base
    else:
        lines["models"] = [{"model": m, "parameters": parameters} for m in (base, *experts)]
    return json.dumps(lines, indent=1)  # JSON is YAML


def private_bytes(pid: int) -> int:
    """RssAnon of a process: memory that no file backs."""
    with open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)


def sampled(command: list[str]) -> tuple[int, float]:
    """Peak private memory and seconds of a command, which must succeed."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, private_bytes(process.pid))
            except FileNotFoundError:
                break
            time.sleep(SAMPLE_S)
        wall = time.perf_counter() - start
        if process.wait():
            log.seek(0)
            sys.exit(f"{' '.join(command)}\n{log.read().decode()}")
    return peak, wall


def import_baseline(method: str, memory: str, scratch: Path) -> int:
    """Private memory of a process that only imports what a merge with this method imports (tried on a tiny checkpoint)."""
    file = scratch / f"tiny-{method}.yml"
    file.write_text(recipe(method, make_set(scratch / "tiny", PRESETS["tiny"], 2)))
    command = [sys.executable, "-c", WITH_MODULES, "merge", str(file), str(scratch / f"tiny-{method}"), "--memory", memory]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        sys.exit(f"the tiny merge failed:\n{tried.stderr}")
    names = [n for n in json.loads(tried.stderr.splitlines()[-1]) if not n.startswith("plait_kernel_") and n != "__main__"]
    with subprocess.Popen([sys.executable, "-c", IMPORT_ONLY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(names))
        process.stdin.close()
        process.stdout.readline()
        size = private_bytes(process.pid)
        process.kill()
    return size


def planned(file: Path, memory: str) -> tuple[dict[str, Any], float]:
    """`plait plan` as data, and the seconds of the whole process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "plait", "plan", str(file), "--memory", memory, "--format", "json"], capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout), wall


def measure(method: str, models: list[Path], args: argparse.Namespace, scratch: Path) -> Run:
    """Plans and merges once, in processes of their own."""
    baseline = import_baseline(method, args.memory, scratch)
    file = scratch / f"{method}.yml"
    file.write_text(recipe(method, models))
    plan, plan_wall = planned(file, args.memory)
    out = (args.out or args.set) / f"out-{method}"
    shutil.rmtree(out, ignore_errors=True)
    if args.cold:
        os.environ["PLAIT_CACHE_DIR"] = tempfile.mkdtemp(dir=scratch)
    peak, wall = sampled([sys.executable, "-m", "plait", "merge", str(file), str(out), "--memory", args.memory, *args.option])
    if not args.keep:
        shutil.rmtree(out)
    return Run(method, plan["budget_bytes"], plan["predicted_peak_bytes"], baseline, peak, round(wall, 2), round(plan_wall, 2))


def plan_80_layers(memory: str, scratch: Path) -> dict[str, float]:
    """Seconds of `plait plan` on the whole 70B model, best of three processes."""
    models = make_set(scratch / "sparse", PRESETS["70b"], 2, sparse=True)
    out = {}
    for method in ("linear", "ties"):
        file = scratch / f"80-{method}.yml"
        file.write_text(recipe(method, models))
        out[method] = round(min(planned(file, memory)[1] for _ in range(3)), 2)
    return out


def made(folder: Path, preset: Preset) -> list[Path]:
    """The benchmark's checkpoints, written where they are missing."""
    models = [folder / name for name in ("base", "expert1", "expert2")]
    if not all((m / "config.json").exists() for m in models):
        print(f"writing base and 2 experts to {folder} ...", flush=True)
        make_set(folder, preset, 2)
    return models


def table(runs: list[Run], plans: dict[str, float]) -> str:
    """The results as text, in MiB."""
    head = f"{'method':8} {'peak':>8} {'imports':>8} {'used':>8} {'predicted':>10} {'budget':>8} {'wall s':>8}   MiB of private memory"
    rows = [
        f"{r.method:8} {r.peak / MIB:8.1f} {r.baseline / MIB:8.1f} {r.used / MIB:8.1f} {r.predicted / MIB:10.1f} "
        f"{r.budget / MIB:8.1f} {r.wall_s:8.1f}   {r.verdict}"
        for r in runs
    ]
    rows += [f"plait plan, 80 layers, {method}: {wall:.2f} s{'' if wall <= PLAN_LIMIT_S else '   over 2 s'}" for method, wall in plans.items()]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the checkpoints; reused when they are there")
    parser.add_argument("--out", type=Path, help="folder for the outputs (default: the set's)")
    parser.add_argument("--preset", choices=PRESETS, default="70b-width-1layer", help="a smaller shape, to try the script")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--methods", default="linear,ties")
    parser.add_argument("--option", action="append", default=[], help="passed on to `plait merge`, such as --option=--workers=1")
    parser.add_argument("--cold", action="store_true", help="with an empty kernel cache, so that compiling counts too")
    parser.add_argument("--keep", action="store_true", help="keep the outputs")
    args = parser.parse_args()
    models = made(args.set, PRESETS[args.preset])
    with tempfile.TemporaryDirectory(prefix="memory-70b-") as name:
        runs = [measure(method, models, args, Path(name)) for method in args.methods.split(",")]
        plans = plan_80_layers(args.memory, Path(name))
    print(table(runs, plans))
    facts = {"preset": args.preset, "memory": args.memory, "cold": args.cold, "cpus": os.cpu_count(), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    result = {**facts, "runs": [{**asdict(r), "used": r.used, "verdict": r.verdict} for r in runs], "plan_80_layers_s": plans}
    (RESULTS / "memory_70b.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(r.verdict != "ok" for r in runs) or any(wall > PLAN_LIMIT_S for wall in plans.values()))


if __name__ == "__main__":
    main()
