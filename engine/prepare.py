"""Before the first byte is read: generate every kernel of a plan, and compile at once those that no earlier run has left."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator

from plait.engine.codegen import generate
from plait.engine.kernel import Kernel
from plait.engine.moments import Prepared
from plait.planner.plan import Plan
from plait.planner.program import Program, Stage, probe_stage, scope_of

#: A helper process that compiles takes about this much private memory; as many run at once as the budget holds.
_COMPILER_BYTES = 128 << 20


def prepare_kernels(plan: Plan, stop: threading.Event | None = None) -> tuple[dict[Hashable, Kernel], Prepared]:
    """The kernels that workers will ask for, by `kernel_key`, and what it took to have them.

    Args:
        plan: that will run.
        stop: when it is set, compiling ends early.

    Raises:
        KernelError: one cannot be compiled.
        Stopped: `stop` was set.
    """
    begun, compiled = time.perf_counter(), 0
    used = sorted({component.program for component in plan.components})
    kernels: dict[Hashable, Kernel] = {}
    for number in used:
        for key, program, stage in _stages(number, plan.programs[number]):
            kernels[key] = generate(program, stage)
    if plan.backend == "numba" and kernels:
        from plait.engine.compile import compile_missing

        compiled = compile_missing(kernels.values(), max(1, min(plan.workers, plan.budget_bytes // _COMPILER_BYTES)), stop)
    return kernels, Prepared(len({kernel.key for kernel in kernels.values()}), compiled, time.perf_counter() - begun)


def kernel_key(program: int, stage: Stage, what: Hashable) -> tuple[Hashable, ...]:
    """Identity of a kernel within a plan; `what` tells a probe from the stage itself."""
    return (program, stage.keeps, what, stage.store)


def probe_key(stage: Stage, nodes: tuple[int, ...]) -> Hashable:
    """`what` of the kernel that computes tensor nodes of a stage to look at them."""
    return ("probe", stage.folds, nodes)


def looked_at(program: Program, selects: list[int]) -> tuple[int, ...]:
    """The tensor nodes that order statistics are taken of, each once."""
    return tuple(dict.fromkeys(program.nodes[i].inputs[0] for i in selects))


def _stages(number: int, program: Program) -> Iterator[tuple[Hashable, Program, Stage]]:
    if program.copy is not None:
        return
    for stage in program.stages:
        if not stage.has_pass:
            continue
        yield kernel_key(number, stage, stage.folds), program, stage
        selects = [i for i in stage.folds if program.nodes[i].op == "kth_magnitude"]
        looks = {looked_at(program, group) for group in _groups(program, selects)}
        for nodes in sorted(looks):
            probe = probe_stage(program, stage, nodes)
            yield kernel_key(number, probe, probe_key(stage, nodes)), program, probe


def _groups(program: Program, selects: list[int]) -> list[list[int]]:
    """Order statistics whose values are looked at together: to foresee a tensor's own, or a model's; and one by one, to find the last tie."""
    own = [i for i in selects if not scope_of(program.nodes[i])]
    scoped = [i for i in selects if scope_of(program.nodes[i])]
    return [group for group in (own, scoped, *([i] for i in selects)) if group]
