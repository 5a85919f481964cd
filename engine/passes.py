"""Passes over a component: work that the executor spreads over its workers, unit by unit in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import ge
from typing import TYPE_CHECKING, Protocol

import numpy as np

from plait.engine.blockrun import IDLE, RAW, Array, BlockData, BlockResult, BlockRunner, ReadFailed
from plait.engine.checksum import digest, digest_of
from plait.engine.copying import read_source
from plait.engine.finite import first_not_finite
from plait.engine.lanes import READING
from plait.engine.worker import Host, Worker
from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError
from plait.ops.op import NUMBER_FOLDS
from plait.planner.blocks import BLOCK, COPIED_THROUGH, COPY_PIECE, aligned, strips
from plait.planner.program import Stage
from plait.planner.types import TensorRef

if TYPE_CHECKING:
    from plait.engine.component import ComponentRun


COPY_UNIT = 64 << 20  #: bytes of a tensor copied without decoding that are copied at once
#: Smaller blocks are written by the worker itself: they go to the page cache, and another thread would only take longer.
_WORTH_HANDING_OVER = 1 << 17
#: How often a block is computed whose inputs a kernel cannot read: the second time with patience, then as often as the reader can read them.
_TRIES = 4


class Pass(Protocol):
    """Work that the executor spreads over its workers."""

    @property
    def units(self) -> int:
        """How many units there are."""

    def run(self, worker: Worker, unit: int) -> None:
        """Do one unit."""


@dataclass(slots=True)
class CopyPass:
    """The output's bytes are one input's: copied without decoding."""

    host: Host
    name: str
    source: TensorRef
    shard: int
    offset: int
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Cut it into pieces of 64 MiB, without those that an earlier run made durable."""
        nbytes, found = self.source.nbytes, self.host.found
        pieces = [(first, min(COPY_UNIT, nbytes - first)) for first in range(0, nbytes, COPY_UNIT)]
        self.pieces = [(first, length) for first, length in pieces if not found.covers(self.shard, self.offset + first, length)]
        durable = nbytes - sum(length for _, length in self.pieces)
        self.host.progress(durable, durable)

    @property
    def units(self) -> int:
        """How many pieces."""
        return len(self.pieces)

    def run(self, worker: Worker, unit: int) -> None:
        """Copy up to 64 MiB."""
        first, length = self.pieces[unit]
        source, see = self.host.reader.fd(self.source.file), self.host.finite.watch(self.source)
        if self.source.nbytes >= COPIED_THROUGH and self.host.sink.past_cache(self.shard):
            for at in range(first, first + length, COPY_PIECE):
                self._through_buffer(worker, at, min(COPY_PIECE, first + length - at), source, see)
            return
        with worker.lane.writing(length):
            self.host.sink.copy(self.shard, self.offset + first, source, self.source.start + first, length, see)
        worker.lane.read += length
        self.host.count_copied(length)
        self.host.progress(length, length)

    def _through_buffer(self, worker: Worker, at: int, nbytes: int, source: int, see: Callable[[Array], None] | None) -> None:
        if self.host.found.covers(self.shard, self.offset + at, nbytes):  # of a unit that an earlier run did in part
            self.host.progress(nbytes, nbytes)
            return
        self.host.count_copied(nbytes)
        piece = worker.output(nbytes, self.offset + at, 1)
        before = worker.lane.switch(READING)
        read_source(source, self.source.start + at, piece)
        worker.lane.switch(before)
        worker.lane.read += nbytes
        if see is not None:
            see(piece)
        worker.sent(self.host.writing.write(self.name, self.shard, self.offset + at, piece, digest(piece)), nbytes)
        self.host.progress(nbytes)


