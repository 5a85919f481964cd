"""One merged task vector of which each task would use the part that a mask of its own selects: EMR, TALL masks and their consensus."""

from __future__ import annotations

from functools import reduce

from plait.ops.algebra import maximum, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import KEEP, SCOPE, Ballot, add_delta, trim
from plait.ops.methods.parameters import LAMBDA
from plait.ops.tensor import LazyTensor


@method(
    "emr",
    family="masks",
    base="required",
    experts=(1, None),
    source="EMR-Merging, Huang et al. 2024, section 3.2",
    kinds=("map",),
    params=(LAMBDA,),
)
def emr(t: MergeInputs, *, lam: float = 1.0) -> LazyTensor:
    """The elected task vector of EMR-Merging: the sign of the sum, the largest magnitude that has it.

    gamma = 1 where sum_i delta_i > 0, else -1; epsilon = max_i |delta_i| over the experts with that sign, 0 without any;
    theta = theta_0 + lambda gamma epsilon. The paper's models of single tasks also need a mask and a scalar for each task: these are
    another product, which a merge does not write.
    """
    if len(t.deltas) == 1:
        return add_delta(t.origin, t.deltas[0], lam)
    up = total(t.deltas) > 0.0
    largest = reduce(maximum, [maximum(where(up, d, -d), 0.0) for d in t.deltas])
    return add_delta(t.origin, where(up, largest, -largest), lam)


@method(
    "consensus",
    family="masks",
    base="required",
    experts=(1, None),
    source="TALL-masks and Consensus Merging, Wang et al. 2024, sections 3 and 4",
    kinds=("fold", "map"),
    params=(
        LAMBDA,
        Param(
            "k", int, "How many tasks must need an element for it to be kept: 2 drops selfish weights, 1 only those no task needs, 0 none.", default=2, low=0
        ),
        Param("tall_lambda", float, "How strict an expert's mask is.", default=0.4, per_expert=True, low=0.0),
        Param(
            "vector",
            str,
            "The merged task vector: the sum of the experts' (sum), or that of TIES (ties).",
            default="sum",
            choices=("sum", "ties"),
            gradient=False,
        ),
        Param("density", float, "With `vector: ties`, the fraction of each task vector that is kept.", default=0.2, low=0.0, high=1.0),
        SCOPE,
        KEEP,
    ),
)
def consensus(
    t: MergeInputs,
    *,
    lam: float = 1.0,
    k: int = 2,
    tall_lambda: tuple[float, ...],
    vector: str = "sum",
    density: float = 0.2,
    scope: str = "tensor",
    keep: str = "exact",
) -> LazyTensor:
    """Keep of the merged task vector what at least k tasks need.

    Task i needs an element where |delta_i| > lambda_i |tau - delta_i|, with tau = sum_i delta_i or the TIES vector (election by sum, sum of
    those that agree). theta = theta_0 + lambda tau where sum_i m_i >= k, else theta_0.
    """
    if k > len(t.experts):
        return t.origin
    tau = total(t.deltas) if vector == "sum" else _ties(t, density, scope, keep)
    if k == 0:
        return add_delta(t.origin, tau, lam)
    needed = [abs(d) > s * abs(tau - d) for d, s in zip(t.deltas, tall_lambda, strict=True)]
    votes = total([where(mask, 1.0, 0.0) for mask in needed])
    return add_delta(t.origin, where(votes >= k, tau, 0.0), lam)


def _ties(t: MergeInputs, density: float, scope: str, keep: str) -> LazyTensor:
    """The TIES vector as the paper takes it: zero sums follow the majority, agreeing changes are added up."""
    scopes = [label if scope == "global" else "" for label in t.labels]
    trimmed = [trim(d, density, s, keep) for d, s in zip(t.deltas, scopes, strict=True)]
    merged = Ballot(scopes, zero_sign="majority", aggregate="sum").merge(trimmed, [1.0] * len(trimmed))
    assert merged is not None
    return merged
