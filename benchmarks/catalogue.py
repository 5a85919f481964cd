"""Every method on real shapes: time, peak memory, passes and bytes, measured beside what was predicted.

    python benchmarks/make_checkpoint.py 1.1b /data/tl --experts 3                  # 8.8 GB, once
    python benchmarks/make_checkpoint.py 70b-width-1layer /data/wide --experts 2    # 18 GB, once
    python benchmarks/catalogue.py --set 1.1b=/data/tl --set 70b-width-1layer=/data/wide
    python benchmarks/make_checkpoint.py 70b-width-layer-alone /data/layer --experts 2     # 5 GB: for methods that decompose matrices
    python benchmarks/make_checkpoint.py moe-1layer /data/moe --experts 2                  # 0.8 GB: many small matrices
    python benchmarks/catalogue.py --set 1.1b=/data/tl --methods iso_c,tsv_m --again
    python benchmarks/catalogue.py --set 1.1b=/data/tl --through 'taskset -c 0,1' --limit 300

It is `plait bench methods` over sets that are there, a method at a time, streamed ones first: 128 MiB for those that stream, half of the
free memory for those that need whole matrices. Measure the machine first (`plait bench machine --whole`). Results are kept after each
method; a second run measures what is missing. A merge that takes longer than the limit is stopped, one predicted to take more than twice
as long is not begun, and both say so. Exits 1 when a streamed method takes more than 256 MiB of private memory, or a peak is over its
prediction or budget.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
from floor import weight_bytes
from measure import MIB
from recipes import models_in
from report import RESULTS, save, table_of

from plait.engine.ratefile import load_rates
from plait.method_runs import MethodRun, Models, Settings, chosen, run_methods

PRIVATE_LIMIT = 256 * MIB
HEADINGS = ["method", "set", "s", "predicted s", "CPU s", "peak MiB", "predicted MiB", "private MiB", "passes", "GB read", "GB written", ""]


def shown(sets: dict[str, Any]) -> list[list[str]]:
    """The rows of the table: each set's methods, streamed ones first, as they were measured."""
    return [row_of(name, MethodRun.from_dict(run)) for name, found in sets.items() for run in found["rows"].values()]


def row_of(name: str, run: MethodRun) -> list[str]:
    """One row; what was not measured is empty."""
    measured = [f"{run.seconds:.1f}", f"{run.cpu_s:.1f}", f"{run.peak_bytes / MIB:.0f}", f"{run.private_bytes / MIB:.0f}"] if run.state == "ran" else [""] * 4
    predicted = [f"{run.predicted_seconds:.1f}", f"{run.predicted_peak_bytes / MIB:.0f}"] if run.predicted_peak_bytes else ["", ""]
    moved = [str(run.passes), f"{run.predicted_read_bytes / 1e9:.2f}", f"{run.written_bytes / 1e9:.2f}"] if run.predicted_peak_bytes else [""] * 3
    return [run.method, name, measured[0], predicted[0], measured[1], measured[2], predicted[1], measured[3], *moved, "" if run.state == "ran" else run.state]


def broken(sets: dict[str, Any]) -> list[str]:
    """What is over a promise, as sentences."""
    out = []
    for name, found in sets.items():
        for run in map(MethodRun.from_dict, found["rows"].values()):
            if run.state == "failed":
                out.append(f"{run.method} on {name}: {run.why}")
            if not run.within:
                out.append(f"{run.method} on {name}: {run.peak_bytes / MIB:.1f} MiB, over the predicted {run.predicted_peak_bytes / MIB:.1f}")
            if run.state == "ran" and run.streams and run.private_bytes > PRIVATE_LIMIT:
                out.append(f"{run.method} on {name}: streamed in {run.private_bytes / MIB:.0f} MiB of private memory, over {PRIVATE_LIMIT // MIB}")
    return out


def keep(args: argparse.Namespace, sets: dict[str, Any], folder: Path) -> list[str]:
    """Table and JSON of what there is so far; the promises that are broken."""
    failures = broken(sets)
    facts = machine.describe(folder)
    notes = [f"{name}: base + {found['experts']} experts of {found['model_bytes'] / 1e9:.3g} GB" for name, found in sets.items()]
    notes += [f"{run['method']} on {name}: {run['why']}" for name, found in sets.items() for run in found["rows"].values() if run["why"]]
    notes += [machine.line(facts), *(failures or ["every promise is kept"])]
    table = table_of("every method: whole commands with compiled kernels; peaks above the imports, private memory with them", HEADINGS, shown(sets), notes)
    save(args.name, {"machine": facts, "rates_measured": load_rates()[0].measured, "sets": sets, "broken_promises": failures}, table, args.results)
    return failures


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that outputs of gigabytes do not stay behind
    file = args.results / f"{args.name}.json"
    sets: dict[str, Any] = json.loads(file.read_text())["sets"] if file.exists() else {}
    wanted = chosen([name for name in args.methods.split(",") if name])
    folder = Path.cwd()
    for text in args.set:
        name, _, path = text.partition("=")
        folder = Path(path)
        base, *experts = models_in(folder)
        facts = {"experts": len(experts), "model_bytes": weight_bytes([base])}
        if {key: sets.get(name, {}).get(key) for key in facts} != facts:
            sets[name] = {**facts, "rows": {}}
        rows = sets[name]["rows"]
        missing = [m for m in wanted if args.again or m.name not in rows]
        settings = Settings(args.memory, None, args.limit, through=tuple(shlex.split(args.through)))
        with tempfile.TemporaryDirectory(prefix=".catalogue-", dir=folder) as scratch:
            models = Models(base, experts, Path(scratch))
            for run in run_methods(missing, models, Path(scratch), settings, lambda what: print(what, flush=True)):
                rows[run.method] = run.to_dict()
                keep(args, sets, folder)
    sys.exit(bool(keep(args, sets, folder)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", help="a base and experts (make_checkpoint.py); may be repeated")
    parser.add_argument("--methods", default="", help="with commas; default: all")
    parser.add_argument("--memory", help="budget of each merge (default: 128MiB, or half of the free memory where that is too small)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a merge; default: %(default)s")
    parser.add_argument("--through", default="", metavar="COMMAND", help="put before each measured merge, such as 'taskset -c 0,1'")
    parser.add_argument("--again", action="store_true", help="measure methods that have a result, too")
    parser.add_argument("--name", default="catalogue", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
