"""How close plait must come to mergekit and to a float64 evaluation of the same formulas (`tests/golden/README.md`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from support.reference import CODE, Result
from support.stored import Stored, spacing

#: mergekit computes these in float32 or copies; every other method in the load dtype.
FINE_IN_MERGEKIT = frozenset({"linear", "slerp", "passthrough"})
#: Share of a case's elements at a TIES threshold; more of them would hide a wrong threshold.
MOST_UNSURE = 0.03
#: Share of a case's elements whose sign election mergekit's own bfloat16 sums turn the other way.
MOST_TURNED = 0.001


@dataclass
class Report:
    """What a comparison of one case found, summed over its tensors."""

    elements: int = 0
    unsure: int = 0
    beyond_one_step: int = 0
    turned: int = 0

    def __str__(self) -> str:
        coarse = f"{self.beyond_one_step} further than one step from mergekit ({self.turned} with another sign elected)"
        return f"{self.elements} elements: {self.unsure} at a threshold, {coarse}"


def same_layout(got: dict[str, Stored], peer: dict[str, Stored]) -> None:
    """Names, shapes and dtypes are mergekit's."""
    assert {n: (t.dtype, t.shape) for n, t in got.items()} == {n: (t.dtype, t.shape) for n, t in peer.items()}


def compare(got: dict[str, Stored], peer: dict[str, Stored], exact: dict[str, Result], config: dict[str, Any]) -> Report:
    """Asserts agreement, tensor by tensor, and says what could not be compared.

    Args:
        got: plait's output.
        peer: mergekit's.
        exact: the float64 reference before rounding.
        config: the recipe.
    """
    report = Report()
    same_layout(got, peer)
    assert set(exact) == set(peer)
    fine = config["merge_method"] in FINE_IN_MERGEKIT or config.get("dtype") == "float32"
    for name, mine in got.items():
        result = exact[name]
        report.elements += mine.value.size
        report.unsure += int(result.unsure.sum())
        working = CODE[config["dtype"]] if mine.dtype == "F32" and "dtype" in config else mine.dtype
        if working == "F32":
            _fine(name, mine, peer[name], result)
        else:
            _coarse(name, mine, peer[name], result, working, report, fine=fine)
    assert report.unsure <= MOST_UNSURE * report.elements, f"too many elements at a threshold to compare: {report}"
    assert report.turned <= MOST_TURNED * report.elements, f"too many elements far from mergekit: {report}"
    return report


def _fine(name: str, mine: Stored, peer: Stored, exact: Result) -> None:
    """float32 throughout: within 2e-6 of the tensor's largest magnitude, of mergekit and of the float64 value alike."""
    largest = np.abs(exact.value).max()
    for other, label in ((peer.value, "mergekit"), (exact.value, "the float64 reference")):
        off = np.where(exact.unsure, 0, np.abs(mine.value - other))
        assert off.max() <= 2e-6 * largest, f"{name}: {off.max():.2e} from {label}, whose largest magnitude is {largest:.2e}"


def _coarse(name: str, mine: Stored, peer: Stored, exact: Result, working: str, report: Report, *, fine: bool) -> None:
    """A 16-bit dtype somewhere: the exact value rounded once, no further from it than mergekit's, and near mergekit's."""
    sure = ~exact.unsure
    largest = np.abs(exact.value).max()
    slack = 1e-6 * largest  # float32 arithmetic on the way to the one rounding
    error = np.abs(mine.value - exact.value)
    assert (error <= np.abs(peer.value - exact.value) + slack)[sure].all(), f"{name}: further from the float64 value than mergekit"
    assert (error <= spacing(exact.value, mine.dtype) / 2 + slack)[sure].all(), f"{name}: not the float64 value rounded once"
    apart = np.abs(mine.value - peer.value)[sure]
    step = spacing(np.maximum(np.abs(mine.value), np.abs(peer.value)), working)[sure]
    if fine:
        assert (apart <= step + slack).all(), f"{name}: further than one unit in the last place from mergekit"
    report.beyond_one_step += int((apart > step).sum())
    report.turned += int((apart > largest / 64).sum())
