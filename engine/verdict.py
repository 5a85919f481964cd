"""Was the plan right? Predictions beside measurements, within tolerances that are stated here and in every report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from plait.planner.sizes import MIB, size

PEAK_FACTOR = 1.25  #: a predicted peak is at most so many times the measured one; it is never below it
PEAK_SLACK_BYTES = 16 * MIB  #: nor is a promise that lies less than this above it called wrong
TIME_FACTOR = 2.0  #: predicted and measured seconds differ at most by this factor
TIME_SLACK_S = 1.0  #: nor are seconds called wrong that differ by less


@dataclass(frozen=True, slots=True)
class Off:
    """A prediction that was wrong.

    Attributes:
        what: `peak` or `time`.
        predicted, measured: bytes or seconds.
        group: the tensors that it is due to, as far as that can be told.
    """

    what: str
    predicted: float
    measured: float
    group: str

    def sentence(self) -> str:
        """For people."""
        where = f", most of it in {self.group}" if self.group else ""
        if self.what == "peak":
            apart = "" if self.measured > self.predicted else f", more than {PEAK_FACTOR - 1:.0%} less"
            return f"the plan was off: {size(self.measured)} of memory instead of {size(self.predicted)}{apart}{where}"
        return f"the plan was off: {self.measured:.1f} s instead of {self.predicted:.1f} s, not within a factor of {TIME_FACTOR:g}{where}"


def tolerances() -> dict[str, float]:
    """What a prediction may be off by, as data."""
    return {
        "peak_factor": PEAK_FACTOR,
        "peak_slack_bytes": PEAK_SLACK_BYTES,
        "time_factor": TIME_FACTOR,
        "time_slack_s": TIME_SLACK_S,
    }


def judged_peak(predicted: int, measured: int, *, whole: bool) -> bool:
    """Whether a peak is as predicted; of a run that did but a part, only whether it is not above."""
    if measured > predicted:
        return False
    return not whole or predicted <= max(PEAK_FACTOR * measured, measured + PEAK_SLACK_BYTES)


def judged_time(predicted: float, measured: float) -> bool:
    """Whether a time is as predicted."""
    low, high = sorted((predicted, measured))
    return high <= max(TIME_FACTOR * low, low + TIME_SLACK_S)


def verdict(time: dict[str, Any], memory: dict[str, Any], groups: list[dict[str, Any]], *, why_not: str, whole: bool) -> dict[str, Any]:
    """The part of a report that says whether its plan was right.

    Args:
        time, memory, groups: of the report.
        why_not: why the time is not judged; empty where it is.
        whole: the run did all of the plan.
    """
    off: list[Off] = []
    predicted, measured = memory["predicted_peak_bytes"], memory["measured_peak_bytes"]
    if memory["judged"] and not judged_peak(predicted, measured, whole=whole):
        off.append(Off("peak", predicted, measured, memory["peak_group"]))
    if not why_not and not judged_time(time["predicted_work_s"], time["measured_work_s"]):
        sign = 1 if time["measured_work_s"] > time["predicted_work_s"] else -1
        worst = max(groups, key=lambda g: sign * (g["measured_s"] - g["predicted_s"]), default=None)
        off.append(Off("time", time["predicted_work_s"], time["measured_work_s"], worst["label"] if worst else ""))
    return {
        "right": not off,
        "sentences": [o.sentence() for o in off],
        "off": [asdict(o) for o in off],
        "tolerances": tolerances(),
        "not_judged": [words for words in (why_not, memory["not_judged"]) if words],
    }
