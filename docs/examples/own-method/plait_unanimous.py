"""A merge method of one's own. Importing this module registers it; the entry point in pyproject.toml has plait import it."""

from __future__ import annotations

from functools import reduce
from operator import and_

from plait.ops.algebra import mean, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import LAMBDA
from plait.ops.tensor import LazyTensor

DISPUTED = Param("disputed", float, "How much of a change is kept whose sign the experts do not agree on.", default=0.0, low=0.0, high=1.0)


@method("unanimous", family="sign election", base="required", experts=(2, None), kinds=("map",), params=(LAMBDA, DISPUTED), source="plait's documentation")
def unanimous(t: MergeInputs, *, lam: float = 1.0, disputed: float = 0.0) -> LazyTensor:
    """Keep the changes on whose sign all experts agree.

    d = mean_k delta_k. theta = theta_0 + lambda d where all delta_k are of one sign, and theta_0 + lambda disputed d elsewhere.

    Idea:
        What every expert learned is worth more than what one of them did; TIES asks for a majority, this for all.
    Caveats:
        - With many experts hardly any element is undisputed.
    Example:
        disputed: 0.25
    """
    first = t.deltas[0]
    agreed = reduce(and_, [(delta > 0.0) & (first > 0.0) | (delta < 0.0) & (first < 0.0) for delta in t.deltas])
    change = mean(t.deltas)
    return t.origin + lam * where(agreed, change, disputed * change)
