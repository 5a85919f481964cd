"""Makes checkpoints of real models' shapes for benchmarks: a base and experts that differ from it by small noise.

    python benchmarks/make_checkpoint.py 70b-width-1layer /data/wide --experts 2
    python benchmarks/make_checkpoint.py 70b /data/huge --experts 2 --sparse      # headers only, no data: for `plait plan`
    python benchmarks/make_checkpoint.py moe-100k /data/moe --sparse              # 100,298 tensors: planning at scale

Values come from one pool of seeded normal numbers (`plait/synthetic.py`). The folders are `base`, `expert1`, `expert2`, …
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plait.synthetic import ITEM_BYTES, PRESETS, Preset, make_set

__all__ = ["PRESETS", "Preset", "make_set"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--dtype", choices=ITEM_BYTES, default="BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, help="largest file (default: the preset's, usually one file)")
    parser.add_argument("--sparse", action="store_true", help="right headers and sizes, no data and no disk space")
    args = parser.parse_args()
    for model in make_set(args.folder, PRESETS[args.preset], args.experts, args.dtype, args.seed, args.shard_bytes, sparse=args.sparse):
        print(model)


if __name__ == "__main__":
    main()
