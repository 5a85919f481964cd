"""A progress bar of bytes: done, speed, time left. Says nothing where there is no terminal."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_INTERVAL_S = 0.1
Bar = TypeVar("Bar", bound="ByteBar")


class ByteBar:
    """Shows bytes done on a terminal; a context manager.

    Args:
        console: where to draw; a console that is no terminal stays quiet.
        title: what is going on.
    """

    def __init__(self, console: Console, title: str = "") -> None:
        self._title, self._lock = title, threading.Lock()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None
        self._pending, self._shown = 0, 0.0

    def __enter__(self: Bar) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any:
        self._bar.stop()

    def begin(self, total: int) -> None:
        """Begin to count towards so many bytes."""
        self._task = self._bar.add_task(self._title, total=total)

    def advance(self, nbytes: int) -> None:
        """Move on, and redraw at most ten times a second."""
        with self._lock:
            self._pending += nbytes
            now = time.monotonic()
            if self._task is not None and now - self._shown >= _INTERVAL_S:
                self._bar.advance(self._task, self._pending)
                self._pending, self._shown = 0, now
