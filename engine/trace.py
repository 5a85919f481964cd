"""A trace of a run for Perfetto or chrome://tracing: what every thread did, tensor by tensor, and the levels of memory.

The file is an array of events in Chrome's trace format, written while the run goes on; one that a killed run left lacks its end, which the
viewers forgive. It stays small however long the run: slices shorter than what can be told apart in the whole are put together, the parts
of each state behind one another, and that length grows with the time that has passed once many have been written.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from plait.engine.events import Quiet, Report
from plait.engine.lanes import STATES, Lane
from plait.engine.moments import Note, Sample, Task
from plait.engine.publish import output_error, output_errors
from plait.planner.plan import Plan

_FINEST_NS = 20_000
_MANY = 200_000  #: slices that a run may have as fine as its predicted time wants them; from then on they grow with it
_LATER = 20_000  #: slices for each time that the run takes e times as long
_FLUSH_BYTES = 1 << 16
_PID = 1


@dataclass(slots=True)
class _Window:
    """Slices of a lane that wait to be written together."""

    begun: int = -1
    ended: int = 0
    task: str = ""
    ns: list[int] = field(default_factory=lambda: [0] * len(STATES))
    slices: int = 0


class Trace(Quiet):
    """Writes a trace; a context manager, within which the run takes place.

    Args:
        path: of the file; replaced when the run begins.
        begun: when the run's clock began, by `time.perf_counter`.
    """

    def __init__(self, path: Path, begun: float) -> None:
        self._path, self._lock = path, threading.Lock()
        self._file: TextIO | None = None
        self._pending: list[str] = []
        self._pending_bytes = self._written = self._count = 0
        self._trouble: OSError | None = None
        self._zero = int(begun * 1e9)
        self._finest = _FINEST_NS
        self._windows: dict[int, _Window] = {}
        self._levels_at = 0

    def __enter__(self) -> Trace:
        """Nothing is opened before the run begins."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what is left."""
        with self._lock:
            if self._file is None:
                return
            for number, window in self._windows.items():
                self._close(number, window)
            self._flush()
            file, self._file = self._file, None
            try:
                if self._trouble is None:
                    file.write("\n]\n")
                file.close()
            except OSError as last:
                self._trouble = self._trouble or last
        if self._trouble is not None and error is None:
            raise output_error(self._trouble, self._path, "write the trace; the output itself is in place") from self._trouble

    # -- what the run tells ---------------------------------------------------------------------
    def started(self, plan: Plan) -> None:
        """Open the file.

        Raises:
            OutputError: it cannot be written.
        """
        lanes = 2 * plan.workers
        self._finest = max(_FINEST_NS, int(plan.prediction.seconds * 1e9) * lanes // _MANY)
        with output_errors(self._path, "write the trace"):
            self._file = open(self._path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        with self._lock:
            self._put({"ph": "M", "name": "process_name", "args": {"name": f"plait: {plan.title}"}})

    def slice(self, lane: Lane, state: int, begun: int, ended: int) -> None:
        """A lane was in a state from one nanosecond to another; called on its own thread."""
        window = self._windows.get(lane.number)
        if window is None:
            window = self._windows[lane.number] = _Window()
            self._name(lane)
        if window.begun >= 0 and (window.ended - window.begun >= self._shortest(ended)):
            self._write_window(lane.number, window)
        if window.begun < 0:
            window.begun, window.task = begun, lane.task
        elif window.task != lane.task:
            window.task = "several"
        window.ns[state] += ended - begun
        window.ended = ended
        window.slices += 1

    def task_finished(self, task: Task) -> None:
        """A tensor, on a track of its own; those too short to be seen are left out."""
        if (task.ended_s - task.begun_s) * 1e9 < self._shortest(time.perf_counter_ns()):
            return
        tag = {"cat": "tensor", "name": task.component.name, "id": task.number}
        facts = {"sweep": task.sweep, "passes": task.passes, "read_bytes": task.read_bytes, "written_bytes": task.written_bytes}
        with self._lock:
            self._put({"ph": "b", "ts": task.begun_s * 1e6, **tag, "args": facts})
            self._put({"ph": "e", "ts": task.ended_s * 1e6, **tag})

    def sampled(self, sample: Sample) -> None:
        """Levels of memory, no more often than can be told apart."""
        now = int(sample.at_s * 1e9)
        if now - self._levels_at < 20 * self._shortest(self._zero + now) and self._levels_at:
            return
        self._levels_at = now
        gpus = {f"GPU {n}": nbytes for n, nbytes in enumerate(sample.gpu_leased_bytes)}
        with self._lock:
            self._put({"ph": "C", "name": "host memory", "ts": sample.at_s * 1e6, "args": {"leased": sample.leased_bytes, "private": sample.private_bytes}})
            if gpus:
                self._put({"ph": "C", "name": "GPU memory", "ts": sample.at_s * 1e6, "args": gpus})
            self._put({"ph": "C", "name": "bytes", "ts": sample.at_s * 1e6, "args": {"read": sample.read_bytes, "written": sample.written_bytes}})

    def noted(self, note: Note) -> None:
        """What was not foreseen, as a mark."""
        with self._lock:
            self._put({"ph": "i", "s": "g", "name": note.kind, "ts": note.at_s * 1e6, "args": {"times": note.times, "words": note.words}})

    def ended(self, report: Report) -> None:
        """The output is in place."""
        with self._lock:
            self._put({"ph": "i", "s": "g", "name": "published", "ts": report.seconds * 1e6})

    # -- how it is written ----------------------------------------------------------------------
    def _shortest(self, now: int) -> int:
        """Nanoseconds that a slice must last to be written by itself."""
        return self._finest if self._count < _MANY else max(self._finest, (now - self._zero) * max(1, len(self._windows)) // _LATER)

    def _name(self, lane: Lane) -> None:
        with self._lock:
            self._put({"ph": "M", "name": "thread_name", "tid": lane.number + 1, "args": {"name": lane.name}})
            self._put({"ph": "M", "name": "thread_sort_index", "tid": lane.number + 1, "args": {"sort_index": lane.number}})

    def _write_window(self, number: int, window: _Window) -> None:
        with self._lock:
            self._close(number, window)

    def _close(self, number: int, window: _Window) -> None:
        at = window.begun
        for state, ns in enumerate(window.ns):
            if ns:
                facts: dict[str, Any] = {"tensor": window.task} if window.task else {}
                if window.slices > 1:
                    facts["slices"] = window.slices
                self._put({"ph": "X", "name": STATES[state], "tid": number + 1, "ts": (at - self._zero) / 1e3, "dur": ns / 1e3, "args": facts})
                at += ns
        window.begun, window.slices, window.ns = -1, 0, [0] * len(STATES)

    def _put(self, event: dict[str, Any]) -> None:
        """Add an event; the lock is held."""
        if self._file is None:
            return
        text = json.dumps({"pid": _PID, **event}, ensure_ascii=False)
        self._pending.append(text)
        self._pending_bytes += len(text)
        self._count += 1
        if self._pending_bytes >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._file is not None and self._pending and self._trouble is None:
            try:
                self._file.write(("[\n" if not self._written else ",\n") + ",\n".join(self._pending))
                self._file.flush()
            except OSError as error:  # the run itself goes on
                self._trouble = error
        self._written += 1
        self._pending, self._pending_bytes = [], 0
