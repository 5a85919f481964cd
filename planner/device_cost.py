"""What blocks and whole ops need on a GPU. Arithmetic only: the engine follows `block_steps`, and so holds what is predicted here.

On a device a block is computed op by op: every value is a tensor that lives from the step that makes it to the
last step that uses it. Figures per element were measured on the engine's simulated device, whose ledger counts
every tensor, and are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.ops.dtypes import BY_CODE
from plait.ops.op import NUMBER_FOLDS
from plait.ops.wholes import is_view, sizes
from plait.planner.blocks import COARSE, SPAN, aligned, block_elements
from plait.planner.cost import WORKSPACE, numel
from plait.planner.liveness import result_bytes
from plait.planner.program import Node, Program, Stage, data_inputs

#: Elements that sums in float64 are formed of at a time.
FOLD_PIECE = 1 << 16
#: What torch's allocator takes more than tensors do, for each worker: segments of 20 MiB for blocks below 10, and gaps between blocks.
_WORKER_SLACK, _GAPS = 32 << 20, 0.25
#: The same for a whole op, with workspaces of the linear algebra libraries.
_WHOLE_SLACK = 96 << 20
#: Whole ops that call the device's solver.
_SOLVED = frozenset(("polar", "svd", "joint_svd"))
#: Bytes an element takes while it lives, by the result type of its op; row-wise values are float64, one a row.
_LIVING = {"float32": 4, "bool": 1, "uint32": 4, "int32": 4, "int64": 8}
#: Bytes an element that an op takes only while it runs, beside converted operands and its result.
_PASSING = {
    "exp": 32,
    "tanh": 44,
    "reversed_magnitude": 12,
    "column": 8,
    "row": 8,
    "random_bits": 14,
    "keep_top": 20,
    "row_rank": 60,
    "take": 16,
    "take_integer": 16,
    "cast": 4,
    "row_max": 8,
}
_PASSING_ELSE = 4
#: The same for an order statistic.
_COUNTING = 16


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a block.

    Attributes:
        fetch: loads and whole results that come to the device first.
        node: what is computed; -1 for the last step, which gives the results out.
        drop: values that nothing needs any more afterwards.
    """

    fetch: tuple[int, ...]
    node: int
    drop: tuple[int, ...]


def block_steps(program: Program, stage: Stage) -> tuple[Step, ...]:
    """The steps of a block: inputs come as late, and values go as early, as they can."""
    ending = {*stage.keeps, *(j for i in stage.folds for j in data_inputs(program.nodes[i]))} | ({program.root} if stage.store else set())
    held = {*stage.loads, *stage.residents, *stage.compute}
    uses = {i: [j for j in data_inputs(program.nodes[i]) if j in held] for i in stage.compute}
    last = {j: i for i in stage.compute for j in uses[i]}
    here: set[int] = set()
    steps = []
    for i in stage.compute:
        fetch = tuple(j for j in dict.fromkeys(uses[i]) if j not in here and j not in uses)
        here.update(fetch)
        steps.append(Step(fetch, i, tuple(j for j in dict.fromkeys(uses[i]) if last[j] == i and j not in ending)))
    steps.append(Step(tuple(j for j in sorted(ending) if j in held and j not in here and j not in uses), -1, ()))
    return tuple(steps)


def fused_targets(program: Program, stage: Stage) -> tuple[int, ...]:
    """Values of a stage that results are made of: what one kernel for all its maps leaves in memory."""
    ending = {*stage.keeps, *(j for i in stage.folds for j in data_inputs(program.nodes[i]))} | ({program.root} if stage.store else set())
    return tuple(sorted(i for i in ending if program.nodes[i].space == "tensor"))


def _fused_bytes(program: Program, stage: Stage) -> int:
    """Bytes of a block whose maps are one kernel: all inputs as stored, all results, and giving those out."""
    nodes, n = program.nodes, block_elements(stage, program.numel)
    inputs = sum(n * BY_CODE[str(nodes[i].param("storage"))].itemsize for i in stage.loads) + 4 * n * len(stage.residents)
    results = 4 * n * len(fused_targets(program, stage))
    scalars = 8 * (len(nodes) + 8)
    return inputs + results + scalars + _ending(program, stage, n, 1)


