"""Model-wide statistics between the sweeps: judged by a sample beforehand, finished when all tensors have added to them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.component import ComponentRun
from plait.engine.faults import named
from plait.engine.foresight import Guess, Sampled
from plait.engine.orderstat import NO_LIMIT, Threshold
from plait.engine.smalls import added_up
from plait.ops.errors import KernelError
from plait.planner.blocks import SCOPE_PIECE, SCOPE_PIECES
from plait.planner.optimisations import FORESIGHT
from plait.planner.program import Stage, scope_of

if TYPE_CHECKING:
    from plait.engine.executor import _Run as Run


def foresee_scopes(run: Run, sweep: int) -> None:
    """Judge the places of the model-wide thresholds that end with a sweep by a sample of every tensor that adds to them in it."""
    host = run.host
    first = {s.key: s for s in host.plan.scopes if s.sweep == sweep and s.key in host.statistics and s.key not in host.scope_values}
    if not first or FORESIGHT in host.plan.without:
        return
    host.workers[threading.get_ident()] = run.workers[0]
    samples: dict[str, list[Array]] = {key: [] for key in first}
    share = 0.0
    for component in host.plan.components:
        program = host.plan.program_of(component)
        for number, stage in enumerate(program.stages):
            folds = [i for i in stage.folds if scope_of(program.nodes[i]) in first]
            if not folds or host.sweeps[component.program][number] != sweep or stage.residents or not run.remaining.runs(component, sweep):
                continue
            share += SCOPE_PIECES * program.numel / first[scope_of(program.nodes[folds[0]])].numel
            pieces, share = int(share), share - int(share)  # pieces in proportion to size; many small tensors share one
            if pieces:
                with named(component.name):
                    found = run.component_run(component).looking.sample(stage, folds, pieces, SCOPE_PIECE)
                for i, values in zip(folds, found, strict=True):
                    samples[scope_of(program.nodes[i])].append(values)
    for key, parts in samples.items():
        statistic = host.statistics[key]
        statistic.foreseen_by(Sampled(np.concatenate(parts)).guess(statistic.rank) if parts else Guess())


def finish_scopes(run: Run, sweep: int) -> None:
    """Give the statistics that end with this sweep their values."""
    host = run.host
    ending = [scope for scope in host.plan.scopes if scope.sweep == sweep and scope.key not in host.scope_values]
    for scope in ending:
        if scope.key in host.sums or not scope.key.startswith("kth_magnitude"):
            parts = [value for _, value in sorted(host.sums.get(scope.key, {}).items())]
            host.scope_values[scope.key] = {"": added_up(scope.key.split("|")[0], parts)}
    thresholds = [scope.key for scope in ending if scope.key in host.statistics and scope.numel]
    again = [key for key in thresholds if not host.statistics[key].foreseen()]
    host.count_recounts(len(again))
    better = [key for key in again if host.statistics[key].guess_again()]
    if better:
        run.sweep(sweep, frozenset(better))
        again = [key for key in again if not host.statistics[key].foreseen()]
    wrong = [key for key in again if host.statistics[key].window.low >= 0]
    for key in wrong:
        host.statistics[key].start_over()
    if wrong:
        run.sweep(sweep, frozenset(wrong))
    for key in again:
        host.statistics[key].look_into_right_digit()
    if again:
        run.sweep(sweep, frozenset(again))
    for key in thresholds:
        host.scope_values[key] = _limits(run, key)
    if host.reuse is not None:
        for scope in ending:
            if scope.numel:
                host.reuse.tell_scope(scope.key, host.scope_values[scope.key])


def _limits(run: Run, key: str) -> dict[str, object]:
    """For each tensor the threshold's bits and the index from which ties are dropped, in canonical order of names."""
    statistic = run.host.statistics[key]
    threshold: Threshold = statistic.threshold()
    values: dict[str, object] = {"": np.array([float(threshold.key), NO_LIMIT])}
    if threshold.all_ties:
        return values
    before = 0
    for name in sorted(statistic.sparse):
        component_run = run.runs[name]
        equal = statistic.equal_in(name, threshold)
        if equal is None or before < threshold.quota < before + equal:
            stage, fold = _stage_of(component_run, key)
            with named(name):
                limit = component_run.looking.search_ties(stage, fold, threshold, before)
                if equal is None:
                    equal = component_run.looking.count_ties(stage, fold, threshold)
        else:
            limit = NO_LIMIT if before + equal <= threshold.quota else 0.0
        values[name] = np.array([float(threshold.key), limit])
        before += equal
    return values


def _stage_of(component_run: ComponentRun, key: str) -> tuple[Stage, int]:
    for stage in component_run.program.stages:
        for i in stage.folds:
            if scope_of(component_run.program.nodes[i]) == key:
                return stage, i
    raise KernelError(f"{component_run.component.name} does not add to {key}; please report this")
