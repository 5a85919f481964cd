"""Methods that keep each task's leading singular triplets: TSV-M and STAR."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import later, polar, scaled, solve, solver
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import Svd, concat, matmul, matrix, scale_columns, stream, svd
from plait.ops.method import Param, method
from plait.ops.methods.parameters import ACCURACY, LAMBDA, TEXT_PROJECTION, WEIGHT, beside, is_matrix, others
from plait.ops.tensor import LazyTensor


@method(
    "tsv_m",
    family="spectral",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="Task Singular Vectors, Gargiulo et al. 2025, section 4.2",
    kinds=("whole", "map"),
    params=(
        WEIGHT,
        LAMBDA,
        TEXT_PROJECTION,
        Param("ref_int", bool, "Keep int(r (1/K)) triplets as the released code counts in floats, at times one fewer than r // K.", default=False),
        ACCURACY,
    ),
)
def tsv_m(
    t: MergeInputs,
    *,
    weight: tuple[float, ...] = (1.0,),
    lam: float = 1.0,
    exclude: tuple[str, ...] = ("text_projection",),
    ref_int: bool = False,
    accuracy: str = "exact",
) -> LazyTensor:
    """Keep each task's leading singular triplets and take the interference out of them.

    (U_i, S_i, V_i): the top r / K triplets of w_i delta_i; A = [U_1 ... U_K], B = [V_1; ...; V_K];
    theta = theta_0 + lambda polar(A) diag(S_1 ... S_K) polar(B). Matrices of rank below K, and other tensors, get the mean.

    Idea:
        A task vector is nearly of low rank; its leading singular vectors are the task, and tasks disturb each other where these vectors overlap.
    Differs:
        - The released code keeps int(r (1/K)) triplets in binary floats, at times one fewer than r // K (`ref_int`).
    Caveats:
        - Experts that share a leading direction exactly (the same expert twice) leave the polar factors undetermined along it.
    """
    size, count = min(t.shape, default=0), len(t.experts)
    kept = int(size * (1 / count)) if ref_int else size // count
    if lam == 0.0 or kept == 0 or not is_matrix(t, exclude):
        return beside(t, lam=lam)
    tasks: list[Svd] = []
    for w, delta in zip(weight, t.deltas, strict=True):
        held = matrix(later(w * delta, *(task.u for task in tasks[-1:])))
        tasks.append(svd(held, kept, accuracy=accuracy))
    left, right = polar(concat([task.u for task in tasks])), polar(concat([task.vh for task in tasks], rows=True))
    singular = solve("joined", *(task.s for task in tasks), shape=(kept * count,))
    return t.origin + scaled(lam, stream(matmul(scale_columns(left, singular), right), t.shape))


@solver
def joined(*vectors: Any) -> Any:
    """Small vectors, one behind the other."""
    import numpy as np

    return np.concatenate(vectors)


@method(
    "star",
    family="subspace",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="STAR: Spectral Truncation and Rescale for Model Merging, Lee et al. 2025, section 3",
    kinds=("whole", "map"),
    params=(
        Param("eta", float, "Percent of the nuclear norm that the kept components reach.", default=40.0, low=0.0, high=100.0),
        Param("known_rank", int, "Rank of the experts' updates where it is known (LoRA); smaller components are not looked at.", default=None, low=1),
        Param("exclude", list, "Matrices whose name contains one of these are treated as other tensors.", default=(), gradient=False),
        others("mean"),
        ACCURACY,
    ),
)
def star(
    t: MergeInputs, *, eta: float = 40.0, known_rank: int | None = None, exclude: tuple[str, ...] = (), others: str = "mean", accuracy: str = "exact"
) -> LazyTensor:
    """Drop each expert's small singular components, rescale the others to the nuclear norm they had together, average.

    delta_k = U S V^T; q: the first count whose singular values reach eta percent of their sum; S' = S[:q] sum(S) / sum(S[:q]);
    theta = theta_0 + mean_k U S' V^T. Convolutions are taken as [out, rest]; a zero task vector stays zero.
    """
    if not is_matrix(t, exclude, flatten=True):
        return beside(t, others)
    if accuracy == "fast" and known_rank is None:
        raise ValueError("star needs all singular values unless known_rank tells how many there are: give known_rank, or accuracy: exact")
    merged: LazyTensor | None = None
    for delta in t.deltas:  # one after the other: the sum and one expert's components are held
        d = svd(matrix(later(delta, merged) if merged is not None else delta), known_rank, accuracy=accuracy)
        kept = matmul(scale_columns(d.u, solve("star_rescaled", d.s, shape=d.s.shape, eta=eta)), d.vh)
        merged = kept if merged is None else merged + kept
    assert merged is not None
    return t.origin + stream(merged, t.shape) / len(t.experts)


@solver
def star_rescaled(s: Any, *, eta: float) -> Any:
    """Singular values cut off where they reach eta percent of their sum, scaled to the whole sum."""
    import numpy as np

    whole = s.sum()
    kept = int(np.searchsorted(np.cumsum(s), whole * eta / 100.0)) + 1
    cut = np.where(np.arange(s.size) < kept, s, 0.0)
    return cut * (whole / cut.sum()) if whole > 0.0 else cut
