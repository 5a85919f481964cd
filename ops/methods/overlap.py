"""Merges that ask at each element how many experts changed it, or which changed it most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from plait.ops.algebra import maximum, minimum, sum_all, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import SCOPE, add_delta
from plait.ops.tensor import LazyTensor

EPSILON = Param("epsilon", float, "Magnitude that a change must exceed to count.", default=1e-5, low=0.0)


@method(
    "magmax",
    family="overlap",
    base="required",
    experts=(1, None),
    symmetric=False,
    source="MagMax, Marczak et al. 2024, section 3.2",
    kinds=("map",),
    params=(Param("lambda", float, "Scale of the merged task vector; the paper's code takes 0.5.", default=0.5, python="lam"),),
)
def magmax(t: MergeInputs, *, lam: float = 0.5) -> LazyTensor:
    """At each element the change of the expert that changed it most.

    theta = theta_0 + lambda delta_i with i = argmax_i |delta_i|, element by element; of equal magnitudes the later expert's.
    """
    return add_delta(t.origin, reduce(lambda best, delta: where(abs(delta) >= abs(best), delta, best), t.deltas), lam)


def _active(t: MergeInputs, epsilon: float) -> tuple[list[LazyTensor], LazyTensor]:
    """Where each expert changed something, and how many did."""
    active = [abs(delta) > epsilon for delta in t.deltas]
    return active, total([where(mask, 1.0, 0.0) for mask in active])


def _shared_mean(t: MergeInputs, changes: Sequence[LazyTensor], active: Sequence[LazyTensor], count: LazyTensor) -> LazyTensor:
    return t.origin + total([where(mask, change, 0.0) for mask, change in zip(active, changes, strict=True)]) / maximum(count, 1.0)


@method("ram", family="overlap", base="required", experts=(1, None), source="RAM, arXiv 2601.13572", kinds=("map",), params=(EPSILON,))
def ram(t: MergeInputs, *, epsilon: float = 1e-5) -> LazyTensor:
    """Keep what one expert alone changed, average what several changed.

    Active: |delta_i| > epsilon. theta = theta_0 + the sum of the active delta_i over their number.
    """
    active, count = _active(t, epsilon)
    return _shared_mean(t, t.deltas, active, count)


@method(
    "ramplus_tl",
    family="overlap",
    base="required",
    experts=(1, None),
    source="RAM+, arXiv 2601.13572",
    kinds=("fold", "map"),
    params=(
        EPSILON,
        Param("r", float, "How strongly the ratio of shared to unique changes raises the unique ones.", default=0.1),
        Param("alpha", float, "Largest such ratio that counts.", default=0.2, low=0.0),
        SCOPE,
    ),
)
def ramplus_tl(t: MergeInputs, *, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2, scope: str = "tensor") -> LazyTensor:
    """RAM, with an expert's unique changes raised the more of its changes are shared.

    As `ram`, but delta_i where expert i alone is active is multiplied by 1 + r clip(rho_i, 0, alpha), with rho_i the number of elements
    that i shares over the number that it has alone, in the tensor (mergekit) or, with scope global, in the whole model (the paper).
    """
    active, count = _active(t, epsilon)
    alone = count < 1.5
    changes = []
    for label, delta, mask in zip(t.labels, t.deltas, active, strict=True):
        unique = sum_all(mask & alone, f"{label} unique" if scope == "global" else "")
        shared = sum_all(mask & ~alone, f"{label} shared" if scope == "global" else "")
        ratio = where(unique > 0.0, shared / maximum(unique, 1.0), 0.0)
        changes.append(delta * where(alone, 1.0 + r * minimum(ratio, alpha), 1.0))
    return _shared_mean(t, changes, active, count)
