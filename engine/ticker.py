"""Looks at a run in progress several times a second and tells its listeners what it sees. A thread of its own: workers pay nothing for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from plait.engine.events import Several
from plait.engine.lanes import COMPUTING, STATES, Lanes
from plait.engine.moments import Note, Sample

_OFTEN_S, _SELDOM_S = 0.02, 0.2  #: between looks, in the beginning and of a long run
_SLOWING = 8  #: looks in the time that has passed
_STALL_S = 5.0


@dataclass(slots=True)
class Watch:
    """From where a run is looked at.

    Attributes:
        lanes: its threads.
        begun: when it began, by `time.perf_counter`.
        baseline_bytes: private memory of the process that is not the run's: the interpreter and its imports.
    """

    lanes: Lanes = field(default_factory=Lanes)
    begun: float = field(default_factory=time.perf_counter)
    baseline_bytes: int = 0

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.begun


class Ticker:
    """Tells `sampled` and `noted` while it is entered, and once more when it is left.

    Args:
        events: who hears it; with nobody who listens to either, no thread is started.
        look: gives a sample.
        counts: gives how often things have happened so far, by `Note.kind`.
        broken: hears what a listener raised, in the ticker's own thread; it ends the run.
    """

    def __init__(self, events: Several, look: Callable[[], Sample], counts: Callable[[], Mapping[str, int]], broken: Callable[[BaseException], None]) -> None:
        self._events, self._look, self._counts, self._broken = events, look, counts, broken
        self._before: Mapping[str, int] = {}
        self._moved, self._moved_at, self._stalled = -1, 0.0, False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ticker:
        """Begin to look."""
        if self._events.hears("sampled") or self._events.hears("noted"):
            self._thread = threading.Thread(target=self._work, name="plait-look", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Look a last time; what that brings up is raised only where nothing else went wrong."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        try:
            self._tick()
        except Exception:
            if error is None:
                raise

    def _work(self) -> None:
        passed = 0.0
        try:
            while not self._over.wait(min(_SELDOM_S, max(_OFTEN_S, passed / _SLOWING))):
                passed = self._tick()
        except Exception as error:
            self._broken(error)

    def _tick(self) -> float:
        sample = self._look()
        self._events.sampled(sample)
        counts = self._counts()
        for kind, count in counts.items():
            if count > self._before.get(kind, 0):
                self._events.noted(Note(kind, count - self._before.get(kind, 0), sample.at_s))
        self._before = counts
        self._watch_for_stalls(sample)
        return sample.at_s

    def _watch_for_stalls(self, sample: Sample) -> None:
        moved = sample.read_bytes + sample.written_bytes
        if moved != self._moved or any(lane.state == COMPUTING for lane in sample.lanes):
            self._moved, self._moved_at, self._stalled = moved, sample.at_s, False
        elif sample.at_s - self._moved_at > _STALL_S and not self._stalled:
            self._stalled = True
            words = ", ".join(f"{lane.lane} {STATES[lane.state]}" for lane in sample.lanes)
            self._events.noted(Note("stall", 1, sample.at_s, f"nothing has moved for {_STALL_S:g} s: {words}"))
