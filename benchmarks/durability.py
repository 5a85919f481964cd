"""What do journal, checksums and flushes cost? The same merge with and without them, in turns.

    python benchmarks/durability.py --set /data/tl                     # linear on base + 3 experts, five runs of each
    python benchmarks/durability.py --set /data/tl --methods linear,ties --repeat 7

Every run is a whole process. `plait` is the command as users run it; `bare` is the same with the journal, the checksums of every block, the
manifest's and every fsync left out (patched out by this script; no option does that), so its output may be lost and cannot be verified or
continued, and its kernels do not add up what they store. Inputs are in the page cache and kernels are compiled. Exits 1 when the median of
`plait` is over 1.05 times that of `bare`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import machine
from floor import warm, weight_bytes
from measure import Measured, plait, run
from recipes import METHODS, methods_named, models_in, text_of
from report import save, table_of

LIMIT = 1.05
#: `plait ARGUMENTS` without journal, checksums and flushes.
BARE = """
import os, runpy
os.fsync = os.fdatasync = lambda fd: None
import plait.engine.codegen as codegen
import plait.engine.writer as writer
looks = codegen._Generator._looks
codegen._Generator._looks = lambda self, *a: [line for line in looks(self, *a) if not line.startswith("add_words")]
whole = writer.OutputFolder.__init__
writer.OutputFolder.__init__ = lambda self, *a, **k: whole(self, *a, **{**k, "identity": None})
runpy.run_module("plait", run_name="__main__", alter_sys=True)
"""


def bare(*arguments: str | Path) -> list[str]:
    """The command line of the merge that keeps no promises."""
    return [sys.executable, "-c", BARE, *map(str, arguments)]


def main() -> None:
    args = arguments()
    models, methods = models_in(args.set), methods_named(args.methods)
    found: dict[tuple[str, str], list[Measured]] = {(m, s): [] for m in methods for s in ("plait", "bare")}
    out = (args.out or args.set) / f"durability-out-{os.getpid()}"
    warm(models)
    with tempfile.TemporaryDirectory(prefix="durability-") as name:
        try:
            for turn in range(-1, args.repeat):
                for method in methods:
                    recipe = Path(name) / f"{method}.yml"
                    recipe.write_text(text_of(method, models))
                    order = (plait, bare) if turn % 2 else (bare, plait)
                    for command in order:
                        measured = run(command("merge", recipe, out, "--memory", args.memory, "--quiet"))
                        shutil.rmtree(out, ignore_errors=True)
                        os.sync()
                        if turn >= 0:  # the first turn only warms up
                            found[method, command.__name__].append(measured)
                            print(f"{method} {command.__name__}: {measured.wall_s:.2f} s, CPU {measured.cpu_s:.2f} s", flush=True)
        finally:
            shutil.rmtree(out, ignore_errors=True)
    lines, rows, broken = [], [], []
    for method in methods:
        walls = {s: median(m.wall_s for m in found[method, s]) for s in ("plait", "bare")}
        cpus = {s: median(m.cpu_s for m in found[method, s]) for s in ("plait", "bare")}
        ratio = walls["plait"] / walls["bare"]
        lines.append([method, f"{walls['plait']:.2f}", f"{walls['bare']:.2f}", f"{ratio:.3f}", f"{cpus['plait']:.2f}", f"{cpus['bare']:.2f}"])
        rows.append({"method": method, "ratio": round(ratio, 4), **{s: [round(m.wall_s, 3) for m in found[method, s]] for s in walls}})
        if ratio > LIMIT:
            broken.append(f"{method}: {ratio:.3f} times the bare run, over {LIMIT:g}")
    facts = machine.describe(args.set)
    title = f"base + {len(models) - 1} experts of {weight_bytes(models[:1]) / 1e9:.3g} GB, --memory {args.memory}, medians of {args.repeat}"
    notes = [machine.line(facts), *(broken or ["journal, checksums and flushes cost less than 5 %"])]
    table = table_of(title, ["method", "plait s", "bare s", "ratio", "plait CPU s", "bare CPU s"], lines, notes)
    save(args.name, {"machine": facts, "memory": args.memory, "repeat": args.repeat, "rows": rows, "broken_promises": broken}, table, args.results)
    sys.exit(bool(broken))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder with base, expert1, expert2, ... (make_checkpoint.py)")
    parser.add_argument("--methods", default="linear", help=f"with commas, of {', '.join(METHODS)}; default: %(default)s")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each; default: %(default)s")
    parser.add_argument("--memory", default="128MiB", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder for outputs (default: the set's)")
    parser.add_argument("--name", default="durability", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
