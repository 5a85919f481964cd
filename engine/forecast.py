"""How much of a run is done and how long the rest takes: the plan's cost model, corrected by what has been seen."""

from __future__ import annotations

from plait.engine.moments import Open, Sample, Task
from plait.planner.plan import Component, Plan

_TRUSTED = 0.25  #: part of a run after which what has been seen counts alone


class Forecast:
    """Follows a run; told of its events by whoever shows it."""

    def __init__(self) -> None:
        self._shares: dict[int, float] = {}
        self._passes: list[int] = []
        self._sweeps = 1
        self._total = self._done = self._predicted_s = self._publishing_s = 0.0
        self._running_since = -1.0

    def started(self, plan: Plan) -> None:
        """What is to be done."""
        timing = plan.timing
        self._shares = {t.program: t.seconds / max(1, t.count) for t in timing.programs}
        self._passes = [max(1, sum(stage.has_pass for stage in p.stages)) for p in plan.programs]
        self._sweeps = plan.sweeps
        self._total = sum(t.seconds for t in timing.programs)
        self._publishing_s = timing.publishing_s
        self._predicted_s = max(0.0, timing.seconds - timing.starting_s - timing.publishing_s)

    def finished_component(self, component: Component) -> None:
        """One that an earlier run had finished is neither to be done nor promised."""
        if self._running_since < 0:
            share = self._share(component)
            self._predicted_s *= max(0.0, 1.0 - share / self._total) if self._total else 0.0
            self._total -= share

    def running(self, at_s: float) -> None:
        """The work has begun, at the latest then."""
        if self._running_since < 0:
            self._running_since = at_s

    def task_finished(self, task: Task) -> None:
        """A tensor is done with, in one sweep."""
        self._done += self._share(task.component) / self._sweeps

    def _share(self, component: Component) -> float:
        return self._shares.get(component.program, 0.0)

    def _part(self, opened: Open) -> float:
        """What is done of a tensor in progress."""
        passes = self._passes[opened.component.program] / self._sweeps
        within = opened.done / opened.units if opened.units else 0.0
        return self._share(opened.component) / self._sweeps * min(1.0, (opened.number + within) / max(1.0, passes))

    def fraction(self, sample: Sample) -> float:
        """Part of the work that is done, by its cost."""
        done = self._done + sum(self._part(o) for o in sample.open)
        return min(1.0, done / self._total) if self._total > 0 else 1.0

    def left_s(self, sample: Sample) -> float:
        """Seconds until the output is in place."""
        fraction = self.fraction(sample)
        passed = max(0.0, sample.at_s - self._running_since)
        planned = self._predicted_s * (1.0 - fraction)
        seen = passed * (1.0 - fraction) / fraction if fraction > 0 else planned
        weight = min(1.0, fraction / _TRUSTED)
        return weight * seen + (1.0 - weight) * planned + self._publishing_s
