"""What a cache of results would save a run that began now: told with a plan, which stays that of a run without it."""

from __future__ import annotations

from functools import partial
from operator import add
from typing import NamedTuple

from plait.engine.cache import ResultCache
from plait.engine.reuse import Reuse, Step
from plait.planner.plan import Keeping, Outlook, Plan
from plait.planner.program import Program
from plait.planner.reuse import ENTRY_BYTES, Facts, spared_bytes


def outlook(plan: Plan, cache: ResultCache, facts: Facts) -> Outlook:
    """What a cache would save a run of a plan that began now; looks at the heads of entries alone."""
    reuse = Reuse(plan, cache, facts)
    scopes = frozenset(s.key for s in plan.scopes if cache.holds(reuse.names.scopes[s.key]))
    totals = _Savings(len(plan.scopes), len(scopes), 0, 0.0, ENTRY_BYTES * (len(plan.scopes) - len(scopes)))
    known: dict[tuple[int, bool, int], _Savings] = {}  # of components that are alike: there may be 100,000
    for component in plan.components:
        program, kept = plan.program_of(component), plan.keeping[component.program]
        if program.copy is None and (kept.results or any(stage.scopes for stage in program.stages)):
            step = reuse.walk(component.program, frozenset(), scopes, partial(reuse.holds, component))
            key = (component.program, component.keep_inputs, id(step))
            if key not in known:
                known[key] = _savings(program, kept, step, keep=component.keep_inputs)
            totals = _Savings(*map(add, totals, known[key]))
    results, hits, spared, seconds, added = totals
    return Outlook(str(cache.folder), cache.limit, results, hits, spared, max(0.0, seconds), min(added, cache.limit))


class _Savings(NamedTuple):
    results: int
    hits: int
    spared_bytes: int
    spared_s: float
    added_bytes: int


def _savings(program: Program, kept: Keeping, step: Step, *, keep: bool) -> _Savings:
    """What a component saves that finds what a step says."""
    worth, missing = {r.node: r for r in kept.results}, step.needed - step.there
    found = [worth[i] for i in step.asked & step.there]
    seconds = sum(its for its, stage in zip(kept.pass_s, step.work.stages, strict=True) if stage is None)
    seconds += sum(its for i, its in kept.whole_s if i not in missing) - sum(r.reading_s for r in found)
    added = sum(worth[i].nbytes + ENTRY_BYTES * worth[i].entries for i in step.asked & missing)
    spared = spared_bytes(program, program.stages, step.work.stages, keep=keep)
    return _Savings(sum(worth[i].entries for i in step.asked), sum(r.entries for r in found), spared, seconds, added)
