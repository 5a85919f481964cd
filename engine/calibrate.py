"""Measures how fast this machine is, in a few seconds: files in the folder that outputs go to, real kernels, small real merges.

Rates are the best of a few rounds, those of writing the worst, with all cores at work, the way the executor works them. What is written lies in one temporary
folder and is removed. `plait bench machine` calls this and stores the result (`engine/ratefile.py`).
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.kernelrates import compiler_rates, kernel_rates, together
from plait.engine.machine import cores
from plait.engine.shardfile import ShardFile
from plait.ops.algebra import dot
from plait.ops.errors import OutputError
from plait.ops.tensor import LazyTensor
from plait.planner.blocks import BLOCK
from plait.planner.expressions import OutputSpec
from plait.planner.rates import Rates
from plait.planner.types import FileIdentity, TensorRef

#: Bytes of the file that reading and writing are measured with.
FILE_BYTES = 128 << 20
_READ_BYTES = 2 << 20  # of a block of 16-bit elements
_RING = 4  # a worker's buffers: of the inputs of a block
_ROUNDS = 3
#: What every merge does before it plans and runs.
_START = """
import plait.cli, plait.api, plait.progress, plait.engine.executor, plait.engine.writer, plait.engine.reader, plait.planner.yaml_source
from plait.engine.compile import cache_folder, numba_available, target_machine
from plait.ops.method import methods, steps
methods(), steps()
if numba_available():
    cache_folder(), target_machine()
"""

Tell = Callable[[str], None]


def measure_rates(folder: Path, nbytes: int = FILE_BYTES, *, whole: bool = False, tell: Tell | None = None) -> Rates:
    """The rates of this machine.

    Args:
        folder: where outputs go; what is written is removed.
        nbytes: size of the file that is written and read; a smaller one is quicker and less exact.
        whole: measure products of large matrices, too, which needs torch.
        tell: hears what is measured next.

    Raises:
        OutputError: the folder cannot be written to.
    """
    from plait.engine.compile import numba_available

    said = tell or (lambda what: None)
    threads = cores()
    found: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".plait-bench-", dir=folder) as name:
            said("writing")
            found |= _writing(Path(name), nbytes, threads)
            said("reading")
            found |= _reading(Path(name) / "data", nbytes, threads)
            said("memory")
            found |= _memory(nbytes // 2, threads)
            if numba_available():
                elements = max(1024, min(BLOCK, nbytes // 64) // 1024 * 1024)
                said("kernels")
                found |= kernel_rates(elements, threads)
                said("compiler")
                found |= compiler_rates(elements)
            said("bookkeeping")
            found |= _bookkeeping(Path(name), max(20, min(150, nbytes >> 19)))
    except OSError as error:
        raise OutputError(
            f"{folder}: the speed of this folder cannot be measured ({error.strerror or error}); give another --folder", path=str(folder)
        ) from error
    said("starting")
    found["start_s"] = max(_seconds(lambda: subprocess.run([sys.executable, "-c", _START], check=True)) for _ in range(2))
    if whole:
        said("matrices")
        found["whole_flops_s"] = _matrix_rate()
    return replace(Rates(), cores=threads, measured=True, **found)


# -- files -------------------------------------------------------------------------------------------
def _writing(folder: Path, nbytes: int, threads: int) -> dict[str, float]:
    """Writing output as the engine does, copying in the kernel, and flushing what was copied."""
    source, copy = folder / "data", folder / "copy"
    pieces = [_pages(_READ_BYTES) for _ in range(threads)]
    shares = [range(k * _READ_BYTES, nbytes, threads * _READ_BYTES) for k in range(threads)]
    written: list[float] = []
    flushed: list[float] = []
    rates: dict[str, float] = {}
    for _ in range(_ROUNDS):
        source.unlink(missing_ok=True)
        file = ShardFile(source, nbytes)
        try:
            puts = [_each(share, _put(file, piece)) for share, piece in zip(shares, pieces, strict=True)]
            begun = time.perf_counter()
            together(puts)
            file.sync()
            written.append(time.perf_counter() - begun)
            again = _seconds(file.sync)
            rates |= _copying(file.fd, copy, nbytes // 4)
            flushed.append(rates.pop("flushed", 0.0))
        finally:
            file.close()
    # the slowest round, not the best: an output is larger than this file, and the first bytes of a burst are the quickest
    if max(flushed):
        rates["sync_bytes_s"] = min(filter(None, flushed))
    return rates | {"write_bytes_s": nbytes / max(written), "sync_s": max(1e-5, again)}


def _put(file: ShardFile, piece: Array) -> Callable[[int], object]:
    return lambda at: file.write(piece.data, piece.__array_interface__["data"][0], at)


def _copying(source: int, path: Path, nbytes: int) -> dict[str, float]:
    """Bytes a second of `copy_file_range`, and of the flush after it; nothing where there is no such call."""
    if not hasattr(os, "copy_file_range"):
        return {}
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.pread(source, nbytes, 0)  # into the page cache: a copy from there is measured
        begun, done = time.perf_counter(), 0
        while done < nbytes and (count := os.copy_file_range(source, fd, nbytes - done, done, done)):
            done += count
        return {"copy_bytes_s": done / (time.perf_counter() - begun), "flushed": done / _seconds(lambda: os.fsync(fd))}
    except OSError:  # not on this filesystem
        return {}
    finally:
        os.close(fd)


def _reading(path: Path, nbytes: int, threads: int) -> dict[str, float]:
    """Reading the file: what is on disk only, then what the page cache holds, into small buffers and into large memory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        buffers = [_pages(_RING * _READ_BYTES) for _ in range(threads)]
        shares = [range(k * _READ_BYTES, nbytes, threads * _READ_BYTES) for k in range(threads)]
        small = [_each(share, _get(fd, buffer)) for share, buffer in zip(shares, buffers, strict=True)]
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        cold = together(small)
        warm = min(together(small) for _ in range(_ROUNDS))
        alone = min(_seconds(small[0]) for _ in range(_ROUNDS))
        large = [_pages(len(share) * _READ_BYTES) for share in shares]
        slabs = [_each(range(len(share)), _get_into(fd, share, slab)) for share, slab in zip(shares, large, strict=True)]
        together(slabs)
        fill = min(together(slabs) for _ in range(_ROUNDS))
    finally:
        os.close(fd)
    first = len(shares[0]) * _READ_BYTES
    return {
        "cold_read_bytes_s": nbytes / cold,
        "read_bytes_s": nbytes / warm,
        "read_thread_bytes_s": min(first, nbytes) / alone,
        "fill_bytes_s": nbytes / fill,
    }


