"""One output tensor on its way through its stages.

A `ComponentRun` is a generator of passes: it yields one, the executor runs the pass's units on its
workers in any order, and when all are done the generator goes on: it adds up folds in block order,
lets whole ops run, and yields the next pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np

from plait.engine.blockrun import RAW, Array, BlockData
from plait.engine.foresight import Guess
from plait.engine.looking import Looking
from plait.engine.orderstat import NO_LIMIT, Statistic
from plait.engine.passes import BlockPass, CopyPass, FillPass, Pass
from plait.engine.resultfile import Entry
from plait.engine.reuse import Recalled, Spoiled
from plait.engine.smalls import SmallValues
from plait.engine.whole import give_numbers, run_whole, turn, whole_value
from plait.engine.worker import Host, Worker, like_in_page
from plait.ops.kernels.heap import give_back
from plait.planner.blocks import PULL_PIECE, block_count, block_elements, seen_whole
from plait.planner.liveness import StageLife, lifetimes, owner, taken_whole
from plait.planner.plan import Component
from plait.planner.program import Program, Stage, scope_of
from plait.planner.reuse import spared_bytes
from plait.planner.types import TensorRef

#: Freed memory that is worth a call to the C library.
_WORTH_GIVING_BACK = 1 << 20
#: No node: a pass that counts only this counts nothing.
_NOTHING = -1


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
        self.lying: dict[int, Entry] = {}
        self.local: dict[int, Statistic] = {}
        self.lives: tuple[StageLife, ...] = lifetimes(self.program)
        self.looking = Looking(self)
        self.stages: tuple[Stage | None, ...] = self.program.stages
        self.recalled, self.whole = Recalled(None, {}), frozenset[int]()
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
                yield CopyPass(self.host, self.component.name, self.component.inputs[self.program.copy], place.shard, place.offset)
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
                    self.lying.clear()
        finally:
            self.recalled.close()
            if sweep + 1 == self.host.plan.sweeps:  # Python's collector may come for this object much later, and vectors of a value a row are large
                self.smalls.values.clear()

    def _recall(self) -> None:
        """Ask the cache of results what is there, and leave out what that spares."""
        if self.host.reuse is None:
            return
        self.recalled.close()
        known = {i for i in self.smalls.values if self.program.nodes[i].kind == "fold"}
        self.recalled = self.host.reuse.ask(self.component, known, frozenset(self.host.scope_values))
        assert self.recalled.work is not None
        self.stages = self.recalled.work.stages
        self.whole = taken_whole(self.program, self.stages)
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
            self.lying.clear()
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
        """More passes for the order statistics whose place was not foreseen: one with a better guess, two where that is wrong too."""
        if not missed:
            return
        self.host.count_recounts(len(missed))
        again = [i for i in missed if self.local[i].guess_again()]
        if again:
            yield BlockPass(self, stage, count_only=again)
            missed = [i for i in missed if not self.local[i].foreseen()]
        if not missed:
            return
        wrong = [i for i in missed if self.local[i].window.low >= 0]
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
        return Guess(statistic.window)

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
            over = self.lives[number].after_whole[place]
            computed = stage is not None and i in stage.wholes
            # what is dropped is gone before another component has its turn; what a cache gives needs none where nothing is dropped for it
            with turn(self, i) if computed or any(j in self.tensors for j in over) else nullcontext():
                if computed:
                    run_whole(self, i)
                elif recall and self.host.reuse is not None:
                    taken = self.host.reuse.take(self.recalled, i, self.whole)
                    self.tensors.update(taken.read)
                    self.lying.update(taken.lying)
                self._drop(over)

    def _drop(self, owners: tuple[int, ...]) -> None:
        for i in owners:
            self.lying.pop(i, None)
        if sum(self.tensors.pop(i).nbytes for i in owners if i in self.tensors) > _WORTH_GIVING_BACK:
            give_back()

    def blocks(self, stage: Stage) -> list[tuple[int, int, int]]:
        """`(number, first element, elements)` of each block of a stage."""
        size = block_elements(stage, self.program.numel)
        return [(b, b * size, min(size, self.program.numel - b * size)) for b in range(block_count(stage, self.program.numel))]

    def block_data(self, worker: Worker, stage: Stage, first: int, n: int, out: Array | None, keeps: list[Array], *, pulled: bool = False) -> BlockData:
        """Read a block's inputs, or say where they are for a kernel that reads them itself, and gather what else it is computed from."""
        pulled = pulled and not self.raw
        inputs = [(self._room if pulled else self._input)(worker, load, first, n) for load in stage.loads]
        sources = [(self.host.reader.fd(ref.file), ref.start + first * RAW[ref.dtype].itemsize) for ref in map(self.ref, stage.loads)] if pulled else None
        residents = [self._resident(worker, i, first, n) for i in stage.residents]
        kernel_smalls = self.smalls.of_stage(stage)
        streams = self.smalls.streams(stage)
        return BlockData(n, first, inputs, residents, out, keeps, kernel_smalls, streams, [], sources)

    def _resident(self, worker: Worker, i: int, first: int, n: int) -> Array:
        """A block of a whole result, from memory or from the cache."""
        entry = self.lying.get(owner(self.program.nodes, i))
        if entry is None:
            return whole_value(self, i).reshape(-1)[first : first + n]
        assert self.host.reuse is not None
        room = like_in_page(worker.residents[i], 4 * n, entry.tensor_at + 4 * first, 4)
        self.host.reuse.read_part(entry, 4 * first, room)
        values: Array = room.view(np.float32)
        return values

    def _room(self, worker: Worker, load: int, first: int, n: int) -> Array:
        """Where pieces of a block's input go."""
        ref = self.ref(load)
        dtype = RAW[ref.dtype]
        room = like_in_page(worker.inputs[load], min(n, PULL_PIECE) * dtype.itemsize, ref.start + first * dtype.itemsize, dtype.itemsize)
        typed: Array = room.view(dtype)
        return typed

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
