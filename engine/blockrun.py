"""One block of one stage, computed: the contract that the compiled kernels and the reference interpreter share."""

from __future__ import annotations

from ctypes import memset
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plait.engine.codegen import generate
from plait.engine.kernel import Kernel
from plait.engine.pulling import FAILED, SPENT_NS, aim
from plait.engine.tables import table
from plait.ops.kernels.select import SCAN
from plait.planner.blocks import (
    CHUNK,
    COARSE,
    PULL_WORDS,
    PULL_WORDS_EACH,
    RANK_COUNTS,
    RANK_SPARE,
    SEARCH_PIECE,
    SPAN,
    SPARSE_LIMIT,
    block_elements,
    marked_pieces,
)
from plait.planner.program import Program, Stage

if TYPE_CHECKING:
    from plait.engine.pool import Seat

Array = npt.NDArray[Any]
#: Elements of a block whose 16-bit words, a sum in 2036 of them, can be added up in 32 bits.
_MOST_SUMMED = 2036 << 16
RAW: dict[str, np.dtype[Any]] = {"BF16": np.dtype(np.uint16), "F16": np.dtype(np.uint16), "F32": np.dtype(np.float32)}


class Window(NamedTuple):
    """What is counted for an order statistic: how often each key of a window occurs, and what lies above it.

    Attributes:
        low: the first key of the window; -1 counts the coarse digits of all keys instead.
        width: keys of the window; it ends below 2^31.
        heavy: place in it of a key that most elements there are thought to have, or -1; it decides the speed alone.
    """

    low: int = -1
    width: int = SPAN
    heavy: int = -1


#: Nothing is counted.
IDLE = Window(low=-2)


@dataclass(slots=True)
class BlockData:
    """What a block is computed from and into.

    Attributes:
        n: elements of the block.
        start: flat index of its first element in the tensor.
        inputs: stored bits of each load, in `Stage.loads` order: uint16 for 16-bit floats, else float32. With `sources` only room for a piece.
        residents: float32 values of each whole result, in `Stage.residents` order.
        out: where the stored bits of the output go, or None.
        keeps: float32 destinations of `Stage.keeps`.
        smalls: value of every small node that the stage uses, by node.
        streams: `(key0, key1, word2, word3)` of each random node.
        windows: for each order statistic what is counted.
        sources: file descriptor and byte offset of the block in each input, for a kernel that reads them itself; None where `inputs` hold it.
        patient: a read that fails is tried again a few times before the kernel hears of it.
    """

    n: int
    start: int
    inputs: list[Array]
    residents: list[Array]
    out: Array | None
    keeps: list[Array]
    smalls: dict[int, Any]
    streams: list[tuple[int, int, int, int]]
    windows: list[Window]
    sources: list[tuple[int, int]] | None = None
    patient: bool = False


@dataclass(slots=True)
class Counts:
    """What one block adds to an order statistic.

    Attributes:
        above: elements above the window that was looked into.
        places, fine: places in it whose keys occur, and how often, where these are few.
        dense: how often each key of the window occurs, where these are many; valid until the worker's next block.
        marks: how often the heavy key occurs up to the end of each piece of the block, where that was counted.
        coarse: histogram of the coarse digits, where those were counted; valid until the worker's next block.
    """

    above: int = 0
    places: Array | None = None
    fine: Array | None = None
    dense: Array | None = None
    marks: Array | None = None
    coarse: Array | None = None


@dataclass(slots=True)
class BlockResult:
    """Partials of the folds of one block.

    Attributes:
        sums: one float64 for each fold that is a sum, a dot or the largest element, in `Kernel.sums` order.
        counts: for each order statistic its `Counts`.
        peaks: largest magnitude of each input that is checked, then of the output, as stored bits; None where the runner does not find them.
        columns: for each fold by columns its float64 vector; valid until the worker's next block.
        rows: for each fold that gathers the values of rows those of the block's rows; likewise.
        words: sums of the output's words for its checksum (`checksum.digest_of`), likewise; None where the runner does not take them.
        reading_ns: of the time, what was spent in reading inputs.
    """

    sums: list[float]
    counts: list[Counts]
    peaks: list[int] | None = None
    columns: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    words: Array | None = None
    reading_ns: int = 0


