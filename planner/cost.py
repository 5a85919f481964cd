"""What a program needs: memory that lives as long as a component, and bytes moved. Arithmetic only, nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from plait.ops.dtypes import BY_CODE
from plait.ops.wholes import WHOLES, is_view, on_one_core
from plait.planner.blocks import COARSE, SPAN, SPARSE_LIMIT, aligned, block_count, block_elements, sample_pieces, sample_starts, seen_whole, strips
from plait.planner.liveness import Moment, moments
from plait.planner.program import Node, Program, Stage, scope_of

_SPARSE_BYTES = 2 * SPARSE_LIMIT * 8
#: Small values of more numbers than these are counted, and so many vectors that a solver works with beside its inputs.
_MANY_NUMBERS, _SOLVER_VECTORS = 64, 8


#: Bytes that a whole op needs beside its float32 inputs and results.
WORKSPACE: dict[str, Callable[[Node], int]] = {name: op.workspace for name, op in WHOLES.items()}


def numel(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    count = 1
    for size in shape:
        count *= size
    return count


def tensor_bytes(node: Node) -> int:
    """Bytes of a tensor held in float32."""
    return aligned(4 * numel(node.shape))


def input_bytes(program: Program) -> int:
    """Stored bytes of all inputs that the program reads, once."""
    return sum(program.numel * BY_CODE[program.storages[s]].itemsize for s, i in enumerate(program.slots) if i >= 0)


def stage_read_bytes(program: Program, stage: Stage) -> int:
    """Stored bytes that one pass of a stage reads; what a small tensor's thresholds are taken of is counted as looking."""
    if seen_whole(program, stage):
        return 0
    return sum(program.numel * BY_CODE[str(program.nodes[i].param("storage"))].itemsize for i in stage.loads)


def output_bytes(program: Program) -> int:
    """Bytes of the stored output."""
    if program.gives_numbers:
        return numel(program.nodes[program.root].shape) * BY_CODE[program.dtype].itemsize
    return program.numel * BY_CODE[program.dtype].itemsize


def looking_bytes(program: Program, stage: Stage) -> tuple[int, int]:
    """Stored bytes read to foresee a stage's order statistics, and at most to find the last ties that are kept (a block each)."""
    found = selects(program, stage)
    mine = [i for i in found if not scope_of(program.nodes[i])]
    per_element = sum(BY_CODE[str(program.nodes[i].param("storage"))].itemsize for i in stage.loads)
    starts, piece = sample_starts(stage, program.numel, sample_pieces(program, stage))
    if seen_whole(program, stage):
        return program.numel * per_element, 0
    return (len(starts) * piece * per_element if mine else 0), len(found) * block_elements(stage, program.numel) * per_element


def kernel_count(programs: Sequence[Program]) -> int:
    """Kernels that will be compiled: stages of one structure share one, and an order statistic needs two more to look at values."""
    return sum(1 + 2 * recounts(program, stage) for program, stage in distinct_stages(programs))


def distinct_stages(programs: Sequence[Program]) -> list[tuple[Program, Stage]]:
    """One stage of each structure."""
    found: dict[object, tuple[Program, Stage]] = {}
    for program in programs:
        for stage in filter(attrgetter("has_pass"), program.stages):
            ops = tuple((program.nodes[i].op, program.nodes[i].inputs, program.nodes[i].param("storage")) for i in (*stage.loads, *stage.compute, *stage.folds))
            found.setdefault((ops, stage.keeps, stage.store and program.dtype), (program, stage))
    return list(found.values())


def selects(program: Program, stage: Stage) -> list[int]:
    """Order statistics that end in a stage."""
    return [i for i in stage.folds if program.nodes[i].op == "kth_magnitude"]


def recounts(program: Program, stage: Stage) -> bool:
    """Whether a stage may be read a second time: an order statistic whose place was not foreseen."""
    return bool(selects(program, stage)) and not seen_whole(program, stage)


