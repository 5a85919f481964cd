"""FuseChat's merges: experts weighted, tensor by tensor, by how much they changed (VaRM), among the positions where they differ most (SCE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.ops.algebra import differs, dot, equal, mean, solve, solver, sum_all, total, weighted_sum, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import INT8_MASK
from plait.ops.order import top
from plait.ops.tensor import LazyTensor


@solver
def shares(*masses: Any, zero_is_uniform: bool = False) -> Any:
    """Each mass as a share of their sum; equal shares where the sum is 0, or with `zero_is_uniform` where any mass is."""
    import numpy as np

    mass = np.array(masses, np.float64)
    uniform = mass.sum() == 0.0 or (zero_is_uniform and not mass.all())
    return np.full(mass.size, 1.0 / mass.size) if uniform else mass / mass.sum()


def _shares(masses: Sequence[LazyTensor], *, zero_is_uniform: bool = False) -> list[LazyTensor]:
    found = solve("shares", *masses, shape=(len(masses),), zero_is_uniform=zero_is_uniform)
    return [found[i] for i in range(len(masses))]


def variance(xs: Sequence[LazyTensor]) -> LazyTensor:
    """Population variance at each position, of deviations from a mean that is taken from the first value: exactly 0 where all are equal."""
    middle = xs[0] + mean([x - xs[0] for x in xs])
    return mean([(x - middle) * (x - middle) for x in xs])


@method(
    "sce",
    family="sign election",
    base="required",
    experts=(1, None),
    source="SCE, FuseChat, Wan et al. 2024, section 3.3; mergekit",
    kinds=("fold", "map"),
    params=(
        Param("select_topk", float, "Fraction kept of the positions in which the experts differ, those of largest variance.", default=1.0, low=0.0, high=1.0),
        Param(
            "select_applies_to",
            str,
            "all: other positions take no part (mergekit); weights_only: they only do not count for the weights (the paper's code).",
            default="all",
            choices=("all", "weights_only"),
            gradient=False,
        ),
        INT8_MASK,
    ),
)
def sce(t: MergeInputs, *, select_topk: float = 1.0, select_applies_to: str = "all", **_: object) -> LazyTensor:
    """Select the positions in which experts differ, calculate their weights, erase minority signs.

    Selected are the floor(tau m) largest variances of the m positions where it is not zero, all where m is 0; eta_i = mean(delta_i^2) over
    their sum, equal only where that is exactly 0; theta = theta_0 + sum_i eta_i delta_i / sum_i eta_i over those whose sign is that of
    sum_i delta_i, a sum of 0 counting as positive.

    Example:
        select_topk: 0.2
    """
    if len(t.experts) == 1:
        return t.experts[0]
    deltas = t.deltas
    if select_topk <= 0.0 and select_applies_to == "all":
        return t.origin
    selected = [_select(d, deltas, select_topk) for d in deltas]
    eta = _shares([dot(d, d) for d in selected])
    merged = selected if select_applies_to == "all" else deltas
    elected = where(total(merged) >= 0.0, 1.0, -1.0)
    agrees = [d * elected > 0.0 for d in merged]
    change = total([where(a, d * e, 0.0) for a, d, e in zip(agrees, merged, eta, strict=True)])
    share = total([where(a, e, 0.0) for a, e in zip(agrees, eta, strict=True)])
    return t.origin + change / where(share > 0.0, share, 1.0)


def _select(delta: LazyTensor, deltas: Sequence[LazyTensor], fraction: float) -> LazyTensor:
    if fraction >= 1.0:
        return delta
    if fraction <= 0.0:
        return 0.0 * delta
    spread = variance(deltas)
    count = sum_all(differs(spread, 0.0))
    return where(top(spread, fraction, among=count) | equal(count, 0.0), delta, 0.0)


@method(
    "varm",
    family="averaging",
    base="required",
    experts=(1, None),
    source="VaRM, FuseChat 1.0, Wan et al. 2024, section 3.3",
    kinds=("fold", "map"),
    params=(
        Param(
            "statistic",
            str,
            "What an expert's weight in a tensor is the mean of: squared changes (the paper) or their magnitudes.",
            default="square",
            choices=("square", "abs"),
            gradient=False,
        ),
    ),
)
def varm(t: MergeInputs, *, statistic: str = "square") -> LazyTensor:
    """Average the experts, each weighted in every tensor by the variation of its parameters from the base.

    theta = sum_i w_i theta_i with w_i = mean(delta_i^2) / sum_j mean(delta_j^2) over the tensor; equal weights where an expert did not change.
    """
    if len(t.experts) == 1:
        return t.experts[0]
    masses = [dot(d, d) if statistic == "square" else sum_all(abs(d)) for d in t.deltas]
    return weighted_sum(t.experts, _shares(masses, zero_is_uniform=True)) or t.origin
