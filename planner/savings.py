"""What the planner spared this merge: unread inputs, copied tensors, shared passes and values, in counts and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plait.planner.cost import input_bytes, kernel_count, looking_bytes, output_bytes, recounts, selects, stage_read_bytes
from plait.planner.optimisations import (
    BYTE_COPY,
    COMMON_SUBEXPRESSIONS,
    CONSTANT_FOLDING,
    FORESIGHT,
    KEEP_INPUTS,
    OPTIMISATIONS,
    SHARED_INPUTS,
    SHARED_PASSES,
)
from plait.planner.plan import Plan
from plait.planner.program import Program, Stage, scope_of, separate
from plait.planner.rewrites import COMPONENTS, is_shareable
from plait.planner.sizes import size
from plait.planner.words import counted


@dataclass(frozen=True, slots=True)
class Saving:
    """What one cause spared.

    Attributes:
        name: of the optimisation that can be switched off, or of what the planner always does (`culled`, `shared-programs`).
        on: it was made.
        count: how often; of what, the words say.
        nbytes: bytes of reading, or of copying without decoding, that it is about; 0 where it is about none.
        words: the same as a clause; empty where this merge gave no occasion for it.
    """

    name: str
    on: bool
    count: int
    nbytes: int
    words: str


def savings(plan: Plan) -> tuple[Saving, ...]:
    """Everything that was spared, optimisations first, in the order of their names; those switched off have no figures."""
    counts = Counter(c.program for c in plan.components)
    found = []
    for name in OPTIMISATIONS:
        on = name not in plan.without
        count, nbytes, words = _KNOWN[name](plan, counts) if on else (0, 0, "")
        found.append(Saving(name, on, count, nbytes, words if count else ""))
    return (*found, Saving("culled", True, *_culled(plan)), Saving("shared-programs", True, *_programs(plan, counts)))


_Figures = tuple[int, int, str]


def _copied(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    copies = {n: c for n, c in counts.items() if plan.programs[n].copy is not None}
    nbytes = sum(output_bytes(plan.programs[n]) * c for n, c in copies.items())
    return sum(copies.values()), nbytes, f"{counted(sum(copies.values()), 'tensor')} of {size(nbytes)} copied byte for byte"


def _common(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    total = sum(_uses_shared(plan.programs[n]) * c for n, c in counts.items())
    return total, 0, f"{counted(total, 'statistic or decomposition', 'statistics and decompositions')} not computed a second time"


def _uses_shared(program: Program) -> int:
    """Uses of folds and whole ops beyond the first of each."""
    nodes = program.nodes
    uses = Counter(j for node in nodes if node.op not in COMPONENTS for j in node.inputs)
    return sum(uses[i] - 1 for i, node in enumerate(nodes) if uses[i] > 1 and is_shareable(node.op, node.kind, bool(scope_of(node))))


def _folded(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    total = sum(plan.made[n].folded for n in counts) if plan.made else 0
    return total, 0, f"{counted(total, 'operation')} on numbers done while planning"


def _foreseen(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    count = nbytes = 0
    kept = _kept(plan)
    for n, c in counts.items():
        program = plan.programs[n]
        for stage in program.stages:
            if recounts(program, stage):
                count += len(selects(program, stage)) * c
                nbytes += (stage_read_bytes(program, stage) - looking_bytes(program, stage)[0]) * c * (n not in kept)
    return count, nbytes, f"{counted(count, 'threshold')} foreseen by a sample" + (f": {size(nbytes)} of reading spared" if nbytes > 0 else "")


def _kept(plan: Plan) -> set[int]:
    return {c.program for c in plan.components if c.keep_inputs}


def _inputs_kept(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    kept = _kept(plan)
    count = sum(counts[n] for n in kept)
    nbytes = sum(counts[n] * (sum(stage_read_bytes(p, s) for s in p.stages) - input_bytes(p)) for n in kept for p in [plan.programs[n]])
    return count, nbytes, f"inputs of {counted(count, 'tensor')} kept between passes: {size(nbytes)} of reading spared"


def _inputs_shared(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    count = sum(plan.made[n].shared * c for n, c in counts.items()) if plan.made else 0
    return count, 0, f"{counted(count, 'stored tensor')} named in two places and read once"


def _passes_shared(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    count = nbytes = 0
    kept = _kept(plan)
    for n, c in counts.items():
        program = plan.programs[n]
        for stage in program.stages:
            parts = separate(program.nodes, stage)
            count += (len(parts) - 1) * c
            nbytes += (sum(_read(program, part) for part in parts) - _read(program, stage)) * c * (n not in kept)
    spared = f": {size(nbytes)} of reading spared" if nbytes > 0 else ""
    return count, nbytes, f"statistics gathered together in {count:,} fewer {'pass' if count == 1 else 'passes'}{spared}"


def _read(program: Program, stage: Stage) -> int:
    """Bytes that a stage reads: its pass, and the sample before it."""
    return stage_read_bytes(program, stage) + looking_bytes(program, stage)[0]


_KNOWN: dict[str, Callable[[Plan, Mapping[int, int]], _Figures]] = {
    BYTE_COPY: _copied,
    COMMON_SUBEXPRESSIONS: _common,
    CONSTANT_FOLDING: _folded,
    FORESIGHT: _foreseen,
    KEEP_INPUTS: _inputs_kept,
    SHARED_INPUTS: _inputs_shared,
    SHARED_PASSES: _passes_shared,
}


def _culled(plan: Plan) -> _Figures:
    """Inputs that are named and not read."""
    count = nbytes = 0
    for component in plan.components:
        program = plan.program_of(component)
        for slot, ref in enumerate(component.inputs):
            read = slot == program.copy if program.copy is not None else program.slots[slot] >= 0
            count += not read
            nbytes += 0 if read else ref.nbytes
    return count, nbytes, f"{counted(count, 'input tensor')} of {size(nbytes)} not read: the result does not depend on them" if count else ""


def _programs(plan: Plan, counts: Mapping[int, int]) -> _Figures:
    kernels = kernel_count([plan.programs[n] for n in counts]) if plan.backend == "numba" else 0
    words = f"{counted(len(plan.components), 'tensor')} run {counted(len(counts), 'program')}" + (f" of {counted(kernels, 'kernel')}" if kernels else "")
    return len(counts), 0, words
