"""Where a run meets a result cache: asked before a tensor's passes begin, told when a result is there.

A component asks once, when it begins, for what its output needs, beginning at the output, so that nothing is asked for that only leads up to
something found. Small results are taken at once; a tensor is looked at when the pass is due that would have made it. What an op takes as a whole
is read into the memory that is planned for it. What only blocks want stays where it lies, compared with its digest, and is read block by block:
fresh memory for all of it costs more than reading it twice. If a tensor then proves damaged, the component begins again without it; nothing of its
output has been written by then.

Results are stored only while the files they came from are as they were when the plan was made, and only where they were made as planned: what a
GPU had no memory for has other last bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.cache import ResultCache
from plait.engine.checksum import OwnDigests
from plait.engine.events import CacheUse, Report
from plait.engine.lanes import READING, Lane
from plait.engine.resultfile import Damaged, Entry, check_tensor
from plait.ops.errors import CheckpointError, KernelError
from plait.planner.cost import numel
from plait.planner.plan import Component, Plan, Result
from plait.planner.reuse import OPEN_S, Facts, Names, Work, demand, part_key, parts, scope_nodes, work
from plait.planner.types import TensorRef

if TYPE_CHECKING:
    from plait.engine.reader import Reader


class Step(NamedTuple):
    """Where a component stands that has asked for some results.

    Attributes:
        node: what it asks for next; -1 when it knows what to do.
        asked: what it has asked for.
        needed, there: nodes that its output needs, and those of them that are there.
        work: what is left to do.
    """

    node: int
    asked: frozenset[int]
    needed: frozenset[int]
    there: frozenset[int]
    work: Work


class Spoiled(Exception):
    """A tensor from the cache proved damaged when it was read; its component begins again."""


class Reuse:
    """The results of one plan in a cache.

    Args:
        plan: that runs; made with a cache.
        cache: where results are kept.
        facts: what decides bits beside expressions and inputs.
        reader: of the run, to see that inputs are as they were; None for one that only looks.
        report: of the run, to see whether they were finite.
    """

    def __init__(self, plan: Plan, cache: ResultCache, facts: Facts, reader: Reader | None = None, report: Report | None = None) -> None:
        self.plan, self.cache, self._reader, self._report = plan, cache, reader, report or Report()
        self.names = Names(plan, facts)
        self._worth: list[dict[int, Result]] = [{r.node: r for r in k.results} for k in plan.keeping]
        self._files = {f.path: f for f in plan.files}
        self._steps: dict[object, Step] = {}
        self._lock = threading.Lock()
        self._own = OwnDigests()

    @property
    def use(self) -> CacheUse:
        """What was found and stored."""
        return self.cache.use

    # -- one tensor -----------------------------------------------------------------------------
    def ask(self, component: Component, known: set[int], scopes: frozenset[str]) -> Recalled:
        """What is there of a component's results, and what is left to do.

        Args:
            component: that begins, or begins another sweep.
            known: folds that it has the values of already.
            scopes: model-wide statistics that are there.
        """
        found: dict[int, dict[int, Entry]] = {}

        def is_there(i: int) -> bool:
            entries = self._find(component, i)
            if entries:
                found[i] = entries
            return bool(entries)

        return Recalled(self.walk(component.program, frozenset(known), scopes, is_there).work, found)

    def walk(self, program: int, known: frozenset[int], scopes: frozenset[str], is_there: Callable[[int], bool]) -> Step:
        """From the output downwards, ask for results as long as any is needed; components that find the same share all that follows from it."""
        hits, asked = known, frozenset[int]()
        while True:
            step = self._step(program, hits, scopes, asked)
            if step.node < 0:
                return step
            asked |= {step.node}
            if is_there(step.node):
                hits |= {step.node}

    def _step(self, number: int, hits: frozenset[int], scopes: frozenset[str], asked: frozenset[int]) -> Step:
        key = (number, hits, scopes, asked)
        with self._lock:
            step = self._steps.get(key)
            if step is None:
                program, worth = self.plan.programs[number], self._worth[number]
                needed, there = demand(program, scopes, hits.__contains__)
                node = max((i for i in needed - there if i in worth and i not in asked), default=-1)
                step = self._steps[key] = Step(node, asked, needed, there, work(program, needed, there))
        return step

    def _find(self, component: Component, i: int) -> dict[int, Entry] | None:
        """The entries of a result, by the nodes that own its matrices; None unless all of it is there."""
        program, key = self.plan.programs[component.program], self.names.key(component, i)
        if program.nodes[i].kind == "fold":
            entry = self.cache.find(key, numbers=numel(program.nodes[i].shape))
            return None if entry is None else {i: entry}
        found: dict[int, Entry] = {}
        for j, index in (parts(program, i) or {i: -1}).items():
            nbytes = 4 * numel(program.nodes[j].shape) if index >= 0 else 0
            entry = self.cache.find(key if index < 0 else part_key(key, index), tensor_bytes=nbytes)
            if entry is None or not self._sound(entry):
                Recalled(None, {i: found}).close()
                return None
            found[j] = entry
        return found

    def holds(self, component: Component, i: int) -> bool:
        """Whether all of a result is there, for all that heads say."""
        program, key = self.plan.programs[component.program], self.names.key(component, i)
        numbers = program.nodes[i].kind == "fold" or not parts(program, i)
        return self.cache.holds(key) if numbers else all(self.cache.holds(part_key(key, index)) for index in parts(program, i).values())

    def _sound(self, entry: Entry) -> bool:
        """Whether an entry may be relied on; where tensors add to statistics of the model, they cannot begin again, and it is read beforehand."""
        try:
            if self.plan.scopes:
                check_tensor(entry, self._own.digests)
        except (Damaged, OSError) as error:
            self.cache.spoiled(entry, str(error))
            return False
        return True

    def take(self, recalled: Recalled, i: int, whole: frozenset[int]) -> Taken:
        """The matrices of a result that was found; none for another node.

        Args:
            recalled: what was found.
            i: node of the result.
            whole: the nodes that own what an op takes as a whole.

        Raises:
            Spoiled: one is damaged, and gone from the cache.
            KernelError: one was damaged while it was in use.
        """
        taken = Taken({}, {})
        for j, entry in recalled.entries.get(i, {}).items():
            if not entry.tensor_bytes:
                continue
            try:
                with self._reading():
                    if j in whole:
                        taken.read[j] = np.empty(entry.tensor_bytes // 4, np.float32)
                        entry.read(taken.read[j])
                    else:
                        if not self.plan.scopes:  # else it was proved when it was found
                            check_tensor(entry, self._own.digests)
                        taken.lying[j] = entry
            except (Damaged, OSError) as error:
                if self.plan.scopes:
                    self._give_up(entry, error)
                self.cache.spoiled(entry, str(error))
                raise Spoiled from error
        return taken

    def read_part(self, entry: Entry, first: int, out: Array) -> None:
        """A block of a matrix that stayed where it lies.

        Raises:
            KernelError: the file changed while it was in use.
        """
        try:
            with self._reading():
                entry.read_part(first, out)
        except (Damaged, OSError) as error:
            self._give_up(entry, error)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The calling thread's lane reads while this is entered."""
        lane = self._reader.lanes.here() if self._reader is not None else Lane("")
        before = lane.switch(READING)
        try:
            yield
        finally:
            lane.switch(before)

    def _give_up(self, entry: Entry, error: Exception) -> NoReturn:
        """An entry proved damaged when it was too late to begin again: it goes, and the run ends."""
        self.cache.spoiled(entry, str(error), in_use=True)
        raise KernelError(f"{entry.path} changed while it was in use; give the same command again", path=str(entry.path)) from error

    def tell(self, component: Component, i: int, numbers: Any, tensors: Mapping[int, Array] | None = None) -> None:
        """A result of a component is there: it is stored where it is worth it.

        Args:
            component: that has it.
            i: its node.
            numbers: its numbers.
            tensors: of an op on whole matrices, at least what it gave, by the nodes that own it.
        """
        worth, program = self._worth[component.program].get(i), self.plan.programs[component.program]
        if worth is None or not self._trusted(component.inputs):
            return
        op, key, values = program.nodes[i].op, self.names.key(component, i), np.asarray(numbers, np.float64).reshape(-1)
        owned = parts(program, i) if tensors is not None else {}
        for j, index in owned.items():
            assert tensors is not None
            self.cache.store(part_key(key, index), op, values, tensors[j], worth.seconds / len(owned))
        if not owned:
            self.cache.store(key, op, values, None, worth.seconds)

    def _trusted(self, refs: Sequence[TensorRef]) -> bool:
        """Whether inputs are as planned, and finite: who finds a result may take it that they are."""
        finite = not any((ref.file, ref.name) in self._report.nonfinite_inputs for ref in refs) if self._report.nonfinite_inputs else True
        return finite and self._unchanged([ref.file for ref in refs])

    def _unchanged(self, files: list[str]) -> bool:
        try:
            if self._reader is not None:
                self._reader.check_unchanged(self._files[f] for f in dict.fromkeys(files))
        except CheckpointError:
            return False
        return self._reader is not None

    # -- the whole model ------------------------------------------------------------------------
    def ask_scopes(self) -> dict[str, dict[str, Any]]:
        """Model-wide statistics that are there, by tensor name as the host has them ("" for all)."""
        found: dict[str, dict[str, Any]] = {}
        for scope in self.plan.scopes:
            if not scope.numel or self._scope_seconds(scope.key) <= OPEN_S:
                continue
            entry = self.cache.find(self.names.scopes[scope.key])
            if entry is None:
                continue
            values = _scope_values(scope.key, entry.numbers, self._adding(scope.key))
            entry.close()
            if values is not None:
                found[scope.key] = values
        return found

    def tell_scope(self, key: str, values: dict[str, Any]) -> None:
        """A model-wide statistic is complete."""
        seconds = self._scope_seconds(key)
        if seconds > OPEN_S and not self._report.nonfinite_inputs and self._unchanged(list(self._files)):
            limits = [values[name] for name in self._adding(key) if name in values]
            numbers = np.concatenate([np.asarray(v, np.float64).reshape(-1) for v in (values[""], *limits)])
            self.cache.store(self.names.scopes[key], key.split("|")[0], numbers, None, seconds)

    def _adding(self, key: str) -> list[str]:
        """Names of the tensors that add to a statistic, in canonical order."""
        programs = scope_nodes(self.plan.programs, key)
        return sorted(c.name for c in self.plan.components if c.program in programs)

    def _scope_seconds(self, key: str) -> float:
        seconds = 0.0
        per_program = {
            number: its
            for number, program in enumerate(self.plan.programs)
            for stage, its in zip(program.stages, self.plan.keeping[number].pass_s, strict=True)
            if key in stage.scopes
        }
        for component in self.plan.components:
            seconds += per_program.get(component.program, 0.0)
        return seconds


