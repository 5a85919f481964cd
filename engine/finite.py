"""Infinity and NaN: found in inputs and outputs while their bytes pass by, named, and kept only when asked for.

Every input is looked through in the first pass that reads it, every output block before it is written: the largest magnitude as an integer
tells (`peak16` in ops/kernels/jit_bits.py). What follows costs only where something is found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from plait.engine.blockrun import Array, BlockData
from plait.engine.events import Report
from plait.engine.reader import Reader
from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError, KernelError
from plait.planner.plan import Plan
from plait.planner.program import Stage
from plait.planner.types import TensorRef

if TYPE_CHECKING:
    from plait.engine.component import ComponentRun

#: For each storage dtype the unsigned type of its bits, those of the magnitude, and the first that is no number.
_BITS: dict[str, tuple[type[np.unsignedinteger], int, int]] = {
    "F64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
}
_LARGEST = {"F16": "65504", "BF16": "3.39e38", "F32": "3.4e38"}
_PIECE = 1 << 18  #: bytes of an input that are scanned at once


def first_not_finite(storage: str) -> int:
    """Bits of infinity: of the smallest magnitude that is no number."""
    return _BITS[storage][2]


def peak(bits: Array, storage: str) -> int:
    """Largest magnitude of stored values, as bits; infinity and NaN lie above all numbers.

    Args:
        bits: contiguous, of any dtype of the right size.
        storage: code of a float that plait computes on or copies.
    """
    kind, magnitude, _ = _BITS[storage]
    return max((int((values & kind(magnitude)).max()) for values in _pieces(bits.view(kind))), default=0)


def count(bits: Array, storage: str) -> tuple[int, int]:
    """How many stored values are NaN, and how many infinite."""
    kind, magnitude, limit = _BITS[storage]
    nan = infinite = 0
    for piece in _pieces(bits.view(kind)):
        values = piece & kind(magnitude)
        nan += int(np.count_nonzero(values > limit))
        infinite += int(np.count_nonzero(values == limit))
    return nan, infinite


def _pieces(values: Array) -> Iterator[Array]:
    """Runs of values of which a copy is small beside a worker's buffers."""
    flat, count = values.reshape(-1), _PIECE // values.itemsize
    return (flat[first : first + count] for first in range(0, flat.size, count))


