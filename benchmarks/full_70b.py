"""A merge of a whole 70B model, from plan to end, on a machine that could store neither its inputs nor its output.

    python benchmarks/full_70b.py                          # 80 layers, TIES of base + 2 in 1 GiB: some minutes, 20 GB of disk at most at a time
    python benchmarks/full_70b.py --layers 2               # to try it
    python benchmarks/full_70b.py --sink discard           # the output goes nowhere: no disk at all

The inputs are sparse files: right headers, right sizes, and holes instead of data, which read as zeros. So the figures tell about reading,
memory, scheduling and writing; zeros say nothing about values, and a disk delivers real bytes more slowly than a file system makes up zeros.
With `--sink remove` each output file is reserved, written past the page cache and made durable as in a merge, and removed as soon as its
last byte is there; with `discard` bytes are only counted. Reader, plan and executor are those of `plait merge`, in a process of its own
whose private memory (RssAnon) is sampled. The machine's rates are measured first (`plait bench machine --whole`), and for the disk's that
of the holes which stand for it. A model of one layer is merged next, so that the kernels are compiled. Exits 1 when the peak is
over the prediction or the budget, or when bytes are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
from make_checkpoint import PRESETS, make_set
from measure import MIB, Measured, calibrated, run
from recipes import METHODS, text_of
from report import save, table_of

import plait
from plait.engine.executor import execute
from plait.engine.kernelrates import together
from plait.engine.machine import available_memory, cores
from plait.engine.pool import DevicePool
from plait.engine.ratefile import load_rates, save_rates
from plait.engine.reader import Reader
from plait.engine.shardfile import ShardFile
from plait.measuring import import_bytes
from plait.planner.types import Layout, SideFile

SINKS = ("remove", "discard")


class Discard:
    """Counts the bytes of an output and keeps none (a `Sink`)."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.bytes_written = 0
        self._lock = threading.Lock()
        self._missing = [0] * len(layout.shards)
        for place in layout.places.values():
            self._missing[place.shard] += place.nbytes

    def begin(self) -> None:
        """Nothing to get ready."""

    def write(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray, known: bytes = b"") -> None:
        """Counts bytes for an absolute offset of a shard's file."""
        nbytes = memoryview(data).nbytes
        if not len(self.layout.shards[shard].header) <= offset <= self.layout.shards[shard].size - nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not in the data of {self.layout.shards[shard].name}")
        self._take(shard, offset, data)
        with self._lock:
            self.bytes_written += nbytes
            self._missing[shard] -= nbytes
            complete = not self._missing[shard]
        if complete:
            self._complete(shard)

    def past_cache(self, shard: int) -> bool:
        return False

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int, see: object = None) -> None:
        """Counts bytes that would come straight from an input."""
        while nbytes > 0:
            part = os.pread(source_fd, min(MIB, nbytes), source_offset)
            if not part:
                raise OSError("an input ended early")
            self.write(shard, offset, part)
            offset, source_offset, nbytes = offset + len(part), source_offset + len(part), nbytes - len(part)

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        """Whether everything came."""
        missing = [shard.name for shard, left in zip(self.layout.shards, self._missing, strict=True) if left]
        if missing:
            raise RuntimeError(f"bytes are missing from {', '.join(missing)}")

    def abandon(self) -> None:
        """Nothing to remove."""

    def _take(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray) -> None:
        pass

    def _complete(self, shard: int) -> None:
        pass