class BlockPass:
    """One pass over the blocks of a stage.

    Args:
        run: the component.
        stage: its stage.
        count_only: order statistics that are counted again; empty for the stage's main pass.
    """

    def __init__(self, run: ComponentRun, stage: Stage, count_only: list[int] | None = None) -> None:
        self.owner, self.stage, self.count_only = run, stage, count_only or []
        self.blocks = run.blocks(stage)
        if stage.store and run.host.found:
            self._leave_out_durable()
        nodes = run.program.nodes
        self.sums = [i for i in stage.folds if nodes[i].op in NUMBER_FOLDS]
        self.columns = [i for i in stage.folds if nodes[i].op == "column_dot"]
        self.row_values = {i: np.empty(nodes[i].shape) for i in stage.folds if nodes[i].op == "row_values"}
        self.selects = [i for i in stage.folds if nodes[i].op == "kth_magnitude"]
        self.partials: list[list[float]] = [[] for _ in self.blocks]
        self.runs = strips(run.program, stage) if self.columns else [range(b, b + 1) for b in range(len(self.blocks))]
        self.units = len(self.runs)
        self.strips = [[np.zeros(nodes[i].shape) for i in self.columns] for _ in self.runs] if self.columns else []
        self._least: list[int] | None = None

    def _limits(self, runner: BlockRunner) -> list[int]:
        """For each value of `BlockResult.peaks` the first that is no number."""
        if self._least is None:
            storages = [self.owner.ref(load).dtype for load in runner.kernel.checked] + [self.owner.program.dtype] * self.stage.store
            self._least = [first_not_finite(storage) for storage in storages]
        return self._least

    def _leave_out_durable(self) -> None:
        """Only the blocks that no earlier run made durable; a pass that stores has no folds that would miss the others."""
        run, program = self.owner, self.owner.program
        place, itemsize = run.host.plan.layout.places[run.component.name], BY_CODE[program.dtype].itemsize
        found, every = run.host.found, self.blocks
        self.blocks = [b for b in every if not found.covers(place.shard, place.offset + b[1] * itemsize, b[2] * itemsize)]
        elements = sum(n for _, _, n in every) - sum(n for _, _, n in self.blocks)
        inputs = 0 if run.raw else sum(RAW[run.ref(load).dtype].itemsize for load in self.stage.loads)
        run.host.progress(elements * inputs, elements * itemsize)

    def run(self, worker: Worker, unit: int) -> None:
        """Read, compute and write one block, or a strip of them where columns are summed up."""
        for block in self.runs[unit]:
            result = self._block(worker, block)
            for total, vector in zip(self.strips[unit] if self.columns else (), result.columns, strict=True):
                total += vector

    def _block(self, worker: Worker, unit: int) -> BlockResult:
        owner, program, host = self.owner, self.owner.program, self.owner.host
        _, first, n = self.blocks[unit]
        worker.arrange(program, self.stage)
        itemsize = BY_CODE[program.dtype].itemsize
        place = host.plan.layout.places[owner.component.name]
        offset = place.offset + first * itemsize
        out = worker.output(n * itemsize, offset, itemsize).view(RAW[program.dtype]) if self.stage.store else None
        keeps = [owner.tensors[i][first : first + n] for i in self.stage.keeps]
        runner = worker.runner(owner.component.program, self.stage, self.stage.folds)
        data = owner.block_data(worker, self.stage, first, n, out, keeps, pulled=worker.pulls(runner.kernel))
        data.windows = [owner.local[i].window if i in owner.local and (not self.count_only or i in self.count_only) else IDLE for i in self.selects]
        result = self._computed(worker, runner, data)
        self._collect(unit, result)
        if not self.count_only and (result.peaks is None or any(map(ge, result.peaks, self._limits(runner)))):
            host.finite.look(owner, self.stage, data, runner.kernel.checked, result.peaks)
        read, written = 0 if owner.raw else n * sum(array.itemsize for array in data.inputs), 0
        if out is not None and not self.count_only:
            known = digest_of(result.words, out) if result.words is not None else b""
            if out.nbytes >= _WORTH_HANDING_OVER:
                worker.sent(host.writing.write(owner.component.name, place.shard, offset, out.view(np.uint8), known), out.nbytes)
            else:
                with worker.lane.writing(out.nbytes):
                    host.sink.write(place.shard, offset, out.view(np.uint8), known)
                written = out.nbytes
        if not self.count_only:
            host.progress(read, written)
        return result

    def _computed(self, worker: Worker, runner: BlockRunner, data: BlockData) -> BlockResult:
        reader = self.owner.host.reader
        for _ in range(_TRIES):
            try:
                result = runner.run(data)
            except ReadFailed:
                if data.patient:
                    self._find_out(data)
                data.patient = True
                continue
            if data.sources is not None:
                worker.lane.spent_in(READING, result.reading_ns)
                reader.count(data.n * sum(array.itemsize for array in data.inputs))
            return result
        files = " or ".join(sorted({self.owner.ref(load).file for load in self.stage.loads}))
        raise CheckpointError(f"{files} cannot be read reliably; check the disk, or copy the files again", path=files)

    def _find_out(self, data: BlockData) -> None:
        """Read a block's inputs as a kernel does, where the reader can say what is wrong with them."""
        assert data.sources is not None
        for load, (_, offset), room in zip(self.stage.loads, data.sources, data.inputs, strict=True):
            for first in range(0, data.n, room.size):
                count = min(room.size, data.n - first)
                self.owner.host.reader.read_into(self.owner.ref(load).file, offset + first * room.itemsize, room[:count])

    def _collect(self, unit: int, result: BlockResult) -> None:
        self.partials[unit] = result.sums
        _, first, n = self.blocks[unit]
        for vector, values in zip(self.row_values.values(), result.rows, strict=True):
            vector[first // self.stage.row_length : (first + n) // self.stage.row_length] = values
        with self.owner.lock:
            for i, counts in zip(self.selects, result.counts, strict=False):
                if not self.count_only or i in self.count_only:
                    self.owner.local[i].add(unit, counts)


class FillPass:
    """Reads a component's inputs into memory, once for all its passes."""

    def __init__(self, run: ComponentRun, slab: Array) -> None:
        self.owner = run
        at = 0
        self.pieces: list[tuple[int, int, int]] = []
        for load in sorted({i for stage in run.stages if stage is not None for i in stage.loads}):
            nbytes = run.ref(load).nbytes
            run.raw[load] = slab[at : at + nbytes]
            at += aligned(nbytes)
            self.pieces += [(load, first, min(8 * BLOCK, nbytes - first)) for first in range(0, nbytes, 8 * BLOCK)]
        self.units = len(self.pieces)

    def run(self, worker: Worker, unit: int) -> None:
        """Read up to 8 MiB."""
        load, first, length = self.pieces[unit]
        ref = self.owner.ref(load)
        self.owner.host.reader.read_into(ref.file, ref.start + first, self.owner.raw[load][first : first + length])
        self.owner.host.progress(length)
