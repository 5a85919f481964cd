"""What a run reports while it runs. Progress bars, logs and traces subscribe; nothing in the executor prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from plait.planner.plan import Component, Plan


class Events(Protocol):
    """The hooks of a run; they may be called from any worker thread, one at a time."""

    def started(self, plan: Plan) -> None:
        """The plan begins to run."""

    def progress(self, nbytes: int) -> None:
        """So many more of the predicted bytes (read and written) are done."""

    def finished_component(self, component: Component) -> None:
        """An output tensor is complete."""

    def ended(self, report: Report) -> None:
        """The run is over and the output is in place."""


class Quiet:
    """Hears everything and says nothing."""

    def started(self, plan: Plan) -> None:
        """Nothing."""

    def progress(self, nbytes: int) -> None:
        """Nothing."""

    def finished_component(self, component: Component) -> None:
        """Nothing."""

    def ended(self, report: Report) -> None:
        """Nothing."""


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
        bytes_read, bytes_written: measured.
        bytes_resumed: of the output that an earlier run of the same command had made durable, and this one left as they were.
        leased_peak_bytes: most that the ledger had leased at once.
        recounted: order statistics whose digit had not been foreseen.
        gpu_retries: tasks that a GPU had no memory for and that were done again, there or on the CPU.
        nonfinite_inputs: values that are infinite or NaN, by file and tensor, where they are allowed.
        nonfinite_outputs: by tensor, how many values of the output are, and how many of them were numbers before rounding to its dtype.
        wholes: ops on whole matrices that were computed, by op.
        cache: what the result cache gave and took; None where there was none.
        statistics: model-wide sums that methods asked for, by op and name, such as `dot opcm accumulator`.
    """

    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_resumed: int = 0
    leased_peak_bytes: int = 0
    recounted: int = 0
    gpu_retries: int = 0
    nonfinite_inputs: dict[tuple[str, str], int] = field(default_factory=dict)
    nonfinite_outputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    wholes: dict[str, int] = field(default_factory=dict)
    cache: CacheUse | None = None
    statistics: dict[str, float] = field(default_factory=dict)
