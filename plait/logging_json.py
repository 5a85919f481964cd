"""`--log-json`: the events of a run as lines of JSON, for machines. `docs/events.md` says what they hold."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from plait.engine.publish import output_errors


class JsonLines:
    """Writes each event as a line; a context manager. A log that cannot be written any more ends, and does not end the run.

    Args:
        path: of the file, replaced when entered; `-` for standard error.

    Attributes:
        trouble: why the log ends early; empty where it does not.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream: TextIO | None = None
        self.trouble = ""

    def __enter__(self) -> JsonLines:
        """Open the file.

        Raises:
            OutputError: it cannot be written.
        """
        if self._path == "-":
            self._stream = sys.stderr
        else:
            with output_errors(self._path, "write the log"):
                self._stream = open(Path(self._path), "w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        if self._stream is not None and self._path != "-":
            with suppress(OSError):  # what could not be written was noticed when it was
                self._stream.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Write an event."""
        if self._stream is None or self.trouble:
            return
        try:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.trouble = f"{self._path}: the log ends early ({error})"
