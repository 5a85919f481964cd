"""What a run reports while it runs. Progress, logs, reports and traces subscribe; nothing in the executor prints."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from plait.engine.moments import Note, Prepared, Sample, Step, Task
from plait.planner.plan import Component, Plan


class Events(Protocol):
    """The hooks of a run; they may be called from any of its threads, one at a time. What a hook raises ends the run."""

    def started(self, plan: Plan) -> None:
        """The plan begins to run."""

    def prepared(self, ready: Prepared) -> None:
        """The kernels are there."""

    def task_started(self, task: Task) -> None:
        """An output tensor begins, in one sweep."""

    def pass_started(self, step: Step) -> None:
        """A pass over a tensor begins."""

    def pass_finished(self, step: Step) -> None:
        """A pass over a tensor is done."""

    def task_finished(self, task: Task) -> None:
        """An output tensor is done with, in one sweep."""

    def progress(self, read: int, written: int) -> None:
        """So many more of the predicted bytes are done or spared: for each block. What shows progress listens to `sampled` instead."""

    def sampled(self, sample: Sample) -> None:
        """A look at the run, several times a second and at its end."""

    def noted(self, note: Note) -> None:
        """Something happened that the plan does not foresee."""

    def finished_component(self, component: Component) -> None:
        """An output tensor is complete."""

    def publishing(self) -> None:
        """Everything is computed; the output is made durable."""

    def failed(self, error: BaseException) -> None:
        """The run ended early, and this is why; `Stopped` where somebody wanted it to."""

    def ended(self, report: Report) -> None:
        """The run is over and the output is in place."""


class Quiet:
    """Hears everything and says nothing."""

    def started(self, plan: Plan) -> None:
        """Nothing."""

    def prepared(self, ready: Prepared) -> None:
        """Nothing."""

    def task_started(self, task: Task) -> None:
        """Nothing."""

    def pass_started(self, step: Step) -> None:
        """Nothing."""

    def pass_finished(self, step: Step) -> None:
        """Nothing."""

    def task_finished(self, task: Task) -> None:
        """Nothing."""

    def progress(self, read: int, written: int) -> None:
        """Nothing."""

    def sampled(self, sample: Sample) -> None:
        """Nothing."""

    def noted(self, note: Note) -> None:
        """Nothing."""

    def finished_component(self, component: Component) -> None:
        """Nothing."""

    def publishing(self) -> None:
        """Nothing."""

    def failed(self, error: BaseException) -> None:
        """Nothing."""

    def ended(self, report: Report) -> None:
        """Nothing."""


class Several:
    """Passes everything on to several listeners, one call at a time; hooks that a listener leaves to `Quiet` are not called.

    Args:
        listeners: in the order in which they hear.
    """

    def __init__(self, listeners: Sequence[Events]) -> None:
        self._lock = threading.RLock()
        hooks = [name for name in vars(Quiet) if not name.startswith("_")]
        self._wanted = {hook: [getattr(x, hook) for x in listeners if getattr(type(x), hook, None) not in (None, getattr(Quiet, hook))] for hook in hooks}

    def hears(self, hook: str) -> bool:
        """Whether anybody listens to a hook."""
        return bool(self._wanted[hook])

    def _tell(self, hook: str, *what: object) -> None:
        if self._wanted[hook]:
            with self._lock:
                for listener in self._wanted[hook]:
                    listener(*what)

    def started(self, plan: Plan) -> None:
        """To all who listen."""
        self._tell("started", plan)

    def prepared(self, ready: Prepared) -> None:
        """To all who listen."""
        self._tell("prepared", ready)

    def task_started(self, task: Task) -> None:
        """To all who listen."""
        self._tell("task_started", task)

    def pass_started(self, step: Step) -> None:
        """To all who listen."""
        self._tell("pass_started", step)

    def pass_finished(self, step: Step) -> None:
        """To all who listen."""
        self._tell("pass_finished", step)

    def task_finished(self, task: Task) -> None:
        """To all who listen."""
        self._tell("task_finished", task)

    def progress(self, read: int, written: int) -> None:
        """To all who listen."""
        self._tell("progress", read, written)

    def sampled(self, sample: Sample) -> None:
        """To all who listen."""
        self._tell("sampled", sample)

    def noted(self, note: Note) -> None:
        """To all who listen."""
        self._tell("noted", note)

    def finished_component(self, component: Component) -> None:
        """To all who listen."""
        self._tell("finished_component", component)

    def publishing(self) -> None:
        """To all who listen."""
        self._tell("publishing")

    def failed(self, error: BaseException) -> None:
        """To all who listen."""
        self._tell("failed", error)

    def ended(self, report: Report) -> None:
        """To all who listen."""
        self._tell("ended", report)


@dataclass(slots=True)
class CacheUse:
    """What a run had of a result cache.

    Attributes:
        hits, misses: results that were there and that were not.
        stored, stored_bytes: results that it added.
        damaged: entries that were not what they should be, and were removed.
        spared_passes, spared_bytes: passes over a tensor that were not run, and bytes of inputs that were not read.
        trouble: the first thing that was wrong with the cache, in words.
    """

    hits: int = 0
    misses: int = 0
    stored: int = 0
    stored_bytes: int = 0
    damaged: int = 0
    spared_passes: int = 0
    spared_bytes: int = 0
    trouble: str = ""


@dataclass(slots=True)
class Report:
    """What a run did.

    Attributes:
        seconds: wall time in seconds, compilation and publication included.
        compile_s: part of it in which kernels were compiled that no earlier run had left.
        bytes_read, bytes_written: measured.
        bytes_resumed: of the output that an earlier run of the same command had made durable, and this one left as they were.
        leased_peak_bytes: most that the ledger had leased at once.
        private_peak_bytes: most private memory seen, above what the process had before; 0 where the system does not say.
        off: predictions that were wrong by more than the tolerances of `engine/verdict.py`, a sentence each.
        recounted: order statistics whose place had not been foreseen.
        gpu_retries: tasks that a GPU had no memory for and that were done again, there or on the CPU.
        nonfinite_inputs: values that are infinite or NaN, by file and tensor, where they are allowed.
        nonfinite_outputs: by tensor, how many values of the output are, and how many of them were numbers before rounding to its dtype.
        wholes: ops on whole matrices that were computed, by op.
        cache: what the result cache gave and took; None where there was none.
        statistics: model-wide sums that methods asked for, by op and name, such as `dot opcm accumulator`.
    """

    seconds: float = 0.0
    compile_s: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_resumed: int = 0
    leased_peak_bytes: int = 0
    private_peak_bytes: int = 0
    off: tuple[str, ...] = ()
    recounted: int = 0
    gpu_retries: int = 0
    nonfinite_inputs: dict[tuple[str, str], int] = field(default_factory=dict)
    nonfinite_outputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    wholes: dict[str, int] = field(default_factory=dict)
    cache: CacheUse | None = None
    statistics: dict[str, float] = field(default_factory=dict)
