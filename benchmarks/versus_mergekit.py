"""Every method that mergekit has, beside mergekit: the same recipe and models, in alternating runs of whole processes.

    python benchmarks/make_checkpoint.py 1.1b /data/tl --experts 3                 # 8.8 GB, once
    python benchmarks/versus_mergekit.py --set /data/tl --mergekit /path/to/venv    # 25 minutes on two cores
    python benchmarks/versus_mergekit.py --set /data/tl --mergekit VENV --methods sce,karcher --again
    python benchmarks/versus_mergekit.py --set /data/tl --mergekit VENV --through 'taskset -c 0,1'

Inputs are read and plait has merged once before the clock, so that page cache and kernels are warm; outputs are removed, and dirty pages
written back, between runs and outside the time. plait runs in `--memory 128MiB` and makes its output durable, mergekit runs with its
defaults and does not. Results are kept after each method, and methods that have one are left out until `--again`. Exits 1 when plait is
less than 5 times as fast, or less than 30 times where mergekit sorts or iterates, or takes more than 256 MiB of private memory.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import machine
import peers
from floor import weight_bytes
from measure import MIB, plait, planned
from recipes import FOR_BOTH, SORTED_THERE, methods_named, models_in, models_of, text_of
from report import RESULTS, save, table_of

from plait.watching import Command, Watched, watch_each

TARGETS = (5.0, 30.0)  #: times as fast: any method, and those that mergekit sorts or iterates for
PRIVATE_LIMIT = 256 * MIB
LIMIT_S = 900.0  #: of one run
WARM = "import sys; from pathlib import Path; from plait.engine.floor import warm; warm([Path(p) for p in sys.argv[1:]])"


def commands(method: str, models: list[Path], peer: peers.Peer, memory: str, repeat: int, scratch: Path) -> list[tuple[str, Command]]:
    """What is run for one method, each with the name of whom it measures; an empty one is not measured."""
    recipe, out = scratch / f"{method}.yml", scratch / "out"
    recipe.write_text(text_of(method, models))
    ours = Command(plait("merge", recipe, out, "--memory", memory, "--quiet"), limit_s=LIMIT_S)
    theirs = Command(peer.command(method, recipe, models, out), peer.environment, limit_s=LIMIT_S)
    rest = [("", Command(("rm", "-rf", str(out)))), ("", Command(("sync",)))]
    before = [("", Command((sys.executable, "-c", WARM, *map(str, models_of(method, models))))), ("", ours), *rest]
    return before + repeat * [("plait", ours), *rest, (peer.name, theirs), *rest]


def compare(method: str, models: list[Path], peer: peers.Peer, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One method: what every run of both programs took."""
    listed = commands(method, models, peer, args.memory, args.repeat, scratch)
    found = watch_each([command for _, command in listed], shlex.split(args.through))
    last = found[-1]
    if last.status != 0:
        why = f"was stopped after {last.wall_s:.0f} s" if last.status is None else f"ended with status {last.status}: {last.output.strip()[-800:]}"
        return {"failed": f"{listed[len(found) - 1][0] or 'the preparation'} {why}"}
    plan = planned(scratch / f"{method}.yml", args.memory)
    facts = {key: plan[key] for key in ("bytes_read", "bytes_written", "passes", "predicted_peak_bytes")}
    return {"plan": facts, **{name: figures([f for (n, _), f in zip(listed, found, strict=True) if n == name]) for name in ("plait", peer.name)}}


def figures(runs: list[Watched]) -> dict[str, Any]:
    """The runs of one program."""
    return {"wall_s": [round(r.wall_s, 3) for r in runs], "cpu_s": [round(r.cpu_s, 3) for r in runs], "peak_bytes": [r.peak_bytes for r in runs]}


def faster(row: dict[str, Any]) -> float:
    """How many times as fast as mergekit."""
    return float(median(row["mergekit"]["wall_s"]) / median(row["plait"]["wall_s"]))


def target(method: str) -> float:
    """How many times as fast it should be."""
    return TARGETS[method in SORTED_THERE]


