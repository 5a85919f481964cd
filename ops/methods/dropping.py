"""What DARE and DELLA share: elements of a task vector dropped at random, the rest rescaled."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from plait.ops.algebra import below, row_length, row_rank, solve, solver, take, weighted_sum, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param
from plait.ops.methods.election import Ballot, add_delta, same_l1
from plait.ops.tensor import LazyTensor

NORMALIZE = Param("normalize", bool, "Divide by the summed weights of the experts that agree.", default=True)
RESCALE = Param("rescale", bool, "Scale what is kept so that the task vector stays the same in expectation.", default=True)
RESCALE_BY = Param(
    "rescale_by",
    str,
    "probability: divide by the probability of being kept (the papers); l1: restore the tensor's L1 norm (mergekit).",
    default="probability",
    choices=("probability", "l1"),
    gradient=False,
)
EPSILON = Param("epsilon", float, "Half-width of the keep probabilities around the density.", default=0.15, per_expert=True, low=0.0, high=0.5)
_MOST = 2.0**32 - 1  # a probability of less than 1
DROPS = "drop"  # one stream for both methods: DELLA with epsilon 0 is DARE, bit for bit


def exact(density: float) -> Fraction:
    """The fraction that the decimal text of a density means."""
    return Fraction(repr(density))


def drop(t: MergeInputs, expert: int, density: float, seed: int, rescale: bool, rescale_by: str) -> LazyTensor:
    """DARE's task vector: each element kept with probability `density`, then divided by it."""
    delta = t.deltas[expert]
    if density >= 1.0:
        return delta
    if density <= 0.0:
        return 0.0 * delta
    mask = below(t.random_bits(expert, seed, DROPS), float(round(exact(density) * 2**32)))
    kept = where(mask, delta, 0.0)
    if not rescale:
        return kept
    # dividing every element takes four times as long, and differs by one unit in the last place of float32 at most
    return kept * (1.0 / density) if rescale_by == "probability" else same_l1(kept, delta)


@solver
def keep_thresholds(*, density: float, epsilon: float, length: int) -> Any:
    """DELLA's keep probability of each rank in a row, in units of 2**-32, exact integers."""
    import numpy as np

    low, width = round((exact(density) - exact(epsilon)) * 2**32), round(2 * exact(epsilon) * 2**32)
    if length < 2:
        return np.full(max(length, 1), min(float(round(exact(density) * 2**32)), _MOST))
    return np.minimum(low + np.arange(length, dtype=np.int64) * width // (length - 1), _MOST).astype(np.float64)


def rank_drop(t: MergeInputs, expert: int, density: float, epsilon: float, seed: int, rescale: bool, rescale_by: str) -> LazyTensor:
    """DELLA's task vector: larger magnitudes in a row are kept more often, then divided by their own probability."""
    delta = t.deltas[expert]
    if density >= 1.0 or epsilon == 0.0:
        return drop(t, expert, density, seed, rescale, rescale_by)
    if not 0.0 < density - epsilon <= density + epsilon < 1.0:
        raise ValueError(
            f"density {density:g} and epsilon {epsilon:g} give keep probabilities outside 0 to 1: epsilon must be below {min(density, 1 - density):g}"
        )
    length = row_length(t.shape, "last")
    table = solve("keep_thresholds", shape=(length,), density=density, epsilon=epsilon, length=length)
    rank = row_rank(delta)
    threshold = take(table, rank, integer=True)
    kept = where(below(t.random_bits(expert, seed, DROPS), threshold), delta, 0.0)
    if not rescale:
        return kept
    return kept / (threshold * 2.0**-32) if rescale_by == "probability" else same_l1(kept, delta)


def voters(t: MergeInputs, weight: tuple[float, ...], values: tuple[float, ...]) -> list[tuple[int, float, float]]:
    """Index, weight and density of each expert whose weight is not zero."""
    return [(i, w, d) for i, (w, d) in enumerate(zip(weight, values, strict=True)) if w != 0.0]


def add_up(t: MergeInputs, deltas: list[LazyTensor], weights: list[float], lam: float, normalize: bool) -> LazyTensor:
    """theta_0 + lambda sum_i w_i delta_i, divided by sum_i w_i where `normalize` is set."""
    share = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
    return add_delta(t.origin, weighted_sum(deltas, [w / share for w in weights]), lam)


def elected(t: MergeInputs, deltas: list[LazyTensor], weights: list[float], lam: float, normalize: bool, elect: str) -> LazyTensor:
    """theta_0 + lambda times the sum, or mean, of the changes that agree with the elected sign."""
    return add_delta(t.origin, Ballot([""] * len(deltas), elect, normalize=normalize).merge(deltas, weights), lam)
