"""The floor of a merge on the command line: how long do reading the inputs and writing the output take alone (`plait.engine.floor`)?

    python benchmarks/floor.py /data/tl/base /data/tl/expert1 --out /data/floor.bin               # inputs read once
    python benchmarks/floor.py /data/tl/base /data/tl/expert1 --out /data/floor.bin --passes 2    # read twice
    python benchmarks/floor.py /data/tl/base --out /data/floor.bin --write direct --no-sync       # one way of writing, not made durable

`--write best` does one way of writing after the other and tells the faster. The output is made durable inside the time, as `plait merge`
makes it, unless `--no-sync` is given. It is as long as the weights of the first input, and is removed afterwards, outside the time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.engine.floor import WAYS, floor, warm, weight_bytes, writes_direct

__all__ = ["floor", "warm", "weight_bytes", "writes_direct"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help="model folders or files")
    parser.add_argument("--out", type=Path, required=True, help="file to write; must not exist, is removed")
    parser.add_argument("--bytes", type=int, help="size of the output (default: that of the first input's weights)")
    parser.add_argument("--passes", type=int, default=1, help="how often the inputs are read")
    parser.add_argument("--threads", type=int, default=2, help="that read, and as many that write; default: %(default)s")
    parser.add_argument("--write", choices=[*WAYS, "best"], default="best", help="past the page cache, through it, or the faster; default: %(default)s")
    parser.add_argument("--no-sync", action="store_true", help="do not make the output durable")
    parser.add_argument("--no-warm", action="store_true", help="do not read the inputs once before the time")
    args = parser.parse_args()
    size = weight_bytes(args.inputs[:1]) if args.bytes is None else args.bytes
    ways = [args.write] if args.write != "best" else [way for way in WAYS if way != "direct" or writes_direct(args.out.parent)]
    if "direct" in ways and not writes_direct(args.out.parent):
        raise SystemExit(f"files in {args.out.parent} cannot be written past the page cache; use --write buffered, or another folder")
    if not args.no_warm:
        warm(args.inputs)
    found = [floor(args.inputs, args.out, size, args.passes, args.threads, write=way, sync=not args.no_sync) for way in ways]
    best: dict[str, Any] = asdict(min(found, key=lambda f: f.wall_s))
    print(json.dumps(best))


if __name__ == "__main__":
    main()