def device_block_bytes(program: Program, stage: Stage) -> int:
    """Most bytes that one block of a stage has on the device at once, whether its maps run op by op or as one kernel."""
    if stage.row_length:
        return _interpreted_bytes(program, stage)
    return max(_interpreted_bytes(program, stage), _fused_bytes(program, stage))


def _interpreted_bytes(program: Program, stage: Stage) -> int:
    nodes, n = program.nodes, block_elements(stage, program.numel)
    rows = n // stage.row_length if stage.row_length else 1
    living: dict[int, int] = {}
    peak = 0
    for step in block_steps(program, stage):
        for j in step.fetch:
            held = sum(living.values())
            living[j] = 4 * n
            peak = max(peak, held + 4 * n + (n * BY_CODE[str(nodes[j].param("storage"))].itemsize if nodes[j].kind == "load" else 4 * n))
        held = sum(living.values())
        if step.node < 0:
            peak = max(peak, held + _ending(program, stage, n, rows))
            break
        node = nodes[step.node]
        result = 8 * rows if node.space == "row" else _living(node) * n
        peak = max(peak, held + _passing(nodes, node, n, rows) + result)
        living[step.node] = result
        for j in step.drop:
            del living[j]
    return peak


def _living(node: Node) -> int:
    return 8 if node.op == "random_bits" else _LIVING[node.dtype]


def _passing(nodes: Sequence[Node], node: Node, n: int, rows: int) -> int:
    """Bytes that an op takes while it runs, beside its operands and its result."""
    if node.op in ("row_sum", "row_dot"):
        return _folding(1, n, rows)
    converted = sum(4 * n for j in data_inputs(node) if nodes[j].space == "tensor" and nodes[j].dtype != "float32")
    return converted + _PASSING.get(node.op, _PASSING_ELSE) * n + 64 * rows


def _folding(count: int, n: int, rows: int) -> int:
    """Bytes of sums in float64: pieces of the operands, running sums and the lanes."""
    piece = min(n, max(FOLD_PIECE, n // rows))
    return count * (40 * piece + 256 * rows)


def _ending(program: Program, stage: Stage, n: int, rows: int) -> int:
    """Bytes of giving results out: the output rounded, values to keep, sums and counts."""
    sums = [i for i in stage.folds if program.nodes[i].op in NUMBER_FOLDS]
    counted = sum(1 for i in stage.folds if program.nodes[i].op == "kth_magnitude")
    columns = any(program.nodes[i].op == "column_dot" for i in stage.folds)
    converted = 4 * n * len({j for i in sums for j in program.nodes[i].inputs if program.nodes[j].dtype != "float32"})
    output = n * (8 + BY_CODE[program.dtype].itemsize) if stage.store else 0
    return max(
        output,
        4 * n if stage.keeps else 0,
        converted + _folding(len(sums), n, rows) if sums else 0,
        _folding(1, n, rows) + 32 * stage.row_length if columns else 0,
        _COUNTING * n + 16 * (COARSE + SPAN) if counted else 0,
    )


def device_worker_bytes(programs: Sequence[Program]) -> int:
    """What each worker leases on a GPU to run blocks of any of these programs."""
    most = max((device_block_bytes(p, s) for p in programs for s in p.stages), default=0)
    return most + int(_GAPS * most) + _WORKER_SLACK


def device_whole_bytes(node: Node) -> int:
    """What a whole op needs on a GPU: matrices and results, the workspace, and one more square matrix for the device's solver."""
    if is_view(node.op, node):
        return 0
    shapes = sizes(node)
    short = 0 if node.op not in _SOLVED else node.shape[1] if node.op == "joint_svd" else min(shapes[0], default=0)
    held = sum(aligned(4 * numel(shape)) for shape in shapes) + result_bytes(node)
    return held + WORKSPACE[node.op](node) + 8 * short * short + _WHOLE_SLACK


def spread(budgets: Sequence[int], nbytes: int, count: int) -> tuple[list[int], int]:
    """What is left of each budget, and how many of `count` leases of `nbytes` fit, each placed where there is most room, as the engine does."""
    room = list(budgets)
    for placed in range(count):
        index = room.index(max(room)) if room else -1
        if index < 0 or room[index] < nbytes:
            return room, placed
        room[index] -= nbytes
    return room, count
