"""What an optimisation is worth to a merge: the difference between two plans, in words."""

from __future__ import annotations

from plait.planner.plan import Plan
from plait.planner.sizes import size
from plait.planner.words import duration

#: Differences in time below this are not told: rates are not known that well.
_TOLD_S = 0.05


def worth(with_it: Plan, without_it: Plan) -> str:
    """What a plan without an optimisation needs more than one with it."""
    on, off = with_it.prediction, without_it.prediction
    parts = []
    for more, what in ((off.bytes_read - on.bytes_read, "to read"), (off.peak_bytes - on.peak_bytes, "memory")):
        if more:
            parts.append(f"{size(abs(more))} {'more' if more > 0 else 'less'} {what}")
    if off.bytes_copied != on.bytes_copied:
        parts.append(f"{size(on.bytes_copied - off.bytes_copied)} decoded and encoded instead of copied")
    if off.bytes_read_extra < on.bytes_read_extra:
        parts.append(f"up to {size(on.bytes_read_extra - off.bytes_read_extra)} less to read where a sample mispredicts")
    seconds = off.seconds - on.seconds
    if abs(seconds) >= _TOLD_S:
        parts.append(f"{duration(abs(seconds))} {'longer' if seconds > 0 else 'shorter'}")
    return ", ".join(parts) or "costs nothing here"