class Remove(Discard):
    """Writes each file as a merge does, and removes it when it is complete and durable."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        super().__init__(layout)
        self.folder = folder
        self.most_bytes = 0  #: of files that were there at once
        self._files: dict[int, ShardFile] = {}

    def abandon(self) -> None:
        """Removes what is incomplete."""
        for shard in list(self._files):
            self._remove(shard)

    def _take(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray) -> None:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = ShardFile(self._path(shard), self.layout.shards[shard].size)
                file.write(memoryview(self.layout.shards[shard].header), -1, 0)
                self.most_bytes = max(self.most_bytes, sum(self.layout.shards[s].size for s in self._files))
        address = data.__array_interface__["data"][0] if isinstance(data, np.ndarray) else -1
        file.write(memoryview(data).cast("B"), address, offset)

    def _complete(self, shard: int) -> None:
        self._files[shard].sync()
        self._remove(shard)

    def _remove(self, shard: int) -> None:
        self._files.pop(shard).close()
        self._path(shard).unlink()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard}.partial"


@dataclass(frozen=True)
class Result:
    """A whole merge; sizes in bytes, memory above that of the imports."""

    method: str
    layers: int
    tensors: int
    sink: str
    budget: int
    plan_s: float
    run_s: float
    wall_s: float
    cpu_s: float
    predicted_s: float
    predicted_peak: int
    peak: int
    imports: int
    bytes_read: int
    predicted_read: int
    bytes_written: int
    predicted_written: int
    output_at_once: int
    workers: int

    @property
    def verdict(self) -> str:
        """`ok`, or what is wrong."""
        over = [word for word, limit in (("prediction", self.predicted_peak), ("budget", self.budget)) if self.peak > limit]
        found = ["over " + " and ".join(over)] if over else []
        found += ["bytes are missing"] if self.bytes_written != self.predicted_written else []
        return ", ".join(found) or "ok"


def merge(recipe: Path, memory: str, sink_name: str, folder: Path) -> dict[str, Any]:
    """Plans and merges in this process; what there is to tell."""
    begun = time.perf_counter()
    plan = plait.plan(recipe, plait.Options(memory=memory, device="cpu"))
    planned = time.perf_counter()
    sink = Remove(plan.layout, folder) if sink_name == "remove" else Discard(plan.layout)
    try:
        sink.begin()
        with Reader(drop_behind=sum(file.size for file in plan.files) > available_memory()) as reader:  # as `plait.merge` does
            report = execute(plan, sink, reader, pool=DevicePool(()))
            reader.check_unchanged(plan.files)
        sink.publish()
    finally:
        sink.abandon()
    ended = time.perf_counter()
    p = plan.prediction
    facts = {"plan_s": planned - begun, "run_s": ended - planned, "tensors": len(plan.components), "workers": plan.workers, "budget": plan.budget_bytes}
    facts |= {"predicted_s": p.seconds, "predicted_peak": p.peak_bytes, "predicted_read": p.bytes_read, "predicted_written": p.bytes_written}
    facts |= {"bytes_read": report.bytes_read, "bytes_written": report.bytes_written, "output_at_once": getattr(sink, "most_bytes", 0)}
    return facts | {"modules": sorted(sys.modules)}


def holes_rate(model: Path) -> float:
    """Bytes a second that all cores read of a sparse model's largest files, at most 4 GB of each, through buffers that a merge would use."""
    paths = sorted(model.glob("*.safetensors"), key=lambda path: -path.stat().st_size)[:2]
    sizes = [min(path.stat().st_size, 4 * 10**9) for path in paths]
    buffers = [[memoryview(bytearray(2 * MIB))] for _ in range(cores())]

    def read(number: int) -> None:
        for path, nbytes in zip(paths, sizes, strict=True):
            with open(path, "rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                for at in range(number * 2 * MIB, nbytes, len(buffers) * 2 * MIB):
                    os.preadv(stream.fileno(), buffers[number], at)

    return sum(sizes) / together([partial(read, number) for number in range(len(buffers))])


def calibrated_for_holes(model: Path, scratch: Path) -> dict[str, Any]:
    """Measures the machine for the plans of this process's children; what the disk is to real inputs, the file system's zeros are here."""
    calibrated(scratch)
    rates = replace(load_rates()[0], cold_read_bytes_s=holes_rate(model))
    save_rates(rates)
    return asdict(rates)


def measured(method: str, layers: int, args: argparse.Namespace, scratch: Path) -> Result:
    """Makes the inputs and merges them in a process of its own."""
    models = make_set(scratch / f"model-{layers}", replace(PRESETS[args.preset], layers=layers), args.experts, sparse=True)
    recipe = scratch / f"{method}-{layers}.yml"
    recipe.write_text(text_of(method, models))
    found: Measured = run([sys.executable, __file__, "--inside", str(recipe), "--memory", args.memory, "--sink", args.sink, "--scratch", str(scratch)])
    facts = json.loads(found.output.splitlines()[-1])
    imports = import_bytes(facts.pop("modules"))
    seconds = {"wall_s": found.wall_s, "cpu_s": found.cpu_s, **{name: facts.pop(name) for name in ("plan_s", "run_s", "predicted_s")}}
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    return Result(method=method, layers=layers, sink=args.sink, peak=found.peak_bytes - imports, imports=imports, **rounded, **facts)


def shown(r: Result) -> list[list[str]]:
    """The result as rows of a table."""
    moved = (r.bytes_read + r.bytes_written) / 1e9
    return [
        ["seconds", "plan", f"{r.plan_s:.2f}", ""],
        ["", "run", f"{r.run_s:.1f}", ""],
        ["", "whole process", f"{r.wall_s:.1f}", f"{r.predicted_s:.1f}"],
        ["", "CPU", f"{r.cpu_s:.1f}", ""],
        ["GB", "read", f"{r.bytes_read / 1e9:.2f}", f"{r.predicted_read / 1e9:.2f}"],
        ["", "written", f"{r.bytes_written / 1e9:.2f}", f"{r.predicted_written / 1e9:.2f}"],
        ["", "moved a second", f"{moved / r.run_s:.2f}", ""],
        ["", "of output on disk at once", f"{r.output_at_once / 1e9:.2f}", ""],
        ["tensors", "", str(r.tensors), ""],
        ["MiB", "private memory above imports", f"{r.peak / MIB:.1f}", f"{r.predicted_peak / MIB:.1f}"],
        ["", "private memory of the imports", f"{r.imports / MIB:.1f}", ""],
    ]


def main() -> None:
    args = arguments()
    if args.inside:
        print(json.dumps(merge(args.inside, args.memory, args.sink, args.scratch)))
        return
    with tempfile.TemporaryDirectory(prefix="full-70b-", dir=args.scratch) as name:
        scratch = Path(name)
        sparse = make_set(scratch / "holes", replace(PRESETS[args.preset], layers=min(args.layers, 10)), 0, sparse=True)[0]
        rates = calibrated_for_holes(sparse, scratch)
        measured(args.method, 1, args, scratch)
        result = measured(args.method, args.layers, args, scratch)
        facts = machine.describe(scratch)
    title = f"{args.method} of base + {args.experts}, shape {args.preset}, {args.layers} layers, --memory {args.memory}, sink {args.sink}"
    notes = ["inputs are sparse files: zeros, for reading, memory and writing only; real values and a real disk take longer", machine.line(facts)]
    notes += [] if result.verdict == "ok" else [result.verdict]
    data = {
        "machine": {**facts, "rates": rates},
        "page_cache": "cold; holes are made up by the file system",
        "result": {**asdict(result), "verdict": result.verdict},
    }
    save(args.name, {**data, "notes": notes}, table_of(title, ["", "", "measured", "predicted"], shown(result), notes), args.results)
    sys.exit(result.verdict != "ok")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="ties")
    parser.add_argument("--preset", choices=PRESETS, default="70b", help="a smaller shape, to try the script")
    parser.add_argument("--layers", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--experts", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--memory", default="1GiB", help="default: %(default)s")
    parser.add_argument("--sink", choices=SINKS, default="remove", help="write and remove each file, or only count; default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="folder for inputs and output (default: the system's)")
    parser.add_argument("--name", default="full_70b", help="of the files under results; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