def component_bytes(program: Program, *, workspace: bool = True) -> int:
    """Peak bytes that a component holds beside its workers' buffers: histograms, tensors held whole, workspaces.

    Args:
        program: what the component runs.
        workspace: count what its whole ops need on the CPU; False where they run on a GPU and nothing is kept free for doing them again here.
    """
    if not any(stage.keeps or stage.wholes for stage in program.stages):
        return max((_counting_bytes(program, stage) for stage in program.stages), default=0)
    peak = 0
    for moment in moments(program):
        node = program.nodes[moment.node]
        working = _counting_bytes(program, program.stages[moment.stage]) if moment.node < 0 else workspace * needs_bytes(node) + moment.result_bytes
        peak = max(peak, moment.held_bytes + working)
    return peak


class Lease(NamedTuple):
    """What a component leases.

    Attributes:
        always: bytes that it may hold beside any other component.
        in_turn: bytes more while one of its large whole ops runs on the CPU, where they take turns: of all open components one holds them.
    """

    always: int
    in_turn: int = 0

    @property
    def most(self) -> int:
        """Bytes that it holds at its peak."""
        return self.always + self.in_turn


def lease_of(program: Program, *, on_gpu: bool = False, lean: bool = False) -> Lease:
    """What a component leases.

    Args:
        program: what the component runs.
        on_gpu: its whole ops run on GPUs, several at once, and are done again on the CPU, in turn, where a GPU has no memory for them.
        lean: of those, no room is kept for doing them again.
    """
    most = component_bytes(program, workspace=not lean)
    if on_gpu:
        always = component_bytes(program, workspace=False)
    elif any(stage.wholes for stage in program.stages):
        always = max((m.held_bytes + _beside_others(program, m) for m in moments(program)), default=0)
    else:
        always = most
    return Lease(always, most - always)


def _beside_others(program: Program, moment: Moment) -> int:
    """What a moment takes beside the matrices held, where it waits for no turn: a pass, or a whole op on one core."""
    if moment.node < 0:
        return _counting_bytes(program, program.stages[moment.stage])
    node = program.nodes[moment.node]
    return needs_bytes(node) + moment.result_bytes if on_one_core(node.op, node) else 0


def needs_bytes(node: Node) -> int:
    """Workspace of a whole op on the CPU; a view needs none."""
    return 0 if is_view(node.op, node) else WORKSPACE[node.op](node)


def _counting_bytes(program: Program, stage: Stage) -> int:
    """Partial sums and histograms of a pass."""
    folds = sum(_partials_bytes(program, stage, i) for i in stage.folds) + _vector_bytes(program)
    found = len(selects(program, stage))
    histograms = 0 if seen_whole(program, stage) else found * ((COARSE + SPAN) * 8 + _SPARSE_BYTES * block_count(stage, program.numel))
    return folds + max(histograms, _sampling_bytes(program, stage, found))  # the sample is gone when counting begins


def _partials_bytes(program: Program, stage: Stage, fold: int) -> int:
    """What a stage gives for a fold: a number a block, or a vector of the columns a strip of blocks; those of the rows make up one."""
    node = program.nodes[fold]
    if node.op == "column_dot":
        return 8 * numel(node.shape) * len(strips(program, stage))
    return 8 * (numel(node.shape) if node.op == "row_values" else block_count(stage, program.numel))


def _vector_bytes(program: Program) -> int:
    """Small vectors of a value a row or column, with what a solver takes that makes one of others."""
    vectors = [8 * numel(node.shape) for node in program.nodes if node.space == "small" and numel(node.shape) > _MANY_NUMBERS]
    return sum(vectors) + _SOLVER_VECTORS * max(vectors, default=0)


def _sampling_bytes(program: Program, stage: Stage, found: int) -> int:
    """A sample for each order statistic, and what sorting one of them takes beside it."""
    starts, piece = sample_starts(stage, program.numel, sample_pieces(program, stage))
    return (found + 4) * 4 * piece * len(starts) if found else 0
