"""The ops on whole matrices of a plan: what algorithm, on which device, why, how much work, and how exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from plait.ops.wholes import is_view, on_one_core
from plait.planner.algorithms import Algorithm, algorithm
from plait.planner.cost import needs_bytes
from plait.planner.device_cost import device_whole_bytes, device_worker_bytes, spread
from plait.planner.plan import Plan
from plait.planner.program import Node
from plait.planner.sizes import size
from plait.planner.timing import WHOLE_FLOPS


@dataclass(frozen=True, slots=True)
class WholeWork:
    """Equal ops on whole matrices.

    Attributes:
        op: its name.
        shape: of its result; of a decomposition, of the matrix.
        rank: singular triplets that are taken; None where the op has none.
        algorithm: by which it runs, why, and with what error.
        device: `cpu` or `cuda`.
        device_why: the reason for that.
        count: how many there are in all.
        flops: of one, as float64 operations at the speed of a product of large matrices.
        seconds: predicted for all, with every core in use.
        side_by_side: each takes one core of the CPU, so that several run at once.
        workspace_bytes: that one works in, where it runs.
        first: a tensor that needs it.
    """

    op: str
    shape: tuple[int, ...]
    rank: int | None
    algorithm: Algorithm
    device: str
    device_why: str
    count: int
    flops: float
    seconds: float
    side_by_side: bool
    workspace_bytes: int
    first: str


def whole_work(plan: Plan) -> tuple[WholeWork, ...]:
    """Every kind of op on whole matrices, the most work first."""
    counts = Counter(c.program for c in plan.components)
    found: dict[object, tuple[Node, int, int]] = {}
    for n in counts:
        for stage in plan.programs[n].stages:
            for w in stage.wholes:
                node = plan.programs[n].nodes[w]
                if not is_view(node.op, node) and node.op != "part":
                    key = (node.op, node.shape, node.params if node.op in _DECIDED else node.param("sizes"), n in plan.on_gpu)
                    before = found.get(key, (node, n, 0))
                    found[key] = (before[0], before[1], before[2] + counts[n])
    firsts = {c.program: c.name for c in reversed(plan.components)}
    work = [_work(plan, node, n, count, firsts[n]) for node, n, count in found.values()]
    return tuple(sorted(work, key=lambda w: (-w.flops * w.count, w.op, w.shape)))


#: Ops whose parameters decide how they run.
_DECIDED = frozenset(("svd", "polar", "joint_svd", "doge_correction", "matmul"))


def _work(plan: Plan, node: Node, n: int, count: int, first: str) -> WholeWork:
    on_gpu = n in plan.on_gpu
    flops = WHOLE_FLOPS[node.op](node)
    rates = plan.resources.rates if plan.resources else None
    speed = (rates.gpu_flops_s if on_gpu else rates.whole_flops_s) if rates else 0.0
    return WholeWork(
        node.op,
        node.shape,
        node.param("rank") if node.op == "svd" else None,
        algorithm(node),
        "cuda" if on_gpu else "cpu",
        device_reason(plan, n),
        count,
        flops,
        flops * count / speed if speed else 0.0,
        not on_gpu and on_one_core(node.op, node),
        device_whole_bytes(node) if on_gpu else needs_bytes(node),
        first,
    )


def device_reason(plan: Plan, n: int) -> str:
    """Why the whole ops of a program run where they do; empty where that is not known."""
    program = plan.programs[n]
    need = max((device_whole_bytes(node) for node in program.nodes if node.kind == "whole"), default=0)
    if n in plan.on_gpu:
        return f"{size(need)} at most fit its budget of {size(max(plan.gpu_budget_bytes, default=0))}"
    resources = plan.resources
    if resources is None:
        return ""
    if resources.device != "cuda":
        return resources.device_why
    taken = device_worker_bytes(plan.programs) if plan.maps == "cuda" else 0
    room = max(spread(resources.gpu_memory_bytes, taken, plan.workers)[0], default=0)
    return f"the GPU has {size(room)} for it and {size(need)} would be needed"
