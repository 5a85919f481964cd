"""The memory of a plan, pool by pool: what each holds at most, and which tensor's work makes it so."""

from __future__ import annotations

from dataclasses import dataclass

from plait.ops.wholes import is_view
from plait.planner.cost import component_bytes, needs_bytes, selects
from plait.planner.device_cost import device_whole_bytes, spread
from plait.planner.liveness import moments
from plait.planner.plan import Component, Plan
from plait.planner.sizes import size
from plait.planner.words import counted


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of memory.

    Attributes:
        name: `host`, or `GPU 0` and so on.
        budget_bytes: what may be leased of it.
        peak_bytes: most that is, predicted.
        task: output tensor whose work sets the peak, or an empty string.
        why: what of that work takes the memory, in words.
    """

    name: str
    budget_bytes: int
    peak_bytes: int
    task: str
    why: str


def pools(plan: Plan) -> tuple[Pool, ...]:
    """The host's pool, then that of each GPU that the plan uses."""
    p = plan.prediction
    host = Pool("host", plan.budget_bytes, p.peak_bytes, p.peak_task, peak_reason(plan))
    return (host, *(_gpu(plan, number, budget) for number, budget in enumerate(plan.gpu_budget_bytes)))


def peak_reason(plan: Plan) -> str:
    """Why the tensor that sets the host's peak does so; empty where there is none."""
    component = _named(plan, plan.prediction.peak_task)
    if component is None:
        return ""
    lean = component.program in plan.lean
    held = component_bytes(plan.program_of(component), workspace=not lean)
    if component.keep_inputs:
        return f"its inputs stay in memory between passes, {size(plan.prediction.slab_bytes)} for each worker"
    if held <= plan.prediction.worker_bytes:
        return f"its blocks need the largest buffers, {size(plan.prediction.worker_bytes)} for each worker"
    others = plan.prediction.state_bytes - held
    return _moment(plan, component, lean) + (f"; {size(others)} more for what is worked on beside it" if others > 0 else "")


def _moment(plan: Plan, component: Component, lean: bool) -> str:
    """The step of a component at which it holds most."""
    program = plan.program_of(component)
    if not any(stage.keeps or stage.wholes for stage in program.stages):
        thresholds = max(len(selects(program, stage)) for stage in program.stages)
        what = f"counts of {counted(thresholds, 'threshold')}" if thresholds else "partial sums"
        return f"{what}, {size(component_bytes(program))}"
    steps = [(m.held_bytes + m.result_bytes + (needs_bytes(program.nodes[m.node]) if m.node >= 0 and not lean else 0), m) for m in moments(program)]
    _, worst = max(steps, key=lambda step: step[0])
    if worst.node < 0:
        return f"pass {worst.stage + 1} holds {size(worst.held_bytes)} of whole matrices"
    node = program.nodes[worst.node]
    works = needs_bytes(node)
    return f"{node.op} holds {size(worst.held_bytes + worst.result_bytes)} of whole matrices" + (f" and works in {size(works)}" if works and not lean else "")


def _gpu(plan: Plan, number: int, budget: int) -> Pool:
    room, _ = spread(plan.gpu_budget_bytes, plan.gpu_worker_bytes, plan.workers) if plan.gpu_worker_bytes else (list(plan.gpu_budget_bytes), 0)
    blocks = budget - room[number]
    needs = {n: max((device_whole_bytes(node) for node in plan.programs[n].nodes if node.kind == "whole"), default=0) for n in plan.on_gpu}
    largest = max(needs, key=lambda n: needs[n], default=-1)
    whole = needs.get(largest, 0)
    at_once = min(plan.workers, room[number] // whole) if whole else 0
    first = next((c for c in plan.components if c.program == largest), None)
    parts = [f"blocks of workers, {size(blocks)}"] if blocks else []
    if at_once and first is not None:
        op = max((node for node in plan.program_of(first).nodes if node.kind == "whole" and not is_view(node.op, node)), key=device_whole_bytes).op
        parts.append(f"{op} takes {size(whole)}" + (f", {at_once} at once" if at_once > 1 else ""))
    return Pool(f"GPU {number}", budget, blocks + at_once * whole, first.name if at_once and first else "", " and ".join(parts))


def _named(plan: Plan, name: str) -> Component | None:
    return next((c for c in plan.components if c.name == name), None) if name else None
