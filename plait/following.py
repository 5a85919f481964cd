"""Follows a run for people: what a live view or a line of a log says of it. Knows nothing of terminals."""

from __future__ import annotations

from typing import TextIO

from plait.engine.events import Quiet
from plait.engine.forecast import Forecast
from plait.engine.lanes import SHARES, STATES
from plait.engine.moments import Prepared, Sample, Task
from plait.planner.header_text import printable
from plait.planner.plan import Component, Plan
from plait.planner.sizes import size

_RATE_S = 3.0  #: over which a rate is taken
_LINE_S = 10.0


class Following(Quiet):
    """Keeps what is known of a run. `show` is called with every sample, `phase` says what goes on."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.phase = "planning"
        self.forecast = Forecast()
        self.finished = 0
        self.compiled = 0
        self._recent: list[tuple[float, int]] = []
        self._spent: list[tuple[float, tuple[int, ...]]] = []

    def started(self, plan: Plan) -> None:
        """The plan is made."""
        self.plan, self.phase = plan, "preparing kernels"
        self.forecast.started(plan)

    def finished_component(self, component: Component) -> None:
        """One more is complete."""
        self.finished += 1
        self.forecast.finished_component(component)

    def prepared(self, ready: Prepared) -> None:
        """The work begins."""
        self.phase, self.compiled = "merging", ready.compiled

    def task_finished(self, task: Task) -> None:
        """For the forecast."""
        self.forecast.task_finished(task)

    def publishing(self) -> None:
        """All is computed."""
        self.phase = "publishing"

    def sampled(self, sample: Sample) -> None:
        """Remember, and show."""
        self.forecast.running(sample.at_s)
        spent = tuple(sum(lane.spent_ns[state] for lane in sample.lanes if lane.lane.startswith("worker")) for state in range(len(STATES)))
        self._recent.append((sample.at_s, sample.read_bytes + sample.written_bytes))
        self._spent.append((sample.at_s, spent))
        while len(self._recent) > 2 and sample.at_s - self._recent[1][0] > _RATE_S:
            del self._recent[0], self._spent[0]
        self.show(sample)

    def show(self, sample: Sample) -> None:
        """Nothing."""

    # -- what there is to say -------------------------------------------------------------------
    @property
    def total_bytes(self) -> int:
        """Bytes that the plan moves."""
        return self.plan.prediction.bytes_read + self.plan.prediction.bytes_written if self.plan is not None else 0

    def rate(self) -> float:
        """Bytes moved per second, of late."""
        (then, before), (now, after) = self._recent[0], self._recent[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def shares(self) -> dict[str, float]:
        """What the workers do, of late, as parts of their time."""
        before, after = self._spent[0][1], self._spent[-1][1]
        step = [a - b for a, b in zip(after, before, strict=True)]
        total = max(1, sum(step))
        return {name: sum(step[state] for state in states) / total for name, states in SHARES.items()}

    def progress_words(self, sample: Sample) -> str:
        """Bytes, rate and time left."""
        done = sample.done_read + sample.done_written
        left = clock(self.forecast.left_s(sample))
        return f"{size(done)} of {size(self.total_bytes)}, {size(self.rate())}/s, {left} left"

    def memory_words(self, sample: Sample) -> str:
        """What is leased, and how much private memory there is."""
        assert self.plan is not None
        return f"{size(sample.leased_bytes)} leased, {size(sample.private_bytes)} used of {size(self.plan.budget_bytes)}"


def clock(seconds: float) -> str:
    """Seconds as people read them on a clock: 0:07, 12:30, 1:02:03."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class PlainLines(Following):
    """A line every ten seconds, for logs and pipes; a run that is over before says nothing.

    Args:
        stream: where they go; one that breaks is written to no more.
        every_s: seconds between them.
    """

    def __init__(self, stream: TextIO, every_s: float = _LINE_S) -> None:
        super().__init__()
        self._stream: TextIO | None = stream
        self._every_s, self._told_s = every_s, 0.0

    def show(self, sample: Sample) -> None:
        """Say how far it is, if it is time."""
        if self._stream is None or self.plan is None or sample.at_s - self._told_s < self._every_s:
            return
        self._told_s = sample.at_s
        percent = f"{self.forecast.fraction(sample):.0%}"
        tensors = f"{self.finished} of {len(self.plan.components)} tensors"
        try:
            self._stream.write(f"{printable(self.plan.title)}: {percent}, {tensors}, {self.progress_words(sample)}; {self.memory_words(sample)}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None
