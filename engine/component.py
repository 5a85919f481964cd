"""One output tensor on its way through its stages.

A `ComponentRun` is a generator of passes: it yields one, the executor runs the pass's units on its
workers in any order, and when all are done the generator goes on: it adds up folds in block order,
lets whole ops run, and yields the next pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from plait.engine.blockrun import RAW, Array, BlockData, BlockResult
from plait.engine.orderstat import NO_LIMIT, Statistic, Threshold, foresee, tie_limit
from plait.engine.smalls import SmallValues
from plait.engine.whole import run_whole
from plait.engine.worker import Host, Worker
from plait.ops.dtypes import BY_CODE
from plait.planner.blocks import BLOCK, block_count, block_elements
from plait.planner.plan import Component
from plait.planner.program import Program, Stage, probe_stage, scope_of
from plait.planner.types import TensorRef

_COPY_UNIT = 64 << 20
_SAMPLE_PIECES, _SAMPLE_PIECE = 32, 2048


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
    source: TensorRef
    shard: int
    offset: int

    @property
    def units(self) -> int:
        """Pieces of 64 MiB."""
        return -(-self.source.nbytes // _COPY_UNIT)

    def run(self, worker: Worker, unit: int) -> None:
        """Copy up to 64 MiB."""
        first = unit * _COPY_UNIT
        length = min(_COPY_UNIT, self.source.nbytes - first)
        self.host.sink.copy(self.shard, self.offset + first, self.host.reader.fd(self.source.file), self.source.start + first, length)
        self.host.progress(2 * length)


class ComponentRun:
    """State of one component while it runs.

    Args:
        host: what the run shares: plan, reader, sink, model-wide statistics.
        component: what to run.
    """

    def __init__(self, host: Host, component: Component) -> None:
        self.host, self.component = host, component
        self.program: Program = host.plan.programs[component.program]
        self.smalls = SmallValues(self.program, component, host)
        self.tensors: dict[int, Array] = {}
        self.raw: dict[int, Array] = {}
        self.local: dict[int, Statistic] = {}
        self.lock = threading.Lock()

    def ref(self, load: int) -> TensorRef:
        """Stored tensor of a load node."""
        return self.component.inputs[int(self.program.nodes[load].param("slot"))]

    def passes(self, sweep: int, recount: frozenset[str]) -> Iterator[Pass]:
        """The passes of one sweep.

        Args:
            sweep: number of the sweep.
            recount: model-wide order statistics whose fine digits are counted in this sweep over again; empty in a first try.
        """
        if self.program.copy is not None:
            if sweep == 0 and not recount:
                place = self.host.plan.layout.places[self.component.name]
                yield CopyPass(self.host, self.component.inputs[self.program.copy], place.shard, place.offset)
            return
        if self.component.keep_inputs:
            yield FillPass(self)
        for number, stage in enumerate(self.program.stages):
            if self.host.sweeps[self.component.program][number] == sweep:
                yield from self._recount_scopes(stage, recount) if recount else self._stage(number, stage)
        self.raw.clear()

    def _recount_scopes(self, stage: Stage, recount: frozenset[str]) -> Iterator[Pass]:
        wanted = [i for i in stage.folds if scope_of(self.program.nodes[i]) in recount]
        if wanted:
            for i in wanted:
                self.local[i] = self._statistic(i, self.host.statistics[scope_of(self.program.nodes[i])].bucket)
            yield BlockPass(self, stage, fine_only=wanted)
            self._hand_up(wanted, with_coarse=False)

    def _stage(self, number: int, stage: Stage) -> Iterator[Pass]:
        selects = [i for i in stage.folds if self.program.nodes[i].op == "kth_magnitude"]
        for i in selects:
            self.local[i] = self._statistic(i, self._foresee(i, stage))
        for i in stage.keeps:
            self.tensors[i] = np.empty(self.program.nodes[i].shape, np.float32).reshape(-1)
        main = BlockPass(self, stage)
        yield main
        for place, i in enumerate(main.sums):
            self.smalls.add_fold(i, [partial[place] for partial in main.partials])
        mine = [i for i in selects if not scope_of(self.program.nodes[i])]
        missed = [i for i in mine if not self.local[i].foreseen()]
        if missed:
            for i in missed:
                self.local[i].look_again()
            self.host.count_recounts(len(missed))
            yield BlockPass(self, stage, fine_only=missed)
        for i in mine:
            threshold = self.local[i].threshold()
            limit = NO_LIMIT if threshold.all_ties else self.search_ties(self.host.spare_worker(), stage, i, threshold, 0)
            self.smalls.values[i] = np.array([float(threshold.key), limit])
            del self.local[i]
        self._hand_up([i for i in selects if i not in mine], with_coarse=True)
        for i in stage.wholes:
            run_whole(self, i)
        self._forget(number)

    def _statistic(self, i: int, bucket: int) -> Statistic:
        node = self.program.nodes[i]
        return Statistic(str(node.param("density")), str(node.param("ties")), self.program.numel, bucket)

    def _hand_up(self, folds: list[int], *, with_coarse: bool) -> None:
        """Add this tensor's counts to the model-wide statistics."""
        for i in folds:
            local = self.local.pop(i)
            self.host.add_counts(scope_of(self.program.nodes[i]), self.component.name, local, with_coarse=with_coarse)

    def _forget(self, number: int) -> None:
        """Let go of tensors that no later stage reads."""
        later = self.program.stages[number + 1 :]
        needed = {i for s in later for i in s.residents} | {j for s in later for w in s.wholes for j in self.program.nodes[w].inputs}
        for i in [i for i in self.tensors if i not in needed]:
            del self.tensors[i]

    # -- looking at values ------------------------------------------------------------------------
    def blocks(self, stage: Stage) -> list[tuple[int, int, int]]:
        """`(number, first element, elements)` of each block of a stage."""
        size = block_elements(stage, self.program.numel)
        return [(b, b * size, min(size, self.program.numel - b * size)) for b in range(block_count(stage, self.program.numel))]

    def _foresee(self, i: int, stage: Stage) -> int:
        """Coarse digit of the threshold judged by a sample; -1 for statistics that one tensor cannot foresee."""
        numel = self.program.numel
        if scope_of(self.program.nodes[i]):
            return self.host.statistics[scope_of(self.program.nodes[i])].bucket
        if numel == 0:
            return -1
        row = stage.row_length or 1
        piece = max(1, _SAMPLE_PIECE // row) * row
        worker = self.host.spare_worker()
        if numel <= _SAMPLE_PIECES * piece:
            starts = list(range(0, numel, block_elements(stage, numel)))
            piece = block_elements(stage, numel)
        else:
            step = (numel - piece) // (_SAMPLE_PIECES - 1) // row * row
            starts = [k * step for k in range(_SAMPLE_PIECES)]
        x = self.program.nodes[i].inputs[0]
        parts = [self.values(worker, stage, x, first, min(piece, numel - first)).copy() for first in starts]
        return foresee(np.concatenate(parts), str(self.program.nodes[i].param("density")))

    def values(self, worker: Worker, stage: Stage, node: int, first: int, n: int) -> Array:
        """Values of a tensor node on a range, float32, in the worker's buffer."""
        worker.arrange(self.program, stage)
        probe = probe_stage(self.program, stage, node)
        out = worker.output[: 4 * n].view(np.float32)
        data = self.block_data(worker, probe, first, n, None, [out])
        worker.runner(self.component.program, probe, ("probe", stage.folds, node)).run(data)
        return out

    def search_ties(self, worker: Worker, stage: Stage, i: int, threshold: Threshold, before: int) -> float:
        """Flat index from which elements equal to the threshold are no longer kept."""
        x = self.program.nodes[i].inputs[0]
        blocks = self.blocks(stage)
        spans = {b: (first, n) for b, first, n in blocks}

        def ties(block: int) -> Any:
            keys = self.values(worker, stage, x, *spans[block]).view(np.uint32) & np.uint32(0x7FFFFFFF)
            return np.flatnonzero(keys == threshold.key)

        def equal_in(block: int) -> int:
            known = self.local[i].equal_in(block, threshold) if i in self.local else None
            return int(ties(block).size) if known is None else known

        return tie_limit(threshold, before, blocks, equal_in, lambda block, nth: int(ties(block)[nth - 1]))

    def block_data(self, worker: Worker, stage: Stage, first: int, n: int, out: Array | None, keeps: list[Array]) -> BlockData:
        """Read a block's inputs and gather what else it is computed from."""
        inputs = [self._input(worker, load, first, n) for load in stage.loads]
        residents = [self.tensors[i][first : first + n] for i in stage.residents]
        kernel_smalls = self.smalls.of_stage(stage)
        streams = self.smalls.streams(stage)
        return BlockData(n, first, inputs, residents, out, keeps, kernel_smalls, streams, [])

    def _input(self, worker: Worker, load: int, first: int, n: int) -> Array:
        ref = self.ref(load)
        dtype = RAW[ref.dtype]
        if load in self.raw:
            held: Array = self.raw[load][first * dtype.itemsize : (first + n) * dtype.itemsize].view(dtype)
            return held
        buffer = worker.inputs[load][: n * dtype.itemsize]
        self.host.reader.read_into(ref.file, ref.start + first * dtype.itemsize, buffer)
        read: Array = buffer.view(dtype)
        return read


class BlockPass:
    """One pass over the blocks of a stage.

    Args:
        run: the component.
        stage: its stage.
        fine_only: order statistics whose fine digits are counted; empty for the stage's main pass.
    """

    def __init__(self, run: ComponentRun, stage: Stage, fine_only: list[int] | None = None) -> None:
        self.owner, self.stage, self.fine_only = run, stage, fine_only or []
        self.blocks = run.blocks(stage)
        self.units = len(self.blocks)
        nodes = run.program.nodes
        self.sums = [i for i in stage.folds if nodes[i].op != "kth_magnitude"]
        self.selects = [i for i in stage.folds if nodes[i].op == "kth_magnitude"]
        self.partials: list[list[float]] = [[] for _ in self.blocks]

    def run(self, worker: Worker, unit: int) -> None:
        """Read, compute and write one block."""
        owner, program, host = self.owner, self.owner.program, self.owner.host
        _, first, n = self.blocks[unit]
        worker.arrange(program, self.stage)
        out = worker.output[: n * BY_CODE[program.dtype].itemsize].view(RAW[program.dtype]) if self.stage.store else None
        keeps = [owner.tensors[i][first : first + n] for i in self.stage.keeps]
        data = owner.block_data(worker, self.stage, first, n, out, keeps)
        data.buckets = [owner.local[i].bucket if i in owner.local and (not self.fine_only or i in self.fine_only) else -1 for i in self.selects]
        result = worker.runner(owner.component.program, self.stage, self.stage.folds).run(data)
        self._collect(unit, result)
        done = 0 if owner.raw else sum(array.nbytes for array in data.inputs)
        if out is not None and not self.fine_only:
            place = host.plan.layout.places[owner.component.name]
            host.sink.write(place.shard, place.offset + first * out.itemsize, out.view(np.uint8))
            done += out.nbytes
        host.progress(0 if self.fine_only else done)

    def _collect(self, unit: int, result: BlockResult) -> None:
        self.partials[unit] = result.sums
        if result.coarse is None or result.fine is None:
            return
        with self.owner.lock:
            for k, i in enumerate(self.selects):
                if not self.fine_only:
                    self.owner.local[i].add(unit, result.coarse[k], result.fine[k])
                elif i in self.fine_only:
                    self.owner.local[i].add(unit, None, result.fine[k])


class FillPass:
    """Reads a component's inputs into memory, once for all its passes."""

    def __init__(self, run: ComponentRun) -> None:
        self.owner = run
        self.pieces: list[tuple[int, int, int]] = []
        for load in sorted({i for stage in run.program.stages for i in stage.loads}):
            nbytes = run.ref(load).nbytes
            run.raw[load] = np.empty(nbytes, np.uint8)
            self.pieces += [(load, first, min(8 * BLOCK, nbytes - first)) for first in range(0, nbytes, 8 * BLOCK)]
        self.units = len(self.pieces)

    def run(self, worker: Worker, unit: int) -> None:
        """Read up to 8 MiB."""
        load, first, length = self.pieces[unit]
        ref = self.owner.ref(load)
        self.owner.host.reader.read_into(ref.file, ref.start + first, self.owner.raw[load][first : first + length])
        self.owner.host.progress(length)