def broken(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The targets that are missed, as sentences."""
    out = [f"{m}: {row['failed']}" for m, row in rows.items() if "failed" in row]
    for method, row in rows.items():
        if "failed" in row:
            continue
        if faster(row) < target(method):
            out.append(f"{method}: {faster(row):.1f} times as fast as mergekit, less than {target(method):g}")
        if max(row["plait"]["peak_bytes"]) > PRIVATE_LIMIT:
            out.append(f"{method}: {max(row['plait']['peak_bytes']) / MIB:.0f} MiB of private memory, over {PRIVATE_LIMIT // MIB} MiB")
    return out


def shown(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The rows of the table, those where most is won first."""
    ran = sorted(((m, r) for m, r in rows.items() if "failed" not in r), key=lambda pair: -faster(pair[1]))
    lines = []
    for method, row in ran:
        pair = [row["plait"], row["mergekit"]]
        seconds = [f"{median(p['wall_s']):.2f}" for p in pair] + [f"{median(p['cpu_s']):.2f}" for p in pair]
        lines.append(
            [method, f"{row['plan']['passes']}", *seconds, *(f"{max(p['peak_bytes']) / MIB:.0f}" for p in pair), f"{faster(row):.1f}", f"{target(method):g}"]
        )
    return lines


def measured_on(args: argparse.Namespace, models: list[Path]) -> dict[str, Any]:
    """What all rows of one table have in common; with others they are not mixed."""
    return {"set": {"model_bytes": weight_bytes(models[:1]), "experts": len(models) - 1}, "memory": args.memory, "repeat": args.repeat}


def keep(args: argparse.Namespace, models: list[Path], peer: peers.Peer, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Table and JSON of what there is so far; the targets that are missed."""
    facts, failures = machine.describe(args.set), broken(rows)
    title = f"base + {len(models) - 1} experts of {weight_bytes(models[:1]) / 1e9:.3g} GB, --memory {args.memory}, median of {args.repeat}"
    names = ["s", "CPU s", "private MiB"]
    headings = ["method", "passes", *(f"{who} {what}" for what in names for who in ("plait", "mergekit")), "times as fast", "target"]
    notes = [machine.line(facts), f"{peer.name} {peer.version}", *(failures or ["every target is met"])]
    data = {
        **measured_on(args, models),
        "machine": facts,
        "peers": [f"{peer.name} {peer.version}"],
        "recipes": {m: {"each": FOR_BOTH[m].each, "overall": FOR_BOTH[m].overall} for m in rows},
        "rows": rows,
        "missed": failures,
    }
    save(args.name, data, table_of(title, headings, shown(rows), notes), args.results)
    return failures


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that outputs of gigabytes do not stay behind
    models, peer = models_in(args.set), peers.mergekit(args.mergekit)
    file = args.results / f"{args.name}.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    same = {key: kept.get(key) for key in measured_on(args, models)} == measured_on(args, models)
    rows: dict[str, dict[str, Any]] = kept["rows"] if same else {}
    for method in methods_named(args.methods):
        if method in rows and "failed" not in rows[method] and not args.again:
            continue
        with tempfile.TemporaryDirectory(prefix=".versus-", dir=args.set) as scratch:
            rows[method] = compare(method, models, peer, args, Path(scratch))
        keep(args, models, peer, rows)
    sys.exit(bool(keep(args, models, peer, rows)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder with base, expert1, expert2, ... (make_checkpoint.py)")
    parser.add_argument("--mergekit", type=Path, required=True, metavar="VENV", help="virtual environment that has mergekit")
    parser.add_argument("--methods", default=",".join(FOR_BOTH), help="with commas; default: %(default)s")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; default: %(default)s")
    parser.add_argument("--memory", default="128MiB", help="budget of plait; default: %(default)s")
    parser.add_argument("--through", default="", metavar="COMMAND", help="put before each measured series of runs, such as 'taskset -c 0,1'")
    parser.add_argument("--again", action="store_true", help="measure methods that have a result, too")
    parser.add_argument("--name", default="speed_mergekit", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