def _get(fd: int, buffer: Array) -> Callable[[int], object]:
    def run(at: int) -> int:
        place = at // _READ_BYTES % _RING * _READ_BYTES
        return os.preadv(fd, [buffer[place : place + _READ_BYTES].data], at)

    return run


def _get_into(fd: int, share: range, slab: Array) -> Callable[[int], object]:
    return lambda k: os.preadv(fd, [slab[k * _READ_BYTES : (k + 1) * _READ_BYTES].data], share[k])


def _memory(nbytes: int, threads: int) -> dict[str, float]:
    """Touching fresh memory, and reading memory that no processor cache holds."""
    fresh = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
    faults = _seconds(lambda: _touch(fresh))
    arrays = [np.ones(nbytes // threads // 8, np.uint64) for _ in range(threads)]
    seconds = min(together([a.sum for a in arrays]) for _ in range(_ROUNDS))
    return {"fault_bytes_s": nbytes / faults, "memory_bytes_s": sum(a.nbytes for a in arrays) / seconds}


def _touch(memory: Array) -> None:
    memory[:: mmap.PAGESIZE] = 1


def _pages(nbytes: int) -> Array:
    """Memory that begins at a page and has been touched."""
    memory = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
    _touch(memory)
    return memory


def _each(places: Sequence[int], call: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        for at in places:
            call(at)

    return run


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return max(1e-9, time.perf_counter() - begun)


# -- bookkeeping and matrices ------------------------------------------------------------------------
def _bookkeeping(folder: Path, count: int) -> dict[str, float]:
    """Planning and running merges of many tensors that hold next to nothing: with one pass each, and with two."""
    shape, nbytes = (64,), 128
    header = {str(k): {"dtype": "BF16", "shape": list(shape), "data_offsets": [k * nbytes, (k + 1) * nbytes]} for k in range(2 * count)}
    text = json.dumps(header).encode()
    path = folder / "small.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * count * nbytes))
    refs = [TensorRef(str(path), str(k), "BF16", shape, 8 + len(text) + k * nbytes, nbytes) for k in range(2 * count)]
    status = path.stat()
    identity = FileIdentity(str(path), status.st_size, status.st_mtime_ns, "")
    one, two = (min(_merge_seconds(folder, build, refs, identity, count) for _ in range(2)) for build in (_one_pass, _two_passes))
    unit = max(1e-6, (two - one) / count)
    return {"unit_s": unit, "component_s": max(1e-6, one / count - unit)}


def _one_pass(leaves: Sequence[LazyTensor]) -> LazyTensor:
    return leaves[0] + leaves[1]


def _two_passes(leaves: Sequence[LazyTensor]) -> LazyTensor:
    return leaves[0] + leaves[1] * dot(leaves[0], leaves[1])


def _merge_seconds(folder: Path, build: Callable[[Sequence[LazyTensor]], LazyTensor], refs: Sequence[TensorRef], identity: FileIdentity, count: int) -> float:
    from plait.engine.executor import execute
    from plait.engine.reader import Reader
    from plait.engine.writer import OutputFolder
    from plait.planner.layout import make_layout
    from plait.planner.resources import Resources
    from plait.planner.schedule import make_plan

    begun = time.perf_counter()
    specs = [OutputSpec(str(k), "BF16", (refs[2 * k], refs[2 * k + 1]), build.__name__, build) for k in range(count)]
    layout = make_layout([(spec.name, spec.dtype, refs[0].shape) for spec in specs], 1 << 30)
    plan = make_plan("calibration", specs, layout, [identity], Resources(1 << 30, cores(), _backend(), residency="reread"))
    with OutputFolder(folder / "out", plan.layout) as sink, Reader() as reader:
        execute(plan, sink, reader)
        return time.perf_counter() - begun


def _backend() -> str:
    from plait.engine.compile import numba_available

    return "numba" if numba_available() else "torch"


def _matrix_rate() -> float:
    """Float64 operations a second in a product of matrices, on all cores."""
    import torch

    side = 1024
    a = torch.ones((side, side), dtype=torch.float64)
    torch.mm(a, a)
    return 2.0 * side**3 / min(_seconds(lambda: torch.mm(a, a)) for _ in range(_ROUNDS))
