"""DARE and DELLA: drop elements of a task vector at random and rescale the rest."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from plait.ops.algebra import below, row_length, row_rank, solve, solver, take, weighted_sum, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import INT8_MASK, LAMBDA, NO_NORMALIZE, SEED, WEIGHT, density
from plait.ops.methods.ties import ELECT, Ballot, add_delta, same_l1
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
    return kept / density if rescale_by == "probability" else same_l1(kept, delta)


@solver
def keep_thresholds(*, density: float, epsilon: float, length: int) -> Any:
    """DELLA's keep probability of each rank in a row, in units of 2**-32, exact integers."""
    import numpy as np

    low, width = round((exact(density) - exact(epsilon)) * 2**32), round(2 * exact(epsilon) * 2**32)
    if length < 2:
        return np.full(max(length, 1), float(round(exact(density) * 2**32)))
    return (low + np.arange(length, dtype=np.int64) * width // (length - 1)).astype(np.float64)


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
    mask = below(t.random_bits(expert, seed, DROPS), take(table, rank, integer=True))
    kept = where(mask, delta, 0.0)
    if not rescale:
        return kept
    return kept / take(table / 2.0**32, rank) if rescale_by == "probability" else same_l1(kept, delta)


def _voters(t: MergeInputs, weight: tuple[float, ...], values: tuple[float, ...]) -> list[tuple[int, float, float]]:
    return [(i, w, d) for i, (w, d) in enumerate(zip(weight, values, strict=True)) if w != 0.0]


def _sum(t: MergeInputs, deltas: list[LazyTensor], weights: list[float], lam: float, normalize: bool) -> LazyTensor:
    share = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
    return add_delta(t.origin, weighted_sum(deltas, [w / share for w in weights]), lam)


def _vote(t: MergeInputs, deltas: list[LazyTensor], weights: list[float], lam: float, normalize: bool, elect: str) -> LazyTensor:
    return add_delta(t.origin, Ballot([""] * len(deltas), elect, normalize=normalize).merge(deltas, weights), lam)


_DARE = {"base": "required", "experts": (1, None), "source": "DARE, Yu et al. 2024, section 3.2", "kinds": ("map",)}
_DELLA = {"base": "required", "experts": (1, None), "source": "DELLA-Merging, Deep et al. 2024, section 3", "kinds": ("rows", "map")}


@method("dare_linear", family="random dropping", params=(WEIGHT, density(), LAMBDA, NO_NORMALIZE, RESCALE, RESCALE_BY, SEED, INT8_MASK), **_DARE)
def dare_linear(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    **_: object,
) -> LazyTensor:
    """Drop elements of each task vector at random, rescale, add.

    delta_i <- m_i delta_i / d_i with m_i ~ Bernoulli(d_i); theta = theta_0 + lambda sum_i w_i delta_i.

    Idea:
        Changes of fine-tuning are redundant: drop nine tenths at random, scale up the rest, and a model does the same; fewer collide when added.
    Differs:
        - mergekit restores each tensor's L1 norm instead of dividing by the density (`rescale_by: l1`).
        - Masks of reference codes depend on the order of tensors and on the device; here on seed, model, tensor and element alone.
    Caveats:
        - Experts that changed much, by continued pretraining for example, suffer from a low density.
    Example:
        weight: 0.5
        density: 0.3
    """
    chosen = _voters(t, weight, density)
    return _sum(t, [drop(t, i, d, seed, rescale, rescale_by) for i, _w, d in chosen], [w for _, w, _ in chosen], lam, normalize)


@method("dare_ties", family="random dropping", params=(WEIGHT, density(), LAMBDA, NO_NORMALIZE, RESCALE, RESCALE_BY, SEED, ELECT, INT8_MASK), **_DARE)
def dare_ties(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    elect: str = "sum",
    **_: object,
) -> LazyTensor:
    """Drop elements of each task vector at random, rescale, then elect signs as TIES does.

    delta_i as in `dare_linear`; then the elected sign and the sum (or mean) of the changes that agree.

    Differs:
        - mergekit restores each tensor's L1 norm instead of dividing by the density (`rescale_by: l1`).
        - FusionBench trims by magnitude after dropping; here, as in mergekit, dropping takes the place of trimming.
    Example:
        weight: 0.5
        density: 0.3
    """
    chosen = _voters(t, weight, density)
    return _vote(t, [drop(t, i, d, seed, rescale, rescale_by) for i, _w, d in chosen], [w for _, w, _ in chosen], lam, normalize, elect)


@method("della", family="random dropping", params=(WEIGHT, density(), EPSILON, LAMBDA, NORMALIZE, RESCALE, RESCALE_BY, SEED, ELECT, INT8_MASK), **_DELLA)
def della(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    elect: str = "sum",
    **_: object,
) -> LazyTensor:
    """Drop small changes of each row more often than large ones, rescale, elect signs.

    The keep probability runs linearly with the rank of |delta| in its row from d - epsilon to d + epsilon; survivors are divided
    by their own; then sign election and mean as in TIES.

    Idea:
        Dropping at random keeps a model's skill; dropping small changes more often keeps more of it.
    Differs:
        - mergekit restores each tensor's L1 norm instead of dividing each element by its own probability (`rescale_by: l1`).
        - mergekit ranks in bfloat16, where 4096 ranks become 768, and divides by zero in rows of one element; here ranks are exact and such a row keeps d.
    Caveats:
        - `epsilon` is the half-width, as in mergekit; the paper's window is twice that.
    Example:
        weight: 0.5
        density: 0.4
        epsilon: 0.1
    """
    chosen = _voters(t, weight, density)
    deltas = [rank_drop(t, i, d, epsilon[i], seed, rescale, rescale_by) for i, _w, d in chosen]
    return _vote(t, deltas, [w for _, w, _ in chosen], lam, normalize, elect)


@method("della_linear", family="random dropping", params=(WEIGHT, density(), EPSILON, LAMBDA, NO_NORMALIZE, RESCALE, RESCALE_BY, SEED, INT8_MASK), **_DELLA)
def della_linear(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    **_: object,
) -> LazyTensor:
    """DELLA's magnitude-ranked dropping without the election of signs.

    delta_i as in `della`; theta = theta_0 + lambda sum_i w_i delta_i.

    Example:
        weight: 0.5
        density: 0.4
        epsilon: 0.1
    """
    chosen = _voters(t, weight, density)
    deltas = [rank_drop(t, i, d, epsilon[i], seed, rescale, rescale_by) for i, _w, d in chosen]
    return _sum(t, deltas, [w for _, w, _ in chosen], lam, normalize)
