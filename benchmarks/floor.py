"""The floor of a merge: read all inputs and write as many bytes as the output has, and compute nothing.

    python benchmarks/floor.py /data/tl/base /data/tl/expert1 --out /data/floor.bin               # inputs read once
    python benchmarks/floor.py /data/tl/base /data/tl/expert1 --out /data/floor.bin --passes 2    # read twice

Reads of 1 MiB with `pread` into recycled pages and writes of 1 MiB with `pwrite`, interleaved, from two threads. The output is as long
as the weights of the first input and is removed afterwards, outside the time. `--sync` adds the fsync that makes it durable, which
`plait merge` always does. Reads are of a warm page cache when the files were read before and fit in memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

READ_BYTES = 1 << 20  # larger ones leave the processor's cache and were slower
WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class Floor:
    """One measurement: seconds, and the bytes that were moved."""

    wall_s: float
    cpu_s: float
    bytes_read: int
    bytes_written: int
    passes: int
    threads: int
    synced: bool


@dataclass(frozen=True)
class _Unit:
    """What a thread does at a time: one run of each input that is that long, and the same place of the output."""

    offset: int
    write: bool


def weight_files(model: Path) -> list[Path]:
    """The files that hold a model's weights."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    if not files:
        raise SystemExit(f"{model} has no safetensors file")
    return files


def weight_bytes(models: Sequence[Path]) -> int:
    """Bytes of the weight files of some models."""
    return sum(f.stat().st_size for m in models for f in weight_files(m))


def warm(models: Sequence[Path]) -> None:
    """Reads everything once, so that the page cache holds it when it fits."""
    buffer = bytearray(READ_BYTES)
    for file in (f for m in models for f in weight_files(m)):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def floor(inputs: Sequence[Path], out: Path, output_bytes: int, passes: int = 1, threads: int = 2, *, sync: bool = False) -> Floor:
    """Reads the inputs `passes` times and writes `output_bytes`; the output is removed.

    Args:
        inputs: model folders or files.
        out: file to write; must not exist.
        output_bytes: how much to write, in the last pass.
        passes: how often the inputs are read.
        threads: that read and write.
        sync: make the output durable before the clock stops.
    """
    sources = [(os.open(f, os.O_RDONLY), f.stat().st_size) for m in inputs for f in weight_files(m)]
    longest = max([output_bytes, *(size for _, size in sources)])
    units = [_Unit(at, number == passes - 1) for number in range(passes) for at in range(0, longest, READ_BYTES)]
    start, cpu = time.perf_counter(), time.process_time()
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if output_bytes:
            os.posix_fallocate(target, 0, output_bytes)  # a full disk is found first, as by a merge
        read = _together(sources, target, output_bytes, units, threads)
        if sync:
            os.fsync(target)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        for fd in (target, *(fd for fd, _ in sources)):
            os.close(fd)
        out.unlink()
    return Floor(wall, cpu, read, output_bytes, passes, threads, sync)


def _together(sources: Sequence[tuple[int, int]], target: int, output_bytes: int, units: list[_Unit], threads: int) -> int:
    """Goes through the units in order with some threads; returns the bytes read."""
    todo = iter(units)
    lock = threading.Lock()
    counts = [0] * threads
    failures: list[BaseException] = []

    def work(me: int) -> None:
        # Whole pages, not a bytearray: where a buffer lies 1 to 31 bytes after its place in the file, modulo a page, the kernel's copy
        # was four times slower on the processor that this was written on.
        buffer = memoryview(mmap.mmap(-1, READ_BYTES))
        try:
            while True:
                with lock:
                    unit = next(todo, None)
                if unit is None or failures:
                    return
                for fd, size in sources:
                    if unit.offset < size:
                        counts[me] += os.preadv(fd, [buffer[: min(READ_BYTES, size - unit.offset)]], unit.offset)
                if unit.write:
                    _write(target, buffer, unit.offset, min(READ_BYTES, output_bytes - unit.offset))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(counts)


def _write(target: int, data: memoryview, offset: int, length: int) -> None:
    for at in range(0, length, WRITE_BYTES):
        os.pwrite(target, data[at : min(at + WRITE_BYTES, length)], offset + at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help="model folders or files")
    parser.add_argument("--out", type=Path, required=True, help="file to write; must not exist, is removed")
    parser.add_argument("--bytes", type=int, help="size of the output (default: that of the first input's weights)")
    parser.add_argument("--passes", type=int, default=1, help="how often the inputs are read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sync", action="store_true", help="fsync the output inside the time")
    parser.add_argument("--no-warm", action="store_true", help="do not read the inputs once before the time")
    args = parser.parse_args()
    if not args.no_warm:
        warm(args.inputs)
    size = weight_bytes(args.inputs[:1]) if args.bytes is None else args.bytes
    print(json.dumps(asdict(floor(args.inputs, args.out, size, args.passes, args.threads, sync=args.sync))))


if __name__ == "__main__":
    main()
