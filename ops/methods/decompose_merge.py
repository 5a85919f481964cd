"""Decom-Renorm-Merge: sign election between task vectors in a shared basis, after every component was given unit length."""

from __future__ import annotations

from plait.ops.algebra import differs, maximum, sign, sum_all, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import prune, prune_threshold, stream
from plait.ops.method import Param, method
from plait.ops.methods.election import trim
from plait.ops.methods.parameters import is_matrix
from plait.ops.methods.subspace import VOCABULARY, Rotated
from plait.ops.tensor import LazyTensor

_TOLERANCE = 1e-2


@method(
    "drm",
    family="subspace",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="Decom-Renorm-Merge, Chaichana et al. 2025, section 4",
    kinds=("whole", "fold", "map"),
    params=(
        Param(
            "direction",
            str,
            "horizontal: [D_1 | ... | D_K]; vertical: the task vectors stacked.",
            "horizontal",
            choices=("horizontal", "vertical"),
            gradient=False,
        ),
        Param("drop_rate", float, "Share of the unit components' entries that are pruned; 0 averages the task vectors.", 0.8, low=0.0, high=1.0),
        Param("coefficient", float, "Scale of this model's share of the average.", default=1.0, per_expert=True),
        Param("scale", float, "Scale of the merged update.", default=1.0),
        Param("disjoint_mean", bool, "Divide by how many experts take part in an entry, not by their number.", default=True),
        Param("others_drop_rate", float, "Share of each expert's other parameters that is trimmed, over the whole model.", 0.0, low=0.0, high=1.0),
        Param("others_elect", bool, "Elect signs in other tensors, too.", default=True),
        Param("exclude", list, "Matrices whose name contains one of these are treated as other tensors.", default=VOCABULARY, gradient=False),
        Param("keep_base", list, "Tensors whose name contains one of these stay as in the base.", default=(), gradient=False),
    ),
)
def drm(
    t: MergeInputs,
    *,
    direction: str = "horizontal",
    drop_rate: float = 0.8,
    coefficient: tuple[float, ...] = (1.0,),
    scale: float = 1.0,
    disjoint_mean: bool = True,
    others_drop_rate: float = 0.0,
    others_elect: bool = True,
    exclude: tuple[str, ...] = VOCABULARY,
    keep_base: tuple[str, ...] = (),
) -> LazyTensor:
    """Prune and elect signs in a joint basis, where every component of every expert has unit length.

    [D_1 | ... | D_K] = U S V^T, directions below 1e-2 of the largest left out; R_k = U^T D_k = S V_k^T. Of the unit rows R_k / |R_k|
    of all experts together the smallest entries are pruned, then signs are elected by mass and agreeing entries averaged: M.
    theta = theta_0 + scale U M; vertical does the same with right vectors. Other tensors are trimmed and elected as they are.
    """
    if scale == 0.0 or 0 in t.shape or any(word in t.name for word in keep_base):
        return t.origin
    if not is_matrix(t, exclude) or "weight" not in t.name:
        trimmed = [trim(d, 1.0 - others_drop_rate, f"drm {label}", "threshold") for d, label in zip(t.deltas, t.labels, strict=True)]
        return t.origin + scale * _average(trimmed, coefficient, others_elect, disjoint_mean)
    if drop_rate == 0.0:
        return t.origin + scale * _average(t.deltas, coefficient, False, disjoint_mean)
    shared = Rotated(t, "output" if direction == "horizontal" else "input", _TOLERANCE)
    counted = shared.rank * float(len(t.experts) * shared.shape[1])
    threshold = prune_threshold(shared.coordinates, counted, 1.0 - drop_rate)
    pruned = [stream(prune(r, threshold), shared.shape) for r in shared.coordinates]
    return t.origin + scale * shared.back(_average(pruned, coefficient, True, disjoint_mean), t.shape)


def _average(changes: list[LazyTensor] | tuple[LazyTensor, ...], coefficients: tuple[float, ...], elect: bool, disjoint: bool) -> LazyTensor:
    """Those changes whose sign is that of the sum, each times its coefficient, averaged; a zero sum has the sign that most entries have."""
    if elect and len(changes) > 1:
        tally = total(changes)
        majority = sum_all(sign(tally))
        elected = where(tally > 0.0, 1.0, where(tally < 0.0, -1.0, where(majority >= 0.0, 1.0, -1.0)))
        changes = [where(c * elected > 0.0, c, 0.0) for c in changes]
    scaled = [c * w for c, w in zip(changes, coefficients, strict=True)]
    if not disjoint:
        return total(scaled) / float(len(scaled))
    if len(scaled) == 1:
        return scaled[0]
    return total(scaled) / maximum(total([where(differs(s, 0.0), 1.0, 0.0) for s in scaled]), 1.0)