class Finiteness:
    """Watches over one run; every method may be called from any thread.

    Args:
        plan, reader, report: of the run.
        allow: count and report instead of stopping.
    """

    def __init__(self, plan: Plan, reader: Reader, report: Report, *, allow: bool) -> None:
        """Nothing found yet."""
        self._plan, self._reader, self._report, self._allow = plan, reader, report, allow
        self._lock = threading.Lock()

    def look(self, run: ComponentRun, stage: Stage, data: BlockData, checked: Sequence[int], peaks: Sequence[int] | None) -> None:
        """After a block: are its inputs and its output finite?

        Args:
            run, stage, data: of the block.
            checked: loads that this pass is the first to read.
            peaks: largest magnitudes of those and of the output, where the runner found them.

        Raises:
            CheckpointError: an input is not finite.
            KernelError: the output is not.
        """
        refs = [run.ref(load) for load in checked]
        if peaks is None:  # of a runner that was given whole blocks
            peaks = [peak(data.inputs[stage.loads.index(load)], ref.dtype) for load, ref in zip(checked, refs, strict=True)]
            peaks += [] if data.out is None else [peak(data.out, run.program.dtype)]
        for load, ref, found in zip(checked, refs, peaks, strict=False):
            if found >= _BITS[ref.dtype][2]:
                size = BY_CODE[ref.dtype].itemsize
                read_again = partial(self._count, ref, data.start * size, data.n * size)  # of what a kernel read itself only the last piece is there
                self._input(ref, read_again if data.sources is not None else partial(count, data.inputs[stage.loads.index(load)], ref.dtype))
        if data.out is not None and peaks[-1] >= _BITS[run.program.dtype][2]:
            self._output(run, stage, data, data.out)

    def watch(self, ref: TensorRef) -> Callable[[Array], None] | None:
        """What bytes of an input that is copied without decoding are shown to; None where they are no floats that can be told."""
        storage = ref.dtype
        if storage not in _BITS:
            return None

        def see(piece: Array) -> None:
            if peak(piece, storage) >= _BITS[storage][2]:
                self._input(ref, partial(count, piece, storage))

        return see

    def scan(self, ref: TensorRef) -> None:
        """Read a whole input and look through it.

        Raises:
            CheckpointError: it is not finite.
        """
        nan, infinite = self._count(ref)
        if nan + infinite:
            self._found_input(ref, nan, infinite)

    def _count(self, ref: TensorRef, start: int = 0, nbytes: int | None = None) -> tuple[int, int]:
        end = ref.nbytes if nbytes is None else start + nbytes
        buffer, nan, infinite = np.empty(min(_PIECE, end - start), np.uint8), 0, 0
        for first in range(start, end, _PIECE):
            piece = buffer[: min(_PIECE, end - first)]
            self._reader.read_into(ref.file, ref.start + first, piece)
            more = count(piece, ref.dtype)
            nan, infinite = nan + more[0], infinite + more[1]
        return nan, infinite

    def _input(self, ref: TensorRef, seen: Callable[[], tuple[int, int]]) -> None:
        """An input is not finite; `seen` counts NaN and infinite values among those just looked at."""
        self._found_input(ref, *(seen() if self._allow else self._count(ref)))

    def _found_input(self, ref: TensorRef, nan: int, infinite: int) -> None:
        if self._allow:
            with self._lock:
                key = (ref.file, ref.name)
                self._report.nonfinite_inputs[key] = self._report.nonfinite_inputs.get(key, 0) + nan + infinite
            return
        elements = ref.nbytes // BY_CODE[ref.dtype].itemsize
        raise CheckpointError(
            f"{ref.file}: tensor {ref.name!r} holds {_told(nan, infinite)} among its {elements} values; "
            "use an undamaged copy of the model, or give --allow-nonfinite to merge it as it is",
            path=ref.file,
            tensor=ref.name,
            nan=nan,
            infinite=infinite,
        )

    def _output(self, run: ComponentRun, stage: Stage, data: BlockData, out: Array) -> None:
        nan, infinite = count(out, run.program.dtype)
        beyond = self._beyond(run, stage, data) if run.program.dtype != "F32" else 0
        name = run.component.name
        if self._allow:
            with self._lock:
                before = self._report.nonfinite_outputs.get(name, (0, 0))
                self._report.nonfinite_outputs[name] = (before[0] + nan + infinite, before[1] + beyond)
            return
        where = f"{run.component.origin}: " if run.component.origin else ""
        dtype = BY_CODE[run.program.dtype].name
        if beyond:
            what = f"{beyond} values beyond the range of {dtype} ({_LARGEST[run.program.dtype]})" + (f" and {nan} NaN" if nan else "")
            advice = "set out_dtype to bfloat16 or float32" if run.program.dtype == "F16" else "set out_dtype: float32, or smaller weights"
        else:
            what, advice = f"{_told(nan, infinite)} from finite inputs", self._advice(run)
        raise KernelError(
            f"{where}{self._plan.title} of tensor {name!r} gives {what} in elements {data.start} to {data.start + data.n - 1}; "
            f"{advice}, or give --allow-nonfinite to write them",
            tensor=name,
            nan=nan,
            infinite=infinite,
            overflowed=beyond,
        )

    def _advice(self, run: ComponentRun) -> str:
        casts = {str(node.param("storage")) for node in run.program.nodes if node.op == "cast"}
        for storage in ("F16", "BF16"):
            if storage in casts:
                return f"dtype: {BY_CODE[storage].name} holds numbers up to {_LARGEST[storage]}, so set dtype: float32"
        return "change its weights or parameters"

    def _beyond(self, run: ComponentRun, stage: Stage, data: BlockData) -> int:
        """How many values of an output block were numbers before they were rounded to its dtype and are none afterwards."""
        stored = data.out
        assert stored is not None
        kind, magnitude, limit = _BITS[run.program.dtype]
        lost = (stored.view(kind) & kind(magnitude)) >= limit
        return int(np.count_nonzero(np.isfinite(run.looking.computed(stage, data.start, data.n)) & lost))


def _told(nan: int, infinite: int) -> str:
    parts = [f"{nan} NaN"] if nan else []
    parts += [f"{infinite} infinite value{'s' if infinite > 1 else ''}"] if infinite else []
    return " and ".join(parts)
