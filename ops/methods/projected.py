"""Merging as constrained optimisation: DOGE."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import dot, solve, solver, total
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import columns, concat, doge_correction, matrix, stream, svd
from plait.ops.method import Param, method
from plait.ops.methods.election import trim_mask
from plait.ops.methods.parameters import ACCURACY, beside, is_matrix, others
from plait.ops.tensor import LazyTensor


@method(
    "doge_ta",
    family="optimised",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent (DOGE), Wei et al. 2025, section 4",
    kinds=("whole", "fold", "map"),
    params=(
        Param("lamda", float, "Norm that each task vector of each layer is scaled to.", default=0.07, low=0.0),
        Param("topk", float, "Percent of each expert's largest changes that are kept.", default=30.0, low=0.0, high=100.0),
        Param("scope", str, "Keep them within each tensor, or over all tensors that are merged.", "global", choices=("tensor", "global"), gradient=False),
        Param("subspace", int, "The gradient is kept out of the r / subspace leading directions that the tasks share.", default=6, low=1, gradient=False),
        Param("steps", int, "Steps of Adam.", default=400, low=0, gradient=False),
        Param("rate", float, "Learning rate.", default=1e-4, low=0.0, gradient=False),
        Param("include", list, "Only matrices whose name contains one of these are merged; all where the list is empty.", default=(), gradient=False),
        Param("exclude", list, "Matrices whose name contains one of these are not.", default=("norm", "embed", "lm_head"), gradient=False),
        others("base"),
        ACCURACY,
    ),
)
def doge_ta(
    t: MergeInputs,
    *,
    lamda: float = 0.07,
    topk: float = 30.0,
    scope: str = "global",
    subspace: int = 6,
    steps: int = 400,
    rate: float = 1e-4,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = ("norm", "embed", "lm_head"),
    others: str = "base",
    accuracy: str = "exact",
) -> LazyTensor:
    """Add one correction to all task vectors that closes the gap between each of them and the merged update.

    l_i = lamda / |delta_i|; d: Adam from 0 on sum_j sum_rows <delta_j, delta_j - sum_i l_i (delta_i + d)>^2, the gradient projected away
    from the leading left directions of the tasks' own; theta = theta_0 + sum_i l_i (delta_i + d) where |delta_i| is among the largest.
    """
    wanted = not include or any(word in t.name for word in include)
    if not (wanted and is_matrix(t, exclude) and "weight" in t.name):
        return beside(t, others)
    coefficients = solve("doge_coefficients", *(dot(d, d) for d in t.deltas), shape=(len(t.experts),), lamda=lamda)
    changed = list(t.deltas)
    if steps and rate:
        correction = stream(_correction(t, coefficients, subspace, steps, rate, accuracy), t.shape)
        changed = [d + correction for d in t.deltas]
    scopes = [f"doge {label}" if scope == "global" else "" for label in t.labels]
    kept = [trim_mask(c, d, topk / 100.0, s) for c, d, s in zip(changed, t.deltas, scopes, strict=True)]
    return t.origin + total([coefficients[i] * x for i, x in enumerate(kept)])


def _correction(t: MergeInputs, coefficients: LazyTensor, subspace: int, steps: int, rate: float, accuracy: str) -> LazyTensor:
    """The correction, kept out of the leading left directions of all tasks' leading left vectors."""
    size, taus = min(t.shape), [matrix(d) for d in t.deltas]
    shared = concat([svd(tau, size // len(taus), accuracy=accuracy).u for tau in taus])
    basis = svd(shared, size // subspace).u if shared.shape[1] else columns(taus[0], 0, 0)
    return doge_correction(taus, basis, coefficients, steps=steps, rate=rate)


@solver
def doge_coefficients(*squares: Any, lamda: float) -> Any:
    """lamda / |delta_i|, and 0 for a zero task vector."""
    import numpy as np

    norms = np.sqrt(np.array(squares))
    return np.where(norms > 0.0, lamda / np.where(norms > 0.0, norms, 1.0), 0.0)
