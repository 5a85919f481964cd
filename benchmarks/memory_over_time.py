"""Private memory of a merge over time, as data and as a picture.

    python benchmarks/memory_over_time.py --set /data/tl                  # runs linear and ties in 128 MiB, draws where matplotlib is
    python benchmarks/memory_over_time.py --redraw                        # draws the kept data again; needs matplotlib, not plait

Every 10 ms the private memory (RssAnon) of the whole process is sampled. Beside the curves stand the budget, and what the plan predicts
for each run, both above the memory that importing takes. The data are kept as JSON; the picture needs matplotlib, which plait itself does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
SAMPLE_S = 0.010


def sample(models: list[Path], methods: list[str], memory: str, out: Path) -> dict[str, Any]:
    """Runs each method twice, the second time under the clock with warm kernels.

    Returns:
        `memory`, and for each method its samples (seconds and bytes), the predicted peak and that of the imports.
    """
    from make_checkpoint import PRESETS, make_set
    from measure import import_baseline, plait, planned, run
    from recipes import text_of

    runs = {}
    with tempfile.TemporaryDirectory(prefix="memory-over-time-") as name:
        scratch = Path(name)
        tiny = make_set(scratch / "tiny", PRESETS["tiny"], len(models) - 1)
        for method in methods:
            recipe, small = scratch / f"{method}.yml", scratch / f"tiny-{method}.yml"
            recipe.write_text(text_of(method, models))
            small.write_text(text_of(method, tiny))
            plan = planned(recipe, memory)
            for _ in range(2):
                found = run(plait("merge", recipe, out, "--memory", memory, "--quiet"), every_s=SAMPLE_S)
                shutil.rmtree(out)
            runs[method] = {
                "predicted_peak_bytes": plan["predicted_peak_bytes"],
                "budget_bytes": plan["budget_bytes"],
                "import_baseline_bytes": import_baseline(small, scratch / f"out-{method}", memory),
                "wall_s": round(found.wall_s, 3),
                "samples": [[round(at, 3), size] for at, size in found.samples],
            }
            print(f"{method}: {len(found.samples)} samples, {found.peak_bytes / MIB:.0f} MiB at the peak", flush=True)
    return {"memory": memory, "interval_s": SAMPLE_S, "runs": runs}


def draw(data: dict[str, Any], picture: Path) -> bool:
    """Draws the curves; False where matplotlib is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for method, found in data["runs"].items():
        seconds, sizes = zip(*found["samples"], strict=True)
        (curve,) = axes.plot(seconds, [s / MIB for s in sizes], label=method)
        imports = found["import_baseline_bytes"] / MIB
        _limit(axes, imports + found["predicted_peak_bytes"] / MIB, f"{method}: imports + prediction", curve.get_color(), ":")
    _limit(axes, imports + found["budget_bytes"] / MIB, "imports + budget", "0.2", "--")
    _limit(axes, imports, "imports", "0.6", ":")
    axes.set(xlabel="seconds since the process began", ylabel="private memory, MiB", title=f"plait merge --memory {data['memory']}", ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.94), frameon=False)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return True


def _limit(axes: Any, mib: float, text: str, color: str, style: str) -> None:
    axes.axhline(mib, color=color, linestyle=style, linewidth=1)
    axes.annotate(text, (1.005, mib), xycoords=("axes fraction", "data"), va="center", fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, help="folder with base, expert1, expert2, ... (make_checkpoint.py)")
    parser.add_argument("--methods", default="linear,ties", help="with commas; default: %(default)s")
    parser.add_argument("--memory", default="128MiB")
    parser.add_argument("--out", type=Path, help="folder for outputs (default: the set's)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--redraw", action="store_true", help="run nothing: draw the data that are there")
    args = parser.parse_args()
    kept = args.results / "memory_over_time.json"
    if args.redraw:
        data = json.loads(kept.read_text())
    elif args.set is None:
        parser.error("--set is needed, or --redraw")
    else:
        from recipes import methods_named, models_in

        data = sample(models_in(args.set), methods_named(args.methods), args.memory, (args.out or args.set) / "memory-over-time-out")
        args.results.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(data, separators=(",", ":")) + "\n")
    if draw(data, args.results / "memory_over_time.png"):
        print("drawn: memory_over_time.png")
    else:
        print("matplotlib is not installed here, so no picture; give this command with --redraw to a Python that has it")


if __name__ == "__main__":
    main()