class Taken(NamedTuple):
    """The matrices of a result, by the nodes that own them.

    Attributes:
        read: those in memory.
        lying: those in a file of the cache, compared with their digest.
    """

    read: dict[int, Array]
    lying: dict[int, Entry]


class Recalled:
    """What a component found when it began.

    Attributes:
        work: the passes that are left.
        entries: what was found, by node of the result and node that owns the memory; tensors are read from them later.
    """

    def __init__(self, left: Work | None, entries: dict[int, dict[int, Entry]]) -> None:
        self.work, self.entries = left, entries

    def numbers(self) -> dict[int, Any]:
        """The numbers of everything that was found."""
        return {i: next(iter(found.values())).numbers for i, found in self.entries.items()}

    def close(self) -> None:
        """Let go of all files."""
        for found in self.entries.values():
            for entry in found.values():
                entry.close()


def _scope_values(key: str, numbers: Any, names: list[str]) -> dict[str, Any] | None:
    """The values of a model-wide statistic from what was stored; None where that is something else."""
    if not key.startswith("kth_magnitude"):
        return {"": float(numbers[0])} if numbers.size == 1 else None
    if numbers.size not in (2, 2 + 2 * len(names)):
        return None
    pairs = numbers.reshape(-1, 2)
    return {"": pairs[0], **dict(zip(names, pairs[1:], strict=numbers.size > 2))}
