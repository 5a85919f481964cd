"""The floor of a merge: read all inputs and write as many bytes as the output has, and compute nothing.

It is meant to be the cheapest way to move the bytes, so that nothing a merge does can hide in it: threads that read 2 MiB at a time with
`preadv` into page-aligned buffers, and beside them threads that write from the first moment on, although a merge has nothing to write
before it has read. `direct` writes 2 MiB past the page cache (O_DIRECT), as a merge does; `buffered` writes 256 KiB through it. Reads
are of a warm page cache when the files were read before and fit in memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plait.ops.errors import CheckpointError

PAGE = 4096
READ_BYTES = 2 << 20
#: Of one call. Through the page cache larger calls were at times many times slower (docs/decisions/0005).
WRITE_BYTES = {"direct": 2 << 20, "buffered": 256 << 10}
WAYS = tuple(WRITE_BYTES)

Source = tuple[int, int]  #: descriptor and size of an input file


@dataclass(frozen=True)
class Floor:
    """One measurement: seconds, and the bytes that were moved."""

    wall_s: float
    cpu_s: float
    bytes_read: int
    bytes_written: int
    passes: int
    threads: int
    write: str
    synced: bool


def weight_files(model: Path) -> list[Path]:
    """The files that hold a model's weights."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    if not files:
        raise CheckpointError(f"{model} has no safetensors file; give the folder of a model", path=str(model))
    return files


def weight_bytes(models: Sequence[Path]) -> int:
    """Bytes of the weight files of some models."""
    return sum(f.stat().st_size for m in models for f in weight_files(m))


def warm(models: Sequence[Path]) -> None:
    """Reads everything once, so that the page cache holds it when it fits."""
    buffer = pages(READ_BYTES)
    for file in (f for m in models for f in weight_files(m)):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer.data):
                pass


def pages(nbytes: int) -> NDArray[np.uint8]:
    """Memory that begins on a page: O_DIRECT asks for it, and the kernel's copy is up to four times slower just beside one."""
    memory = np.zeros(nbytes + PAGE, np.uint8)
    start = -memory.__array_interface__["data"][0] % PAGE
    return memory[start : start + nbytes]


def writes_direct(folder: Path) -> bool:
    """Whether files in a folder can be written past the page cache."""
    probe = folder / f".direct-{os.getpid()}"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    except OSError:
        return False
    else:
        os.close(fd)
        return True
    finally:
        probe.unlink(missing_ok=True)  # some file systems make the file and then refuse


def floor(inputs: Sequence[Path], out: Path, output_bytes: int, passes: int = 1, threads: int = 2, *, write: str = "direct", sync: bool = True) -> Floor:
    """Reads the inputs `passes` times and writes `output_bytes` meanwhile; the output is removed.

    Args:
        inputs: model folders or files.
        out: file to write; must not exist.
        output_bytes: how much to write.
        passes: how often the inputs are read.
        threads: that read, and as many that write.
        write: `direct`, past the page cache, or `buffered`.
        sync: make the output durable before the clock stops.
    """
    sources = [(os.open(f, os.O_RDONLY), f.stat().st_size) for m in inputs for f in weight_files(m)]
    opened = [fd for fd, _ in sources]
    start, cpu = time.perf_counter(), time.process_time()
    opened.append(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    plain = target = opened[-1]
    try:
        if output_bytes:
            os.posix_fallocate(plain, 0, output_bytes)  # a full disk is found first, as by a merge
        if write == "direct":
            target = os.open(out, os.O_WRONLY | os.O_DIRECT)
            opened.append(target)
        read = _move(sources, passes, plain, target, output_bytes, WRITE_BYTES[write], threads)
        if sync:
            os.fsync(plain)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        for fd in opened:
            os.close(fd)
        out.unlink()
    return Floor(wall, cpu, read, output_bytes, passes, threads, write, sync)


def _move(sources: Sequence[Source], passes: int, plain: int, target: int, output_bytes: int, write_bytes: int, threads: int) -> int:
    """Readers and writers side by side; returns the bytes read."""
    counts: list[int] = []

    def reader(places: Iterator[int]) -> None:
        buffer = pages(READ_BYTES)
        count = 0
        for at in places:
            for fd, size in sources:
                if at < size:
                    count += os.preadv(fd, [buffer[: min(READ_BYTES, size - at)].data], at)
        counts.append(count)

    def writer(places: Iterator[int]) -> None:
        buffer = pages(write_bytes)
        for at in places:
            length = min(write_bytes, output_bytes - at)
            whole = length // PAGE * PAGE
            if whole:
                _write(target, buffer[:whole], at)
            if length > whole:  # the end of the file, which O_DIRECT cannot write
                _write(plain, buffer[whole:length], at + whole)

    longest = max((size for _, size in sources), default=0)
    reads = (at for _ in range(passes) for at in range(0, longest, READ_BYTES))
    _together([(reader, reads), (writer, iter(range(0, output_bytes, write_bytes)))], threads)
    return sum(counts)


def _write(target: int, data: NDArray[np.uint8], offset: int) -> None:
    done = os.pwrite(target, data.data, offset)
    if done != len(data):
        raise OSError(f"only {done} of {len(data)} bytes were written; is the disk full?")


def _together(roles: Sequence[tuple[Callable[[Iterator[int]], None], Iterator[int]]], threads: int) -> None:
    """Runs each role in some threads, which share its places; raises the first failure."""
    lock = threading.Lock()
    failures: list[BaseException] = []

    def shared(places: Iterator[int]) -> Iterator[int]:
        while True:
            with lock:
                at = next(places, None)
            if at is None or failures:
                return
            yield at

    def work(role: Callable[[Iterator[int]], None], places: Iterator[int]) -> None:
        try:
            role(shared(places))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=pair) for pair in roles for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