class ReadFailed(Exception):
    """A kernel could not read an input; its caller can find out why."""


class BlockRunner(Protocol):
    """Computes blocks of one stage; one instance belongs to one worker thread."""

    kernel: Kernel

    def run(self, data: BlockData) -> BlockResult:
        """Compute one block.

        Raises:
            ReadFailed: of inputs that it reads itself; nothing else is lost, the block may be tried again.
        """


class Carver:
    """Cuts arrays out of one buffer, in order; without a buffer it allocates them."""

    def __init__(self, buffer: Array | None) -> None:
        self.buffer, self.used = buffer, 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The next array, aligned to a cache line."""
        if self.buffer is None:
            return np.empty(shape, dtype)
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        piece = self.buffer[self.used : self.used + nbytes]
        self.used += -(-nbytes // 64) * 64
        carved: Array = piece.view(dtype).reshape(shape)
        return carved


def make_runner(
    program: Program, stage: Stage, backend: str, kernel: Kernel | None = None, scratch: Array | None = None, seat: Seat | None = None
) -> BlockRunner:
    """A runner of one stage: `numba` compiles it, `torch` interprets it, and on a GPU where the worker has a place on one.

    Args:
        program, stage: what to run.
        backend: `numba` or `torch`.
        kernel: the generated kernel, where it is known already.
        scratch: uint8 buffer for working arrays, of at least `planner.blocks.scratch_bytes`; the runners of one worker share it.
        seat: the worker's place on a GPU, where maps run there.
    """
    kernel = kernel or generate(program, stage)
    if seat is not None:
        from plait.engine.devicerun import device_runner

        return device_runner(program, stage, kernel, seat)
    if backend == "numba":
        return CompiledRunner(program, stage, kernel, scratch)
    from plait.engine.interpreter import Interpreter

    return Interpreter(program, stage, kernel)


class CompiledRunner:
    """Calls the generated kernel, with working arrays of its own."""

    def __init__(self, program: Program, stage: Stage, kernel: Kernel, scratch: Array | None = None) -> None:
        from plait.engine.compile import compiled

        self.kernel, self.stage = kernel, stage
        self.function = compiled(kernel)
        carve = Carver(scratch).take
        rows, accumulators = kernel.scratch
        self.scalars = carve((max(1, len(kernel.scalars)),), np.float64)
        self.facc = carve((max(1, len(kernel.sums)),), np.float64)
        self.fixed: list[Array] = [self.facc, carve((accumulators, 8), np.float64), carve((rows, CHUNK), np.float32)]
        self.peaks = carve((len(kernel.checked) + 1,), np.uint32)
        self.fixed += [carve((max(1, len(kernel.streams)), CHUNK), np.uint32), self.peaks]
        self.words = None if kernel.word_sums is None else carve((kernel.word_sums[1],), np.dtype(kernel.word_sums[0]))
        self.fixed += [] if self.words is None else [self.words]
        self.columns = carve((len(kernel.columns), stage.row_length), np.float64) if kernel.columns else None
        most = block_elements(stage, program.numel) // stage.row_length if kernel.gathered else 0
        self.rows = carve((len(kernel.gathered) * most,), np.float64) if kernel.gathered else None
        self.fixed += [array for array in (self.columns, self.rows) if array is not None]
        if kernel.selects:
            count = len(kernel.selects)
            self.coarse, self.fine, self.used = carve((count, COARSE), np.int64), carve((count, SPAN), np.int32), carve((count, SPAN // SCAN), np.uint8)
            self.low, self.width, self.heavy, self.above = (carve((count,), np.int64) for _ in range(4))
            self.fixed += [self.coarse, self.low, self.width, self.heavy, self.fine, self.used, self.above]
            self.found, self.places, self.times = carve((count,), np.int64), carve((count, SPARSE_LIMIT), np.uint32), carve((count, SPARSE_LIMIT), np.int64)
            self.marks = carve((count, marked_pieces(stage)), np.int32)
            self.fixed += [self.found, self.places, self.times, self.marks]
        self.pull = carve((PULL_WORDS + PULL_WORDS_EACH * len(stage.loads),), np.int64) if kernel.pulls else None
        self.fixed += [] if self.pull is None else [self.pull]
        if kernel.ranks:
            count, length = len(kernel.ranks), stage.row_length
            self.fixed += [
                carve((count, length), np.float32),
                carve((count, length), np.int32),
                carve((2, length + RANK_SPARE), np.uint64),
                carve((RANK_COUNTS,), np.uint32),
            ]
        self._fixed = [array.__array_interface__["data"][0] for array in self.fixed]
        self._tables: dict[int, tuple[Any, Array]] = {}
        self._nothing = np.zeros(2, np.int64)  # Numba's convention has places for a result and an error; there are none
        self._unused = self._nothing.__array_interface__["data"][0]

    def run(self, data: BlockData) -> BlockResult:
        """Compute one block; coarse histograms in the result are overwritten by the next call."""
        k = self.kernel
        for slot, (node, _) in enumerate(k.scalars):
            self.scalars[slot] = data.smalls[node]
        streams = np.array(data.streams or [(0, 0, 0, 0)], np.uint32)
        if k.selects:
            self._clear(data.windows)
        if self.pull is not None:
            aim(self.pull, data)
        tables = [self._table(i, dtype, data.smalls[i]) for i, dtype in k.tables.items()]
        out = [] if data.out is None else [data.out]
        row = self.stage.row_length or data.n
        arrays = (self.scalars, streams, *tables, *data.inputs, *data.residents, *out, *data.keeps)
        pointers = [array.__array_interface__["data"][0] for array in arrays]
        status = self.function(self._unused, self._unused, data.n, data.start, row, *pointers, *self._fixed)
        if status:
            raise RuntimeError(f"the compiled kernel {k.key} ended with status {status}; please report this")
        if self.pull is not None and self.pull[FAILED]:
            raise ReadFailed
        counts = [self._counts(i, window.low, data.n) for i, window in enumerate(data.windows)] if k.selects else []
        columns = [] if self.columns is None else list(self.columns)
        count = data.n // row
        rows = [] if self.rows is None else [self.rows[i * count : (i + 1) * count] for i in range(len(k.gathered))]
        words = self.words if data.n <= _MOST_SUMMED else None
        peaks = self.peaks[: len(k.checked) + self.stage.store].tolist()
        reading = 0 if self.pull is None else int(self.pull[SPENT_NS])
        return BlockResult(self.facc[: len(k.sums)].tolist(), counts, peaks, columns, rows, words, reading)

    def _table(self, i: int, dtype: str, values: Any) -> Array:
        """A small vector in the type that the kernel takes; converted once for each tensor."""
        known = self._tables.get(i)
        if known is None or known[0] is not values:
            known = self._tables[i] = (values, table(values, dtype))
        return known[1]

    def _clear(self, windows: list[Window]) -> None:
        self.above[:] = 0
        self.used[:] = 0
        for i, window in enumerate(windows):
            self.low[i], self.width[i], self.heavy[i] = window
            if window.low == -1:
                memset(self.coarse[i].ctypes.data, 0, self.coarse[i].nbytes)  # three times as fast as NumPy's assignment
            elif window.low >= 0:
                memset(self.fine[i].ctypes.data, 0, 4 * window.width)

    def _counts(self, i: int, low: int, n: int) -> Counts:
        if low == -1:
            return Counts(coarse=self.coarse[i])
        if low < 0:
            return Counts()
        found = int(self.found[i])
        if found <= SPARSE_LIMIT:
            marks = None if self.stage.row_length or self.heavy[i] < 0 else self.marks[i, : -(-n // SEARCH_PIECE)].copy()
            return Counts(int(self.above[i]), self.places[i, :found].astype(np.int64), self.times[i, :found].copy(), marks=marks)
        return Counts(int(self.above[i]), dense=self.fine[i, : int(self.width[i])])
