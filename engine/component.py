"""One output tensor on its way through its stages.

A `ComponentRun` is a generator of passes: it yields one, the executor runs the pass's units on its
workers in any order, and when all are done the generator goes on: it adds up folds in block order,
lets whole ops run, and yields the next pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import ge
from typing import Protocol

import numpy as np

from plait.engine.blockrun import RAW, Array, BlockData, BlockResult, BlockRunner
from plait.engine.checksum import digest_of
from plait.engine.finite import first_not_finite
from plait.engine.looking import Looking
from plait.engine.orderstat import NO_LIMIT, Guess, Statistic
from plait.engine.reuse import Recalled, Spoiled
from plait.engine.smalls import SmallValues
from plait.engine.whole import give_numbers, run_whole, turn, whole_value
from plait.engine.worker import Host, Worker, like_in_page
from plait.ops.dtypes import BY_CODE
from plait.ops.kernels.heap import give_back
from plait.ops.op import NUMBER_FOLDS
from plait.planner.blocks import BLOCK, aligned, block_count, block_elements, seen_whole, strips
from plait.planner.liveness import StageLife, lifetimes
from plait.planner.plan import Component
from plait.planner.program import Program, Stage, scope_of
from plait.planner.reuse import spared_bytes
from plait.planner.types import TensorRef

COPY_UNIT = 64 << 20  #: bytes of a tensor copied without decoding that are copied at once
#: Smaller blocks are written by the worker itself: they go to the page cache, and another thread would only take longer.
_WORTH_HANDING_OVER = 1 << 17
#: Freed memory that is worth a call to the C library.
_WORTH_GIVING_BACK = 1 << 20
#: No node: a pass that counts only this counts nothing.
_NOTHING = -1


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
        with worker.lane.writing(length):
            self.host.sink.copy(self.shard, self.offset + first, source, self.source.start + first, length, see)
        worker.lane.read += length
        self.host.count_copied(length)
        self.host.progress(length, length)


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
        self.lives: tuple[StageLife, ...] = lifetimes(self.program)
        self.looking = Looking(self)
        self.stages: tuple[Stage | None, ...] = self.program.stages
        self.recalled = Recalled(None, {})
        self.lock = threading.Lock()

    def ref(self, load: int) -> TensorRef:
        """Stored tensor of a load node."""
        return self.component.inputs[int(self.program.nodes[load].param("slot"))]

    def passes(self, sweep: int, recount: frozenset[str]) -> Iterator[Pass]:
        """The passes of one sweep.

        Args:
            sweep: number of the sweep.
            recount: model-wide order statistics that are counted in this sweep over again; empty in a first try.
        """
        if self.program.copy is not None:
            if sweep == 0 and not recount:
                place = self.host.plan.layout.places[self.component.name]
                yield CopyPass(self.host, self.component.inputs[self.program.copy], place.shard, place.offset)
            return
        try:
            while True:
                self._recall()
                try:
                    yield from self._sweep(sweep, recount)
                    if self.program.gives_numbers and not recount and sweep + 1 == self.host.plan.sweeps:
                        self.smalls.write_root()
                    return
                except Spoiled:  # nothing of the output is written before the last pass, and everything was read by then
                    self.tensors.clear()
        finally:
            self.recalled.close()

    def _recall(self) -> None:
        """Ask the cache of results what is there, and leave out what that spares."""
        if self.host.reuse is None:
            return
        self.recalled.close()
        known = {i for i in self.smalls.values if self.program.nodes[i].kind == "fold"}
        self.recalled = self.host.reuse.ask(self.component, known, frozenset(self.host.scope_values))
        assert self.recalled.work is not None
        self.stages = self.recalled.work.stages
        for i, numbers in self.recalled.numbers().items():
            if self.program.nodes[i].kind == "fold":
                self.smalls.values[i] = numbers if self.program.nodes[i].shape else np.float64(numbers[0])
            else:
                give_numbers(self, i, numbers)

    def _sweep(self, sweep: int, recount: frozenset[str]) -> Iterator[Pass]:
        """What is left of the passes of one sweep."""
        mine = [(n, self.stages[n]) for n, its in enumerate(self.host.sweeps[self.component.program]) if its == sweep]
        several = sum(1 for stage in self.stages if stage is not None and stage.loads) > 1
        slab = self.host.take_slab() if self.component.keep_inputs and several else None
        try:
            if slab is not None:
                yield FillPass(self, slab)
            if recount:
                yield from self._recount_scopes(mine, recount)
            else:
                for number, stage in mine:
                    yield from self._stage(number, stage)
        finally:
            self.raw.clear()
            self.tensors.clear()
            if slab is not None:
                self.host.give_slab(slab)
        if self.host.reuse is not None and not recount:
            self._count_spared([n for n, _ in mine])

    def _count_spared(self, numbers: list[int]) -> None:
        full, left = [self.program.stages[n] for n in numbers], [self.stages[n] for n in numbers]
        if any(a is not b for a, b in zip(full, left, strict=True)):
            passes = sum(a.has_pass and b is None for a, b in zip(full, left, strict=True))
            self.host.count_spared(passes, spared_bytes(self.program, full, left, keep=self.component.keep_inputs))

    def _recount_scopes(self, stages: list[tuple[int, Stage | None]], recount: frozenset[str]) -> Iterator[Pass]:
        """Count model-wide order statistics again; whole results that they are taken of are made again first."""
        counting = {n: [i for i in s.folds if scope_of(self.program.nodes[i]) in recount] if s else [] for n, s in stages}
        last = max((n for n, wanted in counting.items() if wanted), default=-1)
        remake = any(s.residents for n, s in stages if s and counting[n])
        for number, stage in stages:
            wanted = counting[number]
            for i in wanted:
                self.local[i] = self._statistic(i, self._scope_guess(i))
            if wanted or (remake and number <= last):
                yield from self._again(number, stage, wanted, remake)
            self._hand_up(wanted, recounting=True)

    def _again(self, number: int, stage: Stage | None, wanted: list[int], remake: bool) -> Iterator[Pass]:
        for i in stage.keeps if stage else ():
            self.tensors[i] = np.empty(self.program.nodes[i].shape, np.float32).reshape(-1)
        if stage is not None and stage.has_pass:
            yield BlockPass(self, stage, count_only=wanted or [_NOTHING])
        self._finish(number, stage if remake else None, recall=remake)

    def _stage(self, number: int, stage: Stage | None) -> Iterator[Pass]:
        if stage is None:
            self._finish(number, None)
            return
        selects = [i for i in stage.folds if self.program.nodes[i].op == "kth_magnitude"]
        mine = [i for i in selects if not scope_of(self.program.nodes[i])]
        if seen_whole(self.program, stage):
            self.smalls.values.update(self.looking.settle(stage, mine))
            for load in set(stage.loads).difference(*(s.loads for s in self.program.stages if not seen_whole(self.program, s))):
                self.host.finite.scan(self.ref(load))
            self._finish(number, None)
            return
        foreseen = self.looking.foresee(stage, mine)
        for i in selects:
            self.local[i] = self._statistic(i, foreseen[i] if i in foreseen else self._scope_guess(i))
        for i in stage.keeps:
            self.tensors[i] = np.empty(self.program.nodes[i].shape, np.float32).reshape(-1)
        if stage.has_pass:
            main = BlockPass(self, stage)
            yield main
            self._add_up(main)
        for i in mine:
            self.local[i].among = self.among(i)
        yield from self._count_again(stage, [i for i in mine if not self.local[i].foreseen()])
        self._settle(stage, mine)
        self._hand_up([i for i in selects if i not in mine])
        self._tell(stage)
        self._finish(number, stage)

    def _tell(self, stage: Stage) -> None:
        """Tell the cache of this tensor's folds that have ended."""
        if self.host.reuse is not None:
            for i in stage.folds:
                if not scope_of(self.program.nodes[i]):
                    self.host.reuse.tell(self.component, i, self.smalls.values[i])

    def _add_up(self, main: BlockPass) -> None:
        """Give the folds of a pass their values, from what its blocks gave, in block order."""
        for place, i in enumerate(main.sums):
            self.smalls.add_fold(i, [partial[place] for partial in main.partials])
        for place, i in enumerate(main.columns):
            total = np.zeros(self.program.nodes[i].shape)
            for vectors in main.strips:
                total += vectors[place]
            self.smalls.values[i] = total
        main.strips.clear()
        self.smalls.values.update(main.row_values)

    def _count_again(self, stage: Stage, missed: list[int]) -> Iterator[Pass]:
        """More passes for the order statistics whose digit was not foreseen: one with a better guess, two where that is wrong too."""
        if not missed:
            return
        self.host.count_recounts(len(missed))
        again = [i for i in missed if self.local[i].guess_again()]
        if again:
            yield BlockPass(self, stage, count_only=again)
            missed = [i for i in missed if not self.local[i].foreseen()]
        if not missed:
            return
        wrong = [i for i in missed if self.local[i].bucket >= 0]
        for i in wrong:
            self.local[i].start_over()
        if wrong:
            yield BlockPass(self, stage, count_only=wrong)
        for i in missed:
            self.local[i].look_into_right_digit()
        yield BlockPass(self, stage, count_only=missed)

    def _settle(self, stage: Stage, mine: list[int]) -> None:
        """Give this tensor's order statistics their values."""
        for i in mine:
            if self.local[i].numel <= 0:  # zeros alone: all of them are kept
                self.smalls.values[i] = np.array([0.0, NO_LIMIT])
                del self.local[i]
                continue
            threshold = self.local[i].threshold()
            limit = NO_LIMIT if threshold.all_ties else self.looking.search_ties(stage, i, threshold, 0)
            self.smalls.values[i] = np.array([float(threshold.key), limit])
            del self.local[i]

    def _statistic(self, i: int, guess: Guess) -> Statistic:
        node = self.program.nodes[i]
        return Statistic(str(node.param("rank")), str(node.param("ties")), self.program.numel, guess)

    def among(self, i: int) -> int | None:
        """Elements that the rank of an order statistic is taken of, where these are not all of the tensor's."""
        inputs = self.program.nodes[i].inputs
        return int(self.smalls.value(inputs[1])) if len(inputs) > 1 else None

    def _scope_guess(self, i: int) -> Guess:
        statistic = self.host.statistics[scope_of(self.program.nodes[i])]
        return Guess(statistic.bucket, statistic.heavy)

    def _hand_up(self, folds: list[int], *, recounting: bool = False) -> None:
        """Add this tensor's counts to the model-wide statistics."""
        for i in folds:
            among = None if recounting else self.among(i)
            padding = 0 if among is None else self.program.numel - among
            self.host.add_counts(scope_of(self.program.nodes[i]), self.component.name, self.local.pop(i).counts(), padding)

    def _finish(self, number: int, stage: Stage | None, *, recall: bool = True) -> None:
        """Run the whole ops that are left of a stage, read what was found of the others, and let go of each value after its last use."""
        self._drop(self.lives[number].after_pass)
        for place, i in enumerate(self.program.stages[number].wholes):
            with turn(self, i):  # what is dropped is gone before another component has its turn
                if stage is not None and i in stage.wholes:
                    run_whole(self, i)
                elif recall and self.host.reuse is not None:
                    self.tensors.update(self.host.reuse.take(self.recalled, i, self.program))
                self._drop(self.lives[number].after_whole[place])

    def _drop(self, owners: tuple[int, ...]) -> None:
        if sum(self.tensors.pop(i).nbytes for i in owners if i in self.tensors) > _WORTH_GIVING_BACK:
            give_back()

    def blocks(self, stage: Stage) -> list[tuple[int, int, int]]:
        """`(number, first element, elements)` of each block of a stage."""
        size = block_elements(stage, self.program.numel)
        return [(b, b * size, min(size, self.program.numel - b * size)) for b in range(block_count(stage, self.program.numel))]

    def block_data(self, worker: Worker, stage: Stage, first: int, n: int, out: Array | None, keeps: list[Array]) -> BlockData:
        """Read a block's inputs and gather what else it is computed from."""
        inputs = [self._input(worker, load, first, n) for load in stage.loads]
        residents = [whole_value(self, i).reshape(-1)[first : first + n] for i in stage.residents]
        kernel_smalls = self.smalls.of_stage(stage)
        streams = self.smalls.streams(stage)
        return BlockData(n, first, inputs, residents, out, keeps, kernel_smalls, streams, [])

    def _input(self, worker: Worker, load: int, first: int, n: int) -> Array:
        ref = self.ref(load)
        dtype = RAW[ref.dtype]
        if load in self.raw:
            held: Array = self.raw[load][first * dtype.itemsize : (first + n) * dtype.itemsize].view(dtype)
            return held
        offset = ref.start + first * dtype.itemsize
        buffer = like_in_page(worker.inputs[load], n * dtype.itemsize, offset, dtype.itemsize)
        self.host.reader.read_into(ref.file, offset, buffer)
        read: Array = buffer.view(dtype)
        return read


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
        data = owner.block_data(worker, self.stage, first, n, out, keeps)
        data.buckets = [owner.local[i].bucket if i in owner.local and (not self.count_only or i in self.count_only) else -2 for i in self.selects]
        data.heavies = [owner.local[i].heavy if i in owner.local else -1 for i in self.selects]
        runner = worker.runner(owner.component.program, self.stage, self.stage.folds)
        result = runner.run(data)
        self._collect(unit, result)
        if not self.count_only and (result.peaks is None or any(map(ge, result.peaks, self._limits(runner)))):
            host.finite.look(owner, self.stage, data, runner.kernel.checked, result.peaks)
        read, written = 0 if owner.raw else sum(array.nbytes for array in data.inputs), 0
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
