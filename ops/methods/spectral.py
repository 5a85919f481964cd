"""Methods that work on the singular values of a task vector."""

from __future__ import annotations

from plait.ops.algebra import info, mean, polar, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import LAMBDA
from plait.ops.tensor import LazyTensor


@method(
    "iso_c",
    family="spectral",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="No Task Left Behind: Isotropic Model Merging, Marczak et al. 2025, section 4.1",
    kinds=("whole", "map"),
    params=(
        LAMBDA,
        Param("exclude", list, "Matrices whose name contains one of these are averaged instead.", default=("text_projection",), gradient=False),
        Param(
            "rank_policy",
            str,
            "numerical: only directions above rounding noise; full: all of them, as the paper's code.",
            default="numerical",
            choices=("numerical", "full"),
            gradient=False,
        ),
    ),
)
def iso_c(t: MergeInputs, *, lam: float = 1.0, exclude: tuple[str, ...] = ("text_projection",), rank_policy: str = "numerical") -> LazyTensor:
    """Flatten the spectrum of the summed task vectors.

    M = sum_k delta_k = U S V^T; theta = theta_0 + lambda mean(S) U V^T. U V^T is the polar factor P of M, and the mean singular
    value is <P, M> / rank. Tensors that are not matrices get the mean of the task vectors.
    """
    if lam == 0.0:
        return t.origin
    if len(t.shape) != 2 or any(word in t.name for word in exclude):
        return t.origin + lam * mean(t.deltas)
    p = polar(total(t.deltas), rank_policy)
    rank, nuclear = info(p)[0], info(p)[1]
    singular = where(rank > 0.0, nuclear / rank, 0.0)
    return t.origin + lam * singular * p
