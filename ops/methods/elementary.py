"""Two models, element by element: swaps near the base, and steps beyond an expert."""

from __future__ import annotations

from plait.ops.algebra import maximum, minimum
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import add_delta
from plait.ops.tensor import LazyTensor


@method(
    "nearswap",
    family="two models",
    base="required",
    experts=(1, 1),
    symmetric=False,
    source="mergekit",
    kinds=("map",),
    params=(Param("t", float, "Distance from the base up to which the other model's value is taken whole.", required=True, default=0.001, low=0.0),),
)
def nearswap(t_in: MergeInputs, *, t: float) -> LazyTensor:
    """Take the other model's value where it is near the base's, and less of it the further away it is.

    omega = clip(t / |theta_1 - theta_0|, 0, 1); theta = omega theta_1 + (1 - omega) theta_0.
    """
    if t == 0.0:
        return t_in.origin
    a, b = t_in.origin, t_in.experts[0]
    omega = minimum(t / maximum(abs(a - b), 1e-6), 1.0)
    return omega * b + (1.0 - omega) * a


@method(
    "expo",
    family="two models",
    base="required",
    experts=(1, 1),
    symmetric=False,
    source="ExPO, Zheng et al. 2024, equation 1",
    kinds=("map",),
    params=(Param("alpha", float, "How far to go beyond the expert, in steps from the base to it.", default=0.3),),
)
def expo(t: MergeInputs, *, alpha: float = 0.3) -> LazyTensor:
    """Go on from the base through the expert: extrapolation of what training changed.

    theta = theta_1 + alpha (theta_1 - theta_0) = theta_0 + (1 + alpha) (theta_1 - theta_0).
    """
    return add_delta(t.origin, t.deltas[0], 1.0 + alpha)
