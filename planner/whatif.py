"""The same merge under other budgets: what more memory would buy, and what less would cost.

Only scheduling is done again, on the programs and components of a plan; no recipe and no header is read. Output bits are the same under
every budget, so these are choices of time and memory alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from plait.ops.errors import BudgetTooSmall
from plait.planner.collector import collector_paused
from plait.planner.memory import KEEP_SHARE
from plait.planner.plan import Plan
from plait.planner.residency import KEPT
from plait.planner.schedule import schedule
from plait.planner.sizes import MIB

#: Budgets between the smallest that works and the one above which nothing changes.
RUNGS = 5


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What the merge would need and take under one budget.

    Attributes:
        budget_bytes: of private memory.
        refused: why it cannot be done within that budget; empty where it can, and then the figures that follow hold.
        asked: this is the budget of the plan itself.
        smallest: no smaller budget works.
        enough: no larger budget changes anything.
        peak_bytes: predicted peak.
        workers: worker threads that fit.
        passes: largest number of times that any input is read.
        bytes_read: all passes.
        bytes_read_extra: more at most, should the places of order statistics not be foreseen.
        kept: output tensors whose inputs stay in memory between their passes.
        seconds: predicted wall time.
    """

    budget_bytes: int
    refused: str = ""
    asked: bool = False
    smallest: bool = False
    enough: bool = False
    peak_bytes: int = 0
    workers: int = 0
    passes: int = 0
    bytes_read: int = 0
    bytes_read_extra: int = 0
    kept: int = 0
    seconds: float = 0.0


@collector_paused()
def what_if(plan: Plan, budgets: Iterable[int] | None = None, *, rungs: int = RUNGS) -> tuple[WhatIf, ...]:
    """The merge of a plan under other budgets, smallest first.

    Args:
        plan: as the planner made it. One put together by hand does not know its resources, and gives nothing.
        budgets: bytes. By default a geometric ladder from the smallest budget that works to the one above which nothing changes, both
            included, with the budget of the plan.
        rungs: budgets of that ladder between its ends.
    """
    if plan.resources is None:
        return ()
    least, enough = plan.prediction.minimum_bytes, enough_bytes(plan)
    wanted = ladder(least, enough, rungs) if budgets is None else budgets
    found = (_under(plan, budget) for budget in sorted({*wanted, plan.budget_bytes} if budgets is None else set(wanted)))
    return tuple(
        replace(w, asked=w.budget_bytes == plan.budget_bytes, smallest=w.budget_bytes == least, enough=not w.refused and w.budget_bytes >= enough)
        for w in found
    )


def enough_bytes(plan: Plan) -> int:
    """The budget, in whole MiB, above which nothing about a plan changes: all workers fit, and all inputs that are worth keeping."""
    most = _again(plan, 1 << 62)
    p = most.prediction
    buffers = p.runtime_bytes + most.workers * p.worker_bytes
    kept = int(most.workers * p.slab_bytes / KEEP_SHARE) + 1  # inputs are given a part of what buffers leave
    return -(-max(p.peak_bytes, p.minimum_bytes, buffers + kept) // MIB) * MIB


def ladder(least: int, enough: int, rungs: int) -> list[int]:
    """`least`, `enough` and budgets between, each the same multiple of the one before, in whole MiB."""
    ratio = (enough / max(least, 1)) ** (1 / (rungs + 1))
    between = {-(-int(least * ratio**n) // MIB) * MIB for n in range(1, rungs + 1)}
    return [least, *sorted(b for b in between if least < b < enough), enough]


def _under(plan: Plan, budget: int) -> WhatIf:
    try:
        other = _again(plan, budget)
    except BudgetTooSmall as error:
        return WhatIf(budget, refused=error.message)
    p, kept = other.prediction, {n for n, word in enumerate(other.residency) if word == KEPT}
    return WhatIf(
        budget,
        peak_bytes=p.peak_bytes,
        workers=other.workers,
        passes=p.passes,
        bytes_read=p.bytes_read,
        bytes_read_extra=p.bytes_read_extra,
        kept=sum(c.program in kept for c in other.components) if kept else 0,
        seconds=p.seconds,
    )


def _again(plan: Plan, budget: int) -> Plan:
    assert plan.resources is not None
    resources = replace(plan.resources, memory_bytes=budget)
    return schedule(plan.title, plan.programs, plan.components, plan.layout, plan.files, resources, ())
