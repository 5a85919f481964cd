"""A sink for plans whose outputs are a few numbers: it keeps them in memory and touches no file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from plait.engine.blockrun import Array
from plait.ops.errors import KernelError
from plait.planner.types import Layout, SideFile


class Numbers:
    """Keeps what is written to it.

    Args:
        layout: of the plan; every output is float64.
    """

    def __init__(self, layout: Layout) -> None:
        """Room for all of them."""
        self._places = layout.places
        self._shards = [np.full(shard.size // 8 + 1, np.nan) for shard in layout.shards]
        self._written, self._lock = 0, threading.Lock()

    @property
    def bytes_written(self) -> int:
        """Bytes of numbers taken so far."""
        return self._written

    def begin(self) -> None:
        """Nothing to get ready."""

    def write(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray, known: bytes = b"") -> None:
        """Take bytes for an absolute offset of a shard."""
        taken = np.frombuffer(data, np.uint8)
        self._shards[shard].view(np.uint8)[offset : offset + taken.nbytes] = taken
        with self._lock:
            self._written += taken.nbytes

    def past_cache(self, shard: int) -> bool:
        """Nothing is written to a disk."""
        return False

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int, see: Callable[[Array], None] | None = None) -> None:
        """Stored tensors are no numbers."""
        raise KernelError("a stored tensor was to be copied into a table of numbers, which no plan asks for; please report this with the command")

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        """Nothing to make visible."""

    def abandon(self) -> None:
        """Nothing to leave behind."""

    def of(self, name: str) -> npt.NDArray[np.float64]:
        """The numbers of one output; NaN where they were not written."""
        place = self._places[name]
        first = place.offset // 8
        return self._shards[place.shard][first : first + place.nbytes // 8]
