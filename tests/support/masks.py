"""What a recipe with random masks may give: for every element, each outcome and how probable it is.

With K experts an element has 2**K outcomes, one for each subset of experts that keep it; summed over thousands of elements their
probabilities say how often a value may be untouched and how large the change is on average, whatever made the masks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.reference import Task, combine
from support.stored import F64, Stored, spacing

#: method -> (elects signs, normalises by default, keeps by rank)
RANDOM = {
    "dare_linear": (False, False, False),
    "dare_ties": (True, False, False),
    "della_linear": (False, False, True),
    "della": (True, True, True),
}


@dataclass(frozen=True)
class Outcomes:
    """Every possible change of one tensor.

    Attributes:
        kept: `[outcomes, experts]`, which experts keep the element.
        value: `[outcomes, elements]`, the merged delta.
        chance: `[outcomes, elements]`, its probability.
        change: `[elements]`, the weighted sum of the experts' deltas.
    """

    kept: NDArray[np.bool_]
    value: F64
    chance: F64
    change: F64


def outcomes(task: Task, method: str) -> Outcomes:
    """The outcomes of `method` on one tensor, with survivors divided by their probability of being kept."""
    assert task.base is not None
    elect, normalize, ranked = RANDOM[method]
    deltas = [x - task.base for x in task.experts]
    keep = [keep_chance(d, p["density"], p.get("epsilon", 0.15) if ranked else 0.0) for d, p in zip(deltas, task.params, strict=True)]
    weights = [p["weight"] for p in task.params]
    subsets = list(itertools.product((False, True), repeat=len(deltas)))
    values, chances = [], []
    for subset in subsets:
        scaled = [w * d / k * s for w, d, k, s in zip(weights, deltas, keep, subset, strict=True)]
        values.append(combine(scaled, weights, task.shared, elect=elect, normalize=normalize).ravel())
        chances.append(np.prod([k if s else 1 - k for k, s in zip(keep, subset, strict=True)], axis=0).ravel())
    change = sum(w * d for w, d in zip(weights, deltas, strict=True))
    return Outcomes(np.array(subsets), np.array(values), np.array(chances), np.asarray(change).ravel())


def keep_chance(delta: F64, density: float, epsilon: float) -> F64:
    """Each element's probability of being kept: `density`, or a line over the rank of |delta| in its row around it."""
    rows = delta.reshape(-1, delta.shape[-1])
    rank = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1)
    return (density - epsilon + 2 * epsilon * rank / max(rows.shape[1] - 1, 1)).reshape(delta.shape)


class Tally:
    """Sums what was seen against what was expected over all tensors of a case; `z` is the distance in standard deviations."""

    def __init__(self) -> None:
        self.seen = self.mean = self.variance = 0.0

    def add(self, seen: F64, mean: F64, variance: F64) -> None:
        self.seen += float(seen.sum())
        self.mean += float(mean.sum())
        self.variance += float(variance.sum())

    @property
    def z(self) -> float:
        return (self.seen - self.mean) / self.variance**0.5


@dataclass
class Statistics:
    """What a random case showed.

    Attributes:
        untouched: elements equal to the base.
        change: the change along the experts' summed deltas.
        kept: for methods without election, elements that each expert kept.
        strangers: elements whose value is none of the possible outcomes.
        moved: elements that differ from the base although no expert's does.
    """

    untouched: Tally
    change: Tally
    kept: list[Tally]
    strangers: int = 0
    moved: int = 0


def measure(got: dict[str, Stored], tasks: list[Task], method: str) -> Statistics:
    """Reads the statistics of `method` off an output."""
    found = Statistics(Tally(), Tally(), [Tally() for _ in tasks[0].experts])
    for task in tasks:
        assert task.base is not None
        possible = outcomes(task, method)
        base = task.base.ravel()
        value, step = got[task.name].value.ravel(), spacing(got[task.name].value.ravel(), got[task.name].dtype)
        delta, slack = value - base, step / 2 + 2e-6 * np.abs(possible.value).max(0) + 1e-7 * np.abs(base)
        found.moved += int((np.abs(delta) > 0)[(np.array([x.ravel() for x in task.experts]) == base).all(0)].sum())
        nearest = np.abs(possible.value - delta).argmin(0)
        found.strangers += int((np.abs(possible.value - delta).min(0) > slack).sum())
        still = (np.abs(possible.value) <= slack) * possible.chance
        found.untouched.add((np.abs(delta) <= slack).astype(float), still.sum(0), still.sum(0) * (1 - still.sum(0)))
        mean = (possible.chance * possible.value).sum(0)
        spread = (possible.chance * possible.value**2).sum(0) - mean**2 + step**2 / 12
        found.change.add(delta * possible.change, mean * possible.change, spread * possible.change**2)
        _count_kept(found, possible, nearest)
    return found


def _count_kept(found: Statistics, possible: Outcomes, nearest: NDArray[np.intp]) -> None:
    for expert, tally in enumerate(found.kept):
        kept = possible.kept[:, expert]
        chance = possible.chance[kept].sum(0)
        tally.add(kept[nearest].astype(float), chance, chance * (1 - chance))
