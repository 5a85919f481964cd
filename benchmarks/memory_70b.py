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
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from make_checkpoint import PRESETS, Preset, make_set
from measure import MIB, import_baseline, plait, run

RESULTS = Path(__file__).parent / "results"
PLAN_LIMIT_S = 2.0


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


def measure(method: str, models: list[Path], args: argparse.Namespace, scratch: Path) -> Run:
    """Plans and merges once, in processes of their own."""
    tiny = scratch / f"tiny-{method}.yml"
    tiny.write_text(recipe(method, make_set(scratch / "tiny", PRESETS["tiny"], 2)))
    baseline = import_baseline(tiny, scratch / f"tiny-{method}", args.memory)
    file = scratch / f"{method}.yml"
    file.write_text(recipe(method, models))
    plan = run(plan_of(file, args.memory))
    predicted = json.loads(plan.output)
    out = (args.out or args.set) / f"out-{method}"
    shutil.rmtree(out, ignore_errors=True)
    if args.cold:
        os.environ["PLAIT_CACHE_DIR"] = tempfile.mkdtemp(dir=scratch)
    merge = run(plait("merge", file, out, "--memory", args.memory, *args.option))
    if not args.keep:
        shutil.rmtree(out)
    sizes = predicted["budget_bytes"], predicted["predicted_peak_bytes"]
    return Run(method, *sizes, baseline, merge.peak_bytes, round(merge.wall_s, 2), round(plan.wall_s, 2))


def plan_of(file: Path, memory: str) -> list[str]:
    """The command that plans a recipe, as data."""
    return plait("plan", file, "--memory", memory, "--format", "json")


def plan_80_layers(memory: str, scratch: Path) -> dict[str, float]:
    """Seconds of `plait plan` on the whole 70B model, best of three processes."""
    models = make_set(scratch / "sparse", PRESETS["70b"], 2, sparse=True)
    out = {}
    for method in ("linear", "ties"):
        file = scratch / f"80-{method}.yml"
        file.write_text(recipe(method, models))
        out[method] = round(min(run(plan_of(file, memory)).wall_s for _ in range(3)), 2)
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
