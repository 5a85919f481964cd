"""How long a compiled kernel takes for an element: what its loop does, by arithmetic on the stage that it is generated from."""

from __future__ import annotations

from plait.ops.op import OPS
from plait.planner.program import Program, Stage, data_inputs
from plait.planner.rates import Rates

_SORTED = 2.0  # rows of many different magnitudes are sorted, which takes twice as long as counting (`ops/kernels/jit_buckets.py`)


def stage_ns(program: Program, stage: Stage, rates: Rates) -> float:
    """Nanoseconds of one core for one element of a stage, in compiled kernels.

    The generated loop sweeps a row once for each *phase* (see `engine/codegen.py`): a row-wise result is ready one phase after its
    input, and what a phase needs is computed in it again.
    """
    nodes = program.nodes
    phase: dict[int, int] = {}
    for i in sorted({*stage.loads, *stage.residents, *stage.compute}):
        latest = max((phase[j] for j in data_inputs(nodes[i]) if j in phase), default=0)
        phase[i] = latest + 1 if nodes[i].kind == "rows" else latest
    reductions = [*stage.folds, *(i for i in stage.compute if nodes[i].kind == "rows")]
    targets: dict[int, set[int]] = {}
    total = 0.0
    for i in reductions:
        at = max((phase[j] for j in data_inputs(nodes[i]) if j in phase), default=0)
        targets.setdefault(at, set()).update(nodes[i].inputs)
        total += _reduction_ns(program, stage, i, rates)
    for i in (*stage.keeps, *([program.root] if stage.store else [])):
        targets.setdefault(phase.get(i, 0), set()).add(i)
        total += rates.store_ns
    return total + sum(_sweep_ns(program, wanted, rates) for wanted in targets.values())


def _reduction_ns(program: Program, stage: Stage, i: int, rates: Rates) -> float:
    nodes, op = program.nodes, program.nodes[i].op
    if op == "kth_magnitude":
        return rates.count_ns
    if op == "row_rank":
        sorts = nodes[nodes[i].inputs[0]].op == "reversed_magnitude" or any(nodes[j].param("storage") == "F32" for j in stage.loads)
        return rates.rank_ns * (_SORTED if sorts else 1.0)
    return OPS[op].flops * rates.fold_ns


def _sweep_ns(program: Program, targets: set[int], rates: Rates) -> float:
    """One sweep over the elements: everything that its targets are computed from."""
    nodes, found, total = program.nodes, set[int](), 0.0
    stack = [i for i in targets if nodes[i].space == "tensor"]
    while stack:
        i = stack.pop()
        if i in found:
            continue
        found.add(i)
        if nodes[i].kind != "map":
            total += rates.load_ns
            continue
        total += rates.random_ns if nodes[i].op == "random_bits" else OPS[nodes[i].op].flops * rates.map_ns
        stack += [j for j in data_inputs(nodes[i]) if nodes[j].space == "tensor"]
    return total
