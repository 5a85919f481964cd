"""Events as plain dictionaries, for machines: a stable form of what `engine/events.py` tells, which `docs/events.md` describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plait.engine.events import Quiet, Report
from plait.engine.lanes import SHARES, STATES
from plait.engine.moments import Note, Prepared, Sample, Step, Task
from plait.ops.errors import PlaitError, Stopped
from plait.planner.plan import Component, Plan

VERSION = 1  #: of the form; keys are added within a version, never renamed or removed
EVERY_S = 1.0  #: between two events `sample`


class Told(Quiet):
    """Calls a function with each event as a dictionary of strings, numbers, lists and dictionaries.

    Args:
        tell: the function; called by one thread at a time. What it raises ends the run.
        clock: seconds since the run began.
        every_s: least seconds between two events `sample`.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], object], clock: Callable[[], float], every_s: float = EVERY_S) -> None:
        self._tell, self._clock, self._every_s = tell, clock, every_s
        self._sampled_s = -1e9
        self._latest: Sample | None = None

    def _say(self, event: str, at_s: float | None = None, **facts: Any) -> None:
        self._tell({"version": VERSION, "event": event, "at_s": round(self._clock() if at_s is None else at_s, 6), **facts})

    def started(self, plan: Plan) -> None:
        """`started`: what will run and what it will need."""
        p = plan.prediction
        self._say(
            "started",
            title=plan.title,
            fingerprint=plan.fingerprint,
            tensors=len(plan.components),
            sweeps=plan.sweeps,
            workers=plan.workers,
            budget_bytes=plan.budget_bytes,
            gpu_budget_bytes=list(plan.gpu_budget_bytes),
            predicted_peak_bytes=p.peak_bytes,
            predicted_read_bytes=p.bytes_read,
            predicted_written_bytes=p.bytes_written,
            predicted_seconds=p.seconds,
        )

    def prepared(self, ready: Prepared) -> None:
        """`prepared`: kernels are there."""
        self._say("prepared", kernels=ready.kernels, compiled=ready.compiled, seconds=ready.seconds)

    def task_started(self, task: Task) -> None:
        """`task_started`: an output tensor begins."""
        self._say("task_started", task.begun_s, task=task.number, tensor=task.component.name, sweep=task.sweep, leased_bytes=task.leased_bytes)

    def pass_started(self, step: Step) -> None:
        """`pass_started`: a pass over a tensor begins."""
        self._pass("pass_started", step)

    def pass_finished(self, step: Step) -> None:
        """`pass_finished`: a pass over a tensor is done."""
        self._pass("pass_finished", step)

    def _pass(self, kind: str, step: Step) -> None:
        task = step.task
        self._say(kind, step.at_s, task=task.number, tensor=task.component.name, sweep=task.sweep, number=step.number, units=step.units, lane=step.lane)

    def task_finished(self, task: Task) -> None:
        """`task_finished`: an output tensor is done with."""
        self._say(
            "task_finished",
            task.ended_s,
            task=task.number,
            tensor=task.component.name,
            sweep=task.sweep,
            begun_s=task.begun_s,
            passes=task.passes,
            read_bytes=task.read_bytes,
            written_bytes=task.written_bytes,
            worker_s=_shares(task.spent_ns),
        )

    def finished_component(self, component: Component) -> None:
        """`tensor_complete`: an output tensor will not be touched again; those that an earlier run had finished come first."""
        self._say("tensor_complete", tensor=component.name)

    def sampled(self, sample: Sample) -> None:
        """`sample`: how far the run is, and where its memory and threads are."""
        self._latest = sample
        if sample.at_s - self._sampled_s >= self._every_s:
            self._say_sample(sample)

    def _last_sample(self) -> None:
        if self._latest is not None:
            self._say_sample(self._latest)

    def _say_sample(self, sample: Sample) -> None:
        self._sampled_s, self._latest = sample.at_s, None
        self._say(
            "sample",
            sample.at_s,
            private_bytes=sample.private_bytes,
            leased_bytes=sample.leased_bytes,
            gpu_leased_bytes=list(sample.gpu_leased_bytes),
            read_bytes=sample.read_bytes,
            written_bytes=sample.written_bytes,
            done_read_bytes=sample.done_read,
            done_written_bytes=sample.done_written,
            lanes=[{"lane": lane.lane, "state": STATES[lane.state], "seconds": _shares(lane.spent_ns)} for lane in sample.lanes],
            open=[{"tensor": o.component.name, "pass": o.number, "units_done": o.done, "units": o.units} for o in sample.open],
        )

    def noted(self, note: Note) -> None:
        """`note`: something that the plan did not foresee."""
        self._say("note", note.at_s, kind=note.kind, times=note.times, words=note.words)

    def publishing(self) -> None:
        """`publishing`: everything is computed."""
        self._last_sample()
        self._say("publishing")

    def failed(self, error: BaseException) -> None:
        """`failed` or `stopped`: the run ended early."""
        self._last_sample()
        kept = error.facts.get("kept_bytes", 0) if isinstance(error, PlaitError) else 0
        words = error.message if isinstance(error, PlaitError) else str(error)
        self._say("stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed", error=type(error).__name__, message=words, kept_bytes=kept)

    def ended(self, report: Report) -> None:
        """`done`: the output is in place."""
        self._say(
            "done",
            report.seconds,
            seconds=report.seconds,
            compile_s=report.compile_s,
            read_bytes=report.bytes_read,
            written_bytes=report.bytes_written,
            resumed_bytes=report.bytes_resumed,
            leased_peak_bytes=report.leased_peak_bytes,
            private_peak_bytes=report.private_peak_bytes,
            prediction_off=list(report.off),
        )


def _shares(spent_ns: tuple[int, ...] | list[int]) -> dict[str, float]:
    return {name: round(sum(spent_ns[state] for state in states) / 1e9, 6) for name, states in SHARES.items()}
