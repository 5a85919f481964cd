"""How fast does `plait inspect --diff` compare two models, beside reading both once, and in how much memory?

    python benchmarks/make_checkpoint.py 1.1b /data/tl --experts 1        # 4.4 GB, once
    python benchmarks/inspect_diff.py --set /data/tl --memory 256MiB

Each run of plait is a whole process, measured from its start to its end with its private memory; "comparing" is what it says itself it took,
planning included, without starting Python and importing. The floor is `plait.engine.floor` without an output: two threads that read 2 MiB at a
time and compute nothing, in this process. Runs alternate; medians are shown. "warm": the page cache holds both files. "cold": it holds
neither, they come from the disk. Kernels were compiled before. `--rank` measures the passes for stable ranks as well, once.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import machine
from floor import floor, warm, weight_bytes
from measure import MIB, plait, run
from report import save, table_of

PROMISE, LIMIT = 0.7, 256 * MIB


def drop(models: list[Path]) -> None:
    """Let the page cache forget the weights."""
    for file in (f for model in models for f in sorted(model.glob("*.safetensors"))):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def read_floor(models: list[Path], folder: Path, threads: int) -> float:
    """Seconds that reading all weights once takes."""
    return floor(models, folder / ".plait-floor", 0, 1, threads, write="buffered", sync=False).wall_s


def compare(a: Path, b: Path, memory: str, threads: int, *more: str) -> dict[str, float]:
    """One comparison: seconds of the process and of the comparison in it, and most private bytes."""
    done = run(plait("inspect", a, b, "--diff", "--memory", memory, "--workers", str(threads), "--format", "json", "--quiet", *more))
    found = json.loads(done.output)
    return {"whole_s": done.wall_s, "comparing_s": found["seconds"], "peak_bytes": done.peak_bytes, "bytes_read": found["bytes_read"]}


def measure(a: Path, b: Path, memory: str, threads: int, repeat: int, *, cold: bool) -> dict[str, Any]:
    """Medians of floors and comparisons that take turns."""
    prepare = drop if cold else warm
    floors, runs = [], []
    for turn in range(repeat):
        for kind in ("floor", "plait") if turn % 2 == 0 else ("plait", "floor"):
            prepare([a, b])
            if kind == "floor":
                floors.append(read_floor([a, b], a.parent, threads))
            else:
                runs.append(compare(a, b, memory, threads))
    found: dict[str, Any] = {key: median(r[key] for r in runs) for key in runs[0]}
    found |= {"cache": "cold" if cold else "warm", "floor_s": median(floors), "peak_bytes": max(r["peak_bytes"] for r in runs)}
    return found | {
        "share_comparing": found["floor_s"] / found["comparing_s"],
        "share_whole": found["floor_s"] / found["whole_s"],
        "floors": floors,
        "runs": runs,
    }


def row(found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    times = [f"{found[key]:.2f}" for key in ("floor_s", "comparing_s", "whole_s")]
    shares = [f"{100 * found[key]:.0f} %" for key in ("share_comparing", "share_whole")]
    return [found["cache"], "floor and comparison", *times, *shares, f"{found['peak_bytes'] / MIB:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder with `base` and `expert1`")
    parser.add_argument("--memory", default="256MiB", help="budget; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of the floor, and workers; default: %(default)s")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each; default: %(default)s")
    parser.add_argument("--rank", action="store_true", help="measure --rank, too")
    parser.add_argument("--name", default="inspect_diff", help="of the result files; default: %(default)s")
    args = parser.parse_args()
    a, b = args.set / "base", args.set / "expert1"
    compare(a, b, args.memory, args.threads)  # compiles
    found = [measure(a, b, args.memory, args.threads, args.repeat, cold=cold) for cold in (False, True)]
    notes = [
        f"{weight_bytes([a, b]) / 1e9:.1f} GB in two models, --memory {args.memory}, {args.threads} threads; medians of {args.repeat}",
        f"promised: {100 * PROMISE:.0f} % of the rate at which both are read, within {LIMIT // MIB} MiB of private memory, the whole process",
    ]
    data: dict[str, Any] = {"machine": machine.describe(args.set), "memory": args.memory, "threads": args.threads, "results": found}
    if args.rank:
        compare(a, b, args.memory, args.threads, "--rank")
        warm([a, b])
        data["rank"] = ranked = compare(a, b, args.memory, args.threads, "--rank")
        notes.append(f"with --rank (eight more passes): {ranked['comparing_s']:.1f} s, {ranked['peak_bytes'] / MIB:.0f} MiB; single run, warm")
    headings = ["page cache", "", "floor s", "comparing s", "whole process s", "of the floor", "whole, of the floor", "private MiB"]
    save(args.name, data, table_of("plait inspect --diff of two 1.1B models", headings, [row(f) for f in found], notes))


if __name__ == "__main__":
    main()
