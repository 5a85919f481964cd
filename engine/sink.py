"""What takes the bytes of an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from plait.engine.blockrun import Array
from plait.planner.types import SideFile


class Sink(Protocol):
    """Takes the bytes of an output.

    `begin` once, then `write` and `copy` from any thread, then, when all of those have returned,
    `publish` or `abandon`.
    The sink owns what it opens; the data it is given stays the caller's and is not kept after the call.
    """

    @property
    def bytes_written(self) -> int:
        """Bytes of tensors taken so far."""

    def begin(self) -> None:
        """Get ready, or raise OutputError before anything is computed."""

    def write(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray, known: bytes = b"") -> None:
        """Take bytes for an absolute offset of a shard's file; `known` is their digest (`plait/engine/checksum.py`), where it was taken already."""

    def past_cache(self, shard: int) -> bool:
        """Whether whole pages of a shard go past the page cache: then copying through buffers takes half the time of copying in the kernel."""

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int, see: Callable[[Array], None] | None = None) -> None:
        """Take bytes straight from an input file, and show them to `see`, where one is given, in whole elements."""

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        """Make the whole output visible."""

    def abandon(self) -> None:
        """Leave nothing behind; harmless after `publish`."""
