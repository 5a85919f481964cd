"""Methods that flatten or decorrelate the singular values and vectors of task vectors."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import info, later, polar, scaled, solve, solver, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import Svd, concat, matmul, matrix, scale_columns, stream, svd
from plait.ops.method import Param, method
from plait.ops.methods.parameters import ACCURACY, LAMBDA, TEXT_PROJECTION, beside, is_matrix
from plait.ops.tensor import LazyTensor

RANK_POLICY = Param(
    "rank_policy",
    str,
    "numerical: only directions above rounding noise; full: all of them, as the paper's code.",
    default="numerical",
    choices=("numerical", "full"),
    gradient=False,
)


@method(
    "iso_c",
    family="spectral",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="No Task Left Behind: Isotropic Model Merging, Marczak et al. 2025, section 4.1",
    kinds=("whole", "map"),
    params=(LAMBDA, TEXT_PROJECTION, RANK_POLICY),
)
def iso_c(t: MergeInputs, *, lam: float = 1.0, exclude: tuple[str, ...] = ("text_projection",), rank_policy: str = "numerical") -> LazyTensor:
    """Flatten the spectrum of the summed task vectors.

    M = sum_k delta_k = U S V^T; theta = theta_0 + lambda mean(S) U V^T. U V^T is the polar factor P of M, and the mean singular
    value is <P, M> / rank. Tensors that are not matrices get the mean of the task vectors.

    Idea:
        The sum of task vectors is ruled by a few directions that they share; made equally long, the directions of single tasks count, too.
    Differs:
        - The paper's code takes a full decomposition; here the polar factor alone, from a Gram matrix in float64.
        - Where M has not full rank (low-rank experts) that code adds whatever null-space vectors the library gives; `rank_policy: full` does so too.
        - FusionBench excludes nothing unless told; here `text_projection`, as the paper's code.
    Caveats:
        - A single expert does not come back: its directions do, all equally long.
    """
    if lam == 0.0 or not is_matrix(t, exclude):
        return beside(t, lam=lam)
    p = polar(total(t.deltas), rank_policy)
    rank, nuclear = info(p)[0], info(p)[1]
    singular = where(rank > 0.0, nuclear / rank, 0.0)
    return t.origin + scaled(lam, singular) * p


@method(
    "iso_cts",
    family="spectral",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="No Task Left Behind: Isotropic Model Merging, Marczak et al. 2025, section 4.2",
    kinds=("whole", "map"),
    params=(
        LAMBDA,
        Param("common_space_fraction", float, "Share of the directions taken from the sum of all task vectors.", default=0.8, low=0.0, high=1.0),
        TEXT_PROJECTION,
        ACCURACY,
    ),
)
def iso_cts(
    t: MergeInputs,
    *,
    lam: float = 1.0,
    common_space_fraction: float = 0.8,
    exclude: tuple[str, ...] = ("text_projection",),
    accuracy: str = "exact",
) -> LazyTensor:
    """Flatten the spectrum, with the weakest common directions replaced by each task's own.

    U_c: the leading left vectors of sum_k delta_k; (u_k, s_k, v_k): the leading triplets of delta_k - U_c U_c^T delta_k.
    theta = theta_0 + lambda mean(all s) polar([u_1 ... u_K U_c]) polar([v_1; ...; v_K; V_c]).
    """
    if lam == 0.0 or not is_matrix(t, exclude):
        return beside(t, lam=lam)
    size, count = min(t.shape), len(t.experts)
    each = min(round((size - int(size * common_space_fraction)) / count), size // count)
    if each == 0:
        flat: LazyTensor = iso_c(t, lam=lam, exclude=exclude)
        return flat
    common = svd(matrix(total(t.deltas)), size - each * count)
    own: list[Svd] = []
    for delta in t.deltas:  # one after the other, so that a single task vector is held
        d = matrix(later(delta, (own[-1] if own else common).u))
        if not common.u.shape[1]:
            own.append(svd(d, each, accuracy=accuracy))
            continue
        outside = svd(d - matmul(common.u, matmul(common.u, d, transpose_a=True)), each, accuracy=accuracy)
        real = solve("above_noise", outside.s, common.s, shape=outside.s.shape, noise=max(t.shape) * 2.0**-23)
        own.append(Svd(scale_columns(outside.u, real), outside.s * real, outside.vh))
    parts = [*own, common] if common.u.shape[1] else own
    a, b = concat([p.u for p in parts]), concat([p.vh for p in parts], rows=True)
    singular = solve("mean_of_positive", *(p.s for p in parts))
    return t.origin + scaled(lam, singular) * stream(matmul(polar(a), polar(b)), t.shape)


@solver
def above_noise(s: Any, common: Any, *, noise: float) -> Any:
    """1 for singular values that are more than what rounding leaves of the common directions, else 0."""
    return (s > noise * common[0]).astype(float)


@solver
def mean_of_positive(*spectra: Any) -> Any:
    """Mean of the singular values that are not zero; 0 where all are."""
    import numpy as np

    values = np.concatenate(spectra)
    kept = values[values > 0.0]
    return float(kept.mean()) if kept.size else 0.0
