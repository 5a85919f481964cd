"""Localize-and-Stitch without data: each expert keeps the few places that make it, and they are stitched together."""

from __future__ import annotations

from plait.ops.algebra import total, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import SCOPE
from plait.ops.methods.parameters import density
from plait.ops.order import quantile, top
from plait.ops.tensor import LazyTensor


@method(
    "localize_stitch",
    family="magnitude selection",
    base="required",
    experts=(1, None),
    source="Localize-and-Stitch, He et al. 2024, sections 3 and 4.3 (dataless)",
    kinds=("fold", "map"),
    params=(
        density(0.1),
        Param(
            "scope",
            str,
            "One threshold for each model over all its tensors (the paper), or one for each tensor.",
            default="global",
            choices=SCOPE.choices,
            gradient=False,
        ),
        Param(
            "keep",
            str,
            "exact: floor(density * n) elements, of ties the first; above: only those above the threshold, as the paper's code.",
            default="exact",
            choices=("exact", "above"),
            gradient=False,
        ),
    ),
)
def localize_stitch(t: MergeInputs, *, density: tuple[float, ...], scope: str = "global", keep: str = "exact") -> LazyTensor:
    """Keep the places where an expert changed most, and average the experts that share a place.

    M_i marks the largest |delta_i|; theta = mean of the experts with M_i at a position, theta_0 where there is none.
    """
    chosen = [(i, d) for i, d in enumerate(density) if d > 0.0]
    if not chosen:
        return t.origin
    masks = [_mask(t.deltas[i], d, t.labels[i] if scope == "global" else "", keep) for i, d in chosen]
    owners = total([where(m, 1.0, 0.0) for m in masks])
    owned = total([where(m, t.experts[i], 0.0) for m, (i, _) in zip(masks, chosen, strict=True)])
    return where(owners > 0.0, owned / owners, t.origin)


def _mask(delta: LazyTensor, density: float, scope: str, keep: str) -> LazyTensor:
    if density >= 1.0:
        return abs(delta) >= 0.0
    if keep == "above":
        return abs(delta) > quantile(delta, f"top {density!r}", scope=scope)
    return top(delta, density, scope=scope)
