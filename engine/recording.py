"""Listens to a run and remembers what its report will say, in bounded memory: tensors of one kind are added up, time is cut into few pieces."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

from plait.engine.events import Quiet
from plait.engine.lanes import STATES
from plait.engine.moments import Note, Prepared, Sample, Task
from plait.engine.series import Series
from plait.engine.ticker import Watch
from plait.planner.plan import Component, Plan

MOST_GROUPS, MOST_SLOW, MOST_STALLS = 400, 12, 20
#: Numbers of a row of the course that are levels; the time and what grows stand behind them.
LEVELS = ("private_bytes", "leased_bytes")


class Kind(NamedTuple):
    """What the tensors of a group have in common: role, name with its numbers folded, and program (-1: whatever was too much to tell apart)."""

    role: str
    label: str
    program: int


OTHERS = Kind("other", "further tensors", -1)


@dataclass(slots=True)
class Group:
    """What the tensors of a kind took.

    Attributes:
        tensors: of it that ran, once a sweep.
        passes: over all of them.
        read_bytes, written_bytes: measured.
        spent_ns: of all workers, by state.
        private_peak_bytes, leased_peak_bytes: highest levels of the whole run seen while any of them was in progress.
    """

    tensors: int = 0
    passes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    spent_ns: list[int] = field(default_factory=lambda: [0] * len(STATES))
    private_peak_bytes: int = 0
    leased_peak_bytes: int = 0


class Recording(Quiet):
    """What a run's report will say.

    Args:
        watch: of the run.

    Attributes:
        groups: by kind.
        slowest: seconds that workers spent on a task, and the task.
        course: rows of levels (`LEVELS`, GPUs), seconds since the beginning, bytes read and written, and seconds of each lane by state.
        peak: the sample in which most private memory was seen.
        stalls: times when nothing moved.
        late_imports: a large library that may be loaded while the run is measured, whose memory could not be told from the run's.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.plan: Plan | None = None
        self.ready = Prepared(0, 0, 0.0)
        self.running_s = self.publishing_s = 0.0
        self.groups: dict[Kind, Group] = {}
        self.slowest: list[tuple[float, int, Task]] = []
        self.course = Series(len(LEVELS))
        self.peak: Sample | None = None
        self.last: Sample | None = None
        self.stalls: list[Note] = []
        self.late_imports = ""

    def started(self, plan: Plan) -> None:
        """Remember what runs."""
        self.plan = plan
        self.running_s = self.watch.now()
        self.course = Series(len(LEVELS) + len(plan.gpu_budget_bytes))

    def prepared(self, ready: Prepared) -> None:
        """Remember what the kernels took."""
        self.ready = ready

    def publishing(self) -> None:
        """The run is over."""
        self.publishing_s = self.watch.now()

    def noted(self, note: Note) -> None:
        """Counts are in the run's own report; stalls are remembered here."""
        if note.kind == "stall" and len(self.stalls) < MOST_STALLS:
            self.stalls.append(note)

    def sampled(self, sample: Sample) -> None:
        """A point of the course."""
        if self.peak is None or sample.private_bytes > self.peak.private_bytes:
            self.peak = sample
        self.last = sample
        for opened in sample.open:
            group = self._group(opened.component)
            group.private_peak_bytes = max(group.private_peak_bytes, sample.private_bytes)
            group.leased_peak_bytes = max(group.leased_peak_bytes, sample.leased_bytes)
        spent = [ns / 1e9 for lane in sample.lanes for ns in lane.spent_ns]
        levels = (sample.private_bytes, sample.leased_bytes, *sample.gpu_leased_bytes)
        self.course.add([*levels, sample.at_s, sample.read_bytes, sample.written_bytes, *spent])

    def task_finished(self, task: Task) -> None:
        """Add a tensor to its kind."""
        group = self._group(task.component)
        group.tensors += 1
        group.passes += task.passes
        group.read_bytes += task.read_bytes
        group.written_bytes += task.written_bytes
        group.spent_ns = [a + b for a, b in zip(group.spent_ns, task.spent_ns, strict=True)]
        entry = (sum(task.spent_ns) / 1e9, -task.number, task)
        if len(self.slowest) < MOST_SLOW:
            heapq.heappush(self.slowest, entry)
        else:
            heapq.heappushpop(self.slowest, entry)

    def _group(self, component: Component) -> Group:
        kind = kind_of(component)
        if kind not in self.groups and len(self.groups) >= MOST_GROUPS:
            kind = OTHERS
        return self.groups.setdefault(kind, Group())


def kind_of(component: Component) -> Kind:
    """What a tensor is counted as: equal tensors of different layers are one kind."""
    return Kind(component.role, ".".join(["*" if part.isdigit() else part for part in component.name.split(".")]), component.program)
