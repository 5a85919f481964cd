"""What does a sweep of lambda over TSV-M cost when its decompositions are kept?

    python benchmarks/sweep.py                            # two layers of 2048 columns, ten values; makes its own checkpoints (1.3 GB)
    python benchmarks/sweep.py --layers 20 --columns 1024 --values 6 --name sweep_long

Ten merges that differ in lambda alone, as whole processes with compiled kernels and a warm page cache, share a result cache (`--cache`). The
first fills it. The sweep is compared with writing as many outputs: as many passthrough merges of the base, which copy its bytes and make them
durable, in turns with those of the sweep. Exits 1 when the sweep takes more than 1.5 times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import machine
from floor import warm
from make_checkpoint import Preset, make_set
from measure import Measured, plait, run
from report import save, table_of

LIMIT = 1.5


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=args.folder) as name:
        scratch = Path(name)
        models = make_set(scratch / "set", preset(args.columns, args.layers), args.experts)
        warm(models)
        values = [round(0.2 + 0.1 * k, 2) for k in range(args.values)]
        merges, out = [recipe(scratch, models, value) for value in values], scratch / "out"
        more = ("--memory", args.memory, "--quiet")
        cold = merged(plait("merge", merges[0], out, *more, "--cache", scratch / "cache"), out)
        without = merged(plait("merge", merges[0], out, *more), out)
        copy = scratch / "copy.yml"
        copy.write_text(json.dumps({"merge_method": "passthrough", "dtype": "bfloat16", "models": [{"model": str(models[0])}]}))
        merged(plait("merge", copy, out, *more), out)
        warm_runs, writes = [], []
        for path in merges:  # in turns, so that what else the machine does meets both alike
            warm_runs.append(merged(plait("merge", path, out, *more, "--cache", scratch / "cache"), out))
            writes.append(merged(plait("merge", copy, out, *more), out))
        cached = sum(f.stat().st_size for f in (scratch / "cache").rglob("*") if f.is_file())
    report(args, cold, without, warm_runs, writes, cached)


def preset(columns: int, layers: int) -> Preset:
    """Layers of the shape that a 1.1B model has at 2048 columns."""
    return Preset(hidden=columns, inter=columns * 11 // 4, heads=columns // 64, kv_heads=4, vocab=2 * columns, layers=layers)


def recipe(scratch: Path, models: list[Path], lam: float) -> Path:
    """TSV-M with one lambda."""
    path = scratch / f"tsv_m-{lam}.yml"
    entries = [{"model": str(m), "parameters": {"weight": 1.0}} for m in models[1:]]
    facts = {"merge_method": "tsv_m", "base_model": str(models[0]), "models": entries, "parameters": {"lambda": lam}, "dtype": "bfloat16"}
    path.write_text(json.dumps(facts))
    return path


def merged(command: list[str], out: Path) -> Measured:
    """One merge; its output is removed, and the disk comes to rest."""
    found = run(command)
    shutil.rmtree(out)
    os.sync()
    return found


def report(args: argparse.Namespace, cold: Measured, without: Measured, warm_runs: list[Measured], writes: list[Measured], cached: int) -> None:
    """Prints and keeps the comparison; ends with status 1 when the promise is broken."""
    sweep, written = sum(r.wall_s for r in warm_runs), sum(r.wall_s for r in writes)
    ratio = sweep / written
    rows = [
        ["without a cache", "one merge", f"{without.wall_s:.2f}", f"{without.peak_bytes / 2**20:.0f}"],
        ["filling the cache", "one merge", f"{cold.wall_s:.2f}", f"{cold.peak_bytes / 2**20:.0f}"],
        ["warm cache", f"median of {len(warm_runs)}", f"{median(r.wall_s for r in warm_runs):.2f}", f"{max(r.peak_bytes for r in warm_runs) / 2**20:.0f}"],
        ["warm cache", "the sweep", f"{sweep:.2f}", ""],
        ["writing as many outputs", f"all {len(writes)}", f"{written:.2f}", f"{max(r.peak_bytes for r in writes) / 2**20:.0f}"],
    ]
    facts = machine.describe(args.folder or Path(tempfile.gettempdir()))
    verdict = f"the sweep takes {ratio:.2f} times as long as writing {len(writes)} outputs; {'over' if ratio > LIMIT else 'within'} {LIMIT:g}"
    notes = [
        f"the cache holds {cached / 1e6:.0f} MB",
        verdict,
        "writing: passthrough merges of the base, durable copies in the kernel",
        machine.line(facts),
    ]
    title = f"TSV-M of base + {args.experts}, {args.layers} layers of {args.columns} columns, {args.values} values of lambda"
    data = {
        "machine": facts,
        "layers": args.layers,
        "columns": args.columns,
        "experts": args.experts,
        "cold_s": round(cold.wall_s, 3),
        "without_cache_s": round(without.wall_s, 3),
        "warm_s": [round(r.wall_s, 3) for r in warm_runs],
        "writing_s": [round(r.wall_s, 3) for r in writes],
        "ratio": round(ratio, 3),
        "cache_bytes": cached,
    }
    save(args.name, data, table_of(title, ["what", "of", "seconds", "private MiB"], rows, notes), args.results)
    sys.exit(ratio > LIMIT)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--columns", type=int, default=2048, help="a multiple of 256; default: %(default)s")
    parser.add_argument("--experts", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--values", type=int, default=10, help="values of lambda; default: %(default)s")
    parser.add_argument("--memory", default="2GiB", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where checkpoints and outputs lie meanwhile (default: the system's temporary folder)")
    parser.add_argument("--name", default="sweep", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
