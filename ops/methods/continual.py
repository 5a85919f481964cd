"""Merging experts one after the other, as they arrive: OPCM."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import dot, later, maximum, solve, solver, sqrt, where
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import matmul, matrix, opcm_block, stream, svd
from plait.ops.method import Param, method
from plait.ops.methods.parameters import is_matrix
from plait.ops.tensor import LazyTensor

_EMBEDDINGS = ("embed",)


@method(
    "opcm",
    family="continual",
    base="required",
    experts=(1, None),
    uses_name=True,
    symmetric=False,
    source="Merging Models on the Fly Without Retraining (OPCM), Tang et al. 2025, section 4",
    kinds=("whole", "fold", "map"),
    params=(
        Param("alpha", float, "Directions that hold less than this share of the nuclear norm are closed to later experts.", 0.5, low=0.0, high=1.0),
        Param("exclude", list, "Matrices whose name contains one of these are added as other tensors are.", default=_EMBEDDINGS, gradient=False),
        Param("merged_before", int, "The first model is an earlier result of this method over so many experts; 0: it is an expert.", 0, low=0, gradient=False),
        Param(
            "merged_norm", float, "Norm |A_k| of that earlier result's sum: root of `dot opcm accumulator` in its plait.json.", None, low=0.0, gradient=False
        ),
    ),
)
def opcm(t: MergeInputs, *, alpha: float = 0.5, exclude: tuple[str, ...] = _EMBEDDINGS, merged_before: int = 0, merged_norm: float | None = None) -> LazyTensor:
    """Add experts in recipe order, each without what lies in the directions that earlier ones use most.

    A_1 = delta_1; with A_{t-1} = U S V^T and q the first index at which S sums to more than alpha of the whole,
    A_t = A_{t-1} + delta_t - U B V^T, where B is U^T delta_t V on the leading q x q block and the diagonal, else 0.
    theta = theta_0 + A_T mean_t |delta_t| / |A_T|, norms over the whole model. Tensors other than weight matrices are added as they are.
    An earlier result M over k experts goes on without them: A_k = M |A_k| / |M|, and |M| is the mean of their norms.
    """
    if bool(merged_before) != (merged_norm is not None):
        raise ValueError("opcm goes on from an earlier result with both merged_before and merged_norm: give both, or neither")
    if 0 in t.shape or (len(t.experts) == 1 and not merged_before):
        return t.experts[0]
    project = is_matrix(t, exclude) and "weight" in t.name
    first, *following = t.deltas
    norms = [_norm(first, f"opcm {t.labels[0]}")]
    total = first if merged_norm is None else first * (merged_norm / maximum(norms[0], 1e-300))
    for label, delta in zip(t.labels[1:], following, strict=True):
        if project:
            total, d = _projected(total, delta, alpha)
            norms.append(_norm(d, f"opcm {label}"))
        else:
            total = total + delta
            norms.append(_norm(delta, f"opcm {label}"))
    length = _norm(total, "opcm accumulator")
    mean_norm = (float(max(merged_before, 1)) * norms[0] + sum(norms[1:], start=0.0 * norms[0])) / float(max(merged_before, 1) + len(following))
    return t.origin + where(length > 0.0, mean_norm / maximum(length, 1e-300), 1.0) * total


def _projected(total: LazyTensor, delta: LazyTensor, alpha: float) -> tuple[LazyTensor, LazyTensor]:
    """A_t from A_{t-1} and delta_t, which is read in a pass of its own: the sum so far and one task vector are held."""
    before = matrix(total)
    u, s, vh = svd(before)
    late = later(delta, u)
    d = matrix(late)
    inside = matmul(matmul(u, d, transpose_a=True), vh, transpose_b=True)
    blocked = opcm_block(inside, solve("opcm_split", s, alpha=alpha))
    after = before + d - matmul(u, matmul(blocked, vh))
    return stream(after, total.shape), late


def _norm(x: LazyTensor, scope: str) -> LazyTensor:
    return sqrt(dot(x, x, scope))


@solver
def opcm_split(s: Any, *, alpha: float) -> Any:
    """The first index at which the singular values sum to more than alpha of the whole; 0 where they never do."""
    import numpy as np

    whole = s.sum()
    return float(np.argmax(np.cumsum(s) / whole > alpha)) if whole > 0.0 else 0.0
